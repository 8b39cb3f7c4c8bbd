package recovertable_test

import (
	"strings"
	"testing"

	"holdfast/test/site"
)

// A materialized view that was dropped comes back as a table with its rows, and the script makes it again.
func TestMaterializedView(t *testing.T) {
	t.Parallel()
	s := open(t, 15)
	s.shop(t)
	s.ExecIn(t, "shop", `create materialized view bought as select customer, count(*) as many from orders group by customer`, `create unique index on bought (customer)`)
	s.Push(t)
	s.ExecIn(t, "shop", `insert into orders (customer, note) select customer, note from orders where id % 7 = 0`, `refresh materialized view bought`)
	want := s.hash(t, "shop", "bought")
	s.ExecIn(t, "shop", `drop materialized view bought`)
	s.Switch(t)
	r := site.Run(t, s.command(t, "shop.bought", "--before-drop"))
	if r.Status != 0 {
		t.Fatalf("exit status %d\n%s\n%s", r.Status, r.Stdout, r.Stderr)
	}
	s.NoCopies(t, s.dir)
	if got := s.hash(t, "shop", "bought_recovered"); got != want || strings.HasPrefix(got, "0 ") {
		t.Errorf("it has %s, want %s", got, want)
	}
	_, script, ok := strings.Cut(r.Stdout, "\n-- left to do, in database shop:\n")
	if !ok {
		t.Fatalf("no script in\n%s", r.Stdout)
	}
	conn := s.conn(t, "shop")
	if _, err := conn.PgConn().Exec(t.Context(), script).ReadAll(); err != nil {
		t.Fatalf("%v:\n%s", err, script)
	}
	if got := s.hash(t, "shop", "bought"); got != want {
		t.Errorf("the view has %s, want %s", got, want)
	}
}
