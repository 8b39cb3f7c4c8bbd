package server_test

import (
	"testing"

	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
)

// A primary, its standby, and the standby once it is promoted say where they are; a role that may do nothing but log in may ask.
func TestPosition(t *testing.T) {
	for _, major := range []int{10, 18} {
		p := pgtest.Require(t, major)
		primary := pgtest.New(t, p, pgtest.Options{})
		standby := primary.Standby(t, pgtest.Options{})
		primary.Exec(t, `create role nobody login`, `create table t as select generate_series(1, 1000)`)
		primary.CatchUp(t, standby)
		ask := func(c *pgtest.Cluster) server.Position {
			t.Helper()
			pos, err := connect(t, with(c.Config(), "user", "nobody")).Position(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return pos
		}
		one, two := ask(primary), ask(standby)
		lsn, err := wal.ParseLSN(primary.Value(t, `pg_current_wal_flush_lsn()`))
		if err != nil {
			t.Fatal(err)
		}
		if one.Standby || one.Timeline != 1 || one.SegmentSize != 16<<20 || one.SystemIdentifier == 0 || one.LSN == 0 || one.LSN > lsn || one.Final != one.LSN {
			t.Errorf("PostgreSQL %d: primary %+v, at %s", major, one, lsn)
		}
		if !two.Standby || two.Timeline != 1 || two.SystemIdentifier != one.SystemIdentifier || two.LSN == 0 || two.Final < two.LSN || two.LSN > lsn {
			t.Errorf("PostgreSQL %d: standby %+v, at %s", major, two, lsn)
		}
		if err := standby.Server.Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := ask(standby); got.Standby || got.Timeline != 2 || got.LSN < two.LSN || got.Final != got.LSN {
			t.Errorf("PostgreSQL %d: promoted %+v", major, got)
		}
	}
}
