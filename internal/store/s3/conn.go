package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// transport returns the settings of a transport that breaks a connection off after stall without a byte, and uses it through wrap.
func transport(stall time.Duration, wrap func(net.Conn) net.Conn) func(*http.Transport) {
	return func(t *http.Transport) {
		dialer := &net.Dialer{Timeout: min(stall, 30*time.Second), KeepAlive: 15 * time.Second}
		t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(&conn{Conn: c, stall: stall}), nil
		}
		t.TLSHandshakeTimeout = min(stall, 30*time.Second)
		t.IdleConnTimeout = stall * 2 / 3 // before an idle connection counts as stalled
		t.MaxIdleConns = 0                // no bound
		t.MaxIdleConnsPerHost = 64
		t.ReadBufferSize, t.WriteBufferSize = 64<<10, 64<<10
		t.DisableCompression = true
		// HTTP/2 would put all requests on one connection, where those that move hide those that do not.
		t.ForceAttemptHTTP2 = false
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
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
	return fmt.Sprintf("connection to %v stalled: not a byte for %v", e.peer, e.after)
}
func (e *stalledError) Timeout() bool   { return true }
func (e *stalledError) Temporary() bool { return true }
