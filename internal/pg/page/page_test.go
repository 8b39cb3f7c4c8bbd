package page_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/page"
)

// real returns pages that a PostgreSQL 15 made by initdb --data-checksums wrote, by their block number.
func real(t testing.TB) map[uint32][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/pg_class*")
	if err != nil || len(files) != 3 {
		t.Fatalf("testdata: %v, %v", files, err)
	}
	pages := map[uint32][]byte{}
	for _, name := range files {
		block, err := strconv.ParseUint(filepath.Ext(name)[1:], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		if pages[uint32(block)], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return pages
}

// What PostgreSQL wrote has the checksum computed here, and no other block number's.
func TestChecksumIsPostgreSQLs(t *testing.T) {
	for block, p := range real(t) {
		h, err := page.ReadHeader(p)
		if err != nil || h.Check() != nil || h.IsNew() || page.IsNew(p) {
			t.Errorf("block %d: %+v, %v, %v", block, h, err, h.Check())
		}
		if got := page.Checksum(p, block); got != h.Checksum {
			t.Errorf("block %d: checksum %04x, want %04x", block, got, h.Checksum)
		}
		if got := page.Checksum(p, block+1); got == h.Checksum {
			t.Errorf("block %d has the same checksum as the next", block)
		}
	}
}

// Each field is read from its place, here in a page of pg_class.
func TestReadHeader(t *testing.T) {
	got, err := page.ReadHeader(real(t)[2])
	want := page.Header{
		LSN: 0x1740C20, Checksum: 0xDEC7, Flags: 4, Lower: 204, Upper: 272, Special: 8192, PageSize: 8192, Version: 4,
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := page.ReadHeader(make([]byte, page.HeaderLen-1)); err == nil {
		t.Error("a header one byte too short was read")
	}
}

// Every bit of a page counts, wherever the page lies in what is verified.
func TestVerifyFindsTheFirstBadPage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint32().Draw(t, "first block")
		n := rapid.IntRange(0, 4).Draw(t, "pages")
		seed := rapid.SliceOfN(rapid.Byte(), 16, 64).Draw(t, "content")
		p := make([]byte, n*page.Size)
		for i := range n {
			if rapid.Bool().Draw(t, "new") {
				continue
			}
			b := p[i*page.Size : (i+1)*page.Size]
			for at := range b {
				b[at] = seed[at%len(seed)] + byte(at>>8)
			}
			b[14] |= 1 // not new
			binary.LittleEndian.PutUint16(b[8:], page.Checksum(b, first+uint32(i)))
		}
		if got := page.Verify(p, first); got != -1 {
			t.Fatalf("good pages: %d is bad", got)
		}
		if n == 0 {
			return
		}
		bit := rapid.IntRange(0, len(p)*8-1).Draw(t, "bit")
		p[bit/8] ^= 1 << (bit % 8)
		if got, want := page.Verify(p, first), bit/8/page.Size; got != want {
			t.Fatalf("bit %d flipped: page %d is bad, want %d", bit, got, want)
		}
	})
}

// The checksum with this CPU's vector instructions is the one without.
func TestSumEqualsScalar(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.Uint32(), 1, 64).Draw(t, "words")
		var buf [page.Size + 64]byte
		p := (*[page.Size]byte)(buf[rapid.IntRange(0, 63).Draw(t, "alignment"):])
		x := uint32(1)
		for at := 0; at < page.Size; at += 4 {
			x = x*1664525 + 1013904223
			binary.LittleEndian.PutUint32(p[at:], words[at/4%len(words)]^x)
		}
		if got, want := page.Sum(p), page.SumScalar(p); got != want {
			t.Fatalf("%08x, want %08x", got, want)
		}
	})
}

// The CRC-32C of a file follows from those of its pages.
func TestAppendCRC(t *testing.T) {
	var sum uint32
	var file []byte
	for _, p := range real(t) {
		sum = page.AppendCRC(sum, crc32c.Checksum(p))
		file = append(file, p...)
		if want := crc32c.Checksum(file); sum != want {
			t.Errorf("%d pages: %08X, want %08X", len(file)/page.Size, sum, want)
		}
	}
}

// A header that is read holds all that its bytes say.
func FuzzReadHeader(f *testing.F) {
	for _, p := range real(f) {
		f.Add(p[:page.HeaderLen])
	}
	f.Add(make([]byte, page.HeaderLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := page.ReadHeader(b)
		if (err != nil) != (len(b) < page.HeaderLen) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		if err != nil {
			return
		}
		le := binary.LittleEndian
		back := le.AppendUint32(nil, uint32(h.LSN>>32))
		back = le.AppendUint32(back, uint32(h.LSN))
		for _, x := range []uint16{h.Checksum, h.Flags, h.Lower, h.Upper, h.Special, h.PageSize | uint16(h.Version)} {
			back = le.AppendUint16(back, x)
		}
		back = le.AppendUint32(back, h.PruneXID)
		if string(back) != string(b[:page.HeaderLen]) {
			t.Fatalf("%x was read as %+v", b[:page.HeaderLen], h)
		}
		if h.Check() == nil && (h.IsNew() || h.Lower > h.Upper || h.Special > page.Size) {
			t.Fatalf("%+v passed", h)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	p := make([]byte, 32*page.Size)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	for i := range 32 {
		binary.LittleEndian.PutUint16(p[i*page.Size+8:], page.Checksum(p[i*page.Size:(i+1)*page.Size], uint32(i)))
	}
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if got := page.Verify(p, 0); got != -1 {
			b.Fatalf("page %d is bad", got)
		}
	}
}

func BenchmarkSumScalar(b *testing.B) {
	var p [page.Size]byte
	b.SetBytes(page.Size)
	for b.Loop() {
		page.SumScalar(&p)
	}
}
