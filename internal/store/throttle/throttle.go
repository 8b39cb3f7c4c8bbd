// Package throttle bounds how many bytes a second go to and come from a store.
//
// A Store here is a store around another. All its puts and reads share one allowance, so that a command with eight streams is as
// slow as one with a single stream. Bytes are let through in small pieces, which makes the flow even instead of a burst a
// second. Listings, deletes and copies inside the store are not bounded.
package throttle

import (
	"context"
	"io"
	"iter"
	"time"

	"golang.org/x/time/rate"

	"holdfast/internal/store"
)

// piece bounds how many bytes are let through at once, and with that the burst.
const piece = 64 << 10

// Store is a store.Store, PutIfAbsenter, Copier, ManyDeleter and Walker; where the store beneath lacks one of those, package
// store's fallback stands in, and Copy reads and puts.
type Store struct {
	inner store.Store
	limit *rate.Limiter
}

// New returns inner with at most bytesPerSecond, which must be positive, in both directions together.
func New(inner store.Store, bytesPerSecond int64) *Store {
	// The bucket begins empty: the first second is no faster than the others.
	l := rate.NewLimiter(rate.Limit(bytesPerSecond), piece)
	l.AllowN(time.Now(), piece)
	return &Store{inner: inner, limit: l}
}

// Open implements store.Store.
func (s *Store) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return s.slow(ctx)(s.inner.Open(ctx, name))
}

// OpenRange implements store.Store.
func (s *Store) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	return s.slow(ctx)(s.inner.OpenRange(ctx, name, offset, length))
}

// slow returns what puts the limit between a reader and its user.
func (s *Store) slow(ctx context.Context) func(io.ReadCloser, error) (io.ReadCloser, error) {
	return func(r io.ReadCloser, err error) (io.ReadCloser, error) {
		if err != nil {
			return nil, err
		}
		return &body{reader{ctx, r, s.limit}, r}, nil
	}
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) error {
	return s.inner.Put(ctx, name, &reader{ctx, r, s.limit})
}

// PutIfAbsent implements store.PutIfAbsenter.
func (s *Store) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return store.PutIfAbsent(ctx, s.inner, name, &reader{ctx, r, s.limit})
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, name string) (store.Object, error) {
	return s.inner.Stat(ctx, name)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return s.inner.List(ctx, dir, after)
}

// Walk implements store.Walker.
func (s *Store) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return store.Walk(ctx, s.inner, dir)
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name string) error { return s.inner.Delete(ctx, name) }

// DeleteMany implements store.ManyDeleter.
func (s *Store) DeleteMany(ctx context.Context, names []string) error {
	return store.DeleteMany(ctx, s.inner, names)
}

// Copy implements store.Copier.
func (s *Store) Copy(ctx context.Context, from, to string) error {
	if c, ok := s.inner.(store.Copier); ok {
		return c.Copy(ctx, from, to)
	}
	r, err := s.Open(ctx, from)
	if err != nil {
		return err
	}
	defer r.Close() // only read
	return s.inner.Put(ctx, to, r)
}

// reader lets bytes through as the limit allows. It hides an io.WriterTo, which would go past it.
type reader struct {
	ctx   context.Context
	r     io.Reader
	limit *rate.Limiter
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), piece)])
	if n > 0 {
		if wait := r.limit.WaitN(r.ctx, n); wait != nil {
			return n, context.Cause(r.ctx)
		}
	}
	return n, err
}

type body struct {
	reader
	io.Closer
}
