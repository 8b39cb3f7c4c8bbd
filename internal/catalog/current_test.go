package catalog_test

import (
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
)

// A story is what an archive knows of a cluster's timelines, told by hand: moments are hours of one day.
type story struct {
	t *testing.T
	m *storetest.Memory
	w *catalog.WAL
}

func tell(t *testing.T) *story {
	return &story{t, &storetest.Memory{}, &catalog.WAL{SegmentSize: size}}
}

// promoted says that timeline t began when parent was left at, and when its history file was archived.
func (s *story) promoted(t, parent wal.Timeline, branch wal.LSN, hour int) *story {
	var lines string
	for _, line := range s.ancestors(parent) {
		lines += line + "\n"
	}
	put(s.t, s.m, archive.WALDir+wal.HistoryName(t), lines+parentLine(parent, branch))
	s.of(t).History = &catalog.HistoryFile{Archived: at(hour, 0)}
	return s
}

func parentLine(parent wal.Timeline, branch wal.LSN) string {
	return strings.TrimLeft(parent.String(), "0") + "\t" + branch.String() + "\tno recovery target specified\n"
}

// ancestors returns the lines of the history file of t.
func (s *story) ancestors(t wal.Timeline) []string {
	c := load(s.t, s.m)
	var lines []string
	for _, b := range c.Histories[t] {
		lines = append(lines, strings.TrimSpace(parentLine(b.Timeline, b.Switch)))
	}
	return lines
}

func (s *story) of(t wal.Timeline) *catalog.TimelineWAL {
	if of := s.w.Timeline(t); of != nil {
		return of
	}
	s.w.Timelines = append(s.w.Timelines, catalog.TimelineWAL{Timeline: t})
	slices.SortFunc(s.w.Timelines, func(a, b catalog.TimelineWAL) int { return int(a.Timeline) - int(b.Timeline) })
	return s.w.Timeline(t)
}

// archived says that segments first to last of t were archived between two hours.
func (s *story) archived(t wal.Timeline, first, last wal.SegmentNo, from, to int) *story {
	of := s.of(t)
	of.Runs = append(of.Runs, catalog.Run{First: first, Last: last, Oldest: at(from, 0), Newest: at(to, 0), Bytes: 1})
	return s
}

func (s *story) backedUp(t wal.Timeline, segment wal.SegmentNo, hour int) *story {
	lsn := size.Start(segment)
	backup(s.t, s.m, archive.BackupName(size.Name(t, segment)), lsn+0x28, lsn+0x100, at(hour, 0))
	return s
}

// The timeline that a cluster is on is the one an operator would name who saw the same archive.
func TestCurrent(t *testing.T) {
	const branch = 0x5800000 // in segment 5
	for _, x := range []struct {
		what    string
		story   func(*story)
		e       catalog.Evidence
		want    wal.Timeline
		certain bool
		why     string
	}{
		{"an empty archive", func(s *story) {}, catalog.Evidence{}, 1, true, "no other"},
		{"one timeline", func(s *story) { s.archived(1, 2, 9, 0, 9).backedUp(1, 2, 1) }, catalog.Evidence{}, 1, true, "no other"},
		{"after a promotion", func(s *story) { s.archived(1, 2, 5, 0, 5).promoted(2, 1, branch, 6).archived(2, 5, 9, 6, 9) }, catalog.Evidence{}, 2, true, "all others lead to it"},
		{"just promoted", func(s *story) { s.archived(1, 2, 5, 0, 5).promoted(2, 1, branch, 6) }, catalog.Evidence{}, 2, true, "all others lead to it"},
		{"two promotions", func(s *story) {
			s.archived(1, 2, 5, 0, 5).promoted(2, 1, branch, 6).archived(2, 5, 9, 6, 9).promoted(3, 2, 0x9000100, 10).archived(3, 9, 10, 10, 11)
		}, catalog.Evidence{}, 3, true, "timeline 2 was left"},
		{"the old primary was ahead when it failed", func(s *story) {
			s.archived(1, 2, 7, 0, 5).promoted(2, 1, branch, 6).archived(2, 5, 6, 6, 6)
		}, catalog.Evidence{}, 2, true, "timeline 1 was left for it"},
		{"a stray clone long ago", func(s *story) {
			s.archived(1, 2, 90, 0, 9).backedUp(1, 2, 1).promoted(2, 1, branch, 3).archived(2, 5, 6, 3, 3)
		}, catalog.Evidence{}, 1, false, "active last"},
		{"a stray clone of a clone", func(s *story) {
			s.archived(1, 2, 90, 0, 9).promoted(2, 1, branch, 3).archived(2, 5, 7, 3, 3).promoted(3, 2, 0x7000100, 4).archived(3, 7, 8, 4, 4)
		}, catalog.Evidence{}, 1, false, "active last"},
		{"a stray clone pushes now, the cluster takes backups", func(s *story) {
			s.archived(1, 2, 9, 0, 9).backedUp(1, 8, 8).promoted(2, 1, branch, 9).archived(2, 5, 8, 9, 9)
			s.of(1).Runs[0].Newest = at(9, 20)
		}, catalog.Evidence{}, 1, false, "backups of its own"},
		{"a stray clone pushes now, the cluster writes more", func(s *story) {
			s.archived(1, 2, 90, 0, 9).promoted(2, 1, branch, 9).archived(2, 5, 8, 9, 9)
			s.of(1).Runs[0].Newest = at(9, 20)
		}, catalog.Evidence{}, 1, false, "segments of its own"},
		{"a stray clone goes on while the cluster is down", func(s *story) {
			s.archived(1, 2, 90, 0, 6).backedUp(1, 2, 1).backedUp(1, 50, 5).promoted(2, 1, branch, 3).archived(2, 5, 9, 3, 9)
		}, catalog.Evidence{}, 1, false, "which was active later"},
		{"the old primary goes on beside the new one for a while, and takes a backup", func(s *story) {
			s.archived(1, 2, 8, 0, 7).backedUp(1, 7, 7).promoted(2, 1, branch, 6).archived(2, 5, 90, 6, 12)
		}, catalog.Evidence{}, 2, false, "active last"},
		{"the old primary goes on beside the new one for a while", func(s *story) {
			s.archived(1, 2, 8, 0, 6).promoted(2, 1, branch, 6).archived(2, 5, 9, 6, 12)
			s.of(1).Runs[0].Newest = at(6, 20)
		}, catalog.Evidence{}, 2, false, "active last"},
		{"the server says so", func(s *story) {
			s.archived(1, 2, 8, 0, 6).promoted(2, 1, branch, 6).archived(2, 5, 9, 6, 12)
		}, catalog.Evidence{Server: 1}, 1, false, "the server says"},
		{"the server is on one that the only other one has left", func(s *story) {
			s.archived(1, 2, 5, 0, 6).promoted(2, 1, branch, 6).archived(2, 5, 9, 6, 12)
		}, catalog.Evidence{Server: 1}, 1, false, "the server says"},
		{"the server is on a timeline that is not archived", func(s *story) { s.archived(1, 2, 8, 0, 6) }, catalog.Evidence{Server: 3}, 1, true, "knows nothing yet"},
		{"after pg_upgrade timelines begin with 1 again", func(s *story) {
			s.promoted(2, 1, branch, 1).archived(2, 5, 9, 1, 2).archived(1, 2, 5, 0, 1).archived(1, 10, 20, 5, 9).backedUp(1, 10, 5)
		}, catalog.Evidence{}, 1, false, "active last"},
		{"a timeline without a history file", func(s *story) {
			s.archived(1, 2, 5, 0, 2).archived(2, 5, 9, 3, 9)
		}, catalog.Evidence{}, 2, false, "active last"},
		{"a clone that was put aside and brought back is as old as it was", func(s *story) {
			s.archived(1, 2, 9, 0, 9).promoted(2, 1, branch, 20).archived(2, 5, 6, 20, 20)
		}, catalog.Evidence{Forgotten: map[wal.Timeline]catalog.Aside{2: {Newest: at(4, 0), Until: at(21, 0)}}}, 1, false, "active last"},
		{"and counts as alive when it goes on", func(s *story) {
			s.archived(1, 2, 9, 0, 9).promoted(2, 1, branch, 20).archived(2, 5, 6, 20, 22)
		}, catalog.Evidence{Forgotten: map[wal.Timeline]catalog.Aside{2: {Newest: at(4, 0), Until: at(21, 0)}}}, 2, false, "active last"},
	} {
		s := tell(t)
		x.story(s)
		x.e.WAL = s.w
		got := load(t, s.m).Current(x.e)
		if got.Timeline != x.want || got.Certain() != x.certain || !strings.Contains(got.Why, x.why) {
			t.Errorf("%s: timeline %d, certain %v, since %s; want %d, %v, %q", x.what, got.Timeline, got.Certain(), got.Why, x.want, x.certain, x.why)
		}
	}
}

// Restoring goes to the cluster's timeline, and a backup of another line along that one.
func TestChooseAlongTheCluster(t *testing.T) {
	s := tell(t).archived(1, 2, 90, 0, 9).backedUp(1, 2, 1).backedUp(1, 50, 5).promoted(2, 1, 0x5800000, 3).archived(2, 5, 7, 3, 3).backedUp(2, 6, 3)
	c := load(t, s.m)
	c.Evidence.WAL = s.w
	for _, x := range []struct {
		name   string
		target catalog.Target
		backup string
		along  wal.Timeline
	}{
		{"", catalog.Target{Kind: catalog.Latest}, archive.BackupName(size.Name(1, 50)), 1},
		{"", catalog.Target{Kind: catalog.AtTime, Time: at(4, 0)}, archive.BackupName(size.Name(1, 2)), 1},
		{"", catalog.Target{Kind: catalog.Latest, Highest: true}, archive.BackupName(size.Name(2, 6)), 2},
		{"", catalog.Target{Kind: catalog.Latest, Timeline: 2}, archive.BackupName(size.Name(2, 6)), 2},
		{archive.BackupName(size.Name(2, 6)), catalog.Target{Kind: catalog.Latest}, archive.BackupName(size.Name(2, 6)), 2},
		{archive.BackupName(size.Name(1, 2)), catalog.Target{Kind: catalog.Latest}, archive.BackupName(size.Name(1, 2)), 1},
	} {
		got, err := c.Choose(x.name, x.target)
		if err != nil {
			t.Errorf("%+v: %v", x, err)
			continue
		}
		if got.Backup.Name != x.backup || got.Path.Timeline() != x.along || got.Target.Timeline != x.along {
			t.Errorf("%+v: %s along %d", x, got.Backup.Name, got.Path.Timeline())
		}
		asked := x.target.Timeline != 0 || x.target.Highest
		if (got.Current == nil) != asked || !asked && got.Current.Timeline != x.along {
			t.Errorf("%+v: %+v", x, got.Current)
		}
	}
}

// The newest backup is not a stray clone's where it is known where the cluster is; where that is a guess it is the newest, as WAL-G has it.
func TestTheNewestBackupIsTheClusters(t *testing.T) {
	const branch = 0x5800000 // in segment 5
	first, own, stray := archive.BackupName(size.Name(1, 2)), archive.BackupName(size.Name(1, 50)), archive.BackupName(size.Name(2, 6))
	for _, x := range []struct {
		what   string
		story  func(*story)
		server wal.Timeline
		want   string
		passed string
	}{
		{"a clone took a backup after the cluster's", func(s *story) {
			s.archived(1, 2, 90, 0, 9).backedUp(1, 2, 1).backedUp(1, 50, 5).promoted(2, 1, branch, 3).archived(2, 5, 7, 3, 7).backedUp(2, 6, 7)
		}, 0, own, stray},
		{"a clone took one, and the cluster is idle but says where it is", func(s *story) {
			s.archived(1, 2, 5, 0, 2).backedUp(1, 2, 1).promoted(2, 1, branch, 3).archived(2, 5, 7, 3, 7).backedUp(2, 6, 7)
		}, 1, first, stray},
		{"a promotion, and a backup after it", func(s *story) {
			s.archived(1, 2, 5, 0, 2).backedUp(1, 2, 1).promoted(2, 1, branch, 3).archived(2, 5, 7, 3, 7).backedUp(2, 6, 7)
		}, 0, stray, ""},
		{"a promotion, and none since", func(s *story) {
			s.archived(1, 2, 5, 0, 2).backedUp(1, 2, 1).promoted(2, 1, branch, 3).archived(2, 5, 7, 3, 7)
		}, 0, first, ""},
		{"a clone goes on while the cluster is down", func(s *story) {
			s.archived(1, 2, 90, 0, 6).backedUp(1, 2, 1).backedUp(1, 50, 5).promoted(2, 1, branch, 3).archived(2, 5, 9, 3, 9)
		}, 0, own, ""},
		{"the old primary took one after it was left, the server says where the cluster is", func(s *story) {
			s.archived(1, 2, 90, 0, 6).backedUp(1, 2, 1).backedUp(1, 50, 5).promoted(2, 1, branch, 3).archived(2, 5, 9, 3, 9)
		}, 2, first, own},
	} {
		s := tell(t)
		x.story(s)
		c := load(t, s.m)
		c.Evidence = catalog.Evidence{WAL: s.w, Server: x.server}
		got, err := c.Choose("LATEST", catalog.Target{})
		if err != nil {
			t.Errorf("%s: %v", x.what, err)
			continue
		}
		passed := ""
		if got.Passed != nil {
			passed = got.Passed.Name
		}
		if got.Backup.Name != x.want || passed != x.passed {
			t.Errorf("%s: %s, passed %q; want %s, %q", x.what, got.Backup.Name, passed, x.want, x.passed)
		}
		c.Evidence = catalog.Evidence{}
		if got, err = c.Choose("", catalog.Target{}); err != nil || got.Backup != &c.Backups[len(c.Backups)-1] || got.Passed != nil {
			t.Errorf("%s, where nobody has looked: %+v, %v", x.what, got, err)
		}
	}
	// One that cannot be read is not passed over when it is on the way.
	s := tell(t).archived(1, 2, 90, 0, 9).backedUp(1, 2, 1).promoted(2, 1, branch, 3).archived(2, 5, 7, 3, 7).backedUp(2, 6, 7)
	put(t, s.m, archive.BackupDir+own+"_backup_stop_sentinel.json", "{")
	c := load(t, s.m)
	c.Evidence = catalog.Evidence{WAL: s.w, Server: 1}
	if got, err := c.Choose("", catalog.Target{}); err == nil {
		t.Errorf("the newest of the cluster's cannot be read, and %s was taken", got.Backup.Name)
	}
}
