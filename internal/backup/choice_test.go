package backup_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/backup"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/page"
)

// What is stored of a file follows from what happened to its relation, and from how long it was and is.
func TestChangedBlocks(t *testing.T) {
	rel := blockset.Relation{Tablespace: 1663, Database: 5, Number: 16384}
	key := blockset.Key{Relation: rel, Fork: blockset.Main}
	vm := blockset.Key{Relation: rel, Fork: blockset.VM}
	const segment = 131072
	whole := []uint32{^uint32(0)}
	for what, x := range map[string]struct {
		happened  func(s *blockset.Set)
		first     uint32
		size, was int64 // pages
		want      []uint32
	}{
		"nothing":                              {nil, 0, 10, 10, nil},
		"some blocks":                          {func(s *blockset.Set) { s.Add(key, 9); s.Add(key, 3) }, 0, 10, 10, []uint32{3, 9}},
		"another fork":                         {func(s *blockset.Set) { s.Add(vm, 0) }, 0, 10, 10, nil},
		"blocks of another segment":            {func(s *blockset.Set) { s.Add(key, 9); s.Add(key, 2*segment) }, segment, 10, 10, nil},
		"blocks of this segment":               {func(s *blockset.Set) { s.Add(key, 9); s.Add(key, segment); s.Add(key, segment+4) }, segment, 10, 10, []uint32{0, 4}},
		"blocks that are cut off now":          {func(s *blockset.Set) { s.Add(key, 3); s.Truncate(key, 5) }, 0, 5, 10, []uint32{3}},
		"nine of ten":                          {func(s *blockset.Set) { s.AddMany(key, []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8}) }, 0, 10, 10, []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		"all":                                  {func(s *blockset.Set) { s.AddMany(key, []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}) }, 0, 10, 10, whole},
		"made anew":                            {func(s *blockset.Set) { s.Truncate(key, 0); s.Add(key, 1) }, 0, 10, 10, whole},
		"cut off before this segment":          {func(s *blockset.Set) { s.Truncate(key, 7) }, segment, 10, 10, whole},
		"cut off where this segment begins":    {func(s *blockset.Set) { s.Truncate(key, segment) }, segment, 10, 10, whole},
		"cut off and grown again":              {func(s *blockset.Set) { s.Truncate(key, 7) }, 0, 10, 10, []uint32{7, 8, 9}},
		"cut off in this segment, grown again": {func(s *blockset.Set) { s.Truncate(key, segment+7); s.Add(key, segment+2) }, segment, 10, 10, []uint32{2, 7, 8, 9}},
		"cut off behind this segment":          {func(s *blockset.Set) { s.Truncate(key, segment+7) }, 0, segment, segment, nil},
		"grown without a word":                 {nil, 0, 10, 7, []uint32{7, 8, 9}},
		"grown from nothing":                   {nil, 0, 10, 0, whole},
		"cut off, grown beyond what it was":    {func(s *blockset.Set) { s.Truncate(key, 8) }, 0, 12, 9, []uint32{8, 9, 10, 11}},
		"shorter without a word":               {nil, 0, 7, 10, whole},
		"shorter, to another length":           {func(s *blockset.Set) { s.Truncate(key, 8) }, 0, 7, 10, whole},
		"shorter":                              {func(s *blockset.Set) { s.Truncate(key, 7) }, 0, 7, 10, nil},
		"of unknown length":                    {func(s *blockset.Set) { s.Add(key, 2) }, 0, 10, -1, []uint32{2}},
		"of unknown length, cut off":           {func(s *blockset.Set) { s.Truncate(key, 8) }, 0, 10, -1, []uint32{8, 9}},
	} {
		set := &blockset.Set{}
		if x.happened != nil {
			x.happened(set)
		}
		was := x.was * page.Size
		if x.was < 0 {
			was = backup.UnknownSize
		}
		got, all := backup.Changed(set, rel, x.first, x.size*page.Size, was)
		if all {
			got = whole
		}
		if !slices.Equal(got, x.want) {
			t.Errorf("%s: %v, want %v", what, got, x.want)
		}
	}
	if _, all := backup.Changed(&blockset.Set{}, rel, 0, 3*page.Size+1, 3*page.Size+1); !all {
		t.Error("a file that is not made of pages is stored in part")
	}
}

// Whatever happens, a file put together from what it was and what is stored of it is what it is.
func TestChangedBlocksAreEnough(t *testing.T) {
	rel := blockset.Relation{Tablespace: 1663, Database: 5, Number: 16384}
	key := blockset.Key{Relation: rel, Fork: blockset.Main}
	rapid.Check(t, func(t *rapid.T) {
		const segment = 20 // blocks in a file, here
		var now []int      // of each block, when it was written last; 0 for new ones
		size := rapid.IntRange(0, 50).Draw(t, "size")
		for range size {
			now = append(now, -1)
		}
		was := slices.Clone(now)
		set := &blockset.Set{}
		for at := range rapid.IntRange(0, 20).Draw(t, "events") {
			switch what := rapid.IntRange(0, 3).Draw(t, "event"); {
			case what == 0:
				n := rapid.IntRange(0, len(now)).Draw(t, "cut")
				now = now[:n:n]
				set.Truncate(key, uint32(n))
			case what == 1: // grown by new pages, of which the log says nothing
				now = append(now, make([]int, rapid.IntRange(1, 5).Draw(t, "more"))...)
			case len(now) > 0:
				block := rapid.IntRange(0, len(now)-1).Draw(t, "block")
				now[block] = at + 1
				set.Add(key, uint32(block))
			}
		}
		cut := func(s []int, first int) []int { return s[min(first, len(s)):min(first+segment, len(s))] }
		for first := 0; first < len(now); first += segment {
			is, had := cut(now, first), cut(was, first)
			blocks, all := backup.Changed(set, rel, uint32(first), int64(len(is))*page.Size, int64(len(had))*page.Size)
			if all {
				continue
			}
			got := make([]int, len(is))
			copy(got, had)
			for _, b := range blocks {
				got[b] = is[b]
			}
			if !slices.Equal(got, is) {
				t.Fatalf("file at %d: was %v, is %v, put together from %v it is %v", first, had, is, blocks, got)
			}
		}
	})
}

// A file is skipped by its times only when nobody can have written to it since the parent read it.
func TestUntouched(t *testing.T) {
	begun := time.Date(2026, 5, 6, 7, 0, 0, 0, time.UTC)
	old, file := begun.Add(-time.Minute), backup.FileTimes{Size: 8192, Inode: 7, Modified: begun.Add(-time.Minute), Changed: begun.Add(-time.Minute)}
	for what, x := range map[string]struct {
		change func(was, is *backup.FileTimes)
		want   bool
	}{
		"the same":                          {func(was, is *backup.FileTimes) {}, true},
		"another size":                      {func(was, is *backup.FileTimes) { is.Size++ }, false},
		"another file with the same times":  {func(was, is *backup.FileTimes) { is.Inode++ }, false},
		"written to":                        {func(was, is *backup.FileTimes) { is.Modified = old.Add(1) }, false},
		"written to, its time set back":     {func(was, is *backup.FileTimes) { is.Changed = old.Add(1) }, false},
		"written to just before the parent": {func(was, is *backup.FileTimes) { is.Modified = begun.Add(-time.Second); was.Modified = is.Modified }, false},
		"changed just before the parent":    {func(was, is *backup.FileTimes) { is.Changed = begun.Add(-time.Second); was.Changed = is.Changed }, false},
		"written to while the parent ran":   {func(was, is *backup.FileTimes) { is.Modified = begun.Add(time.Second); was.Modified = is.Modified }, false},
		"of a parent that knows no inode":   {func(was, is *backup.FileTimes) { was.Inode = 0; is.Inode = 0 }, false},
		"of a parent that knows no change":  {func(was, is *backup.FileTimes) { was.Changed = time.Time{}; is.Changed = time.Time{} }, false},
		"of a parent that knows no times":   {func(was, is *backup.FileTimes) { was.Modified = time.Time{}; is.Modified = time.Time{} }, false},
		"of a parent that knows no size":    {func(was, is *backup.FileTimes) { was.Size = backup.UnknownSize }, false},
		"of a time that cannot be said in ns": {func(was, is *backup.FileTimes) {
			was.Modified = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
			is.Modified = was.Modified
		}, false},
	} {
		was, is := file, file
		x.change(&was, &is)
		if got := backup.Untouched(begun, was, is); got != x.want {
			t.Error(fmt.Sprint(what, ": untouched is ", got))
		}
	}
}
