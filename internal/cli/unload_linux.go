package cli

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// unload takes the program's own code and constants out of this process's resident memory: most of it was touched by the start alone, which comes by all that the
// program is able to do. What is used again comes back from the page cache. Where the system does not let it nothing changes.
func unload() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer maps.Close() // only read
	var from, to uintptr
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		line := lines.Text()
		switch f := strings.Fields(line); {
		case len(f) >= 5 && strings.Contains(f[0], "-"): // range, permissions, offset, device, inode, and what it is of
			from, to = 0, 0
			if len(f) == 6 && f[5] == exe && f[1][1] == '-' { // else it may have been written to
				if n, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); n != 2 || err != nil {
					from, to = 0, 0
				}
			}
		case len(f) == 3 && f[0] == "Anonymous:" && f[1] != "0": // not all of it is as it is in the file
			from, to = 0, 0
		case to > from && len(f) == 3 && f[0] == "Swap:" && f[1] == "0":
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
