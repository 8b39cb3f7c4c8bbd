package walreceive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
)

// Pieces of a segment are put together when there are so many: who restores reads each in a request of its own.
const (
	maxPieces   = 64
	mergePieces = 32 // of them, the newest, and older ones as far as they are no larger than those together
)

// pieceSize is how much a piece may have where there is nothing small about it: what one request holds without being split.
const pieceSize = 8 << 20

// storeTails puts what is received of unfinished segments into the store, until ctx ends.
func (r *receiver) storeTails(ctx context.Context) {
	if !r.tails() {
		return
	}
	wait := backoff{}
	for ctx.Err() == nil {
		changed := r.line.wait()
		seg := r.line.use(r.due)
		if seg == nil {
			pause, cancel := context.WithTimeout(ctx, r.untilDue())
			_ = until(pause, changed) // whatever it was, look again
			cancel()
			continue
		}
		err := r.storeTail(ctx, seg)
		seg.users.Done()
		if err == nil {
			wait.reset()
			continue
		}
		if ctx.Err() == nil {
			r.warn(&wait, "cannot store what was received of "+seg.name, err)
			wait.pause(ctx)
		}
	}
}

// tails says whether pieces of segments go into the store at all.
func (r *receiver) tails() bool { return r.opts.TailInterval > 0 || r.opts.Synchronous }

// atOnce says whether a commit may wait for the store.
func (r *receiver) atOnce() bool { return r.opts.Synchronous && r.opts.Store }

// due reports whether the store is to get a piece of s now.
func (r *receiver) due(s *segment) bool {
	n := s.written - s.tailed
	switch {
	case n == 0 || s.written < wal.HeaderLen:
		return false
	case r.atOnce() || s.left || r.stopping:
		return true
	case s.whole: // all of it is on its way
		return false
	case r.opts.TailInterval <= 0:
		return r.away
	}
	return n >= r.opts.TailBytes || time.Since(r.tailed) >= r.opts.TailInterval
}

// untilDue returns after which time something may be due although nothing has changed.
func (r *receiver) untilDue() time.Duration {
	r.line.mu.Lock()
	defer r.line.mu.Unlock()
	if s := r.line.last(); r.atOnce() || r.opts.TailInterval <= 0 || s == nil || s.written == s.tailed {
		return time.Minute
	}
	return max(time.Millisecond, r.opts.TailInterval-time.Since(r.tailed))
}

// storeTail puts what the store lacks of seg, as one piece.
func (r *receiver) storeTail(ctx context.Context, seg *segment) error {
	r.line.mu.Lock()
	start, end := seg.tailed, min(seg.written, seg.tailed+pieceSize)
	r.line.mu.Unlock()
	if err := r.put(ctx, seg, start, end); err != nil {
		return err
	}
	r.line.change(func() {
		seg.tailed, r.tailed = end, time.Now()
	})
	return nil
}

// put stores a piece of seg, and removes those that it has the content of.
func (r *receiver) put(ctx context.Context, seg *segment, start, end int64) error {
	piece, err := r.archive.PutTail(ctx, seg.name, start, end, io.NewSectionReader(seg.file, start, end-start))
	if err != nil {
		return err
	}
	var covered []archive.TailPiece
	r.line.change(func() {
		seg.pieces = slices.DeleteFunc(seg.pieces, func(p archive.TailPiece) bool {
			if p.Start < start || p.End > end {
				return false
			}
			if p.Object != piece.Object {
				covered = append(covered, p)
			}
			return true
		})
		seg.pieces = append(seg.pieces, piece)
		slices.SortFunc(seg.pieces, func(a, b archive.TailPiece) int { return int(a.Start - b.Start) })
	})
	if err := r.archive.RemoveTail(ctx, covered); err != nil && ctx.Err() == nil {
		r.opts.Logger.Debug("cannot remove pieces that were put together; they go with the segment", "segment", seg.name, "error", err)
	}
	return nil
}

// mergeTails puts many small pieces together, until ctx ends.
func (r *receiver) mergeTails(ctx context.Context) {
	wait := backoff{}
	for ctx.Err() == nil {
		changed := r.line.wait()
		seg := r.line.use(func(s *segment) bool { return len(s.pieces) >= maxPieces })
		if seg == nil {
			_ = until(ctx, changed) // whatever it was, look again
			continue
		}
		r.line.mu.Lock()
		start, end := mergeable(seg.pieces)
		r.line.mu.Unlock()
		err := r.put(ctx, seg, start, end)
		seg.users.Done()
		if err != nil && ctx.Err() == nil {
			r.warn(&wait, "cannot put together the pieces of "+seg.name, err)
			wait.pause(ctx)
		}
	}
}

// mergeable chooses which of many pieces, ascending, become one: those between the two offsets.
func mergeable(pieces []archive.TailPiece) (start, end int64) {
	i := len(pieces) - min(mergePieces, len(pieces))
	end = pieces[len(pieces)-1].End
	for start = pieces[i].Start; i > 0 && pieces[i-1].End-pieces[i-1].Start <= end-start; i-- {
		start = pieces[i-1].Start
	}
	return start, end
}

// storeSegments puts whole segments into the archive, and what was received of timelines that the server has left, in order, until ctx ends. An error is one
// that will not pass.
func (r *receiver) storeSegments(ctx context.Context) error {
	wait := backoff{}
	for ctx.Err() == nil {
		changed := r.line.wait()
		r.line.mu.Lock()
		var seg *segment
		if len(r.line.segments) > 0 {
			if s := r.line.segments[0]; s.named || s.left && s.synced == s.written {
				seg = s
			}
		}
		r.line.mu.Unlock()
		if seg == nil {
			_ = until(ctx, changed) // whatever it was, look again
			continue
		}
		err := r.storeSegment(ctx, seg)
		switch {
		case err == nil:
			wait.reset()
		case permanent(err):
			return err
		case ctx.Err() == nil:
			r.warn(&wait, "cannot store "+seg.name, err)
			wait.pause(ctx)
		}
	}
	return nil
}

// storeSegment archives a segment, and removes what there is of it in pieces and here.
func (r *receiver) storeSegment(ctx context.Context, seg *segment) error {
	if seg.left {
		if err := r.storePartial(ctx, seg); err != nil {
			return err
		}
	} else if err := r.opts.Push(ctx, r.spool.path(seg.name)); err != nil {
		return err
	}
	r.line.archived(seg)
	if err := r.spool.forget(seg.name); err != nil { // the next start stores it again, which is no error
		r.opts.Logger.Warn("cannot remove what is archived", "segment", seg.name, "error", err)
	}
	r.line.mu.Lock()
	r.report.Segments++
	var gone []string
	if seg.left { // the pieces stay until another timeline has the same WAL
		r.line.past = append(r.line.past, seg.name)
	} else {
		gone = append(gone, seg.name)
		r.line.past = slices.DeleteFunc(r.line.past, func(name string) bool {
			_, no, err := r.line.size.ParseSegment(name)
			over := err == nil && r.line.size.Start(no) <= seg.start && name < seg.name
			if over {
				gone = append(gone, name)
			}
			return over
		})
	}
	r.line.mu.Unlock()
	if r.tails() {
		for _, name := range gone {
			r.removeTail(ctx, name)
		}
	}
	return nil
}

// storePartial archives as .partial what was received of a segment whose timeline was left. Where there is another file of that name it stays: servers store
// theirs too, with something else behind the end.
func (r *receiver) storePartial(ctx context.Context, seg *segment) error {
	if seg.written < wal.HeaderLen {
		return nil
	}
	path, err := r.spool.partial(seg.name, seg.file, seg.written, r.line.size)
	if err == nil {
		err = r.opts.Push(ctx, path)
	}
	if errors.As(err, new(*archive.ConflictError)) {
		r.opts.Logger.Info(seg.name + ".partial is archived already, with other contents; what was received stays in pieces")
		err = nil
	}
	return err
}

// removeTail removes all pieces of a segment.
func (r *receiver) removeTail(ctx context.Context, name string) {
	pieces, err := r.archive.TailPieces(ctx, name)
	if err == nil {
		err = r.archive.RemoveTail(ctx, pieces)
	}
	if err != nil && ctx.Err() == nil {
		r.opts.Logger.Warn("cannot remove pieces of what is archived whole; the next start tries again", "segment", name, "error", err)
	}
}

// sweep removes pieces that an earlier run has left of what is archived whole, by their own timeline or by the one that is received now.
func (r *receiver) sweep(ctx context.Context) error {
	names, err := r.archive.Tails(ctx)
	if err != nil {
		return err
	}
	r.line.mu.Lock()
	t, size := r.line.timeline, r.line.size
	r.line.mu.Unlock()
	for _, name := range names {
		timeline, no, err := size.ParseSegment(name)
		if err != nil {
			continue
		}
		whole, err := r.archive.HasWAL(ctx, name)
		if err == nil && !whole && timeline < t {
			whole, err = r.archive.HasWAL(ctx, size.Name(t, no))
		}
		if err != nil {
			return err
		}
		switch {
		case whole:
			r.removeTail(ctx, name)
		case timeline < t:
			r.line.change(func() { r.line.past = append(r.line.past, name) })
		}
	}
	return nil
}

// recall brings back into the spool what the store has of segments in pieces, from the one on that is received next: a spool that was lost had it, and the
// server may have been told that it is safe.
func (r *receiver) recall(ctx context.Context) error {
	for {
		name, start := r.line.size.Name(r.line.timeline, r.line.size.Segment(r.line.next)), r.line.next
		src, err := r.archive.OpenWAL(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		held, ok := src.(interface{ Held() int64 })
		if !ok { // it came this moment
			return src.Close()
		}
		seg, err := r.copyIn(src, name, start, held.Held())
		if err = errors.Join(err, src.Close()); err != nil {
			return err
		}
		if seg.pieces, err = r.archive.TailPieces(ctx, name); err != nil {
			return err
		}
		r.line.change(func() {
			r.line.segments = append(r.line.segments, seg)
			if seg.whole {
				r.line.next += wal.LSN(r.line.size)
			}
		})
		r.opts.Logger.Info(fmt.Sprintf("brought back what the archive has of %s in pieces, %d bytes", name, seg.written))
		if !seg.whole {
			return nil
		}
	}
}

func (r *receiver) copyIn(src io.Reader, name string, start wal.LSN, held int64) (*segment, error) {
	f, err := r.spool.create(name)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(f, io.LimitReader(src, held))
	if err == nil {
		err = f.Sync()
	}
	seg := &segment{name: name, timeline: r.line.timeline, start: start, file: f, written: held, synced: held, whole: held == int64(r.line.size)}
	if err == nil && seg.whole {
		err, seg.named = r.spool.finish(name), true
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(r.spool.path(name+receiving)))
	}
	return seg, nil
}
