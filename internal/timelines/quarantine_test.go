package timelines_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/timelines"
)

const size = wal.SegmentSize(16 << 20)

func put(t *testing.T, s store.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// contents reads a whole store.
func contents(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	for o, err := range store.Walk(t.Context(), s, "") {
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Open(t.Context(), o.Name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		all[o.Name] = string(b)
	}
	return all
}

func sentinel(start wal.LSN, finished string) string {
	return fmt.Sprintf(`{"LSN":%d,"FinishLSN":%d,"PgVersion":150004,"FinishTime":%q,"SystemIdentifier":7}`, start, start+0x100, finished)
}

// stray is an archive whose cluster is on timeline 1, and into which a clone of it pushed timelines 2 and 3.
func stray(t *testing.T, s store.Store) {
	for n := wal.SegmentNo(2); n < 40; n++ {
		put(t, s, archive.WALDir+size.Name(1, n)+".lz4", "one "+fmt.Sprint(n))
	}
	put(t, s, archive.BackupDir+"base_000000010000000000000002_backup_stop_sentinel.json", sentinel(0x2000028, "2026-01-01T01:00:00Z"))
	put(t, s, archive.BackupDir+"base_000000010000000000000002/tar_partitions/part_001.tar.lz4", "data")
	put(t, s, archive.WALDir+"00000002.history", "1\t0/5000100\tbefore a table was dropped\n")
	put(t, s, archive.WALDir+"00000003.history", "1\t0/5000100\tbefore a table was dropped\n2\t0/7000100\tno recovery target specified\n")
	for tl, last := range map[wal.Timeline]wal.SegmentNo{2: 7, 3: 8} {
		for n := wal.SegmentNo(5); n <= last; n++ {
			put(t, s, archive.WALDir+size.Name(tl, n)+".lz4", fmt.Sprint(uint32(tl), n))
		}
	}
	put(t, s, archive.WALDir+size.Name(2, 7)+".partial.lz4", "x")
	put(t, s, archive.WALDir+size.Name(2, 5)+".00000028.backup.lz4", "x")
	put(t, s, archive.WALDir+size.Name(2, 5)+".sum.json", "{}")
	put(t, s, archive.WALDir+size.Name(2, 5)+".json", "{}")
	put(t, s, archive.WALDir+size.Name(2, 0)+"_delta.lz4", "x")
	put(t, s, archive.SummaryDir+"00000001/"+size.Name(1, 5)+".zst", "x")
	put(t, s, archive.SummaryDir+"00000002/"+size.Name(2, 5)+".zst", "x")
	put(t, s, archive.TailDir+size.Name(1, 5)+"/00000000-00002000.zst", "x")
	put(t, s, archive.TailDir+size.Name(2, 8)+"/00000000-00002000.zst", "x")
	put(t, s, archive.TailDir+size.Name(2, 8)+"/00002000-00002100.zst", "x")
	put(t, s, archive.BackupDir+"base_000000020000000000000006_backup_stop_sentinel.json", sentinel(0x6000028, "2026-01-01T02:00:00Z"))
	put(t, s, archive.BackupDir+"base_000000020000000000000006/metadata.json", "{}")
	put(t, s, archive.BackupDir+"base_000000020000000000000006/tar_partitions/part_001.tar.lz4", "theirs")
	put(t, s, archive.CatchUpDir+"base_000000020000000000000006_backup_stop_sentinel.json", sentinel(0x6000028, "2026-01-01T02:00:00Z"))
	put(t, s, archive.CatchUpDir+"base_000000020000000000000006/tar_partitions/part_001.tar.lz4", "theirs")
	put(t, s, archive.GapDir+"20260101T000000.000000Z-a.json", `{"timeline":2,"first":"x"}`)
	put(t, s, archive.GapDir+"20260101T000000.000000Z-b.json", `{"timeline":1,"first":"y"}`)
	put(t, s, archive.VerifiedWALDir+"20260101T000000.000000Z-b.json", `{"timeline":3}`)
	put(t, s, "holdfast/cluster.json", `{"system_identifier":7}`)
}

// survey looks at what is in s as a command does.
func survey(t *testing.T, s store.Store, server wal.Timeline) (*archive.Archive, timelines.Survey, error) {
	a := archive.New(s, archive.Options{})
	c, err := catalog.Load(t.Context(), a)
	if err != nil {
		return nil, timelines.Survey{}, err
	}
	w, err := catalog.LoadWAL(t.Context(), a, size)
	if err != nil {
		return nil, timelines.Survey{}, err
	}
	q, err := timelines.LoadQuarantines(t.Context(), a)
	if err != nil {
		return nil, timelines.Survey{}, err
	}
	return a, timelines.Survey{
		Catalog: c, WAL: w, Quarantines: q, Server: server != 0, Now: time.Now(),
		Current: c.Current(catalog.Evidence{WAL: w, Server: server, Forgotten: q.Age}),
	}, nil
}

func places(s store.Store) []timelines.Place { return []timelines.Place{{Name: "default", Store: s}} }

func forget(t *testing.T, s store.Store, tl, server wal.Timeline, with bool) (*timelines.Plan, error) {
	a, sv, err := survey(t, s, server)
	if err != nil {
		return nil, err
	}
	p, err := timelines.DecideForget(t.Context(), places(s), sv, tl, with)
	if err != nil {
		return nil, err
	}
	return p, timelines.Run(t.Context(), a, places(s), sv, p, tl, timelines.Options{Head: archive.NewRecordHead("test", "1")})
}

func recall(t *testing.T, s store.Store, tl wal.Timeline) error {
	a, sv, err := survey(t, s, 1)
	if err != nil {
		return err
	}
	p, err := timelines.DecideRecall(t.Context(), places(s), sv, tl)
	if err != nil {
		return err
	}
	return timelines.Run(t.Context(), a, places(s), sv, p, tl, timelines.Options{Head: archive.NewRecordHead("test", "1")})
}

// ours leaves out what the archive says of moving.
func ours(all map[string]string) map[string]string {
	maps.DeleteFunc(all, func(name, _ string) bool { return strings.HasPrefix(name, archive.QuarantineDir) })
	return all
}

// A timeline and what descends from it goes as a whole, nothing else does, and it comes back as it was.
func TestForgetAndRecall(t *testing.T) {
	m := &storetest.Memory{}
	stray(t, m)
	before := contents(t, m)
	p, err := forget(t, m, 2, 1, true)
	if err != nil {
		t.Fatal(err)
	}
	if p.Timelines[0].Timeline != 3 || p.Timelines[1].Timeline != 2 || fmt.Sprint(p.Timelines[1].Backups) != "[base_000000020000000000000006]" ||
		p.Timelines[1].First != size.Name(2, 5) || p.Timelines[1].Last != size.Name(2, 7) || p.Timelines[1].Segments != 3 || !p.Timelines[1].History {
		t.Errorf("plan %+v", p)
	}
	moved := 0
	for name, content := range ours(contents(t, m)) {
		original, aside := strings.CutPrefix(name, "holdfast/quarantined/")
		if aside {
			moved++
			name = original[len("00000002/"):]
		} else if strings.Contains(name, "/00000002") || strings.Contains(name, "base_00000002") || strings.Contains(name, "/00000003") || strings.Contains(content, `"timeline":3`) {
			t.Errorf("%s is still there", name)
		}
		if before[name] != content {
			t.Errorf("%s has other content", name)
		}
	}
	if moved != p.Objects || moved != 24 {
		t.Errorf("%d objects moved, the plan has %d", moved, p.Objects)
	}
	if _, err := forget(t, m, 2, 1, true); !errors.As(err, new(*timelines.RefusedError)) || !strings.Contains(err.Error(), "aside already") {
		t.Errorf("again: %v", err)
	}
	for _, tl := range []wal.Timeline{2, 3} {
		if err := recall(t, m, tl); err != nil {
			t.Fatal(err)
		}
	}
	if after := ours(contents(t, m)); !maps.Equal(after, before) {
		t.Errorf("brought back: %d objects, were %d", len(after), len(before))
	}
	if err := recall(t, m, 2); !errors.As(err, new(*timelines.RefusedError)) {
		t.Errorf("again: %v", err)
	}
	q, err := timelines.LoadQuarantines(t.Context(), archive.New(m, archive.Options{}))
	if err != nil || q.Last[2].State != timelines.Recalled || q.Age[2].Until.IsZero() || len(q.Bad) > 0 {
		t.Errorf("%+v, %v", q, err)
	}
}

// Whatever call fails, and whether it was done or not: nothing is lost, nobody sees half a backup, and the same command completes it.
func TestMovingIsTakenUpAgain(t *testing.T) {
	original := &storetest.Memory{}
	stray(t, original)
	before := contents(t, original)
	whole := func(what string, s store.Store) {
		t.Helper()
		now := contents(t, s)
		for name, content := range before {
			_, there := now[name]
			aside, away := "", false
			for _, tl := range []string{"00000002/", "00000003/"} {
				if c, ok := now["holdfast/quarantined/"+tl+name]; ok {
					aside, away = c, true
				}
			}
			if !there && !away || there && now[name] != content || away && aside != content {
				t.Errorf("%s: %s is lost", what, name)
			}
			if folder, ok := strings.CutSuffix(name, "_backup_stop_sentinel.json"); ok && there {
				for other := range before {
					if _, ok := now[other]; !ok && strings.HasPrefix(other, folder+"/") {
						t.Errorf("%s: %s is there without %s", what, name, other)
					}
				}
			}
		}
		for _, history := range []string{"00000002.history", "00000003.history"} {
			if _, there := now[archive.WALDir+history]; !there {
				continue
			}
			for name := range before {
				if _, ok := now[name]; !ok && strings.HasPrefix(name, archive.WALDir+history[:8]) {
					t.Errorf("%s: the history of %s is there without %s", what, history[:8], name)
				}
			}
		}
	}
	for kind, flaky := range map[string]func(store.Store, int) *storetest.Flaky{"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		for _, back := range []bool{false, true} {
			for n := 0; ; n++ {
				m := &storetest.Memory{}
				stray(t, m)
				do := func(s store.Store) error { _, err := forget(t, s, 2, 1, true); return err }
				if back {
					if err := do(m); err != nil {
						t.Fatal(err)
					}
					do = func(s store.Store) error { return errors.Join(recall(t, s, 3), recall(t, s, 2)) }
				}
				what := fmt.Sprintf("call %d failed %s, back %v", n, kind, back)
				f := flaky(m, n)
				err := do(f)
				whole(what, m)
				if err != nil {
					err = do(m)
					if refused := new(timelines.RefusedError); errors.As(err, &refused) && (strings.Contains(refused.Reason, "aside already") || strings.Contains(refused.Reason, "nothing of")) {
						err = nil // all but the answer had come through
					}
				}
				if err != nil {
					t.Fatalf("%s: again: %v", what, err)
				}
				now := ours(contents(t, m))
				if back && !maps.Equal(now, before) {
					t.Fatalf("%s: it did not all come back", what)
				}
				for name := range now {
					if !back && !strings.HasPrefix(name, "holdfast/quarantined/") && (strings.Contains(name, "/00000002") || strings.Contains(name, "base_00000002") || strings.Contains(name, "/00000003")) {
						t.Fatalf("%s: %s is still there", what, name)
					}
				}
				if !f.Reached() {
					break
				}
			}
		}
	}
}

// What the cluster, its restores or other backups need is not put aside, nor what somebody is at work on.
func TestForgetRefuses(t *testing.T) {
	for _, x := range []struct {
		what   string
		change func(s store.Store)
		tl     wal.Timeline
		server wal.Timeline
		with   bool
		says   string
	}{
		{"nothing there", nil, 9, 1, false, "nothing of timeline 9"},
		{"descendants", nil, 2, 1, false, "has descendants, which need it: 3"},
		{"the server is on one that is not archived", nil, 2, 4, true, "whether the cluster needs timeline 2"},
		{"the history of the live one is missing", func(s store.Store) { put(t, s, archive.WALDir+size.Name(4, 8)+".lz4", "x") }, 2, 4, true, "the archive has no 00000004.history"},
		{"the live one", nil, 2, 2, true, "is the one that the cluster is on"},
		{"an ancestor of the live one", nil, 2, 3, true, "timeline 2"},
		{"the trunk", nil, 1, 3, true, "timeline"},
		{"the only backup", func(s store.Store) {
			s.Delete(t.Context(), archive.BackupDir+"base_000000010000000000000002_backup_stop_sentinel.json")
		}, 2, 1, true, "no backup that can be restored"},
		{"a history that cannot be read", func(s store.Store) { put(t, s, archive.WALDir+"00000004.history", "x") }, 2, 1, true, "whether timeline 4 needs"},
	} {
		m := &storetest.Memory{}
		stray(t, m)
		if x.change != nil {
			x.change(m)
		}
		before := contents(t, m)
		_, err := forget(t, m, x.tl, x.server, x.with)
		var refused *timelines.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Reason, x.says) {
			t.Errorf("%s: %v, want %q", x.what, err, x.says)
		}
		if !maps.Equal(before, contents(t, m)) {
			t.Errorf("%s: something was changed", x.what)
		}
	}
}

// A backup that is being taken on the timeline says that its server is alive.
func TestForgetSeesPush(t *testing.T) {
	m := &storetest.Memory{}
	stray(t, m)
	a, sv, err := survey(t, m, 1)
	if err != nil {
		t.Fatal(err)
	}
	d, err := a.Begin(t.Context(), "base_000000020000000000000007", "clone")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort(t.Context())
	if sv.Unfinished, err = a.Unfinished(t.Context(), "here"); err != nil {
		t.Fatal(err)
	}
	if _, err := timelines.DecideForget(t.Context(), places(m), sv, 2, true); err == nil || !strings.Contains(err.Error(), "a backup is being taken on timeline 2") {
		t.Errorf("%v", err)
	}
}

// Once the cluster itself has taken the number, the old timeline of that number does not come back over it.
func TestRecallRefusesAnotherTimeline(t *testing.T) {
	m := &storetest.Memory{}
	stray(t, m)
	if _, err := forget(t, m, 2, 1, true); err != nil {
		t.Fatal(err)
	}
	put(t, m, archive.WALDir+"00000002.history", "1\t0/28000000\tno recovery target specified\n")
	put(t, m, archive.WALDir+size.Name(2, 40)+".lz4", "new")
	before := contents(t, m)
	if err := recall(t, m, 2); !errors.As(err, new(*timelines.RefusedError)) || !strings.Contains(err.Error(), "another timeline 2") {
		t.Errorf("%v", err)
	}
	if !maps.Equal(before, contents(t, m)) {
		t.Error("something was changed")
	}
}

// A clone that goes on after it was put aside is put aside again; what differs from what is there already is left, and told.
func TestForgetAgain(t *testing.T) {
	m := &storetest.Memory{}
	stray(t, m)
	if _, err := forget(t, m, 2, 1, true); err != nil {
		t.Fatal(err)
	}
	put(t, m, archive.WALDir+size.Name(2, 8)+".lz4", "more")
	put(t, m, archive.WALDir+size.Name(2, 7)+".lz4", "2 7")
	if _, err := forget(t, m, 2, 1, true); err != nil {
		t.Fatal(err)
	}
	put(t, m, archive.WALDir+size.Name(2, 7)+".lz4", "2 8")
	if _, err := forget(t, m, 2, 1, true); err == nil || !strings.Contains(err.Error(), "is another one") {
		t.Errorf("%v", err)
	}
	if got := contents(t, m); got[archive.WALDir+size.Name(2, 7)+".lz4"] != "2 8" || got["holdfast/quarantined/00000002/wal_005/"+size.Name(2, 7)+".lz4"] != "2 7" {
		t.Error("one was overwritten")
	}
	if names := slices.Sorted(maps.Keys(contents(t, m))); !slices.Contains(names, "holdfast/quarantined/00000002/wal_005/"+size.Name(2, 8)+".lz4") {
		t.Error("the second forgetting moved nothing")
	}
}
