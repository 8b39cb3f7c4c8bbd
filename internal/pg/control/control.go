// Package control decodes global/pg_control, the file in which a PostgreSQL cluster (10 to 18) says who it is and how it stands.
//
// The file is the struct ControlFileData of src/include/catalog/pg_control.h as the server's compiler lays it out, here
// little-endian with 8-byte alignment, followed by zeros up to 8192 bytes. The struct changed with 11, 12, 17 and 18; its
// last field is a CRC-32C of all that precedes it, so that a wrong layout cannot go unnoticed.
package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"time"

	"holdfast/internal/pg/wal"
)

// Name is where the file lies in a data directory.
const Name = "global/pg_control"

// Size is how long the file is, in bytes (PG_CONTROL_FILE_SIZE).
const Size = 8192

// Data is what pg_control says. Sizes are checked: a Data from Decode has none that PostgreSQL could not have been built with.
type Data struct {
	SystemIdentifier uint64 // drawn by initdb, the same on all standbys
	ControlVersion   uint32 // PG_CONTROL_VERSION, such as 1300
	CatalogVersion   uint32 // CATALOG_VERSION_NO, such as 202209061
	Major            int    // of PostgreSQL, 10 to 18, derived from the two versions

	State    State
	Modified time.Time // when the file was last written, whole seconds

	Checkpoint             wal.LSN // of the latest checkpoint's record
	CheckpointRedo         wal.LSN // where replay from that checkpoint starts
	CheckpointTimeline     wal.Timeline
	CheckpointPrevTimeline wal.Timeline // differs from CheckpointTimeline only in the checkpoint that began a timeline
	CheckpointTime         time.Time    // whole seconds

	MinRecoveryEnd         wal.LSN      // replay must reach at least this; 0 when nothing is being recovered
	MinRecoveryEndTimeline wal.Timeline // 0 with MinRecoveryEnd 0
	BackupStart            wal.LSN      // of the base backup that replay has not made consistent yet; 0 for none

	WALLevel         WALLevel
	Demands          Demands
	SegmentSize      wal.SegmentSize
	WALBlockSize     uint32 // bytes of a page of WAL
	BlockSize        uint32 // bytes of a page of a relation
	BlocksPerSegment uint32 // of a relation's file: the 1 GB after which the next file begins, in blocks
	ChecksumVersion  uint32 // of data pages; 0 is none
}

// Demands are settings of the server that wrote the WAL. A server that replays it needs at least as much of each.
type Demands struct {
	MaxConnections          int
	MaxWorkerProcesses      int
	MaxWALSenders           int // 0 before PostgreSQL 12, which does not write it down
	MaxPreparedTransactions int
	MaxLocksPerTransaction  int
}

// TablespaceDir is the directory within every tablespace that belongs to this cluster's version
// (TABLESPACE_VERSION_DIRECTORY), such as "PG_15_202209061".
func (d Data) TablespaceDir() string { return fmt.Sprintf("PG_%d_%d", d.Major, d.CatalogVersion) }

// State is what the cluster was doing when the file was last written (DBState).
type State uint32

// The states a cluster passes through.
const (
	Starting State = iota
	ShutDown
	ShutDownInRecovery
	ShuttingDown
	InCrashRecovery
	InArchiveRecovery // a standby, or a restore that replays
	InProduction
)

// String prints s as pg_controldata does.
func (s State) String() string {
	names := [...]string{"starting up", "shut down", "shut down in recovery", "shutting down", "in crash recovery",
		"in archive recovery", "in production"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint32(s))
}

// WALLevel is how much the server writes to its WAL. Below Replica no backup and no archive is possible.
type WALLevel uint32

// The levels, each including the ones before.
const (
	Minimal WALLevel = iota
	Replica
	Logical
)

// String prints l as the setting wal_level.
func (l WALLevel) String() string {
	names := [...]string{"minimal", "replica", "logical"}
	if int(l) < len(names) {
		return names[l]
	}
	return fmt.Sprintf("wal_level %d", uint32(l))
}

// A layout says where the fields are whose place is not the same in all versions. The order of the fields from unloggedLSN
// to data_checksum_version never changed, nor did the order of those before: what moves is where the two runs begin.
type layout struct {
	checkpoint int // checkPointCopy: 11 dropped prevCheckPoint, which stood before it
	time       int // of the checkpoint, from checkpoint on: 12 widened nextXid
	unlogged   int // unloggedLSN, right behind checkPointCopy
	sizes      int // blcksz, behind settings, alignment and float format: 12 added max_wal_senders among the settings
	crc        int // behind mock_authentication_nonce: 18 added default_char_signedness before it
}

// layouts by PG_CONTROL_VERSION.
func layoutOf(version uint32) (layout, bool) {
	switch version {
	case 1002: // 10
		return layout{checkpoint: 48, time: 56, unlogged: 128, sizes: 216, crc: 288}, true
	case 1100: // 11
		return layout{checkpoint: 40, time: 56, unlogged: 120, sizes: 208, crc: 280}, true
	case 1201, 1300, 1700: // 12, 13 to 16, 17
		return layout{checkpoint: 40, time: 64, unlogged: 128, sizes: 216, crc: 288}, true
	case 1800: // 18
		return layout{checkpoint: 40, time: 64, unlogged: 128, sizes: 216, crc: 292}, true
	}
	return layout{}, false
}

// major derives PostgreSQL's major version. 13 to 16 share a control version; a release's catalog version is the highest
// its development and its betas had.
func major(control, catalog uint32) (int, error) {
	switch {
	case control != 1300:
		return int(control / 100), nil
	case catalog <= 202007201:
		return 13, nil
	case catalog <= 202107181:
		return 14, nil
	case catalog <= 202209061:
		return 15, nil
	case catalog <= 202307071:
		return 16, nil
	}
	return 0, fmt.Errorf("pg_control: catalog version %d belongs to no release of PostgreSQL", catalog)
}

// errChecksum says that the file is damaged, or was read while the server wrote it.
var errChecksum = errors.New("pg_control: checksum is wrong")

// Decode reads the content of pg_control. It needs the struct only, not the zeros behind it.
func Decode(b []byte) (Data, error) {
	if len(b) < 16 {
		return Data{}, fmt.Errorf("pg_control: %d bytes are too few", len(b))
	}
	le := binary.LittleEndian
	d := Data{
		SystemIdentifier: le.Uint64(b),
		ControlVersion:   le.Uint32(b[8:]),
		CatalogVersion:   le.Uint32(b[12:]),
	}
	l, ok := layoutOf(d.ControlVersion)
	if !ok {
		if _, swapped := layoutOf(bits.ReverseBytes32(d.ControlVersion)); swapped {
			return Data{}, errors.New("pg_control: written by a big-endian server")
		}
		return Data{}, fmt.Errorf("pg_control: version %d is not that of PostgreSQL 10 to 18", d.ControlVersion)
	}
	if len(b) < l.crc+4 {
		return Data{}, fmt.Errorf("pg_control: %d bytes are too few for version %d, which has %d", len(b), d.ControlVersion, l.crc+4)
	}
	if got, want := crc32.Checksum(b[:l.crc], crc32.MakeTable(crc32.Castagnoli)), le.Uint32(b[l.crc:]); got != want {
		return Data{}, fmt.Errorf("%w: computed %08x, stored %08x", errChecksum, got, want)
	}
	var err error
	if d.Major, err = major(d.ControlVersion, d.CatalogVersion); err != nil {
		return Data{}, err
	}

	u32 := func(at int) uint32 { return le.Uint32(b[at:]) }
	lsn := func(at int) wal.LSN { return wal.LSN(le.Uint64(b[at:])) }
	moment := func(at int) time.Time { return time.Unix(int64(le.Uint64(b[at:])), 0).UTC() }

	d.State = State(u32(16))
	d.Modified = moment(24)
	d.Checkpoint = lsn(32)

	d.CheckpointRedo = lsn(l.checkpoint)
	d.CheckpointTimeline = wal.Timeline(u32(l.checkpoint + 8))
	d.CheckpointPrevTimeline = wal.Timeline(u32(l.checkpoint + 12))
	d.CheckpointTime = moment(l.checkpoint + l.time)

	d.MinRecoveryEnd = lsn(l.unlogged + 8)
	d.MinRecoveryEndTimeline = wal.Timeline(u32(l.unlogged + 16))
	d.BackupStart = lsn(l.unlogged + 24)
	d.WALLevel = WALLevel(u32(l.unlogged + 44))

	demand := l.unlogged + 52 // behind wal_level and wal_log_hints
	next := func() int { demand += 4; return int(int32(u32(demand - 4))) }
	d.Demands.MaxConnections, d.Demands.MaxWorkerProcesses = next(), next()
	if d.Major >= 12 {
		d.Demands.MaxWALSenders = next()
	}
	d.Demands.MaxPreparedTransactions, d.Demands.MaxLocksPerTransaction = next(), next()

	d.BlockSize = u32(l.sizes)
	d.BlocksPerSegment = u32(l.sizes + 4)
	d.WALBlockSize = u32(l.sizes + 8)
	d.SegmentSize = wal.SegmentSize(u32(l.sizes + 12))
	d.ChecksumVersion = u32(l.sizes + 36)

	return d, d.check()
}

// check refuses what no server writes, since callers divide by these and allocate by them.
func (d Data) check() error {
	power := func(v, min, max uint32) bool { return v >= min && v <= max && bits.OnesCount32(v) == 1 }
	switch {
	case d.State > InProduction:
		return fmt.Errorf("pg_control: unknown cluster state %d", uint32(d.State))
	case d.WALLevel > Logical:
		return fmt.Errorf("pg_control: unknown wal_level %d", uint32(d.WALLevel))
	case !power(d.BlockSize, 1<<10, 32<<10):
		return fmt.Errorf("pg_control: impossible block size %d", d.BlockSize)
	case !power(d.WALBlockSize, 1<<10, 64<<10):
		return fmt.Errorf("pg_control: impossible WAL block size %d", d.WALBlockSize)
	case !d.SegmentSize.Valid():
		return fmt.Errorf("pg_control: impossible WAL segment size %d", d.SegmentSize)
	case d.BlocksPerSegment == 0:
		return errors.New("pg_control: relation files of 0 blocks")
	}
	return nil
}

// Read reads and decodes the file at path, and also returns its content: the bytes a backup stores are then the bytes that
// were checked. A running server may be writing it; what does not check is read again for up to a tenth of a second.
func Read(path string) (Data, []byte, error) {
	for try := 0; ; try++ {
		b, err := content(path)
		if err != nil {
			return Data{}, nil, err
		}
		d, err := Decode(b)
		if err == nil {
			return d, b, nil
		}
		if !errors.Is(err, errChecksum) || try == 10 {
			return Data{}, nil, fmt.Errorf("%s: %w", path, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func content(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read: nothing to lose
	b := make([]byte, Size)
	if n, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("%s: %d bytes instead of %d: %w", path, n, Size, err)
	}
	return b, nil
}
