package restore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// none is no target.
var none catalog.Target

// chained is a full backup and two deltas of a few files, and what the newest has.
func chained(g *maker) map[string]string {
	one, two := "base/5/1", "base/5/2"
	versions := make([]int, 40)
	for i := range versions {
		versions[i] = 1
	}
	steady := somePages(two, []int{1, 1, 1})
	dirs := []packed{{path: ".", dir: true, mode: 0o700}, {path: "base", dir: true, mode: 0o700}, {path: "base/5", dir: true, mode: 0o700},
		{path: "pg_wal", dir: true, mode: 0o700}, {path: "pg_wal/archive_status", dir: true, mode: 0o700}}
	g.backup(append(dirs, packed{path: one, content: somePages(one, versions), mode: 0o600}, packed{path: two, content: steady, mode: 0o600},
		packed{path: "PG_VERSION", content: []byte("15\n"), mode: 0o600}), false)
	for i := range 2 {
		versions[3+i], versions[20+i] = i+2, i+2
		blocks := []uint32{uint32(3 + i), uint32(20 + i)}
		g.backup(append(dirs, packed{path: one, content: somePages(one, versions), mode: 0o600, increment: true, blocks: blocks},
			packed{path: two, content: steady, mode: 0o600, unchanged: true}, packed{path: "PG_VERSION", content: []byte("15\n"), mode: 0o600}), true)
	}
	return map[string]string{one: string(somePages(one, versions)), two: string(steady), "PG_VERSION": "15\n"}
}

// newest restores the newest of chained into a new directory and returns that.
func newest(t *testing.T, g *maker) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	if _, _, err := fetch(g.store, dir, "LATEST", nil); err != nil {
		t.Fatal(err)
	}
	return dir
}

// worn changes the directory: pages of both files differ, a file is missing, another is too many.
func worn(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "base/5/1"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, block := range []int64{0, 3, 21, 39} {
		if _, err := f.WriteAt([]byte("stale"), block*page.Size+100); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Remove(filepath.Join(dir, "base/5/2")), os.WriteFile(filepath.Join(dir, "base/5/3"), []byte("more"), 0o600),
		os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o600), os.MkdirAll(filepath.Join(dir, "log"), 0o700),
		os.WriteFile(filepath.Join(dir, "log/server.log"), []byte("a line"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// asNew fails the test where the directory is not as the newest of chained.
func asNew(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	for path, content := range want {
		holds(t, filepath.Join(dir, path), content)
	}
	for _, path := range []string{"base/5/3", "standby.signal", "holdfast_restore.json", "postmaster.pid"} {
		if exists(filepath.Join(dir, path)) {
			t.Errorf("there is a %s", path)
		}
	}
	if _, _, err := control.Read(filepath.Join(dir, control.Name)); err != nil {
		t.Error(err)
	}
}

// A plan says what differs and writes nothing; then as much is written, what nobody restores is removed, and logs stay.
func TestDifferences(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 100}
	want := chained(g)
	dir := newest(t, g)
	worn(t, dir)
	before := restored(dir)
	a := archive.New(g.store, archive.Options{})
	r := restore.Request{Destination: dir, Choice: choose(t, a, "LATEST", none), Delta: true}
	p, err := restore.Decide(t.Context(), a, r)
	if err == nil {
		err = restore.Compare(t.Context(), a, p, restore.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	d := *p.Delta
	if d.EqualFiles != 1 || d.StaleFiles != 1 || d.StalePages != 4 || d.MissingFiles != 1 || d.MissingBytes != 3*page.Size || d.ExtraFiles != 2 ||
		d.Write != 7*page.Size || d.Read != 40*page.Size+3 || d.Fetch == 0 || p.Chain[2].Stored == 0 || p.Chain[1].Stored == 0 {
		t.Errorf("%+v, chain %+v", d, p.Chain)
	}
	after := restored(dir)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s was changed by a comparison", path)
		}
	}
	if len(before) != len(after) {
		t.Errorf("a comparison left %d files of %d", len(after), len(before))
	}
	report, err := restore.Run(t.Context(), a, p, restore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Bytes != d.Write || report.Files != 2 || report.KeptFiles != 1 || !report.Verified {
		t.Errorf("%+v", report)
	}
	asNew(t, dir, want)
	holds(t, filepath.Join(dir, "log/server.log"), "a line")
}

// What others remove meanwhile, as a wal-prefetch does that its server has left behind, is no error.
func TestDifferencesWhileOthersClearUp(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 100}
	want := chained(g)
	dir := newest(t, g)
	ahead := filepath.Join(dir, "base", ".wal-g", "prefetch")
	stop := make(chan struct{})
	var other sync.WaitGroup
	other.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.MkdirAll(filepath.Join(ahead, "running"), 0o700) // who sweeps may be quicker
			_ = os.WriteFile(filepath.Join(ahead, "000000010000000000000001"), nil, 0o600)
			_ = os.RemoveAll(filepath.Dir(ahead))
		}
	})
	for range 60 {
		a := archive.New(g.store, archive.Options{})
		p, err := restore.Decide(t.Context(), a, restore.Request{Destination: dir, Choice: choose(t, a, "LATEST", none), Delta: true})
		if err == nil {
			_, err = restore.Run(t.Context(), a, p, restore.Options{})
		}
		if err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	other.Wait()
	if err := os.RemoveAll(filepath.Dir(ahead)); err != nil {
		t.Fatal(err)
	}
	asNew(t, dir, want)
}

// What a restore of differences must not touch it refuses, and leaves it as it was.
func TestDifferencesAreRefused(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 100}
	chained(g)
	other := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 100}
	chained(other)
	theirs := &walG{store: &storetest.Memory{}, method: compress.LZ4}
	theirs.full([]member{{path: "base/5/1", content: somePages("base/5/1", []int{1}), mode: 0o600}})
	write := func(name, content string) func(*testing.T, string, *restore.Request) {
		return func(t *testing.T, dir string, _ *restore.Request) {
			if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for what, x := range map[string]struct {
		store  store.Store
		change func(t *testing.T, dir string, r *restore.Request)
		says   string
	}{
		"a running server": {g.store, write("postmaster.pid", fmt.Sprintf("%d\n", os.Getpid())), "is running"},
		"no pid":           {g.store, write("postmaster.pid", "x"), "is running"},
		"no directory":     {g.store, func(_ *testing.T, _ string, r *restore.Request) { r.Destination += "/none" }, "no directory"},
		"no cluster": {g.store, func(t *testing.T, dir string, _ *restore.Request) {
			if err := os.Remove(filepath.Join(dir, control.Name)); err != nil {
				t.Fatal(err)
			}
		}, "does not prove to be"},
		"another cluster": {g.store, func(t *testing.T, dir string, _ *restore.Request) {
			foreign := must2(os.ReadFile(must2(filepath.Glob("../pg/control/testdata/*14*"))[0]))
			write(control.Name, string(foreign)+strings.Repeat("\x00", control.Size-len(foreign)))(t, dir, nil)
		}, "is of the cluster with system identifier"},
		"WAL that is nowhere else": {g.store, func(t *testing.T, dir string, _ *restore.Request) {
			write("pg_wal/archive_status/000000010000000000000007.ready", "")(t, dir, nil)
			write("pg_wal/000000010000000000000007", "x")(t, dir, nil)
		}, "never archived"},
		"an interrupted restore": {g.store, write("holdfast_restore.json", `{"holdfast_restore": 1, "backup": "base_x"}`), "was interrupted"},
		"an interrupted one of another cluster": {g.store, write("holdfast_restore.json", `{"holdfast_restore": 1, "backup": "base_x", "delta": true, "system_identifier": 1}`),
			"is of the cluster with system identifier 1,"},
		"a mask":         {g.store, func(_ *testing.T, _ string, r *restore.Request) { r.Mask = "base/5/*" }, "goes with no delta"},
		"no manifest":    {theirs.store, func(*testing.T, string, *restore.Request) {}, "no manifest"},
		"an empty place": {g.store, func(t *testing.T, _ string, r *restore.Request) { r.Destination = t.TempDir() }, "does not prove to be"},
	} {
		dir := newest(t, g)
		a := archive.New(x.store, archive.Options{})
		r := restore.Request{Destination: dir, Choice: choose(t, a, "LATEST", none), Delta: true}
		x.change(t, dir, &r)
		before := restored(dir)
		p, err := restore.Decide(t.Context(), a, r)
		var refusal *restore.RefusedError
		if err == nil || !strings.Contains(err.Error(), x.says) || !errors.As(err, &refusal) || refusal.Advice == "" {
			t.Errorf("%s: plan %+v, %v, want a refusal with %q", what, p, err, x.says)
		}
		for path, was := range restored(dir) {
			if before[path] != was {
				t.Errorf("%s: %s was changed", what, path)
			}
		}
	}
}

// Where archive_mode is off PostgreSQL does not say which WAL is archived: the archive says it. Whole segments that only pg_wal has are refused, and of the newest,
// which is not finished, the plan tells, as of a timeline of which the archive has nothing.
func TestWALThatIsNowhereElse(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 100}
	chained(g)
	const size = wal.SegmentSize(16 << 20)
	a := archive.New(g.store, archive.Options{})
	segment := func(n wal.SegmentNo) string { // as on the server, but shorter
		b := make([]byte, wal.HeaderLen)
		for at, v := range map[int]uint64{8: uint64(size.Start(n)), 24: *g.last.SystemIdentifier, 32: uint64(size)} {
			binary.LittleEndian.PutUint64(b[at:], v)
		}
		binary.LittleEndian.PutUint32(b, 0x0002_D10D)
		return string(b)
	}
	archived := func(t wal.Timeline, n wal.SegmentNo) error {
		_, err := a.PutWAL(context.Background(), size.Name(t, n), func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(segment(n))), nil })
		return err
	}
	if err := errors.Join(archived(1, 0x21), archived(3, 0x30)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PutTail(t.Context(), size.Name(1, 0x24), 0, wal.HeaderLen, strings.NewReader(segment(0x24))); err != nil {
		t.Fatal(err)
	}
	for what, x := range map[string]struct {
		timeline wal.Timeline
		files    []wal.SegmentNo
		change   func(pgWAL string) error
		refused  string // which is named as the first
		note     string
	}{
		"archived, and the one being written": {1, []wal.SegmentNo{0x21, 0x22}, nil, "", "of 000000010000000000000022, the newest WAL segment in pg_wal, the archive has the first 0 bytes"},
		"in pieces":                           {1, []wal.SegmentNo{0x21, 0x24}, nil, "", fmt.Sprintf("the archive has the first %d bytes", wal.HeaderLen)},
		"whole ones":                          {1, []wal.SegmentNo{0x21, 0x22, 0x23, 0x24}, nil, "holds 2 WAL files that were never archived, such as 000000010000000000000022,", ""},
		"said to be archived": {1, []wal.SegmentNo{0x22, 0x23}, func(pgWAL string) error {
			return os.WriteFile(filepath.Join(pgWAL, "archive_status/000000010000000000000022.done"), nil, 0o600)
		}, "", "of 000000010000000000000023"},
		"not said of the first": {1, []wal.SegmentNo{0x22, 0x23}, func(pgWAL string) error {
			return os.WriteFile(filepath.Join(pgWAL, "archive_status/000000010000000000000023.done"), nil, 0o600)
		}, "such as 000000010000000000000022", ""},
		"recycled": {1, []wal.SegmentNo{0x21}, func(pgWAL string) error {
			return errors.Join(os.WriteFile(filepath.Join(pgWAL, "000000010000000000000025"), []byte(segment(0x1F)), 0o600),
				os.WriteFile(filepath.Join(pgWAL, "000000010000000000000026"), make([]byte, wal.HeaderLen), 0o600),
				os.WriteFile(filepath.Join(pgWAL, "000000010000000000000027"), nil, 0o600))
		}, "", ""},
		"of a copy that was promoted": {2, []wal.SegmentNo{0x21, 0x22, 0x23}, nil, "", "of timeline 2 the archive has no WAL: 2 segments of it in pg_wal, from 000000020000000000000021 on"},
		"of the cluster's next life":  {3, []wal.SegmentNo{0x31, 0x32}, nil, "such as 000000030000000000000031", ""},
		"kept": {1, []wal.SegmentNo{0x22, 0x23, 0x24}, func(pgWAL string) error {
			return exec.Command("cp", "-a", pgWAL, filepath.Dir(pgWAL)+".pg_wal").Run()
		}, "", ""},
		"kept, and changed since": {1, []wal.SegmentNo{0x22, 0x23}, func(pgWAL string) error {
			return errors.Join(exec.Command("cp", "-a", pgWAL, filepath.Dir(pgWAL)+".pg_wal").Run(),
				os.Chtimes(filepath.Join(pgWAL, "000000010000000000000022"), time.Time{}, time.Unix(1_700_000_000, 0)))
		}, "such as 000000010000000000000022", ""},
		"behind a link": {1, []wal.SegmentNo{0x22, 0x23}, func(pgWAL string) error {
			return errors.Join(os.Rename(pgWAL, filepath.Dir(pgWAL)+".elsewhere"), os.Symlink(filepath.Dir(pgWAL)+".elsewhere", pgWAL))
		}, "", ""},
	} {
		dir := newest(t, g)
		for _, n := range x.files {
			if err := os.WriteFile(filepath.Join(dir, "pg_wal", size.Name(x.timeline, n)), []byte(segment(n)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if x.change != nil {
			if err := x.change(filepath.Join(dir, "pg_wal")); err != nil {
				t.Fatal(err)
			}
		}
		p, err := restore.Decide(t.Context(), a, restore.Request{Destination: dir, Choice: choose(t, a, "LATEST", none), Delta: true})
		var refusal *restore.RefusedError
		keep := "cp -a " + dir + "/pg_wal " + dir + ".pg_wal"
		if x.refused != "" {
			if !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, x.refused) || !strings.Contains(refusal.Advice, keep) {
				t.Errorf("%s: %v, want a refusal with %q", what, err, x.refused)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		notes := strings.Join(p.Notes, "\n")
		if !strings.Contains(notes, x.note) || strings.Contains(notes, keep) != (x.note != "") {
			t.Errorf("%s: notes %q, want %q", what, notes, x.note)
		}
	}
}

// A server that is started while the directory is compared is not written under.
func TestDifferencesLookTwice(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 100}
	chained(g)
	dir := newest(t, g)
	worn(t, dir)
	a := archive.New(g.store, archive.Options{})
	p, err := restore.Decide(t.Context(), a, restore.Request{Destination: dir, Choice: choose(t, a, "LATEST", none), Delta: true})
	if err != nil {
		t.Fatal(err)
	}
	before := restored(dir)
	if err := os.WriteFile(filepath.Join(dir, "postmaster.pid"), fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := restore.Run(t.Context(), a, p, restore.Options{}); err == nil || !strings.Contains(err.Error(), "is running") {
		t.Errorf("Run: %v", err)
	}
	after := restored(dir)
	delete(after, "postmaster.pid")
	if len(before) != len(after) || exists(filepath.Join(dir, "holdfast_restore.json")) || !exists(filepath.Join(dir, control.Name)) {
		t.Errorf("%d files, were %d; or a marker, or no pg_control", len(after), len(before))
	}
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s was changed", path)
		}
	}
}

// Whichever store call fails, and however, the directory is as it was or does not start, and the same command completes it.
func TestDifferencesFailWhole(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 2}
	want := chained(g)
	choice := choose(t, archive.New(g.store, archive.Options{}), "LATEST", none)
	for _, how := range []func(store.Store, int) *storetest.Flaky{storetest.FailAt, storetest.FailMidway, storetest.FailAfter} {
		for n := 0; ; n++ {
			dir := newest(t, g)
			worn(t, dir)
			flaky := how(g.store, n)
			failing := archive.New(flaky, archive.Options{})
			r := restore.Request{Destination: dir, Choice: choice, Delta: true}
			p, err := restore.Decide(t.Context(), failing, r)
			if err == nil {
				_, err = restore.Run(t.Context(), failing, p, restore.Options{Workers: 2})
			}
			if !flaky.Reached() {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			if err == nil { // the end of a body that is not read to its end
				asNew(t, dir, want)
				continue
			}
			if !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("call %d (%s) failed, the error is %v", n, flaky.Calls()[n], err)
			}
			if marked, starts := exists(filepath.Join(dir, "holdfast_restore.json")), exists(filepath.Join(dir, control.Name)); marked == starts {
				t.Errorf("call %d (%s) failed: a marker %t, a pg_control %t", n, flaky.Calls()[n], marked, starts)
			} else if starts && !exists(filepath.Join(dir, "base/5/3")) {
				t.Errorf("call %d (%s) failed: it starts, and was changed", n, flaky.Calls()[n])
			} else if marked {
				var hinted interface{ Hint() string }
				if !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "same command") {
					t.Errorf("call %d (%s) failed: %v says nothing of the same command", n, flaky.Calls()[n], err)
				}
				if _, _, err := fetch(g.store, dir, "LATEST", func(r *restore.Request) { r.Resume = true }); err == nil || !strings.Contains(err.Error(), "--delta") {
					t.Errorf("call %d: resumed: %v", n, err)
				}
			}
			if _, _, err := fetch(g.store, dir, "LATEST", delta); err != nil {
				t.Errorf("call %d: the same again: %v", n, err)
			}
			asNew(t, dir, want)
		}
	}
}

// A restore of a chain that was interrupted is continued: what is there is compared.
func TestChainsAreResumed(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 2}
	want := chained(g)
	choice := choose(t, archive.New(g.store, archive.Options{}), "LATEST", none)
	kept := int64(0)
	for n := 0; ; n++ {
		flaky := storetest.FailAt(g.store, n)
		failing := archive.New(flaky, archive.Options{})
		r := restore.Request{Destination: filepath.Join(t.TempDir(), "data"), Choice: choice}
		p, err := restore.Decide(t.Context(), failing, r)
		begun := err == nil
		if begun {
			_, err = restore.Run(t.Context(), failing, p, restore.Options{Workers: 1})
		}
		if !flaky.Reached() {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if err == nil || !begun {
			continue
		}
		_, report, err := fetch(g.store, r.Destination, "LATEST", func(r *restore.Request) { r.Resume = true })
		if err != nil {
			t.Fatalf("call %d: %v", n, err)
		}
		kept = max(kept, report.KeptFiles)
		asNew(t, r.Destination, want)
	}
	if kept < 2 {
		t.Errorf("at most %d files were kept", kept)
	}
}

// Tablespaces are compared where they are, and only there: a directory that leads elsewhere is refused, what another version of PostgreSQL has beside stays,
// and one that the backup does not have loses its link alone.
func TestDifferencesInTablespaces(t *testing.T) {
	place := filepath.Join(t.TempDir(), "ts")
	content := somePages("x", []int{1, 2, 3})
	dirs := []packed{{path: ".", dir: true, mode: 0o700}, {path: "pg_tblspc", dir: true, mode: 0o700}, {path: "pg_tblspc/16385/" + space15, dir: true, mode: 0o700}}
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 100,
		spec: &archive.TablespaceSpec{BasePrefix: "/old", Tablespaces: []archive.Tablespace{{OID: "16385", Location: place}}}}
	inside := "pg_tblspc/16385/" + space15 + "/5/7"
	g.backup(append(dirs, packed{path: inside, content: content, mode: 0o600}), false)
	dir := newest(t, g)
	other := t.TempDir()
	for name, content := range map[string]string{
		filepath.Join(place, space15, "5/7"): string(somePages("x", []int{1, 9, 3})), filepath.Join(place, space15, "5/8"): "extra",
		filepath.Join(place, "PG_14_1/5/7"): "another's", filepath.Join(other, space15, "5/9"): "not ours",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(other, filepath.Join(dir, "pg_tblspc/16399")); err != nil {
		t.Fatal(err)
	}
	_, _, err := fetch(g.store, dir, "LATEST", func(r *restore.Request) {
		r.Delta, r.TablespaceMapping = true, map[string]string{"16385": filepath.Join(t.TempDir(), "new")}
	})
	if err == nil || !strings.Contains(err.Error(), place) {
		t.Errorf("into another directory: %v", err)
	}
	_, report, err := fetch(g.store, dir, "LATEST", delta)
	if err != nil {
		t.Fatal(err)
	}
	if d := report.Delta; d.StaleFiles != 1 || d.StalePages != 1 || d.ExtraFiles != 1 || !strings.Contains(strings.Join(report.Notes, "\n"), other) {
		t.Errorf("%+v, notes %q", d, report.Notes)
	}
	holds(t, filepath.Join(place, space15, "5/7"), string(content))
	holds(t, filepath.Join(place, "PG_14_1/5/7"), "another's")
	holds(t, filepath.Join(other, space15, "5/9"), "not ours")
	if exists(filepath.Join(place, space15, "5/8")) || exists(filepath.Join(dir, "pg_tblspc/16399")) {
		t.Error("what is too many is still there")
	}
	// A link to another place is not followed.
	if err := errors.Join(os.Remove(filepath.Join(dir, "pg_tblspc/16385")), os.Symlink(other, filepath.Join(dir, "pg_tblspc/16385"))); err != nil {
		t.Fatal(err)
	}
	var refusal *restore.RefusedError
	if _, _, err := fetch(g.store, dir, "LATEST", delta); !errors.As(err, &refusal) || !strings.Contains(refusal.Advice, "16385="+other) {
		t.Errorf("a link that leads elsewhere: %v", err)
	}
}

// space15 is the directory of PostgreSQL 15 in a tablespace.
const space15 = "PG_15_202209061"

// A tablespace inside of the data directory, and pg_wal behind a link: the first is swept as a tablespace, the second becomes a directory.
func TestDifferencesInside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	content := somePages("x", []int{1, 2, 3})
	dirs := []packed{{path: ".", dir: true, mode: 0o700}, {path: "pg_tblspc", dir: true, mode: 0o700}, {path: "pg_tblspc/16385/" + space15, dir: true, mode: 0o700},
		{path: "pg_wal", dir: true, mode: 0o700}, {path: "pg_wal/archive_status", dir: true, mode: 0o700}}
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 100,
		spec: &archive.TablespaceSpec{BasePrefix: dir, Tablespaces: []archive.Tablespace{{OID: "16385", Location: dir + "/spaces/one"}}}}
	g.backup(append(dirs, packed{path: "pg_tblspc/16385/" + space15 + "/5/7", content: content, mode: 0o600}), false)
	if _, _, err := fetch(g.store, dir, "LATEST", nil); err != nil {
		t.Fatal(err)
	}
	wal := t.TempDir()
	for _, err := range []error{
		os.RemoveAll(filepath.Join(dir, "pg_wal")), os.Symlink(wal, filepath.Join(dir, "pg_wal")),
		os.WriteFile(filepath.Join(wal, "000000010000000000000002"), []byte("wal"), 0o600),
		os.WriteFile(filepath.Join(dir, "spaces/extra"), []byte("extra"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	_, report, err := fetch(g.store, dir, "LATEST", delta)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, "spaces/one", space15, "5/7"), string(content))
	holds(t, filepath.Join(wal, "000000010000000000000002"), "wal")
	if info, err := os.Lstat(filepath.Join(dir, "pg_wal/archive_status")); err != nil || !info.IsDir() || exists(filepath.Join(dir, "spaces/extra")) {
		t.Errorf("pg_wal: %v; or what is too many is there", err)
	}
	if notes := strings.Join(report.Notes, "\n"); !strings.Contains(notes, "pg_wal was a symbolic link to "+wal) {
		t.Errorf("notes %q", notes)
	}
}

// A page that changed in the archive is found by its own sum, where all else of the file is not read.
func TestDamagedPagesAreFound(t *testing.T) {
	m := &storetest.Memory{}
	g := &maker{store: m, method: compress.None, perPart: 100}
	want := chained(g)
	object := archive.Folder(g.names[0]) + "tar_partitions/part_001.tar"
	good := must2(store.ReadFile(t.Context(), m, object, 1<<20))
	b := bytes.Clone(good)
	b[bytes.Index(b, []byte("base/5/1 block 30 version 1"))+50] ^= 1
	if err := m.Put(t.Context(), object, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	_, _, err := fetch(m, dir, "LATEST", nil)
	if err == nil || !strings.Contains(err.Error(), "part_001.tar of "+g.names[0]+": base/5/1: block 30 has") || exists(filepath.Join(dir, control.Name)) {
		t.Errorf("restored: %v", err)
	}
	// Where the damaged page is not needed it does not matter.
	if err := m.Put(t.Context(), object, bytes.NewReader(good)); err != nil {
		t.Fatal(err)
	}
	dir = newest(t, g)
	worn(t, dir)
	if err := m.Put(t.Context(), object, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := fetch(m, dir, "LATEST", delta); err != nil {
		t.Error(err)
	}
	asNew(t, dir, want)
}

// Sums of pages that are lost, cut off or not those of the manifest are told, and whole files are compared and read instead.
func TestSumsOfPagesAreNotTrusted(t *testing.T) {
	for what, x := range map[string]struct {
		change func(b []byte) []byte
		says   string
	}{
		"lost": {func([]byte) []byte { return nil }, "are not there"},
		"cut":  {func(b []byte) []byte { return b[:len(b)-3] }, "end too early"},
		"long": {func(b []byte) []byte { return append(b, 0) }, "more than"},
		"other": {func(b []byte) []byte {
			b[7] ^= 1
			return b
		}, "do not fit"},
	} {
		m := &storetest.Memory{}
		g := &maker{store: m, method: compress.Zstd, perPart: 100}
		want := chained(g)
		good := newest(t, g)
		worn(t, good)
		for _, name := range g.names {
			object := archive.Folder(name) + "page_sums/part_001.tar.crc32c"
			b := x.change(must2(store.ReadFile(t.Context(), m, object, 1<<20)))
			err := m.Delete(t.Context(), object)
			if b != nil {
				err = m.Put(t.Context(), object, bytes.NewReader(b))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		dir := filepath.Join(t.TempDir(), "data")
		_, report, err := fetch(m, dir, "LATEST", nil)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		asNew(t, dir, want)
		if notes := strings.Join(report.Notes, "\n"); !strings.Contains(notes, x.says) {
			t.Errorf("%s: notes %q", what, notes)
		}
		if _, _, err := fetch(m, good, "LATEST", delta); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		asNew(t, good, want)
	}
}

// counting counts what is read of each object.
type counting struct {
	*storetest.Memory
	mu   sync.Mutex
	read map[string]int64
}

func (c *counting) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return c.counted(name)(c.Memory.Open(ctx, name))
}

func (c *counting) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	return c.counted(name)(c.Memory.OpenRange(ctx, name, offset, length))
}

func (c *counting) counted(name string) func(io.ReadCloser, error) (io.ReadCloser, error) {
	return func(r io.ReadCloser, err error) (io.ReadCloser, error) {
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.read[name] += int64(len(b))
		return io.NopCloser(bytes.NewReader(b)), errors.Join(err, r.Close())
	}
}

// Parts of which nothing is needed are not read, and of the others only the stretches that are; the plan says how much that is.
func TestOnlyWhatIsNeededIsRead(t *testing.T) {
	m := &storetest.Memory{}
	g := &maker{store: m, method: compress.None, perPart: 1}
	one, two := "base/5/1", "base/5/2"
	versions := func(n int, at ...int) []int {
		v := make([]int, n)
		for i := range v {
			v[i] = 1
		}
		for _, i := range at {
			v[i]++
		}
		return v
	}
	const pages = 2000
	g.backup([]packed{{path: one, content: somePages(one, versions(pages)), mode: 0o600}, {path: two, content: somePages(two, versions(pages)), mode: 0o600}}, false)
	all := somePages(one, versions(pages, 5))
	every := make([]uint32, pages)
	for i := range every {
		every[i] = uint32(i)
	}
	last := g.backup([]packed{{path: one, content: all, mode: 0o600, increment: true, blocks: every[:pages-10]},
		{path: two, content: somePages(two, versions(pages)), mode: 0o600, unchanged: true}}, true)
	c := &counting{Memory: m, read: map[string]int64{}}
	dir := filepath.Join(t.TempDir(), "data")
	part := func(n int) string {
		return fmt.Sprintf("%star_partitions/part_%03d.tar", archive.Folder(g.names[0]), n)
	}
	p, _, err := fetch(c, dir, last, func(*restore.Request) {})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, one), string(all))
	if got := c.read[part(1)]; got != 10*page.Size {
		t.Errorf("%d bytes of the older file were read, %d are needed", got, 10*page.Size)
	}
	if l := p.Chain[1]; l.Stored < pages*page.Size || l.Stored > (pages+20)*page.Size {
		t.Errorf("the plan wants %d bytes of the full backup", l.Stored)
	}
	f, err := os.OpenFile(filepath.Join(dir, two), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, block := range []int64{7, 9, 1500} {
		if _, err := f.WriteAt([]byte("stale"), block*page.Size); err != nil {
			t.Fatal(err)
		}
	}
	clear(c.read)
	_, report, err := fetch(c, dir, last, delta)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, two), string(somePages(two, versions(pages))))
	if got := c.read[part(2)]; got != 4*page.Size || c.read[part(1)] != 0 || report.Delta.Fetch > 20*page.Size {
		t.Errorf("%d bytes of the part with 3 stale pages were read, %d of the other; planned were %d", got, c.read[part(1)], report.Delta.Fetch)
	}
	// Nor does it matter that a part is gone of which nothing is needed.
	if err := m.Delete(t.Context(), part(1)); err != nil {
		t.Fatal(err)
	}
	g.backup([]packed{{path: one, content: all, mode: 0o600}, {path: two, content: somePages(two, versions(pages)), mode: 0o600, unchanged: true}}, true)
	dir = filepath.Join(t.TempDir(), "data")
	if _, _, err := fetch(m, dir, "LATEST", nil); err != nil {
		t.Error(err)
	}
	if _, _, err := fetch(m, filepath.Join(t.TempDir(), "data"), last, nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "part_001.tar of "+g.names[0]) {
		t.Errorf("without a part that is needed: %v", err)
	}
}

// Manifests of a chain that do not fit together are refused before anything is written.
func TestChainsFitTogether(t *testing.T) {
	for what, x := range map[string]struct {
		level int
		tweak func(m *tarpart.Member)
		says  string
	}{
		"a file that is not in the parent": {0, func(m *tarpart.Member) { m.Path = strings.Replace(m.Path, "base/5/2", "base/5/22", 1) }, "does not name it"},
		"one of another length": {0, func(m *tarpart.Member) {
			if m.Path == "base/5/2" {
				m.Size, m.Pages = m.Size-page.Size, m.Pages-1
			}
		}, "left it out as unchanged"},
		"one that is there twice": {2, func(m *tarpart.Member) { m.Path = strings.Replace(m.Path, "PG_VERSION", "base/5/1", 1) }, "twice"},
		"a directory instead": {0, func(m *tarpart.Member) {
			if m.Path == "base/5/1" {
				m.Type, m.Size, m.Pages = tarpart.Dir, 0, 0
			}
		}, "it is no file"},
		"a page that nobody has": {2, func(m *tarpart.Member) {
			if m.Path == "base/5/1" { // one page longer than in the parent, and without that page
				m.Increment.Size += page.Size
			}
		}, "it ends before block 40"},
		"a full backup of increments": {0, func(m *tarpart.Member) {
			if m.Path == "base/5/1" {
				m.Increment = &tarpart.Increment{Size: 40 * page.Size, Set: must2(roaring.New().ToBytes())}
				m.Pages, m.Size = 0, 16
			}
		}, "does not have all"},
		"an increment without its set": {1, func(m *tarpart.Member) {
			if m.Increment != nil {
				m.Increment.Set = []byte("no set")
			}
		}, "set of blocks"},
	} {
		g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 100, source: "lsn"}
		g.tweak = func(part string, all []tarpart.Member) {
			for i := range all {
				if g.n == x.level && strings.HasPrefix(part, "part_") {
					x.tweak(&all[i])
				}
			}
		}
		chained(g)
		dir := filepath.Join(t.TempDir(), "data")
		if _, _, err := fetch(g.store, dir, "LATEST", nil); err == nil || !strings.Contains(err.Error(), x.says) || exists(dir) {
			t.Errorf("%s: %v, want %q in it; something written: %t", what, err, x.says, exists(dir))
		}
	}
}

// A delta of ours comes back on top of what WAL-G took, and one of WAL-G on top of ours, whose parts are checked then too.
func TestMixedChains(t *testing.T) {
	one, two := "base/5/1", "base/5/2"
	for _, method := range []compress.Method{compress.Zstd, compress.None} {
		m := &storetest.Memory{}
		theirs := &walG{store: m, method: compress.LZ4}
		ours := &maker{store: m, method: method, perPart: 100}
		versions := []int{1, 1, 1, 1, 1}
		steady := somePages(two, []int{1, 1})
		ours.names = append(ours.names, theirs.full([]member{{path: one, content: somePages(one, versions), mode: 0o600}, {path: two, content: steady, mode: 0o600}}))
		versions[1], ours.n = 2, 1
		theirs.last = ours.backup([]packed{{path: one, content: somePages(one, versions), mode: 0o600, increment: true, blocks: []uint32{1}},
			{path: two, content: steady, mode: 0o600, unchanged: true}}, true)
		versions[2], theirs.n = 3, 2
		theirs.delta([]member{{path: one, content: incrementOf(somePages(one, versions), []uint32{2}), incremented: true, mode: 0o600}, {path: two, skipped: true}})
		dir := filepath.Join(t.TempDir(), "data")
		p, report, err := fetch(m, dir, "LATEST", nil)
		if err != nil {
			t.Fatal(err)
		}
		holds(t, filepath.Join(dir, one), string(somePages(one, versions)))
		holds(t, filepath.Join(dir, two), string(steady))
		if report.Verified || len(p.Chain) != 3 {
			t.Errorf("verified %t, chain %+v", report.Verified, p.Chain)
		}
		if method == compress.Zstd {
			continue
		}
		object := archive.Folder(ours.names[1]) + "tar_partitions/part_001.tar"
		b := must2(store.ReadFile(t.Context(), m, object, 1<<20))
		b[bytes.Index(b, []byte("base/5/1 block 1 version 2"))+50] ^= 1
		if err := m.Put(t.Context(), object, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := fetch(m, filepath.Join(t.TempDir(), "data"), "LATEST", nil); err == nil || !strings.Contains(err.Error(), "base/5/1: its content has the checksum") {
			t.Errorf("with a damaged page of ours: %v", err)
		}
	}
}

// A mask looks at files of a chain too, each put together, and reads no others.
func TestMaskedChain(t *testing.T) {
	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 1}
	want := chained(g)
	dir := filepath.Join(t.TempDir(), "data")
	p, report, err := fetch(g.store, dir, "LATEST", func(r *restore.Request) { r.Mask = "base/5/1" })
	if err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, "base/5/1"), want["base/5/1"])
	if len(restored(dir)) != 1 || !report.Verified || report.Files != 1 || p.Chain[2].Parts != 1 {
		t.Errorf("%d files, %+v; plan %+v", len(restored(dir)), report, p.Chain)
	}
}
