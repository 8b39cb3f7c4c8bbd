package restore

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// writeBack asks the system to begin writing a stretch of a file to disk, so that there is little left to wait for in
// the end. What it says does not matter: syncAll decides.
func writeBack(f *os.File, offset, length int64) {
	_ = unix.SyncFileRange(int(f.Fd()), offset, length, unix.SYNC_FILE_RANGE_WRITE)
}

// syncAll makes all that was written below the tree's directories durable, with one call per file system. A write that failed
// since the directories were opened fails the call, even if somebody else's sync was told of it first (syncfs(2)). Before Linux 5.8
// it does not: there each file is asked too, which costs little once all is written.
func (t *tree) syncAll() error {
	synced := map[uint64]bool{}
	for _, dir := range t.dirs {
		var st unix.Stat_t
		err := unix.Fstat(int(dir.Fd()), &st)
		if err == nil && !synced[uint64(st.Dev)] {
			synced[uint64(st.Dev)] = true
			err = unix.Syncfs(int(dir.Fd()))
		}
		if err != nil {
			return fmt.Errorf("sync the file system of %s: %w", dir.Name(), err)
		}
	}
	if syncfsTells(kernel()) {
		return nil
	}
	return syncEach(t.roots())
}

// kernel returns the running kernel's release, such as "5.15.0-105-generic".
func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// syncfsTells reports whether syncfs of that release of Linux returns errors of writing; where that is not known it does not.
func syncfsTells(release string) bool {
	var major, minor int
	_, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return err == nil && (major > 5 || major == 5 && minor >= 8)
}
