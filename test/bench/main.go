// Program bench measures Holdfast against its peers: Debian's pgBackRest, pg_basebackup, tar with zstd, and cp.
//
// All tools work on the same clusters in one run, each in turn, round by round, because only figures from the same minutes of the same
// machine can be compared. What was measured, and what of it the project promises, goes to docs/bench.md. `make bench` is the whole of it;
// `go run ./test/bench -scale 10 -rounds 1` is a look at it that takes a minute or two and writes nothing.
//
// Root runs the servers and all that is measured as user postgres; any other user as themselves.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/pg/instance"
)

// The whole benchmark, of which only docs/bench.md is written unasked.
const (
	wholeScale  = 200
	wholeRounds = 3
	report      = "docs/bench.md"
)

// sections are the parts of the benchmark, in the order they run. The last one takes its time and is only run when asked for.
var sections = []string{"full", "relations", "wal", "increments", "catalogue", "daemon", "pitr", "recover", "start", "million"}

// bench is what all measurements share.
type bench struct {
	dir      string // of everything that is written, the account's
	account  account
	pg       instance.Programs
	source   string // the program to measure
	holdfast string // a copy in dir, which the account may run
	log      *os.File
	scale    int // of pgbench; the number of small tables and of WAL segments follow it
	rounds   int
	only     string // the sections that were asked for, with commas between them; "" for all
}

// account is whom the servers and what is measured run as.
type account struct{ uid, gid int }

// credential makes a child of root's run as the account; nil for anyone else.
func (a account) credential() *syscall.Credential {
	if os.Geteuid() == a.uid {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == codecMode {
		exit(codecMain(os.Args[2], os.Args[3]))
	}
	var b bench
	flag.StringVar(&b.dir, "dir", "/var/tmp/holdfast-bench", "scratch `directory`; needs 25 GB at scale 200")
	flag.IntVar(&b.scale, "scale", wholeScale, "pgbench `scale`; the clusters, the relations and the WAL segments follow it")
	flag.IntVar(&b.rounds, "rounds", wholeRounds, "how `often` each tool has its turn")
	flag.StringVar(&b.only, "only", "", "`list` of sections to run, with commas: "+strings.Join(sections, ", "))
	million := flag.Bool("million", false, "also back up a million small files; takes some minutes")
	keep := flag.Bool("keep", false, "leave the clusters for the next run with the same -dir and -scale")
	holdfast := flag.String("holdfast", "./holdfast", "the `program` to measure")
	out := flag.String("out", "", "`file` for the results; "+report+" when the whole benchmark runs, nothing otherwise")
	flag.Parse()

	run := slices.Clone(sections[:len(sections)-1])
	if b.only != "" {
		run = strings.Split(b.only, ",")
	}
	if *million && !slices.Contains(run, "million") {
		run = append(run, "million")
	}
	if *out == "" && b.only == "" && b.scale == wholeScale && b.rounds >= wholeRounds {
		*out = report
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(b.main(ctx, run, *holdfast, *out, *keep))
}

// exit ends the program.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// main runs the named sections and reports on them.
func (b *bench) main(ctx context.Context, run []string, holdfast, out string, keep bool) (err error) {
	for _, s := range run {
		if !slices.Contains(sections, s) {
			return fmt.Errorf("section %q: want %s", s, strings.Join(sections, ", "))
		}
	}
	if b.scale < 1 || b.rounds < 1 {
		return errors.New("-scale and -rounds begin at 1")
	}
	if err := b.setUp(ctx, holdfast, slices.Contains(run, "million")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.tearDown(keep)) }()
	m, err := b.describe(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	r, err := b.sections(ctx, run)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	b.write(&text, m, r, time.Since(begin))
	if _, err := io.Copy(os.Stdout, bytes.NewReader(text.Bytes())); err != nil {
		return err
	}
	if out != "" {
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(out, text.Bytes(), 0o644); err != nil {
			return err
		}
		b.say("written to %s", out)
	}
	var failures int
	for _, t := range r.tables() {
		failures += len(t.failures())
	}
	if failures > 0 {
		return fmt.Errorf("%d measurements failed", failures)
	}
	return nil
}

// sections runs the named sections and makes the clusters they need.
func (b *bench) sections(ctx context.Context, run []string) (*results, error) {
	r := &results{smallFiles: 2 * b.tables()}
	wants := func(s ...string) bool {
		return slices.ContainsFunc(s, func(s string) bool { return slices.Contains(run, s) })
	}
	if wants("full", "wal", "catalogue", "daemon", "recover") {
		if err := b.makeBig(ctx); err != nil {
			return nil, err
		}
	}
	var err error
	if wants("full") {
		if r.bigBackup, r.bigRestore, err = b.backups(ctx, b.bigName(), false); err != nil {
			return nil, err
		}
		if r.bigBytes, err = backupSize(filepath.Join(b.dir, b.bigName())); err != nil {
			return nil, err
		}
	}
	if wants("relations") {
		if err := b.makeSmall(ctx); err != nil {
			return nil, err
		}
		if r.smallBackup, r.smallRestore, err = b.backups(ctx, b.smallName(), true); err != nil {
			return nil, err
		}
		if r.smallBytes, err = backupSize(filepath.Join(b.dir, b.smallName())); err != nil {
			return nil, err
		}
	}
	if wants("wal") {
		if r.push, r.fetch, err = b.wal(ctx); err != nil {
			return nil, err
		}
	}
	if wants("increments") {
		if r.increments, err = b.increments(ctx); err != nil {
			return nil, err
		}
	}
	if wants("catalogue") {
		if r.catalogue, err = b.catalogue(ctx); err != nil {
			return nil, err
		}
	}
	if wants("daemon") {
		if r.archiver, err = b.archiver(ctx); err != nil {
			return nil, err
		}
	}
	if wants("pitr") {
		if r.replayed, err = b.pitr(ctx); err != nil {
			return nil, err
		}
	}
	if wants("recover") {
		if r.returned, err = b.recoverTables(ctx); err != nil {
			return nil, err
		}
	}
	if wants("start") {
		if r.start, err = b.start(ctx); err != nil {
			return nil, err
		}
	}
	if wants("million") {
		if r.million, r.millionFiles, err = b.million(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// startOurs names our row of the table of cold starts.
const startOurs = "holdfast --version"

// start measures how long the programs take to say their version.
func (b *bench) start(ctx context.Context) (*table, error) {
	const calls = 50
	t := &table{}
	for round := range b.rounds {
		for _, args := range [][]string{{b.holdfast, "--version"}, {"pgbackrest", "version"}} {
			name := filepath.Base(args[0]) + " " + args[1]
			var s sample
			s.usage, s.Err = b.measure(ctx, 0, func(m *meter) error {
				for range calls {
					begin := time.Now()
					if err := m.run(b.command(ctx, nil, args[0], args[1:]...)); err != nil {
						return err
					}
					s.Calls = append(s.Calls, time.Since(begin).Seconds()*1000)
				}
				return nil
			})
			b.progress("start", "50 times", name, round, s)
			t.add(name, startOurs, s)
		}
	}
	return t, ctx.Err()
}

// backupSize adds up what a backup of a data directory holds, bytes.
func backupSize(data string) (total int64, err error) {
	err = walkFiles(data, func(path string, info fs.FileInfo) error {
		if inBackup(strings.TrimPrefix(path, data+"/")) {
			total += info.Size()
		}
		return nil
	})
	return total, err
}

// marker says that a scratch directory is ours to empty.
const marker = "holdfast-bench"

// setUp finds the programs and makes the scratch directory.
func (b *bench) setUp(ctx context.Context, holdfast string, million bool) error {
	var err error
	if b.pg, err = instance.Find(ctx, 15); err != nil {
		return err
	}
	for _, program := range []string{"pgbackrest", "zstd", "lz4", "tar", holdfast} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: `make build` makes holdfast, `test/services/install.sh --bench` brings the others", err)
		}
	}
	b.account = account{os.Geteuid(), os.Getegid()}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return fmt.Errorf("root runs the benchmark as another user: %w", err)
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		b.account = account{uid, gid}
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return err
	}
	if err := b.claim(million); err != nil {
		return err
	}
	b.source, b.holdfast = holdfast, filepath.Join(b.dir, "holdfast")
	if err := os.RemoveAll(b.holdfast); err != nil { // it may be kept, and still run
		return err
	}
	if out, err := exec.CommandContext(ctx, "install", "-m", "755", holdfast, b.holdfast).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", holdfast, err, out)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "pgbackrest.conf"), []byte("[global]\n"), 0o644); err != nil {
		return err
	}
	if b.log, err = os.OpenFile(filepath.Join(b.dir, "log"), os.O_CREATE|os.O_TRUNC|os.O_RDWR|os.O_APPEND, 0o644); err != nil {
		return err
	}
	return becomeReaper()
}

// claim makes the scratch directory, or takes the one that an earlier run kept.
func (b *bench) claim(million bool) error {
	entries, err := os.ReadDir(b.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(filepath.Join(b.dir, marker)); len(entries) > 0 && err != nil {
		return fmt.Errorf("%s is in use and not by this program: name another directory with -dir", b.dir)
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	if err := errors.Join(b.give(b.dir), os.WriteFile(filepath.Join(b.dir, marker), nil, 0o644)); err != nil {
		return err
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(b.dir, &disk); err != nil {
		return err
	}
	// 25 GB at the scale of 200; what an earlier run kept is part of it. A million restored files take 13 GB, but not at the same time.
	need := int64(b.scale)*(25e9/wholeScale) + 1e9
	kept, _, err := size(b.dir)
	if err != nil {
		return err
	}
	if free := int64(disk.Bavail) * disk.Bsize; free+kept < need {
		return fmt.Errorf("%s needs %d GB, and %d GB are free: name another directory with -dir", b.dir, need/1e9, free/1e9)
	}
	return nil
}

// tearDown removes what setUp and the sections made, except the clusters if they are to be kept.
func (b *bench) tearDown(keep bool) error {
	err := b.log.Close()
	if !keep {
		return errors.Join(err, os.RemoveAll(b.dir))
	}
	entries, read := os.ReadDir(b.dir)
	err = errors.Join(err, read)
	for _, e := range entries {
		name := e.Name()
		cluster := strings.HasPrefix(name, "big-") || strings.HasPrefix(name, "small-") || strings.HasPrefix(name, "segments-") || strings.HasPrefix(name, "million-") ||
			strings.HasPrefix(name, "increments-") || strings.HasPrefix(name, "pitr-")
		if !cluster && name != marker && name != "log" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(b.dir, name)))
		}
	}
	return err
}

// say tells whoever watches what is going on.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// progress tells what one measurement gave.
func (b *bench) progress(work, cluster, name string, round int, s sample) {
	switch {
	case s.Err != nil:
		b.say("%-8s %-10s %-32s %d/%d  failed: %v", work, cluster, name, round+1, b.rounds, s.Err)
	case len(s.Calls) > 0:
		b.say("%-8s %-10s %-32s %d/%d %8.2f s, median call %.1f ms, CPU %.1f s, peak %.0f MiB", work, cluster, name, round+1, b.rounds,
			s.Wall, call(s), s.CPU, peak(s))
	default:
		b.say("%-8s %-10s %-32s %d/%d %8.2f s, CPU %.1f s, peak %.0f MiB, stored %s MB", work, cluster, name, round+1, b.rounds,
			s.Wall, s.CPU, peak(s), cmp.Or(format(stored(s), 0), "–"))
	}
}
