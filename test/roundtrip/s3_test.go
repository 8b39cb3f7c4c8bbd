package roundtrip_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

// A cluster comes back from S3, and through an outage of the service nothing is mistaken for missing.
func TestS3(t *testing.T) {
	g := places.NewS3(t)
	s := site.In(t, pgtest.Require(t, 18), pgtest.Options{}, g.Root(), g.Env(g.URL)...)
	m := accident(t, s)
	m.holds(t, s.Restored(t, "--target-time", m.time, "--target-action", "promote"))
	if names := s.Backups(t); len(names) != 1 {
		t.Errorf("backups: %v", names)
	}

	// Multipart uploads: parts of 5 MiB, and data that does not compress.
	s.Exec(t, `create table noise as select g as id, string_agg(md5(random()::text), '') as what from generate_series(1, 10000) g, generate_series(1, 50) group by g`)
	push := s.Command(t, "backup-push", s.Data)
	push.Env = append(push.Env, "S3_MAX_PART_SIZE=5MiB")
	if r := site.Run(t, push); r.Status != 0 {
		t.Fatalf("backup-push: exit status %d\n%s", r.Status, r.Stderr)
	}
	s.Switch(t)
	want := site.Rows(t, s.Cluster, "noise")
	if got := site.Rows(t, s.Restored(t, "--target", "latest"), "noise"); got != want {
		t.Errorf("the table came back as %s, was %s", got, want)
	}

	// Killed in the midst of its uploads a push leaves no backup.
	before := s.Backups(t)
	push = s.Command(t, "backup-push", s.Data)
	push.Env = append(push.Env, "S3_MAX_PART_SIZE=5MiB", "WALG_NETWORK_RATE_LIMIT=4000000")
	if err := push.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the backup has begun", func() bool { return anyObject(t, s, "/push.json") })
	time.Sleep(time.Second) // somewhere in it
	if err := push.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = push.Wait() // killed
	s.NotInBackup(t)
	if now := s.Backups(t); len(now) != len(before) {
		t.Errorf("backups %v, before the killed push %v", now, before)
	}
	s.Push(t)

	dest := filepath.Join(pgtest.Dir(t), "RECOVERYXLOG")
	segment := s.Switch(t)
	const absent = "0000000100000000000000F0"
	fetch := func(what string, status int, name string, env ...string) {
		t.Helper()
		cmd := s.Command(t, "wal-fetch", name, dest)
		cmd.Env = append(cmd.Env, append(env, "S3_MAX_RETRIES=0", "WALG_DOWNLOAD_CONCURRENCY=1")...)
		if r := site.Run(t, cmd); r.Status != status {
			t.Errorf("%s: exit status %d, want %d\n%s", what, r.Status, status, r.Stderr)
		} else if strings.Contains(r.Stdout+r.Stderr, "swordfish") {
			t.Errorf("%s: the secret is shown:\n%s", what, r.Stderr)
		}
	}
	fetch("there", 0, segment)
	fetch("absent", 74, absent)
	fetch("wrong secret", 200, absent, "AWS_SECRET_ACCESS_KEY=marlin")
	fetch("wrong key", 200, absent, "AWS_ACCESS_KEY_ID=nobody")
	fetch("wrong bucket", 200, absent, "WALG_S3_PREFIX=s3://pail/some/path")
	fetch("a path with no archive", 200, absent, "WALG_S3_PREFIX=s3://archive/other/path")
	g.Stop()
	fetch("service down", 200, absent)
	g.Start(t)
	fetch("service up again", 0, segment)
}
