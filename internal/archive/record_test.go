package archive_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// finding is a record as commands write them.
type finding struct {
	archive.RecordHead
	N int `json:"n"`
}

// all reads a directory of records; bad are those that could not be read.
func all(t *testing.T, a *archive.Archive, dir string) (found []int, bad []string) {
	t.Helper()
	for r, err := range archive.Records[finding](t.Context(), a, dir) {
		switch {
		case err == nil:
			found = append(found, r.Doc.N)
		case r.Name == "":
			t.Fatal(err)
		default:
			if !strings.Contains(err.Error(), r.Name) || r.Doc != (finding{}) {
				t.Errorf("%+v comes with the error %v", r, err)
			}
			bad = append(bad, r.Name)
		}
	}
	return found, bad
}

// Records come back in the order they were added, from every directory that may have some.
func TestRecordsInOrder(t *testing.T) {
	const backup = "base_000000010000000000000003"
	for _, dir := range []string{archive.GapDir, archive.QuarantineDir, archive.TombstoneDir, archive.HoldDir, archive.VerifiedWALDir,
		archive.WatermarkDir, archive.VerifiedDir(backup), archive.ProvenDir(backup)} {
		a := archive.New(&storetest.Memory{}, archive.Options{})
		var want []int
		var names []string
		for n := range 40 { // more than are read at once
			doc := finding{archive.NewRecordHead("", "1.2"), n}
			name, err := a.AddRecord(t.Context(), dir, fmt.Sprintf("%03d-x", n), doc)
			if err != nil {
				t.Fatal(err)
			}
			want, names = append(want, n), append(names, name)
		}
		if found, bad := all(t, a, dir); !slices.Equal(found, want) || bad != nil || !slices.IsSorted(names) {
			t.Errorf("%s: got %v, bad %v, want %v; names %v", dir, found, bad, want, names)
		}
		if err := a.RemoveRecord(t.Context(), names[7]); err != nil {
			t.Fatal(err)
		}
		if err := a.RemoveRecord(t.Context(), names[7]); err != nil {
			t.Errorf("removed again: %v", err)
		}
		if found, _ := all(t, a, dir); !slices.Equal(found, slices.Delete(want, 7, 8)) {
			t.Errorf("%s: after one was removed: %v", dir, found)
		}
	}
}

// A record keeps what was said, by whom and when, under a name that begins with its time, never encrypted.
func TestRecordKeepsItsHead(t *testing.T) {
	disk := &storetest.Memory{}
	a := archive.New(disk, archive.Options{Key: sodiumKey(t)})
	head := archive.NewRecordHead("dba@db1", "1.2")
	name, err := a.AddRecord(t.Context(), archive.HoldDir, "", finding{head, 5})
	if err != nil {
		t.Fatal(err)
	}
	rest := strings.TrimPrefix(name, archive.HoldDir)
	if at, err := time.Parse("20060102T150405.000000Z", rest[:strings.Index(rest, "-")]); err != nil || at.Sub(head.At).Abs() > time.Minute {
		t.Errorf("%s is not named after %s: %v", name, head.At, err)
	}
	if at, ok := archive.RecordTime(name); !ok || at.Sub(head.At).Abs() > time.Minute {
		t.Errorf("%s is of %s (%t)", name, at, ok)
	}
	for _, other := range []string{"", "x-y.json", archive.HoldDir, archive.HoldDir + "20260102T030405Z-x.json"} {
		if at, ok := archive.RecordTime(other); ok {
			t.Errorf("%q is of %s", other, at)
		}
	}
	b, err := store.ReadFile(t.Context(), disk, name, 1000)
	want := fmt.Sprintf(`{"at":%q,"by":"dba@db1","version":"1.2","n":5}`, head.At.Format(time.RFC3339Nano))
	if err != nil || string(b) != want {
		t.Errorf("stored %s, %v, want %s", b, err, want)
	}
	for r, err := range archive.Records[finding](t.Context(), a, archive.HoldDir) {
		if err != nil || r.Name != name || r.Doc.RecordHead != head || r.Modified.IsZero() {
			t.Errorf("read %+v, %v", r, err)
		}
	}
	if by := archive.NewRecordHead("", "1.2").By; strings.Count(by, "@") != 1 || strings.HasPrefix(by, "@") || strings.HasSuffix(by, "@") {
		t.Errorf("written by %q", by)
	}
}

// A record that cannot be read hides no other, and is not taken for none.
func TestBadRecordsAreNamed(t *testing.T) {
	disk := &storetest.Memory{}
	a := archive.New(disk, archive.Options{})
	if _, err := a.AddRecord(t.Context(), archive.GapDir, "", finding{N: 1}); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"a.json": "", "b.json": "null", "c.json": "[]", "d.json": `{"n":"x"}`, "e.json": `{"n":1}{`, "f.json": `{"n":7`,
		"g.json": `{"n":` + strings.Repeat(" ", 8<<20) + `1}`,
	} {
		if err := disk.Put(t.Context(), archive.GapDir+name, strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []string{"h.txt", "i.json/j.json"} {
		if err := disk.Put(t.Context(), archive.GapDir+other, strings.NewReader("no record")); err != nil {
			t.Fatal(err)
		}
	}
	found, bad := all(t, a, archive.GapDir)
	if !slices.Equal(found, []int{1}) || len(bad) != 7 {
		t.Errorf("found %v, bad %v", found, bad)
	}
}

// What is no record, and what lies elsewhere, is reached by nothing here.
func TestRecordsStayAmongRecords(t *testing.T) {
	a := archive.New(&storetest.Memory{}, archive.Options{})
	for _, dir := range []string{"", "holdfast/", "holdfast/gaps", "holdfast/../wal_005/", "wal_005/", "basebackups_005/", "holdfast/summaries/00000001/",
		"basebackups_005/base_000000010000000000000003/", "basebackups_005/base_000000010000000000000003/tar_partitions/",
		"basebackups_005/x/verified/", "/holdfast/gaps/", "basebackups_005/../verified/"} {
		if _, err := a.AddRecord(t.Context(), dir, "", finding{}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("AddRecord(%q): %v", dir, err)
		}
		if err := a.RemoveRecord(t.Context(), dir+"20060102T150405.000000Z-x.json"); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("RemoveRecord(%q): %v", dir, err)
		}
		for r, err := range archive.Records[finding](t.Context(), a, dir) {
			if r.Name != "" || !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("Records(%q): %+v, %v", dir, r, err)
			}
		}
	}
	if err := a.RemoveRecord(t.Context(), archive.GapDir+"x"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("removed what is no record: %v", err)
	}
	for _, id := range []string{"A", "a b", "ä", "a/b", "..", strings.Repeat("a", 41)} {
		if _, err := a.AddRecord(t.Context(), archive.GapDir, id, finding{}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	for _, doc := range []any{nil, 1, []int{1}, "x", map[string]string{"x": strings.Repeat("y", 8<<20)}} {
		if _, err := a.AddRecord(t.Context(), archive.GapDir, "", doc); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("a %T: %v", doc, err)
		}
	}
	if _, err := a.AddRecord(t.Context(), archive.GapDir, "", func() {}); err == nil {
		t.Error("a function was stored")
	}
	if found, bad := all(t, a, archive.GapDir); found != nil || bad != nil {
		t.Errorf("stored all the same: %v, %v", found, bad)
	}
}

// Whichever call of the store fails, it is said; and that the answer to a put got lost is no failure.
func TestRecordsFailWhole(t *testing.T) {
	disk := &storetest.Memory{}
	for n := range 3 {
		if _, err := archive.New(disk, archive.Options{}).AddRecord(t.Context(), archive.GapDir, "", finding{N: n}); err != nil {
			t.Fatal(err)
		}
	}
	for n := 0; ; n++ {
		flaky := storetest.FailAt(disk, n)
		var failed error
		count := 0
		for _, err := range archive.Records[finding](t.Context(), archive.New(flaky, archive.Options{}), archive.GapDir) {
			failed = errors.Join(failed, err)
			count++
		}
		if !flaky.Reached() {
			if n != 4 {
				t.Errorf("%d calls", n)
			}
			break
		}
		if !errors.Is(failed, storetest.ErrInjected) || n > 0 && count != 3 {
			t.Errorf("call %d failed, Records yielded %d and %v", n, count, failed)
		}
	}
	lost := storetest.FailAfter(disk, 0)
	if _, err := archive.New(lost, archive.Options{}).AddRecord(t.Context(), archive.GapDir, "", finding{}); !errors.Is(err, storetest.ErrInjected) {
		t.Errorf("the answer was lost, and none said so: %v", err)
	}
}

// Whatever a store holds, reading ends, and what is read can be written.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"at":"2026-01-02T03:04:05Z","by":"a@b","version":"1","n":3}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`null`))
	f.Add([]byte(` {"n":1}{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		disk := &storetest.Memory{}
		if err := disk.Put(t.Context(), archive.GapDir+"x.json", bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		a := archive.New(disk, archive.Options{})
		for r, err := range archive.Records[finding](t.Context(), a, archive.GapDir) {
			if err != nil {
				continue
			}
			if _, err := a.AddRecord(t.Context(), archive.HoldDir, "", r.Doc); err != nil {
				t.Errorf("%s is read as %+v, which cannot be written: %v", b, r.Doc, err)
			}
			for again, err := range archive.Records[finding](t.Context(), a, archive.HoldDir) {
				if err != nil || !again.Doc.At.Equal(r.Doc.At) || again.Doc.By != r.Doc.By || again.Doc.N != r.Doc.N {
					t.Errorf("%+v comes back as %+v, %v", r.Doc, again.Doc, err)
				}
			}
		}
	})
}
