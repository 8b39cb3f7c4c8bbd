package events

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// Bounds of the memory that a scan takes beside names.
const (
	maxOps       = 1 << 18 // changes of pg_class that are kept of all transactions
	maxRelations = 1 << 20 // counts of rows, likewise
	maxOpen      = 1 << 19 // transactions under way
	maxNotes     = 20
	maxRates     = 1500 // rates; the minutes of a day
	maxShown     = 1000 // relations of one event, unless Options.Shown says another
)

// late is how much later than Until a transaction must have ended for reading to end: commits come in the order of their times, nearly.
const late = 5 * time.Second

// transaction is what one did so far.
type transaction struct {
	rows      []rows
	index     map[blockset.Relation]int // into rows, where there are many
	last      int                       // of rows, the one that was counted last
	created   []*created
	class     []classOp       // changes of pg_class
	schemas   []schema        // rows of pg_namespace that it made
	databases []schema        // rows of pg_database that it made
	truncated map[uint32]bool // OIDs
	gone      []moment        // databases whose directories it removed
	deletedDB bool            // it deleted a row of pg_database
	marked    *moment         // when that row was marked invalid, which comes before; nil where it was not
}

type rows struct {
	rel              blockset.Relation
	deleted, updated uint64
}

type schema struct {
	oid  uint32
	name string
	made bool // it is new
}

// created is a file that was made.
type created struct {
	rel    blockset.Relation
	lsn    wal.LSN
	blocks uint32 // that were written of it
}

// classOp is what a record did to a row of pg_class.
type classOp struct {
	lsn      wal.LSN
	op       walrec.RowOp
	old, new walrec.Place
	db       uint32
	row      *walrec.Row // what it became, its first bytes; nil where that is not known
}

// moment is a record that removed a database.
type moment struct {
	lsn, prev wal.LSN
	timeline  wal.Timeline
	db        uint32
}

// role is what the rows of a relation mean.
type role uint8

const (
	ofUsers role = iota + 1
	ofSystem
	ofClass
	ofNamespace
	ofDatabases
)

// scanner goes through records.
type scanner struct {
	ctx    context.Context
	s      Stretch
	opts   Options
	each   func(*Event) error
	report Report
	failed error

	version  int
	timeline wal.Timeline
	from     wal.LSN // of the first segment whose events are wanted
	open     map[uint32]*transaction
	free     []*transaction
	files    map[blockset.Relation]*created // of open transactions
	ops      int                            // kept in all
	counted  int                            // relations, in all
	lost     bool                           // some were not kept
	earlier  bool                           // a transaction ended before Since

	frontier uint32 // transactions before this one may have begun before the log that is read
	settled  bool   // frontier will not move

	books map[uint32]*book
	roles map[blockset.Relation]role
	maps  map[uint32]map[uint32]uint32 // that the log has replaced
	void  map[walrec.Place]moment      // rows of pg_database that were marked invalid
	moved map[uint32]bool              // databases of which a copy was made in another tablespace
	span  time.Duration
}

func newScanner(ctx context.Context, s Stretch, o Options, each func(*Event) error) *scanner {
	return &scanner{
		ctx: ctx, s: s, opts: o, each: each, open: map[uint32]*transaction{}, files: map[blockset.Relation]*created{}, books: map[uint32]*book{},
		roles: map[blockset.Relation]role{}, maps: map[uint32]map[uint32]uint32{}, moved: map[uint32]bool{}, void: map[walrec.Place]moment{}, span: time.Minute,
	}
}

// note keeps something for the operator.
func (sc *scanner) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if len(sc.report.Notes) < maxNotes && !slices.Contains(sc.report.Notes, text) {
		sc.report.Notes = append(sc.report.Notes, text)
	}
}

// finish ends the scan.
func (sc *scanner) finish() *Report {
	if sc.lost {
		sc.note("transactions did more than is kept of them: counts of rows are too low, and DROP and TRUNCATE may be taken for one another")
	}
	return &sc.report
}

// begin says that segments come that do not follow what came before.
func (sc *scanner) begin(version int, size wal.SegmentSize, first wal.SegmentNo) {
	clear(sc.open)
	clear(sc.files)
	clear(sc.void)
	sc.ops, sc.counted = 0, 0
	sc.version, sc.from = version, size.Start(first+1)
	sc.frontier, sc.settled = 0, false
	sc.timeline = 0
}

// gap tells of WAL that is missing behind a group of segments, or that is damaged from the segment before next on.
func (sc *scanner) gap(group []catalog.Stretch, next wal.SegmentNo, then catalog.Stretch) error {
	last := group[len(group)-1]
	size := sc.s.WAL.SegmentSize
	behind := last.Last + 1
	if next != 0 && next <= behind {
		damaged := group[slices.IndexFunc(group, func(s catalog.Stretch) bool { return next-1 <= s.Last })]
		e := &Event{What: MissingWAL, Certain: true, Timeline: damaged.Timeline, LSN: size.Start(next - 1), Prev: sc.report.To}
		e.Name = size.Name(damaged.Timeline, next-1) + " is damaged"
		if err := sc.emit(e); err != nil {
			return err
		}
		behind = next
	}
	if then.First <= behind {
		return nil
	}
	missing := catalog.Stretch{Timeline: then.Timeline, First: behind, Last: then.First - 1}
	sc.report.Missing = append(sc.report.Missing, missing)
	e := &Event{What: MissingWAL, Certain: true, Timeline: last.Timeline, LSN: size.Start(behind), Prev: sc.report.To}
	e.Name = size.Name(missing.Timeline, missing.First) + " to " + size.Name(missing.Timeline, missing.Last)
	return sc.emit(e)
}

// within says whether what is at lsn is wanted.
func (sc *scanner) within(lsn wal.LSN) bool {
	return lsn >= sc.s.From && (sc.s.To == 0 || lsn < sc.s.To)
}

// emit hands an event on, where it is in the stretch. WAL that is missing always is: what was asked for may be in it.
func (sc *scanner) emit(e *Event) error {
	switch {
	case e.What == MissingWAL:
	case !sc.within(e.LSN):
		return nil
	case !e.Time.IsZero() && (e.Time.Before(sc.s.Since) || !sc.s.Until.IsZero() && e.Time.After(sc.s.Until)):
		return nil
	case e.Time.IsZero() && sc.report.First.IsZero() && !sc.s.Since.IsZero(): // before the first that is wanted
		return nil
	}
	if e.Timeline == 0 {
		e.Timeline = sc.timeline
	}
	err := sc.each(e)
	if err != nil {
		sc.failed = err
	}
	return err
}

// event makes an event of a record.
func (sc *scanner) event(what What, rec *walrec.Record, at time.Time) *Event {
	return &Event{What: what, Time: at, LSN: rec.LSN, Prev: rec.Prev, XID: rec.XID, Certain: true}
}

// record takes in a record.
func (sc *scanner) record(rec *walrec.Record, timeline wal.Timeline) error {
	if sc.report.From == 0 {
		sc.report.From = rec.LSN
	}
	sc.report.To, sc.timeline = rec.End, timeline
	if !sc.settled && rec.XID != 0 {
		if rec.LSN >= sc.from && sc.frontier != 0 {
			sc.settled = true
		} else if sc.frontier == 0 || older(sc.frontier, rec.XID+1) {
			sc.frontier = rec.XID + 1
		}
	}
	if len(sc.files) > 0 {
		sc.written(rec)
	}
	switch rec.RM {
	case walrec.RMHeap, walrec.RMHeap2, walrec.RMStorage, walrec.RMDatabase:
		if len(sc.open) >= maxOpen && sc.open[rec.XID] == nil {
			sc.lost = true
			return nil
		}
	}
	switch rec.RM {
	case walrec.RMHeap, walrec.RMHeap2:
		return sc.row(rec)
	case walrec.RMXact:
		return sc.end(rec)
	case walrec.RMXLOG:
		return sc.xlog(rec)
	case walrec.RMStorage:
		if rel, fork, ok := rec.CreatedFile(); ok && fork == blockset.Main && rec.XID != 0 {
			if sc.ops >= maxOps {
				sc.lost = true
				return nil
			}
			sc.ops++
			c := &created{rel: rel, lsn: rec.LSN}
			t := sc.of(rec.XID)
			t.created = append(t.created, c)
			sc.files[rel] = c
		}
	case walrec.RMStandby:
		sc.standby(rec)
	case walrec.RMRelMap:
		if db, file, ok := rec.RelMap(); ok {
			sc.remap(db, file)
		}
	case walrec.RMDatabase:
		sc.database(rec)
	case walrec.RMTablespace:
		if oid, ok := rec.DroppedTablespace(); ok {
			e := sc.event(DropTablespace, rec, time.Time{})
			e.Name = fmt.Sprintf("tablespace %d", oid)
			return sc.emit(e)
		}
	}
	return nil
}

// older says whether transaction x is before y. Their numbers turn over.
func older(x, y uint32) bool { return int32(x-y) < 0 }

// of returns what is known of a transaction.
func (sc *scanner) of(xid uint32) *transaction {
	t := sc.open[xid]
	if t == nil {
		if n := len(sc.free); n > 0 {
			t, sc.free = sc.free[n-1], sc.free[:n-1]
		} else {
			t = &transaction{}
		}
		sc.open[xid] = t
	}
	return t
}

// forget lets go of a transaction.
func (sc *scanner) forget(xid uint32) {
	t := sc.open[xid]
	if t == nil {
		return
	}
	delete(sc.open, xid)
	for _, c := range t.created {
		if sc.files[c.rel] == c {
			delete(sc.files, c.rel)
		}
	}
	sc.ops -= len(t.class) + len(t.created) + len(t.truncated)
	sc.counted -= len(t.rows)
	if len(t.created)+len(t.class)+len(t.schemas)+len(t.databases)+len(t.truncated)+len(t.gone) == 0 && !t.deletedDB && t.index == nil && len(sc.free) < 1000 {
		t.rows, t.last = t.rows[:0], 0
		sc.free = append(sc.free, t)
	}
}

// written notes blocks of files that were made by open transactions.
func (sc *scanner) written(rec *walrec.Record) {
	for i := range rec.Blocks {
		if b := &rec.Blocks[i]; b.Fork == blockset.Main {
			if c := sc.files[b.Rel]; c != nil {
				c.blocks = max(c.blocks, b.Block+1)
			}
		}
	}
}

// book returns what is known of the names in a database.
func (sc *scanner) book(db uint32) *book {
	b := sc.books[db]
	if b != nil {
		return b
	}
	b = newBook()
	for _, n := range sc.opts.Names {
		d, err := n.Database(sc.ctx, db)
		if err != nil {
			sc.note("%v", err)
			continue
		}
		if d != nil {
			b.add(d)
		}
	}
	sc.books[db] = b
	sc.mapped(db, b)
	return b
}

// mapped takes in what the log has said of a database's map.
func (sc *scanner) mapped(db uint32, b *book) {
	for oid, file := range sc.maps[db] {
		if n := b.oids[oid]; n != nil {
			n := *n
			n.File, n.Place = file, walrec.Place{}
			b.learn(n)
		} else {
			b.learn(Named{OID: oid, Schema: "pg_catalog", Name: fmt.Sprintf("catalogue %d", oid), Kind: Table, File: file})
		}
		if oid == oidClass {
			clear(b.places)
		}
	}
}

// remap takes in a new pg_filenode.map.
func (sc *scanner) remap(db uint32, file []byte) {
	files, err := readMap(file)
	if err != nil {
		sc.note("%v", err)
		return
	}
	sc.maps[db] = files
	if b := sc.books[db]; b != nil {
		sc.mapped(db, b)
	}
	clear(sc.roles)
}

// role says what rows of a relation mean.
func (sc *scanner) role(rel blockset.Relation) role {
	if r := sc.roles[rel]; r != 0 {
		return r
	}
	b := sc.book(rel.Database)
	r := ofUsers
	switch oid := b.oid(rel.Number); {
	case rel.Tablespace == globalTablespace && oid == oidDatabase:
		r = ofDatabases
	case rel.Tablespace == globalTablespace:
		r = ofSystem
	case oid == oidClass:
		r = ofClass
	case oid == oidNamespace:
		r = ofNamespace
	case oid != 0 && oid < firstNormal || oid != 0 && b.files[rel.Number].Kind == Toast:
		r = ofSystem
	}
	if len(sc.roles) > maxRelations {
		clear(sc.roles)
	}
	sc.roles[rel] = r
	return r
}

// row takes in a change of rows.
func (sc *scanner) row(rec *walrec.Record) error {
	if rel, at, columns, ok := rec.InPlace(); ok {
		if rel.Tablespace == globalTablespace && sc.role(rel) == ofDatabases && markedInvalid(sc.version, columns) {
			sc.void[at] = moment{rec.LSN, rec.Prev, sc.timeline, 0}
		}
		return nil
	}
	if rec.XID == 0 {
		return nil
	}
	if db, oids := rec.Truncated(); db != 0 {
		t := sc.of(rec.XID)
		if t.truncated == nil {
			t.truncated = map[uint32]bool{}
		}
		for _, oid := range oids {
			if sc.ops >= maxOps {
				sc.lost = true
				break
			}
			if !t.truncated[oid] {
				t.truncated[oid] = true
				sc.ops++
			}
		}
		return nil
	}
	c, ok := rec.RowChange()
	if !ok {
		return nil
	}
	switch sc.role(c.Rel) {
	case ofUsers:
		if c.Op != walrec.Insert {
			sc.count(sc.of(rec.XID), c)
		}
	case ofClass:
		sc.classRow(rec, c)
	case ofNamespace:
		if s, ok := sc.newName(rec, c); ok {
			t := sc.of(rec.XID)
			t.schemas = append(t.schemas, s)
		}
	case ofDatabases:
		t := sc.of(rec.XID)
		if c.Op == walrec.Delete {
			t.deletedDB = true
			if m, ok := sc.void[c.Old]; ok {
				t.marked = &m
				delete(sc.void, c.Old)
			}
		} else if s, ok := sc.newName(rec, c); ok {
			t.databases = append(t.databases, s)
		}
	}
	return nil
}

// newName returns what a new row of pg_namespace or pg_database is called.
func (sc *scanner) newName(rec *walrec.Record, c walrec.RowChange) (s schema, ok bool) {
	if c.Op == walrec.Delete {
		return s, false
	}
	r, ok := rec.NewRow()
	if !ok {
		return s, false
	}
	row, ok := readRow(sc.version, r)
	if !ok {
		return s, false
	}
	name, ok := row.name()
	return schema{row.oid, name, c.Op == walrec.Insert}, ok
}

// count counts a row.
func (sc *scanner) count(t *transaction, c walrec.RowChange) {
	i := t.last
	if i >= len(t.rows) || t.rows[i].rel != c.Rel {
		if t.index != nil {
			var ok bool
			if i, ok = t.index[c.Rel]; !ok {
				i = -1
			}
		} else {
			i = slices.IndexFunc(t.rows, func(r rows) bool { return r.rel == c.Rel })
		}
	}
	if i < 0 {
		if sc.counted >= maxRelations {
			sc.lost = true
			return
		}
		sc.counted++
		i = len(t.rows)
		t.rows = append(t.rows, rows{rel: c.Rel})
		switch {
		case t.index != nil:
			t.index[c.Rel] = i
		case len(t.rows) > 16:
			t.index = map[blockset.Relation]int{}
			for n, r := range t.rows {
				t.index[r.rel] = n
			}
		}
	}
	t.last = i
	if c.Op == walrec.Delete {
		t.rows[i].deleted++
	} else {
		t.rows[i].updated++
	}
}

// classRow takes in a change of pg_class.
func (sc *scanner) classRow(rec *walrec.Record, c walrec.RowChange) {
	t := sc.of(rec.XID)
	if c.Rows != 1 || sc.ops >= maxOps {
		sc.lost = true
		return
	}
	sc.ops++
	op := classOp{lsn: rec.LSN, op: c.Op, old: c.Old, new: c.New, db: c.Rel.Database}
	if row, ok := rec.NewRow(); ok {
		row.Rest = slices.Clone(row.Rest[:min(len(row.Rest), keptRow)])
		op.row = &row
	}
	t.class = append(t.class, op)
}

// keptRow is how many bytes of a row of pg_class are kept: all that is read of it.
const keptRow = 160

// standby takes in what standbys are told.
func (sc *scanner) standby(rec *walrec.Record) {
	r, ok := rec.Running()
	if !ok {
		return
	}
	if !sc.settled {
		sc.frontier, sc.settled = r.Next, true
	}
	for xid := range sc.open {
		if older(xid, r.Oldest) { // the server crashed in its midst
			sc.forget(xid)
		}
	}
}

// database takes in what was done to directories of databases.
func (sc *scanner) database(rec *walrec.Record) {
	c, ok := rec.DatabaseChange()
	switch {
	case !ok:
	case c.Dropped && rec.XID != 0 && !sc.moved[c.Database]:
		t := sc.of(rec.XID)
		t.gone = append(t.gone, moment{rec.LSN, rec.Prev, sc.timeline, c.Database})
	case c.Dropped:
		delete(sc.moved, c.Database)
	case c.Source == c.Database:
		sc.moved[c.Database] = true
	}
}

// xlog takes in what is told of the log itself.
func (sc *scanner) xlog(rec *walrec.Record) error {
	if name, at, ok := rec.RestorePoint(); ok {
		e := sc.event(RestorePoint, rec, at)
		e.Name = name
		return sc.emit(e)
	}
	c, ok, err := rec.Checkpoint()
	if !ok || err != nil {
		return err
	}
	if c.Timeline != c.PrevTimeline {
		e := sc.event(Promotion, rec, c.Time)
		e.Name = fmt.Sprintf("timeline %d begins, which left timeline %d", uint32(c.Timeline), uint32(c.PrevTimeline))
		e.Timeline = c.Timeline
		return sc.emit(e)
	}
	if c.EndOfRecovery {
		return nil
	}
	what := Checkpoint
	if c.Shutdown {
		what = Shutdown
	}
	e := sc.event(what, rec, c.Time)
	e.Name = "redo " + c.Redo.String()
	return sc.emit(e)
}

// end takes in the end of a transaction.
func (sc *scanner) end(rec *walrec.Record) error {
	x, ok, err := rec.XactEnd()
	if !ok || err != nil {
		return err
	}
	if !sc.s.Until.IsZero() && x.Time.After(sc.s.Until.Add(late)) {
		return errEnough
	}
	sc.earlier = sc.earlier || x.Time.Before(sc.s.Since)
	if sc.within(rec.LSN) && !x.Time.Before(sc.s.Since) && (sc.s.Until.IsZero() || !x.Time.After(sc.s.Until)) {
		if sc.report.First.IsZero() {
			sc.report.First = x.Time
		}
		if x.Time.After(sc.report.Last) {
			sc.report.Last = x.Time
		}
		if x.Committed {
			sc.report.Commits++
			sc.rate(x.Time)
		} else {
			sc.report.Aborts++
		}
	}
	t := sc.gather(&x)
	if x.Committed {
		err = sc.committed(rec, &x, t)
	} else if t != nil {
		err = sc.gone(rec, &x, t)
	}
	sc.forget(x.XID)
	for sub := range x.Subxacts() {
		sc.forget(sub)
	}
	return err
}

// gather returns what a transaction did together with those below it; nil where that is nothing.
func (sc *scanner) gather(x *walrec.XactEnd) *transaction {
	t := sc.open[x.XID]
	whole := t
	for sub := range x.Subxacts() {
		s := sc.open[sub]
		if s == nil {
			continue
		}
		if whole == t { // t itself stays as it is
			if whole = (&transaction{}); t != nil {
				whole.join(t)
			}
		}
		whole.join(s)
	}
	if whole != t {
		slices.SortFunc(whole.class, func(x, y classOp) int { return cmp.Compare(x.lsn, y.lsn) })
		slices.SortFunc(whole.created, func(x, y *created) int { return cmp.Compare(x.lsn, y.lsn) })
	}
	return whole
}

// join adds what o did.
func (t *transaction) join(o *transaction) {
	for _, r := range o.rows {
		if t.index == nil {
			t.index = map[blockset.Relation]int{}
		}
		i, ok := t.index[r.rel]
		if !ok {
			i = len(t.rows)
			t.index[r.rel] = i
			t.rows = append(t.rows, rows{rel: r.rel})
		}
		t.rows[i].deleted += r.deleted
		t.rows[i].updated += r.updated
	}
	t.created = append(t.created, o.created...)
	t.class = append(t.class, o.class...)
	t.schemas = append(t.schemas, o.schemas...)
	t.databases = append(t.databases, o.databases...)
	if t.truncated == nil && len(o.truncated) > 0 {
		t.truncated = map[uint32]bool{}
	}
	maps.Copy(t.truncated, o.truncated)
	t.gone = append(t.gone, o.gone...)
	t.deletedDB = t.deletedDB || o.deletedDB
	t.marked = cmp.Or(t.marked, o.marked)
}

// rate counts a commit.
func (sc *scanner) rate(at time.Time) {
	r := &sc.report
	n := len(r.Rates)
	if n > 0 && at.Before(r.Rates[n-1].At.Add(sc.span)) { // or a little before: commits come nearly in order
		r.Rates[n-1].Commits++
		return
	}
	r.Rates = append(r.Rates, Rate{At: at.Truncate(sc.span), Span: sc.span, Commits: 1})
	for len(r.Rates) > maxRates {
		sc.span *= 2
		var joined []Rate
		for _, rate := range r.Rates {
			at := rate.At.Truncate(sc.span)
			if n := len(joined); n > 0 && joined[n-1].At.Equal(at) {
				joined[n-1].Commits += rate.Commits
			} else {
				joined = append(joined, Rate{At: at, Span: sc.span, Commits: rate.Commits})
			}
		}
		r.Rates = joined
	}
}

// committed tells what a transaction did that ended well.
func (sc *scanner) committed(rec *walrec.Record, x *walrec.XactEnd, t *transaction) error {
	if t == nil && !x.Drops() {
		return nil
	}
	if t == nil {
		t = &transaction{}
	}
	partial := !sc.settled || older(x.XID, sc.frontier)
	event := func(what What) *Event {
		e := sc.event(what, rec, x.Time)
		e.XID, e.Partial, e.Prepared = x.XID, partial, x.Prepared
		return e
	}
	if err := sc.rowsOf(t, event); err != nil {
		return err
	}
	for _, d := range t.databases {
		if b := sc.book(d.oid); b.name == "" {
			b.name = d.name
		}
		if !d.made {
			continue
		}
		e := event(CreateDatabase)
		e.Database, e.DatabaseName = d.oid, d.name
		if err := sc.emit(e); err != nil {
			return err
		}
	}
	if err := sc.gone(rec, x, t); err != nil {
		return err
	}
	if len(t.class) == 0 && !x.Drops() && len(t.schemas) == 0 {
		return nil
	}
	return sc.relations(x, t, partial, event)
}

// rowsOf tells of the rows that a transaction deleted and updated, where they are many.
func (sc *scanner) rowsOf(t *transaction, event func(What) *Event) error {
	var deleted, updated uint64
	for _, r := range t.rows {
		deleted, updated = deleted+r.deleted, updated+r.updated
	}
	if deleted < sc.opts.Rows && updated < sc.opts.Rows {
		return nil
	}
	made := map[blockset.Relation]bool{}
	for _, c := range t.created {
		made[c.rel] = true
	}
	for _, kind := range []struct {
		what  What
		total uint64
		of    func(rows) uint64
	}{{DeleteRows, deleted, func(r rows) uint64 { return r.deleted }}, {UpdateRows, updated, func(r rows) uint64 { return r.updated }}} {
		if kind.total < sc.opts.Rows {
			continue
		}
		var most []rows
		total := uint64(0)
		for _, r := range t.rows {
			// What was not known to be a catalogue or a toast table when it was counted may be by now.
			if kind.of(r) > 0 && !made[r.rel] && sc.role(r.rel) == ofUsers {
				most = append(most, r)
				total += kind.of(r)
			}
		}
		if total < sc.opts.Rows {
			continue
		}
		slices.SortStableFunc(most, func(x, y rows) int { return cmp.Compare(kind.of(y), kind.of(x)) })
		e := event(kind.what)
		e.Destructive = true
		for _, r := range most[:min(len(most), sc.opts.Shown)] {
			b := sc.book(r.rel.Database)
			e.Database, e.DatabaseName = r.rel.Database, b.name
			shown := b.relation(r.rel)
			if kind.what == DeleteRows {
				shown.Deleted = r.deleted
			} else {
				shown.Updated = r.updated
			}
			e.Relations = append(e.Relations, shown)
		}
		e.Others = len(most) - len(e.Relations)
		if err := sc.emit(e); err != nil {
			return err
		}
	}
	return nil
}

// gone tells of databases whose directories went. That cannot be taken back, however the transaction ended; but one that drops no database only
// moves it, or clears up after one that could not be made.
func (sc *scanner) gone(rec *walrec.Record, x *walrec.XactEnd, t *transaction) error {
	for i, g := range t.gone {
		if !t.deletedDB || slices.ContainsFunc(t.gone[:i], func(before moment) bool { return before.db == g.db }) {
			continue
		}
		e := sc.event(DropDatabase, rec, x.Time)
		e.LSN, e.Prev, e.Timeline, e.XID = g.lsn, g.prev, g.timeline, x.XID
		if t.marked != nil { // who stops between finds the database's files, and is not let in
			e.LSN, e.Prev, e.Timeline = t.marked.lsn, t.marked.prev, t.marked.timeline
		}
		e.Database, e.DatabaseName, e.Destructive = g.db, sc.book(g.db).name, true
		if err := sc.emit(e); err != nil {
			return err
		}
	}
	return nil
}

// relation returns what is known of the relation with a file.
func (b *book) relation(file blockset.Relation) Relation {
	r := Relation{File: file}
	if n := b.files[file.Number]; n != nil {
		r.OID, r.Schema, r.Name, r.Kind = n.OID, n.Schema, n.Name, n.Kind
	}
	return r
}
