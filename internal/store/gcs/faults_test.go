package gcs_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/gcs"
)

// stalls is short enough to wait for and long enough for a machine that is busy.
const stalls = 500 * time.Millisecond

// content returns n bytes, each place with its own.
func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>16) ^ byte(i>>8) ^ byte(i*31)
	}
	return b
}

var customersKey = base64.StdEncoding.EncodeToString(content(32))

func put(t *testing.T, s store.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t *testing.T, s store.Store, name string, want []byte) {
	t.Helper()
	got, err := store.ReadFile(t.Context(), s, name, 1<<30)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes, %v; want %d, or they differ", name, len(got), err, len(want))
	}
}

func wantAbsent(t *testing.T, s store.Store, name string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat %s: %v, want fs.ErrNotExist", name, err)
	}
}

// refuse answers as the service does.
func refuse(w http.ResponseWriter, r *http.Request, status int, reason string) bool {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%d,"message":"the service says so","errors":[{"reason":%q,"message":"the service says so"}]}}`, status, reason)
	return true
}

// cut ends the connection of a request without an answer.
func cut(t *testing.T, w http.ResponseWriter) bool {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return true
	}
	c.Close()
	return true
}

// eachCall makes a call of each kind and returns their errors.
func eachCall(t *testing.T, s *gcs.Store) map[string]error {
	t.Helper()
	_, stat := s.Stat(t.Context(), "o")
	_, read := s.Open(t.Context(), "o")
	var list error
	for _, list = range s.List(t.Context(), "", "") {
	}
	return map[string]error{"stat o": stat, "open o": read, "list /": list, "put o": s.Put(t.Context(), "o", strings.NewReader("x")),
		"put large": s.Put(t.Context(), "large", bytes.NewReader(make([]byte, 3<<20))), "delete o": s.Delete(t.Context(), "o"),
		"copy o": s.Copy(t.Context(), "o", "p")}
}

func TestAPeerThatSaysNothingIsAFailure(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // accepts, and neither reads nor writes
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	s := open(t, l.Addr().String(), func(o *gcs.Options) { o.StallTimeout, o.MaxRetries, o.RawPrefix = stalls, -1, true })
	calls := eachCall(t, s)
	delete(calls, "copy o") // may be silent for longer
	for op, err := range calls {
		var timeout net.Error
		if err == nil || !strings.HasPrefix(err.Error(), op+": ") || !strings.Contains(err.Error(), "stalled") || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s: %v; want an error that says that the connection stalled", op, err)
		}
	}
}

// firstFails lets the first requests of every kind to the service fail, and counts those.
func firstFails(t *testing.T, service string, times int, fail func(w http.ResponseWriter, r *http.Request, over chan struct{})) (endpoint string, failed *atomic.Int32) {
	t.Helper()
	over := make(chan struct{})
	defer t.Cleanup(func() { close(over) }) // before the server waits for its handlers
	var mu sync.Mutex
	seen := map[string]int{}
	failed = new(atomic.Int32)
	return behind(t, service, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		q := r.URL.Query()
		key := r.Method + r.URL.Path + q.Get("alt") + q.Get("uploadType") + r.Header.Get("Content-Range")
		seen[key]++
		fails := seen[key] <= times && r.URL.Path != "/storage/v1/b"
		mu.Unlock()
		if fails {
			failed.Add(1)
			fail(w, r, over)
		}
		return fails
	}), failed
}

// Whatever kind of failure it is that passes: every call outlives it, and the log has a line for each.
func TestFailuresThatPassAreOutlived(t *testing.T) {
	real := service(t)
	var bucket atomic.Int32
	for failure, fail := range map[string]func(w http.ResponseWriter, r *http.Request, over chan struct{}){
		"500": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { refuse(w, r, 500, "backendError") },
		"503": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { refuse(w, r, 503, "backendError") },
		"429": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { refuse(w, r, 429, "rateLimitExceeded") },
		"408": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { refuse(w, r, 408, "requestTimeout") },
		"cut": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) {
			io.Copy(io.Discard, r.Body)
			cut(t, w)
		},
		"cut while sending": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { cut(t, w) },
		"half an answer": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"kind":`)
			w.(http.Flusher).Flush()
			cut(t, w)
		},
		"stall": func(w http.ResponseWriter, r *http.Request, over chan struct{}) {
			if strings.Contains(r.URL.Path, "/rewriteTo/") { // which may be silent for longer
				cut(t, w)
				return
			}
			<-over
		},
	} {
		t.Run(failure, func(t *testing.T) {
			t.Parallel()
			times := 2
			if failure == "stall" {
				times = 1
			}
			endpoint, failed := firstFails(t, real, times, fail)
			var log logs
			s := made(t, endpoint, func(o *gcs.Options) {
				o.Bucket, o.StallTimeout, o.Logger = fmt.Sprintf("bucket-%d", bucket.Add(1)), stalls, log.logger()
			})
			if _, err := s.Stat(t.Context(), "none"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stat: %v, want fs.ErrNotExist", err)
			}
			if failure != "half an answer" { // of a large put, the client gives up: the answer to an upload's beginning and end has to come whole
				if err := s.Put(t.Context(), "large", io.MultiReader(bytes.NewReader(content(3<<20+5)))); err != nil {
					t.Error(err)
				}
				wantContent(t, s, "large", content(3<<20+5))
			}
			if err := s.Put(t.Context(), "small", io.MultiReader(strings.NewReader("small"))); err != nil {
				t.Error(err)
			}
			if failure != "half an answer" {
				wantContent(t, s, "small", []byte("small"))
			}
			if err := s.Copy(t.Context(), "small", "copy"); err != nil {
				t.Error(err)
			}
			var names []string
			for o, err := range s.Walk(t.Context(), "") {
				if err != nil {
					t.Error(err)
				}
				names = append(names, o.Name)
			}
			if len(names) < 2 || !slices.Contains(names, "copy") {
				t.Errorf("the listing is %q", names)
			}
			if err := s.DeleteMany(t.Context(), names); err != nil {
				t.Error(err)
			}
			// When a connection breaks that was used before, net/http takes another one for what has no body.
			silently := strings.HasPrefix(failure, "cut") || failure == "half an answer" || failure == "stall"
			if told := log.lines(); told != int(failed.Load()) && !silently || told > int(failed.Load()) || told < 8 {
				t.Errorf("%d failures, %d lines:\n%s", failed.Load(), told, log.text())
			}
		})
	}
}

// logs is a log to look at.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logs) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logs) lines() int { return strings.Count(l.text(), "\n") }

func TestRetriesEnd(t *testing.T) {
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		refuse(w, r, 503, "backendError")
	}))
	defer server.Close()
	for what, c := range map[string]struct {
		change func(*gcs.Options)
		want   int32 // requests; there are seven calls
	}{
		"after so many": {func(o *gcs.Options) { o.MaxRetries = 2 }, 21},
		"without any":   {func(o *gcs.Options) { o.MaxRetries = -1 }, 7},
		"with patience": {func(o *gcs.Options) { o.MaxRetries, o.Patience = 1000, time.Nanosecond }, 7},
	} {
		calls.Store(0)
		s := open(t, server.URL, func(o *gcs.Options) {
			o.RawPrefix = true
			c.change(o)
		})
		for op, err := range eachCall(t, s) {
			if err == nil || !strings.Contains(err.Error(), "the service says so (status 503)") {
				t.Errorf("%s, %s: %v; want what the service said", what, op, err)
			}
		}
		if calls.Load() != c.want {
			t.Errorf("%s: %d requests, want %d", what, calls.Load(), c.want)
		}
	}
	s := open(t, server.URL, func(o *gcs.Options) {
		o.RawPrefix, o.MaxRetries, o.MaxBackoff, o.Timeout = true, 1000, 50*time.Millisecond, 200*time.Millisecond
	})
	_, stat := s.Stat(t.Context(), "o")
	for op, err := range map[string]error{"stat": stat, "delete": s.Delete(t.Context(), "o"), "large put": s.Put(t.Context(), "o", bytes.NewReader(make([]byte, 3<<20)))} {
		if err == nil || !strings.Contains(err.Error(), "not done within 200ms, which is GCS_CONTEXT_TIMEOUT") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// breaking serves data for the reading of an object, but breaks off after half of what is left, times times.
func breaking(t *testing.T, data []byte, times int32, hang bool, damage func(h http.Header)) (endpoint string, asked func() []string) {
	t.Helper()
	over := make(chan struct{})
	var mu sync.Mutex
	var requests []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		requests = append(requests, strings.TrimSpace(r.Header.Get("Range")+" "+r.URL.Query().Get("generation")))
		breaks := len(requests) <= int(times)
		mu.Unlock()
		var from int
		w.Header().Set("X-Goog-Generation", "42")
		w.Header().Set("X-Goog-Hash", "crc32c="+crc32c(data)+",md5=x")
		if damage != nil {
			damage(w.Header())
		}
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		if !breaks {
			w.Write(data[from:])
			return
		}
		w.Write(data[from : from+(len(data)-from)/2])
		w.(http.Flusher).Flush()
		if hang {
			<-over
		}
		cut(t, w)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(over) })
	return server.URL, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(requests)
	}
}

func TestABodyThatBreaksOffIsContinued(t *testing.T) {
	data := content(1 << 20)
	for _, hang := range []bool{false, true} {
		endpoint, asked := breaking(t, data, 2, hang, nil)
		s := open(t, endpoint, func(o *gcs.Options) { o.StallTimeout, o.RawPrefix = stalls, true })
		wantContent(t, s, "o", data)
		want := []string{"", fmt.Sprintf("bytes=%d-%d 42", 1<<19, 1<<20-1), fmt.Sprintf("bytes=%d-%d 42", 3<<18, 1<<20-1)}
		if got := asked(); !slices.Equal(got, want) {
			t.Errorf("hanging %v: the requests asked for %q, want %q", hang, got, want)
		}
	}
}

func TestABodyThatKeepsBreakingEndsInAnError(t *testing.T) {
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) > 1 {
			w.Header().Set("Content-Range", "bytes 0-999/1000")
		}
		w.Header().Set("Content-Length", "1000")
		w.(http.Flusher).Flush()
		cut(t, w)
	}))
	defer server.Close()
	var log logs
	s := open(t, server.URL, func(o *gcs.Options) { o.RawPrefix, o.Logger = true, log.logger() })
	if b, err := store.ReadFile(t.Context(), s, "o", 1<<20); err == nil || !strings.Contains(err.Error(), "read o: ") {
		t.Errorf("%d bytes, %v; want an error", len(b), err)
	}
	if requests.Load() != 4 || log.lines() != 3 {
		t.Errorf("%d requests and %d lines, want 4 and 3:\n%s", requests.Load(), log.lines(), log.text())
	}
}

func TestADamagedBodyIsAnError(t *testing.T) {
	data := content(1000)
	for _, times := range []int32{0, 1} { // at once, and continued
		endpoint, _ := breaking(t, data, times, false, func(h http.Header) { h.Set("X-Goog-Hash", "crc32c=AAAAAA==") })
		s := open(t, endpoint, func(o *gcs.Options) { o.RawPrefix = true })
		if b, err := store.ReadFile(t.Context(), s, "o", 1<<20); err == nil || !strings.Contains(err.Error(), "do not match their checksum") {
			t.Errorf("%d bytes, %v; want an error about the checksum", len(b), err)
		}
		r, err := s.OpenRange(t.Context(), "o", 10, -1) // has no checksum of its own
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, data[10:]) {
			t.Errorf("from byte 10 on: %d bytes, %v", len(b), err)
		}
		r.Close()
	}
}

func TestARangeThatWasNotAskedForIsAnError(t *testing.T) {
	for what, answer := range map[string]func(w http.ResponseWriter){
		"another range": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 0-9/100")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(content(10))
		},
		"a longer range": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 10-99/100")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(content(90))
		},
		"the whole": func(w http.ResponseWriter) { w.Write(content(100)) },
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w) }))
		r, err := open(t, server.URL, func(o *gcs.Options) { o.RawPrefix = true }).OpenRange(t.Context(), "o", 10, 10)
		if err == nil {
			r.Close()
			t.Errorf("%s in answer to bytes 10 to 19 is taken", what)
		} else if !strings.Contains(err.Error(), "bytes=10-19") || !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
		server.Close()
	}
}

func TestAFailedLargePutLeavesNothing(t *testing.T) {
	real := service(t)
	broken := errors.New("the source broke")
	const size = 5 << 20
	var bucket atomic.Int32
	for what, c := range map[string]struct {
		front func(w http.ResponseWriter, r *http.Request) bool
		src   func(cancel func()) io.Reader
		want  string
	}{
		"its beginning is refused": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return r.URL.Query().Get("uploadType") == "resumable" && r.URL.Query().Get("upload_id") == "" && refuse(w, r, 403, "forbidden")
		}, want: "the service says so"},
		"a chunk is refused": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return strings.HasPrefix(r.Header.Get("Content-Range"), "bytes 2097152-") && refuse(w, r, 403, "forbidden")
		}, want: "the service says so"},
		"the upload is lost": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return strings.HasPrefix(r.Header.Get("Content-Range"), "bytes 2097152-") && refuse(w, r, 410, "gone")
		}, want: "the service has lost this upload"},
		"the service is out of order": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return strings.HasPrefix(r.Header.Get("Content-Range"), "bytes 4194304-") && refuse(w, r, 500, "backendError")
		}, want: "the service says so"},
		"the source breaks": {src: func(func()) io.Reader {
			return io.MultiReader(bytes.NewReader(content(size)), readerFunc(func([]byte) (int, error) { return 0, broken }))
		}, want: broken.Error()},
		"it is cancelled": {src: func(cancel func()) io.Reader {
			return io.MultiReader(bytes.NewReader(content(size)), readerFunc(func([]byte) (int, error) { cancel(); return 1, nil }))
		}, want: context.Canceled.Error()},
	} {
		t.Run(what, func(t *testing.T) {
			endpoint := real
			if c.front != nil {
				endpoint = behind(t, real, c.front)
			}
			s := made(t, endpoint, func(o *gcs.Options) { o.Bucket, o.Buffer = fmt.Sprintf("bucket-%d", bucket.Add(1)), 4<<20 })
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var src io.Reader = bytes.NewReader(content(size))
			if c.src != nil {
				src = c.src(cancel)
			}
			for _, op := range []func(context.Context, string, io.Reader) error{s.Put, s.PutIfAbsent} {
				err := op(ctx, "o", src)
				if err == nil || !strings.HasPrefix(err.Error(), "put o: ") || !strings.Contains(err.Error(), c.want) {
					t.Errorf("put: %v; want put o: …%s…", err, c.want)
				}
				src = readerFunc(func([]byte) (int, error) { return 0, errors.New(c.want) }) // broken still
			}
			wantAbsent(t, s, "o")
			if c.front == nil { // the memory went back: there is enough for as much as can be under way at once
				for range 3 {
					put(t, s, "again", content(size))
				}
			}
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A byte that changes on the way is found out, whoever looks; nothing of it stays.
func TestADamagedPutIsAnError(t *testing.T) {
	real := service(t)
	endpoint := behind(t, real, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("uploadType") == "" {
			return false
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(bytes.ReplaceAll(body, []byte("the truth"), []byte("the tooth"))))
		return false
	})
	s := made(t, endpoint, nil)
	for what, data := range map[string]string{"small": "the truth", "large": "the truth" + strings.Repeat("x", 3<<20)} {
		if err := s.Put(t.Context(), what, strings.NewReader(data)); err == nil || !strings.Contains(err.Error(), "CRC32C") && !strings.Contains(err.Error(), "checksum") {
			t.Errorf("%s: %v, want an error about the checksum", what, err)
		}
		wantAbsent(t, s, what)
	}
	put(t, s, "sound", []byte("nothing but"))
}

func TestTheLastChunkCarriesTheChecksum(t *testing.T) {
	var mu sync.Mutex
	sums := map[string]string{}
	endpoint := behind(t, service(t), func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if chunk := r.Header.Get("Content-Range"); chunk != "" {
			sums[chunk] = r.Header.Get("X-Goog-Hash")
		}
		return false
	})
	s := made(t, endpoint, nil)
	data := content(2<<20 + 5)
	put(t, s, "o", data)
	put(t, s, "even", content(2<<20)) // whose end comes alone
	want := map[string]string{
		"bytes 0-1048575/*": "", "bytes 1048576-2097151/*": "",
		"bytes 2097152-2097156/2097157": "crc32c=" + crc32c(data),
		"bytes */2097152":               "crc32c=" + crc32c(content(2<<20)),
	}
	if !maps.Equal(sums, want) {
		t.Errorf("the chunks carried %q, want %q", sums, want)
	}
	wantContent(t, s, "o", data)
	wantContent(t, s, "even", content(2<<20))
}

// The answer to the end of an upload may get lost when all is done: it is asked for again.
func TestALostAnswerToTheEndOfALargePutIsNoFailure(t *testing.T) {
	var ends atomic.Int32
	size := 2<<20 + 5
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		switch part := r.Header.Get("Content-Range"); {
		case part == "":
			w.Header().Set("Location", "http://"+r.Host+"/upload?upload_id=1")
		case strings.HasSuffix(part, "/*"):
			w.Header().Set("X-Http-Status-Code-Override", "308")
		default:
			if ends.Add(1) == 1 {
				cut(t, w)
				return
			}
			fmt.Fprintf(w, `{"size":"%d","crc32c":%q}`, size, crc32c(content(size)))
		}
	}))
	defer server.Close()
	s := open(t, server.URL, func(o *gcs.Options) { o.RawPrefix = true })
	put(t, s, "o", content(size))
	if ends.Load() != 2 {
		t.Errorf("the end was sent %d times, want twice", ends.Load())
	}
}

func TestMemoryOfManyPutsIsBounded(t *testing.T) {
	const puts, size, buffer = 6, 10 << 20, 8 << 20
	var received, most atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		received.Add(n)
		switch part := r.Header.Get("Content-Range"); {
		case part == "":
			w.Header().Set("Location", "http://"+r.Host+"/upload?upload_id=1")
		case strings.HasSuffix(part, "/*"):
			most.Store(max(most.Load(), n))
			w.Header().Set("X-Http-Status-Code-Override", "308")
		default:
			fmt.Fprintf(w, `{"size":"%d","crc32c":%q}`, size, crc32c(make([]byte, size)))
		}
	}))
	defer server.Close()
	s := open(t, server.URL, func(o *gcs.Options) { o.RawPrefix, o.ChunkSize, o.Buffer = true, 50<<20, buffer })
	var g sync.WaitGroup
	for i := range puts {
		g.Go(func() {
			if err := s.Put(t.Context(), fmt.Sprint(i), io.LimitReader(zeros{}, size)); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if got := s.MostMemory(); got > buffer || got < buffer/2 {
		t.Errorf("puts took %d bytes at once, want at most %d", got, buffer)
	}
	if most.Load() != buffer/2 { // each put has a chunk under way and one being filled
		t.Errorf("chunks are of %d bytes, want the half of the memory", most.Load())
	}
	if received.Load() < puts*size {
		t.Errorf("%d bytes arrived, want %d", received.Load(), puts*size)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestErrorsNameTheSettingAndNoSecret(t *testing.T) {
	for _, c := range []struct {
		status int
		reason string
		kind   error
		hint   string
	}{
		{401, "authError", fs.ErrPermission, "GOOGLE_APPLICATION_CREDENTIALS"},
		{403, "forbidden", fs.ErrPermission, "GOOGLE_APPLICATION_CREDENTIALS"},
		{403, "retentionPolicyNotMet", fs.ErrPermission, "retention"},
		{403, "rateLimitExceeded", nil, "the service says so"},
		{400, "customerEncryptionKeyIsIncorrect", fs.ErrInvalid, "GCS_ENCRYPTION_KEY"},
		{400, "resourceIsEncryptedWithCustomerEncryptionKey", fs.ErrInvalid, "GCS_ENCRYPTION_KEY"},
		{400, "invalid", fs.ErrInvalid, "the service says so"},
		{301, "moved", fs.ErrInvalid, "the service says so"},
		{409, "conflict", nil, "the service says so"},
		{429, "rateLimitExceeded", nil, "the service says so"},
		{500, "backendError", nil, "the service says so"},
		{501, "notImplemented", errors.ErrUnsupported, "cannot do that"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { refuse(w, r, c.status, c.reason) }))
		s := open(t, server.URL, func(o *gcs.Options) { o.RawPrefix, o.MaxRetries, o.EncryptionKey = true, -1, customersKey })
		for op, err := range eachCall(t, s) {
			text := fmt.Sprint(err)
			if !strings.HasPrefix(text, op+": the service says so") || !strings.Contains(text, c.hint) {
				t.Errorf("%s, %d %s: %s; want a hint with %q", op, c.status, c.reason, text, c.hint)
			}
			for _, kind := range []error{fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, fs.ErrInvalid, errors.ErrUnsupported} {
				if errors.Is(err, kind) != (kind == c.kind) {
					t.Errorf("%s, %d %s: %v; being %q is %v", op, c.status, c.reason, err, kind, errors.Is(err, kind))
				}
			}
			if strings.Contains(text, customersKey) || strings.Contains(fmt.Sprintf("%+v", err), customersKey) {
				t.Errorf("%s: the error holds a secret: %s", op, text)
			}
		}
		server.Close()
	}
}

func TestAMissingBucketIsNoMissingObject(t *testing.T) {
	real := service(t)
	for _, raw := range []bool{false, true} {
		s := open(t, real, func(o *gcs.Options) { o.Bucket, o.RawPrefix = "nobodys", raw })
		for op, err := range eachCall(t, s) {
			if err == nil || errors.Is(err, fs.ErrNotExist) || !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "there is no bucket nobodys: see WALG_GS_PREFIX") {
				t.Errorf("%s in a missing bucket: %v", op, err)
			}
		}
	}
}

func TestAServerThatIsNotThereIsNamed(t *testing.T) {
	s := open(t, "127.0.0.1:1", func(o *gcs.Options) { o.MaxRetries = -1 })
	for op, err := range eachCall(t, s) {
		if err == nil || !strings.HasPrefix(err.Error(), op+": ") || !strings.Contains(err.Error(), "127.0.0.1:1") ||
			!strings.Contains(err.Error(), "connection refused: see STORAGE_EMULATOR_HOST") {
			t.Errorf("%s: %v", op, err)
		}
	}
}

func TestAnAnswerThatIsNotOfGCSIsToldAsSuch(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html><p>Welcome") }))
	defer server.Close()
	var log logs
	s := open(t, server.URL, func(o *gcs.Options) { o.Logger = log.logger() })
	for op, err := range eachCall(t, s) {
		if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "the answer is not one of Google Cloud Storage: see the proxy") {
			t.Errorf("%s: %v", op, err)
		}
	}
	if log.lines() > 0 {
		t.Errorf("it was tried again:\n%s", log.text())
	}
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	for endpoint, want := range map[string]string{secure.URL: "certificates", strings.Replace(server.URL, "http", "https", 1): "begin STORAGE_EMULATOR_HOST with http://"} {
		if _, err := open(t, endpoint, nil).Stat(t.Context(), "o"); !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("at %s: %v; want …%s…", endpoint, err, want)
		}
	}
}

func TestTheCustomersKeyGoesWithEveryRequest(t *testing.T) {
	var mu sync.Mutex
	lacking, tested := map[string]bool{}, 0
	endpoint := behind(t, service(t), func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodDelete || strings.HasSuffix(r.URL.Path, "/o") && r.Method == http.MethodGet || r.URL.Path == "/storage/v1/b" || r.Header.Get("Content-Range") != "" {
			return false // not about contents, or a chunk of an upload that began with the key
		}
		mu.Lock()
		defer mu.Unlock()
		tested++
		prefixes := []string{"X-Goog-"}
		if strings.Contains(r.URL.Path, "/rewriteTo/") {
			prefixes = append(prefixes, "X-Goog-Copy-Source-")
		}
		for _, prefix := range prefixes {
			if r.Header.Get(prefix+"Encryption-Algorithm") != "AES256" || r.Header.Get(prefix+"Encryption-Key") != customersKey || r.Header.Get(prefix+"Encryption-Key-Sha256") == "" {
				lacking[r.Method+" "+r.URL.Path] = true
			}
		}
		return false
	})
	s := made(t, endpoint, func(o *gcs.Options) { o.EncryptionKey = customersKey })
	put(t, s, "small", []byte("x"))
	put(t, s, "large", content(2<<20))
	wantContent(t, s, "large", content(2<<20))
	if err := s.Copy(t.Context(), "small", "copy"); err != nil {
		t.Error(err)
	}
	if err := s.PutIfAbsent(t.Context(), "absent", bytes.NewReader(content(2<<20))); err != nil {
		t.Error(err)
	}
	if _, err := s.Stat(t.Context(), "small"); err != nil {
		t.Error(err)
	}
	if len(lacking) != 0 || tested < 7 {
		t.Errorf("%d requests, without the key: %v", tested, lacking)
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for want, o := range map[string]gcs.Options{
		"\"\" is not the name of a bucket":    {},
		"\"b/c\" is not the name of a bucket": {Bucket: "b/c"},
		"less than 256 KiB":                   {Bucket: "b", ChunkSize: 1000},
		"GCS_ENCRYPTION_KEY":                  {Bucket: "b", EncryptionKey: "c2hvcnQtc2VjcmV0"},
		"is not a URL":                        {Bucket: "b", Endpoint: "https://user:pass-secret@host"},
	} {
		_, err := gcs.New(o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pass-secret") || strings.Contains(err.Error(), "c2hvcn") {
			t.Errorf("New: %v; want …%s…", err, want)
		}
	}
}

func TestEveryByteGoesThroughWrap(t *testing.T) {
	var read atomic.Int64
	s := made(t, service(t), func(o *gcs.Options) { o.Wrap = func(c net.Conn) net.Conn { return &tap{c, &read} } })
	put(t, s, "o", content(1<<20))
	if wantContent(t, s, "o", content(1<<20)); read.Load() < 1<<20 {
		t.Errorf("%d bytes were read through Wrap", read.Load())
	}
}

type tap struct {
	net.Conn
	read *atomic.Int64
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}
