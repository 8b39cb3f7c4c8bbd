package compress

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The zstd format (RFC 8878, section 3.1), as far as needed to write our frame headers and to find where a frame ends.
//
//	frame      magic:4 descriptor:1 [window:1] [dictionary:0|1|2|4] [content size:0|1|2|4|8] block… [checksum:4]
//	block      header:3 (last:1 bit, type:2 bits, size:21 bits), then size bytes, or 1 byte in a block of type RLE
//	skippable  magic:4 (…50 to …5F) size:4, then size bytes
const (
	frameMagic     = 0xFD2FB528
	skippableMagic = 0x184D2A50 // the last four bits are the user's

	maxFrameHeader = 18
	ourHeader      = 4 + 1 + 8 // of frames we write

	maxWindow = 128 << 20 // what decompressing one stream may cost; zstd's own tool stops there as well
)

// ourDescriptor marks the frames we write: single segment, with a checksum, and a content size in 8 bytes though 4
// would do. No encoder does that by itself, so a reader knows by it that a seek table must follow.
const ourDescriptor = 3<<6 | 1<<5 | 1<<2

var (
	errNotZstd = errors.New("not zstd data")
	errCorrupt = errors.New("corrupt zstd data")
	errTooBig  = fmt.Errorf("zstd data needs a window of more than %d MiB", maxWindow>>20)
)

// A frameHeader is what the beginning of a frame says. The zero value says nothing.
type frameHeader struct {
	len       int    // of the header itself, bytes
	skippable uint32 // magic number of a skippable frame, 0 otherwise; content is then what is to be skipped
	sized     bool   // whether content is known
	content   uint64 // bytes
	window    uint64 // bytes, of content where the frame is a single segment
	checksum  bool   // whether four bytes follow the last block
	ours      bool
}

// parseHeader decodes the header of the frame that b begins with. Where b is too short it returns how many bytes are
// needed at least, which may still be too few.
func parseHeader(b []byte) (h frameHeader, need int, err error) {
	if len(b) < 5 {
		return h, 5, nil
	}
	le := binary.LittleEndian
	magic := le.Uint32(b)
	if magic&^0xF == skippableMagic {
		if len(b) < 8 {
			return h, 8, nil
		}
		return frameHeader{len: 8, skippable: magic, sized: true, content: uint64(le.Uint32(b[4:]))}, 0, nil
	}
	if magic != frameMagic {
		return h, 0, errNotZstd
	}
	d := b[4]
	if d&(1<<3) != 0 {
		return h, 0, fmt.Errorf("%w: reserved bit in the frame header", errCorrupt)
	}
	single := d&(1<<5) != 0
	sizeLen := [4]int{0, 2, 4, 8}[d>>6]
	if sizeLen == 0 && single {
		sizeLen = 1
	}
	dictLen := [4]int{0, 1, 2, 4}[d&3]
	at := 5
	if !single {
		at++
	}
	h.len = at + dictLen + sizeLen
	if len(b) < h.len {
		return frameHeader{}, h.len, nil
	}
	for _, x := range b[at : at+dictLen] {
		if x != 0 {
			return h, 0, fmt.Errorf("%w: the frame needs a dictionary", errCorrupt)
		}
	}
	size := b[at+dictLen : h.len]
	h.sized = true
	switch sizeLen {
	case 0:
		h.sized = false
	case 1:
		h.content = uint64(size[0])
	case 2:
		h.content = uint64(le.Uint16(size)) + 256
	case 4:
		h.content = uint64(le.Uint32(size))
	case 8:
		h.content = le.Uint64(size)
	}
	h.window = h.content
	if !single {
		w := b[5]
		h.window = 1 << (10 + w>>3)
		h.window += h.window / 8 * uint64(w&7)
	}
	h.checksum = d&(1<<2) != 0
	h.ours = d == ourDescriptor && h.content <= FrameSize
	return h, 0, nil
}

// frameLen returns how long the frame with header h is that b begins with. Where b is too short to tell, it returns how
// many bytes are needed at least. The frame is not a skippable one.
func (h frameHeader) frameLen(b []byte) (n, need int, err error) {
	for n = h.len; ; {
		if len(b) < n+3 {
			return 0, n + 3, nil
		}
		block := uint32(b[n]) | uint32(b[n+1])<<8 | uint32(b[n+2])<<16
		size := int(block >> 3)
		switch n += 3; block >> 1 & 3 {
		case 0, 2: // raw, compressed
			if size > 128<<10 {
				return 0, 0, fmt.Errorf("%w: a block of %d bytes", errCorrupt, size)
			}
			n += size
		case 1: // one byte, repeated
			n++
		default:
			return 0, 0, fmt.Errorf("%w: reserved block type", errCorrupt)
		}
		if block&1 != 0 {
			break
		}
	}
	if h.checksum {
		n += 4
	}
	return n, 0, nil
}

// putHeader writes the header of a frame of ours to b.
func putHeader(b []byte, content int) {
	binary.LittleEndian.PutUint32(b, frameMagic)
	b[4] = ourDescriptor
	binary.LittleEndian.PutUint64(b[5:], uint64(content))
}
