package catalog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/test/foreign"
)

// put stores an object that a test needs.
func put(t *testing.T, m *storetest.Memory, name, content string) {
	t.Helper()
	if err := m.Put(t.Context(), name, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// at is a moment on the day all tests happen.
func at(hour, minute int) time.Time { return time.Date(2026, 5, 6, hour, minute, 0, 0, time.UTC) }

// backup stores the sentinel of a backup from start to finish.
func backup(t *testing.T, m *storetest.Memory, name string, start, finish wal.LSN, finished time.Time) {
	t.Helper()
	b, err := json.Marshal(archive.Sentinel{LSN: &start, FinishLSN: &finish, StartTime: finished.Add(-time.Minute), FinishTime: finished, Version: 2})
	if err != nil {
		t.Fatal(err)
	}
	put(t, m, archive.BackupDir+name+"_backup_stop_sentinel.json", string(b))
}

const size = wal.SegmentSize(16 << 20)

// segments stores segments first to last of a timeline.
func segments(t *testing.T, m *storetest.Memory, tl wal.Timeline, first, last wal.SegmentNo) {
	t.Helper()
	for n := first; n <= last; n++ {
		put(t, m, archive.WALDir+size.Name(tl, n)+".lz4", "wal")
	}
}

func load(t *testing.T, m *storetest.Memory) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Load(t.Context(), archive.New(m, archive.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// twoTimelines is an archive in which timeline 1 was left at 0/5800000 for timeline 2, and yet went on.
//
//	timeline 1   02 [base 2: 01:00] 03 04 [base 4: 02:00] 05 06 [base 6: 04:00] 07
//	timeline 2                                            05 06 07 [base 7: 03:00] 08
func twoTimelines(t *testing.T) *storetest.Memory {
	m := &storetest.Memory{}
	put(t, m, archive.WALDir+"00000002.history", "1\t0/5800000\tno recovery target specified\n")
	backup(t, m, "base_000000010000000000000002", 0x2000028, 0x2000100, at(1, 0))
	backup(t, m, "base_000000010000000000000004", 0x4000028, 0x4000100, at(2, 0))
	backup(t, m, "base_000000020000000000000007", 0x7000028, 0x7000100, at(3, 0))
	backup(t, m, "base_000000010000000000000006", 0x6000028, 0x6000100, at(4, 0))
	segments(t, m, 1, 2, 7)
	segments(t, m, 2, 5, 8)
	return m
}

// The backup for a target is the newest one from which the target can be reached, on the target's line of descent.
func TestChoose(t *testing.T) {
	c := load(t, twoTimelines(t))
	c.Evidence.Server = 2
	const none = ""
	for _, x := range []struct {
		what   string
		name   string
		target catalog.Target
		backup string // without base_ and zeros: timeline and segment
		along  wal.Timeline
	}{
		{"newest by time, not by name", "LATEST", catalog.Target{}, "1-6", 1},
		{"end of the log", "", catalog.Target{Kind: catalog.Latest}, "2-7", 2},
		{"end of an older line", "", catalog.Target{Kind: catalog.Latest, Timeline: 1}, "1-6", 1},
		{"time after all", "", catalog.Target{Kind: catalog.AtTime, Time: at(5, 0)}, "2-7", 2},
		{"time between", "", catalog.Target{Kind: catalog.AtTime, Time: at(2, 30)}, "1-4", 2},
		{"time a backup was finished", "", catalog.Target{Kind: catalog.AtTime, Time: at(2, 0)}, "1-4", 2},
		{"time on the older line", "", catalog.Target{Kind: catalog.AtTime, Time: at(5, 0), Timeline: 1}, "1-6", 1},
		{"time before all", "", catalog.Target{Kind: catalog.AtTime, Time: at(0, 30)}, none, 0},
		{"lsn", "", catalog.Target{Kind: catalog.AtLSN, LSN: 0x4000100}, "1-4", 2},
		{"lsn inside of a backup", "", catalog.Target{Kind: catalog.AtLSN, LSN: 0x40000FF}, "1-2", 2},
		{"lsn on the newer line", "", catalog.Target{Kind: catalog.AtLSN, LSN: 0x6500000}, "1-4", 2},
		{"lsn on the older line", "", catalog.Target{Kind: catalog.AtLSN, LSN: 0x6500000, Timeline: 1}, "1-6", 1},
		{"named backup of the other branch", "base_000000010000000000000006", catalog.Target{Kind: catalog.Latest}, "1-6", 1},
		{"named backup before the branch", "base_000000010000000000000002", catalog.Target{Kind: catalog.Latest}, "1-2", 2},
		{"named backup, wrong line", "base_000000010000000000000006", catalog.Target{Kind: catalog.Latest, Timeline: 2}, none, 0},
		{"named backup after the target", "base_000000010000000000000004", catalog.Target{Kind: catalog.AtTime, Time: at(1, 30)}, none, 0},
		{"no such backup", "base_00000001000000000000000A", catalog.Target{}, none, 0},
		{"no such line", "", catalog.Target{Kind: catalog.Latest, Timeline: 9}, none, 0},
	} {
		got, err := c.Choose(x.name, x.target)
		if x.backup == none {
			var missing *catalog.NoBackupError
			if !errors.As(err, &missing) || !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: chose %+v, %v, want no backup", x.what, got.Backup, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", x.what, err)
			continue
		}
		if name := fmt.Sprintf("%d-%c", got.Backup.Timeline(), got.Backup.Name[len(got.Backup.Name)-1]); name != x.backup || got.Path.Timeline() != x.along {
			t.Errorf("%s: chose %s along timeline %d, want %s along %d", x.what, name, got.Path.Timeline(), x.backup, x.along)
		}
	}
}

// Where no backup will do on the cluster's timeline, the error says on which one would.
func TestChooseAdvisesTimeline(t *testing.T) {
	m := &storetest.Memory{}
	put(t, m, archive.WALDir+"00000003.history", "1\t0/3000000\tx\n")
	backup(t, m, "base_000000010000000000000006", 0x6000028, 0x6000100, at(4, 0))
	c := load(t, m)
	c.Evidence.Server = 3
	_, err := c.Choose("", catalog.Target{Kind: catalog.Latest})
	var missing *catalog.NoBackupError
	if !errors.As(err, &missing) || !strings.Contains(missing.Hint(), "--target-timeline 2") && !strings.Contains(missing.Hint(), "--target-timeline 1") {
		t.Errorf("Choose: %v, hint %q", err, missing.Hint())
	}
}

// WAL is followed across the branch; what lacks for consistency or for the target is named.
func TestReach(t *testing.T) {
	old, young := size.Name(1, 4), size.Name(2, 6)
	for _, x := range []struct {
		what   string
		remove string
		name   string
		target catalog.Target
		last   string // where the archive ends without a gap
		lacks  string // first missing segment; "" for none
	}{
		{"whole", "", "base_000000010000000000000004", catalog.Target{Kind: catalog.Latest}, size.Name(2, 8), ""},
		{"whole older line", "", "base_000000010000000000000004", catalog.Target{Kind: catalog.Latest, Timeline: 1}, size.Name(1, 7), ""},
		{"first is missing", old, "base_000000010000000000000004", catalog.Target{Kind: catalog.Latest}, "", old},
		{"gap later", young, "base_000000010000000000000004", catalog.Target{Kind: catalog.Latest}, size.Name(2, 5), ""},
		{"gap before the target", young, "base_000000010000000000000004", catalog.Target{Kind: catalog.AtLSN, LSN: 0x7000001}, "", young},
		{"gap behind the target", young, "base_000000010000000000000004", catalog.Target{Kind: catalog.AtLSN, LSN: 0x5900000}, size.Name(2, 5), ""},
		{"branch segment is taken of the younger line", size.Name(1, 5), "base_000000010000000000000004", catalog.Target{Kind: catalog.Latest}, size.Name(2, 8), ""},
		{"target behind the end", "", "base_000000010000000000000004", catalog.Target{Kind: catalog.AtLSN, LSN: 0x9000001}, "", size.Name(2, 9)},
		{"target at the end", "", "base_000000010000000000000004", catalog.Target{Kind: catalog.AtLSN, LSN: 0x9000000}, size.Name(2, 8), ""},
		{"plain restore", "", "LATEST", catalog.Target{}, size.Name(1, 7), ""},
	} {
		m := twoTimelines(t)
		if x.remove != "" {
			if err := m.Delete(t.Context(), archive.WALDir+x.remove+".lz4"); err != nil {
				t.Fatal(err)
			}
		}
		c := load(t, m)
		c.Evidence.Server = 2
		choice, err := c.Choose(x.name, x.target)
		if err != nil {
			t.Fatalf("%s: %v", x.what, err)
		}
		got, err := choice.Reach(t.Context(), archive.New(m, archive.Options{}))
		if x.lacks != "" {
			var lack *catalog.MissingWALError
			if !errors.As(err, &lack) || lack.Missing[0] != x.lacks {
				t.Errorf("%s: %v, want %s to be missing", x.what, err, x.lacks)
			}
			continue
		}
		if err != nil || got.Last != x.last {
			t.Errorf("%s: reaches to %q, %v, want %s", x.what, got.Last, err, x.last)
		}
	}
}

// A segment that is there in a codec this release does not read is one that is missing.
func TestReachNamesWhatItCannotRead(t *testing.T) {
	m, young := twoTimelines(t), size.Name(2, 6)
	if err := m.Delete(t.Context(), archive.WALDir+young+".lz4"); err != nil {
		t.Fatal(err)
	}
	put(t, m, archive.WALDir+young+".xz", "wal")
	c := load(t, m)
	c.Evidence.Server = 2
	choice, err := c.Choose("base_000000010000000000000004", catalog.Target{Kind: catalog.AtLSN, LSN: 0x7000001})
	if err != nil {
		t.Fatal(err)
	}
	var lack *catalog.MissingWALError
	if _, err := choice.Reach(t.Context(), archive.New(m, archive.Options{})); !errors.As(err, &lack) || fmt.Sprint(lack.Missing) != "["+young+"]" {
		t.Errorf("Reach: %v, want %s to be missing", err, young)
	}
}

// An object without a byte is no segment, as for the inventory.
func TestReachPassesOverEmpty(t *testing.T) {
	m, young := twoTimelines(t), size.Name(2, 6)
	put(t, m, archive.WALDir+young+".lz4", "")
	c := load(t, m)
	c.Evidence.Server = 2
	for lsn, whole := range map[wal.LSN]bool{0x5900000: true, 0x7000001: false} {
		choice, err := c.Choose("base_000000010000000000000004", catalog.Target{Kind: catalog.AtLSN, LSN: lsn})
		if err != nil {
			t.Fatal(err)
		}
		reach, err := choice.Reach(t.Context(), archive.New(m, archive.Options{}))
		if (err == nil) != whole || reach.Last != size.Name(2, 5) {
			t.Errorf("to %s: reaches to %s, %v", lsn, reach.Last, err)
		}
	}
	if w, err := catalog.LoadWAL(t.Context(), archive.New(m, archive.Options{}), size); err != nil || w.Has(2, 6) {
		t.Errorf("the inventory has it, %v", err)
	}
}

// The number of a timeline costs nothing: only those that exist are looked at.
func TestTimelineOfAnyNumber(t *testing.T) {
	m := twoTimelines(t)
	put(t, m, archive.WALDir+"FFFFFFFF.history", "1\t0/3000000\tx\n")
	c := load(t, m)
	if got, err := c.Choose("base_000000010000000000000006", catalog.Target{Kind: catalog.Latest}); err != nil || got.Path.Timeline() != 1 {
		t.Errorf("a backup by name: along %v, %v", got.Path, err)
	}
	var missing *catalog.NoBackupError
	if _, err := c.Choose("", catalog.Target{Kind: catalog.AtTime, Time: at(0, 30)}); !errors.As(err, &missing) {
		t.Errorf("before all backups: %v", err)
	}
	if _, err := c.Choose("", catalog.Target{Kind: catalog.AtLSN, LSN: 0x7000100}); err != nil {
		t.Error(err) // the first backup lies before the branch
	}
}

// A target behind any thinkable end names a few segments, not millions.
func TestMissingWALIsBounded(t *testing.T) {
	m := twoTimelines(t)
	choice, err := load(t, m).Choose("", catalog.Target{Kind: catalog.AtLSN, LSN: 1<<64 - 1})
	if err != nil {
		t.Fatal(err)
	}
	var lack *catalog.MissingWALError
	if _, err = choice.Reach(t.Context(), archive.New(m, archive.Options{})); !errors.As(err, &lack) || len(lack.Missing) > 10 || !lack.More {
		t.Errorf("Reach: %v", err)
	}
}

// One entry that cannot be read hides no other.
func TestUnreadableEntryStays(t *testing.T) {
	m := twoTimelines(t)
	put(t, m, archive.BackupDir+"base_000000010000000000000003_backup_stop_sentinel.json", `{"LSN": "what`)
	put(t, m, archive.BackupDir+"base_000000010000000000000002/metadata.json", `[]`)
	put(t, m, archive.WALDir+"00000003.history", "not a history\n")
	put(t, m, archive.WALDir+"00000004.history.br", "")
	c := load(t, m)
	if len(c.Backups) != 5 {
		t.Fatalf("%d backups, want 5", len(c.Backups))
	}
	for name, sentinel := range map[string]bool{"base_000000010000000000000003": false, "base_000000010000000000000002": true} {
		b, err := c.Find(name)
		if err != nil || b.Err == nil || (b.Sentinel != nil) != sentinel {
			t.Errorf("%s: %+v, %v, want it with an error", name, b, err)
		}
	}
	if c.BadHistory[3] == nil {
		t.Error("a senseless history file is not told")
	}
	if c.BadHistory[4] == nil {
		t.Error("a history file in a codec we do not read is not told")
	}
	if _, err := c.Choose("", catalog.Target{Kind: catalog.Latest, Highest: true}); err == nil {
		t.Error("the latest timeline's history makes no sense, and yet a backup was chosen along it")
	}
	if got, err := c.Choose("", catalog.Target{Kind: catalog.Latest, Timeline: 2}); err != nil || got.Path.Timeline() != 2 {
		t.Errorf("along timeline 2: %v", err)
	}
}

// fat is a store whose sentinels are said to be as large as one may be.
type fat struct {
	*storetest.Memory
	open atomic.Int32
	most atomic.Int32
}

func (f *fat) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range f.Memory.List(ctx, dir, after) {
			if o.Size > 0 {
				o.Size = archive.MaxSentinel
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

func (f *fat) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.HasSuffix(name, "sentinel.json") {
		f.most.Store(max(f.most.Load(), f.open.Add(1)))
		defer f.open.Add(-1)
		time.Sleep(time.Millisecond) // gives others the time to show up
	}
	return f.Memory.Open(ctx, name)
}

// Large sentinels are read one after the other: together they would be too much.
func TestLoadIsBounded(t *testing.T) {
	f := &fat{Memory: twoTimelines(t)}
	c, err := catalog.Load(t.Context(), archive.New(f, archive.Options{}))
	if err != nil || len(c.Backups) != 4 || f.most.Load() != 1 {
		t.Errorf("%d backups, %d sentinels read at once, %v", len(c.Backups), f.most.Load(), err)
	}
}

// Whichever store call fails, Load says so, keeps the entry with its error, or did not need the answer.
func TestLoadFails(t *testing.T) {
	m := twoTimelines(t)
	for n := 0; ; n++ {
		flaky := storetest.FailAt(m, n)
		c, err := catalog.Load(t.Context(), archive.New(flaky, archive.Options{}))
		if !flaky.Reached() {
			return
		}
		if err != nil {
			if !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("call %d failed, Load returned %v", n, err)
			}
			continue
		}
		told := len(c.BadHistory) > 0
		for _, b := range c.Backups {
			told = told || errors.Is(b.Err, storetest.ErrInjected)
		}
		if !told && (len(c.Backups) != 4 || len(c.Histories[2]) != 1) {
			t.Errorf("call %d (%s) failed, and the catalog does not tell", n, flaky.Calls()[n])
		}
	}
}

// The size of segments follows from a backup's name and start, and needs no setting.
func TestSegmentSize(t *testing.T) {
	for s := wal.MinSegmentSize; s <= wal.MaxSegmentSize; s *= 2 {
		for _, lsn := range []wal.LSN{0x28, 0x2000028, 0x12_34567890, 0xFFFF_FFFFFFFF} {
			if s.Segment(lsn) == 0 {
				continue // one name whatever the size; no cluster writes there
			}
			m := &storetest.Memory{}
			backup(t, m, "base_"+s.Name(3, s.Segment(lsn)), lsn, lsn+1, at(1, 0))
			got, err := load(t, m).Backups[0].SegmentSize()
			if err != nil || got != s {
				t.Errorf("segments of %d bytes, start %s: got %d, %v", s, lsn, got, err)
			}
		}
	}
	m := &storetest.Memory{}
	backup(t, m, "base_000000010000000000000009", 0x12_34567890, 0x12_34567891, at(1, 0))
	if got, err := load(t, m).Backups[0].SegmentSize(); err == nil {
		t.Errorf("a backup named after another segment has segments of %d bytes", got)
	}
}

func TestParseTime(t *testing.T) {
	want := time.Date(2026, 5, 6, 7, 8, 9, 120_000_000, time.UTC)
	for _, s := range []string{
		"2026-05-06T07:08:09.12Z", "2026-05-06T09:08:09.12+02:00", "2026-05-06 07:08:09.12+00", "2026-05-06 12:38:09.12+05:30",
		"2026-05-06 07:08:09.12 UTC", "2026-05-06 09:08:09.12 +02", "2026-05-06 09:08:09.12+0200", " 2026-05-06 03:08:09.12-04 ",
	} {
		if got, err := catalog.ParseTime(s); err != nil || !got.Equal(want) {
			t.Errorf("ParseTime(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for s, why := range map[string]string{
		"2026-05-06 07:08:09": "zone", "2026-05-06T07:08:09": "zone", "2026-05-06": "zone", "yesterday": "understood", "": "understood",
		"2026-05-06 07:08:09 CEST": "understood",
	} {
		if got, err := catalog.ParseTime(s); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("ParseTime(%q) = %v, %v, want an error with %q", s, got, err, why)
		}
	}
}

// What PostgreSQL writes into history files is understood, comments included.
func TestParseHistory(t *testing.T) {
	got, err := catalog.ParseHistory(4, []byte("# a comment\n1\t0/5800000\tno recovery target specified\n\n\t2  A/B0\tat restore point \"x y\"\n"))
	want := []catalog.Branch{{Timeline: 1, Switch: 0x5800000, Reason: "no recovery target specified"}, {Timeline: 2, Switch: 0xA_000000B0, Reason: `at restore point "x y"`}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("ParseHistory: %+v, %v", got, err)
	}
	for _, bad := range []string{"1\n", "x\t0/1\n", "0\t0/1\n", "1\t1\n", "4\t0/1\n", "2\t0/5\n1\t0/6\n", "1\t0/6\n1\t0/7\n"} {
		if got, err := catalog.ParseHistory(4, []byte(bad)); err == nil {
			t.Errorf("ParseHistory(%q) = %+v", bad, got)
		}
	}
}

// Promoted before it had reached the beginning of the timeline that it recovered along, a server is a child of the one whose WAL it has.
func TestParseHistoryOfAnEarlyEnd(t *testing.T) {
	for file, want := range map[string]string{
		"1\t0/6\ta\n2\t0/5\tb\n":             "[{00000001 0/5 b}]",
		"1\t0/6\ta\n2\t0/6\tb\n":             "[{00000001 0/6 a} {00000002 0/6 b}]",
		"1\t0/4\ta\n2\t0/8\tb\n3\t0/6\tc\n":  "[{00000001 0/4 a} {00000002 0/6 c}]",
		"1\t0/7\ta\n2\t0/8\tb\n3\t0/6\tc\n":  "[{00000001 0/6 c}]",
		"1\t0/6\ta\n2\t0/5\tb\n3\t0/A0\tc\n": "[{00000001 0/5 b} {00000003 0/A0 c}]",
	} {
		if got, err := catalog.ParseHistory(9, []byte(file)); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v, want %s", file, got, err, want)
		}
	}
}

// What is accepted can be written again and reads the same; branches always ascend.
func FuzzParseHistory(f *testing.F) {
	f.Add(uint32(2), []byte("1\t0/5800000\tno recovery target specified\n"))
	f.Add(uint32(9), []byte("1\t0/7\ta\n2\t0/8\tb\n3\t0/6\tc\n"))
	f.Add(uint32(9), []byte("# x\n1 0/0 \n 3\tFFFFFFFF/FFFFFFFF\tafter LSN 0/1\r\n"))
	f.Fuzz(func(t *testing.T, tl uint32, file []byte) {
		branches, err := catalog.ParseHistory(wal.Timeline(tl), file)
		if err != nil {
			return
		}
		var again bytes.Buffer
		for _, b := range branches {
			fmt.Fprintf(&again, "%d\t%s\t%s\n", b.Timeline, b.Switch, b.Reason)
			if b.Timeline >= wal.Timeline(tl) {
				t.Errorf("timeline %d descends from %d", tl, b.Timeline)
			}
		}
		second, err := catalog.ParseHistory(wal.Timeline(tl), again.Bytes())
		if err != nil || fmt.Sprint(second) != fmt.Sprint(branches) {
			t.Errorf("%q reads as %v, written again as %v, %v", file, branches, second, err)
		}
	})
}

// Archives that WAL-G and WAL-E wrote list the backups that those programs list, in their order.
func TestListsTheirs(t *testing.T) {
	for _, name := range foreign.Names(t) {
		m, beside := &storetest.Memory{}, map[string]string{}
		foreign.Each(t, name, func(path string, r io.Reader) {
			if object, ok := strings.CutPrefix(path, "archive/"); ok {
				if err := m.Put(t.Context(), object, r); err != nil {
					t.Fatal(err)
				}
			} else if strings.HasPrefix(path, "backup-list") {
				b, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				beside[path] = string(b)
			}
		})
		var names []string
		for _, b := range load(t, m).Backups {
			names = append(names, b.Name)
			if b.Err != nil {
				t.Errorf("%s: %s: %v", name, b.Name, b.Err)
			}
			if _, ok := b.StartLSN(); !ok {
				t.Errorf("%s: %s has no start", name, b.Name)
			}
			if s, err := b.SegmentSize(); s != size {
				t.Errorf("%s: %s has segments of %d bytes, %v", name, b.Name, s, err)
			}
		}
		var want []string
		for _, line := range strings.Split(strings.TrimSpace(beside["backup-list.txt"]), "\n")[1:] {
			want = append(want, strings.Fields(line)[0])
		}
		if fmt.Sprint(names) != fmt.Sprint(want) || len(names) == 0 {
			t.Errorf("%s: lists %v, want %v", name, names, want)
		}
	}
}

// What is accepted is the same moment when it is printed as PostgreSQL wants it and read again.
func FuzzParseTime(f *testing.F) {
	f.Add("2026-05-06T07:08:09.12Z")
	f.Add("2026-05-06 09:08:09.12 +02")
	f.Add("0001-01-01 00:00:00+00")
	f.Fuzz(func(t *testing.T, s string) {
		first, err := catalog.ParseTime(s)
		if err != nil {
			return
		}
		printed := first.UTC().Format("2006-01-02 15:04:05.999999999-07")
		if first.UTC().Year() < 0 || first.UTC().Year() > 9999 {
			return
		}
		if again, err := catalog.ParseTime(printed); err != nil || !again.Equal(first) {
			t.Errorf("%q is %v, printed %q, read again %v, %v", s, first, printed, again, err)
		}
	})
}
