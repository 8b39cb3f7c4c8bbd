// Package verify reads what an archive holds, and compares it with what it should be: object by object, by content.
//
// Decide lists what a verification is of, by names, and what of that is due: an object that was read before with the same name, size and time, and not too
// long ago, is not read again. Run reads what is due, decrypts and decompresses it and holds it against what speaks for it: the manifest against the
// sentinel, parts and sums of pages against the manifest, all against objects.json, WAL against the checksum of each record and the link to the one before. What
// was found is a Report, and is recorded in the archive beside what was read.
//
// A Finding of damage names the object and, where content is wrong, from which byte on. What could not be looked at, because the store fails or the key is
// not at hand, is no damage and not well either.
package verify

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// DefaultMaxAge is how long what was found of an object counts.
const DefaultMaxAge = 30 * 24 * time.Hour

// Request says what to verify.
type Request struct {
	Backup string // a name, or LATEST; "" with All
	All    bool   // all backups and all WAL
	WAL    bool   // the WAL from the backup's start on to the end, not to its finish alone

	Again  bool          // also what is not due
	MaxAge time.Duration // how long what was found before counts; 0 means DefaultMaxAge
	// Sample is how much of parts and WAL is read, chosen at random, such as 0.01; 0 is all. It makes nothing count as verified.
	Sample float64
	// NoKey says that there is no key that decrypts. What is encrypted is then compared as it is stored with what was put, and not looked into: with a key it is
	// due again.
	NoKey bool
}

// Options tunes Run. The zero value is ready to use.
type Options struct {
	Workers  int    // goroutines that read; 0 means one per processor
	By, Tool string // of the records: who verifies, "" for the process's user and host; and with which release
	// ReadOnly leaves no records.
	ReadOnly bool
	Every    time.Duration // records of what is done so far are left no more often; 0 means a minute
	Seed     uint64        // of what Sample chooses; 0 draws one
	Progress *Progress     // nil for none
	Logger   *slog.Logger  // nil discards
}

// Progress says where a verification is. It may be read while Run works.
type Progress struct {
	phase       atomic.Value // string
	done, total atomic.Int64
}

// Phase says what is being done.
func (p *Progress) Phase() string {
	s, _ := p.phase.Load().(string)
	return s
}

// Bytes returns how many bytes as stored were read, and how many are to be.
func (p *Progress) Bytes() (done, total int64) { return p.done.Load(), p.total.Load() }

// Severity says what a finding means.
type Severity string

// The severities, from the worst.
const (
	Damage  Severity = "damage"  // what is in the archive is not what should be
	Unknown Severity = "unknown" // it could not be looked at
	Warning Severity = "warning" // worth knowing; no restore fails of it
)

// A Kind says what is wrong.
type Kind string

// The kinds of findings.
const (
	Missing   Kind = "missing"   // there is no such object
	Size      Kind = "size"      // it is shorter or longer than it was put
	Content   Kind = "content"   // what is in it is not what it should be
	Foreign   Kind = "foreign"   // it is of another backup, cluster or timeline
	Sequence  Kind = "sequence"  // WAL that does not go on where the segment before it ends
	Chain     Kind = "chain"     // a delta does not fit what it builds on
	Stray     Kind = "stray"     // it belongs to nothing
	Pages     Kind = "pages"     // pages whose own checksum did not hold already when they were backed up
	NotListed Kind = "unlisted"  // nothing says what it should be
	Store     Kind = "store"     // the store did not give it
	Key       Kind = "key"       // there is no key for it
	Document  Kind = "documents" // two documents say different things
)

// Finding is something that is not as it should be.
type Finding struct {
	Severity Severity `json:"severity"`
	Kind     Kind     `json:"kind"`
	Backup   string   `json:"backup,omitempty"`
	Object   string   `json:"object"`           // its name in the store
	Member   string   `json:"member,omitempty"` // the file in a part
	Offset   *int64   `json:"offset,omitempty"` // in bytes, of its content as it is after decrypting and decompressing; nil where that cannot be told
	LSN      string   `json:"lsn,omitempty"`    // of WAL
	Text     string   `json:"text"`
	Means    string   `json:"means,omitempty"` // for restores
	Next     string   `json:"next,omitempty"`  // what to do

	segment *segment
	doubt   bool // it may be the key that is wrong
	soft    bool // damage of it is only a warning
	gone    bool // it was listed, and was not there any more
}

// Plan is what Run will do.
type Plan struct {
	Backups  []string  `json:"backups"`           // each after what it builds on
	Orphans  []string  `json:"orphans,omitempty"` // folders of backups without a sentinel
	WAL      []Range   `json:"wal"`
	Objects  int       `json:"objects"`         // of backups
	Segments int       `json:"segments"`        // of WAL
	Bytes    int64     `json:"bytes"`           // of both, as stored
	Due      Amount    `json:"due"`             // what of that is to be read
	Before   int       `json:"verified_before"` // objects and segments that are not due
	Oldest   time.Time `json:"oldest,omitzero"` // when the first of those was read
	Sample   float64   `json:"sample,omitempty"`
	Notes    []string  `json:"notes,omitempty"`

	mu       sync.Mutex // of findings, while documents are loaded
	request  Request
	now      time.Time
	catalog  *catalog.Catalog
	targets  []*target
	wal      *inventory
	findings []Finding
}

// Amount is how much.
type Amount struct {
	Objects  int   `json:"objects"`
	Segments int   `json:"segments"`
	Bytes    int64 `json:"bytes"`
}

// Range is a stretch of WAL of one timeline.
type Range struct {
	Timeline wal.Timeline `json:"timeline"`
	First    string       `json:"first"` // names of segments
	Last     string       `json:"last"`
	Segments int          `json:"segments"` // that are there
}

// Report is what was found.
type Report struct {
	Result   Severity       `json:"result"` // "ok", or that of the worst finding
	Backups  []BackupResult `json:"backups"`
	WAL      []RangeResult  `json:"wal"`
	Findings []Finding      `json:"findings"`
	More     int            `json:"findings_left_out,omitempty"`
	Read     Amount         `json:"read"`
	Before   int            `json:"verified_before"` // objects and segments that were not due
	Seconds  float64        `json:"seconds"`
	Sample   float64        `json:"sample,omitempty"`
	Notes    []string       `json:"notes,omitempty"`
}

// OK is the result of what has no damage and was looked at as far as asked.
const OK Severity = "ok"

// BackupResult is what came of a backup.
type BackupResult struct {
	Backup  string `json:"backup"`
	Result  string `json:"result"` // ok, damaged, incomplete, or removed while it was verified
	Objects int    `json:"objects"`
	Read    int    `json:"read"`
	Limits  string `json:"limits,omitempty"` // what cannot be found in it
}

// RangeResult is what came of a stretch of WAL.
type RangeResult struct {
	Range
	Result string `json:"result"`
	Read   int    `json:"read"`
	End    string `json:"end_lsn,omitempty"`
}

// maxFindings bounds how many findings a report has.
const maxFindings = 1000

// run is one verification at work.
type run struct {
	*Plan
	archive *archive.Archive
	opts    Options
	begin   time.Time

	mu       sync.Mutex
	findings []Finding
	more     int
	all      verdict
	backups  map[string]*verdict // by name
	troubles map[string]*trouble // by object: those with damage, or that could not be looked at
	flushed  time.Time
	random   *rand.Rand
	opened   atomic.Bool // something that is encrypted could be read
	read     Amount
}

// Run does what a plan says. An error is one of the run as a whole; what is wrong with the archive is in the report. What was found before an error, or the
// end of ctx, is recorded.
func Run(ctx context.Context, a *archive.Archive, p *Plan, opts Options) (*Report, error) {
	if opts.Workers <= 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	if opts.Every == 0 {
		opts.Every = time.Minute
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Progress == nil {
		opts.Progress = &Progress{}
	}
	if opts.Seed == 0 {
		opts.Seed = rand.Uint64()
	}
	opts.Progress.total.Store(p.Due.Bytes)
	r := &run{Plan: p, archive: a, opts: opts, begin: time.Now(), flushed: time.Now(), random: rand.New(rand.NewPCG(opts.Seed, 1)),
		backups: map[string]*verdict{}, troubles: map[string]*trouble{}}
	for _, f := range p.findings {
		r.add(f)
	}
	err := r.eachBackup(ctx)
	if err == nil {
		err = r.segments(ctx)
	}
	if err == nil {
		err = r.tails(ctx)
	}
	if err == nil {
		err = r.settleGone(ctx)
	}
	if flushErr := r.flush(ctx, err == nil); err == nil {
		err = flushErr
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return r.report(), nil
}

// verdict counts what was found of something, by how bad it is.
type verdict struct{ damage, doubt, unknown int }

func (v *verdict) add(f *Finding, n int) {
	switch {
	case f.Severity == Damage && f.doubt:
		v.doubt += n
	case f.Severity == Damage:
		v.damage += n
	case f.Severity == Unknown:
		v.unknown += n
	}
}

// severity is that of the worst that was counted. What may be the key's fault is damage once the key has opened something else.
func (r *run) severity(v verdict) Severity {
	switch {
	case v.damage > 0 || v.doubt > 0 && r.opened.Load():
		return Damage
	case v.doubt > 0 || v.unknown > 0:
		return Unknown
	}
	return OK
}

// trouble is what was found of one object, however many findings there are: of this the records are made.
type trouble struct {
	verdict
	backup   string
	segment  *segment
	problem  WALProblem // the first, or the first that is damage
	recorded bool       // in this run
}

// add enters a finding. Those beyond what a report has count all the same.
func (r *run) add(f Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	full := len(r.findings) >= maxFindings && f.Severity != Damage || len(r.findings) >= 2*maxFindings
	r.count(&f, 1, full)
	if full {
		r.more++
		return
	}
	r.findings = append(r.findings, f)
}

// count enters a finding in the verdicts n times: -1 takes it out. The caller holds mu.
func (r *run) count(f *Finding, n int, brief bool) {
	if f.Severity != Damage && f.Severity != Unknown {
		return
	}
	r.all.add(f, n)
	if f.Backup != "" {
		if r.backups[f.Backup] == nil {
			r.backups[f.Backup] = &verdict{}
		}
		r.backups[f.Backup].add(f, n)
	}
	t := r.troubles[f.Object]
	if t == nil {
		t = &trouble{backup: f.Backup, segment: f.segment}
		r.troubles[f.Object] = t
	}
	if t.damage == 0 && (f.Severity == Damage && !f.doubt || t.problem.Kind == "") {
		t.problem = WALProblem{Kind: f.Kind}
		if !brief {
			t.problem.Text = f.Text
		}
		if f.Offset != nil {
			t.problem.Offset = *f.Offset
		}
		t.recorded = false
	}
	t.add(f, n)
}

// of returns what was found of an object, and how bad that is.
func (r *run) of(object string) (trouble, Severity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.troubles[object]; t != nil {
		return *t, r.severity(t.verdict)
	}
	return trouble{}, OK
}

// ofBackup returns how bad what was found of a backup is.
func (r *run) ofBackup(name string) Severity {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.backups[name]; v != nil {
		return r.severity(*v)
	}
	return OK
}

// found returns the findings that hold for.
func (r *run) found(holds func(*Finding) bool) (some []*Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.findings {
		if holds(&r.findings[i]) {
			some = append(some, &r.findings[i])
		}
	}
	return some
}

// chosen draws whether something is in the sample.
func (r *run) chosen() bool {
	if r.request.Sample == 0 {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.random.Float64() < r.request.Sample
}

// report puts together what was found.
func (r *run) report() *Report {
	r.settleKeys()
	r.explain()
	rep := &Report{Findings: []Finding{}, More: r.more, Read: r.read, Before: r.Before, Sample: r.request.Sample, Notes: r.Notes,
		Seconds: time.Since(r.begin).Seconds(), Backups: []BackupResult{}, WAL: []RangeResult{}}
	rank := map[Severity]int{Damage: 0, Unknown: 1, Warning: 2}
	slices.SortStableFunc(r.findings, func(x, y Finding) int { return rank[x.Severity] - rank[y.Severity] })
	rep.Findings = append(rep.Findings, r.findings...)
	rep.Result = r.severity(r.all)
	for _, t := range r.targets {
		rep.Backups = append(rep.Backups, BackupResult{Backup: t.name, Result: r.result(t), Objects: len(t.objects), Read: t.read, Limits: t.limits})
	}
	rep.WAL = r.wal.results(r)
	return rep
}

// result says in the words of the records what came of a backup.
func (r *run) result(t *target) string {
	if t.removed {
		return "removed"
	}
	switch r.ofBackup(t.name) {
	case Damage:
		return "damaged"
	case Unknown:
		return "incomplete"
	}
	if r.request.Sample != 0 && t.due() || !t.ended || r.request.NoKey {
		return "incomplete"
	}
	return "ok"
}

// settleGone decides for what was not there any more whether it was lost: not where by what the archive holds now nothing needs it.
func (r *run) settleGone(ctx context.Context) error {
	if len(r.found(func(f *Finding) bool { return f.gone && f.Severity == Damage })) == 0 {
		return nil
	}
	now, err := Decide(ctx, r.archive, Request{All: true})
	if err != nil {
		return err
	}
	removed := func(f *Finding) bool {
		if f.Backup != "" {
			t := r.target(f.Backup)
			return t != nil && t.removed
		}
		if s := f.segment; s != nil && s.name != "" {
			return now.wal.timeline(s.t).find(s.no) == nil && !slices.ContainsFunc(now.findings, func(g Finding) bool {
				return g.Severity != Warning && g.Kind == Missing && g.segment != nil && g.segment.t == s.t && g.segment.no <= s.no && s.no <= max(g.segment.no, g.segment.to)
			})
		}
		return false
	}
	for _, t := range r.targets {
		t.removed = t.Backup != nil && !slices.Contains(now.Backups, t.name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.findings {
		if f := &r.findings[i]; (f.gone || f.Backup != "" && f.Severity != Warning) && removed(f) {
			r.count(f, -1, false)
			f.Severity, f.Text = Warning, "it was removed while it was being verified"
		}
	}
	return nil
}

// settleKeys decides for what could not be decrypted whether it is damaged: only where the key has opened something else.
func (r *run) settleKeys() {
	for _, f := range r.found(func(f *Finding) bool { return f.doubt && f.Severity == Damage }) {
		if !r.opened.Load() {
			f.Severity, f.Kind = Unknown, Key
			f.Text += ": nothing could be decrypted, so that it may be the wrong key"
		}
	}
}

// at makes the offset of a finding.
func at(n int64) *int64 { return &n }

var errStopped = errors.New("enough is known")
