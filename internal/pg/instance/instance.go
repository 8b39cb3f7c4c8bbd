// Package instance runs a private PostgreSQL on a given data directory: it finds the server programs, creates clusters, and starts and
// stops one server as a child of this process.
//
// The server is started directly, not through pg_ctl, in a process group of its own, so that an interrupt typed at the terminal reaches only us
// and what we stop is exactly what we started. On Linux it does not outlive us unless it is detached: when this process dies the kernel tells the server to
// shut down at once (as Immediate does). Its state is read from postmaster.pid and pg_control, as pg_ctl does (src/bin/pg_ctl/pg_ctl.c), so
// no role or password is needed.
package instance

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options says how to run a server.
type Options struct {
	Programs  Programs
	DataDir   string
	SocketDir string            // an existing directory for the socket, writable by the account; its path must be short, see Start
	Port      int               // names the socket, and the TCP port if Settings has listen_addresses; 0 means 5432
	Settings  map[string]string // stronger than the configuration files and ALTER SYSTEM
	LogFile   string            // the server's output is appended here; "" means SocketDir/postgres.log
	User      string            // account to run as when we are root; "" means the owner of DataDir
	Env       []string          // NAME=value for the server and its archive and restore commands, beside this process's own
	Without   []string          // names of variables of this process that the server does not get
	Detached  bool              // the server outlives us
}

// Instance is a running server. Stop or Kill it.
type Instance struct {
	opts Options
	id   *identity
	cmd  *exec.Cmd
	done chan struct{} // closed when the server has exited
	exit error         // why; read after done
}

// maxSocketPath is the longest path of a Unix socket: sockaddr_un has 108 bytes with the final NUL.
const maxSocketPath = 107

// pollInterval is how often a wait looks at the server's files.
const pollInterval = 5 * time.Millisecond

// Start starts a server and waits until it accepts connections, or read-only ones during recovery (hot_standby=on); with
// hot_standby=off that is when recovery has ended. It listens on a Unix socket only, unless Settings say otherwise. When
// the server exits or ctx ends first, nothing is left running, and the error has the end of the server's log.
func Start(ctx context.Context, opts Options) (*Instance, error) {
	opts.Port = cmp.Or(opts.Port, 5432)
	opts.LogFile = cmp.Or(opts.LogFile, filepath.Join(opts.SocketDir, "postgres.log"))
	i := &Instance{opts: opts, done: make(chan struct{})}
	socket := filepath.Join(opts.SocketDir, ".s.PGSQL."+strconv.Itoa(opts.Port))
	if len(socket) > maxSocketPath {
		return nil, fmt.Errorf("start PostgreSQL on %s: the socket's path %s has %d bytes, %d are possible: choose a shorter directory",
			opts.DataDir, socket, len(socket), maxSocketPath)
	}
	var err error
	if i.id, err = runAs(opts.User, opts.DataDir); err != nil {
		return nil, fmt.Errorf("start PostgreSQL on %s: %w", opts.DataDir, err)
	}
	log, err := os.OpenFile(opts.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL on %s: %w", opts.DataDir, err)
	}
	defer log.Close() // the server has its own descriptor
	if err := i.id.give(log); err != nil {
		return nil, fmt.Errorf("start PostgreSQL on %s: %w", opts.DataDir, err)
	}
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL on %s: %w", opts.DataDir, err)
	}

	i.cmd = exec.Command(opts.Programs.path("postgres"), i.args()...)
	i.cmd.Dir = "/"
	i.cmd.Env = opts.environ()
	i.cmd.Stdout, i.cmd.Stderr = log, log
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !opts.Detached {
		i.cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	}
	i.id.apply(i.cmd)
	if err := i.launch(); err != nil {
		return nil, fmt.Errorf("start PostgreSQL %d on %s: %w", opts.Programs.Major, opts.DataDir, err)
	}
	if err := i.awaitState(ctx, i.accepts); err != nil {
		i.Kill()
		return nil, fmt.Errorf("start PostgreSQL %d on %s: %w%s", opts.Programs.Major, opts.DataDir, err, tail(opts.LogFile, begin))
	}
	return i, nil
}

// Configured returns what the setting called name is where opts would start a server: by its configuration files, ALTER SYSTEM and opts.Settings. An error is that
// PostgreSQL cannot make sense of these, or does not know the setting.
func Configured(ctx context.Context, opts Options, name string) (string, error) {
	opts.Port = cmp.Or(opts.Port, 5432)
	id, err := runAs(opts.User, opts.DataDir)
	if err != nil {
		return "", fmt.Errorf("ask for %s on %s: %w", name, opts.DataDir, err)
	}
	i := &Instance{opts: opts}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, opts.Programs.path("postgres"), append([]string{"-C", name}, i.args()...)...)
	cmd.Dir = "/"
	cmd.Env = opts.environ()
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	id.apply(cmd)
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ask for %s on %s: %w: %s", name, opts.DataDir, errors.Join(ctx.Err(), err), bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// environ returns the server's environment.
func (o *Options) environ() []string { return Leave(append(os.Environ(), o.Env...), o.Without) }

// Leave returns environ without the variables of these names. It changes environ.
func Leave(environ, names []string) []string {
	return slices.DeleteFunc(environ, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(names, name)
	})
}

// args returns the server's command line. Logging goes to our file whatever the configuration says, or a failed start could not be explained.
func (i *Instance) args() []string {
	settings := map[string]string{
		"listen_addresses":        "",
		"logging_collector":       "off",
		"log_destination":         "stderr",
		"unix_socket_directories": i.opts.SocketDir,
		"port":                    strconv.Itoa(i.opts.Port),
	}
	maps.Copy(settings, i.opts.Settings)
	args := []string{"-D", i.opts.DataDir}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// launch starts the server from a thread that lives as long as the server does: the signal at our death comes when the starting
// thread dies (PR_SET_PDEATHSIG in prctl(2)), and Go may end an unlocked thread at any time.
func (i *Instance) launch() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := i.cmd.Start()
		started <- err
		if err == nil {
			i.exit = i.cmd.Wait()
			close(i.done)
		}
	}()
	return <-started
}

// awaitState polls until reached, the server has exited, or ctx has ended.
func (i *Instance) awaitState(ctx context.Context, reached func() bool) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !reached() {
		select {
		case <-i.done:
			return fmt.Errorf("the server exited: %v", i.exitReason())
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// accepts reports whether postmaster.pid is the server's and says "ready": PM_STATUS_READY in src/include/utils/pidfile.h, which the server writes
// when it lets clients in, on a hot standby too.
func (i *Instance) accepts() bool {
	b, err := os.ReadFile(filepath.Join(i.opts.DataDir, "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(b), "\n")
	return len(lines) >= 8 && lines[0] == strconv.Itoa(i.cmd.Process.Pid) && strings.TrimSpace(lines[7]) == "ready"
}

// Where pg_control has the state of the cluster, behind its identifier and two version numbers, and the state of a cluster that takes
// writes: DB_IN_PRODUCTION in src/include/catalog/pg_control.h, the same in 10 to 18.
const (
	stateOffset  = 16
	inProduction = 6
)

// takesWrites reports whether the server accepts clients and its recovery has ended.
func (i *Instance) takesWrites() bool {
	f, err := os.Open(filepath.Join(i.opts.DataDir, "global", "pg_control"))
	if err != nil {
		return false
	}
	defer f.Close()
	var state [4]byte
	_, err = f.ReadAt(state[:], stateOffset)
	return err == nil && binary.NativeEndian.Uint32(state[:]) == inProduction && i.accepts()
}

// Host returns the directory of the server's socket, which clients take as host.
func (i *Instance) Host() string { return i.opts.SocketDir }

// Port returns the server's port.
func (i *Instance) Port() int { return i.opts.Port }

// LogFile returns where the server's output goes.
func (i *Instance) LogFile() string { return i.opts.LogFile }

// Pid returns the process id of the server's first process.
func (i *Instance) Pid() int { return i.cmd.Process.Pid }

// ConnString returns how libpq and pgx find the server.
func (i *Instance) ConnString(user, database string) string {
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	return fmt.Sprintf("host='%s' port=%d user='%s' dbname='%s' sslmode=disable",
		quote.Replace(i.opts.SocketDir), i.opts.Port, quote.Replace(user), quote.Replace(database))
}

// AwaitRecovery waits until recovery has ended and the server accepts writes. It fails when the server exits before, as it does
// when its recovery target cannot be reached.
func (i *Instance) AwaitRecovery(ctx context.Context) error {
	if err := i.awaitState(ctx, i.takesWrites); err != nil {
		return fmt.Errorf("await the end of recovery on %s: %w%s", i.opts.DataDir, err, tail(i.opts.LogFile, 0))
	}
	return nil
}

// Promote ends recovery and waits until the server accepts writes.
func (i *Instance) Promote(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, i.opts.Programs.path("pg_ctl"), "promote", "-W", "-D", i.opts.DataDir)
	cmd.Dir = "/"
	cmd.Env = i.opts.environ()
	i.id.apply(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("promote %s: %w: %s", i.opts.DataDir, errors.Join(ctx.Err(), err), bytes.TrimSpace(out))
	}
	return i.AwaitRecovery(ctx)
}

// Mode is how a server is told to stop; its value is the signal.
type Mode syscall.Signal

// The ways PostgreSQL shuts down.
const (
	Smart     = Mode(syscall.SIGTERM) // when the last client has left
	Fast      = Mode(syscall.SIGINT)  // clients are sent away, then a checkpoint
	Immediate = Mode(syscall.SIGQUIT) // as after a crash: the next start recovers
)

// Stop shuts the server down and waits until it is gone. When ctx ends first the server may still be shutting down: Kill it or
// Stop it again. Stopping a server that is gone is not an error.
func (i *Instance) Stop(ctx context.Context, mode Mode) error {
	if err := i.cmd.Process.Signal(syscall.Signal(mode)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop PostgreSQL on %s: %w", i.opts.DataDir, err)
	}
	select {
	case <-i.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop PostgreSQL on %s: %w", i.opts.DataDir, ctx.Err())
	}
}

// Kill ends the server and all its processes, archive and restore commands included, with SIGKILL, as a power cut would, and returns when
// they are gone. Killing a server that is gone does nothing.
func (i *Instance) Kill() {
	select {
	case <-i.done:
		return
	default:
	}
	// Stopped, the first process cannot start others while we look at those there are.
	pid := i.cmd.Process.Pid
	_ = i.cmd.Process.Signal(syscall.SIGSTOP)
	await(func() bool { state, _ := processState(pid); return state != 'R' && state != 'S' && state != 'D' })
	children, segment := childrenOf(pid), i.sharedMemory()
	_ = i.cmd.Process.Kill()
	for _, child := range children {
		_ = syscall.Kill(-child, syscall.SIGKILL) // each leads a group of its own, with the commands it runs
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	<-i.done
	await(func() bool { return !anyLeft(children) })
	if segment >= 0 {
		_, _ = unix.SysvShmCtl(segment, unix.IPC_RMID, nil) // a power cut takes it along; a next start does without
	}
}

// sharedMemory returns the id of the System V segment by which the server tells others that it lives, -1 for none: the second number of line 7 of
// postmaster.pid (LOCK_FILE_LINE_SHMEM_KEY in src/include/utils/pidfile.h). A system has some thousands of them for all.
func (i *Instance) sharedMemory() int {
	b, err := os.ReadFile(filepath.Join(i.opts.DataDir, "postmaster.pid"))
	lines := strings.Split(string(b), "\n")
	if err != nil || len(lines) < 7 || lines[0] != strconv.Itoa(i.cmd.Process.Pid) {
		return -1
	}
	if words := strings.Fields(lines[6]); len(words) == 2 {
		if id, err := strconv.Atoi(words[1]); err == nil {
			return id
		}
	}
	return -1
}

// await polls until done, but not longer than processes may take to vanish.
func await(done func() bool) {
	for deadline := time.Now().Add(10 * time.Second); !done() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

// exitReason says how the server ended, which is known once done is closed.
func (i *Instance) exitReason() string {
	if i.exit == nil {
		return "exit status 0"
	}
	return i.exit.Error()
}

// childrenOf lists the processes that pid started; empty where there is no /proc.
func childrenOf(pid int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, s := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(s); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// anyLeft reports whether a process runs in one of the groups. One that is dead and only not waited for does not count.
func anyLeft(groups []int) bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if state, group := processState(pid); state != 'Z' && state != 'X' && slices.Contains(groups, group) {
			return true
		}
	}
	return false
}

// processState returns the letter that proc(5) gives for process pid (T for stopped, Z for dead and not waited for) and its process group;
// zeros when there is no such process.
func processState(pid int) (state byte, group int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// State, parent and group follow the program's name, which is in parentheses and may hold anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 3 {
		return 0, 0
	}
	group, err = strconv.Atoi(fields[2])
	if err != nil {
		return 0, 0
	}
	return fields[0][0], group
}

// tailBytes and tailLines bound what an error quotes of a log.
const (
	tailBytes = 8 << 10
	tailLines = 20
)

// tail returns the last lines that were written to the file at path after its first from bytes, ready to be put behind an error.
func tail(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	from = max(from, info.Size()-tailBytes)
	b, err := io.ReadAll(io.NewSectionReader(f, from, tailBytes))
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	return ": its log " + path + " ends with:\n" + strings.Join(lines, "\n")
}
