// Package walreceive streams WAL from a server into an archive.
//
// What the server sends through a replication slot goes to a spool, a directory of this host, and from there into the archive: segments once they are
// whole, and of the one that is being written each piece as it comes (archive.TailDir), so that of a server that is lost with its host the archive lacks
// seconds, or with Synchronous no commit that was acknowledged.
//
// No byte is passed over. Receiving begins with the segment at which spool and archive end, and where both are empty with the one at which the server was
// when the run first had its slot. What was received of a segment before is compared with what the server
// sends now. When the server leaves a timeline so does the receiver: the history file goes up first, then what was received of the old timeline's
// last segment as .partial, then the new timeline from the beginning of that segment on, as pg_receivewal does (src/bin/pg_basebackup/receivelog.c).
// The slot keeps what is not safe yet: only what is in the store, or with Synchronous where Options says, is reported as flushed.
//
// The spool holds a segment as <segment>.receiving until it is whole, synced and renamed to <segment>, and until it is in the archive. What was received of a
// timeline behind where that was left, and that the archive takes neither as .partial, as it has another, nor in pieces, stays there as <segment>.kept;
// and so does what a restart finds that does not follow what is before it.
package walreceive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/internal/archive"
	"holdfast/internal/atomicfile"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
)

// Archive is what receiving needs of an archive; *archive.Archive is one.
type Archive interface {
	Claim(ctx context.Context, sysid uint64, host string, adopt bool) error
	HasWAL(ctx context.Context, name string) (bool, error)
	NewestWAL(ctx context.Context, t wal.Timeline, end wal.LSN, size wal.SegmentSize) (wal.SegmentNo, bool, error)
	OpenWAL(ctx context.Context, name string) (io.ReadCloser, error)
	PutTail(ctx context.Context, segment string, start, end int64, r io.ReadSeeker) (archive.TailPiece, error)
	OpenTailPiece(ctx context.Context, p archive.TailPiece) (io.ReadCloser, error)
	Tail(ctx context.Context, segment string) (archive.Tail, error)
	TailPieces(ctx context.Context, segment string) ([]archive.TailPiece, error)
	Tails(ctx context.Context) ([]string, error)
	RemoveTail(ctx context.Context, pieces []archive.TailPiece) error
}

// Options says how to receive. Slot, Dir and Push must be set.
type Options struct {
	Slot string // physical replication slot; created where there is none
	Dir  string // of the spool
	Host string // who claims an archive that is nobody's

	// Push puts the WAL file at path into the archive, as archive_command would.
	Push func(ctx context.Context, path string) error

	TailInterval time.Duration // how often a piece of the unfinished segment goes up; 0: never, but if Synchronous: where commits wait for that, no server is there, or Run ends
	TailBytes    int64         // or once there is so much of it

	Synchronous  bool // report at once what is safe, and nothing else
	Local, Store bool // where what is safe must be, if Synchronous: on this host's disk, in the store, or both

	// AcceptGap goes on where the server's WAL begins, once, if there is a gap.
	AcceptGap bool

	Logger *slog.Logger // nil discards
}

// Report says what was received.
type Report struct {
	Segments int          // archived, .partial ones included
	Timeline wal.Timeline // of what was received last
	Received wal.LSN      // up to where
	Stored   wal.LSN      // up to where it is in the store
}

// Bounds of what waits for the archive, in segments: where there are more the server keeps them.
const maxWaiting = 64

// farewell is how long what was received may take to the store once ctx has ended.
const farewell = 10 * time.Second

// Run receives from the server that connect reaches, until ctx ends, which is no error. What may pass it tries again for ever, connecting anew. The errors
// that it returns will not: a *GapError, *SlotError, *DivergedError or *RivalError, an *archive.OwnerError or *archive.ConflictError, trouble with the spool's disk.
func Run(ctx context.Context, connect func(context.Context) (*server.Replication, error), a Archive, o Options) (Report, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.TailBytes <= 0 {
		o.TailBytes = 1 << 20
	}
	if err := server.CheckSlotName(o.Slot); err != nil {
		return Report{}, err
	}
	if o.Synchronous && !o.Local && !o.Store {
		return Report{}, errors.New("nothing says where synchronous WAL has to be")
	}
	spool, err := openSpool(o.Dir)
	if err != nil {
		return Report{}, err
	}
	defer spool.close()
	segments, size, cluster, err := spool.load(o.Logger)
	if err != nil {
		return Report{}, err
	}
	histories, err := filepath.Glob(filepath.Join(o.Dir, "*.history")) // that an earlier run did not come to archive
	if err != nil {
		return Report{}, err
	}
	r := &receiver{
		opts: o, connect: connect, archive: a, spool: spool, cluster: cluster, histories: map[wal.Timeline]bool{},
		owed: histories,
		line: &line{spool: spool, changed: make(chan struct{}), segments: segments, size: size, switches: map[wal.Timeline]wal.LSN{}},
	}
	if n := len(segments); n > 0 {
		last := segments[n-1]
		r.line.timeline, r.line.next, r.line.base = last.timeline, last.start, segments[0].start
		r.line.begun = segments[slices.IndexFunc(segments, func(s *segment) bool { return s.timeline == last.timeline })].start
		if last.whole {
			r.line.next += wal.LSN(size)
		}
		o.Logger.Info(fmt.Sprintf("%d segments are left in %s, up to %s of timeline %d", n, o.Dir, last.end(), uint32(last.timeline)))
	}
	err = r.run(ctx)
	for _, s := range r.line.segments {
		s.file.Close() // what matters was synced
	}
	r.report.Timeline = r.line.timeline
	r.report.Received, _, r.report.Stored = r.line.positions()
	return r.report, err
}

// receiver is one Run.
type receiver struct {
	opts      Options
	connect   func(context.Context) (*server.Replication, error)
	archive   Archive
	spool     *spool
	line      *line
	cluster   uint64                // system identifier; 0 where it is not known yet
	apart     bool                  // commits do not wait for the archive, and neither does receiving: what goes there is the business of others than who receives
	claimed   bool                  // the archive is the cluster's; as far as known to who receives
	swept     bool                  // sweep was done
	histories map[wal.Timeline]bool // whose history file is archived
	accepted  bool                  // AcceptGap was used
	outset    catalog.Branch        // where the server was when the slot was found or made, as long as it is not known where to begin
	way       []catalog.Branch      // to the timeline of the server, that one last

	// Guarded by the line's lock.
	tailed   time.Time // when a piece went up last
	owed     []string  // paths of history files that are to be archived before what was received since
	stopping bool      // all that was received is to go up
	away     bool      // no server is there: what commits were acknowledged by is to be in the archive before a restore
	report   Report
}

// run starts what moves the log on, and receives.
func (r *receiver) run(parent context.Context) error {
	// Receiving ends with parent; storing goes on until it has stored, or for a while.
	receive, stop := context.WithCancelCause(parent)
	defer stop(nil)
	keep, end := context.WithCancelCause(context.WithoutCancel(parent))
	defer end(nil)
	fail := func(err error) {
		if err != nil {
			stop(&fatalError{err})
		}
	}
	var group sync.WaitGroup
	group.Go(func() { fail(r.syncAll(keep)) })
	store := func() {
		group.Go(func() { fail(r.storeTails(keep)) })
		group.Go(func() { fail(r.mergeTails(keep)) })
		group.Go(func() { fail(r.lookAround(keep)) })
		group.Go(func() { fail(r.storeSegments(keep)) })
	}
	if r.apart = r.cluster != 0 && r.opts.Synchronous && !r.opts.Store; r.apart {
		group.Go(func() {
			if err := r.claim(keep); err != nil {
				fail(err)
			} else if keep.Err() == nil {
				store()
			}
		})
		r.receive(receive, fail)
	} else if err := r.claim(receive); err != nil {
		fail(err)
	} else {
		store()
		r.receive(receive, fail)
	}
	cause := context.Cause(receive)
	r.line.change(func() { r.stopping = true })
	if fatal := (*fatalError)(nil); !errors.As(cause, &fatal) {
		cause = nil
		r.finish(keep)
	} else {
		cause = fatal.error
	}
	end(nil)
	group.Wait()
	return cause
}

// finish waits until what was received is where it should be.
func (r *receiver) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	for {
		changed := r.line.wait()
		written, synced, stored := r.line.positions()
		if synced == written && (stored == written || !r.tails()) {
			return
		}
		if until(ctx, changed) != nil {
			r.opts.Logger.Warn(fmt.Sprintf("what was received from %s to %s is not in the store: it is in %s, and goes there when wal-receive runs again", stored, written, r.opts.Dir))
			return
		}
	}
}

// claim makes the archive that of the cluster whose WAL lies in the spool. An error is one that will not pass.
func (r *receiver) claim(ctx context.Context) error {
	if r.cluster == 0 {
		return nil
	}
	for wait := (backoff{}); ctx.Err() == nil; wait.pause(ctx) {
		err := r.archive.Claim(ctx, r.cluster, r.opts.Host, false)
		if err == nil || permanent(err) {
			if !r.apart {
				r.claimed = err == nil
			}
			return err
		}
		r.warn(&wait, "cannot ask whose archive this is", err)
	}
	return nil
}

// syncAll brings what is received to this host's disk, at once where commits wait for that.
func (r *receiver) syncAll(ctx context.Context) error {
	for {
		changed := r.line.wait()
		if err := r.line.sync(); err != nil {
			return err
		}
		if r.opts.Synchronous && r.opts.Local {
			if until(ctx, changed) != nil {
				return r.line.sync()
			}
			continue
		}
		pause, cancel := context.WithTimeout(ctx, time.Second)
		for until(pause, changed) == nil {
			if changed = r.line.wait(); r.someWhole() {
				break
			}
		}
		cancel()
		if ctx.Err() != nil {
			return r.line.sync()
		}
	}
}

// someWhole reports whether the archive waits for a segment to be synced, or everything is to end.
func (r *receiver) someWhole() bool {
	r.line.mu.Lock()
	defer r.line.mu.Unlock()
	for _, s := range r.line.segments {
		if s.whole && !s.named || s.left && s.synced < s.written {
			return true
		}
	}
	return r.stopping
}

// receive runs one session with a server after the other, until ctx ends.
func (r *receiver) receive(ctx context.Context, fail func(error)) {
	wait := backoff{}
	for ctx.Err() == nil {
		got, err := r.session(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil: // a timeline has ended
			wait.reset()
			continue
		case permanent(err):
			fail(err)
			return
		}
		if got {
			wait.reset()
		}
		r.line.change(func() { r.away = true })
		r.warn(&wait, "cannot receive WAL", err)
		wait.pause(ctx)
	}
}

// session receives along one timeline, to its end, and reports whether anything came.
func (r *receiver) session(ctx context.Context) (got bool, err error) {
	conn, err := r.connect(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		if closeErr := conn.Close(); closeErr != nil && err == nil && ctx.Err() == nil {
			r.opts.Logger.Debug("cannot end the session", "error", closeErr)
		}
	}()
	facts, err := conn.Facts(ctx)
	if err != nil {
		return false, err
	}
	if err := r.know(ctx, facts); err != nil {
		return false, err
	}
	if err := r.createSlot(ctx, conn); err != nil {
		return false, err
	}
	if err := r.place(ctx, conn, facts); err != nil {
		return false, err
	}
	if !r.swept && r.tails() && !r.apart {
		if err := r.sweep(ctx); err != nil { // with a storage that is down that cannot be told, and receiving must go on
			r.opts.Logger.Warn("cannot remove pieces of what is archived whole; the next session tries again", "error", err)
		} else {
			r.swept = true
		}
	}
	got, err = r.stream(ctx, conn)
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "58P01": // undefined_file: the server has removed it
			err = r.mind(ctx, facts)
		case "55000": // object_not_in_prerequisite_state: invalidated, or a logical slot
			err = &SlotError{Slot: r.opts.Slot, Err: err}
		}
	}
	return got, err
}

// createSlot makes sure that there is the slot, and an outset where it is not known where to begin. Where the server is, is asked for before, too: when
// the session is lost just as the slot is made, the next one finds it, and the server further on.
func (r *receiver) createSlot(ctx context.Context, conn *server.Replication) (err error) {
	var before catalog.Branch
	if r.line.timeline == 0 {
		if before.Switch, before.Timeline, err = conn.Position(ctx); err != nil {
			return err
		}
	}
	created, err := conn.CreateSlot(ctx, r.opts.Slot)
	var pg *pgconn.PgError
	refused := errors.As(err, &pg) && !strings.HasPrefix(pg.Code, "57") // operator_intervention: then there may be one
	if created || r.outset.Timeline == 0 && !refused {
		r.outset = before // what an older slot kept a new one may not
	}
	if err != nil || !created {
		return err
	}
	r.opts.Logger.Info("created the replication slot " + r.opts.Slot)
	if r.line.timeline != 0 {
		return nil
	}
	at, t, err := conn.Position(ctx) // what the slot is sure to keep
	if err == nil {
		r.outset = catalog.Branch{Timeline: t, Switch: at}
	}
	return err
}

// know compares the server with what is known of the cluster, and the archive with both.
func (r *receiver) know(ctx context.Context, facts server.Facts) error {
	if r.cluster != 0 && (facts.SystemIdentifier != r.cluster || facts.SegmentSize != r.line.size) {
		return &fatalError{fmt.Errorf("the server is of the cluster with system identifier %d, and what was received before is of %d: %s is for one cluster",
			facts.SystemIdentifier, r.cluster, r.opts.Dir)}
	}
	if !r.claimed && !r.apart {
		if err := r.archive.Claim(ctx, facts.SystemIdentifier, r.opts.Host, false); err != nil {
			return err
		}
		r.claimed = true
	}
	if r.cluster == 0 { // else they are the same, and others read them
		r.line.mu.Lock()
		defer r.line.mu.Unlock()
		r.cluster, r.line.size = facts.SystemIdentifier, facts.SegmentSize
	}
	return nil
}

// begin is the first position of the segment that holds a position.
func (r *receiver) begin(at wal.LSN) wal.LSN { return r.line.size.Start(r.line.size.Segment(at)) }

// place finds where to go on: where spool and archive end, on the way to the server's timeline. It sees to the history files of that way.
func (r *receiver) place(ctx context.Context, conn *server.Replication, facts server.Facts) error {
	var branches []catalog.Branch
	if facts.Timeline > 1 {
		content, err := conn.History(ctx, facts.Timeline)
		if err != nil {
			return err
		}
		if branches, err = catalog.ParseHistory(facts.Timeline, content); err != nil {
			return err
		}
		if err := r.storeHistory(ctx, facts.Timeline, content); err != nil {
			return err
		}
	}
	r.line.change(func() {
		for _, b := range branches {
			r.line.switches[b.Timeline] = b.Switch
		}
	})
	way := append(branches, catalog.Branch{Timeline: facts.Timeline})
	r.way = way
	if r.line.timeline == 0 {
		return r.placeFirst(ctx, conn, way)
	}
	for i, leg := range way {
		switch {
		case leg.Timeline != r.line.timeline:
		case i == len(way)-1 || r.line.next <= leg.Switch: // of a segment that was begun next is the beginning
			return nil
		default:
			follows := way[i+1].Timeline
			r.tellOfMore(leg.Timeline, leg.Switch, follows)
			r.line.leave(follows, r.begin(leg.Switch))
			return nil
		}
	}
	if facts.Timeline <= r.line.timeline {
		return fmt.Errorf("the server is on timeline %d, and WAL of timeline %d was received already: it is a former primary, or a standby that has not followed",
			uint32(facts.Timeline), uint32(r.line.timeline))
	}
	r.opts.Logger.Warn(fmt.Sprintf("the server is on timeline %d, which does not come from timeline %d: going on where the archive ends on its way", uint32(facts.Timeline), uint32(r.line.timeline)))
	r.line.leave(0, 0)
	if err := r.setOut(ctx, conn); err != nil {
		return err
	}
	return r.placeFirst(ctx, conn, way)
}

// setOut notes where the server is, once, when it is not known where to begin: the slot keeps what comes behind that, however often it takes to learn what
// the archive has.
func (r *receiver) setOut(ctx context.Context, conn *server.Replication) (err error) {
	if r.line.timeline == 0 && r.outset.Timeline == 0 {
		r.outset.Switch, r.outset.Timeline, err = conn.Position(ctx)
	}
	return err
}

// placeFirst finds where to begin when nothing was received before: behind the newest segment that is archived on the way, else where the server was at the
// outset.
func (r *receiver) placeFirst(ctx context.Context, conn *server.Replication, way []catalog.Branch) error {
	for i := len(way) - 1; i >= 0; i-- {
		leg := way[i]
		no, ok, err := r.archive.NewestWAL(ctx, leg.Timeline, leg.Switch, r.line.size)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		next := r.line.size.Start(no + 1)
		if i < len(way)-1 && next > leg.Switch {
			leg, next = way[i+1], r.begin(leg.Switch)
		}
		r.opts.Logger.Info(fmt.Sprintf("the archive ends before %s of timeline %d: receiving from there on", next, uint32(leg.Timeline)))
		r.goTo(ctx, leg.Timeline, next)
		return nil
	}
	t, next, err := r.firstTail(ctx, way)
	if err != nil {
		return err
	}
	if t == 0 {
		if t, next, err = r.fromOutset(ctx, conn, way); err != nil {
			return err
		}
	}
	r.opts.Logger.Info(fmt.Sprintf("the archive has no whole WAL: receiving from %s of timeline %d on", next, uint32(t)))
	r.goTo(ctx, t, next)
	return nil
}

// fromOutset returns the segment at which the outset lies on the way; where it does not, that at which the server is.
func (r *receiver) fromOutset(ctx context.Context, conn *server.Replication, way []catalog.Branch) (wal.Timeline, wal.LSN, error) {
	for i, leg := range way {
		switch {
		case leg.Timeline != r.outset.Timeline:
		case i == len(way)-1 || r.outset.Switch <= leg.Switch:
			return leg.Timeline, r.begin(r.outset.Switch), nil
		default: // the server that was lost had come further
			return way[i+1].Timeline, r.begin(leg.Switch), nil
		}
	}
	at, t, err := conn.Position(ctx)
	return t, r.begin(at), err
}

// firstTail finds the first segment on the way of which the archive has pieces; timeline 0 is none.
func (r *receiver) firstTail(ctx context.Context, way []catalog.Branch) (wal.Timeline, wal.LSN, error) {
	names, err := r.archive.Tails(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, leg := range slices.Backward(way) {
		for _, name := range names {
			t, no, err := r.line.size.ParseSegment(name)
			if start := r.line.size.Start(no); err == nil && t == leg.Timeline && (leg.Switch == 0 || start <= leg.Switch) {
				return t, start, nil
			}
		}
	}
	return 0, 0, nil
}

// goTo makes the segment of timeline t that begins at next the one that is received next, and brings back what the archive has of it.
func (r *receiver) goTo(ctx context.Context, t wal.Timeline, next wal.LSN) {
	r.outset = catalog.Branch{}
	r.line.change(func() {
		if r.line.timeline, r.line.next, r.line.begun = t, next, next; len(r.line.segments) == 0 {
			r.line.base, r.line.baseOf = next, t
		}
	})
	if err := r.recall(ctx); err != nil {
		r.opts.Logger.Warn("cannot bring back what the archive has in pieces of the segment that comes next", "error", err)
	}
}

// tellOfMore warns where more was received of a timeline than up to where the server has left it.
func (r *receiver) tellOfMore(t wal.Timeline, at wal.LSN, follows wal.Timeline) {
	written, _, _ := r.line.positions()
	if end := max(written, r.line.next); end > at {
		r.opts.Logger.Warn(fmt.Sprintf("the server has left timeline %d at %s for timeline %d: what was received of it behind that, up to %s, the server does not have; the archive keeps it",
			uint32(t), at, uint32(follows), end))
	}
}

// storeHistory archives the history file of a timeline, or leaves that to who stores segments.
func (r *receiver) storeHistory(ctx context.Context, t wal.Timeline, content []byte) error {
	if r.histories[t] {
		return nil
	}
	path := r.spool.path(wal.HistoryName(t))
	if err := atomicfile.Write(path, 0o600, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	}); err != nil {
		return err
	}
	if r.apart {
		r.line.change(func() { r.owed = append(r.owed, path) })
	} else if err := r.pushHistory(ctx, path); err != nil {
		return err
	}
	r.histories[t] = true
	return nil
}

// pushHistory archives a history file of the spool; one that is not there any more was.
func (r *receiver) pushHistory(ctx context.Context, path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := r.opts.Push(ctx, path); err != nil {
		return err
	}
	return os.Remove(path)
}

// stream receives what the line lacks of its timeline.
func (r *receiver) stream(ctx context.Context, conn *server.Replication) (got bool, err error) {
	r.line.mu.Lock()
	t, from := r.line.timeline, r.line.next
	if s := r.line.last(); s != nil && s.timeline == t {
		from = s.start
	}
	r.line.mu.Unlock()
	s, err := conn.Stream(ctx, r.opts.Slot, t, from)
	if err != nil {
		return false, err
	}
	defer s.Close() // whatever is wrong with the session shows when the next begins
	r.line.change(func() { r.away = false })
	reporting, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { r.reportTo(reporting, s) })
	defer group.Wait()
	defer stop()
	r.opts.Logger.Info(fmt.Sprintf("receiving WAL from %s of timeline %d on", from, uint32(t)))
	for {
		if err := r.room(ctx); err != nil {
			return got, err
		}
		at, data, err := s.Next()
		if err == io.EOF {
			follows, end := s.Following()
			r.opts.Logger.Info(fmt.Sprintf("timeline %d ends at %s, and timeline %d follows", uint32(t), end, uint32(follows)))
			r.tellOfMore(t, end, follows)
			r.line.change(func() { r.line.switches[t] = end })
			r.line.leave(follows, r.begin(end))
			return true, nil
		}
		if err != nil {
			return got, err
		}
		if len(data) == 0 {
			continue
		}
		got = true
		if err := r.line.take(t, at, data); err != nil {
			return got, err
		}
	}
}

// room waits while too much waits for the archive, unless the archive is none of a commit's business.
func (r *receiver) room(ctx context.Context) error {
	if r.opts.Synchronous && !r.opts.Store {
		return nil
	}
	for {
		changed := r.line.wait()
		if r.line.waiting() <= maxWaiting {
			return nil
		}
		if err := until(ctx, changed); err != nil {
			return err
		}
	}
}

// reportTo tells the server how far its log has come, when that changes and every ten seconds, until ctx ends.
func (r *receiver) reportTo(ctx context.Context, s *server.Stream) {
	const beat = 10 * time.Second
	var told wal.LSN
	last := time.Time{}
	for ctx.Err() == nil {
		changed := r.line.wait()
		written, synced, stored := r.line.reported()
		flushed := stored
		switch {
		case r.opts.Synchronous && r.opts.Local && r.opts.Store:
			flushed = min(synced, stored)
		case r.opts.Synchronous && r.opts.Local:
			flushed = synced
		}
		if flushed != told || time.Since(last) >= beat {
			if s.Report(written, flushed, false) != nil {
				return // the session is over, which its reader sees
			}
			told, last = flushed, time.Now()
		}
		pause, cancel := context.WithTimeout(ctx, beat)
		_ = until(pause, changed) // whatever it was, look again
		cancel()
	}
}

// mind sees what can be done about WAL that is wanted and that the server does not have any more. It returns an error in any case but where to go on.
func (r *receiver) mind(ctx context.Context, facts server.Facts) error {
	size := r.line.size
	r.line.mu.Lock()
	t, next := r.line.timeline, r.line.next
	r.line.mu.Unlock()
	first := size.Segment(next)
	no := first
	for ; ; no++ { // somebody else may have archived it
		there, err := r.archive.HasWAL(ctx, size.Name(t, no))
		if err != nil {
			return err
		}
		if !there {
			break
		}
	}
	if no > first {
		r.opts.Logger.Info(fmt.Sprintf("the archive has got %s to %s meanwhile: going on behind them", size.Name(t, first), size.Name(t, no-1)))
		return r.goOn(size.Start(no))
	}
	if i := slices.IndexFunc(r.way, func(b catalog.Branch) bool { return b.Timeline == t }); i >= 0 && i < len(r.way)-1 && r.way[i].Switch < size.Start(no+1) {
		at, follows := r.way[i].Switch, r.way[i+1].Timeline // that segment was never whole: the next timeline has it
		there, err := r.archive.HasWAL(ctx, size.Name(follows, size.Segment(at)))
		if err != nil {
			return err
		}
		if there {
			r.tellOfMore(t, at, follows)
			r.line.leave(follows, r.begin(at))
			return nil
		}
	}
	oldest, err := r.oldest(ctx, no, facts)
	if err != nil {
		return err
	}
	written, _, _ := r.line.positions()
	gap := &GapError{Timeline: t, From: max(next, written), To: oldest, Of: facts.Timeline, Segment: size.Name(t, no), Slot: r.opts.Slot}
	if !r.opts.AcceptGap || r.accepted || oldest == 0 {
		return gap
	}
	r.accepted = true
	r.opts.Logger.Warn("going on behind a gap, as was asked for: " + gap.Error())
	r.line.leave(facts.Timeline, oldest)
	return nil
}

// goOn leaves out what was begun, which is archived whole, and goes on at next, where a segment begins.
func (r *receiver) goOn(next wal.LSN) error {
	r.line.mu.Lock()
	seg := r.line.last()
	r.line.mu.Unlock()
	r.line.drop(next)
	if seg != nil {
		return r.spool.forget(seg.name)
	}
	return nil
}

// oldest returns where the oldest segment begins behind no that the server can send of its timeline; 0 where there is none.
func (r *receiver) oldest(ctx context.Context, no wal.SegmentNo, facts server.Facts) (wal.LSN, error) {
	conn, err := r.connect(ctx)
	if err != nil {
		return 0, err
	}
	at, _, err := conn.Position(ctx)
	if err = errors.Join(err, conn.Close()); err != nil {
		return 0, err
	}
	lacks, has := no, r.line.size.Segment(at) // what is sought is behind the one and not behind the other
	if has <= lacks {
		return 0, nil
	}
	for has-lacks > 1 {
		mid := lacks + (has-lacks)/2
		there, err := r.sends(ctx, facts.Timeline, r.line.size.Start(mid))
		if err != nil {
			return 0, err
		}
		if there {
			has = mid
		} else {
			lacks = mid
		}
	}
	return r.line.size.Start(has), nil
}

// sends reports whether the server can send WAL from at on.
func (r *receiver) sends(ctx context.Context, t wal.Timeline, at wal.LSN) (bool, error) {
	conn, err := r.connect(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close() // nothing was changed
	s, err := conn.Stream(ctx, "", t, at)
	for err == nil {
		var data []byte
		if _, data, err = s.Next(); len(data) > 0 {
			return true, nil
		}
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "58P01" {
		return false, nil
	}
	return false, cmp.Or(err, io.ErrUnexpectedEOF)
}
