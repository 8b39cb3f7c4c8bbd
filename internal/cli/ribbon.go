package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/config"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
	"holdfast/internal/timelines"
)

// ribbonFlags are the flags of `ribbon`.
type ribbonFlags struct {
	json, check, verified bool
	timeline              uint32
	maxAge                time.Duration
	ask                   bool // the live server, which timeline it is on
	brief                 bool // only the verdict is wanted: see ribbon.Options
	shallow               bool // likewise
}

func (a *app) ribbon() *cobra.Command {
	var o ribbonFlags
	cmd := &cobra.Command{
		Use:   "ribbon",
		Short: "Say for which moments the cluster can be restored, and why not for the others",
		Long: "Looks at backups and what they build on, at WAL and timelines, at what `verify` found, at storages and keys, and says in the first line\n" +
			"for which moments the cluster can be restored. The table has one line for each stretch of WAL, along all timelines that lead to the\n" +
			"cluster's. With PGHOST or its like set the live server says which that is, else the archive does; --timeline names another. Nothing\n" +
			"but listings, small documents and what wal-receive has stored of the segment that the server is writing is read.\n\n" +
			"  restorable   a backup was finished before, and all WAL from its start is there\n" +
			"  broken       something is missing or damaged: the line below says what, and what to do next\n" +
			"  unknown      something could not be looked at: a document, a storage, a key; with --verified also what `verify` has not read yet\n" +
			"  accepted     `wal-gap accept` says that the WAL is lost, and a later backup made up for it; or retention removed it between backups that stay\n" +
			"  uncovered    WAL that is older than the oldest backup: nothing needs it\n\n" +
			"Positions are exact. Times are those at which backups were finished and segments were archived: a segment holds nothing newer. Of the segment\n" +
			"that the server is writing it is told when the last transaction in it was committed. A host that has public keys only\n" +
			"cannot read what is encrypted: that counts as good where it is there, and a note says so.\n\n" +
			"Exit status: 0; with --check 0 OK, 1 WARNING (the newest state can be restored, something else is wrong, or it could not be judged),\n" +
			"2 FAILURE (the newest state that was archived cannot be restored, or is older than --max-age).",
		Example: "  holdfast ribbon\n  holdfast ribbon --check --max-age 15m\n  holdfast ribbon --json | jq .restorable_until",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			o.ask, o.brief = true, true
			return a.showRibbon(cmd.Context(), s, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "print all that is known as JSON")
	f.BoolVar(&o.check, "check", false, "print the verdict and what is wrong, and end with its status")
	f.BoolVar(&o.verified, "verified", false, "count only what `verify` has read and found good")
	f.Uint32Var(&o.timeline, "timeline", 0, "the timeline that the cluster is on")
	f.DurationVar(&o.maxAge, "max-age", 0, "with --check: FAILURE where the newest restorable moment is older, such as 15m")
	targetFlag(cmd)
	return cmd
}

// loadRibbon gathers what is known of the archive.
func (a *app) loadRibbon(ctx context.Context, s *config.Settings, o ribbonFlags) (ribbon.Input, error) {
	strict, err := a.openArchive(ctx, s, toJudge)
	if err != nil {
		return ribbon.Input{}, err
	}
	lenient := strict
	if len(s.InUse()) > 1 {
		if lenient, err = a.openArchive(ctx, s, toList); err != nil {
			return ribbon.Input{}, err
		}
	}
	opts := ribbon.Options{Live: wal.Timeline(o.timeline), ProvenOnly: o.verified, Brief: o.brief, Shallow: o.shallow}
	for _, st := range s.InUse() {
		opts.Storages = append(opts.Storages, st.Name)
	}
	in, err := ribbon.Load(ctx, strict, lenient, opts)
	if err != nil || in.Catalog == nil {
		return in, err
	}
	switch _, only, err := a.encrypts(ctx, s); {
	case err != nil:
		return in, err
	case only:
		in.WithoutKey()
	}
	q, err := timelines.LoadQuarantines(ctx, lenient)
	if err != nil {
		in.Trouble = append(in.Trouble, err)
		return in, ctx.Err()
	}
	in.Trouble = append(in.Trouble, q.Bad...)
	in.Catalog.Evidence.Forgotten = q.Age
	if o.ask && o.timeline == 0 {
		if p := a.live(ctx, s, in.Catalog); p != nil {
			in.Catalog.Evidence.Server = p.Timeline
		}
	}
	return in, ctx.Err()
}

func (a *app) showRibbon(ctx context.Context, s *config.Settings, o ribbonFlags) error {
	in, err := a.loadRibbon(ctx, s, o)
	if err != nil {
		return err
	}
	r := ribbon.Compute(in)
	if o.check && o.maxAge > 0 && (r.Age == nil || time.Duration(*r.Age) > o.maxAge) {
		r.Status = ribbon.Failure
		if r.Age != nil {
			r.Notes = append([]string{fmt.Sprintf("the newest restorable moment is %s old, more than %s", ribbon.Ago(time.Duration(*r.Age)), o.maxAge)}, r.Notes...)
		}
	}
	var b strings.Builder
	switch {
	case o.json:
		err = a.printJSON(r)
	case o.check:
		checkText(&b, &r)
	default:
		ribbonText(&b, &r, o.timeline != 0)
	}
	if b.Len() > 0 {
		_, err = fmt.Fprint(a.env.Stdout, b.String())
	}
	if err == nil && o.check && r.Status != ribbon.OK {
		err = judgement(errors.New("the ribbon is "+r.Status.String()), int(r.Status))
	}
	return err
}

// ribbonWidth is how wide lines for people are at most, in columns.
const ribbonWidth = 120

// checkText prints the verdict for monitoring: one line, and one for each note.
func checkText(b *strings.Builder, r *ribbon.Ribbon) {
	age := ""
	if r.Age != nil {
		age = fmt.Sprintf(" | rpo=%ds", int64(time.Duration(*r.Age).Seconds()))
	}
	fmt.Fprintf(b, "%s: %s%s\n", r.Status, cell(r.Verdict), age)
	for _, n := range r.Notes {
		b.WriteString(cell(n) + "\n")
	}
}

// ribbonText prints a ribbon for people. Only the newest stretches are shown unless all are wanted.
func ribbonText(b *strings.Builder, r *ribbon.Ribbon, all bool) {
	wrap(b, "", "  ", r.Verdict)
	for _, n := range r.Notes {
		wrap(b, "- ", "  ", n)
	}
	onMain := map[wal.Timeline]bool{}
	if len(r.Main) > 0 {
		fmt.Fprintf(b, "\n%4s  %-10s  %-19s  %-19s  %s\n", "tl", "verdict", "from (UTC)", "to (UTC)", "positions")
		stretchText(b, r.Main, all)
		for _, s := range r.Main {
			onMain[s.Timeline] = true
		}
	}
	head := true
	for _, t := range r.Timelines {
		own := t.Stretches
		if onMain[t.Timeline] || int64(t.Timeline) == r.Timeline { // what it contributed is above; behind the branch it may have gone on
			own = behind(own, leftAt(r, t.Timeline))
		}
		if len(own) == 0 && len(t.Notes) == 0 {
			continue
		}
		if head {
			b.WriteString("\nother timelines:\n")
			head = false
		}
		stretchText(b, own, all)
		for _, n := range t.Notes {
			wrap(b, "      ", "      ", n)
		}
	}
}

// leftAt returns where a timeline on the way to the ribbon's was left; 0 where it was not.
func leftAt(r *ribbon.Ribbon, t wal.Timeline) (at wal.LSN) {
	parent := map[wal.Timeline]ribbon.Timeline{}
	for _, line := range r.Timelines {
		parent[line.Timeline] = line
	}
	for child := wal.Timeline(r.Timeline); child != 0; child = parent[child].Parent {
		if parent[child].Parent == t {
			return parent[child].Switch
		}
	}
	return 0
}

// behind returns what of the stretches lies behind at; nothing where at is 0.
func behind(all []ribbon.Stretch, at wal.LSN) (rest []ribbon.Stretch) {
	for _, s := range all {
		if at == 0 || s.To <= at {
			continue
		}
		if s.From < at {
			s.From, s.FromTime = at, time.Time{}
		}
		rest = append(rest, s)
	}
	return rest
}

// stretchText prints stretches, the newest last.
func stretchText(b *strings.Builder, stretches []ribbon.Stretch, all bool) {
	const some = 30
	if hidden := len(stretches) - some; hidden > 0 && !all {
		fmt.Fprintf(b, "      %d older ones are left out: --timeline and --json show all\n", hidden)
		stretches = stretches[hidden:]
	}
	when := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format("2006-01-02 15:04:05")
	}
	const indent = "      "
	for _, s := range stretches {
		fmt.Fprintf(b, "%4d  %-10s  %-19s  %-19s  %s - %s\n", s.Timeline, s.Verdict, when(s.FromTime), when(s.ToTime), s.From, s.To)
		if s.Verdict != ribbon.Restorable {
			wrap(b, indent, indent, s.Why)
			if s.Advice != "" {
				wrap(b, indent+"next: ", indent, s.Advice)
			}
			continue
		}
		text := "by " + s.Backup
		switch n := len(s.Bases); {
		case n == 2:
			text += " and an older one"
		case n > 2:
			text += fmt.Sprintf(" and %d older ones", n-1)
		}
		text += fmt.Sprintf("; WAL to replay: %s to the end", humanize.IBytes(s.ReplayBytes))
		if s.MaxReplay > s.ReplayBytes {
			text += fmt.Sprintf(", at most %s", humanize.IBytes(s.MaxReplay))
		}
		switch {
		case s.Verified == 0:
			text += "; not verified"
		case s.Verified >= s.To:
			text += "; verified"
		default:
			text += "; verified until " + s.Verified.String()
		}
		if len(s.Storages) > 0 {
			text += "; in " + strings.Join(s.Storages, " and ")
		}
		wrap(b, indent, indent, text)
	}
}

// wrap prints text in lines of at most ribbonWidth columns, the first behind first and the others behind rest.
func wrap(b *strings.Builder, first, rest, text string) {
	line, width := first, len([]rune(first))
	empty := true // nothing but the indent is in line
	for _, word := range strings.Fields(cell(text)) {
		w := []rune(word)
		if !empty && width+1+len(w) > ribbonWidth {
			b.WriteString(line + "\n")
			line, width, empty = rest, len([]rune(rest)), true
		}
		if !empty {
			line += " "
			width++
		}
		for room := ribbonWidth - width; len(w) > room; room = ribbonWidth - width { // no blank to break it at
			b.WriteString(line + string(w[:room]) + "\n")
			w, line, width = w[room:], rest, len([]rune(rest))
		}
		line += string(w)
		width += len(w)
		empty = false
	}
	b.WriteString(line + "\n")
}
