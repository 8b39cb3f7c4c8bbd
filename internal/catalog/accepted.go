package catalog

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
)

// Accepted is a stretch of WAL of which somebody has said that it is lost, and that this is how it is; or one that retention has removed behind a backup that stays.
type Accepted struct {
	Stretch
	At      time.Time
	By      string
	Reason  string
	Removed bool   // by retention: nothing needs it
	Record  string // name of the object
}

// LoadAccepted reads the records of archive.GapDir that were not revoked, oldest first. Those that cannot be read, or make no sense, are in bad.
func LoadAccepted(ctx context.Context, a *archive.Archive, size wal.SegmentSize) (all []Accepted, bad []error, err error) {
	type record struct {
		archive.RecordHead
		Timeline wal.Timeline `json:"timeline"`
		First    string       `json:"first"`
		Last     string       `json:"last"`
		Reason   string       `json:"reason"`
		Revoked  bool         `json:"revoked"`
		Removed  bool         `json:"removed"`
	}
	for r, err := range archive.Records[record](ctx, a, archive.GapDir) {
		if err != nil && (r.Name == "" || ctx.Err() != nil) {
			return nil, nil, err
		}
		if err != nil {
			bad = append(bad, err)
			continue
		}
		t1, first, err1 := size.ParseSegment(r.Doc.First)
		t2, last, err2 := size.ParseSegment(r.Doc.Last)
		if err1 != nil || err2 != nil || t1 != r.Doc.Timeline || t2 != t1 || last < first {
			bad = append(bad, fmt.Errorf("read %s: %q to %q is no stretch of timeline %d", r.Name, r.Doc.First, r.Doc.Last, uint32(r.Doc.Timeline)))
			continue
		}
		s := Stretch{t1, first, last}
		all = slices.DeleteFunc(all, func(x Accepted) bool { return x.Stretch == s }) // what was said last counts
		if r.Doc.Revoked {
			continue
		}
		all = append(all, Accepted{Stretch: s, At: r.Doc.At, By: r.Doc.By, Reason: r.Doc.Reason, Removed: r.Doc.Removed, Record: r.Name})
	}
	return all, bad, nil
}

// Split cuts s where what was accepted of it begins or ends, and yields each piece with what accepts it; nil for nothing.
func (s Stretch) Split(accepted []Accepted) iter.Seq2[Stretch, *Accepted] {
	return func(yield func(Stretch, *Accepted) bool) {
		for n := s.First; ; {
			piece := Stretch{s.Timeline, n, s.Last}
			var by *Accepted
			for i := range accepted {
				a := &accepted[i]
				switch {
				case a.Timeline != s.Timeline || a.Last < n:
				case a.First > n:
					piece.Last = min(piece.Last, a.First-1)
				case by == nil || a.Last > by.Last:
					by = a
				}
			}
			if by != nil {
				piece.Last = min(s.Last, by.Last)
			}
			if !yield(piece, by) || piece.Last >= s.Last {
				return
			}
			n = piece.Last + 1
		}
	}
}
