package faults

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A Line is a connection to a service that is far away: bytes take half of its round trip in each direction, as many as will be on
// their way, and so does making a connection.
type Line struct {
	to   string
	trip time.Duration
	near net.Listener
}

// NewLine makes a line to an address. It lasts as long as the test.
func NewLine(t testing.TB, to string, trip time.Duration) *Line { return NewDeafLine(t, to, trip, 0) }

// NewDeafLine makes a line whose first so many connections are accepted, and never again is anything heard from there.
func NewDeafLine(t testing.TB, to string, trip time.Duration, deaf int) *Line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := &Line{to, trip, l}
	t.Cleanup(func() { l.Close() }) // which ends accept
	go line.accept(t.Context(), deaf)
	return line
}

// URL is that of the near end.
func (l *Line) URL() string { return "http://" + l.near.Addr().String() }

func (l *Line) accept(ctx context.Context, deaf int) {
	for n := 0; ; n++ {
		near, err := l.near.Accept()
		if err != nil {
			return
		}
		go func() {
			if n < deaf {
				<-ctx.Done() // the test is over
				reset(near)
				return
			}
			far, err := net.Dial("tcp", l.to)
			if err != nil {
				reset(near)
				return
			}
			var both sync.WaitGroup
			both.Go(func() { l.carry(far, near, l.trip) }) // the first bytes wait for the connection, too
			both.Go(func() { l.carry(near, far, 0) })
			both.Wait()
			_, _ = near.Close(), far.Close() // all that will ever come has come
		}()
	}
}

// window bounds what is on its way, in pieces of at most 64 KiB.
const window = 256

// carry takes bytes from one end to the other, those that come first a while later, and then the end of them, in order or not.
func (l *Line) carry(to, from net.Conn, first time.Duration) {
	type piece struct {
		bytes []byte
		due   time.Time
	}
	under, end := make(chan piece, window), error(nil)
	go func() {
		defer close(under)
		opened := time.Now().Add(first)
		for {
			b := make([]byte, 64<<10)
			n, err := from.Read(b)
			if due := time.Now().Add(l.trip / 2); n > 0 {
				if first := opened.Add(l.trip / 2); due.Before(first) {
					due = first
				}
				under <- piece{b[:n], due}
			}
			if err != nil {
				end = err // seen by who sees that under is closed
				return
			}
		}
	}()
	for p := range under {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.bytes); err != nil {
			reset(from)
			for range under { // the reader ends
			}
			return
		}
	}
	if !errors.Is(end, io.EOF) {
		reset(to)
		return
	}
	time.Sleep(l.trip / 2)
	if c, ok := to.(*net.TCPConn); ok {
		_ = c.CloseWrite() // it may be gone
	}
}

// reset ends a connection rudely.
func reset(c net.Conn) {
	if c, ok := c.(*net.TCPConn); ok {
		_ = c.SetLinger(0) // it may be gone
	}
	_ = c.Close() // whatever is lost is meant to be
}
