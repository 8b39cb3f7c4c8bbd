package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/tarpart"
)

// copyData stores the data directory: all but pg_control by the workers, then pg_control, then configuration from
// elsewhere.
func (r *run) copyData(ctx context.Context) error {
	r.phase("listing files")
	big, err := r.survey(ctx)
	if err != nil {
		return err
	}
	r.phase("copying")
	work, stop := newWorklist(big, r.walk(nil), func(e datadir.Entry) (tarpart.Entry, bool, error) {
		if r.delta == nil {
			return r.packEntry(e), true, nil
		}
		return r.delta.pack(ctx, e, r.packEntry(e))
	})
	defer stop()
	group, groupCtx := errgroup.WithContext(ctx)
	for range r.Workers {
		group.Go(func() error { return r.worker(groupCtx, work) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := r.putControl(ctx); err != nil || r.standby != nil {
		return err
	}
	return r.putConfig(ctx)
}

// walk yields the entries to store. skipped, unless it is nil, is told what somebody might miss. A tablespace that was
// created since the survey is left out: its WAL brings it back, and replay stops at a directory that stands where it
// wants to make the link (remove_tablespace_symlink in src/backend/commands/tablespace.c).
func (r *run) walk(skipped func(path, why string)) iter.Seq2[datadir.Entry, error] {
	tell := func(path, why string) {
		if skipped != nil {
			skipped(path, why)
		}
	}
	entries := r.dir.Walk(datadir.Options{Skipped: func(path string, why datadir.Reason) {
		if why == datadir.Special { // the other reasons are as it should be
			tell(path, string(why))
		}
	}})
	return func(yield func(datadir.Entry, error) bool) {
		for e, err := range entries {
			if !utf8.ValidString(e.Path) { // none of PostgreSQL's own, and no document can name it
				tell(e.Path, "its name is not UTF-8")
				continue
			}
			if below, ok := strings.CutPrefix(e.Path, "pg_tblspc/"); ok && !r.surveyed(below) {
				continue
			}
			if err == nil && r.stays(e) {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// surveyed reports whether path, which is below pg_tblspc, is not of a tablespace that appeared after the survey.
func (r *run) surveyed(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	oid, err := strconv.ParseUint(first, 10, 32)
	return err != nil || slices.ContainsFunc(r.spaces, func(t datadir.Tablespace) bool { return uint64(t.OID) == oid })
}

// own reports whether path is one of PostgreSQL's own directories, or something inside one.
func own(path string) bool {
	top, _, _ := strings.Cut(path, "/")
	switch top {
	case "base", "global", "pg_xact", "pg_multixact", "pg_commit_ts", "pg_logical", "pg_twophase", "pg_stat", "pg_tblspc":
		return true
	}
	return false
}

// survey walks the directory once: for the sum of sizes, for the big files and for what is left out and should be told.
func (r *run) survey(ctx context.Context) ([]datadir.Entry, error) {
	var big []datadir.Entry
	var err error
	if r.spaces, err = datadir.Tablespaces(r.dir.Root); err != nil {
		return nil, err
	}
	var data int64
	skipped := func(path, why string) {
		r.report.Skipped = append(r.report.Skipped, path)
		r.Logger.Warn(fmt.Sprintf("left out %q: %s", path, why))
	}
	sampler := r.delta.newSampler(ctx)
	for e, err := range r.walk(skipped) {
		if err != nil {
			return nil, errors.Join(err, sampler.wait())
		}
		sampler.look(e)
		if e.Kind == datadir.Symlink {
			if own(e.Path) {
				return nil, &linkError{path: e.Path, target: e.Target}
			}
			r.Logger.Warn(fmt.Sprintf("%s is a symbolic link to %s: the link is in the backup, what it points to is only where that is configuration", e.Path, e.Target))
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		r.total += e.Size
		if e.Kind == datadir.File || e.Kind == datadir.Relation || e.Kind == datadir.Control {
			data += e.Size
			if e.Size >= bigFile && e.Kind != datadir.Control {
				big = append(big, e)
			}
		}
	}
	r.Progress.total.Store(data)
	return big, sampler.wait()
}

// worker fills parts until there is nothing left to pack.
func (r *run) worker(ctx context.Context, work *worklist) error {
	for {
		// Look for a first entry before a part is begun, so that none is empty.
		first, err := work.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		pending := &first
		err = r.putPart(ctx, r.draft.NextPart(), func() (tarpart.Entry, error) {
			if e := pending; e != nil {
				pending = nil
				return *e, nil
			}
			return work.next()
		})
		if err != nil {
			return err
		}
	}
}

// putPart packs what next yields into one part and stores it.
func (r *run) putPart(ctx context.Context, name string, next func() (tarpart.Entry, error)) error {
	p := tarpart.NewPacker(next, tarpart.Options{
		MaxContent: r.PartSize,
		MaxMembers: archive.MaxPartMembers,
		MaxNames:   archive.MaxPartNames,
		AllCorrupt: r.AllCorrupt,
		Start:      r.start.LSN,
		Wait:       func(n int) error { return r.beforeRead(ctx, n) },
		Vanished:   func(string) { r.mu.Lock(); r.report.Vanished++; r.mu.Unlock() },
		Corrupt: func(file string, block uint32) {
			r.Logger.Warn(fmt.Sprintf("corrupt page: block %d of %s has a wrong checksum", block, file))
		},
	})
	defer p.Close() // only reads
	if err := r.draft.PutPart(ctx, name, p, p.Members); err != nil {
		return err
	}
	if err := r.draft.PutSums(ctx, name, p.Sums()); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range p.Members() {
		if d := r.report.Delta; d != nil && m.Type == tarpart.File {
			if m.Increment != nil {
				d.Incremental++
				d.Pages += int64(m.Pages)
			} else {
				d.Whole++
			}
		}
		if m.CorruptCount > 0 {
			r.report.Corrupt = append(r.report.Corrupt, CorruptFile{Path: m.Path, Blocks: m.Corrupt, Count: m.CorruptCount})
			r.report.CorruptBlocks += int64(m.CorruptCount)
		}
	}
	return nil
}

// beforeRead counts progress, keeps to the rate limit and notices the end of ctx.
func (r *run) beforeRead(ctx context.Context, n int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r.Progress.done.Add(int64(n))
	r.read.Add(int64(n))
	if r.limit != nil {
		return r.limit.WaitN(ctx, n)
	}
	return nil
}

// packEntry says how an entry of the directory is packed.
func (r *run) packEntry(e datadir.Entry) tarpart.Entry {
	t := tarpart.Entry{Path: e.Path, Mode: e.Mode, ModTime: e.ModTime, UID: e.UID, GID: e.GID}
	switch e.Kind {
	case datadir.Directory:
		t.Type = tarpart.Dir
	case datadir.Symlink:
		t.Type, t.Link = tarpart.Symlink, e.Target
	default:
		t.File = e.OSPath
	}
	if e.Kind == datadir.Relation {
		t.Paged, t.Verify, t.FirstBlock = true, r.verify, e.Segment*r.dir.Control.BlocksPerSegment
	}
	return t
}

// putControl stores pg_control as the last of the data. The server rewrites it in place: control.Read took care to
// read it whole.
func (r *run) putControl(ctx context.Context) error {
	file := filepath.Join(r.dir.Root, filepath.FromSlash(control.Name))
	_, content, err := control.Read(file)
	if err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	return r.putPart(ctx, archive.ControlPart, once(tarpart.Entry{
		Path: control.Name, Mode: info.Mode(), ModTime: info.ModTime(), Content: content,
	}))
}

// once yields entries one after the other.
func once(entries ...tarpart.Entry) func() (tarpart.Entry, error) {
	return func() (tarpart.Entry, error) {
		if len(entries) == 0 {
			return tarpart.Entry{}, io.EOF
		}
		e := entries[0]
		entries = entries[1:]
		return e, nil
	}
}

// putConfig stores the configuration that lies outside the data directory, as on Debian, under absolute names without
// the leading slash. A file that cannot be read is told, and left out: the data is what a backup is for.
func (r *run) putConfig(ctx context.Context) error {
	var entries []tarpart.Entry
	for _, file := range append([]string{r.facts.ConfigFile, r.facts.HBAFile, r.facts.IdentFile}, r.facts.IncludedFiles...) {
		if file == "" {
			continue
		}
		// What lies inside may be named through a link from outside, as data_directory may be one, and the other way round.
		if real, err := filepath.EvalSymlinks(file); err == nil && strings.HasPrefix(real, r.dir.Root+string(os.PathSeparator)) {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			r.Logger.Warn("configuration outside the data directory is not in the backup", "err", err)
			continue
		}
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		entries = append(entries, tarpart.Entry{
			Path: strings.TrimPrefix(path.Clean(filepath.ToSlash(file)), "/"), Mode: info.Mode(), ModTime: info.ModTime(),
			Content: content, Bare: true,
		})
	}
	if len(entries) == 0 {
		return nil
	}
	p := tarpart.NewPacker(once(entries...), tarpart.Options{})
	defer p.Close() // only reads
	return r.draft.PutConfig(ctx, p)
}

// spec says where the tablespaces lay, nil when there are none.
func (r *run) spec() *archive.TablespaceSpec {
	s := &archive.TablespaceSpec{BasePrefix: r.dir.Root}
	for _, t := range r.spaces {
		if t.InPlace() {
			continue // an ordinary directory, part of the data
		}
		oid := strconv.FormatUint(uint64(t.OID), 10)
		s.Tablespaces = append(s.Tablespaces, archive.Tablespace{OID: oid, Location: t.Location, Link: "pg_tblspc/" + oid})
	}
	if len(s.Tablespaces) == 0 {
		return nil
	}
	return s
}
