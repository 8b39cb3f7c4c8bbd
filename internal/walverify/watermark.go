package walverify

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// Watermark is a record in archive.WatermarkDir: which WAL was found, and what was not. The newest one counts.
type Watermark struct {
	archive.RecordHead
	System   uint64          `json:"system_identifier,omitempty"`
	Timeline wal.Timeline    `json:"timeline"`     // that the cluster was on
	Size     wal.SegmentSize `json:"segment_size"` // bytes
	Path     []Left          `json:"path"`         // the timelines that led to it, oldest first
	Rows     []Seen          `json:"rows"`         // ascending, each beginning where the one before ends
	Walked   time.Time       `json:"walked"`       // when all of their names were looked at last
}

// Left is a timeline that was left for the next.
type Left struct {
	Timeline wal.Timeline `json:"timeline"`
	Switch   string       `json:"switch"` // an LSN
}

// Seen is a stretch of segments that are all archived, or of which none is.
type Seen struct {
	First   string `json:"first"`
	Last    string `json:"last"`
	Count   uint64 `json:"count"`
	Missing bool   `json:"missing,omitempty"`
}

const (
	// walkEvery is after which time all names are looked at again.
	walkEvery = 24 * time.Hour
	// askAgain is Request.AskAgain where that is 0: of most archives it is all, by a request for each thousand names.
	askAgain = 10_000
	// overlap is how many segments before the watermark are always looked at again.
	overlap = 16
	// worth is how many segments a watermark must save.
	worth = 4 * overlap
	// maxHoles bounds how many missing stretches a watermark remembers: each is looked at again, by a listing of its own.
	maxHoles = 16
	maxRows  = 10_000
)

// watermark is a Watermark that holds for what is looked at now.
type watermark struct {
	rows   []Row // from the first segment that is needed to last: Archived, or Lost, which is to be looked at again
	last   wal.SegmentNo
	walked time.Time
	whole  wal.SegmentNo // the last that it tells of
	lost   uint64        // how many segments it says are missing
}

// fromWatermark returns what need not be looked at again; nil is nothing.
func (w *walk) fromWatermark() (*watermark, error) {
	var newest *archive.Record[Watermark]
	var bad error
	for r, err := range archive.Records[Watermark](w.ctx, w.a, archive.WatermarkDir) {
		if err != nil && (r.Name == "" || w.ctx.Err() != nil) {
			return nil, err
		}
		newest, bad = &r, err
	}
	if newest == nil || w.r.All {
		return nil, nil
	}
	if bad == nil {
		mark, why, err := w.trust(newest)
		if err != nil || why == nil {
			return mark, err
		}
		bad = why
	}
	w.note("all names are looked at: %v", bad)
	return nil, nil
}

// trust checks a watermark: why says why it does not hold.
func (w *walk) trust(record *archive.Record[Watermark]) (mark *watermark, why, err error) {
	doc := &record.Doc
	switch {
	case doc.Size != w.r.Size || doc.System != 0 && w.r.System != 0 && doc.System != w.r.System:
		return nil, errors.New("the watermark is of another cluster"), nil
	case w.r.Now.Sub(doc.Walked) >= walkEvery || doc.Walked.After(w.r.Now.Add(walkEvery)):
		return nil, fmt.Errorf("they were last at %s, as they are once a day", doc.Walked.UTC().Format(time.RFC3339)), nil
	case len(doc.Rows) == 0 || len(doc.Rows) > maxRows:
		return nil, fmt.Errorf("the watermark %s makes no sense", record.Name), nil
	}
	rows, why := w.decode(doc)
	if why != nil {
		return nil, fmt.Errorf("the watermark %s does not hold: %w", record.Name, why), nil
	}
	mark = &watermark{walked: doc.Walked, whole: rows[len(rows)-1].Last, lost: missing(rows)}
	mark.last = min(mark.whole, w.last)
	if mark.last < w.first+overlap {
		return nil, nil, nil // as good as nothing
	}
	if rows[0].First > w.first {
		return nil, fmt.Errorf("the watermark is of %s to %s, and WAL is needed from %s on", doc.Rows[0].First, doc.Rows[len(doc.Rows)-1].Last,
			w.r.Size.Name(w.stretchAt(w.first), w.first)), nil
	}
	mark.last -= overlap
	for _, r := range rows {
		r.First, r.Last = max(r.First, w.first), min(r.Last, mark.last)
		if r.First <= r.Last {
			mark.rows = append(mark.rows, r)
		}
	}
	lacks, err := w.sample(mark.rows)
	if err == nil && lacks != "" {
		why = fmt.Errorf("%s was found before %s, and is not there any more", lacks, doc.At.UTC().Format(time.RFC3339))
	}
	return mark, why, err
}

// decode reads the rows of a watermark, which must lie on the path as it is now.
func (w *walk) decode(doc *Watermark) (rows []Row, why error) {
	if len(doc.Path) >= len(w.path) || w.path[len(doc.Path)].Timeline != doc.Timeline {
		return nil, fmt.Errorf("it is of timeline %d, which does not lead to timeline %d", uint32(doc.Timeline), uint32(w.r.Timeline))
	}
	for i, left := range doc.Path {
		if w.path[i].Timeline != left.Timeline || w.path[i].End.String() != left.Switch {
			return nil, fmt.Errorf("timeline %d was left at %s then, and the history says now that timeline %d was at %s",
				uint32(left.Timeline), left.Switch, uint32(w.path[i].Timeline), w.path[i].End)
		}
	}
	for i, row := range doc.Rows {
		t, first, err1 := w.r.Size.ParseSegment(row.First)
		t2, last, err2 := w.r.Size.ParseSegment(row.Last)
		s := catalog.Stretch{Timeline: t, First: first, Last: last}
		switch {
		case err1 != nil || err2 != nil || t != t2 || last < first || uint64(last-first)+1 != row.Count:
			return nil, fmt.Errorf("%q to %q are not %d segments", row.First, row.Last, row.Count)
		case i > 0 && first != rows[len(rows)-1].Last+1:
			return nil, fmt.Errorf("there is a gap before %s", row.First)
		case !w.along(s):
			return nil, fmt.Errorf("%s to %s is not on the way to timeline %d any more", row.First, row.Last, uint32(w.r.Timeline))
		}
		r := Row{Stretch: s}
		if row.Missing {
			r.Found = Lost
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// missing counts the segments of rows that are not archived.
func missing(rows []Row) (n uint64) {
	for _, r := range rows {
		if r.Found != Archived {
			n += r.Count()
		}
	}
	return n
}

// along reports whether the path passes along all of s.
func (w *walk) along(s catalog.Stretch) bool {
	for on := range w.path.Stretches(w.r.Size, s.First) {
		return on.Timeline == s.Timeline && s.Last <= on.Last
	}
	return false
}

// sample asks again for what was found, all of it or as many segments as are asked for from some place on, and returns the name of one that is not there; "" for none.
func (w *walk) sample(rows []Row) (lacks string, err error) {
	var total, at uint64
	for _, r := range rows {
		if r.Found == Archived {
			total += r.Count()
		}
	}
	left := min(total, uint64(cmp.Or(max(w.r.AskAgain, 0), askAgain)))
	if left < total {
		at = rand.Uint64N(total)
	}
	for left > 0 {
		for _, r := range rows {
			if r.Found != Archived || left == 0 {
				continue
			}
			if at >= r.Count() {
				at -= r.Count()
				continue
			}
			n := min(left, r.Count()-at)
			s := catalog.Stretch{Timeline: r.Timeline, First: r.First + wal.SegmentNo(at), Last: r.First + wal.SegmentNo(at+n-1)}
			left, at = left-n, 0
			if lacks, err := w.lacks(s); err != nil || lacks != "" {
				return lacks, err
			}
		}
	}
	return "", nil
}

// lacks returns the first segment of s that is not archived; "" for none.
func (w *walk) lacks(s catalog.Stretch) (string, error) {
	next := s.First
	for n, err := range w.list(s) {
		if err != nil {
			return "", err
		}
		if n != next {
			break
		}
		next++
	}
	if next <= s.Last {
		return w.r.Size.Name(s.Timeline, next), nil
	}
	return "", nil
}

// keep stores how far all was found, for the next look, and removes older watermarks. A host that may not write goes without.
func (w *walk) keep(known *watermark) {
	doc := Watermark{RecordHead: w.r.By, System: w.r.System, Timeline: w.r.Timeline, Size: w.r.Size, Walked: w.r.Now}
	if known != nil {
		doc.Walked = known.walked
	}
	for _, leg := range w.path[:len(w.path)-1] {
		doc.Path = append(doc.Path, Left{leg.Timeline, leg.End.String()})
	}
	var seen []Row
	holes := 0
	for _, r := range w.out.Rows {
		if r.Found == Delayed || r.Found == Uploading || len(seen) == maxRows {
			break
		}
		seen = append(seen, r)
	}
	for len(seen) > 0 && seen[len(seen)-1].Found != Archived {
		seen = seen[:len(seen)-1]
	}
	for _, r := range seen {
		late := r.Found != Archived
		if n := len(doc.Rows); late && (n == 0 || !doc.Rows[n-1].Missing) {
			holes++
		}
		doc.Rows = append(doc.Rows, Seen{w.r.Size.Name(r.Timeline, r.First), w.r.Size.Name(r.Timeline, r.Last), r.Count(), late})
	}
	if len(seen) == 0 || holes > maxHoles {
		return
	}
	whole := seen[len(seen)-1].Last
	if whole < w.first+worth || known != nil && whole <= known.whole && missing(seen) == known.lost {
		return
	}
	name, err := w.a.AddRecord(w.ctx, archive.WatermarkDir, "", doc)
	if err != nil {
		w.note("how far all was found is not remembered, and the next look begins from the start: %v", err)
		return
	}
	var old []string
	for r, err := range archive.Records[struct{}](w.ctx, w.a, archive.WatermarkDir) {
		if err != nil && r.Name == "" {
			return // they do no harm
		}
		if r.Name < name {
			old = append(old, r.Name)
		}
	}
	for _, r := range slices.Backward(old) {
		if w.a.RemoveRecord(w.ctx, r) != nil {
			return
		}
	}
}
