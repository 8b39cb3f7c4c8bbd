package chain_test

import (
	"slices"
	"testing"

	"github.com/RoaringBitmap/roaring/v2"
	"pgregory.net/rapid"

	"holdfast/internal/chain"
	"holdfast/internal/increment"
	"holdfast/internal/pg/page"
	"holdfast/internal/tarpart"
)

// Runs are where a member has the pages that are asked for, each once, in the order of its content; what touches is one run.
func TestRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.SliceOfNDistinct(rapid.Uint32Range(0, 60), 1, 40, rapid.ID[uint32]).Draw(t, "stored")
		slices.Sort(blocks)
		wanted := roaring.BitmapOf(rapid.SliceOf(rapid.Uint32Range(0, 70)).Draw(t, "wanted")...)
		const size = 61 * page.Size
		whole := rapid.Bool().Draw(t, "whole")
		head := int64(0)
		m := &tarpart.Member{Path: "base/5/1", Size: size, Pages: 61}
		if whole {
			blocks = nil
			for i := range uint32(61) {
				blocks = append(blocks, i)
			}
		} else {
			set, err := roaring.BitmapOf(blocks...).ToBytes()
			if err != nil {
				t.Fatal(err)
			}
			h := increment.Header{FileSize: size, Blocks: blocks}
			head = h.Len()
			m.Increment, m.Pages, m.Size = &tarpart.Increment{Size: size, Set: set}, uint32(len(blocks)), h.Size()
		}
		type at struct{ content, file, number int64 }
		var want, got []at
		for i, b := range blocks {
			if wanted.Contains(b) {
				want = append(want, at{head + int64(i)*page.Size, int64(b) * page.Size, int64(i)})
			}
		}
		take := &chain.Take{Member: m}
		runs, err := take.Runs(wanted)
		if err != nil {
			t.Fatal(err)
		}
		last := chain.Run{Content: -1}
		for r := range runs {
			if r.Length <= 0 || r.Length%page.Size != 0 || last.Content+last.Length == r.Content && last.File+last.Length == r.File {
				t.Errorf("%+v behind %+v", r, last)
			}
			for n := int64(0); n < r.Length; n += page.Size {
				got = append(got, at{r.Content + n, r.File + n, r.Page + n/page.Size})
			}
			last = r
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}
