package swift_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ncw/swift/v2/swifttest"

	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/store/swift"
)

var _ interface {
	store.Store
	store.Copier
	store.ManyDeleter
	store.Walker
	store.Sweeper
} = (*swift.Store)(nil)

// fake is a Swift in this process. It keeps objects in swifttest and mends what that leaves out: ranges, pages of listings,
// the sizes of large objects in listings, manifests of manifests and checks of what manifests name.
type fake struct {
	inner *swifttest.SwiftServer
	front func(w http.ResponseWriter, r *http.Request) (answered bool) // sees every request first; nil for none

	busy   sync.RWMutex // held by requests that are being answered
	mu     sync.Mutex   // swifttest does not guard what it keeps
	sizes  map[string]int64
	nested map[string][]entry // manifests in a container of segments
	page   int
}

// entry is one of a manifest being put.
type entry struct {
	Path string `json:"path"`
	Hash string `json:"etag"`
	Size int64  `json:"size_bytes"`
}

// start starts a fake with an empty container and returns its address of authentication.
func start(t *testing.T, front func(w http.ResponseWriter, r *http.Request) (answered bool)) (authURL string) {
	t.Helper()
	inner, err := swifttest.NewSwiftServer("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(inner.Close)
	f := &fake{inner: inner, front: front, sizes: map[string]int64{}, nested: map[string][]entry{}, page: 100}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return server.URL + "/v1.0"
}

// ask makes a request to swifttest.
func (f *fake) ask(r *http.Request, method, path, query string, body []byte, headers ...string) (int, http.Header, []byte) {
	out, err := http.NewRequest(method, f.inner.URL[:strings.LastIndex(f.inner.URL, "/")]+path, bytes.NewReader(body))
	if err != nil {
		return http.StatusBadGateway, nil, []byte(err.Error())
	}
	out.URL.RawQuery = query
	for _, name := range append([]string{"X-Auth-Token", "X-Auth-User", "X-Auth-Key", "Content-Type", "Accept"}, headers...) {
		if value := r.Header.Get(name); value != "" {
			out.Header.Set(name, value)
		}
	}
	resp, err := http.DefaultClient.Do(out)
	if err != nil {
		return http.StatusBadGateway, nil, []byte(err.Error())
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return http.StatusBadGateway, nil, []byte(err.Error())
	}
	return resp.StatusCode, resp.Header, got
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/idle" { // answered when every other request has been
		f.busy.Lock()
		defer f.busy.Unlock()
		return
	}
	f.busy.RLock()
	defer f.busy.RUnlock()
	if f.front != nil && f.front(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // whoever sends has gone
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path, q := r.URL.EscapedPath(), r.URL.Query()
	_, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), "/") // container/key
	container, key, isObject := strings.Cut(rest, "/")
	var status int
	var headers http.Header
	var answer []byte
	switch {
	case r.Method == http.MethodPut && isObject:
		if q.Get("multipart-manifest") == "put" {
			if body, answer = f.manifest(r, container, rest, body); answer != nil {
				status = http.StatusBadRequest
				break
			}
		} else if _, ok := f.sizes[rest]; ok { // it would stay a manifest
			f.forget(r, rest)
		}
		status, headers, answer = f.ask(r, r.Method, path, r.URL.RawQuery, body, "Etag")
	case r.Method == http.MethodDelete && isObject:
		status, headers, answer = f.forget(r, rest)
	case (r.Method == http.MethodGet || r.Method == http.MethodHead) && isObject:
		if entries := f.nested[rest]; entries != nil && q.Get("multipart-manifest") == "get" {
			status, answer = http.StatusOK, f.shown(entries)
			break
		}
		status, headers, answer = f.ask(r, http.MethodGet, path, r.URL.RawQuery, nil)
		if status == http.StatusOK {
			for _, name := range []string{"Etag", "X-Static-Large-Object", "Content-Type"} {
				w.Header()[name] = headers[name]
			}
			w.Header().Set("Etag", `"`+headers.Get("Etag")+`"`)
			modified, _ := http.ParseTime(headers.Get("Last-Modified"))
			if q.Get("multipart-manifest") != "get" && w.Header().Get("X-Static-Large-Object") == "" {
				w.Header().Del("X-Static-Large-Object")
			}
			http.ServeContent(w, r, key, modified, bytes.NewReader(answer))
			return
		}
	case r.Method == http.MethodGet && container != "" && q.Get("format") == "json":
		status, headers, answer = f.ask(r, r.Method, path, r.URL.RawQuery, nil)
		answer = f.listing(container, answer)
	case r.Method == "COPY":
		if to, err := url.PathUnescape(r.Header.Get("Destination")); err == nil {
			f.forget(r, to)
		}
		status, headers, answer = f.ask(r, r.Method, path, "", nil, "Destination")
	case path == "/v1.0":
		status, headers, answer = f.ask(r, r.Method, path, "", nil)
		if storage := headers.Get("X-Storage-Url"); storage != "" {
			headers.Set("X-Storage-Url", "http://"+r.Host+storage[strings.Index(storage, "/v1/"):])
		}
	default:
		status, headers, answer = f.ask(r, r.Method, path, r.URL.RawQuery, body)
	}
	for name, values := range headers {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(answer)))
	w.WriteHeader(status)
	w.Write(answer)
}

// forget deletes an object, manifest or not.
func (f *fake) forget(r *http.Request, rest string) (int, http.Header, []byte) {
	delete(f.sizes, rest)
	delete(f.nested, rest)
	return f.ask(r, http.MethodDelete, (&url.URL{Path: "/v1/AUTH_" + swifttest.TEST_ACCOUNT + "/" + rest}).EscapedPath(), "", nil)
}

// manifest checks what a manifest names, as Swift does, and returns one without manifests in it, or what is wrong.
func (f *fake) manifest(r *http.Request, container, rest string, body []byte) (flat, wrong []byte) {
	var entries []entry
	if err := json.Unmarshal(body, &entries); err != nil {
		return nil, []byte(err.Error())
	}
	if len(entries) > maxSegments {
		return nil, []byte("Too many segments")
	}
	var below []entry
	size := int64(0)
	for _, e := range entries {
		size += e.Size
		if inner := f.nested[e.Path]; inner != nil {
			below = append(below, f.flat(inner)...)
			continue
		}
		status, headers, _ := f.ask(r, http.MethodHead, "/v1/AUTH_swifttest/"+e.Path, "", nil)
		if status != http.StatusOK || headers.Get("Content-Length") != fmt.Sprint(e.Size) || headers.Get("Etag") != e.Hash {
			return nil, fmt.Appendf(nil, "%s: %d, %s bytes, %s", e.Path, status, headers.Get("Content-Length"), headers.Get("Etag"))
		}
		below = append(below, e)
	}
	f.sizes[rest] = size
	if strings.HasSuffix(container, "_segments") || slices.ContainsFunc(entries, func(e entry) bool { return f.nested[e.Path] != nil }) {
		f.nested[rest] = entries
	} else {
		delete(f.nested, rest)
	}
	flat, err := json.Marshal(below)
	if err != nil {
		return nil, []byte(err.Error())
	}
	return flat, nil
}

// flat returns the segments below entries.
func (f *fake) flat(entries []entry) (below []entry) {
	for _, e := range entries {
		if inner := f.nested[e.Path]; inner != nil {
			below = append(below, f.flat(inner)...)
		} else {
			below = append(below, e)
		}
	}
	return below
}

// shown is how Swift shows a manifest.
func (f *fake) shown(entries []entry) []byte {
	list := []map[string]any{}
	for _, e := range entries {
		one := map[string]any{"name": "/" + e.Path, "hash": e.Hash, "bytes": e.Size}
		if f.nested[e.Path] != nil {
			one["sub_slo"] = true
		}
		list = append(list, one)
	}
	text, _ := json.Marshal(list)
	return text
}

// listing cuts a listing to a page and gives large objects their sizes.
func (f *fake) listing(container string, text []byte) []byte {
	var list []map[string]any
	if json.Unmarshal(text, &list) != nil {
		return text
	}
	if len(list) > f.page {
		list = list[:f.page]
	}
	for _, o := range list {
		if size, ok := f.sizes[container+"/"+fmt.Sprint(o["name"])]; ok {
			o["bytes"] = size
		}
	}
	if list == nil {
		list = []map[string]any{}
	}
	text, _ = json.Marshal(list)
	return text
}

// maxSegments is how many segments the fake allows in a manifest; it says so too.
const maxSegments = 1000

// open returns a store; change, where not nil, may change its options.
func open(t *testing.T, authURL string, change func(*swift.Options)) *swift.Store {
	t.Helper()
	o := swift.Options{Container: "archive", Prefix: "/pre/fix/", AuthURL: authURL, User: swifttest.TEST_ACCOUNT, Password: swifttest.TEST_ACCOUNT,
		SegmentSize: 1 << 20, MaxRetries: 3, MaxBackoff: 10 * time.Millisecond}
	if change != nil {
		change(&o)
	}
	s, err := swift.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// made is open with a new container.
func made(t *testing.T, authURL string, change func(*swift.Options)) *swift.Store {
	t.Helper()
	s := open(t, authURL, change)
	if err := s.CreateContainer(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSwiftIsAStore(t *testing.T) {
	for what, change := range map[string]func(*swift.Options){
		"WithAPrefix":   func(*swift.Options) {},
		"WithoutPrefix": func(o *swift.Options) { o.Prefix = "" },
	} {
		t.Run(what, func(t *testing.T) {
			storetest.Test(t, func(t *testing.T) store.Store { return made(t, start(t, nil), change) })
		})
	}
}

func etagOf(b []byte) string {
	sum := md5.Sum(b)
	return hex.EncodeToString(sum[:])
}
