package mirror_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/atomicfile"
	"holdfast/internal/store"
	"holdfast/internal/store/file"
	"holdfast/internal/store/merge"
	"holdfast/internal/store/mirror"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// mirrored returns the stores as mirrors a, b, c.
func mirrored(t *testing.T, opts mirror.Options, stores ...store.Store) *mirror.Mirror {
	t.Helper()
	var members []mirror.Member
	for i, s := range stores {
		members = append(members, mirror.Member{Name: string(rune('a' + i)), Store: s})
	}
	m, err := mirror.New(members, opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// anyOpts is the rule any, with a mirror that failed asked again at once.
func anyOpts(t *testing.T) mirror.Options {
	return mirror.Options{Rule: mirror.Any, Journal: filepath.Join(t.TempDir(), "journal"), Pause: time.Nanosecond}
}

func put(t *testing.T, s store.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content)); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

// content returns what name holds, or in brackets what kept it from being read.
func content(t *testing.T, s store.Store, name string) string {
	t.Helper()
	b, err := store.ReadFile(t.Context(), s, name, 1<<20)
	var unasked *merge.UnaskedError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "(missing)"
	case errors.As(err, &unasked):
		return fmt.Sprintf("(unasked %s)", strings.Join(unasked.Storages, " "))
	case err != nil:
		t.Fatalf("read %s: %v", name, err)
	}
	return string(b)
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

// all returns name=content of all objects of a store that is well.
func all(t *testing.T, s store.Store) string {
	t.Helper()
	var list []string
	for o, err := range store.Walk(t.Context(), s, "") {
		if err != nil {
			return strings.Join(append(list, "error"), " ")
		}
		list = append(list, o.Name+"="+content(t, s, o.Name))
	}
	return strings.Join(list, " ")
}

// owed lists what a mirror owes, as put or del and mirror:name.
func owed(t *testing.T, m *mirror.Mirror) string {
	t.Helper()
	debts, err := m.Owed()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, d := range debts {
		kind := "put"
		if d.Delete {
			kind = "del"
		}
		list = append(list, kind+" "+d.Mirror+":"+d.Name)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// repaid repays everything.
func repaid(t *testing.T, m *mirror.Mirror) *mirror.Repaid {
	t.Helper()
	r, err := m.Repay(t.Context(), 0)
	if err != nil {
		t.Errorf("repay: %v", err)
	}
	return r
}

func TestEitherViewIsAStore(t *testing.T) {
	dir := func(t *testing.T) store.Store {
		s, err := file.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	memory := func(*testing.T) store.Store { return &storetest.Memory{} }
	plain := func(*testing.T) store.Store { return storetest.Plain(&storetest.Memory{}) }
	for name, c := range map[string]struct {
		kinds   []func(*testing.T) store.Store
		rule    mirror.Rule
		lenient bool
	}{
		"all, memory and disk":   {[]func(*testing.T) store.Store{memory, dir}, mirror.All, false},
		"any, disk and memory":   {[]func(*testing.T) store.Store{dir, memory}, mirror.Any, false},
		"any, plain, alive":      {[]func(*testing.T) store.Store{plain, memory, plain}, mirror.Any, true},
		"all, both plain, alive": {[]func(*testing.T) store.Store{plain, plain}, mirror.All, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Test(t, func(t *testing.T) store.Store {
				var stores []store.Store
				for _, kind := range c.kinds {
					stores = append(stores, kind(t))
				}
				opts := mirror.Options{Rule: c.rule, Buffer: 1 << 20}
				if c.rule == mirror.Any {
					opts.Journal = t.TempDir()
				}
				m := mirrored(t, opts, stores...)
				if c.lenient {
					return m.Alive()
				}
				return m.Store()
			})
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	s := &storetest.Memory{}
	for _, c := range []struct {
		members []mirror.Member
		opts    mirror.Options
	}{
		{}, {members: []mirror.Member{{Name: "", Store: s}}}, {members: []mirror.Member{{Name: "a/b", Store: s}}}, {members: []mirror.Member{{Name: "..", Store: s}}},
		{members: []mirror.Member{{Name: "a", Store: s}, {Name: "a", Store: s}}},
		{members: []mirror.Member{{Name: "a", Store: s}}, opts: mirror.Options{Rule: mirror.Any}},
	} {
		if _, err := mirror.New(c.members, c.opts); err == nil {
			t.Errorf("%v, %+v are accepted", c.members, c.opts)
		}
	}
	for _, r := range []mirror.Rule{mirror.All, mirror.Any} {
		if got, err := mirror.ParseRule(r.String()); got != r || err != nil {
			t.Errorf("%v is read as %v, %v", r, got, err)
		}
	}
	if _, err := mirror.ParseRule("most"); err == nil {
		t.Error("a rule of most is accepted")
	}
	if err := mirrored(t, mirror.Options{}, s).Owe(&mirror.Difference{}); err == nil {
		t.Error("debts are taken without a journal")
	}
}

// counting counts what is read of it.
type counting struct {
	io.Reader
	n atomic.Int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func TestOneReadingReachesAll(t *testing.T) {
	for _, rule := range []mirror.Rule{mirror.All, mirror.Any} {
		a, b, c := &storetest.Memory{}, &storetest.Memory{}, &storetest.Memory{}
		opts := anyOpts(t)
		opts.Rule = rule
		m := mirrored(t, opts, a, b, c)
		data := make([]byte, 3<<20+17)
		rand.NewChaCha8([32]byte{}).Read(data)
		src := &counting{Reader: bytes.NewReader(data)}
		if err := store.PutIfAbsent(t.Context(), m.Store(), "x/y", src); err != nil {
			t.Fatal(err)
		}
		if n := src.n.Load(); n != int64(len(data)) {
			t.Errorf("%d bytes were read of %d", n, len(data))
		}
		for _, s := range []store.Store{a, b, c} {
			if got, err := store.ReadFile(t.Context(), s, "x/y", 1<<30); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%v: a mirror has %d bytes, %v", rule, len(got), err)
			}
		}
		want(t, "owed", owed(t, m), "")
	}
}

// slow takes so much of a put and then waits.
type slow struct {
	*storetest.Memory
	take int64
	wait chan struct{}
}

func (s slow) Put(ctx context.Context, name string, r io.Reader) error {
	head, err := io.ReadAll(io.LimitReader(r, s.take))
	if err != nil {
		return err
	}
	select {
	case <-s.wait:
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Memory.Put(ctx, name, io.MultiReader(bytes.NewReader(head), r))
}

func (s slow) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return s.Put(ctx, name, r)
}

func TestTheSourceWaitsForTheSlowest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := slow{&storetest.Memory{}, 300 << 10, make(chan struct{})}
		a := &storetest.Memory{}
		m := mirrored(t, mirror.Options{Buffer: 1 << 20}, a, s)
		src := &counting{Reader: io.LimitReader(zeros{}, 64<<20)}
		done := make(chan error)
		go func() { done <- m.Store().Put(t.Context(), "x", src) }()
		synctest.Wait()
		if n := src.n.Load(); n > 300<<10+2<<20 {
			t.Errorf("%d bytes were read ahead of a mirror that took 300 KiB", n)
		}
		close(s.wait)
		if err := <-done; err != nil {
			t.Error(err)
		}
		o1, err1 := a.Stat(t.Context(), "x")
		o2, err2 := s.Memory.Stat(t.Context(), "x")
		if err1 != nil || err2 != nil || o1.Size != 64<<20 || o2.Size != 64<<20 {
			t.Errorf("%d, %d bytes are stored: %v, %v", o1.Size, o2.Size, err1, err2)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAMirrorThatStallsIsLeftBehind(t *testing.T) {
	for _, c := range []struct {
		what string
		take int64
	}{{"at once", 0}, {"midway", 5 << 20}, {"after the last byte", 1 << 40}} {
		for _, first := range []bool{true, false} {
			for _, absent := range []bool{true, false} {
				synctest.Test(t, func(t *testing.T) {
					a := &storetest.Memory{}
					s := slow{&storetest.Memory{}, c.take, make(chan struct{})}
					stores := []store.Store{a, s}
					name := "b"
					if first {
						stores, name = []store.Store{s, a}, "a"
					}
					opts := anyOpts(t)
					opts.Stall, opts.Pause = 10*time.Second, 20*time.Second
					m := mirrored(t, opts, stores...)
					call := m.Alive().Put
					if absent {
						call = m.Alive().(store.PutIfAbsenter).PutIfAbsent
					}
					began := time.Now()
					if err := call(t.Context(), "x", io.LimitReader(zeros{}, 20<<20)); err != nil {
						t.Fatalf("%s: %v", c.what, err)
					}
					if d := time.Since(began); d > 15*time.Second {
						t.Errorf("%s: it took %v", c.what, d)
					}
					if o, err := a.Stat(t.Context(), "x"); err != nil || o.Size != 20<<20 {
						t.Errorf("%s: the good mirror has %+v, %v", c.what, o, err)
					}
					want(t, "owed when it stalls "+c.what, owed(t, m), "put "+name+":x")
					began = time.Now()
					if err := call(t.Context(), "y", strings.NewReader("next")); err != nil || time.Since(began) > 0 {
						t.Errorf("%s: the next put took %v, %v", c.what, time.Since(began), err)
					}
					close(s.wait)
					time.Sleep(time.Minute)
					repaid(t, m)
					want(t, "the mirror after repaying", content(t, s.Memory, "y"), "next")
					if o, err := s.Memory.Stat(t.Context(), "x"); err != nil || o.Size != 20<<20 {
						t.Errorf("%s: after repaying the mirror has %+v, %v", c.what, o, err)
					}
				})
			}
		}
	}
}

func TestAllFailsWhenOneDoes(t *testing.T) {
	a, b, c := storetest.NewMortal(), storetest.NewMortal(), storetest.NewMortal()
	m := mirrored(t, mirror.Options{}, a, b, c)
	for _, call := range []func(context.Context, string, io.Reader) error{m.Store().Put, m.Store().(store.PutIfAbsenter).PutIfAbsent, m.Alive().Put} {
		b.Down.Store(true)
		if err := call(t.Context(), "x", strings.NewReader("more than it reads")); !errors.Is(err, storetest.ErrDown) || !strings.Contains(err.Error(), "b") {
			t.Errorf("put: %v", err)
		}
		b.Down.Store(false)
		b.ReadOnly.Store(true)
		if err := call(t.Context(), "x", strings.NewReader("more than it reads")); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "mirror b") {
			t.Errorf("put: %v", err)
		}
		b.ReadOnly.Store(false)
		want(t, "stored", all(t, a)+all(t, b)+all(t, c), "") // nobody was told to finish
	}
	put(t, m.Store(), "x", "1")
	b.Down.Store(true)
	if err := m.Store().Delete(t.Context(), "x"); !errors.Is(err, storetest.ErrDown) {
		t.Errorf("delete: %v", err)
	}
	b.Down.Store(false)
	if err := m.Store().Delete(t.Context(), "x"); err != nil {
		t.Errorf("delete again: %v", err)
	}
	want(t, "left", all(t, a)+all(t, b)+all(t, c), "")
}

// After a put that came half way the next one completes only what is missing.
func TestAHalfPutIsCompleted(t *testing.T) {
	a, b, c := storetest.NewMortal(), storetest.NewMortal(), storetest.NewMortal()
	put(t, b, "x", "content")
	for _, rule := range []mirror.Rule{mirror.All, mirror.Any} {
		opts := anyOpts(t)
		opts.Rule = rule
		m := mirrored(t, opts, a, b, c)
		writes := b.Writes.Load()
		src := &counting{Reader: strings.NewReader("content")}
		if err := store.PutIfAbsent(t.Context(), m.Store(), "x", src); !errors.Is(err, fs.ErrExist) || src.n.Load() > 0 {
			t.Errorf("%v: %v, %d bytes were read of the source", rule, err, src.n.Load())
		}
		want(t, "mirrors", []string{all(t, a), all(t, b), all(t, c)}, []string{"x=content", "x=content", "x=content"})
		want(t, "writes to the one that had it", b.Writes.Load()-writes, int64(0))
		for _, s := range []store.Store{a, c} {
			if err := s.Delete(t.Context(), "x"); err != nil {
				t.Fatal(err)
			}
		}
	}
	// By All a mirror that is down when it is to be completed fails it; by Any it is owed.
	c.ReadOnly.Store(true)
	if err := store.PutIfAbsent(t.Context(), mirrored(t, mirror.Options{}, a, b, c).Store(), "x", strings.NewReader("content")); !errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrExist) {
		t.Errorf("all: %v", err)
	}
	m := mirrored(t, anyOpts(t), a, b, c)
	if err := store.PutIfAbsent(t.Context(), m.Alive(), "x", strings.NewReader("content")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("any: %v", err)
	}
	want(t, "owed", owed(t, m), "put c:x")
}

func TestDifferentContentIsAConflictThatNamesBoth(t *testing.T) {
	a, b := &storetest.Memory{}, &storetest.Memory{}
	put(t, a, "x", "one")
	put(t, b, "x", "two")
	for _, rule := range []mirror.Rule{mirror.All, mirror.Any} {
		opts := anyOpts(t)
		opts.Rule = rule
		m := mirrored(t, opts, a, b)
		err := store.PutIfAbsent(t.Context(), m.Alive(), "x", strings.NewReader("one"))
		var conflict *mirror.ConflictError
		if !errors.As(err, &conflict) || errors.Is(err, fs.ErrExist) || conflict.Error() != "mirrors a and b hold different content under x" || conflict.Hint() == "" {
			t.Errorf("%v: %v", rule, err)
		}
		if err := m.Owe(&mirror.Difference{Name: "x", Missing: []string{"b"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Repay(t.Context(), 0); !errors.As(err, &conflict) {
			t.Errorf("%v: repay: %v", rule, err)
		}
		want(t, "mirrors", []string{all(t, a), all(t, b)}, []string{"x=one", "x=two"})
		want(t, "owed", owed(t, m), "put b:x")
	}
}

func TestAnyOwesWhatWasMissed(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	opts := anyOpts(t)
	m := mirrored(t, opts, a, b)
	put(t, m.Alive(), "old", "1")
	put(t, m.Alive(), "gone", "1")
	put(t, m.Alive(), "again", "1")
	b.Down.Store(true)
	put(t, m.Alive(), "old", "2")
	if err := store.PutIfAbsent(t.Context(), m.Alive(), "new", strings.NewReader("1")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gone", "again"} {
		if err := m.Alive().Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.PutIfAbsent(t.Context(), m.Alive(), "again", strings.NewReader("2")); err != nil {
		t.Fatal(err)
	}
	const debts = "del b:gone, put b:again, put b:new, put b:old"
	want(t, "owed", owed(t, m), debts)
	if r, err := m.Repay(t.Context(), 0); !errors.Is(err, storetest.ErrDown) || r.Left != 4 {
		t.Errorf("repaying a mirror that is down: %+v, %v", r, err)
	}
	b.Down.Store(false)
	// The next process knows too what b has not.
	m = mirrored(t, opts, a, b)
	const now = "again=2 new=1 old=2"
	for _, s := range []store.Store{m.Store(), m.Alive(), mirrored(t, opts, a, b).Store()} {
		want(t, "all", all(t, s), now)
		want(t, "deleted", content(t, s, "gone"), "(missing)")
	}
	a.Down.Store(true)
	for _, s := range []store.Store{m.Store(), m.Alive()} {
		want(t, "what b has in an older form", content(t, s, "old"), "(unasked a b)")
		want(t, "what b is owed", content(t, s, "new"), "(unasked a)")
		want(t, "what was made anew", content(t, s, "again"), "(unasked a b)")
		if err := store.PutIfAbsent(t.Context(), s, "new", strings.NewReader("other")); err == nil || errors.Is(err, fs.ErrExist) {
			t.Errorf("a put of what another mirror has: %v", err)
		}
	}
	a.Down.Store(false)
	time.Sleep(time.Millisecond)
	r := repaid(t, m)
	if r.Copied != 3 || r.Deleted != 1 || r.Left != 0 || r.Bytes != 3 {
		t.Errorf("repaid %+v", r)
	}
	want(t, "b", all(t, b), now)
	want(t, "owed", owed(t, m), "")
	if r = repaid(t, m); *r != (mirror.Repaid{}) {
		t.Errorf("repaid again: %+v", r)
	}
}

func TestDebtsArePaidByAgeAndUpToALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := storetest.NewMortal(), storetest.NewMortal()
		m := mirrored(t, anyOpts(t), a, b)
		b.Down.Store(true)
		for _, name := range []string{"z", "y", "x", "w"} {
			time.Sleep(time.Second)
			put(t, m.Alive(), name, name)
		}
		time.Sleep(time.Second)
		put(t, m.Alive(), "z", "newer") // keeps its age
		b.Down.Store(false)
		if r, err := m.Repay(t.Context(), 3); err != nil || r.Copied != 3 || r.Left != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		want(t, "b", all(t, b), "x=x y=y z=newer")
		want(t, "owed", owed(t, m), "put b:w")
	})
}

// Somebody who does not have this journal may have done what is owed, or the opposite.
func TestRepayLooksFirst(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	m := mirrored(t, anyOpts(t), a, b)
	for _, name := range []string{"remade", "remade differently", "not remade", "gone"} {
		put(t, m.Alive(), name, "1")
	}
	b.Down.Store(true)
	for _, name := range []string{"remade", "remade differently", "not remade", "gone"} {
		if err := m.Alive().Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	put(t, m.Alive(), "there already", "1")
	put(t, m.Alive(), "deleted elsewhere", "1")
	b.Down.Store(false)
	put(t, a, "remade", "1")
	put(t, a, "remade differently", "2")
	put(t, b, "there already", "1")
	if err := errors.Join(a.Delete(t.Context(), "deleted elsewhere"), b.Delete(t.Context(), "gone")); err != nil {
		t.Fatal(err)
	}
	// While a cannot be asked whether they were made anew, nothing is removed.
	a.Down.Store(true)
	if r, err := m.Repay(t.Context(), 0); !errors.Is(err, storetest.ErrDown) || r.Left != 6 || r.Deleted != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	want(t, "calls of a mirror that failed", strings.Count(fmt.Sprint(m.Repay(t.Context(), 0)), "did not answer"), 1)
	a.Down.Store(false)
	time.Sleep(time.Millisecond)
	if r := repaid(t, m); r.Deleted != 2 || r.Copied != 1 || r.Settled != 3 {
		t.Errorf("%+v", r)
	}
	want(t, "b", all(t, b), "remade=1 remade differently=2 there already=1")
	want(t, "owed", owed(t, m), "")
}

func TestAnOutageIsNoMiss(t *testing.T) {
	for _, rule := range []mirror.Rule{mirror.All, mirror.Any} {
		a, b := storetest.NewMortal(), storetest.NewMortal()
		opts := anyOpts(t)
		opts.Rule = rule
		put(t, a, "in a", "1")
		put(t, b, "in b", "1")
		m := mirrored(t, opts, a, b)
		a.Down.Store(true)
		for range 2 {
			want(t, "what the dead one has", content(t, m.Store(), "in a"), "(unasked a)")
			want(t, "what nobody has", content(t, m.Store(), "none"), "(unasked a)")
			want(t, "what the other has", content(t, m.Store(), "in b"), "1")
			want(t, "a listing", all(t, m.Store()), "error")
			lenient := "(missing)"
			if rule == mirror.All {
				lenient = "(unasked a)"
			}
			want(t, "what nobody has that is alive", content(t, m.Alive(), "none"), lenient)
			if rule == mirror.Any {
				want(t, "what is alive", all(t, m.Alive()), "in b=1")
			}
			for _, err := range m.Audit(t.Context(), "") {
				if !errors.Is(err, storetest.ErrDown) {
					t.Errorf("audit: %v", err)
				}
			}
		}
		b.Down.Store(true)
		want(t, "when all are down", content(t, m.Alive(), "none") != "(missing)", true)
		want(t, "a listing when all are down", all(t, m.Alive()), "error")
		a.Down.Store(false)
		b.Down.Store(false)
		want(t, "once it is back", content(t, m.Store(), "in a"), "1")
		want(t, "what nobody has, once it is back", content(t, m.Store(), "none"), "(missing)")
	}
}

// What failed is left alone for a while, by other processes too, and strict readers ask it all the same.
func TestAMirrorThatFailedIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := storetest.NewMortal(), storetest.NewMortal()
		opts := anyOpts(t)
		opts.Pause, opts.Stall = time.Minute, 10*time.Second
		process := func() *mirror.Mirror { return mirrored(t, opts, a, b) }
		a.Silent.Store(true)
		push := func(name string, limit time.Duration) {
			t.Helper()
			began := time.Now()
			if err := store.PutIfAbsent(t.Context(), process().Alive(), name, strings.NewReader(name)); err != nil {
				t.Error(err)
			}
			if d := time.Since(began); d > limit {
				t.Errorf("push %s took %v", name, d)
			}
		}
		push("1", 10*time.Second)
		calls := a.Calls.Load()
		time.Sleep(30 * time.Second)
		push("2", 0)
		want(t, "a reader of pushes", content(t, process().Alive(), "none"), "(missing)")
		want(t, "a listing of pushes", all(t, process().Alive()), "1=1 2=2")
		want(t, "calls of the one that failed", a.Calls.Load()-calls, int64(0))
		began := time.Now()
		want(t, "a strict reader", content(t, process().Store(), "none"), "(unasked a)")
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("it took %v", d)
		}
		time.Sleep(time.Minute)
		a.Silent.Store(false)
		push("3", 0)
		m := process()
		want(t, "owed", owed(t, m), "put a:1, put a:2")
		repaid(t, m)
		want(t, "a", all(t, a), "1=1 2=2 3=3")
	})
}

func TestAuditFindsWhatTheJournalForgot(t *testing.T) {
	a, b, c := &storetest.Memory{}, &storetest.Memory{}, &storetest.Memory{}
	for _, s := range []store.Store{a, b, c} {
		put(t, s, "wal_005/same", "1")
	}
	put(t, a, "wal_005/in a", "12")
	put(t, b, "wal_005/in b", "1")
	put(t, c, "wal_005/in b", "1")
	put(t, a, "wal_005/sizes", "1")
	put(t, b, "wal_005/sizes", "12")
	put(t, c, "elsewhere", "1")
	m := mirrored(t, anyOpts(t), a, b, c)
	audit := func(dir string) (all []mirror.Difference) {
		for d, err := range m.Audit(t.Context(), dir) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, *d)
			if !d.Conflict() {
				if err := m.Owe(d); err != nil {
					t.Fatal(err)
				}
			}
		}
		return all
	}
	conflict := mirror.Difference{Name: "wal_005/sizes", Holders: []mirror.Holder{{Mirror: "a", Size: 1}, {Mirror: "b", Size: 2}}, Missing: []string{"c"}}
	want(t, "audit", audit("wal_005/"), []mirror.Difference{
		{Name: "wal_005/in a", Holders: []mirror.Holder{{Mirror: "a", Size: 2}}, Missing: []string{"b", "c"}},
		{Name: "wal_005/in b", Holders: []mirror.Holder{{Mirror: "b", Size: 1}, {Mirror: "c", Size: 1}}, Missing: []string{"a"}},
		conflict,
	})
	again := audit("wal_005/")
	want(t, "audit once they are owed", again[0], mirror.Difference{Name: "wal_005/in a", Holders: []mirror.Holder{{Mirror: "a", Size: 2}}, Owed: []string{"b", "c"}})
	if r := repaid(t, m); r.Copied != 3 || r.Bytes != 5 {
		t.Errorf("repaid %+v", r)
	}
	want(t, "audit after repaying", audit("wal_005/"), []mirror.Difference{conflict})
	for range m.Audit(t.Context(), "") {
		break
	}
	for _, err := range m.Audit(t.Context(), "not a directory") {
		if !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("audit of what is no directory: %v", err)
		}
	}
}

// Of what a mirror is to remove nothing is made again.
func TestAuditKnowsWhatIsToBeRemoved(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	m := mirrored(t, anyOpts(t), a, b)
	put(t, m.Store(), "x", "1")
	put(t, m.Store(), "y", "1")
	b.Down.Store(true)
	if err := store.DeleteMany(t.Context(), m.Alive(), []string{"x", "y"}); err != nil {
		t.Fatal(err)
	}
	b.Down.Store(false)
	for d, err := range m.Audit(t.Context(), "") {
		t.Errorf("audit yields %+v, %v", d, err)
	}
	want(t, "all", all(t, m.Store()), "")
	repaid(t, m)
	want(t, "b", all(t, b), "")
}

// narrow is a store that has buffers for so many puts at once, as those of services have.
type narrow struct {
	*storetest.Memory
	buffers chan struct{}
}

func (s narrow) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	s.buffers <- struct{}{}
	defer func() { <-s.buffers }()
	return s.Memory.PutIfAbsent(ctx, name, r)
}

func (s narrow) Put(ctx context.Context, name string, r io.Reader) error {
	s.buffers <- struct{}{}
	defer func() { <-s.buffers }()
	return s.Memory.Put(ctx, name, r)
}

// Puts do not wait for each other's buffers for ever.
func TestPutsHaveTheBuffersOfAllMirrors(t *testing.T) {
	for _, rule := range []mirror.Rule{mirror.All, mirror.Any} {
		opts := anyOpts(t)
		opts.Rule, opts.Puts = rule, 2
		m := mirrored(t, opts, narrow{&storetest.Memory{}, make(chan struct{}, 3)}, narrow{&storetest.Memory{}, make(chan struct{}, 2)})
		var g sync.WaitGroup
		for i := range 300 {
			g.Go(func() {
				call := m.Store().(store.PutIfAbsenter).PutIfAbsent
				if i%3 == 0 {
					call = m.Store().Put
				}
				if err := call(t.Context(), fmt.Sprint(i), strings.NewReader("content")); err != nil {
					t.Error(err)
				}
			})
		}
		g.Wait()
		if n := strings.Count(all(t, m.Store()), "=content"); n != 300 {
			t.Errorf("%d objects are there", n)
		}
	}
}

func TestOnlyOneOfManyWritersWins(t *testing.T) {
	for _, rule := range []mirror.Rule{mirror.All, mirror.Any} {
		for range 20 {
			a, b := &storetest.Memory{}, &storetest.Memory{}
			var won atomic.Int64
			var g sync.WaitGroup
			for i := range 6 { // each a process of its own
				opts := anyOpts(t)
				opts.Rule = rule
				s := mirrored(t, opts, a, b).Alive()
				g.Go(func() {
					err := store.PutIfAbsent(t.Context(), s, "x", strings.NewReader(fmt.Sprint(i)))
					if err == nil {
						won.Add(1)
					} else if !errors.Is(err, fs.ErrExist) {
						t.Errorf("writer %d: %v", i, err)
					}
				})
			}
			g.Wait()
			if n := won.Load(); n != 1 || all(t, a) != all(t, b) {
				t.Errorf("%v: %d writers won; mirrors have %s and %s", rule, n, all(t, a), all(t, b))
			}
		}
	}
}

// The mirror that can decide atomically does, wherever it stands.
func TestTheMirrorThatCanDecides(t *testing.T) {
	for range 20 {
		a, b := storetest.Plain(&storetest.Memory{}), &storetest.Memory{}
		var won atomic.Int64
		var g sync.WaitGroup
		for i := range 6 {
			s := mirrored(t, mirror.Options{}, a, b).Store()
			g.Go(func() {
				if err := store.PutIfAbsent(t.Context(), s, "x", strings.NewReader(fmt.Sprint(i))); err == nil {
					won.Add(1)
				}
			})
		}
		g.Wait()
		if n := won.Load(); n != 1 {
			t.Errorf("%d writers won", n)
		}
	}
}

// Repay beside writers of the same names: in the end all mirrors have the same, and it is the last that was written.
func TestRepayBesideWriters(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	opts := anyOpts(t)
	var g sync.WaitGroup
	last := make([]map[string]string, 3)
	stop := make(chan struct{})
	repayer := mirrored(t, opts, a, b)
	var r sync.WaitGroup
	r.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			b.Down.Store(n%3 == 0)
			repayer.Repay(t.Context(), 0) // fails while b is down
		}
	})
	for w := range last {
		last[w] = map[string]string{}
		s := mirrored(t, opts, a, b).Alive()
		g.Go(func() {
			for n := range 150 {
				name, text := fmt.Sprintf("w%d/%d", w, n%3), fmt.Sprint(n)
				switch {
				case n%7 == 3:
					if err := s.Delete(t.Context(), name); err != nil {
						t.Error(err)
					}
					delete(last[w], name)
				default:
					if err := s.Put(t.Context(), name, strings.NewReader(text)); err != nil {
						t.Error(err)
					}
					last[w][name] = text
				}
			}
		})
	}
	g.Wait()
	close(stop)
	r.Wait()
	b.Down.Store(false)
	time.Sleep(time.Millisecond)
	repaid(t, repayer)
	want(t, "owed", owed(t, repayer), "")
	var list []string
	for w := range last {
		for _, name := range slices.Sorted(maps.Keys(last[w])) {
			list = append(list, name+"="+last[w][name])
		}
	}
	slices.Sort(list)
	want(t, "a", all(t, a), strings.Join(list, " "))
	want(t, "b", all(t, b), strings.Join(list, " "))
}

func TestAJournalThatIsDamagedIsSaid(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	opts := anyOpts(t)
	m := mirrored(t, opts, a, b)
	b.Down.Store(true)
	put(t, m.Alive(), "x", "1")
	put(t, m.Alive(), "y", "1")
	b.Down.Store(false)
	files, err := filepath.Glob(filepath.Join(opts.Journal, "b", "*.json"))
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	old := filepath.Join(opts.Journal, "b", ".x"+atomicfile.Suffix)
	if err := errors.Join(os.WriteFile(files[0], []byte("{"), 0o600), os.WriteFile(old, nil, 0o600), os.Chtimes(old, time.Time{}, time.Now().Add(-2*time.Hour))); err != nil {
		t.Fatal(err)
	}
	r, err := m.Repay(t.Context(), 0)
	if err == nil || !strings.Contains(err.Error(), files[0]) || r.Copied != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a dead writer left: %v", err)
	}
	failed := 0
	for _, name := range []string{"x", "y"} {
		if _, err := m.Store().Stat(t.Context(), name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed++
		}
	}
	for _, err := range m.Store().List(t.Context(), "", "") {
		if err != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("nothing fails although nobody knows what b is owed")
	}
	if err := os.RemoveAll(opts.Journal); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(opts.Journal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.Down.Store(true)
	if err := m.Alive().Put(t.Context(), "z", strings.NewReader("1")); err == nil {
		t.Error("a put succeeded though what it owes cannot be noted")
	}
}

// child names the journal of the child of TestAKilledPushLosesNothing.
const child = "MIRROR_CHILD"

// A push that is killed at whatever moment: what it said is stored is on one mirror at least, and after repaying on both.
func TestAKilledPushLosesNothing(t *testing.T) {
	open := func(dir string) *mirror.Mirror {
		a, err1 := file.Open(filepath.Join(dir, "a"))
		b, err2 := file.Open(filepath.Join(dir, "b"))
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return mirrored(t, mirror.Options{Rule: mirror.Any, Journal: filepath.Join(dir, "journal"), Pause: time.Nanosecond}, a, b)
	}
	if dir := os.Getenv(child); dir != "" {
		m := open(dir)
		for n := 0; ; n++ {
			name := fmt.Sprintf("wal_005/%06d", n)
			if n%2 == 1 { // b cannot take it
				os.Chmod(filepath.Join(dir, "b"), 0o500)
				os.WriteFile(filepath.Join(dir, "b", "blocked"), nil, 0o600)
				name = fmt.Sprintf("blocked/%06d", n)
			}
			if err := store.PutIfAbsent(t.Context(), m.Alive(), name, strings.NewReader(strings.Repeat(name, 10_000))); err != nil {
				if errors.Is(err, fs.ErrExist) {
					continue
				}
				t.Fatal(err)
			}
			fmt.Println(name)
		}
	}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o700), os.Mkdir(filepath.Join(dir, "b"), 0o700)); err != nil {
		t.Fatal(err)
	}
	var stored []string
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestAKilledPushLosesNothing$")
		cmd.Env = append(os.Environ(), child+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		var said bytes.Buffer
		for said.Len() < 20*(5+round) { // until it has stored some
			n, err := out.Read(buf)
			said.Write(buf[:n])
			if err != nil {
				t.Fatalf("the child ended: %v, %q", err, said.String())
			}
		}
		time.Sleep(time.Duration(round) * 777 * time.Microsecond)
		cmd.Process.Kill()
		rest, _ := io.ReadAll(out)
		cmd.Wait()
		said.Write(rest)
		lines := strings.SplitAfter(said.String(), "\n")
		for _, line := range lines {
			if name, whole := strings.CutSuffix(line, "\n"); whole {
				stored = append(stored, name)
			}
		}
	}
	if err := os.Remove(filepath.Join(dir, "b", "blocked")); err != nil {
		t.Fatal(err)
	}
	m := open(dir)
	repaid(t, m)
	a, _ := file.Open(filepath.Join(dir, "a"))
	b, _ := file.Open(filepath.Join(dir, "b"))
	for _, name := range stored {
		for _, s := range []store.Store{a, b} {
			if got := content(t, s, name); got != strings.Repeat(name, 10_000) {
				t.Fatalf("%s reads %d bytes", name, len(got))
			}
		}
	}
	if len(stored) < 20 {
		t.Errorf("only %d objects were stored", len(stored))
	}
}

func FuzzParseDebt(f *testing.F) {
	f.Add([]byte(`{"mirror":"b","name":"wal_005/x","delete":true,"since":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"mirror":"b","name":"a/../b","replace":true,"since":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := mirror.ParseDebt(b)
		if err != nil {
			return
		}
		out, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := mirror.ParseDebt(out); err != nil || fmt.Sprint(again) != fmt.Sprint(d) || store.CheckName(d.Name) != nil {
			t.Errorf("%s is read again as %+v, %v", out, again, err)
		}
	})
}

// takeBackup makes a backup of two parts the way backup.Run does.
func takeBackup(ctx context.Context, a *archive.Archive, name string) error {
	d, err := a.Begin(ctx, name, "host")
	if err != nil {
		return err
	}
	for range 2 {
		err := d.PutPart(ctx, d.NextPart(), strings.NewReader(strings.Repeat(name, 500)), func() []tarpart.Member { return nil })
		if err == nil {
			err = d.Beat(ctx)
		}
		if err != nil {
			return errors.Join(err, d.Abort(ctx))
		}
	}
	if err := d.Commit(ctx, &archive.Sentinel{}); err != nil {
		return errors.Join(err, d.Abort(ctx))
	}
	return nil
}

// checkBackup reads all of a backup.
func checkBackup(ctx context.Context, a *archive.Archive, name string) error {
	if _, err := a.Sentinel(ctx, name); err != nil {
		return err
	}
	parts, err := a.Parts(ctx, name)
	if err == nil && len(parts) != 2 {
		err = fmt.Errorf("%d parts, want 2", len(parts))
	}
	for _, p := range parts {
		r, openErr := a.OpenPart(ctx, name, p)
		if openErr != nil {
			return openErr
		}
		b, readErr := io.ReadAll(r)
		r.Close()
		if readErr != nil {
			return readErr
		}
		if string(b) != strings.Repeat(name, 500) {
			return fmt.Errorf("%s reads differently", p.Name)
		}
	}
	return err
}

const seg = "000000010000000000000001"

func pushWAL(t *testing.T, s store.Store, name, text string) error {
	t.Helper()
	_, err := archive.New(s, archive.Options{}).PutWAL(t.Context(), name, func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text)), nil
	})
	return err
}

// Whichever call on whichever mirror fails, and however: what a push said is stored is there by its rule, can be read from this host,
// and after repaying the mirrors agree.
func TestNoFailureLosesOrInvents(t *testing.T) {
	kinds := map[string]func(store.Store, int) *storetest.Flaky{"at": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter}
	backup := "base_" + seg
	for _, rule := range []mirror.Rule{mirror.All, mirror.Any} {
		for kind, fail := range kinds {
			for which := range 2 {
				for n := 0; ; n++ {
					ctx := t.Context()
					memory := []store.Store{&storetest.Memory{}, &storetest.Memory{}}
					stores := slices.Clone(memory)
					flaky := fail(memory[which], n)
					stores[which] = flaky
					opts := anyOpts(t)
					opts.Rule = rule
					m := mirrored(t, opts, stores...)
					where := fmt.Sprintf("%v: %s %d of %d", rule, kind, n, which)

					stored := map[string]bool{}
					for i := range 2 {
						name := fmt.Sprintf("%024d", i)
						err := pushWAL(t, m.Alive(), name, name)
						if stored[name] = err == nil; rule == mirror.Any && err != nil {
							t.Errorf("%s: push: %v", where, err)
						}
					}
					took := takeBackup(ctx, archive.New(m.Alive(), archive.Options{}), backup)
					reached := flaky.Reached()
					call := ""
					if reached {
						call = flaky.Calls()[n]
					}
					if rule == mirror.Any && took != nil && !strings.HasPrefix(call, "open ") { // a body that breaks off fails its reader
						t.Errorf("%s: backup: %v", where, took)
					}
					where += " (" + call + ")"
					time.Sleep(time.Microsecond)

					check := func(what string, s store.Store, strict bool) {
						ar := archive.New(s, archive.Options{})
						for name, ok := range stored {
							r, err := ar.OpenWAL(ctx, name)
							if err != nil {
								if ok {
									t.Errorf("%s: %s: %s was stored, and now: %v", where, what, name, err)
								}
								continue
							}
							b, err := io.ReadAll(r)
							r.Close()
							if err != nil || string(b) != name {
								t.Errorf("%s: %s: %s reads %q, %v", where, what, name, b, err)
							}
						}
						err := checkBackup(ctx, ar, backup)
						if took == nil && err != nil || strict && took != nil && err != nil && !errors.Is(err, fs.ErrNotExist) {
							t.Errorf("%s: %s: taking the backup: %v; reading it: %v", where, what, took, err)
						}
					}
					check("by the mirrors", mirrored(t, opts, memory...).Store(), true)
					well := mirrored(t, opts, memory...)
					if rule == mirror.All {
						check("by a", memory[0], false)
						check("by b", memory[1], false)
						for name := range stored { // the push is tried again
							if err := pushWAL(t, well.Alive(), name, name); err != nil {
								t.Errorf("%s: pushed again: %v", where, err)
							}
						}
					} else {
						repaid(t, well)
						want(t, where+": owed", owed(t, well), "")
						check("repaid, by a", memory[0], true)
						check("repaid, by b", memory[1], true)
					}
					for d, err := range well.Audit(ctx, "wal_005/") {
						t.Errorf("%s: in the end: %+v, %v", where, d, err)
					}
					if !reached {
						break
					}
				}
			}
		}
	}
}

// Whichever call fails while debts are paid, they stay owed until they are paid.
func TestNoFailureOfRepayForgets(t *testing.T) {
	for kind, fail := range map[string]func(store.Store, int) *storetest.Flaky{"at": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		for which := range 2 {
			for n := 0; ; n++ {
				a, b := storetest.NewMortal(), storetest.NewMortal()
				opts := anyOpts(t)
				m := mirrored(t, opts, a, b)
				put(t, m.Alive(), "old", "1")
				put(t, m.Alive(), "gone", "1")
				b.Down.Store(true)
				put(t, m.Alive(), "old", "22")
				put(t, m.Alive(), "new", "333")
				if err := m.Alive().Delete(t.Context(), "gone"); err != nil {
					t.Fatal(err)
				}
				b.Down.Store(false)
				stores := []store.Store{a, b}
				flaky := fail(stores[which], n)
				stores[which] = flaky
				r, err := mirrored(t, opts, stores...).Repay(t.Context(), 0)
				where := fmt.Sprintf("%s %d of %d (%+v, %v)", kind, n, which, r, err)
				if err == nil && (all(t, a) != all(t, b) || r.Left > 0) {
					t.Errorf("%s: no error, and b has %s", where, all(t, b))
				}
				want(t, where+": read by the mirrors", all(t, mirrored(t, opts, a, b).Store()), "new=333 old=22")
				repaid(t, mirrored(t, opts, a, b))
				want(t, where+": b", all(t, b), "new=333 old=22")
				if !flaky.Reached() {
					break
				}
			}
		}
	}
}

// late is a mirror to which another writer comes just before us: nobody saw that object before.
type late struct {
	*storetest.Memory
	theirs string
	atEnd  bool // it is noticed only once everything was read
}

func (l late) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if l.atEnd {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
	if err := l.Memory.PutIfAbsent(ctx, name, strings.NewReader(l.theirs)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return &fs.PathError{Op: "put", Path: name, Err: fs.ErrExist}
}

// failsAtEnd reads everything and stores nothing.
type failsAtEnd struct{ *storetest.Memory }

func (f failsAtEnd) PutIfAbsent(_ context.Context, _ string, r io.Reader) error {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	return storetest.ErrDown
}

func TestAnotherWriterMeanwhile(t *testing.T) {
	for _, rule := range []mirror.Rule{mirror.All, mirror.Any} {
		for _, same := range []bool{true, false} {
			opts := anyOpts(t)
			opts.Rule = rule
			theirs := map[bool]string{true: "ours", false: "theirs"}[same]
			// The first mirror took ours; on the second theirs is met; the third goes on undisturbed.
			a, b, c := &storetest.Memory{}, &storetest.Memory{}, &storetest.Memory{}
			err := store.PutIfAbsent(t.Context(), mirrored(t, opts, a, late{b, theirs, true}, slowEnd{c}).Alive(), "x", strings.NewReader("ours"))
			if conflict := errors.As(err, new(*mirror.ConflictError)); conflict == same || same && err != nil {
				t.Errorf("%v, the same %v: %v", rule, same, err)
			}
			want(t, "the third", all(t, c), "x=ours")
			// The first could not: the next one decides, for theirs, and nobody has taken ours by then.
			a, b, c = &storetest.Memory{}, &storetest.Memory{}, &storetest.Memory{}
			m := mirrored(t, opts, failsAtEnd{a}, late{b, theirs, true}, c)
			err = store.PutIfAbsent(t.Context(), m.Alive(), "x", strings.NewReader("ours"))
			switch {
			case rule == mirror.All && (!errors.Is(err, storetest.ErrDown) || all(t, c) != ""):
				t.Errorf("all: %v, the third has %s", err, all(t, c))
			case rule == mirror.Any && (!errors.Is(err, fs.ErrExist) || all(t, c) != "x="+theirs):
				t.Errorf("any: %v, the third has %s", err, all(t, c))
			}
		}
	}
}

// slowEnd takes a while to finish what it has read.
type slowEnd struct{ *storetest.Memory }

func (s slowEnd) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Memory.PutIfAbsent(ctx, name, bytes.NewReader(b))
}

func TestWhatAMirrorIsOwedDecidesAboutANewPut(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	m := mirrored(t, anyOpts(t), a, b)
	put(t, m.Alive(), "deleted", "1")
	put(t, m.Alive(), "replaced", "1")
	b.Down.Store(true)
	if err := m.Alive().Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	put(t, m.Alive(), "replaced", "2")
	b.Down.Store(false)
	time.Sleep(time.Millisecond)
	if err := store.PutIfAbsent(t.Context(), m.Alive(), "deleted", strings.NewReader("2")); err != nil {
		t.Errorf("over what is to be removed: %v", err)
	}
	want(t, "what was to be removed", content(t, b, "deleted"), "2")
	want(t, "owed", owed(t, m), "put b:replaced")
	if err := a.Delete(t.Context(), "replaced"); err != nil { // the mirror that had it lost it
		t.Fatal(err)
	}
	if err := store.PutIfAbsent(t.Context(), m.Alive(), "replaced", strings.NewReader("3")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an older one: %v", err)
	}
	want(t, "the older one", []string{content(t, a, "replaced"), content(t, b, "replaced")}, []string{"1", "1"})
}

func TestDeletionsOwedByTwoAreNoReasonToKeep(t *testing.T) {
	a, b, c := storetest.NewMortal(), storetest.NewMortal(), storetest.NewMortal()
	m := mirrored(t, anyOpts(t), a, b, c)
	put(t, m.Alive(), "x", "1")
	b.Down.Store(true)
	c.Down.Store(true)
	if err := m.Alive().Delete(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	b.Down.Store(false)
	c.Down.Store(false)
	time.Sleep(time.Millisecond)
	if r := repaid(t, m); r.Deleted != 2 {
		t.Errorf("%+v", r)
	}
	want(t, "mirrors", all(t, a)+all(t, b)+all(t, c), "")
}

// A mirror that was added lately has nothing, which is no answer about what another is owed.
func TestAnEmptyMirrorDoesNotVouch(t *testing.T) {
	a, b, c := storetest.NewMortal(), storetest.NewMortal(), storetest.NewMortal()
	opts := anyOpts(t)
	b.Down.Store(true)
	if err := store.PutIfAbsent(t.Context(), mirrored(t, opts, a, b).Alive(), "x", strings.NewReader("1")); err != nil {
		t.Fatal(err)
	}
	b.Down.Store(false)
	a.Down.Store(true)
	time.Sleep(time.Millisecond)
	want(t, "what only a has", content(t, mirrored(t, opts, a, b, c).Alive(), "x"), "(unasked a)")
}

func TestWhoSleptIsAskedWhenNobodyElseAnswers(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	opts := anyOpts(t)
	opts.Pause = time.Hour
	m := mirrored(t, opts, a, b)
	a.Down.Store(true)
	put(t, m.Alive(), "x", "1")
	put(t, a.Memory, "y", "1")
	a.Down.Store(false)
	b.Down.Store(true)
	want(t, "what the one that slept has", content(t, m.Alive(), "y"), "1")
}

// What is being written is left alone, also by another process.
func TestRepayLeavesWhatIsBeingWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := storetest.NewMortal(), storetest.NewMortal()
		opts := anyOpts(t)
		writer := mirrored(t, opts, a, b)
		b.Down.Store(true)
		put(t, writer.Alive(), "x", "1")
		b.Down.Store(false)
		time.Sleep(time.Second)
		r, w := io.Pipe()
		done := make(chan error)
		go func() { done <- writer.Alive().Put(t.Context(), "x", r) }()
		synctest.Wait()
		if report := repaid(t, mirrored(t, opts, a, b)); report.Left != 1 || report.Copied != 0 {
			t.Errorf("beside a writer: %+v", report)
		}
		io.WriteString(w, "2")
		w.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		want(t, "mirrors", []string{all(t, a), all(t, b), owed(t, writer)}, []string{"x=2", "x=2", ""})
	})
}

// lazy stores an object without reading it to its end.
type lazy struct{ *storetest.Memory }

func (l lazy) Put(ctx context.Context, name string, r io.Reader) error {
	return l.Memory.Put(ctx, name, io.LimitReader(r, 3))
}

func TestAStoreThatDoesNotReadIsNotBelieved(t *testing.T) {
	err := mirrored(t, mirror.Options{}, lazy{&storetest.Memory{}}, &storetest.Memory{}).Store().Put(t.Context(), "x", strings.NewReader("more than three"))
	if err == nil || !strings.Contains(err.Error(), "mirror a") {
		t.Errorf("put: %v", err)
	}
}

// The last one is waited for, however long it takes: the put would fail without it.
func TestTheLastMirrorIsNotLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := storetest.NewMortal()
		b.Down.Store(true)
		s := slow{&storetest.Memory{}, 1, make(chan struct{})}
		opts := anyOpts(t)
		opts.Stall = time.Second
		done := make(chan error)
		go func() { done <- mirrored(t, opts, s, b).Alive().Put(t.Context(), "x", strings.NewReader("content")) }()
		time.Sleep(time.Minute)
		close(s.wait)
		if err := <-done; err != nil {
			t.Error(err)
		}
		want(t, "it has", all(t, s.Memory), "x=content")
	})
}
