// Package pgtest gives tests real PostgreSQL servers of every supported major version, and other services. Only tests import it.
//
// Servers come from the cache that test/services/install.sh fills and from the host's own packages. Where one is missing the
// test is skipped, unless REQUIRE_SERVICES=1 or CI=true: then it fails. PostgreSQL refuses to run as root, so tests that root
// runs start it as user postgres, in directories of its own below /tmp: a socket's path must be short.
package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/pg/instance"
)

// The major versions that are supported.
const (
	Oldest = 10
	Newest = 18
)

// Cache returns the directory that test/services/install.sh fills; its bin has the other services.
func Cache() string { return cmp.Or(os.Getenv("HOLDFAST_TEST_CACHE"), "/var/tmp/holdfast-test") }

// installed finds the servers once per test process.
var installed = sync.OnceValue(func() map[int]instance.Programs {
	dirs, _ := filepath.Glob(filepath.Join(Cache(), "pg", "*", "bin"))
	found := map[int]instance.Programs{}
	for _, p := range instance.Installed(context.Background(), dirs...) {
		if _, ok := found[p.Major]; !ok {
			found[p.Major] = p
		}
	}
	return found
})

// Require returns the server programs of one major version.
func Require(t testing.TB, major int) instance.Programs {
	t.Helper()
	p, ok := installed()[major]
	if !ok {
		Missing(t, fmt.Sprintf("PostgreSQL %d", major))
	}
	return p
}

// Tool returns the path of a client program of one major version, such as pg_verifybackup. The servers of 10, 11, 12, 14 and 16
// come without.
func Tool(t testing.TB, major int, name string) string {
	t.Helper()
	path := filepath.Join(Require(t, major).Dir, name)
	if _, err := os.Stat(path); err != nil {
		Missing(t, fmt.Sprintf("%s of PostgreSQL %d", name, major))
	}
	return path
}

// Verifier returns the path of a pg_verifybackup for what a server of that major has written. The one of 17 reads all older
// manifests; newer ones are for their own major only, since they look into pg_control.
func Verifier(t testing.TB, major int) string {
	t.Helper()
	return Tool(t, max(major, 17), "pg_verifybackup")
}

// Missing skips the test because what is not installed, or fails it where everything must be.
func Missing(t testing.TB, what string) {
	t.Helper()
	msg := what + " is not installed: run test/services/install.sh"
	if os.Getenv("REQUIRE_SERVICES") == "1" || os.Getenv("CI") == "true" {
		t.Fatal(msg)
	}
	t.Skip(msg)
}

// Each runs test once per major version, Oldest to Newest, as a subtest named PG10 and so on. Under -short it is the first and
// the last of them only.
func Each(t *testing.T, test func(t *testing.T, p instance.Programs)) {
	t.Helper()
	for major := Oldest; major <= Newest; major++ {
		if testing.Short() && major != Oldest && major != Newest {
			continue
		}
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) { test(t, Require(t, major)) })
	}
}

// account is the user that servers run as.
type account struct{ uid, gid int }

// serverAccount is user postgres for root, and ourselves for anyone else.
func serverAccount(t testing.TB) account {
	t.Helper()
	if os.Geteuid() != 0 {
		return account{os.Geteuid(), os.Getegid()}
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		Missing(t, "user postgres")
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		t.Fatalf("user postgres: uid %q, gid %q", u.Uid, u.Gid)
	}
	return account{uid, gid}
}

// Account returns the name of the account that servers and commands run as.
func Account(t testing.TB) string {
	t.Helper()
	u, err := user.LookupId(strconv.Itoa(serverAccount(t).uid))
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// dirs is where Dir makes directories, for whoever the account is. It stays.
var dirs = "/tmp/pgt-" + strconv.Itoa(os.Geteuid())

// Dir makes a directory with a short path that belongs to the account servers run as, and removes it after the test.
func Dir(t testing.TB) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dirs, 0o777), os.Chmod(dirs, 0o777|os.ModeSticky), spread(dirs)); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(dirs, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	Give(t, dir)
	return dir
}

// Give makes path and all below it belong to the account servers run as.
func Give(t testing.TB, path string) {
	t.Helper()
	a := serverAccount(t)
	err := filepath.WalkDir(path, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, a.uid, a.gid)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Command is exec.CommandContext for a program that runs as the account of the servers, in a directory it may enter, until the test ends.
func Command(t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = "/"
	if a := serverAccount(t); os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}}
		cmd.Env = append(os.Environ(), "HOME=/", "USER=postgres", "LOGNAME=postgres")
	}
	return cmd
}

var (
	builds   = map[string]string{}
	buildsMu sync.Mutex
)

// Build compiles the main package pkg, such as holdfast/cmd/holdfast, once per test process, and returns a path that every user may
// run. It stays there until the next test process builds one.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	buildsMu.Lock()
	defer buildsMu.Unlock()
	if path, ok := builds[pkg]; ok {
		return path
	}
	root := filepath.Join(os.TempDir(), "holdfast-test-build-"+strconv.Itoa(os.Geteuid()))
	old, _ := filepath.Glob(filepath.Join(root, "*"))
	for _, dir := range old {
		if filepath.Base(dir) == "latest" {
			continue
		}
		if _, err := os.Stat(filepath.Join("/proc", filepath.Base(dir))); err != nil { // that process has ended
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The go command links a program anew only where the one that is there is of other sources: all test processes have it make the same one.
	path, latest := filepath.Join(root, strconv.Itoa(os.Getpid()), filepath.Base(pkg)), filepath.Join(root, "latest", filepath.Base(pkg))
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.MkdirAll(filepath.Dir(latest), 0o755)); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(filepath.Dir(latest))
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() // and with it the lock
	seeSources(t)
	cmd := exec.Command("go", "build", "-o", latest, pkg)
	if pkg == "holdfast/cmd/holdfast-client" && runtime.GOOS+"/"+runtime.GOARCH == "linux/amd64" { // as the Makefile does: what ships begins before main
		cmd.Args = slices.Insert(cmd.Args, 2, "-ldflags", "-s -w -E main.entry")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a process that had our number
		t.Fatal(err)
	}
	if err := os.Link(latest, path); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, filepath.Dir(path), root} { // whatever our umask is
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	builds[pkg] = path
	return path
}

// seeSources lists the directories that programs are built of: a result of `go test` that is kept stands only as long as what the test has opened is as it was.
func seeSources(t testing.TB) {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatalf("go list -m: %v", err)
	}
	for _, dir := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(strings.TrimSpace(string(out)), dir), func(_ string, _ fs.DirEntry, err error) error { return err })
		if err != nil {
			t.Fatal(err)
		}
	}
}
