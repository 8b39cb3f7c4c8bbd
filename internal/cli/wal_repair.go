package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/pg/control"
	"holdfast/internal/timelines"
	"holdfast/internal/walpush"
)

// repairFlags are those of wal-push --repair.
type repairFlags struct{ repair, dryRun, asJSON bool }

// repairedJSON is the report of a repair.
type repairedJSON struct {
	Timeline uint32           `json:"timeline"`
	Stored   []string         `json:"stored"`
	Passed   []walpush.Passed `json:"passed_over"`
	Missing  []shownHoles     `json:"missing"` // those that were accepted included
	DryRun   bool             `json:"dry_run,omitempty"`
}

// repair stores what the archive lacks and a data directory still has.
func (a *app) repair(ctx context.Context, s *config.Settings, args []string, f repairFlags) error {
	dir := s.Postgres.DataDir
	if len(args) > 0 {
		dir = args[0]
	}
	if dir == "" {
		return &advised{errors.New("no data directory is named"), "give it behind --repair, or set PGDATA"}
	}
	dir, err := a.absolute(dir)
	if err != nil {
		return err
	}
	data, _, err := control.Read(filepath.Join(dir, control.Name))
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	var have walpush.Have
	if have.Catalog, err = catalog.Load(ctx, ar); err != nil {
		return err
	}
	if have.WAL, err = catalog.LoadWAL(ctx, ar, data.SegmentSize); err != nil {
		return err
	}
	var bad []error
	if have.Accepted, bad, err = catalog.LoadAccepted(ctx, ar, data.SegmentSize); err != nil {
		return err
	}
	for _, err := range bad {
		a.log.Warn(fmt.Sprintf("a record is passed over: %v", err))
	}
	asides, err := timelines.LoadQuarantines(ctx, ar)
	if err != nil {
		return err
	}
	e := catalog.Evidence{WAL: have.WAL, Forgotten: asides.Age}
	if p := a.live(ctx, s, have.Catalog); p != nil {
		e.Server = p.Timeline
	}
	have.Current = have.Catalog.Current(e)
	into, _, err := a.archivesForPush(s)(ctx)
	if err != nil {
		return err
	}
	report, err := walpush.Repair(ctx, into, dir, have, walpush.RepairOptions{
		Options: walpush.Options{Location: s.Location(), Host: host, Summaries: s.SummarizesWAL(), Deltas: s.WAL.Deltas, Logger: a.log}, DryRun: f.dryRun,
	})
	if report == nil {
		return err
	}
	out := repairedJSON{Timeline: uint32(report.Timeline), Stored: report.Stored, Passed: report.Passed, Missing: []shownHoles{}, DryRun: f.dryRun}
	var missing uint64
	for _, gap := range report.Missing {
		hole := timelines.Hole{Stretch: gap.Stretch, Accepted: gap.Accepted}
		out.Missing = append(out.Missing, showHole(data.SegmentSize, hole))
		if gap.Accepted == nil {
			missing += hole.Count()
		}
	}
	var printing error
	if f.asJSON {
		printing = a.printJSON(out)
	} else {
		printing = a.printRepaired(out)
	}
	if err := errors.Join(err, printing); err != nil {
		return err
	}
	if missing > 0 {
		return &advised{fmt.Errorf("%s of WAL missing in the archive still", manyOf(missing, "segment")),
			"look on the other servers of the cluster. What is gone for good leaves a hole: take a backup (`holdfast backup-push`), then `holdfast wal-gap accept`"}
	}
	return nil
}

// printRepaired says what was found and stored.
func (a *app) printRepaired(r repairedJSON) error {
	var b strings.Builder
	verb := "stored"
	if r.DryRun {
		verb = "would store"
	}
	for _, name := range r.Stored {
		fmt.Fprintf(&b, "%s %s\n", verb, name)
	}
	for _, p := range r.Passed {
		fmt.Fprintf(&b, "passed over %s: %s\n", p.Name, p.Why)
	}
	for _, g := range r.Missing {
		s := g.First
		if g.Segments > 1 {
			s += " to " + g.Last
		}
		s += " (" + manyOf(g.Segments, "segment") + ")"
		if g.At != nil {
			fmt.Fprintf(&b, "missing, accepted by %s: %s\n", cell(g.By), s)
		} else {
			fmt.Fprintf(&b, "still missing: %s\n", s)
		}
	}
	if b.Len() == 0 {
		fmt.Fprintf(&b, "nothing is missing along timeline %d, and nothing here that the archive lacks\n", r.Timeline)
	}
	_, err := a.env.Stdout.Write([]byte(b.String()))
	return err
}
