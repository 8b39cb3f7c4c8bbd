package chain

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"holdfast/internal/tarpart"
)

// A million files cost 40 MiB, and each is found with what is known of it.
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
	path := func(i int) string { return fmt.Sprintf("base/%d/%d", i%1000, 100_000+i) }
	for i := range files {
		table.add(&tarpart.Member{Path: path(i), Size: int64(i), Mode: 0o600, ModTime: time.Unix(int64(i), 1)})
	}
	if err := table.sort(); err != nil {
		t.Fatal(err)
	}
	if used := int64(heap()) - int64(before); used > 42<<20 {
		t.Errorf("%d MiB", used>>20)
	}
	for i := range files {
		j := table.find(path(i))
		if j < 0 {
			t.Fatalf("%s is not found", path(i))
		}
		if f := table.of(j).file(); f.Size != int64(i) || f.Mode != 0o600 || !f.ModTime.Equal(time.Unix(int64(i), 1)) || f.Type != tarpart.File {
			t.Fatalf("%s is %+v", path(i), f)
		}
	}
	if table.find("base/0/1") >= 0 {
		t.Error("a file is found that is not there")
	}
	table.add(&tarpart.Member{Path: path(5), Type: tarpart.Dir})
	if err := table.sort(); err == nil {
		t.Error("what is there twice is not noticed")
	}
}
