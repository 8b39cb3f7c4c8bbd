package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/config"
	"holdfast/internal/lease/object"
	"holdfast/internal/retention"
)

func (a *app) retention() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "retention COMMAND",
		Short: "Keep the backups and the WAL that a policy wants",
		Long: "HOLDFAST_RETENTION says which backups are wanted. What one of its rules wants stays:\n\n" +
			"  recovery_window: 14d      every moment of that time can be restored\n" +
			"  full: 7                   the newest full backups, and all deltas since the oldest of them\n" +
			"  gfs: {daily: 7, weekly: 4, monthly: 12, yearly: 3}\n" +
			"                            the last backup of each of so many days, weeks, months and years that have one, in UTC\n" +
			"  minimum: 2                the newest that can be restored, whatever their age (1 where it is not given)\n" +
			"  keep_last_proven: true    the last one that was restored, started and queried\n\n" +
			"WAL stays from the oldest backup on that stays by recovery_window, full or minimum. With backups that only gfs keeps beside these stays the\n" +
			"WAL that makes them consistent: they restore to the moment they were finished. What `delete` never removes (`holdfast help delete`) a policy\n" +
			"does not either.\n\n" +
			"`retention apply` condemns what is to go, and removes what was condemned HOLDFAST_RETENTION_GRACE ago, after judging it again. What is\n" +
			"condemned is in lists and restores by its name; it is not LATEST, and no delta builds on it. `holdfast undelete` takes it back, `holdfast\n" +
			"hold` keeps it.",
		Example: "  export HOLDFAST_RETENTION='{recovery_window: 14d, gfs: {monthly: 12}, minimum: 2}'\n  holdfast retention plan\n  holdfast retention apply",
		Args:    cobra.ArbitraryArgs,
		RunE:    a.onlyBelow("it is `retention plan` or `retention apply`"),
	}
	cmd.AddCommand(a.retentionPlanCmd(), a.retentionApply())
	return cmd
}

// policy returns what the settings want.
func policy(s *config.Settings) (retention.Policy, error) {
	if s.Retention.Policy == "" {
		return retention.Policy{}, nil
	}
	p, err := retention.ParsePolicy(s.Retention.Policy)
	if err != nil {
		return p, &advised{fmt.Errorf("%s: %w", s.Called("HOLDFAST_RETENTION"), err), "`holdfast help retention` shows how it is written"}
	}
	return p, nil
}

func (a *app) retentionPlanCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Say what stays and what goes, and why",
		Long: "Prints each backup and each stretch of WAL with the rule that keeps it or lets it go, and changes nothing. What is condemned already is shown with\n" +
			"the time after which it is removed.",
		Example: "  holdfast retention plan\n  holdfast retention plan --json | jq '.backups[] | select(.keep | not)'",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, ar, p, err := a.openRetention(cmd)
			if err != nil {
				return err
			}
			if s.Retention.Policy == "" {
				a.log.Info("HOLDFAST_RETENTION is not set: nothing goes but what was condemned before; `holdfast help retention` shows how it is written")
			}
			plan, err := a.retentionPlan(cmd.Context(), s, ar, p, false)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(plan)
			}
			return a.printRetention(plan)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	targetFlag(cmd)
	return cmd
}

func (a *app) retentionApply() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Condemn what is to go, and remove what was condemned long enough ago",
		Long: "Carries out what `retention plan` says. Without HOLDFAST_RETENTION it only removes what `delete` has condemned and whose time has come. It may be\n" +
			"broken off at any moment: the next run finishes what was begun.\n\n" +
			"What the storage refuses to remove, because it is locked or the credentials may not, stays, is told of, and is tried again next time.\n\n" +
			"Exit status: 0 done, also with such refusals; 1 it failed: something could not be listed or read, or the storage failed.",
		Example: "  holdfast retention apply",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.starts(leaseRetention)
			s, ar, p, err := a.openRetention(cmd)
			if err != nil {
				return err
			}
			if s.Retention.Policy == "" {
				a.log.Info("HOLDFAST_RETENTION is not set: only what was condemned before goes")
			}
			return a.alone(cmd.Context(), s, leaseRetention, ar, func(ctx context.Context, ar *archive.Archive) error {
				plan, err := a.retentionPlan(ctx, s, ar, p, true)
				if err != nil {
					return err
				}
				for _, note := range plan.Notes {
					a.log.Warn(note)
				}
				report, err := a.applyRetention(ctx, ar, plan, s.Retention.Grace)
				if err != nil {
					return err
				}
				if err := object.Sweep(ctx, ar.Store()); err != nil && !errors.Is(err, fs.ErrPermission) {
					a.log.Warn(fmt.Sprintf("what is history of leases stays: %v", err))
				}
				if len(report.Condemned)+report.Objects+report.Refused == 0 {
					text := "nothing is to go"
					if slices.ContainsFunc(plan.WAL, func(w retention.WALVerdict) bool { return !w.Keep }) {
						text += " now: the WAL that no backup needs goes once it has been condemned for " + s.Retention.Grace.String()
					}
					a.log.Info(text)
				}
				if asJSON {
					return a.printJSON(report)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	targetFlag(cmd)
	return cmd
}

// openRetention reads the policy and opens the archive.
func (a *app) openRetention(cmd *cobra.Command) (*config.Settings, *archive.Archive, retention.Policy, error) {
	s, err := a.load(cmd)
	if err != nil {
		return nil, nil, retention.Policy{}, err
	}
	p, err := policy(s)
	if err != nil {
		return nil, nil, p, err
	}
	ar, err := a.openToRemove(cmd.Context(), s)
	return s, ar, p, err
}

// openToRemove opens the archive for who may remove backups from it. Without the keys that tell a proof nobody does: the last proven one would be none.
func (a *app) openToRemove(ctx context.Context, s *config.Settings) (*archive.Archive, error) {
	if _, err := proofKeys(s); err != nil {
		return nil, err
	}
	return a.openArchive(ctx, s, toRead)
}

// printRetention prints a plan for people: a sentence, then what goes and what stays.
func (a *app) printRetention(p *retention.Plan) error {
	var b strings.Builder
	var stays, goes int
	var freed, walFreed int64
	var segments int64
	for _, v := range p.Backups {
		if v.Keep {
			stays++
			continue
		}
		goes++
		freed += v.Bytes
	}
	for _, w := range p.WAL {
		if !w.Keep {
			segments, walFreed = segments+w.Segments, walFreed+w.Bytes
		}
	}
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	stay := "stay"
	if stays == 1 {
		stay = "stays"
	}
	fmt.Fprintf(&b, "%s %s, %d to go (%s); %s of WAL to go (%s)\npolicy: %s\n", manyOf(uint64(stays), "backup"), stay, goes, size(freed), manyOf(uint64(segments), "segment"), size(walFreed), p.Rule)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	mark := map[bool]string{true: "stays", false: "GOES"}
	if len(p.Backups) > 0 {
		fmt.Fprintln(w, "\nBACKUPS")
	}
	for _, v := range p.Backups {
		kind := "full"
		if v.Delta {
			kind = "delta"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", mark[v.Keep], v.Backup, v.Finished.Format("2006-01-02 15:04Z"), kind, size(v.Bytes))
		fmt.Fprintf(w, "  %s\n", retentionWhy(v, p.At))
	}
	if len(p.WAL) > 0 {
		fmt.Fprintln(w, "\nWAL")
	}
	for _, v := range p.WAL {
		count := fmt.Sprintf("%d segments", v.Segments)
		if v.Segments == 1 {
			count = "1 segment"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n  %s\n", mark[v.Keep], segmentsText(v.First, v.Last), count, size(v.Bytes), v.Why)
	}
	if len(p.Pieces)+len(p.Histories)+len(p.Leftovers) > 0 {
		fmt.Fprintln(w, "\nFURTHER")
	}
	for _, v := range p.Pieces {
		fmt.Fprintf(w, "%s\tpieces of %s\t%s\t%s\n  %s\n", mark[v.Keep], v.Segment, manyOf(uint64(v.Objects), "object"), size(v.Bytes), v.Why)
	}
	for _, v := range p.Histories {
		fmt.Fprintf(w, "%s\thistory of timeline %d\n  %s\n", mark[v.Keep], v.Timeline, v.Why)
	}
	for _, v := range p.Leftovers {
		fmt.Fprintf(w, "%s\tunfinished %s\t%d objects\t%s\n  %s\n", mark[v.Keep], v.Name, v.Objects, size(v.Bytes), v.Why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, note := range p.Notes {
		fmt.Fprintln(&b, note)
	}
	_, err := fmt.Fprint(a.env.Stdout, b.String())
	return err
}

// retentionWhy says why a backup stays or goes, and when.
func retentionWhy(v retention.Verdict, now time.Time) string {
	why := v.Why
	if v.Broken != "" && !strings.Contains(why, v.Broken) {
		why += "; it cannot be restored: " + v.Broken
	}
	switch {
	case v.Keep && !v.Condemned.IsZero():
		why += "; it is condemned nevertheless, and stays as long as that holds"
	case v.Keep:
	case v.Condemned.IsZero():
		why += "; not condemned yet"
	case v.PurgeAfter.After(now):
		why += "; condemned, removed after " + v.PurgeAfter.UTC().Format("2006-01-02 15:04Z")
	default:
		why += "; condemned, removed by the next `retention apply`"
	}
	return why
}

func (a *app) undelete() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "undelete NAME…|all",
		Short: "Keep condemned backups after all",
		Long: "Takes back what `retention apply` or `delete` with HOLDFAST_DELETE_GRACE has condemned and not removed yet: the backups of these names with what they\n" +
			"build on, or all. A policy that does not want them condemns them again; `holdfast hold add` keeps them from that.\n\n" +
			"Exit status: 0 they stay; 1 one of them is not condemned, or is gone.",
		Example: "  holdfast undelete base_000000010000000000000042\n  holdfast undelete all",
		Args:    a.args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			return a.undeleteThese(cmd.Context(), s, args)
		},
	}
	targetFlag(cmd)
	return cmd
}

func (a *app) undeleteThese(ctx context.Context, s *config.Settings, names []string) error {
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	if len(names) == 1 && names[0] == "all" {
		names = nil
	}
	back, err := retention.Undelete(ctx, ar, names, retention.Options{Version: release()})
	if err != nil {
		return err
	}
	if len(back) == 0 {
		a.log.Info("nothing is condemned")
	}
	for _, name := range back {
		a.log.Info(name + " stays")
	}
	return nil
}
