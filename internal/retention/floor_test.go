package retention_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/retention"
	"holdfast/internal/store"
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
