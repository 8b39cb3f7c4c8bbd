package fileid_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/fileid"
)

func at(t *testing.T, path string) fileid.ID {
	t.Helper()
	id, err := fileid.At(path)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// settle waits until a further change of the file must show.
func settle(t *testing.T, path string) {
	t.Helper()
	for begin := time.Now(); !at(t, path).Settled(time.Now()); time.Sleep(fileid.Grain / 5) {
		if time.Since(begin) > time.Minute {
			t.Fatal("the file does not settle")
		}
	}
}

// Whatever is done to a file after it has settled shows, even where its length and its time of modification are what they were.
func TestAlterationsShow(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, alter := range map[string]func() error{
		"other content, time set back": func() error {
			return errors.Join(os.WriteFile(path, []byte("c0ntent"), 0o600), os.Chtimes(path, info.ModTime(), info.ModTime()))
		},
		"appended": func() error { return os.WriteFile(path, []byte("content and more"), 0o600) },
		"renamed and back": func() error {
			return errors.Join(os.Rename(path, path+".away"), os.Rename(path+".away", path))
		},
		"replaced": func() error {
			return errors.Join(os.WriteFile(path+".new", []byte("content"), 0o600), os.Rename(path+".new", path))
		},
	} {
		settle(t, path)
		before := at(t, path)
		if again := at(t, path); again != before {
			t.Errorf("%s: nothing was done, and the ID went from %v to %v", what, before, again)
		}
		if err := alter(); err != nil {
			t.Fatal(err)
		}
		if after := at(t, path); after == before {
			t.Errorf("%s: does not show: %v", what, after)
		}
	}
}

// An open file and its path have one ID.
func TestOfOpenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id, err := fileid.Of(f)
	if want := at(t, path); err != nil || id != want {
		t.Errorf("%v, %v, want %v", id, err, want)
	}
	if id.Size() != 0 {
		t.Errorf("%d bytes", id.Size())
	}
	if _, err := fileid.At(path + ".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
}
