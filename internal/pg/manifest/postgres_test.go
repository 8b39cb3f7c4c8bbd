package manifest_test

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/pg/manifest"
)

// On a backup that pg_basebackup takes now: its manifest is rewritten to the byte, the checksums in it are those we compute,
// and pg_verifybackup takes a manifest of ours, but not one that is wrong about a file.
func TestVerifybackupAgrees(t *testing.T) {
	const bin = "/usr/lib/postgresql/15/bin"
	if _, err := os.Stat(bin + "/pg_verifybackup"); err != nil {
		if os.Getenv("REQUIRE_SERVICES") == "1" {
			t.Fatalf("REQUIRE_SERVICES=1: %v", err)
		}
		t.Skipf("no PostgreSQL 15: %v", err)
	}
	dir, err := os.MkdirTemp("", "manifest") // below t.TempDir the user postgres may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	account := ownAccount(t, dir)
	run := func(name string, args ...string) error {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.SysProcAttr, cmd.Dir = account, "/"
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, out)
		}
		return nil
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	pgdata, backup := filepath.Join(dir, "data"), filepath.Join(dir, "backup")
	must(run("initdb", "-D", pgdata, "-A", "trust", "--no-sync"))
	// Only a Unix socket in a directory of our own: no port that others could have.
	must(run("pg_ctl", "start", "-w", "-D", pgdata, "-l", filepath.Join(dir, "log"),
		"-o", "-c listen_addresses= -c unix_socket_directories="+dir))
	t.Cleanup(func() {
		if err := run("pg_ctl", "stop", "-m", "immediate", "-w", "-D", pgdata); err != nil {
			t.Error(err)
		}
	})
	must(os.WriteFile(filepath.Join(pgdata, "n\xff\"\\m"), []byte("content"), 0o644))
	must(run("pg_basebackup", "-h", dir, "-D", backup, "-c", "fast"))

	path := filepath.Join(backup, manifest.Name)
	theirs, err := os.ReadFile(path)
	must(err)
	c, err := read(bytes.NewReader(theirs))
	must(err)
	again, err := write(c)
	must(err)
	if d := cmp.Diff(string(theirs), string(again)); d != "" {
		t.Errorf("rewritten (-PostgreSQL +we):\n%s", d)
	}

	sums := map[string][]byte{}
	for _, f := range c.Files {
		sums[f.Path] = f.Checksum
	}
	ours := content{System: c.System, Ranges: c.Ranges}
	must(filepath.WalkDir(backup, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || p == path {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(backup, p)
		if err != nil || filepath.Dir(rel) == "pg_wal" { // not in a manifest
			return err
		}
		sum := manifest.ChecksumCRC32C(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		if !bytes.Equal(sum, sums[rel]) {
			t.Errorf("%q: PostgreSQL's checksum is %x, ours %x", rel, sums[rel], sum)
		}
		ours.Files = append(ours.Files,
			manifest.File{Path: rel, Size: st.Size(), Modified: st.ModTime(), Algorithm: manifest.CRC32C, Checksum: sum})
		return nil
	}))
	if len(ours.Files) != len(c.Files) {
		t.Errorf("PostgreSQL lists %d files, there are %d", len(c.Files), len(ours.Files))
	}
	put := func() {
		t.Helper()
		b, err := write(ours)
		must(err)
		must(os.WriteFile(path, b, 0o644))
	}
	put()
	must(run("pg_verifybackup", backup))
	ours.Files[0].Checksum[0] ^= 1
	put()
	if run("pg_verifybackup", backup) == nil {
		t.Error("pg_verifybackup found a wrong checksum right")
	}
}

// ownAccount returns what makes a command run as the user postgres where we are root, since PostgreSQL refuses root, and
// gives dir to that user.
func ownAccount(t *testing.T, dir string) *syscall.SysProcAttr {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}
