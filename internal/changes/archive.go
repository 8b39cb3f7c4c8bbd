package changes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

const (
	// inFlight is how many segments are asked for at once: a summary is a small object, and a round trip.
	inFlight = 16
	// reading is how many of them are read for want of a summary at once: each takes a core.
	reading = 2
	// poll is how often the archive is asked for a segment that is not there yet.
	poll = 500 * time.Millisecond
	// grace is how long a segment is waited for whose successors are archived: wal-push stores several at once, in any order.
	grace = 10 * time.Second
	// maxNotes is how many of the notes on single segments are kept.
	maxNotes = 10
)

// FromArchive joins the summaries of all segments of s. A segment that has none is read: from the server's pg_wal where the file is, else from the archive,
// which it is waited for to get to; then its summary is stored, so that the next backup finds it. An error names the segment for which that does
// not do, or which says that it does not tell all: written with wal_level=minimal, damaged, of another cluster.
func FromArchive(ctx context.Context, from Origin, s Stretch, o Options) (*Result, error) {
	o.fill()
	if err := s.check(); err != nil {
		return nil, err
	}
	if from.Archive == nil {
		return nil, errors.New("there is no archive")
	}
	f := &finder{Origin: from, Stretch: s, opts: o, slots: make(chan struct{}, reading), result: &Result{Source: Archive}}
	if err := f.run(ctx); err != nil {
		return nil, err
	}
	return f.result, nil
}

// segments returns the first segment in which there are records of s, and the one after the last.
func (s Stretch) segments() (first, until wal.SegmentNo) {
	first, until = s.SegmentSize.Segment(s.From), s.SegmentSize.Segment(s.To)
	if s.To-s.SegmentSize.Start(until) > wal.HeaderLen { // there is more than the header of its first page
		until++
	}
	return first, until
}

// timelineAt returns the timeline that the WAL at lsn is of.
func (s Stretch) timelineAt(lsn wal.LSN) wal.Timeline {
	for _, leg := range slices.Backward(s.Path) {
		if leg.Begin <= lsn {
			return leg.Timeline
		}
	}
	return s.Path[0].Timeline
}

// A finder is one run of FromArchive.
type finder struct {
	Origin
	Stretch
	opts   Options
	group  *errgroup.Group
	slots  chan struct{} // holds a token for each segment that is being read
	denied atomic.Bool   // the archive takes no summaries
	result *Result
}

// found is what a segment changes, or why that is not known.
type found struct {
	summary *walrec.Summary
	read    int64  // bytes
	segment bool   // the segment itself was read
	note    string // what was odd
	err     error
}

// run asks for all segments, in order, some at once, and joins what comes.
func (f *finder) run(ctx context.Context) error {
	f.group, ctx = errgroup.WithContext(ctx)
	queue := make(chan chan found, inFlight)
	f.group.Go(func() error {
		defer close(queue)
		return f.ask(ctx, queue)
	})
	f.group.Go(func() error { return f.join(queue) })
	return f.group.Wait()
}

// ask puts into the queue for each segment a channel that what is found of it comes from.
func (f *finder) ask(ctx context.Context, queue chan<- chan found) error {
	n, until := f.segments()
	for i, leg := range f.Path {
		end := until
		if i+1 < len(f.Path) {
			// The file in which a timeline was left is followed by one of the same number, which begins with a copy of it.
			end = min(end, f.SegmentSize.Segment(f.Path[i+1].Begin))
		}
		if n >= end {
			continue
		}
		add := func(summarized bool) error {
			answer, no := make(chan found, 1), n
			select {
			case queue <- answer:
			case <-ctx.Done():
				return ctx.Err()
			}
			f.group.Go(func() error {
				answer <- f.find(ctx, leg.Timeline, no, summarized)
				return nil
			})
			n++
			return nil
		}
		for no, err := range f.Archive.Summaries(ctx, leg.Timeline, n, end-1, f.SegmentSize) {
			if err != nil {
				return err
			}
			for n <= no {
				if err := add(n == no); err != nil {
					return err
				}
			}
		}
		for n < end {
			if err := add(false); err != nil {
				return err
			}
		}
	}
	return nil
}

// join puts together what comes out of the queue.
func (f *finder) join(queue <-chan chan found) error {
	var j walrec.Joiner
	for answer := range queue {
		got := <-answer
		if got.err != nil {
			return got.err
		}
		if err := j.Add(got.summary); err != nil {
			return err
		}
		if j.Minimal {
			s := got.summary
			return fmt.Errorf("WAL segment %s was written with wal_level=minimal, and does not tell all that changed", s.SegmentSize.Name(s.Timeline, s.SegmentSize.Segment(s.Start)))
		}
		f.result.Read += got.read
		if got.segment {
			f.result.Segments++
		}
		if got.note != "" && len(f.result.Notes) < maxNotes {
			f.result.Notes = append(f.result.Notes, got.note)
		}
	}
	f.result.Blocks = &j.Blocks
	return nil
}

// find says what segment no of timeline t changes, by its summary or by what it holds.
func (f *finder) find(ctx context.Context, t wal.Timeline, no wal.SegmentNo, summarized bool) found {
	name := f.SegmentSize.Name(t, no)
	var note string
	if summarized {
		s, read, err := f.Archive.OpenSummary(ctx, name, f.SegmentSize)
		if err == nil {
			err = f.fits(s, no)
		}
		if err == nil {
			return found{summary: s, read: read}
		}
		if ctx.Err() != nil {
			return found{err: err}
		}
		note = fmt.Sprintf("the summary of WAL segment %s is of no use: %v", name, err)
	}
	got := f.readSegment(ctx, t, no, name)
	got.note = cmp.Or(note, got.note)
	return got
}

// fits returns an error where s is not of the WAL that is wanted of segment no.
func (f *finder) fits(s *walrec.Summary, no wal.SegmentNo) error {
	start := f.SegmentSize.Start(no)
	switch want := f.timelineAt(start); {
	case s.SegmentSize != f.SegmentSize || s.Start != start:
		return fmt.Errorf("it is of WAL from %s on in segments of %d bytes", s.Start, s.SegmentSize)
	case f.System != 0 && s.SystemIdentifier != f.System:
		return fmt.Errorf("it is of cluster %d, not of %d", s.SystemIdentifier, f.System)
	case s.FirstTimeline != want:
		return fmt.Errorf("it begins on timeline %d, at %s that is timeline %d", s.FirstTimeline, start, want)
	}
	return nil
}

// readSegment sums up a segment: the server's file, or else the archived one once it is there.
func (f *finder) readSegment(ctx context.Context, t wal.Timeline, no wal.SegmentNo, name string) found {
	var deadline time.Time
	for {
		got, err := f.readOnce(ctx, t, no, name)
		if err == nil {
			return got
		}
		if ctx.Err() != nil || !errors.Is(err, fs.ErrNotExist) {
			return found{err: fmt.Errorf("WAL segment %s: %w", name, err)}
		}
		if deadline.IsZero() {
			patience := f.opts.Patience
			if passed, err := f.passed(ctx, t, name); err != nil {
				return found{err: err}
			} else if passed {
				patience = min(patience, grace)
			}
			deadline = time.Now().Add(patience)
			f.opts.Logger.Info("waiting for a WAL segment to be archived", "segment", name)
		}
		if time.Now().After(deadline) {
			return found{err: fmt.Errorf("WAL segment %s is not archived", name)}
		}
		select {
		case <-ctx.Done():
		case <-time.After(poll):
		}
	}
}

// passed reports whether the archive has a later segment of the stretch.
func (f *finder) passed(ctx context.Context, t wal.Timeline, name string) (bool, error) {
	for o, err := range f.Archive.Store().List(ctx, archive.WALDir, archive.WALDir+name) {
		if err != nil {
			return false, fmt.Errorf("list WAL: %w", err)
		}
		later := archive.WALName(o.Name)
		if o.IsDir() || !wal.IsSegment(later) || later == name {
			continue
		}
		timeline, _, err := f.SegmentSize.ParseSegment(later)
		return err == nil && timeline == t, nil
	}
	return false, nil
}

// readOnce sums up a segment, if it is there.
func (f *finder) readOnce(ctx context.Context, t wal.Timeline, no wal.SegmentNo, name string) (found, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return found{}, ctx.Err()
	}
	got, err := f.readLocal(ctx, t, no, name)
	if err == nil || ctx.Err() != nil {
		return got, err
	}
	var note string
	if !errors.Is(err, fs.ErrNotExist) {
		note = fmt.Sprintf("WAL segment %s in pg_wal is of no use: %v", name, err)
	}
	r, err := f.Archive.OpenWholeWAL(ctx, name)
	if err != nil {
		return found{}, err
	}
	defer r.Close() // only read
	s, err := walrec.Summarize(r, f.SegmentSize)
	if err == nil {
		err = f.fits(s, no)
	}
	if err != nil {
		return found{}, err
	}
	if !f.opts.ReadOnly && !f.denied.Load() {
		if err := f.Archive.PutSummary(ctx, name, s); err != nil {
			f.denied.Store(true)
			note = cmp.Or(note, fmt.Sprintf("the summary of WAL segment %s cannot be stored, the next backup has to read the segment too: %v", name, err))
		}
	}
	return found{summary: s, read: int64(f.SegmentSize), segment: true, note: note}, nil
}

// openLocal opens a segment of the server's.
func (f *finder) openLocal(ctx context.Context, t wal.Timeline, no wal.SegmentNo, name string) (io.ReadCloser, error) {
	switch {
	case f.DataDir != "":
		return os.Open(filepath.Join(f.DataDir, "pg_wal", name))
	case f.WAL != nil:
		return f.WAL(ctx, t, no)
	}
	return nil, fs.ErrNotExist
}

// readLocal sums up a file of pg_wal, up to the end of the stretch: beyond the server may still be writing. A file that is not there is fs.ErrNotExist.
func (f *finder) readLocal(ctx context.Context, t wal.Timeline, no wal.SegmentNo, name string) (found, error) {
	r, err := f.openLocal(ctx, t, no, name)
	if err != nil {
		return found{}, err
	}
	defer r.Close() // only read
	end := min(f.To, f.SegmentSize.Start(no+1))
	s, err := walrec.SummarizeTo(r, f.SegmentSize, end)
	if err == nil {
		err = f.fits(s, no)
	}
	if err != nil {
		return found{}, err
	}
	return found{summary: s, read: int64(end - s.Start), segment: true}, nil
}
