package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/wal"
)

// Facts is what a server says about itself and its cluster.
type Facts struct {
	Version          int    // server_version_num: 150018 for 15.18
	VersionText      string // server_version
	SystemIdentifier uint64 // made by initdb, shared by a primary and its standbys
	Standby          bool   // in recovery
	Timeline         wal.Timeline
	SegmentSize      wal.SegmentSize
	BlockSize        int    // of data files, in bytes
	RelationSegment  uint32 // blocks of a relation after which its next file begins
	Checksums        bool

	GroupAccess   bool // the operating system's group may read the data directory
	DataDirectory string
	ConfigFile    string
	HBAFile       string
	IdentFile     string
	IncludedFiles []string // files that those three include and postgresql.auto.conf, sorted; as complete as Notes says

	ArchiveMode    string // off, on or always
	ArchiveCommand string // empty when there is none
	ArchiveLibrary string // empty before 15 and when there is none
	WALLevel       string

	Notes []string // what could not be learnt, and what the operator can do about it
}

// Major returns the major version, 15 for 15.18.
func (f Facts) Major() int { return f.Version / 10_000 }

// Facts asks the server. A role that is no superuser needs pg_read_all_settings.
func (c *Conn) Facts(ctx context.Context) (Facts, error) {
	const op = "ask PostgreSQL about itself"
	var f Facts
	var system, segment int64
	var timeline int32
	// The timeline on a primary is that of the file being written, in the name's first digits: pg_control has the one of the last
	// checkpoint, which may precede a promotion. On a standby it is the newest that was replayed.
	err := c.row(ctx, op, `
		select current_setting('server_version_num')::int4, current_setting('server_version'),
			(select system_identifier from pg_control_system()),
			pg_is_in_recovery(),
			case when pg_is_in_recovery()
				then greatest((select timeline_id from pg_control_checkpoint()), (select min_recovery_end_timeline from pg_control_recovery()))
				else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int4 end,
			i.bytes_per_wal_segment::int8, i.database_block_size, i.blocks_per_segment, i.data_page_checksum_version <> 0,
			current_setting('data_directory'), current_setting('config_file'), current_setting('hba_file'), current_setting('ident_file'),
			current_setting('archive_mode'), current_setting('archive_command'), coalesce(current_setting('archive_library', true), ''),
			current_setting('wal_level'), coalesce(current_setting('data_directory_mode', true) like '%50', false)
		from pg_control_init() i`, nil,
		&f.Version, &f.VersionText, &system, &f.Standby, &timeline, &segment, &f.BlockSize, &f.RelationSegment, &f.Checksums,
		&f.DataDirectory, &f.ConfigFile, &f.HBAFile, &f.IdentFile, &f.ArchiveMode, &f.ArchiveCommand, &f.ArchiveLibrary, &f.WALLevel, &f.GroupAccess)
	if err != nil {
		return Facts{}, err
	}
	f.SystemIdentifier = uint64(system)
	f.Timeline = wal.Timeline(uint32(timeline))
	f.SegmentSize = wal.SegmentSize(segment)
	if f.ArchiveMode == "off" || f.ArchiveCommand == "(disabled)" { // how the server shows it then
		f.ArchiveCommand = ""
	}
	if err := c.includedFiles(ctx, &f); err != nil {
		return Facts{}, err
	}
	return f, nil
}

// includedFiles fills in f.IncludedFiles. The views are for superusers, so what a lesser role may not see becomes a note.
func (c *Conn) includedFiles(ctx context.Context, f *Facts) error {
	views := []struct{ main, view, function, column string }{
		{f.ConfigFile, "pg_file_settings", "pg_show_all_file_settings()", "sourcefile"},
	}
	if f.Major() >= 16 { // the other two had no way to include files before
		views = append(views, []struct{ main, view, function, column string }{
			{f.HBAFile, "pg_hba_file_rules", "pg_hba_file_rules()", "file_name"},
			{f.IdentFile, "pg_ident_file_mappings", "pg_ident_file_mappings()", "file_name"},
		}...)
	}
	for _, v := range views {
		var allowed bool
		err := c.row(ctx, "ask PostgreSQL for its configuration files",
			`select has_table_privilege($1, 'select') and has_function_privilege($2, 'execute')`,
			[]any{"pg_catalog." + v.view, "pg_catalog." + v.function}, &allowed)
		if err != nil {
			return err
		}
		if !allowed {
			user := pgx.Identifier{c.pg.Config().User}.Sanitize()
			f.Notes = append(f.Notes, fmt.Sprintf("files that %s includes are not known: GRANT SELECT ON pg_catalog.%s TO %s; GRANT EXECUTE ON FUNCTION pg_catalog.%s TO %s;",
				v.main, v.view, user, v.function, user))
			continue
		}
		var files []string
		err = c.row(ctx, "ask PostgreSQL for its configuration files",
			fmt.Sprintf(`select coalesce(array_agg(distinct %s), '{}') from %s where %[1]s is not null`, v.column, v.view), nil, &files)
		if err != nil {
			return err
		}
		for _, file := range files {
			if file != v.main && !slices.Contains(f.IncludedFiles, file) {
				f.IncludedFiles = append(f.IncludedFiles, file)
			}
		}
	}
	slices.SortFunc(f.IncludedFiles, strings.Compare)
	return nil
}

// ArchiverStatus is what the server counts about archive_command or archive_library (pg_stat_archiver).
type ArchiverStatus struct {
	Archived     int64     // files archived since the counters were reset
	LastArchived string    // name of the newest, or empty
	LastTime     time.Time // when, zero if never
	Failed       int64     // attempts that failed
	LastFailed   string    // name of the file, or empty
	FailedTime   time.Time // when, zero if never
}

// Failing reports whether the last attempt to archive failed. Then nothing was archived since LastTime, and LastFailed is what is stuck.
func (a ArchiverStatus) Failing() bool { return a.Failed > 0 && a.FailedTime.After(a.LastTime) }

// ArchiverStatus asks how archiving goes. The server's counters may be half a second old.
func (c *Conn) ArchiverStatus(ctx context.Context) (ArchiverStatus, error) {
	var a ArchiverStatus
	var last, failed *time.Time
	err := c.row(ctx, "ask PostgreSQL how archiving goes", `
		select archived_count, coalesce(last_archived_wal, ''), last_archived_time,
			failed_count, coalesce(last_failed_wal, ''), last_failed_time
		from pg_stat_archiver`, nil, &a.Archived, &a.LastArchived, &last, &a.Failed, &a.LastFailed, &failed)
	if err != nil {
		return ArchiverStatus{}, err
	}
	if last != nil {
		a.LastTime = *last
	}
	if failed != nil {
		a.FailedTime = *failed
	}
	return a, nil
}

// Streamed reports whether somebody streams WAL: a standby, or one that archives. Whose slot is not active may be about to stream nevertheless, and who streams may have
// none; so both are looked at. Who takes a backup streams no WAL.
func (c *Conn) Streamed(ctx context.Context) (streamed bool, err error) {
	err = c.row(ctx, "ask PostgreSQL who streams from it", `select exists(select from pg_catalog.pg_replication_slots where slot_type = 'physical' and active) or
		exists(select from pg_catalog.pg_stat_replication where state is distinct from 'backup')`, nil, &streamed)
	return streamed, err
}
