package walpush

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// RepairOptions tunes Repair.
type RepairOptions struct {
	Options
	DryRun bool // look, and store nothing
}

// Have is what an archive has, as it was when it was looked at.
type Have struct {
	Catalog  *catalog.Catalog
	WAL      *catalog.WAL // by the segment size of the data directory
	Accepted []catalog.Accepted
	Current  catalog.Current // the timeline that the cluster is on
}

// Repaired says what Repair did.
type Repaired struct {
	Timeline wal.Timeline // along which WAL was looked for
	Stored   []string     // WAL files that were missing, in the order in which they were stored; or would be, of a dry run
	Passed   []Passed     // files of that name that are here and were not stored
	Missing  []Gap        // what the archive still lacks between the first segment that is needed and the last that it has
}

// Passed is a file that is not what its name says, or not whole.
type Passed struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Gap is segments that are missing.
type Gap struct {
	catalog.Stretch
	Accepted *catalog.Accepted // somebody has accepted that; nil for nobody
}

// A StrangerError says that a data directory's WAL is none of the cluster's history.
type StrangerError struct{ Reason string }

func (e *StrangerError) Error() string { return e.Reason }

// Hint says how to go on.
func (e *StrangerError) Hint() string {
	return "repair with the pg_wal of the primary or of a standby that follows it; `holdfast wal-show` shows the timelines of the archive"
}

// Repair stores WAL that the archive lacks and the pg_wal of a data directory still has, oldest first. The server there may be running, be a primary or a
// standby. A file goes only where its header, its records and their checksums say that it is that segment and whole, and where it is replayed on the
// way to the timeline that the cluster is on.
func Repair(ctx context.Context, a Archive, dataDir string, have Have, o RepairOptions) (*Repaired, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	data, _, err := control.Read(filepath.Join(dataDir, control.Name))
	if err != nil {
		return nil, err
	}
	r := &repairer{
		pusher: pusher{opts: o.Options, dir: filepath.Join(dataDir, "pg_wal")}, archive: a, data: data, have: have, dry: o.DryRun,
		report: &Repaired{Timeline: have.Current.Timeline}, stored: map[wal.SegmentNo]bool{},
	}
	if !o.DryRun {
		if err := a.Claim(ctx, data.SystemIdentifier, o.Host, false); err != nil {
			return nil, err
		}
	}
	if err := r.mendHistory(ctx); err != nil {
		return nil, err
	}
	if r.path, err = have.Catalog.PathTo(have.Current.Timeline); err != nil {
		return nil, err
	}
	if err := r.belongs(); err != nil {
		return nil, err
	}
	local, err := r.local()
	if err != nil {
		return nil, err
	}
	err = r.store(ctx, local)
	r.summing.Wait()
	r.rest()
	return r.report, err
}

// repairer is one Repair at work.
type repairer struct {
	pusher
	archive Archive
	data    control.Data
	have    Have
	dry     bool
	path    catalog.Path  // to the timeline that the cluster is on
	first   wal.SegmentNo // that the archive should have
	newest  wal.SegmentNo // that is here, finished or not
	stored  map[wal.SegmentNo]bool
	report  *Repaired
}

// timeline is the one that the data directory is on.
func (r *repairer) timeline() wal.Timeline {
	return max(r.data.CheckpointTimeline, r.data.MinRecoveryEndTimeline)
}

// localHistory reads a history file of pg_wal; fs.ErrNotExist where it has none.
func (r *repairer) localHistory(t wal.Timeline) ([]catalog.Branch, error) {
	f, err := os.Open(filepath.Join(r.dir, wal.HistoryName(t)))
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, err
	}
	return catalog.ParseHistory(t, b)
}

// mendHistory stores the history file of the cluster's timeline where the archive has its WAL and not that. Where it has it, and no key is here to read it,
// the one here says the same.
func (r *repairer) mendHistory(ctx context.Context) error {
	t, c := r.have.Current.Timeline, r.have.Catalog
	if _, known := c.Histories[t]; known || t < 2 {
		return nil
	}
	branches, err := r.localHistory(t)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if c.BadHistory[t] == nil {
		if err := r.put(ctx, wal.HistoryName(t)); err != nil {
			return err
		}
	}
	delete(c.BadHistory, t)
	c.Histories[t] = branches
	return nil
}

// put stores one file.
func (r *repairer) put(ctx context.Context, name string) error {
	f, err := inspect(filepath.Join(r.dir, name))
	if err != nil {
		return err
	}
	if !r.dry {
		storeSummary := r.summarize(f)
		if _, err := r.archive.PutWAL(ctx, name, f.open); err != nil {
			return fmt.Errorf("store %s: %w", name, err)
		}
		storeSummary(ctx, r.archive)
	}
	r.report.Stored = append(r.report.Stored, name)
	return nil
}

// belongs returns a *StrangerError where the data directory is on a timeline that has nothing to do with the cluster's.
func (r *repairer) belongs() error {
	here, current := r.timeline(), r.have.Current.Timeline
	for i := range slices.Backward(r.have.Catalog.Backups) {
		if s := r.have.Catalog.Backups[i].Sentinel; s != nil && s.SystemIdentifier != nil {
			if *s.SystemIdentifier != r.data.SystemIdentifier {
				return &StrangerError{fmt.Sprintf("the newest backup is of the cluster with system identifier %d, and the one here is %d", *s.SystemIdentifier, r.data.SystemIdentifier)}
			}
			break
		}
	}
	if r.have.WAL.SegmentSize != r.data.SegmentSize {
		return &StrangerError{fmt.Sprintf("WAL segments here have %d bytes, and those of the archive %d", r.data.SegmentSize, r.have.WAL.SegmentSize)}
	}
	if _, on := r.path.Leg(here); !on {
		branches, err := r.localHistory(here)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if !slices.ContainsFunc(branches, func(b catalog.Branch) bool { return b.Timeline == current }) {
			return &StrangerError{fmt.Sprintf("the server here is on timeline %d, and the cluster is on timeline %d (%s): neither leads to the other", uint32(here), uint32(current), r.have.Current.Why)}
		}
	}
	// Two servers that were promoted apart may have given their timelines the same number.
	for _, leg := range r.path {
		branches, err := r.localHistory(leg.Timeline)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		theirs := r.have.Catalog.Histories[leg.Timeline]
		same := slices.EqualFunc(branches, theirs, func(a, b catalog.Branch) bool { return a.Timeline == b.Timeline && a.Switch == b.Switch })
		if !same && theirs != nil {
			return &StrangerError{fmt.Sprintf("%s here differs from the one in the archive: there are two timelines of that number", wal.HistoryName(leg.Timeline))}
		}
	}
	return nil
}

// local lists the segments of pg_wal that the archive should have and has not, ascending.
func (r *repairer) local() ([]catalog.Stretch, error) {
	size := r.data.SegmentSize
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var all []catalog.Stretch
	for _, e := range entries {
		if t, n, err := size.ParseSegment(e.Name()); err == nil {
			all = append(all, catalog.Stretch{Timeline: t, First: n, Last: n})
		}
	}
	slices.SortFunc(all, func(a, b catalog.Stretch) int { return int(int64(a.First) - int64(b.First)) })
	r.first = r.needed(all)
	r.seeNewest(all)
	return slices.DeleteFunc(all, func(s catalog.Stretch) bool {
		return s.First < r.first || r.replayed(s.First) != s.Timeline || r.have.WAL.Has(s.Timeline, s.First)
	}), nil
}

// needed returns the first segment that the archive should have: with which its oldest backup begins, or where it begins itself.
func (r *repairer) needed(local []catalog.Stretch) wal.SegmentNo {
	size := r.data.SegmentSize
	first, known := wal.SegmentNo(0), false
	see := func(n wal.SegmentNo) {
		if !known || n < first {
			first, known = n, true
		}
	}
	for i := range r.have.Catalog.Backups {
		b := &r.have.Catalog.Backups[i]
		if b.Sentinel == nil || b.Sentinel.SystemIdentifier != nil && *b.Sentinel.SystemIdentifier != r.data.SystemIdentifier {
			continue
		}
		if start, ok := b.StartLSN(); ok && r.replayed(size.Segment(start)) == b.Timeline() {
			see(size.Segment(start))
		}
	}
	if known {
		return first
	}
	for _, leg := range r.path {
		if of := r.have.WAL.Timeline(leg.Timeline); of != nil && len(of.Runs) > 0 {
			see(of.Runs[0].First)
		}
	}
	if !known && len(local) > 0 {
		see(local[0].First)
	}
	return first
}

// replayed returns on which timeline segment n is replayed.
func (r *repairer) replayed(n wal.SegmentNo) wal.Timeline {
	for s := range r.path.Stretches(r.data.SegmentSize, n) {
		return s.Timeline
	}
	return 0
}

// store stores files one after the other. It ends at the first that the archive does not take; one that is not what it should be is passed.
func (r *repairer) store(ctx context.Context, local []catalog.Stretch) error {
	for _, s := range local {
		name := r.data.SegmentSize.Name(s.Timeline, s.First)
		why := r.whole(s)
		if why == nil {
			err := r.put(ctx, name)
			var conflict *archive.ConflictError
			switch {
			case err == nil:
				r.stored[s.First] = true
				continue
			case errors.As(err, &conflict), errors.Is(err, fs.ErrNotExist), errors.Is(err, errChanged): // archived meanwhile, or recycled
				why = err
			default:
				return err
			}
		}
		r.report.Passed = append(r.report.Passed, Passed{name, why.Error()})
	}
	return nil
}

// whole returns why a file is not the whole segment that its name says. Which bytes of a segment are for good only its records tell: a server fills a
// file that it has recycled, or one of zeros, and a standby receives it piece by piece.
func (r *repairer) whole(s catalog.Stretch) error {
	size := r.data.SegmentSize
	f, err := inspect(filepath.Join(r.dir, size.Name(s.Timeline, s.First)))
	if err != nil {
		return err
	}
	if f.cluster != r.data.SystemIdentifier {
		return fmt.Errorf("it is of the cluster with system identifier %d", f.cluster)
	}
	src, err := f.open()
	if err != nil {
		return err
	}
	defer src.Close() // only read
	sum, err := walrec.Check(src, size)
	if errors.Is(err, walrec.ErrEnd) {
		return fmt.Errorf("it is not finished: %w", err)
	}
	if err != nil {
		return err
	}
	leg, _ := r.path.Leg(s.Timeline)
	branch := leg.Begin != 0 && s.First == size.Segment(leg.Begin) // begins with what the parent wrote, page headers included
	if !branch && (sum.FirstTimeline != s.Timeline || sum.Timeline != s.Timeline) {
		return fmt.Errorf("its pages are of timelines %d to %d", uint32(sum.FirstTimeline), uint32(sum.Timeline))
	}
	// The record at its end may go on in the next file, and then nothing here says that its first half has come. WAL is written and received in
	// order: it has where anything behind it has.
	if size.Start(s.First+1) > max(r.data.Checkpoint, r.data.MinRecoveryEnd) && s.First >= r.newest {
		return errors.New("it is the newest file, and may not be finished")
	}
	return nil
}

// seeNewest finds the newest segment of which something has been written.
func (r *repairer) seeNewest(local []catalog.Stretch) {
	for _, s := range slices.Backward(local) {
		f, err := inspect(filepath.Join(r.dir, r.data.SegmentSize.Name(s.Timeline, s.First)))
		if err == nil && f.cluster == r.data.SystemIdentifier && r.replayed(s.First) == s.Timeline {
			r.newest = s.First
			return
		}
	}
}

// rest finds out what is still missing.
func (r *repairer) rest() {
	stored := slices.Sorted(maps.Keys(r.stored))
	lacks := func(s catalog.Stretch) {
		if s.First > s.Last {
			return
		}
		for piece, by := range s.Split(r.have.Accepted) {
			r.report.Missing = append(r.report.Missing, Gap{piece, by})
		}
	}
	for hole := range r.have.WAL.Holes(r.path, r.first) {
		for _, n := range stored {
			if n >= hole.First && n <= hole.Last {
				if n > hole.First {
					lacks(catalog.Stretch{Timeline: hole.Timeline, First: hole.First, Last: n - 1})
				}
				hole.First = n + 1
			}
		}
		lacks(hole)
	}
}
