package cli_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/agent"
	"holdfast/internal/cli"
	"holdfast/internal/config"
)

// asChild runs a command as an agent does, and returns its exit status and what it said at its end. Where nobody hears it there is nothing said.
func asChild(t *testing.T, heard bool, environ []string, args ...string) (status int, outcome agent.Outcome, host string, claimed bool) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(w.Fd())) // which the command closes, or its end does
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	said := make(chan []byte, 1)
	if !heard {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	home := t.TempDir()
	env := cli.Env{Args: args, Environ: append(environ, "HOLDFAST_REPORT_FD="+strconv.Itoa(fd)), Home: home, Dir: home, Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: &log}
	if heard {
		go func() { b, _ := io.ReadAll(r); said <- b }() // it ends with an error where the test closes r
	}
	status = cli.Run(env)
	if !heard {
		return status, "", "", false
	}
	b := <-said
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	outcome, host, claimed, err = cli.Said(lines[len(lines)-1])
	if err != nil || outcome == "" {
		t.Fatalf("status %d, and it said %q, %v; its log is\n%s", status, b, err, log.String())
	}
	return status, outcome, host, claimed
}

// Of two hosts that have the same slot one does it; the other hears by whom it was done. Whether one asks for a slot changes nothing, and one of those who find it absent tells of it.
func TestASlotIsDoneOnce(t *testing.T) {
	archive := t.TempDir()
	on := func(host, slot string) []string {
		return []string{"WALG_FILE_PREFIX=" + archive, "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_LEASE=archive", "HOLDFAST_LEASE_TTL=1h", "HOLDFAST_LEASE_HOST=" + host, "HOLDFAST_SLOT=retention@" + slot}
	}
	const first, second = "2025-11-21T03:00:00Z", "2025-11-22T03:00:00Z"
	for _, step := range []struct {
		host, slot, command string
		want                agent.Outcome
		by                  string
		claimed             bool
	}{
		{"db1", first, "agent slot", agent.Open, "", false},
		{"db2", first, "agent slot --claim", agent.Open, "", true},
		{"db1", first, "agent slot --claim", agent.Open, "db2", false},
		{"db1", first, "retention apply", agent.Done, "", false},
		{"db2", first, "retention apply", agent.Elsewhere, "db1", false},
		{"db2", first, "agent slot --claim", agent.Elsewhere, "db1", false},
		{"db1", first, "retention apply", agent.Elsewhere, "db1", false},
		{"db2", second, "retention apply", agent.Held, "db1", false}, // which did the one before a moment ago
		{"db1", second, "retention apply", agent.Done, "", false},
	} {
		status, got, by, claimed := asChild(t, true, on(step.host, step.slot), strings.Fields(step.command)...)
		if status != 0 || got != step.want || by != step.by || claimed != step.claimed {
			t.Errorf("%s on %s for %s: status %d, %s by %q, claimed %v; want %s by %q, %v", step.command, step.host, step.slot, status, got, by, claimed, step.want, step.by, step.claimed)
		}
	}
}

// What verify has found it has found: the slot is done, and no other host looks for the same again. Without a slot, too, it is a job that was done.
func TestASlotWithFindingsIsDoneOnce(t *testing.T) {
	archive := t.TempDir()
	sentinel := archive + "/basebackups_005/base_000000010000000000000003_D_000000010000000000000002_backup_stop_sentinel.json"
	if err := os.MkdirAll(filepath.Dir(sentinel), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sentinel, []byte("{}"), 0o644); err != nil { // a delta of nothing
		t.Fatal(err)
	}
	on := func(host string, more ...string) []string {
		return append(more, "WALG_FILE_PREFIX="+archive, "HOLDFAST_STATE_DIR="+t.TempDir(), "HOLDFAST_LEASE=archive", "HOLDFAST_LEASE_TTL=1h", "HOLDFAST_LEASE_HOST="+host)
	}
	slot := "HOLDFAST_SLOT=verify@2025-11-21T03:00:00Z"
	if status, outcome, by, _ := asChild(t, true, on("db1", slot), "verify", "all"); status != 2 || outcome != agent.Done || by != "" {
		t.Errorf("the first: status %d, %s by %q", status, outcome, by)
	}
	if status, outcome, by, _ := asChild(t, true, on("db2", slot), "verify", "all"); status != 0 || outcome != agent.Elsewhere || by != "db1" {
		t.Errorf("the second: status %d, %s by %q", status, outcome, by)
	}
	if status, outcome, by, _ := asChild(t, true, on("db2"), "verify", "all"); status != 0 || outcome != agent.Held || by != "db1" { // which did it a moment ago
		t.Errorf("for no slot: status %d, %s by %q", status, outcome, by)
	}
}

// A host whose clock is ahead does not do what is not due.
func TestASlotThatIsToCome(t *testing.T) {
	archive := t.TempDir()
	for ahead, want := range map[time.Duration]agent.Outcome{3 * time.Hour: agent.Failed, 10 * time.Minute: agent.Done} {
		environ := []string{"WALG_FILE_PREFIX=" + archive, "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_LEASE=archive", "HOLDFAST_SLOT=retention@" + time.Now().Add(ahead).UTC().Format(time.RFC3339)}
		if _, outcome, _, _ := asChild(t, true, environ, "retention", "apply"); outcome != want {
			t.Errorf("in %s: %s, want %s", ahead, outcome, want)
		}
	}
}

// Metrics move to an address that only the agent itself has taken, and stay where they were when another one has.
func TestMetricsMove(t *testing.T) {
	from, to, after, err := cli.MovesMetrics("127.0.0.1:0", func(at string) string { return strings.Replace(at, "127.0.0.1", "localhost", 1) })
	if err != nil || to != from || after != to {
		t.Errorf("from %s to %s, %s: %v", from, to, after, err)
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	from, to, after, err = cli.MovesMetrics("127.0.0.1:0", func(string) string { return other.Addr().String() })
	if err == nil || to != "" || after != from {
		t.Errorf("from %s to %s, %s: %v", from, to, after, err)
	}
}

// An agent that is gone fails nothing, and a job that fails says so.
func TestAChildAndItsAgent(t *testing.T) {
	environ := []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_LEASE=archive", "HOLDFAST_SLOT=retention@2025-11-21T03:00:00Z"}
	if status, _, _, _ := asChild(t, false, environ, "retention", "apply"); status != 0 {
		t.Errorf("nobody listens: status %d", status)
	}
	environ[0] = "WALG_FILE_PREFIX=/none/such"
	if status, outcome, _, _ := asChild(t, true, environ, "retention", "apply"); status != 1 || outcome != agent.Failed {
		t.Errorf("there is no archive: status %d, %s", status, outcome)
	}
	for _, e := range []string{"HOLDFAST_SLOT=tomorrow", "HOLDFAST_REPORT_FD=1", "HOLDFAST_REPORT_FD=many", "HOLDFAST_CONFIG_FD=77777"} {
		var log bytes.Buffer
		env := cli.Env{Args: []string{"settings"}, Environ: []string{e}, Home: t.TempDir(), Stdout: io.Discard, Stderr: &log}
		if status := cli.Run(env); status != 1 || !strings.Contains(log.String(), strings.Split(e, "=")[0]) {
			t.Errorf("%s: status %d, %s", e, status, log.String())
		}
	}
}

// The file of settings that docs/operations.md shows is one, and its schedules are schedules.
func TestExampleOfSettingsForTheAgent(t *testing.T) {
	const path = "../../deploy/agent.yaml"
	ping := t.TempDir() + "/ping"
	if err := os.WriteFile(ping, []byte("https://ping.example.com/1"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := config.Load(config.Sources{File: path, Content: bytes.ReplaceAll(text, []byte("/etc/holdfast/ping"), []byte(ping)), Environ: []string{"AWS_ACCESS_KEY_ID=k", "AWS_SECRET_ACCESS_KEY=s"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []string{s.Agent.Backup, s.Agent.Full, s.Agent.Retention, s.Agent.Verify, s.Agent.Drill} {
		if at, err := agent.ParseSchedule(one, time.UTC); err != nil || at.Off() {
			t.Errorf("%q: %v", one, err)
		}
	}
	operations, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := strings.ReplaceAll(strings.TrimRight(string(text), "\n"), "\n", "\n    ")
	if !strings.Contains(strings.ReplaceAll(string(operations), "\n\n", "\n    \n"), "\n    "+shown+"\n") {
		t.Error("docs/operations.md shows another file than deploy/agent.yaml")
	}
}

func FuzzSaid(f *testing.F) {
	f.Add([]byte(`{"progress":{"Phase":"copy","Done":1,"Total":2}}`))
	f.Add([]byte(`{"traffic":{"Read":5,"Open":{"Calls":1,"Took":[1,2]}}}`))
	f.Add([]byte(`{"end":{"outcome":"held","host":"db3","job":{"Name":"verify"},"archive":{"TimelineOK":{"1":true}}}}`))
	f.Add([]byte(`{"end":null`))
	f.Fuzz(func(t *testing.T, line []byte) {
		once, err := cli.SayAgain(line)
		if err != nil {
			return
		}
		if twice, err := cli.SayAgain(once); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%q is %q, and that is %q, %v", line, once, twice, err)
		}
	})
}
