package server

import (
	"context"

	"holdfast/internal/pg/wal"
)

// Position says where in the history of which cluster a server is.
type Position struct {
	SystemIdentifier uint64
	Timeline         wal.Timeline
	SegmentSize      wal.SegmentSize
	Standby          bool
	LSN              wal.LSN // how far its log is flushed; of a standby how far it has replayed
	Final            wal.LSN // the WAL before this lies on its disk for good: LSN, or on a standby what it has received where that is more
}

// Position asks the server where it is. Any role may.
func (c *Conn) Position(ctx context.Context) (Position, error) {
	var p Position
	var system, segment int64
	var timeline int32
	var at, final string
	// Of the timeline see Facts.
	err := c.row(ctx, "ask PostgreSQL for its position", `
		select (select system_identifier from pg_catalog.pg_control_system()), i.bytes_per_wal_segment::int8, r.standby,
			case when r.standby
				then greatest((select timeline_id from pg_catalog.pg_control_checkpoint()), (select min_recovery_end_timeline from pg_catalog.pg_control_recovery()))
				else ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int4 end,
			case when r.standby then coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0') else pg_catalog.pg_current_wal_flush_lsn() end::text,
			case when r.standby then coalesce(greatest(pg_catalog.pg_last_wal_replay_lsn(), pg_catalog.pg_last_wal_receive_lsn()), '0/0')
				else pg_catalog.pg_current_wal_flush_lsn() end::text
		from pg_catalog.pg_control_init() i, (select pg_catalog.pg_is_in_recovery() as standby) r`, nil,
		&system, &segment, &p.Standby, &timeline, &at, &final)
	if err != nil {
		return Position{}, err
	}
	p.SystemIdentifier, p.Timeline, p.SegmentSize = uint64(system), wal.Timeline(uint32(timeline)), wal.SegmentSize(segment)
	if p.LSN, err = wal.ParseLSN(at); err == nil {
		p.Final, err = wal.ParseLSN(final)
	}
	return p, err
}
