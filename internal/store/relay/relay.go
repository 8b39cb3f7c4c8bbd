// Package relay copies objects from one store to another as they are, and makes sure that they came over.
//
// An object is read once from the one store while it is put into the other, on condition that none is there. What was read must be as long as the store said,
// and where somebody knows the checksum it must be that: else nothing appears in the target. Then the target is asked for the copy until it shows it, and the
// copy is read back and compared with what went in. One that reads differently is removed. Objects that the target has already are compared.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/cespare/xxhash/v2"

	"holdfast/internal/store"
)

// Sum is the length of an object in bytes and its XXH64.
type Sum struct {
	Size int64
	Hash uint64
}

// Relay copies objects. It may be used by several goroutines at once.
type Relay struct {
	From, To  store.Store
	Overwrite bool          // replace what the target has with other content; else that is a *DiffersError
	Checks    int           // how often to look again for a copy that is not to be seen yet
	Interval  time.Duration // the time between
	ReadBack  int64         // copies of up to so many bytes are read back and compared; of larger ones the length has to be right
	Passed    func(n int64) // hears of bytes that were read from the source; nil for nobody
}

// Outcome is what became of an object.
type Outcome struct {
	Object store.Object // as the source had it
	Equal  bool         // the target had it already, with the same content: nothing was copied
}

// DiffersError says that both stores have an object of one name, with different contents.
type DiffersError struct {
	Name         string
	Source, Size int64 // in bytes, in the source and in the target
}

func (e *DiffersError) Error() string {
	text := e.Name + " is in both storages, and its contents differ"
	if e.Source != e.Size {
		text += fmt.Sprintf(": it has %d bytes in the source and %d in the target", e.Source, e.Size)
	}
	return text
}

// Copy makes sure that the target has the source's object. known is what the object must be, nil where nobody knows.
func (r *Relay) Copy(ctx context.Context, name string, known *Sum) (Outcome, error) {
	o, err := r.From.Stat(ctx, name)
	if err != nil {
		return Outcome{Object: o}, gone(err)
	}
	there, err := r.To.Stat(ctx, name)
	if err == nil {
		return r.settle(ctx, o, there, known)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Outcome{Object: o}, err
	}
	return r.Put(ctx, o, known)
}

// Put copies an object of which the target has none, as a listing of both has shown. One that is there all the same is compared, as by Copy.
func (r *Relay) Put(ctx context.Context, o store.Object, known *Sum) (Outcome, error) {
	src := r.source(ctx, o, known)
	defer src.Close()
	err := store.PutIfAbsent(ctx, r.To, o.Name, src)
	if errors.Is(err, fs.ErrExist) {
		there, err := r.To.Stat(ctx, o.Name)
		if err != nil {
			return Outcome{Object: o}, err
		}
		return r.settle(ctx, o, there, known)
	}
	if err != nil {
		return Outcome{Object: o}, gone(err)
	}
	return Outcome{Object: o}, r.verify(ctx, o, src)
}

// settle compares what both stores have under one name, and replaces the target's where that is asked for.
func (r *Relay) settle(ctx context.Context, o, there store.Object, known *Sum) (Outcome, error) {
	switch same, err := r.Same(ctx, o, there, known); {
	case err != nil:
		return Outcome{Object: o}, err
	case same:
		return Outcome{Object: o, Equal: true}, nil
	case !r.Overwrite:
		return Outcome{Object: o}, &DiffersError{o.Name, o.Size, there.Size}
	}
	src := r.source(ctx, o, known)
	defer src.Close()
	if err := r.To.Put(ctx, o.Name, src); err != nil {
		return Outcome{Object: o}, gone(err)
	}
	return Outcome{Object: o}, r.verify(ctx, o, src)
}

// gone says of an object that it left the source since it was listed.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it left the source meanwhile: %v", err)
	}
	return err
}

// Same reports whether the target's object there has the content of the source's o. Where it is known what that is only the target is read.
func (r *Relay) Same(ctx context.Context, o, there store.Object, known *Sum) (bool, error) {
	if o.Size != there.Size || known != nil && known.Size != there.Size {
		return false, nil
	}
	if known == nil {
		ours, err := Read(ctx, r.From, o.Name)
		if err != nil {
			return false, gone(err)
		}
		known = &ours
	}
	theirs, err := Read(ctx, r.To, o.Name)
	return err == nil && *known == theirs, err
}

// Read reads a whole object and sums it up.
func Read(ctx context.Context, s store.Store, name string) (Sum, error) {
	r, err := s.Open(ctx, name)
	if err != nil {
		return Sum{}, err
	}
	defer r.Close() // only read: nothing to lose
	h := xxhash.New()
	n, err := io.Copy(h, r)
	return Sum{n, h.Sum64()}, err
}

// verify waits until the target shows the copy that src was read for, and compares. A copy that is not what went in is removed.
func (r *Relay) verify(ctx context.Context, o store.Object, src *source) error {
	there, err := r.To.Stat(ctx, o.Name)
	for n := 0; errors.Is(err, fs.ErrNotExist) && n < r.Checks; n++ {
		timer := time.NewTimer(r.Interval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		there, err = r.To.Stat(ctx, o.Name)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the copy is not to be seen in the target: %v", err)
	case err != nil:
		return err
	case there.Size != src.n:
		err = fmt.Errorf("%s has %d bytes in the source, and the copy %d", o.Name, src.n, there.Size)
		return errors.Join(err, r.To.Delete(ctx, o.Name))
	}
	if err := src.check(); err != nil { // a store that did not read to the end of it has not heard
		return errors.Join(err, r.To.Delete(ctx, o.Name))
	}
	if o.Size > r.ReadBack {
		return nil
	}
	switch got, err := Read(ctx, r.To, o.Name); {
	case err != nil:
		return &readBackError{err}
	case got != Sum{src.n, src.sum.Sum64()}:
		err = fmt.Errorf("%s reads differently from the target than from the source", o.Name)
		return errors.Join(err, r.To.Delete(ctx, o.Name))
	}
	return nil
}

// readBackError says that a copy could not be compared.
type readBackError struct{ err error }

func (e *readBackError) Error() string { return fmt.Sprintf("read the copy back: %v", e.err) }
func (e *readBackError) Unwrap() error { return e.err }

// source reads an object, and can go back to its start. It sums up what it yields, and does not end well unless that is what it should be.
type source struct {
	ctx    context.Context // of the copy
	s      store.Store
	object store.Object
	known  *Sum
	passed func(int64)
	body   io.ReadCloser
	n      int64
	sum    *xxhash.Digest
}

func (r *Relay) source(ctx context.Context, o store.Object, known *Sum) *source {
	return &source{ctx: ctx, s: r.From, object: o, known: known, passed: r.Passed, sum: xxhash.New()}
}

func (s *source) Read(p []byte) (n int, err error) {
	if s.body == nil {
		if s.body, err = s.s.Open(s.ctx, s.object.Name); err != nil {
			return 0, err
		}
	}
	n, err = s.body.Read(p)
	s.n += int64(n)
	s.sum.Write(p[:n])
	if s.passed != nil && n > 0 {
		s.passed(int64(n))
	}
	if err == io.EOF {
		if wrong := s.check(); wrong != nil {
			err = wrong
		}
	}
	return n, err
}

// DamagedError says that an object of the source is not what it should be. It is an fs.ErrInvalid: it will be so the next time too.
type DamagedError struct{ Name, Reason string }

func (e *DamagedError) Error() string { return fmt.Sprintf("read %s: %s", e.Name, e.Reason) }

// Is makes it an fs.ErrInvalid.
func (e *DamagedError) Is(target error) bool { return target == fs.ErrInvalid }

// check returns what is wrong with what was read to its end.
func (s *source) check() error {
	switch {
	case s.n != s.object.Size:
		return &DamagedError{s.object.Name, fmt.Sprintf("it yields %d bytes, and the source lists it with %d: it was replaced meanwhile, or is damaged", s.n, s.object.Size)}
	case s.known != nil && *s.known != Sum{s.n, s.sum.Sum64()}:
		return &DamagedError{s.object.Name, fmt.Sprintf("it is not what was stored: it has %d bytes with the XXH64 %016x, and %d with %016x were put", s.n, s.sum.Sum64(),
			s.known.Size, s.known.Hash)}
	}
	return nil
}

// Seek goes to the start; where it is, it says too.
func (s *source) Seek(offset int64, whence int) (int64, error) {
	switch {
	case whence == io.SeekCurrent && offset == 0:
		return s.n, nil
	case whence != io.SeekStart || offset != 0:
		return 0, fs.ErrInvalid
	}
	if s.passed != nil {
		s.passed(-s.n)
	}
	err := s.Close()
	s.body, s.n = nil, 0
	s.sum.Reset()
	return 0, err
}

func (s *source) Close() error {
	if s.body == nil {
		return nil
	}
	return s.body.Close()
}
