// Package increments_test proves that a chain of increments restores to what a full backup does: random workloads on real servers, chains from
// every source of changed blocks, failures in between, and data directories compared page for page.
package increments_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

var (
	firstSeed = flag.Uint64("seed", 1, "seed of the first workload of each major")
	seeds     = flag.Int("seeds", 1, "how many workloads each major has")
)

// steps is how many increments each chain has.
const steps = 5

// chain is a full backup and its increments, of which the changed blocks come from one source.
type chain struct {
	source  string
	names   []string // oldest first
	foreign bool     // a server goes on with it that was not restored from it
}

// sources are what a server of a major can tell changed blocks by.
func sources(major int) []string {
	if major >= 17 {
		return []string{"summaries", "archive", "lsn"}
	}
	return []string{"archive", "lsn"}
}

// A chain of five increments or more, taken while a random workload runs, restores to the data directory that a full backup taken at the same
// point restores to, page for page once both have recovered; PostgreSQL's tools have nothing to say against it; and its tables are those of the
// server. So it is with each source of changed blocks.
//
// `go test ./test/increments -run 'Chain/PG17' -seed 12` is one workload again, `-seeds 50` are fifty.
func TestChainIsFullBackup(t *testing.T) {
	for _, major := range []int{13, 15, 17, 18} {
		t.Run(fmt.Sprintf("PG%d", major), func(t *testing.T) {
			for n := range *seeds {
				seed := *firstSeed + uint64(n)
				t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
					t.Parallel()
					testChains(t, pgtest.Require(t, major), seed)
				})
			}
		})
	}
}

// event is what happens to the cluster between two rounds of backups.
type event int

const (
	nothing  event = iota
	crashed        // the server is killed and starts again
	switched       // a standby restored from the archive is promoted in its place
	unlogged       // it runs with wal_level=minimal for a while
)

func testChains(t *testing.T, p instance.Programs, seed uint64) {
	r := rand.New(rand.NewPCG(seed, uint64(p.Major)))
	w, how := newWorld(t, p, r)
	var chains []*chain
	for _, source := range sources(p.Major) {
		chains = append(chains, &chain{source: source})
	}
	for range 10 {
		w.act()
	}
	full := w.push("--full")
	for _, c := range chains {
		c.names = []string{full.Name}
	}

	// A crash in every workload; one of the others, or none, at a step of its own; the last step has none.
	events := make([]event, steps)
	events[r.IntN(steps-1)] = crashed
	if at := r.IntN(steps - 1); events[at] == nothing {
		events[at] = pick(w, []event{nothing, switched, unlogged})
	}
	for step, e := range events {
		for range 4 + r.IntN(12) {
			w.act()
		}
		switch e {
		case crashed:
			w.crash()
		case switched:
			from := pick(w, chains)
			w.failover(from.last())
			for _, c := range chains {
				c.foreign = c != from
			}
		case unlogged:
			w.minimal()
		}
		for range r.IntN(6) {
			w.act()
		}
		if last := step == steps-1; last {
			break
		}
		for _, c := range chains {
			w.extend(c, true, e)
		}
	}

	// Whoever connects from here on finds nothing to note on the pages of the databases of the workload, and nothing left to note in its own.
	w.sql("postgres", `vacuum`, `checkpoint`)
	for _, c := range chains {
		w.extend(c, false, nothing)
	}
	full = w.push("--full")
	w.site.Switch(t)

	want := w.restore("full", full.Name)
	var copies []*pgtest.Cluster
	for _, c := range chains {
		if deltas := len(c.names) - 1; deltas < steps {
			t.Errorf("the chain from %s has %d increments", c.source, deltas)
		}
		copies = append(copies, w.restore("chain from "+c.source, c.last()))
	}
	for i, c := range chains {
		how := how
		if c.foreign {
			how = noHistory
		}
		same(t, "chain from "+c.source, p.Major, copies[i].Data, want.Data, how)
	}
	tables := contents(t, w.site.Cluster)
	for i, c := range chains {
		copies[i].Start(t)
		w.amcheck("chain from "+c.source, copies[i])
		got, tables := contents(t, copies[i]), tables
		if c.foreign { // see noHistory
			got, tables = withoutSequences(got), withoutSequences(tables)
		}
		if !maps.Equal(got, tables) {
			t.Errorf("chain from %s: %s", c.source, unequal(got, tables))
		}
		copies[i].Stop(t)
	}
	// The directory of a copy that has gone its own way becomes, page by page, what a restore gives.
	for _, c := range chains {
		w.fetchInto(filepath.Dir(want.Data), c.last(), "--delta")
		w.verify("--delta from "+c.source, want.Data)
		if d := differences(t, want.Data, w.fetch(c.last()), exactly); len(d) > 0 {
			t.Errorf("--delta from %s: %d differences from a restore:\n    %s", c.source, len(d), strings.Join(d[:min(len(d), 30)], "\n    "))
		}
	}
	if t.Failed() {
		t.Logf("%s, done: %s", t.Name(), strings.Join(w.done, ", "))
	}
}

func (c *chain) last() string { return c.names[len(c.names)-1] }

// newWorld makes a cluster, the way it is set up being random too, and says how data directories of it are compared.
func newWorld(t *testing.T, p instance.Programs, r *rand.Rand) (w *world, how leniency) {
	t.Helper()
	w = &world{t: t, rand: r, spaces: []string{"pg_default"}}
	on := func(b bool) string {
		if b {
			return "on"
		}
		return "off"
	}
	checksums, hints := r.IntN(2) == 0, r.IntN(3) == 0
	w.server = map[string]string{
		"archive_mode": "on", "archive_command": pgtest.Build(t, "holdfast/cmd/holdfast") + ` wal-push "%p"`,
		"autovacuum": "off", "max_prepared_transactions": "10", "max_wal_size": "64MB", "min_wal_size": "32MB",
		"shared_buffers": pick(w, []string{"2MB", "32MB"}), "wal_log_hints": on(hints), "wal_level": pick(w, []string{"replica", "logical"}),
		"wal_compression": on(r.IntN(2) == 0), "track_commit_timestamp": on(r.IntN(2) == 0), "hot_standby": "on", "maintenance_work_mem": "4MB",
	}
	if p.Major >= 17 {
		w.server["summarize_wal"] = "on"
	}
	size := pick(w, []wal.SegmentSize{1 << 20, 16 << 20})
	summaries := pick(w, []string{"on", "on", "off"})
	t.Logf("PostgreSQL %d: checksums %v, segments of %d MiB, summaries in the archive %s, %v", p.Major, checksums, size>>20, summaries, w.server)

	root := filepath.Join(pgtest.Dir(t), "archive")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, root)
	w.site = site.In(t, p, pgtest.Options{Checksums: checksums, SegmentSize: size, Settings: w.server}, root,
		"WALG_FILE_PREFIX="+root, "WALG_DELTA_MAX_STEPS=100", "HOLDFAST_WAL_SUMMARIES="+summaries)
	for _, space := range []string{"east", "west"} {
		dir := filepath.Join(w.site.Dir, space)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, dir)
		w.sql("postgres", `create tablespace `+space+` location '`+dir+`'`)
		w.spaces = append(w.spaces, space)
	}
	db := &database{name: "work", space: "pg_default"}
	w.sql("postgres", `create database work`)
	w.sql(db.name, prologue...)
	w.dbs = []*database{db}
	if !checksums && !hints {
		how = noHints
	}
	return w, how
}

// pushed is what backup-push reports.
type pushed struct {
	Name  string `json:"backup_name"`
	Delta *struct {
		Source      string   `json:"source"`
		NotBetter   []string `json:"not_better"`
		Incremental int64    `json:"files_incremental"`
		Unchanged   int64    `json:"files_unchanged"`
		Missed      []string `json:"missed"`
	} `json:"delta"`
}

// push takes a backup.
func (w *world) push(args ...string) pushed {
	w.t.Helper()
	r := w.site.Do(w.t, append([]string{"backup-push", "--json", w.site.Data}, args...)...)
	return w.report(r, args)
}

func (w *world) report(r site.Result, args []string) (report pushed) {
	w.t.Helper()
	if r.Status != 0 {
		w.fatal("backup-push %s: exit status %d\n%s", strings.Join(args, " "), r.Status, r.Stderr)
	}
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		w.fatal("backup-push --json: %v\n%s", err, r.Stdout)
	}
	source := "full"
	if d := report.Delta; d != nil {
		source = d.Source
		if len(d.Missed) > 0 {
			w.t.Errorf("backup %s: blocks that changed and were not known to: %v", report.Name, d.Missed)
		}
	}
	w.done = append(w.done, "BACKUP "+report.Name+" from "+source)
	return report
}

// extend takes a further increment of a chain. Where busy, the workload goes on meanwhile. After some events a source cannot know: asked for by
// name it must refuse then, and the increment is that of whatever is left. One during which a database was moved is refused, and taken again.
func (w *world) extend(c *chain, busy bool, after event) {
	w.t.Helper()
	w.done = append(w.done, "from "+c.source)
	source, gap := c.source, after == unlogged && c.source != "lsn"
	if gap {
		r := site.Run(w.t, w.increment(c, c.source))
		r.Check(w.t, "backup-push from "+c.source, 1, "find what has changed")
	}
	// A server that was restored has no summaries of what was before.
	if foreign := after == switched && c.source == "summaries"; gap || foreign {
		source = "auto"
	}
	cmd := w.increment(c, source)
	ended := make(chan site.Result, 1)
	go func() { ended <- site.Run(w.t, cmd) }()
	for {
		select {
		case r := <-ended:
			if r.Status != 0 && busy && strings.Contains(r.Stderr, "moved to another tablespace") {
				w.done = append(w.done, "AGAIN")
				w.extend(c, false, after)
				return
			}
			report := w.report(r, []string{"from", source})
			c.names = append(c.names, report.Name)
			switch d := report.Delta; {
			case gap && d != nil && d.Source != "lsn":
				w.t.Errorf("backup %s is from %s, though there is WAL that does not tell all: %+v", report.Name, d.Source, d)
			case !gap && (d == nil || d.Source != source && source != "auto" || d.Unchanged == 0):
				w.t.Errorf("backup %s was to be a delta from %s, and is: %+v", report.Name, source, d)
			}
			return
		default:
		}
		if !busy {
			r := <-ended
			ended <- r
			continue
		}
		w.act()
	}
}

// increment is the command that takes a further increment of a chain.
func (w *world) increment(c *chain, source string) *exec.Cmd {
	cmd := w.site.Command(w.t, "backup-push", "--json", w.site.Data, "--delta-from-name", c.last())
	cmd.Env = append(cmd.Env, "HOLDFAST_DELTA_SOURCE="+source)
	return cmd
}

// failover stops the primary and goes on with a standby that was restored from a backup and has replayed all of the archive.
func (w *world) failover(backup string) {
	w.t.Helper()
	w.done = append(w.done, "FAILOVER")
	w.site.Switch(w.t)
	lsn := w.value("postgres", `pg_current_wal_lsn()`)
	w.site.Switch(w.t)
	w.site.Stop(w.t)
	dir := w.fetch(backup, "--standby")
	w.attach(dir, w.server)
	pgtest.Eventually(w.t, "the standby has replayed "+lsn, func() bool {
		return w.value("postgres", `pg_last_wal_replay_lsn() >= '`+lsn+`'`) == "true"
	})
	if err := w.site.Server.Promote(w.t.Context()); err != nil {
		w.fatal("%v", err)
	}
}

// fetch restores a backup and its tablespaces into new directories.
func (w *world) fetch(backup string, args ...string) string {
	w.t.Helper()
	return w.fetchInto(pgtest.Dir(w.t), backup, args...)
}

// fetchInto restores a backup into directories of dir, the data directory being data.
func (w *world) fetchInto(dir, backup string, args ...string) string {
	w.t.Helper()
	all := append([]string{"backup-fetch", filepath.Join(dir, "data"), backup}, args...)
	spaces, err := os.ReadDir(filepath.Join(w.site.Data, "pg_tblspc"))
	if err != nil {
		w.fatal("%v", err)
	}
	for _, s := range spaces {
		all = append(all, "--tablespace-mapping", s.Name()+"="+filepath.Join(dir, s.Name()))
	}
	if r := w.site.Do(w.t, all...); r.Status != 0 {
		w.fatal("holdfast %s: exit status %d\n%s", strings.Join(all, " "), r.Status, r.Stderr)
	}
	return filepath.Join(dir, "data")
}

// restore restores a backup, has pg_verifybackup look at it, recovers to the end of the archive, and shuts the copy down.
func (w *world) restore(what, backup string) *pgtest.Cluster {
	w.t.Helper()
	dir := w.fetch(backup, "--target", "latest")
	w.verify(what, dir)
	settings := maps.Clone(w.server)
	settings["archive_mode"] = "off"
	delete(settings, "summarize_wal")
	c := pgtest.Attach(w.t, w.site.Programs, dir, pgtest.Options{Env: w.site.Env, Settings: settings})
	site.AwaitRecovery(w.t, c)
	c.Stop(w.t)
	return c
}

// verify has pg_verifybackup look at a directory that was restored.
func (w *world) verify(what, dir string) {
	w.t.Helper()
	if out, err := pgtest.Command(w.t, pgtest.Verifier(w.t, w.site.Programs.Major), "-n", dir).CombinedOutput(); err != nil {
		w.t.Errorf("%s: pg_verifybackup: %v\n%s", what, err, out)
	}
}

// amcheck has PostgreSQL look at every table and index of every database: that index entries are in order and every row has its own, and from
// 14 on that rows and their transactions are possible; and that the visibility map says nothing of pages that does not hold.
func (w *world) amcheck(what string, c *pgtest.Cluster) {
	w.t.Helper()
	for _, db := range w.dbs { // a transaction that is prepared has locks
		for _, id := range db.prepared {
			conn := connect(w.t, c, db.name)
			if _, err := conn.Exec(w.t.Context(), `rollback prepared '`+id+`'`); err != nil {
				w.t.Errorf("%s: %v", what, err)
			}
			conn.Close(context.Background())
		}
	}
	for _, db := range databases(w.t, c) {
		conn := connect(w.t, c, db)
		for _, s := range []string{`create extension if not exists amcheck`, `create extension if not exists pg_visibility`} {
			if _, err := conn.Exec(w.t.Context(), s); err != nil {
				w.t.Fatalf("%s: %s: %v", what, s, err)
			}
		}
		if w.site.Programs.Major < 14 {
			_, err := conn.Exec(w.t.Context(), `select bt_index_parent_check(i.indexrelid, true, true) from pg_index i join pg_class c on c.oid = i.indexrelid
				join pg_am a on a.oid = c.relam where a.amname = 'btree' and c.relpersistence = 'p' and i.indisvalid`)
			if err != nil {
				w.t.Errorf("%s: %s: amcheck: %v", what, db, err)
			}
		}
		rows, err := conn.Query(w.t.Context(), `select c.oid::regclass::text || ' ' || v.t from pg_class c,
			lateral (select pg_check_visible(c.oid) union all select pg_check_frozen(c.oid)) v (t) where c.relkind in ('r', 'm', 't') and c.relpersistence = 'p'`)
		if err != nil {
			w.t.Fatal(err)
		}
		bad, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(bad) > 0 {
			w.t.Errorf("%s: %s: pg_visibility: %v %v", what, db, bad, err)
		}
		conn.Close(context.Background())
	}
	if w.site.Programs.Major < 14 {
		return
	}
	cmd := pgtest.Command(w.t, pgtest.Tool(w.t, w.site.Programs.Major, "pg_amcheck"), "--all", "--heapallindexed", "--parent-check")
	cmd.Env = append(cmd.Environ(), c.Environ()...)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		w.t.Errorf("%s: pg_amcheck: %v\n%s", what, err, out)
	}
}

func connect(t testing.TB, c *pgtest.Cluster, db string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Server.ConnString(instance.Superuser, db)+` options='-c statement_timeout=2min'`)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// databases lists those that can be connected to.
func databases(t testing.TB, c *pgtest.Cluster) []string {
	t.Helper()
	conn := connect(t, c, "postgres")
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), `select datname from pg_database where datallowconn order by 1`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// contents has a checksum of every table, by database and name, as far as it is logged, of sequences and large objects too, in the order of rows and through the
// visibility map where PostgreSQL likes to.
func contents(t testing.TB, c *pgtest.Cluster) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, db := range databases(t, c) {
		conn := connect(t, c, db)
		rows, err := conn.Query(t.Context(), `select case relkind when 'S' then '`+ofSequence+`' else '' end || oid::regclass from pg_class
			where relkind in ('r', 'm', 'S') and relpersistence = 'p' and (relnamespace = 'public'::regnamespace or relname = 'pg_largeobject') order by 1`)
		if err != nil {
			t.Fatal(err)
		}
		tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, tb := range tables {
			var sum string
			err := conn.QueryRow(t.Context(), `select count(*) || ' rows, ' || coalesce(md5(string_agg(row(r.*)::text, E'\n' order by row(r.*)::text collate "C")), '') from `+strings.TrimPrefix(tb, ofSequence)+` r`).Scan(&sum)
			if err != nil {
				t.Errorf("%s.%s: %v", db, tb, err)
			}
			all[db+"."+tb] = sum
		}
		conn.Close(context.Background())
	}
	return all
}

// ofSequence begins the names of sequences, behind that of the database, in what contents returns.
const ofSequence = "sequence "

func withoutSequences(all map[string]string) map[string]string {
	all = maps.Clone(all)
	maps.DeleteFunc(all, func(name, _ string) bool { return strings.Contains(name, "."+ofSequence) })
	return all
}

// unequal says where two contents differ.
func unequal(got, want map[string]string) string {
	names := maps.Clone(got)
	maps.Copy(names, want)
	var lines []string
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if got[n] != want[n] {
			lines = append(lines, fmt.Sprintf("%s came back as %q, was %q", n, got[n], want[n]))
		}
	}
	return strings.Join(lines, "\n    ")
}
