// Package cli turns a command line into values, calls one operation and prints its report.
//
// It is the only package that reads settings, prints, and decides the exit status. Standard output carries results alone: lists,
// JSON, plans. What is being done goes to standard error, in WAL-G's form of a log.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast/internal/agent"
	"holdfast/internal/archive"
	"holdfast/internal/config"
	"holdfast/internal/metrics"
	"holdfast/internal/store/meter"
	"holdfast/internal/store/mirror"
)

// Set by the linker; see the Makefile.
var version, commit, date string

// Env is the process as far as commands look at it.
type Env struct {
	Args    []string // without the program's name
	Environ []string
	Home    string // "" when there is none
	Dir     string // current directory
	Program string // path of this binary
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Live    bool        // standard error is a terminal: progress bars
	Clock   agent.Clock // of the agent's schedule; nil is the real one
}

// What the process ends with. Those of wal-fetch are PostgreSQL's business: docs/operations.md.
const (
	exitOK      = 0
	exitFailed  = 1 // and usage errors, as WAL-G
	exitCorrupt = 3 // backup-push: the backup is made, and has pages that were corrupt already
	// There is no such command, as in a shell. PostgreSQL would take less than 126 from a misspelt restore_command for the end
	// of the archive, and open a database that lacks the rest.
	exitUnknown = 127
)

// Run runs a command line and returns the exit status. SIGINT and SIGTERM end what is being done in order; a second one kills.
func Run(env Env) int {
	a := &app{env: env, settingFlags: settingFlags()}
	ctx, stop := a.interruptible()
	defer stop()
	root := a.root()
	root.SetArgs(twoDashes(env.Args))
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	var err error
	if a.child, err = adopted(&a.env); err == nil {
		stop := a.child.every(trafficEvery, func() said { c := a.traffic.Read(); return said{Traffic: &c} })
		err = root.ExecuteContext(ctx)
		stop()
	}
	if stopped := (*interruptedError)(nil); errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &stopped) {
		err = fmt.Errorf("%w: %w", stopped, err)
	}
	a.tellTraffic()
	status := a.report(err)
	a.tellMonitors(err, status)
	a.tellAgent(err, status)
	a.ended(ctx, err, status)
	if a.logTo != nil {
		_ = a.logTo.Close() // each line was sent for itself
	}
	if a.logFile != nil {
		if err := a.logFile.Close(); err != nil {
			a.logFile, a.log = nil, nil // what follows can only go to standard error
			status = max(status, a.report(err))
		}
	}
	return status
}

// interruptible returns a context that ends with the first SIGINT or SIGTERM, and says so as its cause. So does SIGHUP, but in a daemon.
func (a *app) interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-signals:
				if s == syscall.SIGHUP && a.stays.Load() {
					continue
				}
				signal.Stop(signals) // the next one has its usual effect
				cancel(&interruptedError{s})
			case <-done:
			}
			return
		}
	}()
	return ctx, func() { signal.Stop(signals); close(done); cancel(nil) }
}

type interruptedError struct{ signal os.Signal }

func (e *interruptedError) Error() string { return "stopped by signal: " + e.signal.String() }

// app is one command at work.
type app struct {
	env    Env
	config string // --config
	turbo  bool   // --turbo

	settingFlags map[string]string // the setting of each hidden flag

	stays atomic.Bool // what goes on does not end with SIGHUP
	child *child      // what an agent has said that has started this; nil where none has

	log     *slog.Logger
	logFile *os.File
	logTo   io.Closer      // the system's log, where the log goes there
	journal bool           // standard error goes to journald by itself, and so does the log
	run     *run           // what people are told of, once the settings are read
	traffic meter.Counters // with the store
	job     *metrics.Job   // what the command does, where monitoring is to be told of it

	inForce *config.Settings // once they are read
	dirs    []string         // archives that are directories here
	mirrors *mirror.Mirror   // once opened, where there are such
	opening func(io.Closer)  // hears what storages are opened that can be closed; nil unless somebody goes on without them
	helped  string           // the backup that was made of what another host had stored
}

// report turns an error into words for people and a status for programs.
func (a *app) report(err error) int {
	if err == nil {
		return exitOK
	}
	logs := []*slog.Logger{a.log}
	away := a.logFile != nil || a.logTo != nil && !a.journal
	if a.log == nil || away { // whoever started the command sees why it failed, wherever the log goes
		logs[0] = slog.New(newHandler(a.env.Stderr, slog.LevelInfo))
	}
	if a.log != nil && away {
		logs = append(logs, a.log)
	}
	level := slog.LevelError
	if errors.As(err, new(*warning)) {
		level = slog.LevelWarn
	}
	for _, log := range logs {
		for _, one := range parts(err) {
			log.Log(context.Background(), level, one.Error())
			if hint := a.hint(one); hint != "" {
				log.Log(context.Background(), level, "hint: "+hint)
			}
		}
	}
	var coded *exit
	if errors.As(err, &coded) {
		return coded.code
	}
	return exitFailed
}

// hint says what the operator can do about an error, "" when nothing is known.
func (a *app) hint(err error) string {
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) && hinted.Hint() != "" {
		return hinted.Hint()
	}
	var path *fs.PathError
	if len(a.dirs) == 0 || !errors.As(err, &path) || !isObject(path) {
		return ""
	}
	dirs := strings.Join(a.dirs, " or ")
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "the archive is the directory " + dirs + ": the account that runs this must own it, and what is in it, or be let in by its mode"
	case errors.Is(err, syscall.EROFS):
		return "the archive is the directory " + dirs + ", on a file system that is mounted for reading only"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "the archive is the directory " + dirs + ": its file system, or the account's quota, is full"
	}
	return ""
}

// isObject reports whether it was an object of an archive, and not a file, with which something went wrong.
func isObject(e *fs.PathError) bool {
	switch e.Op {
	case "put", "delete", "list":
		return !filepath.IsAbs(e.Path)
	case "open", "stat":
		return slices.ContainsFunc([]string{archive.BackupDir, archive.CatchUpDir, archive.WALDir, "holdfast/", "backup/", "archive/"}, func(dir string) bool { return strings.HasPrefix(e.Path, dir) })
	}
	return false
}

// parts takes errors apart that were joined, so that each gets a line and a hint of its own.
func parts(err error) []error {
	if coded, ok := err.(*exit); ok {
		err = coded.error
	}
	if found, ok := err.(*warning); ok {
		err = found.error
	}
	// An error of fmt.Errorf has parts too, and text of its own around them.
	if joined, ok := err.(interface{ Unwrap() []error }); ok && err.Error() == errors.Join(joined.Unwrap()...).Error() {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, parts(e)...)
		}
		return all
	}
	return []error{err}
}

// exit makes an error end the process with a status of its own.
type exit struct {
	error
	code int
}

func (e *exit) Unwrap() error { return e.error }

// warning is that a check has found something short of a failure. The log has it as a warning; it is no failure to those who are told of such, nor the end of one.
type warning struct{ error }

func (e *warning) Unwrap() error { return e.error }

// judgement makes what a check has found, which is err, the end of its command, with the status by which monitoring knows it. 1 is short of a failure.
func judgement(err error, status int) error {
	if status == 1 {
		err = &warning{err}
	}
	return &exit{err, status}
}

// root is the command above all others.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Archives PostgreSQL's WAL, takes base backups, restores to any moment",
		Long: "holdfast archives PostgreSQL's WAL, takes base backups and restores a cluster to any moment.\n" +
			"Layout of the archive, commands and settings are those of WAL-G. Settings come from the environment or from a file (~/.holdfast.yaml, ~/.walg.json\n" +
			"and the like, or --config); each is a flag, too: WALG_LOG_LEVEL is --walg-log-level. `holdfast settings` shows what is in force.\n" +
			"When you do not know what is wrong: `holdfast doctor`.",
		Example: "  export WALG_FILE_PREFIX=/srv/archive PGHOST=/var/run/postgresql\n" +
			"  holdfast backup-push /var/lib/postgresql/15/main\n" +
			"  holdfast backup-fetch /var/lib/postgresql/15/restored --target latest --dry-run\n" +
			"  holdfast help backup-fetch",
		Version:           a.version(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true}, // ours is
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return a.unknown(cmd, args[0])
			}
			return cmd.Help()
		},
		Args:                       cobra.ArbitraryArgs,
		SuggestionsMinimumDistance: 2,
	}
	root.PersistentFlags().StringVar(&a.config, "config", "", "file of settings (YAML, JSON or TOML)")
	root.PersistentFlags().BoolVar(&a.turbo, "turbo", false, "ignore the rate limits of disk and network")
	for name, setting := range a.settingFlags {
		root.PersistentFlags().String(name, "", setting)
		_ = root.PersistentFlags().MarkHidden(name) // it was made in the line above
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if before := cmd.Flags().Args(); !cmd.HasParent() && len(before) > 0 { // a flag of a command that is none
			return a.unknown(cmd, before[0])
		}
		return a.usage(cmd, err)
	})
	for _, g := range a.groups() {
		g.addTo(root)
	}
	root.SetHelpCommandGroupID("run")
	root.SetUsageTemplate(usageOnce(root.UsageTemplate()))
	onceBelow(root)
	return root
}

// usageOnce changes cobra's template of a usage so that of a command that only stands for those below it there is one line, and not one more of itself alone.
func usageOnce(template string) string {
	template = strings.Replace(template, "{{end}}{{if .HasAvailableSubCommands}}\n  {{.CommandPath}}", "{{end}}{{if and .HasAvailableSubCommands (not .DisableFlagsInUseLine)}}\n  {{.CommandPath}}", 1)
	return strings.ReplaceAll(template, "[command]", "COMMAND")
}

// onceBelow has the usage of such commands end in COMMAND.
func onceBelow(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = cmd.DisableFlagsInUseLine || strings.HasSuffix(cmd.Use, " COMMAND")
	for _, c := range cmd.Commands() {
		onceBelow(c)
	}
}

// targetStorage is the flag that is short for WALG_TARGET_STORAGE, as in WAL-G.
const targetStorage = "target-storage"

// targetFlag adds it to a command.
func targetFlag(cmd *cobra.Command) {
	cmd.Flags().String(targetStorage, "", "use the storage of this name alone, where there are several")
}

// settingFlags returns the name of the setting for each hidden flag: a setting's names in lower case with dashes. Those of secrets
// lead to an error that says how to give a secret, but for those that name a file.
func settingFlags() map[string]string {
	flags := map[string]string{}
	for _, s := range config.Table(1) {
		if s.EnvOnly {
			continue // --config
		}
		for _, name := range s.Names() {
			flags[flagName(name)] = name
			if s.Secret {
				flags[flagName(name+"_FILE")] = name + "_FILE"
			}
		}
	}
	return flags
}

// flagName is the flag of a setting: lower case, dashes.
func flagName(setting string) string {
	return strings.ReplaceAll(strings.ToLower(setting), "_", "-")
}

// usage reports a command line that makes no sense, with the command's usage, as WAL-G with status 1.
func (a *app) usage(cmd *cobra.Command, err error) error {
	fmt.Fprintf(a.env.Stderr, "%s\n", cmd.UsageString())
	return err
}

// unknownError says that there is no command of that name.
type unknownError struct{ name, hint string }

func (e *unknownError) Error() string { return fmt.Sprintf("unknown command %q", e.name) }
func (e *unknownError) Hint() string  { return e.hint }

// unknown reports a command that there is not.
func (a *app) unknown(root *cobra.Command, name string) error {
	hint := "`holdfast help` lists the commands"
	if near := root.SuggestionsFor(name); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "? " + hint
	} else if slices.Contains(onlyWALG, name) {
		hint = "WAL-G has it and this release of Holdfast has not: run WAL-G for it, on the same archive"
	}
	return &exit{a.usage(root, &unknownError{name, hint}), exitUnknown}
}

// onlyBelow is what a command does that only stands for those below it, which hint names.
func (a *app) onlyBelow(hint string) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		name := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
		return a.usage(cmd, &unknownError{name + " " + args[0], hint})
	}
}

// args makes a wrong number of arguments a usage error.
func (a *app) args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) == nil {
			return nil
		}
		got := "nothing"
		if len(args) > 0 {
			got = strings.Join(args, " ")
		}
		return a.usage(cmd, fmt.Errorf("want `%s`, got %s behind it", cmd.Use, got))
	}
}

// build returns the release, the revision of the source and its date, as the linker was told or as the toolchain noted.
func build() (release, revision, day string) {
	release, revision, day = version, commit, date
	if info, ok := debug.ReadBuildInfo(); ok && release == "" {
		release = info.Main.Version
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				revision = s.Value
			case "vcs.time":
				day = s.Value
			}
		}
	}
	return cmp.Or(release, "unknown"), cmp.Or(revision, "unknown"), cmp.Or(day, "unknown")
}

// version is what --version prints after "holdfast version", in WAL-G's form.
func (a *app) version() string {
	release, revision, day := build()
	return release + "\t" + revision + "\t" + day + "\tPostgreSQL"
}

// release is the version alone.
func release() string {
	r, _, _ := build()
	return r
}

// load reads the settings and opens the log. Commands call it first.
func (a *app) load(cmd *cobra.Command) (*config.Settings, error) {
	src := config.Sources{Turbo: a.turbo, Environ: a.env.Environ, File: a.config, Home: a.env.Home, Cores: runtime.GOMAXPROCS(0), Command: cmd.Name()}
	if src.Command == "settings" || src.Command == "agent" { // judge them for every command
		src.Command = ""
	}
	if a.child != nil {
		src.Content = a.child.config
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		name, ok := a.settingFlags[f.Name]
		if f.Name == targetStorage {
			name, ok = "WALG_TARGET_STORAGE", true
		}
		if ok {
			src.Flags = append(src.Flags, config.Flag{Flag: "--" + f.Name, Setting: name, Value: f.Value.String()})
		}
	})
	s, err := config.Load(src)
	if err != nil {
		return nil, err
	}
	if err := a.openLog(cmd, s); err != nil {
		return nil, err
	}
	a.prepare(cmd, s)
	a.inForce = s
	for _, st := range s.Storages() {
		if st.Dir != "" {
			a.dirs = append(a.dirs, st.Dir)
		}
	}
	for _, n := range s.Notices() {
		a.log.Info(n)
	}
	if a.log.Enabled(cmd.Context(), slog.LevelDebug) {
		for _, v := range s.Effective() {
			a.log.Debug(fmt.Sprintf("%s = %s (%s)", v.Name, v.Value, v.Source))
		}
	}
	if !slices.ContainsFunc(a.env.Environ, func(e string) bool { return strings.HasPrefix(e, "GOMEMLIMIT=") }) {
		debug.SetMemoryLimit(s.MemoryBudget)
	}
	return s, nil
}

func (a *app) openLog(cmd *cobra.Command, s *config.Settings) error {
	out := a.env.Stderr
	if s.Log.Destination != "stderr" {
		f, err := os.OpenFile(s.Log.Destination, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("open the log WALG_LOG_DESTINATION: %w", err)
		}
		a.logFile, out = f, f
	}
	level := map[string]slog.Level{"NORMAL": slog.LevelInfo, "DEVEL": slog.LevelDebug, "ERROR": slog.LevelError}[s.Log.Level]
	about := &subject{job: strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")}
	about.backup, about.segment = aboutOf(cmd.Flags().Args())
	switch system := a.toSystem(s, level, newHandler(out, level)); {
	case system != nil:
		about.Handler = system
	case s.Log.Format == "json":
		about.Handler = slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level})
	default:
		a.log = slog.New(newHandler(out, level))
		return nil
	}
	a.log = slog.New(about)
	return nil
}
