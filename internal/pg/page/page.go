// Package page reads the headers of a relation's pages and verifies their checksums, for PostgreSQL 10 to 18.
//
// A page is Size bytes of a relation's file, in any of its forks, and begins with PageHeaderData (src/include/storage/bufpage.h),
// here little-endian:
//
//	lsn  checksum  flags  lower  upper  special  size and version  prune xid
//	8    2         2      2      2      2        2                 4
//
// The LSN is two words of 32 bits, the high one first. The layout version is 4 in all these releases.
package page

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/wal"
)

// Size is the length of a page in bytes. PostgreSQL can be built with other sizes (BLCKSZ), which pg_control tells; nothing
// here is right for those.
const Size = 8192

// HeaderLen is how many bytes of a page ReadHeader needs: SizeOfPageHeaderData.
const HeaderLen = 24

// Header is how a page begins.
type Header struct {
	LSN      wal.LSN // end of the WAL record that changed the page last
	Checksum uint16  // meaningful only in a cluster with checksums, and not in a new page
	Flags    uint16  // PD_HAS_FREE_LINES 1, PD_PAGE_FULL 2, PD_ALL_VISIBLE 4
	Lower    uint16  // offset to the start of free space
	Upper    uint16  // offset to its end; 0 in a page that was never initialised
	Special  uint16  // offset to what the access method keeps at the end
	PageSize uint16  // bytes, a multiple of 256
	Version  uint8   // of the layout: 4
	PruneXID uint32  // oldest transaction whose rows may be pruned, or 0
}

// ReadHeader decodes the first HeaderLen bytes of a page. It judges nothing: see Check.
func ReadHeader(p []byte) (Header, error) {
	if len(p) < HeaderLen {
		return Header{}, fmt.Errorf("page header: %d bytes, want %d", len(p), HeaderLen)
	}
	le := binary.LittleEndian
	return Header{
		LSN:      wal.LSN(uint64(le.Uint32(p))<<32 | uint64(le.Uint32(p[4:]))),
		Checksum: le.Uint16(p[8:]),
		Flags:    le.Uint16(p[10:]),
		Lower:    le.Uint16(p[12:]),
		Upper:    le.Uint16(p[14:]),
		Special:  le.Uint16(p[16:]),
		PageSize: le.Uint16(p[18:]) &^ 0xFF,
		Version:  p[18],
		PruneXID: le.Uint32(p[20:]),
	}, nil
}

// AllVisible says whether h is of a page all of whose rows everybody sees (PD_ALL_VISIBLE). The visibility map may say so too only where this holds.
func (h Header) AllVisible() bool { return h.Flags&4 != 0 }

// IsNew says whether h is of a page that was allocated but never initialised (PageIsNew).
func (h Header) IsNew() bool { return h.Upper == 0 }

// Check returns what makes h impossible in a page of Size bytes that is not new, by the rules of PageIsVerified, or nil.
func (h Header) Check() error {
	switch {
	case h.PageSize != Size || h.Version != 4:
		return fmt.Errorf("page header: size %d and layout version %d, want %d and 4", h.PageSize, h.Version, Size)
	case h.Flags&^7 != 0:
		return fmt.Errorf("page header: flags %#x", h.Flags)
	case h.Lower < HeaderLen || h.Lower > h.Upper || h.Upper > h.Special || h.Special > Size || h.Special%8 != 0:
		return fmt.Errorf("page header: lower %d, upper %d, special %d", h.Lower, h.Upper, h.Special)
	}
	return nil
}

// IsNew says whether the page p was allocated but never initialised. Such a page has no checksum and is all zeros.
func IsNew(p []byte) bool { return p[14]|p[15] == 0 }

// Checksum returns the checksum that the page p must have in its header as block number block of its relation, counted
// through all segments of the fork (pg_checksum_page in src/include/storage/checksum_impl.h). It is never 0. What p has in
// the place of the checksum does not matter. p must have Size bytes.
func Checksum(p []byte, block uint32) uint16 {
	return uint16((sum((*[Size]byte)(p))^block)%65535 + 1)
}

// Verify returns the index of the first bad page among those of p, or -1 when all are good. p holds whole pages (a rest is
// not looked at), the first of which is block number first of its relation. A page is good if its checksum is right or if it is new and all zeros;
// what reads as bad may be a page in the middle of being written.
func Verify(p []byte, first uint32) int {
	for i := 0; len(p) >= Size; i++ {
		page := p[:Size]
		p = p[Size:]
		if IsNew(page) {
			if !bytes.Equal(page, zeros[:]) {
				return i
			}
		} else if Checksum(page, first+uint32(i)) != binary.LittleEndian.Uint16(page[8:]) {
			return i
		}
	}
	return -1
}

var zeros [Size]byte

// AppendCRC returns the CRC-32C of something followed by a page, given that of the former and that of the page. 0 is that of nothing, so that those
// of a file's pages give that of the file, as PostgreSQL's manifest has it. It is not the checksum in the page's header.
func AppendCRC(sum, page uint32) uint32 { return appender.Append(sum, page) }

var appender = crc32c.NewAppender(Size)
