package cli

import "syscall"

// endWithUs has a process asked to end when the thread that starts it does.
func endWithUs(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }
