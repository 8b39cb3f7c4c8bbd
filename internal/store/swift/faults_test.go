package swift_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	"holdfast/internal/store/servicetest"
	"holdfast/internal/store/swift"
)

// wantSegments fails t unless the container of segments holds so many.
func wantSegments(t *testing.T, s *swift.Store, want int) {
	t.Helper()
	if keys, err := s.Keys(t.Context(), "archive_segments"); err != nil || len(keys) != want {
		t.Errorf("the container of segments holds %d, want %d: %q, %v", len(keys), want, keys, err)
	}
}

// refuse answers as Swift does.
func refuse(w http.ResponseWriter, r *http.Request, status int) bool {
	io.Copy(io.Discard, r.Body)
	http.Error(w, "<html><h1>No</h1><p>the service says so</p></html>", status)
	return true
}

// isLogin reports whether a request is for a token.
func isLogin(r *http.Request) bool { return r.URL.Path == "/v1.0" }

// unlessLogin is a status that only storage answers with.
func unlessLogin(r *http.Request, status int) int {
	if isLogin(r) || r.URL.Path == "/info" {
		return http.StatusServiceUnavailable
	}
	return status
}

func TestAPeerThatSaysNothingIsAFailure(t *testing.T) {
	address := "http://" + servicetest.Silence(t)
	for what, change := range map[string]func(*swift.Options){
		"authentication": func(o *swift.Options) { o.AuthURL = address + "/v1.0" },
		"storage":        func(o *swift.Options) { o.AuthURL, o.StorageURL, o.AuthToken = "", address+"/v1/AUTH_x", "the-token" },
	} {
		s := open(t, "", func(o *swift.Options) {
			o.StallTimeout, o.MaxRetries = servicetest.Stalls, -1
			change(o)
		})
		t.Run(what, func(t *testing.T) { servicetest.WantStalled(t, servicetest.EachCall(t, s)) })
	}
}

// serving is a store whose service answers to requests for the content of the object o with serve.
func serving(t *testing.T, serve http.HandlerFunc) *swift.Store {
	t.Helper()
	return made(t, start(t, func(w http.ResponseWriter, r *http.Request) bool {
		asked := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/archive/pre/fix/o")
		if asked {
			serve(w, r)
		}
		return asked
	}), func(o *swift.Options) { o.StallTimeout = servicetest.Stalls })
}

func TestSwiftIsReadToTheEnd(t *testing.T) {
	servicetest.TestReading(t, func(t *testing.T, serve http.HandlerFunc) store.Store { return serving(t, serve) })
}

// Whatever kind of failure it is that passes: every call outlives it, and the log has a line for each.
func TestFailuresThatPassAreOutlived(t *testing.T) {
	for failure, fail := range map[string]func(w http.ResponseWriter, r *http.Request, over chan struct{}){
		"500": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { refuse(w, r, 500) },
		"503": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { refuse(w, r, 503) },
		"429": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { refuse(w, r, 429) },
		"498": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { refuse(w, r, unlessLogin(r, 498)) },
		"cut": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) {
			io.Copy(io.Discard, r.Body)
			servicetest.Cut(t, w)
		},
		"cut while sending": func(w http.ResponseWriter, r *http.Request, _ chan struct{}) { servicetest.Cut(t, w) },
		"stall": func(w http.ResponseWriter, r *http.Request, over chan struct{}) {
			if r.Method == "COPY" || r.URL.Query().Get("multipart-manifest") == "put" { // which may be silent for longer
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
			over := make(chan struct{})
			var mu sync.Mutex
			seen := map[string]int{}
			var failed atomic.Int32
			authURL := start(t, func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				path := r.URL.Path
				if strings.Contains(path, "/holdfast-") { // its time and random part differ each time
					path = path[strings.LastIndex(path, "/"):]
				}
				key := r.Method + path + r.URL.RawQuery
				seen[key]++
				fails := seen[key] <= times && key != "PUT/v1/AUTH_swifttest/archive"
				mu.Unlock()
				if fails {
					failed.Add(1)
					fail(w, r, over)
				}
				return fails
			})
			t.Cleanup(func() { close(over) }) // before the server waits for its handlers
			var log servicetest.Log
			s := open(t, authURL, func(o *swift.Options) { o.StallTimeout, o.Logger = servicetest.Stalls, log.Logger() })
			for _, err := range s.List(t.Context(), "", "") { // logs in
				if !strings.Contains(fmt.Sprint(err), "there is no container archive") {
					t.Fatal(err)
				}
			}
			if err := s.CreateContainer(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Stat(t.Context(), "none"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stat: %v, want fs.ErrNotExist", err)
			}
			for name, size := range map[string]int{"small": 1000, "large": 3<<20 + 5} {
				if err := s.Put(t.Context(), name, io.MultiReader(bytes.NewReader(servicetest.Content(size)))); err != nil {
					t.Error(err)
				}
				servicetest.WantContent(t, s, name, servicetest.Content(size))
				if err := s.Copy(t.Context(), name, "copy-of-"+name); err != nil {
					t.Error(err)
				}
				servicetest.WantContent(t, s, "copy-of-"+name, servicetest.Content(size))
			}
			wantSegments(t, s, 8)
			var names []string
			for o, err := range s.Walk(t.Context(), "") {
				if err != nil {
					t.Error(err)
				}
				names = append(names, o.Name)
			}
			if want := []string{"copy-of-large", "copy-of-small", "large", "small"}; !slices.Equal(names, want) {
				t.Errorf("the listing is %q, want %q", names, want)
			}
			if err := s.DeleteMany(t.Context(), names); err != nil {
				t.Error(err)
			}
			wantSegments(t, s, 0)
			// When a connection breaks that was used before, net/http takes another one for what has no body.
			silently := strings.HasPrefix(failure, "cut") || failure == "stall"
			if told := log.Lines(); told != int(failed.Load()) && !silently || told > int(failed.Load()) || told < 20 {
				t.Errorf("%d failures, %d lines:\n%s", failed.Load(), told, log.String())
			}
		})
	}
}

func TestRetriesEnd(t *testing.T) {
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		refuse(w, r, 503)
	}))
	defer server.Close()
	for what, c := range map[string]struct {
		change func(*swift.Options)
		want   int32 // requests
	}{
		"after so many": {func(o *swift.Options) { o.MaxRetries = 2 }, 3 * servicetest.Calls},
		"without any":   {func(o *swift.Options) { o.MaxRetries = -1 }, servicetest.Calls},
		"with patience": {func(o *swift.Options) { o.MaxRetries, o.Patience = 1000, time.Nanosecond }, servicetest.Calls},
	} {
		calls.Store(0)
		s := open(t, "", func(o *swift.Options) {
			o.StorageURL, o.AuthToken = server.URL+"/v1/AUTH_x", "the-token"
			c.change(o)
		})
		for op, err := range servicetest.EachCall(t, s) {
			if err == nil || !strings.HasPrefix(err.Error(), op+": Service Unavailable") || !strings.Contains(err.Error(), "(status 503)") {
				t.Errorf("%s, %s: %v; want the status", what, op, err)
			}
		}
		if calls.Load() != c.want {
			t.Errorf("%s: %d requests, want %d", what, calls.Load(), c.want)
		}
	}
}

func TestADamagedBodyIsAnError(t *testing.T) {
	data := servicetest.Content(1000)
	for _, times := range []int{0, 1} { // at once, and continued
		b := &servicetest.Body{Data: data, Breaks: times, Header: func(h http.Header) { h.Set("Etag", etagOf(nil)) }}
		s := serving(t, b.ServeHTTP)
		if b, err := store.ReadFile(t.Context(), s, "o", 1<<20); err == nil || !strings.Contains(err.Error(), "do not match their checksum") {
			t.Errorf("%d bytes, %v; want an error about the checksum", len(b), err)
		}
	}
	b := &servicetest.Body{Data: data, Header: func(h http.Header) { // the ETag of an object with segments is another sum
		h.Set("Etag", etagOf(nil))
		h.Set("X-Static-Large-Object", "True")
	}}
	servicetest.WantContent(t, serving(t, b.ServeHTTP), "o", data)
}

func TestABodyIsNotContinuedWithAnotherObject(t *testing.T) {
	var gets atomic.Int32
	data := servicetest.Content(1 << 20)
	s := made(t, start(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/o") || gets.Add(1) > 1 {
			return false
		}
		w.Header().Set("Etag", etagOf([]byte("another")))
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data[:1000])
		w.(http.Flusher).Flush()
		return servicetest.Cut(t, w)
	}), nil)
	servicetest.Put(t, s, "o", data[:1000])
	if b, err := store.ReadFile(t.Context(), s, "o", 2<<20); err == nil || !strings.Contains(err.Error(), "it was replaced meanwhile") {
		t.Errorf("%d bytes, %v; want an error", len(b), err)
	}
}

func TestAFailedLargePutLeavesNothing(t *testing.T) {
	broken := errors.New("the source broke")
	const size = 5 << 20
	isManifest := func(r *http.Request) bool { return r.URL.Query().Get("multipart-manifest") == "put" }
	for what, c := range map[string]struct {
		front func(w http.ResponseWriter, r *http.Request) bool
		src   func(cancel func()) io.Reader
		want  string
		left  int  // segments, for Sweep
		late  bool // segments that are under way when the put is given up may come to be put after the others were removed, for Sweep too
	}{
		"a segment is refused": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/00000003") && refuse(w, r, 403)
		}, want: "see OS_USERNAME", late: true},
		"the manifest is refused": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return isManifest(r) && refuse(w, r, 400)
		}, want: "(status 400)"},
		"the service is out of order": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return isManifest(r) && refuse(w, r, 503) // it may still come to put the manifest
		}, want: "(status 503)", left: 5},
		"there are no large objects": {front: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/info" {
				fmt.Fprint(w, `{"swift":{}}`)
			}
			return r.URL.Path == "/info"
		}, want: "no object can be larger than a segment, which is 1048576 bytes"},
		"there can be no container for segments": {front: func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/archive_segments") && refuse(w, r, 403)
		}, want: "objects above 1048576 bytes need a container archive_segments: create it"},
		"the source breaks": {src: func(func()) io.Reader {
			return io.MultiReader(bytes.NewReader(servicetest.Content(size)), servicetest.ReaderFunc(func([]byte) (int, error) { return 0, broken }))
		}, want: broken.Error(), late: true},
		"it is cancelled": {src: func(cancel func()) io.Reader {
			return io.MultiReader(bytes.NewReader(servicetest.Content(size)), servicetest.ReaderFunc(func([]byte) (int, error) { cancel(); return 1, nil }))
		}, want: context.Canceled.Error(), late: true},
	} {
		t.Run(what, func(t *testing.T) {
			authURL := start(t, c.front)
			s := made(t, authURL, func(o *swift.Options) { o.Buffer = 2 << 20 })
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var src io.Reader = bytes.NewReader(servicetest.Content(size))
			if c.src != nil {
				src = c.src(cancel)
			}
			err := s.Put(ctx, "o", src)
			if err == nil || !strings.HasPrefix(err.Error(), "put o: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("put: %v; want put o: …%s…", err, c.want)
			}
			servicetest.WantAbsent(t, s, "o")
			if c.late {
				if resp, err := http.Get(strings.TrimSuffix(authURL, "/v1.0") + "/idle"); err != nil {
					t.Error(err)
				} else {
					resp.Body.Close()
				}
			} else {
				wantSegments(t, s, c.left)
			}
			if removed, err := s.SweepOlder(t.Context(), time.Now().Add(time.Hour)); err != nil || !c.late && len(removed) != c.left || len(removed) > size>>20 {
				t.Errorf("swept %q, %v; want %d", removed, err, c.left)
			}
			wantSegments(t, s, 0)
			if c.front == nil { // the memory went back: there is enough for as much as can be under way at once
				for range 3 {
					servicetest.Put(t, s, "again", servicetest.Content(size))
				}
				wantSegments(t, s, 5)
			}
		})
	}
}

// The answer to a manifest may get lost when the object is there.
func TestALostAnswerToAManifestIsNoFailure(t *testing.T) {
	var puts atomic.Int32
	var authURL string
	authURL = start(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("multipart-manifest") != "put" || r.Header.Get("Again") != "" {
			return false
		}
		puts.Add(1)
		again := r.Clone(r.Context())
		again.Header.Set("Again", "1")
		again.URL.Scheme, again.URL.Host, again.RequestURI = "http", r.Host, ""
		resp, err := http.DefaultTransport.RoundTrip(again)
		if err != nil {
			t.Error(err)
		} else {
			resp.Body.Close()
		}
		return refuse(w, r, 503)
	})
	s := made(t, authURL, nil)
	servicetest.Put(t, s, "o", servicetest.Content(3<<20))
	servicetest.WantContent(t, s, "o", servicetest.Content(3<<20))
	wantSegments(t, s, 3)
	if puts.Load() != 4 {
		t.Errorf("the manifest was put %d times, want as often as may be", puts.Load())
	}
}

func TestADamagedPutIsSentAgain(t *testing.T) {
	var damaged atomic.Int32
	s := made(t, start(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || r.Header.Get("Etag") == "" || damaged.Add(1) > 1 {
			return false
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(bytes.ReplaceAll(body, []byte("the truth"), []byte("the tooth"))))
		return false
	}), nil)
	servicetest.Put(t, s, "o", []byte("the truth"))
	if servicetest.WantContent(t, s, "o", []byte("the truth")); damaged.Load() != 2 {
		t.Errorf("%d puts, want a second one after the first came damaged", damaged.Load())
	}
}

func TestMemoryOfManyPutsIsBounded(t *testing.T) {
	const puts, size, buffer = 6, 10 << 20, 4 << 20
	s := made(t, start(t, nil), func(o *swift.Options) { o.Buffer = buffer })
	servicetest.PutMany(t, s, puts, size)
	if got := s.MostMemory(); got > buffer || got < buffer/2 {
		t.Errorf("puts took %d bytes at once, want at most %d", got, buffer)
	}
	for i := range puts {
		servicetest.WantContent(t, s, fmt.Sprint(i), make([]byte, size))
	}
}

func TestErrorsNameTheSettingAndNoSecret(t *testing.T) {
	for _, c := range []struct {
		status int
		kind   error
		hint   string
	}{
		{401, fs.ErrPermission, "see OS_REGION_NAME"},
		{403, fs.ErrPermission, "see OS_USERNAME and OS_TENANT_NAME, and the rights of that user on container archive"},
		{413, fs.ErrInvalid, "quota"},
		{400, fs.ErrInvalid, ""},
		{302, fs.ErrInvalid, ""},
		{405, errors.ErrUnsupported, "cannot do that"},
		{409, nil, ""},
		{500, nil, ""},
		{507, nil, ""},
	} {
		s := open(t, start(t, func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Location", "http://"+r.Host+"/elsewhere")
			return !isLogin(r) && refuse(w, r, c.status)
		}), func(o *swift.Options) { o.MaxRetries = -1 })
		for op, err := range servicetest.EachCall(t, s) {
			text := fmt.Sprint(err)
			if !strings.HasPrefix(text, op+": ") || !strings.Contains(text, fmt.Sprintf("(status %d)", c.status)) || !strings.Contains(text, c.hint) {
				t.Errorf("%s, %d: %s; want a hint with %q", op, c.status, text, c.hint)
			}
			servicetest.WantKind(t, op, err, c.kind)
			for _, secret := range []string{"AUTH_tk", "\n"} {
				if strings.Contains(text, secret) {
					t.Errorf("%s: the error holds %q: %s", op, secret, text)
				}
			}
		}
	}
}

func TestAMissingContainerIsNoMissingObject(t *testing.T) {
	s := open(t, start(t, nil), func(o *swift.Options) { o.Container = "nobodys" })
	for op, err := range servicetest.EachCall(t, s) {
		if err == nil || errors.Is(err, fs.ErrNotExist) || !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "there is no container nobodys: see WALG_SWIFT_PREFIX") {
			t.Errorf("%s in a missing container: %v", op, err)
		}
	}
}

func TestAServerThatIsNotThereIsNamed(t *testing.T) {
	for want, change := range map[string]func(*swift.Options){
		"see OS_AUTH_URL, or whether the service is up":                          func(o *swift.Options) { o.AuthURL = "http://127.0.0.1:1/v1.0" },
		"see OS_STORAGE_URL, or whether the service is up":                       func(o *swift.Options) { o.StorageURL, o.AuthToken = "http://127.0.0.1:1/v1/AUTH_x", "the-token" },
		"begin OS_STORAGE_URL with http://, as the service does not speak https": nil,
	} {
		plain := httptest.NewServer(http.NotFoundHandler())
		s := open(t, "http://127.0.0.1:2/v1.0", func(o *swift.Options) {
			o.MaxRetries = -1
			if change != nil {
				change(o)
			} else {
				o.StorageURL, o.AuthToken = strings.Replace(plain.URL, "http", "https", 1)+"/v1/AUTH_x", "the-token"
			}
		})
		for op, err := range servicetest.EachCall(t, s) {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "127.0.0.1:") {
				t.Errorf("%s: %v; want …%s…", op, err, want)
			}
		}
		plain.Close()
	}
}

func TestAnAnswerThatIsNotOfSwiftIsToldAsSuch(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html><p>Welcome") }))
	defer server.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	for authURL, want := range map[string]string{
		server.URL + "/v3":   "see OS_AUTH_URL",
		server.URL + "/v2.0": "the answer is not one of OpenStack: see OS_AUTH_URL",
		server.URL + "/v1.0": "names no object store: see OS_REGION_NAME",
		secure.URL + "/v3":   "name its file in SSL_CERT_FILE",
	} {
		var log servicetest.Log
		s := open(t, authURL, func(o *swift.Options) { o.Logger = log.Logger() })
		if _, err := s.Stat(t.Context(), "o"); !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), want) || log.Lines() > 0 {
			t.Errorf("at %s: %v; want …%s…; the log says\n%s", authURL, err, want, log.String())
		}
	}
}

func TestEveryByteGoesThroughWrap(t *testing.T) {
	servicetest.TestWrap(t, 64<<10, func(wrap func(net.Conn) net.Conn) store.Store {
		return made(t, start(t, nil), func(o *swift.Options) { o.Wrap = wrap })
	})
}
