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
	return write(path, perm, fill, true)
}

// WriteUnsynced is Write for what may get lost, and whose readers see by it whether it is whole: a process that dies leaves the old or the new, and a crash of the
// machine may leave neither, or an empty file.
func WriteUnsynced(path string, perm fs.FileMode, fill func(io.Writer) error) error {
	return write(path, perm, fill, false)
}

func write(path string, perm fs.FileMode, fill func(io.Writer) error, sync bool) error {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "." // os.CreateTemp takes "" for the system's temporary directory
	}
	f, err := os.CreateTemp(dir, "."+base+".*"+Suffix)
	if err != nil {
		return err
	}
	err = f.Chmod(perm)
	if err == nil {
		err = fill(f)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if !sync {
		return nil
	}
	return SyncDir(dir)
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
