package drill_test

import (
	"bufio"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/test/pgtest"
)

var twenty = flag.Bool("twenty", false, "make twenty drills in a row, and draw twenty moments, instead of two")

// several is how many drills are made where one is not enough.
func several() int {
	if *twenty {
		return 20
	}
	return 2
}

// Drills in a row leave no process, no directory, no port, no shared memory, and no change in the archive but their records.
func TestInARow(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	s.drill(t, 0, nil) // the first may make what stays, such as a file that tells of the archive's owner
	home := pgtest.Dir(t)
	before, recorded := tree(t, s.Root), len(s.records(t))
	seen := traces{begun: time.Now()}
	slowest := time.Duration(0)
	for range several() {
		cmd := s.Command(t, "drill", "--json")
		cmd.Env = append(cmd.Env, s.settings("HOME="+home, "TMPDIR="+home, "HOLDFAST_STATE_DIR="+home)...)
		one := time.Now()
		stop := seen.follow(t, cmd)
		s.ran(t, 0, cmd)
		stop()
		slowest = max(slowest, time.Since(one))
	}
	t.Logf("%d drills in %s, the slowest in %s: %d processes, %d objects of shared memory", several(), time.Since(seen.begun).Round(time.Millisecond), slowest.Round(time.Millisecond),
		len(seen.processes), len(seen.shared))
	if len(seen.processes) < 5*several() || len(seen.shared) < several() {
		t.Errorf("of %d drills only %d processes and %d objects of shared memory were seen", several(), len(seen.processes), len(seen.shared))
	}
	seen.gone(t)
	if left, err := os.ReadDir(home); err != nil || len(left) > 0 {
		t.Errorf("in the home directory is %v (%v)", left, err)
	}
	after := tree(t, s.Root)
	records := 0
	for name := range maps.Keys(after) {
		if _, was := before[name]; !was && strings.Contains(name, "/proven/") {
			delete(after, name)
			records++
		}
	}
	if want := several(); records != want || len(s.records(t)) != recorded+want {
		t.Errorf("%d records, want %d more", records, want)
	}
	for name, is := range after {
		if info, err := os.Stat(name); err == nil && info.IsDir() { // that of the records is written to
			continue
		}
		if is != before[name] {
			t.Errorf("the archive has %s, %s; before it was %q", name, is, before[name])
		}
		delete(before, name)
	}
	for name := range before {
		if _, err := os.Stat(name); err != nil {
			t.Errorf("the archive has lost %s: %v", name, err)
		}
	}
}

// traces are what drills have on the host while they run.
type traces struct {
	begun     time.Time
	processes map[process]string // and what they were called
	shared    map[string]bool    // files of shared memory
	ports     []string           // that were listened to
}

// A process is told from a later one of the same number by when it was started.
type process struct{ pid, started int }

// follow notes, every moment until stop is called, what the process that cmd starts has, and all that it has started.
func (s *traces) follow(t *testing.T, cmd *exec.Cmd) (stop func()) {
	t.Helper()
	done, ended := make(chan struct{}), make(chan struct{})
	if s.processes == nil {
		s.processes, s.shared = map[process]string{}, map[string]bool{}
	}
	go func() {
		defer close(ended)
		for {
			for _, p := range startedBy(os.Getpid(), cmd.Path) {
				s.look(p)
			}
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { close(done); <-ended }
}

// startedBy lists the children of a process that run a program.
func startedBy(pid int, program string) (all []int) {
	for _, child := range children(pid) {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", child)); err == nil && exe == program {
			all = append(all, child)
		}
	}
	return all
}

// children lists what any thread of a process has started.
func children(pid int) (all []int) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // it has ended
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

// started returns when a process was, in ticks since the host was, 0 where there is none.
func started(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ") // behind the name, which may have spaces
	f := strings.Fields(rest)
	if len(f) < 20 || f[0] == "Z" {
		return 0
	}
	n, err := strconv.Atoi(f[19])
	if err != nil {
		return 0
	}
	return n
}

// look notes what a process has, and what those have that it has started.
func (s *traces) look(pid int) {
	p := process{pid, started(pid)}
	if p.started == 0 {
		return
	}
	if called, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil {
		s.processes[p] = strings.TrimSpace(strings.ReplaceAll(string(called), "\x00", " "))
	}
	if maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)); err == nil {
		for line := range strings.Lines(string(maps)) {
			if _, file, ok := strings.Cut(line, " /dev/shm/"); ok {
				s.shared["/dev/shm/"+strings.TrimSpace(file)] = true
			}
		}
	}
	if open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)); err == nil {
		listening := listeners(pid)
		for _, fd := range open {
			if to, err := os.Readlink(fd); err == nil && listening[to] != "" {
				s.ports = append(s.ports, fmt.Sprintf("%s by %s", listening[to], s.processes[p]))
			}
		}
	}
	for _, child := range children(pid) {
		s.look(child)
	}
}

// listeners are the sockets of TCP that wait for connections, as /proc/PID/fd names them, with the address as proc_pid_net(5) has it.
func listeners(pid int) map[string]string {
	all := map[string]string{}
	for _, kind := range []string{"tcp", "tcp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, kind))
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if f := strings.Fields(lines.Text()); len(f) > 9 && f[3] == "0A" {
				all["socket:["+f[9]+"]"] = kind + " " + f[1]
			}
		}
		_ = f.Close() // only read
	}
	return all
}

// gone fails the test where anything of it is left, or a port was there.
func (s *traces) gone(t *testing.T) {
	t.Helper()
	for p, called := range s.processes {
		if now := started(p.pid); now == p.started {
			t.Errorf("process %d is left: %s", p.pid, called)
		}
	}
	for file := range s.shared {
		if name, deleted := strings.CutSuffix(file, " (deleted)"); !deleted {
			if _, err := os.Stat(name); err == nil {
				t.Errorf("%s is left", name)
			}
		}
	}
	if len(s.ports) > 0 {
		t.Errorf("somebody listened at %q", slices.Compact(s.ports))
	}
	segments, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(segments)) {
		f := strings.Fields(line)
		for p := range s.processes {
			if len(f) > 13 && f[4] == strconv.Itoa(p.pid) && f[13] >= strconv.FormatInt(s.begun.Unix(), 10) { // who made it, and when: numbers come again
				t.Errorf("a segment of shared memory is left: %s", strings.TrimSpace(line))
			}
		}
	}
}
