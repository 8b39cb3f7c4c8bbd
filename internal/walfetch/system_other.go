//go:build !linux

package walfetch

import (
	"os"
	"os/exec"
	"syscall"
)

// Detach starts a program that outlives this process: a session of its own, and no output.
func Detach(program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// writeOut is for Linux alone.
func writeOut(*os.File, int64) {}
