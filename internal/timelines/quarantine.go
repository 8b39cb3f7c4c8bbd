package timelines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// State says what was last done about a timeline.
type State string

// The states, in the words of the records.
const (
	Forgotten State = "forgotten" // it was put aside, or is being
	Recalling State = "recalling" // it is being brought back
	Recalled  State = "recalled"  // it is back
)

// Quarantine is a record in archive.QuarantineDir: a timeline was put aside, or brought back.
type Quarantine struct {
	archive.RecordHead
	Timeline wal.Timeline `json:"timeline"`
	State    State        `json:"state"`
	Objects  int          `json:"objects,omitempty"`
	Bytes    int64        `json:"bytes,omitempty"`
	Newest   time.Time    `json:"newest,omitzero"` // when the youngest of its objects had been stored, by the store's clock
	Reason   string       `json:"reason,omitempty"`
	With     wal.Timeline `json:"with,omitempty"`    // of Forgotten: it went with this one, which it descends from
	Revoked  bool         `json:"revoked,omitempty"` // of Recalled: the records before it count no more
}

// Quarantines is what the records say, by timeline: of each the last one that tells of putting it aside, and what became of that.
type Quarantines struct {
	Last map[wal.Timeline]Quarantine    // with the State of the last record
	Age  map[wal.Timeline]catalog.Aside // of those that were brought back, or are being: for catalog.Evidence
	Bad  []error                        // records that cannot be read
}

// LoadQuarantines reads the records. Only a listing that fails is an error.
func LoadQuarantines(ctx context.Context, a *archive.Archive) (*Quarantines, error) {
	q := &Quarantines{Last: map[wal.Timeline]Quarantine{}, Age: map[wal.Timeline]catalog.Aside{}}
	for r, err := range archive.Records[Quarantine](ctx, a, archive.QuarantineDir) {
		if err != nil && r.Name == "" {
			return nil, err
		}
		if err != nil {
			q.Bad = append(q.Bad, err)
			continue
		}
		doc, was := r.Doc, q.Last[r.Doc.Timeline]
		switch doc.State {
		case Forgotten:
			if was.State == Forgotten && was.Newest.After(doc.Newest) { // the first time was cut short
				doc.Newest = was.Newest
			}
			q.Last[doc.Timeline] = doc
			delete(q.Age, doc.Timeline)
		case Recalling, Recalled:
			was.Timeline, was.State = doc.Timeline, doc.State
			q.Last[doc.Timeline] = was
			aside := catalog.Aside{Newest: was.Newest}
			if doc.State == Recalled {
				aside.Until = r.Modified
			}
			q.Age[doc.Timeline] = aside
		default:
			q.Bad = append(q.Bad, fmt.Errorf("read %s: state %q", r.Name, doc.State))
		}
	}
	return q, nil
}

// RefusedError says why a timeline is not put aside, or not brought back, and what to do.
type RefusedError struct{ Reason, Advice string }

func (e *RefusedError) Error() string { return e.Reason }

// Hint says how to go on.
func (e *RefusedError) Hint() string { return e.Advice }

// Survey is what is known of an archive when it is decided whether a timeline may go.
type Survey struct {
	Catalog     *catalog.Catalog
	WAL         *catalog.WAL
	Current     catalog.Current
	Quarantines *Quarantines
	Server      bool                 // Current is what the live server says
	Unfinished  []archive.Unfinished // backups that are being taken
	Now         time.Time
}

// Plan is what will be moved, and which way.
type Plan struct {
	Back      bool     `json:"back"`      // out of quarantine
	Timelines []Moving `json:"timelines"` // in the order of their turns
	Objects   int      `json:"objects"`
	Bytes     int64    `json:"bytes"`
	Notes     []string `json:"notes,omitempty"`
}

// Moving is what there is of one timeline.
type Moving struct {
	Timeline wal.Timeline `json:"timeline"`
	History  bool         `json:"history"`
	Segments int          `json:"segments"` // objects that are segments of WAL
	First    string       `json:"first,omitempty"`
	Last     string       `json:"last,omitempty"`
	Backups  []string     `json:"backups,omitempty"`
	CatchUps []string     `json:"catchups,omitempty"`
	Objects  int          `json:"objects"` // with all that belongs to those
	Bytes    int64        `json:"bytes"`
	Newest   time.Time    `json:"newest"` // when the youngest was stored

	records map[string][]store.Object // that speak of the timeline, by place
}

// DecideForget works out what putting timeline t aside means. Nothing is changed. What must not go is a *RefusedError.
func DecideForget(ctx context.Context, places []Place, s Survey, t wal.Timeline, withDescendants bool) (*Plan, error) {
	going := []wal.Timeline{t}
	descendants := s.Catalog.Descendants(t)
	for d, q := range s.Quarantines.Last { // the first attempt was cut short behind its history file
		if q.State != Forgotten || q.With != t || slices.Contains(descendants, d) {
			continue
		}
		switch m, err := count(ctx, places, d, false, s.Quarantines.Age[d]); {
		case err != nil:
			return nil, err
		case m.Objects > 0:
			descendants = append(descendants, d)
		}
	}
	slices.Sort(descendants)
	if withDescendants {
		going = append(going, descendants...)
	} else if len(descendants) > 0 {
		return nil, &RefusedError{fmt.Sprintf("timeline %d has descendants, which need it: %s", t, list(descendants)),
			"--with-descendants puts all of them aside"}
	}
	slices.Sort(going)
	slices.Reverse(going) // what descends from another before that
	p := &Plan{}
	for _, one := range going {
		m, err := count(ctx, places, one, false, s.Quarantines.Age[one])
		if err != nil {
			return nil, err
		}
		if m.Objects > 0 {
			p.add(m)
		}
	}
	if err := s.mayGo(ctx, going, t, p); err != nil {
		return nil, err
	}
	s.remark(p)
	return p, nil
}

func (p *Plan) add(m Moving) {
	p.Timelines = append(p.Timelines, m)
	p.Objects += m.Objects
	p.Bytes += m.Bytes
}

// mayGo refuses what the cluster or its restores need.
func (s Survey) mayGo(ctx context.Context, going []wal.Timeline, t wal.Timeline, p *Plan) error {
	if p.Objects == 0 {
		if s.Quarantines.Last[t].State == Forgotten {
			return &RefusedError{fmt.Sprintf("timeline %d is put aside already", t), "`holdfast timeline list` shows it, `holdfast timeline recall` brings it back"}
		}
		return &RefusedError{fmt.Sprintf("the archive has nothing of timeline %d", t), "`holdfast timeline list` shows those that it has"}
	}
	if s.Current.Unknown {
		return &RefusedError{fmt.Sprintf("it is not known whether the cluster needs timeline %d: %s", t, s.Current.Why),
			"that server does not archive, or has not yet: `holdfast wal-push` its history file, the newest in its pg_wal"}
	}
	if path, err := s.Catalog.PathTo(s.Current.Timeline); err != nil {
		return fmt.Errorf("find out which timelines the cluster needs: %w", err)
	} else {
		for _, leg := range path {
			if !slices.Contains(going, leg.Timeline) {
				continue
			}
			if leg.Timeline == s.Current.Timeline {
				return &RefusedError{fmt.Sprintf("timeline %d is the one that the cluster is on: %s", leg.Timeline, s.Current.Why),
					"where that is wrong, let PGHOST and its like lead to the live server, which knows"}
			}
			return &RefusedError{fmt.Sprintf("timeline %d leads to timeline %d, which the cluster is on", leg.Timeline, s.Current.Timeline), ""}
		}
	}
	if _, known := s.Catalog.Histories[s.Current.Timeline]; !known && s.Current.Timeline > 1 {
		return &RefusedError{fmt.Sprintf("it is not known whether timeline %d, which the cluster is on, needs timeline %d: the archive has no %s", s.Current.Timeline, t,
			wal.HistoryName(s.Current.Timeline)), fmt.Sprintf("`holdfast wal-push pg_wal/%s` on a server that has it", wal.HistoryName(s.Current.Timeline))}
	}
	for other, err := range s.Catalog.BadHistory {
		if other > t && !slices.Contains(going, other) {
			return &RefusedError{fmt.Sprintf("it is not known whether timeline %d needs timeline %d: %v", other, t, err),
				"put that one aside first, or mend its history file"}
		}
	}
	for _, u := range s.Unfinished {
		if b := (catalog.Backup{Name: u.Name}); slices.Contains(going, b.Timeline()) && u.Alive(s.Now) {
			return &RefusedError{fmt.Sprintf("a backup is being taken on timeline %d: %s, last sign of life %s", b.Timeline(), u.Name, u.Beat.UTC().Format(time.RFC3339)),
				"stop that server first: what it archives later would come back"}
		}
	}
	var lost, left bool // backups that can be restored
	for i := range s.Catalog.Backups {
		b := &s.Catalog.Backups[i]
		goes := slices.Contains(going, b.Timeline())
		if b.Sentinel == nil { // what cannot be read cannot be restored, nor does it keep anything
			continue
		}
		chain, err := s.Catalog.Chain(b)
		if err != nil {
			continue
		}
		lost, left = lost || goes, left || !goes
		if goes {
			continue
		}
		for _, on := range chain {
			if slices.Contains(going, on.Timeline()) {
				return &RefusedError{fmt.Sprintf("backup %s of timeline %d builds on %s of timeline %d", b.Name, b.Timeline(), on.Name, on.Timeline()),
					"`holdfast backup-merge " + b.Name + "` makes it whole"}
			}
		}
	}
	if lost && !left {
		return &RefusedError{"without it the archive would have no backup that can be restored", "take one on the cluster's timeline first: `holdfast backup-push`"}
	}
	return ctx.Err()
}

// lively is how old the newest object of a timeline is when nothing is said of who may still be writing it.
const lively = time.Hour

// remark adds what the operator should know.
func (s Survey) remark(p *Plan) {
	if !s.Server {
		p.Notes = append(p.Notes, fmt.Sprintf("no server was asked: the archive alone says that the cluster is on timeline %d: %s", s.Current.Timeline, s.Current.Why))
	}
	for _, m := range p.Timelines {
		if age := s.Now.Sub(m.Newest); age < lively {
			p.Notes = append(p.Notes, fmt.Sprintf("timeline %d was written to %s ago: stop the server that does it first (archive_mode = off), or it comes back", m.Timeline, age.Round(time.Second)))
		}
		for _, name := range m.Backups {
			if b, err := s.Catalog.Find(name); err == nil && b.Details().IsPermanent {
				p.Notes = append(p.Notes, name+" is marked permanent; it is put aside all the same, and nothing of it is removed")
			}
		}
	}
}

// DecideRecall works out what bringing timeline t back means, and refuses it where another one has its number by now.
func DecideRecall(ctx context.Context, places []Place, s Survey, t wal.Timeline) (*Plan, error) {
	m, err := count(ctx, places, t, true, catalog.Aside{})
	if err != nil {
		return nil, err
	}
	p := &Plan{Back: true}
	last := s.Quarantines.Last[t].State
	if m.Objects == 0 && last != Forgotten && last != Recalling {
		return nil, &RefusedError{fmt.Sprintf("nothing of timeline %d is put aside", t), "`holdfast timeline list` shows what is"}
	}
	if m.Objects > 0 {
		p.add(m)
	}
	for _, place := range places {
		if err := compareTaken(ctx, place.Store, t); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// compareTaken refuses to bring a timeline back over another one of its number: each object that is there in the archive too must be the same.
func compareTaken(ctx context.Context, s store.Store, t wal.Timeline) error {
	dir := quarantined(t)
	for o, err := range objects(ctx, s, t) {
		if err != nil {
			return err
		}
		aside, err := s.Stat(ctx, dir+o.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was brought back already, or pushed since
		}
		if err != nil {
			return err
		}
		same, err := equal(ctx, s, o, aside)
		if err != nil {
			return err
		}
		if !same {
			return &RefusedError{fmt.Sprintf("the archive has another timeline %d by now: %s differs from the one that was put aside", t, o.Name),
				fmt.Sprintf("both cannot be there. Put that one aside as well, or copy %s elsewhere and remove it (`holdfast st`)", dir)}
		}
	}
	return nil
}

// count says what there is of a timeline, in its place or put aside.
func count(ctx context.Context, places []Place, t wal.Timeline, aside bool, age catalog.Aside) (Moving, error) {
	m := Moving{Timeline: t, records: map[string][]store.Object{}}
	for _, p := range places {
		if !aside {
			records, err := recordsOf(ctx, p.Store, t)
			if err != nil {
				return m, inPlace(places, p, err)
			}
			m.records[p.Name] = records
		}
		dir, what := "", m.objects(ctx, p)
		if aside {
			dir, what = quarantined(t), below(ctx, p.Store, quarantined(t))
		}
		for o, err := range what {
			if err != nil {
				return m, inPlace(places, p, err)
			}
			m.see(strings.TrimPrefix(o.Name, dir), o, age)
		}
	}
	return m, nil
}

// inPlace says in which of several storages something went wrong.
func inPlace(places []Place, p Place, err error) error {
	if err == nil || len(places) == 1 {
		return err
	}
	return fmt.Errorf("storage %s: %w", p.Name, err)
}

// objects yields everything in a place that is to be put aside.
func (m *Moving) objects(ctx context.Context, p Place) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range objects(ctx, p.Store, m.Timeline) {
			if !yield(o, err) || err != nil {
				return
			}
		}
		for _, o := range m.records[p.Name] {
			if _, err := p.Store.Stat(ctx, o.Name); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

// below is all as a sequence.
func below(ctx context.Context, s store.Store, dir string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) { all(ctx, s, dir, yield) }
}

// see counts an object.
func (m *Moving) see(name string, o store.Object, age catalog.Aside) {
	m.Objects++
	m.Bytes += o.Size
	if strings.HasPrefix(name, "holdfast/") { // made by commands, whenever
		return
	}
	if at := age.Of(o.Modified); at.After(m.Newest) {
		m.Newest = at
	}
	if base, ok := strings.CutPrefix(name, archive.WALDir); ok {
		base = archive.WALName(base)
		switch wal.KindOf(base) {
		case wal.History:
			m.History = true
		case wal.Segment:
			m.Segments++
			if m.First == "" || base < m.First {
				m.First = base
			}
			m.Last = max(m.Last, base)
		}
		return
	}
	if backup, ok := strings.CutSuffix(name, sentinelSuffix); ok {
		if name, ok := strings.CutPrefix(backup, archive.BackupDir); ok {
			m.Backups = append(m.Backups, name)
		} else if name, ok := strings.CutPrefix(backup, archive.CatchUpDir); ok {
			m.CatchUps = append(m.CatchUps, name)
		}
	}
}

// recordsOf lists the records that speak of one timeline's WAL. They would be taken for what they say of another one that gets its number.
func recordsOf(ctx context.Context, s store.Store, t wal.Timeline) (found []store.Object, err error) {
	a := archive.New(s, archive.Options{})
	type about struct {
		Timeline wal.Timeline `json:"timeline"`
	}
	for _, dir := range []string{archive.GapDir, archive.VerifiedWALDir, archive.WatermarkDir} {
		for r, err := range archive.Records[about](ctx, a, dir) {
			if err != nil && r.Name == "" {
				return nil, err
			}
			if err != nil || r.Doc.Timeline != t { // one that cannot be read is nobody's
				continue
			}
			o, err := s.Stat(ctx, r.Name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			found = append(found, o)
		}
	}
	return found, nil
}

// list names timelines.
func list(all []wal.Timeline) string {
	words := make([]string, len(all))
	for i, t := range all {
		words[i] = fmt.Sprint(uint32(t))
	}
	return strings.Join(words, ", ")
}

// Options says who moves a timeline, and why.
type Options struct {
	Head   archive.RecordHead
	Reason string
	Moved  func(objects int, bytes int64) // told as it goes on; nil for nobody
}

// Run does what a plan says. Whatever breaks it off, the same command goes on where it ended: each object is copied and compared before it is removed
// from where it was, and the record that says what is being done is there before the first, or, of bringing back, behind the last too.
func Run(ctx context.Context, a *archive.Archive, places []Place, s Survey, p *Plan, t wal.Timeline, o Options) error {
	if p.Back {
		return recall(ctx, a, places, s, p, t, o)
	}
	for _, m := range p.Timelines {
		doc := Quarantine{RecordHead: o.Head, Timeline: m.Timeline, State: Forgotten, Objects: m.Objects, Bytes: m.Bytes, Newest: m.Newest, Reason: o.Reason}
		if m.Timeline != t {
			doc.With = t
		}
		if was := s.Quarantines.Last[m.Timeline]; was.State == Forgotten && doc.Reason == "" {
			doc.Reason = was.Reason
		}
		if _, err := a.AddRecord(ctx, archive.QuarantineDir, recordID(m.Timeline, Forgotten), doc); err != nil {
			return fmt.Errorf("record that timeline %d is put aside: %w", m.Timeline, err)
		}
	}
	for _, m := range p.Timelines {
		dir := quarantined(m.Timeline)
		err := m.steps(ctx, places, o, func(p Place, turn int) *mover {
			return &mover{store: p.Store, what: m.objects(ctx, p), rename: func(name string) string { return dir + name }, turn: step}
		})
		if err != nil {
			return fmt.Errorf("put timeline %d aside: %w", m.Timeline, err)
		}
	}
	return nil
}

// steps runs each step in all places before the next one.
func (m *Moving) steps(ctx context.Context, places []Place, o Options, in func(Place, int) *mover) error {
	for turn := range steps {
		for _, p := range places {
			mv := in(p, turn)
			mv.moved = func(obj store.Object) {
				if o.Moved != nil {
					o.Moved(1, obj.Size)
				}
			}
			if err := mv.run(ctx, turn); err != nil {
				return inPlace(places, p, err)
			}
		}
	}
	return nil
}

func recordID(t wal.Timeline, s State) string { return strings.ToLower(t.String()) + "-" + string(s) }

// recall brings a timeline back: WAL and parts of backups first, then what makes them backups, and last what makes the timeline one to follow.
func recall(ctx context.Context, a *archive.Archive, places []Place, s Survey, p *Plan, t wal.Timeline, o Options) error {
	record := func(state State) error {
		doc := Quarantine{RecordHead: o.Head, Timeline: t, State: state, Reason: o.Reason, Revoked: state == Recalled}
		if _, err := a.AddRecord(ctx, archive.QuarantineDir, recordID(t, state), doc); err != nil {
			return fmt.Errorf("record that timeline %d is brought back: %w", t, err)
		}
		return nil
	}
	if s.Quarantines.Last[t].State == Forgotten {
		if err := record(Recalling); err != nil {
			return err
		}
	}
	dir := quarantined(t)
	for _, m := range p.Timelines {
		err := m.steps(ctx, places, o, func(p Place, _ int) *mover {
			return &mover{
				store: p.Store, what: below(ctx, p.Store, dir), rename: func(name string) string { return strings.TrimPrefix(name, dir) },
				turn: func(name string) int { return steps - 1 - step(strings.TrimPrefix(name, dir)) },
			}
		})
		if err != nil {
			return fmt.Errorf("bring timeline %d back: %w", t, err)
		}
	}
	return record(Recalled)
}
