package restore

import (
	"cmp"
	"context"
	"errors"
	"os"
	"time"

	"holdfast/internal/archive"
)

// Bounds of what a sign of life may take, and how often there is one.
const (
	signEvery = time.Minute
	signTime  = 30 * time.Second
)

// announce says in the archive what the restore uses, so that retention leaves it alone, and says it again every minute until end is called with what became of the
// restore. Where WAL is to be replayed the mark stays behind for as long as that may take, and end returns its id. It is a courtesy: with credentials that may only read the restore goes on
// without, and says so.
func (r *run) announce(ctx context.Context) (end func(error) string) {
	if r.Announce == "" || r.plan.newest == nil || r.plan.source != nil { // the latter is in another tool's repository
		return func(error) string { return "" }
	}
	m := &archive.RestoreMark{RecordHead: archive.NewRecordHead("", r.Announce), PID: os.Getpid(), Backups: []string{r.plan.Backup},
		Timeline: r.plan.newest.Timeline(), FirstWAL: r.plan.newest.Segment()}
	m.Host, _ = os.Hostname() // "" is no harm: it is for people
	for _, l := range r.plan.Chain {
		if l.Backup != r.plan.Backup {
			m.Backups = append(m.Backups, l.Backup)
		}
	}
	id := cmp.Or(r.Mark, archive.NewRestoreID())
	sign := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, signTime, errors.New("not done within half a minute"))
		defer cancel()
		return r.archive.MarkRestore(ctx, id, m)
	}
	if err := sign(ctx); err != nil {
		if ctx.Err() == nil {
			r.notes.add("retention on other hosts does not know that this backup is being restored: %v", err)
		}
		return func(error) string { return "" }
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(signEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_ = sign(ctx) // the next one may succeed, and many may fail before anybody takes it for dead
			}
		}
	}()
	return func(err error) (stays string) {
		close(stop)
		<-stopped
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signTime)
		defer cancel()
		if m.Replaying = err == nil && r.plan.Target != ""; m.Replaying {
			err, stays = sign(ctx), id
		} else {
			err = r.archive.UnmarkRestore(ctx, id)
		}
		if err != nil {
			r.notes.add("what this restore left in the archive for retention to see stays: %v", err)
		}
		return stays
	}
}
