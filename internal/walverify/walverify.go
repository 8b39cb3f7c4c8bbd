// Package walverify looks whether the archive has all WAL between its oldest backup and where the cluster is, by names alone.
//
// It walks along the history of the cluster's timeline. What is missing among the newest segments may be on its way; what is missing behind those
// is lost. What was found, and what was not, is kept in the archive, a watermark, and the next look begins there: it asks again for what was missing,
// for ten thousand segments of what was found, which is all of it in most archives, and for everything once a day. What is in the segments is for package verify.
package walverify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// Status is the outcome of a check.
type Status int

// The outcomes, the worse the higher; they are exit statuses too, as Nagios has them.
const (
	OK Status = iota
	Warning
	Failure
)

func (s Status) String() string { return [...]string{"OK", "WARNING", "FAILURE"}[s] }

// MarshalText makes it a word in JSON.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Found says what became of a stretch of segments. Widths of columns follow WAL-G's, where it is a number too.
type Found int

// What may have become of them.
const (
	Archived  Found = iota
	Delayed         // among the newest: perhaps PostgreSQL has not asked for them to be archived yet
	Uploading       // just behind those: perhaps they are on their way
	Lost
	Accepted // lost, and somebody has said that this is how it is
)

func (f Found) String() string {
	return [...]string{"FOUND", "MISSING_DELAYED", "MISSING_UPLOADING", "MISSING_LOST", "MISSING_ACCEPTED"}[f]
}

// MarshalText makes it a word in JSON.
func (f Found) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// Request says where the cluster is, and from where on WAL is needed.
type Request struct {
	Timeline wal.Timeline
	LSN      wal.LSN
	System   uint64 // identifier of the cluster, 0 where that is not known: only its backups count
	Size     wal.SegmentSize
	Backup   string // WAL is needed from its start on; "" is the oldest backup that is not permanent and not condemned

	// Backups that were finished before are kept for the moment they restore to: they need their own WAL, and none behind it, unless no other leads to where the
	// cluster is. The zero value is no such time.
	Since time.Time

	Delayed   int // how many of the newest segments may be missing for a while
	Uploading int // and how many behind those

	All      bool // look at all names, whatever the watermark says
	AskAgain int  // of what the watermark says was found ask for so many segments again; 0 means 10,000
	Now      time.Time
	By       archive.RecordHead // of the watermark
}

// Row is segments of one timeline that became of the same.
type Row struct {
	catalog.Stretch
	Found    Found
	Accepted *catalog.Accepted // of Accepted
}

// Count returns the number of segments.
func (r Row) Count() uint64 { return uint64(r.Last-r.First) + 1 }

// Integrity is the outcome of looking for segments.
type Integrity struct {
	Status Status
	Rows   []Row  // ascending
	Backup string // from whose start on; "" where there is none
	Since  string // the segment from which on names were looked at; "" where that is from the start
	Notes  []string
}

// NoHistoryError says that the way to the cluster's timeline is not known.
type NoHistoryError struct{ error }

func (e *NoHistoryError) Unwrap() error { return e.error }

// Hint says how to go on.
func (e *NoHistoryError) Hint() string {
	return "the history file lies in the pg_wal of the server, which archives it: look whether archiving works (pg_stat_archiver). `holdfast wal-push pg_wal/NNNNNNNN.history` stores it"
}

// Check looks for every segment between the start of the backup and the one that the server is writing.
func Check(ctx context.Context, a *archive.Archive, c *catalog.Catalog, accepted []catalog.Accepted, r Request) (*Integrity, error) {
	if r.LSN == 0 {
		return nil, errors.New("LSN 0/0 is no position")
	}
	p, err := c.PathTo(r.Timeline)
	if err != nil {
		return nil, &NoHistoryError{err}
	}
	if len(p) == 1 && r.Timeline > 1 {
		return nil, &NoHistoryError{fmt.Errorf("the archive has no %s: which timelines lead to the cluster's is not known", wal.HistoryName(r.Timeline))}
	}
	w := &walk{ctx: ctx, a: a, path: p, accepted: accepted, r: r, out: &Integrity{}}
	if err := w.begin(c); err != nil {
		return nil, err
	}
	current := r.Size.LastSegment(r.LSN)
	if current == 0 || current-1 < w.first {
		return w.out, nil // nothing is finished since the backup
	}
	w.last = current - 1
	w.tails = map[string]archive.Tail{}
	for t, err := range a.AllTails(ctx) { // before segments are: they go once theirs is whole
		if err != nil {
			return nil, err
		}
		w.tails[t.Name] = t
	}
	if err := w.lookAtMoments(); err != nil {
		return nil, err
	}
	known, err := w.fromWatermark()
	if err != nil {
		return nil, err
	}
	if err := w.look(known); err != nil {
		return nil, err
	}
	w.judge()
	w.keep(known)
	w.unfinished()
	w.out.Rows = slices.Concat(w.moments, w.out.Rows)
	return w.out, nil
}

// walk is one check at work.
type walk struct {
	ctx      context.Context
	a        *archive.Archive
	path     catalog.Path
	accepted []catalog.Accepted
	r        Request

	first, last wal.SegmentNo           // that are needed
	tails       map[string]archive.Tail // by segment: of which there are pieces
	noBackup    bool
	apart       []catalog.Stretch // WAL of backups from which nothing else is restored
	moments     []Row             // what became of it
	out         *Integrity
}

func (w *walk) note(format string, args ...any) {
	w.out.Notes = append(w.out.Notes, fmt.Sprintf(format, args...))
}

// begin finds the first segment that is needed.
func (w *walk) begin(c *catalog.Catalog) error {
	if w.r.Backup != "" {
		b, err := c.Find(w.r.Backup)
		if err != nil {
			return err
		}
		first, err := w.starts(b)
		if err != nil {
			return fmt.Errorf("backup %s %w", b.Name, err)
		}
		w.first, w.out.Backup = first, b.Name
		return nil
	}
	var older []*catalog.Backup
	w.noBackup, w.first = true, 1
	for i := range c.Backups {
		b := &c.Backups[i]
		if b.Details().IsPermanent || b.Condemned != nil {
			continue
		}
		if b.Sentinel == nil {
			if _, on := w.path.Leg(b.Timeline()); on { // whether it needs older WAL is not known
				w.out.Status = Warning
				w.note("backup %s does not count: it cannot be read: %v", b.Name, b.Err)
			}
			continue
		}
		first, err := w.starts(b)
		switch {
		case err != nil:
		case b.Created().Before(w.r.Since):
			older = append(older, b)
		case w.noBackup || first < w.first:
			w.noBackup, w.first, w.out.Backup = false, first, b.Name
		}
	}
	w.setApart(older)
	if w.noBackup {
		w.note("there is no backup from which timeline %d can be reached: all WAL from the beginning is looked for", uint32(w.r.Timeline))
	}
	return nil
}

// setApart takes in backups that were finished before Request.Since.
func (w *walk) setApart(older []*catalog.Backup) {
	all := w.noBackup
	for _, b := range older {
		first, _ := w.starts(b) // it does lead here
		finish, ok := b.FinishLSN()
		switch last := w.r.Size.LastSegment(finish); {
		case all && (w.noBackup || first < w.first):
			w.noBackup, w.first, w.out.Backup = false, first, b.Name
		case !all && ok && finish != 0 && first < w.first:
			w.apart = append(w.apart, catalog.Stretch{Timeline: b.Timeline(), First: first, Last: min(last, w.first-1)})
		}
	}
	if n := len(w.apart); n > 0 {
		which := fmt.Sprintf("%d older backups restore to the moment at which they were finished", n)
		if n == 1 {
			which = "1 older backup restores to the moment at which it was finished"
		}
		w.note("%s, as retention has it: no more of the WAL before %s is looked for", which, w.out.Backup)
	}
}

// lookAtMoments looks for the WAL of backups that were set apart.
func (w *walk) lookAtMoments() error {
	slices.SortFunc(w.apart, func(x, y catalog.Stretch) int { return cmp.Compare(x.First, y.First) })
	next := wal.SegmentNo(0)
	for _, s := range w.apart {
		if s.First = max(s.First, next); s.First > s.Last {
			continue
		}
		next = s.Last + 1
		if err := w.lookAt(s); err != nil {
			return err
		}
	}
	w.moments, w.out.Rows = w.out.Rows, nil
	if slices.ContainsFunc(w.moments, func(r Row) bool { return r.Found == Lost }) {
		w.out.Status = Failure
	}
	return nil
}

// starts returns with which segment replaying over a backup begins, or why it does not lead to where the cluster is.
func (w *walk) starts(b *catalog.Backup) (wal.SegmentNo, error) {
	if b.Sentinel == nil {
		return 0, fmt.Errorf("cannot be read: %w", b.Err)
	}
	if id := b.Sentinel.SystemIdentifier; id != nil && w.r.System != 0 && *id != w.r.System {
		return 0, fmt.Errorf("is of another cluster, whose system identifier is %d", *id)
	}
	leg, on := w.path.Leg(b.Timeline())
	if !on {
		return 0, fmt.Errorf("is of timeline %d, which does not lead to timeline %d", uint32(b.Timeline()), uint32(w.r.Timeline))
	}
	if finish, ok := b.FinishLSN(); ok && leg.End != 0 && finish > leg.End {
		return 0, fmt.Errorf("was finished at %s, after timeline %d had been left at %s", finish, uint32(leg.Timeline), leg.End)
	}
	if start, ok := b.StartLSN(); ok {
		return w.r.Size.Segment(start), nil
	}
	_, n, err := w.r.Size.ParseSegment(b.Segment())
	return n, err
}

// stretches yields what is needed along the path, from n on.
func (w *walk) stretches(n wal.SegmentNo) (all []catalog.Stretch) {
	for s := range w.path.Stretches(w.r.Size, n) {
		if s.First > w.last {
			break
		}
		s.Last = min(s.Last, w.last)
		all = append(all, s)
	}
	return all
}

// look fills the rows: what the watermark knows already, and from there on what the listing shows.
func (w *walk) look(known *watermark) error {
	next := w.first
	if known != nil {
		for _, r := range known.rows {
			if r.Found == Archived {
				w.add(r)
			} else if err := w.lookAt(r.Stretch); err != nil { // it may have been repaired, or accepted
				return err
			}
		}
		next = known.last + 1
		w.out.Since = w.r.Size.Name(w.stretchAt(next), next)
	}
	for _, s := range w.stretches(next) {
		if err := w.lookAt(s); err != nil {
			return err
		}
	}
	return nil
}

// lookAt fills the rows of one stretch.
func (w *walk) lookAt(s catalog.Stretch) error {
	from := s.First
	for n, err := range w.list(s) {
		if err != nil {
			return err
		}
		if n > from {
			w.missing(catalog.Stretch{Timeline: s.Timeline, First: from, Last: n - 1})
		}
		w.add(Row{Stretch: catalog.Stretch{Timeline: s.Timeline, First: n, Last: n}})
		from = n + 1
	}
	if from <= s.Last {
		w.missing(catalog.Stretch{Timeline: s.Timeline, First: from, Last: s.Last})
	}
	return nil
}

// stretchAt returns the timeline on which segment n is replayed.
func (w *walk) stretchAt(n wal.SegmentNo) wal.Timeline {
	for s := range w.path.Stretches(w.r.Size, n) {
		return s.Timeline
	}
	return w.r.Timeline
}

// list yields, ascending, which segments of s are archived: each once, empty objects not.
func (w *walk) list(s catalog.Stretch) func(yield func(wal.SegmentNo, error) bool) {
	return func(yield func(wal.SegmentNo, error) bool) {
		first := w.r.Size.Name(s.Timeline, s.First)
		next := s.First
		// One digit less sorts before the segment itself, whatever its extension.
		for o, err := range w.a.Store().List(w.ctx, archive.WALDir, archive.WALDir+first[:len(first)-1]) {
			if err != nil {
				yield(0, fmt.Errorf("list WAL: %w", err))
				return
			}
			name := archive.WALName(path.Base(o.Name))
			if o.IsDir() || !wal.IsSegment(name) || o.Size == 0 {
				continue
			}
			t, n, err := w.r.Size.ParseSegment(name)
			if err != nil || t < s.Timeline || t == s.Timeline && n < next {
				continue
			}
			if t > s.Timeline || n > s.Last || !yield(n, nil) || n == s.Last {
				return
			}
			next = n + 1
		}
	}
}

// missing enters segments that are not archived whole: those of which there are pieces to their end are archived all the same.
func (w *walk) missing(s catalog.Stretch) {
	for _, name := range slices.Sorted(maps.Keys(w.tails)) {
		t, n, err := w.r.Size.ParseSegment(name)
		if err != nil || t != s.Timeline || n < s.First || n > s.Last || w.tails[name].Held < int64(w.r.Size) {
			continue
		}
		if n > s.First {
			w.absent(catalog.Stretch{Timeline: t, First: s.First, Last: n - 1})
		}
		w.add(Row{Stretch: catalog.Stretch{Timeline: t, First: n, Last: n}})
		if n == s.Last {
			return
		}
		s.First = n + 1
	}
	w.absent(s)
}

// unfinished tells of the segment that comes behind the last one that is found, where there are pieces of it.
func (w *walk) unfinished() {
	n := w.first
	if i := len(w.out.Rows) - 1; i >= 0 {
		if n = w.out.Rows[i].First; w.out.Rows[i].Found == Archived {
			n = w.out.Rows[i].Last + 1
		}
	}
	name := w.r.Size.Name(w.stretchAt(n), n)
	if t := w.tails[name]; t.Held > 0 && t.Held < int64(w.r.Size) {
		w.note("of %s the archive has pieces, up to %s, the youngest stored at %s", name, w.r.Size.Start(n)+wal.LSN(t.Held), catalog.FormatTime(t.Modified))
	}
}

// absent enters segments that are not archived.
func (w *walk) absent(s catalog.Stretch) {
	for piece, by := range s.Split(w.accepted) {
		row := Row{Stretch: piece, Found: Lost, Accepted: by}
		if by != nil {
			row.Found = Accepted
		}
		w.add(row)
	}
}

// add enters a row, and joins it to the one before where both are the same.
func (w *walk) add(r Row) {
	if n := len(w.out.Rows); n > 0 {
		if last := &w.out.Rows[n-1]; last.Timeline == r.Timeline && last.Found == r.Found && last.Accepted == r.Accepted && last.Last+1 == r.First {
			last.Last = r.Last
			return
		}
	}
	w.out.Rows = append(w.out.Rows, r)
}

// judge says of the newest missing segments that they may be on their way, and sums up.
func (w *walk) judge() {
	rows := w.out.Rows
	delayed := wal.SegmentNo(max(w.r.Delayed, 0)) // how many of the newest may be late
	for _, r := range slices.Backward(rows) {
		if r.Found == Archived { // what lies before it is not late
			delayed = min(delayed, w.last-r.Last+1)
			break
		}
	}
	uploading := delayed + wal.SegmentNo(max(w.r.Uploading, 0))
	// The first segment that counts as late, and as on its way.
	from := func(n wal.SegmentNo) wal.SegmentNo {
		if n > w.last {
			return 0
		}
		return w.last - n + 1
	}
	w.out.Rows = nil
	for _, r := range rows {
		if r.Found != Lost {
			w.add(r)
			continue
		}
		for _, cut := range []struct {
			until wal.SegmentNo // before this
			found Found
		}{{from(uploading), Lost}, {from(delayed), Uploading}, {w.last + 1, Delayed}} {
			if r.First < cut.until && r.First <= r.Last {
				piece := r
				piece.Last, piece.Found = min(r.Last, cut.until-1), cut.found
				w.add(piece)
				r.First = piece.Last + 1
			}
		}
	}
	for i, r := range w.out.Rows {
		status := OK
		switch {
		case r.Found == Lost && w.noBackup && i == 0:
			status = Warning // it may never have been archived here, and nothing needs it
		case r.Found == Lost:
			status = Failure
		case r.Found == Delayed || r.Found == Uploading:
			status = Warning
		}
		w.out.Status = max(w.out.Status, status)
	}
}

// Highest returns the highest timeline of which the archive has WAL or a history file; 0 where there is none.
func Highest(ctx context.Context, a *archive.Archive) (highest wal.Timeline, err error) {
	for after := ""; ; {
		found := false
		for o, err := range a.Store().List(ctx, archive.WALDir, after) {
			if err != nil {
				return 0, fmt.Errorf("list WAL: %w", err)
			}
			if t, err := wal.TimelineOf(archive.WALName(o.Name)); err == nil && !o.IsDir() {
				highest, found = max(highest, t), true
				after = archive.WALDir + t.String() + "G" // behind all of its files
				break
			}
		}
		if !found {
			return highest, nil
		}
	}
}

// JudgeTimeline compares the highest timeline in the archive with the cluster's.
func JudgeTimeline(highest, current wal.Timeline) Status {
	switch highest {
	case 0:
		return Warning
	case current:
		return OK
	}
	return Failure
}

// Worst returns the worst of several outcomes.
func Worst(all ...Status) Status { return slices.MaxFunc(append(all, OK), cmp.Compare) }
