package mirror_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/store/storetest"
)

// Pieces of a segment come and go while a mirror is away: once it is back it has those that there are then, and none of the others.
func TestPiecesAreRepaid(t *testing.T) {
	a, b := storetest.NewMortal(), storetest.NewMortal()
	m := mirrored(t, anyOpts(t), a, b)
	ar := archive.New(m.Alive(), archive.Options{})
	const segment = "000000010000000000000003"
	piece := func(start, end int64) archive.TailPiece {
		t.Helper()
		p, err := ar.PutTail(t.Context(), segment, start, end, strings.NewReader(strings.Repeat("x", int(end-start))))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	pieces := []archive.TailPiece{piece(0, 100)} // both have it
	b.Down.Store(true)
	for n := range int64(5) {
		pieces = append(pieces, piece(100+n*10, 110+n*10))
	}
	piece(0, 150)
	if err := ar.RemoveTail(t.Context(), pieces); err != nil {
		t.Fatal(err)
	}
	piece(150, 160)
	b.Down.Store(false)
	time.Sleep(time.Millisecond)
	if r := repaid(t, m); r.Left != 0 || r.Copied != 2 {
		t.Errorf("repaid %+v", r)
	}
	want(t, "b", all(t, b), all(t, a))
	want(t, "owed", owed(t, m), "")
	tail, err := archive.New(b, archive.Options{}).Tail(t.Context(), segment)
	want(t, "in b", fmt.Sprint(tail.Pieces, tail.Held, err), "2 160 <nil>")
}
