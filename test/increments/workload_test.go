package increments_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// world is a cluster under a random workload, and what of it the workload must know to go on. It is the same for the same seed, up to
// what happens while a backup runs.
type world struct {
	t      testing.TB
	rand   *rand.Rand
	site   *site.Site
	dbs    []*database
	spaces []string          // tablespaces, "pg_default" among them
	server map[string]string // settings
	serial int               // for names
	done   []string          // what was done so far, for whoever must understand a failure
}

// database is one that the workload works in.
type database struct {
	name     string
	space    string
	tables   []*table
	prepared []string // transactions
}

// table is one of the form tableColumns.
type table struct {
	name     string
	unlogged bool
	wide     bool // k is a bigint
	indexes  []string
	view     bool // a materialized view, which only refreshes
}

const tableColumns = `(id bigint primary key, k int, v text, tags int[], at point, doc bytea)`

// rows is a query for n rows of a table, whose ids begin behind those there are. About one of 40 has a value of several pages beside the table.
func (w *world) rows(tb *table, n int) string {
	return fmt.Sprintf(`select m + g, (g * 7919 + %[1]d) %% 1000, md5((m + g)::text) || repeat('x', (g * 31 %% 120)::int), array[g %% 17, g %% 5],
		point(g %% 100, g %% 37), case when g %% 40 = 0 then junk(%[1]d + g, 500 + g * 97 %% 30000) end
		from generate_series(1, %[2]d) g, (select coalesce(max(id), 0) m from %[3]s) x`, w.rand.IntN(1000), n, tb.name)
}

// prologue makes what every database of the workload has.
var prologue = []string{
	`create function junk(seed int, length int) returns bytea language sql immutable as
		$$ select decode(string_agg(md5(seed || ' ' || i), ''), 'hex') from generate_series(1, length / 16 + 1) i $$`,
	`create sequence counter`,
	`create table pending (id serial primary key, note text)`,
}

// conn opens a session in a database.
func (w *world) conn(db string) *pgx.Conn {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.site.Server.ConnString(instance.Superuser, db))
	if err != nil {
		w.fatal("connect to %s: %v", db, err)
	}
	return conn
}

// sql runs statements in a database, one after the other. One with semicolons is a transaction, unless it says otherwise.
func (w *world) sql(db string, statements ...string) {
	w.t.Helper()
	conn := w.conn(db)
	defer conn.Close(context.Background())
	for _, s := range append([]string{`set statement_timeout = '2min'`}, statements...) {
		if _, err := conn.PgConn().Exec(w.t.Context(), s).ReadAll(); err != nil {
			if rewrites.MatchString(s) && strings.Contains(err.Error(), "missing chunk number") {
				w.done = append(w.done, "not: "+s)
				return
			}
			w.fatal("%s: %s: %v", db, s, err)
		}
	}
}

// rewrites matches statements that copy rows which others may still see: PostgreSQL fails at them now and then, on a server that was never restored,
// where VACUUM has removed the large values of such rows already.
var rewrites = regexp.MustCompile(`^(cluster|vacuum full|alter table) `)

// fatal ends the test and says what led here.
func (w *world) fatal(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s\nafter: %s", fmt.Sprintf(format, args...), strings.Join(w.done, ", "))
}

// name makes a name that was not used before.
func (w *world) name(prefix string) string {
	w.serial++
	return fmt.Sprintf("%s%d", prefix, w.serial)
}

// chance is true once in n times.
func (w *world) chance(n int) bool { return w.rand.IntN(n) == 0 }

func pick[T any](w *world, from []T) T { return from[w.rand.IntN(len(from))] }

// table picks a table, and makes one where there is none.
func (w *world) table(db *database) *table {
	plain := slices.DeleteFunc(slices.Clone(db.tables), func(tb *table) bool { return tb.view })
	if len(plain) == 0 {
		return w.create(db)
	}
	return pick(w, plain)
}

// create makes a table and fills it.
func (w *world) create(db *database) *table {
	tb := &table{name: w.name("t"), unlogged: w.chance(6)}
	with := pick(w, []string{"", " with (fillfactor = 60)", " tablespace " + pick(w, w.spaces)})
	what := "create table "
	if tb.unlogged {
		what = "create unlogged table "
	}
	w.sql(db.name, what+tb.name+" "+tableColumns+with, `alter table `+tb.name+` alter doc set storage external`)
	w.sql(db.name, `insert into `+tb.name+` `+w.rows(tb, 1+w.rand.IntN(1500)))
	db.tables = append(db.tables, tb)
	return tb
}

// settle ends the prepared transactions of a database.
func (w *world) settle(db *database) {
	for _, id := range db.prepared {
		w.sql(db.name, pick(w, []string{`commit`, `rollback`})+` prepared '`+id+`'`)
	}
	db.prepared = nil
}

// action is one kind of work.
type action struct {
	name   string
	weight int
	do     func(w *world, db *database)
}

// on makes an action of statements on one table, in which %s is its name.
func on(statements ...string) func(w *world, db *database) {
	return func(w *world, db *database) {
		tb := w.table(db)
		for _, s := range statements {
			w.sql(db.name, strings.ReplaceAll(s, "%s", tb.name))
		}
	}
}

// actions are what the workload is made of. None of them leaves a session or a transaction open, prepared ones apart.
var actions = []action{
	{name: "insert", weight: 8, do: func(w *world, db *database) {
		tb := w.table(db)
		w.sql(db.name, `insert into `+tb.name+` `+w.rows(tb, 1+w.rand.IntN(2500)))
	}},
	{name: "copy in", weight: 3, do: func(w *world, db *database) {
		tb := w.table(db)
		conn := w.conn(db.name)
		defer conn.Close(context.Background())
		var last int64
		if err := conn.QueryRow(w.t.Context(), `select coalesce(max(id), 0) from `+tb.name).Scan(&last); err != nil {
			w.fatal("%v", err)
		}
		_, err := conn.CopyFrom(w.t.Context(), pgx.Identifier{tb.name}, []string{"id", "v"}, pgx.CopyFromSlice(1+w.rand.IntN(3000), func(i int) ([]any, error) {
			return []any{last + int64(i) + 1, strings.Repeat("copied ", i%20)}, nil
		}))
		if err != nil {
			w.fatal("%v", err)
		}
	}},
	{name: "update few", weight: 8, do: func(w *world, db *database) {
		w.sql(db.name, fmt.Sprintf(`update %s set k = k + 1 where id %% 53 = %d`, w.table(db).name, w.rand.IntN(53)))
	}},
	{name: "update many", weight: 3, do: on(`update %s set v = v || 'y', k = (k + 11) % 1000 where id % 3 = 1`)},
	{name: "update large values", weight: 3, do: func(w *world, db *database) {
		w.sql(db.name, fmt.Sprintf(`update %s set doc = junk(id::int, 12000) where id %% 97 = %d`, w.table(db).name, w.rand.IntN(97)))
	}},
	{name: "update within the page", weight: 3, do: on(`update %s set v = upper(v) where id % 41 = 7`, `update %s set v = lower(v) where id % 41 = 7`)},
	{name: "delete some", weight: 4, do: func(w *world, db *database) {
		w.sql(db.name, fmt.Sprintf(`delete from %s where id %% 7 = %d`, w.table(db).name, w.rand.IntN(7)))
	}},
	{name: "delete the tail and vacuum", weight: 3, do: on(`delete from %s where id > (select max(id) * 0.4 from %s)`, `vacuum %s`)},
	{name: "delete the tail, vacuum, regrow", weight: 3, do: func(w *world, db *database) {
		tb := w.table(db)
		w.sql(db.name, `delete from `+tb.name+` where id > (select max(id) * 0.2 from `+tb.name+`)`, `vacuum `+tb.name)
		w.sql(db.name, `insert into `+tb.name+` `+w.rows(tb, 2000))
	}},
	{name: "upsert", weight: 3, do: func(w *world, db *database) {
		tb := w.table(db)
		w.sql(db.name, `insert into `+tb.name+` (id, k, v) select g * 13, g % 1000, 'upsert' from generate_series(1, 300) g on conflict (id) do update set k = excluded.k, v = excluded.v`)
	}},
	{name: "lock rows", weight: 2, do: on(`begin; select id from %s where id % 29 = 3 for update; select id from %s where id % 31 = 3 for share; commit`)},
	{name: "read all", weight: 4, do: on(`select count(*), sum(k) from %s`)},
	{name: "read by index", weight: 4, do: on(`set enable_seqscan = off; set enable_bitmapscan = off; select sum(k) from %s where id between 1 and 100000`)},
	{name: "roll back an insert", weight: 3, do: func(w *world, db *database) {
		tb := w.table(db)
		w.sql(db.name, `begin; insert into `+tb.name+` `+w.rows(tb, 800)+`; rollback`)
	}},
	{name: "roll back a new table", weight: 2, do: func(w *world, db *database) {
		n := w.name("gone")
		w.sql(db.name, `begin; create table `+n+` as select g as id, md5(g::text) as v from generate_series(1, 3000) g; create index on `+n+` (v); rollback`)
	}},
	{name: "savepoints", weight: 2, do: func(w *world, db *database) {
		n := w.name("sub")
		w.sql(db.name, `begin; create table `+n+` (id int); insert into `+n+` select generate_series(1, 500); savepoint a; truncate `+n+`; insert into `+n+` values (1);
			savepoint b; drop table `+n+`; rollback to b; insert into `+n+` values (2); rollback to a; insert into `+n+` values (3); commit`)
		w.sql(db.name, `drop table `+n)
	}},
	{name: "create table", weight: 4, do: func(w *world, db *database) { w.create(db) }},
	{name: "create table as", weight: 2, do: func(w *world, db *database) {
		from, tb := w.table(db), &table{name: w.name("t")}
		w.sql(db.name, `create table `+tb.name+` as select id, k::int as k, v, tags, at, doc from `+from.name, `alter table `+tb.name+` add primary key (id)`)
		db.tables = append(db.tables, tb)
	}},
	{name: "drop table", weight: 3, do: func(w *world, db *database) {
		tb := w.table(db)
		w.sql(db.name, `drop table `+tb.name+` cascade`)
		w.forget(db, tb)
	}},
	{name: "drop table and create it again", weight: 2, do: func(w *world, db *database) {
		tb := w.table(db)
		w.sql(db.name, `begin; drop table `+tb.name+` cascade; create table `+tb.name+` `+tableColumns+`; insert into `+tb.name+` (id, k) values (1, 1); commit`)
		w.forget(db, tb)
		db.tables = append(db.tables, &table{name: tb.name})
	}},
	{name: "truncate", weight: 2, do: on(`truncate %s`)},
	{name: "truncate and fill", weight: 3, do: func(w *world, db *database) {
		tb := w.table(db)
		w.sql(db.name, `begin; truncate `+tb.name+`; insert into `+tb.name+` `+w.rows(tb, 700)+`; commit`)
	}},
	{name: "vacuum", weight: 6, do: on(`vacuum %s`)},
	{name: "vacuum freeze", weight: 3, do: on(`vacuum (freeze, analyze) %s`)},
	{name: "vacuum full", weight: 3, do: on(`vacuum full %s`)},
	{name: "cluster", weight: 2, do: on(`cluster %s using %s_pkey`)},
	{name: "vacuum the database", weight: 1, do: func(w *world, db *database) { w.sql(db.name, `vacuum`) }},
	{name: "vacuum full catalogs", weight: 1, do: func(w *world, db *database) {
		w.settle(db)
		w.sql(db.name, `vacuum full pg_class`, `vacuum full pg_attribute`, `vacuum full pg_shdepend`)
	}},
	{name: "index", weight: 6, do: func(w *world, db *database) {
		tb, n := w.table(db), w.name("i")
		how := pick(w, []string{"btree (k)", "btree (v, k)", "hash (v)", "gin (tags)", "gist (at)", "spgist (at)", "brin (k) with (pages_per_range = 2)", "btree (lower(v))"})
		where := pick(w, []string{"", " tablespace " + pick(w, w.spaces)})
		concurrently := ""
		if w.chance(4) {
			w.settle(db)
			concurrently = "concurrently "
		}
		w.sql(db.name, `create index `+concurrently+n+` on `+tb.name+` using `+how+where)
		tb.indexes = append(tb.indexes, n)
	}},
	{name: "drop index", weight: 2, do: func(w *world, db *database) {
		if tb := w.table(db); len(tb.indexes) > 0 {
			w.sql(db.name, `drop index `+tb.indexes[0])
			tb.indexes = tb.indexes[1:]
		}
	}},
	{name: "reindex", weight: 2, do: on(`reindex table %s`)},
	{name: "reindex concurrently", weight: 1, do: func(w *world, db *database) {
		w.settle(db)
		w.sql(db.name, `reindex table concurrently `+w.table(db).name)
	}},
	{name: "rewrite", weight: 2, do: func(w *world, db *database) {
		tb := w.table(db)
		to := "bigint"
		if tb.wide {
			to = "int"
		}
		w.sql(db.name, `alter table `+tb.name+` alter k type `+to)
		tb.wide = !tb.wide
	}},
	{name: "logged or unlogged", weight: 3, do: func(w *world, db *database) {
		tb := w.table(db)
		to := "unlogged"
		if tb.unlogged {
			to = "logged"
		}
		w.sql(db.name, `alter table `+tb.name+` set `+to)
		tb.unlogged = !tb.unlogged
	}},
	{name: "move a table", weight: 3, do: func(w *world, db *database) {
		w.sql(db.name, `alter table `+w.table(db).name+` set tablespace `+pick(w, w.spaces))
	}},
	{name: "move a table there and back", weight: 2, do: func(w *world, db *database) {
		tb := w.table(db)
		w.sql(db.name, `alter table `+tb.name+` set tablespace `+pick(w, w.spaces[1:]), `update `+tb.name+` set k = k + 1 where id % 11 = 1`,
			`alter table `+tb.name+` set tablespace pg_default`)
	}},
	{name: "move an index", weight: 2, do: func(w *world, db *database) {
		if tb := w.table(db); len(tb.indexes) > 0 {
			w.sql(db.name, `alter index `+pick(w, tb.indexes)+` set tablespace `+pick(w, w.spaces))
		}
	}},
	{name: "materialized view", weight: 2, do: func(w *world, db *database) {
		if i := slices.IndexFunc(db.tables, func(tb *table) bool { return tb.view }); i >= 0 {
			w.sql(db.name, `refresh materialized view `+db.tables[i].name)
			return
		}
		n := w.name("mv")
		w.sql(db.name, `create materialized view `+n+` as select id, note, md5(id::text) as v from pending, generate_series(1, 50)`)
		db.tables = append(db.tables, &table{name: n, view: true})
	}},
	{name: "sequence", weight: 3, do: func(w *world, db *database) {
		w.sql(db.name, `select count(nextval('counter')) from generate_series(1, 100)`)
		if w.chance(3) {
			w.sql(db.name, fmt.Sprintf(`select setval('counter', %d)`, 1+w.rand.IntN(1_000_000)))
		}
		if w.chance(5) {
			w.sql(db.name, `alter sequence counter restart`) // in a new file
		}
	}},
	{name: "large object", weight: 1, do: func(w *world, db *database) {
		w.sql(db.name, fmt.Sprintf(`select lo_from_bytea(0, junk(%d, 20000))`, w.rand.IntN(1000)))
	}},
	{name: "message", weight: 1, do: func(w *world, db *database) {
		w.sql(db.name, fmt.Sprintf(`select pg_logical_emit_message(true, 'test', repeat('m', %d))`, 1+w.rand.IntN(3<<20)))
	}},
	{name: "prepare", weight: 3, do: func(w *world, db *database) {
		if len(db.prepared) >= 2 {
			w.settle(db)
			return
		}
		id, n := w.name("p"), w.name("two")
		w.sql(db.name, `begin; insert into pending (note) select md5(g::text) from generate_series(1, 200) g; create table `+n+` (id int);
			insert into `+n+` select generate_series(1, 300); prepare transaction '`+id+`'`)
		db.prepared = append(db.prepared, id)
	}},
	{name: "settle", weight: 2, do: func(w *world, db *database) { w.settle(db) }},
	{name: "checkpoint", weight: 3, do: func(w *world, db *database) { w.sql(db.name, `checkpoint`) }},
	{name: "switch", weight: 1, do: func(w *world, db *database) { w.sql(db.name, `select pg_switch_wal()`) }},
	{name: "copy a database", weight: 2, do: func(w *world, db *database) {
		if len(w.dbs) > 2 {
			return
		}
		w.settle(db)
		n := w.name("db")
		stmt := `create database ` + n + ` template ` + db.name
		if w.site.Programs.Major >= 15 {
			stmt += ` strategy ` + pick(w, []string{"file_copy", "wal_log"})
		}
		space := db.space
		if to := pick(w, w.spaces); w.mayMove(db, to) {
			space = to
			stmt += ` tablespace ` + to
		}
		w.sql("postgres", stmt)
		copied := &database{name: n, space: space}
		for _, tb := range db.tables {
			one := *tb
			one.indexes = slices.Clone(tb.indexes)
			copied.tables = append(copied.tables, &one)
		}
		w.dbs = append(w.dbs, copied)
	}},
	{name: "drop a database", weight: 1, do: func(w *world, db *database) {
		if len(w.dbs) < 2 {
			return
		}
		w.settle(db)
		w.sql("postgres", `drop database `+db.name)
		w.dbs = slices.DeleteFunc(w.dbs, func(d *database) bool { return d == db })
	}},
	{name: "move a database", weight: 2, do: func(w *world, db *database) {
		w.settle(db)
		w.moveDatabase(db, pick(w, w.spaces))
	}},
	{name: "move a database there and back", weight: 1, do: func(w *world, db *database) {
		w.settle(db)
		home := db.space
		w.moveDatabase(db, pick(w, w.spaces))
		w.sql(db.name, `update pending set note = note || '!'`)
		w.moveDatabase(db, home)
	}},
}

// mayMove reports whether a database, or a copy of it, may have another tablespace: PostgreSQL refuses where some of its tables were put into
// that one by name.
func (w *world) mayMove(db *database, to string) bool {
	w.sql("postgres", `checkpoint`) // files of tables that are gone count until then
	return db.space != to && w.value(db.name, `select count(*) from pg_class where reltablespace = (select oid from pg_tablespace where spcname = '`+to+`')`) == "0"
}

// moveDatabase moves a database to another tablespace, if it may.
func (w *world) moveDatabase(db *database, to string) {
	if !w.mayMove(db, to) {
		return
	}
	w.sql("postgres", `alter database `+db.name+` set tablespace `+to)
	db.space = to
}

// forget takes a table off the list of its database.
func (w *world) forget(db *database, tb *table) {
	db.tables = slices.DeleteFunc(db.tables, func(x *table) bool { return x == tb })
}

// value is what a query says, as text.
func (w *world) value(db, query string) string {
	w.t.Helper()
	conn := w.conn(db)
	defer conn.Close(context.Background())
	var s string
	if err := conn.QueryRow(w.t.Context(), `select (`+query+`)::text`).Scan(&s); err != nil {
		w.fatal("%s: %s: %v", db, query, err)
	}
	return s
}

// act does one thing at random.
func (w *world) act() {
	w.t.Helper()
	var sum int
	for _, a := range actions {
		sum += a.weight
	}
	n := w.rand.IntN(sum)
	for _, a := range actions {
		if n -= a.weight; n < 0 {
			w.done = append(w.done, a.name)
			a.do(w, pick(w, w.dbs))
			return
		}
	}
}

// crash ends the server as a power cut would, in the midst of a transaction that has made a table: its file stays for ever. Then the server
// starts again.
func (w *world) crash() {
	w.t.Helper()
	w.done = append(w.done, "CRASH")
	db := pick(w, w.dbs)
	conn := w.conn(db.name)
	defer conn.Close(context.Background())
	n, tb := w.name("orphan"), w.table(db)
	_, err := conn.PgConn().Exec(w.t.Context(), `begin; create table `+n+` as select g as id, junk(g, 300) as doc from generate_series(1, 1000) g; insert into `+tb.name+` `+w.rows(tb, 500)).ReadAll()
	if err != nil {
		w.fatal("%v", err)
	}
	if w.chance(2) {
		w.sql("postgres", `checkpoint`)
	}
	w.site.Server.Kill()
	w.site.Start(w.t)
}

// attach puts a server on a data directory, in the place of the one there was.
func (w *world) attach(dir string, settings map[string]string) {
	w.t.Helper()
	w.site.Cluster = pgtest.Attach(w.t, w.site.Programs, dir, pgtest.Options{Settings: settings, Env: w.site.Env})
}

// minimal lets the cluster run with wal_level=minimal and without an archive for a while, in which tables are filled without any WAL of it.
func (w *world) minimal() {
	w.t.Helper()
	w.done = append(w.done, "MINIMAL")
	w.site.Stop(w.t)
	settings := map[string]string{}
	for name, value := range w.server {
		settings[name] = value
	}
	settings["wal_level"], settings["archive_mode"], settings["max_wal_senders"] = "minimal", "off", "0"
	delete(settings, "summarize_wal")
	w.attach(w.site.Data, settings)
	for range 3 {
		db := pick(w, w.dbs)
		tb := &table{name: w.name("t")}
		w.sql(db.name, `begin; create table `+tb.name+` `+tableColumns+`; insert into `+tb.name+` `+w.rows(tb, 3000)+`; create index on `+tb.name+` using gist (at); commit`)
		db.tables = append(db.tables, tb)
		w.sql(db.name, `begin; truncate `+w.table(db).name+`; commit`)
		w.act()
	}
	w.site.Stop(w.t)
	w.attach(w.site.Data, w.server)
	w.done = append(w.done, "REPLICA")
}
