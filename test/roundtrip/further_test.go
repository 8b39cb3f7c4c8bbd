package roundtrip_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// A copy that continues the original with --archive adds its timeline to the archive; later restores follow it, and the old
// one can still be asked for.
func TestTimelines(t *testing.T) {
	oldAndNew(t, func(t *testing.T, p instance.Programs) {
		s := site.New(t, p, pgtest.Options{})
		m := accident(t, s)
		s.Stop(t)
		second := *s
		second.Cluster = s.Restored(t, "--target-time", m.time, "--target-action", "promote", "--archive")
		if mode := second.Value(t, `current_setting('archive_mode')`); mode != "on" {
			t.Fatalf("the copy has archive_mode = %s in spite of --archive", mode)
		}
		second.Exec(t, `insert into keepsake values (-1, 'on the second timeline')`)
		if last := second.Switch(t); !strings.HasPrefix(last, "00000002") {
			t.Errorf("the copy archives %s", last)
		}
		second.Await(t, "00000002.history")
		later := record(t, &second)
		second.Switch(t)

		later.holds(t, s.Restored(t, "--target", "latest"))
		old := s.Restored(t, "--target", "latest", "--target-timeline", "1")
		if there := old.Value(t, `to_regclass('keepsake')`); there != "" {
			t.Error("at the end of the first timeline the dropped table is there")
		}
		m.holds(t, s.Restored(t, "--target-time", m.time, "--target-timeline", "1", "--target-action", "promote"))
		second.Push(t)
		later.holds(t, s.Restored(t, "--target", "latest"))
	})
}

// Configuration outside the data directory, as on Debian, is saved with the backup, and with it the copy starts alone.
func TestConfigurationOutside(t *testing.T) {
	p := pgtest.Require(t, 15)
	etc := pgtest.Dir(t)
	write(t, filepath.Join(etc, "postgresql.conf"), fmt.Sprintf("hba_file = '%[1]s/pg_hba.conf'\nident_file = '%[1]s/pg_ident.conf'\n"+
		"include_dir = 'conf.d'\nwork_mem = '7MB'\nmax_connections = 33\n", etc))
	write(t, filepath.Join(etc, "pg_hba.conf"), "local all all trust\n")
	write(t, filepath.Join(etc, "pg_ident.conf"), "")
	if err := os.Mkdir(filepath.Join(etc, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(etc, "conf.d", "more.conf"), "maintenance_work_mem = '77MB'\n")
	pgtest.Give(t, etc)
	s := site.New(t, p, pgtest.Options{Settings: map[string]string{"config_file": filepath.Join(etc, "postgresql.conf")}})
	for _, own := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} { // as on Debian there are none
		if err := os.Remove(filepath.Join(s.Data, own)); err != nil {
			t.Fatal(err)
		}
	}
	s.Push(t)
	s.Switch(t)
	c := s.Restored(t, "--target", "latest", "--config-into-pgdata")
	for name, want := range map[string]string{"work_mem": "7MB", "max_connections": "33", "maintenance_work_mem": "77MB", "config_file": filepath.Join(c.Data, "postgresql.conf")} {
		if got := c.Value(t, `current_setting($1)`, name); got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
	aside := filepath.Join(pgtest.Dir(t), "configuration")
	s.Fetch(t, "LATEST", "--restore-config", aside)
	for _, name := range []string{"postgresql.conf", "pg_hba.conf", "conf.d/more.conf"} {
		want, err1 := os.ReadFile(filepath.Join(etc, name))
		got, err2 := os.ReadFile(filepath.Join(aside, etc, name))
		if err1 != nil || err2 != nil || !bytes.Equal(want, got) {
			t.Errorf("%s: %v, %v, %q, want %q", name, err1, err2, got, want)
		}
	}
}

// A page that is corrupt on disk does not prevent a backup: it is made, and reported by file and block and by exit status 3.
func TestCorruptPageIsReported(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 17), pgtest.Options{Checksums: true})
	s.Exec(t, `create table damaged as select g as id, md5(g::text) as what from generate_series(1, 5000) g`, `checkpoint`)
	file := s.Value(t, `pg_relation_filepath('damaged')`)
	s.Stop(t)
	f, err := os.OpenFile(filepath.Join(s.Data, file), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("rotten"), 3*8192+4000); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
	s.Refused(t, 3, []string{file, "block 3"}, "backup-push", s.Data)
	if names := s.Backups(t); len(names) != 1 {
		t.Errorf("backups: %v", names)
	}
	r := s.OK(t, "backup-fetch", filepath.Join(pgtest.Dir(t), "data"), "LATEST")
	if !strings.Contains(r.Stderr, file) {
		t.Errorf("the restore has no word of %s:\n%s", file, r.Stderr)
	}
}

// A backup is refused where it could not be one: another is running, the directory is another server's, nothing archives.
func TestBackupRefused(t *testing.T) {
	p := pgtest.Require(t, 18)
	s := site.New(t, p, pgtest.Options{})
	other := pgtest.New(t, p, pgtest.Options{})
	slow := s.Command(t, "backup-push", s.Data)
	slow.Env = append(slow.Env, "WALG_DISK_RATE_LIMIT=8000000")
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the first backup runs", func() bool { return anyObject(t, s, "/push.json") })
	s.Refused(t, 1, []string{"running"}, "backup-push", s.Data)
	if err := slow.Wait(); err != nil {
		t.Errorf("the first backup: %v", err)
	}
	s.Refused(t, 1, []string{"system identifier", other.Data}, "backup-push", other.Data)
	s.Exec(t, `select pg_switch_wal()`)
	s.Stop(t)
	idle := pgtest.Attach(t, p, s.Data, pgtest.Options{Settings: map[string]string{"archive_mode": "off"}})
	s.Cluster = idle
	r := s.Refused(t, 1, []string{"archive_mode = off"}, "backup-push", s.Data)
	if !strings.Contains(r.Stderr, "archive_command = ") {
		t.Errorf("no word of what to set:\n%s", r.Stderr)
	}
	if names := s.Backups(t); len(names) != 1 {
		t.Errorf("backups: %v", names)
	}
	s.NoTrace(t, s.Backups(t)...)
}
