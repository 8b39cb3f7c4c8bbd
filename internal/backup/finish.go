package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// stopBackup ends the backup on the server and stores the labels it returns.
func (r *run) stopBackup(ctx context.Context) (server.Stop, error) {
	r.phase("stopping")
	stopCtx, cancel := ctx, context.CancelFunc(func() {})
	if r.Stop > 0 {
		stopCtx, cancel = context.WithTimeoutCause(ctx, r.Stop, fmt.Errorf("not done within WALG_STOP_BACKUP_TIMEOUT, %s", r.Stop))
	}
	defer cancel()
	stop, err := r.conn.StopBackup(stopCtx)
	if err != nil {
		return stop, err
	}
	return stop, r.putLabels(ctx, stop)
}

// putLabels stores the labels of a backup that has stopped where it says.
func (r *run) putLabels(ctx context.Context, stop server.Stop) error {
	if stop.Timeline != r.start.Timeline {
		return &timelineError{from: r.start.Timeline, to: stop.Timeline}
	}
	// WAL-G's form: these two in this order, both always there, the map empty when there are no tablespaces.
	labels := []tarpart.Entry{
		{Path: "backup_label", Mode: 0o600, ModTime: time.Unix(0, 0), Content: []byte(stop.Label), Bare: true},
		{Path: "tablespace_map", Mode: 0o600, ModTime: time.Unix(0, 0), Content: []byte(stop.TablespaceMap), Bare: true},
	}
	if err := r.putPart(ctx, archive.LabelPart, once(labels...)); err != nil {
		return err
	}
	r.report.FinishLSN, r.report.FinishTime = stop.LSN.String(), time.Now().UTC()
	r.report.LastWAL = stop.Segment
	return nil
}

// What awaitWAL waits between two looks at the archive: short at first, as the last segment is usually on its way.
const (
	firstLook = 5 * time.Millisecond
	longLook  = 5 * time.Second
)

const (
	// forsaken is how long a standby's backup waits for the next segment of a timeline that its server has left. Who archived that timeline may have some of it left to
	// archive, or be lost with it; and where archive_command fails three times PostgreSQL's archiver sleeps for a minute. It is a quarter of the whole wait at most: who waits
	// for little hears the reason, too.
	forsaken = 3 * time.Minute
	// unstreamed is how long a backup waits while the wal-receive is gone without which nothing is archived: it may come back.
	unstreamed = 5 * time.Minute
)

// awaitWAL waits until every segment from the backup's start to its stop is in the archive.
func (r *run) awaitWAL(ctx context.Context, stop wal.LSN) error {
	size := r.facts.SegmentSize
	first, last := size.Segment(r.start.LSN), size.LastSegment(stop)
	if r.NoWaitWAL {
		missing, err := r.archive.MissingWAL(ctx, r.start.Timeline, first, last, size, 1)
		r.report.WALIncomplete = len(missing) > 0
		return err
	}
	r.phase("waiting for WAL " + size.Name(r.start.Timeline, last))
	begin, told, pause := time.Now(), time.Now(), firstLook
	lacked, came := 0, begin
	off := !archiving(r.facts) && !r.start.Standby // a wal-receive alone brings the WAL
	streamed := begin
	for {
		look := time.Now()
		missing, err := r.archive.MissingWAL(ctx, r.start.Timeline, first, last, size, 0)
		if err != nil {
			return err
		}
		if slow := time.Since(look) - longLook; slow > 0 { // what came meanwhile was not seen
			came, streamed = came.Add(slow), streamed.Add(slow)
		}
		if len(missing) == 0 {
			return r.compareWAL(ctx, size.Name(r.start.Timeline, last))
		}
		if time.Since(begin) > r.WALTimeout {
			return &walMissingError{missing: missing, waited: r.WALTimeout, standby: r.start.Standby, archiver: r.tellArchiver(ctx)}
		}
		if !off || r.streams(ctx) {
			streamed = time.Now()
		} else if time.Since(streamed) > unstreamed {
			return &archivingOffError{mode: r.facts.ArchiveMode, command: r.facts.ArchiveCommand, library: r.facts.ArchiveLibrary}
		}
		if t := r.followed(ctx); t == 0 || len(missing) != lacked {
			lacked, came = len(missing), time.Now()
		} else if time.Since(came) > min(forsaken, r.WALTimeout/4) {
			return &strandedError{to: t, segment: missing[0]}
		}
		if time.Since(told) > 30*time.Second {
			told = time.Now()
			words := r.tellArchiver(ctx)
			if r.start.Standby {
				words += "; the last one comes when the primary has filled it, or by `SELECT pg_switch_wal()` there"
			}
			r.Logger.Warn(fmt.Sprintf("still waiting for %d WAL segments to be archived, the first is %s%s", len(missing), missing[0], words))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(pause*3/2, longLook)
		// Segments before the first missing one are there and stay there.
		if _, no, err := size.ParseSegment(missing[0]); err == nil {
			first = no
		}
	}
}

// followed returns the timeline that a standby is on where that is not the one on which its backup began; 0 where it is, or where that is not known.
func (r *run) followed(ctx context.Context) wal.Timeline {
	if !r.start.Standby {
		return 0
	}
	ctx, cancel := r.patiently(ctx)
	defer cancel()
	if t, err := r.timeline(ctx); err == nil && t != r.start.Timeline {
		return t
	}
	return 0
}

// compareWAL makes sure that the archive's last segment of the backup is the server's, where the server still has to archive it: one that was set
// back to an earlier state, and did not begin a timeline then, writes WAL under names that the archive has, and its backup would be
// restored with WAL of another history. What it archived itself was compared then.
func (r *run) compareWAL(ctx context.Context, segment string) error {
	if r.start.Standby || r.dir.Root == "" {
		return nil
	}
	dir := filepath.Join(r.dir.Root, "pg_wal")
	if _, err := os.Lstat(filepath.Join(dir, "archive_status", segment+".ready")); err != nil {
		return nil
	}
	err := r.archive.CompareWAL(ctx, segment, func() (io.ReadCloser, error) { return os.Open(filepath.Join(dir, segment)) })
	var conflict *archive.ConflictError
	switch {
	case errors.As(err, &conflict):
		return conflict
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && !errors.Is(err, fs.ErrNotExist): // archived meanwhile
		r.Logger.Warn("whether the archive has the server's own WAL is not known", "segment", segment, "err", err)
	}
	return nil
}

// archiver says in words what the server's archiver last failed at; nothing when it did not.
func (r *run) archiver(ctx context.Context) (string, error) {
	if r.conn == nil { // over the wire there is nobody to ask
		return "", nil
	}
	ctx, cancel := r.patiently(ctx)
	defer cancel()
	st, err := r.conn.ArchiverStatus(ctx)
	if err != nil || !st.Failing() {
		return "", err
	}
	return fmt.Sprintf("; archive_command last failed on %s at %s, %d times in all",
		st.LastFailed, st.FailedTime.Local().Format(time.DateTime), st.Failed), nil
}

// tellArchiver is archiver where it need not succeed.
func (r *run) tellArchiver(ctx context.Context) string {
	words, err := r.archiver(ctx)
	if err != nil {
		return "; how archiving goes is not known: " + err.Error()
	}
	return words
}

// sentinel describes the finished backup.
func (r *run) sentinel(stop server.Stop) *archive.Sentinel {
	start, sysid := r.start.LSN, r.facts.SystemIdentifier
	s := &archive.Sentinel{
		LSN: &start, FinishLSN: &stop.LSN, PgVersion: r.facts.Version, SystemIdentifier: &sysid,
		DataCatalogSize: r.total, Spec: r.spec(), UserData: r.UserData,
		StartTime: r.report.StartTime, FinishTime: r.report.FinishTime, Hostname: r.Host, DataDir: r.dir.Root, IsPermanent: r.Permanent,
		SegmentSize: uint64(r.facts.SegmentSize), CorruptBlocks: r.report.CorruptBlocks, WALIncomplete: r.report.WALIncomplete, Tool: r.Tool,
		Checksums: &r.facts.Checksums,
	}
	switch d := r.delta; {
	case d == nil:
	case d.parent == nil:
		s.DeltaLSN, s.DeltaCount, s.DeltaSource = &d.since, 1, string(r.report.Delta.Source) // DeltaCount as WAL-G's
	default:
		s.DeltaFrom, s.DeltaLSN, s.DeltaFullName, s.DeltaCount = d.parent.Name, &d.since, d.parent.Full, d.parent.Count
		s.Parent, s.DeltaSource = d.parent.Sentinel.Sum, string(r.report.Delta.Source)
	}
	return s
}
