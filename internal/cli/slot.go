package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/agent"
	"holdfast/internal/archive"
	"holdfast/internal/config"
)

// errSlotDone ends a turn in which there was nothing to do.
var errSlotDone = errors.New("the slot is done already")

// madeBy says of the jobs of a schedule which are done by a backup that says so itself.
func madeBy(job string) bool { return job == scheduleBackup || job == scheduleFull }

// slotDone says by whom a slot was done, nil where nobody has.
func slotDone(ctx context.Context, ar *archive.Archive, s archive.Slot) (*archive.SlotRecord, error) {
	if by, err := ar.SlotDone(ctx, s); err != nil || by != nil || !madeBy(s.Job) {
		return by, err
	}
	name, sentinel, err := ar.BackupInSlot(ctx, s)
	if err != nil || name == "" {
		return nil, err
	}
	return &archive.SlotRecord{Host: sentinel.Hostname, At: sentinel.FinishTime, Backup: name}, nil
}

// slotIsDone reports whether the slot that the command is for, if it is for one, is done, and says by whom.
func (a *app) slotIsDone(ctx context.Context, ar *archive.Archive) (bool, error) {
	if !a.child.inSlot() {
		return false, nil
	}
	by, err := slotDone(ctx, ar, a.child.slot)
	if err != nil {
		return false, fmt.Errorf("look whether %s is done: %w", a.child.slot, err)
	}
	if by == nil {
		return false, nil
	}
	what := ""
	if by.Backup != "" {
		what = ", by the backup " + by.Backup
	}
	a.log.Info(fmt.Sprintf("%s was done by %s at %s%s: nothing to do.", a.child.slot, by.Host, by.At.UTC().Format(time.RFC3339), what))
	a.passes()
	a.child.settles(agent.Elsewhere, by.Host)
	return true, nil
}

// slotEarly is how far clocks of hosts may be ahead of that of the archive, where it dates what belongs to a slot.
const slotEarly = time.Hour

// slotHasCome is an error where the slot that the command is for, if it is for one, is to come by the clock of the archive.
func (a *app) slotHasCome(ctx context.Context, ar *archive.Archive) error {
	if !a.child.inSlot() {
		return nil
	}
	slot := a.child.slot
	now, err := ar.Now(ctx)
	if err != nil && (now.IsZero() || !errors.Is(err, fs.ErrPermission)) { // what it was read off stays, where nothing may be removed
		return fmt.Errorf("look whether %s has come: %w", slot, err)
	}
	if ahead := slot.At.Sub(now); ahead > slotEarly {
		return &advised{fmt.Errorf("%s is to come: it is %s by the clock of the archive, and %s by that of this host", slot, now.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339)),
			"set the clock of this host, and have NTP keep it"}
	}
	return nil
}

// inSlot has what run makes say for which slot it was made, and the archive say that the slot is done.
func (a *app) inSlot(host string, run func(ctx context.Context, ar *archive.Archive) error) func(ctx context.Context, ar *archive.Archive) error {
	if !a.child.inSlot() {
		return run
	}
	return func(ctx context.Context, ar *archive.Archive) error {
		slot := a.child.slot
		err := run(ctx, ar.InSlot(slot))
		if err != nil && !a.found(ctx, err) {
			return err
		}
		by := archive.SlotRecord{Host: host, PID: os.Getpid(), At: time.Now().UTC().Truncate(time.Second), Backup: a.child.backup}
		if err := ar.EndSlot(ctx, slot, by); err != nil { // it is done all the same; a backup says so itself
			a.log.Warn(fmt.Sprintf("that %s is done could not be noted: %v", slot, err))
		}
		return err // what was found
	}
}

// heardSince reports whether somebody was told at that time or later that a slot of the job was not done, and not otherwise since.
func (a *app) heardSince(s *config.Settings, job string, at time.Time) bool {
	for _, one := range a.told(s, about(agent.Job{Name: job})).Told {
		if !one.At.Before(at.Truncate(time.Millisecond)) { // as events have it
			return true
		}
	}
	return false
}

// agentSlot is what an agent asks about a slot without doing what is due in it.
func (a *app) agentSlot() *cobra.Command {
	var claim bool
	cmd := &cobra.Command{
		Use:     "slot",
		Short:   "Tell the agent whether a slot is done",
		Long:    "The agent runs this by itself.",
		Example: "  holdfast agent slot",
		Hidden:  true,
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if !a.child.inSlot() {
				return errors.New("only the agent runs this: `holdfast agent status` tells people")
			}
			p := toRead
			if claim {
				p = toList // storages that are down are passed over, and a host that only drills has no key that encrypts: what is written here is no secret
			}
			ar, err := a.openArchive(cmd.Context(), s, p)
			if err != nil {
				return err
			}
			if done, err := a.slotIsDone(cmd.Context(), ar); err != nil || done {
				return err
			}
			a.child.settles(agent.Open, "")
			if !claim {
				return nil
			}
			host, err := leaseHost(s)
			if err != nil {
				return err
			}
			if err := a.slotHasCome(cmd.Context(), ar); errors.As(err, new(*advised)) { // nobody can have missed it
				a.log.Warn(a.explain(err))
				return nil
			} else if err != nil {
				return err
			}
			now := archive.SlotRecord{Host: host, PID: os.Getpid(), At: time.Now().UTC()}
			ours, by, err := ar.ClaimAbsence(cmd.Context(), a.child.slot, now)
			if by != nil {
				a.child.settles(agent.Open, by.Host)
				ours = by.Host == host && !a.heardSince(s, a.child.slot.Job, by.At) // an agent of this host that has ended could tell nobody
			}
			a.child.end.Claimed = ours
			return err
		},
	}
	cmd.Flags().BoolVar(&claim, "claim", false, "where it is not, claim to be the host that tells of it")
	return cmd
}
