// Package throttle bounds how many bytes a second go to and come from a store.
//
// All puts and reads of a Store here share one allowance, so that a command with eight streams is as slow as one with a
// single stream. Bytes are let through in small pieces, which makes the flow even instead of a burst a second. Listings,
// deletes and copies inside the store are not bounded.
package throttle

import (
	"context"
	"io"
	"iter"
	"time"

	"golang.org/x/time/rate"

	"holdfast/internal/store"
)

// maxPiece bounds how many bytes are let through at once, and with that the burst. It is less where the rate is so low
// that these would take longer than a twentieth of a second.
const maxPiece = 64 << 10

// New returns inner with at most bytesPerSecond, which must be positive, in both directions together. The Store has
// PutIfAbsent and Copy if inner has them. It always has DeleteMany and Walk, by way of package store where inner lacks
// them.
func New(inner store.Store, bytesPerSecond int64) store.Store {
	piece := int(max(1, min(bytesPerSecond/20, maxPiece)))
	l := rate.NewLimiter(rate.Limit(bytesPerSecond), piece)
	l.AllowN(time.Now(), piece) // begin with nothing saved up: the first second is no faster than the others
	t := &throttled{inner: inner, limit: l, piece: piece}
	absenter, mayAbsent := inner.(store.PutIfAbsenter)
	copier, mayCopy := inner.(store.Copier)
	switch {
	case mayAbsent && mayCopy:
		return struct {
			*throttled
			putIfAbsent
			store.Copier
		}{t, putIfAbsent{t, absenter}, copier}
	case mayAbsent:
		return struct {
			*throttled
			putIfAbsent
		}{t, putIfAbsent{t, absenter}}
	case mayCopy:
		return struct {
			*throttled
			store.Copier
		}{t, copier}
	}
	return t
}

type throttled struct {
	inner store.Store
	limit *rate.Limiter
	piece int // bytes waited for at once
}

// wait returns once n more bytes, at most a piece, may pass.
func (t *throttled) wait(ctx context.Context, n int) error {
	r := t.limit.ReserveN(time.Now(), n)
	timer := time.NewTimer(r.Delay())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		r.Cancel()
		return context.Cause(ctx)
	}
}

// Open implements store.Store.
func (t *throttled) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return t.slow(ctx)(t.inner.Open(ctx, name))
}

// OpenRange implements store.Store.
func (t *throttled) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	return t.slow(ctx)(t.inner.OpenRange(ctx, name, offset, length))
}

// slow returns what puts the limit between a body and its reader.
func (t *throttled) slow(ctx context.Context) func(io.ReadCloser, error) (io.ReadCloser, error) {
	return func(r io.ReadCloser, err error) (io.ReadCloser, error) {
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{&reader{t, ctx, r}, r}, nil
	}
}

// source returns r with the limit on it; what can write itself still can.
func (t *throttled) source(ctx context.Context, r io.Reader) io.Reader {
	if w, ok := r.(io.WriterTo); ok {
		return &writerTo{reader{t, ctx, r}, w}
	}
	return &reader{t, ctx, r}
}

// Put implements store.Store.
func (t *throttled) Put(ctx context.Context, name string, r io.Reader) error {
	return t.inner.Put(ctx, name, t.source(ctx, r))
}

type putIfAbsent struct {
	throttled *throttled
	absenter  store.PutIfAbsenter
}

// PutIfAbsent implements store.PutIfAbsenter.
func (p putIfAbsent) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return p.absenter.PutIfAbsent(ctx, name, p.throttled.source(ctx, r))
}

// Stat implements store.Store.
func (t *throttled) Stat(ctx context.Context, name string) (store.Object, error) {
	return t.inner.Stat(ctx, name)
}

// List implements store.Store.
func (t *throttled) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return t.inner.List(ctx, dir, after)
}

// Walk implements store.Walker.
func (t *throttled) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return store.Walk(ctx, t.inner, dir)
}

// Delete implements store.Store.
func (t *throttled) Delete(ctx context.Context, name string) error { return t.inner.Delete(ctx, name) }

// DeleteMany implements store.ManyDeleter.
func (t *throttled) DeleteMany(ctx context.Context, names []string) error {
	return store.DeleteMany(ctx, t.inner, names)
}

// reader lets bytes through as the limit allows.
type reader struct {
	t   *throttled
	ctx context.Context // of the call that the bytes belong to
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), r.t.piece)])
	if n > 0 {
		if err := r.t.wait(r.ctx, n); err != nil {
			return n, err
		}
	}
	return n, err
}

// writerTo is a reader of what can write itself.
type writerTo struct {
	reader
	from io.WriterTo
}

func (w *writerTo) WriteTo(dst io.Writer) (int64, error) {
	return w.from.WriteTo(&writer{w.t, w.ctx, dst})
}

// writer lets bytes through as the limit allows.
type writer struct {
	t   *throttled
	ctx context.Context // of the put that the bytes belong to
	w   io.Writer
}

func (w *writer) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		n := min(len(p), w.t.piece)
		if err := w.t.wait(w.ctx, n); err != nil {
			return written, err
		}
		n, err := w.w.Write(p[:n])
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}
