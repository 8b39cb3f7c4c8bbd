// Package patience decides when to try again what failed, and tells of it.
//
// An operator must not wonder what is being waited for: every failure that is followed by another try is one line of the log.
package patience

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Policy says what is tried again, and for how long. All fields are required but Asked.
type Policy struct {
	Service    string             // begins the lines of the log, such as "GCS"
	MaxRetries int                // without progress; 0 for none
	MaxBackoff time.Duration      // between two tries
	Patience   time.Duration      // from the first failure without progress, after which nothing is tried again
	MayPass    func(error) bool   // whether doing it again may help against an error
	Reason     func(error) string // an error in a few words
	Logger     *slog.Logger

	Retried *atomic.Int64 // counts the tries behind the first; nil is not counted

	Asked func(error) time.Duration // how long the service asks us to wait; nil where it does not
}

// Tries counts the failures of something since it last made progress. The zero value is ready to use.
type Tries struct {
	failed int
	since  time.Time // of the first failure
}

// Progress forgets the failures.
func (t *Tries) Progress() { *t = Tries{} }

// More counts the failure err of what and reports whether somebody else may try it again, who waits before.
func (p *Policy) More(ctx context.Context, t *Tries, what string, err error) bool {
	if !p.more(ctx, t, err) {
		return false
	}
	p.tell(t, what, "", err)
	return true
}

// Again counts the failure err of what and waits until it may be tried again, or returns the error with which to give up.
func (p *Policy) Again(ctx context.Context, t *Tries, what string, err error) error {
	if !p.more(ctx, t, err) {
		return err
	}
	wait := min(100*time.Millisecond<<min(t.failed, 20), p.MaxBackoff)
	wait = wait/2 + rand.N(wait/2+1) // so that those which failed together do not come again together
	if p.Asked != nil {
		wait = min(max(wait, p.Asked(err)), p.MaxBackoff)
	}
	p.tell(t, what, " in "+wait.Round(time.Millisecond).String(), err)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", err, ctx.Err())
	}
}

func (p *Policy) more(ctx context.Context, t *Tries, err error) bool {
	if t.failed++; t.failed == 1 {
		t.since = time.Now()
	}
	return p.MayPass(err) && t.failed <= p.MaxRetries && time.Since(t.since) < p.Patience && ctx.Err() == nil
}

func (p *Policy) tell(t *Tries, what, when string, err error) {
	if p.Retried != nil {
		p.Retried.Add(1)
	}
	p.Logger.Warn(fmt.Sprintf("%s: %s failed, attempt %d of %d follows%s", p.Service, what, t.failed+1, p.MaxRetries+1, when), "err", p.Reason(err))
}
