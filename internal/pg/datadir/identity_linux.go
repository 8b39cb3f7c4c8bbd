package datadir

import (
	"io/fs"
	"syscall"
	"time"
)

// Identity returns what tells a file from another that took its name, and one that was written to from one that was not: its
// inode, and when content or attributes changed last by the file system's clock, which nobody can set. Both are zero where
// the system does not tell them.
func Identity(info fs.FileInfo) (inode uint64, changed time.Time) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, time.Time{}
	}
	return st.Ino, time.Unix(st.Ctim.Unix())
}
