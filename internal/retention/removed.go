package retention

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// removedGap is a record in archive.GapDir: WAL that retention has removed behind a backup that stays. That is no loss: see catalog.Accepted.
type removedGap struct {
	archive.RecordHead
	Timeline wal.Timeline `json:"timeline"`
	First    string       `json:"first"`
	Last     string       `json:"last"`
	Reason   string       `json:"reason"`
	Removed  bool         `json:"removed"`
}

// noteRemoved notes which WAL is about to go that lies behind a backup that stays: who looks for holes would take it for lost. It returns the names of the records that
// say nothing any more once that WAL is gone.
func (r *applying) noteRemoved(ctx context.Context, p *Plan, v *verdicts, stays func(*backup) (mode, bool), ripe walFilter) (idle []string, err error) {
	size := p.judge.in.WAL.SegmentSize
	accepted, _, err := catalog.LoadAccepted(ctx, r.a, size)
	if err != nil {
		return nil, fmt.Errorf("look which WAL was removed: %w", err)
	}
	was := map[wal.Timeline][]need{}
	for _, a := range accepted {
		if a.Removed {
			was[a.Timeline] = append(was[a.Timeline], need{a.Timeline, span{placeAt(size, a.First), placeAt(size, a.Last)}, reason{}})
		}
	}
	holes := p.judge.holes(v, stays, ripe, was)
	known := map[catalog.Stretch]bool{}
	for _, a := range accepted {
		if !a.Removed {
			continue
		}
		if s := (span{placeAt(size, a.First), placeAt(size, a.Last)}); slices.Contains(holes[a.Timeline], s) && !known[a.Stretch] {
			known[a.Stretch] = true
		} else {
			idle = append(idle, a.Record)
		}
	}
	for _, t := range slices.Sorted(maps.Keys(holes)) {
		for _, s := range holes[t] {
			if first, last := segmentFrom(size, s.from), segmentFrom(size, s.to); known[catalog.Stretch{Timeline: t, First: first, Last: last}] {
				continue
			}
			gap := removedGap{r.head(), t, s.from.name(t), s.to.name(t), "retention removed it, as nothing that stays needs it", true}
			_, err := r.a.AddRecord(ctx, archive.GapDir, "", gap)
			if errors.Is(err, fs.ErrPermission) && ctx.Err() == nil { // it is a courtesy
				r.opts.Logger.Warn("which WAL goes behind backups that stay cannot be noted, so that it is called missing later: these credentials may not write " + archive.GapDir)
				return nil, nil
			}
			if err != nil {
				return nil, fmt.Errorf("note which WAL goes: %w", err)
			}
		}
	}
	return idle, nil
}

// holes returns the stretches of WAL, behind a backup that stays, that are gone by retention or are about to go: what was noted before, and of what is ripe that which
// nothing needs, between such a backup and the newest from which recovery goes on. Ascending, apart.
func (j *judge) holes(v *verdicts, stays func(*backup) (mode, bool), ripe walFilter, was map[wal.Timeline][]need) map[wal.Timeline][]span {
	size := j.in.WAL.SegmentSize
	begins := map[wal.Timeline]place{} // where the WAL does from which the oldest of these backups restores
	for _, b := range j.all {
		if _, ok := stays(b); !ok {
			continue
		}
		for _, n := range j.needsOf(b, continuous) {
			if at, ok := begins[n.timeline]; !ok || n.from < at {
				begins[n.timeline] = n.from
			}
		}
	}
	found := map[wal.Timeline][]need{}
	for t, from := range begins {
		for _, w := range was[t] {
			if w.to >= from {
				found[t] = append(found[t], w)
			}
		}
		if p := j.paths[t]; p != nil { // it has no WAL from before it began
			from = max(from, placeAt(size, size.Segment(p[len(p)-1].Begin)))
		}
		before := v.before[t].place
		if before <= from {
			continue
		}
		for _, s := range (span{from, before - 1}).without(v.needs[t]) {
			for _, c := range ripe {
				if s, ok := s.within(c); ok && c.Timeline == t {
					found[t] = append(found[t], need{t, s, reason{}})
				}
			}
		}
	}
	holes := map[wal.Timeline][]span{}
	for t, all := range found {
		for _, s := range joined(all) {
			first, last := segmentFrom(size, s.from), segmentFrom(size, s.to)
			if placeAt(size, last) > s.to { // between two segments
				last--
			}
			if first > last {
				continue
			}
			if k := len(holes[t]) - 1; k >= 0 && segmentFrom(size, holes[t][k].to)+1 == first {
				holes[t][k].to = placeAt(size, last)
				continue
			}
			holes[t] = append(holes[t], span{placeAt(size, first), placeAt(size, last)})
		}
	}
	return holes
}

// within returns what of s a condemned stretch has.
func (s span) within(c archive.CondemnedWAL) (span, bool) {
	switch {
	case wal.IsSegment(c.Before):
		_, before := placeOf(c.Before)
		if before == 0 {
			return s, false
		}
		s.to = min(s.to, before-1)
	case wal.IsSegment(c.First) && wal.IsSegment(c.Last):
		_, first := placeOf(c.First)
		_, last := placeOf(c.Last)
		s.from, s.to = max(s.from, first), min(s.to, last)
	default:
		return s, false
	}
	return s, s.from <= s.to
}
