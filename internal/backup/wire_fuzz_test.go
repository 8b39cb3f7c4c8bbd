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

// What is accepted is written back the same, and leaves the pages to be read.
func FuzzServersIncrement(f *testing.F) {
	f.Add(serversIncrement(7))
	f.Add(serversIncrement(7, 0, 3, 6))
	f.Add(serversIncrement(7, 7))
	f.Add(serversIncrement(7, 3, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := backup.ReadServersIncrement(r, int64(len(b)), 4096)
		if err != nil {
			return
		}
		want := serversIncrement(uint32(h.FileSize/page.Size), h.Blocks...)
		head := 12 + 4*len(h.Blocks)
		if len(want) != len(b) || !bytes.Equal(want[:head], b[:head]) || r.Len() != len(h.Blocks)*page.Size {
			t.Errorf("%d bytes were accepted as %+v, %d are left", len(b), h, r.Len())
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
