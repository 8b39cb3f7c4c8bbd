package file_test

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestAFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	root := t.TempDir()
	if err := syscall.Mount("holdfast-test", root, "tmpfs", 0, "size=4m"); err != nil {
		t.Skip("needs the right to mount a small file system: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(root, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, root)
	if err := s.Put(t.Context(), "d/o", strings.NewReader("old")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d/o", "e/new"} {
		err := s.Put(t.Context(), name, io.LimitReader(zeros{}, 32<<20))
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("put %s on a full disk: %v", name, err)
		}
	}
	if got := tree(t, root); !slices.Equal(got, []string{"d", "d/o"}) {
		t.Errorf("left are %q", got)
	}
	if _, err := s.Stat(t.Context(), "e/new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
}
