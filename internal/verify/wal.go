package verify

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// segments verifies the WAL that is due.
func (r *run) segments(ctx context.Context) error {
	w := r.wal
	due := 0
	for _, l := range w.timelines {
		for i := range l.segments {
			if s := &l.segments[i]; s.wanted && s.verified.IsZero() {
				due++
			}
		}
	}
	if r.request.NoKey && due > 0 {
		r.add(Finding{Severity: Unknown, Kind: Key, Object: archive.WALDir, Text: fmt.Sprintf("%d WAL segments are encrypted, and no key is set that decrypts: only their names were looked at", due)})
		return nil
	}
	for _, l := range w.timelines {
		if l.needed {
			if err := r.others(ctx, l); err != nil {
				return err
			}
		}
	}
	for _, l := range w.timelines {
		r.opts.Progress.phase.Store("WAL of timeline " + fmt.Sprint(uint32(l.t)))
		if err := r.along(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// answer is what came of reading a segment.
type answer struct {
	s       *segment
	context bool // it is not due, and read only for what goes on from it
	summary *walrec.Summary
	ok      bool
}

// along reads the segments of a timeline that are due, some at once, and joins them in their order.
func (r *run) along(ctx context.Context, l *timeline) error {
	summaries, err := r.summarized(ctx, l)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	queue := make(chan chan answer, 2*r.opts.Workers)
	tokens := make(chan struct{}, r.opts.Workers)
	ask := func(s *segment, asContext bool) error {
		to := make(chan answer, 1)
		select {
		case queue <- to:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select {
		case tokens <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		group.Go(func() error {
			defer func() { <-tokens }()
			summary, ok, err := r.segment(ctx, l, s)
			if err == nil && !asContext && summaries[s.no] {
				err = r.summary(ctx, s)
			}
			if err == nil {
				to <- answer{s, asContext, summary, ok}
			}
			return err
		})
		return nil
	}
	group.Go(func() error {
		defer close(queue)
		var last *segment // that was asked for
		for i := range l.segments {
			s := &l.segments[i]
			if !s.wanted || !s.verified.IsZero() || !r.chosen() {
				continue
			}
			before := r.before(l, s)
			if before != nil && before != last && before.wanted && !before.verified.IsZero() && !before.closed || before != nil && before.t != s.t && before.wanted {
				if err := ask(before, true); err != nil {
					return err
				}
			}
			if err := ask(s, false); err != nil {
				return err
			}
			last = s
		}
		return nil
	})
	group.Go(func() error {
		j := joint{run: r, line: l}
		for to := range queue {
			var a answer
			select {
			case a = <-to:
			case <-ctx.Done():
				select { // what was read before counts
				case a = <-to:
				default:
					return context.Cause(ctx)
				}
			}
			if err := j.add(context.WithoutCancel(ctx), a); err != nil {
				return err
			}
		}
		return nil
	})
	return group.Wait()
}

// before returns the segment that is replayed before s, nil where that is not archived.
func (r *run) before(l *timeline, s *segment) *segment {
	if s.no == 0 {
		return nil
	}
	for _, leg := range slices.Backward(l.path) {
		if r.wal.size.Segment(leg.Begin) <= s.no-1 {
			return r.wal.timeline(leg.Timeline).find(s.no - 1)
		}
	}
	if l.path == nil {
		return l.find(s.no - 1)
	}
	return nil
}

// summarized says which segments of a timeline have a summary.
func (r *run) summarized(ctx context.Context, l *timeline) (map[wal.SegmentNo]bool, error) {
	there := map[wal.SegmentNo]bool{}
	if i := slices.IndexFunc(l.segments, func(s segment) bool { return s.wanted && s.verified.IsZero() }); i < 0 {
		return nil, nil
	}
	first, last := l.segments[0].no, l.segments[len(l.segments)-1].no
	for no, err := range r.archive.Summaries(ctx, l.t, first, last, r.wal.size) {
		if err != nil {
			return nil, err
		}
		there[no] = true
	}
	return there, nil
}

// summary reads the summary of a segment. One that is damaged is made anew by whoever needs it.
func (r *run) summary(ctx context.Context, s *segment) error {
	a, t := r.tapped()
	_, _, err := a.OpenSummary(ctx, r.wal.size.Name(s.t, s.no), r.wal.size)
	f := Finding{Object: archive.SummaryDir + s.t.String() + "/" + r.wal.size.Name(s.t, s.no) + ".zst", soft: true}
	_, err = r.judge(ctx, f, nil, t, 1, err)
	return err
}

// segment reads one segment.
func (r *run) segment(ctx context.Context, l *timeline, s *segment) (summary *walrec.Summary, ok bool, err error) {
	name := r.wal.size.Name(s.t, s.no)
	var size int64
	var hash string
	if s.note {
		if size, hash, err = r.archive.WALNote(ctx, name); err != nil {
			if ctx.Err() != nil {
				return nil, false, context.Cause(ctx)
			}
			r.add(Finding{Severity: Warning, Kind: Content, Object: archive.WALDir + name + ".sum.json", Text: err.Error()})
			err = nil
		}
	}
	start := r.wal.size.Start(s.no)
	read := func(in io.Reader) error {
		sum := xxhash.New()
		n := &counting{Reader: io.TeeReader(in, sum)}
		var err error
		summary, err = walrec.Check(n, r.wal.size)
		if err != nil {
			return r.fault(err, start)
		}
		if extra, err := io.Copy(io.Discard, n); err != nil {
			return err
		} else if extra > 0 {
			return &wrong{Finding{Kind: Size, Offset: at(int64(r.wal.size)), Text: fmt.Sprintf("it goes on for %d bytes behind its end", extra)}}
		}
		if hash != "" && (n.n != size || fmt.Sprintf("%016x", sum.Sum64()) != hash) {
			return &wrong{Finding{Text: "it is not what was pushed: its content does not fit the note beside it, " + name + ".sum.json"}}
		}
		if text := r.misplaced(l, s, summary); text != "" {
			return &wrong{Finding{Kind: Foreign, Offset: at(0), Text: text}}
		}
		return nil
	}
	open := func(a *archive.Archive) (io.ReadCloser, error) { return a.OpenObject(ctx, s.name) }
	ok, err = r.content(ctx, Finding{Object: s.name, LSN: start.String(), segment: s}, nil, open, read)
	s.read = true
	if !ok {
		summary = nil
	} else if err == nil && len(l.path) > 1 && r.wal.size.Segment(l.path[len(l.path)-1].Begin) == s.no {
		err = r.branch(ctx, l, s)
	}
	return summary, ok, err
}

// branch makes sure that a timeline begins where its history says: a record begins there, which the server writes as the first of a timeline.
func (r *run) branch(ctx context.Context, l *timeline, s *segment) error {
	begin := l.path[len(l.path)-1].Begin
	if begin <= r.wal.size.Start(s.no) {
		return nil
	}
	f := Finding{Object: archive.WALDir + wal.HistoryName(l.t), LSN: begin.String(), segment: &segment{t: l.t}}
	for _, o := range l.others {
		if archive.WALName(o.name) == wal.HistoryName(l.t) {
			f.Object = o.name
		}
	}
	a, tap := r.tapped()
	body, err := a.OpenObject(ctx, s.name)
	if err == nil {
		err = begins(body, begin)
		err = cmpErr(err, body.Close())
	}
	switch w := (*wrong)(nil); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case tap.err != nil:
		f.Severity, f.Kind, f.Text = Unknown, Store, "whether the timeline begins where it says is not known: "+tap.err.Error()
	case errors.As(err, &w):
		f.Severity, f.Kind, f.Text = Damage, Foreign, w.Text
	default: // what is wrong with the segment was told
		return nil
	}
	r.add(f)
	return nil
}

// begins reads a segment up to where a timeline begins.
func begins(segment io.Reader, begin wal.LSN) error {
	reader, err := walrec.NewReader(segment, 0)
	for err == nil {
		var rec *walrec.Record
		if rec, err = reader.Next(); err != nil {
			break // nothing is behind the branch where it was left at the end
		}
		if rec.LSN < begin {
			continue
		}
		if header := rec.LSN - begin; rec.RM != walrec.RMXLOG || header != 0 && header != 24 && header != 40 {
			return &wrong{Finding{Text: fmt.Sprintf("it says that the timeline begins at %s, where no record of a new timeline is", begin)}}
		}
		return nil
	}
	return nil
}

func stopped(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// fault says where in a segment something is wrong.
func (r *run) fault(err error, start wal.LSN) error {
	f := (*walrec.FaultError)(nil)
	if !errors.As(err, &f) {
		return err
	}
	w := &wrong{Finding{LSN: f.LSN.String(), Text: err.Error()}}
	if f.LSN >= start && f.LSN < start+wal.LSN(r.wal.size) {
		w.Offset = at(int64(f.LSN - start))
	}
	if errors.Is(err, walrec.ErrEnd) {
		w.Text += ": nothing was written from there on, and no switch to the next segment says so. PostgreSQL takes it for the end of the WAL"
	}
	return w
}

// misplaced says why what is in a segment does not belong under its name, "" where it does.
func (r *run) misplaced(l *timeline, s *segment, w *walrec.Summary) string {
	start := r.wal.size.Start(s.no)
	var first wal.Timeline
	switched := false
	for i, leg := range l.path {
		if leg.Begin <= start || i == 0 {
			first = leg.Timeline
		}
		switched = switched || i > 0 && leg.Begin > start && r.wal.size.LastSegment(leg.Begin) == s.no
	}
	switch {
	case w.Start != start:
		return fmt.Sprintf("it is the segment that begins at %s, which is named %s", w.Start, r.wal.size.Name(w.Timeline, r.wal.size.Segment(w.Start)))
	case len(r.wal.systems) > 0 && !slices.Contains(r.wal.systems, w.SystemIdentifier):
		return fmt.Sprintf("it is of the cluster %d, and not of this one", w.SystemIdentifier)
	case w.Timeline > s.t, w.Timeline != s.t && !switched && (s.t == 1 || len(l.path) > 1):
		return fmt.Sprintf("it is of timeline %d", w.Timeline)
	case (len(l.path) > 1 || s.t == 1) && w.FirstTimeline != first:
		return fmt.Sprintf("it begins on timeline %d, and by the history it must be %d at %s", w.FirstTimeline, first, start)
	}
	return ""
}

// joint joins segments in their order, and notes what came of each.
type joint struct {
	*run
	line   *timeline
	joiner *walrec.Joiner
	last   *segment
	joined bool // the last one goes on where the one before it ends
	bad    bool // it does not
}

// add takes the next segment that was read.
func (j *joint) add(ctx context.Context, a answer) error {
	follows := j.last != nil && a.s.no == j.last.no+1 && j.before(j.line, a.s) == j.last
	fresh := !follows || j.joiner == nil
	if fresh {
		j.joiner, j.bad, j.joined = &walrec.Joiner{CheckOnly: true}, false, false
	}
	before := j.last
	j.last = a.s
	if a.summary == nil {
		j.joiner = nil
		return j.run.joined(ctx, a.s)
	}
	err := j.joiner.Add(a.summary)
	if err != nil {
		j.joiner = &walrec.Joiner{CheckOnly: true}
		_ = j.joiner.Add(a.summary) // what is wrong with it alone was told
		if j.bad {
			err = nil // of the one before
		}
	}
	sure := j.joined // that it is not the one before
	j.bad, j.joined = err != nil, err == nil && !fresh
	if a.context {
		return nil
	}
	a.s.end = j.wal.size.Start(a.s.no + 1)
	a.s.closed = j.joiner.Unfinished() == 0
	if err != nil {
		_, text, _ := strings.Cut(err.Error(), ": ")
		j.run.add(Finding{Severity: Damage, Kind: Sequence, Object: a.s.name, LSN: j.wal.size.Start(a.s.no).String(), Offset: at(0), segment: a.s,
			Text: fmt.Sprintf("it does not go on where %s ends: %s. One of the two is not what was archived", archive.WALName(before.name), text)})
		if !sure {
			j.run.add(Finding{Severity: Damage, Kind: Sequence, Object: before.name, LSN: j.wal.size.Start(before.no).String(), Offset: at(0), segment: before,
				Text: fmt.Sprintf("%s does not go on where it ends: %s. One of the two is not what was archived", archive.WALName(a.s.name), text)})
		}
	}
	return j.run.joined(ctx, a.s)
}

// maxNoted bounds how many segments, and how many problems, a record is of.
const maxNoted = 8192

// joined enters a segment into what is recorded. A record is of segments without one missing between.
func (r *run) joined(ctx context.Context, s *segment) error {
	w := r.wal
	r.mu.Lock()
	over := len(w.from) > 0 && (w.from[len(w.from)-1].t != s.t || w.from[len(w.from)-1].no+1 < s.no)
	late := time.Since(r.flushed) >= r.opts.Every
	many := len(w.from) >= maxNoted
	r.mu.Unlock()
	if (over || late) && r.request.Sample == 0 || many || over && w.from[0].t != s.t {
		if err := w.flush(ctx, r); err != nil {
			return err
		}
	}
	w.from = append(w.from, s)
	return nil
}

// flush records the segments that were read since the last record.
func (w *inventory) flush(ctx context.Context, r *run) error {
	if w == nil || len(w.from) == 0 {
		return nil
	}
	from := w.from
	w.from = nil
	if r.opts.ReadOnly {
		return nil
	}
	r.mu.Lock()
	r.flushed = time.Now()
	r.mu.Unlock()
	name := func(s *segment) string { return w.size.Name(s.t, s.no) }
	first, last := from[0], from[len(from)-1]
	doc := WALRecord{RecordHead: archive.NewRecordHead(r.opts.By, r.opts.Tool), Timeline: first.t, First: name(first), Last: name(last),
		Segments: len(from), Open: !last.closed, Sample: r.request.Sample, End: w.size.Start(first.no).String()}
	mine := map[*segment]bool{}
	for _, s := range from {
		mine[s], s.recorded = true, true
		doc.Bytes += s.size
		if s.end > 0 {
			doc.End = s.end.String()
		}
		if p := r.problem(s.name, name(s)); p != nil {
			doc.Problems = append(doc.Problems, *p)
		}
	}
	begin := first.no
	if before := w.goesOn(r, first, last.no); before != nil && doc.Sample == 0 {
		for _, s := range w.timeline(first.t).between(before.first, before.last) {
			mine[s] = true
		}
		begin, doc.First, doc.At = before.first, w.size.Name(first.t, before.first), before.at
		doc.Segments, doc.Bytes = doc.Segments+before.segments, doc.Bytes+before.bytes
	}
	for no := begin; no <= last.no && doc.Sample == 0; no += printed {
		some := w.timeline(first.t).between(no, min(no+printed-1, last.no))
		if slices.ContainsFunc(some, func(s *segment) bool { return !mine[s] }) { // one is there twice, and only one of the two was due
			doc.Prints = append(doc.Prints, "")
			continue
		}
		doc.Prints = append(doc.Prints, print(some))
	}
	return w.leave(ctx, r, doc)
}

// leave leaves a record.
func (w *inventory) leave(ctx context.Context, r *run, doc WALRecord) error {
	name, err := r.archive.AddRecord(ctx, archive.VerifiedWALDir, "", doc)
	if err == nil {
		w.know(name, &doc)
	}
	return r.unrecorded(err)
}

// problem returns what a record says of a segment that is not right, nil for nothing.
func (r *run) problem(object, segment string) *WALProblem {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.troubles[object]
	if t == nil {
		return nil
	}
	p := t.problem
	p.Segment = segment
	switch severity := r.severity(t.verdict); {
	case severity == OK:
		return nil
	case severity == Unknown && p.Kind != Store:
		p.Kind = Key
	}
	t.recorded = true
	return &p
}

// takeBack records damage that was found in segments which are recorded as right, by an earlier run or by this one, before more was known.
func (w *inventory) takeBack(ctx context.Context, r *run) error {
	if w == nil || r.opts.ReadOnly {
		return nil
	}
	found := map[wal.Timeline][]*segment{}
	r.mu.Lock()
	for _, t := range r.troubles {
		if s := t.segment; s != nil && s.name != "" && !t.recorded && r.severity(t.verdict) == Damage {
			found[s.t] = append(found[s.t], s)
		}
	}
	r.mu.Unlock()
	for _, t := range slices.Sorted(maps.Keys(found)) {
		slices.SortFunc(found[t], func(x, y *segment) int { return cmp.Compare(x.no, y.no) })
		for some := range slices.Chunk(found[t], maxNoted) {
			first, last := some[0].no, some[len(some)-1].no
			doc := WALRecord{RecordHead: archive.NewRecordHead(r.opts.By, r.opts.Tool), Timeline: t, First: w.size.Name(t, first), Last: w.size.Name(t, last),
				Segments: len(some), End: w.size.Start(first).String(), Open: true, Sample: float64(len(some)) / float64(last-first+1)}
			for _, s := range some {
				if p := r.problem(s.name, w.size.Name(t, s.no)); p != nil {
					doc.Problems = append(doc.Problems, *p)
				}
			}
			if err := w.leave(ctx, r, doc); err != nil {
				return err
			}
		}
	}
	return nil
}

// results says what came of the ranges.
func (w *inventory) results(r *run) []RangeResult {
	results := []RangeResult{}
	for _, l := range w.timelines {
		for _, g := range l.ranges {
			_, first, _ := w.size.ParseSegment(g.First)
			_, last, _ := w.size.ParseSegment(g.Last)
			res := RangeResult{Range: g, Result: "ok"}
			for _, s := range l.between(first, last) {
				if s.read {
					res.Read++
				} else if s.verified.IsZero() {
					res.Result = "incomplete"
				}
				if s.end > 0 {
					res.End = s.end.String()
				}
			}
			var all verdict
			for _, t := range r.troubles {
				if s := t.segment; s != nil && s.t == l.t && s.no >= first && s.no <= last {
					all.damage, all.doubt, all.unknown = all.damage+t.damage, all.doubt+t.doubt, all.unknown+t.unknown
				}
			}
			switch r.severity(all) {
			case Damage:
				res.Result = "damaged"
			case Unknown:
				res.Result = "incomplete"
			}
			results = append(results, res)
		}
	}
	return results
}

// others reads what lies beside the segments of a timeline: its history, which every command reads, and, while any of the segments is due, what no restore needs.
func (r *run) others(ctx context.Context, l *timeline) error {
	history := false
	due := slices.ContainsFunc(l.segments, func(s segment) bool { return s.wanted && s.verified.IsZero() })
	for _, o := range l.others {
		name := archive.WALName(o.name)
		open := func(a *archive.Archive) (io.ReadCloser, error) { return a.OpenObject(ctx, o.name) }
		f := Finding{Object: o.name, segment: &segment{t: l.t}}
		var err error
		switch kind := wal.KindOf(name); {
		case kind == wal.History:
			history = true
			_, err = r.content(ctx, f, nil, open, func(in io.Reader) error { return r.history(l, in) })
		case !r.request.All || !due:
		case kind == wal.Label:
			f.soft = true
			_, err = r.content(ctx, f, nil, open, func(in io.Reader) error {
				b, err := io.ReadAll(io.LimitReader(in, 1<<20))
				if err == nil && !bytes.HasPrefix(b, []byte("START WAL LOCATION: ")) || err == nil && !bytes.Contains(b, []byte(name[:24])) {
					err = &wrong{Finding{Text: "it is not the label of a backup that starts in the segment of its name"}}
				}
				return err
			})
		default: // partial
			f.soft = true
			_, err = r.content(ctx, f, nil, open, func(in io.Reader) error {
				b := make([]byte, wal.HeaderLen)
				if _, err := io.ReadFull(in, b); err != nil {
					return err
				}
				h, err := wal.ReadHeader(b)
				if err == nil && r.wal.size.Name(h.Timeline, r.wal.size.Segment(h.Address)) != name[:24] && h.Timeline >= l.t {
					err = &wrong{Finding{Kind: Foreign, Text: "it is not the segment of its name"}}
				}
				return err
			})
		}
		if err != nil {
			return err
		}
	}
	// An archive may have begun on a later timeline: what was before that is not needed.
	older := slices.ContainsFunc(r.wal.timelines, func(o *timeline) bool { return o.t < l.t && len(o.segments) > 0 }) ||
		slices.ContainsFunc(r.catalog.Backups, func(b catalog.Backup) bool { return b.Timeline() < l.t })
	if l.t > 1 && !history && len(l.segments) > 0 && older {
		r.add(Finding{Severity: Damage, Kind: Missing, Object: archive.WALDir + wal.HistoryName(l.t), segment: &segment{t: l.t},
			Text: fmt.Sprintf("the history of timeline %d is not there: no restore of an older backup can go on to that timeline", l.t)})
	}
	return nil
}

// history compares a history file with those of its ancestors.
func (r *run) history(l *timeline, in io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(in, 1<<20+1))
	if err != nil {
		return err
	}
	branches, err := catalog.ParseHistory(l.t, b)
	if err != nil {
		return &wrong{Finding{Text: err.Error()}}
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		return &wrong{Finding{Kind: Size, Offset: at(int64(len(b))), Text: "it breaks off within a line"}}
	}
	if len(branches) == 0 {
		return &wrong{Finding{Text: "it names no timeline that this one comes from"}}
	}
	parent := branches[len(branches)-1]
	if of, known := r.catalog.Histories[parent.Timeline]; known {
		same := slices.EqualFunc(of, branches[:len(branches)-1], func(x, y catalog.Branch) bool { return x.Timeline == y.Timeline && x.Switch == y.Switch })
		if !same {
			return &wrong{Finding{Kind: Document, Text: fmt.Sprintf("it does not go on from the history of timeline %d, where it says it comes from", parent.Timeline)}}
		}
	}
	return nil
}
