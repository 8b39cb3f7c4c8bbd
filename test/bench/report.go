package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// A sample is what one measurement of one row gave.
type sample struct {
	usage
	Net    float64   // of Wall, what the server did not take to start and stop a backup; 0 where nobody asks
	Stored int64     // bytes
	Calls  []float64 // milliseconds of each call, where there are many
	Err    error     // then there is no figure
}

// A row is one line of a table: a tool, and its samples round by round.
type row struct {
	name    string
	base    string // the row of ours it is compared with
	samples []sample
}

// A table is what one kind of work took, tool by tool. A nil table has no rows.
type table struct{ rows []*row }

// add appends the sample of a further round to a row, which is made where there is none.
func (t *table) add(name, base string, s sample) {
	r := t.row(name)
	if r == nil {
		r = &row{name: name, base: base}
		t.rows = append(t.rows, r)
	}
	r.samples = append(r.samples, s)
}

// row returns the named row, nil if there is none.
func (t *table) row(name string) *row {
	if t == nil {
		return nil
	}
	if i := slices.IndexFunc(t.rows, func(r *row) bool { return r.name == name }); i >= 0 {
		return t.rows[i]
	}
	return nil
}

// failures lists what went wrong.
func (t *table) failures() (all []string) {
	if t == nil {
		return nil
	}
	for _, r := range t.rows {
		for round, s := range r.samples {
			if s.Err != nil {
				all = append(all, fmt.Sprintf("%s, round %d: %v", r.name, round+1, s.Err))
			}
		}
	}
	return all
}

// A figure takes one number from a sample.
type figure func(s sample) float64

// The figures of tables and targets.
var (
	wall   figure = func(s sample) float64 { return s.Wall }
	net    figure = func(s sample) float64 { return s.Net }
	read   figure = func(s sample) float64 { return float64(s.Read) / 1e6 } // MB
	cpu    figure = func(s sample) float64 { return s.CPU }
	server figure = func(s sample) float64 { return s.Server }
	peak   figure = func(s sample) float64 { return float64(s.Peak) / (1 << 20) } // MiB
	stored figure = func(s sample) float64 { return float64(s.Stored) / 1e6 }     // MB
	call   figure = func(s sample) float64 { return median(s.Calls) }             // ms
	worst  figure = func(s sample) float64 { return slices.Max(append(s.Calls, 0)) }
	rate   figure = func(s sample) float64 { return float64(len(s.Calls)) / s.Wall } // a second
)

// figures returns a figure of each round, 0 of those that failed and nil where there is no row.
func (t *table) figures(name string, f figure) (all []float64) {
	r := t.row(name)
	if r == nil {
		return nil
	}
	for _, s := range r.samples {
		if s.Err != nil {
			all = append(all, 0)
		} else {
			all = append(all, f(s))
		}
	}
	return all
}

// good leaves the rounds out that failed.
func good(figures []float64) []float64 {
	return slices.DeleteFunc(slices.Clone(figures), func(f float64) bool { return f == 0 })
}

// A column of a printed table.
type column struct {
	title string
	cell  func(t *table, r *row) string
}

// format writes a number with decimals digits behind the point, nothing for 0.
func format(f float64, decimals int) string {
	if f == 0 {
		return ""
	}
	return fmt.Sprintf("%.*f", decimals, f)
}

// each is a column of the median of a figure over the rounds.
func each(title string, f figure, decimals int) column {
	return column{title, func(t *table, r *row) string { return format(median(good(t.figures(r.name, f))), decimals) }}
}

// most is a column of the largest figure of all rounds.
func most(title string, f figure, decimals int) column {
	return column{title, func(t *table, r *row) string { return format(slices.Max(append(t.figures(r.name, f), 0)), decimals) }}
}

// least is a column of the smallest figure of all rounds.
func least(title string, f figure, decimals int) column {
	return column{title, func(t *table, r *row) string {
		if g := good(t.figures(r.name, f)); len(g) > 0 {
			return format(slices.Min(g), decimals)
		}
		return "failed"
	}}
}

// rounds is a column of a figure in every round.
func rounds(title string, f figure, decimals int) column {
	return column{title, func(t *table, r *row) string { return list(t.figures(r.name, f), decimals) }}
}

// compared is a column of a figure over that of our row, the median and every round's.
func compared(f figure) column {
	return column{"÷ holdfast", func(t *table, r *row) string {
		q := ratios(t.figures(r.name, f), t.figures(r.base, f))
		if r.base == r.name || len(q) == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f (%s)", median(q), list(q, 2))
	}}
}

// list writes numbers one behind the other, a dash for 0.
func list(figures []float64, decimals int) string {
	var all []string
	for _, f := range figures {
		all = append(all, cmp.Or(format(f, decimals), "–"))
	}
	return strings.Join(all, " ")
}

// The columns of the tables.
var (
	backupColumns = []column{
		each("median s", wall, 2), least("best s", wall, 2), rounds("each round", wall, 2), each("CPU s", cpu, 1),
		each("of it the server's", server, 1), most("peak MiB", peak, 0), each("stored MB", stored, 0), compared(wall),
	}
	restoreColumns = []column{
		each("median s", wall, 2), least("best s", wall, 2), rounds("each round", wall, 2), each("CPU s", cpu, 1),
		most("peak MiB", peak, 0), compared(wall),
	}
	pushColumns = []column{
		each("median ms", call, 1), least("best ms", call, 1), rounds("each round", call, 1), most("worst call", worst, 0), each("segments/s", rate, 1),
		each("CPU s", cpu, 1), most("peak MiB", peak, 0), each("stored MB", stored, 0), compared(call),
	}
	fetchColumns = slices.Delete(slices.Clone(pushColumns), 7, 8)
	startColumns = []column{each("median ms", call, 1), rounds("each round", call, 1), compared(call)}
)

// print writes the table, in Markdown, lined up to be read as it is.
func (t *table) print(w io.Writer, columns []column) {
	lines := [][]string{{""}}
	for _, c := range columns {
		lines[0] = append(lines[0], c.title)
	}
	for _, r := range t.rows {
		line := []string{r.name}
		for _, c := range columns {
			line = append(line, c.cell(t, r))
		}
		lines = append(lines, line)
	}
	printLines(w, lines)
	for _, f := range t.failures() {
		fmt.Fprintf(w, "\nFailed: %s\n", f)
	}
}

// printLines writes lines of cells as a Markdown table, the first being the head.
func printLines(w io.Writer, lines [][]string) {
	width := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			line[i] = strings.ReplaceAll(cell, "|", `\|`)
			width[i] = max(width[i], utf8.RuneCountInString(line[i]))
		}
	}
	for n, line := range lines {
		for i, cell := range line {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				fmt.Fprintf(w, "| %s%s |", cell, pad)
			} else {
				fmt.Fprintf(w, " %s%s |", pad, cell)
			}
		}
		fmt.Fprintln(w)
		if n == 0 {
			for i := range line {
				if i == 0 {
					fmt.Fprintf(w, "|%s|", strings.Repeat("-", width[i]+2))
				} else {
					fmt.Fprintf(w, "%s:|", strings.Repeat("-", width[i]+1))
				}
			}
			fmt.Fprintln(w)
		}
	}
}

// results is all that was measured; what was not is nil.
type results struct {
	bigBackup, bigRestore, smallBackup, smallRestore, push, fetch, start, million *table
	bigBytes, smallBytes                                                          int64
	millionFiles, smallFiles                                                      int
	increments                                                                    *incremental
	catalogue                                                                     *catalogued
	archiver                                                                      *archiver
	replayed                                                                      *replayed
	returned                                                                      *returned
}

// tables lists all tables that were measured.
func (r *results) tables() []*table {
	all := []*table{r.bigBackup, r.bigRestore, r.smallBackup, r.smallRestore, r.push, r.fetch, r.start, r.million}
	if r.increments != nil {
		all = append(all, r.increments.backup, r.increments.restore)
	}
	if r.catalogue != nil {
		all = append(all, r.catalogue.verify, r.catalogue.copies, r.catalogue.lists)
	}
	if r.replayed != nil {
		all = append(all, r.replayed.table)
	}
	if r.returned != nil {
		all = append(all, r.returned.table)
	}
	all = append(all, r.archiver.tables()...)
	return slices.DeleteFunc(all, func(t *table) bool { return t == nil })
}

// targets compares what was measured with what must be reached.
func (r *results) targets() []target {
	// ratio divides a figure of two rows of a table.
	ratio := func(t *table, f figure, numerator, denominator string) []float64 {
		return ratios(t.figures(numerator, f), t.figures(denominator, f))
	}
	figures := func(t *table, f figure, name string) []float64 { return good(t.figures(name, f)) }
	limit := ratio(r.bigBackup, wall, codecZstd, oursZstd)
	for i := range limit {
		limit[i] *= 100
	}
	all := []target{
		{what: "full backup, zstd: share of the codec's limit", bound: 85, atLeast: true, rounds: limit, unit: "%"},
		{what: "full backup, zstd: times as fast as pgBackRest zst", bound: 1.15, atLeast: true, rounds: ratio(r.bigBackup, wall, backrestZst, oursZstd)},
		{what: "full backup, zstd: size over pgBackRest zst", bound: 1.03, rounds: ratio(r.bigBackup, stored, oursZstd, backrestZst)},
		{what: "full backup, lz4: times as fast as pgBackRest lz4", bound: 1.2, atLeast: true, rounds: ratio(r.bigBackup, wall, backrestLZ4, oursLZ4)},
		{what: "restore, zstd: times as fast as pgBackRest zst", bound: 1.3, atLeast: true, rounds: ratio(r.bigRestore, wall, backrestZst, oursZstd)},
		{what: "restore, zstd: time over cp -r", bound: 1.25, rounds: ratio(r.bigRestore, wall, oursZstd, copied)},
	}
	for _, work := range []struct {
		name string
		t    *table
	}{{"full backup", r.bigBackup}, {"restore", r.bigRestore}} {
		for _, pair := range [][2]string{{oursZstd, backrestZst}, {oursZstd, basebackupZstd}, {oursLZ4, backrestLZ4}, {oursLZ4, basebackupLZ4}} {
			all = append(all, target{what: fmt.Sprintf("%s: CPU seconds of %s over %s", work.name, pair[0], pair[1]), bound: 1, strict: true,
				rounds: ratio(work.t, cpu, pair[0], pair[1])})
		}
	}
	for _, pair := range [][2]string{{oursZstd, backrestZst}, {oursLZ4, backrestLZ4}} {
		all = append(all,
			target{what: "small relations, backup: " + pair[0] + ", times as fast as " + pair[1], bound: 1.3, atLeast: true, rounds: ratio(r.smallBackup, wall, pair[1], pair[0])},
			target{what: "small relations, restore: " + pair[0] + ", times as fast as " + pair[1], bound: 3, atLeast: true, rounds: ratio(r.smallRestore, wall, pair[1], pair[0])})
	}
	for _, work := range []struct {
		name string
		t    *table
	}{{"full backup", r.bigBackup}, {"restore", r.bigRestore}, {"small relations, backup", r.smallBackup}, {"small relations, restore", r.smallRestore}} {
		for _, ours := range []string{oursZstd, oursLZ4} {
			all = append(all, target{what: work.name + ": peak memory of " + ours, bound: 256, strict: true, rounds: figures(work.t, peak, ours), unit: " MiB"})
		}
	}
	for _, pair := range [][2]string{{pushOneZstd, backrestSyncZst}, {pushAheadZstd, backrestSyncZst}, {pushOneLZ4, backrestSyncLZ}, {pushAheadLZ4, backrestSyncLZ}} {
		all = append(all, target{what: fmt.Sprintf("wal-push: time per call of %s over %s", pair[0], pair[1]), bound: 0.7, rounds: ratio(r.push, call, pair[0], pair[1])})
	}
	for _, ours := range []string{pushOneZstd, pushAheadZstd, pushOneLZ4, pushAheadLZ4} {
		all = append(all, target{what: "wal-push: peak memory of " + ours, bound: 100, strict: true, rounds: figures(r.push, peak, ours), unit: " MiB"})
	}
	all = slices.Concat(all, r.increments.targets(), r.catalogue.targets(), r.archiver.targets(), r.replayed.targets(), r.returned.targets())
	return append(all, target{what: "cold start of holdfast --version", bound: 20, strict: true, rounds: figures(r.start, call, startOurs), unit: " ms"})
}

// printTargets writes what must be reached and what was.
func printTargets(w io.Writer, targets []target) {
	lines := [][]string{{"", "wanted", "median", "each round", ""}}
	for _, t := range targets {
		bound := "at most "
		switch {
		case t.atLeast:
			bound = "at least "
		case t.strict:
			bound = "below "
		}
		decimals := 2
		if t.unit != "" {
			decimals = 1
		}
		var figure string
		if len(t.rounds) > 0 {
			figure = format(median(t.rounds), decimals+1) + t.unit // so that a near miss does not look like a pass
		}
		lines = append(lines, []string{t.what, bound + fmt.Sprint(t.bound) + t.unit, figure, list(t.rounds, decimals), t.verdict()})
	}
	printLines(w, lines)
}
