package describe_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/describe"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

const segmentSize = wal.SegmentSize(16 << 20)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func put(t testing.TB, s *storetest.Memory, name, body string) {
	t.Helper()
	if err := s.Put(context.Background(), name, strings.NewReader(body)); err != nil {
		t.Fatal(err)
	}
}

// tape returns a tar stream of files of zeros, and what a manifest says of them.
func tape(t testing.TB, sizes map[string]int64) (io.Reader, []tarpart.Member) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var members []tarpart.Member
	for name, size := range sizes {
		if err := w.WriteHeader(&tar.Header{Name: "/" + name, Size: size, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		m := tarpart.Member{Path: name, Size: size, Mode: 0o600}
		if size%page.Size == 0 && strings.HasPrefix(name, "base/") {
			m.Pages = uint32(size / page.Size)
		}
		members = append(members, m)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b, members
}

// world is an archive with one backup, from the second segment to the third, on timeline 1.
func world(t testing.TB) (*storetest.Memory, *archive.Archive, string) {
	t.Helper()
	ctx := context.Background()
	disk := &storetest.Memory{}
	a := archive.New(disk, archive.Options{})
	lsn, finish, id := segmentSize.Start(2)+40, segmentSize.Start(3)+400, uint64(7)
	name := archive.BackupName(segmentSize.Name(1, 2))
	d, err := a.Begin(ctx, name, "db1")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		base  string
		sizes map[string]int64
	}{
		{d.NextPart(), map[string]int64{"base/5/16384": 5 * page.Size, "base/5/16384_fsm": 3 * page.Size, "base/5/16384_vm": page.Size, "base/1/2619": page.Size,
			"global/1262": page.Size, "pg_xact/0000": 100, "postgresql.conf": 50}},
		{d.NextPart(), map[string]int64{"pg_tblspc/16400/PG_15_202209061/5/16401": 2 * page.Size, "PG_VERSION": 3}},
		{archive.ControlPart, nil},
		{archive.LabelPart, map[string]int64{"backup_label": 200}},
	} {
		stream, members := tape(t, p.sizes)
		if err := d.PutPart(ctx, p.base, stream, func() []tarpart.Member { return members }); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 11, 20, 2, 0, 0, 0, time.UTC)
	err = d.Commit(ctx, &archive.Sentinel{LSN: &lsn, FinishLSN: &finish, PgVersion: 150004, SystemIdentifier: &id, StartTime: at, FinishTime: at.Add(time.Hour), Hostname: "db1",
		DataDir: "/data", Tool: "1.0", UserData: []byte(`{"a":1}`), SegmentSize: uint64(segmentSize),
		Spec: &archive.TablespaceSpec{BasePrefix: "/data", Tablespaces: []archive.Tablespace{{OID: "16400", Location: "/fast", Link: "pg_tblspc/16400"}}}})
	if err != nil {
		t.Fatal(err)
	}
	for n := wal.SegmentNo(2); n <= 5; n++ {
		put(t, disk, "wal_005/"+segmentSize.Name(1, n), "x")
	}
	return disk, a, name
}

func show(t testing.TB, a *archive.Archive, name string) *describe.Report {
	t.Helper()
	in, err := ribbon.Load(context.Background(), a, a, ribbon.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	r, err := describe.Backup(context.Background(), a, &in, name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What is in a whole backup is told, to the byte.
func TestBackup(t *testing.T) {
	_, a, name := world(t)
	r := show(t, a, "LATEST")
	if r.Name != name || r.Kind != "full" || r.Tool != "Holdfast 1.0" || r.Host != "db1" || len(r.Chain) != 1 || string(r.UserData) != `{"a":1}` || len(r.Problems) != 0 {
		t.Errorf("%+v", r)
	}
	c := r.Contents
	if c.Source != "manifest" || c.Files != 9 || c.Bytes != 13*page.Size+153 || c.Held != c.Bytes || c.Whole != 9 || len(c.Largest) != 9 || c.Largest[0].Path != "base/5/16384" {
		t.Errorf("%+v", c)
	}
	if want := "[{tables and indexes 4 73728} {free space maps 1 24576} {visibility maps 1 8192} {transaction status 1 100} {configuration 1 50} {other files 1 3}]"; fmt.Sprint(c.Kinds) != want {
		t.Errorf("kinds %v, want %s", c.Kinds, want)
	}
	if want := "[{5 4 90112} {1 1 8192} {shared 1 8192}]"; fmt.Sprint(c.Databases) != want {
		t.Errorf("databases %v, want %s", c.Databases, want)
	}
	if want := "[{16400 /fast 1 16384}]"; fmt.Sprint(c.Tablespaces) != want {
		t.Errorf("tablespaces %v", c.Tablespaces)
	}
	o := r.Objects
	if len(o.Parts) != 4 || o.Parts[0].Members != 7 || o.Parts[0].Contents != 11*page.Size+150 || o.Parts[3].Name != "backup_label.tar.zst" || o.Encryption != nil ||
		!slices.Equal(o.Compression, []string{"zstd"}) || o.Count != 8 {
		t.Errorf("%+v", o)
	}
	w := r.WAL
	if w.First != segmentSize.Name(1, 2) || w.Needed != segmentSize.Name(1, 3) || w.Segments != 2 || w.Lacks != 0 || w.Verdict != ribbon.Restorable || w.Replay != uint64(4*segmentSize)-40 {
		t.Errorf("%+v", w)
	}
	if k := r.Cost; !k.Exact || k.Parts != 4 || k.Disk != c.Bytes || k.ReplayCount != 4 || k.Fetch == 0 || k.Fetch >= o.Bytes {
		t.Errorf("%+v", k)
	}
}

// What is missing or damaged is among the problems, and all else is told.
func TestBackupWithDamage(t *testing.T) {
	for _, c := range []struct {
		what   string
		damage func(disk *storetest.Memory, folder string)
		says   string // one of the problems
		source string
	}{
		{"a part is missing", func(d *storetest.Memory, f string) {
			_ = d.Delete(context.Background(), f+"tar_partitions/part_002.tar.zst")
		}, "part_002.tar.zst is missing", "manifest"},
		{"a part is short", func(d *storetest.Memory, f string) { put(t, d, f+"tar_partitions/part_002.tar.zst", "x") }, "has 1 bytes, and was stored with", "manifest"},
		{"the manifest is missing", func(d *storetest.Memory, f string) { _ = d.Delete(context.Background(), f+"manifest.json.zst") }, "its manifest: ", "list of files"},
		{"the manifest is damaged", func(d *storetest.Memory, f string) { put(t, d, f+"manifest.json.zst", "x") }, "its manifest: ", "list of files"},
		{"metadata is damaged", func(d *storetest.Memory, f string) { put(t, d, f+"metadata.json", "x") }, "its documents: ", "manifest"},
		{"the control file is damaged", func(d *storetest.Memory, f string) { put(t, d, f+"tar_partitions/pg_control.tar.zst", "x") }, "the control file: ", "manifest"},
		{"all parts are missing", func(d *storetest.Memory, f string) {
			for _, p := range []string{"part_001", "part_002", "pg_control", "backup_label"} {
				_ = d.Delete(context.Background(), f+"tar_partitions/"+p+".tar.zst")
			}
		}, "none of its parts is there", "manifest"},
	} {
		disk, a, name := world(t)
		c.damage(disk, archive.Folder(name))
		r := show(t, a, name)
		if !slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, c.says) }) || r.Contents.Source != c.source || r.Contents.Files != 9 {
			t.Errorf("%s: %q, contents by %q, %d files", c.what, r.Problems, r.Contents.Source, r.Contents.Files)
		}
	}
	disk, a, name := world(t)
	put(t, disk, "basebackups_005/"+name+"_backup_stop_sentinel.json", "{")
	if r := show(t, a, name); len(r.Problems) == 0 || len(r.Objects.Parts) != 4 || r.Kind != "full" {
		t.Errorf("without a sentinel: %+v", r)
	}
}

// WAL that is missing is named; records tell what is known, what holds the backup and what lets it go.
func TestBackupRecords(t *testing.T) {
	disk, a, name := world(t)
	if err := disk.Delete(t.Context(), "wal_005/"+segmentSize.Name(1, 3)); err != nil {
		t.Fatal(err)
	}
	head := archive.NewRecordHead("ann@db1", "1.0")
	sentinel, err := a.Sentinel(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for dir, doc := range map[string]any{
		archive.TombstoneDir:      archive.Tombstone{RecordHead: head, Backups: []string{name}, PurgeAfter: now.Add(time.Hour), Request: "delete target"},
		archive.HoldDir:           archive.Hold{RecordHead: head, Backup: name, Reason: "case 17"},
		archive.VerifiedDir(name): map[string]any{"at": now, "by": "bob@db1", "version": "1.1", "backup": name, "result": "ok"},
		archive.ProvenDir(name):   map[string]any{"at": now.Add(time.Minute), "by": "drill@db1", "version": "1.2", "ok": true, "backup": name, "sentinel_sha256": sentinel.Sum},
	} {
		if _, err := a.AddRecord(t.Context(), dir, "", doc); err != nil {
			t.Fatal(err)
		}
	}
	put(t, disk, archive.ProvenDir(name)+"20000101T000000.000000Z-x.json", `{"ok":true,"at":"2000-01-01T00:00:00Z"}`)
	r := show(t, a, name)
	if w := r.WAL; w.Lacks != 1 || !slices.Equal(w.Missing, []string{segmentSize.Name(1, 3)}) || w.Verdict != ribbon.Broken || w.Why == "" {
		t.Errorf("%+v", w)
	}
	// A position that makes no sense costs no time.
	const far = `"FinishLSN":9223372036854775808`
	object := "basebackups_005/" + name + "_backup_stop_sentinel.json"
	doc, err := store.ReadFile(t.Context(), disk, object, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	put(t, disk, object, regexp.MustCompile(`"FinishLSN":\d+`).ReplaceAllString(string(doc), far))
	if w := show(t, a, name).WAL; w.Lacks < 1<<38 || len(w.Missing) != 10 {
		t.Errorf("%+v", w)
	}
	put(t, disk, object, string(doc))
	if c := r.Condemned; c == nil || c.By != "ann@db1" || c.Request != "delete target" {
		t.Errorf("%+v", c)
	}
	if len(r.Holds) != 1 || r.Holds[0].Reason != "case 17" {
		t.Errorf("%+v", r.Holds)
	}
	p := r.Proofs
	if p.Verified.IsZero() || p.Proven.IsZero() || len(p.Records) != 3 || p.Records[0].Result != "does not count: it is of another backup, \"\"" ||
		p.Records[1].What != "verify" || p.Records[1].Result != "ok" || p.Records[2].By != "drill@db1" || p.Records[2].Result != "ok" {
		t.Errorf("%+v", p)
	}
}

// A pattern is of the whole path, or of the last element where it has no slash.
func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"*", "base/5/16384", true}, {"16384*", "base/5/16384_fsm", true}, {"base/5/*", "base/5/16384", true}, {"/base/5/*", "base/5/16384", true},
		{"base/*", "base/5/16384", false}, {"1638", "base/5/16384", false}, {"PG_VERSION", "PG_VERSION", true}, {"PG_VERSION", "base/5/PG_VERSION", true},
	} {
		if got, err := describe.Matches(c.pattern, c.path); err != nil || got != c.want {
			t.Errorf("%s of %s: %v, %v", c.pattern, c.path, got, err)
		}
	}
	if _, err := describe.Matches("[", "x"); err == nil {
		t.Error("a bad pattern is taken")
	}
}
