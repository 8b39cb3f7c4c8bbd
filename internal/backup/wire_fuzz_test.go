package backup_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"testing"

	"holdfast/internal/backup"
	"holdfast/internal/pg/page"
)

// serversIncrement encodes the head of a file as PostgreSQL sends one in part.
func serversIncrement(length uint32, blocks ...uint32) []byte {
	var b []byte
	for _, n := range append([]uint32{0xd3ae1f0d, uint32(len(blocks)), length}, blocks...) {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	if len(blocks) > 0 {
		b = append(b, make([]byte, -len(b)&(page.Size-1))...)
	}
	return append(b, make([]byte, len(blocks)*page.Size)...)
}

// endless yields zeros and counts them.
type endless struct{ n int64 }

func (e *endless) Read(p []byte) (int, error) {
	clear(p)
	e.n += int64(len(p))
	return len(p), nil
}

// What is accepted is written back the same, and leaves the pages to be read. Behind the head there are zeros.
func FuzzServersIncrement(f *testing.F) {
	for _, seed := range [][]uint32{{7}, {7, 0, 3, 6}, {7, 7}, {7, 3, 2}} {
		whole := serversIncrement(seed[0], seed[1:]...)
		f.Add(whole[:12+4*len(seed[1:])], int64(len(whole)))
	}
	f.Fuzz(func(t *testing.T, head []byte, size int64) {
		rest := &endless{}
		h, err := backup.ReadServersIncrement(io.MultiReader(bytes.NewReader(head), rest), size, 4096)
		if err != nil {
			return
		}
		want := serversIncrement(uint32(h.FileSize/page.Size), h.Blocks...)
		n := min(len(head), 12+4*len(h.Blocks))
		if int64(len(want)) != size || !bytes.Equal(want[:n], head[:n]) || len(want)-len(h.Blocks)*page.Size < int(rest.n) {
			t.Errorf("%x of %d bytes was accepted as %+v, %d bytes behind it are read", head, size, h, rest.n)
		}
	})
}

func TestServersIncrement(t *testing.T) {
	good := serversIncrement(7, 0, 3, 6)
	h, err := backup.ReadServersIncrement(bytes.NewReader(good), int64(len(good)), 131072)
	if err != nil || h.FileSize != 7*page.Size || !slices.Equal(h.Blocks, []uint32{0, 3, 6}) {
		t.Errorf("%+v, %v", h, err)
	}
	for what, bad := range map[string][]byte{
		"nothing": nil, "a page behind the end": serversIncrement(7, 7), "pages out of order": serversIncrement(7, 3, 3), "more than a file can have": serversIncrement(131073),
		"another magic": append([]byte{1}, good[1:]...), "a page less": good[:len(good)-page.Size], "more than its pages": append(bytes.Clone(good), 0),
	} {
		if h, err := backup.ReadServersIncrement(bytes.NewReader(bad), int64(len(bad)), 131072); err == nil {
			t.Errorf("%s: %+v", what, h)
		}
	}
	if _, err := backup.ReadServersIncrement(bytes.NewReader(good[:20]), int64(len(good)), 131072); err != io.ErrUnexpectedEOF {
		t.Errorf("cut off: %v", err)
	}
}

// Zeros stand between the pages that came, also behind the last of them.
func TestFilledReadsPages(t *testing.T) {
	came := append(bytes.Repeat([]byte{1}, page.Size), bytes.Repeat([]byte{3}, page.Size)...)
	got, err := io.ReadAll(backup.Filled(bytes.NewReader(came), []uint32{1, 3}, []uint32{0, 1, 3, 7}))
	if err != nil || len(got) != 4*page.Size {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	for i, want := range []byte{0, 1, 3, 0} {
		if p := got[i*page.Size:][:page.Size]; !bytes.Equal(p, bytes.Repeat([]byte{want}, page.Size)) {
			t.Errorf("page %d is not all %d", i, want)
		}
	}
}

// A file that was truncated and is as long again as it was in the parent, none of whose pages was written to since, is not the parent's.
func TestServersIncrementOfAFileMadeLongerAgain(t *testing.T) {
	head := serversIncrement(7)
	store, blocks, err := backup.PackServersIncrement(bytes.NewReader(head), int64(len(head)), 7, 4)
	if err != nil || !store || !slices.Equal(blocks, []uint32{4, 5, 6}) {
		t.Errorf("stored %v, blocks %v, %v", store, blocks, err)
	}
}
