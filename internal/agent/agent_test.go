package agent_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/agent"
	"holdfast/internal/metrics"
)

// A worker does what a test says, and notes what it was asked.
type worker struct {
	do func(ctx context.Context, j agent.Job, slot time.Time, ask agent.Ask, progress func(agent.Progress)) agent.Result

	mu    sync.Mutex
	asked []string
}

func (w *worker) Work(ctx context.Context, j agent.Job, slot time.Time, ask agent.Ask, progress func(agent.Progress)) agent.Result {
	w.mu.Lock()
	w.asked = append(w.asked, fmt.Sprintf("%s %s %s of %s", time.Now().UTC().Format("02 15:04:05"), ask, j.Name, slot.Format("02 15:04")))
	w.mu.Unlock()
	return w.do(ctx, j, slot, ask, progress)
}

func (w *worker) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.asked)
}

// takes returns work that takes so long and then comes to that.
func takes(d time.Duration, outcome agent.Outcome) func(context.Context, agent.Job, time.Time, agent.Ask, func(agent.Progress)) agent.Result {
	return func(ctx context.Context, _ agent.Job, _ time.Time, ask agent.Ask, _ func(agent.Progress)) agent.Result {
		if ask != agent.Run {
			return agent.Result{Outcome: agent.Open, Claimed: ask == agent.Claim}
		}
		select {
		case <-time.After(d):
			return agent.Result{Outcome: outcome, Error: map[bool]string{true: "no space"}[outcome == agent.Failed]}
		case <-ctx.Done():
			return agent.Result{Outcome: agent.Failed, Error: "stopped"}
		}
	}
}

// people note what they are told.
type people struct {
	mu   sync.Mutex
	told []string
}

func (p *people) tell(_ context.Context, n agent.Notice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, fmt.Sprintf("%s %s: %s", time.Now().UTC().Format("02 15:04:05"), n.Kind, n.Text))
}

func (p *people) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.told)
}

// job is a leased job of the kind backup.
func job(t testing.TB, name, expression string) agent.Job {
	return agent.Job{Name: name, Kind: "backup", Schedule: schedule(t, expression, time.UTC), Leased: true}
}

// start runs an agent. Time begins at 2000-01-01 00:00:00, a Saturday, in the bubble of a test.
func start(opts agent.Options) (a *agent.Agent, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	a = agent.New(opts)
	ended := make(chan struct{})
	go func() { defer close(ended); a.Run(ctx) }()
	return a, func() { cancel(); <-ended }
}

// until sleeps until that time of the bubble.
func until(day, hour, minute int) {
	time.Sleep(time.Until(time.Date(2000, 1, day, hour, minute, 0, 0, time.UTC)))
	synctest.Wait()
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n\t%s\nwant:\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestEachSlotIsRunAtItsInstant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &worker{do: takes(time.Minute, agent.Done)}
		j := job(t, "backup", "30 1,13 * * *")
		j.CatchUp = time.Hour
		until(1, 1, 0)
		_, stop := start(agent.Options{Worker: w, Jobs: []agent.Job{j}})
		until(3, 0, 0)
		stop()
		same(t, "asked", w.all(), []string{"01 01:30:00 run backup of 01 01:30", "01 13:30:00 run backup of 01 13:30", "02 01:30:00 run backup of 02 01:30", "02 13:30:00 run backup of 02 13:30"})
	})
}

// What the agent did not live to see is made up for while the window is open.
func TestTheLastSlotIsCaughtUpWith(t *testing.T) {
	for _, c := range []struct {
		started int // o'clock
		catchUp time.Duration
		want    []string
	}{
		{14, 0, []string{"02 14:00:00 run backup of 02 03:00"}},
		{15, 0, nil},
		{14, 10 * time.Hour, nil},
		{20, 20 * time.Hour, []string{"02 20:00:00 run backup of 02 03:00"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &worker{do: takes(time.Minute, agent.Done)}
			until(2, c.started, 0)
			j := job(t, "backup", "0 3 * * *")
			j.CatchUp = c.catchUp
			_, stop := start(agent.Options{Worker: w, Jobs: []agent.Job{j}})
			until(2, 23, 0)
			stop()
			same(t, fmt.Sprintf("started at %d o'clock, %s to catch up", c.started, c.catchUp), w.all(), c.want)
		})
	}
}

func TestWaitsBetweenTries(t *testing.T) {
	for outcome, want := range map[agent.Outcome][]time.Duration{
		agent.Held:              {5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, time.Minute, time.Minute},
		agent.NotHere:           {5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, time.Minute, time.Minute},
		agent.Failed:            {time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 30 * time.Minute, 30 * time.Minute},
		agent.Outcome("unread"): {time.Minute, 2 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			var at []time.Time
			w := &worker{do: func(context.Context, agent.Job, time.Time, agent.Ask, func(agent.Progress)) agent.Result {
				at = append(at, time.Now())
				return agent.Result{Outcome: outcome}
			}}
			_, stop := start(agent.Options{Worker: w, Jobs: []agent.Job{job(t, "backup", "0 1 * * *")}})
			until(1, 8, 0)
			stop()
			var got []time.Duration
			for i := range want {
				got = append(got, at[i+1].Sub(at[i]))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: waits %v, want %v", outcome, got, want)
			}
		})
	}
}

func TestJobsOfOneKindDoNotOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &worker{do: takes(85*time.Minute, agent.Done)}
		other := job(t, "check", "*/30 * * * *")
		other.Kind, other.Leased = "check", false
		a, stop := start(agent.Options{Worker: w, Jobs: []agent.Job{job(t, "retention", "30 1 * * *"), job(t, "backup", "0 1-3 * * *"), other}})
		until(1, 2, 15)
		st := a.Status()
		if r := st.Jobs[1].Running; r == nil || r.Slot.Hour() != 1 || r.Try != 1 {
			t.Errorf("the backup runs: %+v", r)
		}
		if p := st.Jobs[0].Pending; p == nil || p.Tries != 0 || p.Slot.Minute() != 30 {
			t.Errorf("retention is pending: %+v", p)
		}
		until(1, 6, 59)
		stop()
		var backups, checks []string
		for _, line := range w.all() {
			if strings.Contains(line, "check") {
				checks = append(checks, line)
			} else {
				backups = append(backups, line)
			}
		}
		same(t, "backups", backups, []string{
			"01 01:00:00 run backup of 01 01:00", "01 02:25:00 run retention of 01 01:30", "01 03:00:00 claim backup of 01 02:00", "01 03:50:00 run backup of 01 03:00"})
		same(t, "checks", checks, []string{
			"01 00:00:00 run check of 01 00:00", "01 01:25:00 run check of 01 01:00", "01 02:50:00 run check of 01 02:30", "01 04:15:00 run check of 01 04:00", "01 05:40:00 run check of 01 05:30"})
	})
}

// A backup that is full swallows the increment of the same instant, and no other one.
func TestAFullBackupSwallowsTheIncrement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &worker{do: takes(time.Minute, agent.Done)}
		inc := job(t, "backup", "0 */6 * * *")
		inc.SwallowedBy = "full"
		until(1, 1, 0)
		a, stop := start(agent.Options{Worker: w, Jobs: []agent.Job{inc, job(t, "full", "0 12 * * 0")}}) // the 2nd is a Sunday
		until(2, 11, 0)
		if next := a.Status().Jobs[0].Next; next.Hour() != 18 {
			t.Errorf("the next increment is at %s", next)
		}
		until(2, 19, 0)
		a.Reload(agent.Options{Worker: w, Jobs: []agent.Job{inc}})
		until(3, 1, 0)
		stop()
		same(t, "asked", w.all(), []string{
			"01 01:00:00 run backup of 01 00:00", "01 06:00:00 run backup of 01 06:00", "01 12:00:00 run backup of 01 12:00", "01 18:00:00 run backup of 01 18:00",
			"02 00:00:00 run backup of 02 00:00", "02 06:00:00 run backup of 02 06:00", "02 12:00:00 run full of 02 12:00", "02 18:00:00 run backup of 02 18:00", "03 00:00:00 run backup of 03 00:00"})
	})
}

func TestJitterIsTheSameOnAllHosts(t *testing.T) {
	seen := map[string]bool{}
	for _, place := range []string{"s3://a", "s3://b", "s3://c", "s3://a"} {
		synctest.Test(t, func(t *testing.T) {
			w := &worker{do: takes(time.Minute, agent.Done)}
			j := job(t, "backup", "0 1 * * *")
			j.Jitter = time.Hour
			until(1, 0, 30)
			_, stop := start(agent.Options{Worker: w, Place: place, Jobs: []agent.Job{j}})
			until(1, 2, 0)
			stop()
			if len(w.all()) != 1 {
				t.Errorf("%s: asked %q", place, w.all())
			}
			seen[strings.Join(w.all(), "")] = true
		})
	}
	if len(seen) != 3 {
		t.Errorf("three archives have these: %v", seen)
	}
}

// Of a window that is shorter than the jitter a slot has the second half at least.
func TestJitterLeavesHalfTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &worker{do: takes(time.Second, agent.Done)}
		j := job(t, "backup", "*/10 * * * *")
		j.Jitter = 1000 * time.Hour
		_, stop := start(agent.Options{Worker: w, Jobs: []agent.Job{j}})
		until(1, 1, 0)
		stop()
		same(t, "asked", w.all()[:2], []string{"01 00:05:00 run backup of 01 00:00", "01 00:15:00 run backup of 01 00:10"})
	})
}

func TestPeopleAreToldThatItWillBeLate(t *testing.T) {
	for name, c := range map[string]struct {
		total int64
		runs  []time.Duration // how long the runs take, night after night
		want  []string
	}{
		"by its progress": {1 << 40, []time.Duration{4 * time.Hour}, []string{
			"02 03:25:00 late: the slot of 2000-01-02 03:00:00 UTC would be done at about 2000-01-02 07:00:00 UTC, and its deadline is 2000-01-02 06:00:00 UTC: it runs since 2000-01-02 03:00:00 UTC, 10 % of it done",
			"02 06:00:00 absent: the slot of 2000-01-02 03:00:00 UTC was not done by 2000-01-02 06:00:00 UTC: it runs since 2000-01-02 03:00:00 UTC, 74 % of it done, until about 2000-01-02 07:00:00 UTC",
			"02 07:00:00 recovered: the slot of 2000-01-02 03:00:00 UTC is done",
		}},
		"in time": {1 << 40, []time.Duration{170 * time.Minute, 179 * time.Minute}, nil},
		"by the last ones": {0, []time.Duration{160 * time.Minute, 190 * time.Minute, 200 * time.Minute}, []string{
			"03 06:00:00 absent: the slot of 2000-01-03 03:00:00 UTC was not done by 2000-01-03 06:00:00 UTC: it runs since 2000-01-03 03:00:00 UTC",
			"03 06:10:00 recovered: the slot of 2000-01-03 03:00:00 UTC is done",
			"04 06:00:00 absent: the slot of 2000-01-04 03:00:00 UTC was not done by 2000-01-04 06:00:00 UTC: it runs since 2000-01-04 03:00:00 UTC",
			"04 06:20:00 recovered: the slot of 2000-01-04 03:00:00 UTC is done",
		}},
		"by the last ones, of which most were slow": {0, []time.Duration{200 * time.Minute, 170 * time.Minute}, []string{
			"02 06:00:00 absent: the slot of 2000-01-02 03:00:00 UTC was not done by 2000-01-02 06:00:00 UTC: it runs since 2000-01-02 03:00:00 UTC",
			"02 06:20:00 recovered: the slot of 2000-01-02 03:00:00 UTC is done",
			"03 03:00:00 late: the slot of 2000-01-03 03:00:00 UTC would be done at about 2000-01-03 06:20:30 UTC, and its deadline is 2000-01-03 06:00:00 UTC: it runs since 2000-01-03 03:00:00 UTC",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				night := 0
				w := &worker{do: func(_ context.Context, _ agent.Job, _ time.Time, ask agent.Ask, progress func(agent.Progress)) agent.Result {
					if ask != agent.Run {
						return agent.Result{Outcome: agent.Open, Claimed: true}
					}
					takes := c.runs[night]
					night++
					begun := time.Now()
					time.Sleep(30 * time.Second) // so that nothing else happens at the same instant
					for time.Since(begun) < takes {
						progress(agent.Progress{PID: 42, Phase: "files", Done: int64(float64(c.total) * float64(time.Since(begun)) / float64(takes)), Total: c.total})
						time.Sleep(time.Minute)
					}
					return agent.Result{Outcome: agent.Done}
				}}
				var p people
				until(1, 20, 0)
				_, stop := start(agent.Options{Worker: w, Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 3 * * * by=06:00")}})
				until(1+len(c.runs), 12, 0)
				stop()
				same(t, "told", minutes(p.all()), minutes(c.want))
			})
		})
	}
}

// minutes are lines without the first seconds in them.
func minutes(lines []string) (all []string) {
	for _, l := range lines {
		all = append(all, l[:8]+l[11:])
	}
	return all
}

// Of several hosts the one that claims it tells that a slot is absent, and the same one that the job works again.
func TestOneHostTellsOfAnAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		claimed, broken := map[time.Time]bool{}, true
		done := map[time.Time]bool{}
		do := func(_ context.Context, _ agent.Job, slot time.Time, ask agent.Ask, _ func(agent.Progress)) agent.Result {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case done[slot]:
				return agent.Result{Outcome: agent.Elsewhere, Host: "db1"}
			case ask == agent.Claim:
				first := !claimed[slot]
				claimed[slot] = true
				return agent.Result{Outcome: agent.Open, Claimed: first}
			case ask == agent.Look:
				return agent.Result{Outcome: agent.Open}
			case broken:
				return agent.Result{Outcome: agent.Failed, Error: "no space"}
			}
			done[slot] = true
			return agent.Result{Outcome: agent.Done}
		}
		var p people
		var stops []func()
		var agents []*agent.Agent
		until(1, 1, 0)
		for range 3 {
			a, stop := start(agent.Options{Worker: &worker{do: do}, Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 3 * * *")}})
			agents, stops = append(agents, a), append(stops, stop)
		}
		until(2, 12, 0)
		mu.Lock()
		broken = false
		mu.Unlock()
		until(3, 12, 0)
		for i, stop := range stops {
			if j := agents[i].Status().Jobs[0]; j.Missed != 1 || j.LastDone.Day() != 3 || j.Last.Slot.Day() != 3 {
				t.Errorf("agent %d: %+v, last %+v", i, j, j.Last)
			}
			stop()
		}
		told := p.all()
		if len(told) != 2 || !strings.HasPrefix(told[0], "01 15:00:00 absent: the slot of 2000-01-01 03:00:00 UTC was not done by 2000-01-01 15:00:00 UTC: it failed 28 times: no space") ||
			!strings.Contains(told[1], "recovered: the slot of 2000-01-02 03:00:00 UTC is done") || !strings.HasSuffix(told[1], "; that of 2000-01-01 03:00:00 UTC was not") {
			t.Errorf("told:\n%s", strings.Join(told, "\n"))
		}
	})
}

// An agent that ends while it claims an absence tells of it all the same: no other host will.
func TestAClaimIsToldOfAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p people
		until(1, 1, 0)
		_, stop := start(agent.Options{Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 3 * * * by=4h")}, Worker: &worker{do: func(ctx context.Context, _ agent.Job, _ time.Time, ask agent.Ask, _ func(agent.Progress)) agent.Result {
			if ask == agent.Run {
				return agent.Result{Outcome: agent.Failed, Error: "no space"}
			}
			<-ctx.Done()
			return agent.Result{Outcome: agent.Open, Claimed: ask == agent.Claim}
		}}})
		until(1, 8, 0)
		stop()
		if told := p.all(); len(told) != 1 || !strings.HasPrefix(told[0], "01 08:00:00 absent: ") {
			t.Errorf("told %q", told)
		}
	})
}

func TestWhereTheArchiveIsAwayEachHostTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p people
		until(1, 1, 0)
		_, stop := start(agent.Options{Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 3 * * * by=4h")}, Worker: &worker{do: func(context.Context, agent.Job, time.Time, agent.Ask, func(agent.Progress)) agent.Result {
			return agent.Result{Outcome: agent.Failed, Error: "no route"}
		}}})
		until(2, 1, 0)
		stop()
		if told := p.all(); len(told) != 1 || !strings.HasPrefix(told[0], "01 07:00:00 absent: ") || !strings.HasSuffix(told[0], ": no route; whether it was done elsewhere is not known: no route") {
			t.Errorf("told:\n%s", strings.Join(told, "\n"))
		}
	})
}

// When the window closes it is asked once more, and what another host did is not absent.
func TestWhatAnotherHostDidLateIsFoundOut(t *testing.T) {
	for _, c := range []struct {
		before agent.Outcome
		asked  string // last of that slot
	}{
		{agent.Failed, "02 15:00:00 claim backup of 02 03:00"},
		{agent.NotHere, "02 15:00:00 claim backup of 02 03:00"},
		{agent.Held, "02 15:09:00 look backup of 02 03:00"}, // who holds the lease has time; asked five minutes after the question before
	} {
		synctest.Test(t, func(t *testing.T) {
			var p people
			doneAt := time.Date(2000, 1, 2, 15, 0, 0, 0, time.UTC)
			if c.before == agent.Held {
				doneAt = doneAt.Add(6 * time.Minute)
			}
			w := &worker{do: func(context.Context, agent.Job, time.Time, agent.Ask, func(agent.Progress)) agent.Result {
				if time.Now().Before(doneAt) {
					return agent.Result{Outcome: c.before, Host: "db3"}
				}
				return agent.Result{Outcome: agent.Elsewhere, Host: "db3"}
			}}
			until(2, 1, 0)
			a, stop := start(agent.Options{Worker: w, Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 3 * * *")}})
			until(2, 23, 0)
			st := a.Status().Jobs[0]
			stop()
			if asked := w.all(); minuteOf(asked[len(asked)-1]) != minuteOf(c.asked) {
				t.Errorf("%s: the last question was %q, want %q", c.before, asked[len(asked)-1], c.asked)
			}
			if st.Last == nil || st.Last.Outcome != agent.Elsewhere || st.Last.Host != "db3" || st.Missed != 0 || st.LastDone.Day() != 2 || len(p.all()) != 0 {
				t.Errorf("%s: %+v, last %+v, told %q", c.before, st, st.Last, p.all())
			}
		})
	}
}

func minuteOf(line string) string { return line[:8] + line[11:] }

// Who is at it beyond deadline and window is followed all the same: the slot is absent for a while, and not missed.
func TestHeldBeyondDeadlineAndWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p people
		doneAt := time.Date(2000, 1, 1, 16, 0, 0, 0, time.UTC)
		w := &worker{do: func(_ context.Context, _ agent.Job, _ time.Time, ask agent.Ask, _ func(agent.Progress)) agent.Result {
			switch {
			case !time.Now().Before(doneAt):
				return agent.Result{Outcome: agent.Elsewhere, Host: "db3"}
			case ask == agent.Run:
				return agent.Result{Outcome: agent.Held, Host: "db3"}
			}
			return agent.Result{Outcome: agent.Open, Claimed: ask == agent.Claim}
		}}
		until(1, 2, 0)
		a, stop := start(agent.Options{Worker: w, Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 3 * * * by=06:00")}})
		until(2, 2, 0)
		st := a.Status().Jobs[0]
		stop()
		told := p.all()
		if len(told) != 2 || !strings.HasPrefix(told[0], "01 06:00:") || !strings.Contains(told[0], "absent") || !strings.HasPrefix(told[1], "01 16:0") || !strings.Contains(told[1], "recovered") {
			t.Errorf("told %q", told)
		}
		if st.Missed != 0 || st.LastDone.Day() != 1 || st.Last == nil || st.Last.Outcome != agent.Elsewhere {
			t.Errorf("%+v, last %+v", st, st.Last)
		}
	})
}

// A lease that is held does not keep people from being told for ever.
func TestHeldForEverIsAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p people
		w := &worker{do: func(_ context.Context, _ agent.Job, _ time.Time, ask agent.Ask, _ func(agent.Progress)) agent.Result {
			if ask == agent.Run {
				return agent.Result{Outcome: agent.Held, Host: "db3"}
			}
			return agent.Result{Outcome: agent.Open, Claimed: ask == agent.Claim}
		}}
		until(1, 2, 0)
		_, stop := start(agent.Options{Worker: w, Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 3 1 * *")}})
		until(3, 0, 0)
		stop()
		same(t, "told", p.all(), []string{"02 03:00:00 absent: the slot of 2000-01-01 03:00:00 UTC was not done by 2000-01-01 15:00:00 UTC: db3 is at it"})
	})
}

// A run that goes on when its window closes is waited for; when it fails then, that is told.
func TestARunThatOutlastsItsWindow(t *testing.T) {
	for outcome, want := range map[agent.Outcome][]string{
		agent.Done:   nil,
		agent.Failed: {"01 16:00:00 absent: the slot of 2000-01-01 03:00:00 UTC was not done by 2000-01-01 15:00:00 UTC: it failed once: no space"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var p people
			w := &worker{do: takes(13*time.Hour, outcome)}
			until(1, 2, 0)
			a, stop := start(agent.Options{Worker: w, Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 3 * * *")}})
			until(1, 23, 0)
			st := a.Status().Jobs[0]
			stop()
			same(t, string(outcome)+": told", p.all(), want)
			if st.Last.Outcome != outcome || st.Missed != len(want) || st.Last.Absent != (len(want) > 0) {
				t.Errorf("%s: %+v, last %+v", outcome, st, st.Last)
			}
		})
	}
}

// What is first looked at after its deadline is made up for, and people are told once that did not work.
func TestADeadlineOfBeforeTheStart(t *testing.T) {
	for outcome, want := range map[agent.Outcome]int{agent.Done: 0, agent.Failed: 1} {
		synctest.Test(t, func(t *testing.T) {
			var p people
			until(2, 8, 0)
			_, stop := start(agent.Options{Worker: &worker{do: takes(time.Hour, outcome)}, Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 3 * * * by=06:00")}})
			until(2, 10, 0)
			if told := p.all(); len(told) != want || want > 0 && !strings.HasPrefix(told[0], "02 09:00:00 absent") {
				t.Errorf("%s: told %q", outcome, told)
			}
			stop()
		})
	}
}

// A job of each host for itself is not asked for elsewhere, and its failures are told by itself, but for a deadline.
func TestJobsWithoutALease(t *testing.T) {
	for by, want := range map[string]int{"": 0, " by=1h": 2} {
		synctest.Test(t, func(t *testing.T) {
			var p people
			w := &worker{do: takes(time.Minute, agent.Failed)}
			j := job(t, "check", "0 */2 * * *"+by)
			j.Leased = false
			until(1, 1, 59)
			a, stop := start(agent.Options{Worker: w, Tell: p.tell, Jobs: []agent.Job{j}})
			until(1, 4, 1)
			missed := a.Status().Jobs[0].Missed
			stop()
			if len(p.all()) != want || missed != 2 {
				t.Errorf("%q: told %q, missed %d", by, p.all(), missed)
			}
			for _, asked := range w.all() {
				if !strings.Contains(asked, " run ") {
					t.Errorf("asked: %s", asked)
				}
			}
		})
	}
}

// A job of each host for itself that does not come to its end tells nobody by itself.
func TestAJobWithoutALeaseThatHangs(t *testing.T) {
	for outcome, want := range map[agent.Outcome][]string{
		agent.Done:   {"01 04:00:00 absent: the slot of 2000-01-01 02:00:00 UTC was not done by 2000-01-01 03:00:00 UTC: it runs since 2000-01-01 02:00:00 UTC", "01 05:30:00 recovered: the slot of 2000-01-01 02:00:00 UTC is done"},
		agent.Failed: {"01 04:00:00 absent: the slot of 2000-01-01 02:00:00 UTC was not done by 2000-01-01 03:00:00 UTC: it runs since 2000-01-01 02:00:00 UTC"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var p people
			j := job(t, "check", "0 2-4 * * *")
			j.Leased, j.CatchUp = false, time.Hour
			until(1, 1, 59)
			a, stop := start(agent.Options{Worker: &worker{do: takes(210*time.Minute, outcome)}, Tell: p.tell, Jobs: []agent.Job{j}})
			until(1, 6, 0)
			missed := a.Status().Jobs[0].Missed
			stop()
			same(t, string(outcome)+": told", p.all(), want)
			if missed != 3 { // it, and the two that it left no time
				t.Errorf("%s: missed %d", outcome, missed)
			}
		})
	}
}

// What waits for another job of its kind says so.
func TestWhatIsInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p people
		until(1, 1, 0)
		_, stop := start(agent.Options{Worker: &worker{do: takes(5*time.Hour, agent.Done)}, Tell: p.tell, Jobs: []agent.Job{job(t, "backup", "0 2 * * *"), job(t, "retention", "0 4 * * * by=05:00")}})
		until(1, 5, 30)
		stop()
		same(t, "told", p.all(), []string{"01 05:00:00 absent: the slot of 2000-01-01 04:00:00 UTC was not done by 2000-01-01 05:00:00 UTC: backup of 2000-01-01 02:00:00 UTC runs since 2000-01-01 02:00:00 UTC, and the two do not run at once"})
	})
}

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &worker{do: takes(3*time.Hour, agent.Done)}
		var p people
		options := func(jobs ...agent.Job) agent.Options { return agent.Options{Worker: w, Tell: p.tell, Jobs: jobs} }
		until(1, 1, 30)
		a, stop := start(options(job(t, "backup", "0 2 * * *"), job(t, "retention", "0 3 * * *")))
		until(1, 4, 0) // the backup runs, and retention waits for it
		a.Reload(options(job(t, "backup", "0 4 * * *"), job(t, "verify", "0 1 * * *")))
		until(1, 4, 30)
		st := a.Status()
		if len(st.Jobs) != 2 || st.Jobs[0].Running == nil || st.Jobs[0].Next.Day() != 2 || st.Jobs[1].Pending != nil || st.Reloaded.Hour() != 4 {
			t.Errorf("after the reload: %+v", st)
		}
		a.Reload(options(job(t, "verify", "0 1 * * *"))) // the backup is taken away while it runs
		synctest.Wait()
		if st := a.Status(); len(st.Jobs) != 2 || st.Jobs[1].Name != "backup" || st.Jobs[1].Running == nil || !st.Jobs[1].Next.IsZero() {
			t.Errorf("without backups: %+v", st)
		}
		until(1, 5, 30)
		if st := a.Status(); len(st.Jobs) != 1 {
			t.Errorf("when it has ended: %+v", st)
		}
		until(1, 6, 0)
		a.Reload(options(job(t, "backup", "0 7 * * *")))
		until(1, 12, 0)
		stop()
		same(t, "asked", w.all(), []string{"01 02:00:00 run backup of 01 02:00", "01 07:00:00 run backup of 01 07:00"})
		same(t, "told", p.all(), nil)
	})
}

// Where only deadline or jitter have changed the slot is still to be done.
func TestReloadOfADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p people
		broken := true
		w := &worker{do: func(_ context.Context, _ agent.Job, _ time.Time, ask agent.Ask, _ func(agent.Progress)) agent.Result {
			switch {
			case ask != agent.Run:
				return agent.Result{Outcome: agent.Open, Claimed: ask == agent.Claim}
			case broken:
				return agent.Result{Outcome: agent.Failed, Error: "no space"}
			}
			return agent.Result{Outcome: agent.Done}
		}}
		options := func(expression string) agent.Options {
			return agent.Options{Worker: w, Tell: p.tell, Jobs: []agent.Job{job(t, "backup", expression)}}
		}
		until(1, 2, 0)
		a, stop := start(options("0 3 * * * by=04:00"))
		until(1, 3, 30)
		a.Reload(options("0 3 * * * by=05:00"))
		until(1, 4, 30)
		same(t, "told before the new deadline", p.all(), nil)
		until(1, 5, 30)
		a.Reload(options("0 3 * * * by=06:00 jitter=1m")) // they know
		until(1, 6, 30)
		broken = false
		a.Reload(options("0 3 * * *"))
		until(1, 7, 0)
		st := a.Status().Jobs[0]
		stop()
		if told := p.all(); len(told) != 2 || !strings.HasPrefix(told[0], "01 05:00:00 absent") || !strings.HasPrefix(told[1], "01 06:30:00 recovered") {
			t.Errorf("told %q", told)
		}
		if st.LastDone.Hour() != 3 || st.Missed != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// What fails for the settings is tried again when they are changed.
func TestReloadTriesAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &worker{do: takes(0, agent.Failed)}
		opts := agent.Options{Worker: w, Jobs: []agent.Job{job(t, "backup", "0 2 * * *")}}
		until(1, 1, 0)
		a, stop := start(opts)
		until(1, 5, 0)
		opts.Worker = &worker{do: takes(time.Minute, agent.Done)}
		a.Reload(opts)
		until(1, 5, 1)
		if last := a.Status().Jobs[0].Last; last == nil || last.Outcome != agent.Done || last.At.Hour() != 5 || last.At.Minute() != 1 {
			t.Errorf("last: %+v", last)
		}
		stop()
	})
}

func TestServicesAreStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var began []time.Time
		short := 11
		s := agent.Service{Name: "daemon", Run: func(ctx context.Context, started func(int)) error {
			began = append(began, time.Now())
			started(len(began))
			life := time.Second
			if len(began) == short { // it has settled down
				life = time.Minute
			}
			if len(began) > short+1 {
				<-ctx.Done()
				return nil
			}
			time.Sleep(life)
			return errors.New("broken")
		}}
		a, stop := start(agent.Options{Services: []agent.Service{s}})
		time.Sleep(time.Second + 500*time.Millisecond)
		if st := a.Status().Services[0]; st.PID != 0 || !st.Since.IsZero() || st.Restarts != 1 || st.Error != "broken" || st.Again.IsZero() {
			t.Errorf("between: %+v", st)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		var waits []time.Duration
		for i := range began[1:] {
			life := time.Second
			if i == short-1 {
				life = time.Minute
			}
			waits = append(waits, (began[i+1].Sub(began[i])-life)/time.Second)
		}
		if want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 1, 2}; !slices.Equal(waits, want) {
			t.Errorf("waits of %d seconds, want %d", waits, want)
		}
		if st := a.Status().Services[0]; st.PID != short+2 || st.Since.IsZero() || st.Restarts != short+1 || !st.Again.IsZero() {
			t.Errorf("at last: %+v", st)
		}
		stop()
	})
}

// Services are started anew where their key has changed, and only then; never are there two of one.
func TestReloadOfServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running := map[string]int{}
		var mu sync.Mutex
		var log []string
		service := func(name, key string) agent.Service {
			return agent.Service{Name: name, Key: key, Run: func(ctx context.Context, _ func(int)) error {
				mu.Lock()
				running[name]++
				if running[name] > 1 {
					t.Errorf("%s runs twice", name)
				}
				log = append(log, "+"+name+key)
				mu.Unlock()
				<-ctx.Done()
				time.Sleep(10 * time.Second)
				mu.Lock()
				defer mu.Unlock()
				running[name]--
				log = append(log, "-"+name+key)
				return nil
			}}
		}
		services := func(all ...agent.Service) agent.Options { return agent.Options{Services: all} }
		a, stop := start(services(service("daemon", "1"), service("receive", "1")))
		time.Sleep(time.Minute)
		a.Reload(services(service("daemon", "1"), service("receive", "2")))
		time.Sleep(time.Second)
		a.Reload(services(service("daemon", "1"), service("receive", "3"))) // while the first one ends, still
		time.Sleep(time.Minute)
		a.Reload(services(service("receive", "3")))
		time.Sleep(time.Minute)
		if st := a.Status(); len(st.Services) != 1 || st.Services[0].Name != "receive" || st.Services[0].Since.IsZero() {
			t.Errorf("%+v", st.Services)
		}
		stop()
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(log[:2])
		same(t, "log", log, []string{"+daemon1", "+receive1", "-receive1", "+receive3", "-daemon1", "-receive3"})
	})
}

// Jobs end first, as a backup needs the services until its end; people are told what they were to be told.
func TestItEndsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var log []string
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, what)
		}
		w := &worker{do: func(ctx context.Context, j agent.Job, _ time.Time, _ agent.Ask, _ func(agent.Progress)) agent.Result {
			if j.Name == "done" {
				return agent.Result{Outcome: agent.Done}
			}
			<-ctx.Done()
			time.Sleep(20 * time.Second)
			note("job")
			return agent.Result{Outcome: agent.Failed, Error: "stopped"}
		}}
		_, stop := start(agent.Options{Worker: w, Jobs: []agent.Job{job(t, "backup", "0 0 * * *")}, Services: []agent.Service{{Name: "daemon", Run: func(ctx context.Context, _ func(int)) error {
			<-ctx.Done()
			note("service")
			return nil
		}}}})
		time.Sleep(time.Hour)
		stop()
		same(t, "ended", log, []string{"job", "service"})
	})
}

// A clock that a test sets.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) After(d time.Duration) <-chan time.Time { return time.After(d) }

func (c *clock) set(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// A host that stood still makes up for the last slot, and asks for the one before.
func TestAHostThatStoodStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		var p people
		w := &worker{do: takes(time.Second, agent.Done)}
		until(1, 0, 30)
		_, stop := start(agent.Options{Worker: w, Tell: p.tell, Clock: &c, Jobs: []agent.Job{job(t, "backup", "0 * * * *")}})
		until(1, 1, 30)
		time.Sleep(30 * time.Second)
		c.set(72 * time.Hour)
		until(1, 1, 50)
		stop()
		asked := w.all()
		slices.Sort(asked[2:])
		same(t, "asked", minutes(asked), minutes([]string{
			"01 00:30:00 run backup of 01 00:00", "01 01:00:00 run backup of 01 01:00", "01 01:31:00 claim backup of 04 00:00", "01 01:31:00 run backup of 04 01:00"}))
		if told := p.all(); len(told) != 2 || !strings.Contains(told[0], "absent: the slot of 2000-01-04 00:00:00") || !strings.Contains(told[1], "recovered") {
			if len(told) != 1 || !strings.Contains(told[0], "absent: the slot of 2000-01-04 00:00:00") { // the run may end before the answer
				t.Errorf("told %q", told)
			}
		}
	})
}

// A clock that was wrong by years, and is set right, leaves no hole.
func TestAClockThatIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clock{ahead: 4 * 365 * 24 * time.Hour}
		w := &worker{do: takes(time.Second, agent.Done)}
		until(1, 0, 30)
		a, stop := start(agent.Options{Worker: w, Clock: &c, Jobs: []agent.Job{job(t, "backup", "0 12 1 1 *"), job(t, "hourly", "0 * * * *")}})
		until(1, 10, 30)
		c.set(-c.ahead)
		until(1, 12, 30)
		st := a.Status()
		stop()
		asked := w.all()
		if !slices.ContainsFunc(asked, func(line string) bool { return strings.HasSuffix(line, "run hourly of 01 10:00") }) {
			t.Errorf("the slot before was not looked at again: %q", asked[len(asked)-5:])
		}
		if last, done := st.Jobs[0].Last, st.Jobs[0].LastDone; last == nil || last.Slot.Year() != 2000 || done.Year() != 2000 {
			t.Errorf("known of backups: %+v, done %s", last, done)
		}
		same(t, "asked", asked[len(asked)-3:], []string{"01 11:00:00 run hourly of 01 11:00", "01 12:00:00 run backup of 01 12:00", "01 12:00:01 run hourly of 01 12:00"})
		if next := st.Jobs[1].Next; next.Year() != 2000 || next.Hour() != 13 {
			t.Errorf("next is %s", next)
		}
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &worker{do: func(_ context.Context, _ agent.Job, _ time.Time, _ agent.Ask, progress func(agent.Progress)) agent.Result {
			time.Sleep(10 * time.Minute)
			progress(agent.Progress{PID: 7, Phase: "files", Done: 25, Total: 100})
			time.Sleep(30 * time.Minute)
			return agent.Result{Outcome: agent.Done, Job: &metrics.Job{Name: "backup-push", Read: 100}}
		}}
		until(1, 2, 0)
		a, stop := start(agent.Options{Worker: w, Jobs: []agent.Job{job(t, "backup", "0 3 * * * by=05:00")}})
		at := func(hour, minute int) time.Time { return time.Date(2000, 1, 1, hour, minute, 0, 0, time.UTC) }
		until(1, 3, 20)
		st := a.Status()
		want := agent.RunStatus{Slot: at(3, 0), Since: at(3, 0), Try: 1, PID: 7, Phase: "files", Done: 25, Total: 100, ETA: at(3, 40), Deadline: at(5, 0)}
		if !st.Since.Equal(at(2, 0)) || !st.At.Equal(at(3, 20)) || st.Jobs[0].Running == nil || *st.Jobs[0].Running != want {
			t.Errorf("%+v, running %+v, want %+v", st, st.Jobs[0].Running, want)
		}
		until(1, 4, 0)
		j := a.Status().Jobs[0]
		wantLast := agent.SlotStatus{Slot: at(3, 0), Deadline: at(5, 0), Outcome: agent.Done, Tries: 1, At: at(3, 40)}
		if j.Last == nil || *j.Last != wantLast || j.Running != nil || j.Result == nil || j.Result.Read != 100 || !j.LastDone.Equal(at(3, 0)) || !j.Next.Equal(at(27, 0)) {
			t.Errorf("%+v, last %+v, want %+v", j, j.Last, wantLast)
		}
		stop()
	})
}
