package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Agent runs the jobs and services of its Options. Its methods may be called from several goroutines.
type Agent struct {
	clock Clock
	wake  chan struct{} // something has changed that the loop is to look at

	mu       sync.Mutex // of what follows
	opts     Options
	log      *slog.Logger
	since    time.Time
	reloaded time.Time
	jobs     []*job // in the order of opts, and behind them those that were taken away while they ran
	services []*service
	notices  []Notice // that wait to be told
	telling  bool

	tries  sync.WaitGroup // of jobs, and questions
	tells  sync.WaitGroup
	served sync.WaitGroup // services
}

// New returns an agent that is at rest.
func New(opts Options) *Agent {
	a := &Agent{clock: opts.Clock, wake: make(chan struct{}, 1)}
	if a.clock == nil {
		a.clock = realClock{}
	}
	a.take(opts)
	for _, j := range opts.Jobs {
		a.jobs = append(a.jobs, &job{Job: j})
	}
	for _, s := range opts.Services {
		a.services = append(a.services, &service{Service: s})
	}
	return a
}

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// take keeps what does not belong to one job or service.
func (a *Agent) take(opts Options) {
	a.opts = opts
	a.log = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
}

// now is the time by the wall clock: what is compared is what hosts agree on, and not how long a process has lived.
func (a *Agent) now() time.Time { return a.clock.Now().Round(0).UTC() }

// poke has the loop look at what has changed.
func (a *Agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default: // it is going to
	}
}

// nap is how long the loop sleeps at most: the wall clock may be set, and a host be suspended.
const nap = time.Minute

// Run runs jobs and services until ctx is over. Then it ends the jobs, after them the services, as a backup needs what archives WAL until its end, and waits for all of them. It may be called once.
func (a *Agent) Run(ctx context.Context) {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	a.mu.Lock()
	a.since = a.now()
	a.mu.Unlock()
	for ctx.Err() == nil {
		wait := a.step(ctx, serving)
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-a.clock.After(wait):
		}
	}
	a.tries.Wait()
	stop()
	a.served.Wait()
	a.tells.Wait()
}

// step starts what is due, and returns how long there is nothing more to do.
func (a *Agent) step(ctx, serving context.Context) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.services {
		if s.cancel == nil {
			a.serve(serving, s)
		}
	}
	now := a.now()
	next := now.Add(nap)
	soon := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	var pending []turn
	for _, j := range a.jobs {
		a.open(j, now)
		soon(j.next)
		for _, s := range slices.Clone(j.slots) {
			a.watch(ctx, j, s, now, soon)
		}
		for _, s := range j.slots {
			if now.Before(s.close) && !j.runs(s) {
				soon(s.begins())
				pending = append(pending, turn{j, s})
			}
		}
	}
	slices.SortStableFunc(pending, func(x, y turn) int { return x.s.at.Compare(y.s.at) })
	for _, t := range pending {
		if !now.Before(t.s.begins()) && a.busy(t.j) == nil {
			a.try(ctx, t.j, t.s, now)
		}
	}
	return next.Sub(now)
}

// turn is a slot of a job.
type turn struct {
	j *job
	s *slot
}

// busy returns the job that runs and at the same time as which j must not, nil where there is none.
func (a *Agent) busy(j *job) *job {
	i := slices.IndexFunc(a.jobs, func(o *job) bool { return o.run != nil && (o == j || o.Kind == j.Kind) })
	if i < 0 {
		return nil
	}
	return a.jobs[i]
}

// named returns the job of that name, nil where there is none.
func (a *Agent) named(name string) *job {
	i := slices.IndexFunc(a.jobs, func(j *job) bool { return j.Name == name && !j.gone })
	if name == "" || i < 0 {
		return nil
	}
	return a.jobs[i]
}

// swallowed reports whether j has no slot at that instant of its schedule.
func (a *Agent) swallowed(j *job, at time.Time) bool {
	by := a.named(j.SwallowedBy)
	return by != nil && by.Schedule.At(at)
}

// Reload gives the agent other options, but for Clock. Runs go on, and so do services whose Key is as before. Slots that are pending are tried again at once. A schedule that is new or has
// other slots counts from now on: what was due before it was set is not made up for, and what the one before it still owed is let go. Where only deadline or jitter have changed slots that are
// pending have the new ones.
func (a *Agent) Reload(opts Options) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.poke()
	now := a.now()
	a.reloaded = now
	a.take(opts)

	before := a.jobs
	a.jobs = nil
	for _, next := range opts.Jobs {
		i := slices.IndexFunc(before, func(j *job) bool { return j.Name == next.Name })
		if i < 0 {
			a.jobs = append(a.jobs, &job{Job: next, seen: now, next: next.Schedule.Next(now)})
			continue
		}
		j := before[i]
		before = slices.Delete(slices.Clone(before), i, i+1)
		kept := j.Schedule.sameSlots(next.Schedule)
		changed := kept && j.Schedule.String() != next.Schedule.String()
		if !kept {
			j.letGo()
			j.seen, j.next = now, next.Schedule.Next(now)
		}
		j.Job, j.gone = next, false
		for _, s := range j.slots {
			s.again, s.fails, s.waits = time.Time{}, 0, 0
			if changed && !s.let { // those who were told that it is absent know
				s.deadline, s.late = next.Schedule.Deadline(s.at), false
				s.overdue = !s.deadline.IsZero() && !s.deadline.After(now)
				s.due = s.at.Add(min(delay(a.opts.Place, next), s.close.Sub(s.at)/2))
			}
		}
		a.jobs = append(a.jobs, j)
	}
	for _, j := range before {
		if j.letGo(); j.run != nil {
			j.gone, j.next = true, time.Time{}
			a.jobs = append(a.jobs, j)
		}
	}
	a.reloadServices(opts.Services)
}

// tell has people told.
func (a *Agent) tell(n Notice) {
	level := slog.LevelWarn
	if n.Kind == Recovered {
		level = slog.LevelInfo
	}
	a.log.Log(context.Background(), level, fmt.Sprintf("%s: %s", n.Job.Name, n.Text))
	if a.opts.Tell == nil {
		return
	}
	a.notices = append(a.notices, n)
	if a.telling {
		return
	}
	a.telling = true
	a.tells.Go(func() {
		for {
			a.mu.Lock()
			if len(a.notices) == 0 {
				a.telling = false
				a.mu.Unlock()
				return
			}
			first, tell := a.notices[0], a.opts.Tell
			a.notices = slices.Delete(a.notices, 0, 1)
			a.mu.Unlock()
			tell(context.Background(), first)
		}
	})
}

// Status returns what the agent does.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	st := Status{At: now, Since: a.since, Reloaded: a.reloaded, Jobs: []JobStatus{}, Services: []ServiceStatus{}}
	for _, j := range a.jobs {
		one := j.status(now)
		for n := 0; !one.Next.IsZero() && a.swallowed(j, one.Next); n++ {
			if one.Next = j.Schedule.Next(one.Next); n == mostSwallowed {
				one.Next = time.Time{}
			}
		}
		st.Jobs = append(st.Jobs, one)
	}
	for _, s := range a.services {
		st.Services = append(st.Services, s.status())
	}
	return st
}

// mostSwallowed bounds how many slots in a row are looked at for one that is not swallowed.
const mostSwallowed = 1000
