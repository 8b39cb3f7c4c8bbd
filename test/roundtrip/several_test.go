package roundtrip_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

// A pair is two S3 services that are the storages of one archive, and the file of the settings that say so.
type pair struct {
	first, second *places.S3
	settings      string
}

// two starts them. how is the setting that has the second one; settings are further ones of the whole, each are of either.
func two(t *testing.T, how string, settings map[string]string, each ...string) pair {
	t.Helper()
	p := pair{first: places.NewS3(t), second: places.NewS3(t)}
	dir := pgtest.Dir(t)
	p.settings = filepath.Join(dir, "holdfast.json")
	all := map[string]any{how: map[string]any{"second": ofFile(p.second.Env(p.second.URL, each...))}, "HOLDFAST_STATE_DIR": filepath.Join(dir, "state")}
	maps.Copy(all, ofFile(p.first.Env(p.first.URL, each...)))
	for name, value := range settings {
		all[name] = value
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.settings, string(b))
	pgtest.Give(t, dir)
	return p
}

// ofFile makes settings of an environment those of a file.
func ofFile(env []string) map[string]any {
	all := map[string]any{}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		all[name] = value
	}
	return all
}

// wals lists the segments that one of the two holds.
func wals(t *testing.T, g *places.S3) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(g.Root(), "wal_005"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".zst"); ok && len(name) == 24 {
			names = append(names, name)
		}
	}
	return names
}

// fill ends so many segments, one after the other, each with a row of its own.
func fill(t *testing.T, s *site.Site, n int) (names []string) {
	t.Helper()
	for range n {
		s.Exec(t, `insert into keepsake values (0, 'one more')`)
		names = append(names, s.Value(t, `pg_walfile_name(pg_switch_wal())`))
	}
	return names
}

// The primary storage fails in the midst of archiving: WAL and backups go to the other one, everything is read from both, and goes home later.
func TestFailover(t *testing.T) {
	t.Parallel()
	p := two(t, "WALG_FAILOVER_STORAGES", map[string]string{"WALG_FAILOVER_STORAGES_CHECK_TIMEOUT": "10s"})
	s := site.In(t, pgtest.Require(t, 15), pgtest.Options{}, p.first.Root(), "WALG_CONFIG_PATH="+p.settings)
	s.Exec(t, `create table keepsake (n int, what text)`)
	before := s.Push(t)
	fill(t, s, 3)
	s.Switch(t)
	p.first.Stop()
	begun := time.Now()
	away := fill(t, s, 5)
	last := away[len(away)-1]
	pgtest.Eventually(t, last+" is in the second storage", func() bool { return slices.Contains(wals(t, p.second), last) })
	t.Logf("5 segments are in the second storage %.1f s after the first is down", time.Since(begun).Seconds())
	elsewhere := s.Push(t)
	here := wals(t, p.first)
	if slices.Contains(here, last) || slices.Contains(wals(t, p.second), here[0]) {
		t.Errorf("the first storage has %q, the second %q", here, wals(t, p.second))
	}
	// While nobody knows what the first storage has, nothing that is missed counts as missing.
	const absent = "0000000100000000000000F0"
	fetch := func(name string, status int) {
		t.Helper()
		if r := s.Do(t, "wal-fetch", name, filepath.Join(pgtest.Dir(t), "RECOVERYXLOG")); r.Status != status {
			t.Errorf("wal-fetch %s: exit status %d, want %d\n%s", name, r.Status, status, r.Stderr)
		}
	}
	fetch(last, 0)
	fetch(absent, 200)

	p.first.Start(t)
	if err := os.RemoveAll(filepath.Join(filepath.Dir(p.settings), "state")); err != nil { // what is known of it counts for some minutes
		t.Fatal(err)
	}
	fetch(here[0], 0)
	fetch(absent, 74)
	if names := s.Backups(t); !slices.Equal(names, []string{before, elsewhere}) {
		t.Errorf("backups: %q, want %q and %q", names, before, elsewhere)
	}
	want := site.Rows(t, s.Cluster, "keepsake")
	restored := func(when, name string) {
		t.Helper()
		c := s.Restored(t, name, "--target", "latest")
		if got := site.Rows(t, c, "keepsake"); got != want {
			t.Errorf("%s: by %s the table came back as %s, was %s", when, name, got, want)
		}
		c.Server.Kill()
	}
	s.Switch(t)
	restored("from both", before)
	restored("from both", elsewhere)
	for _, what := range []string{"pg-wals", "backups"} {
		s.OK(t, "st", "transfer", what, "--source", "second", "--appearance-checks-interval", "10ms")
	}
	if left := wals(t, p.second); len(left) > 0 {
		t.Errorf("the second storage still has %q", left)
	}
	for _, name := range slices.Concat(here, away) {
		if !s.Has("wal_005/" + name + ".zst") {
			t.Errorf("the first storage lacks %s", name)
		}
	}
	p.second.Stop()
	s.Env = append(s.Env, "WALG_TARGET_STORAGE=default")
	restored("from the first alone", before)
	restored("from the first alone", elsewhere)
	s.NoTrace(t, before, elsewhere)
}

// With mirrors of which any will do archiving goes on while one is down, and that one is repaid; either of them alone is a whole archive.
func TestMirrorsAny(t *testing.T) {
	t.Parallel()
	p := two(t, "HOLDFAST_MIRRORS", map[string]string{"HOLDFAST_MIRRORS_RULE": "any", "HOLDFAST_MIRRORS_PAUSE": "1s"}, "S3_MAX_RETRIES=4")
	s := site.In(t, pgtest.Require(t, 15), pgtest.Options{}, p.first.Root(), "WALG_CONFIG_PATH="+p.settings)
	s.Exec(t, `create table keepsake (n int, what text)`)
	s.Push(t)
	s.Switch(t)
	for _, down := range []*places.S3{p.second, p.first} {
		up := p.first
		if down == up {
			up = p.second
		}
		down.Stop()
		begun := time.Now()
		names := fill(t, s, 3)
		last := names[len(names)-1]
		pgtest.Eventually(t, last+" is in the mirror that is left", func() bool { return slices.Contains(wals(t, up), last) })
		t.Logf("3 segments are in the other mirror %.1f s after one is down", time.Since(begun).Seconds())
		s.Push(t)
		if owed := s.OK(t, "st", "repay", "--dry-run"); !strings.Contains(owed.Stdout+owed.Stderr, last) {
			t.Errorf("%s is not owed:\n%s%s", last, owed.Stdout, owed.Stderr)
		}
		down.Start(t)
		s.OK(t, "st", "repay")
		s.OK(t, "st", "audit")
	}
	if a, b := wals(t, p.first), wals(t, p.second); !slices.Equal(a, b) || len(a) < 8 {
		t.Errorf("the first mirror has %q, the second %q", a, b)
	}
	want := site.Rows(t, s.Cluster, "keepsake")
	for name, down := range map[string]*places.S3{"default": p.second, "second": p.first} {
		down.Stop()
		s.Env = []string{"WALG_CONFIG_PATH=" + p.settings, "WALG_TARGET_STORAGE=" + name}
		if names := s.Backups(t); len(names) != 3 {
			t.Errorf("%s alone has the backups %q", name, names)
		}
		c := s.Restored(t, "--target", "latest")
		if got := site.Rows(t, c, "keepsake"); got != want {
			t.Errorf("from %s alone the table came back as %s, was %s", name, got, want)
		}
		c.Server.Kill()
		down.Start(t)
	}
}

// With mirrors all of which must have it nothing counts as archived while one is down, and nothing is left half; what was tried is archived once it is up.
func TestMirrorsAll(t *testing.T) {
	t.Parallel()
	p := two(t, "HOLDFAST_MIRRORS", map[string]string{"HOLDFAST_MIRRORS_RULE": "all"}, "S3_MAX_RETRIES=1")
	s := site.In(t, pgtest.Require(t, 15), pgtest.Options{}, p.first.Root(), "WALG_CONFIG_PATH="+p.settings)
	s.Exec(t, `create table keepsake (n int, what text)`)
	first := s.Push(t)
	s.Switch(t)
	p.second.Stop()
	names := fill(t, s, 1)
	pgtest.Eventually(t, "archiving has failed", func() bool { return s.Value(t, `select failed_count > 0 from pg_stat_archiver`) == "true" })
	s.Refused(t, 1, []string{"second"}, "wal-push", filepath.Join(s.Data, "pg_wal", names[0]))
	s.Refused(t, 1, []string{"second"}, "backup-push", s.Data)
	if got := s.Value(t, `select last_archived_wal < $1 from pg_stat_archiver`, names[0]); got != "true" {
		t.Errorf("PostgreSQL takes %s for archived", names[0])
	}
	// What the one that is up has is the archive, for who says so.
	s.Refused(t, 1, []string{"second did not answer"}, "backup-fetch", filepath.Join(pgtest.Dir(t), "data"), "--target", "latest")
	alone := *s
	alone.Env = append(slices.Clone(s.Env), "WALG_TARGET_STORAGE=default")
	c := alone.Restored(t, first, "--target", "latest")
	c.Server.Kill()
	p.second.Start(t)
	s.OK(t, "wal-push", filepath.Join(s.Data, "pg_wal", names[0]))
	second := s.Push(t)
	s.Switch(t)
	s.OK(t, "st", "audit")
	if a, b := wals(t, p.first), wals(t, p.second); !slices.Equal(a, b) || !slices.Contains(a, names[0]) {
		t.Errorf("the first mirror has %q, the second %q", a, b)
	}
	if got := s.Backups(t); !slices.Equal(got, []string{first, second}) {
		t.Errorf("backups: %q", got)
	}
	s.NoTrace(t, first, second)
}
