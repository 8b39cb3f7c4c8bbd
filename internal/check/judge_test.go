package check_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/daemon"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

const (
	day = 24 * time.Hour
	gib = 1 << 30
)

// ago is a time before noon.
func ago(d time.Duration) time.Time { return noon.Add(-d) }

// healthy is what is known of a primary that is archived well, of its files and of its archive. Every check is OK of it.
func healthy() *check.Facts {
	until := &ribbon.Point{Timeline: 1, LSN: 0x5000000, Time: ago(time.Minute)}
	return &check.Facts{
		Now: noon,
		Server: &server.Health{
			Position: server.Position{SystemIdentifier: 7, Timeline: 1, SegmentSize: 16 << 20, LSN: 0x5000060, Final: 0x5000060}, Version: 17_00_05,
			ArchiveMode: "on", ArchiveCommand: `holdfast wal-push "%p"`, ArchiveTimeout: time.Minute, SummarizeWAL: "on",
			Archiver: server.ArchiverStatus{Archived: 4, LastArchived: "000000010000000000000004", LastTime: ago(time.Minute)},
			Waiting:  &server.Waiting{}, Slot: &server.Slot{Name: "walg", Active: false, Retained: 0, Status: "reserved"}, Checksums: true,
		},
		Host: &check.Host{Free: 90 * gib, Size: 100 * gib},
		Archive: &check.Archive{
			Ribbon: ribbon.Ribbon{Status: ribbon.OK, Verdict: "Restorable: any moment", Timeline: 1, Until: until, Newest: until}, System: 7, Encrypted: true,
			Backups: []check.Backup{
				{Name: "base_000000010000000000000002", Finished: ago(2 * day), Full: true, Verdict: ribbon.Restorable, Verified: ago(day), Proven: ago(day)},
				{Name: "base_000000010000000000000004_D_000000010000000000000002", Finished: ago(time.Hour), Verdict: ribbon.Restorable},
			},
		},
		Stores: []check.Store{{Name: "default", Took: 10 * time.Millisecond}},
		Deltas: true,
	}
}

// choose makes a choice of one check; limits may be "" for its own.
func choose(t *testing.T, name, limits string) *check.Choice {
	t.Helper()
	s := check.Selection{Only: []string{name}}
	if limits != "" {
		s.Limits = map[string]string{name: limits}
	}
	c, err := check.Choose(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Every check has its faults, and what it says of them; and each limit is where it says.
func TestJudge(t *testing.T) {
	type facts = check.Facts
	waiting := func(n int, since time.Duration) func(*facts) {
		return func(f *facts) {
			f.Host.Waiting = server.Waiting{Files: n, First: "000000010000000000000005", Since: ago(since)}
			f.Server.Archiver.LastTime = ago(since + time.Minute)
			f.Server.Final = 0x6000060
		}
	}
	both := func(all ...func(*facts)) func(*facts) {
		return func(f *facts) {
			for _, one := range all {
				one(f)
			}
		}
	}
	aged := func(d time.Duration) func(*facts) { return func(f *facts) { f.Archive.Backups[1].Finished = ago(d) } }
	full := func(d time.Duration) func(*facts) { return func(f *facts) { f.Archive.Backups[0].Finished = ago(d) } }
	verified := func(d time.Duration) func(*facts) { return func(f *facts) { f.Archive.Backups[0].Verified = ago(d) } }
	proven := func(d time.Duration) func(*facts) { return func(f *facts) { f.Archive.Backups[0].Proven = ago(d) } }
	noServer := func(f *facts) { f.Server, f.ServerErr = nil, errors.New("connection refused") }
	noArchive := func(f *facts) { f.Archive, f.ArchiveErr = nil, errors.New("access denied") }
	unasked := func(f *facts) {
		f.Server, f.ServerErr, f.Host, f.HostErr = nil, check.ErrUnasked, nil, check.ErrUnasked
	}
	standby := func(f *facts) { f.Server.Standby = true }
	lacks := func(since time.Duration) func(*facts) { // the archive a segment that was written then, and nothing waits
		return func(f *facts) {
			f.Archive.Ribbon.Newest.Time, f.Server.Final, f.Host.Missing = ago(3*time.Hour), 0x6000060, ago(since)
		}
	}
	streamed := func(f *facts) { f.Server.Slot.Active = true }
	disk := func(percent int64) func(*facts) { return func(f *facts) { f.Host.Free = percent * gib } }
	heap := func(free int64) func(*facts) { // 4 GiB an hour
		return func(f *facts) {
			f.Host.Backlog, f.Host.Free = daemon.Backlog{Segments: 257, Bytes: 257 << 24, Since: ago(time.Hour)}, free
		}
	}
	command := func(text string) func(*facts) { return func(f *facts) { f.Server.ArchiveCommand = text } }
	clocks := func(server, store time.Duration) func(*facts) {
		return func(f *facts) { f.Server.Ahead, f.Stores[0].Ahead = server, store }
	}

	for _, c := range []struct {
		check, limits string
		fault         func(*facts)
		want          check.Status
		says          string // in its text or what comes next
	}{
		{"server", "", noServer, check.Critical, "connection refused"},
		{"server", "", standby, check.OK, "a standby on timeline 1"},
		{"server", "", unasked, check.Unknown, "PGHOST"},

		{"store", "", func(f *facts) { f.Stores[0].Err = errors.New("403 Forbidden") }, check.Critical, "403 Forbidden"},
		{"store", "", func(f *facts) { f.Stores[0].Err, f.Stores[0].Silent = errors.New("no answer within 30s"), true }, check.Unknown, "no answer"},
		{"store", "", func(f *facts) { f.Stores = append(f.Stores, check.Store{Name: "other", Err: errors.New("down")}) }, check.Warning, "other: down"},
		{"store", "", func(f *facts) { f.Stores[0].Kept = true }, check.OK, "only archives"},
		{"store", "", func(f *facts) { f.Stores, f.StoresErr = nil, errors.New("no bucket") }, check.Critical, "no bucket"},

		{"cluster", "", func(f *facts) { f.Archive.System = 8 }, check.Critical, "--adopt"},
		{"cluster", "", func(f *facts) { f.Archive.System = 0 }, check.OK, "nobody's yet"},
		{"cluster", "", noArchive, check.Unknown, "access denied"},

		{"archive-command", "", func(f *facts) { f.Server.ArchiveMode = "off" }, check.Critical, "archive_mode is off"},
		{"archive-command", "", both(func(f *facts) { f.Server.ArchiveMode = "off" }, streamed), check.OK, "wal-receive streams"},
		{"archive-command", "", func(f *facts) { f.Server.ArchiveLibrary = "basic_archive" }, check.Warning, "basic_archive"},
		{"archive-command", "", command("/bin/true"), check.Critical, "stores none"},
		{"archive-command", "", command(""), check.Critical, "is empty"},
		{"archive-command", "", both(command("/usr/local/bin/archive %p"), func(f *facts) { f.Host.Script = "#!/bin/sh\nholdfast wal-push $1\nexit 0\n" }), check.Critical, "ends with `exit 0`"},
		{"archive-command", "", both(standby, command("")), check.Unknown, "the primary archives"},
		{"archive-command", "", both(standby, command(""), func(f *facts) { f.Server.ArchiveMode = "always" }), check.Critical, "is empty"},

		{"archive-timeout", "", func(f *facts) { f.Server.ArchiveTimeout = 0 }, check.Warning, "is 0"},
		{"archive-timeout", "1m:1h", func(f *facts) { f.Server.ArchiveTimeout = 0 }, check.Critical, "alter system"},
		{"archive-timeout", "", func(f *facts) { f.Server.ArchiveTimeout = time.Hour }, check.OK, "1h0m0s"},
		{"archive-timeout", "", func(f *facts) { f.Server.ArchiveTimeout = time.Hour + time.Second }, check.Warning, "1h0m1s"},
		{"archive-timeout", "", both(streamed, func(f *facts) { f.Server.ArchiveTimeout = 0 }), check.OK, "streams"},

		{"wal-push", "", waiting(1, 5*time.Minute), check.OK, "moves"},
		{"wal-push", "", waiting(1, 5*time.Minute+time.Second), check.Warning, "nothing was archived for"},
		{"wal-push", "", waiting(1, 15*time.Minute), check.Warning, "no process is at work"},
		{"wal-push", "", waiting(1, 15*time.Minute+time.Second), check.Critical, "000000010000000000000005"},
		{"wal-push", "", both(waiting(1, time.Hour), func(f *facts) { f.Server.Archiver.LastTime = ago(time.Second) }), check.OK, "moves"},
		{"wal-push", "", both(waiting(1, time.Hour), func(f *facts) {
			f.Host.Pushing = &check.Process{PID: 42, Command: "holdfast wal-push", State: "sleeping", Waits: "an answer of 192.0.2.1:443"}
		}), check.Critical, "process 42 (holdfast wal-push) is at work on it, and is sleeping, waiting for an answer of 192.0.2.1:443"},
		{"wal-push", "", both(waiting(1, time.Hour), func(f *facts) {
			f.Host.Pushing = &check.Process{PID: 42, Command: "holdfast wal-push", State: "stopped by a signal"}
		}), check.Critical, "`kill -CONT 42`"},
		{"wal-push", "", both(waiting(1, time.Hour), func(f *facts) {
			f.Server.Archiver.Failed, f.Server.Archiver.LastFailed, f.Server.Archiver.FailedTime = 3, "000000010000000000000005", ago(time.Second)
		}), check.Critical, "archive_command failed for 000000010000000000000005"},
		{"wal-push", "", both(waiting(1, time.Hour), standby), check.Unknown, "the primary archives"},
		{"wal-push", "", func(f *facts) {
			f.Host, f.HostErr, f.Server.Waiting = nil, check.ErrUnasked, &server.Waiting{Files: 1, First: "x", Since: ago(time.Hour)}
			f.Server.Archiver.LastTime = ago(time.Hour)
		}, check.Critical, "on the host of the server"},

		{"ready", "", waiting(16, time.Second), check.OK, "16 files wait"},
		{"ready", "", waiting(17, time.Second), check.Warning, "17"},
		{"ready", "", waiting(128, time.Second), check.Warning, "128"},
		{"ready", "", waiting(129, time.Second), check.Critical, "pg_stat_archiver"},
		{"ready", "", func(f *facts) { f.Host, f.HostErr, f.Server.Waiting = nil, errors.New("permission denied"), nil }, check.Unknown, "permission denied"},

		{"wal-age", "", func(f *facts) {
			f.Archive.Ribbon.Newest = &ribbon.Point{Timeline: 1, LSN: 0x5000000, Time: ago(30 * day)}
		}, check.OK, "every whole segment"},
		{"wal-age", "", waiting(1, 15*time.Minute), check.OK, "behind"},
		{"wal-age", "", waiting(1, 15*time.Minute+time.Second), check.Warning, "the archive is 16 MiB behind"},
		{"wal-age", "", waiting(1, time.Hour), check.Warning, "0/5000000"},
		{"wal-age", "", waiting(1, time.Hour+time.Second), check.Critical, "0/6000060"},
		{"wal-age", "", func(f *facts) { // archive_command=/bin/true: nothing waits, and nothing comes
			f.Server.Final, f.Archive.Ribbon.Newest = 0x9000000, &ribbon.Point{Timeline: 1, LSN: 0x5000000, Time: ago(2 * time.Hour)}
		}, check.Critical, "wal-push --repair"},
		{"wal-age", "", both(waiting(1, time.Second), func(f *facts) { // stored in another archive, and the next one waits, as it does now and then
			f.Archive.Ribbon.Newest.Time, f.Host.Waiting.First, f.Server.Final = ago(2*time.Hour), "000000010000000000000041", 0x42000060
		}), check.Critical, "behind"},
		{"restorable", "", both(waiting(1, time.Second), func(f *facts) {
			f.Archive.Ribbon.Newest.Time, f.Host.Waiting.First, f.Server.Final = ago(3*time.Hour), "000000010000000000000041", 0x42000060
		}), check.Critical, "is not safe"},
		{"wal-age", "", both(lacks(time.Second), standby), check.OK, "the archive is 16 MiB behind, for 1"}, // the primary was quiet for hours, and stores what it has written
		{"wal-age", "", both(lacks(time.Hour+time.Second), standby), check.Critical, "behind"},
		{"wal-age", "", both(lacks(0), standby, func(f *facts) { f.Host.Missing = time.Time{} }), check.Critical, "behind, for 3 h"}, // recycled since
		{"wal-age", "", both(lacks(0), standby, func(f *facts) { f.Host = nil }), check.Unknown, "the primary archives"},
		{"wal-age", "", both(lacks(0), standby, streamed, func(f *facts) { f.Host = nil }), check.Critical, "behind, for 3 h"},
		{"wal-age", "", both(lacks(0), func(f *facts) { f.Host = nil }), check.Critical, "behind, for 3 h"},
		{"wal-age", "", lacks(time.Second), check.OK, "behind"}, // archived while it was looked at
		{"restorable", "", both(lacks(time.Second), standby), check.OK, "0/5000000"},
		{"restorable", "", both(lacks(2*time.Hour+time.Second), standby), check.Critical, "is not safe"},
		{"restorable", "", both(lacks(0), standby, func(f *facts) { f.Host = nil }), check.Unknown, "the primary archives"},
		{"wal-age", "", func(f *facts) { f.Archive.Ribbon.Newest = nil }, check.Critical, "no WAL"},
		{"wal-age", "", noArchive, check.Unknown, "access denied"},
		{"wal-age", "", noServer, check.Unknown, "connection refused"},

		{"disk", "", disk(10), check.OK, "10 %"},
		{"disk", "", disk(9), check.Warning, "9.0 GiB"},
		{"disk", "", disk(5), check.Warning, "5 %"},
		{"disk", "", disk(4), check.Critical, "never in pg_wal"},

		{"disk-full", "", func(f *facts) { // a burst of a server that archives as fast as it writes
			f.Host.Backlog, f.Host.Free = daemon.Backlog{Segments: 3, Bytes: 3 << 24, Since: ago(time.Second)}, 90*gib
		}, check.OK, "heaps up"},
		{"disk-full", "", heap(96 * gib), check.OK, "24 hours"},
		{"disk-full", "", heap(95 * gib), check.Warning, "257 segments wait"},
		{"disk-full", "", heap(16 * gib), check.Warning, "4 hours"},
		{"disk-full", "", heap(15 * gib), check.Critical, "archiving going"},

		{"slot", "", func(f *facts) { f.Server.Slot = nil }, check.Unknown, "no replication slot"},
		{"slot", "", both(streamed, func(f *facts) { f.Server.Slot.Retained = gib }), check.OK, "1.0 GiB"},
		{"slot", "", both(streamed, func(f *facts) { f.Server.Slot.Retained = gib + 1 }), check.Warning, "does not keep up"},
		{"slot", "", both(streamed, func(f *facts) { f.Server.Slot.Retained = 8 * gib }), check.Warning, "8.0 GiB"},
		{"slot", "", both(streamed, func(f *facts) { f.Server.Slot.Retained = 8*gib + 1 }), check.Critical, "8.0 GiB"},
		{"slot", "", func(*facts) {}, check.Warning, "nobody receives it"},
		{"slot", "", func(f *facts) { f.Server.Slot.Status = "lost" }, check.Critical, "--accept-gap"},
		{"slot", "", func(f *facts) { f.Server.Slot.Status = "unreserved" }, check.Critical, "about to lose"},

		{"checksums", "", func(f *facts) {
			f.Server.Corrupt, f.Server.CorruptAt, f.Server.CorruptIn = 2, ago(time.Hour), []string{"", "shop"}
		}, check.Critical, "read 2 pages with a wrong checksum, last 60 min ago, in what all databases share, shop"},
		{"checksums", "", func(f *facts) { f.Server.Checksums = false }, check.Unknown, "no checksums"},
		{"checksums", "", func(f *facts) { f.Server.Version = 11_00_22 }, check.Unknown, "before PostgreSQL 12"},

		{"summarize-wal", "", func(f *facts) { f.Server.SummarizeWAL = "off" }, check.Warning, "summarize_wal = on"},
		{"summarize-wal", "", func(f *facts) { f.Server.SummarizeWAL, f.Summaries = "off", true }, check.OK, "with summaries"},
		{"summarize-wal", "", func(f *facts) { f.Server.SummarizeWAL = "" }, check.Warning, "HOLDFAST_WAL_SUMMARIES=on"},
		{"summarize-wal", "", func(f *facts) { f.Server.SummarizeWAL, f.Deltas = "off", false }, check.Unknown, "no delta backups"},

		{"clock", "", clocks(30*time.Second, -30*time.Second), check.OK, "30s"},
		{"clock", "", clocks(31*time.Second, 0), check.Warning, "the clock of the server is 31s ahead of"},
		{"clock", "", clocks(0, -5*time.Minute), check.Warning, "the clock of the storage default is 5m0s behind"},
		{"clock", "", clocks(0, -301*time.Second), check.Critical, "timedatectl"},
		{"clock", "", func(f *facts) {
			f.Server, f.ServerErr, f.Stores, f.StoresErr = nil, check.ErrUnasked, nil, errors.New("down")
		}, check.Unknown, "down"},

		{"backup-age", "", aged(26 * time.Hour), check.OK, "26 h old"},
		{"backup-age", "", aged(26*time.Hour + time.Second), check.Warning, "holdfast backup-push"},
		{"backup-age", "", aged(47 * time.Hour), check.Warning, "D_000000010000000000000002"},
		{"backup-age", "30h:40h", aged(40 * time.Hour), check.Warning, ""},
		{"backup-age", "30h:40h", aged(41 * time.Hour), check.Critical, ""},
		{"backup-age", ":40h", aged(39 * time.Hour), check.OK, ""},
		{"backup-age", "", both(aged(100*time.Hour), full(51*time.Hour)), check.Critical, "base_000000010000000000000002"},
		{"backup-age", "", func(f *facts) { // a broken one does not count
			f.Archive.Backups[1].Verdict, f.Archive.Backups[0].Finished = ribbon.Broken, ago(51*time.Hour)
		}, check.Critical, "base_000000010000000000000002"},
		{"backup-age", "", func(f *facts) { f.Archive.Backups = nil }, check.Critical, "there is no backup"},
		{"backup-age", "", noArchive, check.Unknown, "access denied"},

		{"full-age", "", full(8 * day), check.OK, ""},
		{"full-age", "", full(8*day + time.Second), check.Warning, "backup-merge"},
		{"full-age", "", full(15 * day), check.Warning, ""},
		{"full-age", "", full(15*day + time.Second), check.Critical, "full backup"},
		{"full-age", "", func(f *facts) { f.Archive.Backups = f.Archive.Backups[1:] }, check.Critical, "there is no full backup"},

		{"holes", "", func(f *facts) {
			f.Archive.Ribbon.Status, f.Archive.Ribbon.Verdict, f.Archive.Ribbon.Notes = ribbon.Warning, "Restorable", []string{"a hole on Monday"}
		}, check.Warning, "a hole on Monday"},
		{"holes", "", func(f *facts) {
			f.Archive.Ribbon.Status, f.Archive.Ribbon.Main = ribbon.Failure, []ribbon.Stretch{{Verdict: ribbon.Broken, Segments: 3, Advice: "`holdfast wal-push --repair`"}}
		}, check.Critical, "wal-push --repair"},
		{"holes", "", noArchive, check.Unknown, "access denied"},

		{"restorable", "", func(f *facts) { f.Archive.Ribbon.Until.Time = ago(30 * day) }, check.OK, "where the server is"},
		{"restorable", "", both(unasked, func(f *facts) { f.Archive.Ribbon.Until.Time = ago(30 * time.Minute) }), check.OK, "11:30:00"},
		{"restorable", "", both(unasked, func(f *facts) { f.Archive.Ribbon.Until.Time = ago(31 * time.Minute) }), check.Warning, "holdfast ribbon"},
		{"restorable", "", both(unasked, func(f *facts) { f.Archive.Ribbon.Until.Time = ago(2 * time.Hour) }), check.Warning, ""},
		{"restorable", "", both(unasked, func(f *facts) { f.Archive.Ribbon.Until.Time = ago(121 * time.Minute) }), check.Critical, "set PGHOST"},
		{"restorable", "", func(f *facts) { // a hole: what is archived behind it does not help
			f.Archive.Ribbon.Until = &ribbon.Point{Timeline: 1, LSN: 0x3000000, Time: ago(3 * time.Hour)}
		}, check.Critical, "0/3000000"},
		{"restorable", "", func(f *facts) { f.Archive.Ribbon.Until, f.Archive.Ribbon.Status = nil, ribbon.Failure }, check.Critical, ""},
		{"restorable", "", func(f *facts) { f.Archive.Ribbon.Until, f.Archive.Ribbon.Status = nil, ribbon.Warning }, check.Unknown, ""},

		{"key", "", func(f *facts) { f.Archive.Locked = "no identity matched" }, check.Critical, "no identity matched"},
		{"key", "", func(f *facts) { f.Archive.Locked, f.Archive.Encrypted = "encrypted with age", false }, check.Critical, "key check --read"},
		{"key", "", func(f *facts) { f.Archive.WriteOnly = true }, check.Unknown, "encrypt and not decrypt"},
		{"key", "", func(f *facts) { f.Archive.Encrypted = false }, check.OK, "not encrypted"},

		{"verify", "", verified(8 * day), check.OK, "8 days ago"},
		{"verify", "", verified(8*day + time.Second), check.Warning, "holdfast verify all"},
		{"verify", "", verified(32 * day), check.Warning, ""},
		{"verify", "", verified(32*day + time.Second), check.Critical, ""},
		{"verify", "", func(f *facts) { f.Archive.Backups[0].Verified = time.Time{} }, check.OK, "ever verified"},
		{"verify", "", both(full(9*day), func(f *facts) { f.Archive.Backups[0].Verified = time.Time{} }), check.Warning, "ever verified"},
		{"verify", "", func(f *facts) { f.Archive.Backups = nil }, check.Unknown, "no backup"},

		{"proof", "", proven(35 * day), check.OK, "35 days ago"},
		{"proof", "", proven(35*day + time.Second), check.Warning, "holdfast drill"},
		{"proof", "", proven(100 * day), check.Warning, ""},
		{"proof", "", proven(100*day + time.Second), check.Critical, ""},
		{"proof", "", func(f *facts) { f.Archive.Backups[1].Failed = ago(time.Hour) }, check.Critical, "The drill is red"},
		{"proof", "", func(f *facts) { f.Archive.Backups[0].Failed = ago(2 * day) }, check.OK, "ago"},
		{"proof", "", func(f *facts) { f.Archive.Backups[0].Proven = time.Time{} }, check.Unknown, "ever proven"},
		{"proof", "1d", func(f *facts) { f.Archive.Backups[0].Proven = time.Time{} }, check.Warning, "ever proven"},
		{"proof", "", func(f *facts) { f.Archive.Refused = "a record does not count: it is not signed" }, check.Warning, "it is not signed"},
		{"proof", "", func(f *facts) { f.Archive.Refused, f.Archive.Backups[0].Proven = "not signed", time.Time{} }, check.Warning, "ever proven by a restore; not signed"},
		{"proof", "", func(f *facts) { f.Archive.Refused, f.Archive.Backups[0].Failed = "not signed", ago(time.Hour) }, check.Critical, "did not come up"},
	} {
		f := healthy()
		c.fault(f)
		found := check.Judge(f, choose(t, c.check, c.limits)).Findings[0]
		if found.Status != c.want || !strings.Contains(found.Text+" "+found.Next, c.says) {
			t.Errorf("%s %s: %s %q, next %q; want %s and %q", c.check, c.limits, found.Status, found.Text, found.Next, c.want, c.says)
		}
		if found.Status != check.OK && found.Status != check.Unknown && found.Next == "" {
			t.Errorf("%s: %q does not say what comes next", c.check, found.Text)
		}
	}
}

// Of what is well every check says so, and none worries over an archive whose server is not known here.
func TestJudgeAllWell(t *testing.T) {
	all, err := check.Choose(check.Selection{})
	if err != nil {
		t.Fatal(err)
	}
	f := healthy()
	f.Server.Slot.Active = true
	r := check.Judge(f, all)
	if r.Status != check.OK || len(r.Findings) != len(check.Checks()) {
		t.Errorf("%s, %d findings:\n%s", r.Status, len(r.Findings), r.Nagios())
	}
	for i, c := range check.Checks() {
		if r.Findings[i].Check != c.Name {
			t.Errorf("finding %d is of %s, want %s", i, r.Findings[i].Check, c.Name)
		}
	}
	f.Server, f.ServerErr, f.Host, f.HostErr = nil, check.ErrUnasked, nil, check.ErrUnasked
	if r := check.Judge(f, all); r.Status != check.OK {
		t.Errorf("without a server: %s", r.Nagios())
	}
}

// Whatever is not known, nothing panics, and nothing is OK that depends on it.
func TestJudgeNothingKnown(t *testing.T) {
	all, err := check.Choose(check.Selection{})
	if err != nil {
		t.Fatal(err)
	}
	down := errors.New("down")
	r := check.Judge(&check.Facts{Now: noon, ServerErr: down, HostErr: down, ArchiveErr: down, StoresErr: down}, all)
	for _, f := range r.Findings {
		if f.Status == check.OK && !f.Skipped {
			t.Errorf("%s is OK: %s", f.Check, f.Text)
		}
	}
	if r.Status != check.Critical {
		t.Errorf("all in all %s", r.Status)
	}
}

func TestBehind(t *testing.T) {
	p := server.Position{SegmentSize: 16 << 20}
	for _, c := range []struct {
		final, end wal.LSN
		want       uint64
	}{{0, 0x1000000, 0}, {0x1000000, 0x1000000, 0}, {0x1FFFFFF, 0x1000000, 0}, {0x2000000, 0x1000000, 1}, {0x4000001, 0x1000000, 3}} {
		p.Final = c.final
		if got := p.Behind(c.end); got != c.want {
			t.Errorf("at %s, archived to %s: %d, want %d", c.final, c.end, got, c.want)
		}
	}
}
