package sftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// pool has up to Options.Connections connections, which calls share.
type pool struct {
	o *Options

	mu      sync.Mutex
	conns   []*conn
	dialing int
	closed  bool
	changed chan struct{} // closed and replaced whenever a dial has ended
}

// conn is one connection, with a session of SFTP in it.
type conn struct {
	pool *pool
	wire *wire
	ssh  *ssh.Client
	sftp *sftp.Client

	users   int          // calls, reads and puts that go over it; guarded by pool.mu
	syncing atomic.Int32 // syncs under way, behind which everything else has to wait
	broken  atomic.Bool
	over    chan struct{}                // closed when it is
	why     atomic.Pointer[stalledError] // where we broke it
}

var errClosed = errors.New("the store is closed")

// take returns the connection with the fewest users, or a new one where each has some and there may be more. The caller
// releases it.
func (p *pool) take(ctx context.Context) (*conn, error) {
	p.mu.Lock()
	for {
		if p.closed {
			p.mu.Unlock()
			return nil, errClosed
		}
		p.conns = slices.DeleteFunc(p.conns, func(c *conn) bool { return c.broken.Load() })
		var best *conn
		for _, c := range p.conns {
			if best == nil || c.users < best.users {
				best = c
			}
		}
		switch mayDial := len(p.conns)+p.dialing < p.o.Connections; {
		case best != nil && (best.users == 0 || !mayDial):
			best.users++
			p.mu.Unlock()
			return best, nil
		case mayDial:
			p.dialing++
			p.mu.Unlock()
			c, err := p.dial(ctx)
			p.mu.Lock()
			p.dialing--
			close(p.changed)
			p.changed = make(chan struct{})
			switch {
			case err == nil && p.closed:
				p.mu.Unlock()
				c.close()
				return nil, errClosed
			case err == nil:
				c.users = 1
				p.conns = append(p.conns, c)
			case best != nil && !best.broken.Load(): // one is enough
				best.users++
				c, err = best, nil
			}
			p.mu.Unlock()
			return c, err
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		p.mu.Lock()
	}
}

func (c *conn) release() {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	c.users--
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.conns {
		c.close()
	}
	p.conns = nil
}

// close breaks the connection off.
func (c *conn) close() {
	if !c.broken.Swap(true) {
		close(c.over)
	}
	c.ssh.Close() // errors are those of a connection that is of no use anyway
}

// dial connects, checks who is there, says who we are, and begins a session.
func (p *pool) dial(ctx context.Context) (*conn, error) {
	address := net.JoinHostPort(p.o.Host, strconv.Itoa(p.o.Port))
	config, done, err := p.o.clientConfig(address)
	if err != nil {
		return nil, err
	}
	defer done()
	dialer := &net.Dialer{Timeout: min(p.o.StallTimeout, 30*time.Second), KeepAlive: 15 * time.Second}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, &dialError{address, err}
	}
	w := &wire{Conn: raw, stall: p.o.StallTimeout}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	shake, channels, requests, err := ssh.NewClientConn(p.o.Wrap(w), address, config)
	if err != nil {
		raw.Close()
		return nil, p.o.refused(address, err)
	}
	c := &conn{pool: p, wire: w, ssh: ssh.NewClient(shake, channels, requests), over: make(chan struct{})}
	c.sftp, err = sftp.NewClient(c.ssh, sftp.UseConcurrentWrites(true), sftp.UseFstat(true))
	if err != nil {
		c.close()
		if strings.Contains(err.Error(), "subsystem request failed") || strings.Contains(err.Error(), "packet too long") {
			return nil, &subsystemError{address, err}
		}
		return nil, &dialError{address, err}
	}
	if !stop() { // ctx is done, and the connection closed
		c.close()
		return nil, ctx.Err()
	}
	go func() {
		c.sftp.Wait()
		c.close()
	}()
	go c.keepAlive()
	return c, nil
}

// keepAlive makes a peer that is there show it, so that a connection without a byte is one that is lost.
func (c *conn) keepAlive() {
	tick := time.NewTicker(c.pool.o.StallTimeout / 3)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-c.over:
			return
		}
		if _, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil); err != nil {
			c.close()
			return
		}
	}
}

// moving is the number of bytes from which on we take it that a call gets on; keeping a connection alive takes less.
const moving = 4 << 10

// call calls f and waits for it. When ctx is done it does not wait any more: f goes on alone and must not matter. When
// f does not end within patience, nor does the connection move, that is broken off, which ends f.
func (c *conn) call(ctx context.Context, patience time.Duration, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- f() }()
	seen, since := c.wire.moved.Load(), time.Now()
	tick := time.NewTicker(max(patience/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return c.explain(err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			limit := patience
			if c.syncing.Load() > 0 {
				limit = max(limit, patientTimes*c.pool.o.StallTimeout)
			}
			if now := c.wire.moved.Load(); now-seen >= moving {
				seen, since = now, time.Now()
			} else if time.Since(since) > limit {
				c.why.CompareAndSwap(nil, &stalledError{c.wire.RemoteAddr(), limit})
				c.close()
				return c.explain(<-done)
			}
		}
	}
}

// patientTimes is how much longer than anything else a sync may take.
const patientTimes = 10

// sync makes what was written to f durable.
func (c *conn) sync(ctx context.Context, f *sftp.File) error {
	c.syncing.Add(1)
	defer c.syncing.Add(-1)
	return c.call(ctx, patientTimes*c.pool.o.StallTimeout, f.Sync)
}

// explain gives an error without an answer the reason for which the connection is broken.
func (c *conn) explain(err error) error {
	if err == nil || answered(err) {
		return err
	}
	if why := cmp.Or(c.why.Load(), c.wire.why.Load()); why != nil {
		return why
	}
	return &lostError{net.JoinHostPort(c.pool.o.Host, strconv.Itoa(c.pool.o.Port)), err}
}

// wire is a connection that ends when no byte comes for a while, and counts those that do or go.
type wire struct {
	net.Conn
	stall time.Duration
	moved atomic.Int64
	why   atomic.Pointer[stalledError]
}

func (w *wire) Read(p []byte) (int, error) {
	if err := w.SetReadDeadline(time.Now().Add(w.stall)); err != nil {
		return 0, err
	}
	n, err := w.Conn.Read(p)
	w.moved.Add(int64(n))
	return n, w.explain(err)
}

func (w *wire) Write(p []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(w.stall)); err != nil {
		return 0, err
	}
	n, err := w.Conn.Write(p)
	w.moved.Add(int64(n))
	return n, w.explain(err)
}

func (w *wire) explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		stalled := &stalledError{w.RemoteAddr(), w.stall}
		w.why.CompareAndSwap(nil, stalled)
		return stalled
	}
	return err
}

// stalledError is a net.Error, and a timeout.
type stalledError struct {
	peer  net.Addr
	after time.Duration
}

func (e *stalledError) Error() string {
	return fmt.Sprintf("connection to %v stalled: nothing came for %v", e.peer, e.after)
}

// Timeout implements net.Error.
func (e *stalledError) Timeout() bool { return true }

// Temporary implements net.Error.
func (e *stalledError) Temporary() bool { return true }
