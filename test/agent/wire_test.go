package agent_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// A wire is the only way of one host to one service. While it is cut nothing passes and nobody is told so: what was on its way arrives when it is mended, unless
// that takes the connections away.
type wire struct {
	near net.Listener
	to   string

	mu    sync.Mutex
	whole chan struct{} // closed while bytes pass
	conns map[net.Conn]bool
}

// newWire makes a wire to an address. It lasts as long as the test.
func newWire(t testing.TB, to string) *wire {
	t.Helper()
	near, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{near: near, to: to, whole: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(w.whole)
	t.Cleanup(func() {
		near.Close() // ends accept
		w.drop()
	})
	go w.accept(t.Context())
	return w
}

// addr is where the host finds the service.
func (w *wire) addr() string { return w.near.Addr().String() }

// cut lets nothing pass from now on.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.whole = make(chan struct{})
}

// mend lets everything pass again: on the connections there were, or on new ones alone.
func (w *wire) mend(drop bool) {
	if drop {
		w.drop()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.whole:
	default:
		close(w.whole)
	}
}

// drop ends all connections rudely.
func (w *wire) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if c, ok := c.(*net.TCPConn); ok {
			_ = c.SetLinger(0) // it may be gone
		}
		_ = c.Close() // likewise
	}
	clear(w.conns)
}

// passes waits until w is whole; false where the test ends before.
func (w *wire) passes(ctx context.Context) bool {
	w.mu.Lock()
	whole := w.whole
	w.mu.Unlock()
	select {
	case <-whole:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *wire) accept(ctx context.Context) {
	for {
		near, err := w.near.Accept()
		if err != nil {
			return
		}
		w.keep(near)
		go func() {
			defer w.forget(near)
			if !w.passes(ctx) {
				return
			}
			far, err := net.DialTimeout("tcp", w.to, 10*time.Second)
			if err != nil {
				return
			}
			w.keep(far)
			defer w.forget(far)
			var both sync.WaitGroup
			both.Go(func() { w.carry(ctx, far, near) })
			both.Go(func() { w.carry(ctx, near, far) })
			both.Wait()
		}()
	}
}

func (w *wire) keep(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[c] = true
}

func (w *wire) forget(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
	_ = c.Close() // all that will ever come has come
}

// carry takes bytes, and then the end of them, from one end to the other.
func (w *wire) carry(ctx context.Context, to, from net.Conn) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if !w.passes(ctx) {
			return
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				_ = from.Close() // the other direction ends with it
				return
			}
		}
		if err != nil {
			if c, ok := to.(*net.TCPConn); ok {
				_ = c.CloseWrite() // it may be gone
			}
			return
		}
	}
}
