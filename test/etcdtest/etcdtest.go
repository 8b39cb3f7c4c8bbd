// Package etcdtest starts an etcd for a test. Only tests import it.
package etcdtest

import (
	"net"
	"net/http"
	"os/exec"
	"syscall"
	"testing"

	"holdfast/test/pgtest"
)

// Serve starts an etcd that ends with the test, and returns its address.
func Serve(t testing.TB) string {
	t.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		pgtest.Missing(t, "etcd-server")
	}
	var urls [2]string
	for i := range urls {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		urls[i] = "http://" + l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "--data-dir", t.TempDir(), "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
		"--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1], "--initial-cluster", "default="+urls[1], "--logger=zap", "--log-level=error")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // by that
	})
	pgtest.Eventually(t, "etcd answers", func() bool {
		res, err := http.Get(urls[0] + "/health")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return urls[0]
}
