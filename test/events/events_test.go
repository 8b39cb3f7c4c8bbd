// Package events_test breaks a cluster in all the ways that an operator may, and asks the archive when that was.
package events_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// event is a line of `holdfast events --json`.
type event struct {
	Event     string `json:"event"`
	Time      string `json:"time"`
	LSN       string `json:"lsn"`
	Prev      string `json:"previous_lsn"`
	XID       uint32 `json:"xid"`
	Database  string `json:"database"`
	Relations []struct {
		Name    string `json:"name"`
		Schema  string `json:"schema"`
		Kind    string `json:"kind"`
		File    string `json:"file"`
		Deleted uint64 `json:"deleted_rows"`
		Updated uint64 `json:"updated_rows"`
	} `json:"relations"`
	Name        string   `json:"name"`
	Destructive bool     `json:"destructive"`
	Certain     bool     `json:"certain"`
	Why         string   `json:"why"`
	Prepared    bool     `json:"was_prepared"`
	Partial     bool     `json:"may_have_begun_before"`
	Segments    int      `json:"segments"`
	Commits     int64    `json:"commits"`
	Notes       []string `json:"notes"`
	Missing     []any    `json:"missing"`
}

// String is the event as expectations have it: what, database, relations.
func (e event) String() string {
	var names []string
	for _, r := range e.Relations {
		name := r.Schema + "." + r.Name
		switch {
		case r.Name == "":
			name = "?"
		case r.Deleted+r.Updated > 0:
			name += fmt.Sprintf(" %d", r.Deleted+r.Updated)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	if e.Name != "" {
		names = append(names, e.Name)
	}
	sign := ""
	if e.Destructive {
		sign = "!"
	}
	return strings.TrimSpace(fmt.Sprintf("%s%s %s: %s", sign, e.Event, e.Database, strings.Join(names, " ")))
}

// events asks the archive; with a server for names where live is set.
func ask(t *testing.T, s *site.Site, live bool, args ...string) (all []event, read event) {
	t.Helper()
	cmd := s.Command(t, append([]string{"events", "--json"}, args...)...)
	if !live {
		cmd.Env = slices.DeleteFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, "PG") })
	}
	r := site.Run(t, cmd)
	if r.Status != 0 {
		t.Fatalf("events: %s", r.Stderr)
	}
	for line := range strings.Lines(r.Stdout) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		all = append(all, e)
	}
	return all[:len(all)-1], all[len(all)-1]
}

// A mishap is what is done to a cluster, and what is to be found of it.
type mishap struct {
	do   []string
	want string // "" for nothing
}

var before = []string{
	`create database shop`,
	`create table dropped (id int primary key, t text)`, `insert into dropped select i, repeat('x', 50) from generate_series(1, 1000) i`,
	`create table parent (id int primary key)`, `create table child (id int primary key, p int references parent)`,
	`create table grandchild (id int primary key, c int references child)`,
	`insert into parent select generate_series(1, 100)`, `insert into child select i, i from generate_series(1, 100) i`, `insert into grandchild select i, i from generate_series(1, 100) i`,
	`create table many (id int primary key, v int)`, `insert into many select i, i from generate_series(1, 6000) i`,
	`create schema stock`, `create table stock.items (id serial primary key, t text)`, `create table stock.bins (id int, t text)`,
	`create table stock.moves (id int, at int) partition by range (at)`, `create table stock.moves_1 partition of stock.moves for values from (0) to (100)`,
	`create table stock.moves_2 partition of stock.moves for values from (100) to (200)`,
	`create table bloated (id int primary key, t text)`, `insert into bloated select i, md5(i::text) from generate_series(1, 3000) i`,
	`create table renewed (id int primary key, t text)`, `insert into renewed select i, md5(i::text) from generate_series(1, 300) i`,
	`create table prepared (id int)`, `create table inner_one (id int)`, `create table kept (id int primary key)`,
	`insert into kept select generate_series(1, 10)`, `create table old (id int primary key, t text)`, `insert into old values (1, 'old')`,
	`create unlogged table fast (id int)`, `create materialized view summary as select count(*) from many`,
	`create table sorted (id int, t text)`, `insert into sorted select i, 'x' from generate_series(1, 100) i`,
	`create table split (id int, part int) partition by list (part)`, `create table split_1 partition of split for values in (1)`,
	`create table split_2 partition of split for values in (2)`, `insert into split select i, 1 from generate_series(1, 2000) i`,
	`create table altered (id int primary key, v int)`, `insert into altered values (1, 1)`,
}

// done are mishaps in order. Those after a semicolon are one transaction.
var done = []mishap{
	{[]string{`drop table dropped`}, "!drop postgres: public.dropped"},
	{[]string{`truncate parent cascade`}, "!truncate postgres: public.child public.grandchild public.parent"},
	{[]string{`delete from many where id <= 2500`}, "!delete postgres: public.many 2500"},
	{[]string{`update many set v = 0 where id <= 4500`}, "!update postgres: public.many 2000"},
	{[]string{`delete from many where id <= 2600`}, ""},
	{[]string{`vacuum full bloated`}, "rewrite postgres: public.bloated"},
	{[]string{`cluster bloated using bloated_pkey`}, "rewrite postgres: public.bloated"},
	{[]string{`delete from bloated where id <= 1500`}, "!delete postgres: public.bloated 1500"},
	{[]string{`truncate bloated`}, "!truncate postgres: public.bloated"},
	{[]string{`begin; create temp table s (id int primary key, t text) on commit drop; insert into s select i, 'x' from generate_series(1, 100) i; truncate sorted; insert into sorted select id, t from s; commit`},
		"!truncate postgres: public.sorted"},
	{[]string{`update split set part = 2`}, "!update postgres: public.split_1 2000"},
	{[]string{`drop table bloated`}, "!drop postgres: public.bloated"},
	{[]string{`alter table altered alter v type bigint`}, "rewrite postgres: public.altered"},
	{[]string{`reindex table altered`}, ""},
	{[]string{`alter table altered set tablespace pg_default`}, ""},
	{[]string{`create temporary table passing (id int primary key, t text); insert into passing select i, 'x' from generate_series(1, 3000) i; delete from passing; drop table passing`}, ""},
	{[]string{`begin`, `drop table kept`, `rollback`}, ""},
	{[]string{`begin`, `savepoint a`, `drop table kept`, `rollback to a`, `savepoint b`, `drop table inner_one`, `release b`, `commit`}, "!drop postgres: public.inner_one"},
	{[]string{`begin`, `drop table prepared`, `prepare transaction 'two'`}, ""},
	{[]string{`commit prepared 'two'`}, "!drop postgres: public.prepared"},
	{[]string{`drop schema stock cascade`}, "!drop postgres: stock.bins stock.items stock.items_id_seq stock.moves stock.moves_1 stock.moves_2"},
	{[]string{`truncate renewed`, `insert into renewed values (1, 'again')`, `drop table renewed`}, "!truncate postgres: public.renewed;!drop postgres: public.renewed"},
	{[]string{`create table late (id int primary key, t text)`, `insert into late select i, 'x' from generate_series(1, 2000) i`, `delete from late`, `drop table late`},
		"!delete postgres: public.late 2000;!drop postgres: public.late"},
	{[]string{`create schema fresh`, `create table fresh.late (id int)`, `drop schema fresh cascade`}, "!drop postgres: fresh.late"},
	{[]string{`begin; create table new (id int primary key, t text); insert into new values (2, 'new'); drop table old; alter table new rename to old; commit`}, "!drop postgres: public.old"},
	{[]string{`drop table old`}, "!drop postgres: public.old"},
	{[]string{`begin; create table short (id int); insert into short select generate_series(1, 2000); delete from short; truncate short; drop table short; commit`}, ""},
	{[]string{`drop table fast`}, "drop postgres: public.fast"},
	{[]string{`refresh materialized view summary`}, "rewrite postgres: public.summary"},
	{[]string{`drop materialized view summary`}, "drop postgres: public.summary"},
	{[]string{`select pg_create_restore_point('before the release')`}, "restore point : before the release"},
	{[]string{`vacuum full pg_class`, `drop table kept`}, "!drop postgres: public.kept"},
	{[]string{`drop database shop`}, "!drop database shop:"},
	{[]string{`create database other`}, "create database other:"},
}

const segment = wal.SegmentSize(1 << 20)

func TestEvents(t *testing.T) {
	for _, major := range []int{13, 15, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) { mishaps(t, pgtest.Require(t, major)) })
	}
}

func mishaps(t *testing.T, p instance.Programs) {
	settings := map[string]string{"max_prepared_transactions": "5", "autovacuum": "off", "wal_keep_size": "64MB"}
	if p.Major == 15 {
		settings["wal_compression"] = "on" // pglz
	}
	s := site.New(t, p, pgtest.Options{SegmentSize: segment, Settings: settings})
	s.Exec(t, before...)
	s.ExecIn(t, "shop", `create table wares (id int)`, `insert into wares select generate_series(1, 10)`)
	s.Exec(t, `alter system set max_prepared_transactions = 5`) // for what is restored
	s.Push(t)
	s.Switch(t)
	s.Switch(t)
	from := s.Value(t, `pg_current_wal_lsn()`)
	load := s.StartLoad(t, 1)
	var want []string
	for i, m := range done {
		if i == 15 {
			s.Exec(t, `checkpoint`)
		}
		s.Exec(t, m.do...)
		for _, w := range strings.Split(m.want, ";") {
			if w != "" {
				want = append(want, w)
			}
		}
	}
	if _, err := load.Stop(); err != nil {
		t.Fatal(err)
	}
	lastName := s.Switch(t)
	_, last, err := segment.ParseSegment(lastName)
	if err != nil {
		t.Fatal(err)
	}
	begin, err := wal.ParseLSN(from)
	if err != nil {
		t.Fatal(err)
	}
	for n := segment.Segment(begin); n <= last; n++ { // several are stored at once
		s.Await(t, segment.Name(1, n))
	}

	var found []event
	for _, live := range []bool{false, true} {
		t.Run(fmt.Sprintf("live %v", live), func(t *testing.T) {
			all, read := ask(t, s, live, "--from", from)
			var got []string
			for _, e := range all {
				if e.Event == "checkpoint" || e.Event == "shutdown" {
					continue
				}
				got = append(got, e.String())
				found = append(found, e)
				if !e.Certain && e.String() != "!drop postgres: public.old" {
					t.Errorf("%s at %s is not certain: %s", e, e.LSN, e.Why)
				}
				if e.Prepared != (e.String() == "!drop postgres: public.prepared") {
					t.Errorf("%s at %s was prepared: %t", e, e.LSN, e.Prepared)
				}
				if e.Partial {
					t.Errorf("%s at %s may have begun before", e, e.LSN)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if len(read.Notes) > 0 || read.Commits < load.Committed()/2 || read.Segments == 0 {
				t.Errorf("read %+v, %d commits of the load", read, load.Committed())
			}
		})
	}
	of := func(what string) event {
		t.Helper()
		i := slices.IndexFunc(found, func(e event) bool { return e.String() == what })
		if i < 0 {
			t.Fatalf("nothing is found of %s", what)
		}
		return found[i]
	}
	restoredTo(t, s, of("!drop postgres: public.dropped"), `select coalesce(to_regclass('dropped')::text, 'gone')`, "dropped", "gone")
	restoredTo(t, s, of("!truncate postgres: public.child public.grandchild public.parent"), `select count(*) from grandchild`, "100", "0")
	restoredTo(t, s, of("!delete postgres: public.many 2500"), `select count(*) from many`, "6000", "3500")
	dropped := of("!drop database shop:")
	c := s.Restored(t, "--target-lsn", dropped.LSN, "--exclusive", "--target-action", "promote")
	c.ExecIn(t, "shop", `do $$ begin if (select count(*) from wares) <> 10 then raise 'rows are missing'; end if; end $$`)
	c.Stop(t)

	// What happened since a time begins with what happened then.
	updated := of("!update postgres: public.many 2000")
	all, _ := ask(t, s, false, "--since", updated.Time, "--destructive")
	if len(all) == 0 || all[0].LSN != updated.LSN {
		t.Errorf("since %s there is %v", updated.Time, all)
	}
	if all, _ = ask(t, s, false, "--from", from, "--until", updated.LSN, "--destructive", "--relation", "public.many"); len(all) != 1 || all[0].Event != "delete" {
		t.Errorf("until %s there is %v", updated.LSN, all)
	}

	// What is missing is told, and what is behind it.
	point := of("restore point : before the release")
	lsn, err := wal.ParseLSN(updated.LSN)
	if err != nil {
		t.Fatal(err)
	}
	names := segment.Name(1, segment.Segment(lsn)+1)
	if err := os.Remove(filepath.Join(s.Root, "wal_005", names+".zst")); err != nil {
		t.Fatal(err)
	}
	all, read := ask(t, s, false, "--from", from)
	after := slices.IndexFunc(all, func(e event) bool { return e.LSN == point.LSN })
	gap := slices.IndexFunc(all, func(e event) bool { return e.Event == "missing WAL" })
	if gap < 0 || after < gap || all[0].LSN != found[0].LSN || len(read.Missing) != 1 {
		t.Errorf("without %s: %v, missing %v", names, all, read.Missing)
	}
}

// restoredTo restores to just before an event and to the event, and asks each copy.
func restoredTo(t *testing.T, s *site.Site, e event, sql, before, after string) {
	t.Helper()
	for _, with := range []struct {
		want string
		args []string
	}{
		{before, []string{"--target-lsn", e.LSN, "--exclusive"}},
		{before, []string{"--target-lsn", e.Prev}},
		{after, []string{"--target-lsn", e.LSN}},
	} {
		c := s.Restored(t, append(with.args, "--target-action", "promote")...)
		if got := c.Value(t, sql); got != with.want {
			t.Errorf("%s, restored with %q: %s is %s, want %s", e, with.args, sql, got, with.want)
		}
		c.Stop(t)
	}
}
