package walrec_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

const mib = 1 << 20

var le = binary.LittleEndian

// readAll reads the records of some WAL to the error that ends it: io.ErrUnexpectedEOF if it ends in a record.
func readAll(t require, b []byte, bound wal.LSN) ([]string, error) {
	r, err := walrec.NewReader(bytes.NewReader(b), bound)
	if err != nil {
		return nil, err
	}
	var lines []string
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) && r.Unfinished() != 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return lines, err
		}
		if rec.End <= rec.LSN || rec.LSN < r.Header().Address || rec.Prev >= rec.LSN {
			t.Errorf("record %s ends at %s and follows %s", rec.LSN, rec.End, rec.Prev)
		}
		lines = append(lines, line(rec))
	}
}

// require is what rapid.T and testing.T share here.
type require interface {
	Errorf(string, ...any)
	Fatalf(string, ...any)
	Fatal(...any)
	Helper()
}

// joinAll sums up each segment, as stored, and joins them.
func joinAll(segments [][]byte) (*walrec.Joiner, error) {
	var j walrec.Joiner
	for _, b := range segments {
		s, err := walrec.Summarize(bytes.NewReader(b), wal.SegmentSize(len(b)))
		if err != nil {
			return nil, err
		}
		if s, err = walrec.Decode(s.Encode()); err != nil {
			return nil, err
		}
		if err := j.Add(s); err != nil {
			return nil, err
		}
	}
	return &j, nil
}

// random writes segments of WAL with all that can happen, and returns them with what they change.
func random(t *rapid.T) (*writer, *blockset.Set) {
	w := newWriter(rapid.IntRange(10, 18).Draw(t, "version"), mib, wal.SegmentNo(rapid.IntRange(1, 5000).Draw(t, "segment")))
	var want blockset.Set
	relation := func() blockset.Relation {
		return blockset.Relation{Tablespace: 1663, Database: 5, Number: uint32(rapid.IntRange(1, 4).Draw(t, "relation"))}
	}
	for range rapid.IntRange(1, 60).Draw(t, "records") {
		switch rapid.IntRange(0, 13).Draw(t, "kind") {
		default:
			b := body{rm: uint8(rapid.IntRange(8, 20).Draw(t, "manager")), info: 0x10, xid: rapid.Uint32().Draw(t, "xid")}
			id := 0
			for range rapid.IntRange(0, 5).Draw(t, "blocks") {
				ref := walrec.BlockRef{
					ID: uint8(id), Rel: relation(), Fork: blockset.Fork(rapid.IntRange(0, 3).Draw(t, "fork")),
					Block: uint32(rapid.IntRange(0, 12).Draw(t, "block")), Image: rapid.Bool().Draw(t, "image"),
				}
				ref.Apply = ref.Image && rapid.Bool().Draw(t, "apply")
				b.block(w.version, ref, rapid.IntRange(0, 300).Draw(t, "data"), rapid.IntRange(1, 8192).Draw(t, "image length"))
				if ref.Fork != blockset.FSM {
					want.Add(blockset.Key{Relation: ref.Rel, Fork: ref.Fork}, ref.Block)
				}
				id += rapid.IntRange(1, 3).Draw(t, "next")
			}
			b.main = make([]byte, rapid.IntRange(0, 600).Draw(t, "main"))
			w.record(b)
		case 0: // a message, perhaps of several segments
			w.message(rapid.SampledFrom([]int{10, 300, 9000, 300_000, 900_000, 2_500_000}).Draw(t, "message"))
		case 1: // a fork is made
			rel, fork := relation(), blockset.Fork(rapid.IntRange(0, 3).Draw(t, "fork"))
			w.record(body{rm: walrec.RMStorage, info: 0x11, main: le.AppendUint32(appendRelation(nil, rel), uint32(fork))})
			if fork != blockset.FSM {
				want.Truncate(blockset.Key{Relation: rel, Fork: fork}, 0)
			}
		case 2: // a relation is truncated
			rel, limit, forks := relation(), uint32(rapid.IntRange(0, 12).Draw(t, "limit")), rapid.Uint32Range(0, 7).Draw(t, "forks")
			w.record(body{rm: walrec.RMStorage, info: 0x21, main: le.AppendUint32(appendRelation(le.AppendUint32(nil, limit), rel), forks)})
			if forks&1 != 0 {
				want.Truncate(blockset.Key{Relation: rel}, limit)
			}
			if forks&2 != 0 {
				want.Truncate(blockset.Key{Relation: rel, Fork: blockset.VM}, min(limit, 1)) // which has a page for 32672 blocks
			}
		case 3: // a transaction ends
			op := rapid.SampledFrom([]uint8{0x00, 0x20, 0x30, 0x40}).Draw(t, "operation")
			main := make([]byte, 8)
			if has := rapid.Uint32Range(0, 7).Draw(t, "has"); has != 0 {
				op |= 0x80
				main = le.AppendUint32(main, has)
				if has&1 != 0 {
					main = append(main, make([]byte, 8)...)
				}
				if has&2 != 0 {
					n := rapid.IntRange(0, 5000).Draw(t, "subtransactions")
					main = append(le.AppendUint32(main, uint32(n)), make([]byte, 4*n)...)
				}
				if has&4 != 0 {
					n := rapid.IntRange(1, 3).Draw(t, "relations")
					main = le.AppendUint32(main, uint32(n))
					for range n {
						rel := relation()
						main = appendRelation(main, rel)
						for _, fork := range []blockset.Fork{blockset.Main, blockset.VM, blockset.Init} {
							want.Truncate(blockset.Key{Relation: rel, Fork: fork}, 0)
						}
					}
				}
			}
			w.record(body{rm: walrec.RMXact, info: op, main: append(main, make([]byte, rapid.IntRange(0, 100).Draw(t, "more"))...)})
		case 4: // a database is made or dropped
			db := uint32(rapid.IntRange(100, 102).Draw(t, "database"))
			drop := uint8(0x10)
			if w.version >= 15 {
				drop = 0x20
			}
			op := rapid.Uint8Range(0, drop>>4).Draw(t, "operation") << 4
			spaces := []uint32{1663}
			main := le.AppendUint32(le.AppendUint32(nil, db), 1663)
			if op == drop && w.version >= 13 {
				spaces = []uint32{1663, 5000}
				main = le.AppendUint32(le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, db), 2), 1663), 5000)
			}
			w.record(body{rm: walrec.RMDatabase, info: op | 1, main: main})
			for _, space := range spaces {
				want.Truncate(blockset.Key{Relation: blockset.Relation{Tablespace: space, Database: db}}, 0)
			}
		case 5:
			if rapid.Bool().Draw(t, "at the very end of a segment") {
				for uint64(w.lsn()+16)%uint64(w.size) != 0 {
					w.fill(16)
				}
			}
			w.switchWAL()
		case 6: // a crash in the middle of a record
			b := body{rm: 10, main: make([]byte, 3_000_000)}
			b.block(w.version, walrec.BlockRef{Rel: relation(), Block: 1}, 0, 0)
			w.abandon(b, rapid.SampledFrom([]int{0, 1, 3, 130, 260}).Draw(t, "pages"))
		}
	}
	w.switchWAL()
	return w, &want
}

// What was written is what is read, in one go or summed up segment by segment.
func TestRandomWAL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, want := random(t)
		got, err := readAll(t, w.wal, 0)
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !slices.Equal(got, w.lines) {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(w.lines, "\n"))
		}
		j, err := joinAll(w.segments())
		if err != nil {
			t.Fatal(err)
		}
		if d := same(&j.Blocks, want); d != "" {
			t.Error(d)
		}
		if j.Minimal || j.Unfinished() != 0 {
			t.Errorf("minimal %v, unfinished %s", j.Minimal, j.Unfinished())
		}
	})
}

// Up to any record's begin the WAL is what it is when it ends there, whatever follows.
func TestBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, _ := random(t)
		n := rapid.IntRange(0, len(w.begins)-1).Draw(t, "record")
		bound := w.begins[n]
		junk := w.wal[bound-w.start:]
		for i := range junk {
			junk[i] = byte(i) | 1
		}
		got, err := readAll(t, w.wal, bound)
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !slices.Equal(got, w.lines[:n]) {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(w.lines[:n], "\n"))
		}
		var want blockset.Set
		effects(t, w.wal, bound, &want)
		var j walrec.Joiner
		for at, b := range w.segments() {
			start := w.start + wal.LSN(at)*wal.LSN(w.size)
			if start >= bound {
				break
			}
			s, err := walrec.SummarizeTo(bytes.NewReader(b), w.size, min(bound, start+wal.LSN(w.size)))
			if err == nil {
				err = j.Add(s)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if d := same(&j.Blocks, &want); d != "" || j.Unfinished() != 0 {
			t.Errorf("%s, unfinished %s", d, j.Unfinished())
		}
	})
}

// effects adds up what the records of some WAL change.
func effects(t require, b []byte, bound wal.LSN, to *blockset.Set) {
	t.Helper()
	r, err := walrec.NewReader(bytes.NewReader(b), bound)
	if err != nil {
		t.Fatal(err)
	}
	for {
		rec, err := r.Next()
		if err != nil {
			return
		}
		if err := walrec.Effects(rec, r.Version(), to); err != nil {
			t.Fatal(err)
		}
	}
}

// small is a few pages of WAL: records of every shape in and across pages, one of which was given up.
func small(version int) *writer {
	w := newWriter(version, mib, 7)
	ref := walrec.BlockRef{Rel: blockset.Relation{Tablespace: 1663, Database: 5, Number: 16384}, Block: 3, Image: true, Apply: true}
	for i := range 40 {
		b := body{rm: 10, xid: 700, main: make([]byte, 3+i)}
		b.block(version, ref, i, 100+i)
		w.record(b)
	}
	b := body{rm: walrec.RMXact, info: 0x80, main: append(make([]byte, 8), 4, 0, 0, 0, 1, 0, 0, 0)}
	b.main = appendRelation(b.main, blockset.Relation{Tablespace: 1663, Database: 5, Number: 16999})
	w.record(b)
	w.fill(16)
	w.record(b)
	w.message(9000)
	w.fill(8)
	w.abandon(b, 0)
	w.message(300)
	return w
}

// However a byte is changed, the records that are read are those that were written, up to where an error is. Only what nobody looks
// at may change unnoticed.
func TestEveryDamageIsFound(t *testing.T) {
	for _, version := range []int{10, 18} {
		w := small(version)
		w.fill(0)
		var want []walrec.Record
		if _, err := follow(w.wal, func(rec *walrec.Record) bool {
			c := *rec
			c.Blocks, c.Main = slices.Clone(c.Blocks), slices.Clone(c.Main)
			want = append(want, c)
			return true
		}); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if len(want) != len(w.lines) {
			t.Fatalf("%d records, want %d", len(want), len(w.lines))
		}
		unnoticed := 0
		for at := range w.wal {
			for _, flip := range [...][]byte{{1 << (at / 3 % 8)}, nil, {0xFF}}[at%3] {
				w.wal[at] ^= flip
				n := 0
				unfinished, err := follow(w.wal, func(rec *walrec.Record) bool {
					n++
					return n <= len(want) && equal(rec, &want[n-1])
				})
				w.wal[at] ^= flip
				switch {
				case errors.Is(err, errOther) && at >= 8 && at < 16:
					// Where the segment says that it begins, which its name says too.
				case errors.Is(err, errOther):
					t.Fatalf("version %d, byte %d ^ %02X: another record than %s is read", version, at, flip, want[n-1].LSN)
				case errors.Is(err, io.EOF) && !unfinished && n < len(want):
					t.Fatalf("version %d, byte %d ^ %02X: the WAL seems to end after %d of %d records", version, at, flip, n, len(want))
				case errors.Is(err, io.EOF) && !unfinished:
					unnoticed++
				}
			}
		}
		// Paddings; what pages say of the rest of a record when they have none; flag 4; which system the first page says it is of;
		// the record that was given up.
		if unnoticed > len(w.wal)/100 {
			t.Errorf("version %d: %d of %d changes went unnoticed", version, unnoticed, len(w.wal)*2/3)
		}
	}
}

var errOther = errors.New("another record")

// follow reads records until visit says no, which is errOther, or another error.
func follow(b []byte, visit func(rec *walrec.Record) bool) (unfinished bool, err error) {
	r, err := walrec.NewReader(bytes.NewReader(b), 0)
	if err != nil {
		return false, err
	}
	for {
		rec, err := r.Next()
		if err != nil {
			return r.Unfinished() != 0, err
		}
		if !visit(rec) {
			return false, errOther
		}
	}
}

func equal(a, b *walrec.Record) bool {
	return a.LSN == b.LSN && a.End == b.End && a.Prev == b.Prev && a.Length == b.Length && a.XID == b.XID && a.RM == b.RM &&
		a.Info == b.Info && slices.Equal(a.Blocks, b.Blocks) && bytes.Equal(a.Main, b.Main)
}

// A segment that is short, or whose rest was never written, is none.
func TestUnfinished(t *testing.T) {
	w := small(17)
	w.begin()
	lsn := w.lsn()
	zeros := append(slices.Clone(w.wal), make([]byte, mib-len(w.wal))...)
	old := newWriter(17, mib, 3)
	for len(old.wal) < mib {
		old.message(3000)
	}
	w.fill(0)
	recycled := append(slices.Clone(w.wal), old.wal[len(w.wal):mib]...)
	for what, b := range map[string][]byte{"zeros": zeros, "what the segment was before": recycled} {
		if _, err := walrec.Summarize(bytes.NewReader(b), mib); !errors.Is(err, walrec.ErrEnd) {
			t.Errorf("%s from %s on: %v", what, lsn, err)
		}
		if _, err := readAll(t, b, 0); !errors.Is(err, walrec.ErrEnd) {
			t.Errorf("%s from %s on: %v", what, lsn, err)
		}
	}
	whole := newWriter(17, mib, 3)
	whole.message(10)
	whole.switchWAL()
	for _, n := range []int{0, 10, 40, 100, 8192, 100_000, mib - 8192, mib - 1} {
		if _, err := walrec.Summarize(bytes.NewReader(whole.wal[:n]), mib); err == nil {
			t.Errorf("%d bytes are a segment", n)
		}
		if _, err := walrec.SummarizeTo(bytes.NewReader(whole.wal[:n]), mib, whole.start+mib); err == nil {
			t.Errorf("%d bytes are a segment up to its end", n)
		}
	}
	if _, err := walrec.Summarize(bytes.NewReader(whole.wal), 16*mib); err == nil {
		t.Error("segment of another size")
	}
	w = newWriter(17, mib, 3)
	for len(w.wal) < 5*pageLen {
		w.message(3000)
	}
	for n := range 4 {
		if _, err := walrec.SummarizeTo(bytes.NewReader(w.wal[:n*pageLen]), mib, w.begins[len(w.begins)-1]); err == nil {
			t.Errorf("%d of 5 pages are enough", n)
		}
	}
	for _, end := range []wal.LSN{0, 1, whole.start, whole.start + mib + 8} {
		if _, err := walrec.SummarizeTo(bytes.NewReader(whole.wal), mib, end); err == nil {
			t.Errorf("WAL from %s to %s", whole.start, end)
		}
	}
}

// What summaries of segments say of records that span them must fit, and so must the segments.
func TestJoinRefuses(t *testing.T) {
	w := newWriter(16, mib, 7)
	block := func() {
		b := body{rm: 10, main: make([]byte, 100)}
		b.block(16, walrec.BlockRef{Rel: blockset.Relation{Tablespace: 1663, Database: 5, Number: 16384}, Block: 3}, 100, 0)
		w.record(b)
	}
	for len(w.wal) < 3*mib {
		block()
		w.message(3000)
	}
	w.message(2_500_000) // which all of segment 4 is within
	block()
	w.fill(16)
	for uint64(w.lsn()+16)%mib != 0 {
		w.message(3000)
		w.fill(16)
	}
	w.switchWAL() // begins in one segment and ends in the next
	block()
	w.switchWAL()
	sum := func() []*walrec.Summary {
		var all []*walrec.Summary
		for _, b := range w.segments() {
			s, err := walrec.Summarize(bytes.NewReader(b), mib)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		return all
	}
	good := sum()
	if len(good) != 8 || !good[4].All() || good[3].All() || good[0].Head.Length == 0 || !good[6].Switch || good[6].First != 0 {
		t.Fatal("not the segments that are wanted")
	}
	try := func(all []*walrec.Summary) error {
		var j walrec.Joiner
		for _, s := range all {
			if err := j.Add(s); err != nil {
				return err
			}
		}
		return nil
	}
	for from := range good {
		for to := from; to <= len(good); to++ {
			// What begins before the first of them is of no interest, unless it may be a switch.
			if err := try(good[from:to]); (err != nil) != (from == 6 && to > from) {
				t.Errorf("%d to %d: %v", from, to, err)
			}
		}
	}
	for what, spoil := range map[string]func(s []*walrec.Summary) []*walrec.Summary{
		"a gap":               func(s []*walrec.Summary) []*walrec.Summary { return slices.Delete(s, 1, 2) },
		"another order":       func(s []*walrec.Summary) []*walrec.Summary { s[1], s[2] = s[2], s[1]; return s },
		"the same again":      func(s []*walrec.Summary) []*walrec.Summary { return slices.Insert(s, 1, s[0]) },
		"another system":      func(s []*walrec.Summary) []*walrec.Summary { s[1].SystemIdentifier++; return s },
		"another version":     func(s []*walrec.Summary) []*walrec.Summary { s[1].Version++; return s },
		"an earlier timeline": func(s []*walrec.Summary) []*walrec.Summary { s[1].FirstTimeline--; return s },
		"no head":             func(s []*walrec.Summary) []*walrec.Summary { s[0].Head, s[0].HeadLSN = walrec.Fragment{}, 0; return s },
		"another head":        func(s []*walrec.Summary) []*walrec.Summary { s[0].Head.Bytes[30] ^= 1; return s },
		"another long head":   func(s []*walrec.Summary) []*walrec.Summary { s[3].Head.Bytes[30] ^= 1; return s },
		"a short head":        func(s []*walrec.Summary) []*walrec.Summary { s[0].Head.Length--; return s },
		"another tail":        func(s []*walrec.Summary) []*walrec.Summary { s[1].Tail.Bytes[0] ^= 1; return s },
		"a tail's rest":       func(s []*walrec.Summary) []*walrec.Summary { s[4].Tail.Rest ^= 1; return s },
		"another middle":      func(s []*walrec.Summary) []*walrec.Summary { s[4].Tail.Bytes[0] ^= 1; return s },
		"no tail":             func(s []*walrec.Summary) []*walrec.Summary { s[1].Missing, s[1].Tail = 0, walrec.Fragment{}; return s },
		"a long tail":         func(s []*walrec.Summary) []*walrec.Summary { s[1].Missing++; return s },
		"another overwritten": func(s []*walrec.Summary) []*walrec.Summary { s[1].Overwritten, s[1].Missing = s[0].Last, 0; return s },
		"another predecessor": func(s []*walrec.Summary) []*walrec.Summary { s[1].Prev -= 8; return s },
		"a last that is none": func(s []*walrec.Summary) []*walrec.Summary { s[0].Last -= 8; return s },
		"no switch": func(s []*walrec.Summary) []*walrec.Summary {
			s[1].Switch, s[1].First = true, 0
			return s
		},
	} {
		if err := try(spoil(sum())); err == nil {
			t.Errorf("%s is accepted", what)
		} else if !strings.Contains(err.Error(), "WAL segment 0000000300000000") {
			t.Errorf("%s: %v names no segment", what, err)
		}
	}
}

// Records that say that wal_level is minimal are found in every version, within a segment and across two.
func TestMinimal(t *testing.T) {
	level := func(at int, level uint32) []byte {
		return append(le.AppendUint32(make([]byte, at), level), make([]byte, 60)...)
	}
	for version := range magics {
		at := 16
		if version >= 12 {
			at = 20
		}
		bodies := map[string]body{"parameters": {info: 0x60, main: level(at, 0)}}
		other := map[string]body{"parameters": {info: 0x60, main: level(at, 1)}, "a checkpoint": {info: 0x10, main: level(20, 0)}}
		if version >= 17 {
			bodies["shutdown"] = body{info: 0x00, main: level(20, 0)}
			bodies["redo"] = body{info: 0xE0, main: level(0, 0)}
			bodies["recovery"] = body{info: 0x90, main: level(16, 0)}
			other["shutdown"] = body{info: 0x00, main: level(20, 2)}
			other["redo"] = body{info: 0xE0, main: level(0, 1)}
			other["recovery"] = body{info: 0x90, main: level(16, 1)}
		} else {
			other["shutdown"] = body{info: 0x00, main: level(20, 0)}
			other["recovery"] = body{info: 0x90, main: level(16, 0)}
		}
		for _, spans := range []bool{false, true} {
			for want, bodies := range map[bool]map[string]body{true: bodies, false: other} {
				for what, b := range bodies {
					w := newWriter(version, mib, 7)
					w.message(10)
					for spans && uint64(w.lsn()+16)%mib != 0 {
						w.fill(16)
					}
					w.record(b)
					w.switchWAL()
					j, err := joinAll(w.segments())
					if err != nil {
						t.Fatal(err)
					}
					if j.Minimal != want {
						t.Errorf("version %d, %s, across segments %v: minimal is %v", version, what, spans, j.Minimal)
					}
				}
			}
		}
	}
}

// A record whose effects are not known is no reason to think that it has none.
func TestUnknownEffects(t *testing.T) {
	for what, b := range map[string]body{
		"an extension's":           {rm: 200, info: 0x01},
		"a resource manager's":     {rm: 10, info: 0x01},
		"storage":                  {rm: walrec.RMStorage, info: 0x30, main: make([]byte, 20)},
		"a database":               {rm: walrec.RMDatabase, info: 0x30, main: make([]byte, 20)},
		"a database, cut short":    {rm: walrec.RMDatabase, info: 0x20, main: []byte{1, 0, 0, 0, 9, 0, 0, 0}},
		"a database of nowhere":    {rm: walrec.RMDatabase, info: 0x00, main: make([]byte, 16)},
		"a fork of nowhere":        {rm: walrec.RMStorage, info: 0x10, main: make([]byte, 16)},
		"an unknown fork":          {rm: walrec.RMStorage, info: 0x10, main: le.AppendUint32(appendRelation(nil, blockset.Relation{Tablespace: 1}), 4)},
		"a fork, cut short":        {rm: walrec.RMStorage, info: 0x10, main: make([]byte, 12)},
		"a truncation, cut short":  {rm: walrec.RMStorage, info: 0x20, main: make([]byte, 16)},
		"a commit, cut short":      {rm: walrec.RMXact, info: 0x80, main: make([]byte, 11)},
		"relations, cut short":     {rm: walrec.RMXact, info: 0x80, main: append(make([]byte, 8), 4, 0, 0, 0, 2, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)},
		"too many relations":       {rm: walrec.RMXact, info: 0x80, main: append(make([]byte, 8), 4, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF)},
		"too many transactions":    {rm: walrec.RMXact, info: 0x80, main: append(make([]byte, 8), 6, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF)},
		"a transaction, cut short": {rm: walrec.RMXact, info: 0x80, main: append(make([]byte, 8), 5, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF)},
		"parameters, cut short":    {rm: walrec.RMXLOG, info: 0x60, main: make([]byte, 20)},
	} {
		w := newWriter(17, mib, 7)
		lsn := w.record(b)
		w.switchWAL()
		if _, err := joinAll(w.segments()); err == nil || !strings.Contains(err.Error(), lsn.String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Records with a CRC that is right can be wrong all the same.
func TestImpossibleRecords(t *testing.T) {
	rel := appendRelation(nil, blockset.Relation{Tablespace: 1663, Database: 5, Number: 16384})
	header := func(id, flags uint8, data uint16, more ...byte) []byte {
		return append(le.AppendUint16([]byte{id, flags}, data), more...)
	}
	zeros := make([]byte, 4)
	for what, b := range map[string]body{
		"a resource manager that is none": {rm: 22},
		"an unknown header":               {rm: 10, headers: header(33, 0, 0, append(rel, zeros...)...)},
		"blocks in disorder": {rm: 10, headers: append(header(1, 0, 0, append(slices.Clone(rel), zeros...)...),
			header(1, 0, 0, append(slices.Clone(rel), zeros...)...)...)},
		"data without the flag":    {rm: 10, headers: header(0, 0, 5, append(slices.Clone(rel), zeros...)...), data: make([]byte, 5)},
		"the flag without data":    {rm: 10, headers: header(0, 0x20, 0, append(slices.Clone(rel), zeros...)...)},
		"a fork that is none":      {rm: 10, headers: header(0, 4, 0, append(slices.Clone(rel), zeros...)...)},
		"the relation before none": {rm: 10, headers: header(0, 0x80, 0, zeros...)},
		"a relation of nowhere":    {rm: 10, headers: header(0, 0, 0, make([]byte, 16)...)},
		"no block":                 {rm: 10, headers: header(0, 0, 0, append(slices.Clone(rel), 0xFF, 0xFF, 0xFF, 0xFF)...)},
		"too much data":            {rm: 10, headers: header(0, 0x20, 6, append(slices.Clone(rel), zeros...)...), data: make([]byte, 5)},
		"too little data":          {rm: 10, headers: header(0, 0x20, 4, append(slices.Clone(rel), zeros...)...), data: make([]byte, 5)},
		"more main data":           {rm: 10, headers: []byte{255, 9, 1}},
		"much more main data":      {rm: 10, headers: []byte{254, 9, 0, 0, 0, 1}},
		"a short header":           {rm: 10, headers: []byte{254, 9, 0, 0}},
		"a shorter header":         {rm: 10, headers: []byte{255}},
		"a short origin":           {rm: 10, headers: []byte{253, 1}},
		"a short transaction":      {rm: 10, headers: []byte{252, 1, 0, 0}},
		"a short block":            {rm: 10, headers: []byte{0, 0, 0}},
		"a short image":            {rm: 10, headers: header(0, 0x10, 0, 1, 2, 3)},
		"a short relation":         {rm: 10, headers: header(0, 0, 0, rel[:11]...)},
		"a short number":           {rm: 10, headers: header(0, 0, 0, append(slices.Clone(rel), 1, 2, 3)...)},
	} {
		w := newWriter(17, mib, 7)
		w.message(10)
		lsn := w.record(b)
		w.pad()
		if _, err := readAll(t, w.wal, 0); errors.Is(err, walrec.ErrEnd) || !strings.Contains(err.Error(), lsn.String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// And these are as they should be.
	for what, b := range map[string]body{
		"an extension's":     {rm: 128},
		"nothing":            {rm: 10},
		"an origin":          {rm: 10, headers: []byte{253, 1, 2}},
		"an outermost":       {rm: 10, headers: []byte{252, 1, 2, 3, 4}},
		"no more main data":  {rm: 10, headers: []byte{255, 0}},
		"a block's own data": {rm: 10, headers: header(32, 0x20, 5, append(slices.Clone(rel), zeros...)...), data: make([]byte, 5)},
	} {
		w := newWriter(17, mib, 7)
		w.record(b)
		w.message(10)
		w.begin()
		w.pad()
		if got, err := readAll(t, w.wal, 0); !errors.Is(err, walrec.ErrEnd) || len(got) != 2 {
			t.Errorf("%s: %v", what, err)
		}
	}
	w := newWriter(17, mib, 7)
	w.record(body{rm: 10, headers: []byte{253, 1, 2, 252, 1, 2, 3, 4}})
	r, err := walrec.NewReader(bytes.NewReader(w.segments()[0]), 0)
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := r.Next(); err != nil || rec.Origin != 0x0201 || rec.TopXID != 0x04030201 {
		t.Errorf("%+v, %v", rec, err)
	}
}

// Pages and records that are each as they should be, and do not fit together.
func TestImpossibleSequences(t *testing.T) {
	lost := func(lsn wal.LSN) body {
		return body{rm: walrec.RMXLOG, info: 0xD0, main: le.AppendUint64(nil, uint64(lsn))}
	}
	for what, write := range map[string]func(w *writer){
		"another predecessor": func(w *writer) {
			w.prev -= 8
			w.message(10)
		},
		"another predecessor of a long record": func(w *writer) {
			w.prev -= 8
			w.message(10000)
		},
		"another predecessor of a record whose header is split": func(w *writer) {
			w.fill(16)
			w.prev -= 8
			w.message(10)
		},
		"an earlier timeline": func(w *writer) {
			w.timeline--
			w.fill(0)
			w.message(10)
		},
		"more of the rest": func(w *writer) {
			w.message(10000)
			le.PutUint32(w.wal[pageLen+16:], le.Uint32(w.wal[pageLen+16:])+1)
		},
		"no rest": func(w *writer) {
			w.message(10000)
			w.wal[pageLen+2] &^= 1
		},
		"a rest of nothing": func(w *writer) {
			w.fill(0)
			w.page(1, 100)
			w.message(10)
		},
		"nothing is overwritten": func(w *writer) {
			w.fill(0)
			at := w.lsn() - 8
			w.page(8, 0)
			w.record(lost(at))
		},
		"another record is overwritten": func(w *writer) {
			w.fill(8)
			at := w.lsn()
			w.raw(w.encode(body{rm: 10, main: make([]byte, 100)}), 0)
			w.page(8, 0)
			w.record(lost(at - 8))
		},
		"it does not say what is overwritten": func(w *writer) {
			w.fill(8)
			w.raw(w.encode(body{rm: 10, main: make([]byte, 100)}), 0)
			w.page(8, 0)
			w.message(10)
		},
		"unknown flags": func(w *writer) {
			w.fill(0)
			w.page(0x10, 0)
			w.message(10)
		},
		"a long header": func(w *writer) {
			w.fill(0)
			w.page(2, 0)
			w.message(10)
		},
		"a short header": func(w *writer) {
			for len(w.wal) < mib {
				w.fill(0)
				w.message(8000)
			}
			w.wal[mib+2] &^= 2
		},
		"another system": func(w *writer) {
			for len(w.wal) < mib {
				w.fill(0)
				w.message(8000)
			}
			w.wal[mib+24]++
		},
		"another page": func(w *writer) {
			w.fill(0)
			w.message(10)
			w.wal[pageLen+10]++
		},
		"another version": func(w *writer) {
			w.fill(0)
			w.version++
			w.message(10)
		},
		"something after zeros": func(w *writer) {
			w.fill(4096)
			w.wal = append(w.wal, make([]byte, 4095)...)
			w.wal = append(w.wal, 1)
		},
		"a length of 23": func(w *writer) {
			at := len(w.wal)
			w.message(10)
			w.wal[at] = 23
		},
		"a length of 23 at the end of a page": func(w *writer) {
			w.fill(16)
			at := len(w.wal)
			w.message(10)
			w.wal[at] = 23
		},
		"a length beyond all measure": func(w *writer) {
			at := len(w.wal)
			w.message(10)
			w.wal[at+3] = 0x41
		},
	} {
		w := newWriter(17, mib, 7)
		w.message(10)
		w.message(10)
		write(w)
		w.pad()
		got, err := readAll(t, w.wal, 0)
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, walrec.ErrEnd) || len(got) < 2 {
			t.Errorf("%s: %d records, %v", what, len(got), err)
		}
	}
}

// A summary comes out of its stored form as it went in, and no other form is taken for one.
func TestStoredForm(t *testing.T) {
	w := small(18)
	w.message(2 * mib)
	w.switchWAL()
	for _, b := range w.segments() {
		s, err := walrec.Summarize(bytes.NewReader(b), mib)
		if err != nil {
			t.Fatal(err)
		}
		s.Minimal = true
		form := s.Encode()
		got, err := walrec.Decode(form)
		if err != nil {
			t.Fatal(err)
		}
		if d := same(&got.Blocks, &s.Blocks); d != "" {
			t.Error(d)
		}
		got.Blocks, s.Blocks = blockset.Set{}, blockset.Set{}
		if g, w := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", *s); g != w {
			t.Errorf("got %.500s, want %.500s", g, w)
		}
		for n := 0; n < len(form); n += 1 + n/20 {
			if _, err := walrec.Decode(form[:n]); err == nil {
				t.Errorf("the first %d of %d bytes are a summary", n, len(form))
			}
			form[n] ^= 0x10
			if _, err := walrec.Decode(form); err == nil {
				t.Errorf("it is a summary with another byte %d", n)
			}
			form[n] ^= 0x10
		}
		if _, err := walrec.Decode(append(form, 0)); err == nil {
			t.Error("it is a summary with one byte more")
		}
	}
}

// Of very long records not all is kept, and yet all is checked.
func TestLongRecords(t *testing.T) {
	const size = 32 * mib
	w := newWriter(17, size, 7)
	w.message(20 * mib)                     // in one segment
	w.message(20 * mib)                     // in two
	w.message(80 * mib)                     // in four, of which two are within it
	commit := func(relations uint32) body { // as of a schema with very many tables
		main := append(make([]byte, 8), 4, 0, 0, 0)
		main = le.AppendUint32(main, relations)
		for i := range relations {
			main = appendRelation(main, blockset.Relation{Tablespace: 1663, Database: 5, Number: 20000 + i})
		}
		return body{rm: walrec.RMXact, info: 0x81, main: main}
	}
	w.record(commit(50000))
	w.switchWAL()
	var lengths []uint32
	all, err := readAll(t, w.wal, 0)
	if !errors.Is(err, io.EOF) || !slices.Equal(all, w.lines) {
		t.Fatalf("%d records, %v, want %d", len(all), err, len(w.lines))
	}
	j, err := joinAll(w.segments())
	if err != nil {
		t.Fatal(err)
	}
	if n := j.Blocks.Len(); n != 3*50000 {
		t.Errorf("%d forks, want 3 of each of 50000 relations", n)
	}
	for _, b := range w.segments() {
		s, err := walrec.Summarize(bytes.NewReader(b), size)
		if err != nil {
			t.Fatal(err)
		}
		lengths = append(lengths, s.Tail.Length, s.Head.Length)
		if n := len(s.Encode()); n > 2*walrec.MaxFragment+8*mib {
			t.Errorf("a summary of %d bytes", n)
		}
	}
	if max := slices.Max(lengths); max < 30*mib {
		t.Errorf("fragments of at most %d bytes", max)
	}
	for _, at := range []int{3*mib + 999, 25*mib + 999, 40*mib + 77777, 50*mib + 999, 90*mib + 999, 118*mib + 999} {
		w.wal[at] ^= 4
		if _, err := readAll(t, w.wal, 0); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "CRC-32C") {
			t.Errorf("byte %d: %v", at, err)
		}
		if _, err := joinAll(w.segments()); err == nil || !strings.Contains(err.Error(), "CRC-32C") {
			t.Errorf("byte %d: %v", at, err)
		}
		w.wal[at] ^= 4
	}

	// What a transaction dropped cannot be told from a part of its record.
	w = newWriter(17, size, 7)
	w.message(30 * mib)
	w.record(commit(300_000))
	w.switchWAL()
	if _, err := joinAll(w.segments()); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("3.6 MB of dropped relations, of which 1 MiB was kept: %v", err)
	}
}

// What contradicts itself is no summary, even where its checksum is right.
func TestStoredNonsense(t *testing.T) {
	w := small(18)
	w.message(mib)
	w.message(2 * mib)
	w.switchWAL()
	all := w.segments() // the second one has the end of a record and the beginning of another, the third is within one
	for what, spoil := range map[string]func(s, within *walrec.Summary) *walrec.Summary{
		"a version to come":        func(s, _ *walrec.Summary) *walrec.Summary { s.Version = 19; return s },
		"a version long gone":      func(s, _ *walrec.Summary) *walrec.Summary { s.Version = 9; return s },
		"a segment of 3 bytes":     func(s, _ *walrec.Summary) *walrec.Summary { s.SegmentSize = 3; return s },
		"a start within a segment": func(s, _ *walrec.Summary) *walrec.Summary { s.Start += 8; return s },
		"an end before its start":  func(s, _ *walrec.Summary) *walrec.Summary { s.End = s.Start; return s },
		"an end in the next one":   func(s, _ *walrec.Summary) *walrec.Summary { s.End += 8; return s },
		"a timeline before itself": func(s, _ *walrec.Summary) *walrec.Summary { s.FirstTimeline = s.Timeline + 1; return s },
		"a record before it":       func(s, _ *walrec.Summary) *walrec.Summary { s.First = s.Start - 8; return s },
		"a record after it":        func(s, _ *walrec.Summary) *walrec.Summary { s.Last = s.End; return s },
		"a first without a last":   func(s, _ *walrec.Summary) *walrec.Summary { s.Last = 0; return s },
		"a last before the first":  func(s, _ *walrec.Summary) *walrec.Summary { s.Last = s.First - 8; return s },
		"a head before the last":   func(s, _ *walrec.Summary) *walrec.Summary { s.HeadLSN = s.Last; return s },
		"a head without a place":   func(s, _ *walrec.Summary) *walrec.Summary { s.HeadLSN = 0; return s },
		"a head of 7 bytes": func(s, _ *walrec.Summary) *walrec.Summary {
			s.Head.Bytes, s.Head.Length = s.Head.Bytes[:7], 7
			return s
		},
		"the rest of a whole head":   func(s, _ *walrec.Summary) *walrec.Summary { s.Head.Rest = 1; return s },
		"the rest of a whole tail":   func(s, _ *walrec.Summary) *walrec.Summary { s.Tail.Rest = 1; return s },
		"more tail than missing":     func(s, _ *walrec.Summary) *walrec.Summary { s.Missing--; return s },
		"records beside all":         func(s, _ *walrec.Summary) *walrec.Summary { s.Missing++; return s },
		"overwritten, and a tail":    func(s, _ *walrec.Summary) *walrec.Summary { s.Overwritten = s.Start - 8; return s },
		"a predecessor after it":     func(s, _ *walrec.Summary) *walrec.Summary { s.Prev = s.First; return s },
		"all, and a record":          func(_, s *walrec.Summary) *walrec.Summary { s.First, s.Last = s.Start+40, s.Start+40; return s },
		"more bytes than there are":  func(_, s *walrec.Summary) *walrec.Summary { s.Tail.Length = mib + 1; return s },
		"fewer bytes than are there": func(s, _ *walrec.Summary) *walrec.Summary { s.Tail.Bytes = append(s.Tail.Bytes, 1); return s },
	} {
		second, err := walrec.Summarize(bytes.NewReader(all[1]), mib)
		if err != nil {
			t.Fatal(err)
		}
		third, err := walrec.Summarize(bytes.NewReader(all[2]), mib)
		if err != nil {
			t.Fatal(err)
		}
		if second.First != 0 || second.Head.Length == 0 || !third.All() {
			t.Fatal("not the segments that are wanted")
		}
		second.First, second.Last, second.Prev = second.Start+800, second.Start+816, second.Start-8
		if _, err := walrec.Decode(second.Encode()); err != nil {
			t.Fatal(err)
		}
		if s, err := walrec.Decode(spoil(second, third).Encode()); err == nil {
			t.Errorf("%s: accepted %+v", what, s)
		}
	}
}

var update = flag.Bool("update", false, "rewrite testdata with the stored form of today")

// Summaries that are in archives stay readable, and new ones are stored as they are.
func TestStoredFormStays(t *testing.T) {
	const golden = "testdata/summary"
	w := small(17)
	w.record(body{rm: walrec.RMStorage, info: 0x21, main: le.AppendUint32(appendRelation([]byte{7, 0, 0, 0}, blockset.Relation{Tablespace: 1, Database: 2, Number: 3}), 1)})
	w.message(mib)
	s, err := walrec.Summarize(bytes.NewReader(w.wal), mib)
	if err != nil {
		t.Fatal(err)
	}
	s.Head.Bytes, s.Head.Length = s.Head.Bytes[:100], 100 // a small one
	s.Tail, s.Missing = walrec.Fragment{Bytes: []byte("tail"), Length: 4}, 4
	if *update {
		if err := os.WriteFile(golden, s.Encode(), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Encode(); !bytes.Equal(got, want) {
		t.Errorf("got\n%x\nwant\n%x", got, want)
	}
	if _, err := walrec.Decode(want); err != nil {
		t.Error(err)
	}
}
