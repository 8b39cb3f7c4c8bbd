package gcs

import (
	"context"
	"fmt"
	"net/http"

	"holdfast/internal/store"
	"holdfast/internal/store/patience"
)

// do makes call at the place of the objects until it succeeds or there is no point in going on. The error is one to return.
func (s *Store) do(ctx context.Context, op, name string, call func(ctx context.Context, p *place) error) error {
	limited := ctx
	if s.o.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, s.o.Timeout)
		defer cancel()
	}
	err := s.attempt(limited, op, name, call)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return &store.OpError{Op: op, Name: name, Text: fmt.Sprintf("not done within %s, which is GCS_CONTEXT_TIMEOUT", s.o.Timeout), Err: errTimeout}
	}
	return s.fail(op, name, err)
}

func (s *Store) attempt(ctx context.Context, op, name string, call func(ctx context.Context, p *place) error) error {
	for t := (patience.Tries{}); ; {
		first := s.found.Load() == nil
		p, err := s.place(ctx)
		if first && err == nil {
			t.Progress()
		}
		if err == nil {
			err = call(ctx, p)
		}
		if err == nil {
			s.bucketSeen.Store(true)
			return nil
		}
		if code(err) == http.StatusNotFound && !s.bucketSeen.Load() && s.bucketMissing(ctx, p) {
			return errNoBucket
		}
		if err := s.retry.Again(ctx, &t, op+" "+name, err); err != nil {
			return err
		}
	}
}
