// Package metrics_test runs the holdfast program beside Prometheus, its Pushgateway, Alertmanager and promtool, as Debian has them, and holds what lies in deploy
// against them.
package metrics_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/metrics"
	"holdfast/test/pgtest"
)

const deploy = "../../deploy/"

// run runs a program and returns what it printed; an exit status other than 0 is a failure unless mayFail.
func run(t *testing.T, mayFail bool, env []string, stdin, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil && !mayFail {
		t.Fatalf("%s %s: %v\n%s", program, args, err, out)
	}
	return string(out)
}

func TestRulesFireWhenTheyShould(t *testing.T) {
	promtool := pgtest.Program(t, "promtool")
	t.Log(run(t, false, nil, "", promtool, "check", "rules", deploy+"prometheus/holdfast.rules.yml"))
	t.Log(run(t, false, nil, "", promtool, "test", "rules", deploy+"prometheus/holdfast.rules.test.yml"))
}

// names are those of all metrics that text speaks of.
func names(text string) []string {
	all := regexp.MustCompile(`\b(holdfast|walg)_[a-z_0-9]+\b`).FindAllString(text, -1)
	slices.Sort(all)
	return slices.Compact(all)
}

// dashboard returns the queries of the dashboard.
func dashboard(t *testing.T) (queries []string) {
	t.Helper()
	text, err := os.ReadFile(deploy + "grafana/holdfast.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
		Annotations struct{ List []struct{ Expr string } }
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			queries = append(queries, q.Expr)
		}
	}
	for _, a := range d.Annotations.List {
		queries = append(queries, a.Expr)
	}
	if len(queries) < 20 {
		t.Fatalf("%d queries", len(queries))
	}
	return queries
}

// Dashboard and rules speak of metrics that there are.
func TestDeployedFilesKnowTheMetrics(t *testing.T) {
	known := map[string]bool{}
	for _, f := range metrics.Figures() {
		known[f.Name] = true
		if strings.HasSuffix(f.Name, "_duration_seconds") {
			known[f.Name+"_bucket"] = true
		}
	}
	text, err := os.ReadFile(deploy + "prometheus/holdfast.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names(strings.Join(append(dashboard(t), string(text)), "\n")) {
		if !known[name] {
			t.Errorf("there is no metric %s", name)
		}
	}
}

// Prometheus can parse the dashboard's queries.
func TestDashboardQueries(t *testing.T) {
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for i, q := range dashboard(t) {
		q = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$job", ".*").Replace(q)
		fmt.Fprintf(&rules, "  - record: query:%d\n    expr: %q\n", i, q)
	}
	file := filepath.Join(t.TempDir(), "queries.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, false, nil, "", pgtest.Program(t, "promtool"), "check", "rules", file)
}

// serve starts a server that answers at url when it is ready, and stops it with the test.
func serve(t *testing.T, url string, env []string, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	log, err := os.Create(filepath.Join(t.TempDir(), filepath.Base(program)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // that it has ended already shows below
		err := cmd.Wait()
		text, _ := os.ReadFile(log.Name()) // for the log only
		_ = log.Close()
		if err != nil || t.Failed() {
			t.Errorf("%s: %v\n%s", program, err, text)
		}
	})
	pgtest.Answers(t, url)
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // only read
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", url, resp.Status, err, b)
	}
	return string(b)
}

// What `holdfast metrics` prints is text that Prometheus' own linter takes; names of WAL-G are as they are.
func TestOutputIsSound(t *testing.T) {
	promtool := pgtest.Program(t, "promtool")
	holdfast := pgtest.Build(t, "holdfast/cmd/holdfast")
	text := run(t, false, []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOME=" + t.TempDir()}, "", holdfast, "metrics")
	var ours []string
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "walg_") {
			ours = append(ours, line)
		}
	}
	if out := run(t, false, nil, strings.Join(ours, ""), promtool, "check", "metrics"); out != "" {
		t.Error(out)
	}
}

// people is a webhook that alerts are delivered to; it returns its address and what came: the status of each alert, its name and job.
func people(t *testing.T) (string, <-chan string) {
	came := make(chan string, 1000)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var message struct {
			Alerts []struct {
				Status string
				Labels map[string]string
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&message); err != nil {
			t.Error(err)
		}
		for _, a := range message.Alerts {
			came <- a.Status + " " + a.Labels["alertname"] + " " + a.Labels["operation"]
		}
	}))
	t.Cleanup(hook.Close)
	return hook.URL, came
}

// monitoring is Prometheus with rules, and Alertmanager, which tells people.
type monitoring struct {
	ask  string // address of Prometheus
	came <-chan string
}

// monitor starts both. Scrape says of each job of Prometheus where it finds what.
func monitor(t *testing.T, rules string, scrape map[string]string) *monitoring {
	t.Helper()
	prometheus, manager := pgtest.Program(t, "prometheus"), pgtest.Program(t, "prometheus-alertmanager")
	dir := t.TempDir()
	ask, alert := pgtest.Address(t), pgtest.Address(t)
	hook, came := people(t)
	config := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nalerting: {alertmanagers: [{static_configs: [{targets: [%q]}]}]}\nscrape_configs:\n", rules, alert)
	for job, target := range scrape {
		config += fmt.Sprintf("  - {job_name: %s, honor_labels: true, static_configs: [{targets: [%q]}]}\n", job, target)
	}
	routes := fmt.Sprintf(`route: {receiver: people, group_by: [alertname], group_wait: 1s, group_interval: 1s}
receivers:
  - {name: people, webhook_configs: [{url: %q, send_resolved: true}]}
`, hook)
	err1 := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o644)
	err2 := os.WriteFile(filepath.Join(dir, "alertmanager.yml"), []byte(routes), 0o644)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	serve(t, "http://"+alert+"/-/ready", nil, manager, "--config.file="+filepath.Join(dir, "alertmanager.yml"), "--storage.path="+filepath.Join(dir, "alerts"), "--web.listen-address="+alert, "--cluster.listen-address=")
	serve(t, "http://"+ask+"/-/ready", nil, prometheus, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "tsdb"), "--web.listen-address="+ask)
	return &monitoring{ask, came}
}

// hears waits until people heard of something.
func (m *monitoring) hears(t *testing.T, what string) {
	t.Helper()
	for deadline := time.After(2 * time.Minute); ; {
		select {
		case got := <-m.came:
			if got == what {
				return
			}
		case <-deadline:
			t.Fatalf("nobody heard of %s", what)
		}
	}
}

// holds reports whether a query has a result.
func (m *monitoring) holds(t *testing.T, query string) bool {
	t.Helper()
	var answer struct{ Data struct{ Result []any } }
	text := get(t, "http://"+m.ask+"/api/v1/query?query="+url.QueryEscape(query))
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatal(err)
	}
	return len(answer.Data.Result) > 0
}

// A job fails and an alert reaches people; it succeeds and they hear of that. What was known of the last success stays meanwhile.
func TestAFailureReachesPeople(t *testing.T) {
	gateway := pgtest.Program(t, "prometheus-pushgateway")
	holdfast := pgtest.Build(t, "holdfast/cmd/holdfast")
	dir := t.TempDir()
	archive, broken := filepath.Join(dir, "archive"), filepath.Join(dir, "broken")
	if err := os.Mkdir(archive, 0o755); err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs(deploy + "prometheus/holdfast.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	push, scrape := pgtest.Address(t), pgtest.Address(t)
	env := []string{"WALG_FILE_PREFIX=" + archive, "HOME=" + dir, "HOLDFAST_PUSHGATEWAY=http://" + push, "HOLDFAST_PUSHGATEWAY_LABELS=tier=gold"}
	serve(t, "http://"+push+"/-/ready", nil, gateway, "--web.listen-address="+push)
	serve(t, "http://"+scrape+"/metrics", env, holdfast, "metrics", "-web.listen-address", scrape, "-backup-list.scrape-interval=1s")
	m := monitor(t, rules, map[string]string{"pushgateway": push, "holdfast": scrape})
	hears, holds := func(what string) { t.Helper(); m.hears(t, what) }, func(query string) bool { t.Helper(); return m.holds(t, query) }
	const failed = `ALERTS{alertname="HoldfastJobFailed",alertstate="firing",operation="retention",job="holdfast",type="retention",tier="gold"}`
	const scraped = `holdfast_archive_up{job="holdfast"} == 1 and on () process_resident_memory_bytes{job="holdfast"} > 0`

	run(t, false, env, "", holdfast, "retention", "apply")
	pgtest.Eventually(t, "both are scraped", func() bool { return holds(scraped) && holds(`holdfast_job_succeeded{tier="gold"} == 1`) })
	if holds(failed) {
		t.Error("an alert fires though the job succeeded")
	}
	success := regexp.MustCompile(`(?m)^holdfast_job_last_success_timestamp_seconds\{.*$`)
	before := success.FindString(get(t, "http://"+push+"/metrics"))
	if before == "" {
		t.Fatal("the Pushgateway knows of no success")
	}

	if err := os.Rename(archive, broken); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if out := run(t, true, env, "", holdfast, "retention", "apply"); !strings.Contains(out, "ERROR") || strings.Contains(out, "monitoring") {
		t.Errorf("without an archive retention apply says %s", out)
	}
	pgtest.Eventually(t, "the alert fires", func() bool { return holds(failed) })
	t.Logf("the alert fired %s after the job had begun", time.Since(began).Round(10*time.Millisecond))
	hears("firing HoldfastJobFailed retention")
	pgtest.Eventually(t, "the archive is seen to be away", func() bool { return holds(`holdfast_archive_up == 0`) })
	if after := success.FindString(get(t, "http://"+push+"/metrics")); after != before {
		t.Errorf("a failure made of the last success, %s, %s", before, after)
	}

	if err := os.Rename(broken, archive); err != nil {
		t.Fatal(err)
	}
	run(t, false, env, "", holdfast, "retention", "apply")
	pgtest.Eventually(t, "the alert goes", func() bool { return !holds(failed) && holds(`holdfast_job_succeeded{tier="gold"} == 1`) })
	hears("resolved HoldfastJobFailed retention")
	pgtest.Eventually(t, "the archive is seen again", func() bool { return holds(`holdfast_archive_up == 1`) })
}

// A Pushgateway that takes the connection and never answers delays a job by a few seconds, and fails nothing.
func TestADeadPushgatewayDelaysLittle(t *testing.T) {
	holdfast := pgtest.Build(t, "holdfast/cmd/holdfast")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nothing is ever accepted
	dir := t.TempDir()
	env := []string{"WALG_FILE_PREFIX=" + dir, "HOME=" + dir, "HOLDFAST_PUSHGATEWAY=http://me:hush@" + l.Addr().String()}
	out := run(t, false, env, "", holdfast, "retention", "apply")
	if strings.Count(out, "WARNING") != 1 || !strings.Contains(out, "monitoring was not told: Pushgateway: ") || strings.Contains(out, "hush") {
		t.Error(out)
	}
}
