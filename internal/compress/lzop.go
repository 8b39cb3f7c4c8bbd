package compress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/adler32"
	"hash/crc32"
	"io"

	"github.com/anchore/go-lzo"
)

// The container of the lzop program, which WAL-E's archives are made of (lzop.c and conf.h of lzop 1.04). All numbers are
// big-endian:
//
//	9  magic
//	2  version, 2 of the library, 2 needed to extract (the last from version 0x0940 on)
//	1  method, 1 level (from 0x0940 on)
//	4  flags
//	4  filter (with flag 0x0800)
//	4  mode, 4 low part of the time, 4 high part (from 0x0940 on)
//	1  length of a name, and the name
//	4  checksum of all that since the magic
//	[4 length, data, 4 checksum, with flag 0x0040]
//	blocks of: 4 size, 4 size as stored, a checksum for each of four flags, the stored bytes
//	4  zero
//
// A block as large as it was is stored as it is. Another member may follow.
const (
	lzopMagic    = "\x89LZO\x00\r\n\x1a\n"
	lzopMaxBlock = 64 << 20 // lzop's own bound; it writes blocks of 256 KiB

	lzoMost = 256 // LZO1X makes at most 255 bytes of one

	lzopAdlerContent = 0x0001
	lzopAdlerStored  = 0x0002
	lzopExtra        = 0x0040
	lzopCRCContent   = 0x0100
	lzopCRCStored    = 0x0200
	lzopMultipart    = 0x0400
	lzopFilter       = 0x0800
	lzopHeaderCRC    = 0x1000
)

var errLZO = errors.New("corrupt lzop data")

// An lzopReader yields the content of lzop files, one behind the other.
type lzopReader struct {
	in    *bufio.Reader
	flags uint32
	begun bool   // a member's header was read, and its end was not
	any   bool   // there was a member
	out   []byte // content not read yet
	block []byte // that out points into
	raw   []byte // the block as stored
}

func newLzopReader(in *bufio.Reader) *lzopReader { return &lzopReader{in: in} }

func (z *lzopReader) Read(p []byte) (int, error) {
	for len(z.out) == 0 {
		if err := z.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.out)
	z.out = z.out[n:]
	return n, nil
}

// next reads the next block into out, or what stands between two blocks.
func (z *lzopReader) next() error {
	if !z.begun {
		if _, err := z.in.Peek(1); err == io.EOF && z.any {
			return io.EOF
		}
		if err := z.header(); err != nil {
			return whole(err)
		}
		z.begun, z.any = true, true
	}
	return whole(z.nextBlock())
}

// whole makes an end of the source inside a member an early one.
func whole(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// header reads the header of a member.
func (z *lzopReader) header() error {
	magic := make([]byte, len(lzopMagic))
	if _, err := io.ReadFull(z.in, magic); err != nil {
		return err
	}
	if string(magic) != lzopMagic {
		return errors.New("it does not begin as an lzop file")
	}
	crc, adler := crc32.NewIEEE(), adler32.New()
	h := lzopFields{r: io.TeeReader(z.in, io.MultiWriter(crc, adler))}
	version := h.number(2)
	if h.err == nil && version < 0x0900 {
		return fmt.Errorf("lzop version %#x is too old", version)
	}
	h.number(2)
	current := version >= 0x0940
	if current {
		if needed := h.number(2); h.err == nil && needed > 0x1040 {
			return fmt.Errorf("it needs lzop version %#x", needed)
		}
	}
	if method := h.number(1); h.err == nil && (method < 1 || method > 3) {
		return fmt.Errorf("lzop method %d is unknown", method)
	}
	if current {
		h.number(1)
	}
	z.flags = h.number(4)
	if z.flags&lzopFilter != 0 {
		if filter := h.number(4); h.err == nil && filter != 0 {
			return fmt.Errorf("lzop filter %d is not supported", filter)
		}
	}
	if h.err == nil && z.flags&lzopMultipart != 0 {
		return errors.New("an lzop file in several parts is not supported")
	}
	h.number(4)
	h.number(4)
	if current {
		h.number(4)
	}
	name := h.number(1)
	if h.err == nil {
		_, h.err = io.CopyN(io.Discard, h.r, int64(name))
	}
	var sum hash.Hash32 = adler
	if z.flags&lzopHeaderCRC != 0 {
		sum = crc
	}
	want := sum.Sum32()
	if got := h.number(4); h.err == nil && got != want {
		return errors.New("the checksum of the lzop header is wrong")
	}
	if h.err == nil && z.flags&lzopExtra != 0 {
		n := h.number(4)
		if h.err == nil {
			_, h.err = io.CopyN(io.Discard, h.r, int64(n)+4)
		}
	}
	return h.err
}

// nextBlock reads a block into out; it leaves out empty at the end of the member.
func (z *lzopReader) nextBlock() error {
	h := lzopFields{r: z.in}
	size := h.number(4)
	if h.err != nil {
		return h.err
	}
	if size == 0 {
		z.begun = false
		return nil
	}
	stored := h.number(4)
	if h.err == nil && (size > lzopMaxBlock || stored > size || size/lzoMost > stored) {
		return fmt.Errorf("an lzop block of %d bytes is stored as %d", size, stored)
	}
	var sums [4]uint32
	for i, flag := range []uint32{lzopAdlerContent, lzopCRCContent, lzopAdlerStored, lzopCRCStored} {
		if z.flags&flag != 0 && (i < 2 || stored < size) {
			sums[i] = h.number(4)
		}
	}
	if h.err != nil {
		return h.err
	}
	var err error
	if z.raw, err = readBlock(z.in, z.raw, int(stored)); err != nil {
		return err
	}
	if stored == size {
		z.out = z.raw
	} else {
		if err := z.check(lzopAdlerStored, lzopCRCStored, z.raw, sums[2], sums[3]); err != nil {
			return err
		}
		if cap(z.block) < int(size) {
			z.block = make([]byte, size)
		}
		n, err := lzo.Decompress(z.raw, z.block[:size])
		if err != nil {
			return err
		}
		if n != int(size) {
			return fmt.Errorf("an lzop block of %d bytes has %d", size, n)
		}
		z.out = z.block[:size]
	}
	err = z.check(lzopAdlerContent, lzopCRCContent, z.out, sums[0], sums[1])
	if err != nil {
		z.out = nil
	}
	return err
}

// check compares b with the checksums that the flags say there are.
func (z *lzopReader) check(adlerFlag, crcFlag uint32, b []byte, adler, crc uint32) error {
	if z.flags&adlerFlag != 0 && adler32.Checksum(b) != adler || z.flags&crcFlag != 0 && crc32.ChecksumIEEE(b) != crc {
		return errors.New("the checksum of an lzop block is wrong")
	}
	return nil
}

// readBlock reads n bytes into b, which it makes larger only as far as bytes arrive.
func readBlock(in io.Reader, b []byte, n int) ([]byte, error) {
	const step = 1 << 20
	for b = b[:0]; len(b) < n; {
		k := min(n-len(b), max(step, cap(b)-len(b)))
		if cap(b)-len(b) < k {
			b = append(make([]byte, 0, len(b)+k), b...)
		}
		if _, err := io.ReadFull(in, b[len(b):len(b)+k]); err != nil {
			return b, err
		}
		b = b[:len(b)+k]
	}
	return b, nil
}

// lzopFields reads numbers and keeps the first error.
type lzopFields struct {
	r   io.Reader
	err error
}

func (h *lzopFields) number(size int) uint32 {
	var b [4]byte
	if h.err == nil {
		_, h.err = io.ReadFull(h.r, b[4-size:])
	}
	return binary.BigEndian.Uint32(b[:])
}
