package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/retention"
)

func (a *app) hold() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hold COMMAND",
		Short: "Keep backups, or moments, from being removed",
		Long: "What is held neither `delete` nor `retention` removes, whatever a policy or a person says: a legal hold. It is a record in the archive with who,\n" +
			"when and why. WAL-G does not know of it; against that and against the storage's own users only the storage's object lock helps.",
		Example: "  holdfast hold add base_000000010000000000000042 --reason 'case 7'\n  holdfast hold list",
		Args:    cobra.ArbitraryArgs,
		RunE:    a.onlyBelow("it is `hold add`, `hold list` or `hold release`"),
	}
	cmd.AddCommand(a.holdAdd(), a.holdList(), a.holdRelease())
	return cmd
}

func (a *app) holdAdd() *cobra.Command {
	var h archive.Hold
	var from, to, until, by string
	cmd := &cobra.Command{
		Use:   "add [NAME]",
		Short: "Hold a backup, or the moments between two times",
		Long: "Holds the backup of that name, with what it builds on and the WAL that makes it consistent; or with --from and --to all that restoring any moment\n" +
			"between them takes. Times have their zone. With --until the hold ends by itself.",
		Example: "  holdfast hold add base_000000010000000000000042 --reason 'case 7' --until 2027-01-01T00:00:00Z\n" +
			"  holdfast hold add --from '2026-11-01 00:00+01' --to '2026-11-03 00:00+01' --reason 'who dropped the table?'",
		Args: a.args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			for _, t := range []struct {
				flag, text string
				into       *time.Time
			}{{"--from", from, &h.From}, {"--to", to, &h.To}, {"--until", until, &h.Until}} {
				if t.text == "" {
					continue
				}
				if *t.into, err = catalog.ParseTime(t.text); err != nil {
					return fmt.Errorf("%s: %w", t.flag, err)
				}
			}
			h.Backup = strings.Join(args, "")
			switch {
			case strings.TrimSpace(h.Reason) == "":
				return a.usage(cmd, errors.New("--reason is missing: say why it is held, for whoever reads this in a year"))
			case h.Backup == "" && (h.From.IsZero() || h.To.IsZero()), h.Backup != "" && !(h.From.IsZero() && h.To.IsZero()):
				return a.usage(cmd, errors.New("give the name of a backup, or --from and --to"))
			case h.To.Before(h.From):
				return a.usage(cmd, errors.New("--to is before --from"))
			}
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			h.RecordHead = archive.NewRecordHead(by, release())
			return a.addHold(cmd.Context(), s, h)
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "hold all moments from this time")
	f.StringVar(&to, "to", "", "to this one")
	f.StringVar(&until, "until", "", "the hold ends by itself at this time (default never)")
	f.StringVar(&h.Reason, "reason", "", "why; must be given")
	f.StringVar(&by, "by", "", "who holds it (default user@host)")
	targetFlag(cmd)
	return cmd
}

func (a *app) addHold(ctx context.Context, s *config.Settings, h archive.Hold) error {
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	c, err := catalog.Load(ctx, ar)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("the moments from %s to %s", catalog.FormatTime(h.From), catalog.FormatTime(h.To))
	if h.Backup != "" {
		b, err := c.Find(h.Backup)
		if err != nil {
			return err
		}
		if _, err := c.Chain(b); err != nil {
			a.log.Warn(err.Error())
		}
		if what = b.Name; b.Condemned != nil {
			a.log.Warn(b.Name + " is condemned; the hold keeps it from being removed. `holdfast undelete " + b.Name + "` makes it a backup as others are again")
		}
	} else if !slices.ContainsFunc(c.Backups, func(b catalog.Backup) bool { return !b.Created().After(h.From) }) {
		a.log.Warn("no backup was finished by " + catalog.FormatTime(h.From) + ": moments before the first one that was cannot be restored, held or not")
	}
	name, err := ar.AddRecord(ctx, archive.HoldDir, strings.ToLower(rand.Text())[:8], h)
	if err != nil {
		return err
	}
	held := retention.Hold{Record: name}
	a.log.Info(fmt.Sprintf("held by %s: %s: %s; `holdfast hold release %s` ends it", h.By, what, h.Reason, held.ID()))
	// What was being removed at this moment may be gone.
	if h.Backup != "" {
		if _, err := ar.Sentinel(ctx, h.Backup); err != nil {
			return fmt.Errorf("look whether %s is still there: %w", h.Backup, err)
		}
	}
	return nil
}

// listedHold is a hold as JSON shows it.
type listedHold struct {
	ID     string     `json:"id"`
	Backup string     `json:"backup,omitempty"`
	From   *time.Time `json:"from,omitempty"`
	To     *time.Time `json:"to,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
	Reason string     `json:"reason"`
	By     string     `json:"by"`
	At     time.Time  `json:"at"`
}

func (a *app) holdList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the holds that are in force",
		Long:    "Lists what is held, oldest hold first. Holds that have ended or were released are not shown.",
		Example: "  holdfast hold list --json",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			ar, err := a.openArchive(cmd.Context(), s, toRead)
			if err != nil {
				return err
			}
			holds, err := retention.LoadHolds(cmd.Context(), ar, time.Now())
			if err != nil {
				return err
			}
			return a.listHolds(holds, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	targetFlag(cmd)
	return cmd
}

func (a *app) listHolds(holds []retention.Hold, asJSON bool) error {
	given := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	if asJSON {
		rows := []listedHold{}
		for _, h := range holds {
			rows = append(rows, listedHold{h.ID(), h.Backup, given(h.From), given(h.To), given(h.Until), h.Reason, h.By, h.At})
		}
		return a.printJSON(rows)
	}
	if len(holds) == 0 {
		a.log.Info("nothing is held")
		return nil
	}
	w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "id\theld\tuntil\tby\tat\treason")
	for _, h := range holds {
		until := "released"
		if !h.Until.IsZero() {
			until = h.Until.UTC().Format(time.RFC3339)
		}
		what := cmp.Or(h.Backup, h.From.UTC().Format(time.RFC3339)+".."+h.To.UTC().Format(time.RFC3339))
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", h.ID(), cell(what), until, cell(h.By), h.At.UTC().Format(time.RFC3339), cell(h.Reason))
	}
	return w.Flush()
}

func (a *app) holdRelease() *cobra.Command {
	var reason, by string
	cmd := &cobra.Command{
		Use:     "release ID",
		Short:   "End a hold",
		Long:    "Ends the hold of that id, as `hold list` shows it. What it held goes by whatever rule says so, from the next run on.",
		Example: "  holdfast hold release f3kq2zv7 --reason 'case closed'",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			ar, err := a.openArchive(cmd.Context(), s, toRead)
			if err != nil {
				return err
			}
			holds, err := retention.LoadHolds(cmd.Context(), ar, time.Now())
			if err != nil {
				return err
			}
			i := slices.IndexFunc(holds, func(h retention.Hold) bool { return h.ID() == args[0] })
			if i < 0 {
				return &advised{fmt.Errorf("no hold in force has the id %s", args[0]), "`holdfast hold list` shows them"}
			}
			end := archive.Hold{RecordHead: archive.NewRecordHead(by, release()), Revokes: holds[i].Record, Reason: reason}
			if _, err := ar.AddRecord(cmd.Context(), archive.HoldDir, "", end); err != nil {
				return err
			}
			a.log.Info("released: " + cmp.Or(holds[i].Backup, "moments") + ", held for: " + holds[i].Reason)
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why")
	cmd.Flags().StringVar(&by, "by", "", "who says so (default user@host)")
	targetFlag(cmd)
	return cmd
}
