package agent

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// service is a Service with what has become of it.
type service struct {
	Service
	after  *service           // that must have ended before: the same under another Key; nil for none
	cancel context.CancelFunc // nil before it was started
	ended  chan struct{}      // closed once it has

	pid      int
	since    time.Time // zero while it does not run
	restarts int
	failure  string
	again    time.Time // while it does not run
}

const (
	firstRest = time.Second // before a service is started again; twice as long each time
	mostRest  = time.Minute
	settled   = time.Minute // a service that has lived so long begins with firstRest again
)

// serve starts s, and again whenever it ends, until ctx is over or s.cancel is called.
func (a *Agent) serve(ctx context.Context, s *service) {
	ctx, s.cancel = context.WithCancel(ctx)
	s.ended = make(chan struct{})
	after := s.after
	s.after = nil
	a.served.Go(func() {
		defer close(s.ended)
		if after != nil {
			<-after.ended
		}
		for rest := firstRest; ctx.Err() == nil; {
			a.mu.Lock()
			began := a.now()
			s.since, s.again = began, time.Time{}
			a.mu.Unlock()
			err := s.Run(ctx, func(pid int) {
				a.mu.Lock()
				defer a.mu.Unlock()
				s.pid = pid
			})
			a.mu.Lock()
			now := a.now()
			if now.Sub(began) >= settled {
				rest = firstRest
			}
			s.pid, s.since = 0, time.Time{}
			if ctx.Err() == nil {
				s.failure = "it ended"
				if err != nil {
					s.failure = err.Error()
				}
				s.restarts++
				s.again = now.Add(rest)
				a.log.Warn(fmt.Sprintf("%s: %s; it is started again in %s", s.Name, s.failure, rest))
			}
			a.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-a.clock.After(rest):
			}
			rest = min(2*rest, mostRest)
		}
	})
}

// reloadServices ends those that are not among next any more, and has those that are new started.
func (a *Agent) reloadServices(next []Service) {
	before := a.services
	a.services = nil
	for _, n := range next {
		s := &service{Service: n}
		if i := slices.IndexFunc(before, func(s *service) bool { return s.Name == n.Name }); i >= 0 {
			old := before[i]
			switch {
			case old.Key == n.Key:
				s = old
			case old.cancel != nil:
				s.after = old
			default: // it waits itself
				s.after = old.after
			}
		}
		a.services = append(a.services, s)
	}
	for _, s := range before {
		if s.cancel != nil && !slices.Contains(a.services, s) {
			s.cancel()
		}
	}
}

func (s *service) status() ServiceStatus {
	return ServiceStatus{Name: s.Name, PID: s.pid, Since: s.since, Restarts: s.restarts, Error: s.failure, Again: s.again}
}
