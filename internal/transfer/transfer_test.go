package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
	"holdfast/internal/transfer"
)

const (
	segmentSize = wal.SegmentSize(16 << 20)
	cluster     = uint64(7359000000000000001)
)

// world is a source with three backups, a delta on a delta on a full one, and their WAL; behind it another full one, on the next timeline.
type world struct {
	*storetest.Memory
	a     *archive.Archive
	names []string
}

func put(t testing.TB, s store.Store, name, body string) {
	t.Helper()
	if err := s.Put(context.Background(), name, strings.NewReader(body)); err != nil {
		t.Fatal(err)
	}
}

func emptyWorld(t testing.TB) *world {
	t.Helper()
	w := &world{Memory: &storetest.Memory{}}
	w.a = archive.New(w, archive.Options{})
	if err := w.a.Claim(context.Background(), cluster, "db1", false); err != nil {
		t.Fatal(err)
	}
	return w
}

// smallWorld is a source with a delta on a full backup and no more WAL than they need.
func smallWorld(t testing.TB) *world {
	t.Helper()
	w := emptyWorld(t)
	w.take(t, 1, 2, w.take(t, 1, 1, ""))
	for n := wal.SegmentNo(1); n <= 3; n++ {
		put(t, w, "wal_005/"+segmentSize.Name(1, n)+".zst", "WAL "+segmentSize.Name(1, n))
	}
	put(t, w, "wal_005/00000002.history.zst", "history")
	return w
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := emptyWorld(t)
	full := w.take(t, 1, 2, "")
	delta := w.take(t, 1, 5, full)
	w.take(t, 1, 8, delta)
	w.take(t, 2, 12, "")
	for n := wal.SegmentNo(1); n <= 10; n++ {
		w.archive(t, 1, n)
	}
	for n := wal.SegmentNo(10); n <= 15; n++ {
		w.archive(t, 2, n)
	}
	put(t, w, "wal_005/00000002.history.zst", "history")
	put(t, w, "wal_005/00000001000000000000000A.partial.zst", "the last one")
	put(t, w, "wal_005/000000010000000000000000_delta.zst", "delta")
	put(t, w, "notes/of-the-operator.txt", "notes")
	return w
}

// take makes a backup that starts in segment n and ends in the next.
func (w *world) take(t testing.TB, timeline wal.Timeline, n wal.SegmentNo, parent string) string {
	t.Helper()
	ctx := context.Background()
	lsn := segmentSize.Start(n) + 40
	finish := segmentSize.Start(n+1) + 400
	id := cluster
	at := time.Date(2026, 1, int(n), 0, 0, 0, 0, time.UTC)
	s := &archive.Sentinel{LSN: &lsn, FinishLSN: &finish, PgVersion: 150004, SystemIdentifier: &id, StartTime: at, FinishTime: at.Add(time.Hour), SegmentSize: uint64(segmentSize)}
	name := archive.BackupName(segmentSize.Name(timeline, n))
	if parent != "" {
		p, err := w.a.Sentinel(ctx, parent)
		if err != nil {
			t.Fatal(err)
		}
		name = archive.DeltaName(segmentSize.Name(timeline, n), parent)
		s.DeltaFrom, s.DeltaLSN, s.DeltaCount, s.DeltaFullName, s.Parent = parent, p.LSN, p.DeltaCount+1, w.names[0], p.Sum
	}
	d, err := w.a.Begin(ctx, name, "db1")
	if err != nil {
		t.Fatal(err)
	}
	for _, base := range []string{d.NextPart(), d.NextPart(), archive.ControlPart, archive.LabelPart} {
		err := d.PutPart(ctx, base, strings.NewReader(name+base), func() []tarpart.Member { return []tarpart.Member{{Path: "base/1/" + base, Size: 1}} })
		if err == nil {
			err = d.PutSums(ctx, base, []byte("sums"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Commit(ctx, s); err != nil {
		t.Fatal(err)
	}
	w.names = append(w.names, name)
	return name
}

func (w *world) archive(t testing.TB, timeline wal.Timeline, n wal.SegmentNo) {
	t.Helper()
	name := segmentSize.Name(timeline, n)
	put(t, w, "wal_005/"+name+".zst", "WAL "+name)
	put(t, w, "wal_005/"+name+".sum.json", "{}")
	put(t, w, archive.SummaryDir+timeline.String()+"/"+name+".zst", "summary")
}

// objects returns everything in a store with its content.
func objects(t testing.TB, s store.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	for o, err := range store.Walk(context.Background(), s, "") {
		if err != nil {
			t.Fatal(err)
		}
		b, err := store.ReadFile(context.Background(), s, o.Name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all[o.Name] = string(b)
	}
	return all
}

func run(from, to store.Store, r transfer.Request, o transfer.Options) (*transfer.Plan, *transfer.Report, error) {
	f, g := archive.New(from, archive.Options{}), archive.New(to, archive.Options{})
	p, err := transfer.Decide(context.Background(), f, g, r)
	if err != nil {
		return nil, nil, err
	}
	rep, err := transfer.Run(context.Background(), f, g, p, o)
	return p, rep, err
}

// sound fails the test unless each backup in the target has all that the source's has, what it builds on, and its WAL.
func sound(t testing.TB, what string, w *world, to store.Store, withWAL bool) (backups int) {
	t.Helper()
	source, target := objects(t, w), objects(t, to)
	for _, name := range w.names {
		if _, there := target["basebackups_005/"+name+"_backup_stop_sentinel.json"]; !there {
			continue
		}
		backups++
		for object, body := range source {
			if strings.HasPrefix(object, "basebackups_005/"+name+"/") && target[object] != body {
				t.Errorf("%s: the target has the backup %s, and of %s %q", what, name, object, target[object])
			}
		}
	}
	c, err := catalog.Load(context.Background(), archive.New(to, archive.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.Backups {
		b := &c.Backups[i]
		if _, err := c.Chain(b); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		_, n, _ := segmentSize.ParseSegment(b.Segment())
		for _, no := range []wal.SegmentNo{n, n + 1} {
			object := "wal_005/" + segmentSize.Name(b.Timeline(), no) + ".zst"
			if withWAL && target[object] != source[object] {
				t.Errorf("%s: the target has the backup %s without its WAL %s", what, b.Name, object)
			}
		}
	}
	return backups
}

// All of an archive comes over but what is about the source alone; a second time there is nothing to do; and a dry run says so before.
func TestCopyEverything(t *testing.T) {
	w := newWorld(t)
	want := objects(t, w)
	delta := w.names[2]
	for name, body := range map[string]string{
		"basebackups_005/" + w.names[0] + "/verified/20260101T000000.000000Z-x.json":                         "{}",
		"basebackups_005/" + w.names[0] + "/proven/20260101T000000.000000Z-x.json":                           "{}",
		"basebackups_005/" + w.names[0] + "/push.json":                                                       "{}",
		"basebackups_005/base_000000010000000000000009/push.json":                                            "{}",
		"holdfast/watermark/1.json":                                                                          "{}",
		"holdfast/restores/x.json":                                                                           "{}",
		"holdfast/quarantined/00000003/wal_005/000000030000000000000001.zst":                                 "stray",
		"wal-g_storage_check":                                                                                "probe",
		"basebackups_005/base_000000010000000000000003_D_000000010000000000000001_backup_stop_sentinel.json": `{"LSN":1,"DeltaLSN":1,"DeltaFrom":"base_000000010000000000000001","DeltaFullName":"x","DeltaCount":1}`,
		"basebackups_005/base_000000010000000000000007_backup_stop_sentinel.json":                            "{",
	} {
		put(t, w, name, body)
	}
	if _, err := w.a.AddRecord(t.Context(), archive.TombstoneDir, "", archive.Tombstone{RecordHead: archive.NewRecordHead("", ""), Backups: []string{delta},
		PurgeAfter: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for name := range want {
		if strings.HasPrefix(name, "basebackups_005/"+delta) {
			delete(want, name) // condemned
		}
	}
	to := &storetest.Memory{}
	unreadable := func(err error) {
		t.Helper()
		if err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), "copy basebackups_005/base_000000010000000000000007: ") {
			t.Errorf("want the backup that cannot be read to be named, and nothing else: %v", err)
		}
	}
	plan, report, err := run(w, to, transfer.Request{}, transfer.Options{})
	unreadable(err)
	got := objects(t, to)
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s is %q in the target, want %q", name, got[name], want[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is in the target", name)
		}
	}
	if !plan.Claims || plan.Cluster != cluster || plan.Total.Objects != len(want)-1 || report.Copied != len(want)-1 || len(report.Backups) != 3 || report.Bytes != plan.Total.Bytes {
		t.Errorf("%d objects: plan %+v, report %+v", len(want), plan, report)
	}
	if len(plan.Skipped) != 4 {
		t.Errorf("skipped %+v", plan.Skipped)
	}
	plan, report, err = run(w, to, transfer.Request{}, transfer.Options{Compare: true})
	unreadable(err)
	if plan.Claims || report.Copied != 0 || report.There != len(want)-1 {
		t.Errorf("again: %+v, %+v, %v", plan, report, err)
	}
	if n, bytes := plan.Total.Left(); n != 0 || bytes != 0 {
		t.Errorf("again: %d objects, %d bytes are left", n, bytes)
	}
}

// One backup comes with what it builds on and the WAL that it needs, or with that up to the newest, or with none.
func TestCopyOne(t *testing.T) {
	for _, c := range []struct {
		what    string
		request func(w *world) transfer.Request
		backups int
		wal     []string // segments, as timeline and number
	}{
		{"a delta", func(w *world) transfer.Request { return transfer.Request{Backup: w.names[1]} }, 2, []string{"1/2", "1/3", "1/5", "1/6"}},
		{"a full one", func(w *world) transfer.Request { return transfer.Request{Backup: w.names[0]} }, 1, []string{"1/2", "1/3"}},
		{"the latest", func(*world) transfer.Request { return transfer.Request{Backup: "LATEST"} }, 1, []string{"2/12", "2/13"}},
		{"history", func(w *world) transfer.Request { return transfer.Request{Backup: w.names[2], History: true} }, 3,
			[]string{"1/2", "1/3", "1/5", "1/6", "1/8", "1/9", "1/10", "2/10", "2/11", "2/12", "2/13", "2/14", "2/15"}},
		{"no WAL", func(w *world) transfer.Request { return transfer.Request{Backup: w.names[0], NoWAL: true} }, 1, nil},
	} {
		w, to := newWorld(t), &storetest.Memory{}
		plan, _, err := run(w, to, c.request(w), transfer.Options{Parallel: 3})
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if n := sound(t, c.what, w, to, c.wal != nil); n != c.backups {
			t.Errorf("%s: %d backups", c.what, n)
		}
		var got []string
		all := objects(t, to)
		for timeline := wal.Timeline(1); timeline <= 2; timeline++ {
			for n := wal.SegmentNo(0); n < 20; n++ {
				if _, ok := all["wal_005/"+segmentSize.Name(timeline, n)+".zst"]; ok {
					got = append(got, fmt.Sprintf("%d/%d", timeline, n))
				}
			}
		}
		if !slices.Equal(got, c.wal) {
			t.Errorf("%s: WAL %q, want %q", c.what, got, c.wal)
		}
		_, history := all["wal_005/00000002.history.zst"]
		_, partial := all["wal_005/00000001000000000000000A.partial.zst"]
		_, notes := all["notes/of-the-operator.txt"]
		if history != (c.wal != nil) || partial != (c.what == "history") || notes {
			t.Errorf("%s: history %v, partial %v, notes %v", c.what, history, partial, notes)
		}
		if c.wal == nil && len(plan.Notes) != 1 {
			t.Errorf("%s: notes %q", c.what, plan.Notes)
		}
	}
}

// Whichever call of either store fails, and however, no half backup is to be seen in the target, and the next run ends the copy.
func TestCopyFailsWhole(t *testing.T) {
	w := smallWorld(t)
	want := objects(t, w)
	fails := []func(store.Store, int) *storetest.Flaky{storetest.FailAt, storetest.FailMidway, storetest.FailAfter}
	for kind, fail := range fails {
		for _, side := range []string{"source", "target"} {
			for n := 0; ; n++ {
				what := fmt.Sprintf("%s, kind %d, call %d", side, kind, n)
				to := &storetest.Memory{}
				var from, into store.Store = w, to
				var flaky *storetest.Flaky
				if side == "source" {
					flaky = fail(w, n)
					from = flaky
				} else {
					flaky = fail(to, n)
					into = flaky
				}
				_, _, err := run(from, into, transfer.Request{}, transfer.Options{Parallel: 1})
				sound(t, what, w, to, true)
				if !flaky.Reached() {
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
					break
				}
				if _, _, err := run(w, to, transfer.Request{}, transfer.Options{}); err != nil {
					t.Fatalf("%s, then again: %v", what, err)
				}
				got := objects(t, to)
				for name := range want {
					if got[name] != want[name] {
						t.Fatalf("%s, then again: %s is %q", what, name, got[name])
					}
				}
				if len(got) != len(want) {
					t.Fatalf("%s, then again: %d objects, want %d", what, len(got), len(want))
				}
			}
		}
	}
}

// A process that dies at any moment leaves what the next one goes on from.
func TestCopyDies(t *testing.T) {
	w := smallWorld(t)
	want := len(objects(t, w))
	for n := 1; ; n++ {
		to := &storetest.Memory{}
		ctx, cancel := context.WithCancelCause(t.Context())
		dying := &counting{Store: to, left: n, die: func() { cancel(errors.New("killed")) }}
		f, g := archive.New(w, archive.Options{}), archive.New(dying, archive.Options{})
		p, err := transfer.Decide(ctx, f, g, transfer.Request{})
		if err == nil {
			_, err = transfer.Run(ctx, f, g, p, transfer.Options{Parallel: 1})
		}
		sound(t, fmt.Sprintf("put %d", n), w, to, true)
		if err == nil {
			break
		}
		if _, _, err := run(w, to, transfer.Request{}, transfer.Options{}); err != nil || len(objects(t, to)) != want {
			t.Errorf("put %d, then again: %v, %d objects of %d", n, err, len(objects(t, to)), want)
		}
	}
}

// counting is a store whose process dies behind a number of puts.
type counting struct {
	store.Store
	left int
	die  func()
}

func (c *counting) PutIfAbsent(ctx context.Context, name string, r interface{ Read([]byte) (int, error) }) error {
	err := c.Store.(store.PutIfAbsenter).PutIfAbsent(ctx, name, r)
	if c.left--; c.left == 0 {
		c.die()
	}
	return err
}

// Another cluster's archive is refused, before anything is written.
func TestCopyRefusesAnotherCluster(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ name, body string }{
		{archive.OwnerName, `{"system_identifier":5}`},
		{"basebackups_005/base_000000010000000000000003_backup_stop_sentinel.json", `{"SystemIdentifier":5,"LSN":50331688}`},
	} {
		to := &storetest.Memory{}
		put(t, to, c.name, c.body)
		var foreign *transfer.ForeignError
		if _, _, err := run(w, to, transfer.Request{}, transfer.Options{}); !errors.As(err, &foreign) || foreign.Source != cluster || foreign.Target != 5 {
			t.Errorf("%s: %v", c.name, err)
		}
		if all := objects(t, to); len(all) != 1 {
			t.Errorf("%s: the target has %d objects", c.name, len(all))
		}
	}
}

// What the target has otherwise is named, and stays; a backup that needs it is not made, nor what builds on that, and all else comes over.
func TestCopyReplacesNothing(t *testing.T) {
	for _, c := range []struct {
		object  func(w *world) string
		body    string
		compare bool
		backups int
	}{
		{func(*world) string { return "wal_005/000000010000000000000005.zst" }, "short", false, 2},
		{func(*world) string { return "wal_005/000000010000000000000005.zst" }, "WAL 00000001000000000000000X", true, 2},
		{func(w *world) string { return "basebackups_005/" + w.names[1] + "/tar_partitions/part_001.tar.zst" }, "short", false, 2},
		{func(w *world) string { return "basebackups_005/" + w.names[1] + "/something" }, "of another", false, 2},
		{func(w *world) string { return "basebackups_005/" + w.names[3] + "/push.json" }, "{}", false, 3},
		{func(w *world) string { return "basebackups_005/" + w.names[3] + "/metadata.json" }, `{"start_lsn":1}`, false, 3},
		{func(*world) string { return "notes/of-the-operator.txt" }, "other notes", false, 4},
		{func(*world) string { return "wal_005/00000002.history.zst" }, "other", false, 4},
	} {
		w, to := newWorld(t), &storetest.Memory{}
		object := c.object(w)
		put(t, to, object, c.body)
		_, report, err := run(w, to, transfer.Request{}, transfer.Options{Compare: c.compare})
		if err == nil || !strings.Contains(err.Error(), object[strings.LastIndex(object, "/")+1:]) {
			t.Errorf("%s: %v", object, err)
		}
		if n := sound(t, object, w, to, true); n != c.backups || len(report.Backups) != n {
			t.Errorf("%s: %d backups are in the target, %q", object, n, report.Backups)
		}
		if got := objects(t, to)[object]; got != c.body {
			t.Errorf("%s became %q", object, got)
		}
	}
}

// A source that is damaged makes no backup in the target, and the object is named.
func TestCopyMeetsDamage(t *testing.T) {
	for _, rest := range []string{"tar_partitions/part_002.tar.zst", "page_sums/part_001.tar.crc32c", "manifest.json.zst", "files_metadata.json", "objects.json"} {
		w, to := newWorld(t), &storetest.Memory{}
		object := "basebackups_005/" + w.names[0] + "/" + rest
		b := []byte(objects(t, w)[object])
		b[len(b)/2] ^= 1
		put(t, w, object, string(b))
		_, _, err := run(w, to, transfer.Request{}, transfer.Options{})
		if err == nil || !strings.Contains(err.Error(), rest) {
			t.Errorf("%s: %v", rest, err)
		}
		if n := sound(t, rest, w, to, true); n != 1 {
			t.Errorf("%s: %d backups are in the target", rest, n)
		}
	}
}

// A backup that goes, or that another takes the place of, while it is copied, is no backup in the target.
func TestCopyMeetsDeletion(t *testing.T) {
	for _, replace := range []bool{false, true} {
		w, to := newWorld(t), &storetest.Memory{}
		sentinel := "basebackups_005/" + w.names[0] + "_backup_stop_sentinel.json"
		f, g := archive.New(w, archive.Options{}), archive.New(to, archive.Options{})
		p, err := transfer.Decide(t.Context(), f, g, transfer.Request{Backup: w.names[0]})
		if err != nil {
			t.Fatal(err)
		}
		if replace {
			put(t, w, sentinel, objects(t, w)[sentinel]+" ")
		} else if err := w.Delete(t.Context(), sentinel); err != nil {
			t.Fatal(err)
		}
		if _, err := transfer.Run(t.Context(), f, g, p, transfer.Options{}); err == nil || !strings.Contains(err.Error(), "while it was copied") {
			t.Errorf("%v", err)
		}
		if _, err := to.Stat(t.Context(), sentinel); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the target has its sentinel: %v", err)
		}
	}
}

// Each archive has permanent flags of its own: what is whole in the target keeps its, and that they differ is told.
func TestCopyKeepsMarks(t *testing.T) {
	w, to := newWorld(t), &storetest.Memory{}
	request := transfer.Request{Backup: w.names[0]}
	if _, _, err := run(w, to, request, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := w.a.MarkPermanent(t.Context(), w.names[0]); err != nil {
		t.Fatal(err)
	}
	_, report, err := run(w, to, request, transfer.Options{})
	if err != nil || len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "permanent in the source and not in the target") {
		t.Errorf("%+v, %v", report, err)
	}
	copied := archive.New(to, archive.Options{})
	if m, err := copied.Metadata(t.Context(), w.names[0]); err != nil || m.IsPermanent {
		t.Errorf("%+v, %v", m, err)
	}
	// Without a sentinel it is what an interrupted copy left.
	if err := to.Delete(t.Context(), "basebackups_005/"+w.names[0]+"_backup_stop_sentinel.json"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(w, to, request, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	if m, err := copied.Metadata(t.Context(), w.names[0]); err != nil || !m.IsPermanent {
		t.Errorf("%+v, %v", m, err)
	}
}

// What is lost in the target of a backup that is there comes again.
func TestCopyRepairs(t *testing.T) {
	w, to := newWorld(t), &storetest.Memory{}
	if _, _, err := run(w, to, transfer.Request{}, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	want := objects(t, to)
	for _, name := range []string{"basebackups_005/" + w.names[0] + "/tar_partitions/part_001.tar.zst", "wal_005/000000010000000000000003.zst"} {
		if err := to.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if _, report, err := run(w, to, transfer.Request{}, transfer.Options{}); err != nil || report.Copied != 2 {
		t.Errorf("%+v, %v", report, err)
	}
	if got := objects(t, to); len(got) != len(want) {
		t.Errorf("%d objects, want %d", len(got), len(want))
	}
}

// The WAL that the source lacks itself is told of.
func TestCopySaysWhatTheSourceLacks(t *testing.T) {
	w, to := newWorld(t), &storetest.Memory{}
	if err := w.Delete(t.Context(), "wal_005/000000010000000000000003.zst"); err != nil {
		t.Fatal(err)
	}
	p, _, err := run(w, to, transfer.Request{Backup: w.names[0]}, transfer.Options{})
	if err != nil || len(p.Notes) != 1 || !strings.Contains(p.Notes[0], "of the WAL that "+w.names[0]+" needs") || !strings.Contains(p.Notes[0], "the source lacks 1 of 2:") {
		t.Errorf("%q, %v", p.Notes, err)
	}
}

// A backup whose timeline was left in the segment it finishes in needs that of the next timeline, which has what was written into it: it comes over before the backup appears.
func TestCopyOfABackupThatEndsWhereItsTimelineWasLeft(t *testing.T) {
	w := emptyWorld(t)
	name := w.take(t, 1, 2, "")
	w.archive(t, 1, 2)
	put(t, w, "wal_005/000000010000000000000003.partial.zst", "the last one")
	w.archive(t, 2, 3)
	w.archive(t, 2, 4)
	if _, err := w.a.PutWAL(t.Context(), "00000002.history", func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("1\t0/3000800\tno recovery target specified\n")), nil
	}); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		to := &storetest.Memory{}
		flaky := storetest.FailAt(to, n)
		p, err := transfer.Decide(t.Context(), w.a, archive.New(flaky, archive.Options{}), transfer.Request{Backup: name})
		if err == nil {
			if len(p.Notes) > 0 {
				t.Errorf("notes: %s", p.Notes)
			}
			_, err = transfer.Run(t.Context(), w.a, archive.New(flaky, archive.Options{}), p, transfer.Options{Parallel: 1})
		}
		all := objects(t, to)
		if _, ok := all["basebackups_005/"+name+"_backup_stop_sentinel.json"]; ok && all["wal_005/000000020000000000000003.zst"] == "" {
			t.Errorf("call %d failed, and there is a backup without its last WAL", n)
		}
		if _, ok := all["wal_005/000000020000000000000004.zst"]; ok {
			t.Error("what it does not need came too")
		}
		if !flaky.Reached() {
			if err != nil || all["wal_005/000000020000000000000003.zst"] == "" {
				t.Errorf("without a failure: %v", err)
			}
			break
		}
	}
}
