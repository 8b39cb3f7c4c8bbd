package roundtrip_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// What is retained restores: to its end what is permanent, to any moment since what else stays. WAL that a restore is replaying stays, too.
func TestRetained(t *testing.T) {
	root := filepath.Join(pgtest.Dir(t), "archive")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, root)
	s := site.In(t, pgtest.Require(t, 15), pgtest.Options{Settings: map[string]string{"autovacuum": "off"}}, root,
		"WALG_FILE_PREFIX="+root, "WALG_DELTA_MAX_STEPS=5", "HOLDFAST_RETENTION_GRACE=0s")
	s.Exec(t, `create table moments (n int, at timestamptz default clock_timestamp())`)
	var names, segments, times []string
	for n, args := range [][]string{{"--full"}, nil, {"--full", "--permanent"}, {"--full"}, nil} {
		names = append(names, s.Push(t, args...))
		s.Exec(t, fmt.Sprintf(`insert into moments values (%d)`, n))
		times = append(times, s.Value(t, `select clock_timestamp()::text`))
		s.Exec(t, fmt.Sprintf(`insert into moments values (%d)`, 100+n))
		segments = append(segments, s.Switch(t))
		s.Switch(t)
	}
	rows := func(c *pgtest.Cluster) string {
		return c.Value(t, `select string_agg(n::text, ' ' order by at) from moments`)
	}
	before := s.Objects(t)
	s.OK(t, "delete", "retain", "FIND_FULL", "2")
	if after := s.Objects(t); !slices.Equal(before, after) {
		t.Fatalf("a dry run has left %d objects of %d", len(after), len(before))
	}
	s.OK(t, "delete", "retain", "FIND_FULL", "2", "--confirm")
	if got := s.Backups(t); !slices.Equal(got, names[2:]) {
		t.Fatalf("left: %q of %q", got, names)
	}
	for n, segment := range segments {
		if there := s.Has("wal_005/" + segment + ".zst"); there != (n >= 3) {
			t.Errorf("segment %s, behind backup %d: there %v", segment, n, there)
		}
	}
	for _, o := range s.Objects(t) {
		if strings.Contains(o, segments[0]) || strings.Contains(o, names[0]) {
			t.Errorf("left: %s", o)
		}
	}
	if got, want := rows(s.Restored(t, names[2], "--target", "immediate", "--target-action", "promote")), "0 100 1 101"; got != want {
		t.Errorf("the permanent one: %q, want %q", got, want)
	}
	if got, want := rows(s.Restored(t, "LATEST", "--target-time", times[3], "--target-action", "promote")), "0 100 1 101 2 102 3"; got != want {
		t.Errorf("behind the oldest of the others: %q, want %q", got, want)
	}
	if got, want := rows(s.Restored(t, "LATEST", "--target", "latest")), rows(s.Cluster); got != want {
		t.Errorf("the newest: %q, want %q", got, want)
	}

	// By a policy. The copies that were restored just now may be replaying yet.
	s.Push(t, "--full")
	policy := `--holdfast-retention={"full": 1}`
	if plan := s.OK(t, "retention", "plan", policy).Stdout; !strings.Contains(plan, "2 backups stay, 2 to go") || !strings.Contains(plan, "replays it") {
		t.Errorf("plan:\n%s", plan)
	}
	s.OK(t, "retention", "apply", policy)
	newest := s.Backups(t)
	if len(newest) != 2 || newest[0] != names[2] {
		t.Fatalf("left: %q", newest)
	}
	if !s.Has("wal_005/" + segments[4] + ".zst") {
		t.Error("WAL that a restore may be replaying is gone")
	}
	if err := os.RemoveAll(filepath.Join(root, "holdfast", "restores")); err != nil { // as a day later
		t.Fatal(err)
	}
	s.OK(t, "delete", "garbage", "--confirm")
	if s.Has("wal_005/" + segments[4] + ".zst") {
		t.Error("WAL that nothing needs is there")
	}
	s.Switch(t)
	if got, want := rows(s.Restored(t, "LATEST", "--target", "latest")), rows(s.Cluster); got != want {
		t.Errorf("in the end: %q, want %q", got, want)
	}
}
