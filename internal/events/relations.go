package events

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/walrec"
)

// fate is what became of a relation whose file went.
type fate uint8

const (
	dropped fate = iota + 1
	truncated
	rewritten
	reset // a sequence, or an index that was built anew
)

// verdict is the fate of a relation and how sure that is.
type verdict struct {
	file    blockset.Relation
	n       *Named // nil where nothing is known of it
	fate    fate
	certain bool
	why     string // where it is not certain
}

// changes is what a transaction did to relations.
type changes struct {
	b       *book
	t       *transaction
	db      uint32
	version int
	partial bool            // it may have begun before what was read
	empties int             // files that it made and left empty
	moves   map[uint32]bool // tablespaces of the files that it made

	files     []blockset.Relation // that went, of relations that were there before
	drops     map[uint32]bool     // OIDs of relations that were dropped, as far as they are known
	dropped   int                 // how many rows of pg_class it deleted that were there before
	all       bool                // drops has all that were dropped
	transient int                 // rows of pg_class that it made and deleted, of temporary tables too
	unnamed   int                 // those of them of which it is not known what they said
	rewritten map[uint32]bool     // OIDs of tables that were rewritten
	rows      map[walrec.Place]*movedRow
	left      []walrec.Place // where rows lay
	helpers   []class        // what the rows said that it made and deleted, when it made them
}

// relations tells what a transaction did to relations, and keeps what the log says of names.
func (sc *scanner) relations(x *walrec.XactEnd, t *transaction, partial bool, event func(What) *Event) error {
	c := &changes{t: t, version: sc.version, partial: partial, moves: map[uint32]bool{}, drops: map[uint32]bool{}, rewritten: map[uint32]bool{}}
	gone := map[blockset.Relation]bool{}
	var inOrder []blockset.Relation
	for rel := range x.Dropped() {
		gone[rel] = true
		inOrder = append(inOrder, rel)
		c.db = rel.Database
	}
	for _, op := range t.class {
		c.db = op.db
	}
	if c.db == 0 {
		c.db = x.Database
	}
	c.b = sc.book(c.db)
	for _, s := range t.schemas {
		c.b.schemas[s.oid] = s.name
	}
	made := map[blockset.Relation]bool{}
	for _, f := range t.created {
		made[f.rel] = true
		c.moves[f.rel.Tablespace] = true
		if f.blocks == 0 {
			c.empties++
		}
	}
	for _, rel := range inOrder {
		if !made[rel] {
			c.files = append(c.files, rel)
		}
	}
	c.classRows(x)
	var verdicts []verdict
	for _, rel := range c.files {
		if rel.Tablespace == globalTablespace || c.b.files[rel.Number] == nil && rel.Number < firstNormal {
			continue
		}
		if v := c.judge(rel); v.n == nil || v.n.OID >= firstNormal {
			verdicts = append(verdicts, v)
		}
	}
	err := c.tell(sc, verdicts, event)
	c.learn(inOrder)
	clear(sc.roles)
	return err
}

// movedRow is a row of pg_class that the transaction made or changed.
type movedRow struct {
	own   bool  // it made it
	known bool  // now says what the row says
	now   class //
	first class // what it said when it was made
}

// classRows follows the rows of pg_class through the transaction, and finds out what was dropped.
func (c *changes) classRows(x *walrec.XactEnd) {
	changed := map[uint32]bool{}
	for db, oid := range x.Invalidated() {
		if db == c.db {
			changed[oid] = true
		}
	}
	c.rows = map[walrec.Place]*movedRow{}
	// at takes a row from its place. What a backup had there may have given way to another since: then its relation has not changed.
	at := func(p walrec.Place) *movedRow {
		r := c.rows[p]
		if r != nil {
			delete(c.rows, p)
			return r
		}
		c.left = append(c.left, p)
		if n := c.b.places[p]; n != nil && (changed[n.OID] || x.Cut) {
			return &movedRow{known: true, now: n.class()}
		}
		return &movedRow{}
	}
	own := map[uint32]bool{}
	for _, op := range c.t.class {
		if op.db != c.db {
			continue
		}
		var r *movedRow
		switch op.op {
		case walrec.Insert:
			r = &movedRow{own: true}
		case walrec.Update:
			r = at(op.old)
		case walrec.Delete:
			r = at(op.old)
			switch {
			case r.own:
				c.transient++
				own[r.first.oid] = true
				if oid, ok := helperOf(r.first); ok {
					c.rewritten[oid] = true
				} else if r.first.name == "" {
					c.unnamed++
				}
				c.helpers = append(c.helpers, r.first)
			default:
				c.dropped++
				if r.known && c.version < 15 {
					c.drops[r.now.oid] = true
				}
			}
			continue
		}
		c.rows[op.new] = r
		if op.row == nil {
			continue
		}
		row, ok := readRow(c.version, *op.row)
		if !ok {
			continue
		}
		if whole, ok := row.class(c.version); ok {
			r.now, r.known = whole, true
		} else if r.known {
			r.now = r.now.changed(row)
		}
		if op.op == walrec.Insert {
			r.first = r.now
		}
	}
	c.all = len(c.drops) == c.dropped
	if c.version < 15 {
		return
	}
	c.all = !x.Cut
	for db, oid := range x.DroppedStats() {
		if db == c.db && !own[oid] {
			c.drops[oid] = true
		}
	}
}

// helperOf returns the OID of the table that a helper relation was to replace the files of (make_new_heap in src/backend/commands/cluster.c).
func helperOf(c class) (uint32, bool) {
	digits, ok := strings.CutPrefix(c.name, "pg_temp_")
	if !ok || c.kind == Index || c.kind == Toast {
		return 0, false
	}
	oid, err := strconv.ParseUint(digits, 10, 32)
	return uint32(oid), err == nil
}

// judge says what became of the relation with a file.
func (c *changes) judge(rel blockset.Relation) verdict {
	v := verdict{file: rel, n: c.b.files[rel.Number], certain: true}
	gone := false
	switch {
	case v.n != nil && c.drops[v.n.OID]:
		gone = true
	case c.version < 15 && len(c.t.created)+len(c.rewritten)+c.unnamed == 0 && (c.partial || v.n != nil) && (v.n == nil || v.n.Persistence != 'u'):
		// The row of pg_class that it deleted was not read. What goes on has a new file; only of unlogged tables that is not in the log.
		gone = true
		if c.partial {
			v.certain, v.why = false, "it began before what was read"
		}
	case c.all && v.n != nil, c.all && len(c.drops) == 0, c.version < 15 && c.dropped == 0:
	case len(c.t.created) == 0: // what goes on has a new file
		gone = true
	default:
		// As many as rows of pg_class were deleted were dropped, and each of the others had its row updated.
		gone = c.dropped >= len(c.files) || c.version >= 15 && len(c.drops) >= len(c.files)
		v.certain = false
		v.why = "the transaction dropped relations and made others, and which of its files are whose is not known"
	}
	if gone {
		v.fate = dropped
		return v
	}
	c.survived(&v)
	return v
}

// survived says why the relation has a new file.
func (c *changes) survived(v *verdict) {
	empty, here := c.empties > 0, c.moves[v.file.Tablespace]
	unsure := func(why string) {
		if v.certain {
			v.certain, v.why = false, why
		}
	}
	switch {
	case v.n != nil && c.t.truncated[v.n.OID]:
		v.fate = truncated
	case v.n != nil && c.rewritten[v.n.OID], v.n != nil && v.n.Kind == Materialized:
		v.fate = rewritten
	case v.n != nil && (v.n.Kind == Index || v.n.Kind == Sequence):
		v.fate = reset
	case c.unnamed > 0 && len(c.rewritten) == 0, v.n == nil && len(c.rewritten) > 0:
		v.fate = rewritten
		unsure("the transaction made a relation and dropped it again, as VACUUM FULL, CLUSTER and ALTER TABLE do")
	case !here && len(c.t.created) > 0:
		v.fate = rewritten // ALTER TABLE SET TABLESPACE
	case empty && v.n != nil:
		v.fate = truncated
	case empty:
		v.fate = truncated
		unsure("nothing is known of the file; the transaction made one that it left empty")
	case v.n != nil && v.n.Kind == Toast:
		v.fate = reset
	case v.n != nil:
		v.fate = truncated
		unsure("the transaction made new files and filled them: a TRUNCATE with new rows, or a change that left none out")
	default:
		v.fate = reset
		unsure("nothing is known of the file; the transaction made others and filled them, as REINDEX does")
	}
}

// tell makes events of verdicts.
func (c *changes) tell(sc *scanner, verdicts []verdict, event func(What) *Event) error {
	for _, kind := range []struct {
		what What
		fate fate
	}{{Drop, dropped}, {Truncate, truncated}, {Rewrite, rewritten}} {
		e := event(kind.what)
		e.Database, e.DatabaseName = c.db, c.b.name
		told := map[uint32]bool{}
		var unknown []Relation
		why := "" // of what is not known
		count, tables := 0, 0
		for _, v := range verdicts {
			if v.fate != kind.fate {
				continue
			}
			count++
			r := c.b.relation(v.file)
			switch {
			case v.n == nil:
				unknown, why = append(unknown, r), v.why
				continue
			case v.n.Kind == Toast:
				tables++
				continue
			case v.n.Kind == Index:
				continue
			}
			tables++
			told[v.n.OID] = true
			e.Relations = append(e.Relations, r)
			if v.n.Persistence == 'p' && v.n.Kind != Materialized {
				e.Destructive = true
			}
			if !v.certain {
				e.Certain, e.Why = false, v.why
			}
		}
		if kind.fate == dropped {
			if c.others(e, told) {
				unknown = nil
			}
			if len(e.Relations) == 0 && count == 0 {
				continue
			}
			if len(e.Relations) == 0 && len(unknown) == 0 { // nothing but indexes
				for _, v := range verdicts {
					if v.fate == dropped && v.n != nil && v.n.Kind == Index {
						e.Relations = append(e.Relations, c.b.relation(v.file))
					}
				}
			}
		} else if count == 0 || len(e.Relations)+len(unknown) == 0 {
			continue
		}
		switch {
		case kind.fate == truncated:
			unknown = unknown[:max(0, min(len(unknown), c.empties-tables))]
		case kind.fate == rewritten && len(e.Relations) > 0: // they are of its indexes
			unknown = nil
		}
		if len(unknown) > 0 {
			e.Destructive = true
			if why != "" {
				e.Certain, e.Why = false, why
			}
		}
		if len(e.Relations)+len(unknown) == 0 {
			continue
		}
		if kind.fate == rewritten && e.Certain {
			e.Destructive = false
		}
		files := 0
		for _, r := range e.Relations {
			if r.File.Number != 0 {
				files++
			}
		}
		e.Relations = append(e.Relations, unknown...)
		e.Others = max(0, count-files-len(unknown))
		if over := len(e.Relations) - sc.opts.Shown; over > 0 {
			e.Others += over
			e.Relations = e.Relations[:sc.opts.Shown]
		}
		if err := sc.emit(e); err != nil {
			return err
		}
	}
	return nil
}

// others adds relations that were dropped and whose file, if they have one, is not known to be theirs. all says that all that were dropped are known,
// so that files that are not are theirs, or their indexes'.
func (c *changes) others(e *Event, told map[uint32]bool) (all bool) {
	all = c.all && len(c.drops) > 0
	for _, oid := range slices.Sorted(maps.Keys(c.drops)) {
		n := c.b.oids[oid]
		all = all && n != nil
		if n == nil || told[oid] || oid < firstNormal || n.Persistence == 't' {
			continue
		}
		switch n.Kind {
		case Table, Partitioned, Materialized, Sequence:
			r := Relation{OID: oid, Schema: n.Schema, Name: n.Name, Kind: n.Kind}
			e.Relations = append(e.Relations, r)
			e.Destructive = e.Destructive || n.Persistence == 'p' && n.Kind != Materialized
		}
	}
	return all
}

// learn keeps what the transaction says of names from now on.
func (c *changes) learn(gone []blockset.Relation) {
	for _, p := range c.left {
		delete(c.b.places, p)
	}
	for p, r := range c.rows {
		if r.known {
			c.b.learn(c.b.named(r.now, p))
		}
	}
	// What follows is for rows of which it is not known whose they are.
	file := func(n *Named, number uint32) {
		if number != 0 && c.b.files[number] == nil {
			n := *n
			n.File, n.Place = number, walrec.Place{}
			c.b.files[number] = &n
		}
	}
	for _, h := range c.helpers { // its file is the table's now
		if oid, ok := helperOf(h); ok && c.b.oids[oid] != nil {
			file(c.b.oids[oid], h.file)
		}
	}
	// A TRUNCATE gives one relation after the other a new file; the list of those that went is the other way round.
	if c.transient == 0 && c.dropped == 0 && len(c.t.created) == len(gone) {
		for i, f := range c.t.created {
			if n := c.b.files[gone[len(gone)-1-i].Number]; n != nil {
				file(n, f.rel.Number)
			}
		}
	}
}
