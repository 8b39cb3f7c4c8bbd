package blockset_test

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/pg/blockset"
)

// model is a set as plainly as it can be said.
type model map[blockset.Key]*modelFork

type modelFork struct {
	limit  uint32
	blocks map[uint32]bool
}

func (m model) at(k blockset.Key) *modelFork {
	if m[k] == nil {
		m[k] = &modelFork{limit: blockset.NoLimit, blocks: map[uint32]bool{}}
	}
	return m[k]
}

func (m model) truncate(k blockset.Key, limit uint32) {
	if limit == blockset.NoLimit {
		return
	}
	f := m.at(k)
	f.limit = min(f.limit, limit)
	maps.DeleteFunc(f.blocks, func(b uint32, _ bool) bool { return b >= limit })
}

// op is one thing that happens to a set: blocks are added, or where there are none the fork is cut off.
type op struct {
	key    blockset.Key
	blocks []uint32
	limit  uint32
}

func ops(t *rapid.T, name string) []op {
	block := rapid.OneOf(rapid.Uint32Range(0, 20), rapid.Uint32Range(65530, 65540), rapid.Uint32Range(blockset.NoLimit-3, blockset.NoLimit-1))
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) op {
		o := op{key: blockset.Key{
			Relation: blockset.Relation{
				Tablespace: rapid.Uint32Range(1663, 1664).Draw(t, "tablespace"),
				Database:   rapid.Uint32Range(4, 5).Draw(t, "database"),
				Number:     rapid.Uint32Range(0, 2).Draw(t, "number"),
			},
			Fork: blockset.Fork(rapid.Uint8Range(0, 3).Draw(t, "fork")),
		}}
		if rapid.Bool().Draw(t, "truncate") {
			o.limit = rapid.OneOf(block, rapid.Just(blockset.NoLimit)).Draw(t, "limit")
		} else {
			o.blocks = rapid.SliceOfN(block, 1, 5).Draw(t, "blocks")
		}
		return o
	}), 0, 60).Draw(t, name)
}

func apply(s *blockset.Set, m model, all []op) {
	for _, o := range all {
		switch len(o.blocks) {
		case 0:
			s.Truncate(o.key, o.limit)
			m.truncate(o.key, o.limit)
		case 1:
			s.Add(o.key, o.blocks[0])
		default:
			s.AddMany(o.key, o.blocks)
		}
		for _, b := range o.blocks {
			m.at(o.key).blocks[b] = true
		}
	}
}

func check(t *rapid.T, what string, s *blockset.Set, m model) {
	var blocks uint64
	var last *blockset.Key
	seen := 0
	for k, e := range s.All() {
		want, ok := m[k]
		if !ok {
			t.Fatalf("%s: %s is in the set, and nothing happened to it", what, k)
		}
		if last != nil && !inOrder(*last, k) {
			t.Errorf("%s: %s is not after %s", what, k, *last)
		}
		if sorted := slices.Sorted(maps.Keys(want.blocks)); e.Limit != want.limit || !slices.Equal(e.Blocks.ToArray(), sorted) {
			t.Errorf("%s: %s: limit %d, blocks %v, want %d, %v", what, k, e.Limit, e.Blocks.ToArray(), want.limit, sorted)
		}
		got, limit, ok := s.Get(k)
		if !ok || limit != e.Limit || !got.Equals(e.Blocks) {
			t.Errorf("%s: Get(%s) is not what All yields", what, k)
		}
		blocks += uint64(len(want.blocks))
		seen++
		last = &k
	}
	if seen != len(m) || s.Len() != len(m) || s.Blocks() != blocks {
		t.Errorf("%s: All yields %d forks, Len is %d, Blocks is %d, want %d and %d", what, seen, s.Len(), s.Blocks(), len(m), blocks)
	}
	for _, space := range []uint32{1663, 1664} {
		for _, db := range []uint32{4, 5} {
			_, want := m[blockset.Key{Relation: blockset.Relation{Tablespace: space, Database: db}}]
			if got := s.Whole(blockset.Relation{Tablespace: space, Database: db, Number: 77}); got != want {
				t.Errorf("%s: Whole in %d/%d is %v, want %v", what, space, db, got, want)
			}
		}
	}
}

func inOrder(a, b blockset.Key) bool {
	x := []uint32{a.Tablespace, a.Database, a.Number, uint32(a.Fork)}
	return slices.Compare(x, []uint32{b.Tablespace, b.Database, b.Number, uint32(b.Fork)}) < 0
}

// A set does what a plain model does, whatever happens to it; and two that are merged are as one to which both histories happened.
func TestSetIsAsItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		older, newer := ops(t, "older"), ops(t, "newer")
		var s, n blockset.Set
		both, second := model{}, model{}
		apply(&s, both, older)
		check(t, "older", &s, both)
		apply(&n, second, newer)
		check(t, "newer", &n, second)

		s.Merge(&n)
		apply(new(blockset.Set), both, newer)
		check(t, "merged", &s, both)
		check(t, "newer after the merge", &n, second)

		// What happens to the merged one afterwards is nothing to the other.
		more := ops(t, "more")
		apply(&s, both, more)
		check(t, "more", &s, both)
		check(t, "newer after all", &n, second)
	})
}

// A fork to which nothing happened is told apart from one that was cut off.
func TestGetOfNothing(t *testing.T) {
	var s blockset.Set
	k := blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5, Number: 16384}, Fork: blockset.VM}
	s.AddMany(k, nil)
	s.Truncate(k, blockset.NoLimit)
	s.Merge(&blockset.Set{})
	if blocks, limit, ok := s.Get(k); blocks != nil || limit != blockset.NoLimit || ok || s.Len() != 0 || s.Blocks() != 0 {
		t.Errorf("of an empty set: %v, %d, %v; %d forks", blocks, limit, ok, s.Len())
	}
	s.Truncate(k, 3)
	if blocks, limit, ok := s.Get(k); !ok || limit != 3 || !blocks.IsEmpty() {
		t.Errorf("of a truncated fork: %v, %d, %v", blocks, limit, ok)
	}
	if got := k.String(); got != "1663/5/16384 vm" {
		t.Errorf("it is called %q", got)
	}
}

// Iteration can end early.
func TestAllStops(t *testing.T) {
	var s blockset.Set
	for n := range uint32(3) {
		s.Add(blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5, Number: 3 - n}}, n)
	}
	for k := range s.All() {
		if k.Number != 1 {
			t.Errorf("the first is %s", k)
		}
		break
	}
}
