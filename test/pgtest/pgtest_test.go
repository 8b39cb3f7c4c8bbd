package pgtest_test

import (
	"debug/buildinfo"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
)

// What the load commits survives a crash, whole.
func TestLoadIsWholeAfterKill(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{})
		load := c.StartLoad(t, 3)
		pgtest.Eventually(t, "100 transactions", func() bool { return load.Committed() >= 100 })
		c.Server.Kill()
		committed, _ := load.Stop()
		c.Start(t)
		// Each worker may have had one commit under way.
		if rows := c.CheckLoad(t); rows < committed || rows > committed+3 {
			t.Errorf("%d transactions were committed, the restarted server has %d", committed, rows)
		}
	})
}

// A copy that is not from one moment does not pass CheckLoad.
func TestCheckLoadSeesDamage(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, pgtest.Newest), pgtest.Options{})
	load := c.StartLoad(t, 1)
	pgtest.Eventually(t, "10 transactions", func() bool { return load.Committed() >= 10 })
	if _, err := load.Stop(); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, `delete from history where n = 3`)
	fake := &recorder{TB: t}
	c.CheckLoad(fake)
	if !fake.failed {
		t.Error("a history with a gap passed")
	}
}

// recorder notes a failure instead of failing.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Errorf(string, ...any) { r.failed = true }

// A program that is built here runs as the account of the servers.
func TestBuildRunsAsServerAccount(t *testing.T) {
	dir := pgtest.Dir(t)
	path := pgtest.Build(t, "./testdata/whoami")
	out, err := pgtest.Command(t, path, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	uid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 && uid == 0 || os.Geteuid() != 0 && uid != os.Geteuid() {
		t.Errorf("ran as user %d, the test as %d", uid, os.Geteuid())
	}
}

// Tests with real daemons run the client that ships.
func TestBuildMakesTheClientThatShips(t *testing.T) {
	if runtime.GOOS+"/"+runtime.GOARCH != "linux/amd64" {
		t.Skip("there is a quick start on linux/amd64 only")
	}
	info, err := buildinfo.ReadFile(pgtest.Build(t, "holdfast/cmd/holdfast-client"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool {
		return s.Key == "-ldflags" && strings.Contains(s.Value, "-E main.entry")
	}) {
		t.Errorf("built with %v", info.Settings)
	}
}
