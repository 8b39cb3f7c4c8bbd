package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/restore"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// A host that failed is brought back in place: what was lost is fetched, the rest is kept, and a plan says so before. Under a running server
// nothing is done.
func TestFetchDelta(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 15), pgtest.Options{Checksums: true, Settings: map[string]string{"autovacuum": "off"}})
	s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=5")
	s.Exec(t, "create table t as select i, repeat('x', 200) p from generate_series(1, 100000) i", "vacuum t", "create table u as select * from t limit 1000")
	s.Push(t)
	s.Exec(t, "update t set p = 'y' where i % 1000 = 0")
	newest := s.Push(t)
	s.Exec(t, "insert into t values (0, 'after the backup')")
	want := site.Rows(t, s.Cluster, "t") + site.Rows(t, s.Cluster, "u")
	table, lost := filepath.Join(s.Data, s.Value(t, "select pg_relation_filepath('t')")), filepath.Join(s.Data, s.Value(t, "select pg_relation_filepath('u')"))
	s.Await(t, s.Switch(t))
	s.Refused(t, 1, []string{"a PostgreSQL is running in " + s.Data}, "backup-fetch", "--delta", s.Data, "LATEST")
	s.Stop(t)

	f, err := os.OpenFile(table, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 100_000), 80_000); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	out := s.OK(t, "backup-fetch", "--delta", s.Data, "LATEST", "--dry-run", "--json")
	var plan restore.Plan
	if err := json.Unmarshal([]byte(out.Stdout), &plan); err != nil {
		t.Fatal(err)
	}
	if d := plan.Delta; plan.Backup != newest || d == nil || d.StalePages < 13 || d.MissingFiles == 0 || d.EqualFiles < 500 || d.Fetch == 0 || len(plan.Chain) != 2 {
		t.Errorf("the plan is %+v, differences %+v", plan, d)
	}
	if _, err := os.Stat(lost); err == nil {
		t.Error("a plan restored a file")
	}
	out = s.OK(t, "backup-fetch", "--delta", s.Data, "LATEST", "--dry-run")
	if !strings.Contains(out.Stdout, "\ndifferences ") || !strings.Contains(out.Stdout, "\nread of ") {
		t.Errorf("the plan is\n%s", out.Stdout)
	}
	s.OK(t, "backup-fetch", "--delta", s.Data, "LATEST", "--target", "latest", "--archive")
	c := s.Open(t, s.Data)
	site.AwaitRecovery(t, c)
	if got := site.Rows(t, c, "t") + site.Rows(t, c, "u"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
