package compress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
)

// The seek table is the last thing in a stream (zstd_seekable_compression_format.md of facebook/zstd), all little-endian:
//
//	0x184D2A5E  length of the rest  |  per frame: length, length of its content  |  number of frames  0  0x8F92EAB1
//	4           4                   |  4 + 4, and 4 of checksum if flagged       |  4                 1  4
const (
	tableMagic  = skippableMagic | 0xE
	footerMagic = 0x8F92EAB1
	footerLen   = 4 + 1 + 4
	checksums   = 1 << 7 // in the descriptor; the only bit that changes the layout
	reserved    = 0x7C   // bits of the descriptor that must be 0
)

// TailLen is how many bytes of an object's end suffice for TableLen.
const TailLen = footerLen

// ErrNoTable says that a stream does not end in a seek table: another program wrote it.
var ErrNoTable = errors.New("no seek table")

var errTable = errors.New("corrupt seek table")

// A Table says where in a compressed stream each frame lies, so that any byte of the content is reached by reading
// a few frames: see Locate and DecompressRange.
type Table struct {
	packed  []int64 // where frame i begins in the stream; one more entry for where the table begins
	content []int64 // where its content begins; one more for where the content ends
}

// A Range is the part of a compressed stream that holds wanted content.
type Range struct {
	Offset, Length int64 // of whole frames in the compressed stream
	Skip           int64 // bytes of content before the wanted ones
	Want           int64 // bytes of wanted content
}

// TableLen returns how many bytes at the end of a stream its seek table takes, given at least TailLen bytes of the end. The
// answer is what the stream claims, at most 4 GiB; compare it with the size of the object. Where there is no table the
// error is ErrNoTable.
func TableLen(tail []byte) (int64, error) {
	if len(tail) < footerLen {
		return 0, ErrNoTable
	}
	f := tail[len(tail)-footerLen:]
	if binary.LittleEndian.Uint32(f[5:]) != footerMagic {
		return 0, ErrNoTable
	}
	if f[4]&reserved != 0 {
		return 0, fmt.Errorf("%w: descriptor %02x", errTable, f[4])
	}
	n := 8 + int64(binary.LittleEndian.Uint32(f))*entryLen(f[4]) + footerLen
	if n-8 > math.MaxUint32 {
		return 0, fmt.Errorf("%w: %d bytes", errTable, n)
	}
	return n, nil
}

// entryLen returns how long a frame's entry is.
func entryLen(descriptor byte) int64 {
	if descriptor&checksums != 0 {
		return 12
	}
	return 8
}

// ParseTable decodes the seek table of a compressed stream of size bytes from its end: at least as many bytes of it as
// TableLen says. Where there is no table the error is ErrNoTable.
func ParseTable(tail []byte, size int64) (*Table, error) {
	length, err := TableLen(tail)
	if err != nil {
		return nil, err
	}
	if length > int64(len(tail)) || length > size {
		return nil, fmt.Errorf("%w: %d bytes in an object of %d, of which %d are here", errTable, length, size, len(tail))
	}
	b := tail[int64(len(tail))-length:]
	le := binary.LittleEndian
	if le.Uint32(b) != tableMagic || int64(le.Uint32(b[4:])) != length-8 {
		return nil, fmt.Errorf("%w: it does not begin where its end says", errTable)
	}
	step := entryLen(b[length-5])
	entries := b[8 : length-footerLen]
	n := len(entries) / int(step)
	t := &Table{packed: make([]int64, n+1), content: make([]int64, n+1)}
	for i := range n {
		e := entries[int64(i)*step:]
		t.packed[i+1] = t.packed[i] + int64(le.Uint32(e)) // at most 2^29 entries below 2^32: no overflow
		t.content[i+1] = t.content[i] + int64(le.Uint32(e[4:]))
	}
	if t.packed[n] != size-length {
		return nil, fmt.Errorf("%w: frames of %d bytes in all, where %d are", errTable, t.packed[n], size-length)
	}
	return t, nil
}

// ReadTable reads the seek table at the end of r, which holds size bytes.
func ReadTable(r io.ReaderAt, size int64) (*Table, error) {
	var tail [TailLen]byte
	if size < TailLen {
		return nil, ErrNoTable
	}
	if _, err := r.ReadAt(tail[:], size-TailLen); err != nil && err != io.EOF {
		return nil, err
	}
	n, err := TableLen(tail[:])
	if err != nil {
		return nil, err
	}
	if n > size {
		return nil, fmt.Errorf("%w: %d bytes in an object of %d", errTable, n, size)
	}
	b := make([]byte, n)
	if _, err := r.ReadAt(b, size-n); err != nil && err != io.EOF {
		return nil, err
	}
	return ParseTable(b, size)
}

// Size returns how many bytes of content the stream has.
func (t *Table) Size() int64 { return t.content[len(t.content)-1] }

// PackedSize returns how many bytes all frames take: where in the stream the table begins.
func (t *Table) PackedSize() int64 { return t.packed[len(t.packed)-1] }

// Locate says where in the compressed stream the length bytes of content from offset on are. They must all be there.
func (t *Table) Locate(offset, length int64) (Range, error) {
	if offset < 0 || length < 0 || length > t.Size()-offset {
		return Range{}, fmt.Errorf("%d bytes at %d: the stream has %d", length, offset, t.Size())
	}
	if length == 0 {
		return Range{}, nil
	}
	// The last frame that begins at or before offset, and the first that begins at or behind the end.
	first := sort.Search(len(t.content), func(i int) bool { return t.content[i] > offset }) - 1
	last := sort.Search(len(t.content), func(i int) bool { return t.content[i] >= offset+length })
	return Range{
		Offset: t.packed[first],
		Length: t.packed[last] - t.packed[first],
		Skip:   offset - t.content[first],
		Want:   length,
	}, nil
}

// DecompressRange returns the content that Locate was asked for, given r.Length bytes of the compressed stream from
// r.Offset on. Less than that is io.ErrUnexpectedEOF. The caller closes the stream, which leaves src alone.
func DecompressRange(src io.Reader, r Range) io.ReadCloser {
	z := native.decompress(io.LimitReader(src, r.Length))
	z.part = true
	return &rangeReader{z: z, skip: r.Skip, left: r.Want}
}

type rangeReader struct {
	z          *zstdReader
	skip, left int64
}

func (r *rangeReader) Read(p []byte) (n int, err error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	for r.skip > 0 && err == nil {
		var k int64
		k, err = io.CopyN(io.Discard, struct{ io.Reader }{r.z}, r.skip)
		r.skip -= k
	}
	if err == nil {
		n, err = r.z.Read(p[:min(int64(len(p)), r.left)])
		r.left -= int64(n)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *rangeReader) Close() error { return r.z.Close() }

// A tableWriter gathers the entries of a seek table.
type tableWriter struct{ entries []byte }

func (t *tableWriter) add(packed, content int) {
	t.entries = binary.LittleEndian.AppendUint32(t.entries, uint32(packed))
	t.entries = binary.LittleEndian.AppendUint32(t.entries, uint32(content))
}

// finish returns the table as it goes to the end of a stream.
func (t *tableWriter) finish() []byte {
	b := make([]byte, 0, 8+len(t.entries)+footerLen)
	b = binary.LittleEndian.AppendUint32(b, tableMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(t.entries)+footerLen))
	b = append(b, t.entries...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(t.entries)/8))
	b = append(b, 0)
	return binary.LittleEndian.AppendUint32(b, footerMagic)
}
