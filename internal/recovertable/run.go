package recovertable

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/archive"
	"holdfast/internal/bringback"
	"holdfast/internal/drill"
)

// Copy is a running copy in which all that is wanted is there. Close or Keep it.
type Copy struct {
	*drill.Private
	Partial bool
	Why     string   // it is a full one where a partial one was planned; "" where there was no such need
	Notes   []string // what an operator may want to know of it
}

// From says how to bring from it. search is where pg_dump may be.
func (c *Copy) From(search []string) bringback.Copy {
	at := c.Copy()
	return bringback.Copy{Socket: at.Socket, Port: at.Port, Role: at.Role, Programs: c.Programs(), Search: search, Account: c.Credential()}
}

// MissingError says that something that is wanted was not there at the moment.
type MissingError struct {
	What   string
	Moment string
	Near   []string // tables of that name in other schemas
}

func (e *MissingError) Error() string { return fmt.Sprintf("there was no %s %s", e.What, e.Moment) }

// Hint says what to try.
func (e *MissingError) Hint() string {
	if len(e.Near) > 0 {
		return "there was " + strings.Join(e.Near, ", ")
	}
	return "look at the spelling, and at the moment: `holdfast events --destructive` shows when what was dropped"
}

// UnreachedError says that the archived WAL does not lead to the moment.
type UnreachedError struct{ Moment string }

func (e *UnreachedError) Error() string { return "the archived WAL does not lead to " + e.Moment }

// Hint says what to try.
func (e *UnreachedError) Hint() string {
	return "PostgreSQL stops at a time only if something was committed behind it: give an earlier one, or have the server archive what it has, by `select pg_switch_wal()`"
}

// unreached are the words by which PostgreSQL says so, from 13 on, and those of checks of ours.
var unreached = [...]string{"recovery ended before configured recovery target was reached", "was not reached: replay ended at"}

// incompleteError says that a partial copy lacks something.
type incompleteError struct{ error }

// curable reports whether a full copy may do where a partial one did not: it has all of that, and starts by the same configuration.
func curable(err error) bool {
	var failed *drill.FailedError
	if errors.As(err, &failed) {
		return failed.Reason != drill.ReasonFetch && !errors.Is(err, drill.ErrConfiguration)
	}
	return errors.As(err, new(*incompleteError))
}

// Run carries out a plan. Where a partial copy turns out not to do, and a full one may, it makes that. Errors are those of drill.Open, *MissingError and *UnreachedError. Of the options it heeds those that
// drill.Open does.
func Run(ctx context.Context, a *archive.Archive, p *Plan, o drill.Options) (*Copy, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	wanted := slices.Collect(maps.Keys(byDatabase(p.Tables)))
	o.Databases = slices.Concat([]string{p.Database}, wanted, o.Databases) // of others a partial copy has nothing
	if !p.Partial {
		return p.open(ctx, a, p.drill, o, false)
	}
	c, err := p.open(ctx, a, p.drill, o, true)
	if err == nil || ctx.Err() != nil || !curable(err) {
		return c, err
	}
	why, _, _ := strings.Cut(err.Error(), "\n")
	o.Logger.Warn("a part of the backup does not do, all of it is restored: " + why)
	all, err := drill.Decide(ctx, a, p.copy(false))
	if err != nil {
		return nil, err
	}
	if c, err = p.open(ctx, a, all, o, false); err == nil {
		c.Why = why
	}
	return c, err
}

// open makes a copy and looks whether all that is wanted is in it.
func (p *Plan) open(ctx context.Context, a *archive.Archive, d *drill.Plan, o drill.Options, partial bool) (*Copy, error) {
	private, err := drill.Open(ctx, a, d, o)
	if err != nil {
		if slices.ContainsFunc(unreached[:], func(words string) bool { return strings.Contains(err.Error(), words) }) {
			err = &UnreachedError{p.Moment()}
		}
		return nil, err
	}
	c := &Copy{Private: private, Partial: partial, Notes: private.Notes()}
	err = p.look(ctx, c)
	if err == nil && partial {
		err = p.readLog(c)
	}
	if err != nil {
		return nil, errors.Join(err, private.Close(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// look sees whether what is wanted is there.
func (p *Plan) look(ctx context.Context, c *Copy) error {
	wanted := byDatabase(p.Tables)
	if p.Database != "" {
		wanted[p.Database] = nil
	}
	same := false
	for name, tables := range wanted {
		is, err := p.lookIn(ctx, c, name, tables)
		if err != nil {
			return err
		}
		same = same || is
	}
	if !same && len(p.request.OIDs) > 0 && len(p.Tables) > 0 {
		c.Notes = append(c.Notes, fmt.Sprintf("what had the name of the table %s is not what the event is about: that may have had another name then", p.Moment()))
	}
	return nil
}

// lookIn looks in one database, for tables or, where there are none, for all of it. It reports whether one of the tables, or of what descends from them, is one that an event told.
func (p *Plan) lookIn(ctx context.Context, c *Copy, database string, tables []bringback.Table) (same bool, err error) {
	home, err := c.Connect(ctx, "")
	if err != nil {
		return false, err
	}
	var oid uint32
	err = home.QueryRow(ctx, `select oid from pg_database where datname = $1`, database).Scan(&oid)
	err = errors.Join(err, home.Close(ctx))
	if errors.Is(err, pgx.ErrNoRows) {
		return false, &MissingError{"database " + database, p.Moment(), nil}
	}
	if err != nil {
		return false, err
	}
	if c.Partial {
		if _, restored := p.selection.numbers[oid]; !restored {
			return false, &incompleteError{fmt.Errorf("database %s is another than the one in the backup", database)}
		}
	}
	conn, err := c.Connect(ctx, database)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing is pending on it
	var schemas, names []string
	for _, t := range tables {
		if err := p.find(ctx, conn, t); err != nil {
			return false, err
		}
		schemas, names = append(schemas, t.Schema), append(names, t.Name)
	}
	if len(tables) > 0 {
		if err := conn.QueryRow(ctx, named+` select coalesce(bool_or(oid = any($3::oid[])), false) from named`, schemas, names, p.request.OIDs).Scan(&same); err != nil {
			return false, err
		}
	}
	if !c.Partial {
		return same, nil
	}
	rows, err := conn.Query(ctx, files, schemas, names)
	if err != nil {
		return false, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return false, err
	}
	for _, file := range all {
		if p.selection.hollow(file) && p.names.Has(file) {
			return false, &incompleteError{fmt.Errorf("%s of database %s was not known to be needed", file, database)}
		}
	}
	return same, nil
}

// find returns an error where there is no such table.
func (p *Plan) find(ctx context.Context, conn *pgx.Conn, t bringback.Table) error {
	rows, err := conn.Query(ctx, `
		select n.nspname::text, n.nspname = $2 from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.relname = $1 and c.relkind in ('r', 'p', 'm') and c.relpersistence <> 't' order by 1`, t.Name, t.Schema)
	if err != nil {
		return err
	}
	var near []string
	var schema string
	var found, is bool
	_, err = pgx.ForEachRow(rows, []any{&schema, &is}, func() error {
		found = found || is
		near = append(near, bringback.Table{Database: t.Database, Schema: schema, Name: t.Name}.String())
		return nil
	})
	if err != nil || found {
		return err
	}
	return &MissingError{"table " + t.String(), p.Moment(), near}
}

// named are tables ($1 are schemas, $2 names) and what descends from them.
const named = `
	with recursive named(oid) as (
		select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace join unnest($1::text[], $2::text[]) w(schema, name) on (n.nspname, c.relname) = (w.schema, w.name)
		union select i.inhrelid from pg_inherits i join named on i.inhparent = named.oid
	)`

// files lists the files of catalogues and of tables: theirs, of what descends from them, of TOAST tables, indexes and sequences.
const files = named + `, held(oid) as (
		select oid from named
		union select c.reltoastrelid from pg_class c join named on c.oid = named.oid where c.reltoastrelid <> 0
	), every(oid) as (
		select oid from held
		union select i.indexrelid from pg_index i join held on i.indrelid = held.oid
		union select d.objid from pg_depend d join named on d.refobjid = named.oid
			where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
		union select c.oid from pg_class c where c.oid < 16384
	)
	select pg_relation_filepath(oid) from every where pg_relation_filepath(oid) is not null`

// invalid matches what PostgreSQL says of a page that WAL changes and that is not there (report_invalid_page in src/backend/access/transam/xlogutils.c).
var invalid = regexp.MustCompile(`page [0-9]+ of relation (\S+) (?:does not exist|is uninitialized)`)

// fileOf returns the first file of a relation's main fork, by the path of one of its forks.
func fileOf(fork string) string {
	for _, suffix := range []string{"_fsm", "_vm", "_init"} {
		fork = strings.TrimSuffix(fork, suffix)
	}
	return fork
}

// readLog looks whether WAL wanted to change a page that must be there.
func (p *Plan) readLog(c *Copy) error {
	log, err := c.Log()
	if err != nil {
		return err
	}
	defer log.Close() // only read
	passed := map[string]bool{}
	lines := bufio.NewReader(log)
	for {
		line, _, err := lines.ReadLine() // of one that is longer than the buffer the rest comes as another
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the log of the copy: %w", err)
		}
		m := invalid.FindSubmatch(line)
		if m == nil {
			continue
		}
		file := fileOf(string(m[1]))
		if !p.selection.hollow(file) || !p.names.Has(file) {
			return &incompleteError{fmt.Errorf("the log says that %s", m[0])}
		}
		passed[file] = true
	}
	if len(passed) > 0 {
		c.Notes = append(c.Notes, fmt.Sprintf("WAL changes pages of %d relations that were not restored and are not needed", len(passed)))
	}
	return nil
}
