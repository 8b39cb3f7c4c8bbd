package walfetch_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/instance"
	"holdfast/internal/store/file"
	"holdfast/test/pgtest"
)

// A standby that knows nothing but the archive follows a primary under load, sits out an outage of the archive, and a
// server in recovery whose archive is gone stops instead of opening.
func TestServerReplaysFromTheArchive(t *testing.T) {
	t.Parallel()
	p := pgtest.Require(t, 15)
	program := pgtest.Build(t, "holdfast/cmd/holdfast")
	dir := pgtest.Dir(t)
	home := filepath.Join(dir, "archive")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, home)
	command := func(what string) string {
		return fmt.Sprintf("WALG_LOG_LEVEL=DEVEL WALG_FILE_PREFIX=%s %s %s", home, program, what)
	}

	primary := pgtest.New(t, p, pgtest.Options{SegmentSize: 1 << 20, Settings: map[string]string{
		"archive_mode": "on", "archive_command": command("wal-push %p"), "full_page_writes": "on"}})
	load := primary.StartLoad(t, 4)
	restore := map[string]string{"primary_conninfo": "", "restore_command": command("wal-fetch %f %p"), "wal_retrieve_retry_interval": "100ms"}
	standby := primary.Standby(t, pgtest.Options{Settings: restore})

	follows := func() {
		t.Helper()
		lsn := primary.Value(t, "pg_switch_wal()")
		pgtest.Eventually(t, "the standby has replayed "+lsn, func() bool {
			return standby.Value(t, "pg_last_wal_replay_lsn() >= $1::pg_lsn", lsn) == "true"
		})
	}
	follows()
	standby.Stop(t)
	pgtest.Eventually(t, "some WAL was written", func() bool { return load.Committed() > 20_000 })
	standby.Start(t) // with a good deal to catch up on
	if _, err := load.Stop(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "what the load sent last is done", func() bool {
		return primary.Value(t, "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()") == "0"
	})
	follows()
	if got, want := standby.CheckLoad(t), primary.CheckLoad(t); got != want {
		t.Errorf("the standby has %d transactions, the primary %d", got, want)
	}
	served := "fetched ahead: true"
	if log := logOf(t, standby); !strings.Contains(log, served) {
		t.Errorf("no segment was fetched ahead; the log does not say %q", served)
	}

	// An outage: the standby goes on asking.
	if err := os.Rename(home, home+".away"); err != nil {
		t.Fatal(err)
	}
	before := len(logOf(t, standby))
	pgtest.Eventually(t, "the standby has asked in vain", func() bool {
		return strings.Count(logOf(t, standby)[before:], "ERROR: ") > 2
	})
	if err := os.Rename(home+".away", home); err != nil {
		t.Fatal(err)
	}
	primary.Exec(t, "create table after_outage as select 1 as x")
	follows()
	if got := standby.Value(t, "select count(*) from after_outage"); got != "1" {
		t.Errorf("after the outage: %s rows", got)
	}
	standby.Stop(t)

	// The same data directory, told to recover and open. Its archive is gone.
	if err := os.Rename(filepath.Join(standby.Data, "standby.signal"), filepath.Join(standby.Data, "recovery.signal")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(home, home+".away"); err != nil {
		t.Fatal(err)
	}
	restore["hot_standby"] = "off"
	server, err := instance.Start(t.Context(), instance.Options{Programs: p, DataDir: standby.Data, SocketDir: pgtest.Dir(t), Settings: restore})
	if err == nil {
		server.Kill()
		t.Fatal("the server opened although its archive was gone")
	}
	if !strings.Contains(err.Error(), "200") {
		t.Errorf("the server does not say that restore_command exited with 200: %v", err)
	}
	data, _, err := control.Read(filepath.Join(standby.Data, control.Name))
	if err != nil || data.State == control.InProduction || data.CheckpointTimeline != 1 {
		t.Errorf("state %v, timeline %d, %v; want it still in recovery", data.State, data.CheckpointTimeline, err)
	}

	// And with the archive back it opens, with all there is.
	if err := os.Rename(home+".away", home); err != nil {
		t.Fatal(err)
	}
	opened := pgtest.Attach(t, p, standby.Data, pgtest.Options{Settings: restore})
	if got, want := opened.CheckLoad(t), primary.CheckLoad(t); got != want {
		t.Errorf("recovered %d transactions of %d", got, want)
	}
	pgtest.Eventually(t, "nothing is left of what was fetched ahead", func() bool {
		left, err := filepath.Glob(filepath.Join(opened.Data, "pg_wal", ".*"))
		return err == nil && len(left) == 0
	})
}

func logOf(t *testing.T, c *pgtest.Cluster) string {
	t.Helper()
	b, err := os.ReadFile(c.Server.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Killed at any moment, wal-fetch and the process that fetches ahead leave nothing that is taken for a whole file.
func TestKilledFetch(t *testing.T) {
	t.Parallel()
	program := pgtest.Build(t, "holdfast/cmd/holdfast")
	home := t.TempDir()
	s, err := file.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for no := 1; no <= 12; no++ {
		put(t, s, name(no), segment(name(no)))
	}
	if err := archive.New(s, archive.Options{}).Claim(t.Context(), 7, "here", false); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		v := newServer(t, s)
		run := func(args ...string) *exec.Cmd {
			cmd := exec.Command(program, args...)
			cmd.Env = append(os.Environ(), "WALG_FILE_PREFIX="+home)
			cmd.Dir = v.data
			return cmd
		}
		kill := func(cmd *exec.Cmd) {
			time.Sleep(time.Duration(rand.IntN(25)) * time.Millisecond) // whatever it is doing then
			if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
			cmd.Wait()
		}
		fetch := run("wal-fetch", name(1), "pg_wal/RECOVERYXLOG")
		if err := fetch.Start(); err != nil {
			t.Fatal(err)
		}
		kill(fetch)
		if b, err := os.ReadFile(v.dest()); err == nil && !bytes.Equal(b, segment(name(1))) {
			t.Fatalf("run %d: half a file lies at the destination", i)
		}
		// The process it may have started, and one more that is killed.
		v.write("pg_wal/.wal-g/prefetch/requested", []byte(`{"name":"`+name(1)+`","segment_size":`+strconv.Itoa(int(size))+`}`))
		ahead := run("wal-prefetch", name(1), "pg_wal/RECOVERYXLOG")
		if err := ahead.Start(); err != nil {
			t.Fatal(err)
		}
		kill(ahead)
		for no := 1; no <= 12; no++ {
			if out, err := run("wal-fetch", name(no), "pg_wal/RECOVERYXLOG").CombinedOutput(); err != nil {
				t.Fatalf("run %d: %v\n%s", i, err, out)
			}
			has(t, v.dest(), name(no))
		}
		os.Remove(v.path("recovery.signal")) // ends what fetches ahead
		pgtest.Eventually(t, "nothing fetches ahead any more", func() bool {
			left, err := filepath.Glob(v.queue("0*"))
			return err == nil && len(left) == 0
		})
	}
}
