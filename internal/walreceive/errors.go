package walreceive

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
)

// A GapError says that WAL is missing between what has been received or archived and what the server still has.
type GapError struct {
	Timeline wal.Timeline
	From     wal.LSN      // where archive and spool end
	To       wal.LSN      // where the oldest begins that the server has; 0 where nothing is known of that
	Of       wal.Timeline // of To
	Segment  string       // the first that is missing
	Slot     string
}

func (e *GapError) Error() string {
	oldest := "has no such WAL"
	if e.To != 0 {
		oldest = fmt.Sprintf("has it from %s of timeline %d on", e.To, uint32(e.Of))
	}
	return fmt.Sprintf("WAL is missing: archive and spool end at %s of timeline %d, before segment %s, and the server %s", e.From, uint32(e.Timeline), e.Segment, oldest)
}

// Hint says how to go on.
func (e *GapError) Hint() string {
	return "the slot " + e.Slot + " did not keep it: it was dropped, is new, or was invalidated by max_slot_wal_keep_size, and then is to be dropped: SELECT pg_drop_replication_slot('" + e.Slot + "'). Where the primary's or a standby's pg_wal still has the " +
		"segments, `holdfast wal-push --repair PGDATA` there stores them, and wal-receive goes on by itself. Where nobody has them, run `holdfast wal-receive --accept-gap`, and " +
		"then `holdfast backup-push`: what was taken before can be restored up to the gap, and not beyond it"
}

// A SlotError says that the server does not let the slot be used, and why.
type SlotError struct {
	Slot string
	Err  error
}

func (e *SlotError) Error() string { return e.Err.Error() }

// Unwrap returns the server's error.
func (e *SlotError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *SlotError) Hint() string {
	return "WALG_SLOTNAME names a physical slot that is wal-receive's alone. One that was invalidated by max_slot_wal_keep_size is of no use any more: SELECT pg_drop_replication_slot('" + e.Slot +
		"'), and start wal-receive again, which makes another and says whether WAL is missing"
}

// A DivergedError says that the server's WAL differs from what was received before.
type DivergedError struct{ Segment, Dir string }

func (e *DivergedError) Error() string {
	return fmt.Sprintf("the server's %s differs from what was received of it before", e.Segment)
}

// Hint says how to go on.
func (e *DivergedError) Hint() string {
	return "two servers write the same timeline: a clone, a restored copy that was not promoted, or a server that lost WAL it had flushed. Find out which is right. Where it is " +
		"the server, move " + e.Dir + " and the archive's " + archive.TailDir + e.Segment + "/ aside"
}

// A RivalError says that the archive has pieces of a segment that hold something else than what this server has sent, and that somebody else has stored.
type RivalError struct {
	Segment, Object, Dir string
	At                   wal.LSN // from where on they differ
}

func (e *RivalError) Error() string {
	return fmt.Sprintf("what the archive has of %s in %s is not what this server writes from %s on: another wal-receive stores the WAL of another server on the same timeline", e.Segment, e.Object, e.At)
}

// Hint says how to go on.
func (e *RivalError) Hint() string {
	return "two servers write the same timeline: a clone, a restored copy that was not promoted, or a former primary that came back. Find out which is right, and stop the other " +
		"with its wal-receive. Then move the archive's " + archive.TailDir + e.Segment + "/ aside, and start the right one's wal-receive, which has all it received in " + e.Dir +
		" and stores it again. What the wrong one has received lies in its own spool"
}

// A MovedError says that a directory of the archive is another one than when receiving began. What is stored in the one that was opened nobody would find.
type MovedError struct{ Dir string }

func (e *MovedError) Error() string {
	return e.Dir + " is another directory than when wal-receive began: a file system was mounted there, or is no more"
}

// Hint says how to go on.
func (e *MovedError) Hint() string {
	return "start it again once the right one is there: it goes on where that archive ends. What it stored before lies in the other one, below the mount: `holdfast wal-verify` tells whether " +
		"that is missed now; see that the mount comes first (RequiresMountsFor= in a unit)"
}

// A fatalError will not pass by itself.
type fatalError struct{ error }

func (e *fatalError) Unwrap() error { return e.error }

// permanent reports whether it is of no use to try again.
func permanent(err error) bool {
	return errors.As(err, new(*GapError)) || errors.As(err, new(*SlotError)) || errors.As(err, new(*DivergedError)) || errors.As(err, new(*RivalError)) || errors.As(err, new(*archive.OwnerError)) ||
		errors.As(err, new(*archive.ConflictError)) || errors.As(err, new(*MovedError)) || errors.As(err, new(*fatalError))
}

// backoff is how long to wait before something is tried again.
type backoff struct {
	next time.Duration
	said string // what was told last
}

const (
	firstPause = 100 * time.Millisecond
	maxPause   = 15 * time.Second
)

func (b *backoff) reset() { *b = backoff{} }

// pause waits, longer each time, or until ctx ends.
func (b *backoff) pause(ctx context.Context) {
	b.next = min(max(firstPause, 2*b.next), maxPause)
	t := time.NewTimer(b.next/2 + rand.N(b.next))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// warn tells what went wrong, once as long as it is the same.
func (r *receiver) warn(b *backoff, what string, err error) {
	if text := err.Error(); text != b.said {
		r.opts.Logger.Warn(what+", trying again", "error", err)
		b.said = text
	}
}
