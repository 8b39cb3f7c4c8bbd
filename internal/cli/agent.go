package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast/internal/agent"
	"holdfast/internal/archive"
	"holdfast/internal/config"
	archiver "holdfast/internal/daemon"
	"holdfast/internal/metrics"
	"holdfast/internal/notify"
)

func (a *app) agent() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run scheduled jobs and the WAL services; serve metrics",
		Long: "Stays, and starts `backup-push`, `retention apply`, `verify`, `drill` and `check` when HOLDFAST_SCHEDULE_BACKUP and its like say so, each as a process of its own. Several hosts\n" +
			"may have the same schedule: one of them does what is due, and the archive says that it is done; where that fails, or its host dies, another one does it. What was\n" +
			"missed while all were down is made up for within HOLDFAST_SCHEDULE_CATCH_UP. With HOLDFAST_AGENT_SOCKET it keeps `daemon` running, with HOLDFAST_AGENT_RECEIVE\n" +
			"`wal-receive`. Prometheus gets what there is to know at HOLDFAST_AGENT_LISTEN; who is told of failures is told when something will be late, and when it was not done.\n\n" +
			"SIGHUP reads the settings anew, and keeps those it had where the new ones are wrong; what is at work goes on. SIGTERM ends what is at work in order: a backup is\n" +
			"abandoned, and what was stored of it removed. docs/operations.md has more, deploy/systemd a unit.",
		Example: "  HOLDFAST_SCHEDULE_BACKUP='0 3 * * * by=06:00' holdfast agent\n  holdfast agent status",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return a.usage(cmd, &unknownError{"agent " + args[0], "it is `agent` or `agent status`"})
			}
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			a.stays.Store(true)
			return a.runAgent(cmd, s)
		},
	}
	targetFlag(cmd)
	cmd.AddCommand(a.agentStatus(), a.agentSlot())
	return cmd
}

// Jobs of the schedule that are done by backups which say so themselves.
const (
	scheduleBackup = "backup"
	scheduleFull   = "full"
)

// scheduled is a job of the schedule.
type scheduled struct {
	name    string // in slots, and for people; its setting is HOLDFAST_SCHEDULE_ and this in capitals
	kind    string // those of one kind do not run at the same time
	text    string // of the setting
	command []string
	each    bool   // each host does it for itself
	within  string // the job in whose slots it has none
}

// schedule lists what there may be in a schedule.
func schedule(c *config.Agent) []scheduled {
	return []scheduled{
		{name: scheduleBackup, kind: "backups", text: c.Backup, command: []string{"backup-push"}, within: scheduleFull},
		{name: scheduleFull, kind: "backups", text: c.Full, command: []string{"backup-push", "--full"}},
		{name: "retention", kind: "backups", text: c.Retention, command: []string{"retention", "apply"}},
		{name: "verify", kind: "verify", text: c.Verify, command: []string{"verify"}},
		{name: "drill", kind: "drill", text: c.Drill, command: []string{"drill"}},
		{name: "drill-random", kind: "drill", text: c.DrillRandom, command: []string{"drill", "random"}},
		{name: "drill-oldest", kind: "drill", text: c.DrillOldest, command: []string{"drill", "oldest"}},
		{name: "check", kind: "check", text: c.Check, command: []string{"check"}, each: true},
	}
}

// agency is an agent at work.
type agency struct {
	app     *app
	cmd     *cobra.Command
	agent   *agent.Agent
	clock   agent.Clock
	traffic *traffic
	figures *metrics.Registry

	telling sync.Mutex              // held while people are told of slots, and while it is remembered who was
	unheard map[string]notify.Event // absences that nobody has heard of yet, by what they are remembered by

	mu       sync.Mutex
	settings *config.Settings // in force
	web      *web             // nil for none
	refused  string           // why the last settings were not taken; "" where they were
	looking  chan struct{}    // has the archive looked at now
}

// runAgent is the agent from its start to its end.
func (a *app) runAgent(cmd *cobra.Command, s *config.Settings) error {
	ctx := cmd.Context()
	orders := make(chan os.Signal, 1)
	signal.Notify(orders, syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Stop(orders)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // who reads the log may leave; the agent goes on

	version, revision, _ := build()
	g := &agency{app: a, cmd: cmd, clock: a.env.Clock, traffic: &traffic{}, settings: s, looking: make(chan struct{}, 1), unheard: map[string]notify.Event{}}
	if g.clock == nil {
		g.clock = wallClock{}
	}
	g.figures = metrics.New(metrics.Options{Release: version, Revision: revision, Store: g.traffic, Agent: g.slots, Process: true})
	opts, err := g.options(a, s)
	if err != nil {
		return err
	}
	g.agent = agent.New(opts) // before anybody can ask for its metrics
	socket, err := a.agentSocket(ctx, s)
	if err != nil {
		return err
	}
	if g.web, err = g.listen(s.Agent.Listen); err != nil {
		return errors.Join(err, socket.Close())
	}
	g.recall(s)
	g.tellSchedule(s, opts)

	ended := make(chan struct{})
	go func() { defer close(ended); g.agent.Run(ctx) }()
	var both sync.WaitGroup
	both.Go(func() { g.answer(socket) })
	both.Go(func() { g.lookAgain(ctx) })
	both.Go(func() { g.tellAgain(ctx) })
	a.notify(daemon.SdNotifyReady)
	unload()
	dog, quiet := a.watchdog()
	defer quiet()
	for working := true; working; {
		select {
		case order := <-orders:
			a.reopenLog()
			if order == syscall.SIGHUP {
				a.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
				g.reload()
				a.notify(daemon.SdNotifyReady)
			}
		case <-dog:
			if g.alive() {
				a.notify(daemon.SdNotifyWatchdog)
			}
		case <-ctx.Done():
			a.log.Info("ending, once what is at work has ended")
			a.notify(daemon.SdNotifyStopping)
			working = false
		}
	}
	for working := true; working; { // a backup that is abandoned may take its time to remove what it has stored
		select {
		case <-ended:
			working = false
		case <-dog:
			if g.alive() {
				a.notify(daemon.SdNotifyWatchdog)
			}
		}
	}
	err = errors.Join(g.web.close(), socket.Close())
	both.Wait()
	return err
}

type wallClock struct{}

func (wallClock) Now() time.Time                         { return time.Now() }
func (wallClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// tellSchedule logs what the agent is going to do.
func (g *agency) tellSchedule(s *config.Settings, opts agent.Options) {
	g.app.log.Info(fmt.Sprintf("the agent of %s is at work", s.Location()))
	for _, j := range opts.Jobs {
		if next := j.Schedule.Next(g.clock.Now()); !next.IsZero() {
			g.app.log.Info(fmt.Sprintf("%s: %s, next at %s", j.Name, j.Schedule, next.Format(time.RFC3339)))
		}
	}
}

// alive reports whether the agent answers.
func (g *agency) alive() bool {
	answered := make(chan struct{})
	go func() { defer close(answered); g.agent.Status() }()
	select {
	case <-answered:
		return true
	case <-time.After(10 * time.Second):
		g.app.log.Error("the agent does not answer itself")
		return false
	}
}

// options makes of settings what the agent is to do. next is the app that has read them.
func (g *agency) options(next *app, s *config.Settings) (agent.Options, error) {
	if err := s.RequireStorage(); err != nil {
		return agent.Options{}, err
	}
	zone := time.Local
	if s.Agent.Zone != "" {
		var err error
		if zone, err = time.LoadLocation(s.Agent.Zone); err != nil {
			return agent.Options{}, fmt.Errorf("HOLDFAST_SCHEDULE_ZONE: %w", err)
		}
	}
	p := &parent{env: next.env, flags: givenFlags(g.cmd, s, next.settingFlags), content: s.Content, log: g.app.log, traffic: g.traffic}
	if s.Lease.Keeper == "" {
		p.environ = append(p.environ, "HOLDFAST_LEASE=archive")
	}
	w := &worker{agency: g, parent: p, settings: s, commands: map[string][]string{}}
	o := agent.Options{Worker: w, Place: s.Location(), Clock: g.clock, Logger: g.app.log, Tell: w.tell}
	var errs []error
	for _, one := range schedule(&s.Agent) {
		at, err := agent.ParseSchedule(one.text, zone)
		if err != nil {
			errs = append(errs, &advised{fmt.Errorf("%s: %w", scheduleSetting(one.name), err), "such as `0 3 * * *` for each day at three, or `off`; docs/settings.md says more"})
			continue
		}
		w.commands[one.name] = one.command
		o.Jobs = append(o.Jobs, agent.Job{
			Name: one.name, Kind: one.kind, Schedule: at, Jitter: cmp.Or(at.Jitter(), s.Agent.Jitter), CatchUp: s.Agent.CatchUp, Leased: !one.each, SwallowedBy: one.within,
		})
	}
	if path := s.Agent.Socket; path != "" {
		if s.Postgres.DataDir == "" {
			errs = append(errs, &advised{errors.New("HOLDFAST_AGENT_SOCKET: the daemon has to know whose WAL it is for"), "set PGDATA to the data directory"})
		}
		o.Services = append(o.Services, p.service("daemon", s.Fingerprint("daemon"), "daemon", path))
	}
	if s.Agent.Receive != "off" {
		command := []string{"wal-receive"}
		if s.Agent.Receive == "synchronous" {
			command = append(command, "--synchronous")
		}
		o.Services = append(o.Services, p.service("wal-receive", s.Fingerprint("wal-receive"), command...))
	}
	if s.Drill.Beat != "off" {
		o.Services = append(o.Services, p.service("heartbeat", s.Fingerprint("heartbeat"), "heartbeat", "--every="+heartbeatEvery.String()))
	}
	return o, errors.Join(errs...)
}

// givenFlags returns the flags that settings were given by, for those who are to have the same settings.
func givenFlags(cmd *cobra.Command, s *config.Settings, settingFlags map[string]string) (flags []string) {
	if s.File != "" {
		flags = append(flags, "--config="+s.File)
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if _, is := settingFlags[f.Name]; is || f.Name == targetStorage || f.Name == "turbo" {
			flags = append(flags, "--"+f.Name+"="+f.Value.String())
		}
	})
	return flags
}

// scheduleSetting is the setting that says when a job is due.
func scheduleSetting(job string) string {
	return "HOLDFAST_SCHEDULE_" + strings.ToUpper(strings.ReplaceAll(job, "-", "_"))
}

// slotOf is a slot as the archive knows it.
func slotOf(j agent.Job, at time.Time) archive.Slot { return archive.Slot{Job: j.Name, At: at.UTC()} }

// service is a command that runs as long as the agent does. It is started anew where what its settings say, or how it is called, has changed.
func (p *parent) service(name, fingerprint string, command ...string) agent.Service {
	return agent.Service{
		Name: name, Key: fmt.Sprintf("%q %s", command, fingerprint),
		Run: func(ctx context.Context, started func(pid int)) error {
			end, err := p.run(ctx, launch{command: command, service: true, started: started})
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				return err
			case end.Error != "":
				return errors.New(end.Error)
			}
			return nil
		},
	}
}

// worker does jobs by starting commands.
type worker struct {
	agency   *agency
	parent   *parent
	settings *config.Settings
	commands map[string][]string // by job
}

// Work implements agent.Worker.
func (w *worker) Work(ctx context.Context, j agent.Job, slot time.Time, ask agent.Ask, progress func(agent.Progress)) agent.Result {
	l := launch{slot: slotOf(j, slot).String(), command: w.commands[j.Name], hear: progress}
	switch ask {
	case agent.Look:
		l.command = []string{"agent", "slot"}
	case agent.Claim:
		l.command = []string{"agent", "slot", "--claim"}
		if len(w.agency.app.senders(w.settings)) == 0 { // a host that tells nobody leaves it to one that does
			l.command = []string{"agent", "slot"}
		}
	}
	l.quiet = l.command[0] == "check" // which says in the log what is not well
	l.started = func(pid int) { progress(agent.Progress{PID: pid, Phase: "starting"}) }
	end, err := w.parent.run(ctx, l)
	if err != nil {
		return agent.Result{Outcome: agent.Failed, Error: firstLine(err)}
	}
	switch {
	case end.Job != nil:
		w.agency.figures.SetJob(*end.Job)
	case end.Outcome == agent.Elsewhere:
		w.agency.figures.SetJob(metrics.Job{Name: w.commands[j.Name][0], Result: metrics.Skipped})
	}
	if ask == agent.Run && (end.Outcome == agent.Done || end.Outcome == agent.Elsewhere) {
		w.recovered(ctx, j, slot, end)
		if j.Leased {
			w.agency.lookSoon()
		}
	}
	return agent.Result{Outcome: end.Outcome, Host: end.Host, Error: end.Error, Job: end.Job, Claimed: end.Claimed}
}

// jobName is what people know a job as.
func (w *worker) jobName(j agent.Job) string { return strings.Join(w.commands[j.Name], " ") }

// about is what it is remembered by who was told what of a job's slots.
func about(j agent.Job) string { return "schedule " + j.Name }

// tell tells people of a slot.
func (w *worker) tell(ctx context.Context, n agent.Notice) {
	a := w.agency.app
	e := newEvent(w.settings, w.jobName(n.Job))
	e.Summary = n.Text
	switch n.Kind {
	case agent.Late:
		e.Result = notify.Late
		a.deliver(ctx, a.senders(w.settings), e, notify.Options{Logger: a.log})
	case agent.Absent:
		e.Result = notify.Absent
		w.agency.telling.Lock()
		defer w.agency.telling.Unlock()
		if a.inform(ctx, w.settings, about(n.Job), &e, always, notify.Options{Logger: a.log}) { // each slot is told of once
			delete(w.agency.unheard, about(n.Job))
		} else {
			w.agency.unheard[about(n.Job)] = e
		}
	case agent.Recovered: // who knows by what has done it is not told again
		e.Result = notify.Recovered
		w.works(ctx, n.Job, e)
	}
}

// recovered tells those who were told that slots of a job were not done that one is, also where it was an agent before this one that has told them.
func (w *worker) recovered(ctx context.Context, j agent.Job, slot time.Time, end *childEnd) {
	e := newEvent(w.settings, w.jobName(j))
	e.Result, e.Summary = notify.Recovered, fmt.Sprintf("the slot of %s is done", slot.Format(time.RFC3339))
	if end.Host != "" {
		e.Summary += " by " + end.Host
	}
	w.works(ctx, j, e)
}

// works tells e to those who believe that a job does not work.
func (w *worker) works(ctx context.Context, j agent.Job, e notify.Event) {
	w.agency.telling.Lock()
	defer w.agency.telling.Unlock()
	delete(w.agency.unheard, about(j))
	w.agency.app.inform(ctx, w.settings, about(j), &e, w.settings.Alerts.Repeat, notify.Options{Logger: w.agency.app.log})
}

// recall takes up the absences of which an agent before this one could tell nobody.
func (g *agency) recall(s *config.Settings) {
	for _, one := range schedule(&s.Agent) {
		what := about(agent.Job{Name: one.name})
		state := g.app.told(s, what)
		if one.text == "" || one.text == "off" || !state.Failing || len(state.Told) > 0 {
			continue
		}
		e := newEvent(s, strings.Join(one.command, " "))
		e.Result, e.Since, e.Times = notify.Absent, state.Since, state.Times
		e.Summary = "a slot was not done when it should have been, and nobody could be told of it then"
		g.unheard[what] = e
	}
}

// untilHeard is how long it takes before people are told again of what nobody could be told of.
const untilHeard = 5 * time.Minute

// tellAgain tells of absences that nobody has heard of until somebody has, or the job works again.
func (g *agency) tellAgain(ctx context.Context) {
	for {
		select {
		case <-g.clock.After(untilHeard):
		case <-ctx.Done():
			return
		}
		s := g.inForce()
		g.telling.Lock()
		for what, e := range g.unheard {
			if ctx.Err() == nil && g.app.informAgain(ctx, s, what, e, notify.Options{Logger: g.app.log}) {
				delete(g.unheard, what)
			}
		}
		g.telling.Unlock()
	}
}

// reload reads the settings anew and has the agent work by them, if they make sense.
func (g *agency) reload() {
	next, s, err := g.app.loadAnew(g.cmd)
	var opts agent.Options
	if err == nil {
		opts, err = g.options(next, s)
	}
	old := g.settings
	if err == nil && s.Location() != old.Location() {
		err = fmt.Errorf("the archive has become %s: for another archive another agent has to be started", s.Location())
	}
	if err == nil && s.StateDir != old.StateDir {
		err = errors.New("HOLDFAST_STATE_DIR has changed: start the agent anew for that")
	}
	moved := err == nil && s.Agent.Listen != old.Agent.Listen
	var to *web
	if moved {
		to, err = g.listenInstead(s.Agent.Listen)
	}
	if err != nil {
		text := g.app.explain(err)
		g.app.log.Error("the new settings are not taken, the agent works by those it had: " + text)
		g.mu.Lock()
		g.refused = text
		g.mu.Unlock()
		return
	}
	if s.Log != old.Log {
		g.app.log.Warn("how to log is settled at the start: start the agent anew for that; its jobs do so at once")
	}
	g.mu.Lock()
	g.settings, g.refused = s, ""
	if moved {
		g.web, to = to, g.web
	}
	g.mu.Unlock()
	if err := to.close(); err != nil {
		g.app.log.Warn("metrics are not served any more where they were", "error", err)
	}
	g.agent.Reload(opts)
	g.lookSoon()
	g.app.log.Info("settings read anew")
	g.tellSchedule(s, opts)
}

// inForce returns the settings that the agent works by.
func (g *agency) inForce() *config.Settings {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.settings
}

// lookSoon has the archive looked at for metrics.
func (g *agency) lookSoon() {
	select {
	case g.looking <- struct{}{}:
	default: // it is going to be
	}
}

// lookAgain has the archive looked at again and again, by a process of its own. That it cannot is logged once, and so is that it can again.
func (g *agency) lookAgain(ctx context.Context) {
	failing := ""
	for ctx.Err() == nil {
		s := g.inForce()
		if s.Agent.Interval > 0 && s.Agent.Listen != "off" {
			err := g.look(ctx, s)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil && err.Error() != failing:
				g.app.log.Warn(fmt.Sprintf("the archive cannot be looked at: %v", err))
				failing = err.Error()
			case err == nil && failing != "":
				g.app.log.Info("the archive can be looked at again")
				failing = ""
			}
		}
		var again <-chan time.Time
		if s.Agent.Interval > 0 {
			again = g.clock.After(s.Agent.Interval)
		}
		select {
		case <-again:
		case <-g.looking:
		case <-ctx.Done():
		}
	}
}

// look has the archive looked at.
func (g *agency) look(ctx context.Context, s *config.Settings) error {
	p := &parent{env: g.app.env, flags: givenFlags(g.cmd, s, g.app.settingFlags), content: s.Content, log: g.app.log, traffic: g.traffic}
	if s.Lease.Keeper == "" {
		p.environ = append(p.environ, "HOLDFAST_LEASE=archive")
	}
	end, err := p.run(ctx, launch{command: []string{"metrics"}, quiet: true, silent: true})
	if err == nil && end.Archive == nil {
		err = errors.New(cmp.Or(end.Error, "nothing was seen of it"))
	}
	if err != nil {
		if ctx.Err() == nil {
			g.figures.ArchiveDown(g.app.waiting(s))
		}
		return err
	}
	g.figures.SetArchive(*end.Archive)
	return nil
}

// slots returns what metrics tell of the agent.
func (g *agency) slots() (m metrics.Agent) {
	st := g.agent.Status()
	for _, j := range st.Jobs {
		if j.Schedule != "off" {
			m.Jobs = append(m.Jobs, metrics.Scheduled{Name: j.Name, Next: j.Next, LastDone: j.LastDone, Running: j.Running != nil, Missed: j.Missed})
		}
	}
	for _, s := range st.Services {
		m.Services = append(m.Services, metrics.Service{Name: s.Name, Up: s.PID != 0, Restarts: s.Restarts})
	}
	return m
}

// web serves metrics.
type web struct {
	server  *http.Server
	address string
	served  chan error
}

// listen serves metrics at an address; nil for off.
func (g *agency) listen(address string) (*web, error) {
	if address == "off" {
		return nil, nil
	}
	socket, err := net.Listen("tcp", address)
	if err != nil {
		return nil, &advised{fmt.Errorf("HOLDFAST_AGENT_LISTEN: %w", err), "give each agent of this host an address of its own, or `off`"}
	}
	w := &web{server: metricsServer(g.figures, "/metrics"), address: socket.Addr().String(), served: make(chan error, 1)}
	go func() { w.served <- w.server.Serve(socket) }()
	g.app.log.Info(fmt.Sprintf("serving metrics at http://%s/metrics", w.address))
	return w, nil
}

// listenInstead serves metrics at an address in place of where they are served, which goes on until the caller ends it, unless it is in the way. Where it is, and the address is taken all the
// same, they are served there again.
func (g *agency) listenInstead(address string) (*web, error) {
	to, err := g.listen(address)
	if g.web == nil || !errors.Is(err, syscall.EADDRINUSE) {
		return to, err
	}
	from := g.web
	g.serves(nil)
	if err := from.close(); err != nil {
		g.app.log.Warn("metrics are not served any more where they were", "error", err)
	}
	if to, err = g.listen(address); err == nil {
		return to, nil
	}
	again, failed := g.listen(from.address)
	g.serves(again)
	return nil, errors.Join(err, failed)
}

// serves notes where metrics are served.
func (g *agency) serves(w *web) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.web = w
}

// close ends it.
func (w *web) close() error {
	if w == nil {
		return nil
	}
	err := w.server.Close()
	if served := <-w.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// agentSocketName is what the socket is called in the state directory that `agent status` asks.
const agentSocketName = "agent.sock"

// agentSocket makes the socket that answers how the agent is. There is one for each archive and host, so there is one agent.
func (a *app) agentSocket(ctx context.Context, s *config.Settings) (*archiver.Socket, error) {
	dir, err := stateDir(s)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, agentSocketName)
	socket, err := archiver.Listen(path)
	if err == nil {
		return socket, nil
	}
	if st, asked := askAgent(ctx, path); asked == nil {
		return nil, &advised{fmt.Errorf("an agent of this archive runs on this host: process %d, since %s", st.PID, st.Since.Format(time.RFC3339)),
			"`holdfast agent status` says what it does; SIGHUP has it read its settings anew"}
	}
	return nil, err
}

// agentState is what an agent answers.
type agentState struct {
	Host     string `json:"host"` // as leases call it
	PID      int    `json:"pid"`
	Archive  string `json:"archive"`
	Settings string `json:"settings,omitempty"` // the file
	Metrics  string `json:"metrics,omitempty"`  // address
	Refused  string `json:"refused,omitempty"`  // why the last settings were not taken
	agent.Status
}

// answer tells who connects how the agent is, until socket is closed.
func (g *agency) answer(socket *archiver.Socket) {
	for {
		conn, err := socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many files are open, for now
			time.Sleep(100 * time.Millisecond)
			continue
		}
		g.mu.Lock()
		st := agentState{Host: hostOf(g.settings), PID: os.Getpid(), Archive: g.settings.Location(), Settings: g.settings.File, Refused: g.refused}
		if g.web != nil {
			st.Metrics = g.web.address
		}
		g.mu.Unlock()
		st.Status = g.agent.Status()
		err = conn.SetDeadline(time.Now().Add(agentPatience))
		if err == nil {
			err = json.NewEncoder(conn).Encode(&st)
		}
		if err = errors.Join(err, conn.Close()); err != nil {
			g.app.log.Debug("somebody asked how the agent is, and did not hear it", "error", err)
		}
	}
}

// maxAgentState bounds what an agent answers, in bytes.
const maxAgentState = 4 << 20

// askAgent asks the agent that listens at path how it is.
func askAgent(ctx context.Context, path string) (*agentState, error) {
	conn, err := (&net.Dialer{Timeout: agentPatience}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // only read
	if err := conn.SetDeadline(time.Now().Add(agentPatience)); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(conn, maxAgentState))
	if err != nil {
		return nil, err
	}
	var st agentState
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, fmt.Errorf("read what the agent says: %w", err)
	}
	return &st, nil
}

func (a *app) agentStatus() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the agent of this host does, and has done",
		Long: "Asks the agent that runs on this host for the same archive, with the same HOLDFAST_STATE_DIR, and prints for each job its schedule, the next slot, and what became of the last\n" +
			"one; what runs; and the services.\n\n" +
			"Exit status: 0; 1 no agent answers.",
		Example: "  holdfast agent status\n  holdfast agent status --json",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if err := s.RequireStorage(); err != nil {
				return err
			}
			dir, err := stateDir(s)
			if err != nil {
				return err
			}
			st, err := askAgent(cmd.Context(), filepath.Join(dir, agentSocketName))
			if err != nil {
				return &advised{fmt.Errorf("no agent of %s answers on this host: %w", s.Location(), err), "start one with `holdfast agent`; it has to have the same archive, account and HOLDFAST_STATE_DIR"}
			}
			if asJSON {
				return a.printJSON(st)
			}
			return printAgent(a.env.Stdout, st)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	targetFlag(cmd)
	return cmd
}

// printAgent prints how an agent is.
func printAgent(out io.Writer, st *agentState) error {
	date := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format(time.RFC3339)
	}
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "agent of %s on %s: process %d, since %s\n", st.Archive, st.Host, st.PID, date(st.Since))
	if !st.Reloaded.IsZero() {
		fmt.Fprintf(w, "settings read anew at %s\n", date(st.Reloaded))
	}
	if st.Refused != "" {
		fmt.Fprintf(w, "newer settings were not taken: %s\n", printable(st.Refused))
	}
	if st.Metrics != "" {
		fmt.Fprintf(w, "metrics at http://%s/metrics\n", st.Metrics)
	}
	fmt.Fprintln(w, "\njob\tschedule\tnext\tlast\toutcome\tby\ttries")
	for _, j := range st.Jobs {
		last := j.Last
		if j.Pending != nil && j.Running == nil {
			last = j.Pending
		}
		row := &agent.SlotStatus{}
		if last != nil {
			row = last
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", j.Name, j.Schedule, date(j.Next), date(row.Slot), cell(cmp.Or(string(row.Outcome), "-")), cell(cmp.Or(row.Host, "-")), row.Tries)
	}
	if len(st.Services) > 0 {
		fmt.Fprintln(w, "\nservice\tpid\tsince\trestarts")
		for _, s := range st.Services {
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\n", s.Name, s.PID, date(s.Since), s.Restarts)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, line := range agentNotes(st) {
		if _, err := fmt.Fprintln(out, printable(line)); err != nil {
			return err
		}
	}
	return nil
}

// agentNotes says in sentences what the tables do not.
func agentNotes(st *agentState) (notes []string) {
	clock := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	for _, j := range st.Jobs {
		if r := j.Running; r != nil {
			text := fmt.Sprintf("%s of %s runs since %s as process %d: %s", j.Name, clock(r.Slot), clock(r.Since), r.PID, cmp.Or(r.Phase, "at work"))
			if r.Total > 0 {
				text += fmt.Sprintf(", %s of %s (%d %%)", humanize.IBytes(uint64(max(0, r.Done))), humanize.IBytes(uint64(r.Total)), int(100*float64(r.Done)/float64(r.Total)))
			}
			if !r.ETA.IsZero() {
				text += ", done at about " + clock(r.ETA)
			}
			if !r.Deadline.IsZero() {
				text += ", wanted by " + clock(r.Deadline)
			}
			notes = append(notes, text)
		}
		if p := j.Pending; p != nil && j.Running == nil {
			text := fmt.Sprintf("%s of %s is not done", j.Name, clock(p.Slot))
			if p.Error != "" {
				text += ": " + p.Error
			}
			if !p.Again.IsZero() {
				text += "; it is tried at " + clock(p.Again)
			}
			notes = append(notes, text)
		} else if l := j.Last; l != nil && l.Error != "" {
			notes = append(notes, fmt.Sprintf("%s of %s: %s", j.Name, clock(l.Slot), l.Error))
		}
		if j.Missed > 0 {
			notes = append(notes, fmt.Sprintf("%s: %d slots were not done", j.Name, j.Missed))
		}
	}
	for _, s := range st.Services {
		if s.Error != "" {
			notes = append(notes, fmt.Sprintf("%s ended last with: %s", s.Name, s.Error))
		}
	}
	if len(notes) > 0 {
		notes = slices.Insert(notes, 0, "")
	}
	return notes
}
