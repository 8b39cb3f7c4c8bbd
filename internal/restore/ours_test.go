package restore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

const ours = "base_000000010000000000000002"

// controlFile is the pg_control of a PostgreSQL 15.
func controlFile(t *testing.T) []byte {
	t.Helper()
	found, err := filepath.Glob("../pg/control/testdata/*15*")
	if err != nil || len(found) == 0 {
		t.Fatal("no pg_control of PostgreSQL 15 in testdata", err)
	}
	for _, name := range found {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := control.Decode(b); err == nil {
			return b
		}
	}
	t.Fatal("no pg_control among", found)
	return nil
}

// file is an entry with content.
func file(path, content string) tarpart.Entry {
	return tarpart.Entry{Path: path, Mode: 0o600, ModTime: time.Unix(1_700_000_000, 0), Content: []byte(content)}
}

// dir is an entry without.
func dir(path string) tarpart.Entry {
	return tarpart.Entry{Path: path, Type: tarpart.Dir, Mode: 0o700, ModTime: time.Unix(1_700_000_000, 0)}
}

// backedUp stores a backup of the given parts; control file and label are added.
func backedUp(t *testing.T, s store.Store, m compress.Method, spec *archive.TablespaceSpec, parts ...[]tarpart.Entry) *archive.Archive {
	t.Helper()
	return tampered(t, s, m, spec, func([]tarpart.Member) {}, parts...)
}

// tampered is backedUp with a manifest that says of members what change makes of them.
func tampered(t *testing.T, s store.Store, m compress.Method, spec *archive.TablespaceSpec, change func([]tarpart.Member), parts ...[]tarpart.Entry) *archive.Archive {
	t.Helper()
	a := archive.New(s, archive.Options{Method: m})
	d, err := a.Begin(t.Context(), ours, "here")
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, entries []tarpart.Entry) {
		t.Helper()
		p := tarpart.NewPacker(func() (tarpart.Entry, error) {
			if len(entries) == 0 {
				return tarpart.Entry{}, io.EOF
			}
			e := entries[0]
			entries = entries[1:]
			return e, nil
		}, tarpart.Options{})
		members := func() []tarpart.Member {
			all := p.Members()
			change(all)
			return all
		}
		if err := d.PutPart(t.Context(), name, p, members); err != nil {
			t.Fatal(err)
		}
	}
	for _, entries := range parts {
		put(d.NextPart(), entries)
	}
	c := controlFile(t)
	data, err := control.Decode(c)
	if err != nil {
		t.Fatal(err)
	}
	put(archive.ControlPart, []tarpart.Entry{file(control.Name, string(c))})
	label := []tarpart.Entry{file("backup_label", "START WAL LOCATION: 0/2000028\n"), file("tablespace_map", "")}
	if spec != nil {
		label[1].Content = nil
		for _, ts := range spec.Tablespaces {
			label[1].Content = append(label[1].Content, ts.OID+" "+ts.Location+"\n"...)
		}
	}
	put(archive.LabelPart, label)
	start, finish := wal.LSN(0x2000028), wal.LSN(0x2000100)
	now := time.Now().UTC()
	err = d.Commit(t.Context(), &archive.Sentinel{
		LSN: &start, FinishLSN: &finish, PgVersion: 150004, SystemIdentifier: &data.SystemIdentifier, Spec: spec, SegmentSize: 16 << 20,
		StartTime: now.Add(-time.Minute), FinishTime: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.PutWAL(t.Context(), "000000010000000000000002", func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("wal")), nil }); err != nil {
		t.Fatal(err)
	}
	return a
}

// decide plans a restore of what backedUp stored.
func decide(t *testing.T, a *archive.Archive, change func(*restore.Request)) (*restore.Plan, error) {
	t.Helper()
	r := restore.Request{Destination: filepath.Join(t.TempDir(), "data"), Choice: choose(t, a, ours, catalog.Target{})}
	if change != nil {
		change(&r)
	}
	return restore.Decide(t.Context(), a, r)
}

// must plans and restores, which must be possible.
func must(t *testing.T, a *archive.Archive, change func(*restore.Request)) (*restore.Plan, *restore.Report) {
	t.Helper()
	p, err := decide(t, a, change)
	if err != nil {
		t.Fatal(err)
	}
	report, err := restore.Run(t.Context(), a, p, restore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p, report
}

// holds fails the test where a file has not that content.
func holds(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if string(got) != want {
		t.Errorf("%s has %d bytes that differ from the %d it must have", path, len(got), len(want))
	}
}

// small is a directory as small as can be, in two parts.
func small() [][]tarpart.Entry {
	return [][]tarpart.Entry{
		{dir("."), file("PG_VERSION", "15\n"), dir("base"), dir("base/5"), file("base/5/1", strings.Repeat("a", 8192)), file("base/5/2", "")},
		{file("base/5/3", strings.Repeat("b", 100)), file("postgresql.conf", ""), dir("global"), file("global/1", "x")},
	}
}

// Contents, modes and times come back, whatever the codec and however large the file: a large one is written by several
// workers.
func TestRestoresOurs(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	content := func(n int) string {
		b := make([]byte, n)
		random.Read(b)
		clear(b[n/4 : n-n/4]) // half of it compresses well
		return string(b)
	}
	parts := [][]tarpart.Entry{{dir("."), dir("base"), dir("base/1"), file("PG_VERSION", "15\n")}, {}, {}}
	want := map[string]string{"PG_VERSION": "15\n"}
	add := func(part int, path string, n int) {
		want[path] = content(n)
		parts[part] = append(parts[part], file(path, want[path]))
	}
	sizes := []int{0, 1, 511, 512, 513, 8192, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1<<20 + 7}
	for i, n := range sizes {
		add(i%3, "base/1/"+string(rune('a'+i)), n)
	}
	add(1, "base/1/large", 200<<20+12345)
	add(1, "base/1/behind", 1000)
	add(2, "base/2/deep/er/than/its/directories", 10)
	parts[0] = append(parts[0], tarpart.Entry{Path: "base/1/group", Mode: 0o640, ModTime: time.Unix(1_700_000_001, 5000), Content: []byte("g")})
	want["base/1/group"] = "g"
	for _, m := range []compress.Method{compress.Zstd, compress.LZ4, compress.None} {
		t.Run(string(m), func(t *testing.T) {
			a := backedUp(t, &storetest.Memory{}, m, nil, parts...)
			p, report := must(t, a, nil)
			for path, content := range want {
				holds(t, filepath.Join(p.Destination, path), content)
			}
			if !report.Verified || report.Bytes != int64(sum(want)) || report.Files != int64(len(want)) {
				t.Errorf("report %+v, want %d bytes in %d files", report, sum(want), len(want))
			}
			info, err := os.Stat(filepath.Join(p.Destination, "base/1/group"))
			if err != nil || info.Mode() != 0o640 || !info.ModTime().Equal(time.Unix(1_700_000_001, 5000)) {
				t.Errorf("mode and time: %v, %v", info, err)
			}
			if info, err = os.Stat(p.Destination); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("data directory: %v, %v", info, err)
			}
			for _, path := range []string{"pg_wal/archive_status", "pg_replslot", "pg_tblspc", "pg_logical/snapshots"} {
				if info, err := os.Stat(filepath.Join(p.Destination, path)); err != nil || !info.IsDir() {
					t.Errorf("%s: %v", path, err)
				}
			}
			holds(t, filepath.Join(p.Destination, control.Name), string(controlFile(t)))
			if _, err := os.Stat(filepath.Join(p.Destination, "holdfast_restore.json")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the marker is left: %v", err)
			}
		})
	}
}

func sum(m map[string]string) (n int) {
	for _, s := range m {
		n += len(s)
	}
	return n
}

// A byte that changed in the archive is noticed, and the error says where it is.
func TestDamageIsFound(t *testing.T) {
	m := &storetest.Memory{}
	a := backedUp(t, m, compress.None, nil, small()...)
	object := archive.Folder(ours) + "tar_partitions/part_001.tar"
	b, err := store.ReadFile(t.Context(), m, object, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte(strings.Repeat("a", 8192))) + 4000
	b[at] ^= 1
	if err := m.Put(t.Context(), object, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	p, err := decide(t, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = restore.Run(t.Context(), a, p, restore.Options{})
	if err == nil || !strings.Contains(err.Error(), "part_001.tar") || !strings.Contains(err.Error(), "base/5/1") || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("Run: %v, want part, member and checksum named", err)
	}
	var hinted interface{ Hint() string }
	if !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "backup-list") {
		t.Errorf("Run: %v, want advice to take another backup", err)
	}
	if err := m.Put(t.Context(), object, bytes.NewReader(b[:len(b)-1])); err != nil {
		t.Fatal(err)
	}
	if _, err := decide(t, a, nil); err == nil || !strings.Contains(err.Error(), "part_001.tar") {
		t.Errorf("Decide with a truncated part: %v", err)
	}
	if err := m.Delete(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	if _, err := decide(t, a, nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "part_001.tar") {
		t.Errorf("Decide with a missing part: %v", err)
	}
}

// A manifest that says what cannot be is refused before anything is made of it.
func TestManifestIsChecked(t *testing.T) {
	for what, x := range map[string]struct {
		change func(m *tarpart.Member)
		says   string
	}{
		"overlap":      {func(m *tarpart.Member) { m.Offset = 512 }, "inside of what comes before"},
		"large":        {func(m *tarpart.Member) { m.Size = 1 << 60 }, "which no part reaches"},
		"far":          {func(m *tarpart.Member) { m.Offset = 1 << 60 }, "which no part reaches"},
		"overflow":     {func(m *tarpart.Member) { m.Offset, m.Size = 1<<62, 1<<62 }, "which no part reaches"},
		"outside":      {func(m *tarpart.Member) { m.Path = "../evil" }, "not a clean relative path"},
		"behind a dir": {func(m *tarpart.Member) { m.Offset = -1 }, "negative"},
	} {
		a := tampered(t, &storetest.Memory{}, compress.Zstd, nil, func(all []tarpart.Member) {
			for i := range all {
				if all[i].Path == "base/5/3" {
					x.change(&all[i])
				}
			}
		}, []tarpart.Entry{file("base/5/1", strings.Repeat("a", 8192)), file("base/5/3", strings.Repeat("b", 100))})
		for _, resume := range []bool{false, true} { // which looks for no room
			if _, err := decide(t, a, func(r *restore.Request) { r.Resume = resume }); err == nil || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%s: %v, want %q in it", what, err, x.says)
			}
		}
	}
}

// Whichever store call fails, and however, the restore says so, PostgreSQL finds no pg_control, and --resume completes it.
func TestFailuresAreWholeAndResumed(t *testing.T) {
	m := &storetest.Memory{}
	a := backedUp(t, m, compress.Zstd, nil, small()...)
	choice := choose(t, a, ours, catalog.Target{})
	for _, how := range []func(store.Store, int) *storetest.Flaky{storetest.FailAt, storetest.FailMidway, storetest.FailAfter} {
		for n := 0; ; n++ {
			flaky := how(m, n)
			failing := archive.New(flaky, archive.Options{})
			r := restore.Request{Destination: filepath.Join(t.TempDir(), "data"), Choice: choice}
			p, err := restore.Decide(t.Context(), failing, r)
			begun := err == nil
			if begun {
				_, err = restore.Run(t.Context(), failing, p, restore.Options{Workers: 2})
			}
			if !flaky.Reached() {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			if err == nil { // a call whose failing changes nothing: one that was made for a note, or the end of a body not read to its end
				continue
			}
			if !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("call %d (%s) failed, the error is %v", n, flaky.Calls()[n], err)
			}
			if !begun {
				if _, err := os.Stat(r.Destination); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("call %d: Decide failed and left something: %v", n, err)
				}
				continue
			}
			if _, err := os.Stat(filepath.Join(r.Destination, control.Name)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("call %d failed, and there is a pg_control: %v", n, err)
			}
			if _, err := restore.Decide(t.Context(), a, r); err == nil || !strings.Contains(err.Error(), "interrupted") {
				t.Errorf("call %d: restoring again without resume: %v", n, err)
			}
			r.Resume = true
			p, err = restore.Decide(t.Context(), a, r)
			if err == nil {
				_, err = restore.Run(t.Context(), a, p, restore.Options{Workers: 2})
			}
			if err != nil {
				t.Errorf("call %d: resume: %v", n, err)
			}
			holds(t, filepath.Join(r.Destination, "base/5/1"), strings.Repeat("a", 8192))
			holds(t, filepath.Join(r.Destination, "base/5/3"), strings.Repeat("b", 100))
			holds(t, filepath.Join(r.Destination, control.Name), string(controlFile(t)))
		}
	}
}

// interrupt begins a restore, which ends before anything is written, and returns its destination.
func interrupt(t *testing.T, a *archive.Archive, change func(*restore.Request)) string {
	t.Helper()
	p, err := decide(t, a, change)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = restore.Run(ctx, a, p, restore.Options{})
	var hinted interface{ Hint() string }
	if !errors.Is(err, context.Canceled) || !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "--resume") {
		t.Fatalf("cancelled: %v", err)
	}
	return p.Destination
}

// A resumed restore writes only what is not there as it must be.
func TestResumeKeepsWhatIsWhole(t *testing.T) {
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, small()...)
	into := interrupt(t, a, nil)
	write := func(path, content string) {
		t.Helper()
		path = filepath.Join(into, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("base/5/1", strings.Repeat("a", 8192)) // whole
	write("base/5/3", strings.Repeat("c", 100))  // other content of that length
	write("global/1", "")                        // begun
	write(control.Name, "must not be here")
	_, report := must(t, a, func(r *restore.Request) { r.Destination, r.Resume = into, true })
	if report.KeptFiles != 1 || report.KeptBytes != 8192 {
		t.Errorf("kept %d files, %d bytes; want the one whole file", report.KeptFiles, report.KeptBytes)
	}
	for _, e := range slices.Concat(small()...) {
		if e.Type == tarpart.File {
			holds(t, filepath.Join(into, e.Path), string(e.Content))
		}
	}
	holds(t, filepath.Join(into, control.Name), string(controlFile(t)))
}

// Nothing that is in use is written over.
func TestRefusesWhatIsInUse(t *testing.T) {
	used := t.TempDir()
	if err := os.WriteFile(filepath.Join(used, "PG_VERSION"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	free := t.TempDir()
	if err := os.Mkdir(filepath.Join(free, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	spec := &archive.TablespaceSpec{BasePrefix: "/old", Tablespaces: []archive.Tablespace{{OID: "16385", Location: used}}}
	parts := append(small(), []tarpart.Entry{dir("pg_tblspc"), dir("pg_tblspc/16385/PG_15_1"), file("pg_tblspc/16385/PG_15_1/5/7", "in a tablespace")})
	plain := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, small()...)
	spaced := backedUp(t, &storetest.Memory{}, compress.Zstd, spec, parts...)
	mapping := func(oid, to string) func(*restore.Request) {
		return func(r *restore.Request) { r.TablespaceMapping = map[string]string{oid: to} }
	}
	for what, x := range map[string]struct {
		a      *archive.Archive
		change func(*restore.Request)
		says   string
	}{
		"destination":               {plain, func(r *restore.Request) { r.Destination = used }, "not empty"},
		"resume without a marker":   {plain, func(r *restore.Request) { r.Destination, r.Resume = used, true }, "no restore that was interrupted"},
		"relative destination":      {plain, func(r *restore.Request) { r.Destination = "data" }, "absolute"},
		"tablespace":                {spaced, nil, "16385 is not empty"},
		"tablespace around":         {spaced, func(r *restore.Request) { mapping("16385", filepath.Dir(r.Destination))(r) }, "holds the destination"},
		"tablespace relative":       {spaced, mapping("16385", "ts"), "absolute"},
		"mapping of nothing":        {spaced, mapping("16399", free), "16399"},
		"spec for another place":    {spaced, func(r *restore.Request) { r.Spec = spec }, "/old"},
		"spec without a tablespace": {spaced, func(r *restore.Request) { r.Spec = &archive.TablespaceSpec{} }, "16385"},
		"no saved configuration":    {plain, func(r *restore.Request) { r.ConfigIntoData = true }, "no configuration"},
	} {
		if _, err := decide(t, x.a, x.change); err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q in it", what, err, x.says)
		}
	}
	if p, _ := must(t, plain, func(r *restore.Request) { r.Destination = free }); p.Destination != free {
		t.Errorf("restored to %s", p.Destination)
	}
}

// Tablespaces go where the mapping says, the links and tablespace_map lead there, and nothing is made where they were.
func TestTablespaces(t *testing.T) {
	old := filepath.Join(t.TempDir(), "old", "ts1")
	spec := &archive.TablespaceSpec{BasePrefix: "/old/data", Tablespaces: []archive.Tablespace{{OID: "16385", Location: old}, {OID: "16386", Location: old + "2"}}}
	parts := append(small(), []tarpart.Entry{
		file("pg_tblspc/16385/PG_15_1/5/7", "first"), file("pg_tblspc/16386/PG_15_1/5/8", "second"), file("pg_tblspc/16400/PG_15_1/5/9", "in place"),
	})
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, spec, parts...)
	base := t.TempDir()
	one, two := filepath.Join(base, "one"), filepath.Join(base, `t\wo`)
	p, _ := must(t, a, func(r *restore.Request) { r.TablespaceMapping = map[string]string{old: one, "16386": two} })
	holds(t, filepath.Join(one, "PG_15_1/5/7"), "first")
	holds(t, filepath.Join(p.Destination, "pg_tblspc/16385/PG_15_1/5/7"), "first")
	holds(t, filepath.Join(two, "PG_15_1/5/8"), "second")
	holds(t, filepath.Join(p.Destination, "pg_tblspc/16400/PG_15_1/5/9"), "in place")
	holds(t, filepath.Join(p.Destination, "tablespace_map"), "16385 "+one+"\n16386 "+strings.ReplaceAll(two, `\`, `\\`)+"\n")
	if link, err := os.Readlink(filepath.Join(p.Destination, "pg_tblspc/16385")); err != nil || link != one {
		t.Errorf("pg_tblspc/16385 leads to %s, %v", link, err)
	}
	if _, err := os.Stat(filepath.Dir(old)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was made where the tablespaces were: %v", err)
	}
	// Without a mapping they go where they were, which is free.
	p, _ = must(t, a, nil)
	holds(t, filepath.Join(old, "PG_15_1/5/7"), "first")
	holds(t, filepath.Join(p.Destination, "pg_tblspc/16386/PG_15_1/5/8"), "second")
}

// A tablespace inside the old data directory goes to the same place in the new one, never into the old.
func TestTablespaceInsideTheDataDirectory(t *testing.T) {
	old := filepath.Join(t.TempDir(), "old")
	spec := &archive.TablespaceSpec{BasePrefix: old, Tablespaces: []archive.Tablespace{{OID: "16385", Location: old + "/spaces/ts"}}}
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, spec, append(small(), []tarpart.Entry{file("pg_tblspc/16385/PG_15_1/5/7", "first")})...)
	p, _ := must(t, a, nil)
	inside := filepath.Join(p.Destination, "spaces", "ts")
	holds(t, filepath.Join(inside, "PG_15_1/5/7"), "first")
	holds(t, filepath.Join(p.Destination, "tablespace_map"), "16385 "+inside+"\n")
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was made in the old data directory: %v", err)
	}
}
