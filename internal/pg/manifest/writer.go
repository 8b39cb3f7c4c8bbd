package manifest

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// A Writer writes one manifest. After an error it only repeats that error.
type Writer struct {
	out   *bufio.Writer
	sum   hash.Hash // of all that was written
	line  []byte    // reused
	files int
	err   error
}

// NewWriter returns a Writer to w. With a systemIdentifier the manifest is of version 2, which PostgreSQL 17 and later write
// and only they can read; with 0 it is of version 1. Nothing is written before the first Add or Close.
func NewWriter(w io.Writer, systemIdentifier uint64) *Writer {
	m := &Writer{out: bufio.NewWriter(w), sum: sha256.New()}
	if systemIdentifier == 0 {
		m.line = fmt.Appendf(nil, versionLine+"\n"+filesLine, 1)
	} else {
		m.line = fmt.Appendf(nil, versionLine+"\n"+systemLine+"\n"+filesLine, 2, systemIdentifier)
	}
	m.flush()
	return m
}

// Add appends a file. Order does not matter, but no path may be added twice.
func (m *Writer) Add(f File) error {
	if m.err != nil {
		return m.err
	}
	if err := f.check(); err != nil {
		m.err = fmt.Errorf("backup_manifest: %w", err)
		return m.err
	}
	m.line = append(m.line, separator(m.files)...)
	m.line = f.append(m.line)
	m.files++
	return m.flush()
}

// separator ends the line before the n-th element of a list.
func separator(n int) string {
	if n == 0 {
		return "\n"
	}
	return ",\n"
}

// Close ends the manifest with the WAL the backup needs, newest timeline first, at least one range. It does not close the
// underlying writer.
func (m *Writer) Close(ranges []WALRange) error {
	if m.err != nil {
		return m.err
	}
	if len(ranges) == 0 {
		m.err = errors.New("backup_manifest: no WAL range")
		return m.err
	}
	m.line = append(m.line, "\n"+endLine+"\n"+rangesLine...)
	for i, r := range ranges {
		m.line = append(m.line, separator(i)...)
		m.line = r.append(m.line)
	}
	m.line = append(m.line, "\n"+endLine+"\n"...)
	m.flush()
	m.line = fmt.Appendf(m.line, checksumLine+"\n", m.sum.Sum(nil))
	if m.flush() == nil {
		m.err = m.out.Flush()
	}
	if m.err != nil {
		return m.err
	}
	m.err = errors.New("backup_manifest: written already")
	return nil
}

// flush hands line on and empties it.
func (m *Writer) flush() error {
	if m.err == nil {
		m.sum.Write(m.line)
		_, m.err = m.out.Write(m.line)
	}
	m.line = m.line[:0]
	return m.err
}
