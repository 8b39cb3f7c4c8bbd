package drill_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/drill"
	"holdfast/internal/pg/wal"
	"holdfast/internal/proof"
	"holdfast/internal/store/storetest"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// proofs is an archive with backups and records of drills.
type proofs struct {
	t       *testing.T
	disk    *storetest.Memory
	private ed25519.PrivateKey
	keys    []ed25519.PublicKey
}

func newProofs(t *testing.T) *proofs {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &proofs{t, &storetest.Memory{}, private, []ed25519.PublicKey{public}}
}

// backup stores the documents of a backup that was finished then.
func (p *proofs) backup(n wal.SegmentNo, finished time.Time, size int64) string {
	p.t.Helper()
	const segment = wal.SegmentSize(16 << 20)
	start, system := segment.Start(n)+0x28, uint64(7)
	finish := start + 0x100
	name := archive.BackupName(segment.Name(1, n))
	p.put(archive.BackupDir+name+"_backup_stop_sentinel.json", archive.Sentinel{LSN: &start, FinishLSN: &finish, SystemIdentifier: &system, Version: 2,
		SegmentSize: uint64(segment), StartTime: finished, FinishTime: finished, UncompressedSize: size})
	return name
}

func (p *proofs) put(name string, doc any) {
	p.t.Helper()
	b, err := json.Marshal(doc)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.disk.Put(p.t.Context(), name, strings.NewReader(string(b))); err != nil {
		p.t.Fatal(err)
	}
}

// drill stores the record of a drill that was made at a time; change may change it.
func (p *proofs) drill(backup string, at time.Time, key ed25519.PrivateKey, change func(*drill.Record)) {
	p.t.Helper()
	s, err := archive.New(p.disk, archive.Options{}).Sentinel(p.t.Context(), backup)
	if err != nil {
		p.t.Fatal(err)
	}
	rpo := 12.5
	r := &drill.Record{RecordHead: archive.RecordHead{At: at, By: "postgres@db3", Version: "1.0"}, OK: true, Started: at, Asked: "LATEST", Target: catalog.Target{Kind: catalog.Latest}.String(),
		Backup: backup, Sentinel: s.Sum, Finished: s.FinishTime, PgVersion: 170010, PostgreSQL: "17.10", Seconds: map[string]float64{}, RPO: &rpo, RPOOf: "the heartbeat",
		Fetched: drill.Fetched{Bytes: s.UncompressedSize, Verified: true}, Replay: &drill.Replay{Bytes: 1 << 30}}
	r.Seconds["fetch"], r.Seconds["replay"] = 10+float64(r.Fetched.Bytes)/100e6, 20
	r.RTO = r.Seconds["fetch"] + r.Seconds["replay"] + 1
	if change != nil {
		change(r)
	}
	b, err := r.Encode(key)
	if err != nil {
		p.t.Fatal(err)
	}
	name := archive.ProvenDir(backup) + at.Format("20060102T150405.000000Z") + "-x.json"
	if err := p.disk.Put(p.t.Context(), name, strings.NewReader(string(b))); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proofs) report(keys []ed25519.PublicKey, o drill.ReportOptions) *drill.Report {
	p.t.Helper()
	o.Now = noon
	r, err := drill.Summarize(p.t.Context(), archive.New(p.disk, archive.Options{ProofKeys: keys}), o)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// The report says how each backup stands, what does not count and why, and how long a restore will take.
func TestReport(t *testing.T) {
	p := newProofs(t)
	var names []string
	for i := range 6 {
		at := noon.AddDate(0, 0, i-20)
		name := p.backup(wal.SegmentNo(2+i), at, int64(100e9+10e9*float64(i)))
		p.drill(name, at.Add(time.Hour), p.private, nil)
		names = append(names, name)
	}
	p.drill(names[4], noon.Add(-48*time.Hour), p.private, func(r *drill.Record) {
		r.OK, r.Reason, r.Error = false, drill.ReasonCheck, "amcheck: index\n <b>x</b> is broken"
		r.Checks = []drill.Check{{Name: "amcheck", Result: drill.Failed, Text: "index is broken"}}
	})
	p.drill(names[5], noon.Add(-24*time.Hour), nil, nil)
	p.drill(names[3], noon.Add(-23*time.Hour), p.private, func(r *drill.Record) { r.Backup = names[2] })
	last := p.backup(9, noon.Add(-time.Hour), 150e9)
	r := p.report(p.keys, drill.ReportOptions{Objective: time.Hour, Since: noon.AddDate(0, 0, -18)})
	if r.Proven != 5 || len(r.Backups) != 7 || r.System != 7 || !slices.Equal(r.Keys, []string{proof.KeyID(p.keys[0])}) {
		t.Errorf("%+v", r)
	}
	for i, want := range []drill.State{drill.StateProven, drill.StateProven, drill.StateProven, drill.StateProven, drill.StateFailed, drill.StateProven, drill.StateUnproven} {
		if b := r.Backups[i]; b.State != want || (b.Why == "") != (want == drill.StateProven) {
			t.Errorf("backup %d: %+v, want it %s", i, b, want)
		}
	}
	if b := r.Backups[4]; b.Why != "check: amcheck: index <b>x</b> is broken" || b.Drills != 2 {
		t.Errorf("%+v", b)
	}
	if b := r.Backups[6]; b.Backup != last || b.Why != "no drill of it was ever made" || b.Size != 150e9 {
		t.Errorf("%+v", b)
	}
	if len(r.Drills) != 5 || r.Drills[4].OK || r.Drills[4].Signer != r.Keys[0] || !slices.IsSortedFunc(r.Drills, func(x, y drill.Made) int { return x.At.Compare(y.At) }) {
		t.Errorf("drills since %s: %+v", r.Since, r.Drills)
	}
	if len(r.Refused) != 2 || !strings.Contains(r.Refused[0].Why+r.Refused[1].Why, "not signed") || !strings.Contains(r.Refused[0].Why+r.Refused[1].Why, "another backup") {
		t.Errorf("%+v", r.Refused)
	}
	for _, want := range []string{"5 of 7 backups are proven", names[5], "The last drill of " + names[4] + " failed (check: amcheck", "2 records do not count"} {
		if !strings.Contains(r.Verdict, want) {
			t.Errorf("%q lacks %q", r.Verdict, want)
		}
	}
	// 10 s and 100 MB/s, 20 s for 1 GiB of WAL, a second beside: 150 GB take 1531 s now, and 10 GB a day more reach an hour at 357 GB.
	tr := r.Trend
	if tr == nil || tr.Model.Drills != 7 || tr.Size != 150e9 || tr.WAL != 1<<30 || tr.At.Seconds < 1530 || tr.At.Seconds > 1532 || len(tr.Ahead) != 3 {
		t.Fatalf("%+v", tr)
	}
	if tr.Missed == nil || tr.Missed.Before(noon.AddDate(0, 0, 10)) || tr.Missed.After(noon.AddDate(0, 0, 60)) {
		t.Errorf("missed from %v on; %+v", tr.Missed, tr.Growth)
	}
	if text := strings.Join(tr.Text, " "); !strings.Contains(text, "At 140 GiB, with 1.0 GiB of WAL to replay, expect 26 min (fitted to 7 drills on db3") ||
		!strings.Contains(text, "Your objective of 60 min is missed from ") || !strings.Contains(text, "grows by about") {
		t.Error(text)
	}
	if r := p.report(p.keys, drill.ReportOptions{Size: 1e12, Objective: time.Hour}); r.Trend.At.Seconds < 10030 || r.Trend.At.Seconds > 10032 || !strings.Contains(strings.Join(r.Trend.Text, " "), "At 931 GiB it would be missed") {
		t.Errorf("%+v", r.Trend)
	}
	// Nobody asks for signatures: the one that is not signed counts.
	if r := p.report(nil, drill.ReportOptions{}); len(r.Refused) != 1 || r.Keys != nil || len(r.Drills) != 8 {
		t.Errorf("without keys: %+v", r)
	}
}

// Whether an objective is kept now is judged by the size of now, also where another is asked for and nothing tells how the cluster grows.
func TestReportOfAnotherSize(t *testing.T) {
	p := newProofs(t)
	name := p.backup(2, noon.Add(-4*time.Hour), 100e9) // which takes 1031 s
	for i := range 3 {
		p.drill(name, noon.Add(time.Duration(i-3)*time.Hour), nil, nil)
	}
	for _, c := range []struct {
		size            int64
		objective       time.Duration
		missed, further bool
	}{{0, time.Hour, false, false}, {0, 10 * time.Minute, true, false}, {1e9, 10 * time.Minute, true, false}, {1e12, 10 * time.Minute, true, true}, {1e12, time.Hour, false, true}} {
		tr := p.report(nil, drill.ReportOptions{Size: c.size, Objective: c.objective}).Trend
		text := strings.Join(tr.Text, " ")
		if tr.Growth != nil || (tr.Missed != nil) != c.missed || strings.Contains(text, "is missed already") != c.missed || strings.Contains(text, "is kept now") == c.missed || strings.Contains(text, "it would be missed") != c.further {
			t.Errorf("%+v: missed from %v on: %s", c, tr.Missed, text)
		}
	}
}

// An archive without backups is refused, one whose backups were never proven says so.
func TestReportOfNothing(t *testing.T) {
	p := newProofs(t)
	var none *catalog.NoBackupError
	if _, err := drill.Summarize(t.Context(), archive.New(p.disk, archive.Options{}), drill.ReportOptions{}); !errors.As(err, &none) || none.Advice == "" {
		t.Errorf("an empty archive: %v", err)
	}
	name := p.backup(2, noon.AddDate(0, 0, -1), 1e9)
	r := p.report(p.keys, drill.ReportOptions{Objective: time.Hour})
	if r.Verdict != "None of the 1 backup is proven." || r.Trend != nil || len(r.Notes) != 1 {
		t.Errorf("%+v", r)
	}
	p.drill(name, noon.Add(-time.Hour), nil, nil)
	if r := p.report(p.keys, drill.ReportOptions{}); r.Backups[0].Why != "its one record does not count: it is not signed" {
		t.Errorf("%+v", r.Backups)
	}
	r = p.report(nil, drill.ReportOptions{})
	if !strings.HasPrefix(r.Verdict, "The one backup is proven. The last that came up was made ") {
		t.Error(r.Verdict)
	}
	r, err := drill.Summarize(t.Context(), archive.New(p.disk, archive.Options{}), drill.ReportOptions{Now: r.Backups[0].At})
	if err != nil || !strings.Contains(r.Verdict, " was made just now, of ") {
		t.Errorf("%+v, %v", r, err)
	}
}

// A record that is larger than any of ours is not read, and is told.
func TestLargeRecord(t *testing.T) {
	p := newProofs(t)
	name := p.backup(2, noon.AddDate(0, 0, -1), 1e9)
	p.drill(name, noon.Add(-time.Hour), p.private, func(r *drill.Record) { r.Error = strings.Repeat("x", 300<<10) })
	if r := p.report(p.keys, drill.ReportOptions{}); len(r.Refused) != 1 || !strings.Contains(r.Refused[0].Why, "larger") {
		t.Errorf("%+v", r)
	}
}

// Whatever a record holds, there is a report that can be printed as JSON.
func FuzzReport(f *testing.F) {
	f.Add([]byte(`"ok":true,"rto_seconds":12,"seconds":{"fetch":3,"replay":1},"fetched":{"bytes":1000000000},"replay":{"to_lsn":"0/1","timeline":1,"bytes":100}`))
	f.Add([]byte(`"ok":false,"rto_seconds":1e308,"seconds":{"fetch":1e308,"replay":-1},"fetched":{"bytes":9223372036854775807},"backup_finished":"9999-12-31T23:59:59Z"`))
	f.Add([]byte(`"rpo_seconds":-5,"checks":[{"name":"<script>","result":"skipped","text":"|"}]`))
	f.Fuzz(func(t *testing.T, members []byte) {
		p := &proofs{t: t, disk: &storetest.Memory{}}
		for i := range 4 {
			name := p.backup(wal.SegmentNo(2+i), noon.AddDate(0, 0, i-9), 1e9)
			s, err := archive.New(p.disk, archive.Options{}).Sentinel(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			record := `{"backup":"` + name + `","sentinel_sha256":"` + s.Sum + `",` + string(members) + `}`
			if err := p.disk.Put(t.Context(), archive.ProvenDir(name)+"20261120T000000.000000Z-x.json", strings.NewReader(record)); err != nil {
				t.Fatal(err)
			}
		}
		r := p.report(nil, drill.ReportOptions{Objective: time.Hour})
		if b, err := json.Marshal(r); err != nil || len(b) == 0 {
			t.Errorf("%v: %+v", err, r)
		}
	})
}
