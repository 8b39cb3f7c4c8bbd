package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/internal/check"
)

func (a *app) doctor() *cobra.Command {
	var o checkFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong with archive and server, and what to type next",
		Long: "Makes the checks of `check` and tells what it found for people: first what is not well, the gravest first, each with the next command to type; then what could\n" +
			"not be judged; then what is fine. Last, where the settings name nobody who would hear that backups fail, that.\n\n" + checkGathers + checkStatuses,
		Example: "  PGDATA=/var/lib/postgresql/17/main holdfast doctor",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.runChecks(cmd, &o)
			if err != nil {
				return &exit{err, int(check.Unknown)}
			}
			if o.json {
				err = a.printJSON(r)
			} else {
				text := diagnosis(r)
				if len(o.only) == 0 {
					text += a.unheard()
				}
				_, err = fmt.Fprint(a.env.Stdout, text)
			}
			if err != nil {
				return err
			}
			return checkStatus(r)
		},
	}
	o.add(cmd)
	a.usageIsUnknown(cmd)
	return cmd
}

// unheard is a line for people where the settings have neither a schedule of backups nor anybody who would hear that they fail; "" where they have.
func (a *app) unheard() string {
	s := a.inForce
	for _, set := range []string{s.Agent.Backup, s.Agent.Full} {
		if set != "" && set != "off" {
			return "" // its agent serves metrics, and shows what it does
		}
	}
	to := []string{s.Alerts.PingBackup, s.Metrics.Pushgateway, s.Metrics.TextfileDir, s.Metrics.StatsD}
	if len(a.senders(s)) > 0 || slices.ContainsFunc(to, func(address string) bool { return address != "" }) {
		return ""
	}
	return "\nhint: by these settings nobody would hear if backups failed or were not made: set HOLDFAST_ALERT_…, HOLDFAST_PING_BACKUP or HOLDFAST_SCHEDULE_BACKUP (docs/operations.md)\n"
}

// diagnosis is a report in sentences.
func diagnosis(r *check.Report) string {
	var b strings.Builder
	const indent = "          "
	show := func(head, word string, wanted func(check.Finding) bool) {
		for _, f := range r.Findings {
			if !wanted(f) {
				continue
			}
			if head != "" {
				if b.Len() > 0 {
					b.WriteByte('\n')
				}
				b.WriteString(head + "\n")
				head = ""
			}
			wrap(&b, fmt.Sprintf("%-10s", word), indent, f.Check+": "+f.Text)
			if f.Next != "" {
				wrap(&b, indent+"next: ", indent, f.Next)
			}
		}
	}
	is := func(s check.Status) func(check.Finding) bool {
		return func(f check.Finding) bool { return f.Status == s && f.Follows == "" && !f.Skipped }
	}
	show("", "CRITICAL", is(check.Critical))
	show("", "UNKNOWN", is(check.Unknown))
	show("", "WARNING", is(check.Warning))
	show("Not known because of that:", "", func(f check.Finding) bool { return f.Follows != "" })
	show("Fine:", "", is(check.OK))
	show("Not judged here:", "", func(f check.Finding) bool { return f.Skipped })
	if r.Status == check.OK {
		return "All is well.\n\n" + b.String()
	}
	return b.String()
}
