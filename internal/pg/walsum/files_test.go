package walsum_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walsum"
)

func stretch(timeline wal.Timeline, from, to wal.LSN) walsum.Stretch {
	return walsum.Stretch{Timeline: timeline, From: from, To: to}
}

func TestNames(t *testing.T) {
	s := stretch(0x1F, 0x1_6C000028, 0x1_6D0000F8)
	const name = "0000001F000000016C000028000000016D0000F8.summary"
	if got := s.Name(); got != name {
		t.Errorf("Name is %s, want %s", got, name)
	}
	if got, err := walsum.ParseName(name); got != s || err != nil {
		t.Errorf("ParseName: %v, %v", got, err)
	}
	for _, bad := range []string{
		"", ".summary", "temp.summary", name[1:], "0" + name, strings.ToLower(name), name[:40], name + ".tmp",
		"00000000000000016C000028000000016D0000F8.summary", // no timeline
		"0000001F000000016D0000F8000000016C000028.summary", // backwards
		"+000001F000000016C000028000000016D0000F8.summary",
	} {
		if got, err := walsum.ParseName(bad); err == nil {
			t.Errorf("ParseName(%q) is %v", bad, got)
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("0000001F000000016C000028000000016D0000F8.summary")
	f.Add("temp.summary")
	f.Fuzz(func(t *testing.T, name string) {
		if s, err := walsum.ParseName(name); err == nil && s.Name() != name {
			t.Errorf("%q is read as %v, which is called %s", name, s, s.Name())
		}
	})
}

func TestCover(t *testing.T) {
	type list = []walsum.Stretch
	have := list{stretch(1, 30, 40), stretch(1, 10, 20), stretch(2, 35, 50), stretch(1, 20, 30), stretch(3, 60, 70)}
	for _, c := range []struct {
		name       string
		have, path list
		want       list
		gap        string
	}{
		{"a part of one", have, list{stretch(1, 12, 15)}, list{stretch(1, 10, 20)}, ""},
		{"borders", have, list{stretch(1, 10, 30)}, list{stretch(1, 10, 20), stretch(1, 20, 30)}, ""},
		{"across a promotion", have, list{stretch(1, 15, 35), stretch(2, 35, 50)},
			list{stretch(1, 10, 20), stretch(1, 20, 30), stretch(1, 30, 40), stretch(2, 35, 50)}, ""},
		{"nothing is asked for", nil, list{stretch(1, 15, 15)}, nil, ""},
		{"no path", have, nil, nil, ""},
		{"before the first", have, list{stretch(1, 5, 35)}, nil, "timeline 1 from 0/5 to 0/A"},
		{"after the last", have, list{stretch(1, 35, 45)}, nil, "timeline 1 from 0/28 to 0/2D"},
		{"before the first, and no further", have, list{stretch(1, 5, 8)}, nil, "timeline 1 from 0/5 to 0/8"},
		{"on another timeline", have, list{stretch(3, 40, 50)}, nil, "timeline 3 from 0/28 to 0/32"},
		{"a hole", slices.Delete(slices.Clone(have), 3, 4), list{stretch(1, 10, 40)}, nil, "timeline 1 from 0/14 to 0/1E"},
		{"the longest of several", list{stretch(1, 0, 10), stretch(1, 5, 30), stretch(1, 5, 12), stretch(1, 20, 25)}, list{stretch(1, 6, 28)},
			list{stretch(1, 5, 30)}, ""},
		{"overlaps", list{stretch(1, 0, 10), stretch(1, 5, 15), stretch(1, 12, 30)}, list{stretch(1, 0, 30)},
			list{stretch(1, 0, 10), stretch(1, 5, 15), stretch(1, 12, 30)}, ""},
	} {
		got, err := walsum.Cover(c.have, c.path)
		var gap *walsum.GapError
		switch {
		case c.gap == "" && (err != nil || !slices.Equal(got, c.want)):
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		case c.gap != "" && (!errors.As(err, &gap) || gap.String() != c.gap || err.Error() != "there is no WAL summary of "+c.gap):
			t.Errorf("%s: %v, %v, want the gap %s", c.name, got, err, c.gap)
		}
	}
}

// Cover finds a cover if and only if every position is in a summary, and a gap that it names is in none.
func TestCoverOfAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := rapid.Custom(func(t *rapid.T) walsum.Stretch {
			from := rapid.Uint64Range(1, 30).Draw(t, "from")
			return stretch(wal.Timeline(rapid.Uint32Range(1, 2).Draw(t, "timeline")), wal.LSN(from), wal.LSN(from+rapid.Uint64Range(0, 12).Draw(t, "length")))
		})
		have := rapid.SliceOfN(draw, 0, 12).Draw(t, "have")
		path := []walsum.Stretch{draw.Draw(t, "path")}
		in := func(list []walsum.Stretch, at wal.LSN) bool {
			return slices.ContainsFunc(list, func(s walsum.Stretch) bool { return s.Timeline == path[0].Timeline && s.From <= at && at < s.To })
		}
		first := path[0].To // that is in no summary
		for at := path[0].To; at > path[0].From; at-- {
			if !in(have, at-1) {
				first = at - 1
			}
		}
		got, err := walsum.Cover(have, path)
		if gap := new(walsum.GapError); errors.As(err, &gap) {
			if first == path[0].To || gap.From != first || gap.To <= gap.From || gap.To > path[0].To {
				t.Errorf("the gap is %v, the first position without is %s", gap.Stretch, first)
			}
			for at := gap.From; at < gap.To; at++ {
				if in(have, at) {
					t.Errorf("%s is in the gap %v and in a summary", at, gap.Stretch)
				}
			}
			return
		}
		if err != nil || first != path[0].To {
			t.Fatalf("%v, %v, and %s is in no summary", got, err, first)
		}
		for at := path[0].From; at < path[0].To; at++ {
			if !in(got, at) {
				t.Errorf("%s is in none of %v", at, got)
			}
		}
	})
}

// Load merges what the summaries of a directory have, in the order of the WAL.
func TestLoad(t *testing.T) {
	key := func(n uint32) blockset.Key {
		return blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5, Number: n}}
	}
	dir := fstest.MapFS{"temp.summary": {Data: []byte("half of one")}}
	put := func(s walsum.Stretch, fill func(*blockset.Set)) {
		var set blockset.Set
		fill(&set)
		var b bytes.Buffer
		if err := walsum.Write(&b, &set); err != nil {
			t.Fatal(err)
		}
		dir[s.Name()] = &fstest.MapFile{Data: b.Bytes()}
	}
	put(stretch(1, 10, 20), func(s *blockset.Set) { s.AddMany(key(1), []uint32{1, 2, 3}); s.Add(key(2), 1) })
	put(stretch(1, 20, 30), func(s *blockset.Set) { s.Truncate(key(1), 2) })
	put(stretch(2, 30, 40), func(s *blockset.Set) { s.Add(key(1), 7) })
	put(stretch(2, 40, 50), func(s *blockset.Set) { s.Add(key(9), 1) })
	path := []walsum.Stretch{stretch(1, 12, 30), stretch(2, 30, 40)}
	got, picked, err := walsum.Load(dir, path)
	if err != nil {
		t.Fatal(err)
	}
	var want blockset.Set
	want.AddMany(key(1), []uint32{1, 2, 3})
	want.Truncate(key(1), 2)
	want.Add(key(1), 7)
	want.Add(key(2), 1)
	same(t, got, &want)
	if fmt.Sprint(picked) != "[timeline 1 from 0/A to 0/14 timeline 1 from 0/14 to 0/1E timeline 2 from 0/1E to 0/28]" {
		t.Errorf("picked are %v", picked)
	}

	hole := stretch(1, 20, 30).Name()
	whole := dir[hole]
	dir[hole] = &fstest.MapFile{Data: whole.Data[:len(whole.Data)-1]}
	if s, _, err := walsum.Load(dir, path); s != nil || err == nil || !strings.HasPrefix(err.Error(), hole) {
		t.Errorf("with a damaged one: %v, %v", s, err)
	}
	delete(dir, hole)
	if s, _, err := walsum.Load(dir, path); s != nil || !errors.As(err, new(*walsum.GapError)) {
		t.Errorf("without one: %v, %v", s, err)
	}
	if _, _, err := walsum.Load(gone{dir, hole, whole}, path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with one that goes after the listing: %v", err)
	}
	sub, err := fs.Sub(dir, "none")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := walsum.Load(sub, path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no directory: %v", err)
	}
}

// gone lists a file that cannot be opened.
type gone struct {
	fstest.MapFS
	name string
	file *fstest.MapFile
}

func (g gone) ReadDir(name string) ([]fs.DirEntry, error) {
	with := fstest.MapFS{g.name: g.file}
	for n, f := range g.MapFS {
		with[n] = f
	}
	return with.ReadDir(name)
}
