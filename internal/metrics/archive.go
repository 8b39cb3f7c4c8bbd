package metrics

import (
	"fmt"
	"strconv"
	"time"
)

// Archive is what is known of an archive at one moment.
type Archive struct {
	Looked time.Time     // when that was
	Took   time.Duration // how long it took to find out

	Backups    []Backup
	Storages   []Storage
	NewestWAL  time.Time // when the newest segment was archived; zero where there is none
	Until      time.Time // the newest moment that can be restored, zero where none can
	From       time.Time // the oldest from which on all moments up to Until can be
	Status     int       // of the ribbon: 0, 1 or 2
	Holes      int       // stretches of the ribbon that are broken
	Missing    uint64    // segments missing or damaged in these
	Unknown    int       // stretches of which it is not known
	Check      *WALCheck // nil where it was not made
	Waiting    *Waiting  // nil where this host has no server that is known of
	CheckTook  time.Duration
	Leases     map[string]string // the host that has the lease, by job; of those that somebody has
	TimelineOK map[uint32]bool   // whether no segment of a timeline is lost, of those that Check looked at
}

// Backup is a backup of it.
type Backup struct {
	Name, Kind          string // kinds are full, merged, delta
	Segment             string // that it starts in
	PostgreSQL          int    // server_version_num
	StartLSN, FinishLSN string
	DeltaOrigin         string // what a delta builds on
	Started, Finished   time.Time
	Size, Stored        int64 // bytes, as files and as stored
	Permanent           bool
	Broken              bool // it is known that it cannot be restored
	Damaged             bool // by what verify found
	Condemned           bool
	Verified            time.Time // zero is never, here and below
	Proven, ProofFailed time.Time
}

// Storage is one of those that hold the archive.
type Storage struct {
	Name    string
	Up      bool
	Latency time.Duration // of one answer
}

// Verdict is what wal-verify says, in the numbers of WAL-G's exporter.
type Verdict int

// The verdicts.
const (
	NotKnown Verdict = -1
	Failure  Verdict = 0
	OK       Verdict = 1
	Warning  Verdict = 2
)

// WALCheck is what wal-verify says.
type WALCheck struct{ Integrity, Timeline Verdict }

// Waiting is the WAL of a server here that waits to be archived.
type Waiting struct {
	Segments int
	Bytes    int64
	Since    time.Time // when the oldest was finished; zero where none waits
	Free     int64     // bytes that are free where WAL is written
}

// samples returns what there is to tell of w, which may be nil.
func (w *Waiting) samples() []Sample {
	if w == nil {
		return nil
	}
	all := []Sample{
		{"holdfast_wal_ready_segments", nil, float64(w.Segments)}, {"holdfast_wal_ready_bytes", nil, float64(w.Bytes)}, {"holdfast_wal_free_bytes", nil, float64(w.Free)},
	}
	if !w.Since.IsZero() {
		all = append(all, Sample{"holdfast_wal_ready_since_timestamp_seconds", nil, seconds(w.Since)})
	}
	return all
}

// Samples returns what there is to tell of an archive at now.
func (a *Archive) Samples(now time.Time) []Sample {
	var all []Sample
	add := func(name string, value float64, labels ...string) { all = append(all, Sample{name, labels, value}) }
	since := func(prefix string, t time.Time, labels ...string) { // a time that may not be known
		if !t.IsZero() {
			add(prefix+"_timestamp_seconds", seconds(t), labels...)
		}
	}
	since("holdfast_archive_looked", a.Looked)
	add("holdfast_archive_look_duration_seconds", a.Took.Seconds())
	add("walg_backup_list_duration_seconds", a.Took.Seconds())

	all = append(all, storageSamples(a.Storages)...)
	all = append(all, a.backupSamples(now)...)

	since("holdfast_wal_last_archived", a.NewestWAL)
	if !a.NewestWAL.IsZero() {
		add("holdfast_wal_last_archived_age_seconds", age(now, a.NewestWAL))
	}
	add("holdfast_restorable_until_timestamp_seconds", seconds(a.Until))
	window := 0.0
	if !a.Until.IsZero() {
		add("holdfast_restorable_age_seconds", age(now, a.Until))
		since("holdfast_restorable_from", a.From)
		if !a.From.IsZero() {
			window = age(a.Until, a.From)
		}
	}
	add("holdfast_restorable_window_seconds", window)
	add("walg_pitr_window_seconds", window)
	add("holdfast_ribbon_status", float64(a.Status))
	add("holdfast_ribbon_holes", float64(a.Holes))
	add("holdfast_ribbon_missing_segments", float64(a.Missing))
	add("holdfast_ribbon_unknown", float64(a.Unknown))
	for job, host := range a.Leases {
		add("holdfast_lease_holder", 1, job, host)
	}

	check := WALCheck{NotKnown, NotKnown}
	if a.Check != nil {
		check = *a.Check
		add("walg_wal_verify_duration_seconds", a.CheckTook.Seconds())
	}
	add("walg_wal_verify_status", float64(check.Integrity), "integrity")
	add("walg_wal_verify_status", float64(check.Timeline), "timeline")
	for t, ok := range a.TimelineOK {
		add("walg_wal_integrity_status", one(ok), strconv.FormatUint(uint64(t), 10), fmt.Sprintf("%08X", t))
	}

	all = append(all, a.Waiting.samples()...)
	return all
}

// storageSamples returns what there is to tell of storages.
func storageSamples(storages []Storage) (all []Sample) {
	up, slowest := len(storages) > 0, time.Duration(0)
	for _, s := range storages {
		all = append(all, Sample{"holdfast_storage_up", []string{s.Name}, one(s.Up)})
		if s.Up {
			all = append(all, Sample{"holdfast_storage_latency_seconds", []string{s.Name}, s.Latency.Seconds()})
		}
		up, slowest = up && s.Up, max(slowest, s.Latency)
	}
	return append(all, Sample{"walg_storage_up", nil, one(up)}, Sample{"walg_storage_latency_seconds", nil, slowest.Seconds()})
}

// backupSamples returns what there is to tell of the backups.
func (a *Archive) backupSamples(now time.Time) []Sample {
	var all []Sample
	add := func(name string, value float64, labels ...string) { all = append(all, Sample{name, labels, value}) }
	count, last := map[string]int{}, map[string]time.Time{}
	var damaged, condemned int
	var verified, proven, failed time.Time
	for _, b := range a.Backups {
		count[b.Kind]++
		if !b.Broken && !b.Damaged {
			last[b.Kind] = newest(last[b.Kind], b.Finished)
		}
		if b.Damaged {
			damaged++
		}
		if b.Condemned {
			condemned++
		}
		verified, proven, failed = newest(verified, b.Verified), newest(proven, b.Proven), newest(failed, b.ProofFailed)
		kind := "full"
		if b.Kind == "delta" {
			kind = "delta"
		}
		add("walg_backup_info", 1, b.Name, kind, b.Segment, strconv.Itoa(b.PostgreSQL), b.StartLSN, b.FinishLSN, strconv.FormatBool(b.Permanent), b.DeltaOrigin)
		if !b.Started.IsZero() {
			add("walg_backup_start_timestamp", seconds(b.Started), b.Name)
		}
		add("walg_backup_finish_timestamp", seconds(b.Finished), b.Name)
		add("walg_backup_uncompressed_size_bytes", float64(b.Size), b.Name)
		add("walg_backup_compressed_size_bytes", float64(b.Stored), b.Name)
	}
	for _, kind := range []string{"full", "merged", "delta"} {
		add("holdfast_backups", float64(count[kind]), kind)
		if t := last[kind]; !t.IsZero() {
			add("holdfast_last_backup_timestamp_seconds", seconds(t), kind)
			add("holdfast_last_backup_age_seconds", age(now, t), kind)
		}
	}
	add("walg_backups", float64(count["full"]+count["merged"]), "full")
	add("walg_backups", float64(count["delta"]), "delta")
	add("holdfast_backups_damaged", float64(damaged))
	add("holdfast_backups_condemned", float64(condemned))
	for name, t := range map[string]time.Time{"verified": verified, "proven": proven, "proof_failed": failed} {
		if !t.IsZero() {
			add("holdfast_last_"+name+"_timestamp_seconds", seconds(t))
		}
	}
	return all
}
