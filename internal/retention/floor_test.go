package retention_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/retention"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// Below one prefix other archives may lie, and whatever else: they are none of this one's.
func TestEverythingIsOfThisArchive(t *testing.T) {
	w, _ := fiveFulls(t)
	const other = "otherdb/basebackups_005/base_000000010000000000000002_backup_stop_sentinel.json"
	w.put(other, "{}")
	for o, err := range retention.Objects(t.Context(), w.a, w.plan(retention.Everything(true))) {
		if err != nil || o.Name == other {
			t.Errorf("%s: %v", o.Name, err)
		}
	}
	w.apply(retention.Everything(true), 0)
	want(t, "left", w.has(""), other)
}

// Whether a backup is permanent is not known where it cannot be read.
func TestEverythingIsNotUnread(t *testing.T) {
	w, _ := fiveFulls(t)
	b := w.take("", 1, func(s *archive.Sentinel) { s.IsPermanent = false })
	w.put(archive.Folder(b)+"metadata.json", "[")
	var unread *retention.UnreadableError
	if _, err := w.tryPlan(retention.Everything(false)); !errors.As(err, &unread) || !strings.Contains(unread.Hint(), "FORCE") {
		t.Errorf("%v", err)
	}
	w.apply(retention.Everything(true), 0)
	want(t, "left", w.has(""))
}

// A hold on moments covers a backup that was condemned before.
func TestHeldThoughCondemned(t *testing.T) {
	w := newWorld(t)
	w.take("", 1, permanent)
	w.write(4)
	w.days(1)
	b := w.take("", 1, nil)
	w.write(4)
	w.days(1)
	from := w.now
	w.write(4)
	w.days(1)
	c := w.take("", 1, nil)
	w.apply(must(retention.Before("", must(retention.ParseMoment(c)))), 72*time.Hour)
	must(w.a.AddRecord(t.Context(), archive.HoldDir, "x", archive.Hold{From: from, To: from.Add(time.Hour), Reason: "case 7"}))
	w.days(4)
	w.apply(retention.Policy{}, 0)
	if v := reasonFor(t, w.plan(retention.Policy{}), b); !v.Keep || v.Ground != retention.Held {
		t.Errorf("%+v", v)
	}
}

// What does not say when, or what, lets nothing go.
func TestRecordsThatSayHalf(t *testing.T) {
	w, n := fiveFulls(t)
	for object, content := range map[string]string{
		archive.TombstoneDir + "20260101T000000.000000Z-x.json": `{"backups":["` + n[0] + `"],"request":"holdfast delete"}`,
		archive.HoldDir + "20260101T000000.000000Z-x.json":      `{"backups":["` + n[0] + `"],"reason":"of another version"}`,
	} {
		w.put(object, content)
		if p, err := w.tryPlan(parse(t, "{full: 1}")); err == nil {
			t.Errorf("%s: %q go", content, going(p))
		}
		if err := w.memory.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
}

// Where all backups are permanent nothing says that WAL between them is garbage.
func TestGarbageAmongPermanent(t *testing.T) {
	w := newWorld(t)
	w.take("", 1, permanent)
	w.write(4)
	w.days(1)
	w.take("", 1, permanent)
	w.write(4)
	for _, v := range w.plan(must(retention.Garbage("", false))).WAL {
		if !v.Keep {
			t.Errorf("%+v", v)
		}
	}
}

// The clock of the host on which a stray clone took a backup is years ahead: its backup is not the newest of all.
func TestClockAhead(t *testing.T) {
	w, n := fiveFulls(t)
	// A clone of the second day was promoted, and took a backup on timeline 2.
	at := w.now
	timeline, seg, history := w.timeline, w.seg, w.history
	w.seg = 12
	w.promote()
	w.take("", 1, func(s *archive.Sentinel) {
		s.StartTime, s.FinishTime = s.StartTime.AddDate(10, 0, 0), s.FinishTime.AddDate(10, 0, 0)
	})
	w.now, w.timeline, w.seg, w.history = at.Add(time.Hour), timeline, seg, history
	w.write(3)
	w.days(0.5)
	newest := w.take("", 1, nil)
	w.write(3)
	p := w.plan(parse(t, "{full: 2}"))
	for _, name := range []string{n[12], newest} {
		if v := reasonFor(t, p, name); !v.Keep || v.Ground != retention.ByCount {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// meanwhile is a store that does something once, when the first sentinel was removed.
type meanwhile struct {
	store.Store
	once func()
}

func (m *meanwhile) Delete(ctx context.Context, name string) error {
	err := m.Store.Delete(ctx, name)
	if m.once != nil && strings.HasSuffix(name, "_backup_stop_sentinel.json") {
		once := m.once
		m.once = nil
		once()
	}
	return err
}

// What is taken back, held or restored while backups are being removed stays, as far as it is still there.
func TestOvertaken(t *testing.T) {
	for what, note := range map[string]func(a *archive.Archive, name string) error{
		"undelete": func(a *archive.Archive, name string) error {
			_, err := retention.Undelete(t.Context(), a, []string{name}, retention.Options{})
			return err
		},
		"hold": func(a *archive.Archive, name string) error {
			_, err := a.AddRecord(t.Context(), archive.HoldDir, "", archive.Hold{Backup: name, Reason: "asked for"})
			return err
		},
		"restore": func(a *archive.Archive, name string) error {
			return a.MarkRestore(t.Context(), "x", &archive.RestoreMark{Host: "elsewhere", Backups: []string{name}})
		},
	} {
		w := newWorld(t)
		var names []string
		for range 4 {
			names = append(names, w.take("", 1, nil))
			w.write(2)
			w.days(1)
		}
		rule := parse(t, "{full: 1}")
		w.apply(rule, time.Hour)
		w.days(1)
		m := &meanwhile{Store: w.store, once: func() {
			if err := note(w.a, names[2]); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}}
		r, err := retention.Apply(t.Context(), archive.New(m, archive.Options{}), w.plan(rule), retention.Options{Grace: time.Hour, Host: "here"})
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		want(t, what, r.Backups, names[0])
		if v := w.apply(rule, time.Hour); what == "undelete" {
			want(t, what+", then", v.Backups, names[1])
			want(t, what+", then", v.Condemned, names[2])
		} else {
			want(t, what+", then", v.Backups, names[1])
		}
		reasonFor(t, w.plan(rule), names[2])
	}
}

// together is a store of one of several commands that do the same at once: each waits, once it has condemned, and before it removes anything, until all have come
// so far or have ended.
type together struct {
	store.Store
	condemned, removing func()
}

func (s *together) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	err := store.PutIfAbsent(ctx, s.Store, name, r)
	if strings.HasPrefix(name, archive.TombstoneDir) {
		s.condemned()
	}
	return err
}

func (s *together) Delete(ctx context.Context, name string) error {
	if strings.HasSuffix(name, "_backup_stop_sentinel.json") {
		s.removing()
	}
	return s.Store.Delete(ctx, name)
}

// Two who each delete one of the last two backups, and see each other's tombstone only, do not delete both.
func TestTwoDeleteTheLastTwo(t *testing.T) {
	w := newWorld(t)
	names := []string{w.take("", 1, nil)}
	w.days(1)
	names = append(names, w.take("", 1, nil))
	var condemned, removing, ended sync.WaitGroup
	condemned.Add(2)
	removing.Add(2)
	plans := []*retention.Plan{w.plan(must(retention.Target("", names[0], nil))), w.plan(must(retention.Target("", names[1], nil)))}
	for _, plan := range plans {
		meet := func(all *sync.WaitGroup) func() {
			var once sync.Once
			return func() { once.Do(func() { all.Done(); all.Wait() }) }
		}
		s := &together{w.store, meet(&condemned), nil}
		var once sync.Once
		s.removing = func() { once.Do(func() { removing.Done(); removing.Wait() }) }
		ended.Go(func() {
			_, err := retention.Apply(t.Context(), archive.New(s, archive.Options{}), plan, retention.Options{Host: "here"})
			once.Do(removing.Done)
			if kept := (*retention.KeptError)(nil); err != nil && !errors.As(err, &kept) {
				t.Error(err)
			}
		})
	}
	ended.Wait()
	if left := w.has(archive.BackupDir); len(left) == 0 {
		t.Error("no backup is left")
	}
}

// A history tells of all timelines that led to its own: WAL of one of these stays, though the history of that one is lost.
func TestHistoryBetweenIsLost(t *testing.T) {
	w := newWorld(t)
	first := w.take("", 1, nil)
	w.write(3)
	w.promote()
	w.write(4)
	w.promote()
	w.write(3)
	w.days(1)
	w.take("", 1, nil)
	if err := w.memory.Delete(t.Context(), archive.WALDir+wal.HistoryName(2)); err != nil {
		t.Fatal(err)
	}
	for _, rule := range []retention.Rule{parse(t, "{full: 2}"), must(retention.Before("", retention.Moment{Name: first})), must(retention.Garbage("", false))} {
		for _, v := range w.plan(rule).WAL {
			if !v.Keep && (v.Timeline > 1 || v.Last >= first[5:]) {
				t.Errorf("%s: %+v", rule, v)
			}
		}
	}
}

// A backup that says it ended before it began keeps its WAL all the same.
func TestEndBeforeBegin(t *testing.T) {
	w := newWorld(t)
	w.write(20)
	odd := w.take("", 1, func(s *archive.Sentinel) {
		finish := size.Start(3)
		s.FinishLSN, s.IsPermanent = &finish, true
	})
	w.write(5)
	w.days(1)
	w.take("", 1, nil)
	for _, v := range w.plan(parse(t, "{full: 1}")).WAL {
		if !v.Keep && v.First <= odd[5:] && odd[5:] <= v.Last {
			t.Errorf("%+v", v)
		}
	}
}

// A rule that says nothing is an error, as what it was to keep would go.
func TestEmptyRules(t *testing.T) {
	for text, says := range map[string]string{
		"{recovery_window: , minimum: 2}":        "recovery_window: nothing stands behind it",
		"recovery_window:\nminimum: 2\n":         "recovery_window",
		`{"full": null, "minimum": 2}`:           "full",
		"{full: 7, gfs: {monthly: , yearly: 3}}": "gfs: monthly",
		"{full: 7, gfs: }":                       "gfs",
		"{full: 7, keep_last_proven: ~}":         "keep_last_proven",
		"{minimum: 0}":                           "it wants no backup",
		"{recovery_window: 0d}":                  "it wants no backup",
		"{full: 0, gfs: {daily: 0}}":             "it wants no backup",
	} {
		if p, err := retention.ParsePolicy(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %s, %v", text, p, err)
		}
	}
	if p := parse(t, "{full: 2, minimum: 0}"); p.Minimum != 1 {
		t.Errorf("%s", p)
	}
}

// hooking is a store that does something once, before the first call of a kind.
type hooking struct {
	store.Store
	list, remove func(name string)
}

func (s *hooking) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	if s.list != nil {
		s.list(dir)
	}
	return s.Store.List(ctx, dir, after)
}

func (s *hooking) Delete(ctx context.Context, name string) error {
	if s.remove != nil {
		s.remove(name)
	}
	return s.Store.Delete(ctx, name)
}

// What was condemned and taken back while an apply was at work stays taken back when it tidies up.
func TestTakenBackMeanwhile(t *testing.T) {
	w, n := fiveFulls(t)
	rule := parse(t, "{full: 4}")
	done := false
	s := &hooking{Store: w.store, remove: func(name string) {
		if !strings.HasPrefix(name, archive.TombstoneDir) || done {
			return
		}
		done = true // the first tombstone of the apply goes
		if _, err := w.a.AddRecord(t.Context(), archive.TombstoneDir, "", archive.Tombstone{PurgeAfter: w.now.Add(time.Hour), Request: "holdfast delete target", Backups: n[3:6]}); err != nil {
			t.Error(err)
		}
		if _, err := retention.Undelete(t.Context(), w.a, n[3:6], retention.Options{}); err != nil {
			t.Error(err)
		}
	}}
	if _, err := retention.Apply(t.Context(), archive.New(s, archive.Options{}), w.plan(rule), retention.Options{Host: "here"}); err != nil || !done {
		t.Fatal(err, done)
	}
	c := must(catalog.Load(t.Context(), w.a))
	for _, name := range n[3:6] {
		if b := must(c.Find(name)); b.Condemned != nil {
			t.Errorf("%s is condemned by %s", name, b.Condemned.Record)
		}
	}
}

// A hold that comes while an apply looks at the archive keeps WAL, too, where there is no backup to remove.
func TestHeldBeforeWALGoes(t *testing.T) {
	w := newWorld(t)
	w.take("", 1, permanent)
	from := w.now
	w.write(5)
	w.days(1)
	w.take("", 1, nil)
	rule := parse(t, "{full: 1}")
	plan := w.plan(rule)
	before := len(w.has(archive.WALDir))
	lists := 0
	s := &hooking{Store: w.store, list: func(dir string) {
		if lists++; lists == 1 || dir != archive.WALDir {
			return
		}
		if len(w.has(archive.HoldDir)) == 0 { // holds were read before
			must(w.a.AddRecord(t.Context(), archive.HoldDir, "", archive.Hold{From: from, To: from.Add(time.Hour), Reason: "case 7"}))
		}
	}}
	seen := 0
	inner := s.list
	s.list = func(dir string) {
		if dir == archive.HoldDir {
			seen++
		}
		if seen >= 2 { // known records were listed, and the holds read
			inner(dir)
		}
	}
	if _, err := retention.Apply(t.Context(), archive.New(s, archive.Options{}), plan, retention.Options{Host: "here"}); err != nil {
		t.Fatal(err)
	}
	if left := len(w.has(archive.WALDir)); left != before {
		t.Errorf("%d WAL objects are left of %d", left, before)
	}
	if v := w.plan(rule).WAL; len(v) == 0 {
		t.Error("nothing is judged")
	}
}

// WAL that goes behind a backup that stays is noted, so that nobody takes it for lost: one record for each hole, for as long as that backup is there.
func TestRemovedIsNoted(t *testing.T) {
	w := newWorld(t)
	first := w.take("", 1, permanent) // in segment 1
	w.write(3)
	w.days(1)
	w.take("", 1, nil) // 5
	w.write(3)
	w.days(1)
	second := w.take("", 1, permanent) // 9
	w.promote()                        // in 10
	w.write(3)                         // 11-13
	w.days(1)
	w.take("", 1, nil) // 14
	m := &model{world: w}
	noted := func(what, want string) {
		t.Helper()
		if got := removedWAL(m); got != want {
			t.Errorf("%s: %s is noted, want %s", what, got, want)
		}
	}
	rule := parse(t, "{full: 1}")
	w.apply(rule, time.Hour)
	noted("condemned", "")
	w.days(1)
	w.apply(rule, time.Hour)
	noted("removed", "1: 10-10 true, 1: 2-8 true, 2: 10-13 true")
	w.apply(rule, 0)
	if got := len(w.has(archive.GapDir)); got != 3 {
		t.Errorf("%d records", got)
	}
	w.write(3) // 15-17
	w.days(1)
	w.take("", 1, nil) // 18
	w.apply(rule, 0)
	noted("more of it", "1: 10-10 true, 1: 2-8 true, 2: 10-17 true")
	if got := len(w.has(archive.GapDir)); got != 3 {
		t.Errorf("%d records", got)
	}
	// What a person has said stays as it is.
	must(w.a.AddRecord(t.Context(), archive.GapDir, "", map[string]any{"timeline": 2, "first": size.Name(2, 12), "last": size.Name(2, 12), "reason": "disk"}))
	for _, name := range []string{first, second} {
		if _, err := w.a.Mark(t.Context(), name, false); err != nil {
			t.Fatal(err)
		}
		w.apply(must(retention.Target("", name, nil)), 0)
		w.apply(rule, 0)
	}
	noted("when they are gone", "2: 12-12 false")
}

// The WAL that a catch-up needs stays for a week: the standby it was taken for has to replay it.
func TestCatchUpsNeedWAL(t *testing.T) {
	w := newWorld(t)
	w.take("", 1, nil)
	w.write(3)
	from := w.seg
	name := w.name("")
	w.write(2)
	w.put(archive.CatchUpDir+name+"_backup_stop_sentinel.json", "{")
	w.days(1)
	w.take("", 1, nil)
	rule := must(retention.Retain(1, "", nil))
	goes := func() (last string) {
		for _, v := range w.plan(rule).WAL {
			if !v.Keep {
				last = v.Last
			}
		}
		return last
	}
	if got := goes(); got != size.Name(1, from-1) {
		t.Errorf("WAL goes up to %s", got)
	}
	w.put(archive.CatchUpDir+archive.BackupName(size.Name(1, 2))+"/push.json", `{"host":"elsewhere","pid":7,"started":"2026-01-02T00:00:00Z"}`)
	if got := goes(); got != size.Name(1, 1) {
		t.Errorf("while one is taken WAL goes up to %s", got)
	}
	w.days(8)
	if got := goes(); got != size.Name(1, from+1) {
		t.Errorf("a week later WAL goes up to %s", got)
	}
}

// What lies in one of several storages may be needed by what lies in another.
func TestSparesWhatIsElsewhere(t *testing.T) {
	far := newWorld(t)
	old := far.take("", 1, nil) // in both
	far.write(4)
	far.days(1)
	far.take("", 1, nil)
	whole := func(change func(*world)) *retention.Inventory {
		w := *far
		w.memory = &storetest.Memory{}
		w.store = newClocked(w.memory, &w.now)
		w.a = archive.New(w.store, archive.Options{})
		for _, name := range far.has("") {
			content := must(store.ReadFile(t.Context(), far.store, name, 1<<20))
			w.put(name, string(content))
			w.store.modified[name] = far.store.modified[name]
		}
		known := map[string]bool{}
		for _, b := range must(catalog.Load(t.Context(), w.a)).Backups {
			known[b.Name] = true
		}
		change(&w)
		in := must(retention.Load(t.Context(), w.a, "here", false))
		in.At = far.now
		for i := range in.Catalog.Backups {
			b := &in.Catalog.Backups[i]
			if b.Storage = "near"; known[b.Name] {
				b.Storage = "far"
			}
		}
		return in
	}
	plan := far.plan(parse(t, "{full: 1}"))
	for what, x := range map[string]struct {
		change func(*world)
		why    string
	}{
		"nothing": {func(*world) {}, ""},
		"newer":   {func(w *world) { w.take("", 1, nil) }, ""},
		"a delta": {func(w *world) { w.take(old, 1, nil) }, "builds on it"},
		"an older": {func(w *world) {
			w.takeAs(archive.BackupName(size.Name(1, 3)), "", 1, func(s *archive.Sentinel) { *s.LSN = size.Start(3) + 0x28 })
		}, "it is replayed over base_000000010000000000000003"},
		"a hold": {func(w *world) {
			must(w.a.AddRecord(t.Context(), archive.HoldDir, "", archive.Hold{Backup: old, Reason: "case 7"}))
		}, "it is held: case 7"},
		"a restore": {func(w *world) {
			_ = w.a.MarkRestore(t.Context(), "x", &archive.RestoreMark{Host: "db2", Backups: []string{old}})
		}, "a restore on db2 uses it"},
		"a replay": {func(w *world) {
			_ = w.a.MarkRestore(t.Context(), "x", &archive.RestoreMark{Host: "db2", Replaying: true, FirstWAL: old[5:]})
		}, "a restore on db2 replays it"},
		"a push": {func(w *world) { w.begin("") }, "is being taken in another storage"},
	} {
		err := plan.Spares(whole(x.change), "far")
		var alone *retention.AloneError
		if (err != nil) != (x.why != "") || err != nil && (!errors.As(err, &alone) || !strings.Contains(err.Error(), x.why)) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What is named and must stay is told by what keeps it, not by what builds on it; a policy is told in words that fit one as well as many.
func TestWordsOfPlans(t *testing.T) {
	w := newWorld(t)
	full := w.take("", 1, nil)
	w.days(1)
	w.take("", 1, nil)
	delta := w.take(full, 1, permanent)
	w.days(1)
	last := w.take("", 1, nil)
	_, err := w.tryPlan(must(retention.Target("", full, nil)))
	var kept *retention.KeptError
	if !errors.As(err, &kept) || kept.Backup != delta || kept.Ground != retention.Permanent || !strings.Contains(kept.Hint(), delta) {
		t.Errorf("%v", err)
	}
	for policy, why := range map[string]string{
		"{full: 1}":               "it is the newest full backup",
		"{full: 3}":               "it is one of the 3 newest full backups",
		"{minimum: 1}":            "it is the newest that can be restored",
		"{minimum: 2}":            "it is one of the 2 newest that can be restored",
		"{full: 1, minimum: 1}":   "it is the newest full backup",
		"{recovery_window: 0.5h}": "the recovery window, since 2026-01-02 23:33:00 UTC, begins with it",
	} {
		if v := reasonFor(t, w.plan(parse(t, policy)), last); v.Why != why && !strings.HasPrefix(v.Why, "it is within") {
			t.Errorf("%s: %s", policy, v.Why)
		}
	}
	must(w.a.AddRecord(t.Context(), archive.HoldDir, "x", archive.Hold{From: w.now, To: w.now, Reason: "case 7"}))
	if _, err := w.tryPlan(retention.Everything(true)); err == nil || !strings.HasPrefix(err.Error(), "nothing is deleted: moments are held: case 7 (hold x)") {
		t.Errorf("%v", err)
	}
}

// Where it is not known where a timeline came from, the backups on older ones stay as the rule wants them: it may lead over them.
func TestUnreadHistoryCondemnsNothing(t *testing.T) {
	for what, spoil := range map[string]func(w *world, name string){
		"read":       func(*world, string) {},
		"unreadable": func(w *world, name string) { w.put(name, "what\n") },
		"missing": func(w *world, name string) {
			if err := w.memory.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		},
	} {
		w := newWorld(t)
		var names []string
		for i := range 8 {
			if i == 6 {
				w.promote()
			}
			names = append(names, w.take("", 1, nil))
			w.write(2)
			w.days(1)
		}
		spoil(w, archive.WALDir+wal.HistoryName(2))
		for policy, goes := range map[string][]string{"{recovery_window: 5d}": names[:3], "{full: 4}": names[:4]} {
			p := w.plan(parse(t, policy))
			got := going(p)
			if what == "read" {
				want(t, policy, got, goes...)
			}
			if len(got) > len(goes) || len(got) == 0 || (what == "read") != (len(p.Notes) == 0) {
				t.Errorf("%s, %s: %q go, %q", what, policy, got, p.Notes)
			}
		}
	}
}

// What a person has condemned for later is not condemned again by each run of the policy.
func TestAskedOnce(t *testing.T) {
	w, n := fiveFulls(t)
	w.apply(must(retention.Target("", n[0], nil)), 30*24*time.Hour)
	for range 3 {
		if r := w.apply(parse(t, "{full: 5}"), time.Hour); len(r.Condemned) > 0 || len(r.Waiting) != 3 {
			t.Errorf("%+v", r)
		}
		w.days(1)
	}
	if got := len(w.has(archive.TombstoneDir)); got > 2 { // the other one is of WAL
		t.Errorf("%d tombstones", got)
	}
}

// unnoted is a store in which no gaps may be noted, and nothing of a catch-up read.
type unnoted struct{ store.Store }

func (s *unnoted) denied(name string) error {
	return &store.OpError{Op: "use", Name: name, Text: "access denied", Kind: fs.ErrPermission, Err: fs.ErrPermission}
}

func (s *unnoted) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if strings.HasPrefix(name, archive.GapDir) {
		return s.denied(name)
	}
	return store.PutIfAbsent(ctx, s.Store, name, r)
}

func (s *unnoted) Stat(ctx context.Context, name string) (store.Object, error) {
	if strings.HasPrefix(name, archive.CatchUpDir) {
		return store.Object{}, s.denied(name)
	}
	return s.Store.Stat(ctx, name)
}

func (s *unnoted) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.HasPrefix(name, archive.CatchUpDir) {
		return nil, s.denied(name)
	}
	return s.Store.Open(ctx, name)
}

// Who may remove and not note what was removed removes all the same.
func TestRemovedIsNotNoted(t *testing.T) {
	w := newWorld(t)
	w.take("", 1, permanent)
	w.write(3)
	w.days(1)
	w.take("", 1, nil)
	w.put(archive.CatchUpDir+w.name("")+"/push.json", `{"host":"elsewhere","pid":7,"started":"2026-01-02T00:00:00Z"}`)
	w.a = archive.New(&unnoted{w.store}, archive.Options{})
	if r := w.apply(parse(t, "{full: 1}"), 0); r.Objects == 0 {
		t.Errorf("%+v", r)
	}
	if left := w.has(archive.WALDir); slices.Contains(left, size.Name(1, 3)+".zst") {
		t.Errorf("left: %q", left)
	}
}

// A backup that starts or ends at a border keeps the WAL on both sides of it, whichever segment it is named after: PostgreSQL before 17 takes the one before.
func TestBorders(t *testing.T) {
	for what, x := range map[string]struct {
		named       wal.SegmentNo
		first, last wal.SegmentNo // that stay
	}{"as 17 names it": {10, 10, 11}, "as 16 does": {9, 9, 11}} {
		w := newWorld(t)
		w.write(8) // 1-8
		w.seg = 9
		w.write(5) // 9-13
		w.takeAs(archive.BackupName(size.Name(1, x.named)), "", 1, func(s *archive.Sentinel) {
			start, finish := size.Start(10), size.Start(12)
			s.LSN, s.FinishLSN, s.IsPermanent = &start, &finish, true
		})
		w.write(5)
		w.days(1)
		newest := w.take("", 1, nil)
		w.apply(parse(t, "{full: 1}"), 0)
		for n := wal.SegmentNo(1); n < w.seg; n++ {
			stays := n >= x.first && n <= x.last || size.Name(1, n) >= newest[5:]
			if got := slices.Contains(w.has(archive.WALDir), size.Name(1, n)+".zst"); got != stays {
				t.Errorf("%s: segment %d is there %t, want %t", what, n, got, stays)
			}
		}
	}
}

// Backups of WAL-E say little, and have no metadata: not when they ended, nor where. All WAL from their start on stays with them.
func TestBackupsThatSayLittle(t *testing.T) {
	w := newWorld(t)
	w.write(4)
	old := "base_" + size.Name(1, 3) + "_00000040"
	w.folder(old)
	w.put(w.a.SentinelName(old), `{"wal_segment_backup_stop":"`+size.Name(1, 4)+`","wal_segment_offset_backup_stop":"00000320","expanded_size_bytes":1}`)
	w.write(4)
	w.days(1)
	newer := "base_" + size.Name(1, 9)
	w.folder(newer)
	w.write(2)
	w.put(w.a.SentinelName(newer), `{"LSN":150995016,"PgVersion":90600,"FinishLSN":150995328}`) // of WAL-G before 0.2
	w.write(3)
	w.days(1)
	for _, rule := range []retention.Rule{parse(t, "{full: 2}"), parse(t, "{recovery_window: 36h}"), must(retention.Before("", retention.Moment{Name: old}))} {
		p := w.plan(rule)
		if len(going(p)) > 0 {
			t.Errorf("%s: %q go", rule, going(p))
		}
		for _, v := range p.WAL {
			if v.Keep != (v.First >= size.Name(1, 3)) {
				t.Errorf("%s: %+v", rule, v)
			}
		}
	}
	want(t, "one", going(w.plan(parse(t, "{full: 1}"))), old)
	w.apply(parse(t, "{full: 1}"), 0)
	want(t, "left", w.has(archive.BackupDir)[:1], newer+"/files_metadata.json")
}
