package walverify_test

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/walverify"
)

const size = wal.SegmentSize(16 << 20)

var now = time.Date(2026, 5, 6, 12, 0, 0, 0, time.UTC)

type fatal interface {
	Helper()
	Fatal(...any)
	Context() context.Context
}

func put(t fatal, s store.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// fill archives segments first to last of a timeline.
func fill(t fatal, s store.Store, tl wal.Timeline, first, last wal.SegmentNo) {
	t.Helper()
	for n := first; n <= last; n++ {
		put(t, s, archive.WALDir+size.Name(tl, n)+".zst", "x")
	}
}

func backup(t fatal, s store.Store, tl wal.Timeline, n wal.SegmentNo) string {
	t.Helper()
	name := archive.BackupName(size.Name(tl, n))
	lsn := size.Start(n) + 0x28
	put(t, s, archive.BackupDir+name+"_backup_stop_sentinel.json",
		fmt.Sprintf(`{"LSN":%d,"FinishLSN":%d,"PgVersion":150004,"FinishTime":"2026-05-06T00:00:00Z","SystemIdentifier":7}`, lsn, lsn+0x100))
	return name
}

func accept(t fatal, s store.Store, tl wal.Timeline, first, last wal.SegmentNo) {
	t.Helper()
	put(t, s, fmt.Sprintf("%s20260101T000000.000000Z-%d-%d.json", archive.GapDir, first, last),
		fmt.Sprintf(`{"by":"me","timeline":%d,"first":%q,"last":%q,"reason":"gone"}`, uint32(tl), size.Name(tl, first), size.Name(tl, last)))
}

func check(t fatal, s store.Store, r walverify.Request) (*walverify.Integrity, error) {
	t.Helper()
	a := archive.New(s, archive.Options{})
	c, err := catalog.Load(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	accepted, bad, err := catalog.LoadAccepted(t.Context(), a, size)
	if err != nil || len(bad) > 0 {
		t.Fatal(err, bad)
	}
	r.Size = size
	if r.Now.IsZero() {
		r.Now = now
	}
	return walverify.Check(t.Context(), a, c, accepted, r)
}

// text shows rows as timeline:first-last status.
func text(i *walverify.Integrity) string {
	words := []string{i.Status.String()}
	for _, r := range i.Rows {
		words = append(words, fmt.Sprintf("%d:%d-%d %s", uint32(r.Timeline), r.First, r.Last, r.Found))
	}
	return strings.Join(words, "; ")
}

// at is the position in segment n.
func at(n wal.SegmentNo) wal.LSN { return size.Start(n) + 0x1000 }

// What is missing is late, on its way or lost, by how new it is; what was accepted is none of that.
func TestCheck(t *testing.T) {
	for _, x := range []struct {
		what  string
		story func(s store.Store)
		r     walverify.Request
		want  string
	}{
		{"all there", func(s store.Store) { backup(t, s, 1, 3); fill(t, s, 1, 2, 9) }, walverify.Request{Timeline: 1, LSN: at(10)}, "OK; 1:3-9 FOUND"},
		{"the oldest backup cannot be read", func(s store.Store) {
			put(t, s, archive.BackupDir+backup(t, s, 1, 3)+"_backup_stop_sentinel.json", "{")
			backup(t, s, 1, 5)
			fill(t, s, 1, 5, 9)
		}, walverify.Request{Timeline: 1, LSN: at(10)}, "WARNING; 1:5-9 FOUND"},
		{"at a border", func(s store.Store) { backup(t, s, 1, 3); fill(t, s, 1, 2, 9) }, walverify.Request{Timeline: 1, LSN: size.Start(10)}, "OK; 1:3-8 FOUND"},
		{"nothing finished since the backup", func(s store.Store) { backup(t, s, 1, 3) }, walverify.Request{Timeline: 1, LSN: at(3)}, "OK"},
		{"one lost", func(s store.Store) { backup(t, s, 1, 3); fill(t, s, 1, 2, 5); fill(t, s, 1, 7, 9) },
			walverify.Request{Timeline: 1, LSN: at(10)}, "FAILURE; 1:3-5 FOUND; 1:6-6 MISSING_LOST; 1:7-9 FOUND"},
		{"one lost and accepted", func(s store.Store) {
			backup(t, s, 1, 3)
			fill(t, s, 1, 2, 5)
			fill(t, s, 1, 8, 9)
			accept(t, s, 1, 6, 6)
		},
			walverify.Request{Timeline: 1, LSN: at(10)}, "FAILURE; 1:3-5 FOUND; 1:6-6 MISSING_ACCEPTED; 1:7-7 MISSING_LOST; 1:8-9 FOUND"},
		{"all lost is accepted", func(s store.Store) {
			backup(t, s, 1, 3)
			fill(t, s, 1, 2, 5)
			fill(t, s, 1, 8, 9)
			accept(t, s, 1, 6, 7)
		},
			walverify.Request{Timeline: 1, LSN: at(10)}, "OK; 1:3-5 FOUND; 1:6-7 MISSING_ACCEPTED; 1:8-9 FOUND"},
		{"late", func(s store.Store) { backup(t, s, 1, 3); fill(t, s, 1, 3, 7) }, walverify.Request{Timeline: 1, LSN: at(10), Delayed: 2}, "WARNING; 1:3-7 FOUND; 1:8-9 MISSING_DELAYED"},
		{"late without patience", func(s store.Store) { backup(t, s, 1, 3); fill(t, s, 1, 3, 7) }, walverify.Request{Timeline: 1, LSN: at(10)}, "FAILURE; 1:3-7 FOUND; 1:8-9 MISSING_LOST"},
		{"later than may be", func(s store.Store) { backup(t, s, 1, 3); fill(t, s, 1, 3, 5) },
			walverify.Request{Timeline: 1, LSN: at(10), Delayed: 2, Uploading: 1}, "FAILURE; 1:3-5 FOUND; 1:6-6 MISSING_LOST; 1:7-7 MISSING_UPLOADING; 1:8-9 MISSING_DELAYED"},
		{"on its way", func(s store.Store) { backup(t, s, 1, 3); fill(t, s, 1, 3, 7); fill(t, s, 1, 9, 9) },
			walverify.Request{Timeline: 1, LSN: at(10), Delayed: 5, Uploading: 2}, "WARNING; 1:3-7 FOUND; 1:8-8 MISSING_UPLOADING; 1:9-9 FOUND"},
		{"over a promotion", func(s store.Store) {
			backup(t, s, 1, 3)
			fill(t, s, 1, 3, 9)
			put(t, s, archive.WALDir+"00000002.history", "1\t0/6000100\tx\n")
			fill(t, s, 2, 6, 9)
		}, walverify.Request{Timeline: 2, LSN: at(10)}, "OK; 1:3-5 FOUND; 2:6-9 FOUND"},
		{"the segment of the branch is missing", func(s store.Store) {
			backup(t, s, 1, 3)
			fill(t, s, 1, 3, 9)
			put(t, s, archive.WALDir+"00000002.history", "1\t0/6000100\tx\n")
			fill(t, s, 2, 7, 9)
		}, walverify.Request{Timeline: 2, LSN: at(10)}, "FAILURE; 1:3-5 FOUND; 2:6-6 MISSING_LOST; 2:7-9 FOUND"},
		{"no backup", func(s store.Store) { fill(t, s, 1, 4, 9) }, walverify.Request{Timeline: 1, LSN: at(10)}, "WARNING; 1:1-3 MISSING_LOST; 1:4-9 FOUND"},
		{"no backup and a hole", func(s store.Store) { fill(t, s, 1, 4, 6); fill(t, s, 1, 8, 9) },
			walverify.Request{Timeline: 1, LSN: at(10)}, "FAILURE; 1:1-3 MISSING_LOST; 1:4-6 FOUND; 1:7-7 MISSING_LOST; 1:8-9 FOUND"},
		{"notes beside segments are none", func(s store.Store) {
			backup(t, s, 1, 3)
			fill(t, s, 1, 3, 4)
			fill(t, s, 1, 6, 6)
			put(t, s, archive.WALDir+size.Name(1, 5)+".json", "{}")
			put(t, s, archive.WALDir+size.Name(1, 5)+".sum.json", "{}")
			put(t, s, archive.WALDir+size.Name(1, 5)[:23]+".json", "{}")
			put(t, s, archive.WALDir+size.Name(1, 5)+"_delta.zst", "x")
			put(t, s, archive.WALDir+size.Name(1, 5)+".partial.zst", "x")
		}, walverify.Request{Timeline: 1, LSN: at(7)}, "FAILURE; 1:3-4 FOUND; 1:5-5 MISSING_LOST; 1:6-6 FOUND"},
		{"an empty object holds no WAL", func(s store.Store) {
			backup(t, s, 1, 3)
			fill(t, s, 1, 3, 6)
			put(t, s, archive.WALDir+size.Name(1, 5)+".zst", "")
		}, walverify.Request{Timeline: 1, LSN: at(7)}, "FAILURE; 1:3-4 FOUND; 1:5-5 MISSING_LOST; 1:6-6 FOUND"},
		{"in two codecs", func(s store.Store) {
			backup(t, s, 1, 3)
			fill(t, s, 1, 3, 6)
			put(t, s, archive.WALDir+size.Name(1, 5)+".lz4", "x")
		}, walverify.Request{Timeline: 1, LSN: at(7)}, "OK; 1:3-6 FOUND"},
		{"from a backup by name", func(s store.Store) { backup(t, s, 1, 2); backup(t, s, 1, 6); fill(t, s, 1, 5, 9) },
			walverify.Request{Timeline: 1, LSN: at(10), Backup: archive.BackupName(size.Name(1, 6))}, "OK; 1:6-9 FOUND"},
		{"a backup of another cluster does not count", func(s store.Store) { backup(t, s, 1, 2); fill(t, s, 1, 5, 9) },
			walverify.Request{Timeline: 1, LSN: at(10), System: 8}, "WARNING; 1:1-4 MISSING_LOST; 1:5-9 FOUND"},
		{"a backup behind the branch does not count", func(s store.Store) {
			backup(t, s, 1, 7)
			backup(t, s, 2, 8)
			put(t, s, archive.WALDir+"00000002.history", "1\t0/6000100\tx\n")
			fill(t, s, 2, 8, 9)
		}, walverify.Request{Timeline: 2, LSN: at(10)}, "OK; 2:8-9 FOUND"},
		{"a permanent backup may lack WAL behind it", func(s store.Store) {
			name := backup(t, s, 1, 2)
			put(t, s, archive.Folder(name)+"metadata.json", `{"is_permanent":true}`)
			backup(t, s, 1, 6)
			fill(t, s, 1, 6, 9)
		}, walverify.Request{Timeline: 1, LSN: at(10)}, "OK; 1:6-9 FOUND"},
	} {
		s := &storetest.Memory{}
		x.story(s)
		got, err := check(t, s, x.r)
		if err != nil {
			t.Errorf("%s: %v", x.what, err)
		} else if text(got) != x.want {
			t.Errorf("%s:\n got %s\nwant %s", x.what, text(got), x.want)
		}
	}
}

// What retention keeps for the moment at which it was finished needs its own WAL, and none behind it: where that is gone nothing is lost. With nothing else to begin from it is needed.
func TestBackupsKeptForTheirMoment(t *testing.T) {
	at := func(s store.Store, n wal.SegmentNo, day int) {
		put(t, s, archive.BackupDir+archive.BackupName(size.Name(1, n))+"_backup_stop_sentinel.json", fmt.Sprintf(
			`{"LSN":%d,"FinishLSN":%d,"PgVersion":150004,"FinishTime":"2026-05-%02dT00:00:00Z","SystemIdentifier":7}`, size.Start(n)+0x28, size.Start(n+1)+0x100, day))
	}
	since := now.Add(-72 * time.Hour) // the 3rd
	for _, x := range []struct {
		what  string
		story func(s store.Store)
		want  string
	}{
		{"their WAL is there", func(s store.Store) { fill(t, s, 1, 3, 4); fill(t, s, 1, 8, 9); fill(t, s, 1, 14, 19) }, "OK; 1:3-4 FOUND; 1:8-9 FOUND; 1:14-19 FOUND"},
		{"more is there", func(s store.Store) { fill(t, s, 1, 2, 11); fill(t, s, 1, 14, 19) }, "OK; 1:3-4 FOUND; 1:8-9 FOUND; 1:14-19 FOUND"},
		{"some of it is not", func(s store.Store) { fill(t, s, 1, 3, 4); fill(t, s, 1, 8, 8); fill(t, s, 1, 14, 19) },
			"FAILURE; 1:3-4 FOUND; 1:8-8 FOUND; 1:9-9 MISSING_LOST; 1:14-19 FOUND"},
		{"of the others some is not", func(s store.Store) {
			fill(t, s, 1, 3, 4)
			fill(t, s, 1, 8, 9)
			fill(t, s, 1, 14, 16)
			fill(t, s, 1, 18, 19)
		},
			"FAILURE; 1:3-4 FOUND; 1:8-9 FOUND; 1:14-16 FOUND; 1:17-17 MISSING_LOST; 1:18-19 FOUND"},
	} {
		s := &storetest.Memory{}
		at(s, 3, 1)
		at(s, 8, 2)
		at(s, 14, 4)
		x.story(s)
		for range 2 { // by the watermark, too
			if got, err := check(t, s, walverify.Request{Timeline: 1, LSN: size.Start(20) + 0x1000, Since: since}); err != nil || text(got) != x.want {
				t.Errorf("%s: %v, %v, want %s", x.what, text(got), err, x.want)
			}
		}
	}
	s := &storetest.Memory{}
	at(s, 3, 1)
	fill(t, s, 1, 3, 4)
	fill(t, s, 1, 8, 9)
	if got, err := check(t, s, walverify.Request{Timeline: 1, LSN: size.Start(10) + 0x1000, Since: since}); err != nil || text(got) != "FAILURE; 1:3-4 FOUND; 1:5-7 MISSING_LOST; 1:8-9 FOUND" {
		t.Errorf("with nothing else: %v, %v", text(got), err)
	}
}

// Without its history file nothing is known of what leads to the timeline.
func TestCheckNeedsHistory(t *testing.T) {
	s := &storetest.Memory{}
	backup(t, s, 1, 3)
	fill(t, s, 1, 3, 9)
	if _, err := check(t, s, walverify.Request{Timeline: 2, LSN: at(10)}); err == nil || !strings.Contains(err.Error(), "00000002.history") {
		t.Errorf("%v", err)
	}
	put(t, s, archive.WALDir+"00000002.history", "what\n")
	if _, err := check(t, s, walverify.Request{Timeline: 2, LSN: at(10)}); err == nil || !strings.Contains(err.Error(), "00000002.history") {
		t.Errorf("%v", err)
	}
}

// Segment by segment, backwards, as it is described for WAL-G, gives the same.
func TestCheckAgainstScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &storetest.Memory{}
		const last = 30
		there := map[wal.SegmentNo]bool{}
		first := wal.SegmentNo(rapid.IntRange(1, last).Draw(t, "first"))
		backup(t, s, 1, first)
		branch := wal.SegmentNo(rapid.IntRange(1, last+2).Draw(t, "branch"))
		put(t, s, archive.WALDir+"00000002.history", "1\t"+(size.Start(branch)+0x10000).String()+"\tx\n")
		if branch < first { // the backup lies behind the branch
			return
		}
		on := func(n wal.SegmentNo) wal.Timeline {
			if n >= branch {
				return 2
			}
			return 1
		}
		for n := wal.SegmentNo(1); n <= last; n++ {
			if rapid.IntRange(0, 3).Draw(t, "there") > 0 {
				there[n] = true
				fill(t, s, on(n), n, n)
			}
			if rapid.Bool().Draw(t, "elsewhere") { // of a timeline that does not count there
				fill(t, s, 3-on(n), n, n)
			}
		}
		delayed, uploading := rapid.IntRange(0, 5).Draw(t, "delayed"), rapid.IntRange(0, 5).Draw(t, "uploading")

		status := map[wal.SegmentNo]walverify.Found{}
		n := wal.SegmentNo(last)
		scan := func(limit int, missing walverify.Found, stop bool) {
			for ; n >= first && limit > 0; limit-- {
				found := there[n]
				if status[n] = walverify.Archived; !found {
					status[n] = missing
				}
				n--
				if found && stop {
					return
				}
			}
		}
		scan(delayed, walverify.Delayed, true)
		scan(uploading, walverify.Uploading, false)
		scan(last+1, walverify.Lost, false)
		worst := walverify.OK
		for _, f := range status {
			switch f {
			case walverify.Lost:
				worst = max(worst, walverify.Failure)
			case walverify.Delayed, walverify.Uploading:
				worst = max(worst, walverify.Warning)
			}
		}
		got, err := check(t, s, walverify.Request{Timeline: 2, LSN: at(last + 1), Delayed: delayed, Uploading: uploading})
		if err != nil {
			t.Fatal(err)
		}
		next := first
		for _, r := range got.Rows {
			for ; next <= r.Last; next++ {
				if next < r.First || r.Timeline != on(next) || status[next] != r.Found {
					t.Fatalf("segment %d is %s, the rows are %s", next, status[next], text(got))
				}
			}
		}
		if next != last+1 || got.Status != worst {
			t.Fatalf("%s, want %s up to %d", text(got), worst, last)
		}
	})
}

// counted is a store that counts the objects it lists of WAL.
type counted struct {
	*storetest.Memory
	listed int
}

func (c *counted) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range c.Memory.List(ctx, dir, after) {
			if strings.HasPrefix(dir, archive.WALDir) {
				c.listed++
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// A second look begins where the first one ended.
func TestWatermark(t *testing.T) {
	s := &counted{Memory: &storetest.Memory{}}
	backup(t, s, 1, 3)
	fill(t, s, 1, 3, 2000)
	accept(t, s, 1, 700, 701)
	for n := wal.SegmentNo(700); n <= 701; n++ {
		if err := s.Delete(t.Context(), archive.WALDir+size.Name(1, n)+".zst"); err != nil {
			t.Fatal(err)
		}
	}
	look := func(what string, r walverify.Request, want string, from wal.SegmentNo, most int, note string) {
		t.Helper()
		s.listed = 0
		got, err := check(t, s, r)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		since := ""
		if from != 0 {
			since = size.Name(1, from)
			if from > 2000 {
				since = size.Name(2, from)
			}
		}
		if text(got) != want || got.Since != since || s.listed > most || !strings.Contains(strings.Join(got.Notes, "; "), note) || note == "" && len(got.Notes) > 0 {
			t.Errorf("%s:\n got %s since %s, %d listed, notes %q\nwant %s since %s, at most %d", what, text(got), got.Since, s.listed, got.Notes, want, since, most)
		}
	}
	const few = 192 + 3*16 + 3*16 + 20
	r := walverify.Request{Timeline: 1, LSN: at(2001), System: 7, AskAgain: 192}
	all := "1:3-699 FOUND; 1:700-701 MISSING_ACCEPTED; 1:702-2000 FOUND"
	look("at first", r, "OK; "+all, 0, 2100, "")
	look("again", r, "OK; "+all, 1985, few, "")
	r.LSN = at(2003)
	look("a little later", r, "FAILURE; "+all+"; 1:2001-2002 MISSING_LOST", 1985, few, "")
	fill(t, s, 1, 2001, 2010)
	r.LSN = at(2011)
	all = strings.Replace(all, "2000", "2010", 1)
	look("later", r, "OK; "+all, 1985, few+10, "")
	look("and again", r, "OK; "+all, 1995, few, "")
	r.All = true
	look("all that is asked for", r, "OK; "+all, 0, 2100, "")
	r.All = false

	later := r
	later.Now = now.Add(24 * time.Hour)
	look("the next day", later, "OK; "+all, 0, 2100, "once a day")

	put(t, s, archive.WALDir+"00000002.history", "1\t7/D9000010\tx\n") // in segment 2009
	fill(t, s, 2, 2009, 2050)
	promoted := r
	promoted.Timeline, promoted.LSN = 2, at(2051)
	look("after a promotion before the end", promoted, "OK; 1:3-699 FOUND; 1:700-701 MISSING_ACCEPTED; 1:702-2008 FOUND; 2:2009-2050 FOUND", 0, 2200, "is not on the way to timeline 2 any more")
	look("and then again", promoted, "OK; 1:3-699 FOUND; 1:700-701 MISSING_ACCEPTED; 1:702-2008 FOUND; 2:2009-2050 FOUND", 2035, few, "")

	accept(t, s, 1, 702, 702) // changes nothing
	look("another gap is accepted", promoted, "OK; 1:3-699 FOUND; 1:700-701 MISSING_ACCEPTED; 1:702-2008 FOUND; 2:2009-2050 FOUND", 2035, few, "")
	if err := s.Delete(t.Context(), archive.GapDir+"20260101T000000.000000Z-700-701.json"); err != nil {
		t.Fatal(err)
	}
	look("it is accepted no more", promoted, "FAILURE; 1:3-699 FOUND; 1:700-701 MISSING_LOST; 1:702-2008 FOUND; 2:2009-2050 FOUND", 2035, few+20, "")
	fill(t, s, 1, 700, 700)
	look("half of it is repaired", promoted, "FAILURE; 1:3-700 FOUND; 1:701-701 MISSING_LOST; 1:702-2008 FOUND; 2:2009-2050 FOUND", 2035, few+20, "")
	fill(t, s, 1, 701, 701)
	look("all of it is repaired", promoted, "OK; 1:3-2008 FOUND; 2:2009-2050 FOUND", 2035, few+20, "")
	look("and nothing is looked at again", promoted, "OK; 1:3-2008 FOUND; 2:2009-2050 FOUND", 2035, few, "")

	count := 0
	for _, err := range archive.Records[walverify.Watermark](t.Context(), archive.New(s, archive.Options{}), archive.WatermarkDir) {
		if count++; err != nil {
			t.Error(err)
		}
	}
	if count != 1 {
		t.Errorf("%d watermarks are left", count)
	}
}

// Of an archive that is not very large all names are looked at each time: one segment that somebody removed is missed at once. Of a larger one it is in some.
func TestRemovedBehindTheWatermark(t *testing.T) {
	for _, x := range []struct{ again, looks int }{{0, 1}, {500, 100}} {
		s := &counted{Memory: &storetest.Memory{}}
		backup(t, s, 1, 3)
		fill(t, s, 1, 3, 2000)
		r := walverify.Request{Timeline: 1, LSN: at(2001), System: 7, AskAgain: x.again}
		if got, err := check(t, s, r); err != nil || got.Status != walverify.OK {
			t.Fatal(err, text(got))
		}
		if err := s.Delete(t.Context(), archive.WALDir+size.Name(1, 777)+".zst"); err != nil {
			t.Fatal(err)
		}
		var got *walverify.Integrity
		for range x.looks {
			s.listed = 0
			var err error
			if got, err = check(t, s, r); err != nil {
				t.Fatal(err)
			}
			if got.Status != walverify.OK {
				break
			}
			if x.again > 0 && s.listed > x.again+100 {
				t.Errorf("%d names listed", s.listed)
			}
		}
		if text(got) != "FAILURE; 1:3-776 FOUND; 1:777-777 MISSING_LOST; 1:778-2000 FOUND" {
			t.Errorf("asking for %d again: %s", x.again, text(got))
		}
	}
}

// A watermark that was tampered with, or that the archive does not bear out, is not believed.
func TestWatermarkIsChecked(t *testing.T) {
	r := walverify.Request{Timeline: 1, LSN: at(200), System: 7}
	for what, x := range map[string]struct {
		spoil func(s store.Store, name, doc string)
		want  string
		note  string
	}{
		"not JSON": {func(s store.Store, name, _ string) { put(t, s, name, "x") }, "OK; 1:3-199 FOUND", "not a JSON object"},
		"a count": {func(s store.Store, name, doc string) {
			put(t, s, name, strings.Replace(doc, `"count":197`, `"count":198`, 1))
		},
			"OK; 1:3-199 FOUND", "are not 198 segments"},
		"a name": {func(s store.Store, name, doc string) {
			put(t, s, name, strings.Replace(doc, size.Name(1, 199), size.Name(1, 199)[:23]+"x", 1))
		}, "OK; 1:3-199 FOUND", "are not"},
		"of another cluster": {func(s store.Store, name, doc string) {
			put(t, s, name, strings.Replace(doc, `"system_identifier":7`, `"system_identifier":8`, 1))
		}, "OK; 1:3-199 FOUND", "another cluster"},
		"of another timeline": {func(s store.Store, name, doc string) {
			put(t, s, name, strings.Replace(doc, `"timeline":1`, `"timeline":4`, 1))
		},
			"OK; 1:3-199 FOUND", "it is of timeline 4"},
		"from the future": {func(s store.Store, name, doc string) {
			put(t, s, name, strings.Replace(doc, `"walked":"2026`, `"walked":"2036`, 1))
		},
			"OK; 1:3-199 FOUND", "once a day"},
		"no rows": {func(s store.Store, name, doc string) {
			put(t, s, name, `{"timeline":1,"segment_size":16777216,"walked":"2026-05-06T12:00:00Z"}`)
		},
			"OK; 1:3-199 FOUND", "makes no sense"},
		"an older backup": {func(s store.Store, _, _ string) { backup(t, s, 1, 1); fill(t, s, 1, 1, 2) }, "OK; 1:1-199 FOUND", "WAL is needed from"},
		"what was there is gone": {func(s store.Store, _, _ string) {
			for n := wal.SegmentNo(10); n < 150; n++ {
				if err := s.Delete(t.Context(), archive.WALDir+size.Name(1, n)+".zst"); err != nil {
					t.Fatal(err)
				}
			}
		}, "FAILURE; 1:3-9 FOUND; 1:10-149 MISSING_LOST; 1:150-199 FOUND", "is not there any more"},
	} {
		s := &storetest.Memory{}
		backup(t, s, 1, 3)
		fill(t, s, 1, 3, 199)
		if _, err := check(t, s, r); err != nil {
			t.Fatal(err)
		}
		for o, err := range s.List(t.Context(), archive.WatermarkDir, "") {
			if err != nil {
				t.Fatal(err)
			}
			b, err := store.ReadFile(t.Context(), s, o.Name, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			x.spoil(s, o.Name, string(b))
		}
		got, err := check(t, s, r)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if notes := strings.Join(got.Notes, "; "); text(got) != x.want || got.Since != "" || !strings.Contains(notes, x.note) {
			t.Errorf("%s: %s since %q, %s", what, text(got), got.Since, notes)
		}
	}
}

// Whatever a watermark says, the rows are of all segments from the first that is needed to the last, each once, on the path.
func FuzzWatermark(f *testing.F) {
	f.Add([]byte(`{"timeline":1,"segment_size":16777216,"path":[],"rows":[{"first":"000000010000000000000003","last":"0000000100000000000000C7","count":197}],"walked":"2026-05-06T12:00:00Z"}`))
	f.Add([]byte(`{"timeline":2,"segment_size":16777216,"path":[{"timeline":1,"switch":"0/64000100"}],"rows":[{"first":"000000010000000000000003","last":"000000010000000000000063","count":97},` +
		`{"first":"000000020000000000000064","last":"000000020000000000000065","count":2,"missing":true},{"first":"000000020000000000000066","last":"0000000200000000000000C7","count":98}],"walked":"2026-05-06T12:00:00Z"}`))
	f.Add([]byte(`{"timeline":4294967295,"segment_size":1,"rows":[{}],"walked":"2026-05-06T12:00:00Z"}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		s := &storetest.Memory{}
		backup(t, s, 1, 3)
		put(t, s, archive.WALDir+"00000002.history", "1\t0/64000100\tx\n") // in segment 100
		fill(t, s, 1, 3, 99)
		fill(t, s, 2, 100, 199)
		put(t, s, archive.WatermarkDir+"20260506T110000.000000Z-x.json", string(doc))
		got, err := check(t, s, walverify.Request{Timeline: 2, LSN: at(200)})
		if err != nil {
			t.Fatal(err)
		}
		next := wal.SegmentNo(3)
		for _, r := range got.Rows {
			if r.First != next || r.Last < r.First || (r.Timeline == 1) != (r.Last < 100) || (r.Timeline == 2) != (r.First >= 100) {
				t.Fatalf("%s", text(got))
			}
			next = r.Last + 1
		}
		if next != 200 || got.Status != walverify.OK && got.Since == "" {
			t.Errorf("%s", text(got))
		}
	})
}

// A host that may not write checks all the same. A listing that fails is no verdict.
func TestCheckWithoutLuck(t *testing.T) {
	for n := 0; ; n++ {
		m := &storetest.Memory{}
		backup(t, m, 1, 3)
		fill(t, m, 1, 3, 199)
		a := archive.New(m, archive.Options{})
		c, err := catalog.Load(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		f := storetest.FailAt(m, n)
		got, err := walverify.Check(t.Context(), archive.New(f, archive.Options{}), c, nil, walverify.Request{Timeline: 1, LSN: at(200), Size: size, Now: now})
		if err == nil && text(got) != "OK; 1:3-199 FOUND" {
			t.Errorf("call %d: %s", n, text(got))
		}
		if err != nil && !strings.Contains(err.Error(), "list") {
			t.Errorf("call %d: %v", n, err)
		}
		if !f.Reached() {
			break
		}
	}
}

// The highest timeline is that of any WAL file, and whoever has another one is told.
func TestHighest(t *testing.T) {
	s := &counted{Memory: &storetest.Memory{}}
	a := archive.New(s, archive.Options{})
	for _, x := range []struct {
		name string
		want wal.Timeline
	}{{"", 0}, {size.Name(1, 3) + ".zst", 1}, {"00000004.history", 4}, {size.Name(3, 3) + ".lz4", 4}, {"nothing.txt", 4}, {size.Name(9, 1) + ".partial", 9}} {
		if x.name != "" {
			put(t, s, archive.WALDir+x.name, "x")
		}
		fill(t, s, 1, 100, 300)
		s.listed = 0
		got, err := walverify.Highest(t.Context(), a)
		if x.want = max(x.want, 1); err != nil || got != x.want || s.listed > 8 {
			t.Errorf("with %s: %d, %v, %d listed", x.name, got, err, s.listed)
		}
	}
	for _, x := range []struct {
		highest, current wal.Timeline
		want             walverify.Status
	}{{0, 1, walverify.Warning}, {2, 2, walverify.OK}, {3, 2, walverify.Failure}, {1, 2, walverify.Failure}} {
		if got := walverify.JudgeTimeline(x.highest, x.current); got != x.want {
			t.Errorf("%+v: %s", x, got)
		}
	}
}
