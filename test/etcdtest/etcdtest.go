// Package etcdtest starts an etcd for a test. Only tests import it.
package etcdtest

import (
	"os/exec"
	"testing"

	"holdfast/test/pgtest"
)

// Serve starts an etcd that ends with the test, and returns its address.
func Serve(t testing.TB) string {
	t.Helper()
	program := pgtest.Program(t, "etcd")
	at := pgtest.Address(t)
	client, peer := "http://"+at, "http://"+pgtest.Address(t)
	pgtest.Serve(t, exec.Command(program, "--data-dir", t.TempDir(), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--logger=zap", "--log-level=error"), at)
	pgtest.Answers(t, client+"/health")
	return client
}
