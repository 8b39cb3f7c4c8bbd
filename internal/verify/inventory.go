package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// inventory is the WAL that a verification is of.
type inventory struct {
	size      wal.SegmentSize
	timelines []*timeline // ascending
	systems   []uint64    // of which clusters it may be; empty where that is not known
	unknown   map[wal.Timeline]error

	from    []*segment // that were read and are not recorded yet
	records []said     // that there are, by what they say
}

// timeline is the WAL of one timeline.
type timeline struct {
	t        wal.Timeline
	path     catalog.Path   // that leads to it; nil where its history cannot be read
	segments []segment      // ascending; of one that is there twice both
	others   []object       // history, labels and partial segments
	ranges   []Range        // that are asked for
	needed   bool           // its history is
	tails    []catalog.Tail // of which there are pieces
}

// segment is an archived segment.
type segment struct {
	object
	t      wal.Timeline
	no     wal.SegmentNo
	note   bool // there is a note of its content
	wanted bool
	closed bool // it was verified, and no record goes on behind it
	read   bool
	// recorded says that a record of this run is of it.
	recorded bool
	end      wal.LSN
	to       wal.SegmentNo // the last one of a hole
}

func (w *inventory) timeline(t wal.Timeline) *timeline {
	i, found := slices.BinarySearchFunc(w.timelines, t, func(l *timeline, t wal.Timeline) int { return cmp.Compare(l.t, t) })
	if !found {
		w.timelines = slices.Insert(w.timelines, i, &timeline{t: t})
	}
	return w.timelines[i]
}

// find returns a segment, nil where it is not archived.
func (l *timeline) find(n wal.SegmentNo) *segment {
	if i := l.search(n); i < len(l.segments) && l.segments[i].no == n {
		return &l.segments[i]
	}
	return nil
}

// search returns where segment n is, or would be. It looks at numbers alone: what is known of segments may change meanwhile.
func (l *timeline) search(n wal.SegmentNo) int {
	return sort.Search(len(l.segments), func(i int) bool { return l.segments[i].no >= n })
}

// takeInventory lists the WAL, marks what is asked for and what of that is due, and looks for what is missing.
func (p *Plan) takeInventory(ctx context.Context, a *archive.Archive) (*inventory, error) {
	w := &inventory{unknown: p.catalog.BadHistory}
	var backup *catalog.Backup
	if n := len(p.targets); n > 0 {
		backup = p.targets[n-1].Backup
	}
	w.size, _ = p.catalog.SegmentSize()
	if !p.request.All {
		if backup == nil || backup.Sentinel == nil {
			return w, nil
		}
		size, err := backup.SegmentSize()
		if err != nil {
			return w, nil // told with the sentinel
		}
		w.size = size
	}
	if err := p.listWAL(ctx, a, w); err != nil {
		return nil, err
	}
	if err := p.ownSystems(ctx, a, w, backup); err != nil {
		return nil, err
	}
	for _, l := range w.timelines {
		l.path, _ = p.catalog.PathTo(l.t)
	}
	var inventory *catalog.WAL
	if p.request.All || p.request.WAL {
		var err error
		if inventory, err = catalog.LoadWAL(ctx, a, w.size); err != nil {
			return nil, err
		}
		p.wantTails(w, inventory, backup)
	}
	gaps, err := p.accepted(ctx, a)
	if err != nil {
		return nil, err
	}
	if p.request.All {
		p.wantAll(w, inventory, gaps)
	} else {
		p.wantFor(w, backup, inventory, gaps)
	}
	if err := p.recallWAL(ctx, a, w); err != nil {
		return nil, err
	}
	for _, l := range w.timelines {
		for i := range l.segments {
			if l.segments[i].wanted {
				p.count(&l.segments[i].object, true)
			}
		}
		p.WAL = append(p.WAL, l.ranges...)
	}
	return w, nil
}

// wantTails marks the segments in pieces: all, or those that are replayed over a backup.
func (p *Plan) wantTails(w *inventory, inventory *catalog.WAL, backup *catalog.Backup) {
	for i := range inventory.Timelines {
		of := &inventory.Timelines[i]
		if len(of.Tails) == 0 {
			continue
		}
		l := w.timeline(of.Timeline)
		l.path, _ = p.catalog.PathTo(l.t)
		for _, t := range of.Tails {
			if p.request.All || of.Timeline >= backup.Timeline() && t.Name[8:] >= backup.Segment()[8:] {
				l.tails = append(l.tails, t)
			}
		}
	}
}

// listWAL lists what is below wal_005.
func (p *Plan) listWAL(ctx context.Context, a *archive.Archive, w *inventory) error {
	var last *segment // listed
	noted := ""       // by its name: a note comes right behind its segment or right before it
	for o, err := range a.Store().List(ctx, archive.WALDir, "") {
		if err != nil {
			return fmt.Errorf("list WAL: %w", err)
		}
		if o.IsDir() {
			continue
		}
		name := archive.WALName(o.Name)
		obj := object{name: o.Name, size: o.Size, modified: o.Modified}
		kind := wal.KindOf(name)
		t, err := wal.TimelineOf(name)
		if kind == wal.Other || err != nil {
			base := path.Base(o.Name)
			switch {
			case strings.HasSuffix(base, ".sum.json") && last != nil && strings.TrimSuffix(base, ".sum.json") == archive.WALName(last.name):
				last.note = true
			case strings.HasSuffix(base, ".sum.json"):
				noted = strings.TrimSuffix(base, ".sum.json")
			case strings.HasSuffix(base, ".json"), strings.Contains(base, "_delta"):
			case p.request.All:
				p.findings = append(p.findings, Finding{Severity: Warning, Kind: Stray, Object: o.Name, Text: "it is no WAL file, nor what is kept beside one: it is left alone"})
			}
			continue
		}
		l := w.timeline(t)
		if kind != wal.Segment {
			l.others = append(l.others, obj)
			continue
		}
		_, no, err := w.size.ParseSegment(name)
		if err != nil {
			if p.request.All {
				p.findings = append(p.findings, Finding{Severity: Warning, Kind: Stray, Object: o.Name, Text: err.Error()})
			}
			continue
		}
		l.segments = append(l.segments, segment{object: obj, t: t, no: no, note: name == noted})
		last = &l.segments[len(l.segments)-1]
	}
	return nil
}

// ownSystems finds out of which clusters the WAL may be.
func (p *Plan) ownSystems(ctx context.Context, a *archive.Archive, w *inventory, backup *catalog.Backup) error {
	if !p.request.All && backup.Sentinel.SystemIdentifier != nil {
		w.systems = []uint64{*backup.Sentinel.SystemIdentifier}
		return nil
	}
	owner, err := a.Owner(ctx)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f := Finding{Severity: Damage, Kind: Content, Object: "holdfast/cluster.json", Text: err.Error()}
		if errors.As(err, new(*fs.PathError)) {
			f.Severity, f.Kind = Unknown, Store
		}
		p.findings = append(p.findings, f)
	}
	if err == nil {
		w.systems = append(owner.Previous, owner.SystemIdentifier)
	}
	for i := range p.catalog.Backups {
		if s := p.catalog.Backups[i].Sentinel; s != nil && s.SystemIdentifier != nil && !slices.Contains(w.systems, *s.SystemIdentifier) {
			w.systems = append(w.systems, *s.SystemIdentifier)
		}
	}
	return nil
}

// want marks segments of a timeline.
func (l *timeline) want(from, to wal.SegmentNo, size wal.SegmentSize) {
	n := 0
	var first, last wal.SegmentNo
	for i := range l.segments {
		s := &l.segments[i]
		if s.no < from || s.no > to {
			continue
		}
		if n == 0 {
			first = s.no
		}
		if n == 0 || s.no != last {
			n++
		}
		s.wanted, last = true, s.no
	}
	if n > 0 {
		l.needed = true
		l.ranges = append(l.ranges, Range{Timeline: l.t, First: size.Name(l.t, first), Last: size.Name(l.t, last), Segments: n})
	}
}

// needs returns which segments a backup needs to be consistent; false where it does not say.
func needs(b *catalog.Backup, size wal.SegmentSize) (from, to wal.SegmentNo, ok bool) {
	start, ok := b.StartLSN()
	if !ok {
		return 0, 0, false
	}
	finish, ok := b.FinishLSN()
	if !ok {
		finish = start + 1
	}
	return size.Segment(start), size.LastSegment(finish), true
}

// lacks tells of segments that are missing, but for those that somebody has accepted to be, or retention has removed. left says that it leaves WAL like that.
func (p *Plan) lacks(w *inventory, gaps []gap, t wal.Timeline, from, to wal.SegmentNo, backup, text string, left bool) {
	var removed, known spans
	reason := ""
	for _, g := range gaps {
		if g.Timeline != t || g.last < from || g.first > to {
			continue
		}
		known.add(g.first, g.last)
		if g.Removed {
			removed.add(g.first, g.last)
		} else {
			reason = g.Reason
		}
	}
	switch {
	case removed.has(from, to) && backup == "": // nothing was lost
		return
	case known.has(from, to) && reason != "":
		p.findings = append(p.findings, Finding{Severity: Warning, Kind: Missing, Backup: backup, Object: archive.WALDir + w.size.Name(t, from),
			Text: fmt.Sprintf("%s not archived, which was accepted: %s", segments(w.size, t, from, to), reason)})
		return
	}
	if left && backup == "" {
		p.findings = append(p.findings, Finding{Severity: Warning, Kind: Missing, Object: archive.WALDir + w.size.Name(t, from), LSN: w.size.Start(from).String(),
			Text: segments(w.size, t, from, to) + " not there: from behind what one backup needs to where the next begins, as retention leaves it. No moment between the two can be restored"})
		return
	}
	f := Finding{Severity: Damage, Kind: Missing, Backup: backup, Object: archive.WALDir + w.size.Name(t, from),
		LSN: w.size.Start(from).String(), Text: segments(w.size, t, from, to) + " not archived" + text, segment: &segment{t: t, no: from, to: to}}
	for bad := range p.catalog.BadHistory {
		if bad > t && len(w.timeline(t).between(to, 1<<64-1)) == 0 {
			f.Severity = Unknown
			f.Text += fmt.Sprintf("; where timeline %d begins is not known, which may have it", bad)
		}
	}
	p.findings = append(p.findings, f)
}

// segments names a stretch, with its verb.
func segments(size wal.SegmentSize, t wal.Timeline, from, to wal.SegmentNo) string {
	if from == to {
		return fmt.Sprintf("segment %s is", size.Name(t, from))
	}
	return fmt.Sprintf("%d segments, %s to %s, are", to-from+1, size.Name(t, from), size.Name(t, to))
}

// waitFor is how long WAL that a backup needs may take to be archived before it is missing: a push need not wait for it.
const waitFor = time.Hour

// wantBackup marks what a backup needs, and tells of what is missing of it.
func (p *Plan) wantBackup(w *inventory, b *catalog.Backup, gaps []gap) (from wal.SegmentNo, ok bool) {
	from, to, ok := needs(b, w.size)
	if !ok {
		return 0, false
	}
	l := w.timeline(b.Timeline())
	hole := func(first, last wal.SegmentNo) {
		younger := w.leftIn(b, last)
		if younger != nil && younger.find(last) != nil {
			if last--; last+1 == first {
				return
			}
			younger = nil
		}
		t := l.t
		if younger != nil && first == last {
			t = younger.t
		}
		later := slices.ContainsFunc(w.timelines, func(o *timeline) bool {
			return o.t >= l.t && len(o.segments) > 0 && o.segments[len(o.segments)-1].no > last
		})
		if last == to && !later && p.now.Sub(b.Created()) < waitFor {
			p.findings = append(p.findings, Finding{Severity: Unknown, Kind: Missing, Backup: b.Name, Object: archive.WALDir + w.size.Name(t, first), LSN: w.size.Start(first).String(),
				Text: segments(w.size, t, first, last) + " not archived yet, and the backup needs it to be consistent", Next: "verify again once the server has archived it", segment: &segment{t: t, no: first}})
			return
		}
		p.lacks(w, gaps, t, first, last, b.Name, ", and the backup needs it to be consistent", false)
	}
	next := from
	for _, s := range l.between(from, to) {
		if s.no > next {
			hole(next, s.no-1)
		}
		next = s.no + 1
	}
	if next <= to {
		hole(next, to)
	}
	return from, true
}

// leftIn returns the timeline for which the backup's own was left in segment n, behind the backup's finish; nil for none. Its segment n has what the
// backup's timeline wrote into it, which under its own name is archived as .partial, or not at all.
func (w *inventory) leftIn(b *catalog.Backup, n wal.SegmentNo) *timeline {
	finish, _ := b.FinishLSN()
	for _, l := range w.timelines {
		if leg, on := l.path.Leg(b.Timeline()); on && l.t != b.Timeline() && leg.End >= finish && w.size.Segment(leg.End) == n {
			return l
		}
	}
	return nil
}

// copied returns the segment of a younger timeline that stands for segment n of a backup's; nil for none.
func (w *inventory) copied(b *catalog.Backup, n wal.SegmentNo) *segment {
	if l := w.leftIn(b, n); l != nil {
		return l.find(n)
	}
	return nil
}

// wantFor marks the WAL of one backup.
func (p *Plan) wantFor(w *inventory, b *catalog.Backup, inventory *catalog.WAL, gaps []gap) {
	from, ok := p.wantBackup(w, b, gaps)
	if !ok {
		return
	}
	_, to, _ := needs(b, w.size)
	if !p.request.WAL {
		w.timeline(b.Timeline()).want(from, to, w.size)
		if s := w.copied(b, to); s != nil && w.timeline(b.Timeline()).find(to) == nil {
			w.timeline(s.t).want(to, to, w.size)
		}
		return
	}
	current := p.catalog.Current(catalog.Evidence{WAL: inventory})
	along, err := p.catalog.PathTo(current.Timeline)
	if _, on := along.Leg(b.Timeline()); err != nil || !on {
		along, err = p.catalog.PathTo(b.Timeline())
	}
	if err != nil {
		w.timeline(b.Timeline()).want(from, to, w.size)
		return // the history is told of when it is read
	}
	for i, leg := range along { // what comes before the backup's own timeline is not replayed
		if leg.Timeline == b.Timeline() {
			along = along[i:]
			break
		}
	}
	for s := range along.Stretches(w.size, from) {
		w.timeline(s.Timeline).want(s.First, s.Last, w.size)
	}
	p.holes(w, inventory, along, from, func(hole catalog.Stretch, left bool) {
		if hole.Timeline == b.Timeline() && hole.First <= to { // was told
			if hole.Last <= to {
				return
			}
			hole.First = to + 1
		}
		p.lacks(w, gaps, hole.Timeline, hole.First, hole.Last, "", ", and later ones are", left)
	})
}

// holes calls do for what is missing along a path from a segment on. left says that all of the hole lies just behind what one backup needs to be consistent, and just
// before another begins: as retention leaves WAL, where a backup is kept for its own moment alone.
func (p *Plan) holes(w *inventory, inventory *catalog.WAL, along catalog.Path, from wal.SegmentNo, do func(_ catalog.Stretch, left bool)) {
	var hole []catalog.Stretch // of several timelines
	end := func() {
		if len(hole) == 0 {
			return
		}
		behind, before := false, false
		for i := range p.catalog.Backups {
			b := &p.catalog.Backups[i]
			if _, on := along.Leg(b.Timeline()); b.Sentinel == nil || !on {
				continue
			}
			if first, last, ok := needs(b, w.size); ok {
				behind = behind || last+1 == hole[0].First
				before = before || first == hole[len(hole)-1].Last+1
			}
		}
		for _, s := range hole {
			do(s, behind && before)
		}
		hole = hole[:0]
	}
	for s := range inventory.Holes(along, from) {
		if len(hole) > 0 && hole[len(hole)-1].Last+1 < s.First {
			end()
		}
		hole = append(hole, s)
	}
	end()
}

// wantAll marks all WAL.
func (p *Plan) wantAll(w *inventory, inventory *catalog.WAL, gaps []gap) {
	for _, l := range w.timelines {
		l.want(0, 1<<64-1, w.size)
		l.needed = true
	}
	type start struct {
		t    wal.Timeline
		from wal.SegmentNo
	}
	var starts []start
	told := map[start]bool{}
	for i := range p.catalog.Backups {
		b := &p.catalog.Backups[i]
		if b.Sentinel == nil || b.Condemned != nil {
			continue
		}
		before := len(p.findings)
		from, ok := p.wantBackup(w, b, gaps)
		if !ok {
			continue
		}
		for _, f := range p.findings[before:] {
			if f.segment != nil {
				told[start{f.segment.t, f.segment.no}] = true
			}
		}
		starts = append(starts, start{b.Timeline(), from})
	}
	current := p.catalog.Current(catalog.Evidence{WAL: inventory})
	ends := []wal.Timeline{current.Timeline}
	for _, l := range current.Others {
		ends = append(ends, l.Timeline)
	}
	for _, t := range ends {
		along, err := p.catalog.PathTo(t)
		if err != nil || len(along) == 0 {
			continue
		}
		first := -1 // the oldest backup on the way
		for i, s := range starts {
			if leg, on := along.Leg(s.t); on && (leg.End == 0 || w.size.Start(s.from) < leg.End) && (first < 0 || s.from < starts[first].from) {
				first = i
			}
		}
		if first < 0 {
			continue
		}
		p.holes(w, inventory, along, starts[first].from, func(hole catalog.Stretch, left bool) {
			if key := (start{hole.Timeline, hole.First}); !told[key] {
				told[key] = true
				p.lacks(w, gaps, hole.Timeline, hole.First, hole.Last, "", ", and later ones are", left)
			}
		})
	}
}

// gap is a hole in the WAL that somebody has accepted.
type gap struct {
	Timeline    wal.Timeline `json:"timeline"`
	First       string       `json:"first"`
	Last        string       `json:"last"`
	Reason      string       `json:"reason"`
	Revoked     bool         `json:"revoked"`
	Removed     bool         `json:"removed"` // by retention
	first, last wal.SegmentNo
}

// accepted reads which holes somebody has accepted.
func (p *Plan) accepted(ctx context.Context, a *archive.Archive) (gaps []gap, err error) {
	size, _ := p.catalog.SegmentSize()
	for rec, err := range archive.Records[gap](ctx, a, archive.GapDir) {
		if err != nil && rec.Name == "" {
			return nil, err
		}
		if err != nil {
			p.findings = append(p.findings, Finding{Severity: Warning, Kind: Content, Object: rec.Name, Text: "an accepted gap cannot be read, and does not count: " + err.Error()})
			continue
		}
		g := rec.Doc
		_, first, err1 := size.ParseSegment(g.First)
		_, last, err2 := size.ParseSegment(g.Last)
		if err1 != nil || err2 != nil {
			continue
		}
		g.first, g.last = first, last
		if g.Revoked {
			gaps = slices.DeleteFunc(gaps, func(o gap) bool { return o.Timeline == g.Timeline && o.first == g.first && o.last == g.last })
			continue
		}
		gaps = append(gaps, g)
	}
	return gaps, nil
}

// WALRecord is what a verification has found of a range of segments, in archive.VerifiedWALDir. Segments without a problem are right. Of several the last that
// is of a segment counts for that.
type WALRecord struct {
	archive.RecordHead
	Timeline wal.Timeline `json:"timeline"`
	First    string       `json:"first"` // names of segments
	Last     string       `json:"last"`
	Segments int          `json:"segments"`
	Bytes    int64        `json:"read_bytes"` // as stored
	End      string       `json:"end_lsn"`    // of the last one that is right
	Open     bool         `json:"open"`       // a record of the last one goes on in the next, and was not read to its end
	// Prints has for each printed segments the XXH64 of their objects' names, sizes and times: those are still there, and as they were.
	Prints   []string     `json:"prints,omitempty"`
	Problems []WALProblem `json:"problems,omitempty"`
	Sample   float64      `json:"sample,omitempty"` // not all of the range was read, but about this share of it: nothing but the problems counts
}

// WALProblem is what is wrong with a segment, or why it could not be looked at: of that the kind is that of a store or a key.
type WALProblem struct {
	Segment string `json:"segment"`
	Offset  int64  `json:"offset"`
	Kind    Kind   `json:"kind"`
	Text    string `json:"text"`
}

func (p *WALProblem) text() string { return cmp.Or(p.Text, string(p.Kind)) }

// printed is how many segments one of a record's prints is of.
const printed = 64

// print returns the print of some segments.
func print(some []*segment) string {
	h := xxhash.New()
	for _, s := range some {
		fmt.Fprintf(h, "%s %d %d\n", s.name, s.size, s.modified.UnixNano())
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// recallWAL marks what was found to be right not long ago.
func (p *Plan) recallWAL(ctx context.Context, a *archive.Archive, w *inventory) error {
	for rec, err := range archive.Records[WALRecord](ctx, a, archive.VerifiedWALDir) {
		if err != nil && rec.Name == "" {
			return err
		}
		if err != nil {
			p.findings = append(p.findings, Finding{Severity: Warning, Kind: Content, Object: rec.Name,
				Text: "a record of an earlier verification cannot be read, and does not count: " + err.Error()})
			continue
		}
		d := rec.Doc
		_, first, err1 := w.size.ParseSegment(d.First)
		_, last, err2 := w.size.ParseSegment(d.Last)
		w.know(rec.Name, &d)
		if err1 != nil || err2 != nil || last < first || d.At.After(p.now) || p.request.Again || p.now.Sub(d.At) > p.request.MaxAge {
			continue
		}
		l := w.timeline(d.Timeline)
		for i := 0; i < len(d.Prints) && first+wal.SegmentNo(i)*printed <= last; i++ {
			begin := first + wal.SegmentNo(i)*printed
			end := min(begin+printed-1, last)
			some := l.between(begin, end)
			if d.Sample != 0 || len(some) == 0 || print(some) != d.Prints[i] {
				continue
			}
			for _, s := range some {
				s.verified = d.At
				s.closed = s.no == last && !d.Open
			}
		}
		for _, problem := range d.Problems { // takes back what earlier records say, too
			if t, no, err := w.size.ParseSegment(problem.Segment); err == nil {
				for _, s := range w.timeline(t).between(no, no) {
					s.verified, s.closed = time.Time{}, false
				}
			}
		}
	}
	return nil
}

// between returns the segments first to last.
func (l *timeline) between(first, last wal.SegmentNo) (some []*segment) {
	for i := l.search(first); i < len(l.segments) && l.segments[i].no <= last; i++ {
		some = append(some, &l.segments[i])
	}
	return some
}
