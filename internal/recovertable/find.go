package recovertable

import (
	"cmp"
	"context"
	"math"
	"slices"

	"holdfast/internal/archive"
	"holdfast/internal/bringback"
	"holdfast/internal/events"
)

// Search says what was lost, and where to look for that.
type Search struct {
	Tables   []bringback.Table
	Database string // a whole database, instead
	XID      uint32 // of a transaction: only what that did is looked for, and what it did it to does not matter. 0 for any

	Stretch events.Stretch
	Names   []events.Names // as events.Options has them
	Backup  *events.Backup // one of the names; it tells which tables descend from those that are wanted. nil for none
	Rows    uint64         // how many rows of these tables a transaction deletes or updates to count; 0 means 1000
}

// Find looks for what took rows away from tables, or a database away: DROP, TRUNCATE, many rows deleted or updated at once. It returns all, the oldest first, and
// what was read. An error of reading comes with what was found until then.
func Find(ctx context.Context, a *archive.Archive, s Search, o events.Options) ([]events.Event, *events.Report, error) {
	families := map[uint32]Family{}
	if s.Backup != nil {
		all := s.Backup.Databases()
		for name, tables := range byDatabase(s.Tables) {
			oid, ok := all[name]
			if !ok {
				continue
			}
			d, err := s.Backup.Database(ctx, oid)
			if err == nil {
				families[oid], err = Relatives(ctx, s.Backup, d, tables)
			}
			if ctx.Err() != nil {
				return nil, nil, context.Cause(ctx)
			}
			if err != nil && o.Logger != nil {
				o.Logger.Warn("which tables descend from those that are wanted is not known: " + err.Error())
			}
		}
	}
	var found []events.Event
	s.Rows = cmp.Or(s.Rows, 1000)
	o.Names, o.Rows, o.Shown = s.Names, s.Rows, math.MaxInt // one that is wanted may be the last of many
	r, err := events.Scan(ctx, a, s.Stretch, o, func(e *events.Event) error {
		if s.lost(e, families[e.Database]) {
			found = append(found, *e)
		}
		return nil
	})
	return found, r, err
}

// lost reports whether an event is one that is looked for. family is what is wanted of its database, as far as a backup knows it.
func (s *Search) lost(e *events.Event, family Family) bool {
	if s.XID != 0 {
		return e.XID == s.XID
	}
	switch e.What {
	case events.DropDatabase:
		return e.DatabaseName != "" && (e.DatabaseName == s.Database || slices.ContainsFunc(s.Tables, func(t bringback.Table) bool { return t.Database == e.DatabaseName }))
	case events.Drop, events.Truncate, events.DeleteRows, events.UpdateRows:
	default:
		return false
	}
	rows := uint64(0)
	is := false
	for _, r := range e.Relations {
		wanted := r.OID != 0 && family[r.OID] || slices.ContainsFunc(s.Tables, func(t bringback.Table) bool {
			return r.Name == t.Name && r.Schema == t.Schema && (e.DatabaseName == t.Database || e.DatabaseName == "")
		})
		if wanted {
			is = true
			rows += r.Deleted + r.Updated
		}
	}
	if e.What == events.DeleteRows || e.What == events.UpdateRows {
		return is && rows >= s.Rows // the transaction's rows may be of other tables
	}
	return is
}

// Touched returns the OIDs of the tables that an event is about.
func Touched(e *events.Event) (oids []uint32) {
	for _, r := range e.Relations {
		if r.OID != 0 {
			oids = append(oids, r.OID)
		}
	}
	return oids
}
