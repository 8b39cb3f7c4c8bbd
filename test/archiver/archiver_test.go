// Package archiver_test has servers archive and recover through holdfast-client and a daemon, and takes the daemon away from them.
package archiver_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/daemon"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// A keeper starts daemons for one data directory, one after the other.
type keeper struct {
	binary string
	socket string
	env    []string
	log    pgtest.Log
	cmd    *exec.Cmd
}

// newKeeper prepares daemons for the data directory data, with the settings in env.
func newKeeper(t *testing.T, socket, data string, env ...string) *keeper {
	t.Helper()
	k := &keeper{binary: pgtest.Build(t, "holdfast/cmd/holdfast"), socket: socket, env: append(slices.Clone(env), "PGDATA="+data)}
	t.Cleanup(func() { k.kill() })
	return k
}

// start starts a daemon and waits until it answers.
func (k *keeper) start(t *testing.T) {
	t.Helper()
	if err := k.launch(t); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the daemon answers:\n"+k.log.String(), func() bool { return daemon.Alive(t.Context(), k.socket) == nil })
}

// launch starts a daemon.
func (k *keeper) launch(t *testing.T) error {
	t.Helper()
	cmd := pgtest.Command(t, k.binary, "daemon", k.socket)
	cmd.Env = slices.Concat(cmd.Environ(), k.env)
	cmd.Stdout, cmd.Stderr = &k.log, &k.log
	if err := cmd.Start(); err != nil {
		return err
	}
	k.cmd = cmd
	return nil
}

// kill ends the daemon as a crash does.
func (k *keeper) kill() {
	if k.cmd != nil {
		k.cmd.Process.Kill()
		k.cmd.Wait()
		k.cmd = nil
	}
}

// stop ends the daemon in order.
func (k *keeper) stop(t *testing.T) {
	t.Helper()
	if err := k.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := k.cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v:\n%s", err, k.log.String())
	}
	k.cmd = nil
}

// client is what archive_command and restore_command start.
func client(t *testing.T) string {
	t.Helper()
	pgtest.Build(t, "holdfast/cmd/holdfast") // lies beside it
	return pgtest.Build(t, "holdfast/cmd/holdfast-client")
}

// archiving starts a server that archives through a socket, at which nobody listens yet.
func archiving(t *testing.T, p instance.Programs, env ...string) (s *site.Site, k *keeper) {
	t.Helper()
	socket := filepath.Join(pgtest.Dir(t), "sock")
	s = site.New(t, p, pgtest.Options{SegmentSize: 1 << 20, Env: env, Settings: map[string]string{
		"archive_command": client(t) + " " + socket + " wal-push %p", "autovacuum": "off", "max_wal_size": "1GB",
	}})
	s.Env = append(s.Env, env...)
	return s, newKeeper(t, socket, s.Data, s.Env...)
}

// write makes the server finish segments.
func write(t *testing.T, s *site.Site, rows int) {
	t.Helper()
	s.Exec(t, fmt.Sprintf(`insert into filled select g, repeat(md5(g::text), 20) from generate_series(1, %d) g`, rows))
}

// archived waits until all that the server has finished is in the archive, compares it with what the server still has, and returns its names.
func archived(t *testing.T, s *site.Site) (names []string) {
	t.Helper()
	last := s.Switch(t)
	pgtest.Eventually(t, "all is archived", func() bool {
		ready, err := filepath.Glob(filepath.Join(s.Data, "pg_wal/archive_status/*.ready"))
		return err == nil && len(ready) == 0
	})
	for _, o := range s.Objects(t) {
		name, ok := strings.CutSuffix(strings.TrimPrefix(o, "wal_005/"), ".zst")
		if !ok || !wal.IsSegment(name) {
			continue
		}
		names = append(names, name)
		r := s.Do(t, "st", "cat", o, "--decompress")
		if want, err := os.ReadFile(filepath.Join(s.Data, "pg_wal", name)); err == nil && r.Stdout != string(want) {
			t.Errorf("%s differs from what the server has", name)
		}
	}
	slices.Sort(names)
	_, first, err := wal.SegmentSize(1 << 20).ParseSegment(names[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		if want := wal.SegmentSize(1<<20).Name(1, first+wal.SegmentNo(i)); name != want {
			t.Fatalf("a hole: %s follows %s", name, want)
		}
	}
	if names[len(names)-1] != last {
		t.Errorf("the archive ends with %s, the server with %s", names[len(names)-1], last)
	}
	return names
}

// throughClient has the copy in dir fetch WAL through a socket.
func throughClient(t *testing.T, dir, socket string) {
	t.Helper()
	for _, name := range []string{"postgresql.auto.conf", "recovery.conf"} {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(b, []byte("restore_command")) {
			continue
		}
		text := string(b) + fmt.Sprintf("restore_command = '%s %s wal-fetch %%f %%p'\n", client(t), socket) // the last one counts
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("no restore_command is set")
}

// A server archives and a copy recovers through the daemon, which is killed again and again in the middle of both: nothing is missing.
func TestDaemonIsKilled(t *testing.T) {
	for _, major := range []int{11, pgtest.Newest} { // 10 has segments of 16 MiB only
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s, k := archiving(t, pgtest.Require(t, major))
			s.Exec(t, `create table filled (id int, what text)`)
			s.Switch(t) // without a daemon
			k.start(t)
			s.Push(t)
			pgtest.Eventually(t, "the daemon has archived something", func() bool { return strings.Contains(k.log.String(), "FILE PATH:") })
			for range 6 {
				write(t, s, 6000)
				k.kill()
				write(t, s, 2000)
				if err := k.launch(t); err != nil {
					t.Fatal(err)
				}
			}
			archived(t, s)
			want := site.Rows(t, s.Cluster, "filled")

			dir := s.Fetch(t, "LATEST", "--target", "latest")
			copied := newKeeper(t, filepath.Join(pgtest.Dir(t), "sock"), dir, s.Env...)
			throughClient(t, dir, copied.socket)
			pgtest.Give(t, dir)
			copied.start(t)
			over := make(chan struct{})
			var killer sync.WaitGroup
			killer.Go(func() {
				for {
					select {
					case <-over:
						return
					case <-time.After(30 * time.Millisecond):
					}
					copied.kill()
					if err := copied.launch(t); err != nil {
						t.Error(err)
						return
					}
				}
			})
			peace := sync.OnceFunc(func() { close(over); killer.Wait() })
			defer peace()
			c := s.Open(t, dir)
			site.AwaitRecovery(t, c)
			peace()
			if got := site.Rows(t, c, "filled"); got != want {
				t.Errorf("restored: %s, want %s", got, want)
			}
		})
	}
}

// A recovery through a daemon that lives fetches ahead in it, and leaves nothing behind.
func TestRecoveryThroughDaemon(t *testing.T) {
	s, k := archiving(t, pgtest.Require(t, 17))
	k.start(t)
	s.Exec(t, `create table filled (id int, what text)`)
	s.Push(t)
	write(t, s, 30000)
	names := archived(t, s)
	want := site.Rows(t, s.Cluster, "filled")

	dir := s.Fetch(t, "LATEST", "--target", "latest")
	copied := newKeeper(t, filepath.Join(pgtest.Dir(t), "sock"), dir, append(slices.Clone(s.Env), "WALG_LOG_LEVEL=DEVEL")...)
	throughClient(t, dir, copied.socket)
	pgtest.Give(t, dir)
	copied.start(t)
	c := s.Open(t, dir)
	site.AwaitRecovery(t, c)
	if got := site.Rows(t, c, "filled"); got != want {
		t.Errorf("restored: %s, want %s", got, want)
	}
	pgtest.Eventually(t, fmt.Sprintf("some of %d segments were fetched ahead", len(names)), func() bool {
		return strings.Contains(copied.log.String(), "fetched ahead: true")
	})
	pgtest.Eventually(t, "nothing stays of what was fetched ahead", func() bool {
		_, err := os.Stat(filepath.Join(dir, "pg_wal/.wal-g"))
		return os.IsNotExist(err)
	})
	copied.stop(t)
	k.stop(t)
	if _, err := os.Lstat(k.socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
}

// While the store is away PostgreSQL's log says why, and once it is back all is archived.
func TestStoreIsDown(t *testing.T) {
	s, k := archiving(t, pgtest.Require(t, 15))
	k.start(t)
	s.Exec(t, `create table filled (id int, what text)`)
	s.Switch(t)
	if err := os.Rename(s.Root, s.Root+".away"); err != nil {
		t.Fatal(err)
	}
	write(t, s, 10000)
	said := func() bool {
		b, err := os.ReadFile(s.Server.LogFile())
		return err == nil && bytes.Contains(b, []byte("holdfast-client: directory "+s.Root+" of the archive does not exist"))
	}
	pgtest.Eventually(t, "the server's log says what is wrong", said)
	write(t, s, 10000)
	if err := os.Rename(s.Root+".away", s.Root); err != nil {
		t.Fatal(err)
	}
	archived(t, s)
	pgtest.Eventually(t, "the log says that it is over", func() bool { return strings.Contains(k.log.String(), "WAL is being archived again") })
}

// Nobody but the daemon's account, and root, is listened to, even where the socket lets them connect.
func TestOtherAccountsAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("asks the daemon from other accounts, which only root can start: run it as root")
	}
	s, k := archiving(t, pgtest.Require(t, 15))
	k.start(t)
	for _, path := range []string{filepath.Dir(k.socket), k.socket} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	check := func(uid uint32) (int, string) {
		cmd := exec.Command(client(t), k.socket, "check")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, _ := cmd.CombinedOutput() // the status tells
		return cmd.ProcessState.ExitCode(), string(out)
	}
	if status, out := check(0); status != 0 {
		t.Errorf("root: exit status %d, %s", status, out)
	}
	if status, out := check(65534); status != 1 {
		t.Errorf("nobody: exit status %d, %s", status, out)
	}
	pgtest.Eventually(t, "the log says whom it refused", func() bool { return strings.Contains(k.log.String(), "refused a client of another account uid=65534") })
	s.Switch(t) // PostgreSQL's is
}

// A daemon that does not move is passed by.
func TestStoppedDaemonIsPassedBy(t *testing.T) {
	s, k := archiving(t, pgtest.Require(t, 15))
	k.start(t)
	name := s.Switch(t)
	if err := k.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	cmd := s.Command(t, "x")
	cmd.Path, cmd.Args = client(t), []string{"holdfast-client", "-connection-timeout", "100ms", k.socket, "wal-push", "pg_wal/" + name}
	cmd.Dir = s.Data
	r := site.Run(t, cmd)
	if r.Status != 0 || !strings.Contains(r.Stderr, "no sign of life") || !strings.Contains(r.Stderr, "already archived with equal content") {
		t.Errorf("exit status %d:\n%s", r.Status, r.Stderr)
	}
	if err := k.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.Switch(t)
}

// Two clusters whose commands name one socket do not get into each other's way: the daemon is for one of them.
func TestSocketOfAnotherCluster(t *testing.T) {
	s, k := archiving(t, pgtest.Require(t, 15))
	k.start(t)
	name := s.Switch(t)
	other := pgtest.New(t, s.Programs, pgtest.Options{SegmentSize: 1 << 20})
	other.Exec(t, `select pg_switch_wal()`)
	for _, arg := range []string{"pg_wal/" + name, name} {
		cmd := s.Command(t, "x")
		cmd.Path, cmd.Args = client(t), []string{"holdfast-client", k.socket, "wal-push", arg}
		cmd.Dir = other.Data
		r := site.Run(t, cmd)
		// The program itself says whose archive it is.
		if r.Status != 1 || !strings.Contains(r.Stderr, "for which this daemon is") || !strings.Contains(r.Stderr, "belongs to") && !strings.Contains(r.Stderr, "cluster") {
			t.Errorf("%s: exit status %d:\n%s", arg, r.Status, r.Stderr)
		}
	}
}

// Settings are read anew with SIGHUP, and wrong ones are not taken. systemd is told all along.
func TestReloadAndNotify(t *testing.T) {
	p := pgtest.Require(t, 15)
	dir := pgtest.Dir(t)
	file := filepath.Join(dir, "holdfast.yaml")
	roots := map[string]string{}
	for _, name := range []string{"one", "two"} {
		roots[name] = filepath.Join(dir, name)
		if err := os.Mkdir(roots[name], 0o700); err != nil {
			t.Fatal(err)
		}
	}
	settings := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, dir)
	}
	settings("WALG_FILE_PREFIX: " + roots["one"] + "\n")
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	pgtest.Give(t, dir)
	next := func(want string) {
		t.Helper()
		told.SetReadDeadline(time.Now().Add(time.Minute))
		b := make([]byte, 4096)
		for {
			n, err := told.Read(b)
			if err != nil {
				t.Fatalf("systemd is not told %s: %v", want, err)
			}
			if got := string(b[:n]); strings.HasPrefix(got, want) {
				return
			} else if !strings.HasPrefix(got, "WATCHDOG=1") {
				t.Fatalf("systemd is told %q, want %q", got, want)
			}
		}
	}
	socket := filepath.Join(dir, "sock")
	env := []string{"WALG_CONFIG_PATH=" + file}
	s := site.In(t, p, pgtest.Options{SegmentSize: 1 << 20, Settings: map[string]string{"archive_command": client(t) + " " + socket + " wal-push %p"}}, roots["one"], env...)
	k := newKeeper(t, socket, s.Data, append(env, "NOTIFY_SOCKET="+told.LocalAddr().String(), "WATCHDOG_USEC=60000")...)
	if err := k.launch(t); err != nil {
		t.Fatal(err)
	}
	next("READY=1")
	next("WATCHDOG=1")
	s.Switch(t)

	settings("WALG_FILE_PREFIX: not absolute\n")
	k.cmd.Process.Signal(syscall.SIGHUP)
	next("RELOADING=1")
	next("READY=1")
	pgtest.Eventually(t, "the log says what is wrong", func() bool {
		log := k.log.String()
		return strings.Contains(log, "the new settings are not taken") && strings.Contains(log, "WALG_FILE_PREFIX")
	})
	s.Switch(t) // into the same archive

	settings("WALG_FILE_PREFIX: " + roots["two"] + "\n")
	k.cmd.Process.Signal(syscall.SIGHUP)
	next("RELOADING=1")
	next("READY=1")
	s.Root = roots["two"]
	s.Switch(t)

	k.cmd.Process.Signal(syscall.SIGTERM)
	next("STOPPING=1")
	if err := k.cmd.Wait(); err != nil {
		t.Errorf("ended with %v:\n%s", err, k.log.String())
	}
	k.cmd = nil
}

// What deploy/systemd has is accepted by systemd.
func TestUnit(t *testing.T) {
	analyze := pgtest.Program(t, "systemd-analyze")
	b, err := os.ReadFile("../../deploy/systemd/holdfast-daemon.service")
	if err != nil {
		t.Fatal(err)
	}
	const program = "/usr/local/bin/holdfast"
	if !bytes.Contains(b, []byte("ExecStart="+program+" daemon ")) {
		t.Error("the unit does not start the daemon")
	}
	unit := filepath.Join(t.TempDir(), "holdfast-daemon.service")
	here := pgtest.Build(t, "holdfast/cmd/holdfast") // has to be there
	if err := os.WriteFile(unit, bytes.ReplaceAll(b, []byte(program), []byte(here)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v:\n%s", err, out)
	}
}
