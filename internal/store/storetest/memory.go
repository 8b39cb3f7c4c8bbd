package storetest

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/store"
)

// Memory is a Store in memory, with every optional interface. The zero value is empty and ready to use.
type Memory struct {
	mu      sync.Mutex
	objects map[string]object
}

type object struct {
	data     []byte // never changed once stored, so that readers need no lock
	modified time.Time
}

func failure(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

func (m *Memory) get(ctx context.Context, op, name string) (object, error) {
	if err := store.CheckName(name); err != nil {
		return object{}, err
	}
	if err := ctx.Err(); err != nil {
		return object{}, failure(op, name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[name]
	if !ok {
		return object{}, failure(op, name, fs.ErrNotExist)
	}
	return o, nil
}

// Open implements store.Store.
func (m *Memory) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return m.OpenRange(ctx, name, 0, -1)
}

// OpenRange implements store.Store.
func (m *Memory) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length < -1 {
		return nil, failure("open", name, fs.ErrInvalid)
	}
	o, err := m.get(ctx, "open", name)
	if err != nil {
		return nil, err
	}
	data := o.data[min(offset, int64(len(o.data))):]
	if length >= 0 {
		data = data[:min(length, int64(len(data)))]
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// Stat implements store.Store.
func (m *Memory) Stat(ctx context.Context, name string) (store.Object, error) {
	o, err := m.get(ctx, "stat", name)
	if err != nil {
		return store.Object{}, err
	}
	return store.Object{Name: name, Size: int64(len(o.data)), Modified: o.modified}, nil
}

// Put implements store.Store.
func (m *Memory) Put(ctx context.Context, name string, r io.Reader) error {
	return m.put(ctx, name, r, true)
}

// PutIfAbsent implements store.PutIfAbsenter.
func (m *Memory) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return m.put(ctx, name, r, false)
}

func (m *Memory) put(ctx context.Context, name string, r io.Reader, replace bool) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return failure("put", name, err)
	}
	var data bytes.Buffer
	if _, err := io.Copy(&untilDone{ctx, &data}, r); err != nil { // by WriteTo where r has that
		return failure("put", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.objects[name]; taken && !replace {
		return failure("put", name, fs.ErrExist)
	}
	if m.objects == nil {
		m.objects = make(map[string]object)
	}
	m.objects[name] = object{data.Bytes(), time.Now()}
	return nil
}

// untilDone writes to w for as long as ctx is not done.
type untilDone struct {
	ctx context.Context
	w   io.Writer
}

func (u *untilDone) Write(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.w.Write(p)
}

// Copy implements store.Copier.
func (m *Memory) Copy(ctx context.Context, from, to string) error {
	r, err := m.Open(ctx, from)
	if err != nil {
		return err
	}
	return m.Put(ctx, to, r)
}

// Delete implements store.Store.
func (m *Memory) Delete(ctx context.Context, name string) error {
	return m.DeleteMany(ctx, []string{name})
}

// DeleteMany implements store.ManyDeleter.
func (m *Memory) DeleteMany(ctx context.Context, names []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		if err := store.CheckName(name); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return failure("delete", name, err)
		}
		delete(m.objects, name)
	}
	return nil
}

// List implements store.Store. It shows the objects as they were when the iteration began.
func (m *Memory) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		last := ""
		for o, err := range m.Walk(ctx, dir) {
			if err == nil {
				if i := strings.IndexByte(o.Name[len(dir):], '/'); i >= 0 {
					o = store.Object{Name: o.Name[:len(dir)+i+1]}
				}
				if o.Name == last || o.Name <= after {
					continue
				}
				last = o.Name
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// Walk implements store.Walker. It shows the objects as they were when the iteration began.
func (m *Memory) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := store.CheckDir(dir); err != nil {
			yield(store.Object{}, err)
			return
		}
		m.mu.Lock()
		objects := maps.Clone(m.objects)
		m.mu.Unlock()
		for _, name := range slices.Sorted(maps.Keys(objects)) {
			if err := ctx.Err(); err != nil {
				yield(store.Object{}, failure("list", dir, err))
				return
			}
			o := objects[name]
			if strings.HasPrefix(name, dir) && !yield(store.Object{Name: name, Size: int64(len(o.data)), Modified: o.modified}, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(store.Object{}, failure("list", dir, err))
		}
	}
}
