package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A usage is what one measured piece of work took.
type usage struct {
	Wall   float64 // seconds
	CPU    float64 // seconds of user and system time of all processes, the server's included
	Server float64 // the server's part of CPU
	Read   int64   // bytes that the processes read, of files and of whatever else, without the server
	Peak   int64   // largest resident memory of the tree of processes, bytes, without the server
}

// poll is how often the memory of a tree of processes is looked at.
const poll = 20 * time.Millisecond

// A meter measures the processes that one piece of work starts.
type meter struct {
	b      *bench
	known  map[int]bool // our children that are not measured: servers
	maxRSS int64        // bytes, of any one process we waited for
}

// measure runs work, which starts processes through m.run only, and says what they took. The processes of a tree count wherever they hang:
// we are the reaper of those whose parents are gone, and wait for them. Only then does measure return, but Wall is when work was done.
// server is a server's first process, or 0.
func (b *bench) measure(ctx context.Context, server int, work func(m *meter) error) (usage, error) {
	m := &meter{b: b, known: map[int]bool{}}
	for _, pid := range children(os.Getpid()) {
		m.known[pid] = true
	}
	cpu, serverCPU, bytes := childrenCPU(), treeCPU(server), bytesRead()
	stop, peak := make(chan struct{}), make(chan int64)
	go m.watch(stop, peak)
	begin := time.Now()
	err := work(m)
	u := usage{Wall: time.Since(begin).Seconds()}
	m.reapOrphans(ctx)
	close(stop)
	u.Peak = max(<-peak, m.maxRSS)
	u.Server = treeCPU(server) - serverCPU
	u.CPU = childrenCPU() - cpu + u.Server
	u.Read = bytesRead() - bytes
	return u, err
}

// run runs a command of b.command to its end. The error has the end of what it printed.
func (m *meter) run(cmd *exec.Cmd) error {
	err := m.b.run(cmd)
	if cmd.ProcessState != nil {
		m.note(cmd.ProcessState.SysUsage().(*syscall.Rusage))
	}
	return err
}

// note takes the memory of a process that has ended, or of the largest it has waited for, which no poll can miss. Between fork and exec a
// child counts our own memory as its, so what is not above that says nothing.
func (m *meter) note(used *syscall.Rusage) {
	if rss := used.Maxrss << 10; rss > memory(os.Getpid()).peak {
		m.maxRSS = max(m.maxRSS, rss)
	}
}

// watch looks at the memory of the tree until stop is closed, and sends the largest sum it saw.
func (m *meter) watch(stop <-chan struct{}, peak chan<- int64) {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	self := memory(os.Getpid()).name
	var most int64
	for {
		select {
		case <-stop:
			peak <- most
			return
		case <-tick.C:
		}
		var sum int64
		for _, root := range m.roots() {
			for _, pid := range tree(root) {
				mem := memory(pid)
				if mem.name == self {
					continue // between fork and exec our memory is its own
				}
				sum += mem.now
				most = max(most, mem.peak)
			}
		}
		most = max(most, sum)
	}
}

// roots lists our children that belong to the measured work.
func (m *meter) roots() []int {
	return slices.DeleteFunc(children(os.Getpid()), func(pid int) bool { return m.known[pid] })
}

// orphanTime is how long processes that outlive their command may work on: pgBackRest's asynchronous archiver, a prefetch.
const orphanTime = time.Minute

// reapOrphans waits for the processes that became ours when their parents ended, so that their times are counted. Those that do not end are killed.
func (m *meter) reapOrphans(ctx context.Context) {
	for deadline := time.Now().Add(orphanTime); ; time.Sleep(5 * time.Millisecond) {
		orphans := m.roots()
		if len(orphans) == 0 {
			return
		}
		for _, pid := range orphans {
			if ctx.Err() != nil || time.Now().After(deadline) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			var used syscall.Rusage
			if got, _ := syscall.Wait4(pid, nil, syscall.WNOHANG, &used); got == pid {
				m.note(&used)
			}
		}
	}
}

// becomeReaper makes processes whose parents are gone children of this one.
func becomeReaper() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// childrenCPU returns the processor seconds of all processes waited for so far, by us or by those we waited for.
func childrenCPU() float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &r); err != nil {
		panic(err) // only wrong arguments fail
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
}

// bytesRead returns how many bytes this process has read, and all those that were waited for: rchar of /proc/self/io in proc(5). Our own part, what watch
// looks at, is some 100 KB a second.
func bytesRead() int64 {
	b, _ := os.ReadFile("/proc/self/io")
	first, _, _ := strings.Cut(string(b), "\n")
	n, _ := strconv.ParseInt(strings.TrimPrefix(first, "rchar: "), 10, 64)
	return n
}

// clockTick is the unit of times in /proc/PID/stat, USER_HZ: 100 a second on every Linux of ours.
const clockTick = 0.01

// treeCPU returns the processor seconds of process pid, of its descendants, and of those they have waited for.
func treeCPU(pid int) float64 {
	var ticks int64
	for _, pid := range tree(pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		ticks += statTicks(string(b))
	}
	return float64(ticks) * clockTick
}

// statTicks adds up utime, stime, cutime and cstime of a line of /proc/PID/stat, fields 14 to 17 in proc(5).
func statTicks(stat string) (ticks int64) {
	// The program's name, in parentheses, may hold anything; what follows begins with field 3.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 15 {
		return 0
	}
	for _, f := range fields[11:15] {
		n, _ := strconv.ParseInt(f, 10, 64)
		ticks += n
	}
	return ticks
}

// tree lists process pid and its descendants; nothing for 0.
func tree(pid int) []int {
	if pid == 0 {
		return nil
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children(all[i])...)
	}
	return all
}

// children lists the processes that the threads of pid started, dead ones included that nobody has waited for.
func children(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the only error is a bad pattern
	for _, list := range lists {
		b, _ := os.ReadFile(list) // a thread that has ended has none
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// resident is a process's resident memory, bytes, and the name of its program.
type resident struct {
	name      string
	now, peak int64
}

// memory reads Name, VmRSS and VmHWM of process pid; zero when it has ended.
func memory(pid int) (mem resident) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		kib, _ := strconv.ParseInt(strings.TrimSuffix(value, " kB"), 10, 64)
		switch key {
		case "Name":
			mem.name = value
		case "VmRSS":
			mem.now = kib << 10
		case "VmHWM":
			mem.peak = kib << 10
		}
	}
	return mem
}

// command prepares a program to run as the account, with only env and what every program needs for environment, in a process group that
// ctx's end kills. Its output goes to the log file: a pipe would keep us waiting for what it leaves running.
func (b *bench) command(ctx context.Context, env []string, program string, args ...string) *exec.Cmd {
	// Debian has wrappers in the path that choose a version.
	if path := filepath.Join(b.pg.Dir, program); b.pg.Dir != "" && !filepath.IsAbs(program) {
		if _, err := os.Stat(path); err == nil {
			program = path
		}
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = b.dir
	cmd.Env = append([]string{"PATH=" + b.pg.Dir + ":/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=" + b.dir}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: b.account.credential()}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Stdout, cmd.Stderr = b.log, b.log
	return cmd
}

// run runs a command of b.command to its end. The error has the end of what it printed.
func (b *bench) run(cmd *exec.Cmd) error {
	from, err := b.log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w%s", strings.Join(cmd.Args, " "), err, b.logged(from))
	}
	return nil
}

// logged returns the last lines of what was logged from an offset on, ready to be put behind an error.
func (b *bench) logged(from int64) string {
	text, err := io.ReadAll(io.NewSectionReader(b.log, from, 1<<20))
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\n    " + strings.Join(lines[max(0, len(lines)-8):], "\n    ")
}
