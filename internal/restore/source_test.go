package restore_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/crc32c"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// elsewhere is a backup of another tool: its files by path, one a batch.
type elsewhere struct {
	archive *archive.Archive // with its WAL
	files   map[string]string
	fail    int // number of the batch that fails; below 0 none
	err     error
}

var errElsewhere = errors.New("damaged at its place")

func (f *elsewhere) member(path string) *tarpart.Member {
	return &tarpart.Member{Path: path, Size: int64(len(f.files[path])), Mode: 0o640, ModTime: time.Unix(1_700_000_000, 0)}
}

func (f *elsewhere) source() *restore.Source {
	paths := slices.Sorted(maps.Keys(f.files))
	dirs := []*tarpart.Member{{Path: ".", Type: tarpart.Dir, Mode: 0o750}, {Path: "base/7", Type: tarpart.Dir, Mode: 0o700}}
	return &restore.Source{
		Members: func(yield func(*tarpart.Member) bool) {
			for _, d := range dirs {
				if !yield(d) {
					return
				}
			}
			for _, path := range paths {
				if !yield(f.member(path)) {
					return
				}
			}
		},
		Batches: iter.Seq[restore.Batch](func(yield func(restore.Batch) bool) {
			for i, path := range paths {
				if !yield(f.batch(i, path, dirs)) {
					return
				}
			}
		}),
		Objects: len(paths), Stored: 100, Damaged: errElsewhere,
	}
}

func (f *elsewhere) batch(i int, path string, dirs []*tarpart.Member) restore.Batch {
	return func(_ context.Context, skip func(*tarpart.Member, func(io.Reader) (bool, error)) bool, put func(*tarpart.Member, io.Reader) error) error {
		if i == 0 {
			for _, d := range dirs {
				if err := put(d, nil); err != nil {
					return err
				}
			}
		}
		m, content := f.member(path), f.files[path]
		same := func(r io.Reader) (bool, error) {
			b, err := io.ReadAll(r)
			return string(b) == content, err
		}
		if skip(m, same) {
			return nil
		}
		from := io.Reader(strings.NewReader(content))
		if i == f.fail {
			from = io.MultiReader(strings.NewReader(content[:len(content)/2]), &failing{f.err})
		}
		if err := put(m, from); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// newElsewhere has files of every kind.
func newElsewhere(t *testing.T) *elsewhere {
	return &elsewhere{fail: -1, files: map[string]string{
		"PG_VERSION": "15\n", "base/5/1": strings.Repeat("a", 300_000), "base/5/2": "", "base/5/3": strings.Repeat("b", 8192), "postmaster.pid": "1",
		"recovery.signal": "", control.Name: string(controlFile(t)), "backup_label": "START WAL LOCATION: 0/2000028\n", "tablespace_map": "",
		"base/5/large": strings.Repeat("0123456789abcdef", 1<<20),
	}}
}

// left are files of a backup that a restored cluster must not have.
var left = []string{"postmaster.pid", "recovery.signal"}

// restoredFrom plans and restores f into dir.
func restoredFrom(t *testing.T, f *elsewhere, dir string, change func(*restore.Request)) (*restore.Report, error) {
	t.Helper()
	if f.archive == nil {
		f.archive = backedUp(t, &storetest.Memory{}, compress.None, nil, small()...) // of which the files do not count
	}
	a := f.archive
	plan, err := decide(t, a, func(r *restore.Request) {
		r.Destination, r.Source = dir, f.source()
		if change != nil {
			change(r)
		}
	})
	if err != nil {
		return nil, err
	}
	return restore.Run(t.Context(), a, plan, restore.Options{Workers: 2})
}

// complete compares what was restored with f.
func complete(t *testing.T, f *elsewhere, dir string) {
	t.Helper()
	for path, content := range f.files {
		if slices.Contains(left, path) {
			if _, err := os.Lstat(filepath.Join(dir, path)); err == nil {
				t.Errorf("%s was restored", path)
			}
			continue
		}
		holds(t, filepath.Join(dir, path), content)
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o640 {
			t.Errorf("%s has the mode %s", path, info.Mode())
		}
		if path == "base/5/1" && !info.ModTime().Equal(time.Unix(1_700_000_000, 0)) {
			t.Errorf("%s is of %s", path, info.ModTime())
		}
	}
	for path, mode := range map[string]os.FileMode{".": 0o750, "base/7": 0o700, "pg_notify": 0o700} {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, manifest.Name))
	if err != nil {
		t.Fatal(err)
	}
	want := hex.EncodeToString(manifest.ChecksumCRC32C(crc32c.Checksum([]byte(f.files["base/5/1"]))))
	if !bytes.Contains(b, []byte(want)) {
		t.Errorf("PostgreSQL's manifest does not have %s", want)
	}
}

// Files of a source come back as those of an archive do: what must not be there is left out, the rest as it was, with PostgreSQL's manifest.
func TestSource(t *testing.T) {
	f := newElsewhere(t)
	dir := filepath.Join(t.TempDir(), "data")
	report, err := restoredFrom(t, f, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	complete(t, f, dir)
	if report.Files != 5 || !report.Verified { // labels and control file are written in the end
		t.Errorf("%+v", report)
	}
}

// Wherever a source fails there is no pg_control, and another attempt completes and keeps what is whole. What is damaged is told as such.
func TestSourceThatFails(t *testing.T) {
	for n := range 10 {
		f := newElsewhere(t)
		f.fail, f.err = n, errors.New("connection reset")
		path := slices.Sorted(maps.Keys(f.files))[n]
		skipped := slices.Contains(left, path)
		dir := filepath.Join(t.TempDir(), "data")
		_, err := restoredFrom(t, f, dir, nil)
		if skipped != (err == nil) {
			t.Fatalf("%s: %v", path, err)
		}
		if skipped {
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, control.Name)); err == nil {
			t.Errorf("%s fails, and there is a pg_control", path)
		}
		if hint := hintOf(err); !strings.Contains(hint, "--resume") {
			t.Errorf("%s: the hint is %q", path, hint)
		}
		if f.files[path] == "" { // is whole as soon as it is there
			continue
		}
		f.err = fmt.Errorf("its checksum: %w", errElsewhere)
		_, err = restoredFrom(t, f, dir, func(r *restore.Request) { r.Resume = true })
		if hint := hintOf(err); !strings.Contains(hint, "restore another backup") {
			t.Errorf("%s is damaged: %v, %q", path, err, hint)
		}
		f.fail = -1
		report, err := restoredFrom(t, f, dir, func(r *restore.Request) { r.Resume = true })
		if err != nil {
			t.Fatal(err)
		}
		complete(t, f, dir)
		if n > 7 && report.KeptFiles == 0 {
			t.Errorf("%s failed, and nothing was kept", path)
		}
	}
}

// hintOf returns what an error advises.
func hintOf(err error) string {
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		return hinted.Hint()
	}
	return ""
}

// A source without pg_control, with a label of another backup, with paths that lead out or with a member twice is refused.
func TestSourceThatWillNotDo(t *testing.T) {
	for what, change := range map[string]func(*elsewhere){
		"no control":            func(f *elsewhere) { delete(f.files, control.Name) },
		"other label":           func(f *elsewhere) { f.files["backup_label"] = "START WAL LOCATION: 0/9000028\n" },
		"no label":              func(f *elsewhere) { delete(f.files, "backup_label") },
		"leads out":             func(f *elsewhere) { f.files["../out"] = "x" },
		"a file is a directory": func(f *elsewhere) { f.files["base/5/1/2"] = "x" },
	} {
		f := newElsewhere(t)
		change(f)
		dir := filepath.Join(t.TempDir(), "data")
		if _, err := restoredFrom(t, f, dir, nil); err == nil {
			t.Errorf("%s: it was restored", what)
		}
		if _, err := os.Lstat(filepath.Join(dir, control.Name)); err == nil {
			t.Errorf("%s: there is a pg_control", what)
		}
	}
	_, err := restoredFrom(t, newElsewhere(t), filepath.Join(t.TempDir(), "data"), func(r *restore.Request) { r.Delta = true })
	if err == nil {
		t.Error("it was compared with a directory")
	}
}

// A mask takes of a source what matches.
func TestSourceMask(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := restoredFrom(t, newElsewhere(t), dir, func(r *restore.Request) { r.Mask = "base/5/[13]" }); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); !slices.Equal(got, []string{"base/5/1", "base/5/3"}) {
		t.Errorf("restored are %v", got)
	}
}
