package walreceive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
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

// storeTails puts what is received of unfinished segments into the store, until ctx ends. An error is one that will not pass.
func (r *receiver) storeTails(ctx context.Context) error {
	if !r.tails() {
		return nil
	}
	return r.each(ctx, r.due, r.untilDue, "cannot store what was received of", r.storeTail)
}

// each calls do for one segment after another that is ready, until ctx is over or do fails for good. pause says how long to wait at most before it is looked again which is. cannot says
// what could not be done, and is tried again.
func (r *receiver) each(ctx context.Context, ready func(*segment) bool, pause func() time.Duration, cannot string, do func(context.Context, *segment) error) error {
	wait := backoff{}
	for ctx.Err() == nil {
		changed := r.line.wait()
		seg := r.line.use(ready)
		if seg == nil {
			pause, cancel := context.WithTimeout(ctx, pause())
			_ = until(pause, changed) // whatever it was, look again
			cancel()
			continue
		}
		err := do(ctx, seg)
		seg.users.Done()
		switch {
		case err == nil:
			wait.reset()
		case permanent(err):
			return err
		case ctx.Err() == nil:
			r.warn(&wait, cannot+" "+seg.name, err)
			wait.pause(ctx)
		}
	}
	return nil
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

// storeTail puts what the store lacks of seg, as one piece; where there is one of that name that cannot be read as a smaller one.
func (r *receiver) storeTail(ctx context.Context, seg *segment) error {
	r.line.mu.Lock()
	start, end := seg.tailed, min(seg.written, seg.tailed+pieceSize)
	r.line.mu.Unlock()
	for {
		err := r.put(ctx, seg, start, end)
		if unreadable := (*archive.UnreadablePieceError)(nil); errors.As(err, &unreadable) && end-start > 1 {
			r.opts.Logger.Warn("a piece that is there cannot be read: what it should hold is stored beside it", "error", err)
			end = start + (end-start)/2
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	r.line.change(func() {
		seg.tailed, r.tailed = end, time.Now()
	})
	return nil
}

// put stores a piece of seg, and removes those that it has the content of.
func (r *receiver) put(ctx context.Context, seg *segment, start, end int64) error {
	piece, err := r.archive.PutTail(ctx, seg.name, start, end, io.NewSectionReader(seg.file, start, end-start))
	if errors.As(err, new(*archive.ConflictError)) {
		return r.rival(seg, piece, start, end)
	}
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
		if seg.put == nil {
			seg.put = map[string]bool{}
		}
		seg.put[piece.Object] = true
		slices.SortFunc(seg.pieces, func(a, b archive.TailPiece) int { return int(a.Start - b.Start) })
	})
	if err := r.archive.RemoveTail(ctx, covered); err != nil && ctx.Err() == nil {
		r.opts.Logger.Debug("cannot remove pieces that were put together; they go with the segment", "segment", seg.name, "error", err)
	}
	return nil
}

// Others' pieces are looked for so often where this run stores some, and looked at again so often while the server has yet to send what they hold.
const (
	lookEvery = 10 * time.Second
	lookAgain = time.Second
)

// lookAround looks whether somebody else stores pieces of the same segments, until ctx ends. No commit waits for that. An error is one that will not pass.
func (r *receiver) lookAround(ctx context.Context) error {
	if !r.tails() {
		return nil
	}
	return r.each(ctx, (*segment).unseen, func() time.Duration { return lookAgain }, "cannot see whether somebody else stores", r.look)
}

// unseen reports whether it is time to look who else stores pieces of s. The line is locked.
func (s *segment) unseen() bool {
	since := time.Since(s.looked)
	return s.tailed > s.seen && since >= lookEvery || s.rest && s.sure > s.compared && since >= lookAgain
}

// look compares the pieces of seg that this run has not stored with what the server has sent: where two servers write the same timeline those of both would
// be taken for one segment.
func (r *receiver) look(ctx context.Context, seg *segment) error {
	r.line.mu.Lock()
	before, tailed := maps.Clone(seg.put), seg.tailed
	r.line.mu.Unlock()
	all, err := r.archive.TailPieces(ctx, seg.name)
	if err != nil {
		return err
	}
	for _, p := range all {
		delete(before, p.Object)
	}
	r.line.mu.Lock()
	for name := range before { // put together with others, and gone
		delete(seg.put, name)
	}
	ours := maps.Clone(seg.put)
	if ours == nil {
		ours = map[string]bool{}
	}
	for _, p := range seg.pieces {
		ours[p.Object] = true
	}
	sure := seg.sure
	r.line.mu.Unlock()
	rest := false
	for _, p := range all {
		if ours[p.Object] || seg.alike[p.Object] {
			continue
		}
		err := r.compare(ctx, seg, p, min(p.End, sure))
		if errors.As(err, new(*archive.UnreadablePieceError)) {
			r.opts.Logger.Warn("whether a piece holds what this server writes is not known", "error", err)
		} else if err != nil {
			return err
		}
		if err == nil && p.End > sure {
			rest = true // the rest of it next time
			continue
		}
		if seg.alike == nil {
			seg.alike = map[string]bool{}
		}
		seg.alike[p.Object] = true
	}
	r.line.change(func() {
		seg.looked, seg.seen, seg.rest, seg.compared = time.Now(), tailed, rest, sure
	})
	return nil
}

// compare returns a *RivalError where a piece holds something else, before end, than what was received.
func (r *receiver) compare(ctx context.Context, seg *segment, p archive.TailPiece, end int64) error {
	if p.Start >= end {
		return nil
	}
	there, err := r.archive.OpenTailPiece(ctx, p)
	if errors.Is(err, fs.ErrNotExist) || archive.IsLocked(err) { // what has no key to read must do without
		return nil
	}
	if err != nil {
		return err
	}
	defer there.Close() // only read
	const chunk = 64 << 10
	a, b := make([]byte, chunk), make([]byte, chunk)
	for at := p.Start; at < end; at += chunk {
		n := min(chunk, end-at)
		_, err := io.ReadFull(there, a[:n])
		if archive.IsLocked(err) { // which may show here alone
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := seg.file.ReadAt(b[:n], at); err != nil {
			return err
		}
		if !bytes.Equal(a[:n], b[:n]) {
			i := int64(0)
			for a[i] == b[i] {
				i++
			}
			return &RivalError{Segment: seg.name, Object: p.Object, Dir: r.opts.Dir, At: seg.start + wal.LSN(at+i)}
		}
	}
	return nil
}

// rival says that a piece is in the store with other content than what was received from start to end; for certain once the server has sent all of that, or will
// not.
func (r *receiver) rival(seg *segment, p archive.TailPiece, start, end int64) error {
	r.line.mu.Lock()
	defer r.line.mu.Unlock()
	if seg.sure < end && !seg.left { // of which the server sends no more
		return fmt.Errorf("%s is there with other content, and the server has not sent it again yet", p.Object)
	}
	return &RivalError{Segment: seg.name, Object: p.Object, Dir: r.opts.Dir, At: seg.start + wal.LSN(start)}
}

// mergeTails puts many small pieces together, until ctx ends. An error is one that will not pass.
func (r *receiver) mergeTails(ctx context.Context) error {
	many := func(s *segment) bool { return len(s.pieces) >= maxPieces }
	return r.each(ctx, many, func() time.Duration { return time.Minute }, "cannot put together the pieces of", func(ctx context.Context, seg *segment) error {
		r.line.mu.Lock()
		start, end := mergeable(seg.pieces)
		r.line.mu.Unlock()
		return r.put(ctx, seg, start, end)
	})
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
	swept := !r.apart || !r.tails() // else who receives does that
	wait := backoff{}
	for ctx.Err() == nil {
		changed := r.line.wait()
		switch err := r.storeHistories(ctx); {
		case err == nil:
		case permanent(err):
			return err
		case ctx.Err() == nil:
			r.warn(&wait, "cannot store a history file", err)
			wait.pause(ctx)
			continue
		}
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
			if !swept {
				swept = r.sweep(ctx) == nil
			}
		case permanent(err):
			return err
		case ctx.Err() == nil:
			r.warn(&wait, "cannot store "+seg.name, err)
			wait.pause(ctx)
		}
	}
	return nil
}

// storeHistories archives the history files that are owed.
func (r *receiver) storeHistories(ctx context.Context) error {
	for {
		r.line.mu.Lock()
		owed := r.owed
		r.line.mu.Unlock()
		if len(owed) == 0 {
			return nil
		}
		if err := r.pushHistory(ctx, owed[0]); err != nil {
			return err
		}
		r.line.change(func() { r.owed = r.owed[1:] })
	}
}

// storeSegment archives a segment, and removes what there is of it in pieces and here.
func (r *receiver) storeSegment(ctx context.Context, seg *segment) error {
	stored := true
	if seg.left {
		var err error
		if stored, err = r.storePartial(ctx, seg); err != nil {
			return err
		}
		if !stored {
			if err := r.keep(ctx, seg); err != nil {
				return err
			}
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
	var gone []past
	if seg.left { // the pieces stay until another timeline has the same WAL; and for good if they have what nobody else does
		elsewhere := r.line.switches[seg.timeline]
		if stored {
			elsewhere = max(elsewhere, seg.end())
		}
		if seg.end() <= elsewhere {
			r.line.past = append(r.line.past, past{seg.name, elsewhere})
		}
	} else {
		gone = append(gone, past{seg.name, seg.end()})
		r.line.past = slices.DeleteFunc(r.line.past, func(p past) bool {
			_, no, err := r.line.size.ParseSegment(p.name)
			over := err == nil && r.line.size.Start(no) <= seg.start && p.name < seg.name
			if over {
				gone = append(gone, p)
			}
			return over
		})
	}
	r.line.mu.Unlock()
	if r.tails() {
		for _, p := range gone {
			r.removeTail(ctx, p)
		}
	}
	return nil
}

// storePartial archives as .partial what was received of a segment whose timeline was left. Where there is another file of that name that stays: servers store
// theirs too, with something else behind the end.
func (r *receiver) storePartial(ctx context.Context, seg *segment) (stored bool, err error) {
	if seg.written < wal.HeaderLen {
		return true, nil
	}
	path, err := r.spool.partial(seg.name, seg.file, seg.written, r.line.size)
	if err == nil {
		err = r.opts.Push(ctx, path)
	}
	if errors.As(err, new(*archive.ConflictError)) {
		r.opts.Logger.Info(seg.name + ".partial is archived already, with other contents")
		return false, nil
	}
	return err == nil, err
}

// keep sees to it that what was received of a segment whose timeline was left, and that cannot go up as .partial, is somewhere else than in its spool file, as far as
// nobody else has it: in pieces, or where none are stored in a file here.
func (r *receiver) keep(ctx context.Context, seg *segment) error {
	for {
		changed := r.line.wait()
		r.line.mu.Lock()
		needed := seg.end() > r.line.switches[seg.timeline] && seg.tailed < seg.written
		r.line.mu.Unlock()
		switch {
		case !needed:
			return nil
		case r.tails(): // which is at it
			if err := until(ctx, changed); err != nil {
				return err
			}
		default:
			path, err := r.spool.keep(seg.name)
			if err != nil {
				return err
			}
			r.opts.Logger.Warn("what was received of a segment behind where its timeline was left is in no archive, and is kept", "file", path)
			return nil
		}
	}
}

// removeTail removes all pieces of a segment, unless another receiver has stored some that reach further than what is elsewhere.
func (r *receiver) removeTail(ctx context.Context, p past) {
	pieces, err := r.archive.TailPieces(ctx, p.name)
	var no wal.SegmentNo
	if err == nil {
		_, no, err = r.line.size.ParseSegment(p.name)
	}
	further := func(piece archive.TailPiece) bool { return r.line.size.Start(no)+wal.LSN(piece.End) > p.upTo }
	if err == nil && !slices.ContainsFunc(pieces, further) {
		err = r.archive.RemoveTail(ctx, pieces)
	}
	if err != nil && ctx.Err() == nil {
		r.opts.Logger.Warn("cannot remove pieces of what is archived whole; the next start tries again", "segment", p.name, "error", err)
	}
}

// sweep removes pieces that an earlier run has left of what is archived whole, by their own timeline or, before where that was left, by the one that is received now.
func (r *receiver) sweep(ctx context.Context) error {
	names, err := r.archive.Tails(ctx)
	if err != nil {
		return err
	}
	r.line.mu.Lock()
	t, size, switches := r.line.timeline, r.line.size, maps.Clone(r.line.switches)
	r.line.mu.Unlock()
	for _, name := range names {
		timeline, no, err := size.ParseSegment(name)
		if err != nil {
			continue
		}
		whole, err := r.archive.HasWAL(ctx, name)
		if err != nil {
			return err
		}
		if whole {
			r.removeTail(ctx, past{name, size.Start(no + 1)})
			continue
		}
		tail, err := r.archive.Tail(ctx, name)
		if err != nil {
			return err
		}
		had := past{name, switches[timeline]}
		if timeline >= t || size.Start(no)+wal.LSN(tail.Top) > had.upTo {
			continue // nobody else has what lies behind where the timeline was left
		}
		if whole, err = r.archive.HasWAL(ctx, size.Name(t, no)); err != nil {
			return err
		}
		if whole {
			r.removeTail(ctx, had)
		} else {
			r.line.change(func() { r.line.past = append(r.line.past, had) })
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
