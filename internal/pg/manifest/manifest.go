// Package manifest reads and writes backup_manifest, the list of files PostgreSQL 13 and later keep in a base backup.
//
// The format is that of src/backend/backup/backup_manifest.c, which the documentation describes under "Backup Manifest
// Format": a JSON document with one file to a line, whose last line holds the SHA-256 of all lines before it.
//
//	{ "PostgreSQL-Backup-Manifest-Version": 2,
//	"System-Identifier": 7359000000000000001,
//	"Files": [
//	{ "Path": "PG_VERSION", "Size": 3, "Last-Modified": "2024-05-06 07:08:09 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "64440205" },
//	{ "Encoded-Path": "666fff", "Size": 0, "Last-Modified": "2024-05-06 07:08:09 GMT" }
//	],
//	"WAL-Ranges": [
//	{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }
//	],
//	"Manifest-Checksum": "(64 hexadecimal digits)"}
//
// Version 1 (PostgreSQL 13 to 16) lacks the system identifier. Reader and Writer keep one line in memory, and a Reader
// accepts exactly what a Writer writes: to the byte what PostgreSQL writes.
package manifest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"holdfast/internal/pg/wal"
)

// Name is what the file is called in a backup's data directory.
const Name = "backup_manifest"

// File is one line of the list. Directories, links and the manifest itself have none.
type File struct {
	Path      string    // from the data directory, slash separated, any bytes but NUL
	Size      int64     // bytes
	Modified  time.Time // whole seconds; a fraction is dropped
	Algorithm Algorithm
	Checksum  []byte // of the content; nil when Algorithm is None

	// HexPath stores the path in hexadecimal even where it is valid UTF-8, as BASE_BACKUP with MANIFEST 'force-encode' does.
	HexPath bool
}

// Algorithm names a checksum of a file's content, as the manifest spells it.
type Algorithm string

// The algorithms PostgreSQL knows.
const (
	None   Algorithm = ""
	CRC32C Algorithm = "CRC32C"
	SHA224 Algorithm = "SHA224"
	SHA256 Algorithm = "SHA256"
	SHA384 Algorithm = "SHA384"
	SHA512 Algorithm = "SHA512"
)

// size returns the length of a checksum in bytes, or -1 where there is no such algorithm.
func (a Algorithm) size() int {
	switch a {
	case None:
		return 0
	case CRC32C:
		return 4
	case SHA224:
		return 28
	case SHA256:
		return 32
	case SHA384:
		return 48
	case SHA512:
		return 64
	}
	return -1
}

// ChecksumCRC32C is the Checksum of a file whose CRC-32C (hash/crc32, Castagnoli) is sum: its four bytes in the order in
// which a little-endian server has them in memory.
func ChecksumCRC32C(sum uint32) []byte { return binary.LittleEndian.AppendUint32(nil, sum) }

// WALRange is WAL that must be replayed before the backup is consistent.
type WALRange struct {
	Timeline   wal.Timeline
	Start, End wal.LSN
}

// check says why f cannot be in a manifest.
func (f File) check() error {
	switch {
	case !filepath.IsLocal(f.Path) || filepath.Clean(f.Path) != f.Path || f.Path == "." || strings.ContainsRune(f.Path, 0):
		return fmt.Errorf("path %q is not one inside a data directory", f.Path)
	case f.Size < 0:
		return fmt.Errorf("%q: negative size %d", f.Path, f.Size)
	case f.Algorithm.size() < 0:
		return fmt.Errorf("%q: unknown checksum algorithm %q", f.Path, f.Algorithm)
	case len(f.Checksum) != f.Algorithm.size():
		return fmt.Errorf("%q: checksum of %d bytes is not one of %s", f.Path, len(f.Checksum), f.Algorithm)
	}
	if y := f.Modified.UTC().Year(); y < 0 || y > 9999 {
		return fmt.Errorf("%q: modified in the year %d", f.Path, y)
	}
	return nil
}

// timeLayout is strftime's "%Y-%m-%d %H:%M:%S %Z" in GMT.
const timeLayout = "2006-01-02 15:04:05 GMT"

// append appends f's line to b, without what separates it from others. f was checked.
func (f File) append(b []byte) []byte {
	if f.HexPath || !utf8.ValidString(f.Path) {
		b = append(b, `{ "Encoded-Path": "`...)
		b = hex.AppendEncode(b, []byte(f.Path))
		b = append(b, '"')
	} else {
		b = append(b, `{ "Path": `...)
		b = appendJSON(b, f.Path)
	}
	b = fmt.Appendf(b, `, "Size": %d, "Last-Modified": "%s"`, f.Size, f.Modified.UTC().Format(timeLayout))
	if f.Algorithm != None {
		b = fmt.Appendf(b, `, "Checksum-Algorithm": "%s", "Checksum": "%x"`, f.Algorithm, f.Checksum)
	}
	return append(b, " }"...)
}

// appendJSON appends s as PostgreSQL's escape_json writes it, which escapes less than encoding/json.
func appendJSON(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '\b':
			b = append(b, `\b`...)
		case '\f':
			b = append(b, `\f`...)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		case '"', '\\':
			b = append(b, '\\', c)
		default:
			if c < ' ' {
				b = fmt.Appendf(b, `\u%04x`, c)
			} else {
				b = append(b, c)
			}
		}
	}
	return append(b, '"')
}

func (r WALRange) append(b []byte) []byte {
	return fmt.Appendf(b, `{ "Timeline": %d, "Start-LSN": "%s", "End-LSN": "%s" }`, uint32(r.Timeline), r.Start, r.End)
}

// The lines between the lists.
const (
	versionLine  = `{ "PostgreSQL-Backup-Manifest-Version": %d,`
	systemLine   = `"System-Identifier": %d,`
	filesLine    = `"Files": [`
	endLine      = `],`
	rangesLine   = `"WAL-Ranges": [`
	checksumLine = `"Manifest-Checksum": "%x"}`
)
