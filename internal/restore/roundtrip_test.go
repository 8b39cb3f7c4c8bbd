package restore_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// A cluster of every major version comes back as it was at a restore point, its tablespace elsewhere; pg_verifybackup agrees
// with the manifest that is written, and the original is not touched.
func TestRoundTrip(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{Archive: true})
		space, elsewhere := pgtest.Dir(t), pgtest.Dir(t)
		c.Exec(t, "CREATE TABLESPACE ts LOCATION '"+space+"'",
			"CREATE TABLE t TABLESPACE ts AS SELECT i, md5(i::text) AS h FROM generate_series(1, 20000) i",
			"CREATE TABLE u AS SELECT * FROM t", "ALTER SYSTEM SET work_mem = '5MB'")
		a := archive.New(&storetest.Memory{}, archive.Options{})
		conn, err := server.Connect(t.Context(), c.Config())
		if err != nil {
			t.Fatal(err)
		}
		made, err := backup.Run(t.Context(), conn, a, c.Data, backup.Options{Host: "here", NoWaitWAL: true, PartSize: 4 << 20})
		if err != nil {
			t.Fatal(err)
		}
		c.Exec(t, "INSERT INTO t SELECT i, 'later' FROM generate_series(1, 10) i")
		want := c.Value(t, "SELECT count(*) || md5(string_agg(t::text, ',' ORDER BY i, h)) FROM t")
		c.Exec(t, "SELECT pg_create_restore_point('here')", "DROP TABLE t", "SELECT pg_switch_wal()")
		pgtest.Eventually(t, "all WAL archived", func() bool {
			left, _ := filepath.Glob(filepath.Join(c.Data, "pg_wal", "archive_status", "*.ready"))
			return len(left) == 0
		})
		pushWAL(t, a, c.Archive)

		data := filepath.Join(pgtest.Dir(t), "data")
		choice := choose(t, a, "", catalog.Target{Kind: catalog.AtName, Name: "here"})
		if choice.Backup.Name != made.Name {
			t.Errorf("chose %s, want %s", choice.Backup.Name, made.Name)
		}
		plan, err := restore.Decide(t.Context(), a, restore.Request{
			Destination: data, Choice: choice, TablespaceMapping: map[string]string{space: elsewhere},
			Recovery: &restore.Recovery{Command: `cp "` + c.Archive + `/%f" "%p"`, Action: "promote"},
		})
		if err != nil {
			t.Fatal(err)
		}
		report, err := restore.Run(t.Context(), a, plan, restore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !report.Verified {
			t.Error("the contents were not verified")
		}
		if p.Major >= 13 {
			if out, err := pgtest.Command(t, pgtest.Verifier(t, p.Major), "-n", data).CombinedOutput(); err != nil {
				t.Errorf("pg_verifybackup: %v: %s", err, out)
			}
		}
		r := pgtest.Attach(t, p, data, pgtest.Options{})
		pgtest.Eventually(t, "promoted", func() bool { return r.Value(t, "SELECT pg_is_in_recovery()") == "false" })
		if got := r.Value(t, "SELECT count(*) || md5(string_agg(t::text, ',' ORDER BY i, h)) FROM t"); got != want {
			t.Errorf("restored %s, want %s", got, want)
		}
		if got := r.Value(t, "current_setting('archive_mode')"); got != "off" {
			t.Errorf("archive_mode is %s", got)
		}
		if got := r.Value(t, "current_setting('work_mem')"); got != "5MB" {
			t.Errorf("work_mem is %s", got)
		}
	})
}

// A target that is left in postgresql.conf, of an earlier recovery, neither ends the next one nor stands in the way of its target.
func TestTargetsOfAnEarlierLife(t *testing.T) {
	for _, major := range []int{12, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			p := pgtest.Require(t, major)
			c := pgtest.New(t, p, pgtest.Options{Archive: true})
			conf, err := os.OpenFile(filepath.Join(c.Data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
			if err == nil {
				_, err = io.WriteString(conf, "recovery_target_time = '2001-01-01 00:00:00+00'\nrecovery_target_inclusive = off\nrecovery_target_action = 'shutdown'\n")
				err = errors.Join(err, conf.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			a := archive.New(&storetest.Memory{}, archive.Options{})
			conn, err := server.Connect(t.Context(), c.Config())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := backup.Run(t.Context(), conn, a, c.Data, backup.Options{Host: "here", NoWaitWAL: true}); err != nil {
				t.Fatal(err)
			}
			c.Exec(t, "CREATE TABLE t (i int)", "INSERT INTO t VALUES (1)", "SELECT pg_create_restore_point('here')")
			lsn, err := wal.ParseLSN(c.Value(t, "SELECT pg_current_wal_lsn()"))
			if err != nil {
				t.Fatal(err)
			}
			c.Exec(t, "INSERT INTO t VALUES (2)", "SELECT pg_switch_wal()")
			pgtest.Eventually(t, "all WAL archived", func() bool {
				left, _ := filepath.Glob(filepath.Join(c.Data, "pg_wal", "archive_status", "*.ready"))
				return len(left) == 0
			})
			pushWAL(t, a, c.Archive)
			for _, x := range []struct {
				target catalog.Target
				want   string
			}{
				{catalog.Target{Kind: catalog.Latest}, "1 2"}, {catalog.Target{Kind: catalog.AtLSN, LSN: lsn}, "1"}, {catalog.Target{Kind: catalog.AtName, Name: "here"}, "1"},
			} {
				data := filepath.Join(pgtest.Dir(t), "data")
				plan, err := restore.Decide(t.Context(), a, restore.Request{
					Destination: data, Choice: choose(t, a, "", x.target), Recovery: &restore.Recovery{Command: `cp "` + c.Archive + `/%f" "%p"`}})
				if err == nil {
					_, err = restore.Run(t.Context(), a, plan, restore.Options{})
				}
				if err != nil {
					t.Fatal(err)
				}
				r := pgtest.Attach(t, p, data, pgtest.Options{Settings: map[string]string{"hot_standby": "on"}})
				pgtest.Eventually(t, "recovery to "+x.target.String()+" ends or pauses", func() bool {
					return r.Value(t, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE true END") == "true"
				})
				if got := r.Value(t, "SELECT string_agg(i::text, ' ' ORDER BY i) FROM t"); got != x.want {
					t.Errorf("to %s: t holds %s, want %s", x.target, got, x.want)
				}
				r.Stop(t)
			}
		})
	}
}

// A chain of deltas comes back as the cluster was; and so it does into the data directory of a copy that went its own way since. What is written then
// is what a restore into an empty directory writes, and pg_verifybackup agrees with both.
func TestChainRoundTrip(t *testing.T) {
	for _, major := range []int{11, 13, 15, 17, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			p := pgtest.Require(t, major)
			c := pgtest.New(t, p, pgtest.Options{Archive: true, Checksums: true})
			space, elsewhere := pgtest.Dir(t), pgtest.Dir(t)
			c.Exec(t, "CREATE TABLESPACE ts LOCATION '"+space+"'",
				"CREATE TABLE t TABLESPACE ts AS SELECT i, md5(i::text) AS h FROM generate_series(1, 20000) i", "CREATE INDEX ON t (i)",
				"CREATE TABLE u AS SELECT * FROM t", "CREATE TABLE gone AS SELECT * FROM t", "CREATE TABLE cut AS SELECT * FROM t", "CREATE TABLE still AS SELECT * FROM t")
			a := archive.New(&storetest.Memory{}, archive.Options{})
			take := func() *backup.Report {
				t.Helper()
				conn, err := server.Connect(t.Context(), c.Config())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				made, err := backup.Run(t.Context(), conn, a, c.Data, backup.Options{
					Host: "here", NoWaitWAL: true, PartSize: 2 << 20, Delta: backup.Delta{MaxSteps: 10, Source: backup.PageLSN}})
				if err != nil {
					t.Fatal(err)
				}
				return made
			}
			take()
			for _, statements := range [][]string{
				{"UPDATE t SET h = 'changed' WHERE i % 997 = 0", "DROP TABLE gone", "DELETE FROM cut WHERE i > 5000"},
				{"VACUUM cut", "INSERT INTO u SELECT i, 'grown' FROM generate_series(1, 5000) i", "CREATE TABLE fresh AS SELECT * FROM t LIMIT 1000"},
				{"VACUUM FULL u", "TRUNCATE cut", "INSERT INTO cut SELECT i, 'anew' FROM generate_series(1, 1000) i", "ALTER TABLE fresh SET TABLESPACE ts"},
				{"UPDATE t SET h = 'again' WHERE i BETWEEN 100 AND 200"},
			} {
				c.Exec(t, statements...)
				c.Exec(t, "CHECKPOINT")
				if made := take(); made.Delta == nil || made.Delta.Unchanged == 0 {
					t.Fatalf("no delta: %+v", made)
				}
			}
			c.Exec(t, "INSERT INTO t SELECT i, 'later' FROM generate_series(1, 10) i")
			sum := "SELECT " + func() (all string) {
				for _, table := range []string{"t", "u", "cut", "fresh", "still"} {
					all += "(SELECT count(*) || md5(string_agg(x::text, ',' ORDER BY i, h)) FROM " + table + " x) || "
				}
				return all + "''"
			}()
			want := c.Value(t, sum)
			c.Exec(t, "SELECT pg_create_restore_point('here')", "DROP TABLE t", "SELECT pg_switch_wal()")
			pgtest.Eventually(t, "all WAL archived", func() bool {
				left, _ := filepath.Glob(filepath.Join(c.Data, "pg_wal", "archive_status", "*.ready"))
				return len(left) == 0
			})
			pushWAL(t, a, c.Archive)

			data := filepath.Join(pgtest.Dir(t), "data")
			bring := func(delta bool) *restore.Report {
				t.Helper()
				plan, err := restore.Decide(t.Context(), a, restore.Request{
					Destination: data, Choice: choose(t, a, "", catalog.Target{Kind: catalog.AtName, Name: "here"}), Delta: delta,
					TablespaceMapping: map[string]string{space: elsewhere},
					Recovery:          &restore.Recovery{Command: `cp "` + c.Archive + `/%f" "%p"`, Action: "promote"},
				})
				if err != nil {
					t.Fatal(err)
				}
				if len(plan.Chain) != 5 {
					t.Errorf("the chain is %+v", plan.Chain)
				}
				report, err := restore.Run(t.Context(), a, plan, restore.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if p.Major >= 13 {
					if out, err := pgtest.Command(t, pgtest.Verifier(t, p.Major), "-n", data).CombinedOutput(); err != nil {
						t.Errorf("pg_verifybackup: %v: %s", err, out)
					}
				}
				return report
			}
			start := func() *pgtest.Cluster {
				r := pgtest.Attach(t, p, data, pgtest.Options{})
				pgtest.Eventually(t, "promoted", func() bool { return r.Value(t, "SELECT pg_is_in_recovery()") == "false" })
				if got := r.Value(t, sum); got != want {
					t.Errorf("restored %s, want %s", got, want)
				}
				return r
			}
			bring(false)
			fresh := contentsOf(t, data)
			r := start()
			r.Exec(t, "UPDATE t SET h = 'astray' WHERE i % 1500 = 0", "VACUUM FULL u", "CREATE TABLE more AS SELECT * FROM t", "DROP TABLE cut", "CHECKPOINT")
			r.Stop(t)
			report := bring(true)
			if d := report.Delta; d.EqualFiles < 500 || d.StalePages == 0 || d.MissingFiles == 0 || d.ExtraFiles == 0 || d.Write > report.KeptBytes {
				t.Errorf("%+v", d)
			}
			again := contentsOf(t, data)
			for path, content := range fresh {
				if again[path] != content {
					t.Errorf("%s: %s", path, difference(again[path], content))
				}
				delete(again, path)
			}
			for path := range again {
				t.Errorf("%s is too many", path)
			}
			start()
		})
	}
}

// contentsOf returns what is in a data directory and its tablespaces, by path, but for what names the time of its restore or is in no order.
func contentsOf(t *testing.T, data string) map[string]string {
	t.Helper()
	all := map[string]string{}
	add := func(dir, prefix string) {
		for path, content := range restored(dir) {
			if path != manifest.Name && path != "postgresql.auto.conf" && path != "recovery.conf" && !strings.HasPrefix(path, "log/") {
				all[prefix+path] = content
			}
		}
	}
	add(data, "")
	links, err := filepath.Glob(filepath.Join(data, "pg_tblspc", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil {
			t.Fatal(err)
		}
		add(to, "pg_tblspc/"+filepath.Base(link)+"/")
	}
	return all
}

// pushWAL archives the files of a directory.
func pushWAL(t *testing.T, a *archive.Archive, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		_, err := a.PutWAL(t.Context(), f.Name(), func() (io.ReadCloser, error) { return os.Open(filepath.Join(dir, f.Name())) })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A cluster with archive_mode off, whose WAL goes into the archive otherwise or not at all, is restored in place once its whole segments are archived or kept.
func TestRestoredInPlaceWithoutArchiveMode(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 17), pgtest.Options{})
	a := archive.New(&storetest.Memory{}, archive.Options{})
	conn, err := server.Connect(t.Context(), c.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := backup.Run(t.Context(), conn, a, c.Data, backup.Options{Host: "here", NoWaitWAL: true}); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, "CHECKPOINT") // what is older is recycled
	var whole []string
	for range 2 {
		whole = append(whole, c.Value(t, "SELECT pg_walfile_name(pg_current_wal_lsn())"))
		c.Exec(t, "CREATE TABLE t"+strconv.Itoa(len(whole))+" AS SELECT 1", "SELECT pg_switch_wal()")
	}
	last := c.Value(t, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
	c.Exec(t, "CREATE TABLE t3 AS SELECT 1")
	c.Server.Kill()
	decide := func() (string, error) {
		p, err := restore.Decide(t.Context(), a, restore.Request{Destination: c.Data, Choice: choose(t, a, "LATEST", none), Delta: true})
		if err != nil {
			return "", err
		}
		return strings.Join(p.Notes, "\n"), nil
	}
	var refusal *restore.RefusedError
	if _, err := decide(); !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, "holds 2 WAL files that were never archived, such as "+whole[0]) {
		t.Errorf("with %s that are nowhere else: %v", whole, err)
	}
	for _, name := range whole {
		if _, err := a.PutWAL(t.Context(), name, func() (io.ReadCloser, error) { return os.Open(filepath.Join(c.Data, "pg_wal", name)) }); err != nil {
			t.Fatal(err)
		}
	}
	if notes, err := decide(); err != nil || !strings.Contains(notes, "of "+last+", the newest WAL segment") {
		t.Errorf("with %s archived: %v, notes %s", whole, err, notes)
	}
}

// The data directory of a cluster that was killed while it was being restored does not start, and continues to a whole one.
func TestInterruptedDoesNotStart(t *testing.T) {
	a := backedUp(t, &storetest.Memory{}, "lz4", nil, small()...)
	into := interrupt(t, a, nil)
	if _, err := os.Stat(filepath.Join(into, "global", "pg_control")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a pg_control: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(into, "holdfast_restore.json")); err != nil || !strings.Contains(string(b), ours) {
		t.Errorf("marker: %s, %v", b, err)
	}
}

// A restore that ended while it placed its marker has written nothing else: another begins in its place, with --resume or without.
// Where there is something else such a marker proves nothing.
func TestMarkerThatIsNotWhole(t *testing.T) {
	a := backedUp(t, &storetest.Memory{}, "lz4", nil, small()...)
	for _, marker := range []string{"", `{"holdfast_rest`} {
		for _, resume := range []bool{false, true} {
			into := func(further ...string) func(*restore.Request) {
				return func(r *restore.Request) {
					r.Resume = resume
					if err := os.Mkdir(r.Destination, 0o700); err != nil {
						t.Fatal(err)
					}
					for _, name := range append(further, "holdfast_restore.json") {
						if err := os.WriteFile(filepath.Join(r.Destination, name), []byte(marker), 0o600); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			must(t, a, into())
			if _, err := decide(t, a, into("PG_VERSION")); err == nil || !strings.Contains(err.Error(), "not empty") {
				t.Errorf("marker %q beside PG_VERSION, resume %t: %v, want a refusal", marker, resume, err)
			}
		}
	}
}
