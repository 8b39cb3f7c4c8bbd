package sftp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pkgsftp "github.com/pkg/sftp"

	"holdfast/internal/store"
	"holdfast/internal/store/servicetest"
	"holdfast/internal/store/sftp"
	"holdfast/internal/store/unfinished"
)

// stalls is short enough to wait for and long enough for a machine that is busy.
const stalls = time.Second

// never is more bytes than go over a connection.
const never = 1 << 40

// A fault is what becomes of one connection.
type fault struct {
	up, down int64 // bytes from and to the client after which it happens
	hang     bool  // nothing goes on, rather than the connection being closed
}

// behind puts a proxy before s and returns the server that it looks like. fault says what becomes of the n-th connection, counted from 0,
// and is called before anything goes over it.
func (s server) behind(t *testing.T, fault func(n int) fault) server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	var g sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		close(over)
		g.Wait()
	})
	g.Go(func() {
		for n := 0; ; n++ {
			client, err := l.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)))
			if err != nil {
				client.Close()
				continue
			}
			f := fault(n)
			end := sync.OnceFunc(func() {
				client.Close()
				there.Close()
			})
			context.AfterFunc(t.Context(), end)
			for _, way := range []struct {
				to, from net.Conn
				limit    int64
			}{{there, client, f.up}, {client, there, f.down}} {
				g.Go(func() {
					defer end()
					if n, _ := io.CopyN(way.to, way.from, way.limit); n == way.limit && f.hang {
						select {
						case <-over:
						case <-t.Context().Done():
						}
					}
				})
			}
		}
	})
	other := s
	other.port = l.Addr().(*net.TCPAddr).Port
	other.knownHosts = other.known(t, s.hostKey)
	return other
}

// files returns the paths of all files below root.
func files(t *testing.T, root string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names = append(names, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// A put whose connection breaks or stalls goes on over another, and each failure is told once.
func TestAPutWhoseConnectionIsLostGoesOn(t *testing.T) {
	s := sshd(t)
	data := servicetest.Content(12 << 20)
	for _, hang := range []bool{false, true} {
		for _, ifAbsent := range []bool{false, true} {
			var log servicetest.Log
			root := t.TempDir()
			st := s.behind(t, func(n int) fault {
				if n < 3 {
					return fault{up: 7 << 19, down: never, hang: hang}
				}
				return fault{up: never, down: never}
			}).open(t, root, func(o *sftp.Options) {
				o.Logger = log.Logger()
				o.StallTimeout, o.Connections = stalls, 1
			})
			begin := time.Now()
			var err error
			if ifAbsent {
				err = st.PutIfAbsent(t.Context(), "d/o", bytes.NewReader(data))
			} else {
				err = st.Put(t.Context(), "d/o", bytes.NewReader(data))
			}
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > time.Minute {
				t.Errorf("it took %v", took)
			}
			servicetest.WantContent(t, st, "d/o", data)
			if got := files(t, root); !slices.Equal(got, []string{"d/o"}) {
				t.Errorf("left are %q", got)
			}
			if got := strings.Count(log.String(), "level=WARN"); got != 3 || hang != strings.Contains(log.String(), "stalled") {
				t.Errorf("hanging %v: 3 connections were lost, %d lines:\n%s", hang, got, log.String())
			}
		}
	}
}

// However far the conversation got when the connection was lost, a put ends well and leaves nothing but its object.
func TestAPutSurvivesALossAtAnyMoment(t *testing.T) {
	s := sshd(t)
	data := servicetest.Content(100)
	for _, ifAbsent := range []bool{false, true} {
		for _, up := range []bool{true, false} {
			for limit := int64(500); ; limit += 59 {
				if limit > 600 && limit < 2200 {
					limit = 2200 // the handshake is longer than this
				}
				root := t.TempDir()
				var used atomic.Int64
				st := s.behind(t, func(n int) fault {
					used.Add(1)
					switch {
					case n > 0:
						return fault{up: never, down: never}
					case up:
						return fault{up: limit, down: never}
					}
					return fault{up: never, down: limit}
				}).open(t, root, func(o *sftp.Options) { o.Connections = 1 })
				var err error
				if ifAbsent {
					err = st.PutIfAbsent(t.Context(), "d/o", bytes.NewReader(data))
				} else {
					err = st.Put(t.Context(), "d/o", bytes.NewReader(data))
				}
				if err != nil && !(ifAbsent && errors.Is(err, fs.ErrExist)) {
					t.Errorf("lost after %d bytes: %v", limit, err)
				}
				servicetest.WantContent(t, st, "d/o", data)
				got := slices.DeleteFunc(files(t, root), func(name string) bool {
					// The other name of an object that was linked when the connection got lost, just before it was removed.
					_, temp := unfinished.Since(filepath.Base(name))
					return temp && ifAbsent
				})
				if !slices.Equal(got, []string{"d/o"}) {
					t.Errorf("lost after %d bytes: left are %q", limit, got)
				}
				st.Close()
				if used.Load() == 1 {
					break // the connection was not lost
				}
			}
		}
	}
}

func TestABodyWhoseConnectionIsLostGoesOn(t *testing.T) {
	s := sshd(t)
	data := servicetest.Content(12<<20 + 7)
	for _, hang := range []bool{false, true} {
		var log servicetest.Log
		root := t.TempDir()
		servicetest.Put(t, s.open(t, root, nil), "d/o", data)
		st := s.behind(t, func(n int) fault {
			if n < 3 {
				return fault{up: never, down: 4 << 20, hang: hang}
			}
			return fault{up: never, down: never}
		}).open(t, root, func(o *sftp.Options) {
			o.Logger = log.Logger()
			o.StallTimeout = stalls
		})
		servicetest.WantContent(t, st, "d/o", data)
		if got := strings.Count(log.String(), "level=WARN"); got != 3 || hang != strings.Contains(log.String(), "stalled") {
			t.Errorf("hanging %v: 3 connections were lost, %d lines:\n%s", hang, got, log.String())
		}
		r, err := st.OpenRange(t.Context(), "d/o", 5<<20, 3<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[5<<20:8<<20]) {
			t.Errorf("a range yields %d bytes, %v", len(got), err)
		}
	}
}

func TestWhatKeepsBreakingEndsInAnError(t *testing.T) {
	s := sshd(t)
	root := t.TempDir()
	servicetest.Put(t, s.open(t, root, nil), "o", servicetest.Content(3<<20))
	for what, f := range map[string]fault{"nothing comes": {up: never, down: 0}, "it breaks in the handshake": {up: 100, down: never}, "it breaks in the middle": {up: 1 << 20, down: 1 << 20}} {
		var log servicetest.Log
		st := s.behind(t, func(int) fault { return f }).open(t, root, func(o *sftp.Options) { o.Logger = log.Logger() })
		got, read := store.ReadFile(t.Context(), st, "o", 1<<30)
		put := st.Put(t.Context(), "new", bytes.NewReader(servicetest.Content(3<<20)))
		for op, err := range map[string]error{"read": read, "put": put} {
			if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) || errors.Is(err, fs.ErrPermission) || errors.Is(err, context.Canceled) {
				t.Errorf("%s, %s: %d bytes, %v; want an error that may pass", what, op, len(got), err)
			}
		}
		if _, err := os.Stat(filepath.Join(root, "new")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: stat of what was put: %v", what, err)
		}
		if n := strings.Count(log.String(), "level=WARN"); n < 6 {
			t.Errorf("%s: %d lines:\n%s", what, n, log.String())
		}
	}
}

// A server that comes back without what it had confirmed is found out.
func TestAPutNoticesWhatTheServerForgot(t *testing.T) {
	s := sshd(t)
	for what, forget := range map[string]func(path string) error{
		"the end": func(path string) error { return os.Truncate(path, 100) },
		"a page": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(make([]byte, 4096), 8192)
			return err
		},
		"all": os.Remove,
	} {
		root := t.TempDir()
		st := s.behind(t, func(n int) fault {
			if n == 0 {
				return fault{up: 6 << 20, down: never}
			}
			if n == 1 { // what was under way must have come to its end
				time.Sleep(100 * time.Millisecond)
				for _, name := range files(t, root) {
					if err := forget(filepath.Join(root, name)); err != nil {
						t.Error(err)
					}
				}
			}
			return fault{up: never, down: never}
		}).open(t, root, func(o *sftp.Options) { o.Connections = 1 })
		err := st.Put(t.Context(), "d/o", bytes.NewReader(servicetest.Content(12<<20)))
		if err == nil || !strings.Contains(err.Error(), "the server has forgotten") || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s is forgotten: %v; want an error that says so and may pass", what, err)
		}
		if got := files(t, root); len(got) != 0 {
			t.Errorf("%s is forgotten: left are %q", what, got)
		}
	}
}

func TestABodyIsNotContinuedWithAnotherObject(t *testing.T) {
	s := sshd(t)
	root := t.TempDir()
	direct := s.open(t, root, nil)
	servicetest.Put(t, direct, "o", servicetest.Content(8<<20))
	st := s.behind(t, func(n int) fault {
		if n == 0 {
			return fault{up: never, down: 4 << 20}
		}
		if err := direct.Put(context.Background(), "o", bytes.NewReader(servicetest.Content(9<<20))); err != nil {
			t.Error(err)
		}
		return fault{up: never, down: never}
	}).open(t, root, nil)
	if got, err := store.ReadFile(t.Context(), st, "o", 1<<30); err == nil || !strings.Contains(err.Error(), "read o: the object was replaced") {
		t.Errorf("%d bytes, %v; want an error", len(got), err)
	}
}

// hung is a server whose files hang, though it is there itself.
type hung struct {
	pkgsftp.Handlers
	over chan struct{}
}

func (h hung) Fileread(*pkgsftp.Request) (io.ReaderAt, error) { return h, nil }
func (h hung) ReadAt([]byte, int64) (int, error)              { <-h.over; return 0, io.EOF }

func TestAServerWhoseDiskHangsIsAFailure(t *testing.T) {
	over := make(chan struct{})
	handlers := pkgsftp.InMemHandler()
	s := bare(t, "the-password", &pkgsftp.Handlers{FileGet: hung{over: over}, FilePut: handlers.FilePut, FileCmd: handlers.FileCmd, FileList: handlers.FileList})
	st := s.open(t, "/", func(o *sftp.Options) {
		o.PrivateKeyFile, o.Password, o.StallTimeout, o.MaxRetries = "", "the-password", stalls/2, -1
	})
	t.Cleanup(func() { close(over) })
	servicetest.Put(t, st, "o", servicetest.Content(100))
	begin := time.Now()
	if got, err := store.ReadFile(t.Context(), st, "o", 1<<30); err == nil || !strings.Contains(err.Error(), "stalled") {
		t.Errorf("%d bytes, %v; want an error that says that it stalled", len(got), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := store.ReadFile(ctx, st, "o", 1<<30); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want context.DeadlineExceeded", err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestAPeerThatSaysNothingIsAFailure(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := sshd(t)
	s.port = l.Addr().(*net.TCPAddr).Port
	st := s.open(t, t.TempDir(), func(o *sftp.Options) { o.StallTimeout, o.MaxRetries = stalls/4, -1 })
	_, stat := st.Stat(t.Context(), "o")
	_, read := st.Open(t.Context(), "o")
	servicetest.WantStalled(t, map[string]error{"stat o": stat, "open o": read, "delete o": st.Delete(t.Context(), "o"), "put o": st.Put(t.Context(), "o", strings.NewReader("x"))})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := st.Stat(ctx, "o"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stat: %v, want the caller's own deadline", err)
	}
}

// slow yields its bytes one by one, and takes more time between them than a connection may be silent.
type slow struct {
	left int
	wait time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(s.wait)
	s.left--
	p[0] = 'x'
	return 1, nil
}

func TestASlowSourceIsNoStall(t *testing.T) {
	var log servicetest.Log
	st := sshd(t).open(t, t.TempDir(), func(o *sftp.Options) {
		o.Logger = log.Logger()
		o.StallTimeout = stalls
	})
	if err := st.Put(t.Context(), "o", &slow{left: 2, wait: stalls * 3 / 2}); err != nil {
		t.Error(err)
	}
	servicetest.WantContent(t, st, "o", []byte("xx"))
	if log.String() != "" {
		t.Errorf("it was tried again:\n%s", log.String())
	}
}

// lame is a connection that yields little at a time.
type lame struct {
	net.Conn
	wait time.Duration
}

func (c *lame) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), 8<<10)])
	time.Sleep(c.wait)
	return n, err
}

func TestASlowConnectionIsNoStall(t *testing.T) {
	s := sshd(t)
	root := t.TempDir()
	servicetest.Put(t, s.open(t, root, nil), "o", servicetest.Content(1<<20))
	for range 3 { // the machine itself may stand still for so long
		var log servicetest.Log
		st := s.open(t, root, func(o *sftp.Options) {
			o.Logger = log.Logger()
			o.StallTimeout = stalls
			o.Wrap = func(c net.Conn) net.Conn { return &lame{c, stalls / 64} } // 2 s for 1 MiB, which is one piece
		})
		servicetest.WantContent(t, st, "o", servicetest.Content(1<<20))
		if log.String() == "" {
			return
		}
		t.Logf("it was tried again:\n%s", log.String())
	}
	t.Error("it was tried again each time")
}

// Any number of bodies may be open while other calls are made.
func TestOpenBodiesKeepNobodyWaiting(t *testing.T) {
	st := sshd(t).open(t, t.TempDir(), nil)
	servicetest.Put(t, st, "o", servicetest.Content(3<<20))
	for range 20 {
		r, err := st.Open(t.Context(), "o")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
	}
	for o, err := range st.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		servicetest.Put(t, st, o.Name+".copy", nil)
	}
	if n := st.Connections(); n != 4 {
		t.Errorf("%d connections, want 4", n)
	}
}

func TestMemoryOfManyPutsAndReadsIsBounded(t *testing.T) {
	const workers, size = 4, 48 << 20
	s := sshd(t)
	st := s.open(t, t.TempDir(), nil)
	peak := watchMemory(t, func() {
		var g sync.WaitGroup
		for i := range workers {
			g.Go(func() {
				name := fmt.Sprint("d/", i)
				if err := st.Put(t.Context(), name, io.LimitReader(servicetest.Zeros, size)); err != nil {
					t.Error(err)
					return
				}
				r, err := st.Open(t.Context(), name)
				if err != nil {
					t.Error(err)
					return
				}
				defer r.Close()
				if n, err := io.Copy(io.Discard, r); n != size || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		g.Wait()
	})
	if peak > workers*12<<20 { // in SSH's windows and here
		t.Errorf("%d puts and reads of %d MiB took up to %d MiB", workers, size>>20, peak>>20)
	}
}

// watchMemory returns by how much the heap that is in use grew at most while f ran.
func watchMemory(t *testing.T, f func()) (peak uint64) {
	t.Helper()
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	done := make(chan struct{})
	var g sync.WaitGroup
	g.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				now := live()
				peak = max(peak, now-min(before, now))
			}
		}
	})
	f()
	close(done)
	g.Wait()
	return peak
}

func TestEveryByteGoesThroughWrap(t *testing.T) {
	servicetest.TestWrap(t, 256<<10, func(wrap func(net.Conn) net.Conn) store.Store {
		return sshd(t).open(t, t.TempDir(), func(o *sftp.Options) { o.Wrap = wrap })
	})
}

func TestAFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	root := t.TempDir()
	if err := syscall.Mount("holdfast-test", root, "tmpfs", 0, "size=4m"); err != nil {
		t.Skip("needs the right to mount a small file system: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(root, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	st := sshd(t).open(t, root, nil)
	servicetest.Put(t, st, "d/o", []byte("old"))
	for _, name := range []string{"d/o", "e/new"} {
		err := st.Put(t.Context(), name, io.LimitReader(servicetest.Zeros, 32<<20))
		if !errors.Is(err, syscall.ENOSPC) || !strings.HasPrefix(err.Error(), "put "+name+": the file system of "+root) {
			t.Errorf("put %s on a full disk: %v", name, err)
		}
	}
	if got := files(t, root); !slices.Equal(got, []string{"d/o"}) {
		t.Errorf("left are %q", got)
	}
	servicetest.WantContent(t, st, "d/o", []byte("old"))
}

func TestUnfinishedObjectsAreHidden(t *testing.T) {
	root := t.TempDir()
	st := sshd(t).open(t, root, nil)
	servicetest.Put(t, st, "d/o", []byte("x"))
	temp := "d/" + unfinished.Name("o", time.Now())
	if err := os.WriteFile(filepath.Join(root, temp), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, entries := range []func(func(store.Object, error) bool){st.List(t.Context(), "d/", ""), store.Walk(t.Context(), st, "")} {
		for o, err := range entries {
			if err != nil || o.Name != "d/o" {
				t.Errorf("listed: %q, %v; want d/o alone", o.Name, err)
			}
		}
	}
	if err := st.Put(t.Context(), temp, strings.NewReader("x")); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("put under a temporary name: %v, want fs.ErrInvalid", err)
	}
}

func TestSweepRemovesWhatDeadWritersLeft(t *testing.T) {
	root := t.TempDir()
	st := sshd(t).open(t, root, nil)
	servicetest.Put(t, st, "d/e/o", []byte("x"))
	old, now := time.Now().Add(-25*time.Hour), time.Now()
	leave := func(named, modified time.Time) (name string) {
		name = "d/e/" + unfinished.Name("o", named)
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modified, modified); err != nil {
			t.Fatal(err)
		}
		return name
	}
	dead, youngName, youngTime := leave(old, old), leave(now, old), leave(old, now)
	removed, err := st.Sweep(t.Context())
	if err != nil || !slices.Equal(removed, []string{dead}) {
		t.Errorf("swept %q, %v; want %q", removed, err, dead)
	}
	want := []string{"d/e/o", youngName, youngTime}
	slices.Sort(want)
	if got := files(t, root); !slices.Equal(got, want) {
		t.Errorf("left are\n     %q\nwant %q", got, want)
	}
}

func TestLinksAreFollowed(t *testing.T) {
	root := t.TempDir()
	st := sshd(t).open(t, root, nil)
	servicetest.Put(t, st, "in/o", []byte("x"))
	for link, target := range map[string]string{"in/dir": "..", "in/file": "o"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for o, err := range st.List(t.Context(), "in/", "") {
		if err != nil {
			t.Error(err)
		}
		got = append(got, fmt.Sprint(o.Name, o.Size))
	}
	if want := []string{"in/dir/0", "in/file1", "in/o1"}; !slices.Equal(got, want) {
		t.Errorf("list in/ yields %q, want %q", got, want)
	}
	if err := os.Symlink("nowhere", filepath.Join(root, "in/broken")); err != nil {
		t.Fatal(err)
	}
	for o, err := range st.List(t.Context(), "in/", "") {
		if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "broken leads nowhere") {
			t.Errorf("list with a broken link yields %v, %v", o, err)
		}
	}
}

// What the server cannot promise is told once.
func TestAServerThatCannotSyncIsToldOnce(t *testing.T) {
	var log servicetest.Log
	st := sshdWith(t, "sftp internal-sftp -P fsync").open(t, t.TempDir(), func(o *sftp.Options) { o.Logger = log.Logger() })
	servicetest.Put(t, st, "a", []byte("x"))
	servicetest.Put(t, st, "b", []byte("x"))
	if got := strings.Count(log.String(), "fsync@openssh.com"); got != 1 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("%d lines tell of it:\n%s", got, log.String())
	}
}
