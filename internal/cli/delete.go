package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/retention"
)

// deleteFlags are those that all of WAL-G's delete commands have.
type deleteFlags struct {
	confirm bool
	byTime  bool
	asJSON  bool
}

func (a *app) delete() *cobra.Command {
	f := &deleteFlags{}
	cmd := &cobra.Command{
		Use:   "delete COMMAND",
		Short: "Remove backups and the WAL that nothing needs any more",
		Long: "Removes what one of its commands names, as WAL-G's do; `holdfast retention` does it by a policy. Without --confirm it says what would be\n" +
			"removed, object by object, and why, and removes nothing.\n\n" +
			"Whatever is named, these stay: backups that are permanent or held, or that a push or a restore uses; the last one of a cluster that can be\n" +
			"restored, and the last that was proven; what something that stays builds on; and the WAL that these need. Backups are in the order in which\n" +
			"they were made, whatever their names; of several clusters in one archive each is judged by itself, unless one took the archive over from\n" +
			"another (backup-push --adopt). Where something cannot be listed or read nothing goes. Catch-ups stay, but for `everything`;\n" +
			"the WAL that they need does for a week. With --target-storage one of several storages is judged by itself, and nothing goes if something in\n" +
			"another needs it.\n\n" +
			"With HOLDFAST_DELETE_GRACE what is to go is condemned, and goes by `holdfast retention apply` once that time has passed; until then\n" +
			"`holdfast undelete` takes it back.\n\n" +
			"Exit status: 0 done, or there was nothing to do, also where the storage refused to let some objects go: the log says so; 1 it failed.",
		Example: "  holdfast delete retain FULL 7\n  holdfast delete retain FULL 7 --after 2026-11-01T00:00:00Z --confirm",
		Args:    cobra.ArbitraryArgs,
		RunE:    a.onlyBelow("it is `delete retain`, `before`, `everything`, `target` or `garbage`"),
	}
	p := cmd.PersistentFlags()
	p.BoolVar(&f.confirm, "confirm", false, "do it")
	p.BoolVar(&f.byTime, "use-sentinel-time", false, "accepted for WAL-G's sake: backups are in the order of their times always")
	p.BoolVar(&f.asJSON, "json", false, "print the plan as JSON, or with --confirm the report")
	p.String(targetStorage, "", "use the storage of this name alone, where there are several")
	cmd.AddCommand(a.deleteRetain(f), a.deleteBefore(f), a.deleteEverything(f), a.deleteTarget(f), a.deleteGarbage(f))
	return cmd
}

// modifiers takes the word off the arguments that says how a command is meant. It is written in capitals, or all small; a word that is neither that nor leaves
// as many arguments as there must be is an error.
func (a *app) modifiers(cmd *cobra.Command, args []string, rest int, allowed ...retention.Modifier) (retention.Modifier, []string, error) {
	mod := retention.Plain
	if len(args) > 0 {
		word := args[0]
		if up := strings.ToUpper(word); word == up || word == strings.ToLower(word) {
			if i := slices.Index(allowed, retention.Modifier(up)); i >= 0 {
				mod, args = allowed[i], args[1:]
			}
		}
	}
	if len(args) == rest {
		return mod, args, nil
	}
	if len(args) == rest+1 && mod == retention.Plain {
		words := make([]string, len(allowed))
		for i, m := range allowed {
			words[i] = string(m)
		}
		return "", nil, a.usage(cmd, fmt.Errorf("%q is no modifier of `%s`: %s", args[0], cmd.CommandPath(), strings.Join(words, " or ")))
	}
	return "", nil, a.usage(cmd, fmt.Errorf("want `%s`, got %s behind it", cmd.Use, cmp.Or(strings.Join(args, " "), "nothing")))
}

func (a *app) deleteRetain(f *deleteFlags) *cobra.Command {
	var after string
	cmd := &cobra.Command{
		Use:   "retain [FULL|FIND_FULL] N",
		Short: "Keep the newest backups",
		Long: "Keeps the N newest backups, and removes what is older with its WAL. With FULL only full backups count; with FIND_FULL the N-th newest of all\n" +
			"stands for the full backup that it builds on. Without either the N-th must not be a delta. N counts permanent backups, too. Where there are\n" +
			"fewer than N nothing goes.\n\n" +
			"With --after what was made at that time or later stays, too: a time with its zone, or the name of a backup.",
		Example: "  holdfast delete retain FIND_FULL 5 --confirm\n  holdfast delete retain FULL 3 --after base_000000010000000000000042",
		RunE: func(cmd *cobra.Command, args []string) error {
			mod, args, err := a.modifiers(cmd, args, 1, retention.Full, retention.FindFull)
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(args[0])
			if err != nil {
				return a.usage(cmd, fmt.Errorf("retain %s: want a number of backups", args[0]))
			}
			var moment *retention.Moment
			if cmd.Flags().Changed("after") {
				m, err := retention.ParseMoment(after)
				if err != nil {
					return fmt.Errorf("--after: %w", err)
				}
				moment = &m
			}
			rule, err := retention.Retain(n, mod, moment)
			return a.deleteBy(cmd, f, rule, err)
		},
	}
	cmd.Flags().StringVarP(&after, "after", "a", "", "keep also what was made at or after this time or backup")
	return cmd
}

func (a *app) deleteBefore(f *deleteFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "before [FIND_FULL] NAME|TIME",
		Short: "Remove what is older than a backup",
		Long: "Removes what was made before a backup, with its WAL: the one of that name, or the first that was made at that time or later. A name may be cut\n" +
			"short as long as one backup begins so; a time has its zone. The backup must not be a delta; with FIND_FULL it stands for the full backup that it\n" +
			"builds on.",
		Example: "  holdfast delete before FIND_FULL 2026-11-01T00:00:00+01:00 --confirm\n  holdfast delete before base_000000010000000000000042",
		RunE: func(cmd *cobra.Command, args []string) error {
			mod, args, err := a.modifiers(cmd, args, 1, retention.FindFull)
			if err != nil {
				return err
			}
			m, err := retention.ParseMoment(args[0])
			if err != nil {
				return err
			}
			rule, err := retention.Before(mod, m)
			return a.deleteBy(cmd, f, rule, err)
		},
	}
}

func (a *app) deleteEverything(f *deleteFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "everything [FORCE]",
		Short: "Empty the archive",
		Long: "Removes every object of the archive: backups, WAL, history files, catch-ups, records, and whose archive it is. What else lies below the prefix stays.\n" +
			"Where a backup is permanent, or cannot be read, it refuses, unless FORCE; where something is held, or a push or a restore is at work, it refuses in\n" +
			"any case.",
		Example: "  holdfast delete everything\n  holdfast delete everything FORCE --confirm",
		RunE: func(cmd *cobra.Command, args []string) error {
			mod, _, err := a.modifiers(cmd, args, 0, retention.Force)
			if err != nil {
				return err
			}
			return a.deleteBy(cmd, f, retention.Everything(mod == retention.Force), nil)
		},
	}
}

func (a *app) deleteTarget(f *deleteFlags) *cobra.Command {
	var userData string
	cmd := &cobra.Command{
		Use:   "target [FIND_FULL] NAME",
		Short: "Remove one backup and what builds on it",
		Long: "Removes the backup of that name, or with --target-user-data the one with that user data, and all deltas that build on it; with FIND_FULL the full\n" +
			"backup that it builds on, and all that build on that. WAL stays. Where one of these must stay nothing is removed, and that is an error.",
		Example: "  holdfast delete target base_000000010000000000000042 --confirm\n  holdfast delete target --target-user-data '{\"ticket\":7}'",
		RunE: func(cmd *cobra.Command, args []string) error {
			var data json.RawMessage
			want := 1
			if cmd.Flags().Changed("target-user-data") {
				if data = json.RawMessage(userData); !json.Valid(data) {
					return a.usage(cmd, fmt.Errorf(`--target-user-data %s: want JSON, such as {"ticket":7} or "text" with its quotes`, userData))
				}
				want = 0
			}
			mod, args, err := a.modifiers(cmd, args, want, retention.FindFull)
			if err != nil {
				return err
			}
			name := strings.Join(args, "")
			if name != "" {
				if err := archive.CheckBackupName(name); err != nil {
					return err
				}
			}
			rule, err := retention.Target(mod, name, data)
			return a.deleteBy(cmd, f, rule, err)
		},
	}
	cmd.Flags().StringVar(&userData, "target-user-data", "", "the backup with this user data, a JSON value")
	return cmd
}

func (a *app) deleteGarbage(f *deleteFlags) *cobra.Command {
	var without bool
	cmd := &cobra.Command{
		Use:   "garbage [ARCHIVES|BACKUPS]",
		Short: "Remove WAL that no backup needs, and what broken-off pushes left",
		Long: "Removes the WAL that comes before the oldest backup and that no permanent backup needs (ARCHIVES), and what pushes left that died more than a day\n" +
			"ago (BACKUPS), or both. Permanent backups do not count as the oldest. Where there is none but these no WAL goes, unless\n" +
			"--without-backup-check says so: then all that permanent backups do not need.",
		Example: "  holdfast delete garbage --confirm\n  holdfast delete garbage ARCHIVES",
		RunE: func(cmd *cobra.Command, args []string) error {
			mod, _, err := a.modifiers(cmd, args, 0, retention.Archives, retention.Backups)
			if err != nil {
				return err
			}
			rule, err := retention.Garbage(mod, without)
			return a.deleteBy(cmd, f, rule, err)
		},
	}
	cmd.Flags().BoolVar(&without, "without-backup-check", false, "remove WAL also where there is no backup that it could come before")
	return cmd
}

// deleteBy does what a command of WAL-G's asks for. The log has WAL-G's words.
func (a *app) deleteBy(cmd *cobra.Command, f *deleteFlags, rule retention.Rule, err error) error {
	if err != nil {
		return a.usage(cmd, err)
	}
	ctx := cmd.Context()
	s, err := a.load(cmd)
	if err != nil {
		return err
	}
	if f.confirm {
		a.starts(leaseDelete)
	}
	ar, err := a.openToRemove(ctx, s)
	if err != nil {
		return err
	}
	if !f.confirm {
		return a.deletes(ctx, s, ar, f, rule)
	}
	return a.alone(ctx, s, leaseDelete, ar, func(ctx context.Context, ar *archive.Archive) error { return a.deletes(ctx, s, ar, f, rule) })
}

// deletes says what is to go by a rule, and removes it where that is confirmed.
func (a *app) deletes(ctx context.Context, s *config.Settings, ar *archive.Archive, f *deleteFlags, rule retention.Rule) error {
	a.log.Info("Start delete")
	plan, err := a.retentionPlan(ctx, s, ar, rule, f.confirm)
	if errors.Is(err, retention.ErrNothing) {
		a.log.Info(err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	a.log.Info("Evaluating objects for deletion...")
	for _, note := range plan.Notes {
		a.log.Warn(note)
	}
	for _, v := range plan.Backups {
		switch {
		case !v.Keep:
			a.log.Info(fmt.Sprintf("Backup %s goes: %s", v.Backup, v.Why))
		case v.Ground != retention.ByRule:
			a.log.Info(fmt.Sprintf("Backup %s stays: %s", v.Backup, v.Why))
		}
	}
	count := 0
	for o, err := range retention.Objects(ctx, ar, plan) {
		if err != nil {
			return err
		}
		count++
		a.log.Info(fmt.Sprintf("Object marked for deletion: %s storage=%s", o.Name, cmp.Or(o.Storage, s.InUse()[0].Name)))
	}
	if count == 0 {
		a.log.Info("No objects matched the deletion criteria.")
		if f.asJSON {
			return a.printJSON(plan)
		}
		if plan.Nothing() {
			return nil
		}
	}
	if !f.confirm {
		a.log.Info(fmt.Sprintf("Dry run: objects would be deleted count=%d, Run with --confirm to execute", count))
		if f.asJSON {
			return a.printJSON(plan)
		}
		return nil
	}
	report, err := a.applyRetention(ctx, ar, plan, s.Retention.DeleteGrace)
	if report != nil && err == nil && (report.Objects > 0 || len(report.Condemned) == 0) {
		a.log.Info(fmt.Sprintf("Objects deleted successfully: count=%d", report.Objects))
	}
	if err != nil || !f.asJSON {
		return err
	}
	return a.printJSON(report)
}

// retentionPlan looks at the archive and decides. Where it is to be carried out the store is asked for the time. Where it is of one of several storages the others are
// looked at, too: what lies there may need what is to go.
func (a *app) retentionPlan(ctx context.Context, s *config.Settings, ar *archive.Archive, rule retention.Rule, act bool) (*retention.Plan, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	in, err := retention.Load(ctx, ar, host, act)
	if err != nil {
		return nil, err
	}
	plan, err := retention.Decide(in, rule, in.At)
	if err != nil || s.Target == "" || len(s.Failover) == 0 || len(s.InUse()) > 1 {
		return plan, err
	}
	all := *s
	all.Target = ""
	together, err := a.openArchive(ctx, &all, toRead)
	if err != nil {
		return nil, err
	}
	whole, err := retention.Load(ctx, together, host, false)
	if err != nil {
		return nil, err
	}
	whole.At = in.At
	return plan, plan.Spares(whole, s.InUse()[0].Name)
}

// applyRetention carries a plan out and logs what came of it.
func (a *app) applyRetention(ctx context.Context, ar *archive.Archive, plan *retention.Plan, grace time.Duration) (*retention.Report, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	r, err := retention.Apply(ctx, ar, plan, retention.Options{Grace: grace, Host: host, Version: release(), Logger: a.log})
	if len(r.Condemned) > 0 {
		by := "holdfast retention apply"
		if strings.HasPrefix(plan.Rule, "delete everything") { // a policy keeps the last one
			by = "holdfast " + plan.Rule + " --confirm"
		}
		a.log.Info(fmt.Sprintf("condemned: %s; removed by `%s` after %s, until then `holdfast undelete` takes it back", strings.Join(r.Condemned, ", "), by,
			catalog.FormatTime(r.PurgeAfter)))
	}
	if len(r.TakenBack) > 0 {
		a.log.Info("wanted again, and condemned no longer: " + strings.Join(r.TakenBack, ", "))
	}
	if n := len(r.Waiting) - len(r.Condemned); n > 0 {
		a.log.Info(fmt.Sprintf("%s condemned before, and not due yet: `holdfast retention plan` shows when", manyOf(uint64(n), "backup")))
	}
	if r.Objects > 0 {
		a.log.Info(fmt.Sprintf("removed %s, %s in all, %s", manyOf(uint64(len(r.Backups)), "backup"), manyOf(uint64(r.Objects), "object"), humanize.IBytes(uint64(r.Bytes))))
	}
	if r.Refused > 0 {
		a.log.Warn(fmt.Sprintf("the storage did not let go of %s: locked, or these credentials may not delete. That stays, and the next run tries again", manyOf(uint64(r.Refused), "object")))
		for _, why := range r.Refusals {
			a.log.Warn("refused: " + why)
		}
		if r.StoreLocks {
			a.log.Warn("as it refused everything, the rest was not tried")
		}
	}
	return r, err
}
