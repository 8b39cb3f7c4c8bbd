package catalog

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
)

// Reach says which WAL the archive has to replay over a backup along a path.
type Reach struct {
	SegmentSize wal.SegmentSize
	First       string    // the segment replaying begins with
	Consistent  string    // the segment that makes the backup consistent
	Last        string    // the last segment before the first gap; "" where there is none
	End         wal.LSN   // behind what there is of Last
	Archived    time.Time // when Last was stored, or the youngest of its pieces
	Pieces      bool      // of Last the archive has pieces, which may end before it does
}

// MissingWALError says that the archive lacks WAL without which the target cannot be reached.
type MissingWALError struct {
	Backup  string
	Target  string
	Missing []string // names, at most maxMissing
	More    bool     // there are further ones
	Reach   Reach
}

// maxMissing is how many missing segments an error names.
const maxMissing = 10

func (e *MissingWALError) Error() string {
	names := strings.Join(e.Missing, ", ")
	if e.More {
		names += " and others"
	}
	return fmt.Sprintf("the archive lacks WAL that %s needs for %s: %s", e.Backup, e.Target, names)
}

// Hint says how far the archive reaches.
func (e *MissingWALError) Hint() string {
	if e.Reach.Last == "" {
		return "not even the first segment is there: the backup cannot be made consistent. Look whether the server archives (pg_stat_archiver)"
	}
	ends := "which ends at %s and was archived at %s; "
	if e.Reach.Pieces {
		ends = "of which the archive has pieces, up to %s, the youngest stored at %s; "
	}
	return fmt.Sprintf("WAL is continuous to segment %s, "+ends+"the rest may still lie in the pg_wal of the server", e.Reach.Last, e.Reach.End, FormatTime(e.Reach.Archived))
}

// Reach looks how far the archived WAL reaches from a choice's backup on. WAL that is missing between the backup's start
// and its end, or before a target that is an LSN, is a *MissingWALError. Whether a time, a transaction or a restore point
// is reached only PostgreSQL can tell.
func (ch Choice) Reach(ctx context.Context, a *archive.Archive) (Reach, error) {
	b := ch.Backup
	size, err := b.SegmentSize()
	if err != nil {
		return Reach{}, err
	}
	start, ok := b.StartLSN()
	if !ok { // of WAL-G before 0.1.3: somewhere in the segment it is named after
		_, n, err := size.ParseSegment(b.Segment())
		if err != nil {
			return Reach{}, err
		}
		start = size.Start(n)
	}
	until, ok := b.FinishLSN()
	if !ok {
		until = start + 1 // WAL-E did not keep it where we can see it
	}
	r := Reach{SegmentSize: size, End: start}
	legs := ch.Path.from(b.Timeline())
	r.First = legs.segment(size, size.Segment(start))
	r.Consistent = legs.segment(size, size.LastSegment(until))
	if err := r.follow(ctx, a, legs, size.Segment(start)); err != nil {
		return Reach{}, err
	}
	if ch.Target.Kind == AtLSN {
		until = max(until, ch.Target.LSN)
	}
	if until <= r.End {
		return r, nil
	}
	return r, r.missing(ctx, a, legs, ch, until)
}

// leg returns the index of the leg whose file of segment n is replayed: the youngest that had begun by then.
func (p Path) leg(size wal.SegmentSize, n wal.SegmentNo) int {
	for i := len(p) - 1; i > 0; i-- {
		if size.Segment(p[i].Begin) <= n {
			return i
		}
	}
	return 0
}

// segment names the file of segment n along p.
func (p Path) segment(size wal.SegmentSize, n wal.SegmentNo) string {
	return size.Name(p[p.leg(size, n)].Timeline, n)
}

// follow moves r's end over the archived segments from n on, until one is missing.
func (r *Reach) follow(ctx context.Context, a *archive.Archive, legs Path, n wal.SegmentNo) error {
	size := r.SegmentSize
	for i := legs.leg(size, n); i < len(legs); i++ {
		until := wal.SegmentNo(1<<64 - 1)
		if i+1 < len(legs) {
			until = size.Segment(legs[i+1].Begin)
		}
		next, err := r.along(ctx, a, legs[i].Timeline, n, until)
		if err != nil || next < until {
			return err
		}
		n = next
	}
	return nil
}

// along follows one timeline's segments from n to before until, and returns the first that is missing or ends early.
func (r *Reach) along(ctx context.Context, a *archive.Archive, t wal.Timeline, n, until wal.SegmentNo) (wal.SegmentNo, error) {
	size := r.SegmentSize
	for n < until {
		next, err := r.whole(ctx, a, t, n, until)
		if n = next; err != nil || n == until {
			return n, err
		}
		tail, err := a.Tail(ctx, size.Name(t, n))
		if err != nil || tail.Held == 0 {
			return n, err
		}
		tail.Held = min(tail.Held, int64(size))
		r.Last, r.End, r.Archived, r.Pieces = tail.Name, size.Start(n)+wal.LSN(tail.Held), tail.Modified, true
		if tail.Held < int64(size) {
			return n, nil
		}
		n++
	}
	return n, nil
}

// whole is along for what is archived whole.
func (r *Reach) whole(ctx context.Context, a *archive.Archive, t wal.Timeline, n, until wal.SegmentNo) (wal.SegmentNo, error) {
	size := r.SegmentSize
	first := size.Name(t, n)
	// One digit less sorts before the segment itself, whatever its extension.
	for o, err := range a.Store().List(ctx, archive.WALDir, archive.WALDir+first[:len(first)-1]) {
		if err != nil {
			return n, fmt.Errorf("list WAL: %w", err)
		}
		name, _ := compress.Split(path.Base(o.Name))
		if o.IsDir() || !wal.IsSegment(name) || o.Size == 0 { // nothing restores from an empty object
			continue
		}
		timeline, no, err := size.ParseSegment(name)
		if err != nil || timeline < t || (timeline == t && no < n) {
			continue
		}
		if timeline > t || no > n || n >= until {
			break
		}
		n++
		r.Last, r.End, r.Archived, r.Pieces = name, size.Start(n), o.Modified, false
	}
	return n, nil
}

// missing makes the error that names what the archive lacks between r's end and until.
func (r *Reach) missing(ctx context.Context, a *archive.Archive, legs Path, ch Choice, until wal.LSN) error {
	size := r.SegmentSize
	e := &MissingWALError{Backup: ch.Backup.Name, Target: ch.Target.String(), Reach: *r}
	for n := size.Segment(r.End); n <= size.LastSegment(until); {
		i := legs.leg(size, n)
		last := size.LastSegment(until)
		if i+1 < len(legs) {
			last = min(last, size.Segment(legs[i+1].Begin)-1)
		}
		names, err := a.MissingWAL(ctx, legs[i].Timeline, n, last, size, maxMissing+1-len(e.Missing))
		if err != nil {
			return err
		}
		if e.Missing = append(e.Missing, names...); len(e.Missing) > maxMissing {
			e.Missing, e.More = e.Missing[:maxMissing], true
			break
		}
		n = last + 1
	}
	if len(e.Missing) == 0 { // it is there in a codec that cannot be read, or has come this moment
		e.Missing = []string{legs.segment(size, size.Segment(r.End))}
	}
	return e
}
