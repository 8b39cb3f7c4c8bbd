package cli

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/config"
	"holdfast/internal/drill"
	"holdfast/internal/ribbon"
)

// drillFlags are those of drill, beside the settings that they stand for.
type drillFlags struct {
	target       fetchFlags
	what         string // NAME, LATEST, oldest or random
	stream       string
	dump, keep   bool
	dryRun, json bool
}

// What a drill can be asked for beside a name and LATEST.
const (
	drillOldest = "oldest"
	drillRandom = "random"
)

func (a *app) drill() *cobra.Command {
	var f drillFlags
	var d config.Drill // what flags say
	cmd := &cobra.Command{
		Use:   "drill [NAME|LATEST|oldest|random]",
		Short: "Prove a backup: restore it beside everything else, start it, ask it questions",
		Long: "Restores a backup into a scratch directory below HOLDFAST_DRILL_DIR, tablespaces too, starts PostgreSQL there, replays WAL, and checks what came up: that\n" +
			"replay went as far as the archive promises, how long it took (RTO) and what would have been lost (RPO), that the extensions are installed, indexes and\n" +
			"tables (amcheck) and pages, and what HOLDFAST_DRILL_CHECKS asks. Then all of it is removed, and what was found is recorded in the archive: backup-list,\n" +
			"check, metrics and retention go by that.\n\n" +
			"Without a name it is LATEST, replayed to the end of the WAL. `oldest` is the oldest that can be restored and was not in a drill yet; where all were, the one\n" +
			"whose drill is the longest ago. Like one that is named it is replayed to its own end, unless --target, --time or --lsn says otherwise. `random` is a moment drawn from all that can be restored.\n\n" +
			"The copy is nobody's business: its socket is in the scratch directory and it has no port, it does not archive, its subscriptions do not start, libraries\n" +
			"that do things by themselves are not loaded, and it takes no more memory than HOLDFAST_DRILL_MEMORY, about. It runs as HOLDFAST_DRILL_USER where root makes the\n" +
			"drill. With --keep it stays, and how to reach it is printed. --stream-from makes it a standby of that server first, and looks whether streaming starts.\n\n" +
			"With HOLDFAST_LEASE and HOLDFAST_ROLE one of several hosts does it, as with verify.\n\n" +
			"Exit status: 0 the backup is proven; 1 this host could not make the drill, and says why; 2 the backup did not prove itself.",
		Example: "  holdfast drill\n  holdfast drill random --budget 10m\n  holdfast drill LATEST --time '2026-05-06 09:08:09+02' --keep\n  holdfast drill oldest --json",
		Args:    a.args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			if f.what = "LATEST"; len(args) == 1 {
				f.what = args[0]
			}
			for name, set := range map[string]func(){
				"dir": func() { s.Drill.Dir = d.Dir }, "user": func() { s.Drill.User = d.User }, "role": func() { s.Drill.Role = d.Role },
				"timeout": func() { s.Drill.Timeout = d.Timeout }, "budget": func() { s.Drill.Budget = d.Budget },
			} {
				if cmd.Flags().Changed(name) {
					set()
				}
			}
			if s.Drill.Dir, err = a.absolute(s.Drill.Dir); err != nil {
				return err
			}
			if f.stream != "" && !plainConninfo(f.stream) {
				return a.usage(cmd, errors.New("--stream-from: want a connection string without a password, such as 'host=db1 user=replicator'; a password belongs into a password file (PGPASSFILE)"))
			}
			return a.makeDrill(cmd.Context(), s, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.target.time, "time", "", "replay to this time, with its zone")
	flags.StringVar(&f.target.lsn, "lsn", "", "replay to this position, such as 16/B374D848")
	flags.StringVar(&f.target.target, "target", "", "replay to latest, the end of the WAL, or immediate, the end of the backup")
	flags.StringVar(&f.target.timeline, "timeline", "", "along this timeline (default the one that the cluster is on)")
	flags.StringVar(&d.Dir, "dir", "", "make the copy below this directory (HOLDFAST_DRILL_DIR)")
	flags.StringVar(&d.User, "user", "", "account of the copy, when root makes it (HOLDFAST_DRILL_USER)")
	flags.StringVar(&d.Role, "role", "", "superuser to ask as (HOLDFAST_DRILL_ROLE)")
	flags.DurationVar(&d.Timeout, "timeout", 0, "how long it may take (HOLDFAST_DRILL_TIMEOUT)")
	flags.DurationVar(&d.Budget, "budget", 0, "how long indexes and tables, and then pages, are verified at most (HOLDFAST_DRILL_BUDGET)")
	flags.StringVar(&f.stream, "stream-from", "", "let the copy stream from this server first, a connection string of libpq")
	flags.BoolVar(&f.dump, "dump", false, "read every row of every table")
	flags.BoolVar(&f.keep, "keep", false, "leave the copy running, and say how to reach it")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print what would be done, and do nothing")
	flags.BoolVar(&f.json, "json", false, "print the record, or with --dry-run the plan, as JSON")
	targetFlag(cmd)
	cmd.AddCommand(a.drillReport())
	return cmd
}

// plainConninfo reports whether text is a connection string of libpq without a password. What the environment and password files say does not count.
func plainConninfo(text string) bool {
	if strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://") {
		u, err := url.Parse(text)
		if err != nil {
			return false
		}
		_, has := u.User.Password()
		if q := u.Query(); has || q.Has("password") || q.Has("sslpassword") {
			return false
		}
		_, err = pgconn.ParseConfig(text)
		return err == nil
	}
	// Of a word that is there twice the later one counts.
	const none = "holdfast-no-password"
	c, err := pgconn.ParseConfig("password=" + none + " " + text)
	return err == nil && c.Password == none && !sslPassword.MatchString(text)
}

// sslPassword matches where a connection string may have the password of a key.
var sslPassword = regexp.MustCompile(`(?i)\bsslpassword\s*=`)

// makeDrill makes a drill where it is this host's turn, or says what it would be.
func (a *app) makeDrill(ctx context.Context, s *config.Settings, f *drillFlags) error {
	if !f.dryRun {
		a.starts(leaseDrill)
	}
	o, err := drillOptions(s, f)
	if err != nil {
		return err
	}
	ar, err := a.openArchive(ctx, s, toRead)
	if err != nil {
		return err
	}
	if f.dryRun {
		r, err := a.drillRequest(ctx, s, ar, f)
		if err != nil {
			return err
		}
		plan, err := drill.Decide(ctx, ar, r)
		if err != nil {
			return err
		}
		return a.printDrillPlan(plan, f.json)
	}
	return a.alone(ctx, s, leaseDrill, ar, func(ctx context.Context, ar *archive.Archive) error {
		r, err := a.drillRequest(ctx, s, ar, f)
		if err != nil {
			return err
		}
		return a.drills(ctx, s, ar, r, o, f)
	})
}

// drillOptions turns settings and flags into those of a drill.
func drillOptions(s *config.Settings, f *drillFlags) (drill.Options, error) {
	d := &s.Drill
	o := drill.Options{
		Release: release(), Workers: s.Restore.Workers, Memory: d.Memory, Nice: d.Nice, Budget: d.Budget, MaxRTO: d.RTO, MaxRPO: d.RPO,
		Heartbeat: d.Heartbeat, Dump: f.dump, Keep: f.keep,
	}
	if d.Beat != "off" && d.Heartbeat == "" {
		o.Beat = d.Beat
	}
	if d.Role != "" {
		o.Roles = []string{d.Role}
	} else if user, ok := s.Postgres.Lookup("PGUSER"); ok {
		o.Roles = []string{user, "postgres"}
	}
	if database, ok := s.Postgres.Lookup("PGDATABASE"); ok {
		o.Databases = []string{database}
	}
	var err error
	if o.Questions, err = drill.ParseQuestions(d.Checks); err != nil {
		return o, &config.Problem{What: s.Called("HOLDFAST_DRILL_CHECKS"), Why: err.Error(), Do: "write it as [{database: shop, sql: select count(*) from orders, expect: '> 0'}]"}
	}
	keys, err := proofKeys(s)
	if err != nil || d.Key == "" {
		return o, err
	}
	if o.Key, err = proofKey(s); err != nil {
		return o, err
	}
	if !slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return k.Equal(o.Key.Public()) }) {
		return o, &config.Problem{What: s.Called("HOLDFAST_PROOF_PUBLIC_KEY"), Why: "that of HOLDFAST_PROOF_KEY is not among them: what this drill signs would count nowhere",
			Do: "add what `openssl pkey -pubout` makes of the private key, one behind another"}
	}
	return o, nil
}

// drillRequest finds out which backup is to be proven, and at which moment.
func (a *app) drillRequest(ctx context.Context, s *config.Settings, ar *archive.Archive, f *drillFlags) (r drill.Request, err error) {
	r = drill.Request{
		Asked: f.what, Dir: s.Drill.Dir, Account: s.Drill.User, Program: a.env.Program, StreamFrom: f.stream,
		Env: settingsOf(s),
	}
	if s.Drill.Programs != "" {
		r.Programs = strings.Split(s.Drill.Programs, ":")
	}
	if s.File != "" {
		if r.Config, err = a.absolute(s.File); err != nil {
			return r, err
		}
	}
	target, err := f.target.recoveryTarget()
	if err != nil {
		return r, err
	}
	given := target.Kind != catalog.None
	switch {
	case f.what == drillRandom && given:
		return r, errors.New("a random moment goes with no target: leave random away, or --time, --lsn and --target")
	case f.what == drillRandom:
		r.Choice, err = a.randomMoment(ctx, s, ar, f)
		return r, err
	case !given && f.what == "LATEST":
		target.Kind = catalog.Latest
	case !given:
		target.Kind = catalog.Immediate
	}
	if f.stream != "" && target.Kind != catalog.Latest {
		return r, errors.New("--stream-from goes with --target latest alone: a standby takes no target")
	}
	if f.what != drillOldest {
		r.Choice, err = a.choose(ctx, ar, s, &f.target, f.what, target)
		return r, err
	}
	in, err := a.loadRibbon(ctx, s, ribbonFlags{brief: true, shallow: true})
	if err != nil {
		return r, err
	}
	err = &catalog.NoBackupError{Asked: "a drill of the oldest", Reason: "the archive has no backups"}
	for _, name := range leastProven(in) {
		if r.Choice, err = a.choose(ctx, ar, s, &f.target, name, target); err == nil || ctx.Err() != nil {
			return r, err
		}
	}
	return r, err
}

// leastProven lists backups: those without a drill first, then those whose last one is the longest ago; of equals the oldest first. So each has its turn before it goes.
func leastProven(in ribbon.Input) (names []string) {
	if in.Catalog == nil {
		return nil
	}
	last := func(name string) time.Time {
		e := in.Backups[name]
		if e.Failed.After(e.Proven) {
			return e.Failed
		}
		return e.Proven
	}
	for i := range in.Catalog.Backups {
		if b := &in.Catalog.Backups[i]; b.Condemned == nil {
			names = append(names, b.Name)
		}
	}
	slices.SortStableFunc(names, func(x, y string) int { return last(x).Compare(last(y)) })
	return names
}

// randomMoment draws one of the moments that can be restored.
func (a *app) randomMoment(ctx context.Context, s *config.Settings, ar *archive.Archive, f *drillFlags) (c catalog.Choice, err error) {
	in, err := a.loadRibbon(ctx, s, ribbonFlags{ask: true})
	if err != nil {
		return c, err
	}
	verdict := ribbon.Compute(in)
	if in.WAL == nil {
		return c, drill.ErrNoMoment
	}
	t := catalog.Target{Kind: catalog.AtLSN}
	if t.Timeline, t.LSN, err = drill.Moment(&verdict, in.WAL.SegmentSize, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))); err != nil {
		return c, err
	}
	return a.choose(ctx, ar, s, &f.target, "", t)
}

// settingsOf returns the settings that were given by flags, as the environment has them: what a command starts does not get its flags.
func settingsOf(s *config.Settings) (env []string) {
	for _, v := range s.Effective() {
		if strings.HasPrefix(v.Source, "flag ") && !v.Secret {
			env = append(env, v.Name+"="+v.Value)
		}
	}
	return env
}

// drills makes a drill and prints what it has found.
func (a *app) drills(ctx context.Context, s *config.Settings, ar *archive.Archive, r drill.Request, o drill.Options, f *drillFlags) error {
	if s.Drill.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Drill.Timeout)
		defer cancel()
	}
	o.Logger, o.Progress = a.log, &drill.Progress{}
	stop := a.progress(ctx, "drill", o.Progress)
	record, copy, err := drill.Run(ctx, ar, r, o)
	stop()
	if record == nil {
		return err
	}
	a.measures(record.Fetched.Bytes, record.Seconds)
	errPrint := error(nil)
	if f.json {
		errPrint = a.printJSON(record)
	} else {
		_, errPrint = fmt.Fprint(a.env.Stdout, drillText(record))
	}
	if copy != nil {
		a.log.Info(fmt.Sprintf("the copy is running: psql -h %s -p %d -U %s", copy.Socket, copy.Port, copy.Role))
		a.log.Info(fmt.Sprintf("to remove it: kill -QUIT %d, then rm -r %s", copy.Pid, copy.Scratch))
	}
	var failed *drill.FailedError
	if errors.As(err, &failed) {
		if a.hint(err) == "" {
			err = &advised{err, "docs/runbook.md, \"The drill is red\", says what to do"}
		}
		err = &exit{err, exitDamaged}
	}
	return errors.Join(err, errPrint)
}

// drillText is a record for people.
func drillText(r *drill.Record) string {
	var b strings.Builder
	b.WriteString(paragraph(r.Summary(), 116, ""))
	if r.Error != "" {
		first, _, _ := strings.Cut(r.Error, "\n")
		b.WriteString(paragraph(first, 116, "    "))
	}
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-8s %-12s %8s  %s\n", c.Result, cell(c.Name), time.Duration(c.Seconds*float64(time.Second)).Round(10*time.Millisecond), cell(c.Text))
	}
	for _, c := range r.Changed {
		fmt.Fprintf(&b, "changed  %s = %s, in the backup it is %s\n", c.Name, cell(c.To), cell(c.From))
	}
	for _, n := range r.Notes {
		b.WriteString(paragraph("note     "+n, 116, ""))
	}
	return b.String()
}

// printDrillPlan prints what a drill would do.
func (a *app) printDrillPlan(p *drill.Plan, asJSON bool) error {
	if asJSON {
		return a.printJSON(p)
	}
	if _, err := fmt.Fprintf(a.env.Stdout, "%-14s %s in %s\n%-14s %s\n", "PostgreSQL", p.Version, p.Programs, "scratch", p.Scratch); err != nil {
		return err
	}
	for _, n := range p.Notes {
		if _, err := fmt.Fprintf(a.env.Stdout, "%-14s %s\n", "note", n); err != nil {
			return err
		}
	}
	return a.printPlan(p.Restore, false)
}
