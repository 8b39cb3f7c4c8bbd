package walsum_test

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/walsum"
	"holdfast/test/pgtest"
)

var update = flag.Bool("update", false, "rewrite testdata with what servers write")

// majors are the versions that summarize WAL.
var majors = []int{17, 18}

// tool lists what pg_walsummary shows of a file: blocks and limits.
func tool(t testing.TB, major int, file string) *blockset.Set {
	t.Helper()
	out, err := pgtest.Command(t, pgtest.Tool(t, major, "pg_walsummary"), file).CombinedOutput()
	if err != nil {
		t.Fatalf("pg_walsummary: %v: %s", err, out)
	}
	return parse(t, out)
}

// parse reads what pg_walsummary prints.
func parse(t testing.TB, out []byte) *blockset.Set {
	t.Helper()
	forks := map[string]blockset.Fork{"main": blockset.Main, "fsm": blockset.FSM, "vm": blockset.VM, "init": blockset.Init}
	var all blockset.Set
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		var k blockset.Key
		var fork, what, numbers string
		line := strings.ReplaceAll(strings.ReplaceAll(s.Text(), ":", ""), ",", "")
		if _, err := fmt.Sscanf(line, "TS %d DB %d REL %d FORK %s %s %s", &k.Tablespace, &k.Database, &k.Number, &fork, &what, &numbers); err != nil {
			t.Fatalf("pg_walsummary says %q: %v", s.Text(), err)
		}
		var ok bool
		if k.Fork, ok = forks[fork]; !ok {
			t.Fatalf("pg_walsummary says %q", s.Text())
		}
		from, to, several := strings.Cut(numbers, "..")
		if !several {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 32)
		last, err2 := strconv.ParseUint(to, 10, 32)
		switch {
		case err1 != nil || err2 != nil:
			t.Fatalf("pg_walsummary says %q", s.Text())
		case what == "limit":
			all.Truncate(k, uint32(first))
		case what == "block" || what == "blocks":
			for b := first; b <= last; b++ {
				all.Add(k, uint32(b))
			}
		default:
			t.Fatalf("pg_walsummary says %q", s.Text())
		}
	}
	return &all
}

// asked is what the server says is in a summary. It may leave out the limits of forks of which no block changed.
func asked(t testing.TB, conn *pgx.Conn, s walsum.Stretch) *blockset.Set {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		select relfilenode, reltablespace, reldatabase, relforknumber, relblocknumber, is_limit_block
		from pg_wal_summary_contents($1, $2::text::pg_lsn, $3::text::pg_lsn) order by is_limit_block desc`,
		int64(s.Timeline), s.From.String(), s.To.String())
	if err != nil {
		t.Fatal(err)
	}
	var all blockset.Set
	var k blockset.Key
	var fork int16
	var block int64
	var limit bool
	if _, err := pgx.ForEachRow(rows, []any{&k.Number, &k.Tablespace, &k.Database, &fork, &block, &limit}, func() error {
		k.Fork = blockset.Fork(fork)
		if limit {
			all.Truncate(k, uint32(block))
		} else {
			all.Add(k, uint32(block))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return &all
}

// withBlocks is s without the forks of which no block changed.
func withBlocks(s *blockset.Set) *blockset.Set {
	var some blockset.Set
	for k, e := range s.All() {
		if !e.Blocks.IsEmpty() {
			some.Truncate(k, e.Limit)
			some.AddMany(k, e.Blocks.ToArray())
		}
	}
	return &some
}

func read(t testing.TB, file string) *blockset.Set {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := walsum.Read(f)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return s
}

// What servers have written is read as pg_walsummary of their version reads it.
func TestGolden(t *testing.T) {
	for _, major := range majors {
		name := filepath.Join("testdata", strconv.Itoa(major))
		out, err := os.ReadFile(name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		got, want := read(t, name+".summary"), parse(t, out)
		same(t, got, want)
		if got.Len() < 10 || got.Blocks() < 5000 {
			t.Errorf("%d forks and %d blocks are few", got.Len(), got.Blocks())
		}
	}
}

// Whatever happens in a server, its summaries are read as it reads them; and what is written here in their place it reads the same.
func TestServersSummaries(t *testing.T) {
	for _, major := range majors {
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) {
			c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Settings: map[string]string{"summarize_wal": "on", "autovacuum": "off"}})
			space := pgtest.Dir(t)
			conn := c.Conn(t)
			summarized := func() []walsum.Stretch {
				t.Helper()
				c.Exec(t, `checkpoint`)
				redo := c.Value(t, `select redo_lsn from pg_control_checkpoint()`)
				pgtest.Eventually(t, "the WAL up to "+redo+" is summarized", func() bool {
					return c.Value(t, `select max(end_lsn) >= $1::pg_lsn from pg_available_wal_summaries()`, redo) == "true"
				})
				all, err := walsum.List(os.DirFS(filepath.Join(c.Data, walsum.Dir)))
				if err != nil {
					t.Fatal(err)
				}
				slices.SortFunc(all, func(a, b walsum.Stretch) int { return strings.Compare(a.Name(), b.Name()) })
				return all
			}
			c.Exec(t,
				`create table wide (id int, filler text) with (autovacuum_enabled = off)`, `alter table wide alter filler set storage plain`,
				`insert into wide select i, repeat('x', 7000) from generate_series(1, 5000) i`, // a block each
				`create table narrow with (autovacuum_enabled = off) as select i id, repeat('y', 100) filler from generate_series(1, 20000) i`,
				`create table doomed as select 1`, `create table moved as select 1`, `create unlogged table passing as select 1`)
			before := summarized()
			c.Exec(t,
				// These checkpoint, so that all that follows is in one summary.
				`create database copied strategy file_copy`, `create database logged strategy wal_log`, `drop database logged`,
				`update wide set id = -id`, // a map
				`update narrow set id = -id where id % 500 = 0`, `create index on narrow (id desc)`,
				`delete from narrow where ctid > '(100,0)'`, `vacuum narrow`, // truncates
				`drop table doomed`, `truncate passing`, `insert into passing values (1)`,
				`create tablespace side location '`+space+`'`, `alter table moved set tablespace side`, `vacuum full pg_class`)
			after := summarized()
			if len(after) <= len(before) {
				t.Fatalf("summaries before: %v, after: %v", before, after)
			}

			var limits, whole, forks int
			for _, s := range after {
				file := filepath.Join(c.Data, walsum.Dir, s.Name())
				got := read(t, file)
				same(t, got, tool(t, major, file))
				same(t, withBlocks(got), withBlocks(asked(t, conn, s)))
				for k, e := range got.All() {
					forks++
					if e.Limit != blockset.NoLimit && e.Limit > 0 {
						limits++
					}
					if k.Number == 0 {
						whole++
					}
				}

				if *update && s == after[len(after)-1] {
					keep(t, file, major)
				}
				// Ours in its place.
				if err := os.WriteFile(file, write(t, got), 0o600); err != nil {
					t.Fatal(err)
				}
				same(t, tool(t, major, file), got)
				same(t, withBlocks(asked(t, conn, s)), withBlocks(got))
			}
			if limits == 0 || whole < 2 || forks < 100 {
				t.Errorf("of %d forks %d were truncated and %d databases made or dropped: the workload does not do what it should", forks, limits, whole)
			}
		})
	}
}

// keep puts a summary into testdata, with what pg_walsummary says of it.
func keep(t *testing.T, file string, major int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgtest.Command(t, pgtest.Tool(t, major, "pg_walsummary"), file).Output()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join("testdata", strconv.Itoa(major))
	for path, content := range map[string][]byte{name + ".summary": b, name + ".txt": out} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
