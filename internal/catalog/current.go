package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/pg/wal"
)

// Evidence is what tells, beside the catalog itself, which timeline a cluster is on. The zero value is none.
type Evidence struct {
	WAL       *WAL                   // nil where it was not listed
	Server    wal.Timeline           // that the live cluster says it is on; 0 where it was not asked or is not reached
	Forgotten map[wal.Timeline]Aside // timelines that were put aside once
}

// Aside says of a timeline that was put aside how old its objects were then: those that were brought back look as if they had been stored that day.
type Aside struct {
	Newest time.Time // when the newest of its objects had been stored
	Until  time.Time // when all was brought back, by the store's clock; zero while some of it is put aside
}

// Current says which timeline a cluster is on.
type Current struct {
	Timeline wal.Timeline
	Why      string // a clause: how that is known
	Others   []Line // ends of other lines than the one that leads to Timeline, the likeliest first
	Unknown  bool   // the server is on a timeline of which the archive knows nothing, and Timeline is what the archive alone says

	backups int // that no other line can use
}

// Certain reports whether there is no other timeline that it could as well be.
func (c Current) Certain() bool {
	return !slices.ContainsFunc(c.Others, func(l Line) bool { return !l.Left })
}

// Line is the end of a line of timelines: what no other timeline goes on from.
type Line struct {
	Timeline wal.Timeline
	Newest   time.Time // the latest sign of life: WAL or history archived, or a backup finished; zero where there is none
	Segments uint64    // of WAL that no other line has
	Backups  int       // that no other line can use
	Left     bool      // the timeline was left for another, and nothing was archived on it since that began
	For      wal.Timeline
}

// soon is within which time two signs of life say nothing about which line is alive.
const soon = time.Hour

// Current decides which timeline the cluster is on. A server that says it is believed, where the archive knows its timeline. Else it is the end of a line
// of descent: where there are several, the one that has been active last, and among those that were active within the same hour one that was not left for
// another, one that has backups of its own, the one with more WAL of its own. But where the one that has been active last has no backup of its own, and another
// has, and more WAL: a clone goes on when its original is down.
func (c *Catalog) Current(e Evidence) Current { return c.current(e, nil) }

// current is Current among the lines that want holds for; nil is all.
func (c *Catalog) current(e Evidence, want func(wal.Timeline) bool) Current {
	g := c.graph(e)
	lines := g.lines()
	if want != nil {
		lines = slices.DeleteFunc(lines, func(l Line) bool { return !want(l.Timeline) })
	}
	rank(lines)
	cur := Current{}
	if len(lines) == 0 {
		return cur
	}
	cur.Timeline = lines[0].Timeline
	if e.Server != 0 && g.known[e.Server] && (want == nil || want(e.Server)) {
		cur.Timeline = e.Server
		cur.Why = "the server says that it is on it"
	} else if e.Server != 0 && want == nil {
		cur.Unknown = true
		cur.Why = fmt.Sprintf("the server is on timeline %d, of which the archive knows nothing yet; ", e.Server)
	}
	for _, l := range lines {
		if l.Timeline != cur.Timeline {
			cur.Others = append(cur.Others, l)
		} else {
			cur.backups = l.Backups
		}
	}
	if cur.Timeline != e.Server {
		cur.Why += why(lines, g.parent[cur.Timeline])
	}
	return cur
}

// why says why the first of lines was chosen.
func why(lines []Line, parent wal.Timeline) string {
	first := lines[0]
	if len(lines) == 1 {
		if parent != 0 {
			return fmt.Sprintf("all others lead to it; it began when timeline %d was left", parent)
		}
		return "the archive knows no other"
	}
	other := lines[1]
	at := func(t time.Time) string {
		if t.IsZero() {
			return "at a time that is not known"
		}
		return t.UTC().Format("2006-01-02 15:04:05 MST")
	}
	switch {
	case other.Left && other.For == first.Timeline:
		return fmt.Sprintf("timeline %d was left for it, and archived nothing since it began", other.Timeline)
	case other.Newest.Sub(first.Newest) > soon:
		return fmt.Sprintf("it has %d segments and %d backups of its own; timeline %d, which was active later, %s, has %d and none", first.Segments, first.Backups,
			other.Timeline, at(other.Newest), other.Segments)
	case first.Newest.Sub(other.Newest) > soon:
		return fmt.Sprintf("it was active last, %s; timeline %d was not since %s", at(first.Newest), other.Timeline, at(other.Newest))
	case other.Left:
		return fmt.Sprintf("timeline %d was left, and archived nothing since", other.Timeline)
	case first.Backups > 0 && other.Backups == 0:
		return fmt.Sprintf("it has backups of its own, and timeline %d, which was active within the same hour, has none", other.Timeline)
	case first.Segments > other.Segments:
		return fmt.Sprintf("it has %d segments of its own, and timeline %d, which was active within the same hour, has %d", first.Segments, other.Timeline, other.Segments)
	case first.Newest.After(other.Newest):
		return fmt.Sprintf("it was active a little later than timeline %d, %s", other.Timeline, at(first.Newest))
	}
	return fmt.Sprintf("it is the higher one; nothing else tells it from timeline %d", other.Timeline)
}

// rank puts the likeliest line first.
func rank(lines []Line) {
	var newest time.Time
	for _, l := range lines {
		if l.Newest.After(newest) {
			newest = l.Newest
		}
	}
	slices.SortFunc(lines, func(a, b Line) int {
		first := func(a, b bool) int { // what holds comes first
			switch {
			case a == b:
				return 0
			case a:
				return -1
			}
			return 1
		}
		recent := func(l Line) bool { return newest.Sub(l.Newest) <= soon }
		if by := first(recent(a), recent(b)); by != 0 {
			return by
		}
		if !recent(a) {
			return cmp.Or(b.Newest.Compare(a.Newest), cmp.Compare(b.Timeline, a.Timeline))
		}
		return cmp.Or(first(!a.Left, !b.Left), first(a.Backups > 0, b.Backups > 0), cmp.Compare(b.Segments, a.Segments),
			b.Newest.Compare(a.Newest), cmp.Compare(b.Timeline, a.Timeline))
	})
	for i, l := range lines { // the first of a clone that outlived what it is a clone of
		if i > 0 && lines[0].Backups == 0 && !l.Left && l.Backups > 0 && l.Segments > lines[0].Segments {
			copy(lines[1:i+1], lines[:i])
			lines[0] = l
			break
		}
	}
}

// graph is who descends from whom.
type graph struct {
	c        *Catalog
	e        Evidence
	known    map[wal.Timeline]bool
	parent   map[wal.Timeline]wal.Timeline   // 0 where there is none or it is not known
	begin    map[wal.Timeline]wal.LSN        // where the parent was left
	children map[wal.Timeline][]wal.Timeline // ascending
	size     wal.SegmentSize
	backups  map[wal.Timeline][]*Backup
}

func (c *Catalog) graph(e Evidence) *graph {
	g := &graph{c: c, e: e, known: map[wal.Timeline]bool{}, parent: map[wal.Timeline]wal.Timeline{}, begin: map[wal.Timeline]wal.LSN{},
		children: map[wal.Timeline][]wal.Timeline{}, backups: map[wal.Timeline][]*Backup{}}
	if e.WAL != nil {
		g.size = e.WAL.SegmentSize
	} else {
		g.size, _ = c.SegmentSize()
	}
	for i := range c.Backups {
		t := c.Backups[i].Timeline()
		g.known[t] = true
		g.backups[t] = append(g.backups[t], &c.Backups[i])
	}
	if e.WAL != nil {
		for _, t := range e.WAL.Timelines {
			g.known[t.Timeline] = true
		}
	}
	for t := range c.BadHistory {
		g.known[t] = true
	}
	for t, branches := range c.Histories {
		g.known[t] = true
		for i, b := range branches {
			g.known[b.Timeline] = true
			child := t
			if i+1 < len(branches) {
				child = branches[i+1].Timeline
			}
			if g.parent[child] == 0 || child == t { // its own history knows best
				g.parent[child], g.begin[child] = b.Timeline, b.Switch
			}
		}
	}
	for child, parent := range g.parent {
		g.children[parent] = append(g.children[parent], child)
	}
	if len(g.known) == 0 {
		g.known[1] = true
	}
	return g
}

// lines returns the ends of all lines.
func (g *graph) lines() (lines []Line) {
	ends := map[wal.Timeline]bool{}
	for t := range g.known {
		var after wal.LSN
		for _, c := range g.children[t] {
			after = max(after, g.begin[c])
		}
		l := Line{Timeline: t}
		g.add(&l, t, after)
		alive := t == g.e.Server // then it has not been left, though nothing may have been archived since
		if len(g.children[t]) > 0 && l.Segments == 0 && l.Backups == 0 && !alive {
			continue
		}
		if len(g.children[t]) > 0 && !alive {
			for _, c := range g.children[t] {
				if began := g.began(c); !began.IsZero() && !l.Newest.After(began) {
					l.Left, l.For = true, c
				}
			}
		}
		ends[t] = true
		lines = append(lines, l)
	}
	for i := range lines {
		l := &lines[i]
		if len(g.children[l.Timeline]) > 0 { // what comes before is that of its children too
			continue
		}
		for t := l.Timeline; ; {
			parent := g.parent[t]
			if parent == 0 || len(g.children[parent]) > 1 || ends[parent] {
				break
			}
			g.add(l, parent, 0)
			t = parent
		}
	}
	return lines
}

// add enters into l what there is of timeline t, of WAL and backups behind after where that is not 0.
func (g *graph) add(l *Line, t wal.Timeline, after wal.LSN) {
	sign := func(at time.Time) {
		if at = g.e.Forgotten[t].Of(at); at.After(l.Newest) {
			l.Newest = at
		}
	}
	for _, b := range g.backups[t] {
		if finish, ok := b.FinishLSN(); after == 0 || !ok || finish > after {
			l.Backups++
			sign(b.Created())
		}
	}
	if g.e.WAL == nil {
		return
	}
	of := g.e.WAL.Timeline(t)
	if of == nil {
		return
	}
	if of.History != nil && after == 0 {
		sign(of.History.Archived)
	}
	var from wal.SegmentNo
	if after != 0 {
		from = g.size.Segment(after) + 1 // the segment of the branch itself is often archived whole by both
	}
	for i := range of.Tails {
		if p := &of.Tails[i]; p.Segment >= from {
			sign(p.Modified)
		}
	}
	for _, r := range of.Runs {
		if r.Last < from {
			continue
		}
		if r.First >= from {
			l.Segments += r.Count()
			sign(r.Newest)
			continue
		}
		l.Segments += uint64(r.Last-from) + 1
		for n := from; ; n++ {
			sign(r.Archived(n))
			if n == r.Last || r.archived == nil && n+1 < r.Last {
				break
			}
		}
		sign(r.Archived(r.Last))
	}
}

// Of returns when an object had been stored that the store says was stored at at.
func (a Aside) Of(at time.Time) time.Time {
	if a.Newest.IsZero() || !a.Until.IsZero() && at.After(a.Until) || a.Newest.After(at) {
		return at
	}
	return a.Newest
}

// began returns when the first sign of timeline t was archived; zero where nothing tells.
func (g *graph) began(t wal.Timeline) (first time.Time) {
	sign := func(at time.Time) {
		if at = g.e.Forgotten[t].Of(at); first.IsZero() || at.Before(first) {
			first = at
		}
	}
	if g.e.WAL != nil {
		if of := g.e.WAL.Timeline(t); of != nil {
			if of.History != nil {
				sign(of.History.Archived)
			}
			for _, r := range of.Runs {
				sign(r.Oldest)
			}
		}
	}
	for _, b := range g.backups[t] {
		sign(b.Created())
	}
	return first
}

// Descendants returns the timelines that grew out of t, ascending, by what the history files say that can be read.
func (c *Catalog) Descendants(t wal.Timeline) (all []wal.Timeline) {
	for other, branches := range c.Histories {
		if slices.ContainsFunc(branches, func(b Branch) bool { return b.Timeline == t }) {
			all = append(all, other)
		}
	}
	slices.Sort(all)
	return all
}
