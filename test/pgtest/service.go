package pgtest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Service returns the path of a program that install.sh brought, such as versitygw.
func Service(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(Cache(), "bin", name)
	if _, err := os.Stat(path); err != nil {
		Missing(t, name)
	}
	return path
}

// Program returns the path of a program that the host's packages bring, such as promtool.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name)
	}
	return path
}

// Address returns an address of the loopback interface that is free, and stays so while a service is stopped: the host is one of its
// millions that nobody else will come upon.
func Address(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // before the service listens there
	return l.Addr().String()
}

// Serve starts a server and waits until it listens at address. It ends when stop is called, with the test at the latest, and
// with this process however that ends. What it prints is shown when the test fails.
func Serve(t testing.TB, cmd *exec.Cmd, address string) (stop func()) {
	t.Helper()
	var said Log
	if cmd.Stderr == nil {
		cmd.Stdout, cmd.Stderr = &said, &said
	}
	stop, err := Start(cmd, address)
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd.Path, err, said.String())
	}
	t.Cleanup(func() {
		late := cmd.Process.Signal(syscall.Signal(0))
		stop()
		if !t.Failed() {
			return
		}
		if late != nil {
			t.Logf("%s had ended before: %v", filepath.Base(cmd.Path), cmd.ProcessState)
		}
		if said.String() != "" {
			t.Logf("%s said:\n%s", filepath.Base(cmd.Path), said.String())
		}
	})
	return stop
}

// Start is Serve for servers that outlive a test: stop has to be called.
func Start(cmd *exec.Cmd, address string) (stop func(), err error) {
	ended, err := Begin(cmd)
	if err != nil {
		return nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			return stop, c.Close()
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("it ended: %v", cmd.ProcessState)
		default:
		}
		if time.Now().After(deadline) {
			stop()
			return nil, err
		}
	}
}

// Begin starts a process that does not outlive this one, however this one ends. The channel is closed once it has ended; how, is its state.
func Begin(cmd *exec.Cmd) (ended chan struct{}, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the death of which that signal is about: it is nobody else's until then
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // see its state
			close(ended)
		}
	}()
	return ended, <-started
}

// Answers waits until what is at url answers a GET with status 200.
func Answers(t testing.TB, url string) {
	t.Helper()
	Eventually(t, url+" answers", func() bool {
		res, err := http.Get(url)
		if err != nil {
			return false
		}
		defer res.Body.Close() // only read
		return res.StatusCode == http.StatusOK
	})
}
