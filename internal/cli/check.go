package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/check"
	"holdfast/internal/config"
	"holdfast/internal/pg/server"
)

// checkFlags are the flags of `check` and `doctor`.
type checkFlags struct {
	only, except []string
	limits       map[string]*string // by check
	timeout      time.Duration
	json         bool
	submit       string
}

// add adds those that both commands have.
func (o *checkFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&o.only, "only", nil, "make only the checks of these `NAMES`, separated by commas")
	f.StringSliceVar(&o.except, "except", nil, "leave out the checks of these `NAMES`, separated by commas")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "what has not answered by then is UNKNOWN")
	f.BoolVar(&o.json, "json", false, "print all that was found as JSON")
	o.limits = map[string]*string{}
	for _, c := range check.Checks() {
		if c.Unit != check.None {
			o.limits[c.Name] = f.String(c.Name, "", "WARNING and CRITICAL `LIMITS`, or off; by default "+c.Limits)
		}
	}
	targetFlag(cmd)
}

// How the checks end.
const (
	checkStatuses = "Exit status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, also where the command line or the settings make no sense."
	checkGathers  = "The server is asked where PGHOST, PGPORT, PGSERVICE or PGDATA is set, and its files are looked at where they are on this host. What does not apply is\n" +
		"left out, as checks of the server are where none is named; with --only it is UNKNOWN. docs/checks.md lists the checks and their limits. Limits are a\n" +
		"WARNING and a CRITICAL one, `26h:50h`, or one of them, `26h` or `:50h`. HOLDFAST_CHECK has them too: `backup-age=26h:50h,proof=off`.\n\n"
)

func (a *app) check() *cobra.Command {
	var o checkFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check archive and server, for Nagios, Icinga and the like",
		Long: "Asks server, pg_wal, archive, storages and keys, and prints one line with the status and the numbers, behind it one for each check that is not well. Nothing\n" +
			"is waited for longer than --timeout.\n\n" + checkGathers +
			"With --submit the text goes to the standard input of a command of the shell, for passive results; its environment has CHECK_STATUS (0 to 3) and CHECK_WORD.\n" +
			"The exit status is then 0 where that took it.\n\n" + checkStatuses,
		Example: "  holdfast check --backup-age 26h:50h\n  holdfast check --only wal-push,disk-full\n" +
			"  holdfast check --submit 'printf \"db1\\tbackup\\t%s\\t%s\\n\" \"$CHECK_STATUS\" \"$(head -n 1)\" | send_nsca -H icinga'",
		Args: a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.runChecks(cmd, &o)
			if err != nil {
				return a.notChecked(err)
			}
			if o.submit != "" {
				if err := submit(cmd.Context(), o.submit, r, o.timeout); err != nil {
					return &exit{err, int(check.Unknown)}
				}
				return nil
			}
			if a.child.inSlot() {
				a.logFindings(cmd.Context(), r)
			}
			if o.json {
				err = a.printJSON(r)
			} else {
				_, err = fmt.Fprint(a.env.Stdout, r.Nagios())
			}
			return errors.Join(err, checkStatus(r))
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&o.submit, "submit", "", "pass the text to this `COMMAND` in place of printing it")
	a.usageIsUnknown(cmd)
	return cmd
}

// usageIsUnknown makes a wrong command line what monitoring takes for UNKNOWN.
func (a *app) usageIsUnknown(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &exit{a.usage(cmd, err), int(check.Unknown)} })
	args := cmd.Args
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return &exit{err, int(check.Unknown)}
		}
		return nil
	}
}

// notChecked is the end of a command that could not make its checks. Monitoring reads standard output.
func (a *app) notChecked(err error) error {
	line, _, _ := strings.Cut(err.Error(), "\n")
	_, printed := fmt.Fprintf(a.env.Stdout, "HOLDFAST UNKNOWN - %s\n", strings.ReplaceAll(line, "|", "/"))
	return &exit{errors.Join(err, printed), int(check.Unknown)}
}

// logFindings logs what is not well: of a check that an agent has started people read nothing but the log.
func (a *app) logFindings(ctx context.Context, r *check.Report) {
	for _, f := range r.Findings {
		level := slog.LevelWarn
		switch f.Status {
		case check.OK:
			continue
		case check.Critical:
			level = slog.LevelError
		}
		a.log.Log(ctx, level, fmt.Sprintf("%s %s: %s", f.Status, f.Check, f.Text))
	}
}

// checkStatus makes the exit status of a report.
func checkStatus(r *check.Report) error {
	if r.Status == check.OK {
		return nil
	}
	return judgement(fmt.Errorf("the checks are %s", r.Status), int(r.Status))
}

// runChecks makes the checks.
func (a *app) runChecks(cmd *cobra.Command, o *checkFlags) (*check.Report, error) {
	if o.timeout <= 0 {
		return nil, errors.New("--timeout must be more than 0")
	}
	s, err := a.load(cmd)
	if err != nil {
		return nil, err
	}
	sel := check.Selection{Setting: s.Checks, Only: o.only, Except: o.except, Limits: map[string]string{}}
	for name, limits := range o.limits {
		if cmd.Flags().Changed(name) {
			sel.Limits[name] = *limits
		}
	}
	choice, err := check.Choose(sel)
	if err != nil {
		return nil, err
	}
	if err := s.RequireStorage(); err != nil {
		return nil, err
	}
	facts := check.Gather(cmd.Context(), a.checkSources(s), choice, o.timeout)
	if err := context.Cause(cmd.Context()); err != nil {
		return nil, err
	}
	r := check.Judge(facts, choice)
	return &r, nil
}

// checkSources says where the facts come from.
func (a *app) checkSources(s *config.Settings) check.Sources {
	src := check.Sources{Slot: s.Receive.Slot, DataDir: s.Postgres.DataDir, Deltas: s.Backup.Delta.MaxSteps > 0, Summaries: s.SummarizesWAL(), Host: s.Lease.Host}
	if src.Host == "" {
		src.Host, _ = os.Hostname() // it names an object that is removed again; another name does too
	}
	named := func(v string) bool { _, ok := s.Postgres.Lookup(v); return ok }
	if src.DataDir != "" || slices.ContainsFunc([]string{"PGHOST", "PGPORT", "PGSERVICE"}, named) {
		src.Server = server.ConfigFromEnv(s.Postgres.Lookup)
		src.Local = isLocal(src.Server["host"]) && !named("PGSERVICE")
	}
	src.Archive = func(ctx context.Context) (check.Loaded, error) {
		var l check.Loaded
		var err error
		if l.Encrypted, l.WriteOnly, err = a.encrypts(ctx, s); err != nil {
			return check.Loaded{}, err
		}
		l.Input, err = a.loadRibbon(ctx, s, ribbonFlags{brief: true, shallow: true})
		return l, err
	}
	src.Storages = func(ctx context.Context) (all []check.Storage, err error) {
		members, err := a.stores(ctx, s, brief)
		for _, m := range members {
			all = append(all, check.Storage{Name: m.Name, Store: m.Store})
		}
		return all, err
	}
	return src
}

// isLocal reports whether a server at that host of libpq's is on this machine.
func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" || ip != nil && ip.IsLoopback()
}

// submit passes a report to a command of the shell, which has as long as the checks had.
func submit(ctx context.Context, command string, r *check.Report, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Stdin = strings.NewReader(r.Nagios())
	cmd.Env = append(os.Environ(), fmt.Sprintf("CHECK_STATUS=%d", int(r.Status)), "CHECK_WORD="+r.Status.String())
	cmd.WaitDelay = time.Second
	said, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end within %s", patience)
	}
	said = bytes.TrimSpace(said)
	if said = bytes.TrimSpace(said); len(said) > 0 {
		err = fmt.Errorf("%w: %.300q", err, said)
	}
	return fmt.Errorf("the result (%s) was not submitted: %w", r.Status, err)
}
