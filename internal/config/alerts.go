package config

import (
	"encoding/base64"
	"errors"
	"net/mail"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Alerts says who is told when a job fails, and when it works again.
type Alerts struct {
	Slack         string        // secret address, "" for none; HOLDFAST_ALERT_SLACK
	Webhook       string        // likewise; HOLDFAST_ALERT_WEBHOOK
	WebhookSecret string        // of its signature, "" for none; HOLDFAST_ALERT_WEBHOOK_SECRET
	MailTo        string        // addresses with commas between them, "" for none; HOLDFAST_ALERT_MAIL_TO
	MailFrom      string        // HOLDFAST_ALERT_MAIL_FROM
	MailServer    string        // smtp://host:port or smtps://host:port; HOLDFAST_ALERT_MAIL_SERVER
	MailUser      string        // "" logs in to nothing; HOLDFAST_ALERT_MAIL_USER
	MailPassword  string        // HOLDFAST_ALERT_MAIL_PASSWORD
	Command       string        // line of the shell, "" for none; HOLDFAST_ALERT_COMMAND
	Repeat        time.Duration // how often who knows that a job fails is told again; HOLDFAST_ALERT_REPEAT
	Cluster       string        // name for people, "" for the archive's location; HOLDFAST_ALERT_CLUSTER
	Link          string        // HOLDFAST_ALERT_LINK

	PingBackup, PingVerify, PingRetention, PingDrill string // secret addresses of dead man's switches, "" for none; HOLDFAST_PING_…
	PingStyle                                        string // healthchecks or snitch; HOLDFAST_PING_STYLE
}

// Secrets returns the names under which the environment may hold a secret, those of files with secrets not among them.
func Secrets() map[string]bool {
	names := map[string]bool{}
	for _, s := range Table(1) {
		if s.Secret {
			for _, n := range s.Names() {
				names[n] = true
			}
		}
	}
	return names
}

// alerts says what does not go together.
func (s *Settings) alerts(is func(setting string) bool, wrong func(setting, why, do string)) {
	if is("HOLDFAST_ALERT_MAIL_TO") {
		for _, m := range []string{"HOLDFAST_ALERT_MAIL_FROM", "HOLDFAST_ALERT_MAIL_SERVER"} {
			if !is(m) {
				wrong("HOLDFAST_ALERT_MAIL_TO", m+" is not set", "set it, or tell people in another way")
			}
		}
	}
	for _, m := range []string{"HOLDFAST_ALERT_MAIL_FROM", "HOLDFAST_ALERT_MAIL_SERVER", "HOLDFAST_ALERT_MAIL_USER", "HOLDFAST_ALERT_MAIL_PASSWORD"} {
		if is(m) && !is("HOLDFAST_ALERT_MAIL_TO") {
			wrong(m, "HOLDFAST_ALERT_MAIL_TO is not set, so that nobody gets mail", "set it, or unset this")
		}
	}
	if is("HOLDFAST_ALERT_MAIL_USER") != is("HOLDFAST_ALERT_MAIL_PASSWORD") {
		one, other := "HOLDFAST_ALERT_MAIL_USER", "HOLDFAST_ALERT_MAIL_PASSWORD"
		if is(other) {
			one, other = other, one
		}
		wrong(one, other+" is not set", "set both, or neither where the server takes mail without a login")
	}
	if is("HOLDFAST_ALERT_WEBHOOK_SECRET") && !is("HOLDFAST_ALERT_WEBHOOK") {
		wrong("HOLDFAST_ALERT_WEBHOOK_SECRET", "HOLDFAST_ALERT_WEBHOOK is not set", "set it, or unset this")
	}
	if is("HOLDFAST_LOG_TO") && s.Log.To != "stderr" && s.Log.Destination != "stderr" {
		wrong("HOLDFAST_LOG_TO", "WALG_LOG_DESTINATION names a file, and the log goes to one place", "keep one of them")
	}
}

// hook checks an address to which something is posted.
func hook(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" {
		return errors.New("must be the address of a web server: https://host/path")
	}
	return nil
}

// hookSecret checks a secret that signs.
func hookSecret(text string) error {
	if coded, ok := strings.CutPrefix(text, "whsec_"); ok {
		if key, err := base64.StdEncoding.DecodeString(coded); err != nil || len(key) == 0 {
			return errors.New("must be base64 behind whsec_")
		}
	}
	return nil
}

// mailAddress checks who sends mail.
func mailAddress(text string) error {
	if _, err := mail.ParseAddress(text); err != nil {
		return errors.New("must be an address: backup@example.com")
	}
	return nil
}

// mailAddresses checks who gets mail.
func mailAddresses(text string) error {
	if _, err := mail.ParseAddressList(text); err != nil {
		return errors.New("must be addresses with commas between them: dba@example.com, ops@example.com")
	}
	return nil
}

// mailServer checks who takes mail.
func mailServer(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "smtp" && u.Scheme != "smtps" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "" {
		return errors.New("must be smtp://host:port or smtps://host:port; user and password are settings of their own")
	}
	return nil
}

// logTo checks where the log goes.
func logTo(text string) error {
	name, socket, at := strings.Cut(text, ":")
	if !slices.Contains([]string{"stderr", "syslog", "journald"}, name) || at && (name == "stderr" || absolutePath(socket) != nil) {
		return errors.New("must be stderr, syslog or journald; behind one of the latter may be a colon and the path of its socket")
	}
	return nil
}
