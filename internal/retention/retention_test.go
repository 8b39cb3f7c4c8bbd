package retention_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/proof"
	"holdfast/internal/retention"
	"holdfast/internal/store"
)

func (w *world) plan(rule retention.Rule) *retention.Plan {
	w.t.Helper()
	p, err := w.tryPlan(rule)
	if err != nil {
		w.t.Fatalf("%s: %v", rule, err)
	}
	return p
}

func (w *world) tryPlan(rule retention.Rule) (*retention.Plan, error) {
	w.t.Helper()
	in, err := retention.Load(context.Background(), w.a, "here", true)
	if err != nil {
		return nil, err
	}
	return retention.Decide(in, rule, w.now)
}

func (w *world) apply(rule retention.Rule, grace time.Duration) *retention.Report {
	w.t.Helper()
	r, err := retention.Apply(context.Background(), w.a, w.plan(rule), retention.Options{Grace: grace, Host: "here", By: "test@here"})
	if err != nil {
		w.t.Fatalf("apply %s: %v", rule, err)
	}
	return r
}

func must[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

// going lists the backups that go, without base_.
func going(p *retention.Plan) (names []string) {
	for _, v := range p.Backups {
		if !v.Keep {
			names = append(names, v.Backup)
		}
	}
	return names
}

func want(t *testing.T, what string, got []string, names ...string) {
	t.Helper()
	if !slices.Equal(got, names) {
		t.Errorf("%s: %q, want %q", what, got, names)
	}
}

// reasonFor returns why a backup stays or goes.
func reasonFor(t *testing.T, p *retention.Plan, name string) retention.Verdict {
	t.Helper()
	for _, v := range p.Backups {
		if v.Backup == name {
			return v
		}
	}
	t.Fatalf("%s is not in the plan", name)
	return retention.Verdict{}
}

func parse(t *testing.T, s string) retention.Policy {
	t.Helper()
	p, err := retention.ParsePolicy(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A day, a full backup and two deltas upon it, five times.
func fiveFulls(t *testing.T) (w *world, names []string) {
	w = newWorld(t)
	for range 5 {
		full := w.take("", 2, nil)
		w.write(3)
		w.days(0.3)
		one := w.take(full, 1, nil)
		w.write(2)
		w.days(0.3)
		two := w.take(one, 1, nil)
		w.write(2)
		w.days(0.4)
		names = append(names, full, one, two)
	}
	return w, names
}

func TestRetain(t *testing.T) {
	w, n := fiveFulls(t)
	for _, x := range []struct {
		n     int
		mod   retention.Modifier
		after string
		goes  []string
	}{
		{3, "", "", n[:12]},
		{6, "", "", n[:9]},
		{2, retention.FindFull, "", n[:12]},
		{4, retention.FindFull, "", n[:9]},
		{2, retention.Full, "", n[:9]},
		{1, retention.Full, n[9], n[:9]},                     // the older of the two counts
		{3, retention.Full, n[12], n[:6]},                    // the union
		{2, retention.Full, "2026-01-02T00:00:00Z", n[:3]},   // by time
		{2, retention.Full, "2100-01-02 00:00:00+01", n[:9]}, // nothing is that new
	} {
		var after *retention.Moment
		if x.after != "" {
			m := must(retention.ParseMoment(x.after))
			after = &m
		}
		rule := must(retention.Retain(x.n, x.mod, after))
		want(t, rule.String(), going(w.plan(rule)), x.goes...)
	}
	// A delta is no place to cut.
	if _, err := w.tryPlan(must(retention.Retain(2, "", nil))); err == nil || !strings.Contains(err.Error(), "is incremental and it's predecessors cannot be deleted. Consider FIND_FULL option.") {
		t.Errorf("retain 2: %v", err)
	}
	// Fewer than are to stay: nothing goes, whatever --after says.
	m := must(retention.ParseMoment(n[14]))
	for _, rule := range []retention.Rule{must(retention.Retain(16, "", nil)), must(retention.Retain(6, retention.Full, &m))} {
		if _, err := w.tryPlan(rule); !errors.Is(err, retention.ErrNothing) {
			t.Errorf("%s: %v", rule, err)
		}
	}
	for _, bad := range []string{"2026-01-02T00:00:00", "2026-01-02", "2026-01-02Z", "yesterday", ""} {
		if _, err := retention.ParseMoment(bad); err == nil {
			t.Errorf("%q is a moment", bad)
		}
	}
}

func TestBefore(t *testing.T) {
	w, n := fiveFulls(t)
	before := func(mod retention.Modifier, at string) retention.Rule {
		return must(retention.Before(mod, must(retention.ParseMoment(at))))
	}
	want(t, "before a full one", going(w.plan(before("", n[6]))), n[:6]...)
	want(t, "before the full one of a delta", going(w.plan(before(retention.FindFull, n[8]))), n[:6]...)
	want(t, "before a time", going(w.plan(before("", "2026-01-03T00:10:00Z"))), n[:6]...)
	if _, err := w.tryPlan(before("", n[7])); err == nil || !strings.Contains(err.Error(), "Consider FIND_FULL") {
		t.Errorf("before a delta: %v", err)
	}
	if _, err := w.tryPlan(before("", "base_0000000100000000000000FF")); !errors.As(err, new(*catalog.NoBackupError)) {
		t.Errorf("before a backup that there is not: %v", err)
	}
	if _, err := w.tryPlan(before("", "base_00000001")); !errors.As(err, new(*catalog.NoBackupError)) {
		t.Errorf("before any of several: %v", err)
	}
	if _, err := w.tryPlan(before("", "2100-01-01T00:00:00Z")); !errors.Is(err, retention.ErrNothing) {
		t.Errorf("before the future: %v", err)
	}
}

func TestTarget(t *testing.T) {
	w, n := fiveFulls(t)
	target := func(mod retention.Modifier, name string) retention.Rule {
		return must(retention.Target(mod, name, nil))
	}
	want(t, "a full one", going(w.plan(target("", n[3]))), n[3:6]...)
	want(t, "a delta", going(w.plan(target("", n[4]))), n[4:6]...)
	want(t, "the full one of a delta", going(w.plan(target(retention.FindFull, n[5]))), n[3:6]...)
	if p := w.plan(target("", n[3])); p.WAL != nil {
		t.Errorf("WAL is judged: %v", p.WAL)
	}
	wal := len(w.has(archive.WALDir))
	w.apply(target("", n[3]), 0)
	if got := len(w.has(archive.WALDir)); got != wal {
		t.Errorf("%d WAL objects are left of %d", got, wal)
	}
	if left := w.has(archive.Folder(n[3])); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	for name, change := range map[string]func() string{
		"permanent": func() string { return w.take("", 1, permanent) },
		"held": func() string {
			b := w.take("", 1, nil)
			must(w.a.AddRecord(t.Context(), archive.HoldDir, "", archive.Hold{Backup: b, Reason: "court"}))
			return b
		},
	} {
		b := change()
		w.take("", 1, nil)
		var kept *retention.KeptError
		if _, err := w.tryPlan(target("", b)); !errors.As(err, &kept) || kept.Backup != b || kept.Hint() == "" {
			t.Errorf("%s: %v", name, err)
		}
		child := w.take(b, 1, nil)
		want(t, name+", a delta on it", going(w.plan(target("", child))), child)
	}
}

func TestTheLastOneStays(t *testing.T) {
	w := newWorld(t)
	only := w.take("", 2, nil)
	var kept *retention.KeptError
	if _, err := w.tryPlan(must(retention.Target("", only, nil))); !errors.As(err, &kept) || kept.Ground != retention.LastOne {
		t.Errorf("the only one: %v", err)
	}
	// A newer one that lacks its WAL is none.
	newer := w.take("", 2, nil)
	if err := w.memory.Delete(t.Context(), archive.WALDir+newer[5:]+".zst"); err != nil {
		t.Fatal(err)
	}
	p := w.plan(must(retention.Retain(1, "", nil)))
	want(t, "going", going(p))
	if v := reasonFor(t, p, only); v.Ground != retention.LastOne {
		t.Errorf("%+v", v)
	}
	if v := reasonFor(t, p, newer); v.Broken == "" {
		t.Errorf("%+v", v)
	}
	// The last proven one.
	w.take("", 2, nil)
	w.take("", 2, nil)
	w.put(archive.ProvenDir(only)+"20260101T000000.000000Z-x.json", w.proof(only))
	w.put(archive.ProvenDir(p.Backups[1].Backup)+"20260101T000000.000000Z-x.json", w.proof(only)) // which it is not of
	p = w.plan(must(retention.Retain(1, "", nil)))
	want(t, "going", going(p), newer, p.Backups[2].Backup)
	if !slices.ContainsFunc(p.Notes, func(n string) bool { return strings.Contains(n, "does not count as proof: it is of another backup") }) {
		t.Errorf("notes %q", p.Notes)
	}
	if v := reasonFor(t, p, only); v.Ground != retention.Proven {
		t.Errorf("%+v", v)
	}
	p = w.plan(parse(t, "{minimum: 1, keep_last_proven: false}"))
	want(t, "going when that may", going(p), only, newer, p.Backups[2].Backup)
}

// A key for proofs that was changed, lost or set wrongly does not cost the last proven backup: what only lacks the right signature keeps one more, until one that counts is newer.
func TestUnvouchedProofKeeps(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.a = archive.New(w.store, archive.Options{ProofKeys: []ed25519.PublicKey{public}})
	var names []string
	for range 5 {
		names = append(names, w.take("", 2, nil))
		w.days(1)
	}
	proven := func(name string, key ed25519.PrivateKey) {
		doc := []byte(w.proof(name))
		if key != nil {
			if doc, err = proof.Sign(doc, key); err != nil {
				t.Fatal(err)
			}
		}
		w.put(archive.ProvenDir(name)+w.now.Format("20060102T150405.000000Z")+"-x.json", string(doc))
	}
	rule := must(retention.Retain(1, "", nil))
	proven(names[0], nil)
	proven(names[1], nil)
	p := w.plan(rule)
	want(t, "going where none counts", going(p), names[0], names[2], names[3])
	if v := reasonFor(t, p, names[1]); v.Ground != retention.Proven || !strings.Contains(v.Why, "nobody whose word counts") {
		t.Errorf("%+v", v)
	}
	proven(names[0], private)
	want(t, "going where an older one counts", going(w.plan(rule)), names[2], names[3])
	proven(names[2], private)
	want(t, "going where a newer one counts", going(w.plan(rule)), names[0], names[1], names[3])
	want(t, "going when all may", going(w.plan(parse(t, "{minimum: 1, keep_last_proven: false}"))), names[:4]...)
}

// unreadable is a store that does not give one object.
type unreadable struct {
	store.Store
	name string
}

func (u *unreadable) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if name == u.name {
		return nil, errors.New("the storage has no time")
	}
	return u.Store.Open(ctx, name)
}

// Where a record of a drill cannot be read nothing goes: it may be the last proof. One that was read and is garbage keeps nothing from going.
func TestUnreadProof(t *testing.T) {
	w, n := fiveFulls(t)
	rule := must(retention.Retain(1, retention.Full, nil))
	record := archive.ProvenDir(n[0]) + "20260101T000000.000000Z-x.json"
	w.put(record, w.proof(n[0]))
	a := w.a
	w.a = archive.New(&unreadable{w.store, record}, archive.Options{})
	var unread *retention.UnreadableError
	if p, err := w.tryPlan(rule); !errors.As(err, &unread) {
		t.Errorf("%v: %q go", err, going(p))
	}
	w.a = a
	want(t, "once it can be read", going(w.plan(rule)), n[1:12]...)
	w.put(record, "{")
	want(t, "when it is garbage", going(w.plan(rule)), n[:12]...)
}

// What needs it keeps it: parents, also of what is permanent, and WAL from a permanent backup's start to its end.
func TestPermanent(t *testing.T) {
	w := newWorld(t)
	full := w.take("", 2, nil)
	w.write(5)
	first := w.seg
	child := w.take(full, 3, permanent)
	last := w.seg - 1
	w.write(5)
	w.days(1)
	newest := w.take("", 2, nil)
	w.write(3)
	p := w.plan(must(retention.Retain(1, "", nil)))
	want(t, "going", going(p))
	if v := reasonFor(t, p, full); v.Ground != retention.Parent {
		t.Errorf("%+v", v)
	}
	w.apply(must(retention.Retain(1, "", nil)), 0)
	var left []string
	for _, name := range w.has(archive.WALDir) {
		left = append(left, name[:24])
	}
	for n := 1; n < int(w.seg); n++ {
		name := size.Name(1, 1)[:8] + size.Name(1, 0)[8:16] + fmt.Sprintf("%08X", n)
		stays := n <= 2 || n >= int(first) && n <= int(last) || name >= newest[5:]
		if slices.Contains(left, name) != stays {
			t.Errorf("%s: there %v, want %v", name, !stays, stays)
		}
	}
	_ = child
}

// After pg_upgrade names and timelines begin anew; what is older is what was made earlier.
func TestAnotherCluster(t *testing.T) {
	w := newWorld(t)
	var old []string
	for range 3 {
		w.promote()
		old = append(old, w.take("", 2, nil))
		w.write(3)
		w.days(1)
	}
	w.upgrade()
	young := w.take("", 2, nil)
	w.write(2)
	if young > old[0] {
		t.Fatal("the names ascend")
	}
	p := w.plan(must(retention.Retain(2, "", nil)))
	want(t, "going", going(p), old[:2]...)
	w.days(3)
	next := w.take("", 2, nil)
	p = w.plan(must(retention.Retain(2, "", nil)))
	want(t, "going", going(p), old...)
	for _, v := range p.WAL {
		if v.Keep != (v.First >= young[5:] && v.Timeline == 1) {
			t.Errorf("%+v", v)
		}
	}
	// Without a word that one succeeded the other each is judged by itself.
	w.previous = nil
	w.own()
	p = w.plan(must(retention.Retain(1, "", nil)))
	want(t, "going", going(p), append(old[:2:2], young)...)
	_ = next
}

// A clone that was let loose and archives, too, does not push out what the cluster has.
func TestStrayClone(t *testing.T) {
	w := newWorld(t)
	base := w.take("", 2, nil)
	w.write(10)
	w.days(1)
	stray := *w
	stray.promote() // to 2
	for range 4 {
		stray.take("", 1, nil)
		stray.write(1)
		stray.days(0.1)
	}
	w.now, w.highest = stray.now, stray.highest
	w.write(5) // on 1
	p := w.plan(must(retention.Retain(2, "", nil)))
	if v := reasonFor(t, p, base); !v.Keep {
		t.Errorf("the only backup of timeline 1: %+v", v)
	}
	for _, v := range p.WAL {
		if v.Timeline == 1 && !v.Keep && v.Last >= base[5:] {
			t.Errorf("%+v", v)
		}
	}
}

// From the day on that Continuous tells, a plan keeps all WAL; before it the backups that stay have their own.
func TestContinuous(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	day := func(d int) time.Time { return time.Date(2026, 11, d, 3, 0, 0, 0, time.UTC) }
	c := &catalog.Catalog{}
	for _, d := range []int{20, 1, 7, 14, 21} { // in no order
		c.Backups = append(c.Backups, catalog.Backup{Name: fmt.Sprint(d), Sentinel: &archive.Sentinel{FinishTime: day(d)}})
	}
	// What cannot be restored does not count: it may be damaged, condemned, unreadable, or build on what is.
	c.Backups = append(c.Backups, catalog.Backup{Name: "damaged", Sentinel: &archive.Sentinel{FinishTime: day(13)}},
		catalog.Backup{Name: "delta_D_000000010000000000000001", Sentinel: &archive.Sentinel{FinishTime: day(18), DeltaFrom: "damaged"}},
		catalog.Backup{Name: "orphan_D_000000010000000000000002", Sentinel: &archive.Sentinel{FinishTime: day(19), DeltaFrom: "gone"}},
		catalog.Backup{Name: "condemned", Sentinel: &archive.Sentinel{FinishTime: day(12)}, Condemned: &catalog.Condemned{}},
		catalog.Backup{Name: "unreadable", Err: errors.New("it cannot be read")})
	damaged := map[string]string{"damaged": "a part is missing"}
	for policy, want := range map[string]time.Time{
		"{gfs: {monthly: 12}}":                                    {},
		"{recovery_window: 8d}":                                   {},
		"{recovery_window: 8d, gfs: {monthly: 12}}":               day(7),
		"{recovery_window: 8d, full: 1, gfs: {monthly: 12}}":      day(7),
		"{recovery_window: 1h, full: 3, gfs: {monthly: 12}}":      day(14),
		"{recovery_window: 1h, gfs: {monthly: 12}}":               day(21),
		"{recovery_window: 1h, gfs: {monthly: 12}, minimum: 2}":   day(20),
		"{recovery_window: 90d, gfs: {monthly: 12}}":              day(1),
		"{full: 90, gfs: {monthly: 12}}":                          day(1),
		"{full: 1, gfs: {monthly: 12}, minimum: 90}":              day(1),
		"{recovery_window: 1h, gfs: {daily: 3}, minimum: 1}":      day(21),
		"{recovery_window: 33h30m, gfs: {yearly: 3}, minimum: 1}": day(14),
		"{recovery_window: 32h59m59s, gfs: {yearly: 3}}":          day(20),
		"{recovery_window: 34h, gfs: {yearly: 3}, full: 1}":       day(14),
		"{minimum: 1}": {},
	} {
		p, err := retention.ParsePolicy(policy)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Continuous(c, damaged, now); !got.Equal(want) {
			t.Errorf("%s: from %s on, want %s", policy, got, want)
		}
	}
	if got := (retention.Policy{}).Continuous(c, damaged, now); !got.IsZero() {
		t.Errorf("no policy: %s", got)
	}
}

func TestPolicy(t *testing.T) {
	w := newWorld(t)
	var names []string
	for range 60 { // each day
		names = append(names, w.take("", 1, nil))
		w.write(2)
		w.days(1)
	}
	// It is the 2nd of March; the last backup is of the 1st.
	for _, x := range []struct {
		policy string
		keeps  []string
	}{
		{"{recovery_window: 3d}", names[57:]}, // the oldest is from before it
		{"{full: 4}", names[56:]},
		{"{minimum: 2}", names[58:]},
		{`{"gfs": {"daily": 2, "monthly": 2}}`, []string{names[58], names[59]}},
		{"gfs: {weekly: 3}", []string{names[52-7], names[52], names[59]}},
		{"recovery_window: 1w\ngfs: {monthly: 3}\n", append([]string{names[30]}, names[53:]...)},
	} {
		p := w.plan(parse(t, x.policy))
		var kept []string
		for _, v := range p.Backups {
			if v.Keep {
				kept = append(kept, v.Backup)
			}
			if v.Why == "" || v.Ground == "" {
				t.Errorf("%s: %+v", x.policy, v)
			}
		}
		want(t, x.policy, kept, x.keeps...)
	}
	p := w.plan(parse(t, "{recovery_window: 3d, gfs: {monthly: 3}}"))
	for _, v := range p.WAL { // one moment of January is kept, and every moment of three days
		january := v.First <= names[30][5:] && names[30][5:] <= v.Last
		if v.Keep != (january || v.First >= names[57][5:]) {
			t.Errorf("%+v", v)
		}
	}
	for _, bad := range []string{"", "{}", "[]", "7", "{recovery_window: 14}", "{recovery_window: -1d}", "{full: -1}", "{fulls: 3}", "{full: 3}\n---\n{full: 4}", "{recovery_window: 999999999y}",
		"{gfs: {daily: x}}", "{recovery_window: 999999h}{"} {
		if p, err := retention.ParsePolicy(bad); err == nil {
			t.Errorf("%q: %s", bad, p)
		}
	}
}

func TestNothingGoesUnread(t *testing.T) {
	w, n := fiveFulls(t)
	rule := must(retention.Retain(1, retention.Full, nil))
	for object, content := range map[string]string{
		w.a.SentinelName(n[4]):                                        "{",
		archive.Folder(n[3]) + "metadata.json":                        "[",
		archive.TombstoneDir + "20260101T000000.000000Z-x.json":       "[]",
		archive.HoldDir + "20260101T000000.000000Z-x.json":            "{",
		archive.RestoreDir + "x.json":                                 "{",
		archive.BackupDir + "base_0000000100000000000000EE/push.json": "{}",
	} {
		was, err := w.store.Open(t.Context(), object)
		var content0 []byte
		if err == nil {
			content0 = make([]byte, 1<<16)
			k, _ := was.Read(content0)
			content0 = content0[:k]
		}
		at := w.store.modified[object]
		w.put(object, content)
		if p, err := w.tryPlan(rule); err == nil {
			t.Errorf("with a bad %s: %q go", object, going(p))
		}
		if content0 != nil {
			w.put(object, string(content0))
			w.store.modified[object] = at
		} else if err := w.memory.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "once all can be read", going(w.plan(rule)), n[:12]...)
	// One that is damaged for good goes by its name.
	w.put(w.a.SentinelName(n[14]), "{")
	want(t, "the damaged one", going(w.plan(must(retention.Target("", n[14], nil)))), n[14])
	// A history that cannot be read keeps its timeline's WAL, and no other's.
	if err := w.memory.Delete(t.Context(), w.a.SentinelName(n[14])); err != nil {
		t.Fatal(err)
	}
}

// Garbage is WAL from before all backups, and what died.
func TestGarbage(t *testing.T) {
	w := newWorld(t)
	w.write(5)
	dead := w.begin("")
	w.write(1)
	w.days(2)
	full := w.take("", 2, nil)
	alive := w.begin(full)
	p := w.plan(must(retention.Garbage("", false)))
	if len(p.WAL) != 2 || p.WAL[0].Keep || p.WAL[0].Segments != 6 || !p.WAL[1].Keep {
		t.Errorf("%+v", p.WAL)
	}
	if len(p.Leftovers) != 2 || p.Leftovers[0].Name != dead || p.Leftovers[0].Keep || !p.Leftovers[1].Keep {
		t.Errorf("%+v", p.Leftovers)
	}
	if p := w.plan(must(retention.Garbage(retention.Archives, false))); !p.Leftovers[0].Keep || p.WAL[0].Keep {
		t.Errorf("ARCHIVES: %+v", p)
	}
	if p := w.plan(must(retention.Garbage(retention.Backups, false))); p.Leftovers[0].Keep || p.WAL != nil {
		t.Errorf("BACKUPS: %+v", p)
	}
	w.apply(must(retention.Garbage("", false)), 0)
	if left := w.has(archive.Folder(dead)); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if left := w.has(archive.Folder(alive)); len(left) != 2 {
		t.Errorf("left of the push at work: %q", left)
	}
	if left := w.has(archive.WALDir); len(left) != 4 { // two segments and their notes
		t.Errorf("left: %q", left)
	}
	if left := w.has("holdfast/"); len(left) != 3 {
		t.Errorf("left: %q", left)
	}
}

func TestEverything(t *testing.T) {
	w, _ := fiveFulls(t)
	b := w.take("", 1, permanent)
	var kept *retention.KeptError
	if _, err := w.tryPlan(retention.Everything(false)); !errors.As(err, &kept) || kept.Backup != b || kept.Ground != retention.Permanent {
		t.Errorf("a permanent one: %v", err)
	}
	w.begin("")
	if _, err := w.tryPlan(retention.Everything(true)); !errors.As(err, &kept) || kept.Ground != retention.Pushing {
		t.Errorf("a push at work: %v", err)
	}
	w.days(2)
	w.put(archive.CatchUpDir+"base_000000010000000000000001_D_000000010000000000000001_backup_stop_sentinel.json", "{}")
	r := w.apply(retention.Everything(true), 0)
	if left := w.has(""); len(left) > 0 {
		t.Errorf("left: %q; %+v", left, r)
	}
}

// In two steps: condemned, taken back or gone when the time has come.
func TestGrace(t *testing.T) {
	w, n := fiveFulls(t)
	rule := parse(t, "{full: 2}")
	before := w.has("")
	r := w.apply(rule, 72*time.Hour)
	want(t, "condemned", r.Condemned, n[:9]...)
	if r.Objects != 0 || len(w.has("")) != len(before)+1 {
		t.Errorf("%+v", r)
	}
	r = w.apply(rule, 72*time.Hour)
	if len(r.Condemned) != 0 || len(r.Waiting) != 9 || len(w.has(archive.TombstoneDir)) != 1 {
		t.Errorf("again: %+v", r)
	}
	c := must(catalog.Load(t.Context(), w.a))
	if b := must(c.Find(n[0])); b.Condemned == nil || b.Condemned.Request != "" {
		t.Errorf("%+v", b.Condemned)
	}
	want(t, "undeleted", must(retention.Undelete(t.Context(), w.a, []string{n[8]}, retention.Options{})), n[6:9]...)
	if _, err := retention.Undelete(t.Context(), w.a, []string{n[14]}, retention.Options{}); err == nil {
		t.Error("what is not condemned was undeleted")
	}
	must(w.a.AddRecord(t.Context(), archive.HoldDir, "", archive.Hold{Backup: n[8], Reason: "asked for"}))
	w.days(4)
	r = w.apply(rule, 72*time.Hour)
	if len(r.Backups) != 6 {
		t.Errorf("%+v", r)
	}
	c = must(catalog.Load(t.Context(), w.a))
	var left []string
	for _, b := range c.Backups {
		left = append(left, b.Name)
		if b.Condemned != nil {
			t.Errorf("%s is condemned", b.Name)
		}
	}
	want(t, "left", left, n[6:]...)
	// A policy that thinks better of it takes it back by itself.
	w.days(1)
	for _, h := range must(retention.LoadHolds(t.Context(), w.a, w.now)) {
		must(w.a.AddRecord(t.Context(), archive.HoldDir, "", archive.Hold{Revokes: h.Record}))
	}
	want(t, "condemned", w.apply(rule, 72*time.Hour).Condemned, n[6:9]...)
	want(t, "taken back", w.apply(parse(t, "{full: 3}"), 72*time.Hour).TakenBack, n[6:9]...)
	// What a person named goes, whatever the policy says.
	w.apply(must(retention.Target("", n[7], nil)), 72*time.Hour)
	if p := w.plan(parse(t, "{full: 3}")); len(going(p)) != 2 {
		t.Errorf("%q", going(p))
	}
	w.days(4)
	want(t, "purged", w.apply(parse(t, "{full: 3}"), 72*time.Hour).Backups, n[8], n[7])
	if left := w.has(archive.TombstoneDir); len(left) > 0 {
		t.Errorf("tombstones left: %q", left)
	}
}

// The moments between two times stay restorable.
func TestHeldMoments(t *testing.T) {
	w := newWorld(t)
	var names []string
	for range 10 {
		names = append(names, w.take("", 1, nil))
		w.write(4)
		w.days(1)
	}
	from := time.Date(2026, 1, 3, 12, 0, 0, 0, time.UTC)
	record := must(w.a.AddRecord(t.Context(), archive.HoldDir, "x", archive.Hold{From: from, To: from.Add(24 * time.Hour), Reason: "case 7", Until: w.now.Add(time.Hour)}))
	rule := must(retention.Retain(1, "", nil))
	p := w.plan(rule)
	want(t, "going", going(p), append(names[:2:2], names[4:9]...)...)
	for _, v := range p.WAL {
		// Backup 4 begins behind the last held moment, in the segment that stays with it.
		held := v.First >= names[2][5:] && v.Last <= names[4][5:]
		if v.Keep != (held || v.First >= names[9][5:]) {
			t.Errorf("%+v", v)
		}
	}
	w.days(1)
	want(t, "once it has ended", going(w.plan(rule)), names[:9]...)
	_ = record
}

// Who pushes and who restores is not disturbed.
func TestInUse(t *testing.T) {
	w, n := fiveFulls(t)
	rule := must(retention.Retain(1, retention.Full, nil))
	push := w.begin(n[1])
	p := w.plan(rule)
	want(t, "while a delta on the second is taken", going(p), n[2:12]...)
	w.days(0.02) // longer than a push is silent
	want(t, "when it is dead", going(w.plan(rule)), n[:12]...)
	if err := w.a.TakeDead(t.Context(), push, "here"); err != nil {
		t.Fatal(err)
	}
	mark := &archive.RestoreMark{Host: "db2", Backups: []string{n[4], n[3]}, Timeline: 1, FirstWAL: n[4][5:29]}
	if err := w.a.MarkRestore(t.Context(), "r1", mark); err != nil {
		t.Fatal(err)
	}
	p = w.plan(rule)
	want(t, "while the fifth is restored", going(p), append(n[:3:3], n[5:12]...)...)
	for _, v := range p.WAL {
		parent := v.First >= n[3][5:29] && v.Segments == 2 // what makes it consistent, too
		if v.Keep != (parent || v.First >= n[4][5:29]) {
			t.Errorf("%+v", v)
		}
	}
	mark.Replaying = true
	if err := w.a.MarkRestore(t.Context(), "r1", mark); err != nil {
		t.Fatal(err)
	}
	w.days(0.5)
	p = w.plan(rule)
	want(t, "while WAL is replayed", going(p), n[:12]...)
	if v := p.WAL[len(p.WAL)-1]; !v.Keep || v.First != n[4][5:29] && len(p.WAL) == 2 {
		t.Errorf("%+v", p.WAL)
	}
	w.days(1)
	w.apply(rule, 0)
	if left := w.has(archive.RestoreDir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// What the store does not let go stays with what it needs, is told, and is tried again; it keeps nothing else.
func TestRefusals(t *testing.T) {
	w, n := fiveFulls(t)
	rule := must(retention.Retain(1, retention.Full, nil))
	digit := n[4][:29][28:] // the sentinel of a delta, and other objects
	plain := w.a
	w.a = archive.New(&locked{w.store, digit}, archive.Options{})
	r := w.apply(rule, 0)
	if r.Refused == 0 || len(r.Refusals) == 0 || !strings.Contains(r.Refusals[0], "is locked until 2030") {
		t.Fatalf("%+v", r)
	}
	c := must(catalog.Load(t.Context(), plain))
	for _, b := range c.Backups {
		if _, err := c.Chain(&b); err != nil {
			t.Errorf("%s: %v", b.Name, err)
		}
	}
	if len(c.Backups) < 4 || len(c.Backups) > 12 {
		t.Errorf("%d backups are left", len(c.Backups))
	}
	p := w.plan(rule)
	if len(going(p)) != len(c.Backups)-3 {
		t.Errorf("%q go, %d are there", going(p), len(c.Backups))
	}
	w.a = plain
	w.apply(rule, 0)
	if c := must(catalog.Load(t.Context(), plain)); len(c.Backups) != 3 {
		t.Errorf("%d backups are left once they are free", len(c.Backups))
	}
	if left := w.has(archive.TombstoneDir); len(left) > 0 {
		t.Errorf("tombstones left: %q", left)
	}
}

// Where everything is refused not every object is tried.
func TestEverythingIsLocked(t *testing.T) {
	w := newWorld(t)
	w.write(2500)
	w.days(1)
	w.take("", 1, nil)
	calls := &hooked{Store: &unerasable{w.store}, n: 1 << 30}
	w.a = archive.New(calls, archive.Options{})
	r := w.apply(must(retention.Garbage(retention.Archives, false)), 0)
	if !r.StoreLocks || r.Refused < 7000 || r.Objects != 0 || len(r.Refusals) > 5 {
		t.Errorf("%+v", r)
	}
	if made := 1<<30 - calls.n; made > 8000 {
		t.Errorf("%d calls", made)
	}
}

// unerasable is a store whose WAL cannot be removed.
type unerasable struct{ store.Store }

func (u *unerasable) Delete(ctx context.Context, name string) error {
	if strings.HasPrefix(name, archive.WALDir) || strings.HasPrefix(name, archive.SummaryDir) {
		return &store.OpError{Op: "delete", Name: name, Text: "not for you", Kind: fs.ErrPermission, Err: fs.ErrPermission}
	}
	return u.Store.Delete(ctx, name)
}

// The removal of a backup that was broken off is finished at once, however young the backup is.
func TestHalfRemoved(t *testing.T) {
	w := newWorld(t)
	w.take("", 1, nil)
	w.take("", 1, nil)
	last := w.take("", 1, nil)
	rule := must(retention.Target("", last, nil))
	w.apply(rule, time.Hour)
	if err := w.memory.Delete(t.Context(), w.a.SentinelName(last)); err != nil { // and then it was killed
		t.Fatal(err)
	}
	w.days(0.1)
	w.apply(retention.Policy{}, 0)
	if left := w.has(archive.Folder(last)); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if left := w.has(archive.TombstoneDir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// What verify has found to be damaged does not count as a backup that can be restored, and is not the last one for it.
func TestDamagedDoesNotCount(t *testing.T) {
	w := newWorld(t)
	var n []string
	for range 4 {
		n = append(n, w.take("", 2, nil))
		w.days(1)
	}
	rule := parse(t, "{minimum: 1}")
	want(t, "while all is well", going(w.plan(rule)), n[:3]...)
	w.put(archive.VerifiedDir(n[3])+"20260110T000000.000000Z-x.json", `{"at":"2026-01-10T00:00:00Z","result":"damaged","objects":[{"name":"part_001.tar.zst","problem":"CRC"}]}`)
	p := w.plan(rule)
	want(t, "when the newest is damaged", going(p), n[:2]...)
	c, err := catalog.Load(t.Context(), w.a)
	if err != nil {
		t.Fatal(err)
	}
	if damaged, err := retention.LoadDamaged(t.Context(), w.a, c); err != nil || len(damaged) != 1 || !strings.Contains(damaged[n[3]], "part_001.tar.zst: CRC") {
		t.Errorf("damaged: %v, %v", damaged, err)
	}
	if v := reasonFor(t, p, n[3]); v.Ground != retention.Newer || !strings.Contains(v.Broken, "part_001.tar.zst: CRC") {
		t.Errorf("%+v", v)
	}
	w.put(archive.VerifiedWALDir+"20260110T000000.000000Z-x.json", `{"at":"2026-01-10T00:00:00Z","timeline":1,"first":"`+n[0][5:]+`","last":"`+n[3][5:]+`","problems":[{"segment":"`+n[2][5:]+`","kind":"crc","text":"record at 0/5000028"}]}`)
	want(t, "when the WAL of the one before is, too", going(w.plan(rule)), n[0])
	w.put(archive.VerifiedWALDir+"20260111T000000.000000Z-x.json", `{"at":"2026-01-11T00:00:00Z","timeline":1,"first":"`+n[0][5:]+`","last":"`+n[3][5:]+`","problems":[{"segment":"`+n[2][5:]+`","kind":"key"}]}`)
	want(t, "while nobody can say that it is well again", going(w.plan(rule)), n[0])
	w.put(archive.VerifiedWALDir+"20260112T000000.000000Z-x.json", `{"at":"2026-01-12T00:00:00Z","timeline":1,"first":"`+n[0][5:]+`","last":"`+n[3][5:]+`"}`)
	want(t, "once the WAL was found good", going(w.plan(rule)), n[:2]...)
	w.put(archive.VerifiedDir(n[3])+"20260111T000000.000000Z-x.json", `{"at":"2026-01-11T00:00:00Z","result":"ok"}`)
	want(t, "once all was found good", going(w.plan(rule)), n[:3]...)
}

// A verification leaves a record about once a minute, each of what it has read since: what an earlier one has found counts until the object is found good, and what harms no restore hides nothing.
func TestDamageIsRemembered(t *testing.T) {
	const head = `{"at":"2026-01-10T00:00:00Z","result":`
	part := head + `"damaged","objects":[{"name":"part_003.tar.zst","problem":"CRC"}]}`
	sums := head + `"damaged","objects":[{"name":"page_sums/003","problem":"CRC","harmless":true}]}`
	rest := head + `"damaged","objects":[{"name":"part_004.tar.zst"}]}`
	for _, c := range []struct {
		what    string
		records []string
		damaged string // what is said of it; "" where it can be restored
	}{
		{"then harmless damage", []string{part, sums}, "part_003.tar.zst: CRC"},
		{"then parts that are right", []string{part, rest, rest}, "part_003.tar.zst: CRC"},
		{"harmless damage, then parts that are right", []string{sums, rest}, ""},
		{"then a sample that is right", []string{part, head + `"ok","sample":0.01}`}, "part_003.tar.zst: CRC"},
		{"then all is right", []string{part, head + `"ok","objects":[{"name":"part_003.tar.zst"}]}`}, ""},
		{"then all is right but what is harmless", []string{part, head + `"ok"}`, sums}, ""},
		{"then that part is right", []string{part, head + `"incomplete","objects":[{"name":"part_003.tar.zst"}]}`}, ""},
		{"of another backup of that name", []string{head + `"damaged","sentinel_sha256":"abcd","objects":[{"name":"part_003.tar.zst","problem":"CRC"}]}`}, ""},
		{"that names no object", []string{head + `"damaged"}`, rest}, "that it is damaged"},
	} {
		w := newWorld(t)
		older, name := w.take("", 2, nil), ""
		w.days(1)
		name = w.take("", 2, nil)
		for i, doc := range c.records {
			w.put(fmt.Sprintf("%s20260110T00000%d.000000Z-x.json", archive.VerifiedDir(name), i), doc)
		}
		damaged, err := retention.LoadDamaged(t.Context(), w.a, must(catalog.Load(t.Context(), w.a)))
		if err != nil || (damaged[name] == "") != (c.damaged == "") || !strings.Contains(damaged[name], c.damaged) {
			t.Errorf("damage, %s: %q, %v, want %q", c.what, damaged[name], err, c.damaged)
		}
		if goes := going(w.plan(parse(t, "{minimum: 1}"))); slices.Contains(goes, older) != (c.damaged == "") {
			t.Errorf("damage, %s: %q go", c.what, goes)
		}
	}
}
