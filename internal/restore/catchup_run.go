package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/archive"
	"holdfast/internal/increment"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// CatchUpReport says what RunCatchUp did.
type CatchUpReport struct {
	Backup       string             `json:"backup"`
	Destination  string             `json:"destination"`
	Files        int64              `json:"files"` // written, all or some pages
	Bytes        int64              `json:"bytes"` // of their contents
	RemovedFiles int64              `json:"removed_files"`
	RemovedBytes int64              `json:"removed_bytes"`
	Verified     bool               `json:"verified"`
	StartLSN     string             `json:"start_lsn"`  // the standby replays from there
	FinishLSN    string             `json:"finish_lsn"` // and is consistent there
	Notes        []string           `json:"notes,omitempty"`
	Seconds      map[string]float64 `json:"seconds"` // per phase: clear, copy, finish, sync
}

// catchingUp is a catch-up at work.
type catchingUp struct {
	*run
	plan    *CatchUp
	removed swept
}

// RunCatchUp carries out a plan. When it returns nil all is durable, and the server can be started: it replays from the catch-up's start. Otherwise the
// directory has no pg_control, unless nothing was changed, and the same plan made anew completes it.
func RunCatchUp(ctx context.Context, a *archive.Archive, c *CatchUp, opts Options) (_ *CatchUpReport, err error) {
	p := c.plan
	for _, dir := range p.locations() {
		if !isDir(dir) {
			if err := p.makeDir(dir); err != nil {
				return nil, err
			}
		}
	}
	t, err := openTree(p, false)
	if err != nil {
		return nil, err
	}
	defer t.close() // all was closed or synced by then
	t.marker = catchUpMarker
	marker, err := c.placeMarker(t)
	if err != nil {
		return nil, err
	}
	defer marker.Close() // synced already; this ends the lock
	r := &catchingUp{run: newRun(a, p, opts), plan: c}
	r.tree = t
	r.pages.setUp(p.control, !c.Verified)
	defer r.abandon()
	report := &CatchUpReport{Backup: c.Backup, Destination: c.Destination, Verified: c.Verified, StartLSN: c.StartLSN, FinishLSN: c.FinishLSN, Seconds: map[string]float64{}}
	if err := r.unchanged(); err != nil {
		if !c.Continues {
			err = errors.Join(err, t.removeMarker())
		}
		return nil, err
	}
	for _, phase := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"clear", r.clear},
		{"copy", r.copy},
		{"finish", r.finish},
		{"sync", r.seal},
	} {
		begun := time.Now()
		r.phase(phase.name, c.Bytes)
		if err := phase.do(ctx); err != nil {
			return nil, fmt.Errorf("bring %s forward by %s: %w", c.Destination, c.Backup, &brokenOffError{err})
		}
		report.Seconds[phase.name] = time.Since(begun).Seconds()
	}
	report.Files, report.Bytes = r.files.Load(), r.bytes.Load()
	report.RemovedFiles, report.RemovedBytes = r.removed.files, r.removed.bytes
	report.Notes = r.notes.all
	return report, nil
}

// brokenOffError is why a catch-up ended early.
type brokenOffError struct{ error }

func (e *brokenOffError) Unwrap() error { return e.error }

// Hint says how to go on.
func (e *brokenOffError) Hint() string {
	const again = "run the same command again: it completes. Until then the server cannot start"
	var inner interface{ Hint() string }
	switch {
	case errors.Is(e.error, errDamaged):
		return "the catch-up is of no use, and the standby cannot start as it is: `holdfast backup-fetch --delta` makes it as a backup has it"
	case errors.Is(e.error, syscall.ENOSPC), errors.Is(e.error, syscall.EDQUOT):
		return "make room, then " + again
	case errors.As(e.error, &inner) && inner.Hint() != "":
		return inner.Hint() + "; then " + again
	}
	return again
}

// placeMarker writes the marker durably and locks it: no other catch-up works on the directory until the file is closed.
func (c *CatchUp) placeMarker(t *tree) (*os.File, error) {
	f, err := t.data.OpenFile(t.marker, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = &RefusedError{fmt.Sprintf("another catch-up of %s is running", c.Destination), "wait for it to end"}
	case err == nil && !t.isMarker(f):
		err = &RefusedError{fmt.Sprintf("another catch-up of %s has just ended", c.Destination), "look whether it is what you want"}
	case err == nil && !c.Continues:
		err = c.plan.writeMarker(f)
	}
	if err == nil {
		err = syncPath(t.data, ".")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// unchanged refuses a directory that is not as the plan saw it: a server was started there.
func (r *catchingUp) unchanged() error {
	if err := r.plan.plan.checkStopped(); err != nil || r.plan.Continues {
		return err
	}
	is, err := Position(r.plan.Destination)
	if err == nil && *is != *r.plan.Standby {
		err = &RefusedError{fmt.Sprintf("%s has changed since it was looked at", r.plan.Destination), "try again"}
	}
	return err
}

// clear makes the directory one that PostgreSQL does not start in, and removes what the catch-up does not have.
func (r *catchingUp) clear(context.Context) error {
	err := r.tree.data.Remove(control.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncPath(r.tree.data, path.Dir(control.Name)); err != nil {
		return err
	}
	removed, err := r.sweepCatchUp(true)
	if err != nil {
		return err
	}
	r.removed = *removed
	for _, name := range []string{manifest.Name, labelFile, mapFile} { // of how the standby was made, or of an attempt that was interrupted
		if err := r.tree.data.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, ts := range r.plan.Tablespaces {
		if err := r.tree.link(ts.OID, ts.To); err != nil {
			return err
		}
	}
	return nil
}

// sweepCatchUp goes through what a catch-up makes as it is in it, and removes, if act is set, what it does not have.
func (r *run) sweepCatchUp(act bool) (*swept, error) {
	s := &catchUpSweep{run: r, act: act, swept: swept{perDir: map[string]int64{}}}
	for _, dir := range catchUpDirs {
		if err := s.dir(r.tree.data, dir, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for oid, root := range r.tree.tablespaces { // what lies beside the directory of this PostgreSQL is another's
		own := r.plan.control.TablespaceDir()
		if err := s.dir(root, own, path.Join("pg_tblspc", oid, own)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return &s.swept, nil
}

type catchUpSweep struct {
	*run
	act bool
	swept
}

// dir sweeps the directory rel of root, which is the path name of the data directory.
func (s *catchUpSweep) dir(root *os.Root, rel, name string) error {
	return eachEntry(root, rel, name, s.entry)
}

// entry judges what is in a directory.
func (s *catchUpSweep) entry(root *os.Root, rel, name string) error {
	info, err := root.Lstat(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	oid, below := strings.CutPrefix(name, "pg_tblspc/")
	isLink := info.Mode().Type() == fs.ModeSymlink
	known := s.plan.files.find(name) >= 0
	switch {
	case isHeld(name), below && isLink && s.tree.tablespaces[oid] != nil:
		return nil
	case info.IsDir():
		return s.subdirectory(root, rel, name, known)
	case !isLink && !info.Mode().IsRegular(): // sockets and the like
		return nil
	case known && !isLink:
		return nil
	case below && isLink && !strings.Contains(oid, "/"):
		to, _ := root.Readlink(rel) // told as far as it is known
		s.notes.add("tablespace %s, in %s, is gone on the primary: its link goes, what it leads to stays", oid, to)
	case !isLink:
		s.swept.files++
		s.swept.bytes += info.Size()
		s.perDir[s.plan.directoryOf(name)] += info.Size()
	}
	if !s.act {
		return nil
	}
	return root.Remove(rel)
}

// subdirectory sweeps a directory, and removes it where it is not known.
func (s *catchUpSweep) subdirectory(root *os.Root, rel, name string, known bool) error {
	if slot, ok := strings.CutPrefix(name, "pg_replslot/"); ok && !strings.Contains(slot, "/") {
		s.notes.add("the replication slot %s of the standby goes: the WAL it holds on to is passed over. Whoever uses it has to be made anew", slot)
	}
	place := filepath.Join(s.plan.Destination, name)
	for _, ts := range s.plan.Tablespaces { // PostgreSQL warns of tablespaces inside the data directory, and allows them
		if root == s.tree.data && ts.To == place {
			return nil
		}
	}
	holds := slices.ContainsFunc(s.plan.Tablespaces, func(ts Tablespace) bool { return root == s.tree.data && within(ts.To, place) })
	if err := s.dir(root, rel, name); err != nil || known || holds || !s.act {
		return err
	}
	if err := root.Remove(rel); err != nil && !errors.Is(err, syscall.ENOTEMPTY) { // something special is in it
		return err
	}
	return nil
}

// copy writes what the catch-up holds.
func (r *catchingUp) copy(ctx context.Context) error {
	if err := r.share(ctx, r.deal); err != nil {
		return err
	}
	p := r.plan.plan
	if found, all := p.files.missing(maxNamed); all > 0 {
		names, err := p.names(ctx, r.archive, found...)
		if err != nil {
			return err
		}
		return fmt.Errorf("its list has %s, its parts do not, and %d files in all: %w", strings.Join(names, ", "), all, errDamaged)
	}
	switch {
	case r.held[control.Name] == nil:
		return fmt.Errorf("it holds no %s: %w", control.Name, errDamaged)
	case r.held[labelFile] == nil:
		return fmt.Errorf("it holds no %s: %w", labelFile, errDamaged)
	}
	return p.checkLabel(r.held[labelFile].content.Bytes())
}

// deal hands out the parts, the largest first or as the manifest has them; those that are written in the end are kept for the end.
func (r *catchingUp) deal(ctx context.Context, tasks chan<- task) (last []task, err error) {
	hand := func(part archive.Part, sums map[string]uint32) error {
		t := caughtUp{r, part, sums}
		if lastRank(part) > 0 {
			last = append(last, t)
			return nil
		}
		return send(ctx, tasks, t)
	}
	parts := slices.Clone(r.plan.plan.parts)
	if !r.plan.Verified {
		slices.SortStableFunc(parts, func(x, y archive.Part) int { return int(min(1, max(-1, y.Size-x.Size))) })
		for _, part := range parts {
			if err := hand(part, nil); err != nil {
				return nil, err
			}
		}
		return last, nil
	}
	m, err := r.archive.OpenManifest(ctx, r.plan.Backup)
	if err != nil {
		return nil, err
	}
	defer m.Close() // only read
	for {
		listed, err := m.Next()
		if err == io.EOF {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(parts, func(p archive.Part) bool { return p.Name == listed.Name })
		if i < 0 {
			return nil, fmt.Errorf("%s is missing in the archive: %w", listed.Name, fs.ErrNotExist)
		}
		sums := make(map[string]uint32, len(listed.Members))
		for _, member := range listed.Members {
			if member.Type == tarpart.File {
				sums[member.Path] = member.CRC
			}
		}
		if err := hand(parts[i], sums); err != nil {
			return nil, err
		}
	}
}

// caughtUp is a task: a part of a catch-up.
type caughtUp struct {
	of   *catchingUp
	part archive.Part
	sums map[string]uint32 // checksums of contents by path; nil where there is no manifest
}

func (u caughtUp) do(w *worker) error {
	body, err := w.archive.OpenPart(w.ctx, w.plan.Backup, u.part)
	if err != nil {
		return err
	}
	defer body.Close() // only read
	err = tarpart.Each(body, func(h tarpart.Header, content io.Reader) error {
		if err := u.member(w, h, content); err != nil {
			return fmt.Errorf("%s: %w", h.Path, err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", u.part.Name, err)
	}
	return nil
}

// member writes one member.
func (u caughtUp) member(w *worker, h tarpart.Header, content io.Reader) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	isFile := h.Type == tarpart.File && h.Skipped == ""
	sum, listed := u.sums[h.Path]
	if isFile && u.sums != nil && !listed {
		return fmt.Errorf("the manifest does not name it: %w", errDamaged)
	}
	if isFile && isHeld(h.Path) {
		in := &summing{Reader: content}
		if err := w.holdMember(h, in); err != nil || !listed || in.sum == sum {
			return err
		}
		return mismatch(in.sum, sum)
	}
	_, what, err := w.plan.files.take(h.Path, isFile, 0)
	mode := fs.FileMode(h.Mode) & 0o777
	oid, below := strings.CutPrefix(h.Path, "pg_tblspc/")
	switch {
	case err != nil:
		return err
	case what == unnamed && isFile:
		w.notes.add("%s is left out: it is in %s, and the list does not name it", h.Path, u.part.Name)
		return nil
	case staysStandbys(h.Path), below && w.tree.tablespaces[oid] != nil:
		return nil
	case h.Skipped != "":
		w.notes.add("%s is left out: %s", h.Path, h.Skipped)
		return nil
	case h.Type == tarpart.Dir:
		return w.tree.directory(h.Path, mode)
	case !isFile:
		w.notes.add("%s is a symbolic link to %s on the primary; it is left out", h.Path, h.Link)
		return nil
	}
	f := &building{worker: w, entry: -1, path: h.Path, head: h, check: w.pages.check(h.Path)}
	if what == part {
		in := &summing{Reader: content}
		head, err := increment.Read(in, h.Size)
		if err != nil {
			return err
		}
		if f.file, err = u.openOld(w, h, head); err != nil {
			return err
		}
		w.files.Add(1)
		err = f.pages(in, head, sum, listed)
		return errors.Join(err, f.end(err != nil))
	}
	if err := w.folder.remove(w.tree, h.Path); err != nil {
		return err
	}
	if f.file, err = w.folder.create(w.tree, h.Path, mode); err != nil {
		return err
	}
	err = f.fill(content, sum, listed)
	return errors.Join(err, f.end(err != nil))
}

// openOld opens a file to write an increment to, without what is not whole of its last page. Where there is none it makes one.
func (u caughtUp) openOld(w *worker, h tarpart.Header, head *increment.Header) (*os.File, error) {
	is, err := w.folder.size(w.tree, h.Path)
	if err != nil {
		return nil, err
	}
	if u.of.plan.lacks(h.Path, is, head.FileSize, func(block uint32) uint64 {
		i, _ := slices.BinarySearch(head.Blocks, block)
		return uint64(len(head.Blocks) - i)
	}) {
		return nil, &lackingError{catchUp: u.of.plan.Backup, dir: u.of.plan.Destination, files: []string{h.Path}, all: 1, ours: u.sums != nil}
	}
	if is < 0 {
		return w.folder.create(w.tree, h.Path, fs.FileMode(h.Mode)&0o777)
	}
	f, err := w.folder.open(w.tree, h.Path)
	if err == nil && is%page.Size != 0 {
		if err = f.Truncate(is - is%page.Size); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return f, err
}

// finish writes what goes on top of the contents.
func (r *catchingUp) finish(context.Context) error {
	for _, dir := range neededDirs {
		if within(dir, "pg_wal") && exists(filepath.Join(r.plan.Destination, "pg_wal")) { // perhaps by a link
			continue
		}
		if err := r.tree.mkdir(r.tree.data, dir); err != nil {
			return err
		}
	}
	if err := r.writeLabels(); err != nil {
		return err
	}
	if r.plan.Signal != "" {
		return r.tree.write(r.plan.Signal, nil, 0o600)
	}
	return nil
}
