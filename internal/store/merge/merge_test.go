package merge_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/store"
	"holdfast/internal/store/merge"
)

var errBroken = errors.New("broken")

// listing yields names; "!" stands for a failure.
func listing(names ...string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for _, n := range names {
			if n == "!" {
				yield(store.Object{}, errBroken)
				return
			}
			if !yield(store.Object{Name: n}, nil) {
				return
			}
		}
	}
}

// merged writes each entry as name:lists, and a failure as "!".
func merged(lists []iter.Seq2[store.Object, error], failed func(int, error) error) string {
	var got []string
	for e, err := range merge.Listings(lists, failed) {
		if err != nil {
			got = append(got, "!")
			continue
		}
		in := ""
		for _, f := range e.In {
			if f.Object.Name != e.Name {
				in += "?"
			}
			in += fmt.Sprint(f.From)
		}
		got = append(got, e.Name+":"+in)
	}
	return strings.Join(got, " ")
}

func TestNamesComeOnceAndInOrder(t *testing.T) {
	strict := func(_ int, err error) error { return err }
	lenient := func(int, error) error { return nil }
	for _, c := range []struct {
		lists  [][]string
		failed func(int, error) error
		want   string
	}{
		{nil, strict, ""},
		{[][]string{{}, {}}, strict, ""},
		{[][]string{{"a", "c"}, {"b", "c", "d"}}, strict, "a:0 b:1 c:01 d:1"},
		{[][]string{{"a/", "b"}, {"a.x", "a/"}, {"b"}}, strict, "a.x:1 a/:01 b:02"},
		{[][]string{{"a"}, {"!"}}, strict, "!"},
		{[][]string{{"a", "z"}, {"b", "!"}}, strict, "a:0 b:1 !"},
		{[][]string{{"a", "z"}, {"b", "!"}}, lenient, "a:0 b:1 z:0"},
		{[][]string{{"!"}, {"!"}}, lenient, ""},
		{[][]string{{"b", "a"}}, strict, "b:0 !"},
		{[][]string{{"b", "b"}}, strict, "b:0 !"},
	} {
		var lists []iter.Seq2[store.Object, error]
		for _, l := range c.lists {
			lists = append(lists, listing(l...))
		}
		if got := merged(lists, c.failed); got != c.want {
			t.Errorf("%v:\n got %s\nwant %s", c.lists, got, c.want)
		}
	}
}

func TestAnyListsMergeToTheirUnion(t *testing.T) {
	for range 200 {
		union := map[string]string{}
		var lists []iter.Seq2[store.Object, error]
		for i := range 1 + rand.IntN(4) {
			set := map[string]bool{}
			for range rand.IntN(8) {
				set[string(rune('a'+rand.IntN(10)))] = true
			}
			var names []string
			for n := range set {
				names = append(names, n)
				union[n] += fmt.Sprint(i)
			}
			slices.Sort(names)
			lists = append(lists, listing(names...))
		}
		var want []string
		for n, in := range union {
			want = append(want, n+":"+in)
		}
		slices.Sort(want)
		if got := merged(lists, func(_ int, err error) error { return err }); got != strings.Join(want, " ") {
			t.Fatalf("got %s\nwant %s", got, strings.Join(want, " "))
		}
	}
}

func TestAnOutageIsNeitherAnAnswerNorTheCallers(t *testing.T) {
	refused := errors.New("connection refused")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		want bool
	}{
		{t.Context(), nil, false}, {t.Context(), refused, true}, {gone, refused, false}, {t.Context(), context.Canceled, false},
		{t.Context(), fmt.Errorf("no time: %w", context.DeadlineExceeded), true}, {t.Context(), fs.ErrPermission, true},
		{t.Context(), &fs.PathError{Op: "stat", Path: "x", Err: fs.ErrNotExist}, false}, {t.Context(), fs.ErrExist, false},
	} {
		if got := merge.Fault(c.ctx, c.err); got != c.want {
			t.Errorf("%v (context: %v): %v, want %v", c.err, c.ctx.Err(), got, c.want)
		}
	}
	e := &merge.UnaskedError{Op: "open", Name: "wal_005/x"}
	e.Add("default", refused)
	e.Add("second", fs.ErrPermission)
	const want = "open wal_005/x: storage default did not answer: connection refused; storage second did not answer: permission denied"
	if e.Error() != want || !errors.Is(e, refused) || errors.Is(e, fs.ErrNotExist) || e.Hint() == "" {
		t.Errorf("got %v\nwant %s", e, want)
	}
	if e := (&merge.UnaskedError{Op: "list"}); e.Error() != "list" {
		t.Errorf("of nothing: %q", e)
	}
}

func TestReadingMayEndEarly(t *testing.T) {
	ended := 0
	list := func(yield func(store.Object, error) bool) {
		defer func() { ended++ }()
		for _, n := range []string{"a", "b", "c"} {
			if !yield(store.Object{Name: n}, nil) {
				return
			}
		}
	}
	for range merge.Listings([]iter.Seq2[store.Object, error]{list, list}, nil) {
		break
	}
	if ended != 2 {
		t.Errorf("%d of 2 lists were ended", ended)
	}
}
