package backup_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/catalog"
	"holdfast/internal/crypt"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// walGs makes a backup one that WAL-G could have made: without what is ours.
func (c *chain) walGs(t *testing.T, name string) {
	t.Helper()
	for o, err := range store.Walk(t.Context(), c.store, archive.Folder(name)) {
		if err != nil {
			t.Fatal(err)
		}
		if base := path.Base(o.Name); base == "manifest.json.zst" || strings.Contains(o.Name, "/page_sums/") {
			if err := c.store.Delete(t.Context(), o.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.rewrite(t, archive.BackupDir+name+"_backup_stop_sentinel.json", func(doc map[string]any) {
		for key := range doc {
			if strings.HasPrefix(key, "Holdfast") {
				delete(doc, key)
			}
		}
	})
}

// rewrite changes a JSON document in the archive.
func (c *chain) rewrite(t *testing.T, object string, change func(doc map[string]any)) {
	t.Helper()
	b, err := store.ReadFile(t.Context(), c.store, object, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	doc := map[string]any{}
	if err := d.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	change(doc)
	if b, err = json.Marshal(doc); err != nil {
		t.Fatal(err)
	}
	if err := c.store.Put(t.Context(), object, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
}

// A delta builds on a backup of WAL-G, of which names and times of files are known and nothing else.
func TestDeltaOnWALGs(t *testing.T) {
	for _, source := range []backup.Source{backup.PageLSN, backup.WALArchive} {
		t.Run(string(source), func(t *testing.T) {
			t.Parallel()
			c := newChain(t, 15)
			c.Exec(t, "create table t as select i, repeat('x', 200) p from generate_series(1, 20000) i", "create table still as select generate_series(1, 5000) i", "vacuum")
			full := c.push(t, source, nil)
			c.walGs(t, full.Name)
			for i := range 2 { // the second one builds on ours
				c.Exec(t, "update t set p = 'y' where i = 77", "insert into t select i, repeat('z', 200) from generate_series(1, 2000) i", "delete from t where i > 15000", "vacuum t")
				c.extend(t, "still", 2)
				r := c.push(t, source, nil)
				if r.Delta == nil || r.Delta.Count != i+1 || r.Delta.Incremental == 0 {
					t.Fatalf("delta %d: %+v", i, r.Delta)
				}
				c.same(t, "on WAL-G's")
			}
		})
	}
}

// A host that can encrypt and not decrypt knows of its own backups what WAL-G's list says, which is not encrypted.
func TestDeltaOfAHostThatCannotRead(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := func(o crypt.AgeKeys) crypt.Key {
		k, err := crypt.Open(t.Context(), crypt.Options{Age: o})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	c := newChain(t, 17)
	writer := archive.New(c.store, archive.Options{WriteOnly: true, Key: key(crypt.AgeKeys{Recipients: id.Recipient().String()})})
	reader := archive.New(c.store, archive.Options{Key: key(crypt.AgeKeys{Recipients: id.Recipient().String(), Identities: id.String()})})
	c.archive = writer
	c.Exec(t, "create table t as select i, repeat('x', 200) p from generate_series(1, 20000) i", "vacuum")
	c.push(t, backup.Summaries, nil)
	c.Exec(t, "update t set p = 'y' where i = 77", "create table new as select 1", "insert into t select i, repeat('z', 200) from generate_series(1, 2000) i")
	c.extend(t, "t", 3)
	if r := c.push(t, backup.Summaries, nil); r.Delta == nil || r.Delta.Pages == 0 || r.Delta.Pages > 1000 {
		t.Fatalf("%+v", r.Delta)
	}
	c.archive = reader
	c.same(t, "read elsewhere")
}

// extend makes a relation's file longer by new pages, of which the WAL says nothing, as a server does that dies before it uses them.
func (c *chain) extend(t *testing.T, relation string, pages int64) {
	t.Helper()
	name := filepath.Join(c.Data, c.Value(t, "pg_relation_filepath('"+relation+"')"))
	info, err := os.Stat(name)
	if err == nil {
		err = os.Truncate(name, info.Size()+pages*page.Size)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What is not what it was is not built on: a parent whose manifest was replaced, and one that was replaced itself after it was built on.
func TestParentsThatWereReplaced(t *testing.T) {
	c := newChain(t, 15)
	full := c.push(t, backup.PageLSN, nil)
	first := c.push(t, backup.PageLSN, nil)
	c.rewrite(t, archive.BackupDir+first.Name+"_backup_stop_sentinel.json", func(doc map[string]any) {
		doc["HoldfastManifest"] = strings.Repeat("0", 64)
	})
	if r := c.push(t, backup.PageLSN, nil); r.Delta != nil || !strings.Contains(c.log.String(), "is not the one it was made with") {
		t.Errorf("built on %+v\n%s", r.Delta, c.log)
	}
	_, err := c.try(t, backup.PageLSN, func(o *backup.Options) { o.Delta.Name = first.Name })
	if err == nil || !strings.Contains(err.Error(), "is not the one it was made with") {
		t.Errorf("asked to build on it: %v", err)
	}
	second, err := c.try(t, backup.PageLSN, func(o *backup.Options) { o.Delta.Name = full.Name })
	if err != nil {
		t.Fatal(err)
	}
	c.rewrite(t, archive.BackupDir+full.Name+"_backup_stop_sentinel.json", func(doc map[string]any) { doc["Hostname"] = "another" })
	cat, err := catalog.Load(t.Context(), c.archive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cat.Choose(second.Name, catalog.Target{}); err == nil || !strings.Contains(err.Error(), "it was replaced since") {
		t.Errorf("a delta on what was replaced is restored: %v", err)
	}
	if _, err := c.try(t, backup.PageLSN, func(o *backup.Options) { o.Delta.Name = second.Name }); err == nil || !strings.Contains(err.Error(), "it was replaced since") {
		t.Errorf("built on a delta on what was replaced: %v", err)
	}
}

// A page that changed though the WAL does not say so is found, told, and its relation read as a whole.
func TestSamplesFindWhatTheWALDoesNotSay(t *testing.T) {
	c := newChain(t, 17)
	c.Exec(t, "create table t as select i, repeat('x', 200) p from generate_series(1, 20000) i", "create table u as select * from t", "vacuum")
	c.push(t, backup.Summaries, nil)
	from, err := wal.ParseLSN(c.Value(t, "pg_current_wal_lsn()"))
	if err != nil {
		t.Fatal(err)
	}
	c.Exec(t, "update u set p = 'y' where i = 1", "checkpoint")
	name := filepath.Join(c.Data, c.Value(t, "pg_relation_filepath('t')"))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	const block = 123
	p := b[block*page.Size:][:page.Size]
	binary.LittleEndian.PutUint32(p[4:], uint32(from)+8)
	p[page.Size-1] ^= 1
	binary.LittleEndian.PutUint16(p[8:], page.Checksum(p, block))
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r := c.push(t, backup.Summaries, func(o *backup.Options) { o.Delta.Sample = 1 })
	if d := r.Delta; len(d.Missed) != 1 || !strings.Contains(name, strings.TrimSuffix(d.Missed[0], " block 123")) || !strings.Contains(c.log.String(), "level=ERROR") {
		t.Fatalf("%+v\n%s", d, c.log)
	}
	if !strings.Contains(c.log.String(), "block 123 of base/") {
		t.Errorf("%s", c.log)
	}
	c.same(t, "after a miss")
	if r := c.push(t, backup.Summaries, func(o *backup.Options) { o.Delta.Sample = 0 }); r.Delta.Sampled != 0 || len(r.Delta.Missed) > 0 {
		t.Errorf("%+v", r.Delta)
	}
}

// A database that was copied from another one, under the number that another had, brings pages that are older than the parent.
func TestCopiedDatabaseOfAKnownNumber(t *testing.T) {
	for _, source := range sources(17) {
		t.Run(string(source), func(t *testing.T) {
			t.Parallel()
			c := newChain(t, 17)
			c.Exec(t, "create database one oid 40000", "create database two oid 40001 strategy file_copy template one")
			for _, sql := range []string{"create table a as select generate_series(1, 1000) i", "vacuum a"} {
				c.inDatabase(t, "one", sql)
			}
			c.push(t, source, nil)
			c.Exec(t, "drop database two", "create database two oid 40001 strategy file_copy template one")
			c.push(t, source, nil)
			c.same(t, "copied again")
		})
	}
}

// inDatabase runs a statement in a database.
func (c *chain) inDatabase(t *testing.T, database, sql string) {
	t.Helper()
	cfg := c.Conn(t).Config().Copy()
	cfg.Database = database
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// Where reading everything is not allowed a backup that would have to is refused, and leaves nothing.
func TestForce(t *testing.T) {
	c := newChain(t, 15)
	c.push(t, backup.PageLSN, nil)
	hole := c.Value(t, "pg_walfile_name(pg_current_wal_lsn())")
	for range 3 {
		c.Exec(t, "create table t ()", "drop table t", "select pg_switch_wal()")
	}
	c.Exec(t, "checkpoint")
	pgtest.Eventually(t, "the segment is recycled", func() bool {
		c.Exec(t, "checkpoint")
		_, err := os.Stat(filepath.Join(c.Data, "pg_wal", hole))
		return errors.Is(err, os.ErrNotExist)
	})
	auto := func(force bool) func(o *backup.Options) {
		return func(o *backup.Options) { o.Delta.Force, o.Patience = force, time.Second }
	}
	if _, err := c.try(t, backup.Auto, auto(true)); err == nil || !strings.Contains(err.Error(), hole) {
		t.Errorf("got %v, want an error that names %s", err, hole)
	}
	if n := len(names(t, c.store)); n == 0 {
		t.Error("nothing is left at all")
	}
	r := c.push(t, backup.Auto, auto(false))
	if d := r.Delta; d == nil || d.Source != backup.PageLSN || len(d.NotBetter) != 2 || !strings.Contains(d.NotBetter[1], hole) {
		t.Errorf("%+v", d)
	}
	c.same(t, "with a hole")
}

// A standby's backups build on the primary's and the other way round, and go on after a promotion; what the primary went on with alone is
// not built on.
func TestDeltasAcrossAPromotion(t *testing.T) {
	c := newChain(t, 17)
	c.Exec(t, "create table t as select i, repeat('x', 200) p from generate_series(1, 20000) i", "vacuum")
	full := c.push(t, backup.Summaries, nil)
	standby := c.Standby(t, pgtest.Options{Settings: map[string]string{"autovacuum": "off", "summarize_wal": "on"}})
	c.Exec(t, "update t set p = 'y' where i = 1", "checkpoint")
	c.CatchUp(t, standby)
	s := chainOf(standby, c.store)
	s.Exec(t, "checkpoint") // a restartpoint
	one := s.push(t, backup.PageLSN, nil)
	if one.Delta == nil || one.Delta.Parent != full.Name {
		t.Fatalf("%+v", one.Delta)
	}
	s.same(t, "of a standby")
	s.Exec(t, "select pg_promote()")
	c.Exec(t, "update t set p = 'lost' where i = 2")
	lost := c.push(t, backup.PageLSN, nil)
	if lost.Delta == nil || lost.Delta.Parent != one.Name {
		t.Fatalf("%+v", lost.Delta)
	}
	s.Exec(t, "update t set p = 'z' where i = 3")
	two := s.push(t, backup.PageLSN, nil)
	if two.Delta == nil || two.Delta.Parent != one.Name || two.Timeline != 2 {
		t.Fatalf("%+v\n%s", two, s.log)
	}
	s.same(t, "after the promotion")
	if !strings.Contains(s.log.String(), lost.Name+" was finished at") {
		t.Errorf("why %s is passed over is not said:\n%s", lost.Name, s.log)
	}
}

// elsewhere is a store that says in which of several storages objects lie: those of a new backup in to.
type elsewhere struct {
	*storetest.Memory
	in map[string]string // by the name of the backup
	to string
}

// backupOf returns the name of the backup that an object belongs to.
func backupOf(object string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(object, archive.BackupDir), "/")
	return strings.TrimSuffix(name, "_backup_stop_sentinel.json")
}

func (e *elsewhere) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if strings.HasSuffix(name, "/push.json") {
		e.in[backupOf(name)] = e.to
	}
	return e.Memory.PutIfAbsent(ctx, name, r)
}

func (e *elsewhere) Stat(ctx context.Context, name string) (store.Object, error) {
	o, err := e.Memory.Stat(ctx, name)
	o.Storage = e.in[backupOf(name)]
	return o, err
}

func (e *elsewhere) List(ctx context.Context, dir, from string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range e.Memory.List(ctx, dir, from) {
			o.Storage = e.in[backupOf(o.Name)]
			if !yield(o, err) {
				return
			}
		}
	}
}

// Of several storages a delta goes where its parent is, or it is none.
func TestDeltaBesideItsParent(t *testing.T) {
	c := newChain(t, 15)
	e := &elsewhere{Memory: c.store, in: map[string]string{}, to: "a"}
	c.archive = archive.New(e, archive.Options{})
	full := c.push(t, backup.PageLSN, nil)
	if r := c.push(t, backup.PageLSN, nil); r.Delta == nil || r.Delta.Parent != full.Name {
		t.Fatalf("%+v\n%s", r, c.log)
	}
	e.to = "b"
	r := c.push(t, backup.PageLSN, nil)
	if r.Delta != nil || !strings.Contains(r.FullBecause, "is in the storage a, and this backup goes to b") || archive.IsDelta(r.Name) {
		t.Errorf("%+v", r)
	}
	c.same(t, "in another storage")
	e.to = "a"
	if _, err := c.try(t, backup.PageLSN, func(o *backup.Options) { o.Delta.Name = r.Name }); err == nil || !strings.Contains(err.Error(), "is in the storage b") {
		t.Errorf("got %v", err)
	}
	if left := names(t, c.store); len(left) == 0 || strings.Contains(strings.Join(left, " "), "push.json") {
		t.Errorf("left: %q", left)
	}
}

// A file that was being copied while the parent was taken has grown by pages as old as those of the original.
func TestFileThatWasShorter(t *testing.T) {
	c := newChain(t, 15)
	c.Exec(t, "create table t as select i, repeat('x', 200) p from generate_series(1, 20000) i", "vacuum t", "checkpoint")
	name := filepath.Join(c.Data, c.Value(t, "pg_relation_filepath('t')"))
	all, err := os.ReadFile(name)
	if err == nil {
		err = os.Truncate(name, 10*page.Size)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.push(t, backup.PageLSN, nil)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(all[10*page.Size:], 10*page.Size)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if r := c.push(t, backup.PageLSN, nil); r.Delta == nil {
		t.Fatalf("%+v", r)
	}
	c.same(t, "grown by old pages")
}
