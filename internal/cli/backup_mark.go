package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/mark"
)

func (a *app) backupMark() *cobra.Command {
	var impermanent, asJSON bool
	cmd := &cobra.Command{
		Use:   "backup-mark NAME|LATEST",
		Short: "Make a backup permanent, or take that back",
		Long: "Marks a backup as permanent, so that neither `delete` nor `retention` removes it, nor WAL-G's `delete`; what it builds on is marked before\n" +
			"it. With -i the mark is taken from this backup alone, unless a permanent one builds on it. The flag lies in the backup's metadata.json, in\n" +
			"every storage that has the backup; its sentinel stays as it is. Marking what is marked changes nothing.\n\n" +
			"Exit status: 0 it is marked as asked; 1 it is not, or not in all storages: then do it again once they answer.",
		Example: "  holdfast backup-mark base_000000010000000000000003\n  holdfast backup-mark -i base_000000010000000000000003",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			return a.mark(cmd.Context(), s, args[0], !impermanent, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&impermanent, "impermanent", "i", false, "take the mark away")
	f.BoolVar(&asJSON, "json", false, "print what was done as JSON")
	targetFlag(cmd)
	return cmd
}

// mark marks a backup.
func (a *app) mark(ctx context.Context, s *config.Settings, name string, permanent, asJSON bool) error {
	p := toList
	if !permanent { // a backup on top of it may lie in a storage that does not answer
		p = toRead
	}
	ar, err := a.openArchive(ctx, s, p)
	if err != nil {
		return err
	}
	load := func(ctx context.Context) (*catalog.Catalog, error) { return catalog.Load(ctx, ar) }
	c, err := load(ctx)
	if err != nil {
		return err
	}
	plan, err := mark.Decide(c, name, permanent)
	if err != nil {
		return err
	}
	for _, n := range plan.Notes {
		a.log.Warn(n)
	}
	places, err := a.places(ctx, s, ar)
	if err != nil {
		return err
	}
	begin := time.Now()
	report, err := mark.Run(ctx, places, plan, load)
	word := map[bool]string{true: "permanent", false: "not permanent"}[permanent]
	for _, b := range report.Changed {
		a.log.Info(fmt.Sprintf("Backup %s is %s now", b, word))
	}
	if err != nil {
		return err
	}
	if len(report.Changed) == 0 {
		a.log.Info(fmt.Sprintf("Backup %s is %s already", plan.Backups[len(plan.Backups)-1], word))
	}
	a.repay(ctx, begin, 0)
	if asJSON {
		return a.printJSON(report)
	}
	return nil
}

// places returns the storages of an archive each by itself, where a backup lies in one of several; mirrors are one.
func (a *app) places(ctx context.Context, s *config.Settings, ar *archive.Archive) ([]mark.Place, error) {
	if len(s.InUse()) == 1 || len(s.Mirrors) > 0 {
		return []mark.Place{{Name: s.InUse()[0].Name, Archive: ar}}, nil
	}
	members, err := a.stores(ctx, s, brief)
	if err != nil {
		return nil, err
	}
	var all []mark.Place
	for _, m := range members {
		all = append(all, mark.Place{Name: m.Name, Archive: ar.Over(m.Store)})
	}
	return all, nil
}
