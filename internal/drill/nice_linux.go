package drill

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Of ioprio_set(2): a thread, the class best effort, and its lowest level.
const (
	ioprioThread     = 1
	ioprioBestEffort = 2 << 13
	ioprioLowest     = 7
)

// beNice makes this process, all its threads, and what they start from now on, step back behind others: by nice for the processor, to the lowest level for disks.
// One that is nicer already stays so. What the system refuses is no harm.
func beNice(nice int) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if now, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil && 20-now < nice { // the system call says it so
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
		}
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, ioprioThread, uintptr(tid), ioprioBestEffort|ioprioLowest)
	}
}
