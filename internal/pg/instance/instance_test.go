package instance_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
)

// TestMain also is the process that TestServerDiesWithItsParent kills.
func TestMain(m *testing.M) {
	if data := os.Getenv("HELPER_DATA"); data != "" {
		p, err := instance.Open(context.Background(), os.Getenv("HELPER_PROGRAMS"))
		if err != nil {
			panic(err)
		}
		s, err := instance.Start(context.Background(), instance.Options{Programs: p, DataDir: data, SocketDir: filepath.Dir(data)})
		if err != nil {
			panic(err)
		}
		fmt.Println(s.Pid())
		select {}
	}
	os.Exit(m.Run())
}

func TestRunsEveryMajor(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		opts := pgtest.Options{Checksums: p.Major%2 == 0}
		if p.Major >= 11 {
			opts.SegmentSize = 1 << 20
		}
		begin := time.Now()
		c := pgtest.New(t, p, opts)
		t.Logf("PostgreSQL %s created and started in %.1f s", p.Version, time.Since(begin).Seconds())
		if got := c.Value(t, `current_setting('server_version_num')::int / 10000`); got != strconv.Itoa(p.Major) {
			t.Errorf("major version %s, want %d", got, p.Major)
		}
		if got, want := c.Value(t, `current_setting('data_checksums') = 'on'`), strconv.FormatBool(opts.Checksums); got != want {
			t.Errorf("checksums %s, want %s", got, want)
		}
		want := max(uint64(opts.SegmentSize), 1<<20)
		if p.Major < 11 {
			want = 16 << 20
		}
		if got := c.Value(t, `select bytes_per_wal_segment from pg_control_init()`); got != strconv.FormatUint(want, 10) {
			t.Errorf("segments of %s bytes, want %d", got, want)
		}
		c.Exec(t, `create table t as select 1`)
		c.Stop(t)
		if err := c.Server.Stop(t.Context(), instance.Fast); err != nil {
			t.Errorf("stopped again: %v", err)
		}
		c.Start(t)
		if got := c.Value(t, `select count(*) from t`); got != "1" {
			t.Errorf("%s rows after a restart, want 1", got)
		}
	})
}

// When the server cannot start, the error says what the server said, and nothing is left.
func TestFailedStartSaysWhy(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{})
		c.Stop(t)
		for settings, want := range map[[2]string]string{
			{"shared_buffers", "lots"}:                               "shared_buffers",
			{"shared_preload_libraries", "no_such_library"}:          "no_such_library",
			{"unix_socket_directories", "/nonexistent/for/a/server"}: "/nonexistent/for/a/server",
		} {
			_, err := instance.Start(t.Context(), instance.Options{
				Programs: p, DataDir: c.Data, SocketDir: c.Dir, Settings: map[string]string{settings[0]: settings[1]},
			})
			if err == nil || !strings.Contains(err.Error(), "FATAL") || !strings.Contains(err.Error(), want) {
				t.Errorf("%s=%s: error %v", settings[0], settings[1], err)
			}
			if _, err := os.Stat(filepath.Join(c.Data, "postmaster.pid")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s=%s: postmaster.pid: %v", settings[0], settings[1], err)
			}
		}
	})
}

// A server that never gets ready is given up when the context ends.
func TestStartGivesUp(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{})
	c.Stop(t)
	if err := os.WriteFile(filepath.Join(c.Data, "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := instance.Start(ctx, instance.Options{
		Programs: c.Programs, DataDir: c.Data, SocketDir: c.Dir,
		Settings: map[string]string{"hot_standby": "off", "restore_command": "false"},
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that time is up", err)
	}
	if pid := pidOf(t, filepath.Join(c.Data, "postmaster.pid")); pid != 0 && syscall.Kill(pid, 0) == nil {
		t.Errorf("process %d was left running", pid)
	}
}

func TestRefusals(t *testing.T) {
	p := pgtest.Require(t, 15)
	dir := pgtest.Dir(t)
	long := filepath.Join(dir, strings.Repeat("d", 100))
	if _, err := instance.Start(t.Context(), instance.Options{Programs: p, DataDir: dir, SocketDir: long}); err == nil ||
		!strings.Contains(err.Error(), "choose a shorter directory") {
		t.Errorf("a socket's path of more than 107 bytes: %v", err)
	}
	if err := instance.Init(t.Context(), p, filepath.Join(dir, "x"), instance.InitOptions{SegmentSize: 3 << 20}); err == nil {
		t.Error("segments of 3 MiB: no error")
	}
	if err := instance.Init(t.Context(), instance.Programs{Dir: p.Dir, Major: 10}, filepath.Join(dir, "x"),
		instance.InitOptions{SegmentSize: wal.MinSegmentSize}); err == nil {
		t.Error("PostgreSQL 10 with segments of 1 MiB: no error")
	}
	if _, err := instance.Find(t.Context(), 9); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("PostgreSQL 9: error %v, want fs.ErrNotExist", err)
	}
	if _, err := instance.Open(t.Context(), dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no postgres in the directory: error %v, want fs.ErrNotExist", err)
	}
	if os.Geteuid() != 0 {
		return
	}
	if _, err := instance.Start(t.Context(), instance.Options{Programs: p, DataDir: t.TempDir(), SocketDir: dir}); err == nil ||
		!strings.Contains(err.Error(), "run as root") {
		t.Errorf("a data directory that belongs to root: %v", err)
	}
}

// Kill leaves no process, not even of an archive command, and no shared memory, and the next start recovers.
func TestKillLeavesNothing(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		dir := pgtest.Dir(t)
		pidFile := filepath.Join(dir, "pid")
		c := pgtest.New(t, p, pgtest.Options{Settings: map[string]string{
			"archive_mode": "on", "archive_command": "echo $$ > " + pidFile + " && sleep 1000",
		}})
		c.Exec(t, `create table t as select 1`, `select pg_switch_wal()`)
		pgtest.Eventually(t, "an archive command runs", func() bool { return pidOf(t, pidFile) != 0 })
		var pids []int
		for _, s := range strings.Fields(c.Value(t, `select string_agg(pid::text, ' ') from pg_stat_activity where pid <> pg_backend_pid()`)) {
			pid, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
		pids = append(pids, c.Server.Pid(), pidOf(t, pidFile))
		id := fmt.Sprintf("\n %d ", segmentOf(t, c.Data))
		if !strings.Contains(segments(t), id) {
			t.Errorf("the server has no segment%s:\n%s", id, segments(t))
		}
		c.Server.Kill()
		if strings.Contains(segments(t), id) {
			t.Errorf("the segment%s is left", id)
		}
		for _, pid := range pids {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(b), ") Z ") {
				t.Errorf("process %d is left: %s", pid, b)
			}
		}
		c.Server.Kill() // does nothing
		c.Start(t)
		if got := c.Value(t, `select count(*) from t`); got != "1" {
			t.Errorf("%s rows after the crash, want 1", got)
		}
	})
}

// segmentOf reads the id of a server's shared memory.
func segmentOf(t *testing.T, data string) (id int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var key int
	if _, err := fmt.Sscan(strings.Split(string(b), "\n")[6], &key, &id); err != nil {
		t.Fatal(err)
	}
	return id
}

// segments lists the System V segments there are, as " id " at the beginning of lines.
func segments(t *testing.T) (list string) {
	t.Helper()
	b, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		list += "\n " + strings.Fields(line)[1] + " "
	}
	return list
}

// pidOf reads the process id that a file begins with, 0 when there is none yet.
func pidOf(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	first, _, whole := strings.Cut(string(b), "\n")
	if !whole {
		return 0
	}
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestPromote(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		primary := pgtest.New(t, p, pgtest.Options{})
		primary.Exec(t, `create table t as select 1`)
		standby := primary.Standby(t, pgtest.Options{})
		primary.CatchUp(t, standby)
		if got := standby.Value(t, `pg_is_in_recovery()`); got != "true" {
			t.Fatalf("in recovery: %s", got)
		}
		if err := standby.Server.Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		standby.Exec(t, `insert into t values (2)`)
		if got := standby.Value(t, `select count(*) from t`); got != "2" {
			t.Errorf("%s rows, want 2", got)
		}
	})
}

// A server does not outlive the process that started it, however that ends.
func TestServerDiesWithItsParent(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{})
	c.Stop(t)
	helper := exec.Command(os.Args[0])
	helper.Env = append(os.Environ(), "HELPER_DATA="+c.Data, "HELPER_PROGRAMS="+c.Programs.Dir)
	helper.Stderr = os.Stderr
	out, err := helper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := helper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = helper.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
	if err := helper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = helper.Wait() // "signal: killed"
	pgtest.Eventually(t, "the server is gone", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}
