// Package daemon answers archive_command and restore_command over a socket of this host, so that for a segment no program has to read
// settings, load keys and connect to a store.
//
// The protocol is that of package wire, the programs that speak it are holdfast-client and WAL-G's. Whoever runs the daemon may connect, and
// root; nobody else. One request that fails, or breaks the code that serves it, does no harm to others: what the daemon cannot or must not
// do it hands back, and the client has the whole program do it. A push is answered once the file is durable, and never before.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/daemon/wire"
	"holdfast/internal/walfetch"
)

// A Worker does what clients ask for, by one set of settings; *Jobs is one.
type Worker interface {
	// Push returns nil once the WAL file at path is durable in the archive. What is not for this daemon is a *DeclinedError. A relative path comes from
	// a client in directory cwd, "" where that is not known.
	Push(ctx context.Context, path, cwd string) error
	// Fetch brings the WAL file name to dest; likewise. That the archive lacks it is a *walfetch.MissingError.
	Fetch(ctx context.Context, name, dest, cwd string) error
	// Status returns what restore_command is to exit with after Fetch returned err.
	Status(err error) int
	// Run does what goes on between requests. It returns when ctx has ended and all is done; there are no requests any more then.
	Run(ctx context.Context)
}

// A DeclinedError says that something is not for this daemon to do.
type DeclinedError struct{ Reason string }

func (e *DeclinedError) Error() string { return e.Reason }

// Options tunes a Server. The zero value is ready to use.
type Options struct {
	// Explain turns an error into what the client's log is to say, a line for each thing; nil takes the error's own text.
	Explain func(error) string
	// Grace is how long requests may go on once the server is told to end; 0 means 10 seconds.
	Grace time.Duration
	// Patience is how long a client may take to say what it wants; 0 means 10 seconds.
	Patience time.Duration
	// Clients is how many may be connected; 0 means 100. Others are turned away, and do it themselves.
	Clients int
	Logger  *slog.Logger // nil discards
}

// Server answers clients.
type Server struct {
	opts Options
	seat chan struct{} // holds one for each client

	mu    sync.Mutex
	shift *shift         // who does what is asked for now
	over  bool           // nothing is asked for any more
	ended sync.WaitGroup // of shifts
}

// A shift is a Worker at work.
type shift struct {
	worker Worker
	cancel context.CancelFunc
	busy   sync.WaitGroup // requests
}

// New returns a Server.
func New(o Options) *Server {
	o.Grace, o.Patience, o.Clients = cmp.Or(o.Grace, 10*time.Second), cmp.Or(o.Patience, 10*time.Second), cmp.Or(o.Clients, 100)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Explain == nil {
		o.Explain = error.Error
	}
	return &Server{opts: o, seat: make(chan struct{}, o.Clients)}
}

// Employ has w do what clients ask for from now on, until Serve returns. Who did before ends what is at work, and runs no longer. While Serve ends, w is
// not needed.
func (s *Server) Employ(ctx context.Context, w Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	before := s.shift
	s.shift = &shift{worker: w, cancel: cancel}
	s.ended.Go(func() { w.Run(ctx) })
	if before != nil {
		s.ended.Go(before.end)
	}
}

// end has the Worker finish.
func (f *shift) end() {
	f.busy.Wait()
	f.cancel()
}

// onDuty returns who does what is asked for, who stays until leave is called.
func (s *Server) onDuty() (w Worker, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shift.busy.Add(1)
	return s.shift.worker, s.shift.busy.Done
}

// errEnding is why requests are broken off.
var errEnding = errors.New("the daemon is ending")

// Serve answers who connects to l, which it closes, until ctx ends. It returns when what was at work then is done, or was given up after
// Grace. Before it an Employ is needed.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	work, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var clients sync.WaitGroup
	var failure error
	for ctx.Err() == nil {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil && errors.Is(err, net.ErrClosed) {
				failure = err
				break
			}
			if ctx.Err() == nil { // such as too many open files
				s.opts.Logger.Warn("cannot take a client in", "error", err)
				time.Sleep(50 * time.Millisecond)
			}
			continue
		}
		select {
		case s.seat <- struct{}{}:
			clients.Go(func() {
				defer func() { <-s.seat }()
				s.serve(ctx, work, conn)
			})
		default:
			s.opts.Logger.Warn("turned a client away: too many are connected", "clients", s.opts.Clients)
			conn.Close()
		}
	}
	l.Close()
	grace := time.AfterFunc(s.opts.Grace, func() { giveUp(errEnding) })
	clients.Wait()
	grace.Stop()
	s.mu.Lock()
	last := s.shift
	s.over = true
	s.mu.Unlock()
	last.end()
	s.ended.Wait()
	return failure
}

// A client is one connection.
type client struct {
	conn  *net.UnixConn
	cwd   func() string
	told  bool // it listens as a Hello says
	write sync.Mutex
}

// serve talks to one client. ctx ends when no more requests are taken, work when those at work are given up.
func (s *Server) serve(ctx, work context.Context, conn *net.UnixConn) {
	defer conn.Close() // all is said
	c := &client{conn: conn}
	uid, pid, err := peer(conn)
	if err != nil || uid != os.Geteuid() && uid != 0 {
		s.opts.Logger.Warn("refused a client of another account", "uid", uid, "pid", pid, "error", err)
		c.plain(wire.Failed)
		return
	}
	c.cwd = func() string {
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil {
			return ""
		}
		return dir
	}
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		conn.SetReadDeadline(time.Now().Add(s.opts.Patience))
		if ctx.Err() != nil {
			return
		}
		kind, body, err := wire.Read(conn)
		if err != nil { // it left, or is none of ours
			if err != io.EOF {
				s.opts.Logger.Debug("a client said nothing that makes sense", "pid", pid, "error", err)
			}
			if errors.Is(err, wire.ErrLength) {
				c.plain(wire.Failed)
			}
			return
		}
		switch kind {
		case wire.Hello:
			if len(body) != 1 || body[0] != wire.Version {
				c.plain(wire.Failed)
				return
			}
			c.told = true
		case wire.Check:
			c.say(wire.OK)
		case wire.Push, wire.Fetch:
			s.answer(work, c, kind, body)
			return
		default:
			s.opts.Logger.Warn("a client asked for what there is not", "pid", pid, "type", int(kind))
			c.fail(1, fmt.Sprintf("a daemon knows no message of type %q", rune(kind)))
			return
		}
	}
}

// answer does what a client asks for and says what came of it. Until then it says that it is at work.
func (s *Server) answer(work context.Context, c *client, kind wire.Type, body []byte) {
	ctx, cancel := context.WithCancelCause(work)
	defer cancel(nil)
	if c.told {
		// A file that nobody waits for any more must not turn up later. A push may go on: it is asked for again.
		gone := func() {}
		if kind == wire.Fetch {
			gone = func() { cancel(context.Canceled) }
		}
		defer c.attend(gone)()
	}
	begin := time.Now()
	w, leave := s.onDuty()
	defer leave()
	what, err := do(ctx, w, c, kind, body, s.opts.Logger)
	log := s.opts.Logger.With("took", time.Since(begin).Round(10*time.Microsecond))
	var missing *walfetch.MissingError
	var declined *DeclinedError
	switch {
	case err == nil:
		log.Debug(what)
		c.say(wire.OK)
	case errors.As(err, &missing):
		log.Debug(err.Error())
		c.say(wire.Missing, wire.Text(err.Error())...)
	case work.Err() != nil:
		log.Warn("broke off: "+what, "error", err)
		c.decline(errEnding.Error())
	case ctx.Err() != nil:
		log.Debug("nobody waits any more: "+what, "error", err)
	case errors.As(err, &declined):
		log.Info("not for this daemon: "+what, "reason", declined.Reason)
		c.decline(declined.Reason)
	default:
		log.Error(what, "error", err)
		status := 1
		if kind == wire.Fetch {
			status = w.Status(err)
		}
		c.fail(status, s.opts.Explain(err))
	}
}

// unattended is how long a request may take until somebody attends to its client. Most take less, and are not to wait for that.
const unattended = 20 * time.Millisecond

// attend tells the client that its request is at work, every wire.Alive, and calls gone once it has hung up, until stop is called.
func (c *client) attend(gone func()) (stop func()) {
	done := make(chan struct{})
	var aside sync.WaitGroup
	aside.Add(1)
	c.conn.SetReadDeadline(time.Time{})
	begin := time.AfterFunc(unattended, func() {
		defer aside.Done()
		aside.Go(func() {
			tick := time.NewTicker(wire.Alive - unattended)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					c.say(wire.Working)
				case <-done:
					return
				}
			}
		})
		// That it has hung up is io.EOF, or a reset where it has not read all that it was told; the deadline is ours.
		if _, err := c.conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			gone()
		}
	})
	return func() {
		close(done)
		if begin.Stop() {
			aside.Done()
		}
		c.conn.SetReadDeadline(time.Unix(1, 0)) // ends the reading
		aside.Wait()
	}
}

// do has w do what is asked for, and says what that was. Should w break, that is a *DeclinedError.
func do(ctx context.Context, w Worker, c *client, kind wire.Type, body []byte, log *slog.Logger) (what string, err error) {
	defer func() {
		if broke := recover(); broke != nil {
			log.Error("the daemon has a fault, please report this: "+what, "panic", broke, "stack", string(debug.Stack()))
			err = &DeclinedError{"the daemon has a fault"}
		}
	}()
	if kind == wire.Push {
		path := string(body)
		return "wal-push " + path, w.Push(ctx, path, c.from(path))
	}
	args, err := wire.ParseArgs(body)
	if err == nil && len(args) != 2 {
		err = wire.ErrArgs
	}
	if err != nil {
		return "wal-fetch", err
	}
	what = "wal-fetch " + args[0] + " " + args[1]
	return what, w.Fetch(ctx, args[0], args[1], c.from(args[1]))
}

// from returns where a client is, so far as that matters for path.
func (c *client) from(path string) string {
	if filepath.IsAbs(path) {
		return ""
	}
	return c.cwd()
}

// say answers with a message, or where the client does not know those with its type. That the client has gone shows nowhere else.
func (c *client) say(t wire.Type, body ...byte) {
	m := []byte{byte(t)}
	if c.told {
		var err error
		if m, err = wire.Append(nil, t, body...); err != nil {
			return // bodies are cut to what fits
		}
	}
	c.write.Lock()
	defer c.write.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.conn.Write(m)
}

// plain answers before it is known what the client understands.
func (c *client) plain(t wire.Type) {
	c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.conn.Write([]byte{byte(t)})
}

// fail answers that something failed, and why.
func (c *client) fail(status int, text string) {
	c.say(wire.Failed, append([]byte{byte(status)}, wire.Text(text)...)...)
}

// decline hands the request back.
func (c *client) decline(reason string) {
	if c.told {
		c.say(wire.Declined, wire.Text(reason)...)
	} else {
		c.say(wire.Failed)
	}
}

// A Socket is where clients connect.
type Socket struct {
	*net.UnixListener
	path string
	info os.FileInfo
	lock *os.File
}

// maxPath is how long the path of a socket may be, in bytes: sun_path, and room for ".new".
const maxPath = 103

// Listen makes a socket at path, for this account alone. What a daemon that died left there is replaced; that another one is alive is an error,
// and so is a file that is no socket. Beside it stays path.lock.
func Listen(path string) (*Socket, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("listen at %s: a socket's path has at most %d bytes", path, maxPath)
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Socket{path: path, lock: lock}
	if err := s.listen(); err != nil {
		lock.Close() // holds nothing
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return s, nil
}

func (s *Socket) listen() error {
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.New("another daemon listens there")
	}
	if info, err := os.Lstat(s.path); err == nil && info.Mode()&os.ModeSocket == 0 {
		return errors.New("there is a file that is no socket")
	}
	if conn, err := net.Dial("unix", s.path); err == nil { // of WAL-G's, which know no lock
		conn.Close() // said nothing
		return errors.New("another program listens there")
	}
	temp := s.path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // by then the path may be another's
	// Nobody knows the socket under this name, and whoever should find it is asked who he is.
	err = os.Chmod(temp, 0o600)
	if err == nil {
		s.info, err = os.Lstat(temp)
	}
	if err == nil {
		err = os.Rename(temp, s.path)
	}
	if err != nil {
		l.Close()
		os.Remove(temp)
		return err
	}
	s.UnixListener = l
	return nil
}

// Close removes the socket, if it is still ours, and lets others listen there.
func (s *Socket) Close() error {
	err := s.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) { // Serve does that
		err = nil
	}
	if info, statErr := os.Lstat(s.path); statErr == nil && os.SameFile(info, s.info) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return errors.Join(err, s.lock.Close())
}

// Alive asks the daemon at path whether it is there, as any client may.
func Alive(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer conn.Close() // all is said
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	m, err := wire.Append(nil, wire.Check)
	if err != nil {
		return err
	}
	if _, err := conn.Write(m); err != nil {
		return err
	}
	reply := make([]byte, 1)
	if _, err := io.ReadFull(conn, reply); err != nil {
		return err
	}
	if reply[0] != byte(wire.OK) {
		return fmt.Errorf("it answered %q", reply)
	}
	return nil
}
