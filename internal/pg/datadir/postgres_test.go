package datadir_test

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/manifest"
	"holdfast/test/pgtest"
)

// Of a running server with tablespaces, unlogged and temporary tables, the files a walk yields are those pg_basebackup takes.
func TestWalkAgreesWithBasebackup(t *testing.T) {
	// Nothing may change the files by itself.
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Settings: map[string]string{"autovacuum": "off", "allow_in_place_tablespaces": "on"}})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	backup, space := filepath.Join(c.Dir, "backup"), filepath.Join(c.Dir, "space")
	must(os.Mkdir(space, 0o700))
	pgtest.Give(t, space)
	db := c.Conn(t) // temporary tables last as long as it
	for _, sql := range []string{
		"create tablespace outside location '" + space + "'",
		"create tablespace inside location ''",
		"create database d tablespace inside",
		"create table a tablespace outside as select generate_series(1, 10000) n",
		"create unlogged table u as select generate_series(1, 10000) n",
		"create unlogged table uo tablespace outside as select generate_series(1, 10000) n",
		"create index on u (n)",
		"create temporary table t tablespace outside as select generate_series(1, 10000) n",
		"create temporary table t2 as select generate_series(1, 10000) n",
		"vacuum a, u, uo",
		"checkpoint",
	} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	cmd := pgtest.Command(t, pgtest.Tool(t, 15, "pg_basebackup"), "-D", backup, "-c", "fast", "-T", space+"="+filepath.Join(c.Dir, "mapped"))
	cmd.Env = append(cmd.Environ(), c.Environ()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}

	f, err := os.Open(filepath.Join(backup, manifest.Name))
	must(err)
	defer f.Close()
	m, err := manifest.NewReader(f)
	must(err)
	var theirs []string
	for {
		file, err := m.Next()
		if err == io.EOF {
			break
		}
		must(err)
		if file.Path != "backup_label" && file.Path != "tablespace_map" {
			theirs = append(theirs, file.Path)
		}
	}
	slices.Sort(theirs)

	d, err := datadir.Open(c.Data)
	must(err)
	var ours []string
	left := map[datadir.Reason]int{}
	opts := datadir.Options{Skipped: func(path string, why datadir.Reason) {
		if strings.HasPrefix(path, "base/") || strings.HasPrefix(path, "pg_tblspc/") {
			left[why]++
		}
	}}
	for e, err := range d.Walk(opts) {
		must(err)
		if e.Kind != datadir.Directory {
			ours = append(ours, e.Path)
		}
	}
	slices.Sort(ours)
	if d := cmp.Diff(theirs, ours); d != "" {
		t.Errorf("(-pg_basebackup +walk):\n%s", d)
	}
	if left[datadir.Unlogged] < 5 || left[datadir.Temporary] < 2 || left[datadir.Volatile] < 1 {
		t.Errorf("left out: %v", left)
	}
}
