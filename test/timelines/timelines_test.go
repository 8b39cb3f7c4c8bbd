// Package timelines_test follows a cluster over a failover, with a segment lost and a stray clone, as its operator would.
package timelines_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// at runs holdfast with the settings of the archive, asking the server c; nil is none.
func at(t *testing.T, s *site.Site, c *pgtest.Cluster, args ...string) site.Result {
	t.Helper()
	cmd := pgtest.Command(t, s.Binary, args...)
	cmd.Env = slices.Concat(cmd.Environ(), s.Env)
	if c != nil {
		cmd.Env = append(cmd.Env, c.Environ()...)
	}
	return site.Run(t, cmd)
}

// expect runs holdfast, which must end with status and say each of words, on whichever output.
func expect(t *testing.T, s *site.Site, c *pgtest.Cluster, status int, words []string, args ...string) site.Result {
	t.Helper()
	r := at(t, s, c, args...)
	all := r.Stdout + r.Stderr
	if r.Status != status {
		t.Errorf("holdfast %s: exit status %d, want %d\n%s", strings.Join(args, " "), r.Status, status, all)
	}
	for _, word := range words {
		if !strings.Contains(all, word) {
			t.Errorf("holdfast %s does not say %q:\n%s", strings.Join(args, " "), word, all)
		}
	}
	return r
}

// fetch brings a WAL file from the archive.
func fetch(t *testing.T, s *site.Site, name string) []byte {
	t.Helper()
	to := filepath.Join(pgtest.Dir(t), name)
	expect(t, s, nil, 0, nil, "wal-fetch", name, to)
	b, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// switched ends the current segment of a server that archives into the archive, and returns its name.
func switched(t *testing.T, s *site.Site, c *pgtest.Cluster, note string) string {
	t.Helper()
	c.Exec(t, fmt.Sprintf(`insert into story select %s, g from generate_series(1, 500) g`, "'"+note+"'"))
	name := c.Value(t, `pg_walfile_name(pg_switch_wal())`)
	s.Await(t, name)
	return name
}

// A failover, a lost segment that the standby still has, and a clone that was started for a test and archives.
func TestStory(t *testing.T) {
	for _, major := range []int{13, 17} {
		t.Run(fmt.Sprint(major), func(t *testing.T) { story(t, major) })
	}
}

func story(t *testing.T, major int) {
	s := site.New(t, pgtest.Require(t, major), pgtest.Options{SegmentSize: 1 << 20, Settings: map[string]string{"wal_keep_size": "64MB"}})
	s.Env = append(s.Env, "WALG_UPLOAD_CONCURRENCY=1") // so that few segments count as on their way
	s.Exec(t, `create table story (note text, n int)`)
	backup := s.Push(t)
	keep := map[string]string{"wal_keep_size": "64MB", "archive_mode": "on", "archive_command": s.Binary + ` wal-push "%p"`}
	standby := s.Cluster.Standby(t, pgtest.Options{Env: s.Env, Settings: keep})
	var names []string
	for range 6 {
		names = append(names, switched(t, s, s.Cluster, "primary"))
	}
	s.CatchUp(t, standby)
	expect(t, s, s.Cluster, 0, []string{"integrity check status: OK", "timeline check status: OK", names[0][:8] + "0000", "FOUND"}, "wal-verify", "integrity", "timeline")
	expect(t, s, standby, 0, []string{"integrity check status: OK"}, "wal-verify", "integrity", "--json=false")

	// A segment is lost; the standby has it.
	lost := names[3]
	was := fetch(t, s, lost)
	if err := os.Remove(filepath.Join(s.Root, "wal_005", lost+".zst")); err != nil {
		t.Fatal(err)
	}
	expect(t, s, s.Cluster, 2, []string{"integrity check status: FAILURE", "MISSING_LOST", "the first is " + lost}, "wal-verify", "integrity", "--full")
	expect(t, s, s.Cluster, 0, []string{"LOST_SEGMENTS", "LOST: " + lost + " (1 segment)", "--repair"}, "wal-show")
	before := s.Objects(t)
	expect(t, s, nil, 0, []string{"would store " + lost}, "wal-push", "--repair", standby.Data, "--dry-run")
	if after := s.Objects(t); len(after) != len(before) {
		t.Errorf("a dry run made %d objects of %d", len(after), len(before))
	}
	expect(t, s, nil, 0, []string{"stored " + lost}, "wal-push", "--repair", standby.Data)
	if !bytes.Equal(fetch(t, s, lost), was) {
		t.Errorf("%s came back with other content", lost)
	}
	s.Exec(t, `insert into story values ('not finished')`) // a segment that has just been finished is the current one too
	s.CatchUp(t, standby)
	expect(t, s, nil, 0, nil, "wal-push", "--repair", standby.Data)
	if s.Has("wal_005/" + s.Value(t, `pg_walfile_name(pg_current_wal_lsn())`) + ".zst") {
		t.Error("the segment that is being written is archived")
	}
	expect(t, s, s.Cluster, 0, []string{"integrity check status: OK"}, "wal-verify", "integrity")
	expect(t, s, nil, 0, nil, "wal-push", "--repair", s.Data)
	switched(t, s, s.Cluster, "primary") // what follows is archived as ever

	// Failover.
	s.CatchUp(t, standby)
	s.Stop(t)
	if err := standby.Server.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	var last string
	for range 5 {
		last = switched(t, s, standby, "new primary")
	}
	if last[:8] != "00000002" {
		t.Fatalf("the new primary writes %s", last)
	}
	expect(t, s, standby, 0, []string{"integrity check status: OK", "timeline check status: OK", "|   2 | 00000002"}, "wal-verify", "integrity", "timeline")
	show := expect(t, s, standby, 0, []string{"timeline 2 left 1 at ", "(no recovery target specified) <- the cluster is on it", "The cluster is on timeline 2: the server says that it is on it."}, "wal-show")
	if strings.Contains(show.Stdout, "LOST") || strings.Contains(show.Stdout, ".partial is") && !strings.Contains(show.Stdout, ".partial is harmless") {
		t.Errorf("wal-show:\n%s", show.Stdout)
	}

	// A clone of an earlier moment is started with archiving on.
	dir := filepath.Join(pgtest.Dir(t), "data")
	expect(t, s, nil, 0, nil, "backup-fetch", dir, backup, "--target", "immediate", "--target-action", "promote", "--archive")
	clone := pgtest.Attach(t, s.Programs, dir, pgtest.Options{Env: s.Env, Settings: map[string]string{"archive_mode": "on", "archive_command": s.Binary + ` wal-push "%p"`}})
	site.AwaitRecovery(t, clone)
	stray := switched(t, s, clone, "clone")
	clone.Stop(t)
	if stray[:8] != "00000003" {
		t.Fatalf("the clone writes %s", stray)
	}
	expect(t, s, standby, 2, []string{"timeline check status: FAILURE", "holdfast timeline forget 3"}, "wal-verify", "timeline")
	expect(t, s, standby, 0, []string{"integrity check status: OK"}, "wal-verify", "integrity")

	// Recovery leads to the cluster, whatever is there beside it.
	settings := func(c *pgtest.Cluster, args ...string) (lines []string, log string) {
		t.Helper()
		var plan struct {
			Settings []string `json:"settings"`
		}
		r := expect(t, s, c, 0, nil, append([]string{"backup-fetch", filepath.Join(pgtest.Dir(t), "data"), "LATEST", "--dry-run", "--json"}, args...)...)
		if err := json.Unmarshal([]byte(r.Stdout), &plan); err != nil {
			t.Fatalf("%v\n%s", err, r.Stdout)
		}
		return plan.Settings, r.Stderr
	}
	along := func(c *pgtest.Cluster, want string, words []string, not string, args ...string) {
		t.Helper()
		lines, log := settings(c, args...)
		if !slices.Contains(lines, "recovery_target_timeline = '"+want+"'") {
			t.Errorf("%q: %q, want timeline %s", args, lines, want)
		}
		for _, word := range words {
			if !strings.Contains(log, word) {
				t.Errorf("%q does not say %q:\n%s", args, word, log)
			}
		}
		if not != "" && strings.Contains(log, not) {
			t.Errorf("%q says %q:\n%s", args, not, log)
		}
	}
	beside := []string{"WARNING", "recovery leads along timeline 2: it has ", "Timeline 3 leads elsewhere", "--target-timeline 3"}
	along(nil, "2", beside, "", "--target", "latest")
	along(standby, "2", []string{"the server says that it is on it", "Timeline 3 leads elsewhere"}, "", "--target", "latest")
	along(nil, "2", nil, "", "--standby")
	along(nil, "3", nil, "leads elsewhere", "--target", "latest", "--target-timeline", "3")
	along(nil, "3", nil, "leads elsewhere", "--target", "latest", "--target-timeline", "latest")

	// What the clone pushed goes, and comes back.
	expect(t, s, standby, 1, []string{"timeline 2 is the one that the cluster is on: the server says"}, "timeline", "forget", "2")
	expect(t, s, standby, 0, []string{"history file", "Dry run: "}, "timeline", "forget", "3")
	expect(t, s, standby, 0, []string{"timeline 3 was put aside: "}, "timeline", "forget", "3", "--confirm", "--reason", "a restore test")
	expect(t, s, standby, 0, []string{"timeline check status: OK"}, "wal-verify", "timeline")
	along(nil, "2", nil, "leads elsewhere", "--target", "latest")
	along(nil, "latest", nil, "leads elsewhere", "--standby")
	restored := s.Restored(t, "--target", "latest")
	if got, want := site.Rows(t, restored, "story"), site.Rows(t, standby, "story"); got != want {
		t.Errorf("restored %s, want %s", got, want)
	}
	expect(t, s, standby, 0, []string{"timeline 3 was brought back: "}, "timeline", "recall", "3", "--confirm")
	along(nil, "2", beside, "", "--target", "latest")
	if r := s.Fetch(t, "--target", "latest", "--target-timeline", "3"); r == "" {
		t.Error("nothing was restored")
	}

	// The clone's pg_wal repairs nothing, nor does what the old primary wrote behind the branch.
	if err := os.Remove(filepath.Join(s.Root, "wal_005", last+".zst")); err != nil {
		t.Fatal(err)
	}
	expect(t, s, nil, 1, []string{"timeline 3", "neither leads to the other"}, "wal-push", "--repair", clone.Data)
	expect(t, s, nil, 0, nil, "wal-push", "--repair", s.Data)
	if s.Has("wal_005/" + last + ".zst") {
		t.Errorf("%s came from a server that never had it", last)
	}
	expect(t, s, nil, 0, []string{"stored " + last}, "wal-push", "--repair", standby.Data)
	expect(t, s, standby, 0, []string{"integrity check status: OK"}, "wal-verify", "integrity", "--full")
}
