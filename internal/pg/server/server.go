// Package server talks to a running PostgreSQL, version 10 to 18, as a backup needs it: facts, start and stop of a base backup, positions
// of the write-ahead log, and the state of archiving.
//
// A Conn is one session with one server. A base backup belongs to its session: when the session ends the server ends the backup
// (src/backend/access/transam/xlog.c, do_pg_abort_backup), so that nothing of ours can be left behind.
package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/internal/pg/wal"
)

// Config says which server to talk to and as whom, by libpq's keywords: host, port, user, password, dbname, passfile, sslmode, sslrootcert,
// sslcert, sslkey, connect_timeout, application_name, service, servicefile, options and so on. What is missing has libpq's default; host then is the
// usual socket directory. The values come from the caller: PGHOST and its like in the environment of this process are not
// heeded, but for PGSERVICE and the certificates, which the driver looks up on its own where Config is silent.
type Config map[string]string

// ConfigFromEnv makes a Config of the variables libpq knows (PGHOST, PGUSER …), looked up by name. Empty values count as not set, as
// in libpq.
func ConfigFromEnv(lookup func(name string) (value string, ok bool)) Config {
	c := Config{}
	for name, keyword := range map[string]string{
		"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password", "PGDATABASE": "dbname", "PGPASSFILE": "passfile",
		"PGSERVICE": "service", "PGSERVICEFILE": "servicefile", "PGOPTIONS": "options", "PGAPPNAME": "application_name",
		"PGCONNECT_TIMEOUT": "connect_timeout", "PGSSLMODE": "sslmode", "PGSSLCERT": "sslcert", "PGSSLKEY": "sslkey",
		"PGSSLROOTCERT": "sslrootcert", "PGSSLPASSWORD": "sslpassword", "PGSSLSNI": "sslsni", "PGSSLNEGOTIATION": "sslnegotiation",
		"PGTARGETSESSIONATTRS": "target_session_attrs", "PGCHANNELBINDING": "channel_binding", "PGREQUIREAUTH": "require_auth",
	} {
		if v, ok := lookup(name); ok && v != "" {
			c[keyword] = v
		}
	}
	return c
}

// unset holds what a keyword gets that Config does not mention, so that the driver does not ask the environment. The empty ones
// have a default that depends on the machine.
var unset = map[string]string{
	"host": "", "port": "", "user": "", "password": "", "dbname": "", "options": "", "sslmode": "prefer", "application_name": "",
	"target_session_attrs": "any", "connect_timeout": "30", "timezone": "UTC", "channel_binding": "prefer", "require_auth": "",
}

// parse turns c into what the driver needs, for the one server that it names.
func (c Config) parse() (*pgx.ConnConfig, error) {
	cfg, err := c.parseSeveral()
	if err != nil {
		return nil, err
	}
	for _, f := range cfg.Fallbacks { // one per TLS mode, and one per further host
		if f.Host != cfg.Host || f.Port != cfg.Port {
			return nil, fmt.Errorf("several servers are named, %s and %s: a backup needs to know which one", cfg.Host, f.Host)
		}
	}
	return cfg, nil
}

// parseSeveral is parse where c may name several servers.
func (c Config) parseSeveral() (*pgx.ConnConfig, error) {
	all := maps.Clone(map[string]string(c))
	if all == nil {
		all = map[string]string{}
	}
	for keyword, value := range unset {
		// What a service says must not be overridden by a default.
		if _, given := all[keyword]; !given && c["service"] == "" {
			all[keyword] = value
		}
	}
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	var b strings.Builder
	for _, keyword := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "%s='%s' ", keyword, quote.Replace(all[keyword]))
	}
	cfg, err := pgx.ParseConfig(b.String())
	if err != nil {
		// The driver quotes all it was told, and leaves out only such passwords as have no quotation mark in them.
		words := err.Error()
		return nil, errors.New(strings.TrimPrefix(words[strings.LastIndex(words, "`")+1:], ": "))
	}
	return cfg, nil
}

// Conn is a session with a server. Its methods may be called by several goroutines, and wait for each other. Close it.
type Conn struct {
	pg      *pgx.Conn
	turn    chan struct{} // holds a token while a method uses pg
	version int           // server_version_num
	lent    bool          // by a pooler: see Lent
	backup  *Start        // the running backup
}

// Bounds of the versions that Connect accepts: server_version_num of the oldest.
const oldest = 10_00_00

// Connect opens a session with the one server that cfg names. It never tries another one. Errors are *Error.
func Connect(ctx context.Context, cfg Config) (*Conn, error) {
	pgcfg, err := cfg.parse()
	if err != nil {
		return nil, &Error{Op: "connect to PostgreSQL", Err: err}
	}
	// A context that ends cancels the statement and leaves the session alive for the clean-up; a server that does not
	// answer loses the session.
	pgcfg.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: 5 * time.Second}
	}
	op := fmt.Sprintf("connect to PostgreSQL at %s port %d as %s", pgcfg.Host, pgcfg.Port, pgcfg.User)
	pg, err := pgx.ConnectConfig(ctx, pgcfg)
	if err != nil {
		return nil, connectError(ctx, op, err)
	}
	c := &Conn{pg: pg, turn: make(chan struct{}, 1)}
	if err := c.prepare(ctx, op); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Session opens a session with the one server that cfg names, for those who ask what this package does not. It begins with params. Errors are *Error.
func Session(ctx context.Context, cfg Config, params map[string]string) (*pgx.Conn, error) {
	pgcfg, err := cfg.parse()
	if err != nil {
		return nil, &Error{Op: "connect to PostgreSQL", Err: err}
	}
	maps.Copy(pgcfg.RuntimeParams, params)
	pgcfg.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: 5 * time.Second}
	}
	pg, err := pgx.ConnectConfig(ctx, pgcfg)
	if err != nil {
		return nil, connectError(ctx, fmt.Sprintf("connect to database %s at %s port %d as %s", pgcfg.Database, pgcfg.Host, pgcfg.Port, pgcfg.User), err)
	}
	return pg, nil
}

// Lent reports whether a session is a pooler's (PgBouncer and its like), which may lend a session of the server to us and to others in turn, a transaction each: what is set in it would be
// set for others. Where PostgreSQL tells the number of its process as a session begins, a pooler tells one of its own.
func Lent(ctx context.Context, pg *pgx.Conn) (bool, error) {
	results, err := pg.PgConn().Exec(ctx, `select pg_catalog.pg_backend_pid()`).ReadAll()
	if err != nil {
		return false, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 1 {
		return false, errors.New("ask for the number of its process: no answer")
	}
	return string(results[0].Rows[0][0]) != strconv.FormatUint(uint64(pg.PgConn().PID()), 10), nil
}

// settings are those of our sessions: no time limit may end a long backup, nothing but pg_catalog is searched, and a server whose client's
// machine vanished notices within two minutes, which ends the backup.
const settings = `
	select pg_catalog.count(pg_catalog.set_config(s.name, v.value, $1))
	from (values ('search_path', 'pg_catalog'), ('client_encoding', 'UTF8'), ('statement_timeout', '0'), ('lock_timeout', '0'),
		('transaction_timeout', '0'), ('idle_session_timeout', '0'), ('idle_in_transaction_session_timeout', '0'),
		('tcp_keepalives_idle', '60'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '6')) v(name, value)
	join pg_catalog.pg_settings s on s.name operator(pg_catalog.=) v.name`

// prepare sets the session up, for all that follows if it is our own.
func (c *Conn) prepare(ctx context.Context, op string) (err error) {
	if c.lent, err = Lent(ctx, c.pg); err != nil {
		return c.error(ctx, op, err)
	}
	err = c.row(ctx, op, `select pg_catalog.current_setting('server_version_num')::int4`, nil, &c.version)
	if err != nil {
		return err
	}
	if c.version < oldest {
		return &Error{Op: op, Err: fmt.Errorf("the server is PostgreSQL %s, the oldest supported is 10", c.pg.PgConn().ParameterStatus("server_version"))}
	}
	if c.lent {
		return nil
	}
	return c.row(ctx, op, settings, []any{false}, new(int))
}

// scoped runs do where our settings hold: in a session that is lent, a transaction.
func (c *Conn) scoped(ctx context.Context, do func() error) error {
	if !c.lent || c.pg.PgConn().TxStatus() != 'I' {
		return do()
	}
	return pgx.BeginFunc(ctx, c.pg, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, settings, pgx.QueryExecModeExec, true).Scan(new(int)); err != nil {
			return err
		}
		return do()
	})
}

// arguments are those of a query. A statement that was prepared in a session that is lent might not be there the next time.
func (c *Conn) arguments(args []any) []any {
	if c.lent {
		return append([]any{pgx.QueryExecModeExec}, args...)
	}
	return args
}

// closeTimeout bounds how long Close waits for the server.
const closeTimeout = 10 * time.Second

// Close ends the session and with it a backup that was not stopped, and returns once the server has let go of both. It needs no
// context: it is what is left to do when one has ended. An error means that the server was not seen to end the session.
func (c *Conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := c.acquire(ctx); err != nil {
		return fmt.Errorf("close the session with PostgreSQL: %w", err)
	}
	defer c.release()
	if c.pg.IsClosed() {
		return nil
	}
	// The driver's own Close does not wait for the server, whose session ends only after it has noticed.
	h, err := c.pg.PgConn().Hijack()
	if err != nil {
		return c.pg.Close(ctx)
	}
	defer h.Conn.Close()
	deadline, _ := ctx.Deadline()
	if err := h.Conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("close the session with PostgreSQL: %w", err)
	}
	h.Frontend.Send(&pgproto3.Terminate{})
	if err := h.Frontend.Flush(); err != nil {
		return nil // the connection is broken: the server has ended the session or is about to
	}
	var b [512]byte
	for {
		if _, err := h.Conn.Read(b[:]); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("close the session with PostgreSQL: the server did not end it within %s", closeTimeout)
			}
			return nil
		}
	}
}

// Version returns the server's server_version_num, 150018 for 15.18.
func (c *Conn) Version() int { return c.version }

// Ping asks the server for a sign of life. During a backup that was started on a standby it returns ErrPromoted when the standby
// no longer is one.
func (c *Conn) Ping(ctx context.Context) error {
	var standby bool
	if err := c.row(ctx, "ping PostgreSQL", `select pg_catalog.pg_is_in_recovery()`, nil, &standby); err != nil {
		return err
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if c.backup != nil && c.backup.Standby && !standby {
		return ErrPromoted
	}
	return nil
}

// CurrentLSN returns how far the write-ahead log is flushed on a primary, or replayed on a standby.
func (c *Conn) CurrentLSN(ctx context.Context) (wal.LSN, error) {
	var s string
	err := c.row(ctx, "ask PostgreSQL for its position", `
		select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
			else pg_catalog.pg_current_wal_flush_lsn() end::text`, nil, &s)
	if err != nil {
		return 0, err
	}
	return wal.ParseLSN(s)
}

// SwitchWAL makes the server finish its current WAL file, so that it gets archived, and returns the position it had reached: the file with
// the last byte before it is the one that was finished. On a standby it is ErrStandby: only the primary can.
func (c *Conn) SwitchWAL(ctx context.Context) (wal.LSN, error) {
	var standby bool
	if err := c.row(ctx, "switch WAL", `select pg_catalog.pg_is_in_recovery()`, nil, &standby); err != nil {
		return 0, err
	}
	if standby {
		return 0, ErrStandby
	}
	var s string
	if err := c.row(ctx, "switch WAL", `select pg_catalog.pg_switch_wal()::text`, nil, &s); err != nil {
		return 0, err
	}
	return wal.ParseLSN(s)
}

// acquire waits for the other users of c.
func (c *Conn) acquire(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Conn) release() { <-c.turn }

// row runs a query that returns one row. op is what an error says was being done.
func (c *Conn) row(ctx context.Context, op, sql string, args []any, dst ...any) error {
	if err := c.acquire(ctx); err != nil {
		return &Error{Op: op, Err: err}
	}
	defer c.release()
	return c.query(ctx, op, sql, args, dst...)
}

// query is row for those who hold the turn.
func (c *Conn) query(ctx context.Context, op, sql string, args []any, dst ...any) error {
	err := c.scoped(ctx, func() error { return c.pg.QueryRow(ctx, sql, c.arguments(args)...).Scan(dst...) })
	if err != nil {
		return c.error(ctx, op, err)
	}
	return nil
}
