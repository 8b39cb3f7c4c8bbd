package throttle_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/file"
	"holdfast/internal/store/storetest"
	"holdfast/internal/store/throttle"
)

// plain shows only what every Store has.
type plain struct{ store.Store }

func TestThrottleIsAStore(t *testing.T) {
	t.Run("Full", func(t *testing.T) {
		storetest.Test(t, func(*testing.T) store.Store { return throttle.New(&storetest.Memory{}, 1<<40) })
	})
	t.Run("Plain", func(t *testing.T) {
		storetest.Test(t, func(*testing.T) store.Store { return throttle.New(plain{&storetest.Memory{}}, 1<<40) })
	})
	t.Run("File", func(t *testing.T) {
		storetest.Test(t, func(t *testing.T) store.Store {
			s, err := file.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return throttle.New(s, 1<<40)
		})
	})
}

func TestWhatTheInnerStoreCannotDoIsNotPromised(t *testing.T) {
	m := &storetest.Memory{}
	for _, c := range []struct {
		inner        store.Store
		absent, copy bool
	}{
		{m, true, true},
		{plain{m}, false, false},
		{struct {
			store.Store
			store.PutIfAbsenter
		}{m, m}, true, false},
		{struct {
			store.Store
			store.Copier
		}{m, m}, false, true},
	} {
		s := throttle.New(c.inner, 1)
		_, absent := s.(store.PutIfAbsenter)
		_, copies := s.(store.Copier)
		if absent != c.absent || copies != c.copy {
			t.Errorf("around a %T: PutIfAbsent %v, Copy %v; want %v, %v", c.inner, absent, copies, c.absent, c.copy)
		}
	}
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
		s := throttle.New(m, 1<<20)
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
			return throttle.New(sink{}, 1<<20).Put(t.Context(), "d", bytes.NewReader(make([]byte, size)))
		})
		takes(t, "a put at a very low rate", 3*time.Second, func() error {
			return throttle.New(sink{}, 10).Put(t.Context(), "d", bytes.NewReader(make([]byte, 30)))
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
			r, err := throttle.New(m, int64(perSecond)).Open(t.Context(), "a")
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
			err := throttle.New(sink{}, 1000).Put(ctx, "a", src(make([]byte, 1<<20)))
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
		if err := throttle.New(sink{}, 1000).Put(ctx, "a", stream{bytes.NewReader(make([]byte, 1<<20))}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a put of 1000 s with a deadline of 10 ms: %v", err)
		}
	})
}
