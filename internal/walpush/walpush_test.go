package walpush_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/walpush"
	"holdfast/test/pgtest"
	"holdfast/test/waltest"
)

const (
	size    = wal.MinSegmentSize
	cluster = 7123456789012345678
)

// segment makes the content of a segment: a long page header and bytes that compress a little.
func segment(name string, id uint64, seed int) []byte {
	return waltest.Segment(size, name, id, uint64(seed))
}

// A pgWAL is a directory like pg_wal.
type pgWAL struct {
	t   *testing.T
	dir string
}

func newWAL(t *testing.T) pgWAL {
	d := pgWAL{t, filepath.Join(t.TempDir(), "pg_wal")}
	if err := os.MkdirAll(filepath.Join(d.dir, "archive_status"), 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d pgWAL) path(name string) string { return filepath.Join(d.dir, name) }

// put writes a file and says that it waits to be archived.
func (d pgWAL) put(name string, content []byte) {
	d.t.Helper()
	for path, b := range map[string][]byte{d.path(name): content, d.path("archive_status/" + name + ".ready"): nil} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
}

// segments puts n segments from number 1 on and returns their names.
func (d pgWAL) segments(n int) []string {
	var names []string
	for i := range n {
		name := size.Name(1, wal.SegmentNo(i+1))
		d.put(name, segment(name, cluster, 1))
		names = append(names, name)
	}
	return names
}

// done does what PostgreSQL does when archive_command exited with 0.
func (d pgWAL) done(name string) {
	d.t.Helper()
	status := d.path("archive_status/" + name)
	if err := os.Rename(status+".ready", status+".done"); err != nil {
		d.t.Fatal(err)
	}
}

// marked returns the names of the files that have a marker.
func (d pgWAL) marked() []string {
	entries, err := os.ReadDir(d.path("holdfast/pushed"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// whole fails the test unless the archive in s has the content under name.
func whole(t *testing.T, s store.Store, name string, content []byte) {
	t.Helper()
	r, err := archive.New(s, archive.Options{}).OpenWAL(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%s in the archive: %d bytes, %v; not the %d that were pushed", name, len(got), err, len(content))
	}
}

func push(ctx context.Context, a walpush.Archive, path string, o walpush.Options) (walpush.Report, error) {
	open := func(context.Context) (asked, ahead walpush.Archive, err error) { return a, a, nil }
	return walpush.Push(ctx, open, path, o)
}

func options() walpush.Options {
	return walpush.Options{Location: "memory", Host: "here", Parallel: 1}
}

func TestPushTwiceStoresOnce(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	name := d.segments(1)[0]
	a := archive.New(m, archive.Options{})
	for _, want := range []walpush.Outcome{walpush.Stored, walpush.Equal} {
		report, err := push(t.Context(), a, d.path(name), options())
		if err != nil || report.Outcome != want || report.Name != name || (report.Bytes > 0) != (want == walpush.Stored) {
			t.Errorf("got %+v, %v; want outcome %d", report, err, want)
		}
	}
	whole(t, m, name, segment(name, cluster, 1))

	d.put(name, segment(name, cluster, 2))
	var conflict *archive.ConflictError
	if _, err := push(t.Context(), a, d.path(name), options()); !errors.As(err, &conflict) {
		t.Errorf("other content: got %v, want a ConflictError", err)
	}
	whole(t, m, name, segment(name, cluster, 1))
}

func TestPushTakesEveryKindOfFile(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	files := map[string][]byte{
		"000000020000000000000003":                 segment("000000020000000000000003", cluster, 1),
		"000000010000000000000003.partial":         segment("000000010000000000000003", cluster, 1),
		"00000002.history":                         []byte("1\t0/300000\tno recovery target specified\n"),
		"000000010000000000000002.00000028.backup": []byte("START WAL LOCATION: 0/200028\n"),
	}
	// A timeline begins with a copy of its parent's segment, page header included.
	binary.LittleEndian.PutUint32(files["000000020000000000000003"][4:], 1)
	for name, content := range files {
		d.put(name, content)
		if _, err := push(t.Context(), archive.New(m, archive.Options{}), d.path(name), options()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		whole(t, m, name, content)
	}
}

func TestPushRefusesWhatIsNotTheSegment(t *testing.T) {
	const name = "000000010000000000000003"
	change := func(at int, v byte) []byte {
		b := segment(name, cluster, 1)
		b[at] = v
		return b
	}
	bigger := func(name string) []byte {
		b := segment(name, cluster, 1)
		b[34] = 0x20
		return b
	}
	for _, c := range []struct {
		name    string
		content []byte
		want    string
	}{
		{name, segment(name, cluster, 1)[:size-1], "1048575 bytes"},
		{name, append(segment(name, cluster, 1), 0), "1048577 bytes"},
		{name, nil, "only 0 bytes"},
		{name, make([]byte, size), "page magic 0000"},
		{name, change(4, 2), "timeline 2"},
		{name, change(10, 0x40), "its name stands for 0/300000"},
		{"000000010000000000000004", bigger("000000010000000000000004"), "1048576 bytes, but is a segment of 2097152"},
		{name + ".partial", segment(name, cluster, 1)[:1<<19], "524288 bytes"},
		{"000000010000000000001003", segment(name, cluster, 1), "does not name a WAL segment of 1 MiB"},
		{"postgresql.conf", []byte("x"), "not the name of a WAL file"},
		{name + ".tmp", segment(name, cluster, 1), "not the name of a WAL file"},
	} {
		d, m := newWAL(t), &storetest.Memory{}
		d.put(c.name, c.content)
		_, err := push(t.Context(), archive.New(m, archive.Options{}), d.path(c.name), options())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s of %d bytes: got %v, want an error with %q", c.name, len(c.content), err, c.want)
		}
		for o := range store.Walk(t.Context(), m, "") {
			t.Errorf("%s was refused, yet the archive has %s", c.name, o.Name)
		}
	}
	d := newWAL(t)
	if _, err := push(t.Context(), archive.New(&storetest.Memory{}, archive.Options{}), d.path(name), options()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such file: got %v", err)
	}
}

func TestPushFromAnotherClusterIsRefused(t *testing.T) {
	ours, theirs, m := newWAL(t), newWAL(t), &storetest.Memory{}
	names := ours.segments(2)
	theirs.put(names[1], segment(names[1], cluster+1, 1))
	a := archive.New(m, archive.Options{})
	if _, err := push(t.Context(), a, ours.path(names[0]), options()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := push(t.Context(), a, theirs.path(names[1]), options())
		var foreign *archive.OwnerError
		if !errors.As(err, &foreign) || foreign.Archive != cluster || foreign.Cluster != cluster+1 {
			t.Fatalf("got %v, want an OwnerError", err)
		}
	}
	// Nor does a file of another cluster go along ahead of being asked for.
	ours.put(names[1], segment(names[1], cluster+1, 1))
	o := options()
	o.Parallel = 4
	if report, err := push(t.Context(), a, ours.path(names[0]), o); err != nil || len(report.Ahead) > 0 {
		t.Errorf("got %+v, %v; want nothing ahead", report, err)
	}
	if _, err := a.OpenWAL(t.Context(), names[1]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the other cluster's file is in the archive: %v", err)
	}
	// A history file belongs to the cluster it lies in.
	content, err := os.ReadFile("../pg/control/testdata/pg_control_15")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(theirs.dir, "../global"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(theirs.dir, "../global/pg_control"), append(content, make([]byte, control.Size-len(content))...), 0o600); err != nil {
		t.Fatal(err)
	}
	theirs.put("00000002.history", []byte("1\t0/300000\tx\n"))
	var foreign *archive.OwnerError
	if _, err := push(t.Context(), a, theirs.path("00000002.history"), options()); !errors.As(err, &foreign) {
		t.Errorf("history file of another cluster: got %v, want an OwnerError", err)
	}
}

// In the steady state a push makes the requests that storing needs and no others.
func TestOwnerIsAskedOnce(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(5)
	push := func(name string, o walpush.Options) []string {
		t.Helper()
		calls := storetest.FailAt(m, -1)
		if _, err := push(t.Context(), archive.New(calls, archive.Options{}), d.path(name), o); err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(calls.Calls(), func(c string) bool { return !strings.Contains(c, "cluster.json") })
	}
	if got := push(names[0], options()); len(got) == 0 {
		t.Error("the first push did not claim the archive")
	}
	if got := push(names[1], options()); len(got) > 0 {
		t.Errorf("the second push asked again: %q", got)
	}
	elsewhere := options()
	elsewhere.Location = "elsewhere"
	if got := push(names[2], elsewhere); len(got) == 0 {
		t.Error("a push to another location did not ask whose it is")
	}
	for i, by := range []time.Duration{2 * time.Hour, -2 * time.Hour} { // the latter as when the clock is set back
		age(t, d, by)
		if got := push(names[3+i], options()); len(got) == 0 {
			t.Errorf("the answer counts though it is %s old", by)
		}
	}
}

// age makes what is known of the archive's owner so old.
func age(t *testing.T, d pgWAL, by time.Duration) {
	t.Helper()
	cached, err := filepath.Glob(d.path("holdfast/owner/*"))
	if err != nil || len(cached) == 0 {
		t.Fatal("nothing is cached", err)
	}
	then := time.Now().Add(-by)
	for _, path := range cached {
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
}

// refuser is an archive that cannot say whose it is.
type refuser struct{ *archive.Archive }

func (refuser) Claim(context.Context, uint64, string, bool) error { return errors.New("no answer") }

func TestOldAnswerIsBetterThanNone(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(2)
	a := archive.New(m, archive.Options{})
	if _, err := push(t.Context(), refuser{a}, d.path(names[0]), options()); err == nil {
		t.Error("the first push went on without knowing whose archive this is")
	}
	if _, err := push(t.Context(), a, d.path(names[0]), options()); err != nil {
		t.Fatal(err)
	}
	age(t, d, 2*time.Hour)
	if _, err := push(t.Context(), refuser{a}, d.path(names[1]), options()); err != nil {
		t.Errorf("got %v", err)
	}
}

// Whichever store call fails, and however, Push succeeds only when the file is whole in the archive, and a marker is
// there only for such a file.
func TestPushFailsWhole(t *testing.T) {
	for how, flaky := range map[string]func(store.Store, int) *storetest.Flaky{
		"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter,
	} {
		for _, parallel := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d files at once", how, parallel), func(t *testing.T) {
				for n := 0; ; n++ {
					d, m := newWAL(t), &storetest.Memory{}
					names := d.segments(3)
					f := flaky(m, n)
					o := options()
					o.Parallel = parallel
					_, err := push(t.Context(), archive.New(f, archive.Options{}), d.path(names[0]), o)
					if err == nil {
						whole(t, m, names[0], segment(names[0], cluster, 1))
					} else if !errors.Is(err, storetest.ErrInjected) {
						t.Errorf("call %d failed, Push returned %v", n, err)
					}
					for _, name := range d.marked() {
						whole(t, m, name, segment(name, cluster, 1))
					}
					if !f.Reached() {
						if err != nil {
							t.Errorf("no call failed, Push returned %v", err)
						}
						break
					}
					if err == nil && parallel == 1 && how == "before" {
						t.Errorf("call %d failed, Push returned nil: %q", n, f.Calls())
					}
					// Asked again, all is well.
					for _, name := range names {
						if _, err := push(t.Context(), archive.New(m, archive.Options{}), d.path(name), o); err != nil {
							t.Errorf("after call %d had failed: %v", n, err)
						}
						whole(t, m, name, segment(name, cluster, 1))
					}
				}
			})
		}
	}
}

func TestFilesGoUpAhead(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(50)
	d.put("00000001.history", []byte("x"))
	var stores int
	ahead := map[string]bool{}
	for _, name := range append(names, "00000001.history") {
		calls := storetest.FailAt(m, -1)
		o := options()
		o.Parallel = 4
		report, err := push(t.Context(), archive.New(calls, archive.Options{}), d.path(name), o)
		if err != nil {
			t.Fatal(err)
		}
		if ahead[name] {
			if report.Outcome != walpush.Early || len(calls.Calls()) > 0 {
				t.Errorf("%s was stored ahead, its push did %+v and called %q", name, report, calls.Calls())
			}
		} else if stores++; report.Outcome != walpush.Stored {
			t.Errorf("%s: %+v", name, report)
		}
		if len(report.Ahead) > 31 {
			t.Errorf("%s: %d files in one run", name, len(report.Ahead)+1)
		}
		for _, name := range report.Ahead {
			ahead[name] = true
		}
		d.done(name)
	}
	if stores != 2 {
		t.Errorf("%d runs stored files, want 2: of 32 and of 19", stores)
	}
	for _, name := range names {
		whole(t, m, name, segment(name, cluster, 1))
	}
	if left := d.marked(); len(left) > 0 {
		t.Errorf("markers left: %q", left)
	}
}

func TestReadyRename(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(5)
	o := options()
	o.Parallel, o.ReadyRename = 4, true
	if _, err := push(t.Context(), archive.New(m, archive.Options{}), d.path(names[0]), o); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		whole(t, m, name, segment(name, cluster, 1))
		want := ".done"
		if i == 0 {
			want = ".ready" // PostgreSQL's own to rename
		}
		if _, err := os.Stat(d.path("archive_status/" + name + want)); err != nil {
			t.Error(err)
		}
	}
	if got := d.marked(); !slices.Equal(got, names[1:]) {
		t.Errorf("markers: %q, want %q", got, names[1:])
	}
}

// What was stored ahead in the archive of before is asked for again once the archive is another one.
func TestReadyRenameAndAnotherArchive(t *testing.T) {
	d := newWAL(t)
	names := d.segments(5)
	o := options()
	o.Parallel, o.ReadyRename = 4, true
	before, after := &storetest.Memory{}, &storetest.Memory{}
	if _, err := push(t.Context(), archive.New(before, archive.Options{}), d.path(names[0]), o); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.path(names[4])); err != nil { // PostgreSQL needs it no more
		t.Fatal(err)
	}
	o.Location = "elsewhere"
	report, err := push(t.Context(), archive.New(after, archive.Options{}), d.path(names[0]), o)
	slices.Sort(report.Ahead)
	if err != nil || !slices.Equal(report.Ahead, names[1:4]) {
		t.Errorf("got %+v, %v, want %q ahead", report, err, names[1:4])
	}
	for _, name := range names[:4] {
		whole(t, after, name, segment(name, cluster, 1))
	}
	if _, err := os.Stat(d.path("archive_status/" + names[4] + ".done")); err != nil {
		t.Error(err)
	}
	report, err = push(t.Context(), archive.New(after, archive.Options{}), d.path(names[0]), o)
	if err != nil || len(report.Ahead) > 0 {
		t.Errorf("once more: %+v, %v", report, err)
	}
}

// What PostgreSQL cannot be made to ask for again the next push tries again.
func TestMovedArchiveIsNotedOnceAllIsAskedFor(t *testing.T) {
	d := newWAL(t)
	names := d.segments(3)
	o := options()
	o.Parallel, o.ReadyRename = 4, true
	if _, err := push(t.Context(), archive.New(&storetest.Memory{}, archive.Options{}), d.path(names[0]), o); err != nil {
		t.Fatal(err)
	}
	ready := func(name string) string { return d.path("archive_status/" + name + ".ready") }
	if err := os.MkdirAll(ready(names[1])+"/in the way", 0o700); err != nil {
		t.Fatal(err)
	}
	o.Location, o.Parallel = "elsewhere", 1 // nothing is stored ahead
	after := archive.New(&storetest.Memory{}, archive.Options{})
	again := func() {
		t.Helper()
		if _, err := push(t.Context(), after, d.path(names[0]), o); err != nil {
			t.Fatal(err)
		}
	}
	again()
	if info, err := os.Stat(ready(names[2])); err != nil || info.IsDir() {
		t.Errorf("%s: %v, %v", names[2], info, err)
	}
	if err := os.RemoveAll(ready(names[1])); err != nil {
		t.Fatal(err)
	}
	again()
	if info, err := os.Stat(ready(names[1])); err != nil || info.IsDir() {
		t.Errorf("%s: %v, %v", names[1], info, err)
	}
}

// A marker counts only for the file, the content and the archive it was written for.
func TestMarkerIsVerified(t *testing.T) {
	for what, change := range map[string]func(d pgWAL, name string, o *walpush.Options){
		"other content": func(d pgWAL, name string, _ *walpush.Options) {
			info, err := os.Stat(d.path(name))
			if err != nil {
				t.Fatal(err)
			}
			d.put(name, segment(name, cluster, 2))
			if err := os.Chtimes(d.path(name), info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		},
		"other time": func(d pgWAL, name string, _ *walpush.Options) {
			if err := os.Chtimes(d.path(name), time.Time{}, time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		},
		"other archive": func(_ pgWAL, _ string, o *walpush.Options) { o.Location = "elsewhere" },
		"damaged": func(d pgWAL, name string, _ *walpush.Options) {
			if err := os.WriteFile(d.path("holdfast/pushed/"+name), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			d := newWAL(t)
			names := d.segments(2)
			o := options()
			o.Parallel = 2
			if _, err := push(t.Context(), archive.New(&storetest.Memory{}, archive.Options{}), d.path(names[0]), o); err != nil {
				t.Fatal(err)
			}
			change(d, names[1], &o)
			m := &storetest.Memory{}
			report, err := push(t.Context(), archive.New(m, archive.Options{}), d.path(names[1]), o)
			if err != nil || report.Outcome != walpush.Stored {
				t.Fatalf("got %+v, %v; want it stored", report, err)
			}
			if left := d.marked(); slices.Contains(left, names[1]) {
				t.Error("the marker is still there")
			}
		})
	}
}

// A marker that cannot be read is no answer: neither "stored" nor "not stored".
func TestUnreadableMarkerIsAnError(t *testing.T) {
	for what, spoil := range map[string]func(path string) error{
		"a directory":      func(path string) error { return os.MkdirAll(path, 0o700) },
		"below a file":     func(path string) error { return os.WriteFile(filepath.Dir(path), nil, 0o600) },
		"a link to itself": func(path string) error { return os.Symlink(path, path) },
		"state is no folder": func(path string) error {
			os.Remove(filepath.Dir(filepath.Dir(path)))
			return os.WriteFile(filepath.Dir(filepath.Dir(path)), nil, 0o600)
		},
	} {
		d, m := newWAL(t), &storetest.Memory{}
		name := d.segments(1)[0]
		path := d.path("holdfast/pushed/" + name)
		dir := map[string]string{"below a file": d.path("holdfast"), "state is no folder": d.dir}[what]
		if err := os.MkdirAll(cmp.Or(dir, filepath.Dir(path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := spoil(path); err != nil {
			t.Fatal(what, err)
		}
		report, err := push(t.Context(), archive.New(m, archive.Options{}), d.path(name), options())
		if err == nil || !strings.Contains(err.Error(), "stored ahead") {
			t.Errorf("marker is %s: got %+v, %v; want an error", what, report, err)
		}
	}
}

func TestStaleMarkersAreSwept(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(3)
	a := archive.New(m, archive.Options{})
	o := options()
	o.Parallel = 3
	if _, err := push(t.Context(), a, d.path(names[0]), o); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.path(names[1])); err != nil {
		t.Fatal(err)
	}
	if _, err := push(t.Context(), a, d.path(names[0]), o); err != nil {
		t.Fatal(err)
	}
	if got := d.marked(); !slices.Equal(got, names[2:]) {
		t.Errorf("markers: %q, want %q", got, names[2:])
	}
}

// What goes wrong with other files is a warning that names them; the file asked for decides.
func TestTroubleAheadIsAWarning(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(4)
	a := archive.New(m, archive.Options{})
	other := newWAL(t)
	other.put(names[1], segment(names[1], cluster, 2))
	if _, err := push(t.Context(), a, other.path(names[1]), options()); err != nil {
		t.Fatal(err)
	}
	d.put(names[2], segment(names[2], cluster, 1)[:size/2])
	var log pgtest.Log
	o := options()
	o.Parallel, o.Logger = 4, slog.New(slog.NewTextHandler(&log, nil))
	report, err := push(t.Context(), a, d.path(names[0]), o)
	if err != nil || !slices.Equal(report.Ahead, names[3:]) {
		t.Errorf("got %+v, %v; want %q ahead", report, err, names[3:])
	}
	for _, name := range names[1:3] {
		if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), name) {
			t.Errorf("no warning names %s:\n%s", name, log.String())
		}
	}
}

// Several pushes in one directory, as after a crash that left one behind, do not disturb each other.
func TestPushesAtOnce(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(12)
	a := archive.New(m, archive.Options{})
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for j := range names {
				o := options()
				o.Parallel = 3
				if _, err := push(t.Context(), a, d.path(names[(j+i)%len(names)]), o); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	for _, name := range names {
		whole(t, m, name, segment(name, cluster, 1))
	}
}

func TestFileThatChangesIsNotStored(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	name := d.segments(1)[0]
	a := changer{archive.New(m, archive.Options{}), func() { d.put(name, segment(name, cluster, 2)[:size/2]) }}
	if _, err := push(t.Context(), a, d.path(name), options()); err == nil {
		t.Error("a file that shrank while it was read was stored")
	}
	if _, err := archive.New(m, archive.Options{}).OpenWAL(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the archive has it: %v", err)
	}
}

// changer is an archive that does something before it reads.
type changer struct {
	*archive.Archive
	change func()
}

func (c changer) PutWAL(ctx context.Context, name string, open func() (io.ReadCloser, error)) (int64, error) {
	c.change()
	return c.Archive.PutWAL(ctx, name, open)
}

func TestCancelledPushFails(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(3)
	ctx, cancel := context.WithCancel(t.Context())
	a := changer{archive.New(m, archive.Options{}), cancel}
	o := options()
	o.Parallel = 3
	if _, err := push(ctx, a, d.path(names[0]), o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
