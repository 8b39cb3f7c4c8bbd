package drill_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"holdfast/internal/drill"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
)

func TestQuestions(t *testing.T) {
	got, err := drill.ParseQuestions(`[{database: shop, sql: select 1, expect: 1}, {"database": "shop", "table": "public.Orders", "expect": ">= 10", "name": "orders"},
		{database: shop, sql: "select true", expect: true}, {database: shop, table: t}, {database: shop, sql: a, expect: null}, {database: shop, sql: b, expect: "null"}]`)
	if err != nil {
		t.Fatal(err)
	}
	want := []drill.Question{
		{"question 1", "shop", "select 1", drill.Expectation{Given: true, Value: "1"}},
		{"orders", "shop", `select count(*) from "public"."Orders"`, drill.Expectation{Given: true, Op: ">=", Value: "10"}},
		{"question 3", "shop", "select true", drill.Expectation{Given: true, Value: "true"}},
		{"rows of t", "shop", `select count(*) from "t"`, drill.Expectation{}},
		{"question 5", "shop", "a", drill.Expectation{Given: true, Null: true}},
		{"question 6", "shop", "b", drill.Expectation{Given: true, Value: "null"}},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, err := drill.ParseQuestions(""); err != nil || len(got) != 0 {
		t.Errorf("nothing: %+v (%v)", got, err)
	}
	for text, want := range map[string]string{
		"{}": "list", "[{sql: select 1}]": "names no database", "[{database: a}]": "either sql or table", "[{database: a, sql: b, table: c}]": "either sql or table",
		"[{database: a, table: a.b.c}]": "schema.table", "[{database: a, sql: b, expect: [1]}]": "one value", "[{database: a, sql: b, expect: '< x'}]": "number",
		"[{database: a, sql: b, expected: 1}]": "expected", "[{database: a, sql: b, expect: }]": "write null",
	} {
		if _, err := drill.ParseQuestions(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
	}
}

func TestExpectations(t *testing.T) {
	for _, c := range []struct {
		expect, got string
		want        bool
	}{
		{"6", "6", true}, {"6", "7", false}, {"> 6", "7", true}, {"> 6", "6", false}, {">=6", "6.0", true}, {"<7", "6", true}, {"<= 5", "6", false}, {"!= 5", "6", true},
		{"!= 5", "5", false}, {"> 5", "many", false}, {"true", "t", true}, {"false", "t", false}, {"t", "t", true}, {"'>'", ">", false},
	} {
		if c.expect == "'>'" { // not a comparison without a number behind it
			if _, err := drill.ParseQuestions(`[{database: a, sql: b, expect: '>'}]`); err == nil {
				t.Error("> alone: no error")
			}
			continue
		}
		q, err := drill.ParseQuestions("[{database: a, sql: b, expect: '" + c.expect + "'}]")
		if c.expect == "true" || c.expect == "false" {
			q, err = drill.ParseQuestions("[{database: a, sql: b, expect: " + c.expect + "}]")
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := q[0].Expect.Met([]byte(c.got)); got != c.want {
			t.Errorf("%s of %s: %t", c.expect, c.got, got)
		}
	}
	if null := (drill.Expectation{Given: true, Null: true}); !null.Met(nil) || null.Met([]byte{}) || null.String() != "null" {
		t.Error("null is not what is expected where null is")
	}
	if (drill.Expectation{Given: true, Value: ""}).Met(nil) || !(drill.Expectation{}).Met(nil) {
		t.Error("null is something where something is expected, or nothing where nothing is")
	}
}

func FuzzParseQuestions(f *testing.F) {
	f.Add(`[{database: shop, sql: select 1, expect: 1}]`)
	f.Add(`[{"database": "shop", "table": "public.\"x", "expect": ">= 10"}]`)
	f.Add(`- {database: a, table: b, name: c}`)
	f.Fuzz(func(t *testing.T, text string) {
		all, err := drill.ParseQuestions(text)
		if err != nil {
			return
		}
		for _, q := range all {
			if q.Database == "" || q.SQL == "" || q.Name == "" {
				t.Errorf("%q: %+v", text, q)
			}
			q.Expect.Met([]byte(text))
		}
	})
}

// A moment that is drawn can be restored, lies behind the begin of what can, and before the last segment.
func TestMoment(t *testing.T) {
	const size = wal.SegmentSize(1 << 20)
	rapid.Check(t, func(t *rapid.T) {
		r := ribbon.Ribbon{Timeline: 3}
		at := uint64(1 << 20)
		for range rapid.IntRange(1, 5).Draw(t, "stretches") {
			from := at + rapid.Uint64Range(0, 5<<20).Draw(t, "gap")
			at = from + rapid.Uint64Range(0, 5<<20).Draw(t, "length")
			verdict := rapid.SampledFrom([]ribbon.Verdict{ribbon.Restorable, ribbon.Broken, ribbon.Unknown}).Draw(t, "verdict")
			r.Main = append(r.Main, ribbon.Stretch{From: wal.LSN(from), To: wal.LSN(at), Verdict: verdict})
		}
		seed := rapid.Uint64().Draw(t, "seed")
		timeline, lsn, err := drill.Moment(&r, size, rand.New(rand.NewPCG(seed, 0)))
		any := slices.ContainsFunc(r.Main, func(s ribbon.Stretch) bool { return s.Verdict == ribbon.Restorable })
		if !any {
			if !errors.Is(err, drill.ErrNoMoment) {
				t.Fatalf("nothing can be restored, and the error is %v", err)
			}
			return
		}
		if err != nil || timeline != 3 {
			t.Fatalf("timeline %d: %v", timeline, err)
		}
		if !slices.ContainsFunc(r.Main, func(s ribbon.Stretch) bool {
			return s.Verdict == ribbon.Restorable && s.From <= lsn && lsn <= s.To && (lsn == s.From || size.Segment(lsn-1) < size.Segment(s.To-1))
		}) {
			t.Fatalf("%s of %+v", lsn, r.Main)
		}
	})
}

// Sweep removes what is of a dead drill, and nothing else.
func TestSweep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with [brackets]*")
	for _, d := range []string{"holdfast-drill-dead/data", "holdfast-drill-living", "holdfast-drill-kept", "holdfast-drill-new", "holdfast-drill-strange", "other"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"holdfast-drill-dead/drill.lock": "1\n", "holdfast-drill-living/drill.lock": "1\n",
		"holdfast-drill-dead/restore": "abc234", "holdfast-drill-living/restore": "living", "holdfast-drill-kept/drill.lock": "1\n",
		"holdfast-drill-kept/kept": "", "holdfast-drill-new/drill.lock": "", "other/drill.lock": "1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A link, and what another account has made, are not followed or removed by who can remove anything.
	if err := os.Symlink(filepath.Join(dir, "other"), filepath.Join(dir, "holdfast-drill-link")); err != nil {
		t.Fatal(err)
	}
	want := []string{"holdfast-drill-kept", "holdfast-drill-link", "holdfast-drill-living", "holdfast-drill-new", "holdfast-drill-strange", "other"}
	if os.Geteuid() == 0 {
		foreign := filepath.Join(dir, "holdfast-drill-foreign")
		lock := filepath.Join(foreign, "drill.lock")
		if err := errors.Join(os.Mkdir(foreign, 0o700), os.WriteFile(lock, []byte("1\n"), 0o600), os.Chown(lock, 12345, -1)); err != nil {
			t.Fatal(err)
		}
		want = slices.Insert(want, 0, filepath.Base(foreign))
	}
	living, err := os.Open(filepath.Join(dir, "holdfast-drill-living", "drill.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	if err := unix.Flock(int(living.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for d, text := range map[string]string{"hostile": "../../basebackups_005/x", "empty": "", "long": strings.Repeat("a", 1<<10)} { // no ids
		d = filepath.Join(dir, "holdfast-drill-"+d)
		if err := errors.Join(os.Mkdir(d, 0o700), os.WriteFile(filepath.Join(d, "drill.lock"), []byte("1\n"), 0o600), os.WriteFile(filepath.Join(d, "restore"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	var forgotten []string
	removed, err := drill.Sweep(t.Context(), dir, func(_ context.Context, mark string) { forgotten = append(forgotten, mark) })
	if !slices.Equal(forgotten, []string{"abc234"}) {
		t.Errorf("forgotten are the restores %q", forgotten)
	}
	gone := func(name string) string { return filepath.Join(dir, "holdfast-drill-"+name) }
	if err != nil || !slices.Equal(removed, []string{gone("dead"), gone("empty"), gone("hostile"), gone("long")}) {
		t.Errorf("removed %v (%v)", removed, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
}
