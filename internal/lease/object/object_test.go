package object_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/lease"
	"holdfast/internal/lease/object"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

const ttl = time.Minute

// clock is the clock of a store in memory.
func clock(context.Context) (time.Time, error) { return time.Now(), nil }

func keeper(s store.Store, opts object.Options) *object.Keeper { return object.New(s, clock, opts) }

func host(name string) lease.Holder {
	return lease.Holder{Host: name, PID: 7, Since: time.Now()}
}

func acquire(t *testing.T, k *object.Keeper, name string) *object.Grant {
	t.Helper()
	g, err := k.Acquire(t.Context(), "backup-push", host(name), ttl)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return g.(*object.Grant)
}

// refused fails t unless the lease is another's.
func refused(t *testing.T, k *object.Keeper, name, words string) {
	t.Helper()
	_, err := k.Acquire(t.Context(), "backup-push", host(name), ttl)
	if held := (*lease.HeldError)(nil); !errors.As(err, &held) || err.Error() != words {
		t.Errorf("%s: %v, want a HeldError: %s", name, err, words)
	}
}

func objects(t *testing.T, s store.Store, dir string) (names []string) {
	t.Helper()
	for o, err := range store.Walk(t.Context(), s, dir) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.Name)
	}
	return names
}

func TestOneHostHasTheLeaseAndTheOthersAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		k := keeper(m, object.Options{})
		one := acquire(t, k, "db3")
		refused(t, k, "db1", "Another host (db3) holds the lease since 2000-01-01T00:00:00Z: nothing to do.")
		refused(t, k, "db3", "Another process (7) of this host holds the lease since 2000-01-01T00:00:00Z: nothing to do.")
		if h, err := k.Holder(t.Context(), "backup-push"); err != nil || h == nil || h.Host != "db3" || h.Token != 1 {
			t.Errorf("holder %+v, %v", h, err)
		}
		for range 10 { // for as long as it is renewed
			time.Sleep(ttl - time.Second)
			if err := one.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		refused(t, k, "db1", "Another host (db3) holds the lease since 2000-01-01T00:00:00Z: nothing to do.")
		if err := one.Release(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if h, err := k.Holder(t.Context(), "backup-push"); err != nil || h != nil {
			t.Errorf("holder after the release: %+v, %v", h, err)
		}
		if two := acquire(t, k, "db1"); two.Token() != 2 || !two.Ended(one.ID()) || two.Ended(two.ID()) || two.Ended("verify/"+strings.Repeat("0", 16)) {
			t.Errorf("token %d; ended %v, %v", two.Token(), two.Ended(one.ID()), two.Ended(two.ID()))
		}
	})
}

// Hosts whose clocks are behind do not do a second time what is done. The one that did it may, and all may once ttl is over.
func TestAJobThatWasDoneStaysClosedToOtherHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		k := keeper(m, object.Options{})
		g := acquire(t, k, "db3")
		time.Sleep(20 * time.Second)
		if err := g.Release(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(39 * time.Second)
		refused(t, k, "db1", "Another host (db3) holds the lease since 2000-01-01T00:00:00Z: nothing to do.")
		if err := acquire(t, k, "db3").Release(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		g = acquire(t, k, "db1")
		if err := g.Release(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		refused(t, k, "db2", "Another host (db1) holds the lease since 2000-01-01T00:00:59Z: nothing to do.")
		time.Sleep(ttl + time.Second)
		acquire(t, k, "db2")
	})
}

// A store whose clock was ahead when a job was done, and is not any more, closes it to nobody for hours.
func TestAClockThatIsSetBackOpensWhatIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		if err := acquire(t, keeper(m, object.Options{}), "db3").Release(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		back := func(d time.Duration) *object.Keeper {
			return object.New(m, func(context.Context) (time.Time, error) { return time.Now().Add(-d), nil }, object.Options{})
		}
		refused(t, back(30*time.Second), "db1", "Another host (db3) holds the lease since 2000-01-01T00:00:00Z: nothing to do.")
		acquire(t, back(5*time.Hour), "db1")
	})
}

func TestWhoWasTakenForDeadCommitsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		k := keeper(m, object.Options{})
		stalled := acquire(t, k, "db1")
		time.Sleep(2 * ttl)
		acquire(t, k, "db2")
		var lost *lease.LostError
		if err := stalled.Check(t.Context()); !errors.As(err, &lost) || !strings.Contains(err.Error(), "db2") {
			t.Errorf("check: %v", err)
		}
		if err := stalled.Renew(t.Context()); !errors.As(err, &lost) {
			t.Errorf("renew: %v", err)
		}
		if final, err := stalled.Seal(t.Context(), "backup", []byte("x")); final || !errors.As(err, &lost) {
			t.Errorf("seal: %v, %v", final, err)
		}
		if err := stalled.Release(t.Context(), true); err != nil {
			t.Errorf("release: %v", err)
		}
		refused(t, k, "db3", "Another host (db2) holds the lease since 2000-01-01T00:02:00Z: nothing to do.")
	})
}

// What was sealed is put before the next token is there, by whoever takes it. Where that fails nobody gets the lease.
func TestWhoComesNextFinishesWhatWasSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		var asked []string
		down := errors.New("down")
		k := keeper(m, object.Options{Finish: func(_ context.Context, id, object string, content []byte) (bool, error) {
			asked = append(asked, id+" "+object+" "+string(content))
			return true, down
		}})
		dead := acquire(t, k, "db1")
		if final, err := dead.Seal(t.Context(), "backup", []byte("content")); !final || err != nil {
			t.Fatal(final, err)
		}
		if err := dead.Release(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		refused(t, k, "db2", "Another host (db1) holds the lease since 2000-01-01T00:00:00Z: nothing to do.")
		time.Sleep(2 * ttl)
		if _, err := k.Acquire(t.Context(), "backup-push", host("db2"), ttl); !errors.Is(err, down) {
			t.Errorf("the store is down: %v", err)
		}
		if _, err := keeper(m, object.Options{}).Acquire(t.Context(), "backup-push", host("db2"), ttl); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Errorf("who cannot finish it: %v", err)
		}
		down = nil
		if g := acquire(t, k, "db2"); g.Token() != 2 {
			t.Errorf("token %d", g.Token())
		}
		if want := []string{"backup-push/0000000000000001 backup content", "backup-push/0000000000000001 backup content"}; !slices.Equal(asked, want) {
			t.Errorf("asked for %q, want %q", asked, want)
		}
	})
}

// A holder that stands still between sealing and hearing that it has, while another one finishes for it and goes on, learns that its backup is there.
func TestWhoSleptThroughItsOwnCommitLearnsOfIt(t *testing.T) {
	for _, made := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			m := &storetest.Memory{}
			k := keeper(m, object.Options{Finish: func(context.Context, string, string, []byte) (bool, error) { return made, nil }})
			slow := &process{Full: m, hazards: []hazard{{call: 4, what: freezing, long: 3 * ttl}}, dead: make(chan struct{})} // list, claim, list, end
			g, err := object.New(slow, clock, object.Options{}).Acquire(t.Context(), "backup-push", host("db1"), ttl)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				time.Sleep(2 * ttl)
				acquire(t, k, "db2")
			}()
			final, err := g.(*object.Grant).Seal(t.Context(), "backup", []byte("x"))
			if final != made || (err == nil) != made {
				t.Errorf("made %v: final %v, %v", made, final, err)
			}
		})
	}
}

// Old tokens are removed, and one of them that wakes can create its end a second time: to no effect.
func TestWhoWakesWhenItsTokenIsHistoryCommitsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		k := keeper(m, object.Options{})
		ancient := acquire(t, k, "db1")
		time.Sleep(2 * ttl)
		for range 40 {
			if err := acquire(t, k, "db2").Release(t.Context(), true); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(objects(t, m, object.Dir)); n > 40 {
			t.Errorf("%d objects of leases stay", n)
		}
		for _, name := range objects(t, m, object.Dir) {
			if strings.Contains(name, "/"+strings.Repeat("0", 15)+"1.") {
				t.Errorf("%s stays", name)
			}
		}
		var lost *lease.LostError
		if _, err := ancient.Seal(t.Context(), "backup", []byte("x")); !errors.As(err, &lost) {
			t.Errorf("seal: %v", err)
		}
		if err := ancient.Renew(t.Context()); !errors.As(err, &lost) {
			t.Errorf("renew: %v", err)
		}
	})
}

// Hosts that may not remove anything leave old tokens; who may sweeps them, of every job, and leases are as they were.
func TestWhatHostsMayNotRemoveIsSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		k := keeper(keepsAll{m}, object.Options{})
		for _, job := range []string{"backup-push", "verify"} {
			for range 40 {
				g, err := k.Acquire(t.Context(), job, host("db1"), ttl)
				if err != nil {
					t.Fatal(err)
				}
				if err := g.Release(t.Context(), true); err != nil {
					t.Fatal(err)
				}
			}
		}
		held := acquire(t, k, "db1")
		if n := len(objects(t, m, object.Dir)); n != 161 {
			t.Errorf("%d objects of leases, want two for each turn that is over and one for the last", n)
		}
		if err := object.Sweep(t.Context(), keepsAll{m}); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("by who may not: %v", err)
		}
		if err := object.Sweep(t.Context(), m); err != nil {
			t.Error(err)
		}
		if n := len(objects(t, m, object.Dir)); n != 31+32 {
			t.Errorf("%d objects stay, want those of the last 16 of each job", n)
		}
		if err := held.Renew(t.Context()); err != nil {
			t.Error(err)
		}
		refused(t, k, "db2", "Another host (db1) holds the lease since 2000-01-01T00:00:00Z: nothing to do.")
	})
}

// keepsAll is a store that lets nothing go.
type keepsAll struct{ *storetest.Memory }

func (k keepsAll) Delete(_ context.Context, name string) error {
	return &fs.PathError{Op: "delete", Path: name, Err: fs.ErrPermission}
}

func (k keepsAll) DeleteMany(ctx context.Context, names []string) error {
	return k.Delete(ctx, names[0])
}

func TestBreakTakesALeaseAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		k := keeper(m, object.Options{})
		breaks := func(want bool) {
			t.Helper()
			if did, err := k.Break(t.Context(), "backup-push", "desk"); err != nil || did != want {
				t.Errorf("break: %v, %v, want %v", did, err, want)
			}
		}
		breaks(false)
		g := acquire(t, k, "db1")
		breaks(true)
		breaks(false)
		var lost *lease.LostError
		if err := g.Renew(t.Context()); !errors.As(err, &lost) || !strings.Contains(err.Error(), "taken away on desk") {
			t.Errorf("renew: %v", err)
		}
		g = acquire(t, k, "db2")
		if err := g.Release(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		breaks(true) // closed, not held
		acquire(t, k, "db3")
		if jobs, err := k.Jobs(t.Context()); err != nil || !slices.Equal(jobs, []string{"backup-push"}) {
			t.Errorf("jobs %v, %v", jobs, err)
		}
	})
}

// Whichever call fails, the lease is had by nobody who was not told so, and after its time it can be had again.
func TestAFailedCallLeavesNoLeaseForEver(t *testing.T) {
	for _, fail := range []func(store.Store, int) *storetest.Flaky{storetest.FailAt, storetest.FailAfter} {
		for n, done := 0, false; !done; n++ {
			synctest.Test(t, func(t *testing.T) {
				m := &storetest.Memory{}
				acquire(t, keeper(m, object.Options{}), "db1")
				time.Sleep(2 * ttl)
				flaky := fail(m, n)
				k := keeper(flaky, object.Options{})
				err := lease.Hold(t.Context(), k, "backup-push", host("db2"), ttl, func(ctx context.Context, g lease.Grant) error {
					if _, err := keeper(m, object.Options{}).Acquire(ctx, "backup-push", host("db3"), ttl); !errors.As(err, new(*lease.HeldError)) {
						t.Errorf("call %d failed: another one has it too (%v)", n, err)
					}
					final, err := g.(*object.Grant).Seal(ctx, "backup", []byte("x"))
					if err == nil && !final {
						t.Errorf("call %d failed: sealed, not final", n)
					}
					return err
				})
				if done = !flaky.Reached(); done && err != nil {
					t.Errorf("no call failed: %v", err)
				}
				time.Sleep(3 * ttl)
				acquire(t, keeper(m, object.Options{Finish: func(context.Context, string, string, []byte) (bool, error) { return true, nil }}), "db4")
			})
		}
	}
}

// A store that cannot decide: of two that put in the same instant the later one has it.
func TestWithoutPutIfAbsentTheLaterPutHasIt(t *testing.T) {
	for name, s := range map[string]store.Store{"it has none": storetest.Plain(&storetest.Memory{}), "it heeds none": heedless{&storetest.Memory{}}} {
		t.Run(name, func(t *testing.T) { laterPutHasIt(t, s) })
	}
}

// heedless looks before it puts, and no more than that.
type heedless struct{ *storetest.Memory }

func (s heedless) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if _, err := s.Stat(ctx, name); err == nil {
		return store.Exists(name)
	}
	time.Sleep(100 * time.Millisecond)
	return s.Put(ctx, name, r)
}

func laterPutHasIt(t *testing.T, s store.Store) {
	synctest.Test(t, func(t *testing.T) {
		got := make(chan string, 5)
		for i := range 5 {
			go func() {
				g, err := keeper(s, object.Options{Lax: true}).Acquire(t.Context(), "backup-push", host(fmt.Sprint("db", i)), ttl)
				switch {
				case err == nil:
					got <- g.(*object.Grant).ID()
				case errors.As(err, new(*lease.HeldError)):
					got <- ""
				default:
					got <- err.Error()
				}
			}()
		}
		var held []string
		for range 5 {
			if id := <-got; id != "" {
				held = append(held, id)
			}
		}
		if len(held) != 1 {
			t.Errorf("it is held by %q", held)
		}
	})
}

// Objects that nobody of ours wrote neither give a lease nor keep one for ever.
func TestWhatIsNotUnderstoodExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		k := keeper(m, object.Options{})
		put := func(name, content string) {
			t.Helper()
			if err := m.Put(t.Context(), object.Dir+"backup-push/"+name, strings.NewReader(content)); err != nil {
				t.Fatal(err)
			}
		}
		put("README", "hello")
		put("00000000000000ff.JSON", "{}")
		put("0000000000000005.json", "not JSON")
		refused(t, k, "db1", "Another host holds the lease: nothing to do.")
		time.Sleep(2 * ttl)
		if g := acquire(t, k, "db1"); g.Token() != 6 {
			t.Errorf("token %d", g.Token())
		}
		put("0000000000000007.json", `{"host":"x","ttl_seconds":1e300}`)
		time.Sleep(2 * ttl)
		acquire(t, k, "db1")
		put("0000000000000009.end.json", `{"how":"commits"}`)
		if _, err := k.Acquire(t.Context(), "backup-push", host("db1"), ttl); err == nil || !strings.Contains(err.Error(), "0000000000000009.end.json") {
			t.Errorf("an end that is none: %v", err)
		}
		if _, err := k.Acquire(t.Context(), "../x", host("db1"), ttl); err == nil {
			t.Error("a job of that name")
		}
	})
}

// Whatever lies in a job's directory, reading it ends, and gives a lease, or an error.
func FuzzObjects(f *testing.F) {
	f.Add([]byte(`{"host":"db1","ttl_seconds":60,"since":"2026-11-21T03:00:00Z"}`), []byte(`{"how":"fenced","at":"2026-11-21T03:00:00Z"}`), []byte(`{"made":true,"closed_seconds":5}`))
	f.Add([]byte(`{"ttl_seconds":-1}`), []byte(`{"how":"commits","object":"a","content":"eA=="}`), []byte(``))
	f.Add([]byte(`[]`), []byte(`{"how":"released","closed_seconds":1e99}`), []byte(`{`))
	f.Fuzz(func(t *testing.T, claim, end, done []byte) {
		m := &storetest.Memory{}
		for i, b := range [][]byte{claim, end, done} {
			name := object.Dir + "verify/0000000000000001" + []string{".json", ".end.json", ".done.json"}[i]
			if len(b) > 0 {
				if err := m.Put(t.Context(), name, strings.NewReader(string(b))); err != nil {
					t.Fatal(err)
				}
			}
		}
		k := object.New(m, func(context.Context) (time.Time, error) { return time.Now().Add(48 * time.Hour), nil }, object.Options{
			Finish: func(context.Context, string, string, []byte) (bool, error) { return false, nil }})
		if _, err := k.Look(t.Context(), "verify"); err != nil {
			return
		}
		g, err := k.Acquire(t.Context(), "verify", host("db1"), ttl)
		if err == nil && g.Token() > 2 {
			t.Errorf("token %d", g.Token())
		}
	})
}
