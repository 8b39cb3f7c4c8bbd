// Package verify_test runs `holdfast verify` on archives of real servers.
package verify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/internal/verify"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// report runs verify, which must end with status.
func report(t *testing.T, s *site.Site, status int, args ...string) *verify.Report {
	t.Helper()
	r := s.Do(t, append([]string{"verify", "--json"}, args...)...)
	if r.Status != status {
		t.Errorf("verify %s: exit status %d, want %d\n%s\n%s", strings.Join(args, " "), r.Status, status, r.Stdout, r.Stderr)
	}
	var rep verify.Report
	if err := json.Unmarshal([]byte(r.Stdout), &rep); err != nil {
		t.Fatalf("verify --json: %v\n%s%s", err, r.Stdout, r.Stderr)
	}
	return &rep
}

// All that a server has put into an archive is found to be right: full backups and deltas, over the wire and from the directory, the WAL of a crash, of large records
// and of two timelines. A second run reads nothing. Whatever is then damaged is named, with what it means.
func TestVerify(t *testing.T) {
	for _, major := range []int{10, 15, 17} {
		p := pgtest.Require(t, major)
		t.Run(fmt.Sprint("PG", major), func(t *testing.T) {
			s := site.New(t, p, pgtest.Options{Checksums: true, Settings: map[string]string{"wal_level": "logical"}})
			s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=3")
			s.Exec(t, `create table t as select g, repeat(md5(g::text), 10) as x from generate_series(1, 20000) g`, `create table gone as select 1 as a`,
				`create table still as select md5(g::text) || md5((-g)::text) as x from generate_series(1, 150000) g`, `vacuum freeze still`)
			full := s.Push(t)
			s.Exec(t, `update t set x = 'changed' where g % 50 = 0`, `select pg_logical_emit_message(true, 'large', repeat('x', 30000000))`, `drop table gone`)
			if err := s.Server.Stop(t.Context(), instance.Immediate); err != nil {
				t.Fatal(err)
			}
			s.Start(t)
			delta := s.Push(t)
			s.Exec(t, `insert into t select g, 'more' from generate_series(1, 1000) g`)
			s.Switch(t)

			// The standby takes over, archives on the next timeline, and takes a backup there.
			standby := s.Standby(t, pgtest.Options{Env: s.Env, Settings: map[string]string{"archive_mode": "on", "archive_command": s.Binary + ` wal-push "%p"`}})
			s.CatchUp(t, standby)
			s.Stop(t)
			if err := standby.Server.Promote(t.Context()); err != nil {
				t.Fatal(err)
			}
			site.AwaitRecovery(t, standby)
			s.Cluster = standby
			s.Exec(t, `insert into t select g, 'on the next timeline' from generate_series(1, 1000) g`)
			s.Switch(t)
			s.Push(t, "--full")
			s.Switch(t)
			s.OK(t, "backup-push", "--wire", "--full")
			s.Switch(t)

			rep := report(t, s, 0, "all")
			if rep.Result != verify.OK || len(rep.Backups) != 4 || len(rep.WAL) != 2 || len(rep.Findings) > 0 {
				t.Errorf("%+v", rep)
			}
			if !slices.ContainsFunc(rep.Backups, func(b verify.BackupResult) bool { return b.Backup == delta && b.Result == "ok" }) {
				t.Errorf("the delta: %+v", rep.Backups)
			}
			again := report(t, s, 0, "all")
			if again.Read.Objects > 0 || again.Read.Segments > 0 || again.Before == 0 {
				t.Errorf("a second run read %+v", again.Read)
			}
			text := s.OK(t, "verify", "LATEST", "--wal").Stdout
			if !strings.HasPrefix(text, "All is well") || strings.ContainsFunc(text, func(r rune) bool { return r == 0 }) {
				t.Errorf("verify says\n%s", text)
			}
			for line := range strings.Lines(text) {
				if len(line) > 121 {
					t.Errorf("a line of %d bytes: %s", len(line), line)
				}
			}

			// A page of the full backup that the delta needs: most of the part that has it is that table.
			name := partOf(t, s, full, s.Value(t, `select pg_relation_filepath('still')`))
			part := filepath.Join(s.Root, "basebackups_005", full, "tar_partitions", name)
			flip(t, part)
			rep = report(t, s, 2, delta)
			f := rep.Findings[0]
			if f.Severity != verify.Damage || f.Object != "basebackups_005/"+full+"/tar_partitions/"+name || f.Backup != full || f.Offset == nil ||
				!strings.Contains(f.Means, delta) {
				t.Errorf("%+v", f)
			}
			s.Refused(t, 1, []string{name}, "backup-fetch", filepath.Join(pgtest.Dir(t), "data"), delta)
			flip(t, part)
			report(t, s, 0, delta)

			// What a delta builds on is lost, and comes back as another.
			sentinel := "basebackups_005/" + full + "_backup_stop_sentinel.json"
			b, err := os.ReadFile(filepath.Join(s.Root, sentinel))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(s.Root, sentinel)); err != nil {
				t.Fatal(err)
			}
			rep = report(t, s, 2, delta)
			if f := rep.Findings[0]; f.Kind != verify.Missing || f.Object != sentinel || f.Backup != delta {
				t.Errorf("%+v", rep.Findings)
			}
			if rep = report(t, s, 2, full); rep.Findings[0].Object != sentinel {
				t.Errorf("%+v", rep.Findings)
			}
			other := bytes.Replace(b, []byte(`"Hostname":"`), []byte(`"Hostname":"not `), 1)
			if err := os.WriteFile(filepath.Join(s.Root, sentinel), other, 0o644); err != nil {
				t.Fatal(err)
			}
			rep = report(t, s, 2, delta)
			if f := rep.Findings[0]; f.Object != sentinel {
				t.Errorf("%+v", rep.Findings)
			}
			if err := os.WriteFile(filepath.Join(s.Root, sentinel), b, 0o644); err != nil {
				t.Fatal(err)
			}
			report(t, s, 0, delta)

			// A segment of WAL behind it.
			segments, err := filepath.Glob(filepath.Join(s.Root, "wal_005", "00000001*.zst"))
			if err != nil || len(segments) < 3 {
				t.Fatal(segments, err)
			}
			segments = slices.DeleteFunc(segments, func(name string) bool { return strings.Contains(name, ".backup.") })
			middle := segments[len(segments)/2]
			flip(t, middle)
			rep = report(t, s, 2, "all")
			if f := rep.Findings[0]; len(rep.Findings) != 1 || f.Object != "wal_005/"+filepath.Base(middle) || !strings.Contains(f.Means, "recovery") && !strings.Contains(f.Means, "consistent") {
				t.Errorf("%+v", rep.Findings)
			}
			if err := os.Remove(middle); err != nil {
				t.Fatal(err)
			}
			rep = report(t, s, 2, "all")
			if f := rep.Findings[0]; f.Kind != verify.Missing || f.Object != "wal_005/"+filepath.Base(middle)[:24] {
				t.Errorf("%+v", rep.Findings)
			}
		})
	}
}

// partOf is the name of the part of backup that has the file path.
func partOf(t *testing.T, s *site.Site, backup, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Root, "basebackups_005", backup, "files_metadata.json"))
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ TarFileSets map[string][]string }
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	for part, files := range list.TarFileSets {
		if slices.ContainsFunc(files, func(f string) bool { return strings.TrimPrefix(f, "/") == path }) {
			return part
		}
	}
	t.Fatalf("no part of %s has %s", backup, path)
	return ""
}

// flip changes a bit in the middle of a file, or changes it back.
func flip(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x10
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
