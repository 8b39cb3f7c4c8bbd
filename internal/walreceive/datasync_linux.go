package walreceive

import (
	"os"

	"golang.org/x/sys/unix"
)

// datasync brings a file's content and length to disk.
func datasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
