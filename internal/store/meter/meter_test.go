package meter_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/store"
	"holdfast/internal/store/meter"
	"holdfast/internal/store/storetest"
)

func TestMeterIsAStore(t *testing.T) {
	storetest.TestAround(t, func(inner store.Store) store.Store { return meter.New(inner, &meter.Counters{}) })
}

// slow takes a second for each call that has no body.
type slow struct{ *storetest.Memory }

func (s slow) Stat(ctx context.Context, name string) (store.Object, error) {
	time.Sleep(time.Second)
	return s.Memory.Stat(ctx, name)
}

func TestCallsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		var c meter.Counters
		s := meter.New(slow{&storetest.Memory{}}, &c)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(s.Put(ctx, "d/a", bytes.NewReader(make([]byte, 1000))))
		must(s.Put(ctx, "d/b", io.MultiReader(bytes.NewReader(make([]byte, 200)))))
		broken := errors.New("broken")
		if err := s.Put(ctx, "d/c", io.MultiReader(strings.NewReader("0123456789"), failing{broken})); !errors.Is(err, broken) {
			t.Errorf("put: %v", err)
		}
		if err := s.(store.PutIfAbsenter).PutIfAbsent(ctx, "d/a", strings.NewReader("x")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("put if absent: %v", err)
		}
		r, err := s.OpenRange(ctx, "d/a", 0, 300)
		must(err)
		if got := c.Read().Open; got != (meter.Op{Running: 1, Objects: 1}) {
			t.Errorf("with an open body: %+v", got)
		}
		time.Sleep(5 * time.Second)
		_, err = io.Copy(io.Discard, r)
		must(err)
		must(r.Close())
		must(r.Close()) // counts once
		_, err = s.Open(ctx, "d/none")
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open: %v", err)
		}
		_, err = s.Stat(ctx, "d/a")
		must(err)
		if _, err := s.Stat(ctx, "../bad"); err == nil {
			t.Error("a bad name is taken")
		}
		for _, err := range s.List(ctx, "d/", "") {
			must(err)
		}
		for range store.Walk(ctx, s, "") {
			break
		}
		must(s.(store.Copier).Copy(ctx, "d/a", "d/c"))
		must(s.Delete(ctx, "d/a"))
		must(store.DeleteMany(ctx, s, []string{"d/b", "d/c"}))
		c.Retried().Add(2)
		want := meter.Counts{
			Retried: 2, Read: 300, Written: 1000 + 200 + 10 + 1,
			Open:   meter.Op{Calls: 2, Objects: 2, Time: 5 * time.Second},
			Put:    meter.Op{Calls: 4, Failed: 1, Objects: 4},
			Stat:   meter.Op{Calls: 2, Failed: 1, Objects: 2, Time: 2 * time.Second},
			List:   meter.Op{Calls: 2, Objects: 3},
			Delete: meter.Op{Calls: 2, Objects: 3},
			Copy:   meter.Op{Calls: 1, Objects: 1},
		}
		class := func(took time.Duration) int { return slices.Index(meter.Bounds(), took) }
		for op, n := range map[*meter.Op]int64{&want.Open: 1, &want.Put: 4, &want.List: 2, &want.Delete: 2, &want.Copy: 1} {
			op.Took[0] = n // nothing took any time
		}
		want.Open.Took[class(5*time.Second)], want.Stat.Took[class(time.Second)] = 1, 2
		for i, b := range meter.Bounds()[1:] {
			if b <= meter.Bounds()[i] {
				t.Errorf("bounds do not ascend: %s behind %s", b, meter.Bounds()[i])
			}
		}
		if diff := cmp.Diff(want, c.Read()); diff != "" {
			t.Error("counts, - wanted, + got:\n", diff)
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestABodyThatBreaksIsAFailedOpen(t *testing.T) {
	m := &storetest.Memory{}
	if err := m.Put(t.Context(), "a", strings.NewReader("0123456789")); err != nil {
		t.Fatal(err)
	}
	var c meter.Counters
	if _, err := store.ReadFile(t.Context(), meter.New(storetest.FailMidway(m, 0), &c), "a", 100); err == nil {
		t.Fatal("nothing broke")
	}
	if got := c.Read(); got.Open.Calls != 1 || got.Open.Failed != 1 || got.Read == 0 || got.Read == 10 {
		t.Errorf("counted %+v; want one failed open and some bytes", got)
	}
}

func TestProgressIsSeenWhileAPutRuns(t *testing.T) {
	var c meter.Counters
	s := meter.New(&storetest.Memory{}, &c)
	seen := int64(-1)
	src := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), look(func() { seen = c.Read().Written }))
	if err := s.Put(t.Context(), "a", src); err != nil || seen != 1<<20 {
		t.Errorf("put: %v; after 1 MiB of it the counter said %d", err, seen)
	}
}

// look looks once it is read, and ends.
type look func()

func (l look) Read([]byte) (int, error) { l(); return 0, io.EOF }
