// Package tarpart packs directory entries into tar parts of bounded size, and reads them back.
//
// A part is an ordinary tar stream (USTAR, with PAX records where a header needs them) that stock tar and WAL-G read.
// Member names begin with a slash, "/" alone being the data directory itself, as WAL-G writes them. The content of a
// member begins at a multiple of 512 bytes and is as long as the file was when it was opened: what a file grew since
// is left out, what it shrank is zeros, both of which replaying the WAL puts right.
package tarpart

import (
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// Member describes a file, directory or symbolic link in a part. Its JSON form stands in the backup's manifest.
type Member struct {
	Path    string    `json:"path"` // from the data directory, slashes, no leading slash; "." is the directory itself
	Type    Type      `json:"type,omitempty"`
	Size    int64     `json:"size,omitempty"` // bytes of content
	Mode    uint32    `json:"mode"`           // permission bits
	ModTime time.Time `json:"mtime"`
	CRC     uint32    `json:"crc32c,omitempty"` // of the content, CRC-32C
	Offset  int64     `json:"offset,omitempty"` // of the content in the part's uncompressed tar stream, bytes
	Link    string    `json:"link,omitempty"`   // target of a symbolic link

	CorruptCount int      `json:"corrupt_count,omitempty"` // pages whose checksum did not hold
	Corrupt      []uint32 `json:"corrupt,omitempty"`       // their block numbers in this file, all or the first few
}

// Type tells files, directories and symbolic links apart.
type Type string

// The types of members.
const (
	File    Type = ""
	Dir     Type = "dir"
	Symlink Type = "link"
)

// Perm returns the member's permission bits.
func (m *Member) Perm() fs.FileMode { return fs.FileMode(m.Mode) & fs.ModePerm }

// Check refuses descriptions that no writer of ours produces, before anything is done by them.
func (m *Member) Check() error {
	switch {
	case !fs.ValidPath(m.Path):
		return fmt.Errorf("member %q is not a clean relative path", m.Path)
	case m.Type != File && m.Type != Dir && m.Type != Symlink:
		return fmt.Errorf("member %s is of the unknown type %q", m.Path, m.Type)
	case m.Size < 0 || m.Offset < 0:
		return fmt.Errorf("member %s has a negative size or offset", m.Path)
	}
	return nil
}

// Name is the name a path of the data directory has in a part: a slash and the path, "/" for "." itself.
func Name(path string) string {
	if path == "." {
		return "/"
	}
	return "/" + path
}

// Path is the way back from a member's name, with or without its leading slash, to a path of the data directory.
func Path(name string) (string, error) {
	p := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(name, "./"), "/"), "/")
	if p == "" {
		p = "."
	}
	if !fs.ValidPath(p) {
		return "", fmt.Errorf("member name %q leads out of the data directory", name)
	}
	return p, nil
}
