package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"holdfast/internal/compress"
	"holdfast/internal/config"
	archiver "holdfast/internal/daemon"
	"holdfast/internal/store/mirror"
	"holdfast/internal/walfetch"
	"holdfast/internal/walpush"
)

// daemonMemory bounds the daemon, in bytes: it runs beside a server at work all the time.
const daemonMemory = 128 << 20

func (a *app) daemon() *cobra.Command {
	return &cobra.Command{
		Use:   "daemon SOCKET",
		Short: "Push and fetch WAL for holdfast-client, with connections that stay",
		Long: "Listens at the Unix socket SOCKET and does what holdfast-client, or WAL-G's client, asks for: what wal-push and wal-fetch do, for the\n" +
			"data directory PGDATA, without a start, settings, keys and connections for each segment. Only the account that runs it, and root, may ask.\n\n" +
			"SIGHUP reads the settings anew, and keeps those it had where the new ones are wrong; it opens the log anew, as SIGUSR1 does.\n" +
			"SIGTERM ends what is being done in order. docs/operations.md has more, deploy/systemd a unit.",
		Example: "  PGDATA=/var/lib/postgresql/17/main holdfast daemon /run/holdfast/wal.sock\n" +
			"  archive_command = 'holdfast-client /run/holdfast/wal.sock wal-push %p'\n" +
			"  restore_command = 'holdfast-client /run/holdfast/wal.sock wal-fetch %f %p'",
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			// Should the program break, nobody must take the runtime's status for an answer.
			debug.SetTraceback("crash")
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			a.stays.Store(true)
			return a.serveWAL(cmd, s, args[0])
		},
	}
}

// serveWAL is the daemon from its start to its end.
func (a *app) serveWAL(cmd *cobra.Command, s *config.Settings, path string) error {
	ctx := cmd.Context()
	orders := make(chan os.Signal, 1)
	signal.Notify(orders, syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Stop(orders)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // who reads the log may leave; archiving goes on

	if s.Postgres.DataDir == "" {
		return &advised{errors.New("the daemon has to know whose WAL it is for"), "set PGDATA to the data directory"}
	}
	info, err := os.Stat(s.Postgres.DataDir)
	if err != nil {
		return err
	}
	// As PostgreSQL has it for the commands it starts: where its group may read, it may read what is fetched, too (PG_MODE_MASK_OWNER and _GROUP).
	mask := 0o077
	if info.Mode()&0o040 != 0 {
		mask = 0o027
	}
	syscall.Umask(mask)
	if debug.SetMemoryLimit(-1) > daemonMemory {
		debug.SetMemoryLimit(daemonMemory)
	}
	jobs, err := a.jobs(ctx, s)
	if err != nil {
		return err
	}
	socket, err := archiver.Listen(path)
	if err != nil {
		return err
	}
	server := archiver.New(archiver.Options{Explain: a.explain, Logger: a.log})
	server.Employ(ctx, jobs)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, socket.UnixListener) }()
	a.log.Info(fmt.Sprintf("listening at %s for %s; the archive is %s", path, s.Postgres.DataDir, s.Location()))
	a.notify(daemon.SdNotifyReady)

	dog, quiet := a.watchdog()
	defer quiet()
	for {
		select {
		case order := <-orders:
			a.reopenLog()
			if order == syscall.SIGHUP {
				a.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
				a.reload(cmd, s, server)
				a.notify(daemon.SdNotifyReady)
			}
		case <-dog:
			if err := archiver.Alive(ctx, path); err == nil {
				a.notify(daemon.SdNotifyWatchdog)
			} else if ctx.Err() == nil {
				a.log.Error("the daemon does not answer itself", "error", err)
			}
		case <-ctx.Done():
			a.log.Info("ending, once what is at work is done")
			a.notify(daemon.SdNotifyStopping)
			return errors.Join(<-served, socket.Close())
		case err := <-served:
			if err == nil { // told to end just now
				a.notify(daemon.SdNotifyStopping)
			}
			return errors.Join(err, socket.Close())
		}
	}
}

// jobs makes what the settings ask for. It opens the archive.
func (a *app) jobs(ctx context.Context, s *config.Settings) (*archiver.Jobs, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	data, err := filepath.Abs(s.Postgres.DataDir)
	if err != nil {
		return nil, err
	}
	o := &opened{app: a, settings: s}
	a.opening = func(c io.Closer) { o.toClose = append(o.toClose, c) } // by renew
	if _, _, err := o.forPush(ctx); err != nil {
		o.close()
		return nil, err
	}
	ext := compress.Method(s.Compression.Method).Extension()
	begin := time.Now()
	return archiver.NewJobs(archiver.JobOptions{
		Data: data, Archives: o.forPush,
		Push: a.pushOptions(s, host), Timeout: s.WAL.DaemonTimeout,
		Pushed:  func(path string, r walpush.Report) { a.tellPush(path, r, ext) },
		Archive: o.forFetch,
		Fetch:   a.fetchOptions(s),
		Between: func(ctx context.Context) {
			o.repay(ctx, begin)
			begin = time.Now()
		},
		End:    o.close,
		Logger: a.log,
	}), nil
}

// directories returns what the storages are that are directories; nil for one that is none, or is not there.
func directories(s *config.Settings) (dirs []os.FileInfo) {
	for _, st := range s.InUse() {
		var info os.FileInfo
		if st.Dir != "" {
			info, _ = os.Stat(st.Dir) // what is wrong with it shows when it is opened
		}
		dirs = append(dirs, info)
	}
	return dirs
}

func sameDirectory(a, b os.FileInfo) bool {
	return a == nil && b == nil || a != nil && b != nil && os.SameFile(a, b)
}

// opened is an archive that stays open. It is opened anew where a storage that is a directory is another one than before: what is mounted there, or
// no more, since it was opened would else be passed by, and WAL would end up below.
type opened struct {
	app      *app
	settings *config.Settings

	mu           sync.Mutex
	dirs         []os.FileInfo // of the storages, as they were; nil of what is none, or is not there
	asked, ahead walpush.Archive
	from         walfetch.Archive
	mirrors      *mirror.Mirror
	toClose      []io.Closer // all storages that were opened
}

// renew opens the archive if that has to be done. The mutex is held.
func (o *opened) renew(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // of a request, which the archive outlives
	dirs := directories(o.settings)
	if o.from != nil && slices.EqualFunc(dirs, o.dirs, sameDirectory) {
		return nil
	}
	o.from = nil
	asked, ahead, err := o.app.archivesForPush(o.settings)(ctx)
	if err != nil {
		return err
	}
	o.mirrors = o.app.mirrors // as pushes use them
	from, err := o.app.openArchive(ctx, o.settings, toRead)
	if err != nil {
		return err
	}
	o.dirs, o.asked, o.ahead, o.from = dirs, asked, ahead, from
	return nil
}

func (o *opened) forPush(ctx context.Context) (asked, ahead walpush.Archive, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	err = o.renew(ctx)
	return o.asked, o.ahead, err
}

func (o *opened) forFetch(ctx context.Context) (walfetch.Archive, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := o.renew(ctx)
	return o.from, err
}

// close ends the connections of what was opened. Nobody uses it any more.
func (o *opened) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.toClose {
		_ = c.Close() // all that was written is durable
	}
	o.toClose, o.from = nil, nil
}

// repay brings mirrors up to date, as after a push.
func (o *opened) repay(ctx context.Context, begin time.Time) {
	o.mu.Lock()
	mirrors := o.mirrors
	o.mu.Unlock()
	(&app{log: o.app.log, mirrors: mirrors}).repay(ctx, begin, repaidByPush)
}

// reload reads the settings anew and has the daemon work by them, if they make sense.
func (a *app) reload(cmd *cobra.Command, old *config.Settings, server *archiver.Server) {
	next, s, err := a.loadAnew(cmd)
	if err == nil && s.Postgres.DataDir != old.Postgres.DataDir {
		err = fmt.Errorf("PGDATA has become %s: for another cluster another daemon has to be started", s.Postgres.DataDir)
	}
	var jobs *archiver.Jobs
	if err == nil {
		jobs, err = next.jobs(cmd.Context(), s)
	}
	if err != nil {
		a.log.Error("the new settings are not taken, the daemon works by those it had: " + a.explain(err))
		return
	}
	if s.Log != old.Log {
		a.log.Warn("how to log is settled at the start: start the daemon anew for that")
	}
	server.Employ(cmd.Context(), jobs)
	a.log.Info("settings read anew; the archive is " + s.Location())
}

// loadAnew reads the settings anew, for an app of its own that logs where a does.
func (a *app) loadAnew(cmd *cobra.Command) (*app, *config.Settings, error) {
	next := &app{env: a.env, config: a.config, turbo: a.turbo, settingFlags: a.settingFlags}
	s, err := next.load(cmd)
	if next.logFile != nil {
		err = errors.Join(err, next.logFile.Close())
	}
	if next.logTo != nil {
		err = errors.Join(err, next.logTo.Close())
	}
	next.log, next.logFile, next.logTo = a.log, nil, nil
	return next, s, err
}

// reopenLog goes on in the file that is at the log's path now, as after somebody has renamed it.
func (a *app) reopenLog() {
	if a.logFile == nil {
		return
	}
	f, err := os.OpenFile(a.logFile.Name(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		err = errors.Join(unix.Dup2(int(f.Fd()), int(a.logFile.Fd())), f.Close())
		unix.CloseOnExec(int(a.logFile.Fd()))
	}
	if err != nil {
		a.log.Warn("the log goes on where it was", "error", err)
	}
}

// explain says what an error and its hints say, a line for each.
func (a *app) explain(err error) string {
	var lines []string
	for _, one := range parts(err) {
		lines = append(lines, one.Error())
		if hint := a.hint(one); hint != "" {
			lines = append(lines, "hint: "+hint)
		}
	}
	return strings.Join(lines, "\n")
}

// watchdog says when systemd wants to hear that this process is alive, never where it does not want that, until stop is called.
func (a *app) watchdog() (dog <-chan time.Time, stop func()) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		a.log.Warn("systemd's watchdog", "error", err)
	}
	if err != nil || every <= 0 {
		return nil, func() {}
	}
	tick := time.NewTicker(every / 3)
	return tick.C, tick.Stop
}

// notify tells systemd how the daemon is, if systemd has started it and wants to know.
func (a *app) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		a.log.Warn("cannot tell systemd", "state", state, "error", err)
	}
}
