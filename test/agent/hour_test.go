package agent_test

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/lease/object"
	"holdfast/internal/store"
	"holdfast/test/pgtest"
)

var hour = flag.Bool("hour", false, "an hour of the agents' time, in which everything happens that may; otherwise the first minutes of one")

const (
	every = 5 * time.Minute  // of the agents' time
	ttl   = 12 * time.Second // of ours

	// How quickly the agents' time passes: between slots; while one is pending; and where that takes long and somebody works, who does so in our time.
	quick, usual, slow = 100, 5, 0.2
)

// hands turn the clock of all agents.
type hands struct {
	file *os.File

	mu    sync.Mutex
	at    time.Time
	speed float64
}

// newHands begins at some time.
func newHands(t testing.TB, at time.Time) *hands {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(pgtest.Dir(t), "clock"), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	h := &hands{file: f, at: at}
	if err := h.turn(0); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, f.Name())
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		last := time.Now()
		for {
			select {
			case <-stop:
				stopped <- f.Close()
				return
			case now := <-time.After(5 * time.Millisecond):
				if err := h.turn(min(now.Sub(last), 100*time.Millisecond)); err != nil { // a machine that stands still misses nothing
					t.Error(err)
				}
				last = now
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *hands) turn(d time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = h.at.Add(time.Duration(float64(d) * h.speed))
	_, err := h.file.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(h.at.UnixNano())), 0)
	return err
}

func (h *hands) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}

func (h *hands) run(speed float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.speed = speed
}

// agents are one on each host.
type agents struct {
	*cluster
	hands *hands
	of    map[*host]*agent
	keys  *object.Keeper
}

// agent is that of a host.
type agent struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// startAgents starts them; their clocks differ.
func startAgents(t testing.TB, c *cluster, h *hands) *agents {
	t.Helper()
	a := archive.New(c.place.Store, archive.Options{})
	all := &agents{cluster: c, hands: h, of: map[*host]*agent{}, keys: object.New(c.place.Store, a.Now, object.Options{})}
	for n, h := range c.hosts {
		h.env = []string{"TEST_CLOCK=" + all.hands.file.Name(), fmt.Sprintf("TEST_CLOCK_AHEAD=%ds", 10*(n-1))}
		all.of[h] = &agent{}
		all.start(t, h)
	}
	t.Cleanup(func() {
		for _, h := range c.hosts {
			_ = all.of[h].cmd.Process.Kill() // it may have ended
			<-all.of[h].ended
			if t.Failed() {
				t.Logf("the agent of %s said at last:\n%s", h.name, h.tail(t, "agent.log", 60))
			}
		}
		for _, pid := range c.running(t) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // what an agent that was killed had begun
		}
	})
	return all
}

func (a *agents) start(t testing.TB, h *host) {
	t.Helper()
	one := a.of[h]
	one.cmd = h.logged(t, h.command(t, "agent"), "agent.log")
	one.ended = a.begin(t, one.cmd)
}

// running lists the processes of Holdfast on the hosts.
func (c *cluster) running(t testing.TB) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range all {
		if exe, err := os.Readlink(link); err != nil || exe != c.binary {
			continue
		}
		called, err := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
		ours := func(h *host) bool { return strings.Contains(string(called), h.settings) }
		if err != nil || !slices.ContainsFunc(c.hosts, ours) { // it has ended, or is another test's
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// holder says who has the lease of backups, once somebody has who took it after token; nil where done is true before.
func (a *agents) holder(t testing.TB, token uint64, done func() bool) (held *object.Status) {
	t.Helper()
	pgtest.Eventually(t, "a host has the lease", func() bool {
		st, err := a.keys.Look(t.Context(), "backup-push")
		if err != nil {
			t.Fatal(err)
		}
		if st.Held && st.Token > token {
			held = st
		}
		return held != nil || done()
	})
	return held
}

// A strike is what happens to who has the lease. It returns what makes that good.
type strike struct {
	name string
	hit  func(t testing.TB, a *agents, h *host, pid int) (mend func())
}

// nothing is to be made good.
func nothing() {}

// signal sends one to a process that may have ended.
func signal(sig syscall.Signal, pids ...int) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig)
	}
}

// strikes are all there are; first those that leave PostgreSQL alone.
var strikes = []strike{
	{"its job is killed", func(t testing.TB, a *agents, h *host, pid int) func() {
		signal(syscall.SIGKILL, pid)
		return nothing
	}},
	{"its agent is killed", func(t testing.TB, a *agents, h *host, pid int) func() {
		signal(syscall.SIGKILL, a.of[h].cmd.Process.Pid)
		<-a.of[h].ended
		return func() { a.start(t, h) }
	}},
	{"its agent and its job are killed", func(t testing.TB, a *agents, h *host, pid int) func() {
		signal(syscall.SIGKILL, a.of[h].cmd.Process.Pid, pid)
		<-a.of[h].ended
		return func() { a.start(t, h) }
	}},
	{"its job stands still", func(t testing.TB, a *agents, h *host, pid int) func() {
		signal(syscall.SIGSTOP, pid)
		return func() { signal(syscall.SIGCONT, pid) }
	}},
	{"its agent and its job stand still", func(t testing.TB, a *agents, h *host, pid int) func() {
		both := []int{a.of[h].cmd.Process.Pid, pid}
		signal(syscall.SIGSTOP, both...)
		return func() { signal(syscall.SIGCONT, both...) }
	}},
	{"it does not reach the store", func(t testing.TB, a *agents, h *host, pid int) func() {
		h.store.cut()
		return func() { h.store.mend(rand.IntN(2) == 0) }
	}},
	{"it reaches neither the store nor etcd", func(t testing.TB, a *agents, h *host, pid int) func() {
		return h.cutOff()
	}},
	{"the primary reaches neither the store nor etcd", func(t testing.TB, a *agents, h *host, pid int) func() {
		if p := a.primary(); p != nil {
			return p.cutOff()
		}
		return nothing
	}},
	{"it becomes the primary", func(t testing.TB, a *agents, h *host, pid int) func() {
		a.switchover(t, h)
		return nothing
	}},
	{"another becomes the primary", func(t testing.TB, a *agents, h *host, pid int) func() {
		p := a.primary()
		for _, next := range a.others(p) {
			if p != nil && next != h {
				a.switchover(t, next)
				break
			}
		}
		return nothing
	}},
	{"the primary is lost", func(t testing.TB, a *agents, h *host, pid int) func() {
		p := a.primary()
		if p == nil {
			return nothing
		}
		p.crash()
		return func() { p.run(t, p.patroni.Path) }
	}},
	{"it is lost", func(t testing.TB, a *agents, h *host, pid int) func() {
		signal(syscall.SIGKILL, a.of[h].cmd.Process.Pid, pid)
		<-a.of[h].ended
		h.crash()
		return func() {
			h.run(t, h.patroni.Path)
			a.start(t, h)
		}
	}},
}

// gentle is how many of them leave PostgreSQL alone.
const gentle = 7

// cutOff leaves h no way to anything but the other servers.
func (h *host) cutOff() (mend func()) {
	h.store.cut()
	h.etcd.cut()
	return func() {
		drop := rand.IntN(2) == 0
		h.store.mend(drop)
		h.etcd.mend(drop)
	}
}

// Three hosts have the same schedule, and clocks that differ. Whoever makes a backup is struck, in whatever way and at whatever moment: each slot has one backup, and one only.
func TestEachSlotHasOneBackup(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("HOLDFAST_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("HOLDFAST_TEST_SEED=%d repeats it as far as timing lets it", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	coming, count := strikes[:gentle], 2
	if *hour {
		coming, count = strikes, int(time.Hour/every)
	}
	c := start(t, map[string]string{
		"HOLDFAST_ROLE": "prefer-replica", "HOLDFAST_LEASE": "archive", "HOLDFAST_LEASE_TTL": ttl.String(),
		"HOLDFAST_SCHEDULE_BACKUP": "*/5 * * * *", "HOLDFAST_SCHEDULE_CHECK": "off", "HOLDFAST_SCHEDULE_ZONE": "UTC",
		"HOLDFAST_AGENT_LISTEN": "off", "HOLDFAST_AGENT_INTERVAL": "0", "WALG_DISK_RATE_LIMIT": "12000000"})
	// So that all slots are in the past for the store, too.
	begin := time.Now().UTC().Truncate(every).Add(-time.Hour - every)
	hands := newHands(t, begin.Add(time.Minute))
	all := startAgents(t, c, hands)
	all.settle(t)

	order := random.Perm(len(coming))
	var token uint64
	for n := range count + 1 {
		slot := begin.Add(time.Duration(n) * every)
		name := "backup@" + slot.Format(time.RFC3339)
		done := func() bool {
			for _, b := range c.backups(t) {
				if b.slot == name {
					return true
				}
			}
			return false
		}
		hands.run(quick)
		pgtest.Eventually(t, "it is time for "+name, func() bool { return !hands.now().Before(slot) })
		hands.run(usual)
		begun, said, mend := time.Now(), "nothing happened", nothing
		if held := all.holder(t, token, done); held != nil && n < count { // nobody is struck in the last slot, whose backup removes what others left
			token = held.Token
			time.Sleep(time.Duration(random.Int64N(int64(3 * time.Second))))
			h, s := c.named(held.Host), coming[order[n%len(order)]]
			said = fmt.Sprintf("%s had the lease (done by then: %v), and %s", h.name, done(), s.name)
			mend = s.hit(t, all, h, held.PID)
			lasts := ttl + time.Duration(random.Int64N(int64(10*time.Second)))
			all.await(t, slot, "it is made good", func() bool { return time.Since(begun) > lasts })
			mend()
		}
		all.await(t, slot, name+" is done", done)
		took := time.Since(begun)
		primary := c.settle(t)
		t.Logf("%s: %s; done %s after its slot began, the primary is %s now", name, said, took.Round(100*time.Millisecond), primary.name)
	}
	hands.run(usual)
	last := begin.Add(time.Duration(count) * every)
	for _, h := range c.hosts {
		pgtest.Eventually(t, h.name+" knows that all is done", func() bool { return all.settled(t, h, last) })
	}
	for _, h := range c.hosts {
		signal(syscall.SIGTERM, all.of[h].cmd.Process.Pid)
		<-all.of[h].ended
		if status := all.of[h].cmd.ProcessState.ExitCode(); status != 0 {
			t.Errorf("the agent of %s ended with status %d", h.name, status)
		}
	}
	of := map[string][]string{}
	for _, b := range c.backups(t) {
		of[b.slot] = append(of[b.slot], b.name)
	}
	for n := range count + 1 {
		name := "backup@" + begin.Add(time.Duration(n)*every).Format(time.RFC3339)
		if len(of[name]) != 1 {
			t.Errorf("%s has the backups %s, want one", name, of[name])
		}
		delete(of, name)
	}
	for slot, names := range of {
		t.Errorf("and there are %s, for slot %q", names, slot)
	}
	for o, err := range store.Walk(t.Context(), c.place.Store, archive.ScheduleDir) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(o.Name, "absent") {
			t.Errorf("people were told that a slot was missed: %s", o.Name)
		}
	}
	c.whole(t)
}

// named returns the host of that name.
func (c *cluster) named(name string) *host {
	for _, h := range c.hosts {
		if h.name == name {
			return h
		}
	}
	panic("no host is called " + name)
}

// working reports whether somebody has the lease of backups.
func (a *agents) working(t testing.TB) bool {
	t.Helper()
	st, err := a.keys.Look(t.Context(), "backup-push")
	if err != nil {
		t.Fatal(err)
	}
	return st.Held
}

// await waits for something while a slot is pending. Time passes slowly towards the end of its window while somebody works, and the test fails where that is reached.
func (a *agents) await(t testing.TB, slot time.Time, what string, cond func() bool) {
	t.Helper()
	for ; !cond(); time.Sleep(100 * time.Millisecond) {
		switch gone := a.hands.now().Sub(slot); {
		case gone > every-15*time.Second: // some clocks are ahead
			t.Fatalf("%s after the slot of %s, and not yet: %s", gone, slot.Format(time.RFC3339), what)
		case gone > every/2 && a.working(t):
			a.hands.run(slow)
		default:
			a.hands.run(usual) // what is waited for is the next try
		}
	}
	a.hands.run(usual)
}

// settled reports whether the agent of h knows that a slot is done.
func (a *agents) settled(t testing.TB, h *host, slot time.Time) bool {
	t.Helper()
	var status struct {
		Jobs []struct {
			Name     string    `json:"name"`
			LastDone time.Time `json:"last_done"`
		} `json:"jobs"`
	}
	said := h.ok(t, "agent", "status", "--json").Stdout
	if err := json.Unmarshal([]byte(said), &status); err != nil {
		t.Fatalf("agent status --json: %v\n%s", err, said)
	}
	for _, j := range status.Jobs {
		if j.Name == "backup" {
			return !j.LastDone.Before(slot)
		}
	}
	t.Fatalf("%s has no job called backup:\n%s", h.name, said)
	return false
}
