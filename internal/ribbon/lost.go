package ribbon

import (
	"fmt"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// NotLostError says that segments cannot be accepted as lost.
type NotLostError struct {
	Segment string
	Reason  string
	Advice  string
}

func (e *NotLostError) Error() string { return e.Segment + " " + e.Reason }

// Hint says how to go on.
func (e *NotLostError) Hint() string { return e.Advice }

// CheckLost returns nil when the segments from first to last, names of one timeline, can be accepted as lost: each is missing or known to be damaged, and
// there is WAL behind them, on their timeline or on one that goes on from it. Otherwise it is a *NotLostError.
func (in Input) CheckLost(first, last string) error {
	if in.WAL == nil {
		return fmt.Errorf("the archive cannot be read")
	}
	size := in.WAL.SegmentSize
	t, from, err := size.ParseSegment(first)
	if err != nil {
		return err
	}
	t2, to, err := size.ParseSegment(last)
	if err != nil {
		return err
	}
	if t != t2 || to < from {
		return &NotLostError{last, fmt.Sprintf("does not come behind %s on its timeline", first), ""}
	}
	c := &computer{in: &in, checked: map[wal.Timeline]marks{}, locked: map[wal.Timeline]marks{}, gaps: map[wal.Timeline]marks{}, spans: map[wal.Timeline][]span{}}
	c.prepare()
	for _, s := range c.spansOf(t) {
		if s.state != bad && !s.partial(size) && s.first <= to && s.last >= from {
			return &NotLostError{size.Name(t, max(s.first, from)), "is archived, and nothing is known to be wrong with it",
				"name the segments that `holdfast ribbon` calls missing or damaged; `holdfast verify` reads what is there"}
		}
	}
	if !c.goesOn(t, to) {
		return &NotLostError{last, "may yet come: nothing behind it is archived", "`pg_stat_archiver` on the server says whether archiving is at work"}
	}
	return nil
}

// goesOn reports whether anything behind segment n of timeline t is archived, there or on a timeline that goes on from it.
func (c *computer) goesOn(t wal.Timeline, n wal.SegmentNo) bool {
	behind := func(p catalog.Path) bool {
		_, last, any := c.ends(p)
		return any && last > n
	}
	if behind(catalog.Path{{Timeline: t}}) {
		return true
	}
	for child := range c.in.Catalog.Histories {
		p, err := c.in.Catalog.PathTo(child)
		if leg, on := p.Leg(t); err == nil && on && leg.End != 0 && c.in.WAL.SegmentSize.Segment(leg.End) > n && behind(p) {
			return true
		}
	}
	return false
}
