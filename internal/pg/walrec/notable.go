package walrec

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
)

const (
	xlogCheckpointOnline = 0x10
	xlogRestorePoint     = 0x70

	standbyLock    = 0x00
	standbyRunning = 0x10
	relmapUpdate   = 0x00

	heapInsert      = 0x00
	heapDelete      = 0x10
	heapUpdate      = 0x20
	heapTruncate    = 0x30 // since 11
	heapHotUpdate   = 0x40
	heapInPlace     = 0x70
	heapOperation   = 0x70
	heap2MultiInser = 0x50

	deleteIsSuper    = 1 << 3 // of a row that was inserted by way of trial
	deleteMoves      = 1 << 4 // of a row that an UPDATE moves to another partition; since 11
	updateHasPrefix  = 1 << 5
	updateHasSuffix  = 1 << 6
	restorePointName = 64 // MAXFNAMELEN
)

// RestorePoint returns the name that was given to the point in the log (pg_create_restore_point), and when. ok is false where rec is none.
func (rec *Record) RestorePoint() (name string, at time.Time, ok bool) {
	if !rec.is(RMXLOG, xlogRestorePoint) || len(rec.Main) < 8+restorePointName {
		return "", time.Time{}, false
	}
	b := rec.Main[8 : 8+restorePointName]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b), timestamp(rec.Main), true
}

// Checkpoint is the record of a checkpoint, or of the end of recovery.
type Checkpoint struct {
	Shutdown      bool         // none is under way: the server was stopped, or recovery ended
	EndOfRecovery bool         // the record of the end of recovery, which is not yet a checkpoint
	Redo          wal.LSN      // where recovery from it begins; 0 of EndOfRecovery
	Timeline      wal.Timeline // of what follows
	PrevTimeline  wal.Timeline // of what came before; another one where a server was promoted
	Time          time.Time    // when it began; whole seconds, but of EndOfRecovery
}

// Checkpoint says what a checkpoint says; ok is false where rec is none.
func (rec *Record) Checkpoint() (c Checkpoint, ok bool, err error) {
	if rec.RM != RMXLOG {
		return c, false, nil
	}
	le := binary.LittleEndian
	b := rec.Main
	switch info := rec.Info & 0xF0; info {
	case xlogCheckpointShutdown, xlogCheckpointOnline:
		at := 64
		if rec.version < 12 { // nextXid was 4 bytes and 4 for its epoch, without a gap before them
			at = 56
		}
		if len(b) < at+8 {
			return c, true, rec.errShort()
		}
		return Checkpoint{
			Shutdown: info == xlogCheckpointShutdown, Redo: wal.LSN(le.Uint64(b)), Timeline: wal.Timeline(le.Uint32(b[8:])),
			PrevTimeline: wal.Timeline(le.Uint32(b[12:])), Time: time.Unix(int64(le.Uint64(b[at:])), 0).UTC(),
		}, true, nil
	case xlogEndOfRecovery:
		if len(b) < 16 {
			return c, true, rec.errShort()
		}
		return Checkpoint{
			Shutdown: true, EndOfRecovery: true, Timeline: wal.Timeline(le.Uint32(b[8:])), PrevTimeline: wal.Timeline(le.Uint32(b[12:])), Time: timestamp(b),
		}, true, nil
	}
	return c, false, nil
}

// CreatedFile returns the relation of which a fork was made; ok is false where rec makes none. Files of temporary relations are not in the WAL.
func (rec *Record) CreatedFile() (rel blockset.Relation, fork blockset.Fork, ok bool) {
	if !rec.is(RMStorage, storageCreate) || len(rec.Main) < 16 {
		return rel, 0, false
	}
	return relation(rec.Main), blockset.Fork(binary.LittleEndian.Uint32(rec.Main[12:])), true
}

// DatabaseChange is a database's directory in a tablespace that was made or removed.
type DatabaseChange struct {
	Dropped  bool
	Database uint32 // OID
	Source   uint32 // OID of the one it is a copy of; itself where it moves to another tablespace; 0 where that is not known
}

// DatabaseChange says what a record does to a database's directories; ok is false for other records.
func (rec *Record) DatabaseChange() (c DatabaseChange, ok bool) {
	if rec.RM != RMDatabase || len(rec.Main) < 8 {
		return c, false
	}
	le := binary.LittleEndian
	drop := uint8(0x10)
	if rec.version >= 15 { // which put a second way to make one before it
		drop = 0x20
	}
	c.Database = le.Uint32(rec.Main)
	switch op := rec.Info & 0xF0; {
	case op == drop:
		c.Dropped = true
	case op == 0 && len(rec.Main) >= 16:
		c.Source = le.Uint32(rec.Main[8:])
	}
	return c, true
}

// DroppedTablespace returns the OID of the tablespace that a record drops; ok is false for other records.
func (rec *Record) DroppedTablespace() (oid uint32, ok bool) {
	if !rec.is(RMTablespace, 0x10) || len(rec.Main) < 4 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(rec.Main), true
}

// Lock is an AccessExclusiveLock on a relation, as DROP, TRUNCATE and whatever rewrites a table take.
type Lock struct {
	XID      uint32
	Database uint32 // OID
	Relation uint32 // OID
}

// Locks returns the locks that a record tells standbys of, nil where it tells none.
func (rec *Record) Locks() (locks []Lock) {
	if !rec.is(RMStandby, standbyLock) || len(rec.Main) < 4 {
		return nil
	}
	le := binary.LittleEndian
	b := rec.Main[4:]
	for n := le.Uint32(rec.Main); n > 0 && len(b) >= 12; n, b = n-1, b[12:] {
		locks = append(locks, Lock{le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])})
	}
	return locks
}

// Running says which transactions there are at a moment: none before Oldest, and none yet from Next on.
type Running struct{ Oldest, Next uint32 }

// Running returns which transactions are running, as servers tell their standbys every 15 s and at checkpoints; ok is false for other records.
func (rec *Record) Running() (r Running, ok bool) {
	if !rec.is(RMStandby, standbyRunning) || len(rec.Main) < 20 {
		return r, false
	}
	le := binary.LittleEndian
	return Running{Oldest: le.Uint32(rec.Main[16:]), Next: le.Uint32(rec.Main[12:])}, true
}

// RelMap returns what the file pg_filenode.map of a database is replaced with; ok is false where rec does not. Database 0 stands for global.
func (rec *Record) RelMap() (database uint32, file []byte, ok bool) {
	if !rec.is(RMRelMap, relmapUpdate) || len(rec.Main) < 12 {
		return 0, nil, false
	}
	return binary.LittleEndian.Uint32(rec.Main), rec.Main[12:], true
}

// Truncated returns the OIDs of the tables that one TRUNCATE empties, of those that are published (wal_level logical, since 11); nil for other records.
func (rec *Record) Truncated() (database uint32, oids []uint32) {
	if !rec.is(RMHeap, heapTruncate) || rec.version < 11 || len(rec.Main) < 12 {
		return 0, nil
	}
	le := binary.LittleEndian
	b := rec.Main[12:]
	for n := le.Uint32(rec.Main[4:]); n > 0 && len(b) >= 4; n, b = n-1, b[4:] {
		oids = append(oids, le.Uint32(b))
	}
	return le.Uint32(rec.Main), oids
}

// Place is where a version of a row lies in its relation.
type Place struct {
	Block  uint32
	Offset uint16 // number of its line pointer, from 1 on
}

// RowOp says what is done to a row.
type RowOp uint8

// What is done to rows.
const (
	Insert RowOp = iota + 1
	Delete
	Update
)

// RowChange is what a record does to one row of a table, or to several that it inserts.
type RowChange struct {
	Op       RowOp
	Rel      blockset.Relation
	Old, New Place  // New of Insert of one row and of Update, but of one that moves the row to another partition, Old of Delete and Update
	Rows     uint32 // 1, but of Insert
}

// RowChange says what a record does to rows; ok is false where it does nothing that a query would see.
func (rec *Record) RowChange() (c RowChange, ok bool) {
	if rec.RM != RMHeap && rec.RM != RMHeap2 || len(rec.Blocks) == 0 || len(rec.Main) < 3 {
		return c, false
	}
	le := binary.LittleEndian
	b := rec.Main
	first := &rec.Blocks[0]
	c = RowChange{Rel: first.Rel, Rows: 1}
	switch op := rec.Info & heapOperation; {
	case rec.RM == RMHeap2:
		if op != heap2MultiInser || len(b) < 4 {
			return c, false
		}
		c.Op, c.Rows = Insert, uint32(le.Uint16(b[2:]))
	case op == heapInsert:
		c.Op, c.New = Insert, Place{first.Block, le.Uint16(b)}
	case op == heapDelete && len(b) >= 8 && b[7]&deleteIsSuper == 0:
		c.Op, c.Old = Delete, Place{first.Block, le.Uint16(b[4:])}
		if b[7]&deleteMoves != 0 {
			c.Op = Update
		}
	case (op == heapUpdate || op == heapHotUpdate) && len(b) >= 14:
		c.Op, c.New, c.Old = Update, Place{first.Block, le.Uint16(b[12:])}, Place{first.Block, le.Uint16(b[4:])}
		if len(rec.Blocks) > 1 {
			c.Old.Block = rec.Blocks[1].Block
		}
	default:
		return c, false
	}
	return c, true
}

// Row is a row that a record inserts, or that an update makes.
type Row struct {
	Header [5]byte // of its header the last bytes: t_infomask2, t_infomask, t_hoff
	Rest   []byte  // what follows its header's 23 bytes, as in a page. Its last bytes are missing where they are as in the row before
	Same   int     // how many bytes of the columns, from t_hoff on, are as in the row before, and zeros in Rest
}

// NewRow returns the row that a record makes; ok is false where it makes none, or several. It is valid as long as rec is.
func (rec *Record) NewRow() (r Row, ok bool) {
	c, ok := rec.RowChange()
	if !ok || c.New == (Place{}) {
		return r, false
	}
	data, image := rec.block(0)
	if image != nil && len(data) == 0 {
		page, err := image.restore()
		if err != nil {
			return r, false
		}
		row, ok := rowOf(page, c.New.Offset)
		if !ok {
			return r, false
		}
		return Row{Header: [5]byte(row[18:23]), Rest: row[23:]}, true
	}
	flags := uint8(0)
	if c.Op == Update {
		flags = rec.Main[7]
	}
	number := func() (n int) {
		if ok = ok && len(data) >= 2; ok {
			n, data = int(binary.LittleEndian.Uint16(data)), data[2:]
		}
		return n
	}
	if flags&updateHasPrefix != 0 {
		r.Same = number()
	}
	if flags&updateHasSuffix != 0 {
		number()
	}
	if !ok || len(data) < 5 {
		return r, false
	}
	r.Header, r.Rest = [5]byte(data[:5]), data[5:]
	if r.Same > 0 {
		before := int(r.Header[4]) - 23 // bitmap, padding and, before 12, the OID
		if before < 0 || before > len(r.Rest) || r.Same > 8192 {
			return r, false
		}
		r.Rest = slices.Concat(r.Rest[:before], make([]byte, r.Same), r.Rest[before:])
	}
	return r, true
}

// InPlace returns a row that a record overwrites where it lies, outside of all transactions: its columns, from t_hoff on. ok is false for other records.
func (rec *Record) InPlace() (rel blockset.Relation, at Place, columns []byte, ok bool) {
	if rec.RM != RMHeap || rec.Info&heapOperation != heapInPlace || len(rec.Blocks) == 0 || len(rec.Main) < 2 {
		return rel, at, nil, false
	}
	rel, at = rec.Blocks[0].Rel, Place{rec.Blocks[0].Block, binary.LittleEndian.Uint16(rec.Main)}
	data, image := rec.block(0)
	if image == nil || len(data) > 0 {
		return rel, at, data, true
	}
	page, err := image.restore()
	if err != nil {
		return rel, at, nil, false
	}
	row, ok := rowOf(page, at.Offset)
	if !ok || int(row[22]) > len(row) {
		return rel, at, nil, false
	}
	return rel, at, row[row[22]:], true
}

// rowOf returns the row that a line pointer of a page leads to.
func rowOf(page []byte, offset uint16) ([]byte, bool) {
	le := binary.LittleEndian
	at := 24 + (int(offset)-1)*4
	if offset == 0 || at+4 > len(page) {
		return nil, false
	}
	item := le.Uint32(page[at:])
	from, flags, length := int(item&0x7FFF), item>>15&3, int(item>>17)
	if flags != 1 || length < 23 || from+length > len(page) { // LP_NORMAL
		return nil, false
	}
	return page[from : from+length], true
}
