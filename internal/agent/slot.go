package agent

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"holdfast/internal/metrics"
)

// job is a Job with what has become of it.
type job struct {
	Job
	seen  time.Time // slots up to this moment are open, or past; zero before the first look
	next  time.Time // the first slot behind it; zero for none
	slots []*slot   // that are not settled, by their instants
	run   *run      // the try that goes on; nil for none
	gone  bool      // it was taken away while it ran

	took     []time.Duration // by the last runs that were done
	last     *SlotStatus
	lastDone time.Time
	missed   int
	absent   time.Time // the slot of which people were told that it is absent, and have not been told that the job works again
	result   *metrics.Job
}

// slot is an instant of a job's schedule, as long as it is not settled.
type slot struct {
	at       time.Time
	due      time.Time // when it may be begun with
	close    time.Time // until when
	deadline time.Time // zero for none
	overdue  bool      // the deadline was past when the slot was first looked at

	outcome Outcome
	host    string
	failure string
	tries   int
	ended   time.Time // the last try
	again   time.Time // when the next one may begin
	fails   int       // tries that failed
	waits   int       // tries for which it was not this host's turn

	heard  time.Time // as of when it is known that it is not done
	asking bool      // a question is on its way
	late   bool      // people know, or need not
	stuck  bool      // it was counted as missed while it ran
	absent bool      // likewise
	let    bool      // it is let go: it is waited for that its run ends, and no more
}

// run is a try that goes on.
type run struct {
	slot     *slot
	began    time.Time
	progress Progress
	heard    time.Time // when the progress was told
}

const (
	catchUp   = 12 * time.Hour  // what Job.CatchUp is where it is 0
	backwards = 5 * time.Minute // by how much a clock may be set back without slots coming again
	firstWait = 5 * time.Second // before it is asked again whether it is this host's turn; twice as long each time
	mostWait  = time.Minute
	firstFail = time.Minute // before what failed is tried again; twice as long each time
	mostFail  = 30 * time.Minute
	finalLook = 5 * time.Minute // between questions whether another host has come to the end of a slot whose window is closed
	keepTook  = 5               // runs whose durations are kept
)

// open opens the slots that have come.
func (a *Agent) open(j *job, now time.Time) {
	if j.gone {
		return
	}
	from := now.Add(-cmp.Or(j.CatchUp, catchUp))
	switch {
	case j.seen.IsZero(): // only the last one can be open still
		j.seen = now
		if last, ok := j.Schedule.Last(now, from); ok {
			a.add(j, last, now)
		}
		j.next = j.Schedule.Next(now)
		return
	case now.Before(j.seen.Add(-backwards)): // it was too late before; the archive knows what was done all the same
		a.log.Warn(fmt.Sprintf("%s: the clock was set back by %s", j.Name, j.seen.Sub(now).Round(time.Second)))
		j.letGo()
		j.seen, j.next = now, j.Schedule.Next(now)
		if last, ok := j.Schedule.Last(now, from); ok {
			a.add(j, last, now)
		}
		if j.last != nil && j.last.Slot.After(now) { // what is known of slots that are to come again
			j.last = nil
		}
		for _, t := range []*time.Time{&j.lastDone, &j.absent} {
			if t.After(now) {
				*t = time.Time{}
			}
		}
		return
	case j.next.IsZero() || now.Before(j.next):
		return
	}
	// Of those that came while this process stood still the last one is made up for, and the one before stands for all that were not done.
	var came []time.Time
	if j.next.Before(from) {
		j.next = j.Schedule.Next(from)
	}
	for ; !j.next.IsZero() && !j.next.After(now); j.next = j.Schedule.Next(j.next) {
		came = append(came[max(0, len(came)-1):], j.next)
	}
	j.seen = now
	for _, at := range came {
		a.add(j, at, now)
	}
}

// add opens a slot.
func (a *Agent) add(j *job, at, now time.Time) {
	if a.swallowed(j, at) {
		return
	}
	s := &slot{at: at, close: at.Add(cmp.Or(j.CatchUp, catchUp)), deadline: j.Schedule.Deadline(at)}
	if next := j.Schedule.Next(at); !next.IsZero() && next.Before(s.close) {
		s.close = next
	}
	s.due = at.Add(min(delay(a.opts.Place, j.Job), s.close.Sub(at)/2))
	s.overdue = !s.deadline.IsZero() && !s.deadline.After(now)
	j.slots = append(j.slots, s)
}

// delay is how long after its instant a slot of j is due: the same on all hosts.
func delay(place string, j Job) time.Duration {
	if j.Jitter <= 0 {
		return 0
	}
	h := fnv.New64a()
	h.Write([]byte(place + "\n" + j.Name))
	return time.Duration(h.Sum64() % uint64(j.Jitter))
}

// letGo forgets all slots. That of a try that goes on is forgotten when it ends.
func (j *job) letGo() {
	for _, s := range j.slots {
		s.let = true
	}
	j.slots = slices.DeleteFunc(j.slots, func(s *slot) bool { return !j.runs(s) })
}

// runs reports whether a try of s goes on.
func (j *job) runs(s *slot) bool { return j.run != nil && j.run.slot == s }

// begins is when s may be tried next.
func (s *slot) begins() time.Time {
	if s.again.After(s.due) {
		return s.again
	}
	return s.due
}

// try has the worker do the job of s.
func (a *Agent) try(ctx context.Context, j *job, s *slot, now time.Time) {
	s.tries++
	r := &run{slot: s, began: now}
	j.run = r
	a.poke() // it may be late from the start
	worker, of := a.opts.Worker, j.Job
	a.tries.Go(func() {
		result := worker.Work(ctx, of, s.at, Run, func(p Progress) {
			a.mu.Lock()
			defer a.mu.Unlock()
			r.progress, r.heard = p, a.now()
		})
		a.mu.Lock()
		defer a.mu.Unlock()
		defer a.poke()
		a.tried(j, s, result, ctx.Err() != nil)
	})
}

// tried notes what came of a try. Where it was broken off by the agent's end that says nothing about the job.
func (a *Agent) tried(j *job, s *slot, r Result, over bool) {
	now := a.now()
	began := j.run.began
	j.run = nil
	if j.gone {
		a.jobs = slices.DeleteFunc(a.jobs, func(o *job) bool { return o == j })
	}
	if r.Outcome != Done && r.Outcome != Elsewhere && r.Outcome != Held && r.Outcome != NotHere {
		r.Error = cmp.Or(r.Error, string(r.Outcome))
		r.Outcome = Failed
	}
	changed := r.Outcome != s.outcome || r.Host != s.host
	s.outcome, s.host, s.failure, s.ended, s.heard = r.Outcome, r.Host, r.Error, now, began
	if r.Job != nil {
		j.result = r.Job
	}
	if r.Outcome == Done {
		j.took = append(j.took[max(0, len(j.took)-keepTook+1):], now.Sub(began))
	}
	line := fmt.Sprintf("%s of %s: %s", j.Name, j.Schedule.local(s.at), r)
	switch {
	case r.Outcome == Done || r.Outcome == Elsewhere:
		a.log.Info(line)
		a.settle(j, s)
	case over || s.let:
		a.log.Info(line)
		j.forget(s)
	case r.Outcome == Failed:
		s.fails++
		wait := min(firstFail<<min(s.fails-1, 20), mostFail)
		s.again, s.waits = now.Add(wait), 0
		if s.again.Before(s.close) {
			line += "; again in " + wait.String()
		}
		a.log.Warn(line)
	default:
		s.again = now.Add(min(firstWait<<min(s.waits, 20), mostWait))
		s.waits++
		if changed {
			a.log.Info(line)
		}
	}
}

// String is the result as a line of the log has it.
func (r Result) String() string {
	text := map[Outcome]string{Done: "done", Elsewhere: "done already", Open: "not done", Held: "another process does it", NotHere: "not for this host", Failed: "failed"}[r.Outcome]
	if r.Host != "" {
		text += " (" + r.Host + ")"
	}
	if r.Error != "" {
		text += ": " + r.Error
	}
	return text
}

// settle closes a slot that is done.
func (a *Agent) settle(j *job, s *slot) {
	j.forget(s)
	j.ends(s)
	if s.at.After(j.lastDone) {
		j.lastDone = s.at
	}
	if j.absent.IsZero() || s.at.Before(j.absent) {
		return
	}
	text := fmt.Sprintf("the slot of %s is done", j.Schedule.local(s.at))
	if s.host != "" {
		text += " by " + s.host
	}
	if s.at.After(j.absent) {
		text += fmt.Sprintf("; that of %s was not", j.Schedule.local(j.absent))
	}
	j.absent = time.Time{}
	a.tell(Notice{Job: j.Job, Slot: s.at, Kind: Recovered, Text: text, Deadline: s.deadline})
}

// forget has s no more among the slots that are not settled.
func (j *job) forget(s *slot) {
	j.slots = slices.DeleteFunc(j.slots, func(o *slot) bool { return o == s })
}

// ends keeps what became of s, unless more is known of a later one.
func (j *job) ends(s *slot) {
	if st := s.status(); j.last == nil || !st.Slot.Before(j.last.Slot) {
		st.Again = time.Time{}
		j.last = st
	}
}

// watch looks whether people have to be told of s, and whether its window is closed. soon is told when to look again.
func (a *Agent) watch(ctx context.Context, j *job, s *slot, now time.Time, soon func(time.Time)) {
	soon(s.close)
	soon(s.deadline)
	if s.let || s.asking {
		return
	}
	if eta := j.eta(s, now); !s.late && now.Before(s.deadline) && eta.After(s.deadline) {
		s.late = true
		a.tell(Notice{Job: j.Job, Slot: s.at, Kind: Late, Deadline: s.deadline, ETA: eta, Text: fmt.Sprintf("the slot of %s would be done at about %s, and its deadline is %s: %s",
			j.Schedule.local(s.at), j.Schedule.local(eta), j.Schedule.local(s.deadline), a.state(j, s))})
	}
	closed := !now.Before(s.close)
	switch {
	case !s.absent && a.isAbsent(j, s, now, soon):
		if j.Leased {
			a.ask(ctx, j, s, Claim, now)
			return
		}
		s.absent = true
		if j.runs(s) && closed {
			j.missed++
			s.stuck = true
		}
		if s.stuck || !s.deadline.IsZero() && !s.deadline.After(s.close) { // otherwise those who wait for it were told of each try that failed
			a.tellAbsent(j, s, "", now)
		}
	case !closed || j.runs(s):
		return
	case !s.absent || j.Leased && s.outcome == Held && now.Before(s.close.Add(s.close.Sub(s.at))): // another host is at it
		if again := s.heard.Add(finalLook); now.Before(again) {
			soon(again)
			return
		}
		a.ask(ctx, j, s, Look, now)
		return
	case j.Leased && s.heard.Before(s.close):
		a.ask(ctx, j, s, Look, now)
		return
	}
	if closed && !j.runs(s) {
		if !s.stuck {
			j.missed++
		}
		j.forget(s)
		j.ends(s)
		a.log.Warn(fmt.Sprintf("%s of %s was not done", j.Name, j.Schedule.local(s.at)))
	}
}

// isAbsent reports whether s should have been done. Where somebody is at it when its window closes and nothing was said of a deadline he has as much time again.
func (a *Agent) isAbsent(j *job, s *slot, now time.Time, soon func(time.Time)) bool {
	firm := !s.deadline.IsZero() && (!s.overdue || s.outcome == Failed && !j.runs(s)) // a deadline of before this process counts once it could not be made up for
	if firm && !s.deadline.After(now) {
		return true
	}
	if now.Before(s.close) {
		return false
	}
	last := s.close.Add(s.close.Sub(s.at))
	if firm && s.deadline.Before(last) {
		last = s.deadline
	}
	soon(last)
	return !now.Before(last) || !j.runs(s) && !(j.Leased && s.outcome == Held)
}

// ask asks the worker about s.
func (a *Agent) ask(ctx context.Context, j *job, s *slot, what Ask, now time.Time) {
	s.asking = true
	worker, of := a.opts.Worker, j.Job
	a.tries.Go(func() {
		r := worker.Work(ctx, of, s.at, what, func(Progress) {})
		a.mu.Lock()
		defer a.mu.Unlock()
		defer a.poke()
		s.asking, s.heard = false, now
		a.answered(j, s, what, r, ctx.Err() != nil)
	})
}

// answered notes what the worker said.
func (a *Agent) answered(j *job, s *slot, what Ask, r Result, over bool) {
	switch {
	case !slices.Contains(j.slots, s), s.let, over && r.Outcome != Elsewhere && !r.Claimed: // it was settled meanwhile, or nobody wants to know any more, but of what no other host tells
		return
	case r.Outcome == Elsewhere && !j.runs(s):
		s.outcome, s.host, s.failure, s.ended = r.Outcome, r.Host, r.Error, a.now()
		a.log.Info(fmt.Sprintf("%s of %s: %s", j.Name, j.Schedule.local(s.at), r))
		a.settle(j, s)
		return
	case r.Outcome == Elsewhere: // the try will find out, too
		s.absent = true
		return
	}
	if what != Claim {
		return
	}
	s.absent = true
	switch {
	case r.Outcome != Open:
		a.tellAbsent(j, s, "; whether it was done elsewhere is not known: "+cmp.Or(r.Error, string(r.Outcome)), a.now())
	case r.Claimed:
		a.tellAbsent(j, s, "", a.now())
	}
}

// tellAbsent tells people that s was not done when it should have been.
func (a *Agent) tellAbsent(j *job, s *slot, more string, now time.Time) {
	by := s.close
	if !s.deadline.IsZero() && s.deadline.Before(by) {
		by = s.deadline
	}
	j.absent = s.at
	text := fmt.Sprintf("the slot of %s was not done by %s: %s", j.Schedule.local(s.at), j.Schedule.local(by), a.state(j, s))
	eta := j.eta(s, now)
	if !eta.IsZero() {
		text += ", until about " + j.Schedule.local(eta)
	}
	a.tell(Notice{Job: j.Job, Slot: s.at, Kind: Absent, Deadline: s.deadline, ETA: eta, Text: text + more})
}

// state says in a few words where s is.
func (a *Agent) state(j *job, s *slot) string {
	other := a.busy(j)
	switch {
	case j.runs(s):
		text := fmt.Sprintf("it runs since %s", j.Schedule.local(j.run.began))
		if p := j.run.progress; p.Total > 0 {
			text += fmt.Sprintf(", %d %% of it done", int(100*float64(p.Done)/float64(p.Total)))
		}
		return text
	case s.outcome == Failed:
		times := "once"
		if s.fails > 1 {
			times = fmt.Sprintf("%d times", s.fails)
		}
		return fmt.Sprintf("it failed %s: %s", times, s.failure)
	case s.outcome == Held:
		return cmp.Or(s.host, "another process") + " is at it"
	case s.outcome == NotHere:
		return strings.TrimSuffix("it is not this host's to do: "+s.failure, ": ")
	case j.run != nil:
		return fmt.Sprintf("that of %s runs still", j.Schedule.local(j.run.slot.at))
	case other != nil:
		return fmt.Sprintf("%s of %s runs since %s, and the two do not run at once", other.Name, j.Schedule.local(other.run.slot.at), j.Schedule.local(other.run.began))
	}
	return "nobody has begun with it"
}

// eta is when the try of s that goes on will be done: by its progress once a tenth is done, before by how long the last runs took. It is zero where that is not known, or no try goes on.
func (j *job) eta(s *slot, now time.Time) time.Time {
	if !j.runs(s) {
		return time.Time{}
	}
	r := j.run
	eta := r.began
	switch p := r.progress; {
	case p.Total > 0 && p.Done > 0 && float64(p.Done) >= float64(p.Total)/10:
		share := min(1, float64(p.Done)/float64(p.Total))
		eta = eta.Add(time.Duration(float64(r.heard.Sub(r.began)) / share))
	case len(j.took) > 0:
		var sum time.Duration
		for _, d := range j.took {
			sum += d
		}
		if eta = eta.Add(sum / time.Duration(len(j.took))); !eta.After(now) { // it takes longer than they did
			return time.Time{}
		}
	default:
		return time.Time{}
	}
	if eta.Before(now) {
		return now
	}
	return eta
}

func (j *job) status(now time.Time) JobStatus {
	st := JobStatus{Name: j.Name, Kind: j.Kind, Schedule: j.Schedule.String(), Next: j.next, Last: j.last, LastDone: j.lastDone, Missed: j.missed, Result: j.result}
	if j.seen.IsZero() {
		st.Next = j.Schedule.Next(now)
	}
	if r := j.run; r != nil {
		p := r.progress
		st.Running = &RunStatus{Slot: r.slot.at, Since: r.began, Try: r.slot.tries, PID: p.PID, Phase: p.Phase, Done: p.Done, Total: p.Total, ETA: j.eta(r.slot, now), Deadline: r.slot.deadline}
	}
	if n := len(j.slots); n > 0 {
		if s := j.slots[n-1]; now.Before(s.close) && !j.runs(s) {
			st.Pending = s.status()
			st.Pending.Again = s.begins()
		}
	}
	return st
}

func (s *slot) status() *SlotStatus {
	return &SlotStatus{Slot: s.at, Deadline: s.deadline, Outcome: s.outcome, Host: s.host, Error: s.failure, Tries: s.tries, At: s.ended, Absent: s.absent}
}
