package server_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/server"
	"holdfast/test/pgtest"
)

// Behind a pooler our settings hold for what we ask, and for nobody who has the server's session next.
func TestPoolerKeepsItsSettings(t *testing.T) {
	s := pgtest.New(t, pgtest.Require(t, 17), pgtest.Options{})
	s.Exec(t, `alter role `+instance.Superuser+` set statement_timeout = '77s'`, `create function public.pg_is_in_recovery() returns bool language sql as 'select 1 / 0 > 0'`,
		`alter role `+instance.Superuser+` set search_path = public, pg_catalog`)
	cfg := pgtest.Pooler(t, s)
	c, err := server.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CurrentLSN(t.Context()); err != nil {
		t.Error(err)
	}
	n := 0
	if err := c.Relations(t.Context(), func(server.Relation) error { n++; return nil }); err != nil || n == 0 {
		t.Errorf("%d relations, %v", n, err)
	}
	start, err := c.StartBackup(t.Context(), "test", true) // which runs the function above where nothing keeps it from that
	if err != nil || start.Standby {
		t.Errorf("got %+v, %v", start, err)
	}
	if _, err := c.StopBackup(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.Heartbeat(t.Context(), "here"); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	next, err := server.Session(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close(t.Context())
	var path, timeout string
	var prepared int
	if err := next.QueryRow(t.Context(), `select current_setting('search_path'), current_setting('statement_timeout'), (select count(*) from pg_prepared_statements)`, pgx.QueryExecModeExec).Scan(&path, &timeout, &prepared); err != nil ||
		path != "public, pg_catalog" || timeout != "77s" || prepared != 0 {
		t.Errorf("the next one has search_path %s, statement_timeout %s, %d prepared statements, %v", path, timeout, prepared, err)
	}
	direct, err := server.Session(t.Context(), s.Config(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(t.Context())
	if lent, err := server.Lent(t.Context(), direct); lent || err != nil {
		t.Errorf("a session without a pooler is lent: %t, %v", lent, err)
	}
}
