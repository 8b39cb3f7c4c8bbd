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
