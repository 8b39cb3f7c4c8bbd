package drill

import (
	"errors"
	"math/rand/v2"

	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
)

// ErrNoMoment says that there is no moment to choose from.
var ErrNoMoment = errors.New("no moment can be restored for certain: `holdfast ribbon` says why")

// Moment draws a position along a ribbon's main path that can be restored, each that was archived being as likely as any other. The last segment is left out but for its
// begin, so that there is WAL behind the position, at which PostgreSQL notices that it was reached.
func Moment(r *ribbon.Ribbon, size wal.SegmentSize, random *rand.Rand) (wal.Timeline, wal.LSN, error) {
	type stretch struct{ from, to wal.LSN }
	var all []stretch
	var sum uint64
	for _, s := range r.Main {
		if s.Verdict != ribbon.Restorable {
			continue
		}
		to := s.To
		if to > 0 {
			to = size.Start(size.Segment(to - 1))
		}
		to = max(to, s.From)
		all = append(all, stretch{s.From, to})
		sum += uint64(to-s.From) + 1
	}
	if sum == 0 {
		return 0, 0, ErrNoMoment
	}
	n := random.Uint64N(sum)
	for _, s := range all {
		if length := uint64(s.to-s.from) + 1; n >= length {
			n -= length
			continue
		}
		return wal.Timeline(r.Timeline), s.from + wal.LSN(n), nil
	}
	return 0, 0, ErrNoMoment // not reached: n is below the sum
}
