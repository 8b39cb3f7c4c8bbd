package archive

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"time"

	"holdfast/internal/compress"
	"holdfast/internal/tarpart"
)

// The manifest is a stream of JSON documents, one a line: a ManifestHeader, then for each part a ManifestPart, data
// parts in order of their numbers, pg_control.tar and backup_label.tar last. Lines let a restore deal parts to its
// workers while it still reads, so that memory is bounded by a part, not by the cluster.
const (
	manifestName = "manifest.json.zst"
	// MaxPartMembers and MaxPartNames bound how many members a part of ours has, and after how many bytes of their paths and
	// link targets it is closed. With both a manifest's line stays below maxManifestLine: JSON makes up to six bytes of one, and
	// describes a member with some 200 more, and a corrupt block with up to 11.
	MaxPartMembers = 16384
	MaxPartNames   = 4 << 20
	// maxManifestLine bounds a line in bytes.
	maxManifestLine = 64 << 20
)

// ManifestHeader is the manifest's first line.
type ManifestHeader struct {
	Holdfast         int       `json:"holdfast_manifest"` // the form's version: 1
	Backup           string    `json:"backup"`
	SystemIdentifier uint64    `json:"system_identifier"`
	Checksum         string    `json:"checksum"` // how members' contents are checked: CRC32C
	Started          time.Time `json:"started"`
	Parts            int       `json:"parts"` // lines that follow
}

// ManifestPart is one part with its members in the order of the tar stream.
type ManifestPart struct {
	Name    string           `json:"part"` // base name of the object
	Size    int64            `json:"size"` // bytes as stored
	Members []tarpart.Member `json:"members"`
}

// Manifest reads a backup's manifest part by part.
type Manifest struct {
	Header ManifestHeader
	body   io.Closer
	lines  *bufio.Scanner
	read   int
}

// OpenManifest begins to read a backup's manifest; Close it. Backups that Holdfast did not make have none:
// fs.ErrNotExist.
func (a *Archive) OpenManifest(ctx context.Context, backup string) (*Manifest, error) {
	body, err := a.open(ctx, Folder(backup)+manifestName, compress.Zstd)
	if err != nil {
		return nil, err
	}
	m := &Manifest{body: body, lines: bufio.NewScanner(body)}
	m.lines.Buffer(make([]byte, 64<<10), maxManifestLine)
	if err := m.line(&m.Header); err != nil {
		body.Close()
		return nil, fmt.Errorf("read the manifest of %s: %w", backup, err)
	}
	if m.Header.Holdfast != 1 || m.Header.Backup != backup || m.Header.Checksum != "CRC32C" {
		body.Close()
		return nil, fmt.Errorf("read the manifest of %s: it says it is of %q, form %d, checksum %q; this release reads form 1 with CRC32C",
			backup, m.Header.Backup, m.Header.Holdfast, m.Header.Checksum)
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
	if m.read == m.Header.Parts {
		if m.lines.Scan() {
			return nil, fmt.Errorf("read the manifest of %s: more than the %d parts it announces", m.Header.Backup, m.Header.Parts)
		}
		if err := m.lines.Err(); err != nil {
			return nil, fmt.Errorf("read the manifest of %s: %w", m.Header.Backup, err)
		}
		return nil, io.EOF
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

// Close ends the reading.
func (m *Manifest) Close() error { return m.body.Close() }
