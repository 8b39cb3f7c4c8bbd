package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
)

// fetchFlags are those of backup-fetch.
type fetchFlags struct {
	time, lsn, xid, name, target, timeline string
	userData                               string
	recovery                               restore.Recovery
	mapping                                []string
	spec                                   string
	request                                restore.Request
	dryRun, asJSON                         bool
}

func (a *app) backupFetch() *cobra.Command {
	var f fetchFlags
	var reverse, skip bool
	var only []string
	cmd := &cobra.Command{
		Use:   "backup-fetch DIR [NAME|LATEST]",
		Short: "Restore a backup, to the present or to a moment",
		Long: "Restores a backup into DIR, which must be empty or absent. Without a name it is the newest backup of the\n" +
			"cluster, not of a stray clone of it where that is known, or with a target the newest one from which the target can be reached:\n" +
			"for a time or an LSN one that was finished by then.\n\n" +
			"With a target (--target-time, --target-lsn, --target-xid, --target-name, --target immediate, --target latest) or --standby the\n" +
			"settings for recovery are written too: start PostgreSQL, and it goes there by itself. Such a copy does not archive, unless\n" +
			"--archive is given. Without them DIR holds the backup alone, and recovery is yours to set up.\n\n" +
			"Recovery leads along the timeline that the cluster is on, whatever others are in the archive: the log says which, and why. With PGHOST\n" +
			"or its like set the live server is asked; --target-timeline takes another one.\n\n" +
			"A time needs a zone: 2026-05-06T07:08:09Z, or as PostgreSQL prints it, 2026-05-06 09:08:09.5+02.\n\n" +
			"Tablespaces go where they were if that is free, else to where --tablespace-mapping says. Every file is verified while it is\n" +
			"written. A restore that was interrupted continues with --resume.\n\n" +
			"With --delta DIR is a data directory of the same cluster that no server uses: a stale replica, or what is left after a crash. It is\n" +
			"compared with the backup, all of it; only pages that differ are fetched and written, and what the backup does not have goes, but for\n" +
			"log/. It is then as if restored anew. Interrupted, the same command continues. See docs/operations.md.\n\n" +
			"With --mask DIR gets only the files that match, for a look at them: PostgreSQL cannot start there. A * matches no slash. Files of\n" +
			"tablespaces are in DIR/pg_tblspc then, whatever directories the tablespaces had.",
		Example: "  holdfast backup-fetch --delta /var/lib/postgresql/15/main LATEST --standby --dry-run\n" +
			"  holdfast backup-fetch /var/lib/postgresql/15/restored LATEST\n" +
			"  holdfast backup-fetch /srv/copy --target-time '2026-05-06 09:08:09+02' --target-action promote\n" +
			"  holdfast backup-fetch /srv/copy --target latest --tablespace-mapping 16385=/srv/ts --dry-run",
		Args: a.args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if len(only) > 0 {
				return &restore.RefusedError{Reason: "--restore-only is not supported: this release restores whole clusters, or files",
					Advice: "`holdfast recover-table` brings single tables, or a database, into a running server or a file; for the bare files of one database: --mask 'base/OID/*'"}
			}
			if reverse || skip {
				a.log.Info("--reverse-unpack and --skip-redundant-tars change nothing: there is one way to restore, and it does both")
			}
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			return a.fetch(cmd.Context(), s, &f, args[0], name)
		},
	}
	flags := cmd.Flags()
	f.common(flags)
	flags.StringVar(&f.userData, "target-user-data", "", "restore the backup with this user data, a JSON value")
	flags.StringVar(&f.request.ConfigDir, "restore-config", "", "write configuration from outside the data directory below this directory")
	flags.BoolVar(&f.request.ConfigIntoData, "config-into-pgdata", false, "write that configuration into DIR, so that the cluster can start alone")
	flags.BoolVar(&f.request.Delta, "delta", false, "DIR is a data directory of the cluster: fetch and write only what differs")
	flags.BoolVar(&reverse, "reverse-unpack", false, "accepted for WAL-G's sake")
	flags.BoolVar(&skip, "skip-redundant-tars", false, "accepted for WAL-G's sake")
	flags.StringArrayVar(&only, "restore-only", nil, "of WAL-G, refused")
	targetFlag(cmd)
	for _, name := range []string{"reverse-unpack", "skip-redundant-tars", "restore-only"} {
		_ = flags.MarkHidden(name) // it was made above
	}
	return cmd
}

// common makes the flags that restores have whatever they restore from.
func (f *fetchFlags) common(flags *pflag.FlagSet) {
	flags.StringVar(&f.time, "target-time", "", "recover to this time, with its zone")
	flags.StringVar(&f.lsn, "target-lsn", "", "recover to this position, such as 16/B374D848")
	flags.StringVar(&f.xid, "target-xid", "", "recover to the commit of this transaction")
	flags.StringVar(&f.name, "target-name", "", "recover to this restore point")
	flags.StringVar(&f.target, "target", "", "recover to latest, the end of the archived WAL, or immediate, the end of the backup")
	flags.StringVar(&f.timeline, "target-timeline", "", "recover along this timeline: a number, or latest, the highest (default the one that the cluster is on)")
	flags.StringVar(&f.recovery.Action, "target-action", "", "at the target pause, promote or shutdown (default pause, PostgreSQL's)")
	flags.BoolVar(&f.recovery.Exclusive, "exclusive", false, "stop just before the target")
	flags.BoolVar(&f.recovery.Standby, "standby", false, "make a standby that follows the archive")
	flags.BoolVar(&f.recovery.Archive, "archive", false, "let the copy archive: it continues the original")
	flags.StringArrayVar(&f.mapping, "tablespace-mapping", nil, "OLD=NEW: put the tablespace whose directory or oid is OLD into NEW; repeatable")
	flags.StringVar(&f.spec, "restore-spec", "", "file that says where tablespaces go, as JSON in WAL-G's form")
	flags.StringVar(&f.request.Owner, "owner", "", "user to own the files, when root restores")
	flags.StringVar(&f.request.Mask, "mask", "", "restore only the files whose path in the data directory matches this pattern, such as 'base/16384/*'")
	flags.BoolVar(&f.request.Resume, "resume", false, "continue a restore that was interrupted")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print what would be done, and do nothing")
	flags.BoolVar(&f.asJSON, "json", false, "print the report, or with --dry-run the plan, as JSON")
}

// fetch restores a backup of the archive, or says what would be done.
func (a *app) fetch(ctx context.Context, s *config.Settings, f *fetchFlags, dir, name string) error {
	r, target, err := a.request(s, f, dir)
	if err != nil {
		return err
	}
	if !f.dryRun {
		a.starts("backup-fetch")
	}
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	if r.Choice, err = a.choose(ctx, ar, s, f, name, target); err != nil {
		return err
	}
	if err := restore.CheckThawed(ctx, ar, r.Choice.Chain); err != nil {
		return err
	}
	return a.carryOut(ctx, s, f, ar, r, outside(s))
}

// request turns flags into what is asked of a restore into dir, but for the backup, and the target of recovery. The restore_command has before between
// the program and wal-fetch.
func (a *app) request(s *config.Settings, f *fetchFlags, dir string, before ...string) (r restore.Request, target catalog.Target, err error) {
	if target, err = f.recoveryTarget(); err != nil {
		return r, target, err
	}
	r = f.request
	if r.Destination, err = a.absolute(dir); err != nil {
		return r, target, err
	}
	if r.ConfigDir != "" {
		if r.ConfigDir, err = a.absolute(r.ConfigDir); err != nil {
			return r, target, err
		}
	}
	if r.TablespaceMapping, err = parseMapping(f.mapping); err != nil {
		return r, target, err
	}
	if r.Spec, err = readSpec(f.spec); err != nil || target.Kind == catalog.None {
		return r, target, err
	}
	file := s.File
	if file != "" {
		if file, err = a.absolute(file); err != nil {
			return r, target, err
		}
	}
	f.recovery.Command = restore.Command(a.env.Program, file, before...)
	r.Recovery = &f.recovery
	return r, target, nil
}

// carryOut plans a restore and, unless only the plan is wanted, does it. The restore_command needs the settings outside, and does not carry them.
func (a *app) carryOut(ctx context.Context, s *config.Settings, f *fetchFlags, ar *archive.Archive, r restore.Request, outside []string) error {
	plan, err := restore.Decide(ctx, ar, r)
	if err != nil {
		return err
	}
	progress := &restore.Progress{}
	opts := restore.Options{Workers: s.Restore.Workers, Progress: progress, Announce: release()}
	if f.dryRun {
		if plan.Delta != nil {
			stop := a.progress(ctx, "compare", progress)
			err = restore.Compare(ctx, ar, plan, opts)
			stop()
		}
		if err != nil {
			return err
		}
		return a.printPlan(plan, f.asJSON)
	}
	for _, note := range plan.Notes {
		a.log.Info(note)
	}
	if r.Recovery != nil && len(outside) > 0 {
		a.log.Warn("restore_command does not carry " + strings.Join(outside, ", ") +
			": start PostgreSQL with the same in its environment, or restore with a settings file that has it (--config)")
	}
	stop := a.progress(ctx, "restore", progress)
	report, err := restore.Run(ctx, ar, plan, opts)
	stop()
	if err != nil {
		return err
	}
	a.measures(0, report.Seconds)
	for _, note := range report.Notes {
		a.log.Info(note)
	}
	if report.Delta != nil {
		a.log.Info(differencesLine(report.Delta))
	}
	a.log.Info(restoredLine(report))
	a.log.Info("Backup extraction complete.")
	if f.asJSON {
		return a.printJSON(report)
	}
	return nil
}

// outside names the settings that wal-fetch needs to find and read the archive and that are not in the settings file, each with where it
// came from.
func outside(s *config.Settings) (names []string) {
	sections := []string{"Archive", "Several storages", "Encryption", s.Storage.Section()}
	values := s.Effective()
	for i, row := range config.Table(1) {
		where := values[i].Source
		if slices.Contains(sections, row.Section) && row.Used == nil && (strings.HasPrefix(where, "environment ") || strings.HasPrefix(where, "flag ")) {
			names = append(names, row.Name+" ("+where+")")
		}
	}
	return names
}

// restoredLine sums a restore up.
func restoredLine(r *restore.Report) string {
	var seconds float64
	for _, s := range r.Seconds {
		seconds += s
	}
	line := fmt.Sprintf("%d files, %s in %s", r.Files, humanize.IBytes(uint64(r.Bytes)), time.Duration(seconds*float64(time.Second)).Round(10*time.Millisecond))
	if r.KeptFiles > 0 {
		line += fmt.Sprintf("; %d files, %s were whole already", r.KeptFiles, humanize.IBytes(uint64(r.KeptBytes)))
	}
	if r.Verified {
		line += "; all verified"
	}
	return line
}

// differencesLine sums up what a comparison has found.
func differencesLine(d *restore.Differences) string {
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	return fmt.Sprintf("%d files are as in the backup, %d have %d stale pages, %d are missing or of no use (%s), %d are not in the backup and go (%s); "+
		"%s to fetch, about, %s to write", d.EqualFiles, d.StaleFiles, d.StalePages, d.MissingFiles, size(d.MissingBytes), d.ExtraFiles, size(d.ExtraBytes),
		size(d.Fetch), size(d.Write))
}

// choose finds the backup that is asked for.
func (a *app) choose(ctx context.Context, ar *archive.Archive, s *config.Settings, f *fetchFlags, name string, target catalog.Target) (catalog.Choice, error) {
	c, err := catalog.Load(ctx, ar)
	if err != nil {
		return catalog.Choice{}, err
	}
	userData := s.Restore.UserData
	if f.userData != "" {
		if userData = json.RawMessage(f.userData); !json.Valid(userData) {
			return catalog.Choice{}, fmt.Errorf(`--target-user-data %s: want JSON, such as {"ticket":7} or "text" with its quotes`, f.userData)
		}
	}
	if userData != nil && name != "" && f.userData != "" {
		return catalog.Choice{}, errors.New("give a backup's name or its user data, not both")
	}
	if userData != nil && name == "" {
		b, err := c.FindUserData(userData)
		if err != nil {
			return catalog.Choice{}, err
		}
		name = b.Name
	}
	latest := name == "" || name == "LATEST"
	if latest && target.Kind == catalog.None {
		a.log.Info("Selecting the latest backup...")
	}
	h := &history{archive: ar, catalog: c}
	if latest && target.Kind == catalog.None && len(c.Timelines()) > 1 { // it is not to be a stray clone's
		err = a.loadEvidence(ctx, s, h)
	} else {
		err = a.findCurrent(ctx, s, h, target)
	}
	if err != nil {
		return catalog.Choice{}, err
	}
	choice, err := c.Choose(name, target)
	if err != nil {
		return catalog.Choice{}, err
	}
	a.tellTimeline(choice)
	switch {
	case latest && target.Kind == catalog.None:
		a.log.Info(fmt.Sprintf("LATEST backup is: '%s'", choice.Backup.Name))
		a.warnStray(h, choice)
	case target.Kind != catalog.None:
		a.log.Info(fmt.Sprintf("backup %s, finished at %s, for %s on timeline %d", choice.Backup.Name,
			catalog.FormatTime(choice.Backup.Created()), choice.Target, choice.Target.Timeline))
	}
	return choice, nil
}

// recoveryTarget turns the flags into a target. At most one may be given.
func (f *fetchFlags) recoveryTarget() (t catalog.Target, err error) {
	given := 0
	if f.time != "" {
		given++
		t.Kind = catalog.AtTime
		if t.Time, err = catalog.ParseTime(f.time); err != nil {
			return t, fmt.Errorf("--target-time: %w", err)
		}
	}
	if f.lsn != "" {
		given++
		t.Kind = catalog.AtLSN
		if t.LSN, err = wal.ParseLSN(f.lsn); err != nil {
			return t, fmt.Errorf("--target-lsn: %w", err)
		}
	}
	if f.xid != "" {
		given++
		t.Kind = catalog.AtXID
		if t.XID, err = strconv.ParseUint(f.xid, 10, 64); err != nil || t.XID < 3 {
			return t, fmt.Errorf("--target-xid %s: want the number of a transaction", f.xid)
		}
	}
	if f.name != "" {
		given++
		t.Kind, t.Name = catalog.AtName, f.name
		if len(f.name) > 63 {
			return t, fmt.Errorf("--target-name: the name of a restore point has at most 63 bytes, this one has %d", len(f.name))
		}
	}
	if f.target != "" {
		given++
		t.Kind = catalog.Kind(f.target)
		if t.Kind != catalog.Latest && t.Kind != catalog.Immediate {
			return t, fmt.Errorf("--target %s: want latest or immediate", f.target)
		}
	}
	if f.recovery.Standby {
		given++
		t.Kind = catalog.Latest
	}
	if given > 1 {
		return t, errors.New("give one target: --target-time, --target-lsn, --target-xid, --target-name, --target or --standby")
	}
	if given == 0 && (f.timeline != "" || f.recovery.Action != "" || f.recovery.Exclusive || f.recovery.Archive) {
		return t, errors.New("--target-timeline, --target-action, --exclusive and --archive need a target, such as --target latest")
	}
	t.Highest = f.timeline == "latest"
	if f.timeline != "" && f.timeline != "latest" {
		n, err := strconv.ParseUint(strings.TrimPrefix(f.timeline, "0x"), map[bool]int{true: 16, false: 10}[strings.HasPrefix(f.timeline, "0x")], 32)
		if err != nil || n == 0 {
			return t, fmt.Errorf("--target-timeline %s: want the number of a timeline, or latest", f.timeline)
		}
		t.Timeline = wal.Timeline(n)
	}
	return t, nil
}

// parseMapping reads OLD=NEW pairs. An = in a path is written \=, as for pg_basebackup.
func parseMapping(pairs []string) (map[string]string, error) {
	m := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		at := -1
		for i := range len(pair) {
			if pair[i] == '=' && (i == 0 || pair[i-1] != '\\') {
				if at >= 0 {
					return nil, fmt.Errorf(`--tablespace-mapping %s: more than one =; write \= for one in a path`, pair)
				}
				at = i
			}
		}
		if at <= 0 || at == len(pair)-1 {
			return nil, fmt.Errorf("--tablespace-mapping %s: want OLD=NEW, a directory or an oid and a directory", pair)
		}
		from, to := strings.ReplaceAll(pair[:at], `\=`, "="), strings.ReplaceAll(pair[at+1:], `\=`, "=")
		if filepath.IsAbs(from) {
			from = filepath.Clean(from)
		}
		if _, twice := m[from]; twice {
			return nil, fmt.Errorf("--tablespace-mapping: %s is mapped twice", from)
		}
		m[from] = to
	}
	return m, nil
}

// readSpec reads a file that says where tablespaces go; nil for no file.
func readSpec(file string) (*archive.TablespaceSpec, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--restore-spec: %w", err)
	}
	var spec archive.TablespaceSpec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("--restore-spec %s: %w", file, err)
	}
	return &spec, nil
}

// absolute makes a path absolute.
func (a *app) absolute(path string) (string, error) {
	if filepath.IsAbs(path) {
		return filepath.Clean(path), nil
	}
	if a.env.Dir == "" {
		return "", fmt.Errorf("%s: the current directory is not known, give an absolute path", path)
	}
	return filepath.Join(a.env.Dir, path), nil
}

// printPlan prints what a restore would do.
func (a *app) printPlan(p *restore.Plan, asJSON bool) error {
	if asJSON {
		return a.printJSON(p)
	}
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s %s\n", what, fmt.Sprintf(format, args...))
	}
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	line("backup", "%s, finished at %s", p.Backup, catalog.FormatTime(p.Finished))
	line("from", "%s to %s on timeline %d", p.StartLSN, p.FinishLSN, p.Timeline)
	line("into", "%s", p.Destination)
	for _, ts := range p.Tablespaces {
		line("tablespace", "%s, was %s, into %s", ts.OID, ts.From, ts.To)
	}
	if p.Owner != nil {
		line("owner", "%s (%d:%d)", p.Owner.Name, p.Owner.UID, p.Owner.GID)
	}
	line("parts", "%d, %s stored", p.Parts, size(p.Stored))
	if p.Delta != nil { // else the notes have the chain
		for _, l := range p.Chain {
			line("read of", "%s: %d of %d parts, about %s", l.Backup, l.Parts, l.Of, size(l.Stored))
		}
		line("differences", "%s", differencesLine(p.Delta))
	}
	if p.Mask != "" {
		line("only", "files that match %s", p.Mask)
	}
	if p.Files > 0 {
		line("contents", "%s in %d files and directories, verified", size(p.Bytes), p.Files)
	} else {
		line("contents", "%s, not verifiable", size(p.Bytes))
	}
	for _, room := range p.Rooms {
		line("room", "%s of %s free for %s", size(room.Need), size(room.Free), strings.Join(room.Dirs, ", "))
	}
	if p.FirstWAL != "" {
		line("wal needed", "%s to %s", p.FirstWAL, p.NeededWAL)
	}
	if p.LastWAL != "" {
		line("wal archived", "without a gap to %s, stored at %s", p.LastWAL, catalog.FormatTime(p.LastAt))
	}
	if p.Target != "" {
		line("recovery", "to %s", p.Target)
	}
	for _, s := range p.Settings {
		line("setting", "%s", s)
	}
	if p.Signal != "" {
		line("signal file", "%s", p.Signal)
	}
	for _, n := range p.Notes {
		line("note", "%s", n)
	}
	_, err := a.env.Stdout.Write([]byte(b.String()))
	return err
}
