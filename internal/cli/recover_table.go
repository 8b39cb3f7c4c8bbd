package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/bringback"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/drill"
	"holdfast/internal/events"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/recovertable"
	"holdfast/internal/restore"
)

// recoverFlags are those of recover-table, beside the settings that they stand for.
type recoverFlags struct {
	tables   []bringback.Table
	database string

	drop                  bool
	time, lsn, xid, since string
	rows                  uint64
	timeline              uint32

	as, dump, into     string
	noDiff, full, keep bool
	dir, user          string
	dryRun, json       bool

	target   catalog.Target
	before   bool // it, not behind it
	setSince time.Time

	cause  *events.Event  // what took it, where that was looked for
	others []events.Event // what else did
	oids   []uint32       // of the tables, as cause tells them
	names  *events.Backup // of the backup that names were looked up in, for that; nil for none
}

func (a *app) recoverTable() *cobra.Command {
	var f recoverFlags
	cmd := &cobra.Command{
		Use:   "recover-table DATABASE.SCHEMA.TABLE... | --database NAME",
		Short: "Bring tables, or a database, back as they were at a moment or before they were dropped",
		Long: "Restores what is needed of a backup into a scratch directory below HOLDFAST_DRILL_DIR, starts a private PostgreSQL there, replays WAL to the moment, and brings the\n" +
			"tables from there into the live server that PGHOST and its like lead to: under their own names where these are free, else with _recovered behind them. What is\n" +
			"live goes on meanwhile, and is not changed. Where a table of that name is still there the rows are compared with those in it.\n\n" +
			"All rows come in one transaction. Foreign keys follow, without a lock that others would have to wait for. What cannot be had, such as an owner that is gone, and views\n" +
			"that CASCADE took along, are printed at the end as a script for psql.\n\n" +
			"The moment is one of: --before-drop finds the newest DROP, TRUNCATE, or DELETE or UPDATE of many rows, of these tables in the archived WAL, or the DROP DATABASE, and takes\n" +
			"the moment just before. --lsn takes the moment just before the record at that position, as `events` shows it, --xid just before that transaction commits. --time takes what\n" +
			"was committed until then.\n\n" +
			"Of the backup only catalogues and what belongs to the tables is fetched, where it has a manifest (backups that WAL-G took have none) and is of PostgreSQL 13 or later.\n" +
			"Other files have their size and no content. Otherwise, and where that turns out not to do, all of it is restored; --dry-run says which, and how much it is.\n\n" +
			"A materialized view comes as a table with the rows that it had, and the script makes the view again. A whole database that is still there is compared table by table.\n\n" +
			"PGHOST must lead to the server itself: through a pooler a session is not one's own.\n\n" +
			"Names are as in SQL: shop.orders is the table public.orders of the database shop, and shop.\"Odd Schema\".\"T\" has quotation marks where SQL needs them.\n\n" +
			"Comparing reads both tables and sorts them by their key: on the live server that takes time and up to 10 GiB of temporary files, where PGUSER may bound that, and holds a\n" +
			"lock meanwhile that TRUNCATE and ALTER TABLE of that table wait for. --no-diff leaves it away. Expressions of the tables, such as those of CHECK and of generated columns,\n" +
			"run as PGUSER when rows are loaded, as with pg_restore.\n\n" +
			"With --dump it makes a file instead, and brings nothing to a server; but where one can be reached it is asked to archive what it has written last (pg_switch_wal), as without\n" +
			"--dump. With --keep the copy stays, and how to reach it is printed.",
		Example: "  holdfast recover-table shop.public.orders --before-drop\n  holdfast recover-table shop.orders shop.items --time '2026-05-06 09:08:09+02' --dump orders.dump\n" +
			"  holdfast recover-table --database shop --before-drop --dry-run\n  holdfast recover-table shop.orders --lsn 16/B374D848 --as orders_before",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if err := f.read(args, time.Now()); err != nil {
				return a.usage(cmd, err)
			}
			if cmd.Flags().Changed("dir") {
				s.Drill.Dir = f.dir
			}
			if cmd.Flags().Changed("user") {
				s.Drill.User = f.user
			}
			if s.Drill.Dir, err = a.absolute(s.Drill.Dir); err != nil {
				return err
			}
			if f.dump != "" {
				if f.dump, err = a.absolute(f.dump); err != nil {
					return err
				}
			}
			return a.recover(cmd.Context(), s, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.database, "database", "", "bring this whole database back")
	flags.BoolVar(&f.drop, "before-drop", false, "as it was before the newest DROP, TRUNCATE, or DELETE or UPDATE of many rows")
	flags.StringVar(&f.time, "time", "", "as it was at this time, with its zone, or this long ago")
	flags.StringVar(&f.lsn, "lsn", "", "as it was just before the record at this position, such as 16/B374D848")
	flags.StringVar(&f.xid, "xid", "", "as it was just before this transaction was committed")
	flags.StringVar(&f.since, "since", "24h", "how far back --before-drop and --xid look: an age, or a time")
	flags.Uint64Var(&f.rows, "rows", 1000, "how many rows a transaction deletes or updates for --before-drop to see it")
	flags.Uint32Var(&f.timeline, "timeline", 0, "along this timeline (default the one that the cluster is on)")
	flags.StringVar(&f.as, "as", "", "name of the one table on the live server, in its schema")
	flags.StringVar(&f.dump, "dump", "", "write this file instead, for pg_restore, or for psql where it ends in .sql")
	flags.StringVar(&f.into, "into-database", "", "load into this database of the live server")
	flags.BoolVar(&f.noDiff, "no-diff", false, "do not compare with tables that are still there")
	flags.BoolVar(&f.full, "full", false, "restore all of the backup")
	flags.BoolVar(&f.keep, "keep", false, "leave the copy running, and say how to reach it")
	flags.StringVar(&f.dir, "dir", "", "make the copy below this directory (HOLDFAST_DRILL_DIR)")
	flags.StringVar(&f.user, "user", "", "account of the copy, when root makes it (HOLDFAST_DRILL_USER)")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print what would be done, and do nothing")
	flags.BoolVar(&f.json, "json", false, "print what was done, or with --dry-run the plan, as JSON")
	targetFlag(cmd)
	return cmd
}

// read makes sense of the arguments and flags.
func (f *recoverFlags) read(args []string, now time.Time) (err error) {
	for _, arg := range args {
		t, err := parseTable(arg)
		if err != nil {
			return err
		}
		if slices.Contains(f.tables, t) {
			return fmt.Errorf("%s is named twice", t)
		}
		f.tables = append(f.tables, t)
	}
	if (len(f.tables) == 0) == (f.database == "") {
		return errors.New("name tables, as DATABASE.SCHEMA.TABLE, or a database with --database")
	}
	given := 0
	for _, is := range []bool{f.drop, f.time != "", f.lsn != "", f.xid != ""} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return errors.New("say which moment, by one of --before-drop, --time, --lsn and --xid")
	case f.as != "" && (len(f.tables) != 1 || f.dump != ""):
		return errors.New("--as goes with one table, and not with --dump")
	case f.into != "" && f.dump != "":
		return errors.New("give --into-database or --dump, not both")
	case f.dump != "" && slices.ContainsFunc(f.tables, func(t bringback.Table) bool { return t.Database != f.tables[0].Database }):
		return errors.New("--dump goes with tables of one database: make one file for each")
	}
	f.target.Timeline = wal.Timeline(f.timeline)
	switch {
	case f.time != "":
		f.target.Kind = catalog.AtTime
		if f.target.Time, err = moment(f.time, now); err != nil {
			return fmt.Errorf("--time: %w", err)
		}
	case f.lsn != "":
		f.target.Kind, f.before = catalog.AtLSN, true
		if f.target.LSN, err = wal.ParseLSN(f.lsn); err != nil {
			return fmt.Errorf("--lsn: %w", err)
		}
	case f.xid != "":
		f.target.Kind, f.before = catalog.AtXID, true
		if f.target.XID, err = strconv.ParseUint(f.xid, 10, 64); err != nil || uint32(f.target.XID) < 3 { // with or without its epoch; those below 3 are PostgreSQL's own
			return fmt.Errorf("--xid %s: want the number of a transaction", f.xid)
		}
	}
	if f.setSince, err = moment(f.since, now); err != nil {
		return fmt.Errorf("--since: %w", err)
	}
	return nil
}

// maxIdentifier is the length of the longest name in PostgreSQL, in bytes: NAMEDATALEN less one.
const maxIdentifier = 63

// parseTable reads DATABASE.SCHEMA.TABLE or DATABASE.TABLE, each a name as in SQL: in lower case, or as it stands within quotation marks.
func parseTable(text string) (bringback.Table, error) {
	want := func(why string) (bringback.Table, error) {
		return bringback.Table{}, fmt.Errorf(`table %s: %s; want DATABASE.SCHEMA.TABLE or DATABASE.TABLE, such as shop.orders or shop."Odd Schema"."T"`, text, why)
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return want("it is no text")
	}
	var parts []string
	for rest := text; ; {
		var name string
		if quoted, ok := strings.CutPrefix(rest, `"`); ok {
			var b strings.Builder
			for {
				piece, behind, ok := strings.Cut(quoted, `"`)
				if !ok {
					return want("a quotation mark is not closed")
				}
				b.WriteString(piece)
				if quoted = behind; !strings.HasPrefix(quoted, `"`) {
					break
				}
				b.WriteByte('"')
				quoted = quoted[1:]
			}
			name, rest = b.String(), quoted
		} else {
			end := strings.IndexAny(rest, `."`)
			if end < 0 {
				end = len(rest)
			}
			name, rest = strings.Map(lower, rest[:end]), rest[end:]
		}
		switch {
		case name == "":
			return want("a name is empty")
		case len(name) > maxIdentifier:
			return want("a name is longer than 63 bytes")
		}
		parts = append(parts, name)
		if rest == "" {
			break
		}
		if rest[0] != '.' {
			return want("there is something between a quotation mark and a dot")
		}
		rest = rest[1:]
	}
	switch len(parts) {
	case 2:
		return bringback.Table{Database: parts[0], Schema: "public", Name: parts[1]}, nil
	case 3:
		return bringback.Table{Database: parts[0], Schema: parts[1], Name: parts[2]}, nil
	}
	if len(parts) == 1 {
		return want("the database has to be named, too")
	}
	return want("it has " + strconv.Itoa(len(parts)) + " names")
}

// lower makes letters small that PostgreSQL does in names without quotation marks: those of ASCII.
func lower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		r += 'a' - 'A'
	}
	return r
}

// recovered is what recover-table did, as JSON shows it.
type recovered struct {
	Event   *shownEvent         `json:"event,omitempty"`  // that took it
	Others  []shownEvent        `json:"others,omitempty"` // that did too, and were not taken
	Plan    *recovertable.Plan  `json:"plan"`
	Partial bool                `json:"partial"`       // what was restored
	Why     string              `json:"why,omitempty"` // it is all of the backup, where a part was planned
	Fetched *drill.Fetched      `json:"fetched,omitempty"`
	Replay  *drill.Replay       `json:"replay,omitempty"`
	Seconds map[string]float64  `json:"seconds,omitempty"`
	Brought []*bringback.Report `json:"brought,omitempty"`
	Copy    *drill.Copy         `json:"copy,omitempty"` // that was kept
	Notes   []string            `json:"notes,omitempty"`
}

// recover brings back what was asked for, or says what it would do.
func (a *app) recover(ctx context.Context, s *config.Settings, f *recoverFlags) error {
	begun := time.Now()
	if !f.dryRun {
		a.starts("recover-table")
	}
	live := bringback.Live{Config: server.ConfigFromEnv(s.Postgres.Lookup)}
	if !f.dryRun { // before an hour is spent
		if f.dump == "" {
			if err := f.reachable(ctx, live); err != nil {
				return err
			}
		}
		if err := bringback.Check(ctx, live, f.tables, f.database, bringback.Options{As: f.as, IntoDatabase: f.into, Dump: f.dump}); err != nil {
			return err
		}
	}
	h, err := a.openHistory(ctx, s, toRead)
	if err != nil {
		return err
	}
	if f.drop || f.time != "" {
		a.archiveAll(ctx, s, h, f)
	}
	if err := a.findMoment(ctx, s, h, f); err != nil {
		return err
	}
	r, err := a.recoverRequest(s, h, f)
	if err != nil {
		return err
	}
	if f.dryRun {
		r.Restoring, r.Replaying = a.lastRates(ctx, h.archive)
	}
	if err := restore.CheckThawed(ctx, h.archive, r.Copy.Choice.Chain); err != nil {
		return err
	}
	done := &recovered{}
	if f.cause != nil {
		e := showEvent(f.cause)
		done.Event = &e
	}
	for i := range f.others {
		done.Others = append(done.Others, showEvent(&f.others[i]))
	}
	if f.dryRun {
		if done.Plan, err = recovertable.Decide(ctx, h.archive, r); err != nil {
			return err
		}
		done.Partial, done.Notes = done.Plan.Partial, done.Plan.Notes
		return a.printRecovery(f, done)
	}
	c, err := a.makeCopy(ctx, s, h, f, r, done)
	if err != nil {
		return err
	}
	err = a.bring(ctx, s, f, live, c, done)
	if f.keep && ctx.Err() == nil {
		if errKeep := c.Keep(); errKeep == nil {
			at := c.Copy()
			done.Copy = &at
			if c.Partial {
				done.Notes = append(done.Notes, "in the copy only what was asked for has content: other tables look empty, and their indexes broken")
			}
		} else {
			err = errors.Join(err, errKeep, c.Close(context.WithoutCancel(ctx)))
		}
	} else {
		err = errors.Join(err, c.Close(context.WithoutCancel(ctx)))
	}
	done.Seconds["total"] = time.Since(begun).Seconds()
	a.measures(done.Fetched.Bytes, done.Seconds)
	brought := slices.ContainsFunc(done.Brought, func(r *bringback.Report) bool { return len(r.Tables) > 0 }) // it may have failed behind that
	if err != nil && done.Copy == nil && !brought {
		return err
	}
	return errors.Join(err, a.printRecovery(f, done))
}

// makeCopy makes the copy, of an older backup where the one that was chosen cannot be read.
func (a *app) makeCopy(ctx context.Context, s *config.Settings, h *history, f *recoverFlags, r recovertable.Request, done *recovered) (*recovertable.Copy, error) {
	o := drill.Options{Release: release(), Workers: s.Restore.Workers, Memory: s.Drill.Memory, Nice: s.Drill.Nice, Keep: f.keep,
		Read: func() int64 { return a.traffic.Read().Read }, Progress: &drill.Progress{}, Logger: a.log}
	if s.Drill.Role != "" {
		o.Roles = []string{s.Drill.Role}
	} else if user, ok := s.Postgres.Lookup("PGUSER"); ok {
		o.Roles = []string{user, "postgres"}
	}
	if database, ok := s.Postgres.Lookup("PGDATABASE"); ok {
		o.Databases = []string{database}
	}
	drill.Clear(ctx, h.archive, s.Drill.Dir, a.log)
	var first error
	for {
		p, err := recovertable.Decide(ctx, h.archive, r)
		var c *recovertable.Copy
		if err == nil {
			done.Plan = p
			a.log.Info(fmt.Sprintf("restoring %s of %s, for %s", map[bool]string{true: "a part", false: "all"}[p.Partial], p.Backup, p.Moment()))
			stop := a.progress(ctx, "recover-table", o.Progress)
			c, err = recovertable.Run(ctx, h.archive, p, o)
			stop()
		}
		if err == nil || ctx.Err() != nil {
			return c, err
		}
		first = cmp.Or(first, err)
		var failed *drill.FailedError
		damaged := errors.Is(err, fs.ErrNotExist) || errors.As(err, &failed) && failed.Reason == drill.ReasonFetch
		if !damaged || errors.As(err, new(*drill.HostError)) {
			return nil, first
		}
		was := r.Copy.Choice.Backup.Name
		if r.Copy.Choice, err = older(h.catalog, was, f.target); err != nil {
			return nil, first
		}
		a.log.Warn(fmt.Sprintf("%s does not do, and an older backup is taken, with more WAL: %v", was, first))
	}
}

// older chooses the next older backup for a target.
func older(c *catalog.Catalog, than string, t catalog.Target) (choice catalog.Choice, err error) {
	err = fs.ErrNotExist
	behind := false
	for i := range slices.Backward(c.Backups) {
		b := &c.Backups[i]
		if behind && b.Condemned == nil {
			if choice, err = c.Choose(b.Name, t); err == nil {
				return choice, nil
			}
		}
		behind = behind || b.Name == than
	}
	return choice, err
}

// reachable sees whether the live server is there, with the databases that tables go into.
func (f *recoverFlags) reachable(ctx context.Context, live bringback.Live) error {
	c, err := server.Connect(ctx, live.Config)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "3D000" { // invalid_catalog_name: the database that is gone may be the usual one
		cfg := maps.Clone(live.Config)
		cfg["dbname"] = "postgres"
		c, err = server.Connect(ctx, cfg)
	}
	if err != nil {
		return &advised{fmt.Errorf("the live server: %w", err), "PGHOST and its like say where it is; --dump FILE makes a file instead, and needs no server"}
	}
	defer c.Close() // it holds nothing
	all, err := c.Databases(ctx)
	if err != nil {
		return err
	}
	has := func(name string) bool {
		return slices.ContainsFunc(all, func(d server.Database) bool { return d.Name == name })
	}
	for _, t := range f.tables {
		if name := cmp.Or(f.into, t.Database); !has(name) {
			return &advised{fmt.Errorf("the live server has no database %s to load into", name),
				"bring all of it back with --database, give another with --into-database, or make a file with --dump"}
		}
	}
	return nil
}

// findMoment looks in the WAL for what took the tables, or for what a transaction did, where one of these is asked for.
func (a *app) findMoment(ctx context.Context, s *config.Settings, h *history, f *recoverFlags) (err error) {
	if !f.drop && f.xid == "" {
		return nil
	}
	st := events.Stretch{WAL: h.wal, Since: f.setSince}
	timeline := cmp.Or(f.target.Timeline, h.current.Timeline)
	if st.Path, err = h.catalog.PathTo(timeline); err != nil {
		return err
	}
	search := recovertable.Search{Tables: f.tables, Database: f.database, Stretch: st, Names: a.names(ctx, s, h, st), Rows: f.rows}
	if len(search.Names) > 0 {
		f.names, _ = search.Names[0].(*events.Backup)
		search.Backup = f.names
	}
	if f.xid != "" {
		search.XID, search.Rows = uint32(f.target.XID), 1
	}
	a.log.Info(fmt.Sprintf("looking through the archived WAL since %s", catalog.FormatTime(f.setSince)))
	found, r, err := recovertable.Find(ctx, h.archive, search, events.Options{Logger: a.log})
	if err != nil && (r == nil || len(found) == 0) {
		return err
	}
	if err != nil {
		a.log.Warn(fmt.Sprintf("not all WAL could be read, and something newer may have happened: %v", err))
	}
	for _, m := range r.Missing {
		a.log.Warn(fmt.Sprintf("WAL is missing from %s to %s: what happened there is not known", h.wal.SegmentSize.Name(m.Timeline, m.First), h.wal.SegmentSize.Name(m.Timeline, m.Last)))
	}
	behind := ""
	if h.server != nil && h.server.Timeline == timeline && h.server.LSN > r.To {
		behind = fmt.Sprintf("; what the server has written behind %s, up to %s, is not archived, and was not seen: `select pg_switch_wal()` there has it archived", r.To, h.server.LSN)
		if len(found) > 0 {
			a.log.Warn("this may not be the newest" + behind)
		}
	}
	switch {
	case len(found) == 0 && f.drop:
		what := "these tables"
		if f.database != "" {
			what = "a DROP DATABASE of " + f.database
		} else if len(f.tables) == 1 {
			what = f.tables[0].String()
		}
		return &advised{fmt.Errorf("the archived WAL from %s to %s shows nothing that took rows from %s", r.From, r.To, what),
			"look further back with --since, for smaller changes with --rows, or at `holdfast events`; or name the moment with --time or --lsn" + behind}
	case len(found) == 0:
		return nil // it changed no row that was there, or is not in that stretch
	}
	e := found[len(found)-1]
	f.cause, f.others = &e, found[:len(found)-1]
	f.oids = recovertable.Touched(&e)
	f.before = true
	f.target = catalog.Target{Kind: catalog.AtLSN, LSN: e.LSN, Timeline: f.target.Timeline}
	a.log.Info("found: " + eventWords(&e))
	return nil
}

// switchPatience is how long the server may take to archive the segment that it ends.
const switchPatience = time.Minute

// archiveAll has the server archive what it has written so far, or what happened last would not be seen. Where that is not to be had it is told.
func (a *app) archiveAll(ctx context.Context, s *config.Settings, h *history, f *recoverFlags) {
	size, timeline := h.wal.SegmentSize, cmp.Or(f.target.Timeline, h.current.Timeline)
	if h.server == nil || h.server.Timeline != timeline || h.wal.Has(timeline, size.LastSegment(h.server.Final)) || f.dryRun ||
		f.time != "" && h.newestWAL(timeline).After(f.target.Time) {
		return
	}
	at, err := a.switchWAL(ctx, s)
	if err == nil {
		last := size.LastSegment(at)
		a.log.Info("waiting until the server has archived " + size.Name(timeline, last))
		ctx, cancel := context.WithTimeout(ctx, switchPatience)
		defer cancel()
		for err == nil && !h.wal.Has(timeline, last) {
			select {
			case <-ctx.Done():
				err = fmt.Errorf("%s is not archived: %w", size.Name(timeline, last), context.Cause(ctx))
			case <-time.After(200 * time.Millisecond):
				var w *catalog.WAL
				if w, err = catalog.LoadWAL(ctx, h.archive, size); err == nil {
					h.wal = w
				}
			}
		}
		h.server.LSN = at // what is written from now on does not matter
	}
	if err != nil {
		a.log.Warn(fmt.Sprintf("what the server has written last is not archived yet: %v", err))
	}
}

// newestWAL returns when the youngest segment of a timeline was archived; zero where there is none.
func (h *history) newestWAL(t wal.Timeline) time.Time {
	if w := h.wal.Timeline(t); w != nil && len(w.Runs) > 0 {
		return w.Runs[len(w.Runs)-1].Newest
	}
	return time.Time{}
}

// switchWAL has the server end its segment.
func (a *app) switchWAL(ctx context.Context, s *config.Settings) (wal.LSN, error) {
	c, err := server.Connect(ctx, server.ConfigFromEnv(s.Postgres.Lookup))
	if err != nil {
		return 0, err
	}
	defer c.Close() // it holds nothing
	return c.SwitchWAL(ctx)
}

// recoverRequest chooses the backup, and says where the copy is made.
func (a *app) recoverRequest(s *config.Settings, h *history, f *recoverFlags) (r recovertable.Request, err error) {
	r = recovertable.Request{Tables: f.tables, Database: f.database, OIDs: f.oids, Full: f.full, Names: f.names}
	r.Copy = drill.Request{Dir: s.Drill.Dir, Account: s.Drill.User, Program: a.env.Program, Env: settingsOf(s), Before: f.before}
	if s.Drill.Programs != "" {
		r.Copy.Programs = strings.Split(s.Drill.Programs, ":")
	}
	if s.File != "" {
		if r.Copy.Config, err = a.absolute(s.File); err != nil {
			return r, err
		}
	}
	name := ""
	if f.target.Kind == catalog.AtXID { // when it was committed is not known
		if name, err = h.before(f.setSince, f.target); err != nil {
			return r, err
		}
	}
	r.Copy.Choice, err = h.catalog.Choose(name, f.target)
	if err != nil {
		return r, err
	}
	a.tellTimeline(r.Copy.Choice)
	return r, nil
}

// enough is of how many bytes a rate tells something: of less most of the time is the server's start.
const enough = 128 << 20

// lastRates returns how fast the last drills that came up restored and replayed, bytes a second; 0 where none did so with enough, or it cannot be read.
func (a *app) lastRates(ctx context.Context, ar *archive.Archive) (restoring, replaying float64) {
	made, err := drill.Summarize(ctx, ar, drill.ReportOptions{})
	if err != nil {
		a.log.Debug("how fast drills were is not known", "error", err)
		return 0, 0
	}
	for _, d := range made.Drills {
		if d.OK && d.Fetched.Bytes >= enough {
			restoring = d.Fetched.Rate
		}
		if d.OK && d.Replay != nil && d.Replay.Bytes >= enough {
			replaying = d.Replay.Rate
		}
	}
	return restoring, replaying
}

// before names the newest backup for a target that was finished by a time or, where there is none, the oldest for the target.
func (h *history) before(at time.Time, t catalog.Target) (string, error) {
	choice, err := h.catalog.Choose("", catalog.Target{Kind: catalog.AtTime, Time: at, Timeline: t.Timeline})
	if err == nil {
		return choice.Backup.Name, nil
	}
	for i := range h.catalog.Backups {
		b := &h.catalog.Backups[i]
		if _, errOf := h.catalog.Choose(b.Name, t); errOf == nil && b.Condemned == nil {
			return b.Name, nil
		}
	}
	return "", err
}

// bring brings from the copy.
func (a *app) bring(ctx context.Context, s *config.Settings, f *recoverFlags, live bringback.Live, c *recovertable.Copy, done *recovered) error {
	fetched, replay := c.Fetched(), c.Replay()
	done.Partial, done.Why, done.Fetched, done.Replay, done.Seconds = c.Partial, c.Why, &fetched, &replay, c.Seconds()
	done.Notes = c.Notes
	o := bringback.Options{As: f.as, IntoDatabase: f.into, Dump: f.dump, Diff: !f.noDiff, Logger: a.log}
	var search []string
	if s.Drill.Programs != "" {
		search = strings.Split(s.Drill.Programs, ":")
	}
	begun := time.Now()
	var report *bringback.Report
	var err error
	if f.database != "" {
		report, err = bringback.Database(ctx, c.From(search), live, f.database, o)
	} else {
		report, err = bringback.Tables(ctx, c.From(search), live, f.tables, o)
	}
	done.Seconds["load"] = time.Since(begun).Seconds()
	if report != nil {
		done.Brought = append(done.Brought, report)
	}
	return err
}

// printRecovery prints what was done, or would be.
func (a *app) printRecovery(f *recoverFlags, d *recovered) error {
	if f.json {
		return a.printJSON(d)
	}
	var b strings.Builder
	line := func(name, format string, args ...any) {
		first := true
		for text := range strings.Lines(paragraph(fmt.Sprintf(format, args...), 104, "")) {
			if !first {
				name = ""
			}
			first = false
			fmt.Fprintf(&b, "%-10s %s", name, text)
		}
	}
	p := d.Plan
	if f.cause != nil {
		line("lost", "%s", eventWords(f.cause))
	}
	for i := range f.others {
		line("also", "%s", eventWords(&f.others[i]))
	}
	if len(f.others) > 0 {
		line("", "the newest was taken; for another give its LSN: --lsn %s", f.others[len(f.others)-1].LSN)
	}
	line("moment", "%s", p.Moment())
	line("backup", "%s, finished at %s", p.Backup, catalog.FormatTime(p.Finished))
	if f.dryRun {
		a.planLines(p, line)
	} else {
		a.doneLines(d, line)
	}
	for _, n := range d.Notes {
		line("note", "%s", n)
	}
	for _, r := range d.Brought {
		b.WriteString(leftText(r.Left))
	}
	_, err := fmt.Fprint(a.env.Stdout, harmless(b.String()))
	if d.Copy != nil {
		a.log.Info(fmt.Sprintf("the copy is running: psql -h %s -p %d -U %s", d.Copy.Socket, d.Copy.Port, d.Copy.Role))
		a.log.Info(fmt.Sprintf("to remove it: kill -QUIT %d, then rm -r %s", d.Copy.Pid, d.Copy.Scratch))
	}
	return err
}

// leftText is what is left to the operator as a script for psql: statements as they are, with the reasons as comments before them.
func leftText(left []bringback.Left) string {
	var b strings.Builder
	database, why := "", ""
	for _, l := range left {
		if l.Database != database {
			database, why = l.Database, ""
			fmt.Fprintf(&b, "\n-- left to do, in database %s:\n", cell(database))
		}
		if l.Why != why {
			why = l.Why
			b.WriteString(paragraph(why+":", 116, "-- "))
		}
		if harmless(l.SQL) != l.SQL {
			b.WriteString("-- \uFFFD in it stands for what a terminal would obey: --json prints it as it is\n")
		}
		b.WriteString(l.SQL + "\n")
	}
	return b.String()
}

// harmless replaces what a terminal would obey: names and values come from the database.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// eventWords is an event in a line.
func eventWords(e *events.Event) string {
	cells := eventLine(e)
	if !e.Time.IsZero() {
		cells[0] += " UTC"
	}
	if e.XID != 0 {
		cells[2] = "transaction " + cells[2]
	}
	return strings.Join(cells, "  ")
}

// planLines says what would be done.
func (a *app) planLines(p *recovertable.Plan, line func(name, format string, args ...any)) {
	size := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	how := "in part: " + p.Why
	if !p.Partial {
		how = "in full: " + p.Why
	}
	line("restored", "%s", how)
	line("fetched", "%s of the backup's %s, and at most %s of WAL (%s)", size(p.Fetch), size(p.Of), manyOf(uint64(p.Segments), "segment"), size(p.WAL))
	line("room", "%s needed below %s, %s free", size(p.Need), p.Scratch[:strings.LastIndexByte(p.Scratch, '/')+1], size(p.Free))
	line("server", "PostgreSQL %s in %s", p.Version, p.Programs)
	line("takes", "about %s until the copy is there, and then loading", manyOf(uint64(p.Seconds+59)/60, "minute"))
}

// doneLines says what was done.
func (a *app) doneLines(d *recovered, line func(name, format string, args ...any)) {
	size := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	took := func(phase string) time.Duration {
		return time.Duration(d.Seconds[phase] * float64(time.Second)).Round(100 * time.Millisecond)
	}
	how := "in part"
	switch {
	case d.Why != "":
		how = "in full, since a part did not do: " + d.Why
	case !d.Partial:
		how = "in full: " + d.Plan.Why
	}
	line("restored", "%s; %s of the backup's %s in %s", how, size(d.Fetched.Stored), size(d.Plan.Of), took("fetch"))
	line("replayed", "to %s, %s of WAL in %s", d.Replay.To, size(d.Replay.Bytes), took("replay"))
	for _, r := range d.Brought {
		if r.Dump != "" {
			line("file", "%s, %s", r.Dump, size(r.Bytes))
		} else if r.Database != "" {
			line("database", "%s on %s", cell(r.Database), r.Server)
		}
		if r.Whole {
			databaseLines(r, line)
		} else {
			for i := range r.Tables {
				tableLines(&r.Tables[i], r.Dump != "", line)
			}
		}
		for _, n := range r.Notes {
			line("note", "%s", n)
		}
	}
	line("took", "%s in all", took("total"))
}

// maxTableLines is how many tables of a whole database are shown.
const maxTableLines = 20

// databaseLines says what came of the tables of a database: of those that differ from the live ones or, where they were not compared, of those with the most rows.
func databaseLines(r *bringback.Report, line func(name, format string, args ...any)) {
	var rows int64
	shown, same, gone, failed := make([]*bringback.Recovered, 0, len(r.Tables)), 0, 0, 0
	compared := slices.ContainsFunc(r.Tables, func(t bringback.Recovered) bool { return t.Diff != nil })
	for i := range r.Tables {
		t := &r.Tables[i]
		rows += t.Rows
		if d := t.Diff; d != nil && !d.Failed && d.OnlyHere+d.OnlyThere+d.Changed == 0 && len(d.NotInLive)+len(d.NotInCopy) == 0 {
			same++
		} else if !compared || d != nil {
			shown = append(shown, t)
			switch {
			case d == nil:
			case d.Gone:
				gone++
			case d.Failed:
				failed++
			}
		}
	}
	line("tables", "%d, with %s rows", len(r.Tables), humanize.Comma(rows))
	weight := func(t *bringback.Recovered) int64 {
		switch d := t.Diff; {
		case d == nil:
			return t.Rows
		case d.Failed:
			return math.MaxInt64
		default:
			return d.OnlyHere + d.OnlyThere + d.Changed
		}
	}
	slices.SortStableFunc(shown, func(a, b *bringback.Recovered) int { return cmp.Compare(weight(b), weight(a)) })
	if compared {
		not := ""
		if gone > 0 {
			not = fmt.Sprintf(", %d are not in the live database", gone)
		}
		if failed > 0 {
			not += fmt.Sprintf(", %d could not be compared", failed)
		}
		line("", "compared with those of the live database: %d have the same rows, %d differ%s", same, len(shown)-gone-failed, not)
	}
	for _, t := range shown[:min(len(shown), maxTableLines)] {
		name, d := t.Table.Local(), t.Diff
		switch {
		case d == nil:
			line("", "%s: %s rows", name, humanize.Comma(t.Rows))
			continue
		case d.Failed:
			line("", "%s: %s", name, d.Note)
			continue
		}
		words := []string{fmt.Sprintf("%s rows only in the recovered table, %s only in the live one, %s changed, %s the same", humanize.Comma(d.OnlyHere), humanize.Comma(d.OnlyThere),
			humanize.Comma(d.Changed), humanize.Comma(d.Same))}
		if len(d.NotInLive) > 0 {
			words = append(words, "the live table has no "+strings.Join(d.NotInLive, ", "))
		}
		if len(d.NotInCopy) > 0 {
			words = append(words, "the recovered table has no "+strings.Join(d.NotInCopy, ", "))
		}
		line("", "%s: %s", name, strings.Join(words, "; "))
	}
	if more := len(shown) - maxTableLines; more > 0 {
		line("", "and %d more: --json lists all", more)
	}
}

// tableLines says what came of a table.
func tableLines(t *bringback.Recovered, file bool, line func(name, format string, args ...any)) {
	as := ""
	switch {
	case file:
	case t.As != t.Table:
		as = ", as " + t.As.String()
	default:
		as = ", under its own name"
	}
	parts := ""
	if t.Parts > 0 {
		parts = fmt.Sprintf(" in %s", manyOf(uint64(t.Parts), "partition"))
	}
	line("table", "%s: %s rows%s%s", t.Table, humanize.Comma(t.Rows), parts, as)
	d := t.Diff
	if d == nil {
		return
	}
	names := func(what string, columns []string) {
		if len(columns) > 0 {
			line("", "%s: %s", what, strings.Join(columns, ", "))
		}
	}
	if d.Failed {
		line("", "%s: %s", d.With, d.Note)
		return
	}
	by := "by whole rows, there is no key"
	if len(d.Key) > 0 {
		by = "by " + strings.Join(d.Key, ", ")
	}
	line("", "compared with %s %s: %s rows only in the recovered table, %s only in the live one, %s changed, %s the same", d.With, by, humanize.Comma(d.OnlyHere),
		humanize.Comma(d.OnlyThere), humanize.Comma(d.Changed), humanize.Comma(d.Same))
	names("not compared, the live table has no", d.NotInLive)
	names("not compared, the recovered table has no", d.NotInCopy)
	if d.Note != "" {
		line("", "%s", d.Note)
	}
	keys := func(what string, keys []string, of int64) {
		if len(keys) == 0 {
			return
		}
		more := ""
		if of > int64(len(keys)) {
			more = " …"
		}
		line("", "%s: %s%s", what, strings.Join(keys, " "), more)
	}
	keys("only in the recovered table", d.Examples.OnlyHere, d.OnlyHere)
	keys("only in the live one", d.Examples.OnlyThere, d.OnlyThere)
	var changed []string
	for _, c := range d.Examples.Changed {
		changed = append(changed, c.Key+" "+strings.Join(c.Columns, ","))
	}
	keys("changed", changed, d.Changed)
}
