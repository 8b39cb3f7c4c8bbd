package retention

import (
	"fmt"
	"math"
	"strconv"

	"holdfast/internal/pg/wal"
)

// place is where a segment lies on its timeline: the last 16 digits of its name, as a number. Places ascend as segments do whatever the size of these, so
// that clusters with different ones can be judged side by side.
type place uint64

// end is behind all segments.
const end = place(math.MaxUint64)

// placeOf splits the name of a segment, 24 digits.
func placeOf(segment string) (wal.Timeline, place) {
	t, _ := strconv.ParseUint(segment[:8], 16, 32) // wal.IsSegment saw to the digits
	p, _ := strconv.ParseUint(segment[8:24], 16, 64)
	return wal.Timeline(t), place(p)
}

func placeAt(size wal.SegmentSize, n wal.SegmentNo) place {
	_, p := placeOf(size.Name(1, n))
	return p
}

func (p place) name(t wal.Timeline) string { return fmt.Sprintf("%s%016X", t, uint64(p)) }

// span is a stretch of a timeline, from one place to another, both included.
type span struct{ from, to place }

func (s span) has(p place) bool { return s.from <= p && p <= s.to }

func (s span) meets(o span) bool { return s.from <= o.to && o.from <= s.to }
