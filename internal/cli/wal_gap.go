package cli

import (
	"context"
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
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
)

func (a *app) walGap() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wal-gap COMMAND",
		Short: "Accept that WAL is lost, so that checks look ahead again",
		Long: "A segment that was lost for good stays a hole in what can be restored, and `ribbon` and `wal-verify` go on telling. `wal-gap accept` notes\n" +
			"in the archive that this is known: who says so, when and why. What the hole makes unrestorable stays unrestorable; it is shown as\n" +
			"accepted, and is no failure any more once there is a backup behind it.",
		Example: "  holdfast wal-gap accept 00000003000000160000009A --reason 'disk of db1 was full'\n  holdfast wal-gap list",
		Args:    cobra.ArbitraryArgs,
		RunE:    a.onlyBelow("it is `wal-gap accept`, `wal-gap list` or `wal-gap revoke`"),
	}
	cmd.AddCommand(a.walGapAccept(), a.walGapList(), a.walGapRevoke())
	return cmd
}

func (a *app) walGapAccept() *cobra.Command {
	var reason, by string
	cmd := &cobra.Command{
		Use:   "accept FIRST [LAST]",
		Short: "Note that segments are lost, and why",
		Long: "FIRST and LAST are names of segments of one timeline; without LAST it is one segment. Both must be missing from the archive, or known to be\n" +
			"damaged, and WAL behind them archived: what has merely not come yet cannot be accepted as lost.",
		Example: "  holdfast wal-gap accept 00000003000000160000009A 0000000300000016000000A2 --reason 'disk of db1 was full' --by 'jane@example.org'",
		Args:    a.args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if strings.TrimSpace(reason) == "" {
				return a.usage(cmd, errors.New("--reason is missing: say why the WAL is lost, for whoever reads this in a year"))
			}
			return a.acceptGap(cmd.Context(), s, args[0], args[len(args)-1], reason, by)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why the segments are lost; must be given")
	cmd.Flags().StringVar(&by, "by", "", "who says so (default user@host)")
	targetFlag(cmd)
	return cmd
}

func (a *app) acceptGap(ctx context.Context, s *config.Settings, first, last, reason, by string) error {
	in, err := a.loadRibbon(ctx, s, ribbonFlags{})
	if err != nil {
		return err
	}
	for _, st := range in.Stores {
		if st.Err != nil {
			return &advised{fmt.Errorf("storage %s did not answer: %w", st.Name, st.Err), "what is missing may lie there: nothing is accepted as lost before all storages answer"}
		}
	}
	if err := in.CheckLost(first, last); err != nil {
		return err
	}
	ar, err := a.openArchive(ctx, s, toList)
	if err != nil {
		return err
	}
	t, err := wal.TimelineOf(first)
	if err != nil {
		return err
	}
	gap := ribbon.Gap{RecordHead: archive.NewRecordHead(by, release()), Timeline: t, First: first, Last: last, Reason: reason}
	if _, err := ar.AddRecord(ctx, archive.GapDir, "", gap); err != nil {
		return err
	}
	a.log.Info(fmt.Sprintf("accepted by %s: %s is lost: %s", gap.By, segmentsText(first, last), reason))
	r := ribbon.Compute(in)
	if i := slices.IndexFunc(r.Main, func(st ribbon.Stretch) bool { return st.First == first && st.Verdict == ribbon.Broken }); i >= 0 && i == len(r.Main)-1 {
		a.log.Warn("no backup is newer than that: take one now with `holdfast backup-push`")
	}
	return nil
}

// segmentsText names a stretch of segments.
func segmentsText(first, last string) string {
	if first == last {
		return first
	}
	return first + " to " + last
}

// listedGap is an accepted hole as JSON shows it.
type listedGap struct {
	Timeline wal.Timeline `json:"timeline"`
	First    string       `json:"first"`
	Last     string       `json:"last"`
	Reason   string       `json:"reason"`
	By       string       `json:"by"`
	At       time.Time    `json:"at"`
}

func (a *app) walGapList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the holes that are accepted",
		Long:    "Lists which segments are accepted as lost, when, by whom and why. What was revoked is not shown.",
		Example: "  holdfast wal-gap list --json",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			ar, err := a.openArchive(cmd.Context(), s, toList)
			if err != nil {
				return err
			}
			gaps, bad, err := acceptedGaps(cmd.Context(), ar)
			if err != nil {
				return err
			}
			return errors.Join(append(bad, a.listGaps(gaps, asJSON))...)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	targetFlag(cmd)
	return cmd
}

// acceptedGaps loads which holes are accepted. What is no record of any is in bad.
func acceptedGaps(ctx context.Context, ar *archive.Archive) (rows []listedGap, bad []error, err error) {
	c, err := catalog.Load(ctx, ar)
	if err != nil {
		return nil, nil, err
	}
	size, _ := c.SegmentSize()
	accepted, bad, err := catalog.LoadAccepted(ctx, ar, size)
	rows = []listedGap{}
	for _, g := range accepted {
		rows = append(rows, listedGap{g.Timeline, size.Name(g.Timeline, g.First), size.Name(g.Timeline, g.Last), g.Reason, g.By, g.At.UTC()})
	}
	return rows, bad, err
}

func (a *app) listGaps(rows []listedGap, asJSON bool) error {
	if asJSON {
		return a.printJSON(rows)
	}
	if len(rows) == 0 {
		a.log.Info("No holes are accepted")
		return nil
	}
	w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "first\tlast\taccepted\tby\treason")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", cell(r.First), cell(r.Last), r.At.Format(time.RFC3339), cell(r.By), cell(r.Reason))
	}
	return w.Flush()
}

func (a *app) walGapRevoke() *cobra.Command {
	var by string
	cmd := &cobra.Command{
		Use:     "revoke FIRST [LAST]",
		Short:   "Undo wal-gap accept",
		Long:    "FIRST and LAST are as `wal-gap list` shows them. The record stays in the archive, and a second one that takes it back.",
		Example: "  holdfast wal-gap revoke 00000003000000160000009A",
		Args:    a.args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			return a.revokeGap(cmd.Context(), s, args[0], args[len(args)-1], by)
		},
	}
	cmd.Flags().StringVar(&by, "by", "", "who says so (default user@host)")
	targetFlag(cmd)
	return cmd
}

func (a *app) revokeGap(ctx context.Context, s *config.Settings, first, last, by string) error {
	ar, err := a.openArchive(ctx, s, toList)
	if err != nil {
		return err
	}
	gaps, bad, err := acceptedGaps(ctx, ar)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(gaps, func(g listedGap) bool { return g.First == first && g.Last == last })
	if i < 0 {
		return errors.Join(append(bad, &advised{fmt.Errorf("%s is not accepted as lost", segmentsText(first, last)), "see `holdfast wal-gap list`"})...)
	}
	gap := ribbon.Gap{RecordHead: archive.NewRecordHead(by, release()), Timeline: gaps[i].Timeline, First: first, Last: last, Revoked: true}
	if _, err := ar.AddRecord(ctx, archive.GapDir, "", gap); err != nil {
		return err
	}
	a.log.Info("no longer accepted as lost: " + segmentsText(first, last))
	return nil
}
