package datadir_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"holdfast/internal/pg/control"
	"holdfast/internal/pg/datadir"
)

const versionDir = "PG_15_202209061"

// make15 makes what every data directory has, of PostgreSQL 15.
func make15(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("../control/testdata/pg_control_15")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	put(t, root, "PG_VERSION", "15\n")
	put(t, root, "global/pg_control", string(b)+strings.Repeat("\x00", control.Size-len(b)))
	for _, dir := range []string{"base/5", "pg_tblspc", "pg_wal/archive_status"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// put makes a file, and the directories it needs. A name that ends in "/" is a directory, a content "-> x" makes a link to x.
func put(t testing.TB, root, name, content string) {
	t.Helper()
	full := filepath.Join(root, name)
	err := os.MkdirAll(filepath.Dir(full), 0o700)
	if target, isLink := strings.CutPrefix(content, "-> "); err == nil && isLink {
		err = os.Symlink(target, full)
	} else if err == nil && strings.HasSuffix(name, "/") {
		err = os.MkdirAll(full, 0o700)
	} else if err == nil {
		err = os.WriteFile(full, []byte(content), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// walk returns what a walk yields, one line each, and what it says it skipped.
func walk(t testing.TB, root string) (entries, skipped []string) {
	t.Helper()
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	opts := datadir.Options{Skipped: func(path string, why datadir.Reason) {
		skipped = append(skipped, fmt.Sprintf("%s: %s", path, why))
	}}
	for e, err := range d.Walk(opts) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, line(e))
	}
	return entries, skipped
}

func line(e datadir.Entry) string {
	switch e.Kind {
	case datadir.Relation:
		return fmt.Sprintf("%s relation %s %d", e.Path, e.Fork, e.Segment)
	case datadir.Symlink:
		return fmt.Sprintf("%s -> %s", e.Path, e.Target)
	}
	return fmt.Sprintf("%s %s", e.Path, e.Kind)
}

func compare(t *testing.T, got []string, want string) {
	t.Helper()
	if d := cmp.Diff(strings.Split(strings.TrimSpace(want), "\n"), got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// One tree with every oddity there is.
func TestWalkYieldsWhatABackupStores(t *testing.T) {
	root := make15(t)
	space, old := t.TempDir(), t.TempDir()
	// Unlogged 16400, temporary t3_16500, and files that only look as if they were left out.
	for _, name := range strings.Fields(`base/5/16384 base/5/16384.1 base/5/16384.12 base/5/16384_fsm base/5/16384_fsm.1 base/5/16384_vm
		base/5/16400 base/5/16400.1 base/5/16400_fsm base/5/16400_vm base/5/16400_init base/5/164001 base/5/t3_16500 base/5/t3_16500_fsm.2
		base/5/pg_filenode.map base/5/pg_internal.init base/5/pg_internal.init.77 base/5/PG_VERSION base/5/t3_x base/5/016384 base/5/16384.01
		base/5/pgsql_tmp base/5/log/x base/pgsql_tmp/pgsql_tmp12.3 base/pgsql_tmp99.0 base/x/16384 base/5/.DS_Store
		global/1262 global/1262_fsm global/pg_internal.init global/pg_filenode.map global/16400_init global/16400
		pg_wal/000000010000000000000001 pg_wal/archive_status/000000010000000000000001.ready
		pg_replslot/s/state pg_notify/0000 pg_stat_tmp/global.stat pg_subtrans/0000 pg_dynshmem/mmap.1 pg_serial/0 pg_snapshots/1
		log/postgresql.log pg_log/old.log pg_xact/0000 pg_xact/log/x pg_logical/replorigin_checkpoint extra/pg_wal/x extra/postmaster.pid
		postmaster.pid postmaster.opts backup_label backup_label.old tablespace_map backup_manifest recovery.signal standby.signal
		recovery.conf recovery.done postgresql.auto.conf.tmp current_logfiles current_logfiles.tmp postgresql.auto.conf .hidden
		pg_tblspc/17000/PG_15_202209061/5/16384 pg_tblspc/17000/PG_14_202107181/5/16384 pg_tblspc/readme`) {
		put(t, root, name, "x")
	}
	put(t, space, versionDir+"/5/16384.3", "x")
	put(t, space, versionDir+"/5/16400_init", "x")
	put(t, space, versionDir+"/5/16400", "x")
	put(t, space, versionDir+"/pgsql_tmp/pgsql_tmp1.0", "x")
	put(t, space, versionDir+"/log/x", "x")
	put(t, space, "PG_14_202107181/5/16384", "x")
	put(t, root, "pg_tblspc/16999", "-> "+space)
	put(t, root, "conf.d", "-> /etc/postgresql")
	put(t, root, "base/5/16600", "-> ../elsewhere")
	put(t, old, "x", "x")
	socket, err := net.Listen("unix", filepath.Join(root, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}

	entries, skipped := walk(t, root)
	compare(t, entries, `
. directory
.hidden file
PG_VERSION file
base directory
base/5 directory
base/5/016384 file
base/5/16384 relation main 0
base/5/16384.01 file
base/5/16384.1 relation main 1
base/5/16384.12 relation main 12
base/5/16384_fsm relation fsm 0
base/5/16384_fsm.1 relation fsm 1
base/5/16384_vm relation vm 0
base/5/164001 relation main 0
base/5/16400_init relation init 0
base/5/16600 -> ../elsewhere
base/5/PG_VERSION file
base/5/log directory
base/5/log/x file
base/5/pg_filenode.map file
base/5/pgsql_tmp file
base/5/t3_x file
base/x directory
base/x/16384 file
conf.d -> /etc/postgresql
extra directory
extra/pg_wal directory
extra/pg_wal/x file
extra/postmaster.pid file
global directory
global/1262 relation main 0
global/1262_fsm relation fsm 0
global/16400 relation main 0
global/16400_init relation init 0
global/pg_control control
global/pg_filenode.map file
log directory
pg_dynshmem directory
pg_log directory
pg_logical directory
pg_logical/replorigin_checkpoint file
pg_notify directory
pg_replslot directory
pg_serial directory
pg_snapshots directory
pg_stat_tmp directory
pg_subtrans directory
pg_tblspc directory
pg_tblspc/16999/PG_15_202209061 directory
pg_tblspc/16999/PG_15_202209061/5 directory
pg_tblspc/16999/PG_15_202209061/5/16384.3 relation main 3
pg_tblspc/16999/PG_15_202209061/5/16400_init relation init 0
pg_tblspc/16999/PG_15_202209061/log directory
pg_tblspc/16999/PG_15_202209061/log/x file
pg_tblspc/17000 directory
pg_tblspc/17000/PG_15_202209061 directory
pg_tblspc/17000/PG_15_202209061/5 directory
pg_tblspc/17000/PG_15_202209061/5/16384 relation main 0
pg_tblspc/readme file
pg_wal directory
pg_wal/archive_status directory
pg_xact directory
pg_xact/0000 file
pg_xact/log directory
pg_xact/log/x file
postgresql.auto.conf file`)
	compare(t, skipped, `
.s.PGSQL.5432: neither file, directory nor symbolic link
backup_label: steers a backup or a recovery that is not this one
backup_label.old: steers a backup or a recovery that is not this one
backup_manifest: steers a backup or a recovery that is not this one
base/5/.DS_Store: temporary
base/5/16400: unlogged: only its init fork survives a crash
base/5/16400.1: unlogged: only its init fork survives a crash
base/5/16400_fsm: unlogged: only its init fork survives a crash
base/5/16400_vm: unlogged: only its init fork survives a crash
base/5/pg_internal.init: of the running server only
base/5/pg_internal.init.77: of the running server only
base/5/t3_16500: temporary
base/5/t3_16500_fsm.2: temporary
base/pgsql_tmp: temporary
base/pgsql_tmp99.0: temporary
current_logfiles: of the running server only
current_logfiles.tmp: of the running server only
fifo: neither file, directory nor symbolic link
global/pg_internal.init: of the running server only
log/: of the running server only
pg_dynshmem/: of the running server only
pg_log/: of the running server only
pg_notify/: of the running server only
pg_replslot/: of the running server only
pg_serial/: of the running server only
pg_snapshots/: of the running server only
pg_stat_tmp/: of the running server only
pg_subtrans/: of the running server only
pg_tblspc/16999/PG_15_202209061/5/16400: unlogged: only its init fork survives a crash
pg_tblspc/16999/PG_15_202209061/pgsql_tmp: temporary
pg_tblspc/17000/PG_14_202107181: not this server's version
pg_wal/: of the running server only
postgresql.auto.conf.tmp: of the running server only
postmaster.opts: of the running server only
postmaster.pid: of the running server only
recovery.conf: steers a backup or a recovery that is not this one
recovery.done: steers a backup or a recovery that is not this one
recovery.signal: steers a backup or a recovery that is not this one
standby.signal: steers a backup or a recovery that is not this one
tablespace_map: steers a backup or a recovery that is not this one`)

	again, _ := walk(t, root)
	if !slices.Equal(entries, again) {
		t.Error("a second walk yields something else")
	}
	spaces, err := datadir.Tablespaces(root)
	want := []datadir.Tablespace{{OID: 16999, Location: space}, {OID: 17000}}
	if err != nil || !slices.Equal(spaces, want) || !spaces[1].InPlace() {
		t.Errorf("Tablespaces() = %+v, %v", spaces, err)
	}
}

// Directories moved away behind a link come back as directories, with the data directory's permissions.
func TestWalkMakesLinkedDirectoriesPlain(t *testing.T) {
	root, away := make15(t), t.TempDir()
	if err := os.Chmod(root, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "pg_wal")); err != nil {
		t.Fatal(err)
	}
	put(t, away, "000000010000000000000001", "x")
	put(t, away, "summaries/", "")
	put(t, root, "pg_wal", "-> "+away)
	put(t, root, "log", "-> /nowhere")
	put(t, root, "pg_stat_tmp", "-> "+away)
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for e, err := range d.Walk(datadir.Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(e.Path, "pg_wal") || e.Path == "log" || e.Path == "pg_stat_tmp" {
			got = append(got, fmt.Sprintf("%s %s %v", e.Path, e.Kind, e.Mode))
		}
	}
	compare(t, got, `
log directory drwxr-x---
pg_stat_tmp directory drwxr-x---
pg_wal directory drwxr-x---
pg_wal/archive_status directory drwxr-x---
pg_wal/summaries directory drwxr-x---`)
}

// A tablespace that lies inside the data directory is walked once, as a tablespace; the directory itself stays.
func TestWalkTablespaceInsideTheDataDirectory(t *testing.T) {
	root := make15(t)
	put(t, root, "disks/one/"+versionDir+"/5/16384", "x")
	put(t, root, "pg_tblspc/16999", "-> "+filepath.Join(root, "disks/one"))
	entries, skipped := walk(t, root)
	if got := strings.Join(entries, "\n"); strings.Count(got, "16384") != 1 || !strings.Contains(got, "disks/one directory\n") {
		t.Errorf("got\n%s", got)
	}
	if !slices.Contains(skipped, "disks/one/: a tablespace, walked below pg_tblspc") {
		t.Errorf("skipped %q", skipped)
	}
}

// A tablespace whose disk is not there is an error: a backup without it would be none.
func TestWalkMissesNoTablespace(t *testing.T) {
	root := make15(t)
	put(t, root, "pg_tblspc/16999", "-> "+filepath.Join(t.TempDir(), "unmounted"))
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range d.Walk(datadir.Options{}) {
		if last != nil {
			t.Error("something was yielded after an error")
		}
		last = err
	}
	if last == nil || !strings.Contains(last.Error(), "tablespace 16999: there is no PG_15_202209061") {
		t.Errorf("got %v", last)
	}
}

// Every entry has what a backup records of a file.
func TestWalkYieldsAttributes(t *testing.T) {
	root := make15(t)
	put(t, root, "base/5/16384", "eight bytes?")
	path := filepath.Join(root, "base/5/16384")
	when := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	if err := errors.Join(os.Chmod(path, 0o640), os.Chtimes(path, when, when)); err != nil {
		t.Fatal(err)
	}
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range d.Walk(datadir.Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.OSPath != filepath.Join(root, e.Path) {
			t.Errorf("%s: OSPath %s", e.Path, e.OSPath)
		}
		if e.Kind == datadir.Directory != e.Mode.IsDir() {
			t.Errorf("%s: %s of mode %v", e.Path, e.Kind, e.Mode)
		}
		if e.Path != "base/5/16384" {
			continue
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		inode, changed := datadir.Identity(info)
		if runtime.GOOS == "linux" && (inode == 0 || time.Since(changed) > time.Hour) {
			t.Errorf("inode %d, changed at %s", inode, changed)
		}
		e.ModTime = e.ModTime.UTC()
		want := datadir.Entry{Path: "base/5/16384", OSPath: path, Kind: datadir.Relation, Size: 12, Mode: 0o640, ModTime: when,
			Inode: inode, Changed: changed, UID: os.Geteuid(), GID: os.Getegid()}
		if d := cmp.Diff(want, e); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

// What vanishes while the walk is under way is no error, be it a file or a directory.
func TestWalkGoesOnWhenFilesVanish(t *testing.T) {
	root := make15(t)
	for i := range 100 {
		put(t, root, fmt.Sprintf("base/%d/16384", 100+i), "x")
		put(t, root, fmt.Sprintf("base/5/%d", 20000+i), "x")
	}
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	last := ""
	for e, err := range d.Walk(datadir.Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		last = e.Path
		switch e.Path {
		case "base/100": // the walk stands before its content
			for i := range 50 {
				os.RemoveAll(filepath.Join(root, fmt.Sprintf("base/%d", 100+i)))
			}
		case "base/5/20000":
			for i := range 50 {
				os.Remove(filepath.Join(root, fmt.Sprintf("base/5/%d", 20001+i)))
			}
		}
	}
	if last != "pg_wal/archive_status" {
		t.Errorf("the walk ended at %s", last)
	}
}

// The caller may stop wherever it likes.
func TestWalkStops(t *testing.T) {
	root := make15(t)
	put(t, root, "pg_tblspc/17000/"+versionDir+"/5/16384", "x")
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	all, _ := walk(t, root)
	for n := range all {
		seen := 0
		for range d.Walk(datadir.Options{}) { // panics where the walk goes on after a break
			if seen++; seen > n {
				break
			}
		}
	}
}

func TestOpenRefusesWhatIsNoDataDirectory(t *testing.T) {
	write := func(name, content string) func(root string) error {
		return func(root string) error { return os.WriteFile(filepath.Join(root, name), []byte(content), 0o600) }
	}
	remove := func(name string) func(root string) error {
		return func(root string) error { return os.Remove(filepath.Join(root, name)) }
	}
	for name, c := range map[string]struct {
		spoil func(root string) error
		want  string
	}{
		"no PG_VERSION": {remove("PG_VERSION"), "is not a data directory"},
		"no pg_control": {remove("global/pg_control"), "is not a data directory"},
		"another major": {write("PG_VERSION", "14\n"), `PG_VERSION says "14"`},
		"damaged":       {write("global/pg_control", strings.Repeat("\x00", 8192)), "version 0"},
		"nothing there": {os.RemoveAll, "no such file"},
		"a file":        {func(root string) error { return errors.Join(os.RemoveAll(root), write("", "")(root)) }, "not a directory"},
	} {
		root := make15(t)
		if err := c.spoil(root); err != nil {
			t.Fatal(err)
		}
		if d, err := datadir.Open(root); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v, want %q", name, d, err, c.want)
		}
	}
	root := make15(t)
	if d, err := datadir.Open(root); err != nil || d.Root != root || d.Control.Major != 15 {
		t.Errorf("Open = %+v, %v", d, err)
	}
}

// Of any tree a walk yields each path once, sorted, parents first, and none that a backup must not have.
func TestWalkNeverYieldsTheExcluded(t *testing.T) {
	root := make15(t)
	parts := []string{"base", "global", "5", "16384", "16384_init", "16384.1", "16384_vm", "t1_16384", "pgsql_tmp", "pgsql_tmp1.0", "log",
		"pg_wal", "pg_tblspc", "17000", versionDir, "postmaster.pid", "pg_internal.init", "pg_stat_tmp", "backup_label", "x"}
	excluded := regexp.MustCompile(`^(postmaster\.pid$|postmaster\.pid/|backup_label$|backup_label/|log/|pg_stat_tmp/|pg_wal/|base/pgsql_tmp|` +
		`(base/5|global|pg_tblspc/17000/PG_15_202209061/5)/pg_internal\.init|(base/5|pg_tblspc/17000/PG_15_202209061/5)/t1_16384|` +
		`pg_tblspc/17000/[^P]|pg_tblspc/17000/PG_15_202209061/pgsql_tmp)`)
	relation := regexp.MustCompile(`^((?:base/5|pg_tblspc/17000/PG_15_202209061/5)/16384)(_vm|\.1)?$`)
	rapid.Check(t, func(t *rapid.T) {
		tree, err := os.MkdirTemp(root, "tree") // a data directory of its own, inside the one that gets removed
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(tree)
		for _, dir := range []string{"global", "pg_tblspc"} {
			os.Mkdir(filepath.Join(tree, dir), 0o700)
		}
		for _, name := range []string{"PG_VERSION", "global/pg_control"} {
			b, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				t.Fatal(err)
			}
			os.WriteFile(filepath.Join(tree, name), b, 0o600)
		}
		for range rapid.IntRange(1, 30).Draw(t, "files") {
			names := rapid.SliceOfN(rapid.SampledFrom(parts), 1, 5).Draw(t, "path")
			full := filepath.Join(tree, filepath.Join(names...))
			if os.MkdirAll(filepath.Dir(full), 0o700) == nil { // else a file is in the way
				os.WriteFile(full, nil, 0o600)
			}
		}
		d, err := datadir.Open(tree)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		last := ""
		for e, err := range d.Walk(datadir.Options{}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Path != "." && !seen[filepath.Dir(e.Path)] {
				t.Errorf("%s before its directory", e.Path)
			}
			if order := strings.ReplaceAll(e.Path, "/", "\x00"); e.Path != "." && order <= last {
				t.Errorf("%s is not behind %q", e.Path, last)
			} else {
				last = order
			}
			seen[e.Path] = true
			if excluded.MatchString(e.Path) && e.Path != "pg_wal/archive_status" {
				t.Errorf("yielded %s", e.Path)
			}
			if unlogged := relation.FindStringSubmatch(e.Path); unlogged != nil {
				if _, err := os.Lstat(filepath.Join(tree, unlogged[1]+"_init")); err == nil {
					t.Errorf("yielded %s beside an init fork", e.Path)
				}
			}
		}
	})
}

// A directory of 100 000 files costs a few megabytes.
func TestWalkOfManyFilesIsSmall(t *testing.T) {
	root := make15(t)
	for i := range 100_000 {
		if err := syscall.Mknod(fmt.Sprintf("%s/base/5/%d", root, 1_000_000+i), syscall.S_IFREG|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n, most := 0, int64(0)
	for _, err := range d.Walk(datadir.Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%40_000 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, int64(now.HeapAlloc)-int64(before.HeapAlloc))
		}
	}
	if n < 100_000 || most > 5<<20 {
		t.Errorf("%d entries, %d bytes of heap", n, most)
	}
}

// Names that are no text come through as they are.
func TestWalkKeepsBytesOfNames(t *testing.T) {
	root := make15(t)
	put(t, root, "a\xff\n\"b", "x")
	entries, _ := walk(t, root)
	if !slices.Contains(entries, "a\xff\n\"b file") {
		t.Errorf("got %q", entries)
	}
}

// Whatever is in a data directory's names, the walk ends without a panic and yields what it finds below its root.
func FuzzWalkNames(f *testing.F) {
	f.Add([]byte("base/5/16384.1\x00base/5/t3_1\x00pg_tblspc/17000/PG_15_202209061/5/1_init"))
	f.Add([]byte("base/5/16384_fsm.4294967296\x00global/1.0\x00base/99999999999/1"))
	template := make15(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		root := t.TempDir()
		if err := os.CopyFS(root, os.DirFS(template)); err != nil {
			t.Fatal(err)
		}
		for _, name := range bytes.Split(b, []byte{0}) {
			full := filepath.Join(root, string(name))
			if !filepath.IsLocal(string(name)) || strings.HasSuffix(full, "pg_control") || strings.HasSuffix(full, "PG_VERSION") {
				continue
			}
			if os.MkdirAll(filepath.Dir(full), 0o700) == nil {
				os.WriteFile(full, nil, 0o600)
			}
		}
		d, err := datadir.Open(root)
		if err != nil {
			return // the tree was spoilt
		}
		for e, err := range d.Walk(datadir.Options{}) {
			if err != nil {
				return
			}
			if st, err := os.Lstat(e.OSPath); err != nil && e.Path != "pg_wal/archive_status" {
				t.Errorf("%q: %v", e.Path, err)
			} else if err == nil && st.Mode().Type() == fs.ModeSymlink {
				t.Errorf("%q is a link", e.Path)
			}
		}
	})
}
