package restore

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"sort"
	"sync"
)

// A table says of each file where its content is to come from: which backup of the chain holds it whole, the newer ones holding
// increments or nothing. It has 32 bytes a file whatever the length of names, so that a million files cost 32 MiB: files are
// known by 128 bits of a keyed hash, which nobody can make collide. Names come from the list again where an error needs them.
type table struct {
	seeds  [2]maphash.Seed
	blocks [][]entry // ascending by hash once sorted; each but the last has blockEntries, so that none is ever copied to grow
	len    int

	mu sync.Mutex // guards what changes while workers restore: seen, last and set of entries
}

// entry is one file.
type entry struct {
	hash  [2]uint64
	whole uint16 // index in the chain of the backup that holds the file whole; unknown until it is found
	named uint16 // index of the last backup whose list names the file
	due   uint16 // members that the chain holds of it
	seen  uint16 // of those that have come
	last  uint16 // index of the backup the last came from, plus 1
	set   uint32 // where the blocks still owed are kept; 0 before the file is made
}

const blockEntries = 1 << 15 // 1 MiB

// of returns file i.
func (t *table) of(i int) *entry { return &t.blocks[i/blockEntries][i%blockEntries] }

// unknown stands for a backup that has not been found yet.
const unknown = 1<<16 - 1

func newTable() *table { return &table{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}} }

func (t *table) hash(path string) [2]uint64 {
	return [2]uint64{maphash.String(t.seeds[0], path), maphash.String(t.seeds[1], path)}
}

func compare(x, y [2]uint64) int { return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1])) }

// add enters a file that the newest backup's list names; stored says that a part of that backup holds something of it, and
// whole that it is all.
func (t *table) add(path string, stored, whole bool) {
	e := entry{hash: t.hash(path), whole: unknown}
	if whole {
		e.whole = 0
	}
	if stored {
		e.due = 1
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

// sort makes find work once all files are entered. A file that was entered twice is an error.
func (t *table) sort() error {
	sort.Sort(byHash{t})
	for i := 1; i < t.len; i++ {
		if t.of(i).hash == t.of(i-1).hash {
			return errors.New("the backup's list names a file twice")
		}
	}
	return nil
}

// find returns the index of a file, or -1.
func (t *table) find(path string) int {
	h := t.hash(path)
	i := sort.Search(t.len, func(i int) bool { return compare(t.of(i).hash, h) >= 0 }) // looks at hashes only
	if i == t.len || t.of(i).hash != h {
		return -1
	}
	return i
}

// wanted reports whether backup level of the chain holds anything of a file that is asked for.
func (t *table) wanted(path string, level int) bool {
	i := t.find(path)
	return i >= 0 && int(t.of(i).whole) >= level
}

// describe takes what the list of backup level says of a file. A file that no newer backup leaves to this one does not matter.
func (t *table) describe(path string, level int, stored, whole bool) error {
	i := t.find(path)
	if i < 0 || t.of(i).whole != unknown {
		return nil
	}
	e := t.of(i)
	if int(e.named) == level {
		return fmt.Errorf("it names %s twice", path)
	}
	e.named = uint16(level)
	if whole {
		e.whole = uint16(level)
	}
	if stored {
		e.due++
	}
	return nil
}

// unlisted settles that backup level, which has no list, holds whole what is not found yet.
func (t *table) unlisted(level int) {
	for i := range t.len {
		if e := t.of(i); e.whole == unknown {
			e.whole, e.named = uint16(level), uint16(level)
			e.due++
		}
	}
}

// forsaken returns a file that backup level was to hold something of, and whose list does not name it; -1 for none.
func (t *table) forsaken(level int) int {
	for i := range t.len {
		if e := t.of(i); e.whole == unknown && int(e.named) != level {
			return i
		}
	}
	return -1
}

// A role is what a member is in the restored cluster.
type role int

const (
	nothing role = iota // newer backups have all of the file, or it is gone since
	unnamed             // the newest backup holds it, and its list does not name it
	whole
	part // an increment
)

// take says what the member path of backup level is for, and notes that it has come. A file comes once.
func (t *table) take(path string, isFile bool, level int) (i int, r role, err error) {
	i = t.find(path)
	if i < 0 {
		if level == 0 {
			return i, unnamed, nil
		}
		return i, nothing, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.of(i)
	switch {
	case int(e.whole) < level:
		return i, nothing, nil
	case int(e.last) == level+1 && isFile:
		return i, nothing, errors.New("the backup holds it twice")
	case int(e.last) == level+1:
		return i, nothing, nil
	}
	e.last = uint16(level + 1)
	e.seen++
	if int(e.whole) == level {
		return i, whole, nil
	}
	return i, part, nil
}

// missing returns the files of which something that is due has not come, at most max of them.
func (t *table) missing(max int) (found []int, all int) {
	for i := range t.len {
		if e := t.of(i); e.seen != e.due {
			if all++; len(found) < max {
				found = append(found, i)
			}
		}
	}
	return found, all
}

// at returns where the blocks of file i are kept that are still owed; 0 where the file is not made yet.
func (t *table) at(i int) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of(i).set
}

// keep notes where.
func (t *table) keep(i int, set uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of(i).set = set
}
