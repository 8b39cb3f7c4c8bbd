package walrec_test

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

var magics = map[int]uint16{10: 0xD097, 11: 0xD098, 12: 0xD101, 13: 0xD106, 14: 0xD10D, 15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}

// writer writes WAL as a server does, beginning with a segment.
type writer struct {
	version  int
	size     wal.SegmentSize
	timeline wal.Timeline
	start    wal.LSN
	wal      []byte // from start
	prev     wal.LSN
	lines    []string  // of the records
	begins   []wal.LSN // of the records
}

const pageLen = 8192

func newWriter(version int, size wal.SegmentSize, first wal.SegmentNo) *writer {
	return &writer{version: version, size: size, timeline: 3, start: size.Start(first)}
}

func (w *writer) lsn() wal.LSN { return w.start + wal.LSN(len(w.wal)) }

// page begins a page.
func (w *writer) page(flags uint16, rest uint32) {
	length := 24
	if uint64(w.lsn())%uint64(w.size) == 0 {
		flags, length = flags|0x0002, 40
	}
	b := make([]byte, 40)
	le := binary.LittleEndian
	le.PutUint16(b, magics[w.version])
	le.PutUint16(b[2:], flags)
	le.PutUint32(b[4:], uint32(w.timeline))
	le.PutUint64(b[8:], uint64(w.lsn()))
	le.PutUint32(b[16:], rest)
	le.PutUint64(b[24:], 7359000000000000001)
	le.PutUint32(b[32:], uint32(w.size))
	le.PutUint32(b[36:], pageLen)
	w.wal = append(w.wal, b[:length]...)
}

func (w *writer) room() int { return (pageLen - len(w.wal)%pageLen) % pageLen }

// begin goes to where the next record begins.
func (w *writer) begin() wal.LSN {
	if w.room() == 0 {
		w.page(0, 0)
	}
	return w.lsn()
}

// body is a record without its header.
type body struct {
	rm, info uint8
	xid      uint32
	refs     []walrec.BlockRef
	headers  []byte // of refs
	data     []byte // of refs
	main     []byte
}

// block adds a block reference. data and image are how many bytes come with it.
func (b *body) block(version int, ref walrec.BlockRef, data, image int) {
	sameRel := len(b.refs) > 0 && b.refs[len(b.refs)-1].Rel == ref.Rel
	b.refs = append(b.refs, ref)
	flags := uint8(ref.Fork)
	if data > 0 {
		flags |= 0x20
	}
	if ref.Image {
		flags |= 0x10
	}
	if sameRel {
		flags |= 0x80
	}
	le := binary.LittleEndian
	b.headers = append(b.headers, ref.ID, flags)
	b.headers = le.AppendUint16(b.headers, uint16(data))
	if ref.Image {
		b.headers = le.AppendUint16(b.headers, uint16(image))
		b.headers = le.AppendUint16(b.headers, 100) // where the hole begins
		info := uint8(0x01)
		apply, compressed := uint8(0x04), uint8(0x02)
		if version >= 15 {
			apply, compressed = 0x02, 0x08
		}
		if ref.Apply {
			info |= apply
		}
		if image%2 == 0 {
			info |= compressed
		}
		b.headers = append(b.headers, info)
		if image%2 == 0 {
			b.headers = append(b.headers, 0xFE, 0xFF) // how long it is
		}
	}
	if !sameRel {
		b.headers = appendRelation(b.headers, ref.Rel)
	}
	b.headers = le.AppendUint32(b.headers, ref.Block)
	b.data = append(b.data, make([]byte, data)...)
	if ref.Image {
		b.data = append(b.data, make([]byte, image)...)
	}
}

func appendRelation(b []byte, r blockset.Relation) []byte {
	le := binary.LittleEndian
	return le.AppendUint32(le.AppendUint32(le.AppendUint32(b, r.Tablespace), r.Database), r.Number)
}

// encode returns the record that is to be at lsn.
func (w *writer) encode(b body) []byte {
	le := binary.LittleEndian
	r := make([]byte, 24, 64)
	r = append(r, b.headers...)
	if len(b.main) > math.MaxUint8 {
		r = le.AppendUint32(append(r, 254), uint32(len(b.main)))
	} else if len(b.main) > 0 {
		r = append(r, 255, uint8(len(b.main)))
	}
	r = append(append(r, b.data...), b.main...)
	le.PutUint32(r, uint32(len(r)))
	le.PutUint32(r[4:], b.xid)
	le.PutUint64(r[8:], uint64(w.prev))
	r[16], r[17] = b.info, b.rm
	table := crc32.MakeTable(crc32.Castagnoli)
	le.PutUint32(r[20:], crc32.Update(crc32.Checksum(r[24:], table), table, r[:20]))
	return r
}

// record writes a record and returns where it begins.
func (w *writer) record(b body) wal.LSN {
	lsn := w.begin()
	r := w.encode(b)
	w.lines = append(w.lines, line(&walrec.Record{LSN: lsn, Prev: w.prev, Length: uint32(len(r)), XID: b.xid, RM: b.rm, Info: b.info, Blocks: b.refs}))
	w.begins = append(w.begins, lsn)
	w.raw(r, -1)
	w.prev = lsn
	return lsn
}

// raw writes a record's bytes, up to so many page ends if that is not negative.
func (w *writer) raw(r []byte, ends int) {
	w.begin()
	for {
		n := min(w.room(), len(r))
		w.wal, r = append(w.wal, r[:n]...), r[n:]
		if len(r) == 0 {
			break
		}
		if ends == 0 {
			return
		}
		ends--
		w.page(0x0001, uint32(len(r)))
	}
	for len(w.wal)%8 != 0 {
		w.wal = append(w.wal, 0xA5) // which is not looked at
	}
}

// message writes a logical message of so many bytes, which changes nothing.
func (w *writer) message(n int) wal.LSN {
	return w.record(body{rm: 21, main: make([]byte, n)})
}

// abandon writes the beginning of a record up to so many page ends, and then what a server does that finds it so after a crash.
func (w *writer) abandon(b body, ends int) {
	lost := w.begin()
	w.raw(w.encode(b), ends)
	w.page(0x0008, 0)
	w.record(body{rm: walrec.RMXLOG, info: 0xD0, main: append(binary.LittleEndian.AppendUint64(nil, uint64(lost)), make([]byte, 8)...)})
	w.begins[len(w.begins)-1] = lost
}

// fill writes messages until the current page has n bytes left, a multiple of 8 and at most half a page.
func (w *writer) fill(n int) {
	w.begin()
	if w.room() < n+32 {
		w.message(w.room())
	}
	total := w.room() - n
	w.message(total - 24 - map[bool]int{true: 5, false: 2}[total > 281])
}

// switchWAL ends the segment.
func (w *writer) switchWAL() {
	w.record(body{rm: walrec.RMXLOG, info: 0x40})
	w.pad()
}

// pad fills the segment with zeros.
func (w *writer) pad() {
	if n := len(w.wal) % int(w.size); n > 0 {
		w.wal = append(w.wal, make([]byte, int(w.size)-n)...)
	}
}

// segments returns the segments, the last one padded.
func (w *writer) segments() [][]byte {
	w.pad()
	return slices.Collect(slices.Chunk(w.wal, int(w.size)))
}
