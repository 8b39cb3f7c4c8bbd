package roundtrip_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

// The policies of docs/policies give three roles what they need and no more: S3 enforces them here.
func TestRoles(t *testing.T) {
	g := places.NewS3(t)
	policies := map[string]string{}
	for user, role := range map[string]string{"writer": "write", "reader": "read", "expirer": "expire"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "docs", "policies", "s3-"+role+".json"))
		if err != nil {
			t.Fatal(err)
		}
		policies[user] = strings.NewReplacer("BUCKET", "archive", "PATH", "some/path").Replace(string(b))
	}
	g.Allow(t, policies)
	as := func(s *site.Site, user string) *site.Site {
		here := *s
		here.Env = g.Env(g.URL, "AWS_ACCESS_KEY_ID="+user)
		return &here
	}
	writer := site.In(t, pgtest.Require(t, 15), pgtest.Options{}, g.Root(), g.Env(g.URL, "AWS_ACCESS_KEY_ID=writer")...)
	reader, expirer := as(writer, "reader"), as(writer, "expirer")
	file := filepath.Join(writer.Dir, "file")
	write(t, file, "of no use")
	// allowed and denied look at what a role may do, by the storage tools; what is denied must have changed nothing.
	allowed := func(s *site.Site, args ...string) { t.Helper(); s.OK(t, append([]string{"st"}, args...)...) }
	denied := func(s *site.Site, args ...string) {
		t.Helper()
		before := strings.Join(writer.Objects(t), "\n")
		if r := s.Do(t, append([]string{"st"}, args...)...); r.Status == 0 || !strings.Contains(r.Stderr, "denied") && !strings.Contains(r.Stderr, "Denied") {
			t.Errorf("st %s: exit status %d\n%s", strings.Join(args, " "), r.Status, r.Stderr)
		}
		if after := strings.Join(writer.Objects(t), "\n"); after != before {
			t.Errorf("st %s changed the archive from\n%s\nto\n%s", strings.Join(args, " "), before, after)
		}
	}

	// write archives, tells the same segment from another one, and can neither read backups nor remove what it made.
	writer.Exec(t, `create table keepsake as select g as id, md5(g::text) as what from generate_series(1, 5000) g`)
	r := writer.OK(t, "backup-push", "--json", writer.Data)
	if strings.Contains(r.Stderr, "WARN") || strings.Contains(r.Stderr, "ERROR") {
		t.Errorf("backup-push by who may only write:\n%s", r.Stderr)
	}
	first := reader.Backups(t)[0]
	segment := writer.Switch(t)
	again := filepath.Join(pgtest.Dir(t), segment)
	content, err := os.ReadFile(filepath.Join(writer.Data, "pg_wal", segment))
	if err != nil {
		t.Fatal(err)
	}
	write(t, again, string(content))
	writer.OK(t, "wal-push", again)
	content[len(content)-1] ^= 1
	write(t, again, string(content))
	writer.Refused(t, 1, []string{segment}, "wal-push", again)
	part := "basebackups_005/" + first + "/tar_partitions/part_001.tar.zst"
	sentinel := "basebackups_005/" + first + "_backup_stop_sentinel.json"
	denied(writer, "cat", part)
	denied(writer, "rm", part)
	denied(writer, "rm", sentinel)
	denied(writer, "rm", "wal_005/"+segment+".zst")
	if r := writer.Do(t, "backup-fetch", filepath.Join(pgtest.Dir(t), "data"), "LATEST"); r.Status == 0 {
		t.Error("who may only write restores")
	}

	// read restores, to the end of WAL, and changes nothing.
	want := site.Rows(t, writer.Cluster, "keepsake")
	if got := site.Rows(t, reader.Restored(t, "--target", "latest"), "keepsake"); got != want {
		t.Errorf("the table came back as %s, was %s", got, want)
	}
	denied(reader, "put", file, "wal_005/file")
	denied(reader, "put", "-f", file, part)
	denied(reader, "rm", part)
	if r := reader.Do(t, "wal-push", again); r.Status == 0 {
		t.Error("who may only read archives")
	}

	// expire removes a backup and WAL that nobody needs, and neither reads content nor writes.
	second := writer.Push(t)
	denied(expirer, "cat", part)
	denied(expirer, "cat", "wal_005/"+segment+".zst")
	denied(expirer, "put", file, "wal_005/file")
	allowed(expirer, "cat", sentinel)
	allowed(expirer, "rm", sentinel)
	allowed(expirer, "rm", "basebackups_005/"+first)
	allowed(expirer, "rm", "wal_005/"+segment+".zst")
	if names := expirer.Backups(t); len(names) != 1 || names[0] != second {
		t.Errorf("backups %q are left, want %s", names, second)
	}
	writer.NoTrace(t, second)
}
