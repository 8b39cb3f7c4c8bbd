package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/crypt"
	"holdfast/internal/verify"
)

// What verify ends with, as checks of a monitor do.
const (
	exitUnjudged = 1 // something could not be looked at
	exitDamaged  = 2
)

func (a *app) verify() *cobra.Command {
	var req verify.Request
	var dryRun, asJSON bool
	var sample, budget string
	var maxAge time.Duration
	cmd := &cobra.Command{
		Use:   "verify [NAME|LATEST|all]",
		Short: "Read what the archive holds, and compare it with what it should be",
		Long: "Reads every object of a backup, of all that it builds on, and the WAL that it needs to be consistent, and compares what is in them with\n" +
			"the manifest, the checksums that were kept when they were put, and those of the pages and of each WAL record. With --wal also the WAL\n" +
			"from there on to the end, and with all everything: each backup, and all WAL of all timelines. Without a name it is LATEST.\n\n" +
			"What was found is recorded in the archive. An object that was found to be right is not read again before HOLDFAST_VERIFY_MAX_AGE, unless\n" +
			"its size or time has changed: a second run reads what is new, what is due, and what was damaged. An interrupted run keeps what it has done.\n\n" +
			"Where several storages hold the same, --target-storage verifies one of them.\n\n" +
			"Exit status: 0 all is well, or worth a warning at most; 1 something could not be looked at, because the storage failed or there is no key\n" +
			"for it; 2 something is damaged or missing.",
		Example: "  holdfast verify\n  holdfast verify all --budget 50MB/s\n  holdfast verify base_000000010000000000000004 --wal --again --json\n  holdfast verify all --sample 1%",
		Args:    a.args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				req.Backup, req.All = args[0], args[0] == "all"
			}
			if req.Sample, err = parseShare(sample); err != nil {
				return a.usage(cmd, err)
			}
			req.MaxAge = s.Verify.MaxAge
			if maxAge > 0 {
				req.MaxAge = maxAge
			}
			if budget != "" {
				if s.Verify.Budget, err = config.ParseSize(strings.TrimSuffix(budget, "/s")); err != nil {
					return a.usage(cmd, fmt.Errorf("--budget %q: %w", budget, err))
				}
			}
			return a.verifyArchive(cmd.Context(), s, req, dryRun, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&req.WAL, "wal", false, "also the WAL from the backup's start on to the end")
	f.BoolVar(&req.Again, "again", false, "read also what was found to be right not long ago")
	f.StringVar(&sample, "sample", "", "read about this share of parts and WAL, chosen at random, such as 1%; nothing counts as verified by it")
	f.StringVar(&budget, "budget", "", "read at most so many bytes a second, such as 50MB/s (HOLDFAST_VERIFY_BUDGET)")
	f.DurationVar(&maxAge, "max-age", 0, "how long what was found before counts (HOLDFAST_VERIFY_MAX_AGE)")
	f.BoolVar(&dryRun, "dry-run", false, "print what would be read, and read nothing")
	f.BoolVar(&asJSON, "json", false, "print the report, or with --dry-run the plan, as JSON")
	targetFlag(cmd)
	return cmd
}

// parseShare reads a share: 1%, or a fraction. "" is all.
func parseShare(text string) (float64, error) {
	if text == "" {
		return 0, nil
	}
	digits, percent := strings.CutSuffix(text, "%")
	x, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if percent {
		x /= 100
	}
	if err != nil || !(x > 0 && x <= 1) {
		return 0, fmt.Errorf("--sample %q: want a share such as 1%% or 0.01", text)
	}
	return x, nil
}

// verifyArchive plans a verification and, unless only the plan is wanted, carries it out.
func (a *app) verifyArchive(ctx context.Context, s *config.Settings, req verify.Request, dryRun, asJSON bool) error {
	if !dryRun {
		a.starts(leaseVerify)
	}
	if b := s.Verify.Budget; b > 0 && (s.NetworkRate == 0 || b < s.NetworkRate) {
		s.NetworkRate = b
	}
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	if dryRun {
		return a.verifies(ctx, s, ar, req, true, asJSON)
	}
	return a.alone(ctx, s, leaseVerify, ar, func(ctx context.Context, ar *archive.Archive) error {
		return a.verifies(ctx, s, ar, req, false, asJSON)
	})
}

func (a *app) verifies(ctx context.Context, s *config.Settings, ar *archive.Archive, req verify.Request, dryRun, asJSON bool) error {
	opts := verify.Options{Tool: release(), Logger: a.log, Progress: &verify.Progress{}}
	if ar.HasKey() {
		keys, err := a.openKeys(ctx, s)
		if err != nil {
			return err
		}
		req.NoKey = !slices.ContainsFunc(keys.IDs(), func(id crypt.ID) bool { return id.Read })
	}
	plan, err := verify.Decide(ctx, ar, req)
	if err != nil {
		return err
	}
	if dryRun {
		if asJSON {
			return a.printJSON(plan)
		}
		_, err := fmt.Fprintln(a.env.Stdout, planLine(plan))
		return err
	}
	a.log.Info(planLine(plan))
	if req.NoKey {
		a.log.Warn("no key that decrypts is set on this host: what is stored is compared with what was put, and not looked into")
	}
	stop := a.progress(ctx, "verify", opts.Progress)
	report, err := verify.Run(ctx, ar, plan, opts)
	stop()
	if err != nil {
		return err
	}
	if asJSON {
		err = a.printJSON(report)
	} else {
		_, err = fmt.Fprint(a.env.Stdout, verifyText(report))
	}
	if err != nil {
		return err
	}
	switch report.Result {
	case verify.Damage:
		return &exit{&advised{errors.New(damages(report) + " in the archive"), "each says above what it means, and what to do; docs/operations.md has more"}, exitDamaged}
	case verify.Unknown:
		return &exit{errors.New("not all could be looked at"), exitUnjudged}
	}
	return nil
}

// damages says how many findings of a kind there are.
func damages(r *verify.Report) string {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == verify.Damage {
			n++
		}
	}
	if n == 1 {
		return "1 finding of damage"
	}
	return fmt.Sprintf("%d findings of damage", n)
}

// planLine says what a verification is of, and what of that is read.
func planLine(p *verify.Plan) string {
	what := "1 backup"
	if n := len(p.Backups); n != 1 {
		what = fmt.Sprintf("%d backups", n)
	} else {
		what = p.Backups[0]
	}
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	line := fmt.Sprintf("%s: %d objects and %d WAL segments, %s", what, p.Objects, p.Segments, size(p.Bytes))
	switch due := p.Due.Objects + p.Due.Segments; {
	case due == 0:
		line += "; all was found to be right before, nothing is due"
	case p.Before == 0 && p.Sample == 0:
		line += "; all of it is read"
	case p.Sample != 0:
		line += fmt.Sprintf("; of %d that are due about %g%% is read, %s", due, p.Sample*100, size(p.Due.Bytes))
	default:
		line += fmt.Sprintf("; %d are due and read, %s", due, size(p.Due.Bytes))
	}
	if p.Before > 0 {
		line += fmt.Sprintf(" (%d verified before, the first at %s)", p.Before, catalog.FormatTime(p.Oldest.Truncate(time.Second)))
	}
	return line
}

// maxShown is how many findings are printed; --json has more.
const maxShown = 100

// verifyText is a report for people.
func verifyText(r *verify.Report) string {
	var b strings.Builder
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	verdict := map[verify.Severity]string{verify.OK: "All is well", verify.Damage: "DAMAGE", verify.Unknown: "Not all could be looked at"}[r.Result]
	if r.Result == verify.OK && r.Sample != 0 {
		verdict = fmt.Sprintf("Nothing wrong in a sample of %g%%", r.Sample*100)
	}
	rate := ""
	if r.Seconds > 0 && r.Read.Bytes > 0 {
		rate = fmt.Sprintf(" in %s, %s/s", time.Duration(r.Seconds*float64(time.Second)).Round(10*time.Millisecond), size(int64(float64(r.Read.Bytes)/r.Seconds)))
	}
	fmt.Fprintf(&b, "%s: read %d objects and %d WAL segments, %s%s; %d were verified before\n", verdict, r.Read.Objects, r.Read.Segments, size(r.Read.Bytes), rate, r.Before)
	for i, f := range r.Findings {
		if i == maxShown {
			fmt.Fprintf(&b, "\nand %d further findings: --json has them\n", len(r.Findings)-i+r.More)
			break
		}
		where := f.Object
		if f.Offset != nil {
			where += fmt.Sprintf(", byte %d", *f.Offset)
		}
		fmt.Fprintf(&b, "\n%s (%s)  %s\n", strings.ToUpper(string(f.Severity)), f.Kind, where)
		for _, line := range []struct{ what, text string }{{"", f.Text}, {"means: ", f.Means}, {"next: ", f.Next}} {
			if line.text != "" {
				b.WriteString(paragraph(line.what+line.text, 116, "    "))
			}
		}
	}
	if len(r.Findings) > 0 {
		b.WriteString("\n")
	}
	limits := map[string][]string{}
	var order []string
	for _, one := range r.Backups {
		fmt.Fprintf(&b, "%-10s  %s  %d objects, %d read\n", one.Result, one.Backup, one.Objects, one.Read)
		if one.Limits != "" {
			if limits[one.Limits] == nil {
				order = append(order, one.Limits)
			}
			limits[one.Limits] = append(limits[one.Limits], one.Backup)
		}
	}
	for _, w := range r.WAL {
		fmt.Fprintf(&b, "%-10s  WAL %s to %s  %d segments, %d read\n", w.Result, w.First, w.Last, w.Segments, w.Read)
	}
	for _, text := range order {
		of := limits[text][0]
		if n := len(limits[text]); n > 1 {
			of = fmt.Sprintf("%d backups, such as %s", n, of)
		}
		b.WriteString("\n" + paragraph(of+": "+text, 116, ""))
	}
	for _, n := range r.Notes {
		b.WriteString("\n" + paragraph(n, 116, ""))
	}
	return b.String()
}

// paragraph breaks text into lines of at most width bytes, each behind indent. A longer word has a line of its own.
func paragraph(text string, width int, indent string) string {
	var b strings.Builder
	line := indent
	for _, word := range strings.Fields(text) {
		if len(line) > len(indent) && len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = indent
		}
		if len(line) > len(indent) {
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
	return b.String()
}
