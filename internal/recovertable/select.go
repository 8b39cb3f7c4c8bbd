package recovertable

import (
	"context"
	"encoding/binary"
	"fmt"
	"path"
	"strconv"
	"strings"

	"holdfast/internal/bringback"
	"holdfast/internal/events"
	"holdfast/internal/pg/datadir"
)

// OIDs of catalogues (src/include/catalog), and the first OID that is not of one (FirstNormalObjectId).
const (
	oidInherits = 2611
	oidIndex    = 2610
	firstNormal = 16384
)

// served are databases whose catalogues are restored, too: the copy is asked there before it is asked anything else.
var served = [...]string{"postgres", "template1"}

// selection says which files of a backup are restored with their content: all that belongs to no relation of a database; the catalogues of some databases; and in these
// the files of some relations.
type selection struct {
	numbers map[uint32]map[uint32]bool // by database, of files; nil for all of the database
}

// hollow reports whether a file is of no use. It is what restore.Request.Hollow wants.
func (s *selection) hollow(file string) bool {
	database, number, ok := relationFile(file)
	if !ok {
		return false
	}
	numbers, some := s.numbers[database]
	switch {
	case !some:
		return true
	case numbers == nil, number < firstNormal:
		return false
	}
	return !numbers[number]
}

// relationFile says which database a relation's file is of, and the number in its name; false for what is none, or is shared by all databases.
func relationFile(file string) (database, number uint32, ok bool) {
	kind, _, _, why := datadir.ByName(file, false)
	if kind != datadir.Relation || why != "" {
		return 0, 0, false
	}
	dir, name := path.Split(file)
	d, err := strconv.ParseUint(path.Base(dir), 10, 32)
	if err != nil {
		return 0, 0, false // global
	}
	digits := name[:len(name)-len(strings.TrimLeft(name, "0123456789"))]
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(d), uint32(n), err == nil
}

// Family is relations of a database by their OIDs: tables, and all partitions and children of these.
type Family map[uint32]bool

// Relatives returns the tables of t that are in a database, as far as the names know them, with those that descend from them.
func Relatives(ctx context.Context, b *events.Backup, d *events.Database, t []bringback.Table) (Family, error) {
	f := Family{}
	for i := range d.Relations {
		n := &d.Relations[i]
		for _, t := range t {
			if n.Name == t.Name && n.Schema == t.Schema && holdsRows(n.Kind) {
				f[n.OID] = true
			}
		}
	}
	children := map[uint32][]uint32{}
	err := b.Rows(ctx, d, oidInherits, func(child uint32, rest []byte) {
		if len(rest) >= 4 {
			parent := binary.LittleEndian.Uint32(rest)
			children[parent] = append(children[parent], child)
		}
	})
	if err != nil {
		return nil, err
	}
	var descend func(parent uint32)
	descend = func(parent uint32) {
		for _, c := range children[parent] {
			if !f[c] {
				f[c] = true
				descend(c)
			}
		}
	}
	for parent := range children {
		if f[parent] {
			descend(parent)
		}
	}
	return f, nil
}

// holdsRows reports whether relations of a kind are what recover-table can be asked for.
func holdsRows(k events.Kind) bool {
	return k == events.Table || k == events.Partitioned || k == events.Materialized
}

// choose works out which files are needed for tables, or all of one database. oids are those of tables as events told them.
func choose(ctx context.Context, b *events.Backup, tables []bringback.Table, database string, oids []uint32) (*selection, error) {
	s := &selection{numbers: map[uint32]map[uint32]bool{}}
	all := b.Databases()
	for _, name := range served {
		if oid, ok := all[name]; ok {
			if _, err := s.catalogues(ctx, b, oid); err != nil {
				return nil, err
			}
		}
	}
	if database != "" {
		oid, ok := all[database]
		if !ok {
			return nil, fmt.Errorf("database %s is not in the backup", database)
		}
		s.numbers[oid] = nil
		return s, nil
	}
	for name, tables := range byDatabase(tables) {
		oid, ok := all[name]
		if !ok {
			return nil, fmt.Errorf("database %s is not in the backup", name)
		}
		d, err := s.catalogues(ctx, b, oid)
		if err != nil {
			return nil, err
		}
		family, err := Relatives(ctx, b, d, tables)
		if err != nil {
			return nil, err
		}
		for _, oid := range oids {
			family[oid] = true
		}
		if err := s.relations(ctx, b, d, family); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// byDatabase sorts tables by their database.
func byDatabase(tables []bringback.Table) map[string][]bringback.Table {
	all := map[string][]bringback.Table{}
	for _, t := range tables {
		all[t.Database] = append(all[t.Database], t)
	}
	return all
}

// catalogues adds the catalogues of a database, which after VACUUM FULL have other numbers than their OIDs.
func (s *selection) catalogues(ctx context.Context, b *events.Backup, database uint32) (*events.Database, error) {
	d, err := b.Database(ctx, database)
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, fmt.Errorf("database %d is not in the backup", database)
	}
	numbers := s.numbers[database]
	if numbers == nil {
		numbers = map[uint32]bool{}
		s.numbers[database] = numbers
	}
	for i := range d.Relations {
		if n := &d.Relations[i]; n.OID < firstNormal {
			numbers[n.File] = true
		}
	}
	return d, nil
}

// relations adds the files of tables, of their indexes and TOAST tables, and of all sequences, which are small.
func (s *selection) relations(ctx context.Context, b *events.Backup, d *events.Database, tables Family) error {
	wanted := Family{}
	for oid := range tables {
		wanted[oid] = true
	}
	for i := range d.Relations {
		n := &d.Relations[i]
		if of, ok := strings.CutPrefix(n.Name, "pg_toast_"); ok && n.Kind == events.Toast {
			if oid, err := strconv.ParseUint(of, 10, 32); err == nil && tables[uint32(oid)] {
				wanted[n.OID] = true
			}
		}
	}
	indexes := Family{}
	err := b.Rows(ctx, d, oidIndex, func(index uint32, rest []byte) {
		if len(rest) >= 4 && wanted[binary.LittleEndian.Uint32(rest)] {
			indexes[index] = true
		}
	})
	if err != nil {
		return err
	}
	numbers := s.numbers[d.OID]
	for i := range d.Relations {
		if n := &d.Relations[i]; wanted[n.OID] || indexes[n.OID] || n.Kind == events.Sequence {
			numbers[n.File] = true
		}
	}
	return nil
}
