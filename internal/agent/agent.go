// Package agent runs jobs at their hours and keeps services running, without doing any of that work itself.
//
// A job has slots, the instants of its schedule. Several hosts have the same jobs, and on each an Agent holds every slot for pending from its instant until its window closes: at the next slot of the
// job, or some hours later (Job.CatchUp), whichever comes first. As long as a slot is pending the agent has its Worker try it, again and again where it is another host's turn or where it failed,
// until an outcome settles it: it is done, here or elsewhere. That a slot is done once, and not by two, is what the Worker sees to, in the archive and under a lease; the agent has no state that
// outlives it, and begins with the last slot of each job, so that what was missed while the host was down is made up for.
//
// Who waits for a job is told when it will be late, when a slot was not done, and when the job works again. Services are started again when they end.
//
// All hours and waits are those of a Clock, and nothing here starts a process, opens a file or asks a server: Worker, Service and Options.Tell do.
package agent

import (
	"context"
	"log/slog"
	"time"

	"holdfast/internal/metrics"
)

// Clock tells the time, and waits.
type Clock interface {
	Now() time.Time
	// After returns a channel on which something comes when d has passed. The agent may not wait for it any more.
	After(d time.Duration) <-chan time.Time
}

// Job is what is to be done in each slot of a schedule.
type Job struct {
	Name     string   // such as backup; unlike those of other jobs
	Kind     string   // jobs of the same kind do not run at the same time on this host: backups, full or not, and what removes backups are one kind
	Schedule Schedule // off for none

	// Jitter bounds how long after its instant a slot is begun with. How long that is follows from Options.Place and the name, so it is the same on all hosts; half the window is the most.
	Jitter time.Duration

	CatchUp time.Duration // how long after its instant a slot may be begun with; 0 means 12 h

	Leased bool // it is done on one of several hosts, and the archive says by which; otherwise each host does it for itself

	SwallowedBy string // the job in whose slots this one has none: an increment that would be taken when the full backup is; "" for none
}

// Outcome is what became of a slot when a Worker tried it.
type Outcome string

// The outcomes. The first two settle a slot.
const (
	Done      Outcome = "done"      // by this try
	Elsewhere Outcome = "elsewhere" // it is done already, as the archive says: by another host, or by this one before
	Open      Outcome = "open"      // the answer to Look and Claim: it is not done
	Held      Outcome = "held"      // another process has the lease
	NotHere   Outcome = "not-here"  // the server's role forbids it
	Failed    Outcome = "failed"
)

// Ask is what a Worker is asked to do with a slot.
type Ask int

// What there is to ask. Only slots of leased jobs are looked at and claimed.
const (
	Run   Ask = iota // do the job
	Look             // say whether it is done: Elsewhere, Open or Failed
	Claim            // likewise, and where it is not claim to be the one host that tells people so: Result.Claimed
)

func (a Ask) String() string { return [...]string{"run", "look", "claim"}[a] }

// Result is what a Worker answers.
type Result struct {
	Outcome Outcome
	Host    string       // who did it, or holds the lease; "" where it is this host, or not known
	Error   string       // of Failed: what went wrong, in a line; of others why, where there is something to say
	Job     *metrics.Job // what the run came to; nil where there was none
	Claimed bool         // of Claim
}

// Progress is how far a run is.
type Progress struct {
	PID   int    `json:"pid,omitempty"`   // of the process that works; 0 is not known
	Phase string `json:"phase,omitempty"` // in a word or two
	Done  int64  `json:"done,omitempty"`  // bytes
	Total int64  `json:"total,omitempty"` // bytes; 0 is not known
}

// Worker does jobs. Its methods are called from several goroutines.
type Worker interface {
	// Work tries that slot of j, and says what became of it. It returns once all that it has started has ended; when ctx is over it ends that soon and in order.
	// progress may be called at any time until then, from any goroutine.
	Work(ctx context.Context, j Job, slot time.Time, ask Ask, progress func(Progress)) Result
}

// NoticeKind is what people are told of a slot.
type NoticeKind string

// The kinds.
const (
	Late      NoticeKind = "late"      // it will not be done by its deadline
	Absent    NoticeKind = "absent"    // it was not done by its deadline, or before its window closed
	Recovered NoticeKind = "recovered" // people were told that a slot is absent, and this or a later one is done
)

// Notice is what people are to be told.
type Notice struct {
	Job      Job
	Slot     time.Time
	Kind     NoticeKind
	Text     string    // one line
	Deadline time.Time // zero where there is none
	ETA      time.Time // when a run that goes on will be done; zero is not known
}

// Service is what is to run as long as the agent does.
type Service struct {
	Name string // unlike those of other services
	Key  string // what it depends on: another Key after Reload has it started anew

	// Run runs it until ctx is over, and then ends in order. started is called when there is a process, with its id; not calling it is fine.
	// That Run returns otherwise, with an error or without, has it started again.
	Run func(ctx context.Context, started func(pid int)) error
}

// Options say what an agent is to do.
type Options struct {
	Jobs     []Job
	Services []Service
	Worker   Worker // required where there are jobs

	// Tell tells people; nil tells nobody. It is called for one notice at a time, in their order, and holds up nothing but the notices behind it, and the agent's end. Its ctx is not over
	// before it ends: it must bound its time itself.
	Tell func(ctx context.Context, n Notice)

	Place  string       // the archive, for Job.Jitter
	Clock  Clock        // nil is the real one
	Logger *slog.Logger // nil discards
}

// Status is what an agent does at one moment.
type Status struct {
	At       time.Time       `json:"at"`
	Since    time.Time       `json:"since,omitzero"`    // when it was started
	Reloaded time.Time       `json:"reloaded,omitzero"` // when it was given other options last
	Jobs     []JobStatus     `json:"jobs"`
	Services []ServiceStatus `json:"services"`
}

// JobStatus is a job at one moment.
type JobStatus struct {
	Name     string       `json:"name"`
	Kind     string       `json:"kind"`
	Schedule string       `json:"schedule"`
	Next     time.Time    `json:"next,omitzero"` // its next slot
	Running  *RunStatus   `json:"running,omitempty"`
	Pending  *SlotStatus  `json:"pending,omitempty"`  // the newest slot that is not settled, and whose window is open
	Last     *SlotStatus  `json:"last,omitempty"`     // the newest that is settled, or whose window has closed
	LastDone time.Time    `json:"last_done,omitzero"` // the newest slot that is known to be done, wherever
	Missed   int          `json:"missed"`             // slots that were not done, as far as this process knows
	Result   *metrics.Job `json:"-"`                  // what the last run here came to, as the Worker said
}

// SlotStatus is a slot at one moment.
type SlotStatus struct {
	Slot     time.Time `json:"slot"`
	Deadline time.Time `json:"deadline,omitzero"`
	Outcome  Outcome   `json:"outcome,omitempty"` // of the last try; "" before there was one
	Host     string    `json:"host,omitempty"`
	Error    string    `json:"error,omitempty"`
	Tries    int       `json:"tries"`            // how often it was begun with, here
	At       time.Time `json:"at,omitzero"`      // when the last try ended
	Again    time.Time `json:"again,omitzero"`   // of a pending one: when it is tried
	Absent   bool      `json:"absent,omitempty"` // it was not done when it should have been
}

// RunStatus is a try that goes on.
type RunStatus struct {
	Slot     time.Time `json:"slot"`
	Since    time.Time `json:"since"`
	Try      int       `json:"try"` // 1 is the first
	PID      int       `json:"pid,omitempty"`
	Phase    string    `json:"phase,omitempty"`
	Done     int64     `json:"done,omitempty"`
	Total    int64     `json:"total,omitempty"`
	ETA      time.Time `json:"eta,omitzero"`
	Deadline time.Time `json:"deadline,omitzero"`
}

// ServiceStatus is a service at one moment.
type ServiceStatus struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid,omitempty"`   // 0 while it does not run, or is not known
	Since    time.Time `json:"since,omitzero"`  // when it was started last; zero while it does not run
	Restarts int       `json:"restarts"`        // how often it had to be started again, behind changes of its Key
	Error    string    `json:"error,omitempty"` // why it ended last
	Again    time.Time `json:"again,omitzero"`  // while it does not run: when it is started
}
