package wal_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/pg/wal"
)

const mib16 wal.SegmentSize = 16 << 20

// sizes are all segment sizes PostgreSQL allows.
func sizes() []wal.SegmentSize {
	var all []wal.SegmentSize
	for s := wal.MinSegmentSize; s <= wal.MaxSegmentSize; s *= 2 {
		all = append(all, s)
	}
	return all
}

// Names that real servers and the archive format's description give.
func TestSegmentNames(t *testing.T) {
	for _, c := range []struct {
		size     wal.SegmentSize
		timeline wal.Timeline
		lsn      wal.LSN
		name     string
	}{
		{mib16, 1, 0, "000000010000000000000000"},
		{mib16, 1, 0x30000028, "000000010000000000000030"}, // example of a sentinel: LSN 805306408
		{mib16, 1, 0x2_FF000000, "0000000100000002000000FF"},
		{mib16, 1, 0x2_FFFFFFFF, "0000000100000002000000FF"},
		{mib16, 1, 0x3_00000000, "000000010000000300000000"},
		{mib16, 0xA, 0x16_B374D848, "0000000A00000016000000B3"},
		{1 << 20, 1, 0x967BE8, "000000010000000000000009"},   // pg_control of the golden PostgreSQL 12
		{64 << 20, 1, 0x4813F30, "000000010000000000000001"}, // and 13
		{1 << 20, 1, 0x1_FFFFFFFF, "000000010000000100000FFF"},
		{1 << 30, 1, 0x1_C0000000, "000000010000000100000003"},
		{1 << 30, 0xFFFFFFFF, 0xFFFFFFFF_FFFFFFFF, "FFFFFFFFFFFFFFFF00000003"},
	} {
		if got := c.size.Name(c.timeline, c.size.Segment(c.lsn)); got != c.name {
			t.Errorf("%d MiB: Name(%d, Segment(%s)) = %s, want %s", c.size>>20, c.timeline, c.lsn, got, c.name)
		}
	}
	if _, n, err := mib16.ParseSegment("0000000100000002000000FF"); err != nil || n != 0x2FF {
		t.Errorf("ParseSegment = %#x, %v, want 0x2FF", uint64(n), err)
	}
}

// At a border the byte belongs to the file that begins there, what was replayed up to it to the one before.
func TestBorders(t *testing.T) {
	for _, c := range []struct {
		lsn        wal.LSN
		seg, inner wal.SegmentNo
	}{
		{0, 0, 0}, {1, 0, 0}, {0xFFFFFF, 0, 0}, {0x1000000, 1, 0}, {0x1000001, 1, 1}, {0x1_00000000, 256, 255},
	} {
		if seg, last := mib16.Segment(c.lsn), mib16.LastSegment(c.lsn); seg != c.seg || last != c.inner {
			t.Errorf("%s: Segment %d, LastSegment %d, want %d, %d", c.lsn, seg, last, c.seg, c.inner)
		}
	}
}

func TestSegmentArithmetic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SampledFrom(sizes()).Draw(t, "size")
		tl := wal.Timeline(rapid.Uint32().Draw(t, "timeline"))
		lsn := wal.LSN(rapid.Uint64().Draw(t, "lsn"))
		n := s.Segment(lsn)
		if start := s.Start(n); start > lsn || uint64(lsn-start) >= uint64(s) {
			t.Errorf("%s is not in segment %d, which starts at %s", lsn, n, start)
		}
		if s.LastSegment(s.Start(n)+1) != n || s.Segment(s.Start(n)) != n {
			t.Errorf("borders of segment %d", n)
		}
		name := s.Name(tl, n)
		if tl2, n2, err := s.ParseSegment(name); err != nil || tl2 != tl || n2 != n {
			t.Errorf("ParseSegment(%s) = %d, %d, %v, want %d, %d", name, tl2, n2, err, tl, n)
		}
		if got, err := wal.TimelineOf(name); err != nil || got != tl {
			t.Errorf("TimelineOf(%s) = %d, %v", name, got, err)
		}
		if n > 0 && s.Name(tl, n-1) >= name {
			t.Errorf("the name before %s is %s", name, s.Name(tl, n-1))
		}
		if back, err := wal.ParseLSN(lsn.String()); err != nil || back != lsn {
			t.Errorf("ParseLSN(%s) = %s, %v", lsn, back, err)
		}
	})
}

func TestValidSizes(t *testing.T) {
	all := sizes()
	if len(all) != 11 {
		t.Errorf("%d sizes, want 11", len(all))
	}
	for _, s := range all {
		if !s.Valid() || (s + 1).Valid() || (s - 1).Valid() || (s * 3).Valid() {
			t.Errorf("around %d", s)
		}
	}
	for _, s := range []wal.SegmentSize{0, 1, 512 << 10, 2 << 30, 1 << 63} {
		if s.Valid() {
			t.Errorf("%d is valid", s)
		}
	}
}

func TestParseLSN(t *testing.T) {
	for text, want := range map[string]wal.LSN{
		"0/0": 0, "16/B374D848": 0x16_B374D848, "16/b374d848": 0x16_B374D848, "FFFFFFFF/FFFFFFFF": ^wal.LSN(0), "0/00000028": 0x28,
	} {
		if got, err := wal.ParseLSN(text); err != nil || got != want {
			t.Errorf("ParseLSN(%q) = %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/", "0", "0/", "/0", "1/2/3", "0/0 ", " 0/0", "0/123456789", "123456789/0", "+1/0", "0/-1", "0x1/0", "1_0/0", "G/0"} {
		if got, err := wal.ParseLSN(text); err == nil {
			t.Errorf("ParseLSN(%q) = %s", text, got)
		}
	}
}

func TestParseSegmentRefuses(t *testing.T) {
	for _, name := range []string{"", "00000001000000000000000", "0000000100000000000000001", "00000001000000000000000g",
		"0000000a0000000000000001", "000000010000000000000100", "0000000100000000FFFFFFFF", "00000001000000000000000/",
		"000000010000000000000001.partial"} {
		if tl, n, err := mib16.ParseSegment(name); err == nil {
			t.Errorf("ParseSegment(%q) = %d, %d", name, tl, n)
		}
	}
	if _, _, err := wal.SegmentSize(1 << 20).ParseSegment("000000010000000000000100"); err != nil {
		t.Errorf("with 1 MiB: %v", err)
	}
}

func TestKindOf(t *testing.T) {
	const segment = "0000000100000000000000A1"
	for name, want := range map[string]wal.Kind{
		segment:                              wal.Segment,
		segment + ".partial":                 wal.Partial,
		"00000002.history":                   wal.History,
		segment + ".00000028.backup":         wal.Label,
		"":                                   wal.Other,
		"RECOVERYXLOG":                       wal.Other,
		"archive_status":                     wal.Other,
		strings.ToLower(segment):             wal.Other,
		segment + ".lz4":                     wal.Other,
		segment + ".partial.":                wal.Other,
		segment + "_delta":                   wal.Other,
		segment[:23] + "G.partial":           wal.Other,
		"0000002.history":                    wal.Other,
		"0000000g.history":                   wal.Other,
		segment + ".0000002G.backup":         wal.Other,
		segment + ".00000028.backup.lz4":     wal.Other,
		segment + "-00000028.backup":         wal.Other,
		"00000002.history/../../etc/passwd":  wal.Other,
		"000000010000000000000001\x00":       wal.Other,
		segment + ".00000028.backup" + "\n":  wal.Other,
		"0000000100000000000000A1.0000028.b": wal.Other,
	} {
		if got := wal.KindOf(name); got != want {
			t.Errorf("KindOf(%q) = %d, want %d", name, got, want)
		}
		tl, err := wal.TimelineOf(name)
		if (err == nil) != (want != wal.Other) || err == nil && fmt.Sprintf("%08X", uint32(tl)) != name[:8] {
			t.Errorf("TimelineOf(%q) = %d, %v", name, tl, err)
		}
	}
	if got := wal.HistoryName(0xAB); got != "000000AB.history" || wal.KindOf(got) != wal.History {
		t.Errorf("HistoryName(0xAB) = %s", got)
	}
}

// header makes the beginning of a segment as a server writes it.
func header(h wal.Header) []byte {
	b := make([]byte, wal.HeaderLen)
	binary.LittleEndian.PutUint16(b, h.Magic)
	binary.LittleEndian.PutUint16(b[2:], 0x0002)
	binary.LittleEndian.PutUint32(b[4:], uint32(h.Timeline))
	binary.LittleEndian.PutUint64(b[8:], uint64(h.Address))
	binary.LittleEndian.PutUint64(b[24:], h.SystemIdentifier)
	binary.LittleEndian.PutUint32(b[32:], uint32(h.SegmentSize))
	binary.LittleEndian.PutUint32(b[36:], 8192)
	return b
}

// XLOG_PAGE_MAGIC of PostgreSQL 10 to 18.
var magics = []uint16{0xD097, 0xD098, 0xD101, 0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118}

func TestReadHeader(t *testing.T) {
	for _, magic := range magics {
		for _, size := range sizes() {
			want := wal.Header{Magic: magic, Timeline: 3, Address: size.Start(7), SystemIdentifier: 7359000000000000001, SegmentSize: size}
			if got, err := wal.ReadHeader(header(want)); err != nil || got != want {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
		}
	}
}

func TestReadHeaderRefuses(t *testing.T) {
	good := wal.Header{Magic: 0xD110, Timeline: 1, Address: 0x1000000, SystemIdentifier: 1, SegmentSize: mib16}
	for name, spoil := range map[string]func(b []byte) []byte{
		"nothing":              func([]byte) []byte { return nil },
		"39 bytes":             func(b []byte) []byte { return b[:39] },
		"zeros":                func(b []byte) []byte { return make([]byte, len(b)) },
		"magic":                func(b []byte) []byte { b[1] = 0xD2; return b },
		"short header":         func(b []byte) []byte { b[2] = 0x01; return b },
		"no segment's size":    func(b []byte) []byte { b[34] = 3; return b },
		"address in a segment": func(b []byte) []byte { b[9] = 0x20; return b },
		"big-endian": func(b []byte) []byte {
			b[0], b[1], b[2], b[3] = b[1], b[0], b[3], b[2]
			return b
		},
	} {
		if h, err := wal.ReadHeader(spoil(header(good))); err == nil {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

// What is accepted is written back the same.
func FuzzReadHeader(f *testing.F) {
	for _, magic := range magics {
		f.Add(header(wal.Header{Magic: magic, Timeline: 1, Address: 0x1000000, SystemIdentifier: 7, SegmentSize: mib16}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := wal.ReadHeader(b)
		if err != nil {
			return
		}
		if !h.SegmentSize.Valid() || h.SegmentSize.Start(h.SegmentSize.Segment(h.Address)) != h.Address {
			t.Errorf("accepted %+v", h)
		}
		again := header(h)
		copy(again[2:4], b[2:4])     // flags
		copy(again[16:24], b[16:24]) // length of a record's rest
		copy(again[36:40], b[36:40]) // size of pages
		if !bytes.Equal(again, b[:wal.HeaderLen]) {
			t.Errorf("%x read as %+v, which is %x", b[:wal.HeaderLen], h, again)
		}
	})
}

// A name that is accepted is the one its parts make.
func FuzzNames(f *testing.F) {
	for _, name := range []string{"0000000100000002000000FF", "0000000100000002000000FF.partial", "00000002.history",
		"0000000100000002000000FF.00000028.backup", "16/B374D848"} {
		f.Add(name, uint8(4))
	}
	f.Fuzz(func(t *testing.T, name string, size uint8) {
		s := wal.MinSegmentSize << (size % 11)
		if tl, n, err := s.ParseSegment(name); err == nil && s.Name(tl, n) != name {
			t.Errorf("%q parsed as %d, %d, which is %s", name, tl, n, s.Name(tl, n))
		}
		tl, err := wal.TimelineOf(name)
		if (err == nil) != (wal.KindOf(name) != wal.Other) || err == nil && tl.String() != name[:8] {
			t.Errorf("TimelineOf(%q) = %s, %v", name, tl, err)
		}
		if lsn, err := wal.ParseLSN(name); err == nil {
			if back, err := wal.ParseLSN(lsn.String()); err != nil || back != lsn {
				t.Errorf("%q parsed as %s, which parses as %s, %v", name, lsn, back, err)
			}
		}
	})
}
