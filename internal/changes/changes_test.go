package changes_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/changes"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/file"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// size is that of the segments of all clusters here: small ones, so that many records span two of them.
const size = wal.MinSegmentSize

// A primary archives with wal-push, which stores summaries.
type primary struct {
	*site.Site
	conn *server.Conn
}

func newPrimary(t *testing.T, major int, env ...string) *primary {
	t.Helper()
	settings := map[string]string{"autovacuum": "off", "checkpoint_timeout": "1h", "max_wal_size": "4GB"}
	if major >= 17 {
		settings["summarize_wal"] = "on"
	}
	s := site.New(t, pgtest.Require(t, major), pgtest.Options{SegmentSize: size, Settings: settings, Env: append([]string{"HOLDFAST_WAL_SUMMARIES=on"}, env...)})
	s.Exec(t, `create table kept as select g as id, md5(g::text) as what from generate_series(1, 20000) g`, `create index on kept (id)`)
	p := &primary{Site: s}
	p.connect(t)
	return p
}

func (p *primary) connect(t *testing.T) {
	t.Helper()
	conn, err := server.Connect(t.Context(), p.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p.conn = conn
}

// backup starts and stops a backup and returns where it started.
func (p *primary) backup(t *testing.T) wal.LSN {
	t.Helper()
	start, err := p.conn.StartBackup(t.Context(), "test", true)
	if err == nil {
		_, err = p.conn.StopBackup(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return start.LSN
}

// work changes what there is in many ways, and writes records longer than segments.
func (p *primary) work(t *testing.T) {
	t.Helper()
	p.Exec(t,
		`update kept set what = 'changed' where id % 50 = 0`,
		`create table made as select g as id, repeat('x', 200) as what from generate_series(1, 10000) g`,
		`select pg_logical_emit_message(false, 'test', repeat('m', 3500000))`,
		`delete from made where id > 2000`, `vacuum made`,
		`insert into made select g, repeat('y', 300) from generate_series(1, 1000) g`,
		`create table gone as select g as id from generate_series(1, 10000) g`, `drop table gone`,
		`create unlogged table unlogged as select g as id from generate_series(1, 1000) g`, `alter table unlogged set logged`,
		`vacuum full made`,
		`create database copied`,
		`checkpoint`,
		`update kept set what = 'again' where id < 5000`,
	)
	p.Exec(t, `drop table made`, `drop table unlogged`, `drop database copied`)
}

// all ends the segment and waits until the archive has everything.
func (p *primary) all(t *testing.T) {
	t.Helper()
	p.Switch(t)
	pgtest.Eventually(t, "all WAL is archived", func() bool {
		waiting, err := filepath.Glob(filepath.Join(p.Data, "pg_wal/archive_status/*.ready"))
		return err == nil && len(waiting) == 0
	})
}

// open opens the archive.
func (p *primary) open(t *testing.T) *archive.Archive {
	t.Helper()
	s, err := file.Open(p.Root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return archive.New(s, archive.Options{})
}

// copied returns the archive's WAL and summaries in memory.
func (p *primary) copied(t *testing.T) *storetest.Memory {
	t.Helper()
	m := &storetest.Memory{}
	a := p.open(t)
	for o, err := range store.Walk(t.Context(), a.Store(), "") {
		if err != nil {
			t.Fatal(err)
		}
		b, err := store.ReadFile(t.Context(), a.Store(), o.Name, 1<<30)
		if err == nil {
			err = m.Put(t.Context(), o.Name, strings.NewReader(string(b)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// stretch is the WAL between two positions of a timeline that has none before it.
func stretch(from, to wal.LSN) changes.Stretch {
	return changes.Stretch{From: from, To: to, Path: catalog.Path{{Timeline: 1}}, SegmentSize: size}
}

// covers fails the test where a page of the data directory changed since from and set does not say so.
func covers(t *testing.T, set *blockset.Set, data string, from, to wal.LSN) {
	t.Helper()
	pages, changed := 0, 0
	for _, dir := range []string{"base", "global"} {
		err := filepath.WalkDir(filepath.Join(data, dir), func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			number, err := strconv.ParseUint(e.Name(), 10, 32)
			if err != nil { // no main fork; none has a second gigabyte
				return nil
			}
			r := blockset.Relation{Tablespace: 1664, Number: uint32(number)}
			if dir == "base" {
				db, err := strconv.ParseUint(filepath.Base(filepath.Dir(path)), 10, 32)
				if err != nil {
					return err
				}
				r.Tablespace, r.Database = 1663, uint32(db)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			blocks, limit, _ := set.Get(blockset.Key{Relation: r})
			for i := range uint32(len(b) / page.Size) {
				h, err := page.ReadHeader(b[i*page.Size:])
				if err != nil {
					return err
				}
				pages++
				if h.LSN < from || h.LSN >= to {
					continue
				}
				changed++
				if !set.Whole(r) && i < limit && (blocks == nil || !blocks.Contains(i)) {
					t.Errorf("block %d of %s changed at %s and is not in the set", i, r, h.LSN)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if changed == 0 || changed == pages {
		t.Errorf("%d of %d pages changed", changed, pages)
	}
	t.Logf("%d of %d pages changed; %d blocks of %d forks are in the set", changed, pages, set.Blocks(), set.Len())
}

// agree fails the test unless ours and the server's set are the same. Blocks behind a limit the server may list that were cut off again.
func agree(t *testing.T, ours, servers *blockset.Set) {
	t.Helper()
	for k, want := range servers.All() {
		blocks, limit, ok := ours.Get(k)
		if !ok || limit != want.Limit {
			t.Errorf("%s: %v, limit %d, want %d", k, ok, limit, want.Limit)
			continue
		}
		below := want.Blocks.Clone()
		if limit != blockset.NoLimit {
			below.RemoveRange(uint64(limit), 1<<32)
		}
		mine := blocks.Clone()
		if mine.AndNot(want.Blocks); !mine.IsEmpty() {
			t.Errorf("%s: the server does not list %v", k, mine)
		}
		if below.AndNot(blocks); !below.IsEmpty() {
			t.Errorf("%s: %v are missing", k, below)
		}
	}
	if ours.Len() != servers.Len() {
		t.Errorf("%d forks, the server lists %d", ours.Len(), servers.Len())
	}
}

// same fails the test unless two sets are equal.
func same(t *testing.T, what string, got, want *blockset.Set) {
	t.Helper()
	for k, w := range want.All() {
		if blocks, limit, ok := got.Get(k); !ok || limit != w.Limit || !blocks.Equals(w.Blocks) {
			t.Errorf("%s: %s: %v, limit %d, blocks %v, want %d, %v", what, k, ok, limit, blocks, w.Limit, w.Blocks)
		}
	}
	if got.Len() != want.Len() {
		t.Errorf("%s: %d forks, want %d", what, got.Len(), want.Len())
	}
}

// The archive tells of every page that changed, and all that a server of 17 and later says in its own summaries.
func TestArchiveTellsAll(t *testing.T) {
	for _, major := range []int{13, 15, 17, 18} {
		t.Run(fmt.Sprintf("PG%d", major), func(t *testing.T) {
			p := newPrimary(t, major)
			from := p.backup(t)
			p.work(t)
			to := p.backup(t)
			s, o := stretch(from, to), changes.Options{}
			origin := changes.Origin{Server: p.conn, DataDir: p.Data, Archive: p.open(t)}
			got, err := changes.FromArchive(t.Context(), origin, s, o)
			if err != nil {
				t.Fatal(err)
			}
			if got.Source != changes.Archive || len(got.Notes) != 0 || got.Read == 0 {
				t.Errorf("source %s, %d bytes read, notes %q", got.Source, got.Read, got.Notes)
			}
			covers(t, got.Blocks, p.Data, from, to)

			theirs, err := changes.FromServer(t.Context(), origin, s, o)
			if major < 17 {
				if !errors.Is(err, server.ErrNoSummaries) {
					t.Errorf("the server's summaries: %v", err)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				if theirs.Source != changes.Server || theirs.Read == 0 {
					t.Errorf("source %s, %d bytes read", theirs.Source, theirs.Read)
				}
				covers(t, theirs.Blocks, p.Data, from, to)
				agree(t, got.Blocks, theirs.Blocks)
			}

			// The better source is taken, and why it was not.
			chosen, refused, err := changes.Choose(t.Context(), origin, s, o)
			switch {
			case err != nil:
				t.Error(err)
			case major >= 17 && (chosen.Source != changes.Server || len(refused) != 0):
				t.Errorf("chose %s, refused %v", chosen.Source, refused)
			case major < 17 && (chosen.Source != changes.Archive || len(refused) != 1 || refused[0].Source != changes.Server || refused[0].Err == nil):
				t.Errorf("chose %s, refused %v", chosen.Source, refused)
			}

			// Once all is archived nobody needs the data directory, and the segments are not read.
			p.all(t)
			again, err := changes.FromArchive(t.Context(), changes.Origin{Archive: origin.Archive}, s, o)
			if err != nil {
				t.Fatal(err)
			}
			if again.Segments != 0 {
				t.Errorf("%d segments were read", again.Segments)
			}
			covers(t, again.Blocks, p.Data, from, to)
			if major >= 17 {
				agree(t, again.Blocks, theirs.Blocks)
			}
			t.Logf("%d segments, %d bytes of summaries", size.Segment(to)-size.Segment(from), again.Read)
		})
	}
}

// What another program pushed has no summaries: the segments are read, from pg_wal or from the archive, and summaries left for the next time.
func TestSegmentsOfOthers(t *testing.T) {
	p := newPrimary(t, 15, "HOLDFAST_WAL_SUMMARIES=off")
	from := p.backup(t)
	p.work(t)
	to := p.backup(t)
	s := stretch(from, to)
	p.all(t)
	a := p.open(t)
	summaries := func() (n int) {
		for _, name := range p.Objects(t) {
			if strings.HasPrefix(name, archive.SummaryDir) {
				n++
			}
		}
		return n
	}
	if n := summaries(); n != 0 {
		t.Fatalf("%d summaries although they are off", n)
	}
	remote := changes.Origin{Archive: a}
	first, err := changes.FromArchive(t.Context(), remote, s, changes.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	covers(t, first.Blocks, p.Data, from, to)
	if n := summaries(); n != 0 || first.Segments == 0 || first.Read != int64(first.Segments)*int64(size) {
		t.Errorf("%d segments read, %d bytes; %d summaries stored by one who only reads", first.Segments, first.Read, n)
	}
	local, err := changes.FromArchive(t.Context(), changes.Origin{Archive: a, DataDir: p.Data}, s, changes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	covers(t, local.Blocks, p.Data, from, to)
	second, err := changes.FromArchive(t.Context(), remote, s, changes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the second time", second.Blocks, first.Blocks)
	third, err := changes.FromArchive(t.Context(), remote, s, changes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the third time", third.Blocks, first.Blocks)
	if n := summaries(); third.Segments != 0 || n != first.Segments {
		t.Errorf("%d segments were read again; %d summaries are there, want %d", third.Segments, n, first.Segments)
	}
}

// summaryOf is the object with a segment's summary, walOf that with the segment.
func summaryOf(name string) string { return archive.SummaryDir + name[:8] + "/" + name + ".zst" }
func walOf(name string) string     { return archive.WALDir + name + ".zst" }

// Where not all is known the error names the segment; what is only spoilt is made again.
func TestGapsAndDamage(t *testing.T) {
	p := newPrimary(t, 15)
	from := p.backup(t)
	p.work(t)
	to := p.backup(t)
	p.all(t)
	s := stretch(from, to)
	m := p.copied(t)
	whole, err := changes.FromArchive(t.Context(), changes.Origin{Archive: archive.New(m, archive.Options{})}, s, changes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	middle := size.Segment(from) + (size.Segment(to)-size.Segment(from))/2
	name, other := size.Name(1, middle), size.Name(1, middle+1)
	get := func(object string) []byte {
		b, err := store.ReadFile(t.Context(), m, object, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	put := func(object string, b []byte) {
		if err := m.Put(t.Context(), object, strings.NewReader(string(b))); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(object string) {
		if err := m.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	segment, summary := get(walOf(name)), get(summaryOf(name))
	ask := func(o changes.Options) (*changes.Result, error) {
		o.Patience = time.Millisecond
		return changes.FromArchive(t.Context(), changes.Origin{Archive: archive.New(m, archive.Options{})}, s, o)
	}

	remove(summaryOf(name))
	remove(walOf(name))
	if _, err := ask(changes.Options{}); err == nil || !strings.Contains(err.Error(), name+" is not archived") {
		t.Errorf("a hole: %v", err)
	}
	put(walOf(name), get(walOf(other)))
	if _, err := ask(changes.Options{}); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("another segment under its name: %v", err)
	}
	raw := slices.Clone(segment)
	raw[len(raw)/2] ^= 1
	put(walOf(name), raw)
	if _, err := ask(changes.Options{}); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("a damaged segment: %v", err)
	}

	put(walOf(name), segment)
	for what, spoilt := range map[string][]byte{
		"another summary under its name": get(summaryOf(other)), "half a summary": summary[:len(summary)/2], "nothing": nil,
		"a segment in the place of its summary": segment,
	} {
		put(summaryOf(name), spoilt)
		got, err := ask(changes.Options{})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		same(t, what, got.Blocks, whole.Blocks)
		if got.Segments != 1 || len(got.Notes) != 1 || !strings.Contains(got.Notes[0], name) {
			t.Errorf("%s: %d segments read, notes %q", what, got.Segments, got.Notes)
		}
		if got, err := ask(changes.Options{}); err != nil || got.Segments != 0 {
			t.Errorf("%s: it was not made again: %v", what, err)
		}
	}

	s.System = 42
	if _, err := ask(changes.Options{}); err == nil || !strings.Contains(err.Error(), "of cluster") {
		t.Errorf("another cluster's WAL: %v", err)
	}
}

// A file of pg_wal is believed only where it is whole and what its name says; else the archived segment is read.
func TestSpoiltFilesOfTheServer(t *testing.T) {
	p := newPrimary(t, 15, "HOLDFAST_WAL_SUMMARIES=off")
	from := p.backup(t)
	p.work(t)
	to := p.backup(t)
	p.all(t)
	s := stretch(from, to)
	m := p.copied(t)
	whole, err := changes.FromArchive(t.Context(), changes.Origin{Archive: archive.New(m, archive.Options{})}, s, changes.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	no := size.Segment(from) + 2
	name := size.Name(1, no)
	content := func(name string) []byte {
		r, err := archive.New(m, archive.Options{}).OpenWAL(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := content(name)
	flipped := slices.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for what, spoilt := range map[string][]byte{
		"cut at a page": good[:len(good)/2], "cut within a page": good[:len(good)/2+100], "empty": nil, "flipped": flipped,
		"recycled": content(size.Name(1, no+1)), "being recycled": slices.Concat(content(size.Name(1, no+1))[:len(good)/2], good[len(good)/2:]),
		"zeros at its end": slices.Concat(good[:len(good)/2], make([]byte, len(good)/2)),
	} {
		data := t.TempDir()
		if err := os.Mkdir(filepath.Join(data, "pg_wal"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, "pg_wal", name), spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		origin := changes.Origin{DataDir: data, Archive: archive.New(m, archive.Options{})}
		got, err := changes.FromArchive(t.Context(), origin, s, changes.Options{ReadOnly: true})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		same(t, what, got.Blocks, whole.Blocks)
		if len(got.Notes) != 1 || !strings.Contains(got.Notes[0], name+" in pg_wal") {
			t.Errorf("%s: notes %q", what, got.Notes)
		}
	}
}

// Whichever call of the store fails, the answer is an error or the right one.
func TestFailingStore(t *testing.T) {
	p := newPrimary(t, 15)
	from := p.backup(t)
	p.Exec(t, `update kept set what = 'changed'`)
	to := p.backup(t)
	p.all(t)
	s := stretch(from, to)
	complete := p.copied(t)
	want, err := changes.FromArchive(t.Context(), changes.Origin{Archive: archive.New(complete, archive.Options{})}, s, changes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for what, fail := range map[string]func(store.Store, int) *storetest.Flaky{
		"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter,
	} {
		failed := 0
		for n := 0; ; n++ {
			m := p.copied(t)
			for i := size.Segment(from); i < size.Segment(to); i += 2 { // every other one is computed and stored
				if err := m.Delete(t.Context(), summaryOf(size.Name(1, i))); err != nil {
					t.Fatal(err)
				}
			}
			flaky := fail(m, n)
			got, err := changes.FromArchive(t.Context(), changes.Origin{Archive: archive.New(flaky, archive.Options{})}, s, changes.Options{})
			if !flaky.Reached() {
				t.Logf("%s: %d of %d calls that failed made it fail", what, failed, n)
				break
			}
			if err != nil {
				failed++
				if !errors.Is(err, storetest.ErrInjected) {
					t.Errorf("call %d failed %s: %v", n, what, err)
				}
				continue
			}
			same(t, fmt.Sprintf("call %d failed %s", n, what), got.Blocks, want.Blocks)
		}
	}
}

// The timeline in which a backup starts may be another than that of the one before.
func TestAcrossPromotions(t *testing.T) {
	for _, major := range []int{13, 15, 17} {
		t.Run(fmt.Sprintf("PG%d", major), func(t *testing.T) {
			p := newPrimary(t, major)
			from := p.backup(t)
			p.work(t)
			settings := map[string]string{"archive_mode": "on", "archive_command": p.Binary + ` wal-push "%p"`, "autovacuum": "off"}
			if major >= 17 {
				settings["summarize_wal"] = "on"
			}
			standby := p.Standby(t, pgtest.Options{Env: append(slices.Clone(p.Env), "HOLDFAST_WAL_SUMMARIES=on"), Settings: settings})
			p.Exec(t, `update kept set what = 'before' where id % 3 = 0`)
			p.all(t)
			p.Exec(t, `update kept set what = 'and after' where id % 7 = 0`) // in the segment in which the timeline ends
			p.CatchUp(t, standby)
			p.Server.Kill()
			here := *p.Site
			here.Cluster = standby
			now := &primary{Site: &here}
			standby.Exec(t, `select pg_promote()`)
			site.AwaitRecovery(t, standby)
			now.connect(t)
			now.Exec(t, `update kept set what = 'on the second timeline' where id % 5 = 0`)
			now.work(t)
			to := now.backup(t)
			a := p.open(t)
			now.Await(t, wal.HistoryName(2))
			c, err := catalog.Load(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			s := stretch(from, to)
			if s.Path, err = c.PathTo(2); err != nil || len(s.Path) != 2 {
				t.Fatal(s.Path, err)
			}
			origin := changes.Origin{Server: now.conn, DataDir: now.Data, Archive: a}
			got, err := changes.FromArchive(t.Context(), origin, s, changes.Options{})
			if err != nil {
				t.Fatal(err)
			}
			covers(t, got.Blocks, now.Data, from, to)
			if major >= 17 {
				// The standby has summaries from where it began, which is later than the primary's backup.
				theirs, err := changes.FromServer(t.Context(), origin, s, changes.Options{Patience: time.Second})
				if err == nil {
					agree(t, got.Blocks, theirs.Blocks)
				}
				begin, err := wal.ParseLSN(now.Value(t, `select max(start_lsn) from pg_available_wal_summaries() where tli = 1`))
				if err != nil {
					t.Fatal(err)
				}
				s.From = begin
				if theirs, err = changes.FromServer(t.Context(), origin, s, changes.Options{}); err != nil {
					t.Fatal(err)
				}
				covers(t, theirs.Blocks, now.Data, begin, to)
				ours, err := changes.FromArchive(t.Context(), origin, s, changes.Options{})
				if err != nil {
					t.Fatal(err)
				}
				for k, want := range theirs.Blocks.All() { // ours begin with their segment, and have more
					if blocks, limit, ok := ours.Blocks.Get(k); !ok || limit > want.Limit || limit == blockset.NoLimit && want.Blocks.AndCardinality(blocks) != want.Blocks.GetCardinality() {
						t.Errorf("%s: limit %d, blocks %v, the server has %d, %v", k, limit, blocks, want.Limit, want.Blocks)
					}
				}
			}
			// Once all is archived the data directory is not needed.
			now.all(t)
			if _, err = changes.FromArchive(t.Context(), changes.Origin{Archive: a}, s, changes.Options{}); err != nil {
				t.Error(err)
			}
			// Along the first timeline alone it does not go there.
			s.Path = catalog.Path{{Timeline: 1}}
			if _, err = changes.FromArchive(t.Context(), changes.Origin{Archive: a}, s, changes.Options{Patience: time.Millisecond}); err == nil {
				t.Error("the first timeline went on")
			}
		})
	}
}

// A server that wrote WAL with wal_level=minimal did not write all that it changed.
func TestMinimalIsRefused(t *testing.T) {
	for _, major := range []int{13, 18} {
		t.Run(fmt.Sprintf("PG%d", major), func(t *testing.T) {
			p := newPrimary(t, major)
			from := p.backup(t)
			p.Stop(t)
			settings := map[string]string{"archive_mode": "off", "wal_level": "minimal", "max_wal_senders": "0", "summarize_wal": "off"}
			if major < 17 {
				delete(settings, "summarize_wal")
			}
			c := pgtest.Attach(t, p.Programs, p.Data, pgtest.Options{Settings: settings})
			c.Exec(t, `begin; create table silent as select generate_series(1, 1000) i; commit`)
			c.Stop(t)
			p.Start(t)
			p.connect(t)
			to := p.backup(t)
			p.all(t)
			origin := changes.Origin{Server: p.conn, DataDir: p.Data, Archive: p.open(t)}
			_, err := changes.FromArchive(t.Context(), origin, stretch(from, to), changes.Options{Patience: time.Millisecond})
			if err == nil || !strings.Contains(err.Error(), "wal_level=minimal") {
				t.Errorf("archive: %v", err)
			}
			_, refused, err := changes.Choose(t.Context(), origin, stretch(from, to), changes.Options{Patience: 100 * time.Millisecond})
			if none := new(changes.NoneError); !errors.As(err, &none) || len(refused) != 2 || len(none.Refusals) != 2 {
				t.Errorf("choose: %v, %v", refused, err)
			}
		})
	}
}

// What is asked for has to make sense; and a context that ends ends the search with its own error.
func TestRefuses(t *testing.T) {
	a := archive.New(&storetest.Memory{}, archive.Options{})
	good := stretch(0x500028, 0x900028)
	for what, spoil := range map[string]func(s *changes.Stretch){
		"no timeline":  func(s *changes.Stretch) { s.Path = nil },
		"nothing":      func(s *changes.Stretch) { s.To = s.From },
		"backwards":    func(s *changes.Stretch) { s.From, s.To = s.To, s.From },
		"from nowhere": func(s *changes.Stretch) { s.From = 0 },
		"odd segments": func(s *changes.Stretch) { s.SegmentSize = 3 << 20 },
		"before the leg": func(s *changes.Stretch) {
			s.Path = catalog.Path{{Timeline: 1, End: 0xA00000}, {Timeline: 2, Begin: 0xA00000}}
		},
		"an empty archive": func(*changes.Stretch) {},
	} {
		s := good
		spoil(&s)
		if got, err := changes.FromArchive(t.Context(), changes.Origin{Archive: a}, s, changes.Options{Patience: time.Millisecond}); err == nil {
			t.Errorf("%s: %v", what, got)
		}
		if got, refused, err := changes.Choose(t.Context(), changes.Origin{}, s, changes.Options{}); got != nil || len(refused) != 2 || err == nil {
			t.Errorf("%s, with no source: %v, %v, %v", what, got, refused, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := changes.Choose(ctx, changes.Origin{Archive: a}, good, changes.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
