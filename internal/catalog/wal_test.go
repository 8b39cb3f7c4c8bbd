package catalog_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
)

func loadWAL(t *testing.T, m *storetest.Memory) *catalog.WAL {
	t.Helper()
	w, err := catalog.LoadWAL(t.Context(), archive.New(m, archive.Options{}), size)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// runs prints the inventory: timeline, runs in hexadecimal digits, then what else there is.
func runs(w *catalog.WAL) string {
	var b strings.Builder
	for _, t := range w.Timelines {
		fmt.Fprintf(&b, "%d:", t.Timeline)
		for _, r := range t.Runs {
			fmt.Fprintf(&b, " %X-%X(%d)", uint64(r.First), uint64(r.Last), r.Bytes)
		}
		for _, n := range t.Empty {
			fmt.Fprintf(&b, " empty %X", uint64(n))
		}
		for _, p := range t.Partial {
			fmt.Fprintf(&b, " partial %X", uint64(p.Segment))
		}
		if t.Labels > 0 {
			fmt.Fprintf(&b, " labels %d", t.Labels)
		}
		if t.History != nil {
			b.WriteString(" history")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// One listing tells segments of every codec from all else, and finds where one is missing.
func TestLoadWAL(t *testing.T) {
	m := &storetest.Memory{}
	for _, name := range []string{
		"00000001000000000000000A.lz4", "00000001000000000000000B.zst", "00000001000000000000000B.lz4", "00000001000000000000000C.",
		"00000001000000000000000D", "00000001000000000000000F.br", "00000001000000000000000F.sum.json", "00000001000000000000000F_delta.lz4",
		"00000001000000000000000A.00000028.backup.lz4", "0000000100000000000000FF.zst", "000000010000000100000000.zst",
		"000000010000000100000001.partial.zst", "000000010000000100000002.unknown", "0000000100000001000001FF.zst",
		"00000002.history.lz4", "000000020000000100000001.zst", "00000003.history", "not WAL", "0000000200000001000000F0.zst/deeper",
	} {
		put(t, m, archive.WALDir+name, "x")
	}
	for _, name := range []string{"000000010000000000000010.zst", "00000001000000000000000A.zst", "000000020000000100000002.lz4"} {
		put(t, m, archive.WALDir+name, "")
	}
	put(t, m, archive.WALDir+"000000020000000100000002.zst", "there in another codec")
	w := loadWAL(t, m)
	want := "1: A-D(5) F-F(1) FF-100(2) empty 10 partial 101 labels 1\n2: 101-102(23) history\n3: history\n"
	if got := runs(w); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if !slices.Equal(w.Foreign, []string{"0000000100000001000001FF"}) {
		t.Errorf("foreign: %q", w.Foreign)
	}
	for n, want := range map[wal.SegmentNo]bool{9: false, 0xA: true, 0xD: true, 0xE: false, 0xF: true, 0x10: false, 0x100: true, 0x101: false} {
		if w.Has(1, n) != want || w.Has(4, n) {
			t.Errorf("Has(1, %X) = %t", uint64(n), !want)
		}
	}
}

// A failing listing is an error, not an empty inventory.
func TestLoadWALFails(t *testing.T) {
	m := twoTimelines(t)
	for _, s := range []*storetest.Flaky{storetest.FailAt(m, 0), storetest.FailMidway(m, 0), storetest.FailAfter(m, 0)} {
		if w, err := catalog.LoadWAL(t.Context(), archive.New(s, archive.Options{}), size); err == nil {
			t.Errorf("got %+v", w)
		}
	}
}

// A run knows when each of its segments was stored; one made by hand knows its ends.
func TestArchived(t *testing.T) {
	m := &storetest.Memory{}
	for n := wal.SegmentNo(4); n < 9; n++ {
		put(t, m, archive.WALDir+size.Name(1, n)+".lz4", "x")
	}
	r := loadWAL(t, m).Timelines[0].Runs[0]
	for n := r.First; n <= r.Last; n++ {
		o, err := m.Stat(t.Context(), archive.WALDir+size.Name(1, n)+".lz4")
		if err != nil || !r.Archived(n).Equal(o.Modified) {
			t.Errorf("segment %d: %s, was stored at %s, %v", n, r.Archived(n), o.Modified, err)
		}
	}
	hand := catalog.Run{First: 10, Last: 20, Oldest: at(1, 0), Newest: at(2, 0)}
	for n, want := range map[wal.SegmentNo]time.Time{9: at(1, 0), 10: at(1, 0), 15: at(1, 30), 20: at(2, 0), 21: at(2, 0)} {
		if got := hand.Archived(n); !got.Equal(want) {
			t.Errorf("Archived(%d) = %s, want %s", n, got, want)
		}
	}
}

// The size of segments is that of the newest backup which says it.
func TestCatalogSegmentSize(t *testing.T) {
	m := &storetest.Memory{}
	if got, said := load(t, m).SegmentSize(); got != 16<<20 || said {
		t.Errorf("of nothing: %d, %t", got, said)
	}
	backup(t, m, "base_000000010000000000000009", 0x967BE8, 0x967C00, at(1, 0)) // 1 MiB
	put(t, m, "basebackups_005/base_00000001000000000000000B_backup_stop_sentinel.json", "damaged")
	if got, said := load(t, m).SegmentSize(); got != 1<<20 || !said {
		t.Errorf("got %d, %t", got, said)
	}
}

// A segment is replayed from the youngest timeline that had begun by its end, whether borders fall into a segment or between two, or several into one; and
// what is missing is what walking along the names finds missing.
func TestHolesAlongPath(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const top = 24
		var p catalog.Path
		begin := wal.LSN(0)
		for i := range rapid.IntRange(1, 4).Draw(t, "legs") {
			if i > 0 {
				begin += wal.LSN(rapid.Uint64Range(0, 6).Draw(t, "leg") * uint64(size) / 2)
				p[i-1].End = begin
			}
			p = append(p, catalog.Leg{Timeline: wal.Timeline(i + 1), Begin: begin})
		}
		w := &catalog.WAL{SegmentSize: size}
		there := map[catalog.Stretch]bool{}
		for _, leg := range p {
			of := catalog.TimelineWAL{Timeline: leg.Timeline}
			for n := wal.SegmentNo(0); n < top; n++ {
				if !rapid.Bool().Draw(t, "there") {
					continue
				}
				there[catalog.Stretch{Timeline: leg.Timeline, First: n}] = true
				if k := len(of.Runs); k > 0 && of.Runs[k-1].Last+1 == n && rapid.Bool().Draw(t, "same store") {
					of.Runs[k-1].Last = n
				} else {
					of.Runs = append(of.Runs, catalog.Run{First: n, Last: n})
				}
			}
			w.Timelines = append(w.Timelines, of)
		}
		from := wal.SegmentNo(rapid.Uint64Range(0, top).Draw(t, "from"))
		var want, pending []string
		for n := from; n < top; n++ {
			tl := p[0].Timeline
			for _, leg := range p[1:] {
				if leg.Begin < size.Start(n+1) {
					tl = leg.Timeline
				}
			}
			if there[catalog.Stretch{Timeline: tl, First: n}] {
				want, pending = append(want, pending...), nil
			} else {
				pending = append(pending, size.Name(tl, n))
			}
		}
		var got []string
		for s := range w.Holes(p, from) {
			for n := s.First; n <= s.Last; n++ {
				got = append(got, size.Name(s.Timeline, n))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("along %+v from %d: got %v, want %v", p, from, got, want)
		}
		gap, ok := w.NextGap(p, from)
		if ok != (len(want) > 0) || ok && size.Name(gap.Timeline, gap.First) != want[0] {
			t.Errorf("the first gap is %+v, %t; want %v", gap, ok, want)
		}
	})
}

// Whatever objects are called, what is counted as a segment has its name, and each is counted once.
func FuzzLoadWAL(f *testing.F) {
	f.Add("00000001000000000000000A.lz4", "00000001000000000000000A.00000028.backup", "00000002.history.zst", uint8(4))
	f.Add("00000001000000000000000A.", "00000001000000000000000A", "00000001000000000000000B.partial.br", uint8(0))
	f.Add("FFFFFFFFFFFFFFFF000000FF", "FFFFFFFFFFFFFFFF000000FE.zst", "00000000000000000000000000000000", uint8(10))
	f.Fuzz(func(t *testing.T, a, b, c string, shift uint8) {
		s := wal.MinSegmentSize << (shift % 11)
		m := &storetest.Memory{}
		want := map[string]bool{}
		for _, name := range []string{a, b, c} {
			if err := m.Put(t.Context(), archive.WALDir+name, strings.NewReader("x")); err != nil {
				continue // no name of an object
			}
			if base := archive.WALName(name); !strings.Contains(name, "/") && wal.IsSegment(base) {
				if _, _, err := s.ParseSegment(base); err == nil {
					want[base] = true
				}
			}
		}
		w, err := catalog.LoadWAL(t.Context(), archive.New(m, archive.Options{}), s)
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for _, of := range w.Timelines {
			for _, r := range of.Runs {
				for n := r.First; ; n++ {
					if count++; !want[s.Name(of.Timeline, n)] {
						t.Errorf("%q, %q, %q: counted %s", a, b, c, s.Name(of.Timeline, n))
					}
					if n == r.Last {
						break
					}
				}
			}
		}
		if count != len(want) {
			t.Errorf("%q, %q, %q: counted %d, want %v", a, b, c, count, want)
		}
	})
}
