package server

import (
	"context"
	"errors"
)

// Standby reports whether the server is one. Any role may ask.
func (c *Conn) Standby(ctx context.Context) (standby bool, err error) {
	err = c.row(ctx, "ask PostgreSQL whether it is a standby", `select pg_catalog.pg_is_in_recovery()`, nil, &standby)
	return standby, err
}

// Standbys counts the standbys that stream from the server. What only receives WAL, as pg_receivewal does, is none: it replays nothing. That takes
// membership in pg_monitor; without it the error is an *Error with a hint.
func (c *Conn) Standbys(ctx context.Context) (n int, err error) {
	const op = "ask PostgreSQL for its standbys"
	var may bool
	err = c.row(ctx, op, `
		select pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), pg_catalog.count(*) filter (where state = 'streaming' and replay_lsn is not null)
		from pg_catalog.pg_stat_replication`, nil, &may, &n)
	if err == nil && !may {
		err = &Error{Op: op, Err: errors.New("only members of pg_monitor see how standbys are doing"), advice: "grant pg_monitor to the role, or set HOLDFAST_ROLE to replica or primary"}
	}
	return n, err
}
