package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/config"
	"holdfast/internal/drill"
	"holdfast/internal/firedrill"
)

// firedrillFlags are those of firedrill, beside the settings that they stand for.
type firedrillFlags struct {
	accident   string
	rows       int
	keep, json bool
}

func (a *app) firedrill() *cobra.Command {
	var f firedrillFlags
	var d config.Drill // what flags say
	cmd := &cobra.Command{
		Use:   "firedrill",
		Short: "Practise: have an accident happen on a restored copy, and undo it",
		Long: "Restores the newest backup into a scratch directory below HOLDFAST_DRILL_DIR and starts it there, with an archive of its own. Sessions work with tables that are made\n" +
			"for it, and at some moment one of these is dropped, truncated, or changed by an UPDATE without its WHERE. Then it is found by `holdfast events` and undone by\n" +
			"`holdfast recover-table --before-drop`, as docs/runbook.md has it, and every row is compared. It prints what was typed, what was said, and how long each step took.\n\n" +
			"Neither the live server nor the archive is touched, but for reading the backup. Afterwards all of it goes; with --keep the copy stays, as it is then.\n" +
			"It takes room for the copy, a compressed backup of that, and what is restored of it. The copy runs as HOLDFAST_DRILL_USER where root does it.\n\n" +
			"Exit status: 0 all came back; 1 this host could not play it, and says why; 2 the backup did not restore, or something did not come back as it was.",
		Example: "  holdfast firedrill\n  holdfast firedrill --case drop --rows 1000000\n  holdfast firedrill --json | jq '.played[] | {accident, found_seconds, recovered_seconds}'",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			for name, set := range map[string]func(){
				"dir": func() { s.Drill.Dir = d.Dir }, "user": func() { s.Drill.User = d.User }, "role": func() { s.Drill.Role = d.Role },
			} {
				if cmd.Flags().Changed(name) {
					set()
				}
			}
			if s.Drill.Dir, err = a.absolute(s.Drill.Dir); err != nil {
				return err
			}
			o := firedrill.Options{Rows: f.rows}
			switch kind := firedrill.Accident(f.accident); {
			case slices.Contains(firedrill.Accidents(), kind):
				o.Accidents = []firedrill.Accident{kind}
			case f.accident != "all":
				return a.usage(cmd, fmt.Errorf("--case %s: want drop, truncate, update or all", f.accident))
			}
			if f.rows < firedrill.MinRows {
				return a.usage(cmd, fmt.Errorf("--rows %d: want %d at least", f.rows, firedrill.MinRows))
			}
			return a.playFire(cmd.Context(), s, o, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.accident, "case", "all", "what happens: drop, truncate, update, or all, one after the other")
	flags.IntVar(&f.rows, "rows", 100_000, "how many rows each table has")
	flags.StringVar(&d.Dir, "dir", "", "make the copy below this directory (HOLDFAST_DRILL_DIR)")
	flags.StringVar(&d.User, "user", "", "account of the copy, when root makes it (HOLDFAST_DRILL_USER)")
	flags.StringVar(&d.Role, "role", "", "superuser to work as (HOLDFAST_DRILL_ROLE)")
	flags.BoolVar(&f.keep, "keep", false, "leave the copy running, and say how to reach it")
	flags.BoolVar(&f.json, "json", false, "print the report as JSON")
	targetFlag(cmd)
	return cmd
}

// playFire plays, and prints what came of it.
func (a *app) playFire(ctx context.Context, s *config.Settings, o firedrill.Options, f *firedrillFlags) error {
	a.starts("firedrill")
	df := &drillFlags{what: "LATEST", keep: f.keep}
	df.target.target = "immediate" // what happened since the backup was made has no part in it
	var err error
	if o.Open, err = drillOptions(s, df); err != nil {
		return err
	}
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	r, err := a.drillRequest(ctx, s, ar, df)
	if err != nil {
		return err
	}
	o.Logger, o.Open.Logger, o.Open.Progress = a.log, a.log, &drill.Progress{}
	stop := a.progress(ctx, "firedrill", o.Open.Progress)
	report, err := firedrill.Run(ctx, ar, r, o)
	stop()
	var restored *drill.FailedError
	var played *firedrill.FailedError
	if errors.As(err, &restored) || errors.As(err, &played) {
		err = &exit{err, exitDamaged}
	}
	if report == nil {
		return err
	}
	var errPrint error
	if f.json {
		errPrint = a.printJSON(report)
	} else {
		_, errPrint = fmt.Fprint(a.env.Stdout, firedrillText(report))
	}
	if c := report.Copy; c != nil {
		a.log.Info(fmt.Sprintf("the copy is running: psql -h %s -p %d -U %s %s", c.Socket, c.Port, c.Role, firedrill.Database))
		a.log.Info(fmt.Sprintf("to remove it: kill -QUIT %d, then rm -r %s", c.Pid, c.Scratch))
	}
	return errors.Join(err, errPrint)
}

// firedrillText is a report for people.
func firedrillText(r *firedrill.Report) string {
	var b strings.Builder
	took := func(seconds float64) time.Duration {
		return time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond)
	}
	fmt.Fprintf(&b, "%s, restored in %s, on PostgreSQL %s\n", r.Backup, took(r.Seconds["restore"]), cell(r.PostgreSQL))
	for _, p := range r.Played {
		fmt.Fprintf(&b, "\n%s of %s, %s rows\n", strings.ToUpper(string(p.Accident)), p.Table, humanize.Comma(p.Rows))
		for _, step := range p.Steps {
			fmt.Fprintf(&b, "    $ %s   (%s)\n", step.Typed, took(step.Seconds))
			for line := range strings.Lines(strings.TrimRight(step.Said, "\n")) {
				b.WriteString(strings.TrimRight("      "+cell(strings.TrimRight(line, "\n")), " ") + "\n")
			}
		}
		if p.OK {
			fmt.Fprintf(&b, "    found after %s, all %s rows are back after %s, each as it was: %s\n", took(p.Found), humanize.Comma(p.Back), took(p.Recovered), p.As)
		} else {
			b.WriteString(paragraph("FAILED: "+p.Error, 112, "    "))
		}
	}
	fmt.Fprintf(&b, "\nmeanwhile %s transactions went on, the longest took %s\n", humanize.Comma(r.Traffic.Commits), time.Duration(r.Traffic.Longest*float64(time.Second)).Round(time.Millisecond))
	fmt.Fprintf(&b, "all of it took %s\n", took(r.Seconds["total"]))
	for _, n := range r.Notes {
		b.WriteString(paragraph("note     "+n, 116, ""))
	}
	return b.String()
}
