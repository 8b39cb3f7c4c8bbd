package ribbon_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
	"holdfast/internal/store"
	"holdfast/internal/store/failover"
	"holdfast/internal/store/meter"
	"holdfast/internal/store/storetest"
)

// put stores a document.
func put(t testing.TB, s store.Store, name string, doc any) {
	t.Helper()
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), name, strings.NewReader(string(b))); err != nil {
		t.Fatal(err)
	}
}

// pack stores what compresses to a proper object.
func pack(t testing.TB, s store.Store, name string) {
	t.Helper()
	z := compress.Compress(strings.NewReader("content"), compress.Zstd, compress.Options{})
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), name+".zst", strings.NewReader(string(b))); err != nil {
		t.Fatal(err)
	}
}

// backup stores a backup that starts and ends in segment n of timeline 1.
func backup(t testing.TB, s store.Store, n wal.SegmentNo) string {
	t.Helper()
	start, system := size.Start(n)+0x28, uint64(7)
	finish := start + 0x100
	name := archive.BackupName(size.Name(1, n))
	pack(t, s, archive.Folder(name)+"tar_partitions/part_001.tar")
	pack(t, s, archive.Folder(name)+"tar_partitions/pg_control.tar")
	put(t, s, archive.BackupDir+name+"_backup_stop_sentinel.json", archive.Sentinel{LSN: &start, FinishLSN: &finish, SystemIdentifier: &system,
		Version: 2, SegmentSize: uint64(size), StartTime: day, FinishTime: day})
	return name
}

// small is an archive with two backups, a hole before the second that was accepted, and records of verifications.
func small(t testing.TB, s store.Store) {
	t.Helper()
	for _, n := range []wal.SegmentNo{2, 3, 5, 6, 7} {
		pack(t, s, archive.WALDir+size.Name(1, n))
	}
	first, second := backup(t, s, 2), backup(t, s, 6)
	a := archive.New(s, archive.Options{})
	for _, r := range []struct {
		dir string
		doc any
	}{
		{archive.GapDir, ribbon.Gap{RecordHead: archive.NewRecordHead("dba@db1", ""), Timeline: 1, First: size.Name(1, 4), Last: size.Name(1, 4), Reason: "a disk full"}},
		{archive.VerifiedDir(first), map[string]any{"result": "ok"}},
		{archive.VerifiedDir(second), map[string]any{"result": "ok"}},
		{archive.VerifiedWALDir, map[string]any{"timeline": 1, "first": size.Name(1, 2), "last": size.Name(1, 6)}},
	} {
		if _, err := a.AddRecord(t.Context(), r.dir, "", r.doc); err != nil {
			t.Fatal(err)
		}
	}
}

func judge(t testing.TB, strict, lenient store.Store, o ribbon.Options) ribbon.Ribbon {
	t.Helper()
	o.Now = day.Add(24 * time.Hour)
	in, err := ribbon.Load(t.Context(), archive.New(strict, archive.Options{}), archive.New(lenient, archive.Options{}), o)
	if err != nil {
		t.Fatal(err)
	}
	return ribbon.Compute(in)
}

// lines prints the verdict: a line for each stretch.
func lines(r ribbon.Ribbon) string {
	var b strings.Builder
	for _, s := range r.Main {
		fmt.Fprintf(&b, "%s-%s %s", s.From, s.To, s.Verdict)
		if s.Verified != 0 {
			fmt.Fprintf(&b, " verified %s", s.Verified)
		}
		if len(s.Storages) > 0 {
			fmt.Fprintf(&b, " in %v", s.Storages)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestLoad(t *testing.T) {
	disk := &storetest.Memory{}
	small(t, disk)
	r := judge(t, disk, disk, ribbon.Options{})
	want := "0/2000128-0/4000000 restorable verified 0/4000000\n0/4000000-0/6000128 accepted\n0/6000128-0/8000000 restorable verified 0/7000000\n"
	if lines(r) != want || r.Status != ribbon.OK {
		t.Errorf("%s, %s, got\n%swant\n%s%q", r.Status, r.Verdict, lines(r), want, r.Notes)
	}
}

// What a store is asked for each backup is little: monitoring asks it again and again. It is the sentinel, one listing, a byte of a part, the newest
// record; and the metadata where it is wanted.
func TestLoadAsksLittle(t *testing.T) {
	asked := func(backups int, brief bool) int64 {
		disk := &storetest.Memory{}
		small(t, disk)
		for n := range wal.SegmentNo(backups) {
			pack(t, disk, archive.WALDir+size.Name(1, 8+n))
			name := backup(t, disk, 8+n)
			put(t, disk, archive.Folder(name)+"metadata.json", archive.Metadata{})
			put(t, disk, archive.Folder(name)+"page_sums/part_001.tar.crc32c", "sums")
			for range 3 {
				if _, err := archive.New(disk, archive.Options{}).AddRecord(t.Context(), archive.VerifiedDir(name), "", map[string]any{"result": "ok"}); err != nil {
					t.Fatal(err)
				}
			}
		}
		var c meter.Counters
		if r := judge(t, meter.New(disk, &c), disk, ribbon.Options{Brief: brief}); r.Status != ribbon.OK {
			t.Fatalf("%s: %s %q", r.Status, r.Verdict, r.Notes)
		}
		n := c.Read()
		return n.Open.Calls + n.List.Calls + n.Stat.Calls + n.Put.Calls
	}
	for brief, want := range map[bool]int64{true: 4, false: 5} {
		const backups = 10
		if got := asked(backups, brief) - asked(0, brief); got != backups*want {
			t.Errorf("brief %v: %d more backups cost %d calls, want %d", brief, backups, got, backups*want)
		}
	}
}

// What a listing shows to be missing from a backup, a restore would miss too.
func TestABackupThatLacksAPartIsBroken(t *testing.T) {
	for what, c := range map[string]struct {
		harm func(disk *storetest.Memory, parts string) error
		want string // in the reason; "" for a backup that restores
	}{
		"nothing": {func(*storetest.Memory, string) error { return nil }, ""},
		"a part": {func(disk *storetest.Memory, parts string) error {
			return disk.Delete(t.Context(), parts+"part_002.tar.zst")
		}, "tar_partitions/part_002.tar.zst"},
		"half a part": {func(disk *storetest.Memory, parts string) error {
			return disk.Put(t.Context(), parts+"part_001.tar.zst", strings.NewReader("x"))
		}, "it has 1 bytes of 60"},
		"a part, and what names it": {func(disk *storetest.Memory, parts string) error {
			return errors.Join(disk.Delete(t.Context(), parts+"part_002.tar.zst"), disk.Delete(t.Context(), strings.TrimSuffix(parts, "tar_partitions/")+"objects.json"))
		}, "and 180 were stored"},
		"pg_control": {func(disk *storetest.Memory, parts string) error {
			return disk.Delete(t.Context(), parts+"pg_control.tar.zst")
		}, "pg_control is not there"},
		"nothing, and there is more": {func(disk *storetest.Memory, parts string) error {
			pack(t, disk, parts+"part_009.tar")
			return nil
		}, ""},
	} {
		disk := &storetest.Memory{}
		for n := range wal.SegmentNo(3) {
			pack(t, disk, archive.WALDir+size.Name(1, n+2))
		}
		name := wroteBackup(t, disk, 2)
		if err := c.harm(disk, archive.Folder(name)+"tar_partitions/"); err != nil {
			t.Fatal(err)
		}
		r := judge(t, disk, disk, ribbon.Options{})
		b := r.Backups[0]
		if c.want == "" && (r.Status != ribbon.OK || b.Verdict != ribbon.Restorable) || c.want != "" && (r.Status != ribbon.Failure || !strings.Contains(b.Why, c.want)) {
			t.Errorf("without %s: %s, %s; %s %s; %q", what, r.Status, r.Verdict, b.Verdict, b.Why, r.Notes)
		}
	}
}

// wroteBackup stores a backup of three parts of 60 bytes as Holdfast does, with the list of its objects.
func wroteBackup(t *testing.T, s store.Store, n wal.SegmentNo) string {
	t.Helper()
	start, system := size.Start(n)+0x28, uint64(7)
	finish := start + 0x100
	name := archive.BackupName(size.Name(1, n))
	objects := map[string]archive.Stored{}
	for _, part := range []string{"part_001.tar.zst", "part_002.tar.zst", "pg_control.tar.zst"} {
		z := compress.Compress(strings.NewReader("content"), compress.Zstd, compress.Options{})
		b, err := io.ReadAll(z)
		if err != nil || len(b) > 60 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		z.Close()
		b = append(b, make([]byte, 60-len(b))...) // only the first byte is looked at
		if err := s.Put(t.Context(), archive.Folder(name)+"tar_partitions/"+part, strings.NewReader(string(b))); err != nil {
			t.Fatal(err)
		}
		objects["tar_partitions/"+part] = archive.Stored{Size: 60}
	}
	b, err := json.Marshal(map[string]any{"backup": name, "objects": objects})
	if err != nil {
		t.Fatal(err)
	}
	sealed := fmt.Sprintf(`%s,"HoldfastSeal":"%x"}`, b[:len(b)-1], sha256.Sum256(b))
	if err := s.Put(t.Context(), archive.Folder(name)+"objects.json", strings.NewReader(sealed)); err != nil {
		t.Fatal(err)
	}
	put(t, s, archive.BackupDir+name+"_backup_stop_sentinel.json", archive.Sentinel{LSN: &start, FinishLSN: &finish, SystemIdentifier: &system,
		Version: 2, SegmentSize: uint64(size), StartTime: day, FinishTime: day, Tool: "test", CompressedSize: 180})
	return name
}

// Whichever call of the store fails, nothing is said to be restorable that is not, and all is well only where the failure changed nothing.
func TestLoadFailsToTheSafeSide(t *testing.T) {
	disk := &storetest.Memory{}
	small(t, disk)
	whole := judge(t, disk, disk, ribbon.Options{})
	for _, fail := range []func(store.Store, int) *storetest.Flaky{storetest.FailAt, storetest.FailMidway, storetest.FailAfter} {
		for n := 0; ; n++ {
			flaky := fail(disk, n)
			r := judge(t, flaky, flaky, ribbon.Options{Storages: []string{"default"}})
			if !flaky.Reached() {
				break
			}
			for lsn := wal.LSN(0x2000000); lsn <= 0x9000000; lsn += 0x80 {
				if told(r.Main, lsn) == yes && told(whole.Main, lsn) != yes {
					t.Fatalf("call %d (%s) failed, and %s became restorable:\n%s%s", n, flaky.Calls()[n], lsn, r.Verdict, lines(r))
				}
			}
			if same := r.Verdict == whole.Verdict && lines(r) == lines(whole); r.Status == ribbon.OK && !same || r.Status == ribbon.Failure {
				t.Errorf("call %d (%s) failed: %s, %s\n%s", n, flaky.Calls()[n], r.Status, r.Verdict, lines(r))
			}
		}
	}
}

// Where backup and WAL lie in different storages, both are found, and named. Without one of them nothing is called broken that may lie there.
func TestLoadOfSeveralStorages(t *testing.T) {
	near, far := &storetest.Memory{}, &storetest.Memory{}
	backup(t, near, 2)
	for n := wal.SegmentNo(2); n <= 6; n++ {
		s := near
		if n == 4 {
			s = far
		}
		pack(t, s, archive.WALDir+size.Name(1, n))
	}
	open := func(members ...failover.Member) (strict, lenient store.Store) {
		s, err := failover.New(members, failover.Options{NoCheck: true})
		if err != nil {
			t.Fatal(err)
		}
		return s.Union(), s.Alive()
	}
	o := ribbon.Options{Storages: []string{"default", "far"}}
	strict, lenient := open(failover.Member{Name: "default", Store: near}, failover.Member{Name: "far", Store: far})
	if r := judge(t, strict, lenient, o); r.Status != ribbon.OK || lines(r) != "0/2000128-0/7000000 restorable in [default far]\n" {
		t.Errorf("%s, %s\n%s", r.Status, r.Verdict, lines(r))
	}
	strict, lenient = open(failover.Member{Name: "default", Store: near}, failover.Member{Name: "far", Store: dead{far}})
	r := judge(t, strict, lenient, o)
	want := "0/2000128-0/4000000 restorable in [default]\n0/4000000-0/7000000 unknown\n"
	if r.Status != ribbon.Warning || lines(r) != want || !strings.Contains(strings.Join(r.Notes, "\n"), "storage far did not answer") {
		t.Errorf("%s, %s\n%swant\n%s%q", r.Status, r.Verdict, lines(r), want, r.Notes)
	}
	strict, lenient = open(failover.Member{Name: "default", Store: near})
	if r := judge(t, strict, lenient, o); r.Status != ribbon.Failure || r.Until.LSN != 0x4000000 {
		t.Errorf("%s, %s\n%s", r.Status, r.Verdict, lines(r))
	}
	strict, lenient = open(failover.Member{Name: "default", Store: dead{near}}, failover.Member{Name: "far", Store: dead{far}})
	if r := judge(t, strict, lenient, o); r.Status != ribbon.Warning || r.Until != nil || !strings.HasPrefix(r.Verdict, "Not known to be restorable: storage default did not answer") {
		t.Errorf("%s, %s\n%s", r.Status, r.Verdict, lines(r))
	}
}

// dead is a store that nobody reaches.
type dead struct{ store.Store }

var errDead = errors.New("connection refused")

func (dead) Open(context.Context, string) (io.ReadCloser, error) { return nil, errDead }
func (dead) Stat(context.Context, string) (store.Object, error)  { return store.Object{}, errDead }
func (dead) OpenRange(context.Context, string, int64, int64) (io.ReadCloser, error) {
	return nil, errDead
}
func (dead) List(context.Context, string, string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) { yield(store.Object{}, errDead) }
}

// Records decide as they were written: the newest that speaks of something counts, and none speaks of what was stored after it.
func TestRecordsOfVerification(t *testing.T) {
	record := func(doc string) func(t *testing.T, m store.Store, dir string) {
		return func(t *testing.T, m store.Store, dir string) {
			if _, err := archive.New(m, archive.Options{}).AddRecord(t.Context(), dir, "", json.RawMessage(doc)); err != nil {
				t.Fatal(err)
			}
		}
	}
	name := archive.BackupName(size.Name(1, 2))
	ok, damaged := record(`{"result":"ok"}`), record(`{"result":"damaged","objects":[{"name":"x/part_001.tar.zst","problem":"frame 3 is damaged"}]}`)
	mended := record(`{"result":"incomplete","objects":[{"name":"x/part_001.tar.zst"}]}`)
	for _, c := range []struct {
		what     string
		of       []func(t *testing.T, m store.Store, dir string)
		verdict  ribbon.Verdict
		verified bool
	}{
		{"nothing", nil, ribbon.Restorable, false},
		{"ok", []func(*testing.T, store.Store, string){ok}, ribbon.Restorable, true},
		{"damaged", []func(*testing.T, store.Store, string){damaged}, ribbon.Broken, false},
		{"ok, then damaged", []func(*testing.T, store.Store, string){ok, damaged}, ribbon.Broken, false},
		{"damaged, then ok", []func(*testing.T, store.Store, string){damaged, ok}, ribbon.Restorable, true},
		{"damaged, and that object is good now", []func(*testing.T, store.Store, string){damaged, mended}, ribbon.Restorable, false},
		{"ok, then a part of it", []func(*testing.T, store.Store, string){ok, mended}, ribbon.Restorable, true},
		{"damaged, without saying what", []func(*testing.T, store.Store, string){record(`{"result":"damaged"}`)}, ribbon.Broken, false},
		{"a sample", []func(*testing.T, store.Store, string){record(`{"result":"ok","sample":0.01}`)}, ribbon.Restorable, false},
		{"another backup of that name", []func(*testing.T, store.Store, string){record(`{"result":"damaged","sentinel_sha256":"abcd"}`)}, ribbon.Restorable, false},
	} {
		m := &storetest.Memory{}
		backup(t, m, 2)
		pack(t, m, archive.WALDir+size.Name(1, 2))
		for _, put := range c.of {
			put(t, m, archive.VerifiedDir(name))
		}
		r := judge(t, m, m, ribbon.Options{})
		if b := r.Backups[0]; b.Verdict != c.verdict || b.Verified.IsZero() == c.verified {
			t.Errorf("%s: %+v, want %s, verified %t", c.what, b, c.verdict, c.verified)
		}
	}
	const of = `{"backup":%q,"sentinel_sha256":%q,"ok":%t}`
	for _, c := range []struct {
		what     string
		ok, last bool // what the two newest records say
		sum      string
		verdict  ribbon.Verdict
		proven   bool
	}{
		{"it came up", false, true, "", ribbon.Restorable, true},
		{"it did not come up", true, false, "", ribbon.Unknown, false},
		{"another backup of that name did not come up", true, false, strings.Repeat("0", 64), ribbon.Restorable, true},
		{"another backup of that name came up", false, true, strings.Repeat("0", 64), ribbon.Unknown, false},
	} {
		m := &storetest.Memory{}
		backup(t, m, 2)
		pack(t, m, archive.WALDir+size.Name(1, 2))
		s, err := archive.New(m, archive.Options{}).Sentinel(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		record(fmt.Sprintf(of, name, s.Sum, c.ok))(t, m, archive.ProvenDir(name))
		time.Sleep(time.Millisecond) // names are of microseconds
		record(fmt.Sprintf(of, name, cmp.Or(c.sum, s.Sum), c.last))(t, m, archive.ProvenDir(name))
		r := judge(t, m, m, ribbon.Options{})
		told := slices.ContainsFunc(r.Notes, func(n string) bool {
			return strings.Contains(n, "does not count as proof: it is of another backup of that name")
		})
		if b := r.Backups[0]; b.Verdict != c.verdict || b.Proven.IsZero() == c.proven || told != (c.sum != "") {
			t.Errorf("%s: %+v, notes %q", c.what, b, r.Notes)
		}
	}
	m := &storetest.Memory{}
	backup(t, m, 2)
	for n := wal.SegmentNo(2); n < 6; n++ {
		pack(t, m, archive.WALDir+size.Name(1, n))
	}
	doc := `{"timeline":1,"first":"000000010000000000000002","last":"000000010000000000000005","problems":[{"segment":"000000010000000000000004","kind":%q,"text":"wrong checksum"}]}`
	for kind, want := range map[string]string{
		"content": "0/2000128-0/4000000 restorable\n0/4000000-0/6000000 broken\n",
		"key":     "0/2000128-0/6000000 restorable\n", // it says nothing of the content
	} {
		record(fmt.Sprintf(doc, kind))(t, m, archive.VerifiedWALDir)
		if r := judge(t, m, m, ribbon.Options{}); lines(r) != want {
			t.Errorf("%s: got\n%swant\n%s", kind, lines(r), want)
		}
		if r := judge(t, m, m, ribbon.Options{ProvenOnly: true}); strings.Contains(lines(r), "restorable") {
			t.Errorf("the backup was not verified, and yet\n%s", lines(r))
		}
		for r := range archive.Records[any](t.Context(), archive.New(m, archive.Options{}), archive.VerifiedWALDir) {
			if err := m.Delete(t.Context(), r.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A record that cannot be read is told, for the verdict may depend on it.
func TestBadRecordsAreTold(t *testing.T) {
	for _, dir := range []string{archive.GapDir, archive.VerifiedWALDir, archive.TombstoneDir, archive.VerifiedDir(archive.BackupName(size.Name(1, 2)))} {
		m := &storetest.Memory{}
		small(t, m)
		if err := m.Put(t.Context(), dir+"x.json", strings.NewReader("damaged")); err != nil {
			t.Fatal(err)
		}
		if r := judge(t, m, m, ribbon.Options{}); r.Status == ribbon.OK || !strings.Contains(strings.Join(r.Notes, "\n"), dir+"x.json") {
			t.Errorf("%s: %s, %q", dir, r.Status, r.Notes)
		}
	}
}

// What may be accepted as lost is lost.
func TestCheckLost(t *testing.T) {
	m := &storetest.Memory{}
	small(t, m)
	pack(t, m, archive.WALDir+size.Name(1, 0xA))
	a := archive.New(m, archive.Options{})
	in, err := ribbon.Load(t.Context(), a, a, ribbon.Options{})
	if err != nil {
		t.Fatal(err)
	}
	in.Checked = append(in.Checked, ribbon.Checked{When: time.Now().Add(time.Hour), Timeline: 1, First: 7, Last: 7, Problem: "damaged"})
	in.Catalog.Histories[2] = []catalog.Branch{{Timeline: 1, Switch: size.Start(0xC)}}
	for _, c := range []struct {
		first, last wal.SegmentNo
		lost        bool
	}{
		{4, 4, true}, {8, 9, true}, {7, 9, true}, {7, 7, true}, {3, 4, false}, {4, 5, false}, {8, 0xA, false}, {0xB, 0xB, false}, {9, 8, false}, {0x100000, 0x100000, false},
	} {
		err := in.CheckLost(size.Name(1, c.first), size.Name(1, c.last))
		if (err == nil) != c.lost {
			t.Errorf("%d to %d: %v", c.first, c.last, err)
		}
	}
	if in.CheckLost(size.Name(1, 4), size.Name(2, 4)) == nil || in.CheckLost("x", "y") == nil || in.CheckLost(size.Name(1, 4), "") == nil {
		t.Error("what is no stretch was accepted")
	}
	in.WAL.Timelines = append(in.WAL.Timelines, catalog.TimelineWAL{Timeline: 2, Runs: []catalog.Run{{First: 0xC, Last: 0xC}}})
	if err := in.CheckLost(size.Name(1, 0xB), size.Name(1, 0xB)); err != nil {
		t.Errorf("the next timeline has WAL behind it: %v", err)
	}
}

// An accepted hole that was taken back is one no more.
func TestRevokedGaps(t *testing.T) {
	m := &storetest.Memory{}
	small(t, m)
	a := archive.New(m, archive.Options{})
	in, err := ribbon.Load(t.Context(), a, a, ribbon.Options{})
	if err != nil || len(in.Gaps) != 1 || in.Gaps[0].Reason != "a disk full" || in.Gaps[0].By != "dba@db1" || in.Gaps[0].First != size.Name(1, 4) {
		t.Fatalf("%+v, %v", in.Gaps, err)
	}
	g := in.Gaps[0]
	g.Revoked = true
	if _, err := a.AddRecord(t.Context(), archive.GapDir, "", g); err != nil {
		t.Fatal(err)
	}
	if r := judge(t, m, m, ribbon.Options{}); r.Status != ribbon.Warning || strings.Contains(lines(r), "accepted") {
		t.Errorf("%s\n%s", r.Status, lines(r))
	}
}

// A hole that retention made behind a backup that stays is intended: it is named so, and is no reason to worry. A loss within it that somebody has accepted is told.
func TestRemovedByRetention(t *testing.T) {
	m := &storetest.Memory{}
	for _, n := range []wal.SegmentNo{2, 8, 9} {
		pack(t, m, archive.WALDir+size.Name(1, n))
	}
	backup(t, m, 2)
	backup(t, m, 8)
	a := archive.New(m, archive.Options{})
	note := func(first, last wal.SegmentNo, removed bool) {
		if _, err := a.AddRecord(t.Context(), archive.GapDir, "", ribbon.Gap{RecordHead: archive.NewRecordHead("dba@db1", ""), Timeline: 1,
			First: size.Name(1, first), Last: size.Name(1, last), Reason: "why", Removed: removed}); err != nil {
			t.Fatal(err)
		}
	}
	note(3, 6, true)
	if r := judge(t, m, m, ribbon.Options{}); r.Status != ribbon.Warning || len(r.Main) != 3 || r.Main[1].Verdict != ribbon.Broken {
		t.Errorf("one segment more is missing: %s, %+v", r.Status, r.Main)
	}
	note(3, 7, true)
	r := judge(t, m, m, ribbon.Options{})
	if s := r.Main[1]; r.Status != ribbon.OK || s.Verdict != ribbon.Accepted || !s.Removed || !strings.HasSuffix(s.Why, "(and 4 more) is missing: retention removed it, as nothing that stays needs it") {
		t.Errorf("%s, %+v", r.Status, s)
	}
	if fmt.Sprint(r.Notes) != "[a stretch between older backups is not restorable, as is intended: retention removed its WAL]" {
		t.Errorf("%q", r.Notes)
	}
	note(5, 5, false)
	r = judge(t, m, m, ribbon.Options{})
	if s := r.Main[1]; r.Status != ribbon.OK || s.Removed || !strings.HasSuffix(s.Why, "which dba@db1 has accepted: why") || len(r.Notes) != 1 {
		t.Errorf("%s, %+v, %q", r.Status, s, r.Notes)
	}
}

// The last segment that can be named is not taken for the first.
func TestEndOfTheLog(t *testing.T) {
	m := &storetest.Memory{}
	last := wal.SegmentNo(1<<40 - 1)
	pack(t, m, archive.WALDir+size.Name(1, 2))
	pack(t, m, archive.WALDir+size.Name(1, last-1))
	pack(t, m, archive.WALDir+size.Name(1, last))
	backup(t, m, 2)
	want := "0/2000128-0/3000000 restorable\n0/3000000-FFFFFFFF/FFFFFFFF broken\n"
	if r := judge(t, m, m, ribbon.Options{}); lines(r) != want || r.Main[1].Segments != uint64(last)-4 {
		t.Errorf("got\n%swant\n%s%+v", lines(r), want, r.Main)
	}
	backup(t, m, last-1)
	want = "0/2000128-0/3000000 restorable\n0/3000000-FFFFFFFF/FE000128 broken\nFFFFFFFF/FE000128-FFFFFFFF/FFFFFFFF restorable\n"
	if r := judge(t, m, m, ribbon.Options{}); lines(r) != want {
		t.Errorf("got\n%swant\n%s", lines(r), want)
	}
}

// What Compute gives is the same each time, and can be written as JSON.
func TestComputeIsPure(t *testing.T) {
	m := &storetest.Memory{}
	small(t, m)
	a := archive.New(m, archive.Options{})
	in, err := ribbon.Load(t.Context(), a, a, ribbon.Options{Now: day})
	if err != nil {
		t.Fatal(err)
	}
	one, two := ribbon.Compute(in), ribbon.Compute(in)
	if !reflect.DeepEqual(one, two) {
		t.Errorf("got %+v, then %+v", one, two)
	}
	b, err := json.Marshal(one)
	for _, want := range []string{`"status":"OK"`, `"restorable_until":{"timeline":1,"lsn":"0/8000000"`, `"from_lsn":"0/4000000","to_lsn":"0/6000128"`,
		`"verdict":"accepted"`, `"first_segment":"000000010000000000000004"`, `"verified_until_lsn":"0/7000000"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%v: no %s in %s", err, want, b)
		}
	}
}

// The server says which timeline the verdict is about; where nothing of that is archived the verdict is about the archive, and says so.
func TestTheServerIsAsked(t *testing.T) {
	m := &storetest.Memory{}
	small(t, m)
	if err := m.Put(t.Context(), archive.WALDir+"00000002.history", strings.NewReader("1\t0/7000100\tno recovery target specified\n")); err != nil {
		t.Fatal(err)
	}
	pack(t, m, archive.WALDir+size.Name(2, 7))
	for server, want := range map[wal.Timeline]string{
		0: "2 OK [not", 2: "2 OK [not", 1: "1 WARNING [timeline 2 leads elsewhere",
		3: "2 WARNING [the server is on timeline 3, of which nothing is archived",
	} {
		r := judge(t, m, m, ribbon.Options{Evidence: catalog.Evidence{Server: server}})
		if got := fmt.Sprint(r.Timeline, r.Status, r.Notes); !strings.HasPrefix(got, want) {
			t.Errorf("the server is on %d: %s, want %s; %s", server, got, want, r.Verdict)
		}
	}
}
