package recovertable_test

import (
	"os"
	"regexp"
	"testing"

	"holdfast/test/site"
)

// What root makes runs as another account, which can take the WAL that is laid ready for it.
func TestAsRoot(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("has root drop to another account, which only root can: run it as root")
	}
	s := open(t, 15)
	s.Exec(t, `create table orders as select i as id, md5(i::text) as note from generate_series(1, 2000) i`)
	s.Push(t)
	want := s.hash(t, "postgres", "orders")
	s.Exec(t, `drop table orders`)
	s.Switch(t)
	cmd := s.command(t, "postgres.orders", "--before-drop")
	cmd.SysProcAttr = nil
	cmd.Env = append(cmd.Env, "HOLDFAST_LOG_LEVEL=DEVEL", "HOLDFAST_STATE_DIR="+t.TempDir())
	r := site.Run(t, cmd)
	if r.Status != 0 {
		t.Fatalf("exit status %d\n%s", r.Status, r.Stderr)
	}
	s.NoCopies(t, s.dir)
	if got := s.hash(t, "postgres", "orders"); got != want {
		t.Errorf("it has %s, want %s", got, want)
	}
	if laid := regexp.MustCompile(`([0-9]+) segments were laid ready, ([0-9]+) of them taken`).FindStringSubmatch(r.Stderr); laid == nil || laid[1] == "0" || laid[2] == "0" {
		t.Errorf("laid ready: %q, in\n%s", laid, r.Stderr)
	}
}
