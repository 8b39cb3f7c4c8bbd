package gcs_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/gcs"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// service starts fake-gcs-server, a Google Cloud Storage of its own, and returns its URL.
func service(t *testing.T) string {
	t.Helper()
	program := pgtest.Service(t, "fake-gcs-server")
	address := pgtest.Address(t)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Serve(t, exec.Command(program, "-scheme", "http", "-host", host, "-port", port, "-public-host", address, "-backend", "memory", "-log-level", "error"), address)
	return "http://" + address
}

// behind returns the URL of something in front of a service: front sees every request first and may answer it.
func behind(t *testing.T, service string, front func(w http.ResponseWriter, r *http.Request) (answered bool)) string {
	t.Helper()
	target, err := url.Parse(service)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		// The Host stays: in it the service tells where uploads go.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", target.Host, r.In.Host
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !front(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// open returns a store; change, where not nil, may change its options.
func open(t *testing.T, endpoint string, change func(*gcs.Options)) *gcs.Store {
	t.Helper()
	o := gcs.Options{Bucket: "archive", Prefix: "pre/fix", Endpoint: endpoint, ChunkSize: 1 << 20, Buffer: 8 << 20, MaxRetries: 3, MaxBackoff: 10 * time.Millisecond}
	if change != nil {
		change(&o)
	}
	s, err := gcs.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// made is open with a new bucket.
func made(t *testing.T, endpoint string, change func(*gcs.Options)) *gcs.Store {
	t.Helper()
	s := open(t, endpoint, change)
	if err := s.CreateBucket(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestGCSIsAStore(t *testing.T) {
	for what, change := range map[string]func(*gcs.Options){
		"WithoutPrefix":     func(o *gcs.Options) { o.Prefix = "" },
		"WithALeadingSlash": func(o *gcs.Options) { o.Prefix, o.RawPrefix = "/path", true },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			// The service answers with as many entries as it likes.
			endpoint := behind(t, service(t), func(_ http.ResponseWriter, r *http.Request) bool {
				if q := r.URL.Query(); r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/o") && !q.Has("maxResults") {
					q.Set("maxResults", "100")
					r.URL.RawQuery = q.Encode()
				}
				return false
			})
			var buckets atomic.Int32
			storetest.Test(t, func(t *testing.T) store.Store {
				return made(t, endpoint, func(o *gcs.Options) {
					o.Bucket = fmt.Sprintf("archive-%d", buckets.Add(1))
					change(o)
				})
			})
		})
	}
}
