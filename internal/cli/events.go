package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/events"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
)

// eventFlags are the flags of `events`.
type eventFlags struct {
	since, from, until string
	destructive, json  bool
	database, relation string
	timeline           uint32
	rows               uint64
}

func (a *app) events() *cobra.Command {
	var o eventFlags
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Say what happened in the archived WAL: drops, truncates, mass deletes, promotions, and when",
		Long: "Reads the archived WAL of a stretch of time and prints a line for each thing that happened: relations that were dropped, truncated or\n" +
			"rewritten, transactions that deleted or updated many rows, databases that were dropped, restore points, promotions, checkpoints, and where\n" +
			"WAL is missing. An aborted transaction did nothing, and temporary tables are left out.\n\n" +
			"LSN is exact: `backup-fetch DIR --target-lsn LSN --exclusive` restores the state just before the event, without --exclusive the one just\n" +
			"after. In PostgreSQL's words that is recovery_target_lsn with recovery_target_inclusive off, or on.\n\n" +
			"Names come from the files of the newest backup before the stretch, so that what is dropped has its name, too, and from the live server, where\n" +
			"PGHOST or its like lead to one on the same timeline. What has no name passes --database and --relation. A DROP, a TRUNCATE and a rewrite\n" +
			"such as VACUUM FULL all put new files in the place of old ones; where the WAL does not say for certain which it was, there is a question\n" +
			"mark, and --destructive shows it. Before PostgreSQL 15 it says less. What leaves no trace of its own,\n" +
			"such as ALTER TABLE DROP COLUMN, is not seen.\n\n" +
			"A time is an age ('2 hours ago', 90m), or a moment with its zone (2026-05-06 07:08:09+02).",
		Example: "  holdfast events --since '2 hours ago' --destructive\n  holdfast events --from 16/B374D848 --relation public.orders\n" +
			"  holdfast events --since 24h --json | jq 'select(.event == \"restore point\")'",
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			return a.showEvents(cmd.Context(), s, &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.since, "since", "", "what happened from this time on (default 24 hours ago, without --from)")
	f.StringVar(&o.from, "from", "", "what happened from this position or time on")
	f.StringVar(&o.until, "until", "", "what happened until this position or time")
	f.BoolVar(&o.destructive, "destructive", false, "only what takes data away")
	f.StringVar(&o.database, "database", "", "only what happened in this database")
	f.StringVar(&o.relation, "relation", "", "only what happened to this relation, as schema.name or name")
	f.BoolVar(&o.json, "json", false, "print JSON, a document a line: the events, then what was read")
	f.Uint32Var(&o.timeline, "timeline", 0, "along this timeline (default the one that the cluster is on)")
	f.Uint64Var(&o.rows, "rows", 1000, "how many rows a transaction deletes or updates to be told of")
	targetFlag(cmd)
	return cmd
}

// moment reads an age, such as 90m or "2 hours ago", or a time with its zone.
func moment(text string, now time.Time) (time.Time, error) {
	age := strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "ago"))
	if d, err := time.ParseDuration(strings.ReplaceAll(age, " ", "")); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if digits := strings.TrimRight(age, " abcdefghijklmnopqrstuvwxyz"); digits != "" && len(digits) < len(age) {
		n, err := strconv.ParseUint(digits, 10, 20)
		unit := strings.TrimSuffix(strings.TrimSpace(age[len(digits):]), "s")
		for _, u := range []struct {
			names []string
			of    time.Duration
		}{
			{[]string{"second", "sec"}, time.Second}, {[]string{"minute", "min"}, time.Minute}, {[]string{"hour"}, time.Hour},
			{[]string{"day", "d"}, 24 * time.Hour}, {[]string{"week", "w"}, 7 * 24 * time.Hour},
		} {
			if err == nil && slices.Contains(u.names, unit) {
				return now.Add(-time.Duration(n) * u.of), nil
			}
		}
	}
	t, err := catalog.ParseTime(text)
	if err != nil {
		err = fmt.Errorf("%w; an age will do, too, such as '2 hours ago' or 90m", err)
	}
	return t, err
}

// bound reads a position, or else a time.
func bound(flag, text string, now time.Time) (at wal.LSN, t time.Time, err error) {
	if text == "" {
		return 0, t, nil
	}
	if at, err = wal.ParseLSN(text); err == nil {
		return at, t, nil
	}
	if t, err = moment(text, now); err != nil {
		return 0, t, fmt.Errorf("%s: %w", flag, err)
	}
	return 0, t, nil
}

// stretch reads the flags that bound the stretch.
func (o *eventFlags) stretch(now time.Time) (s events.Stretch, err error) {
	if o.since != "" && o.from != "" {
		return s, errors.New("give --since or --from, not both")
	}
	since := o.since
	if since == "" && o.from == "" {
		since = "24h"
	}
	if s.From, s.Since, err = bound("--from", o.from, now); err != nil {
		return s, err
	}
	if since != "" {
		if s.Since, err = moment(since, now); err != nil {
			return s, fmt.Errorf("--since: %w", err)
		}
	}
	if s.To, s.Until, err = bound("--until", o.until, now); err != nil {
		return s, err
	}
	if s.To != 0 && s.To <= s.From || !s.Until.IsZero() && !s.Until.After(s.Since) {
		return s, errors.New("the stretch ends before it begins: --until is not behind --since or --from")
	}
	return s, nil
}

// names gathers who knows names: the newest backup of those that were finished before the stretch begins, or else the oldest there is, and then the live
// server where it is on the timeline. On another one, the same numbers may be those of other relations.
func (a *app) names(ctx context.Context, s *config.Settings, h *history, st events.Stretch) (names []events.Names) {
	if h.server != nil && h.server.Timeline == st.Path.Timeline() {
		names = append(names, events.FromServer(server.ConfigFromEnv(s.Postgres.Lookup)))
	}
	var chosen *catalog.Backup
	for i := range slices.Backward(h.catalog.Backups) {
		b := &h.catalog.Backups[i]
		lsn, ok := b.FinishLSN()
		if b.Sentinel == nil || !ok || b.Condemned != nil {
			continue
		}
		leg, on := st.Path.Leg(b.Timeline())
		if !on || leg.End != 0 && lsn > leg.End {
			continue
		}
		chosen = b
		if st.From != 0 && lsn <= st.From || !st.Since.IsZero() && b.Created().Before(st.Since) {
			break
		}
	}
	if chosen == nil {
		return names
	}
	c, err := h.catalog.Chain(chosen)
	if err == nil {
		var b *events.Backup
		if b, err = events.FromBackup(ctx, h.archive, c); err == nil {
			return append([]events.Names{b}, names...)
		}
	}
	if ctx.Err() == nil {
		a.log.Warn(fmt.Sprintf("%v: what was dropped may have no name", err))
	}
	return names
}

// shownEvent is an event as JSON shows it.
type shownEvent struct {
	Event        events.What     `json:"event"`
	Time         *time.Time      `json:"time,omitempty"`
	LSN          string          `json:"lsn"`
	Prev         string          `json:"previous_lsn,omitempty"`
	Timeline     wal.Timeline    `json:"timeline"`
	XID          uint32          `json:"xid,omitempty"`
	Database     uint32          `json:"database_oid,omitempty"`
	DatabaseName string          `json:"database,omitempty"`
	Relations    []shownRelation `json:"relations,omitempty"`
	Others       int             `json:"other_files,omitempty"`
	Name         string          `json:"name,omitempty"`
	Destructive  bool            `json:"destructive"`
	Certain      bool            `json:"certain"`
	Why          string          `json:"why,omitempty"`
	Prepared     bool            `json:"was_prepared,omitempty"`
	Partial      bool            `json:"may_have_begun_before,omitempty"`
}

type shownRelation struct {
	Name    string      `json:"name"`
	Schema  string      `json:"schema,omitempty"`
	OID     uint32      `json:"oid,omitempty"`
	Kind    events.Kind `json:"kind,omitempty"`
	File    string      `json:"file,omitempty"`
	Deleted uint64      `json:"deleted_rows,omitempty"`
	Updated uint64      `json:"updated_rows,omitempty"`
}

// shownStretch is what was read, as JSON shows it.
type shownStretch struct {
	Event    string       `json:"event"` // "read"
	Timeline wal.Timeline `json:"timeline"`
	From     string       `json:"from_lsn,omitempty"`
	To       string       `json:"to_lsn,omitempty"`
	First    *time.Time   `json:"first_commit,omitempty"`
	Last     *time.Time   `json:"last_commit,omitempty"`
	Segments int          `json:"segments"`
	Commits  uint64       `json:"commits"`
	Aborts   uint64       `json:"aborts"`
	Rates    []shownRate  `json:"rates,omitempty"`
	Missing  []shownHoles `json:"missing,omitempty"`
	Notes    []string     `json:"notes,omitempty"`
	NoStart  bool         `json:"begins_before_archive,omitempty"`
	NoEnd    bool         `json:"ends_behind_archive,omitempty"`
	Error    string       `json:"error,omitempty"` // why nothing is known of what comes behind
}

type shownRate struct {
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds"`
	Commits uint64    `json:"commits"`
}

func (a *app) showEvents(ctx context.Context, s *config.Settings, o *eventFlags) error {
	st, err := o.stretch(time.Now())
	if err != nil {
		return err
	}
	h, err := a.openHistory(ctx, s, toList)
	if err != nil {
		return err
	}
	timeline := wal.Timeline(o.timeline)
	if timeline == 0 {
		timeline = h.current.Timeline
	}
	if st.Path, err = h.catalog.PathTo(timeline); err != nil {
		return err
	}
	st.WAL = h.wal
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	n := 0
	each := func(e *events.Event) error {
		if !o.wanted(e) {
			return nil
		}
		n++
		if o.json {
			return a.printJSON(showEvent(e))
		}
		if n == 1 {
			fmt.Fprintln(w, "TIME\tLSN\tXID\tEVENT\tWHAT")
		}
		fmt.Fprintln(w, strings.Join(eventLine(e), "\t"))
		return nil
	}
	r, err := events.Scan(ctx, h.archive, st, events.Options{Names: a.names(ctx, s, h, st), Rows: o.rows, Logger: a.log}, each)
	if err != nil && (r == nil || r.To == 0) {
		return err
	}
	// What was found before it failed is told, too.
	if o.json {
		shown := showStretch(r, timeline, h.wal.SegmentSize)
		if err != nil {
			shown.Error = err.Error()
		}
		return cmp.Or(err, a.printJSON(shown))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	stretchOf(&b, r, o, n, timeline, h, err)
	_, failed := fmt.Fprint(a.env.Stdout, b.String())
	return cmp.Or(err, failed)
}

// wanted says whether an event is to be shown. WAL that is missing always is, and what has no name: it may be what was asked for.
func (o *eventFlags) wanted(e *events.Event) bool {
	switch {
	case e.What == events.MissingWAL:
		return true
	case o.destructive && !e.Destructive:
		return false
	case o.database != "" && e.DatabaseName != o.database && (e.Database == 0 || e.DatabaseName != "") && strconv.FormatUint(uint64(e.Database), 10) != o.database:
		return false
	case o.relation != "" && e.What != events.DropDatabase: // which had all its relations
		return slices.ContainsFunc(e.Relations, func(r events.Relation) bool {
			return r.Name == "" || r.String() == o.relation || r.Name == o.relation || r.Name != "" && e.DatabaseName+"."+r.String() == o.relation
		})
	}
	return true
}

// maxNamed is how many relations a line names.
const maxNamed = 12

// eventLine is the columns of an event.
func eventLine(e *events.Event) []string {
	at, xid := "-", "-"
	if !e.Time.IsZero() {
		at = e.Time.UTC().Format("2006-01-02 15:04:05.000")
	}
	if e.XID != 0 {
		xid = strconv.FormatUint(uint64(e.XID), 10)
	}
	what := strings.ToUpper(string(e.What))
	if !e.Certain && e.What != events.MissingWAL {
		what += "?"
	}
	return []string{at, e.LSN.String(), xid, what, eventText(e)}
}

// eventText says what an event did to what.
func eventText(e *events.Event) string {
	var parts []string
	for i, r := range e.Relations {
		if i == maxNamed {
			parts = append(parts, fmt.Sprintf("%d more", len(e.Relations)-maxNamed))
			break
		}
		text := cell(r.String())
		if r.Kind != 0 && r.Kind != events.Table {
			text = r.Kind.String() + " " + text
		}
		if rows := r.Deleted + r.Updated; rows > 0 {
			text += " (" + humanize.Comma(int64(min(rows, 1<<62))) + " rows)"
		}
		parts = append(parts, text)
	}
	text := strings.Join(parts, ", ")
	if e.Name != "" {
		text = cell(e.Name)
	}
	if e.Database != 0 {
		db := cell(e.DatabaseName)
		if e.DatabaseName == "" {
			db = fmt.Sprintf("database %d", e.Database)
		}
		if text == "" {
			text = db
		} else {
			text = db + ": " + text
		}
	}
	if e.Partial && len(e.Relations) > 0 && e.Relations[0].Deleted+e.Relations[0].Updated > 0 {
		text += "; it may have begun before what was read"
	}
	if e.Prepared {
		text += "; it was prepared, and just before holds its locks until ROLLBACK PREPARED"
	}
	if e.Why != "" {
		text += "; not certain: " + e.Why
	}
	return text
}

// stretchOf says what was read, and how to go on. failed is what ended it too early, or nil.
func stretchOf(b *strings.Builder, r *events.Report, o *eventFlags, n int, timeline wal.Timeline, h *history, failed error) {
	size := h.wal.SegmentSize
	along := ""
	if timeline != h.current.Timeline {
		along = fmt.Sprintf(" --target-timeline %d", uint32(timeline))
	}
	switch {
	case n > 0:
		b.WriteString("\nTimes are UTC. The state just before an event: `holdfast backup-fetch DIR --target-lsn LSN --exclusive" + along + "`, with the LSN of its line.\n")
	case failed != nil:
		b.WriteString("Nothing was found until reading failed.\n")
	case o.destructive:
		b.WriteString("Nothing that takes data away was found.\n")
	default:
		b.WriteString("Nothing of note was found.\n")
	}
	fmt.Fprintf(b, "Read timeline %d from %s to %s, %s", uint32(timeline), r.From, r.To, manyOf(uint64(r.Segments), "segment"))
	if !r.First.IsZero() {
		fmt.Fprintf(b, "; commits from %s to %s: %s", r.First.UTC().Format(moments), r.Last.UTC().Format(moments), humanize.Comma(int64(r.Commits)))
		if took := r.Last.Sub(r.First); took >= time.Second {
			fmt.Fprintf(b, ", %.1f per second", float64(r.Commits)/took.Seconds())
		}
		if most := r.Busiest(); most.Commits > 0 && len(r.Rates) > 1 {
			fmt.Fprintf(b, ", most from %s on for %s: %.1f per second", most.At.UTC().Format("15:04"), most.Span, float64(most.Commits)/most.Span.Seconds())
		}
	}
	b.WriteString(".\n")
	for _, m := range r.Missing {
		fmt.Fprintf(b, "Missing: %s to %s (%s). What happened there is not known.\n", size.Name(m.Timeline, m.First), size.Name(m.Timeline, m.Last), manyOf(uint64(m.Last-m.First)+1, "segment"))
	}
	if r.NoBeginning {
		fmt.Fprintf(b, "The archive begins at %s: what happened before was not seen.\n", r.From)
	}
	switch {
	case failed != nil:
		fmt.Fprintf(b, "Reading failed: what happened behind %s was not seen.\n", r.To)
	case !r.NoEnd:
	case h.server == nil || h.server.Timeline != timeline:
		fmt.Fprintf(b, "What may have been written behind %s is not archived, and was not seen.\n", r.To)
	case h.server.LSN > r.To:
		fmt.Fprintf(b, "The server has written up to %s: what is behind %s is not archived yet, and was not seen.\n", h.server.LSN, r.To)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(b, "Note: %s.\n", note)
	}
}

func showEvent(e *events.Event) shownEvent {
	shown := shownEvent{
		Event: e.What, LSN: e.LSN.String(), Timeline: e.Timeline, XID: e.XID, Database: e.Database, DatabaseName: e.DatabaseName, Others: e.Others, Name: e.Name,
		Destructive: e.Destructive, Certain: e.Certain, Why: e.Why, Prepared: e.Prepared, Partial: e.Partial, Time: utc(e.Time),
	}
	if e.Prev != 0 {
		shown.Prev = e.Prev.String()
	}
	for _, r := range e.Relations {
		row := shownRelation{Name: r.Name, Schema: r.Schema, OID: r.OID, Kind: r.Kind, Deleted: r.Deleted, Updated: r.Updated}
		if r.File.Number != 0 {
			row.File = r.File.String()
		}
		shown.Relations = append(shown.Relations, row)
	}
	return shown
}

// utc is a time for JSON; nil for none.
func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func showStretch(r *events.Report, timeline wal.Timeline, size wal.SegmentSize) shownStretch {
	shown := shownStretch{
		Event: "read", Timeline: timeline, From: r.From.String(), To: r.To.String(), First: utc(r.First), Last: utc(r.Last), Segments: r.Segments,
		Commits: r.Commits, Aborts: r.Aborts, Notes: r.Notes, NoStart: r.NoBeginning, NoEnd: r.NoEnd,
	}
	for _, rate := range r.Rates {
		shown.Rates = append(shown.Rates, shownRate{rate.At, rate.Span.Seconds(), rate.Commits})
	}
	for _, m := range r.Missing {
		shown.Missing = append(shown.Missing, shownHoles{First: size.Name(m.Timeline, m.First), Last: size.Name(m.Timeline, m.Last), Segments: uint64(m.Last-m.First) + 1})
	}
	return shown
}
