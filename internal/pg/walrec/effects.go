package walrec

import (
	"encoding/binary"
	"fmt"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/page"
)

// What records do, in the high bits of Info (catalog/pg_control.h, catalog/storage_xlog.h and commands/dbcommands_xlog.h in src/include).
const (
	xlogCheckpointShutdown  = 0x00
	xlogSwitch              = 0x40
	xlogParameterChange     = 0x60
	xlogEndOfRecovery       = 0x90
	xlogOverwriteContrecord = 0xD0
	xlogCheckpointRedo      = 0xE0 // since 17

	storageCreate   = 0x10
	storageTruncate = 0x20
	truncateMain    = 0x1
	truncateVM      = 0x2
	blocksPerVMPage = (page.Size - page.HeaderLen) * 4 // of the main fork: two bits for each

	changesFiles = 0x01 // XLR_SPECIAL_REL_UPDATE: of relations, in ways that no block reference tells
)

// errShort is of a record whose main data ends too soon.
func (rec *Record) errShort() error {
	if uint32(len(rec.Main)) < rec.MainLen {
		return fmt.Errorf("WAL record %s: too long to be read in full, %d bytes", rec.LSN, rec.Length)
	}
	return fmt.Errorf("WAL record %s: resource manager %d, info %02X: %d bytes are too few", rec.LSN, rec.RM, rec.Info, rec.MainLen)
}

// sink takes what records change. It is a blockset.Set.
type sink interface {
	Add(k blockset.Key, block uint32)
	Truncate(k blockset.Key, limit uint32)
}

// collector sums up records as PostgreSQL's WAL summarizer does (src/backend/postmaster/walsummarizer.c).
type collector struct {
	blocks  sink
	minimal bool // a record says that wal_level is, or was until there, minimal
	version int

	// Most records are of blocks that were changed a moment ago. recent has blocks that are in the set, each in the place that its
	// number and its relation's give.
	recent [512]recentBlock
}

type recentBlock struct {
	key   blockset.Key
	block uint32
	known bool
}

// add takes in what rec changes.
func (c *collector) add(rec *Record) error {
	if err := c.special(rec); err != nil {
		return err
	}
	for i := range rec.Blocks {
		b := &rec.Blocks[i]
		if b.Fork == blockset.FSM { // not fully in the WAL
			continue
		}
		r := recentBlock{blockset.Key{Relation: b.Rel, Fork: b.Fork}, b.Block, true}
		place := &c.recent[((b.Block+b.Rel.Number*31)*0x9E3779B1)>>23]
		if *place != r {
			*place = r
			c.blocks.Add(r.key, r.block)
		}
	}
	return nil
}

func (c *collector) truncate(rec *Record, k blockset.Key, limit uint32) error {
	if k.Tablespace == 0 {
		return fmt.Errorf("WAL record %s: %s is in no tablespace", rec.LSN, k)
	}
	c.recent = [len(c.recent)]recentBlock{}
	c.blocks.Truncate(k, limit)
	return nil
}

// special takes in what rec does beside its block references.
func (c *collector) special(rec *Record) error {
	switch rec.RM {
	case RMXLOG:
		return c.xlog(rec)
	case RMXact:
		return c.xact(rec)
	case RMStorage:
		return c.storage(rec)
	case RMDatabase:
		return c.database(rec)
	}
	if rec.Info&changesFiles != 0 {
		return fmt.Errorf("WAL record %s: resource manager %d, info %02X changes files in an unknown way", rec.LSN, rec.RM, rec.Info)
	}
	return nil
}

// xlog notes the wal_level. Up to 16 only XLOG_PARAMETER_CHANGE has it: every change of the level is one.
func (c *collector) xlog(rec *Record) error {
	var at int
	switch info := rec.Info & 0xF0; {
	case info == xlogParameterChange && c.version >= 12: // max_wal_senders came before it
		at = 20
	case info == xlogParameterChange:
		at = 16
	case info == xlogCheckpointShutdown && c.version >= 17:
		at = 20
	case info == xlogEndOfRecovery && c.version >= 17:
		at = 16
	case info == xlogCheckpointRedo && c.version >= 17:
		at = 0
	default:
		return nil
	}
	if len(rec.Main) < at+4 {
		return rec.errShort()
	}
	if level := int32(binary.LittleEndian.Uint32(rec.Main[at:])); level <= 0 { // WAL_LEVEL_MINIMAL
		c.minimal = true
	}
	return nil
}

// xact notes the relations that were dropped with the end of a transaction.
func (c *collector) xact(rec *Record) error {
	e, ok, err := rec.end()
	if !ok || err != nil {
		return err
	}
	for b := e.relations; len(b) > 0; b = b[12:] {
		rel := relation(b)
		for _, fork := range []blockset.Fork{blockset.Main, blockset.VM, blockset.Init} {
			if err := c.truncate(rec, blockset.Key{Relation: rel, Fork: fork}, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// storage notes forks that were made or truncated.
func (c *collector) storage(rec *Record) error {
	b := rec.Main
	le := binary.LittleEndian
	switch rec.Info & 0xF0 {
	case storageCreate:
		if len(b) < 16 {
			return rec.errShort()
		}
		fork := le.Uint32(b[12:])
		if fork > uint32(blockset.Init) {
			return fmt.Errorf("WAL record %s: makes fork %d", rec.LSN, fork)
		}
		if blockset.Fork(fork) != blockset.FSM {
			return c.truncate(rec, blockset.Key{Relation: relation(b), Fork: blockset.Fork(fork)}, 0)
		}
	case storageTruncate:
		if len(b) < 20 {
			return rec.errShort()
		}
		limit, rel, forks := le.Uint32(b), relation(b[4:]), le.Uint32(b[16:])
		if forks&truncateMain != 0 {
			if err := c.truncate(rec, blockset.Key{Relation: rel, Fork: blockset.Main}, limit); err != nil {
				return err
			}
		}
		if forks&truncateVM != 0 {
			pages := (uint64(limit) + blocksPerVMPage - 1) / blocksPerVMPage // visibilitymap_truncation_length
			return c.truncate(rec, blockset.Key{Relation: rel, Fork: blockset.VM}, uint32(pages))
		}
	default:
		return fmt.Errorf("WAL record %s: does %02X to a relation's files", rec.LSN, rec.Info)
	}
	return nil
}

// database notes databases that were made or dropped in a tablespace.
func (c *collector) database(rec *Record) error {
	b := rec.Main
	le := binary.LittleEndian
	if len(b) < 8 {
		return rec.errShort()
	}
	drop := uint8(0x10)
	if c.version >= 15 { // which put a second way to make one before it
		drop = 0x20
	}
	db := le.Uint32(b)
	spaces, n := b[4:], uint32(1)
	switch op := rec.Info & 0xF0; {
	case op > drop:
		return fmt.Errorf("WAL record %s: does %02X to a database", rec.LSN, rec.Info)
	case op == drop && c.version >= 13: // one record for all tablespaces
		spaces, n = b[8:], le.Uint32(b[4:])
	}
	if uint64(len(spaces)) < uint64(n)*4 {
		return rec.errShort()
	}
	for ; n > 0; n, spaces = n-1, spaces[4:] {
		k := blockset.Key{Relation: blockset.Relation{Tablespace: le.Uint32(spaces), Database: db}}
		if err := c.truncate(rec, k, 0); err != nil {
			return err
		}
	}
	return nil
}

func relation(b []byte) blockset.Relation {
	le := binary.LittleEndian
	return blockset.Relation{Tablespace: le.Uint32(b), Database: le.Uint32(b[4:]), Number: le.Uint32(b[8:])}
}
