// Package meter makes a Store that counts what is done with it.
package meter

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	"holdfast/internal/store"
)

// Counters count the calls of one or more Stores. The zero value is ready to use, and may be read while it counts.
type Counters struct {
	read, written, retried                 atomic.Int64
	open, put, stat, list, deletes, copies counter
}

// Counts is what Counters held at one moment.
type Counts struct {
	Read    int64 // bytes that bodies yielded
	Written int64 // bytes that puts took from their readers, those of failed puts included

	Retried int64 // tries behind the first that the stores below made, as far as they have Counters.Retried

	Open   Op // to the closing of the body
	Put    Op // PutIfAbsent too
	Stat   Op
	List   Op // Walk too; objects are the entries yielded
	Delete Op // DeleteMany too
	Copy   Op
}

// Op counts the calls of one kind.
type Op struct {
	Calls   int64         // that have ended
	Failed  int64         // of these; that an object is missing, or there already, is an answer and no failure
	Running int64         // that have not ended
	Objects int64         // that the calls were about
	Time    time.Duration // that the calls took, those at the same time added up

	// Took counts the calls by how long they took: Took[i] those that took at most Bounds()[i] and more than the bound before, the last
	// one those that took more than all bounds.
	Took [len(bounds) + 1]int64
}

// Plus returns the counts of both together.
func (c Counts) Plus(o Counts) Counts {
	c.Read, c.Written, c.Retried = c.Read+o.Read, c.Written+o.Written, c.Retried+o.Retried
	for _, both := range []struct {
		into *Op
		from Op
	}{{&c.Open, o.Open}, {&c.Put, o.Put}, {&c.Stat, o.Stat}, {&c.List, o.List}, {&c.Delete, o.Delete}, {&c.Copy, o.Copy}} {
		both.into.add(both.from)
	}
	return c
}

func (o *Op) add(other Op) {
	o.Calls, o.Failed, o.Running, o.Objects, o.Time = o.Calls+other.Calls, o.Failed+other.Failed, o.Running+other.Running, o.Objects+other.Objects, o.Time+other.Time
	for i, n := range other.Took {
		o.Took[i] += n
	}
}

// bounds are from what a file system answers in to what a large part takes over a slow line.
var bounds = [...]time.Duration{
	time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute,
}

// Bounds returns the bounds of Op.Took, ascending.
func Bounds() []time.Duration { return slices.Clone(bounds[:]) }

// Read returns what c holds now.
func (c *Counters) Read() Counts {
	return Counts{
		Read: c.read.Load(), Written: c.written.Load(), Retried: c.retried.Load(),
		Open: c.open.op(), Put: c.put.op(), Stat: c.stat.op(), List: c.list.op(), Delete: c.deletes.op(), Copy: c.copies.op(),
	}
}

// Retried is for a store to count into what it tries again by itself.
func (c *Counters) Retried() *atomic.Int64 { return &c.retried }

// counter counts one kind of call.
type counter struct {
	calls, failed, running, objects, nanos atomic.Int64
	took                                   [len(bounds) + 1]atomic.Int64
}

func (c *counter) op() Op {
	o := Op{Calls: c.calls.Load(), Failed: c.failed.Load(), Running: c.running.Load(), Objects: c.objects.Load(), Time: time.Duration(c.nanos.Load())}
	for i := range c.took {
		o.Took[i] = c.took[i].Load()
	}
	return o
}

// begin counts a call about so many objects, and returns what to call with its error at its end.
func (c *counter) begin(objects int) (end func(error)) {
	began := time.Now()
	c.running.Add(1)
	c.objects.Add(int64(objects))
	return func(err error) {
		took := time.Since(began)
		c.nanos.Add(int64(took))
		i, _ := slices.BinarySearch(bounds[:], took)
		c.took[i].Add(1)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			c.failed.Add(1)
		}
		c.calls.Add(1)
		c.running.Add(-1)
	}
}

// count makes a call about so many objects.
func (c *counter) count(objects int, call func() error) error {
	end := c.begin(objects)
	err := call()
	end(err)
	return err
}

// New returns a Store around inner that counts into c. It has PutIfAbsent and Copy if inner has them. It always has
// DeleteMany and Walk, by way of package store where inner lacks them.
func New(inner store.Store, c *Counters) store.Store {
	return store.Around(inner, &metered{inner: inner, c: c})
}

type metered struct {
	inner store.Store
	c     *Counters
}

// Open implements store.Store.
func (m *metered) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	end := m.c.open.begin(1)
	return m.body(end)(m.inner.Open(ctx, name))
}

// OpenRange implements store.Store.
func (m *metered) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	end := m.c.open.begin(1)
	return m.body(end)(m.inner.OpenRange(ctx, name, offset, length))
}

func (m *metered) body(end func(error)) func(io.ReadCloser, error) (io.ReadCloser, error) {
	return func(r io.ReadCloser, err error) (io.ReadCloser, error) {
		if err != nil {
			end(err)
			return nil, err
		}
		return &body{r: r, read: &m.c.read, end: end}, nil
	}
}

// body counts what it yields, and the call as ended when it is closed.
type body struct {
	r      io.ReadCloser
	read   *atomic.Int64
	failed error
	end    func(error) // nil once closed
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.read.Add(int64(n))
	if err != nil && err != io.EOF {
		b.failed = err
	}
	return n, err
}

func (b *body) Close() error {
	err := b.r.Close()
	if b.end != nil {
		b.end(errors.Join(b.failed, err))
		b.end = nil
	}
	return err
}

// source returns r, counted; what can write itself still can.
func (c *Counters) source(r io.Reader) io.Reader {
	if w, ok := r.(io.WriterTo); ok {
		return &writerTo{reader{r, &c.written}, w}
	}
	return &reader{r, &c.written}
}

type reader struct {
	r io.Reader
	n *atomic.Int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.n.Add(int64(n))
	return n, err
}

type writerTo struct {
	reader
	from io.WriterTo
}

func (w *writerTo) WriteTo(dst io.Writer) (int64, error) { return w.from.WriteTo(&writer{dst, w.n}) }

type writer struct {
	w io.Writer
	n *atomic.Int64
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// Put implements store.Store.
func (m *metered) Put(ctx context.Context, name string, r io.Reader) error {
	return m.c.put.count(1, func() error { return m.inner.Put(ctx, name, m.c.source(r)) })
}

// PutIfAbsent implements store.PutIfAbsenter.
func (m *metered) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return m.c.put.count(1, func() error { return store.PutIfAbsent(ctx, m.inner, name, m.c.source(r)) })
}

// Copy implements store.Copier.
func (m *metered) Copy(ctx context.Context, from, to string) error {
	return m.c.copies.count(1, func() error { return store.Copy(ctx, m.inner, from, to) })
}

// Stat implements store.Store.
func (m *metered) Stat(ctx context.Context, name string) (o store.Object, err error) {
	err = m.c.stat.count(1, func() error { o, err = m.inner.Stat(ctx, name); return err })
	return o, err
}

// List implements store.Store.
func (m *metered) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return m.entries(m.inner.List(ctx, dir, after))
}

// Walk implements store.Walker.
func (m *metered) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return m.entries(store.Walk(ctx, m.inner, dir))
}

// entries counts a listing; its time includes what is done with the entries.
func (m *metered) entries(seq iter.Seq2[store.Object, error]) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		end := m.c.list.begin(0)
		var failed error
		defer func() { end(failed) }()
		for o, err := range seq {
			if err != nil {
				failed = err
			} else {
				m.c.list.objects.Add(1)
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// Delete implements store.Store.
func (m *metered) Delete(ctx context.Context, name string) error {
	return m.c.deletes.count(1, func() error { return m.inner.Delete(ctx, name) })
}

// DeleteMany implements store.ManyDeleter.
func (m *metered) DeleteMany(ctx context.Context, names []string) error {
	return m.c.deletes.count(len(names), func() error { return store.DeleteMany(ctx, m.inner, names) })
}
