package recovertable_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/test/site"
)

// What went along with a table is back, or is printed as a script that brings it back: foreign keys in both directions, views on views, its type. Open transactions of
// others are not waited for.
func TestDroppedWithCascade(t *testing.T) {
	t.Parallel()
	s := open(t, 18)
	s.shop(t)
	s.ExecIn(t, "shop", `create type state as enum ('open', 'sent')`, `alter table orders add state state not null default 'open'`, `create role clerk`, `alter table orders owner to clerk`,
		`create view late as select id, customer from orders where made < now()`, `create view latest as select * from late where id > 4990`, `grant select on latest to public`)
	s.Push(t)
	const kept = "(select id, customer, note, made from orders)" // all but what went with the type
	want := s.hash(t, "shop", kept)
	s.ExecIn(t, "shop", `drop type state cascade`, `drop table orders cascade`, `drop role clerk`)
	s.Switch(t)
	holder, err := pgx.Connect(t.Context(), s.Server.ConnString(instance.Superuser, "shop"))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(t.Context())
	for _, sql := range []string{`begin`, `insert into items ("order", what) values (1, 'meanwhile')`} {
		if _, err := holder.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	// The newest that took something is the DROP of the table; the type went before, and with it a column.
	r := site.Run(t, s.command(t, "shop.orders", "--before-drop"))
	if r.Status != 0 {
		t.Fatalf("exit status %d\n%s\n%s", r.Status, r.Stdout, r.Stderr)
	}
	s.NoCopies(t, s.dir)
	if _, err := holder.Exec(t.Context(), `commit`); err != nil {
		t.Fatal(err)
	}
	if got := s.hash(t, "shop", kept); !strings.HasPrefix(got, "5000 ") || got != want {
		t.Errorf("it has %s, want %s", got, want)
	}
	_, script, ok := strings.Cut(r.Stdout, "\n-- left to do, in database shop:\n")
	for _, want := range []string{`role "clerk" does not exist`, "OWNER TO clerk;", "CREATE VIEW public.late AS", "CREATE VIEW public.latest AS", `"public"."items" ADD CONSTRAINT "items_order_fkey"`, "stays open"} {
		if !ok || !strings.Contains(script, want) {
			t.Errorf("no %q in\n%s\n%s", want, r.Stdout, r.Stderr)
		}
	}
	s.Exec(t, `create role clerk`)
	conn, err := pgx.Connect(t.Context(), s.Server.ConnString(instance.Superuser, "shop"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.PgConn().Exec(t.Context(), script).ReadAll(); err != nil {
		t.Fatalf("%v:\n%s", err, script)
	}
	var keys string
	if err := conn.QueryRow(t.Context(), `select string_agg(conname || ' ' || convalidated, ', ' order by conname) from pg_constraint where contype = 'f'`).Scan(&keys); err != nil {
		t.Fatal(err)
	}
	if keys != "items_order_fkey true, orders_customer_fkey true" {
		t.Errorf("foreign keys: %s", keys)
	}
	if got := s.hash(t, "shop", "latest"); !strings.HasPrefix(got, "10 ") {
		t.Errorf("the view has %s", got)
	}
}
