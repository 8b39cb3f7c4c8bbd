package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/config"
	"holdfast/internal/notify"
)

// run is what people are told of a command: which job it is, and what came of it.
type run struct {
	settings *config.Settings
	job      string       // "" where nobody is told of it
	skipped  bool         // it was not this host's to do
	ping     *notify.Ping // nil for none
	started  chan error   // closed, perhaps with an error in it, once the ping has heard that the job began; nil while it has not begun
	lines    *recent      // of the log, for the ping
	printed  start        // what the command has found, for people
}

// jobOf returns what people are told of a command as: its words, without what they name of this host. "" is nothing: it only looks.
func jobOf(cmd *cobra.Command) string {
	path := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
	is := func(flag string) bool { v, err := cmd.Flags().GetBool(flag); return err == nil && v }
	words := append([]string{path}, cmd.Flags().Args()...)
	switch first, _, _ := strings.Cut(path, " "); {
	case is("dry-run"):
		return ""
	case path == "backup-push", path == "backup-merge", path == "retention apply":
		return path
	case path == "verify", path == "drill", first == "delete" && is("confirm"):
		return strings.Join(words, " ")
	case path == "wal-verify":
		slices.Sort(words[1:])
		return strings.Join(words, " ")
	case path == "ribbon" && is("check"):
		return "ribbon --check"
	case path == "check" && !cmd.Flags().Changed("submit"): // who gets passive results is told by these
		for _, flag := range []string{"only", "except"} {
			if f := cmd.Flags().Lookup(flag); f.Changed {
				words = append(words, "--"+flag, strings.Trim(f.Value.String(), "[]"))
			}
		}
		return strings.Join(words, " ")
	}
	return ""
}

// prepare notes, once the settings are known, who is to be told of this command.
func (a *app) prepare(cmd *cobra.Command, s *config.Settings) {
	r := &run{settings: s, job: jobOf(cmd)}
	first, _, _ := strings.Cut(r.job, " ")
	if url := map[string]string{"backup-push": s.Alerts.PingBackup, "verify": s.Alerts.PingVerify, "retention": s.Alerts.PingRetention, "drill": s.Alerts.PingDrill}[first]; url != "" {
		r.ping = &notify.Ping{URL: url, Style: s.Alerts.PingStyle, Options: notify.Options{Logger: a.log}}
		if a.env.Live {
			r.ping.Options.Try, r.ping.Options.Tries = hurry, 2
		}
		r.lines = &recent{}
		a.alsoTo(r.lines)
	}
	if r.job != "" && len(a.senders(s)) > 0 {
		a.env.Stdout = io.MultiWriter(a.env.Stdout, &r.printed)
	}
	a.run = r
}

// start keeps the first that is written to it.
type start struct{ bytes []byte }

// maxStart is how many bytes of what a command has printed people are told.
const maxStart = 4 << 10

// Write keeps p as far as there is room.
func (s *start) Write(p []byte) (int, error) {
	s.bytes = append(s.bytes, p[:min(len(p), maxStart-len(s.bytes))]...)
	return len(p), nil
}

// begins is called when it is settled that the job of this command is this host's to do. It does not wait for whom it tells.
func (a *app) begins(ctx context.Context) {
	r := a.run
	if r == nil || r.ping == nil || r.started != nil {
		return
	}
	r.started = make(chan error, 1)
	go func() {
		defer close(r.started)
		if err := r.ping.Start(context.WithoutCancel(ctx)); err != nil {
			r.started <- err
		}
	}()
}

// ended tells people what came of the command: that a job failed, or works again, those who do not know; a dead man's switch each time. Where they cannot be reached
// that is a warning, after a minute at most, of `check` after some seconds: the job is done, or is not, all the same.
func (a *app) ended(ctx context.Context, err error, status int) {
	r := a.run
	if r == nil || r.job == "" || r.skipped && !a.child.elsewhere() {
		return
	}
	tell, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { // somebody waits for us to end
		time.AfterFunc(hurry, func() { cancel(fmt.Errorf("no answer within %s, and this process is to end", hurry)) })
	})()
	var both sync.WaitGroup
	both.Go(func() { a.tellPeople(tell, r, err, status) })
	if !r.skipped {
		both.Go(func() { a.tellSwitch(tell, r, err) })
	}
	both.Wait()
}

// hurry is how long people are told of a command that somebody stops, or waits for; a dead man's switch twice as long where somebody typed it.
const hurry = 5 * time.Second

// tellPeople tells of a failure, or of its end.
func (a *app) tellPeople(ctx context.Context, r *run, err error, status int) {
	if errors.As(err, new(*warning)) {
		return
	}
	e := newEvent(r.settings, r.job)
	e.Status = status
	switch {
	case err != nil:
		e.Result, e.Summary = notify.Failed, firstLine(err)
		e.Detail = strings.TrimSpace(a.explain(err) + "\n\n" + string(r.printed.bytes))
	case r.skipped:
		e.Result, e.Summary = notify.Recovered, cmp.Or(a.child.end.Host, "another host")+" has done it"
	default:
		e.Result, e.Summary = notify.Recovered, "it has succeeded"
	}
	patience := notify.Options{Logger: a.log}
	if first, _, _ := strings.Cut(r.job, " "); first == "check" { // monitoring waits for it, and who was not told now is told by the next
		patience.Within = hurry
	}
	a.inform(ctx, r.settings, r.job, &e, r.settings.Alerts.Repeat, patience)
}

// always is how often those are told of something bad who know of another one like it.
const always = time.Duration(0)

// inform tells of e, which it completes, those who do not know: of something bad who was not told of it, or as long ago as repeat, of a recovery who was. What this host remembers of that it
// remembers of the subject about. It reports whether somebody has heard it, or nobody was to.
func (a *app) inform(ctx context.Context, s *config.Settings, about string, e *notify.Event, repeat time.Duration, patience notify.Options) bool {
	senders := a.senders(s)
	if len(senders) == 0 {
		return true
	}
	state := a.told(s, about)
	var due []notify.Sender
	if e.Result != notify.Recovered {
		due = state.Fail(e, senders, repeat)
	} else if due = state.Work(e, senders); len(due) > 0 {
		e.Summary += fmt.Sprintf(", after it had failed since %s", e.Since.UTC().Format("2006-01-02 15:04:05Z"))
	}
	return a.hears(ctx, s, about, &state, due, *e, patience)
}

// informAgain tells everybody of something bad that inform has counted, and that nobody has heard of.
func (a *app) informAgain(ctx context.Context, s *config.Settings, about string, e notify.Event, patience notify.Options) bool {
	state := a.told(s, about)
	return a.hears(ctx, s, about, &state, a.senders(s), e, patience)
}

// hears tells those who are due, and remembers who has heard it. It reports whether somebody has, or nobody was due.
func (a *app) hears(ctx context.Context, s *config.Settings, about string, state *notify.State, due []notify.Sender, e notify.Event, patience notify.Options) bool {
	answers := a.deliver(ctx, due, e, patience)
	state.Heard(&e, answers)
	path, err := alertFile(s, about)
	if err == nil { // otherwise that was said
		if err := state.Save(path); err != nil {
			a.log.Warn(fmt.Sprintf("who was told what of %s is not kept: %v", about, err))
		}
	}
	return len(answers) == 0 || slices.ContainsFunc(answers, func(one notify.Answer) bool { return one.Err == nil })
}

// told is what this host remembers of whom it has told what of the subject about.
func (a *app) told(s *config.Settings, about string) (state notify.State) {
	path, err := alertFile(s, about)
	if err == nil {
		state, err = notify.LoadState(path)
	}
	if err != nil {
		a.log.Warn(fmt.Sprintf("who was told what of %s is not known: %v", about, err))
	}
	return state
}

// deliver tells all of due, and logs who could not be told.
func (a *app) deliver(ctx context.Context, due []notify.Sender, e notify.Event, patience notify.Options) []notify.Answer {
	answers := notify.Deliver(ctx, due, e, patience)
	for _, one := range answers {
		if one.Err != nil {
			a.log.Warn(fmt.Sprintf("could not tell %s that %s %s: %v", one.Sender, e.Job, e.Result.Words(), one.Err))
		}
	}
	return answers
}

// tellSwitch tells the dead man's switch.
func (a *app) tellSwitch(ctx context.Context, r *run, err error) {
	if r.ping == nil {
		return
	}
	if a.env.Live {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, 2*hurry, fmt.Errorf("no answer within %s", 2*hurry))
		defer cancel()
	}
	if r.started != nil {
		select {
		case err := <-r.started:
			if err != nil {
				a.log.Debug("the ping does not know that the job began", "error", err)
			}
		case <-ctx.Done():
			a.log.Warn(fmt.Sprintf("could not ping: %v", context.Cause(ctx)))
			return
		}
	}
	report := r.job + " succeeded on " + hostOf(r.settings) + "\n" + r.lines.String()
	tell := r.ping.Done
	if err != nil {
		report, tell = r.job+" failed on "+hostOf(r.settings)+"\n"+a.explain(err)+"\n"+r.lines.String(), r.ping.Fail
	}
	if err := tell(ctx, report); err != nil {
		a.log.Warn(fmt.Sprintf("could not ping: %v", err))
	}
}

// senders returns all who are told of failures.
func (a *app) senders(s *config.Settings) (all []notify.Sender) {
	c := &s.Alerts
	if c.Slack != "" {
		all = append(all, &notify.Slack{URL: c.Slack})
	}
	if c.Webhook != "" {
		all = append(all, &notify.Webhook{URL: c.Webhook, Secret: c.WebhookSecret})
	}
	if c.MailTo != "" {
		all = append(all, &notify.Mail{Server: c.MailServer, User: c.MailUser, Password: c.MailPassword, From: c.MailFrom, To: c.MailTo})
	}
	if c.Command != "" {
		secret := config.Secrets()
		env := slices.DeleteFunc(slices.Clone(a.env.Environ), func(e string) bool { name, _, _ := strings.Cut(e, "="); return secret[name] })
		all = append(all, &notify.Command{Line: c.Command, Env: env})
	}
	return all
}

// newEvent returns what every event of this host has.
func newEvent(s *config.Settings, job string) notify.Event {
	return notify.Event{Job: job, Host: hostOf(s), Cluster: cmp.Or(s.Alerts.Cluster, s.Location()), At: time.Now().UTC().Truncate(time.Millisecond), Link: s.Alerts.Link}
}

// hostOf is what people call this host.
func hostOf(s *config.Settings) string {
	name, err := leaseHost(s)
	if err != nil {
		return "a host without a name"
	}
	return name
}

// alertFile is where this host remembers who was told what of a job.
func alertFile(s *config.Settings, job string) (string, error) {
	dir, err := stateDir(s)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "alerts")
	return filepath.Join(dir, short(job+"\n"+s.Target)+".json"), os.MkdirAll(dir, 0o700)
}

// firstLine is the first thing that went wrong.
func firstLine(err error) string {
	text, _, _ := strings.Cut(parts(err)[0].Error(), "\n")
	return text
}

func (a *app) alert() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "alert COMMAND",
		Short: "Try whether those who are to hear of failures can be reached",
		Long: "With HOLDFAST_ALERT_SLACK, HOLDFAST_ALERT_WEBHOOK, HOLDFAST_ALERT_MAIL_TO or HOLDFAST_ALERT_COMMAND set people are told when one of these fails, and once when it works\n" +
			"again: backup-push, backup-merge, `retention apply`, delete (with --confirm), verify, drill, wal-verify, `ribbon --check` and check. docs/operations.md says more.",
		Example: "  holdfast alert test",
		Args:    cobra.ArbitraryArgs,
		RunE:    a.onlyBelow("it is `alert test`"),
	}
	cmd.AddCommand(a.alertTest())
	return cmd
}

func (a *app) alertTest() *cobra.Command {
	return &cobra.Command{
		Use:   "test",
		Short: "Send a test message to each of them",
		Long: "Sends an event that says it is a test to each that is set, and prints what each answered. Dead man's switches (HOLDFAST_PING_…) are not touched: they are told only\n" +
			"what is so.\n\n" +
			"Exit status: 0 all have it; 1 one has not, or none is set.",
		Example: "  holdfast alert test",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			senders := a.senders(s)
			if len(senders) == 0 {
				return &advised{errors.New("nobody is told when something fails"), "set HOLDFAST_ALERT_SLACK, HOLDFAST_ALERT_WEBHOOK, HOLDFAST_ALERT_MAIL_TO or HOLDFAST_ALERT_COMMAND"}
			}
			e := newEvent(s, "alert test")
			e.Result, e.Test, e.Summary = notify.Succeeded, true, "this is a test of alerts; nothing is wrong"
			var failed []error
			for _, one := range notify.Deliver(cmd.Context(), senders, e, notify.Options{Within: 20 * time.Second, Logger: a.log}) {
				if one.Err != nil {
					failed = append(failed, fmt.Errorf("%s: %w", one.Sender, one.Err))
					continue
				}
				if _, err := fmt.Fprintf(a.env.Stdout, "%-8s has it: %s\n", one.Sender, one.Said); err != nil {
					return err
				}
			}
			return errors.Join(failed...)
		},
	}
}
