package walrec_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
	"holdfast/internal/pg/walsum"
	"holdfast/test/pgtest"
)

// table is PostgreSQL's block reference table: unlike a blockset.Set it forgets blocks only when a limit falls.
type table map[blockset.Key]*entry

type entry struct {
	limit  uint32
	blocks map[uint32]bool
}

func (t table) at(k blockset.Key) *entry {
	e, ok := t[k]
	if !ok {
		e = &entry{blockset.NoLimit, map[uint32]bool{}}
		t[k] = e
	}
	return e
}

func (t table) Add(k blockset.Key, block uint32) { t.at(k).blocks[block] = true }

func (t table) Truncate(k blockset.Key, limit uint32) {
	if e := t.at(k); limit < e.limit {
		e.limit = limit
		maps.DeleteFunc(e.blocks, func(b uint32, _ bool) bool { return b >= limit })
	}
}

// differs says in what way got and want are not the same, or "".
func differs(got table, want *blockset.Set) string {
	n := 0
	for k, w := range want.All() {
		n++
		g, ok := got[k]
		if !ok {
			return fmt.Sprintf("%s is missing", k)
		}
		blocks := slices.Sorted(maps.Keys(g.blocks))
		if g.limit != w.Limit || !slices.Equal(blocks, w.Blocks.ToArray()) {
			return fmt.Sprintf("%s: limit %d, blocks %v, want %d, %v", k, g.limit, blocks, w.Limit, w.Blocks)
		}
	}
	if n != len(got) {
		return fmt.Sprintf("%d forks, want %d", len(got), n)
	}
	return ""
}

// same says in what way two sets are not the same, or "".
func same(got, want *blockset.Set) string {
	for k, w := range want.All() {
		blocks, limit, ok := got.Get(k)
		if !ok || limit != w.Limit || !blocks.Equals(w.Blocks) {
			return fmt.Sprintf("%s: %v, limit %d, blocks %v, want %d, %v", k, ok, limit, blocks, w.Limit, w.Blocks)
		}
	}
	if got.Len() != want.Len() {
		return fmt.Sprintf("%d forks, want %d", got.Len(), want.Len())
	}
	return ""
}

// join sums up each segment, puts the sum through its encoded form, and joins them. The last ones up to end, if that is not 0.
func join(t testing.TB, paths []string, size wal.SegmentSize, end wal.LSN) *walrec.Joiner {
	t.Helper()
	var j walrec.Joiner
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		_, n, err := size.ParseSegment(filepath.Base(path))
		if err != nil {
			t.Fatal(err)
		}
		var s *walrec.Summary
		if end != 0 && size.Start(n+1) >= end {
			s, err = walrec.SummarizeTo(f, size, end)
		} else {
			s, err = walrec.Summarize(f, size)
		}
		if err == nil {
			s, err = walrec.Decode(s.Encode())
		}
		if err == nil {
			err = j.Add(s)
		}
		if err != nil {
			t.Fatalf("%s: %v", filepath.Base(path), err)
		}
		f.Close()
		if end != 0 && size.Start(n+1) >= end {
			break
		}
	}
	return &j
}

// agreeWithServer compares what is in a server's own summaries of its WAL, which those of 17 and later have, with what is found in the same WAL.
func agreeWithServer(t *testing.T, c *pgtest.Cluster) {
	major := c.Programs.Major
	end, err := wal.ParseLSN(c.Value(t, "select redo_lsn from pg_control_checkpoint()"))
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the server has summarized its WAL to "+end.String(), func() bool {
		return c.Value(t, "select coalesce(max(end_lsn), '0/0') >= $1::pg_lsn from pg_available_wal_summaries()", end.String()) == "true"
	})
	dir := os.DirFS(filepath.Join(c.Data, walsum.Dir))
	have, err := walsum.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(have, func(a, b walsum.Stretch) int { return int(int64(a.From) - int64(b.From)) })
	paths, size := segments(t, c)
	r, err := walrec.NewReader(files(t, paths), end)
	if err != nil {
		t.Fatal(err)
	}
	var all, direct blockset.Set
	rec, err := r.Next()
	for ; err == nil && rec.LSN < have[0].From; rec, err = r.Next() { // before the server's first start
		if err := walrec.Effects(rec, major, &direct); err != nil {
			t.Fatal(err)
		}
	}
	all.Merge(&direct)
	for i, stretch := range have {
		if i > 0 && stretch.From != have[i-1].To {
			t.Fatalf("no summary from %s to %s", have[i-1].To, stretch.From)
		}
		got := table{}
		for ; err == nil && rec.LSN < stretch.To; rec, err = r.Next() {
			if err := walrec.Effects(rec, major, got); err != nil {
				t.Fatal(err)
			}
			if err := walrec.Effects(rec, major, &direct); err != nil {
				t.Fatal(err)
			}
		}
		want := read(t, dir, stretch.Name())
		if d := differs(got, want); d != "" {
			t.Errorf("%s: %s", stretch, d)
		}
		all.Merge(want)
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	j := join(t, paths, size, end)
	if d := same(&j.Blocks, &direct); d != "" {
		t.Errorf("joined: %s", d)
	}
	// Blocks of a fork that was cut off more than once at the same place are listed by the server alone.
	for k, want := range all.All() {
		blocks, limit, _ := j.Blocks.Get(k)
		below := want.Blocks.Clone()
		if limit != want.Limit || blocks.AndCardinality(below) != blocks.GetCardinality() {
			t.Errorf("%s: limit %d, blocks %v, want %d, %v", k, limit, blocks, want.Limit, want.Blocks)
		}
		below.AndNot(blocks)
		if !below.IsEmpty() && below.Minimum() < limit {
			t.Errorf("%s: blocks %v are missing", k, below)
		}
	}
	if j.Minimal || j.Unfinished() != 0 || j.Blocks.Len() != all.Len() {
		t.Errorf("minimal %v, unfinished %s, %d forks, want %d", j.Minimal, j.Unfinished(), j.Blocks.Len(), all.Len())
	}
	t.Logf("%d summaries, %d forks, %d blocks, %d segments", len(have), all.Len(), all.Blocks(), len(paths))
}

func read(t *testing.T, dir fs.FS, name string) *blockset.Set {
	t.Helper()
	f, err := dir.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := walsum.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The WAL of every version is decoded to its end, as the server's own tools do and in one go and segment by segment alike, and what was changed
// is in the sum.
func TestEveryVersion(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{Checksums: p.Major != 15, SegmentSize: sizes(p.Major), Settings: keepWAL(p.Major)})
		workload(t, c)
		find := func(name string) blockset.Relation {
			var r blockset.Relation
			err := c.Conn(t).QueryRow(t.Context(), `
				select case when reltablespace = 0 then 1663 else reltablespace end, d.oid, pg_relation_filenode(c.oid)
				from pg_class c, pg_database d where c.oid = $1::text::regclass and d.datname = current_database()`, name,
			).Scan(&r.Tablespace, &r.Database, &r.Number)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		h, index := find("h"), find("moved_pkey")
		pages := c.Value(t, "select pg_relation_size('h') / 8192")
		if p.Major >= 17 {
			t.Run("summaries", func(t *testing.T) { agreeWithServer(t, c) })
		}
		c.Stop(t)
		if slices.Contains([]int{13, 15, 17, 18}, p.Major) { // the others come without tools
			t.Run("waldump", func(t *testing.T) { agreeWithWaldump(t, c) })
		}

		paths, size := segments(t, c)
		r, err := walrec.NewReader(files(t, paths), 0)
		if err != nil {
			t.Fatal(err)
		}
		if r.Version() != p.Major {
			t.Errorf("version %d", r.Version())
		}
		direct, end := sum(t, r)
		j := join(t, paths, size, end)
		if d := same(&j.Blocks, direct); d != "" {
			t.Error(d)
		}
		if j.Minimal || j.Unfinished() != 0 {
			t.Errorf("minimal %v, unfinished %s", j.Minimal, j.Unfinished())
		}
		blocks, limit, ok := direct.Get(blockset.Key{Relation: h})
		if !ok || limit != 0 || fmt.Sprint(blocks.GetCardinality()) != pages {
			t.Errorf("h: %v, limit %d, %v, and it has %s pages", ok, limit, blocks, pages)
		}
		if _, limit, ok := direct.Get(blockset.Key{Relation: index}); !ok || limit != 0 {
			t.Errorf("moved_pkey: %v, limit %d", ok, limit)
		}
		if databases(direct) == 0 {
			t.Error("no database was made")
		}
	})
}

// sum adds up what the records change to where the WAL ends.
func sum(t *testing.T, r *walrec.Reader) (*blockset.Set, wal.LSN) {
	t.Helper()
	var s blockset.Set
	var end wal.LSN
	for {
		rec, err := r.Next()
		if err != nil {
			if !errors.Is(err, walrec.ErrEnd) {
				t.Fatal(err)
			}
			return &s, end
		}
		if err := walrec.Effects(rec, r.Version(), &s); err != nil {
			t.Fatal(err)
		}
		end = rec.End
	}
}

// databases counts the databases that were made or dropped, once for each tablespace.
func databases(s *blockset.Set) int {
	n := 0
	for k := range s.All() {
		if k.Number == 0 {
			n++
		}
	}
	return n
}

// A record that a crash cut off across segments is given up by the server, and is left out here.
func TestCrashWithinRecord(t *testing.T) {
	for _, major := range []int{10, 13, 18} {
		t.Run(fmt.Sprintf("PG%d", major), func(t *testing.T) {
			c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{SegmentSize: sizes(major), Settings: keepWAL(major)})
			c.Exec(t, "create table t as select generate_series(1, 1000) i", "checkpoint",
				"select pg_logical_emit_message(false, 'prefix', repeat('m', 17000000))", "select pg_switch_wal()")
			c.Server.Kill()
			paths, size := segments(t, c)
			r, err := walrec.NewReader(files(t, paths), 0)
			if err != nil {
				t.Fatal(err)
			}
			var begin, end wal.LSN
			for rec, err := r.Next(); err == nil; rec, err = r.Next() {
				if managers[rec.RM] == "LogicalMessage" {
					begin, end = rec.LSN, rec.End
				}
			}
			if end < begin+16<<20 {
				t.Fatal("no message")
			}
			// As if the last writes had not come to the disk: from some page on, in the middle of the message, there is nothing.
			cut := (begin + (end-begin)/2) &^ 8191
			for _, path := range paths {
				_, n, err := size.ParseSegment(filepath.Base(path))
				if err != nil {
					t.Fatal(err)
				}
				if size.Start(n+1) <= cut {
					continue
				}
				from := max(cut, size.Start(n)) - size.Start(n)
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteAt(make([]byte, uint64(size)-uint64(from)), int64(from)); err != nil {
					t.Fatal(err)
				}
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
			}
			c.Start(t)
			c.Exec(t, "create table after as select generate_series(1, 1000) i", "select pg_switch_wal()", "insert into after values (1)")
			c.Stop(t)
			paths, _ = segments(t, c)
			if r, err = walrec.NewReader(files(t, paths), 0); err != nil {
				t.Fatal(err)
			}
			var direct blockset.Set
			overwritten := false
			var last wal.LSN
			for {
				rec, err := r.Next()
				if err != nil {
					if !errors.Is(err, walrec.ErrEnd) {
						t.Fatal(err)
					}
					break
				}
				if rec.LSN == begin {
					t.Errorf("a message is read at %s", begin)
				}
				overwritten = overwritten || rec.RM == walrec.RMXLOG && rec.Info == 0xD0
				last = rec.End
				if err := walrec.Effects(rec, major, &direct); err != nil {
					t.Fatal(err)
				}
			}
			if !overwritten {
				t.Error("no record was given up")
			}
			if d := same(&join(t, paths, size, last).Blocks, &direct); d != "" {
				t.Error(d)
			}
		})
	}
}

// A server that ran with wal_level=minimal has left a mark in its WAL.
func TestMinimalServer(t *testing.T) {
	for _, major := range []int{10, 12, 16, 18} {
		t.Run(fmt.Sprintf("PG%d", major), func(t *testing.T) {
			c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{})
			c.Exec(t, "create table t (i int)", "insert into t values (1)")
			c.Stop(t)
			minimal := func() bool {
				t.Helper()
				paths, size := segments(t, c)
				r, err := walrec.NewReader(files(t, paths), 0)
				if err != nil {
					t.Fatal(err)
				}
				var end wal.LSN
				for rec, err := r.Next(); err == nil; rec, err = r.Next() {
					end = rec.End
				}
				return join(t, paths, size, end).Minimal
			}
			if minimal() {
				t.Error("with wal_level=replica")
			}
			m := pgtest.Attach(t, c.Programs, c.Data, pgtest.Options{Settings: map[string]string{"wal_level": "minimal", "max_wal_senders": "0"}})
			m.Stop(t)
			if !minimal() {
				t.Error("wal_level=minimal goes unnoticed")
			}
		})
	}
}

// The segment in which a timeline began joins those before it, of the old timeline, with those after it.
func TestPromotion(t *testing.T) {
	const major = 13
	c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{SegmentSize: mib, Settings: map[string]string{"wal_keep_size": "1GB"}})
	c.Exec(t, "create table t (i int, t text)", "insert into t select i, md5(i::text) from generate_series(1, 20000) i")
	s := c.Standby(t, pgtest.Options{Settings: map[string]string{"wal_keep_size": "1GB"}})
	c.Exec(t, "insert into t select i, md5(i::text) from generate_series(1, 20000) i")
	c.CatchUp(t, s)
	s.Exec(t, "select pg_promote()", "insert into t select i, md5(i::text) from generate_series(1, 20000) i")
	c.Exec(t, "insert into t select i, md5(i::text) from generate_series(1, 50000) i") // which the standby does not have
	s.Stop(t)
	paths, size := segments(t, s)
	// Of a segment that both timelines have, the newer.
	var path []string
	for _, p := range paths {
		number := func(p string) string { return filepath.Base(p)[8:] }
		path = slices.DeleteFunc(path, func(old string) bool { return number(old) >= number(p) })
		path = append(path, p)
	}
	r, err := walrec.NewReader(files(t, path), 0)
	if err != nil {
		t.Fatal(err)
	}
	direct, end := sum(t, r)
	if r.Timeline() != 2 {
		t.Errorf("it ends on timeline %d", r.Timeline())
	}
	if d := same(&join(t, path, size, end).Blocks, direct); d != "" {
		t.Error(d)
	}
}
