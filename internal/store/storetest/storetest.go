// Package storetest holds the tests every store must pass, the store in memory, and the store that fails on cue.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/store"
)

// Test checks that the stores open returns do what package store promises. open is called once for each test with that
// test's t, and returns an empty store every time.
func Test(t *testing.T, open func(t *testing.T) store.Store) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"AnObjectComesBackAsItWasPut":            comesBack,
		"PutReplaces":                            putReplaces,
		"AFailedPutLeavesWhatWasThere":           failedPut,
		"ALargeStreamOfUnknownLengthComesBack":   largeStream,
		"RangesAreCutAtTheEnd":                   ranges,
		"AMissingObjectIsErrNotExist":            missing,
		"ListYieldsOneLevelInByteOrder":          list,
		"ListYieldsManyEntries":                  listMany,
		"ListStopsWhenToldTo":                    listStops,
		"WalkYieldsAllDepths":                    walk,
		"DeleteRemoves":                          deleteRemoves,
		"DeleteManyRemoves":                      deleteMany,
		"PutIfAbsentNeverReplaces":               putIfAbsent,
		"OfManyPutIfAbsentOneWins":               putIfAbsentRace,
		"CopyCopies":                             copies,
		"NamesMayHoldOddCharacters":              oddNames,
		"BadNamesAreRefused":                     badNames,
		"ACancelledContextEndsEveryCall":         cancelled,
		"ACancelledPutEndsAndLeavesNothing":      cancelledPut,
		"ReadersSeeWholeObjectsWhileTheyReplace": concurrent,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// Plain returns s without its optional interfaces.
func Plain(s store.Store) store.Store { return struct{ store.Store }{s} }

// TestAround checks a kind of store that goes around another: wrap returns one. It has to be a store around one with every optional
// interface and around one with none, and may show PutIfAbsent and Copy only where the inner one has them.
func TestAround(t *testing.T, wrap func(inner store.Store) store.Store) {
	t.Run("Full", func(t *testing.T) {
		Test(t, func(*testing.T) store.Store { return wrap(&Memory{}) })
	})
	t.Run("Plain", func(t *testing.T) {
		Test(t, func(*testing.T) store.Store { return wrap(Plain(&Memory{})) })
	})
	t.Run("PromisesWhatTheInnerOneCanDo", func(t *testing.T) {
		m := &Memory{}
		for _, inner := range []store.Store{m, Plain(m), struct {
			store.Store
			store.PutIfAbsenter
		}{m, m}, struct {
			store.Store
			store.Copier
		}{m, m}} {
			outer := wrap(inner)
			_, absent := outer.(store.PutIfAbsenter)
			_, copies := outer.(store.Copier)
			_, wantAbsent := inner.(store.PutIfAbsenter)
			_, wantCopies := inner.(store.Copier)
			if absent != wantAbsent || copies != wantCopies {
				t.Errorf("around a %T: PutIfAbsent %v, Copy %v; want %v, %v", inner, absent, copies, wantAbsent, wantCopies)
			}
			if err := store.Copy(t.Context(), outer, "none", "to"); errors.Is(err, errors.ErrUnsupported) == wantCopies {
				t.Errorf("copy around a %T: %v", inner, err)
			}
		}
	})
}

// pseudo returns n bytes that do not compress, the same for the same seed.
func pseudo(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// stream yields the same bytes as r and shows nothing else of it.
func stream(r io.Reader) io.Reader { return onlyReader{r} }

func put(t *testing.T, s store.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(data)); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

func read(t *testing.T, s store.Store, name string) []byte {
	t.Helper()
	r, err := s.Open(t.Context(), name)
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
	return b
}

// wantBytes fails t unless the object has the content want.
func wantBytes(t *testing.T, s store.Store, name string, want []byte) {
	t.Helper()
	if got := read(t, s, name); !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes (crc %08x), want %d (crc %08x)",
			name, len(got), crc32.ChecksumIEEE(got), len(want), crc32.ChecksumIEEE(want))
	}
}

// wantAbsent fails t unless there is no such object, whoever is asked.
func wantAbsent(t *testing.T, s store.Store, name string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat %s: %v, want fs.ErrNotExist", name, err)
	}
	for o, err := range store.Walk(t.Context(), s, "") {
		if err != nil || o.Name == name {
			t.Errorf("walk yields %q, %v, want no %s", o.Name, err, name)
		}
	}
}

func comesBack(t *testing.T, s store.Store) {
	begin := time.Now()
	for _, size := range []int{0, 1, 4096, 1<<20 + 1} {
		name := fmt.Sprintf("dir/sub/%d", size)
		data := pseudo(uint64(size), size)
		put(t, s, name, data)
		wantBytes(t, s, name, data)
		o, err := s.Stat(t.Context(), name)
		if err != nil || o.Name != name || o.Size != int64(size) || o.IsDir() {
			t.Errorf("stat %s: %+v, %v", name, o, err)
		}
		// Storage clocks count whole seconds, some of them their own.
		if d := o.Modified.Sub(begin); d < -time.Minute || d > time.Hour {
			t.Errorf("%s was modified at %v, put after %v", name, o.Modified, begin)
		}
	}
}

func putReplaces(t *testing.T, s store.Store) {
	put(t, s, "a/b", []byte("a long first content"))
	put(t, s, "a/b", []byte("second"))
	wantBytes(t, s, "a/b", []byte("second"))
	if o, err := s.Stat(t.Context(), "a/b"); err != nil || o.Size != 6 {
		t.Errorf("stat after replacing: %+v, %v, want size 6", o, err)
	}
}

// failing yields data and then err.
func failing(data []byte, err error) io.Reader {
	return io.MultiReader(bytes.NewReader(data), errReader{err})
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func failedPut(t *testing.T, s store.Store) {
	broken := errors.New("the source broke")
	for _, size := range []int{0, 100, 3 << 20, 12 << 20} {
		data := pseudo(1, size)
		fresh, old := fmt.Sprintf("fresh/%d", size), fmt.Sprintf("old/%d", size)
		if err := s.Put(t.Context(), fresh, failing(data, broken)); !errors.Is(err, broken) {
			t.Errorf("put %s of a broken source: %v, want %v", fresh, err, broken)
		}
		wantAbsent(t, s, fresh)
		put(t, s, old, []byte("as it was"))
		if err := s.Put(t.Context(), old, failing(data, broken)); !errors.Is(err, broken) {
			t.Errorf("put %s of a broken source: %v, want %v", old, err, broken)
		}
		wantBytes(t, s, old, []byte("as it was"))
		if err := store.PutIfAbsent(t.Context(), s, fresh, failing(data, broken)); !errors.Is(err, broken) {
			t.Errorf("put if absent %s of a broken source: %v, want %v", fresh, err, broken)
		}
		wantAbsent(t, s, fresh)
	}
}

func largeStream(t *testing.T, s store.Store) {
	const size = 40<<20 + 17
	data := pseudo(2, size)
	for _, name := range []string{"large/put", "large/absent"} {
		var err error
		if name == "large/put" {
			err = s.Put(t.Context(), name, stream(bytes.NewReader(data)))
		} else {
			err = store.PutIfAbsent(t.Context(), s, name, stream(bytes.NewReader(data)))
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantBytes(t, s, name, data)
	}
	r, err := s.OpenRange(t.Context(), "large/put", size-5<<20, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[size-5<<20:]) {
		t.Errorf("the last 5 MiB: %d bytes, %v, or not the same", len(got), err)
	}
}

func ranges(t *testing.T, s store.Store) {
	data := pseudo(3, 1000)
	put(t, s, "o", data)
	put(t, s, "empty", nil)
	for _, c := range []struct{ offset, length, from, to int64 }{
		{0, -1, 0, 1000}, {0, 1000, 0, 1000}, {0, 2000, 0, 1000}, {0, 1, 0, 1}, {0, 0, 0, 0},
		{1, 998, 1, 999}, {999, 1, 999, 1000}, {999, 5, 999, 1000}, {999, -1, 999, 1000}, {500, 0, 500, 500},
		{1000, -1, 0, 0}, {1000, 1, 0, 0}, {1 << 40, 10, 0, 0}, {1 << 40, -1, 0, 0},
	} {
		r, err := s.OpenRange(t.Context(), "o", c.offset, c.length)
		if err != nil {
			t.Errorf("range %d+%d: %v", c.offset, c.length, err)
			continue
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, data[c.from:c.to]) {
			t.Errorf("range %d+%d: %d bytes, %v; want bytes %d to %d", c.offset, c.length, len(got), err, c.from, c.to)
		}
	}
	for _, c := range [][2]int64{{0, -1}, {0, 10}, {5, 5}, {0, 0}} {
		r, err := s.OpenRange(t.Context(), "empty", c[0], c[1])
		if err != nil {
			t.Errorf("range %d+%d of an empty object: %v", c[0], c[1], err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || len(got) != 0 {
			t.Errorf("range %d+%d of an empty object: %q, %v", c[0], c[1], got, err)
		}
		r.Close()
	}
	for _, c := range [][2]int64{{-1, -1}, {0, -2}} {
		if r, err := s.OpenRange(t.Context(), "o", c[0], c[1]); err == nil {
			r.Close()
			t.Errorf("range %d+%d is accepted", c[0], c[1])
		}
	}
}

func missing(t *testing.T, s store.Store) {
	put(t, s, "there/is/one", []byte("x"))
	for _, name := range []string{"none", "there/none", "there/is/none", "there", "there/is", "there/is/one/below"} {
		check := func(op string, err error) {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s %s: %v, want fs.ErrNotExist", op, name, err)
			} else if !strings.Contains(err.Error(), name) {
				t.Errorf("%s %s: the error %q does not name the object", op, name, err)
			}
		}
		_, err := s.Open(t.Context(), name)
		check("open", err)
		for _, c := range [][2]int64{{0, -1}, {0, 0}, {0, 10}, {7, 10}} {
			_, err = s.OpenRange(t.Context(), name, c[0], c[1])
			check(fmt.Sprintf("open %d+%d of", c[0], c[1]), err)
		}
		_, err = s.Stat(t.Context(), name)
		check("stat", err)
	}
}

func listed(t *testing.T, s store.Store, dir, after string) []string {
	t.Helper()
	names := []string{}
	for o, err := range s.List(t.Context(), dir, after) {
		if err != nil {
			t.Fatalf("list %q after %q: %v", dir, after, err)
		}
		if o.IsDir() && (o.Size != 0 || !o.Modified.IsZero() || o.Storage != "") {
			t.Errorf("directory %s has size %d, time %v, storage %q", o.Name, o.Size, o.Modified, o.Storage)
		}
		names = append(names, o.Name)
	}
	return names
}

func list(t *testing.T, s store.Store) {
	if got := listed(t, s, "", ""); len(got) != 0 {
		t.Errorf("an empty store lists %q", got)
	}
	sizes := map[string]int64{}
	for i, name := range []string{"a.b", "a/b", "a0", "a/x/y/z", "a/x.y", "A", "d/a-b", "d/a/b", "d/a.b", "d/a0", "d/aa", "d/a/c", "é"} {
		put(t, s, name, make([]byte, i))
		sizes[name] = int64(i)
	}
	for _, c := range []struct {
		dir, after string
		want       []string
	}{
		{"", "", []string{"A", "a.b", "a/", "a0", "d/", "é"}},
		{"", "A", []string{"a.b", "a/", "a0", "d/", "é"}},
		{"", "a", []string{"a.b", "a/", "a0", "d/", "é"}},
		{"", "a.b", []string{"a/", "a0", "d/", "é"}},
		{"", "a/", []string{"a0", "d/", "é"}},
		{"", "é", []string{}},
		{"a/", "", []string{"a/b", "a/x.y", "a/x/"}},
		{"a/", "a/b", []string{"a/x.y", "a/x/"}},
		{"a/", "a/x/", []string{}},
		{"a/x/", "", []string{"a/x/y/"}},
		{"a/x/y/", "", []string{"a/x/y/z"}},
		{"d/", "", []string{"d/a-b", "d/a.b", "d/a/", "d/a0", "d/aa"}},
		{"d/", "d/a.", []string{"d/a.b", "d/a/", "d/a0", "d/aa"}},
		{"d/", "c", []string{"d/a-b", "d/a.b", "d/a/", "d/a0", "d/aa"}},
		{"d/", "e", []string{}},
		{"none/", "", []string{}},
		{"a.b/", "", []string{}},
		{"d/a", "", nil},
		{"/", "", nil},
		{"../", "", nil},
		{"d//", "", nil},
	} {
		if c.want == nil {
			for o, err := range s.List(t.Context(), c.dir, c.after) {
				if !errors.Is(err, fs.ErrInvalid) {
					t.Errorf("list %q yields %+v, %v; want fs.ErrInvalid", c.dir, o, err)
				}
			}
			continue
		}
		if got := listed(t, s, c.dir, c.after); !slices.Equal(got, c.want) {
			t.Errorf("list %q after %q:\n got %q\nwant %q", c.dir, c.after, got, c.want)
		}
	}
	for o, err := range s.List(t.Context(), "d/", "") {
		if err == nil && !o.IsDir() && (o.Size != sizes[o.Name] || time.Since(o.Modified).Abs() > time.Hour) {
			t.Errorf("list yields %+v, want %d bytes and a time of now", o, sizes[o.Name])
		}
	}
}

func listMany(t *testing.T, s store.Store) {
	var want []string
	for i := range 1203 { // services answer with at most 1000 at once
		want = append(want, fmt.Sprintf("wal_005/%04d", i))
	}
	var g sync.WaitGroup
	for w := range 8 {
		g.Go(func() {
			for i := w; i < len(want); i += 8 {
				if err := s.Put(t.Context(), want[i], strings.NewReader("x")); err != nil {
					t.Errorf("put %s: %v", want[i], err)
				}
			}
		})
	}
	g.Wait()
	if got := listed(t, s, "wal_005/", ""); !slices.Equal(got, want) {
		t.Errorf("list yields %d names, want %d in their order", len(got), len(want))
	}
	if got := listed(t, s, "wal_005/", want[99]); !slices.Equal(got, want[100:]) {
		t.Errorf("list after the 100th yields %d names, want %d in their order", len(got), len(want)-100)
	}
	if got := listed(t, s, "", ""); !slices.Equal(got, []string{"wal_005/"}) {
		t.Errorf("the root lists %q", got)
	}
	if err := store.DeleteMany(t.Context(), s, want); err != nil {
		t.Errorf("delete all: %v", err)
	}
	if got := listed(t, s, "", ""); len(got) != 0 {
		t.Errorf("after deleting all the root lists %q", got)
	}
}

func listStops(t *testing.T, s store.Store) {
	for _, name := range []string{"a", "b/c", "d"} {
		put(t, s, name, nil)
	}
	for n := range 3 {
		seen := 0
		for range s.List(t.Context(), "", "") {
			if seen++; seen > n {
				break
			}
		}
		seen = 0
		for range store.Walk(t.Context(), s, "") {
			if seen++; seen > n {
				break
			}
		}
	}
}

func walk(t *testing.T, s store.Store) {
	names := []string{"a.b", "a/b", "a/x.y", "a/x/y/z", "a/x0", "a0", "b/c"}
	for i, name := range names {
		put(t, s, name, make([]byte, i))
	}
	for dir, want := range map[string][]string{"": names, "a/": names[1:5], "a/x/": names[3:4], "none/": nil, "a.b/": nil} {
		var got []string
		for o, err := range store.Walk(t.Context(), s, dir) {
			if err != nil {
				t.Fatalf("walk %q: %v", dir, err)
			}
			if i := slices.Index(names, o.Name); o.Size != int64(i) || o.Modified.IsZero() {
				t.Errorf("walk %q yields %+v, want %d bytes and a time", dir, o, i)
			}
			if one, err := s.Stat(t.Context(), o.Name); err != nil || one.Storage != o.Storage {
				t.Errorf("walk %q yields %s in storage %q; stat: %q, %v", dir, o.Name, o.Storage, one.Storage, err)
			}
			got = append(got, o.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("walk %q:\n got %q\nwant %q", dir, got, want)
		}
	}
	for _, dir := range []string{"a", "/", "../"} {
		for o, err := range store.Walk(t.Context(), s, dir) {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("walk %q yields %+v, %v; want fs.ErrInvalid", dir, o, err)
			}
		}
	}
}

func deleteRemoves(t *testing.T, s store.Store) {
	put(t, s, "a/b/c", []byte("x"))
	put(t, s, "a/d", []byte("y"))
	for _, name := range []string{"none", "a/none", "none/below", "a", "a/b", "a/d/below"} {
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("delete %s, which is no object: %v", name, err)
		}
	}
	wantBytes(t, s, "a/b/c", []byte("x"))
	if err := s.Delete(t.Context(), "a/b/c"); err != nil {
		t.Fatal(err)
	}
	wantAbsent(t, s, "a/b/c")
	if got := listed(t, s, "a/", ""); !slices.Equal(got, []string{"a/d"}) {
		t.Errorf("after deleting all of a/b/ the listing of a/ is %q", got)
	}
	put(t, s, "a/b/c", []byte("again"))
	wantBytes(t, s, "a/b/c", []byte("again"))
}

func deleteMany(t *testing.T, s store.Store) {
	var names []string
	for i := range 25 {
		names = append(names, fmt.Sprintf("d%d/o%02d", i%3, i))
		put(t, s, names[i], []byte("x"))
	}
	put(t, s, "d0/kept", []byte("kept"))
	if err := store.DeleteMany(t.Context(), s, append(names, "none", "d0/none")); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, s, "", ""); !slices.Equal(got, []string{"d0/"}) {
		t.Errorf("after deleting the root lists %q, want d0/ alone", got)
	}
	if got := listed(t, s, "d0/", ""); !slices.Equal(got, []string{"d0/kept"}) {
		t.Errorf("after deleting d0/ lists %q, want d0/kept alone", got)
	}
	if err := store.DeleteMany(t.Context(), s, nil); err != nil {
		t.Errorf("delete of no names: %v", err)
	}
}

func putIfAbsent(t *testing.T, s store.Store) {
	for _, size := range []int{10, 12 << 20} {
		name, first := fmt.Sprintf("w/%d", size), pseudo(4, size)
		if err := store.PutIfAbsent(t.Context(), s, name, bytes.NewReader(first)); err != nil {
			t.Fatalf("put if absent %s: %v", name, err)
		}
		for _, r := range []io.Reader{bytes.NewReader(first), stream(bytes.NewReader(pseudo(5, size+1)))} {
			if err := store.PutIfAbsent(t.Context(), s, name, r); !errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("put if absent over %s: %v, want fs.ErrExist", name, err)
			}
		}
		wantBytes(t, s, name, first)
	}
}

func putIfAbsentRace(t *testing.T, s store.Store) {
	a, ok := s.(store.PutIfAbsenter)
	if !ok {
		t.Skip("this store cannot decide atomically")
	}
	const writers = 8
	for round := range 5 {
		name := fmt.Sprintf("race/deep%d/o", round)
		errs := make([]error, writers)
		var g sync.WaitGroup
		for w := range writers {
			g.Go(func() { errs[w] = a.PutIfAbsent(t.Context(), name, bytes.NewReader(pseudo(uint64(w), 100_000))) })
		}
		g.Wait()
		winner := -1
		for w, err := range errs {
			switch {
			case err == nil && winner < 0:
				winner = w
			case err == nil:
				t.Errorf("round %d: writers %d and %d both created %s", round, winner, w, name)
			case !errors.Is(err, fs.ErrExist):
				t.Errorf("round %d: writer %d: %v, want fs.ErrExist", round, w, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody created %s", round, name)
		}
		wantBytes(t, s, name, pseudo(uint64(winner), 100_000))
	}
}

func copies(t *testing.T, s store.Store) {
	c, ok := s.(store.Copier)
	if !ok {
		t.Skip("this store cannot copy")
	}
	data := pseudo(6, 300_000)
	put(t, s, "from/a + b%20é=1&2", data)
	put(t, s, "to/x", []byte("replaced"))
	for _, to := range []string{"to/x", "new/dir/y + z%41"} {
		if err := c.Copy(t.Context(), "from/a + b%20é=1&2", to); err != nil {
			t.Fatalf("copy to %s: %v", to, err)
		}
		wantBytes(t, s, to, data)
	}
	wantBytes(t, s, "from/a + b%20é=1&2", data)
	if err := c.Copy(t.Context(), "none", "to/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("copy of a missing object: %v, want fs.ErrNotExist", err)
	}
	wantAbsent(t, s, "to/none")
}

func oddNames(t *testing.T, s store.Store) {
	names := []string{"a b", "a%20b", "a+b", "a?b=c&d", "a#b", "a:b", "a'b\"c", "<a>", "ü/ß", "..a", "a..", ".hidden/x", "~", "d/00000001.history.zst", "x.tmp.y"}
	for i, name := range names {
		put(t, s, name, []byte(name))
		if i%2 == 0 {
			if err := s.Delete(t.Context(), name); err != nil {
				t.Errorf("delete %q: %v", name, err)
			}
			wantAbsent(t, s, name)
			put(t, s, name, []byte(name))
		}
	}
	for _, name := range names {
		wantBytes(t, s, name, []byte(name))
		if o, err := s.Stat(t.Context(), name); err != nil || o.Name != name || o.Size != int64(len(name)) {
			t.Errorf("stat %q: %+v, %v", name, o, err)
		}
	}
	var got []string
	for o, err := range store.Walk(t.Context(), s, "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Name)
	}
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("walk:\n got %q\nwant %q", got, names)
	}
	if err := store.DeleteMany(t.Context(), s, names); err != nil {
		t.Errorf("delete many: %v", err)
	}
	if got := listed(t, s, "", ""); len(got) != 0 {
		t.Errorf("after deleting all: %q", got)
	}
}

func badNames(t *testing.T, s store.Store) {
	put(t, s, "good/a", []byte("x"))
	for _, name := range []string{"", ".", "..", "/a", "a/", "a//b", "a/../b", "../a", "./a", "a/.", "a\xff"} {
		_, open := s.Open(t.Context(), name)
		_, openRange := s.OpenRange(t.Context(), name, 0, 1)
		_, stat := s.Stat(t.Context(), name)
		for op, err := range map[string]error{
			"open": open, "open range": openRange, "stat": stat,
			"put":           s.Put(t.Context(), name, strings.NewReader("x")),
			"put if absent": store.PutIfAbsent(t.Context(), s, name, strings.NewReader("x")),
			"delete":        s.Delete(t.Context(), name),
			"delete many":   store.DeleteMany(t.Context(), s, []string{name}),
		} {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s %q: %v, want fs.ErrInvalid", op, name, err)
			}
		}
	}
	if got := listed(t, s, "", ""); !slices.Equal(got, []string{"good/"}) {
		t.Errorf("the root lists %q, want good/ alone", got)
	}
}

func cancelled(t *testing.T, s store.Store) {
	put(t, s, "d/a", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, open := s.Open(ctx, "d/a")
	_, openRange := s.OpenRange(ctx, "d/a", 0, 1)
	_, stat := s.Stat(ctx, "d/a")
	errs := map[string]error{
		"open": open, "open range": openRange, "stat": stat,
		"put":           s.Put(ctx, "d/b", strings.NewReader("x")),
		"put if absent": store.PutIfAbsent(ctx, s, "d/b", strings.NewReader("x")),
		"delete":        s.Delete(ctx, "d/a"),
		"delete many":   store.DeleteMany(ctx, s, []string{"d/a"}),
	}
	for _, err := range s.List(ctx, "d/", "") {
		errs["list"] = err
	}
	for _, err := range store.Walk(ctx, s, "") {
		errs["walk"] = err
	}
	if c, ok := s.(store.Copier); ok {
		errs["copy"] = c.Copy(ctx, "d/a", "d/b")
	}
	for op, err := range errs {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", op, err)
		}
	}
	for _, op := range []string{"list", "walk"} {
		if _, ok := errs[op]; !ok {
			t.Errorf("%s ended without an error", op)
		}
	}
	wantBytes(t, s, "d/a", []byte("x"))
	wantAbsent(t, s, "d/b")
}

// endless yields zeros, and calls at once it has yielded n of them.
type endless struct {
	n  int
	at func()
}

func (e *endless) Read(p []byte) (int, error) {
	clear(p)
	if e.n -= len(p); e.n <= 0 {
		e.at()
	}
	return len(p), nil
}

func cancelledPut(t *testing.T, s store.Store) {
	for _, size := range []int{1, 1 << 20, 12 << 20} {
		for _, ifAbsent := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			var err error
			if ifAbsent {
				err = store.PutIfAbsent(ctx, s, "d/o", &endless{size, cancel})
			} else {
				err = s.Put(ctx, "d/o", &endless{size, cancel})
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("put of an endless stream, cancelled after %d bytes: %v, want context.Canceled", size, err)
			}
			wantAbsent(t, s, "d/o")
		}
	}
}

func concurrent(t *testing.T, s store.Store) {
	versions := make([][]byte, 4)
	for i := range versions {
		versions[i] = pseudo(uint64(10+i), 50_000+i*10_000)
	}
	put(t, s, "shared/o", versions[0])
	var g sync.WaitGroup
	for w := range versions {
		g.Go(func() { // replaces the shared object
			for range 10 {
				if err := s.Put(t.Context(), "shared/o", bytes.NewReader(versions[w])); err != nil {
					t.Errorf("put: %v", err)
				}
			}
		})
		g.Go(func() { // reads it
			for range 10 {
				got, err := store.ReadFile(t.Context(), s, "shared/o", 1<<20)
				if err != nil || !slices.ContainsFunc(versions, func(v []byte) bool { return bytes.Equal(v, got) }) {
					t.Errorf("read while it is replaced: %d bytes, %v; want one of the versions", len(got), err)
				}
			}
		})
		g.Go(func() { // comes and goes in one directory
			name := fmt.Sprintf("coming/and/going/%d", w)
			for range 10 {
				if err := s.Put(t.Context(), name, bytes.NewReader(versions[w])); err != nil {
					t.Errorf("put %s: %v", name, err)
				}
				for _, err := range store.Walk(t.Context(), s, "coming/") {
					if err != nil {
						t.Errorf("walk: %v", err)
					}
				}
				if err := s.Delete(t.Context(), name); err != nil {
					t.Errorf("delete %s: %v", name, err)
				}
			}
		})
	}
	g.Wait()
	if got := listed(t, s, "", ""); !slices.Equal(got, []string{"shared/"}) {
		t.Errorf("in the end the root lists %q", got)
	}
}
