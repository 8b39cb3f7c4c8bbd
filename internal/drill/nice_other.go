//go:build !linux

package drill

import "golang.org/x/sys/unix"

// beNice makes this process, and what it starts from now on, step back behind others. What the system refuses is no harm.
func beNice(nice int) {
	if now, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil && now < nice {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
	}
}
