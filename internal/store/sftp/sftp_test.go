package sftp_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pkgsftp "github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"holdfast/internal/store"
	"holdfast/internal/store/sftp"
	"holdfast/internal/store/storetest"
	"holdfast/internal/store/unfinished"
	"holdfast/test/pgtest"
)

// keyFile writes a new private key, protected by passphrase unless that is "", and returns its path and public half.
func keyFile(t *testing.T, passphrase string) (string, ssh.PublicKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return file, key
}

// A server is an SSH server on this host.
type server struct {
	port       int
	hostKey    ssh.PublicKey
	key        string // file of a private key that may log in
	knownHosts string // file that knows the server
}

// sshd starts Debian's OpenSSH server with its own SFTP server. options are further lines of its configuration.
func sshd(t *testing.T, options ...string) server {
	t.Helper()
	return sshdWith(t, "sftp internal-sftp", options...)
}

// sshdWith is sshd with something else for a subsystem.
func sshdWith(t *testing.T, subsystem string, options ...string) server {
	t.Helper()
	const program = "/usr/sbin/sshd"
	if _, err := os.Stat(program); err != nil {
		pgtest.Missing(t, "sshd")
	}
	if os.Geteuid() == 0 { // where it locks its other half in; the system makes it at boot
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	hostKeyFile, hostKey := keyFile(t, "")
	key, public := keyFile(t, "")
	authorized := filepath.Join(t.TempDir(), "authorized_keys")
	if err := os.WriteFile(authorized, ssh.MarshalAuthorizedKey(public), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	args := []string{"-D", "-e", "-f", "/dev/null", "-p", strconv.Itoa(port), "-h", hostKeyFile}
	for _, option := range append([]string{"ListenAddress=127.0.0.1", "UsePAM=no", "StrictModes=no", "PidFile=none", "PasswordAuthentication=no",
		"MaxStartups=100", "AuthorizedKeysFile=" + authorized, "Subsystem=" + subsystem}, options...) {
		args = append(args, "-o", option)
	}
	cmd := exec.Command(program, args...)
	pgtest.Serve(t, cmd, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	s := server{port: port, hostKey: hostKey, key: key}
	s.knownHosts = s.known(t, hostKey)
	return s
}

// known writes a known_hosts file that has key for s.
func (s server) known(t *testing.T, key ssh.PublicKey) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "known_hosts")
	line := knownhosts.Line([]string{net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))}, key)
	if err := os.WriteFile(file, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// open returns a store below root on the server; change, where not nil, may change its options.
func (s server) open(t *testing.T, root string, change func(*sftp.Options)) *sftp.Store {
	t.Helper()
	self, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	o := sftp.Options{Host: "127.0.0.1", Port: s.port, Root: root, User: self.Username, PrivateKeyFile: s.key, KnownHosts: []string{s.knownHosts},
		MaxRetries: 3, MaxBackoff: 10 * time.Millisecond}
	if change != nil {
		change(&o)
	}
	st, err := sftp.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// wantNoTemps fails t in the end if temporary files are left below root.
func wantNoTemps(t *testing.T, root string) {
	t.Cleanup(func() {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if _, temp := unfinished.Since(filepath.Base(path)); temp {
				t.Errorf("%s is left behind", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestSFTPIsAStore(t *testing.T) {
	s := sshd(t)
	if has, err := s.open(t, t.TempDir(), nil).Has(t.Context(), "fsync@openssh.com"); err != nil || !has {
		t.Errorf("the server offers fsync: %v, %v", has, err)
	}
	storetest.Test(t, func(t *testing.T) store.Store {
		root := t.TempDir()
		wantNoTemps(t, root)
		return s.open(t, root, nil)
	})
}

// An OpenSSH that is forbidden its extensions renames as the draft wants it, and so decides atomically without them.
func TestSFTPWithoutExtensionsIsAStore(t *testing.T) {
	s := sshdWith(t, "sftp internal-sftp -P fsync,hardlink,posix-rename")
	storetest.Test(t, func(t *testing.T) store.Store {
		if strings.Contains(t.Name(), "ReadersSeeWholeObjectsWhileTheyReplace") {
			t.Skip("for an instant a replaced object is missing")
		}
		root := t.TempDir()
		wantNoTemps(t, root)
		return s.open(t, root, nil)
	})
}

func TestSFTPOverOneConnectionIsAStore(t *testing.T) {
	s := sshd(t)
	storetest.Test(t, func(t *testing.T) store.Store {
		root := t.TempDir()
		wantNoTemps(t, root)
		return s.open(t, root, func(o *sftp.Options) { o.Connections = 1 })
	})
}

// bare starts an SSH server in this process that offers SFTP without the extensions that puts are better for, and lets in by password
// only. handlers, where not nil, serve in place of the files of this host.
func bare(t *testing.T, password string, handlers *pkgsftp.Handlers) server {
	t.Helper()
	hostKeyFile, hostKey := keyFile(t, "")
	private, err := os.ReadFile(hostKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{PasswordCallback: func(_ ssh.ConnMetadata, given []byte) (*ssh.Permissions, error) {
		if string(given) != password {
			return nil, errors.New("no")
		}
		return nil, nil
	}}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		g.Wait()
	})
	g.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.Go(func() { serve(c, config, handlers) })
		}
	})
	s := server{port: l.Addr().(*net.TCPAddr).Port, hostKey: hostKey}
	s.knownHosts = s.known(t, hostKey)
	return s
}

// serve serves one connection until that ends.
func serve(c net.Conn, config *ssh.ServerConfig, handlers *pkgsftp.Handlers) {
	defer c.Close()
	_, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests) // which answers those for a sign of life
	for offered := range channels {
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				r.Reply(r.Type == "subsystem" && strings.HasSuffix(string(r.Payload), "sftp"), nil)
			}
		}()
		go func() {
			defer channel.Close()
			if handlers != nil {
				pkgsftp.NewRequestServer(channel, *handlers).Serve()
			} else if s, err := pkgsftp.NewServer(channel); err == nil {
				s.Serve()
			}
		}()
	}
}

// withoutExtensions makes the servers of pkg/sftp in this process offer none.
func withoutExtensions(t *testing.T) {
	t.Helper()
	if err := pkgsftp.SetSFTPExtensions(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pkgsftp.SetSFTPExtensions("hardlink@openssh.com", "posix-rename@openssh.com", "statvfs@openssh.com"); err != nil {
			t.Error(err)
		}
	})
}

// TestAServerWithoutExtensionsIsAStore leaves out what such a server cannot promise: of two that put if absent in the same instant both
// may succeed, as it renames over what is there, and for an instant a replaced object is missing.
func TestAServerWithoutExtensionsIsAStore(t *testing.T) {
	withoutExtensions(t)
	s := bare(t, "the-password", nil)
	storetest.Test(t, func(t *testing.T) store.Store {
		root := t.TempDir()
		wantNoTemps(t, root)
		st := s.open(t, root, func(o *sftp.Options) { o.PrivateKeyFile, o.Password = "", "the-password" })
		if strings.Contains(t.Name(), "OfManyPutIfAbsentOneWins") {
			t.Skip("this server cannot decide atomically")
		}
		return st
	})
}
