package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/internal/pg/wal"
)

// HeartbeatSQL makes the table that Heartbeat writes.
const HeartbeatSQL = `create schema if not exists holdfast; create table if not exists holdfast.heartbeat (host text primary key, at timestamptz not null, lsn pg_lsn not null)`

// Beat is a sign of life.
type Beat struct {
	At  time.Time // by the server's clock
	LSN wal.LSN   // where its log was then
}

// Heartbeat leaves a sign of life of a primary in the session's database: the row of that host in the table holdfast.heartbeat, which it makes where there is none and the
// role may; not in a database of which a publication sends all tables, whose subscribers a new one would stop. The commit waits for no standby. On a standby it is
// ErrStandby and nothing is done. A table that has been laid out by somebody whom a superuser should not trust, or has triggers, which would run as the role, is refused.
func (c *Conn) Heartbeat(ctx context.Context, host string) (b Beat, err error) {
	const op = "leave a sign of life"
	if err := c.acquire(ctx); err != nil {
		return b, &Error{Op: op, Err: err}
	}
	defer c.release()
	// All in one transaction, whose settings are its own: a pooler may give the session to somebody else next.
	tx, err := c.pg.Begin(ctx)
	if err != nil {
		return b, c.error(ctx, op, err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) // where it was not committed there is an error already, or nothing to undo
	var standby bool
	err = c.query(ctx, op, `select pg_catalog.pg_is_in_recovery(), pg_catalog.set_config('synchronous_commit', 'local', true) is null,
		pg_catalog.set_config('lock_timeout', '5s', true) is null, pg_catalog.set_config('statement_timeout', '20s', true) is null`, nil, &standby, new(bool), new(bool), new(bool))
	if err != nil {
		return b, err
	}
	if standby {
		return b, ErrStandby
	}
	owner, trigger, found, trusted := "", "", false, false
	look := func() error {
		return c.query(ctx, op, `
			select coalesce(pg_catalog.max(r.rolname::text), ''), pg_catalog.count(*) > 0,
				coalesce(pg_catalog.bool_and(not m.rolsuper or r.rolsuper and s.rolsuper), false),
				coalesce(pg_catalog.max((select pg_catalog.min(g.tgname::text) from pg_catalog.pg_trigger g where g.tgrelid operator(pg_catalog.=) t.oid)), '')
			from pg_catalog.pg_class t join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) t.relnamespace
				join pg_catalog.pg_roles r on r.oid operator(pg_catalog.=) t.relowner join pg_catalog.pg_roles s on s.oid operator(pg_catalog.=) n.nspowner
				join pg_catalog.pg_roles m on m.rolname operator(pg_catalog.=) current_user
			where n.nspname operator(pg_catalog.=) 'holdfast' and t.relname operator(pg_catalog.=) 'heartbeat'`, nil, &owner, &found, &trusted, &trigger)
	}
	if err := look(); err != nil {
		return b, err
	}
	if !found {
		var publication string
		if err := c.query(ctx, op, `select coalesce(pg_catalog.min(pubname::text), '') from pg_catalog.pg_publication where puballtables`, nil, &publication); err != nil {
			return b, err
		}
		if publication != "" {
			return b, &Error{Op: op, Err: fmt.Errorf("the publication %q of this database is for all tables: its subscribers lack the table holdfast.heartbeat, and would stop", publication),
				advice: "name a database in HOLDFAST_HEARTBEAT that is not published, such as postgres; or make the table on the subscribers first, and then here: " + HeartbeatSQL}
		}
		if err := c.makeHeartbeat(ctx); err != nil {
			return b, heartbeatAdvice(err)
		}
		if err := look(); err != nil {
			return b, err
		}
	}
	if !trusted {
		return b, &Error{Op: op, Err: fmt.Errorf("the table holdfast.heartbeat is of the role %q, or its schema, which is no superuser's: triggers of it would run as one", owner),
			advice: "after a look at its triggers give both to a superuser (alter schema holdfast owner to …; alter table holdfast.heartbeat owner to …), or connect as a role that is none"}
	}
	if trigger != "" { // any role may have been granted to make one
		return b, &Error{Op: op, Err: fmt.Errorf("the table holdfast.heartbeat has a trigger, %q, which would run as this role", trigger),
			advice: fmt.Sprintf("drop trigger %s on holdfast.heartbeat, and revoke trigger on it from whoever made that", pgx.Identifier{trigger}.Sanitize())}
	}
	var lsn string
	err = c.query(ctx, op, `
		insert into holdfast.heartbeat (host, at, lsn) values ($1, pg_catalog.clock_timestamp(), pg_catalog.pg_current_wal_insert_lsn())
		on conflict (host) do update set at = excluded.at, lsn = excluded.lsn returning at, lsn::text`, []any{host}, &b.At, &lsn)
	if err != nil {
		return b, heartbeatAdvice(err)
	}
	if b.LSN, err = wal.ParseLSN(lsn); err != nil {
		return b, err
	}
	if err := tx.Commit(ctx); err != nil {
		return b, c.error(ctx, op, err)
	}
	return b, nil
}

// makeHeartbeat makes the table, for who holds the turn.
func (c *Conn) makeHeartbeat(ctx context.Context) error {
	const op = "make the table holdfast.heartbeat"
	if _, err := c.pg.PgConn().Exec(ctx, HeartbeatSQL).ReadAll(); err != nil {
		return c.error(ctx, op, err)
	}
	return nil
}

// heartbeatAdvice adds what to type where the role may not do it.
func heartbeatAdvice(err error) error {
	var e *Error
	var pg *pgconn.PgError
	if errors.As(err, &e) && errors.As(err, &pg) && pg.Code == "42501" { // insufficient_privilege
		e.advice = "as one who may: " + HeartbeatSQL + "; grant usage on schema holdfast to ROLE; grant select, insert, update on holdfast.heartbeat to ROLE"
	}
	return err
}
