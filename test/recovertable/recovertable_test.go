// Package recovertable_test loses tables and databases of real clusters in all the ways that an operator may, and brings them back.
package recovertable_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// place is a site whose copies are made below a directory of its own.
type place struct {
	*site.Site
	dir string
}

func open(t *testing.T, major int) *place {
	t.Helper()
	opts := pgtest.Options{Checksums: major%2 == 1}
	if major >= 11 {
		opts.SegmentSize = wal.MinSegmentSize
	}
	return &place{site.New(t, pgtest.Require(t, major), opts), pgtest.Dir(t)}
}

// did is what recover-table printed, as far as it is looked at.
type did struct {
	Event *struct {
		Event string `json:"event"`
		LSN   string `json:"lsn"`
	} `json:"event"`
	Others []json.RawMessage `json:"others"`
	Plan   struct {
		Backup  string `json:"backup"`
		Partial bool   `json:"partial"`
		Why     string `json:"why"`
		Fetch   int64  `json:"fetch_bytes"`
		Of      int64  `json:"backup_bytes"`
	} `json:"plan"`
	Partial bool     `json:"partial"`
	Why     string   `json:"why"`
	Notes   []string `json:"notes"`
	Fetched struct {
		Bytes int64 `json:"bytes"`
	} `json:"fetched"`
	Brought []struct {
		Database string `json:"database"`
		Tables   []struct {
			As struct {
				Schema string `json:"schema"`
				Name   string `json:"name"`
			} `json:"as"`
			Rows int64 `json:"rows"`
			Diff *struct {
				OnlyThere int64 `json:"only_live"`
				OnlyHere  int64 `json:"only_recovered"`
				Changed   int64 `json:"changed"`
				Same      int64 `json:"same"`
			} `json:"diff"`
		} `json:"tables"`
		Left []struct {
			SQL string `json:"sql"`
		} `json:"left"`
	} `json:"brought"`
}

func (s *place) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := s.Command(t, append([]string{"recover-table"}, args...)...)
	cmd.Env = append(cmd.Env, "HOLDFAST_DRILL_DIR="+s.dir, "HOLDFAST_PG_BIN="+filepath.Join(pgtest.Cache(), "pg", "*", "bin"))
	return cmd
}

// recover brings something back, and looks that nothing is left.
func (s *place) recover(t *testing.T, args ...string) did {
	t.Helper()
	r := site.Run(t, s.command(t, append(args, "--json")...))
	if r.Status != 0 {
		t.Fatalf("recover-table %s: exit status %d\n%s", strings.Join(args, " "), r.Status, r.Stderr)
	}
	s.NoCopies(t, s.dir)
	var d did
	if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil {
		t.Fatalf("%v\n%s", err, r.Stdout)
	}
	return d
}

// refused looks that recover-table says so, and leaves nothing.
func (s *place) refused(t *testing.T, words []string, args ...string) {
	t.Helper()
	r := site.Run(t, s.command(t, args...))
	s.NoCopies(t, s.dir)
	for _, w := range words {
		if r.Status != 1 || !strings.Contains(r.Stderr, w) {
			t.Errorf("recover-table %s: exit status %d, want 1 and %q in\n%s", strings.Join(args, " "), r.Status, w, r.Stderr)
		}
	}
}

// conn opens a session in a database, which ends with the test.
func (s *place) conn(t *testing.T, database string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), s.Server.ConnString(instance.Superuser, database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// hash sums up the rows of a table.
func (s *place) hash(t *testing.T, database, table string) string {
	t.Helper()
	c := s.conn(t, database)
	defer c.Close(t.Context())
	return hash(t, c, table)
}

// hash sums up the rows of a table, as a session sees them.
func hash(t *testing.T, c *pgx.Conn, table string) (h string) {
	t.Helper()
	if err := c.QueryRow(t.Context(), `select count(*) || ' ' || coalesce(md5(string_agg(md5(x::text), '' order by md5(x::text))), '') from `+table+` x`).Scan(&h); err != nil {
		t.Fatalf("%s: %v", table, err)
	}
	return h
}

// shop are tables that refer to each other, of which the first is referred to by all.
var shop = []string{"customers", "orders", "items"}

// shop makes a database with them, large values among them, and much that is not to be read.
func (s *place) shop(t *testing.T) {
	t.Helper()
	s.Exec(t, `create database shop`)
	s.ExecIn(t, "shop",
		`create table customers (id bigint primary key, name text not null)`,
		`create table orders (id bigserial primary key, customer bigint references customers, note text, made timestamptz not null default now())`,
		`create table items (id bigint generated always as identity primary key, "order" bigint not null references orders, what text)`,
		`create index on orders (customer)`,
		`alter table orders alter note set storage external`,
		`insert into customers select i, 'customer ' || i from generate_series(1, 2000) i`,
		`insert into orders (customer, note) select i % 2000 + 1, case when i % 50 = 0 then repeat(md5(i::text), 200) else 'note ' || i end from generate_series(1, 5000) i`,
		`insert into items ("order", what) select i % 5000 + 1, 'item ' || i from generate_series(1, 8000) i`,
		`create table ballast as select i, md5(i::text) || md5((i + 1)::text) || md5((i + 2)::text) as a, md5((i + 3)::text) as b from generate_series(1, 150000) i`,
		`create index on ballast (i)`)
}

// Accidents happen while pgbench is at work, are found, and undone by one command each. Nobody waits for that.
func TestUnderTraffic(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := open(t, major)
			s.shop(t)
			s.ExecIn(t, "shop", `create table visits (id bigserial primary key, note text, made timestamptz not null default now())`,
				`insert into visits (note) select repeat('x', i % 300) from generate_series(1, 20000) i`, `create index visits_made on visits (made)`)
			w := s.traffic(t, "shop")
			s.Push(t)
			t.Run("drop", func(t *testing.T) { s.dropped(t, w) })
			t.Run("truncate cascade", func(t *testing.T) { s.truncated(t, w) })
			t.Run("mass update", func(t *testing.T) { s.updated(t, w) })
			w.end(t)
		})
	}
}

// dropped has a table dropped that pgbench changes until that very moment.
func (s *place) dropped(t *testing.T, w *traffic) {
	old := s.hash(t, "shop", "visits")
	script := filepath.Join(pgtest.Dir(t), "visit")
	if err := os.WriteFile(script, []byte("\\set id random(1, 20000)\nbegin;\nupdate visits set note = 'changed' where id = :id;\n"+
		"insert into visits (note) values ('new');\ndelete from visits where id = :id - 7;\nend;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	visitor := s.Pgbench(t, "shop", "-n", "-c", "1", "-R", "100", "-T", "100000", "-f", script)
	var said pgtest.Log
	visitor.Stdout, visitor.Stderr = &said, &said
	if err := visitor.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "20 visits", func() bool {
		return strings.HasPrefix(s.hash(t, "shop", "(select from visits where note = 'new' limit 20)"), "20 ")
	})
	want := ""
	err := pgx.BeginFunc(t.Context(), s.conn(t, "shop"), func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `lock table visits in access exclusive mode`); err != nil {
			return err
		}
		want = hash(t, tx.Conn(), "visits")
		_, err := tx.Exec(t.Context(), `drop table visits`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := visitor.Wait(); err == nil || !strings.Contains(said.String(), `relation "visits" does not exist`) || want == old {
		t.Fatalf("visits had %s, then %s, until the visitor ended: %v\n%s", old, want, err, said.String())
	}
	s.Switch(t)
	if r := s.OK(t, "events", "--destructive"); !strings.Contains(r.Stdout, "DROP") || !strings.Contains(r.Stdout, "public.visits") {
		t.Errorf("events:\n%s", r.Stdout)
	}
	var d did
	w.during(t, "the dropped table was brought back", func() { d = s.recover(t, "shop.public.visits", "--before-drop") })
	if got := s.hash(t, "shop", "visits"); got != want {
		t.Errorf("it has %s, want %s", got, want)
	}
	if d.Event == nil || d.Event.Event != "drop" || !d.Partial || d.Why != "" || len(d.Brought) != 1 || len(d.Brought[0].Left) > 0 {
		t.Errorf("%+v", d)
	}
	if d.Plan.Fetch > d.Plan.Of*2/3 {
		t.Errorf("%d of %d bytes are fetched", d.Plan.Fetch, d.Plan.Of)
	}
	// It goes on where it was: the sequence is its own, and knows its place.
	s.ExecIn(t, "shop", `insert into visits (note) values ('one more')`)
	if got := s.hash(t, "shop", `(select from pg_indexes where tablename = 'visits' and indexname in ('visits_pkey', 'visits_made'))`); !strings.HasPrefix(got, "2 ") {
		t.Errorf("of its indexes there are %s", got)
	}
}

// truncated has three tables truncated by one statement.
func (s *place) truncated(t *testing.T, w *traffic) {
	want := map[string]string{}
	for _, table := range shop {
		want[table] = s.hash(t, "shop", table)
	}
	// It is not archived yet: the server is asked for that.
	s.ExecIn(t, "shop", `truncate customers cascade`, `insert into customers values (1, 'customer 1'), (3000, 'new')`)
	var d did
	w.during(t, "the truncated tables were brought back", func() { d = s.recover(t, "shop.customers", "shop.orders", "shop.items", "--before-drop") })
	if d.Event == nil || d.Event.Event != "truncate" || !d.Partial || len(d.Brought[0].Tables) != 3 || strings.Contains(strings.Join(d.Notes, "\n"), notThat) {
		t.Errorf("%+v", d)
	}
	for _, table := range shop {
		if got := s.hash(t, "shop", table+"_recovered"); got != want[table] {
			t.Errorf("%s has %s, want %s", table, got, want[table])
		}
	}
	if diff := d.Brought[0].Tables[0].Diff; diff == nil || diff.OnlyThere != 1 || diff.OnlyHere != 1999 || diff.Same != 1 || diff.Changed != 0 {
		t.Errorf("customers: %+v", diff)
	}
	s.ExecIn(t, "shop", `drop table items_recovered, orders_recovered, customers_recovered`)
}

// updated has most rows of a table changed by one statement.
func (s *place) updated(t *testing.T, w *traffic) {
	s.ExecIn(t, "shop", `truncate customers cascade`, `insert into customers select i, 'c' || i from generate_series(1, 3000) i`)
	before := s.hash(t, "shop", "customers")
	s.ExecIn(t, "shop", `update customers set name = '' where id > 500`)
	s.Switch(t)
	var d did
	w.during(t, "the updated table was brought back", func() { d = s.recover(t, "shop.customers", "--before-drop", "--as", "was") })
	if d.Event == nil || d.Event.Event != "update" || len(d.Others) == 0 {
		t.Fatalf("%+v", d)
	}
	if got := s.hash(t, "shop", "was"); got != before {
		t.Errorf("it has %s, want %s", got, before)
	}
	if diff := d.Brought[0].Tables[0].Diff; diff == nil || diff.Changed != 2500 || diff.Same != 500 {
		t.Errorf("%+v", diff)
	}
	if s.Programs.Major != pgtest.Newest {
		return
	}
	// The same by its position.
	w.during(t, "the updated table was brought back once more", func() { d = s.recover(t, "shop.customers", "--lsn", d.Event.LSN, "--no-diff") })
	if got := s.hash(t, "shop", "customers_recovered"); got != before || d.Brought[0].Tables[0].Diff != nil {
		t.Errorf("it has %s, want %s", got, before)
	}
}

// notThat is said where the table of that name is another than the one that was lost.
const notThat = "is not what the event is about"

// A table that another has replaced, and a database that is gone.
func TestLosses(t *testing.T) {
	t.Parallel()
	s := open(t, 17)
	s.shop(t)
	s.Push(t)
	t.Run("swapped", func(t *testing.T) {
		s.ExecIn(t, "shop", `alter table items rename to items_old`, `create table items (i int)`, `drop table items_old`)
		s.Switch(t)
		d := s.recover(t, "shop.items", "--before-drop", "--as", "swapped")
		if d.Event == nil || d.Event.Event != "drop" || !strings.Contains(strings.Join(d.Notes, "\n"), notThat) {
			t.Errorf("%+v", d)
		}
		if got := s.hash(t, "shop", "swapped"); got != "0 " {
			t.Errorf("it has %s, and had no rows", got)
		}
	})
	t.Run("database", func(t *testing.T) {
		var was []string
		for _, table := range append(shop, "ballast") {
			was = append(was, s.hash(t, "shop", table))
		}
		s.Exec(t, `drop database shop`)
		s.Switch(t)
		s.refused(t, []string{"no database shop", "--database"}, "shop.orders", "--before-drop")
		d := s.recover(t, "--database", "shop", "--before-drop")
		if d.Event == nil || d.Event.Event != "drop database" || !d.Partial {
			t.Errorf("%+v", d)
		}
		var got []string
		for _, table := range append(shop, "ballast") {
			got = append(got, s.hash(t, "shop", table))
		}
		if !slices.Equal(got, was) {
			t.Errorf("it has %q, want %q", got, was)
		}
	})
}

// What became of a table since the backup makes no difference, though other files are needed then.
func TestChangedSince(t *testing.T) {
	t.Parallel()
	s := open(t, 15)
	s.shop(t)
	s.ExecIn(t, "shop", `create table parts (id int, at int, note text) partition by range (at)`, `create table parts_1 partition of parts for values from (0) to (10)`,
		`insert into parts select i, i % 10, 'p' || i from generate_series(1, 3000) i`,
		`create table loose (id int, at int, note text)`, `insert into loose select i, 15, 'l' || i from generate_series(1, 3000) i`)
	elsewhere := pgtest.Dir(t)
	s.Exec(t, `create tablespace elsewhere location '`+elsewhere+`'`)
	s.ExecIn(t, "shop", `create table away tablespace elsewhere as select i as id, repeat(md5(i::text), 3) as note from generate_series(1, 4000) i`,
		`create table awry tablespace elsewhere as select * from ballast`)
	s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=10")
	s.Push(t)
	s.ExecIn(t, "shop", `update orders set note = 'changed' where id % 3 = 0`)
	if name := s.Push(t); !strings.Contains(name, "_D_") {
		t.Fatalf("%s is no delta", name)
	}
	s.ExecIn(t, "shop",
		`vacuum full pg_class`, `vacuum full orders`,
		`alter table customers rename to clients`, // known by another name
		`alter table parts attach partition loose for values from (10) to (20)`,
		`create table late as select * from items`, // is not in the backup
		`update late set what = 'late' where id % 2 = 0`)
	want := map[string]string{}
	for _, table := range []string{"orders", "clients", "parts", "late", "away"} {
		want[table] = s.hash(t, "shop", table)
	}
	at := s.Value(t, `select clock_timestamp()`)
	s.Exec(t, `select pg_sleep(0.1)`)
	s.ExecIn(t, "shop", `drop table orders cascade`, `drop table parts, late, away`, `drop table clients`)
	s.Switch(t)
	for table, why := range map[string]string{"orders": "", "late": "", "away": "", "clients": "was not known to be needed", "parts": "was not known to be needed"} {
		d := s.recover(t, "shop."+table, "--time", at, "--as", table+"_back")
		if got := s.hash(t, "shop", table+"_back"); got != want[table] {
			t.Errorf("%s has %s, want %s", table, got, want[table])
		}
		if d.Partial != (why == "") || !strings.Contains(d.Why, why) || !d.Plan.Partial {
			t.Errorf("%s: partial %t, since %q; want %q", table, d.Partial, d.Why, why)
		}
	}
}

// Before PostgreSQL 13 all of the backup is restored, and it says so. Where there is no pg_dump of that version a newer one does.
func TestInFull(t *testing.T) {
	t.Parallel()
	s := open(t, 10)
	s.shop(t)
	s.Push(t)
	want := s.hash(t, "shop", "items")
	s.ExecIn(t, "shop", `drop table items`)
	s.Switch(t)
	d := s.recover(t, "shop.items", "--before-drop")
	if got := s.hash(t, "shop", "items"); got != want {
		t.Errorf("it has %s, want %s", got, want)
	}
	if d.Partial || d.Plan.Partial || !strings.Contains(d.Plan.Why, "PostgreSQL 10") {
		t.Errorf("%+v", d)
	}
}

// What a full copy cannot cure is not tried again with one: where the table's own file is damaged in the newest backup the next older one is taken, and a configuration that cannot be used is said.
func TestNoCure(t *testing.T) {
	t.Parallel()
	plain := []string{"WALG_COMPRESSION_METHOD=none"}
	s := &place{site.New(t, pgtest.Require(t, 17), pgtest.Options{SegmentSize: wal.MinSegmentSize, Env: plain}), pgtest.Dir(t)}
	s.Env = append(s.Env, plain...)
	s.Exec(t, `create table orders as select i as id, md5(i::text) as note from generate_series(1, 2000) i`)
	row := s.Value(t, `md5('2000')`)
	first := s.Push(t)
	second := s.Push(t, "--full")
	want := s.hash(t, "postgres", "orders")
	found := false
	for _, o := range s.Objects(t) {
		if !strings.HasPrefix(o, "basebackups_005/"+second+"/tar_partitions/part_") {
			continue
		}
		name := filepath.Join(s.Root, o)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.Index(string(b), row); i >= 0 {
			found = true
			b[i] ^= 1
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !found {
		t.Fatalf("%s is in no part of %s", row, second)
	}
	s.Exec(t, `drop table orders`)
	once := func(status int, args ...string) site.Result {
		t.Helper()
		r := site.Run(t, s.command(t, append(args, "--json")...))
		s.NoCopies(t, s.dir)
		if r.Status != status || strings.Contains(r.Stderr, "all of it is restored") {
			t.Errorf("exit status %d, want %d, without a full copy\n%s", r.Status, status, r.Stderr)
		}
		return r
	}
	r := once(0, "postgres.orders", "--before-drop")
	var d did
	if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil {
		t.Fatalf("%v\n%s", err, r.Stdout)
	}
	if got := s.hash(t, "postgres", "orders"); got != want || d.Plan.Backup != first || !d.Partial || !strings.Contains(r.Stderr, second+" does not do") {
		t.Errorf("from %s, in part %t, it has %s, want %s\n%s", d.Plan.Backup, d.Partial, got, want, r.Stderr)
	}

	conf, err := os.OpenFile(filepath.Join(s.Data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = conf.WriteString("\nno_such_parameter = 1\n")
		err = errors.Join(err, conf.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Push(t, "--full")
	s.Exec(t, `drop table orders`)
	s.Switch(t)
	if r := once(1, "postgres.orders", "--before-drop"); !strings.Contains(r.Stderr, "cannot use the backup's configuration") {
		t.Errorf("%s", r.Stderr)
	}
}

// What a transaction has added is undone by its number, though nothing tells when that was.
func TestByTransaction(t *testing.T) {
	t.Parallel()
	s := open(t, 15)
	s.Exec(t, `create table orders as select i as id, md5(i::text) as note from generate_series(1, 2000) i`)
	s.Push(t)
	want := s.hash(t, "postgres", "orders")
	var xid string
	if err := s.Conn(t).QueryRow(t.Context(), `with added as (insert into orders select i, 'wrong' from generate_series(1, 3) i) select txid_current()::text`).Scan(&xid); err != nil {
		t.Fatal(err)
	}
	s.Exec(t, `insert into orders values (4, 'right')`)
	s.Switch(t)
	d := s.recover(t, "postgres.orders", "--xid", xid)
	if got := s.hash(t, "postgres", "orders_recovered"); got != want {
		t.Errorf("before transaction %s it has %s, want %s", xid, got, want)
	}
	if diff := d.Brought[0].Tables[0].Diff; diff == nil || diff.OnlyThere != 4 || diff.OnlyHere != 0 || diff.Same != 2000 {
		t.Errorf("%+v", diff)
	}
}

// Where the newest backup cannot be read an older one does, and where none can be read nothing is brought.
func TestDamagedBackup(t *testing.T) {
	t.Parallel()
	s := open(t, 17)
	s.Exec(t, `create table orders as select i as id, md5(i::text) as note from generate_series(1, 2000) i`)
	first := s.Push(t)
	s.Exec(t, `update orders set note = 'x' where id < 10`)
	second := s.Push(t)
	want := s.hash(t, "postgres", "orders")
	s.Exec(t, `drop table orders`)
	damage := func(backup string) {
		for _, o := range s.Objects(t) {
			if strings.HasPrefix(o, "basebackups_005/"+backup+"/tar_partitions/part_") {
				name := filepath.Join(s.Root, o)
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				for i := range len(b) / 4096 {
					b[i*4096+len(b)%4096] ^= 0x55
				}
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	damage(second)
	d := s.recover(t, "postgres.orders", "--before-drop")
	if got := s.hash(t, "postgres", "orders"); got != want || d.Plan.Backup != first {
		t.Errorf("from %s it has %s, want %s", d.Plan.Backup, got, want)
	}
	damage(first)
	s.refused(t, []string{"corrupt", second}, "postgres.orders", "--lsn", d.Event.LSN)
	if got := s.Value(t, `to_regclass('orders_recovered')`); got != "" {
		t.Errorf("there is %s", got)
	}
}

// A cluster whose databases are not the usual ones is no hindrance.
func TestDatabasesThatAreGone(t *testing.T) {
	t.Parallel()
	s := open(t, 17)
	s.shop(t)
	s.Exec(t, `alter database template1 is_template false`, `drop database template1`)
	s.ExecIn(t, "shop", `drop database postgres`)
	s.Env = append(s.Env, "PGDATABASE=shop")
	s.Push(t)
	want := s.hash(t, "shop", "items")
	s.ExecIn(t, "shop", `drop table items`, `select pg_switch_wal()`)
	s.recover(t, "shop.items", "--before-drop", "--as", "again")
	if got := s.hash(t, "shop", "again"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// What cannot be done is said before anything is done, and a run that was killed leaves what the next one removes.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s := open(t, 17)
	begun := s.Value(t, `select clock_timestamp()`)
	s.shop(t)
	s.Push(t)
	s.ExecIn(t, "shop", `create schema aside`, `create table aside.things as select i from generate_series(1, 2000) i`)
	lsn := s.Value(t, `select pg_current_wal_lsn()`)
	s.Switch(t)
	for _, x := range []struct {
		args  []string
		words []string
	}{
		{[]string{"--before-drop"}, []string{"name tables"}},
		{[]string{"shop.orders"}, []string{"which moment"}},
		{[]string{"shop.orders", "--before-drop", "--time", "1h"}, []string{"which moment"}},
		{[]string{"orders", "--before-drop"}, []string{"the database has to be named"}},
		{[]string{`shop."orders`, "--before-drop"}, []string{"not closed"}},
		{[]string{"shop.orders", "--before-drop"}, []string{"nothing that took rows from shop.public.orders", "--since"}},
		{[]string{"shop.things", "--lsn", lsn}, []string{"there was no table shop.public.things", "shop.aside.things"}},
		{[]string{"nowhere.things", "--lsn", lsn}, []string{"no database nowhere"}},
		{[]string{"nowhere.things", "--lsn", lsn, "--dump", filepath.Join(pgtest.Dir(t), "x.dump")}, []string{"there was no database nowhere"}},
		{[]string{"shop.orders", "--time", begun}, []string{"no backup"}},
		{[]string{"shop.orders", "--lsn", "FFFF/0"}, []string{"lacks WAL"}},
		{[]string{"shop.orders", "--time", "0s"}, []string{"does not lead to", "give an earlier one"}},
		{[]string{"--database", "shop", "--xid", "99999999"}, []string{"does not lead to", "99999999"}},
	} {
		s.refused(t, x.words, x.args...)
	}
	t.Run("dry run", func(t *testing.T) {
		r := site.Run(t, s.command(t, "shop.orders", "--lsn", lsn, "--dry-run"))
		for _, want := range []string{"in part", "fetched", "room", "takes", lsn} {
			if r.Status != 0 || !strings.Contains(r.Stdout, want) {
				t.Errorf("exit status %d, want %q in\n%s\n%s", r.Status, want, r.Stdout, r.Stderr)
			}
		}
		s.NoCopies(t, s.dir)
	})
	t.Run("killed", func(t *testing.T) {
		cmd := s.command(t, "shop.orders", "--lsn", lsn, "--dump", filepath.Join(pgtest.Dir(t), "x.dump"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pgtest.Eventually(t, "a copy is started", func() bool {
			found, _ := filepath.Glob(filepath.Join(s.dir, "*", "data", "postmaster.pid"))
			return len(found) > 0
		})
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		if left, err := os.ReadDir(s.dir); err != nil || len(left) == 0 {
			t.Fatalf("nothing is left to be removed (%v)", err)
		}
		dump := filepath.Join(pgtest.Dir(t), "orders.dump")
		d := s.recover(t, "shop.orders", "--lsn", lsn, "--dump", dump)
		if info, err := os.Stat(dump); err != nil || info.Size() < 10_000 || len(d.Brought) != 1 || d.Brought[0].Tables[0].Rows != 5000 {
			t.Errorf("%v %+v", err, d)
		}
	})
	t.Run("kept", func(t *testing.T) {
		r := site.Run(t, s.command(t, "shop.orders", "--lsn", lsn, "--as", "kept", "--keep", "--json"))
		var d struct {
			Copy struct {
				Scratch, Socket, Role string
				Pid, Port             int
			}
		}
		if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil || r.Status != 0 || d.Copy.Pid == 0 {
			t.Fatalf("exit status %d (%v)\n%s\n%s", r.Status, err, r.Stdout, r.Stderr)
		}
		c, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=%s dbname=shop sslmode=disable", d.Copy.Socket, d.Copy.Port, d.Copy.Role))
		if err != nil {
			t.Error(err)
		} else if there, here := hash(t, c, "orders"), s.hash(t, "shop", "kept"); there != here || !strings.HasPrefix(here, "5000 ") {
			t.Errorf("the copy has %s, of which %s was brought", there, here)
		}
		if err := syscall.Kill(d.Copy.Pid, syscall.SIGQUIT); err != nil {
			t.Error(err)
		}
		pgtest.Eventually(t, "the copy has ended", func() bool { return syscall.Kill(d.Copy.Pid, 0) != nil })
		if err := os.RemoveAll(d.Copy.Scratch); err != nil {
			t.Error(err)
		}
	})
}
