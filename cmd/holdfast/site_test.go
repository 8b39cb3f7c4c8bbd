package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// The host of the database has the public key alone: it archives, takes backups and cannot read them. Where the identity is, the
// cluster comes back with all that was archived.
func TestHostWithThePublicKeyAlone(t *testing.T) {
	p := pgtest.Require(t, 17)
	root, safe := filepath.Join(pgtest.Dir(t), "archive"), pgtest.Dir(t)
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, root)
	identity := filepath.Join(safe, "identity")
	made := site.Run(t, pgtest.Command(t, pgtest.Build(t, "holdfast/cmd/holdfast"), "key", "generate", identity))
	if made.Status != 0 {
		t.Fatal(made.Stderr)
	}
	archive := "WALG_FILE_PREFIX=" + root
	s := site.In(t, p, pgtest.Options{}, root, archive, "HOLDFAST_AGE_RECIPIENTS="+strings.TrimSpace(made.Stdout))
	s.Exec(t, "create table kept as select generate_series(1, 1000) as id")
	name := s.Push(t)
	s.Exec(t, "insert into kept values (1001)")
	segment := s.Switch(t)
	path := filepath.Join(s.Data, "pg_wal", segment)
	if r := s.OK(t, "wal-push", path); !strings.Contains(r.Stderr, "already archived with equal content") {
		t.Errorf("the second push said\n%s", r.Stderr)
	}
	s.Refused(t, 1, []string{"read", "no identity is set"}, "backup-fetch", filepath.Join(safe, "not"), name)

	elsewhere := *s
	elsewhere.Env = []string{archive, "HOLDFAST_AGE_IDENTITIES_PATH=" + identity}
	c := elsewhere.Restored(t, "LATEST", "--target", "latest")
	if n := c.Value(t, "(select count(*) from kept)"); n != "1001" {
		t.Errorf("%s rows came back, want 1001", n)
	}
}

// A backup that is made is made, whoever listens; and an archive that cannot be written is named.
func TestWhatFailsAroundABackup(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 17), pgtest.Options{})
	run := func(stdout *os.File) site.Result {
		t.Helper()
		cmd := s.Command(t, "backup-push", "--json", s.Data)
		var stderr strings.Builder
		cmd.Stdout, cmd.Stderr = stdout, &stderr
		_ = cmd.Run() // how it ended is in the result
		return site.Ended(cmd, "", stderr.String())
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close() // nobody reads
	for what, stdout := range map[string]*os.File{"a full disk": full, "a pipe that nobody reads": w} {
		before := len(s.Backups(t))
		if r := run(stdout); r.Status != 0 || !strings.Contains(r.Stderr, "is made, and its report could not be printed") {
			t.Errorf("with %s for its report: status %d\n%s", what, r.Status, r.Stderr)
		}
		if after := len(s.Backups(t)); after != before+1 {
			t.Errorf("with %s for its report: %d backups, before there were %d", what, after, before)
		}
		s.Switch(t) // the next one gets another name
	}

	if err := os.Chmod(filepath.Join(s.Root, "wal_005"), 0o500); err != nil {
		t.Fatal(err)
	}
	history := filepath.Join(pgtest.Dir(t), "00000002.history")
	if err := os.WriteFile(history, []byte("1\t0/3000000\tno reason\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := s.Refused(t, 1, []string{"put wal_005/00000002.history", "permission denied"}, "wal-push", history); !strings.Contains(r.Stderr, "hint: the archive is the directory "+s.Root) {
		t.Errorf("no word of where the archive is:\n%s", r.Stderr)
	}
	if err := os.Chmod(filepath.Join(s.Root, "wal_005"), 0o700); err != nil {
		t.Fatal(err)
	}
}
