package storetest_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

func TestMemoryIsAStore(t *testing.T) {
	storetest.Test(t, func(*testing.T) store.Store { return &storetest.Memory{} })
}

func TestAFlakyThatNeverFailsIsAStore(t *testing.T) {
	storetest.Test(t, func(*testing.T) store.Store { return storetest.FailAt(&storetest.Memory{}, -1) })
}

func TestAMortalThatIsWellIsAStore(t *testing.T) {
	storetest.Test(t, func(*testing.T) store.Store { return storetest.NewMortal() })
}

func TestAPlainStoreIsAStore(t *testing.T) {
	storetest.Test(t, func(*testing.T) store.Store { return storetest.Plain(&storetest.Memory{}) })
}

// calls makes one call of each kind on a store that holds a/1 and a/2 and joins the errors.
func calls(t *testing.T, s *storetest.Flaky) error {
	ctx := t.Context()
	var errs []error
	read := func(r io.ReadCloser, err error) {
		if err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		errs = append(errs, err)
	}
	read(s.Open(ctx, "a/1"))
	read(s.OpenRange(ctx, "a/1", 1, 3))
	errs = append(errs, s.Put(ctx, "b/put", strings.NewReader("new")), s.PutIfAbsent(ctx, "b/absent", strings.NewReader("new")))
	_, err := s.Stat(ctx, "a/1")
	errs = append(errs, err)
	for _, err := range s.List(ctx, "a/", "") {
		errs = append(errs, err)
	}
	for _, err := range s.Walk(ctx, "a/") {
		errs = append(errs, err)
	}
	errs = append(errs, s.Copy(ctx, "a/1", "b/copy"), s.Delete(ctx, "a/1"), s.DeleteMany(ctx, []string{"a/1", "a/2"}))
	return errors.Join(errs...)
}

func TestEveryCallOfAFlakyHasItsTurnToFail(t *testing.T) {
	for kind, fail := range map[string]func(store.Store, int) *storetest.Flaky{
		"at": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter,
	} {
		n := 0
		for ; ; n++ {
			m := &storetest.Memory{}
			for _, name := range []string{"a/1", "a/2"} {
				if err := m.Put(t.Context(), name, strings.NewReader("old content")); err != nil {
					t.Fatal(err)
				}
			}
			s := fail(m, n)
			err := calls(t, s)
			if got := len(s.Calls()); got != 10 {
				t.Fatalf("%d calls are noted, want 10: %q", got, s.Calls())
			}
			if !s.Reached() {
				if err != nil {
					t.Errorf("%s %d is not reached, and yet: %v", kind, n, err)
				}
				break
			}
			if !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("%s %d, %s: error is %v", kind, n, s.Calls()[n], err)
			}
			_, err = m.Stat(t.Context(), "b/put")
			if stored := err == nil; s.Calls()[n] == "put b/put" && stored != (kind == "after") {
				t.Errorf("%s %d: the put failed, stored is %v", kind, n, stored)
			}
		}
		if n != 10 {
			t.Errorf("%s: %d calls failed in turn, want 10", kind, n)
		}
	}
}

func TestFailMidwayLeavesHalfDone(t *testing.T) {
	m := &storetest.Memory{}
	for _, name := range []string{"a", "b", "c"} {
		if err := m.Put(t.Context(), name, strings.NewReader("0123456789")); err != nil {
			t.Fatal(err)
		}
	}
	r, err := storetest.FailMidway(m, 0).Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); !errors.Is(err, storetest.ErrInjected) || len(b) == 0 || len(b) == 10 {
		t.Errorf("a body that breaks midway yields %q, %v", b, err)
	}
	src := bytes.NewReader(make([]byte, 1<<20))
	if err := storetest.FailMidway(m, 0).Put(t.Context(), "d", src); !errors.Is(err, storetest.ErrInjected) || src.Len() != 1<<20-64<<10 {
		t.Errorf("a put that breaks midway: %v, %d bytes left in its reader, want all but 64 KiB", err, src.Len())
	}
	var names []string
	for o, err := range storetest.FailMidway(m, 0).List(t.Context(), "", "") {
		if err == nil {
			names = append(names, o.Name)
		}
	}
	if !slices.Equal(names, []string{"a"}) {
		t.Errorf("a listing that breaks midway yields %q", names)
	}
	if err := storetest.FailMidway(m, 0).DeleteMany(t.Context(), []string{"a", "b"}); !errors.Is(err, storetest.ErrInjected) {
		t.Error(err)
	}
	_, errA := m.Stat(t.Context(), "a")
	_, errB := m.Stat(t.Context(), "b")
	if !errors.Is(errA, fs.ErrNotExist) || errB != nil {
		t.Errorf("after a delete of a and b that broke midway: stat a %v, stat b %v", errA, errB)
	}
}
