package pgtest

import (
	"os"

	"golang.org/x/sys/unix"
)

// spread has the file system lay what is made in dir far apart, where it can. An ext4 without a journal looks, for each new file, through what was deleted
// nearby within the last half minute: beside servers that come and go that takes a third of all CPU time.
func spread(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // only its flags are changed
	if flags, err := unix.IoctlGetInt(int(d.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir) // what cannot do it is only slower
	}
	return nil
}

const topDir = 0x20000 // FS_TOPDIR_FL of linux/fs.h
