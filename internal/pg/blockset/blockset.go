// Package blockset holds sets of blocks of relations: those that a stretch of WAL has changed.
//
// Beside the blocks of a fork it keeps what PostgreSQL calls the limit block (src/common/blkreftable.c): at some moment the fork
// had no block from there on, because it was made, truncated or dropped. Whatever an older backup has of those blocks is worth nothing.
package blockset

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/RoaringBitmap/roaring/v2"
)

// Relation names the files of a relation (RelFileLocator). Number is no OID of pg_class: TRUNCATE, VACUUM FULL and their like change it.
// Number 0 stands for the whole of a database in one tablespace.
type Relation struct {
	Tablespace uint32 // OID; 1663 is pg_default, 1664 pg_global
	Database   uint32 // OID; 0 in pg_global
	Number     uint32 // relfilenode
}

// String prints r as tablespace/database/number.
func (r Relation) String() string { return fmt.Sprintf("%d/%d/%d", r.Tablespace, r.Database, r.Number) }

func (r Relation) compare(o Relation) int {
	return cmp.Or(cmp.Compare(r.Tablespace, o.Tablespace), cmp.Compare(r.Database, o.Database), cmp.Compare(r.Number, o.Number))
}

// Fork is one of the files that a relation is kept in (ForkNumber).
type Fork uint8

// The forks there are.
const (
	Main Fork = iota
	FSM       // free space map
	VM        // visibility map
	Init      // what an unlogged relation is reset to
)

// String returns the fork's name as in the names of files, "main" for the main fork.
func (f Fork) String() string {
	switch f {
	case Main:
		return "main"
	case FSM:
		return "fsm"
	case VM:
		return "vm"
	case Init:
		return "init"
	}
	return fmt.Sprintf("fork %d", uint8(f))
}

// Key names one fork of a relation.
type Key struct {
	Relation
	Fork Fork
}

// String prints k as tablespace/database/number and the fork.
func (k Key) String() string { return k.Relation.String() + " " + k.Fork.String() }

// Compare orders keys by tablespace, database, number and fork, as PostgreSQL's summary files do.
func (k Key) Compare(o Key) int {
	return cmp.Or(k.Relation.compare(o.Relation), cmp.Compare(k.Fork, o.Fork))
}

// NoLimit is the limit of a fork that was never made, truncated or dropped. No block has this number (InvalidBlockNumber).
const NoLimit uint32 = 0xFFFFFFFF

// Entry is what happened to a fork.
type Entry struct {
	Limit  uint32          // at some moment the fork had no block from here on; NoLimit if that is not known of any
	Blocks *roaring.Bitmap // blocks that changed, for those from Limit on since the last such moment; not to be modified
}

// Set is a set of blocks. The zero value is empty. It may be read by several goroutines while nobody changes it.
type Set struct {
	forks map[Key]*fork
}

type fork struct {
	limit  uint32
	blocks roaring.Bitmap
}

func (s *Set) at(k Key) *fork {
	f, ok := s.forks[k]
	if !ok {
		if s.forks == nil {
			s.forks = map[Key]*fork{}
		}
		f = &fork{limit: NoLimit}
		s.forks[k] = f
	}
	return f
}

// Add notes that a block of k changed. Blocks are counted through all segments of the fork, and are less than NoLimit.
func (s *Set) Add(k Key, block uint32) { s.at(k).blocks.Add(block) }

// AddMany is Add for many blocks, fastest when they are ascending.
func (s *Set) AddMany(k Key, blocks []uint32) {
	if len(blocks) > 0 {
		s.at(k).blocks.AddMany(blocks)
	}
}

// Truncate notes that k had no block from limit on, at a moment after all that was added so far: those are forgotten, and
// those added later count again. A fork keeps its lowest limit; NoLimit says nothing. (PostgreSQL's own tables forget blocks only when the limit falls.
// What they have more was cut off, and noted again if it came back.)
func (s *Set) Truncate(k Key, limit uint32) {
	if limit == NoLimit {
		return
	}
	f := s.at(k)
	f.limit = min(f.limit, limit)
	f.blocks.RemoveRange(uint64(limit), 1<<32)
}

// Merge makes s what it would be if all that made newer had happened to s, after what did. newer stays as it is, and shares nothing with s.
func (s *Set) Merge(newer *Set) {
	for k, n := range newer.forks {
		s.Truncate(k, n.limit)
		if !n.blocks.IsEmpty() {
			s.at(k).blocks.Or(&n.blocks)
		}
	}
}

// Get returns what happened to k; ok is false when nothing did, and then limit is NoLimit and blocks nil. The bitmap is not to be modified. It
// says nothing of k where Whole does.
func (s *Set) Get(k Key) (blocks *roaring.Bitmap, limit uint32, ok bool) {
	f, ok := s.forks[k]
	if !ok {
		return nil, NoLimit, false
	}
	return &f.blocks, f.limit, true
}

// Whole reports whether r's database was made or dropped in r's tablespace: then each file it has there counts as changed, whatever
// Get says, since CREATE DATABASE and ALTER DATABASE … SET TABLESPACE may copy files without a record for each block.
func (s *Set) Whole(r Relation) bool {
	_, ok := s.forks[Key{Relation: Relation{Tablespace: r.Tablespace, Database: r.Database}}]
	return ok
}

// All yields the forks to which something happened, in the order of their keys.
func (s *Set) All() iter.Seq2[Key, Entry] {
	return func(yield func(Key, Entry) bool) {
		for _, k := range slices.SortedFunc(maps.Keys(s.forks), Key.Compare) {
			f := s.forks[k]
			if !yield(k, Entry{Limit: f.limit, Blocks: &f.blocks}) {
				return
			}
		}
	}
}

// Len returns the number of forks to which something happened.
func (s *Set) Len() int { return len(s.forks) }

// Blocks returns the number of blocks in s.
func (s *Set) Blocks() uint64 {
	var n uint64
	for _, f := range s.forks {
		n += f.blocks.GetCardinality()
	}
	return n
}
