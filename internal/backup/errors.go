package backup

import (
	"fmt"
	"path"
	"strings"
	"time"

	"holdfast/internal/pg/wal"
)

// errRunning says that another backup of the same server is at work.
var errRunning = &runningError{}

type runningError struct{}

func (*runningError) Error() string { return "another holdfast backup-push of this server is running" }
func (*runningError) Hint() string {
	return "wait for it to end; `SELECT * FROM pg_stat_activity WHERE application_name LIKE 'holdfast%'` shows its session"
}

// wrongServerError says that the directory is not that of the server.
type wrongServerError struct {
	dir, served     string
	dirID, serverID uint64
}

func (e *wrongServerError) Error() string {
	if e.dirID != e.serverID {
		return fmt.Sprintf("%s is of the cluster with system identifier %d, the server connected to has %d", e.dir, e.dirID, e.serverID)
	}
	return fmt.Sprintf("%s is not the data directory of the server connected to, which is %s", e.dir, e.served)
}

func (*wrongServerError) Hint() string {
	return "name the server's own data directory (`SHOW data_directory`), or set PGHOST and PGPORT to the server of this one"
}

// archivingOffError says that the WAL this backup needs would never reach the archive.
type archivingOffError struct {
	mode, command, library string
}

func (e *archivingOffError) Error() string {
	return fmt.Sprintf("the server does not archive WAL (archive_mode = %s, archive_command = '%s', archive_library = '%s'), and without its WAL a backup cannot be restored",
		e.mode, e.command, e.library)
}

func (e *archivingOffError) Hint() string {
	return `set archive_mode = on and archive_command = 'holdfast wal-push "%p"', and restart PostgreSQL; ` +
		"or let `holdfast wal-receive` run, which this takes note of by its replication slot and what it stores of the segment that is being written; or, when WAL reaches the archive another way, use --no-wait-wal"
}

// walMissingError says which WAL did not reach the archive in time.
type walMissingError struct {
	missing  []string
	waited   time.Duration
	standby  bool
	archiver string
}

func (e *walMissingError) Error() string {
	names := e.missing
	if len(names) > 3 {
		names = names[:3]
	}
	return fmt.Sprintf("%d WAL segments that the backup needs did not reach the archive within %s: %s%s",
		len(e.missing), e.waited, strings.Join(names, ", "), e.archiver)
}

func (e *walMissingError) Hint() string {
	if e.standby {
		return "on a standby the last segment is archived when the primary has filled it: run `SELECT pg_switch_wal()` there, " +
			"or set archive_mode = always here"
	}
	return "look at the server's log for what archive_command says; the backup was removed and can be taken again"
}

// CorruptError says that the backup was made and has pages that were corrupt on disk already.
type CorruptError struct{ Report *Report }

func (e *CorruptError) Error() string {
	first := e.Report.Corrupt[0]
	return fmt.Sprintf("backup %s is complete, but %d pages in %d files are corrupt on this server, the first is block %d of %s",
		e.Report.Name, e.Report.CorruptBlocks, len(e.Report.Corrupt), first.Blocks[0], first.Path)
}

func (e *CorruptError) Hint() string {
	first := e.Report.Corrupt[0].Path
	database, file := path.Base(path.Dir(first)), path.Base(first)
	if i := strings.IndexAny(file, "._"); i > 0 {
		file = file[:i] // further segments and forks have the relation's number in front
	}
	return fmt.Sprintf("older backups may still have these pages whole: keep them. In the database with oid %s "+
		"`SELECT oid::regclass FROM pg_class WHERE pg_relation_filenode(oid) = %s` names the relation of the first", database, file)
}

// timelineError says that a standby followed its primary to another timeline in the middle of the backup.
type timelineError struct{ from, to wal.Timeline }

func (e *timelineError) Error() string {
	return fmt.Sprintf("the standby followed its primary from timeline %d to %d while it was being backed up", e.from, e.to)
}

func (*timelineError) Hint() string {
	return "take the backup again: it starts on the new timeline then"
}

// strandedError says that WAL which a standby's backup needs is of a timeline on which nobody goes on, and was not archived.
type strandedError struct {
	to      wal.Timeline
	segment string // the first of them
}

func (e *strandedError) Error() string {
	return fmt.Sprintf("the server has gone on to timeline %d, and nobody archives %s any more, which the backup needs", e.to, e.segment)
}

func (*strandedError) Hint() string {
	return "a primary that is lost takes with it what it has not archived: take the backup again, it starts on the new timeline then"
}

// linkError says that data lies behind a symbolic link that PostgreSQL knows nothing of.
type linkError struct{ path, target string }

func (e *linkError) Error() string {
	return fmt.Sprintf("%s is a symbolic link to %s, and holds data that would be missing from the backup", e.path, e.target)
}

// unsentError says that a server does not send what the backup cannot do without.
type unsentError struct{ path string }

func (e *unsentError) Error() string {
	return fmt.Sprintf("the server does not send %s, which is a symbolic link or no file at all: what it holds would be missing from the backup", e.path)
}

func (*unsentError) Hint() string { return (*linkError)(nil).Hint() }

func (*linkError) Hint() string {
	return "put the data back in place of the link while PostgreSQL is stopped, or use a tablespace to keep it elsewhere"
}

// noDirectoryError is that the data directory is not where it was said to be.
type noDirectoryError struct{ error }

func (e *noDirectoryError) Error() string { return "find the data directory: " + e.error.Error() }
func (e *noDirectoryError) Unwrap() error { return e.error }
func (*noDirectoryError) Hint() string {
	return "name what `show data_directory` says, on the host of the server; from another host leave PGDATA away, or say --wire"
}
