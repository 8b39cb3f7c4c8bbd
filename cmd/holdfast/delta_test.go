package main_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/backup"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// Deltas are taken where the settings say so, on what settings and flags say, until there are enough of them; and what archived WAL
// says of changed blocks makes them small.
func TestDeltas(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 15), pgtest.Options{Checksums: true, Settings: map[string]string{"autovacuum": "off"}})
	s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=2")
	push := func(args ...string) *backup.Report {
		t.Helper()
		var r backup.Report
		out := s.OK(t, append([]string{"backup-push", "--json", s.Data}, args...)...)
		if err := json.Unmarshal([]byte(out.Stdout), &r); err != nil {
			t.Fatalf("%v: %s", err, out.Stdout)
		}
		return &r
	}
	on := func(r *backup.Report, parent *backup.Report, count int) {
		t.Helper()
		if r.Delta == nil || r.Delta.Parent != parent.Name || r.Delta.Count != count || !strings.HasSuffix(r.Name, "_D_"+parent.Name[5:29]) {
			t.Fatalf("%s: delta %+v, want number %d on %s", r.Name, r.Delta, count, parent.Name)
		}
	}
	s.Exec(t, "create table t as select i, repeat('x', 200) p from generate_series(1, 100000) i", "vacuum t")
	full := push("--add-user-data", `{"first": true}`)
	if full.Delta != nil || full.FullBecause == "" {
		t.Fatalf("the first is %+v", full)
	}
	s.Exec(t, "update t set p = 'y' where i = 77")
	one := push()
	on(one, full, 1)
	if d := one.Delta; d.Source != backup.WALArchive || len(d.NotBetter) != 1 || d.Pages == 0 || d.Pages > 100 || d.Incremental == 0 {
		t.Errorf("%+v", d)
	}
	if one.CompressedSize*2 > full.CompressedSize || one.BytesRead*2 > full.BytesRead {
		t.Errorf("the full one read %d bytes and stored %d, the delta read %d and stored %d", full.BytesRead, full.CompressedSize, one.BytesRead, one.CompressedSize)
	}
	s.Exec(t, "insert into t values (0, 'two')")
	two := push("--permanent")
	on(two, one, 2)
	for _, r := range []*backup.Report{full, one, two} {
		if out := s.OK(t, "backup-list", "--json", "--detail").Stdout; strings.Count(out, `"is_permanent":true`) != 3 {
			t.Errorf("%s is not permanent: %s", r.Name, out)
		}
	}
	if r := push(); r.Delta != nil || r.FullBecause != "Reached max delta steps. Doing full backup." {
		t.Errorf("the third is %+v, %q", r.Delta, r.FullBecause)
	}
	on(push("--delta-from-name", one.Name), one, 2)
	on(push("--delta-from-user-data", `{"first":true}`), full, 1)
	if r := push("--full"); r.Delta != nil || r.FullBecause != "" {
		t.Errorf("a full one is %+v, %q", r.Delta, r.FullBecause)
	}
	s.Refused(t, 1, []string{"choose the backup to build on", "no backup of that name"}, "backup-push", "--delta-from-name", "base_0000000100000000000000FF", s.Data)
	s.Exec(t, "create table last as select 1")
	want := site.Rows(t, s.Cluster, "t")
	on(push("--delta-from-name", full.Name), full, 1)
	if names := s.Backups(t); len(names) != 8 || slices.Index(names, full.Name) != 0 {
		t.Errorf("there are %q", names)
	}
	s.Switch(t)
	c := s.Restored(t, "LATEST", "--target", "latest")
	if got := site.Rows(t, c, "t"); got != want || c.Value(t, "(select count(*) from last)") != "1" {
		t.Errorf("restored %s, want %s", got, want)
	}
}
