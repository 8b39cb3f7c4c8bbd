package retention_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/retention"
)

// piece stores what there is of a segment from its first byte on.
func (w *world) piece(t *testing.T, tl wal.Timeline, n wal.SegmentNo, end int64) {
	t.Helper()
	if _, err := w.a.PutTail(t.Context(), size.Name(tl, n), 0, end, strings.NewReader(strings.Repeat("x", int(end)))); err != nil {
		t.Fatal(err)
	}
}

// Pieces of segments go where the segments would, and where these are archived whole; those of the segment that is being written stay.
func TestPieces(t *testing.T) {
	w := newWorld(t)
	w.piece(t, 1, w.seg+1, 100) // of one that comes whole
	w.write(3)
	w.seg++
	w.piece(t, 1, w.seg-1, 100) // of one that never came, before all backups
	w.days(1)
	w.take("", 2, nil)
	w.piece(t, 1, w.seg, 100)
	w.piece(t, 3, w.seg, 100) // of a timeline of which nothing else is known
	missing, writing, stray := size.Name(1, 4), size.Name(1, w.seg), size.Name(3, w.seg)
	p := w.plan(must(retention.Garbage(retention.Archives, false)))
	for i, want := range []retention.PiecesVerdict{
		{Segment: size.Name(1, 2), Ground: retention.Whole}, {Segment: missing, Ground: retention.NoLonger},
		{Segment: writing, Keep: true, Ground: retention.Needed}, {Segment: stray, Keep: true, Ground: retention.Unknown},
	} {
		if got := p.Pieces[i]; len(p.Pieces) != 4 || got.Segment != want.Segment || got.Keep != want.Keep || got.Ground != want.Ground || got.Objects != 1 || got.Bytes == 0 {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	var listed []string
	for o, err := range retention.Objects(t.Context(), w.a, p) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, o.Name)
	}
	before := w.has("")
	w.apply(must(retention.Garbage(retention.Archives, false)), 0)
	after := w.has("")
	for _, name := range before {
		if gone := !slices.Contains(after, name); gone != slices.Contains(listed, name) {
			t.Errorf("%s: gone %t", name, gone)
		}
	}
	if left := w.has(archive.TailDir); len(left) != 2 || !strings.HasPrefix(left[0], writing) || !strings.HasPrefix(left[1], stray) {
		t.Errorf("left: %q", left)
	}
	if p := w.plan(must(retention.Garbage(retention.Archives, false))); !p.Nothing() {
		t.Errorf("a second time: %+v", p)
	}
	w.days(1) // a backup later, what came of the stray timeline before it is begun
	w.seg++
	w.take("", 2, nil)
	w.apply(must(retention.Retain(1, retention.Plain, nil)), 0)
	if left := w.has(archive.TailDir); len(left) != 0 {
		t.Errorf("left once nothing needs them: %q", left)
	}
}

// Pieces that nothing needs stay until their time has come, as WAL does.
func TestPiecesHaveTheirGrace(t *testing.T) {
	w := newWorld(t)
	w.piece(t, 1, w.seg, 100) // of one that never came, before all backups
	w.seg++
	w.days(1)
	w.take("", 2, nil)
	for range 2 {
		w.apply(must(retention.Garbage(retention.Archives, false)), 10*24*time.Hour)
		if left := w.has(archive.TailDir); len(left) != 1 {
			t.Fatalf("left at once: %q", left)
		}
	}
	w.days(11)
	w.apply(must(retention.Garbage(retention.Archives, false)), 10*24*time.Hour)
	if left := w.has(archive.TailDir); len(left) != 0 {
		t.Errorf("left behind their time: %q", left)
	}
}

// The pieces of a segment of which the whole is damaged may be all that there is of it.
func TestPiecesOfADamagedSegmentStay(t *testing.T) {
	w := newWorld(t)
	w.take("", 2, nil)
	w.piece(t, 1, w.seg, 100)
	name := size.Name(1, w.seg)
	w.write(1)
	if _, err := w.a.AddRecord(t.Context(), archive.VerifiedWALDir, "", map[string]any{"timeline": 1, "first": name, "last": name,
		"problems": []map[string]any{{"segment": name, "kind": "content", "text": "a checksum is wrong"}}}); err != nil {
		t.Fatal(err)
	}
	w.apply(must(retention.Garbage(retention.Archives, false)), 0)
	if left := w.has(archive.TailDir); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}

// What makes a backup consistent may be there in pieces.
func TestPiecesMakeABackupConsistent(t *testing.T) {
	w := newWorld(t)
	w.write(1)
	name := w.take("", 2, nil)
	last := size.Name(1, w.seg-1)
	if err := w.memory.Delete(t.Context(), archive.WALDir+last+".zst"); err != nil {
		t.Fatal(err)
	}
	broken := func() string {
		return reasonFor(t, w.plan(must(retention.Retain(1, retention.Plain, nil))), name).Broken
	}
	if got := broken(); !strings.Contains(got, last) {
		t.Errorf("without %s: %q", last, got)
	}
	w.piece(t, 1, w.seg-1, int64(size)/2)
	if got := broken(); !strings.Contains(got, last) {
		t.Errorf("with half of %s: %q", last, got)
	}
	w.piece(t, 1, w.seg-1, int64(size)-0x100)
	if got := broken(); got != "" {
		t.Errorf("with as much of %s as it takes: %q", last, got)
	}
}
