package gcs_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	"holdfast/internal/store/servicetest"
)

var customersKey = base64.StdEncoding.EncodeToString(servicetest.Content(32))

// refuse answers as the service does.
func refuse(w http.ResponseWriter, r *http.Request, status int, reason string) bool {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%d,"message":"the service says so","errors":[{"reason":%q,"message":"the service says so"}]}}`, status, reason)
	return true
}

func TestAPeerThatSaysNothingIsAFailure(t *testing.T) {
	s := open(t, servicetest.Silence(t), func(o *gcs.Options) { o.StallTimeout, o.MaxRetries, o.RawPrefix = servicetest.Stalls, -1, true })
	calls := servicetest.EachCall(t, s)
	delete(calls, "copy o") // may be silent for longer
	servicetest.WantStalled(t, calls)
}

func TestGCSIsReadToTheEnd(t *testing.T) {
	servicetest.TestReading(t, func(t *testing.T, serve http.HandlerFunc) store.Store {
		server := httptest.NewServer(serve)
		t.Cleanup(server.Close)
		return open(t, server.URL, func(o *gcs.Options) { o.StallTimeout, o.RawPrefix = servicetest.Stalls, true })
	})
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
			servicetest.Cut(t, w)
		},
		"cut while sending": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { servicetest.Cut(t, w) },
		"half an answer": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"kind":`)
			w.(http.Flusher).Flush()
			servicetest.Cut(t, w)
		},
		"stall": func(w http.ResponseWriter, r *http.Request, over chan struct{}) {
			if strings.Contains(r.URL.Path, "/rewriteTo/") { // which may be silent for longer
				servicetest.Cut(t, w)
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
			var log servicetest.Log
			s := made(t, endpoint, func(o *gcs.Options) {
				o.Bucket, o.StallTimeout, o.Logger = fmt.Sprintf("bucket-%d", bucket.Add(1)), servicetest.Stalls, log.Logger()
			})
			if _, err := s.Stat(t.Context(), "none"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stat: %v, want fs.ErrNotExist", err)
			}
			if failure != "half an answer" { // of a large put, the client gives up: the answer to an upload's beginning and end has to come whole
				if err := s.Put(t.Context(), "large", io.MultiReader(bytes.NewReader(servicetest.Content(3<<20+5)))); err != nil {
					t.Error(err)
				}
				servicetest.WantContent(t, s, "large", servicetest.Content(3<<20+5))
			}
			if err := s.Put(t.Context(), "small", io.MultiReader(strings.NewReader("small"))); err != nil {
				t.Error(err)
			}
			if failure != "half an answer" {
				servicetest.WantContent(t, s, "small", []byte("small"))
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
			if told := log.Lines(); told != int(failed.Load()) && !silently || told > int(failed.Load()) || told < 8 {
				t.Errorf("%d failures, %d lines:\n%s", failed.Load(), told, log.String())
			}
		})
	}
}

func TestRetriesEnd(t *testing.T) {
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		refuse(w, r, 503, "backendError")
	}))
	defer server.Close()
	for what, c := range map[string]struct {
		change func(*gcs.Options)
		want   int32 // requests
	}{
		"after so many": {func(o *gcs.Options) { o.MaxRetries = 2 }, 3 * servicetest.Calls},
		"without any":   {func(o *gcs.Options) { o.MaxRetries = -1 }, servicetest.Calls},
		"with patience": {func(o *gcs.Options) { o.MaxRetries, o.Patience = 1000, time.Nanosecond }, servicetest.Calls},
	} {
		calls.Store(0)
		s := open(t, server.URL, func(o *gcs.Options) {
			o.RawPrefix = true
			c.change(o)
		})
		for op, err := range servicetest.EachCall(t, s) {
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

func TestADamagedBodyIsAnError(t *testing.T) {
	data := servicetest.Content(1000)
	for _, times := range []int{0, 1} { // at once, and continued
		server := httptest.NewServer(&servicetest.Body{Data: data, Breaks: times, Header: func(h http.Header) { h.Set("X-Goog-Hash", "crc32c=AAAAAA==") }})
		defer server.Close()
		s := open(t, server.URL, func(o *gcs.Options) { o.RawPrefix = true })
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
			return io.MultiReader(bytes.NewReader(servicetest.Content(size)), servicetest.ReaderFunc(func([]byte) (int, error) { return 0, broken }))
		}, want: broken.Error()},
		"it is cancelled": {src: func(cancel func()) io.Reader {
			return io.MultiReader(bytes.NewReader(servicetest.Content(size)), servicetest.ReaderFunc(func([]byte) (int, error) { cancel(); return 1, nil }))
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
			var src io.Reader = bytes.NewReader(servicetest.Content(size))
			if c.src != nil {
				src = c.src(cancel)
			}
			for _, op := range []func(context.Context, string, io.Reader) error{s.Put, s.PutIfAbsent} {
				err := op(ctx, "o", src)
				if err == nil || !strings.HasPrefix(err.Error(), "put o: ") || !strings.Contains(err.Error(), c.want) {
					t.Errorf("put: %v; want put o: …%s…", err, c.want)
				}
				src = servicetest.ReaderFunc(func([]byte) (int, error) { return 0, errors.New(c.want) }) // broken still
			}
			servicetest.WantAbsent(t, s, "o")
			if c.front == nil { // the memory went back: there is enough for as much as can be under way at once
				for range 3 {
					servicetest.Put(t, s, "again", servicetest.Content(size))
				}
			}
		})
	}
}

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
		servicetest.WantAbsent(t, s, what)
	}
	servicetest.Put(t, s, "sound", []byte("nothing but"))
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
	data := servicetest.Content(2<<20 + 5)
	servicetest.Put(t, s, "o", data)
	servicetest.Put(t, s, "even", servicetest.Content(2<<20)) // whose end comes alone
	want := map[string]string{
		"bytes 0-1048575/*": "", "bytes 1048576-2097151/*": "",
		"bytes 2097152-2097156/2097157": "crc32c=" + servicetest.CRC32C(data),
		"bytes */2097152":               "crc32c=" + servicetest.CRC32C(servicetest.Content(2<<20)),
	}
	if !maps.Equal(sums, want) {
		t.Errorf("the chunks carried %q, want %q", sums, want)
	}
	servicetest.WantContent(t, s, "o", data)
	servicetest.WantContent(t, s, "even", servicetest.Content(2<<20))
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
				servicetest.Cut(t, w)
				return
			}
			fmt.Fprintf(w, `{"size":"%d","crc32c":%q}`, size, servicetest.CRC32C(servicetest.Content(size)))
		}
	}))
	defer server.Close()
	s := open(t, server.URL, func(o *gcs.Options) { o.RawPrefix = true })
	servicetest.Put(t, s, "o", servicetest.Content(size))
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
			fmt.Fprintf(w, `{"size":"%d","crc32c":%q}`, size, servicetest.CRC32C(make([]byte, size)))
		}
	}))
	defer server.Close()
	s := open(t, server.URL, func(o *gcs.Options) { o.RawPrefix, o.ChunkSize, o.Buffer = true, 50<<20, buffer })
	servicetest.PutMany(t, s, puts, size)
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
		for op, err := range servicetest.EachCall(t, s) {
			text := fmt.Sprint(err)
			if !strings.HasPrefix(text, op+": the service says so") || !strings.Contains(text, c.hint) {
				t.Errorf("%s, %d %s: %s; want a hint with %q", op, c.status, c.reason, text, c.hint)
			}
			servicetest.WantKind(t, op, err, c.kind)
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
		for op, err := range servicetest.EachCall(t, s) {
			if err == nil || errors.Is(err, fs.ErrNotExist) || !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "there is no bucket nobodys: see WALG_GS_PREFIX") {
				t.Errorf("%s in a missing bucket: %v", op, err)
			}
		}
	}
}

func TestAServerThatIsNotThereIsNamed(t *testing.T) {
	s := open(t, "127.0.0.1:1", func(o *gcs.Options) { o.MaxRetries = -1 })
	for op, err := range servicetest.EachCall(t, s) {
		if err == nil || !strings.HasPrefix(err.Error(), op+": ") || !strings.Contains(err.Error(), "127.0.0.1:1") ||
			!strings.Contains(err.Error(), "connection refused: see STORAGE_EMULATOR_HOST") {
			t.Errorf("%s: %v", op, err)
		}
	}
}

func TestAnAnswerThatIsNotOfGCSIsToldAsSuch(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html><p>Welcome") }))
	defer server.Close()
	var log servicetest.Log
	s := open(t, server.URL, func(o *gcs.Options) { o.Logger = log.Logger() })
	for op, err := range servicetest.EachCall(t, s) {
		if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "the answer is not one of Google Cloud Storage: see the proxy") {
			t.Errorf("%s: %v", op, err)
		}
	}
	if log.Lines() > 0 {
		t.Errorf("it was tried again:\n%s", log.String())
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
	servicetest.Put(t, s, "small", []byte("x"))
	servicetest.Put(t, s, "large", servicetest.Content(2<<20))
	servicetest.WantContent(t, s, "large", servicetest.Content(2<<20))
	if err := s.Copy(t.Context(), "small", "copy"); err != nil {
		t.Error(err)
	}
	if err := s.PutIfAbsent(t.Context(), "absent", bytes.NewReader(servicetest.Content(2<<20))); err != nil {
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
	servicetest.TestWrap(t, 64<<10, func(wrap func(net.Conn) net.Conn) store.Store {
		return made(t, service(t), func(o *gcs.Options) { o.Wrap = wrap })
	})
}
