package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/describe"
	"holdfast/internal/transfer"
	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

// settingsFile writes settings into a file that the servers' account can read.
func settingsFile(t *testing.T, env ...string) string {
	t.Helper()
	var text strings.Builder
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		fmt.Fprintf(&text, "%s: %q\n", name, value)
	}
	name := filepath.Join(pgtest.Dir(t), "settings.yaml")
	if err := os.WriteFile(name, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, name)
	return name
}

// report runs a command that prints JSON.
func report[T any](t *testing.T, s *site.Site, args ...string) (r T) {
	t.Helper()
	out := s.OK(t, args...).Stdout
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return r
}

// An encrypted archive with deltas is marked, described and copied as it is stored, to a directory and to S3, whole and one backup of it, by hosts without the
// key; and the cluster comes back from the copies.
func TestMarkShowCopy(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 15), pgtest.Options{Checksums: true, Settings: map[string]string{"autovacuum": "off"}})
	identity := filepath.Join(pgtest.Dir(t), "identity")
	recipient := strings.TrimSpace(s.OK(t, "key", "generate", identity).Stdout)
	plain := s.Env
	s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=5", "HOLDFAST_AGE_RECIPIENTS="+recipient, "HOLDFAST_ALLOW_UNENCRYPTED=true") // the server archives without a key
	s.Exec(t, "create table t as select i, repeat('x', 200) p from generate_series(1, 50000) i", "vacuum t")
	full := s.Push(t, "--add-user-data", `{"ticket": 7}`)
	s.Exec(t, "update t set p = 'y' where i % 1000 = 0")
	delta := s.Push(t)
	s.Exec(t, "insert into t values (0, 'after the backups')")
	want := site.Rows(t, s.Cluster, "t")
	table := s.Value(t, "select pg_relation_filepath('t')")
	s.Switch(t)

	// The mark is on both, and goes from the top.
	s.OK(t, "backup-mark", delta)
	if out := s.OK(t, "backup-list", "--json", "--detail").Stdout; strings.Count(out, `"is_permanent":true`) != 2 {
		t.Errorf("not permanent: %s", out)
	}
	s.Refused(t, 1, []string{full, delta + " builds on it and is permanent"}, "backup-mark", "-i", full)
	s.OK(t, "backup-mark", "-i", delta)
	s.OK(t, "backup-mark", "--impermanent", full)
	if again := s.OK(t, "backup-mark", "-i", full); !strings.Contains(again.Stderr, "is not permanent already") {
		t.Errorf("again: %s", again.Stderr)
	}
	s.Refused(t, 1, []string{"no backup of that name"}, "backup-mark", "base_0000000100000000000000FF")

	// Without the secret key the documents still tell; with it all does.
	locked := report[describe.Report](t, s, "backup-show", delta, "--json")
	if e := locked.Objects.Encryption; e == nil || e.Kind != "age" || e.Readable || len(e.For) != 1 || e.For[0] != "X25519" || len(locked.Problems) == 0 || locked.Contents.Source != "list of files" {
		t.Errorf("without a key: %+v", locked)
	}
	s.Env = append(s.Env, "HOLDFAST_AGE_IDENTITIES_PATH="+identity)
	r := report[describe.Report](t, s, "backup-show", "LATEST", "--json")
	if r.Name != delta || r.Kind != "delta" || len(r.Chain) != 2 || r.Chain[1].Name != full || len(r.Problems) != 0 || !strings.HasPrefix(r.Tool, "Holdfast") || r.Wire {
		t.Errorf("%+v", r)
	}
	if w := r.WAL; w.Lacks != 0 || w.Segments < 1 || w.Verdict != "restorable" || w.Replay == 0 {
		t.Errorf("%+v", w)
	}
	if c := r.Contents; c.Source != "manifest" || c.Files < 500 || c.Increments == 0 || c.Unchanged == 0 || c.Held >= c.Bytes || c.Largest[0].Path != table || c.Kinds[0].Name != "tables and indexes" {
		t.Errorf("%+v", c)
	}
	if v := r.Server; v.PgVersion/10000 != 15 || v.Checksums == nil || !*v.Checksums || v.WALLevel != "replica" || v.SystemIdentifier == 0 || v.SegmentSize != 16<<20 {
		t.Errorf("%+v", v)
	}
	if e := r.Objects.Encryption; e == nil || !e.Readable || len(r.Objects.Parts) < 3 || r.Objects.Parts[0].Members == 0 {
		t.Errorf("%+v", r.Objects)
	}
	if c := r.Cost; !c.Exact || c.Fetch == 0 || c.Disk < r.Contents.Bytes || c.Parts < 3 || c.Fetch > r.Chain[0].Stored+r.Chain[1].Stored {
		t.Errorf("%+v of %+v", c, r.Chain)
	}
	f := report[describe.Report](t, s, "backup-show", full, "--json")
	if string(f.UserData) != `{"ticket":7}` || len(f.Children) != 1 || f.Children[0] != delta || f.Kind != "full" || len(f.Problems) != 0 {
		t.Errorf("%+v", f)
	}
	text := s.OK(t, "backup-show", delta).Stdout
	for _, word := range []string{delta, "builds on      " + full, "needs WAL", ": all there", "restorable     yes", "age for X25519; it can be read here", "to restore it"} {
		if !strings.Contains(text, word) {
			t.Errorf("%q is missing in\n%s", word, text)
		}
	}
	for line := range strings.Lines(text) {
		if len(line) > 121 {
			t.Errorf("a line has %d columns: %s", len(line)-1, line)
		}
	}
	if out := s.OK(t, "backup-show", delta, "--files", table+"*").Stdout; strings.Count(out, "\n") < 2 || !strings.Contains(out, " increment ") {
		t.Errorf("files: %s", out)
	}
	if one := report[describe.File](t, s, "backup-show", full, "--json", "--files", table); one.Path != table || one.How != "whole" || one.Bytes != one.Held {
		t.Errorf("%+v", one)
	}

	// All of it goes to a directory. No key is set.
	keys := s.Env
	s.Env = plain
	mirror := places.File(t)
	to := settingsFile(t, mirror.Env...)
	plan := report[transfer.Plan](t, s, "copy", "--to", to, "--dry-run", "--json")
	if objects, bytes := plan.Total.Left(); len(plan.Backups) != 2 || !plan.Claims || objects < 20 || bytes == 0 {
		t.Errorf("%+v", plan)
	}
	done := report[transfer.Report](t, s, "copy", "--to", to, "--json")
	if len(done.Backups) != 2 || done.Bytes < plan.Total.Bytes {
		t.Errorf("%+v, planned %+v", done, plan.Total)
	}
	again := report[transfer.Report](t, s, "copy", "--from", settingsFile(t, plain...), "--to", to, "--json", "--compare")
	if again.Copied > 5 || again.There < done.Copied { // the server may have archived meanwhile
		t.Errorf("again: %+v", again)
	}
	s.Refused(t, 1, []string{"the same place"}, "copy", "--to", settingsFile(t, plain...))

	// One backup goes to S3, first to its end, then with what follows.
	bucket := places.NewS3(t).Place(t)
	remote := settingsFile(t, bucket.Env...)
	s.OK(t, "copy", "-t", remote, "-b", full)
	s.OK(t, "copy", "-t", remote, "-b", delta, "-w", "-f", settingsFile(t, plain...))

	source := s.Env
	for _, place := range [][]string{mirror.Env, bucket.Env} {
		s.Env = append(place[:len(place):len(place)], "HOLDFAST_AGE_IDENTITIES_PATH="+identity, "HOLDFAST_AGE_RECIPIENTS="+recipient, "HOLDFAST_ALLOW_UNENCRYPTED=true")
		if names := s.Backups(t); len(names) != 2 {
			t.Errorf("%s has %q", place, names)
		}
		c := s.Restored(t, "LATEST", "--target", "latest")
		if got := site.Rows(t, c, "t"); got != want {
			t.Errorf("%s: restored %s, want %s", place[0], got, want)
		}
		c.Stop(t)
	}
	s.Env = source

	// An archive of another cluster is not copied to.
	other := places.File(t)
	if err := other.Store.Put(t.Context(), "holdfast/cluster.json", strings.NewReader(`{"system_identifier":5}`)); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, strings.TrimPrefix(other.Env[0], "WALG_FILE_PREFIX="))
	s.Refused(t, 1, []string{"the cluster with system identifier 5"}, "copy", "-t", settingsFile(t, other.Env...))
	s.Env = keys // for what the test leaves to be archived
}
