package timelines_test

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
	"holdfast/internal/timelines"
)

// What there is of each timeline is told as it is: where it comes from, holes, what begins too late, what no descendant has.
func TestDescribe(t *testing.T) {
	m := &storetest.Memory{}
	fill := func(tl wal.Timeline, first, last wal.SegmentNo) {
		for n := first; n <= last; n++ {
			put(t, m, archive.WALDir+size.Name(tl, n)+".zst", "xx")
		}
	}
	fill(1, 2, 4)
	fill(1, 7, 12)
	put(t, m, archive.WALDir+size.Name(1, 13)+".partial.zst", "x")
	put(t, m, archive.WALDir+size.Name(1, 5)+".zst", "")
	put(t, m, archive.WALDir+"00000002.history", "1\t0/A000100\tx\n")
	fill(2, 12, 14) // 10 and 11 are missing
	put(t, m, archive.WALDir+"00000004.history", "1\t0/A000100\tx\n2\t0/C000100\ty\n3\t0/D000100\tz\n")
	fill(4, 13, 15) // of 3 there is neither WAL nor a history file
	put(t, m, archive.WALDir+"00000005.history", "what\n")
	fill(6, 2, 3) // no history file
	put(t, m, archive.BackupDir+"base_000000070000000000000002_backup_stop_sentinel.json", sentinel(0x2000028, "2026-01-01T01:00:00Z"))
	a := archive.New(m, archive.Options{})
	c, err := catalog.Load(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	w, err := catalog.LoadWAL(t.Context(), a, size)
	if err != nil {
		t.Fatal(err)
	}
	accepted := []catalog.Accepted{{Stretch: catalog.Stretch{Timeline: 1, First: 6, Last: 6}, By: "me"}}
	var got []string
	holes := func(all []timelines.Hole) (s string) {
		for _, h := range all {
			s += fmt.Sprintf(" %d-%d", h.First, h.Last)
			if h.Accepted != nil {
				s += " by " + h.Accepted.By
			}
		}
		return s
	}
	for _, i := range timelines.Describe(c, w, accepted) {
		line := fmt.Sprintf("%d of %d at %s: %d", uint32(i.Timeline), uint32(i.Parent), i.Switch, i.Segments)
		if i.Segments > 0 {
			line += fmt.Sprintf(" from %d to %d, %d bytes", i.First, i.Last, i.Bytes)
		}
		line += fmt.Sprintf("; holes%s; lead%s; beyond %d; partial %d; empty %d; backups %d; bad %v; lost %v", holes(i.Holes), holes(i.Lead), i.Beyond, len(i.Partial), len(i.Empty),
			len(i.Backups), i.Bad != nil, timelines.Lost(i.Holes))
		got = append(got, line)
	}
	want := []string{
		"1 of 0 at 0/0: 9 from 2 to 12, 18 bytes; holes 5-5 6-6 by me; lead; beyond 2; partial 1; empty 1; backups 0; bad false; lost true",
		"2 of 1 at 0/A000100: 3 from 12 to 14, 6 bytes; holes; lead 10-11; beyond 2; partial 0; empty 0; backups 0; bad false; lost false",
		"3 of 2 at 0/C000100: 0; holes; lead; beyond 0; partial 0; empty 0; backups 0; bad false; lost false",
		"4 of 3 at 0/D000100: 3 from 13 to 15, 6 bytes; holes; lead; beyond 0; partial 0; empty 0; backups 0; bad false; lost false",
		"5 of 0 at 0/0: 0; holes; lead; beyond 0; partial 0; empty 0; backups 0; bad true; lost false",
		"6 of 0 at 0/0: 2 from 2 to 3, 4 bytes; holes; lead; beyond 0; partial 0; empty 0; backups 0; bad false; lost false",
		"7 of 0 at 0/0: 0; holes; lead; beyond 0; partial 0; empty 0; backups 1; bad false; lost false",
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// Records of any content are read or told, and what is read makes sense.
func FuzzLoadQuarantines(f *testing.F) {
	f.Add([]byte(`{"timeline":2,"state":"forgotten","objects":3,"newest":"2026-01-01T00:00:00Z"}`), []byte(`{"timeline":2,"state":"recalled","revoked":true}`))
	f.Add([]byte(`{"timeline":2,"state":"lost"}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		m := &storetest.Memory{}
		put(t, m, archive.QuarantineDir+"20260101T000000.000000Z-a.json", string(one))
		put(t, m, archive.QuarantineDir+"20260101T000001.000000Z-b.json", string(two))
		q, err := timelines.LoadQuarantines(t.Context(), archive.New(m, archive.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		if len(q.Last)+len(q.Bad) == 0 || len(q.Bad) > 2 {
			t.Errorf("%+v", q)
		}
		for tl, last := range q.Last {
			_, aged := q.Age[tl]
			if last.Timeline != tl || aged == (last.State == timelines.Forgotten) {
				t.Errorf("timeline %d: %+v, its age %+v", tl, last, q.Age[tl])
			}
		}
	})
}
