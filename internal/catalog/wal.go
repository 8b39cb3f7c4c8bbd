package catalog

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
)

// WAL is the inventory of the WAL in an archive, as a listing shows it: nothing of it was read. It takes memory for runs of segments, and eight bytes a
// segment for when each was stored.
type WAL struct {
	SegmentSize wal.SegmentSize
	Timelines   []TimelineWAL // ascending
	Foreign     []string      // names of segments that make no sense with SegmentSize, at most maxForeign
}

// maxForeign bounds WAL.Foreign.
const maxForeign = 10

// TimelineWAL is what there is of one timeline.
type TimelineWAL struct {
	Timeline wal.Timeline
	Runs     []Run           // ascending; a segment is in one at most. They end where a segment is missing, or the next lies in another store
	Empty    []wal.SegmentNo // archived as objects without a byte, which nothing can restore: not in Runs. Ascending
	Partial  []Partial       // ascending
	Tails    []Tail          // segments of which there are pieces, ascending
	Labels   int             // .backup files
	History  *HistoryFile    // nil where there is none
}

// Run is segments without one missing between them.
type Run struct {
	First, Last    wal.SegmentNo
	Storage        string    // which of several stores they lie in; "" where there is one
	Oldest, Newest time.Time // of when they were stored, by the store's clock
	Bytes          int64     // as stored

	archived []int64 // when each was stored, in nanoseconds of the Unix time; nil in a Run made by hand
}

// Partial is the last, unfinished segment of a timeline that was left: <segment>.partial. What is in it up to the branch is in the first segment of the
// next timeline too, and PostgreSQL never asks for it.
type Partial struct {
	Segment  wal.SegmentNo
	Archived time.Time
	Bytes    int64 // as stored
	Storage  string
}

// Tail is a segment of which there are pieces, see archive.TailDir.
type Tail struct {
	Segment wal.SegmentNo
	Whole   bool // the segment is archived whole, too: nobody reads the pieces
	archive.Tail
}

// HistoryFile is the history file of a timeline; Catalog.Histories has what is in it.
type HistoryFile struct {
	Archived time.Time
	Storage  string
}

// Count returns the number of segments.
func (r Run) Count() uint64 { return uint64(r.Last-r.First) + 1 }

// Archived returns when segment n of the run was stored: where the run does not know that of each, Newest for the last one and for others the mean.
func (r Run) Archived(n wal.SegmentNo) time.Time {
	switch {
	case n >= r.First && uint64(n-r.First) < uint64(len(r.archived)):
		return time.Unix(0, r.archived[n-r.First]).UTC()
	case n >= r.Last || r.Last == r.First:
		return r.Newest
	case n <= r.First:
		return r.Oldest
	}
	share := float64(n-r.First) / float64(r.Last-r.First)
	return r.Oldest.Add(time.Duration(share * float64(r.Newest.Sub(r.Oldest))))
}

// SegmentSize returns the size of the segments of the cluster that the newest backup is of; false where no backup says it, and it is taken to be 16 MiB.
func (c *Catalog) SegmentSize() (wal.SegmentSize, bool) {
	for i := range slices.Backward(c.Backups) {
		if b := &c.Backups[i]; b.Sentinel != nil {
			if size, err := b.SegmentSize(); err == nil {
				return size, true
			}
		}
	}
	return 16 << 20, false
}

// LoadWAL takes the inventory by two listings. size is that of the cluster's segments, see Catalog.SegmentSize.
func LoadWAL(ctx context.Context, a *archive.Archive, size wal.SegmentSize) (*WAL, error) {
	w := &WAL{SegmentSize: size}
	if err := w.loadTails(ctx, a); err != nil { // first: they go once the whole segment is there
		return nil, err
	}
	for o, err := range a.Store().List(ctx, archive.WALDir, "") {
		if err != nil {
			return nil, fmt.Errorf("list WAL: %w", err)
		}
		if o.IsDir() {
			continue
		}
		name := archive.WALName(o.Name)
		kind := wal.KindOf(name)
		if kind == wal.Other {
			continue
		}
		t, err := wal.TimelineOf(name)
		if err != nil {
			continue
		}
		if kind == wal.History {
			w.at(t).History = &HistoryFile{Archived: o.Modified, Storage: o.Storage}
			continue
		}
		_, n, err := size.ParseSegment(name[:24])
		if err != nil {
			w.foreign(name)
			continue
		}
		of := w.at(t)
		switch kind {
		case wal.Segment:
			of.add(n, Run{First: n, Last: n, Storage: o.Storage, Oldest: o.Modified, Newest: o.Modified, Bytes: o.Size, archived: []int64{o.Modified.UnixNano()}})
		case wal.Partial:
			of.Partial = append(of.Partial, Partial{Segment: n, Archived: o.Modified, Bytes: o.Size, Storage: o.Storage})
		case wal.Label:
			of.Labels++
		}
	}
	for i := range w.Timelines {
		of := &w.Timelines[i]
		for j := range of.Tails {
			of.Tails[j].Whole = w.Has(of.Timeline, of.Tails[j].Segment)
		}
	}
	return w, nil
}

// loadTails lists what there is in pieces.
func (w *WAL) loadTails(ctx context.Context, a *archive.Archive) error {
	for tail, err := range a.AllTails(ctx) {
		if err != nil {
			return err
		}
		t, n, err := w.SegmentSize.ParseSegment(tail.Name)
		if err != nil {
			w.foreign(tail.Name)
			continue
		}
		tail.Held, tail.Top = min(tail.Held, int64(w.SegmentSize)), min(tail.Top, int64(w.SegmentSize))
		of := w.at(t)
		of.Tails = append(of.Tails, Tail{Segment: n, Tail: tail})
	}
	return nil
}

// foreign notes the name of a segment that makes no sense.
func (w *WAL) foreign(name string) {
	if len(w.Foreign) < maxForeign && !slices.Contains(w.Foreign, name) {
		w.Foreign = append(w.Foreign, name)
	}
}

// at returns the entry of timeline t, which it makes where there is none.
func (w *WAL) at(t wal.Timeline) *TimelineWAL {
	i, found := slices.BinarySearchFunc(w.Timelines, t, func(e TimelineWAL, t wal.Timeline) int { return cmp.Compare(e.Timeline, t) })
	if !found {
		w.Timelines = slices.Insert(w.Timelines, i, TimelineWAL{Timeline: t})
	}
	return &w.Timelines[i]
}

// add adds segment n, which comes behind all others or is the last one again in another codec: the listing is in order of names.
func (t *TimelineWAL) add(n wal.SegmentNo, r Run) {
	empty := len(t.Empty) > 0 && t.Empty[len(t.Empty)-1] == n
	if r.Bytes == 0 {
		if last := t.last(); !empty && (last == nil || last.Last != n) {
			t.Empty = append(t.Empty, n)
		}
		return
	}
	if empty {
		t.Empty = t.Empty[:len(t.Empty)-1]
	}
	last := t.last()
	switch {
	case last != nil && last.Last == n:
		last.Bytes += r.Bytes
	case last != nil && last.Last+1 == n && last.Storage == r.Storage:
		last.Last = n
		last.Bytes += r.Bytes
		last.archived = append(last.archived, r.archived...)
		if r.Oldest.Before(last.Oldest) {
			last.Oldest = r.Oldest
		}
		if r.Newest.After(last.Newest) {
			last.Newest = r.Newest
		}
	default:
		t.Runs = append(t.Runs, r)
	}
}

func (t *TimelineWAL) last() *Run {
	if len(t.Runs) == 0 {
		return nil
	}
	return &t.Runs[len(t.Runs)-1]
}

// Timeline returns what there is of timeline t; nil where there is nothing.
func (w *WAL) Timeline(t wal.Timeline) *TimelineWAL {
	i, found := slices.BinarySearchFunc(w.Timelines, t, func(e TimelineWAL, t wal.Timeline) int { return cmp.Compare(e.Timeline, t) })
	if !found {
		return nil
	}
	return &w.Timelines[i]
}

// Find returns the run that has segment n of timeline t; nil where none has.
func (w *WAL) Find(t wal.Timeline, n wal.SegmentNo) *Run {
	of := w.Timeline(t)
	if of == nil {
		return nil
	}
	i, _ := slices.BinarySearchFunc(of.Runs, n, func(r Run, n wal.SegmentNo) int { return cmp.Compare(r.Last, n) })
	if i == len(of.Runs) || of.Runs[i].First > n {
		return nil
	}
	return &of.Runs[i]
}

// Tail returns what there is in pieces of segment n of timeline t, where it is not archived whole; nil for nothing.
func (w *WAL) Tail(t wal.Timeline, n wal.SegmentNo) *Tail {
	of := w.Timeline(t)
	if of == nil {
		return nil
	}
	i, found := slices.BinarySearchFunc(of.Tails, n, func(p Tail, n wal.SegmentNo) int { return cmp.Compare(p.Segment, n) })
	if !found || of.Tails[i].Whole {
		return nil
	}
	return &of.Tails[i]
}

// End returns up to where the pieces hold their segment from its beginning on.
func (p *Tail) End(size wal.SegmentSize) wal.LSN { return size.Start(p.Segment) + wal.LSN(p.Held) }

// Has reports whether segment n of timeline t is archived whole.
func (w *WAL) Has(t wal.Timeline, n wal.SegmentNo) bool { return w.Find(t, n) != nil }

// Stretch is segments of one timeline, as a path passes along them.
type Stretch struct {
	Timeline    wal.Timeline
	First, Last wal.SegmentNo
}

// Stretches yields which timeline's segments recovery along p replays, from segment n on: of each segment the file of the youngest leg that had begun in
// or before it, for that has what its ancestors wrote into the segment too. The last stretch has no end: its Last is the largest number.
func (p Path) Stretches(size wal.SegmentSize, n wal.SegmentNo) iter.Seq[Stretch] {
	return func(yield func(Stretch) bool) {
		for i, leg := range p {
			s := Stretch{Timeline: leg.Timeline, First: max(n, size.Segment(leg.Begin)), Last: 1<<64 - 1}
			if i == 0 {
				s.First = n
			}
			if i+1 < len(p) {
				next := size.Segment(p[i+1].Begin)
				if next <= s.First {
					continue // another leg begins in the same segment, or n is behind this one
				}
				s.Last = next - 1
			}
			if !yield(s) {
				return
			}
		}
	}
}

// Holes yields which segments along p are missing from n on, up to the last one that is archived on the path.
func (w *WAL) Holes(p Path, n wal.SegmentNo) iter.Seq[Stretch] {
	return func(yield func(Stretch) bool) {
		var before []Stretch // missing at the end of timelines so far: holes only if something follows
		for s := range p.Stretches(w.SegmentSize, n) {
			next := s.First
			var runs []Run
			if t := w.Timeline(s.Timeline); t != nil {
				runs = t.Runs
			}
			for _, r := range runs {
				if r.Last < next || r.First > s.Last {
					continue
				}
				for _, b := range before {
					if !yield(b) {
						return
					}
				}
				before = nil
				if r.First > next && !yield(Stretch{s.Timeline, next, r.First - 1}) {
					return
				}
				if next = r.Last + 1; r.Last >= s.Last {
					break
				}
			}
			if next <= s.Last {
				before = append(before, Stretch{s.Timeline, next, s.Last})
			}
		}
	}
}

// NextGap returns the first segments along p, from n on, that are missing before one that is archived; false where there are none.
func (w *WAL) NextGap(p Path, n wal.SegmentNo) (Stretch, bool) {
	for s := range w.Holes(p, n) {
		return s, true
	}
	return Stretch{}, false
}
