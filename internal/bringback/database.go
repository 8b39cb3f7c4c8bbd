package bringback

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Database brings a whole database to the live server: under its own name if that is gone, else with _recovered behind it, or as Options.IntoDatabase. It gets that name once all of
// it is there; before, it has one that begins with holdfast_, and goes if it does not come to that. What went before an error is in the report, which is never nil.
func Database(ctx context.Context, c Copy, l Live, name string, o Options) (*Report, error) {
	begun := time.Now()
	r := &Report{}
	defer func() { r.Seconds = time.Since(begun).Seconds() }()
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if o.As != "" {
		return r, &RefusedError{errors.New("a table's name for a whole database"), "name the database: --into-database"}
	}
	path, err := c.findDump(ctx)
	if err != nil {
		return r, err
	}
	if o.Dump != "" {
		s, err := c.open(ctx, name)
		if err != nil {
			if is(err, "3D000") { // invalid_catalog_name
				return r, noDatabase(name)
			}
			return r, err
		}
		defer s.end(ctx)
		if err := c.dumpFile(ctx, path, s, nil, o.Dump, r); err != nil {
			return r, err
		}
		r.Whole = true
		relations, err := s.tables(ctx)
		if err != nil {
			return r, err
		}
		return r, s.countAll(ctx, relations, name, r)
	}
	b := moving{copy: &c, live: &l, options: &o, report: r, dump: path, name: name}
	if err := b.run(ctx); err != nil || !o.Diff || b.into == name {
		return r, err
	}
	return r, b.compare(ctx)
}

// unfinishedPrefix begins the name of a database until all of it is there; eight hexadecimal digits follow.
const unfinishedPrefix = "holdfast_"

// moving is the way of a database.
type moving struct {
	copy    *Copy
	live    *Live
	options *Options
	report  *Report
	dump    string // path of pg_dump
	name    string // in the copy
	into    string // on the live server
	loader  *loader
}

// root opens a session in a database of the copy that is not the one that is brought.
func (m *moving) root(ctx context.Context) (*session, error) {
	var last error
	for _, d := range [...]string{"postgres", "template1"} {
		if d == m.name {
			continue
		}
		s, err := m.copy.open(ctx, d)
		if err == nil {
			return s, nil
		}
		last = err
	}
	if !is(last, "3D000") && !is(last, "55000") { // invalid_catalog_name, object_not_in_prerequisite_state
		return nil, last
	}
	return nil, &RefusedError{fmt.Errorf("the copy has no other database from which %s can be dealt with: %w", quoteIfNeeded(m.name), last), "name the tables instead of the database; pg_dump brings all of a database from a copy that --keep leaves running"}
}

// maintenance opens a session with the live server: where its settings say, else in a database that nearly all servers have.
func (m *moving) maintenance(ctx context.Context) (*session, error) {
	var first error
	for _, d := range [...]string{"", "postgres", "template1"} {
		s, err := m.live.open(ctx, d)
		if err == nil || !is(err, "3D000") { // invalid_catalog_name
			return s, err
		}
		first = cmp.Or(first, err)
	}
	return nil, first
}

func (m *moving) run(ctx context.Context) (err error) {
	cp, err := m.root(ctx)
	if err != nil {
		return err
	}
	defer cp.end(ctx)
	spaces, err := collect(ctx, cp, "look for "+m.name, pgx.RowToStructByPos[struct{ Tablespace, Encoding string }],
		`select t.spcname::text, pg_encoding_to_char(d.encoding)::text from pg_database d join pg_tablespace t on t.oid = d.dattablespace where d.datname = $1`, m.name)
	if err != nil {
		return err
	}
	if len(spaces) == 0 {
		return noDatabase(m.name)
	}
	live, err := m.maintenance(ctx)
	if err != nil {
		return err
	}
	defer live.end(ctx)
	if err := m.choose(ctx, live); err != nil {
		return err
	}
	m.report.Server, m.report.Database = live.address(), m.into
	args := []string{"--create", "--no-subscriptions"}
	there, err := collect(ctx, live, "look for tablespaces", pgx.RowTo[string], `select spcname::text from pg_tablespace`)
	if err != nil {
		return err
	}
	m.loader = &loader{session: live, database: m.into, whole: true, rows: map[string]int64{}}
	defer func() {
		m.report.Left = append(m.report.Left, m.loader.left...)
		m.report.Notes = append(m.report.Notes, m.loader.notes...)
		m.report.Bytes = m.loader.bytes
	}()
	if !slices.Contains(there, spaces[0].Tablespace) {
		args = append(args, "--no-tablespaces")
		m.loader.note("the live server has no tablespace %s: all is where it has databases by default", quoteIfNeeded(spaces[0].Tablespace))
	}
	if own, err := m.copy.open(ctx, m.name); err != nil { // which settles what was prepared there
		return err
	} else {
		own.end(ctx)
	}
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	unfinished := unfinishedPrefix + hex.EncodeToString(id[:])
	killed, err := collect(ctx, live, "look for what was left", pgx.RowTo[string], `
		select d.datname::text from pg_database d where d.datname ~ ('^' || $1 || '[0-9a-f]{8}$')
			and not exists (select from pg_stat_activity a where a.datid = d.oid) order by 1`, unfinishedPrefix)
	if err != nil {
		return err
	}
	for _, d := range killed {
		m.loader.leave("DROP DATABASE "+pgx.Identifier{d}.Sanitize()+";", "a run that was killed left it, with a part of a database")
	}
	if err := cp.renameDatabase(ctx, m.name, unfinished); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cp.renameDatabase(context.WithoutCancel(ctx), unfinished, m.name)) }()

	var inside *session
	m.loader.move = func(ctx context.Context) (*session, error) {
		if inside != nil { // it enters a second time, for settings of the database to hold
			inside.end(ctx)
		}
		var err error
		inside, err = m.live.open(ctx, unfinished)
		return inside, err
	}
	err = m.copy.read(ctx, m.dump, spaces[0].Encoding, unfinished, args, func(in *script) error { return m.loader.run(ctx, in) })
	if inside != nil {
		if err == nil {
			err = inside.exec(ctx, "gather statistics", "ANALYZE")
		}
		inside.end(ctx)
	}
	if err == nil && inside == nil {
		err = errors.New("pg_dump of the copy: it does not enter the database that it makes")
	}
	identifier := pgx.Identifier{unfinished}.Sanitize()
	if err == nil { // the first session was idle all the while, and may be lost
		var last *session
		if last, err = m.maintenance(ctx); err == nil {
			defer last.end(ctx)
			err = last.alone(ctx, "name it "+m.into, unfinished, "ALTER DATABASE "+identifier+" RENAME TO "+pgx.Identifier{m.into}.Sanitize())
		}
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if again, errOpen := m.maintenance(clean); errOpen != nil {
			err = errors.Join(err, fmt.Errorf("database %s stays: %w", unfinished, errOpen))
		} else {
			defer again.end(clean)
			if errDrop := again.alone(clean, "remove "+unfinished, unfinished, "DROP DATABASE IF EXISTS "+identifier); errDrop != nil {
				err = errors.Join(err, errDrop)
			}
		}
		return err
	}
	m.options.Logger.Info("the database is there", "database", m.into, "bytes", m.loader.bytes)
	return m.account(ctx)
}

// choose settles under which name the database is brought.
func (m *moving) choose(ctx context.Context, live *session) error {
	names, err := collect(ctx, live, "list databases", pgx.RowTo[string], `select datname::text from pg_database`)
	if err != nil {
		return err
	}
	if m.into = m.options.IntoDatabase; m.into != "" {
		if slices.Contains(names, m.into) {
			return &RefusedError{fmt.Errorf("the live server has a database %s already", quoteIfNeeded(m.into)), "name another: --into-database NAME"}
		}
		return nil
	}
	if m.into = m.name; slices.Contains(names, m.name) {
		used := taken{"": {}}
		for _, n := range names {
			used.take("", n)
		}
		m.into = free("", m.name, suffix, used)
	}
	return nil
}

// renameDatabase renames a database of the copy.
func (s *session) renameDatabase(ctx context.Context, from, to string) error {
	return s.alone(ctx, "rename database "+from, from, "ALTER DATABASE "+pgx.Identifier{from}.Sanitize()+" RENAME TO "+pgx.Identifier{to}.Sanitize())
}

// alone carries out a statement that needs a database for itself. Whoever is in it has to go: it is one of the copy, or one of the live server that nobody was told of.
func (s *session) alone(ctx context.Context, op, database, sql string) error {
	for try := 1; ; try++ {
		_, err := s.Exec(ctx, `select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()`, database)
		if err != nil && !is(err, "42501") { // insufficient_privilege: then it is waited for
			return s.failed(ctx, op, err)
		}
		if _, err = s.PgConn().Exec(ctx, sql).ReadAll(); err == nil {
			return nil
		}
		if !is(err, "55006") || try == 3 { // object_in_use; PostgreSQL has waited for 5 s itself
			return s.failed(ctx, op, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lockPause):
		}
	}
}

// account reports on the tables of the database, by its catalogue.
func (m *moving) account(ctx context.Context) error {
	s, err := m.live.open(ctx, m.into)
	if err != nil {
		return err
	}
	defer s.end(ctx)
	all, err := s.tables(ctx)
	if err != nil {
		return err
	}
	m.report.Whole = true
	return m.report.account(all, m.name, m.into, m.loader.loaded)
}

// tables lists the tables of the session's database, each with its partitions behind it.
func (s *session) tables(ctx context.Context) ([]relation, error) {
	rows, err := collect(ctx, s, "list its tables", pgx.RowToStructByPos[struct {
		OID                             uint32
		Schema, Name, Kind, Persistence string
		Below                           bool
	}], `
		with recursive tree(oid, root) as (
			select c.oid, c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
			where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't' and n.nspname <> all(array['pg_catalog', 'information_schema', 'pg_toast'])
			union all select i.inhrelid, t.root from tree t join pg_inherits i on i.inhparent = t.oid join pg_class c on c.oid = i.inhrelid where c.relispartition
		)
		select c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, t.oid <> t.root
		from tree t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace join pg_class r on r.oid = t.root join pg_namespace rn on rn.oid = r.relnamespace
		order by rn.nspname, r.relname, t.oid <> t.root, 2, 3`)
	all := make([]relation, len(rows))
	root := -1
	for i, r := range rows {
		if !r.Below {
			root++
		}
		all[i] = relation{OID: r.OID, Schema: r.Schema, Name: r.Name, Kind: r.Kind, Persistence: r.Persistence, Root: root, Below: r.Below, as: r.Name}
	}
	return all, err
}

// tables lists the tables of a database of the live server.
func (l *Live) tables(ctx context.Context, database string) ([]relation, error) {
	s, err := l.open(ctx, database)
	if err != nil {
		return nil, err
	}
	defer s.end(ctx)
	return s.tables(ctx)
}

// compare compares the tables of the database with those of the live one of its name, each by itself, and so each as of a moment of its own. What the live one has against it is a note:
// what was brought is there.
func (m *moving) compare(ctx context.Context) error {
	there, err := m.live.tables(ctx, m.name)
	switch {
	case is(err, "3D000"): // it went while we were at work
		return nil
	case err != nil && ctx.Err() == nil:
		m.report.Notes = append(m.report.Notes, valid("not compared with the live database: "+err.Error()))
		return nil
	case err != nil:
		return err
	}
	cp, err := m.copy.open(ctx, m.name)
	if err != nil {
		return err
	}
	defer cp.end(ctx)
	here, err := cp.tables(ctx)
	if err != nil {
		return err
	}
	m.options.Logger.Info("comparing with the live database", "database", m.name, "tables", len(m.report.Tables))
	roots, known := map[string]*relation{}, map[string]bool{}
	for i := range here {
		known[here[i].was().Local()] = true
		if !here[i].Below {
			roots[here[i].was().Local()] = &here[i]
		}
	}
	c := comparison{copy: m.copy, live: m.live, database: m.name}
	defer c.close(ctx)
	for i := range m.report.Tables {
		r := &m.report.Tables[i]
		root := roots[r.Table.Local()]
		if root == nil {
			continue // its extension has it in this version only
		}
		if r.Diff, err = c.table(ctx, root); err != nil {
			return err
		}
		if r.Diff == nil {
			r.Diff = &Diff{With: r.Table}
			r.Diff.fail("the live database does not have it now")
			r.Diff.Gone = true
		}
	}
	var only []string
	for i := range there {
		if name := there[i].was().Local(); !there[i].Below && !known[name] {
			only = append(only, name)
		}
	}
	if n := len(only); n > 0 {
		more := ""
		if n > maxExamples {
			only, more = only[:maxExamples], " …"
		}
		m.report.Notes = append(m.report.Notes, valid(fmt.Sprintf("tables that only the live database has: %d, %s%s", n, strings.Join(only, ", "), more)))
	}
	var objects bool
	if err := cp.QueryRow(ctx, `select exists (select from pg_largeobject_metadata)`).Scan(&objects); err != nil {
		return cp.failed(ctx, "look for large objects", err)
	}
	if objects {
		m.report.Notes = append(m.report.Notes, "large objects were not compared")
	}
	return nil
}
