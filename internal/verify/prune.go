package verify

import (
	"cmp"
	"context"
	"slices"
	"time"

	"holdfast/internal/pg/wal"
)

// said is what a record says of WAL, without how that looked.
type said struct {
	name        string // of the record
	t           wal.Timeline
	first, last wal.SegmentNo
	counts      bool            // for all of the range, and not for its problems alone
	problems    []wal.SegmentNo // segments
	at          time.Time
	segments    int
	bytes       int64
}

// know keeps what a record says. One that makes no sense is left alone.
func (w *inventory) know(name string, d *WALRecord) {
	t1, first, err1 := w.size.ParseSegment(d.First)
	t2, last, err2 := w.size.ParseSegment(d.Last)
	if err1 != nil || err2 != nil || t1 != d.Timeline || t2 != t1 || last < first {
		return
	}
	s := said{name: name, t: t1, first: first, last: last, counts: d.Sample == 0 && len(d.Prints) > 0, at: d.At, segments: d.Segments, bytes: d.Bytes}
	for _, p := range d.Problems {
		t, no, err := w.size.ParseSegment(p.Segment)
		if err != nil || t != t1 {
			return
		}
		s.problems = append(s.problems, no)
	}
	w.records = append(w.records, s)
}

// goesOn returns the record that ends where segments from first to last begin, if one of both can stand for it: nothing is wrong with what it is of, which is as it was
// then, and it is so young that reading the others anew when it is due makes no difference. Who verifies every hour so leaves no record an hour.
func (w *inventory) goesOn(r *run, first *segment, last wal.SegmentNo) *said {
	for i := range slices.Backward(w.records) {
		p := &w.records[i]
		if p.t != first.t || p.last+1 != first.no {
			continue
		}
		age := time.Since(p.at)
		if !p.counts || len(p.problems) > 0 || last-p.first >= maxNoted || age < 0 || age > r.request.MaxAge/30 {
			return nil
		}
		for _, s := range w.timeline(p.t).between(p.first, p.last) {
			if _, severity := r.of(s.name); severity != OK || !s.verified.Equal(p.at) && !s.recorded {
				return nil
			}
		}
		return p
	}
	return nil
}

// prune removes the records of which later ones say the same or more: of each segment the last counts. That some cannot be removed does no harm.
func (w *inventory) prune(ctx context.Context, r *run) {
	if w == nil || r.opts.ReadOnly || r.request.Sample != 0 {
		return
	}
	slices.SortStableFunc(w.records, func(x, y said) int { return cmp.Compare(x.name, y.name) })
	later := map[wal.Timeline]*spans{}
	for _, s := range slices.Backward(w.records) {
		of := later[s.t]
		if of == nil {
			of = &spans{}
			later[s.t] = of
		}
		told := s.counts && of.has(s.first, s.last) || !s.counts && !slices.ContainsFunc(s.problems, func(no wal.SegmentNo) bool { return !of.has(no, no) })
		if !told {
			if s.counts {
				of.add(s.first, s.last)
			}
			continue
		}
		if err := r.archive.RemoveRecord(ctx, s.name); err != nil {
			r.opts.Logger.Info("records of which later ones say the same are left", "error", err)
			return
		}
	}
}

// spans are stretches of segments, ascending and apart.
type spans []span

type span struct{ first, last wal.SegmentNo }

// has reports whether all of a stretch is among them.
func (s spans) has(first, last wal.SegmentNo) bool {
	i, _ := slices.BinarySearchFunc(s, first, func(one span, no wal.SegmentNo) int { return cmp.Compare(one.last, no) })
	return i < len(s) && s[i].first <= first && last <= s[i].last
}

// add takes a stretch in, together with those that it meets.
func (s *spans) add(first, last wal.SegmentNo) {
	from, _ := slices.BinarySearchFunc(*s, first, func(one span, no wal.SegmentNo) int { return cmp.Compare(one.last+1, no) })
	to := from
	for to < len(*s) && (*s)[to].first <= last+1 {
		first, last = min(first, (*s)[to].first), max(last, (*s)[to].last)
		to++
	}
	*s = slices.Replace(*s, from, to, span{first, last})
}
