package retention_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/retention"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// taken is what the model remembers of a backup.
type taken struct {
	name, parent string
	system       uint64
	timeline     wal.Timeline
	first, last  wal.SegmentNo
	finished     time.Time
	permanent    bool
}

// model is a world and what it remembers of itself, in its own words: segments are names, and timelines are followed by what made them.
type model struct {
	*world
	backups []taken
	from    map[wal.Timeline]branch // of each timeline that was begun by a promotion
	pushes  []taken                 // at work
	held    map[string]time.Time    // objects that must stay, until then
	proven  string
}

type branch struct {
	parent wal.Timeline
	at     wal.SegmentNo
}

func newModel(t tester) *model {
	return &model{world: newWorld(t), from: map[wal.Timeline]branch{}, held: map[string]time.Time{}}
}

func (m *model) promote() {
	was, at := m.timeline, m.seg
	m.world.promote()
	m.from[m.timeline] = branch{was, at}
}

// stray lets the server that was promoted away go on for a while.
func (m *model) stray(n int) {
	b, ok := m.from[m.timeline]
	if !ok {
		return
	}
	for i := range n {
		m.segmentOn(b.parent, b.at+wal.SegmentNo(i))
	}
}

// latest returns the newest backup of the cluster that is there and that another can build on.
func (m *model) latest() string {
	c, err := catalog.Load(context.Background(), m.a)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := range slices.Backward(c.Backups) {
		b := &c.Backups[i]
		if b.Condemned != nil || *b.Sentinel.SystemIdentifier != m.system || !m.leads(b.Timeline(), m.timeline) {
			continue
		}
		if _, err := c.Chain(b); err == nil {
			return b.Name
		}
	}
	return ""
}

// leads reports whether a timeline is another or came from it.
func (m *model) leads(t, to wal.Timeline) bool {
	for {
		if t == to {
			return true
		}
		b, ok := m.from[to]
		if !ok {
			return false
		}
		to = b.parent
	}
}

func (m *model) backup(delta, permanent bool, n int) {
	parent := ""
	if delta {
		parent = m.latest()
	}
	b := taken{name: m.name(parent), parent: parent, system: m.system, timeline: m.timeline, first: m.seg, permanent: permanent}
	if len(m.has(archive.Folder(b.name))) > 0 {
		return // another one began in that segment
	}
	m.take(parent, n, func(s *archive.Sentinel) { s.IsPermanent = permanent })
	if permanent { // as backup-push does
		m.mark(parent)
	}
	b.last, b.finished = m.seg-1, m.now
	m.backups = append(m.backups, b)
	m.pass(0)
}

// mark makes a backup and all it builds on permanent.
func (m *model) mark(name string) {
	for name != "" {
		if err := m.a.MarkPermanent(context.Background(), name); err != nil {
			m.t.Fatal(err)
		}
		i := slices.IndexFunc(m.backups, func(b taken) bool { return b.name == name })
		m.backups[i].permanent = true
		name = m.backups[i].parent
	}
}

// push begins a backup that is at work for a while. It builds on what is there, as long as that is so once its marker is stored.
func (m *model) push(delta bool) {
	parent := ""
	var on *catalog.Backup
	if delta {
		parent = m.latest()
		if parent != "" {
			c, err := catalog.Load(context.Background(), m.a)
			if err != nil {
				m.t.Fatal(err)
			}
			on, _ = c.Find(parent)
		}
	}
	p := taken{name: m.name(parent), parent: parent, system: m.system, timeline: m.timeline, first: m.seg}
	if len(m.has(archive.Folder(p.name))) > 0 {
		return
	}
	m.begin(parent)
	if on != nil && catalog.StillThere(context.Background(), m.a, on) != nil {
		for _, o := range m.has(archive.Folder(p.name)) { // it is a full one then
			if err := m.memory.Delete(context.Background(), archive.Folder(p.name)+o); err != nil {
				m.t.Fatal(err)
			}
		}
		return
	}
	m.pushes = append(m.pushes, p)
}

// finish ends the pushes: they become backups, or are dead.
func (m *model) finish(die bool) {
	for _, p := range m.pushes {
		if die || p.system != m.system || p.timeline != m.timeline {
			continue
		}
		if p.parent != "" {
			if _, err := m.memory.Stat(context.Background(), m.a.SentinelName(p.parent)); err != nil {
				m.t.Fatalf("%s builds on %s, which was removed meanwhile", p.name, p.parent)
			}
		}
		start := size.Start(p.first) + 0x28
		m.folder(p.name)
		m.write(1)
		m.commit(p.name, p.parent, start, m.now, nil)
		if err := m.memory.Delete(context.Background(), archive.Folder(p.name)+"push.json"); err != nil {
			m.t.Fatal(err)
		}
		p.last, p.finished = m.seg-1, m.now
		m.backups = append(m.backups, p)
	}
	m.pushes = nil
}

// pass lets time pass; pushes at work give signs of life.
func (m *model) pass(days float64) {
	m.days(days)
	for _, p := range m.pushes {
		m.store.modified[archive.Folder(p.name)+"push.json"] = m.now
	}
}

// write archives segments while pushes go on.
func (m *model) write(n int) {
	m.world.write(n)
	m.pass(0)
}

// hold holds the last but so many backups.
func (m *model) hold(back int) {
	if len(m.backups) <= back {
		return
	}
	b := m.backups[len(m.backups)-1-back]
	all := m.snapshot()
	if !all.restorable(m, b) {
		return
	}
	must(m.a.AddRecord(context.Background(), archive.HoldDir, "", archive.Hold{Backup: b.name, Until: m.now.Add(10 * 24 * time.Hour), Reason: "model"}))
	m.held[m.a.SentinelName(b.name)] = m.now.Add(10 * 24 * time.Hour)
	for n := b.first; n <= b.last; n++ {
		for _, name := range all.segment(b.timeline, n) {
			m.held[name] = m.now.Add(10 * 24 * time.Hour)
		}
	}
}

// snapshot is the names of all objects.
type snapshot map[string]bool

func (m *model) snapshot() snapshot {
	all := snapshot{}
	for _, name := range m.has("") {
		all[name] = true
	}
	return all
}

// segment returns the object of a segment, if it is there.
func (s snapshot) segment(t wal.Timeline, n wal.SegmentNo) []string {
	if name := archive.WALDir + size.Name(t, n) + ".zst"; s[name] {
		return []string{name}
	}
	return nil
}

// exists reports whether the backup is there with all it builds on.
func (s snapshot) exists(m *model, b taken) bool {
	if !s[m.a.SentinelName(b.name)] {
		return false
	}
	if b.parent == "" {
		return true
	}
	i := slices.IndexFunc(m.backups, func(p taken) bool { return p.name == b.parent })
	return i >= 0 && s.exists(m, m.backups[i])
}

// restorable reports whether it is there, and the WAL that makes it consistent.
func (s snapshot) restorable(m *model, b taken) bool {
	if !s.exists(m, b) {
		return false
	}
	for n := b.first; n <= b.last; n++ {
		if len(s.segment(b.timeline, n)) == 0 {
			return false
		}
	}
	return true
}

// check compares the archive with what it was before retention was at work, by plan p; whole says that it ended well.
func (m *model) check(before snapshot, p *retention.Plan, whole bool) error {
	now := m.snapshot()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	keeps := map[string]retention.Verdict{}
	for _, v := range p.Backups {
		if v.Keep {
			keeps[v.Backup] = v
		}
	}
	restorable := func(s snapshot) (some bool) {
		for _, b := range m.backups {
			some = some || s.restorable(m, b)
		}
		return some
	}
	if restorable(before) && !restorable(now) {
		bad("nothing can be restored any more")
	}
	for _, b := range m.backups {
		v, kept := keeps[b.name]
		switch {
		case b.permanent && before.exists(m, b) && !now.exists(m, b):
			bad("%s was permanent", b.name)
		case kept && before.exists(m, b) && !now.exists(m, b):
			bad("%s was to stay (%s) and is gone, or what it builds on", b.name, v.Why)
		case kept && before.restorable(m, b) && !now.restorable(m, b):
			bad("%s was to stay (%s) and cannot be restored", b.name, v.Why)
		case before.restorable(m, b) && now.exists(m, b) && !now.restorable(m, b):
			bad("%s is there, and cannot be restored", b.name)
		case now[m.a.SentinelName(b.name)] && before.exists(m, b) && !now.exists(m, b):
			bad("%s is there without what it builds on", b.name)
		}
		if now[m.a.SentinelName(b.name)] {
			for name := range before {
				if strings.HasPrefix(name, archive.Folder(b.name)) && !now[name] {
					bad("%s is there without %s", b.name, name)
				}
			}
		}
		onward := []retention.Ground{retention.ByRule, retention.ByWindow, retention.ByCount, retention.ByMinimum, retention.LastOne}
		if kept && slices.Contains(onward, v.Ground) && !b.permanent {
			m.onward(before, now, b.timeline, b.first, func(name string) { bad("%s (%s) was to be replayed from, and %s is gone", b.name, v.Why, name) })
		}
	}
	for _, push := range m.pushes {
		m.onward(before, now, push.timeline, push.first, func(name string) { bad("%s is being taken, and %s is gone", push.name, name) })
		if push.parent != "" && !now[m.a.SentinelName(push.parent)] {
			bad("%s is being taken, and what it builds on is gone", push.name)
		}
	}
	noted, _, err := catalog.LoadAccepted(context.Background(), m.a, size)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, g := range noted {
		for _, b := range m.backups {
			if now.restorable(m, b) && b.timeline == g.Timeline && b.first <= g.Last && g.First <= b.last {
				bad("%s is noted as removed, and %s can be restored", size.Name(g.Timeline, g.First), b.name)
			}
		}
	}
	for name, until := range m.held {
		if m.now.Before(until) && before[name] && !now[name] {
			bad("%s was held", name)
		}
	}
	if m.proven != "" && before[m.a.SentinelName(m.proven)] && !now[m.a.SentinelName(m.proven)] {
		bad("the last proven one, %s, is gone", m.proven)
	}
	if whole {
		m.orphans(now, bad)
	}
	return errors.Join(errs[:min(len(errs), 5)]...)
}

// onward tells of WAL that lies on a timeline, or on one that came from it later, from a segment on, and is gone.
func (m *model) onward(before, now snapshot, t wal.Timeline, first wal.SegmentNo, gone func(string)) {
	for name := range before {
		segment := strings.TrimSuffix(strings.TrimPrefix(name, archive.WALDir), ".zst")
		if now[name] || !wal.IsSegment(segment) {
			continue
		}
		of, n, err := size.ParseSegment(segment)
		if err != nil || n < first {
			continue
		}
		for of != t {
			b, ok := m.from[of]
			if !ok || b.at < first {
				break
			}
			of = b.parent
		}
		if of == t {
			gone(name)
		}
	}
}

// orphans tells of what belongs to nothing.
func (m *model) orphans(now snapshot, bad func(string, ...any)) {
	for name := range now {
		switch {
		case strings.HasPrefix(name, archive.BackupDir) && strings.Count(name, "/") > 1:
			backup := strings.Split(name, "/")[1]
			newest := time.Time{}
			for other := range now {
				if strings.HasPrefix(other, archive.Folder(backup)) && m.store.modified[other].After(newest) {
					newest = m.store.modified[other]
				}
			}
			if !now[m.a.SentinelName(backup)] && m.now.Sub(newest) > 24*time.Hour {
				bad("%s belongs to no backup", name)
			}
		case strings.HasPrefix(name, archive.SummaryDir), strings.HasSuffix(name, ".sum.json"):
			segment := archive.WALName(strings.TrimSuffix(name, ".sum.json"))
			if !now[archive.WALDir+segment+".zst"] {
				bad("%s belongs to no segment", name)
			}
		case strings.Contains(name, "_delta"):
			t, first, err := size.ParseSegment(name[len(archive.WALDir):][:24])
			some := err != nil
			for _, b := range m.backups { // it goes later, if it came later than what stays
				some = some || now[m.a.SentinelName(b.name)] && b.finished.Add(-time.Hour).Before(m.store.modified[name])
			}
			for n := first; n < first+16; n++ {
				some = some || len(now.segment(t, n)) > 0
			}
			if !some {
				bad("%s belongs to no segments", name)
			}
		}
	}
}

// rules returns a rule of some kind.
func (m *model) rule(kind, n int) retention.Rule {
	switch kind {
	case 0:
		return must(retention.Retain(n, retention.FindFull, nil))
	case 1:
		return must(retention.Retain(n, retention.Full, &retention.Moment{Time: m.now.Add(-time.Duration(n) * 36 * time.Hour)}))
	case 2:
		return must(retention.Before(retention.FindFull, retention.Moment{Time: m.now.Add(-time.Duration(n) * 24 * time.Hour)}))
	case 3:
		return retention.Policy{Window: time.Duration(n) * 24 * time.Hour, Minimum: 1}
	case 4:
		return retention.Policy{Full: n, Monthly: 2, Weekly: 1, Minimum: 2}
	case 5:
		return must(retention.Garbage("", false))
	}
	if len(m.backups) > 0 {
		return must(retention.Target("", m.backups[(n*7)%len(m.backups)].name, nil))
	}
	return retention.Policy{Full: 1, Minimum: 1}
}

const ruleKinds = 7

// retain carries a rule out, through s, which may fail; then again, until it has ended well.
func (m *model) retain(rule retention.Rule, grace time.Duration, s func(store.Store) store.Store) error {
	before := m.snapshot()
	p, err := m.tryPlan(rule)
	if err != nil {
		if _, kept := errors.AsType[*retention.KeptError](err); kept || errors.Is(err, retention.ErrNothing) {
			return nil
		}
		if _, none := errors.AsType[*catalog.NoBackupError](err); none {
			return nil
		}
		return err
	}
	a := archive.New(s(m.store), archive.Options{})
	_, err = retention.Apply(context.Background(), a, p, retention.Options{Grace: grace, Host: "here", By: "model"})
	if err := errors.Join(m.check(before, p, false)); err != nil {
		return fmt.Errorf("%s, which ended with %v: %w", rule, err, err)
	}
	if err == nil {
		return nil
	}
	// The next one finishes it, by whatever rule: what was named goes by its tombstone.
	before = m.snapshot()
	if p, err = m.tryPlan(retention.Policy{}); err != nil {
		return err
	}
	if _, err := retention.Apply(context.Background(), m.a, p, retention.Options{Host: "here", By: "model"}); err != nil {
		return fmt.Errorf("the one that finishes: %w", err)
	}
	if err := m.check(before, p, false); err != nil {
		return fmt.Errorf("%s, finished: %w", rule, err)
	}
	return nil
}

// Whatever happened to a cluster and its archive, and wherever retention breaks off: what the plan keeps restores, the last that can be restored stays, and so do
// what is permanent, held, proven or in use; in the end nothing is left of what is gone.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		draw := func(label string, max int) int { return rapid.IntRange(0, max).Draw(t, label) }
		m.backup(false, false, 1)
		for range draw("steps", 30) {
			switch what := draw("what", 15); what {
			case 0, 1, 2:
				m.write(draw("segments", 20))
				m.pass(float64(draw("half days", 6)) / 2)
			case 3, 4:
				m.backup(false, draw("permanent", 6) == 0, 1+draw("over", 3))
			case 5, 6, 7:
				m.backup(true, draw("permanent", 6) == 0, 1+draw("over", 3))
			case 8:
				m.promote()
				m.stray(draw("stray", 3))
				if draw("backup", 1) == 0 {
					m.backup(false, false, 1)
				}
			case 9:
				if len(m.previous) < 2 {
					m.finish(true)
					m.upgrade()
				}
			case 10:
				m.hold(draw("which", 4))
			case 11:
				m.push(draw("delta", 1) == 0)
				m.write(draw("meanwhile", 3))
			case 12:
				m.finish(draw("dies", 2) == 0)
			case 13:
				if b := m.latest(); b != "" {
					m.proven = b
					m.put(archive.ProvenDir(b)+m.now.Format("20060102T150405.000000Z")+"-x.json", m.proof(b))
				}
			default:
				rule := m.rule(draw("rule", ruleKinds-1), 1+draw("n", 4))
				grace := time.Duration(draw("grace", 1)) * 48 * time.Hour
				breaks := []func(store.Store, int) *storetest.Flaky{storetest.FailAt, storetest.FailMidway, storetest.FailAfter}[draw("moment", 2)]
				n := draw("fails at", 120) - 40
				var kind fault
				if draw("lock", 5) == 0 {
					kind = fault{refuses: rapid.StringMatching(`[0-9A-F]`).Draw(t, "refused")}
				}
				if err := m.retain(rule, grace, func(s store.Store) store.Store { return breaks(&locked{s, kind.refuses}, n) }); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.finish(true)
		m.days(5)
		for range 2 { // condemned before, then by this
			before := m.snapshot()
			p, err := m.tryPlan(retention.Policy{Full: 1, Minimum: 1})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := retention.Apply(context.Background(), m.a, p, retention.Options{Host: "here"}); err != nil {
				t.Fatal(err)
			}
			if err := m.check(before, p, true); err != nil {
				t.Fatal(err)
			}
		}
		c := must(catalog.Load(context.Background(), m.a))
		for _, d := range c.Tombstones { // what is held or needed stays condemned
			if !slices.ContainsFunc(c.Backups, func(b catalog.Backup) bool { return slices.Contains(d.Backups, b.Name) }) {
				t.Fatalf("a tombstone is left: %+v", d)
			}
		}
	})
}

type fault struct{ refuses string }

// locked is a store that does not let go of objects whose names end, before what follows the last dot, in a certain digit.
type locked struct {
	store.Store
	digit string
}

func (l *locked) refuses(name string) bool {
	base, _, _ := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ".")
	return l.digit != "" && (strings.HasSuffix(base, l.digit) || strings.HasSuffix(base, l.digit+"_backup_stop_sentinel"))
}

func (l *locked) Delete(ctx context.Context, name string) error {
	if l.refuses(name) {
		return &store.OpError{Op: "delete", Name: name, Text: "is locked until 2030", Kind: fs.ErrPermission, Err: fs.ErrPermission}
	}
	return l.Store.Delete(ctx, name)
}

func (l *locked) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return store.Walk(ctx, l.Store, dir)
}

func (l *locked) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return store.PutIfAbsent(ctx, l.Store, name, r)
}

// eventful is an archive in which something of every kind goes.
func eventful(t tester) *model {
	m := newModel(t)
	m.write(20)
	m.backup(false, false, 2)
	m.backup(true, false, 2)
	m.pass(2)
	m.backup(false, true, 1)
	m.write(15)
	m.promote()
	m.stray(2)
	m.backup(true, false, 1)
	m.pass(2)
	m.push(false)
	m.pushes = nil
	m.pass(3)
	m.backup(false, false, 1)
	m.hold(1)
	m.backup(true, false, 1)
	m.write(3)
	return m
}

// removedWAL is what is noted of WAL that was removed.
func removedWAL(m *model) string {
	all, bad, err := catalog.LoadAccepted(context.Background(), m.a, size)
	if err = errors.Join(append(bad, err)...); err != nil {
		m.t.Fatal(err)
	}
	var stretches []string
	for _, a := range all {
		stretches = append(stretches, fmt.Sprintf("%d: %d-%d %t", a.Timeline, a.First, a.Last, a.Removed))
	}
	slices.Sort(stretches)
	return strings.Join(stretches, ", ")
}

// Wherever it breaks off, no half backup is seen, and the next one brings it to the same end.
func TestEveryCallFails(t *testing.T) {
	rule := retention.Policy{Full: 1, Minimum: 1}
	names := func(m *model) []string {
		all := slices.Sorted(maps.Keys(m.snapshot()))
		return slices.DeleteFunc(all, func(name string) bool {
			return strings.HasPrefix(name, archive.HoldDir) || strings.HasPrefix(name, archive.GapDir) || strings.HasPrefix(name, "holdfast/clock-")
		})
	}
	whole := eventful(t)
	if err := whole.retain(rule, 0, func(s store.Store) store.Store { return s }); err != nil {
		t.Fatal(err)
	}
	want := names(whole)
	if first := eventful(t); len(names(first)) < len(want)+60 {
		t.Fatalf("%d objects are left of %d", len(want), len(names(first)))
	}
	for what, breaks := range map[string]func(store.Store, int) *storetest.Flaky{"at": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		for n, reached := 0, true; reached; n++ {
			m := eventful(t)
			before := m.snapshot()
			p := m.plan(rule)
			flaky := breaks(m.store, n)
			_, err := retention.Apply(t.Context(), archive.New(flaky, archive.Options{}), p, retention.Options{Host: "here"})
			if reached = flaky.Reached(); reached && err == nil {
				continue // a call that may fail
			}
			if reached && !errors.Is(err, storetest.ErrInjected) {
				t.Fatalf("%s call %d: %v", what, n, err)
			}
			if err := m.check(before, p, !reached); err != nil {
				t.Fatalf("%s call %d, %s: %v", what, n, flaky.Calls()[min(n, len(flaky.Calls())-1)], err)
			}
			m.pass(2) // what it had taken from a dead push is dead
			m.apply(rule, 0)
			if first, then := removedWAL(whole), removedWAL(m); first != then {
				t.Fatalf("%s call %d: %s is noted as removed, want %s", what, n, then, first)
			}
			if got := names(m); !slices.Equal(got, want) {
				more := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return slices.Contains(want, s) })
				less := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(got, s) })
				t.Fatalf("%s call %d, %s: then there is %q too much, and %q is not", what, n, flaky.Calls()[min(n, len(flaky.Calls())-1)], more, less)
			}
		}
	}
}

// A push that begins in the middle of it either has what it builds on until it ends, or learns at once that it has not.
func TestPushesMeanwhile(t *testing.T) {
	for _, rule := range []retention.Rule{retention.Policy{Full: 1, Minimum: 1}, nil} {
		pushed := 0
		for n, reached := 0, true; reached; n++ {
			m := newModel(t)
			m.backup(false, false, 1)
			m.backup(true, false, 1)
			m.write(3)
			m.pass(1)
			newest := m.latest()
			m.backup(false, false, 1)
			m.backup(true, false, 1)
			rule := rule
			if rule == nil {
				newest = m.latest()
				rule = must(retention.Target("", newest, nil))
			}
			before := m.snapshot()
			p := m.plan(rule)
			at := &hooked{Store: m.store, n: n, do: func() {
				b, err := must(catalog.Load(t.Context(), m.a)).Find(newest)
				if err != nil {
					return // it is gone
				}
				push := taken{name: m.name(newest), parent: newest, system: m.system, timeline: m.timeline, first: m.seg}
				m.begin(newest)
				if catalog.StillThere(t.Context(), m.a, b) == nil {
					m.pushes = append(m.pushes, push)
					pushed++
				}
			}}
			if n%2 == 1 {
				at.do = nil
				m.push(false) // one that has begun before, which is none of its business
			}
			_, err := retention.Apply(t.Context(), archive.New(at, archive.Options{}), p, retention.Options{Host: "here"})
			reached = at.reached
			if kept := (*retention.KeptError)(nil); err != nil && !errors.As(err, &kept) {
				t.Fatal(err)
			}
			if err := m.check(before, &retention.Plan{}, false); err != nil {
				t.Fatalf("%s, call %d: %v", rule, n, err)
			}
			m.finish(false)
		}
		if pushed == 0 {
			t.Errorf("%s: no push was begun", rule)
		}
	}
}

// hooked does something before its n-th call.
type hooked struct {
	store.Store
	n       int
	do      func()
	reached bool
	mu      sync.Mutex
}

func (h *hooked) turn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n--; h.n == -1 {
		h.reached = true
		if h.do != nil {
			h.do()
		}
	}
}

func (h *hooked) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	h.turn()
	return h.Store.Open(ctx, name)
}

func (h *hooked) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	h.turn()
	return store.PutIfAbsent(ctx, h.Store, name, r)
}

func (h *hooked) Stat(ctx context.Context, name string) (store.Object, error) {
	h.turn()
	return h.Store.Stat(ctx, name)
}

func (h *hooked) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	h.turn()
	return h.Store.List(ctx, dir, after)
}

func (h *hooked) Delete(ctx context.Context, name string) error {
	h.turn()
	return h.Store.Delete(ctx, name)
}
