package walfetch

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Detach starts a program that outlives this process and has nothing to do with PostgreSQL: a session of its own, no output,
// and none of the files that PostgreSQL left open, which include WAL segments that it has removed.
func Detach(program string, args ...string) error {
	// Where the kernel is too old for this the files stay open for as long as the program runs.
	_ = unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC)
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// writeOut lets the kernel begin to write f to disk, without waiting for it. PostgreSQL is going to sync the file, in the middle
// of its replay, and then finds that done.
func writeOut(f *os.File, size int64) {
	_ = unix.SyncFileRange(int(f.Fd()), 0, size, unix.SYNC_FILE_RANGE_WRITE) // where it does not work PostgreSQL waits longer
}
