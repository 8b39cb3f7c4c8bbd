package events

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"holdfast/internal/pg/page"
	"holdfast/internal/pg/walrec"
)

// Flags of a row (t_infomask, src/include/access/htup_details.h).
const (
	rowHasOID        = 0x0008 // before 12: its OID stands before its first column
	rowXmaxLockOnly  = 0x0080
	rowXminCommitted = 0x0100
	rowXminInvalid   = 0x0200
	rowXmaxInvalid   = 0x0800
)

const (
	rowHeader = 23 // SizeofHeapTupleHeader: what follows begins with a bitmap of nulls
	nameLen   = 64 // NAMEDATALEN
)

// catalogRow is a row of a catalogue: its OID, and its columns after that. The first columns of those that are read here have a fixed length and are never
// null.
type catalogRow struct {
	oid     uint32
	columns []byte
	part    bool // it says only what is new
	known   int  // and columns before this byte are not known
}

// readRow reads a row.
func readRow(version int, row walrec.Row) (r catalogRow, ok bool) {
	le := binary.LittleEndian
	rest, at := row.Rest, int(row.Header[4])-rowHeader
	if at < 0 || at > len(rest) {
		return r, false
	}
	if version >= 12 {
		if len(rest) < at+4 {
			return r, false
		}
		return catalogRow{le.Uint32(rest[at:]), rest[at+4:], row.Same > 0, max(row.Same-4, 0)}, true
	}
	if le.Uint16(row.Header[2:])&rowHasOID == 0 || at < 4 {
		return r, false
	}
	return catalogRow{le.Uint32(rest[at-4:]), rest[at:], row.Same > 0, row.Same}, true
}

// name returns the name that a row of pg_class, pg_namespace or pg_database begins with.
func (r catalogRow) name() (string, bool) {
	if len(r.columns) < nameLen || r.part {
		return "", false
	}
	b := r.columns[:nameLen]
	if i := bytes.IndexByte(b, 0); i > 0 && utf8.Valid(b[:i]) {
		return string(b[:i]), true
	} else if i > 0 { // of a database in another encoding
		return fmt.Sprintf("%q", b[:i]), true
	}
	return "", false
}

// class is a row of pg_class.
type class struct {
	oid, namespace, file uint32
	name                 string
	kind                 Kind
	persistence          byte
}

// Where columns of pg_class begin, from relname on.
const (
	atNamespace = 64
	atFile      = 84
)

// class reads a row of pg_class.
func (r catalogRow) class(version int) (c class, ok bool) {
	if c.name, ok = r.name(); !ok {
		return c, false
	}
	le := binary.LittleEndian
	toast := 104 // reltoastrelid
	if version >= 18 {
		toast = 108 // behind relallfrozen
	}
	b := r.columns
	if len(b) < toast+8 {
		return c, false
	}
	c.oid, c.namespace, c.file = r.oid, le.Uint32(b[atNamespace:]), le.Uint32(b[atFile:])
	c.persistence, c.kind = b[toast+6], Kind(b[toast+7])
	return c, true
}

// changed returns what c becomes by a row that may say only what is new. Kind and persistence stay.
func (c class) changed(r catalogRow) class {
	le := binary.LittleEndian
	b := make([]byte, atFile+4)
	copy(b[:nameLen-1], c.name)
	le.PutUint32(b[atNamespace:], c.namespace)
	le.PutUint32(b[atFile:], c.file)
	if r.known < len(b) && r.known < len(r.columns) {
		copy(b[r.known:], r.columns[r.known:])
	}
	if i := bytes.IndexByte(b[:nameLen], 0); i > 0 {
		c.name = string(b[:i])
	}
	c.namespace, c.file = le.Uint32(b[atNamespace:]), le.Uint32(b[atFile:])
	return c
}

// markedInvalid says whether a row of pg_database, its columns from the first on, is of a database that is being dropped: DROP DATABASE of minor releases since
// August 2023 says so before it does anything that cannot be undone, with a datconnlimit of -2.
func markedInvalid(version int, columns []byte) bool {
	at := 80
	switch {
	case version < 12: // its OID is none of the columns
		at = 204
	case version < 15: // datcollate and datctype came before it
		at = 208
	}
	return len(columns) >= at+4 && int32(binary.LittleEndian.Uint32(columns[at:])) == -2
}

// pageRows calls do for each row of a page of a catalogue that is or was one: not for those whose transaction was rolled back, as far as the page says.
// former says that the row has a successor, or was deleted.
func pageRows(p []byte, do func(offset uint16, row walrec.Row, former bool)) error {
	if page.IsNew(p) {
		return nil
	}
	h, err := page.ReadHeader(p)
	if err == nil {
		err = h.Check()
	}
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	for at, offset := page.HeaderLen, uint16(1); at+4 <= int(h.Lower); at, offset = at+4, offset+1 {
		item := le.Uint32(p[at:])
		from, flags, length := int(item&0x7FFF), item>>15&3, int(item>>17)
		if flags != 1 || length < rowHeader { // LP_NORMAL
			continue
		}
		if from+length > page.Size {
			return fmt.Errorf("row %d of %d bytes lies at %d", offset, length, from)
		}
		row := p[from : from+length]
		mask, xmax := le.Uint16(row[20:]), le.Uint32(row[4:])
		if mask&(rowXminCommitted|rowXminInvalid) == rowXminInvalid { // both are of a frozen one
			continue
		}
		do(offset, walrec.Row{Header: [5]byte(row[18:23]), Rest: row[rowHeader:]}, xmax != 0 && mask&(rowXmaxInvalid|rowXmaxLockOnly) == 0)
	}
	return nil
}

// readMap reads a pg_filenode.map: the numbers of the files of catalogues that have none in pg_class, by OID (src/backend/utils/cache/relmapper.c).
func readMap(b []byte) (map[uint32]uint32, error) {
	const magic, most = 0x592717, 64
	le := binary.LittleEndian
	if len(b) < 8 || le.Uint32(b) != magic {
		return nil, fmt.Errorf("it is no pg_filenode.map: %d bytes", len(b))
	}
	n := le.Uint32(b[4:])
	if n > most || len(b) < 8+int(n)*8 {
		return nil, fmt.Errorf("a pg_filenode.map of %d bytes has %d entries", len(b), n)
	}
	files := make(map[uint32]uint32, n)
	for b = b[8:]; n > 0; n, b = n-1, b[8:] {
		files[le.Uint32(b)] = le.Uint32(b[4:])
	}
	return files, nil
}

// namesOf gathers the names of a database from rows of its catalogues.
type namesOf struct {
	version int
	classes []classRow
	schemas map[uint32]string
}

type classRow struct {
	class
	place  walrec.Place
	former bool
}

// database makes the names of what was gathered. files are those of its map.
func (g *namesOf) database(oid uint32, name string, files map[uint32]uint32) *Database {
	d := &Database{OID: oid, Name: name, Schemas: g.schemas, Relations: make([]Named, 0, len(g.classes))}
	for i := range g.classes {
		c := &g.classes[i]
		n := Named{OID: c.oid, Schema: g.schemas[c.namespace], Name: c.name, Kind: c.kind, Persistence: c.persistence, File: c.file, Namespace: c.namespace, Place: c.place, Former: c.former}
		if n.File == 0 {
			n.File = files[n.OID]
		}
		d.Relations = append(d.Relations, n)
	}
	return d
}
