package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/config"
	"holdfast/internal/lease/object"
	"holdfast/internal/store/mirror"
)

// mirrorsOf opens the mirrors that the settings name.
func (a *app) mirrorsOf(ctx context.Context, s *config.Settings) (*mirror.Mirror, error) {
	if len(s.Mirrors) == 0 {
		return nil, &advised{errors.New("there are no mirrors"), "HOLDFAST_MIRRORS names them"}
	}
	members, err := a.stores(ctx, s, 0)
	if err != nil {
		return nil, err
	}
	return a.openMirrors(s, members, toWrite)
}

func (a *app) stRepay() *cobra.Command {
	var limit int
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "repay",
		Short: "Bring mirrors up to date with what they are owed",
		Long: "Copies to each mirror what it missed while it was down, and removes what was removed meanwhile, the oldest first, as this host's journal\n" +
			"has noted it. wal-push does some of that each time, backup-push all of it. It goes on with other mirrors when one fails.\n\n" +
			"Exit status: 0 nothing is owed any more, or --limit was reached; 1 something could not be repaid.",
		Example: "  holdfast st repay --dry-run\n  holdfast st repay",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			if limit < 0 {
				return errors.New("--limit is not below 0")
			}
			m, err := a.mirrorsOf(cmd.Context(), s)
			if err != nil {
				return err
			}
			if dryRun {
				return a.printOwed(m)
			}
			done, err := m.Repay(cmd.Context(), limit)
			a.log.Info(fmt.Sprintf("copied %d objects (%d bytes), removed %d, %d needed nothing any more, %d are still owed",
				done.Copied, done.Bytes, done.Deleted, done.Settled, done.Left))
			return err
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "objects to repay at most; 0 is no limit")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what is owed, and do nothing")
	return cmd
}

// printOwed prints what mirrors are owed, one object a line.
func (a *app) printOwed(m *mirror.Mirror) error {
	owed, err := m.Owed()
	for _, d := range owed {
		what := "copy"
		if d.Delete {
			what = "remove"
		}
		if _, err := fmt.Fprintf(a.env.Stdout, "%s %s %s %s\n", d.Since.UTC().Format(time.RFC3339), d.Mirror, what, cell(d.Name)); err != nil {
			return err
		}
	}
	return err
}

func (a *app) stAudit() *cobra.Command {
	var owe bool
	cmd := &cobra.Command{
		Use:   "audit [PATH]",
		Short: "Compare what the mirrors hold",
		Long: "Compares names and sizes of all objects below PATH in all mirrors, and prints where they differ. With --owe what a mirror lacks is noted as\n" +
			"owed to it, so that `st repay` copies it: after a mirror was replaced, or this host's journal was lost. What was being written meanwhile may show;\n" +
			"signs of life of restores are left out.\n\n" +
			"Exit status: 0 the mirrors hold the same, but for what is owed already; 1 they do not, or one does not answer.",
		Example: "  holdfast st audit\n  holdfast st audit --owe wal_005 && holdfast st repay",
		Args:    a.args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.loadSt(cmd)
			if err != nil {
				return err
			}
			dir, err := dirName(strings.Join(args, ""))
			if err != nil {
				return err
			}
			m, err := a.mirrorsOf(cmd.Context(), s)
			if err != nil {
				return err
			}
			return a.audit(cmd.Context(), m, dir, owe)
		},
	}
	cmd.Flags().BoolVar(&owe, "owe", false, "note what is missing, for st repay")
	return cmd
}

// audit prints where mirrors differ. Without owe that is an error, and always where nothing can be owed.
func (a *app) audit(ctx context.Context, m *mirror.Mirror, dir string, owe bool) error {
	missing, conflicts := 0, 0
	tell := func(d *mirror.Difference) error {
		var has []string
		for _, h := range d.Holders {
			has = append(has, fmt.Sprintf("%s: %d bytes", h.Mirror, h.Size))
		}
		line := strings.Join(has, ", ")
		if len(d.Missing) > 0 {
			line += "; missing in " + strings.Join(d.Missing, ", ")
		}
		if len(d.Owed) > 0 {
			line += "; owed to " + strings.Join(d.Owed, ", ")
		}
		if _, err := fmt.Fprintf(a.env.Stdout, "%s (%s)\n", cell(d.Name), strings.TrimPrefix(line, "; ")); err != nil {
			return err
		}
		if d.Conflict() {
			conflicts++
		} else if len(d.Missing) > 0 {
			missing++
			if owe {
				return m.Owe(d)
			}
		}
		return nil
	}
	pieces := map[string]bool{} // of segments, which come and go every second
	for d, err := range m.Audit(ctx, dir) {
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name, archive.RestoreDir) && dir == "" {
			continue // one who restores from a single mirror says so there, for a while
		}
		if strings.HasPrefix(d.Name, object.Dir) && dir == "" {
			continue // leases lie in the first storage alone
		}
		if strings.HasPrefix(d.Name, archive.TailDir) {
			pieces[d.Name] = true
			continue
		}
		if err := tell(d); err != nil {
			return err
		}
	}
	if len(pieces) > 0 { // those that differ still
		for d, err := range m.Audit(ctx, archive.TailDir) {
			if err != nil {
				return err
			}
			if !pieces[d.Name] {
				continue
			}
			if err := tell(d); err != nil {
				return err
			}
		}
	}
	switch {
	case conflicts > 0:
		return &advised{fmt.Errorf("%d objects differ between mirrors, %d are missing somewhere", conflicts, missing),
			"two servers write to one archive, or a mirror is damaged: find out which object is right, and remove the other one (`st rm -t MIRROR`)"}
	case missing > 0 && !owe:
		return &advised{fmt.Errorf("%d objects are missing somewhere", missing), "`st audit --owe` notes them, `st repay` copies them"}
	}
	if missing > 0 {
		a.log.Info(fmt.Sprintf("%d objects are missing somewhere, and noted", missing))
	} else {
		a.log.Info("the mirrors hold the same")
	}
	return nil
}
