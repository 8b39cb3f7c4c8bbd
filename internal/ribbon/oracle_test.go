package ribbon_test

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
)

const size = wal.SegmentSize(16 << 20)

// day is the moment at which tests begin.
var day = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

// world is an archive as the oracle sees it: names, and what is known of each object.
type world struct {
	in      ribbon.Input
	stored  map[string]time.Time // segments by name
	empty   map[string]bool
	tails   map[string]catalog.Tail   // segments of which there are pieces alone
	parents map[wal.Timeline][]string // lines of history files, "parent LSN"
	asked   map[string]answer         // of segments
	fetched map[string]answer         // of backups
	calm    bool                      // little has gone wrong
	lost    []string                  // segments
}

const top = 20 // segments of a world

// randomWorld draws an archive of up to four timelines: lost, damaged, locked and empty segments, segments in pieces, backups with and without parents and WAL, of other
// clusters, condemned, unreadable, verified or not.
func randomWorld(t *rapid.T) *world {
	w := &world{asked: map[string]answer{}, fetched: map[string]answer{}, stored: map[string]time.Time{}, empty: map[string]bool{}, tails: map[string]catalog.Tail{}, parents: map[wal.Timeline][]string{}}
	c := &catalog.Catalog{Histories: map[wal.Timeline][]catalog.Branch{}, BadHistory: map[wal.Timeline]error{}}
	w.in = ribbon.Input{Catalog: c, WAL: &catalog.WAL{SegmentSize: size}, Now: day.Add(100 * time.Hour), Backups: map[string]ribbon.Evidence{}}
	lines := rapid.IntRange(1, 4).Draw(t, "timelines")
	w.calm = rapid.Bool().Draw(t, "calm")
	few := rapid.IntRange(0, 12).Draw(t, "loss") // one segment in so many and one is not there; 0 is none
	if w.calm && few > 0 {
		few += 12
	}
	for tl := wal.Timeline(1); tl <= wal.Timeline(lines); tl++ {
		if tl > 1 && rapid.IntRange(0, 7).Draw(t, "history") > 0 {
			w.branch(t, tl)
		}
		w.segments(t, tl, few)
	}
	w.backups(t, lines)
	w.marks(t, lines)
	if rapid.IntRange(0, 9).Draw(t, "silent") == 0 {
		w.in.Stores = []ribbon.Store{{Name: "default"}, {Name: "far", Err: errors.New("connection refused")}}
	}
	w.in.ProvenOnly = rapid.IntRange(0, 3).Draw(t, "proven") == 0
	if rapid.Bool().Draw(t, "live") {
		w.in.Live = wal.Timeline(rapid.IntRange(1, lines).Draw(t, "live timeline"))
	}
	return w
}

func (w *world) branch(t *rapid.T, tl wal.Timeline) {
	parent := wal.Timeline(rapid.IntRange(1, int(tl)-1).Draw(t, "parent"))
	branches := slices.Clone(w.in.Catalog.Histories[parent])
	from := wal.LSN(size)
	if n := len(branches); n > 0 {
		from = branches[n-1].Switch
	}
	at := from + wal.LSN(rapid.Uint64Range(0, 24).Draw(t, "switch")*uint64(size)/4)
	branches = append(branches, catalog.Branch{Timeline: parent, Switch: at, Reason: "no recovery target specified"})
	if rapid.IntRange(0, 19).Draw(t, "bad history") == 0 {
		w.in.Catalog.BadHistory[tl] = errors.New("not to be read")
		w.parents[tl] = nil
		return
	}
	w.in.Catalog.Histories[tl] = branches
	for _, b := range branches {
		w.parents[tl] = append(w.parents[tl], fmt.Sprintf("%d %s", b.Timeline, b.Switch))
	}
}

func (w *world) segments(t *rapid.T, tl wal.Timeline, few int) {
	var begin wal.SegmentNo = 1
	if b := w.in.Catalog.Histories[tl]; len(b) > 0 {
		begin = size.Segment(b[len(b)-1].Switch)
	}
	end := begin + wal.SegmentNo(rapid.IntRange(0, 12).Draw(t, "length"))
	of := catalog.TimelineWAL{Timeline: tl}
	for n := begin; n < min(end, top); n++ {
		if few > 0 && rapid.IntRange(0, few).Draw(t, "lost") == 0 {
			w.lost = append(w.lost, size.Name(tl, n))
			if rapid.IntRange(0, 2).Draw(t, "in pieces") == 0 {
				w.pieces(t, &of, n)
			}
			continue
		}
		if !w.calm && rapid.IntRange(0, 59).Draw(t, "empty") == 0 {
			of.Empty = append(of.Empty, n)
			w.empty[size.Name(tl, n)] = true
			continue
		}
		at := day.Add(time.Duration(n) * time.Hour)
		w.stored[size.Name(tl, n)] = at
		if k := len(of.Runs); k > 0 && of.Runs[k-1].Last+1 == n && rapid.IntRange(0, 3).Draw(t, "run") > 0 {
			of.Runs[k-1].Last, of.Runs[k-1].Newest = n, at // times in a run are spread evenly, as they are here
		} else {
			of.Runs = append(of.Runs, catalog.Run{First: n, Last: n, Oldest: at, Newest: at, Storage: rapid.SampledFrom([]string{"", "far"}).Draw(t, "storage")})
		}
	}
	for n := end; rapid.Bool().Draw(t, "pieces follow"); n++ {
		w.pieces(t, &of, n)
	}
	w.in.WAL.Timelines = append(w.in.WAL.Timelines, of)
}

// pieces draws what there is of a segment in pieces.
func (w *world) pieces(t *rapid.T, of *catalog.TimelineWAL, n wal.SegmentNo) {
	p := catalog.Tail{Segment: n}
	p.Name, p.Modified = size.Name(of.Timeline, n), day.Add(time.Duration(n)*time.Hour)
	p.Held = rapid.SampledFrom([]int64{0, wal.HeaderLen, int64(size) / 4, int64(size) / 2, int64(size) - 1, int64(size)}).Draw(t, "held")
	p.Top = max(p.Held, int64(rapid.IntRange(0, int(size)).Draw(t, "top")))
	of.Tails = append(of.Tails, p)
	if rapid.IntRange(0, 7).Draw(t, "damaged pieces") == 0 {
		read := ribbon.Tail{Timeline: of.Timeline, Segment: n, Good: rapid.Int64Range(0, int64(size)).Draw(t, "good"), Problem: "a record's checksum is wrong"}
		w.in.Tails = append(w.in.Tails, read)
		if p.Held = min(p.Held, read.Good); p.Held < wal.HeaderLen {
			p.Held = 0
		}
	}
	if p.Held > 0 {
		w.tails[p.Name] = p
	}
}

func (w *world) backups(t *rapid.T, lines int) {
	c := w.in.Catalog
	for i := range rapid.IntRange(0, 6).Draw(t, "backups") {
		tl := wal.Timeline(rapid.IntRange(1, lines).Draw(t, "timeline"))
		start := wal.LSN(rapid.Uint64Range(4, 4*top-8).Draw(t, "start")*uint64(size)/4) + 0x28
		finish := start + wal.LSN(rapid.Uint64Range(0, 9).Draw(t, "length")*uint64(size)/4)
		if rapid.IntRange(0, 4).Draw(t, "border") == 0 {
			finish = size.Start(size.Segment(finish) + 1)
		}
		name := archive.BackupName(size.Name(tl, size.Segment(start)))
		s := &archive.Sentinel{LSN: &start, FinishLSN: &finish, SegmentSize: uint64(size), FinishTime: day.Add(time.Duration(i) * time.Minute)}
		if n := len(c.Backups); n > 0 && rapid.IntRange(0, 2).Draw(t, "delta") == 0 {
			parent := &c.Backups[rapid.IntRange(0, n-1).Draw(t, "parent")]
			from := parent.Name
			lsn := start
			if parent.Sentinel != nil {
				lsn = *parent.Sentinel.LSN
			}
			what := rapid.IntRange(0, 5).Draw(t, "what parent")
			if w.calm {
				what = 5
			}
			switch what {
			case 0:
				from = archive.BackupName(size.Name(9, 9))
			case 1:
				lsn++
			}
			name = archive.DeltaName(size.Name(tl, size.Segment(start)), from)
			s.DeltaFrom, s.DeltaLSN = from, &lsn
		}
		if slices.ContainsFunc(c.Backups, func(b catalog.Backup) bool { return b.Name == name }) {
			continue
		}
		b := catalog.Backup{Name: name, Sentinel: s, Storage: rapid.SampledFrom([]string{"", "far"}).Draw(t, "storage")}
		system := uint64(7)
		odd, evidence := rapid.IntRange(0, 19).Draw(t, "odd"), rapid.IntRange(0, 9).Draw(t, "evidence")
		if w.calm {
			odd = 10
			if evidence == 1 || evidence == 2 {
				evidence = 3
			}
		}
		switch odd {
		case 0:
			b.Sentinel, b.Err = nil, errors.New("truncated")
		case 1:
			b.Condemned = &catalog.Condemned{}
		case 2:
			system = 6
		case 3:
			s.FinishLSN = nil
		}
		s.SystemIdentifier = &system
		var e ribbon.Evidence
		switch evidence {
		case 0:
			e.Damaged = "part_001.tar.zst: its checksum is wrong"
		case 1:
			e.Locked = "it is for age1…, and none of the identities fits"
		case 2:
			e.Missing = "pg_control.tar"
		case 3, 4, 5, 6, 7:
			e.Verified = day
		}
		w.in.Backups[name] = e
		c.Backups = append(c.Backups, b)
	}
	w.in.System = 7
}

func (w *world) marks(t *rapid.T, lines int) {
	stretch := func() (tl wal.Timeline, first, last wal.SegmentNo) {
		tl = wal.Timeline(rapid.IntRange(1, lines).Draw(t, "of"))
		first = wal.SegmentNo(rapid.IntRange(0, top).Draw(t, "first"))
		return tl, first, first + wal.SegmentNo(rapid.IntRange(0, 10).Draw(t, "more"))
	}
	for i := range rapid.IntRange(0, 5).Draw(t, "checked") {
		k := ribbon.Checked{When: day.Add(time.Duration(5*(i+1)) * time.Hour)}
		k.Timeline, k.First, k.Last = stretch()
		if rapid.IntRange(0, 2).Draw(t, "damaged") == 0 && !w.calm {
			k.Last, k.Problem = k.First, "a record's checksum is wrong"
		}
		w.in.Checked = append(w.in.Checked, k)
	}
	for range rapid.IntRange(-3, 1).Draw(t, "locked") {
		if w.calm {
			break
		}
		var l ribbon.Locked
		l.Timeline, l.First, l.Last = stretch()
		l.Last = min(l.Last, l.First+2)
		l.Why = "no key"
		w.in.Locked = append(w.in.Locked, l)
	}
	for range rapid.IntRange(-2, 2).Draw(t, "gaps") {
		tl, first, last := stretch()
		if n := len(w.lost); n > 0 && rapid.IntRange(0, 3).Draw(t, "hits") > 0 {
			var err error
			if tl, first, err = size.ParseSegment(w.lost[rapid.IntRange(0, n-1).Draw(t, "which")]); err != nil {
				panic(err)
			}
			last = first + wal.SegmentNo(rapid.IntRange(0, 1).Draw(t, "one more"))
		}
		g := ribbon.Gap{Timeline: tl, First: size.Name(tl, first), Last: size.Name(tl, last), Reason: "a disk full"}
		g.By, g.Removed = "dba@db1", rapid.IntRange(0, 3).Draw(t, "by retention") == 0
		w.in.Gaps = append(w.in.Gaps, g)
	}
}

// answer is what the oracle says; the larger the worse.
type answer int

const (
	yes answer = iota
	perhaps
	no
)

// segment says whether recovery gets the segment called name.
func (w *world) segment(name string) answer {
	a, known := w.asked[name]
	if !known {
		a = w.look(name)
		w.asked[name] = a
	}
	return a
}

func (w *world) look(name string) answer {
	at, there := w.stored[name]
	tail, pieces := w.tails[name]
	if pieces {
		at = tail.Modified
	}
	if !there && !pieces {
		return no
	}
	tl, n, err := size.ParseSegment(name)
	if err != nil {
		panic(err)
	}
	verified := false
	for _, k := range slices.Backward(w.in.Checked) {
		if k.Timeline == tl && k.First <= n && n <= k.Last {
			if !at.After(k.When) {
				if k.Problem != "" {
					return no
				}
				verified = !pieces
			}
			break
		}
	}
	for _, l := range w.in.Locked {
		if l.Timeline == tl && l.First <= n && n <= l.Last {
			return perhaps
		}
	}
	if w.in.ProvenOnly && !verified {
		return perhaps
	}
	return yes
}

// fetch says whether the files of a backup can be brought back.
func (w *world) fetch(name string, depth int) (a answer, verified bool) {
	i := slices.IndexFunc(w.in.Catalog.Backups, func(b catalog.Backup) bool { return b.Name == name })
	if i < 0 || depth > 10 {
		return no, false
	}
	b := w.in.Catalog.Backups[i]
	if b.Sentinel == nil {
		return perhaps, false
	}
	e := w.in.Backups[name]
	if e.Damaged != "" || e.Missing != "" {
		return no, false
	}
	if e.Locked != "" {
		a = perhaps
	}
	verified = !e.Verified.IsZero()
	if b.Sentinel.DeltaFrom != "" {
		below, seen := w.fetch(b.Sentinel.DeltaFrom, depth+1)
		j := slices.IndexFunc(w.in.Catalog.Backups, func(p catalog.Backup) bool { return p.Name == b.Sentinel.DeltaFrom })
		if j >= 0 {
			if p := w.in.Catalog.Backups[j]; p.Sentinel != nil && (*p.Sentinel.LSN != *b.Sentinel.DeltaLSN || *p.Sentinel.SystemIdentifier != *b.Sentinel.SystemIdentifier) {
				return no, false
			}
		}
		a, verified = max(a, below), verified && seen
	}
	if w.in.ProvenOnly && !verified {
		a = max(a, perhaps)
	}
	return a, verified
}

// entry is a line of a history file: the log is that of tl from begin to end.
type entry struct {
	tl         wal.Timeline
	begin, end wal.LSN
}

// history reads the history file of a timeline, oldest entry first.
func (w *world) history(target wal.Timeline) (history []entry) {
	var begin wal.LSN
	for _, line := range w.parents[target] {
		var tl wal.Timeline
		var at string
		fmt.Sscan(line, &tl, &at)
		end, err := wal.ParseLSN(at)
		if err != nil {
			panic(err)
		}
		history = append(history, entry{tl, begin, end})
		begin = end
	}
	return append(history, entry{target, begin, 1<<64 - 1})
}

// fileOf names the n-th segment along a history: that of the newest timeline that had begun by then.
func fileOf(history []entry, n uint64) string {
	var from wal.Timeline
	for _, e := range slices.Backward(history) {
		if uint64(e.begin)/uint64(size) <= n {
			from = e.tl
			break
		}
	}
	return fmt.Sprintf("%08X%08X%08X", uint32(from), n/256, n%256)
}

// restore says whether recovery along timeline target stops at lsn when it begins with a certain backup, by doing what PostgreSQL does: it reads the
// history file, checks that the backup is on it, and asks for one segment after the other, each from the newest timeline that had begun by then.
func (w *world) restore(b catalog.Backup, target wal.Timeline, lsn wal.LSN) answer {
	if b.Condemned != nil || b.Sentinel != nil && *b.Sentinel.SystemIdentifier != 7 {
		return no
	}
	history := w.history(target)
	result, known := w.fetched[b.Name]
	if !known {
		result, _ = w.fetch(b.Name, 0)
		w.fetched[b.Name] = result
	}
	if w.in.Catalog.BadHistory[target] != nil {
		result = max(result, perhaps)
	}
	segment := b.Name[len("base_"):][:24]
	var mine wal.Timeline
	fmt.Sscanf(segment, "%08X", &mine)
	var start, finish wal.LSN
	if known = true; b.Sentinel == nil {
		var hi, lo uint64
		fmt.Sscanf(segment[8:], "%08X%08X", &hi, &lo)
		start = wal.LSN((hi*256 + lo) * uint64(size))
		finish = start + 1
	} else {
		start = *b.Sentinel.LSN
		finish = start + 1
		if known = b.Sentinel.FinishLSN != nil; known {
			finish = *b.Sentinel.FinishLSN
		}
	}
	on := false
	for i, e := range history {
		left := i+1 < len(history)
		on = on || e.tl == mine && start >= e.begin && (!left || known && finish <= e.end) && (b.Sentinel != nil || !left || start < e.end)
	}
	if !on || finish > lsn {
		return no
	}
	for at := start; ; {
		n := uint64(at) / uint64(size)
		name := fileOf(history, n)
		result = max(result, w.segment(name))
		if p, pieces := w.tails[name]; pieces && lsn > p.End(size) && p.Held < int64(size) {
			result = no
		}
		if at = wal.LSN((n + 1) * uint64(size)); at >= lsn || result == no {
			return result
		}
	}
}

// oracle says whether any backup does.
func (w *world) oracle(target wal.Timeline, lsn wal.LSN) answer {
	best := no
	for _, b := range w.in.Catalog.Backups {
		best = min(best, w.restore(b, target, lsn))
	}
	// What is missing may be in a storage that is silent, and any backup may lead to a timeline of which nobody knows where it came from.
	if best == no && (len(w.in.Stores) > 1 || w.in.Catalog.BadHistory[target] != nil) {
		best = perhaps
	}
	return best
}

// told is what a ribbon says of a position.
func told(stretches []ribbon.Stretch, lsn wal.LSN) answer {
	a := no
	for _, s := range stretches {
		if s.From <= lsn && lsn <= s.To {
			switch s.Verdict {
			case ribbon.Restorable:
				a = min(a, yes)
			case ribbon.Unknown:
				a = min(a, perhaps)
			}
		}
	}
	return a
}

// positions are where something may change, and right before and behind that.
func (w *world) positions() (all []wal.LSN) {
	around := func(lsn wal.LSN) {
		all = append(all, lsn, lsn+1)
		if lsn > 1 {
			all = append(all, lsn-1)
		}
	}
	for n := wal.SegmentNo(1); n <= top+4; n++ {
		around(size.Start(n))
		all = append(all, size.Start(n)+wal.LSN(size)/2)
	}
	for _, p := range w.tails {
		around(p.End(size))
	}
	for _, b := range w.in.Catalog.Backups {
		if s := b.Sentinel; s != nil {
			around(*s.LSN)
			if s.FinishLSN != nil {
				around(*s.FinishLSN)
			}
		}
	}
	return all
}

// often makes rapid draw n worlds; the command line may ask for more.
func often(t *testing.T, n int) {
	f := flag.Lookup("rapid.checks")
	if was := f.Value.String(); was == f.DefValue {
		if err := flag.Set("rapid.checks", fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = flag.Set("rapid.checks", was) })
	}
}

// A ribbon says of every position on every timeline what restoring to it, segment by segment, comes to.
func TestComputeEqualsOracle(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 500
	}
	often(t, n)
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		r := ribbon.Compute(w.in)
		positions := w.positions()
		for _, line := range r.Timelines {
			if len(line.Stretches) == 0 {
				continue
			}
			for _, lsn := range positions {
				if lsn <= line.Switch || lsn < line.Stretches[0].From || lsn > line.Stretches[len(line.Stretches)-1].To {
					continue
				}
				if want, got := w.oracle(line.Timeline, lsn), told(line.Stretches, lsn); got != want {
					t.Fatalf("timeline %d at %s: got %d, want %d\n%s", line.Timeline, lsn, got, want, w.describe(r))
				}
			}
		}
		for _, lsn := range positions {
			in := len(r.Main) > 0 && r.Main[0].From <= lsn && lsn <= r.Main[len(r.Main)-1].To
			want, got := w.oracle(wal.Timeline(r.Timeline), lsn), told(r.Main, lsn)
			if !in {
				want = max(want, perhaps) // it says nothing of what is beyond all that is known
				got = max(got, perhaps)
				if want == perhaps {
					continue
				}
			}
			if got != want {
				t.Fatalf("along timeline %d at %s: got %d, want %d\n%s", r.Timeline, lsn, got, want, w.describe(r))
			}
		}
		w.holds(t, r)
	})
}

// holds checks what a ribbon says beside its verdicts.
func (w *world) holds(t *rapid.T, r ribbon.Ribbon) {
	for i, s := range r.Main {
		if i > 0 && (s.From != r.Main[i-1].To) {
			t.Fatalf("stretch %d does not begin where the one before ends\n%s", i, w.describe(r))
		}
		if (s.Verdict == ribbon.Restorable) != (s.Why == "") || s.From > s.To {
			t.Fatalf("stretch %d: %+v\n%s", i, s, w.describe(r))
		}
		if s.Verdict == ribbon.Restorable {
			w.best(t, r, s)
			continue
		}
		if s.First != "" {
			if _, there := w.stored[s.First]; there && w.segment(s.First) == yes {
				t.Fatalf("%s is blamed, and is good\n%s", s.First, w.describe(r))
			}
		}
	}
	w.lapses(t, r)
	var until wal.LSN
	for _, s := range r.Main {
		if s.Verdict == ribbon.Restorable {
			until = s.To
		}
	}
	if (r.Until == nil) != (until == 0) || r.Until != nil && r.Until.LSN != until {
		t.Fatalf("restorable until %+v\n%s", r.Until, w.describe(r))
	}
	if r.Until == nil && r.Status == ribbon.OK {
		t.Fatalf("nothing is restorable, and all is well\n%s", w.describe(r))
	}
	if r.Status == ribbon.OK && r.Newest.LSN > r.Until.LSN {
		t.Fatalf("the newest WAL cannot be restored, and all is well\n%s", w.describe(r))
	}
	for _, b := range r.Backups {
		i := slices.IndexFunc(w.in.Catalog.Backups, func(o catalog.Backup) bool { return o.Name == b.Name })
		own := w.in.Catalog.Backups[i]
		finish, _ := own.FinishLSN()
		if own.Sentinel == nil || finish == 0 || own.Condemned != nil || len(w.in.Stores) > 1 || w.in.Catalog.BadHistory[b.Timeline] != nil {
			continue
		}
		if *own.Sentinel.LSN < w.began(b.Timeline) {
			continue // no backup can begin before its timeline
		}
		want := map[answer]ribbon.Verdict{yes: ribbon.Restorable, perhaps: ribbon.Unknown, no: ribbon.Broken}[w.restore(own, b.Timeline, finish)]
		if b.Verdict != want {
			t.Fatalf("%s is %s, want %s\n%s", b.Name, b.Verdict, want, w.describe(r))
		}
	}
}

// lapses checks what is said of positions that cannot be restored: what was accepted explains some of it, and changes nothing else.
func (w *world) lapses(t *rapid.T, r ribbon.Ribbon) {
	strict := w.in
	strict.Gaps = nil
	without := ribbon.Compute(strict)
	for i, s := range r.Main {
		switch s.Verdict {
		case ribbon.Uncovered:
			if i > 0 {
				t.Fatalf("stretch %d is older than the oldest backup\n%s", i, w.describe(r))
			}
		case ribbon.Accepted:
			named := true
			for n := uint64(s.From) / uint64(size); n <= uint64(s.To-1)/uint64(size); n++ {
				name := fileOf(w.history(wal.Timeline(r.Timeline)), n)
				p, pieces := w.tails[name]
				named = named && (w.segment(name) != no && (!pieces || p.Held >= min(int64(size), int64(s.To)-int64(n)*int64(size))) || slices.ContainsFunc(w.in.Gaps, func(g ribbon.Gap) bool { return g.First <= name && name <= g.Last }))
			}
			for _, b := range r.Backups { // another reason than what was accepted
				i := slices.IndexFunc(w.in.Catalog.Backups, func(o catalog.Backup) bool { return o.Name == b.Name })
				own := w.in.Catalog.Backups[i]
				a, _ := w.fetch(b.Name, 0)
				if a == no && own.Condemned == nil && b.Timeline == wal.Timeline(r.Timeline) && *own.Sentinel.LSN >= max(s.From, w.began(b.Timeline)) && *own.Sentinel.LSN < s.To {
					t.Fatalf("stretch %d is accepted, with %s in it\n%s", i, b.Name, w.describe(r))
				}
			}
			later := slices.ContainsFunc(r.Main[i:], func(o ribbon.Stretch) bool { return o.Verdict == ribbon.Restorable || o.Verdict == ribbon.Unknown })
			if !named || !later {
				t.Fatalf("stretch %d is accepted, in a gap %t, before a backup %t\n%s", i, named, later, w.describe(r))
			}
		}
		j := slices.IndexFunc(without.Main, func(o ribbon.Stretch) bool { return o.From == s.From && o.To == s.To })
		if j < 0 || without.Main[j].Verdict != s.Verdict && (s.Verdict != ribbon.Accepted || without.Main[j].Verdict != ribbon.Broken) {
			t.Fatalf("stretch %d without what was accepted: %+v\n%s", i, without.Main, w.describe(r))
		}
	}
	if last := len(r.Main) - 1; last >= 0 && (r.Main[last].Verdict == ribbon.Broken) != (r.Status == ribbon.Failure) && r.Main[last].Verdict != ribbon.Uncovered {
		t.Fatalf("the newest is %s, and all in all %s\n%s", r.Main[last].Verdict, r.Status, w.describe(r))
	}
}

func (w *world) began(tl wal.Timeline) wal.LSN {
	if b := w.in.Catalog.Histories[tl]; len(b) > 0 {
		return b[len(b)-1].Switch
	}
	return 0
}

// best checks that the backups of a stretch are those that restore to its end, and the newest one of them and the WAL over it.
func (w *world) best(t *rapid.T, r ribbon.Ribbon, s ribbon.Stretch) {
	var want []string
	var newest wal.LSN
	for _, b := range w.in.Catalog.Backups {
		if w.restore(b, wal.Timeline(r.Timeline), s.To) == yes {
			want = append(want, b.Name)
			newest = max(newest, *b.Sentinel.LSN)
		}
	}
	got := slices.Sorted(slices.Values(s.Bases))
	slices.Sort(want)
	if !slices.Equal(got, want) || s.ReplayBytes != uint64(s.To-newest) || s.MaxReplay < s.ReplayBytes || !slices.Contains(want, s.Backup) {
		t.Fatalf("%+v\nwant the backups %v, and %d bytes to replay\n%s", s, want, s.To-newest, w.describe(r))
	}
	// What is verified begins with a backup that is, and goes on as long as each segment is.
	var verified wal.LSN
	for _, b := range w.in.Catalog.Backups {
		if !slices.Contains(want, b.Name) {
			continue
		}
		if _, seen := w.fetch(b.Name, 0); !seen {
			continue
		}
		proven := *w
		proven.in.ProvenOnly, proven.asked, proven.fetched = true, map[string]answer{}, map[string]answer{}
		for n := wal.SegmentNo(1); n <= top+1; n++ {
			if lsn := size.Start(n); lsn <= s.To && lsn >= s.From && proven.restore(b, wal.Timeline(r.Timeline), lsn) == yes {
				verified = max(verified, lsn)
			}
		}
	}
	if s.Verified != verified {
		t.Fatalf("%+v\nis verified until %s\n%s", s, verified, w.describe(r))
	}
}

// describe prints a world and its ribbon.
func (w *world) describe(r ribbon.Ribbon) string {
	var b strings.Builder
	for tl, lines := range w.parents {
		fmt.Fprintf(&b, "%d.history: %v\n", tl, lines)
	}
	fmt.Fprintf(&b, "bad: %v\n", w.in.Catalog.BadHistory)
	names := []string{}
	for name := range w.stored {
		names = append(names, strings.TrimLeft(name[:8], "0")+"/"+name[20:])
	}
	slices.Sort(names)
	fmt.Fprintf(&b, "%v, empty %v, in pieces %+v, read %+v\n", names, w.empty, w.tails, w.in.Tails)
	for _, o := range w.in.Catalog.Backups {
		fmt.Fprintf(&b, "%s %+v, condemned %t", o.Name, w.in.Backups[o.Name], o.Condemned != nil)
		if s := o.Sentinel; s != nil {
			fmt.Fprintf(&b, ": %s to %v, on %s, of %d", s.LSN, s.FinishLSN, s.DeltaFrom, *s.SystemIdentifier)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "checked %+v\nlocked %+v\ngaps %+v\nstores %+v, live %d, proven %t\n", w.in.Checked, w.in.Locked, w.in.Gaps, w.in.Stores, w.in.Live, w.in.ProvenOnly)
	fmt.Fprintf(&b, "%s: %s\n", r.Status, r.Verdict)
	for _, s := range r.Main {
		fmt.Fprintf(&b, "  %s %s %s %s %v: %s\n", s.From, s.To, s.Verdict, s.Backup, s.Bases, s.Why)
	}
	for _, line := range r.Timelines {
		fmt.Fprintf(&b, "%d\n", line.Timeline)
		for _, s := range line.Stretches {
			fmt.Fprintf(&b, "  %s %s %s %s: %s\n", s.From, s.To, s.Verdict, s.Backup, s.Why)
		}
	}
	return b.String()
}
