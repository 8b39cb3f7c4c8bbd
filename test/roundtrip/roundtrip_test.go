// Package roundtrip_test takes real servers through backup and restore with the real program: every major of PostgreSQL, every
// kind of target, tablespaces, standbys, S3, and what must be refused.
package roundtrip_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// These tests wait for stores more than they compute.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// moment is a state of the database to come back to.
type moment struct {
	time, lsn, xid, name string
	committed            int64             // transactions of the load
	rows                 map[string]string // a checksum per table
}

// restorePoint names the one that record makes.
const restorePoint = "before the accident"

// tables are those that are compared row by row.
var tables = []string{"account", "history", "keepsake"}

// record notes the present, in which nothing may be writing.
func record(t *testing.T, s *site.Site) moment {
	t.Helper()
	m := moment{rows: map[string]string{}, name: restorePoint}
	m.xid = commit(t, s)
	for _, table := range tables {
		m.rows[table] = site.Rows(t, s.Cluster, table)
	}
	m.committed = s.CheckLoad(t)
	m.lsn = s.Value(t, `pg_current_wal_insert_lsn()`)
	s.Exec(t, `select pg_create_restore_point('`+restorePoint+`')`)
	m.time = s.Value(t, `clock_timestamp()`)
	return m
}

// holds fails the test unless c is in the state m.
func (m moment) holds(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	for table, want := range m.rows {
		if got := site.Rows(t, c, table); got != want {
			t.Errorf("%s came back as %s, was %s", table, got, want)
		}
	}
	if got := c.CheckLoad(t); got != m.committed {
		t.Errorf("%d transactions came back of %d", got, m.committed)
	}
}

// accident takes a backup under load, lets the load go on, records a moment, goes on again and drops a table. All WAL is archived then.
func accident(t *testing.T, s *site.Site) moment {
	t.Helper()
	s.Exec(t, `create table keepsake as select g as id, md5(g::text) as what from generate_series(1, 5000) g`)
	work := func(during func()) {
		load := s.StartLoad(t, 2)
		goal := func(n int64) func() bool { return func() bool { return load.Committed() >= n } }
		pgtest.Eventually(t, "50 transactions", goal(50))
		if during != nil {
			during()
		}
		pgtest.Eventually(t, "50 further transactions", goal(load.Committed()+50))
		if _, err := load.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	work(func() { s.Push(t) })
	m := record(t, s)
	work(nil)
	s.Exec(t, `drop table keepsake`)
	s.Switch(t)
	return m
}

// A table that was dropped after a backup under load comes back as it was at a recorded time, on every major.
func TestRoundTrip(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		s := site.New(t, p, pgtest.Options{Checksums: true})
		m := accident(t, s)

		c := s.Restored(t, "--target-time", m.time, "--target-action", "promote")
		m.holds(t, c)
		if mode := c.Value(t, `current_setting('archive_mode')`); mode != "off" {
			t.Errorf("the copy has archive_mode = %s", mode)
		}
		if p.Major >= 15 && has(p, "pg_amcheck") {
			c.Exec(t, `create extension amcheck`)
			run(t, c, filepath.Join(p.Dir, "pg_amcheck"), "--heapallindexed", "--all")
		}
		c.Stop(t)
		if has(p, "pg_checksums") {
			run(t, c, filepath.Join(p.Dir, "pg_checksums"), "--check", "-D", c.Data)
		}

		plain := s.Fetch(t, "LATEST")
		if p.Major >= 13 {
			run(t, c, pgtest.Verifier(t, p.Major), "-n", plain)
		} else if _, err := os.Stat(filepath.Join(plain, "backup_manifest")); err == nil {
			t.Error("a backup_manifest, which PostgreSQL has only since 13")
		}
	})
}

// has reports whether a client program came with the server.
func has(p instance.Programs, program string) bool {
	_, err := os.Stat(filepath.Join(p.Dir, program))
	return err == nil
}

// run runs one of PostgreSQL's client programs, which must be content.
func run(t *testing.T, c *pgtest.Cluster, program string, args ...string) {
	t.Helper()
	cmd := pgtest.Command(t, program, args...)
	cmd.Env = append(cmd.Environ(), c.Environ()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

// Every kind of target is reached, with recovery.conf and with recovery.signal.
func TestTargets(t *testing.T) {
	for _, major := range []int{11, 17} {
		p := pgtest.Require(t, major)
		t.Run("PG"+itoa(major), func(t *testing.T) {
			s := site.New(t, p, pgtest.Options{})
			m := accident(t, s)
			config := filepath.Join(pgtest.Dir(t), "it's 100% settings.yaml")
			write(t, config, "WALG_FILE_PREFIX: "+s.Root+"\n")
			for _, target := range []struct {
				name string
				args []string
			}{
				{"lsn", []string{"--target-lsn", m.lsn}},
				{"lsn, exclusive", []string{"--target-lsn", m.lsn, "--exclusive"}},
				{"xid", []string{"--target-xid", m.xid}},
				{"restore point", []string{"--target-name", m.name}},
				{"settings from a file", []string{"--target-name", m.name, "--config", config}},
			} {
				t.Run(target.name, func(t *testing.T) {
					dir := s.Fetch(t, append(target.args, "--target-action", "promote")...)
					opts := pgtest.Options{Env: s.Env, Settings: map[string]string{"hot_standby": "on"}}
					if target.name == "settings from a file" {
						opts.Env = nil // the restore_command names the file
					}
					c := pgtest.Attach(t, p, dir, opts)
					site.AwaitRecovery(t, c)
					m.holds(t, c)
				})
			}
			t.Run("pauses", func(t *testing.T) { // what PostgreSQL does when it is told nothing
				c := s.Open(t, s.Fetch(t, "--target-name", m.name))
				paused := `pg_is_wal_replay_paused()`
				pgtest.Eventually(t, "recovery pauses", func() bool { return c.Value(t, paused) == "true" })
				m.holds(t, c)
			})
			t.Run("immediate", func(t *testing.T) {
				c := s.Restored(t, "--target", "immediate", "--target-action", "promote")
				if n := c.CheckLoad(t); n < 50 || n >= m.committed {
					t.Errorf("%d transactions at the end of the backup, %d at the later moment", n, m.committed)
				}
			})
			t.Run("latest", func(t *testing.T) {
				c := s.Restored(t, "--target", "latest")
				if n := c.CheckLoad(t); n <= m.committed {
					t.Errorf("%d transactions at the end, %d before", n, m.committed)
				}
				if there := c.Value(t, `to_regclass('keepsake')`); there != "" {
					t.Error("the dropped table is there at the end of the WAL")
				}
			})
			t.Run("dry run", func(t *testing.T) {
				dir := filepath.Join(pgtest.Dir(t), "data")
				s.OK(t, "backup-fetch", dir, "--target-time", m.time, "--dry-run")
				if _, err := os.Stat(dir); err == nil {
					t.Error("--dry-run made the directory")
				}
			})
		})
	}
}
