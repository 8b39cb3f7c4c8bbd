package cli

import (
	_ "embed"
	"errors"
	"fmt"
	"html"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/config"
	"holdfast/internal/drill"
)

// drillReportFlags are those of drill report.
type drillReportFlags struct {
	format, since, size, publicKey string
	objective                      time.Duration
}

func (a *app) drillReport() *cobra.Command {
	var f drillReportFlags
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Show which backups are proven, by which drills, and how long a restore will take",
		Long: "Reads the records of drills that lie beside the backups: how each backup stands, each drill with what it measured and why it failed, the records that do not count\n" +
			"and why, and the trend: an estimate of how long a restore takes at the size of the cluster, and from when on an objective is missed. Records of a backup go with it.\n\n" +
			"A record counts where it is of the backup that it lies beside. With HOLDFAST_PROOF_PUBLIC_KEY, HOLDFAST_PROOF_KEY or --public-key it must be signed with one of these\n" +
			"keys, too: who can write into the archive can forge it otherwise.\n\n" +
			"The estimate is bytes to restore and WAL to replay, each a fixed time and a rate, fitted to what drills have measured; it needs three of these. It is of the hosts that made\n" +
			"the drills, and of restores that begin with an empty directory. What is given as a stretch holds nine of ten measurements when each is predicted from the others.\n\n" +
			"html is one file that loads nothing, to be filed or printed.",
		Example: "  holdfast drill report --objective 60m\n  holdfast drill report --format html --since 2160h > proofs.html\n  holdfast drill report --size 4TiB --format json | jq .trend.at",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			return a.reportDrills(cmd, s, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", "text", "text, json, markdown or html")
	flags.StringVar(&f.since, "since", "", "leave out drills before this time, or as long ago; the estimate heeds them all the same")
	flags.DurationVar(&f.objective, "objective", 0, "how long a restore may take (default HOLDFAST_DRILL_RTO)")
	flags.StringVar(&f.size, "size", "", "estimate for so many `BYTES` in place of what the newest backup has")
	flags.StringVar(&f.publicKey, "public-key", "", "`FILE` with the public keys of whose records count (HOLDFAST_PROOF_PUBLIC_KEY)")
	targetFlag(cmd)
	return cmd
}

// reportDrills prints the report.
func (a *app) reportDrills(cmd *cobra.Command, s *config.Settings, f *drillReportFlags) error {
	ctx, now := cmd.Context(), time.Now()
	o := drill.ReportOptions{Now: now, Objective: f.objective}
	if !cmd.Flags().Changed("objective") {
		o.Objective = s.Drill.RTO
	}
	prints := map[string]func(*drill.Report) error{"text": a.reportText, "markdown": a.reportMarkdown, "html": a.reportHTML, "json": func(r *drill.Report) error { return a.printJSON(r) }}
	show := prints[f.format]
	switch {
	case show == nil:
		return a.usage(cmd, errors.New("--format: want text, json, markdown or html"))
	case o.Objective < 0:
		return a.usage(cmd, errors.New("--objective: want a duration such as 60m"))
	}
	var err error
	if f.since != "" {
		if o.Since, err = moment(f.since, now); err != nil {
			return fmt.Errorf("--since: %w", err)
		}
	}
	if f.size != "" {
		n, err := humanize.ParseBytes(f.size)
		if err != nil || n == 0 || n > 1<<60 {
			return a.usage(cmd, errors.New("--size: want a number of bytes such as 1.9TiB"))
		}
		o.Size = int64(n)
	}
	if f.publicKey != "" {
		b, err := os.ReadFile(f.publicKey)
		if err != nil {
			return err
		}
		s.Drill.PublicKeys = string(b)
	}
	if _, err := proofKeys(s); err != nil {
		return err
	}
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	r, err := drill.Summarize(ctx, ar, o)
	if err != nil {
		return err
	}
	r.Archive, r.Version = s.Location(), release()
	return show(r)
}

// A sheet is a report laid out in tables, for text, Markdown and HTML alike. Its cells are on one line and printable; who prints them escapes what else means something there.
type sheet struct {
	*drill.Report
	Facts  [][2]string
	Tables []sheetTable
	Chart  *chart // nil where there is too little for one
}

type sheetTable struct {
	Title string
	Note  string // below the title
	Head  []string
	Rows  [][]string
	State int // the column that says how it went; -1 for none
	Long  int // the column whose texts may be long
}

// layOut makes tables of a report.
func layOut(r *drill.Report) *sheet {
	day := func(t time.Time) string {
		if t.IsZero() {
			return "–"
		}
		return t.UTC().Format("2006-01-02 15:04")
	}
	took := func(seconds float64) string {
		if seconds <= 0 {
			return "–"
		}
		return seconds2text(seconds)
	}
	bytes := func(n int64) string {
		if n <= 0 {
			return "–"
		}
		return humanize.IBytes(uint64(n))
	}
	rate := func(perSecond float64) string {
		if perSecond < 1 || perSecond > 1e18 {
			return "–"
		}
		return humanize.IBytes(uint64(perSecond)) + "/s"
	}
	s := &sheet{Report: r, Chart: newChart(r)}
	s.Facts = [][2]string{{"Archive", r.Archive}, {"Cluster", fmt.Sprintf("system identifier %d", r.System)}, {"Made", day(r.At) + " UTC, by holdfast " + r.Version}}
	if r.System == 0 {
		s.Facts[1][1] = "not known"
	}
	signatures := "not checked: no public key is configured, and who can write into the archive can write records"
	if len(r.Keys) > 0 {
		signatures = "checked: only records that are signed with " + strings.Join(r.Keys, " or ") + " count"
	}
	s.Facts = append(s.Facts, [2]string{"Signatures", signatures})
	if r.Objective > 0 {
		s.Facts = append(s.Facts, [2]string{"Objective", "a restore takes no longer than " + seconds2text(r.Objective)})
	}

	backups := sheetTable{Title: "Backups", Head: []string{"Backup", "Finished", "Size", "State", "Last drill", "RTO", "Drills", "Why not"}, State: 3, Long: 7}
	for _, b := range r.Backups {
		backups.Rows = append(backups.Rows, []string{b.Backup, day(b.Finished), bytes(b.Size), string(b.State), day(b.At), took(b.RTO), fmt.Sprint(b.Drills), b.Why})
	}
	s.Tables = append(s.Tables, backups)

	if t := r.Trend; t != nil {
		ahead := sheetTable{Title: "Expected restore times", Head: []string{"When", "Size", "Expected", "In the middle"}, State: -1, Long: -1}
		when := "at that size"
		if t.Now {
			when = "now"
		}
		ahead.Rows = append(ahead.Rows, []string{when, bytes(t.Size), t.At.String(), took(t.At.Seconds)})
		for _, x := range t.Ahead {
			ahead.Rows = append(ahead.Rows, []string{x.At.Format("January 2006"), bytes(int64(x.Bytes)), x.String(), took(x.Seconds)})
		}
		part := func(l drill.Line) string {
			switch {
			case l.Rate == 0:
				return seconds2text(l.Fixed)
			case l.Fixed < 0.01:
				return "what " + rate(l.Rate) + " takes"
			}
			return fmt.Sprintf("%s and what %s takes", seconds2text(l.Fixed), rate(l.Rate))
		}
		ahead.Note = fmt.Sprintf("Restoring takes %s, replaying %s of WAL %s, the rest %s.", part(t.Model.Restore), humanize.IBytes(uint64(max(0, t.WAL))), part(t.Model.Replay), seconds2text(t.Model.Rest))
		s.Tables = append(s.Tables, ahead)
	}

	drills := sheetTable{Title: "Drills", Head: []string{"Made", "Backup", "Replayed to", "Result", "RTO", "RPO", "Restored", "Rate", "WAL", "Rate", "PostgreSQL", "By", "Holdfast", "Signed with"}, State: 3, Long: 11}
	if !r.Since.IsZero() {
		drills.Note = "Since " + day(r.Since) + " UTC."
	}
	failures := sheetTable{Title: "What failed, and what was left out", Head: []string{"Made", "Backup", "What", "Why"}, State: -1, Long: 3}
	for i := range r.Drills {
		d := &r.Drills[i]
		rpo, wal, replay := "–", int64(0), 0.0
		if d.RPO != nil {
			rpo = seconds2text(*d.RPO)
		}
		if d.Replay != nil {
			wal, replay = d.Replay.Bytes, d.Replay.Rate
		}
		result := "proven"
		if !d.OK {
			result = "failed"
			failures.Rows = append(failures.Rows, []string{day(d.At), d.Backup, "failed: " + string(d.Reason), d.Error})
		}
		for _, c := range d.Checks {
			if c.Result == drill.Skipped {
				failures.Rows = append(failures.Rows, []string{day(d.At), d.Backup, "left out: " + c.Name, c.Text})
			}
		}
		drills.Rows = append(drills.Rows, []string{day(d.At), d.Backup, d.Target, result, took(d.RTO), rpo, bytes(d.Fetched.Bytes), rate(d.Fetched.Rate), bytes(wal), rate(replay),
			d.PostgreSQL, d.By, d.Version, d.Signer})
	}
	if len(r.Keys) == 0 {
		drills.Head[len(drills.Head)-1] = "Signed with (not checked)"
	}
	s.Tables = append(s.Tables, drills)
	if len(failures.Rows) > 0 {
		s.Tables = append(s.Tables, failures)
	}
	if len(r.Refused) > 0 {
		refused := sheetTable{Title: "Records that do not count", Head: []string{"Record", "Why"}, State: -1, Long: 1}
		for _, x := range r.Refused {
			refused.Rows = append(refused.Rows, []string{x.Object, x.Why})
		}
		s.Tables = append(s.Tables, refused)
	}
	for _, t := range s.Tables {
		for _, row := range t.Rows {
			for i := range row {
				row[i] = oneLine(row[i])
			}
		}
	}
	for i := range s.Facts {
		s.Facts[i][1] = oneLine(s.Facts[i][1])
	}
	return s
}

// oneLine puts a text on a line, cut off where it is very long, without what terminals obey.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '�'
	}, strings.Join(strings.Fields(text), " "))
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	return text
}

// seconds2text prints seconds as people read them.
func seconds2text(seconds float64) string {
	d := time.Duration(min(max(seconds, 0), 1e9) * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	text, whole := strings.CutSuffix(d.Round(time.Second).String(), "m0s")
	if whole {
		text += "m"
	}
	if hours, whole := strings.CutSuffix(text, "h0m"); whole {
		text = hours + "h"
	}
	return text
}

// said returns the verdict and what else is to be said, a paragraph each.
func (s *sheet) said() (all []string) {
	all = append(all, oneLine(s.Verdict))
	if s.Trend != nil {
		all = append(all, oneLine(strings.Join(s.Trend.Text, " ")))
	}
	for _, n := range s.Notes {
		all = append(all, oneLine(n))
	}
	return all
}

// reportText prints a report for a terminal.
func (a *app) reportText(r *drill.Report) error {
	s := layOut(r)
	var b strings.Builder
	for _, p := range s.said() {
		b.WriteString(paragraph(p, 116, ""))
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w)
	for _, f := range s.Facts {
		fmt.Fprintf(w, "%s\t%s\n", f[0], f[1])
	}
	for _, t := range s.Tables {
		if len(t.Rows) == 0 {
			continue
		}
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintf(&b, "\n%s\n", t.Title)
		if t.Note != "" {
			b.WriteString(paragraph(t.Note, 116, ""))
		}
		fmt.Fprintln(w, strings.Join(t.Head, "\t"))
		for _, row := range t.Rows {
			fmt.Fprintln(w, strings.Join(row, "\t"))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(a.env.Stdout, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// markdown makes a line one that Markdown shows as it is: HTML and what it takes for marks is escaped.
func markdown(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '<':
			b.WriteString("&lt;")
		case r == '>':
			b.WriteString("&gt;")
		case r == '&':
			b.WriteString("&amp;")
		case r == '@': // GitHub makes people of it
			b.WriteString("&#64;")
		case strings.ContainsRune("\\`*_{}[]()#+!|~", r):
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// reportMarkdown prints a report in Markdown with tables, as GitHub and GitLab show it.
func (a *app) reportMarkdown(r *drill.Report) error {
	s := layOut(r)
	var b strings.Builder
	b.WriteString("# Restore drills\n")
	for _, p := range s.said() {
		fmt.Fprintf(&b, "\n%s\n", markdown(p))
	}
	row := func(cells []string) {
		for _, c := range cells {
			fmt.Fprintf(&b, "| %s ", markdown(c))
		}
		b.WriteString("|\n")
	}
	b.WriteString("\n")
	for _, f := range s.Facts {
		fmt.Fprintf(&b, "- %s: %s\n", f[0], markdown(f[1]))
	}
	for _, t := range s.Tables {
		if len(t.Rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n", t.Title)
		if t.Note != "" {
			fmt.Fprintf(&b, "%s\n\n", markdown(t.Note))
		}
		row(t.Head)
		b.WriteString(strings.Repeat("|---", len(t.Head)) + "|\n")
		for _, cells := range t.Rows {
			row(cells)
		}
	}
	_, err := fmt.Fprint(a.env.Stdout, b.String())
	return err
}

//go:embed drill_report.html
var drillReportHead string

// page is HTML that is being written. What of it comes from elsewhere goes through text alone; there is no template, as executing one has the linker keep what nothing calls.
type page struct{ strings.Builder }

func (p *page) add(markup string)                    { p.WriteString(markup) }
func (p *page) text(text string)                     { p.WriteString(html.EscapeString(text)) }
func (p *page) number(format string, numbers ...any) { fmt.Fprintf(p, format, numbers...) }

// within writes a text between tags.
func (p *page) within(open, text, end string) {
	p.add(open)
	p.text(text)
	p.add(end)
}

// reportHTML prints a report as one page that loads nothing.
func (a *app) reportHTML(r *drill.Report) error {
	s := layOut(r)
	p := &page{}
	p.add(drillReportHead)
	for i, text := range s.said() {
		p.within(map[bool]string{true: `<p class="verdict">`, false: `<p>`}[i == 0], text, "</p>\n")
	}
	p.add("<dl>\n")
	for _, f := range s.Facts {
		p.within("<dt>", f[0], "</dt>")
		p.within("<dd>", f[1], "</dd>\n")
	}
	p.add("</dl>\n")
	if s.Chart != nil {
		p.chart(s.Chart)
	}
	for _, t := range s.Tables {
		if len(t.Rows) > 0 {
			p.table(&t)
		}
	}
	p.add("</main>\n</body>\n</html>\n")
	_, err := fmt.Fprint(a.env.Stdout, p.String())
	return err
}

// table writes a table.
func (p *page) table(t *sheetTable) {
	p.within("<h2>", t.Title, "</h2>\n")
	if t.Note != "" {
		p.within(`<p class="note">`, t.Note, "</p>\n")
	}
	p.add(map[bool]string{true: `<div class="scroll"><table class="wide">`, false: `<div class="scroll"><table>`}[len(t.Head) > 8])
	p.add("\n<thead><tr>")
	for _, h := range t.Head {
		p.within(`<th scope="col">`, h, "</th>")
	}
	p.add("</tr></thead>\n<tbody>\n")
	for _, row := range t.Rows {
		p.add("<tr>")
		for i, v := range row {
			open := "<td>"
			switch {
			case i == t.State && v == "proven":
				open = `<td class="proven">`
			case i == t.State && v == "failed":
				open = `<td class="failed">`
			case i == t.State:
				open = `<td class="open">`
			case i == t.Long:
				open = `<td class="long">`
			}
			p.within(open, v, "</td>")
		}
		p.add("</tr>\n")
	}
	p.add("</tbody></table></div>\n")
}

// chart writes a chart.
func (p *page) chart(c *chart) {
	across := func(y float64, style string) {
		p.number(`<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" style="`, c.Left, c.Right, y, y)
		p.add(style + `"/>`)
	}
	p.number(`<figure>`+"\n"+`<svg viewBox="0 0 %d %d" role="img" aria-label="How long restores took, and will take">`+"\n", c.Width, c.Height)
	for _, m := range c.Across {
		across(m.At, "stroke: var(--line)")
		p.number(`<text x="%.1f" y="%.1f" dy="4" text-anchor="end">`, c.Left-8, m.At)
		p.within("", m.Text, "</text>\n")
	}
	for _, m := range c.Down {
		p.number(`<text x="%.1f" y="%.1f" text-anchor="middle">`, m.At, c.Bottom+22)
		p.within("", m.Text, "</text>\n")
	}
	if c.Band != "" {
		p.within(`<polygon points="`, c.Band, `" style="fill: var(--fit); fill-opacity: 0.18"/>`)
		p.within(`<polyline points="`, c.Middle, `" style="fill: none; stroke: var(--fit); stroke-width: 2"/>`+"\n")
		p.number(`<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" style="stroke: var(--soft); stroke-dasharray: 2 4"/>`+"\n", c.NowX, c.NowX, c.Top, c.Bottom)
	}
	if c.Objective > 0 {
		across(c.Objective, "stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 7 5")
	}
	for _, d := range c.Points {
		if d.OK {
			p.number(`<circle cx="%.1f" cy="%.1f" r="4" style="fill: var(--good)">`, d.X, d.Y)
			p.within("<title>", d.Title, "</title></circle>\n")
			continue
		}
		p.number(`<g transform="translate(%.1f %.1f)" style="stroke: var(--bad); stroke-width: 2.5">`, d.X, d.Y)
		p.within("<title>", d.Title, "</title>")
		p.add(`<path d="M-4-4 4 4M-4 4 4-4"/></g>` + "\n")
	}
	p.add("</svg>\n<figcaption>How long it took until the copy took writes: dots are drills that came up as they should, crosses such that did not")
	if c.Band != "" {
		p.add("; the band is what is expected as the cluster grows")
	}
	if c.Objective > 0 {
		p.add("; the dashed line is the objective")
	}
	p.add(".</figcaption>\n</figure>\n")
}

// A chart shows how long restores took and will take. Its places are in the units of its view box.
type chart struct {
	Width, Height            int
	Left, Right, Top, Bottom float64
	Points                   []chartPoint
	Across                   []chartMark // lines of seconds
	Down                     []chartMark // days
	Objective                float64     // where its line is; 0 for none
	Band, Middle             string      // points of what is expected: a polygon and a line; "" for none
	NowX                     float64
}

type chartPoint struct {
	X, Y  float64
	OK    bool
	Title string
}

type chartMark struct {
	At   float64
	Text string
}

// newChart draws a report's drills; nil where there are fewer than two.
func newChart(r *drill.Report) *chart {
	type dot struct {
		at      time.Time
		seconds float64
		ok      bool
		title   string
	}
	var dots []dot
	highest := r.Objective
	for i := range r.Drills {
		if d := &r.Drills[i]; d.RTO > 0 && d.RTO < 1e9 && !d.At.IsZero() {
			word := "proven"
			if !d.OK {
				word = "failed"
			}
			dots = append(dots, dot{d.At, d.RTO, d.OK, fmt.Sprintf("%s: %s, %s", d.At.UTC().Format("2006-01-02 15:04"), seconds2text(d.RTO), word)})
			highest = max(highest, d.RTO)
		}
	}
	if len(dots) < 2 {
		return nil
	}
	c := &chart{Width: 890, Height: 300, Left: 64, Right: 844, Top: 14, Bottom: 262}
	first, last := dots[0].at, r.At
	if last.Before(dots[len(dots)-1].at) {
		last = dots[len(dots)-1].at
	}
	end := last
	t := r.Trend
	type expected struct {
		at time.Time
		drill.Estimate
	}
	var ahead []expected
	if t != nil && t.Growth != nil {
		for at, i := last, 0; i <= 8; i++ { // half as long as the drills go back, and a year at most
			e := t.Model.Predict(t.Growth.Then(at), float64(t.WAL))
			ahead = append(ahead, expected{at, e})
			highest = max(highest, e.High)
			end = at
			at = at.Add(min(last.Sub(first)/2, 365*24*time.Hour) / 8)
		}
	}
	highest *= 1.08
	if end.Sub(first) < time.Hour {
		first = end.Add(-time.Hour)
	}
	all := end.Sub(first).Seconds()
	x := func(at time.Time) float64 { return c.Left + (c.Right-c.Left)*at.Sub(first).Seconds()/all }
	y := func(seconds float64) float64 { return c.Bottom - (c.Bottom-c.Top)*seconds/highest }
	for _, d := range dots {
		c.Points = append(c.Points, chartPoint{x(d.at), y(d.seconds), d.ok, d.title})
	}
	if r.Objective > 0 {
		c.Objective = y(r.Objective)
	}
	var upper, lower, middle []string
	for _, e := range ahead {
		upper = append(upper, fmt.Sprintf("%.1f,%.1f", x(e.at), y(e.High)))
		lower = append(lower, fmt.Sprintf("%.1f,%.1f", x(e.at), y(e.Low)))
		middle = append(middle, fmt.Sprintf("%.1f,%.1f", x(e.at), y(e.Seconds)))
	}
	slices.Reverse(lower)
	c.Band, c.Middle = strings.Join(append(upper, lower...), " "), strings.Join(middle, " ")
	if len(ahead) > 0 {
		c.NowX = x(last)
	}
	step := chartStep(highest / 4)
	for s := 0.0; s <= highest; s += step {
		c.Across = append(c.Across, chartMark{y(s), seconds2text(s)})
	}
	layout := "2006-01-02"
	if end.Sub(first) < 72*time.Hour {
		layout = "01-02 15:04"
	}
	for i := range 5 {
		at := first.Add(time.Duration(float64(end.Sub(first)) * float64(i) / 4))
		c.Down = append(c.Down, chartMark{x(at), at.UTC().Format(layout)})
	}
	return c
}

// chartStep returns a round number of seconds that is about as long.
func chartStep(seconds float64) float64 {
	steps := []float64{0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 4 * 3600, 12 * 3600, 24 * 3600}
	for _, s := range steps {
		if s >= seconds {
			return s
		}
	}
	return seconds
}
