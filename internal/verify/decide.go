package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// inFlight is how many small objects are asked for at once.
const inFlight = 16

// target is a backup that is verified.
type target struct {
	*catalog.Backup        // nil for a folder without a sentinel
	name            string // of the backup
	objects         []object
	at              map[string]int // index of an object, by name
	lost            []string       // objects that were verified once and are not there any more
	said            string         // the result of the last record, of one that is not of a sample
	settled         bool           // by the last record all of it is right

	// As Run goes on:
	stored  map[string]archive.Stored // by name from the folder on; nil where that is not known
	limits  string
	read    int
	ended   bool           // all that is due was read
	removed bool           // it is not there any more
	done    []ObjectRecord // not recorded yet
	bytes   int64          // of those
}

// object is an object of a backup, its sentinel included, or a WAL file.
type object struct {
	name     string // in the store
	size     int64
	modified time.Time
	verified time.Time // when it was found to be right; zero: it is due
}

// due reports whether anything of t is to be read.
func (t *target) due() bool {
	return len(t.lost) > 0 || slices.ContainsFunc(t.objects, func(o object) bool { return o.verified.IsZero() })
}

// object returns an object of the folder by its name from there on; nil where there is none.
func (t *target) object(name string) *object {
	if i, ok := t.at[archive.Folder(t.name)+name]; ok {
		return &t.objects[i]
	}
	return nil
}

// Decide finds what a request is of, and what of it is due. It reads listings, sentinels and records.
func Decide(ctx context.Context, a *archive.Archive, req Request) (*Plan, error) {
	if req.Sample < 0 || req.Sample >= 1 {
		req.Sample = 0
	}
	req.MaxAge = cmp.Or(req.MaxAge, DefaultMaxAge)
	p := &Plan{request: req, now: time.Now(), Sample: req.Sample, WAL: []Range{}, Backups: []string{}}
	var err error
	if p.catalog, err = catalog.Load(ctx, a); err != nil {
		return nil, err
	}
	if err := p.choose(ctx, a); err != nil {
		return nil, err
	}
	group, loading := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	for _, t := range p.targets {
		group.Go(func() error { return p.load(loading, a, t) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	p.targets = slices.DeleteFunc(p.targets, func(t *target) bool { return t.removed })
	for _, t := range p.targets {
		if t.Backup != nil {
			p.Backups = append(p.Backups, t.name)
		} else {
			p.Orphans = append(p.Orphans, t.name)
		}
		for i := range t.objects {
			p.count(&t.objects[i], false)
		}
	}
	if p.wal, err = p.takeInventory(ctx, a); err != nil {
		return nil, err
	}
	return p, nil
}

// count enters an object in the plan's figures.
func (p *Plan) count(o *object, isWAL bool) {
	due := o.verified.IsZero()
	p.Bytes += o.size
	if isWAL {
		p.Segments++
	} else {
		p.Objects++
	}
	switch {
	case !due:
		p.Before++
		if p.Oldest.IsZero() || o.verified.Before(p.Oldest) {
			p.Oldest = o.verified
		}
		return
	case isWAL:
		p.Due.Segments++
	default:
		p.Due.Objects++
	}
	if p.Sample == 0 {
		p.Due.Bytes += o.size
	} else {
		p.Due.Bytes += int64(float64(o.size) * p.Sample)
	}
}

// touch counts an object that was read.
func (p *Plan) touch(read *Amount, name string, size int64) {
	read.Bytes += size
	if !strings.HasPrefix(name, archive.WALDir) {
		read.Objects++
	} else if wal.IsSegment(archive.WALName(name)) {
		read.Segments++
	}
}

// choose makes the targets: what is asked for, each after what it builds on.
func (p *Plan) choose(ctx context.Context, a *archive.Archive) error {
	seen := map[string]bool{}
	var take func(b *catalog.Backup)
	take = func(b *catalog.Backup) {
		if seen[b.Name] {
			return
		}
		seen[b.Name] = true
		if b.Sentinel != nil && b.Sentinel.DeltaFrom != "" {
			if parent, err := p.catalog.Find(b.Sentinel.DeltaFrom); err == nil {
				take(parent)
			}
		}
		p.targets = append(p.targets, &target{Backup: b, name: b.Name})
	}
	if !p.request.All {
		b, err := p.one(ctx, a)
		if b != nil {
			take(b)
		}
		return err
	}
	for i := range p.catalog.Backups {
		take(&p.catalog.Backups[i])
	}
	for o, err := range a.Store().List(ctx, archive.BackupDir, "") {
		if err != nil {
			return fmt.Errorf("list backups: %w", err)
		}
		name := path.Base(o.Name)
		if o.IsDir() && archive.CheckBackupName(name) == nil && !seen[name] {
			p.targets = append(p.targets, &target{name: name})
		}
	}
	return nil
}

// one finds the backup that is asked for. One of which there is a folder and no sentinel is a target of its own.
func (p *Plan) one(ctx context.Context, a *archive.Archive) (*catalog.Backup, error) {
	name := p.request.Backup
	if name == "" || name == "LATEST" {
		return p.catalog.Latest()
	}
	b, err := p.catalog.Find(name)
	if err == nil || archive.CheckBackupName(name) != nil {
		return b, err
	}
	for _, errList := range a.Store().List(ctx, archive.Folder(name), "") {
		if errList != nil {
			return nil, errList
		}
		p.targets = append(p.targets, &target{name: name})
		return nil, nil
	}
	return nil, err
}

// load lists a target's objects, and finds out which are due.
func (p *Plan) load(ctx context.Context, a *archive.Archive, t *target) error {
	folder := archive.Folder(t.name)
	if t.Backup != nil {
		o, err := a.Store().Stat(ctx, a.SentinelName(t.name))
		if t.removed = errors.Is(err, fs.ErrNotExist) && p.request.All; t.removed {
			return nil // since it was listed
		}
		if err != nil {
			return fmt.Errorf("look at the sentinel of %s: %w", t.name, err)
		}
		t.objects = append(t.objects, object{name: o.Name, size: o.Size, modified: o.Modified})
	}
	var records []store.Object
	for o, err := range store.Walk(ctx, a.Store(), folder) {
		if err != nil {
			return fmt.Errorf("list %s: %w", folder, err)
		}
		if strings.HasPrefix(o.Name, archive.VerifiedDir(t.name)) {
			records = append(records, o)
			continue
		}
		if strings.HasPrefix(o.Name, archive.ProvenDir(t.name)) {
			continue
		}
		t.objects = append(t.objects, object{name: o.Name, size: o.Size, modified: o.Modified})
	}
	t.at = make(map[string]int, len(t.objects))
	for i := range t.objects {
		t.at[t.objects[i].name] = i
	}
	return p.recall(ctx, a, t, records)
}

// recall marks what was found to be right not long ago, by what is in records.
func (p *Plan) recall(ctx context.Context, a *archive.Archive, t *target, records []store.Object) error {
	folder := archive.Folder(t.name)
	last := map[string]ObjectRecord{}
	blind := p.request.NoKey || !a.HasKey() // who cannot look into what is encrypted need not compare it again as it is stored
	stored := false                         // the last record is of a run without a key, and has no damage
	for rec, err := range archive.RecordsOf[BackupRecord](ctx, a, records) {
		if err != nil && rec.Name == "" {
			return err
		}
		if err != nil {
			p.mu.Lock()
			p.findings = append(p.findings, Finding{Severity: Warning, Kind: Content, Backup: t.name, Object: rec.Name,
				Text: "a record of an earlier verification cannot be read, and does not count: " + err.Error()})
			p.mu.Unlock()
			continue
		}
		d := rec.Doc
		for _, o := range d.Objects {
			if was, ok := last[o.Name]; !ok || !was.VerifiedAt.After(o.VerifiedAt) { // of two runs at once the one that read it later counts
				last[o.Name] = o
			}
		}
		asStored := slices.ContainsFunc(d.Objects, func(o ObjectRecord) bool { return o.AsStored })
		if d.Sample == 0 && (!asStored || blind) || d.Result == "damaged" {
			t.said = d.Result
		}
		stored = asStored && d.Result == "incomplete"
	}
	for name, o := range last {
		i, ok := t.at[name]
		switch {
		case !ok && o.Problem == "":
			t.lost = append(t.lost, name)
		case !ok || p.request.Again || o.Problem != "" || o.AsStored && !blind || p.now.Sub(o.VerifiedAt) > p.request.MaxAge || o.VerifiedAt.After(p.now):
		case t.objects[i].size == o.Size && t.objects[i].modified.Equal(o.Modified):
			t.objects[i].verified = o.VerifiedAt
		}
	}
	t.settled = t.said == "ok"
	slices.Sort(t.lost)
	if len(t.lost) == 0 && (len(last) == 0 || t.said == "ok" || stored && blind) {
		return nil
	}
	// What else should be there, and what all was compared with, has to be asked of the documents.
	for i := range t.objects {
		switch strings.TrimPrefix(t.objects[i].name, folder) {
		case sentinelOf(t.name), metadataName, objectsName, manifestName, fileListName:
			t.objects[i].verified = time.Time{}
		}
	}
	return nil
}

// BackupRecord is what a verification has found of a backup, in archive.VerifiedDir. Of several the last that names an object counts for that.
type BackupRecord struct {
	archive.RecordHead
	Backup   string         `json:"backup"`
	Sentinel string         `json:"sentinel_sha256,omitempty"`
	Result   string         `json:"result"` // ok: all of it is right, by this and earlier records; damaged; incomplete: not all was looked at
	Objects  []ObjectRecord `json:"objects"`
	Read     int64          `json:"read_bytes"`
	Sample   float64        `json:"sample,omitempty"` // of parts not all was read, but this share; those are among the objects only with a problem
}

// ObjectRecord is what was found of one object.
type ObjectRecord struct {
	Name       string    `json:"name"` // in the store
	Size       int64     `json:"size"`
	Modified   time.Time `json:"modified"`
	VerifiedAt time.Time `json:"verified_at"`
	Problem    string    `json:"problem,omitempty"`
	Harmless   bool      `json:"harmless,omitempty"` // no restore of the backup fails of the problem
	// AsStored says that it was compared as it is stored, and not looked into: to who has a key that says nothing.
	AsStored bool `json:"as_stored,omitempty"`
}

// maxRecorded is how many objects a record has at most.
const maxRecorded = 16384

// done notes that an object of t was read, and leaves a record where the last was left long ago.
func (r *run) done(ctx context.Context, t *target, o *object, problem string, asStored bool) error {
	r.mu.Lock()
	t.done = append(t.done, ObjectRecord{Name: o.name, Size: o.size, Modified: o.modified, VerifiedAt: time.Now().UTC(), Problem: problem, Harmless: problem != "" && !r.vital(t.name, o.name), AsStored: asStored})
	t.read++
	t.bytes += o.size
	due := time.Since(r.flushed) >= r.opts.Every || len(t.done) >= maxRecorded
	if due {
		r.flushed = time.Now()
	}
	r.mu.Unlock()
	if !due {
		return nil
	}
	return r.record(ctx, t)
}

// record leaves a record of what was found of t since the last one.
func (r *run) record(ctx context.Context, t *target) error {
	r.mu.Lock()
	doc := BackupRecord{Backup: t.name, Objects: t.done, Read: t.bytes, Sample: r.request.Sample}
	t.done, t.bytes = nil, 0
	r.mu.Unlock()
	if t.Backup == nil || t.removed { // what is no backup has no records
		return nil
	}
	doc.Result = r.result(t)
	if t.ended {
		doc.Objects = append(doc.Objects, r.missed(t)...)
	}
	// All may have been recorded before it was known what comes of the whole.
	late := t.ended && t.said != "" && t.said != doc.Result && doc.Result != "incomplete"
	if len(doc.Objects) == 0 && !late || r.opts.ReadOnly {
		return nil
	}
	if _, err := r.archive.Store().Stat(ctx, r.archive.SentinelName(t.name)); errors.Is(err, fs.ErrNotExist) {
		return nil // it was removed meanwhile
	} else if err != nil {
		return r.unrecorded(err)
	}
	t.said = doc.Result
	if doc.Objects == nil {
		doc.Objects = []ObjectRecord{}
	}
	doc.RecordHead = archive.NewRecordHead(r.opts.By, r.opts.Tool)
	if t.Backup != nil && t.Sentinel != nil {
		doc.Sentinel = t.Sentinel.Sum
	}
	_, err := r.archive.AddRecord(ctx, archive.VerifiedDir(t.name), "", doc)
	return r.unrecorded(err)
}

// missed returns what has damage and was not read, such as what is not there, or was found to be damaged when it had been recorded as right. WAL has records of its own.
func (r *run) missed(t *target) (some []ObjectRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, trouble := range r.troubles {
		if trouble.backup != t.name || trouble.recorded || r.severity(trouble.verdict) != Damage || strings.HasPrefix(name, archive.WALDir) {
			continue
		}
		if len(some) == maxRecorded/2 { // the next run tells of the others
			break
		}
		trouble.recorded = true
		o := ObjectRecord{Name: name, VerifiedAt: time.Now().UTC(), Problem: trouble.problem.text(), Harmless: !r.vital(t.name, name)}
		if i, ok := t.at[name]; ok {
			o.Size, o.Modified = t.objects[i].size, t.objects[i].modified
		}
		some = append(some, o)
	}
	slices.SortFunc(some, func(x, y ObjectRecord) int { return strings.Compare(x.Name, y.Name) })
	return some
}

// unrecorded decides what it means that a record could not be left: nothing for what was found.
func (r *run) unrecorded(err error) error {
	if err == nil {
		return nil
	}
	r.mu.Lock()
	first := !r.opts.ReadOnly
	r.opts.ReadOnly = true
	r.mu.Unlock()
	if first {
		r.opts.Logger.Warn("what was found cannot be recorded, so that the next run reads it again", "error", err)
		r.mu.Lock()
		r.Notes = append(r.Notes, "what was found is not recorded: "+err.Error())
		r.mu.Unlock()
	}
	return nil
}

// flush leaves what is not recorded yet, also where ctx has ended.
func (r *run) flush(ctx context.Context, whole bool) error {
	if !whole {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
	}
	var errs []error
	for _, t := range r.targets {
		errs = append(errs, r.record(ctx, t))
	}
	errs = append(errs, r.wal.flush(ctx, r), r.wal.takeBack(ctx, r))
	if whole {
		r.wal.prune(ctx, r)
	}
	return errors.Join(errs...)
}
