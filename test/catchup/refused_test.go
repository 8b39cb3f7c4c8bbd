package catchup_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// copied returns a copy of a data directory. Links of tablespaces lead to where they did.
func copied(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(pgtest.Dir(t), "copy")
	if out, err := pgtest.Command(t, "cp", "-a", "--reflink=auto", dir, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

// put makes a file of the servers' account.
func put(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, name)
}

// What a catch-up is not for is refused, with a reason and a way on, and nothing is touched.
func TestWrongDirectoriesAreRefused(t *testing.T) {
	t.Parallel()
	v := lagging(t, 15, "lsn")
	v.work(t)
	r := v.pushed(t, "--from-lsn", v.at)
	at, err := wal.ParseLSN(v.at)
	if err != nil {
		t.Fatal(err)
	}
	v.Exec(t, `checkpoint`)
	v.Switch(t)
	v.Exec(t, `checkpoint`)
	later := v.pushed(t, "--from-lsn", fmt.Sprintf("0x%x", uint64(at)+1))
	mapping := []string{"--tablespace-mapping", v.space("new") + "=" + v.space("standby-new")}
	remove := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for what, c := range map[string]struct {
		name   string // "" for that of the catch-up that fits
		dir    func(t *testing.T) string
		change func(t *testing.T, dir string)
		words  []string
	}{
		"nothing there":     {dir: func(t *testing.T) string { return filepath.Join(pgtest.Dir(t), "none") }, words: []string{"is no directory"}},
		"no data directory": {change: remove("global/pg_control"), words: []string{"does not prove to be a data directory"}},
		"another cluster": {dir: func(t *testing.T) string {
			c := pgtest.New(t, v.Programs, pgtest.Options{})
			c.Stop(t)
			return c.Data
		}, words: []string{"is of the cluster with system identifier"}},
		"running": {change: func(t *testing.T, dir string) {
			pid := strconv.Itoa(os.Getpid()) + "\n" + dir + "\n"
			put(t, filepath.Join(dir, "postmaster.pid"), pid)
		}, words: []string{"a PostgreSQL is running in"}},
		"before the position": {name: later.Name, words: []string{"is at " + v.at, "holds what has changed since " + (at + 1).String()}},
		"in production": {dir: func(t *testing.T) string {
			dir := copied(t, v.Data)
			remove("postmaster.pid")(t, dir)
			return dir
		}, words: []string{"is no standby, nor was it shut down", "in production"}},
		"promoted": {change: func(t *testing.T, dir string) {
			// Its tablespaces are those of the other directory: it gets no further.
			c := pgtest.Attach(t, v.Programs, dir, pgtest.Options{Settings: map[string]string{"hot_standby": "on", "restore_command": "false"}})
			c.Exec(t, `select pg_promote()`, `checkpoint`)
			c.Stop(t)
		}, words: []string{"on timeline 2, of which timeline 1 does not come"}},
		"beyond": {dir: func(t *testing.T) string {
			dir := filepath.Join(pgtest.Dir(t), "data")
			v.Push(t)
			args := []string{"backup-fetch", dir, "LATEST", "--standby"}
			for _, name := range []string{"old", "new"} {
				args = append(args, "--tablespace-mapping", v.space(name)+"="+filepath.Join(filepath.Dir(dir), name))
			}
			v.OK(t, args...)
			c := v.attach(t, dir)
			v.replayed(t, c)
			c.Stop(t)
			return dir
		}, words: []string{"it is already beyond"}},
		"never started": {dir: func(t *testing.T) string {
			dir := filepath.Join(pgtest.Dir(t), "data")
			v.OK(t, "backup-fetch", dir, v.Backups(t)[0], "--standby", "--tablespace-mapping", v.space("old")+"="+filepath.Join(filepath.Dir(dir), "old"),
				"--tablespace-mapping", v.space("gone")+"="+filepath.Join(filepath.Dir(dir), "gone"))
			return dir
		}, words: []string{"with which no server was started yet"}},
		"a file with two names": {change: func(t *testing.T, dir string) {
			if err := os.Link(filepath.Join(dir, "base/1/1259"), filepath.Join(dir, "another")); err != nil {
				t.Fatal(err)
			}
		}, words: []string{"base/1/1259 is no plain file, or has other names"}},
		"a directory elsewhere": {change: func(t *testing.T, dir string) {
			away := filepath.Join(filepath.Dir(dir), "away")
			if err := os.Rename(filepath.Join(dir, "pg_xact"), away); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(away, filepath.Join(dir, "pg_xact")); err != nil {
				t.Fatal(err)
			}
		}, words: []string{"pg_xact", "is no directory, or a link to one"}},
		"a tablespace elsewhere": {change: func(t *testing.T, dir string) {
			link := filepath.Join(dir, "pg_tblspc", v.Value(t, `select oid from pg_tablespace where spcname = 'old'`))
			if err := os.Remove(link); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(link, 0o700); err != nil {
				t.Fatal(err)
			}
		}, words: []string{"is no symbolic link"}},
		"a file that is missing": {change: func(t *testing.T, dir string) {
			remove(v.Value(t, `select pg_relation_filepath('untouched')`))(t, dir)
		}, words: []string{"does not have, or not all of, 1 files", v.Value(t, `select pg_relation_filepath('untouched')`)}},
		"a file that is too short": {change: func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, v.Value(t, `select pg_relation_filepath('untouched')`)), 8192); err != nil {
				t.Fatal(err)
			}
		}, words: []string{"does not have, or not all of, 1 files"}},
		"an interrupted restore": {change: func(t *testing.T, dir string) {
			marker := `{"holdfast_restore":1,"backup":"base_000000010000000000000002"}`
			put(t, filepath.Join(dir, "holdfast_restore.json"), marker)
		}, words: []string{"holds a restore of base_000000010000000000000002 that was interrupted"}},
		"no catch-up": {name: v.Backups(t)[0], words: []string{"the archive has no catch-up " + v.Backups(t)[0]}},
	} {
		t.Run(what, func(t *testing.T) {
			dir := v.dir
			switch {
			case c.dir != nil:
				dir = c.dir(t)
			case c.change != nil:
				dir = copied(t, v.dir)
			}
			if c.change != nil {
				c.change(t, dir)
			}
			var before map[string]string
			if _, err := os.Stat(dir); err == nil {
				before = tree(t, dir)
			}
			name := r.Name
			if c.name != "" {
				name = c.name
			}
			args := []string{"catchup-fetch", dir, name}
			if what != "beyond" { // that has the new tablespace
				args = append(args, mapping...)
			}
			result := v.Refused(t, 1, c.words, args...)
			if !strings.Contains(result.Stderr, "hint: ") {
				t.Errorf("there is no hint:\n%s", result.Stderr)
			}
			if before != nil {
				if after := tree(t, dir); fmt.Sprint(after) != fmt.Sprint(before) {
					t.Error("the directory was touched")
				}
			}
			if what == "before the position" && !strings.Contains(result.Stderr, "--from-lsn "+v.at) {
				t.Errorf("it does not say which position would do:\n%s", result.Stderr)
			}
		})
	}

	t.Run("push", func(t *testing.T) {
		for _, c := range []struct {
			words []string
			args  []string
		}{
			{[]string{"--from-lsn is missing", "--print-lsn"}, nil},
			{[]string{"is no position of the WAL"}, []string{"--from-lsn", "here"}},
			{[]string{"there is nothing that it could catch up with"}, []string{"--from-lsn", "FF/0"}},
			{[]string{"there is nothing that it could catch up with"}, []string{"--from-lsn", "0"}},
			{[]string{"files to store whole"}, []string{"--from-lsn", v.at, "--whole", "["}},
		} {
			v.Refused(t, 1, c.words, append([]string{"catchup-push", v.Data}, c.args...)...)
		}
		v.Refused(t, 1, []string{"give the name of a catch-up"}, "catchup-fetch", v.dir)
		v.NotInBackup(t)
	})
	t.Run("list", func(t *testing.T) {
		var listed []struct {
			Name string `json:"backup_name"`
		}
		if err := json.Unmarshal([]byte(v.OK(t, "catchup-list", "--json").Stdout), &listed); err != nil {
			t.Fatal(err)
		}
		if len(listed) != 2 || listed[0].Name != r.Name || listed[1].Name != later.Name {
			t.Errorf("catchup-list has %v", listed)
		}
		if out := v.OK(t, "catchup-list", "--detail").Stdout; !strings.Contains(out, r.Name) || !strings.HasPrefix(out, "backup_name") {
			t.Error(out)
		}
		for _, name := range v.Backups(t) {
			if name == r.Name || name == later.Name {
				t.Errorf("backup-list has the catch-up %s", name)
			}
		}
	})
}

// Where the pages alone tell what has changed a database that was copied looks as old as its original. What the standby lacks is noticed before
// anything is changed, and the push takes what is named for whole.
func TestCopiedDatabaseIsNoticed(t *testing.T) {
	t.Parallel()
	v := lagging(t, 13, "lsn")
	v.work(t)
	// As where the archive has no backup from before.
	old := time.Now().Add(-24 * time.Hour)
	copied := v.Value(t, `select oid from pg_database where datname = 'copy'`)
	if err := os.Chtimes(filepath.Join(v.Data, "base", copied, "PG_VERSION"), old, old); err != nil {
		t.Fatal(err)
	}
	r := v.pushed(t, "--from-lsn", v.at)
	before := tree(t, v.dir)
	mapping := []string{"--tablespace-mapping", v.space("new") + "=" + v.space("standby-new")}
	refused := v.Refused(t, 1, []string{"does not have, or not all of", "base/" + copied}, append([]string{"catchup-fetch", v.dir, r.Name}, mapping...)...)
	if !strings.Contains(refused.Stderr, "--whole 'base/"+copied+"/*'") {
		t.Errorf("it does not say what to do:\n%s", refused.Stderr)
	}
	if fmt.Sprint(tree(t, v.dir)) != fmt.Sprint(before) {
		t.Error("the directory was touched")
	}
	v.Switch(t)
	v.Exec(t, `checkpoint`)
	r = v.pushed(t, "--from-lsn", v.at, "--whole", "base/"+copied+"/*")
	v.OK(t, append([]string{"catchup-fetch", v.dir, r.Name}, mapping...)...)
	v.same(t, v.open(t))
}

// begun starts a catch-up, slowed down, and waits until it has changed the directory.
func (v *pair) begun(t *testing.T, args ...string) (kill func()) {
	t.Helper()
	cmd := v.Command(t, append([]string{"catchup-fetch", v.dir}, args...)...)
	cmd.Env = append(cmd.Env, "WALG_NETWORK_RATE_LIMIT=100000")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the directory is being changed", func() bool {
		_, err := os.Stat(filepath.Join(v.dir, "global/pg_control"))
		return os.IsNotExist(err) && locked(t, filepath.Join(v.dir, "holdfast_catchup.json"))
	})
	return func() {
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the state says more
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
			t.Fatalf("it had ended before it was killed:\n%s", stderr.String())
		}
	}
}

// locked reports whether some process has a lock on a file.
func locked(t *testing.T, name string) bool {
	t.Helper()
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	return syscall.Stat(name, &st) == nil && strings.Contains(string(locks), fmt.Sprintf(":%d ", st.Ino))
}

// A catch-up that is killed leaves a directory in which no server starts, and which the same command completes; nothing else does but a restore.
func TestKilledCatchUpIsCompleted(t *testing.T) {
	t.Parallel()
	v := lagging(t, 17, "summaries")
	v.work(t)
	v.forget(t)
	r := v.pushed(t, "--from-lsn", v.at)
	v.Exec(t, `checkpoint`)
	v.Switch(t)
	v.Exec(t, `checkpoint`)
	another := v.pushed(t, "--from-lsn", v.at)
	mapping := []string{"--tablespace-mapping", v.space("new") + "=" + v.space("standby-new")}
	fetch := append([]string{"catchup-fetch", v.dir, r.Name}, mapping...)
	for range 3 {
		kill := v.begun(t, fetch[2:]...)
		v.Refused(t, 1, []string{"another catch-up of " + v.dir + " is running"}, fetch...)
		time.Sleep(time.Second) // that it is somewhere in the middle
		kill()
		v.Refused(t, 1, []string{"was being brought forward by " + r.Name}, append([]string{"catchup-fetch", v.dir, another.Name}, mapping...)...)
	}
	if out := v.OK(t, append(fetch, "--dry-run")...).Stdout; !strings.Contains(out, "interrupted in this catch-up") {
		t.Error(out)
	}
	rescue := copied(t, v.dir)
	v.OK(t, fetch...)
	v.same(t, v.open(t))
	v.kept(t)

	// Another way on is a backup.
	args := []string{"backup-fetch", rescue, v.Push(t), "--delta", "--standby"}
	for _, name := range []string{"old", "new"} {
		link := filepath.Join(rescue, "pg_tblspc", v.Value(t, `select oid from pg_tablespace where spcname = '`+name+`'`))
		if err := os.Remove(link); err != nil { // the standby has those
			t.Fatal(err)
		}
		args = append(args, "--tablespace-mapping", v.space(name)+"="+v.space("rescue-"+name))
	}
	v.OK(t, args...)
	if _, err := os.Stat(filepath.Join(rescue, "holdfast_catchup.json")); !os.IsNotExist(err) {
		t.Errorf("the marker is there still: %v", err)
	}
	v.same(t, v.attach(t, rescue))
}

// A catch-up of which a part is damaged is told as such.
func TestDamagedCatchUpIsNoticed(t *testing.T) {
	t.Parallel()
	v := lagging(t, 15, "lsn")
	v.work(t)
	r := v.pushed(t, "--from-lsn", v.at)
	name := filepath.Join(v.Root, "catchup_005", r.Name, "tar_partitions", "part_001.tar.zst")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	result := v.Do(t, "catchup-fetch", v.dir, r.Name, "--tablespace-mapping", v.space("new")+"="+v.space("standby-new"))
	result.Check(t, "catchup-fetch of what is damaged", 1, path.Base(name))
	if _, err := os.Stat(filepath.Join(v.dir, "global/pg_control")); !os.IsNotExist(err) {
		t.Errorf("a server could start on it: %v", err)
	}
}

// A primary that was shut down in order and whose standby took over becomes that one's standby.
func TestFormerPrimaryComesBack(t *testing.T) {
	t.Parallel()
	p := pgtest.Require(t, 15)
	s := site.New(t, p, pgtest.Options{Checksums: true})
	s.Exec(t, `create table kept (id int primary key, text text)`, `insert into kept select i, md5(i::text) from generate_series(1, 20000) i`, `vacuum freeze`)
	next := *s
	next.Cluster = s.Standby(t, pgtest.Options{Env: s.Env, Settings: map[string]string{"archive_mode": "on", "archive_command": s.Binary + ` wal-push "%p"`}})
	s.CatchUp(t, next.Cluster)
	s.Stop(t)
	last, err := restore.Position(s.Data)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the standby has the primary's last checkpoint", func() bool {
		return next.Value(t, `pg_last_wal_replay_lsn() > $1::pg_lsn`, last.RedoLSN) == "true"
	})
	next.Exec(t, `select pg_promote()`)
	site.AwaitRecovery(t, next.Cluster)
	at := strings.TrimSpace(next.OK(t, "catchup-fetch", s.Data, "--print-lsn").Stdout)
	next.Exec(t, `update kept set text = 'changed' where id % 100 = 0`, `insert into kept select i, 'new' from generate_series(20001, 21000) i`, `checkpoint`)
	next.Switch(t)
	next.Exec(t, `checkpoint`)
	v := &pair{Site: &next, dir: s.Data, at: at}
	r := v.pushed(t, "--from-lsn", at)
	v.forget(t)
	v.Exec(t, `select pg_switch_wal()`)
	next.OK(t, "catchup-fetch", s.Data, "LATEST")
	if _, err := os.Stat(filepath.Join(s.Data, "standby.signal")); err != nil {
		t.Fatalf("it would start as another primary: %v", err)
	}
	if r.Delta.Incremental == 0 || r.Delta.Whole == 0 {
		t.Errorf("%+v", r)
	}
	// It streams: the archive need not have what it needs.
	back := pgtest.Attach(t, p, s.Data, pgtest.Options{Settings: map[string]string{"hot_standby": "on", "archive_mode": "off",
		"primary_conninfo": fmt.Sprintf("host=%s port=%d user=%s", next.Server.Host(), next.Server.Port(), next.Config()["user"])}})
	next.Exec(t, `create extension amcheck`, `create extension pg_visibility`)
	v.same(t, back)
}

// A catch-up can be taken from another standby, and does without an archive of WAL then too.
func TestAnotherStandbyHelps(t *testing.T) {
	t.Parallel()
	p := pgtest.Require(t, 17)
	s := site.New(t, p, pgtest.Options{Checksums: true, Settings: map[string]string{"max_wal_size": "1GB", "autovacuum": "off"}})
	s.Exec(t, `create extension amcheck`, `create extension pg_visibility`, `create table much (id int primary key, text text)`,
		`insert into much select i, md5(i::text) from generate_series(1, 20000) i`, `vacuum freeze`)
	lags := s.Standby(t, pgtest.Options{})
	helps := *s
	helps.Cluster = s.Standby(t, pgtest.Options{Env: s.Env})
	s.CatchUp(t, lags)
	lags.Stop(t)
	at := strings.TrimSpace(s.OK(t, "catchup-fetch", lags.Data, "--print-lsn").Stdout)
	s.Exec(t, `update much set text = reverse(text) where id % 200 = 0`, `create database another`, `checkpoint`, `select pg_switch_wal()`, `checkpoint`)
	s.CatchUp(t, helps.Cluster)
	helps.Exec(t, `checkpoint`)

	v := &pair{Site: &helps, dir: lags.Data, at: at}
	v.Env = append(v.Env, "HOLDFAST_DELTA_SOURCE=lsn")
	r := v.pushed(t, "--from-lsn", at, "--no-wait-wal")
	if r.Delta.Incremental < 100 || r.Delta.Pages == 0 {
		t.Errorf("%+v", r)
	}
	v.OK(t, "catchup-fetch", v.dir, r.Name)
	lags.Start(t)
	v.Site = s
	v.same(t, lags)
}
