package archive_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// summaryOf makes up a summary of segment no of timeline t, which changes a block.
func summaryOf(t wal.Timeline, no wal.SegmentNo, block uint32) *walrec.Summary {
	start := mib.Start(no)
	s := &walrec.Summary{
		Version: 15, SystemIdentifier: 7, SegmentSize: mib, FirstTimeline: t, Timeline: t, Start: start, End: start + wal.LSN(mib),
		First: start + 40, Last: start + 40, Prev: start - 100,
	}
	s.Blocks.Add(blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5, Number: 16384}}, block)
	return s
}

// packed is b as zstd.
func packed(t *testing.T, b []byte) []byte {
	t.Helper()
	r := compress.Compress(bytes.NewReader(b), compress.Zstd, compress.Options{})
	defer r.Close()
	z, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func put(t *testing.T, s store.Store, name string, content []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

const objectOf3 = "holdfast/summaries/00000001/000000010000000000000003.zst"

// What is put comes back, stored once; one that says otherwise takes its place.
func TestSummaries(t *testing.T) {
	both, public := ageKeys(t)
	for what, o := range map[string]struct{ write, read archive.Options }{
		"in clear":           {archive.Options{Method: compress.LZ4}, archive.Options{}},
		"encrypted":          {archive.Options{Key: both}, archive.Options{Key: both}},
		"by who only writes": {archive.Options{Key: public, WriteOnly: true}, archive.Options{Key: both}},
	} {
		t.Run(what, func(t *testing.T) {
			m := &storetest.Memory{}
			calls := storetest.FailAt(m, -1)
			writer, reader := archive.New(calls, o.write), archive.New(m, o.read)
			name := mib.Name(1, 3)
			if _, _, err := reader.OpenSummary(t.Context(), name, mib); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("before there is one: %v", err)
			}
			puts := func() (n int) {
				for _, call := range calls.Calls() {
					if call == "put "+objectOf3 {
						n++
					}
				}
				return n
			}
			for i, block := range []uint32{7, 7, 8} {
				if err := writer.PutSummary(t.Context(), name, summaryOf(1, 3, block)); err != nil {
					t.Fatal(err)
				}
				got, stored, err := reader.OpenSummary(t.Context(), name, mib)
				if err != nil || !bytes.Equal(got.Encode(), summaryOf(1, 3, block).Encode()) {
					t.Errorf("put %d: %+v, %v", i, got, err)
				}
				if o, err := m.Stat(t.Context(), objectOf3); err != nil || o.Size != stored {
					t.Errorf("it takes %d bytes, %v; %d were read", o.Size, err, stored)
				}
			}
			if want := map[bool]int{false: 1, true: 2}[o.write.WriteOnly]; puts() != want { // who cannot compare replaces
				t.Errorf("%d objects were replaced, want %d: %q", puts(), want, calls.Calls())
			}
			if o.write.Key != nil {
				if _, _, err := archive.New(m, archive.Options{}).OpenSummary(t.Context(), name, mib); err == nil {
					t.Error("it can be read without a key")
				}
			}
		})
	}
}

// A summary that is not of the segment it is to be of is neither stored nor believed.
func TestSummariesOfOthers(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	name := mib.Name(1, 3)
	short := summaryOf(1, 3, 7)
	short.End -= 8192
	for what, s := range map[string]*walrec.Summary{"another segment": summaryOf(1, 4, 7), "a later timeline": summaryOf(2, 3, 7), "not the whole segment": short} {
		if err := a.PutSummary(t.Context(), name, s); err == nil {
			t.Errorf("%s: stored", what)
		}
		put(t, m, objectOf3, packed(t, s.Encode()))
		if _, _, err := a.OpenSummary(t.Context(), name, mib); err == nil || !strings.Contains(err.Error(), objectOf3) {
			t.Errorf("%s: read, %v", what, err)
		}
	}
	put(t, m, objectOf3, packed(t, summaryOf(1, 3, 7).Encode()))
	if _, _, err := a.OpenSummary(t.Context(), name, 2*mib); err == nil {
		t.Error("a segment of another size: read")
	}
	put(t, m, objectOf3, packed(t, make([]byte, 64<<20))) // a few kilobytes
	if _, _, err := a.OpenSummary(t.Context(), name, mib); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("64 MiB of nothing: %v", err)
	}
	if _, _, err := a.OpenSummary(t.Context(), "../../cluster", mib); err == nil {
		t.Error("a name that is no segment's: read")
	}
	// The first segment of a timeline begins as one of the timeline before it.
	s := summaryOf(1, 3, 7)
	if err := a.PutSummary(t.Context(), mib.Name(2, 3), s); err != nil {
		t.Error(err)
	}
}

// A listing yields which of a range's segments have a summary, whatever else lies there.
func TestSummariesAreListed(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	for _, no := range []wal.SegmentNo{0xFFD, 0xFFE, 0x1000, 0x1001, 0x1005, 0x1006} {
		for _, timeline := range []wal.Timeline{1, 2} {
			if err := a.PutSummary(t.Context(), mib.Name(timeline, no), summaryOf(timeline, no, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"000000010000000000000FFF", "000000010000000000000FFF.lz4", "000000010000000100000003.zst/x", "000000020000000100000003.zst", "x"} {
		put(t, m, archive.SummaryDir+"00000001/"+name, nil)
	}
	for _, c := range []struct{ first, last wal.SegmentNo }{{0, 0x2000}, {0xFFE, 0x1005}, {0xFFF, 0xFFF}, {0x1002, 0x1004}, {0x1006, 0x1006}, {0x1007, 0x9000}} {
		var got, want []wal.SegmentNo
		for _, no := range []wal.SegmentNo{0xFFD, 0xFFE, 0x1000, 0x1001, 0x1005, 0x1006} {
			if no >= c.first && no <= c.last {
				want = append(want, no)
			}
		}
		for no, err := range a.Summaries(t.Context(), 1, c.first, c.last, mib) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, no)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%x to %x: %x, want %x", c.first, c.last, got, want)
		}
	}
	for _, err := range archive.New(storetest.FailAt(m, 0), archive.Options{}).Summaries(t.Context(), 1, 0, 9, mib) {
		if !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("a listing that fails: %v", err)
		}
	}
}

// Whichever call fails, the summary is there, or who stores it hears of it.
func TestSummaryWithAFailingStore(t *testing.T) {
	name, s := mib.Name(1, 3), summaryOf(1, 3, 7)
	for what, fail := range map[string]func(store.Store, int) *storetest.Flaky{
		"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter,
	} {
		for _, before := range []*walrec.Summary{nil, summaryOf(1, 3, 7), summaryOf(1, 3, 8)} {
			for n := 0; ; n++ {
				m := &storetest.Memory{}
				a := archive.New(m, archive.Options{})
				if before != nil {
					if err := a.PutSummary(t.Context(), name, before); err != nil {
						t.Fatal(err)
					}
				}
				flaky := fail(m, n)
				err := archive.New(flaky, archive.Options{}).PutSummary(t.Context(), name, s)
				if err == nil {
					got, _, err := a.OpenSummary(t.Context(), name, mib)
					if err != nil || !bytes.Equal(got.Encode(), s.Encode()) {
						t.Errorf("call %d failed %s: stored, and then %v", n, what, err)
					}
				} else if !errors.Is(err, storetest.ErrInjected) {
					t.Errorf("call %d failed %s: %v", n, what, err)
				}
				if !flaky.Reached() {
					break
				}
			}
		}
	}
}
