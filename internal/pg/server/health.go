package server

import (
	"context"
	"fmt"
	"time"

	"holdfast/internal/pg/wal"
)

// Health is what a server says of itself that tells whether it is archived well.
type Health struct {
	Position
	Version        int    // server_version_num
	DataDirectory  string // empty where the role may not know it
	ArchiveMode    string // off, on or always
	ArchiveCommand string // empty when there is none
	ArchiveLibrary string // empty before 15 and when there is none
	ArchiveTimeout time.Duration
	SummarizeWAL   string // on, off, or empty before 17
	Archiver       ArchiverStatus
	Waiting        *Waiting // files that wait to be archived; nil where the role may not see them, and before 12
	Slot           *Slot    // nil where there is none of the name

	Checksums bool
	Corrupt   int64     // pages with a wrong checksum that the server has read since its statistics were reset; from 12 on
	CorruptAt time.Time // when it read the last of them; zero for never
	CorruptIn []string  // the databases; empty text stands for what all share

	Ahead time.Duration // of our clock, as far as it is certain: behind it below 0
}

// Waiting is the files of WAL that wait to be archived.
type Waiting struct {
	Files int       // that have a .ready
	First string    // the one PostgreSQL archives first of them: a history file before segments, then by name; empty for none
	Since time.Time // since when that one waits; zero for none
}

// Slot is a physical replication slot.
type Slot struct {
	Name     string
	Active   bool
	Retained uint64 // bytes of WAL from what it holds to where the server is
	Status   string // wal_status: reserved, extended, unreserved or lost; empty before 13
}

// Health asks the server, and about the replication slot of that name. Without membership in pg_monitor some of it stays unknown.
func (c *Conn) Health(ctx context.Context, slot string) (Health, error) {
	const op = "ask PostgreSQL how it is"
	h := Health{Version: c.version}
	var err error
	if h.Position, err = c.Position(ctx); err != nil {
		return Health{}, err
	}
	var clock time.Time
	before := time.Now()
	if err := c.row(ctx, op, `select pg_catalog.clock_timestamp()`, nil, &clock); err != nil {
		return Health{}, err
	}
	h.Ahead = ahead(clock, before, time.Now())
	var timeout int32
	if err := c.row(ctx, op, `
		select coalesce((select setting from pg_settings where name = 'data_directory'), ''), current_setting('archive_mode'), current_setting('archive_command'),
			coalesce(current_setting('archive_library', true), ''), (select setting::int4 from pg_settings where name = 'archive_timeout'),
			coalesce(current_setting('summarize_wal', true), ''), current_setting('data_checksums') = 'on'`, nil,
		&h.DataDirectory, &h.ArchiveMode, &h.ArchiveCommand, &h.ArchiveLibrary, &timeout, &h.SummarizeWAL, &h.Checksums); err != nil {
		return Health{}, err
	}
	h.ArchiveTimeout = time.Duration(timeout) * time.Second
	if h.ArchiveMode == "off" || h.ArchiveCommand == "(disabled)" { // how the server shows it then
		h.ArchiveCommand = ""
	}
	if h.Archiver, err = c.ArchiverStatus(ctx); err != nil {
		return Health{}, err
	}
	if c.version >= 12_00_00 {
		var at *time.Time
		if err := c.row(ctx, op, `
			select coalesce(sum(checksum_failures), 0)::int8, max(checksum_last_failure),
				coalesce(array_agg(coalesce(datname::text, '') order by datname) filter (where checksum_failures > 0), '{}')
			from pg_stat_database`, nil, &h.Corrupt, &at, &h.CorruptIn); err != nil {
			return Health{}, err
		}
		if at != nil {
			h.CorruptAt = *at
		}
		if h.Waiting, err = c.waiting(ctx, op); err != nil {
			return Health{}, err
		}
	}
	h.Slot, err = c.slot(ctx, op, slot)
	return h, err
}

// waiting asks for what has a .ready; nil where the role may not look.
func (c *Conn) waiting(ctx context.Context, op string) (*Waiting, error) {
	var may bool
	if err := c.row(ctx, op, `select has_function_privilege('pg_catalog.pg_ls_archive_statusdir()', 'execute')`, nil, &may); err != nil || !may {
		return nil, err
	}
	var w Waiting
	var since *time.Time
	err := c.row(ctx, op, `
		with ready as materialized (
			select left(name, -6) as name, modification from pg_ls_archive_statusdir() where name like '%.ready'),
		first as (select name, modification from ready order by name not like '%.history', name collate "C" limit 1)
		select (select count(*) from ready)::int4, coalesce((select name from first), ''), (select modification from first)`, nil, &w.Files, &w.First, &since)
	if since != nil {
		w.Since = *since
	}
	return &w, err
}

// slot asks for the replication slot of that name; nil where there is none.
func (c *Conn) slot(ctx context.Context, op, name string) (*Slot, error) {
	status := `''`
	if c.version >= 13_00_00 {
		status = `coalesce(wal_status, '')`
	}
	s := Slot{Name: name}
	var n int
	var retained int64
	err := c.row(ctx, op, fmt.Sprintf(`
		select count(*)::int4, coalesce(bool_or(active), false), coalesce(max(%s), ''),
			coalesce(max(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end, restart_lsn)), 0)::int8
		from pg_replication_slots where slot_name = $1 and slot_type = 'physical'`, status), []any{name}, &n, &s.Active, &s.Status, &retained)
	if err != nil || n == 0 {
		return nil, err
	}
	s.Retained = uint64(max(retained, 0))
	return &s, nil
}

// ahead returns by how much a clock that showed t some time between before and after is ahead of ours for certain, below 0 for behind.
func ahead(t, before, after time.Time) time.Duration {
	switch {
	case t.After(after):
		return t.Sub(after)
	case t.Before(before):
		return t.Sub(before)
	}
	return 0
}

// Behind returns how many segments are whole that lie behind end, where what is archived ends.
func (p Position) Behind(end wal.LSN) uint64 {
	if p.Final <= end {
		return 0
	}
	return uint64(p.SegmentSize.Segment(p.Final) - p.SegmentSize.Segment(end))
}
