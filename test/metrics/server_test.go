package metrics_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// sample returns the value of a sample in Prometheus' text; false where there is none.
func sample(t *testing.T, text, name string) (float64, bool) {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(text)
	if m == nil {
		return 0, false
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v, true
}

// What a backup of a real server came to, and what the archive then holds, is told in numbers that make sense.
func TestABackupIsTold(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 17), pgtest.Options{})
	files := filepath.Join(pgtest.Dir(t), "files")
	if err := os.Mkdir(files, 0o755); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, files)
	s.Env = append(s.Env, "HOLDFAST_METRICS_TEXTFILE_DIR="+files, "PGDATA="+s.Data)
	name := s.Push(t)
	s.OK(t, "verify", "all")
	told := func(job string) string {
		t.Helper()
		all, err := filepath.Glob(filepath.Join(files, "holdfast-*-"+job+".prom"))
		if err != nil || len(all) != 1 {
			t.Fatalf("files of %s: %q, %v", job, all, err)
		}
		b, err := os.ReadFile(all[0])
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	between := func(text, name string, least, most float64) {
		t.Helper()
		if v, ok := sample(t, text, name); !ok || v < least || v > most {
			t.Errorf("%s is %g (there: %v), want from %g to %g", name, v, ok, least, most)
		}
	}
	push := told("backup-push")
	const of = `{operation="backup-push"}`
	between(push, "holdfast_job_succeeded"+of, 1, 1)
	between(push, "holdfast_job_exit_status"+of, 0, 0)
	between(push, "holdfast_job_last_success_read_bytes"+of, 10<<20, 1<<30)
	between(push, "holdfast_job_last_success_stored_bytes"+of, 1<<20, 1<<30)
	between(push, "holdfast_job_last_success_bytes_per_second"+of, 1<<10, 1<<40)
	between(push, "holdfast_job_peak_memory_bytes"+of, 1<<20, 1<<32)
	took, _ := sample(t, push, "holdfast_job_duration_seconds"+of)
	for _, phase := range []string{"start", "copy", "stop", "wal", "commit"} {
		between(push, `holdfast_job_last_success_phase_seconds{operation="backup-push",phase="`+phase+`"}`, 0, took)
	}
	between(told("verify"), `holdfast_job_last_success_read_bytes{operation="verify"}`, 1<<20, 1<<30)

	s.Switch(t)
	text := s.OK(t, "metrics").Stdout
	between(text, "holdfast_archive_up", 1, 1)
	between(text, `holdfast_backups{kind="full"}`, 1, 1)
	between(text, `holdfast_last_backup_age_seconds{kind="full"}`, 0, 3600)
	between(text, "holdfast_wal_last_archived_age_seconds", 0, 3600)
	between(text, "holdfast_restorable_age_seconds", 0, 3600)
	between(text, "holdfast_ribbon_status", 0, 0)
	between(text, "holdfast_ribbon_holes", 0, 0)
	between(text, "holdfast_wal_ready_segments", 0, 10)
	between(text, "holdfast_wal_free_bytes", 1, 1<<60)
	between(text, `walg_wal_verify_status{operation="integrity"}`, 1, 2) // the newest may be late
	between(text, `walg_wal_verify_status{operation="timeline"}`, 1, 1)
	between(text, `walg_wal_integrity_status{timeline_hex="00000001",timeline_id="1"}`, 1, 1)
	between(text, `walg_backup_compressed_size_bytes{backup_name="`+name+`"}`, 1<<20, 1<<30)
	verified, ok := sample(t, text, "holdfast_last_verified_timestamp_seconds")
	if end, _ := sample(t, push, "holdfast_job_end_timestamp_seconds"+of); !ok || verified < end-60 {
		t.Errorf("verified at %f, after the backup had ended at %f", verified, end)
	}
}

// Drills stop, and within the time of the rule people hear that no restore is proven any more; one that fails they hear of at once, and of the next that proves one, too.
func TestStoppedProofsReachPeople(t *testing.T) {
	const limit = 15 * time.Second // in place of the rule's
	text, err := os.ReadFile(deploy + "prometheus/holdfast.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	rule := regexp.MustCompile(`(?s)- alert: HoldfastNotProven\n.*?\n\n`)
	quick := strings.NewReplacer("35 * 86400", strconv.Itoa(int(limit.Seconds())), "for: 1h", "for: 0s").Replace(rule.FindString(string(text)))
	if strings.Count(quick, "for: 0s") != 1 || !strings.Contains(quick, "> 15\n") {
		t.Fatalf("the rule is now %s", quick)
	}
	rules := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(rules, []byte(rule.ReplaceAllLiteralString(string(text), quick)), 0o644); err != nil {
		t.Fatal(err)
	}
	s := site.New(t, pgtest.Require(t, 17), pgtest.Options{})
	name := s.Push(t)
	s.Switch(t)
	drills := pgtest.Dir(t)
	drill := func(status int) {
		t.Helper()
		cmd := s.Command(t, "drill")
		cmd.Env = append(cmd.Env, "HOLDFAST_DRILL_DIR="+drills, "HOLDFAST_PG_BIN="+s.Programs.Dir)
		if r := site.Run(t, cmd); r.Status != status {
			t.Fatalf("exit status %d, want %d\n%s", r.Status, status, r.Stderr)
		}
	}
	drill(0)
	stopped := time.Now()
	scrape := pgtest.Address(t)
	serve(t, "http://"+scrape+"/metrics", append(s.Env, "HOME="+t.TempDir()), s.Binary, "metrics", "-web.listen-address", scrape, "-backup-list.scrape-interval=1s")
	m := monitor(t, rules, map[string]string{"holdfast": scrape})
	m.hears(t, "firing HoldfastNotProven ")
	took := time.Since(stopped)
	t.Logf("people heard %s after the last drill, the rule has %s", took.Round(time.Second), limit)
	if took < limit {
		t.Errorf("people heard %s after the last drill, earlier than the rule has it", took)
	}
	drill(0)
	m.hears(t, "resolved HoldfastNotProven ")

	parts, err := filepath.Glob(filepath.Join(s.Root, "basebackups_005", name, "tar_partitions", "part_*"))
	if err != nil || len(parts) == 0 {
		t.Fatalf("%q, %v", parts, err)
	}
	away := filepath.Join(s.Dir, "away")
	if err := os.Rename(parts[0], away); err != nil {
		t.Fatal(err)
	}
	drill(2)
	m.hears(t, "firing HoldfastProofFailed ")
	if err := os.Rename(away, parts[0]); err != nil {
		t.Fatal(err)
	}
	drill(0)
	m.hears(t, "resolved HoldfastProofFailed ")
}
