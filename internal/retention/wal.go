package retention

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// need is a stretch of a timeline's WAL that has to stay.
type need struct {
	timeline wal.Timeline
	span
	why reason
}

// needsOf returns the WAL that b needs: on its own timeline, and on all that left it after b had begun.
func (j *judge) needsOf(b *backup, m mode) []need {
	t, from := placeOf(b.Segment())
	size, err := b.SegmentSize()
	why := reason{Needed, fmt.Sprintf("%s is made consistent with it", b.Name)}
	to := end
	if m == continuous {
		why.text = fmt.Sprintf("it is replayed over %s", b.Name)
	}
	if err == nil {
		if start, ok := b.StartLSN(); ok {
			from = min(from, placeAt(size, size.Segment(start))) // a border belongs to the name before it, or behind
		}
		if finish, ok := b.FinishLSN(); ok && m == moment {
			to = placeAt(size, size.LastSegment(finish))
		}
		if to < from { // it says that it ended before it began: who knows what it needs
			to = end
		}
	} else {
		size = 16 << 20
	}
	return j.along(t, span{from, to}, size, why)
}

// along returns a need on timeline t, and on all that go on from it: also on those between that have no history of their own, as the one of a timeline that came
// from them tells where they lie.
func (j *judge) along(t wal.Timeline, s span, size wal.SegmentSize, why reason) []need {
	needs := []need{{t, s, why}}
	known := map[wal.Timeline]bool{t: true}
	for _, p := range j.paths {
		i := slices.IndexFunc(p, func(l catalog.Leg) bool { return l.Timeline == t })
		if i < 0 || i+1 == len(p) || placeAt(size, size.Segment(p[i].End)) < s.from {
			continue
		}
		for _, leg := range p[i+1:] {
			if !known[leg.Timeline] {
				known[leg.Timeline] = true
				needs = append(needs, need{leg.Timeline, s, why})
			}
		}
	}
	return needs
}

// verdicts says which WAL stays, for a set of backups that do.
type verdicts struct {
	needs   map[wal.Timeline][]need
	before  map[wal.Timeline]bound // what is not needed and lies before it goes
	orphans map[wal.Timeline][]span
	closed  map[wal.Timeline]string // timelines of which all stays, and why
	runs    map[wal.Timeline][]span // the segments that are there
	taken   map[wal.Timeline][]span // by needs: ascending, apart
	oldest  time.Time               // when the oldest backup was begun that is replayed from; zero: there is none
}

// bound is the place where the WAL of a backup begins.
type bound struct {
	place
	backup string
}

// judgeWAL says which WAL stays where the backups that stay says so stay, in what mode. Without any backup everything stays, unless all says otherwise.
func (j *judge) judgeWAL(stays func(*backup) (mode, bool), all bool) *verdicts {
	v := &verdicts{
		needs: map[wal.Timeline][]need{}, before: map[wal.Timeline]bound{}, orphans: map[wal.Timeline][]span{}, closed: map[wal.Timeline]string{}, runs: map[wal.Timeline][]span{},
	}
	for t, r := range j.in.runs() {
		v.runs[t] = append(v.runs[t], j.in.places(r))
	}
	need := func(needs []need) {
		for _, n := range needs {
			v.needs[n.timeline] = append(v.needs[n.timeline], n)
		}
	}
	for _, b := range j.all {
		m, ok := stays(b)
		if !ok {
			continue
		}
		need(j.needsOf(b, m))
		if m == continuous {
			v.anchor(j, b)
		}
	}
	need(j.heldWAL())
	for _, p := range j.in.Pushes {
		if j.alive(&p) {
			t, from := placeOf(p.Name[len("base_"):])
			need(j.along(t, span{from, end}, j.in.segmentSize(), reason{Pushing, fmt.Sprintf("the backup %s is being taken", p.Name)}))
		}
	}
	for _, r := range j.in.Restores {
		if r.InUse(j.in.At, r.Beat) && wal.IsSegment(r.FirstWAL) {
			t, from := placeOf(r.FirstWAL)
			need(j.along(t, span{from, end}, j.in.segmentSize(), reason{Restoring, fmt.Sprintf("a restore on %s replays it", r.Host)}))
		}
	}
	for _, c := range j.in.CatchUps {
		if j.in.At.Sub(c.Seen) <= catchUpWAL {
			t, from := placeOf(c.Name[len("base_"):])
			need(j.along(t, span{from, end}, j.in.segmentSize(), reason{Needed, fmt.Sprintf("the catch-up %s, not a week old, needs it", c.Name)}))
		}
	}
	for t, err := range j.in.Catalog.BadHistory {
		v.closed[t] = fmt.Sprintf("its history cannot be read: %v", err)
	}
	if v.oldest.IsZero() && all {
		v.oldest = j.now
	}
	if !v.oldest.IsZero() {
		v.findOrphans(j)
	}
	v.taken = map[wal.Timeline][]span{}
	for t, needs := range v.needs {
		v.taken[t] = joined(needs)
	}
	return v
}

// joined returns what needs take together: ascending, apart.
func joined(needs []need) (all []span) {
	spans := make([]span, len(needs))
	for i, n := range needs {
		spans[i] = n.span
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for _, s := range spans {
		if k := len(all) - 1; k >= 0 && s.from <= all[k].to {
			all[k].to = max(all[k].to, s.to)
			continue
		}
		all = append(all, s)
	}
	return all
}

// needed reports whether something needs some of s.
func (v *verdicts) needed(t wal.Timeline, s span) bool {
	taken := v.taken[t]
	i, _ := slices.BinarySearchFunc(taken, s.from, func(o span, p place) int { return cmp.Compare(o.to, p) })
	return i < len(taken) && taken[i].meets(s)
}

// anchor notes that what comes before b on its way is not replayed over it.
func (v *verdicts) anchor(j *judge, b *backup) {
	if at := started(b); v.oldest.IsZero() || at.Before(v.oldest) {
		v.oldest = at
	}
	t, start := placeOf(b.Segment())
	size, err := b.SegmentSize()
	if lsn, ok := b.StartLSN(); ok && err == nil {
		start = min(start, placeAt(size, size.Segment(lsn)))
	}
	path := j.paths[t]
	if err != nil || path == nil {
		path = catalog.Path{{Timeline: t}}
	}
	for _, leg := range path {
		at := start
		if leg.Timeline != t {
			at = min(at, placeAt(size, size.Segment(leg.End)+1))
		}
		if at > v.before[leg.Timeline].place {
			v.before[leg.Timeline] = bound{at, b.Name}
		}
	}
}

// findOrphans finds what is neither needed nor before a backup that stays, and came before the oldest of these was begun: a branch that was left, a cluster that
// is no more.
func (v *verdicts) findOrphans(j *judge) {
	for t, r := range j.in.runs() {
		if !r.Newest.Before(v.oldest) {
			continue
		}
		whole := j.in.places(r)
		whole.from = max(whole.from, v.before[t].place)
		v.orphans[t] = append(v.orphans[t], whole.without(v.needs[t])...)
	}
}

// without returns what of s none of the needs takes, ascending.
func (s span) without(needs []need) (free []span) {
	if s.from > s.to {
		return nil
	}
	for _, n := range joined(needs) {
		if n.to < s.from {
			continue
		}
		if n.from > s.to {
			break
		}
		if n.from > s.from {
			free = append(free, span{s.from, n.from - 1})
		}
		if n.to >= s.to {
			return free
		}
		s.from = n.to + 1
	}
	return append(free, s)
}

// lets reports whether an object goes that is about the segments at s on timeline t: all of them that are there do, and allowed lets them. Where none is there it goes
// where they would; when they once were, and it was archived before all from which recovery goes on, wherever it is.
func (v *verdicts) lets(t wal.Timeline, s span, about object, allowed func(wal.Timeline, span) bool) bool {
	some := false
	for _, r := range v.runs[t] {
		if !r.meets(s) {
			continue
		}
		some = true
		if r.from, r.to = max(r.from, s.from), min(r.to, s.to); v.needed(t, r) {
			return false
		}
		for i, cuts := 0, v.borders(t, r); i < len(cuts); i++ {
			piece := span{cuts[i], r.to}
			if i+1 < len(cuts) {
				piece.to = cuts[i+1] - 1
			}
			if goes, _ := v.of(t, piece); !goes || !allowed(t, piece) {
				return false
			}
		}
	}
	if some {
		return true
	}
	goes, why := v.of(t, s)
	old := about.archived.Before(v.oldest)
	return goes || why.ground == Unknown && (old || s.from < v.before[t].place) || why.ground != Unread && old && about.beside
}

// pieces says whether the pieces of segment n of timeline t go, and why: as what lies there does, and those of a segment that is archived whole. allowed is as for lets.
func (j *judge) pieces(v *verdicts, t wal.Timeline, n wal.SegmentNo, about object, allowed func(wal.Timeline, span) bool) (goes bool, why reason) {
	size := j.in.WAL.SegmentSize
	if j.in.WAL.Has(t, n) {
		if found := j.in.BadWAL[size.Name(t, n)]; found != "" {
			return false, reason{Needed, "the whole segment is damaged: " + found}
		}
		return true, reason{Whole, "the whole segment is archived"}
	}
	at := span{placeAt(size, n), placeAt(size, n)}
	switch goes, why = v.of(t, at); {
	case goes:
		return allowed(t, at), why
	case v.lets(t, at, about, allowed):
		return true, reason{Orphaned, "nothing that stays leads to it, and it came before the oldest backup that does was begun"}
	}
	return false, why
}

// anything lets every stretch go.
func anything(wal.Timeline, span) bool { return true }

// object is one that is about WAL.
type object struct {
	archived time.Time
	beside   bool // it is no WAL, and of no use without
}

// of returns the verdict on what lies at s on timeline t: whether it goes, and why.
func (v *verdicts) of(t wal.Timeline, s span) (goes bool, why reason) {
	if text, closed := v.closed[t]; closed {
		return false, reason{Unread, text}
	}
	for _, n := range v.needs[t] {
		if n.meets(s) {
			return false, n.why
		}
	}
	if b := v.before[t]; s.to < b.place {
		return true, reason{NoLonger, fmt.Sprintf("no backup that stays needs it, and %s begins behind it", b.backup)}
	}
	for _, o := range v.orphans[t] {
		if o.from <= s.from && s.to <= o.to {
			return true, reason{Orphaned, "nothing that stays leads to it, and it came before the oldest backup that does was begun"}
		}
	}
	if v.oldest.IsZero() {
		return false, reason{Unknown, "there is no backup to judge it by"}
	}
	return false, reason{Unknown, "nothing that stays leads to it, but it came later than the oldest backup that does: it may be of a server whose first backup is still to come"}
}

// cuts returns where, within s on timeline t, verdicts may change: the first place of each piece, ascending.
func (v *verdicts) cuts(t wal.Timeline, s span) []place {
	at := v.borders(t, s)
	for _, n := range v.needs[t] {
		at = s.cut(at, n.span)
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// borders is cuts for what nothing needs.
func (v *verdicts) borders(t wal.Timeline, s span) []place {
	at := []place{s.from}
	if b := v.before[t].place; b > 0 {
		at = s.cut(at, span{0, b - 1})
	}
	for _, o := range v.orphans[t] {
		at = s.cut(at, o)
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// cut adds where o begins and ends within s.
func (s span) cut(at []place, o span) []place {
	if s.from < o.from && o.from <= s.to {
		at = append(at, o.from)
	}
	if o.to >= s.from && o.to < s.to {
		at = append(at, o.to+1)
	}
	return at
}
