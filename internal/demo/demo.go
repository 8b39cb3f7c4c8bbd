// Package demo tells the story of a dropped table on a throwaway PostgreSQL: archived, backed up, dropped, brought back.
//
// Everything is real and nothing is kept: a cluster with data checksums and an archive in a scratch directory, the commands an
// operator would type, run as they are shown. What was started is stopped and what was made removed, however the story ends.
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jackc/pgx/v5"
	"github.com/jedib0t/go-pretty/v6/table"

	"holdfast/internal/pg/instance"
)

// Options says how to tell the story. Program and Out are needed.
type Options struct {
	Program string    // path of the holdfast binary to run
	Out     io.Writer // where the story goes
	Major   int       // of PostgreSQL; 0 takes the newest found
	Servers string    // directory of PostgreSQL's programs; "" looks where they usually are
	Rows    int       // in the table to be dropped; 0 means 200 000
	Keep    bool      // leave the scratch directory
}

// story is one demo at work.
type story struct {
	Options
	ctx      context.Context
	dir      string   // scratch
	holdfast string   // the binary, where the server's account can run it
	env      []string // names the settings file, and takes every other setting out of the environment
	owner    *syscall.Credential
	programs instance.Programs
	live     *instance.Instance
	copy     *instance.Instance
	rows     table.Writer
	began    time.Time
	before   fingerprint
	moment   time.Time // right before the drop, by the server's clock
}

// Run tells the story. It fails when any part of it is not as it should be, above all when the table that came back is not the
// one that was dropped.
func Run(ctx context.Context, opts Options) (err error) {
	s := &story{Options: opts, ctx: ctx, rows: table.NewWriter(), began: time.Now()}
	if s.Rows <= 0 {
		s.Rows = 200_000
	}
	if err := s.find(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.cleanUp()) }()
	for _, chapter := range []func() error{s.prepare, s.start, s.backUp, s.work, s.drop, s.restore, s.compare} {
		if err := chapter(); err != nil {
			return err
		}
	}
	s.say("")
	fmt.Fprintln(s.Out, s.rows.Render())
	return nil
}

// missingError says that there is no PostgreSQL to play on.
type missingError struct{ err error }

func (e *missingError) Error() string { return e.err.Error() }
func (e *missingError) Unwrap() error { return e.err }
func (e *missingError) Hint() string {
	return "install one, such as with `apt-get install postgresql`; the demo makes a cluster of its own and touches no other"
}

func (s *story) find() (err error) {
	if s.Servers != "" {
		s.programs, err = instance.Open(s.ctx, s.Servers)
	} else if s.Major != 0 {
		s.programs, err = instance.Find(s.ctx, s.Major)
	} else if found := instance.Installed(s.ctx); len(found) > 0 {
		s.programs = found[0]
	} else {
		err = fmt.Errorf("no PostgreSQL server is installed: %w", fs.ErrNotExist)
	}
	if err != nil {
		return &missingError{err}
	}
	return nil
}

// say prints a line of the story.
func (s *story) say(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }

// chapter prints a heading.
func (s *story) chapter(title string) { s.say("\n── %s", title) }

// note adds a row to the table at the end.
func (s *story) note(what, value string) { s.rows.AppendRow(table.Row{what, value}) }

// took is how long something took since begin, for people.
func took(begin time.Time) string { return time.Since(begin).Round(10 * time.Millisecond).String() }

func (s *story) prepare() (err error) {
	if s.dir, err = os.MkdirTemp("", "hf-demo-"); err != nil {
		return err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil { // MkdirTemp closes it to the server's account
		return err
	}
	if s.dir, err = filepath.EvalSymlinks(s.dir); err != nil {
		return err
	}
	for _, d := range []string{"socket", "archive"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o700); err != nil {
			return err
		}
	}
	// The server's account may not reach the directory this binary lies in.
	s.holdfast = filepath.Join(s.dir, "holdfast")
	if err := copyFile(s.Program, s.holdfast); err != nil {
		return err
	}
	s.chapter(fmt.Sprintf("A throwaway PostgreSQL %s in %s", s.programs.Version, s.dir))
	data := filepath.Join(s.dir, "data")
	if os.Geteuid() == 0 {
		// PostgreSQL refuses to run as root: its account owns everything here.
		if s.owner, err = account("postgres"); err != nil {
			return &missingError{fmt.Errorf("PostgreSQL does not run as root, and there is no other account for it: %w", err)}
		}
		for _, d := range []string{".", "socket", "archive"} {
			if err := os.Chown(filepath.Join(s.dir, d), int(s.owner.Uid), int(s.owner.Gid)); err != nil {
				return err
			}
		}
	}
	if err := instance.Init(s.ctx, s.programs, data, instance.InitOptions{Checksums: true, NoSync: true}); err != nil {
		return err
	}
	settings := filepath.Join(s.dir, "holdfast.json")
	text, err := json.MarshalIndent(map[string]string{
		"WALG_FILE_PREFIX": filepath.Join(s.dir, "archive"), "PGHOST": filepath.Join(s.dir, "socket"), "PGUSER": instance.Superuser, "PGDATABASE": "postgres",
	}, "", "\t")
	if err != nil {
		return err
	}
	s.env = append(blank(os.Environ()), "HOLDFAST_CONFIG="+settings, "PGPORT=5432")
	return os.WriteFile(settings, text, 0o644)
}

// blank returns the settings in an environment, each empty, which counts as not given: an operator's own archive has no part in the story.
// Two of libpq's variables stay, which PostgreSQL's server reads too and does not take empty.
func blank(environ []string) (empty []string) {
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		ours := slices.ContainsFunc([]string{"WALG_", "WALE_", "HOLDFAST_", "AWS_", "S3_", "PG"}, func(p string) bool { return strings.HasPrefix(name, p) })
		if ours && name != "PGDATESTYLE" && name != "PGCLIENTENCODING" {
			empty = append(empty, name+"=")
		}
	}
	return empty
}

func (s *story) start() (err error) {
	s.chapter("Two settings make it safe: where the archive is, and that WAL goes there")
	s.say("   WALG_FILE_PREFIX = %s, in %s", filepath.Join(s.dir, "archive"), filepath.Join(s.dir, "holdfast.json"))
	s.say("   archive_command  = '%s wal-push \"%%p\"'", s.holdfast)
	s.live, err = instance.Start(s.ctx, instance.Options{
		Programs: s.programs, DataDir: filepath.Join(s.dir, "data"), SocketDir: filepath.Join(s.dir, "socket"), Env: s.env,
		Settings: map[string]string{
			"archive_mode": "on", "archive_command": s.holdfast + ` wal-push "%p"`, "wal_level": "replica", "shared_buffers": "64MB",
		},
	})
	if err != nil {
		return err
	}
	return s.sql(s.live, fmt.Sprintf(`
		create table customers as select id, 'customer ' || id as name, now() - id * interval '1 hour' as since from generate_series(1, 1000) id;
		create table orders (id bigint primary key, customer int, amount numeric, placed timestamptz);
		insert into orders select id, 1 + id %% 1000, round((random() * 1000)::numeric, 2), now() from generate_series(1, %d) id`, s.Rows))
}

func (s *story) backUp() error {
	s.chapter("A base backup, while the server runs")
	begin := time.Now()
	if err := s.run("backup-push", filepath.Join(s.dir, "data")); err != nil {
		return err
	}
	s.note("backup-push", took(begin))
	return s.run("backup-list")
}

func (s *story) work() error {
	s.chapter("The day goes on: more orders, after the backup")
	return s.sql(s.live, fmt.Sprintf(`insert into orders select id, 1 + id %% 1000, round((random() * 1000)::numeric, 2), now() from generate_series(%d, %d) id`,
		s.Rows+1, s.Rows+s.Rows/10))
}

// errDiffers ends a demo that has nothing to be proud of.
var errDiffers = errors.New("the table that came back is not the one that was dropped")

// fingerprint is the number of rows of orders and a checksum over all of them.
type fingerprint struct {
	rows int64
	sum  string
}

func (s *story) fingerprint(i *instance.Instance) (f fingerprint, err error) {
	c, err := pgx.Connect(s.ctx, i.ConnString(instance.Superuser, "postgres"))
	if err != nil {
		return f, err
	}
	defer c.Close(s.ctx) // nothing is pending on it
	err = c.QueryRow(s.ctx, `select count(*), md5(string_agg(o::text, ',' order by id)) from orders o`).Scan(&f.rows, &f.sum)
	return f, err
}

func (s *story) drop() (err error) {
	if s.before, err = s.fingerprint(s.live); err != nil {
		return err
	}
	if err := s.ask(s.live, `select clock_timestamp()`, &s.moment); err != nil {
		return err
	}
	s.chapter("Somebody drops a table")
	s.say("   %s  orders has %s rows, checksum %.8s", s.moment.Format(time.StampMilli), humanize.Comma(s.before.rows), s.before.sum)
	s.say("   postgres=# DROP TABLE orders;")
	if err := s.sql(s.live, `drop table orders`); err != nil {
		return err
	}
	s.say("   %s  orders is gone", time.Now().Format(time.StampMilli))
	// The drop is in the segment being written, which a restore needs as well: an operator would wait, or do this.
	s.say("   postgres=# SELECT pg_switch_wal();")
	var switched string
	if err := s.ask(s.live, `select pg_walfile_name(pg_switch_wal())`, &switched); err != nil {
		return err
	}
	begin := time.Now()
	for {
		var archived bool
		if err := s.ask(s.live, `select coalesce(last_archived_wal >= $1, false) from pg_stat_archiver`, &archived, switched); err != nil {
			return err
		}
		if archived {
			break
		}
		if time.Since(begin) > time.Minute {
			return fmt.Errorf("archive_command did not store %s within a minute; the server's log ends with: %s", switched, end(s.live.LogFile()))
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.note("last WAL archived after", took(begin))
	return nil
}

// end returns the last 2 KiB of a file, or why it cannot be read.
func end(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2048):])
}

func (s *story) restore() (err error) {
	s.chapter("The database as it was the moment before, beside the live one")
	copied := filepath.Join(s.dir, "restored")
	begin := time.Now()
	if err := s.run("backup-fetch", copied, "--target-time", s.moment.Format("2006-01-02 15:04:05.999999Z07:00"), "--target-action", "promote"); err != nil {
		return err
	}
	s.note("backup-fetch", took(begin))
	socket := filepath.Join(s.dir, "socket2")
	if err := os.Mkdir(socket, 0o700); err != nil {
		return err
	}
	if s.owner != nil {
		if err := os.Chown(socket, int(s.owner.Uid), int(s.owner.Gid)); err != nil {
			return err
		}
	}
	s.say("   $ postgres -D %s", copied)
	begin = time.Now()
	s.copy, err = instance.Start(s.ctx, instance.Options{Programs: s.programs, DataDir: copied, SocketDir: socket, Env: s.env,
		Settings: map[string]string{"shared_buffers": "64MB"}})
	if err != nil {
		return err
	}
	if err := s.copy.AwaitRecovery(s.ctx); err != nil {
		return err
	}
	s.note("start and replay of WAL", took(begin))
	return nil
}

func (s *story) compare() error {
	after, err := s.fingerprint(s.copy)
	if err != nil {
		return err
	}
	s.say("   orders has %s rows, checksum %.8s", humanize.Comma(after.rows), after.sum)
	s.note("rows before the drop", humanize.Comma(s.before.rows))
	s.note("rows brought back", humanize.Comma(after.rows))
	if after != s.before {
		return errDiffers
	}
	s.say("   The dropped table is back, every row of it.")
	size, err := treeSize(filepath.Join(s.dir, "data"))
	if err != nil {
		return err
	}
	stored, err := treeSize(filepath.Join(s.dir, "archive"))
	if err != nil {
		return err
	}
	s.note("data directory", humanize.Bytes(uint64(size)))
	s.note("archive: backup and WAL", humanize.Bytes(uint64(stored)))
	s.note("the whole story", took(s.began))
	return nil
}

// treeSize sums the sizes of the files below dir; one that goes away meanwhile counts nothing.
func treeSize(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				sum += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	return sum, err
}

// ask runs a query that returns one row.
func (s *story) ask(i *instance.Instance, query string, into any, more ...any) error {
	c, err := pgx.Connect(s.ctx, i.ConnString(instance.Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer c.Close(s.ctx) // nothing is pending on it
	return c.QueryRow(s.ctx, query, more...).Scan(into)
}

// account returns the credentials of a user of this machine.
func account(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

// sql runs statements on a server, as its superuser.
func (s *story) sql(i *instance.Instance, statements string) error {
	c, err := pgx.Connect(s.ctx, i.ConnString(instance.Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer c.Close(s.ctx) // nothing is pending on it
	_, err = c.Exec(s.ctx, statements)
	return err
}

// run shows a command of ours and runs it, as the server's account.
func (s *story) run(args ...string) error {
	shown := make([]string, len(args))
	for i, a := range args {
		shown[i] = a
		if strings.Contains(a, " ") {
			shown[i] = "'" + a + "'"
		}
	}
	s.say("   $ holdfast %s", strings.Join(shown, " "))
	cmd := exec.CommandContext(s.ctx, s.holdfast, args...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Dir = s.dir
	if s.owner != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	}
	out, err := cmd.CombinedOutput()
	for line := range bytes.Lines(out) {
		fmt.Fprintf(s.Out, "     %s\n", bytes.TrimRight(line, "\n"))
	}
	if err != nil {
		return fmt.Errorf("holdfast %s: %w", args[0], err)
	}
	return nil
}

func (s *story) cleanUp() error {
	var errs []error
	for _, i := range []*instance.Instance{s.copy, s.live} {
		if i != nil {
			i.Kill()
		}
	}
	if s.dir != "" && !s.Keep {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
