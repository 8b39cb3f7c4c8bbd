// Package increment reads and writes the incremental form of a relation file: the pages that changed since the parent backup.
//
// It is the member content of WAL-G's delta backups. All numbers are little-endian:
//
//	4     "wi1U"
//	8     size of the whole file in bytes
//	4     n, how many pages follow
//	4·n   their block numbers within the file, ascending
//	8192·n   the pages, in the same order
//
// Nothing follows. n may be 0: only the size changed. The pages that are not in it are those of the parent, and where the
// file has grown since, zeros.
package increment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"holdfast/internal/pg/page"
)

const (
	magic     = "wi1U"
	fixedSize = 16 // bytes before the block numbers

	// maxFileSize bounds the file in bytes: block numbers have 32 bits.
	maxFileSize = page.Size << 32
	// maxBlocks bounds the pages of one increment: those of a file of 128 GiB, a hundred times what PostgreSQL makes unless it is
	// built otherwise. Their numbers are held in memory, 64 MiB at most.
	maxBlocks = 1 << 24
)

// Header is what stands before the pages.
type Header struct {
	FileSize int64    // bytes of the whole file, a multiple of page.Size
	Blocks   []uint32 // numbers of the pages, ascending, each inside the file
}

// Len returns how many bytes the header takes.
func (h *Header) Len() int64 { return fixedSize + 4*int64(len(h.Blocks)) }

// Size returns how many bytes header and pages take.
func (h *Header) Size() int64 { return h.Len() + page.Size*int64(len(h.Blocks)) }

// Size returns how many bytes an increment of so many pages takes.
func Size(pages uint32) int64 { return fixedSize + (4+page.Size)*int64(pages) }

// errNot is what all that is no increment is.
var errNot = errors.New("it is not the increment of a file")

// Read reads the header of an increment of size bytes; r is at the first page then. Memory is made only for what size allows.
func Read(r io.Reader, size int64) (*Header, error) {
	var b [fixedSize]byte
	if size < fixedSize {
		return nil, fmt.Errorf("%w: %d bytes are too few", errNot, size)
	}
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, early(err)
	}
	if string(b[:4]) != magic {
		return nil, fmt.Errorf("%w: it begins with %q", errNot, b[:4])
	}
	fileSize, n := binary.LittleEndian.Uint64(b[4:]), int64(binary.LittleEndian.Uint32(b[12:]))
	if fileSize > maxFileSize || fileSize%page.Size != 0 {
		return nil, fmt.Errorf("%w: a file of %d bytes is not made of pages", errNot, fileSize)
	}
	if want := fixedSize + (4+page.Size)*n; size != want {
		return nil, fmt.Errorf("%w: with %d pages it has %d bytes, not %d", errNot, n, want, size)
	}
	if n > maxBlocks {
		return nil, fmt.Errorf("%w: it has %d pages, more than the %d that are possible", errNot, n, maxBlocks)
	}
	h := &Header{FileSize: int64(fileSize)}
	const step = 64 << 10
	numbers := make([]byte, 4*min(n, step))
	for left := n; left > 0; {
		k := min(left, step)
		if _, err := io.ReadFull(r, numbers[:4*k]); err != nil {
			return nil, early(err)
		}
		for i := range k {
			block := binary.LittleEndian.Uint32(numbers[4*i:])
			if int64(block) >= h.FileSize/page.Size {
				return nil, fmt.Errorf("%w: block %d lies behind the end of a file of %d bytes", errNot, block, h.FileSize)
			}
			if last := len(h.Blocks) - 1; last >= 0 && block <= h.Blocks[last] {
				return nil, fmt.Errorf("%w: block %d comes after block %d", errNot, block, h.Blocks[last])
			}
			h.Blocks = append(h.Blocks, block)
		}
		left -= k
	}
	return h, nil
}

// early makes the end of a source an early one.
func early(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Append appends the header as it is stored to b.
func (h *Header) Append(b []byte) []byte {
	b = slices.Grow(b, int(h.Len()))
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.FileSize))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(h.Blocks)))
	for _, block := range h.Blocks {
		b = binary.LittleEndian.AppendUint32(b, block)
	}
	return b
}
