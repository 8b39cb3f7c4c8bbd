// Package events tells what happened to a cluster, by its archived WAL: relations that were dropped, truncated or rewritten, many rows deleted or updated at
// once, databases dropped, restore points, promotions, checkpoints.
//
// An Event has the position of the record that makes it so. Recovery with that as recovery_target_lsn and recovery_target_inclusive off stops just before.
//
// What is in the WAL of a DROP is the end of its transaction, which lists the files that go with it (src/include/access/xact.h). A TRUNCATE and all that
// rewrites a table (VACUUM FULL, CLUSTER, ALTER TABLE, REINDEX) give their relation a new file and drop the former one likewise. They are told apart by what
// else the transaction did: since PostgreSQL 15 its end names the relations whose statistics go, which are those that were dropped; before, rows of pg_class
// that were there before it and that it deleted are those of dropped relations; and a row of pg_class that it made and deleted is that of the helper
// of a rewrite, whose name has the OID of the table. Where that does not decide it an Event is not Certain.
//
// Files have numbers and no names: Names finds these, in a live server or in the files of a backup. Relations that are made in the WAL that is read are known by
// it.
//
// Memory is taken by transactions that are under way, by the names in databases of which something is told, and by what is read ahead: 2 MiB of each of four segments.
package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
)

// What says what an event is.
type What string

// The events there are.
const (
	Drop           What = "drop"            // of relations
	Truncate       What = "truncate"        // of tables
	DeleteRows     What = "delete"          // of many rows in one transaction
	UpdateRows     What = "update"          // of many rows in one transaction
	Rewrite        What = "rewrite"         // tables have new files with the same rows: VACUUM FULL, CLUSTER, ALTER TABLE, REFRESH MATERIALIZED VIEW
	DropDatabase   What = "drop database"   //
	CreateDatabase What = "create database" //
	DropTablespace What = "drop tablespace" // which was empty
	RestorePoint   What = "restore point"   // pg_create_restore_point
	Promotion      What = "promotion"       // a timeline begins
	Checkpoint     What = "checkpoint"      // was completed
	Shutdown       What = "shutdown"        // its checkpoint
	MissingWAL     What = "missing WAL"     // what follows is not archived, or not readable
)

// Event is something that happened.
type Event struct {
	What     What
	Time     time.Time    // by the server's clock: of the commit, where there was one. Zero where nothing says it
	LSN      wal.LSN      // of the record with which it takes effect: to stop just before is recovery_target_lsn with recovery_target_inclusive off
	Prev     wal.LSN      // of the record before that: to stop just before is recovery_target_lsn with recovery_target_inclusive on
	Timeline wal.Timeline // that the record is on
	XID      uint32       // of the transaction; 0 for none

	Database     uint32 // OID; 0 where it is of none
	DatabaseName string // "" where no name is known
	Relations    []Relation
	Others       int    // files of indexes, of toast tables and the like that went with them
	Name         string // of a restore point; what a promotion or missing WAL is of

	Destructive bool   // data is gone with it
	Certain     bool   // no other event looks the same
	Why         string // where it is not Certain: what speaks for it
	Prepared    bool   // the transaction was prepared before: what is restored to just before has it so, with its locks, until it is rolled back (ROLLBACK PREPARED)
	Partial     bool   // the transaction may have begun before the WAL that was read, and have done more
}

// Relation is what an event did to a relation.
type Relation struct {
	File    blockset.Relation // its file at the moment before; zero of what has none
	OID     uint32            // 0 where it is not known
	Schema  string
	Name    string // "" where it is not known
	Kind    Kind
	Deleted uint64 // rows, of DeleteRows and UpdateRows
	Updated uint64
}

// String names the relation, by its file where there is no name.
func (r Relation) String() string {
	switch {
	case r.Name != "" && r.Schema != "":
		return r.Schema + "." + r.Name
	case r.Name != "":
		return r.Name
	case r.OID != 0:
		return fmt.Sprintf("relation %d", r.OID)
	}
	return "file " + r.File.String()
}

// Stretch is the WAL to look at.
type Stretch struct {
	WAL  *catalog.WAL // what is archived
	Path catalog.Path // leads to the timeline
	// From and To bound the positions of events, Since and Until their times; zero for no bound. Reading begins a little before.
	From, To     wal.LSN
	Since, Until time.Time
}

// Options tunes a Scan. The zero value is ready to use.
type Options struct {
	Names  []Names      // the first of them that knows a relation is believed; one that fails is passed over, which Report.Notes tells
	Shown  int          // how many relations an event has at most, where it is about more; 0 means 1000
	Rows   uint64       // how many rows a transaction deletes or updates for an event; 0 means 1000
	Logger *slog.Logger // nil discards
}

// Report is what was read.
type Report struct {
	From, To    wal.LSN // the first record and behind the last; 0 where there was none
	First, Last time.Time
	Segments    int
	Commits     uint64 // in From to To, of transactions that changed something
	Aborts      uint64
	Rates       []Rate
	Missing     []catalog.Stretch // segments that are not archived between those that were read
	Notes       []string          // what else an operator may want to know
	NoBeginning bool              // the stretch may begin before what is archived
	NoEnd       bool              // it goes on behind what is archived
}

// Rate is how many transactions were committed from At on for Span.
type Rate struct {
	At      time.Time
	Span    time.Duration
	Commits uint64
}

// Busiest returns the rate with the most commits; zero where there is none.
func (r *Report) Busiest() (most Rate) {
	for _, rate := range r.Rates {
		if rate.Commits > most.Commits {
			most = rate
		}
	}
	return most
}

// Scan reads the WAL of s and calls each for every event in it, in the order of the WAL, until one call returns an error. WAL that is missing is an event, and no
// error; that there is none at all is. With an error, the report is of what was read until then; nil where reading did not begin.
func Scan(ctx context.Context, a *archive.Archive, s Stretch, o Options, each func(*Event) error) (*Report, error) {
	switch {
	case s.WAL == nil || !s.WAL.SegmentSize.Valid():
		return nil, errors.New("there is no inventory of WAL")
	case len(s.Path) == 0:
		return nil, errors.New("no timeline is given")
	}
	if o.Rows == 0 {
		o.Rows = 1000
	}
	if o.Shown == 0 {
		o.Shown = maxShown
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := findLog(ctx, a, s)
	if err != nil {
		return nil, err
	}
	sc := newScanner(ctx, s, o, each)
	err = l.read(ctx, sc)
	sc.report.NoBeginning = l.early || !s.Since.IsZero() && l.oldest && !sc.earlier
	return sc.finish(), err
}
