package sftp_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"holdfast/internal/store/servicetest"
	"holdfast/internal/store/sftp"
	"holdfast/test/pgtest"
)

// eachCall makes a call of each kind and returns their errors.
func eachCall(t *testing.T, s *sftp.Store) map[string]error {
	t.Helper()
	_, stat := s.Stat(t.Context(), "d/o")
	_, read := s.Open(t.Context(), "d/o")
	var list error
	for _, list = range s.List(t.Context(), "d/", "") {
	}
	_, sweep := s.Sweep(t.Context())
	return map[string]error{"stat d/o": stat, "open d/o": read, "list d/": list, "put d/o": s.Put(t.Context(), "d/o", strings.NewReader("x")),
		"delete d/o": s.Delete(t.Context(), "d/o"), "sweep": sweep}
}

// wantEach fails t unless each call fails at once with an error of that kind which says want.
func wantEach(t *testing.T, s *sftp.Store, log *servicetest.Log, kind error, want ...string) {
	t.Helper()
	for op, err := range eachCall(t, s) {
		if !errors.Is(err, kind) || errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(fmt.Sprint(err), op+": ") {
			t.Errorf("%s: %v; want %s: … and %v", op, err, op, kind)
		}
		for _, part := range want {
			if !strings.Contains(fmt.Sprint(err), part) {
				t.Errorf("%s: %v; want …%s…", op, err, part)
			}
		}
		if strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("%s: the error holds a secret: %v", op, err)
		}
	}
	if log.String() != "" {
		t.Errorf("it was tried again:\n%s", log.String())
	}
}

// An unknown host is refused with what to compare and the line to run, which works.
func TestAnUnknownHostIsRefused(t *testing.T) {
	s := sshd(t)
	root := t.TempDir()
	_, other := keyFile(t, "")
	elsewhere := s
	elsewhere.port = 1
	missing := filepath.Join(t.TempDir(), "none")
	for _, file := range []string{missing, elsewhere.known(t, other)} {
		var log servicetest.Log
		st := s.open(t, root, func(o *sftp.Options) {
			o.Logger = log.Logger()
			o.KnownHosts = []string{file}
		})
		line := fmt.Sprintf("ssh-keyscan -p %d 127.0.0.1 >> %s", s.port, file)
		wantEach(t, st, &log, fs.ErrInvalid, "is not known", ssh.FingerprintSHA256(s.hostKey)+" (ed25519)", line)
		if _, err := exec.LookPath("ssh-keyscan"); err != nil {
			pgtest.Missing(t, "ssh-keyscan")
		}
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		servicetest.Put(t, st, "d/o", []byte("x"))
	}
}

func TestAChangedHostKeyIsRefusedLoudly(t *testing.T) {
	s := sshd(t)
	_, other := keyFile(t, "")
	file := s.known(t, other)
	var log servicetest.Log
	st := s.open(t, t.TempDir(), func(o *sftp.Options) {
		o.Logger = log.Logger()
		o.KnownHosts = []string{file}
	})
	wantEach(t, st, &log, fs.ErrInvalid, "HAS CHANGED, somebody may be listening", ssh.FingerprintSHA256(s.hostKey), ssh.FingerprintSHA256(other), file+":1",
		fmt.Sprintf("ssh-keygen -R '[127.0.0.1]:%d' -f %s", s.port, file))

	revoked := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(revoked, append([]byte("@revoked * "), ssh.MarshalAuthorizedKey(s.hostKey)...), 0o600); err != nil {
		t.Fatal(err)
	}
	st = s.open(t, t.TempDir(), func(o *sftp.Options) { o.KnownHosts = []string{revoked, s.knownHosts} })
	wantEach(t, st, &log, fs.ErrInvalid, "revokes")
}

func TestAKnownHostsFileThatCannotBeReadIsAnError(t *testing.T) {
	s := sshd(t)
	file := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(file, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log servicetest.Log
	st := s.open(t, t.TempDir(), func(o *sftp.Options) {
		o.Logger = log.Logger()
		o.KnownHosts = []string{file, s.knownHosts}
	})
	wantEach(t, st, &log, fs.ErrInvalid, "known hosts", file)
}

// A server with keys of several kinds is asked for one of the kind that is known.
func TestOneKnownKeyOfSeveralIsEnough(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ecdsa")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	s := sshd(t, "HostKey="+file)
	for _, known := range []ssh.PublicKey{s.hostKey, public} {
		st := s.open(t, t.TempDir(), func(o *sftp.Options) { o.KnownHosts = []string{s.known(t, known)} })
		servicetest.Put(t, st, "o", []byte("x"))
	}
}

func TestWhoeverIsNotLetInIsTold(t *testing.T) {
	s := sshd(t)
	root := t.TempDir()
	stranger, _ := keyFile(t, "")
	locked, _ := keyFile(t, "the-secret")
	for want, c := range map[string]struct {
		kind   error
		change func(*sftp.Options)
	}{
		"with the key in SSH_PRIVATE_KEY_PATH: see SSH_USERNAME": {fs.ErrPermission, func(o *sftp.Options) { o.PrivateKeyFile = stranger }},
		"does not let user nobody-we-know in":                    {fs.ErrPermission, func(o *sftp.Options) { o.User = "nobody-we-know" }},
		"(SSH_PRIVATE_KEY_PATH) is protected by a passphrase":    {fs.ErrInvalid, func(o *sftp.Options) { o.PrivateKeyFile = locked }},
		"does not open with the passphrase": {fs.ErrInvalid, func(o *sftp.Options) {
			o.PrivateKeyFile, o.Passphrase = locked, "not-the-secret"
		}},
		"private key (SSH_PRIVATE_KEY_PATH)": {fs.ErrInvalid, func(o *sftp.Options) { o.PrivateKeyFile = "/nowhere" }},
		"there is no agent at SSH_AUTH_SOCK": {fs.ErrInvalid, func(o *sftp.Options) { o.PrivateKeyFile, o.AgentSocket = "", "/nowhere" }},
	} {
		var log servicetest.Log
		wantEach(t, s.open(t, root, func(o *sftp.Options) {
			o.Logger = log.Logger()
			c.change(o)
		}), &log, c.kind, want)
	}
	withoutExtensions(t)
	var log servicetest.Log
	wantEach(t, bare(t, "the-secret", nil).open(t, root, func(o *sftp.Options) {
		o.Logger = log.Logger()
		o.PrivateKeyFile, o.Password = "", "not-the-secret"
	}), &log, fs.ErrPermission, "with SSH_PASSWORD")
}

func TestALockedKeyOpensWithItsPassphrase(t *testing.T) {
	key, public := keyFile(t, "the-secret")
	authorized := filepath.Join(t.TempDir(), "authorized_keys")
	if err := os.WriteFile(authorized, ssh.MarshalAuthorizedKey(public), 0o600); err != nil {
		t.Fatal(err)
	}
	st := sshd(t, "AuthorizedKeysFile="+authorized).open(t, t.TempDir(), func(o *sftp.Options) { o.PrivateKeyFile, o.Passphrase = key, "the-secret" })
	// The first of two AuthorizedKeysFile counts, so the key is not the one that this server knows.
	if err := st.Put(t.Context(), "o", strings.NewReader("x")); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("put: %v; want the server to refuse a key that could be read", err)
	}
}

// The agent's keys are shown too, and one that holds none is told.
func TestAnAgentIsAsked(t *testing.T) {
	s := sshd(t)
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	keys := agent.NewKeyring()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(keys, c)
		}
	}()
	st := s.open(t, t.TempDir(), func(o *sftp.Options) { o.PrivateKeyFile, o.AgentSocket = "", socket })
	var log servicetest.Log
	wantEach(t, st, &log, fs.ErrInvalid, "holds no keys: add one with ssh-add")
	file, err := os.ReadFile(s.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := ssh.ParseRawPrivateKey(file)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []any{&other, private} {
		if err := keys.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
	}
	servicetest.Put(t, st, "o", []byte("x"))
	stranger, _ := keyFile(t, "")
	servicetest.Put(t, s.open(t, t.TempDir(), func(o *sftp.Options) { o.PrivateKeyFile, o.AgentSocket = stranger, socket }), "o", []byte("x"))
}

// A root that is not there, or not any more, is no missing object, and is not made anew.
func TestAMissingRootIsSaid(t *testing.T) {
	s := sshd(t)
	root := filepath.Join(t.TempDir(), "root")
	var log servicetest.Log
	st := s.open(t, root, func(o *sftp.Options) { o.Logger = log.Logger() })
	hint := []string{"directory " + root + " of the archive does not exist on 127.0.0.1: see WALG_SSH_PREFIX"}
	wantEach(t, st, &log, fs.ErrInvalid, hint...)
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	servicetest.Put(t, st, "d/o", []byte("x"))
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	wantEach(t, st, &log, fs.ErrInvalid, hint...)
	if err := os.WriteFile(root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantEach(t, st, &log, fs.ErrInvalid, hint...)
}

func TestARefusalToWriteNamesTheUser(t *testing.T) {
	root := t.TempDir()
	s := sshdWith(t, "sftp internal-sftp -R")
	if err := os.MkdirAll(filepath.Join(root, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "d/o"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	st := s.open(t, root, nil)
	servicetest.WantContent(t, st, "d/o", []byte("x"))
	for op, err := range map[string]error{"put d/o": st.Put(t.Context(), "d/o", strings.NewReader("y")), "put e/o": st.Put(t.Context(), "e/o", strings.NewReader("y")), "delete d/o": st.Delete(t.Context(), "d/o")} {
		if !errors.Is(err, fs.ErrPermission) || !strings.HasPrefix(fmt.Sprint(err), op+": permission denied: user ") || !strings.Contains(err.Error(), "see SSH_USERNAME") {
			t.Errorf("%s: %v", op, err)
		}
	}
	servicetest.WantContent(t, st, "d/o", []byte("x"))
}

func TestAServerWithoutSFTPIsTold(t *testing.T) {
	var log servicetest.Log
	wantEach(t, sshdWith(t, "other internal-sftp").open(t, t.TempDir(), func(o *sftp.Options) { o.Logger = log.Logger() }), &log, fs.ErrInvalid, "see Subsystem sftp in its sshd_config")
}

func TestAServerThatIsNotThereIsNamed(t *testing.T) {
	s := sshd(t)
	s.port = 1
	st := s.open(t, t.TempDir(), func(o *sftp.Options) { o.MaxRetries = -1 })
	err := st.Put(t.Context(), "o", strings.NewReader("x"))
	if err == nil || !strings.HasPrefix(err.Error(), "put o: connect to 127.0.0.1:1: ") || !strings.Contains(err.Error(), "connection refused: see WALG_SSH_PREFIX and SSH_PORT") || errors.Is(err, fs.ErrInvalid) {
		t.Errorf("put: %v", err)
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for want, o := range map[string]sftp.Options{
		"is not the name of a host":    {Root: "/a", Password: "the-secret"},
		"\"u@h\" is not the name":      {Host: "u@h", Root: "/a", Password: "the-secret"},
		"is not an absolute path":      {Host: "h", Root: "a", Password: "the-secret"},
		"SSH_PORT is 70000":            {Host: "h", Root: "/a", Port: 70000, Password: "the-secret"},
		"set SSH_PRIVATE_KEY_PATH or ": {Host: "h", Root: "/a"},
	} {
		_, err := sftp.New(o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("New: %v; want …%s…", err, want)
		}
	}
}
