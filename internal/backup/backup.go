// Package backup takes a base backup of a running PostgreSQL into an archive, by reading the data directory.
//
// The life of a backup: the server is told (non-exclusive, fast checkpoint), the archive gives a draft, the directory
// is dealt entry by entry to one worker per core, each filling tar parts of its own; pg_control goes last, the server is
// told to stop, its labels follow, and once every WAL segment from start to stop is in the archive the draft is committed.
// Whatever ends that early, an error, a signal, a promotion, a lost connection, stops the backup on the server and removes
// what was stored: there is a whole backup or none.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
)

// Options tunes Run. The zero value makes a backup; Host and Tool should say who made it.
type Options struct {
	Workers    int             // parts filled at once; 0 means one per core
	PartSize   int64           // bytes of content after which a part is closed; 0 means 1 GiB less one byte, as WAL-G
	DiskRate   int64           // bytes read a second at most; 0 is no limit
	WireCodec  string          // how the server compresses what it sends over the wire: gzip, lz4, zstd or auto; "" is not at all
	AllCorrupt bool            // record every corrupt block, not just the first ten of a file
	Permanent  bool            // retention leaves the backup alone
	UserData   json.RawMessage // stored with the backup; up to archive.MaxUserData
	Adopt      bool            // take over an archive that belongs to another cluster
	NoWaitWAL  bool            // commit without waiting for the WAL the backup needs
	WALTimeout time.Duration   // how long to wait for that WAL; 0 means an hour
	Alive      time.Duration   // how often the server is asked whether it is still there; 0 means a minute, below 0 never
	Patience   time.Duration   // how long the server may take to answer what costs it nothing; 0 means five minutes
	Stop       time.Duration   // how long stopping the backup may take on the server; 0 is no limit
	Beat       time.Duration   // how often a sign of life is left in the archive; 0 means a minute, and it has to be below 15
	Host       string          // name of this host
	Tool       string          // release of this program
	Delta      Delta           // what the backup builds on; the zero value makes a full one
	Logger     *slog.Logger    // nil discards
	Progress   *Progress       // kept up to date when not nil
}

// Report says what Run did.
type Report struct {
	Name             string             `json:"backup_name"`
	SystemIdentifier uint64             `json:"system_identifier"`
	Timeline         wal.Timeline       `json:"timeline"`
	Since            string             `json:"from_lsn,omitempty"` // of a catch-up
	StartLSN         string             `json:"start_lsn"`
	FinishLSN        string             `json:"finish_lsn"`
	StartTime        time.Time          `json:"start_time"`
	FinishTime       time.Time          `json:"finish_time"`
	FirstWAL         string             `json:"first_wal"`         // segment replay starts in
	LastWAL          string             `json:"last_wal"`          // segment that makes it consistent
	Files            int64              `json:"files"`             // as stored, labels aside
	BytesRead        int64              `json:"bytes_read"`        // of the data directory
	UncompressedSize int64              `json:"uncompressed_size"` // bytes
	CompressedSize   int64              `json:"compressed_size"`   // bytes as stored
	Vanished         int64              `json:"vanished_files"`    // dropped while the backup ran; replay does not miss them
	Skipped          []string           `json:"skipped,omitempty"` // left out: sockets and the like
	Corrupt          []CorruptFile      `json:"corrupt,omitempty"`
	CorruptBlocks    int64              `json:"corrupt_blocks"`
	WALIncomplete    bool               `json:"wal_incomplete,omitempty"` // taken without waiting for WAL
	Delta            *DeltaReport       `json:"delta,omitempty"`          // nil for a full backup
	FullBecause      string             `json:"full_because,omitempty"`   // why it is a full one where deltas are enabled
	Seconds          map[string]float64 `json:"seconds"`                  // per phase: catalog, start, parent, changes, copy, stop, wal, commit
}

// CorruptFile is a relation file with pages whose checksum does not hold.
type CorruptFile struct {
	Path   string   `json:"path"`
	Blocks []uint32 `json:"blocks"` // in this file: the first ten unless all were asked for
	Count  int      `json:"count"`
}

// Run takes a backup of the cluster in dataDir, to which conn is a session, into a. The caller closes conn. On an error the backup
// was stopped on the server, by closing conn, and nothing of it is left in the archive; should removing what was stored fail too,
// the error says so.
func Run(ctx context.Context, conn *server.Conn, a *archive.Archive, dataDir string, opts Options) (*Report, error) {
	r := &run{Options: opts, conn: conn, archive: a, backups: a, timeline: conn.Timeline}
	if err := r.prepare(ctx, dataDir); err != nil {
		return nil, err
	}
	return r.run(ctx)
}

// run is one backup at work.
type run struct {
	Options
	conn    *server.Conn
	archive *archive.Archive
	backups *archive.Archive // where the draft is made: archive, or its catch-ups
	dir     *datadir.Dir     // its root has no symbolic links
	facts   server.Facts
	draft   *archive.Draft
	start   server.Start
	limit   *rate.Limiter
	spaces  []datadir.Tablespace
	verify  bool  // page checksums
	total   int64 // bytes of everything the first walk met
	read    atomic.Int64

	placed  map[string]database // directories of databases as the backup began
	catalog *catalog.Catalog    // nil where no delta is wanted
	delta   *delta              // nil for a full backup
	standby *Standby            // nil for what is no catch-up

	timeline func(context.Context) (wal.Timeline, error) // asks on which one the server is

	configuration []string // files of the server, where a standby's own are to stay

	mu     sync.Mutex // guards report while workers run
	report Report
}

// prepare checks everything that can be checked before the server is disturbed.
func (r *run) prepare(ctx context.Context, dataDir string) error {
	r.defaults()
	r.phase("preparing")
	if err := r.checkUserData(); err != nil {
		return err
	}
	resolved, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return &noDirectoryError{err}
	}
	if r.dir, err = datadir.Open(resolved); err != nil {
		return err
	}
	id, root := r.dir.Control.SystemIdentifier, r.dir.Root
	asking, answered := r.patiently(ctx)
	defer answered()
	if r.facts, err = r.conn.Facts(asking); err != nil {
		return err
	}
	if r.facts.SystemIdentifier != id {
		return &wrongServerError{dir: root, dirID: id, serverID: r.facts.SystemIdentifier}
	}
	// A standby on the same host has the same identifier: the directory tells them apart.
	served, err := filepath.EvalSymlinks(r.facts.DataDirectory)
	if err != nil {
		return fmt.Errorf("find the data directory the server names: %w", err)
	}
	if served != root {
		return &wrongServerError{dir: root, dirID: id, serverID: id, served: r.facts.DataDirectory}
	}
	if err := r.judge(asking); err != nil {
		return err
	}
	switch mine, err := r.conn.LockBackup(asking); {
	case err != nil:
		return err
	case !mine:
		return errRunning
	}
	return r.claim(ctx)
}

// checkUserData refuses what is too much to be stored with a backup.
func (r *run) checkUserData() error {
	if len(r.UserData) > archive.MaxUserData {
		return fmt.Errorf("user data of %d bytes: a backup takes at most %d", len(r.UserData), archive.MaxUserData)
	}
	return nil
}

// judge looks at what the server says of itself: whether its WAL can reach the archive, and whether its pages have checksums.
func (r *run) judge(ctx context.Context) error {
	for _, note := range r.facts.Notes {
		r.Logger.Warn(note)
	}
	// A standby's WAL is its primary's to archive.
	if !archiving(r.facts) && !r.facts.Standby && !r.NoWaitWAL && !r.streamed(ctx) {
		return &archivingOffError{mode: r.facts.ArchiveMode, command: r.facts.ArchiveCommand, library: r.facts.ArchiveLibrary}
	}
	switch failing, err := r.archiver(ctx); {
	case err != nil:
		return err
	case failing != "" && !r.NoWaitWAL:
		r.Logger.Warn("archiving fails at this moment, and the backup only counts once its WAL is archived" + failing)
	}
	if r.verify = r.facts.Checksums && r.facts.BlockSize == page.Size; r.facts.Checksums && !r.verify {
		r.Logger.Warn(fmt.Sprintf("page checksums are not verified: pages are %d bytes, not %d", r.facts.BlockSize, page.Size))
	}
	return nil
}

// claim makes sure that the archive is this cluster's, and removes what died in it.
func (r *run) claim(ctx context.Context) error {
	if err := r.archive.Claim(ctx, r.facts.SystemIdentifier, r.Host, r.Adopt); err != nil {
		return err
	}
	dead, err := r.backups.SweepDead(ctx, r.Host)
	for _, d := range dead {
		r.Logger.Info("removed what a backup-push that died had left of " + d)
	}
	if err != nil && ctx.Err() == nil { // that fails nothing but the tidying up
		r.Logger.Warn("what backup-pushes that died have left is not all removed", "err", err)
	}
	return nil
}

// streamed reports whether a wal-receive is at work: somebody streams from the server, and the archive has the beginning of a segment that is being written, or the last
// that was finished.
func (r *run) streamed(ctx context.Context) bool {
	for n := 0; !r.streams(ctx) || !r.follows(ctx); n++ { // it may be connecting anew
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Second):
		}
		if n == 5 {
			return false
		}
	}
	return true
}

// follows reports whether what the archive has of WAL nobody can have brought there by archive_command, which is off.
func (r *run) follows(ctx context.Context) bool {
	if tails, err := r.archive.Tails(ctx); err != nil || len(tails) > 0 {
		return err == nil
	}
	if r.conn == nil {
		return false
	}
	within, cancel := r.patiently(ctx)
	at, err := r.conn.CurrentLSN(within)
	cancel()
	if err != nil {
		return false
	}
	no := r.facts.SegmentSize.Segment(at)
	if no == 0 {
		return false
	}
	there, err := r.archive.HasWAL(ctx, r.facts.SegmentSize.Name(r.facts.Timeline, no-1))
	return err == nil && there
}

// streams reports whether somebody streams from the server, as far as it tells: else waiting for the WAL will.
func (r *run) streams(ctx context.Context) bool {
	if r.conn == nil {
		return true
	}
	ctx, cancel := r.patiently(ctx)
	defer cancel()
	streamed, err := r.conn.Streamed(ctx)
	return err != nil || streamed
}

// archiving reports whether the server hands its WAL to somebody.
func archiving(f server.Facts) bool {
	return f.ArchiveMode != "off" && (f.ArchiveCommand != "" || f.ArchiveLibrary != "")
}

func (r *run) defaults() {
	if r.Workers <= 0 {
		r.Workers = runtime.GOMAXPROCS(0)
	}
	if r.PartSize <= 0 {
		r.PartSize = 1<<30 - 1
	}
	if r.WALTimeout <= 0 {
		r.WALTimeout = time.Hour
	}
	if r.Alive == 0 {
		r.Alive = time.Minute
	}
	if r.Patience <= 0 {
		r.Patience = 5 * time.Minute
	}
	if r.Beat <= 0 {
		r.Beat = time.Minute
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	if r.Progress == nil {
		r.Progress = &Progress{}
	}
	if r.DiskRate > 0 {
		// A burst of one read keeps the flow even; reads are no longer than this.
		r.limit = rate.NewLimiter(rate.Limit(r.DiskRate), readSize)
	}
}

// readSize bounds one read of a data file, bytes; tarpart reads no more at once.
const readSize = 256 << 10

// run takes the backup and cleans up when it fails.
func (r *run) run(ctx context.Context) (_ *Report, err error) {
	defer func() {
		if err != nil {
			err = r.undo(ctx, err, r.conn.Close)
		}
	}()
	for _, phase := range []struct {
		name string
		do   func(context.Context) error
	}{{"catalog", r.loadCatalog}, {"start", r.startBackup}, {"parent", r.begin}} {
		if err := r.timed(phase.name, func() error { return phase.do(ctx) }); err != nil {
			return nil, err
		}
	}
	ctx, end := r.beating(ctx)
	defer end()
	if err := r.rest(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause // why it was cut short, not how it noticed
		}
		return nil, err
	}
	return r.finished(), nil
}

// undo leaves the server, by closing the session, and the archive as they were before the backup that failed with err, which it returns
// with what became of that.
func (r *run) undo(ctx context.Context, err error, closeSession func() error) error {
	// What follows must happen although ctx may be over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if stop := closeSession(); stop != nil { // the backup ends with its session
		err = errors.Join(err, fmt.Errorf("stop the backup on the server: %w", stop))
	}
	if r.draft == nil {
		return err
	}
	var lost *archive.InUseError
	abort := r.draft.Abort(ctx)
	if abort != nil && !(errors.As(err, &lost) && errors.As(abort, &lost)) { // said already
		err = errors.Join(err, fmt.Errorf("remove what was stored of %s: %w", r.draft.Name(), abort))
	}
	return err
}

// finished completes the report of a backup that is made.
func (r *run) finished() *Report {
	r.report.UncompressedSize, r.report.CompressedSize = r.draft.Sizes()
	r.report.Files, r.report.BytesRead = r.draft.Files(), r.read.Load()
	r.phase("done")
	return &r.report
}

// rest does what follows once the backup is begun.
func (r *run) rest(ctx context.Context) error {
	if err := r.timed("changes", func() error { return r.watched(ctx, r.findChanges) }); err != nil {
		return err
	}
	if err := r.timed("copy", func() error { return r.watched(ctx, r.copyData) }); err != nil {
		return err
	}
	var stop server.Stop
	err := r.timed("stop", func() (err error) { stop, err = r.stopBackup(ctx); return err })
	if err != nil {
		return err
	}
	if err := r.checkDatabases(); err != nil {
		return err
	}
	if err := r.timed("wal", func() error { return r.awaitWAL(ctx, stop.LSN) }); err != nil {
		return err
	}
	return r.timed("commit", func() error {
		if err := r.checkAncestors(ctx); err != nil {
			return err
		}
		if err := r.markAncestors(ctx); err != nil {
			return err
		}
		return r.draft.Commit(ctx, r.sentinel(stop))
	})
}

// cleanupTime bounds what is done after a failure.
const cleanupTime = 2 * time.Minute

// timed runs a phase and records how long it took.
func (r *run) timed(phase string, do func() error) error {
	begin := time.Now()
	err := do()
	if r.report.Seconds == nil {
		r.report.Seconds = map[string]float64{}
	}
	r.report.Seconds[phase] = time.Since(begin).Seconds()
	return err
}

func (r *run) startBackup(ctx context.Context) (err error) {
	r.phase("waiting for the server's checkpoint")
	if r.placed, err = r.databases(); err != nil {
		return err
	}
	r.report.StartTime = time.Now().UTC()
	if r.start, err = r.conn.StartBackup(ctx, "holdfast "+r.report.StartTime.Format(time.RFC3339), true); err != nil {
		return fmt.Errorf("start the backup on the server: %w", err)
	}
	return nil
}

// begin decides what the backup that the server has begun builds on, and opens its draft.
func (r *run) begin(ctx context.Context) error {
	var err error
	if r.standby != nil {
		err = r.sinceStandby()
	} else {
		err = r.chooseParent(ctx, r.start.LSN, r.start.Timeline)
	}
	if err != nil {
		return err
	}
	return r.begun(ctx)
}

// begun opens the draft of the backup that the server has begun.
func (r *run) begun(ctx context.Context) (err error) {
	name := r.backupName(r.start.Segment)
	r.report.Name, r.report.StartLSN = name, r.start.LSN.String()
	r.report.SystemIdentifier, r.report.Timeline = r.facts.SystemIdentifier, r.start.Timeline
	r.report.FirstWAL = r.start.Segment
	r.Logger.Info(fmt.Sprintf("Started backup with name %s at LSN %s", name, r.start.LSN))
	if r.draft, err = r.backups.Begin(ctx, name, r.Host); err != nil {
		return err
	}
	return r.besideParent(ctx)
}

// watched runs do while asking the server every so often whether the backup is still good: session alive, not promoted.
func (r *run) watched(ctx context.Context, do func(context.Context) error) error {
	if r.Alive < 0 {
		return do(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopped := make(chan struct{})
	watcher := make(chan struct{})
	go func() {
		defer close(watcher)
		tick := time.NewTicker(r.Alive)
		defer tick.Stop()
		for {
			select {
			case <-stopped:
				return
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// The wait is bounded, so that of a ping on its way do's end is followed by an answer or the loss of the session.
			asking, answered := r.patiently(ctx)
			err := r.conn.Ping(asking)
			answered()
			if err != nil {
				cancel(fmt.Errorf("the backup was lost on the server: %w", err))
				return
			}
		}
	}()
	err := do(ctx)
	close(stopped)
	<-watcher
	if cause := context.Cause(ctx); cause != nil {
		return cause // also where the session was lost at the last moment
	}
	return err
}

// patiently bounds how long the server may take to answer.
func (r *run) patiently(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, r.Patience, fmt.Errorf("the server gave no answer within %s", r.Patience))
}

// beating leaves signs of life in the archive until end is called. Where the name is lost to another push ctx ends with that as
// its cause.
func (r *run) beating(ctx context.Context) (_ context.Context, end func()) {
	return r.draft.Beating(ctx, r.Beat, func(err error) { r.Logger.Warn("could not leave a sign of life in the archive", "err", err) })
}
