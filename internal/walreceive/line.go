package walreceive

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
)

// segment is one that has not been archived whole yet. What is below is guarded by the line's lock; the file is written by who receives alone.
type segment struct {
	name     string
	timeline wal.Timeline
	start    wal.LSN
	file     *os.File

	written int64 // bytes received
	synced  int64 // of them on disk
	tailed  int64 // in the store, from the first on
	sure    int64 // that the server has sent in this run: of an earlier one's what was compared with it
	whole   bool  // received to its end
	left    bool  // its timeline was left: no more will come
	named   bool  // the file has its final name
	done    bool  // archived
	dropped bool  // what is in it is of no use, as the whole segment was archived by somebody else

	pieces []archive.TailPiece // in the store, of those put or found by this run; ascending
	put    map[string]bool     // objects that this run has put, also such as were put together since
	users  sync.WaitGroup      // who reads the file for the store

	looked   time.Time       // when it was looked last who else stores pieces
	seen     int64           // tailed then
	compared int64           // sure then
	rest     bool            // there are pieces with more than that
	alike    map[string]bool // objects that somebody else has stored, and that hold the same; of who looks alone
}

// past is a segment that was received in part, and of which no more than up to a position is elsewhere.
type past struct {
	name string
	upTo wal.LSN
}

// end returns where what was received of it ends.
func (s *segment) end() wal.LSN { return s.start + wal.LSN(s.written) }

// line is the log as it passes from the server to the archive. Its methods may be called from several goroutines.
type line struct {
	spool *spool

	mu       sync.Mutex
	changed  chan struct{} // closed with the next change
	segments []*segment    // in order
	size     wal.SegmentSize

	timeline wal.Timeline             // what is received next
	next     wal.LSN                  // is the beginning of a segment
	begun    wal.LSN                  // where receiving timeline began, or begins
	base     wal.LSN                  // all before the first of segments is archived; 0 where that is not known
	baseOf   wal.Timeline             // of what is before base
	past     []past                   // segments of timelines that were left, of which there are pieces in the store that others have, too
	switches map[wal.Timeline]wal.LSN // where timelines were left on the way to the server's
}

// wait returns what is closed with the next change. It is to be called before what may change is looked at.
func (l *line) wait() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// change runs f and tells those who wait.
func (l *line) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

// last returns the segment that is being received, nil where none is.
func (l *line) last() *segment {
	if len(l.segments) == 0 {
		return nil
	}
	if s := l.segments[len(l.segments)-1]; !s.whole && !s.left && !s.done {
		return s
	}
	return nil
}

// positions says up to where the log was received, is on this disk, and is in the store.
func (l *line) positions() (written, synced, stored wal.LSN) {
	return l.upTo(func(_ wal.Timeline, at wal.LSN) wal.LSN { return at })
}

// reported is positions as the server may be told that sends the line's timeline. A server that was lost may have sent more of an older timeline than the one
// that follows it ever had: such positions would acknowledge what that one writes in the same place and nobody has received.
func (l *line) reported() (written, synced, stored wal.LSN) {
	return l.upTo(func(t wal.Timeline, at wal.LSN) wal.LSN {
		if t != l.timeline {
			return min(at, l.begun)
		}
		return at
	})
}

// upTo returns positions, each as what bound makes of it.
func (l *line) upTo(bound func(wal.Timeline, wal.LSN) wal.LSN) (written, synced, stored wal.LSN) {
	l.mu.Lock()
	defer l.mu.Unlock()
	written = bound(l.baseOf, l.base)
	synced, stored = written, written
	local, remote := true, true
	for _, s := range l.segments {
		written = bound(s.timeline, s.end())
		if local {
			held := s.synced
			if s.done {
				held = s.written
			}
			synced, local = bound(s.timeline, s.start+wal.LSN(held)), held == s.written && (s.whole || s.left)
		}
		if remote {
			held := s.tailed
			if s.done {
				held = s.written
			}
			stored, remote = bound(s.timeline, s.start+wal.LSN(held)), held == s.written && (s.whole || s.left)
		}
	}
	return written, synced, stored
}

// waiting returns how many segments wait for the archive.
func (l *line) waiting() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		if !s.done {
			n++
		}
	}
	return n
}

// take adds what was received of timeline t from at on. What is there already must be the same.
func (l *line) take(t wal.Timeline, at wal.LSN, data []byte) error {
	for len(data) > 0 {
		no := l.size.Segment(at)
		offset := int64(at - l.size.Start(no))
		n := min(int64(len(data)), int64(l.size)-offset)
		seg, err := l.current(t, no)
		if err != nil {
			return err
		}
		if err := l.put(seg, offset, data[:n]); err != nil {
			return err
		}
		data, at = data[n:], at+wal.LSN(n)
	}
	return nil
}

// current returns the segment that is being received, which must be that one, or begins it.
func (l *line) current(t wal.Timeline, no wal.SegmentNo) (*segment, error) {
	name, start := l.size.Name(t, no), l.size.Start(no)
	l.mu.Lock()
	seg := l.last()
	l.mu.Unlock()
	if seg != nil {
		if seg.name != name {
			return nil, fmt.Errorf("received WAL of %s while %s is not whole", name, seg.name)
		}
		return seg, nil
	}
	if t != l.timeline || start != l.next {
		return nil, fmt.Errorf("received WAL of timeline %d from %s on, where %s of timeline %d follows", uint32(t), start, l.next, uint32(l.timeline))
	}
	f, err := l.spool.create(name)
	if err != nil {
		return nil, err
	}
	seg = &segment{name: name, timeline: t, start: start, file: f}
	l.change(func() { l.segments = append(l.segments, seg) })
	return seg, nil
}

// put writes what is new of data, and compares what is not.
func (l *line) put(seg *segment, offset int64, data []byte) error {
	if offset > seg.written {
		return fmt.Errorf("received WAL from %s on, and have it up to %s", seg.start+wal.LSN(offset), seg.end())
	}
	if known := min(int64(len(data)), seg.written-offset); known > 0 {
		b := make([]byte, known)
		if _, err := seg.file.ReadAt(b, offset); err != nil {
			return err
		}
		if !bytes.Equal(b, data[:known]) {
			return &DivergedError{Segment: seg.name, Dir: l.spool.dir}
		}
		l.change(func() { seg.sure = max(seg.sure, offset+known) })
		if data, offset = data[known:], offset+known; len(data) == 0 {
			return nil
		}
	}
	if _, err := seg.file.WriteAt(data, offset); err != nil {
		return err
	}
	l.change(func() {
		seg.written = offset + int64(len(data))
		seg.sure = seg.written
		if seg.written == int64(l.size) {
			seg.whole = true
			l.next = seg.start + wal.LSN(l.size)
		}
	})
	return nil
}

// leave goes on with timeline t at the segment that begins at start. What is being received stays as it is.
func (l *line) leave(t wal.Timeline, start wal.LSN) {
	l.change(func() {
		if s := l.last(); s != nil {
			s.left = true
		}
		l.timeline, l.next, l.begun = t, start, start
	})
}

// sync brings what was received to disk, and gives whole segments their names.
func (l *line) sync() error {
	for {
		l.mu.Lock()
		var seg *segment
		var written int64
		for _, s := range l.segments {
			if !s.done && !s.dropped && (s.synced < s.written || s.whole && !s.named) {
				seg, written = s, s.written
				seg.users.Add(1)
				break
			}
		}
		l.mu.Unlock()
		if seg == nil {
			return nil
		}
		err := datasync(seg.file)
		if err == nil && written == int64(l.size) {
			err = l.spool.finish(seg.name)
		}
		seg.users.Done()
		if err != nil {
			return fmt.Errorf("sync %s: %w", seg.name, err)
		}
		l.change(func() { seg.synced, seg.named = written, written == int64(l.size) })
	}
}

// use returns a segment for which want holds and that the store is to get something of, nil where there is none. The caller calls users.Done.
func (l *line) use(want func(*segment) bool) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		if !s.done && !s.dropped && want(s) {
			s.users.Add(1)
			return s
		}
	}
	return nil
}

// archived takes seg, which is in the archive, out of the line, once nobody uses it any more.
func (l *line) archived(seg *segment) {
	l.change(func() { seg.done = true })
	seg.users.Wait()
	l.change(func() {
		for len(l.segments) > 0 && l.segments[0].done {
			l.base, l.baseOf, l.segments = l.segments[0].end(), l.segments[0].timeline, l.segments[1:]
		}
	})
	seg.file.Close() // all of it was synced, and is in the archive
}

// drop gives up what is being received, as it is archived whole, and goes on behind it.
func (l *line) drop(next wal.LSN) {
	var seg *segment
	l.change(func() {
		if seg = l.last(); seg != nil {
			seg.dropped = true
		}
		l.next = next
	})
	if seg == nil {
		return
	}
	seg.users.Wait()
	l.change(func() {
		l.segments = slices.DeleteFunc(l.segments, func(s *segment) bool { return s == seg })
		if len(l.segments) == 0 {
			l.base, l.baseOf = next, l.timeline
		}
	})
	seg.file.Close() // it is removed
}

// until waits for a change, or for ctx.
func until(ctx context.Context, changed <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
