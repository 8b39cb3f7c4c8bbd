package storetest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"sync/atomic"

	"holdfast/internal/store"
)

// ErrDown is what a Mortal that is down returns.
var ErrDown = errors.New("connection refused")

// Mortal is a Store in memory that is down when told to be.
type Mortal struct {
	*Memory // which is well, always

	Down     atomic.Bool // every call fails with ErrDown; puts have begun to read then
	Silent   atomic.Bool // every call takes until its context ends
	ReadOnly atomic.Bool // puts fail with fs.ErrPermission

	Calls, Writes atomic.Int64 // made so far; Writes are the puts among them
}

// NewMortal returns a Mortal that is well.
func NewMortal() *Mortal { return &Mortal{Memory: &Memory{}} }

func (m *Mortal) turn(ctx context.Context) error {
	m.Calls.Add(1)
	if m.Silent.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if m.Down.Load() {
		return ErrDown
	}
	return nil
}

// Open implements store.Store.
func (m *Mortal) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := m.turn(ctx); err != nil {
		return nil, err
	}
	return m.Memory.Open(ctx, name)
}

// OpenRange implements store.Store.
func (m *Mortal) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := m.turn(ctx); err != nil {
		return nil, err
	}
	return m.Memory.OpenRange(ctx, name, offset, length)
}

// Stat implements store.Store.
func (m *Mortal) Stat(ctx context.Context, name string) (store.Object, error) {
	if err := m.turn(ctx); err != nil {
		return store.Object{}, err
	}
	return m.Memory.Stat(ctx, name)
}

// Put implements store.Store.
func (m *Mortal) Put(ctx context.Context, name string, r io.Reader) error {
	return m.put(ctx, name, r, m.Memory.Put)
}

// PutIfAbsent implements store.PutIfAbsenter.
func (m *Mortal) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return m.put(ctx, name, r, m.Memory.PutIfAbsent)
}

func (m *Mortal) put(ctx context.Context, name string, r io.Reader, put func(context.Context, string, io.Reader) error) error {
	m.Writes.Add(1)
	if err := m.turn(ctx); err != nil {
		io.CopyN(io.Discard, r, 3) // it had begun
		return err
	}
	if m.ReadOnly.Load() {
		return failure("put", name, fs.ErrPermission)
	}
	return put(ctx, name, r)
}

// List implements store.Store.
func (m *Mortal) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return m.list(ctx, m.Memory.List(ctx, dir, after))
}

// Walk implements store.Walker.
func (m *Mortal) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return m.list(ctx, m.Memory.Walk(ctx, dir))
}

func (m *Mortal) list(ctx context.Context, all iter.Seq2[store.Object, error]) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := m.turn(ctx); err != nil {
			yield(store.Object{}, err)
			return
		}
		all(yield)
	}
}

// Delete implements store.Store.
func (m *Mortal) Delete(ctx context.Context, name string) error {
	return m.DeleteMany(ctx, []string{name})
}

// DeleteMany implements store.ManyDeleter.
func (m *Mortal) DeleteMany(ctx context.Context, names []string) error {
	if err := m.turn(ctx); err != nil {
		return err
	}
	return m.Memory.DeleteMany(ctx, names)
}

// Copy implements store.Copier.
func (m *Mortal) Copy(ctx context.Context, from, to string) error {
	if err := m.turn(ctx); err != nil {
		return err
	}
	return m.Memory.Copy(ctx, from, to)
}
