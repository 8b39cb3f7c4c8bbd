package roundtrip_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// wired is a site whose backups come over the wire, by a role that may do nothing but replicate.
type wired struct{ *site.Site }

func newWired(t *testing.T, p instance.Programs, opts pgtest.Options) wired {
	t.Helper()
	s := wired{site.New(t, p, opts)}
	s.Exec(t, `create role wire login replication`)
	return s
}

// command prepares a backup over the wire by the archive's account, which need not be the server's.
func (s wired) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := s.Command(t, append([]string{"backup-push", "--json"}, args...)...)
	cmd.Env = append(cmd.Env, "PGUSER=wire")
	cmd.Env = slices.DeleteFunc(cmd.Env, func(e string) bool { return strings.HasPrefix(e, "PGDATA") })
	return cmd
}

type wireReport struct {
	Name  string `json:"backup_name"`
	Files int64  `json:"files"`
	Bytes int64  `json:"uncompressed_size"`
	Notes []string
}

// push takes a backup over the wire.
func (s wired) push(t *testing.T, args ...string) (r wireReport) {
	t.Helper()
	result := site.Run(t, s.command(t, args...))
	if result.Status != 0 {
		t.Fatalf("backup-push over the wire: exit status %d\n%s", result.Status, result.Stderr)
	}
	if err := json.Unmarshal([]byte(result.Stdout), &r); err != nil {
		t.Fatalf("backup-push --json: %v\n%s", err, result.Stdout)
	}
	return r
}

// What comes over the wire restores to what it was, with tablespaces elsewhere, and is laid out as any other backup.
func TestWire(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		s := newWired(t, p, pgtest.Options{Checksums: true})
		dir := pgtest.Dir(t)
		s.Exec(t, `create tablespace side location '`+dir+`'`,
			`create table t as select g as id, md5(g::text) as what from generate_series(1, 100000) g`,
			`create table aside tablespace side as select g as id, md5(g::text) as what from generate_series(1, 3000) g`,
			`create unlogged table fleeting as select generate_series(1, 1000) g`,
			`create index on t (what)`, `vacuum t`)
		name := s.push(t).Name
		s.NoTrace(t, name)
		s.NotInBackup(t)
		s.Exec(t, `insert into t select g, 'later' from generate_series(1, 1000) g`, `insert into aside values (0, 'later')`)
		s.Switch(t)
		c := s.Restored(t, "--target", "latest", "--tablespace-mapping", dir+"="+filepath.Join(pgtest.Dir(t), "side"))
		for _, table := range []string{"t", "aside"} {
			if got, want := site.Rows(t, c, table), site.Rows(t, s.Cluster, table); got != want {
				t.Errorf("%s came back as %s, was %s", table, got, want)
			}
		}
		if n := c.Value(t, `select count(*) from fleeting`); n != "0" {
			t.Errorf("an unlogged table came back with %s rows", n)
		}
		for object, want := range map[string]bool{
			"tar_partitions/part_001.tar.zst": true, "tar_partitions/pg_control.tar.zst": true, "tar_partitions/backup_label.tar.zst": true,
			"page_sums/part_001.tar.crc32c": true, "backup_manifest.zst": p.Major >= 13, "manifest.json.zst": true, "config.tar.zst": false,
		} {
			if got := s.Has("basebackups_005/" + name + "/" + object); got != want {
				t.Errorf("%s is there: %v, want %v", object, got, want)
			}
		}
		if p.Major < 13 {
			return
		}
		into := s.Fetch(t, name, "--tablespace-mapping", dir+"="+filepath.Join(pgtest.Dir(t), "side"))
		if out, err := pgtest.Command(t, pgtest.Verifier(t, p.Major), "-n", into).CombinedOutput(); err != nil {
			t.Errorf("pg_verifybackup: %v\n%s", err, out)
		}
		if _, err := os.Stat(filepath.Join(into, "postgresql.conf")); err != nil {
			t.Error(err)
		}
	})
}
