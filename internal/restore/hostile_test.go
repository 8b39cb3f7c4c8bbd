package restore_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/control"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// foreign is an archive with one backup whose data part has the given tar members, as another program would write it.
func foreign(t *testing.T, members ...tar.Header) *archive.Archive {
	t.Helper()
	m := &storetest.Memory{}
	put := func(name string, b []byte) {
		t.Helper()
		if err := m.Put(t.Context(), name, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	pack := func(members ...tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range members {
			content := h.Uname // stands for the content here
			h.Uname, h.Size = "", 0
			if h.Typeflag == tar.TypeReg {
				h.Size = int64(len(content))
			}
			h.Mode = 0o4777 // nobody's bits above 0777 count
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				if _, err := w.Write([]byte(content)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	put(archive.Folder(ours)+"tar_partitions/part_001.tar", pack(members...))
	put(archive.Folder(ours)+"tar_partitions/backup_label.tar", pack(regular("/backup_label", "START WAL LOCATION: 0/2000028\n")))
	put(archive.Folder(ours)+"tar_partitions/pg_control.tar.", pack(regular("/global/pg_control", string(controlFile(t)))))
	sentinel, err := json.Marshal(map[string]any{"LSN": 0x2000028, "FinishLSN": 0x2000100, "PgVersion": 150004, "Version": 2, "FilesMetadataDisabled": true})
	if err != nil {
		t.Fatal(err)
	}
	put(archive.BackupDir+ours+"_backup_stop_sentinel.json", sentinel)
	return archive.New(m, archive.Options{})
}

func regular(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Uname: content}
}

func link(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
}

// Whatever an archive says, nothing is written outside the destination.
func TestNothingIsWrittenOutside(t *testing.T) {
	for what, members := range map[string][]tar.Header{
		"dots":                {regular("../evil", "x")},
		"dots inside":         {regular("/base/../../evil", "x")},
		"through a link":      {link("/base", ".."), regular("/base/evil", "x")},
		"through a far link":  {link("/base", "OUTSIDE"), regular("/base/evil", "x")},
		"through two links":   {link("/a", "b"), link("/b", "OUTSIDE"), regular("/a/evil", "x")},
		"onto a link":         {link("/file", "OUTSIDE/evil"), regular("/file", "x")},
		"control through one": {link("/global", "OUTSIDE")},
		"wal through one":     {link("/pg_replslot", "OUTSIDE/evil")},
	} {
		outside := t.TempDir()
		for i := range members {
			members[i].Linkname = strings.Replace(members[i].Linkname, "OUTSIDE", outside, 1)
		}
		a := foreign(t, members...)
		p, err := decide(t, a, func(r *restore.Request) { r.Owner = "" })
		if err == nil {
			_, err = restore.Run(t.Context(), a, p, restore.Options{})
		}
		if err == nil {
			t.Errorf("%s: restored", what)
		}
		if found, err := os.ReadDir(outside); err != nil || len(found) > 0 {
			t.Errorf("%s: %v outside, %v", what, found, err)
		}
		if p != nil {
			if _, err := os.Lstat(filepath.Join(filepath.Dir(p.Destination), "evil")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: a file beside the destination: %v", what, err)
			}
		}
	}
}

// A rooted name is one below the destination; devices and hard links are left out; the bits that make programs powerful are dropped.
func TestForeignMembers(t *testing.T) {
	a := foreign(t, regular("/etc/passwd", "mine"), regular("PG_VERSION", "15\n"),
		tar.Header{Typeflag: tar.TypeChar, Name: "/null"}, tar.Header{Typeflag: tar.TypeLink, Name: "/hard", Linkname: "/etc/passwd"},
		link("/lost", "lost"), link("/elsewhere", "/nowhere"), link("/pg_wal", "/old/wal"), regular("/recovery.signal", ""), regular("/backup_manifest", "{}"))
	p, report := must(t, a, nil)
	holds(t, filepath.Join(p.Destination, "etc/passwd"), "mine")
	info, err := os.Stat(filepath.Join(p.Destination, "etc/passwd"))
	if err != nil || info.Mode() != 0o777 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if info, err := os.Lstat(filepath.Join(p.Destination, "pg_wal")); err != nil || !info.IsDir() {
		t.Errorf("pg_wal: %v", err)
	}
	for _, name := range []string{"null", "hard", "lost", "recovery.signal", "backup_manifest"} {
		if _, err := os.Lstat(filepath.Join(p.Destination, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", name, err)
		}
		if !strings.Contains(strings.Join(report.Notes, "\n"), name) {
			t.Errorf("no note on %s among %q", name, report.Notes)
		}
	}
	if report.Verified {
		t.Error("a backup without a manifest counts as verified")
	}
	holds(t, filepath.Join(p.Destination, control.Name), string(controlFile(t)))
}

// Without its label PostgreSQL would start on a copy that is not consistent, and not notice.
func TestWithoutLabel(t *testing.T) {
	a := foreign(t, regular("/PG_VERSION", "15\n"))
	if err := a.Store().Delete(t.Context(), archive.Folder(ours)+"tar_partitions/backup_label.tar"); err != nil {
		t.Fatal(err)
	}
	p, err := decide(t, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := restore.Run(t.Context(), a, p, restore.Options{}); err == nil || !strings.Contains(err.Error(), "no backup_label") {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.Destination, control.Name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a pg_control: %v", err)
	}
}

// smallDisk mounts a file system in memory with these bounds.
func smallDisk(t *testing.T, bounds string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a small file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, bounds+",mode=700"); err != nil {
		t.Skip("cannot make a small file system:", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, 0) })
	return dir
}

// A file system that takes fewer files than there are is refused before the first.
func TestTooFewInodes(t *testing.T) {
	dir := smallDisk(t, "nr_inodes=4") // itself is one
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, []tarpart.Entry{file("base/1/1", "a")})
	_, err := decide(t, a, func(r *restore.Request) { r.Destination = filepath.Join(dir, "data") })
	var refusal *restore.RefusedError
	if !errors.As(err, &refusal) || !strings.Contains(err.Error(), "takes 3 more files, the restore makes 4") {
		t.Errorf("Decide: %v", err)
	}
}

// A file system that fills up ends the restore with a clear error, and it continues once there is room.
func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, "size=2m")
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, []tarpart.Entry{file("base/1/1", strings.Repeat("abcdefgh", 150_000))})
	into := func(r *restore.Request) { r.Destination = filepath.Join(dir, "data") }
	p, err := decide(t, a, into)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1_500_000), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = restore.Run(t.Context(), a, p, restore.Options{})
	var hinted interface{ Hint() string }
	if !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &hinted) || !strings.Contains(err.Error(), "base/1/1") {
		t.Errorf("Run on a full file system: %v", err)
	}
	if _, err := decide(t, a, func(r *restore.Request) { r.Destination = filepath.Join(dir, "other") }); err == nil || !strings.Contains(err.Error(), "free") {
		t.Errorf("Decide where there is no room: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	p, _ = must(t, a, func(r *restore.Request) { into(r); r.Resume = true })
	holds(t, filepath.Join(p.Destination, "base/1/1"), strings.Repeat("abcdefgh", 150_000))
}
