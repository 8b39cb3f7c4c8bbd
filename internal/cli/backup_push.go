package cli

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/config"
	"holdfast/internal/pg/server"
)

func (a *app) backupPush() *cobra.Command {
	var opts backup.Options
	var userData string
	var delta deltaFlags
	var asJSON, verify, wire bool
	cmd := &cobra.Command{
		Use:   "backup-push [PGDATA]",
		Short: "Take a base backup",
		Long: "Takes a base backup of the running server whose data directory is PGDATA (or the setting of that name), on a primary or a\n" +
			"standby. The backup counts once all the WAL it needs is in the archive: backup-push waits for that.\n\n" +
			"With WALG_DELTA_MAX_STEPS above 0 it stores only what has changed since the newest backup, on which it then builds.\n\n" +
			"Without PGDATA, or with --wire, the server sends its files by the replication protocol, and may be on another host: PGHOST and\n" +
			"PGUSER say which, and the role needs the attribute REPLICATION and a line for replication in pg_hba.conf.\n\n" +
			"Exit status: 0 the backup is made, also when its report could not be printed; 3 it is made, and has pages that were corrupt on\n" +
			"disk already; 1 there is no backup, and what had been stored of it is removed.",
		Example: "  holdfast backup-push /var/lib/postgresql/15/main\n" +
			"  holdfast backup-push --permanent --add-user-data '{\"before\":\"upgrade\"}' \"$PGDATA\"\n" +
			"  PGHOST=db1 PGUSER=backup holdfast backup-push",
		Args: a.args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(syscall.SIGPIPE) // who reads our words may leave; the backup goes on
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			for _, name := range composers {
				if cmd.Flags().Changed(name) {
					a.log.Info("--" + name + " changes nothing: files are dealt to parts in one way, and the list of files is always written")
				}
			}
			dir := s.Postgres.DataDir
			if len(args) == 1 {
				dir = args[0]
			}
			if wire && len(args) == 1 {
				return a.usage(cmd, errors.New("--wire: the server sends its data directory, wherever it is; name none"))
			}
			if wire {
				dir = ""
			}
			if opts.UserData, err = userDataOf(s, userData); err != nil {
				return err
			}
			report, err := a.push(cmd.Context(), s, dir, delta, opts)
			if err != nil || report == nil {
				return err
			}
			if asJSON {
				if err := a.printJSON(report); err != nil { // nobody should take another backup for that
					a.log.Warn(fmt.Sprintf("the backup %s is made, and its report could not be printed: %v", report.Name, err))
				}
			}
			if report.CorruptBlocks > 0 {
				return &exit{&backup.CorruptError{Report: report}, exitCorrupt}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&opts.Permanent, "permanent", "p", false, "retention leaves this backup alone")
	delta.add(f)
	f.BoolVarP(&verify, "verify", "v", false, "verify page checksums, which is always done")
	f.BoolVarP(&opts.AllCorrupt, "store-all-corrupt", "s", false, "record every corrupt block of a file, not just the first ten")
	f.StringVar(&userData, "add-user-data", "", "JSON to store with the backup")
	f.BoolVar(&opts.Adopt, "adopt", false, "take over an archive that belongs to another cluster, as after pg_upgrade")
	f.BoolVar(&opts.NoWaitWAL, "no-wait-wal", false, "do not wait for the WAL that the backup needs")
	f.BoolVar(&wire, "wire", false, "have the server send its files, though PGDATA is set")
	f.BoolVar(&asJSON, "json", false, "print a report as JSON")
	for i, name := range composers {
		f.BoolP(name, []string{"r", "c", "b", ""}[i], false, "accepted for WAL-G's sake")
		_ = f.MarkHidden(name) // it was made in the line above
	}
	targetFlag(cmd)
	return cmd
}

// composers are flags of WAL-G that say how it makes parts.
var composers = [...]string{"rating-composer", "copy-composer", "database-composer", "without-files-metadata"}

// push connects, takes the backup, over the wire where dir is empty, and tells how it goes. Where that is not this host's to do there is no report.
func (a *app) push(ctx context.Context, s *config.Settings, dir string, delta deltaFlags, opts backup.Options) (*backup.Report, error) {
	a.starts(leasePush)
	ar, err := a.openArchive(ctx, s, toWrite)
	if err != nil {
		return nil, err
	}
	if opts.Delta, err = delta.options(s.Backup.Delta); err != nil {
		return nil, err
	}
	if err := a.tune(&opts, s); err != nil {
		return nil, err
	}
	begin := time.Now()
	var report *backup.Report
	err = a.alone(ctx, s, leasePush, ar, func(ctx context.Context, ar *archive.Archive) (err error) {
		stop := a.progress(ctx, "backup", opts.Progress)
		defer stop()
		report, err = backUp(ctx, s, ar, dir, opts)
		if there := (*archive.InUseError)(nil); a.helped != "" && errors.As(err, &there) && there.Backup == a.helped {
			a.log.Info("a new backup would be the same, as there was no checkpoint since: nothing to do")
			a.child.made(a.helped)
			return nil
		}
		if err == nil {
			a.child.made(report.Name)
		}
		return err
	})
	if err != nil || report == nil {
		return nil, err
	}
	a.measures(report.BytesRead, report.Seconds)
	a.log.Info(storedLine(report))
	for _, words := range deltaWords(report) {
		a.log.Info(words)
	}
	a.log.Info(fmt.Sprintf("Wrote backup with name %s to storage %s", report.Name, a.storageOf(ctx, s, ar, report.Name)))
	a.repay(ctx, begin, 0)
	a.sweep(ctx, s)
	return report, nil
}

// backUp connects as the way to take the backup needs it, and takes it.
func backUp(ctx context.Context, s *config.Settings, ar *archive.Archive, dir string, opts backup.Options) (*backup.Report, error) {
	cfg := server.ConfigFromEnv(s.Postgres.Lookup)
	if dir == "" {
		conn, err := server.ConnectReplication(ctx, cfg)
		if err != nil {
			return nil, err
		}
		defer conn.Close() // the backup is over, one way or the other
		return backup.Wire(ctx, conn, ar, opts)
	}
	conn, err := server.Connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // the backup is over, one way or the other
	return backup.Run(ctx, conn, ar, dir, opts)
}

// storageOf returns the name of the storage, or of the storages, that a new backup is in.
func (a *app) storageOf(ctx context.Context, s *config.Settings, ar *archive.Archive, backup string) string {
	if names, err := a.storageNames(ctx, s, ar); err == nil && names[backup] != "" {
		return names[backup]
	}
	return s.InUse()[0].Name
}
