package wal_test

import (
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
)

// The first segment that initdb makes, of the smallest and of larger segments, says which cluster it belongs to and what it is.
func TestReadHeaderOfInitdb(t *testing.T) {
	const initdb = "/usr/lib/postgresql/15/bin/initdb"
	if _, err := os.Stat(initdb); err != nil {
		if os.Getenv("REQUIRE_SERVICES") == "1" {
			t.Fatalf("REQUIRE_SERVICES=1: %v", err)
		}
		t.Skipf("no PostgreSQL 15: %v", err)
	}
	for _, size := range []wal.SegmentSize{1 << 20, 64 << 20} {
		dir, err := os.MkdirTemp("", "wal") // below t.TempDir the user postgres may not enter
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		pgdata := filepath.Join(dir, "data")
		cmd := exec.Command(initdb, "-D", pgdata, "-A", "trust", "--no-sync", "--wal-segsize", strconv.Itoa(int(size>>20)))
		cmd.Dir = "/"
		if os.Geteuid() == 0 { // PostgreSQL refuses root
			u, err := user.Lookup("postgres")
			if err != nil {
				t.Fatal(err)
			}
			uid, _ := strconv.Atoi(u.Uid)
			gid, _ := strconv.Atoi(u.Gid)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
			if err := os.Chown(dir, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("initdb: %v\n%s", err, out)
		}
		cluster, _, err := control.Read(filepath.Join(pgdata, control.Name))
		if err != nil {
			t.Fatal(err)
		}
		n := size.Segment(cluster.CheckpointRedo)
		f, err := os.Open(filepath.Join(pgdata, "pg_wal", size.Name(1, n)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, wal.HeaderLen)
		if _, err := io.ReadFull(f, b); err != nil {
			t.Fatal(err)
		}
		got, err := wal.ReadHeader(b)
		want := wal.Header{Magic: 0xD110, Timeline: 1, Address: size.Start(n), SystemIdentifier: cluster.SystemIdentifier, SegmentSize: size}
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}
