package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
)

// Names of rows of the section of recoveries; targets look for them. Those through the client are named after the place of the archive.
const (
	pitrLocal   = "segments in pg_wal"
	pitrCopy    = "cp from a directory"
	pitrProgram = "holdfast wal-fetch"
	pitrClient  = "holdfast-client"
)

// The cluster of recoveries: all of it in memory, and its WAL has images of whole pages after each checkpoint and small records between, as most do.
const (
	pitrScale  = 10
	pitrScript = "update pgbench_accounts set abalance = abalance + 1 where aid in (select 1 + (random() * 999999)::int from generate_series(1, 50))\n"
)

// replayed is what the section of recoveries has measured.
type replayed struct {
	table    *table
	segments int
	places   []*archiverPlace
}

// Names below the scratch directory: of the cluster that wrote the segments, of what it was before, and of the segments.
func (b *bench) pitrName() string     { return "pitr-" + strconv.Itoa(b.scale) }
func (b *bench) pitrBase() string     { return filepath.Join(b.dir, b.pitrName()+"-base") }
func (b *bench) pitrSegments() string { return filepath.Join(b.dir, b.pitrName()+"-segments") }
func (b *bench) pitrData() string     { return filepath.Join(b.dir, "pitrdata") }

// makePITR makes a small cluster, a copy of it, and all segments that it writes from there on.
func (b *bench) makePITR(ctx context.Context) error {
	return b.make(ctx, b.pitrName(), func() error {
		filling := maps.Clone(archiving)                                 // WAL that begins with wal_level=minimal cannot be recovered
		filling["archive_mode"], filling["max_wal_size"] = "off", "64MB" // and so it keeps no segments to use again
		err := b.with(ctx, b.pitrName(), filling, func(c *cluster) error {
			return b.run(b.command(ctx, c.env(), "pgbench", "-i", "-q", "-F", "80", "-s", strconv.Itoa(pitrScale), "postgres"))
		})
		if err != nil {
			return err
		}
		if err := os.RemoveAll(b.pitrBase()); err != nil {
			return err
		}
		if err := b.run(b.command(ctx, nil, "cp", "-a", filepath.Join(b.dir, b.pitrName()), b.pitrBase())); err != nil {
			return err
		}
		return b.with(ctx, b.pitrName(), archiving, func(c *cluster) error { return c.writeAll(ctx, b.segments()+1) })
	})
}

// writeAll runs pgbench until n segments were archived, of which it keeps every one.
func (c *cluster) writeAll(ctx context.Context, n int) error {
	dir := c.b.pitrSegments()
	if err := c.b.fresh(dir); err != nil {
		return err
	}
	if err := c.archiveWith(nil, fmt.Sprintf(`sh -c 'cp "$1" %[1]s/new && mv %[1]s/new "%[1]s/${1##*/}"' sh "$1"`, dir)); err != nil {
		return err
	}
	script := filepath.Join(c.b.dir, "pitr.sql")
	if err := os.WriteFile(script, []byte(pitrScript), 0o644); err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	pgbench := c.b.command(running, c.env(), "pgbench", "-n", "-M", "prepared", "-f", script, "-T", "100000", "postgres")
	if err := pgbench.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- pgbench.Wait() }()
	for {
		names, err := segmentsIn(dir)
		if err != nil {
			return err
		}
		if len(names) >= n {
			stop()
			<-ended
			return c.archiveWith(nil, "true")
		}
		select {
		case err := <-ended:
			return fmt.Errorf("pgbench ended early: %w", errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// pitr measures how long a server takes to replay the same segments, by where it has them from.
func (b *bench) pitr(ctx context.Context) (r *replayed, err error) {
	if err := b.makePITR(ctx); err != nil {
		return nil, err
	}
	names, err := segmentsIn(b.pitrSegments())
	if err != nil {
		return nil, err
	}
	names = names[:b.segments()+1] // of the last half is replayed
	client, places, end, err := b.archiverPlaces(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end(), os.RemoveAll(b.pitrData())) }()
	for _, p := range places {
		if err := b.archiveAll(ctx, p, names); err != nil {
			return nil, err
		}
	}
	r = &replayed{table: &table{}, segments: b.segments(), places: places}
	socket := filepath.Join(b.dir, "sock")
	for round := range b.rounds {
		b.note(r.table, "recovery", pitrLocal, pitrLocal, round, b.recover(ctx, names, recovery{local: true}))
		b.note(r.table, "recovery", pitrCopy, pitrLocal, round, b.recover(ctx, names, recovery{command: "cp " + b.pitrSegments() + "/%f %p", from: b.pitrSegments()}))
		for _, p := range places {
			way := recovery{command: client + " " + socket + " wal-fetch %f %p", from: p.root, socket: socket, env: p.env}
			b.note(r.table, "recovery", pitrClient+", "+p.name, pitrLocal, round, b.recover(ctx, names, way))
		}
		way := recovery{command: b.holdfast + " wal-fetch %f %p", from: places[0].root, env: places[0].env}
		b.note(r.table, "recovery", pitrProgram+", "+places[0].name, pitrLocal, round, b.recover(ctx, names, way))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return r, nil
}

// archiveAll stores the segments of recoveries in a place.
func (b *bench) archiveAll(ctx context.Context, p *archiverPlace, names []string) error {
	st, err := p.open()
	if err != nil {
		return err
	}
	a := archive.New(st, archive.Options{})
	g, storing := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, name := range names {
		g.Go(func() error {
			_, err := a.PutWAL(storing, name, func() (io.ReadCloser, error) { return os.Open(filepath.Join(b.pitrSegments(), name)) })
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return filepath.WalkDir(p.root, func(path string, _ fs.DirEntry, err error) error { return errors.Join(err, b.give(path)) })
}

// A recovery is a way to replay.
type recovery struct {
	local   bool     // all segments are in pg_wal before it begins
	command string   // restore_command; "" where local
	env     []string // of the server, for command, and of the daemon
	from    string   // directory that command reads in the end
	socket  string   // of a daemon to start; "" for none
}

// redone is how the server says how long its replay took, from the first record to the last (PostgreSQL 14 and later).
var redone = regexp.MustCompile(`redo done at .* elapsed: ([0-9.]+) s`)

// recover replays the segments on a new copy of the cluster, up to the middle of the last one. Wall is what the server says that took.
func (b *bench) recover(ctx context.Context, names []string, way recovery) (s sample) {
	data := b.pitrData()
	last := names[len(names)-1]
	const size wal.SegmentSize = 16 << 20
	_, no, err := size.ParseSegment(last)
	if err != nil {
		s.Err = err
		return s
	}
	target := size.Start(no) + wal.LSN(size/2)
	settings := map[string]string{
		"shared_buffers": "512MB", "checkpoint_timeout": "1h", "max_wal_size": "20GB", "autovacuum": "off", "archive_mode": "off", "jit": "off",
		"recovery_target_lsn": target.String(), "recovery_target_action": "promote", "restore_command": way.command,
	}
	signal := "recovery.signal"
	if way.local { // which needs no restore_command
		signal = "standby.signal"
	}
	log := filepath.Join(b.dir, "recovery.log")
	prepare := func() error {
		if err := errors.Join(os.RemoveAll(data), os.RemoveAll(log)); err != nil {
			return err
		}
		if err := b.run(b.command(ctx, nil, "cp", "-a", b.pitrBase(), data)); err != nil {
			return err
		}
		if way.local {
			for _, name := range names {
				if err := b.run(b.command(ctx, nil, "cp", filepath.Join(b.pitrSegments(), name), filepath.Join(data, "pg_wal", name))); err != nil {
					return err
				}
			}
		} else if err := warm(way.from); err != nil {
			return err
		}
		at := filepath.Join(data, signal)
		return errors.Join(os.WriteFile(at, nil, 0o600), b.give(at))
	}
	if s.Err = prepare(); s.Err != nil {
		return s
	}
	if way.socket != "" {
		end, err := b.daemon(ctx, data, way.env, way.socket)
		if err != nil {
			s.Err = err
			return s
		}
		defer end()
	}
	syscall.Sync()
	server, err := instance.Start(ctx, instance.Options{Programs: b.pg, DataDir: data, SocketDir: b.dir, Port: port, Settings: settings, LogFile: log, Env: way.env})
	if err != nil {
		s.Err = err
		return s
	}
	defer server.Kill()
	if s.Err = server.AwaitRecovery(ctx); s.Err != nil {
		return s
	}
	text, err := os.ReadFile(log)
	if err != nil {
		s.Err = err
		return s
	}
	m := redone.FindSubmatch(text)
	if m == nil {
		s.Err = fmt.Errorf("the server does not say how long its replay took, see %s", log)
		return s
	}
	s.Wall, s.Err = strconv.ParseFloat(string(m[1]), 64)
	return s
}

// targets of recoveries.
func (r *replayed) targets() (all []target) {
	if r == nil {
		return nil
	}
	for _, p := range r.places {
		for _, local := range []string{pitrLocal, pitrCopy} {
			all = append(all, target{what: fmt.Sprintf("recovery by holdfast-client, %s, over %s", p.name, local), bound: 1.1,
				rounds: ratios(r.table.figures(pitrClient+", "+p.name, wall), r.table.figures(local, wall))})
		}
	}
	return all
}

// print writes what was measured.
func (r *replayed) print(w io.Writer) {
	if r == nil {
		return
	}
	fmt.Fprintf(w, "\n## %d WAL segments replayed to a point in time\n\n"+
		"A cluster of pgbench at scale %d that was copied, and what pgbench wrote on it from then on, 50 rows in each transaction: the server replays it and says how long that\n"+
		"took, without its start and its end. With the segments in pg_wal before it begins it needs no restore_command, no new files and no syncs of them. The daemon, where there is\n"+
		"one, fetches ahead while the server replays. What is read is in the page cache.\n\n", r.segments, pitrScale)
	columns := []column{each("median s", wall, 2), least("best s", wall, 2), rounds("each round", wall, 2),
		{"÷ in pg_wal", compared(wall).cell},
		{"÷ cp", func(t *table, row *row) string {
			q := ratios(t.figures(row.name, wall), t.figures(pitrCopy, wall))
			if row.name == pitrCopy || len(q) == 0 {
				return ""
			}
			return fmt.Sprintf("%.2f (%s)", median(q), list(q, 2))
		}}}
	r.table.print(w, columns)
}
