// Package pgbackrest_test has the real pgBackRest make repositories on real servers, and looks whether Holdfast lists, verifies and restores
// what is in them: byte for byte what pgBackRest restores, and at a moment what the live cluster was.
package pgbackrest_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/control"
	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// A variant is how pgBackRest is told to store.
type variant struct {
	name    string
	newer   bool     // by the release in the cache, which knows block incrementals, instead of the host's
	options []string // of section global, for a repository number %d
}

// The kinds of backups each variant makes are full, differential and two incremental ones.
var variants = []variant{
	{"host zst encrypted", false, []string{"compress-type=zst", "repo1-cipher-type=aes-256-cbc", "repo1-cipher-pass=open sesame"}},
	{"host gz", false, []string{"compress-type=gz"}},
	{"host lz4 bundles encrypted", false, []string{"compress-type=lz4", "repo1-bundle=y", "repo1-cipher-type=aes-256-cbc", "repo1-cipher-pass=x"}},
	{"host none bundles", false, []string{"compress-type=none", "repo1-bundle=y"}},
	{"newer zst blocks encrypted", true, []string{"compress-type=zst", "repo1-bundle=y", "repo1-block=y", "repo1-cipher-type=aes-256-cbc", "repo1-cipher-pass=a\"b\\c"}},
	{"newer gz blocks", true, []string{"compress-type=gz", "repo1-bundle=y", "repo1-block=y"}},
	{"newer lz4 blocks", true, []string{"compress-type=lz4", "repo1-bundle=y", "repo1-block=y"}},
	{"newer bz2 blocks encrypted", true, []string{"compress-type=bz2", "repo1-bundle=y", "repo1-block=y", "repo1-cipher-type=aes-256-cbc", "repo1-cipher-pass=y"}},
	{"newer none blocks", true, []string{"compress-type=none", "repo1-bundle=y", "repo1-block=y"}},
}

// tool returns the path of pgBackRest.
func (v variant) tool(t testing.TB) string {
	t.Helper()
	if v.newer {
		return pgtest.Service(t, "pgbackrest")
	}
	return pgtest.Program(t, "pgbackrest")
}

// stanza is a cluster and a repository that it archives to.
type stanza struct {
	*pgtest.Cluster
	holdfast, tool string
	dir            string // of the repository and what belongs to it
	name           string
}

// startCluster starts a server whose archive_command is a script that each stanza makes its own.
func startCluster(t testing.TB, major int, script string) *pgtest.Cluster {
	t.Helper()
	if _, err := os.Stat(script); err != nil {
		write(t, script, "exit 1\n")
	}
	return pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Checksums: true, Settings: map[string]string{
		"archive_mode": "on", "archive_command": "sh " + script + " %p # pgbackrest", "autovacuum": "off",
	}})
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, path)
}

// newStanza makes a repository for c, to which the script archives from then on.
func newStanza(t testing.TB, c *pgtest.Cluster, script string, v variant) *stanza {
	t.Helper()
	s := &stanza{Cluster: c, holdfast: pgtest.Build(t, "holdfast/cmd/holdfast"), tool: v.tool(t), dir: pgtest.Dir(t), name: "demo"}
	for _, dir := range []string{"repo", "lock", "spool", "log"} {
		if err := os.Mkdir(filepath.Join(s.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	pgtest.Give(t, s.dir)
	s.configure(t, script, c, v.options...)
	s.do(t, "stanza-create")
	return s
}

// configure writes pgbackrest.conf for a cluster, and has it archive.
func (s *stanza) configure(t testing.TB, script string, c *pgtest.Cluster, options ...string) {
	t.Helper()
	s.Cluster = c
	options = append(options, "repo1-path="+s.repo(), "repo1-retention-full=9", "lock-path="+s.dir+"/lock", "spool-path="+s.dir+"/spool",
		"log-path="+s.dir+"/log", "log-level-file=off", "log-level-console=warn", "start-fast=y", "process-max=2")
	write(t, s.conf(), "# a comment\n[global]\n"+strings.Join(options, "\n")+"\n\n["+s.name+"]\npg1-path="+c.Data+"\npg1-socket-path="+c.Server.Host()+
		"\npg1-port="+strconv.Itoa(c.Server.Port())+"\npg1-user="+instance.Superuser+"\n")
	write(t, script, s.tool+" --config="+s.conf()+" --stanza="+s.name+" archive-push \"$1\"\n")
}

func (s *stanza) repo() string { return filepath.Join(s.dir, "repo") }
func (s *stanza) conf() string { return filepath.Join(s.dir, "pgbackrest.conf") }

// do runs pgBackRest, which must succeed.
func (s *stanza) do(t testing.TB, args ...string) {
	t.Helper()
	cmd := pgtest.Command(t, s.tool, append([]string{"--config=" + s.conf(), "--stanza=" + s.name}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pgbackrest %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// run runs holdfast pgbackrest.
func (s *stanza) run(t testing.TB, args ...string) site.Result {
	t.Helper()
	cmd := pgtest.Command(t, s.holdfast, append([]string{"pgbackrest", "--pgbackrest-config", s.conf(), "--stanza", s.name}, args...)...)
	return site.Run(t, cmd)
}

// ok runs holdfast pgbackrest, which must succeed, and returns what it printed.
func (s *stanza) ok(t testing.TB, args ...string) string {
	t.Helper()
	r := s.run(t, args...)
	if r.Status != 0 {
		t.Fatalf("holdfast pgbackrest %s: exit status %d\n%s", strings.Join(args, " "), r.Status, r.Stderr)
	}
	return r.Stdout
}

// backup is one that backup-list shows.
type backup struct {
	Name string `json:"backup_name"`
	Kind string `json:"type"`
}

func (s *stanza) backups(t testing.TB) (all []backup) {
	t.Helper()
	if err := json.Unmarshal([]byte(s.ok(t, "backup-list", "--json", "--detail")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// archived ends the current segment and waits until the repository has it.
func (s *stanza) archived(t testing.TB) {
	t.Helper()
	s.Exec(t, `select pg_logical_emit_message(false, 'test', 'x')`)
	name := s.Value(t, `pg_walfile_name(pg_switch_wal())`)
	pgtest.Eventually(t, name+" is archived", func() bool {
		return s.Value(t, `select coalesce(last_archived_wal, '') >= $1 from pg_stat_archiver`, name) == "true"
	})
}

// fetch restores with holdfast into a new directory, tablespaces into one beside it, and returns it.
func (s *stanza) fetch(t testing.TB, args ...string) string {
	t.Helper()
	dir := pgtest.Dir(t)
	data := filepath.Join(dir, "data")
	oid := s.Value(t, `select max(oid) from pg_tablespace where spcname = 'spaced'`)
	if oid != "" {
		args = append(args, "--tablespace-mapping", oid+"="+filepath.Join(dir, "spaced"))
	}
	s.ok(t, append([]string{"backup-fetch", data}, args...)...)
	return data
}

// open starts a server on a restored directory and waits until it takes writes.
func (s *stanza) open(t testing.TB, dir string) *pgtest.Cluster {
	t.Helper()
	c := pgtest.Attach(t, s.Programs, dir, pgtest.Options{})
	site.AwaitRecovery(t, c)
	return c
}

// tables are those that work makes and changes.
var tables = []string{"much", "spaced", "small", "grows"}

// rows sums up all tables.
func rows(t testing.TB, c *pgtest.Cluster) (sums string) {
	t.Helper()
	for _, table := range tables {
		if c.Value(t, `to_regclass($1)`, table) != "" {
			sums += table + ": " + site.Rows(t, c, table) + "\n"
		}
	}
	return sums
}

// tree lists what is in a data directory and its tablespaces, with type, mode, time and content of each.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	var walk func(dir, name string)
	walk = func(dir, name string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path, name := filepath.Join(dir, e.Name()), filepath.Join(name, e.Name())
			info, err := os.Stat(path) // through links
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				all[name] = info.Mode().String()
				walk(path, name)
				continue
			}
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = fmt.Sprintf("%s %s ", info.Mode(), info.ModTime().UTC().Format(time.RFC3339)) + string(content)
		}
	}
	walk(dir, "")
	return all
}

// elsewhere are files that depend on where and by whom a backup is restored: our manifest, where tablespaces are now, what tells PostgreSQL to recover.
func elsewhere(name string) bool {
	return name == "backup_manifest" || name == "tablespace_map" || name == "recovery.signal"
}

// same compares what two programs restored.
func same(t *testing.T, what, got, want string) {
	t.Helper()
	ours, theirs := tree(t, got), tree(t, want)
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		if elsewhere(name) {
			continue
		}
		have, there := ours[name]
		wanted := theirs[name]
		switch name {
		case "backup_label", "postgresql.auto.conf", control.Name: // we write the first and the last in the end, pgBackRest the others: times are those of the restore
			have, wanted = untimed(have), untimed(wanted)
		}
		if name == control.Name && there { // newer releases spoil the checkpoint in it, so that nobody starts a server without the label
			have, wanted = withoutCheckpoint(t, have), withoutCheckpoint(t, wanted)
		}
		switch {
		case !there:
			t.Errorf("%s: %s is missing", what, name)
		case have != wanted:
			t.Errorf("%s: %s differs: %.60q, %d bytes, want %.60q, %d bytes", what, name, have, len(have), wanted, len(wanted))
		}
	}
	for name := range ours {
		if _, there := theirs[name]; !there && !elsewhere(name) {
			t.Errorf("%s: %s is too many", what, name)
		}
	}
}

// untimed is an entry of tree without mode and time.
func untimed(entry string) string {
	_, entry, _ = strings.Cut(entry, " ")
	_, entry, _ = strings.Cut(entry, " ")
	return entry
}

// withoutCheckpoint is what a control file says, but for where its checkpoint is.
func withoutCheckpoint(t *testing.T, content string) string {
	t.Helper()
	c, err := control.Decode([]byte(content))
	if err != nil {
		t.Fatal(err)
	}
	c.Checkpoint = 0
	return fmt.Sprintf("%+v", c)
}

// Backups of every kind, as every codec, with and without bundles, blocks and encryption stores them, are listed, right, and restored as pgBackRest restores them;
// and recovery leads to a moment between them.
func TestEveryKindIsRestored(t *testing.T) {
	script := filepath.Join(pgtest.Dir(t), "archive.sh")
	c := startCluster(t, 15, script)
	space := filepath.Join(pgtest.Dir(t), "spaced")
	if err := os.Mkdir(space, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, space)
	c.Exec(t, `create tablespace spaced location '`+space+`'`,
		`create table much (id int primary key, text text)`, `insert into much select i, repeat(md5(i::text), 8) from generate_series(1, 20000) i`,
		`create table spaced (id int, text text) tablespace spaced`, `insert into spaced select i, md5(i::text) from generate_series(1, 5000) i`,
		`create table small (id int)`, `insert into small select 1`,
		`create table grows (id int, text text)`,
		`create unlogged table forgotten (id int)`, `insert into forgotten select generate_series(1, 1000)`,
		`checkpoint`)
	for i, v := range variants {
		if testing.Short() && i != 2 && i != 4 {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			s := newStanza(t, c, script, v)
			for round, kind := range []string{"full", "diff", "incr", "incr"} {
				s.do(t, "backup", "--type="+kind)
				s.Exec(t, fmt.Sprintf(`update much set text = md5(text) where id %% %d = 1`, 300+100*round),
					`insert into spaced select i, md5(random()::text) from generate_series(1, 200) i`,
					fmt.Sprintf(`update small set id = %d`, i*10+round),
					`insert into grows select i, repeat('x', 1000) from generate_series(1, 500) i`)
				if round == 2 {
					s.Exec(t, `truncate grows`) // shorter than in the backup before
				}
			}
			moment, then := s.Value(t, `clock_timestamp()`), rows(t, c)
			s.Exec(t, `delete from much where id % 2 = 0`, `truncate spaced`, `drop table small`)
			s.archived(t)
			c.Exec(t, `create table small (id int)`, `insert into small select 1`,
				`insert into much select i, repeat(md5(i::text), 8) from generate_series(2, 20000, 2) i`)

			var kinds []string
			all := s.backups(t)
			for _, b := range all {
				kinds = append(kinds, b.Kind)
			}
			if want := []string{"full", "diff", "incr", "incr"}; !slices.Equal(kinds, want) {
				t.Fatalf("listed are %v, want %v", kinds, want)
			}
			if out := s.ok(t, "verify", "all"); strings.Count(out, "OK ") != 4 {
				t.Errorf("verify says\n%s", out)
			}
			for i, b := range all {
				if i < 3 && v.name != variants[4].name { // the last builds on all of them
					continue
				}
				ours := s.fetch(t, b.Name)
				theirs := filepath.Join(pgtest.Dir(t), "data")
				cmd := pgtest.Command(t, "mkdir", "-m", "700", theirs)
				if err := cmd.Run(); err != nil {
					t.Fatal(err)
				}
				s.do(t, "restore", "--set="+b.Name, "--type=none", "--pg1-path="+theirs, "--tablespace-map-all="+filepath.Join(filepath.Dir(theirs), "spaces"))
				same(t, b.Kind, ours, theirs)
				if out, err := exec.Command(pgtest.Verifier(t, 15), "-n", ours).CombinedOutput(); err != nil {
					t.Errorf("pg_verifybackup: %v\n%s", err, out)
				}
			}
			restored := s.open(t, s.fetch(t, "--target-time", moment, "--target-action", "promote"))
			if got := rows(t, restored); got != then {
				t.Errorf("at %s there were\n%s, restored are\n%s", moment, then, got)
			}
			restored.Stop(t)
		})
	}
}

// A stanza goes on with another cluster after pg_upgrade, whose WAL has the same names. Each backup, and each moment, is restored with that of its own; and a
// promotion begins a timeline that recovery follows.
func TestUpgradedStanza(t *testing.T) {
	script := filepath.Join(pgtest.Dir(t), "archive.sh")
	old := startCluster(t, 15, script)
	s := newStanza(t, old, script, variants[4])
	old.Exec(t, `create table much (id int)`, `insert into much select generate_series(1, 1000)`)
	s.do(t, "backup", "--type=full")
	old.Exec(t, `insert into much select generate_series(1, 10)`)
	moment, then := old.Value(t, `clock_timestamp()`), rows(t, old)
	old.Exec(t, `insert into much select generate_series(1, 10)`)
	s.archived(t)
	latest := rows(t, old)
	old.Stop(t)

	young := startCluster(t, 17, script)
	s.configure(t, script, young, variants[4].options...)
	s.do(t, "stanza-upgrade")
	young.Exec(t, `create table much (id int)`, `insert into much select generate_series(1, 77)`)
	if got := len(s.backups(t)); got != 1 {
		t.Fatalf("%d backups", got)
	}
	s.Cluster = old
	first := s.fetchPlain(t, "--target", "latest") // the new cluster has no backup yet
	s.Programs = old.Programs
	if got := rows(t, s.open(t, first)); got != latest {
		t.Errorf("before the first backup of the new cluster: %s, want %s", got, latest)
	}

	s.Cluster = young
	s.do(t, "backup", "--type=full")
	young.Exec(t, `insert into much select generate_series(1, 3)`)
	s.archived(t)
	now := rows(t, young)

	promoted := s.open(t, s.fetchPlain(t, "--target", "latest"))
	if got := rows(t, promoted); got != now {
		t.Errorf("of the new cluster: %s, want %s", got, now)
	}
	promoted.Stop(t)

	s.Cluster = &pgtest.Cluster{Programs: old.Programs}
	at := s.open(t, s.fetchPlain(t, "--target-time", moment, "--target-action", "promote"))
	if got := rows(t, at); got != then {
		t.Errorf("of the old cluster at %s: %s, want %s", moment, got, then)
	}
	at.Stop(t)

	// The new cluster is lost, and a copy of it takes over: it goes on archiving.
	s.Cluster = young
	young.Stop(t)
	dir := s.fetchPlain(t, "--target", "latest", "--archive")
	successor := pgtest.Attach(t, young.Programs, dir, pgtest.Options{Settings: map[string]string{"archive_mode": "on", "archive_command": "sh " + script + " %p # pgbackrest"}})
	site.AwaitRecovery(t, successor)
	s.configure(t, script, successor, variants[4].options...)
	successor.Exec(t, `insert into much select generate_series(1, 5)`)
	s.archived(t)
	last := rows(t, successor)
	again := s.open(t, s.fetchPlain(t, "--target", "latest"))
	if got := rows(t, again); got != last {
		t.Errorf("along the new timeline: %s, want %s", got, last)
	}
	if got := again.Value(t, `select timeline_id from pg_control_checkpoint()`); got != "3" {
		t.Errorf("the copy is on timeline %s, want 3", got)
	}
}

// fetchPlain restores a cluster without tablespaces.
func (s *stanza) fetchPlain(t testing.TB, args ...string) string {
	t.Helper()
	dir := filepath.Join(pgtest.Dir(t), "data")
	s.ok(t, append([]string{"backup-fetch", dir}, args...)...)
	return dir
}

// objects lists what a repository holds, by names from its root.
func (s *stanza) objects(t testing.TB) (names []string) {
	t.Helper()
	err := filepath.WalkDir(s.repo(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(s.repo(), path)
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
