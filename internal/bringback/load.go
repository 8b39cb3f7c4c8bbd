package bringback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// loader carries out on the live server what pg_dump says of the copy.
type loader struct {
	session  *session
	database string // for reports
	whole    bool   // into a database that nobody knows yet: no transaction around all, or the catalogues' locks would be too many

	left  []Left
	notes []string
	rows  map[string]int64 // of tables, by Table.Local
	bytes int64

	as string // why the role that statements are for is not to be had, until they are for the session's own again; "" where it is

	loose func(ctx context.Context, statement string) (why string, skip bool) // what is not to be carried out, and why it is told; "" does not tell
	move  func(ctx context.Context) (*session, error)                         // for \connect
}

// run carries out a script. An error is about what no table can do without; all else that cannot be had is left and told.
func (l *loader) run(ctx context.Context, s *script) error {
	for {
		sql, err := s.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case strings.HasPrefix(sql, `\connect`) && l.move != nil:
			if l.session, err = l.move(ctx); err != nil {
				return err
			}
			continue
		case strings.HasPrefix(sql, `\`):
			continue // \restrict, which is about psql
		case copies(sql):
			if err := l.copy(ctx, s, sql); err != nil {
				return err
			}
			continue
		}
		if err := l.statement(ctx, sql); err != nil {
			return err
		}
	}
}

// copies reports whether rows come behind a statement.
func copies(sql string) bool {
	return strings.HasPrefix(sql, "COPY ") && strings.HasSuffix(sql, " FROM stdin;")
}

func (l *loader) copy(ctx context.Context, s *script, sql string) error {
	rows, err := s.rows()
	if err != nil {
		return err
	}
	name, _, err := qualified(strings.TrimPrefix(sql, "COPY "))
	if err != nil {
		return err
	}
	var read error
	counted := &counter{r: rows}
	tag, err := l.session.PgConn().CopyFrom(ctx, counted, sql)
	if read = counted.err; read != nil {
		return read // why there are no more rows, of which the server knows only that
	}
	if err != nil {
		return l.session.failed(ctx, "load rows into "+name.Local(), err)
	}
	l.rows[name.Local()] += tag.RowsAffected()
	l.bytes += counted.n
	return nil
}

// loaded returns how many rows of a relation were loaded.
func (l *loader) loaded(r *relation) (int64, error) { return l.rows[r.now().Local()], nil }

// counter counts what is read, and keeps why there is no more.
type counter struct {
	r   io.Reader
	n   int64
	err error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// essential are begins of statements without which a table cannot be what it was, or its rows not be there.
var essential = []string{"CREATE TABLE ", "CREATE UNLOGGED TABLE ", "CREATE FOREIGN TABLE ", "CREATE SEQUENCE ", "CREATE UNLOGGED SEQUENCE ", "SELECT pg_catalog.setval(",
	"CREATE DATABASE ", "SELECT pg_catalog.lo_create(", "SELECT pg_catalog.lo_open(", "SELECT pg_catalog.lowrite("}

func isEssential(sql string) bool {
	for _, e := range essential {
		if strings.HasPrefix(sql, e) {
			return true
		}
	}
	return strings.HasPrefix(sql, "ALTER TABLE ") && strings.Contains(sql, " ATTACH PARTITION ")
}

// statement carries out one statement.
func (l *loader) statement(ctx context.Context, sql string) error {
	if l.as != "" { // the grants of one that is gone are not to be those of another
		l.leave(sql, l.as)
		if strings.HasPrefix(sql, "RESET SESSION AUTHORIZATION") {
			l.as = ""
		}
		return nil
	}
	if strings.HasPrefix(sql, "SET ") || strings.HasPrefix(sql, "SELECT pg_catalog.set_config('search_path', '', false)") {
		return l.set(ctx, sql)
	}
	if l.loose != nil {
		if why, skip := l.loose(ctx, sql); skip {
			if why != "" {
				l.leave(sql, why)
			}
			return nil
		}
	}
	if isEssential(sql) { // nothing outlives its failure
		return l.session.exec(ctx, firstLine(sql), sql)
	}
	err := l.try(ctx, sql)
	switch {
	case err == nil:
		return nil
	case l.fatal(ctx, err):
		return l.session.failed(ctx, firstLine(sql), err)
	case is(err, "42710") && strings.HasPrefix(sql, "CREATE STATISTICS "), is(err, "42P06") && l.whole: // duplicate_object, duplicate_schema: public
		return nil
	}
	var pg *pgconn.PgError
	errors.As(err, &pg)
	l.leave(sql, said(pg))
	return nil
}

// try carries out a statement such that the transaction outlives its failure.
func (l *loader) try(ctx context.Context, sql string) error {
	conn := l.session.PgConn()
	if l.whole {
		_, err := conn.Exec(ctx, sql).ReadAll()
		return err
	}
	_, err := conn.Exec(ctx, "SAVEPOINT holdfast; "+sql+"\n; RELEASE SAVEPOINT holdfast").ReadAll()
	if err != nil && !l.fatal(ctx, err) {
		if _, back := conn.Exec(ctx, "ROLLBACK TO SAVEPOINT holdfast; RELEASE SAVEPOINT holdfast").ReadAll(); back != nil {
			return back
		}
	}
	return err
}

// fatal reports whether an error is about the server or the session, not about the statement.
func (l *loader) fatal(ctx context.Context, err error) bool {
	var pg *pgconn.PgError
	if ctx.Err() != nil || !errors.As(err, &pg) || pg.SeverityUnlocalized != "ERROR" && pg.Severity != "ERROR" {
		return true
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "08", "25", "40", "53", "57", "58", "XX": // connection, transaction state, rollback, resources, intervention, system, internal
		return true
	}
	return pg.Code == "55P03" // lock_not_available
}

// set changes a setting of the session as pg_dump wants it, but for those that are ours to choose.
func (l *loader) set(ctx context.Context, sql string) error {
	name, _, _ := strings.Cut(strings.TrimPrefix(sql, "SET "), " ")
	switch name {
	case "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout", "row_security":
		return nil
	}
	err := l.try(ctx, sql)
	switch {
	case err == nil:
		return nil
	case l.fatal(ctx, err):
		return l.session.failed(ctx, firstLine(sql), err)
	case strings.HasPrefix(sql, "SET SESSION AUTHORIZATION "):
		var pg *pgconn.PgError
		errors.As(err, &pg)
		l.as = said(pg)
		l.leave(sql, l.as)
		return nil
	case name == "default_tablespace" || name == "default_table_access_method":
		l.note("%s does not work on the live server (%s): what follows is where the database's default has it", strings.TrimSuffix(sql, ";"), err)
		return l.session.exec(ctx, "go back to the default of "+name, "SET "+name+" TO DEFAULT")
	}
	return nil // a setting that this version does not have
}

func (l *loader) leave(sql, why string) {
	l.left = append(l.left, Left{l.database, valid(sql), valid(why)})
}

func (l *loader) note(format string, args ...any) {
	n := valid(fmt.Sprintf(format, args...))
	for _, old := range l.notes {
		if old == n {
			return
		}
	}
	l.notes = append(l.notes, n)
}

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// firstLine is the begin of a statement, for an error.
func firstLine(sql string) string {
	line, _, more := strings.Cut(sql, "\n")
	if len(line) > 200 {
		line, more = clip(line, 200), true
	}
	if more {
		line += " …"
	}
	return valid(line)
}

// errNoName says that a statement of pg_dump's does not have a name where one is expected.
var errNoName = errors.New("read a dump: no name of a table")

// qualified reads a name with its schema, each perhaps in quotation marks, and returns what is behind it.
func qualified(sql string) (t Table, rest string, err error) {
	if t.Schema, rest, err = identifier(sql); err != nil || !strings.HasPrefix(rest, ".") {
		return Table{}, "", errNoName
	}
	if t.Name, rest, err = identifier(rest[1:]); err != nil {
		return Table{}, "", errNoName
	}
	return t, rest, nil
}

// identifier reads a name.
func identifier(sql string) (name, rest string, err error) {
	if !strings.HasPrefix(sql, `"`) {
		n := 0
		for n < len(sql) && isWord(sql[n]) {
			n++
		}
		if n == 0 {
			return "", "", errNoName
		}
		return sql[:n], sql[n:], nil
	}
	var b strings.Builder
	for i := 1; i < len(sql); i++ {
		if sql[i] != '"' {
			b.WriteByte(sql[i])
		} else if i+1 < len(sql) && sql[i+1] == '"' {
			b.WriteByte('"')
			i++
		} else {
			return b.String(), sql[i+1:], nil
		}
	}
	return "", "", errNoName
}
