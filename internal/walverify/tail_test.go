package walverify_test

import (
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/store/storetest"
	"holdfast/internal/walverify"
)

// A segment that is there in pieces to its end is there; of one that is not it is told how far they go.
func TestPieces(t *testing.T) {
	s := &storetest.Memory{}
	fill(t, s, 1, 1, 4)
	backup(t, s, 1, 1)
	a := archive.New(s, archive.Options{})
	piece := func(name string, end int64) {
		t.Helper()
		if _, err := a.PutTail(t.Context(), name, 0, end, strings.NewReader(strings.Repeat("x", int(end)))); err != nil {
			t.Fatal(err)
		}
	}
	piece(size.Name(1, 5), int64(size))
	piece(size.Name(1, 6), 0x1000)
	r := walverify.Request{Timeline: 1, LSN: at(6), Size: size}
	got, err := check(t, s, r)
	if err != nil || got.Status != walverify.OK || len(got.Rows) != 1 || got.Rows[0].Last != 5 {
		t.Fatalf("%v, %v", text(got), err)
	}
	if len(got.Notes) != 1 || !strings.Contains(got.Notes[0], size.Name(1, 6)) || !strings.Contains(got.Notes[0], (size.Start(6)+0x1000).String()) {
		t.Errorf("notes: %q", got.Notes)
	}
	r.LSN, r.All = at(9), true
	got, err = check(t, s, r)
	if err != nil || got.Status != walverify.Failure || len(got.Rows) != 2 || got.Rows[1].Found != walverify.Lost || got.Rows[1].First != 6 || got.Rows[1].Last != 8 {
		t.Errorf("%v, %v", text(got), err)
	}
}
