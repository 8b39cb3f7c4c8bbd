package site

import (
	"os/exec"
	"syscall"
)

// Ended says how a command that was waited for ended.
func Ended(cmd *exec.Cmd, stdout, stderr string) Result {
	r := Result{Status: cmd.ProcessState.ExitCode(), Stdout: stdout, Stderr: stderr}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.Status = 128 + int(ws.Signal())
	}
	return r
}
