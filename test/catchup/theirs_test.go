package catchup_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/file"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// edit changes a JSON document of the archive.
func (v *pair) edit(t *testing.T, object string, change func(doc map[string]any)) {
	t.Helper()
	name := filepath.Join(v.Root, object)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var doc map[string]any
	if err := d.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	change(doc)
	if b, err = json.Marshal(doc); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// asWALG takes from a catch-up what WAL-G does not write.
func (v *pair) asWALG(t *testing.T, name string) {
	t.Helper()
	for _, object := range []string{"manifest.json.zst", "page_sums"} {
		if err := os.RemoveAll(filepath.Join(v.Root, "catchup_005", name, object)); err != nil {
			t.Fatal(err)
		}
	}
	v.edit(t, "catchup_005/"+name+"_backup_stop_sentinel.json", func(doc map[string]any) {
		for key := range doc {
			if strings.HasPrefix(key, "Holdfast") {
				delete(doc, key)
			}
		}
	})
}

// What WAL-G 1.0 to 2.0.1 pushed, increments, and what it pushes since, whole files, is applied as well as ours. It goes by what WAL-G writes alone: that it
// is applied is also what WAL-G finds in ours.
func TestCatchUpsOfWALG(t *testing.T) {
	t.Run("increments", func(t *testing.T) {
		t.Parallel()
		v := lagging(t, 13, "lsn")
		v.work(t)
		r := v.pushed(t, "--from-lsn", v.at)
		v.asWALG(t, r.Name)
		mapping := []string{"--tablespace-mapping", v.space("new") + "=" + v.space("standby-new")}

		broken := copied(t, v.dir)
		untouched := v.Value(t, `select pg_relation_filepath('untouched')`)
		if err := os.Remove(filepath.Join(broken, untouched)); err != nil {
			t.Fatal(err)
		}
		v.Refused(t, 1, []string{untouched, "does not have, or not all of"}, "catchup-fetch", broken, r.Name, "--tablespace-mapping", v.space("new")+"="+v.space("broken-new"))
		if _, err := os.Stat(filepath.Join(broken, "global/pg_control")); !os.IsNotExist(err) {
			t.Errorf("a server could start on it: %v", err)
		}

		out := v.OK(t, append([]string{"catchup-fetch", v.dir, r.Name}, mapping...)...)
		if !strings.Contains(out.Stderr, "cannot be verified") {
			t.Errorf("it does not say that it is not verified:\n%s", out.Stderr)
		}
		v.same(t, v.open(t))
		v.kept(t)
	})
	t.Run("whole files", func(t *testing.T) {
		t.Parallel()
		v := lagging(t, 15, "lsn")
		v.work(t)
		// Nothing of the standby's matters then, so that the position need not fit.
		r := v.pushed(t, "--from-lsn", v.Value(t, `pg_current_wal_lsn() - 1`), "--whole", "base/*/*", "--whole", "pg_tblspc/*/*/*/*")
		if r.Delta.Incremental != 0 {
			t.Fatalf("%+v", r)
		}
		v.asWALG(t, r.Name)
		if err := os.Remove(filepath.Join(v.dir, v.Value(t, `select pg_relation_filepath('untouched')`))); err != nil {
			t.Fatal(err)
		}
		v.OK(t, "catchup-fetch", v.dir, r.Name, "--tablespace-mapping", v.space("new")+"="+v.space("standby-new"))
		v.same(t, v.open(t))
		v.kept(t)
	})
}

// plan plans a catch-up of dir from an archive in s.
func plan(t *testing.T, s store.Store, dir, name string, mapping map[string]string) (*archive.Archive, *restore.CatchUp, error) {
	t.Helper()
	a := archive.New(s, archive.Options{}).CatchUps()
	cat, err := catalog.Load(t.Context(), a)
	if err != nil {
		return nil, nil, err
	}
	b, err := cat.Find(name)
	if err != nil {
		return nil, nil, err
	}
	c, err := restore.DecideCatchUp(t.Context(), a, restore.CatchUpRequest{Destination: dir, Catalog: cat, Backup: b, TablespaceMapping: mapping})
	return a, c, err
}

// Whichever call of the store fails, the catch-up fails, and completes when it is run again.
func TestStoreFailsWhileCatchingUp(t *testing.T) {
	t.Parallel()
	v := lagging(t, 15, "archive")
	v.work(t)
	r := v.pushed(t, "--from-lsn", v.at)
	s, err := file.Open(v.Root)
	if err != nil {
		t.Fatal(err)
	}
	for how, failAt := range map[string]func(store.Store, int) *storetest.Flaky{"before": storetest.FailAt, "midway": storetest.FailMidway} {
		completed, dir := 0, ""
		for n := 0; ; n++ {
			if dir == "" {
				dir = copied(t, v.dir)
			}
			mapping := map[string]string{v.space("new"): filepath.Join(filepath.Dir(dir), "new")}
			flaky := failAt(s, n)
			a, c, err := plan(t, flaky, dir, r.Name, mapping)
			planned := err == nil
			if planned {
				_, err = restore.RunCatchUp(t.Context(), a, c, restore.Options{Workers: 1})
			}
			if !flaky.Reached() {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			failed := err != nil // else the archive's WAL is not known, which may come from elsewhere
			if failed && !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("%s, call %d (%s) failed: %v", how, n, flaky.Calls()[n], err)
			}
			if !planned {
				if _, err := os.Stat(filepath.Join(dir, "global/pg_control")); err != nil {
					t.Errorf("%s, call %d (%s) failed, and the directory was touched: %v", how, n, flaky.Calls()[n], err)
				}
				continue
			}
			if failed {
				if _, err := os.Stat(filepath.Join(dir, "global/pg_control")); !os.IsNotExist(err) {
					t.Errorf("%s, call %d (%s) failed, and a server could start: %v", how, n, flaky.Calls()[n], err)
				}
				if a, c, err = plan(t, s, dir, r.Name, mapping); err == nil {
					if !c.Continues {
						t.Errorf("%s, call %d (%s) failed, and it begins anew", how, n, flaky.Calls()[n])
					}
					_, err = restore.RunCatchUp(t.Context(), a, c, restore.Options{})
				}
				if err != nil {
					t.Fatalf("%s, call %d (%s) failed, and then it does not complete: %v", how, n, flaky.Calls()[n], err)
				}
				completed++
			}
			if _, _, err := plan(t, s, dir, r.Name, mapping); err == nil || !strings.Contains(err.Error(), "no server was started yet") {
				t.Errorf("it is done, and would be done again: %v", err)
			}
			if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
				t.Fatal(err)
			}
			dir = ""
		}
		if completed < 5 {
			t.Errorf("%s: %d catch-ups were completed", how, completed)
		}
	}
}

// hostile packs members of a tar stream.
func hostile(t *testing.T, members ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		h.Mode = 0o600
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z, err := io.ReadAll(compress.Compress(&b, compress.Zstd, compress.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// Nothing is written outside the data directory, whatever an archive holds.
func TestNothingIsWrittenOutside(t *testing.T) {
	t.Parallel()
	v := lagging(t, 15, "lsn")
	v.work(t)
	r := v.pushed(t, "--from-lsn", v.at)
	v.asWALG(t, r.Name)
	outside := pgtest.Dir(t)
	for what, c := range map[string]struct {
		members []*tar.Header
		prepare func(dir string) error
		words   string
	}{
		"dots":                      {members: []*tar.Header{{Name: "/../../evil", Size: 4}}, words: "leads out of the data directory"},
		"absolute":                  {members: []*tar.Header{{Name: outside + "/evil", Size: 4}}, words: ""},
		"through a link":            {members: []*tar.Header{{Name: "/base/away/evil", Size: 4}}, prepare: func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "base/away")) }},
		"a link":                    {members: []*tar.Header{{Name: "/base/link", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "/base/link/evil", Size: 4}}},
		"an increment that is none": {members: []*tar.Header{{Name: "/base/1/77777", Size: 8192}}, words: "it is not the increment of a file"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := copied(t, v.dir)
			if c.prepare != nil {
				if err := c.prepare(dir); err != nil {
					t.Fatal(err)
				}
			}
			list := filepath.Join(v.Root, "catchup_005", r.Name, "files_metadata.json")
			was, err := os.ReadFile(list)
			if err != nil {
				t.Fatal(err)
			}
			part := filepath.Join(v.Root, "catchup_005", r.Name, "tar_partitions", "part_000.tar.zst")
			put(t, part, string(hostile(t, c.members...)))
			defer func() {
				if err := errors.Join(os.Remove(part), os.WriteFile(list, was, 0o600)); err != nil {
					t.Error(err)
				}
			}()
			v.edit(t, "catchup_005/"+r.Name+"/files_metadata.json", func(doc map[string]any) {
				for _, m := range c.members {
					if _, ok := doc["Files"].(map[string]any)[m.Name]; !ok && what != "dots" {
						doc["Files"].(map[string]any)[m.Name] = map[string]any{"IsIncremented": strings.Contains(what, "increment"), "IsSkipped": false, "MTime": "2026-01-01T00:00:00Z"}
					}
				}
			})
			result := v.Do(t, "catchup-fetch", dir, r.Name, "--tablespace-mapping", v.space("new")+"="+filepath.Join(filepath.Dir(dir), "new"))
			if c.words != "" && (result.Status != 1 || !strings.Contains(result.Stderr, c.words)) {
				t.Errorf("status %d, and it does not say %q:\n%s", result.Status, c.words, result.Stderr)
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("written outside: %v, %v", left, err)
			}
		})
	}
}
