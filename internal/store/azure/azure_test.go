package azure_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/azure"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

const account = "account1"

var accessKey = base64.StdEncoding.EncodeToString([]byte("the-secret-access-key"))

// A server is azurite, Azure's own stand-in for its Blob Storage.
type server struct {
	url  string // of the account's blob service
	stop func()
	err  error
}

// start starts azurite. args are further ones of its.
func start(program, scheme string, args ...string) server {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return server{err: err}
	}
	address := l.Addr().String()
	_, port, err := net.SplitHostPort(address)
	l.Close()
	if err != nil {
		return server{err: err}
	}
	dir, err := os.MkdirTemp("", "holdfast-azurite")
	if err != nil {
		return server{err: err}
	}
	cmd := exec.Command(program, append([]string{"--blobPort", port, "--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"}, args...)...)
	cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS="+account+":"+accessKey)
	cmd.Dir = dir
	stop, err := pgtest.Start(cmd, address)
	if err != nil {
		os.RemoveAll(dir)
		return server{err: err}
	}
	return server{url: scheme + "://" + address + "/" + account, stop: func() {
		stop()
		os.RemoveAll(dir)
	}}
}

// running is the server that the tests share, once there is one.
var running atomic.Pointer[server]

var shared = sync.OnceValue(func() *server {
	s := start(pgtest.Cache()+"/bin/azurite-blob", "http")
	running.Store(&s)
	return &s
})

func TestMain(m *testing.M) {
	status := m.Run()
	if s := running.Load(); s != nil && s.err == nil {
		s.stop()
	}
	os.Exit(status)
}

// azurite returns the URL of the shared server.
func azurite(t *testing.T) string {
	t.Helper()
	pgtest.Service(t, "azurite-blob")
	s := shared()
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.url
}

// front is a proxy before azurite. see, where not nil, sees every request first and may answer it.
func front(t *testing.T, see func(w http.ResponseWriter, r *http.Request) (answered bool)) string {
	t.Helper()
	behind, err := url.Parse(azurite(t))
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = behind.Scheme, behind.Host },
		ErrorLog: log.New(io.Discard, "", 0), // of requests that the store gave up
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if see == nil || !see(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL + behind.Path
}

// fake is a server that is asked for everything.
func fake(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return server.URL + "/" + account
}

// open returns a store at endpoint, the blob service of the account; change, where not nil, may change its options.
func open(t *testing.T, endpoint string, change func(*azure.Options)) *azure.Store {
	t.Helper()
	o := azure.Options{Container: "archive", Prefix: "pre/fix", Endpoint: endpoint, Account: account, AccessKey: accessKey,
		BlockSize: 5 << 20, MaxRetries: 3, MaxBackoff: 10 * time.Millisecond}
	if change != nil {
		change(&o)
	}
	s, err := azure.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var made atomic.Int32

// create makes a container, at azurite itself, and returns the store in it at endpoint.
func create(t *testing.T, endpoint string, change func(*azure.Options)) *azure.Store {
	t.Helper()
	name := fmt.Sprintf("archive-%d", made.Add(1))
	if err := open(t, azurite(t), func(o *azure.Options) { o.Container = name }).CreateContainer(t.Context()); err != nil {
		t.Fatal(err)
	}
	return open(t, endpoint, func(o *azure.Options) {
		o.Container = name
		if change != nil {
			change(o)
		}
	})
}

func TestAzureIsAStore(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store { return create(t, azurite(t), nil) })
}

func TestAzureInSmallPagesWithoutPrefixIsAStore(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		s := create(t, azurite(t), func(o *azure.Options) { o.Prefix = "" })
		s.SmallPages(2)
		s.CopyBlocks(100_000)
		return s
	})
}
