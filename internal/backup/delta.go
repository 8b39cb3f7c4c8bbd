package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/changes"
	"holdfast/internal/increment"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// Delta says when a backup builds on another one, and how what has changed since is found. The zero value takes full backups.
type Delta struct {
	Full     bool            // take a full backup, whatever else is said
	MaxSteps int             // how many deltas may build on one another; 0 takes full backups
	OnFull   bool            // build on the full backup below the one that was found
	Name     string          // the backup to build on; "" for the newest that will do
	UserData json.RawMessage // build on the newest backup with that user data; nil for any
	Source   Source
	Force    bool    // fail where Source is Auto and would come down to PageLSN
	Sample   float64 // of the blocks that have not changed by the source, how many are looked at, from 0 to 1
}

// Source says how what has changed is found.
type Source string

// The sources. Auto is the best of the others that knows, in this order.
const (
	Auto       Source = ""
	Summaries  Source = Source(changes.Server)  // PostgreSQL's WAL summaries
	WALArchive Source = Source(changes.Archive) // summaries of the archived WAL
	PageLSN    Source = "lsn"                   // all relations are read
)

// DeltaReport says what a delta is made of.
type DeltaReport struct {
	Parent      string   `json:"parent"`
	Full        string   `json:"full"` // the backup at the root
	Count       int      `json:"count"`
	Source      Source   `json:"source"`                   // how it was known what has changed
	NotBetter   []string `json:"not_better,omitempty"`     // why it was not a better source
	SourceBytes int64    `json:"source_bytes"`             // read of WAL and its summaries
	Blocks      uint64   `json:"source_blocks"`            // that have changed by the source
	Whole       int64    `json:"files_whole"`              // stored whole
	Incremental int64    `json:"files_incremental"`        // stored in part
	Unchanged   int64    `json:"files_unchanged"`          // not stored
	Pages       int64    `json:"pages"`                    // stored of files in part
	Sampled     int64    `json:"blocks_sampled,omitempty"` // of those that have not changed by the source
	Missed      []string `json:"missed,omitempty"`         // of these, those that have, with their files
	Notes       []string `json:"notes,omitempty"`
}

// delta is a backup that builds on another one, at work.
type delta struct {
	*run
	parent *catalog.Parent // nil for a catch-up
	files  *known
	since  wal.LSN // where the parent starts
	sealed int64   // what was written before, in nanoseconds since 1970, was so when the parent read it

	set     *blockset.Set              // what has changed; nil where only page LSNs tell
	suspect map[blockset.Relation]bool // of which set has proved wrong; settled before files are copied
	sampled atomic.Int64               // blocks

	mu     sync.Mutex
	missed map[blockset.Relation]bool // becomes suspect
	same   map[string]bool            // directories of databases: whether they were not made anew since

	dating sync.Once // sets oldest
	oldest time.Time // of a catch-up: what is older had been made by then; zero where that is not known
}

// sealMargin is how long before the parent's start a file must have been written last for its times to say that it has not been written to
// since: clocks of file systems tick every few milliseconds, and that of a file server may be wrong by seconds.
const sealMargin = 10 * time.Second

// loadCatalog reads what backups there are to build on.
func (r *run) loadCatalog(ctx context.Context) (err error) {
	d := r.Delta
	switch {
	case r.standby != nil:
	case d.Full:
		return nil
	case d.MaxSteps <= 0 && (d.Name != "" || d.UserData != nil):
		r.Logger.Warn("a backup to build on is given, and WALG_DELTA_MAX_STEPS is 0. Doing full backup.")
		return nil
	case d.MaxSteps <= 0:
		return nil
	}
	r.phase("looking at older backups")
	r.catalog, err = catalog.Load(ctx, r.archive)
	return err
}

// chooseParent decides whether the backup that begins at start on timeline t is a delta, and on what; it is one when r.delta is set then.
// Where it shall be a delta of a certain backup and cannot it returns an error.
func (r *run) chooseParent(ctx context.Context, start wal.LSN, t wal.Timeline) error {
	if r.catalog == nil {
		return nil
	}
	asked := r.Delta.Name != "" || r.Delta.UserData != nil
	full := func(reason string) {
		r.report.FullBecause = reason
		r.Logger.Info(reason)
	}
	p, err := r.parentFor(ctx, start, t)
	var because *catalog.FullError
	switch {
	case errors.As(err, &because) && !because.Asked:
		full(because.Reason)
		return nil
	case err != nil && (asked || ctx.Err() != nil):
		return fmt.Errorf("choose the backup to build on: %w", err)
	case err != nil:
		full(fmt.Sprintf("No backup can be built on: %v. Doing full backup.", err))
		return nil
	}
	if reason, err := r.withoutChecksums(ctx, p.Backup); err != nil {
		return err
	} else if reason != "" && asked {
		return &catalog.FullError{Reason: reason, Asked: true}
	} else if reason != "" {
		full(reason + " Doing full backup.")
		return nil
	}
	r.phase("reading what " + p.Name + " holds")
	files, err := readKnown(ctx, r.archive, p.Backup)
	if err != nil && (asked || ctx.Err() != nil) {
		return fmt.Errorf("read what %s holds: %w", p.Name, err)
	}
	if err != nil {
		r.Logger.Warn(fmt.Sprintf("what %s holds cannot be read, so that nothing can build on it: %v", p.Name, err))
		full("Couldn't read the previous backup. Doing full backup.")
		return nil
	}
	r.delta = &delta{run: r, parent: p, files: files, since: *p.Sentinel.LSN, missed: map[blockset.Relation]bool{}, same: map[string]bool{}}
	if begun := p.Started(); !begun.IsZero() {
		r.delta.sealed = nanoseconds(begun.Add(-sealMargin))
	}
	r.report.Delta = &DeltaReport{Parent: p.Name, Full: p.Full, Count: p.Count, Source: PageLSN}
	return nil
}

// withoutChecksums returns why a backup of a cluster with checksums cannot build on b; "" where it can. pg_checksums --enable writes to
// every page, and neither the WAL nor an LSN tells: pages of a parent from before would come back without checksums.
func (r *run) withoutChecksums(ctx context.Context, b *catalog.Backup) (string, error) {
	if !r.facts.Checksums {
		return "", nil
	}
	had := b.Sentinel.Checksums
	if had == nil {
		c, err := readControl(ctx, r.archive, b.Name)
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if err != nil {
			return fmt.Sprintf("Whether the pages of %s have checksums, as the server's have, is not known: %v.", b.Name, err), nil
		}
		checksums := c.ChecksumVersion != 0
		had = &checksums
	}
	if !*had {
		return fmt.Sprintf("The pages of %s have no checksums, those of the server have.", b.Name), nil
	}
	return "", nil
}

// readControl reads the control file of a backup.
func readControl(ctx context.Context, a *archive.Archive, name string) (c control.Data, err error) {
	parts, err := a.Parts(ctx, name)
	if err != nil {
		return c, err
	}
	i := slices.IndexFunc(parts, archive.Part.IsControl)
	if i < 0 {
		return c, fmt.Errorf("%s has no part with the control file", name)
	}
	body, err := a.OpenPart(ctx, name, parts[i])
	if err != nil {
		return c, err
	}
	defer body.Close() // only read
	var content []byte
	err = tarpart.Each(body, func(h tarpart.Header, r io.Reader) error {
		if h.Path == control.Name && h.Type == tarpart.File && h.Size <= maxHeld {
			content, err = io.ReadAll(r)
		}
		return err
	})
	if err == nil {
		c, err = control.Decode(content)
	}
	if err != nil {
		err = fmt.Errorf("%s of %s: %w", parts[i].Name, name, err)
	}
	return c, err
}

// parentFor asks the catalog.
func (r *run) parentFor(_ context.Context, start wal.LSN, t wal.Timeline) (*catalog.Parent, error) {
	path, err := r.pathTo(t)
	if err != nil {
		return nil, err
	}
	d := r.Delta
	p, passedOver, err := r.catalog.Parent(catalog.Child{
		System: r.facts.SystemIdentifier, Major: r.facts.Major(), Start: start, Path: path, Permanent: r.Permanent,
		MaxSteps: d.MaxSteps, OnFull: d.OnFull, Name: d.Name, UserData: d.UserData,
	})
	for i, why := range passedOver {
		if i == maxPassedOver {
			r.Logger.Info(fmt.Sprintf("nor is the new backup built on %d older ones", len(passedOver)-i))
			break
		}
		r.Logger.Info("the new backup is not built on " + why)
	}
	return p, err
}

// maxPassedOver is how many backups are named that will not do to build on.
const maxPassedOver = 3

// pathTo returns the path to the server's timeline. Its history may not have reached the archive yet: then that in pg_wal counts.
func (r *run) pathTo(t wal.Timeline) (catalog.Path, error) {
	if t > 1 && r.dir.Root != "" {
		file, err := os.ReadFile(filepath.Join(r.dir.Root, "pg_wal", wal.HistoryName(t)))
		if err == nil {
			err = r.sameHistory(t, file)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return r.catalog.PathTo(t)
}

// sameHistory makes sure that the archive's history of timeline t is the server's, which is in file, and makes do with that where the archive has
// none. Of two servers that were promoted each on its own, both begin the same timeline, and backups of the one are in no past of the other.
func (r *run) sameHistory(t wal.Timeline, file []byte) error {
	own, err := catalog.ParseHistory(t, file)
	if err != nil {
		return err
	}
	archived, ok := r.catalog.Histories[t]
	if !ok {
		if r.catalog.BadHistory[t] == nil {
			r.catalog.Histories[t] = own
		}
		return nil
	}
	same := func(x, y catalog.Branch) bool { return x.Timeline == y.Timeline && x.Switch == y.Switch }
	if !slices.EqualFunc(own, archived, same) {
		return fmt.Errorf("%s in the archive is not the server's: timeline %d of the archive was begun by another server", wal.HistoryName(t), t)
	}
	return nil
}

// backupName names the backup that begins in segment.
func (r *run) backupName(segment string) string {
	if r.delta != nil && r.delta.parent != nil {
		return archive.DeltaName(segment, r.delta.parent.Name)
	}
	return archive.BackupName(segment)
}

// besideParent makes sure that the draft of a delta lies where its parent does: of several storages either may be lost alone. And that the parent is there still:
// retention has seen this draft before it condemns anything from now on, and what it has condemned before is seen here. Where not the backup becomes a full one.
func (r *run) besideParent(ctx context.Context) error {
	if r.delta == nil || r.delta.parent == nil {
		return nil
	}
	var reason string
	if storage := r.delta.parent.Storage; storage != "" {
		where, err := r.draft.Storage(ctx)
		if err != nil {
			return err
		}
		if where != storage {
			reason = fmt.Sprintf("%s is in the storage %s, and this backup goes to %s. Doing full backup.", r.delta.parent.Name, storage, where)
		}
	}
	if err := catalog.StillThere(ctx, r.archive, r.delta.parent.Backup); err != nil && reason == "" {
		if ctx.Err() != nil {
			return err
		}
		reason = fmt.Sprintf("%s, which was to be built on, %v. Doing full backup.", r.delta.parent.Name, err)
	}
	if reason == "" {
		return nil
	}
	var err error
	if r.Delta.Name != "" || r.Delta.UserData != nil {
		return &catalog.FullError{Reason: reason, Asked: true}
	}
	r.Logger.Info(reason)
	if err := r.draft.Abort(ctx); err != nil {
		return err
	}
	r.draft, r.delta, r.report.Delta, r.report.FullBecause = nil, nil, nil, reason
	r.report.Name = r.backupName(r.start.Segment)
	r.Logger.Info("The backup's name is " + r.report.Name)
	r.draft, err = r.archive.Begin(ctx, r.report.Name, r.Host)
	return err
}

// findChanges asks the sources what has changed since the parent.
func (r *run) findChanges(ctx context.Context) error {
	d := r.delta
	if d == nil {
		return nil
	}
	r.phase("finding what has changed since " + d.base())
	rep := r.report.Delta
	if r.facts.BlockSize != page.Size && r.Delta.Source != PageLSN {
		rep.NotBetter = append(rep.NotBetter, fmt.Sprintf("pages have %d bytes, not %d: changed files are stored whole", r.facts.BlockSize, page.Size))
		r.Logger.Info("Changes since " + d.base() + ": " + rep.NotBetter[0])
		return nil
	}
	path, err := r.pathTo(r.start.Timeline)
	if err != nil {
		return err
	}
	from := changes.Origin{Server: r.conn, DataDir: r.dir.Root, Archive: r.archive}
	stretch := changes.Stretch{From: d.since, To: r.start.LSN, Path: path, SegmentSize: r.facts.SegmentSize, System: r.facts.SystemIdentifier}
	opts := changes.Options{Logger: r.Logger, Patience: min(r.Patience, time.Minute)}
	var result *changes.Result
	var refused []changes.Refusal
	switch r.Delta.Source {
	case Auto:
		result, refused, err = changes.Choose(ctx, from, stretch, opts)
	case Summaries:
		result, err = changes.FromServer(ctx, from, stretch, opts)
	case WALArchive:
		result, err = changes.FromArchive(ctx, from, stretch, opts)
	}
	var none *changes.NoneError
	switch {
	case errors.As(err, &none) && ctx.Err() == nil && !r.Delta.Force:
		refused = none.Refusals
	case err != nil:
		return fmt.Errorf("find what has changed since %s: %w", d.base(), err)
	}
	for _, why := range refused {
		words := fmt.Sprintf("%s: %v", why.Source, why.Err)
		rep.NotBetter = append(rep.NotBetter, words)
		if r.facts.Version >= 170000 || !errors.Is(why.Err, server.ErrNoSummaries) { // before 17 there are none to be missed
			r.Logger.Info("not used to find what has changed: " + words)
		}
	}
	if result == nil {
		r.Logger.Info(fmt.Sprintf("Changes since %s: all relations are read for pages changed since %s", d.base(), d.since))
		return nil
	}
	d.set = result.Blocks
	rep.Source, rep.SourceBytes, rep.Blocks, rep.Notes = Source(result.Source), result.Read, result.Blocks.Blocks(), result.Notes
	r.Logger.Info(fmt.Sprintf("Changes since %s: %s blocks of %d files or forks changed since %s, by %s", d.base(),
		humanize.Comma(int64(rep.Blocks)), result.Blocks.Len(), d.since, map[Source]string{
			Summaries: "PostgreSQL's WAL summaries", WALArchive: "the summaries of the archived WAL"}[rep.Source]))
	for _, note := range rep.Notes {
		r.Logger.Info(note)
	}
	return nil
}

// checkAncestors makes sure that what a delta builds on is still what it was when the backup began: it takes hours, and somebody may have deleted that.
func (r *run) checkAncestors(ctx context.Context) error {
	if r.delta == nil || r.delta.parent == nil {
		return nil
	}
	chain, err := r.catalog.Chain(r.delta.parent.Backup)
	if err != nil {
		return err
	}
	for _, b := range chain {
		s, err := r.archive.Sentinel(ctx, b.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s, which the new backup builds on, was deleted meanwhile", b.Name)
		case err != nil:
			return fmt.Errorf("look whether %s is still there, which the new backup builds on: %w", b.Name, err)
		case s.Sum != b.Sentinel.Sum:
			return fmt.Errorf("%s, which the new backup builds on, was replaced meanwhile", b.Name)
		}
	}
	return nil
}

// markAncestors marks permanent what a permanent delta builds on, the oldest first.
func (r *run) markAncestors(ctx context.Context) error {
	if r.delta == nil || r.delta.parent == nil || !r.Permanent {
		return nil
	}
	chain, err := r.catalog.Chain(r.delta.parent.Backup)
	if err != nil {
		return err
	}
	for i := len(chain) - 1; i >= 0; i-- {
		if err := r.archive.MarkPermanent(ctx, chain[i].Name); err != nil {
			return fmt.Errorf("mark %s permanent, which the new backup builds on: %w", chain[i].Name, err)
		}
	}
	return nil
}

// pack says how an entry is stored; false where it is not, as the parent has all of it.
func (d *delta) pack(ctx context.Context, e datadir.Entry, t tarpart.Entry) (tarpart.Entry, bool, error) {
	if e.Kind != datadir.File && e.Kind != datadir.Relation {
		return t, true, nil
	}
	was := d.was(e.Path)
	if was == nil {
		return t, true, nil
	}
	if d.untouched(was, e.Size, e.ModTime, e.Inode, e.Changed) {
		return t, false, d.unchanged(e, e.Size, e.ModTime, e.Inode, e.Changed)
	}
	rel, ok := relationOf(e)
	if !ok || d.facts.BlockSize != page.Size {
		return t, true, nil
	}
	if d.listed(rel) {
		if d.set.Whole(rel) {
			return t, true, nil
		}
		if blocks, all := d.changed(rel, t.FirstBlock, e.Size, was.size); !all && len(blocks) == 0 && e.Size == was.size {
			return t, false, d.unchanged(e, e.Size, e.ModTime, e.Inode, e.Changed)
		}
	} else if !d.sameDatabase(e) {
		return t, true, nil
	}
	t.Choose = func(f *os.File, info fs.FileInfo) (tarpart.Choice, error) {
		return d.choose(ctx, e, rel, t.FirstBlock, was.size, f, info)
	}
	return t, true, nil
}

// untouched reports whether a file is one that the parent read, not written to since.
func (d *delta) untouched(was *knownFile, size int64, modified time.Time, inode uint64, changed time.Time) bool {
	return was.inode != 0 && was.inode == inode && was.size == size &&
		was.modified != 0 && was.modified == nanoseconds(modified) && was.modified < d.sealed &&
		was.changed != 0 && was.changed == nanoseconds(changed) && was.changed < d.sealed
}

// unchanged notes a file of which nothing is stored.
func (d *delta) unchanged(e datadir.Entry, size int64, modified time.Time, inode uint64, changed time.Time) error {
	d.Progress.done.Add(size)
	d.run.mu.Lock()
	d.report.Delta.Unchanged++
	d.run.mu.Unlock()
	return d.draft.Unchanged(tarpart.Member{Path: e.Path, Mode: uint32(e.Mode.Perm()), Size: size, ModTime: modified, Inode: inode, Changed: changed})
}

// relationOf returns the relation that e is a file of the main fork of; false for shared ones, of which there is little, and for what is
// something else.
func relationOf(e datadir.Entry) (blockset.Relation, bool) {
	if e.Kind != datadir.Relation || e.Fork != datadir.MainFork {
		return blockset.Relation{}, false
	}
	const defaultSpace = 1663
	rel := blockset.Relation{Tablespace: defaultSpace}
	names := strings.Split(e.Path, "/")
	numbers := []*uint32{nil, &rel.Database, &rel.Number} // base/<database>/<number>
	switch {
	case len(names) == 5 && names[0] == "pg_tblspc": // pg_tblspc/<tablespace>/<version>/<database>/<number>
		numbers = []*uint32{nil, &rel.Tablespace, nil, &rel.Database, &rel.Number}
	case len(names) != 3 || names[0] != "base":
		return rel, false
	}
	for i, into := range numbers {
		if into == nil {
			continue
		}
		digits, _, _ := strings.Cut(names[i], ".")
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil {
			return rel, false
		}
		*into = uint32(n)
	}
	return rel, true
}

// listed reports whether the set tells what has changed of a relation.
func (d *delta) listed(rel blockset.Relation) bool { return d.set != nil && !d.suspect[rel] }

// changed returns which blocks are stored of a relation's file by the set, by their numbers in the file, ascending; all says that the
// file is stored whole. The file begins with block first of the relation and has size bytes; in the parent it had was, or unknownSize.
func (d *delta) changed(rel blockset.Relation, first uint32, size, was int64) (blocks []uint32, all bool) {
	if size%page.Size != 0 {
		return nil, true
	}
	n := uint64(size / page.Size)
	set, limit, listed := d.set.Get(blockset.Key{Relation: rel, Fork: blockset.Main})
	if limit <= first {
		return nil, true // cut off or made anew
	}
	cut := uint64(limit) - uint64(first)
	if was > size && cut > n {
		return nil, true // it is shorter, and the log says nothing of that
	}
	from := min(n, cut) // from here on all that is there came later
	if was >= 0 {
		from = min(from, uint64(was)/page.Size)
	}
	if listed && set != nil {
		it := set.Iterator()
		it.AdvanceIfNeeded(first)
		for it.HasNext() {
			block := uint64(it.Next()) - uint64(first)
			if block >= from {
				break
			}
			blocks = append(blocks, uint32(block))
		}
	}
	for block := from; block < n; block++ {
		blocks = append(blocks, uint32(block))
	}
	if tooMany(len(blocks), n) {
		return nil, true
	}
	return blocks, false
}

// tooMany reports whether storing so many pages of a file that has n saves nothing worth a longer way to restore it.
func tooMany(pages int, n uint64) bool { return uint64(pages)*10 > n*9 }

// sameDatabase reports whether the directory of a relation's database is the one it was in the parent. A copy of another database, as by CREATE
// DATABASE and ALTER DATABASE … SET TABLESPACE, brings pages with the LSNs they had there; each makes a new PG_VERSION.
func (d *delta) sameDatabase(e datadir.Entry) bool {
	dir := path.Dir(e.Path)
	d.mu.Lock()
	defer d.mu.Unlock()
	same, known := d.same[dir]
	if !known {
		info, err := os.Lstat(filepath.Join(filepath.Dir(e.OSPath), "PG_VERSION"))
		if d.standby != nil {
			same = err == nil && !d.madeSince(info.ModTime())
		} else {
			was := d.files.find(dir + "/PG_VERSION")
			same = was != nil && err == nil && was.modified != 0 && was.modified == nanoseconds(info.ModTime()) && !d.halfCopied(dir, was)
		}
		d.same[dir] = same
		if !same {
			d.Logger.Info(fmt.Sprintf("%s was made anew since %s, or restored: its relations are stored whole", dir, d.base()))
		}
	}
	return same
}

// copyTime is longer than the copying of a database's files takes.
const copyTime = 24 * time.Hour

// halfCopied reports whether a directory of a database may just have been made while the parent was taken, whose list does not say how long its
// files were: they may have been shorter than they became.
func (d *delta) halfCopied(dir string, version *knownFile) bool {
	const firstMade = 16384 // FirstNormalObjectId: those that initdb makes have lower ones
	number, err := strconv.ParseUint(path.Base(dir), 10, 32)
	return version.size == unknownSize && (err != nil || number >= firstMade) && version.modified > d.sealed-int64(copyTime)
}

// choose decides what is stored of a relation's file now that it is open.
func (d *delta) choose(ctx context.Context, e datadir.Entry, rel blockset.Relation, first uint32, was int64, f *os.File, info fs.FileInfo) (tarpart.Choice, error) {
	size := info.Size()
	if size == 0 || size%page.Size != 0 {
		return tarpart.Choice{}, nil
	}
	var blocks []uint32
	var read []byte
	var err error
	all := false
	if d.listed(rel) {
		blocks, all = d.changed(rel, first, size, was)
		if !all {
			d.Progress.done.Add(size - int64(len(blocks))*page.Size)
		}
	} else {
		blocks, read, all, err = d.scan(ctx, e, first, size, was, f)
	}
	switch {
	case err != nil || all:
		return tarpart.Choice{}, err
	case len(blocks) == 0 && size == was:
		inode, changed := datadir.Identity(info)
		d.Progress.done.Add(-size) // unchanged counts it
		return tarpart.Choice{Nothing: true}, d.unchanged(e, size, info.ModTime(), inode, changed)
	}
	return tarpart.Choice{Increment: &increment.Header{FileSize: size, Blocks: blocks}, Read: read}, nil
}
