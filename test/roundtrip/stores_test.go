package roundtrip_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/instance"
	"holdfast/internal/store"
	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

// roof is what no command may take of memory, in bytes, whatever the store.
const roof = 256 << 20

// bank are pgbench's tables, and those of this test.
var bank = []string{"pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", "noise", "keepsake"}

// sums returns a checksum over the rows of each table, whatever their order.
func sums(t *testing.T, c *pgtest.Cluster) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, table := range bank {
		m[table] = c.Value(t, `select count(*) || ' rows, ' || coalesce(sum(hashtextextended(r::text, 0)::numeric), 0) from `+table+` r`)
	}
	return m
}

// commit makes a last transaction and returns its number.
func commit(t *testing.T, s *site.Site) (xid string) {
	t.Helper()
	err := s.Conn(t).QueryRow(t.Context(), `with k as (insert into keepsake values (0, 'the last one') returning 1) select txid_current()::text from k`).Scan(&xid)
	if err != nil {
		t.Fatal(err)
	}
	return xid
}

// template makes a data directory with pgbench's tables and some that cannot be compressed, and a directory with segments of its WAL.
func template(t *testing.T, p instance.Programs) (data, segments string) {
	t.Helper()
	c := pgtest.New(t, p, pgtest.Options{Checksums: true, Settings: map[string]string{"max_wal_size": "4GB", "wal_keep_size": "4GB"}})
	if out, err := c.Pgbench(t, "postgres", "-i", "-q", "-s", "8").CombinedOutput(); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	c.Exec(t, `create table noise as select g as id, string_agg(sha512(random()::text::bytea)::text, '') as what
			from generate_series(1, 8000) g, generate_series(1, 50) group by g`, `alter table noise alter what set storage external`,
		`create table keepsake as select g as id, md5(g::text) as what from generate_series(1, 5000) g`)
	const n = 20 // segments, filled
	for c.Value(t, `pg_walfile_name(pg_current_wal_lsn())`) <= fmt.Sprintf("0000000100000000%08X", n) {
		c.Exec(t, `select pg_logical_emit_message(false, '', string_agg(sha512(random()::text::bytea)::text, '')) from generate_series(1, 50000)`)
	}
	c.Stop(t)
	segments = filepath.Join(pgtest.Dir(t), "pg_wal")
	if err := os.MkdirAll(filepath.Join(segments, "archive_status"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		name := fmt.Sprintf("0000000100000000%08X", i+1)
		if err := os.Rename(filepath.Join(c.Data, "pg_wal", name), filepath.Join(segments, name)); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(segments, "archive_status", name+".ready"), "")
	}
	pgtest.Give(t, segments)
	return c.Data, segments
}

// On a store of every kind a cluster under pgbench's load is backed up, and comes back as it was at a recorded commit. No command
// takes more memory than it may.
func TestStores(t *testing.T) {
	p := pgtest.Require(t, 15)
	data, segments := template(t, p)
	places.Each(t, func(t *testing.T, at places.Place) {
		s := site.At(t, p, pgtest.Options{Copy: data}, at.Store, at.Env...)
		peaks := map[string]int64{}
		begun := time.Now()
		bounded := func(r site.Result, command string) site.Result {
			t.Helper()
			if r.Status != 0 {
				t.Fatalf("%s: exit status %d\n%s", command, r.Status, r.Stderr)
			}
			if peaks[command] = r.Peak; r.Peak == 0 || r.Peak > roof {
				t.Errorf("%s took %d MiB of memory", command, r.Peak>>20)
			}
			return r
		}
		work := func(during func()) {
			load := s.Pgbench(t, "postgres", "-n", "-c", "2", "-t", "1000000")
			before := s.Value(t, `select count(*) from pgbench_history`)
			if err := load.Start(); err != nil {
				t.Fatal(err)
			}
			pgtest.Eventually(t, "pgbench has begun", func() bool { return s.Value(t, `select count(*) from pgbench_history`) != before })
			during()
			if err := load.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			_ = load.Wait() // interrupted
			pgtest.Eventually(t, "pgbench is gone", func() bool {
				return s.Value(t, `select count(*) from pg_stat_activity where application_name = 'pgbench'`) == "0"
			})
		}
		work(func() { bounded(s.Do(t, "backup-push", s.Data), "backup-push") })
		commit := commit(t, s)
		want := sums(t, s.Cluster)
		s.Exec(t, `delete from keepsake where id > 100`)
		work(func() {})
		s.Exec(t, `drop table keepsake`)
		s.Switch(t)

		dir := filepath.Join(pgtest.Dir(t), "data")
		bounded(s.Do(t, "backup-fetch", dir, "--target-xid", commit, "--target-action", "promote"), "backup-fetch")
		c := s.Open(t, dir)
		site.AwaitRecovery(t, c)
		for table, got := range sums(t, c) {
			if got != want[table] {
				t.Errorf("%s came back as %s, was %s", table, got, want[table])
			}
		}
		c.Server.Kill()
		if names := s.Backups(t); len(names) != 1 {
			t.Errorf("backups: %v", names)
		}

		bounded(walPush(t, s, segments), "wal-push")
		t.Logf("ran in %.1f s; peak RSS in MiB at most: backup-push %d, wal-push %d, backup-fetch %d", time.Since(begun).Seconds(),
			peaks["backup-push"]>>20, peaks["wal-push"]>>20, peaks["backup-fetch"]>>20)
	})
}

// walPush pushes all segments of a directory by one call, into an archive of their own in the same store.
func walPush(t *testing.T, s *site.Site, segments string) site.Result {
	t.Helper()
	dir := filepath.Join(pgtest.Dir(t), "pg_wal")
	if out, err := pgtest.Command(t, "cp", "-a", "--reflink=auto", segments, dir).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	names, err := filepath.Glob(filepath.Join(dir, "0*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	here := s.Command(t, "st", "put", names[0], "further/here") // a directory must exist
	if r := site.Run(t, here); r.Status != 0 {
		t.Fatalf("st put: exit status %d\n%s", r.Status, r.Stderr)
	}
	push := s.Command(t, "wal-push", names[0])
	push.Env = append(push.Env, "WALG_STORAGE_PREFIX=further")
	r := site.Run(t, push)
	var stored int
	for o, err := range store.Walk(t.Context(), s.Store, "further/wal_005/") {
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(o.Name, "further/wal_005/0000") {
			stored++
		}
	}
	if stored != len(names) {
		t.Errorf("%d segments were stored of %d\n%s", stored, len(names), r.Stderr)
	}
	return r
}
