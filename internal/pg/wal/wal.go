// Package wal names and counts PostgreSQL's write-ahead log: positions, timelines, segments and the names of files.
//
// Facts are from src/include/access/xlog_internal.h and xlogdefs.h of PostgreSQL 10 to 18. Sizes are always passed in:
// initdb fixes the segment size per cluster, and there is no default to fall back on.
package wal

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// LSN is a position in the write-ahead log: a byte's distance from the log's start. 0 is no position.
type LSN uint64

// ParseLSN reads an LSN as PostgreSQL prints it, "16/B374D848".
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("LSN %q is not of the form X/Y", s)
	}
	h, err1 := parseHex32(hi)
	l, err2 := parseHex32(lo)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("LSN %q is not two hexadecimal numbers of at most 8 digits", s)
	}
	return LSN(uint64(h)<<32 | uint64(l)), nil
}

func parseHex32(s string) (uint32, error) {
	if len(s) == 0 || len(s) > 8 || s[0] == '+' || s[0] == '-' {
		return 0, strconv.ErrSyntax
	}
	v, err := strconv.ParseUint(s, 16, 32)
	return uint32(v), err
}

// String prints l as PostgreSQL does.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint64(l)>>32, uint32(l)) }

// Timeline numbers a history of the cluster; the first is 1, and each promotion begins another.
type Timeline uint32

// String prints t as the 8 digits file names begin with.
func (t Timeline) String() string { return fmt.Sprintf("%08X", uint32(t)) }

// SegmentSize is the length of a WAL file in bytes, a power of two from 1 MiB to 1 GiB.
// initdb fixes it and pg_control and every segment's first page record it.
type SegmentSize uint64

// Bounds of SegmentSize (WalSegMinSize and WalSegMaxSize).
const (
	MinSegmentSize SegmentSize = 1 << 20
	MaxSegmentSize SegmentSize = 1 << 30
)

// Valid reports whether PostgreSQL allows segments of s bytes.
func (s SegmentSize) Valid() bool {
	return s >= MinSegmentSize && s <= MaxSegmentSize && bits.OnesCount64(uint64(s)) == 1
}

// SegmentNo counts segments from the log's start, whatever their timeline.
type SegmentNo uint64

// Segment returns the number of the WAL file that holds the byte at lsn (XLByteToSeg). A border belongs to the
// file that starts there.
func (s SegmentSize) Segment(lsn LSN) SegmentNo { return SegmentNo(uint64(lsn) / uint64(s)) }

// LastSegment returns the number of the WAL file that holds the last byte before lsn (XLByteToPrevSeg), the file
// needed to replay up to lsn.
func (s SegmentSize) LastSegment(lsn LSN) SegmentNo {
	if lsn == 0 {
		return 0
	}
	return s.Segment(lsn - 1)
}

// Start returns the position of the first byte of segment n.
func (s SegmentSize) Start(n SegmentNo) LSN { return LSN(uint64(n) * uint64(s)) }

// perID is how many segments share the middle eight digits of a name.
func (s SegmentSize) perID() uint64 { return 0x1_0000_0000 / uint64(s) }

// Name names segment n of timeline t (XLogFileName).
func (s SegmentSize) Name(t Timeline, n SegmentNo) string {
	return fmt.Sprintf("%08X%08X%08X", uint32(t), uint64(n)/s.perID(), uint64(n)%s.perID())
}

// ParseSegment reads a segment's name, 24 upper-case hexadecimal digits.
func (s SegmentSize) ParseSegment(name string) (Timeline, SegmentNo, error) {
	if !IsSegment(name) {
		return 0, 0, fmt.Errorf("%q is not the name of a WAL segment", name)
	}
	t, _ := strconv.ParseUint(name[:8], 16, 32)
	id, _ := strconv.ParseUint(name[8:16], 16, 32)
	seg, _ := strconv.ParseUint(name[16:], 16, 32)
	if seg >= s.perID() {
		return 0, 0, fmt.Errorf("%q does not name a WAL segment of %d MiB: its last eight digits must be below %X", name, s>>20, s.perID())
	}
	return Timeline(t), SegmentNo(id*s.perID() + seg), nil
}

// Kind says what a file of pg_wal is, by its name alone.
type Kind int

// The files that archive_command may be given, and Other for anything else.
const (
	Other   Kind = iota
	Segment      // 24 digits
	Partial      // segment + ".partial": the last, unfinished file of a timeline that was left
	History      // 8 digits + ".history": where a timeline came from
	Label        // segment + "." + 8 digits + ".backup": what a base backup left behind
)

// KindOf classifies the base name of a file of pg_wal (IsXLogFileName and its siblings).
func KindOf(name string) Kind {
	switch {
	case IsSegment(name):
		return Segment
	case len(name) == 32 && IsSegment(name[:24]) && name[24:] == ".partial":
		return Partial
	case len(name) == 16 && isHex(name[:8]) && name[8:] == ".history":
		return History
	case len(name) == 40 && IsSegment(name[:24]) && name[24] == '.' && isHex(name[25:33]) && name[33:] == ".backup":
		return Label
	}
	return Other
}

// IsSegment reports whether name is 24 upper-case hexadecimal digits.
func IsSegment(name string) bool { return len(name) == 24 && isHex(name) }

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

// HistoryName names the history file of timeline t.
func HistoryName(t Timeline) string { return t.String() + ".history" }

// TimelineOf reads the timeline that a WAL file's name begins with.
func TimelineOf(name string) (Timeline, error) {
	if KindOf(name) == Other {
		return 0, fmt.Errorf("%q is not the name of a WAL file", name)
	}
	t, err := strconv.ParseUint(name[:8], 16, 32)
	return Timeline(t), err
}
