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
	"holdfast/internal/store/storetest"
	"holdfast/internal/store/throttle"
)

func TestStore(t *testing.T) {
	storetest.Test(t, func(*testing.T) store.Store { return throttle.New(&storetest.Memory{}, 1<<40) })
}

// What goes in and what comes out share the allowance, from the first byte on.
func TestBytesTakeTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := throttle.New(&storetest.Memory{}, 1<<20)
		begin := time.Now()
		if err := s.Put(t.Context(), "a", bytes.NewReader(make([]byte, 3<<20))); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 2900*time.Millisecond || took > 3100*time.Millisecond {
			t.Errorf("3 MiB at 1 MiB a second took %s", took)
		}
		done := make(chan error)
		for range 2 {
			go func() {
				r, err := s.Open(t.Context(), "a")
				if err == nil {
					_, err = io.Copy(io.Discard, r)
				}
				done <- err
			}()
		}
		begin = time.Now()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 5900*time.Millisecond || took > 6100*time.Millisecond {
			t.Errorf("twice 3 MiB at 1 MiB a second took %s", took)
		}
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		time.AfterFunc(time.Second, func() { cancel(enough) })
		err := throttle.New(&storetest.Memory{}, 1000).Put(ctx, "a", bytes.NewReader(make([]byte, 1<<20)))
		if !errors.Is(err, enough) && !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}
