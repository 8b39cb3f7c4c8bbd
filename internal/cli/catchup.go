package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
)

func (a *app) catchupPush() *cobra.Command {
	var opts backup.Options
	var whom backup.Standby
	var from, userData string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "catchup-push [PGDATA] --from-lsn LSN",
		Short: "Store what a standby needs that lags too far behind",
		Long: "Stores what a standby needs that lags behind further than WAL reaches: of the running server with the data directory PGDATA (or the\n" +
			"setting of that name), a primary or another standby, the pages of relations that have changed since LSN, and all other files.\n" +
			"It is no backup: nothing but catchup-fetch restores it.\n\n" +
			"LSN is where the standby is: `holdfast catchup-fetch PGDATA --print-lsn` prints it there, as REDO location of the latest checkpoint does\n" +
			"pg_controldata. It is written X/Y as PostgreSQL does, as a decimal number, or in hexadecimal digits behind 0x.\n\n" +
			"What has changed is known from PostgreSQL's WAL summaries, from the archived WAL, or by reading all relations, as for delta backups.",
		Example: "  holdfast catchup-push /var/lib/postgresql/17/main --from-lsn 16/B374D848",
		Args:    a.args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(syscall.SIGPIPE) // who reads our words may leave; the push goes on
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if from == "" {
				return a.usage(cmd, errors.New("--from-lsn is missing: `holdfast catchup-fetch PGDATA --print-lsn`, with the data directory of the standby, prints it there"))
			}
			if whom.Since, err = parsePosition(from); err != nil {
				return fmt.Errorf("--from-lsn: %w", err)
			}
			dir := s.Postgres.DataDir
			if len(args) == 1 {
				dir = args[0]
			}
			if dir == "" {
				return a.usage(cmd, errors.New("name the data directory of the server, or set PGDATA"))
			}
			if opts.UserData, err = userDataOf(s, userData); err != nil {
				return err
			}
			report, err := a.pushCatchUp(cmd.Context(), s, dir, whom, opts)
			if err != nil {
				return err
			}
			if asJSON {
				if err := a.printJSON(report); err != nil { // nobody should push again for that
					a.log.Warn(fmt.Sprintf("%s is made, and its report could not be printed: %v", report.Name, err))
				}
			}
			if report.CorruptBlocks > 0 {
				return &exit{&backup.CorruptError{Report: report}, exitCorrupt}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from-lsn", "", "where the standby is")
	f.StringArrayVar(&whom.Whole, "whole", nil, "store files whole whose path in the data directory matches this pattern, such as 'base/16384/*'; repeatable")
	f.StringVar(&userData, "add-user-data", "", "JSON to store with it")
	f.BoolVar(&opts.NoWaitWAL, "no-wait-wal", false, "do not wait for the WAL that the standby will need")
	f.BoolVar(&asJSON, "json", false, "print a report as JSON")
	targetFlag(cmd)
	return cmd
}

// parsePosition reads a position of the WAL: X/Y, a decimal number, or a hexadecimal one behind 0x.
func parsePosition(text string) (wal.LSN, error) {
	if strings.Contains(text, "/") {
		return wal.ParseLSN(text)
	}
	digits, base := text, 10
	if rest, ok := strings.CutPrefix(strings.ToLower(text), "0x"); ok {
		digits, base = rest, 16
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no position of the WAL, such as 16/B374D848, 97497963592 or 0x16B374D848", text)
	}
	return wal.LSN(n), nil
}

// pushCatchUp connects, pushes, and tells how it goes.
func (a *app) pushCatchUp(ctx context.Context, s *config.Settings, dir string, whom backup.Standby, opts backup.Options) (*backup.Report, error) {
	a.starts("catchup-push")
	ar, err := a.openArchive(ctx, s, toWrite)
	if err != nil {
		return nil, err
	}
	if err := a.tune(&opts, s); err != nil {
		return nil, err
	}
	opts.Delta = deltaSource(s.Backup.Delta)
	conn, err := server.Connect(ctx, server.ConfigFromEnv(s.Postgres.Lookup))
	if err != nil {
		return nil, err
	}
	defer conn.Close() // the push is over, one way or the other
	stop := a.progress(ctx, "catch-up", opts.Progress)
	report, err := backup.CatchUp(ctx, conn, ar, dir, whom, opts)
	stop()
	if err != nil {
		return nil, err
	}
	a.log.Info(storedLine(report))
	for _, words := range deltaWords(report) {
		a.log.Info(words)
	}
	a.log.Info(fmt.Sprintf("Wrote backup with name %s to storage %s", report.Name, a.storageOf(ctx, s, ar.CatchUps(), report.Name)))
	a.log.Info(fmt.Sprintf("on the standby, stopped: holdfast catchup-fetch PGDATA %s", report.Name))
	a.sweep(ctx, s)
	return report, nil
}

func (a *app) catchupFetch() *cobra.Command {
	var mapping []string
	var dryRun, asJSON, printLSN, newUnwrap bool
	cmd := &cobra.Command{
		Use:   "catchup-fetch PGDATA NAME | catchup-fetch PGDATA --print-lsn",
		Short: "Bring a standby that lags behind forward, in place",
		Long: "Brings the standby with the data directory PGDATA forward, in place, by what catchup-push stored under NAME (LATEST: the newest). Its server\n" +
			"must be stopped. Afterwards start it: it replays WAL from where the push began, from the archive or from its primary.\n\n" +
			"Refused are a directory of another cluster, one that is before the position the push was for (the error says which one would do), one that\n" +
			"has gone another way or is beyond already, and a running server. Configuration, keys, logs and pg_wal stay as they are; in PostgreSQL's\n" +
			"other directories what the push does not have is removed, replication slots with it. Tablespaces stay where the standby has them.\n\n" +
			"Interrupted, the server cannot start any more, and the same command completes.",
		Example: "  holdfast catchup-fetch /var/lib/postgresql/17/main --print-lsn\n" +
			"  holdfast catchup-fetch /var/lib/postgresql/17/main base_0000000100000016000000B3 --dry-run",
		Args: a.args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			dir, err := a.absolute(args[0])
			if err != nil {
				return err
			}
			if printLSN != (len(args) == 1) {
				return a.usage(cmd, errors.New("give the name of a catch-up (`holdfast catchup-list`) or --print-lsn"))
			}
			if newUnwrap {
				a.log.Info("--use-new-unwrap changes nothing: there is one way to do it")
			}
			if printLSN {
				return a.printPosition(dir, asJSON)
			}
			r := restore.CatchUpRequest{Destination: dir}
			if r.TablespaceMapping, err = parseMapping(mapping); err != nil {
				return err
			}
			return a.fetchCatchUp(cmd.Context(), s, r, args[1], dryRun, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&printLSN, "print-lsn", false, "print where the standby is, for catchup-push --from-lsn, and do nothing")
	f.StringArrayVar(&mapping, "tablespace-mapping", nil, "OLD=NEW: put the new tablespace whose directory or oid is OLD into NEW; repeatable")
	f.BoolVar(&dryRun, "dry-run", false, "print what would be done, and do nothing")
	f.BoolVar(&asJSON, "json", false, "print the report, or with --dry-run the plan, as JSON")
	f.BoolVar(&newUnwrap, "use-new-unwrap", false, "accepted for WAL-G's sake")
	_ = f.MarkHidden("use-new-unwrap") // it was made in the line above
	targetFlag(cmd)
	return cmd
}

// printPosition prints where a standby is.
func (a *app) printPosition(dir string, asJSON bool) error {
	p, err := restore.Position(dir)
	if err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(p)
	}
	_, err = fmt.Fprintln(a.env.Stdout, p.RedoLSN)
	return err
}

// fetchCatchUp plans and, unless only the plan is wanted, carries it out.
func (a *app) fetchCatchUp(ctx context.Context, s *config.Settings, r restore.CatchUpRequest, name string, dryRun, asJSON bool) error {
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	ar = ar.CatchUps()
	if r.Catalog, err = catalog.Load(ctx, ar); err != nil {
		return err
	}
	if name == "LATEST" {
		r.Backup, err = r.Catalog.Latest()
	} else {
		r.Backup, err = r.Catalog.Find(name)
	}
	if errors.As(err, new(*catalog.NoBackupError)) {
		err = &advised{fmt.Errorf("the archive has no catch-up %s", name), "`holdfast catchup-list` lists them, `holdfast catchup-push` makes them"}
	}
	if err != nil {
		return err
	}
	plan, err := restore.DecideCatchUp(ctx, ar, r)
	if err != nil {
		return err
	}
	if dryRun {
		return a.printCatchUp(plan, asJSON)
	}
	for _, note := range plan.Notes {
		a.log.Info(note)
	}
	progress := &restore.Progress{}
	stop := a.progress(ctx, "catch-up", progress)
	report, err := restore.RunCatchUp(ctx, ar, plan, restore.Options{Workers: s.Restore.Workers, Progress: progress})
	stop()
	if err != nil {
		return err
	}
	for _, note := range report.Notes {
		a.log.Info(note)
	}
	var seconds float64
	for _, s := range report.Seconds {
		seconds += s
	}
	line := fmt.Sprintf("%d files written, %s, and %d removed in %s", report.Files, humanize.IBytes(uint64(report.Bytes)), report.RemovedFiles,
		time.Duration(seconds*float64(time.Second)).Round(10*time.Millisecond))
	if report.Verified {
		line += "; all verified"
	}
	a.log.Info(line)
	a.log.Info(fmt.Sprintf("Catch-up complete: start the server. It replays from %s, and answers once it has reached %s", report.StartLSN, report.FinishLSN))
	if asJSON {
		return a.printJSON(report)
	}
	return nil
}

// printCatchUp prints what would be done.
func (a *app) printCatchUp(c *restore.CatchUp, asJSON bool) error {
	if asJSON {
		return a.printJSON(c)
	}
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s %s\n", what, fmt.Sprintf(format, args...))
	}
	line("catch-up", "%s, finished at %s", c.Backup, catalog.FormatTime(c.Finished))
	line("since", "%s, from %s to %s on timeline %d", c.Since, c.StartLSN, c.FinishLSN, c.Timeline)
	line("into", "%s", c.Destination)
	if st := c.Standby; st != nil {
		line("which is", "%s at %s, with changes up to %s on timeline %d", st.State, st.RedoLSN, st.ReachLSN, st.Timeline)
	} else {
		line("which is", "interrupted in this catch-up")
	}
	for _, ts := range c.Tablespaces {
		line("tablespace", "%s in %s, on the primary in %s", ts.OID, ts.To, ts.From)
	}
	if c.Owner != nil {
		line("owner", "%s (%d:%d)", c.Owner.Name, c.Owner.UID, c.Owner.GID)
	}
	line("contents", "%s", c.Line())
	if c.Verified {
		line("verified", "while they are written")
	}
	for _, room := range c.Rooms {
		line("room", "%s of %s free for %s", humanize.IBytes(uint64(room.Need)), humanize.IBytes(uint64(room.Free)), strings.Join(room.Dirs, ", "))
	}
	if c.FirstWAL != "" {
		line("wal needed", "%s to %s", c.FirstWAL, c.NeededWAL)
	}
	if c.LastWAL != "" {
		line("wal archived", "without a gap to %s, stored at %s", c.LastWAL, catalog.FormatTime(c.LastAt))
	}
	if c.Signal != "" {
		line("signal file", "%s", c.Signal)
	}
	for _, n := range c.Notes {
		line("note", "%s", n)
	}
	_, err := a.env.Stdout.Write([]byte(b.String()))
	return err
}

func (a *app) catchupList() *cobra.Command {
	return a.listing("catchup-list", "List what catchup-push has stored", "Lists what catchup-push has stored, oldest first, as backup-list lists backups.",
		"  holdfast catchup-list --detail", (*archive.Archive).CatchUps)
}

// userDataOf returns what is stored with a push for its user: a flag's value, else the setting's.
func userDataOf(s *config.Settings, flag string) (json.RawMessage, error) {
	if flag == "" {
		return s.Backup.UserData, nil
	}
	if !json.Valid([]byte(flag)) {
		return nil, fmt.Errorf(`--add-user-data %s: want JSON, such as {"ticket":7} or "text" with its quotes`, flag)
	}
	return json.RawMessage(flag), nil
}

// tune gives a push what the settings say.
func (a *app) tune(opts *backup.Options, s *config.Settings) (err error) {
	if opts.Host, err = os.Hostname(); err != nil {
		return err
	}
	b := s.Backup
	opts.Workers, opts.PartSize, opts.DiskRate, opts.AllCorrupt = b.Workers, b.PartSize, b.DiskRate, opts.AllCorrupt || b.AllCorrupt
	opts.WALTimeout, opts.Alive, opts.Stop, opts.Tool = b.WALTimeout, b.Alive, b.Stop, release()
	if b.Wire != "off" {
		opts.WireCodec = b.Wire
	}
	if b.Alive == 0 {
		opts.Alive = -1 // the setting's 0 is never
	}
	opts.Logger, opts.Progress = a.log, &backup.Progress{}
	return nil
}

// storedLine sums a push up.
func storedLine(r *backup.Report) string {
	took := time.Duration(r.Seconds["copy"] * float64(time.Second))
	return fmt.Sprintf("%d files, %s, stored as %s in %s", r.Files, humanize.IBytes(uint64(r.UncompressedSize)), humanize.IBytes(uint64(r.CompressedSize)),
		took.Round(10*time.Millisecond))
}
