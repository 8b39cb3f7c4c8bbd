// Package tarpart packs directory entries into tar parts of bounded size, and reads them back.
//
// A part is an ordinary tar stream (USTAR, with PAX records where a header needs them) that stock tar and WAL-G read.
// Member names begin with a slash, "/" alone being the data directory itself, as WAL-G writes them. The content of a
// member begins at a multiple of 512 bytes and is as long as the file was when it was opened: what a file grew since
// is left out, what it shrank is zeros, both of which replaying the WAL puts right. Of a relation's file a part may hold an
// increment instead, see package increment.
package tarpart

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/increment"
	"holdfast/internal/pg/page"
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

	// Of a file, as it was when its content was read; zero where that is not known. See datadir.Identity.
	Inode   uint64    `json:"inode,omitempty"`
	Changed time.Time `json:"ctime,omitzero"`

	Pages     uint32     `json:"pages,omitempty"`     // of the content: all of it, but for the header of an increment. 0 for what is not made of pages
	Increment *Increment `json:"increment,omitempty"` // set where the content is the increment of a file

	CorruptCount int      `json:"corrupt_count,omitempty"` // pages whose checksum did not hold
	Corrupt      []uint32 `json:"corrupt,omitempty"`       // their block numbers in this file, all or the first few
}

// Increment says which pages of a file an increment holds.
type Increment struct {
	Size int64  `json:"size"`   // bytes of the whole file
	Set  []byte `json:"blocks"` // numbers of the pages, a roaring bitmap in its portable form: see Member.Blocks
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
	case m.Increment == nil && m.Pages > 0 && m.Size != int64(m.Pages)*page.Size:
		return fmt.Errorf("member %s has %d bytes, which are not %d pages", m.Path, m.Size, m.Pages)
	case m.Increment != nil && (m.Type != File || m.Size != increment.Size(m.Pages)):
		return fmt.Errorf("member %s has %d bytes, which are not the increment of a file with %d pages", m.Path, m.Size, m.Pages)
	case m.Increment != nil && (m.Increment.Size < 0 || m.Increment.Size%page.Size != 0 || m.Increment.Size/page.Size < int64(m.Pages)):
		return fmt.Errorf("member %s is the increment with %d pages of a file of %d bytes", m.Path, m.Pages, m.Increment.Size)
	}
	return nil
}

// Blocks returns the numbers of the pages that an increment holds, all below the end of the file.
func (m *Member) Blocks() (*roaring.Bitmap, error) {
	if m.Increment == nil {
		return nil, fmt.Errorf("member %s is no increment", m.Path)
	}
	set := roaring.New()
	n, err := set.ReadFrom(bytes.NewReader(m.Increment.Set))
	if err == nil {
		err = set.Validate()
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("member %s: its set of blocks: %w", m.Path, err)
	case n != int64(len(m.Increment.Set)):
		return nil, fmt.Errorf("member %s: its set of blocks ends before %d of its bytes", m.Path, int64(len(m.Increment.Set))-n)
	case set.GetCardinality() != uint64(m.Pages):
		return nil, fmt.Errorf("member %s: its set has %d blocks, it %d pages", m.Path, set.GetCardinality(), m.Pages)
	case m.Pages > 0 && int64(set.Maximum()) >= m.Increment.Size/page.Size:
		return nil, fmt.Errorf("member %s: its set has block %d of a file of %d bytes", m.Path, set.Maximum(), m.Increment.Size)
	}
	return set, nil
}

// describe makes the description of an increment.
func describe(h *increment.Header) (*Increment, error) {
	set := roaring.BitmapOf(h.Blocks...)
	set.RunOptimize()
	b, err := set.ToBytes()
	return &Increment{Size: h.FileSize, Set: b}, err
}

// Total returns how long the file is that a member is, or is the increment of, in bytes.
func (m *Member) Total() int64 {
	if m.Increment != nil {
		return m.Increment.Size
	}
	return m.Size
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
