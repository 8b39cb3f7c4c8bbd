package walpush_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/file"
	"holdfast/test/pgtest"
)

// archiveAt opens the archive in a directory.
func archiveAt(t *testing.T, dir string) *archive.Archive {
	t.Helper()
	s, err := file.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return archive.New(s, archive.Options{})
}

// content reads a WAL file from an archive.
func content(t *testing.T, a *archive.Archive, name string) []byte {
	t.Helper()
	r, err := a.OpenWAL(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

// Killed at any moment, wal-push leaves an archive in which every object and every marker is of a whole file, and the
// next call ends what it began.
func TestKilledPush(t *testing.T) {
	program := pgtest.Build(t, "holdfast/cmd/holdfast")
	d, dir := newWAL(t), t.TempDir()
	names := d.segments(12)
	push := func(name string) *exec.Cmd {
		cmd := exec.Command(program, "wal-push", d.path(name))
		cmd.Env = append(os.Environ(), "WALG_FILE_PREFIX="+dir)
		return cmd
	}
	a := archiveAt(t, dir)
	want := map[string][]byte{}
	for _, name := range names {
		want[name] = segment(name, cluster, 1)
	}
	killed := 0
	for i := range 20 {
		for _, name := range names { // begin anew, with the archive as it is every other time
			os.Remove(d.path("holdfast/pushed/" + name))
		}
		if i%2 == 0 {
			if err := os.RemoveAll(filepath.Join(dir, "wal_005")); err != nil {
				t.Fatal(err)
			}
		}
		cmd := push(names[0])
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) // whatever it is doing then
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		if cmd.Wait() == nil {
			if got := content(t, a, names[0]); !bytes.Equal(got, want[names[0]]) {
				t.Fatal("exit status 0, and the file is not whole in the archive")
			}
		} else {
			killed++
		}
		marked := map[string]bool{}
		for _, name := range d.marked() {
			marked[name] = true
		}
		for _, name := range names {
			_, err := a.OpenWAL(t.Context(), name)
			switch {
			case err == nil:
				if got := content(t, a, name); !bytes.Equal(got, want[name]) {
					t.Errorf("run %d: half of %s is in the archive", i, name)
				}
			case marked[name]:
				t.Errorf("run %d: %s has a marker, and is not in the archive: %v", i, name, err)
			}
		}
		for _, name := range names {
			if out, err := push(name).CombinedOutput(); err != nil {
				t.Fatalf("run %d, afterwards: %s: %v\n%s", i, name, err, out)
			}
			if got := content(t, a, name); !bytes.Equal(got, want[name]) {
				t.Fatalf("run %d: %s is not whole", i, name)
			}
		}
	}
	t.Logf("%d of 20 runs were killed before their end", killed)
}

// SIGTERM, as from a server that shuts down, leaves nothing half done behind.
func TestTerminatedPush(t *testing.T) {
	program := pgtest.Build(t, "holdfast/cmd/holdfast")
	d, dir := newWAL(t), t.TempDir()
	names := d.segments(20)
	for range 10 {
		cmd := exec.Command(program, "wal-push", d.path(names[0]))
		cmd.Env = append(os.Environ(), "WALG_FILE_PREFIX="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) // whatever it is doing then
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		exit := cmd.Wait()
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && strings.Contains(e.Name(), ".tmp.") {
				// Before the program could see the signal it dies of it, and may leave one.
				if state := cmd.ProcessState.Sys().(syscall.WaitStatus); !state.Signaled() {
					t.Errorf("%s is left (%v)", path, exit)
				}
				return os.Remove(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A server under load archives with us: every segment it finished comes back as it was.
func TestServerArchives(t *testing.T) {
	p := pgtest.Require(t, 15)
	program := pgtest.Build(t, "holdfast/cmd/holdfast")
	for _, c := range []struct {
		what, extra string
		size        wal.SegmentSize
		logged      string
	}{
		{"look-ahead", "WALG_LOG_LEVEL=DEVEL", 1 << 20, "stored ahead: "},
		{"one by one", "WALG_UPLOAD_CONCURRENCY=1", 16 << 20, "FILE PATH: "},
		{"ready files renamed", "WALG_LOG_LEVEL=DEVEL PG_READY_RENAME=true", 1 << 20, "ahead of being asked"},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := pgtest.Dir(t)
			gate := filepath.Join(pgtest.Dir(t), "open") // holds the first file back, so that others gather behind it
			command := fmt.Sprintf("until test -e %s; do sleep 0.02; done; %s WALG_FILE_PREFIX=%s %s wal-push %%p", gate, c.extra, dir, program)
			pg := pgtest.New(t, p, pgtest.Options{SegmentSize: c.size, Settings: map[string]string{
				"archive_mode": "on", "archive_command": command, "wal_keep_size": "512MB"}})
			load := pg.StartLoad(t, 4)
			for range 5 {
				time.Sleep(200 * time.Millisecond) // gives the load time; how much comes together does not matter
				pg.Exec(t, "select pg_switch_wal()", "checkpoint")
			}
			if _, err := load.Stop(); err != nil {
				t.Fatal(err)
			}
			pg.Exec(t, "select pg_switch_wal()")
			if err := os.WriteFile(gate, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			pgtest.Eventually(t, "all is archived", func() bool {
				waiting, err := filepath.Glob(filepath.Join(pg.Data, "pg_wal/archive_status/*.ready"))
				return err == nil && len(waiting) == 0
			})
			if failed := pg.Value(t, "select failed_count from pg_stat_archiver"); failed != "0" {
				t.Errorf("archive_command failed %s times", failed)
			}
			a := archiveAt(t, dir)
			done, err := filepath.Glob(filepath.Join(pg.Data, "pg_wal/archive_status/*.done"))
			if err != nil || len(done) < 5 {
				t.Fatalf("%d files were archived, %v", len(done), err)
			}
			for _, path := range done {
				name := strings.TrimSuffix(filepath.Base(path), ".done")
				want, err := os.ReadFile(filepath.Join(pg.Data, "pg_wal", name))
				if err != nil {
					t.Fatal(err)
				}
				if got := content(t, a, name); !bytes.Equal(got, want) {
					t.Errorf("%s came back otherwise", name)
				}
			}
			pg.Stop(t)
			left, err := os.ReadDir(filepath.Join(pg.Data, "pg_wal/holdfast/pushed"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			log, err := os.ReadFile(pg.Server.LogFile())
			if err != nil || !bytes.Contains(log, []byte(c.logged)) {
				t.Errorf("the log does not say %q (%v)", c.logged, err)
			}
			t.Logf("%d files, %d markers left", len(done), len(left))
		})
	}
}
