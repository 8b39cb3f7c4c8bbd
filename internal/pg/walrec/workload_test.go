package walrec_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
)

// keepWAL are settings under which a server removes no WAL and can do all that the workload asks.
func keepWAL(major int) map[string]string {
	s := map[string]string{
		"wal_level": "logical", "max_prepared_transactions": "10", "track_commit_timestamp": "on", "max_wal_size": "10GB",
		"checkpoint_timeout": "1h", "autovacuum": "off", "max_replication_slots": "4", "wal_keep_segments": "10000",
	}
	if major >= 13 {
		delete(s, "wal_keep_segments")
		s["wal_keep_size"] = "50GB"
	}
	if major >= 17 {
		s["summarize_wal"] = "on"
	}
	return s
}

// workload makes the server write WAL of all kinds, much as PostgreSQL's own regression tests do. It crashes and restarts the server
// on the way.
func workload(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	major := c.Programs.Major
	space := func(name string) string {
		dir := filepath.Join(c.Dir, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, dir)
		return fmt.Sprintf("create tablespace %s location '%s'", name, dir)
	}
	run := func(script string) {
		t.Helper()
		for _, s := range strings.Split(script, ";;") {
			if s = strings.TrimSpace(s); s != "" {
				c.Exec(t, s)
			}
		}
	}
	c.Exec(t, space("spa"), space("spb"))
	run(`
		create table h (id serial primary key, k int, v text, p point, b box, a int[], doc tsvector);;
		create index h_hash on h using hash (k);;
		create index h_gin on h using gin (a) with (fastupdate = on);;
		create index h_gin2 on h using gin (doc) with (fastupdate = off);;
		create index h_gist on h using gist (b);;
		create index h_spgist on h using spgist (p);;
		create index h_spgist_text on h using spgist (v);;
		create index h_brin on h using brin (k) with (pages_per_range = 2, autosummarize = on);;
		insert into h (k, v, p, b, a, doc) select i, md5(i::text), point(i % 97, i), box(point(i, i), point(i + 3, i % 50)), array[i % 10, i % 100, i],
			to_tsvector('simple', md5(i::text) || ' ' || (i % 50)) from generate_series(1, 8000) i;;
		update h set v = v || 'x', k = k + 1 where id % 3 = 0;;
		delete from h where id % 5 = 0;;
		select count(*) from h where k > 0;;
		vacuum h;;
		select brin_summarize_new_values('h_brin');;
		insert into h (k, v, p, b, a, doc) select i, md5(i::text), point(i, i % 31), box(point(i, i), point(i, i)), array[i], to_tsvector('simple', 'a' || i)
			from generate_series(1, 4000) i;;
		delete from h where k > 3000;;
		vacuum (freeze) h;;
		reindex table h;;
		cluster h using h_pkey;;
		vacuum full pg_class;;
		vacuum full h;;

		create table toasted (id int, t text);;
		alter table toasted alter t set storage external;;
		insert into toasted select i, repeat(md5(i::text), 400) from generate_series(1, 200) i;;
		update toasted set t = t || 'y' where id % 2 = 0;;
		delete from toasted where id % 3 = 0;;
		vacuum toasted;;

		create sequence s cache 1;;
		select nextval('s') from generate_series(1, 100);;
		alter sequence s restart 5;;
		select setval('s', 1000);;

		begin; create table gone (i int); insert into gone select generate_series(1, 5000); rollback;;
		begin; truncate toasted; insert into toasted select i, 'short' from generate_series(1, 100) i; commit;;
		truncate toasted;;
		create table cut (i int, filler text);;
		insert into cut select i, repeat('z', 500) from generate_series(1, 2000) i;;
		delete from cut where i > 300;;
		vacuum cut;;
		insert into cut select i, repeat('y', 500) from generate_series(1, 1000) i;;
		drop table cut;;

		create unlogged table u (i int primary key, t text);;
		insert into u select i, md5(i::text) from generate_series(1, 3000) i;;
		alter table u set logged;;
		update u set t = 'logged';;
		alter table u set unlogged;;
		create temporary table tmp as select generate_series(1, 100);;

		create table moved (i int primary key, t text) tablespace spa;;
		insert into moved select i, md5(i::text) from generate_series(1, 3000) i;;
		alter table moved set tablespace spb;;
		alter table moved set tablespace pg_default;;
		alter index moved_pkey set tablespace spa;;

		begin; savepoint a; insert into moved values (10001, 'sub'); savepoint b; insert into moved values (10002, 'subsub');
			rollback to savepoint b; insert into moved values (10003, 'after'); release savepoint a; commit;;
		do $$ begin for i in 1..100 loop begin insert into moved values (20000 + i, 'x'); if i % 7 = 0 then raise exception 'no'; end if;
			exception when raise_exception then null; end; end loop; end $$;;
		create temporary table burnt (i int);
		do $$ begin for i in 1..33000 loop begin insert into burnt values (i); exception when raise_exception then null; end;
			end loop; end $$;;
		begin; select * from moved where i < 30 for share; savepoint a; update moved set t = 'shared' where i < 30; commit;;
		begin; create table twophase as select generate_series(1, 1000) i; prepare transaction 'one';;
		begin; drop table u; create table other (i int); prepare transaction 'two';;
		checkpoint;;
		commit prepared 'one';;
		rollback prepared 'two';;
		begin; drop table twophase; prepare transaction 'three';;
		commit prepared 'three';;
		begin; select * from moved where i < 10 for update; select * from moved where i < 20 for share; update moved set t = 'locked' where i < 5; commit;;

		select pg_logical_emit_message(true, 'prefix', 'transactional');;
		select pg_logical_emit_message(false, 'prefix', repeat('m', 5000000));;
		select pg_create_restore_point('a point');;
		select pg_replication_origin_create('origin');;
		select pg_replication_origin_session_setup('origin'); insert into moved values (30001, 'origin'); select pg_replication_origin_session_reset();;
		select pg_replication_origin_drop('origin');;
		create table many (i int);;
		begin; alter table many add j int default 5; create index on many (j); analyze many; commit;;
		comment on table many is 'commented';;
		create materialized view mv as select * from moved;;
		refresh materialized view mv;;
		create database plain;;
		create database spaced tablespace spb;;
		alter database spaced set tablespace spa;;
		drop database spaced;;
		select pg_switch_wal();;
	`)
	if major >= 15 {
		run(`create database copied strategy file_copy;;
			create database logged strategy wal_log tablespace spa;;
			drop database logged;;`)
	}
	compressions := []string{"off", "on"}
	if major >= 15 { // which know lz4 and zstd, if built with them
		compressions = strings.Fields(c.Value(t, "select array_to_string(enumvals, ' ') from pg_settings where name = 'wal_compression'"))
	}
	for _, method := range compressions {
		run(fmt.Sprintf(`alter system set wal_compression = '%s';; select pg_reload_conf();; checkpoint;;
			set wal_compression = '%[1]s'; update h set k = k + 1; insert into h (k, v) select i, repeat('a', 100) from generate_series(1, 500) i;;`, method))
	}
	run(`alter system reset wal_compression;; select pg_reload_conf();;`)

	// Two clients at once, so that records of different transactions alternate.
	load := c.StartLoad(t, 2)
	pgtest.Eventually(t, "500 transactions", func() bool { return load.Committed() > 500 })
	c.Exec(t, "checkpoint", "alter system set wal_consistency_checking = 'all'", "select pg_reload_conf()")
	n := load.Committed()
	pgtest.Eventually(t, "500 transactions more", func() bool { return load.Committed() > n+500 })
	c.Server.Kill()
	load.Stop() // its error is that the server died
	c.Start(t)
	c.Exec(t, "alter system reset wal_consistency_checking", "select pg_reload_conf()")
	run(`insert into h (k, v) select i, 'after the crash' from generate_series(1, 1000) i;; drop table many cascade;; vacuum;; checkpoint;;`)
}

// segments returns the paths of the WAL files of a data directory, in order, and their size.
func segments(t testing.TB, c *pgtest.Cluster) ([]string, wal.SegmentSize) {
	t.Helper()
	dir := filepath.Join(c.Data, "pg_wal")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, e := range entries {
		if wal.IsSegment(e.Name()) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(paths)
	if len(paths) == 0 {
		t.Fatal("no WAL")
	}
	info, err := os.Stat(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	return paths, wal.SegmentSize(info.Size())
}
