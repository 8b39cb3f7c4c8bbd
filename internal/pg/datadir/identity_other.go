//go:build unix && !linux

package datadir

import (
	"io/fs"
	"time"
)

// Identity returns nothing on systems whose form of it is not known here.
func Identity(fs.FileInfo) (inode uint64, changed time.Time) { return 0, time.Time{} }
