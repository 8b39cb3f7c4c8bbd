package ribbon

import (
	"cmp"
	"slices"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// axis is the log along a path, with all that is known of it.
type axis struct {
	c     *computer
	path  catalog.Path
	items []span        // without a gap between them
	bases []*base       // that can be restored along the path if they can be restored, in order of their starts
	sure  []interval    // that hold if what is doubtful is bad
	maybe []interval    // that hold if what is doubtful is good
	end   wal.LSN       // of all that is known
	begin wal.LSN       // of all that is known
	last  wal.SegmentNo // that is archived, whatever its state
	bare  bool          // nothing is archived
	err   error         // why the path is not known: then nothing is sure
	short []Stretch     // the verdict
	size  wal.SegmentSize
}

// interval is segments of which each can be used, and what they can be replayed over.
type interval struct {
	first, last wal.SegmentNo
	bases       []*base // whose own WAL is among them, in order of their starts
	from        wal.LSN // where the first of them was finished; meaningless without
	i, j        int     // its items are [i:j]
}

// axisOf judges the log along timeline t.
func (c *computer) axisOf(t wal.Timeline) *axis {
	if x, ok := c.axes[t]; ok {
		return x
	}
	x := &axis{c: c, size: c.in.WAL.SegmentSize}
	c.axes[t] = x
	x.path, x.err = c.in.Catalog.PathTo(t)
	if x.err != nil {
		x.path = catalog.Path{{Timeline: t}}
	}
	for _, b := range c.bases {
		if b.system && b.usable(x.path) {
			x.bases = append(x.bases, b)
		}
	}
	slices.SortStableFunc(x.bases, func(a, b *base) int { return cmp.Compare(a.start, b.start) })
	first, last, archived := c.ends(x.path)
	x.bare, x.last = !archived, last
	if !archived && len(x.bases) == 0 {
		return x
	}
	if !archived {
		first = x.bases[0].first
	}
	for _, b := range x.bases {
		first, last = min(first, b.first), max(last, b.last)
	}
	x.begin = x.size.Start(first)
	x.items = c.along(x.path, first, last)
	if archived {
		x.end = x.behind(x.last)
	}
	for _, b := range x.bases {
		x.end = max(x.end, b.finish)
	}
	if x.err == nil {
		x.sure = x.intervals(good)
	}
	x.maybe = x.intervals(doubtful)
	x.short = c.qualified(x, x.stretches())
	return x
}

// intervals returns those that have a base, if all up to that state can be used.
func (x *axis) intervals(upTo state) []interval {
	var all []interval
	next := 0 // of bases
	for i := 0; i < len(x.items); {
		if x.items[i].state > upTo {
			i++
			continue
		}
		v := interval{first: x.items[i].first, i: i}
		for i < len(x.items) && x.items[i].state <= upTo {
			v.last = x.items[i].last
			if i++; x.items[i-1].partial(x.size) {
				break
			}
		}
		v.j = i
		for ; next < len(x.bases) && x.bases[next].first <= v.last; next++ {
			b := x.bases[next]
			if b.state > upTo || b.first < v.first || b.last > v.last || b.finish > x.to(&v) {
				continue
			}
			if len(v.bases) == 0 || b.finish < v.from {
				v.from = b.finish
			}
			v.bases = append(v.bases, b)
		}
		if len(v.bases) > 0 {
			all = append(all, v)
		}
	}
	return all
}

// to returns where an interval ends.
func (x *axis) to(v *interval) wal.LSN { return x.behind(v.last) }

// behind returns where segment n ends, or what can be replayed of it. The last one that can be named ends one byte early, at the largest position there is.
func (x *axis) behind(n wal.SegmentNo) wal.LSN {
	if s := x.item(n); s != nil && s.partial(x.size) {
		return x.size.Start(n) + wal.LSN(s.held)
	}
	if lsn := x.size.Start(n + 1); lsn > x.size.Start(n) {
		return lsn
	}
	return 1<<64 - 1
}

// find returns the first item that ends at segment n or behind it.
func (x *axis) find(n wal.SegmentNo) int {
	i, _ := slices.BinarySearchFunc(x.items, n, func(s span, n wal.SegmentNo) int { return cmp.Compare(s.last, n) })
	return i
}

// item returns the item that has segment n; nil where none has.
func (x *axis) item(n wal.SegmentNo) *span {
	i := x.find(n)
	if i == len(x.items) || x.items[i].first > n {
		return nil
	}
	return &x.items[i]
}

// time returns when the segment was stored that ends the log up to lsn; zero where it was not.
func (x *axis) time(lsn wal.LSN) time.Time {
	n := x.size.LastSegment(lsn)
	if s := x.item(n); s != nil {
		return s.archived(n)
	}
	return time.Time{}
}

// timeline returns the timeline whose segment ends the log up to lsn.
func (x *axis) timeline(lsn wal.LSN) wal.Timeline {
	if s := x.item(x.size.LastSegment(lsn)); s != nil {
		return s.timeline
	}
	return x.path.Timeline()
}

// holds returns the interval that b can be restored in; nil where there is none.
func holds(all []interval, b *base) *interval {
	i, _ := slices.BinarySearchFunc(all, b.first, func(v interval, n wal.SegmentNo) int { return cmp.Compare(v.last, n) })
	if i == len(all) || !slices.Contains(all[i].bases, b) {
		return nil
	}
	return &all[i]
}

// stretches cuts the axis by what can be restored for certain, perhaps, and not.
func (x *axis) stretches() []Stretch {
	var all []Stretch
	sure := x.sure
	at := x.begin
	for i := range x.maybe {
		v := &x.maybe[i]
		var before, next *interval
		if i > 0 {
			before = &x.maybe[i-1]
		}
		next = v
		all = append(all, x.lack(at, v.from, before, next)...)
		at = v.from
		for len(sure) > 0 && sure[0].first <= v.last {
			s := &sure[0]
			sure = sure[1:]
			if at < s.from {
				all = append(all, x.doubt(at, s.from, v))
			}
			all = append(all, x.restorable(s))
			at = max(at, x.to(s))
		}
		if end := x.to(v); at < end || at == v.from && !x.endsSure(all, v.from) {
			all = append(all, x.doubt(at, end, v))
			at = end
		}
	}
	var before *interval
	if len(x.maybe) > 0 {
		before = &x.maybe[len(x.maybe)-1]
	}
	return append(all, x.lack(at, x.end, before, nil)...)
}

// endsSure reports whether the last stretch can be restored up to lsn.
func (x *axis) endsSure(all []Stretch, lsn wal.LSN) bool {
	return len(all) > 0 && all[len(all)-1].Verdict == Restorable && all[len(all)-1].To == lsn
}

// restorable describes an interval that can be restored for certain.
func (x *axis) restorable(v *interval) Stretch {
	to := x.to(v)
	s := Stretch{Timeline: x.timeline(to), From: v.from, To: to, ToTime: x.time(to), Verdict: Restorable}
	byFinish := slices.Clone(v.bases)
	slices.SortStableFunc(byFinish, func(a, b *base) int { return cmp.Compare(a.finish, b.finish) })
	var nearest wal.LSN // start of the best base so far
	var newest *base
	for i, b := range byFinish {
		s.Bases = append(s.Bases, b.Name)
		if newest == nil || b.start >= nearest {
			nearest, newest = b.start, b
		}
		until := to
		if i+1 < len(byFinish) {
			until = byFinish[i+1].finish
		}
		s.MaxReplay = max(s.MaxReplay, uint64(until-min(nearest, until)))
	}
	s.Backup, s.ReplayBytes = newest.Name, uint64(to-min(newest.start, to))
	s.FromTime = byFinish[0].Created().UTC()
	if s.ToTime.Before(s.FromTime) { // the backup's own last segment was stored before the backup was finished
		s.ToTime = s.FromTime
	}
	s.Verified = x.verified(v)
	stores := map[string]bool{}
	for _, b := range v.bases {
		stores[b.Storage] = true
	}
	for _, item := range x.items[v.i:v.j] {
		stores[item.storage()] = true
	}
	delete(stores, "")
	for name := range stores {
		s.Storages = append(s.Storages, name)
	}
	slices.Sort(s.Storages)
	return s
}

// verified returns up to where a base of v and all WAL behind its start have been verified; 0 for none.
func (x *axis) verified(v *interval) (lsn wal.LSN) {
	items := x.items[v.i:v.j]
	next := 0
	for i := 0; i < len(items); {
		if !items[i].verified {
			i++
			continue
		}
		first, last := items[i].first, items[i].last
		for ; i < len(items) && items[i].verified; i++ {
			last = items[i].last
		}
		for ; next < len(v.bases) && v.bases[next].first <= last; next++ {
			if b := v.bases[next]; !b.verified.IsZero() && b.first >= first && b.last <= last {
				lsn = x.behind(last)
			}
		}
	}
	return lsn
}

// doubt describes what can be restored if what is doubtful in v is good.
func (x *axis) doubt(from, to wal.LSN, v *interval) Stretch {
	s := Stretch{Timeline: x.timeline(to), From: from, To: to, FromTime: x.time(from), ToTime: x.time(to), Verdict: Unknown}
	if x.err != nil {
		s.Why = x.err.Error()
		s.Advice = adviceHistory(x.path.Timeline())
		return s
	}
	// The oldest base of v that may do, and the first thing from there on that is not certain.
	at := v.first
	if from == v.from {
		i := slices.IndexFunc(v.bases, func(b *base) bool { return b.finish == v.from })
		b := v.bases[i]
		s.FromTime = b.Created().UTC()
		if b.state != good {
			s.Backup, s.Why, s.Advice = b.Name, b.Name+" "+b.why, b.advice
			return s
		}
		at = b.first
	} else {
		at = x.size.Segment(from)
	}
	for i := max(v.i, x.find(at)); i < v.j; i++ {
		if x.items[i].state != good {
			x.blame(&s, i, at, v.j)
			break
		}
	}
	if s.Why == "" { // what follows a doubtful segment, over a base that is doubtful
		for _, b := range v.bases {
			if b.state != good {
				s.Backup, s.Why, s.Advice = b.Name, b.Name+" "+b.why, b.advice
				break
			}
		}
	}
	return s
}

// blame fills in what is wrong with the segments of item i from first on, and of those like it that follow before item end.
func (x *axis) blame(s *Stretch, i int, first wal.SegmentNo, end int) {
	item := x.items[i]
	item.first = max(item.first, first)
	for i++; i < end && x.items[i].state == item.state && x.items[i].why == item.why && x.items[i].timeline == item.timeline && x.items[i].gap == item.gap; i++ {
		item.last = x.items[i].last
	}
	s.First, s.Last = x.size.Name(item.timeline, item.first), x.size.Name(item.timeline, item.last)
	s.Segments = uint64(item.last-item.first) + 1
	s.Why, s.Advice = names(x.size, item), item.advice
}

// lack describes what cannot be restored from from to to: behind the interval before, and before the interval next; nil where there is none.
func (x *axis) lack(from, to wal.LSN, before, next *interval) []Stretch {
	if from >= to {
		return nil
	}
	s := Stretch{Timeline: x.timeline(to), From: from, To: to, FromTime: x.time(from), ToTime: x.time(to), Verdict: Broken}
	first, last := x.size.Segment(from), x.size.LastSegment(to)
	var broken []*base // that lie in here, at least in part
	for _, b := range x.bases {
		if b.start < to && b.finish > from && (before == nil || !slices.Contains(before.bases, b)) && (next == nil || !slices.Contains(next.bases, b)) {
			broken = append(broken, b)
		}
	}
	if before == nil && next == nil && len(broken) == 0 {
		s.Why, s.Advice = x.baseless()
		return []Stretch{s}
	}
	if before == nil {
		older := s
		older.Verdict, older.Why = Uncovered, "WAL that is older than the oldest backup"
		if len(broken) == 0 {
			if next != nil && first >= next.bases[0].first {
				return nil // it is the WAL of the backup itself
			}
			return []Stretch{older}
		}
		b := slices.MinFunc(broken, func(a, b *base) int { return cmp.Compare(a.start, b.start) })
		var all []Stretch
		if b.start > from {
			older.To, older.ToTime, older.Timeline = b.start, x.time(b.start), x.timeline(b.start)
			all = append(all, older)
			s.From, s.FromTime = b.start, x.time(b.start)
		}
		x.blameBase(&s, b, next)
		return append(all, s)
	}
	accepted, lost := true, -1
	var gap *Gap // that somebody has accepted, or else retention has removed
	for i := x.find(first); i < len(x.items) && x.items[i].first <= last; i++ {
		if item := &x.items[i]; item.lacks(to, x.size) {
			if lost < 0 {
				lost = i
			}
			accepted = accepted && item.gap != nil
			if gap == nil || gap.Removed && item.gap != nil && !item.gap.Removed {
				gap = item.gap
			}
		}
	}
	for _, b := range broken {
		accepted = accepted && b.state != bad
	}
	if lost >= 0 {
		x.blame(&s, lost, first, len(x.items))
	} else if len(broken) > 0 {
		x.blameBase(&s, broken[0], next)
	}
	switch {
	case accepted && lost >= 0 && next != nil:
		s.Verdict, s.Advice, s.Removed = Accepted, "", gap.Removed
		if gap.Removed {
			s.Why += ": retention removed it, as nothing that stays needs it"
			break
		}
		s.Why += ", which " + gap.By + " has accepted"
		if gap.Reason != "" {
			s.Why += ": " + gap.Reason
		}
	case accepted && lost >= 0:
		s.Why += ", which was accepted, and no backup is newer"
		s.Advice = adviceTake
	case s.Advice == "":
		s.Advice = adviceMissing(s.First, s.Last, next == nil)
	}
	return []Stretch{s}
}

// blameBase fills in why nothing from the backup on can be restored.
func (x *axis) blameBase(s *Stretch, b *base, next *interval) {
	s.Backup = b.Name
	if b.state == bad {
		s.Why, s.Advice = b.Name+" "+b.why, b.advice
		if next != nil {
			s.Advice = "newer backups restore; `holdfast delete target " + b.Name + "` removes this one"
		}
		return
	}
	if i := x.lacks(b); i >= 0 {
		x.blame(s, i, b.first, len(x.items))
		s.Why = b.Name + " lacks WAL of its own: " + s.Why
		if s.Advice == "" {
			s.Advice = adviceMissing(s.First, s.Last, next == nil)
		}
	}
}

// lacks returns the first item of a backup's own WAL that cannot be used; -1 where there is none.
func (x *axis) lacks(b *base) int {
	for i := x.find(b.first); i < len(x.items) && x.items[i].first <= b.last; i++ {
		if x.items[i].lacks(b.finish, x.size) {
			return i
		}
	}
	return -1
}
