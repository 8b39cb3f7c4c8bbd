// Package atomicfile replaces a file so that a crash leaves the old or the new.
//
// The content goes to a temporary file in the same directory, which is synced, renamed over the target and made durable by
// syncing the directory. A process that dies in between leaves a temporary file behind, named after its target with Suffix.
package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Suffix ends the names of temporary files. Only what died unfinished leaves one, and it may be removed once its
// writer is gone.
const Suffix = ".holdfast-tmp"

// Write makes what fill writes the content of path, with exactly the permissions perm, whatever the umask. Unless it returns
// nil the file at path is as it was before; the one exception is a directory that cannot be synced after the rename, when
// the new content is in place but a crash of the machine may bring back the old.
func Write(path string, perm fs.FileMode, fill func(io.Writer) error) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	if err := fill(f); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}

// A File is content on its way to a path. It must be ended by Commit or Abort.
type File struct {
	f     *os.File
	path  string
	ended bool
}

// Create begins new content for path. Nothing is at path that was not there before until Commit.
func Create(path string, perm fs.FileMode) (*File, error) {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "." // os.CreateTemp takes "" for the system's temporary directory
	}
	f, err := os.CreateTemp(dir, "."+base+".*"+Suffix)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(perm); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &File{f: f, path: path}, nil
}

// Write appends to the content.
func (f *File) Write(b []byte) (int, error) { return f.f.Write(b) }

// Commit puts the content in place, durably. When it fails it has removed the temporary file, as Abort does; see Write for
// the one failure after which the content is in place.
func (f *File) Commit() error {
	if f.ended {
		return &fs.PathError{Op: "commit", Path: f.path, Err: fs.ErrClosed}
	}
	if err := f.f.Sync(); err != nil {
		return errors.Join(err, f.Abort())
	}
	f.ended = true
	err := f.f.Close()
	if err == nil {
		err = os.Rename(f.f.Name(), f.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.f.Name()))
	}
	return SyncDir(filepath.Dir(f.path))
}

// Abort throws the content away. After Commit or Abort it does nothing, so that it can be deferred.
func (f *File) Abort() error {
	if f.ended {
		return nil
	}
	f.ended = true
	return errors.Join(f.f.Close(), os.Remove(f.f.Name()))
}

// SyncDir makes durable which names are in dir: after it a crash of the machine forgets no file created, renamed or removed
// there. File systems that cannot sync a directory say EINVAL or ENOTSUP, which is no error: there is nothing to be done.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // only read: nothing to lose
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}
