package events

import (
	"context"

	"holdfast/internal/pg/walrec"
)

// Names says what databases and their relations are called: a live server does, and the files of a backup do.
type Names interface {
	// Database returns what is known of a database, by its OID; nil where nothing is.
	Database(ctx context.Context, oid uint32) (*Database, error)
}

// Database is the names of a database at some moment.
type Database struct {
	OID       uint32
	Name      string
	Schemas   map[uint32]string // by OID
	Relations []Named           // in any order. Of one OID there may be several: as it is, and as it was before
}

// Named is a relation, and how its files are called.
type Named struct {
	OID         uint32
	Schema      string
	Name        string
	Kind        Kind
	Persistence byte         // pg_class.relpersistence: p, u unlogged, t temporary
	File        uint32       // the number in the names of its files (relfilenode); 0 for none
	Namespace   uint32       // OID of the schema
	Place       walrec.Place // of its row in pg_class; zero where that is not known
	Former      bool         // this is how it was before something changed it
}

// Kind is what a relation is: pg_class.relkind. 0 is not known.
type Kind byte

// The kinds that files are dropped of, and the one that has none.
const (
	Table        Kind = 'r'
	Partitioned  Kind = 'p'
	Index        Kind = 'i'
	Toast        Kind = 't'
	Materialized Kind = 'm'
	Sequence     Kind = 'S'
)

// String returns the kind as SQL calls it.
func (k Kind) String() string {
	switch k {
	case Table:
		return "table"
	case Partitioned:
		return "partitioned table"
	case Index:
		return "index"
	case 'I':
		return "partitioned index"
	case Toast:
		return "toast table"
	case Materialized:
		return "materialized view"
	case Sequence:
		return "sequence"
	case 'v':
		return "view"
	case 'f':
		return "foreign table"
	case 'c':
		return "type"
	}
	return "relation"
}

// MarshalText writes the kind as String does.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// firstNormal is the first OID that is not of a catalogue (FirstNormalObjectId).
const firstNormal = 16384

// OIDs of catalogues (src/include/catalog), which are the numbers of their files too until something rewrites them.
const (
	oidClass     = 1259
	oidNamespace = 2615
	oidDatabase  = 1262

	globalTablespace = 1664
)

// book is what is known of the names in one database: what Names told, and what the log told since.
type book struct {
	name    string
	schemas map[uint32]string
	files   map[uint32]*Named // by number
	oids    map[uint32]*Named
	places  map[walrec.Place]*Named // of rows of pg_class
}

func newBook() *book {
	return &book{schemas: map[uint32]string{}, files: map[uint32]*Named{}, oids: map[uint32]*Named{}, places: map[walrec.Place]*Named{}}
}

// add takes in what a source says. What one said before stands.
func (b *book) add(d *Database) {
	if b.name == "" {
		b.name = d.Name
	}
	for oid, name := range d.Schemas {
		if _, ok := b.schemas[oid]; !ok {
			b.schemas[oid] = name
		}
	}
	for i := range d.Relations {
		n := &d.Relations[i]
		if was := b.oids[n.OID]; was == nil || was.Former && !n.Former {
			b.oids[n.OID] = n
		}
		if was := b.files[n.File]; n.File != 0 && (was == nil || was.Former && !n.Former) {
			b.files[n.File] = n
		}
		if n.Place != (walrec.Place{}) && !n.Former {
			b.places[n.Place] = n
		}
	}
}

// oid returns the OID of the relation with a file; 0 where it is not known. Files of catalogues that were never rewritten have their OIDs for numbers.
func (b *book) oid(file uint32) uint32 {
	if n := b.files[file]; n != nil {
		return n.OID
	}
	if file < firstNormal {
		return file
	}
	return 0
}

// class returns n as a row of pg_class.
func (n *Named) class() class {
	return class{n.OID, n.Namespace, n.File, n.Name, n.Kind, n.Persistence}
}

// named returns what a row of pg_class says.
func (b *book) named(c class, place walrec.Place) Named {
	return Named{OID: c.oid, Schema: b.schemas[c.namespace], Name: c.name, Kind: c.kind, Persistence: c.persistence, File: c.file, Namespace: c.namespace, Place: place}
}

// learn takes in what the log says. Files of temporary relations are not in it.
func (b *book) learn(n Named) {
	b.oids[n.OID] = &n
	if n.File != 0 && n.Persistence != 't' {
		b.files[n.File] = &n
	}
	if n.Place != (walrec.Place{}) {
		b.places[n.Place] = &n
	}
}
