package roundtrip_test

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// Stock tar and the stock decompressors unpack a backup's parts into the very files that backup-fetch writes.
func TestStockToolsUnpack(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 15), pgtest.Options{Checksums: true})
	space := filepath.Join(s.Dir, "space")
	if err := os.Mkdir(space, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, space)
	s.Exec(t, `create tablespace space location '`+space+`'`,
		`create table t tablespace space as select g as id, md5(g::text) as what from generate_series(1, 30000) g`)
	for method, tool := range map[string][]string{"zstd": {"zstd", "-dc"}, "lz4": {"lz4", "-dc"}, "none": {"cat"}} {
		t.Run(method, func(t *testing.T) {
			if _, err := exec.LookPath(tool[0]); err != nil {
				pgtest.Missing(t, tool[0])
			}
			push := s.Command(t, "backup-push", s.Data)
			push.Env = append(push.Env, "WALG_COMPRESSION_METHOD="+method, "WALG_TAR_SIZE_THRESHOLD=4000000")
			if r := site.Run(t, push); r.Status != 0 {
				t.Fatalf("backup-push: exit status %d\n%s", r.Status, r.Stderr)
			}
			names := s.Backups(t)
			name := names[len(names)-1]
			fetched := s.Fetch(t, name, "--tablespace-mapping", space+"="+filepath.Join(pgtest.Dir(t), "space"))

			unpacked := pgtest.Dir(t)
			parts, err := filepath.Glob(filepath.Join(s.Root, "basebackups_005", name, "tar_partitions", "*"))
			if err != nil {
				t.Fatal(err)
			}
			if len(parts) < 5 {
				t.Errorf("only %d parts", len(parts))
			}
			for _, part := range parts {
				script := `set -e; "$@" | tar -xf - -C "` + unpacked + `"`
				if out, err := pgtest.Command(t, "bash", slices.Concat([]string{"-o", "pipefail", "-c", script, "sh"}, tool, []string{part})...).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", part, err, out)
				}
			}

			want, got := tree(t, unpacked), tree(t, fetched)
			// What a restore adds or writes anew.
			delete(got, "backup_manifest")
			delete(got, "tablespace_map") // for where the tablespace is now
			delete(want, "tablespace_map")
			oid := s.Value(t, `select oid from pg_tablespace where spcname = 'space'`)
			delete(got, "pg_tblspc/"+oid) // no part holds the directory itself
			delete(want, "pg_tblspc/"+oid)
			if len(want) < 900 {
				t.Errorf("only %d files and directories", len(want))
			}
			for path, w := range want {
				if g, ok := got[path]; !ok {
					t.Errorf("%s is in a part, and was not restored", path)
				} else if g != w {
					t.Errorf("%s: unpacked %s, restored %s", path, w, g)
				}
			}
			for path, g := range got {
				if _, ok := want[path]; !ok && !strings.HasSuffix(g, "directory") {
					t.Errorf("%s was restored, and is in no part", path)
				}
			}
		})
	}
}

// tree says of each file below dir, tablespaces included, its mode, time of change and content, by its path.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	var walk func(at, name string)
	walk = func(at, name string) {
		info, err := os.Stat(at) // through the links of tablespaces
		if err != nil {
			t.Fatal(err)
		}
		if !info.IsDir() {
			content, err := os.ReadFile(at)
			if err != nil {
				t.Fatal(err)
			}
			// A USTAR header holds whole seconds, to which times are rounded. What is written last has the time of the restore.
			found[name] = fmt.Sprintf("%s, %d bytes, sum %x", info.Mode(), len(content), sha256.Sum256(content))
			if name != "backup_label" && name != "global/pg_control" {
				found[name] += fmt.Sprintf(", of %d", info.ModTime().Round(time.Second).Unix())
			}
			return
		}
		if name != "." {
			found[name] = info.Mode().Perm().String() + " directory"
		}
		entries, err := os.ReadDir(at)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Type()&^(fs.ModeDir|fs.ModeSymlink) != 0 {
				t.Errorf("%s/%s is a %s", name, e.Name(), e.Type())
				continue
			}
			walk(filepath.Join(at, e.Name()), filepath.Join(name, e.Name()))
		}
	}
	walk(dir, ".")
	return found
}
