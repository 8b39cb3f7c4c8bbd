package walrec

import (
	"encoding/binary"
	"iter"
	"time"

	"holdfast/internal/pg/blockset"
)

// What records of transactions do, and what they say beside it (src/include/access/xact.h).
const (
	xactCommit         = 0x00
	xactAbort          = 0x20
	xactCommitPrepared = 0x30
	xactAbortPrepared  = 0x40
	xactOperation      = 0x70
	xactHasInfo        = 0x80

	xactHasDatabase  = 1 << 0
	xactHasSubxacts  = 1 << 1
	xactHasRelations = 1 << 2
	xactHasInvals    = 1 << 3
	xactHasTwophase  = 1 << 4
	xactHasStats     = 1 << 8 // since 15

	invalLen      = 16 // sizeof(SharedInvalidationMessage)
	invalRelcache = -2 // SHAREDINVALRELCACHE_ID
)

// XactEnd is the end of a transaction, or of a subtransaction that was rolled back.
type XactEnd struct {
	Committed bool
	XID       uint32    // the transaction; of a prepared one the one that was prepared
	Time      time.Time // by the server's clock, before the record was written
	Database  uint32    // OID; 0 where the record does not say it
	Prepared  bool      // it was prepared before (PREPARE TRANSACTION)
	Cut       bool      // the record is so long that what follows Dropped was not kept, and is not known

	// Arrays as they are in the record.
	subxacts, relations, stats, invals []byte
	version                            int
}

// end is a record's beginning, which is the same in all versions.
type end struct {
	has                 uint32
	database            uint32
	subxacts, relations []byte
	rest                []byte
	cut                 bool // what follows the database was not kept
}

// end reads what the record of the end of a transaction says, up to the relations that were dropped (ParseCommitRecord, ParseAbortRecord). ok is false
// for other records.
func (rec *Record) end() (e end, ok bool, err error) {
	if rec.RM != RMXact {
		return e, false, nil
	}
	switch rec.Info & xactOperation {
	case xactCommit, xactAbort, xactCommitPrepared, xactAbortPrepared:
	default:
		return e, false, nil
	}
	if rec.Info&xactHasInfo == 0 {
		return e, true, nil
	}
	b := rec.Main
	le := binary.LittleEndian
	if len(b) < 12 {
		return e, true, rec.errShort()
	}
	e.has = le.Uint32(b[8:])
	b = b[12:]
	if e.has&xactHasDatabase != 0 {
		if len(b) < 8 {
			return e, true, rec.errShort()
		}
		e.database, b = le.Uint32(b), b[8:]
	}
	take := func(size uint64) ([]byte, bool) {
		a, rest, ok := array(b, size)
		b = rest
		return a, ok
	}
	if e.has&xactHasSubxacts != 0 {
		if e.subxacts, ok = take(4); !ok {
			if e.has&xactHasRelations == 0 && uint32(len(rec.Main)) < rec.MainLen {
				e.cut = true
				return e, true, nil
			}
			return e, true, rec.errShort()
		}
	}
	if e.has&xactHasRelations != 0 {
		if e.relations, ok = take(12); !ok {
			return e, true, rec.errShort()
		}
	}
	e.rest = b
	return e, true, nil
}

// XactEnd says what the end of a transaction says; ok is false where rec is none. It is valid as long as rec is.
func (rec *Record) XactEnd() (x XactEnd, ok bool, err error) {
	e, ok, err := rec.end()
	if !ok || err != nil {
		return x, ok, err
	}
	if len(rec.Main) < 8 {
		return x, true, rec.errShort()
	}
	op := rec.Info & xactOperation
	x = XactEnd{
		Committed: op == xactCommit || op == xactCommitPrepared, Prepared: op == xactCommitPrepared || op == xactAbortPrepared, XID: rec.XID, Time: timestamp(rec.Main), Database: e.database,
		subxacts: e.subxacts, relations: e.relations, version: rec.version, Cut: e.cut,
	}
	le := binary.LittleEndian
	b := e.rest
	whole := uint32(len(rec.Main)) == rec.MainLen
	take := func(size uint64) (a []byte) {
		if !x.Cut {
			a, b, ok = array(b, size)
			x.Cut = !ok
		}
		return a
	}
	if e.has&xactHasStats != 0 && rec.version >= 15 {
		x.stats = take(uint64(statLen(rec.version)))
	}
	if e.has&xactHasInvals != 0 && x.Committed {
		x.invals = take(invalLen)
	}
	if e.has&xactHasTwophase != 0 && !x.Cut {
		if x.Cut = len(b) < 4; !x.Cut {
			x.XID = le.Uint32(b)
		}
	}
	if x.Cut && whole {
		return x, true, rec.errShort()
	}
	return x, true, nil
}

// array splits off what begins b: a number, and as many elements of size bytes.
func array(b []byte, size uint64) (elements, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, b, false
	}
	n := uint64(binary.LittleEndian.Uint32(b)) * size
	if uint64(len(b)-4) < n {
		return nil, b, false
	}
	return b[4 : 4+n], b[4+n:], true
}

// statLen is sizeof(xl_xact_stats_item). 18 gave objects 64 bits.
func statLen(version int) int {
	if version >= 18 {
		return 16
	}
	return 12
}

// Subxacts yields the subtransactions that end with it.
func (x *XactEnd) Subxacts() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for b := x.subxacts; len(b) >= 4; b = b[4:] {
			if !yield(binary.LittleEndian.Uint32(b)) {
				return
			}
		}
	}
}

// Dropped yields the relations whose files go with it: of what was dropped, and the former files of what got new ones. Temporary relations are not
// among them.
func (x *XactEnd) Dropped() iter.Seq[blockset.Relation] {
	return func(yield func(blockset.Relation) bool) {
		for b := x.relations; len(b) >= 12; b = b[12:] {
			if !yield(relation(b)) {
				return
			}
		}
	}
}

// Drops says whether Dropped yields any.
func (x *XactEnd) Drops() bool { return len(x.relations) > 0 }

// DroppedStats yields the relations whose statistics go with it, as their OIDs (xl_xact_stats_item, since 15): those that were dropped.
// Temporary ones and those that were made in the same transaction are among them.
func (x *XactEnd) DroppedStats() iter.Seq2[uint32, uint32] {
	const kindRelation = 2 // PGSTAT_KIND_RELATION
	return func(yield func(database, oid uint32) bool) {
		le := binary.LittleEndian
		for b, n := x.stats, statLen(x.version); len(b) >= n; b = b[n:] {
			if le.Uint32(b) == kindRelation && !yield(le.Uint32(b[4:]), le.Uint32(b[8:])) {
				return
			}
		}
	}
}

// Invalidated yields the relations of which sessions must forget what they know of them, as their OIDs: all whose definition it changed, and some beside.
func (x *XactEnd) Invalidated() iter.Seq2[uint32, uint32] {
	return func(yield func(database, oid uint32) bool) {
		le := binary.LittleEndian
		for b := x.invals; len(b) >= invalLen; b = b[invalLen:] {
			if int8(b[0]) == invalRelcache && !yield(le.Uint32(b[4:]), le.Uint32(b[8:])) {
				return
			}
		}
	}
}

// timestamp decodes a TimestampTz: microseconds since 2000.
func timestamp(b []byte) time.Time {
	const epoch = 946684800 // 2000-01-01 in seconds of the Unix time
	us := int64(binary.LittleEndian.Uint64(b))
	return time.Unix(epoch+us/1e6, us%1e6*1e3).UTC()
}
