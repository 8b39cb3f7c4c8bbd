package pgbackrest

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// Manifest is what a backup is made of. It takes some 150 bytes of memory per file, 250 while it is read.
type Manifest struct {
	Label       string
	Cluster     Cluster
	DataDir     string // where the cluster was
	Tablespaces []Tablespace
	User        string // that most files belong to; "" where it is not known
	Online      bool   // the server ran while the backup was taken
	StartLSN    *wal.LSN
	StopLSN     *wal.LSN
	Files       []File
	Dirs        []tarpart.Member
	Links       []string // in the data directory, that led elsewhere: what they led to is part of the backup

	codec      codec
	raw        bool // small files are in bundles without the magic of their salt
	references []string
	passphrase string // of the files
}

// Tablespace says where one lay.
type Tablespace struct{ OID, Location string }

// File is a file of a backup, and where the repository has it.
type File struct {
	Path     string // from the data directory, slashes; those of tablespaces begin with pg_tblspc/<oid>/
	Size     int64  // bytes
	Modified int64  // seconds since 1970
	SHA1     [20]byte
	Mode     uint16 // permission bits
	BadPages int32  // whose checksum did not hold; at least 1 where that is all that is known

	reference uint16 // number of the backup that holds it
	bundle    uint32 // 0 for an object of its own
	offset    int64  // in the bundle
	stored    int64  // bytes there
	mapSize   int64  // bytes of the block map at the end; 0 for a file that is not stored by blocks
	blockSize int32
	sumSize   uint8 // bytes of the checksum of a block
}

// Bounds of what a manifest may say.
const (
	maxFiles      = 20e6
	maxReferences = 1 << 15 // backups
	maxFile       = 64 << 40
	maxMap        = 16 << 20 // bytes of a block map: some 8 bytes for each block of at least 8 KiB
	maxBlock      = 64 << 20 // bytes of a block
)

// blockUnit is what sizes of blocks are counted in, in bytes; minSum is how long their checksums are at least, and unless said otherwise.
const (
	blockUnit = 8192
	minSum    = 6
	maxSum    = 16
)

// noMode is the mode of what says none, until the defaults are known.
const noMode uint16 = 0xffff

// emptySHA1 is that of nothing, which manifests leave out.
var emptySHA1 = [20]byte{0xda, 0x39, 0xa3, 0xee, 0x5e, 0x6b, 0x4b, 0x0d, 0x32, 0x55, 0xbf, 0xef, 0x95, 0x60, 0x18, 0x90, 0xaf, 0xd8, 0x07, 0x09}

// Manifest reads what the backup b of i is made of.
func (r *Repository) Manifest(ctx context.Context, i *Info, b *Backup) (*Manifest, error) {
	name := r.backups() + b.Label + "/backup.manifest"
	var p *manifestParser
	err := r.readInfo(ctx, name, i.passphrase, func() { p = newManifestParser() }, func(section, key string, value json.RawMessage) error {
		return p.take(section, key, value)
	})
	if err == nil {
		err = p.finish()
		if err == nil && p.m.Label != b.Label {
			err = fmt.Errorf("it is the manifest of %s", p.m.Label)
		}
		if err == nil && p.m.Cluster != i.Cluster(b) {
			err = fmt.Errorf("it is of the cluster %s with system identifier %d, backup.info says %s with %d", p.m.Cluster.Name(), p.m.Cluster.SystemIdentifier,
				i.Cluster(b).Name(), i.Cluster(b).SystemIdentifier)
		}
		if err == nil && (i.passphrase == "") != (p.m.passphrase == "") {
			err = errors.New("it is of an encrypted repository without a passphrase for the files, or the other way round")
		}
		if err != nil {
			err = fmt.Errorf("read %s: %w", name, err)
		}
	}
	if err != nil {
		return nil, err
	}
	return p.m, nil
}

// manifestParser puts a manifest together.
type manifestParser struct {
	m *Manifest

	listed   bool            // references came before the files
	byLabel  map[string]int  // number of each reference
	fileMode uint16          // of files that say none; what comes behind the files
	dirMode  uint16          // of directories that say none
	targets  map[string]bool // links of tablespaces
}

func newManifestParser() *manifestParser {
	return &manifestParser{m: &Manifest{codec: none, Online: true}, byLabel: map[string]int{}, fileMode: 0o600, dirMode: 0o700, targets: map[string]bool{}}
}

// take takes one value. Sections come in the order of their names, and so the defaults of files behind the files.
func (p *manifestParser) take(section, key string, value json.RawMessage) error {
	m := p.m
	switch section + " " + key {
	case "backup backup-label":
		return json.Unmarshal(value, &m.Label)
	case "backup backup-bundle-raw":
		return json.Unmarshal(value, &m.raw)
	case "backup backup-reference":
		return p.list(value)
	case "backup backup-lsn-start":
		return unmarshalLSN(value, &m.StartLSN)
	case "backup backup-lsn-stop":
		return unmarshalLSN(value, &m.StopLSN)
	case "backup:db db-id":
		return json.Unmarshal(value, &m.Cluster.ID)
	case "backup:db db-system-id":
		return json.Unmarshal(value, &m.Cluster.SystemIdentifier)
	case "backup:db db-version":
		return json.Unmarshal(value, &m.Cluster.Version)
	case "backup:option option-compress": // older ones know gzip or nothing
		gz := false
		if err := json.Unmarshal(value, &gz); gz && err == nil {
			m.codec = "gz"
		}
		return nil
	case "backup:option option-compress-type":
		var name string
		err := json.Unmarshal(value, &name)
		if err == nil {
			m.codec, err = parseCodec(name)
		}
		return err
	case "backup:option option-online":
		return json.Unmarshal(value, &m.Online)
	case "cipher cipher-pass":
		return passphrase(&m.passphrase, key, value)
	case "target:file:default user":
		_ = json.Unmarshal(value, &m.User) // false where it had no name
		return nil
	case "target:file:default mode":
		return unmarshalMode(value, &p.fileMode)
	case "target:path:default mode":
		return unmarshalMode(value, &p.dirMode)
	}
	switch section {
	case "backup:target":
		return p.target(key, value)
	case "target:file":
		return p.file(key, value)
	case "target:path":
		return p.dir(key, value)
	case "target:link":
		if name, err := memberPath(key); err == nil && !p.targets[name] {
			m.Links = append(m.Links, name)
		}
	}
	return nil
}

func unmarshalLSN(value json.RawMessage, into **wal.LSN) error {
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		return err
	}
	at, err := wal.ParseLSN(text)
	*into = &at
	return err
}

// unmarshalMode reads permission bits: octal digits in a string.
func unmarshalMode(value json.RawMessage, into *uint16) error {
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		return err
	}
	mode, err := strconv.ParseUint(text, 8, 16)
	if err != nil || mode > 0o7777 {
		return fmt.Errorf("%q is no mode of a file", text)
	}
	*into = uint16(mode & 0o777)
	return nil
}

// list takes the references, in the order in which block maps count them.
func (p *manifestParser) list(value json.RawMessage) error {
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		return err
	}
	for label := range strings.SplitSeq(text, ",") {
		if _, err := p.refer(label); err != nil {
			return err
		}
	}
	p.listed = true
	return nil
}

// refer returns the number of a reference, a new one if it must be.
func (p *manifestParser) refer(label string) (int, error) {
	if n, ok := p.byLabel[label]; ok {
		return n, nil
	}
	switch {
	case !labels.MatchString(label):
		return 0, fmt.Errorf("%q is no label of a backup", label)
	case len(p.m.references) == maxReferences:
		return 0, fmt.Errorf("more than %d backups are referred to", maxReferences)
	}
	n := len(p.m.references)
	p.m.references = append(p.m.references, label)
	p.byLabel[label] = n
	return n, nil
}

// memberPath turns a name of pgBackRest into a path from the data directory: that is pg_data there, and tablespaces lie beside it.
func memberPath(name string) (string, error) {
	path, ok := strings.CutPrefix(name, "pg_data/")
	switch {
	case name == "pg_data":
		path = "."
	case !ok && (name == "pg_tblspc" || strings.HasPrefix(name, "pg_tblspc/")):
		path = name
	case !ok:
		return "", fmt.Errorf("%q is in neither the data directory nor a tablespace", name)
	}
	if !fs.ValidPath(path) || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("%q is no clean path", name)
	}
	return path, nil
}

// target takes the data directory, a tablespace or a link.
func (p *manifestParser) target(key string, value json.RawMessage) error {
	var v struct {
		Path string `json:"path"`
		OID  string `json:"tablespace-id"`
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return err
	}
	switch {
	case key == "pg_data":
		p.m.DataDir = v.Path
	case v.OID != "":
		if n, err := strconv.ParseUint(v.OID, 10, 32); err != nil || key != "pg_tblspc/"+strconv.FormatUint(n, 10) {
			return fmt.Errorf("%s is not the tablespace %q", key, v.OID)
		}
		p.targets[key] = true
		p.m.Tablespaces = append(p.m.Tablespaces, Tablespace{v.OID, v.Path})
	}
	return nil
}

// dir takes a directory.
func (p *manifestParser) dir(key string, value json.RawMessage) error {
	path, err := memberPath(key)
	if err != nil {
		return err
	}
	var v struct {
		Mode json.RawMessage `json:"mode"`
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return err
	}
	if len(p.m.Dirs)+len(p.m.Files) >= maxFiles {
		return fmt.Errorf("more than %d files", int(maxFiles))
	}
	d := tarpart.Member{Path: path, Type: tarpart.Dir, Mode: uint32(noMode)}
	if v.Mode != nil {
		var mode uint16
		if err := unmarshalMode(v.Mode, &mode); err != nil {
			return err
		}
		d.Mode = uint32(mode)
	}
	p.m.Dirs = append(p.m.Dirs, d)
	return nil
}

// file takes a file.
func (p *manifestParser) file(key string, value json.RawMessage) error {
	path, err := memberPath(key)
	if err != nil {
		return err
	}
	var v struct {
		Size      *int64          `json:"size"`
		Stored    *int64          `json:"repo-size"`
		Checksum  string          `json:"checksum"`
		Time      int64           `json:"timestamp"`
		Mode      json.RawMessage `json:"mode"`
		Reference string          `json:"reference"`
		Bundle    int64           `json:"bni"`
		Offset    int64           `json:"bno"`
		Block     int64           `json:"bi"`
		Sum       *int64          `json:"bic"`
		Map       int64           `json:"bim"`
		PagesGood *bool           `json:"checksum-page"`
		BadPages  json.RawMessage `json:"checksum-page-error"`
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	bad := func(format string, args ...any) error { return fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)) }
	switch {
	case len(p.m.Dirs)+len(p.m.Files) >= maxFiles:
		return fmt.Errorf("more than %d files", int(maxFiles))
	case v.Size == nil || *v.Size < 0 || *v.Size > maxFile:
		return bad("it has no size, or one that no file has")
	case v.Stored != nil && (*v.Stored < 0 || *v.Stored > maxFile):
		return bad("it takes %d bytes in the repository", *v.Stored)
	case v.Bundle < 0 || v.Bundle > math.MaxUint32 || v.Offset < 0 || v.Offset > maxFile:
		return bad("it lies at byte %d of bundle %d", v.Offset, v.Bundle)
	}
	f := File{Path: path, Size: *v.Size, Modified: v.Time, Mode: noMode, bundle: uint32(v.Bundle), offset: v.Offset, stored: *v.Size}
	if v.Stored != nil {
		f.stored = *v.Stored
	}
	switch {
	case f.Size == 0:
		f.SHA1, f.stored = emptySHA1, 0
	case len(v.Checksum) != 40:
		return bad("it has no checksum")
	default:
		if _, err := hex.Decode(f.SHA1[:], []byte(v.Checksum)); err != nil {
			return bad("%q is no checksum", v.Checksum)
		}
	}
	if v.Map != 0 && f.Size > 0 {
		sum := int64(minSum)
		if v.Sum != nil {
			sum = *v.Sum
		}
		if v.Block < 1 || v.Block > maxBlock/blockUnit || v.Map < 0 || v.Map > min(maxMap, f.stored) || sum < minSum || sum > maxSum {
			return bad("it is stored in blocks of %d * %d bytes with checksums of %d bytes and a map of %d", v.Block, blockUnit, sum, v.Map)
		}
		f.blockSize, f.mapSize, f.sumSize = int32(v.Block*blockUnit), v.Map, uint8(sum)
	}
	if v.PagesGood != nil && !*v.PagesGood {
		f.BadPages = countPages(v.BadPages)
	}
	if v.Mode != nil {
		if err := unmarshalMode(v.Mode, &f.Mode); err != nil {
			return bad("%v", err)
		}
	}
	// What holds it: the backup itself comes last in its list, and is not named.
	if v.Reference == "" {
		v.Reference = p.m.Label
	}
	n, err := p.refer(v.Reference)
	if err != nil {
		return bad("%v", err)
	}
	if f.mapSize != 0 && !p.listed {
		return bad("it is stored in blocks, and the manifest does not list the backups that have them")
	}
	f.reference = uint16(n)
	p.m.Files = append(p.m.Files, f)
	return nil
}

// countPages counts numbers and pairs [first,last] of numbers of pages; what is not understood is one page.
func countPages(list json.RawMessage) int32 {
	var all []json.RawMessage
	if json.Unmarshal(list, &all) != nil {
		return 1
	}
	n := int64(0)
	for _, one := range all {
		var pair [2]int64
		if json.Unmarshal(one, &pair) == nil && pair[1] > pair[0] {
			n += min(pair[1]-pair[0], math.MaxInt32)
		}
		n++
	}
	return int32(min(max(n, 1), math.MaxInt32))
}

// finish fills in what the end of the manifest said.
func (p *manifestParser) finish() error {
	m := p.m
	for i := range m.Files {
		if m.Files[i].Mode == noMode {
			m.Files[i].Mode = p.fileMode
		}
	}
	for i := range m.Dirs {
		if m.Dirs[i].Mode == uint32(noMode) {
			m.Dirs[i].Mode = uint32(p.dirMode)
		}
	}
	slices.SortFunc(m.Tablespaces, func(x, y Tablespace) int {
		return cmp.Or(cmp.Compare(len(x.OID), len(y.OID)), cmp.Compare(x.OID, y.OID))
	})
	if m.Label == "" || m.DataDir == "" || len(m.Files) == 0 {
		return errors.New("it names no backup, no data directory or no files")
	}
	return nil
}

// Bad returns how many files had pages whose checksum did not hold, and the first of them.
func (m *Manifest) Bad() (n int, first string) {
	for i := range m.Files {
		if m.Files[i].BadPages > 0 {
			if n++; n == 1 {
				first = m.Files[i].Path
			}
		}
	}
	return n, first
}
