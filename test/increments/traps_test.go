package increments_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/pg/page"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// What changes on pages and is in no WAL, or in WAL and on no page that says so.

// each runs test for every source of changed blocks of a major.
func each(t *testing.T, major int, opts pgtest.Options, test func(t *testing.T, s *site.Site, source string)) {
	for _, source := range sources(major) {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			one := opts
			one.Settings = map[string]string{"autovacuum": "off"}
			if major >= 17 {
				one.Settings["summarize_wal"] = "on"
			}
			s := site.New(t, pgtest.Require(t, major), one)
			s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=10", "HOLDFAST_DELTA_SOURCE="+source)
			test(t, s, source)
		})
	}
}

// A page that vacuum has found to be visible to all is marked so on itself and in the visibility map, which changes the page's LSN only where
// hints are logged. If a restore brought back the map and not the page, the next change to the page would leave the map as it is, and
// whoever reads the index alone would be told of rows that are gone.
func TestVisibilityMapFitsItsPages(t *testing.T) {
	t.Parallel()
	each(t, 15, pgtest.Options{}, func(t *testing.T, s *site.Site, _ string) {
		s.Exec(t, `create table t as select g as id from generate_series(1, 20000) g`, `create index on t (id)`)
		s.Push(t, "--full")
		s.Exec(t, `vacuum t`)
		name := s.Push(t)
		s.Switch(t)
		c := s.Restored(t, name, "--target", "latest")
		c.Exec(t, `create extension pageinspect`, `delete from t where id between 300 and 400`)
		const count = `select count(*) from t where id between 1 and 1000`
		for _, plan := range []string{`set enable_indexonlyscan = off`, `set enable_seqscan = off; set enable_bitmapscan = off; set enable_indexscan = on`} {
			conn := c.Conn(t)
			if _, err := conn.PgConn().Exec(t.Context(), plan).ReadAll(); err != nil {
				t.Fatal(err)
			}
			var n int
			if err := conn.QueryRow(t.Context(), count).Scan(&n); err != nil {
				t.Fatal(err)
			}
			if n != 899 {
				t.Errorf("%s: %d rows are there of 899", plan, n)
			}
		}
	})
}

// pg_checksums writes every page of a cluster that is shut down, and no WAL.
func TestChecksumsSwitchedOnBetweenBackups(t *testing.T) {
	t.Parallel()
	each(t, 17, pgtest.Options{}, func(t *testing.T, s *site.Site, _ string) {
		s.Exec(t, `create table t as select g as id, repeat('x', 100) as v from generate_series(1, 20000) g`, `vacuum t`)
		s.Push(t, "--full")
		s.Stop(t)
		if out, err := pgtest.Command(t, pgtest.Tool(t, 17, "pg_checksums"), "--enable", "-D", s.Data).CombinedOutput(); err != nil {
			t.Fatalf("pg_checksums: %v\n%s", err, out)
		}
		s.Start(t)
		s.Exec(t, `update t set v = 'y' where id = 77`)
		name := s.Push(t)
		want := site.Rows(t, s.Cluster, "t")
		s.Switch(t)
		c := s.Restored(t, name, "--target", "latest")
		if got := site.Rows(t, c, "t"); got != want {
			t.Errorf("%s came back, was %s", got, want)
		}
		c.Stop(t)
		if out, err := pgtest.Command(t, pgtest.Tool(t, 17, "pg_checksums"), "--check", "-D", c.Data).CombinedOutput(); err != nil {
			t.Errorf("pg_checksums: %v\n%s", err, out)
		}
	})
}

// A relation of several files changes in its second one, loses it, and gets it back.
func TestSecondFileOfRelation(t *testing.T) {
	if testing.Short() {
		t.Skip("writes some gigabytes")
	}
	t.Parallel()
	const perFile = 131072 // pages
	p := pgtest.Require(t, 17)
	s := site.New(t, p, pgtest.Options{Checksums: true, Settings: map[string]string{"autovacuum": "off", "summarize_wal": "on", "max_wal_size": "2GB"}})
	s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=10")
	s.Exec(t, `create table t (id int, v text) with (fillfactor = 50)`, `alter table t alter v set storage plain`,
		`insert into t select g, 'first' from generate_series(1, 1000) g`)
	path := filepath.Join(s.Data, s.Value(t, `pg_relation_filepath('t')`))
	s.Stop(t)
	// Pages that were never used take the place of a gigabyte of rows.
	for _, f := range []struct {
		path  string
		pages int64
	}{{path, perFile}, {path + ".1", 50}} {
		file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := file.Truncate(f.pages * page.Size); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, f.path)
	}
	s.Start(t)
	chains := map[string]string{}
	full := s.Push(t, "--full")
	for _, source := range sources(p.Major) {
		chains[source] = full
	}
	extend := func() {
		for _, source := range sources(p.Major) {
			cmd := s.Command(t, "backup-push", "--json", s.Data, "--delta-from-name", chains[source])
			cmd.Env = append(cmd.Env, "HOLDFAST_DELTA_SOURCE="+source)
			w := &world{t: t, site: s}
			chains[source] = w.report(site.Run(t, cmd), cmd.Args).Name
		}
	}
	// Rows go to the last page there is.
	s.Exec(t, `insert into t select g, 'second file' from generate_series(1, 9000) g`, `update t set v = 'changed' where ctid < '(3,0)'`)
	extend()
	s.Exec(t, `update t set v = 'again' where id % 100 = 1`)
	extend()
	s.Exec(t, fmt.Sprintf(`delete from t where ctid >= '(%d,0)'`, perFile-10), `vacuum (truncate) t`)
	if size := s.Value(t, `pg_relation_size('t')`); size != "0" && len(size) > 8 {
		t.Logf("the table was cut off at %s bytes", size)
	}
	extend()
	s.Exec(t, `insert into t select g, 'grown' from generate_series(1, 5000) g`)
	extend()
	want := site.Rows(t, s.Cluster, "t")
	s.Switch(t)
	for source, name := range chains {
		c := s.Restored(t, name, "--target", "latest")
		if got := site.Rows(t, c, "t"); got != want {
			t.Errorf("from %s: %s came back, was %s", source, got, want)
		}
		c.Stop(t)
	}
}
