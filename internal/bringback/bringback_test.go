package bringback_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/bringback"
	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
)

// site is a live server, and one that plays the private copy.
type site struct {
	live, copy *pgtest.Cluster
	whole      *testing.T // that they live as long as
}

func newSite(t *testing.T, major int) *site {
	t.Helper()
	p := pgtest.Require(t, major)
	pgtest.Tool(t, major, "pg_dump")
	return &site{pgtest.New(t, p, pgtest.Options{}), pgtest.New(t, p, pgtest.Options{Settings: map[string]string{"max_prepared_transactions": "5"}}), t}
}

// both runs statements in a new database of both servers.
func (s *site) both(t *testing.T, database string, statements ...string) {
	t.Helper()
	for _, c := range []*pgtest.Cluster{s.live, s.copy} {
		run(t, c, "postgres", "create database "+pgx.Identifier{database}.Sanitize())
		run(t, c, database, statements...)
	}
}

// run runs statements in a database.
func run(t *testing.T, c *pgtest.Cluster, database string, statements ...string) {
	t.Helper()
	conn := open(t, c, database)
	defer conn.Close(context.Background())
	for _, sql := range statements {
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// value returns what a query returns, lines of fields.
func value(t *testing.T, c *pgtest.Cluster, database, sql string) string {
	t.Helper()
	conn := open(t, c, database)
	defer conn.Close(context.Background())
	results, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	var lines []string
	for _, r := range results {
		for _, row := range r.Rows {
			lines = append(lines, string(bytes.Join(row, []byte("|"))))
		}
	}
	return strings.Join(lines, "\n")
}

func open(t *testing.T, c *pgtest.Cluster, database string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Server.ConnString(instance.Superuser, database))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// private is how the copy is reached.
func (s *site) private(t *testing.T) bringback.Copy {
	t.Helper()
	c := bringback.Copy{Socket: s.copy.Server.Host(), Port: s.copy.Server.Port(), Role: instance.Superuser, Programs: s.copy.Programs,
		Search: []string{filepath.Join(pgtest.Cache(), "pg", "*", "bin")}}
	if os.Geteuid() == 0 {
		u, err := user.Lookup(pgtest.Account(t))
		if err != nil {
			t.Fatal(err)
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		c.Account = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return c
}

func (s *site) server() bringback.Live { return bringback.Live{Config: s.live.Config()} }

// bring brings tables named database.schema.name.
func (s *site) bring(t *testing.T, o bringback.Options, tables ...string) *bringback.Report {
	t.Helper()
	r, err := bringback.Tables(t.Context(), s.private(t), s.server(), names(tables), o)
	if err != nil {
		t.Fatalf("%v: %v", tables, err)
	}
	return r
}

func names(tables []string) (all []bringback.Table) {
	for _, n := range tables {
		f := strings.Split(n, ".")
		all = append(all, bringback.Table{Database: f[0], Schema: f[1], Name: f[2]})
	}
	return all
}

// refused fails the test unless err has words, and says what to do.
func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	var refused *bringback.RefusedError
	if !errors.As(err, &refused) || refused.Hint() == "" {
		t.Errorf("got %v, want an error with advice", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// schema is what pg_dump says of a database, or of some of it, without what differs from one run to the next.
func schema(t *testing.T, c *pgtest.Cluster, database string, args ...string) string {
	t.Helper()
	args = append([]string{"-h", c.Server.Host(), "-p", strconv.Itoa(c.Server.Port()), "-U", instance.Superuser, "-d", database}, args...)
	out, err := pgtest.Command(t, pgtest.Tool(t, c.Programs.Major, "pg_dump"), args...).Output()
	if err != nil {
		t.Fatalf("pg_dump: %v", err)
	}
	var kept []string
	for l := range strings.Lines(string(out)) {
		if !strings.HasPrefix(l, `\restrict`) && !strings.HasPrefix(l, `\unrestrict`) {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "")
}

// sameDump fails the test where two dumps differ, and shows where.
func sameDump(t *testing.T, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	counts := map[string]int{}
	for _, l := range g {
		counts[l]++
	}
	for _, l := range w {
		counts[l]--
	}
	for _, l := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[l]; n != 0 {
			t.Errorf("%+d %s", n, l)
		}
	}
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("line %d: got %q, want %q", i+1, g[i], w[i])
		}
	}
	t.Fatalf("%d lines, want %d", len(g), len(w))
}

// leftOf lists the statements that were left, for the error of a test.
func leftOf(r *bringback.Report) string {
	var b strings.Builder
	for _, l := range r.Left {
		fmt.Fprintf(&b, "%s\n    -- %s\n", l.SQL, l.Why)
	}
	return b.String()
}

// everything has one of each thing that can belong to a table.
var everything = []string{
	`create type mood as enum ('sad', 'ok', 'glad')`,
	`create domain money_amount as numeric(12,2) check (value >= 0)`,
	`create function touch() returns trigger language plpgsql as $$ begin new.note := new.note || ';'; return new; end $$`,
	`create function positive(n int) returns bool language sql immutable as 'select n > 0'`,
	`create table customers (id int primary key, name text not null)`,
	`insert into customers select n, 'customer ' || n from generate_series(1, 50) n`,
	`create table orders (
		id serial primary key, number bigint generated by default as identity (start 1000 increment 5), customer int not null references customers on delete cascade,
		feeling mood default 'ok', amount money_amount, doubled numeric generated always as (amount * 2) stored, note text collate "C" default 'none',
		parent int references orders, big text, tags text[], doc jsonb, at timestamptz default '2026-01-02 03:04:05+00', flag bool,
		constraint small check (positive(id)), unique (number)) with (fillfactor = 80)`,
	`alter table orders alter column big set storage external, alter column note set statistics 500`,
	`create index orders_customer on orders (customer, lower(note)) where flag`,
	`create index on orders using gin (tags)`,
	`create statistics orders_stat (dependencies) on customer, feeling from orders`,
	`insert into orders (customer, feeling, amount, note, parent, big, tags, doc, flag)
		select 1 + n % 50, (array['sad', 'ok', 'glad'])[1 + n % 3]::mood, n * 1.25, 'n' || n || E'\ttab\\ \n', nullif(n / 10, 0), repeat(md5(n::text), 200), array['a', null, 'b"' || n],
			jsonb_build_object('n', n), n % 2 = 0 from generate_series(1, 300) n`,
	`create trigger touched before update on orders for each row when (new.flag) execute function touch()`,
	`alter table orders disable trigger touched`,
	`alter table orders enable row level security`,
	`create policy mine on orders for select to reader using (customer > 1)`,
	`create rule never as on delete to orders where old.id < 0 do instead (select 1; select 2)`,
	`comment on table orders is 'what; was ordered'`, `comment on column orders.note is 'it''s a note'`, `comment on constraint small on orders is 'small'`, `comment on index orders_customer is 'i'`,
	`alter table orders owner to keeper`, `grant select on orders to reader`, `grant update (note) on orders to reader with grant option`, `grant usage on sequence orders_id_seq to reader`,
	`alter table orders replica identity full`,
	`create table items (order_id int references orders on delete cascade, line int, what text, primary key (order_id, line)); insert into items select n, 1, 'x' from generate_series(1, 300) n`,
	`create view dear as select id, amount from orders where amount > 100`, `create view dearest as select * from dear where amount > 300`, `grant select on dear to reader`, `comment on view dear is 'dear'`,
	`create table parts (id int not null, at date not null, v text, primary key (id, at)) partition by range (at)`,
	`create table parts_2024 partition of parts for values from ('2024-01-01') to ('2025-01-01')`,
	`create table parts_2025 partition of parts for values from ('2025-01-01') to ('2026-01-01') partition by list (id)`,
	`create table parts_2025_odd partition of parts_2025 default`,
	`create index parts_v on parts (v)`,
	`insert into parts select n, '2024-12-01'::date + n, 'v' || n from generate_series(1, 90) n`,
	`create table base (id int primary key, b text); create table derived (extra int) inherits (base); insert into base values (1, 'one'); insert into derived values (2, 'two', 3)`,
}

// roles are those that own and use the tables of everything.
const roles = `create role keeper; create role reader`

// What was dropped is back as it was: pg_dump says the same of the database as before, once the views that went along are made anew by the statements that were told.
func TestDroppedTablesComeBackAsTheyWere(t *testing.T) {
	for _, major := range []int{13, 15, 17, 18} {
		if testing.Short() && major != 18 {
			continue
		}
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, major)
			run(t, s.live, "postgres", roles)
			run(t, s.copy, "postgres", roles)
			s.both(t, "shop", everything...)
			before := schema(t, s.live, "shop")
			sameDump(t, schema(t, s.copy, "shop"), before)
			run(t, s.live, "shop", `drop table orders cascade`, `drop table parts, base cascade`, `drop type mood cascade`, `drop domain money_amount`, `drop function positive`)
			r := s.bring(t, bringback.Options{Diff: true}, "shop.public.orders", "shop.public.parts", "shop.public.base")
			want := []bringback.Recovered{
				{Table: bringback.Table{Database: "shop", Schema: "public", Name: "orders"}, Rows: 300},
				{Table: bringback.Table{Database: "shop", Schema: "public", Name: "parts"}, Rows: 90, Parts: 3},
				{Table: bringback.Table{Database: "shop", Schema: "public", Name: "base"}, Rows: 2, Parts: 1},
			}
			for i := range want {
				if want[i].As = want[i].Table; r.Tables[i] != want[i] {
					t.Errorf("got %+v, want %+v", r.Tables[i], want[i])
				}
			}
			for _, l := range r.Left {
				if !strings.Contains(l.SQL, "dear") {
					t.Errorf("left: %s (%s)", l.SQL, l.Why)
				}
				run(t, s.live, "shop", l.SQL)
			}
			sameDump(t, schema(t, s.live, "shop"), before)
		})
	}
}
