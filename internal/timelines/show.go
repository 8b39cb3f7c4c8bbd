// Package timelines shows which timelines an archive has and how they hang together, and puts those aside that a stray clone pushed.
//
// A clone that was started for a test and archives into the archive it came from begins a timeline of its own there. Nobody is harmed as long as
// nobody follows it; but restores and standbys that look for the latest timeline would. What is put aside stays in the archive, under names that
// nothing looks at, and can be brought back.
package timelines

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// Info is what an archive has of one timeline.
type Info struct {
	Timeline wal.Timeline
	Parent   wal.Timeline // that it left; 0 where there is none or that is not known
	Switch   wal.LSN      // where it left that
	Reason   string       // as PostgreSQL wrote it
	History  *catalog.HistoryFile
	Bad      error // why the history file cannot be read; nil where it can

	First, Last wal.SegmentNo // of what is archived; without Segments they mean nothing
	Segments    uint64
	Bytes       int64
	Newest      time.Time // when the youngest segment, or the history file, was archived
	Storages    []string  // where the segments lie; none where there is one store
	Holes       []Hole    // between First and Last, ascending
	Lead        []Hole    // from the branch to before First, where the parent's WAL reaches the branch
	Empty       []wal.SegmentNo
	Partial     []catalog.Partial
	Tails       []catalog.Tail // segments of which there are pieces, ascending
	Beyond      uint64         // segments behind the last branch, which no descendant has
	Backups     []*catalog.Backup
	Children    []wal.Timeline // ascending
}

// Hole is a stretch of missing segments.
type Hole struct {
	catalog.Stretch
	Accepted *catalog.Accepted // who has accepted that; nil for nobody
}

// Count returns the number of segments.
func (h Hole) Count() uint64 { return uint64(h.Last-h.First) + 1 }

// Lost reports whether segments are missing that nobody has accepted.
func Lost(holes []Hole) bool {
	return slices.ContainsFunc(holes, func(h Hole) bool { return h.Accepted == nil })
}

// Describe says what there is of each timeline, ascending: of those with WAL, a history file or backups, and of their ancestors.
func Describe(c *catalog.Catalog, w *catalog.WAL, accepted []catalog.Accepted) []Info {
	all := map[wal.Timeline]*Info{}
	at := func(t wal.Timeline) *Info {
		if all[t] == nil {
			all[t] = &Info{Timeline: t}
		}
		return all[t]
	}
	for i := range w.Timelines {
		at(w.Timelines[i].Timeline).inventory(&w.Timelines[i], accepted)
	}
	for i := range c.Backups {
		b := &c.Backups[i]
		of := at(b.Timeline())
		of.Backups = append(of.Backups, b)
	}
	for t, err := range c.BadHistory {
		at(t).Bad = err
	}
	descend := func(t wal.Timeline, from catalog.Branch) {
		i := at(t)
		i.Parent, i.Switch, i.Reason = from.Timeline, from.Switch, from.Reason
		at(from.Timeline)
	}
	for t, branches := range c.Histories {
		for i, b := range branches {
			switch {
			case i == len(branches)-1:
				descend(t, b)
			case c.Histories[branches[i+1].Timeline] == nil: // its own history file is lost, and this one tells
				descend(branches[i+1].Timeline, b)
			}
		}
		at(t)
	}
	infos := make([]Info, 0, len(all))
	for _, t := range slices.Sorted(maps.Keys(all)) {
		if p := all[t].Parent; p != 0 {
			all[p].Children = append(all[p].Children, t)
		}
	}
	for _, t := range slices.Sorted(maps.Keys(all)) {
		i := all[t]
		i.lead(c, w, accepted)
		i.beyond(all, w)
		infos = append(infos, *i)
	}
	return infos
}

// inventory enters what was listed of the timeline.
func (i *Info) inventory(of *catalog.TimelineWAL, accepted []catalog.Accepted) {
	i.History, i.Partial, i.Empty, i.Tails = of.History, of.Partial, of.Empty, of.Tails
	if of.History != nil {
		i.Newest = of.History.Archived
	}
	for n, r := range of.Runs {
		if n == 0 {
			i.First = r.First
		} else if r.First > i.Last+1 {
			i.Holes = appendHoles(i.Holes, catalog.Stretch{Timeline: i.Timeline, First: i.Last + 1, Last: r.First - 1}, accepted)
		}
		i.Last = r.Last
		i.Segments += r.Count()
		i.Bytes += r.Bytes
		if r.Newest.After(i.Newest) {
			i.Newest = r.Newest
		}
		if r.Storage != "" && !slices.Contains(i.Storages, r.Storage) {
			i.Storages = append(i.Storages, r.Storage)
		}
	}
}

func appendHoles(holes []Hole, s catalog.Stretch, accepted []catalog.Accepted) []Hole {
	for piece, by := range s.Split(accepted) {
		holes = append(holes, Hole{piece, by})
	}
	return holes
}

// lead looks whether the timeline's WAL begins where it left its parent. Where neither has WAL there retention has removed it.
func (i *Info) lead(c *catalog.Catalog, w *catalog.WAL, accepted []catalog.Accepted) {
	if i.Parent == 0 || i.Segments == 0 {
		return
	}
	branch := w.SegmentSize.Segment(i.Switch)
	before := branch > 0 && w.Has(i.Parent, branch-1)
	if i.First <= branch || !before {
		return
	}
	i.Lead = appendHoles(nil, catalog.Stretch{Timeline: i.Timeline, First: branch, Last: i.First - 1}, accepted)
}

// beyond counts what no descendant has of the timeline.
func (i *Info) beyond(all map[wal.Timeline]*Info, w *catalog.WAL) {
	if len(i.Children) == 0 {
		return
	}
	last := slices.MaxFunc(i.Children, func(a, b wal.Timeline) int { return cmp.Compare(all[a].Switch, all[b].Switch) })
	branch := w.SegmentSize.Segment(all[last].Switch)
	if of := w.Timeline(i.Timeline); of != nil {
		for _, r := range of.Runs {
			if r.Last > branch {
				i.Beyond += uint64(r.Last-max(r.First, branch+1)) + 1
			}
		}
	}
}
