package throttle_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/store/throttle"
)

func TestThrottleIsAStore(t *testing.T) {
	storetest.TestAround(t, throttle.New(1<<40).Store)
}

// takes fails t unless f takes about as long as want.
func takes(t *testing.T, what string, want time.Duration, f func() error) {
	t.Helper()
	begin := time.Now()
	if err := f(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if took := time.Since(begin); took < want*19/20 || took > want*21/20 {
		t.Errorf("%s took %v, want about %v", what, took, want)
	}
}

// sink is a Store whose puts take what they are given, by WriteTo where that is possible.
type sink struct{ store.Store }

func (sink) Put(_ context.Context, _ string, r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// stream hides what else a reader can do.
type stream struct{ io.Reader }

func TestBytesTakeTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Memory{}
		const size = 3 << 20
		if err := m.Put(t.Context(), "a", bytes.NewReader(make([]byte, size))); err != nil {
			t.Fatal(err)
		}
		s := throttle.New(1 << 20).Store(m)
		read := func() error {
			r, err := s.Open(t.Context(), "a")
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			return err
		}
		takes(t, "a read of 3 s", 3*time.Second, read)
		takes(t, "a put of 3 s", 3*time.Second, func() error { return s.Put(t.Context(), "b", stream{bytes.NewReader(make([]byte, size))}) })
		takes(t, "a read and a put at once", 6*time.Second, func() error {
			done := make(chan error)
			go func() { done <- read() }()
			return errors.Join(s.(store.PutIfAbsenter).PutIfAbsent(t.Context(), "c", bytes.NewReader(make([]byte, size))), <-done)
		})
		takes(t, "a range of a second", time.Second, func() error {
			r, err := s.OpenRange(t.Context(), "a", 1000, 1<<20)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			return err
		})
		takes(t, "a put that writes itself", 3*time.Second, func() error {
			return throttle.New(1<<20).Store(sink{}).Put(t.Context(), "d", bytes.NewReader(make([]byte, size)))
		})
		takes(t, "a put at a very low rate", 3*time.Second, func() error {
			return throttle.New(10).Store(sink{}).Put(t.Context(), "d", bytes.NewReader(make([]byte, 30)))
		})
	})
}

func TestTheFlowIsEven(t *testing.T) {
	for _, perSecond := range []int{1000, 100_000, 10 << 20} {
		synctest.Test(t, func(t *testing.T) {
			m := &storetest.Memory{}
			if err := m.Put(t.Context(), "a", bytes.NewReader(make([]byte, 3*perSecond))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour) // nothing is saved up meanwhile
			r, err := throttle.New(int64(perSecond)).Store(m).Open(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			in := map[int]int{} // bytes by tenths of a second
			begin, buf := time.Now(), make([]byte, 1<<20)
			for {
				n, err := r.Read(buf)
				in[int(time.Since(begin)/(100*time.Millisecond))] += n
				if err != nil {
					break
				}
			}
			for tenth, n := range in {
				if n > perSecond/10*8/5 {
					t.Errorf("at %d bytes a second %d went in tenth %d", perSecond, n, tenth)
				}
			}
		})
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, src := range []func([]byte) io.Reader{
			func(b []byte) io.Reader { return bytes.NewReader(b) },
			func(b []byte) io.Reader { return stream{bytes.NewReader(b)} },
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			enough := errors.New("enough")
			time.AfterFunc(time.Second, func() { cancel(enough) })
			begin := time.Now()
			err := throttle.New(1000).Store(sink{}).Put(ctx, "a", src(make([]byte, 1<<20)))
			if !errors.Is(err, enough) || time.Since(begin) != time.Second {
				t.Errorf("after %v: %v; want %v after a second", time.Since(begin), err, enough)
			}
		}
	})
}

func TestADeadlineDoesNotLiftTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := throttle.New(1000).Store(sink{}).Put(ctx, "a", stream{bytes.NewReader(make([]byte, 1<<20))}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a put of 1000 s with a deadline of 10 ms: %v", err)
		}
	})
}

// pipe returns the two ends of a connection, ours under the limit.
func pipe(t *testing.T, l *throttle.Limit) (ours, theirs net.Conn) {
	ours, theirs = net.Pipe()
	ours = l.Conn(ours)
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// arrive reads c to its end and returns the bytes by tenths of a second.
func arrive(c net.Conn) []int {
	var in []int
	begin, buf := time.Now(), make([]byte, 1<<20)
	for {
		n, err := c.Read(buf)
		for tenth := int(time.Since(begin) / (100 * time.Millisecond)); len(in) <= tenth; {
			in = append(in, 0)
		}
		in[len(in)-1] += n
		if err != nil {
			return in
		}
	}
}

// A store hands a connection large pieces that it collected in memory. They leave as evenly as a stream would, and all connections share
// one limit.
func TestConnectionsShareAnEvenFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 10 << 20, 20 << 20
		l := throttle.New(rate)
		var g sync.WaitGroup
		var mu sync.Mutex
		sum := make([]int, 100)
		for i := range 2 {
			ours, theirs := pipe(t, l)
			from, to := ours, theirs
			if i == 1 { // one sends, one receives
				from, to = theirs, ours
			}
			g.Go(func() {
				if n, err := from.Write(make([]byte, size)); n != size || err != nil {
					t.Errorf("wrote %d bytes, %v", n, err)
				}
				from.Close()
			})
			g.Go(func() {
				in := arrive(to)
				mu.Lock()
				defer mu.Unlock()
				for tenth, n := range in {
					sum[tenth] += n
				}
			})
		}
		takes(t, "40 MiB over two connections at 10 MiB/s", 4*time.Second, func() error { g.Wait(); return nil })
		for tenth, n := range sum[:39] {
			if n < rate/10*8/10 || n > rate/10*12/10 {
				t.Errorf("in tenth %d went %d bytes, want about %d", tenth, n, rate/10)
			}
		}
	})
}

func TestClosingAConnectionEndsTheWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := pipe(t, throttle.New(1000))
		go io.Copy(io.Discard, theirs)
		time.AfterFunc(time.Second+time.Millisecond, func() { ours.Close() })
		begin := time.Now()
		n, err := ours.Write(make([]byte, 1<<20))
		if !errors.Is(err, net.ErrClosed) || n != 1000 || time.Since(begin) != time.Second+time.Millisecond {
			t.Errorf("wrote %d bytes, %v after %v; want the 1000 of the second before it was closed", n, err, time.Since(begin))
		}
	})
}
