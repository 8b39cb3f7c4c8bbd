package drill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
)

// ask makes all checks, those of the running copy first. An error ends them.
func (d *drill) ask(ctx context.Context) error {
	d.Progress.enter("checks", 0)
	if err := d.enter(ctx); err != nil {
		return err
	}
	if err := d.checkReplay(ctx); err != nil {
		return err
	}
	d.compareSettings(ctx)
	for _, check := range []func(context.Context){d.checkTime, d.checkExtensions, d.checkRelations, d.checkQuestions, d.checkRows} {
		if check(ctx); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return d.checkPages(ctx)
}

// connect opens a session in a database of the copy. What databases and roles set for their sessions does not hold in it, but for the search path where it is open.
func (d *drill) connect(ctx context.Context, role, database string, open bool) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(d.instance.ConnString(role, database) + " target_session_attrs=any")
	if err != nil {
		return nil, err
	}
	c.RuntimeParams = map[string]string{"application_name": "holdfast drill", "client_encoding": "UTF8", "statement_timeout": "0", "lock_timeout": "0",
		"idle_in_transaction_session_timeout": "0", "default_transaction_read_only": "off", "session_preload_libraries": "", "local_preload_libraries": "",
		"row_security": "off", "DateStyle": "ISO", "TimeZone": "UTC", "search_path": "pg_catalog"}
	if open {
		delete(c.RuntimeParams, "search_path")
	}
	if d.control.Major >= 17 {
		c.RuntimeParams["event_triggers"] = "off"
		c.RuntimeParams["transaction_timeout"] = "0"
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Message == "database locale is incompatible with operating system" { // CheckMyDatabase in src/backend/utils/init/postinit.c
		return nil, &HostError{fmt.Errorf("%w: %s", err, pg.Detail), noLocale}
	}
	if err != nil || conn.PgConn().ParameterStatus("server_encoding") != "SQL_ASCII" {
		return conn, err
	}
	if err := unconverted(ctx, conn); err != nil { // its bytes need not be UTF-8
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}

// unconverted has a session give and take text as it is in its database, whatever that is.
func unconverted(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, `set client_encoding = 'SQL_ASCII'`)
	return err
}

// enter finds a superuser to ask as, and the databases.
func (d *drill) enter(ctx context.Context) error {
	roles := d.Roles
	if len(roles) == 0 {
		roles = []string{"postgres", d.plan.Account}
		if u, err := user.Current(); err == nil {
			roles = append(roles, u.Username)
		}
	}
	var errs []error
	var tried []string
	homes := d.homes()
	for _, role := range roles {
		if role == "" || slices.Contains(tried, role) {
			continue
		}
		tried = append(tried, role)
		for _, database := range homes {
			c, err := d.connect(ctx, role, database, false)
			if err == nil {
				var super bool
				err = c.QueryRow(ctx, `select rolsuper from pg_roles where rolname = current_user`).Scan(&super)
				if err == nil && super {
					d.databases, err = names(ctx, c, `select datname::text from pg_database where datallowconn and datconnlimit <> -2 order by (datname = 'template1'), random()`)
				}
				_ = c.Close(ctx) // nothing is pending on it
				if err == nil && super {
					d.role, d.home = role, database
					return nil
				}
				err = cmp.Or(err, fmt.Errorf("%s %w", role, errNoSuperuser))
			}
			errs = append(errs, err)
			if isOfRole(err) && !noDatabase(err) { // whatever the database
				break
			}
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if i := slices.IndexFunc(errs, func(err error) bool { return !isOfRole(err) }); i >= 0 {
		if host := ofHost(errs[i]); host != nil {
			return &HostError{fmt.Errorf("the copy is up, and cannot be asked: %w", errs[i]), host.Advice}
		}
		return d.failed(ctx, ReasonCheck, fmt.Errorf("the copy is up, and cannot be asked: %w", errs[i]))
	}
	entered := slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return hasCode(err, "28000") }) // by roles that there are
	if len(entered) > 0 && !slices.ContainsFunc(entered, func(err error) bool { return !noDatabase(err) }) {
		return &HostError{fmt.Errorf("the copy is up, and cannot be asked, as it has no database of the names %s: %w", strings.Join(homes, ", "), entered[0]),
			"name a database of the cluster that lets a superuser in: PGDATABASE"}
	}
	return &HostError{fmt.Errorf("the copy is up, and lets in no superuser of the names %s: %w", strings.Join(tried, ", "), errs[0]),
		"name the superuser of the cluster: --role or HOLDFAST_DRILL_ROLE"}
}

// homes are the databases in which the copy may be asked: those that nearly every cluster has, and others that are known, each once.
func (d *drill) homes() []string {
	homes := []string{"postgres", "template1"}
	for _, database := range d.Databases {
		if database != "" && !slices.Contains(homes, database) {
			homes = append(homes, database)
		}
	}
	return homes
}

// hasCode reports whether an error is the server's and has one of these codes.
func hasCode(err error, codes ...string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && slices.Contains(codes, pg.Code)
}

// noDatabase reports whether an error is that there is no such database, or that it lets nobody in.
func noDatabase(err error) bool {
	return hasCode(err, "3D000", "55000") // invalid_catalog_name, object_not_in_prerequisite_state
}

var errNoSuperuser = errors.New("is no superuser")

// isOfRole reports whether an error is that whom we ask as is not who can, or that there is no such database: nothing that damage looks like. Who is no superuser may not
// set what our sessions begin with.
func isOfRole(err error) bool {
	return hasCode(err, "28000", "42501") || noDatabase(err) || errors.Is(err, errNoSuperuser) // invalid_authorization_specification, insufficient_privilege
}

// names runs a query of one column of text.
func names(ctx context.Context, c *pgx.Conn, query string, args ...any) ([]string, error) {
	rows, err := c.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// in runs do in a session of a database.
func (d *drill) in(ctx context.Context, database string, open bool, do func(*pgx.Conn) error) error {
	c, err := d.connect(ctx, d.role, database, open)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }() // nothing is pending on it
	return do(c)
}

// checkReplay looks whether recovery came to where it was to: PostgreSQL takes WAL that it cannot use for the end of the WAL, and opens what it has.
func (d *drill) checkReplay(ctx context.Context) error {
	begun, f, b := time.Now(), d.facts.get(), d.plan.request.Choice.Backup
	r := &Replay{LastWAL: d.plan.Restore.LastWAL, ArchivedAt: d.plan.Restore.LastAt}
	d.record.Replay = r
	var to, file *string
	var last *time.Time
	err := d.in(ctx, d.home, false, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `select pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(), pg_walfile_name(pg_current_wal_lsn())`).Scan(&to, &last, &file)
	})
	if err != nil {
		return d.failed(ctx, ReasonReplay, err)
	}
	var at wal.LSN
	if to != nil {
		at = lsnOf(*to)
		r.To = *to
	}
	if last != nil {
		r.LastCommit = last.UTC()
	}
	if file != nil && len(*file) == 24 {
		if t, err := strconv.ParseUint((*file)[:8], 16, 32); err == nil {
			r.Timeline = uint32(t)
		}
	}
	if start, ok := b.StartLSN(); ok && at >= start {
		r.From, r.Bytes = start.String(), int64(at-start)
		r.Rate = float64(r.Bytes) / d.record.Seconds["replay"]
	}
	check := Check{Name: "replay", Result: Passed}
	problem := ""
	switch size, err := b.SegmentSize(); {
	case b.Segment() == "":
		check.Text = "the backup was taken while the server was stopped: there is no WAL to replay"
	case err != nil:
		return err
	case !f.consistent:
		problem = "the log does not say that a consistent state was reached"
	case d.target() && f.stopped == "":
		problem = fmt.Sprintf("the target, %s, was not reached: replay ended at %s", d.plan.Target, r.To)
	case d.target():
		check.Text = "consistent; " + f.stopped
	case r.LastWAL != "":
		_, n, err := size.ParseSegment(r.LastWAL)
		if err != nil {
			return err
		}
		if at < size.Start(n) {
			problem = fmt.Sprintf("replay ended at %s, and the archive has WAL without a gap up to %s, which begins at %s", r.To, r.LastWAL, size.Start(n))
			break
		}
		if f.problem != "" && at < size.Start(n+1) && !d.plan.Restore.Pieces && d.plan.request.StreamFrom == "" {
			problem = fmt.Sprintf("replay ended at %s, inside the last archived segment, %s", r.To, r.LastWAL)
			break
		}
		fallthrough
	default:
		check.Text = fmt.Sprintf("consistent, and all WAL replayed that is archived, up to %s", r.To)
	}
	if problem != "" && f.problem != "" {
		problem += ": PostgreSQL says: " + f.problem
	}
	if problem == "" && !d.target() && b.Segment() != "" {
		var err error
		if problem, err = d.gap(ctx); err != nil {
			return err
		}
	}
	if problem != "" {
		check.Result, check.Text = Failed, problem
	}
	check.Seconds = time.Since(begun).Seconds()
	d.checked(check)
	if problem != "" {
		return d.failed(ctx, ReasonReplay, errors.New(problem))
	}
	return nil
}

// gap says which WAL the archive lacks although it had WAL behind that when the drill began, "" where it lacks none: nothing behind it can be replayed.
func (d *drill) gap(ctx context.Context) (string, error) {
	choice := d.plan.request.Choice
	size, err := choice.Backup.SegmentSize()
	if err != nil {
		return "", err
	}
	_, first, err := size.ParseSegment(d.plan.Restore.FirstWAL)
	if err != nil {
		return "", err
	}
	w, err := catalog.LoadWAL(ctx, d.archive, size)
	if err != nil {
		return "", err
	}
	gap, found := w.NextGap(choice.Path, first)
	if !found {
		return "", nil
	}
	from, to := size.Name(gap.Timeline, gap.First), size.Name(gap.Timeline, gap.Last)
	if run := w.Find(gap.Timeline, gap.Last+1); run != nil && !run.Archived(gap.Last+1).Before(d.begun) {
		return "", nil // it may be on its way
	}
	if from != to {
		from += " to " + to
	}
	return fmt.Sprintf("the archive lacks %s: what it has of WAL behind that cannot be replayed", from), nil
}

// quiet are settings of which nobody need hear that they differ.
var quiet = []string{"data_directory", "hba_file", "ident_file", "external_pid_file", "lc_messages", "unix_socket_permissions", "unix_socket_group", "unix_socket_directories",
	"listen_addresses", "port", "bonjour", "stats_temp_directory", "restart_after_crash", "logging_collector", "primary_conninfo", "primary_slot_name"} // of which those of a primary may hold a password

// compareSettings says which settings are other than in the backup's configuration.
func (d *drill) compareSettings(ctx context.Context) {
	err := d.in(ctx, d.home, false, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, `select name, setting from pg_file_settings where name is not null and setting is not null order by seqno`)
		if err != nil {
			return err
		}
		was := map[string]string{}
		var name, value string
		if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { was[name] = value; return nil }); err != nil {
			return err
		}
		if rows, err = c.Query(ctx, `select name, vartype, coalesce(unit, '') from pg_settings`); err != nil {
			return err
		}
		known := map[string]parameter{}
		var p parameter
		if _, err := pgx.ForEachRow(rows, []any{&name, &p.kind, &p.unit}, func() error { known[name] = p; return nil }); err != nil {
			return err
		}
		for name, to := range d.server.Settings {
			if from, given := was[name]; given && !known[name].same(from, to) && !strings.HasPrefix(name, "log_") && !slices.Contains(quiet, name) {
				d.record.Changed = append(d.record.Changed, Change{name, from, to})
			}
		}
		slices.SortFunc(d.record.Changed, func(x, y Change) int { return strings.Compare(x.Name, y.Name) })
		return nil
	})
	if err != nil {
		d.note("which settings differ from the backup's is not known: %v", err)
	}
}

// beatsApart is how far apart heartbeats are, and how much later than the drill's beginning one may be: by a clock that is further ahead it says nothing.
const beatsApart = time.Minute

// checkTime measures how long it took, and what would have been lost.
func (d *drill) checkTime(ctx context.Context) {
	r := d.record
	if d.MaxRTO > 0 {
		c := Check{Name: "rto", Result: Passed, Text: fmt.Sprintf("it takes writes after %s, within %s", round(r.RTO), d.MaxRTO)}
		if r.RTO > d.MaxRTO.Seconds() {
			c.Result, c.Text = Failed, fmt.Sprintf("it took %s until it took writes, longer than %s", round(r.RTO), d.MaxRTO)
		}
		d.checked(c)
	}
	if d.plan.request.Choice.Target.Kind != catalog.Latest {
		return
	}
	begun := time.Now()
	of, at := "the last commit", r.Replay.LastCommit
	if r.Replay.ArchivedAt.After(at) { // a server at which nothing happens commits nothing
		of, at = "when the last WAL was archived", r.Replay.ArchivedAt
	}
	if d.Heartbeat != "" {
		database, query, _ := strings.Cut(d.Heartbeat, ":")
		err := d.in(ctx, strings.TrimSpace(database), true, func(c *pgx.Conn) error { return c.QueryRow(ctx, query).Scan(&at) })
		of = "the heartbeat"
		if err != nil {
			d.tell(Check{Name: "freshness"}, begun, []error{fmt.Errorf("the heartbeat cannot be read: %w", err)}, "")
			return
		}
	} else if d.Beat != "" {
		switch beat, err := d.lastBeat(ctx); {
		case err != nil:
			d.note("the heartbeat in database %s cannot be read, %s counts: %v", d.Beat, of, err)
		case r.Replay.LastCommit.After(beat.Add(beatsApart)): // nobody has left one since, and the server has written all the same
			of, at = "the last commit", r.Replay.LastCommit
		default: // when WAL was archived says nothing of what was in it
			of, at = "the heartbeat", beat
		}
	}
	if at.IsZero() {
		return
	}
	rpo := max(0, d.begun.Sub(at).Seconds())
	r.RPO, r.RPOOf = &rpo, of
	c := Check{Name: "freshness", Result: Passed, Text: fmt.Sprintf("%s is %s before the drill began", of, round(rpo)), Seconds: time.Since(begun).Seconds()}
	if d.MaxRPO > 0 && rpo > d.MaxRPO.Seconds() {
		c.Result, c.Text = Failed, fmt.Sprintf("%s, longer than %s", c.Text, d.MaxRPO)
	}
	d.checked(c)
}

// lastBeat reads the table holdfast.heartbeat. Anybody who may create a schema can lay out something of that name; a table runs nothing when it is read.
func (d *drill) lastBeat(ctx context.Context) (at time.Time, err error) {
	err = d.in(ctx, d.Beat, false, func(c *pgx.Conn) error {
		var plain bool
		err := c.QueryRow(ctx, `select coalesce((select t.relkind = 'r' and not t.relrowsecurity and a.atttypid = 'timestamptz'::regtype from pg_class t
			join pg_namespace n on n.oid = t.relnamespace join pg_attribute a on a.attrelid = t.oid and a.attname = 'at' where n.nspname = 'holdfast' and t.relname = 'heartbeat'), false)`).Scan(&plain)
		if err != nil {
			return err
		}
		if !plain {
			return errors.New("the copy has no table holdfast.heartbeat")
		}
		var last, ahead *time.Time
		err = c.QueryRow(ctx, `select max(at) filter (where at <= $1), max(at) filter (where at > $1) from only holdfast.heartbeat`, d.begun.Add(beatsApart)).Scan(&last, &ahead)
		switch {
		case err != nil:
			return err
		case last == nil && ahead != nil:
			return fmt.Errorf("that of %s is later than this drill began: it is of a clock that is ahead", ahead.UTC().Format(time.RFC3339))
		case ahead != nil:
			d.note("a heartbeat in database %s is of %s, later than this drill began: it is of a clock that was ahead, and does not count", d.Beat, ahead.UTC().Format(time.RFC3339))
		}
		if last == nil {
			return errors.New("the table holdfast.heartbeat of the copy is empty")
		}
		at = *last
		return nil
	})
	return at, err
}

// inEach runs do in every database, and returns what went wrong in them.
func (d *drill) inEach(ctx context.Context, do func(database string, c *pgx.Conn) error) (problems []error) {
	for _, database := range d.databases {
		if err := d.in(ctx, database, false, func(c *pgx.Conn) error { return do(database, c) }); err != nil {
			if ctx.Err() != nil {
				return problems
			}
			problems = append(problems, fmt.Errorf("database %s: %w", database, err))
		}
	}
	return problems
}

// shown is how many problems of one check are told.
const shown = 5

// tell ends a check with what is wrong, or with fine. Where nothing is wrong but with this host it could not be made.
func (d *drill) tell(c Check, begun time.Time, problems []error, fine string) {
	c.Result, c.Text, c.Seconds = Passed, fine, time.Since(begun).Seconds()
	if len(problems) > 0 {
		c.Result = Failed
		if host := ofHost(problems[0]); !slices.ContainsFunc(problems, func(err error) bool { return ofHost(err) == nil }) {
			c.Result, d.host = Skipped, cmp.Or(d.host, &HostError{fmt.Errorf("check %s: %w", c.Name, problems[0]), host.Advice})
		}
		var texts []string
		for _, err := range problems[:min(len(problems), shown)] {
			texts = append(texts, err.Error())
		}
		c.Text = strings.Join(texts, "; ")
		if more := len(problems) - shown; more > 0 {
			c.Text += fmt.Sprintf("; and %d more", more)
		}
	}
	d.checked(c)
}

// checkExtensions looks whether the extensions of the databases can be had on this host.
func (d *drill) checkExtensions(ctx context.Context) {
	begun, all := time.Now(), map[string]bool{}
	var missing []error
	problems := d.inEach(ctx, func(database string, c *pgx.Conn) error {
		has, err := names(ctx, c, `select extname::text from pg_extension`)
		if err != nil {
			return err
		}
		gone, err := d.notInstalled(ctx, c, has...)
		for _, e := range has {
			all[e] = true
		}
		for _, e := range gone {
			missing = append(missing, fmt.Errorf("database %s has the extension %s, which is not installed here for PostgreSQL %d", database, e, d.control.Major))
		}
		return err
	})
	if ctx.Err() == nil {
		d.tell(Check{Name: "extensions"}, begun, append(missing, problems...), fmt.Sprintf("%d in use, all are installed here", len(all)))
	}
}

// notInstalled returns which of the extensions are not installed on this host. Only from PostgreSQL 18 on may they be in other directories than one (extension_control_path);
// before, pg_available_extensions is not asked, as it fails where any extension's control file is broken, nor is pg_stat_file, which PostgreSQL 10 keeps to the data directory.
func (d *drill) notInstalled(ctx context.Context, c *pgx.Conn, extensions ...string) (missing []string, err error) {
	if d.control.Major >= 18 {
		return names(ctx, c, `select e from unnest($1::text[]) e where not exists (select from pg_available_extensions a where a.name = e) order by e`, extensions)
	}
	share, err := names(ctx, c, `select setting from pg_config where name = 'SHAREDIR'`)
	if err != nil || len(share) != 1 {
		return nil, err
	}
	for _, e := range slices.Sorted(slices.Values(extensions)) {
		switch _, err := os.Stat(filepath.Join(share[0], "extension", e+".control")); {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, e)
		case err != nil:
			return nil, err
		}
	}
	return missing, nil
}

// checkQuestions asks the operator's own questions.
func (d *drill) checkQuestions(ctx context.Context) {
	for _, q := range d.Questions {
		begun := time.Now()
		var got []byte
		err := d.in(ctx, q.Database, true, func(c *pgx.Conn) (err error) {
			got, err = first(ctx, c.PgConn(), q.SQL)
			return err
		})
		if ctx.Err() != nil {
			return
		}
		value := "null"
		if got != nil {
			value = truncate(string(got), 200)
		}
		var problems []error
		switch {
		case err != nil:
			problems = []error{err}
		case !q.Expect.Met(got):
			problems = []error{fmt.Errorf("it is %s, expected was %s", value, q.Expect)}
		}
		d.tell(Check{Name: q.Name}, begun, problems, value)
	}
}

// first runs statements and returns the first column of the first row of the last one that returns rows; nil for null and for none.
func first(ctx context.Context, c *pgconn.PgConn, sql string) (value []byte, err error) {
	all := c.Exec(ctx, sql)
	for all.NextResult() {
		rows := all.ResultReader()
		for n := 0; rows.NextRow(); n++ {
			if v := rows.Values(); n == 0 && len(v) > 0 {
				value = slices.Clone(v[0])
			}
		}
		if _, err = rows.Close(); err != nil {
			break
		}
	}
	return value, errors.Join(err, all.Close())
}

// checkRows reads every row of every table.
func (d *drill) checkRows(ctx context.Context) {
	if !d.Dump {
		return
	}
	begun, c := time.Now(), Check{Name: "rows"}
	var rows int64
	var broken []error
	problems := d.inEach(ctx, func(database string, conn *pgx.Conn) error {
		if err := unconverted(ctx, conn); err != nil { // what has no counterpart in UTF-8 is no damage
			return err
		}
		tables, err := names(ctx, conn, `
			select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
			where c.relkind in ('r', 'm') and c.relpersistence = 'p' and c.relispopulated order by 1`)
		if err != nil {
			return err
		}
		for _, table := range tables {
			c.Total++
			tag, err := conn.PgConn().CopyTo(ctx, io.Discard, "copy (select * from only "+table+") to stdout")
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil && conn.IsClosed():
				return fmt.Errorf("%s: %w", table, err)
			case err != nil:
				broken = append(broken, fmt.Errorf("database %s: %s: %w", database, table, err))
			default:
				c.Done++
				rows += tag.RowsAffected()
			}
		}
		return nil
	})
	if ctx.Err() == nil {
		d.tell(c, begun, append(broken, problems...), fmt.Sprintf("%d rows of %d tables read", rows, c.Done))
	}
}

// stop stops the copy in order, so that all is in its files.
func (d *drill) stop(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	return d.instance.Stop(limit, instance.Fast)
}
