package agent_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	schedule "holdfast/internal/agent"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

var day = flag.Bool("day", false, "a day of the agent's time, of which it is seen whether it leaves anything behind; otherwise two hours")

// An agent that has run its jobs all day, each a process of its own, has as many goroutines and open files as after the first hour, and no more memory of its own to
// speak of. It and all that it runs stay below what they may take, idle and at work.
func TestJobsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	hours := 2
	if *day {
		hours = 24
	}
	s := site.New(t, pgtest.Require(t, 17), pgtest.Options{})
	s.Exec(t, `create table t as select n, md5(n::text) || md5((-n)::text) as x from generate_series(1, 400000) n`)
	s.Push(t)

	dir := pgtest.Dir(t)
	h := newHands(t, time.Now().UTC().Truncate(time.Hour).Add(time.Duration(-hours-2)*time.Hour).Add(59*time.Minute))
	address := pgtest.Address(t)
	cmd := s.Command(t, "agent")
	cmd.Path, cmd.Args[0] = pgtest.Build(t, "holdfast/test/agent/fast"), "fast"
	cmd.Env = append(cmd.Env, "TEST_CLOCK="+h.file.Name(), "TEST_CLOCK_AHEAD=0s", "PGDATA="+s.Data, "HOLDFAST_STATE_DIR="+filepath.Join(dir, "state"),
		"HOLDFAST_AGENT_LISTEN="+address, "HOLDFAST_AGENT_SOCKET="+filepath.Join(dir, "wal.sock"), "HOLDFAST_AGENT_INTERVAL=5m", "HOLDFAST_ROLE=any", "HOLDFAST_SCHEDULE_ZONE=UTC",
		"WALG_DELTA_MAX_STEPS=5", "HOLDFAST_SCHEDULE_BACKUP=7 * * * *", "HOLDFAST_SCHEDULE_VERIFY=37 * * * *", "HOLDFAST_SCHEDULE_CHECK=*/10 * * * *",
		`HOLDFAST_RETENTION={"full": 4}`, "HOLDFAST_SCHEDULE_RETENTION=52 * * * *")
	var said pgtest.Log
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	over := false
	t.Cleanup(func() {
		if !over {
			signal(syscall.SIGKILL, append(below(t, cmd.Process.Pid), cmd.Process.Pid)...)
			<-ended
		}
		if t.Failed() {
			t.Logf("the agent said:\n%s", said.String())
		}
	})
	pgtest.Answers(t, "http://"+address+"/metrics")

	// All of them together, as long as the day lasts.
	watched, stop := make(chan int64, 1), make(chan struct{})
	stopped := sync.OnceFunc(func() { close(stop) })
	defer stopped()
	go func() {
		var most int64
		for {
			select {
			case <-stop:
				watched <- most
				return
			case <-time.After(100 * time.Millisecond):
				var sum int64
				for _, pid := range append(below(t, cmd.Process.Pid), cmd.Process.Pid) {
					sum += memory(pid, "smaps_rollup", "Pss:")
				}
				most = max(most, sum)
			}
		}
	}()

	var first, last figures
	for hour := range hours + 1 {
		h.run(240) // a minute takes a quarter of a second
		until := h.now().Truncate(time.Hour).Add(time.Hour)
		for h.now().Before(until) {
			time.Sleep(20 * time.Millisecond)
		}
		h.run(1)
		last = rested(t, s, cmd.Env, cmd.Path, cmd.Process.Pid, address)
		if hour == 1 {
			first = last
		}
	}
	more := func() bool { return last.goroutines > first.goroutines+2 || last.files > first.files+2 }
	for tries := 0; more() && tries < 30; tries++ { // what is about to end goes by itself; what leaks stays
		time.Sleep(time.Second)
		last = rested(t, s, cmd.Env, cmd.Path, cmd.Process.Pid, address)
	}
	stopped()
	most := <-watched
	t.Logf("after an hour: %+v; after %d: %+v; the agent and all that it ran: %d MiB at most", first, hours, last, most>>20)
	if more() {
		t.Errorf("after an hour there were %d goroutines and %d open files, after %d hours %d and %d", first.goroutines, first.files, hours, last.goroutines, last.files)
	}
	if last.own > first.own+6<<20 {
		t.Errorf("memory of the agent's own has grown from %d to %d KiB", first.own>>10, last.own>>10)
	}
	if last.resident > 64<<20 || most > 256<<20 {
		t.Errorf("the agent takes %d MiB idle, want 64; and with all that it runs %d, want 256", last.resident>>20, most>>20)
	}
	if last.processes != 1 { // the daemon
		t.Errorf("%d processes are left of its jobs", last.processes-1)
	}
	for _, job := range []string{"backup", "verify", "retention", "check"} {
		if !*day { // at such a pace a job that takes a little longer on a busy machine is late
			break
		}
		if last.missed[job] > 0 || last.done[job].IsZero() || h.now().Sub(last.done[job]) > 2*time.Hour {
			t.Errorf("%s: done last at %s, and %d slots were missed", job, last.done[job], last.missed[job])
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := <-ended
	if over = true; err != nil {
		t.Errorf("the agent ended with %v", err)
	}
}

// figures are what an agent takes while none of its jobs runs.
type figures struct {
	goroutines, files int
	resident, own     int64 // bytes; own is what is not of the program's file
	processes         int
	missed            map[string]int
	done              map[string]time.Time
}

// rested waits until no job runs, and says what the agent takes then.
func rested(t *testing.T, s *site.Site, env []string, program string, pid int, address string) (f figures) {
	t.Helper()
	pgtest.Eventually(t, "no job runs", func() bool {
		cmd := s.Command(t, "agent", "status", "--json")
		cmd.Path, cmd.Env = program, env
		r := site.Run(t, cmd)
		var st schedule.Status
		if err := json.Unmarshal([]byte(r.Stdout), &st); r.Status != 0 || err != nil {
			t.Fatalf("agent status: exit status %d, %v\n%s%s", r.Status, err, r.Stdout, r.Stderr)
		}
		f.missed, f.done = map[string]int{}, map[string]time.Time{}
		for _, j := range st.Jobs {
			if j.Running != nil {
				return false
			}
			f.missed[j.Name], f.done[j.Name] = j.Missed, j.LastDone
			if j.Name == "check" && j.Last != nil { // each host has its own
				f.done[j.Name] = j.Last.Slot
			}
		}
		f.processes = len(below(t, pid))
		return f.processes <= 1
	})
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			n, err := strconv.ParseFloat(value, 64)
			switch {
			case err != nil:
			case name == "go_goroutines":
				f.goroutines = int(n)
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	f.files, f.resident, f.own = len(entries), memory(pid, "status", "VmRSS:"), memory(pid, "status", "RssAnon:")
	return f
}

// below lists the processes that one has started, and those that these have.
func below(t testing.TB, pid int) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Error(err)
	}
	parents := map[int]int{}
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		rest := b[bytes.LastIndexByte(b, ')')+1:] // behind its name come its state and its parent
		of := strings.Fields(string(rest))
		child, err1 := strconv.Atoi(strings.Split(path, "/")[2])
		parent, err2 := strconv.Atoi(of[1])
		if err1 == nil && err2 == nil {
			parents[child] = parent
		}
	}
	for child := range parents {
		for p := parents[child]; p > 1; p = parents[p] {
			if p == pid {
				pids = append(pids, child)
				break
			}
		}
	}
	return pids
}

// memory reads a line of a file of a process, bytes; 0 of one that has ended.
func memory(pid int, file, line string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(l, line); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64) // 0 of what is no number
			return n << 10
		}
	}
	return 0
}
