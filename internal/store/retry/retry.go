// Package retry makes a Store that tries again what failed for a reason that may pass.
//
// It goes outermost: around throttle and meter, which then see every try.
package retry

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/patience"
)

// Options tunes New. The zero value is ready to use.
type Options struct {
	Attempts int           // tries without progress before giving up; 0 means 10
	Patience time.Duration // from the first failure after progress, after which no further try begins; 0 means 5 min
	MaxDelay time.Duration // between tries; 0 means 20 s
	Retried  *atomic.Int64 // counts the further tries; nil is not counted
	Logger   *slog.Logger  // hears of every failure that is followed by another try; nil discards
}

// Temporary reports whether doing it again may help against err. It may not when the object is missing or there already,
// when permission is lacking, the request is wrong, the disk full or another one, or the caller gone. Everything else may pass.
func Temporary(err error) bool {
	for _, permanent := range []error{
		fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, fs.ErrInvalid, errors.ErrUnsupported, context.Canceled,
		syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.ENAMETOOLONG, syscall.EISDIR, syscall.ENOTDIR, syscall.ELOOP, syscall.ENODEV,
	} {
		if errors.Is(err, permanent) {
			return false
		}
	}
	return err != nil
}

// New returns a Store around s that tries its calls again, with growing and random delays, for as long as they make
// progress or Options allow.
//
// A body that breaks off is continued at its offset and a listing after its last entry. A put is tried again only when
// its reader is an io.Seeker that can go back to where it was; what cannot be rewound fails at once. A PutIfAbsent whose
// first try was carried out though its answer got lost ends in fs.ErrExist: who must know, compares contents. A body
// is continued by name: where objects are replaced while they are read, s itself must continue them, as it alone knows versions.
//
// The Store has PutIfAbsent and Copy if s has them. It always has DeleteMany and Walk, by way of package store where s
// lacks them.
func New(s store.Store, opts Options) store.Store {
	opts.Attempts = cmp.Or(opts.Attempts, 10)
	opts.Patience = cmp.Or(opts.Patience, 5*time.Minute)
	opts.MaxDelay = cmp.Or(opts.MaxDelay, 20*time.Second)
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	return store.Around(s, &retrier{inner: s, policy: patience.Policy{Service: "storage", MaxRetries: opts.Attempts - 1, MaxBackoff: opts.MaxDelay, Patience: opts.Patience,
		MayPass: Temporary, Reason: error.Error, Logger: opts.Logger, Retried: opts.Retried}})
}

type retrier struct {
	inner  store.Store
	policy patience.Policy
}

// again waits before the next try after err, which says what failed, or returns the error with which to give up.
func (r *retrier) again(ctx context.Context, t *patience.Tries, err error) error {
	return r.policy.Again(ctx, t, "a call", err)
}

// do makes call until it succeeds or there is no point in going on.
func (r *retrier) do(ctx context.Context, call func() error) error {
	var t patience.Tries
	for {
		err := call()
		if err == nil {
			return nil
		}
		if err := r.again(ctx, &t, err); err != nil {
			return err
		}
	}
}

// Open implements store.Store.
func (r *retrier) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	b := &body{retrier: r, ctx: ctx, name: name, left: -1}
	return b, b.first(func() (io.ReadCloser, error) { return r.inner.Open(ctx, name) })
}

// OpenRange implements store.Store.
func (r *retrier) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	b := &body{retrier: r, ctx: ctx, name: name, at: offset, left: length}
	return b, b.first(func() (io.ReadCloser, error) { return r.inner.OpenRange(ctx, name, offset, length) })
}

// body continues where the one beneath breaks off.
type body struct {
	*retrier
	ctx  context.Context // of the open, which covers what continues it
	name string
	at   int64 // offset in the object
	left int64 // bytes still to be read; below 0 is to the end
	now  io.ReadCloser
	t    patience.Tries
}

func (b *body) first(open func() (io.ReadCloser, error)) error {
	return b.do(b.ctx, func() (err error) { b.now, err = open(); return err })
}

func (b *body) Read(p []byte) (int, error) {
	for {
		var n int
		var err error
		if b.now == nil && b.left == 0 {
			return 0, io.EOF // it broke after the last byte
		}
		if b.now == nil {
			b.now, err = b.inner.OpenRange(b.ctx, b.name, b.at, b.left)
		}
		if err == nil {
			n, err = b.now.Read(p)
		}
		if n > 0 {
			b.at += int64(n)
			if b.left > 0 {
				b.left -= int64(n)
			}
			b.t.Progress()
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		if b.now != nil {
			b.now.Close() // broken already
			b.now = nil
		}
		if n > 0 {
			return n, nil // the next call goes on
		}
		if err := b.again(b.ctx, &b.t, err); err != nil {
			return 0, err
		}
	}
}

// Close ends the reading.
func (b *body) Close() error {
	if b.now == nil {
		return nil
	}
	return b.now.Close()
}

// Put implements store.Store.
func (r *retrier) Put(ctx context.Context, name string, src io.Reader) error {
	return r.put(ctx, src, func() error { return r.inner.Put(ctx, name, src) })
}

// put calls again for as long as src can be rewound.
func (r *retrier) put(ctx context.Context, src io.Reader, call func() error) error {
	seeker, ok := src.(io.Seeker)
	if !ok {
		return call()
	}
	start, err := seeker.Seek(0, io.SeekCurrent)
	if err != nil {
		return call() // a pipe, say
	}
	rewind := false
	return r.do(ctx, func() error {
		if rewind {
			if _, err := seeker.Seek(start, io.SeekStart); err != nil {
				return err
			}
		}
		rewind = true
		return call()
	})
}

// PutIfAbsent implements store.PutIfAbsenter.
func (r *retrier) PutIfAbsent(ctx context.Context, name string, src io.Reader) error {
	return r.put(ctx, src, func() error { return store.PutIfAbsent(ctx, r.inner, name, src) })
}

// Copy implements store.Copier.
func (r *retrier) Copy(ctx context.Context, from, to string) error {
	return r.do(ctx, func() error { return store.Copy(ctx, r.inner, from, to) })
}

// Stat implements store.Store.
func (r *retrier) Stat(ctx context.Context, name string) (o store.Object, err error) {
	err = r.do(ctx, func() (err error) { o, err = r.inner.Stat(ctx, name); return err })
	return o, err
}

// Delete implements store.Store.
func (r *retrier) Delete(ctx context.Context, name string) error {
	return r.do(ctx, func() error { return r.inner.Delete(ctx, name) })
}

// DeleteMany implements store.ManyDeleter.
func (r *retrier) DeleteMany(ctx context.Context, names []string) error {
	return r.do(ctx, func() error { return store.DeleteMany(ctx, r.inner, names) })
}

// List implements store.Store.
func (r *retrier) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return r.list(ctx, after, func(after string) iter.Seq2[store.Object, error] { return r.inner.List(ctx, dir, after) })
}

// Walk implements store.Walker. Where s is none it goes by List; where it is, it begins again and leaves out what was
// yielded already.
func (r *retrier) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	w, ok := r.inner.(store.Walker)
	if !ok {
		return store.Walk(ctx, struct{ store.Store }{r}, dir)
	}
	return r.list(ctx, "", func(after string) iter.Seq2[store.Object, error] {
		return func(yield func(store.Object, error) bool) {
			for o, err := range w.Walk(ctx, dir) {
				if (err != nil || o.Name > after) && !yield(o, err) {
					return
				}
			}
		}
	})
}

// list yields what from yields, and after a failure goes on with what comes after the last entry.
func (r *retrier) list(ctx context.Context, after string, from func(after string) iter.Seq2[store.Object, error]) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		var t patience.Tries
		after := after // the sequence may be run again
		for {
			var failed error
			for o, err := range from(after) {
				if err != nil {
					failed = err
					break
				}
				after = o.Name
				t.Progress()
				if !yield(o, nil) {
					return
				}
			}
			if failed == nil {
				return
			}
			if err := r.again(ctx, &t, failed); err != nil {
				yield(store.Object{}, err)
				return
			}
		}
	}
}
