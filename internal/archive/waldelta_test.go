package archive_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"holdfast/internal/archive"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

const (
	mib   = wal.MinSegmentSize
	group = 16 // segments that a delta object is about
)

// A stretch is consecutive segments of a server.
type stretch struct {
	size      wal.SegmentSize
	first     wal.SegmentNo
	segments  [][]byte
	summaries []*walrec.Summary
}

func (w *stretch) name(no wal.SegmentNo) string { return w.size.Name(1, no) }
func (w *stretch) end() wal.SegmentNo           { return w.first + wal.SegmentNo(len(w.segments)) }

func (w *stretch) summary(no wal.SegmentNo) *walrec.Summary { return w.summaries[no-w.first] }

// put stores the summary of a segment as a push does.
func (w *stretch) put(t *testing.T, a *archive.Archive, no wal.SegmentNo) {
	t.Helper()
	err := a.PutSummary(t.Context(), w.name(no), w.summary(no))
	if err == nil {
		err = a.PutWALDeltas(t.Context(), w.name(no), w.size)
	}
	if err != nil {
		t.Errorf("%s: %v", w.name(no), err)
	}
}

// A writer is a server that writes WAL.
type writer struct {
	*pgtest.Cluster
	size wal.SegmentSize
}

func newWriter(t *testing.T, size wal.SegmentSize) *writer {
	t.Helper()
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{SegmentSize: size, Settings: map[string]string{
		"autovacuum": "off", "checkpoint_timeout": "1h", "max_wal_size": "8GB", "wal_keep_size": "8GB"}})
	c.Exec(t, `create table one (id int, what text)`, `create table two (id serial primary key, what text)`)
	return &writer{c, size}
}

func (w *writer) at(t *testing.T) wal.LSN {
	t.Helper()
	at, err := wal.ParseLSN(w.Value(t, `pg_current_wal_insert_lsn()`))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// until writes rows up to the last bytes before segment no.
func (w *writer) until(t *testing.T, no wal.SegmentNo, left int) {
	t.Helper()
	for end := w.size.Start(no) - wal.LSN(left); ; {
		at := w.at(t)
		if at >= end {
			return
		}
		rows := max(int(end-at)/400, 1)
		w.Exec(t, fmt.Sprintf(`insert into one select g, repeat('x', 100) from generate_series(1, %d) g`, rows),
			fmt.Sprintf(`insert into two (what) select 'y' from generate_series(1, %d) g`, min(rows, 100)))
	}
}

// message writes a record of so many bytes.
func (w *writer) message(t *testing.T, length int) {
	t.Helper()
	w.Exec(t, fmt.Sprintf(`select pg_logical_emit_message(false, 'test', repeat('m', %d))`, length))
}

// stretch returns the segments from first to before end.
func (w *writer) stretch(t *testing.T, first, end wal.SegmentNo) *stretch {
	t.Helper()
	s := &stretch{size: w.size, first: first}
	for no := first; no < end; no++ {
		b, err := os.ReadFile(filepath.Join(w.Data, "pg_wal", w.size.Name(1, no)))
		if err != nil {
			t.Fatal(err)
		}
		sum, err := walrec.Summarize(bytes.NewReader(b), w.size)
		if err != nil {
			t.Fatal(err)
		}
		s.segments, s.summaries = append(s.segments, b), append(s.summaries, sum)
	}
	return s
}

// usual is a stretch with records across the borders of its groups: one as they come, one of some hundred kilobytes, one that begins two segments before, one
// that is longer than a group, and two ends by a switch.
func usual(t *testing.T) *stretch {
	t.Helper()
	w := newWriter(t, mib)
	w.until(t, 2*group, 300<<10)
	w.message(t, 700<<10)
	w.until(t, 3*group, 1500<<10)
	w.message(t, 1800<<10)
	w.until(t, 4*group, 500<<10)
	w.message(t, (group+2)<<20)
	w.until(t, 6*group-3, 100<<10)
	w.Exec(t, `select pg_switch_wal()`)
	w.until(t, 7*group, 1<<10)
	w.Exec(t, `select pg_switch_wal()`)
	w.until(t, 7*group+4, 0)
	return w.stretch(t, group-1, 7*group+4)
}

type location struct{ space, database, number, block uint32 }

// readDelta reads the content of a delta object.
func readDelta(b []byte) (blocks map[location]bool, rest []byte, err error) {
	blocks = map[location]bool{}
	le := binary.LittleEndian
	for {
		if len(b) < 16 {
			return nil, nil, fmt.Errorf("%d bytes where a location is", len(b))
		}
		l := location{le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])}
		b = b[16:]
		if l == (location{}) {
			break
		}
		blocks[l] = true
	}
	if len(b) < 4 || uint64(le.Uint32(b)) != uint64(len(b)-4) {
		return nil, nil, fmt.Errorf("%d bytes where the rest of a record is", len(b))
	}
	return blocks, b[4:], nil
}

// delta reads the delta object of the group that begins with segment first.
func (w *stretch) delta(t *testing.T, a *archive.Archive, first wal.SegmentNo) (blocks map[location]bool, rest []byte, err error) {
	t.Helper()
	r, err := a.OpenDelta(t.Context(), w.name(first))
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return readDelta(b)
}

// stripped is the WAL from one position to another, without the headers of pages.
func (w *stretch) stripped(from, to wal.LSN) (b []byte) {
	for at := from; at < to; {
		segment := w.segments[w.size.Segment(at)-w.first]
		offset := int(at % wal.LSN(w.size))
		header := 0
		if offset == 0 {
			header = wal.HeaderLen
		} else if offset%8192 == 0 {
			header = 24
		}
		n := min(8192-offset%8192, int(to-at))
		b, at = append(b, segment[offset+header:offset+n]...), at+wal.LSN(n)
	}
	return b
}

// wanted returns what the delta object of a group must hold: the blocks of the records that end in the group, and what it has of the one that does not.
func (w *stretch) wanted(t *testing.T, first wal.SegmentNo) (blocks map[location]bool, rest []byte, unfinished wal.LSN) {
	t.Helper()
	begin, end := w.size.Start(first), w.size.Start(first+group)
	readers := make([]io.Reader, len(w.segments))
	for i, s := range w.segments {
		readers[i] = bytes.NewReader(s)
	}
	r, err := walrec.NewReader(io.MultiReader(readers...), 0)
	if err != nil {
		t.Fatal(err)
	}
	for blocks = map[location]bool{}; ; {
		rec, err := r.Next()
		switch {
		case errors.Is(err, io.EOF) && w.end() == first+group && r.Unfinished() == 0:
			return blocks, nil, 0
		case err != nil:
			t.Fatalf("the WAL ends in the group: %v", err)
		case rec.End > end && rec.LSN < end:
			return blocks, w.stripped(rec.LSN, end), rec.LSN
		case rec.End > end:
			return blocks, nil, 0
		case rec.End > begin:
			for _, b := range rec.Blocks {
				if b.Fork != blockset.FSM {
					blocks[location{b.Rel.Tablespace, b.Rel.Database, b.Rel.Number, b.Block}] = true
				}
			}
		}
	}
}

func TestDeltas(t *testing.T) {
	w := usual(t)
	for name, test := range map[string]func(*testing.T, *stretch){
		"of groups": deltasOfGroups, "with a failing store": deltaWithAFailingStore, "of a write-only host": deltaOfAWriteOnlyHost,
	} {
		t.Run(name, func(t *testing.T) { test(t, w) })
	}
}

// In whatever order the segments of several groups come, and by however many pushes at once, each group gets its object as soon as what it takes is there;
// and it holds what 16 segments change.
func deltasOfGroups(t *testing.T, w *stretch) {
	age, _ := ageKeys(t)
	for round := range 4 {
		r := rand.New(rand.NewPCG(uint64(round), 1))
		order := r.Perm(len(w.segments))
		if round == 0 {
			for i := range order {
				order[i] = i
			}
		}
		o := archive.Options{}
		if round == 1 {
			o.Key = age
		}
		a := archive.New(&storetest.Memory{}, o)
		next := make(chan int)
		var pushes sync.WaitGroup
		for range round*2 + 1 {
			pushes.Go(func() {
				for i := range next {
					w.put(t, a, w.first+wal.SegmentNo(i))
				}
			})
		}
		for _, i := range order {
			next <- i
		}
		close(next)
		pushes.Wait()

		kinds := map[string]int{}
		for first := wal.SegmentNo(group); first+group <= w.end(); first += group {
			blocks, rest, err := w.delta(t, a, first)
			if w.summary(first).Missing > 0 && w.summary(first-1).All() {
				kinds["none"]++
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("group %d begins within a record from before the segment before it, and has an object: %v", first/group, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("group %d: %v", first/group, err)
				continue
			}
			want, wantRest, unfinished := w.wanted(t, first)
			if !maps.Equal(blocks, want) || !bytes.Equal(rest, wantRest) {
				t.Errorf("group %d: %d blocks, want %d; %d bytes of the last record, want %d", first/group, len(blocks), len(want), len(rest), len(wantRest))
			}
			kinds[fmt.Sprintf("rest %t, long %t", len(rest) > 0, len(rest) > int(mib))]++
			if unfinished == 0 {
				continue
			}
			// A reader goes on with the segments that follow, and has the record whole.
			length := binary.LittleEndian.Uint32(rest)
			record := append(rest, w.stripped(w.size.Start(first+group), w.size.Start(w.end()))...)[:length]
			castagnoli := crc32.MakeTable(crc32.Castagnoli)
			if crc := crc32.Update(crc32.Checksum(record[24:], castagnoli), castagnoli, record[:20]); crc != binary.LittleEndian.Uint32(record[20:]) {
				t.Errorf("group %d: with what follows, record %s has CRC %08X", first/group, unfinished, crc)
			}
		}
		if round == 0 {
			t.Log(kinds)
		}
		if kinds["none"] == 0 || kinds["rest false, long false"] == 0 || kinds["rest true, long false"] == 0 || kinds["rest true, long true"] == 0 {
			t.Errorf("not all kinds of groups are there: %v", kinds)
		}
	}
}

// Of a record that begins with more than a mebibyte in the last segment a summary does not keep enough. The group after it has its object.
func TestNoDeltaWithoutTheRestOfARecord(t *testing.T) {
	w := newWriter(t, 4*mib)
	const first = wal.SegmentNo(group)
	for w.size.Segment(w.at(t)) < first+group-1 {
		w.Exec(t, `insert into one values (1)`, `select pg_switch_wal()`)
	}
	w.message(t, 6<<20)
	for w.size.Segment(w.at(t)) < first+2*group {
		w.Exec(t, `insert into one values (1)`, `select pg_switch_wal()`)
	}
	s := w.stretch(t, first-1, first+2*group)
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	for no := s.first; no < s.end(); no++ {
		s.put(t, a, no)
	}
	if _, _, err := s.delta(t, a, first); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the first group has an object: %v", err)
	}
	blocks, rest, err := s.delta(t, a, first+group)
	if want, _, _ := s.wanted(t, first+group); err != nil || !maps.Equal(blocks, want) || len(rest) != 0 || len(want) == 0 {
		t.Errorf("the second group: %d blocks, want %d, %d bytes of a record, %v", len(blocks), len(want), len(rest), err)
	}
}

// The example of the format's description, to the byte.
func TestDeltaBytes(t *testing.T) {
	var s blockset.Set
	s.Add(blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5, Number: 16384}}, 7)
	s.Truncate(blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 6}}, 0) // a database, which has no form
	content := func(s *blockset.Set, rest []byte) string {
		r := archive.NewDelta(s, rest)
		defer r.Close()
		b, err := io.ReadAll(iotest.OneByteReader(r))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", b)
	}
	const block, end = "7f060000050000000040000007000000", "00000000000000000000000000000000"
	if got, want := content(&s, nil), block+end+"00000000"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := content(&blockset.Set{}, []byte("abc")), end+"03000000616263"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Whichever call fails, the push hears of it or the object is there; and the next one makes it good.
func deltaWithAFailingStore(t *testing.T, w *stretch) {
	last := wal.SegmentNo(2*group - 1)
	for what, fail := range map[string]func(store.Store, int) *storetest.Flaky{
		"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter,
	} {
		for n := 0; ; n++ {
			m := &storetest.Memory{}
			a := archive.New(m, archive.Options{})
			for no := w.first; no < last; no++ {
				w.put(t, a, no)
			}
			flaky := fail(m, n)
			b := archive.New(flaky, archive.Options{})
			err := b.PutSummary(t.Context(), w.name(last), w.summary(last))
			if err == nil {
				err = b.PutWALDeltas(t.Context(), w.name(last), w.size)
			}
			_, _, missing := w.delta(t, a, group)
			if err == nil && missing != nil {
				t.Errorf("call %d failed %s, the push is content, and there is no object: %v", n, what, missing)
			}
			w.put(t, a, last)
			if _, _, err := w.delta(t, a, group); err != nil {
				t.Errorf("call %d failed %s: then %v", n, what, err)
			}
			if !flaky.Reached() {
				break
			}
		}
	}
}

// A host that cannot decrypt stores summaries, and says that it cannot make the object; one that can makes it with its next segment.
func deltaOfAWriteOnlyHost(t *testing.T, w *stretch) {
	both, public := ageKeys(t)
	m := &storetest.Memory{}
	blind := archive.New(m, archive.Options{Key: public, WriteOnly: true})
	last := wal.SegmentNo(2*group - 1)
	for no := w.first + 1; no < last; no++ { // the one before the group is missing, and needed
		w.put(t, blind, no)
	}
	err := blind.PutSummary(t.Context(), w.name(last), w.summary(last))
	if err != nil {
		t.Fatal(err)
	}
	if err = blind.PutWALDeltas(t.Context(), w.name(last), w.size); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("a host without the secret key: %v", err)
	}
	a := archive.New(m, archive.Options{Key: both})
	w.put(t, a, last)
	if _, _, err := w.delta(t, a, group); w.summary(group).Missing > 0 && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is an object without the segment that its first record begins in: %v", err)
	}
	w.put(t, a, w.first)
	if _, _, err := w.delta(t, a, group); err != nil {
		t.Error(err)
	}
}
