package roundtrip_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// wired is a site whose backups come over the wire, by a role that may do nothing but replicate.
type wired struct{ *site.Site }

func newWired(t *testing.T, p instance.Programs, opts pgtest.Options) wired {
	t.Helper()
	s := wired{site.New(t, p, opts)}
	s.Exec(t, `create role wire login replication`)
	return s
}

// command prepares a backup over the wire by the archive's account, which need not be the server's.
func (s wired) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := s.Command(t, append([]string{"backup-push", "--json"}, args...)...)
	cmd.Env = append(cmd.Env, "PGUSER=wire")
	cmd.Env = slices.DeleteFunc(cmd.Env, func(e string) bool { return strings.HasPrefix(e, "PGDATA") })
	return cmd
}

type wireReport struct {
	Name  string `json:"backup_name"`
	Bytes int64  `json:"uncompressed_size"`
	Full  string `json:"full_because"`
	Delta *struct {
		Parent      string   `json:"parent"`
		Source      string   `json:"source"`
		Whole       int64    `json:"files_whole"`
		Incremental int64    `json:"files_incremental"`
		Unchanged   int64    `json:"files_unchanged"`
		Pages       int64    `json:"pages"`
		Notes       []string `json:"notes"`
	}
}

// push takes a backup over the wire.
func (s wired) push(t *testing.T, args ...string) (r wireReport) {
	t.Helper()
	result := site.Run(t, s.command(t, args...))
	if result.Status != 0 {
		t.Fatalf("backup-push over the wire: exit status %d\n%s", result.Status, result.Stderr)
	}
	if err := json.Unmarshal([]byte(result.Stdout), &r); err != nil {
		t.Fatalf("backup-push --json: %v\n%s", err, result.Stdout)
	}
	return r
}

// What comes over the wire restores to what it was, with tablespaces elsewhere, and is laid out as any other backup.
func TestWire(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		s := newWired(t, p, pgtest.Options{Checksums: true})
		dir := pgtest.Dir(t)
		s.Exec(t, `create tablespace side location '`+dir+`'`,
			`create table t as select g as id, md5(g::text) as what from generate_series(1, 100000) g`,
			`create table aside tablespace side as select g as id, md5(g::text) as what from generate_series(1, 3000) g`,
			`create unlogged table fleeting as select generate_series(1, 1000) g`,
			`create index on t (what)`, `vacuum t`)
		name := s.push(t).Name
		s.NoTrace(t, name)
		s.NotInBackup(t)
		s.Exec(t, `insert into t select g, 'later' from generate_series(1, 1000) g`, `insert into aside values (0, 'later')`)
		s.Switch(t)
		c := s.Restored(t, "--target", "latest", "--tablespace-mapping", dir+"="+filepath.Join(pgtest.Dir(t), "side"))
		for _, table := range []string{"t", "aside"} {
			if got, want := site.Rows(t, c, table), site.Rows(t, s.Cluster, table); got != want {
				t.Errorf("%s came back as %s, was %s", table, got, want)
			}
		}
		if n := c.Value(t, `select count(*) from fleeting`); n != "0" {
			t.Errorf("an unlogged table came back with %s rows", n)
		}
		for object, want := range map[string]bool{
			"tar_partitions/part_001.tar.zst": true, "tar_partitions/pg_control.tar.zst": true, "tar_partitions/backup_label.tar.zst": true,
			"page_sums/part_001.tar.crc32c": true, "backup_manifest.zst": p.Major >= 13, "manifest.json.zst": true, "config.tar.zst": false,
		} {
			if got := s.Has("basebackups_005/" + name + "/" + object); got != want {
				t.Errorf("%s is there: %v, want %v", object, got, want)
			}
		}
		if p.Major < 13 {
			return
		}
		into := s.Fetch(t, name, "--tablespace-mapping", dir+"="+filepath.Join(pgtest.Dir(t), "side"))
		if out, err := pgtest.Command(t, pgtest.Verifier(t, p.Major), "-n", into).CombinedOutput(); err != nil {
			t.Errorf("pg_verifybackup: %v\n%s", err, out)
		}
		if _, err := os.Stat(filepath.Join(into, "postgresql.conf")); err != nil {
			t.Error(err)
		}
	})
}

// Increments over the wire restore to what a full backup restores to, upon full ones of either kind and below deltas of either kind.
func TestWireDelta(t *testing.T) {
	for _, major := range []int{17, 18} {
		t.Run("PG"+itoa(major), func(t *testing.T) {
			s := newWired(t, pgtest.Require(t, major), pgtest.Options{Checksums: true, Settings: map[string]string{"summarize_wal": "on", "autovacuum": "off"}})
			s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=9")
			dir := pgtest.Dir(t)
			s.Exec(t, `create tablespace side location '`+dir+`'`,
				`create table t as select g as id, md5(g::text) as what from generate_series(1, 100000) g`, `create index on t (id)`,
				`create table aside tablespace side as select g as id, md5(g::text) as what from generate_series(1, 30000) g`,
				`create table shrinks as select g as id, md5(g::text) as what from generate_series(1, 50000) g`,
				`create table goes as select 1 as id`, `create database other`)
			names := []string{s.push(t).Name}
			change := func(n int) {
				s.Exec(t, `update t set what = 'changed' where id between `+itoa(n*1000)+` and `+itoa(n*1000+300),
					`insert into aside select g, 'new' from generate_series(1, 3000) g`,
					`delete from shrinks where id > `+itoa(50000-n*7000), `vacuum shrinks`, `vacuum t`,
					`create table new`+itoa(n)+` as select g as id, md5(g::text) as what from generate_series(1, 1000) g`)
			}
			wire := func() {
				t.Helper()
				r := s.push(t)
				if r.Delta == nil || r.Delta.Parent != names[len(names)-1] || r.Delta.Source != "summaries" {
					t.Fatalf("a delta on %s was expected, got %+v: %s", names[len(names)-1], r.Delta, r.Full)
				}
				if r.Delta.Unchanged < 500 || r.Delta.Incremental == 0 || r.Bytes > 40<<20 {
					t.Errorf("%s: %+v, %d bytes", r.Name, r.Delta, r.Bytes)
				}
				names = append(names, r.Name)
			}
			local := func() {
				t.Helper()
				names = append(names, s.Push(t))
			}
			check := func() {
				t.Helper()
				s.Switch(t)
				c := s.Restored(t, "--target", "latest", "--tablespace-mapping", dir+"="+filepath.Join(pgtest.Dir(t), "side"))
				for _, table := range []string{"t", "aside", "shrinks", "new1"} {
					if got, want := site.Rows(t, c, table), site.Rows(t, s.Cluster, table); got != want {
						t.Errorf("%s: %s came back as %s, was %s", names[len(names)-1], table, got, want)
					}
				}
				run(t, c, pgtest.Tool(t, major, "pg_amcheck"), "--install-missing", "--heapallindexed", "--database", "postgres")
				into := s.Fetch(t, names[len(names)-1], "--tablespace-mapping", dir+"="+filepath.Join(pgtest.Dir(t), "side"))
				if out, err := pgtest.Command(t, pgtest.Verifier(t, major), "-n", into).CombinedOutput(); err != nil {
					t.Errorf("pg_verifybackup: %v\n%s", err, out)
				}
			}
			change(1)
			s.Exec(t, `drop table goes`)
			wire()
			change(2)
			wire()
			check()
			change(3)
			local() // by reading files, upon what came over the wire
			if !strings.Contains(names[3], "_D_") {
				t.Errorf("%s is no delta", names[3])
			}
			change(4)
			wire() // and the other way round
			check()
		})
	}
}

// What PostgreSQL's own increments would bring back wrong comes back right: pages of a file that was truncated and made longer again
// without being written to, which it takes from the backup before, with rows that were deleted; and bits of a visibility map that no
// longer hold.
func TestWireDeltaKnowsBetter(t *testing.T) {
	for _, major := range []int{17, 18} {
		t.Run("PG"+itoa(major), func(t *testing.T) {
			s := newWired(t, pgtest.Require(t, major), pgtest.Options{Checksums: true, Settings: map[string]string{"summarize_wal": "on", "autovacuum": "off"}})
			s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=9")
			file := filepath.Join(pgtest.Dir(t), "rows")
			s.Exec(t, `create extension pg_visibility`,
				`create table cut as select g as id, md5(g::text) as what from generate_series(1, 50000) g`,
				`create table seen as select g as id, md5(g::text) as what from generate_series(1, 50000) g`,
				`copy (select g as id, md5(g::text) as what from generate_series(100000, 103000) g) to '`+file+`'`, `vacuum cut, seen`)
			s.push(t)
			s.Exec(t, `delete from cut where id > 1000`, `vacuum cut`, `copy cut from '`+file+`'`, `delete from seen where id % 5000 = 0`)
			if got := s.Value(t, `pg_relation_size('cut') / 8192 - 1 > (select max((ctid::text::point)[0]) from cut)`); got != "true" {
				t.Fatal("COPY did not make the file longer than it needed: this test shows nothing")
			}
			r := s.push(t)
			if r.Delta == nil || len(r.Delta.Notes) != 1 || !strings.Contains(r.Delta.Notes[0], "they are zeros") {
				t.Errorf("%+v: %+v", r, r.Delta)
			}
			s.Switch(t)
			c := s.Restored(t, "--target", "latest")
			for _, table := range []string{"cut", "seen"} {
				if got, want := site.Rows(t, c, table), site.Rows(t, s.Cluster, table); got != want {
					t.Errorf("%s came back as %s, was %s", table, got, want)
				}
				if n := c.Value(t, `select count(*) from pg_check_visible('`+table+`')`); n != "0" {
					t.Errorf("%s: %s rows on pages that are all visible by the map are not", table, n)
				}
			}
		})
	}
}

// The server's compression changes nothing but the way.
func TestWireCompressed(t *testing.T) {
	for _, test := range []struct {
		major int
		codec string
	}{{15, "auto"}, {17, "gzip"}, {18, "lz4"}, {18, "zstd"}, {14, "zstd"}} {
		s := newWired(t, pgtest.Require(t, test.major), pgtest.Options{Checksums: true})
		s.Env = append(s.Env, "HOLDFAST_WIRE_COMPRESSION="+test.codec)
		s.Exec(t, `create table t as select g as id, md5(g::text) as what from generate_series(1, 100000) g`)
		s.push(t)
		s.Switch(t)
		if got, want := site.Rows(t, s.Restored(t, "--target", "latest"), "t"), site.Rows(t, s.Cluster, "t"); got != want {
			t.Errorf("%d, %s: t came back as %s, was %s", test.major, test.codec, got, want)
		}
	}
}

// A standby sends a backup as a primary does; one that is promoted meanwhile gives none.
func TestWireOfStandby(t *testing.T) {
	oldAndNew(t, func(t *testing.T, p instance.Programs) {
		s := newWired(t, p, pgtest.Options{Checksums: true})
		standby := wired{standbyOf(t, s.Site)}
		s.Exec(t, `create table t as select g as id, md5(g::text) as what from generate_series(1, 10000) g`)
		s.CatchUp(t, standby.Cluster)
		begin := func(env ...string) (*exec.Cmd, *bytes.Buffer) {
			t.Helper()
			cmd := standby.command(t)
			cmd.Env = append(cmd.Env, env...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			return cmd, &stderr
		}
		cmd, stderr := begin()
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		pgtest.Eventually(t, "the backup ends", func() bool {
			s.Exec(t, `select pg_switch_wal()`) // a standby cannot
			select {
			case err := <-ended:
				if err != nil {
					t.Fatalf("backup-push: %v\n%s", err, stderr)
				}
				return true
			default:
				return false
			}
		})
		s.Switch(t)
		if got, want := site.Rows(t, s.Restored(t, "--target", "latest"), "t"), site.Rows(t, s.Cluster, "t"); got != want {
			t.Errorf("t came back as %s, was %s", got, want)
		}
		names := s.Backups(t)

		s.Exec(t, `checkpoint`) // or the next one would begin where this one began
		s.CatchUp(t, standby.Cluster)
		cmd, stderr = begin("WALG_DISK_RATE_LIMIT=6000000")
		pgtest.Eventually(t, "the backup has begun", func() bool { return anyObject(t, s.Site, "/push.json") })
		if err := standby.Server.Promote(t.Context()); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // how it ended is checked below
		site.Ended(cmd, "", stderr.String()).Check(t, "backup-push", 1, "promoted")
		s.NoTrace(t, names...)
	})
}

// A command line that makes no sense is refused, and so is a role that may not replicate, with what to do about it.
func TestWireRefused(t *testing.T) {
	s := newWired(t, pgtest.Require(t, 16), pgtest.Options{})
	s.Exec(t, `create role plain login`)
	s.Refused(t, 1, []string{"--wire", "name none"}, "backup-push", "--wire", s.Data)
	cmd := s.command(t)
	cmd.Env = append(cmd.Env, "PGUSER=plain")
	r := site.Run(t, cmd)
	r.Check(t, "backup-push by a role that may not replicate", 1, "permission denied to start WAL sender")
	if !strings.Contains(r.Stderr, `ALTER ROLE "plain" REPLICATION`) {
		t.Errorf("there is no word of what to do:\n%s", r.Stderr)
	}
	s.NoTrace(t)
}

// Where the server does not say what has changed, or the archive not what was truncated, the backup is a full one and says why; or it
// fails, where that was asked for.
func TestWireDeltaOrFull(t *testing.T) {
	s := newWired(t, pgtest.Require(t, 17), pgtest.Options{Settings: map[string]string{"min_wal_size": "32MB"}})
	s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=9")
	s.Exec(t, `create table t as select g as id, md5(g::text) as what from generate_series(1, 10000) g`)
	names := []string{s.push(t).Name}
	full := func(why string) {
		t.Helper()
		r := s.push(t)
		if r.Delta != nil || strings.Contains(r.Name, "_D_") || !strings.Contains(r.Full, why) {
			t.Errorf("%s: a full backup because of %q was expected, got %q and %+v", r.Name, why, r.Full, r.Delta)
		}
		names = append(names, r.Name)
	}
	full("WAL summarization is enabled")
	cmd := s.command(t)
	cmd.Env = append(cmd.Env, "WALG_FORCE_WAL_DELTA=true")
	site.Run(t, cmd).Check(t, "backup-push that must be a delta", 1, "WAL summarization is enabled")
	s.NoTrace(t, names...)

	s.Exec(t, `alter system set summarize_wal = on`, `select pg_reload_conf()`)
	pgtest.Eventually(t, "WAL is summarized", func() bool {
		return s.Value(t, `select summarized_lsn > '0/0' from pg_get_wal_summarizer_state()`) == "true"
	})
	cmd = s.command(t, "--full")
	r := site.Run(t, cmd)
	if r.Status != 0 {
		t.Fatalf("%d: %s", r.Status, r.Stderr)
	}
	names = s.Backups(t)
	gone := s.Switch(t)
	for range 6 { // until the server has no use for it
		s.Switch(t)
		s.Exec(t, `checkpoint`)
	}
	pgtest.Eventually(t, gone+" is recycled", func() bool {
		s.Exec(t, `checkpoint`)
		return s.Value(t, `select count(*) from pg_ls_waldir() where name = '`+gone+`'`) == "0"
	})
	for _, object := range s.Objects(t) {
		if strings.Contains(object, gone) && !strings.HasPrefix(object, "basebackups_005/") {
			if err := os.Remove(filepath.Join(s.Root, object)); err != nil {
				t.Fatal(err)
			}
		}
	}
	full("The archive does not tell what was truncated")
	s.NoTrace(t, append(names, s.Backups(t)...)...)
	s.NotInBackup(t)
	s.Restored(t, names[len(names)-1], "--target", "latest")
}

// Tablespaces inside the data directory, in place or linked to, one that comes while the backup runs and one that goes, come back as they were.
func TestWireTablespacesInside(t *testing.T) {
	for _, major := range []int{10, 15, 18} {
		t.Run("PG"+itoa(major), func(t *testing.T) {
			s := newWired(t, pgtest.Require(t, major), pgtest.Options{Checksums: true})
			inside, late, gone := filepath.Join(s.Data, "inside"), pgtest.Dir(t), pgtest.Dir(t)
			if err := os.Mkdir(inside, 0o700); err != nil {
				t.Fatal(err)
			}
			pgtest.Give(t, inside)
			s.Exec(t, `create tablespace inside location '`+inside+`'`, `create tablespace gone location '`+gone+`'`,
				`create table t tablespace inside as select g as id from generate_series(1, 10000) g`, `create table g tablespace gone as select 1 as id`)
			tables := []string{"t", "late"}
			if major >= 15 {
				s.Exec(t, `alter system set allow_in_place_tablespaces = on`, `select pg_reload_conf()`)
				pgtest.Eventually(t, "the reload", func() bool { return s.Value(t, `current_setting('allow_in_place_tablespaces')`) == "on" })
				s.Exec(t, `create tablespace placed location ''`, `create table p tablespace placed as select g as id from generate_series(1, 10000) g`)
				tables = append(tables, "p")
			}
			cmd := s.command(t)
			cmd.Env = append(cmd.Env, "WALG_DISK_RATE_LIMIT=20000000")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pgtest.Eventually(t, "the backup has begun", func() bool { return anyObject(t, s.Site, "/push.json") })
			s.Exec(t, `drop table g`, `drop tablespace gone`, `create tablespace late location '`+late+`'`, `create table late tablespace late as select 7 as id`)
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			s.Switch(t)
			was := map[string]string{}
			for _, table := range tables {
				was[table] = site.Rows(t, s.Cluster, table)
			}
			s.Stop(t) // replay makes the late one where it was
			for _, dir := range []string{late, gone} {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				pgtest.Give(t, dir)
			}
			c := s.Restored(t, "--target", "latest", "--tablespace-mapping", inside+"="+filepath.Join(pgtest.Dir(t), "inside"))
			for table, want := range was {
				if got := site.Rows(t, c, table); got != want {
					t.Errorf("%s came back as %s, was %s", table, got, want)
				}
			}
		})
	}
}
