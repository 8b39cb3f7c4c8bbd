package walrec

import (
	"encoding/binary"
	"fmt"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
)

// Resource managers whose records do more than their block references say, or of whose rows something is told (src/include/access/rmgrlist.h).
// The numbers are the same in all versions.
const (
	RMXLOG       = 0
	RMXact       = 1
	RMStorage    = 2
	RMDatabase   = 4
	RMTablespace = 5
	RMRelMap     = 7
	RMStandby    = 8
	RMHeap2      = 9
	RMHeap       = 10

	lastBuiltin = 21  // RM_LOGICALMSG_ID
	firstCustom = 128 // RM_MIN_CUSTOM_ID, of extensions, since 15
)

// recordHeaderLen is SizeOfXLogRecord: length, transaction, previous record, info, resource manager, two bytes of nothing, CRC.
const recordHeaderLen = 24

// maxRecord is the length beyond which PostgreSQL itself could not read a record back (MaxAllocSize).
const maxRecord = 1 << 30

// Record is one WAL record. Its slices are valid until the next one is read.
type Record struct {
	LSN     wal.LSN // of its first byte
	End     wal.LSN // where the next one may begin: rounded up to 8; after a switch, the end of the segment
	Prev    wal.LSN // of the record before; 0 in the first that initdb or pg_resetwal wrote
	Length  uint32  // in bytes, without page headers and rounding
	XID     uint32  // of the transaction; 0 for none
	RM      uint8   // resource manager
	Info    uint8   // what it did; the low four bits are of all resource managers (XLR_INFO_MASK)
	TopXID  uint32  // of the outermost transaction, where a subtransaction says it (wal_level logical, since 14); else 0
	Origin  uint16  // replication origin; 0 for none
	Blocks  []BlockRef
	Main    []byte // what the resource manager wrote beside blocks; less than MainLength only in records of more than 16 MiB
	MainLen uint32

	body    []byte // the record, or what is kept of it
	version int    // of PostgreSQL
}

// BlockRef is a block that a record changes.
type BlockRef struct {
	Rel   blockset.Relation
	Block uint32
	ID    uint8 // by which the record's redo calls it; ascending
	Fork  blockset.Fork
	Image bool // a full page image comes with it
	Apply bool // and replay restores it; else it is there for wal_consistency_checking
}

// decode reads the block references and the main data of the record that begins with b and is rec.Length bytes long; b may have
// fewer.
func (rec *Record) decode(b []byte, version int) error {
	imageApply, imageCompressed := uint8(0x04), uint8(0x02)
	if version >= 15 { // one bit more per way to compress
		imageApply, imageCompressed = 0x02, 0x04|0x08|0x10
	}
	le := binary.LittleEndian
	rec.Blocks, rec.Main, rec.MainLen, rec.TopXID, rec.Origin = rec.Blocks[:0], nil, 0, 0, 0
	rec.body, rec.version = b, version
	var rel blockset.Relation
	hasRel := false
	lastID := -1
	var data uint64 // bytes that the headers so far announce
	p := recordHeaderLen
	short := func() error { return fmt.Errorf("its headers end beyond its %d bytes", rec.Length) }
	for uint64(rec.Length)-uint64(p) > data {
		h := b[p:]
		if len(h) == 0 {
			return short()
		}
		id := h[0]
		switch {
		case id == 255 || id == 254: // main data, short and long form; always the last
			if id == 255 {
				if len(h) < 2 {
					return short()
				}
				rec.MainLen, p = uint32(h[1]), p+2
			} else {
				if len(h) < 5 {
					return short()
				}
				rec.MainLen, p = le.Uint32(h[1:]), p+5
			}
			data += uint64(rec.MainLen)
			if uint64(rec.Length) != uint64(p)+data {
				return fmt.Errorf("its %d bytes are not the %d that its headers announce", rec.Length, uint64(p)+data)
			}
			start := rec.Length - rec.MainLen
			rec.Main = b[min(uint64(start), uint64(len(b))):]
			return nil
		case id == 253:
			if len(h) < 3 {
				return short()
			}
			rec.Origin, p = le.Uint16(h[1:]), p+3
			continue
		case id == 252:
			if len(h) < 5 {
				return short()
			}
			rec.TopXID, p = le.Uint32(h[1:]), p+5
			continue
		case id > 32: // XLR_MAX_BLOCK_ID
			return fmt.Errorf("header of unknown kind %d", id)
		case int(id) <= lastID:
			return fmt.Errorf("block %d after block %d", id, lastID)
		}
		lastID = int(id)
		if len(h) < 4 {
			return short()
		}
		flags, length := h[1], le.Uint16(h[2:])
		if (flags&0x20 != 0) != (length != 0) { // BKPBLOCK_HAS_DATA
			return fmt.Errorf("block %d with flags %#x has %d bytes", id, flags, length)
		}
		data += uint64(length)
		n := 4
		ref := BlockRef{ID: id, Fork: blockset.Fork(flags & 0x0F)}
		if ref.Fork > blockset.Init {
			return fmt.Errorf("block %d is of fork %d", id, ref.Fork)
		}
		if flags&0x10 != 0 { // BKPBLOCK_HAS_IMAGE
			if len(h) < n+5 {
				return short()
			}
			info := h[n+4]
			data += uint64(le.Uint16(h[n:]))
			n += 5
			if info&imageCompressed != 0 && info&0x01 != 0 { // and it has a hole, whose length cannot be derived
				n += 2
			}
			ref.Image, ref.Apply = true, info&imageApply != 0
		}
		if flags&0x80 == 0 { // not BKPBLOCK_SAME_REL
			if len(h) < n+12 {
				return short()
			}
			rel = blockset.Relation{Tablespace: le.Uint32(h[n:]), Database: le.Uint32(h[n+4:]), Number: le.Uint32(h[n+8:])}
			n += 12
			hasRel = true
		} else if !hasRel {
			return fmt.Errorf("block %d is of the same relation as none", id)
		}
		if len(h) < n+4 {
			return short()
		}
		ref.Rel, ref.Block = rel, le.Uint32(h[n:])
		if rel.Tablespace == 0 || ref.Block == blockset.NoLimit {
			return fmt.Errorf("block %d is %d of %s", id, ref.Block, rel)
		}
		rec.Blocks = append(rec.Blocks, ref)
		p += n + 4
	}
	if uint64(rec.Length) != uint64(p)+data {
		return fmt.Errorf("its %d bytes are not the %d that its headers announce", rec.Length, uint64(p)+data)
	}
	return nil
}

// header reads a record's first recordHeaderLen bytes and refuses what no server writes.
func (rec *Record) header(b []byte, version int) error {
	le := binary.LittleEndian
	rec.Length, rec.XID, rec.Prev = le.Uint32(b), le.Uint32(b[4:]), wal.LSN(le.Uint64(b[8:]))
	rec.Info, rec.RM = b[16], b[17]
	switch {
	case rec.Length < recordHeaderLen || rec.Length > maxRecord:
		return fmt.Errorf("length %d", rec.Length)
	case rec.RM > lastBuiltin && (rec.RM < firstCustom || version < 15):
		return fmt.Errorf("resource manager %d", rec.RM)
	case rec.Prev >= rec.LSN:
		return fmt.Errorf("the record before it is said to be at %s", rec.Prev)
	}
	return nil
}

// checkCRC compares the CRC-32C in a record's header with that of the rest, body, continued over the header up to it.
func checkCRC(header []byte, body uint32) error {
	want := binary.LittleEndian.Uint32(header[20:])
	if got := crc32c.Update(body, header[:20]); got != want {
		return fmt.Errorf("CRC-32C is %08X, want %08X", got, want)
	}
	return nil
}

// is says whether rec is of a resource manager and did what info says.
func (rec *Record) is(rm, info uint8) bool { return rec.RM == rm && rec.Info&0xF0 == info }
