package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast/internal/config"
	"holdfast/internal/drill"
	"holdfast/internal/walfetch"
)

func (a *app) walFetch() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wal-fetch NAME DEST",
		Short: "Bring a WAL file back (restore_command)",
		Long: "Brings the WAL file NAME to DEST, whole or not at all. While PostgreSQL replays, the next segments are fetched ahead into\n" +
			".wal-g/prefetch beside DEST, or below WALG_PREFETCH_DIR; WALG_DOWNLOAD_CONCURRENCY=1 switches that off.\n\n" +
			"Exit status: 0; 74 the archive does not have the file; any other failure 75 on a standby, so that PostgreSQL tries again, and\n" +
			"else 200, so that PostgreSQL stops rather than take the failure for the end of the archive. docs/operations.md says why.",
		Example: "  restore_command = 'holdfast wal-fetch \"%f\" \"%p\"'",
		RunE: func(cmd *cobra.Command, args []string) error {
			// Should the program itself break, PostgreSQL must not take the runtime's status 2 for the end of the archive:
			// this makes it end by a signal, upon which PostgreSQL stops.
			debug.SetTraceback("crash")
			s, err := a.fetchWAL(cmd, args)
			if hint := (interface{ Hint() string })(nil); err != nil && s != nil && !errors.As(err, new(*walfetch.MissingError)) && !errors.As(err, &hint) {
				err = &advised{err, "the archive is " + s.Location()}
			}
			return a.toRestoreCommand(cmd.Context(), s, args, err)
		},
	}
	targetFlag(cmd)
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return a.toRestoreCommand(cmd.Context(), nil, nil, a.usage(cmd, err))
	})
	return cmd
}

// fetchWAL returns the settings as well, nil when there are none.
func (a *app) fetchWAL(cmd *cobra.Command, args []string) (*config.Settings, error) {
	if err := a.args(cobra.ExactArgs(2))(cmd, args); err != nil {
		return nil, err
	}
	s, err := a.load(cmd)
	if err != nil {
		return nil, err
	}
	o := a.fetchOptions(s)
	o.Start = func() error {
		child := []string{"wal-prefetch", args[0], args[1]}
		cmd.Flags().Visit(func(f *pflag.Flag) { child = append(child, "--"+f.Name+"="+f.Value.String()) })
		return walfetch.Detach(a.env.Program, child...)
	}
	open := func(ctx context.Context) (walfetch.Archive, error) { return a.openArchive(ctx, s, toRead) }
	report, err := walfetch.Fetch(cmd.Context(), open, args[0], args[1], o)
	if err == nil {
		if err := drill.Guard(a.env.Environ, args[0], args[1]); err != nil {
			return s, &exit{err, walfetch.StatusStop}
		}
		a.log.Debug(fmt.Sprintf("%s: %d bytes, fetched ahead: %t", report.Name, report.Bytes, report.Ahead))
	}
	return s, err
}

func (a *app) fetchOptions(s *config.Settings) walfetch.Options {
	return walfetch.Options{Location: s.Location(), Dir: s.WAL.PrefetchDir, Parallel: s.WAL.Prefetch, Logger: a.log}
}

// toRestoreCommand gives err the exit status that makes PostgreSQL do the right thing. What PostgreSQL is doing shows in its
// data directory: the current one, the one in which DEST lies, or PGDATA.
func (a *app) toRestoreCommand(ctx context.Context, s *config.Settings, args []string, err error) error {
	if err == nil {
		return nil
	}
	dirs := []string{"."}
	if len(args) == 2 {
		dirs = append(dirs, filepath.Dir(filepath.Dir(args[1])))
	}
	if s != nil {
		dirs = append(dirs, s.Postgres.DataDir)
	} else {
		for _, kv := range a.env.Environ {
			if dir, ok := strings.CutPrefix(kv, "PGDATA="); ok {
				dirs = append(dirs, dir)
			}
		}
	}
	if stop := (*exit)(nil); errors.As(err, &stop) && stop.code == walfetch.StatusStop {
		return err
	}
	reason := err
	if ctx.Err() != nil { // whatever came of that
		reason = ctx.Err()
	}
	return &exit{err, walfetch.Status(reason, walfetch.SituationOf(dirs...))}
}

// walPrefetch is what wal-fetch starts, as WAL-G names it.
func (a *app) walPrefetch() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "wal-prefetch NAME DEST",
		Short:  "Fetch the segments after NAME ahead, as wal-fetch does by itself",
		Hidden: true,
		Args:   a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			ar, err := a.openArchive(cmd.Context(), s, toRead)
			if err != nil {
				return err
			}
			n, err := walfetch.Ahead(cmd.Context(), ar, args[1], a.fetchOptions(s))
			a.log.Debug(fmt.Sprintf("fetched %d segments ahead", n))
			return err
		},
	}
	targetFlag(cmd)
	return cmd
}
