// Package lease_test runs the same command on several hosts at once: a primary and two standbys with one archive. Of each run one backup comes, whoever is killed,
// and however long who has the lease stands still.
package lease_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/test/etcdtest"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// ttl is how long a test waits for a lease to end: short, and long enough for a machine that is busy.
const ttl = "15s"

// hosts is a primary, db1, and standbys, db2 and so on, each with the settings of its host.
type hosts struct {
	all  []*site.Site
	hold string // while this file is there the primary archives nothing
}

// start starts a primary and standbys of it. More settings are for all of them.
func start(t *testing.T, standbys int, env ...string) *hosts {
	t.Helper()
	p := pgtest.Require(t, 17)
	hold := filepath.Join(pgtest.Dir(t), "hold")
	primary := site.New(t, p, pgtest.Options{Settings: map[string]string{"archive_timeout": "1", "wal_keep_size": "4GB",
		"archive_command": `while test -e ` + hold + `; do sleep 0.1; done; ` + pgtest.Build(t, "holdfast/cmd/holdfast") + ` wal-push "%p"`}})
	primary.Exec(t, `create table t as select generate_series(1, 10000) as id`)
	h := &hosts{hold: hold}
	h.add(primary, "db1", env)
	for n := range standbys {
		one := *primary
		one.Cluster = primary.Standby(t, pgtest.Options{Env: primary.Env})
		primary.CatchUp(t, one.Cluster)
		h.add(&one, "db"+string(rune('2'+n)), env)
	}
	load := primary.StartLoad(t, 1) // without any the last segment of a standby's backup never comes
	t.Cleanup(func() {
		if _, err := load.Stop(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *hosts) add(s *site.Site, name string, env []string) {
	s.Env = append(append(s.Env[:len(s.Env):len(s.Env)], "HOLDFAST_LEASE_HOST="+name), env...)
	h.all = append(h.all, s)
}

// push prepares a backup-push on the host n, counted from 1.
func (h *hosts) push(t *testing.T, n int) *exec.Cmd {
	t.Helper()
	s := h.all[n-1]
	return s.Command(t, "backup-push", s.Data)
}

// running is a backup-push that has stored all it has to, and waits for its WAL.
type running struct {
	*exec.Cmd
	stdout, stderr bytes.Buffer
}

// waiting starts a backup-push on the host n, and returns when it waits for WAL that does not come before release is called.
func (h *hosts) waiting(t *testing.T, n int) *running {
	t.Helper()
	if err := os.WriteFile(h.hold, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := &running{Cmd: h.push(t, n)}
	r.Cmd.Stdout, r.Cmd.Stderr = &r.stdout, &r.stderr
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the backup waits for its WAL", func() bool {
		labels, err := filepath.Glob(filepath.Join(h.all[0].Root, "basebackups_005/*/tar_partitions/backup_label.tar.*"))
		return err == nil && len(labels) > 0 && !strings.Contains(labels[0], ".tmp.")
	})
	return r
}

func (h *hosts) release(t *testing.T) {
	t.Helper()
	if err := os.Remove(h.hold); err != nil {
		t.Fatal(err)
	}
}

// end waits for r.
func (r *running) end() site.Result {
	_ = r.Wait() // how it ended is in the result
	return site.Ended(r.Cmd, r.stdout.String(), r.stderr.String())
}

// backups fails t unless there are so many, each restorable by what the archive says, and nothing of any other.
func (h *hosts) backups(t *testing.T, want int) []string {
	t.Helper()
	s := h.all[0]
	names := s.Backups(t)
	if len(names) != want {
		t.Errorf("%d backups, want %d: %s", len(names), want, names)
	}
	for _, name := range names {
		s.OK(t, "verify", name)
	}
	folders, err := os.ReadDir(filepath.Join(s.Root, "basebackups_005"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range folders {
		if f.IsDir() && !strings.Contains(strings.Join(names, " ")+" ", f.Name()+" ") {
			t.Errorf("%s is left", f.Name())
		}
	}
	return names
}

// shows fails t unless `lease show` begins a line with one of words.
func (h *hosts) shows(t *testing.T, words ...string) {
	t.Helper()
	shown := h.all[0].OK(t, "lease", "show").Stdout
	for line := range strings.Lines(shown) {
		for _, w := range words {
			if strings.HasPrefix(strings.Join(strings.Fields(line), " "), w) {
				return
			}
		}
	}
	t.Errorf("lease show:\n%s\nwant %q", shown, words)
}

// next runs a backup-push on the host n as often as it takes: as long as another host has the lease, which it is told.
func (h *hosts) next(t *testing.T, n int, holder string) site.Result {
	t.Helper()
	r := site.Run(t, h.push(t, n))
	if r.Status != 0 || !strings.Contains(r.Stderr, "Another host ("+holder+") holds the lease since ") || !strings.Contains(r.Stderr, ": nothing to do.\n") {
		t.Fatalf("while %s has the lease: status %d\n%s", holder, r.Status, r.Stderr)
	}
	pgtest.Eventually(t, "the lease is free", func() bool {
		r = site.Run(t, h.push(t, n))
		return r.Status != 0 || !strings.Contains(r.Stderr, "holds the lease")
	})
	if r.Status != 0 {
		t.Fatalf("status %d\n%s", r.Status, r.Stderr)
	}
	return r
}

func TestOfThreeHostsOneMakesTheBackup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		by      string
		env     func(t *testing.T, h *hosts) string
		primary bool // it may be the one
	}{
		{"archive", func(*testing.T, *hosts) string { return "HOLDFAST_LEASE=archive" }, true},
		{"role", func(*testing.T, *hosts) string { return "HOLDFAST_ROLE=replica" }, false},
		{"etcd", func(t *testing.T, _ *hosts) string {
			return "HOLDFAST_LEASE=etcd://" + strings.TrimPrefix(etcdtest.Serve(t), "http://") + "/orders"
		}, true},
		{"postgres", func(_ *testing.T, h *hosts) string {
			one, two := h.all[0].Server, h.all[1].Server
			return fmt.Sprintf("HOLDFAST_LEASE=postgres:///postgres?user=%s&host=%s,%s&port=%d,%d", instance.Superuser, two.Host(), one.Host(), two.Port(), one.Port())
		}, true},
	} {
		t.Run(c.by, func(t *testing.T) {
			h := start(t, 2)
			env := c.env(t, h)
			for _, s := range h.all {
				s.Env = append(s.Env, env)
			}
			results := make([]site.Result, 3)
			var all sync.WaitGroup
			for n := range results {
				cmd := h.push(t, n+1)
				all.Go(func() { results[n] = site.Run(t, cmd) })
			}
			all.Wait()
			made, told := 0, 0
			for n, r := range results {
				if r.Status != 0 {
					t.Errorf("db%d: status %d\n%s", n+1, r.Status, r.Stderr)
				}
				switch {
				case strings.Contains(r.Stderr, "Wrote backup with name"):
					made++
				case strings.Contains(r.Stderr, "Another host (db") && strings.Contains(r.Stderr, ": nothing to do.\n"):
					told++
				case n == 0 && !c.primary && strings.Contains(r.Stderr, "This is the primary: nothing to do.\n"):
					told++
				default:
					t.Errorf("db%d says neither:\n%s", n+1, r.Stderr)
				}
			}
			if made != 1 || told != 2 {
				t.Errorf("%d made a backup, %d were told why not", made, told)
			}
			h.backups(t, 1)
			h.shows(t, "backup-push free db")
		})
	}
}

func TestRolesAreAskedOfTheServer(t *testing.T) {
	t.Parallel()
	h := start(t, 1)
	for _, c := range []struct {
		role  string
		host  int
		words string // "" where it makes a backup
	}{
		{"primary", 2, "This is a standby: nothing to do."},
		{"replica", 1, "This is the primary: nothing to do."},
		{"prefer-replica", 1, "This is the primary: nothing to do."},
		{"prefer-replica", 2, ""},
	} {
		cmd := h.push(t, c.host)
		cmd.Env = append(cmd.Env, "HOLDFAST_ROLE="+c.role, "HOLDFAST_LEASE=none")
		r := site.Run(t, cmd)
		if r.Status != 0 || !strings.Contains(r.Stderr, c.words) || strings.Contains(r.Stderr, "Wrote backup") != (c.words == "") {
			t.Errorf("%s on db%d: status %d\n%s", c.role, c.host, r.Status, r.Stderr)
		}
	}
	h.backups(t, 1)
	h.all[1].Stop(t)
	pgtest.Eventually(t, "the primary has no standby", func() bool {
		return h.all[0].Value(t, `(select count(*) from pg_stat_replication)`) == "0"
	})
	cmd := h.push(t, 1)
	cmd.Env = append(cmd.Env, "HOLDFAST_ROLE=prefer-replica", "HOLDFAST_LEASE_TTL=5s")
	if r := site.Run(t, cmd); r.Status != 0 {
		t.Errorf("prefer-replica without one: status %d\n%s", r.Status, r.Stderr)
	}
	h.backups(t, 2)
}

func TestWhoIsKilledIsFollowedByOne(t *testing.T) {
	t.Parallel()
	h := start(t, 1, "HOLDFAST_LEASE=archive", "HOLDFAST_LEASE_TTL="+ttl)
	r := h.waiting(t, 1)
	if err := r.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if ended := r.end(); ended.Status != 128+int(syscall.SIGKILL) {
		t.Fatalf("it ended by itself: status %d\n%s", ended.Status, ended.Stderr)
	}
	h.release(t)
	h.next(t, 2, "db1")
	h.backups(t, 1)
}

func TestWhoStandsStillCommitsNothingWhenItGoesOn(t *testing.T) {
	t.Parallel()
	h := start(t, 1, "HOLDFAST_LEASE=archive", "HOLDFAST_LEASE_TTL="+ttl)
	r := h.waiting(t, 1)
	if err := r.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	h.release(t)
	h.next(t, 2, "db1")
	names := h.all[0].Backups(t)
	if err := r.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	r.end().Check(t, "backup-push on db1", 1, "the lease of backup-push is lost: ")
	if now := h.backups(t, 1); len(names) != 1 || len(now) != 1 || names[0] != now[0] {
		t.Errorf("backups %s, later %s", names, now)
	}
}

// A sentinel that could not be put is put by whoever comes next, before it makes a backup of its own.
func TestWhatWasSealedIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	h := start(t, 1, "HOLDFAST_LEASE=archive", "HOLDFAST_LEASE_TTL="+ttl)
	r := h.waiting(t, 1)
	dir := filepath.Join(h.all[0].Root, "basebackups_005")
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	h.release(t)
	ended := r.end()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ended.Check(t, "backup-push on db1", 1, "is stored, and it is not known whether its sentinel is")
	h.shows(t, "backup-push held db1", "backup-push commits db1")
	second := h.next(t, 2, "db1")
	if !strings.Contains(second.Stderr, "made a backup of what another host had stored, and had not come to commit: basebackups_005/base_") {
		t.Errorf("it does not say what it did:\n%s", second.Stderr)
	}
	h.backups(t, 1) // one of its own would begin at the same checkpoint, and have the same name
	if !strings.Contains(second.Stderr, "a new backup would be the same") {
		t.Errorf("it does not say why it made none of its own:\n%s", second.Stderr)
	}
	h.all[0].Exec(t, `checkpoint`)
	h.all[0].CatchUp(t, h.all[1].Cluster)
	h.all[1].OK(t, "backup-push", h.all[1].Data)
	h.backups(t, 2)
}
