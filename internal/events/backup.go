package events

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/chain"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/walrec"
	"holdfast/internal/tarpart"
)

const (
	maxMap      = 64 << 10 // bytes of a pg_filenode.map: 512 up to 15, 524 since
	segmentLen  = 1 << 30 / page.Size
	maxSegments = 64 // of one catalogue: 64 GiB
)

// ErrNoManifest says that a backup has no manifest, without which single files of it cannot be read: another program took it.
var ErrNoManifest = errors.New("it has no manifest of its files")

// Backup reads names from the catalogues in a backup's files: as they were while it was taken. It is used by one goroutine.
type Backup struct {
	archive *archive.Archive
	chain   *chain.Chain
	version int
	dirs    map[uint32]string // of databases; 0 is global
	names   map[uint32]string // of databases
	shared  uint32            // number of the file of pg_database
	ranges  map[string]*archive.Ranges
	asked   map[uint32]*Database // that were asked for
}

// FromBackup returns the names in the backup that c is put together from, newest first, as catalog.Chain returns it. It reads manifests and the list of
// databases; their catalogues when they are asked for.
func FromBackup(ctx context.Context, a *archive.Archive, c []*catalog.Backup) (*Backup, error) {
	b, err := fromBackup(ctx, a, c)
	if err != nil {
		return nil, fmt.Errorf("names in backup %s: %w", c[0].Name, err)
	}
	return b, nil
}

func fromBackup(ctx context.Context, a *archive.Archive, c []*catalog.Backup) (*Backup, error) {
	if c[0].Sentinel == nil || c[0].Sentinel.PgVersion < 10_00_00 {
		return nil, errors.New("it does not say of which PostgreSQL it is")
	}
	if complete, err := chain.Complete(ctx, a, c); err != nil {
		return nil, err
	} else if !complete {
		return nil, ErrNoManifest
	}
	b := &Backup{
		archive: a, version: c[0].Sentinel.PgVersion / 1_00_00, dirs: map[uint32]string{}, names: map[uint32]string{}, shared: oidDatabase, ranges: map[string]*archive.Ranges{}, asked: map[uint32]*Database{},
	}
	var err error
	if b.chain, err = chain.Load(ctx, a, c); err != nil {
		return nil, err
	}
	err = b.chain.Members(ctx, func(m *tarpart.Member) error {
		dir, file := path.Split(m.Path)
		if file != "pg_filenode.map" || m.Type != tarpart.File {
			return nil
		}
		if dir = path.Clean(dir); dir == "global" {
			b.dirs[0] = dir
		} else if oid, err := strconv.ParseUint(path.Base(dir), 10, 32); err == nil {
			b.dirs[uint32(oid)] = dir
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	files, err := b.readMap(ctx, 0)
	if err != nil {
		return nil, err
	}
	if n := files[oidDatabase]; n != 0 {
		b.shared = n
	}
	former := map[uint32]bool{}
	err = b.read(ctx, b.segments("global", b.shared, func(_ uint32, p []byte) error {
		return pageRows(p, func(_ uint16, row walrec.Row, was bool) {
			if r, ok := readRow(b.version, row); ok {
				if name, ok := r.name(); ok && (b.names[r.oid] == "" || former[r.oid]) {
					b.names[r.oid], former[r.oid] = name, was
				}
			}
		})
	}))
	return b, err
}

// readMap reads the map of a database; 0 is that of what databases share.
func (b *Backup) readMap(ctx context.Context, oid uint32) (map[uint32]uint32, error) {
	dir, ok := b.dirs[oid]
	if !ok {
		return nil, fmt.Errorf("it has no pg_filenode.map of database %d", oid)
	}
	var content []byte
	err := b.read(ctx, wanted{dir + "/pg_filenode.map": func(offset int64, r io.Reader, length int64) (err error) {
		if offset != 0 || length > maxMap {
			return fmt.Errorf("it has %d bytes", length)
		}
		content, err = io.ReadAll(io.LimitReader(r, length))
		return err
	}})
	if err != nil {
		return nil, err
	}
	return readMap(content)
}

// Database reads the catalogues of a database. It is nil where the backup has no such database. 0 stands for what all databases share.
func (b *Backup) Database(ctx context.Context, oid uint32) (*Database, error) {
	if oid == 0 {
		return &Database{Relations: []Named{{OID: oidDatabase, Schema: "pg_catalog", Name: "pg_database", Kind: Table, Persistence: 'p', File: b.shared}}}, nil
	}
	dir, ok := b.dirs[oid]
	if !ok {
		return nil, nil
	}
	d := b.asked[oid]
	if d == nil {
		var err error
		if d, err = b.database(ctx, oid, dir); err != nil {
			return nil, fmt.Errorf("names of database %d in backup %s: %w", oid, b.chain.Backups[0].Name, err)
		}
		b.asked[oid] = d
	}
	own := *d
	own.Relations, own.Schemas = slices.Clone(d.Relations), maps.Clone(d.Schemas)
	return &own, nil
}

func (b *Backup) database(ctx context.Context, oid uint32, dir string) (*Database, error) {
	files, err := b.readMap(ctx, oid)
	if err != nil {
		return nil, err
	}
	classFile := files[oidClass]
	if classFile == 0 {
		return nil, errors.New("its map does not name pg_class")
	}
	g := &namesOf{version: b.version, schemas: map[uint32]string{}}
	spaces := uint32(oidNamespace)
	err = b.read(ctx, b.segments(dir, classFile, func(block uint32, p []byte) error {
		return pageRows(p, func(offset uint16, row walrec.Row, former bool) {
			r, ok := readRow(b.version, row)
			if !ok {
				return
			}
			if c, ok := r.class(b.version); ok && c.persistence != 't' {
				g.classes = append(g.classes, classRow{c, walrec.Place{Block: block, Offset: offset}, former})
				if c.oid == oidNamespace && !former {
					spaces = c.file
				}
			}
		})
	}))
	if err != nil {
		return nil, err
	}
	was := map[uint32]bool{}
	err = b.read(ctx, b.segments(dir, spaces, func(_ uint32, p []byte) error {
		return pageRows(p, func(_ uint16, row walrec.Row, former bool) {
			if r, ok := readRow(b.version, row); ok {
				if name, ok := r.name(); ok && (g.schemas[r.oid] == "" || was[r.oid]) {
					g.schemas[r.oid], was[r.oid] = name, former
				}
			}
		})
	}))
	return g.database(oid, b.names[oid], files), err
}

// Databases returns the OIDs of the databases whose files the backup has, by name.
func (b *Backup) Databases() map[string]uint32 {
	all := map[string]uint32{}
	for oid, name := range b.names {
		if _, ok := b.dirs[oid]; ok && oid != 0 {
			all[name] = oid
		}
	}
	return all
}

// Has reports whether the backup has a file, by its path in the data directory.
func (b *Backup) Has(path string) bool { return b.chain.Find(path) >= 0 }

// Rows calls do for each row of a catalogue of database d, by its OID, whose first column is an OID: with that and with the columns behind it, as far as they are never null.
// Rows that were deleted since may be among them. Before PostgreSQL 12 what a catalogue has as the OID of a row is none of its columns.
func (b *Backup) Rows(ctx context.Context, d *Database, catalogue uint32, do func(first uint32, rest []byte)) error {
	var file uint32
	for i := range d.Relations {
		if n := &d.Relations[i]; n.OID == catalogue && (file == 0 || !n.Former) {
			file = n.File
		}
	}
	if file == 0 {
		return fmt.Errorf("pg_class of database %s does not name the file of the catalogue %d", d.Name, catalogue)
	}
	err := b.read(ctx, b.segments(b.dirs[d.OID], file, func(_ uint32, p []byte) error {
		return pageRows(p, func(_ uint16, row walrec.Row, _ bool) {
			if at := int(row.Header[4]) - rowHeader; at >= 0 && len(row.Rest) >= at+4 {
				do(binary.LittleEndian.Uint32(row.Rest[at:]), row.Rest[at+4:])
			}
		})
	}))
	if err != nil {
		return fmt.Errorf("catalogue %d of database %s in backup %s: %w", catalogue, d.Name, b.chain.Backups[0].Name, err)
	}
	return nil
}

// wanted is what is to be done with stretches of files: length bytes from offset on.
type wanted map[string]func(offset int64, r io.Reader, length int64) error

// segments wants all pages of a relation.
func (b *Backup) segments(dir string, file uint32, do func(block uint32, p []byte) error) wanted {
	w := wanted{}
	for n := range maxSegments {
		name := dir + "/" + strconv.FormatUint(uint64(file), 10)
		if n > 0 {
			name += "." + strconv.Itoa(n)
		}
		if b.chain.Find(name) < 0 {
			break
		}
		w[name] = func(offset int64, r io.Reader, length int64) error {
			p := make([]byte, page.Size)
			for block := uint32(n*segmentLen) + uint32(offset/page.Size); length >= page.Size; block, length = block+1, length-page.Size {
				if _, err := io.ReadFull(r, p); err != nil {
					return err
				}
				if err := do(block, p); err != nil {
					return fmt.Errorf("%s, block %d: %w", name, block, err)
				}
			}
			return nil
		}
	}
	return w
}

// read reads what is wanted, wherever in the chain it lies.
func (b *Backup) read(ctx context.Context, w wanted) error {
	do := map[int]func(int64, io.Reader, int64) error{}
	for name, f := range w {
		if i := b.chain.Find(name); i >= 0 {
			do[i] = f
		} else {
			return fmt.Errorf("it has no %s", name)
		}
	}
	if len(do) == 0 {
		return errors.New("the catalogue has no file")
	}
	return b.chain.Walk(ctx, func(p *chain.Part) error {
		for i := range p.Takes {
			t := &p.Takes[i]
			f := do[t.File]
			if f == nil || t.Size == 0 {
				continue
			}
			runs, err := t.Runs(nil)
			if err != nil {
				return err
			}
			for run := range runs {
				if err := b.stretch(ctx, p, t.Offset+run.Content, run.Length, func(r io.Reader) error { return f(run.File, r, run.Length) }); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// stretch reads length bytes of a part from offset on.
func (b *Backup) stretch(ctx context.Context, p *chain.Part, offset, length int64, do func(io.Reader) error) error {
	key := p.Backup + "/" + p.Name
	ranges, ok := b.ranges[key]
	if !ok {
		var err error
		if ranges, err = b.archive.Ranges(ctx, p.Backup, p.Part); err != nil {
			return err
		}
		b.ranges[key] = ranges
	}
	var r io.ReadCloser
	var err error
	if ranges != nil {
		r, err = ranges.Open(ctx, offset, length)
	} else if r, err = b.archive.OpenPart(ctx, p.Backup, p.Part); err == nil { // it can only be read from its beginning
		_, err = io.CopyN(io.Discard, r, offset)
	}
	if r != nil {
		defer r.Close() // only read
	}
	if err != nil {
		return err
	}
	return do(io.LimitReader(r, length))
}

// Of reports whether these are the names in backup o.
func (b *Backup) Of(o *catalog.Backup) bool { return b.chain.Backups[0] == o }

// String names the source.
func (b *Backup) String() string { return "backup " + strings.TrimSpace(b.chain.Backups[0].Name) }
