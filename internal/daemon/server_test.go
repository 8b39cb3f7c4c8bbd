package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/daemon"
	"holdfast/internal/daemon/wire"
	"holdfast/internal/walfetch"
	"holdfast/test/pgtest"
)

const segment = "00000001000000000000002A"

// A worker does as the path says that it is asked for.
type worker struct {
	name  string
	begun chan string   // the paths that it was asked for
	open  chan struct{} // closed, lets go what waits
	ended chan struct{} // closed once Run is over
}

func newWorker(name string) *worker {
	return &worker{name, make(chan string, 100), make(chan struct{}), make(chan struct{})}
}

func (w *worker) do(ctx context.Context, path string) error {
	w.begun <- path
	switch {
	case strings.HasSuffix(path, "/wait"):
		select {
		case <-w.open:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	case strings.HasSuffix(path, "/panic"):
		panic("a fault")
	case strings.HasSuffix(path, "/decline"):
		return &daemon.DeclinedError{Reason: "not mine"}
	case strings.HasSuffix(path, "/fail"):
		return errors.New("the store is down\nhint: look")
	case strings.HasSuffix(path, "/missing"):
		return &walfetch.MissingError{Name: segment}
	case strings.HasSuffix(path, "/name"):
		return errors.New(w.name)
	}
	return nil
}

func (w *worker) Push(ctx context.Context, path, _ string) error     { return w.do(ctx, path) }
func (w *worker) Fetch(ctx context.Context, _, dest, _ string) error { return w.do(ctx, dest) }
func (w *worker) Status(error) int                                   { return 75 }
func (w *worker) Run(ctx context.Context)                            { <-ctx.Done(); close(w.ended) }

// A house is a daemon that runs until the test ends.
type house struct {
	t      *testing.T
	path   string
	server *daemon.Server
	stop   context.CancelFunc
	served chan error
	log    *pgtest.Log
}

// serve starts a daemon. Its directory's path is short, as that of a socket has to be.
func serve(t *testing.T, w daemon.Worker, o daemon.Options) *house {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, path: filepath.Join(dir, "sock"), served: make(chan error, 1), log: &pgtest.Log{}}
	l, err := daemon.Listen(h.path)
	if err != nil {
		t.Fatal(err)
	}
	o.Logger = slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.server = daemon.New(o)
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	h.server.Employ(ctx, w)
	go func() { h.served <- h.server.Serve(ctx, l.UnixListener) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-h.served:
			h.served <- err
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("the daemon does not end")
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(h.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket stays: %v", err)
		}
		os.RemoveAll(dir)
	})
	return h
}

// A talk is a connection to the daemon.
type talk struct {
	*net.UnixConn
	t *testing.T
}

func (h *house) connect() talk {
	h.t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: h.path, Net: "unix"})
	if err != nil {
		h.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	h.t.Cleanup(func() { conn.Close() })
	return talk{conn, h.t}
}

func (c talk) send(kind wire.Type, body ...byte) {
	c.t.Helper()
	m, err := wire.Append(nil, kind, body...)
	if err == nil {
		_, err = c.Write(m)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c talk) push(path string) { c.t.Helper(); c.send(wire.Push, []byte(path)...) }

func (c talk) fetch(dest string) {
	c.t.Helper()
	args, err := wire.Args(segment, dest)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(wire.Fetch, args...)
}

// told reads the answer that a client gets that said Hello.
func (c talk) told() string {
	c.t.Helper()
	for {
		kind, body, err := wire.Read(c)
		if err != nil {
			return err.Error()
		}
		if kind != wire.Working {
			return fmt.Sprintf("%c %q", kind, body)
		}
	}
}

// rest reads to the end.
func (c talk) rest() string {
	b, err := io.ReadAll(c)
	if err != nil {
		c.t.Helper()
		c.t.Error(err)
	}
	return string(b)
}

// WAL-G's client gets one byte, and the connection is closed; after a check it may go on.
func TestClientsOfWALG(t *testing.T) {
	h := serve(t, newWorker("a"), daemon.Options{})
	for what, c := range map[string]struct {
		say  func(c talk)
		want string
	}{
		"push":            {func(c talk) { c.push(segment) }, "O"},
		"check and push":  {func(c talk) { c.send(wire.Check); c.send(wire.Check); c.push(segment) }, "OOO"},
		"fetch":           {func(c talk) { c.fetch("pg_wal/RECOVERYXLOG") }, "O"},
		"missing":         {func(c talk) { c.fetch("/missing") }, "N"},
		"failure":         {func(c talk) { c.push("/fail") }, "E"},
		"declined":        {func(c talk) { c.push("/decline") }, "E"},
		"fault":           {func(c talk) { c.push("/panic") }, "E"},
		"unknown":         {func(c talk) { c.send('x', 1, 2, 3) }, "E"},
		"no arguments":    {func(c talk) { c.send(wire.Fetch) }, "E"},
		"three arguments": {func(c talk) { args, _ := wire.Args("a", "b", "c"); c.send(wire.Fetch, args...) }, "E"},
		"no version":      {func(c talk) { c.send(wire.Hello) }, "E"},
		"later version":   {func(c talk) { c.send(wire.Hello, wire.Version+1) }, "E"},
	} {
		conn := h.connect()
		c.say(conn)
		if got := conn.rest(); got != c.want {
			t.Errorf("%s: answered %q, want %q", what, got, c.want)
		}
	}
	if err := daemon.Alive(t.Context(), h.path); err != nil {
		t.Error(err)
	}
}

// Who says Hello is told what failed, and with what status to end.
func TestClientsOfOurs(t *testing.T) {
	h := serve(t, newWorker("a"), daemon.Options{Explain: func(err error) string { return "explained: " + err.Error() }})
	for what, c := range map[string]struct {
		say  func(c talk)
		want string
	}{
		"check":         {func(c talk) { c.send(wire.Check) }, `O ""`},
		"push":          {func(c talk) { c.push(segment) }, `O ""`},
		"missing":       {func(c talk) { c.fetch("/missing") }, `N "Archive '` + segment + `' does not exist."`},
		"push failed":   {func(c talk) { c.push("/fail") }, `E "\x01explained: the store is down\nhint: look"`},
		"fetch failed":  {func(c talk) { c.fetch("/fail") }, `E "Kexplained: the store is down\nhint: look"`}, // K is 75
		"declined":      {func(c talk) { c.push("/decline") }, `D "not mine"`},
		"fault":         {func(c talk) { c.fetch("/panic") }, `D "the daemon has a fault"`},
		"what is there": {func(c talk) { c.send('x') }, `E "\x01a daemon knows no message of type 'x'"`},
	} {
		conn := h.connect()
		conn.send(wire.Hello, wire.Version)
		c.say(conn)
		if got := conn.told(); got != c.want {
			t.Errorf("%s: answered %s, want %s", what, got, c.want)
		}
	}
}

// While it is at work the daemon says so, and what breaks meanwhile does no harm to it.
func TestRequestsDoNotHarmEachOther(t *testing.T) {
	w := newWorker("a")
	h := serve(t, w, daemon.Options{})
	patient := h.connect()
	patient.send(wire.Hello, wire.Version)
	patient.push("/wait")
	<-w.begun
	for _, path := range []string{"/panic", "/fail", "/decline"} {
		c := h.connect()
		c.push(path)
		if got := c.rest(); got != "E" {
			t.Errorf("%s: %q", path, got)
		}
	}
	if kind, _, err := wire.Read(patient); err != nil || kind != wire.Working {
		t.Errorf("at work the daemon says %c, %v", kind, err)
	}
	close(w.open)
	if got := patient.told(); got != `O ""` {
		t.Errorf("answered %s", got)
	}
	if log := h.log.String(); !strings.Contains(log, "fault") || !strings.Contains(log, "server_test.go") {
		t.Errorf("the log does not say where the fault is:\n%s", log)
	}
}

// Whatever is sent, the daemon goes on, and does nothing that it was not asked for.
func TestHostileMessages(t *testing.T) {
	w := newWorker("a")
	h := serve(t, w, daemon.Options{Patience: 50 * time.Millisecond, Clients: 8})
	r := rand.New(rand.NewPCG(6, 6))
	for i := range 200 {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: h.path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, r.IntN(200))
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		if len(b) > 3 {
			b[0] = "CHxEON\x00"[i%7] // no push, no fetch
			b[1] = byte(r.IntN(2))
		}
		conn.Write(b) // may fail: it was turned away
		switch i % 3 {
		case 0:
			conn.Close()
		case 1:
			conn.CloseWrite()
			fallthrough
		default:
			t.Cleanup(func() { conn.Close() }) // and says no more
		}
	}
	pgtest.Eventually(t, "the daemon takes clients in again", func() bool { return daemon.Alive(t.Context(), h.path) == nil })
	select {
	case path := <-w.begun:
		t.Errorf("was taken for a request of %q", path)
	default:
	}
}

// More clients than there may be are turned away at once, to do it themselves.
func TestNobodyWaitsForASeat(t *testing.T) {
	w := newWorker("a")
	h := serve(t, w, daemon.Options{Clients: 1})
	first := h.connect()
	first.push("/wait")
	<-w.begun
	second := h.connect()
	if got := second.rest(); got != "" {
		t.Errorf("answered %q", got)
	}
	close(w.open)
	if got := first.rest(); got != "O" {
		t.Errorf("the first was answered %q", got)
	}
}

// A fetch ends when nobody waits for it any more.
func TestFetchEndsWithItsClient(t *testing.T) {
	w := newWorker("a")
	h := serve(t, w, daemon.Options{})
	for i, unread := range []bool{false, true} { // what was said to it: then its end is a reset
		c := h.connect()
		c.send(wire.Hello, wire.Version)
		c.fetch("/wait")
		<-w.begun
		if unread {
			raw, err := c.SyscallConn()
			if err == nil {
				err = raw.Read(func(fd uintptr) bool {
					n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
					return n > 0 || err != syscall.EAGAIN
				})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		pgtest.Eventually(t, "the fetch is given up", func() bool { return strings.Count(h.log.String(), "nobody waits any more") == i+1 })
	}
}

// New settings are for what is asked for from then on. What was at work ends under the old ones, which then run no more.
func TestReplaced(t *testing.T) {
	old, next := newWorker("old"), newWorker("new")
	h := serve(t, old, daemon.Options{})
	at := h.connect()
	at.send(wire.Hello, wire.Version)
	at.push("/wait")
	<-old.begun
	h.server.Employ(t.Context(), next)
	c := h.connect()
	c.send(wire.Hello, wire.Version)
	c.push("/name")
	if got := c.told(); got != `E "\x01new"` {
		t.Errorf("answered %s", got)
	}
	select {
	case <-old.ended:
		t.Error("the old one was ended while at work")
	default:
	}
	close(old.open)
	if got := at.told(); got != `O ""` {
		t.Errorf("what was at work: %s", got)
	}
	<-old.ended
}

// A slowWorker takes its time to end.
type slowWorker struct {
	*worker
	may chan struct{}
}

func (w *slowWorker) Run(ctx context.Context) { w.worker.Run(ctx); <-w.may }

// New settings that come while the daemon ends do not keep it.
func TestReplacedAtItsEnd(t *testing.T) {
	w, next := &slowWorker{newWorker("a"), make(chan struct{})}, newWorker("b")
	h := serve(t, w, daemon.Options{})
	h.stop()
	<-w.ended
	h.server.Employ(t.Context(), next)
	close(w.may)
	select {
	case err := <-h.served:
		h.served <- err
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

// Told to end, a daemon lets go who asks for nothing, finishes what is at work, and hands back what takes too long.
func TestEndsInOrder(t *testing.T) {
	for _, patient := range []bool{true, false} {
		w := newWorker("a")
		o := daemon.Options{Grace: time.Millisecond}
		if patient {
			o.Grace = time.Hour
		}
		h := serve(t, w, o)
		idle, at := h.connect(), h.connect()
		idle.send(wire.Check)
		if _, err := io.ReadFull(idle, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		at.send(wire.Hello, wire.Version)
		at.push("/wait")
		<-w.begun
		h.stop()
		if got := idle.rest(); got != "" {
			t.Errorf("who asked for nothing: %q", got)
		}
		want := `D "the daemon is ending"`
		if patient {
			close(w.open)
			want = `O ""`
		}
		if got := at.told(); got != want {
			t.Errorf("what was at work: %s, want %s", got, want)
		}
		<-w.ended
	}
}

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.Listen(path); err == nil || !strings.Contains(err.Error(), "another program listens") {
		t.Errorf("where another listens: %v", err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	s, err := daemon.Listen(path)
	if err != nil {
		t.Fatalf("where one has died: %v", err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := daemon.Listen(path); err == nil || !strings.Contains(err.Error(), "another daemon listens") {
		t.Errorf("where ours listens: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("closed: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.Listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("where a file is: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file: %q, %v", b, err)
	}
	if _, err := daemon.Listen(filepath.Join(dir, strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "at most 103 bytes") {
		t.Errorf("a long path: %v", err)
	}
}

// What another has put in the socket's place is not removed.
func TestCloseRemovesItsOwnSocketOnly(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "sock")
	s, err := daemon.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}
