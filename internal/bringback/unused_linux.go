package bringback

import (
	"os"

	"golang.org/x/sys/unix"
)

// renameUnused renames a file to a name that nothing has, in one step. Some file systems cannot do that: EINVAL.
func renameUnused(file, name string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: file, New: name, Err: err}
	}
	return nil
}
