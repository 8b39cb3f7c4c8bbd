package cli_test

import (
	"testing"

	"holdfast/internal/cli"
	"holdfast/internal/config"
)

// doctor says that nobody would hear of backups that fail until something is set by which somebody would; what tells of other jobs alone is none of it.
func TestWhoHearsOfBackups(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(s *config.Settings)
		heard bool
	}{
		"nothing":                  {func(*config.Settings) {}, false},
		"HOLDFAST_PING_VERIFY":     {func(s *config.Settings) { s.Alerts.PingVerify = "https://ping.example/1" }, false},
		"HOLDFAST_PING_DRILL":      {func(s *config.Settings) { s.Alerts.PingDrill = "https://ping.example/1" }, false},
		"HOLDFAST_PING_RETENTION":  {func(s *config.Settings) { s.Alerts.PingRetention = "https://ping.example/1" }, false},
		"HOLDFAST_SCHEDULE_VERIFY": {func(s *config.Settings) { s.Agent.Verify = "0 4 * * *" }, false},
		"HOLDFAST_SCHEDULE_DRILL":  {func(s *config.Settings) { s.Agent.Drill = "0 4 * * *" }, false},
		"a schedule that is off":   {func(s *config.Settings) { s.Agent.Backup, s.Agent.Full = "off", "off" }, false},
		"HOLDFAST_PING_BACKUP":     {func(s *config.Settings) { s.Alerts.PingBackup = "https://ping.example/1" }, true},
		"HOLDFAST_SCHEDULE_BACKUP": {func(s *config.Settings) { s.Agent.Backup = "0 3 * * *" }, true},
		"HOLDFAST_SCHEDULE_FULL":   {func(s *config.Settings) { s.Agent.Full = "0 3 * * 0" }, true},
		"HOLDFAST_ALERT_WEBHOOK":   {func(s *config.Settings) { s.Alerts.Webhook = "https://hook.example/1" }, true},
		"HOLDFAST_PUSHGATEWAY":     {func(s *config.Settings) { s.Metrics.Pushgateway = "http://gateway.example" }, true},
		"WALG_STATSD_ADDRESS":      {func(s *config.Settings) { s.Metrics.StatsD = "localhost:8125" }, true},
		"metrics in a file":        {func(s *config.Settings) { s.Metrics.TextfileDir = "/srv/metrics" }, true},
		"a ping of another and its": {func(s *config.Settings) {
			s.Alerts.PingVerify, s.Alerts.PingBackup = "https://ping.example/1", "https://ping.example/2"
		}, true},
	} {
		var s config.Settings
		c.set(&s)
		if got := cli.Unheard(&s) == ""; got != c.heard {
			t.Errorf("%s: silent %v, want %v", name, got, c.heard)
		}
	}
}
