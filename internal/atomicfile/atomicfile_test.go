package atomicfile_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/atomicfile"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// only fails unless the names in dir are those given.
func only(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("in the directory: %q, want %q", got, want)
	}
}

func TestWriteReplacesContentAndPermissions(t *testing.T) {
	umask := syscall.Umask(0o077)
	defer syscall.Umask(umask)
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, c := range []struct {
		text string
		perm fs.FileMode
	}{{"one", 0o600}, {"a second one", 0o644}, {"", 0o440}} {
		err := atomicfile.Write(path, c.perm, func(w io.Writer) error {
			_, err := io.WriteString(w, c.text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode() != c.perm || read(t, path) != c.text {
			t.Errorf("got mode %v, content %q, want %v, %q", st.Mode(), read(t, path), c.perm, c.text)
		}
		only(t, dir, "f")
	}
}

// A name without a directory is a file of the working directory.
func TestWriteBareName(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := atomicfile.Write("f", 0o600, func(w io.Writer) error { _, err := w.Write([]byte("x")); return err }); err != nil {
		t.Fatal(err)
	}
	only(t, ".", "f")
}

// While the new content is written, and after that failed, the old is there; nothing is left over.
func TestOldContentStaysUntilAllIsWritten(t *testing.T) {
	for name, write := range map[string]func(string, fs.FileMode, func(io.Writer) error) error{"Write": atomicfile.Write, "WriteUnsynced": atomicfile.WriteUnsynced} {
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, broken := range []error{errors.New("broken"), nil} {
			err := write(path, 0o600, func(w io.Writer) error {
				if _, err := io.WriteString(w, "new"); err != nil {
					t.Error(err)
				}
				if got := read(t, path); got != "old" {
					t.Errorf("the content is %q before %s returned", got, name)
				}
				return broken
			})
			want := map[bool]string{true: "new", false: "old"}[broken == nil]
			if !errors.Is(err, broken) || read(t, path) != want {
				t.Errorf("with %v %s returned %v, and the content is %q", broken, name, err, read(t, path))
			}
			only(t, dir, "f")
		}
	}
}

// Where the target cannot be replaced Write says so and removes what it made.
func TestWriteFailsClean(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "f", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	nothing := func(io.Writer) error { return nil }
	if err := atomicfile.Write(filepath.Join(dir, "f"), 0o600, nothing); err == nil {
		t.Error("replaced a directory")
	}
	only(t, dir, "f")
	if err := atomicfile.Write(filepath.Join(dir, "none", "f"), 0o600, nothing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a missing directory: %v", err)
	}
	if err := atomicfile.SyncDir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SyncDir of a missing directory: %v", err)
	}
}

// victim names the file the child of TestKilledWriter replaces for ever.
const victim = "ATOMICFILE_VICTIM"

// A writer killed at whatever moment leaves a whole file, and besides only temporary files that bear the suffix.
func TestKilledWriter(t *testing.T) {
	text := func(c byte) []byte { return bytes.Repeat([]byte{c}, 300_000) }
	if path := os.Getenv(victim); path != "" {
		for c := byte('a'); ; c = 'a' + (c-'a'+1)%26 {
			if err := atomicfile.Write(path, 0o600, func(w io.Writer) error { _, err := w.Write(text(c)); return err }); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for round := range 10 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledWriter$")
		cmd.Env = append(os.Environ(), victim+"="+path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		died := make(chan error, 1)
		go func() { died <- cmd.Wait() }()
		for before, _ := os.Stat(path); ; time.Sleep(time.Millisecond) { // until it wrote something
			if now, err := os.Stat(path); err == nil && (before == nil || !os.SameFile(before, now)) {
				break
			}
			if len(died) > 0 {
				t.Fatalf("the writer ended: %v", <-died)
			}
		}
		time.Sleep(time.Duration(round) * 777 * time.Microsecond)
		cmd.Process.Kill()
		<-died
		if b, err := os.ReadFile(path); err != nil || len(b) != 300_000 || !bytes.Equal(b, text(b[0])) {
			t.Fatalf("round %d: %d bytes, %v", round, len(b), err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "f" && !strings.HasSuffix(e.Name(), atomicfile.Suffix) {
			t.Errorf("left over: %s", e.Name())
		}
	}
}
