package agent_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/agent"
)

// A place is an archive that three hosts share, with its leases. Who has lost his lease commits nothing, as a fence sees to in the real one.
type place struct {
	mu      sync.Mutex
	done    map[string]int      // slots, as job@time: how often they were done
	leases  map[string]*grant   // by job
	absent  map[string]string   // slots that a host has claimed to tell of
	fails   map[string]int      // how many more tries of a slot are to fail
	wrong   []string            // what must not happen
	notices map[string][]string // what each host told people
	tries   int

	children sync.WaitGroup
}

type grant struct {
	host    string
	expires time.Time
}

const ttl = time.Minute

// A host runs an agent against a place.
type host struct {
	name  string
	place *place
	ahead time.Duration // its clock
	takes time.Duration // a job

	mu      sync.Mutex
	stalled time.Time       // it stands still until then
	away    time.Time       // it does not reach the archive until then
	standby time.Time       // it has the wrong role until then
	killed  chan struct{}   // closed when the process of the agent is killed
	dead    chan struct{}   // closed when all processes are
	term    context.Context // over when the agent is to end in order
	stop    func()          // has it do so
	busy    map[string]bool
}

func (h *host) Now() time.Time { return time.Now().Add(h.ahead) }

// After is late where the host stands still.
func (h *host) After(d time.Duration) <-chan time.Time {
	c := make(chan time.Time, 1)
	time.AfterFunc(d, func() { h.still(func() { c <- time.Now() }) })
	return c
}

// still calls f once the host does not stand still.
func (h *host) still(f func()) {
	h.mu.Lock()
	left := time.Until(h.stalled)
	h.mu.Unlock()
	if left > 0 {
		time.AfterFunc(left, func() { h.still(f) })
		return
	}
	f()
}

// sleep is the sleep of a process on h. It says false where that is killed meanwhile.
func (h *host) sleep(d time.Duration, dead <-chan struct{}) bool {
	c := make(chan struct{})
	time.AfterFunc(d, func() { h.still(func() { close(c) }) })
	select {
	case <-c:
		return true
	case <-dead:
		return false
	}
}

// is reports whether that is so now.
func (h *host) is(until *time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(*until)
}

// Work starts a child, which goes on where only the agent is killed.
func (h *host) Work(_ context.Context, j agent.Job, slot time.Time, ask agent.Ask, progress func(agent.Progress)) agent.Result {
	h.mu.Lock()
	killed, dead, busy, term := h.killed, h.dead, h.busy, h.term
	if ask == agent.Run {
		if busy[j.Kind] {
			h.place.fault("%s: two of kind %s", h.name, j.Kind)
		}
		busy[j.Kind] = true
	}
	h.mu.Unlock()
	defer func() {
		if ask == agent.Run {
			h.mu.Lock()
			defer h.mu.Unlock()
			delete(busy, j.Kind)
		}
	}()
	answer := make(chan agent.Result, 1)
	h.place.children.Go(func() { answer <- h.child(term, dead, j, slot, ask, progress) })
	select {
	case r := <-answer:
		return r
	case <-killed:
		return agent.Result{Outcome: agent.Failed, Error: "killed"}
	}
}

var killedResult = agent.Result{Outcome: agent.Failed, Error: "killed"}

// child is the process of a job.
func (h *host) child(ctx context.Context, dead <-chan struct{}, j agent.Job, slot time.Time, ask agent.Ask, progress func(agent.Progress)) agent.Result {
	p, key := h.place, j.Name+"@"+slot.Format(time.RFC3339)
	if !h.sleep(50*time.Millisecond, dead) { // to start
		return killedResult
	}
	if h.is(&h.away) {
		if !h.sleep(2*time.Second, dead) {
			return killedResult
		}
		return agent.Result{Outcome: agent.Failed, Error: "no route"}
	}
	p.mu.Lock()
	switch {
	case p.done[key] > 0:
		p.mu.Unlock()
		return agent.Result{Outcome: agent.Elsewhere}
	case ask == agent.Claim:
		_, claimed := p.absent[key]
		if !claimed {
			p.absent[key] = h.name
		}
		p.mu.Unlock()
		return agent.Result{Outcome: agent.Open, Claimed: !claimed}
	case ask == agent.Look:
		p.mu.Unlock()
		return agent.Result{Outcome: agent.Open}
	}
	if h.is(&h.standby) {
		p.mu.Unlock()
		return agent.Result{Outcome: agent.NotHere}
	}
	g := p.leases[j.Kind]
	if g != nil && time.Now().Before(g.expires) {
		p.mu.Unlock()
		return agent.Result{Outcome: agent.Held, Host: g.host}
	}
	g = &grant{h.name, time.Now().Add(ttl)}
	p.leases[j.Kind] = g
	p.tries++
	fail := p.fails[key] > 0
	p.fails[key]--
	p.mu.Unlock()

	for begun := time.Now(); time.Since(begun) < h.takes; {
		if !h.sleep(ttl/3, dead) {
			return killedResult // and nobody gives the lease back
		}
		progress(agent.Progress{Phase: "files", Done: int64(time.Since(begun)), Total: int64(h.takes)})
		if ctx.Err() != nil {
			p.release(j.Kind, g)
			return agent.Result{Outcome: agent.Failed, Error: "stopped"}
		}
		if h.is(&h.away) {
			continue // the lease runs out
		}
		if !p.renew(j.Kind, g) {
			return agent.Result{Outcome: agent.Failed, Error: "the lease is lost"}
		}
	}
	if fail {
		p.release(j.Kind, g)
		return agent.Result{Outcome: agent.Failed, Error: "no space"}
	}
	if h.is(&h.away) || !p.commit(j.Kind, g, key) {
		return agent.Result{Outcome: agent.Failed, Error: "the lease is lost"}
	}
	return agent.Result{Outcome: agent.Done}
}

func (p *place) fault(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wrong = append(p.wrong, fmt.Sprintf(format, args...))
}

func (p *place) renew(kind string, g *grant) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leases[kind] == g {
		g.expires = time.Now().Add(ttl)
	}
	return p.leases[kind] == g
}

func (p *place) release(kind string, g *grant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leases[kind] == g {
		delete(p.leases, kind)
	}
}

func (p *place) commit(kind string, g *grant, key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leases[kind] != g {
		return false
	}
	delete(p.leases, kind)
	if p.done[key]++; p.done[key] > 1 {
		p.wrong = append(p.wrong, key+" is done twice")
	}
	return true
}

// live runs an agent on h until it is killed or ctx is over.
func (h *host) live(ctx context.Context, jobs []agent.Job) {
	h.mu.Lock()
	h.killed = make(chan struct{})
	killed := h.killed
	h.busy = map[string]bool{}
	term, stop := context.WithCancel(ctx)
	defer stop()
	h.term, h.stop = term, stop
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(term)
	defer cancel()
	go func() {
		select {
		case <-killed:
			cancel()
		case <-ctx.Done():
		}
	}()
	a := agent.New(agent.Options{Worker: h, Jobs: jobs, Clock: h, Place: "s3://b", Tell: func(_ context.Context, n agent.Notice) {
		h.place.mu.Lock()
		defer h.place.mu.Unlock()
		h.place.notices[h.name] = append(h.place.notices[h.name], fmt.Sprintf("%s %s %s", n.Kind, n.Job.Name, n.Text))
	}})
	a.Run(ctx)
}

// A trouble is what happens to a host.
type trouble struct {
	at, lasts time.Duration
	host      int
	kind      string
}

var troubles = []string{"host dies", "agent dies", "agent stops", "stands still", "archive away", "wrong role"}

// befall has t happen to h, and returns when it is over.
func (h *host) befall(t trouble, restart func()) {
	until := time.Now().Add(t.lasts)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch t.kind {
	case "stands still":
		h.stalled = until
	case "archive away":
		h.away = until
	case "wrong role":
		h.standby = until
	case "agent stops":
		h.stop()
		restart()
	case "host dies":
		close(h.dead)
		h.dead = make(chan struct{})
		fallthrough
	case "agent dies":
		close(h.killed)
		restart()
	}
}

// Three hosts have the same schedule. Whatever befalls two of them, every slot is done, and none is done twice.
func TestEverySlotIsDoneOnce(t *testing.T) {
	const days, hosts = 1, 3
	rapid.Check(t, func(rt *rapid.T) {
		var ahead, takes [hosts]time.Duration
		for i := range hosts {
			ahead[i] = time.Duration(rapid.IntRange(-120, 120).Draw(rt, "seconds ahead")) * time.Second
			takes[i] = time.Duration(rapid.IntRange(10, 400).Draw(rt, "seconds a job takes")) * time.Second
		}
		survivor := rapid.IntRange(0, hosts-1).Draw(rt, "survivor")
		ahead[survivor] = 0
		// Two troubles an hour at most, most of them when there is work: each can cost the time of a job and the life of a lease, and the window must leave the survivor time.
		var plan []trouble
		for hour := range days * 24 {
			for range rapid.IntRange(0, 2).Draw(rt, "troubles") {
				plan = append(plan, trouble{
					at:    time.Duration(hour)*time.Hour + time.Duration(rapid.IntRange(-120, 900).Draw(rt, "second"))*time.Second,
					lasts: time.Duration(rapid.IntRange(1, 1200).Draw(rt, "lasts seconds")) * time.Second,
					host:  (survivor + rapid.IntRange(1, hosts-1).Draw(rt, "host")) % hosts,
					kind:  rapid.SampledFrom(troubles).Draw(rt, "kind"),
				})
			}
		}
		slices.SortStableFunc(plan, func(a, b trouble) int { return int(a.at - b.at) })
		fails := map[int]int{}
		for range rapid.IntRange(0, 10).Draw(rt, "slots that fail") {
			fails[rapid.IntRange(1, days*24-1).Draw(rt, "hour that fails")] = rapid.IntRange(1, 2).Draw(rt, "times")
		}
		var p *place
		synctest.Test(t, func(t *testing.T) {
			p = live(t, ahead[:], takes[:], plan, fails, days*24*time.Hour)
		})
		slices.Sort(p.wrong)
		for _, what := range p.wrong {
			rt.Errorf("%s", what)
		}
		for i := range hosts {
			for _, n := range p.notices[hostName(i)] {
				if i == survivor {
					rt.Errorf("%s: %s", hostName(i), n)
				}
			}
		}
	})
}

func hostName(i int) string { return fmt.Sprintf("db%d", i+1) }

// live runs hosts for so long, and returns what they have come to.
func live(t *testing.T, ahead, takes []time.Duration, plan []trouble, fails map[int]int, long time.Duration) *place {
	begin := time.Now() // of the bubble: midnight
	p := &place{done: map[string]int{}, leases: map[string]*grant{}, absent: map[string]string{}, fails: map[string]int{}, notices: map[string][]string{}}
	inc, full, verify := job(t, "backup", "0 * * * *"), job(t, "full", "0 4 * * *"), job(t, "verify", "*/30 * * * *")
	inc.SwallowedBy, verify.Kind = "full", "verify"
	inc.Jitter, full.Jitter = time.Minute, time.Minute
	jobs := []agent.Job{inc, full, verify}
	slot := func(j agent.Job, at time.Time) string { return j.Name + "@" + at.UTC().Format(time.RFC3339) }
	for hour, times := range fails {
		p.fails[slot(inc, begin.Add(time.Duration(hour)*time.Hour))] = times
	}

	ctx, stop := context.WithCancel(context.Background())
	var all []*host
	var running sync.WaitGroup
	var ended []chan struct{}   // the last life of each
	time.Sleep(4 * time.Minute) // so that no clock is in the day before
	for i := range ahead {
		h := &host{name: hostName(i), place: p, ahead: ahead[i], takes: takes[i], dead: make(chan struct{}), busy: map[string]bool{}}
		all = append(all, h)
		over := make(chan struct{})
		ended = append(ended, over)
		running.Go(func() { defer close(over); h.live(ctx, jobs) })
	}
	synctest.Wait()
	down := make([]time.Time, len(all)) // until when its agent is not there
	for _, tr := range plan {
		time.Sleep(time.Until(begin.Add(time.Hour + tr.at)))
		synctest.Wait()
		h := all[tr.host]
		if time.Now().Before(down[tr.host]) {
			continue
		}
		h.befall(tr, func() {
			down[tr.host] = time.Now().Add(tr.lasts + time.Second)
			before, over := ended[tr.host], make(chan struct{})
			ended[tr.host] = over
			running.Go(func() {
				defer close(over)
				time.Sleep(tr.lasts)
				<-before
				if ctx.Err() == nil {
					h.live(ctx, jobs)
				}
			})
		})
	}
	time.Sleep(time.Until(begin.Add(long)) - time.Minute)
	stop()
	running.Wait()
	p.children.Wait()

	for _, j := range jobs {
		for at := j.Schedule.Next(begin); at.Before(begin.Add(long - time.Hour)); at = j.Schedule.Next(at) {
			want := 1
			if j.SwallowedBy != "" && full.Schedule.At(at) {
				want = 0
			}
			if got := p.done[slot(j, at)]; got != want {
				p.fault("%s is done %d times, want %d", slot(j, at), got, want)
			}
		}
	}
	return p
}

// After a year nothing is left of its slots: no goroutine, and no memory.
func TestAYearLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		w := nothing(func(j agent.Job, slot time.Time, ask agent.Ask) agent.Result {
			n := int(tries.Add(1))
			switch {
			case ask == agent.Claim:
				return agent.Result{Outcome: agent.Open, Claimed: true}
			case n%7 == 0 || j.Name == "full" && slot.Month() == time.June:
				return agent.Result{Outcome: agent.Failed, Error: strings.Repeat("x", n%100)}
			case n%11 == 0:
				return agent.Result{Outcome: agent.Held, Host: "db3"}
			}
			return agent.Result{Outcome: agent.Done}
		})
		check := job(t, "check", "*/10 * * * *")
		check.Kind, check.Leased = "check", false
		inc := job(t, "backup", "0 * * * * by=30m")
		inc.SwallowedBy = "full"
		told := 0
		a, stop := start(agent.Options{Worker: w, Tell: func(context.Context, agent.Notice) { told++ }, Services: []agent.Service{{Name: "daemon", Run: func(context.Context, func(int)) error {
			time.Sleep(time.Hour)
			return nil
		}}}, Jobs: []agent.Job{check, inc, job(t, "full", "0 3 * * 0"), job(t, "retention", "30 4 * * *")}})
		measure := func() (goroutines int, bytes uint64) {
			synctest.Wait()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return runtime.NumGoroutine(), m.HeapAlloc
		}
		time.Sleep(31*24*time.Hour + 5*time.Minute)
		goroutines, bytes := measure()
		time.Sleep(335 * 24 * time.Hour)
		after, bytesAfter := measure()
		st := a.Status()
		stop()
		if after != goroutines {
			t.Errorf("%d goroutines after a month, %d after a year", goroutines, after)
		}
		if grown := int64(bytesAfter) - int64(bytes); grown > 256<<10 {
			t.Errorf("%d bytes more than after a month", grown)
		}
		if n := tries.Load(); n < 60_000 || told != 5 || st.Jobs[2].Missed != 4 || st.Services[0].Restarts < 8000 {
			t.Errorf("%d tries, people were told %d times, %d full backups missed, %d restarts", n, told, st.Jobs[2].Missed, st.Services[0].Restarts)
		}
	})
}

// nothing is a worker that takes no time.
type nothing func(j agent.Job, slot time.Time, ask agent.Ask) agent.Result

func (f nothing) Work(_ context.Context, j agent.Job, slot time.Time, ask agent.Ask, _ func(agent.Progress)) agent.Result {
	return f(j, slot, ask)
}
