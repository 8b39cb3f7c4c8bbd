package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/timelines"
)

func (a *app) walShow() *cobra.Command {
	var asJSON, without bool
	cmd := &cobra.Command{
		Use:   "wal-show",
		Short: "Show the archived WAL: timelines, promotions, what is missing",
		Long: "Shows which WAL the archive has, in all storages: WAL-G's table of timelines, then the tree of timelines with the promotions between\n" +
			"them, what is missing and who has accepted that, and the timeline that the cluster is on. A STATUS of LOST_SEGMENTS says that segments\n" +
			"are missing between the first and the last one, and that nobody has accepted it. With PGHOST or its like set the live server is asked for\n" +
			"its timeline.",
		Example: "  holdfast wal-show\n  holdfast wal-show --detailed-json | jq '.[] | select(.status != \"OK\")'",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			h, err := a.openHistory(cmd.Context(), s, toList)
			if err != nil {
				return err
			}
			infos := h.describe()
			if asJSON {
				return a.printJSON(h.shown(infos, !without, s.InUse()[0].Name))
			}
			return a.printShow(h, infos, !without)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "detailed-json", false, "print JSON, with each missing segment and each backup")
	f.BoolVar(&without, "without-backups", false, "leave the backups out")
	targetFlag(cmd)
	return cmd
}

// Statuses of a timeline, in WAL-G's words.
const (
	statusOK   = "OK"
	statusLost = "LOST_SEGMENTS"
)

// shown is a timeline as JSON shows it: WAL-G's keys, then ours.
type shown struct {
	ID       wal.Timeline  `json:"id"`
	Parent   wal.Timeline  `json:"parent_id"`
	Switch   wal.LSN       `json:"switch_point_lsn"` // a number, as WAL-G's
	First    string        `json:"start_segment"`
	Last     string        `json:"end_segment"`
	Segments uint64        `json:"segments_count"`
	Missing  []string      `json:"missing_segments"` // the last one first; at most maxMissingShown
	Backups  []shownBackup `json:"backups,omitempty"`
	Range    uint64        `json:"segment_range_size"`
	Status   string        `json:"status"`

	Current      bool         `json:"current"`
	Reason       string       `json:"reason,omitempty"`
	Newest       time.Time    `json:"newest"`
	Bytes        int64        `json:"stored_bytes"`
	Lost         uint64       `json:"missing_segments_count"`
	Accepted     []shownHoles `json:"accepted_gaps,omitempty"`
	Lead         []shownHoles `json:"missing_from_branch,omitempty"`
	Beyond       uint64       `json:"segments_beyond_branch,omitempty"`
	Partial      []string     `json:"partial_segments,omitempty"`
	Pieces       []shownTail  `json:"segments_in_pieces,omitempty"`
	Storages     []string     `json:"storages,omitempty"`
	HistoryError string       `json:"history_error,omitempty"`
}

// maxMissingShown bounds the names of missing segments of a timeline: one strayed name could make it billions.
const maxMissingShown = 10_000

type shownHoles struct {
	First    string     `json:"start_segment"`
	Last     string     `json:"end_segment"`
	Segments uint64     `json:"segments_count"`
	By       string     `json:"accepted_by,omitempty"`
	At       *time.Time `json:"accepted_at,omitempty"`
	Reason   string     `json:"reason,omitempty"`
}

type shownTail struct {
	Segment string    `json:"segment"`
	Until   string    `json:"until_lsn,omitempty"` // without a gap; "" where the first bytes are missing
	Lost    int64     `json:"bytes_behind_a_gap,omitempty"`
	Objects int       `json:"objects"`
	Bytes   int64     `json:"stored_bytes"`
	Newest  time.Time `json:"newest"`
	Whole   bool      `json:"whole_segment_archived,omitempty"`
}

type shownBackup struct {
	Name    string    `json:"backup_name"`
	Time    time.Time `json:"time"`
	Segment string    `json:"wal_file_name"`
	Storage string    `json:"storage_name"`
	*archive.Metadata
	Error string `json:"error,omitempty"`
}

// shown makes JSON of the timelines that have WAL, as WAL-G does.
func (h *history) shown(infos []timelines.Info, backups bool, storage string) []shown {
	rows := []shown{}
	size := h.wal.SegmentSize
	for _, i := range infos {
		if i.Segments == 0 {
			continue
		}
		r := shown{
			ID: i.Timeline, Parent: i.Parent, Switch: i.Switch, First: size.Name(i.Timeline, i.First), Last: size.Name(i.Timeline, i.Last),
			Segments: i.Segments, Missing: []string{}, Range: uint64(i.Last-i.First) + 1, Status: timelineStatus(i), Current: i.Timeline == h.current.Timeline,
			Reason: i.Reason, Newest: i.Newest.UTC(), Bytes: i.Bytes, Beyond: i.Beyond, Storages: i.Storages,
		}
		for _, hole := range i.Lead {
			r.Lead = append(r.Lead, showHole(size, hole))
		}
		for _, hole := range slices.Backward(i.Holes) {
			if hole.Accepted != nil {
				r.Accepted = append(r.Accepted, showHole(size, hole))
				continue
			}
			r.Lost += hole.Count()
			for n := hole.Last; len(r.Missing) < maxMissingShown; n-- {
				r.Missing = append(r.Missing, size.Name(i.Timeline, n))
				if n == hole.First {
					break
				}
			}
		}
		for _, p := range i.Partial {
			r.Partial = append(r.Partial, size.Name(i.Timeline, p.Segment)+".partial")
		}
		for _, p := range i.Tails {
			t := shownTail{Segment: p.Name, Lost: p.Top - p.Held, Objects: p.Pieces, Bytes: p.Bytes, Newest: p.Modified.UTC(), Whole: p.Whole}
			if p.Held > 0 {
				t.Until = p.End(size).String()
			}
			r.Pieces = append(r.Pieces, t)
		}
		if i.Bad != nil {
			r.HistoryError = i.Bad.Error()
		}
		if backups {
			for _, b := range i.Backups {
				row := shownBackup{Name: b.Name, Time: b.Created().UTC(), Segment: b.Segment(), Storage: cmp.Or(b.Storage, storage), Metadata: b.Details()}
				if b.Err != nil {
					row.Error = b.Err.Error()
				}
				r.Backups = append(r.Backups, row)
			}
		}
		rows = append(rows, r)
	}
	return rows
}

func showHole(size wal.SegmentSize, hole timelines.Hole) shownHoles {
	g := shownHoles{First: size.Name(hole.Timeline, hole.First), Last: size.Name(hole.Timeline, hole.Last), Segments: hole.Count()}
	if by := hole.Accepted; by != nil {
		at := by.At.UTC()
		g.By, g.At, g.Reason = by.By, &at, by.Reason
	}
	return g
}

func timelineStatus(i timelines.Info) string {
	if timelines.Lost(i.Holes) {
		return statusLost
	}
	return statusOK
}

// printShow prints WAL-G's table, and below it the tree.
func (a *app) printShow(h *history, infos []timelines.Info, backups bool) error {
	t := table.NewWriter()
	head := table.Row{"TLI", "Parent TLI", "Switchpoint LSN", "Start segment", "End segment", "Segment range", "Segments count", "Status"}
	if backups {
		head = append(head, "Backups count")
	}
	t.AppendHeader(head)
	size := h.wal.SegmentSize
	for _, i := range infos {
		if i.Segments == 0 {
			continue
		}
		row := table.Row{uint32(i.Timeline), uint32(i.Parent), i.Switch.String(), size.Name(i.Timeline, i.First), size.Name(i.Timeline, i.Last),
			uint64(i.Last-i.First) + 1, i.Segments, timelineStatus(i)}
		if backups {
			row = append(row, len(i.Backups))
		}
		t.AppendRow(row)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", t.Render())
	if len(infos) > 0 {
		fmt.Fprintln(&b)
		w := &treeWriter{b: &b, h: h, backups: backups, infos: map[wal.Timeline]*timelines.Info{}, main: map[wal.Timeline]bool{}}
		for n := range infos {
			w.infos[infos[n].Timeline] = &infos[n]
		}
		for i := w.infos[h.current.Timeline]; i != nil && !w.main[i.Timeline]; i = w.infos[i.Parent] {
			w.main[i.Timeline] = true
		}
		for _, i := range infos {
			if i.Parent == 0 {
				w.write(i.Timeline, "", "")
			}
		}
		w.remarks(infos)
		fmt.Fprintf(&b, "\n%s\n", h.currentWords())
		for _, other := range h.current.Others {
			if !backups {
				other.Backups = 0
			}
			fmt.Fprintln(&b, otherLine(other, !h.theirs))
		}
	}
	_, err := a.env.Stdout.Write([]byte(b.String()))
	return err
}

// otherLine says what is known of a line of timelines that the cluster is not on; ours that it can be put aside.
func otherLine(l catalog.Line, ours bool) string {
	var what []string
	if l.Segments > 0 {
		what = append(what, manyOf(l.Segments, "segment")+" of its own")
	}
	if l.Backups > 0 {
		what = append(what, manyOf(uint64(l.Backups), "backup"))
	}
	if !l.Newest.IsZero() {
		what = append(what, "its last sign of life is of "+l.Newest.UTC().Format(moments))
	}
	if len(what) == 0 {
		what = append(what, "a history file and nothing else")
	}
	s := fmt.Sprintf("Timeline %d leads elsewhere: %s", uint32(l.Timeline), strings.Join(what, ", "))
	if l.Left {
		return s + fmt.Sprintf("; it was left for timeline %d, and archived nothing since that began.", uint32(l.For))
	}
	s += fmt.Sprintf(". `--target-timeline %d` restores along it", uint32(l.Timeline))
	if ours {
		s += fmt.Sprintf(", `holdfast timeline forget %d` puts it aside", uint32(l.Timeline))
	}
	return s + "."
}

// moments is how times are written in lines for people.
const moments = "2006-01-02 15:04:05 MST"

// manyOf writes a number of things.
func manyOf(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// treeWriter draws timelines below those they left.
type treeWriter struct {
	b       *strings.Builder
	h       *history
	backups bool
	infos   map[wal.Timeline]*timelines.Info
	main    map[wal.Timeline]bool // on the way to the cluster
}

// write draws a timeline and what descends from it: first stands before its own line, rest before those below. The line of descent that leads to the
// cluster, or to the youngest, goes straight on, however many promotions there were; others branch off.
func (w *treeWriter) write(t wal.Timeline, first, rest string) {
	for {
		i := w.infos[t]
		fmt.Fprintf(w.b, "%s%s\n", first, w.line(i))
		below := rest + "│  "
		if len(i.Children) == 0 {
			below = rest + "   "
		}
		for _, line := range w.below(i) {
			fmt.Fprintf(w.b, "%s%s\n", below, line)
		}
		if len(i.Children) == 0 {
			return
		}
		on := i.Children[len(i.Children)-1]
		for _, child := range i.Children {
			if w.main[child] {
				on = child
			}
		}
		for _, child := range i.Children {
			if child != on {
				w.write(child, rest+"├─ ", rest+"│  ")
			}
		}
		t, first = on, rest
	}
}

// line says where a timeline comes from.
func (w *treeWriter) line(i *timelines.Info) string {
	s := fmt.Sprintf("timeline %d", uint32(i.Timeline))
	if i.Parent != 0 {
		s += fmt.Sprintf(" left %d at %s", uint32(i.Parent), i.Switch)
		if i.Reason != "" {
			s += " (" + cell(i.Reason) + ")"
		}
	}
	if i.Timeline == w.h.current.Timeline {
		s += " <- the cluster is on it"
	}
	return s
}

// has says what there is of a timeline.
func (w *treeWriter) has(i *timelines.Info) string {
	what := []string{"no WAL"}
	if i.Segments > 0 {
		size := w.h.wal.SegmentSize
		what = []string{fmt.Sprintf("%s to %s, %s", size.Name(i.Timeline, i.First), size.Name(i.Timeline, i.Last), manyOf(i.Segments, "segment"))}
	}
	if w.backups && len(i.Backups) > 0 {
		what = append(what, manyOf(uint64(len(i.Backups)), "backup"))
	}
	if !i.Newest.IsZero() {
		what = append(what, "newest archived "+i.Newest.UTC().Format(moments))
	}
	return strings.Join(what, ", ")
}

// maxHolesShown bounds what is told of one timeline.
const maxHolesShown = 20

// below says what there is of a timeline, and what is amiss with it.
func (w *treeWriter) below(i *timelines.Info) (lines []string) {
	lines = append(lines, w.has(i))
	switch {
	case i.Bad != nil:
		lines = append(lines, "its history file cannot be read: "+i.Bad.Error())
	case i.Parent == 0 && i.Timeline > 1 && i.History == nil:
		lines = append(lines, "it has no history file: where it comes from is not known, and recovery along it begins with its own WAL")
	}
	holes := func(holes []timelines.Hole, why string) {
		for n, hole := range holes {
			if n == maxHolesShown {
				lines = append(lines, fmt.Sprintf("and %d more: --detailed-json has all", len(holes)-n))
				return
			}
			lines = append(lines, w.hole(hole, why))
		}
	}
	holes(i.Lead, ", with which it begins")
	holes(i.Holes, "")
	if len(i.Empty) > 0 {
		lines = append(lines, fmt.Sprintf("empty objects, which hold no WAL: %s, first %s", manyOf(uint64(len(i.Empty)), "segment"), w.h.wal.SegmentSize.Name(i.Timeline, i.Empty[0])))
	}
	for n, p := range i.Tails {
		if n == maxHolesShown {
			lines = append(lines, fmt.Sprintf("and %d more in pieces: --detailed-json has all", len(i.Tails)-n))
			break
		}
		lines = append(lines, w.tail(&p))
	}
	if i.Beyond > 0 {
		lines = append(lines, fmt.Sprintf("it went on for %s beyond the last branch, with what no later timeline has", manyOf(i.Beyond, "segment")))
	}
	return lines
}

// tail says what there is of a segment in pieces.
func (w *treeWriter) tail(p *catalog.Tail) string {
	size := w.h.wal.SegmentSize
	end, top := p.End(size), size.Start(p.Segment)+wal.LSN(p.Top)
	switch {
	case p.Whole:
		return fmt.Sprintf("%s is there whole and in pieces: `holdfast delete garbage ARCHIVES` removes these", p.Name)
	case p.Top == 0:
		return fmt.Sprintf("%s in pieces: not even its header is there", p.Name)
	case p.Held == 0:
		return fmt.Sprintf("%s in pieces: its first bytes are MISSING, and without them those up to %s are of no use", p.Name, top)
	case p.Held < p.Top:
		return fmt.Sprintf("%s in pieces, up to %s; some are MISSING behind that, and those up to %s are of no use", p.Name, end, top)
	}
	return fmt.Sprintf("%s in pieces, up to %s, the youngest of %s", p.Name, end, p.Modified.UTC().Format(moments))
}

func (w *treeWriter) hole(hole timelines.Hole, why string) string {
	size := w.h.wal.SegmentSize
	s := size.Name(hole.Timeline, hole.First)
	if hole.Last > hole.First {
		s += " to " + size.Name(hole.Timeline, hole.Last)
	}
	s += " (" + manyOf(hole.Count(), "segment") + ")" + why
	if by := hole.Accepted; by != nil && by.Removed {
		return "removed by retention " + by.At.UTC().Format(moments) + ", as nothing that stays needs it: " + s
	} else if by != nil {
		s = "missing, accepted by " + cell(by.By) + " " + by.At.UTC().Format(moments) + ": " + s
		if by.Reason != "" {
			s += ": " + cell(by.Reason)
		}
		return s
	}
	return "LOST: " + s
}

// remarks explains .partial files, and says how to go on where WAL is lost.
func (w *treeWriter) remarks(infos []timelines.Info) {
	var lines []string
	lost := false
	for i := range infos {
		lost = lost || timelines.Lost(infos[i].Holes) || timelines.Lost(infos[i].Lead)
		for n, p := range infos[i].Partial {
			if n == maxHolesShown {
				lines = append(lines, fmt.Sprintf("and %d more .partial files of timeline %d", len(infos[i].Partial)-n, uint32(infos[i].Timeline)))
				break
			}
			lines = append(lines, w.partial(&infos[i], p))
		}
	}
	if lost {
		lines = append(lines, "What is lost may still lie in the pg_wal of the primary or of a standby: `holdfast wal-push --repair` there archives it. "+
			"`holdfast wal-gap accept` says that it is gone.")
	}
	if len(lines) > 0 {
		fmt.Fprintf(w.b, "\n%s\n", strings.Join(lines, "\n"))
	}
}

// partial says what a .partial file is good for.
func (w *treeWriter) partial(i *timelines.Info, p catalog.Partial) string {
	size := w.h.wal.SegmentSize
	name := size.Name(i.Timeline, p.Segment) + ".partial"
	for _, t := range i.Children {
		child := w.infos[t]
		if size.Segment(child.Switch) != p.Segment {
			continue
		}
		first := size.Name(t, p.Segment)
		if w.h.wal.Has(t, p.Segment) {
			return fmt.Sprintf("%s is harmless: the last, unfinished segment of timeline %d. What it holds up to %s is in %s too, and PostgreSQL never asks for it.",
				name, uint32(i.Timeline), child.Switch, first)
		}
		return fmt.Sprintf("%s is to be kept: what it holds up to %s should be in %s too, which is missing.", name, child.Switch, first)
	}
	return fmt.Sprintf("%s is the last, unfinished segment of timeline %d, from a promotion of which the archive knows nothing. PostgreSQL never asks for it.", name, uint32(i.Timeline))
}
