package relay_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"holdfast/internal/store"
	"holdfast/internal/store/relay"
	"holdfast/internal/store/storetest"
)

func fill(t *testing.T, s store.Store, name, body string) store.Object {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	o, err := s.Stat(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func content(t *testing.T, s store.Store, name string) string {
	t.Helper()
	b, err := store.ReadFile(t.Context(), s, name, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return "nothing"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func sum(body string) *relay.Sum {
	return &relay.Sum{Size: int64(len(body)), Hash: xxhash.Sum64String(body)}
}

// What comes over is what was stored, or nothing does.
func TestCopy(t *testing.T) {
	for _, c := range []struct {
		what, source, target string
		known                *relay.Sum
		overwrite            bool
		want                 string // in the target afterwards
		equal                bool
		fails                string
	}{
		{what: "new", source: "abc", want: "abc"},
		{what: "new, known", source: "abc", known: sum("abc"), want: "abc"},
		{what: "empty", source: "", known: sum(""), want: ""},
		{what: "there", source: "abc", target: "abc", want: "abc", equal: true},
		{what: "there, known", source: "abc", target: "abc", known: sum("abc"), want: "abc", equal: true},
		{what: "differs", source: "abc", target: "abd", want: "abd", fails: "contents differ"},
		{what: "differs in length", source: "abc", target: "ab", want: "ab", fails: "it has 3 bytes in the source and 2 in the target"},
		{what: "replaced", source: "abc", target: "ab", overwrite: true, want: "abc"},
		{what: "damaged", source: "abd", known: sum("abc"), want: "nothing", fails: "it is not what was stored"},
		{what: "damaged in length", source: "abcd", known: sum("abc"), want: "nothing", fails: "it is not what was stored"},
		{what: "damaged, and another there", source: "abd", target: "abd", known: sum("abc"), want: "abd", fails: "contents differ"},
	} {
		from, to := &storetest.Memory{}, &storetest.Memory{}
		fill(t, from, "a/b", c.source)
		if c.target != "" {
			fill(t, to, "a/b", c.target)
		}
		r := relay.Relay{From: from, To: to, Overwrite: c.overwrite, ReadBack: 1 << 20}
		done, err := r.Copy(t.Context(), "a/b", c.known)
		if (c.fails == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %v", c.what, err)
		}
		if done.Equal != c.equal || content(t, to, "a/b") != c.want {
			t.Errorf("%s: %+v, the target has %q", c.what, done, content(t, to, "a/b"))
		}
	}
}

// An object that is not as long as it was listed makes no copy: it was cut short, or replaced.
func TestPutHoldsTheListing(t *testing.T) {
	from, to := &storetest.Memory{}, &storetest.Memory{}
	o := fill(t, from, "a", "abc")
	o.Size = 4
	r := relay.Relay{From: from, To: to, ReadBack: 1 << 20}
	var damaged *relay.DamagedError
	if _, err := r.Put(t.Context(), o, nil); !errors.As(err, &damaged) || !errors.Is(err, fs.ErrInvalid) || content(t, to, "a") != "nothing" {
		t.Errorf("%v, the target has %q", err, content(t, to, "a"))
	}
	o.Name = "gone"
	if _, err := r.Put(t.Context(), o, nil); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "left the source meanwhile") {
		t.Errorf("of what is gone: %v", err)
	}
}

// A store that keeps something else than it was given is found out, and what it kept does not stay.
func TestCopyIsReadBack(t *testing.T) {
	for _, body := range []string{"abX", "ab", "abcd"} {
		from, to := &storetest.Memory{}, &storetest.Memory{}
		fill(t, from, "a", "abc")
		r := relay.Relay{From: from, To: lying{to, body}, ReadBack: 1 << 20}
		if _, err := r.Copy(t.Context(), "a", nil); err == nil || content(t, to, "a") != "nothing" {
			t.Errorf("%q was kept: %v, the target has %q", body, err, content(t, to, "a"))
		}
	}
	from, to := &storetest.Memory{}, &storetest.Memory{}
	fill(t, from, "a", "abc")
	r := relay.Relay{From: from, To: lying{to, "abX"}, ReadBack: 2}
	if _, err := r.Copy(t.Context(), "a", nil); err != nil || content(t, to, "a") != "abX" {
		t.Errorf("what is too long to be read back: %v", err)
	}
}

// lying keeps body whatever it is given.
type lying struct {
	store.Store
	body string
}

func (l lying) Put(ctx context.Context, name string, r io.Reader) error {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	return l.Store.Put(ctx, name, strings.NewReader(l.body))
}

// Whichever call of either store fails, the target has the object whole or not at all, and copying again ends it.
func TestCopyFailsWhole(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 10_000)
	for _, side := range []string{"from", "to"} {
		for _, fail := range []func(store.Store, int) *storetest.Flaky{storetest.FailAt, storetest.FailMidway, storetest.FailAfter} {
			for n := 0; ; n++ {
				from, to := &storetest.Memory{}, &storetest.Memory{}
				fill(t, from, "a", body)
				r := relay.Relay{From: from, To: to, ReadBack: 1 << 20}
				var flaky *storetest.Flaky
				if side == "from" {
					flaky = fail(from, n)
					r.From = flaky
				} else {
					flaky = fail(to, n)
					r.To = flaky
				}
				_, err := r.Copy(t.Context(), "a", sum(body))
				if got := content(t, to, "a"); got != body && (got != "nothing" || err == nil) {
					t.Errorf("%s, call %d: the target has %d bytes, error %v", side, n, len(got), err)
				}
				if _, err := (&relay.Relay{From: from, To: to, ReadBack: 1 << 20}).Copy(t.Context(), "a", sum(body)); err != nil || content(t, to, "a") != body {
					t.Errorf("%s, call %d, again: %v", side, n, err)
				}
				if !flaky.Reached() {
					break
				}
			}
		}
	}
}

// The progress that is told is what was read, also where a put begins anew.
func TestPassedCountsOnce(t *testing.T) {
	from, to := &storetest.Memory{}, &storetest.Memory{}
	body := strings.Repeat("x", 100_000)
	fill(t, from, "a", body)
	var n int64
	r := relay.Relay{From: from, To: again{to}, Passed: func(d int64) { n += d }}
	if _, err := r.Copy(t.Context(), "a", nil); err != nil || n != 100_000 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// again reads what it is given twice.
type again struct{ store.Store }

func (a again) Put(ctx context.Context, name string, r io.Reader) error {
	if _, err := io.CopyN(io.Discard, r, 70_000); err != nil {
		return err
	}
	if _, err := r.(io.Seeker).Seek(0, io.SeekStart); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return a.Store.Put(ctx, name, bytes.NewReader(b))
}
