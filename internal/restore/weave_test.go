package restore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/pg/page"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// wovenFile is the path of the file that woven chains are of.
const wovenFile = "base/5/16384"

// wovenChain stores a full backup of a file of 500 pages and increments of it: of a long range, of pages here and there, of a file that grew, and of few
// pages. It returns the contents after each.
func wovenChain(g *maker) [][]byte {
	versions := make([]int, 500)
	for i := range versions {
		versions[i] = 1
	}
	content := func() []byte { return (&relation{versions: versions}).content(wovenFile) }
	dirs := []packed{{path: "base", dir: true, mode: 0o700}, {path: "base/5", dir: true, mode: 0o700}}
	contents := [][]byte{content()}
	g.backup(append(dirs, packed{path: wovenFile, content: contents[0], mode: 0o600}), false)
	for n, change := range []func(i int) bool{
		func(i int) bool { return i >= 200 && i < 400 }, // more than what is read rather than passed over
		func(i int) bool { return i%3 == 0 },
		func(i int) bool { return i >= 490 }, // of them 500 and on are new
		func(i int) bool { return i%7 == 5 && i != 300 },
		func(i int) bool { return i == 300 },
	} {
		if n == 2 {
			versions = append(versions, make([]int, 50)...)
		}
		var blocks []uint32
		for i := range versions {
			if change(i) {
				versions[i] = n + 2
				blocks = append(blocks, uint32(i))
			}
		}
		contents = append(contents, content())
		g.backup(append(dirs, packed{path: wovenFile, content: contents[n+1], mode: 0o600, increment: true, blocks: blocks}), true)
	}
	return contents
}

// decided returns the archive and the plan of a restore of a backup into dir.
func decided(t *testing.T, g *maker, dir, name string) (*archive.Archive, *restore.Plan) {
	t.Helper()
	a := archive.New(g.store, archive.Options{})
	p, err := restore.Decide(t.Context(), a, restore.Request{Destination: dir, Choice: choose(t, a, name, catalog.Target{})})
	if err != nil {
		t.Fatal(err)
	}
	return a, p
}

// Files are woven of what many pages changed in, stretch by stretch; what changed little is written by itself, and so is what cannot be read in pieces.
func TestChainsAreWoven(t *testing.T) {
	for _, method := range []compress.Method{compress.Zstd, compress.None, compress.LZ4} {
		for _, stretch := range []int64{0, 100, 5000} {
			t.Run(fmt.Sprint(method, " ", stretch), func(t *testing.T) {
				g := &maker{store: &storetest.Memory{}, method: method, perPart: 8}
				contents := wovenChain(g)
				for n, name := range g.names {
					dir := filepath.Join(t.TempDir(), "data")
					a, p := decided(t, g, dir, name)
					opts := restore.Options{Workers: 2}
					if stretch > 0 {
						opts = opts.Weaving(2, stretch*page.Size)
					}
					stretches, err := restore.Woven(t.Context(), a, p, opts)
					if err != nil {
						t.Fatal(err)
					}
					want := 1
					if stretch > 0 {
						want = (len(contents[n])/page.Size + int(stretch) - 1) / int(stretch)
					}
					if n == 0 || method == compress.LZ4 {
						want = 0
					}
					if stretches != want {
						t.Errorf("%s: %d stretches are woven, want %d", name, stretches, want)
					}
					report, err := restore.Run(t.Context(), a, p, opts)
					if err != nil {
						t.Fatal(err)
					}
					got := must2(os.ReadFile(filepath.Join(dir, wovenFile)))
					if !bytes.Equal(got, contents[n]) {
						t.Errorf("%s: %s", name, difference(string(got), string(contents[n])))
					}
					if least := int64(len(got)); report.Bytes < least || report.Bytes > least+1<<20 {
						t.Errorf("%s: wrote %d bytes of a file of %d: each page once", name, report.Bytes, least)
					}
				}
			})
		}
	}
}

// A large file of which pages here and there are stale is compared with all backups of the chain at once, and each stale page is found, whichever backup has it.
func TestWovenChainsAreCompared(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 8}
	contents := wovenChain(g)
	dir := filepath.Join(t.TempDir(), "data")
	if _, _, err := fetch(g.store, dir, g.names[0], nil); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, wovenFile)
	for n := range g.names {
		is := must2(os.ReadFile(file))
		for at := n * page.Size; at < len(is); at += 61 * page.Size {
			is[at+n] ^= 1
		}
		if err := os.WriteFile(file, is, 0o600); err != nil {
			t.Fatal(err)
		}
		want, stale := contents[n], int64(0)
		for at := 0; at < len(want); at += page.Size {
			if end := at + page.Size; end > len(is) || !bytes.Equal(is[at:end], want[at:end]) {
				stale++
			}
		}
		_, report, err := fetch(g.store, dir, g.names[n], delta)
		if err != nil {
			t.Fatal(err)
		}
		if d := report.Delta; d.StalePages != stale || d.StaleFiles != 1 || d.MissingFiles != 0 || report.Bytes != stale*page.Size {
			t.Errorf("%s: %+v, wrote %d bytes; want %d stale pages", g.names[n], d, report.Bytes, stale)
		}
		if got := must2(os.ReadFile(file)); !bytes.Equal(got, want) {
			t.Errorf("%s: %s", g.names[n], difference(string(got), string(want)))
		}
	}
}

// Increments that no older backup's pages are needed with come back too.
func TestWovenWithoutAWhole(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 8}
	old, fresh := &relation{versions: make([]int, 100)}, &relation{versions: slices.Repeat([]int{3}, 100)}
	var even, odd []uint32
	for i := range uint32(50) {
		even, odd = append(even, 2*i), append(odd, 2*i+1)
	}
	g.backup([]packed{{path: wovenFile, content: old.content(wovenFile), mode: 0o600}}, false)
	g.backup([]packed{{path: wovenFile, content: fresh.content(wovenFile), mode: 0o600, increment: true, blocks: even}}, true)
	g.backup([]packed{{path: wovenFile, content: fresh.content(wovenFile), mode: 0o600, increment: true, blocks: odd}}, true)
	dir := filepath.Join(t.TempDir(), "data")
	if _, _, err := fetch(g.store, dir, g.names[2], nil); err != nil {
		t.Fatal(err)
	}
	got := must2(os.ReadFile(filepath.Join(dir, wovenFile)))
	if want := fresh.content(wovenFile); !bytes.Equal(got, want) {
		t.Error(difference(string(got), string(want)))
	}
}

// Pages that are damaged in the archive, in whichever of the backups, fail the restore, and the error names object and block.
func TestDamageIsFoundWhileWeaving(t *testing.T) {
	const part = "tar_partitions/part_001.tar"
	for level := range 6 {
		g := &maker{store: &storetest.Memory{}, method: compress.None, perPart: 8}
		wovenChain(g)
		object := archive.Folder(g.names[level]) + part
		body := must2(g.store.Open(t.Context(), object))
		stored := must2(io.ReadAll(body))
		body.Close() // only read
		damaged := slices.Clone(stored)
		for at := len(damaged) - 1024 - page.Size/2; at > 2048; at -= page.Size { // of pages that newer backups have too nothing is read
			damaged[at] ^= 1
		}
		if err := g.store.Put(t.Context(), object, bytes.NewReader(damaged)); err != nil {
			t.Fatal(err)
		}
		_, _, err := fetch(g.store, filepath.Join(t.TempDir(), "data"), g.names[5], nil)
		for _, word := range []string{g.names[level], wovenFile, "damaged"} {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("level %d: %v says nothing of %s", level, err, word)
			}
		}
		if woven := level < 5; err != nil && woven != strings.Contains(err.Error(), "block ") {
			t.Errorf("level %d: %v", level, err)
		}
	}
}

// Whatever call of the store fails, the restore does, and continued it puts everything in place.
func TestWeavingFailsWhole(t *testing.T) {
	disk := &storetest.Memory{}
	g := &maker{store: disk, method: compress.Zstd, perPart: 8}
	contents := wovenChain(g)
	for _, how := range []func(store.Store, int) *storetest.Flaky{storetest.FailAt, storetest.FailMidway, storetest.FailAfter} {
		for n := 0; ; n++ {
			dir := filepath.Join(t.TempDir(), "data")
			_, p := decided(t, g, dir, g.names[5])
			flaky := how(disk, n)
			_, err := restore.Run(t.Context(), archive.New(flaky, archive.Options{}), p, restore.Options{Workers: 2}.Weaving(2, 200*page.Size))
			if !flaky.Reached() {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			if err != nil { // otherwise it was the end of a body that is not read to its end
				if !errors.Is(err, storetest.ErrInjected) {
					t.Errorf("call %d (%s) failed, Run returned %v", n, flaky.Calls()[n], err)
				}
				if _, _, err := fetch(disk, dir, g.names[5], func(r *restore.Request) { r.Resume = true }); err != nil {
					t.Errorf("call %d (%s) failed, and then: %v", n, flaky.Calls()[n], err)
				}
			}
			if got := must2(os.ReadFile(filepath.Join(dir, wovenFile))); !bytes.Equal(got, contents[5]) {
				t.Errorf("call %d (%s) failed, and then: %s", n, flaky.Calls()[n], difference(string(got), string(contents[5])))
			}
		}
	}
}
