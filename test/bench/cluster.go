package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/pg/instance"
)

// port names the socket of the one server that runs at a time. It listens on no network.
const port = 5999

// A cluster is a data directory and, between open and close, its server.
type cluster struct {
	b      *bench
	data   string
	server *instance.Instance
}

// Settings of a server while its cluster is filled, and while it is measured: idle, so that nothing but what is measured changes anything.
var (
	loading = map[string]string{
		"wal_level": "minimal", "max_wal_senders": "0", "archive_mode": "off", "fsync": "off", "full_page_writes": "off",
		"synchronous_commit": "off", "autovacuum": "off", "shared_buffers": "512MB", "maintenance_work_mem": "512MB",
		"max_wal_size": "4GB", "checkpoint_timeout": "1h", "max_locks_per_transaction": "1024", "jit": "off",
	}
	archiving = map[string]string{
		"wal_level": "replica", "archive_mode": "on", "fsync": "off", "synchronous_commit": "off", "autovacuum": "off",
		"shared_buffers": "512MB", "max_wal_size": "1GB", "checkpoint_timeout": "1h", "log_checkpoints": "off",
	}
	measured = map[string]string{
		"wal_level": "replica", "archive_mode": "on", "autovacuum": "off", "checkpoint_timeout": "1h", "min_wal_size": "32MB",
		"max_wal_size": "64MB", "log_checkpoints": "off", "jit": "off",
	}
)

// open starts the server of the named data directory. Its archive_command is what archiveWith says, at first to forget.
func (b *bench) open(ctx context.Context, name string, settings map[string]string) (*cluster, error) {
	c := &cluster{b: b, data: filepath.Join(b.dir, name)}
	if err := c.archiveWith(nil, "true"); err != nil {
		return nil, err
	}
	// pgBackRest wants to be in there.
	all := map[string]string{"archive_command": "sh " + c.script() + " %p # pgbackrest or another"}
	maps.Copy(all, settings)
	var err error
	c.server, err = instance.Start(ctx, instance.Options{
		Programs: b.pg, DataDir: c.data, SocketDir: b.dir, Port: port, Settings: all, LogFile: filepath.Join(b.dir, "postgres.log"),
	})
	return c, err
}

// close shuts the server down, whether or not ctx is over.
func (c *cluster) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	err := c.server.Stop(ctx, instance.Fast)
	c.server.Kill()
	return err
}

func (c *cluster) script() string { return filepath.Join(c.b.dir, "archive.sh") }

// archiveWith changes what archive_command does from the next segment on: a command of the shell, in which "$1" is the segment's path.
func (c *cluster) archiveWith(env []string, command string) error {
	var script strings.Builder
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		fmt.Fprintf(&script, "export %s=%s\n", name, quote(value))
	}
	fmt.Fprintf(&script, "exec %s\n", command)
	if err := os.WriteFile(c.script()+".new", []byte(script.String()), 0o644); err != nil {
		return err
	}
	return os.Rename(c.script()+".new", c.script())
}

// quote makes s one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// env is how clients find the server.
func (c *cluster) env() []string {
	return []string{"PGHOST=" + c.b.dir, "PGPORT=" + strconv.Itoa(port), "PGUSER=" + instance.Superuser, "PGDATABASE=postgres"}
}

// exec runs statements one after the other.
func (c *cluster) exec(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, c.server.ConnString(instance.Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%.80s: %w", sql, err)
		}
	}
	return nil
}

// settle ends the WAL segment, has every finished one archived, and flushes what is dirty, so that no tool does it for another.
func (c *cluster) settle(ctx context.Context) error {
	if err := c.exec(ctx, "checkpoint", "select pg_switch_wal()"); err != nil {
		return err
	}
	deadline := time.Now().Add(2 * time.Minute)
	for {
		ready, err := filepath.Glob(filepath.Join(c.data, "pg_wal/archive_status/*.ready"))
		if err != nil || len(ready) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("archive_command does not get done with %s%s", filepath.Base(ready[0]), c.serverLog())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// serverLog returns the last lines the server logged, to be put behind an error.
func (c *cluster) serverLog() string {
	text, _ := os.ReadFile(c.server.LogFile()) // only explains
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\n    " + strings.Join(lines[max(0, len(lines)-8):], "\n    ")
}

// Names below the scratch directory. They carry the scale, so that kept clusters of another scale are not taken for these.
func (b *bench) bigName() string      { return "big-" + strconv.Itoa(b.scale) }
func (b *bench) smallName() string    { return "small-" + strconv.Itoa(b.scale) }
func (b *bench) segmentsName() string { return "segments-" + strconv.Itoa(b.scale) }

// What the scale of pgbench, 200, gives: 3.3 GB, 20 000 relations, 200 segments.
func (b *bench) noiseRows() int { return 1500 * b.scale } // of 1000 bytes
func (b *bench) tables() int    { return 50 * b.scale }   // with an index each
func (b *bench) segments() int  { return b.scale }

// make creates a cluster, unless an earlier run kept it, by running fill.
func (b *bench) make(ctx context.Context, name string, fill func() error) error {
	done := filepath.Join(b.dir, name+".done")
	if _, err := os.Stat(done); err == nil {
		b.say("%s: kept from an earlier run", name)
		return nil
	}
	begin := time.Now()
	b.say("%s: making", name)
	if err := os.RemoveAll(filepath.Join(b.dir, name)); err != nil {
		return err
	}
	if err := instance.Init(ctx, b.pg, filepath.Join(b.dir, name), instance.InitOptions{Checksums: true, NoSync: true}); err != nil {
		return err
	}
	if err := fill(); err != nil {
		return fmt.Errorf("fill %s: %w", name, err)
	}
	// The server keeps gigabytes of old segments to use again, which copies would take along.
	if err := b.run(b.command(ctx, nil, "pg_resetwal", "-D", filepath.Join(b.dir, name))); err != nil {
		return err
	}
	b.say("%s: made in %.0f s", name, time.Since(begin).Seconds())
	return os.WriteFile(done, nil, 0o644)
}

// with runs do while the named cluster's server runs.
func (b *bench) with(ctx context.Context, name string, settings map[string]string, do func(c *cluster) error) error {
	c, err := b.open(ctx, name, settings)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.close(ctx))
}

// makeBig creates the cluster of pgbench and noise, and the WAL segments that pgbench wrote on it.
func (b *bench) makeBig(ctx context.Context) error {
	return b.make(ctx, b.bigName(), func() error {
		err := b.with(ctx, b.bigName(), loading, func(c *cluster) error {
			pgbench := b.command(ctx, c.env(), "pgbench", "-i", "-q", "-s", strconv.Itoa(b.scale), "postgres")
			return errors.Join(b.run(pgbench), c.noise(ctx))
		})
		if err != nil {
			return err
		}
		return b.with(ctx, b.bigName(), archiving, func(c *cluster) error { return c.writeSegments(ctx, b.segments()) })
	})
}

// noise makes a table of rows that do not compress.
func (c *cluster) noise(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, c.server.ConnString(instance.Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "create table noise (id int, bytes bytea); alter table noise alter bytes set storage external"); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{})
	row := make([]byte, 1000)
	_, err = conn.CopyFrom(ctx, pgx.Identifier{"noise"}, []string{"id", "bytes"}, pgx.CopyFromSlice(c.b.noiseRows(), func(i int) ([]any, error) {
		for at := 0; at < len(row); at += 8 {
			binary.LittleEndian.PutUint64(row[at:], random.Uint64())
		}
		return []any{i, row}, nil
	}))
	return err
}

var segmentName = regexp.MustCompile(`^[0-9A-F]{24}$`)

// writeSegments runs pgbench until n WAL segments were archived, and keeps the first n.
func (c *cluster) writeSegments(ctx context.Context, n int) error {
	dir := filepath.Join(c.b.dir, c.b.segmentsName())
	if err := c.b.fresh(dir); err != nil {
		return err
	}
	if err := c.archiveWith(nil, fmt.Sprintf(`sh -c 'cp "$1" %[1]s/new && mv %[1]s/new "%[1]s/${1##*/}"' sh "$1"`, dir)); err != nil {
		return err
	}
	// The first segments hold the checkpoint's and the server's own records.
	if err := c.exec(ctx, "select pg_switch_wal()"); err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	pgbench := c.b.command(running, c.env(), "pgbench", "-n", "-N", "-M", "prepared", "-c", "2", "-j", "2", "-T", "100000", "postgres")
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
		if len(names) > n {
			stop()
			<-ended
			for i, name := range names {
				if i == 0 || i > n { // what was there before pgbench, and what came too late
					if err := os.Remove(filepath.Join(dir, name)); err != nil {
						return err
					}
				}
			}
			return c.archiveWith(nil, "true")
		}
		select {
		case err := <-ended:
			return fmt.Errorf("pgbench ended early: %w", errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// segmentsIn lists the WAL segments in dir, in order.
func segmentsIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if segmentName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// makeSmall creates the cluster of many small tables: three pages each, and an index of two. Made from a query they have no free space map.
func (b *bench) makeSmall(ctx context.Context) error {
	return b.make(ctx, b.smallName(), func() error {
		return b.with(ctx, b.smallName(), loading, func(c *cluster) error {
			const sessions, batch = 4, 100
			g, ctx := errgroup.WithContext(ctx)
			for s := range sessions {
				g.Go(func() error {
					for from := s * batch; from < b.tables(); from += sessions * batch {
						err := c.exec(ctx, fmt.Sprintf(`do $$ begin for i in %d..%d loop
							execute format('create table small%%s as select n as id, (md5(n::text) || md5(%%s::text))::char(84) as filler
								from generate_series(1, 180) n', i, i);
							execute format('alter table small%%s add primary key (id)', i);
							end loop; end $$`, from, min(from+batch, b.tables())-1))
						if err != nil {
							return err
						}
					}
					return nil
				})
			}
			return g.Wait()
		})
	})
}

// makePlain creates an empty cluster.
func (b *bench) makePlain(ctx context.Context, name string) error {
	return b.make(ctx, name, func() error { return nil })
}

// fresh makes path an empty directory of the account's, whatever was there.
func (b *bench) fresh(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return b.give(path)
}

// warm reads every file below dir, so that each tool finds it in memory.
func warm(dir string) error {
	return walkFiles(dir, func(path string, _ fs.FileInfo) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close() // only read
		_, err = io.Copy(io.Discard, struct{ io.Reader }{f})
		return err
	})
}

// size adds up the lengths of the files below dir, bytes.
func size(dir string) (total int64, files int, err error) {
	err = walkFiles(dir, func(_ string, info fs.FileInfo) error {
		total += info.Size()
		files++
		return nil
	})
	return total, files, err
}

// walkFiles calls f for the regular files below dir. Those that vanish meanwhile are left out.
func walkFiles(dir string, f func(path string, info fs.FileInfo) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				err = f(path, info)
			}
		}
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil
		}
		return err
	})
}

// same fails unless the relation files below two data directories have the same number and sum of lengths. Those that a server makes
// anew are left out.
func same(data, restored string) error {
	for _, sub := range []string{"base", "global", "pg_xact", "pg_multixact"} {
		var bytes, files [2]int64
		for i, dir := range []string{data, restored} {
			err := walkFiles(filepath.Join(dir, sub), func(path string, info fs.FileInfo) error {
				if name := filepath.Base(path); name != "pg_internal.init" {
					bytes[i] += info.Size()
					files[i]++
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if bytes[0] != bytes[1] || files[0] != files[1] {
			return fmt.Errorf("%s has %d files of %d bytes after the restore, and had %d of %d", sub, files[1], bytes[1], files[0], bytes[0])
		}
	}
	return nil
}

// shell is a command of the shell, in which words are put for %s; they are quoted.
func (b *bench) shell(ctx context.Context, env []string, format string, words ...string) *exec.Cmd {
	quoted := make([]any, len(words))
	for i, w := range words {
		quoted[i] = quote(w)
	}
	return b.command(ctx, env, "bash", "-o", "pipefail", "-c", fmt.Sprintf(format, quoted...))
}

// give makes path the account's.
func (b *bench) give(path string) error { return os.Lchown(path, b.account.uid, b.account.gid) }
