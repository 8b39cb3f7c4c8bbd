// Package throttle bounds how many bytes a second go to and come from stores.
//
// Everything under one Limit shares its allowance, so that a command with eight streams is as slow as one with a single stream.
// Bytes are let through in small pieces, which makes the flow even instead of a burst a second.
//
// The limit belongs where bytes leave this process: on the connections of a store that has such, for it collects large pieces
// of objects in memory and would send each as fast as the line allows; around any other store.
package throttle

import (
	"context"
	"io"
	"iter"
	"net"
	"time"

	"golang.org/x/time/rate"

	"holdfast/internal/store"
)

// maxPiece bounds how many bytes are let through at once, and with that the burst. It is less where the rate is so low
// that these would take longer than a twentieth of a second.
const maxPiece = 64 << 10

// Limit is an allowance of bytes a second, for both directions together.
type Limit struct {
	bucket *rate.Limiter
	piece  int // bytes waited for at once
}

// New returns a Limit of bytesPerSecond, which must be positive.
func New(bytesPerSecond int64) *Limit {
	piece := int(max(1, min(bytesPerSecond/20, maxPiece)))
	l := &Limit{bucket: rate.NewLimiter(rate.Limit(bytesPerSecond), piece), piece: piece}
	l.bucket.AllowN(time.Now(), piece) // begin with nothing saved up: the first second is no faster than the others
	return l
}

// wait returns once n more bytes, at most a piece, may pass.
func (l *Limit) wait(ctx context.Context, n int) error {
	r := l.bucket.ReserveN(time.Now(), n)
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

// Conn returns c under the limit, with what goes over it: bodies, listings, encryption, what is sent again. Closing it ends the
// waiting too.
func (l *Limit) Conn(c net.Conn) net.Conn {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &conn{Conn: c, in: reader{l, ctx, c}, out: writer{l, ctx, c}, cancel: cancel}
}

type conn struct {
	net.Conn
	in     reader
	out    writer
	cancel context.CancelCauseFunc
}

func (c *conn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.out.Write(p) }

func (c *conn) Close() error {
	c.cancel(net.ErrClosed)
	return c.Conn.Close()
}

// Store returns inner with what is put and read under the limit. Listings, deletes and copies inside the store are not.
//
// It has PutIfAbsent and Copy if inner has them, and always DeleteMany and Walk, by way of package store where inner lacks them.
func (l *Limit) Store(inner store.Store) store.Store {
	return store.Around(inner, &throttled{inner: inner, limit: l})
}

type throttled struct {
	inner store.Store
	limit *Limit
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
		}{&reader{t.limit, ctx, r}, r}, nil
	}
}

// source returns r with the limit on it; what can write itself still can.
func (t *throttled) source(ctx context.Context, r io.Reader) io.Reader {
	if w, ok := r.(io.WriterTo); ok {
		return &writerTo{reader{t.limit, ctx, r}, w}
	}
	return &reader{t.limit, ctx, r}
}

// Put implements store.Store.
func (t *throttled) Put(ctx context.Context, name string, r io.Reader) error {
	return t.inner.Put(ctx, name, t.source(ctx, r))
}

// PutIfAbsent implements store.PutIfAbsenter.
func (t *throttled) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return store.PutIfAbsent(ctx, t.inner, name, t.source(ctx, r))
}

// Copy implements store.Copier.
func (t *throttled) Copy(ctx context.Context, from, to string) error {
	return store.Copy(ctx, t.inner, from, to)
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
	l   *Limit
	ctx context.Context // of the call or connection that the bytes belong to
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), r.l.piece)])
	if n > 0 {
		if err := r.l.wait(r.ctx, n); err != nil {
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
	return w.from.WriteTo(&writer{w.l, w.ctx, dst})
}

// writer lets bytes through as the limit allows.
type writer struct {
	l   *Limit
	ctx context.Context // of the put or connection that the bytes belong to
	w   io.Writer
}

func (w *writer) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		n := min(len(p), w.l.piece)
		if err := w.l.wait(w.ctx, n); err != nil {
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
