package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A machine is what the figures depend on: lines of a name and a value.
type machine [][2]string

// describe asks the machine and the programs what they are.
func (b *bench) describe(ctx context.Context) (m machine, err error) {
	var disk string
	if out, err := exec.CommandContext(ctx, "findmnt", "-no", "FSTYPE,SIZE", "-T", b.dir).Output(); err == nil {
		disk = strings.Join(strings.Fields(string(out)), ", ")
	}
	m = machine{
		{"processor", fmt.Sprintf("%s, %d cores", field("/proc/cpuinfo", "model name"), runtime.NumCPU())},
		{"memory", memoryTotal()},
		{"file system", disk},
		{"system", strings.Trim(field("/etc/os-release", "PRETTY_NAME"), `"`) + ", Linux " + line("/proc/sys/kernel/osrelease")},
		{"PostgreSQL", b.pg.Version},
	}
	for _, args := range [][]string{
		{b.holdfast, "--version"}, {"pgbackrest", "version"}, {"zstd", "--version"}, {"lz4", "--version"}, {"tar", "--version"}, {"cp", "--version"},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = "/"
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		m = append(m, [2]string{filepath.Base(args[0]), strings.Trim(first, "* ")})
	}
	return append(m, [2]string{"compiler", runtime.Version()}, [2]string{"date", time.Now().UTC().Format(time.DateOnly)}), nil
}

// field returns the value behind the first name in a file of names and values, parted by a colon or an equals sign.
func field(path, name string) string {
	b, _ := os.ReadFile(path) // the description is then shorter
	for line := range strings.Lines(string(b)) {
		if i := strings.IndexAny(line, ":="); i >= 0 && strings.TrimSpace(line[:i]) == name {
			return strings.TrimSpace(line[i+1:])
		}
	}
	return "unknown"
}

// memoryTotal returns how much memory the machine has.
func memoryTotal() string {
	kib, err := strconv.ParseFloat(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB"), 64)
	if err != nil {
		return "unknown"
	}
	return fmt.Sprintf("%.1f GiB", kib/(1<<20))
}

// line returns a file of one line.
func line(path string) string {
	b, _ := os.ReadFile(path) // the description is then shorter
	return strings.TrimSpace(string(b))
}

// write writes the whole report.
func (b *bench) write(w io.Writer, m machine, r *results, took time.Duration) {
	by, targets := "make bench", r.targets()
	if b.only != "" {
		by = "go run ./test/bench -only " + b.only
		targets = slices.DeleteFunc(targets, func(t target) bool { return len(t.rounds) == 0 })
	}
	fmt.Fprintf(w, `# Benchmark

Written by `+"`%s`"+`. Every tool had its turn in each of %d rounds of one run, which took %.0f minutes; only figures of one run can be compared.

`, by, b.rounds, took.Minutes())
	if b.scale != wholeScale {
		fmt.Fprintf(w, "**A small run, at scale %d instead of %d: these figures prove nothing.**\n\n", b.scale, wholeScale)
	}
	for _, l := range m {
		fmt.Fprintf(w, "- %s: %s\n", l[0], l[1])
	}
	fmt.Fprint(w, "\n## What must be reached\n\nA figure passes by the median of its rounds, each the ratio of two measurements of the same round.\n\n")
	printTargets(w, targets)
	if r.bigBackup != nil {
		fmt.Fprintf(w, "\n## Full backup of %.1f GB\n\n"+
			"pgbench at scale %d and %.0f MB of rows that do not compress; data checksums on. The data is in the page cache, the archive on the same disk.\n"+
			"pgBackRest: process-max=2, compress-level=1, bundles, start-fast, archive-check off: it verifies page checksums as Holdfast does, but does not wait\n"+
			"for the WAL to be archived, which Holdfast does. Some 1.5 s of its backups it sleeps, until the clock's next second for one.\n"+
			"pg_basebackup compresses in the server, at level 1. tar and cp take pg_wal along.\n"+
			"CPU seconds are those of all processes, the server's and its archive_command's included.\n"+
			"\"codec alone\" is Holdfast's codec, level and frames over the same bytes in memory, on all cores, without reading or writing anything.\n\n",
			float64(r.bigBytes)/1e9, b.scale, float64(b.noiseRows())/1000)
		r.bigBackup.print(w, backupColumns)
	}
	if r.bigRestore != nil {
		fmt.Fprint(w, "\n## Restore of it\n\n"+
			"Into an empty directory on the same disk, the archive in the page cache. Holdfast and pgBackRest sync what they write, the others do not,\n"+
			"except where it says so. Each directory that Holdfast restored had the files of the original and passed pg_verifybackup.\n\n")
		r.bigRestore.print(w, restoreColumns)
	}
	if r.smallBackup != nil {
		fmt.Fprintf(w, "\n## Full backup of %d small relations, %.0f MB\n\n", r.smallFiles, float64(r.smallBytes)/1e6)
		r.smallBackup.print(w, backupColumns)
	}
	if r.smallRestore != nil {
		fmt.Fprint(w, "\n## Restore of them\n\n")
		r.smallRestore.print(w, restoreColumns)
	}
	if r.push != nil {
		fmt.Fprintf(w, "\n## %d WAL segments stored\n\n"+
			"Segments of 16 MiB that pgbench wrote, all of them waiting, one call of the shell each as PostgreSQL's archiver makes it. ms are those of one call.\n"+
			"CPU seconds and memory are those of all calls and of what they leave running; segments/s counts until the last call has returned.\n\n", b.segments())
		r.push.print(w, pushColumns)
	}
	if r.fetch != nil {
		fmt.Fprintf(w, "\n## %d WAL segments fetched\n\nOne call each as PostgreSQL's recovery makes it, without the replay in between. All came back as they were.\n\n", b.segments())
		r.fetch.print(w, fetchColumns)
	}
	if r.increments != nil {
		r.increments.print(w)
	}
	if r.catalogue != nil {
		r.catalogue.print(w)
	}
	if r.archiver != nil {
		r.archiver.print(w, b.segments())
	}
	r.replayed.print(w)
	r.returned.print(w)
	if r.start != nil {
		fmt.Fprint(w, "\n## Cold start\n\nThe median of 50 calls.\n\n")
		r.start.print(w, startColumns)
	}
	if r.million != nil {
		fmt.Fprintf(w, "\n## %d small files\n\nRelations of one empty page, in one directory. One round.\n\n", r.millionFiles)
		r.million.print(w, backupColumns[:len(backupColumns)-1])
	}
}
