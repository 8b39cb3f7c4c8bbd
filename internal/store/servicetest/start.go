package servicetest

import (
	"net"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Address returns an address of this machine at which nobody listens.
func Address(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Run starts a server for the length of t and waits until it listens at address.
func Run(t *testing.T, cmd *exec.Cmd, address string) {
	t.Helper()
	stop, err := Start(cmd, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

// Start starts a server, and waits until it listens at address. It ends with stop, or with this process, however that ends.
func Start(cmd *exec.Cmd, address string) (stop func(), err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, stopping, stopped := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the death of which that signal is about
		defer close(stopped)
		err := cmd.Start()
		started <- err
		if err == nil {
			<-stopping
			cmd.Process.Kill()
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	stop = func() {
		close(stopping)
		<-stopped
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return stop, nil
		}
		if time.Now().After(deadline) {
			stop()
			return nil, err
		}
	}
}
