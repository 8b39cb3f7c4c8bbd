// Package firedrill plays an accident on a restored copy, and has it undone by the commands that the runbook names: people see what that looks like and how long it
// takes, and the commands prove themselves on the cluster's own backup.
//
// The newest backup is restored into a scratch directory and started there, as by a drill, but archiving: into an archive of its own in that directory, which gets a
// backup, too. Then sessions work with tables that were made for this, and one table is dropped, truncated or changed while they do. Who undoes that knows the name of
// the table and nothing else: `holdfast events` and `holdfast recover-table --before-drop` are started as processes of their own, and what came back is compared
// with what was there in the accident's own transaction.
//
// Neither the live server nor the archive is touched, but for reading the backup; all that was made goes, however it ends.
package firedrill

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/archive"
	"holdfast/internal/drill"
)

// Accident is what happens to a table.
type Accident string

// The accidents.
const (
	Drop     Accident = "drop"
	Truncate Accident = "truncate"
	Update   Accident = "update" // of all rows, where one was meant
)

// Accidents returns all of them.
func Accidents() []Accident { return []Accident{Drop, Truncate, Update} }

// Database is the name of the database that is made in the copy.
const Database = "holdfast_firedrill"

// MinRows is how many rows a table has at least: of fewer an UPDATE is no accident to `events`.
const MinRows = 1000

// Options says what to play.
type Options struct {
	Accidents []Accident    // one after the other; none means all
	Rows      int           // of each table; 0 means 100 000
	Open      drill.Options // of the copy; its Keep leaves it, running
	Logger    *slog.Logger  // nil discards
}

// Report is what came of it.
type Report struct {
	Backup     string             `json:"backup"`
	PostgreSQL string             `json:"postgresql"`
	OK         bool               `json:"ok"`
	Played     []Played           `json:"played"`
	Traffic    Traffic            `json:"traffic"`
	Seconds    map[string]float64 `json:"seconds"` // restore, of the backup; backup, of the copy; total
	Notes      []string           `json:"notes,omitempty"`
	Copy       *drill.Copy        `json:"copy,omitempty"` // that was kept
}

// Played is one accident, and how it was undone.
type Played struct {
	Accident  Accident  `json:"accident"`
	Table     string    `json:"table"`
	OK        bool      `json:"ok"`
	Error     string    `json:"error,omitempty"`
	Rows      int64     `json:"rows"`                 // before the accident
	Back      int64     `json:"rows_back"`            // that were brought back
	As        string    `json:"as,omitempty"`         // the table that they are in
	Found     float64   `json:"found_seconds"`        // after the accident
	Recovered float64   `json:"recovered_seconds"`    // after the accident
	Steps     []Step    `json:"steps"`                // in their order
	At        time.Time `json:"accident_at,omitzero"` // by the copy's clock
}

// Step is something that was typed.
type Step struct {
	Typed   string  `json:"typed"`
	Said    string  `json:"said,omitempty"` // the last 8 KiB
	Seconds float64 `json:"seconds"`
}

// Traffic is what went on in the copy meanwhile.
type Traffic struct {
	Commits int64   `json:"commits"`
	Longest float64 `json:"longest_seconds"` // that one of them took
}

// FailedError says that something did not come back as it was.
type FailedError struct{ Err error }

func (e *FailedError) Error() string { return e.Err.Error() }
func (e *FailedError) Unwrap() error { return e.Err }

// Run plays. Request.Archiving is set by it. What this host cannot do is a *drill.HostError, a backup that does not restore a *drill.FailedError, and what was not undone a
// *FailedError, with a report of what was played.
func Run(ctx context.Context, a *archive.Archive, r drill.Request, o Options) (_ *Report, err error) {
	begun := time.Now()
	if len(o.Accidents) == 0 {
		o.Accidents = Accidents()
	}
	o.Rows = max(cmp.Or(o.Rows, 100_000), MinRows)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if len(r.Dir) > maxDir && len(os.TempDir()) > maxTemp {
		return nil, &drill.HostError{Err: fmt.Errorf("fire drill below %s: the path of a socket would have %d bytes too many, and %s is no shorter way to it", r.Dir, len(r.Dir)-maxDir, os.TempDir()),
			Advice: "name a directory with a shorter path, --dir or HOLDFAST_DRILL_DIR, or have TMPDIR name one"}
	}
	var errSettings error
	r.Archiving = func(scratch string) string {
		errSettings = writeNone(scratch)
		return archiving(scratch, r.Program)
	}
	drill.Clear(ctx, a, r.Dir, o.Logger)
	o.Logger.Info("restoring the copy that it is played on")
	plan, err := drill.Decide(ctx, a, r)
	if err != nil {
		return nil, err
	}
	copied, err := drill.Open(ctx, a, plan, o.Open)
	if err != nil {
		return nil, err
	}
	s := &stage{Options: o, copy: copied, program: r.Program, at: copied.Copy(),
		report: &Report{Backup: r.Choice.Backup.Name, PostgreSQL: copied.Programs().Version, Seconds: map[string]float64{"restore": time.Since(begun).Seconds()}, Notes: copied.Notes()}}
	defer func() {
		end := context.WithoutCancel(ctx)
		if o.Open.Keep && ctx.Err() == nil {
			if errKeep := copied.Keep(); errKeep != nil {
				err = errors.Join(err, errKeep, copied.Close(end))
			} else {
				s.report.Copy = &s.at
			}
			return
		}
		err = errors.Join(err, copied.Close(end))
	}()
	if errSettings != nil {
		return nil, errSettings
	}
	err = s.play(ctx)
	if s.short != "" {
		err = errors.Join(err, os.RemoveAll(filepath.Dir(s.short)))
	}
	s.report.Seconds["total"] = time.Since(begun).Seconds()
	s.report.OK = err == nil
	return s.report, err
}

// stage is what is played on.
type stage struct {
	Options
	copy    *drill.Private
	at      drill.Copy
	program string
	short   string // a link to againOf, where its path is too long for sockets in it; "" for none
	report  *Report
}

// Directories of the account of the copy: its archive, and where recover-table makes a copy in turn. The name is short, as a socket's path must be.
func archiveOf(scratch string) string { return filepath.Join(scratch, "run", "archive") }
func againOf(scratch string) string   { return filepath.Join(scratch, "r") }

// noneOf is the file of settings of all that is started for the copy: an empty one, or they would read that of the account's home directory, which is about the live
// archive and those who watch it.
func noneOf(scratch string) string { return filepath.Join(scratch, "none.yaml") }

// writeNone makes that file. It is the program's own, and the account of the copy may read it whatever the umask is.
func writeNone(scratch string) error {
	f, err := os.OpenFile(noneOf(scratch), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o644), f.Close())
}

// The path of a socket has 107 bytes in sockaddr_un. maxDir is how long that of the directory for scratch directories may be, in bytes, for the socket of a copy
// within a copy; where it is longer a link leads to the inner one, from the directory for temporary files, whose path may have maxTemp bytes.
const (
	maxDir  = 107 - len("/holdfast-drill-0123456789/r/holdfast-drill-0123456789/run/.s.PGSQL.5432")
	maxTemp = 107 - len("/holdfast-0123456789/r/holdfast-drill-0123456789/run/.s.PGSQL.5432")
)

// link makes that link, in a directory of its own in which the account of the copy changes nothing.
func (s *stage) link() error {
	dir, err := os.MkdirTemp("", "holdfast-")
	if err != nil {
		return err
	}
	s.short = filepath.Join(dir, "r")
	return errors.Join(os.Chmod(dir, 0o711), os.Symlink(againOf(s.at.Scratch), s.short)) // to go through
}

// quote makes text one word of the shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// settings are all that the commands get to know, so that no other archive and no other server has any part in it.
func settings(scratch string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOLDFAST_CONFIG=" + noneOf(scratch), "WALG_FILE_PREFIX=" + archiveOf(scratch), "HOLDFAST_STATE_DIR=" + filepath.Join(scratch, "run", "state")}
}

// archiving is the archive_command of the copy. In it a % stands for itself when there are two.
func archiving(scratch, program string) string {
	words := []string{"env", "-i"}
	for _, v := range settings(scratch) {
		words = append(words, quote(v))
	}
	words = append(words, quote(program), "wal-push")
	return strings.ReplaceAll("mkdir -p "+quote(archiveOf(scratch))+" && "+strings.Join(words, " "), "%", "%%") + ` "%p"`
}

// play does all of it on a copy that runs.
func (s *stage) play(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	begun := time.Now()
	s.Logger.Info("taking a backup of the copy, into its own archive")
	if _, err := s.run(ctx, "backup-push", s.at.Data); err != nil {
		return err
	}
	s.report.Seconds["backup"] = time.Since(begun).Seconds()
	t, err := s.work(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range s.Accidents {
		p, err := s.accident(ctx, a, t)
		s.report.Played = append(s.report.Played, *p)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	done, err := t.stop()
	s.report.Traffic = done
	if err != nil {
		errs = append(errs, fmt.Errorf("the work that went on meanwhile: %w", err))
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := errors.Join(errs...); err != nil {
		return &FailedError{err}
	}
	return nil
}

// tableOf is the table that an accident happens to; workTable another one, that people work with.
func tableOf(a Accident) string { return "orders_" + string(a) }

const workTable = "visits"

// prepare makes the database and its tables.
func (s *stage) prepare(ctx context.Context) error {
	home, err := s.copy.Connect(ctx, "")
	if err != nil {
		return err
	}
	_, err = home.Exec(ctx, `create database `+Database+` template template0`)
	if err = errors.Join(err, home.Close(ctx)); err != nil {
		return fmt.Errorf("make a database in the copy: %w", err)
	}
	if err := os.Mkdir(againOf(s.at.Scratch), 0o700); err != nil {
		return err
	}
	if c := s.copy.Credential(); c != nil {
		if err := os.Lchown(againOf(s.at.Scratch), int(c.Uid), int(c.Gid)); err != nil {
			return err
		}
	}
	if len(filepath.Dir(s.at.Scratch)) > maxDir {
		if err := s.link(); err != nil {
			return err
		}
	}
	return s.in(ctx, func(c *pgx.Conn) error {
		statements := []string{`create table public.` + workTable + ` (id bigserial primary key, at timestamptz not null default clock_timestamp())`}
		for _, a := range s.Accidents {
			t := `public.` + tableOf(a)
			statements = append(statements, `create table `+t+` (id bigint primary key, customer int not null, amount numeric(10, 2) not null, note text)`,
				fmt.Sprintf(`insert into %s select i, i %% 1000, (i %% 10007) / 100.0 + 1, md5(i::text) from generate_series(1, %d) i`, t, s.Rows),
				`create index on `+t+` (customer)`)
		}
		for _, sql := range statements {
			if _, err := c.Exec(ctx, sql); err != nil {
				return fmt.Errorf("make tables in the copy: %w", err)
			}
		}
		return nil
	})
}

// in does something in a session of the database.
func (s *stage) in(ctx context.Context, do func(*pgx.Conn) error) error {
	c, err := s.copy.Connect(ctx, Database)
	if err != nil {
		return err
	}
	err = do(c)
	return errors.Join(err, c.Close(context.WithoutCancel(ctx)))
}

// fingerprint is the number of rows of a table, and a sum over what is in them whatever their order.
type fingerprint struct {
	rows int64
	sum  string
}

func fingerprintOf(ctx context.Context, c *pgx.Conn, table string) (f fingerprint, err error) {
	err = c.QueryRow(ctx, `select count(*), coalesce(sum(('x' || left(md5(r::text), 15))::bit(60)::bigint::numeric), 0)::text from `+pgx.Identifier{"public", table}.Sanitize()+` r`).Scan(&f.rows, &f.sum)
	return f, err
}

// accident plays one and has it undone.
func (s *stage) accident(ctx context.Context, a Accident, t *traffic) (*Played, error) {
	table := tableOf(a)
	p := &Played{Accident: a, Table: Database + ".public." + table}
	err := s.undo(ctx, p, a, table, t)
	if err != nil {
		p.Error = err.Error()
	}
	p.OK = err == nil
	return p, err
}

func (s *stage) undo(ctx context.Context, p *Played, a Accident, table string, t *traffic) error {
	// Somewhen while people work: nobody is told when.
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(300*time.Millisecond + rand.N(time.Second)):
	}
	was, err := s.happen(ctx, a, table)
	if err != nil {
		return err
	}
	t.leave(table) // for who compares it with what comes back, perhaps under its own name
	p.Rows = was.rows
	begun := time.Now()
	p.At = begun.UTC().Truncate(time.Millisecond)
	s.Logger.Info("something has happened to " + p.Table)
	if err := s.find(ctx, p, table); err != nil {
		return err
	}
	p.Found = time.Since(begun).Seconds()
	s.Logger.Info(fmt.Sprintf("found after %.1f s", p.Found))
	if err := s.typed(ctx, p, "recover-table", p.Table, "--before-drop"); err != nil {
		return err
	}
	p.Recovered = time.Since(begun).Seconds()
	s.Logger.Info(fmt.Sprintf("brought back after %.1f s", p.Recovered))
	p.As = table
	if a != Drop {
		p.As += "_recovered"
	}
	var is fingerprint
	if err := s.in(ctx, func(c *pgx.Conn) (err error) { is, err = fingerprintOf(ctx, c, p.As); return err }); err != nil {
		return fmt.Errorf("look at what came back: %w", err)
	}
	p.Back = is.rows
	if is != was {
		return fmt.Errorf("%s has %d rows (%s) where %s had %d (%s)", p.As, is.rows, is.sum, table, was.rows, was.sum)
	}
	return nil
}

// happen has the accident happen, and returns what the table held in that moment.
func (s *stage) happen(ctx context.Context, a Accident, table string) (was fingerprint, err error) {
	name := pgx.Identifier{"public", table}.Sanitize()
	err = s.in(ctx, func(c *pgx.Conn) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `lock table `+name+` in access exclusive mode`); err != nil {
				return err
			}
			var err error
			if was, err = fingerprintOf(ctx, c, table); err != nil {
				return err
			}
			sql := map[Accident]string{Drop: `drop table ` + name, Truncate: `truncate ` + name, Update: `update ` + name + ` set amount = 0`}[a]
			if sql == "" {
				return fmt.Errorf("nobody knows the accident %q", a)
			}
			_, err = tx.Exec(ctx, sql)
			return err
		})
	})
	return was, err
}

// foundPatience is how long WAL may take to the archive.
const foundPatience = 2 * time.Minute

// find has what was written archived, and looks through it until the table turns up.
func (s *stage) find(ctx context.Context, p *Played, table string) error {
	begun := time.Now()
	err := s.in(ctx, func(c *pgx.Conn) error {
		var name string
		return c.QueryRow(ctx, `select pg_walfile_name(pg_switch_wal())`).Scan(&name)
	})
	if err != nil {
		return err
	}
	p.Steps = append(p.Steps, Step{Typed: "psql -Xc 'SELECT pg_switch_wal()'", Seconds: time.Since(begun).Seconds()})
	for {
		n := len(p.Steps)
		if err := s.typed(ctx, p, "events", "--since", "1 hour ago", "--destructive", "--database", Database); err != nil {
			return err
		}
		if strings.Contains(p.Steps[n].Said, table) {
			return nil
		}
		if time.Since(begun) > foundPatience {
			return fmt.Errorf("`holdfast events` does not show what happened to %s", table)
		}
		p.Steps = p.Steps[:n] // it is not archived yet
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// typed runs a command of ours and notes what it said.
func (s *stage) typed(ctx context.Context, p *Played, args ...string) error {
	begun := time.Now()
	said, err := s.run(ctx, args...)
	words := make([]string, len(args))
	for i, a := range args {
		if words[i] = a; strings.ContainsAny(a, " '") {
			words[i] = quote(a)
		}
	}
	p.Steps = append(p.Steps, Step{Typed: "holdfast " + strings.Join(words, " "), Said: said, Seconds: time.Since(begun).Seconds()})
	return err
}

// maxSaid bounds what is kept of a command's output, in bytes.
const maxSaid = 8 << 10

// run runs a command of ours on the copy and its archive, as the account of the copy, and returns what it printed.
func (s *stage) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Dir = "/"
	cmd.Env = append(settings(s.at.Scratch), "PGHOST="+s.at.Socket, "PGPORT="+strconv.Itoa(s.at.Port), "PGUSER="+s.at.Role, "PGDATABASE="+Database,
		"HOLDFAST_DRILL_DIR="+cmp.Or(s.short, againOf(s.at.Scratch)), "HOLDFAST_PG_BIN="+s.copy.Programs().Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.copy.Credential()}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it removes what it has made
	cmd.WaitDelay = time.Minute
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	said := stdout.String()
	said = strings.ToValidUTF8(said[max(0, len(said)-maxSaid):], "")
	if ctx.Err() != nil {
		return said, context.Cause(ctx)
	}
	if err != nil {
		words := strings.TrimSpace(stderr.String())
		err = fmt.Errorf("holdfast %s: %w: %s", args[0], err, strings.ToValidUTF8(words[max(0, len(words)-maxSaid):], ""))
	}
	return said, err
}
