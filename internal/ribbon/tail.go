package ribbon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// tailTries is how often a segment in pieces is read of which some go in the middle: a larger one, or the whole segment, has come for them.
const tailTries = 3

// readTails reads the youngest of the segments in pieces: up to where their records are right, and when the last commit was. A shallow look sees only
// whether they can be read here, by their first piece.
func (in *Input) readTails(ctx context.Context, a *archive.Archive, shallow bool) {
	type found struct {
		timeline wal.Timeline
		tail     *catalog.Tail
		read     *Tail
		err      error
	}
	var all []found
	for i := range in.WAL.Timelines {
		of := &in.WAL.Timelines[i]
		for j := range of.Tails {
			if p := &of.Tails[j]; !p.Whole && p.Held > 0 {
				all = append(all, found{timeline: of.Timeline, tail: p})
			}
		}
	}
	slices.SortStableFunc(all, func(x, y found) int { return y.tail.Modified.Compare(x.tail.Modified) })
	all = all[:min(len(all), maxTails)]
	var group errgroup.Group
	group.SetLimit(inFlight)
	for i := range all {
		f := &all[i]
		group.Go(func() error {
			name := in.WAL.SegmentSize.Name(f.timeline, f.tail.Segment)
			for range tailTries {
				if shallow {
					f.err = tryPieces(ctx, a, name)
				} else {
					f.read, f.err = readTail(ctx, a, name, f.tail.End(in.WAL.SegmentSize))
				}
				if !archive.IsVanished(f.err) {
					break
				}
			}
			return nil
		})
	}
	group.Wait() // each has its own error
	for _, f := range all {
		switch {
		case f.err == nil && f.read != nil:
			f.read.Timeline, f.read.Segment = f.timeline, f.tail.Segment
			in.Tails = append(in.Tails, *f.read)
		case f.err != nil && !errors.Is(f.err, fs.ErrNotExist) && !archive.IsVanished(f.err) && ctx.Err() == nil: // what has gone since the next look will tell
			in.Locked = append(in.Locked, Locked{Timeline: f.timeline, First: f.tail.Segment, Last: f.tail.Segment, Why: f.err.Error()})
		}
	}
}

// tryPieces reads of a segment in pieces the beginning of the first: one request, where opening the segment reads all of it if pieces overlap. Where that is not
// to be had it opens the segment, which may be whole by now, or have another piece in place of a torn one.
func tryPieces(ctx context.Context, a *archive.Archive, name string) error {
	pieces, err := a.TailPieces(ctx, name)
	if err == nil && len(pieces) > 0 && pieces[0].Start == 0 && try(a.OpenTailPiece(ctx, pieces[0])) == nil {
		return nil
	}
	return try(a.OpenWAL(ctx, name))
}

// readTail reads the records of a segment in pieces, up to end. It is nil where the segment is whole by now. An error is one of the store, of the key, or of a
// piece that is not what was put.
func readTail(ctx context.Context, a *archive.Archive, name string, end wal.LSN) (_ *Tail, err error) {
	src, err := a.OpenWAL(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if _, ok := src.(interface{ Held() int64 }); !ok {
		return nil, nil
	}
	source := &faulty{src: src}
	r, err := walrec.NewReader(source, end)
	if source.err != nil {
		return nil, source.err
	}
	if err != nil {
		return &Tail{Problem: err.Error()}, nil
	}
	size, start := r.Header().SegmentSize, r.Header().Address
	if t, n, err := size.ParseSegment(name); err != nil || size.Start(n) != start || t < r.Header().Timeline {
		return &Tail{Problem: fmt.Sprintf("it is the segment that begins at %s of timeline %d", start, uint32(r.Header().Timeline))}, nil
	}
	tail := &Tail{Good: wal.HeaderLen}
	for {
		rec, err := r.Next()
		fault := (*walrec.FaultError)(nil)
		switch {
		case source.err != nil:
			return nil, source.err
		case err == io.EOF:
			tail.Good = int64(end - start)
			return tail, nil
		case errors.As(err, &fault):
			tail.Good, tail.Problem = max(tail.Good, int64(min(fault.LSN, end)-start)), err.Error()
			return tail, nil
		case err != nil:
			return nil, err
		}
		tail.Good = int64(min(rec.End, end) - start)
		if x, ok, err := rec.XactEnd(); ok && err == nil && x.Committed {
			tail.Commit = x.Time
		}
	}
}

// faulty keeps the error of a source, which a Reader may take for the end.
type faulty struct {
	src io.Reader
	err error
}

func (f *faulty) Read(p []byte) (int, error) {
	n, err := f.src.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}
