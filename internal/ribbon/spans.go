package ribbon

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// state says whether something can be used, the better before the worse.
type state int8

const (
	good state = iota
	doubtful
	bad
)

// span is segments of one timeline about which the same is known.
type span struct {
	timeline    wal.Timeline
	first, last wal.SegmentNo
	state       state
	why         string        // what is wrong with each of them, behind its name: "is missing"
	advice      string        // "" for that of segments that are missing
	run         *catalog.Run  // nil where they are not there whole
	tail        *catalog.Tail // of a single segment of which there are pieces, and no whole; else nil
	held        int64         // of tail, how many bytes can be replayed
	verified    bool
	gap         *Gap // that somebody has accepted; nil where they are good or nobody has
}

// archived returns when the segment n of s was stored; zero where it was not.
func (s *span) archived(n wal.SegmentNo) time.Time {
	switch {
	case s.run != nil:
		return s.run.Archived(n)
	case s.tail != nil:
		return s.tail.Modified
	}
	return time.Time{}
}

// storage returns which of several storages s lies in.
func (s *span) storage() string {
	switch {
	case s.run != nil:
		return s.run.Storage
	case s.tail != nil:
		return s.tail.Storage
	}
	return ""
}

// partial reports whether s is a segment of which the archive has the beginning only: nothing behind that can be replayed.
func (s *span) partial(size wal.SegmentSize) bool { return s.tail != nil && s.held < int64(size) }

// lacks reports whether some of s is missing up to lsn.
func (s *span) lacks(lsn wal.LSN, size wal.SegmentSize) bool {
	return s.state == bad || s.partial(size) && size.Start(s.last)+wal.LSN(s.held) < lsn
}

const missing = "is missing"

// prepare brings what is known of segments into the form that spans is made from.
func (c *computer) prepare() {
	size := c.in.WAL.SegmentSize
	for _, k := range c.in.Checked {
		c.checked[k.Timeline] = c.checked[k.Timeline].paint(mark{first: k.First, last: k.Last, when: k.When, text: k.Problem, unread: k.Unread})
	}
	for _, l := range c.in.Locked {
		c.locked[l.Timeline] = c.locked[l.Timeline].paint(mark{first: l.First, last: l.Last, text: l.Why})
	}
	for i := range c.in.Gaps {
		g := &c.in.Gaps[i]
		t, first, err1 := size.ParseSegment(g.First)
		t2, last, err2 := size.ParseSegment(g.Last)
		if err1 != nil || err2 != nil || t != t2 {
			c.warn("an accepted hole makes no sense, and is not counted: %q to %q", g.First, g.Last)
			continue
		}
		c.gaps[t] = c.gaps[t].paint(mark{first: first, last: last, gap: g})
	}
}

// spansOf returns what is known of the segments of timeline t that are archived, ascending.
func (c *computer) spansOf(t wal.Timeline) []span {
	if spans, ok := c.spans[t]; ok {
		return spans
	}
	var spans []span
	if of := c.in.WAL.Timeline(t); of != nil {
		for i := range of.Runs {
			spans = c.cut(spans, t, &of.Runs[i])
		}
		for _, n := range of.Empty {
			s := span{timeline: t, first: n, last: n, state: bad, why: "has no content", advice: adviceDamaged}
			s.accept(c.gaps[t], &spans)
		}
		for i := range of.Tails {
			if p := &of.Tails[i]; !p.Whole && p.Held > 0 && !slices.Contains(of.Empty, p.Segment) {
				c.inPieces(t, p).accept(c.gaps[t], &spans)
			}
		}
		slices.SortFunc(spans, func(x, y span) int { return cmp.Compare(x.first, y.first) })
	}
	c.spans[t] = spans
	return spans
}

// cut appends the run in pieces of which the same is known.
func (c *computer) cut(spans []span, t wal.Timeline, run *catalog.Run) []span {
	checked, locked := c.checked[t], c.locked[t]
	for n := run.First; n <= run.Last; {
		seen, until := checked.at(n)
		lock, until2 := locked.at(n)
		end := min(run.Last, until, until2)
		if seen != nil && run.Newest.After(seen.when) { // of what was stored later it does not speak
			fresh := !run.Archived(n).After(seen.when)
			m := n
			for m < end && !run.Archived(m+1).After(seen.when) == fresh {
				m++
			}
			if end = m; !fresh {
				seen = nil
			}
		}
		s := span{timeline: t, first: n, last: end, run: run, verified: seen != nil && seen.text == "" && !seen.unread}
		switch {
		case seen != nil && seen.text != "":
			s.state, s.why, s.advice = bad, "is damaged: "+seen.text, adviceDamaged
		case lock != nil:
			s.state, s.why, s.advice = doubtful, "cannot be read here: "+lock.text, adviceLocked
		case c.in.ProvenOnly && !s.verified:
			s.state, s.why, s.advice = doubtful, "was not verified", adviceVerify
		}
		s.accept(c.gaps[t], &spans)
		if n = end + 1; n == 0 {
			break
		}
	}
	return spans
}

// inPieces returns what is known of a segment of which there are pieces.
func (c *computer) inPieces(t wal.Timeline, p *catalog.Tail) span {
	size := c.in.WAL.SegmentSize
	s := span{timeline: t, first: p.Segment, last: p.Segment, tail: p, held: p.Held}
	seen, _ := c.checked[t].at(p.Segment)
	lock, _ := c.locked[t].at(p.Segment)
	read := c.in.tail(t, p.Segment)
	if read != nil && read.Problem != "" {
		s.held = min(s.held, read.Good)
	}
	switch {
	case seen != nil && seen.text != "" && !p.Modified.After(seen.when):
		s.state, s.why, s.advice = bad, "is damaged: "+seen.text, adviceDamaged
	case s.held < wal.HeaderLen:
		s.state, s.why, s.advice = bad, "is damaged: "+read.Problem, adviceDamaged
	case lock != nil:
		s.state, s.why, s.advice = doubtful, "cannot be read here: "+lock.text, adviceLocked
	case c.in.ProvenOnly:
		s.state, s.why, s.advice = doubtful, "was not verified", adviceVerify
	case s.partial(size):
		s.why = fmt.Sprintf("is there in pieces only, up to %s", size.Start(p.Segment)+wal.LSN(s.held))
	}
	if m, _ := c.gaps[t].at(p.Segment); m != nil {
		s.gap = m.gap
	}
	return s
}

// accept appends s to spans, cut by which of its segments somebody has accepted as lost.
func (s span) accept(gaps marks, spans *[]span) {
	if s.state != bad {
		*spans = append(*spans, s)
		return
	}
	for n, last := s.first, s.last; n <= last; n = s.last + 1 {
		m, until := gaps.at(n)
		s.first, s.last, s.gap = n, min(last, until), nil
		if m != nil {
			s.gap = m.gap
		}
		if *spans = append(*spans, s); s.last == 1<<64-1 {
			return
		}
	}
}

// along returns every segment along p from first to last: what is archived, and what is not.
func (c *computer) along(p catalog.Path, first, last wal.SegmentNo) []span {
	var items []span
	for s := range p.Stretches(c.in.WAL.SegmentSize, first) {
		if s.First > last {
			break
		}
		s.Last = min(s.Last, last)
		next := s.First
		lack := func(until wal.SegmentNo) { // from next to before until
			if next < until {
				span{timeline: s.Timeline, first: next, last: until - 1, state: bad, why: missing}.accept(c.gaps[s.Timeline], &items)
			}
		}
		spans := c.spansOf(s.Timeline)
		i, _ := slices.BinarySearchFunc(spans, s.First, func(o span, n wal.SegmentNo) int { return cmp.Compare(o.last, n) })
		for ; i < len(spans) && spans[i].first <= s.Last; i++ {
			o := spans[i]
			o.first, o.last = max(o.first, s.First), min(o.last, s.Last)
			lack(o.first)
			items = append(items, o)
			next = o.last + 1
		}
		lack(s.Last + 1)
	}
	return items
}

// ends returns the first and the last segment that is archived along p; false where none is. Of segments in pieces those count that go on from the last whole one:
// what comes behind such is sent while that is still on its way.
func (c *computer) ends(p catalog.Path) (first, last wal.SegmentNo, ok bool) {
	size := c.in.WAL.SegmentSize
	over := false // the last one has only a beginning
	for s := range p.Stretches(size, 0) {
		spans := c.spansOf(s.Timeline)
		i, _ := slices.BinarySearchFunc(spans, s.First, func(o span, n wal.SegmentNo) int { return cmp.Compare(o.last, n) })
		for ; i < len(spans) && spans[i].first <= s.Last; i++ {
			o := &spans[i]
			if o.tail != nil && (!ok || over || o.first != last+1) {
				continue
			}
			if !ok {
				first = max(o.first, s.First)
			}
			last, ok, over = min(o.last, s.Last), true, o.partial(size)
		}
	}
	return first, last, ok
}

// names says which segments lack what, for people: the first ones of several that the same is wrong with.
func names(size wal.SegmentSize, s span) string {
	first := size.Name(s.timeline, s.first)
	if s.first == s.last {
		return first + " " + s.why
	}
	return fmt.Sprintf("%s (and %d more) %s", first, uint64(s.last-s.first), s.why)
}
