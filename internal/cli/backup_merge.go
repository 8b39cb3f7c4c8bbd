package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/merge"
)

func (a *app) backupMerge() *cobra.Command {
	var dryRun, asJSON bool
	cmd := &cobra.Command{
		Use:   "backup-merge NAME|LATEST",
		Short: "Make a full backup of a delta and what it builds on",
		Long: "Puts a delta and all that it builds on together to a full backup, inside the archive: no server is asked, and no room is needed for a\n" +
			"data directory. The full backup restores to the same, byte for byte, and to the same moment. Its name is that of the delta without\n" +
			"what follows _D_. New deltas build on it, and it restores as fast as any full backup.\n\n" +
			"What did not change since the last full backup is copied as it is stored, by the storage itself where that can. The rest is read,\n" +
			"checked and stored anew. Nothing is removed: the report says which backups no other one builds on any more.\n\n" +
			"Exit status: 0 the full backup is made, or was there already, or NAME is one; 1 there is none, and what had been stored of it is\n" +
			"removed.",
		Example: "  holdfast backup-merge LATEST --dry-run\n  holdfast backup-merge base_00000001000000000000002A_D_000000010000000000000011",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			return a.merge(cmd.Context(), s, args[0], dryRun, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "print what would be done, and do nothing")
	f.BoolVar(&asJSON, "json", false, "print the report, or with --dry-run the plan, as JSON")
	targetFlag(cmd)
	return cmd
}

// merge plans a merge and, unless only the plan is wanted, carries it out where that is this host's to do.
func (a *app) merge(ctx context.Context, s *config.Settings, name string, dryRun, asJSON bool) error {
	if !dryRun {
		a.starts(leaseMerge)
	}
	ar, err := a.openArchive(ctx, s, toWrite)
	if err != nil {
		return err
	}
	if !dryRun {
		return a.alone(ctx, s, leaseMerge, ar, func(ctx context.Context, ar *archive.Archive) error {
			plan, err := decideMerge(ctx, ar, name)
			if err != nil {
				return err
			}
			return a.runMerge(ctx, s, ar, plan, asJSON)
		})
	}
	plan, err := decideMerge(ctx, ar, name)
	if err != nil {
		return err
	}
	return a.printMerge(plan, asJSON)
}

func decideMerge(ctx context.Context, ar *archive.Archive, name string) (*merge.Plan, error) {
	c, err := catalog.Load(ctx, ar)
	if err != nil {
		return nil, err
	}
	return merge.Decide(ctx, ar, c, name)
}

// runMerge carries a merge out.
func (a *app) runMerge(ctx context.Context, s *config.Settings, ar *archive.Archive, plan *merge.Plan, asJSON bool) (err error) {
	opts := merge.Options{Workers: s.Backup.Workers, PartSize: s.Backup.PartSize, Tool: release(), Logger: a.log, Progress: &merge.Progress{}}
	if opts.Host, err = os.Hostname(); err != nil {
		return err
	}
	begin := time.Now()
	stop := a.progress(ctx, "merge", opts.Progress)
	report, err := merge.Run(ctx, ar, plan, opts)
	stop()
	if err != nil {
		return err
	}
	if report.Nothing != "" {
		a.log.Info(report.Nothing)
	} else {
		a.log.Info(fmt.Sprintf("%d files, %s, stored as %s in %s; %d parts copied as they were stored, %d made anew", report.Files,
			humanize.IBytes(uint64(report.UncompressedSize)), humanize.IBytes(uint64(report.CompressedSize)),
			time.Duration(report.Seconds*float64(time.Second)).Round(10*time.Millisecond), report.CopiedParts, report.MadeParts))
		a.log.Info(fmt.Sprintf("Wrote backup with name %s to storage %s", report.Name, a.storageOf(ctx, s, ar, report.Name)))
		a.repay(ctx, begin, 0)
	}
	if len(report.Unneeded) > 0 {
		a.log.Info("No other backup builds on " + strings.Join(report.Unneeded, ", ") + " any more")
	}
	if asJSON {
		return a.printJSON(report)
	}
	return nil
}

// printMerge prints what a merge would do.
func (a *app) printMerge(p *merge.Plan, asJSON bool) error {
	if asJSON {
		return a.printJSON(p)
	}
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s %s\n", what, fmt.Sprintf(format, args...))
	}
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	line("backup", "%s", p.Backup)
	for _, name := range p.Chain[1:] {
		line("on top of", "%s", name)
	}
	if p.Nothing != "" {
		line("nothing to do", "%s", p.Nothing)
	} else {
		line("becomes", "%s", p.Merged)
		line("contents", "%s in %d files", size(p.Bytes), p.Files)
		how := "through this host"
		if p.InStore {
			how = "inside the storage"
		}
		line("copied", "%d parts, %s as stored, %s", p.CopiedParts, size(p.CopiedBytes), how)
		line("read", "about %s as stored", size(p.ReadBytes))
		line("made anew", "%s, before they are compressed", size(p.WriteBytes))
		if p.TemporaryBytes > 0 {
			line("temporary", "%s in %s, as the deltas cannot be read in pieces", size(p.TemporaryBytes), os.TempDir())
		}
	}
	for _, name := range p.Unneeded {
		line("then unneeded", "%s: no other backup builds on it", name)
	}
	_, err := fmt.Fprint(a.env.Stdout, b.String())
	return err
}
