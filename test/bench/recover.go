package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
)

// Names of rows of the section of recovered tables.
const (
	recoverPart = "recover-table"
	recoverFull = "recover-table --full"
	recoverHand = "backup-fetch, and replay" // all of it, durably, as one restores without recover-table
)

// returned is what the section of recovered tables has measured.
type returned struct {
	table        *table
	tableBytes   int64                           // of the table, with its index
	clusterBytes int64                           // of the backup, uncompressed
	wal          int64                           // bytes that are replayed
	before       string                          // the position of the drop
	fetched      []int64                         // bytes read of the archive by the restore of a part, by round
	whole        []int64                         // and of all
	seconds      map[string]map[string][]float64 // of the phases, by row
}

// wantedRows is how many rows of some 130 bytes the table has that is dropped: 100 MB at scale 200.
func (b *bench) wantedRows() int { return 3600 * b.scale }

// recoverTables measures how long it takes to bring back a table that was dropped from the big cluster, by a part of the backup and by all of it.
func (b *bench) recoverTables(ctx context.Context) (r *returned, err error) {
	root, scratch, dump := b.archivePath("recover"), filepath.Join(b.dir, "recover"), filepath.Join(b.dir, "wanted.sql")
	if err := errors.Join(b.fresh(root), b.fresh(scratch)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root), os.RemoveAll(scratch), os.RemoveAll(dump)) }()
	r = &returned{table: &table{}, seconds: map[string]map[string][]float64{recoverPart: {}, recoverFull: {}}}
	env := append(holdfastEnv(root, ""), "HOLDFAST_DRILL_DIR="+scratch, "HOLDFAST_PG_BIN="+b.pg.Dir)
	err = b.with(ctx, b.bigName(), archiving, func(c *cluster) error {
		if err := c.archiveWith(holdfastEnv(root, ""), quote(b.holdfast)+` wal-push "$1"`); err != nil {
			return err
		}
		err := c.exec(ctx, "drop table if exists wanted",
			"create table wanted as select i as id, md5(i::text) || md5((i + 1)::text) || md5((i + 2)::text) as note from generate_series(1, "+strconv.Itoa(b.wantedRows())+") i",
			"alter table wanted add primary key (id)")
		if err != nil {
			return err
		}
		if r.tableBytes, err = c.number(ctx, "select pg_total_relation_size('wanted')"); err != nil {
			return err
		}
		if r.clusterBytes, err = c.number(ctx, "select sum(pg_database_size(oid))::int8 from pg_database"); err != nil {
			return err
		}
		if err := errors.Join(c.settle(ctx), b.run(b.command(ctx, append(holdfastEnv(root, ""), c.env()...), b.holdfast, "backup-push", c.data))); err != nil {
			return err
		}
		from, err := c.number(ctx, "select pg_current_wal_lsn() - '0/0'")
		if err != nil {
			return err
		}
		if err := b.run(b.command(ctx, c.env(), "pgbench", "-n", "-N", "-M", "prepared", "-c", "2", "-j", "2", "-t", strconv.Itoa(50*b.scale), "postgres")); err != nil {
			return err
		}
		to, err := c.number(ctx, "select pg_current_wal_lsn() - '0/0'")
		r.wal = to - from
		return errors.Join(err, c.exec(ctx, "drop table wanted"), c.settle(ctx), c.archiveWith(nil, "true"))
	})
	if err != nil {
		return nil, err
	}
	for round := range b.rounds {
		for _, name := range []string{recoverPart, recoverFull} {
			args := []string{"recover-table", "postgres.wanted", "--before-drop", "--dump", dump, "--json"}
			if name == recoverFull {
				args = append(args, "--full")
			}
			var s sample
			var out bytes.Buffer
			if s.Err = errors.Join(os.RemoveAll(dump), warm(root)); s.Err == nil {
				syscall.Sync()
				s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error {
					cmd := b.command(ctx, env, b.holdfast, args...)
					cmd.Stdout = &out
					return m.run(cmd)
				})
			}
			read, err := r.read(out.Bytes(), name, b.wantedRows())
			if s.Err == nil {
				s.Err = err
			}
			if name == recoverPart {
				r.fetched = append(r.fetched, read)
			} else {
				r.whole = append(r.whole, read)
			}
			b.note(r.table, "recovered table", name, recoverFull, round, s)
		}
		b.note(r.table, "recovered table", recoverHand, recoverFull, round, b.restoreAndReplay(ctx, root, filepath.Join(scratch, "all"), env, r.before))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return r, nil
}

// restoreAndReplay measures a restore of all of the backup into dir, and the replay to just before a position.
func (b *bench) restoreAndReplay(ctx context.Context, root, dir string, env []string, before string) (s sample) {
	if before == "" {
		s.Err = errors.New("where the table was dropped is not known")
		return s
	}
	if s.Err = errors.Join(os.RemoveAll(dir), warm(root)); s.Err != nil {
		return s
	}
	defer func() { s.Err = errors.Join(s.Err, os.RemoveAll(dir)) }()
	syscall.Sync()
	s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error {
		if err := m.run(b.command(ctx, env, b.holdfast, "backup-fetch", dir, "--target-lsn", before, "--exclusive", "--target-action", "promote")); err != nil {
			return err
		}
		settings := map[string]string{"archive_mode": "off", "shared_buffers": "256MB", "autovacuum": "off"}
		server, err := instance.Start(ctx, instance.Options{Programs: b.pg, DataDir: dir, SocketDir: b.dir, Port: port, Settings: settings, LogFile: filepath.Join(b.dir, "recovery.log"), Env: env})
		if err != nil {
			return err
		}
		defer server.Kill()
		return server.AwaitRecovery(ctx)
	})
	return s
}

// read returns how many bytes were read of the archive for a restore, as recover-table says.
func (r *returned) read(text []byte, row string, rows int) (int64, error) {
	var did struct {
		Event struct {
			LSN string `json:"lsn"`
		} `json:"event"`
		Partial bool `json:"partial"`
		Fetched struct {
			Read int64 `json:"read_bytes"`
		} `json:"fetched"`
		Seconds map[string]float64 `json:"seconds"`
		Brought []struct {
			Tables []struct {
				Rows int `json:"rows"`
			} `json:"tables"`
		} `json:"brought"`
	}
	if err := json.Unmarshal(text, &did); err != nil {
		return 0, fmt.Errorf("what recover-table printed: %w", err)
	}
	if did.Partial != (row == recoverPart) || len(did.Brought) != 1 || len(did.Brought[0].Tables) != 1 || did.Brought[0].Tables[0].Rows != rows {
		return 0, fmt.Errorf("recover-table brought something else back: %+v", did)
	}
	r.before = did.Event.LSN
	for phase, took := range did.Seconds {
		r.seconds[row][phase] = append(r.seconds[row][phase], took)
	}
	return did.Fetched.Read, nil
}

// number asks for one.
func (c *cluster) number(ctx context.Context, query string) (n int64, err error) {
	conn, err := pgx.Connect(ctx, c.server.ConnString(instance.Superuser, "postgres"))
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, "select ("+query+")::int8").Scan(&n)
	return n, err
}

// shares are the bytes that a part needs, in percent of those of all, by round.
func (r *returned) shares() (all []float64) {
	for i := range min(len(r.fetched), len(r.whole)) {
		if r.whole[i] > 0 {
			all = append(all, 100*float64(r.fetched[i])/float64(r.whole[i]))
		}
	}
	return all
}

// targets of recovered tables.
func (r *returned) targets() []target {
	if r == nil {
		return nil
	}
	times := ratios(r.table.figures(recoverPart, wall), r.table.figures(recoverHand, wall))
	for i := range times {
		times[i] *= 100
	}
	return []target{
		{what: "recover-table: bytes of the backup that are fetched", bound: 20, rounds: r.shares(), unit: "%"},
		{what: "recover-table: time over a full restore with replay (backup-fetch and a server)", bound: 40, rounds: times, unit: "%"},
	}
}

// print writes what was measured.
func (r *returned) print(w io.Writer) {
	if r == nil {
		return
	}
	fmt.Fprintf(w, "\n## A dropped table brought back\n\n"+
		"A table of %.0f MB, its index included, is dropped from a cluster of %.1f GB, %.0f MB of WAL behind the backup. `holdfast recover-table --before-drop` finds the DROP, restores,\n"+
		"replays to the record before it, and writes the table to a file. With --full it restores all of the backup, else what it needs; what it makes is not synced to disk, as it does not stay. The last row is a restore that does, and the replay\n"+
		"to the same moment, without finding it and without taking the table out. What is read is in the page cache.\n\n",
		float64(r.tableBytes)/1e6, float64(r.clusterBytes)/1e9, float64(r.wal)/1e6)
	phase := func(name string) column {
		return column{name + " s", func(t *table, row *row) string { return format(median(r.seconds[row.name][name]), 2) }}
	}
	r.table.print(w, []column{each("median s", wall, 2), least("best s", wall, 2), rounds("each round", wall, 2), each("CPU s", cpu, 1), most("peak MiB", peak, 0),
		phase("fetch"), phase("replay"), phase("load"), {"÷ full", compared(wall).cell},
		{"MB fetched", func(t *table, row *row) string {
			all := r.whole
			switch row.name {
			case recoverPart:
				all = r.fetched
			case recoverHand:
				return ""
			}
			var mb []float64
			for _, n := range all {
				mb = append(mb, float64(n)/1e6)
			}
			return format(median(good(mb)), 0)
		}}})
}
