package describe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/tarpart"
)

// Contents are the files of the cluster as the backup restores them.
type Contents struct {
	Source      string       `json:"source,omitempty"` // what tells of them: manifest or list of files; "" for nothing, and then the rest is the documents' or unknown
	Files       int64        `json:"files,omitempty"`
	Bytes       int64        `json:"bytes"`                 // of all files, whole
	Held        int64        `json:"held_bytes,omitempty"`  // of that in this backup; the rest is in what it builds on
	Whole       int64        `json:"whole_files,omitempty"` // files that are in it whole
	Increments  int64        `json:"increments,omitempty"`  // of which it has the changed pages
	Unchanged   int64        `json:"unchanged,omitempty"`   // of which it has nothing
	Kinds       []Sum        `json:"kinds,omitempty"`
	Databases   []Sum        `json:"databases,omitempty"` // by object identifier, over all tablespaces, the largest first; "shared" is what all share
	Tablespaces []Tablespace `json:"tablespaces,omitempty"`
	Largest     []File       `json:"largest,omitempty"` // files, at most largest
}

// Sum is files of a kind.
type Sum struct {
	Name  string `json:"name"`
	Files int64  `json:"files"`
	Bytes int64  `json:"bytes"`
}

// Tablespace is one beside pg_default and pg_global.
type Tablespace struct {
	OID      string `json:"oid"`
	Location string `json:"location"`
	Files    int64  `json:"files"`
	Bytes    int64  `json:"bytes"`
}

// File is a file of the cluster.
type File struct {
	Path    string    `json:"path"` // from the data directory on
	Bytes   int64     `json:"size"` // of the whole file; archive.UnknownSize where nothing says it
	ModTime time.Time `json:"mtime"`
	How     string    `json:"how"`               // whole, increment or unchanged
	Held    int64     `json:"held_bytes"`        // of it in this backup
	Part    string    `json:"part,omitempty"`    // that holds these
	Corrupt int       `json:"corrupt,omitempty"` // pages whose checksum did not hold as they were read
}

// How a file is in a backup.
const (
	whole     = "whole"
	increment = "increment"
	unchanged = "unchanged"
)

// largest is how many files are told of as the largest.
const largest = 10

// maxDatabases bounds how many databases are told of.
const maxDatabases = 1000

// errNoList says that nothing tells which files a backup has.
var errNoList = errors.New("nothing says which files it has")

// EachFile calls do for every file of a backup: by its manifest, and where that is missing or cannot be read by its list of files. source says which. That
// there is neither is an error.
func EachFile(ctx context.Context, a *archive.Archive, b *catalog.Backup, do func(*File) error) (source string, err error) {
	_, err = eachFile(ctx, a, b, do, nil)
	if err == nil {
		return "manifest", nil
	}
	if !errors.As(err, new(*unopened)) {
		return "", err
	}
	if b.Sentinel == nil {
		return "", b.Err
	}
	listed := a.ReadFileList(ctx, b.Name, b.Sentinel, archive.FileListVisitor{File: func(l archive.ListedFile) error {
		f := &File{Path: l.Path, Bytes: l.Size, ModTime: l.ModTime, How: whole, Held: l.Size}
		switch {
		case l.Incremented:
			f.How, f.Held = increment, archive.UnknownSize
		case l.Skipped:
			f.How, f.Held = unchanged, 0
		}
		return do(f)
	}})
	if errors.Is(listed, archive.ErrNoFileList) {
		return "", fmt.Errorf("%w: %v", errNoList, err)
	}
	return "list of files", listed
}

// unopened says that there is no manifest, or none that can be read.
type unopened struct{ error }

func (u *unopened) Unwrap() error { return u.error }

// eachFile goes through the manifest.
func eachFile(ctx context.Context, a *archive.Archive, b *catalog.Backup, do func(*File) error, part func(*archive.ManifestPart)) (sum string, err error) {
	m, err := a.OpenManifest(ctx, b.Name)
	if err != nil {
		return "", &unopened{err}
	}
	defer m.Close() // only read
	tell := func(t *tarpart.Member, how, part string) error {
		if t.Type != tarpart.File || part != "" && strings.HasPrefix(part, archive.LabelPart) {
			return nil
		}
		f := &File{Path: t.Path, Bytes: t.Total(), ModTime: t.ModTime, How: how, Held: t.Size, Part: part, Corrupt: t.CorruptCount}
		if how == unchanged {
			f.Held = 0
		}
		return do(f)
	}
	for {
		p, err := m.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		if part != nil {
			part(p)
		}
		for i := range p.Members {
			how := whole
			if p.Members[i].Increment != nil {
				how = increment
			}
			if err := tell(&p.Members[i], how, p.Name); err != nil {
				return "", err
			}
		}
	}
	for m.Header.Unchanged > 0 {
		files, err := m.NextUnchanged()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		for i := range files {
			if err := tell(&files[i], unchanged, ""); err != nil {
				return "", err
			}
		}
	}
	return m.Sum(), nil
}

// contents sums up the files.
func (d *describer) contents() {
	c := &d.Contents
	kinds, databases, spaces := map[string]*Sum{}, map[string]*Sum{}, map[string]*Tablespace{}
	if spec := d.backup.Sentinel.Spec; spec != nil {
		for _, t := range spec.Tablespaces {
			spaces[t.OID] = &Tablespace{OID: t.OID, Location: t.Location}
		}
	}
	add := func(sums map[string]*Sum, name string, bytes int64) {
		if sums[name] == nil {
			sums[name] = &Sum{Name: name}
		}
		sums[name].Files++
		sums[name].Bytes += bytes
	}
	count := func(f *File) error {
		bytes := max(0, f.Bytes)
		c.Files++
		c.Bytes += bytes
		c.Held += max(0, f.Held)
		switch f.How {
		case whole:
			c.Whole++
		case increment:
			c.Increments++
		default:
			c.Unchanged++
		}
		add(kinds, kindOfFile(f.Path), bytes)
		database, space := placeOf(f.Path)
		if database != "" && (databases[database] != nil || len(databases) < maxDatabases) {
			add(databases, database, bytes)
		}
		if t := spaces[space]; t != nil {
			t.Files++
			t.Bytes += bytes
		}
		if len(c.Largest) < largest || bytes > c.Largest[len(c.Largest)-1].Bytes {
			i, _ := slices.BinarySearchFunc(c.Largest, *f, func(x, y File) int { return cmp.Compare(y.Bytes, x.Bytes) })
			c.Largest = slices.Insert(c.Largest, i, *f)
			c.Largest = c.Largest[:min(len(c.Largest), largest)]
		}
		return nil
	}
	parts := map[string]*Part{}
	for i := range d.Report.Objects.Parts {
		parts[d.Report.Objects.Parts[i].Name] = &d.Report.Objects.Parts[i]
	}
	sum, err := eachFile(d.ctx, d.archive, d.backup, count, func(m *archive.ManifestPart) {
		p := parts[m.Name]
		if p == nil {
			d.Problems = append(d.Problems, fmt.Sprintf("%s is missing", m.Name))
			return
		}
		if p.Bytes != m.Size {
			d.Problems = append(d.Problems, fmt.Sprintf("%s has %d bytes, and was stored with %d", m.Name, p.Bytes, m.Size))
		}
		p.Members = len(m.Members)
		for i := range m.Members {
			p.Contents += m.Members[i].Size
		}
	})
	c.Source = "manifest"
	switch {
	case err == nil && d.backup.Sentinel.Manifest != "" && sum != d.backup.Sentinel.Manifest:
		d.Problems = append(d.Problems, "its manifest is not the one that its sentinel names")
	case err == nil:
	case errors.As(err, new(*unopened)):
		if d.backup.Sentinel.Manifest != "" || !errors.Is(err, fs.ErrNotExist) {
			d.trouble("its manifest", err)
		}
		if c.Source, err = EachFile(d.ctx, d.archive, d.backup, count); err != nil && !errors.Is(err, errNoList) {
			d.trouble("its list of files", err)
		}
		if err != nil {
			c.Source = ""
		}
	default:
		d.trouble("its manifest", err)
	}
	if c.Bytes == 0 || c.Source != "manifest" { // lists of WAL-G have no sizes
		s := d.backup.Sentinel
		c.Bytes = max(c.Bytes, s.DataCatalogSize)
		if !d.backup.IsDelta() {
			c.Bytes = max(c.Bytes, s.UncompressedSize)
		}
	}
	c.Kinds, c.Databases = bySize(kinds), bySize(databases)
	for _, t := range spaces {
		c.Tablespaces = append(c.Tablespaces, *t)
	}
	slices.SortFunc(c.Tablespaces, func(x, y Tablespace) int { return cmp.Compare(x.OID, y.OID) })
}

// bySize returns sums, the largest first.
func bySize(sums map[string]*Sum) (all []Sum) {
	for _, s := range sums {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(x, y Sum) int { return cmp.Or(cmp.Compare(y.Bytes, x.Bytes), cmp.Compare(x.Name, y.Name)) })
	return all
}

// kindOfFile says what a file of the data directory is, by its name alone: of a relation's main fork that does not tell tables from indexes.
func kindOfFile(name string) string {
	kind, fork, _, _ := datadir.ByName(name, false)
	top, _, _ := strings.Cut(name, "/")
	switch {
	case kind == datadir.Relation:
		return map[datadir.Fork]string{datadir.MainFork: "tables and indexes", datadir.FreeSpaceFork: "free space maps", datadir.VisibilityFork: "visibility maps",
			datadir.InitFork: "unlogged relations"}[fork]
	case kind == datadir.Control:
		return "control file"
	case top == "pg_xact" || top == "pg_clog" || top == "pg_multixact" || top == "pg_commit_ts" || top == "pg_subtrans":
		return "transaction status"
	case strings.HasSuffix(name, ".conf") || strings.HasSuffix(name, ".auto.conf"):
		return "configuration"
	}
	return "other files"
}

// placeOf says of which database and tablespace a file is: base/<database>/…, global/…, or pg_tblspc/<tablespace>/<version>/<database>/….
func placeOf(name string) (database, tablespace string) {
	steps := strings.Split(path.Clean(name), "/")
	switch {
	case steps[0] == "global":
		return "shared", ""
	case steps[0] == "base" && len(steps) > 2:
		return steps[1], ""
	case steps[0] == "pg_tblspc" && len(steps) > 4:
		return steps[3], steps[1]
	case steps[0] == "pg_tblspc" && len(steps) > 1:
		return "", steps[1]
	}
	return "", ""
}

// Matches reports whether a file's path is one that a pattern names, as path.Match does: all of it, or, of a pattern without a slash, its last element.
func Matches(pattern, name string) (bool, error) {
	ok, err := path.Match(strings.TrimPrefix(pattern, "/"), name)
	if err == nil && !ok && !strings.Contains(pattern, "/") {
		ok, err = path.Match(pattern, path.Base(name))
	}
	return ok, err
}
