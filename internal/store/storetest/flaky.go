package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"holdfast/internal/store"
)

// ErrInjected is what a Flaky's failing call returns, perhaps wrapped.
var ErrInjected = errors.New("storetest: injected failure")

// Flaky is a Store around a Store, one call of which fails. It has every optional interface; where the Store
// beneath lacks one, package store's fallback stands in and counts as that one call.
type Flaky struct {
	inner store.Store
	n     int
	when  moment

	mu    sync.Mutex
	calls []string
}

type moment int

const (
	before moment = iota // nothing was done
	midway
	after // all was done
)

// FailAt returns a Store around s whose n-th call, counted from 0, returns ErrInjected without having done anything.
// With n below 0 none fails.
func FailAt(s store.Store, n int) *Flaky { return &Flaky{inner: s, n: n, when: before} }

// FailMidway returns a Store around s whose n-th call, counted from 0, breaks off: a put has consumed up to 64 KiB of
// its reader and stored nothing, a body has yielded half of its first read, a listing its first entry, a delete of many
// the first half of the names. A call without a middle fails as with FailAt.
func FailMidway(s store.Store, n int) *Flaky { return &Flaky{inner: s, n: n, when: midway} }

// FailAfter returns a Store around s whose n-th call, counted from 0, is done in full, and yet returns ErrInjected: the
// answer was lost on its way. The body of an open fails at its end, a listing after its last entry.
func FailAfter(s store.Store, n int) *Flaky { return &Flaky{inner: s, n: n, when: after} }

// Reached reports whether the call that is to fail has been made.
func (f *Flaky) Reached() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n >= 0 && len(f.calls) > f.n
}

// Calls returns the calls made so far in their order, such as "put wal_005/000000010000000000000001.lz4".
func (f *Flaky) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// turn notes a call and reports whether it is the one to fail.
func (f *Flaky) turn(op, name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, op+" "+name)
	return len(f.calls)-1 == f.n
}

// do makes a call; half is what is done of it before it breaks off.
func (f *Flaky) do(op, name string, call, half func() error) error {
	fails := f.turn(op, name)
	var err error
	switch {
	case !fails:
		return call()
	case f.when == midway && half != nil:
		err = half()
	case f.when == after:
		err = call()
	}
	if err != nil {
		return err
	}
	return failure(op, name, ErrInjected)
}

// Open implements store.Store.
func (f *Flaky) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return f.open("open", name, func() (io.ReadCloser, error) { return f.inner.Open(ctx, name) })
}

// OpenRange implements store.Store.
func (f *Flaky) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	return f.open("open", name, func() (io.ReadCloser, error) { return f.inner.OpenRange(ctx, name, offset, length) })
}

func (f *Flaky) open(op, name string, call func() (io.ReadCloser, error)) (io.ReadCloser, error) {
	fails := f.turn(op, name)
	if fails && f.when == before {
		return nil, failure(op, name, ErrInjected)
	}
	r, err := call()
	if err != nil || !fails {
		return r, err
	}
	return &breaking{ReadCloser: r, name: name, when: f.when}, nil
}

// breaking is a body that breaks midway or in place of its end.
type breaking struct {
	io.ReadCloser
	name   string
	when   moment
	broken bool
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.broken {
		return 0, failure("read", b.name, ErrInjected)
	}
	n, err := b.ReadCloser.Read(p)
	if b.when == midway {
		b.broken = true
		n, err = n/2, nil
		if n == 0 {
			err = failure("read", b.name, ErrInjected)
		}
	}
	if err == io.EOF {
		err = failure("read", b.name, ErrInjected)
	}
	return n, err
}

// Put implements store.Store.
func (f *Flaky) Put(ctx context.Context, name string, r io.Reader) error {
	return f.put("put", name, r, func() error { return f.inner.Put(ctx, name, r) })
}

// PutIfAbsent implements store.PutIfAbsenter.
func (f *Flaky) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return f.put("put if absent", name, r, func() error { return store.PutIfAbsent(ctx, f.inner, name, r) })
}

func (f *Flaky) put(op, name string, r io.Reader, call func() error) error {
	return f.do(op, name, call, func() error {
		_, err := io.CopyN(io.Discard, onlyReader{r}, 64<<10)
		if err == io.EOF {
			err = nil
		}
		return err
	})
}

// onlyReader hides what else a reader can do, so that no more of it is consumed than asked for.
type onlyReader struct{ io.Reader }

// Stat implements store.Store.
func (f *Flaky) Stat(ctx context.Context, name string) (o store.Object, err error) {
	err = f.do("stat", name, func() error { o, err = f.inner.Stat(ctx, name); return err }, nil)
	if err != nil {
		return store.Object{}, err
	}
	return o, nil
}

// List implements store.Store.
func (f *Flaky) List(ctx context.Context, dir, from string) iter.Seq2[store.Object, error] {
	return f.list("list", dir, f.inner.List(ctx, dir, from))
}

// Walk implements store.Walker.
func (f *Flaky) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return f.list("walk", dir, store.Walk(ctx, f.inner, dir))
}

func (f *Flaky) list(op, dir string, entries iter.Seq2[store.Object, error]) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		fails := f.turn(op, dir)
		if fails && f.when == before {
			yield(store.Object{}, failure(op, dir, ErrInjected))
			return
		}
		for o, err := range entries {
			if !yield(o, err) || err != nil {
				return
			}
			if fails && f.when == midway {
				break
			}
		}
		if fails {
			yield(store.Object{}, failure(op, dir, ErrInjected))
		}
	}
}

// Delete implements store.Store.
func (f *Flaky) Delete(ctx context.Context, name string) error {
	return f.do("delete", name, func() error { return f.inner.Delete(ctx, name) }, nil)
}

// DeleteMany implements store.ManyDeleter.
func (f *Flaky) DeleteMany(ctx context.Context, names []string) error {
	return f.do("delete many", fmt.Sprintf("(%d)", len(names)), func() error { return store.DeleteMany(ctx, f.inner, names) },
		func() error { return store.DeleteMany(ctx, f.inner, names[:len(names)/2]) })
}

// Copy implements store.Copier. Where the Store beneath is none it fails with errors.ErrUnsupported.
func (f *Flaky) Copy(ctx context.Context, from, to string) error {
	return f.do("copy", to, func() error { return store.Copy(ctx, f.inner, from, to) }, nil)
}
