package restore_test

import (
	"io/fs"
	"os"
	"syscall"
)

// chownLike gives a directory to the owner of another.
func chownLike(dir string, like fs.FileInfo) error {
	st := like.Sys().(*syscall.Stat_t)
	return os.Chown(dir, int(st.Uid), int(st.Gid))
}
