// Package crash_test ends the real program in every rude way, at random moments, and looks at what is left: kill -9, signals, a full
// disk. An archive must never hold a half backup or segment that is taken for a whole one, nor a directory a half restore that starts.
package crash_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// moments returns a source of random moments. HOLDFAST_TEST_SEED repeats a run as far as timing lets it.
func moments(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("HOLDFAST_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("HOLDFAST_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// within returns a random part of d.
func within(r *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(d) + 1))
}

// strike starts a command and sends it sig after a while, unless it has ended.
func strike(t *testing.T, cmd *exec.Cmd, sig syscall.Signal, after time.Duration) site.Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Signal(sig) }) // it may have ended
	_ = cmd.Wait()                                                         // how it ended is in the result
	timer.Stop()
	return site.Ended(cmd, stdout.String(), stderr.String())
}

// primary is a site with some data that the backups of a test are compared by.
func primary(t *testing.T, opts pgtest.Options) *site.Site {
	t.Helper()
	s := site.New(t, pgtest.Require(t, 16), opts)
	s.Exec(t, `create table keepsake as select g as id, md5(g::text) as what from generate_series(1, 20000) g`)
	return s
}

// measure returns how long do takes.
func measure(do func()) time.Duration {
	begun := time.Now()
	do()
	return time.Since(begun)
}

// Whenever backup-push is killed, the archive lists only whole backups, and the next push succeeds.
func TestBackupPushKilled(t *testing.T) {
	r := moments(t)
	s := primary(t, pgtest.Options{})
	want := site.Rows(t, s.Cluster, "keepsake")
	took := measure(func() { s.Push(t) })
	killed, whole := 0, 1
	for round := range 8 {
		after := within(r, took)
		push := s.Command(t, "backup-push", s.Data)
		push.Env = append(push.Env, "WALG_TAR_SIZE_THRESHOLD=1000000") // many objects, so that some are there
		switch res := strike(t, push, syscall.SIGKILL, after); res.Status {
		case 0:
			whole++
		case 128 + int(syscall.SIGKILL):
			killed++
		default:
			t.Fatalf("round %d: exit status %d\n%s", round, res.Status, res.Stderr)
		}
		s.NotInBackup(t) // its session ends by itself
		// Killed behind the sentinel it has made a backup all the same.
		if n := len(s.Backups(t)); n != whole && n != whole+1 {
			t.Errorf("round %d, killed after %s: %d backups are listed, %d were made", round, after, n, whole)
		} else {
			whole = n
		}
		if round%3 == 0 {
			s.Push(t)
			whole++
		}
	}
	if killed == 0 {
		t.Error("no push was killed")
	}
	t.Logf("a push took %s; %d were killed", took, killed)
	s.Push(t)
	s.Switch(t)
	for _, name := range s.Backups(t) {
		c := s.Restored(t, name, "--target", "latest")
		if got := site.Rows(t, c, "keepsake"); got != want {
			t.Errorf("%s: the table came back as %s, was %s", name, got, want)
		}
		c.Server.Kill()
	}
}

// A standby gives the next backup the name of one that was killed: what that left is cleared away first.
func TestBackupPushKilledOnStandby(t *testing.T) {
	s := primary(t, pgtest.Options{})
	standby := *s
	standby.Cluster = s.Standby(t, pgtest.Options{Env: s.Env, Settings: map[string]string{"archive_mode": "always", "archive_command": s.Binary + ` wal-push "%p"`}})
	s.CatchUp(t, standby.Cluster)
	parts := func() (found []string) {
		for _, name := range s.Objects(t) { // but for files that were not finished, which are no objects
			if strings.Contains(name, "/tar_partitions/") && !strings.Contains(name, ".tmp.") {
				found = append(found, name)
			}
		}
		return found
	}
	push := standby.Command(t, "backup-push", standby.Data)
	push.Env = append(push.Env, "WALG_TAR_SIZE_THRESHOLD=500000", "WALG_DISK_RATE_LIMIT=10000000", "WALG_COMPRESSION_METHOD=lz4")
	if err := push.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "parts are stored", func() bool { return len(parts()) > 5 })
	if err := push.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = push.Wait() // killed
	standby.NotInBackup(t)
	left := parts()
	if len(left) == 0 || len(s.Backups(t)) != 0 {
		t.Fatalf("%d parts are left, and there are %d backups", len(left), len(s.Backups(t)))
	}
	name := standby.Push(t, "--no-wait-wal")
	if !strings.Contains(left[0], name) {
		t.Fatalf("the backup is %s, what is left of the killed one %s", name, left[0])
	}
	for _, part := range parts() {
		if strings.Contains(part, ".lz4") {
			t.Errorf("%s is still there", part)
		}
	}
	s.Switch(t)
	standby.Restored(t, name, "--target", "latest")
}

// However often wal-push is killed, what PostgreSQL was told is archived is whole in the archive.
func TestWALPushKilled(t *testing.T) {
	r := moments(t)
	if _, err := exec.LookPath("zstd"); err != nil {
		pgtest.Missing(t, "zstd")
	}
	binary := pgtest.Build(t, "holdfast/cmd/holdfast")
	dir := pgtest.Dir(t)
	// Each call is killed some times at moments from a list, then left alone. timeout(1) kills exactly what it started.
	var delays strings.Builder
	for range 1000 {
		fmt.Fprintf(&delays, "0.%03d\n", 1+r.IntN(60))
	}
	files := map[string]string{
		"delays": delays.String(),
		"count":  "0\n",
		"push": `#!/bin/sh
for try in 1 2 3; do
  n=$(($(cat ` + dir + `/count) + 1)); echo $n > ` + dir + `/count
  timeout --foreground -s KILL "$(sed -n "${n}p" ` + dir + `/delays)" ` + binary + ` wal-push "$1" && exit 0
  echo "killed $n" >> ` + dir + `/killed
done
exec ` + binary + ` wal-push "$1"
`,
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	pgtest.Give(t, dir)
	s := primary(t, pgtest.Options{
		SegmentSize: 1 << 20,
		Settings:    map[string]string{"archive_command": dir + `/push "%p"`, "max_wal_size": "10GB", "checkpoint_timeout": "1h"},
	})
	first := s.Value(t, `pg_walfile_name(pg_current_wal_lsn())`)
	for i := range 40 {
		s.Exec(t, fmt.Sprintf(`insert into keepsake select g, md5(random()::text) from generate_series(1, %d) g`, 100+i*100), `select pg_switch_wal()`)
	}
	last := s.Value(t, `pg_walfile_name(pg_current_wal_lsn())`)
	status := filepath.Join(s.Data, "pg_wal", "archive_status")
	compared := map[string]bool{}
	compare := func(name string) {
		compared[name] = true
		out, err := exec.Command("zstd", "-dc", filepath.Join(s.Root, "wal_005", name+".zst")).Output()
		if err != nil {
			t.Errorf("%s, which PostgreSQL takes for archived: %v", name, err)
			return
		}
		local, err := os.ReadFile(filepath.Join(s.Data, "pg_wal", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out, local) {
			t.Errorf("%s, which PostgreSQL takes for archived, has other contents in the archive", name)
		}
	}
	pgtest.Eventually(t, "all is archived", func() bool {
		entries, err := os.ReadDir(status)
		if err != nil {
			t.Fatal(err)
		}
		ready := 0
		for _, e := range entries {
			name, done := strings.CutSuffix(e.Name(), ".done")
			if !done {
				ready++
			} else if wal.IsSegment(name) && !compared[name] {
				compare(name)
			}
		}
		return ready == 0
	})
	if len(compared) < 40 {
		t.Errorf("compared only %d segments of %s to %s", len(compared), first, last)
	}
	killed, err := os.ReadFile(filepath.Join(dir, "killed"))
	if err != nil {
		t.Fatalf("no push was killed: %v", err)
	}
	t.Logf("%d segments, %d pushes killed", len(compared), bytes.Count(killed, []byte("\n")))
	for _, name := range s.Objects(t) {
		if base := filepath.Base(name); strings.HasPrefix(name, "wal_005/") && strings.HasSuffix(base, ".zst") {
			if segment := strings.TrimSuffix(base, ".zst"); wal.IsSegment(segment) && !compared[segment] {
				t.Errorf("%s is in the archive, and PostgreSQL was not told", name)
			}
		}
	}
}

// A server that is killed with all it runs, wal-push in the midst of its work included, loses nothing of what it committed: not
// itself, and not its archive.
func TestServerKilledWhileArchiving(t *testing.T) {
	r := moments(t)
	s := primary(t, pgtest.Options{SegmentSize: 1 << 20, Settings: map[string]string{"fsync": "on", "full_page_writes": "on"}})
	s.Push(t)
	for range 3 {
		load := s.StartLoad(t, 2)
		s.Exec(t, `insert into keepsake select g, md5(random()::text) from generate_series(1, 40000) g`) // some segments at once
		time.Sleep(within(r, 300*time.Millisecond))
		s.Server.Kill()
		committed, _ := load.Stop() // its error is the server's death
		s.Start(t)
		if got := s.CheckLoad(t); got < committed {
			t.Errorf("%d transactions were committed, %d are there", committed, got)
		}
	}
	want := site.Rows(t, s.Cluster, "keepsake") + site.Rows(t, s.Cluster, "history")
	s.Switch(t)
	c := s.Restored(t, "--target", "latest")
	c.CheckLoad(t)
	if got := site.Rows(t, c, "keepsake") + site.Rows(t, c, "history"); got != want {
		t.Errorf("the tables came back as %s, were %s", got, want)
	}
}

// A restore that is killed cannot start as a server, and --resume completes it.
func TestBackupFetchKilled(t *testing.T) {
	r := moments(t)
	s := primary(t, pgtest.Options{Checksums: true})
	s.Push(t)
	s.Exec(t, `insert into keepsake values (0, 'later')`)
	s.Switch(t)
	want := site.Rows(t, s.Cluster, "keepsake")
	took := measure(func() { s.Fetch(t, "--target", "latest") })
	killed := 0
	for round := range 8 {
		dir := filepath.Join(pgtest.Dir(t), "data")
		again := 1 + r.IntN(3) // killed so many times in a row
		for n := range again {
			args := []string{"backup-fetch", dir, "--target", "latest"}
			if b, err := os.ReadFile(filepath.Join(dir, "holdfast_restore.json")); err == nil && json.Valid(b) { // else it was killed while it wrote that
				s.Refused(t, 1, []string{"interrupted"}, args...)
				args = append(args, "--resume")
			} else if n > 0 {
				break // killed before it began, or done
			}
			after := within(r, took)
			res := strike(t, s.Command(t, args...), syscall.SIGKILL, after)
			if res.Status == 0 {
				break
			}
			if res.Status != 128+int(syscall.SIGKILL) {
				t.Fatalf("round %d: exit status %d\n%s", round, res.Status, res.Stderr)
			}
			killed++
			_, control := os.Stat(filepath.Join(dir, "global", "pg_control"))
			_, marker := os.Stat(filepath.Join(dir, "holdfast_restore.json"))
			if control == nil && marker != nil {
				break // it was done
			}
			if control == nil {
				t.Logf("round %d: killed after %s, between pg_control and the removal of the marker", round, after)
			} else if n == 0 {
				refusesToStart(t, s, dir)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "holdfast_restore.json")); err == nil {
			s.OK(t, "backup-fetch", dir, "--target", "latest", "--resume")
		} else if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); err != nil {
			s.OK(t, "backup-fetch", dir, "--target", "latest") // it was killed before it began
		}
		c := s.Open(t, dir)
		site.AwaitRecovery(t, c)
		if got := site.Rows(t, c, "keepsake"); got != want {
			t.Errorf("round %d: the table came back as %s, was %s", round, got, want)
		}
		c.Server.Kill()
	}
	if killed == 0 {
		t.Error("no restore was killed")
	}
	t.Logf("a restore took %s; %d were killed", took, killed)
}

// refusesToStart fails the test when a server starts on dir.
func refusesToStart(t *testing.T, s *site.Site, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); err != nil {
		return // nothing was made yet
	}
	server, err := instance.Start(t.Context(), instance.Options{Programs: s.Programs, DataDir: dir, SocketDir: pgtest.Dir(t), Env: s.Env})
	if err == nil {
		server.Kill()
		t.Errorf("a server starts on %s, where a restore was killed", dir)
	}
}

// SIGINT and SIGTERM end a backup in order: one line of error, nothing left in the archive, the server out of backup mode.
func TestBackupPushInterrupted(t *testing.T) {
	r := moments(t)
	s := primary(t, pgtest.Options{})
	s.Push(t)
	before := s.Backups(t)
	took := measure(func() { before = append(before, s.Push(t)) })
	for round := range 8 {
		sig := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[round%2]
		after := within(r, took)
		push := s.Command(t, "backup-push", s.Data)
		res := strike(t, push, sig, after)
		what := fmt.Sprintf("round %d, signal %d after %s", round, sig, after)
		switch {
		case res.Status == 0: // it was done
			before = s.Backups(t)
			continue
		case res.Status == 128+int(sig) && res.Stderr == "": // it had not asked for signals yet
		default:
			res.Check(t, what, 1, "stopped by signal: "+sig.String())
		}
		s.NotInBackup(t)
		if now := s.Backups(t); len(now) != len(before) {
			t.Errorf("%s: backups %v, before %v", what, now, before)
		}
		s.NoTrace(t, before...)
	}
	// One at a time when a rate limit holds it, so that it is in the midst of copying for sure.
	push := s.Command(t, "backup-push", s.Data)
	push.Env = append(push.Env, "WALG_DISK_RATE_LIMIT=1000000")
	strike(t, push, syscall.SIGTERM, time.Second).Check(t, "backup-push, while it copies", 1, "stopped by signal: terminated")
	s.NotInBackup(t)
	s.NoTrace(t, before...)
	s.Push(t)
}

// A backup clears away the unfinished files that writers which died left a day ago or more, and no younger ones.
func TestLeftoversAreSwept(t *testing.T) {
	s := primary(t, pgtest.Options{})
	s.Switch(t)
	old := time.Now().Add(-49 * time.Hour)
	left := map[string]time.Time{}
	for i, begun := range []time.Time{old, time.Now()} {
		path := filepath.Join(s.Root, "wal_005", fmt.Sprintf("0000000100000000000000F%d.zst.tmp.%s-00112233445566aa", i, begun.UTC().Format("20060102T150405Z")))
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, begun, begun); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, path)
		left[path] = begun
	}
	push := s.Command(t, "backup-push", s.Data)
	push.Env = append(push.Env, "WALG_NETWORK_RATE_LIMIT=100000000") // also through what bounds the rate
	if r := site.Run(t, push); r.Status != 0 {
		t.Fatalf("backup-push: exit status %d\n%s", r.Status, r.Stderr)
	}
	for path, begun := range left {
		if _, err := os.Stat(path); (err == nil) == begun.Equal(old) {
			t.Errorf("%s, begun at %s: %v", path, begun, err)
		}
	}
}

// A backup that loses its server, or only its session, fails in one line and leaves nothing.
func TestBackupPushLosesServer(t *testing.T) {
	s := primary(t, pgtest.Options{})
	ours := `pid <> pg_backend_pid() and application_name like 'holdfast%'`
	for what, do := range map[string]func(){
		"session": func() { s.Exec(t, `select pg_terminate_backend(pid) from pg_stat_activity where `+ours) },
		"server":  func() { s.Server.Kill() },
	} {
		t.Run(what, func(t *testing.T) {
			push := s.Command(t, "backup-push", s.Data)
			push.Env = append(push.Env, "WALG_DISK_RATE_LIMIT=8000000", "WALG_ALIVE_CHECK_INTERVAL=100ms")
			var stderr bytes.Buffer
			push.Stderr = &stderr
			if err := push.Start(); err != nil {
				t.Fatal(err)
			}
			pgtest.Eventually(t, "parts are stored", func() bool {
				for _, name := range s.Objects(t) {
					if strings.Contains(name, "/tar_partitions/") {
						return true
					}
				}
				return false
			})
			do()
			_ = push.Wait() // how it ended is checked below
			site.Ended(push, "", stderr.String()).Check(t, "backup-push", 1, "lost")
			s.NoTrace(t)
		})
		if what == "server" {
			s.Start(t)
		}
		s.NotInBackup(t)
	}
	s.Push(t)
}
