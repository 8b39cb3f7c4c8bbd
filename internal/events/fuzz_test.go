package events_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"holdfast/internal/events"
)

// pageOf makes a page with rows.
func pageOf(rows ...[]byte) []byte {
	le := binary.LittleEndian
	p := make([]byte, 8192)
	end := len(p)
	for i, row := range rows {
		end -= (len(row) + 7) &^ 7
		copy(p[end:], row)
		le.PutUint32(p[24+4*i:], uint32(end)|1<<15|uint32(len(row))<<17)
	}
	le.PutUint16(p[12:], uint16(24+4*len(rows)))
	le.PutUint16(p[14:], uint16(end))
	le.PutUint16(p[16:], 8192)
	le.PutUint16(p[18:], 8192|4)
	return p
}

// Whatever the bytes of a catalogue's page, its rows lie within it.
func FuzzReadCatalogue(f *testing.F) {
	row := make([]byte, 200)
	copy(row[36:], "orders")
	row[22] = 32
	old := bytes.Clone(row)
	old[20] = 0x08 // it has an OID before its columns
	for version := 10; version <= 18; version += 2 {
		f.Add(version, pageOf(row, old, row[:23]))
	}
	f.Fuzz(func(t *testing.T, version int, b []byte) {
		p := make([]byte, 8192)
		copy(p, b)
		if n, err := events.ReadCatalogue(version, p); n > 8192/4 {
			t.Errorf("%d rows, %v", n, err)
		}
	})
}

// A map has no more entries than it says.
func FuzzReadMap(f *testing.F) {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0x592717)
	b = le.AppendUint32(b, 2)
	for _, n := range []uint32{1259, 1259, 1249, 16500} {
		b = le.AppendUint32(b, n)
	}
	f.Add(b)
	f.Add(b[:12])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := events.ReadMap(b)
		if err == nil && len(m) > 64 {
			t.Errorf("%d entries", len(m))
		}
	})
}
