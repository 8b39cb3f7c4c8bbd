package backup_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/compress"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// stock restores a backup as WAL-G's classic unpacking does, knowing WAL-G's documents and nothing of ours: oldest backup first, only
// what the newer one's list leaves to it, increments applied to what is there.
func stock(t *testing.T, s store.Store, name string, wanted func(file string) bool, dir string) {
	t.Helper()
	read := func(object string, v any) {
		t.Helper()
		b, err := store.ReadFile(t.Context(), s, object, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	var sentinel struct {
		DeltaFrom string
		Version   int
	}
	read(archive.BackupDir+name+"_backup_stop_sentinel.json", &sentinel)
	var list struct {
		Files map[string]struct{ IsIncremented, IsSkipped bool }
	}
	read(archive.Folder(name)+"files_metadata.json", &list)
	if sentinel.Version != 2 {
		t.Fatalf("version %d", sentinel.Version)
	}
	if sentinel.DeltaFrom != "" {
		stock(t, s, sentinel.DeltaFrom, func(file string) bool {
			f, ok := list.Files[file]
			return ok && (f.IsIncremented || f.IsSkipped) && wanted(file)
		}, dir)
	}
	came := map[string]bool{}
	for o, err := range s.List(t.Context(), archive.Folder(name)+"tar_partitions/", "") {
		if err != nil {
			t.Fatal(err)
		}
		base, method := compress.Split(path.Base(o.Name))
		raw, err := s.Open(t.Context(), o.Name)
		if err != nil {
			t.Fatal(err)
		}
		body := compress.Decompress(raw, method)
		for r := tar.NewReader(body); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			file, listed := list.Files[h.Name]
			if !listed && base != "pg_control.tar" && base != "backup_label.tar" || !wanted(h.Name) {
				continue
			}
			came[h.Name] = true
			if err := stockMember(filepath.Join(dir, h.Name), h, r, file.IsIncremented); err != nil {
				t.Fatalf("%s of %s: %v", h.Name, name, err)
			}
		}
		if err := errors.Join(body.Close(), raw.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for file, f := range list.Files {
		if !f.IsSkipped && !came[file] && wanted(file) {
			t.Errorf("%s lists %s, and no part has it", name, file)
		}
	}
}

func stockMember(at string, h *tar.Header, r io.Reader, incremented bool) error {
	switch {
	case h.Typeflag == tar.TypeDir:
		return os.MkdirAll(at, 0o700)
	case h.Typeflag != tar.TypeReg:
		return nil
	case !incremented:
		b, err := io.ReadAll(r)
		return errors.Join(err, os.MkdirAll(filepath.Dir(at), 0o700), os.WriteFile(at, b, 0o600))
	}
	f, err := os.OpenFile(at, os.O_WRONLY, 0) // it must be there
	if err != nil {
		return err
	}
	defer f.Close()
	var head struct {
		Magic [4]byte
		Size  uint64
		Count uint32
	}
	if err := binary.Read(r, binary.LittleEndian, &head); err != nil {
		return err
	}
	numbers := make([]uint32, head.Count)
	if err := binary.Read(r, binary.LittleEndian, numbers); err != nil {
		return err
	}
	if string(head.Magic[:]) != "wi1U" || !slices.IsSorted(numbers) || h.Size != 16+int64(head.Count)*(4+8192) {
		return fmt.Errorf("%q, %d pages, %d bytes", head.Magic, head.Count, h.Size)
	}
	if err := f.Truncate(int64(head.Size)); err != nil {
		return err
	}
	for _, n := range numbers {
		page := make([]byte, 8192)
		if _, err := io.ReadFull(r, page); err != nil {
			return err
		}
		if _, err := f.WriteAt(page, int64(n)*8192); err != nil {
			return err
		}
	}
	if n, err := io.Copy(io.Discard, r); n > 0 || err != nil {
		return fmt.Errorf("%d bytes more, %v", n, err)
	}
	return nil
}

// Who knows WAL-G's format only restores the same from our chains.
func TestStockReadersRestoreChains(t *testing.T) {
	c := newChain(t, 17)
	c.Exec(t, "create table t as select i, repeat('x', 200) p from generate_series(1, 20000) i", "create table gone as select 1", "create table still as select 1", "vacuum")
	c.push(t, backup.Summaries, nil)
	var last *backup.Report
	for _, step := range [][]string{
		{"update t set p = 'y' where i = 77", "drop table gone", "create table new as select 1"},
		{"delete from t where i > 9000", "vacuum t"},
		{"insert into t select i, repeat('z', 200) from generate_series(1, 20000) i"},
	} {
		c.Exec(t, step...)
		last = c.push(t, backup.Summaries, nil)
	}
	dir := t.TempDir()
	stock(t, c.store, last.Name, func(string) bool { return true }, dir)
	want, got := files(t, c.Data), files(t, dir)
	for name, w := range want {
		if !bytes.Equal(got[name], w) {
			t.Errorf("%s has %d bytes that are not the %d the server has", name, len(got[name]), len(w))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files instead of %d", len(got), len(want))
	}
	if label, err := os.ReadFile(filepath.Join(dir, "backup_label")); err != nil || !strings.Contains(string(label), last.StartLSN) {
		t.Errorf("%s, %v", label, err)
	}
}

// Whichever store call fails, there is a whole backup, or an error and nothing of it; a parent that cannot be read makes it a full one.
func TestDeltaFailsWhole(t *testing.T) {
	c := newChain(t, 15)
	c.push(t, backup.PageLSN, nil)
	c.Exec(t, "create table t as select generate_series(1, 1000) i")
	backups := func() (all []string) {
		for _, name := range names(t, c.store) {
			if strings.HasPrefix(name, archive.BackupDir) {
				all = append(all, name)
			}
		}
		return all
	}
	for how, failAt := range map[string]func(store.Store, int) *storetest.Flaky{"before": storetest.FailAt, "after": storetest.FailAfter} {
		deltas, fulls, failed := 0, 0, 0
		for n := 0; ; n++ {
			flaky := failAt(c.store, n)
			was := backups()
			c.archive = archive.New(flaky, inMemory)
			r, err := c.try(t, backup.PageLSN, nil)
			c.archive = archive.New(c.store, archive.Options{})
			switch {
			case err != nil:
				failed++
				if is := backups(); !slices.Equal(is, was) {
					t.Errorf("%s, call %d failed with %v, and yet there is more than before: %q", how, n, err, is[len(was):])
				}
			case r.Delta == nil:
				fulls++
			default:
				deltas++
			}
			if err == nil {
				if _, err := c.archive.Sentinel(t.Context(), r.Name); err != nil {
					t.Errorf("%s, call %d: %v", how, n, err)
				}
				for _, name := range backups() { // the next one builds on the same
					if strings.HasPrefix(name, archive.BackupDir+r.Name) {
						if err := c.store.Delete(t.Context(), name); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			if !flaky.Reached() {
				break
			}
		}
		t.Logf("%s: %d deltas, %d full backups, %d failures", how, deltas, fulls, failed)
		if deltas == 0 || fulls == 0 || failed == 0 {
			t.Errorf("%s: %d deltas, %d full backups, %d failures", how, deltas, fulls, failed)
		}
	}
}
