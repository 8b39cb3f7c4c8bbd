package postgres_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/internal/lease"
	"holdfast/internal/lease/leasetest"
	"holdfast/internal/lease/postgres"
	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
)

func open(t *testing.T, servers ...*pgtest.Cluster) *postgres.Keeper {
	t.Helper()
	var hosts, ports []string
	for _, c := range servers {
		hosts, ports = append(hosts, c.Server.Host()), append(ports, fmt.Sprint(c.Server.Port()))
	}
	k, err := postgres.New(fmt.Sprintf("host=%s port=%s user=%s dbname=postgres", strings.Join(hosts, ","), strings.Join(ports, ","), instance.Superuser))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestPostgresKeepsLeases(t *testing.T) {
	primary := pgtest.New(t, pgtest.Require(t, 17), pgtest.Options{})
	standby := primary.Standby(t, pgtest.Options{})
	leasetest.Test(t, func(t *testing.T) leasetest.Service {
		pgtest.Eventually(t, "nobody is left of the test before", func() bool {
			return primary.Value(t, `(select count(*) from pg_locks where locktype = 'advisory')`) == "0"
		})
		return leasetest.Service{TTL: 2 * time.Second, Late: time.Second, Open: func(t *testing.T) lease.Keeper { return open(t, standby, primary) }}
	})
}

// Before PostgreSQL 14, too, the lock goes with its holder, and a failover ends it.
func TestALockEndsWithItsSession(t *testing.T) {
	for _, major := range []int{10, 18} {
		primary := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{})
		k := open(t, primary)
		g, err := k.Acquire(t.Context(), "verify", lease.Holder{Host: "db1", PID: 7}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Check(t.Context()); err != nil {
			t.Errorf("PostgreSQL %d: %v", major, err)
		}
		primary.Exec(t, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'holdfast lease 7 db1'`)
		if err := g.Renew(t.Context()); !errors.As(err, new(*lease.LostError)) {
			t.Errorf("PostgreSQL %d: renew: %v", major, err)
		}
		if err := g.Release(t.Context(), false); err != nil {
			t.Errorf("PostgreSQL %d: release: %v", major, err)
		}
	}
}

func TestASecretInTheAddressIsNotTold(t *testing.T) {
	if _, err := postgres.New("postgres://u:hush@[bad/x"); err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("%v", err)
	}
}
