package drill_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/drill"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// The agent leaves signs of life, and a drill measures by them what would have been lost; where nobody has left one it says so, and measures by what else there is.
func TestHeartbeat(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	const beats = "HOLDFAST_HEARTBEAT=postgres"
	r := s.drill(t, 0, []string{beats})
	if r.RPOOf == "the heartbeat" || !strings.Contains(strings.Join(r.Notes, "\n"), "the copy has no table holdfast.heartbeat") {
		t.Errorf("without one: by %s, notes %q", r.RPOOf, r.Notes)
	}

	env := append([]string{beats, "HOLDFAST_AGENT_LISTEN=off", "HOLDFAST_SCHEDULE_CHECK=off", "HOLDFAST_LEASE_HOST=db1", "HOLDFAST_AGENT_INTERVAL=0"}, s.settings()...)
	agent := s.Command(t, "agent")
	agent.Env = append(agent.Env, env...)
	log := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	agent.Stdout, agent.Stderr = f, f
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait() }()
	pgtest.Eventually(t, "there is a sign of life", func() bool {
		return s.Value(t, `to_regclass('holdfast.heartbeat') is not null`) == "true" && s.Value(t, `(select count(*) from holdfast.heartbeat)`) == "1"
	})
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		b, _ := os.ReadFile(log) // it is shown as far as it goes
		t.Errorf("the agent: %v\n%s", err, b)
	}
	if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), "Left a sign of life of db1 in database postgres") {
		t.Errorf("the agent said (%v):\n%s", err, b)
	}

	// Once more by hand, and what the server does afterwards is no sign of life.
	cmd := s.Command(t, "heartbeat")
	cmd.Env = append(cmd.Env, env...)
	if r := site.Run(t, cmd); r.Status != 0 {
		t.Fatalf("exit status %d: %s", r.Status, r.Stderr)
	}
	s.Switch(t)
	r = s.drill(t, 0, []string{beats, "HOLDFAST_DRILL_RPO=1h"})
	if c := check(t, r, "freshness"); c.Result != drill.Passed || r.RPOOf != "the heartbeat" || r.RPO == nil || *r.RPO > time.Hour.Seconds() || !strings.HasPrefix(c.Text, "the heartbeat is ") {
		t.Errorf("%+v, by %s, notes %q", c, r.RPOOf, r.Notes)
	}
	s.Exec(t, `update holdfast.heartbeat set at = clock_timestamp() - interval '50 seconds'`)
	s.Switch(t)
	if r := s.drill(t, 2, []string{beats, "HOLDFAST_DRILL_RPO=40s"}); r.Reason != drill.ReasonCheck || check(t, r, "freshness").Result != drill.Failed || r.RPOOf != "the heartbeat" {
		t.Errorf("fifty seconds old: %+v", r)
	}
	// Where the last commit is newer by far nobody has left signs of life for a while, and nothing is lost for that. One of a clock that was ahead says nothing.
	s.Exec(t, `update holdfast.heartbeat set at = at - interval '2 hours'`, `insert into holdfast.heartbeat select 'ahead', now() + interval '1 year', pg_current_wal_lsn()`)
	s.Switch(t)
	if r := s.drill(t, 0, []string{beats, "HOLDFAST_DRILL_RPO=1h"}); check(t, r, "freshness").Result != drill.Passed || r.RPOOf != "the last commit" || !strings.Contains(strings.Join(r.Notes, "\n"), "of a clock that was ahead") {
		t.Errorf("two hours old: %+v", r)
	}
	// What only looks like the table is not read.
	s.Exec(t, `drop table holdfast.heartbeat`, `create view holdfast.heartbeat as select now() as at`)
	s.Switch(t)
	if r := s.drill(t, 0, []string{beats}); r.RPOOf == "the heartbeat" {
		t.Errorf("a view is the heartbeat: %+v", r)
	}
}

// A standby leaves no sign of life, and that is no failure; no setting is one.
func TestHeartbeatElsewhere(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 17), pgtest.Options{})
	standby := s.Standby(t, pgtest.Options{})
	cfg := standby.Config()
	cmd := s.Command(t, "heartbeat")
	cmd.Env = append(cmd.Env, "HOLDFAST_HEARTBEAT=postgres", "PGHOST="+cfg["host"], "PGPORT="+cfg["port"], "PGUSER="+cfg["user"])
	if r := site.Run(t, cmd); r.Status != 0 || !strings.Contains(r.Stderr, "This is a standby: nothing to do.") {
		t.Errorf("exit status %d: %s", r.Status, r.Stderr)
	}
	s.Refused(t, 1, []string{"HOLDFAST_HEARTBEAT"}, "heartbeat")
	cmd = s.Command(t, "heartbeat")
	cmd.Env = append(cmd.Env, "HOLDFAST_HEARTBEAT=no_such_database")
	if r := site.Run(t, cmd); r.Status != 1 || !strings.Contains(r.Stderr, "no_such_database") {
		t.Errorf("exit status %d: %s", r.Status, r.Stderr)
	}
}
