package bringback_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/bringback"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/server"
	"holdfast/test/pgtest"
)

// The cases, on two servers that they share, each in a database of its own.
func TestCases(t *testing.T) {
	t.Parallel()
	s := newSite(t, 17)
	run(t, s.live, "postgres", roles)
	run(t, s.copy, "postgres", roles, `create role gone`)
	for _, c := range []struct {
		name string
		test func(*testing.T, *site)
	}{
		{"standby", ontoStandby}, {"truncated", besideTruncated}, {"updated", besideUpdated}, {"schema", droppedSchema}, {"role", goneRole}, {"names", hostileNames}, {"partition", lostPartition},
		{"keys", keysOfTables}, {"held", heldTable}, {"fails", failsWhole}, {"rights", withoutRights}, {"unknown", unknownNames}, {"as", otherName}, {"into", otherDatabase},
		{"columns", otherColumns}, {"nokey", withoutKey}, {"order", sortedKeys}, {"files", files}, {"database", droppedDatabase}, {"encoding", otherEncoding}, {"unlogged", unloggedTable},
		{"unindexed", withoutIndexFiles}, {"publication", publishedTable}, {"prepared", preparedTransactions}, {"extension", goneExtension}, {"money", moneyColumns}, {"casts", castsOfUsers}, {"children", comparedWithChildren}, {"grantor", goneGrantor}, {"compared", comparedDatabase}, {"pooler", behindPooler}, {"matview", materializedViews}, {"closed", closedDatabase},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, s) })
	}
	// Nothing is left behind by any of them.
	for what, sql := range map[string]string{
		"databases":    `select datname from pg_database where datname like 'holdfast%'`,
		"sessions":     `select application_name from pg_stat_activity where application_name like '%recover-table%'`,
		"transactions": `select gid from pg_prepared_xacts`,
	} {
		pgtest.Eventually(t, "no "+what+" are left", func() bool { return value(t, s.live, "postgres", sql) == "" })
	}
}

// Behind a pooler other clients would get what we set for our sessions: that is refused, before anything is set.
func behindPooler(t *testing.T, s *site) {
	l := bringback.Live{Config: pgtest.Pooler(t, s.live)}
	refused(t, bringback.Check(t.Context(), l, names([]string{"postgres.public.t"}), "", bringback.Options{}), "a pooler is at")
	next, err := server.Session(t.Context(), l.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close(context.Background())
	var set string
	if err := next.QueryRow(t.Context(), `select coalesce(string_agg(name, ' '), '') from pg_settings where source = 'session' and name <> 'application_name'`).Scan(&set); err != nil || set != "" {
		t.Errorf("the next one has %s set, %v", set, err)
	}
}

// A standby takes no tables, and that is said before the copy is touched.
func ontoStandby(t *testing.T, s *site) {
	s.both(t, "standby", `create table t (id int)`)
	l := bringback.Live{Config: s.live.Standby(t, pgtest.Options{}).Config()}
	_, err := bringback.Tables(t.Context(), s.private(t), l, names([]string{"standby.public.t"}), bringback.Options{})
	refused(t, err, "is a standby")
	_, err = bringback.Database(t.Context(), s.private(t), l, "standby", bringback.Options{})
	refused(t, err, "is a standby")
}

// What was truncated is brought beside the table, which stays as it is, with names like its own, and bound to nobody's traffic.
func besideTruncated(t *testing.T, s *site) {
	s.both(t, "truncated", everything...)
	run(t, s.live, "truncated", `truncate orders cascade`, `insert into orders (customer, amount) values (7, 1)`)
	before := schema(t, s.live, "truncated")
	r := s.bring(t, bringback.Options{Diff: true}, "truncated.public.orders", "truncated.public.items")
	if got := r.Tables[0]; got.As.Name != "orders_recovered" || got.Rows != 300 || got.Diff == nil || got.Diff.OnlyHere != 300 || got.Diff.OnlyThere != 1 || got.Diff.Changed != 0 || got.Diff.Same != 0 {
		t.Errorf("got %+v, %+v", got, got.Diff)
	}
	if got := r.Tables[1].Diff; got == nil || got.OnlyHere != 300 || !reflect.DeepEqual(got.Key, []string{"order_id", "line"}) || got.Examples.OnlyHere[0] != "(1, 1)" || len(got.Examples.OnlyHere) != 10 {
		t.Errorf("got %+v", got)
	}
	if len(r.Left) != 1 || !strings.Contains(r.Left[0].SQL, "orders_recovered ADD CONSTRAINT orders_customer_fkey FOREIGN KEY (customer) REFERENCES public.customers(id)") &&
		!strings.Contains(r.Left[0].SQL, `"orders_recovered" ADD CONSTRAINT "orders_customer_fkey" FOREIGN KEY (customer) REFERENCES public.customers(id)`) {
		t.Errorf("left:\n%s", leftOf(r))
	}
	rows := `select md5(string_agg(o::text, ',' order by id)) from `
	if got, want := value(t, s.live, "truncated", rows+"orders_recovered o"), value(t, s.copy, "truncated", rows+"orders o"); got != want || got == "" {
		t.Errorf("rows hash to %q, in the copy to %q", got, want)
	}
	if got := value(t, s.live, "truncated", `select string_agg(conrelid::regclass || '.' || conname || '>' || confrelid::regclass, ' ' order by conrelid::regclass::text, conname) from pg_constraint where contype = 'f'`); got !=
		"items_recovered.items_order_id_fkey>orders_recovered items.items_order_id_fkey>orders orders_recovered.orders_parent_fkey>orders_recovered orders.orders_customer_fkey>customers orders.orders_parent_fkey>orders" &&
		got != "items.items_order_id_fkey>orders items_recovered.items_order_id_fkey>orders_recovered orders.orders_customer_fkey>customers orders.orders_parent_fkey>orders orders_recovered.orders_parent_fkey>orders_recovered" {
		t.Errorf("foreign keys: %s", got)
	}
	if got := value(t, s.live, "truncated", `select string_agg(relname, ' ' order by relname) from pg_class where relname like 'orders\_recovered%'`); got !=
		"orders_recovered orders_recovered_customer orders_recovered_id_seq orders_recovered_number_key orders_recovered_number_seq orders_recovered_pkey orders_recovered_tags_idx" {
		t.Errorf("names: %s", got)
	}
	if got := value(t, s.live, "truncated", `insert into orders_recovered (customer) values (1) returning id, number`); got != "301|2500" {
		t.Errorf("its sequences go on with %s", got)
	}
	run(t, s.live, "truncated", `drop table orders_recovered, items_recovered`)
	sameDump(t, schema(t, s.live, "truncated"), before)

	run(t, s.live, "truncated", `create view orders_recovered as select 1`)
	run(t, s.copy, "truncated", `create type orders_recovered2 as enum ()`)
	if r := s.bring(t, bringback.Options{}, "truncated.public.orders"); r.Tables[0].As.Name != "orders_recovered3" || r.Tables[0].Rows != 300 {
		t.Errorf("got %+v", r.Tables[0])
	}
}

// A change of many rows is told by key, with the columns that differ.
func besideUpdated(t *testing.T, s *site) {
	s.both(t, "updated", everything...)
	run(t, s.live, "updated", `update orders set note = 'oops', amount = null where id between 101 and 250`, `delete from orders where id = 300`,
		`insert into orders (id, customer) values (1001, 1), (1002, 2)`, `update orders set flag = not flag where id = 1`, `insert into parts values (91, '2025-12-31', 'new')`, `update parts set v = null where id = 5`)
	r := s.bring(t, bringback.Options{Diff: true}, "updated.public.orders", "updated.public.parts")
	d := r.Tables[0].Diff
	if d == nil || d.OnlyHere != 1 || d.OnlyThere != 2 || d.Changed != 151 || d.Same != 148 || d.Note != "" {
		t.Fatalf("got %+v", d)
	}
	if !slices.Equal(d.Examples.OnlyHere, []string{"300"}) || !slices.Equal(d.Examples.OnlyThere, []string{"1001", "1002"}) || len(d.Examples.Changed) != 10 ||
		!reflect.DeepEqual(d.Examples.Changed[:2], []bringback.Changed{{Key: "1", Columns: []string{"flag"}}, {Key: "101", Columns: []string{"amount", "note"}}}) || !slices.Equal(d.Columns, []string{"flag", "amount", "note"}) {
		t.Errorf("got %+v", d)
	}
	if d := r.Tables[1].Diff; d == nil || d.OnlyThere != 1 || d.Changed != 1 || d.Same != 89 || d.OnlyHere != 0 || d.Examples.Changed[0].Key != "(5, 2024-12-06)" {
		t.Errorf("got %+v", d)
	}
}

// Where the schema went with all that is in it, it comes back with what the tables need.
func droppedSchema(t *testing.T, s *site) {
	s.both(t, "gone", `create extension if not exists plpgsql`, `create schema app authorization keeper`, `grant usage on schema app to reader`, `comment on schema app is 'the app'`, `create schema more`,
		`create type more.pair as (a int, b text)`, `create type app.span as range (subtype = float8)`, `create domain app.email as text check (value ~ '@')`, `comment on domain app.email is 'an address'`,
		`create sequence app.numbers start 5; select nextval('app.numbers') from generate_series(1, 7)`,
		`create function app.next() returns bigint language sql as $$ select nextval('app.numbers') $$`,
		`create collation app.c from "C"`,
		`create table app.t (id bigint default nextval('app.numbers') primary key, n bigint default app.next(), p more.pair, ps more.pair[], r app.span, m app.email collate app.c, k int check (k > 0))`,
		`insert into app.t (p, ps, r, m, k) select (n, 'x')::more.pair, array[(n, 'y')::more.pair], app.span(n, n + 1), n || '@x', n from generate_series(1, 20) n`, `grant insert on app.t to reader`)
	before := schema(t, s.live, "gone")
	run(t, s.live, "gone", `drop schema app, more cascade`)
	r := s.bring(t, bringback.Options{}, "gone.app.t")
	if r.Tables[0].Rows != 20 || len(r.Left) > 0 {
		t.Errorf("%d rows; left:\n%s", r.Tables[0].Rows, leftOf(r))
	}
	sameDump(t, schema(t, s.live, "gone"), before)
}

// An owner that is gone, and grants to him, are told.
func goneRole(t *testing.T, s *site) {
	s.both(t, "owned", `create table t (id int primary key); insert into t values (1)`, `create policy p on t to reader using (true)`)
	run(t, s.copy, "owned", `alter table t owner to gone`, `grant select on t to gone, reader`)
	run(t, s.live, "owned", `drop table t`)
	r := s.bring(t, bringback.Options{}, "owned.public.t")
	if len(r.Left) != 1 || !strings.Contains(r.Left[0].SQL, "OWNER TO gone") || !strings.Contains(r.Left[0].Why, `role "gone" does not exist`) {
		t.Errorf("left:\n%s", leftOf(r))
	}
	if got := value(t, s.live, "owned", `select pg_get_userbyid(relowner), has_table_privilege('reader', 't', 'select'), (select count(*) from t) from pg_class where relname = 't'`); got != "postgres|t|1" {
		t.Errorf("got %s", got)
	}
}

// What one who is gone has granted is not granted by another.
func goneGrantor(t *testing.T, s *site) {
	s.both(t, "granted", `create table t (id int); insert into t values (1)`)
	run(t, s.copy, "granted", `grant select on t to gone with grant option`, `set role gone; grant select on t to reader`)
	run(t, s.live, "granted", `drop table t`)
	r := s.bring(t, bringback.Options{}, "granted.public.t")
	var left []string
	for _, l := range r.Left {
		left = append(left, strings.Join(strings.Fields(l.SQL)[:2], " "))
	}
	if !slices.Equal(left, []string{"GRANT SELECT", "SET SESSION", "GRANT SELECT", "RESET SESSION"}) {
		t.Errorf("left:\n%s", leftOf(r))
	}
	if got := value(t, s.live, "granted", `select has_table_privilege('reader', 't', 'select'), count(*) from t`); got != "f|1" {
		t.Errorf("got %s", got)
	}
}

// Names may be anything that PostgreSQL takes.
func hostileNames(t *testing.T, s *site) {
	database, odd := `o'd"d =%\`, `a"b.c'd%s\$ ; é-- /*`
	long := strings.Repeat("ü", 31)
	q := func(n string) string { return `"` + strings.ReplaceAll(n, `"`, `""`) + `"` }
	statements := []string{`create schema ` + q(odd)}
	for _, n := range []string{odd, long, "New\nLine", "select", "*", "t?"} {
		statements = append(statements, fmt.Sprintf(`create table %[1]s.%[2]s (%[2]s int primary key, "per%%cent" text default ';''', v text); insert into %[1]s.%[2]s select n, 'x' || n, null from generate_series(1, 5) n`, q(odd), q(n)))
	}
	s.both(t, database, statements...)
	var tables []bringback.Table
	for _, n := range []string{odd, long, "New\nLine", "select", "*", "t?"} {
		run(t, s.live, database, fmt.Sprintf(`update %s.%s set v = 'y' where %[2]s = 3`, q(odd), q(n)))
		tables = append(tables, bringback.Table{Database: database, Schema: odd, Name: n})
	}
	r, err := bringback.Tables(t.Context(), s.private(t), s.server(), tables, bringback.Options{Diff: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range r.Tables {
		if got.Rows != 5 || got.Diff == nil || got.Diff.Changed != 1 || got.Diff.Same != 4 || got.Diff.Examples.Changed[0].Key != "3" || !slices.Equal(got.Diff.Columns, []string{"v"}) {
			t.Errorf("%s: got %+v, %+v", tables[i], got, got.Diff)
		}
		if want := tables[i].Name + "_recovered"; got.As.Name != want && !strings.HasPrefix(want, "ü") {
			t.Errorf("%s is brought as %s", tables[i], got.As)
		}
		if len(got.As.Name) > 63 {
			t.Errorf("%s has %d bytes", got.As, len(got.As.Name))
		}
	}
	run(t, s.live, database, `drop schema `+q(odd)+` cascade`)
	if r, err = bringback.Tables(t.Context(), s.private(t), s.server(), tables[:1], bringback.Options{}); err != nil || r.Tables[0].Rows != 5 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// One partition comes back as a table, and how it becomes a partition again is told.
func lostPartition(t *testing.T, s *site) {
	s.both(t, "partition", everything...)
	before := schema(t, s.live, "partition", "-t", "parts*")
	run(t, s.live, "partition", `drop table parts_2024`)
	r := s.bring(t, bringback.Options{Diff: true}, "partition.public.parts_2024")
	if r.Tables[0].Rows != 30 || r.Tables[0].As.Name != "parts_2024" || len(r.Left) != 1 || !strings.Contains(r.Left[0].SQL, "ATTACH PARTITION public.parts_2024 FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')") {
		t.Fatalf("%+v; left:\n%s", r.Tables[0], leftOf(r))
	}
	run(t, s.live, "partition", r.Left[0].SQL)
	sameDump(t, schema(t, s.live, "partition", "-t", "parts*"), before)
	// And a child of a table.
	run(t, s.live, "partition", `drop table derived`)
	if r = s.bring(t, bringback.Options{}, "partition.public.derived"); r.Tables[0].Rows != 1 || len(r.Left) != 1 || r.Left[0].SQL != `ALTER TABLE "public"."derived" INHERIT "public"."base";` {
		t.Fatalf("%+v; left:\n%s", r.Tables[0], leftOf(r))
	}
	if got := value(t, s.live, "partition", `select count(*) from base`); got != "1" {
		t.Errorf("the parent has %s rows before anybody decided that", got)
	}
	run(t, s.live, "partition", r.Left[0].SQL)
	if got := value(t, s.live, "partition", `select string_agg(inhparent::regclass::text, ' ') from pg_inherits where inhrelid = 'derived'::regclass`); got != "base" {
		t.Errorf("it is a child of %s", got)
	}
}

// Foreign keys come back in both directions, and what stands against them is told.
func keysOfTables(t *testing.T, s *site) {
	s.both(t, "keys", `create table a (id int primary key)`, `create table b (id int primary key references a, c int)`, `create table c (id int primary key references b)`, `create table d (id int); alter table d add constraint d_id_fkey foreign key (id) references b not valid`,
		`create table e (id int references b) partition by list (id)`, `create table f (id int constraint odd references b deferrable initially deferred)`, `create table gone (id int references b)`,
		`insert into a select generate_series(1, 10)`, `insert into b select n, n from generate_series(1, 10) n`, `insert into c select generate_series(1, 10)`)
	run(t, s.live, "keys", `drop table b cascade`, `drop table gone`, `delete from a where id = 7`, `insert into c values (11)`)
	r := s.bring(t, bringback.Options{}, "keys.public.b")
	got := value(t, s.live, "keys", `select string_agg(conrelid::regclass || '.' || conname || ' ' || convalidated || condeferred, ', ' order by conrelid::regclass::text) from pg_constraint where contype = 'f'`)
	if want := "b.b_id_fkey falsefalse, c.c_id_fkey falsefalse, d.d_id_fkey falsefalse, e.e_id_fkey truefalse, f.odd truetrue"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var left []string
	for _, l := range r.Left {
		left = append(left, l.SQL)
	}
	if len(left) != 3 || !strings.Contains(left[0], `"b" VALIDATE CONSTRAINT "b_id_fkey"`) || !strings.Contains(left[1], `"c" VALIDATE`) || !strings.Contains(left[2], `"gone" ADD`) {
		t.Errorf("left:\n%s", leftOf(r))
	}
}

// Where somebody holds a table for long we do not stand in the way of those behind him: we go without and tell.
func heldTable(t *testing.T, s *site) {
	s.both(t, "held", `create table a (id int primary key)`, `create table b (id int primary key references a)`, `insert into a values (1), (2)`, `insert into b values (1)`)
	run(t, s.live, "held", `drop table b`)
	holder := open(t, s.live, "held")
	defer holder.Close(context.Background())
	if _, err := holder.PgConn().Exec(t.Context(), `begin; insert into a values (3)`).ReadAll(); err != nil {
		t.Fatal(err)
	}
	r := s.bring(t, bringback.Options{}, "held.public.b")
	if r.Tables[0].Rows != 1 || len(r.Left) != 2 || !strings.Contains(r.Left[0].SQL, "ADD CONSTRAINT") || !strings.Contains(r.Left[0].Why, "stays open") {
		t.Errorf("%+v; left:\n%s", r.Tables[0], leftOf(r))
	}
	if _, err := holder.PgConn().Exec(t.Context(), `commit`).ReadAll(); err != nil {
		t.Fatal(err)
	}
	for _, l := range r.Left {
		run(t, s.live, "held", l.SQL)
	}
}

// Where rows cannot be loaded nothing is left behind.
func failsWhole(t *testing.T, s *site) {
	s.both(t, "fails", `create domain d as int`, `create table first (id int primary key); insert into first values (1)`, `create table second (v d); insert into second select generate_series(1, 1000)`)
	run(t, s.live, "fails", `drop table first, second`, `alter domain d add check (value < 1000)`)
	before := schema(t, s.live, "fails")
	r, err := bringback.Tables(t.Context(), s.private(t), s.server(), names([]string{"fails.public.first", "fails.public.second"}), bringback.Options{})
	if err == nil || !strings.Contains(err.Error(), "load rows into public.second") || !strings.Contains(err.Error(), "check constraint") || len(r.Tables) > 0 {
		t.Errorf("got %v, %+v", err, r)
	}
	sameDump(t, schema(t, s.live, "fails"), before)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bringback.Tables(ctx, s.private(t), s.server(), names([]string{"fails.public.first"}), bringback.Options{}); err == nil {
		t.Error("a cancelled context brought a table")
	}
}

// Who may not make tables there is told what to do.
func withoutRights(t *testing.T, s *site) {
	s.both(t, "rights", `create table t (id int primary key); insert into t values (1)`)
	run(t, s.live, "rights", `drop table t`, `revoke create on schema public from public`, `create role weak login`, `alter role weak set default_transaction_read_only = on`, `alter role weak set statement_timeout = 20`)
	l := s.server()
	l.Config["user"] = "weak"
	_, err := bringback.Tables(t.Context(), s.private(t), l, names([]string{"rights.public.t"}), bringback.Options{})
	refused(t, err, "permission denied for schema public")
	refused(t, bringback.Check(t.Context(), l, names([]string{"rights.public.t"}), "", bringback.Options{}), "weak may not make tables in schema public")
	refused(t, bringback.Check(t.Context(), l, names([]string{"rights.gone.t"}), "", bringback.Options{}), "weak may not make tables in schema gone")
	refused(t, bringback.Check(t.Context(), l, nil, "rights", bringback.Options{}), "weak may not make a database")
	if got := value(t, s.live, "rights", `select count(*) from pg_class where relname = 't'`); got != "0" {
		t.Errorf("%s tables", got)
	}
	run(t, s.live, "rights", `grant create on schema public to weak`)
	if err := bringback.Check(t.Context(), l, names([]string{"rights.public.t"}), "", bringback.Options{}); err != nil {
		t.Error(err)
	}
	r, err := bringback.Tables(t.Context(), s.private(t), l, names([]string{"rights.public.t"}), bringback.Options{})
	if err != nil || r.Tables[0].Rows != 1 || len(r.Left) == 0 || !strings.Contains(r.Left[0].SQL, "OWNER TO postgres") {
		t.Errorf("got %+v, %v", r, err)
	}
}

// What is not there is told, with what is.
func unknownNames(t *testing.T, s *site) {
	s.both(t, "unknown", `create schema sales`, `create table sales.orders (id int)`, `create view v as select 1`, `create table parent (id int); create table child () inherits (parent)`)
	for _, c := range []struct {
		tables []string
		words  string
		advice string
	}{
		{[]string{"unknown.public.orders"}, "there was no table unknown.public.orders", "there is unknown.sales.orders"},
		{[]string{"nowhere.public.orders"}, "there was no database nowhere", "events"},
		{[]string{"unknown.public.v"}, "is a view", ""},
		{[]string{"unknown.sales.orders", "unknown.sales.orders"}, "twice", ""},
		{[]string{"unknown.public.child", "unknown.public.parent"}, "twice", ""},
	} {
		_, err := bringback.Tables(t.Context(), s.private(t), s.server(), names(c.tables), bringback.Options{})
		refused(t, err, c.words)
		if h, ok := err.(interface{ Hint() string }); !ok || !strings.Contains(h.Hint(), c.advice) {
			t.Errorf("%v: advice of %v", c.tables, err)
		}
	}
	run(t, s.copy, "postgres", `create database there`)
	run(t, s.copy, "there", `create table t (id int)`)
	_, err := bringback.Tables(t.Context(), s.private(t), s.server(), names([]string{"there.public.t"}), bringback.Options{})
	refused(t, err, "the live server has no database there")
	_, err = bringback.Database(t.Context(), s.private(t), s.server(), "nowhere", bringback.Options{})
	refused(t, err, "there was no database nowhere")
}

// --as gives another name, and only one that is free.
func otherName(t *testing.T, s *site) {
	s.both(t, "named", `create table t (id serial primary key); insert into t values (1)`, `create table u (id int)`)
	r := s.bring(t, bringback.Options{As: "was t", Diff: true}, "named.public.t")
	if r.Tables[0].As.Name != "was t" || r.Tables[0].Diff == nil || r.Tables[0].Diff.Same != 1 {
		t.Errorf("got %+v", r.Tables[0])
	}
	s.both(t, "second", `create table t (id int primary key); insert into t select generate_series(1, 3)`)
	if r := s.bring(t, bringback.Options{Diff: true}, "named.public.t", "second.public.t"); len(r.Tables) != 2 || r.Tables[0].Diff.Same != 1 || r.Tables[1].Diff.Same != 3 || r.Tables[1].As.Database != "second" {
		t.Errorf("got %+v", r)
	}
	_, err := bringback.Tables(t.Context(), s.private(t), s.server(), names([]string{"named.public.u"}), bringback.Options{As: "t"})
	refused(t, err, "has a public.t already")
	refused(t, bringback.Check(t.Context(), s.server(), names([]string{"named.public.u"}), "", bringback.Options{As: "t"}), "has a public.t already")
	if err := bringback.Check(t.Context(), s.server(), names([]string{"named.public.u", "second.public.t"}), "", bringback.Options{}); err != nil {
		t.Error(err)
	}
	_, err = bringback.Tables(t.Context(), s.private(t), s.server(), names([]string{"named.public.u", "named.public.t"}), bringback.Options{As: "x"})
	refused(t, err, "one name for 2 tables")
}

// Tables can be brought into another database, where they have their names.
func otherDatabase(t *testing.T, s *site) {
	s.both(t, "source", `create schema x`, `create type x.e as enum ('a')`, `create table x.t (id int primary key, e x.e); insert into x.t values (1, 'a'), (2, null)`, `create view x.v as select id from x.t`, `create table x.u (id int references x.t)`)
	run(t, s.live, "postgres", `create database elsewhere`)
	run(t, s.live, "source", `delete from x.t where id = 2`)
	r := s.bring(t, bringback.Options{IntoDatabase: "elsewhere", Diff: true}, "source.x.t")
	if got := r.Tables[0]; got.As != (bringback.Table{Database: "elsewhere", Schema: "x", Name: "t"}) || got.Diff == nil || got.Diff.OnlyHere != 1 || got.Diff.Same != 1 {
		t.Errorf("got %+v, %+v", got, got.Diff)
	}
	run(t, s.copy, "source", `drop view x.v`, `drop table x.u`) // which were not asked for
	if sameDump(t, schema(t, s.live, "elsewhere"), schema(t, s.copy, "source")); len(r.Left) > 0 {
		t.Errorf("left:\n%s", leftOf(r))
	}
}

// A table that has changed its columns is compared by those that both have.
func otherColumns(t *testing.T, s *site) {
	s.both(t, "columns", `create table t (id int primary key, a text, b int, c text, d int generated always as (id * 2) stored); insert into t select n, 'a', n, 'c' from generate_series(1, 4) n`)
	run(t, s.live, "columns", `alter table t drop column c, add column e int default 5, alter column b type text`, `update t set b = 'x' where id = 3`)
	d := s.bring(t, bringback.Options{Diff: true}, "columns.public.t").Tables[0].Diff
	if d == nil || d.Same != 3 || d.Changed != 1 || !slices.Equal(d.NotInLive, []string{"c"}) || !slices.Equal(d.NotInCopy, []string{"e"}) || !slices.Equal(d.Columns, []string{"b"}) {
		t.Errorf("got %+v", d)
	}
	run(t, s.live, "columns", `alter table t drop column d, add column d int default 0`)
	d = s.bring(t, bringback.Options{Diff: true}, "columns.public.t").Tables[0].Diff
	if d == nil || d.Failed || !strings.Contains(d.Note, "column d is generated on one side only") {
		t.Errorf("got %+v", d)
	}
	run(t, s.live, "columns", `drop table t cascade`, `create view t as select 1`)
	if d := s.bring(t, bringback.Options{Diff: true}, "columns.public.t").Tables[0].Diff; d == nil || !d.Failed || !strings.Contains(d.Note, "is a view now") {
		t.Errorf("got %+v", d)
	}
}

// Comparing runs no function of users: they would be superusers in it.
func castsOfUsers(t *testing.T, s *site) {
	s.both(t, "casts", `create type size as enum ('s', 'm', 'l')`, `create type pair as (a int, b text)`, `create function ran(size) returns text language plpgsql as $$begin raise exception 'ran'; end$$`,
		`create function ran(pair) returns text language plpgsql as $$begin raise exception 'ran'; end$$`, `create cast (size as text) with function ran(size)`, `create cast (pair as text) with function ran(pair)`,
		`create table t (size size, p pair, f char(4), v int, q pair, primary key (size, p, f)); insert into t select z, row(n, 'é')::pair, 'f' || n, n, row(n, 'x')::pair from generate_series(1, 5) n, unnest(enum_range(null::size)) z`,
		`create table u (size size); insert into u values ('s'), (null)`)
	run(t, s.live, "casts", `update t set q = row(0, 'y')::pair where v = 2 and size = 'm'`, `update t set q = null where v = 1 and size = 'l'`, `delete from t where v = 5`,
		`update u set size = 'l' where size = 's'`)
	r := s.bring(t, bringback.Options{Diff: true}, "casts.public.t", "casts.public.u")
	if d := r.Tables[0].Diff; d == nil || d.Note != "" || d.Same != 10 || d.Changed != 2 || d.OnlyHere != 3 || d.OnlyThere != 0 || !slices.Equal(d.Columns, []string{"q"}) || len(d.Examples.Changed) != 2 {
		t.Errorf("got %+v", d)
	}
	if d := r.Tables[1].Diff; d == nil || d.Failed || d.Same != 1 || d.OnlyHere != 1 || d.OnlyThere != 1 {
		t.Errorf("got %+v", d)
	}
}

// Children are tables of their own, and it is said that they were not compared.
func comparedWithChildren(t *testing.T, s *site) {
	s.both(t, "children", `create table p (id int primary key); insert into p values (1)`, `create table c () inherits (p); insert into c values (2), (3)`)
	r := s.bring(t, bringback.Options{Diff: true}, "children.public.p").Tables[0]
	if d := r.Diff; d == nil || d.Same != 1 || r.Rows != 3 || !strings.Contains(d.Note, "children were not compared") {
		t.Errorf("got %+v, %+v", r, d)
	}
}

// Amounts of money are written as they are read, whatever form the database they are from has for them.
func moneyColumns(t *testing.T, s *site) {
	s.both(t, "money", `create table t (id int primary key, m money); insert into t values (1, '1234.56'), (2, '-0.07')`)
	// Sessions of our own fire no such trigger: who is seen with another form than the database's is pg_dump.
	run(t, s.copy, "money", `create table seen (form text)`,
		`create function see() returns event_trigger language plpgsql as $$begin insert into public.seen values (current_setting('lc_monetary')); end$$`,
		`alter database money set lc_monetary = 'C.utf8'`, `create event trigger see on login execute function see()`)
	s.bring(t, bringback.Options{}, "money.public.t")
	if got := value(t, s.live, "money", `select id, m::numeric from t_recovered order by id`); got != "1|1234.56\n2|-0.07" {
		t.Errorf("got %s", got)
	}
	if got := value(t, s.copy, "money", `select distinct form from seen where form <> 'C.utf8'`); got != "C" {
		t.Errorf("pg_dump writes amounts as in %q, want C", got)
	}
}

// Without a key whole rows are counted, how often each is there.
func withoutKey(t *testing.T, s *site) {
	s.both(t, "nokey", `create table t (a int, b text); insert into t values (1, 'x'), (1, 'x'), (1, 'x'), (2, null), (3, ''), (null, null)`, `create unique index on t (a)  where a > 3`)
	run(t, s.live, "nokey", `delete from t where ctid = '(0,1)'`, `update t set b = null where a = 3`, `insert into t values (2, null)`)
	d := s.bring(t, bringback.Options{Diff: true}, "nokey.public.t").Tables[0].Diff
	if d == nil || len(d.Key) > 0 || d.Same != 4 || d.OnlyHere != 2 || d.OnlyThere != 2 || d.Changed != 0 || !strings.Contains(d.Note, "without a primary key") {
		t.Errorf("got %+v", d)
	}
}

// Keys of all kinds are matched, whatever collation and type they have.
func sortedKeys(t *testing.T, s *site) {
	s.both(t, "sorted", `create collation fuzzy (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
		`create table t (a text collate fuzzy, b int8, c timestamptz, d uuid, e numeric, f bytea, g varchar(20), h bpchar(5), i float8, j bool, k date, l int2, v text, primary key (a, b, c, d, e, f, g, h, i, j, k, l))`,
		`insert into t select chr(96 + n % 26) || E'\t\\' || case when n % 3 = 0 then 'é' else 'Z' end, (n - 500)::int8 * 1000000000, timestamptz '0001-01-01 BC' + make_interval(days => n * 2000), md5(n::text)::uuid, n / 7.0, decode(md5(n::text), 'hex'),
			'g' || n, 'h', n / 3.0, n % 2 = 0, '2000-01-01'::date + n * 7919, n - 500, 'v' from generate_series(1, 1000) n`,
		`create table u (a text unique not null, v int); insert into u select E'a\nb' || n, n from generate_series(1, 20) n`)
	run(t, s.live, "sorted", `update t set v = 'w' where l % 100 = 0`, `delete from t where l = 77`, `update u set v = 0 where v > 10`)
	r := s.bring(t, bringback.Options{Diff: true}, "sorted.public.t", "sorted.public.u")
	if d := r.Tables[0].Diff; d.Note != "" || d.Changed != 10 || d.OnlyHere != 1 || d.OnlyThere != 0 || d.Same != 989 || !slices.Equal(d.Columns, []string{"v"}) || len(d.Examples.Changed) != 10 {
		t.Errorf("got %+v", d)
	}
	for _, c := range r.Tables[0].Diff.Examples.Changed {
		if !slices.Equal(c.Columns, []string{"v"}) {
			t.Errorf("%s: columns %v", c.Key, c.Columns)
		}
	}
	if d := r.Tables[1].Diff; d.Note != "" || d.Changed != 10 || d.Same != 10 || !slices.Equal(d.Key, []string{"a"}) || !slices.Equal(d.Columns, []string{"v"}) {
		t.Errorf("got %+v", d)
	}
}

// A file has the tables, for pg_restore or psql, and no server is asked.
func files(t *testing.T, s *site) {
	s.both(t, "files", everything...)
	dir := pgtest.Dir(t)
	for _, name := range []string{"t.dump", "t.SQL"} {
		path := filepath.Join(dir, name)
		r, err := bringback.Tables(t.Context(), s.private(t), bringback.Live{}, names([]string{"files.public.parts", "files.public.customers"}), bringback.Options{Dump: path})
		if err != nil {
			t.Fatal(err)
		}
		if r.Dump != path || r.Bytes == 0 || len(r.Tables) != 2 || r.Tables[0].Rows != 90 || r.Tables[0].Parts != 3 || r.Tables[1].Rows != 50 {
			t.Errorf("got %+v", r)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		pgtest.Give(t, path)
		run(t, s.live, "postgres", `drop database if exists loaded`, `create database loaded`)
		args := []string{"-h", s.live.Server.Host(), "-p", strconv.Itoa(s.live.Server.Port()), "-U", instance.Superuser, "-d", "loaded"}
		tool, args := "pg_restore", append(args, path)
		if strings.HasSuffix(name, "SQL") {
			tool, args = "psql", append(args[:len(args)-1], "-qf", path)
		}
		if out, err := pgtest.Command(t, pgtest.Tool(t, 17, tool), args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", tool, err, out)
		}
		if got := value(t, s.live, "loaded", `select (select count(*) from parts), (select count(*) from customers)`); got != "90|50" {
			t.Errorf("loaded %s", got)
		}
		_, err = bringback.Tables(t.Context(), s.private(t), bringback.Live{}, names([]string{"files.public.parts"}), bringback.Options{Dump: path})
		refused(t, err, fs.ErrExist.Error())
	}
	path := filepath.Join(dir, "whole.dump")
	if r, err := bringback.Database(t.Context(), s.private(t), bringback.Live{}, "files", bringback.Options{Dump: path}); err != nil || r.Bytes == 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := bringback.Tables(t.Context(), s.private(t), bringback.Live{}, names([]string{"files.public.none"}), bringback.Options{Dump: path + "2"}); err == nil {
		t.Error("a table that is not there went into a file")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A database comes back under its name if that is gone, beside it if not, and with its settings.
func droppedDatabase(t *testing.T, s *site) {
	const name = `who"le`
	s.both(t, name, append(everything, `select lo_from_bytea(4711, 'large')`, `create publication p for table customers`)...)
	for _, c := range []*pgtest.Cluster{s.live, s.copy} {
		run(t, c, "postgres", `alter database "who""le" set work_mem = '7MB'`, `alter role reader in database "who""le" set work_mem = '8MB'`, `alter database "who""le" owner to keeper`, `comment on database "who""le" is 'all'`,
			`grant connect on database "who""le" to reader`, `alter database "who""le" connection limit 30`)
	}
	before, create := schema(t, s.live, name), schema(t, s.live, name, "--create", "--schema-only")
	r, err := bringback.Database(t.Context(), s.private(t), s.server(), name, bringback.Options{})
	if err != nil || r.Database != name+"_recovered" || len(r.Left) > 0 {
		t.Fatalf("got %+v, %v", r, err)
	}
	sameDump(t, schema(t, s.live, r.Database), before)
	run(t, s.live, "postgres", `drop database "who""le"`)
	if r, err = bringback.Database(t.Context(), s.private(t), s.server(), name, bringback.Options{}); err != nil || r.Database != name || len(r.Left) > 0 {
		t.Fatalf("got %+v, %v", r, err)
	}
	sameDump(t, schema(t, s.live, name), before)
	sameDump(t, schema(t, s.live, name, "--create", "--schema-only"), create)
	var rows, parts int64
	for _, one := range r.Tables {
		rows, parts = rows+one.Rows, parts+int64(one.Parts)
	}
	if len(r.Tables) != 6 || rows != 50+300+300+90+2 || parts != 3 {
		t.Errorf("%d tables, %d rows, %d partitions: %+v", len(r.Tables), rows, parts, r.Tables)
	}
	_, err = bringback.Database(t.Context(), s.private(t), s.server(), name, bringback.Options{IntoDatabase: "postgres"})
	refused(t, err, "has a database postgres already")
	refused(t, bringback.Check(t.Context(), s.server(), nil, name, bringback.Options{IntoDatabase: "postgres"}), "has a database postgres already")
	if err := bringback.Check(t.Context(), s.server(), nil, name, bringback.Options{}); err != nil {
		t.Error(err)
	}

	// What a killed run left is told.
	run(t, s.live, "postgres", `create database holdfast_0123abcd`)
	if r, err := bringback.Database(t.Context(), s.private(t), s.server(), name, bringback.Options{IntoDatabase: "again"}); err != nil || len(r.Left) != 1 || r.Left[0].SQL != `DROP DATABASE "holdfast_0123abcd";` {
		t.Errorf("got %+v, %v", r, err)
	} else {
		run(t, s.live, "postgres", r.Left[0].SQL)
	}

	// Who looks into a database while it is made is not in its way.
	watching, stop := context.WithCancel(t.Context())
	watched := make(chan bool)
	go func() { watched <- watch(watching, s.live) }()
	if r, err := bringback.Database(t.Context(), s.private(t), s.server(), name, bringback.Options{IntoDatabase: "watched"}); err != nil || r.Database != "watched" {
		t.Errorf("got %+v, %v", r, err)
	}
	stop()
	if !<-watched {
		t.Error("nobody looked into it")
	}

	// What cannot be loaded leaves no database.
	run(t, s.copy, name, `create function holds(int) returns bool language sql immutable as 'select true'`, `create table zz (id int check (holds(id))); insert into zz select generate_series(1, 100)`,
		`create or replace function holds(int) returns bool language sql immutable as 'select $1 <> 13'`)
	if _, err = bringback.Database(t.Context(), s.private(t), s.server(), name, bringback.Options{IntoDatabase: "half"}); err == nil || !strings.Contains(err.Error(), "load rows into public.zz") {
		t.Errorf("got %v", err)
	}
	if got := value(t, s.live, "postgres", `select count(*) from pg_database where datname = 'half' or datname like 'holdfast%'`); got != "0" {
		t.Errorf("%s databases are left", got)
	}
	if got := value(t, s.copy, "postgres", `select count(*) from pg_database where datname = 'who"le'`); got != "1" {
		t.Errorf("the copy has %s databases of that name", got)
	}
}

// Of a materialized view the rows come back as they were, in a table, and how it is made anew is told.
func materializedViews(t *testing.T, s *site) {
	s.both(t, "views", `create table t (id int primary key, v text); insert into t select n, 'v' || n from generate_series(1, 5) n`,
		`create materialized view mv as select id, v, repeat(v, 3000) as big from t where id > 1`, `create unique index on mv (id)`, `create index mv_v on mv (upper(v))`, `alter materialized view mv owner to keeper`, `grant select on t to keeper`,
		`grant select on mv to reader`, `comment on materialized view mv is 'seen'`, `create view over as select id from mv`, `create materialized view more as select count(*) as n from over`,
		`create materialized view empty as select 1 as one with no data`)
	before := schema(t, s.live, "views", "--schema-only")
	run(t, s.live, "views", `update t set v = 'changed' where id = 3`, `refresh materialized view mv`)
	const rows = `select md5(string_agg(m::text, ',' order by id)) from `
	r := s.bring(t, bringback.Options{Diff: true}, "views.public.mv", "views.public.empty")
	got := r.Tables[0]
	if d := got.Diff; got.As.Name != "mv_recovered" || got.Rows != 4 || d == nil || d.Same != 3 || d.OnlyHere != 1 || d.OnlyThere != 1 || len(r.Left) > 0 || len(r.Notes) != 2 || !strings.Contains(r.Notes[0], "as they were") {
		t.Errorf("got %+v, %+v, %q; left:\n%s", got, got.Diff, r.Notes, leftOf(r))
	}
	if d := r.Tables[1].Diff; r.Tables[1].Rows != 0 || d == nil || !d.Failed || !strings.Contains(d.Note, "has not been populated") {
		t.Errorf("got %+v, %+v", r.Tables[1], d)
	}
	if got, want := value(t, s.live, "views", rows+"mv_recovered m"), value(t, s.copy, "views", rows+"mv m"); got != want {
		t.Errorf("rows hash to %s, in the copy to %s", got, want)
	}
	if got := value(t, s.live, "views", `select c.relkind, pg_get_userbyid(c.relowner), has_table_privilege('reader', c.oid, 'select'), obj_description(c.oid), (select count(*) from pg_index where indrelid = c.oid) from pg_class c where relname = 'mv_recovered'`); got != "r|keeper|t|seen|2" {
		t.Errorf("got %s", got)
	}
	run(t, s.live, "views", `drop table mv_recovered, empty_recovered`)
	sameDump(t, schema(t, s.live, "views", "--schema-only"), before)

	s.both(t, "lost", `create table t (id int primary key, v text); insert into t select n, 'v' || n from generate_series(1, 5) n`,
		`create materialized view mv as select id, v from t where id > 1`, `create unique index on mv (id)`, `create index mv_v on mv (upper(v))`, `alter materialized view mv owner to keeper`, `grant select on t to keeper`,
		`grant select on mv to reader`, `comment on materialized view mv is 'seen'`, `create view over as select id from mv`, `create materialized view more as select count(*) as n from over`, `create index on more (n)`)
	before = schema(t, s.live, "lost")
	file := filepath.Join(pgtest.Dir(t), "mv.dump")
	run(t, s.live, "lost", `drop materialized view mv cascade`)
	r = s.bring(t, bringback.Options{Diff: true}, "lost.public.mv")
	if got := r.Tables[0]; got.As.Name != "mv_recovered" || got.Rows != 4 || got.Diff != nil {
		t.Errorf("got %+v", got)
	}
	for _, l := range r.Left {
		run(t, s.live, "lost", l.SQL)
	}
	if got := value(t, s.live, "lost", `select n, (select count(*) from mv), (select count(*) from mv_recovered) from more`); got != "4|4|4" {
		t.Errorf("got %s; left:\n%s", got, leftOf(r))
	}
	run(t, s.live, "lost", `drop table mv_recovered`)
	sameDump(t, schema(t, s.live, "lost"), before)

	// With the table that it is of, dropped together.
	run(t, s.live, "lost", `drop table t cascade`)
	s.both(t, "both", `create table t (id int primary key); insert into t values (1), (2)`, `create materialized view mv as select id from t`, `create index on mv (id)`)
	run(t, s.live, "both", `drop table t cascade`)
	r = s.bring(t, bringback.Options{}, "both.public.t", "both.public.mv")
	if r.Tables[0].As.Name != "t" || r.Tables[0].Rows != 2 || r.Tables[1].As.Name != "mv_recovered" || r.Tables[1].Rows != 2 {
		t.Errorf("got %+v", r.Tables)
	}
	for _, l := range r.Left {
		run(t, s.live, "both", l.SQL)
	}
	if got := value(t, s.live, "both", `select count(*), (select count(*) from mv_recovered) from mv`); got != "2|2" {
		t.Errorf("got %s; left:\n%s", got, leftOf(r))
	}

	r, err := bringback.Tables(t.Context(), s.private(t), bringback.Live{}, names([]string{"views.public.more"}), bringback.Options{Dump: file})
	if err != nil || r.Tables[0].Rows != 1 || len(r.Left) == 0 || !strings.HasPrefix(r.Left[0].SQL, "CREATE MATERIALIZED VIEW public.more AS") {
		t.Errorf("got %+v, %v", r, err)
	}
}

// A database that is brought beside the one that is still there is compared with it, table by table.
func comparedDatabase(t *testing.T, s *site) {
	s.both(t, "compared", append(everything, `create schema "Odd"`, `create table "Odd"."T" (id int primary key)`, `create table went (id int); insert into went values (1)`, `create table turned (id int)`,
		`create unlogged table quick (id int primary key)`)...)
	run(t, s.live, "compared", `update orders set note = 'oops' where id > 290`, `delete from parts where id = 5`, `drop table went, turned`, `create view turned as select 1`, `create table late (id int)`,
		`alter table customers add column email text`, `insert into derived values (3, 'three', 4)`)
	run(t, s.copy, "compared", `select lo_from_bytea(4712, 'large')`)
	before := schema(t, s.live, "compared")
	r, err := bringback.Database(t.Context(), s.private(t), s.server(), "compared", bringback.Options{Diff: true})
	if err != nil || r.Database != "compared_recovered" || !r.Whole || len(r.Tables) != 10 {
		t.Fatalf("got %+v, %v", r, err)
	}
	for _, got := range r.Tables {
		d := got.Diff
		if d == nil || d.With != got.Table || got.As.Database != "compared_recovered" {
			t.Errorf("%s: got %+v, %+v", got.Table, got, d)
			continue
		}
		counts := [4]int64{d.Changed, d.OnlyHere, d.OnlyThere, d.Same}
		want := map[string][4]int64{"orders": {10, 0, 0, 290}, "parts": {0, 1, 0, 89}, "derived": {0, 0, 1, 1}, "customers": {0, 0, 0, 50}, "items": {0, 0, 0, 300}, "base": {0, 0, 0, 1}}[got.Table.Name]
		if counts != want || d.Failed != (got.Table.Name == "went" || got.Table.Name == "turned") || d.Gone != (got.Table.Name == "went") {
			t.Errorf("%s: got %v of %+v, want %v", got.Table, counts, d, want)
		}
		switch got.Table.Name {
		case "customers":
			if !slices.Equal(d.NotInCopy, []string{"email"}) {
				t.Errorf("got %+v", d)
			}
		case "went":
			if got.Rows != 1 || d.Note != "the live database does not have it now" {
				t.Errorf("got %+v, %+v", got, d)
			}
		case "turned":
			if !strings.Contains(d.Note, "is a view now") {
				t.Errorf("got %+v", d)
			}
		}
	}
	if got := strings.Join(r.Notes, "\n"); got != "compared.public.quick is unlogged, or has parts that are: rows of such tables are in no backup, and are lost\ntables that only the live database has: 1, public.late\nlarge objects were not compared" {
		t.Errorf("notes: %s", got)
	}
	sameDump(t, schema(t, s.live, "compared"), before)

	// Where it is not asked for, or the live one is gone, nothing is compared.
	for _, o := range []bringback.Options{{}, {IntoDatabase: "compared", Diff: true}} {
		if o.Diff {
			run(t, s.live, "postgres", `drop database compared`)
		}
		if r, err = bringback.Database(t.Context(), s.private(t), s.server(), "compared", o); err != nil || len(r.Tables) != 10 || r.Tables[0].Diff != nil {
			t.Errorf("got %+v, %v", r, err)
		}
	}

	// Rows in a file are counted as well.
	r, err = bringback.Database(t.Context(), s.private(t), bringback.Live{}, "compared", bringback.Options{Dump: filepath.Join(pgtest.Dir(t), "compared.dump")})
	if err != nil || !r.Whole || len(r.Tables) != 10 {
		t.Fatalf("got %+v, %v", r, err)
	}
	for _, got := range r.Tables {
		if want := map[string]int64{"orders": 300, "parts": 90, "derived": 1, "customers": 50, "items": 300, "base": 1, "went": 1}[got.Table.Name]; got.Rows != want || got.As != got.Table {
			t.Errorf("got %+v, want %d rows", got, want)
		}
	}
}

// What cannot be compared because the live database lets nobody in is there nevertheless, and that is asked for once. What may pass is asked for by each table.
func closedDatabase(t *testing.T, s *site) {
	s.both(t, "closed", `create table a (id int primary key)`, `create table b (id int primary key)`, `create table c (id int primary key)`)
	run(t, s.live, "postgres", `create role crowded login`, `alter database closed allow_connections false`)
	const words = `"closed" is not currently accepting connections`
	r, err := bringback.Database(t.Context(), s.private(t), s.server(), "closed", bringback.Options{Diff: true})
	if err != nil || !r.Whole || r.Database != "closed_recovered" || len(r.Tables) != 3 || r.Tables[0].Diff != nil {
		t.Errorf("got %+v, %v", r, err)
	}
	if got := strings.Join(r.Notes, "\n"); !strings.HasPrefix(got, "not compared with the live database: ") || !strings.Contains(got, words) {
		t.Errorf("notes: %s", got)
	}
	asked := func(words string) int {
		log, err := os.ReadFile(filepath.Join(s.live.Server.Host(), "postgres.log"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(log), words)
	}
	for _, c := range []struct {
		user, words string
		asked       int
	}{{instance.Superuser, words, 1}, {"crowded", `too many connections for database "closed"`, 3}} {
		run(t, s.live, "postgres", `create database ajar`)
		run(t, s.live, "ajar", `grant create on schema public to crowded`)
		l, before := s.server(), asked(c.words)
		l.Config["user"] = c.user
		r, err := bringback.Tables(t.Context(), s.private(t), l, names([]string{"closed.public.a", "closed.public.b", "closed.public.c"}), bringback.Options{Diff: true, IntoDatabase: "ajar"})
		if err != nil || len(r.Tables) != 3 {
			t.Fatalf("got %+v, %v", r, err)
		}
		for _, got := range r.Tables {
			if d := got.Diff; d == nil || !d.Failed || d.With != got.Table || !strings.HasPrefix(d.Note, "it could not be compared: ") || !strings.Contains(d.Note, c.words) {
				t.Errorf("%s: got %+v", got.Table, d)
			}
		}
		if n := asked(c.words) - before; n != c.asked {
			t.Errorf("as %s it was asked %d times", c.user, n)
		}
		run(t, s.live, "postgres", `alter database closed allow_connections true connection limit 0`, `drop database ajar`)
	}
}

// watch sits in a database that is being made until the context ends. It reports whether there was one.
func watch(ctx context.Context, c *pgtest.Cluster) bool {
	for ctx.Err() == nil {
		conn, err := pgx.Connect(ctx, c.Server.ConnString(instance.Superuser, "postgres"))
		if err != nil {
			continue
		}
		var unfinished string
		err = conn.QueryRow(ctx, `select datname::text from pg_database where datname like 'holdfast%'`).Scan(&unfinished)
		_ = conn.Close(context.WithoutCancel(ctx))
		if err != nil {
			continue
		}
		if conn, err = pgx.Connect(ctx, c.Server.ConnString(instance.Superuser, unfinished)); err == nil {
			<-ctx.Done()
			_ = conn.Close(context.WithoutCancel(ctx))
			return true
		}
	}
	return false
}

// Text that is not in UTF-8 arrives as it was.
func otherEncoding(t *testing.T, s *site) {
	for database, encoding := range map[string]string{"latin": "LATIN1", "ascii": "SQL_ASCII", "japanese": "EUC_JP"} {
		for _, c := range []*pgtest.Cluster{s.live, s.copy} {
			run(t, c, "postgres", fmt.Sprintf(`create database %s encoding %s locale 'C' template template0`, database, encoding))
			run(t, c, database, `create table t (id text primary key, v text)`)
			if database == "ascii" {
				run(t, c, database, `set client_encoding = sql_ascii; insert into t values (E'\xff\xfe', E'\xe9'), ('b', 'x')`)
			} else if database == "latin" {
				run(t, c, database, `set client_encoding = utf8`, `insert into t values ('é', 'ü'), ('b', 'x')`)
			} else {
				run(t, c, database, `set client_encoding = utf8`, `insert into t values ('日本', '語'), ('b', 'x')`)
			}
		}
		run(t, s.live, database, `update t set v = 'y' where id <> 'b'`)
		r := s.bring(t, bringback.Options{Diff: true}, database+".public.t")
		if d := r.Tables[0].Diff; d == nil || d.Note != "" || d.Changed != 1 || d.Same != 1 {
			t.Errorf("%s: got %+v", database, d)
		}
		const sum = `select md5(string_agg(encode(convert_to(v, getdatabaseencoding()), 'hex'), ',' order by id)) from t_recovered`
		if got, want := value(t, s.live, database, sum), value(t, s.copy, database, strings.ReplaceAll(sum, "t_recovered", "t")); got != want {
			t.Errorf("%s: rows hash to %s, in the copy to %s", database, got, want)
		}
	}
}

// Rows of unlogged tables are in no copy, and that is said.
func unloggedTable(t *testing.T, s *site) {
	s.both(t, "unlogged", `create unlogged table t (id int primary key)`)
	run(t, s.live, "unlogged", `insert into t values (1)`)
	r := s.bring(t, bringback.Options{Diff: true}, "unlogged.public.t")
	if r.Tables[0].Rows != 0 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "unlogged") || r.Tables[0].Diff.OnlyThere != 1 {
		t.Errorf("got %+v", r)
	}
	r, err := bringback.Tables(t.Context(), s.private(t), bringback.Live{}, names([]string{"unlogged.public.t"}), bringback.Options{Dump: filepath.Join(pgtest.Dir(t), "t.dump")})
	if err != nil || !strings.Contains(strings.Join(r.Notes, "\n"), "unlogged") {
		t.Errorf("got %+v, %v", r, err)
	}
}

// A copy whose indexes were not restored serves as well: nothing looks into them.
func withoutIndexFiles(t *testing.T, s *site) {
	s.both(t, "unindexed", `create table t (id int primary key, v text); insert into t select n, repeat('x', 5000) || n from generate_series(1, 1000) n`, `create index on t (v text_pattern_ops) where false`,
		`create table p (id int primary key) partition by range (id); create table p1 partition of p for values from (0) to (100); insert into p select generate_series(0, 99)`)
	path := value(t, s.copy, "unindexed", `select string_agg(pg_relation_filepath(c), ' ') from unnest(array['t_pkey', 't_v_idx', 'p1_pkey']::regclass[]) c`)
	run(t, s.copy, "unindexed", "checkpoint")
	s.copy.Stop(t)
	for p := range strings.FieldsSeq(path) {
		if err := os.Remove(filepath.Join(s.copy.Data, p)); err != nil {
			t.Fatal(err)
		}
	}
	s.copy.Start(s.whole)
	run(t, s.live, "unindexed", `update t set v = '' where id > 990`, `truncate p`)
	r := s.bring(t, bringback.Options{Diff: true}, "unindexed.public.t", "unindexed.public.p")
	if d := r.Tables[0].Diff; r.Tables[0].Rows != 1000 || d == nil || d.Note != "" || d.Changed != 10 || d.Same != 990 || len(d.Columns) != 1 {
		t.Errorf("got %+v, %+v", r.Tables[0], d)
	}
	if d := r.Tables[1].Diff; r.Tables[1].Rows != 100 || d == nil || d.Note != "" || d.OnlyHere != 100 {
		t.Errorf("got %+v, %+v", r.Tables[1], d)
	}
	file := filepath.Join(pgtest.Dir(t), "t.dump")
	if r, err := bringback.Tables(t.Context(), s.private(t), bringback.Live{}, names([]string{"unindexed.public.t"}), bringback.Options{Dump: file}); err != nil || r.Tables[0].Rows != 1000 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// Of publications it is told what to do, and what a subscriber needs.
func publishedTable(t *testing.T, s *site) {
	s.both(t, "published", `create table t (id int primary key); insert into t values (1)`, `create publication few for table t`, `create publication whole for all tables`)
	run(t, s.live, "published", `drop table t`, `create publication near for tables in schema public`, `create schema far`, `create publication far for tables in schema far`)
	var log bytes.Buffer
	r := s.bring(t, bringback.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, "published.public.t")
	if len(r.Left) != 1 || r.Left[0].SQL != `ALTER PUBLICATION "few" ADD TABLE "public"."t";` || len(r.Notes) != 2 || !strings.Contains(r.Notes[0], "publication near publishes all tables in schema public") ||
		!strings.Contains(r.Notes[1], "publication whole publishes all tables,") {
		t.Errorf("%v; left:\n%s", r.Notes, leftOf(r))
	}
	if told, loaded := strings.Index(log.String(), "publication near"), strings.Index(log.String(), "the tables are there"); told < 0 || loaded < told {
		t.Errorf("it is not told beforehand: %s", &log)
	}
	run(t, s.live, "published", r.Left[0].SQL)
}

// What was prepared and not committed at the moment is not in the way.
func preparedTransactions(t *testing.T, s *site) {
	s.both(t, "prepared", `create table t (id int primary key, v text); insert into t values (1, 'x')`)
	run(t, s.copy, "prepared", `begin; insert into t values (2, 'y'); alter table t alter v set not null; prepare transaction 'it''s'`)
	r := s.bring(t, bringback.Options{Diff: true}, "prepared.public.t")
	if r.Tables[0].Rows != 1 || r.Tables[0].Diff.Same != 1 {
		t.Errorf("got %+v", r.Tables[0])
	}
	run(t, s.copy, "prepared", `begin; insert into t values (2, 'y'); prepare transaction 'again'`)
	if r, err := bringback.Database(t.Context(), s.private(t), s.server(), "prepared", bringback.Options{}); err != nil || r.Tables[0].Rows != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// An extension that is gone comes back for the type of a column.
func goneExtension(t *testing.T, s *site) {
	if value(t, s.live, "postgres", `select count(*) from pg_available_extensions where name = 'citext'`) == "0" {
		pgtest.Missing(t, "extension citext")
	}
	s.both(t, "extension", `create schema ext`, `create extension citext schema ext`, `create table t (id ext.citext primary key, v int); insert into t values ('A', 1), ('b', 2)`, `create index on t (ext.regexp_replace(id, 'a', 'b'))`)
	before := schema(t, s.live, "extension")
	run(t, s.live, "extension", `drop schema ext cascade`, `drop table t`)
	if r := s.bring(t, bringback.Options{}, "extension.public.t"); r.Tables[0].Rows != 2 || len(r.Left) > 0 {
		t.Errorf("%+v; left:\n%s", r.Tables[0], leftOf(r))
	}
	sameDump(t, schema(t, s.live, "extension"), before)
	run(t, s.live, "extension", `update t set v = 3 where id = 'A'`)
	if d := s.bring(t, bringback.Options{Diff: true}, "extension.public.t").Tables[0].Diff; d.Changed != 1 || d.Same != 1 || !slices.Equal(d.Columns, []string{"v"}) {
		t.Errorf("got %+v", d)
	}
}

// Foreign keys of partitioned tables come back in both directions before 18 as well: their partitions have them first, so that no rows are looked at while writes wait.
func TestKeysOfPartitionedTables(t *testing.T) {
	for _, major := range []int{11, 13, 15, 17, 18} {
		if testing.Short() && major != 17 {
			continue
		}
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			p := pgtest.Require(t, major)
			pgtest.Tool(t, max(major, 13), "pg_dump")
			s := &site{pgtest.New(t, p, pgtest.Options{}), pgtest.New(t, p, pgtest.Options{}), t}
			statements := []string{`create table b (id int primary key, a int)`, `create table f (id int constraint k references b)`, `create table e (x int, id int constraint k references b on delete cascade) partition by list (x)`, `create table e1 partition of e for values in (1)`,
				`create table e2 (gone int, id int, x int); alter table e2 drop gone; alter table e attach partition e2 for values in (2)`, `create table e3 partition of e for values in (3) partition by range (id)`,
				`create table e3a partition of e3 for values from (0) to (50)`, `create table e3b partition of e3 default`, `insert into b select generate_series(1, 100)`, `insert into e select 1 + n % 3, n from generate_series(1, 100) n`}
			s.both(t, "keys", statements...)
			if major >= 12 {
				statements = []string{`create table pb (id int primary key) partition by range (id); create table pb1 partition of pb for values from (0) to (50); create table pb2 partition of pb default; insert into pb select generate_series(1, 100)`,
					`create table pe (x int, id int references pb) partition by list (x)`, `create table pe1 partition of pe for values in (1)`, `create table pe2 partition of pe default`, `insert into pe select n % 3, n from generate_series(1, 100) n`}
				run(t, s.live, "keys", statements...)
				run(t, s.copy, "keys", statements...)
			}
			all := func() string {
				return value(t, s.live, "keys", `select conrelid::regclass, case when conparentid = 0 then conname end, pg_get_constraintdef(oid), convalidated, conislocal, count(*) from pg_constraint where contype = 'f' group by 1, 2, 3, 4, 5 order by conrelid::regclass::text, 2, 3`)
			}
			before := all()
			if major < 18 { // where NOT VALID does not serve the table
				// A row stands against it, in one partition, or that has the key already and nobody has checked it: what comes behind that is told, and works once the row is gone.
				for _, c := range []struct{ begin, end, why string }{
					{`insert into e values (2, 777)`, `delete from e where id = 777`, "not for all rows that are there"},
					{`create function again() returns event_trigger language plpgsql as $$ begin
						if exists (select from pg_constraint where conname = 'b_pkey') and not exists (select from pg_constraint where conname = 'k') then
							alter table public.e2 add constraint k foreign key (id) references public.b on delete cascade not valid;
						end if; end $$; create event trigger again on ddl_command_end execute procedure again()`, `drop event trigger again; drop function again()`, "it is there, and not checked yet"},
				} {
					run(t, s.live, "keys", `drop table b cascade`, c.begin)
					r := s.bring(t, bringback.Options{}, "keys.public.b")
					var left []string
					for _, l := range r.Left {
						left = append(left, strings.NewReplacer(`"public".`, "", `"`, "").Replace(l.SQL))
					}
					const def = ` ADD CONSTRAINT k FOREIGN KEY (id) REFERENCES public.b(id) ON DELETE CASCADE`
					if want := []string{"ALTER TABLE e2 VALIDATE CONSTRAINT k;", "ALTER TABLE e3a" + def + " NOT VALID;", "ALTER TABLE e3a VALIDATE CONSTRAINT k;", "ALTER TABLE e3b" + def + " NOT VALID;",
						"ALTER TABLE e3b VALIDATE CONSTRAINT k;", "ALTER TABLE e" + def + ";"}; !slices.Equal(left, want) || !strings.Contains(r.Left[0].Why, c.why) {
						t.Fatalf("left:\n%s", leftOf(r))
					}
					run(t, s.live, "keys", c.end)
					for _, l := range r.Left {
						run(t, s.live, "keys", l.SQL)
					}
					if got := all(); got != before {
						t.Errorf("got\n%s\nwant\n%s", got, before)
					}
				}
			}
			for _, lost := range []string{"b", "e", "pb"} {
				if lost == "pb" && major < 12 {
					continue
				}
				run(t, s.live, "keys", `drop table `+lost+` cascade`)
				r := s.bring(t, bringback.Options{}, "keys.public."+lost)
				if lost == "pb" && major < 18 {
					if len(r.Left) != 1 || !strings.Contains(r.Left[0].Why, "between partitioned tables") {
						t.Errorf("left:\n%s", leftOf(r))
					}
					run(t, s.live, "keys", r.Left[0].SQL)
				} else if len(r.Left) > 0 {
					t.Errorf("%s: left:\n%s", lost, leftOf(r))
				}
				if got := all(); got != before {
					t.Errorf("%s: got\n%s\nwant\n%s", lost, got, before)
				}
			}
			// What the table is by now counts: a partitioned one may have become plain, and the other way round.
			run(t, s.copy, "keys", `alter table e add constraint k foreign key (id) references b`) // it was taken off to bring e
			run(t, s.live, "keys", `drop table b, e, f cascade`, `create table e (x int, id int)`, `insert into e values (1, 1)`,
				`create table f (id int) partition by list (id); create table f1 partition of f for values in (1); insert into f values (1)`)
			if r := s.bring(t, bringback.Options{}, "keys.public.b"); len(r.Left) > 0 {
				t.Errorf("left:\n%s", leftOf(r))
			}
			if got, want := value(t, s.live, "keys", `select conrelid::regclass, convalidated from pg_constraint where contype = 'f' and confrelid = 'b'::regclass order by conrelid::regclass::text`), "e|t\nf|t\nf1|t"; got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// A file takes a name that is free, and where it cannot have it nothing takes it.
func TestFilesGetFreeNames(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := bringback.Give(from, to); err != nil {
		t.Fatal(err)
	}
	refused(t, bringback.Give(from, to), fs.ErrExist.Error())
	if err := bringback.Give(dir, filepath.Join(dir, "other")); err == nil { // it cannot be in itself
		t.Error("a directory is in itself")
	}
	if all, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || !slices.Equal(all, []string{from, to}) {
		t.Errorf("there are %q, %v", all, err)
	}
	if runtime.GOOS != "linux" {
		return
	}
	// A directory can have no second name, as a file on some file systems, nor take that of a file: it is renamed in one step.
	one, other := filepath.Join(dir, "one"), filepath.Join(dir, "other")
	if err := os.Mkdir(one, 0o700); err != nil {
		t.Fatal(err)
	}
	refused(t, bringback.Give(one, to), fs.ErrExist.Error())
	if err := bringback.Give(one, other); err != nil {
		t.Error(err)
	}
	if all, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || !slices.Equal(all, []string{from, other, to}) {
		t.Errorf("there are %q, %v", all, err)
	}
}

// Of a version without a pg_dump of its own a newer one serves; where there is none it is said what to install.
func TestNewerDumpServes(t *testing.T) {
	t.Parallel()
	p := pgtest.Require(t, 10)
	pgtest.Tool(t, 13, "pg_dump")
	s := &site{pgtest.New(t, p, pgtest.Options{}), pgtest.New(t, p, pgtest.Options{}), t}
	s.both(t, "old", `create table a (id int primary key)`, `create table t (id serial primary key, n int generated always as identity, a int references a, v text); insert into a values (1); insert into t (a, v) select 1, 'x' from generate_series(1, 100)`,
		`create table p (id int, v text) partition by list (id)`, `create table p1 partition of p for values in (1)`, `insert into p values (1, 'x')`)
	schemaOf := `select string_agg(a::text, ',' order by a.table_name, a.ordinal_position) from information_schema.columns a where table_schema = 'public'`
	before := value(t, s.live, "old", schemaOf)
	run(t, s.live, "old", `drop table t, p`)
	r := s.bring(t, bringback.Options{}, "old.public.t", "old.public.p")
	if r.Tables[0].Rows != 100 || r.Tables[1].Rows != 1 || len(r.Left) > 0 {
		t.Errorf("got %+v; left:\n%s", r, leftOf(r))
	}
	if got := value(t, s.live, "old", schemaOf); got != before {
		t.Errorf("got %s, want %s", got, before)
	}
	run(t, s.live, "old", `update t set v = 'y' where id = 9`)
	if r := s.bring(t, bringback.Options{Diff: true}, "old.public.t"); r.Tables[0].Diff.Changed != 1 || r.Tables[0].Diff.Same != 99 {
		t.Errorf("got %+v", r.Tables[0].Diff)
	}
	c := s.private(t)
	c.Search, c.Programs.Major = nil, 99
	_, err := bringback.Tables(t.Context(), c, s.server(), names([]string{"old.public.t"}), bringback.Options{})
	refused(t, err, "no pg_dump of PostgreSQL 99")
}
