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

// syncAll makes all that was written below the roots durable, with one call per file system.
func syncAll(roots []*os.Root) error {
	synced := map[uint64]bool{}
	for _, root := range roots {
		dir, err := root.Open(".")
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Fstat(int(dir.Fd()), &st)
		if err == nil && !synced[uint64(st.Dev)] {
			synced[uint64(st.Dev)] = true
			err = unix.Syncfs(int(dir.Fd()))
		}
		dir.Close() // only synced through it
		if err != nil {
			return fmt.Errorf("sync the file system of %s: %w", root.Name(), err)
		}
	}
	return nil
}
