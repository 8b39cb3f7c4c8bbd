package metrics_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"holdfast/internal/metrics"
	"holdfast/internal/store/meter"
	"holdfast/internal/store/storetest"
)

// at returns a moment of one day, in seconds.
func at(s int) time.Time { return time.Unix(1_700_000_000+int64(s), 0) }

func now() time.Time { return at(100_000) }

// all is an archive of which everything there is to say is known.
func all() metrics.Archive {
	return metrics.Archive{
		Looked: at(99_990), Took: time.Second,
		Backups: []metrics.Backup{
			{Name: "base_1", Kind: "full", Segment: "000000010000000000000001", PostgreSQL: 170004, StartLSN: "0/1000028", FinishLSN: "0/1000130", Started: at(10), Finished: at(20),
				Size: 1000, Stored: 300, Permanent: true, Verified: at(500), Proven: at(600)},
			{Name: "base_2_D_1", Kind: "delta", DeltaOrigin: "base_1", Started: at(1010), Finished: at(1020), Size: 100, Stored: 30, Verified: at(400), ProofFailed: at(700)},
			{Name: "base_3", Kind: "full", Started: at(2010), Finished: at(2020), Broken: true},
			{Name: "base_4", Kind: "merged", Started: at(1010), Finished: at(1020), Condemned: true},
			{Name: "base_5", Kind: "full", Started: at(3010), Finished: at(3020), Damaged: true},
			{Name: "bad\xff", Kind: "full"},
		},
		Storages:  []metrics.Storage{{Name: "default", Up: true, Latency: 20 * time.Millisecond}, {Name: "far"}},
		NewestWAL: at(99_900), Until: at(99_880), From: at(20), Status: 1, Holes: 2, Missing: 17, Unknown: 3,
		Check: &metrics.WALCheck{Integrity: metrics.OK, Timeline: metrics.Failure}, CheckTook: 2 * time.Second, TimelineOK: map[uint32]bool{1: true, 26: false},
		Waiting: &metrics.Waiting{Segments: 4, Bytes: 64 << 20, Since: at(99_950), Free: 1 << 30},
		Leases:  map[string]string{"backup-push": "db3"},
	}
}

// scheduled is an agent that has something to do.
func scheduled() metrics.Agent {
	return metrics.Agent{
		Jobs:     []metrics.Scheduled{{Name: "backup", Next: at(200_000), LastDone: at(90_000), Running: true, Missed: 2}, {Name: "verify"}},
		Services: []metrics.Service{{Name: "daemon", Up: true, Restarts: 3}},
	}
}

func job() metrics.Job {
	return metrics.Job{Name: "backup-push", Result: metrics.Succeeded, Start: at(0), End: at(50), Read: 5000, Stored: 1000, Phases: map[string]float64{"copy": 40, "commit": 1.5}, PeakMemory: 99}
}

// counted has had calls of every kind, one of them failing.
func counted(t *testing.T) *meter.Counters {
	t.Helper()
	var c meter.Counters
	s := meter.New(&storetest.Memory{}, &c)
	if err := s.Put(t.Context(), "a", strings.NewReader("12345")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "../a", strings.NewReader("")); err == nil {
		t.Fatal("a bad name is taken")
	}
	r, err := s.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return &c
}

func text(t *testing.T, r *metrics.Registry) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func full(t *testing.T) *metrics.Registry {
	r := metrics.New(metrics.Options{Release: "v1", Revision: "abc", Store: counted(t), Agent: scheduled, Now: now})
	r.SetArchive(all())
	r.SetJob(job())
	return r
}

// Of several jobs each is told, and of one that failed also its last success.
func TestWhatSeveralJobsCameTo(t *testing.T) {
	r := metrics.New(metrics.Options{Now: now})
	r.SetJob(job())
	r.SetJob(metrics.Job{Name: "verify", Result: metrics.Failed, Start: at(1), End: at(2), ExitStatus: 2})
	failed := job()
	failed.Result, failed.End, failed.ExitStatus = metrics.Failed, at(90), 1
	r.SetJob(failed)
	got := text(t, r)
	for _, line := range []string{
		`holdfast_job_succeeded{operation="backup-push"} 0`, `holdfast_job_succeeded{operation="verify"} 0`, `holdfast_job_end_timestamp_seconds{operation="backup-push"} 1.70000009e+09`,
		`holdfast_job_last_success_timestamp_seconds{operation="backup-push"} 1.70000005e+09`, `holdfast_job_last_success_read_bytes{operation="backup-push"} 5000`,
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no %s in\n%s", line, got)
		}
	}
	if strings.Contains(got, `holdfast_job_last_success_timestamp_seconds{operation="verify"}`) {
		t.Errorf("a job that never succeeded has succeeded:\n%s", got)
	}
	r.SetJob(metrics.Job{Name: "backup-push", Result: metrics.Skipped})
	if got := text(t, r); strings.Contains(got, `"backup-push"`) {
		t.Errorf("another host has done it, and it has failed still:\n%s", got)
	}
}

// Each figure has a sample where all is known, and there is no sample that is not among the figures.
func TestFiguresAreThoseThatAreTold(t *testing.T) {
	got := text(t, full(t))
	told := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(got, -1) {
		told[m[1]] = true
	}
	for _, f := range metrics.Figures() {
		if !told[f.Name] {
			t.Errorf("%s is never told", f.Name)
		}
		delete(told, f.Name)
	}
	if len(told) > 0 {
		t.Errorf("told and no figures: %v", told)
	}
}

func TestArchiveIsTold(t *testing.T) {
	got := strings.Split(text(t, full(t)), "\n")
	for _, want := range []string{
		`holdfast_archive_up 1`,
		`holdfast_backups{kind="full"} 4`,
		`holdfast_backups{kind="merged"} 1`,
		`holdfast_backups_damaged 1`,
		`holdfast_backups_condemned 1`,
		`holdfast_last_backup_timestamp_seconds{kind="full"} 1.70000002e+09`, // those that are broken or damaged are none
		`holdfast_last_backup_age_seconds{kind="delta"} 98980`,
		`holdfast_last_verified_timestamp_seconds 1.7000005e+09`,
		`holdfast_last_proven_timestamp_seconds 1.7000006e+09`,
		`holdfast_last_proof_failed_timestamp_seconds 1.7000007e+09`,
		`holdfast_wal_last_archived_age_seconds 100`,
		`holdfast_restorable_until_timestamp_seconds 1.70009988e+09`,
		`holdfast_restorable_age_seconds 120`,
		`holdfast_restorable_window_seconds 99860`,
		`walg_pitr_window_seconds 99860`,
		`holdfast_ribbon_status 1`,
		`holdfast_ribbon_holes 2`,
		`holdfast_ribbon_missing_segments 17`,
		`holdfast_storage_up{storage="default"} 1`,
		`holdfast_storage_up{storage="far"} 0`,
		`walg_storage_up 0`,
		`walg_backups{backup_type="full"} 5`,
		`walg_backup_info{backup_name="base_1",backup_type="full",delta_origin="",finish_lsn="0/1000130",is_permanent="true",pg_version="170004",start_lsn="0/1000028",wal_file="000000010000000000000001"} 1`,
		`walg_backup_compressed_size_bytes{backup_name="base_2_D_1"} 30`,
		`walg_backup_finish_timestamp{backup_name="bad?"} 0`,
		`walg_wal_verify_status{operation="integrity"} 1`,
		`walg_wal_verify_status{operation="timeline"} 0`,
		`walg_wal_integrity_status{timeline_hex="0000001A",timeline_id="26"} 0`,
		`holdfast_wal_ready_segments 4`,
		`holdfast_store_requests_total{operation="put"} 2`,
		`holdfast_store_errors_total{operation="put"} 1`,
		`walg_errors_total{error_type="storage",operation="put"} 1`,
		`holdfast_store_received_bytes_total 5`,
		`holdfast_store_request_duration_seconds_bucket{operation="open",le="+Inf"} 1`,
		`holdfast_job_last_success_bytes_per_second{operation="backup-push"} 100`,
		`holdfast_job_last_success_phase_seconds{operation="backup-push",phase="commit"} 1.5`,
		`holdfast_build_info{revision="abc",version="v1"} 1`,
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no line %s", want)
		}
	}
}

// What is not known is not there, rather than 0, which would be 1970.
func TestWhatIsNotKnownIsNotTold(t *testing.T) {
	r := metrics.New(metrics.Options{Now: now})
	if got := text(t, r); strings.Contains(got, "archive_up") || strings.Contains(got, "job") {
		t.Errorf("before anything was looked at:\n%s", got)
	}
	r.ArchiveDown(nil)
	if got := text(t, r); !strings.Contains(got, "holdfast_archive_up 0\n") || strings.Contains(got, "ribbon") {
		t.Errorf("an archive that never answered:\n%s", got)
	}
	r.SetArchive(metrics.Archive{Looked: at(0), Storages: []metrics.Storage{{Name: "default", Up: true}}})
	got := text(t, r)
	for _, name := range []string{"holdfast_last_backup_timestamp_seconds", "holdfast_last_verified_timestamp_seconds", "holdfast_wal_last_archived_age_seconds", "holdfast_restorable_age_seconds",
		"holdfast_wal_ready"} {
		if strings.Contains(got, name) {
			t.Errorf("an empty archive has %s", name)
		}
	}
	for _, line := range []string{"holdfast_archive_up 1", "holdfast_archive_look_errors_total 1", "holdfast_restorable_until_timestamp_seconds 0", `walg_wal_verify_status{operation="integrity"} -1`} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("an empty archive has no %s", line)
		}
	}
	r.ArchiveDown(nil, metrics.Storage{Name: "far"})
	if got := text(t, r); !strings.Contains(got, "holdfast_storage_up{storage=\"far\"} 0\n") || strings.Contains(got, "default") || !strings.Contains(got, "walg_storage_up 0\n") {
		t.Errorf("with a storage that does not answer:\n%s", got)
	}
	r.SetArchive(all())
	for _, w := range []*metrics.Waiting{{Segments: 77}, nil} { // WAL heaps up while the archive is down
		r.ArchiveDown(w)
		got := text(t, r)
		if !strings.Contains(got, "holdfast_archive_up 0\n") || !strings.Contains(got, "holdfast_ribbon_holes 2\n") {
			t.Error("what was seen last is not told when the archive is down")
		}
		if strings.Contains(got, "holdfast_storage_up") { // nobody asked them since
			t.Errorf("which storages answer is told as it was:\n%s", got)
		}
		if strings.Contains(got, "holdfast_wal_ready_segments 77\n") != (w != nil) || strings.Contains(got, "holdfast_wal_ready_segments") != (w != nil) {
			t.Errorf("with %v waiting:\n%s", w, got)
		}
	}
	r = metrics.New(metrics.Options{Now: now})
	r.ArchiveDown(&metrics.Waiting{Segments: 77, Since: at(5)})
	if got := text(t, r); !strings.Contains(got, "holdfast_wal_ready_segments 77\n") || !strings.Contains(got, "holdfast_wal_ready_since_timestamp_seconds ") {
		t.Errorf("what waits for an archive that never answered:\n%s", got)
	}
}

// Prometheus' own linter finds nothing in our names; those of WAL-G are as they are.
func TestNamesFollowConventions(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(text(t, full(t)))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.Metric, "walg_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestHistogramAddsUp(t *testing.T) {
	var c meter.Counters
	s := meter.New(&storetest.Memory{}, &c)
	for range 7 {
		if err := s.Put(t.Context(), "a", strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	got := text(t, metrics.New(metrics.Options{Store: &c}))
	for _, want := range []string{`_bucket{operation="put",le="300"} 7`, `_bucket{operation="put",le="+Inf"} 7`, `_count{operation="put"} 7`} {
		if !strings.Contains(got, "holdfast_store_request_duration_seconds"+want+"\n") {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

func TestPrometheusIsAnswered(t *testing.T) {
	r := metrics.New(metrics.Options{Release: "v1", Process: true})
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{"go_goroutines ", "process_resident_memory_bytes ", "holdfast_build_info{"} {
		if !strings.Contains(w.Body.String(), "\n"+want) {
			t.Errorf("status %d, no %s", w.Code, want)
		}
	}
}

// A run that fails leaves what the file says of the last success; one that succeeds replaces all.
func TestTextfileKeepsTheLastSuccess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "holdfast.prom")
	write := func(j metrics.Job) string {
		t.Helper()
		r := metrics.New(metrics.Options{Labels: map[string]string{"tier": "gold"}})
		r.SetJob(j)
		if err := r.WriteTextfile(path); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	line := func(s string, value string) string {
		return s + `{operation="backup-push",tier="gold"} ` + value + "\n"
	}
	write(job())
	failed := job()
	failed.Result, failed.ExitStatus, failed.Start, failed.End = metrics.Failed, 1, at(1000), at(1010)
	for range 2 {
		got := write(failed)
		for _, want := range []string{line("holdfast_job_succeeded", "0"), line("holdfast_job_exit_status", "1"), line("holdfast_job_end_timestamp_seconds", "1.70000101e+09"),
			line("holdfast_job_last_success_timestamp_seconds", "1.70000005e+09"), line("holdfast_job_last_success_read_bytes", "5000")} {
			if !strings.Contains(got, want) {
				t.Errorf("behind a failure no %s in\n%s", want, got)
			}
		}
	}
	again := job()
	again.Start, again.End, again.Phases = at(2000), at(2050), nil
	if got := write(again); !strings.Contains(got, line("holdfast_job_last_success_timestamp_seconds", "1.70000205e+09")) || strings.Contains(got, "phase") && !strings.Contains(got, "tier") {
		t.Errorf("behind a success:\n%s", got)
	}
	if err := os.WriteFile(path, []byte("holdfast_job_last_success_timestamp_seconds{ is no text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := write(failed); strings.Contains(got, "last_success") || !strings.Contains(got, "holdfast_job_succeeded") {
		t.Errorf("over rubbish:\n%s", got)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("node_exporter, another account, cannot read the file: %v, %v", info.Mode(), err)
	}
	if err := metrics.New(metrics.Options{}).WriteTextfile(filepath.Join(path, "x")); !errors.Is(err, fs.ErrNotExist) && err == nil {
		t.Error("a file below a file is written")
	}
}

func FuzzTextfile(f *testing.F) {
	f.Add("")
	f.Add("# TYPE holdfast_job_last_success_timestamp_seconds gauge\nholdfast_job_last_success_timestamp_seconds{operation=\"x\"} 1\n")
	f.Add("holdfast_job_last_success_read_bytes NaN 5\n")
	f.Fuzz(func(t *testing.T, old string) {
		path := filepath.Join(t.TempDir(), "a.prom")
		if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		r := metrics.New(metrics.Options{})
		r.SetJob(metrics.Job{Name: "x", Result: metrics.Failed, Start: at(0), End: at(1)})
		if err := r.WriteTextfile(path); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(string(b), -1) {
			if !strings.HasPrefix(name[1], "holdfast_job_") {
				t.Errorf("%s came from the old file", name[1])
			}
		}
	})
}

// A Pushgateway that refuses is an error without the password that it was offered, and the group is in the path.
func TestPushGroupsAndHidesThePassword(t *testing.T) {
	var path, method, user string
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, method = r.URL.Path, r.Method
		user, _, _ = r.BasicAuth()
		w.WriteHeader(http.StatusForbidden)
	}))
	defer gateway.Close()
	r := metrics.New(metrics.Options{})
	r.SetJob(job())
	address := strings.Replace(gateway.URL, "://", "://me:hush@", 1)
	err := r.Push(t.Context(), http.DefaultClient, address, "backup-push", map[string]string{"tier": "gold"})
	if err == nil || strings.Contains(err.Error(), "hush") || user != "me" {
		t.Errorf("user %q, error %v", user, err)
	}
	if path != "/metrics/job/holdfast/type/backup-push/tier/gold" && path != "/metrics/job/holdfast/tier/gold/type/backup-push" || method != http.MethodPost {
		t.Errorf("%s %s", method, path)
	}
	for _, bad := range []string{"http://me:hush@bad host:1/", "http://me:hush@127.0.0.1:1/"} {
		if err := r.Push(t.Context(), http.DefaultClient, bad, "x", nil); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestStatsDIsSent(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	j := job()
	stats := metrics.Stats(counted(t).Read(), &j)
	if err := metrics.SendStatsD(t.Context(), conn.LocalAddr().String(), map[string]string{"host": "db 1", "a": "x,y"}, stats); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65536)
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	n, _, err := conn.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"walg_uploader_uploaded_files_total:1|c", "walg_uploader_uploaded_files_failed_total:1|c", "walg_s3_bytes_written:5|g", "walg_s3_bytes_read:5|g", "walg_s3_upload_time:0|ms",
		"holdfast_job_succeeded:1|c", "holdfast_job_duration:50000|ms",
	}
	got := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(buf[:n]), ",a=x_y,host=db_1:", ":")), "\n")
	for i := range got {
		got[i] = regexp.MustCompile(`^(walg_s3_upload_time:)\d+`).ReplaceAllString(got[i], "${1}0") // however slow this host is
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("packet, - wanted, + got:\n", diff)
	}
	many := slices.Repeat([]metrics.Stat{{Name: "a_rather_long_name_of_a_counter", Value: 1, Type: "c"}}, 100)
	if err := metrics.SendStatsD(t.Context(), conn.LocalAddr().String(), nil, many); err != nil {
		t.Fatal(err)
	}
	for lines := 0; lines < len(many); {
		n, _, err := conn.ReadFrom(buf)
		if err != nil || n > 1400 {
			t.Fatalf("a packet of %d bytes after %d lines: %v", n, lines, err)
		}
		lines += bytes.Count(buf[:n], []byte("\n"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := metrics.SendStatsD(ctx, "nowhere.invalid:8125", nil, many); err == nil {
		t.Error("no error where there is nobody")
	}
}
