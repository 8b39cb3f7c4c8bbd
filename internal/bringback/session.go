package bringback

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/internal/pg/server"
)

// program is what our sessions call themselves.
const program = "holdfast recover-table"

// pinned are settings of our sessions: no limit may end them, and values have one form only.
var pinned = map[string]string{
	"client_encoding": "UTF8", "search_path": "pg_catalog", "statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0",
	"transaction_timeout": "0", "idle_session_timeout": "0", "default_transaction_read_only": "off",
	"default_transaction_isolation": "read committed", "row_security": "off", "standard_conforming_strings": "on",
	"DateStyle": "ISO, YMD", "TimeZone": "UTC", "IntervalStyle": "postgres", "extra_float_digits": "3", "bytea_output": "hex", "lc_monetary": "C",
	"tcp_keepalives_idle": "60", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "6", // or who is gone would be waited for without end
	"xmlbinary": "base64", "check_function_bodies": "off", "max_parallel_workers_per_gather": "0",
}

// session is a session in one database of one side.
type session struct {
	*pgx.Conn
	version  int    // server_version_num
	encoding string // of the database
	where    string // for errors: the copy, the live server
}

// begin pins the settings of a session that has just been opened.
func begin(ctx context.Context, conn *pgx.Conn, where string) (*session, error) {
	s := &session{Conn: conn, where: where}
	names := slices.Sorted(maps.Keys(pinned))
	values := make([]string, len(names))
	for i, n := range names {
		values[i] = pinned[n]
	}
	var n int
	if _, err := conn.PgConn().Exec(ctx, "SET statement_timeout = 0").ReadAll(); err != nil { // the first thing: what follows takes its time
		s.end(ctx)
		return nil, fmt.Errorf("begin a session with %s: %w", where, err)
	}
	err := conn.QueryRow(ctx, `
		select pg_catalog.count(pg_catalog.set_config(s.name, v.value, false)),
			pg_catalog.current_setting('server_version_num')::int4, pg_catalog.getdatabaseencoding()::text
		from unnest($1::text[], $2::text[]) v(name, value) join pg_catalog.pg_settings s on lower(s.name) operator(pg_catalog.=) lower(v.name)`,
		names, values).Scan(&n, &s.version, &s.encoding)
	if err != nil {
		s.end(ctx)
		return nil, fmt.Errorf("begin a session with %s: %w", where, err)
	}
	return s, nil
}

// end ends the session.
func (s *session) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_ = s.Close(ctx) // a transaction that was not committed ends with it, however that goes
}

// open opens a session in a database of the copy. What databases and roles there set for their sessions, and what event triggers do, does not hold in it.
func (c *Copy) open(ctx context.Context, database string) (*session, error) {
	params := map[string]string{"application_name": program, "session_preload_libraries": "", "local_preload_libraries": "", "session_replication_role": "replica"}
	if c.Programs.Major >= 17 {
		params["event_triggers"] = "off"
	}
	conn, err := server.Session(ctx, c.config(database), params)
	if err != nil {
		return nil, fmt.Errorf("the copy: %w", err)
	}
	s, err := begin(ctx, conn, "the copy")
	if err != nil {
		return nil, err
	}
	if err := s.settle(ctx); err != nil {
		s.end(ctx)
		return nil, err
	}
	return s, nil
}

// settle rolls back what was prepared and not committed in the session's database. It did not count at that moment, and its locks would not end.
func (s *session) settle(ctx context.Context) error {
	prepared, err := collect(ctx, s, "look for prepared transactions", pgx.RowTo[string], `select gid from pg_prepared_xacts where database = current_database()`)
	for _, gid := range prepared {
		if err = s.exec(ctx, "roll back a prepared transaction", "ROLLBACK PREPARED "+literal(gid)); err != nil {
			return err
		}
	}
	return err
}

func (c *Copy) config(database string) server.Config {
	port := c.Port
	if port == 0 {
		port = 5432
	}
	return server.Config{"host": c.Socket, "port": strconv.Itoa(port), "user": c.Role, "dbname": database, "sslmode": "disable"}
}

// open opens a session in a database of the live server, or where Config says if database is "".
func (l *Live) open(ctx context.Context, database string) (*session, error) {
	cfg := maps.Clone(l.Config)
	if cfg == nil {
		cfg = server.Config{}
	}
	if database != "" {
		cfg["dbname"] = database
	}
	if cfg["application_name"] == "" {
		cfg["application_name"] = program
	}
	conn, err := server.Session(ctx, cfg, nil)
	if err != nil {
		return nil, err
	}
	s := &session{Conn: conn, where: "the live server"}
	if lent, err := server.Lent(ctx, conn); err != nil || lent {
		defer s.end(ctx)
		if err != nil {
			return nil, s.failed(ctx, "see whose session it is", err)
		}
		return nil, &RefusedError{fmt.Errorf("a pooler is at %s, for whose other clients the settings of our sessions would hold as well", s.address()),
			"let PGHOST and PGPORT name the server itself; or make a file: --dump FILE"}
	}
	if s, err = begin(ctx, conn, s.where); err != nil {
		return nil, err
	}
	var standby bool
	if err := s.QueryRow(ctx, `select pg_is_in_recovery()`).Scan(&standby); err != nil {
		s.end(ctx)
		return nil, s.failed(ctx, "ask whether it takes writes", err)
	}
	if standby {
		s.end(ctx)
		return nil, &RefusedError{fmt.Errorf("%s is a standby, which takes no tables", s.address()), "let PGHOST and PGPORT name the primary; or make a file: --dump FILE"}
	}
	return s, nil
}

// address is where the session's server is.
func (s *session) address() string {
	c := s.Config()
	return c.Host + ":" + strconv.Itoa(int(c.Port))
}

// failed describes what went wrong in the session, with what the operator can do about it.
func (s *session) failed(ctx context.Context, op string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %s: %w", s.where, op, cause)
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("%s: %s: %w", s.where, op, err)
	}
	failed := fmt.Errorf("%s: %s: %s: %w", s.where, op, said(pg), err)
	if advice := adviceFor(pg, s.Config().User); advice != "" {
		return &RefusedError{failed, advice}
	}
	return failed
}

// said is what a server answered, in one line; the driver's own has it again.
func said(pg *pgconn.PgError) string {
	if pg.Detail != "" {
		return pg.Message + " (" + pg.Detail + ")"
	}
	return pg.Message
}

// adviceFor says what to do about an error of a server.
func adviceFor(pg *pgconn.PgError, user string) string {
	role := pgx.Identifier{user}.Sanitize()
	switch pg.Code {
	case "42501": // insufficient_privilege
		return "connect as the owner of the database or as a superuser (PGUSER), or let one GRANT CREATE ON SCHEMA … TO " + role + "; or make a file: --dump FILE"
	case "25006": // read_only_sql_transaction
		return "the server takes no writes now: connect to the primary, or make a file: --dump FILE"
	case "55P03": // lock_not_available
		return "somebody holds a lock: try again"
	case "53100": // disk_full
		return "free some space on the server, or make a file elsewhere: --dump FILE"
	case "53200": // out_of_memory, which the table of locks is meant by, too
		return "raise max_locks_per_transaction where that is what the server says, or bring fewer tables at once; or make a file: --dump FILE"
	case "42P07", "42710": // duplicate_table, duplicate_object
		return "somebody took the name meanwhile: try again"
	case "22P02", "22P05", "22021": // invalid_text_representation, untranslatable_character, character_not_in_repertoire
		return "a type or the encoding has changed since: load it into another database (--into-database), or make a file: --dump FILE"
	}
	return ""
}

// is reports whether err is a server's answer of that SQLSTATE.
func is(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}

// exec runs statements.
func (s *session) exec(ctx context.Context, op, sql string) error {
	if _, err := s.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return s.failed(ctx, op, err)
	}
	return nil
}

// collect runs a query and returns its rows.
func collect[T any](ctx context.Context, s *session, op string, row pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := s.Query(ctx, sql, args...)
	if err == nil {
		var all []T
		if all, err = pgx.CollectRows(rows, row); err == nil {
			return all, nil
		}
	}
	return nil, s.failed(ctx, op, err)
}
