// Package fileid tells whether a file is still the one it was, without reading it: by device, inode, length and both of its times.
//
// A file that is written to, or renamed, has another ID from then on, as the kernel sets its time of change, which no program can. That time has
// the granularity of the kernel's clock: what happens within Grain of the last change may not show, and Settled says when that has passed. The ID of a file does
// not outlive a crash of the machine, after which the file may have other content.
package fileid

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Grain is longer than the kernel's clock for files stands still (10 ms at 100 Hz), and file systems with nanoseconds round.
const Grain = 50 * time.Millisecond

// An ID is one state of one file. IDs are compared with ==.
type ID struct {
	dev, inode uint64
	size       int64 // bytes
	modified   int64 // ns since 1970
	changed    int64 // ns since 1970
}

// Of returns the ID of an open file.
func Of(f *os.File) (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return ID{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return id(&st), nil
}

// At returns the ID of what is at path, of a symbolic link itself.
func At(path string) (ID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return ID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return id(&st), nil
}

func id(st *unix.Stat_t) ID {
	return ID{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

// Settled reports whether any later change would give the file another ID, now being no later than when the ID was taken.
func (id ID) Settled(now time.Time) bool {
	return now.Sub(time.Unix(0, id.changed)) > Grain
}

// Size returns the length of the file in bytes.
func (id ID) Size() int64 { return id.size }
