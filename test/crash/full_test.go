package crash_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// disk mounts a file system in memory, which goes away with the test.
func disk(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	dir := filepath.Join(pgtest.Dir(t), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", dir).CombinedOutput(); err != nil {
		if os.Getenv("REQUIRE_SERVICES") == "1" || os.Getenv("CI") == "true" {
			t.Fatalf("mount a tmpfs: %v: %s", err, out)
		}
		t.Skipf("mount a tmpfs: %v: %s", err, out)
	}
	t.Cleanup(func() {
		var out []byte
		var err error
		for range 100 { // what fetches WAL ahead takes a moment to see that nobody needs it any more
			if out, err = exec.Command("umount", dir).CombinedOutput(); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("unmount %s: %v: %s", dir, err, out)
	})
	pgtest.Give(t, dir)
	return dir
}

// fill takes all the room that is left on the disk but for some KiB, and returns how to give that back.
func fill(t *testing.T, disk string, free int64) (lift func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // its content is nothing to lose
	var size int64
	for err == nil {
		var n int
		n, err = f.Write(make([]byte, 64<<10))
		size += int64(n)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Truncate(size - free<<10); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	}
}

// noSpace is how the system says that a disk is full.
const noSpace = "no space left on device"

// On a full disk backup-push and wal-push fail and say why, nothing half is left, and with room again all goes on.
func TestArchiveFull(t *testing.T) {
	d := disk(t, "size=80m,mode=700")
	root := filepath.Join(d, "archive")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, root)
	s := site.In(t, pgtest.Require(t, 16), pgtest.Options{}, root, "WALG_FILE_PREFIX="+root)
	s.Exec(t, `create table keepsake as select g as id, md5(g::text) as what from generate_series(1, 20000) g`)
	first := s.Push(t)
	s.Switch(t)

	// wal-push first: with WAL that does not compress to the little room there is.
	lift := fill(t, d, 1000)
	s.Exec(t, `insert into keepsake select g, md5(random()::text) from generate_series(1, 100000) g`)
	segment := s.Value(t, `pg_walfile_name(pg_switch_wal())`)
	s.Refused(t, 1, []string{noSpace, segment}, "wal-push", filepath.Join(s.Data, "pg_wal", segment))
	if s.Has("wal_005/" + segment + ".zst") {
		t.Errorf("%s is in the archive", segment)
	}
	if _, err := os.Stat(filepath.Join(s.Data, "pg_wal", "archive_status", segment+".done")); err == nil {
		t.Errorf("PostgreSQL takes %s for archived", segment)
	}
	s.Refused(t, 1, []string{noSpace}, "backup-push", s.Data)
	s.NotInBackup(t)
	s.NoTrace(t, first)

	// Full to the last byte.
	lift()
	lift = fill(t, d, 0)
	r := s.Refused(t, 1, []string{noSpace}, "backup-push", s.Data)
	if strings.Contains(r.Stderr, "goroutine") {
		t.Error(r.Stderr)
	}
	if names := s.Backups(t); len(names) != 1 {
		t.Errorf("backups %v, want %s alone", names, first)
	}

	lift()
	s.Switch(t) // wakes the archiver
	s.Await(t, segment)
	for _, name := range s.Objects(t) {
		if strings.Contains(name, ".tmp.") {
			t.Errorf("%s is left", name)
		}
	}
	want := site.Rows(t, s.Cluster, "keepsake")
	second := s.Push(t)
	s.NoTrace(t, first, second)
	c := s.Restored(t, first, "--target", "latest") // through the WAL that did not fit at first
	if got := site.Rows(t, c, "keepsake"); got != want {
		t.Errorf("the table came back as %s, was %s", got, want)
	}
}

// A restore onto a disk that is too small, in bytes or in files, is refused before it begins; one whose disk fills up midway says so, does not start
// as a server, and goes on with --resume once there is room.
func TestRestoreOntoFullDisk(t *testing.T) {
	s := primary(t, pgtest.Options{})
	s.Push(t)
	s.Switch(t)
	want := site.Rows(t, s.Cluster, "keepsake")

	for options, word := range map[string]string{"size=10m,mode=700": "10 MiB free", "size=300m,mode=700,nr_inodes=400": "more files"} {
		small := filepath.Join(disk(t, options), "data")
		s.Refused(t, 1, []string{word, small}, "backup-fetch", small, "--target", "latest")
		if _, err := os.Stat(small); err == nil {
			t.Errorf("%s: the refused restore made its destination", options)
		}
	}

	// There is room enough, until something else takes it.
	d := disk(t, "size=300m,mode=700")
	dir := filepath.Join(d, "data")
	fetch := s.Command(t, "backup-fetch", dir, "--target", "latest")
	fetch.Env = append(fetch.Env, "WALG_NETWORK_RATE_LIMIT=1000000")
	var stderr bytes.Buffer
	fetch.Stderr = &stderr
	if err := fetch.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "some files are restored", func() bool {
		files, err := filepath.Glob(filepath.Join(dir, "base", "*", "*"))
		return err == nil && len(files) > 5
	})
	lift := fill(t, d, 0)
	_ = fetch.Wait() // how it ended is checked below
	r := site.Ended(fetch, "", stderr.String())
	r.Check(t, "backup-fetch", 1, noSpace, dir)
	if !strings.Contains(r.Stderr, "--resume") {
		t.Errorf("no word of --resume:\n%s", r.Stderr)
	}
	s.Refused(t, 1, nil, "backup-fetch", dir, "--target", "latest", "--resume") // still full
	lift()
	if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); err == nil {
		t.Error("there is a pg_control")
	}
	refusesToStart(t, s, dir)
	s.OK(t, "backup-fetch", dir, "--target", "latest", "--resume")
	c := s.Open(t, dir)
	site.AwaitRecovery(t, c)
	if got := site.Rows(t, c, "keepsake"); got != want {
		t.Errorf("the table came back as %s, was %s", got, want)
	}
	c.Server.Kill()
}
