// Package catchup_test brings standbys forward that lag behind, on real servers: what becomes of them is what their primary is.
package catchup_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// pair is a primary, and the data directory of a standby that was stopped and that much has happened since on the primary.
type pair struct {
	*site.Site
	dir    string // of the standby
	spaces string // where its tablespaces are
	at     string // where it is, as --print-lsn says
}

// lagging makes a pair. What wal-push and catchup-push need to know of the source of changed blocks is in the environment.
func lagging(t *testing.T, major int, source string) *pair {
	t.Helper()
	p := pgtest.Require(t, major)
	settings := map[string]string{"autovacuum": "off", "max_wal_size": "1GB", "allow_system_table_mods": "on"}
	if major >= 17 {
		settings["summarize_wal"] = "on"
	}
	env := []string{"HOLDFAST_WAL_SUMMARIES=off", "HOLDFAST_DELTA_SOURCE=" + source, "HOLDFAST_DELTA_SAMPLE=1"}
	if source == "archive" {
		env[0] = "HOLDFAST_WAL_SUMMARIES=on"
	}
	s := site.New(t, p, pgtest.Options{Checksums: true, SegmentSize: 4 << 20, Settings: settings, Env: env}) // many copies are made of the standby
	s.Env = append(s.Env, env...)
	v := &pair{Site: s, spaces: pgtest.Dir(t)}
	for _, name := range []string{"old", "gone", "new"} {
		dir := v.space(name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, dir)
	}
	s.Exec(t, `create tablespace old location '`+v.space("old")+`'`, `create tablespace gone location '`+v.space("gone")+`'`,
		`create database other`, `create database dropped`)
	s.ExecIn(t, "other",
		`create table copied (id int primary key, text text)`, `insert into copied select i, repeat(md5(i::text), 8) from generate_series(1, 5000) i`)
	s.Exec(t,
		`create extension amcheck`, `create extension pg_visibility`,
		`create table much (id int primary key, text text)`, `insert into much select i, repeat(md5(i::text), 8) from generate_series(1, 20000) i`,
		`create index on much (md5(text))`,
		`create table spaced (id int primary key, text text) tablespace old`, `insert into spaced select i, repeat(md5(i::text), 8) from generate_series(1, 5000) i`,
		`create table leaves (id int) tablespace gone`, `insert into leaves select generate_series(1, 1000)`,
		`create table truncated (id int, text text)`, `insert into truncated select i, repeat('x', 500) from generate_series(1, 5000) i`,
		`create table shrinks (id int, text text)`, `insert into shrinks select i, repeat('y', 500) from generate_series(1, 5000) i`,
		`create table rewritten (id int primary key, text text)`, `insert into rewritten select i, repeat('z', 100) from generate_series(1, 5000) i`,
		`create table dropped (id int)`, `insert into dropped select generate_series(1, 10000)`,
		`create unlogged table unlogged (id int)`, `insert into unlogged select generate_series(1, 1000)`,
		`create table untouched (id int primary key, text text)`, `insert into untouched select i, repeat(md5(i::text), 8) from generate_series(1, 5000) i`,
		`create sequence counter`, `select nextval('counter')`,
		`vacuum freeze`, `checkpoint`)
	// Databases are rarely as young as those of a test.
	old := time.Now().Add(-24 * time.Hour)
	versions, err := filepath.Glob(filepath.Join(s.Data, "base", "*", "PG_VERSION"))
	if err != nil || len(versions) < 5 {
		t.Fatal(versions, err)
	}
	for _, name := range versions {
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
	}

	// Root may run the tests, and commands run as the account of the servers.
	v.dir = filepath.Join(pgtest.Dir(t), "standby")
	s.Push(t)
	args := []string{"backup-fetch", v.dir, "LATEST", "--standby"}
	for _, name := range []string{"old", "gone"} {
		args = append(args, "--tablespace-mapping", v.space(name)+"="+v.space("standby-"+name))
	}
	s.OK(t, args...)
	standby := v.open(t)
	s.Exec(t, `update much set text = text || '!' where id % 1000 = 0`, `insert into spaced select i, 'more' from generate_series(5001, 6000) i`, `checkpoint`)
	s.Switch(t)
	v.replayed(t, standby)
	standby.Exec(t, `checkpoint`) // a restartpoint: positions move on with these alone
	// What it replays behind that is on disk or not.
	s.Exec(t, `update much set text = text || '?' where id % 1000 = 1`)
	s.Switch(t)
	v.replayed(t, standby)
	standby.Exec(t, `select pg_create_physical_replication_slot('of_standby')`)
	standby.Stop(t)
	v.at = strings.TrimSpace(s.OK(t, "catchup-fetch", v.dir, "--print-lsn").Stdout)
	for name, content := range map[string]string{"server.key": "a key of the standby", "pg_ident.conf": "# of the standby\n", "base/1/99999": "rubbish"} {
		if err := os.WriteFile(filepath.Join(v.dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, filepath.Join(v.dir, name))
	}
	return v
}

func (v *pair) space(name string) string { return filepath.Join(v.spaces, name) }

// open starts a server in the standby's directory.
func (v *pair) open(t *testing.T) *pgtest.Cluster {
	t.Helper()
	return v.attach(t, v.dir)
}

// attach starts a server in a standby's directory. It looks often whether the archive has more.
func (v *pair) attach(t *testing.T, dir string) *pgtest.Cluster {
	t.Helper()
	return pgtest.Attach(t, v.Programs, dir, pgtest.Options{Env: v.Env, Settings: map[string]string{"hot_standby": "on", "wal_retrieve_retry_interval": "100ms"}})
}

// replayed waits until the standby has all that the primary had written.
func (v *pair) replayed(t *testing.T, standby *pgtest.Cluster) {
	t.Helper()
	lsn := v.Value(t, `pg_current_wal_lsn()`)
	v.Switch(t)
	pgtest.Eventually(t, "the standby has replayed "+lsn, func() bool {
		return standby.Value(t, `pg_last_wal_replay_lsn() >= $1::pg_lsn`, lsn) == "true"
	})
}

// work changes much on the primary.
func (v *pair) work(t *testing.T) {
	t.Helper()
	fileCopy := ""
	if v.Programs.Major >= 15 {
		fileCopy = ` strategy file_copy`
	}
	v.Exec(t,
		`update much set text = reverse(text) where id % 50 = 0`, `insert into much select i, 'new' from generate_series(20001, 20500) i`,
		`delete from much where id between 300 and 400`,
		`update spaced set text = 'changed' where id % 20 = 0`,
		`create tablespace new location '`+v.space("new")+`'`, `create table fresh (id int primary key, text text) tablespace new`,
		`insert into fresh select i, md5(i::text) from generate_series(1, 3000) i`,
		`alter table leaves set tablespace pg_default`, `drop tablespace gone`,
		`truncate truncated`, `insert into truncated select i, 'again' from generate_series(1, 50) i`,
		`delete from shrinks where id > 500`, `vacuum shrinks`,
		`vacuum full rewritten`, `create index on rewritten (text)`,
		`drop table dropped`, `drop database dropped`,
		`create database copy template other`+fileCopy,
		`create database moved`, `alter database moved set tablespace old`,
		`insert into unlogged select generate_series(1, 10)`,
		`select nextval('counter') from generate_series(1, 100)`,
		`create table wide (id int, text text)`, `insert into wide select 1, string_agg(md5(i::text), '') from generate_series(1, 10000) i`,
		`analyze`, `checkpoint`)
	v.ExecIn(t, "other", `update copied set text = 'changed' where id = 77`, `checkpoint`)
	v.Switch(t)
	v.Exec(t, `checkpoint`)
	v.Switch(t)
}

// forget removes from the archive all WAL up to now: no standby catches up by it.
func (v *pair) forget(t *testing.T) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(v.Root, "wal_005", "0*"))
	if err != nil || len(segments) < 3 {
		t.Fatal(segments, err)
	}
	for _, name := range segments {
		if strings.Contains(filepath.Base(name), ".history") {
			continue
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// report is what catchup-push --json prints of interest.
type report struct {
	Name  string `json:"backup_name"`
	Since string `json:"from_lsn"`
	Delta struct {
		Source      string   `json:"source"`
		Whole       int64    `json:"files_whole"`
		Incremental int64    `json:"files_incremental"`
		Pages       int64    `json:"pages"`
		Sampled     int64    `json:"blocks_sampled"`
		Missed      []string `json:"missed"`
		NotBetter   []string `json:"not_better"`
	} `json:"delta"`
}

// pushed takes a catch-up.
func (v *pair) pushed(t *testing.T, args ...string) report {
	t.Helper()
	var r report
	out := v.OK(t, append([]string{"catchup-push", v.Data, "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out.Stdout), &r); err != nil {
		t.Fatalf("%v\n%s", err, out.Stdout)
	}
	return r
}

// same fails the test unless the standby is what the primary is, once it has replayed all, and is whole.
func (v *pair) same(t *testing.T, standby *pgtest.Cluster) {
	t.Helper()
	v.replayed(t, standby)
	databases := map[*pgtest.Cluster]map[string]string{v.Cluster: {}, standby: {}}
	for c, found := range databases {
		for _, database := range strings.Fields(c.Value(t, `select string_agg(datname, ' ' order by datname) from pg_database where datallowconn`)) {
			conn, err := pgx.Connect(t.Context(), c.Server.ConnString(instance.Superuser, database))
			if err != nil {
				t.Fatal(err)
			}
			rows, err := conn.Query(t.Context(), `select c.oid::regclass::text, c.relkind::text, pg_relation_size(c.oid), c.relpersistence::text, reltablespace
				from pg_class c join pg_namespace n on n.oid = relnamespace where relkind in ('r', 'i', 't', 'S') and pg_relation_filenode(c.oid) <> 0`)
			if err != nil {
				t.Fatal(err)
			}
			type relation struct {
				Name, Kind  string
				Size        int64
				Persistence string
				Space       uint32
			}
			relations, err := pgx.CollectRows(rows, pgx.RowToStructByPos[relation])
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range relations {
				if r.Persistence == "u" {
					continue
				}
				what := fmt.Sprint(r.Size, " bytes in ", r.Space)
				if r.Kind == "r" { // WAL has sequences ahead of what they gave
					sum := `select count(*) || coalesce(md5(string_agg(r::text, E'\n' order by r::text collate "C")), '') from ` + r.Name + ` r`
					if err := conn.QueryRow(t.Context(), sum).Scan(&sum); err != nil {
						t.Fatalf("%s of %s: %v", r.Name, database, err)
					}
					what += " " + sum
				}
				found[database+" "+r.Name] = what
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !maps.Equal(databases[v.Cluster], databases[standby]) {
		for name, want := range databases[v.Cluster] {
			if got := databases[standby][name]; got != want {
				t.Errorf("%s: the standby has %s, the primary %s", name, got, want)
			}
		}
		for name := range databases[standby] {
			if _, ok := databases[v.Cluster][name]; !ok {
				t.Errorf("the standby has %s, the primary does not", name)
			}
		}
	}
	whole(t, standby)
}

// whole has PostgreSQL's own tools look at what is there.
func whole(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	c.Exec(t, `select bt_index_check(i.indexrelid, true) from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = relam
		where amname = 'btree' and relpersistence = 'p' and indisvalid`)
	for _, check := range []string{"pg_check_frozen", "pg_check_visible"} {
		if n := c.Value(t, `select count(*) from pg_class c, `+check+`(c.oid) where relkind in ('r', 't') and relpersistence = 'p'`); n != "0" {
			t.Errorf("%s finds %s rows", check, n)
		}
	}
	if c.Programs.Major >= 14 {
		if found := c.Value(t, `select string_agg(c.oid::regclass || ': ' || v.msg, ', ') from pg_class c, verify_heapam(c.oid) v where relkind in ('r', 't') and relpersistence = 'p'`); found != "" {
			t.Errorf("verify_heapam finds %s", found)
		}
	}
}

// A standby that lags further behind than WAL reaches is brought forward in place, by what each source says has changed. It follows its primary
// afterwards, is what that is, and has kept what is its own.
func TestStandbyIsBroughtForward(t *testing.T) {
	sources := map[int][]string{11: {"archive"}, 13: {"lsn"}, 15: {"archive"}, 17: {"summaries"}} // the other tests have more
	for _, major := range slices.Sorted(maps.Keys(sources)) {
		for _, source := range sources[major] {
			t.Run(fmt.Sprintf("PG%d/%s", major, source), func(t *testing.T) {
				t.Parallel()
				v := lagging(t, major, source)
				v.work(t)
				v.forget(t)
				r := v.pushed(t, "--from-lsn", v.at)
				if r.Since != v.at || r.Delta.Source != source || len(r.Delta.Missed) > 0 || r.Delta.Incremental < 200 || r.Delta.Pages == 0 || len(r.Delta.NotBetter) > 0 && source != "archive" {
					t.Errorf("catchup-push reports %+v", r)
				}
				v.fetch(t, r.Name)
				standby := v.open(t)
				v.same(t, standby)
				v.Exec(t, `insert into much select i, 'newer' from generate_series(30001, 30500) i`)
				v.same(t, standby)
				if left := standby.Value(t, `select count(*) from pg_replication_slots`); left != "0" {
					t.Errorf("the standby has %s replication slots", left)
				}
				v.kept(t)
			})
		}
	}
}

// fetch plans and applies a catch-up.
func (v *pair) fetch(t *testing.T, name string) {
	t.Helper()
	before := tree(t, v.dir)
	fetch := []string{"catchup-fetch", v.dir, name}
	v.Refused(t, 1, []string{v.space("new"), "is not empty"}, fetch...) // the primary is using it
	fetch = append(fetch, "--tablespace-mapping", v.space("new")+"="+v.space("standby-new"))
	if conf := filepath.Join(v.dir, "recovery.conf"); v.Programs.Major < 12 {
		was, err := os.ReadFile(conf)
		if err != nil {
			t.Fatal(err)
		}
		for _, mode := range []string{"#standby_mode = on\n", "standby_mode = on\nstandby_mode = 'off'\n", "standby_mode off # on\n"} {
			put(t, conf, mode+"restore_command = 'false'\n")
			v.Refused(t, 1, []string{"a recovery.conf without standby_mode = on", "as another primary"}, fetch...)
		}
		put(t, conf, string(was))
		before = tree(t, v.dir)
	}
	var plan struct {
		Since       string   `json:"from_lsn"`
		Incremental int64    `json:"files_incremental"`
		Whole       int64    `json:"files_whole"`
		Pages       int64    `json:"pages"`
		ExtraFiles  int64    `json:"extra_files"`
		Notes       []string `json:"notes"`
		FirstWAL    string   `json:"first_wal"`
		Verified    bool     `json:"verified"`
	}
	if err := json.Unmarshal([]byte(v.OK(t, append(fetch, "--dry-run", "--json")...).Stdout), &plan); err != nil {
		t.Fatal(err)
	}
	if plan.Since != v.at || plan.Incremental == 0 || plan.Whole == 0 || plan.Pages == 0 || plan.ExtraFiles == 0 || plan.FirstWAL == "" || !plan.Verified ||
		!strings.Contains(fmt.Sprint(plan.Notes), "of_standby") {
		t.Errorf("the plan is %+v", plan)
	}
	text := v.OK(t, append(fetch, "--dry-run")...).Stdout
	for _, words := range []string{"shut down in recovery at " + v.at, "since          " + v.at, v.space("standby-new") + ", on the primary in " + v.space("new")} {
		if !strings.Contains(text, words) {
			t.Errorf("the plan does not say %q:\n%s", words, text)
		}
	}
	after := tree(t, v.dir)
	for path := range maps.All(after) {
		if before[path] != after[path] {
			t.Errorf("--dry-run has changed %s: it was %q, and is %q", path, before[path], after[path])
		}
		delete(before, path)
	}
	if len(before) > 0 {
		t.Errorf("--dry-run has removed %v", before)
	}
	v.OK(t, fetch...)
}

// tree is what is in a directory: for each file its size, time and mode. In pg_wal, which catch-ups leave alone, programs may be at work still that the
// server asked for WAL before it was stopped.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(dir, "pg_wal") {
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err == nil {
			found[path] = fmt.Sprint(info.Size(), info.ModTime(), info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// kept fails the test unless what is the standby's own is there still, and rubbish is not.
func (v *pair) kept(t *testing.T) {
	t.Helper()
	for name, want := range map[string]string{"server.key": "a key of the standby", "pg_ident.conf": "# of the standby\n"} {
		if b, err := os.ReadFile(filepath.Join(v.dir, name)); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
	for _, name := range []string{"base/1/99999", "holdfast_catchup.json"} {
		if _, err := os.Lstat(filepath.Join(v.dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is there still: %v", name, err)
		}
	}
	to, err := os.Readlink(filepath.Join(v.dir, "pg_tblspc", v.Value(t, `select oid from pg_tablespace where spcname = 'old'`)))
	if err != nil || to != v.space("standby-old") {
		t.Errorf("the tablespace is in %s, %v", to, err)
	}
}
