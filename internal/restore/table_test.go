package restore

import (
	"fmt"
	"runtime"
	"testing"
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
