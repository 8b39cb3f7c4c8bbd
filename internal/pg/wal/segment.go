package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderLen is how many bytes of a segment ReadHeader needs: SizeOfXLogLongPHD.
const HeaderLen = 40

// Header is what the long page header at the start of every segment says (XLogLongPageHeaderData).
type Header struct {
	Magic            uint16 // XLOG_PAGE_MAGIC, differs per major version
	Timeline         Timeline
	Address          LSN // position of the segment's first byte
	SystemIdentifier uint64
	SegmentSize      SegmentSize
}

// errNoHeader says why bytes are not a segment's start.
var errNoHeader = errors.New("not the start of a WAL segment")

// ReadHeader decodes the first HeaderLen bytes of a segment, written by a little-endian server.
func ReadHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, fmt.Errorf("%w: %d bytes are fewer than a page header's %d", errNoHeader, len(b), HeaderLen)
	}
	le := binary.LittleEndian
	h := Header{
		Magic:            le.Uint16(b),
		Timeline:         Timeline(le.Uint32(b[4:])),
		Address:          LSN(le.Uint64(b[8:])),
		SystemIdentifier: le.Uint64(b[24:]),
		SegmentSize:      SegmentSize(le.Uint32(b[32:])),
	}
	// XLOG_PAGE_MAGIC has been 0xD0xx or 0xD1xx since 9.x; XLP_LONG_HEADER is 0x0002.
	if h.Magic>>9 != 0xD0>>1 || le.Uint16(b[2:])&0x0002 == 0 {
		return Header{}, fmt.Errorf("%w: page magic %04X, flags %04X", errNoHeader, h.Magic, le.Uint16(b[2:]))
	}
	if !h.SegmentSize.Valid() || uint64(h.Address)%uint64(h.SegmentSize) != 0 {
		return Header{}, fmt.Errorf("%w: segment size %d, address %s", errNoHeader, h.SegmentSize, h.Address)
	}
	return h, nil
}
