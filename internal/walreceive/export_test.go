package walreceive

import (
	"io"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
)

// Intact is intact.
func Intact(f io.ReaderAt, n int64, size wal.SegmentSize) (int64, error) { return intact(f, n, size) }

// Mergeable is mergeable, and how many pieces make it necessary.
func Mergeable(pieces []archive.TailPiece) (start, end int64) { return mergeable(pieces) }

// MaxPieces and MergePieces are those of mergeable.
const (
	MaxPieces   = maxPieces
	MergePieces = mergePieces
)

// Line is a line without a receiver.
type Line struct{ line }

// NewLine is one that receives from next on, with its spool in dir.
func NewLine(dir string, size wal.SegmentSize, t wal.Timeline, next wal.LSN) *Line {
	return &Line{line{spool: &spool{dir: dir}, changed: make(chan struct{}), size: size, timeline: t, next: next, begun: next, base: next, baseOf: t}}
}

// Take is take.
func (l *Line) Take(t wal.Timeline, at wal.LSN, data []byte) error { return l.take(t, at, data) }

// Leave is leave.
func (l *Line) Leave(t wal.Timeline, start wal.LSN) { l.leave(t, start) }

// Store says that the first of its segments is in the store up to an offset, or archived.
func (l *Line) Store(upTo int64, archived bool) {
	s := l.segments[0]
	if l.change(func() { s.tailed = upTo }); archived {
		l.archived(s)
	}
}

// Reported is reported.
func (l *Line) Reported() (written, synced, stored wal.LSN) { return l.reported() }
