// Package faults stands between Holdfast and a service that keeps objects, and makes the way there long and bad: a Line takes time, a
// Front fails some of the requests, each in one of the ways in which services and networks do. Only tests import it.
package faults

import (
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// A Fault is a way in which a request fails.
type Fault int

// The ways.
const (
	None      Fault = iota
	Reset           // the connection is reset before the service has the request
	Error           // the service answers with status 500
	SlowDown        // it answers that there are too many requests
	Truncated       // its answer ends in the midst of the body, or of the header where it has no body
	Lost            // the service does what it was asked for, and the connection is reset before the answer
	Deaf            // nobody reads the request, and the connection stays
	Silent          // the service has the request, and there is never an answer
	Stalled         // the answer stops in the midst of its body, and the connection stays
)

// String names f.
func (f Fault) String() string {
	return [...]string{"none", "reset", "500", "503 SlowDown", "truncated", "answer lost", "deaf", "silent", "stalled"}[f]
}

// Passing are those that end at once.
var Passing = [...]Fault{Reset, Error, SlowDown, Truncated, Lost}

// A Front is an HTTP proxy before a service.
type Front struct {
	Addr string

	choose  func(r *http.Request) Fault
	service *url.URL
	proxy   *httputil.ReverseProxy
	ended   chan struct{} // closed with the test

	mu    sync.Mutex
	count map[Fault]int
}

// NewFront stands before the service at a URL for as long as the test lasts. choose says how a request fares; it is called for one
// request at a time.
func NewFront(t testing.TB, service string, choose func(r *http.Request) Fault) *Front {
	t.Helper()
	u, err := url.Parse(service)
	if err != nil {
		t.Fatal(err)
	}
	f := &Front{choose: choose, service: u, count: map[Fault]int{}, ended: make(chan struct{})}
	f.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = u.Scheme, u.Host, r.In.Host // the Host is signed
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		ErrorLog:  log.New(io.Discard, "", 0), // clients that are gone
	}
	server := httptest.NewUnstartedServer(f)
	server.Config.ErrorLog = f.proxy.ErrorLog
	server.Start()
	f.Addr = server.Listener.Addr().String()
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(f.ended) }) // before, or Close would wait
	return f
}

// OneOf returns a choice in which one request of each n fails, at a random place among them, in each of the Passing ways in turn. The
// same seed makes the same choice.
func OneOf(n int, seed uint64) func(*http.Request) Fault {
	random := rand.New(rand.NewPCG(seed, 0))
	asked, next, turn := 0, 0, 0
	return func(*http.Request) Fault {
		if asked%n == 0 {
			next = asked + random.IntN(n)
		}
		asked++
		if asked-1 != next {
			return None
		}
		turn++
		return Passing[(turn-1)%len(Passing)]
	}
}

// Count returns how many requests fared like that, and of Requests all of them.
func (f *Front) Count(fault Fault) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[fault]
}

// Requests returns how many there were.
func (f *Front) Requests() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.count {
		n += c
	}
	return n
}

// String tells how many requests there were, and how many failed in which way.
func (f *Front) String() string {
	var failed []string
	for fault := Reset; fault <= Stalled; fault++ {
		if n := f.Count(fault); n > 0 {
			failed = append(failed, fmt.Sprintf("%d %s", n, fault))
		}
	}
	return fmt.Sprintf("%d requests, of which failed: %s", f.Requests(), strings.Join(failed, ", "))
}

// ServeHTTP has a request fare as it is chosen.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	fault := f.choose(r)
	f.count[fault]++
	f.mu.Unlock()
	switch fault {
	case None:
		f.proxy.ServeHTTP(w, r)
	case Reset:
		reset(hijack(w))
	case Error:
		refuse(w, http.StatusInternalServerError, "InternalError", "We encountered an internal error. Please try again.")
	case SlowDown:
		refuse(w, http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate.")
	case Lost:
		f.proxy.ServeHTTP(httptest.NewRecorder(), r)
		reset(hijack(w))
	case Deaf, Silent:
		if fault == Silent {
			_, _ = io.Copy(io.Discard, r.Body) // the client may be gone
		}
		c := hijack(w)
		<-f.ended
		reset(c)
	case Truncated, Stalled:
		answer := httptest.NewRecorder()
		f.proxy.ServeHTTP(answer, r)
		c := hijack(w)
		f.half(c, answer)
		if fault == Stalled {
			<-f.ended
		}
		_ = c.Close() // what was to be sent has been
	}
}

// half sends an answer up to the midst of its body, or of its header where it has no body.
func (f *Front) half(c net.Conn, answer *httptest.ResponseRecorder) {
	body := answer.Body.Bytes()
	var header strings.Builder
	fmt.Fprintf(&header, "HTTP/1.1 %d %s\r\n", answer.Code, http.StatusText(answer.Code))
	if answer.Header().Get("Content-Length") == "" {
		answer.Header().Set("Content-Length", fmt.Sprint(len(body)))
	}
	_ = answer.Header().Write(&header) // a Builder takes everything
	header.WriteString("\r\n")
	sent := header.String() + string(body[:len(body)/2])
	if len(body) == 0 {
		sent = sent[:len(sent)/2]
	}
	_, _ = io.WriteString(c, sent) // the client may be gone
}

// refuse answers as S3 does.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
}

// hijack takes the connection over.
func hijack(w http.ResponseWriter) net.Conn {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err) // the server speaks HTTP/1.1
	}
	return c
}
