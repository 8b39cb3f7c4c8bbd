package roundtrip_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

// withRoles starts an S3 with the users writer, reader, verifier and expirer, each of whom may do what the policy of docs/policies says.
func withRoles(t *testing.T) *places.S3 {
	t.Helper()
	g := places.NewS3(t)
	policies := map[string]string{}
	for user, role := range map[string]string{"writer": "write", "reader": "read", "verifier": "verify", "expirer": "expire"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "docs", "policies", "s3-"+role+".json"))
		if err != nil {
			t.Fatal(err)
		}
		policies[user] = strings.NewReplacer("BUCKET", "archive", "PATH", "some/path").Replace(string(b))
	}
	g.Allow(t, policies)
	return g
}

// The policies of docs/policies give four roles what they need and no more: S3 enforces them here.
func TestRoles(t *testing.T) {
	g := withRoles(t)
	as := func(s *site.Site, user string) *site.Site {
		here := *s
		here.Env = g.Env(g.URL, "AWS_ACCESS_KEY_ID="+user)
		return &here
	}
	writer := site.In(t, pgtest.Require(t, 15), pgtest.Options{}, g.Root(), g.Env(g.URL, "AWS_ACCESS_KEY_ID=writer", "HOLDFAST_WAL_SUMMARIES=on", "WALG_USE_WAL_DELTA=true")...)
	reader, verifier, expirer := as(writer, "reader"), as(writer, "verifier"), as(writer, "expirer")
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
	writer.Exec(t, `update keepsake set what = 'new' where id < 100`)
	delta := pushedDelta(t, writer)
	segment := writer.Switch(t)
	pushedAgain(t, writer, segment)
	part := "basebackups_005/" + first + "/tar_partitions/part_001.tar.zst"
	sentinel := "basebackups_005/" + first + "_backup_stop_sentinel.json"
	denied(writer, "cat", part)
	denied(writer, "rm", part)
	denied(writer, "rm", sentinel)
	denied(writer, "rm", "wal_005/"+segment+".zst")
	denied(writer, "rm", "holdfast/summaries/00000001/"+segment+".zst")
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
	writer.Exec(t, `create table later (n int)`)
	next := filepath.Join(pgtest.Dir(t), writer.Value(t, `pg_walfile_name(pg_current_wal_lsn())`))
	write(t, next, read(t, filepath.Join(writer.Data, "pg_wal", filepath.Base(next))))
	if r := reader.Do(t, "wal-push", next); r.Status == 0 {
		t.Error("who may only read archives")
	}

	// expire removes a backup and WAL that nobody needs, and neither reads content nor writes.
	second := writer.Push(t)
	denied(expirer, "cat", part)
	denied(expirer, "cat", "wal_005/"+segment+".zst")
	denied(expirer, "cat", "holdfast/summaries/00000001/"+segment+".zst")
	denied(expirer, "put", file, "wal_005/file")
	allowed(expirer, "cat", sentinel)
	before := strings.Join(writer.Objects(t), "\n")
	if r := writer.Do(t, "delete", "retain", "FULL", "1", "--confirm"); r.Status == 0 {
		t.Error("who may only write condemns")
	}
	if after := strings.Join(writer.Objects(t), "\n"); after != before {
		t.Errorf("who may only write has changed the archive from\n%s\nto\n%s", before, after)
	}
	denied(writer, "put", file, "holdfast/holds/x.json")
	allowed(expirer, "rm", "holdfast/restores") // or the WAL stays that the copy may be replaying
	r = expirer.OK(t, "delete", "retain", "FULL", "1", "--confirm")
	if strings.Contains(r.Stderr, "WARN") || strings.Contains(r.Stderr, "ERROR") || !strings.Contains(r.Stderr, "Objects deleted successfully") {
		t.Errorf("delete by who may expire:\n%s", r.Stderr)
	}
	for _, gone := range []string{"wal_005/" + segment + ".zst", "holdfast/summaries/00000001/" + segment + ".zst", part, "basebackups_005/" + delta + "/metadata.json"} {
		if expirer.Has(gone) {
			t.Errorf("%s is there", gone)
		}
	}
	if names := expirer.Backups(t); len(names) != 1 || names[0] != second {
		t.Errorf("backups %q are left, want %s", names, second)
	}
	writer.NoTrace(t, second)

	// Under an agent each takes its lease, asks for the time and notes its slot, or that nobody did what was due; none takes the lease of what another role does.
	agents := func(s *site.Site, slot string) *site.Site {
		here := *s
		here.Env = append(slices.Clone(s.Env), "HOLDFAST_LEASE=archive", "HOLDFAST_SLOT="+slot+"@2025-11-21T03:00:00Z")
		return &here
	}
	for slot, by := range map[string]*site.Site{"drill-oldest": reader, "verify": verifier, "retention": expirer} {
		if r := agents(by, slot).OK(t, "agent", "slot", "--claim"); strings.Contains(r.Stderr, "WARN") || !by.Has("holdfast/schedule/"+slot+"/20251121T030000Z.absent.json") {
			t.Errorf("who does %s cannot note that nobody did:\n%s", slot, r.Stderr)
		}
	}
	for _, by := range []*site.Site{reader, verifier} {
		denied(by, "put", file, "holdfast/leases/backup-push/0000000000000001.end.json")
		denied(by, "put", file, "holdfast/leases/retention/0000000000000001.end.json")
		denied(by, "put", file, "holdfast/schedule/backup/20251121T030000Z.json")
	}
	denied(reader, "put", file, "holdfast/leases/verify/0000000000000001.end.json")
	denied(verifier, "put", file, "holdfast/schedule/drill/20251121T030000Z.json")

	// Drills need no more than read, and leave their records. What retention goes by only verify may say; who may read verifies, and leaves none.
	drills := *reader
	drills.Env = append(slices.Clone(reader.Env), "HOLDFAST_DRILL_DIR="+pgtest.Dir(t), "HOLDFAST_PG_BIN="+filepath.Join(pgtest.Cache(), "pg", "*", "bin"))
	denied(reader, "put", file, "basebackups_005/"+second+"/verified/x.json")
	denied(reader, "put", file, "holdfast/verified/wal/x.json")
	if r := reader.OK(t, "verify"); !strings.Contains(r.Stderr, "cannot be recorded") {
		t.Errorf("verify by who may only read:\n%s", r.Stderr)
	}
	denied(verifier, "put", file, "basebackups_005/"+second+"/proven/x.json")
	denied(verifier, "put", "-f", file, "basebackups_005/"+second+"_backup_stop_sentinel.json")
	denied(verifier, "rm", "basebackups_005/"+second+"_backup_stop_sentinel.json")
	for command, c := range map[string]struct {
		by     *site.Site
		record string
	}{"verify": {verifier, second + "/verified/"}, "drill": {&drills, second + "/proven/"}, "retention apply": {expirer, "holdfast/leases/retention/0000000000000001.end.json"}} {
		slot, _, _ := strings.Cut(command, " ")
		r := agents(c.by, slot).OK(t, strings.Fields(command)...)
		objects := strings.Join(reader.Objects(t), "\n")
		for _, record := range []string{c.record, "holdfast/leases/" + slot + "/0000000000000001.json", "holdfast/schedule/" + slot + "/20251121T030000Z.json"} {
			if strings.Contains(r.Stderr, "WARN") || !strings.Contains(objects, record) {
				t.Errorf("%s does not leave %s:\n%s", command, record, r.Stderr)
			}
		}
		if strings.Contains(objects, "holdfast/clock-") {
			t.Errorf("%s leaves what it read the time off:\n%s", command, objects)
		}
	}
}

// pushedDelta takes a delta, without complaints, and returns its name.
func pushedDelta(t *testing.T, s *site.Site) string {
	t.Helper()
	here := *s
	here.Env = append(slices.Clone(s.Env), "WALG_DELTA_MAX_STEPS=5")
	r := here.OK(t, "backup-push", "--json", s.Data)
	var report struct {
		Name string `json:"backup_name"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil || !strings.Contains(report.Name, "_D_") || strings.Contains(r.Stderr, "WARN") || strings.Contains(r.Stderr, "ERROR") {
		t.Errorf("a delta: %v, %s\n%s", err, r.Stdout, r.Stderr)
	}
	return report.Name
}

// pushedAgain pushes a segment that is archived again, which is fine, and with other content, which is refused.
func pushedAgain(t *testing.T, s *site.Site, segment string) {
	t.Helper()
	again := filepath.Join(pgtest.Dir(t), segment)
	content := read(t, filepath.Join(s.Data, "pg_wal", segment))
	write(t, again, content)
	s.OK(t, "wal-push", again)
	write(t, again, content[:len(content)-1]+"x")
	s.Refused(t, 1, []string{segment, "already archived", "differ"}, "wal-push", again)
}

// The host of the database has public keys and may only write. It archives and is backed up, knows a segment that it has pushed before from
// another one of that name, and cannot read. Another host with one of the identities restores.
func TestBlindHost(t *testing.T) {
	g := withRoles(t)
	l := ageLock(t)
	other := ageLock(t)
	second := sshKey(t)
	recipients := l.write[0] + "," + second.recipient
	s := site.In(t, pgtest.Require(t, 15), pgtest.Options{}, g.Root(), g.Env(g.URL, "AWS_ACCESS_KEY_ID=writer", recipients)...)
	s.OK(t, "key", "check", "--write")
	m := accident(t, s)
	pushedDelta(t, s)
	segment := s.Switch(t)
	pushedAgain(t, s, segment)

	dest := filepath.Join(pgtest.Dir(t), "data")
	host := func(env ...string) *site.Site {
		here := *s
		here.Env = g.Env(g.URL, append([]string{"AWS_ACCESS_KEY_ID=reader"}, env...)...)
		return &here
	}
	for what, c := range map[string]struct {
		here *site.Site
		says string
	}{
		"with the public keys only": {host(recipients), "HOLDFAST_AGE_IDENTITIES"},
		"with another identity":     {host(other.read...), "HOLDFAST_AGE_IDENTITIES"},
		"without keys":              {host(), "ERROR"},
	} {
		here := c.here
		if r := here.Do(t, "backup-fetch", dest, "LATEST"); r.Status != 1 || !strings.Contains(r.Stderr, c.says) {
			t.Errorf("%s: backup-fetch: exit status %d\n%s", what, r.Status, r.Stderr)
		}
		if r := here.Do(t, "wal-fetch", segment, filepath.Join(filepath.Dir(dest), "RECOVERYXLOG")); r.Status != 200 {
			t.Errorf("%s: wal-fetch: exit status %d, want 200\n%s", what, r.Status, r.Stderr)
		}
	}
	reader := host(l.read...)
	reader.OK(t, "key", "check", "--read")
	m.holds(t, reader.Restored(t, "--target-time", m.time, "--target-action", "promote"))
	host("HOLDFAST_AGE_IDENTITIES_PATH="+second.identity).Restored(t, "--target", "latest")
}
