package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/config"
	"holdfast/internal/transfer"
)

// copyFlags are the flags of `copy`.
type copyFlags struct {
	from, to, backup                  string
	history, wal                      bool
	dryRun, compare, readBack, asJSON bool
	concurrency                       int
}

func (a *app) copy() *cobra.Command {
	var o copyFlags
	cmd := &cobra.Command{
		Use:   "copy",
		Short: "Copy an archive, or one backup, to another storage",
		Long: "Copies all backups and all WAL from one storage to another, or with -b one backup and what it builds on. Objects are copied as they are\n" +
			"stored: no key is needed. --from and --to are files of settings, each of which says where its storage is; the environment only adds\n" +
			"credentials that are not in the file. Without --from the source is what the settings in force name.\n\n" +
			"With -b the WAL that the backup needs comes along, from its start to its finish, so that it restores from the copy; with -w all WAL from\n" +
			"its start to the newest, so that every later moment does. --with-wal=false copies no WAL.\n\n" +
			"A backup appears in the target when all of it is there: after what it builds on, its sentinel last. A copy that was interrupted leaves no\n" +
			"half backup, and the next one goes on where it ended. What the target has of the same name and size is skipped (--compare reads it); of\n" +
			"another size it is an error, and nothing is replaced. Each copy is read back and compared, and what the source yields is held against the\n" +
			"checksums that the backup has of its objects. An archive of another cluster is refused. Mirrors get a copy each; of failover storages the\n" +
			"first does, or that of WALG_TARGET_STORAGE.\n\n" +
			"Not copied: backups that are being written, that cannot be read or that retention has condemned; what `verify` and restores have found\n" +
			"out about the source; timelines that were put aside.\n\n" +
			"Exit status: 0 the target has all of it; 1 it has not, and the errors name what.",
		Example: "  holdfast copy --from /etc/holdfast/main.yaml --to /etc/holdfast/offsite.yaml --dry-run\n" +
			"  holdfast copy -t /etc/holdfast/offsite.yaml -b LATEST -w",
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.to == "":
				return a.usage(cmd, errors.New("--to is missing: name the settings file of the storage to copy to"))
			case o.history && o.backup == "":
				return a.usage(cmd, errors.New("--with-history goes with --backup-name: without it all WAL is copied"))
			case o.history && !o.wal:
				return a.usage(cmd, errors.New("--with-history asks for WAL, and --with-wal=false for none"))
			case o.concurrency < 1:
				return a.usage(cmd, errors.New("--concurrency is at least 1"))
			}
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			return a.copyArchive(cmd.Context(), s, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.from, "from", "f", "", "settings file of the storage to copy from")
	f.StringVarP(&o.to, "to", "t", "", "settings file of the storage to copy to")
	f.StringVarP(&o.backup, "backup-name", "b", "", "the backup to copy, or LATEST; \"\" for everything")
	f.BoolVarP(&o.history, "with-history", "w", false, "with -b: all WAL from the start of the backup on")
	f.BoolVar(&o.wal, "with-wal", true, "copy WAL too")
	f.BoolVar(&o.dryRun, "dry-run", false, "print what would be copied, and copy nothing")
	f.BoolVar(&o.compare, "compare", false, "read what the target has already and compare it")
	f.BoolVar(&o.readBack, "read-back", true, "read each copy back and compare it")
	f.IntVarP(&o.concurrency, "concurrency", "c", 8, "objects copied at once")
	f.BoolVar(&o.asJSON, "json", false, "print the report, or with --dry-run the plan, as JSON")
	return cmd
}

// copyArchive plans a copy and, unless only the plan is wanted, carries it out.
func (a *app) copyArchive(ctx context.Context, s *config.Settings, o copyFlags) error {
	if !o.dryRun {
		a.starts("copy")
	}
	source := s
	var err error
	if o.from != "" {
		if source, err = a.settingsOf(o.from); err != nil {
			return fmt.Errorf("--from: %w", err)
		}
	}
	target, err := a.settingsOf(o.to)
	if err != nil {
		return fmt.Errorf("--to: %w", err)
	}
	if err := errors.Join(source.RequireStorage(), target.RequireStorage()); err != nil {
		return err
	}
	for _, one := range source.InUse() {
		if slices.ContainsFunc(target.InUse(), func(other config.Storage) bool { return one.Location() == other.Location() }) {
			return fmt.Errorf("source and target are the same place: %s", one.Location())
		}
	}
	fromStore, err := a.openStore(ctx, source, toRead)
	if err != nil {
		return err
	}
	from := archive.New(fromStore, archive.Options{})
	// Each mirror gets a copy of its own, so that none lacks what another has. Of failover storages the first does: a backup lies in one of them as a whole.
	for _, name := range copyTargets(target) {
		one := *target
		one.Target = name
		if err := a.copyTo(ctx, from, source.Location(), &one, o); err != nil {
			if name != "" {
				err = fmt.Errorf("to storage %s: %w", name, err)
			}
			return err
		}
	}
	return nil
}

// copyTargets returns by name which storages of the target are copied to; "" for the only one there is.
func copyTargets(s *config.Settings) (names []string) {
	switch {
	case len(s.InUse()) == 1:
		return []string{s.Target}
	case len(s.Mirrors) == 0:
		return []string{config.Default}
	}
	for _, one := range s.InUse() {
		names = append(names, one.Name)
	}
	return names
}

// copyTo copies to one storage.
func (a *app) copyTo(ctx context.Context, from *archive.Archive, location string, target *config.Settings, o copyFlags) error {
	toStore, err := a.openStore(ctx, target, toWrite)
	if err != nil {
		return err
	}
	to := archive.New(toStore, archive.Options{})
	plan, err := transfer.Decide(ctx, from, to, transfer.Request{Backup: o.backup, History: o.history, NoWAL: !o.wal})
	if err != nil {
		return err
	}
	if o.dryRun {
		if err := a.printCopy(plan, location, target.Location(), o.asJSON); err != nil {
			return err
		}
		if n := len(plan.Differs); n > 0 {
			return &advised{fmt.Errorf("%d objects cannot be copied: the target has others of their names", n), differsHint}
		}
		return nil
	}
	for _, skip := range plan.Skipped {
		a.log.Info(fmt.Sprintf("%s is not copied: %s", skip.Name, skip.Reason))
	}
	for _, n := range plan.Notes {
		a.log.Warn(n)
	}
	opts := transfer.Options{Parallel: o.concurrency, Compare: o.compare, NoReadBack: !o.readBack, Logger: a.log, Progress: &transfer.Progress{}}
	if opts.Host, err = os.Hostname(); err != nil {
		return err
	}
	stop := a.progress(ctx, "copy", opts.Progress)
	report, err := transfer.Run(ctx, from, to, plan, opts)
	stop()
	a.log.Info(fmt.Sprintf("copied %d objects, %s, in %s; %d were there already; %d of %d backups are whole in the target", report.Copied,
		humanize.IBytes(uint64(report.Bytes)), time.Duration(report.Seconds*float64(time.Second)).Round(10*time.Millisecond), report.There,
		len(report.Backups), len(plan.Backups)))
	if o.asJSON {
		err = errors.Join(a.printJSON(report), err)
	}
	if err == nil {
		a.sweep(ctx, target)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		a.log.Info("what was copied stays, and the same command goes on from there")
	case err != nil && len(plan.Differs) > 0:
		err = errors.Join(err, &advised{errors.New("the target has other objects of the same names"), differsHint})
	}
	return err
}

const differsHint = "nothing is replaced: find out which of the two is right (`holdfast verify` looks at both archives), and remove the other with `holdfast st rm`"

// settingsOf reads a settings file that describes one of two storages. What it says counts, and not what the environment does, which only adds to it: names that
// are not ours alone, such as AWS_ACCESS_KEY_ID, where the file has no secret of that kind of storage.
func (a *app) settingsOf(file string) (*config.Settings, error) {
	src := config.Sources{Turbo: a.turbo, File: file, Home: a.env.Home, Cores: runtime.GOMAXPROCS(0), Command: "copy"}
	alone, err := config.Load(src)
	if err != nil {
		return nil, err
	}
	given, secret := map[string]bool{}, map[string]bool{} // settings; sections
	for _, v := range alone.Effective() {
		given[v.Name] = strings.HasPrefix(v.Source, alone.File)
	}
	table := config.Table(1)
	for _, row := range table {
		if row.Secret && given[row.Name] {
			secret[row.Section] = true
		}
	}
	for _, e := range a.env.Environ {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "WALG_") || strings.HasPrefix(name, "WALE_") || strings.HasPrefix(name, "HOLDFAST_") {
			continue
		}
		taken := slices.ContainsFunc(table, func(row config.Setting) bool {
			return (given[row.Name] || secret[row.Section]) && slices.Contains(row.Names(), name)
		})
		if !taken {
			src.Environ = append(src.Environ, e)
		}
	}
	s, err := config.Load(src)
	if err != nil {
		return nil, err
	}
	for _, st := range s.Storages() {
		if st.Dir != "" {
			a.dirs = append(a.dirs, st.Dir)
		}
	}
	return s, nil
}

// printCopy prints what would be copied.
func (a *app) printCopy(p *transfer.Plan, from, to string, asJSON bool) error {
	if asJSON {
		return a.printJSON(p)
	}
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", what, fmt.Sprintf(format, args...))
	}
	amount := func(x transfer.Amount) string {
		objects, bytes := x.Left()
		text := fmt.Sprintf("%d objects, %s", x.Objects, humanize.IBytes(uint64(x.Bytes)))
		if x.There > 0 {
			text += fmt.Sprintf("; left to copy %d, %s", objects, humanize.IBytes(uint64(bytes)))
		}
		return text
	}
	line("from", "%s", from)
	line("to", "%s", to)
	if p.Cluster != 0 {
		claims := ""
		if p.Claims {
			claims = "; the target is nobody's yet and becomes that cluster's"
		}
		line("cluster", "%d%s", p.Cluster, claims)
	}
	for _, x := range p.Backups {
		what, wal, whole := "backup", "", ""
		if x.CatchUp {
			what = "catch-up"
		}
		if x.FirstWAL != "" {
			wal = fmt.Sprintf(", needs WAL %s to %s", x.FirstWAL, x.LastWAL)
		}
		if x.Whole {
			whole = ", there already"
		}
		line(what, "%s%s: %s%s", x.Name, whole, amount(x.Amount), wal)
	}
	for _, r := range p.WAL {
		if r.First == "" {
			line("WAL", "timeline %d, its history: %s", uint32(r.Timeline), amount(r.Amount))
			continue
		}
		line("WAL", "timeline %d, %s to %s: %s", uint32(r.Timeline), r.First, r.Last, amount(r.Amount))
	}
	if p.Pieces.Objects > 0 {
		line("WAL", "pieces of segments that are being written: %s", amount(p.Pieces))
	}
	if p.Other.Objects > 0 {
		line("the rest", "%s", amount(p.Other))
	}
	line("in all", "%s", amount(p.Total))
	for _, s := range p.Skipped {
		line("left out", "%s: %s", cell(s.Name), cell(s.Reason))
	}
	for _, d := range p.Differs {
		line("differs", "%s: %d bytes in the source, %d in the target", cell(d.Name), d.Source, d.Target)
	}
	for _, n := range p.Notes {
		line("note", "%s", cell(n))
	}
	_, err := fmt.Fprint(a.env.Stdout, b.String())
	return err
}
