package transfer_test

import (
	"context"
	"io"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/transfer"
)

// piece stores bytes of a segment from start to before end.
func piece(t testing.TB, s store.Store, timeline wal.Timeline, n wal.SegmentNo, start, end int64) string {
	t.Helper()
	p, err := archive.New(s, archive.Options{}).PutTail(t.Context(), segmentSize.Name(timeline, n), start, end, strings.NewReader(strings.Repeat("x", int(end-start))))
	if err != nil {
		t.Fatal(err)
	}
	return p.Object
}

// The pieces of what the server is writing come over, and go from the target once the segment is whole there.
func TestCopyBringsPieces(t *testing.T) {
	w := newWorld(t)
	objects := []string{piece(t, w, 2, 16, 0, 100), piece(t, w, 2, 16, 100, 300)}
	to := &storetest.Memory{}
	p, _, err := run(w, to, transfer.Request{}, transfer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if p.Pieces.Objects != 2 || p.Pieces.There != 0 {
		t.Errorf("%+v", p.Pieces)
	}
	for _, object := range objects {
		if _, err := to.Stat(t.Context(), object); err != nil {
			t.Error(err)
		}
	}
	if tail, err := archive.New(to, archive.Options{}).Tail(t.Context(), segmentSize.Name(2, 16)); err != nil || tail.Held != 300 {
		t.Errorf("%+v, %v", tail, err)
	}
	piece(t, w, 2, 17, 0, 200)
	if p, _, err = run(w, to, transfer.Request{NoWAL: true}, transfer.Options{}); err != nil || p.Pieces.Objects != 0 {
		t.Errorf("no WAL: %+v, %v", p.Pieces, err)
	}
	w.archive(t, 2, 16)
	if p, _, err = run(w, to, transfer.Request{}, transfer.Options{}); err != nil || p.Pieces.Objects != 3 || p.Pieces.There != 2 {
		t.Errorf("%+v, %v", p.Pieces, err)
	}
	if names, err := archive.New(to, archive.Options{}).Tails(t.Context()); err != nil || len(names) != 1 || names[0] != segmentSize.Name(2, 17) {
		t.Errorf("in the target %v, %v", names, err)
	}
}

// Of one backup the pieces come with the WAL behind it, where that is asked for.
func TestCopyOfOneBringsPiecesBehindIt(t *testing.T) {
	w := newWorld(t)
	old, last := piece(t, w, 1, 4, 0, 100), piece(t, w, 2, 16, 0, 100)
	for _, history := range []bool{false, true} {
		to := &storetest.Memory{}
		if _, _, err := run(w, to, transfer.Request{Backup: w.names[3], History: history}, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		_, there := to.Stat(t.Context(), last)
		if _, err := to.Stat(t.Context(), old); err == nil || (there == nil) != history {
			t.Errorf("with history %t: %v, %v", history, err, there)
		}
	}
}

// merging is a source in which pieces are put together while they are copied.
type merging struct {
	*storetest.Memory
	t     *testing.T
	into  [2]int64
	gone  []string
	whole bool // the segment is archived, and the pieces just go
}

func (m *merging) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.HasPrefix(name, archive.TailDir) && len(m.gone) > 0 {
		gone := m.gone
		m.gone = nil
		if m.whole {
			put(m.t, m.Memory, "wal_005/"+segmentSize.Name(2, 16)+".zst", "whole")
		} else {
			piece(m.t, m.Memory, 2, 16, m.into[0], m.into[1])
		}
		if err := m.Memory.DeleteMany(ctx, gone); err != nil {
			m.t.Fatal(err)
		}
	}
	return m.Memory.Open(ctx, name)
}

// Pieces that are put together while they are copied are copied as they are then; those whose segment has come whole are not missed.
func TestCopyMeetsMerging(t *testing.T) {
	for _, whole := range []bool{false, true} {
		w := newWorld(t)
		m := &merging{Memory: w.Memory, t: t, into: [2]int64{0, 300}, whole: whole}
		m.gone = []string{piece(t, w, 2, 16, 0, 100), piece(t, w, 2, 16, 100, 200), piece(t, w, 2, 16, 200, 300)}
		to := &storetest.Memory{}
		if _, rep, err := run(m, to, transfer.Request{}, transfer.Options{Parallel: 1}); err != nil || len(rep.Failed) > 0 {
			t.Fatal(rep, err)
		}
		a := archive.New(to, archive.Options{})
		there, err := a.HasWAL(t.Context(), segmentSize.Name(2, 16))
		if tail, terr := a.Tail(t.Context(), segmentSize.Name(2, 16)); terr != nil || err != nil || there != whole || !whole && tail.Held != 300 || whole && tail.Pieces != 0 {
			t.Errorf("whole %t: %t, %+v, %v, %v", whole, there, tail, terr, err)
		}
	}
}
