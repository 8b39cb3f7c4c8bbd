package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sort"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
	"holdfast/internal/store"
)

// wlog is the archived segments along a path, from where reading begins.
type wlog struct {
	archive *archive.Archive
	size    wal.SegmentSize
	path    catalog.Path
	until   wal.LSN           // nothing from there on is read; 0 for no bound
	spans   []catalog.Stretch // without one missing in each; ascending
	before  []catalog.Stretch // missing before the span of the same index
	oldest  bool              // what is wanted begins with the oldest segment there is
	early   bool              // or before it

	failed error // why an object could not be read, the first time
	inARow int   // segments that could not be read one behind the other, without a record between
}

// maxFailed is how many segments may be unreadable one behind the other: then it is not they that are damaged, but a key, or the storage.
const maxFailed = 16

// errEnough ends reading before the log ends.
var errEnough = errors.New("enough")

// findLog finds out where to begin.
func findLog(ctx context.Context, a *archive.Archive, s Stretch) (*wlog, error) {
	l := &wlog{archive: a, size: s.WAL.SegmentSize, path: s.Path, until: s.To}
	l.spans = spans(s.WAL, s.Path)
	if len(l.spans) == 0 {
		return nil, fmt.Errorf("the archive has no WAL along timeline %d", uint32(s.Path.Timeline()))
	}
	begin := 0 // number of a segment, counted over all spans
	if s.From != 0 {
		begin = l.at(l.size.Segment(s.From))
		l.early = s.From < l.size.Start(l.spans[0].First)
	}
	if !s.Since.IsZero() {
		n, err := l.seek(ctx, s.WAL, s.Since)
		if err != nil {
			return nil, err
		}
		begin = max(begin, n)
	}
	l.oldest = begin == 0
	l.cut(max(begin-1, 0)) // what transactions did before they ended
	return l, nil
}

// spans returns what there is of the segments along a path.
func spans(w *catalog.WAL, p catalog.Path) (all []catalog.Stretch) {
	for s := range p.Stretches(w.SegmentSize, 0) {
		t := w.Timeline(s.Timeline)
		if t == nil {
			continue
		}
		for _, r := range t.Runs {
			first, last := max(r.First, s.First), min(r.Last, s.Last)
			if first > last {
				continue
			}
			if n := len(all); n > 0 && all[n-1].Timeline == s.Timeline && all[n-1].Last+1 == first {
				all[n-1].Last = last
			} else {
				all = append(all, catalog.Stretch{Timeline: s.Timeline, First: first, Last: last})
			}
		}
	}
	return all
}

// count returns how many segments there are.
func (l *wlog) count() (n int) {
	for _, s := range l.spans {
		n += int(s.Last-s.First) + 1
	}
	return n
}

// segment returns the i-th segment.
func (l *wlog) segment(i int) (wal.Timeline, wal.SegmentNo) {
	for _, s := range l.spans {
		if n := int(s.Last-s.First) + 1; i < n {
			return s.Timeline, s.First + wal.SegmentNo(i)
		} else {
			i -= n
		}
	}
	return 0, 0
}

// at returns the index of segment no, or of the first behind it.
func (l *wlog) at(no wal.SegmentNo) int {
	i := 0
	for _, s := range l.spans {
		if no <= s.Last {
			if no > s.First {
				i += int(no - s.First)
			}
			return i
		}
		i += int(s.Last-s.First) + 1
	}
	return i
}

// cut leaves the first n segments out.
func (l *wlog) cut(n int) {
	n = min(n, l.count()-1)
	for {
		s := &l.spans[0]
		if have := int(s.Last-s.First) + 1; n >= have {
			l.spans, n = l.spans[1:], n-have
			continue
		}
		s.First += wal.SegmentNo(n)
		return
	}
}

// clocks is how far the clock of the storage, which says when a segment was stored, may be behind the server's.
const clocks = 10 * time.Minute

// seek returns the index of a segment with which to begin for what happened since a time: one in which something happened before, or the first of all.
func (l *wlog) seek(ctx context.Context, w *catalog.WAL, since time.Time) (int, error) {
	n := l.count()
	// A segment was stored after all that is in it. Copies of an archive are younger.
	low := n
	for low > 0 {
		t, no := l.segment(low - 1)
		r := w.Find(t, no)
		if r != nil && r.Archived(no).Before(since.Add(-clocks)) {
			break
		}
		low--
	}
	if n-low <= few {
		return max(low-1, 0), nil
	}
	var failed error
	known := map[int]time.Time{} // of what was looked at; zero where nothing has a time
	i := sort.Search(n-low, func(i int) bool {
		for k := low + i; k < min(n, low+i+maxIdle) && failed == nil; k++ {
			at, looked := known[k]
			if !looked {
				if at, failed = l.firstTime(ctx, k); failed != nil {
					break
				}
				known[k] = at
			}
			if !at.IsZero() {
				return !at.Before(since)
			}
		}
		return true // better too early
	})
	return max(low+i-1, 0), failed
}

// few is how many segments are read sooner than it is found out which of them can be left away.
const few = 32

// maxIdle is in how many segments a time is looked for, behind one in which nothing has any.
const maxIdle = 64

// firstTime returns when what comes first in segment i happened that has a time; zero where nothing has.
func (l *wlog) firstTime(ctx context.Context, i int) (at time.Time, err error) {
	t, no := l.segment(i)
	src, err := l.archive.OpenWAL(ctx, l.size.Name(t, no))
	if errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil { // the scan says so
		return at, nil
	}
	if err != nil {
		return at, err
	}
	defer src.Close() // only read
	r, err := walrec.NewReader(src, 0)
	if err != nil {
		return at, ctx.Err()
	}
	for {
		rec, err := r.Next()
		if err != nil { // the scan says what is wrong with it
			return at, ctx.Err()
		}
		if rec.RM == walrec.RMXact {
			if x, ok, err := rec.XactEnd(); ok && err == nil {
				return x.Time, nil
			}
		}
	}
}

// read hands all records to sc.
func (l *wlog) read(ctx context.Context, sc *scanner) error {
	left := l.spans
	var group []catalog.Stretch
	for len(left) > 0 && (l.until == 0 || l.size.Start(left[0].First) < l.until) {
		group, left = joined(left)
		next, err := l.group(ctx, group, len(left) == 0, sc)
		switch {
		case errors.Is(err, errEnough):
			return l.unread(sc)
		case err != nil:
			return err
		}
		if rest := after(group, next); len(rest) > 0 { // something in it cannot be read
			left = append(rest, left...)
		}
		if len(left) > 0 {
			if err := sc.gap(group, next, left[0]); err != nil {
				return err
			}
		}
	}
	end := sc.report.To
	if len(group) > 0 {
		end = max(end, l.size.Start(group[len(group)-1].Last+1))
	}
	sc.report.NoEnd = l.until == 0 || end < l.until
	return l.unread(sc)
}

// unread returns why nothing at all was read, where objects could not be.
func (l *wlog) unread(sc *scanner) error {
	if sc.report.To == 0 {
		return l.failed
	}
	return nil
}

// joined splits off the spans that follow one another without one missing between.
func joined(all []catalog.Stretch) (group, rest []catalog.Stretch) {
	n := 1
	for n < len(all) && all[n].First == all[n-1].Last+1 {
		n++
	}
	return all[:n:n], all[n:]
}

// after returns what is left of a group from segment no on; 0 is nothing.
func after(group []catalog.Stretch, no wal.SegmentNo) (rest []catalog.Stretch) {
	if no == 0 {
		return nil
	}
	for _, s := range group {
		if s.Last >= no {
			s.First = max(s.First, no)
			rest = append(rest, s)
		}
	}
	return rest
}

// group reads segments of which none is missing, final says that there are none behind them. Where one is damaged next is the one behind it.
func (l *wlog) group(ctx context.Context, group []catalog.Stretch, final bool, sc *scanner) (next wal.SegmentNo, err error) {
	src := newSegments(ctx, l, group, final)
	defer src.close()
	r, err := walrec.NewReader(src, l.until)
	if err == nil {
		sc.begin(r.Version(), l.size, group[0].First)
		for err == nil {
			var rec *walrec.Record
			if rec, err = r.Next(); err == nil {
				l.inARow = 0
				err = sc.record(rec, r.Timeline())
			}
		}
	}
	sc.report.Segments += src.opened
	switch {
	case sc.failed != nil:
		return 0, sc.failed
	case errors.Is(err, errEnough):
		return 0, err
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case src.err != nil:
		if l.failed == nil {
			l.failed = src.err
		}
		if l.inARow++; src.store || l.inARow >= maxFailed {
			return 0, src.err
		}
		sc.note("WAL segment %s cannot be read: %v", l.size.Name(src.timeline, src.at), src.err)
		return src.at + 1, nil
	case errors.Is(err, io.EOF):
		return 0, nil
	}
	at := src.at
	if fault := new(walrec.FaultError); errors.As(err, &fault) {
		at = l.size.Segment(fault.LSN)
	}
	// In the last segment of all that is the end.
	if final && errors.Is(err, walrec.ErrEnd) && at >= group[len(group)-1].Last {
		return 0, nil
	}
	sc.note("WAL segment %s: %v", l.size.Name(src.timeline, at), err)
	return at + 1, nil
}

// inAdvance is how many segments are fetched and decompressed before they are asked for.
const inAdvance = 4

// segments reads archived segments one behind the other, and the next ones ahead.
type segments struct {
	ctx      context.Context
	cancel   context.CancelFunc
	log      *wlog
	rest     []catalog.Stretch // not read yet
	unopened []catalog.Stretch // the end of rest
	coming   []*opening        // what of rest is before that
	final    bool              // behind the last one there may be one in pieces
	cur      io.ReadCloser
	left     int64 // bytes of cur that are to come
	at       wal.SegmentNo
	timeline wal.Timeline
	opened   int
	err      error // why reading failed, but io.EOF
	store    bool  // err is the storage's: others will fail likewise
}

// opening is a segment that is being opened.
type opening struct {
	done chan struct{}
	r    io.ReadCloser
	err  error
}

func newSegments(ctx context.Context, l *wlog, group []catalog.Stretch, final bool) *segments {
	ctx, cancel := context.WithCancel(ctx)
	return &segments{ctx: ctx, cancel: cancel, log: l, rest: slices.Clone(group), unopened: slices.Clone(group), final: final}
}

// first takes the first segment of all away.
func first(all *[]catalog.Stretch) (wal.Timeline, wal.SegmentNo) {
	s := &(*all)[0]
	timeline, no := s.Timeline, s.First
	if s.First++; s.First > s.Last {
		*all = (*all)[1:]
	}
	return timeline, no
}

// beyond reports whether a segment begins where reading is to end.
func (l *wlog) beyond(no wal.SegmentNo) bool { return l.until != 0 && l.size.Start(no) >= l.until }

// open returns the first segment of coming, and has those behind it opened.
func (s *segments) open() (io.ReadCloser, error) {
	for len(s.coming) < inAdvance && len(s.unopened) > 0 {
		timeline, no := first(&s.unopened)
		if s.log.beyond(no) {
			s.unopened = nil
			break
		}
		o := &opening{done: make(chan struct{})}
		s.coming = append(s.coming, o)
		go func() {
			defer close(o.done)
			if o.r, o.err = s.log.archive.OpenWAL(s.ctx, s.log.size.Name(timeline, no)); o.err == nil {
				o.r = archive.ReadAhead(o.r)
			}
		}()
	}
	o := s.coming[0]
	s.coming = s.coming[1:]
	<-o.done
	return o.r, o.err
}

// ofStore says whether reading an object failed because the storage did not give it, not because of what is in it.
func ofStore(err error) bool {
	if errors.Is(err, fs.ErrNotExist) { // it went meanwhile
		return false
	}
	service, local := new(store.OpError), new(fs.PathError)
	return errors.As(err, &service) || errors.As(err, &local)
}

func (s *segments) Read(p []byte) (int, error) {
	for s.left == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n, err := s.cur.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	switch {
	case err == io.EOF && s.left > 0:
		err = fmt.Errorf("%w: %d bytes are missing", io.ErrUnexpectedEOF, s.left) // it is damaged, and what is behind it can be read
	case err == io.EOF:
		err = nil
	case err != nil:
		s.err, s.store = err, ofStore(err)
	}
	return n, err
}

// next opens the next segment.
func (s *segments) next() (err error) {
	s.closeOne()
	planned := len(s.rest) > 0
	switch {
	case planned:
		s.timeline, s.at = first(&s.rest)
	case s.final && s.writing(): // the one that the server is writing, as far as it was streamed
		s.at, s.timeline, s.final = s.at+1, s.log.path.Timeline(), false
	default:
		return io.EOF
	}
	if s.log.beyond(s.at) {
		return io.EOF
	}
	var r io.ReadCloser
	if planned {
		r, err = s.open()
	} else {
		r, err = s.log.archive.OpenWAL(s.ctx, s.log.size.Name(s.timeline, s.at))
	}
	if errors.Is(err, fs.ErrNotExist) && len(s.rest) == 0 && !s.final {
		return io.EOF
	}
	if err != nil {
		s.err, s.store = err, !errors.Is(err, fs.ErrNotExist)
		return err
	}
	s.cur, s.left = r, int64(s.log.size)
	s.opened++
	return nil
}

// writing reports whether the segment behind the current one is the newest timeline's: that one's own next, or after a failover its first.
func (s *segments) writing() bool {
	for of := range s.log.path.Stretches(s.log.size, s.at+1) {
		return of.Timeline == s.log.path.Timeline()
	}
	return false
}

// close ends reading, ahead too.
func (s *segments) close() {
	s.cancel()
	for _, o := range s.coming {
		if <-o.done; o.err == nil {
			_ = o.r.Close() // only read
		}
	}
	s.closeOne()
}

func (s *segments) closeOne() {
	if s.cur != nil {
		_ = s.cur.Close() // only read
		s.cur = nil
	}
}
