package roundtrip_test

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// A tablespace is never restored over the one the original uses; a mapping by directory or by oid puts it elsewhere.
func TestTablespaces(t *testing.T) {
	p := pgtest.Require(t, 17)
	s := site.New(t, p, pgtest.Options{Checksums: true})
	dirs := map[string]string{}
	for _, name := range []string{"fast", "slow"} {
		dirs[name] = filepath.Join(s.Dir, name+" disk=1") // blanks and = are allowed
		if err := os.Mkdir(dirs[name], 0o700); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, dirs[name])
		s.Exec(t, `create tablespace `+name+` location '`+dirs[name]+`'`,
			`create table in_`+name+` tablespace `+name+` as select g as id, md5(g::text) as what from generate_series(1, 3000) g`)
	}
	// One inside the data directory, as allow_in_place_tablespaces makes it.
	s.Exec(t, `alter system set allow_in_place_tablespaces = on`, `select pg_reload_conf()`)
	pgtest.Eventually(t, "the setting is in force", func() bool { return s.Value(t, `current_setting('allow_in_place_tablespaces')`) == "on" })
	s.Exec(t, `create tablespace inside location ''`,
		`create table in_inside tablespace inside as select g as id, md5(g::text) as what from generate_series(1, 3000) g`)
	s.Push(t)
	s.Exec(t, `insert into in_fast select g, 'later' from generate_series(1, 1000) g`, `insert into in_inside values (0, 'later')`)
	s.Switch(t)
	want := map[string]string{}
	for _, table := range []string{"in_fast", "in_slow", "in_inside"} {
		want[table] = site.Rows(t, s.Cluster, table)
	}

	into := filepath.Join(pgtest.Dir(t), "data")
	s.Refused(t, 1, []string{"disk=1", "not empty"}, "backup-fetch", into, "--target", "latest")
	if _, err := os.Stat(into); err == nil {
		t.Error("the refused restore made its destination")
	}

	slow := s.Value(t, `select oid from pg_tablespace where spcname = 'slow'`)
	space := pgtest.Dir(t)
	newFast, newSlow := filepath.Join(space, "fast=2"), filepath.Join(space, "slow")
	escape := func(path string) string { // = in a path, as for pg_basebackup
		var out []byte
		for i := range len(path) {
			if path[i] == '=' {
				out = append(out, '\\')
			}
			out = append(out, path[i])
		}
		return string(out)
	}
	c := s.Restored(t, "--target", "latest", "--tablespace-mapping", escape(dirs["fast"])+"="+escape(newFast), "--tablespace-mapping", slow+"="+newSlow)
	for table, rows := range want {
		if got := site.Rows(t, c, table); got != rows {
			t.Errorf("%s came back as %s, was %s", table, got, rows)
		}
	}
	for name, dir := range map[string]string{"fast": newFast, "slow": newSlow} {
		if at := c.Value(t, `select pg_tablespace_location(oid) from pg_tablespace where spcname = '`+name+`'`); at != dir {
			t.Errorf("tablespace %s is at %s, want %s", name, at, dir)
		}
	}
	c.Exec(t, `insert into in_fast values (0, 'the copy')`) // into a file of its own
	if got := site.Rows(t, s.Cluster, "in_fast"); got != want["in_fast"] {
		t.Errorf("the original changed with its copy: %s, was %s", got, want["in_fast"])
	}

	// A spec in WAL-G's form says the same.
	spec := filepath.Join(space, "spec.json")
	third := filepath.Join(pgtest.Dir(t), "spaces")
	fast := s.Value(t, `select oid from pg_tablespace where spcname = 'fast'`)
	write(t, spec, `{"base_prefix":"","tablespaces":["`+fast+`","`+slow+`"],
		"`+fast+`":{"loc":"`+third+`/f","link":"pg_tblspc/`+fast+`"},"`+slow+`":{"loc":"`+third+`/s","link":"pg_tblspc/`+slow+`"}}`)
	c = s.Restored(t, "--target", "latest", "--restore-spec", spec)
	for table, rows := range want {
		if got := site.Rows(t, c, table); got != rows {
			t.Errorf("by the spec %s came back as %s, was %s", table, got, rows)
		}
	}
}

// Segment sizes other than 16 MiB need no setting.
func TestSegmentSizes(t *testing.T) {
	for _, size := range []wal.SegmentSize{1 << 20, 64 << 20} {
		t.Run(itoa(int(size>>20))+"MiB", func(t *testing.T) {
			s := site.New(t, pgtest.Require(t, 14), pgtest.Options{SegmentSize: size})
			m := accident(t, s)
			m.holds(t, s.Restored(t, "--target-time", m.time, "--target-action", "promote"))
		})
	}
}
