// Package foreign gives tests the archives that WAL-G and WAL-E wrote, where they are at hand. Only tests import it.
//
// They lie beside the repository, in shared/archives, each a .tar.gz: archive/ is the root, env.walg the settings, keys/ the keys, and what must come of them lies
// beside these. Where they are not a test is skipped.
package foreign

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const suffix = ".tar.gz"

// dir is where they lie.
func dir(t testing.TB) string {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			t.Fatal("there is no go.mod above this directory")
		}
		root = filepath.Dir(root)
	}
	found := filepath.Join(filepath.Dir(root), "shared", "archives")
	if _, err := os.Stat(found); err != nil {
		t.Skipf("needs what WAL-G and WAL-E wrote, which is not beside the repository: %v", err)
	}
	return found
}

// Names returns the names of all, of which there is one at least.
func Names(t testing.TB) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir(t), "*"+suffix))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d archives, %v", len(files), err)
	}
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), suffix))
	}
	return names
}

// Each calls do for every file of an archive, with its path from the archive's top.
func Each(t testing.TB, name string, do func(path string, r io.Reader)) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir(t), name+suffix))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // only read
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			do(strings.TrimPrefix(strings.TrimPrefix(h.Name, "./"), name+"/"), r)
		}
	}
}
