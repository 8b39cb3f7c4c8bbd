package metrics_test

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/internal/metrics"
	"holdfast/test/golden"
)

func TestDocsAreCurrent(t *testing.T) {
	golden.Same(t, "../../docs/metrics.md", markdown(), "make docs")
}

// markdown is docs/metrics.md.
func markdown() string {
	var b strings.Builder
	b.WriteString("# Metrics\n\nMade by `make docs` from the table in internal/metrics. Times are seconds since 1970, and are not there where they are not known. Ages are of the moment\n" +
		"they are asked for. How to get them to Prometheus, and what to do about an alert, is in [operations.md](operations.md#metrics-and-alerts).\n")
	for _, s := range []struct {
		of    metrics.Section
		title string
		text  string
	}{
		{metrics.Holding, "What the archive holds", "Told by `holdfast metrics` and by the agent, which has it looked at every HOLDFAST_AGENT_INTERVAL."},
		{metrics.Jobs, "What jobs came to", "Told by each run of backup-push, backup-fetch, backup-merge, catchup-push, copy, delete (with `--confirm`), `retention apply`, verify and wal-verify at its end, whether it\n" +
			"went well or not: to HOLDFAST_PUSHGATEWAY and to a file in HOLDFAST_METRICS_TEXTFILE_DIR. `operation` is the command. Where it was another host's to do nothing is told. The agent tells of the jobs that it has had run since it was started."},
		{metrics.Agents, "What is to be done when", "Told by `holdfast agent`. `schedule` is what HOLDFAST_SCHEDULE_… calls it: backup, full, retention, verify, check."},
		{metrics.Storing, "What was done with the store", "Told by `holdfast metrics` and to the Pushgateway, each time what that process did; by the agent what all that it has started did."},
		{metrics.Built, "The program", "Told by both, but in no file of a job. The agent and `holdfast metrics --listen` also have what Go and the kernel say of the process: `go_goroutines`, `process_resident_memory_bytes` and more."},
		{metrics.Exposed, "The names of WAL-G's exporter", "Told by `holdfast metrics`, so that dashboards keep working."},
	} {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| name | labels | kind | |\n|---|---|---|---|\n", s.title, s.text)
		for _, f := range metrics.Figures() {
			if f.Section != s.of {
				continue
			}
			kind := "gauge"
			switch {
			case f.Counter:
				kind = "counter"
			case strings.HasSuffix(f.Help, "A histogram."):
				kind = "histogram"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Name, strings.Join(f.Labels, ", "), kind, f.Help)
		}
	}
	b.WriteString("\n## StatsD\n\nWith WALG_STATSD_ADDRESS set each command sends at its end, also where it failed: the counters `walg_uploader_uploaded_files_total` and\n" +
		"`walg_uploader_uploaded_files_failed_total`, the gauges `walg_s3_bytes_written` and `walg_s3_bytes_read` (of whatever kind the store is), and the timing\n" +
		"`walg_s3_upload_time`, the mean of its uploads; jobs also the counters `holdfast_job_succeeded` or `holdfast_job_failed` and the timing\n" +
		"`holdfast_job_duration`. WAL-G's `walg_s3_response_{code}` is not sent. WALG_STATSD_EXTRA_TAGS stand behind each name as InfluxDB has it: `name,tag=value`.\n")
	return b.String()
}
