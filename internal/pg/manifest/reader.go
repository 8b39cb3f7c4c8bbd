package manifest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"holdfast/internal/pg/wal"
)

// maxLine bounds a line: the longest path there can be (MAXPGPATH, 1024 bytes, each escaped to six) fits many times.
const maxLine = 64 << 10

// maxRanges bounds the WAL ranges, which are kept: a backup during which that many promotions happened does not exist.
const maxRanges = 10_000

// A Reader reads one manifest.
//
//	for {
//		f, err := r.Next()
//		if err == io.EOF {
//			break // and only now is the whole list known to be sound
//		}
//		…
//	}
type Reader struct {
	in     *bufio.Reader
	sum    hash.Hash // of all lines read
	lines  int
	system uint64
	last   bool // the latest file had no comma behind it, or there is none at all
	ranges []WALRange
	err    error // what Next goes on returning
}

// NewReader reads the head of the manifest that r yields.
func NewReader(r io.Reader) (*Reader, error) {
	m := &Reader{in: bufio.NewReaderSize(r, maxLine), sum: sha256.New()}
	if err := m.head(); err != nil {
		return nil, m.where(err)
	}
	return m, nil
}

// where says at which line err arose.
func (m *Reader) where(err error) error {
	return fmt.Errorf("backup_manifest: line %d: %w", m.lines, err)
}

// SystemIdentifier is that of the cluster, or 0 in a manifest of version 1.
func (m *Reader) SystemIdentifier() uint64 { return m.system }

// WALRanges returns the WAL the backup needs, newest timeline first. It is known once Next returned io.EOF.
func (m *Reader) WALRanges() []WALRange { return m.ranges }

// Next returns the next file of the list. It returns io.EOF after the last, when also the rest of the manifest and its
// checksum have been found right; files returned before an error are not to be trusted. Whether a path occurs twice is not
// looked at.
func (m *Reader) Next() (File, error) {
	if m.err != nil {
		return File{}, m.err
	}
	f, err := m.next()
	if err != nil {
		if err != io.EOF {
			err = m.where(err)
		}
		m.err = err
	}
	return f, err
}

// line reads a line and returns it without its end, valid until the next call.
func (m *Reader) line() ([]byte, error) {
	m.lines++
	b, err := m.in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("longer than %d bytes", maxLine)
	case err == io.EOF:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	m.sum.Write(b)
	return b[:len(b)-1], nil
}

// expect reads a line that can only be want.
func (m *Reader) expect(want string) error {
	b, err := m.line()
	if err == nil && string(b) != want {
		err = fmt.Errorf("%s is not %s", quote(b), want)
	}
	return err
}

// quote shows the beginning of b.
func quote(b []byte) string { return fmt.Sprintf("%.120q", b) }

func (m *Reader) head() error {
	b, err := m.line()
	if err != nil {
		return err
	}
	switch string(b) {
	case fmt.Sprintf(versionLine, 1):
		return m.expect(filesLine)
	case fmt.Sprintf(versionLine, 2):
		if b, err = m.line(); err != nil {
			return err
		}
		_, err := fmt.Sscanf(string(b), systemLine, &m.system)
		if err != nil || m.system == 0 || fmt.Sprintf(systemLine, m.system) != string(b) {
			return fmt.Errorf("%s is not a system identifier", quote(b))
		}
		return m.expect(filesLine)
	}
	return fmt.Errorf("%s is not the beginning of a manifest of version 1 or 2", quote(b))
}

func (m *Reader) next() (File, error) {
	b, err := m.line()
	if err != nil {
		return File{}, err
	}
	if string(b) == endLine && (m.last || m.first()) {
		return File{}, m.tail()
	}
	if m.last {
		return File{}, fmt.Errorf("%s where the list of files ends", quote(b))
	}
	line, comma := bytes.CutSuffix(b, []byte(","))
	m.last = !comma
	f, err := parseFile(line)
	if err != nil {
		return File{}, err
	}
	if err := f.check(); err != nil {
		return File{}, err
	}
	if !bytes.Equal(f.append(nil), line) {
		return File{}, fmt.Errorf("%s is not written as PostgreSQL writes it", quote(line))
	}
	return f, nil
}

// first reports whether the line just read is the first behind the head.
func (m *Reader) first() bool {
	if m.system == 0 {
		return m.lines == 3
	}
	return m.lines == 4
}

func parseFile(line []byte) (File, error) {
	var j struct {
		Path         *string
		Encoded      *string `json:"Encoded-Path"`
		Size         int64
		LastModified string    `json:"Last-Modified"`
		Algorithm    Algorithm `json:"Checksum-Algorithm"`
		Checksum     string
	}
	if err := json.Unmarshal(line, &j); err != nil {
		return File{}, fmt.Errorf("%s: %w", quote(line), err)
	}
	f := File{Size: j.Size, Algorithm: j.Algorithm}
	var err error
	switch {
	case j.Path != nil:
		f.Path = *j.Path
	case j.Encoded != nil:
		b, err := hex.DecodeString(*j.Encoded)
		if err != nil {
			return File{}, fmt.Errorf("path %.120q: %w", *j.Encoded, err)
		}
		f.Path, f.HexPath = string(b), true
	}
	if f.Modified, err = time.Parse(timeLayout, j.LastModified); err != nil {
		return File{}, err
	}
	if f.Algorithm != None {
		if f.Checksum, err = hex.DecodeString(j.Checksum); err != nil {
			return File{}, fmt.Errorf("checksum %.120q: %w", j.Checksum, err)
		}
	}
	return f, nil
}

// tail reads what follows the list of files, and returns io.EOF when all is well.
func (m *Reader) tail() error {
	if err := m.expect(rangesLine); err != nil {
		return err
	}
	for more := true; more; {
		b, err := m.line()
		if err != nil {
			return err
		}
		if len(m.ranges) == maxRanges {
			return fmt.Errorf("more than %d WAL ranges", maxRanges)
		}
		var line []byte
		line, more = bytes.CutSuffix(b, []byte(","))
		r, err := parseRange(line)
		if err != nil {
			return err
		}
		m.ranges = append(m.ranges, r)
	}
	if err := m.expect(endLine); err != nil {
		return err
	}
	want := fmt.Sprintf(checksumLine, m.sum.Sum(nil))
	if err := m.expect(want); err != nil {
		return fmt.Errorf("the manifest's own checksum: %w", err)
	}
	if _, err := m.in.ReadByte(); err != io.EOF {
		if err == nil {
			err = errors.New("something follows the end")
		}
		return err
	}
	return io.EOF
}

func parseRange(line []byte) (WALRange, error) {
	var j struct {
		Timeline wal.Timeline
		Start    string `json:"Start-LSN"`
		End      string `json:"End-LSN"`
	}
	if err := json.Unmarshal(line, &j); err != nil {
		return WALRange{}, fmt.Errorf("%s: %w", quote(line), err)
	}
	r := WALRange{Timeline: j.Timeline}
	var err error
	if r.Start, err = wal.ParseLSN(j.Start); err != nil {
		return WALRange{}, err
	}
	if r.End, err = wal.ParseLSN(j.End); err != nil {
		return WALRange{}, err
	}
	if !bytes.Equal(r.append(nil), line) {
		return WALRange{}, fmt.Errorf("%s is not written as PostgreSQL writes it", quote(line))
	}
	return r, nil
}
