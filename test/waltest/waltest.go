// Package waltest makes WAL for tests. Only tests import it.
package waltest

import (
	"encoding/binary"
	"math/rand/v2"

	"holdfast/internal/pg/wal"
)

// PutHeader begins b as PostgreSQL 15 begins segment no of a timeline of the cluster id: with a long page header (XLogLongPageHeaderData in xlog_internal.h).
func PutHeader(b []byte, size wal.SegmentSize, t wal.Timeline, no wal.SegmentNo, id uint64) {
	const long, pageSize = 0x0002, 8192
	le := binary.LittleEndian
	le.PutUint16(b, 0xD110)
	le.PutUint16(b[2:], long)
	le.PutUint32(b[4:], uint32(t))
	le.PutUint64(b[8:], uint64(size.Start(no)))
	le.PutUint64(b[24:], id)
	le.PutUint32(b[32:], uint32(size))
	le.PutUint32(b[36:], pageSize)
}

// Segment makes the content of the segment whose name begins with name's first 24 characters: a long page header, and bytes that compress a little, others for
// another seed.
func Segment(size wal.SegmentSize, name string, id, seed uint64) []byte {
	t, no, err := size.ParseSegment(name[:24])
	if err != nil {
		panic(err)
	}
	r := rand.New(rand.NewPCG(seed, uint64(no)))
	b := make([]byte, size)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64()&0x3F3F3F3F3F3F3F3F)
	}
	PutHeader(b, size, t, no, id)
	return b
}
