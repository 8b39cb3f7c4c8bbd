package server

import (
	"context"
	"errors"

	"holdfast/internal/pg/wal"
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

// Timeline returns the newest timeline that the server is known to be on. On a standby that is the one of which it receives WAL, where the role is a member of
// pg_monitor and it streams; else that of its last restartpoint, which may be some minutes old. Any role may ask.
func (c *Conn) Timeline(ctx context.Context) (wal.Timeline, error) {
	var t int32
	err := c.row(ctx, "ask PostgreSQL for its timeline", `
		select case when pg_catalog.pg_is_in_recovery()
			then greatest((select timeline_id from pg_catalog.pg_control_checkpoint()), (select min_recovery_end_timeline from pg_catalog.pg_control_recovery()),
				(select received_tli from pg_catalog.pg_stat_wal_receiver))
			else ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int4 end`, nil, &t)
	return wal.Timeline(uint32(t)), err
}
