package server_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
)

// A primary gets a row for each host, which is renewed; a standby gets none, and has what its primary has.
func TestHeartbeat(t *testing.T) {
	for _, major := range []int{10, 18} {
		primary := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{})
		standby := primary.Standby(t, pgtest.Options{})
		c := connect(t, primary.Config())
		var last server.Beat
		for _, host := range []string{"db1", "db1", `o'dd "host"`} {
			b, err := c.Heartbeat(t.Context(), host)
			if err != nil {
				t.Fatal(err)
			}
			if time.Since(b.At).Abs() > time.Minute || !b.At.After(last.At) || b.LSN < last.LSN || b.LSN == 0 {
				t.Errorf("PostgreSQL %d: %+v after %+v", major, b, last)
			}
			last = b
		}
		if got := primary.Value(t, `(select count(*) || ' ' || count(distinct host) from holdfast.heartbeat)`); got != "2 2" {
			t.Errorf("PostgreSQL %d: rows and hosts: %s", major, got)
		}
		if lsn, err := wal.ParseLSN(primary.Value(t, `(select lsn from holdfast.heartbeat order by at desc limit 1)`)); err != nil || lsn != last.LSN {
			t.Errorf("PostgreSQL %d: %s (%v), want %s", major, lsn, err, last.LSN)
		}
		if lsn, err := c.CurrentLSN(t.Context()); err != nil || lsn < last.LSN { // the session is as it was, and takes other work
			t.Errorf("PostgreSQL %d: then it is at %s: %v", major, lsn, err)
		}
		primary.CatchUp(t, standby)
		if b, err := connect(t, standby.Config()).Heartbeat(t.Context(), "db2"); !errors.Is(err, server.ErrStandby) {
			t.Errorf("PostgreSQL %d: a standby: %+v, %v", major, b, err)
		}
		if got := standby.Value(t, `(select count(*) from holdfast.heartbeat)`); got != "2" {
			t.Errorf("PostgreSQL %d: the standby has %s rows", major, got)
		}
	}
}

// A role that may do nothing is told what to type, and then may; a role that nobody need trust does not get a superuser to run its triggers.
func TestHeartbeatRoles(t *testing.T) {
	p := pgtest.New(t, pgtest.Require(t, 17), pgtest.Options{})
	p.Exec(t, `create role beater login`)
	beater := func() error {
		_, err := connect(t, with(p.Config(), "user", "beater")).Heartbeat(t.Context(), "db1")
		return err
	}
	var e *server.Error
	if err := beater(); !errors.As(err, &e) || !strings.Contains(e.Hint(), server.HeartbeatSQL) {
		t.Errorf("a role that may nothing: %v, hint %v", err, e)
	}
	for _, statement := range strings.Split(strings.ReplaceAll(strings.TrimPrefix(e.Hint(), "as one who may: "), "ROLE", "beater"), ";") {
		p.Exec(t, statement)
	}
	if err := beater(); err != nil {
		t.Errorf("after what it was told to type: %v", err)
	}
	p.Exec(t, `drop schema holdfast cascade`, `create role mallory login`, `create schema holdfast authorization mallory`, `create table public.seen (who text)`,
		`set role mallory`, strings.SplitAfter(server.HeartbeatSQL, ";")[1],
		`create function holdfast.f() returns trigger language plpgsql as 'begin alter role mallory superuser; return new; end'`,
		`create trigger t before insert on holdfast.heartbeat for each row execute procedure holdfast.f()`, `reset role`)
	if _, err := connect(t, p.Config()).Heartbeat(t.Context(), "db1"); !errors.As(err, &e) || !strings.Contains(err.Error(), `"mallory"`) || e.Hint() == "" {
		t.Errorf("a table of mallory's: %v", err)
	}
	if got := p.Value(t, `(select rolsuper from pg_roles where rolname = 'mallory')`); got != "f" && got != "false" {
		t.Errorf("mallory is a superuser: %s", got)
	}
}

// A role that may make triggers on the table does not get them run by who writes it.
func TestHeartbeatTrigger(t *testing.T) {
	p := pgtest.New(t, pgtest.Require(t, 17), pgtest.Options{})
	p.Exec(t, strings.Split(server.HeartbeatSQL, "; ")...)
	p.Exec(t, `create role mallory login`, `grant usage on schema holdfast to mallory`, `grant trigger on holdfast.heartbeat to mallory`, `create schema m authorization mallory`, `set role mallory`,
		`create function m.f() returns trigger language plpgsql as 'begin alter role mallory superuser; return new; end'`,
		`create trigger "Odd" before insert on holdfast.heartbeat for each row execute procedure m.f()`, `reset role`)
	var e *server.Error
	if _, err := connect(t, p.Config()).Heartbeat(t.Context(), "db1"); !errors.As(err, &e) || !strings.Contains(err.Error(), `"Odd"`) || !strings.Contains(e.Hint(), `drop trigger "Odd" on`) {
		t.Fatalf("with a trigger: %v, hint %v", err, e)
	}
	if got := p.Value(t, `(select rolsuper from pg_roles where rolname = 'mallory')`); got != "f" && got != "false" {
		t.Errorf("mallory is a superuser: %s", got)
	}
	p.Exec(t, `drop trigger "Odd" on holdfast.heartbeat`)
	if _, err := connect(t, p.Config()).Heartbeat(t.Context(), "db1"); err != nil {
		t.Error(err)
	}
}

// Where all tables are published no table is made that subscribers do not have.
func TestHeartbeatPublished(t *testing.T) {
	for _, major := range []int{10, 17} {
		p := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{})
		p.Exec(t, `create publication everything for all tables`)
		var e *server.Error
		if _, err := connect(t, p.Config()).Heartbeat(t.Context(), "db1"); !errors.As(err, &e) || !strings.Contains(err.Error(), `"everything"`) || e.Hint() == "" {
			t.Errorf("PostgreSQL %d: all is published: %v", major, err)
		}
		if got := p.Value(t, `to_regclass('holdfast.heartbeat') is null`); got != "true" {
			t.Errorf("PostgreSQL %d: the table is there", major)
		}
		p.Exec(t, strings.Split(server.HeartbeatSQL, "; ")...)
		if _, err := connect(t, p.Config()).Heartbeat(t.Context(), "db1"); err != nil {
			t.Errorf("PostgreSQL %d: a table that somebody made: %v", major, err)
		}
	}
}
