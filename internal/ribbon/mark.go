package ribbon

import (
	"cmp"
	"slices"
	"time"

	"holdfast/internal/pg/wal"
)

// mark is what is known of segments first to last of a timeline.
type mark struct {
	first, last wal.SegmentNo
	when        time.Time
	text        string
	unread      bool
	gap         *Gap
}

// marks are of one timeline, ascending and without overlap.
type marks []mark

// paint lays m over what is there.
func (l marks) paint(m mark) marks {
	if m.first > m.last {
		return l
	}
	i, _ := slices.BinarySearchFunc(l, m.first, func(o mark, n wal.SegmentNo) int { return cmp.Compare(o.last, n) })
	j := i
	for j < len(l) && l[j].first <= m.last {
		j++
	}
	with := []mark{m}
	if i < j {
		if left := l[i]; left.first < m.first {
			left.last = m.first - 1
			with = []mark{left, m}
		}
		if right := l[j-1]; right.last > m.last {
			right.first = m.last + 1
			with = append(with, right)
		}
	}
	return slices.Replace(l, i, j, with...)
}

// at returns the mark on segment n, nil where there is none, and up to which segment that is so.
func (l marks) at(n wal.SegmentNo) (*mark, wal.SegmentNo) {
	i, _ := slices.BinarySearchFunc(l, n, func(o mark, n wal.SegmentNo) int { return cmp.Compare(o.last, n) })
	switch {
	case i == len(l):
		return nil, 1<<64 - 1
	case l[i].first > n:
		return nil, l[i].first - 1
	}
	return &l[i], l[i].last
}
