package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/agent"
	"holdfast/internal/archive"
	"holdfast/internal/metrics"
	"holdfast/internal/store/meter"
)

// What an agent tells the commands that it starts, in their environment. None of it is a setting, and what they start in turn gets none of it.
const (
	envSlot   = "HOLDFAST_SLOT"      // which slot of the schedule it is for, as archive.Slot has it
	envReport = "HOLDFAST_REPORT_FD" // the pipe that it writes to what there is to say, as lines of said
	envConfig = "HOLDFAST_CONFIG_FD" // the pipe that it reads the settings file from, as the agent has read it
)

// said is a line that a command writes to its agent. One of its fields is set.
type said struct {
	Progress *agent.Progress `json:"progress,omitempty"`
	Traffic  *meter.Counts   `json:"traffic,omitempty"` // with the store, since it was started
	End      *childEnd       `json:"end,omitempty"`     // the last one
}

// childEnd is what became of a command.
type childEnd struct {
	Outcome agent.Outcome    `json:"outcome"`
	Host    string           `json:"host,omitempty"` // that has done it, or holds the lease
	Error   string           `json:"error,omitempty"`
	Job     *metrics.Job     `json:"job,omitempty"`
	Claimed bool             `json:"claimed,omitempty"`
	Archive *metrics.Archive `json:"archive,omitempty"`
}

// How often a command says how it is getting on, and how long it waits for an agent that does not read.
const (
	progressEvery = 2 * time.Second
	trafficEvery  = 10 * time.Second
	agentPatience = 5 * time.Second
)

// child is what a command knows of the agent that has started it.
type child struct {
	slot   archive.Slot // without a job where it is for none
	config []byte       // of the settings file; nil where the agent has read none

	backup string   // that was made, or does, for the slot
	end    childEnd // without an outcome until that is settled

	mu   sync.Mutex
	pipe *os.File // nil where nobody listens, or not any more
}

// adopted takes what an agent has told this process out of env. nil is that none has.
func adopted(env *Env) (*child, error) {
	told := map[string]string{}
	env.Environ = slices.DeleteFunc(slices.Clone(env.Environ), func(e string) bool {
		name, value, _ := strings.Cut(e, "=")
		ours := name == envSlot || name == envReport || name == envConfig
		if ours {
			told[name] = value
			_ = os.Unsetenv(name) // what is started with our own environment: it is not for them
		}
		return ours
	})
	if len(told) == 0 {
		return nil, nil
	}
	env.Live = false
	c := &child{}
	var err error
	if text := told[envSlot]; text != "" {
		if c.slot, err = archive.ParseSlot(text); err != nil {
			return nil, fmt.Errorf("%s: %w", envSlot, err)
		}
	}
	if c.pipe, err = inherited(told[envReport]); err != nil {
		return nil, fmt.Errorf("%s: %w", envReport, err)
	}
	from, err := inherited(told[envConfig])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", envConfig, err)
	}
	if from != nil {
		defer from.Close() // only read
		if c.config, err = io.ReadAll(io.LimitReader(from, maxConfig)); err != nil {
			return nil, fmt.Errorf("%s: %w", envConfig, err)
		}
	}
	return c, nil
}

// maxConfig bounds what is read of a settings file, in bytes; what is larger no agent has taken.
const maxConfig = 2 << 20

// inherited returns the pipe that has that number; nil for "".
func inherited(number string) (*os.File, error) {
	if number == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(number)
	var st syscall.Stat_t
	if err == nil {
		err = syscall.Fstat(fd, &st)
	}
	if err != nil || fd <= 2 || st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
		return nil, fmt.Errorf("%q is no pipe that an agent has opened", number)
	}
	syscall.CloseOnExec(fd)
	if err := syscall.SetNonblock(fd, true); err != nil { // so that there are deadlines
		return nil, err
	}
	return os.NewFile(uintptr(fd), "agent"), nil
}

// inSlot reports whether the command is to do what is due in a slot.
func (c *child) inSlot() bool { return c != nil && c.slot.Job != "" }

// elsewhere reports whether the slot was done already.
func (c *child) elsewhere() bool { return c != nil && c.end.Outcome == agent.Elsewhere }

// says tells the agent. Where that is gone nobody is told from then on, which fails nothing.
func (c *child) says(line said) {
	if c == nil {
		return
	}
	b, err := json.Marshal(line)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || c.pipe == nil {
		return
	}
	err = c.pipe.SetWriteDeadline(time.Now().Add(agentPatience))
	if err == nil {
		_, err = c.pipe.Write(append(b, '\n'))
	}
	if err != nil {
		_ = c.pipe.Close() // the agent is gone, or stands still: what was written of the line is nothing
		c.pipe = nil
	}
}

// every has the agent told what line returns, again and again until stop is called.
func (c *child) every(pause time.Duration, line func() said) (stop func()) {
	if c == nil {
		return func() {}
	}
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.says(line())
			case <-done:
				return
			}
		}
	})
	return func() { close(done); wait.Wait() }
}

// made notes which backup the slot has.
func (c *child) made(backup string) {
	if c != nil {
		c.backup = backup
	}
}

// settles notes what became of the slot.
func (c *child) settles(o agent.Outcome, host string) {
	if c != nil {
		c.end.Outcome, c.end.Host = o, host
	}
}

// tellAgent tells the agent what the command came to.
func (a *app) tellAgent(err error, status int) {
	c := a.child
	if c == nil {
		return
	}
	traffic := a.traffic.Read()
	c.says(said{Traffic: &traffic})
	if a.job != nil && a.job.Result != metrics.Skipped {
		c.end.Job = a.job
	}
	switch {
	case err != nil && !a.judged(err, status):
		c.end.Outcome, c.end.Host = agent.Failed, ""
	case c.end.Outcome == "":
		c.end.Outcome = agent.Done
	}
	if err != nil {
		c.end.Error = firstLine(err)
	}
	c.says(said{End: &c.end})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pipe != nil {
		_ = c.pipe.Close() // each line was written for itself
		c.pipe = nil
	}
}

// judged reports whether err is what the command has found, which it would find again, and not that it could not do what it was to do.
func (a *app) judged(err error, status int) bool {
	if a.run == nil || !errors.As(err, new(*exit)) {
		return false
	}
	switch job, _, _ := strings.Cut(a.run.job, " "); job {
	case "backup-push":
		return status == exitCorrupt
	case "verify", "drill":
		return status == 2
	case "check":
		return status == 1 || status == 2
	}
	return false
}

// found reports whether err, with which what the command does has ended under ctx, is what it has found: it is done.
func (a *app) found(ctx context.Context, err error) bool {
	var coded *exit
	return ctx.Err() == nil && errors.As(err, &coded) && a.judged(err, coded.code)
}

// notices has the agent told how far the command is, until stop is called.
func (c *child) notices(p progress) (stop func()) {
	return c.every(progressEvery, func() said {
		done, total := p.Bytes()
		return said{Progress: &agent.Progress{PID: os.Getpid(), Phase: p.Phase(), Done: done, Total: total}}
	})
}

// parent starts commands as children of an agent, and hears what they say.
type parent struct {
	env     Env
	flags   []string // of settings
	environ []string // beside the environment of the agent
	content []byte   // of the settings file; nil for none
	log     *slog.Logger
	traffic *traffic
}

// launch says what to start.
type launch struct {
	command []string
	slot    string // "" for none
	service bool   // it ends with the agent, whatever that ends by; others go on where it is killed
	quiet   bool   // its standard output goes nowhere
	silent  bool   // likewise its log
	started func(pid int)
	hear    func(agent.Progress)
}

// run starts a command and waits for its end. When ctx is over it is asked to end, and waited for all the same. An error is that nothing is known of its end.
func (p *parent) run(ctx context.Context, l launch) (*childEnd, error) {
	if l.service { // what it is to end with is the thread that has started it
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
	}
	hear, say, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer hear.Close() // only read
	cmd := exec.Command(p.env.Program, slices.Concat(l.command, p.flags)...)
	cmd.Dir = p.env.Dir
	cmd.Env = append(slices.Concat(p.env.Environ, p.environ), envReport+"=3")
	cmd.ExtraFiles = []*os.File{say}
	if l.slot != "" {
		cmd.Env = append(cmd.Env, envSlot+"="+l.slot)
	}
	if p.content != nil {
		read, write, err := os.Pipe()
		if err != nil {
			return nil, errors.Join(err, say.Close())
		}
		defer read.Close() // it is the child's
		cmd.Env = append(cmd.Env, envConfig+"=4")
		cmd.ExtraFiles = append(cmd.ExtraFiles, read)
		go func() {
			_, _ = write.Write(p.content) // a child that does not read it has ended, or says so
			_ = write.Close()
		}()
	}
	if !l.quiet {
		cmd.Stdout = p.env.Stdout
	}
	if !l.silent {
		cmd.Stderr = p.env.Stderr
	}
	cmd.WaitDelay = agentPatience
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what is typed at a terminal is the agent's to pass on
	if l.service {
		endWithUs(cmd.SysProcAttr)
	}
	err = cmd.Start()
	_ = say.Close() // it is the child's
	if err != nil {
		for _, f := range cmd.ExtraFiles[1:] {
			_ = f.Close() // who writes it ends
		}
		return nil, err
	}
	if l.started != nil {
		l.started(cmd.Process.Pid)
	}
	id := cmd.Process.Pid
	var end *childEnd
	heard := make(chan struct{})
	go func() { defer close(heard); end = p.listen(hear, id, l.hear) }()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) }) // one that has ended needs none
	err = cmd.Wait()
	stop()
	_ = hear.SetReadDeadline(time.Now().Add(time.Second)) // somebody else may have the pipe open still
	<-heard
	p.traffic.ended(id)
	switch {
	case end != nil:
		return end, nil
	case err == nil:
		err = errors.New("it ended without a word")
	}
	return nil, fmt.Errorf("%s: %w", l.command[0], err)
}

// maxSaid bounds a line of a child, in bytes: an archive of many backups makes a long one.
const maxSaid = 32 << 20

// listen hears what the child with that process id says until it ends, and returns its end; nil where it said none.
func (p *parent) listen(r io.Reader, id int, hear func(agent.Progress)) (end *childEnd) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxSaid)
	for lines.Scan() {
		line, err := parseSaid(lines.Bytes())
		switch {
		case err != nil:
			p.log.Debug("a child said what makes no sense", "pid", id, "error", err)
		case line.Progress != nil && hear != nil:
			hear(*line.Progress)
		case line.Traffic != nil:
			p.traffic.set(id, *line.Traffic)
		case line.End != nil:
			end = line.End
		}
	}
	return end
}

// parseSaid reads a line of a child.
func parseSaid(b []byte) (line said, err error) {
	err = json.Unmarshal(b, &line)
	return line, err
}

// traffic is what all that an agent has started did with stores.
type traffic struct {
	mu    sync.Mutex
	past  meter.Counts // of those that have ended
	alive map[int]meter.Counts
}

// Read implements metrics.Traffic.
func (t *traffic) Read() meter.Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum := t.past
	for _, c := range t.alive {
		sum = sum.Plus(c)
	}
	return sum
}

func (t *traffic) set(id int, c meter.Counts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.alive == nil {
		t.alive = map[int]meter.Counts{}
	}
	t.alive[id] = c
}

// ended adds what a process did to the past.
func (t *traffic) ended(id int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, ok := t.alive[id]
	if !ok {
		return
	}
	for _, o := range []*meter.Op{&c.Open, &c.Put, &c.Stat, &c.List, &c.Delete, &c.Copy} {
		o.Running = 0
	}
	t.past = t.past.Plus(c)
	delete(t.alive, id)
}
