package compress_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/compress"
)

// The end of a stream is the seek table of the seekable format, to the byte, and its frames are ours.
func TestStreamBytes(t *testing.T) {
	content := make([]byte, compress.FrameSize+3)
	copy(content[compress.FrameSize:], "abc")
	for _, c := range codecs[:2] {
		packed := c.pack(t, content)
		if want, _ := hex.DecodeString("28b52ffd" + "e4" + "0000040000000000"); !bytes.HasPrefix(packed, want) {
			t.Errorf("%s: frame header %x, want %x", c.name, packed[:len(want)], want)
		}
		// The last frame: header, one raw block of three bytes, and the low half of XXH64("abc").
		want, _ := hex.DecodeString(strings.Join([]string{
			"28b52ffd" + "e4" + "0300000000000000", "190000", "616263", "990977ad",
			"5e2a4d18", "19000000", // skippable frame of 25 bytes
			"00000400",             // first frame's content; its length comes before
			"17000000", "03000000", // second frame's
			"02000000", "00", "b1ea928f",
		}, ""))
		first := len(packed) - len(want) - 4
		sizes := binary.LittleEndian.AppendUint32(nil, uint32(first))
		want = bytes.Join([][]byte{want[:31], sizes, want[31:]}, nil)
		if got := packed[len(packed)-len(want):]; !bytes.Equal(got, want) {
			t.Errorf("%s ends in\n%x, want\n%x", c.name, got, want)
		}
	}
}

// Any part of the content is reached through the table by reading one range of the stream.
func TestTableReachesEveryByte(t *testing.T) {
	content := corpus(6, 5*compress.FrameSize/2)
	for _, c := range codecs[:2] {
		packed := c.pack(t, content)
		table, err := compress.ReadTable(bytes.NewReader(packed), int64(len(packed)))
		if err != nil {
			t.Fatal(err)
		}
		if table.Size() != int64(len(content)) {
			t.Errorf("%s: %d bytes of content, want %d", c.name, table.Size(), len(content))
		}
		rapid.Check(t, func(t *rapid.T) {
			offset := rapid.IntRange(0, len(content)).Draw(t, "offset")
			length := rapid.IntRange(0, len(content)-offset).Draw(t, "length")
			r, err := table.Locate(int64(offset), int64(length))
			if err != nil {
				t.Fatal(err)
			}
			src := packed[r.Offset : r.Offset+r.Length]
			got, err := io.ReadAll(compress.DecompressRange(bytes.NewReader(src), r))
			if err != nil || !bytes.Equal(got, content[offset:offset+length]) {
				t.Fatalf("%d bytes at %d: %d bytes, %v", length, offset, len(got), err)
			}
			if length == 0 {
				return
			}
			if max := int64(length) + 2*compress.FrameSize; r.Skip >= compress.FrameSize || r.Length > max {
				t.Fatalf("%d bytes at %d: %+v reads too much", length, offset, r)
			}
			cut := rapid.IntRange(0, len(src)-1).Draw(t, "cut")
			if _, err := io.ReadAll(compress.DecompressRange(bytes.NewReader(src[:cut]), r)); err != io.ErrUnexpectedEOF {
				t.Fatalf("%d of %d bytes of the stream: %v", cut, len(src), err)
			}
		})
		for _, bad := range [][2]int64{{-1, 1}, {0, -1}, {0, table.Size() + 1}, {table.Size() + 1, 0}, {1, 1<<63 - 1}, {1<<63 - 1, 1<<63 - 1}} {
			if r, err := table.Locate(bad[0], bad[1]); err == nil {
				t.Errorf("%d bytes at %d: %+v", bad[1], bad[0], r)
			}
		}
	}
}

// A stream without content has a table as well.
func TestTableOfNothing(t *testing.T) {
	packed := of(compress.Zstd).pack(t, nil)
	table, err := compress.ReadTable(bytes.NewReader(packed), int64(len(packed)))
	if err != nil || table.Size() != 0 {
		t.Fatalf("%v, %v", table, err)
	}
	if r, err := table.Locate(0, 0); err != nil || r != (compress.Range{}) {
		t.Errorf("%+v, %v", r, err)
	}
}

// Streams of others have no table, and damage to a table is noticed.
func TestBadTables(t *testing.T) {
	content := corpus(6, 2*compress.FrameSize)
	for _, s := range append(others(t, content), stream{"nothing", "", nil}, stream{"one byte", "", []byte{1}}) {
		if _, err := compress.ReadTable(bytes.NewReader(s.packed), int64(len(s.packed))); !errors.Is(err, compress.ErrNoTable) {
			t.Errorf("%s: %v, want %v", s.name, err, compress.ErrNoTable)
		}
	}
	packed := of(compress.Zstd).pack(t, content)
	n, err := compress.TableLen(packed)
	if err != nil || n != 8+2*8+9 {
		t.Fatalf("a table of %d bytes, %v", n, err)
	}
	size := int64(len(packed))
	for bit := (size - n) * 8; bit < size*8; bit++ {
		at, mask := bit/8, byte(1)<<(bit%8)
		// The lengths of content are not known from elsewhere, and the low two bits of the descriptor are unused.
		if entry := at - (size - n) - 8; entry >= 0 && entry < 16 && entry%8 >= 4 || at == size-5 && mask&3 != 0 {
			continue
		}
		packed[at] ^= mask
		if _, err := compress.ReadTable(bytes.NewReader(packed), size); err == nil {
			t.Errorf("bit %d flipped: went unnoticed", bit-(size-n)*8)
		}
		packed[at] ^= mask
	}
	if _, err := compress.ReadTable(bytes.NewReader(packed[1:]), size-1); err == nil {
		t.Error("a stream without its first byte has a table")
	}
}

// A table that is accepted is written back the same, and what it locates lies in the stream.
func FuzzTable(f *testing.F) {
	packed := of(compress.Zstd).pack(f, corpus(1, 2*compress.FrameSize))
	f.Add(packed[len(packed)-33:], int64(len(packed)), int64(5), int64(300_000))
	f.Add(packed[len(packed)-100:], int64(len(packed)), int64(compress.FrameSize), int64(1))
	f.Add([]byte("\x5e\x2a\x4d\x18\x15\x00\x00\x00abcdabcdabcd\x01\x00\x00\x00\x80\xb1\xea\x92\x8f"), int64(0x64636261+29), int64(0), int64(1))
	f.Fuzz(func(t *testing.T, tail []byte, size, offset, length int64) {
		table, err := compress.ParseTable(tail, size)
		if err != nil {
			return
		}
		n, err := compress.TableLen(tail)
		if err != nil || table.PackedSize()+n != size {
			t.Fatalf("frames of %d bytes and a table of %d, %v, in %d", table.PackedSize(), n, err, size)
		}
		r, err := table.Locate(offset, length)
		if inside := offset >= 0 && length >= 0 && offset <= table.Size() && length <= table.Size()-offset; inside != (err == nil) {
			t.Fatalf("%d bytes at %d of %d: %v", length, offset, table.Size(), err)
		}
		if err == nil && (r.Offset < 0 || r.Length < 0 || r.Offset+r.Length > table.PackedSize() || r.Skip < 0 || r.Want != length) {
			t.Fatalf("%d bytes at %d: %+v of %d", length, offset, r, table.PackedSize())
		}
	})
}
