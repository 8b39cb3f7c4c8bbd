package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/config"
	"holdfast/internal/walpush"
)

func (a *app) walPush() *cobra.Command {
	var f repairFlags
	cmd := &cobra.Command{
		Use:   "wal-push PATH",
		Short: "Store a finished WAL file (archive_command)",
		Long: "Stores the WAL file PATH and returns once it is durable in the archive. The files that PostgreSQL will ask for next, as its\n" +
			"archive_status says, are stored beside it; their own calls then cost nothing. The same content may come again; other content\n" +
			"under a name that is taken, or a file of another cluster than the archive's, is an error and changes nothing.\n\n" +
			"With --repair PATH is a data directory, by default PGDATA, of the primary or of a standby, running or not. Its pg_wal is searched for\n" +
			"segments that the archive lacks; those that are whole, by their records' checksums, are stored. Exit status 1 where some are still missing.",
		Example: "  archive_mode = on\n  archive_command = 'holdfast wal-push \"%p\"'\n  holdfast wal-push --repair /var/lib/postgresql/17/main --dry-run",
		Args: func(cmd *cobra.Command, args []string) error {
			if f.repair {
				return a.args(cobra.MaximumNArgs(1))(cmd, args)
			}
			return a.args(cobra.ExactArgs(1))(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if f.repair {
				return a.repair(cmd.Context(), s, args, f)
			}
			if f.dryRun || f.asJSON {
				return a.usage(cmd, errors.New("--dry-run and --json go with --repair"))
			}
			if debug.SetMemoryLimit(-1) > pushMemory {
				debug.SetMemoryLimit(pushMemory)
			}
			host, err := os.Hostname()
			if err != nil {
				return err
			}
			ext := compress.Method(s.Compression.Method).Extension()
			begin := time.Now()
			report, err := walpush.Push(cmd.Context(), a.archivesForPush(s), args[0], a.pushOptions(s, host))
			if err != nil {
				return err
			}
			a.tellPush(args[0], report, ext)
			a.repay(cmd.Context(), begin, repaidByPush)
			return nil
		},
	}
	cmd.Flags().BoolVar(&f.repair, "repair", false, "store the segments that the archive lacks and a data directory still has")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "with --repair: say what would be stored, and store nothing")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "with --repair: print the report as JSON")
	targetFlag(cmd)
	return cmd
}

func (a *app) pushOptions(s *config.Settings, host string) walpush.Options {
	return walpush.Options{
		Location: s.Location(), Host: host,
		Parallel: s.WAL.Parallel, Limit: s.WAL.Limit, ReadyRename: s.WAL.ReadyRename,
		Summaries: s.SummarizesWAL(), Deltas: s.WAL.Deltas, Logger: a.log,
	}
}

// tellPush logs what a push did, in WAL-G's words.
func (a *app) tellPush(path string, report walpush.Report, ext string) {
	switch report.Outcome {
	case walpush.Stored:
		a.log.Info("FILE PATH: " + report.Name + ext)
	case walpush.Equal:
		a.log.Info(fmt.Sprintf("WAL file '%s' already archived with equal content, skipping", path))
	case walpush.Early:
		a.log.Debug("stored ahead: " + report.Name + ext)
	}
	for _, name := range report.Ahead {
		a.log.Debug("FILE PATH: " + name + ext + ", ahead of being asked")
	}
}

// repaidByPush is how many objects one wal-push brings to mirrors that lack them, when it has done its own.
const repaidByPush = 8

// pushMemory bounds wal-push, in bytes: it runs beside a server at work all the time.
const pushMemory = 96 << 20

// archivesForPush opens the archive for walpush.Push.
func (a *app) archivesForPush(s *config.Settings) walpush.Opener {
	return func(ctx context.Context) (asked, ahead walpush.Archive, err error) {
		small := *s
		small.MemoryBudget = min(s.MemoryBudget, pushMemory)
		st, err := a.openStore(ctx, &small, toWrite)
		if err != nil {
			return nil, nil, err
		}
		o, err := a.archiveOptions(ctx, s, toWrite)
		if err != nil {
			return nil, nil, err
		}
		parallel := o
		parallel.Parallel = runtime.GOMAXPROCS(0)
		return archive.New(st, parallel), archive.New(st, o), nil
	}
}
