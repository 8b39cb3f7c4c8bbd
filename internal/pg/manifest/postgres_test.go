package manifest_test

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/pg/manifest"
	"holdfast/test/pgtest"
)

// On a backup that pg_basebackup takes now: its manifest is rewritten to the byte, the checksums in it are those we compute,
// and pg_verifybackup takes a manifest of ours, but not one that is wrong about a file.
func TestVerifybackupAgrees(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{})
	run := func(name string, args ...string) error {
		cmd := pgtest.Command(t, pgtest.Tool(t, 15, name), args...)
		cmd.Env = append(cmd.Environ(), c.Environ()...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, out)
		}
		return nil
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	backup := filepath.Join(c.Dir, "backup")
	must(os.WriteFile(filepath.Join(c.Data, "n\xff\"\\m"), []byte("content"), 0o644))
	must(run("pg_basebackup", "-D", backup, "-c", "fast"))

	path := filepath.Join(backup, manifest.Name)
	theirs, err := os.ReadFile(path)
	must(err)
	list, err := read(bytes.NewReader(theirs))
	must(err)
	again, err := write(list)
	must(err)
	if d := cmp.Diff(string(theirs), string(again)); d != "" {
		t.Errorf("rewritten (-PostgreSQL +we):\n%s", d)
	}

	sums := map[string][]byte{}
	for _, f := range list.Files {
		sums[f.Path] = f.Checksum
	}
	ours := content{System: list.System, Ranges: list.Ranges}
	must(filepath.WalkDir(backup, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || p == path {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(backup, p)
		if err != nil || filepath.Dir(rel) == "pg_wal" { // not in a manifest
			return err
		}
		sum := manifest.ChecksumCRC32C(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		if !bytes.Equal(sum, sums[rel]) {
			t.Errorf("%q: PostgreSQL's checksum is %x, ours %x", rel, sums[rel], sum)
		}
		ours.Files = append(ours.Files,
			manifest.File{Path: rel, Size: st.Size(), Modified: st.ModTime(), Algorithm: manifest.CRC32C, Checksum: sum})
		return nil
	}))
	if len(ours.Files) != len(list.Files) {
		t.Errorf("PostgreSQL lists %d files, there are %d", len(list.Files), len(ours.Files))
	}
	put := func() {
		t.Helper()
		b, err := write(ours)
		must(err)
		must(os.WriteFile(path, b, 0o644))
	}
	put()
	must(run("pg_verifybackup", backup))
	ours.Files[0].Checksum[0] ^= 1
	put()
	if run("pg_verifybackup", backup) == nil {
		t.Error("pg_verifybackup found a wrong checksum right")
	}
}
