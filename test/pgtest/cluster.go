package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
)

// patience bounds every wait for a server: far beyond what a busy machine needs, short of the test's own limit.
const patience = 2 * time.Minute

// Options says what cluster a test needs. The zero value will often do.
type Options struct {
	Checksums   bool
	SegmentSize wal.SegmentSize   // 0 means 16 MiB
	Copy        string            // data directory of a stopped server that the cluster begins with; "" is a new one
	Archive     bool              // archive_mode=on, by cp into Cluster.Archive
	Settings    map[string]string // for the server's command line
	Env         []string          // for the server and its archive and restore commands
}

// Cluster is a scratch cluster with its server. Everything is below Dir and goes away with the test.
type Cluster struct {
	Programs instance.Programs
	Dir      string // belongs to the account of the servers
	Data     string // PGDATA
	Archive  string // where Options.Archive copies WAL files
	Server   *instance.Instance

	opts Options
}

// New creates a cluster and starts its server.
func New(t testing.TB, p instance.Programs, opts Options) *Cluster {
	t.Helper()
	dir := Dir(t)
	c := &Cluster{Programs: p, Dir: dir, Data: filepath.Join(dir, "data"), Archive: filepath.Join(dir, "archive"), opts: opts}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if opts.Copy != "" {
		if out, err := Command(t, "cp", "-a", "--reflink=auto", opts.Copy, c.Data).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	} else if err := instance.Init(ctx, p, c.Data, instance.InitOptions{Checksums: opts.Checksums, SegmentSize: opts.SegmentSize, NoSync: true}); err != nil {
		t.Fatal(err)
	}
	c.prepare(t)
	c.Start(t)
	return c
}

// Attach starts a server on a data directory that exists, a restored one for example, and gives it to the account of the servers.
func Attach(t testing.TB, p instance.Programs, data string, opts Options) *Cluster {
	t.Helper()
	dir := Dir(t)
	c := &Cluster{Programs: p, Dir: dir, Data: data, Archive: filepath.Join(dir, "archive"), opts: opts}
	Give(t, data)
	c.prepare(t)
	c.Start(t)
	return c
}

func (c *Cluster) prepare(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll(c.Archive, 0o700); err != nil {
		t.Fatal(err)
	}
	Give(t, c.Archive)
}

// Start starts the server again after Stop or Kill.
func (c *Cluster) Start(t testing.TB) {
	t.Helper()
	settings := map[string]string{"fsync": "off", "max_wal_senders": "4", "wal_level": "replica"}
	if c.Programs.Major >= 11 {
		settings["jit"] = "off" // the private builds come without LLVM
	}
	if c.opts.Archive {
		settings["archive_mode"] = "on"
		settings["archive_command"] = fmt.Sprintf("cp %%p %[1]s/.%%f && mv %[1]s/.%%f %[1]s/%%f", c.Archive)
	}
	maps.Copy(settings, c.opts.Settings)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := instance.Start(ctx, instance.Options{
		Programs: c.Programs, DataDir: c.Data, SocketDir: c.Dir, Settings: settings, Env: c.opts.Env,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Server = s
	t.Cleanup(s.Kill)
}

// Stop shuts the server down in order.
func (c *Cluster) Stop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Server.Stop(ctx, instance.Fast); err != nil {
		t.Fatal(err)
	}
}

// Config is how the cluster's server is reached as superuser.
func (c *Cluster) Config() server.Config {
	return server.Config{
		"host": c.Server.Host(), "port": strconv.Itoa(c.Server.Port()), "user": instance.Superuser, "dbname": "postgres",
		"sslmode": "disable", "application_name": "holdfast",
	}
}

// Environ is Config as the environment of a child process: PGHOST=… and so on.
func (c *Cluster) Environ() []string {
	return []string{"PGHOST=" + c.Server.Host(), "PGPORT=" + strconv.Itoa(c.Server.Port()), "PGUSER=" + instance.Superuser, "PGDATABASE=postgres"}
}

// Conn opens a session as superuser, which ends with the test.
func (c *Cluster) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Server.ConnString(instance.Superuser, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// Exec runs statements one after the other, each in a transaction of its own.
func (c *Cluster) Exec(t testing.TB, statements ...string) {
	t.Helper()
	c.ExecIn(t, "postgres", statements...)
}

// ExecIn is Exec in another database.
func (c *Cluster) ExecIn(t testing.TB, database string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Server.ConnString(instance.Superuser, database))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// Value runs a query that returns one value and returns it as text, empty for null.
func (c *Cluster) Value(t testing.TB, sql string, args ...any) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Server.ConnString(instance.Superuser, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var s *string
	if err := conn.QueryRow(t.Context(), "select ("+sql+")::text", args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if s == nil {
		return ""
	}
	return *s
}

// Pgbench prepares pgbench, of the server's version, for a database. One that is to run for -T seconds ends in order at SIGALRM before that.
func (c *Cluster) Pgbench(t testing.TB, database string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := Command(t, Tool(t, c.Programs.Major, "pgbench"), args...)
	cmd.Env = slices.Concat(cmd.Environ(), c.Environ(), []string{"PGDATABASE=" + database})
	return cmd
}

// Standby makes a streaming standby of c, which must not have tablespaces, and starts it.
func (c *Cluster) Standby(t testing.TB, opts Options) *Cluster {
	t.Helper()
	dir := Dir(t)
	s := &Cluster{Programs: c.Programs, Dir: dir, Data: filepath.Join(dir, "data"), Archive: filepath.Join(dir, "archive"), opts: opts}
	conn, err := server.Connect(t.Context(), c.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.StartBackup(t.Context(), "pgtest", true); err != nil {
		t.Fatal(err)
	}
	// A file may vanish while cp looks at it; the backup is good all the same, and cp says so by its exit status only.
	out, err := Command(t, "cp", "-a", c.Data, s.Data).CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("cp: %v: %s", err, out)
	}
	stop, err := conn.StopBackup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{"postmaster.pid", "postmaster.opts"} {
		if err := os.Remove(filepath.Join(s.Data, left)); err != nil {
			t.Fatal(err)
		}
	}
	conninfo := fmt.Sprintf("primary_conninfo = 'host=%s port=%d user=%s'\n", c.Server.Host(), c.Server.Port(), instance.Superuser)
	files := map[string]string{"backup_label": stop.Label}
	if c.Programs.Major >= 12 {
		files["standby.signal"], files["postgresql.auto.conf"] = "", conninfo
	} else {
		files["recovery.conf"] = "standby_mode = on\nrecovery_target_timeline = latest\n" + conninfo
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(s.Data, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	Give(t, s.Data)
	s.prepare(t)
	s.opts.Settings = maps.Clone(opts.Settings)
	if s.opts.Settings == nil {
		s.opts.Settings = map[string]string{}
	}
	s.opts.Settings["hot_standby"] = "on"
	s.Start(t)
	return s
}

// CatchUp waits until the standby s has replayed all that c has written.
func (c *Cluster) CatchUp(t testing.TB, s *Cluster) {
	t.Helper()
	lsn := c.Value(t, "pg_current_wal_lsn()")
	Eventually(t, "the standby has replayed "+lsn, func() bool {
		return s.Value(t, "pg_last_wal_replay_lsn() >= $1::pg_lsn", lsn) == "true"
	})
}

// Eventually polls until cond holds, and fails the test when it does not within any reasonable time.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
