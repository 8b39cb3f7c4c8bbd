// Package servicetest is what the tests of stores that speak to a service have in common, each with its own service.
package servicetest

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/store"
)

// Stalls is a time without a byte that is short enough to wait for and long enough for a machine that is busy.
const Stalls = 500 * time.Millisecond

// Content returns n bytes, each place with its own.
func Content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>16) ^ byte(i>>8) ^ byte(i*31)
	}
	return b
}

// ReaderFunc is a function that reads.
type ReaderFunc func([]byte) (int, error)

func (f ReaderFunc) Read(p []byte) (int, error) { return f(p) }

// Zeros yields zeros without end.
var Zeros = ReaderFunc(func(p []byte) (int, error) { clear(p); return len(p), nil })

// Put puts an object or ends t.
func Put(t *testing.T, s store.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
}

// PutMany puts n objects of zeros at once.
func PutMany(t *testing.T, s store.Store, n int, size int64) {
	t.Helper()
	var g sync.WaitGroup
	for i := range n {
		g.Go(func() {
			if err := s.Put(t.Context(), fmt.Sprint(i), io.LimitReader(Zeros, size)); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
}

// Allocated returns the bytes that were allocated while f ran, whether they were in use at once or not.
func Allocated(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// WantContent fails t unless the object holds want.
func WantContent(t *testing.T, s store.Store, name string, want []byte) {
	t.Helper()
	got, err := store.ReadFile(t.Context(), s, name, 1<<30)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes, %v; want %d, or they differ", name, len(got), err, len(want))
	}
}

// WantAbsent fails t unless there is no such object.
func WantAbsent(t *testing.T, s store.Store, name string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat %s: %v, want fs.ErrNotExist", name, err)
	}
}

// WantKind fails t unless of what callers may decide on, err is kind and nothing else; nil is for what may pass.
func WantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	for _, other := range []error{fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, fs.ErrInvalid, errors.ErrUnsupported} {
		if errors.Is(err, other) != (other == kind) {
			t.Errorf("%s: %v; being %q is %v", what, err, other, errors.Is(err, other))
		}
	}
}

// Walked returns the names of all objects.
func Walked(t *testing.T, s store.Store) []string {
	t.Helper()
	names := []string{}
	for o, err := range store.Walk(t.Context(), s, "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.Name)
	}
	return names
}

// Calls is the number of calls that EachCall makes.
const Calls = 8

// EachCall makes a call of each kind, which all begin with a request of their own, and returns their errors by what these begin with.
func EachCall(t *testing.T, s store.Store) map[string]error {
	t.Helper()
	_, stat := s.Stat(t.Context(), "o")
	_, read := s.Open(t.Context(), "o")
	var list error
	for _, list = range s.List(t.Context(), "", "") {
	}
	return map[string]error{"stat o": stat, "open o": read, "list /": list, "put o": s.Put(t.Context(), "o", strings.NewReader("x")),
		"put large": s.Put(t.Context(), "large", bytes.NewReader(make([]byte, 6<<20))), "delete o": s.Delete(t.Context(), "o"),
		"delete p": store.DeleteMany(t.Context(), s, []string{"p"}), "copy o": store.Copy(t.Context(), s, "o", "p")}
}

// Succeed fails t unless a call of each kind succeeds, some on large objects. When it is read, the large object is short bytes long.
func Succeed(t *testing.T, s store.Store, short int64) {
	t.Helper()
	Put(t, s, "small", []byte("x"))
	Put(t, s, "large", Content(6<<20))
	if err := store.PutIfAbsent(t.Context(), s, "absent", strings.NewReader("x")); err != nil {
		t.Error(err)
	}
	if err := store.Copy(t.Context(), s, "small", "copy"); err != nil {
		t.Error(err)
	}
	if r, err := s.Open(t.Context(), "large"); err != nil {
		t.Error(err)
	} else if n, err := io.Copy(io.Discard, r); n != short || err != nil {
		t.Errorf("read %d bytes, %v; want as many as the answer promised that broke off", n, err)
	}
	for _, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Error(err)
		}
	}
	if err := store.DeleteMany(t.Context(), s, []string{"small", "copy"}); err != nil {
		t.Error(err)
	}
}

// WantStalled fails t unless each of the errors says that a connection stalled, and is nobody's deadline.
func WantStalled(t *testing.T, errs map[string]error) {
	t.Helper()
	for op, err := range errs {
		var timeout net.Error
		if err == nil || !strings.HasPrefix(err.Error(), op+": ") || !strings.Contains(err.Error(), "stalled") || !errors.As(err, &timeout) || !timeout.Timeout() ||
			errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v; want an error that says that the connection stalled", op, err)
		}
	}
}

// Silence returns the address of a peer that accepts, and neither reads nor writes.
func Silence(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	return l.Addr().String()
}

// Cut ends the connection of a request without an answer, or in the middle of one.
func Cut(t *testing.T, w http.ResponseWriter) (answered bool) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return true
	}
	c.Close()
	return true
}

// Log is a log to look at, which several may write to. The zero value is empty.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Logger returns what writes to l.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Lines returns how many lines were written.
func (l *Log) Lines() int { return strings.Count(l.String(), "\n") }

// Body serves one object. It breaks off after half of what is left, Breaks times.
type Body struct {
	Data   []byte
	Breaks int
	Hang   bool              // rather than to close the connection
	Header func(http.Header) // changes that of each answer, which has the version of the object in the ways of all services; nil leaves it

	mu    sync.Mutex
	asked []string
}

// Asked returns the range and the version of each request.
func (b *Body) Asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked)
}

// generation is the version of an object where that is not the MD5 of its content.
const generation = "42"

// CRC32C returns the checksum of b as services write it.
func CRC32C(b []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}

func (b *Body) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	span := r.Header.Get("Range") + r.Header.Get("X-Ms-Range")
	b.mu.Lock()
	b.asked = append(b.asked, strings.TrimSpace(span+" "+strings.Trim(r.Header.Get("If-Match"), `"`)+r.URL.Query().Get("generation")))
	breaks := len(b.asked) <= b.Breaks
	b.mu.Unlock()
	from, size := 0, len(b.Data)
	w.Header().Set("Etag", fmt.Sprintf("%x", md5.Sum(b.Data)))
	w.Header().Set("X-Goog-Generation", generation)
	w.Header().Set("X-Goog-Hash", "crc32c="+CRC32C(b.Data)+",md5=x")
	if b.Header != nil {
		b.Header(w.Header())
	}
	if _, err := fmt.Sscanf(span, "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
	}
	w.Header().Set("Content-Length", fmt.Sprint(size-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	if !breaks {
		w.Write(b.Data[from:])
		return
	}
	w.Write(b.Data[from : from+(size-from)/2])
	w.(http.Flusher).Flush()
	if b.Hang {
		<-r.Context().Done()
	}
	panic(http.ErrAbortHandler)
}

// TestReading tests the store that open returns, whose service answers to requests for the content of an object o with serve, and which takes
// a connection for stalled after Stalls and tries at most a few times again without progress.
func TestReading(t *testing.T, open func(t *testing.T, serve http.HandlerFunc) store.Store) {
	t.Run("ABodyThatBreaksOffIsContinued", func(t *testing.T) {
		data := Content(1 << 20)
		for _, hang := range []bool{false, true} {
			b := &Body{Data: data, Breaks: 2, Hang: hang}
			WantContent(t, open(t, b.ServeHTTP), "o", data)
			ok := false
			for _, version := range []string{generation, fmt.Sprintf("%x", md5.Sum(data))} {
				ok = ok || slices.Equal(b.Asked(), []string{"", fmt.Sprintf("bytes=%d-%d %s", 1<<19, 1<<20-1, version), fmt.Sprintf("bytes=%d-%d %s", 3<<18, 1<<20-1, version)})
			}
			if !ok {
				t.Errorf("hanging %v: the requests asked for %q, want the rest of the same version each time", hang, b.Asked())
			}
		}
	})
	t.Run("ABodyThatKeepsBreakingEndsInAnError", func(t *testing.T) {
		b := &Body{Data: Content(1 << 10), Breaks: 1000}
		if got, err := store.ReadFile(t.Context(), open(t, b.ServeHTTP), "o", 1<<20); err == nil || !strings.Contains(err.Error(), "read o: ") {
			t.Errorf("%d bytes, %v; want an error", len(got), err)
		}
	})
	t.Run("ARangeThatWasNotAskedForIsAnError", func(t *testing.T) {
		for what, c := range map[string]struct {
			span string
			size int
		}{"another range": {"bytes 0-9/100", 10}, "a longer range": {"bytes 10-99/100", 90}, "the whole": {"", 100}} {
			r, err := open(t, func(w http.ResponseWriter, _ *http.Request) {
				if c.span != "" {
					w.Header().Set("Content-Range", c.span)
					w.WriteHeader(http.StatusPartialContent)
				}
				w.Write(Content(c.size))
			}).OpenRange(t.Context(), "o", 10, 10)
			if err == nil {
				r.Close()
				t.Errorf("%s in answer to bytes 10 to 19 is taken", what)
			} else if !strings.Contains(err.Error(), "bytes=10-19") || !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	t.Run("SlowIsNotStalled", func(t *testing.T) {
		data := Content(100)
		for range 3 { // the machine itself may stand still for so long
			var requests atomic.Int32
			WantContent(t, open(t, func(w http.ResponseWriter, _ *http.Request) {
				requests.Add(1)
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				for i := range 10 { // altogether twice the time that a stall may last
					time.Sleep(Stalls / 5)
					w.Write(data[i*10 : i*10+10])
					w.(http.Flusher).Flush()
				}
			}), "o", data)
			if requests.Load() == 1 {
				return
			}
			t.Logf("it was tried again: %d requests", requests.Load())
		}
		t.Error("it was tried again each time")
	})
}

// TestWrap tests that every byte goes over what open's wrap makes of connections, and at most slack bytes with a put or a read of 12 MiB.
func TestWrap(t *testing.T, slack int64, open func(wrap func(net.Conn) net.Conn) store.Store) {
	t.Helper()
	var read, written atomic.Int64
	s := open(func(c net.Conn) net.Conn { return &tap{c, &read, &written} })
	read.Store(0) // of what open does
	written.Store(0)
	const size = 12 << 20
	Put(t, s, "o", Content(size))
	if got := written.Load(); got < size || got > size+slack || read.Load() > slack {
		t.Errorf("a put of %d bytes wrote %d and read %d", size, got, read.Load())
	}
	before := written.Load()
	WantContent(t, s, "o", Content(size))
	if got := read.Load(); got < size || got > size+2*slack || written.Load()-before > slack {
		t.Errorf("reading %d bytes read %d and wrote %d", size, got, written.Load()-before)
	}
}

// tap counts what goes over a connection.
type tap struct {
	net.Conn
	read, written *atomic.Int64
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c *tap) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}
