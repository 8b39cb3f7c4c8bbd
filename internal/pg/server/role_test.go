package server_test

import (
	"errors"
	"testing"
	"time"

	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
)

func TestRole(t *testing.T) {
	for _, major := range []int{10, 18} {
		p := pgtest.Require(t, major)
		primary := pgtest.New(t, p, pgtest.Options{})
		primary.Exec(t, `create role nobody login`)
		conn := connect(t, primary.Config())
		if standby, err := conn.Standby(t.Context()); standby || err != nil {
			t.Errorf("PostgreSQL %d: primary: %v, %v", major, standby, err)
		}
		if n, err := conn.Standbys(t.Context()); n != 0 || err != nil {
			t.Errorf("PostgreSQL %d: %d standbys before there is one, %v", major, n, err)
		}
		standby := primary.Standby(t, pgtest.Options{})
		primary.CatchUp(t, standby)
		if standby, err := connect(t, standby.Config()).Standby(t.Context()); !standby || err != nil {
			t.Errorf("PostgreSQL %d: standby: %v, %v", major, standby, err)
		}
		for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) { // it tells by and by
			n, err := conn.Standbys(t.Context())
			if err != nil || time.Since(begin) > time.Minute {
				t.Fatalf("PostgreSQL %d: %d standbys, %v", major, n, err)
			}
			if n == 1 {
				break
			}
		}
		var said *server.Error
		if _, err := connect(t, with(primary.Config(), "user", "nobody")).Standbys(t.Context()); !errors.As(err, &said) || said.Hint() == "" {
			t.Errorf("PostgreSQL %d: who may not see: %v", major, err)
		}
	}
}

// A standby that follows another one through its promotion is on the new timeline as soon as it receives that; any role may ask.
func TestTimeline(t *testing.T) {
	for _, major := range []int{10, 18} {
		primary := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{})
		primary.Exec(t, `create role nobody login`)
		standby := primary.Standby(t, pgtest.Options{})
		leaf := standby.Standby(t, pgtest.Options{})
		primary.CatchUp(t, leaf)
		ask := func(c *pgtest.Cluster, user string) wal.Timeline {
			t.Helper()
			at, err := connect(t, with(c.Config(), "user", user)).Timeline(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		for _, c := range []*pgtest.Cluster{primary, standby, leaf} {
			if at := ask(c, "nobody"); at != 1 {
				t.Errorf("PostgreSQL %d: timeline %d before any promotion", major, at)
			}
		}
		if err := standby.Server.Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		if one, two := ask(primary, "nobody"), ask(standby, "nobody"); one != 1 || two != 2 {
			t.Errorf("PostgreSQL %d: the primary is on timeline %d, who was promoted on %d", major, one, two)
		}
		standby.Exec(t, `create table t ()`)
		pgtest.Eventually(t, "who follows is on timeline 2", func() bool { return ask(leaf, "postgres") == 2 })
	}
}
