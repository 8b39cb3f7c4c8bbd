package roundtrip_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/pgtest"
)

// A lock is a way to encrypt, with keys made for a test.
type lock struct {
	name  string
	write []string // settings of a host that writes: public keys only, where there are such
	read  []string // settings of a host that reads
	tool  string   // for the shell: decrypts standard input
	begin []byte   // how what is encrypted begins; nil where that says nothing
}

// unlocked is no encryption.
var unlocked = lock{name: "plain", tool: "cat"}

// locks makes keys of every kind.
func locks(t *testing.T) []lock {
	t.Helper()
	return []lock{unlocked, sodiumLock(t), pgpLock(t), ageLock(t)}
}

// secret writes a file of keys that the account of the servers may read.
func secret(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(pgtest.Dir(t), "key")
	write(t, path, content)
	return path
}

// ageLock has a key that age-keygen makes.
func ageLock(t *testing.T) lock {
	t.Helper()
	out, err := exec.Command(pgtest.Program(t, "age-keygen")).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, recipient, _ := strings.Cut(string(out), "# public key: ")
	recipient, _, _ = strings.Cut(recipient, "\n")
	identity := secret(t, string(out))
	return lock{"age", []string{"HOLDFAST_AGE_RECIPIENTS=" + recipient}, []string{"HOLDFAST_AGE_IDENTITIES_PATH=" + identity},
		pgtest.Program(t, "age") + " -d -i " + identity, []byte("age-encryption.org/v1\n")}
}

// sodiumLock has a key of libsodium's, which itself decrypts.
func sodiumLock(t *testing.T) lock {
	t.Helper()
	python := pgtest.Program(t, "python3")
	if exec.Command(python, "-c", `import ctypes; ctypes.CDLL("libsodium.so.23")`).Run() != nil {
		pgtest.Missing(t, "libsodium23")
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	path := secret(t, hex.EncodeToString(key)+"\n")
	script, err := filepath.Abs("testdata/secretstream.py")
	if err != nil {
		t.Fatal(err)
	}
	settings := []string{"WALG_LIBSODIUM_KEY_PATH=" + path, "WALG_LIBSODIUM_KEY_TRANSFORM=hex"}
	return lock{"libsodium", settings, settings, python + " '" + script + "' " + path, nil}
}

// pgpLock has a key that gpg makes.
func pgpLock(t *testing.T) lock {
	t.Helper()
	gpg := pgtest.Program(t, "gpg")
	home := pgtest.Dir(t)
	if err := os.Chown(home, os.Geteuid(), os.Getegid()); err != nil { // or gpg warns
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() }) // its agent, if there is one still
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(gpg, append([]string{"--homedir", home, "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v\n%s", args, err, stderr.Bytes())
		}
		return string(out)
	}
	run("--quick-generate-key", "holdfast", "default", "default", "never")
	return lock{"OpenPGP",
		[]string{"WALG_PGP_KEY_PATH=" + secret(t, run("--armor", "--export"))},
		[]string{"WALG_PGP_KEY_PATH=" + secret(t, run("--armor", "--export-secret-keys"))},
		gpg + " --homedir " + home + " --batch --quiet --decrypt", []byte{0xc1}} // the packet of a session key
}

// An sshPair is a key of SSH, which age takes too.
type sshPair struct {
	recipient string // as in authorized_keys
	identity  string // file of the secret key
}

// sshKey has ssh-keygen make one.
func sshKey(t *testing.T) sshPair {
	t.Helper()
	file := filepath.Join(pgtest.Dir(t), "id_ed25519")
	if out, err := exec.Command(pgtest.Program(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	pgtest.Give(t, filepath.Dir(file))
	return sshPair{strings.TrimSpace(read(t, file+".pub")), file}
}
