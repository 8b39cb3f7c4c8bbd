package azure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

// transport makes requests over connections that are broken off when they stall.
type transport struct{ quick, patient *http.Client }

type patientKey struct{}

// patiently marks requests during which the service works in silence.
func patiently(ctx context.Context) context.Context {
	return context.WithValue(ctx, patientKey{}, true)
}

func newTransport(stall time.Duration, wrap func(net.Conn) net.Conn, roots *x509.CertPool) *transport {
	client := func(stall time.Duration) *http.Client {
		return &http.Client{
			Transport: newHTTPTransport(stall, wrap, roots),
			// The service redirects nobody, and whoever does must not get what we send.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &transport{client(stall), client(2 * stall)}
}

// Do implements policy.Transporter. Its errors hold no URL, which may have a shared access signature in it.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	client := t.quick
	if req.Context().Value(patientKey{}) != nil {
		client = t.patient
	}
	stop := func() {}
	if req.Body != nil {
		req, stop = guard(req)
	}
	resp, err := client.Do(req)
	if err != nil {
		stop()
		if bare := (*url.Error)(nil); errors.As(err, &bare) {
			err = bare.Err
		}
		return nil, &networkError{req.Method + " " + req.URL.Host, err}
	}
	resp.Body = &answerBody{resp.Body, stop}
	return resp, nil
}

// guard returns req with a body that nobody reads any more after stop. An HTTP client may go on reading the body of a request that was
// answered early or failed, while the next try reads it anew and, after that, its memory is used for something else.
func guard(req *http.Request) (guarded *http.Request, stop func()) {
	guarded = req.WithContext(req.Context()) // a copy
	now := &requestBody{body: req.Body}
	guarded.Body = now
	if req.GetBody != nil {
		guarded.GetBody = func() (io.ReadCloser, error) { // for a connection that turned out to be closed before anything was sent
			now.stop()
			body, err := req.GetBody()
			now = &requestBody{body: body}
			return now, err
		}
	}
	return guarded, func() { now.stop() }
}

// requestBody is a body that can be stopped.
type requestBody struct {
	mu      sync.Mutex // held while the body is read
	body    io.ReadCloser
	stopped bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return 0, errors.New("the request is over")
	}
	return b.body.Read(p)
}

func (b *requestBody) Close() error { return nil } // who made it closes it

func (b *requestBody) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
}

// answerBody is the body of an answer; the request's is of no use once it has been read.
type answerBody struct {
	io.ReadCloser
	stop func()
}

func (b *answerBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}

// networkError is the failure of a request that got no answer.
type networkError struct {
	what string // method and host
	err  error
}

func (e *networkError) Error() string { return e.what + ": " + e.err.Error() }

// Unwrap hides what reads as the caller's own deadline and is ours: those of the dialer and of one try.
func (e *networkError) Unwrap() error {
	if errors.Is(e.err, context.DeadlineExceeded) {
		return nil
	}
	return e.err
}

// Timeout makes it a net.Error, together with Temporary.
func (e *networkError) Timeout() bool {
	var timeout net.Error
	return errors.As(e.err, &timeout) && timeout.Timeout()
}

// Temporary is what net.Error asks for.
func (e *networkError) Temporary() bool { return true }

// newHTTPTransport returns a transport that breaks a connection off after stall without a byte, and uses it through wrap.
func newHTTPTransport(stall time.Duration, wrap func(net.Conn) net.Conn, roots *x509.CertPool) *http.Transport {
	dialer := &net.Dialer{Timeout: min(stall, 30*time.Second), KeepAlive: 15 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(&conn{Conn: c, stall: stall}), nil
		},
		TLSClientConfig:       &tls.Config{RootCAs: roots},
		TLSHandshakeTimeout:   min(stall, 30*time.Second),
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       stall * 2 / 3, // before an idle connection counts as stalled
		MaxIdleConnsPerHost:   64,
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
		DisableCompression:    true,
		// HTTP/2 would put all requests on one connection, where those that move hide those that do not.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// conn is a connection whose deadline is moved by every byte.
type conn struct {
	net.Conn
	stall time.Duration
}

func (c *conn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	return n, c.explain(err)
}

// Write moves the deadline of a read that waits for the answer too.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	return n, c.explain(err)
}

func (c *conn) explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &stalledError{c.RemoteAddr(), c.stall}
	}
	return err
}

// stalledError is a net.Error, and a timeout.
type stalledError struct {
	peer  net.Addr
	after time.Duration
}

func (e *stalledError) Error() string {
	return fmt.Sprintf("connection to %s stalled: no byte within %s", e.peer, e.after)
}

// Timeout implements net.Error.
func (e *stalledError) Timeout() bool { return true }

// Temporary implements net.Error.
func (e *stalledError) Temporary() bool { return true }
