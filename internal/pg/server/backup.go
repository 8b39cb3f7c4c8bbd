package server

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"holdfast/internal/pg/wal"
)

// firstRenamed is the version that has pg_backup_start and pg_backup_stop instead of pg_start_backup and pg_stop_backup.
const firstRenamed = 15_00_00

// lockKey is the advisory lock a session holds while it backs the server up, "holdfast" in ASCII.
const lockKey = 0x686f6c6466617374

// LockBackup claims the server for a backup until the session ends, and reports false when another session has it. Primary and
// standby are claimed apart. Two that ask in the same instant may both be refused.
func (c *Conn) LockBackup(ctx context.Context) (bool, error) {
	const op = "claim the server for a backup"
	if err := c.acquire(ctx); err != nil {
		return false, &Error{Op: op, Err: err}
	}
	defer c.release()
	var got bool
	if err := c.query(ctx, op, `select pg_try_advisory_lock($1)`, []any{int64(lockKey)}, &got); err != nil || !got {
		return false, err
	}
	// Advisory locks belong to a database, and others may be connected to another one.
	var others int
	err := c.query(ctx, op, `
		select count(*) from pg_locks
		where locktype = 'advisory' and objsubid = 1 and classid = $1::int8::oid and objid = $2::int8::oid and granted and pid <> pg_backend_pid()`,
		[]any{int64(lockKey >> 32), int64(lockKey & 0xffff_ffff)}, &others)
	if err == nil && others == 0 {
		return true, nil
	}
	var released bool
	return false, errors.Join(err, c.query(ctx, op, `select pg_advisory_unlock($1)`, []any{int64(lockKey)}, &released))
}

// Start is the beginning of a base backup.
type Start struct {
	LSN      wal.LSN // redo position of the checkpoint it begins with: all WAL from here on is needed
	Timeline wal.Timeline
	Segment  string // name of the first WAL file needed
	Standby  bool   // taken on a standby
}

// StartBackup begins a base backup, after a checkpoint: at once if fast, else spread as checkpoint_completion_target says. On a standby
// the checkpoint is the last one replayed. From then on every file of the data directory may be copied until StopBackup. One backup at a time per Conn; when
// StartBackup fails, Close ends whatever had begun.
func (c *Conn) StartBackup(ctx context.Context, label string, fast bool) (Start, error) {
	const op = "start a backup"
	if err := c.acquire(ctx); err != nil {
		return Start{}, &Error{Op: op, Err: err}
	}
	defer c.release()
	if c.backup != nil {
		return Start{}, &Error{Op: op, Err: errors.New("one is running on this session")}
	}
	var s Start
	if err := c.query(ctx, op, `select pg_is_in_recovery()`, nil, &s.Standby); err != nil {
		return Start{}, err
	}
	sql := `select pg_backup_start($1, $2)::text`
	if c.version < firstRenamed {
		sql = `select pg_start_backup($1, $2, false)::text`
	}
	var lsn string
	if err := c.query(ctx, op, sql, []any{label, fast}, &lsn); err != nil {
		return Start{}, err
	}
	// The server names the timeline of that checkpoint only in the label, at the end. It is in pg_control now, and StopBackup compares.
	var timeline int32
	var segment int64
	err := c.query(ctx, op, `select timeline_id, bytes_per_wal_segment::int8 from pg_control_checkpoint(), pg_control_init()`, nil, &timeline, &segment)
	if err != nil {
		return Start{}, err
	}
	if s.LSN, err = wal.ParseLSN(lsn); err != nil {
		return Start{}, &Error{Op: op, Err: err}
	}
	s.Timeline = wal.Timeline(uint32(timeline))
	// The redo position is never on a segment's border: it lies behind the page header there (XLogBytePosToRecPtr in xlog.c).
	size := wal.SegmentSize(segment)
	s.Segment = size.Name(s.Timeline, size.Segment(s.LSN))
	c.backup = &s
	return s, nil
}

// Stop is the end of a base backup.
type Stop struct {
	LSN           wal.LSN      // all WAL up to here is needed: the last file is the one with the byte before
	Timeline      wal.Timeline // of that last file; differs from Start's only on a standby that followed its primary to a new one
	Segment       string       // name of that last file
	Label         string       // content of backup_label, to be kept with the backup and written nowhere in the data directory
	TablespaceMap string       // content of tablespace_map; empty means there is no such file
}

// StopBackup ends the backup that StartBackup began. It does not wait until the WAL is archived. A primary has switched to a new WAL file, so
// that Segment is about to be archived. A standby cannot switch: Segment reaches the archive when the primary fills it or
// calls SwitchWAL, through whoever archives there, the primary or a standby with archive_mode=always. ErrPromoted means
// that the standby became a primary meanwhile. After an error the backup is void; Close ends what may be left of it.
func (c *Conn) StopBackup(ctx context.Context) (Stop, error) {
	const op = "stop the backup"
	if err := c.acquire(ctx); err != nil {
		return Stop{}, &Error{Op: op, Err: err}
	}
	defer c.release()
	if c.backup == nil {
		return Stop{}, &Error{Op: op, Err: errors.New("none is running on this session")}
	}
	start := *c.backup
	sql := `select lsn::text, labelfile, coalesce(spcmapfile, '') from pg_backup_stop(false)`
	if c.version < firstRenamed {
		sql = `select lsn::text, labelfile, coalesce(spcmapfile, '') from pg_stop_backup(false, false)`
	}
	var s Stop
	var lsn string
	if err := c.query(ctx, op, sql, nil, &lsn, &s.Label, &s.TablespaceMap); err != nil {
		if start.Standby && c.promoted(ctx) {
			return Stop{}, ErrPromoted
		}
		return Stop{}, err
	}
	c.backup = nil
	var timeline int32
	var segment int64
	err := c.query(ctx, op, `
		select case when pg_is_in_recovery() then (select min_recovery_end_timeline from pg_control_recovery()) else $1 end, bytes_per_wal_segment::int8
		from pg_control_init()`, []any{int32(start.Timeline)}, &timeline, &segment)
	if err != nil {
		return Stop{}, err
	}
	if s.LSN, err = wal.ParseLSN(lsn); err != nil {
		return Stop{}, &Error{Op: op, Err: err}
	}
	label, err := ParseLabel(s.Label)
	if err != nil {
		return Stop{}, &Error{Op: op, Err: err}
	}
	if label.LSN != start.LSN || label.Segment != start.Segment {
		return Stop{}, &Error{Op: op, Err: fmt.Errorf("the server's label says that the backup began at %s in %s, and it began at %s in %s",
			label.LSN, label.Segment, start.LSN, start.Segment)}
	}
	size := wal.SegmentSize(segment)
	s.Timeline = wal.Timeline(uint32(timeline))
	s.Segment = size.Name(s.Timeline, size.LastSegment(s.LSN))
	return s, nil
}

// ParseLabel reads what a backup_label says of the backup's start, in its lines START WAL LOCATION and BACKUP FROM.
func ParseLabel(label string) (Start, error) {
	var s Start
	for line := range strings.Lines(label) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if !ok {
			continue
		}
		var err error
		switch key {
		case "START WAL LOCATION":
			at, file, _ := strings.Cut(value, " (file ")
			s.Segment = strings.TrimSuffix(file, ")")
			if s.LSN, err = wal.ParseLSN(at); err == nil {
				s.Timeline, err = wal.TimelineOf(s.Segment)
			}
		case "BACKUP FROM":
			s.Standby = value == "standby"
		}
		if err != nil {
			return Start{}, fmt.Errorf("backup_label has the line %.120q: %w", line, err)
		}
	}
	if s.LSN == 0 || s.Timeline == 0 {
		return Start{}, fmt.Errorf("backup_label begins with %.120q and does not say where the backup starts", label)
	}
	return s, nil
}

// promoted reports whether the server is known to be a primary.
func (c *Conn) promoted(ctx context.Context) bool {
	var standby bool
	err := c.query(ctx, "ask PostgreSQL whether it is a standby", `select pg_is_in_recovery()`, nil, &standby)
	return err == nil && !standby
}
