// Package file keeps objects as files below a directory.
//
// An object is written to a temporary file beside its final name, synced, renamed, and the directory synced, so that a
// crash leaves the old object, the new one, or a temporary file. Temporary files are named
//
//	<name>.tmp.<YYYYMMDDTHHMMSSZ>-<16 hex digits>
//
// as WAL-G names them. They never appear as objects, and Sweep removes those whose writer is gone. Everything happens
// below the root: a symbolic link that leads out of it is an error. Nothing is put where the root has gone, or where another
// directory lies in its place by now, as when a file system was mounted over it.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/store"
	"holdfast/internal/store/unfinished"
)

// Store keeps objects below one directory. It is a store.PutIfAbsenter, Copier, ManyDeleter and Sweeper.
// Directories appear with the first object in them and go with the last.
type Store struct {
	root *os.Root
	path string
	info os.FileInfo // of the root, as it was opened
}

// Open returns the Store whose objects lie below the directory root, which must exist. A missing root is no
// fs.ErrNotExist, as that would read as a missing object.
func Open(root string) (*Store, error) {
	r, err := os.OpenRoot(root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, absent(root)
	case err != nil:
		return nil, fmt.Errorf("open the directory of the archive: %w", err)
	}
	info, err := r.Stat(".")
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("open the directory of the archive: %w", err)
	}
	return &Store{r, root, info}, nil
}

func absent(root string) error {
	return fmt.Errorf("directory %s of the archive does not exist: create it, or check that its file system is mounted", root)
}

// A MovedError says that another directory than the one that was opened lies where the archive is. What is stored in the opened one nobody finds.
type MovedError struct{ Dir string }

func (e *MovedError) Error() string {
	return e.Dir + " is another directory than when it was opened: a file system was mounted there, or is no more"
}

// Hint says how to go on.
func (e *MovedError) Hint() string { return "see that the right one is mounted, and run it again" }

// Unwrap says that trying again does not help.
func (e *MovedError) Unwrap() error { return unix.ENODEV }

// here returns an error unless the root still lies where it was opened.
func (s *Store) here() error {
	info, err := os.Stat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return absent(s.path)
	case err != nil:
		return err
	case !os.SameFile(info, s.info):
		return &MovedError{s.path}
	}
	return nil
}

// Close releases the root. The Store cannot be used afterwards; objects being read can.
func (s *Store) Close() error { return s.root.Close() }

func failure(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// check refuses what cannot be an object's name here.
func check(ctx context.Context, op, name string) error {
	if err := unfinished.Check(op, name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return failure(op, name, err)
	}
	return nil
}

// split returns the directory of an object as os.Root wants it, "." for the root, and its name there.
func split(name string) (dir, base string) { return path.Dir(name), path.Base(name) }

// gone reports whether err says that there is no such file. A file where a directory was asked for counts.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) }

// asMissing makes err an fs.ErrNotExist of name if it says that there is none, and wraps it otherwise.
func asMissing(op, name string, err error) error {
	if gone(err) {
		err = fs.ErrNotExist
	}
	return failure(op, name, err)
}

// Open implements store.Store.
func (s *Store) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := check(ctx, "open", name); err != nil {
		return nil, err
	}
	return s.open(name)
}

func (s *Store) open(name string) (*os.File, error) {
	f, err := s.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // what is not a file must not block
	if err != nil {
		return nil, asMissing("open", name, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, failure("open", name, err)
	}
	return f, nil
}

// OpenRange implements store.Store.
func (s *Store) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := check(ctx, "open", name); err != nil {
		return nil, err
	}
	if offset < 0 || length < -1 {
		return nil, fmt.Errorf("open %s from %d for %d bytes: %w", name, offset, length, fs.ErrInvalid)
	}
	f, err := s.open(name)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, failure("open", name, err)
	}
	if length < 0 {
		return f, nil
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(f, length), f}, nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, name string) (store.Object, error) {
	if err := check(ctx, "stat", name); err != nil {
		return store.Object{}, err
	}
	info, err := s.root.Stat(name)
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return store.Object{}, asMissing("stat", name, err)
	}
	return store.Object{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil
}

// List implements store.Store. It holds the names of one directory in memory, about 50 bytes each. A symbolic link
// that cannot be followed below the root is an error, for without what lies behind it the listing would be false.
func (s *Store) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := s.list(ctx, dir, after, func(o store.Object) bool { return yield(o, nil) }); err != nil {
			yield(store.Object{}, err)
		}
	}
}

func (s *Store) list(ctx context.Context, dir, after string, yield func(store.Object) bool) error {
	if err := store.CheckDir(dir); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	d, err := s.root.OpenFile(path.Clean(dir), os.O_RDONLY|unix.O_DIRECTORY, 0)
	switch {
	case gone(err):
		return ctx.Err()
	case err != nil:
		return failure("list", dir, err)
	}
	defer d.Close() // only read: nothing to lose
	names, err := s.names(ctx, d, dir, after)
	if err != nil {
		return failure("list", dir, err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return failure("list", dir, err)
		}
		switch o, err := s.describe(d, name); {
		case gone(err): // deleted since
		case err != nil:
			return failure("list", dir, err)
		case !yield(o):
			return nil
		}
	}
	return nil
}

// describe returns what there is to say in a listing about name, which lies in the directory d.
func (s *Store) describe(d *os.File, name string) (store.Object, error) {
	o := store.Object{Name: name}
	if o.IsDir() {
		return o, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), path.Base(name), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return o, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		o.Size, o.Modified = st.Size, time.Unix(st.Mtim.Unix())
		return o, nil
	}
	info, err := s.root.Stat(name)
	if err != nil {
		return o, err
	}
	o.Size, o.Modified = info.Size(), info.ModTime()
	return o, nil
}

// names returns the full names, greater than after, of the objects and directories in dir, which is open as d.
func (s *Store) names(ctx context.Context, d *os.File, dir, after string) ([]string, error) {
	// The same directory by another descriptor. Of one that was opened in a Root, ReadDir looks at each entry, of which only the kind is wanted here.
	fd, err := unix.FcntlInt(d.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	plain := os.NewFile(uintptr(fd), d.Name())
	defer plain.Close() // only read
	var names []string
	for {
		entries, err := plain.ReadDir(1000)
		if err != nil && err != io.EOF {
			return nil, err
		}
		for _, e := range entries {
			name, mode := dir+e.Name(), e.Type()
			if mode&fs.ModeSymlink != 0 {
				info, err := s.root.Stat(name)
				if err != nil {
					return nil, err
				}
				mode = info.Mode().Type()
			}
			if mode.IsDir() {
				name += "/"
			}
			_, temp := unfinished.Since(e.Name())
			foreign := !mode.IsDir() && !mode.IsRegular() || name == "lost+found/"
			if !temp && !foreign && name > after {
				names = append(names, name)
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err == io.EOF {
			slices.Sort(names)
			return names, nil
		}
	}
}

// Delete implements store.Store. The deletion is durable once it returned nil.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.DeleteMany(ctx, []string{name})
}

// DeleteMany implements store.ManyDeleter. The deletions are durable once it returned nil.
func (s *Store) DeleteMany(ctx context.Context, names []string) error {
	var errs []error
	inDir := map[string][]string{}
	for _, name := range names {
		if err := check(ctx, "delete", name); err != nil {
			errs = append(errs, err)
			continue
		}
		dir, base := split(name)
		inDir[dir] = append(inDir[dir], base)
	}
	for dir, bases := range inDir {
		errs = append(errs, s.deleteIn(ctx, dir, bases))
	}
	return errors.Join(errs...)
}

func (s *Store) deleteIn(ctx context.Context, dir string, bases []string) error {
	d, err := s.root.Open(dir)
	switch {
	case gone(err):
		return nil
	case err != nil:
		return failure("delete", path.Join(dir, bases[0]), err)
	}
	defer d.Close()
	var errs []error
	for _, base := range bases {
		err := ctx.Err()
		if err == nil {
			err = unlink(d, base)
		}
		if err != nil {
			errs = append(errs, failure("delete", path.Join(dir, base), err))
		}
	}
	if err := syncDir(d); err != nil {
		errs = append(errs, failure("delete from", dir, err))
	}
	s.prune(dir)
	return errors.Join(errs...)
}

// unlink removes the file base from the directory d. That it is missing, or a directory, is no error.
func unlink(d *os.File, base string) error {
	err := unix.Unlinkat(int(d.Fd()), base, 0)
	switch err {
	case nil, unix.ENOENT, unix.ENOTDIR, unix.EISDIR:
		return nil
	case unix.EPERM: // what POSIX answers for a directory
		var st unix.Stat_t
		if unix.Fstatat(int(d.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
	}
	return err
}

// prune removes dir and the directories above it for as long as nothing lies in them. Errors only leave them there.
func (s *Store) prune(dir string) {
	for ; dir != "."; dir = path.Dir(dir) {
		parent, err := s.root.Open(path.Dir(dir))
		if err != nil {
			return
		}
		err = unix.Unlinkat(int(parent.Fd()), path.Base(dir), unix.AT_REMOVEDIR) // not a symbolic link, as Root.Remove would
		parent.Close()
		if err != nil {
			return
		}
	}
}

// staleAfter is the age from which a temporary file may be one that a crash left behind.
const staleAfter = 24 * time.Hour

// Sweep implements store.Sweeper: it removes temporary files that writers which died have left anywhere in the store. It
// leaves those that are younger than a day, by their name or by their time, and those whose writer lives, which
// holds a lock on them.
func (s *Store) Sweep(ctx context.Context) (removed []string, err error) {
	var errs []error
	stale := time.Now().Add(-staleAfter)
	err = fs.WalkDir(s.root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case name == "lost+found":
			return fs.SkipDir
		case gone(err):
			return nil // deleted since
		case err != nil:
			errs = append(errs, err)
			return nil
		}
		if begun, temp := unfinished.Since(path.Base(name)); !temp || begun.After(stale) || !e.Type().IsRegular() {
			return nil
		}
		switch done, err := s.sweep(name, stale); {
		case gone(err): // published or removed since
		case err != nil:
			errs = append(errs, err)
		case done:
			removed = append(removed, name)
		}
		return nil
	})
	if err = errors.Join(append(errs, err)...); err != nil {
		return removed, fmt.Errorf("sweep: %w", err)
	}
	return removed, nil
}

// sweep removes a temporary file unless it is younger than stale or somebody writes to it.
func (s *Store) sweep(name string, stale time.Time) (done bool, err error) {
	f, err := s.root.OpenFile(name, os.O_WRONLY, 0) // NFS wants a writer for an exclusive lock
	if err != nil {
		return false, err
	}
	defer f.Close() // nothing was written
	info, err := f.Stat()
	if err != nil || info.ModTime().After(stale) {
		return false, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return false, nil
	}
	return true, s.root.Remove(name)
}
