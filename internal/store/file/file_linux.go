package file

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeback lets the kernel begin to write n bytes of f from offset on to disk, without waiting for it. Where it does
// not work the sync in the end does it all.
func writeback(f *os.File, offset, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), offset, n, unix.SYNC_FILE_RANGE_WRITE)
}

// renameNew publishes by a rename that does not replace.
func renameNew(d, _ *os.File, temp, base string) error {
	fd := int(d.Fd())
	return os.NewSyscallError("rename", unix.Renameat2(fd, temp, fd, base, unix.RENAME_NOREPLACE))
}
