package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/store/unfinished"
)

const (
	fileMode = 0o640 // before umask
	dirMode  = 0o750 // before umask

	bufferSize     = 1 << 20 // of reads from sources that cannot write themselves
	writebackEvery = 8 << 20 // bytes after which the kernel is told to begin writing them out
)

// Put implements store.Store. A source that is an io.WriterTo writes straight into the file, and from an *os.File the
// kernel copies.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) error {
	return s.put(ctx, name, r, false)
}

// PutIfAbsent implements store.PutIfAbsenter: rename without replacing where the file system can do it, else a hard link.
// On a file system with neither, only writers on the same host exclude each other, by a lock on the directory.
func (s *Store) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return s.put(ctx, name, r, true)
}

// Copy implements store.Copier.
func (s *Store) Copy(ctx context.Context, from, to string) error {
	if err := check(ctx, "copy", from); err != nil {
		return err
	}
	f, err := s.open(from)
	if err != nil {
		return err
	}
	defer f.Close() // only read: nothing to lose
	return s.put(ctx, to, f, false)
}

func (s *Store) put(ctx context.Context, name string, r io.Reader, ifAbsent bool) error {
	if err := check(ctx, "put", name); err != nil {
		return err
	}
	if err := s.here(); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	dir, base := split(name)
	d, f, temp, err := s.begin(dir, base, ifAbsent)
	if err != nil {
		return failure("put", name, err)
	}
	defer d.Close() // synced by finish
	defer f.Close() // synced by finish; the lock ends here
	if err := fill(ctx, f, r); err != nil {
		return failure("put", name, s.discard(d, temp, dir, err))
	}
	if err := finish(d, f, temp, base, ifAbsent); err != nil {
		return failure("put", name, s.discard(d, temp, dir, err))
	}
	if err := s.here(); err != nil { // a put may take hours
		return fmt.Errorf("put %s: %w", name, err)
	}
	return nil
}

// begin opens the directory dir as d, making it if need be, and in it a locked temporary file f for the object base.
func (s *Store) begin(dir, base string, ifAbsent bool) (d, f *os.File, temp string, err error) {
	for range 100 { // a delete that empties the directory may remove it between any two steps
		if d, err = s.root.Open(dir); errors.Is(err, fs.ErrNotExist) {
			if err = s.makeDir(dir); err == nil {
				d, err = s.root.Open(dir)
			}
		}
		if err == nil {
			if f, temp, err = create(d, base, ifAbsent); err == nil {
				return d, f, temp, nil
			}
			d.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return nil, nil, "", err
}

// create makes and locks a temporary file for the object base in the directory d, unless base has to be absent and is not.
func create(d *os.File, base string, ifAbsent bool) (f *os.File, temp string, err error) {
	if ifAbsent && exists(d, base) {
		return nil, "", taken(d) // known before all the work, and decided anew after it
	}
	temp = unfinished.Name(base, time.Now())
	fd, err := unix.Openat(int(d.Fd()), temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, fileMode)
	path := filepath.Join(d.Name(), temp)
	if err != nil {
		return nil, "", &fs.PathError{Op: "create", Path: path, Err: err}
	}
	// Where files cannot be locked, their age alone keeps them from being swept.
	_ = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	return os.NewFile(uintptr(fd), path), temp, nil
}

// makeDir makes dir and what is missing above it, durably.
func (s *Store) makeDir(dir string) error {
	parent := path.Dir(dir)
	err := s.root.Mkdir(dir, dirMode)
	if parent != "." && errors.Is(err, fs.ErrNotExist) {
		if err := s.makeDir(parent); err != nil {
			return err
		}
		err = s.root.Mkdir(dir, dirMode)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	d, err := s.root.Open(parent)
	if err != nil {
		return err
	}
	defer d.Close() // only synced
	return syncDir(d)
}

// fill writes what r yields into f, and lets the disk begin while r goes on, so that the sync in the end is short.
func fill(ctx context.Context, f *os.File, r io.Reader) error {
	w := &sink{ctx: ctx, f: f}
	if err := ctx.Err(); err != nil {
		return err
	}
	switch src := r.(type) {
	case *os.File: // before io.WriterTo, which it is too: only ReadFrom lets the kernel copy
		for {
			n, err := io.CopyN(f, src, writebackEvery)
			if err == nil {
				err = w.wrote(n)
			}
			switch {
			case err == io.EOF:
				return nil
			case err != nil:
				return err
			}
		}
	case io.WriterTo:
		_, err := src.WriteTo(w)
		return err
	}
	_, err := io.CopyBuffer(w, r, make([]byte, bufferSize))
	return err
}

// sink writes to f until ctx is done.
type sink struct {
	ctx     context.Context
	f       *os.File
	written int64
	started int64 // bytes whose writing to disk was begun
}

func (w *sink) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err == nil {
		err = w.wrote(int64(n))
	}
	return n, err
}

func (w *sink) wrote(n int64) error {
	w.written += n
	if pending := w.written - w.started; pending >= writebackEvery {
		writeback(w.f, w.started, pending)
		w.started = w.written
	}
	return w.ctx.Err()
}

// finish makes the file f durable and gives it its final name.
func finish(d, f *os.File, temp, base string, ifAbsent bool) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if ifAbsent {
		err := publishNew(d, f, temp, base)
		if errors.Is(err, fs.ErrExist) {
			return taken(d)
		}
		if err != nil {
			return err
		}
	} else if err := unix.Renameat(int(d.Fd()), temp, int(d.Fd()), base); err != nil {
		return os.NewSyscallError("rename", err)
	}
	return syncDir(d)
}

// discard removes the temporary file after err, and what it was alone in.
func (s *Store) discard(d *os.File, temp, dir string, err error) error {
	if left := unlink(d, temp); left != nil {
		err = errors.Join(err, failure("remove", temp, left))
	}
	s.prune(dir)
	return err
}

// publishNew gives the file temp, open as f, the name base in the directory d unless that is taken, by the best of
// the ways that its file system has.
func publishNew(d, f *os.File, temp, base string) error {
	err := errors.ErrUnsupported
	for _, way := range []func(d, f *os.File, temp, base string) error{renameNew, linkNew, lockNew} {
		if err = way(d, f, temp, base); !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			break
		}
	}
	return err
}

// linkNew publishes by a hard link. Over NFS the answer to a link that was made can get lost and the repeated call say
// that the name is taken: then the file has two names.
func linkNew(d, f *os.File, temp, base string) error {
	fd := int(d.Fd())
	if err := unix.Linkat(fd, temp, fd, base, 0); err != nil {
		var st unix.Stat_t
		if err != unix.EEXIST || unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink < 2 {
			return os.NewSyscallError("link", err)
		}
	}
	return os.NewSyscallError("unlink", unix.Unlinkat(fd, temp, 0))
}

// lockNew publishes under a lock on the directory, which only writers of this package on this host heed.
func lockNew(d, _ *os.File, temp, base string) error {
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return os.NewSyscallError("lock", err)
	}
	defer unix.Flock(int(d.Fd()), unix.LOCK_UN)
	if exists(d, base) {
		return fs.ErrExist
	}
	return os.NewSyscallError("rename", unix.Renameat(int(d.Fd()), temp, int(d.Fd()), base))
}

// taken returns fs.ErrExist for a name in d, once that is durable: who put the object there may have died before it had synced the directory, and
// whoever hears that it exists, and finds what it was to put, takes it for put.
func taken(d *os.File) error { return cmp.Or(syncDir(d), fs.ErrExist) }

func exists(d *os.File, base string) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(d.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// syncDir makes the names in d durable. Some file systems cannot sync a directory, and say so by EINVAL.
func syncDir(d *os.File) error {
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
