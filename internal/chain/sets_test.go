package chain_test

import (
	"os"
	"testing"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/chain"
)

// Sets of blocks come back as they were put, whatever others were put meanwhile, in memory and in the file, which has no name.
func TestSetsAreKept(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	for _, memory := range []int64{1, 30_000, 0} {
		s := chain.Sets{Memory: memory, File: chain.Unnamed}
		defer s.Close()
		numbers := make([]uint32, 50)
		want := make([]*roaring.Bitmap, len(numbers))
		for round := range 4 {
			for i := range numbers {
				want[i] = roaring.New()
				for block := uint32(i); block < 131072; block += uint32(1 + (i+round*7)%40) {
					want[i].Add(block)
				}
				if round == 3 {
					want[i].Clear()
				}
				var err error
				if numbers[i], err = s.Put(numbers[i], want[i].Clone()); err != nil {
					t.Fatal(err)
				}
			}
			for i, n := range numbers {
				if got, err := s.Get(n); err != nil || !got.Equals(want[i]) {
					t.Fatalf("memory %d, round %d: set %d has %d blocks, want %d, %v", memory, round, i, got.GetCardinality(), want[i].GetCardinality(), err)
				}
			}
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}
