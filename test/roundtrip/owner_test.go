package roundtrip_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// An archive takes one cluster. Another one's WAL and backups are refused with both identifiers, until it adopts the archive.
func TestOtherCluster(t *testing.T) {
	p := pgtest.Require(t, 16)
	s := site.New(t, p, pgtest.Options{})
	s.Push(t)
	other := site.In(t, p, pgtest.Options{Settings: map[string]string{"archive_command": "/bin/false"}}, s.Root, s.Env...)
	id := func(c *site.Site) string { return c.Value(t, `select system_identifier from pg_control_system()`) }
	both := []string{id(s), id(other)}
	before := len(s.Objects(t))

	segment := other.Value(t, `pg_walfile_name(pg_switch_wal())`)
	other.Refused(t, 1, both, "wal-push", filepath.Join(other.Data, "pg_wal", segment))
	r := other.Refused(t, 1, both, "backup-push", other.Data)
	if !strings.Contains(r.Stderr, "--adopt") {
		t.Errorf("no word of --adopt:\n%s", r.Stderr)
	}
	if after := len(s.Objects(t)); after != before {
		t.Errorf("the archive had %d objects, now %d", before, after)
	}

	// Its WAL is on the first cluster's timeline: after some segments the names are free.
	past := s.Value(t, `pg_walfile_name(pg_current_wal_lsn())`)
	for other.Value(t, `pg_walfile_name(pg_current_wal_lsn())`) <= past {
		other.Exec(t, `create table if not exists t (n int)`, `insert into t values (1)`, `select pg_switch_wal()`)
	}
	other.Push(t, "--adopt", "--no-wait-wal")
	segment = other.Value(t, `pg_walfile_name(pg_switch_wal())`)
	other.OK(t, "wal-push", filepath.Join(other.Data, "pg_wal", segment))
	s.Refused(t, 1, []string{both[0], both[1]}, "backup-push", s.Data)
}

// wal-fetch says that a file is missing only when the archive was asked and does not have it.
func TestWALFetchStatus(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 18), pgtest.Options{})
	name := s.Switch(t)
	data := filepath.Join(pgtest.Dir(t), "data")
	dest := filepath.Join(data, "pg_wal", "RECOVERYXLOG")
	if err := os.MkdirAll(filepath.Dir(dest), 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, data)
	fetch := func(name string, env ...string) site.Result {
		cmd := s.Command(t, "wal-fetch", name, "pg_wal/RECOVERYXLOG")
		cmd.Dir = data
		cmd.Env = append(cmd.Env, "WALG_DOWNLOAD_CONCURRENCY=1")
		cmd.Env = append(cmd.Env, env...)
		return site.Run(t, cmd)
	}
	const absent = "0000000100000000000000F0"
	away := s.Root + ".away"
	damaged := func(do, undo func() error) func(t *testing.T) {
		return func(t *testing.T) {
			if err := do(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := undo(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	object := filepath.Join(s.Root, "wal_005", name+".zst")
	whole, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	restoreObject := func() error { return os.WriteFile(object, whole, 0o600) }
	changed := append([]byte(nil), whole...)
	changed[len(changed)/3] ^= 0x55
	// What is wrong; each is tried without a server's files, in recovery and on a standby.
	for _, c := range []struct {
		what              string
		damage            func(t *testing.T)
		name              string
		env               []string
		recovery, standby int
	}{
		{what: "missing", name: absent, recovery: 74, standby: 74},
		{what: "history missing", name: "00000002.history", recovery: 74, standby: 74},
		{what: "there", name: name},
		{what: "directory gone", name: name, recovery: 200, standby: 75,
			damage: damaged(func() error { return os.Rename(s.Root, away) }, func() error { return os.Rename(away, s.Root) })},
		{what: "directory empty", name: absent, recovery: 200, standby: 75, // as where a file system is not mounted
			damage: damaged(func() error { return errors.Join(os.Rename(s.Root, away), os.Mkdir(s.Root, 0o755)) },
				func() error { return errors.Join(os.Remove(s.Root), os.Rename(away, s.Root)) })},
		{what: "directory closed", name: absent, recovery: 200, standby: 75, // without the right to look, absent is not known to be absent
			damage: damaged(func() error { return os.Chmod(s.Root, 0) }, func() error { return os.Chmod(s.Root, 0o700) })},
		{what: "object closed", name: name, recovery: 200, standby: 75,
			damage: damaged(func() error { return os.Chmod(object, 0) }, func() error { return os.Chmod(object, 0o600) })},
		{what: "object cut short", name: name, recovery: 200, standby: 75,
			damage: damaged(func() error { return os.Truncate(object, int64(len(whole)/2)) }, restoreObject)},
		{what: "object changed", name: name, recovery: 200, standby: 75,
			damage: damaged(func() error { return os.WriteFile(object, changed, 0o600) }, restoreObject)},
		{what: "object empty", name: name, recovery: 200, standby: 75,
			damage: damaged(func() error { return os.Truncate(object, 0) }, restoreObject)},
		{what: "setting wrong", name: name, recovery: 200, standby: 75, env: []string{"WALG_DOWNLOAD_CONCURRENCY=many"}},
		{what: "no archive named", name: name, recovery: 200, standby: 75, env: []string{"WALG_FILE_PREFIX="}},
	} {
		t.Run(c.what, func(t *testing.T) {
			if c.damage != nil {
				c.damage(t)
			}
			for signal, want := range map[string]int{"": c.recovery, "recovery.signal": c.recovery, "standby.signal": c.standby} {
				if signal != "" {
					write(t, filepath.Join(data, signal), "")
				}
				r := fetch(c.name, c.env...)
				if r.Status != want {
					t.Errorf("with %q: exit status %d, want %d\n%s", signal, r.Status, want, r.Stderr)
				}
				_, err := os.Stat(dest)
				if there := err == nil; there != (want == 0) {
					t.Errorf("with %q: exit status %d, and the file is there: %t", signal, r.Status, there)
				}
				os.Remove(dest)
				os.Remove(filepath.Join(data, signal))
			}
		})
	}
}
