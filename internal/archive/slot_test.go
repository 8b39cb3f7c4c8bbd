package archive_test

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// at is a moment of a day at which nothing else happens.
func at(hour, minute int) time.Time { return time.Date(2026, 11, 21, hour, minute, 0, 0, time.UTC) }

// datedStore is a store whose objects are as old as a test says.
type datedStore struct {
	*storetest.Memory
	modified map[string]time.Time // by name; others are as they were stored
	opened   map[string]bool
}

func (d datedStore) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	d.opened[name] = true
	return d.Memory.Open(ctx, name)
}

func (d datedStore) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range d.Memory.List(ctx, dir, after) {
			if t, ok := d.modified[o.Name]; ok {
				o.Modified = t
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// push makes a small backup for a slot, "" for none.
func push(t *testing.T, s store.Store, slot, name string) {
	t.Helper()
	a := archive.New(s, archive.Options{})
	if slot != "" {
		in, err := archive.ParseSlot(slot)
		if err != nil {
			t.Fatal(err)
		}
		a = a.InSlot(in)
	}
	d, err := a.Begin(t.Context(), name, "db1")
	if err != nil {
		t.Fatal(err)
	}
	p := tarpart.NewPacker(entries(tarpart.Entry{Path: "base/5/1", Content: []byte("one"), Mode: 0o600}), tarpart.Options{})
	if err := d.PutPart(t.Context(), d.NextPart(), p, p.Members); err != nil {
		t.Fatal(err)
	}
	sentinel := plain()
	sentinel.Hostname = "db1"
	if err := d.Commit(t.Context(), sentinel); err != nil {
		t.Fatal(err)
	}
}

const sentinelSuffix = "_backup_stop_sentinel.json"

// A slot is done when a backup is committed that was made for it: not while it is a draft, and not by one that was made for another slot, or for none.
func TestASlotIsDoneByItsBackupAlone(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	slot := archive.Slot{Job: "backup", At: at(3, 0)}
	found := func() string {
		t.Helper()
		name, s, err := a.BackupInSlot(t.Context(), slot)
		if err != nil || name != "" && s.Hostname != "db1" {
			t.Fatalf("%q, %+v, %v", name, s, err)
		}
		return name
	}
	push(t, m, "", "base_000000010000000000000003")
	push(t, m, "backup@2026-11-20T03:00:00Z", "base_000000010000000000000004")
	push(t, m, "full@2026-11-21T03:00:00Z", "base_000000010000000000000005")
	d, err := a.InSlot(slot).Begin(t.Context(), "base_000000010000000000000006", "db1")
	if err != nil {
		t.Fatal(err)
	}
	if got := found(); got != "" {
		t.Errorf("before its backup the slot is done by %s", got)
	}
	if err := d.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := found(); got != "" {
		t.Errorf("after a backup that came to nothing the slot is done by %s", got)
	}
	push(t, m, slot.String(), "base_000000010000000000000007")
	if got := found(); got != "base_000000010000000000000007" {
		t.Errorf("the slot is done by %q", got)
	}
	if err := m.Put(t.Context(), archive.BackupDir+"base_000000010000000000000009"+sentinelSuffix, strings.NewReader("{")); err != nil {
		t.Fatal(err)
	}
	if got := found(); got != "base_000000010000000000000007" {
		t.Errorf("beside a sentinel that is none the slot is done by %q", got)
	}
}

// Sentinels from long before the slot are not read, but for the newest few: a host whose clock was ahead has made one of these.
func TestWhatIsReadForASlot(t *testing.T) {
	d := datedStore{&storetest.Memory{}, map[string]time.Time{}, map[string]bool{}}
	slot := archive.Slot{Job: "backup", At: at(3, 0)}
	for i := range 8 {
		name := fmt.Sprintf("base_0000000100000000000000%02X", i+3)
		in := archive.Slot{Job: "backup", At: slot.At.AddDate(0, 0, i-7)}
		push(t, d, in.String(), name)
		d.modified[archive.BackupDir+name+sentinelSuffix] = in.At.Add(-24 * time.Hour) // by a clock that is a day behind
	}
	a := archive.New(d, archive.Options{})
	if name, _, err := a.BackupInSlot(t.Context(), slot); err != nil || name != "base_00000001000000000000000A" {
		t.Errorf("the newest: %q, %v", name, err)
	}
	clear(d.opened)
	if name, _, err := a.BackupInSlot(t.Context(), archive.Slot{Job: "backup", At: slot.At.Add(time.Hour)}); err != nil || name != "" || len(d.opened) != 3 {
		t.Errorf("a slot that nobody has done: %q, %v, and %d sentinels were read", name, err, len(d.opened))
	}
}

// Of many that find a slot not done in time one tells of it, and the others know which.
func TestOneTellsOfAnAbsence(t *testing.T) {
	a := archive.New(&storetest.Memory{}, archive.Options{})
	slot := archive.Slot{Job: "backup", At: at(3, 0)}
	var mu sync.Mutex
	var tellers []int
	told := map[int]int{} // who told, as each heard it
	var all sync.WaitGroup
	for pid := range 8 {
		all.Go(func() {
			ours, by, err := a.ClaimAbsence(t.Context(), slot, archive.SlotRecord{Host: "db1", PID: pid, At: at(6, 0)})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				t.Error(err)
			case ours:
				tellers = append(tellers, pid)
			default:
				told[by.PID]++
			}
		})
	}
	all.Wait()
	if len(tellers) != 1 || told[tellers[0]] != 7 {
		t.Fatalf("%v tell of it, and the others heard of %v", tellers, told)
	}
	again, _, err := a.ClaimAbsence(t.Context(), slot, archive.SlotRecord{Host: "db1", PID: tellers[0], At: at(6, 0)})
	if err != nil || !again {
		t.Errorf("who told and asks again: %v, %v", again, err)
	}
	if r, err := a.SlotDone(t.Context(), slot); err != nil || r != nil {
		t.Errorf("what is absent counts as done: %+v, %v", r, err)
	}
}

// What says that slots are done does not heap up, and is not changed.
func TestRecordsOfSlotsStayFew(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	first := archive.Slot{Job: "retention", At: at(0, 0)}
	if err := m.Put(t.Context(), archive.ScheduleDir+"retention/note.json", strings.NewReader("{}")); err != nil {
		t.Fatal(err)
	}
	for i := range 70 {
		s := archive.Slot{Job: "retention", At: first.At.Add(time.Duration(i) * time.Hour)}
		if _, _, err := a.ClaimAbsence(t.Context(), s, archive.SlotRecord{Host: "db2"}); err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"db1", "db2"} {
			if err := a.EndSlot(t.Context(), s, archive.SlotRecord{Host: host, PID: i, At: s.At}); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := 0
	for o, err := range m.List(t.Context(), archive.ScheduleDir+"retention/", "") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 1 && o.Name != archive.ScheduleDir+"retention/20261121T060000Z.absent.json" {
			t.Errorf("the oldest that is there is %s", o.Name)
		}
	}
	if n != 2*64+1 {
		t.Errorf("%d objects of 70 slots are there, want two of each of the newest 64, and what is no record", n)
	}
	r, err := a.SlotDone(t.Context(), archive.Slot{Job: "retention", At: first.At.Add(69 * time.Hour)})
	if err != nil || r == nil || r.Host != "db1" || r.PID != 69 {
		t.Errorf("the newest was done by %+v, %v", r, err)
	}
	if r, err := a.SlotDone(t.Context(), first); err != nil || r != nil {
		t.Errorf("the oldest is %+v, %v", r, err)
	}
}

func FuzzParseSlot(f *testing.F) {
	for _, seed := range []string{"backup@2026-11-21T03:00:00Z", "drill-random@2026-01-01T00:00:07Z", "@2026-11-21T03:00:00Z", "a@2026-11-21T03:00:00.5Z", "a/b@2026-11-21T03:00:00Z",
		"a@2026-11-21T03:00:00+00:00", "a@2026-11-21T03:00:00z", "backup", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := archive.ParseSlot(text)
		if err == nil && (s.String() != text || strings.ContainsAny(s.Job, "/.")) {
			t.Errorf("%q is %+v", text, s)
		}
	})
}

func FuzzParseSlotRecord(f *testing.F) {
	f.Add([]byte(`{"host":"db1","pid":7,"at":"2026-11-21T03:05:00Z","backup":"base_000000010000000000000003"}`))
	f.Add([]byte(`{"host":7}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := archive.ParseSlotRecord(b); (err == nil) != (r != nil) {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
