package restore

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/RoaringBitmap/roaring/v2"
)

// A million files cost 32 MiB, while they are entered and afterwards, and each is found.
func TestTableIsSmall(t *testing.T) {
	const files = 1_000_000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	table := newTable()
	name := func(i int) string { return fmt.Sprintf("base/%d/%d", i%100, i) }
	for i := range files {
		table.add(name(i), true, i%2 == 0)
	}
	if grown := heap() - before; grown > 34<<20 {
		t.Errorf("%d files take %d bytes", files, grown)
	}
	if err := table.sort(); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < files; i += 997 {
		j := table.find(name(i))
		if j < 0 || (table.of(j).whole == 0) != (i%2 == 0) {
			t.Fatalf("%s is number %d", name(i), j)
		}
	}
	if table.find("base/0/1") >= 0 {
		t.Error("a file is found that is not there")
	}
	table.add(name(5), true, true)
	if err := table.sort(); err == nil {
		t.Error("a file that is there twice is not noticed")
	}
}

// Sets of blocks come back as they were put, whatever others were put meanwhile, and their file has no name.
func TestSetsAreKept(t *testing.T) {
	p := &Plan{Destination: t.TempDir()}
	tree, err := openTree(p)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	s := sets{root: tree.data}
	defer s.close()
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
			if numbers[i], err = s.put(numbers[i], want[i].Clone()); err != nil {
				t.Fatal(err)
			}
		}
		for i, n := range numbers {
			if got, err := s.get(n); err != nil || !got.Equals(want[i]) {
				t.Fatalf("round %d: set %d has %d blocks, want %d, %v", round, i, got.GetCardinality(), want[i].GetCardinality(), err)
			}
		}
	}
	if entries, err := os.ReadDir(p.Destination); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}
