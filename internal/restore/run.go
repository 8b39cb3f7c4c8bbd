package restore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/chain"
	"holdfast/internal/crc32c"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// Options tunes Run. The zero value is ready to use.
type Options struct {
	Workers  int       // 0 means Workers()
	Progress *Progress // kept up to date; nil for nobody
	Announce string    // release of the program that tells retention in the archive what it is restoring; "" tells nothing
	Mark     string    // by which id that is told, one of archive.NewRestoreID; "" makes one

	weaving weaving
}

// Progress is where a restore is. Run keeps it up to date; others read it at any time.
type Progress struct {
	phase       atomic.Pointer[string]
	done, total atomic.Int64
}

// Phase says what is being done, in a word.
func (p *Progress) Phase() string {
	if s := p.phase.Load(); s != nil {
		return *s
	}
	return ""
}

// Bytes returns how many bytes of content are in place and how many there are to restore.
func (p *Progress) Bytes() (done, total int64) { return p.done.Load(), p.total.Load() }

// Report says what Run did.
type Report struct {
	Backup      string   `json:"backup"`
	Destination string   `json:"destination"`
	Files       int64    `json:"files"`      // written
	Bytes       int64    `json:"bytes"`      // of their contents
	KeptFiles   int64    `json:"kept_files"` // found whole from before the interruption
	KeptBytes   int64    `json:"kept_bytes"`
	Verified    bool     `json:"verified"`                // all contents agree with the backup's manifest
	Pages       int64    `json:"pages_checked,omitempty"` // whose checksum was looked at, where there is no manifest
	BadPages    int64    `json:"bad_pages,omitempty"`     // of them those whose checksum did not hold; see Notes
	Target      string   `json:"target,omitempty"`
	Notes       []string `json:"notes,omitempty"`

	Delta *Differences `json:"delta,omitempty"` // what differed in the directory that was there

	Seconds map[string]float64 `json:"seconds"` // per phase: compare, copy, finish, sync

	// Mark is what stays in the archive while WAL is replayed, for retention to see, by the id of archive.UnmarkRestore; "" for nothing. It need not be removed: it
	// stops to count by itself.
	Mark string `json:"-"`
}

// run is one restore at work.
type run struct {
	Options
	archive *archive.Archive
	plan    *Plan
	tree    *tree
	notes   notes

	picking   *picking // nil for what is restored otherwise
	comparing comparing

	pages pages
	owed  chain.Sets // what older backups owe to files that were begun with an increment

	files, bytes, keptFiles, keptBytes atomic.Int64

	mu    sync.Mutex
	held  map[string]*heldFile    // contents of the files that are written in the end
	split map[*splitFile]struct{} // open files that several workers write

	listing sync.Mutex // guards list
	list    *manifest.Writer
	listOut *os.File
}

// Names of the files whose contents are held back until everything else is in place.
const (
	labelFile = "backup_label"
	mapFile   = "tablespace_map"
)

// maxHeld bounds each of them in bytes. The control file has 8 KiB, a map a line per tablespace.
const maxHeld = 4 << 20

// heldFile is a file that is written in the end.
type heldFile struct {
	content bytes.Buffer
	mode    fs.FileMode
	modTime time.Time
}

// unwanted lists what a backup may hold that the restored cluster must not have: PostgreSQL or its tools would act on it.
var unwanted = []string{
	manifest.Name, "backup_manifest.tmp", "recovery.signal", "standby.signal", "recovery.conf", "recovery.done", "postmaster.pid", "postmaster.opts",
}

// leaves reports whether a file of the backup stays out of the restored cluster: it has no business there, or saved
// configuration takes its place.
func (p *Plan) leaves(path string) bool {
	return path == markerName || slices.Contains(unwanted, path) ||
		slices.ContainsFunc(p.config.files, func(f string) bool { return p.config.place(f) == path })
}

// wants reports whether a member is asked for: all are, or with a mask the files that match it.
func (p *Plan) wants(name string, kind tarpart.Type) bool {
	if p.Mask == "" {
		return true
	}
	match, _ := path.Match(p.Mask, name) // checkMask has seen that it is a pattern
	return match && kind == tarpart.File
}

// isHollow reports whether a file gets no content.
func (p *Plan) isHollow(path string) bool { return p.hollow != nil && p.hollow(path) && !isHeld(path) }

// Run carries out a plan. When it returns nil the restored cluster is durable and can start. Otherwise what is there stays
// for another Run with Resume, and has no pg_control, so that PostgreSQL does not take it for whole.
func Run(ctx context.Context, a *archive.Archive, p *Plan, opts Options) (_ *Report, err error) {
	if err := p.make(); err != nil {
		return nil, err
	}
	t, err := openTree(p, false)
	if err != nil {
		return nil, err
	}
	defer t.close() // all was closed or synced by then
	marker, err := t.placeMarker(p)
	if err != nil {
		return nil, err
	}
	defer marker.Close() // synced already; this ends the lock
	r := newRun(a, p, opts)
	r.tree = t
	r.owed.File = func() (*os.File, error) { return hidden(t.data) }
	r.pages.setUp(p.control, p.Mask == "")
	defer r.abandon()
	report := &Report{Backup: p.Backup, Destination: p.Destination, Verified: p.Verified, Target: p.Target, Seconds: map[string]float64{}}
	end := r.announce(ctx)
	defer func() { report.Mark = end(err); report.Notes = r.notes.all }()
	if r.picking != nil && t.overwrite {
		begun := time.Now()
		r.phase("compare", p.Bytes)
		err := r.compare(ctx)
		if err == nil && p.Delta != nil {
			err = p.checkStopped() // it may have been started since
		}
		if err != nil {
			if p.Delta != nil && !p.continues { // nothing was touched
				err = errors.Join(err, t.removeMarker())
			} else {
				err = &interruptedError{err, true, p.Delta != nil}
			}
			return nil, fmt.Errorf("compare %s with %s: %w", p.Destination, p.Backup, err)
		}
		report.Seconds["compare"], report.Delta = time.Since(begun).Seconds(), p.Delta
	}
	for _, phase := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"copy", r.copy},
		{"finish", r.finish},
		{"sync", r.seal},
	} {
		begun := time.Now()
		total := p.Bytes
		if p.Delta != nil {
			total = p.Delta.Write
		}
		r.phase(phase.name, total)
		if err := phase.do(ctx); err != nil {
			return nil, fmt.Errorf("restore %s to %s: %w", p.Backup, p.Destination, &interruptedError{err, p.Verified, p.Delta != nil})
		}
		report.Seconds[phase.name] = time.Since(begun).Seconds()
	}
	report.Files, report.Bytes = r.files.Load(), r.bytes.Load()
	report.KeptFiles, report.KeptBytes = r.keptFiles.Load(), r.keptBytes.Load()
	if !p.Verified && !r.pages.off {
		report.Pages, report.BadPages = r.pages.checked.Load(), r.pages.bad.Load()
	}
	return report, nil
}

// newRun returns a run that has not begun.
func newRun(a *archive.Archive, p *Plan, opts Options) *run {
	opts.Workers = cmp.Or(opts.Workers, Workers())
	opts.Progress = cmp.Or(opts.Progress, &Progress{})
	r := &run{Options: opts, archive: a, plan: p, held: map[string]*heldFile{}, split: map[*splitFile]struct{}{}}
	if p.chain != nil {
		r.picking = &picking{Chain: p.chain, files: make([]state, p.chain.Len())}
	}
	return r
}

// phase says in Progress what is being done, and with how many bytes.
func (r *run) phase(name string, total int64) {
	p := r.Progress
	if was := p.phase.Load(); was == nil || *was == "compare" {
		p.done.Store(0)
	}
	p.total.Store(total)
	p.phase.Store(&name)
}

// errDamaged says that contents are not what was backed up.
var errDamaged = errors.New("the archive is damaged")

// interruptedError is why a restore ended early.
type interruptedError struct {
	error
	kept  bool // what is whole can be told, and stays
	delta bool // it was one of differences
}

func (e *interruptedError) Unwrap() error { return e.error }

// Hint says how to go on.
func (e *interruptedError) Hint() string {
	resume := "continue with --resume: what was restored so far is kept"
	if e.delta {
		resume = "run the same command again: it continues"
	}
	if !e.kept {
		resume = "try again with --resume, which writes all anew: without a manifest nothing tells what is whole. What is damaged stays so: then restore another backup"
	}
	var inner interface{ Hint() string }
	switch {
	case errors.Is(e.error, errDamaged):
		return "restore another backup into an empty directory (backup-list shows them): with a target, WAL brings an older one to the same moment"
	case errors.Is(e.error, syscall.ENOSPC), errors.Is(e.error, syscall.EDQUOT):
		return "make room, then " + resume
	case errors.As(e.error, &inner) && inner.Hint() != "":
		return inner.Hint() + "; then " + resume
	}
	return resume
}

// abandon closes what a run left open.
func (r *run) abandon() {
	r.owed.Close()
	if r.picking != nil {
		r.picking.stale.Close()
	}
	for s := range r.split {
		s.close()
	}
	if r.listOut != nil {
		r.listOut.Close() // the run has failed: what is in it does not count
	}
}

// copy restores everything but the files that are held back.
func (r *run) copy(ctx context.Context) error {
	if r.plan.Delta != nil {
		if err := r.clear(); err != nil {
			return err
		}
	}
	if err := r.prepare(); err != nil {
		return err
	}
	if r.plan.source != nil {
		if err := r.share(ctx, r.dealSource); err != nil {
			return err
		}
	} else if r.picking != nil {
		if err := r.share(ctx, r.dealPicks); err != nil {
			return err
		}
		if err := r.share(ctx, r.dealFinished); err != nil {
			return err
		}
	} else if r.plan.Verified {
		if err := r.share(ctx, r.deal); err != nil {
			return err
		}
	}
	for level := range r.plan.links { // the newest first: what it has nobody else writes
		deal := func(ctx context.Context, tasks chan<- task) ([]task, error) { return r.dealLink(ctx, level, tasks) }
		if err := r.share(ctx, deal); err != nil {
			return err
		}
	}
	if err := r.allCame(ctx); err != nil {
		return err
	}
	switch {
	case r.plan.Mask != "":
		return nil
	case r.held[control.Name] == nil:
		return fmt.Errorf("the backup holds no %s", control.Name)
	case r.held[labelFile] == nil: // PostgreSQL would start, replay from the wrong place, and be corrupt
		c, err := control.Decode(r.held[control.Name].content.Bytes())
		if err == nil && c.State == control.ShutDown && (r.plan.newest.IsWALE() || r.plan.source != nil) { // wal-e backup-push --while-offline
			r.notes.add("the backup was taken while the server was shut down: it is consistent as it is")
			return nil
		}
		return fmt.Errorf("the backup holds no %s, without which it is not consistent", labelFile)
	}
	return r.plan.checkLabel(r.held[labelFile].content.Bytes())
}

// checkLabel refuses a label that is not that of the backup: PostgreSQL begins to replay where it says.
func (p *Plan) checkLabel(label []byte) error {
	line, _, _ := bytes.Cut(label, []byte("\n"))
	rest, ok := bytes.CutPrefix(line, []byte("START WAL LOCATION: "))
	at, _, _ := bytes.Cut(rest, []byte(" "))
	start, err := wal.ParseLSN(string(at))
	switch {
	case !ok || err != nil:
		return fmt.Errorf("%s begins with %.80q instead of where the backup starts: %w", labelFile, line, errDamaged)
	case p.StartLSN != "" && start != p.startLSN:
		return fmt.Errorf("%s says that the backup starts at %s, the backup says %s: %w", labelFile, start, p.startLSN, errDamaged)
	}
	return nil
}

// A task is what one worker does at once.
type task interface {
	do(w *worker) error
}

// share has workers do what deal hands out, and then, one after the other, what it keeps for the end.
func (r *run) share(ctx context.Context, deal func(context.Context, chan<- task) ([]task, error)) error {
	var last []task
	group, copying := errgroup.WithContext(ctx)
	tasks := make(chan task)
	d := newDesk()
	defer context.AfterFunc(copying, d.close)()
	group.Go(func() (err error) {
		defer close(tasks)
		last, err = deal(copying, tasks)
		return err
	})
	group.Go(func() error {
		for t := range tasks {
			d.put(t)
		}
		d.close()
		return nil
	})
	for range r.Workers {
		group.Go(func() error {
			w := &worker{run: r, ctx: copying, buf: make([]byte, copyBuffer)}
			defer w.folder.leave()
			for t := d.take(nil); t != nil; t = d.take(t) {
				if copying.Err() != nil {
					return context.Cause(copying)
				}
				if err := t.do(w); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	w := &worker{run: r, ctx: ctx, buf: make([]byte, copyBuffer)}
	defer w.folder.leave()
	for _, t := range last {
		if err := t.do(w); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes what must be there before the first file: the links of tablespaces. What an attempt that was interrupted in its
// end has left goes: pg_control, and what tells PostgreSQL to recover, perhaps to another target.
func (r *run) prepare() error {
	if r.tree.overwrite {
		for _, name := range append([]string{control.Name}, unwanted...) {
			if err := r.tree.data.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := r.tree.bringStraysBack(); err != nil {
			return err
		}
	}
	for _, ts := range r.plan.Tablespaces {
		if err := r.tree.link(ts.OID, ts.To); err != nil {
			return err
		}
	}
	if !r.plan.Verified || r.plan.PgVersion < 130000 || r.plan.Mask != "" || r.plan.hollow != nil {
		return nil
	}
	f, err := r.tree.data.OpenFile(manifest.Name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	var system uint64
	if r.plan.PgVersion >= 170000 {
		system = r.plan.systemIdentifier
	}
	r.listOut, r.list = f, manifest.NewWriter(f, system)
	if o := r.tree.owner; o != nil {
		return f.Chown(o.UID, o.GID)
	}
	return nil
}

// listFile enters a restored file in PostgreSQL's manifest, where one is written.
func (r *run) listFile(path string, size int64, modified time.Time, crc uint32) error {
	if r.list == nil || strings.HasPrefix(path, "pg_wal/") {
		return nil
	}
	r.listing.Lock()
	defer r.listing.Unlock()
	return r.list.Add(manifest.File{
		Path: path, Size: size, Modified: modified, Algorithm: manifest.CRC32C, Checksum: manifest.ChecksumCRC32C(crc),
	})
}

// neededDirs lists the directories PostgreSQL does not make by itself when it starts.
var neededDirs = []string{
	"base", "global", "pg_commit_ts", "pg_dynshmem", "pg_logical/mappings", "pg_logical/snapshots", "pg_multixact/members",
	"pg_multixact/offsets", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat", "pg_stat_tmp", "pg_subtrans",
	"pg_tblspc", "pg_twophase", "pg_wal/archive_status", "pg_xact",
}

// finish writes what goes on top of the contents: labels, directories, configuration, recovery, PostgreSQL's manifest.
func (r *run) finish(ctx context.Context) error {
	dirs := neededDirs
	if r.plan.Mask != "" {
		dirs = nil
	}
	for _, dir := range dirs {
		if err := r.tree.mkdir(r.tree.data, dir); err != nil {
			return err
		}
	}
	if err := r.writeLabels(); err != nil {
		return err
	}
	if err := r.restoreConfig(ctx); err != nil {
		return err
	}
	if err := r.tree.writeRecovery(r.plan); err != nil {
		return err
	}
	if r.plan.Mask != "" && r.files.Load()+r.keptFiles.Load() == 0 && len(r.held) == 0 {
		r.notes.add("no file of the backup matches %q", r.plan.Mask)
	}
	if _, err := r.tree.data.Lstat("postgresql.conf"); errors.Is(err, fs.ErrNotExist) && r.plan.Mask == "" {
		r.notes.add("there is no postgresql.conf in %s: provide one, or start the server with -c config_file=…", r.plan.Destination)
	}
	return nil
}

// writeLabels writes what PostgreSQL begins to recover by: the backup's label, and where its tablespaces are now.
func (r *run) writeLabels() error {
	if m := r.held[mapFile]; m != nil && r.plan.Mask == "" {
		moved, strays, err := r.plan.moveMap(m.content.Bytes())
		if err != nil {
			return err
		}
		for _, oid := range strays {
			if err := r.placeStray(oid); err != nil {
				return err
			}
		}
		m.content.Reset()
		m.content.Write(moved)
	}
	for _, name := range []string{mapFile, labelFile} {
		if h := r.held[name]; h != nil {
			if err := r.tree.write(name, h.content.Bytes(), h.mode); err != nil {
				return err
			}
			if err := r.listFile(name, int64(h.content.Len()), h.modTime, crc32c.Checksum(h.content.Bytes())); err != nil {
				return err
			}
		}
	}
	return nil
}

// seal makes everything durable and then puts pg_control in its place.
func (r *run) seal(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c := r.held[control.Name]
	if c == nil { // the mask does not match it
		r.pages.tell(&r.notes)
		if err := r.tree.syncAll(); err != nil {
			return err
		}
		return r.tree.removeMarker()
	}
	data, err := control.Decode(c.content.Bytes())
	if err != nil {
		return fmt.Errorf("%s in the backup: %w", control.Name, err)
	}
	if err := r.plan.checkSystem(data); err != nil {
		return err
	}
	r.pages.settle(&data)
	r.pages.tell(&r.notes)
	if err := r.listFile(control.Name, int64(c.content.Len()), c.modTime, crc32c.Checksum(c.content.Bytes())); err != nil {
		return err
	}
	if err := r.closeList(); err != nil {
		return err
	}
	if err := r.tree.syncAll(); err != nil {
		return err
	}
	if err := r.tree.writeLast(control.Name, c.content.Bytes(), c.mode); err != nil {
		return err
	}
	return r.tree.removeMarker()
}

// closeList ends PostgreSQL's manifest.
func (r *run) closeList() error {
	if r.list == nil {
		return nil
	}
	err := r.list.Close([]manifest.WALRange{{Timeline: r.plan.Timeline, Start: r.plan.startLSN, End: r.plan.finishLSN}})
	err = errors.Join(err, r.listOut.Close())
	r.listOut = nil
	return err
}

// strayDir is where in the data directory tablespaces go of which the backup does not say where they lay.
const strayDir = "holdfast_tablespaces"

// placeStray moves what was restored of a stray tablespace to where its link may lead: PostgreSQL accepts nothing but links in
// pg_tblspc.
func (r *run) placeStray(oid string) error {
	link, to := "pg_tblspc/"+oid, path.Join(strayDir, oid)
	if err := r.tree.mkdir(r.tree.data, strayDir); err != nil {
		return err
	}
	err := r.tree.data.Rename(link, to)
	if errors.Is(err, fs.ErrNotExist) { // nothing was in it
		err = r.tree.mkdir(r.tree.data, to)
	}
	if err == nil {
		err = r.tree.link(oid, path.Join(r.plan.Destination, to))
	}
	r.notes.add("tablespace %s is in %s/%s: the backup does not say where it lay. --restore-spec puts it elsewhere", oid, r.plan.Destination, to)
	return err
}

// bringStraysBack undoes placeStray, for an attempt that goes on.
func (t *tree) bringStraysBack() error {
	dir, err := t.data.Open(strayDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close() // only read
	names, err := dir.Readdirnames(-1)
	for _, oid := range names {
		link := "pg_tblspc/" + oid
		if info, errThere := t.data.Lstat(link); errThere == nil && info.Mode()&fs.ModeSymlink != 0 {
			err = errors.Join(err, t.data.Remove(link))
		}
		err = errors.Join(err, t.data.Rename(path.Join(strayDir, oid), link))
	}
	return err
}

// moveMap rewrites a tablespace_map for where the tablespaces are now: PostgreSQL makes the links anew by it. A line is
// an object identifier, a space and a directory, in which a backslash stands before line ends and backslashes. Tablespaces
// that the plan does not know are strays: they go below strayDir, for where they lay another cluster may be using them.
func (p *Plan) moveMap(was []byte) (_ []byte, strays []string, err error) {
	var out bytes.Buffer
	for len(was) > 0 {
		end, escaped := 0, false
		for end < len(was) && (escaped || was[end] != '\n') {
			escaped = !escaped && was[end] == '\\'
			end++
		}
		line := was[:end]
		was = was[min(end+1, len(was)):]
		oid, _, ok := strings.Cut(string(line), " ")
		if !ok || escaped || oid == "" || strings.Trim(oid, "0123456789") != "" {
			return nil, nil, fmt.Errorf("line %q of the backup's %s is not an identifier and a directory", line, mapFile)
		}
		to := path.Join(p.Destination, strayDir, oid)
		if i := slices.IndexFunc(p.Tablespaces, func(t Tablespace) bool { return t.OID == oid }); i >= 0 {
			to = p.Tablespaces[i].To
		} else if !slices.Contains(strays, oid) {
			strays = append(strays, oid)
		}
		out.WriteString(oid + " " + strings.NewReplacer("\n", "\\\n", "\r", "\\\r", `\`, `\\`).Replace(to) + "\n")
	}
	return out.Bytes(), strays, nil
}

// send hands out a task, unless nobody takes it any more.
func send(ctx context.Context, tasks chan<- task, t task) error {
	select {
	case tasks <- t:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// deal hands the contents of a backup with a manifest out in units of work, and returns those that must come last.
func (r *run) deal(ctx context.Context, tasks chan<- task) (last []task, err error) {
	parts := make(map[string]archive.Part, len(r.plan.parts))
	for _, p := range r.plan.parts {
		parts[p.Name] = p
	}
	m, err := r.archive.OpenManifest(ctx, r.plan.Backup)
	if err != nil {
		return nil, err
	}
	defer m.Close() // only read
	for {
		p, err := m.Next()
		if err == io.EOF {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		part, ok := parts[p.Name]
		if !ok {
			return nil, fmt.Errorf("%s is missing in the archive: %w", p.Name, fs.ErrNotExist)
		}
		p.Members = slices.DeleteFunc(p.Members, func(m tarpart.Member) bool { return !r.plan.wants(m.Path, m.Type) })
		cut, err := r.cut(ctx, part, p.Members)
		if err != nil {
			return nil, err
		}
		for _, u := range cut {
			if lastRank(part) > 0 {
				last = append(last, u)
			} else if err := send(ctx, tasks, u); err != nil {
				return nil, err
			}
		}
	}
}
