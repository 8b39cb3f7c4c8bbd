package chain

import (
	"cmp"
	"errors"
	"hash/maphash"
	"io/fs"
	"sort"
	"time"

	"holdfast/internal/tarpart"
)

// A table holds what the newest backup of a chain says of each of its files, directories and links. It has 40 bytes an entry
// whatever the length of names: paths are known by 128 bits of a keyed hash, which nobody can make collide. Names come from the
// manifest again where they are needed.
type table struct {
	seeds  [2]maphash.Seed
	blocks [][]entry // ascending by hash once sorted; each but the last has blockEntries, so that none is ever copied to grow
	len    int
}

type entry struct {
	hash    [2]uint64
	size    int64 // bytes of the whole file
	modTime int64 // nanoseconds since 1970; 0 where the backup does not know it
	mode    uint16
	kind    kind
}

type kind uint8

const (
	file kind = iota
	directory
	symlink
)

func kindOf(t tarpart.Type) kind {
	switch t {
	case tarpart.Dir:
		return directory
	case tarpart.Symlink:
		return symlink
	}
	return file
}

const blockEntries = 1 << 15 // 1.25 MiB

func newTable() *table { return &table{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}} }

// of returns entry i.
func (t *table) of(i int) *entry { return &t.blocks[i/blockEntries][i%blockEntries] }

func (t *table) hash(path string) [2]uint64 {
	return [2]uint64{maphash.String(t.seeds[0], path), maphash.String(t.seeds[1], path)}
}

func compare(x, y [2]uint64) int { return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1])) }

// add enters a member of the newest backup, or a file that it left to its parent.
func (t *table) add(m *tarpart.Member) {
	e := entry{hash: t.hash(m.Path), size: m.Total(), mode: uint16(m.Perm()), kind: kindOf(m.Type)}
	if !m.ModTime.IsZero() {
		e.modTime = m.ModTime.UnixNano()
	}
	if t.len%blockEntries == 0 {
		t.blocks = append(t.blocks, make([]entry, blockEntries))
	}
	*t.of(t.len) = e
	t.len++
}

// byHash sorts a table.
type byHash struct{ *table }

func (t byHash) Len() int           { return t.len }
func (t byHash) Less(i, j int) bool { return compare(t.of(i).hash, t.of(j).hash) < 0 }
func (t byHash) Swap(i, j int)      { *t.of(i), *t.of(j) = *t.of(j), *t.of(i) }

// sort makes find work once all is entered. What was entered twice is an error.
func (t *table) sort() error {
	sort.Sort(byHash{t})
	for i := 1; i < t.len; i++ {
		if t.of(i).hash == t.of(i-1).hash {
			return errors.New("it names a file twice")
		}
	}
	return nil
}

// find returns the index of a path, or -1.
func (t *table) find(path string) int {
	h := t.hash(path)
	i := sort.Search(t.len, func(i int) bool { return compare(t.of(i).hash, h) >= 0 })
	if i == t.len || t.of(i).hash != h {
		return -1
	}
	return i
}

// File is what a chain knows of one of its files, directories and links.
type File struct {
	Type    tarpart.Type
	Size    int64 // bytes, of a file
	Mode    fs.FileMode
	ModTime time.Time // 1970 where the backup does not know it
}

func (e *entry) file() File {
	kinds := [...]tarpart.Type{tarpart.File, tarpart.Dir, tarpart.Symlink}
	return File{Type: kinds[e.kind], Size: e.size, Mode: fs.FileMode(e.mode), ModTime: time.Unix(0, e.modTime)}
}
