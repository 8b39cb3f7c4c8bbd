package walpush

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/fileid"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
)

// A file is a WAL file on disk, as it was when it was inspected.
type file struct {
	path, name  string
	kind        wal.Kind
	timeline    wal.Timeline // that of the name
	size        int64        // bytes
	modified    time.Time
	segmentSize wal.SegmentSize // 0 unless kind is Segment or Partial
	cluster     uint64          // system identifier; 0 where nothing says

	id      fileid.ID
	settled bool // when it was inspected: any change since gives it another ID

	summed bool   // whether reading is to compute sum
	sum    uint32 // CRC-32C of the content that was last read to its end
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// inspect describes the WAL file at path, and refuses one that is not what its name says.
func inspect(path string) (*file, error) {
	f := &file{path: path, name: filepath.Base(path)}
	f.kind = wal.KindOf(f.name)
	if f.kind == wal.Other {
		return nil, fmt.Errorf("%q is not the name of a WAL file", f.name)
	}
	var err error
	if f.timeline, err = wal.TimelineOf(f.name); err != nil {
		return nil, err
	}
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close() // only read: nothing to lose
	info, err := r.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	f.size, f.modified = info.Size(), info.ModTime()
	if f.id, err = fileid.Of(r); err != nil {
		return nil, err
	}
	f.settled = f.id.Settled(time.Now())
	if f.kind == wal.Segment || f.kind == wal.Partial {
		return f, f.inspectHeader(r)
	}
	// History and label files say nothing about their cluster; the data directory they lie in does.
	if data, _, err := control.Read(filepath.Join(filepath.Dir(filepath.Dir(path)), control.Name)); err == nil {
		f.cluster = data.SystemIdentifier
	}
	return f, nil
}

// inspectHeader reads what the first page of a segment says and compares it with name and length.
func (f *file) inspectHeader(r io.Reader) error {
	b := make([]byte, wal.HeaderLen)
	if n, err := io.ReadFull(r, b); err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%s has only %d bytes", f.path, n)
	} else if err != nil {
		return err
	}
	h, err := wal.ReadHeader(b)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	if f.size != int64(h.SegmentSize) {
		return fmt.Errorf("%s has %d bytes, but is a segment of %d", f.path, f.size, h.SegmentSize)
	}
	timeline, no, err := h.SegmentSize.ParseSegment(f.name[:24])
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	if want := h.SegmentSize.Start(no); h.Address != want {
		return fmt.Errorf("%s: its content is WAL from %s on, its name stands for %s", f.path, h.Address, want)
	}
	// The segment in which a timeline begins starts with a copy of the parent timeline's, page headers included.
	if h.Timeline > timeline {
		return fmt.Errorf("%s: its content is of timeline %d", f.path, h.Timeline)
	}
	f.segmentSize, f.cluster = h.SegmentSize, h.SystemIdentifier
	return nil
}

// errChanged says that a file is no longer the one that was inspected.
var errChanged = errors.New("the file changed while it was read")

// open reads the file from its start. A file that is no longer as it was inspected yields an error, if only at its end.
func (f *file) open() (io.ReadCloser, error) {
	r, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	return &content{File: r, of: f}, nil
}

// content checks and sums up what is read.
type content struct {
	*os.File
	of  *file
	n   int64
	sum uint32
}

// WriteTo hides that of os.File, which would pass Read by.
func (c *content) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

func (c *content) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	c.n += int64(n)
	if c.of.summed {
		c.sum = crc32.Update(c.sum, castagnoli, p[:n])
	}
	if err != io.EOF {
		return n, err
	}
	info, statErr := c.File.Stat()
	if statErr != nil {
		return n, statErr
	}
	if c.n != c.of.size || info.Size() != c.of.size || !info.ModTime().Equal(c.of.modified) {
		return n, fmt.Errorf("%s: %w", c.of.path, errChanged)
	}
	c.of.sum = c.sum
	return n, io.EOF
}
