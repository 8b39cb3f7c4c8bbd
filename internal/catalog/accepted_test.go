package catalog_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
)

// What was accepted and not revoked counts; what makes no sense is told.
func TestLoadAccepted(t *testing.T) {
	m := &storetest.Memory{}
	for i, doc := range []string{
		`{"timeline":1,"first":"000000010000000000000005","last":"000000010000000000000006","reason":"disk","by":"me"}`,
		`{"timeline":2,"first":"000000020000000000000005","last":"000000020000000000000005"}`,
		`{"timeline":2,"first":"000000020000000000000005","last":"000000020000000000000005","revoked":true}`,
		`{"timeline":2,"first":"000000010000000000000005","last":"000000010000000000000005"}`,
		`{"timeline":1,"first":"000000010000000000000006","last":"000000010000000000000005"}`,
		`{"timeline":1,"first":"x","last":"000000010000000000000005"}`,
		`[]`,
	} {
		put(t, m, fmt.Sprintf("%s20260101T00000%d.000000Z-x.json", archive.GapDir, i), doc)
	}
	all, bad, err := catalog.LoadAccepted(t.Context(), archive.New(m, archive.Options{}), size)
	if err != nil || len(all) != 1 || all[0].Stretch != (catalog.Stretch{Timeline: 1, First: 5, Last: 6}) || all[0].Reason != "disk" || all[0].By != "me" {
		t.Errorf("%+v, %v", all, err)
	}
	if len(bad) != 4 || !strings.Contains(fmt.Sprint(bad), "is no stretch of timeline 2") {
		t.Errorf("%v", bad)
	}
}

// The pieces of a stretch make up the stretch, and each is accepted as a whole or not at all.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		no := rapid.Custom(func(t *rapid.T) wal.SegmentNo { return wal.SegmentNo(rapid.IntRange(0, 20).Draw(t, "n")) })
		stretch := func(timeline wal.Timeline) catalog.Stretch {
			a, b := no.Draw(t, "first"), no.Draw(t, "last")
			return catalog.Stretch{Timeline: timeline, First: min(a, b), Last: max(a, b)}
		}
		var accepted []catalog.Accepted
		for range rapid.IntRange(0, 5).Draw(t, "accepted") {
			accepted = append(accepted, catalog.Accepted{Stretch: stretch(wal.Timeline(rapid.IntRange(1, 2).Draw(t, "timeline")))})
		}
		s := stretch(1)
		next := s.First
		for piece, by := range s.Split(accepted) {
			if piece.First != next || piece.Last < piece.First || piece.Last > s.Last {
				t.Fatalf("piece %+v of %+v, next is %d", piece, s, next)
			}
			for n := piece.First; n <= piece.Last; n++ {
				in := false
				for _, a := range accepted {
					in = in || a.Timeline == 1 && a.First <= n && n <= a.Last
				}
				if in != (by != nil) {
					t.Fatalf("segment %d of %+v: accepted by %+v, want %v", n, piece, by, in)
				}
			}
			next = piece.Last + 1
		}
		if next != s.Last+1 {
			t.Fatalf("%+v ends before %d", s, next)
		}
	})
}

// Whatever a record says, what is accepted is a stretch of one timeline, or the record is told.
func FuzzLoadAccepted(f *testing.F) {
	f.Add([]byte(`{"timeline":1,"first":"000000010000000000000005","last":"000000010000000000000006"}`))
	f.Add([]byte(`{"timeline":4294967295,"first":"FFFFFFFFFFFFFFFF000000FF","last":"FFFFFFFFFFFFFFFF000000FF"}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		m := &storetest.Memory{}
		put(t, m, archive.GapDir+"20260101T000000.000000Z-x.json", string(doc))
		all, bad, err := catalog.LoadAccepted(t.Context(), archive.New(m, archive.Options{}), size)
		if err != nil || len(all) > 1 || len(bad) > 1 || len(all) > 0 && len(bad) > 0 {
			t.Fatalf("%+v, %v, %v", all, bad, err)
		}
		for _, a := range all {
			if a.Last < a.First {
				t.Errorf("%+v", a)
			}
		}
	})
}
