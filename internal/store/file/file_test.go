package file_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/store"
	"holdfast/internal/store/file"
	"holdfast/internal/store/retry"
	"holdfast/internal/store/storetest"
	"holdfast/internal/store/unfinished"
)

func open(t *testing.T, root string) *file.Store {
	t.Helper()
	s, err := file.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// tree returns the paths of all files and directories below root.
func tree(t *testing.T, root string) []string {
	t.Helper()
	names := []string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if path != root {
			names = append(names, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestFileIsAStore(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		root := t.TempDir()
		t.Cleanup(func() {
			for _, name := range tree(t, root) {
				if _, temp := unfinished.Since(filepath.Base(name)); temp {
					t.Errorf("%s is left behind", name)
				}
			}
		})
		return open(t, root)
	})
}

func TestOpenSaysWhatToDoAboutAMissingRoot(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	_, err := file.Open(missing)
	if err == nil || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "create it") || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of a missing root: %v; want a hint, and no fs.ErrNotExist", err)
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("open created the root")
	}
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Open(plain); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("open of a file: %v", err)
	}
}

func TestReadsCreateNothing(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	s.Open(t.Context(), "a/b")
	s.Stat(t.Context(), "a/b")
	s.Delete(t.Context(), "a/b")
	for range s.List(t.Context(), "a/", "") {
	}
	if got := tree(t, root); len(got) != 0 {
		t.Errorf("reading left %q", got)
	}
}

func TestUnfinishedObjectsAreHidden(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	if err := s.Put(t.Context(), "d/o", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	temp := "d/" + unfinished.Name("o", time.Now())
	if err := os.WriteFile(filepath.Join(root, temp), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, entries := range []func(func(store.Object, error) bool){s.List(t.Context(), "d/", ""), store.Walk(t.Context(), s, "")} {
		for o, err := range entries {
			if err != nil || o.Name != "d/o" {
				t.Errorf("listed: %q, %v; want d/o alone", o.Name, err)
			}
		}
	}
	if err := s.Put(t.Context(), temp, strings.NewReader("x")); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("put under a temporary name: %v, want fs.ErrInvalid", err)
	}
}

func TestSweepRemovesWhatDeadWritersLeft(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	if err := s.Put(t.Context(), "d/e/o", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	old, now := time.Now().Add(-25*time.Hour), time.Now()
	leave := func(named, modified time.Time) (name string) {
		name = "d/e/" + unfinished.Name("o", named)
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modified, modified); err != nil {
			t.Fatal(err)
		}
		return name
	}
	dead, live := leave(old, old), leave(old, old)
	youngName, youngTime := leave(now, old), leave(old, now)
	writer, err := os.OpenFile(filepath.Join(root, live), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := unix.Flock(int(writer.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	removed, err := s.Sweep(t.Context())
	if err != nil || !slices.Equal(removed, []string{dead}) {
		t.Errorf("swept %q, %v; want %q", removed, err, dead)
	}
	want := []string{"d", "d/e", "d/e/o", live, youngName, youngTime}
	slices.Sort(want)
	got := tree(t, root)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("left are\n     %q\nwant %q", got, want)
	}
}

// slow yields one byte, then waits to be told to end.
type slow struct {
	begun, end chan struct{}
	n          int
}

func (s *slow) Read(p []byte) (int, error) {
	if s.n++; s.n == 1 {
		return 1, nil
	}
	close(s.begun)
	<-s.end
	return 0, io.EOF
}

func TestSweepLeavesALiveWriterAlone(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	src := &slow{begun: make(chan struct{}), end: make(chan struct{})}
	done := make(chan error)
	go func() { done <- s.Put(t.Context(), "d/o", src) }()
	<-src.begun
	// Its name says that it began a moment ago, so give the same file an old name and an old time: only the lock is left.
	entries, err := os.ReadDir(filepath.Join(root, "d"))
	if err != nil || len(entries) != 1 {
		t.Fatalf("while a put runs there are %v, %v", entries, err)
	}
	old := time.Now().Add(-48 * time.Hour)
	twin := filepath.Join(root, "d", unfinished.Name("o", old))
	if err := os.Link(filepath.Join(root, "d", entries[0].Name()), twin); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(twin, old, old); err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Sweep(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("swept %q, %v, while the writer lives", removed, err)
	}
	close(src.end)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Sweep(t.Context()); err != nil || len(removed) != 1 {
		t.Errorf("swept %q, %v, once the writer was done; want its twin", removed, err)
	}
}

func TestEveryWayOfPublishingANewObjectIsAtomic(t *testing.T) {
	for name, publish := range file.Ways {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			const writers = 16
			errs := make([]error, writers)
			var g sync.WaitGroup
			for w := range writers {
				g.Go(func() {
					d, err := os.Open(dir)
					if err != nil {
						errs[w] = err
						return
					}
					defer d.Close()
					temp := unfinished.Name("o", time.Now())
					f, err := os.Create(filepath.Join(dir, temp))
					if err != nil {
						errs[w] = err
						return
					}
					defer f.Close()
					fmt.Fprint(f, w)
					errs[w] = publish(d, f, temp, "o")
				})
			}
			g.Wait()
			winners := []string{}
			for w, err := range errs {
				switch {
				case err == nil:
					winners = append(winners, fmt.Sprint(w))
				case name == "rename" && errors.Is(err, errors.ErrUnsupported):
					t.Skip(err)
				case !errors.Is(err, fs.ErrExist):
					t.Errorf("writer %d: %v", w, err)
				}
			}
			got, err := os.ReadFile(filepath.Join(dir, "o"))
			if err != nil || !slices.Equal(winners, []string{string(got)}) {
				t.Errorf("writers %q think they won; the file says %q, %v", winners, got, err)
			}
		})
	}
}

func TestLinksOutOfTheRootAreErrors(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, root)
	if err := s.Put(t.Context(), "in/o", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"out": outside, "in/inner": "../in2", "in/file": "o"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "in2"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), "out/secret"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open through a link out of the root: %v; want an error other than fs.ErrNotExist", err)
	}
	if err := s.Put(t.Context(), "out/new", strings.NewReader("x")); err == nil {
		t.Error("put through a link out of the root succeeds")
	}
	var failed error
	for _, err := range s.List(t.Context(), "", "") {
		failed = err
	}
	if failed == nil {
		t.Error("the listing is silent about a link out of the root")
	}
	if got := tree(t, outside); !slices.Equal(got, []string{"secret"}) {
		t.Errorf("outside there is %q", got)
	}

	// Links that stay inside are followed.
	var got []string
	for o, err := range s.List(t.Context(), "in/", "") {
		if err != nil {
			t.Error(err)
		}
		got = append(got, fmt.Sprint(o.Name, o.Size))
	}
	if want := []string{"in/file1", "in/inner/0", "in/o1"}; !slices.Equal(got, want) {
		t.Errorf("list in/ yields %q, want %q", got, want)
	}
	if err := s.Put(t.Context(), "in/inner/new", strings.NewReader("x")); err != nil {
		t.Errorf("put through a link inside the root: %v", err)
	}
}

func TestModesAreForTheGroupToRead(t *testing.T) {
	root := t.TempDir()
	if err := open(t, root).Put(t.Context(), "d/o", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	old := syscall.Umask(0)
	syscall.Umask(old)
	for name, want := range map[string]os.FileMode{"d": 0o750 | os.ModeDir, "d/o": 0o640} {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil || info.Mode() != want&^os.FileMode(old) {
			t.Errorf("%s has mode %v, %v; want %v less the umask", name, info.Mode(), err, want)
		}
	}
}

// writer yields what its function writes.
type writer func(io.Writer) error

func (w writer) WriteTo(dst io.Writer) (int64, error) { return 0, w(dst) }
func (writer) Read([]byte) (int, error)               { return 0, errors.New("was read, not asked to write") }

func TestASourceThatWritesIsLetWrite(t *testing.T) {
	s := open(t, t.TempDir())
	broken := errors.New("broke")
	err := s.Put(t.Context(), "o", writer(func(w io.Writer) error { io.WriteString(w, "half"); return broken }))
	if !errors.Is(err, broken) {
		t.Errorf("put of a source that breaks: %v", err)
	}
	if _, err := s.Stat(t.Context(), "o"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat after it: %v", err)
	}
	if err := s.Put(t.Context(), "o", writer(func(w io.Writer) error { _, err := io.WriteString(w, "whole"); return err })); err != nil {
		t.Error(err)
	}
	if got, err := store.ReadFile(t.Context(), s, "o", 100); err != nil || string(got) != "whole" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestAFileIsPut(t *testing.T) {
	s := open(t, t.TempDir())
	data := bytes.Repeat([]byte("0123456789abcde\n"), 20<<20/16+1)
	src, err := os.Create(filepath.Join(t.TempDir(), "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := src.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := src.Seek(100, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "o", src); err != nil {
		t.Fatal(err)
	}
	if got, err := store.ReadFile(t.Context(), s, "o", 1<<30); err != nil || !bytes.Equal(got, data[100:]) {
		t.Errorf("read %d bytes, %v; want the %d behind the file's position", len(got), err, len(data)-100)
	}
}

func TestMemoryOfAPutDoesNotGrowWithTheObject(t *testing.T) {
	s := open(t, t.TempDir())
	const size = 64 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := s.Put(t.Context(), "o", io.LimitReader(zeros{}, size)); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 2<<20 {
		t.Errorf("a put of %d bytes allocated %d", size, got)
	}
	if o, err := s.Stat(t.Context(), "o"); err != nil || o.Size != size {
		t.Errorf("stat: %+v, %v", o, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Nothing is stored where nobody looks for it: below what was mounted over the root, or in a root that is there no more.
func TestRootThatMoved(t *testing.T) {
	root := filepath.Join(t.TempDir(), "archive")
	away := root + ".away"
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, root)
	puts := map[string]func(r io.Reader) error{
		"Put":         func(r io.Reader) error { return s.Put(t.Context(), "a/b", r) },
		"PutIfAbsent": func(r io.Reader) error { return s.PutIfAbsent(t.Context(), "a/c", r) },
	}
	move := func() {
		if err := os.Rename(root, away); err != nil {
			t.Fatal(err)
		}
	}
	back := func() {
		if err := errors.Join(os.RemoveAll(root), os.Rename(away, root)); err != nil {
			t.Fatal(err)
		}
	}
	for op, put := range puts {
		move()
		if err := put(strings.NewReader("x")); err == nil || !strings.Contains(err.Error(), root+" of the archive does not exist") || !retry.Temporary(err) {
			t.Errorf("%s without a root: %v", op, err)
		}
		if err := os.Mkdir(root, 0o700); err != nil {
			t.Fatal(err)
		}
		var moved *file.MovedError
		if err := put(strings.NewReader("x")); !errors.As(err, &moved) || retry.Temporary(err) {
			t.Errorf("%s over another root: %v", op, err)
		}
		if below := slices.Concat(tree(t, root), tree(t, away)); len(below) > 0 {
			t.Errorf("%s: there is %q", op, below)
		}
		back()
		body := readerFunc(func(p []byte) (int, error) { move(); return 0, io.EOF })
		if err := put(body); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a root that goes meanwhile: %v", op, err)
		}
		back()
		if err := errors.Join(s.Delete(t.Context(), "a/b"), s.Delete(t.Context(), "a/c"), put(strings.NewReader("x"))); err != nil {
			t.Errorf("%s, once it is back: %v", op, err)
		}
		if err := errors.Join(s.Delete(t.Context(), "a/b"), s.Delete(t.Context(), "a/c")); err != nil {
			t.Error(err)
		}
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
