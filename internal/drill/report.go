package drill

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/proof"
	"holdfast/internal/store"
)

// ReportOptions tunes Summarize. The zero value is ready to use.
type ReportOptions struct {
	Since     time.Time     // drills before it are left out, but for estimates; zero is all
	Objective time.Duration // how long a restore may take; 0 is no limit
	Size      int64         // bytes to restore, of which an estimate is wanted; 0 is what the cluster has
	Now       time.Time     // zero is the present
}

// Report is what the records of drills say, for people who must see that backups are proven. Times are in UTC, sizes in bytes.
type Report struct {
	At        time.Time  `json:"at"`
	Archive   string     `json:"archive,omitempty"` // where it lies; for the caller to fill in
	Version   string     `json:"version,omitempty"` // of the program; likewise
	System    uint64     `json:"system_identifier,string,omitempty"`
	Since     time.Time  `json:"since,omitzero"`
	Keys      []string   `json:"keys,omitempty"` // who may vouch for records: see proof.KeyID; none: signatures were not checked
	Verdict   string     `json:"verdict"`        // in a sentence or two
	Proven    int        `json:"proven"`         // backups that are
	Backups   []Standing `json:"backups"`        // oldest first
	Drills    []Made     `json:"drills"`         // oldest first
	Refused   []Refused  `json:"refused,omitempty"`
	Trend     *Trend     `json:"trend,omitempty"` // nil where too few drills came far enough
	Objective float64    `json:"objective_seconds,omitempty"`
	Notes     []string   `json:"notes,omitempty"`
}

// State says how a backup stands.
type State string

// The states.
const (
	StateProven   State = "proven"     // its last drill came up as it should
	StateFailed   State = "failed"     // its last drill did not
	StateUnproven State = "not proven" // it had none that counts
)

// Standing is how one backup stands.
type Standing struct {
	Backup   string    `json:"backup"`
	Finished time.Time `json:"finished,omitzero"`
	Size     int64     `json:"size"` // restored, of a delta too
	State    State     `json:"state"`
	At       time.Time `json:"at,omitzero"` // of the last drill
	RTO      float64   `json:"rto_seconds,omitempty"`
	Why      string    `json:"why,omitempty"` // it is not proven
	Drills   int       `json:"drills"`        // that count
}

// Made is a drill that was made, and counts.
type Made struct {
	Record
	At     time.Time `json:"counts_from"` // see proof.Proof.When
	Object string    `json:"record"`
	Signer string    `json:"signed_with,omitempty"` // see proof.KeyID
}

// Refused is a record that does not count.
type Refused struct {
	Object string `json:"record"`
	Why    string `json:"why"`
}

// Trend says how long a restore will take.
type Trend struct {
	Model  Model      `json:"model"`
	Hosts  []string   `json:"hosts"` // on which it was measured
	Size   int64      `json:"size"`
	Now    bool       `json:"size_is_now"` // Size is what the newest backup has
	WAL    int64      `json:"wal"`         // to replay: the median of the last drills to the end of the WAL
	At     Estimate   `json:"at"`
	Growth *Growth    `json:"growth,omitempty"` // nil where there is too little to tell
	Ahead  []Ahead    `json:"ahead,omitempty"`
	Missed *time.Time `json:"objective_missed_from,omitempty"` // nil where it is kept for three years, or there is none, or Growth is not known and it is kept now
	Text   []string   `json:"text"`                            // all that in sentences
}

// Ahead is an estimate for what is to come.
type Ahead struct {
	At    time.Time `json:"at"`
	Bytes float64   `json:"bytes"`
	Estimate
}

// Bounds of what is read.
const (
	maxRecord  = 256 << 10 // bytes of one record
	maxRecords = 1000      // of a backup, the newest
	inFlight   = 16
)

// Summarize reads the records of all drills whose backups the archive still has. An archive without backups is a *catalog.NoBackupError.
func Summarize(ctx context.Context, a *archive.Archive, o ReportOptions) (*Report, error) {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	c, err := catalog.Load(ctx, a)
	if err != nil {
		return nil, err
	}
	if len(c.Backups) == 0 {
		return nil, &catalog.NoBackupError{Asked: "a report of drills", Reason: "the archive has no backups, and so nothing that drills could prove", Advice: "take one with `holdfast backup-push`, and prove it with `holdfast drill`"}
	}
	r := &Report{At: o.Now.UTC().Truncate(time.Second), Since: o.Since, Objective: o.Objective.Seconds(), Backups: []Standing{}, Drills: []Made{}}
	for _, k := range a.ProofKeys() {
		r.Keys = append(r.Keys, proof.KeyID(k))
	}
	all := make([]told, len(c.Backups))
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	for i := range c.Backups {
		group.Go(func() (err error) {
			all[i], err = readProofs(reading, a, &c.Backups[i])
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i := range c.Backups {
		b := &c.Backups[i]
		if s := b.Sentinel; s != nil && s.SystemIdentifier != nil {
			r.System = *s.SystemIdentifier
		}
		r.Backups = append(r.Backups, all[i].standing(b))
		r.Drills = append(r.Drills, all[i].made...)
		r.Refused = append(r.Refused, all[i].refused...)
		r.Notes = append(r.Notes, all[i].notes...)
		if r.Backups[i].State == StateProven {
			r.Proven++
		}
	}
	slices.SortStableFunc(r.Drills, func(x, y Made) int { return x.At.Compare(y.At) })
	r.Trend = r.trend(c, o)
	r.Drills = slices.DeleteFunc(r.Drills, func(m Made) bool { return m.At.Before(o.Since) })
	r.Verdict = r.verdict(o.Now)
	return r, nil
}

// told is what the records of one backup say.
type told struct {
	made    []Made // oldest first
	refused []Refused
	notes   []string
}

// readProofs reads the records beside a backup.
func readProofs(ctx context.Context, a *archive.Archive, b *catalog.Backup) (t told, err error) {
	sum := ""
	if b.Sentinel != nil {
		sum = b.Sentinel.Sum
	}
	var records []store.Object
	for o, err := range a.Store().List(ctx, archive.ProvenDir(b.Name), "") {
		if err != nil {
			return t, fmt.Errorf("list the records of drills of %s: %w", b.Name, err)
		}
		if !o.IsDir() && strings.HasSuffix(o.Name, ".json") {
			records = append(records, o)
		}
	}
	if left := len(records) - maxRecords; left > 0 {
		t.notes = append(t.notes, fmt.Sprintf("%d older records of %s were not read", left, b.Name))
		records = records[left:]
	}
	for _, o := range records {
		if o.Size > maxRecord {
			t.refused = append(t.refused, Refused{o.Name, "it is larger than the record of a drill"})
			continue
		}
		p, err := proof.Read(ctx, a, b.Name, sum, o)
		var no *proof.RefusedError
		made := Made{Object: o.Name}
		if err == nil {
			made.At, made.Signer = p.When, p.Signer
			err = json.Unmarshal(p.Stored, &made.Record)
		}
		switch {
		case ctx.Err() != nil:
			return t, context.Cause(ctx)
		case errors.Is(err, fs.ErrNotExist):
		case errors.As(err, &no):
			t.refused = append(t.refused, Refused{o.Name, no.Err.Error()})
		case err != nil:
			t.refused = append(t.refused, Refused{o.Name, strings.TrimPrefix(err.Error(), "read "+o.Name+": ")})
		default:
			t.made = append(t.made, made)
		}
	}
	slices.SortStableFunc(t.made, func(x, y Made) int { return x.At.Compare(y.At) })
	return t, nil
}

// standing says how the backup stands.
func (t *told) standing(b *catalog.Backup) Standing {
	s := Standing{Backup: b.Name, Finished: b.Created().UTC(), State: StateUnproven, Drills: len(t.made), Why: "no drill of it was ever made"}
	if b.Sentinel == nil {
		s.Why = "its sentinel cannot be read"
	}
	if b.Sentinel != nil && !b.IsDelta() {
		s.Size = b.Sentinel.UncompressedSize
	}
	if len(t.made) == 0 {
		if n := len(t.refused); n > 0 && b.Sentinel != nil {
			s.Why = fmt.Sprintf("it has %d records that do not count, and none that does", n)
			if n == 1 {
				s.Why = "its one record does not count: " + t.refused[0].Why
			}
		}
		return s
	}
	last := t.made[len(t.made)-1]
	s.At, s.RTO, s.State, s.Why = last.At, last.RTO, StateProven, ""
	if last.Fetched.Bytes > 0 {
		s.Size = last.Fetched.Bytes
	}
	if !last.OK {
		s.State, s.Why = StateFailed, string(last.Reason)+": "+oneLine(last.Error)
	}
	return s
}

// oneLine is the beginning of a text, on a line.
func oneLine(text string) string {
	return truncate(strings.Join(strings.Fields(text), " "), 400)
}

// verdict says it in a sentence or two.
func (r *Report) verdict(now time.Time) string {
	var b strings.Builder
	n := len(r.Backups)
	switch {
	case r.Proven == 0:
		fmt.Fprintf(&b, "None of the %s is proven.", count(n, "backup"))
	case r.Proven == n:
		fmt.Fprintf(&b, "All of the %s are proven.", count(n, "backup"))
		if n == 1 {
			b.Reset()
			b.WriteString("The one backup is proven.")
		}
	default:
		fmt.Fprintf(&b, "%d of %s are proven.", r.Proven, count(n, "backup"))
	}
	var last *Standing
	for i := range r.Backups {
		if s := &r.Backups[i]; s.State == StateProven && (last == nil || s.At.After(last.At)) {
			last = s
		}
	}
	if last != nil {
		when := humanize.RelTime(last.At, now, "ago", "ahead")
		if when == "now" {
			when = "just now"
		}
		fmt.Fprintf(&b, " The last that came up was made %s, of %s", when, last.Backup)
		if last.RTO > 0 {
			fmt.Fprintf(&b, ": it took writes after %s", round(last.RTO))
		}
		b.WriteString(".")
	}
	if i := slices.IndexFunc(r.Backups, func(s Standing) bool { return s.State == StateFailed }); i >= 0 {
		failed := 0
		for _, s := range r.Backups {
			if s.State == StateFailed {
				failed++
			}
		}
		if failed == 1 {
			fmt.Fprintf(&b, " The last drill of %s failed (%s).", r.Backups[i].Backup, r.Backups[i].Why)
		} else {
			fmt.Fprintf(&b, " The last drills of %d backups failed.", failed)
		}
	}
	if len(r.Refused) > 0 {
		fmt.Fprintf(&b, " %s not count as proof.", map[bool]string{true: "1 record does", false: fmt.Sprintf("%d records do", len(r.Refused))}[len(r.Refused) == 1])
	}
	return b.String()
}

// count prints a number of things.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// lastOnes is how many of the newest drills say how much WAL there is to replay.
const lastOnes = 15

// trend fits a model to all drills, and says what it comes to.
func (r *Report) trend(c *catalog.Catalog, o ReportOptions) *Trend {
	var samples []Sample
	var sizes []Size
	var wals []float64
	t := &Trend{}
	toTheEnd := catalog.Target{Kind: catalog.Latest}.String()
	for i := range r.Drills {
		m := &r.Drills[i]
		s, ok := sampleOf(&m.Record)
		if !ok {
			continue
		}
		samples = append(samples, s)
		sizes = append(sizes, Size{m.Finished, s.Bytes})
		if m.Target == toTheEnd && m.OK {
			wals = append(wals, s.WAL)
		}
		if _, host, ok := strings.Cut(m.By, "@"); ok && !slices.Contains(t.Hosts, host) {
			t.Hosts = append(t.Hosts, host)
		}
	}
	var ok bool
	if t.Model, ok = Fit(samples); !ok {
		r.Notes = append(r.Notes, fmt.Sprintf("an estimate of how long a restore takes needs %d drills that came up, and there are %d", minSamples, len(samples)))
		return nil
	}
	slices.Sort(t.Hosts)
	for i := range c.Backups {
		if b := &c.Backups[i]; b.Sentinel != nil && !b.IsDelta() && b.Sentinel.UncompressedSize > 0 {
			sizes = append(sizes, Size{b.Created(), float64(b.Sentinel.UncompressedSize)})
		}
	}
	slices.SortStableFunc(sizes, func(x, y Size) int { return x.At.Compare(y.At) })
	if len(wals) == 0 {
		for _, s := range samples {
			wals = append(wals, s.WAL)
		}
	}
	t.WAL = int64(median(wals[max(0, len(wals)-lastOnes):]))
	newest := sizes[len(sizes)-1].Bytes
	if t.Size = o.Size; t.Size == 0 {
		t.Size, t.Now = int64(newest), true
	}
	t.At = t.Model.Predict(float64(t.Size), float64(t.WAL))
	if g, ok := Grow(sizes); ok {
		t.Growth = &g
		for _, months := range []int{3, 6, 12} {
			at := o.Now.AddDate(0, months, 0).UTC().Truncate(24 * time.Hour)
			bytes := g.Then(at)
			t.Ahead = append(t.Ahead, Ahead{at, bytes, t.Model.Predict(bytes, float64(t.WAL))})
		}
		if o.Objective > 0 {
			if from, ok := t.Model.Missed(&g, float64(t.WAL), o.Objective.Seconds(), o.Now); ok {
				from = from.UTC()
				t.Missed = &from
			}
		}
	} else if o.Objective > 0 && t.Model.Predict(newest, float64(t.WAL)).Seconds > o.Objective.Seconds() { // as it is now, whatever size is asked for
		now := o.Now.UTC()
		t.Missed = &now
	}
	t.Text = t.sentences(o)
	return t
}

// sentences says all that in words.
func (t *Trend) sentences(o ReportOptions) (text []string) {
	text = append(text, fmt.Sprintf("At %s, with %s of WAL to replay, expect %s (fitted to %s on %s; in the median it was off by %.0f %%).",
		humanize.IBytes(uint64(t.Size)), humanize.IBytes(uint64(max(0, t.WAL))), t.At, count(t.Model.Drills, "drill"), cmp.Or(strings.Join(t.Hosts, ", "), "hosts that are not known"), 100*t.Model.Error))
	if g := t.Growth; g != nil {
		switch daily := g.Daily; {
		case daily >= 1:
			text = append(text, fmt.Sprintf("The cluster grows by about %s a day.", humanize.IBytes(uint64(daily))))
		case daily <= -1:
			text = append(text, fmt.Sprintf("The cluster shrinks by about %s a day.", humanize.IBytes(uint64(-daily))))
		default:
			text = append(text, "The cluster does not grow.")
		}
	}
	if o.Objective == 0 {
		return text
	}
	objective := span(o.Objective.Seconds(), o.Objective.Seconds())
	switch {
	case t.Missed != nil && !t.Missed.After(o.Now):
		text = append(text, fmt.Sprintf("Your objective of %s is missed already.", objective))
	case t.Missed != nil && t.Missed.Sub(o.Now) < 45*24*time.Hour:
		text = append(text, fmt.Sprintf("Your objective of %s is missed from %s on, if it goes on like this.", objective, t.Missed.Format("2 January 2006")))
	case t.Missed != nil:
		text = append(text, fmt.Sprintf("Your objective of %s is missed from %s on, if it goes on like this.", objective, t.Missed.Format("January 2006")))
	case t.Growth != nil:
		text = append(text, fmt.Sprintf("Your objective of %s is kept for the next three years, if it goes on like this.", objective))
	default:
		text = append(text, fmt.Sprintf("Your objective of %s is kept now; how the cluster grows is not known yet.", objective))
	}
	if !t.Now && t.At.Seconds > o.Objective.Seconds() {
		text = append(text, fmt.Sprintf("At %s it would be missed.", humanize.IBytes(uint64(t.Size))))
	}
	return text
}

// String prints it as people read it: 41–47 min.
func (e Estimate) String() string { return span(e.Low, e.High) }

// span prints a stretch of seconds.
func span(low, high float64) string {
	unit, divisor, format := "s", 1.0, "%.0f"
	switch {
	case high >= 100*60:
		unit, divisor, format = "h", 3600, "%.1f"
	case high >= 100:
		unit, divisor = "min", 60
	case high < 10:
		format = "%.1f"
	}
	from, to := fmt.Sprintf(format, low/divisor), fmt.Sprintf(format, high/divisor)
	if from == to {
		return strings.TrimSuffix(to, ".0") + " " + unit
	}
	return from + "–" + to + " " + unit
}
