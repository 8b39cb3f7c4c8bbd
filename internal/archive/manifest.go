package archive

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"path"
	"time"

	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// The manifest is a stream of JSON documents, one a line: a ManifestHeader, then for each part a ManifestPart, data
// parts in order of their numbers, pg_control.tar and backup_label.tar last, then of a delta the files that are as in its parent,
// many on a line. Lines let a restore deal parts to its workers while it still reads, so that memory is bounded by a part, not by
// the cluster. Form 1 has no parents, no increments and no checksums of pages; form 2 is what is written.
const (
	manifestName = "manifest.json.zst"
	manifestForm = 2
	// MaxPartMembers and MaxPartNames bound how many members a part of ours has, and after how many bytes of their paths and
	// link targets, and of a fourth of their sets of blocks, it is closed. With both a manifest's line stays below
	// maxManifestLine: JSON makes up to six bytes of one, or of three of a set four, and describes a member with some 300 more, and
	// a corrupt block with up to 11.
	MaxPartMembers = 16384
	MaxPartNames   = 4 << 20
	// maxManifestLine bounds a line in bytes.
	maxManifestLine = 64 << 20
)

// ManifestHeader is the manifest's first line.
type ManifestHeader struct {
	Holdfast         int             `json:"holdfast_manifest"` // the form's version: 1 or 2
	Backup           string          `json:"backup"`
	SystemIdentifier uint64          `json:"system_identifier"`
	Checksum         string          `json:"checksum"` // how members' contents are checked: CRC32C
	Started          time.Time       `json:"started"`
	Parts            int             `json:"parts"`               // lines that follow
	Parent           *ManifestParent `json:"parent,omitempty"`    // of a delta
	Unchanged        int             `json:"unchanged,omitempty"` // lines behind the parts'
	Since            *wal.LSN        `json:"since_lsn,omitempty"` // of a catch-up: what increments are on top of lies there, or later
}

// ManifestParent says on which backup a delta builds.
type ManifestParent struct {
	Backup string `json:"backup"`
	Sum    string `json:"sentinel_sha256"` // see Sentinel.Sum
}

// ManifestPart is one part with its members in the order of the tar stream.
type ManifestPart struct {
	Name    string           `json:"part"` // base name of the object
	Size    int64            `json:"size"` // bytes as stored
	Members []tarpart.Member `json:"members"`
}

// unchangedLine is a line behind the parts'.
type unchangedLine struct {
	Unchanged []tarpart.Member `json:"unchanged"`
}

// Manifest reads a backup's manifest part by part.
type Manifest struct {
	Header ManifestHeader
	body   io.Closer
	sum    hash.Hash
	lines  *bufio.Scanner
	read   int // lines
}

// OpenManifest begins to read a backup's manifest; Close it. Backups that Holdfast did not make have none:
// fs.ErrNotExist.
func (a *Archive) OpenManifest(ctx context.Context, backup string) (*Manifest, error) {
	body, err := a.open(ctx, a.folder(backup)+manifestName, compress.Zstd)
	if err != nil {
		return nil, err
	}
	m := &Manifest{body: body, sum: sha256.New()}
	m.lines = bufio.NewScanner(io.TeeReader(body, m.sum))
	m.lines.Buffer(make([]byte, 64<<10), maxManifestLine)
	if err := m.line(&m.Header); err != nil {
		body.Close()
		return nil, fmt.Errorf("read the manifest of %s: %w", backup, err)
	}
	h := &m.Header
	if h.Holdfast < 1 || h.Holdfast > manifestForm || h.Backup != backup || h.Checksum != "CRC32C" {
		body.Close()
		return nil, fmt.Errorf("read the manifest of %s: it says it is of %q, form %d, checksum %q; this release reads forms up to %d with CRC32C",
			backup, h.Backup, h.Holdfast, h.Checksum, manifestForm)
	}
	if h.Parts < 0 || h.Unchanged < 0 || (h.Parent == nil && h.Unchanged > 0) || (h.Parent != nil && CheckBackupName(h.Parent.Backup) != nil) {
		body.Close()
		return nil, fmt.Errorf("read the manifest of %s: %d parts, %d lines of what is unchanged, and %+v for a parent make no sense", backup, h.Parts, h.Unchanged, h.Parent)
	}
	return m, nil
}

func (m *Manifest) line(v any) error {
	if !m.lines.Scan() {
		if err := m.lines.Err(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(m.lines.Bytes(), v)
}

// Next reads the next part, io.EOF behind the last.
func (m *Manifest) Next() (*ManifestPart, error) {
	if m.read >= m.Header.Parts {
		if m.Header.Unchanged > 0 {
			return nil, io.EOF
		}
		return nil, m.end()
	}
	p := &ManifestPart{}
	if err := m.line(p); err != nil {
		return nil, fmt.Errorf("read the manifest of %s, part %d of %d: %w", m.Header.Backup, m.read+1, m.Header.Parts, err)
	}
	if p.Name == "" || path.Base(p.Name) != p.Name {
		return nil, fmt.Errorf("read the manifest of %s: %q is not the name of a part", m.Header.Backup, p.Name)
	}
	for i := range p.Members {
		if err := p.Members[i].Check(); err != nil {
			return nil, fmt.Errorf("read the manifest of %s, %s: %w", m.Header.Backup, p.Name, err)
		}
	}
	m.read++
	return p, nil
}

// NextUnchanged reads of a delta the next files that are as in its parent, io.EOF behind the last. Of these members Path, Mode, Size, ModTime, Inode
// and Changed are set, Size being that of the whole file. Next must have come to its end.
func (m *Manifest) NextUnchanged() ([]tarpart.Member, error) {
	if m.read >= m.Header.Parts+m.Header.Unchanged {
		return nil, m.end()
	}
	var line unchangedLine
	if err := m.line(&line); err != nil {
		return nil, fmt.Errorf("read the manifest of %s, what is unchanged: %w", m.Header.Backup, err)
	}
	for i := range line.Unchanged {
		u := &line.Unchanged[i]
		err := u.Check()
		if err == nil && (u.Type != tarpart.File || u.Pages > 0 || u.Increment != nil) {
			err = fmt.Errorf("%s is no file, or has content", u.Path)
		}
		if err != nil {
			return nil, fmt.Errorf("read the manifest of %s, what is unchanged: %w", m.Header.Backup, err)
		}
	}
	m.read++
	return line.Unchanged, nil
}

// end returns io.EOF unless something follows.
func (m *Manifest) end() error {
	if m.lines.Scan() {
		return fmt.Errorf("read the manifest of %s: more than the %d parts it announces", m.Header.Backup, m.Header.Parts)
	}
	if err := m.lines.Err(); err != nil {
		return fmt.Errorf("read the manifest of %s: %w", m.Header.Backup, err)
	}
	return io.EOF
}

// Sum returns the SHA-256 of the manifest in hexadecimal digits, once all was read to the last io.EOF: what Sentinel.Manifest of its backup says.
func (m *Manifest) Sum() string { return hex.EncodeToString(m.sum.Sum(nil)) }

// Close ends the reading.
func (m *Manifest) Close() error { return m.body.Close() }
