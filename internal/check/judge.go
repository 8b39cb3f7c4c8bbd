package check

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
)

func fine(text string, args ...any) Finding { return Finding{Text: fmt.Sprintf(text, args...)} }

func skipped(text string, args ...any) Finding {
	return Finding{Text: fmt.Sprintf(text, args...), Skipped: true}
}

// noServer is the finding of a check that needs the server, where it is not known.
func (f *Facts) noServer() Finding {
	if errors.Is(f.ServerErr, ErrUnasked) {
		return skipped("no server is named here: set PGHOST, PGPORT, PGSERVICE or PGDATA")
	}
	return f.follows("server", "the server could not be asked", f.ServerErr)
}

// noArchive is the finding of a check that needs the archive, where it is not known.
func (f *Facts) noArchive() Finding {
	return f.follows("holes", "the archive could not be looked at", f.ArchiveErr)
}

// follows is the finding of a check whose facts another one misses.
func (f *Facts) follows(check, text string, err error) Finding {
	if f.only {
		text = fmt.Sprintf("%s: %v", text, err)
	}
	return Finding{Status: Unknown, Text: text, Follows: check}
}

// lacks returns the finding of a check that cannot do without what is not known; nil where all is.
func (f *Facts) lacks(must need) *Finding {
	var found Finding
	switch {
	case must&needServer != 0 && f.Server == nil:
		found = f.noServer()
	case must&needArchive != 0 && f.Archive == nil:
		found = f.noArchive()
	case must&needBackup != 0 && len(f.Archive.Backups) == 0:
		found = skipped("there is no backup")
	default:
		return nil
	}
	return &found
}

// noHost is the finding of a check that looks at files of the server, where they are not seen.
func (f *Facts) noHost() Finding {
	switch {
	case errors.Is(f.HostErr, ErrUnasked) && f.Server == nil:
		return f.noServer()
	case errors.Is(f.HostErr, ErrUnasked):
		return skipped("the files of the server are not on this host")
	}
	return Finding{Status: Unknown, Text: fmt.Sprintf("the server's pg_wal could not be looked at: %v", f.HostErr),
		Next: "run this as the account of the server, with PGDATA set to its data directory"}
}

// archives reports whether the server is one that archives by archive_command: no standby, unless it is told to.
func (f *Facts) archives() bool {
	return f.Server == nil || !f.Server.Standby || f.Server.ArchiveMode == "always"
}

// standby is why archiving is not judged where the server does not archive.
const standby = "a standby: the primary archives"

// streamed reports whether wal-receive streams from the server.
func (f *Facts) streamed() bool {
	return f.Server != nil && f.Server.Slot != nil && f.Server.Slot.Active
}

// waiting returns what waits to be archived; nil where that is not known.
func (f *Facts) waiting() *server.Waiting {
	switch {
	case f.Host != nil:
		return &f.Host.Waiting
	case f.Server != nil:
		return f.Server.Waiting
	}
	return nil
}

func judgeServer(f *Facts, _ Limits) Finding {
	switch {
	case f.Server == nil && errors.Is(f.ServerErr, ErrUnasked):
		return f.noServer()
	case f.Server == nil:
		return Finding{Status: Critical, Text: fmt.Sprintf("the server could not be asked: %v", f.ServerErr), Next: "`pg_isready`, then the server's log; PGHOST, PGPORT and PGUSER say which server and as whom"}
	}
	kind := "primary"
	if f.Server.Standby {
		kind = "standby"
	}
	return fine("a %s on timeline %d, at %s", kind, f.Server.Timeline, f.Server.LSN)
}

// onlyReads reports whether this host has no server, and may read the storages and not write them, as one that only looks at the archive, or restores.
func (f *Facts) onlyReads() bool {
	return !f.Named && len(f.Stores) > 0 && !slices.ContainsFunc(f.Stores, func(s Store) bool { return !s.Reads })
}

func judgeStores(f *Facts, _ Limits) Finding {
	if f.StoresErr != nil {
		return Finding{Status: Critical, Text: fmt.Sprintf("the storage cannot be used: %v", f.StoresErr), Next: "`holdfast st check`"}
	}
	if f.onlyReads() {
		return skipped("what this host has credentials for can be read, and not written, and no server is named here whose WAL or backups it would write")
	}
	found := Finding{}
	var bad, kept []string
	silent := true
	for _, s := range f.Stores {
		switch {
		case s.Err != nil:
			bad = append(bad, fmt.Sprintf("%s: %v", s.Name, s.Err))
			silent = silent && s.Silent
			continue
		case s.Kept:
			kept = append(kept, s.Name)
		}
		name := "store"
		if len(f.Stores) > 1 {
			name = "store_" + s.Name
		}
		found.Values = append(found.Values, Value{Name: name, Value: s.Took.Seconds(), Unit: Seconds})
	}
	switch {
	case len(bad) == len(f.Stores):
		found.Status, found.Text, found.Next = Critical, "nothing can be stored: "+strings.Join(bad, "; "), "`holdfast st check`"
		if silent {
			found.Status = Unknown
		}
	case len(bad) > 0:
		found.Status, found.Text, found.Next = Warning, "not every storage can be written: "+strings.Join(bad, "; "), "`holdfast st check --target-storage all`"
	case len(kept) > 0:
		found.Text = "can be written, and not removed from, as is right for a host that only archives"
	default:
		found.Text = "can be written"
	}
	return found
}

func judgeCluster(f *Facts, _ Limits) Finding {
	switch {
	case f.Archive.System == 0:
		return fine("the archive is nobody's yet")
	case f.Archive.System != f.Server.SystemIdentifier:
		return Finding{Status: Critical, Text: fmt.Sprintf("the archive belongs to the cluster with system identifier %d, and the server is of %d", f.Archive.System, f.Server.SystemIdentifier),
			Next: "see where PGHOST and the storage prefix lead to (`holdfast settings`). Where this cluster is the successor of the other: `holdfast backup-push --adopt`"}
	}
	return fine("the archive is that of this cluster (system identifier %d)", f.Server.SystemIdentifier)
}

func judgeCommand(f *Facts, _ Limits) Finding {
	s := f.Server
	if !f.archives() {
		return skipped(standby)
	}
	v := Verdict{OK, "the server archives by " + s.ArchiveCommand, ""}
	switch {
	case s.ArchiveMode == "off":
		v = Verdict{Critical, "archive_mode is off: nothing is archived", "`alter system set archive_mode = on; alter system set archive_command = 'holdfast wal-push \"%p\"'`, then restart the server"}
	case s.ArchiveLibrary != "":
		v = Verdict{Warning, fmt.Sprintf("archive_library is %q: the server does not call archive_command", s.ArchiveLibrary), "`alter system reset archive_library; select pg_reload_conf()`"}
	default:
		script := ""
		if f.Host != nil {
			script = f.Host.Script
		}
		if found := JudgeCommand(s.ArchiveCommand, script); found.Status != OK {
			v = found
		}
	}
	if v.Status != OK && f.streamed() {
		v = Verdict{OK, fmt.Sprintf("wal-receive streams through the slot %s; %s", s.Slot.Name, v.Text), ""}
	}
	return Finding{Status: v.Status, Text: v.Text, Next: v.Next}
}

func judgeTimeout(f *Facts, l Limits) Finding {
	const next = "`alter system set archive_timeout = '1min'; select pg_reload_conf()`"
	switch {
	case !f.archives():
		return skipped(standby)
	case f.streamed():
		return fine("wal-receive streams what the server writes")
	case f.Server.ArchiveTimeout == 0:
		return Finding{Status: l.judge(math.Inf(1)), Text: "archive_timeout is 0: what a quiet server wrote last is archived when its segment is full, whenever that is", Next: next}
	}
	t := f.Server.ArchiveTimeout
	return Finding{Status: l.judge(t.Seconds()), Text: fmt.Sprintf("archive_timeout is %s", t), Next: next, Values: []Value{{"archive_timeout", t.Seconds(), Seconds, &l}}}
}

// since returns how long ago t was, at least 0.
func (f *Facts) since(t time.Time) time.Duration { return max(f.Now.Sub(t), 0) }

func judgeStuck(f *Facts, l Limits) Finding {
	w := f.waiting()
	switch {
	case !f.archives():
		return skipped(standby)
	case w == nil:
		return f.noHost()
	case w.Files == 0:
		return Finding{Text: "nothing waits to be archived", Values: []Value{{"wal_push", 0, Seconds, &l}}}
	}
	moved, failing := w.Since, false
	if s := f.Server; s != nil {
		if s.Archiver.LastTime.After(moved) {
			moved = s.Archiver.LastTime
		}
		failing = s.Archiver.Failing()
	}
	still := f.since(moved)
	found := Finding{Status: l.judge(still.Seconds()), Values: []Value{{"wal_push", still.Seconds(), Seconds, &l}}}
	if found.Status == OK {
		found.Text = fmt.Sprintf("archiving moves: %s waits since %s", w.First, ribbon.Ago(f.since(w.Since)))
		return found
	}
	var p *Process
	if f.Host != nil {
		p = f.Host.Pushing
	}
	found.Text = fmt.Sprintf("nothing was archived for %s, and %s waits", ribbon.Ago(still), w.First)
	switch {
	case p != nil:
		found.Text += fmt.Sprintf(": process %d (%s) is at work on it, and is %s", p.PID, p.Command, p.State)
		if p.Waits != "" {
			found.Text += ", waiting for " + p.Waits
		}
		found.Next = fmt.Sprintf("`kill %d`: the server calls it again; then `holdfast st check`", p.PID)
		if p.State == stopped {
			found.Next = fmt.Sprintf("`kill -CONT %d`: somebody has stopped it", p.PID)
		}
	case failing:
		found.Text += fmt.Sprintf(": archive_command failed for %s, last at %s", f.Server.Archiver.LastFailed, f.Server.Archiver.FailedTime.UTC().Format(time.RFC3339))
		found.Next = "the server's log says why; or as its account, in its data directory: `holdfast wal-push pg_wal/" + w.First + "`"
	case f.Host != nil:
		found.Text += ": no process is at work on it"
		found.Next = "the server's log, and whether it has an archiver process: `ps -C postgres -o pid,etime,args`"
	default:
		found.Next = "run `holdfast doctor` on the host of the server: it names the process"
	}
	return found
}

func judgeReady(f *Facts, l Limits) Finding {
	w := f.waiting()
	switch {
	case !f.archives():
		return skipped(standby)
	case w == nil:
		return f.noHost()
	}
	return Finding{Status: l.judge(float64(w.Files)), Text: fmt.Sprintf("%s to be archived", waits(w.Files)), Values: []Value{{"ready", float64(w.Files), Count, &l}},
		Next: "`select * from pg_stat_archiver` says whether archiving fails or is slow; WALG_UPLOAD_CONCURRENCY is how many files go up at once"}
}

func waits(n int) string {
	switch n {
	case 0:
		return "nothing waits"
	case 1:
		return "1 file waits"
	}
	return fmt.Sprintf("%d files wait", n)
}

// lag returns for how long what lies behind end, up to where at is the time, is on the server and not in the archive: 0 for a server that has written no
// whole segment since. Without the server it is the time since at. It is not known of a standby that does not archive and whose files are not seen: its primary may
// have been quiet since at, and be archiving what it has written a moment ago.
func (f *Facts) lag(end wal.LSN, at time.Time) (lag time.Duration, known bool) {
	if f.Server == nil {
		return f.since(at), true
	}
	w := f.waiting()
	switch {
	case f.Server.Behind(end) == 0:
		return 0, true
	case f.archives() && w != nil && w.Files > 0 && f.awaits(w.First, end):
		return f.since(w.Since), true
	case (!f.archives() || w != nil && w.Files == 0) && f.Host != nil && !f.Host.Missing.IsZero():
		return f.since(f.Host.Missing), true
	}
	return f.since(at), f.archives() || f.streamed() || f.Host != nil // where its file has been removed since, that was not a moment ago
}

// awaits reports whether a file that waits to be archived is what the archive lacks behind end. Where only later segments wait, those between were taken for archived
// and are somewhere else, or nowhere.
func (f *Facts) awaits(file string, end wal.LSN) bool {
	_, n, err := f.Server.SegmentSize.ParseSegment(file)
	return err != nil || f.Server.SegmentSize.Start(n) <= end
}

// inside reports whether the archive ends inside a segment, of which it has pieces.
func (f *Facts) inside(end wal.LSN) bool {
	return f.Server != nil && f.Server.SegmentSize != 0 && uint64(end)%uint64(f.Server.SegmentSize) != 0
}

func judgeWALAge(f *Facts, l Limits) Finding {
	switch {
	case f.Server == nil && errors.Is(f.ServerErr, ErrUnasked):
		return skipped("no server is named here, and a server that writes nothing archives nothing: see restorable")
	case f.Server == nil:
		return f.noServer()
	}
	newest := f.Archive.Ribbon.Newest
	if newest == nil {
		return Finding{Status: Critical, Text: "the archive has no WAL of the timeline that the server is on",
			Next: "`select pg_switch_wal()`, which has something archived; then `select * from pg_stat_archiver`, and the server's log"}
	}
	behind := f.Server.Behind(newest.LSN)
	age, known := f.lag(newest.LSN, newest.Time)
	if !known {
		return skipped(standby)
	}
	bytes := uint64(0)
	if f.Server.Final > newest.LSN {
		bytes = uint64(f.Server.Final - newest.LSN)
	}
	found := Finding{Status: l.judge(age.Seconds()), Values: []Value{
		{"wal_age", age.Seconds(), Seconds, &l}, {"wal_lag", float64(bytes), Bytes, nil}, {"last_archived", f.since(newest.Time).Seconds(), Seconds, nil},
	}}
	if behind == 0 {
		found.Text = fmt.Sprintf("every whole segment is archived, the last %s ago", ribbon.Ago(f.since(newest.Time)))
		if f.inside(newest.LSN) {
			found.Text = fmt.Sprintf("every whole segment is archived, and the one that is being written up to %s, %s ago", newest.LSN, ribbon.Ago(f.since(newest.Time)))
		}
		return found
	}
	found.Text = fmt.Sprintf("the archive is %s behind, for %s: it ends at %s, and the server is at %s", humanize.IBytes(bytes), ribbon.Ago(age), newest.LSN, f.Server.Final)
	found.Next = "`select * from pg_stat_archiver`, and the server's log; where segments were taken for archived and are not: `holdfast wal-push --repair`"
	return found
}

func judgeDisk(f *Facts, l Limits) Finding {
	if f.Host == nil || f.Host.Size <= 0 {
		return f.noHost()
	}
	percent := 100 * float64(f.Host.Free) / float64(f.Host.Size)
	return Finding{Status: l.judge(percent), Text: fmt.Sprintf("the disk of pg_wal has %s left, %.0f %%", humanize.IBytes(uint64(f.Host.Free)), math.Floor(percent)),
		Next:   "make room before the server stops, never in pg_wal itself; `holdfast doctor` says whether archiving or a slot keeps WAL there",
		Values: []Value{{"disk", math.Round(percent*10) / 10, Percent, &l}, {"disk_free", float64(f.Host.Free), Bytes, nil}}}
}

// heapsUp is for how long WAL must have waited before a rate is made of it: two segments of a burst, a moment old and archived in the next, would fill any disk within hours.
const heapsUp = time.Minute

func judgeFull(f *Facts, l Limits) Finding {
	if f.Host == nil {
		return f.noHost()
	}
	left, ok := f.Host.Backlog.UntilFull(f.Host.Free, f.Now)
	if !ok || f.since(f.Host.Backlog.Since) < heapsUp {
		return fine("no WAL heaps up")
	}
	return Finding{Status: l.judge(left.Seconds()), Text: f.Host.Backlog.Describe(f.Host.Free, f.Now), Values: []Value{{"disk_full", left.Seconds(), Seconds, &l}},
		Next: "get archiving going: the checks wal-push and store say what ails it. Or make room on that disk, never in pg_wal itself"}
}

func judgeSlot(f *Facts, l Limits) Finding {
	s := f.Server.Slot
	if s == nil {
		return skipped("there is no replication slot of wal-receive")
	}
	found := Finding{Status: l.judge(float64(s.Retained)), Values: []Value{{"slot", float64(s.Retained), Bytes, &l}},
		Text: fmt.Sprintf("the slot %s keeps %s of WAL", s.Name, humanize.IBytes(s.Retained))}
	switch {
	case s.Status == "lost":
		found.Status, found.Text = Critical, fmt.Sprintf("the slot %s has lost WAL that was not received: the server removed it (max_slot_wal_keep_size)", s.Name)
		found.Next = fmt.Sprintf("`select pg_drop_replication_slot('%s')`, then `holdfast wal-receive --accept-gap`, and a new backup", s.Name)
	case s.Status == "unreserved":
		found.Status, found.Text = Critical, fmt.Sprintf("the slot %s is about to lose WAL: the server removes it at its next checkpoint (max_slot_wal_keep_size)", s.Name)
		found.Next = "start `holdfast wal-receive` at once, or raise max_slot_wal_keep_size"
	case !s.Active:
		found.Status, found.Text = Worst(found.Status, Warning), found.Text+", and nobody receives it"
		found.Next = fmt.Sprintf("start `holdfast wal-receive`; where it is wanted no more: `select pg_drop_replication_slot('%s')`", s.Name)
	default:
		found.Next = "wal-receive does not keep up: its log, and `holdfast st check`"
	}
	return found
}

func judgeChecksums(f *Facts, _ Limits) Finding {
	switch {
	case !f.Server.Checksums:
		return skipped("the cluster has no checksums of pages")
	case f.Server.Version < 12_00_00:
		return skipped("the server does not count them before PostgreSQL 12")
	case f.Server.Corrupt == 0:
		return Finding{Text: "the server has read no page with a wrong checksum", Values: []Value{{"checksum_failures", 0, Count, nil}}}
	}
	in := make([]string, len(f.Server.CorruptIn))
	for i, name := range f.Server.CorruptIn {
		in[i] = cmp.Or(name, "what all databases share")
	}
	return Finding{Status: Critical, Values: []Value{{"checksum_failures", float64(f.Server.Corrupt), Count, nil}},
		Text: fmt.Sprintf("the server read %d pages with a wrong checksum, last %s ago, in %s", f.Server.Corrupt, ribbon.Ago(f.since(f.Server.CorruptAt)), strings.Join(in, ", ")),
		Next: "the server's log names the files; remove no older backup before a good copy of them is found (`holdfast backup-list`). Once repaired, in that database: `select pg_stat_reset()`"}
}

func judgeSummaries(f *Facts, _ Limits) Finding {
	switch {
	case !f.Deltas:
		return skipped("no delta backups are taken here (WALG_DELTA_MAX_STEPS)")
	case f.Server.SummarizeWAL == "on":
		return fine("the server summarizes its WAL")
	case f.Summaries:
		return fine("WAL is archived with summaries")
	case f.Server.SummarizeWAL == "off":
		return Finding{Status: Warning, Text: "neither does the server summarize its WAL nor is it archived with summaries: each delta backup reads all relations",
			Next: "`alter system set summarize_wal = on; select pg_reload_conf()`"}
	}
	return Finding{Status: Warning, Text: "WAL is archived without summaries: each delta backup reads all relations", Next: "set HOLDFAST_WAL_SUMMARIES=on for archive_command"}
}

func judgeClock(f *Facts, l Limits) Finding {
	type clock struct {
		name, label string
		ahead       time.Duration
	}
	var all []clock
	if f.Server != nil {
		all = append(all, clock{"the server", "clock_server", f.Server.Ahead})
	}
	for _, s := range f.Stores {
		if s.Err == nil {
			label := "clock_store"
			if len(f.Stores) > 1 {
				label += "_" + s.Name
			}
			all = append(all, clock{"the storage " + s.Name, label, s.Ahead})
		}
	}
	if len(all) == 0 && f.onlyReads() {
		return skipped("a storage that may not be written does not say what time it is")
	}
	if len(all) == 0 {
		return f.follows("store", "neither server nor storage said what time it is", cmp.Or(f.StoresErr, f.ServerErr))
	}
	found := Finding{Text: "all clocks agree"}
	var worst time.Duration
	for _, c := range all {
		found.Values = append(found.Values, Value{c.label, c.ahead.Seconds(), Seconds, &l})
		off := c.ahead.Abs()
		found.Status = Worst(found.Status, l.judge(off.Seconds()))
		if off > worst && off >= time.Second {
			way := "ahead of"
			if c.ahead < 0 {
				way = "behind"
			}
			worst, found.Text = off, fmt.Sprintf("the clock of %s is %s %s that of this host", c.name, off.Round(time.Second), way)
		}
	}
	found.Next = "`timedatectl` here and there: times of restores and ages of backups are off by that much"
	return found
}

func judgeBackupAge(f *Facts, l Limits) Finding { return judgeAge(f, l, "backup", "backup_age", false) }
func judgeFullAge(f *Facts, l Limits) Finding {
	return judgeAge(f, l, "full backup", "full_age", true)
}

// first is what to do where nothing is there yet.
const first = "`holdfast backup-push`, for a first one"

func judgeAge(f *Facts, l Limits, what, label string, full bool) Finding {
	var last *Backup
	for i := range f.Archive.Backups {
		if b := &f.Archive.Backups[i]; b.Verdict != ribbon.Broken && (b.Full || !full) && (last == nil || b.Finished.After(last.Finished)) {
			last = b
		}
	}
	next := "`holdfast backup-push`, and the log of the job that should have"
	switch {
	case len(f.Archive.Backups) == 0:
		next = first
	case full:
		next = "`holdfast backup-push --full`, or `holdfast backup-merge` of what is there"
	}
	if last == nil {
		return Finding{Status: l.judge(math.Inf(1)), Text: "there is no " + what + " that can be restored", Next: next}
	}
	return f.aged(l, label, last.Finished, fmt.Sprintf("the last %s is %s old: %s", what, ribbon.Ago(f.since(last.Finished)), last.Name), next)
}

// aged judges how long ago it was what text says.
func (f *Facts) aged(l Limits, label string, at time.Time, text, next string) Finding {
	age := f.since(at)
	return Finding{Status: l.judge(age.Seconds()), Text: text, Next: next, Values: []Value{{label, age.Seconds(), Seconds, &l}}}
}

func judgeHoles(f *Facts, _ Limits) Finding {
	if f.Archive == nil {
		return Finding{Status: Unknown, Text: fmt.Sprintf("the archive could not be looked at: %v", f.ArchiveErr), Next: "`holdfast st check`"}
	}
	r := &f.Archive.Ribbon
	var broken int
	var missing uint64
	advice := ""
	for _, s := range r.Main {
		if s.Verdict == ribbon.Broken {
			broken++
			missing += s.Segments
			advice = cmp.Or(s.Advice, advice)
		}
	}
	found := Finding{Text: r.Verdict, Values: []Value{{"holes", float64(broken), Count, nil}, {"missing_segments", float64(missing), Count, nil}}}
	switch r.Status {
	case ribbon.Warning:
		found.Status = Warning
	case ribbon.Failure:
		found.Status = Critical
	}
	if found.Status != OK {
		if len(r.Notes) > 0 {
			found.Text += "; " + r.Notes[0]
		}
		if found.Next = cmp.Or(advice, "`holdfast ribbon`"); len(f.Archive.Backups) == 0 {
			found.Next = first
		}
	}
	return found
}

func judgeRestorable(f *Facts, l Limits) Finding {
	r := &f.Archive.Ribbon
	if r.Until == nil {
		found := Finding{Status: Unknown, Text: r.Verdict, Next: "`holdfast ribbon`"}
		if r.Status == ribbon.Failure {
			found.Status = Critical
		}
		if len(f.Archive.Backups) == 0 {
			found.Next = first
		}
		return found
	}
	age := f.since(r.Until.Time)
	if r.Newest != nil && r.Newest.LSN == r.Until.LSN {
		var known bool
		if age, known = f.lag(r.Until.LSN, r.Until.Time); !known {
			return skipped(standby)
		}
	}
	found := Finding{Status: l.judge(age.Seconds()), Values: []Value{{"restorable", age.Seconds(), Seconds, &l}}}
	if age == 0 {
		found.Text = "can be restored up to where the server is, but for the segment that it is writing"
		if f.inside(r.Until.LSN) {
			found.Text = fmt.Sprintf("can be restored up to %s, in the segment that the server is writing", r.Until.LSN)
		}
		return found
	}
	found.Text = fmt.Sprintf("can be restored up to %s UTC, timeline %d, %s: what came in the last %s is not safe", r.Until.Time.UTC().Format(time.DateTime), r.Until.Timeline, r.Until.LSN, ribbon.Ago(age))
	if found.Next = "`holdfast ribbon`"; !f.Named {
		found.Next += "; set PGHOST or its like, or other limits: a server that is not named here may have written nothing since"
	}
	return found
}

func judgeKey(f *Facts, _ Limits) Finding {
	switch {
	case f.Archive.WriteOnly:
		return skipped("this host can encrypt and not decrypt: `holdfast check --only key` where backups are restored")
	case f.Archive.Locked != "":
		return Finding{Status: Critical, Text: "the newest cannot be read here: " + f.Archive.Locked, Next: "`holdfast key check --read`; the identity or private key must be that of what encrypted it"}
	case !f.Archive.Encrypted:
		return fine("what is archived is not encrypted")
	}
	return fine("the newest backup and WAL can be decrypted here")
}

// oldest returns when the first backup was finished; zero where there is none.
func (a *Archive) oldest() (t time.Time) {
	for _, b := range a.Backups {
		if t.IsZero() || b.Finished.Before(t) {
			t = b.Finished
		}
	}
	return t
}

// newestOf returns the newest of one of the times of backups, and whose it is.
func (a *Archive) newestOf(of func(*Backup) time.Time) (t time.Time, name string) {
	for i := range a.Backups {
		if one := of(&a.Backups[i]); one.After(t) {
			t, name = one, a.Backups[i].Name
		}
	}
	return t, name
}

func judgeVerify(f *Facts, l Limits) Finding {
	at, name := f.Archive.newestOf(func(b *Backup) time.Time { return b.Verified })
	text := fmt.Sprintf("%s was verified %s ago", name, ribbon.Ago(f.since(at)))
	if at.IsZero() {
		at, text = f.Archive.oldest(), "no backup was ever verified"
	}
	return f.aged(l, "verify", at, text, "`holdfast verify all`")
}

func judgeProof(f *Facts, l Limits) Finding {
	const next = "`holdfast drill` proves one"
	const red = "`holdfast drill report` says what was wrong; docs/runbook.md, \"The drill is red\", what to do"
	failed, broken := f.Archive.newestOf(func(b *Backup) time.Time { return b.Failed })
	at, name := f.Archive.newestOf(func(b *Backup) time.Time { return b.Proven })
	switch {
	case failed.After(at):
		return Finding{Status: Critical, Text: fmt.Sprintf("%s did not come up when it was restored to be proven, %s ago", broken, ribbon.Ago(f.since(failed))), Next: red}
	case at.IsZero() && !f.given["proof"] && f.Archive.Refused == "":
		return skipped("no backup was ever proven by a restore: `holdfast drill` proves one")
	}
	text := fmt.Sprintf("%s was proven by a restore %s ago", name, ribbon.Ago(f.since(at)))
	if at.IsZero() {
		at, text = f.Archive.oldest(), "no backup was ever proven by a restore"
	}
	found := f.aged(l, "proof", at, text, next)
	if f.Archive.Refused != "" {
		found.Status = max(found.Status, Warning)
		found.Text += "; " + f.Archive.Refused
		found.Next = "`holdfast drill report` shows all records; HOLDFAST_PROOF_PUBLIC_KEY says whose count"
	}
	return found
}

// sortStores puts storages in the order of names.
func sortStores(all []Store) {
	slices.SortFunc(all, func(a, b Store) int { return strings.Compare(a.Name, b.Name) })
}
