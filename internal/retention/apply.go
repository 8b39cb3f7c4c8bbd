package retention

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// Options tunes Apply.
type Options struct {
	Grace   time.Duration // from when something is condemned to when it is removed; 0: at once
	Host    string        // name of this one
	By      string        // who stands in tombstones; "" for the user and host of the process
	Version string        // of this program
	Logger  *slog.Logger  // nil discards
}

// Report says what Apply did.
type Report struct {
	Rule       string    `json:"rule"`
	Condemned  []string  `json:"condemned,omitempty"`   // backups, by this run
	PurgeAfter time.Time `json:"purge_after,omitzero"`  // of these
	TakenBack  []string  `json:"taken_back,omitempty"`  // that the policy had condemned and wants again
	Waiting    []string  `json:"waiting,omitempty"`     // condemned, and their time has not come
	Backups    []string  `json:"backups,omitempty"`     // removed
	Objects    int       `json:"objects"`               // removed
	Bytes      int64     `json:"bytes"`                 // of them
	Refused    int       `json:"refused,omitempty"`     // objects that the store did not let go
	Refusals   []string  `json:"refusals,omitempty"`    // what it said of some
	StoreLocks bool      `json:"store_locks,omitempty"` // nothing more was tried, as the store refused everything
}

// Apply carries a plan out. What is to go is condemned first; then the archive is looked at anew, and of what is condemned and whose time has come everything
// is removed that the rule, judging again, lets go: sentinels first, deltas before what they build on, then the rest of the backups, then WAL. Whoever reads the
// archive meanwhile sees no half backup, and a call that breaks off anywhere is finished by the next one.
//
// What the store refuses to remove, as it is locked or not allowed, is counted, stays as if it were wanted, and keeps nothing else from going.
func Apply(ctx context.Context, a *archive.Archive, p *Plan, opts Options) (*Report, error) {
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	r := &applying{a: a, opts: opts, report: &Report{Rule: p.Rule}, refused: maps.Clone(p.judge.in.Refused)}
	err := r.apply(ctx, p)
	return r.report, err
}

// applying is an Apply at work.
type applying struct {
	a       *archive.Archive
	opts    Options
	report  *Report
	refused map[string]string // backups whose sentinels the store does not let go
	locked  int               // batches in a row of which every object was refused
	known   map[string]bool   // records by which something is condemned, taken back, held or being restored that were judged
}

func (r *applying) apply(ctx context.Context, p *Plan) error {
	sc := p.rule.scope()
	mine, err := r.condemn(ctx, p)
	if err != nil {
		return err
	}
	if r.known, err = r.records(ctx); err != nil {
		return err
	}
	in, err := Load(ctx, r.a, r.opts.Host, true)
	if err != nil {
		return err
	}
	maps.Copy(in.Refused, r.refused)
	again, err := Decide(in, p.rule, latest(p.judge.now, in.At))
	if kept := (*KeptError)(nil); errors.As(err, &kept) && mine != "" {
		// Something has come to need it meanwhile.
		_, back := r.a.AddRecord(ctx, archive.TombstoneDir, "", archive.Tombstone{RecordHead: r.head(), Revokes: []string{mine}, Why: kept.Error()})
		return errors.Join(err, back)
	}
	if errors.Is(err, ErrNothing) {
		return nil // somebody else has removed it meanwhile
	}
	if err != nil {
		return err
	}
	if sc.nothing {
		return r.everything(ctx, again)
	}
	if err := r.takeBack(ctx, again); err != nil {
		return err
	}
	return r.purge(ctx, again)
}

// records lists the records by which people and restores have a say.
func (r *applying) records(ctx context.Context) (map[string]bool, error) {
	all := map[string]bool{}
	for _, dir := range []string{archive.TombstoneDir, archive.HoldDir, archive.RestoreDir} {
		for o, err := range r.a.Store().List(ctx, dir, "") {
			if err != nil {
				return nil, fmt.Errorf("look what was noted: %w", err)
			}
			all[o.Name] = true
		}
	}
	return all, nil
}

// overtaken returns a record that has come since all was judged: an undelete, a hold, a restore; "" for none.
func (r *applying) overtaken(ctx context.Context) (string, error) {
	all, err := r.records(ctx)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !r.known[name] {
			return name, err
		}
	}
	return "", err
}

func latest(x, y time.Time) time.Time {
	if x.After(y) {
		return x
	}
	return y
}

func (r *applying) head() archive.RecordHead { return archive.NewRecordHead(r.opts.By, r.opts.Version) }

// condemn stores a tombstone for what goes and has none, and returns its name; "" where nothing is new.
func (r *applying) condemn(ctx context.Context, p *Plan) (string, error) {
	policy := p.rule.scope().policy
	d := archive.Tombstone{RecordHead: r.head(), Sentinels: map[string]string{}, Why: p.Rule}
	// By the store's clock, which judges it later: it is never sooner than what is said here.
	d.PurgeAfter = latest(p.judge.now, p.judge.in.At).Add(r.opts.Grace).UTC()
	if !policy {
		d.Request = "holdfast " + p.Rule
	}
	for _, v := range p.Backups {
		b := p.judge.byKey[v.Backup]
		switch {
		case v.Keep:
		case policy && b.asked(): // at its own time
		case b.Condemned != nil && (policy || b.Condemned.Request != "") && !b.Condemned.PurgeAfter.After(d.PurgeAfter):
		default:
			d.Backups = append(d.Backups, v.Backup)
			if b.Sentinel != nil {
				d.Sentinels[v.Backup] = b.Sentinel.Sum
			}
		}
	}
	if p.rule.scope().wal {
		d.WAL = p.condemnedWAL(d.PurgeAfter)
	}
	if len(d.Backups) == 0 && len(d.WAL) == 0 {
		return "", nil
	}
	name, err := r.a.AddRecord(ctx, archive.TombstoneDir, "", d)
	if err != nil {
		return "", fmt.Errorf("note what is to go: %w", err)
	}
	if r.opts.Grace > 0 {
		r.report.Condemned, r.report.PurgeAfter = d.Backups, d.PurgeAfter
	}
	return name, nil
}

// condemnedWAL returns the stretches of WAL that go and are not condemned yet to go by then.
func (p *Plan) condemnedWAL(by time.Time) (all []archive.CondemnedWAL) {
	v := p.judge.judgeWAL((*backup).stay, p.rule.scope().alone)
	var known walFilter
	for _, t := range p.judge.in.Catalog.Tombstones {
		if !t.PurgeAfter.After(by) {
			known = append(known, t.WAL...)
		}
	}
	begun := map[wal.Timeline]bool{}
	for _, w := range p.WAL {
		t, first := placeOf(w.First)
		_, last := placeOf(w.Last)
		if w.Keep || known.covers(t, span{first, last}) {
			continue
		}
		if last < v.before[t].place {
			if !begun[t] {
				all = append(all, archive.CondemnedWAL{Timeline: t, Before: v.before[t].name(t)})
			}
			begun[t] = true
			continue
		}
		all = append(all, archive.CondemnedWAL{Timeline: t, First: w.First, Last: w.Last})
	}
	for _, s := range p.Pieces { // of segments of which there is nothing else
		t, at := placeOf(s.Segment)
		here := span{at, at}
		if s.Keep || s.Ground == Whole || known.covers(t, here) || walFilter(all).covers(t, here) {
			continue
		}
		all = append(all, archive.CondemnedWAL{Timeline: t, First: s.Segment, Last: s.Segment})
	}
	return all
}

// walFilter is stretches of WAL.
type walFilter []archive.CondemnedWAL

// covers reports whether one of the stretches has all of s.
func (f walFilter) covers(t wal.Timeline, s span) bool {
	return slices.ContainsFunc(f, func(c archive.CondemnedWAL) bool {
		if c.Timeline != t {
			return false
		}
		if wal.IsSegment(c.Before) {
			_, before := placeOf(c.Before)
			return s.to < before
		}
		if !wal.IsSegment(c.First) || !wal.IsSegment(c.Last) {
			return false
		}
		_, first := placeOf(c.First)
		_, last := placeOf(c.Last)
		return first <= s.from && s.to <= last
	})
}

// takeBack revokes what a policy has condemned that it wants now.
func (r *applying) takeBack(ctx context.Context, p *Plan) error {
	if !p.rule.scope().policy {
		return nil
	}
	d := archive.Tombstone{RecordHead: r.head(), Why: "they are wanted again"}
	for _, v := range p.Backups {
		b := p.judge.byKey[v.Backup]
		if !v.Keep || b.Condemned == nil || b.Condemned.Request != "" || v.Ground == Refused {
			continue
		}
		d.Backups = append(d.Backups, v.Backup)
		for _, t := range p.judge.in.Catalog.Tombstones {
			if slices.Contains(t.Backups, v.Backup) && !slices.Contains(d.Revokes, t.Record) {
				d.Revokes = append(d.Revokes, t.Record)
			}
		}
	}
	if len(d.Backups) == 0 {
		return nil
	}
	name, err := r.a.AddRecord(ctx, archive.TombstoneDir, "", d)
	if err != nil {
		return fmt.Errorf("take back what was condemned: %w", err)
	}
	r.known[name] = true
	r.report.TakenBack = d.Backups
	return nil
}

// ripe returns the backups that may be removed now, deltas before what they build on: they are condemned, their time has come, and nothing that stays longer
// builds on them.
func (p *Plan) ripe() []*backup {
	going := map[*backup]bool{}
	for _, v := range p.Backups {
		b := p.judge.byKey[v.Backup]
		going[b] = !v.Keep && b.Condemned != nil && !b.Condemned.PurgeAfter.After(p.judge.now)
	}
	depth := map[*backup]int{}
	for changed := true; changed; {
		changed = false
		for _, b := range p.judge.all {
			if b.parent == nil {
				continue
			}
			if !going[b] && going[b.parent] {
				going[b.parent], changed = false, true
			}
			if depth[b] <= depth[b.parent] && depth[b] < len(p.judge.all) {
				depth[b], changed = depth[b.parent]+1, true
			}
		}
	}
	var ripe []*backup
	for _, b := range p.judge.all {
		if going[b] {
			ripe = append(ripe, b)
		}
	}
	slices.SortStableFunc(ripe, func(x, y *backup) int { return cmp.Compare(depth[y], depth[x]) })
	return ripe
}

// purge removes what is condemned and whose time has come.
func (r *applying) purge(ctx context.Context, p *Plan) error {
	removed := map[*backup]bool{}
	stuck := map[*backup]bool{} // what refused deltas build on
	come := ""                  // a record that nobody has judged
	for _, b := range p.ripe() {
		if stuck[b] {
			stuck[b.parent] = true
			continue
		}
		var err error
		if come, err = r.overtaken(ctx); err != nil {
			return err
		}
		if come != "" {
			break
		}
		err = r.a.RemoveSentinel(ctx, b.Name, b.sum())
		if errors.Is(err, fs.ErrPermission) && ctx.Err() == nil {
			r.refuse(b.Name, 1, err)
			stuck[b.parent] = true
			continue
		}
		if err != nil {
			return fmt.Errorf("delete %s: %w", b.Name, err)
		}
		removed[b] = true
		r.report.Objects++
		r.report.Backups = append(r.report.Backups, b.Name)
		r.opts.Logger.Info("Backup deleted: "+b.Name, "why", b.goes.text)
	}
	for _, v := range p.Backups {
		if b := p.judge.byKey[v.Backup]; !v.Keep && !removed[b] && r.refused[v.Backup] == "" {
			r.report.Waiting = append(r.report.Waiting, v.Backup)
		}
	}
	folders := r.report.Backups
	for _, l := range p.Leftovers {
		if !l.Keep {
			folders = append(folders, l.Name)
		}
	}
	for _, name := range folders {
		if err := r.removeFolder(ctx, p, name); err != nil {
			return err
		}
	}
	if come == "" { // there may have been no backup to remove
		var err error
		if come, err = r.overtaken(ctx); err != nil {
			return err
		}
	}
	if come != "" {
		r.opts.Logger.Info("no more is removed by this run, as something was condemned, taken back, held or is being restored since it began; the next run judges anew", "record", come)
		return nil
	}
	if p.rule.scope().wal || p.anyRipeWAL() {
		if err := r.purgeWAL(ctx, p, removed); err != nil {
			return err
		}
	}
	return r.tidy(ctx, p)
}

// sum returns the SHA-256 of the sentinel that was judged.
func (b *backup) sum() string {
	if b.Sentinel == nil {
		return ""
	}
	return b.Sentinel.Sum
}

// removeFolder removes what lies beside a sentinel that is gone, or what a push has left.
func (r *applying) removeFolder(ctx context.Context, p *Plan, name string) error {
	i := slices.IndexFunc(p.judge.in.Pushes, func(u archive.Unfinished) bool { return u.Name == name })
	if i >= 0 && p.judge.in.Pushes[i].Push != nil { // its owner learns of it, should it come back
		err := r.a.TakeDead(ctx, name, r.opts.Host)
		switch inUse := (*archive.InUseError)(nil); {
		case errors.As(err, &inUse):
			r.opts.Logger.Info("what a push left stays", "why", err)
			return nil
		case errors.Is(err, fs.ErrPermission) && ctx.Err() == nil:
			r.refuse("", 1, err)
			return nil
		case err == nil:
			r.report.Objects += p.judge.in.Pushes[i].Count
			r.report.Bytes += p.judge.in.Pushes[i].Bytes
		}
		return err
	}
	if _, err := r.a.Store().Stat(ctx, r.a.SentinelName(name)); !errors.Is(err, fs.ErrNotExist) {
		return err // a backup has taken the name, or it cannot be told
	}
	objects, err := r.a.FolderOf(ctx, name)
	if err != nil {
		return err
	}
	return r.remove(ctx, objects)
}

// anyRipeWAL reports whether WAL was condemned whose time has come.
func (p *Plan) anyRipeWAL() bool {
	return slices.ContainsFunc(p.judge.in.Catalog.Tombstones, func(t catalog.Tombstone) bool {
		return len(t.WAL) > 0 && !t.PurgeAfter.After(p.judge.now)
	})
}

// purgeWAL removes WAL that is condemned, whose time has come, and that nothing needs that is still there.
func (r *applying) purgeWAL(ctx context.Context, p *Plan, removed map[*backup]bool) error {
	stays := func(b *backup) (mode, bool) {
		switch {
		case removed[b]:
			return moment, false
		case len(b.keep) > 0:
			return b.mode, true
		case r.refused[b.Name] != "":
			return moment, true
		}
		return continuous, true // it can be taken back yet
	}
	alone := p.rule.scope().alone
	v := p.judge.judgeWAL(stays, alone)
	var ripe walFilter
	for _, t := range p.judge.in.Catalog.Tombstones {
		if !t.PurgeAfter.After(p.judge.now) {
			ripe = append(ripe, t.WAL...)
		}
	}
	s := selection{size: p.judge.in.WAL.SegmentSize, histories: map[wal.Timeline]bool{}, wal: func(t wal.Timeline, at span, about object) bool {
		return v.lets(t, at, about, ripe.covers)
	}, pieces: func(t wal.Timeline, n wal.SegmentNo, about object) bool {
		goes, _ := p.judge.pieces(v, t, n, about, ripe.covers)
		return goes
	}}
	for _, h := range p.judge.historyPlan(v, stays) {
		s.histories[wal.Timeline(h.Timeline)] = !h.Keep
	}
	idle, err := r.noteRemoved(ctx, p, v, stays, ripe)
	if err != nil {
		return err
	}
	var batch []store.Object
	for o, err := range s.objects(ctx, r.a) {
		if err != nil {
			return err
		}
		if batch = append(batch, o); len(batch) == maxBatch {
			if err := r.remove(ctx, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if err := r.remove(ctx, batch); err != nil {
		return err
	}
	for _, record := range idle {
		if err := r.a.RemoveRecord(ctx, record); err != nil {
			return err
		}
	}
	return r.removeVerified(ctx, &s)
}

// maxBatch is how many objects are removed by one call.
const maxBatch = 1000

// maxLocked is after how many batches in a row, of which the store refused every object, no more are tried.
const maxLocked = 3

// remove removes objects. What the store refuses is counted and is no error.
func (r *applying) remove(ctx context.Context, objects []store.Object) error {
	for len(objects) > 0 {
		batch := objects[:min(len(objects), maxBatch)]
		objects = objects[len(batch):]
		names := make([]string, len(batch))
		for i, o := range batch {
			names[i] = o.Name
		}
		if r.locked >= maxLocked {
			r.report.StoreLocks = true
			r.report.Refused += len(batch)
			continue
		}
		err := store.DeleteMany(ctx, r.a.Store(), names)
		if err == nil {
			r.done(batch)
			continue
		}
		if ctx.Err() != nil || !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("delete objects: %w", err)
		}
		if err := r.removeEach(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// removeEach finds out which objects of a batch the store refuses.
func (r *applying) removeEach(ctx context.Context, batch []store.Object) error {
	errs := make([]error, len(batch))
	index := make(map[string]int, len(batch))
	names := make([]string, len(batch))
	for i, o := range batch {
		names[i], index[o.Name] = o.Name, i
	}
	_ = store.Each(names, inFlight, func(name string) error { // each error is looked at below
		errs[index[name]] = r.a.Store().Delete(ctx, name)
		return nil
	})
	some := false
	for i, err := range errs {
		switch {
		case err == nil:
			some = true
			r.done(batch[i : i+1])
		case errors.Is(err, fs.ErrPermission) && ctx.Err() == nil:
			r.refuse("", 1, err)
		default:
			return fmt.Errorf("delete objects: %w", err)
		}
	}
	if r.locked++; some {
		r.locked = 0
	}
	return nil
}

func (r *applying) done(objects []store.Object) {
	r.locked = 0
	r.report.Objects += len(objects)
	for _, o := range objects {
		r.report.Bytes += o.Size
	}
}

// maxRefusals is how many refusals a report has in words.
const maxRefusals = 5

// refuse notes that the store did not let something go; backup is what that was the sentinel of, "" for other objects.
func (r *applying) refuse(backup string, n int, err error) {
	if backup != "" {
		r.refused[backup] = err.Error()
	}
	r.report.Refused += n
	if len(r.report.Refusals) < maxRefusals {
		r.report.Refusals = append(r.report.Refusals, err.Error())
	}
}

// removeVerified removes what was found when WAL was read that is gone.
func (r *applying) removeVerified(ctx context.Context, s *selection) error {
	type found struct {
		First string `json:"first"`
		Last  string `json:"last"`
	}
	for rec, err := range archive.Records[found](ctx, r.a, archive.VerifiedWALDir) {
		if err != nil && rec.Name == "" {
			return err
		}
		if err != nil || !wal.IsSegment(rec.Doc.First) || !wal.IsSegment(rec.Doc.Last) {
			continue // it is not ours to judge
		}
		t, first := placeOf(rec.Doc.First)
		_, last := placeOf(rec.Doc.Last)
		if first > last || !s.wal(t, span{first, last}, object{rec.Modified, true}) {
			continue
		}
		if err := r.remove(ctx, []store.Object{{Name: rec.Name}}); err != nil {
			return err
		}
	}
	return nil
}

// clocks is how the names begin of objects that lie there for a moment, by which the store tells the time.
const clocks = archive.OwnDir + "clock-"

// tidy removes the tombstones of what is gone, what took others back that are gone, and marks of restores that ended without a word.
func (r *applying) tidy(ctx context.Context, p *Plan) error {
	for _, re := range p.judge.in.Restores {
		if !re.InUse(p.judge.in.At, re.Beat) {
			if err := r.remove(ctx, []store.Object{{Name: re.Record}}); err != nil {
				return err
			}
		}
	}
	for o, err := range r.a.Store().List(ctx, archive.OwnDir, clocks) { // left by who was interrupted while he asked for the time
		switch {
		case err != nil:
			return err
		case o.IsDir() || !strings.HasPrefix(o.Name, clocks) || p.judge.in.At.Sub(o.Modified) < time.Hour:
			continue
		}
		if err := r.remove(ctx, []store.Object{o}); err != nil {
			return err
		}
	}
	if r.report.Refused > 0 {
		return nil // they say what is to be tried again
	}
	there := map[string]bool{}
	for _, b := range p.judge.all {
		there[b.Name] = !slices.Contains(r.report.Backups, b.Name)
	}
	gone := map[string]bool{}
	for _, t := range p.judge.in.Catalog.Tombstones {
		if !t.PurgeAfter.After(p.judge.now) && !slices.ContainsFunc(t.Backups, func(name string) bool { return there[name] }) {
			gone[t.Record] = true
		}
	}
	if len(gone) == 0 {
		return nil
	}
	for name := range gone {
		if err := r.a.RemoveRecord(ctx, name); err != nil {
			return err
		}
	}
	for rec, err := range archive.Records[archive.Tombstone](ctx, r.a, archive.TombstoneDir) {
		if err != nil {
			return err
		}
		if len(rec.Doc.Revokes) == 0 {
			continue
		}
		idle, err := r.idle(ctx, rec.Doc.Revokes)
		if err == nil && idle {
			err = r.a.RemoveRecord(ctx, rec.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// idle reports whether of these records none is there any more. The store is asked: what this run has judged is what there was when it began.
func (r *applying) idle(ctx context.Context, records []string) (bool, error) {
	for _, name := range records {
		if store.CheckName(name) != nil || !strings.HasPrefix(name, archive.TombstoneDir) {
			continue // nothing of ours
		}
		switch _, err := r.a.Store().Stat(ctx, name); {
		case err == nil:
			return false, nil
		case !errors.Is(err, fs.ErrNotExist):
			return false, err
		}
	}
	return true, nil
}

// everything removes all objects of the archive: sentinels first, who owns it and what was condemned last. Where something is condemned whose time has not
// come nothing goes.
func (r *applying) everything(ctx context.Context, p *Plan) error {
	for _, b := range p.judge.all {
		if b.Condemned == nil || b.Condemned.PurgeAfter.After(p.judge.now) {
			r.report.Waiting = append(r.report.Waiting, b.Name)
		}
	}
	if len(r.report.Waiting) > 0 {
		return nil
	}
	var last []store.Object
	for _, round := range []func(name string) bool{
		func(name string) bool {
			return strings.HasPrefix(name, archive.BackupDir) && strings.Count(name, "/") == 1
		},
		func(string) bool { return true },
	} {
		last = nil
		var batch []store.Object
		for o, err := range whole(ctx, r.a) {
			switch {
			case err != nil:
				return fmt.Errorf("list the archive: %w", err)
			case !round(o.Name):
				continue
			case strings.HasPrefix(o.Name, archive.TombstoneDir) || o.Name == archive.OwnerName:
				last = append(last, o)
				continue
			}
			if batch = append(batch, o); len(batch) == maxBatch {
				if err := r.remove(ctx, batch); err != nil {
					return err
				}
				batch = nil
			}
		}
		if err := r.remove(ctx, batch); err != nil {
			return err
		}
	}
	for _, b := range p.judge.all {
		r.report.Backups = append(r.report.Backups, b.Name)
	}
	return r.remove(ctx, last)
}

// Undelete takes back that backups were condemned: those named, or with none all. The WAL that was condemned with them stays, too, for as long as they do. It
// returns the names of those that stay.
func Undelete(ctx context.Context, a *archive.Archive, names []string, opts Options) ([]string, error) {
	c, err := catalog.Load(ctx, a)
	if err != nil {
		return nil, err
	}
	for _, err := range c.BadTombstones {
		return nil, fmt.Errorf("see what is condemned: %w", err)
	}
	d := archive.Tombstone{RecordHead: archive.NewRecordHead(opts.By, opts.Version), Why: "undelete"}
	want := map[string]bool{}
	for _, name := range names {
		b, err := c.Find(name)
		if err != nil {
			return nil, err
		}
		if b.Condemned == nil {
			return nil, &catalog.NoBackupError{Asked: "undelete " + name, Reason: "it is not condemned", Advice: "`holdfast retention plan` shows what is"}
		}
		chain, err := c.Chain(b)
		if err != nil {
			return nil, err
		}
		for _, b := range chain { // it would be no use without
			want[b.Name] = b.Condemned != nil
		}
	}
	for i := range c.Backups {
		b := &c.Backups[i]
		if b.Condemned == nil || len(names) > 0 && !want[b.Name] {
			continue
		}
		d.Backups = append(d.Backups, b.Name)
		for _, t := range c.Tombstones {
			if slices.Contains(t.Backups, b.Name) && !slices.Contains(d.Revokes, t.Record) {
				d.Revokes = append(d.Revokes, t.Record)
			}
		}
	}
	if len(d.Backups) == 0 {
		return nil, nil
	}
	if _, err := a.AddRecord(ctx, archive.TombstoneDir, "", d); err != nil {
		return nil, fmt.Errorf("take back what was condemned: %w", err)
	}
	// What was being removed at this moment is gone.
	now, err := catalog.Load(ctx, a)
	if err != nil {
		return nil, err
	}
	var lost []string
	for _, name := range d.Backups {
		if b, err := now.Find(name); err != nil || b.Condemned != nil {
			lost = append(lost, name)
		}
	}
	if len(lost) > 0 {
		return nil, fmt.Errorf("%s: removed in this moment, or condemned again", strings.Join(lost, ", "))
	}
	return d.Backups, nil
}
