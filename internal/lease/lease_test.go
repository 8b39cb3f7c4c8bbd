package lease_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/lease"
)

// grant is a lease of which a test decides what becomes.
type grant struct {
	renew    func() error
	renewed  int
	released []bool
}

func (g *grant) Token() uint64                   { return 1 }
func (g *grant) Check(ctx context.Context) error { return nil }
func (g *grant) Renew(context.Context) error     { g.renewed++; return g.renew() }
func (g *grant) Release(ctx context.Context, done bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.released = append(g.released, done)
	return nil
}

func (g *grant) Acquire(context.Context, string, lease.Holder, time.Duration) (lease.Grant, error) {
	return g, nil
}
func (g *grant) Holder(context.Context, string) (*lease.Holder, error) { return nil, nil }

const ttl = time.Minute

func hold(ctx context.Context, g *grant, run func(ctx context.Context) error) error {
	return lease.Hold(ctx, g, "verify", lease.Holder{Host: "db1"}, ttl, func(ctx context.Context, _ lease.Grant) error { return run(ctx) })
}

func TestHoldRenewsUntilTheJobIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &grant{renew: func() error { return nil }}
		err := hold(t.Context(), g, func(ctx context.Context) error {
			time.Sleep(10*ttl + time.Second)
			return ctx.Err()
		})
		if err != nil || g.renewed != 30 || len(g.released) != 1 || !g.released[0] {
			t.Errorf("%v; renewed %d times, released %v", err, g.renewed, g.released)
		}
	})
}

func TestAJobThatFailedIsReleasedAsNotDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &grant{renew: func() error { return nil }}
		failed := errors.New("failed")
		ctx, cancel := context.WithCancel(t.Context())
		err := hold(ctx, g, func(ctx context.Context) error {
			cancel()
			<-ctx.Done()
			return failed
		})
		if err != failed || len(g.released) != 1 || g.released[0] {
			t.Errorf("%v; released %v", err, g.released)
		}
	})
}

func TestALostLeaseEndsTheJobAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &grant{renew: func() error { return &lease.LostError{Job: "verify", Why: "db2 has it"} }}
		begun := time.Now()
		err := hold(t.Context(), g, func(ctx context.Context) error {
			<-ctx.Done()
			return errors.New("broken off")
		})
		var lost *lease.LostError
		if !errors.As(err, &lost) || time.Since(begun) != ttl/3 || !strings.Contains(err.Error(), "db2 has it") {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}

// Before anybody else may have it the job is told, whether renewing fails or does not come back.
func TestALeaseThatCannotBeRenewedEndsTheJobInTime(t *testing.T) {
	for name, renew := range map[string]func(ctx context.Context) error{
		"refused": func(context.Context) error { return errors.New("connection refused") },
		"silence": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &silent{renew: renew}
				begun := time.Now()
				err := lease.Hold(t.Context(), g, "verify", lease.Holder{}, ttl, func(ctx context.Context, _ lease.Grant) error {
					<-ctx.Done()
					return context.Cause(ctx)
				})
				if took := time.Since(begun); !errors.As(err, new(*lease.LostError)) || took > ttl || took < ttl/2 {
					t.Errorf("%v after %s", err, took)
				}
			})
		})
	}
}

type silent struct {
	grant
	renew func(context.Context) error
}

func (s *silent) Renew(ctx context.Context) error { return s.renew(ctx) }
func (s *silent) Acquire(context.Context, string, lease.Holder, time.Duration) (lease.Grant, error) {
	return s, nil
}

// What took its keeper long is renewed before the job begins, not given up.
func TestALeaseThatTookLongIsRenewedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &slow{grant{renew: func() error { return nil }}}
		err := lease.Hold(t.Context(), g, "verify", lease.Holder{}, ttl, func(ctx context.Context, _ lease.Grant) error {
			time.Sleep(time.Second)
			return context.Cause(ctx)
		})
		if err != nil || g.renewed != 1 {
			t.Errorf("%v, renewed %d times", err, g.renewed)
		}
	})
}

func TestALeaseThatIsLostBeforeTheJobBeginsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := errors.New("connection refused")
		g := &slow{grant{renew: func() error { return failed }}}
		err := lease.Hold(t.Context(), g, "verify", lease.Holder{}, ttl, func(context.Context, lease.Grant) error {
			t.Error("the job begins")
			return nil
		})
		if !errors.Is(err, failed) || len(g.released) != 1 || g.released[0] {
			t.Errorf("%v, released %v", err, g.released)
		}
	})
}

type slow struct{ grant }

func (s *slow) Acquire(context.Context, string, lease.Holder, time.Duration) (lease.Grant, error) {
	time.Sleep(3 * ttl)
	return s, nil
}
