package drill

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/archive"
	"holdfast/internal/pg/instance"
)

// Private is a running copy, made as that of a drill, for other uses than a proof: nothing is checked but that replay came to where it was to, and nothing is
// recorded. Close it.
type Private struct {
	drill   *drill
	scratch *scratch
}

// Open makes the copy of a plan and returns once it takes writes. Of the options it heeds Release, Roles, Databases, Workers, Memory, Nice, Keep, Progress and Logger; with Keep the copy can be
// kept. What this host cannot do is a *HostError. Where the backup or its WAL did not do the error is a *FailedError. With an error nothing is left. What others have left is Clear's to remove.
func Open(ctx context.Context, a *archive.Archive, p *Plan, o Options) (*Private, error) {
	o.Progress = cmp.Or(o.Progress, &Progress{})
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	d := &drill{Options: o, archive: a, facts: &facts{}, begun: time.Now(), record: &Record{Seconds: map[string]float64{}}, fleeting: true}
	d.plan = p
	s, err := d.prepare(ctx, p.request)
	if err != nil {
		return nil, err
	}
	if err = d.bring(ctx); err == nil {
		d.Progress.enter("checks", 0)
		err = d.enter(ctx)
	}
	if err == nil {
		err = d.checkReplay(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, d.cleanUp(ctx, s))
	}
	return &Private{d, s}, nil
}

// Copy says how to reach it.
func (p *Private) Copy() Copy { return *p.drill.kept() }

// Programs are those that it runs on.
func (p *Private) Programs() instance.Programs { return p.drill.plan.programs }

// Credential is that of its account; nil: our own.
func (p *Private) Credential() *syscall.Credential {
	a := p.drill.plan.account
	if a == nil {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid), Groups: slices.Clone(a.groups)}
}

// Connect opens a session of a superuser in a database; "" is one that is there. Names in statements need their schema.
func (p *Private) Connect(ctx context.Context, database string) (*pgx.Conn, error) {
	return p.drill.connect(ctx, p.drill.role, cmp.Or(database, p.drill.home), false)
}

// Log opens what the server has logged.
func (p *Private) Log() (io.ReadCloser, error) { return os.Open(p.drill.log()) }

// Replay says how far it was replayed.
func (p *Private) Replay() Replay { return *p.drill.record.Replay }

// Seconds says how long phases took: fetch, replay.
func (p *Private) Seconds() map[string]float64 { return p.drill.record.Seconds }

// Fetched is what was restored.
func (p *Private) Fetched() Fetched { return p.drill.record.Fetched }

// Notes say what an operator may want to know of it.
func (p *Private) Notes() []string {
	p.drill.mu.Lock()
	defer p.drill.mu.Unlock()
	return slices.Clone(p.drill.record.Notes)
}

// Keep leaves it running, if Options.Keep was set. It is not to be closed then.
func (p *Private) Keep() error { return p.scratch.keep() }

// Close ends the copy and removes all that was made for it.
func (p *Private) Close(ctx context.Context) error { return p.drill.cleanUp(ctx, p.scratch) }
