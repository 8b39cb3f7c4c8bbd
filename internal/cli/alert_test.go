package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/agent"
	"holdfast/internal/cli"
	"holdfast/internal/config"
	"holdfast/internal/notify"
)

// told is what a receiver was told.
type told struct{ path, body string }

// people answers every request with status, and returns its address, which ends in a secret, and what takes all that came since it was called last, by path.
func people(t *testing.T, status int) (string, func() []told) {
	t.Helper()
	var mu sync.Mutex
	var all []told
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, told{strings.TrimPrefix(r.URL.Path, "/hush"), string(body)})
		w.WriteHeader(status)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/hush", func() []told {
		mu.Lock()
		defer mu.Unlock()
		got := all
		all = nil
		slices.SortFunc(got, func(a, b told) int { return strings.Compare(a.path, b.path) })
		return got
	}
}

func paths(all []told) (p []string) {
	for _, one := range all {
		p = append(p, one.path)
	}
	return p
}

// handClock waits until a test has it go on.
type handClock struct {
	tick   chan time.Time
	waited chan struct{} // somebody waits
}

func (handClock) Now() time.Time { return time.Now() }

func (c handClock) After(time.Duration) <-chan time.Time {
	c.waited <- struct{}{}
	return c.tick
}

// Each slot that is absent is told of, also where the one before was told of a moment ago; where nobody heard it, again until somebody does, or the job works.
func TestEachAbsenceIsHeardOf(t *testing.T) {
	var mu sync.Mutex
	status := http.StatusOK
	answers := func(s int) {
		mu.Lock()
		defer mu.Unlock()
		status = s
	}
	got := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e notify.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		w.WriteHeader(status)
		got <- fmt.Sprintf("%s %s %d", e.Result, e.Summary, e.Times)
	}))
	t.Cleanup(server.Close)
	s, err := config.Load(config.Sources{Environ: []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_ALERT_WEBHOOK=" + server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	clock := handClock{make(chan time.Time), make(chan struct{}, 100)}
	ctx, stop := context.WithCancel(t.Context())
	tell := cli.TellsAgain(ctx, s, clock)
	<-clock.waited
	hears := func(what string) {
		t.Helper()
		if one := <-got; one != what {
			t.Errorf("heard %q, want %q", one, what)
		}
	}
	notice := func(kind agent.NoticeKind, text string) {
		tell(t.Context(), agent.Notice{Job: agent.Job{Name: "backup"}, Kind: kind, Text: text})
	}
	pass := func() { clock.tick <- time.Time{}; <-clock.waited } // once all that is due has been told
	notice(agent.Absent, "monday's")
	hears("absent monday's 1")
	notice(agent.Absent, "tuesday's")
	hears("absent tuesday's 2")
	answers(http.StatusNotFound)
	notice(agent.Absent, "wednesday's")
	hears("absent wednesday's 3")
	pass()
	hears("absent wednesday's 3")
	answers(http.StatusOK)
	pass()
	hears("absent wednesday's 3")
	pass() // everybody knows
	answers(http.StatusNotFound)
	notice(agent.Absent, "thursday's")
	hears("absent thursday's 4")
	notice(agent.Recovered, "friday's") // of which monday's and the others were told
	if one := <-got; !strings.HasPrefix(one, "recovered friday's") {
		t.Errorf("heard %q", one)
	}
	pass()
	stop()
	if len(got) > 0 {
		t.Errorf("heard %q, too", <-got)
	}
}

// An absence that an agent claimed, and that nobody has heard of when it ends, the next agent of that host claims and tells of, and none when somebody has.
func TestTheNextAgentTellsWhatNobodyHeard(t *testing.T) {
	var status atomic.Int64
	got := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e notify.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		w.WriteHeader(int(status.Load()))
		got <- fmt.Sprintf("%s %s %s %d", e.Job, e.Result, e.Summary, e.Times)
	}))
	t.Cleanup(server.Close)
	environ := []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_LEASE_HOST=db1", "HOLDFAST_ALERT_WEBHOOK=" + server.URL, "HOLDFAST_SCHEDULE_BACKUP=0 3 * * *"}
	s, err := config.Load(config.Sources{Environ: environ})
	if err != nil {
		t.Fatal(err)
	}
	slot := "HOLDFAST_SLOT=backup@2025-11-21T03:00:00Z"
	claims := func(slot string, want bool) {
		t.Helper()
		if _, _, _, claimed := asChild(t, true, append(slices.Clone(environ), slot), "agent", "slot", "--claim"); claimed != want {
			t.Errorf("%s is claimed: %v, want %v", slot, claimed, want)
		}
	}
	agentStarts := func() (tell func(context.Context, agent.Notice), pass, end func()) {
		clock := handClock{make(chan time.Time), make(chan struct{}, 100)}
		ctx, stop := context.WithCancel(t.Context())
		tell = cli.TellsAgain(ctx, s, clock)
		<-clock.waited
		return tell, func() { clock.tick <- time.Time{}; <-clock.waited }, stop
	}
	hears := func(what string) {
		t.Helper()
		if one := <-got; one != what {
			t.Errorf("heard %q, want %q", one, what)
		}
	}
	absent := agent.Notice{Job: agent.Job{Name: "backup"}, Kind: agent.Absent, Text: "friday's"}

	claims(slot, true)
	claims(slot, true) // the agent ended before it told
	status.Store(http.StatusNotFound)
	tell, _, end := agentStarts()
	tell(t.Context(), absent)
	hears("backup-push absent friday's 1")
	end()
	claims(slot, true) // it was told of, and nobody has heard
	_, pass, end := agentStarts()
	status.Store(http.StatusOK)
	pass()
	hears("backup-push absent a slot was not done when it should have been, and nobody could be told of it then 1")
	claims(slot, false)
	end()
	_, pass, end = agentStarts()
	pass()
	end()
	claims(slot, false)
	next := "HOLDFAST_SLOT=backup@2025-11-22T03:00:00Z"
	claims(next, true)
	claims(next, true) // of this one nobody has heard
	if len(got) > 0 {
		t.Errorf("heard %q, too", <-got)
	}
}

// People hear once that a job fails and once that it works again; a dead man's switch hears of every run, and of success only after it.
func TestPeopleHearOfFailuresAndTheirEnd(t *testing.T) {
	url, heard := people(t, 200)
	env := []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_LEASE_HOST=db1", "HOLDFAST_ALERT_CLUSTER=shop",
		"HOLDFAST_ALERT_SLACK=" + url + "/slack", "HOLDFAST_ALERT_WEBHOOK=" + url + "/web", "HOLDFAST_PING_RETENTION=" + url + "/ping"}
	for i, step := range []struct {
		policy string
		status int
		want   string
		result notify.Result
	}{
		{"{fulll: 2}", 1, "/ping/fail /slack /web", notify.Failed},
		{"{fulll: 2}", 1, "/ping/fail", ""},
		{"{full: 2}", 0, "/ping /ping/start /slack /web", notify.Recovered},
		{"{full: 2}", 0, "/ping /ping/start", ""},
	} {
		status, _, stderr := run(append(env, "HOLDFAST_RETENTION="+step.policy), "retention", "apply")
		got := heard()
		if p := strings.Join(paths(got), " "); status != step.status || p != step.want || strings.Contains(stderr, "hush") {
			t.Fatalf("step %d: status %d, heard %q, want %d and %q; stderr %s", i, status, p, step.status, step.want, stderr)
		}
		for _, one := range got {
			switch {
			case one.path == "/web":
				var e notify.Event
				if err := json.Unmarshal([]byte(one.body), &e); err != nil || e.Result != step.result || e.Job != "retention apply" || e.Host != "db1" || e.Cluster != "shop" ||
					e.Status != step.status || e.Result == notify.Failed && !strings.Contains(e.Detail, "hint: ") || e.Result == notify.Recovered && e.Times != 2 {
					t.Errorf("step %d: event %s (%v)", i, one.body, err)
				}
			case one.path == "/ping" && !strings.Contains(one.body, "nothing is to go"), one.path == "/ping/fail" && !strings.Contains(one.body, "fulll"):
				t.Errorf("step %d: the report of %s is %q", i, one.path, one.body)
			}
		}
	}
}

// Who is told that a check fails is told what it has found; a warning is neither a failure nor its end.
func TestPeopleHearWhatWasFound(t *testing.T) {
	url, heard := people(t, 200)
	env := []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_ALERT_WEBHOOK=" + url + "/web"}
	for _, args := range [][]string{{"ribbon", "--check"}, {"check", "--only", "backup-age"}} {
		status, stdout, stderr := run(env, args...)
		got := heard()
		if status < 2 || len(got) != 1 {
			t.Fatalf("%q: status %d, heard %v, %s%s", args, status, got, stdout, stderr)
		}
		var e notify.Event
		if err := json.Unmarshal([]byte(got[0].body), &e); err != nil || e.Status != status || e.Job != strings.Join(args, " ") || !strings.Contains(e.Detail, strings.TrimSpace(stdout)) || stdout == "" {
			t.Errorf("%q printed %q, and told %s (%v)", args, stdout, got[0].body, err)
		}
	}
	if run(env, "check", "--only", "backup-age", "--submit", "cat >/dev/null"); len(heard()) != 0 {
		t.Error("what is submitted is told of as well")
	}
}

// Monitoring that makes a check is not kept waiting by a receiver that is down.
func TestCheckDoesNotWaitForPeople(t *testing.T) {
	t.Parallel()
	url, heard := people(t, 503)
	env := []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_ALERT_WEBHOOK=" + url + "/web"}
	begin := time.Now()
	status, _, stderr := run(env, "check", "--only", "backup-age")
	if took := time.Since(begin); status != 2 || len(heard()) == 0 || took > 30*time.Second || !strings.Contains(stderr, "could not tell webhook") {
		t.Errorf("status %d after %s, %s", status, took, stderr)
	}
}

// Who has typed a command is not kept waiting by a dead man's switch that is down: it is tried twice.
func TestSwitchDoesNotKeepPeopleWaiting(t *testing.T) {
	t.Parallel()
	url, heard := people(t, 503)
	var stdout, stderr bytes.Buffer
	status := cli.Run(cli.Env{Args: []string{"retention", "apply"}, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Live: true,
		Environ: []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_RETENTION={full: 2}", "HOLDFAST_PING_RETENTION=" + url + "/ping"}})
	if got := strings.Join(paths(heard()), " "); status != 0 || got != "/ping /ping /ping/start" || !strings.Contains(stderr.String(), "could not ping: 127.0.0.1 answered 503") {
		t.Errorf("status %d, heard %q, %s", status, got, stderr.String())
	}
}

// Of what another host does, or what is only looked at, nothing is told.
func TestWhatIsNotDoneIsNotTold(t *testing.T) {
	url, heard := people(t, 200)
	env := []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_RETENTION={full: 2}", "HOLDFAST_LEASE=archive",
		"HOLDFAST_ALERT_WEBHOOK=" + url + "/web", "HOLDFAST_PING_RETENTION=" + url + "/ping"}
	if status, _, stderr := run(append(env, "HOLDFAST_LEASE_HOST=db1"), "retention", "apply"); status != 0 || len(heard()) != 2 {
		t.Fatalf("status %d, %s", status, stderr)
	}
	status, _, stderr := run(append(env, "HOLDFAST_LEASE_HOST=db2"), "retention", "apply")
	if got := heard(); status != 0 || !strings.Contains(stderr, "holds the lease") || len(got) != 0 {
		t.Errorf("status %d, heard %v, %s", status, got, stderr)
	}
	for _, args := range [][]string{{"retention", "plan"}, {"delete", "retain", "1"}, {"verify", "--dry-run"}, {"ribbon"}, {"backup-list"}, {"retention", "apply", "extra"}} {
		if run(env, args...); len(heard()) != 0 {
			t.Errorf("%q is told of", args)
		}
	}
}

// A receiver that refuses fails no job, and shows no secret; it is told again by the next run.
func TestReceiverThatRefuses(t *testing.T) {
	url, heard := people(t, 404)
	env := []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_ALERT_SLACK=" + url + "/slack", "HOLDFAST_PING_RETENTION=" + url + "/ping"}
	for range 2 {
		status, _, stderr := run(append(env, "HOLDFAST_RETENTION={fulll: 2}"), "retention", "apply")
		if got := strings.Join(paths(heard()), " "); status != 1 || got != "/ping/fail /slack" || strings.Count(stderr, "WARNING: ") != 2 || strings.Contains(stderr, "hush") ||
			!strings.Contains(stderr, "could not tell slack that retention apply failed: 127.0.0.1 answered 404") {
			t.Errorf("status %d, heard %q, %s", status, got, stderr)
		}
	}
	if status, _, stderr := run(env, "retention", "apply"); status != 0 || strings.Contains(stderr, "slack") {
		t.Errorf("status %d, %s", status, stderr)
	}
}

func TestAlertTest(t *testing.T) {
	good, heard := people(t, 200)
	bad, _ := people(t, 403)
	prefix := "WALG_FILE_PREFIX=" + t.TempDir()
	status, stdout, stderr := run([]string{prefix, "HOLDFAST_ALERT_SLACK=" + bad, "HOLDFAST_ALERT_WEBHOOK=" + good, "HOLDFAST_ALERT_COMMAND=exec cat >&2"}, "alert", "test")
	got := heard()
	if status != 1 || !strings.Contains(stdout, "webhook  has it: 200\n") || !strings.Contains(stdout, `command  has it: exit status 0: {"job":"alert test"`) ||
		!strings.Contains(stderr, "ERROR: ") || !strings.Contains(stderr, "slack: 127.0.0.1 answered 403") || strings.Contains(stdout+stderr, "hush") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	if len(got) != 1 || !strings.Contains(got[0].body, `"test":true`) {
		t.Errorf("the webhook got %v", got)
	}
	if status, _, stderr := run([]string{prefix}, "alert", "test"); status != 1 || !strings.Contains(stderr, "hint: set HOLDFAST_ALERT_SLACK") {
		t.Errorf("status %d, %s", status, stderr)
	}
}
