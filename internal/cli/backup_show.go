package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/describe"
)

func (a *app) backupShow() *cobra.Command {
	var asJSON bool
	var files string
	cmd := &cobra.Command{
		Use:   "backup-show NAME|LATEST",
		Short: "Tell everything about one backup",
		Long: "Tells of one backup what it is of and who took it, what it builds on and what builds on it, whether its WAL is there and how far it leads,\n" +
			"what files are in it, how it is compressed and for which keys it is encrypted, what `verify` and restores have found, what keeps it\n" +
			"from going and what lets it go, and what restoring it would take. Documents and manifests are read, and no data. What cannot be looked\n" +
			"at, as without the key, is listed at the end.\n\n" +
			"--files lists the files whose path from the data directory matches a pattern, such as 'base/16384/*'; of a pattern without a slash their\n" +
			"last element. * and ? match no slash.\n\n" +
			"Exit status: 0; 1 when there is no such backup or nothing can be said of it.",
		Example: "  holdfast backup-show LATEST\n  holdfast backup-show base_000000010000000000000003 --json | jq .restore_cost\n  holdfast backup-show LATEST --files '16385*'",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := path.Match(files, ""); err != nil {
				return a.usage(cmd, fmt.Errorf("--files %q: %w", files, err))
			}
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if files != "" {
				return a.showFiles(cmd.Context(), s, args[0], files, asJSON)
			}
			return a.show(cmd.Context(), s, args[0], asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON; with --files a document for each file, one a line")
	f.StringVar(&files, "files", "", "list the files that match this pattern instead; '*' for all")
	targetFlag(cmd)
	return cmd
}

// show describes a backup.
func (a *app) show(ctx context.Context, s *config.Settings, name string, asJSON bool) error {
	in, err := a.loadRibbon(ctx, s, ribbonFlags{})
	if err != nil {
		return err
	}
	ar, err := a.openArchive(ctx, s, toList)
	if err != nil {
		return err
	}
	if in.Catalog == nil { // nothing answers: this says why
		if in.Catalog, err = catalog.Load(ctx, ar); err != nil {
			return err
		}
	}
	r, err := describe.Backup(ctx, ar, &in, name)
	if err != nil {
		return err
	}
	if r.Storage == "" {
		r.Storage = s.InUse()[0].Name
	}
	if asJSON {
		return a.printJSON(r)
	}
	_, err = fmt.Fprint(a.env.Stdout, showText(r))
	return err
}

// showFiles lists the files of a backup that match a pattern.
func (a *app) showFiles(ctx context.Context, s *config.Settings, name, pattern string, asJSON bool) error {
	ar, err := a.openArchive(ctx, s, toList)
	if err != nil {
		return err
	}
	c, err := catalog.Load(ctx, ar)
	if err != nil {
		return err
	}
	b, err := describe.Find(c, name)
	if err != nil {
		return err
	}
	lines := json.NewEncoder(a.env.Stdout)
	table := tabwriter.NewWriter(a.env.Stdout, 0, 0, 1, ' ', 0)
	if !asJSON {
		fmt.Fprintln(table, "size\theld\thow\tmodified\tpart\tpath")
	}
	known := func(n int64) string {
		if n == archive.UnknownSize {
			return "-"
		}
		return fmt.Sprint(n)
	}
	n := 0
	_, err = describe.EachFile(ctx, ar, b, func(f *describe.File) error {
		if ok, _ := describe.Matches(pattern, f.Path); !ok { // the pattern is a good one
			return nil
		}
		if n++; asJSON {
			return lines.Encode(f)
		}
		part := f.Part
		if part == "" {
			part = "-"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", known(f.Bytes), known(f.Held), f.How, f.ModTime.UTC().Format(time.RFC3339), part, cell(f.Path))
		if n%4096 == 0 {
			return table.Flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !asJSON {
		err = table.Flush()
	}
	if n == 0 {
		a.log.Info(fmt.Sprintf("no file of %s matches %q", b.Name, pattern))
	}
	return err
}

// showWriter writes lines with a head, wrapped.
type showWriter struct{ b strings.Builder }

func (w *showWriter) line(head, format string, args ...any) {
	wrap(&w.b, fmt.Sprintf("%-14s ", head), strings.Repeat(" ", 15), fmt.Sprintf(format, args...))
}

// showText prints a report for people.
func showText(r *describe.Report) string {
	w := &showWriter{}
	size := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	w.line("backup", "%s", r.Name)
	kind := map[string]string{"full": "full", "merged": "full, merged from deltas", "delta": "delta"}[r.Kind]
	if r.DeltaSource != "" {
		kind += fmt.Sprintf("; what had changed was known from %s", map[string]string{"summaries": "the server's summaries of WAL", "archive": "the archived WAL",
			"lsn": "the pages themselves"}[r.DeltaSource])
	}
	w.line("kind", "%s", kind)
	how := "from its directory"
	if r.Wire {
		how = "over the wire"
	}
	if r.Tool != "WAL-G" && r.Tool != "WAL-E" { // they do not say
		how = ", " + how
	} else {
		how = ""
	}
	w.line("taken", "with %s on %s, of %s%s", r.Tool, orUnknown(r.Host), orUnknown(r.DataDir), how)
	if !r.Started.IsZero() {
		w.line("time", "%s to %s, %s", catalog.FormatTime(r.Started), catalog.FormatTime(r.Ended), r.Ended.Sub(r.Started).Round(time.Second))
	}
	w.line("storage", "%s", r.Storage)
	showServer(w, &r.Server)
	for i, l := range r.Chain[min(1, len(r.Chain)):] {
		w.line(map[bool]string{true: "builds on"}[i == 0], "%s, %s, finished %s, %s stored", l.Name, l.Kind, catalog.FormatTime(l.Ended), size(l.Stored))
	}
	if r.ChainError != "" {
		w.line("builds on", "BROKEN: %s", r.ChainError)
	}
	for i, name := range r.Children {
		w.line(map[bool]string{true: "below"}[i == 0], "%s", name)
	}
	showWAL(w, &r.WAL)
	showContents(w, r)
	showObjects(w, &r.Objects)
	keep := "no: retention may remove it"
	if r.Permanent {
		keep = "yes"
	}
	w.line("permanent", "%s", keep)
	for _, h := range r.Holds {
		until := ""
		if !h.Until.IsZero() {
			until = ", until " + catalog.FormatTime(h.Until)
		}
		w.line("held", "%s (%s, by %s%s)", h.Reason, h.ID, h.By, until)
	}
	if c := r.Condemned; c != nil {
		w.line("CONDEMNED", "since %s by %s: it goes after %s; `holdfast undelete %s` takes that back", catalog.FormatTime(c.At), c.By, catalog.FormatTime(c.PurgeAfter), r.Name)
	}
	if len(r.UserData) > 0 {
		w.line("user data", "%s", r.UserData)
	}
	showProofs(w, r)
	c := &r.Cost
	about := ""
	if !c.Exact {
		about = "at most "
	}
	replay := ""
	if c.Replay > 0 {
		replay = fmt.Sprintf("; then %s of WAL (%d segments) are replayed to the newest moment", size(c.Replay), c.ReplayCount)
	}
	w.line("to restore it", "%s%s in %d parts are fetched, %s are written%s", about, size(c.Fetch), c.Parts, size(c.Disk), replay)
	for i, p := range r.Problems {
		w.line(map[bool]string{true: "problems"}[i == 0], "%s", p)
	}
	return w.b.String()
}

func orUnknown(s string) string {
	if s == "" {
		return "(not said)"
	}
	return s
}

func showServer(w *showWriter, s *describe.Server) {
	var facts []string
	add := func(format string, args ...any) { facts = append(facts, fmt.Sprintf(format, args...)) }
	switch v := s.PgVersion; {
	case v >= 100000:
		add("PostgreSQL %d.%d", v/10000, v%10000)
	case v > 0:
		add("PostgreSQL %d.%d.%d", v/10000, v/100%100, v%100)
	}
	if s.SystemIdentifier != 0 {
		add("system identifier %d", s.SystemIdentifier)
	}
	if s.SegmentSize != 0 {
		add("WAL segments of %s", humanize.IBytes(s.SegmentSize))
	}
	if s.Checksums != nil {
		add("data checksums %s", map[bool]string{true: "on", false: "off"}[*s.Checksums])
	}
	if s.WALLevel != "" {
		add("wal_level %s", s.WALLevel)
	}
	w.line("server", "%s", strings.Join(facts, ", "))
	if s.CorruptBlocks > 0 {
		w.line("CORRUPT", "%d pages had a wrong checksum already when they were backed up", s.CorruptBlocks)
	}
	if len(s.Configuration) > 0 {
		w.line("configuration", "%s", strings.Join(s.Configuration, ", "))
	}
}

func showWAL(w *showWriter, x *describe.WAL) {
	if x.First == "" {
		w.line("WAL", "which it needs is not known")
	} else {
		there := "all there"
		if x.Lacks > 0 {
			there = fmt.Sprintf("%d MISSING: %s", x.Lacks, strings.Join(x.Missing, ", "))
			if x.Lacks > len(x.Missing) {
				there += " and others"
			}
		}
		w.line("needs WAL", "%s to %s (%s to %s, timeline %d): %s", x.First, x.Needed, orUnknown(x.StartLSN), orUnknown(x.FinishLSN), uint32(x.Timeline), there)
	}
	switch {
	case x.Verdict == "":
	case x.Why != "":
		w.line("restorable", "%s: %s", strings.ToUpper(string(x.Verdict)), x.Why)
	default:
		until := ""
		if x.Until != "" {
			until = fmt.Sprintf(", with WAL to %s, archived %s", x.Until, catalog.FormatTime(x.UntilTime))
		}
		w.line("restorable", "%s%s", map[bool]string{true: "yes", false: string(x.Verdict)}[x.Verdict == "restorable"], until)
	}
}

func showContents(w *showWriter, r *describe.Report) {
	c := &r.Contents
	size := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	if c.Source == "" {
		w.line("contents", "%s; nothing says which files they are", size(c.Bytes))
		return
	}
	text := fmt.Sprintf("%s in %d files, by its %s", size(c.Bytes), c.Files, c.Source)
	if r.Kind == "delta" {
		text += fmt.Sprintf("; %d are in it whole, %d with what had changed, %d not at all", c.Whole, c.Increments, c.Unchanged)
	}
	w.line("contents", "%s", text)
	if c.Source != "manifest" { // which has no sizes where it is WAL-G's
		return
	}
	sums := func(head string, all []describe.Sum, most int) {
		var some []string
		for i, s := range all {
			if i == most {
				some = append(some, fmt.Sprintf("and %d more", len(all)-most))
				break
			}
			some = append(some, fmt.Sprintf("%s %s (%d)", s.Name, size(s.Bytes), s.Files))
		}
		if len(some) > 0 {
			w.line(head, "%s", strings.Join(some, ", "))
		}
	}
	sums("by kind", c.Kinds, 20)
	sums("by database", c.Databases, 10)
	for _, t := range c.Tablespaces {
		w.line("tablespace", "%s at %s: %s in %d files", t.OID, t.Location, size(t.Bytes), t.Files)
	}
	for i, f := range c.Largest {
		w.line(map[bool]string{true: "largest"}[i == 0], "%s, %s", f.Path, size(f.Bytes))
	}
}

func showObjects(w *showWriter, o *describe.Objects) {
	size := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	var least, most, parts int64
	for i, p := range o.Parts {
		if parts += p.Bytes; i == 0 || p.Bytes < least {
			least = p.Bytes
		}
		most = max(most, p.Bytes)
	}
	w.line("stored", "%s in %d objects; %d parts (%s), of %s to %s, %s in all", size(o.Bytes), o.Count, len(o.Parts), strings.Join(o.Compression, ", "), size(least), size(most),
		size(parts))
	var other []string
	for _, x := range o.Other {
		other = append(other, fmt.Sprintf("%s %s", x.Name, size(x.Bytes)))
	}
	if len(other) > 0 {
		w.line("beside them", "%s", strings.Join(other, ", "))
	}
	switch e := o.Encryption; {
	case e == nil:
		w.line("encryption", "none")
	default:
		kind := string(e.Kind)
		if kind == "" {
			kind = "of a kind that does not show"
		}
		if len(e.For) > 0 {
			kind += " for " + strings.Join(e.For, ", ")
		}
		if e.Readable {
			w.line("encryption", "%s; it can be read here", kind)
		} else {
			w.line("encryption", "%s; it CANNOT be read here: %s", kind, e.Why)
		}
	}
}

func showProofs(w *showWriter, r *describe.Report) {
	p := &r.Proofs
	switch {
	case p.Damaged != "":
		w.line("verified", "DAMAGED: %s", p.Damaged)
	case p.Verified.IsZero():
		w.line("verified", "not yet as a whole: `holdfast verify %s`", r.Name)
	default:
		w.line("verified", "%s", catalog.FormatTime(p.Verified))
	}
	switch {
	case !p.Failed.IsZero():
		w.line("proven", "FAILED %s", catalog.FormatTime(p.Failed))
	case p.Proven.IsZero():
		w.line("proven", "never")
	default:
		w.line("proven", "%s", catalog.FormatTime(p.Proven))
	}
	for _, x := range p.Records {
		w.line("", "%s: %s by %s (%s): %s", catalog.FormatTime(x.At), x.What, x.By, orUnknown(x.Version), x.Result)
	}
}
