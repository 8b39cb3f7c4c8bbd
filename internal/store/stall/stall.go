// Package stall makes connections that break off when nothing moves on them.
//
// A peer that went away without a word, a firewall that forgot a connection, a service that hangs: each leaves a request that
// waits for ever. A time limit on requests would also end those that are slow and move. Here every byte in either direction
// moves the deadline, so that only silence ends a request.
package stall

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// Transport makes HTTP requests over connections that break off after a time without a byte.
type Transport struct {
	quick, patient *http.Transport
}

// patience is how many times longer the service may be silent where it works.
const patience = 10

// NewTransport returns a Transport whose connections break off with an *Error after timeout without a byte, and ten times that for
// requests with a context of Patient. It uses the proxy that the environment names, as programs do. wrap is that of Tune.
func NewTransport(timeout time.Duration, wrap func(net.Conn) net.Conn) *Transport {
	return Pair(&http.Transport{Proxy: http.ProxyFromEnvironment}, timeout, patience*timeout, wrap)
}

// Pair returns a Transport that is as t, but that its connections break off after timeout without a byte, and after patient for
// requests with a context of Patient. wrap is that of Tune.
func Pair(t *http.Transport, timeout, patient time.Duration, wrap func(net.Conn) net.Conn) *Transport {
	quick, slow := t.Clone(), t.Clone()
	Tune(quick, timeout, wrap)
	Tune(slow, patient, wrap)
	return &Transport{quick: quick, patient: slow}
}

// Tune makes the connections of t break off with an *Error after timeout without a byte. wrap returns each new connection as it is to
// be used, such as under a limit: what a call on the result waits before it calls the connection does not count. nil leaves
// connections as they are.
func Tune(t *http.Transport, timeout time.Duration, wrap func(net.Conn) net.Conn) {
	dialer := &net.Dialer{Timeout: min(timeout, 30*time.Second), KeepAlive: 15 * time.Second}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return nil, &dialError{err}
		}
		if err != nil {
			return nil, err
		}
		c = &conn{Conn: c, timeout: timeout}
		if wrap != nil {
			c = wrap(c)
		}
		return c, nil
	}
	t.TLSHandshakeTimeout = min(timeout, 30*time.Second)
	t.ExpectContinueTimeout = time.Second
	t.IdleConnTimeout = min(timeout*2/3, 90*time.Second) // before an idle connection counts as stalled
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, 64        // 0: no bound
	t.ReadBufferSize, t.WriteBufferSize = 64<<10, 64<<10
	t.DisableCompression = true
	// HTTP/2 would put all requests on one connection, where those that move hide those that do not.
	t.ForceAttemptHTTP2 = false
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
}

type patientKey struct{}

// Patient returns a context for requests during which the service is silent while it works, such as to copy.
func Patient(ctx context.Context) context.Context { return context.WithValue(ctx, patientKey{}, true) }

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Context().Value(patientKey{}) != nil {
		return t.patient.RoundTrip(r)
	}
	return t.quick.RoundTrip(r)
}

// CloseIdleConnections closes connections that no request uses.
func (t *Transport) CloseIdleConnections() {
	t.quick.CloseIdleConnections()
	t.patient.CloseIdleConnections()
}

// conn is a connection whose deadline is moved by every byte.
type conn struct {
	net.Conn
	timeout time.Duration
	stalled atomic.Bool
}

func (c *conn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	return n, c.explain(err)
}

// Write moves the deadline of a read that waits for the answer too.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	return n, c.explain(err)
}

// explain turns what a stall does to a call into an *Error. The one that comes first closes the connection under the other.
func (c *conn) explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.stalled.Store(true)
	}
	if err != nil && c.stalled.Load() {
		return &Error{c.RemoteAddr(), c.timeout}
	}
	return err
}

// Error says that a connection was broken off. It is a net.Error, and a timeout.
type Error struct {
	Peer  net.Addr
	After time.Duration // without a byte
}

func (e *Error) Error() string {
	return fmt.Sprintf("connection to %v stalled: not a byte for %v", e.Peer, e.After)
}

// Timeout implements net.Error.
func (e *Error) Timeout() bool { return true }

// Temporary implements net.Error.
func (e *Error) Temporary() bool { return true }

// dialError is a connection that could not be made in time. It hides what reads as the caller's own deadline and is that of the dialer.
type dialError struct{ err error }

func (e *dialError) Error() string   { return e.err.Error() }
func (e *dialError) Timeout() bool   { return true }
func (e *dialError) Temporary() bool { return true }
