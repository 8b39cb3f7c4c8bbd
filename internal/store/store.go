// Package store says what a store of named objects must do.
//
// A Store keeps objects under names such as "wal_005/000000010000000000000001.zst": slash separated, relative to the
// store's root, never empty, without a leading slash, "." or ".." elements. Objects are whole or absent: a reader never
// sees half of one, whatever happened to its writer. No name may be the directory of another ("a" beside "a/b"), and a
// directory is there for as long as something lies in it. One package below this one implements a Store per service, and
// wrappers (retry, throttle, meter) are Stores around a Store. Every one of them passes the suite in storetest.
//
// The store of a service over the network sees to what only it can know: it gives up a connection without a byte for a while,
// tries again what may pass, each time telling a logger once and all together for minutes only, and lets its caller wrap
// connections, so that a limit can be on them. Its errors name the setting to look at. A wrong one is no reason to try again.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Object describes one object, or in a listing one directory.
type Object struct {
	Name     string    // from the store's root; a directory's ends in "/"
	Size     int64     // bytes; 0 for a directory
	Modified time.Time // when its content was last replaced; zero for a directory
	Storage  string    // which of several stores it lies in, "" where there is one; "" for a directory, which may lie in many
	// Frozen is the storage class it lies in where it must be thawed before it can be read. "" for what can be read, and where the service does not say; a
	// listing may call frozen what was thawed, Stat does not.
	Frozen string
}

// IsDir reports whether o stands for the objects below a prefix rather than for an object.
func (o Object) IsDir() bool { return strings.HasSuffix(o.Name, "/") }

// A Store keeps named objects. Its methods may be called from several goroutines at once.
//
// Errors name operation and object, and callers may ask them what to do next: fs.ErrNotExist, there is no such object; fs.ErrExist,
// there is one already; fs.ErrPermission, the service refuses us; fs.ErrInvalid, it refuses what was asked, as it will the next
// time; errors.ErrUnsupported, it cannot do that; context.Canceled and context.DeadlineExceeded, the caller's own. Any other may
// pass. That the bucket, container or directory of the whole store is missing is none of fs.ErrNotExist.
type Store interface {
	// Open reads an object from its beginning. The caller closes it.
	Open(ctx context.Context, name string) (io.ReadCloser, error)

	// OpenRange reads length bytes from offset on, or fewer where the object ends sooner; length -1 means to the end.
	// An offset at or behind the end reads as empty.
	OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error)

	// Put stores what r yields under name, replacing what was there. The object appears whole and is durable once
	// Put returned nil, and does not appear (or stays as it was) when r or Put fails. Memory used does not depend
	// on how much r yields. Where r is an io.WriterTo, Put may use that.
	Put(ctx context.Context, name string, r io.Reader) error

	// Stat describes an object.
	Stat(ctx context.Context, name string) (Object, error)

	// List yields what lies directly in dir, objects and directories, in ascending byte order of their names. dir is
	// "" for the root or ends in "/". Only names greater than after (a full name, or "") are yielded. A dir in which
	// nothing lies is empty, not an error. After an error nothing more is yielded.
	List(ctx context.Context, dir, after string) iter.Seq2[Object, error]

	// Delete removes an object. Removing a missing object is not an error.
	Delete(ctx context.Context, name string) error
}

// The interfaces below are optional, and found by assertion on the store itself or on what is wrapped around it.

// A PutIfAbsenter can create an object only where none is, deciding atomically with all other writers. Otherwise
// the error satisfies errors.Is(err, fs.ErrExist) and the object there is untouched. A store that finds only in use that its service
// cannot decide does what PutIfAbsent does for one that is none, and says so in its documentation.
type PutIfAbsenter interface {
	PutIfAbsent(ctx context.Context, name string, r io.Reader) error
}

// A Copier copies an object inside the store without the bytes passing through this process.
type Copier interface {
	Copy(ctx context.Context, from, to string) error
}

// A ManyDeleter removes many objects in few calls. When it returns an error some may be gone, and the error says what of the rest
// was refused; calling it again with all names is fine.
type ManyDeleter interface {
	DeleteMany(ctx context.Context, names []string) error
}

// A Walker lists all objects below dir at any depth, without directories, faster than repeated List. They come in ascending
// byte order of their names.
type Walker interface {
	Walk(ctx context.Context, dir string) iter.Seq2[Object, error]
}

// A Sweeper removes what writers that died left unfinished, which no listing shows, and returns the names of what it removed. It
// leaves what may belong to a writer that lives. Only the store of a service has it, not what is wrapped around one.
type Sweeper interface {
	Sweep(ctx context.Context) (removed []string, err error)
}

// Full is a Store with the optional interfaces that one around another store has.
type Full interface {
	Store
	PutIfAbsenter
	Copier
	ManyDeleter
	Walker
}

// Around returns outer, a store around inner, without PutIfAbsent and Copy where inner has none. The functions of this package
// stand in for DeleteMany and Walk that inner lacks; an atomic decision and a copy inside the service have no substitute.
func Around(inner Store, outer Full) Store {
	type plain interface {
		Store
		ManyDeleter
		Walker
	}
	_, mayAbsent := inner.(PutIfAbsenter)
	_, mayCopy := inner.(Copier)
	switch {
	case mayAbsent && mayCopy:
		return outer
	case mayAbsent:
		return struct {
			plain
			PutIfAbsenter
		}{outer, outer}
	case mayCopy:
		return struct {
			plain
			Copier
		}{outer, outer}
	}
	return struct{ plain }{outer}
}

// PutIfAbsent creates name in s, atomically where s is a PutIfAbsenter. Where it is not, it looks first and puts
// then: two writers in the same instant may both succeed, the later one winning.
func PutIfAbsent(ctx context.Context, s Store, name string, r io.Reader) error {
	if c, ok := s.(PutIfAbsenter); ok {
		return c.PutIfAbsent(ctx, name, r)
	}
	switch _, err := s.Stat(ctx, name); {
	case err == nil:
		return Exists(name)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return s.Put(ctx, name, r)
}

// Copy copies an object of s where s is a Copier. Where it is not the error is an errors.ErrUnsupported.
func Copy(ctx context.Context, s Store, from, to string) error {
	if c, ok := s.(Copier); ok {
		return c.Copy(ctx, from, to)
	}
	return &fs.PathError{Op: "copy", Path: from, Err: errors.ErrUnsupported}
}

// DeleteMany removes names from s, in batches where s is a ManyDeleter. It tries all of them and joins the errors.
func DeleteMany(ctx context.Context, s Store, names []string) error {
	if d, ok := s.(ManyDeleter); ok {
		return d.DeleteMany(ctx, names)
	}
	var errs []error
	for _, name := range names {
		if err := s.Delete(ctx, name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Each calls f for each of names, up to atOnce at once, and joins the errors.
func Each(names []string, atOnce int, f func(name string) error) error {
	errs := make([]error, len(names))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, name := range names {
		g.Go(func() error {
			errs[i] = f(name)
			return nil
		})
	}
	g.Wait() // each has its own error
	return errors.Join(errs...)
}

// Walk yields every object below dir ("" or ending in "/") at any depth, and no directories, in ascending byte order
// of their names.
func Walk(ctx context.Context, s Store, dir string) iter.Seq2[Object, error] {
	if w, ok := s.(Walker); ok {
		return w.Walk(ctx, dir)
	}
	return func(yield func(Object, error) bool) { walk(ctx, s, dir, yield) }
}

func walk(ctx context.Context, s Store, dir string, yield func(Object, error) bool) bool {
	for o, err := range s.List(ctx, dir, "") {
		switch {
		case err != nil:
			yield(Object{}, err)
			return false
		case o.IsDir():
			if !walk(ctx, s, o.Name, yield) {
				return false
			}
		case !yield(o, nil):
			return false
		}
	}
	return true
}

// ReadFile reads a whole object of at most max bytes; a larger one is an error, not memory.
func ReadFile(ctx context.Context, s Store, name string, max int64) (_ []byte, err error) {
	r, err := s.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close() // only read: nothing to lose
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > max {
		return nil, fmt.Errorf("read %s: larger than the %d bytes such an object may have", name, max)
	}
	return b, nil
}

// CheckName reports whether name may name an object, and why not. The error is an fs.ErrInvalid.
func CheckName(name string) error {
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("object name %q is not a clean relative path: %w", name, fs.ErrInvalid)
	}
	return nil
}

// CheckDir reports whether dir may name a directory to be listed, "" or a clean relative path with "/" at its end,
// and why not. The error is an fs.ErrInvalid.
func CheckDir(dir string) error {
	if path, slash := strings.CutSuffix(dir, "/"); dir != "" && (!slash || CheckName(path) != nil) {
		return fmt.Errorf("directory name %q is neither empty nor a clean relative path ending in /: %w", dir, fs.ErrInvalid)
	}
	return nil
}
