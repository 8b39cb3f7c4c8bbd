package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
)

// incrementsMajor is the PostgreSQL that increments are measured on: the first with WAL summaries. What the other two ways of ours do does not
// depend on it.
const incrementsMajor = 17

// Names of rows of the section of increments, behind what was changed; targets look for them.
const (
	fromSummaries, fromArchive, byLSN  = "holdfast, from summaries", "holdfast, from the archive", "holdfast, by page LSN"
	backrestBlock, basebackupIncrement = "pgBackRest, block incremental", "pg_basebackup --incremental"
	fullOurs, fullBackrest             = "full: holdfast", "full: pgBackRest"
	restoreFull, restoreChain          = "the full backup", "full and five increments"
)

// incrementSources is what HOLDFAST_DELTA_SOURCE is for each of our rows.
var incrementSources = []struct{ row, source string }{{fromSummaries, "summaries"}, {fromArchive, "archive"}, {byLSN, "lsn"}}

// A change is what happens to the cluster before increments are taken: one row of each of so many pages is updated in place.
type change struct {
	name   string
	share  float64 // of the pages of the cluster
	spread bool    // pages here and there; otherwise one behind the other
}

// The changes, in order. Targets are those of 5 %.
var (
	inRange = change{"5 % in one range", 0.05, false}
	spread  = change{"5 % spread", 0.05, true}
	further = []change{{"0.1 % spread", 0.001, true}, {"30 % spread", 0.3, true}}
)

// incremental is what the section of increments has measured.
type incremental struct {
	backup, restore *table
	bytes           int64 // size of the cluster
}

// increments measures increments of a cluster of pgbench, and restores of chains of them.
func (b *bench) increments(ctx context.Context) (*incremental, error) {
	own := *b
	var err error
	if own.pg, err = instance.Find(ctx, incrementsMajor, filepath.Join(testCache(), "pg", strconv.Itoa(incrementsMajor), "bin")); err != nil {
		return nil, err
	}
	backrest, err := newerBackrest()
	if err != nil {
		return nil, err
	}
	name := "increments-" + strconv.Itoa(b.scale)
	err = own.make(ctx, name, func() error {
		settings := maps.Clone(loading)
		settings["wal_level"] = "replica" // or pages would have no LSN
		return own.with(ctx, name, settings, func(c *cluster) error {
			// There is room on every page, so that an update changes no other.
			return own.run(own.command(ctx, c.env(), "pgbench", "-i", "-q", "-F", "90", "-s", strconv.Itoa(b.scale), "postgres"))
		})
	})
	if err != nil {
		return nil, err
	}
	r := &incremental{backup: &table{}, restore: &table{}}
	settings := map[string]string{
		"wal_level": "replica", "archive_mode": "on", "autovacuum": "off", "checkpoint_timeout": "1h", "min_wal_size": "32MB", "max_wal_size": "4GB",
		"shared_buffers": "512MB", "summarize_wal": "on", "log_checkpoints": "off", "jit": "off",
	}
	err = own.with(ctx, name, settings, func(c *cluster) error {
		if r.bytes, err = backupSize(c.data); err != nil {
			return err
		}
		for round := range b.rounds {
			i := &incrementRound{bench: &own, c: c, backrest: backrest, results: r, round: round, random: rand.New(rand.NewPCG(uint64(round), 0))}
			if err := i.run(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	return r, err
}

// An incrementRound is one round of the section: an archive of ours, and a repository of pgBackRest, from their full backups on.
type incrementRound struct {
	*bench
	c        *cluster
	backrest string // the program
	results  *incremental
	round    int
	random   *rand.Rand

	full   string            // name of our full backup
	chains map[string]string // the newest backup, by row
}

func (i *incrementRound) archive() string    { return i.archivePath("increments") }
func (i *incrementRound) repository() string { return i.archivePath("increments-pgbackrest") }
func (i *incrementRound) based() string      { return i.archivePath("increments-basebackup") }
func (i *incrementRound) env() []string {
	return append(append(holdfastEnv(i.archive(), oursZstd), "WALG_DELTA_MAX_STEPS=100"), i.c.env()...)
}

// backrestEnv is that of the other sections, with what makes increments small.
func (i *incrementRound) backrestEnv() []string {
	env := slices.DeleteFunc(i.bench.backrestEnv(i.repository(), i.c.data, "zst"), func(s string) bool {
		return strings.HasPrefix(s, "PGBACKREST_LOG_LEVEL_CONSOLE=")
	})
	return append(env, "PGBACKREST_REPO1_BLOCK=y", "PGBACKREST_LOG_LEVEL_CONSOLE=info")
}

// run makes full backups, five changes of 5 % with an increment each, restores, and then the further changes.
func (i *incrementRound) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, os.RemoveAll(i.archivePath(""))) }()
	if err := i.fulls(ctx); err != nil {
		return err
	}
	var names []string // of the chain from summaries
	for n, ch := range []change{inRange, spread, inRange, spread, spread} {
		if err := i.change(ctx, ch); err != nil {
			return err
		}
		if n < 2 {
			err = i.all(ctx, ch)
		} else {
			s := i.ours(ctx, fromSummaries, "summaries")
			err = s.Err
		}
		if err != nil {
			return err
		}
		names = append(names, i.chains[fromSummaries])
	}
	if err := i.restores(ctx, names); err != nil {
		return err
	}
	if err := i.catchUp(ctx); err != nil {
		return err
	}
	for _, ch := range further {
		if err := errors.Join(i.change(ctx, ch), ctx.Err()); err != nil {
			return err
		}
		if err := i.all(ctx, ch); err != nil {
			return err
		}
	}
	return nil
}

// note adds a sample to a table.
func (i *incrementRound) note(t *table, work, name, base string, s sample) {
	i.progress(work, "", name, i.round, s)
	t.add(name, base, s)
}

// fulls makes the full backups that increments build on.
func (i *incrementRound) fulls(ctx context.Context) error {
	if err := errors.Join(i.fresh(i.archive()), i.fresh(i.repository()), i.fresh(i.based())); err != nil {
		return err
	}
	if err := errors.Join(i.c.archiveWith(i.env(), quote(i.holdfast)+` wal-push "$1"`), i.c.settle(ctx), warm(i.c.data)); err != nil {
		return err
	}
	syscall.Sync()
	i.chains = map[string]string{}
	s, full := i.push(ctx, "--full")
	if i.note(i.results.backup, "full", fullOurs, fullOurs, s); s.Err != nil {
		return s.Err
	}
	i.full = full
	for _, o := range incrementSources {
		i.chains[o.row] = full
	}
	if err := i.bench.run(i.command(ctx, i.backrestEnv(), i.backrest, "stanza-create")); err != nil {
		return err
	}
	s = i.pushBackrest(ctx, "full")
	if i.note(i.results.backup, "full", fullBackrest, fullOurs, s); s.Err != nil {
		return s.Err
	}
	return i.pushBase(ctx).Err
}

// all takes an increment with every tool.
func (i *incrementRound) all(ctx context.Context, ch change) error {
	base := ch.name + ": " + fromSummaries
	add := func(row string, s sample) { i.note(i.results.backup, "increment", ch.name+": "+row, base, s) }
	for _, o := range incrementSources {
		s := i.ours(ctx, o.row, o.source)
		if add(o.row, s); s.Err != nil {
			return s.Err
		}
	}
	add(backrestBlock, i.pushBackrest(ctx, "incr"))
	add(basebackupIncrement, i.pushBase(ctx))
	return ctx.Err()
}

// catchUp takes increments that nobody measures, of what only the chain from summaries has.
func (i *incrementRound) catchUp(ctx context.Context) error {
	for _, o := range incrementSources[1:] {
		if s := i.ours(ctx, o.row, o.source); s.Err != nil {
			return s.Err
		}
	}
	return errors.Join(i.pushBackrest(ctx, "incr").Err, i.pushBase(ctx).Err)
}

// ours takes an increment of ours onto the chain of a row.
func (i *incrementRound) ours(ctx context.Context, row, source string) sample {
	s, name := i.push(ctx, "--delta-from-name", i.chains[row], "HOLDFAST_DELTA_SOURCE="+source)
	if s.Err == nil && name == "" || strings.HasPrefix(name, "base_") && !strings.Contains(name, "_D_") {
		s.Err = fmt.Errorf("backup %s is no increment", name)
	}
	if s.Err == nil {
		i.chains[row] = name
	}
	return s
}

// push runs backup-push; arguments with = are settings. The time is that without what the report says the server took to start and stop the backup.
func (i *incrementRound) push(ctx context.Context, args ...string) (s sample, name string) {
	env := i.env()
	words := []string{"backup-push", "--json", i.c.data}
	for _, a := range args {
		if strings.Contains(a, "=") {
			env = append(env, a)
		} else {
			words = append(words, a)
		}
	}
	out, err := os.Create(filepath.Join(i.dir, "report"))
	if err != nil {
		s.Err = err
		return s, ""
	}
	defer os.Remove(out.Name()) // scratch
	defer out.Close()
	cmd := i.command(ctx, env, i.holdfast, words...)
	cmd.Stdout = out // a file: see command
	if s.usage, s.Err = i.measure(ctx, i.c.server.Pid(), func(m *meter) error { return m.run(cmd) }); s.Err != nil {
		return s, ""
	}
	var report struct {
		Name    string             `json:"backup_name"`
		Seconds map[string]float64 `json:"seconds"`
	}
	text, err := os.ReadFile(out.Name())
	if err == nil {
		err = json.Unmarshal(text, &report)
	}
	if s.Err = err; err != nil {
		return s, ""
	}
	s.Net = s.Wall - report.Seconds["start"] - report.Seconds["stop"]
	s.Stored, _, s.Err = size(filepath.Join(i.archive(), "basebackups_005", report.Name))
	return s, report.Name
}

// pushBackrest runs pgbackrest backup. The time is that without what it waited for the server to start and stop the backup, by its log.
func (i *incrementRound) pushBackrest(ctx context.Context, kind string) (s sample) {
	before, _, err := size(filepath.Join(i.repository(), "backup"))
	if s.Err = err; err != nil {
		return s
	}
	from, err := i.log.Seek(0, io.SeekEnd)
	if s.Err = err; err != nil {
		return s
	}
	s.usage, s.Err = i.measure(ctx, i.c.server.Pid(), func(m *meter) error {
		return m.run(i.command(ctx, i.backrestEnv(), i.backrest, "backup", "--type="+kind))
	})
	if s.Err != nil {
		return s
	}
	text, err := io.ReadAll(io.NewSectionReader(i.log, from, 1<<20))
	if s.Err = err; err != nil {
		return s
	}
	var waited float64
	for _, phase := range []string{"start", "stop"} {
		t, err := between(string(text), "execute backup "+phase, "backup "+phase+" archive = ")
		s.Err = errors.Join(s.Err, err)
		waited += t
	}
	s.Net = s.Wall - waited
	after, _, err := size(filepath.Join(i.repository(), "backup"))
	s.Stored, s.Err = after-before, errors.Join(s.Err, err)
	return s
}

// between returns the seconds between two lines of pgBackRest's log, found by words in them.
func between(log, from, to string) (float64, error) {
	var at []time.Time
	for line := range strings.Lines(log) {
		if word := []string{from, to, "\x00"}[len(at)]; strings.Contains(line, word) {
			const layout = "2006-01-02 15:04:05.000"
			t, err := time.Parse(layout, line[:min(len(layout), len(line))])
			if err != nil {
				return 0, fmt.Errorf("pgBackRest's log: %w", err)
			}
			at = append(at, t)
		}
	}
	if len(at) < 2 {
		return 0, fmt.Errorf("pgBackRest's log does not say %q and %q", from, to)
	}
	return at[1].Sub(at[0]).Seconds(), nil
}

// pushBase runs pg_basebackup, with --incremental once there is a manifest. What the server takes to start and stop it does not say.
func (i *incrementRound) pushBase(ctx context.Context) (s sample) {
	dir, manifest := filepath.Join(i.based(), "backup"), filepath.Join(i.based(), "backup_manifest")
	args := []string{"-D", dir, "-Ft", "--compress=server-zstd:1", "-X", "none", "-c", "fast"}
	if _, err := os.Stat(manifest); err == nil {
		args = append(args, "--incremental="+manifest)
	}
	s.usage, s.Err = i.measure(ctx, i.c.server.Pid(), func(m *meter) error {
		return m.run(i.command(ctx, i.c.env(), "pg_basebackup", args...))
	})
	s.Net = s.Wall
	if s.Err == nil {
		s.Stored, _, s.Err = size(dir)
	}
	if s.Err == nil {
		s.Err = os.Rename(filepath.Join(dir, "backup_manifest"), manifest)
	}
	s.Err = errors.Join(s.Err, os.RemoveAll(dir))
	return s
}

// change updates pages, has the WAL archived, and leaves nothing dirty.
func (i *incrementRound) change(ctx context.Context, ch change) error {
	conn, err := pgx.Connect(ctx, i.c.server.ConnString(instance.Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var pages, perPage int
	err = conn.QueryRow(ctx, `select pg_relation_size('pgbench_accounts') / 8192, (select max(aid) from pgbench_accounts where ctid < '(1,0)')`).Scan(&pages, &perPage)
	if err != nil {
		return err
	}
	n := min(int(ch.share*float64(i.results.bytes/8192)), pages-1)
	var aids []int32
	if ch.spread {
		for _, p := range i.random.Perm(pages - 1)[:n] {
			aids = append(aids, int32(p*perPage+1+i.random.IntN(perPage)))
		}
	} else {
		first := i.random.IntN(pages - n)
		for p := first; p < first+n; p++ {
			aids = append(aids, int32(p*perPage+1+i.random.IntN(perPage)))
		}
	}
	slices.Sort(aids)
	if _, err := conn.Exec(ctx, `update pgbench_accounts set abalance = abalance + 1 where aid = any($1)`, aids); err != nil {
		return fmt.Errorf("change %s: %w", ch.name, err)
	}
	if err := i.c.settle(ctx); err != nil {
		return err
	}
	syscall.Sync()
	return nil
}

// restores measures restores of the full backup and of the chain names, and of a directory that is 5 % behind.
func (i *incrementRound) restores(ctx context.Context, names []string) error {
	target := filepath.Join(i.dir, "restored")
	if err := errors.Join(warm(i.archive()), i.fresh(target)); err != nil {
		return err
	}
	defer os.RemoveAll(target) // scratch
	fetch := func(row, backup string, args ...string) error {
		syscall.Sync()
		var s sample
		words := append([]string{"backup-fetch", target, backup}, args...)
		if s.usage, s.Err = i.measure(ctx, 0, func(m *meter) error { return m.run(i.command(ctx, i.env(), i.holdfast, words...)) }); s.Err == nil {
			s.Err = i.bench.run(i.command(ctx, nil, "pg_verifybackup", "-n", target))
		}
		s.Net = s.Wall
		i.note(i.results.restore, "restore", row, restoreFull, s)
		return errors.Join(s.Err, ctx.Err())
	}
	if err := fetch(restoreFull, i.full); err != nil {
		return err
	}
	for n, ch := range []change{inRange, spread} {
		if err := fetch(behind(ch), names[n], "--delta"); err != nil {
			return err
		}
	}
	if err := i.fresh(target); err != nil {
		return err
	}
	return fetch(restoreChain, names[len(names)-1])
}

// behind names the row of a restore into a directory that lacks one change.
func behind(ch change) string { return "--delta, " + ch.name }

// targets of increments.
func (r *incremental) targets() (all []target) {
	if r == nil {
		return nil
	}
	percent := func(t *table, f figure, row, of string) []float64 {
		q := ratios(t.figures(row, f), t.figures(of, f))
		for i := range q {
			q[i] *= 100
		}
		return q
	}
	for _, ch := range []change{inRange, spread} {
		ours, archive, lsn, peer := ch.name+": "+fromSummaries, ch.name+": "+fromArchive, ch.name+": "+byLSN, ch.name+": "+backrestBlock
		all = append(all,
			target{what: ours + ": share of the full backup's time", bound: 15, rounds: percent(r.backup, net, ours, fullOurs), unit: "%"},
			target{what: ours + ": share of the bytes it reads", bound: 10, rounds: percent(r.backup, read, ours, fullOurs), unit: "%"},
			target{what: archive + ": share of the full backup's time", bound: 25, rounds: percent(r.backup, net, archive, fullOurs), unit: "%"},
			target{what: lsn + ": times as fast as pgBackRest's increment", bound: 2, atLeast: true, rounds: ratios(r.backup.figures(peer, net), r.backup.figures(lsn, net))},
			target{what: ours + ": size over pgBackRest's block incremental", bound: 1.1, rounds: ratios(r.backup.figures(ours, stored), r.backup.figures(peer, stored))})
	}
	all = append(all, target{what: "restore of a full backup and five increments: time over the full backup's alone", bound: 1.15,
		rounds: ratios(r.restore.figures(restoreChain, wall), r.restore.figures(restoreFull, wall))})
	for _, ch := range []change{inRange, spread} {
		all = append(all, target{what: "restore " + behind(ch) + ": share of a full restore's time", bound: 30, rounds: percent(r.restore, wall, behind(ch), restoreFull), unit: "%"})
	}
	return all
}

// The columns of increments.
var (
	incrementColumns = []column{
		each("median s", net, 2), least("best s", net, 2), rounds("each round", net, 2), each("with the server's start and stop", wall, 2), each("CPU s", cpu, 1),
		each("read MB", read, 0), each("stored MB", stored, 1), most("peak MiB", peak, 0), compared(net),
	}
	chainColumns = []column{
		each("median s", wall, 2), least("best s", wall, 2), rounds("each round", wall, 2), each("CPU s", cpu, 1), each("read MB", read, 0), most("peak MiB", peak, 0),
	}
)

// print writes what was measured.
func (r *incremental) print(w io.Writer) {
	fmt.Fprintf(w, "\n## Increments of %.1f GB\n\n"+
		"pgbench on PostgreSQL %d with data checksums, the data in the page cache; one row of each of so many pages was updated since the increment before.\n"+
		"The time is without what the server takes to start and to stop the backup, except for pg_basebackup, which does not say. Bytes read are those of the\n"+
		"tool's own processes, of files of whatever kind. pgBackRest is the newer one with block incremental; otherwise it is set up as above.\n\n",
		float64(r.bytes)/1e9, incrementsMajor)
	r.backup.print(w, incrementColumns)
	fmt.Fprint(w, "\n## Restores of them\n\n"+
		"Into an empty directory, and with --delta into one that was restored before and lacks one increment. Each passed pg_verifybackup.\n\n")
	r.restore.print(w, chainColumns)
}
