package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/timelines"
)

// serverPatience is how long a server may take to answer that need not.
const serverPatience = 5 * time.Second

// live asks the server that the settings lead to where it is. Where they lead to none in particular the answer is nil: whatever listens at the usual
// place may be a copy. So it is where the server does not answer, or is of another cluster than the archive's; the log says so.
func (a *app) live(ctx context.Context, s *config.Settings, c *catalog.Catalog) *server.Position {
	named := func(v string) bool { _, ok := s.Postgres.Lookup(v); return ok }
	if !slices.ContainsFunc([]string{"PGHOST", "PGPORT", "PGSERVICE"}, named) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, serverPatience)
	defer cancel()
	p, err := askPosition(ctx, s)
	if err != nil {
		a.log.Warn(fmt.Sprintf("which timeline the cluster is on is judged by the archive alone: %v", err))
		return nil
	}
	if id := cluster(c); id != 0 && id != p.SystemIdentifier {
		a.log.Warn(fmt.Sprintf("the server that PGHOST and its like lead to is of another cluster (system identifier %d, the archive's is %d): it is not asked for the timeline", p.SystemIdentifier, id))
		return nil
	}
	return p
}

// askPosition asks the server, which must answer.
func askPosition(ctx context.Context, s *config.Settings) (*server.Position, error) {
	conn, err := server.Connect(ctx, server.ConfigFromEnv(s.Postgres.Lookup))
	if err != nil {
		return nil, err
	}
	defer conn.Close() // it holds nothing
	p, err := conn.Position(ctx)
	return &p, err
}

// cluster returns the system identifier of the newest backup that says one; 0 where none does.
func cluster(c *catalog.Catalog) uint64 {
	for i := range slices.Backward(c.Backups) {
		if s := c.Backups[i].Sentinel; s != nil && s.SystemIdentifier != nil {
			return *s.SystemIdentifier
		}
	}
	return 0
}

// history is what an archive knows of its timelines.
type history struct {
	archive     *archive.Archive
	catalog     *catalog.Catalog
	wal         *catalog.WAL
	accepted    []catalog.Accepted
	quarantines *timelines.Quarantines
	server      *server.Position // nil where none was asked
	current     catalog.Current
	theirs      bool // it is a repository of another tool, in which nothing is changed
}

// openHistory opens an archive and loads what there is to know of its timelines.
func (a *app) openHistory(ctx context.Context, s *config.Settings, p purpose) (*history, error) {
	h := &history{}
	var err error
	if h.archive, err = a.openArchive(ctx, s, p); err != nil {
		return nil, err
	}
	if h.catalog, err = catalog.Load(ctx, h.archive); err != nil {
		return nil, err
	}
	if err := a.loadEvidence(ctx, s, h); err != nil {
		return nil, err
	}
	var bad []error
	if h.accepted, bad, err = catalog.LoadAccepted(ctx, h.archive, h.wal.SegmentSize); err != nil {
		return nil, err
	}
	for _, err := range slices.Concat(bad, h.quarantines.Bad) {
		a.log.Warn(fmt.Sprintf("a record is passed over: %v", err))
	}
	if len(h.wal.Foreign) > 0 {
		a.log.Warn(fmt.Sprintf("these are no names of segments of %d MiB, and are passed over: %s", h.wal.SegmentSize>>20, strings.Join(h.wal.Foreign, ", ")))
	}
	return h, nil
}

// loadEvidence finds out which timeline the cluster is on.
func (a *app) loadEvidence(ctx context.Context, s *config.Settings, h *history) (err error) {
	h.server = a.live(ctx, s, h.catalog)
	size, known := h.catalog.SegmentSize()
	if h.server != nil && !known {
		size = h.server.SegmentSize
	}
	if h.wal, err = catalog.LoadWAL(ctx, h.archive, size); err != nil {
		return err
	}
	if !known && h.server == nil && len(h.wal.Timelines) > 0 {
		a.log.Info(fmt.Sprintf("no backup says how large WAL segments are: they are taken to have %d MiB", size>>20))
	}
	if h.quarantines, err = timelines.LoadQuarantines(ctx, h.archive); err != nil {
		return err
	}
	e := catalog.Evidence{WAL: h.wal, Forgotten: h.quarantines.Age}
	if h.server != nil {
		e.Server = h.server.Timeline
	}
	h.catalog.Evidence, h.current = e, h.catalog.Current(e)
	return nil
}

// findCurrent finds out, for a recovery along a timeline that was not asked for, which one the cluster is on. Where the archive knows one only there
// is nothing to find out.
func (a *app) findCurrent(ctx context.Context, s *config.Settings, h *history, target catalog.Target) error {
	if target.Kind == catalog.None || target.Timeline != 0 || target.Highest || len(h.catalog.Timelines()) == 1 {
		return nil
	}
	return a.loadEvidence(ctx, s, h)
}

// warnStray says that the newest backup of all was not taken, or was though it is not of the cluster as it is now, where the archive knows of more than one
// timeline.
func (a *app) warnStray(h *history, choice catalog.Choice) {
	if h.quarantines == nil { // there was no need to look
		return
	}
	if b := choice.Passed; b != nil {
		a.log.Warn(fmt.Sprintf("%s is newer, and of timeline %d, which does not lead to timeline %d. %s To restore that one give its name", b.Name, uint32(b.Timeline()),
			uint32(h.current.Timeline), h.currentWords()))
		return
	}
	path, err := h.catalog.PathTo(h.current.Timeline)
	if err != nil {
		return // who restores a backup alone does not need it
	}
	b := choice.Backup
	leg, on := path.Leg(b.Timeline())
	if finish, ok := b.FinishLSN(); !on || ok && leg.End != 0 && finish > leg.End {
		a.log.Warn(fmt.Sprintf("%s is of timeline %d, which does not lead to timeline %d. %s `--target latest` restores the cluster", b.Name, uint32(b.Timeline()),
			uint32(h.current.Timeline), h.currentWords()))
	}
}

// tellTimeline says why recovery leads along the timeline it does, and how to take another.
func (a *app) tellTimeline(choice catalog.Choice) {
	c := choice.Current
	if c == nil {
		return
	}
	t := choice.Target.Timeline
	if t != c.Timeline {
		a.log.Info(fmt.Sprintf("timeline %d, on which %s was taken: no other goes on from it", uint32(t), choice.Backup.Name))
		return
	}
	if len(c.Others) == 0 {
		if len(choice.Path) > 1 {
			a.log.Info(fmt.Sprintf("timeline %d: %s", uint32(t), c.Why))
		}
		return
	}
	tell := a.log.Warn
	if c.Certain() {
		tell = a.log.Info
	}
	tell(fmt.Sprintf("recovery leads along timeline %d: %s", uint32(t), c.Why))
	for _, l := range c.Others {
		tell(otherLine(l, true))
	}
}

func (a *app) timeline() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "timeline",
		Short: "List timelines; put one that a stray clone pushed aside, or bring it back",
		Long: "A copy of the cluster that was started for a test and archives into the cluster's archive begins a timeline of its own there.\n" +
			"Restores do not follow it, but standbys and other programs that look for the latest timeline do. `timeline forget` puts it aside:\n" +
			"all that the archive has of it moves below holdfast/quarantined, where nothing looks, and `timeline recall` brings it back.",
		Example: "  holdfast timeline list\n  holdfast timeline forget 4\n  holdfast timeline recall 4 --confirm",
		Args:    a.args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.timelineList(), a.timelineForget(), a.timelineRecall())
	return cmd
}

// timelineListed is a timeline as JSON shows it.
type timelineListed struct {
	Timeline   wal.Timeline          `json:"timeline"`
	Parent     wal.Timeline          `json:"parent_id"`
	Switch     string                `json:"switch_point,omitempty"`
	Reason     string                `json:"reason,omitempty"`
	Current    bool                  `json:"current"`
	Segments   uint64                `json:"segments_count"`
	First      string                `json:"start_segment,omitempty"`
	Last       string                `json:"end_segment,omitempty"`
	Backups    int                   `json:"backups_count"`
	Newest     *time.Time            `json:"newest,omitempty"`
	Quarantine *timelines.Quarantine `json:"quarantine,omitempty"`
	Error      string                `json:"error,omitempty"`
}

func (a *app) timelineList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the timelines of the archive, and those that were put aside",
		Long: "Lists the timelines of the archive, which one the cluster is on and why, and those that were put aside. `wal-show` says more of their\n" +
			"WAL. With PGHOST or its like set the live server is asked for its timeline.",
		Example: "  holdfast timeline list",
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
			rows := h.listed()
			if asJSON {
				return a.printJSON(rows)
			}
			return a.printTimelines(h, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	targetFlag(cmd)
	return cmd
}

// describe says what there is of each timeline. What was put aside and brought back is as old as it was before.
func (h *history) describe() []timelines.Info {
	infos := timelines.Describe(h.catalog, h.wal, h.accepted)
	for n := range infos {
		i := &infos[n]
		i.Newest = h.quarantines.Age[i.Timeline].Of(i.Newest)
	}
	return infos
}

// listed returns a row for each timeline that is there or was put aside.
func (h *history) listed() []timelineListed {
	rows := []timelineListed{}
	for _, i := range h.describe() {
		r := timelineListed{Timeline: i.Timeline, Parent: i.Parent, Reason: i.Reason, Current: i.Timeline == h.current.Timeline, Segments: i.Segments, Backups: len(i.Backups)}
		if i.Parent != 0 {
			r.Switch = i.Switch.String()
		}
		if i.Segments > 0 {
			r.First, r.Last = h.wal.SegmentSize.Name(i.Timeline, i.First), h.wal.SegmentSize.Name(i.Timeline, i.Last)
		}
		if !i.Newest.IsZero() {
			newest := i.Newest.UTC()
			r.Newest = &newest
		}
		if i.Bad != nil {
			r.Error = i.Bad.Error()
		}
		rows = append(rows, r)
	}
	for t, q := range h.quarantines.Last {
		if q.State == timelines.Recalled {
			continue
		}
		i := slices.IndexFunc(rows, func(r timelineListed) bool { return r.Timeline == t })
		if i < 0 {
			rows = append(rows, timelineListed{Timeline: t})
			i = len(rows) - 1
		}
		rows[i].Quarantine = &q
	}
	slices.SortFunc(rows, func(x, y timelineListed) int { return cmp.Compare(x.Timeline, y.Timeline) })
	return rows
}

func (a *app) printTimelines(h *history, rows []timelineListed) error {
	w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "timeline\tleft\tat\tsegments\tbackups\tnewest\tnotes")
	for _, r := range rows {
		left, newest := "-", "-"
		if r.Parent != 0 {
			left = fmt.Sprint(uint32(r.Parent))
		}
		if r.Newest != nil {
			newest = r.Newest.Format(time.RFC3339)
		}
		var notes []string
		if r.Current {
			notes = append(notes, "the cluster is on it")
		}
		if r.Error != "" {
			notes = append(notes, "its history file cannot be read")
		}
		if q := r.Quarantine; q != nil {
			note := fmt.Sprintf("put aside %s by %s, %d objects", q.At.UTC().Format(time.RFC3339), cell(q.By), q.Objects)
			if q.Reason != "" {
				note += ": " + cell(q.Reason)
			}
			switch {
			case q.State == timelines.Recalling:
				note += "; bringing it back was cut short, `holdfast timeline recall` goes on"
			case r.Segments > 0 || r.Parent != 0 || r.Backups > 0:
				note += "; there are objects of it again, or still"
			}
			notes = append(notes, note)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d\t%s\t%s\n", uint32(r.Timeline), left, cmp.Or(r.Switch, "-"), r.Segments, r.Backups, newest, strings.Join(notes, "; "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.env.Stdout, "\n"+h.currentWords())
	return err
}

// currentWords says which timeline the cluster is on, and why.
func (h *history) currentWords() string {
	return fmt.Sprintf("The cluster is on timeline %d: %s.", uint32(h.current.Timeline), h.current.Why)
}

// parseTimeline reads a number as people write it, or as eight digits begin the names of WAL files.
func parseTimeline(text string) (wal.Timeline, error) {
	base := 10
	digits, hex := strings.CutPrefix(text, "0x")
	if hex || len(text) == 8 {
		base = 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not the number of a timeline: want one such as 3, or 0x1F", text)
	}
	return wal.Timeline(n), nil
}

// movingFlags are those of forget and recall.
type movingFlags struct {
	confirm, asJSON, descendants bool
	reason                       string
}

func (a *app) timelineForget() *cobra.Command {
	var f movingFlags
	cmd := &cobra.Command{
		Use:   "forget N",
		Short: "Put a timeline aside",
		Long: "Puts timeline N aside: its WAL, its history file, its backups and catch-ups and what belongs to them move below holdfast/quarantined.\n" +
			"Nothing is removed. Without --confirm it only says what would be moved. The timeline that the cluster is on is refused, what leads to\n" +
			"it, what backups elsewhere build on, and what holds the only backups. Stop the server that pushes it first, or it comes back.\n" +
			"Cut short, the same command goes on.",
		Example: "  holdfast timeline forget 4\n  holdfast timeline forget 4 --confirm --reason 'restore test of May'",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.moveTimeline(cmd, args[0], false, &f) },
	}
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	cmd.Flags().BoolVar(&f.descendants, "with-descendants", false, "with all timelines that grew out of it")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print what is moved as JSON")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the record")
	return cmd
}

func (a *app) timelineRecall() *cobra.Command {
	var f movingFlags
	cmd := &cobra.Command{
		Use:   "recall N",
		Short: "Bring a timeline back that was put aside",
		Long: "Brings timeline N back to where it was. Without --confirm it only says what would be moved. Where the cluster has a timeline of that\n" +
			"number by now it is refused. Cut short, the same command goes on.",
		Example: "  holdfast timeline recall 4 --confirm",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.moveTimeline(cmd, args[0], true, &f) },
	}
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print what is moved as JSON")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the record")
	return cmd
}

// moveTimeline puts a timeline aside, or brings it back.
func (a *app) moveTimeline(cmd *cobra.Command, number string, back bool, f *movingFlags) error {
	t, err := parseTimeline(number)
	if err != nil {
		return a.usage(cmd, err)
	}
	s, err := a.load(cmd)
	if err != nil {
		return err
	}
	if s.Target != "" {
		return errors.New("a timeline is moved in all storages: WALG_TARGET_STORAGE names one")
	}
	ctx := cmd.Context()
	h, err := a.openHistory(ctx, s, toRead)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	members, err := a.stores(ctx, s, 0)
	if err != nil {
		return err
	}
	var places []timelines.Place
	for _, m := range members {
		places = append(places, timelines.Place(m))
	}
	survey := timelines.Survey{Catalog: h.catalog, WAL: h.wal, Current: h.current, Quarantines: h.quarantines, Server: h.server != nil, Now: time.Now()}
	if f.confirm { // by the clock that says how old things are; without it nothing may be written
		if survey.Now, err = h.archive.Now(ctx); err != nil {
			return err
		}
	}
	var p *timelines.Plan
	if back {
		p, err = timelines.DecideRecall(ctx, places, survey, t)
	} else {
		if survey.Unfinished, err = h.archive.Unfinished(ctx, host); err != nil {
			return err
		}
		p, err = timelines.DecideForget(ctx, places, survey, t, f.descendants)
	}
	if err != nil {
		return err
	}
	if f.asJSON {
		if err := a.printJSON(p); err != nil {
			return err
		}
	} else if err := a.printMoving(p); err != nil {
		return err
	}
	if !f.confirm {
		a.log.Info(fmt.Sprintf("Dry run: %d objects would be moved. Run with --confirm to execute", p.Objects))
		return nil
	}
	moved := 0
	o := timelines.Options{Head: archive.NewRecordHead("", release()), Reason: f.reason, Moved: func(n int, _ int64) { moved += n }}
	if err := timelines.Run(ctx, h.archive, places, survey, p, t, o); err != nil {
		return &advised{fmt.Errorf("%w (%d of %d objects were moved)", err, moved, p.Objects), cmp.Or(a.hint(err), "run the same command again: it goes on where this ended")}
	}
	what := "put aside"
	if back {
		what = "brought back"
	}
	a.log.Info(fmt.Sprintf("timeline %d was %s: %d objects", uint32(t), what, moved))
	return nil
}

func (a *app) printMoving(p *timelines.Plan) error {
	var b strings.Builder
	for _, m := range p.Timelines {
		fmt.Fprintf(&b, "timeline %d: %d objects, %s", uint32(m.Timeline), m.Objects, humanize.IBytes(uint64(m.Bytes)))
		if !m.Newest.IsZero() {
			fmt.Fprintf(&b, ", the newest of %s", m.Newest.UTC().Format(time.RFC3339))
		}
		fmt.Fprintln(&b)
		if m.History {
			fmt.Fprintln(&b, "  history file")
		}
		if m.Segments > 0 {
			fmt.Fprintf(&b, "  WAL %s to %s, %d segments\n", m.First, m.Last, m.Segments)
		}
		for _, name := range m.Backups {
			fmt.Fprintf(&b, "  backup %s\n", name)
		}
		for _, name := range m.CatchUps {
			fmt.Fprintf(&b, "  catch-up %s\n", name)
		}
	}
	for _, n := range p.Notes {
		fmt.Fprintln(&b, "note: "+n)
	}
	_, err := a.env.Stdout.Write([]byte(b.String()))
	return err
}
