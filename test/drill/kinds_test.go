package drill_test

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/drill"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// What can be asked for: moments, the oldest backup, one by its name, a position and a time.
func TestKinds(t *testing.T) {
	s, first := build(t, pgtest.Require(t, 17), pgtest.Options{SegmentSize: 1 << 20})
	second := s.Push(t, "--full")
	s.Exec(t, `insert into orders select i, 1, 'last' from generate_series(6001, 7000) i`)
	at, lsn := s.Value(t, `clock_timestamp()`), s.Value(t, `pg_current_wal_lsn()`)
	s.Exec(t, `insert into orders select i, 1, 'too late' from generate_series(7001, 8000) i`)
	s.Switch(t)
	rows := func(n string) []string {
		return []string{"HOLDFAST_DRILL_CHECKS=[{database: postgres, table: orders, expect: " + n + "}]"}
	}
	for _, c := range []struct {
		what, backup, rows string
		args               []string
	}{
		{"oldest", first, "5000", []string{"oldest"}},
		{"oldest that was in no drill", second, "6000", []string{"oldest"}},
		{"named", second, "6000", []string{second}},
		{"named, to the end", first, "8000", []string{first, "--target", "latest"}},
		{"time", second, "7000", []string{"--time", at}},
		{"position", second, "7000", []string{"--lsn", lsn}},
		{"longest ago", first, "5000", []string{"oldest"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			if r := s.drill(t, 0, rows("'"+c.rows+"'"), c.args...); r.Backup != c.backup {
				t.Errorf("%s is proven, want %s", r.Backup, c.backup)
			}
		})
	}
	t.Run("random", func(t *testing.T) {
		for range several() {
			r := s.drill(t, 0, rows("'>= 5000'"), "random")
			t.Logf("%s to %s: %s", r.Backup, r.Target, r.Replay.To)
		}
	})
}

// Tablespaces of the copy are in its directory, whatever is where they were.
func TestTablespaces(t *testing.T) {
	for _, major := range []int{10, 18} {
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			p := pgtest.Require(t, major)
			s := &place{site.New(t, p, pgtest.Options{}), pgtest.Dir(t)}
			s.Env = append(s.Env, "WALG_COMPRESSION_METHOD=none", "WALG_TAR_SIZE_THRESHOLD=4000000")
			space := pgtest.Dir(t)
			s.Exec(t, `create tablespace elsewhere location '`+space+`'`, `create table far tablespace elsewhere as select i from generate_series(1, 1000) i`)
			name := s.Push(t)
			s.Switch(t)
			env := []string{"HOLDFAST_DRILL_CHECKS=[{database: postgres, table: far, expect: 1000}]"}
			s.drill(t, 0, env)
			found := withSpace(t, filepath.Join(s.Root, "basebackups_005", name, "tar_partitions"))
			if err := os.Remove(found); err != nil {
				t.Fatal(err)
			}
			if r := s.drill(t, 2, env); r.Reason != drill.ReasonFetch || !strings.Contains(r.Error, "missing") {
				t.Errorf("reason %s: %s", r.Reason, r.Error)
			}
		})
	}
}

// withSpace returns the one part, of several, that has files of a tablespace.
func withSpace(t *testing.T, dir string) (found string) {
	t.Helper()
	parts, err := filepath.Glob(filepath.Join(dir, "part_*.tar"))
	if err != nil || len(parts) < 3 {
		t.Fatalf("parts %v (%v)", parts, err)
	}
	for _, name := range parts {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() // only read
		for in := tar.NewReader(f); ; {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if h.Typeflag == tar.TypeReg && strings.Contains(h.Name, "pg_tblspc/") {
				if found != "" && found != name {
					t.Fatalf("%s and %s have files of the tablespace", found, name)
				}
				found = name
			}
		}
	}
	if found == "" {
		t.Fatalf("none of %v has files of the tablespace", parts)
	}
	return found
}

// WAL that would have a replay write into the directory of a live server's tablespace is not replayed. A tablespace inside of the data directory is no such thing.
func TestTablespacesSinceTheBackup(t *testing.T) {
	for _, major := range []int{10, 18} {
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s, _ := build(t, pgtest.Require(t, major), pgtest.Options{})
			if major >= 15 {
				s.Exec(t, `set allow_in_place_tablespaces = on`, `create tablespace inside location ''`, `create table near tablespace inside as select 1 as i`)
				s.Switch(t)
				s.drill(t, 0, []string{"HOLDFAST_DRILL_CHECKS=[{database: postgres, table: near, expect: 1}]"})
			}
			space := pgtest.Dir(t)
			s.Exec(t, `create tablespace elsewhere location '`+space+`'`, `create table far tablespace elsewhere as select i from generate_series(1, 1000) i`, `checkpoint`)
			s.Switch(t)
			s.Exec(t, `insert into far select i from generate_series(1001, 2000) i`)
			s.Switch(t)
			s.Exec(t, `checkpoint`)
			before := tree(t, space)
			if len(before) < 2 {
				t.Fatalf("the tablespace has %v", before)
			}
			r := s.drill(t, 1, nil)
			if want := "WAL since the backup creates a tablespace at " + space; !strings.Contains(r.Error, want) || !strings.Contains(r.Error, "take a new backup") {
				t.Errorf("%s, want %q", r.Error, want)
			}
			if after := tree(t, space); !maps.Equal(after, before) {
				t.Errorf("the live tablespace was %v, is %v", before, after)
			}
			s.Push(t, "--full")
			s.Switch(t)
			s.drill(t, 0, []string{"HOLDFAST_DRILL_CHECKS=[{database: postgres, table: far, expect: 2000}, {database: postgres, sql: select to_regclass('near')" +
				map[bool]string{true: ", expect: near}]", false: ", expect: null}]"}[major >= 15]})
		})
	}
}

// tree returns when each file below dir was written, and a sum of what is in it.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var content []byte
		if e.Type().IsRegular() {
			content, err = os.ReadFile(path)
		}
		all[path] = fmt.Sprintf("%s %x", info.ModTime(), sha256.Sum256(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A copy can stream from the server that it is a copy of.
func TestStreams(t *testing.T) {
	for _, major := range []int{10, 17} {
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s, _ := build(t, pgtest.Require(t, major), pgtest.Options{})
			if major >= 12 {
				change(t, filepath.Join(s.Data, "postgresql.conf"), func(b []byte) []byte { return append(b, "\nprimary_conninfo = 'host=db0 password=sesame'\n"...) })
				s.Push(t, "--full")
				s.Switch(t)
			}
			from := fmt.Sprintf("host=%s port=%d user=postgres", s.Server.Host(), s.Server.Port())
			r := s.drill(t, 0, nil, "--stream-from", from)
			if c := check(t, r, "streaming"); c.Result != drill.Passed || !strings.Contains(c.Text, "on timeline 1") {
				t.Errorf("%+v", c)
			}
			// WAL that comes by the stream creates a tablespace: none of it is replayed into the live one.
			space := pgtest.Dir(t)
			s.Exec(t, `create tablespace elsewhere location '`+space+`'`, `create table far tablespace elsewhere as select i from generate_series(1, 1000) i`, `checkpoint`)
			before := tree(t, space)
			r = s.drill(t, 0, nil, "--stream-from", from)
			if c := check(t, r, "streaming"); c.Result != drill.Passed || !strings.Contains(strings.Join(r.Notes, "\n"), "creates a tablespace at "+space) {
				t.Errorf("%+v, notes %q", c, r.Notes)
			}
			if after := tree(t, space); len(before) < 2 || !maps.Equal(after, before) {
				t.Errorf("the live tablespace was %v, is %v", before, after)
			}
			if slices.ContainsFunc(r.Changed, func(c drill.Change) bool { return strings.Contains(c.From, "sesame") }) {
				t.Errorf("the record has a password: %+v", r.Changed)
			}
		})
	}
}

// Text that is no UTF-8, and indexes whose expressions rely on a search path, are no damage.
func TestOddDatabases(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 15), pgtest.Options{})
	s.Exec(t, `create database bytes template template0 encoding 'SQL_ASCII' locale 'C'`, `create database western template template0 encoding 'WIN1252' locale 'C'`)
	in := func(database string, statements ...string) {
		t.Helper()
		c, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=postgres dbname=%s client_encoding=SQL_ASCII", s.Server.Host(), s.Server.Port(), database))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(t.Context())
		for _, sql := range statements {
			if _, err := c.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	in("bytes", "create table \"t\xe4\xff\" as select 'M\xfcller'::text as name", "create index on \"t\xe4\xff\" (name)", "create table t as select 'M\xfcller'::text as name")
	in("western", "create table \"t\xe4\" as select '\x81'::text as name") // of which UTF-8 has no counterpart
	s.Exec(t, `create schema help`, `create function help.norm(text) returns text immutable language sql as $$ select pg_catalog.lower($1) $$`,
		`create function key(text) returns text immutable language plpgsql as $$ begin return norm($1); end $$`, `set search_path = public, help`,
		`create index orders_key on orders (key(note))`)
	s.Push(t, "--full")
	s.Switch(t)
	r := s.drill(t, 0, []string{"HOLDFAST_DRILL_CHECKS=[{database: bytes, sql: select name from t, name: bytes}, {database: postgres, sql: select null, expect: null}]"}, "--dump")
	if c := check(t, r, "amcheck"); c.Result != drill.Passed || !strings.Contains(c.Text, "; 1 of the indexes by themselves") {
		t.Errorf("%+v", c)
	}
	if c := check(t, r, "bytes"); c.Text != "M?ller" {
		t.Errorf("%+v", c)
	}
}

// Neither template1 nor postgres has to be there. Where neither is, a database has to be named.
func TestDatabasesThatAreGone(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 15), pgtest.Options{})
	s.Exec(t, `alter database template1 is_template false`, `drop database template1`)
	s.Push(t, "--full")
	s.Switch(t)
	s.drill(t, 0, nil)

	s.Exec(t, `create database shop template template0`)
	s.ExecIn(t, "shop", `drop database postgres`)
	s.Env = append(s.Env, "PGDATABASE=shop")
	s.Push(t, "--full")
	r := s.drill(t, 1, []string{"PGDATABASE="})
	for _, want := range []string{"it has no database of the names postgres, template1: ", "hint: name a database of the cluster that lets a superuser in: PGDATABASE"} {
		if !strings.Contains(r.Error, want) {
			t.Errorf("want %q in %s", want, r.Error)
		}
	}
	s.drill(t, 0, nil)
}

// A copy that is kept runs on, can be reached as was said, and is left alone by the next drill.
func TestKeeps(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	cmd := s.Command(t, "drill", "--keep")
	cmd.Env = append(cmd.Env, s.settings()...)
	r := site.Run(t, cmd)
	m := regexp.MustCompile(`psql -h (\S+) -p (\d+) -U (\S+)`).FindStringSubmatch(r.Stderr)
	pid := regexp.MustCompile(`kill -QUIT (\d+), then rm -r (\S+)`).FindStringSubmatch(r.Stderr)
	if r.Status != 0 || m == nil || pid == nil {
		t.Fatalf("exit status %d\n%s", r.Status, r.Stderr)
	}
	number, err := strconv.Atoi(pid[1])
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Kill(number, syscall.SIGQUIT); err != nil {
			t.Error(err)
		}
		pgtest.Eventually(t, "the copy is gone", func() bool { _, err := os.Stat(filepath.Join(pid[2], "run", ".s.PGSQL.5432")); return err != nil })
		if err := os.RemoveAll(pid[2]); err != nil {
			t.Error(err)
		}
	}()
	second := s.Command(t, "drill")
	second.Env = append(second.Env, s.settings()...)
	if r := site.Run(t, second); r.Status != 0 {
		t.Errorf("exit status %d\n%s", r.Status, r.Stderr)
	}
	c, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%s user=%s dbname=postgres sslmode=disable", m[1], m[2], m[3]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	var rows int
	if err := c.QueryRow(t.Context(), `select count(*) from orders`).Scan(&rows); err != nil || rows != 6000 {
		t.Errorf("%d rows (%v)", rows, err)
	}
}
