package drill_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// deadMan is a dead man's switch as healthchecks.io is one (https://healthchecks.io/docs/http_api): it is told of the begin, the success and the failure of each run,
// and raises an alarm at a failure, or when there was no success for a time.
type deadMan struct {
	*httptest.Server
	mu      sync.Mutex
	heard   []ping
	success time.Time
	down    bool // since the last ping
}

type ping struct{ what, run, report string }

func newDeadMan(t *testing.T) *deadMan {
	t.Helper()
	d := &deadMan{}
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		report, err := io.ReadAll(r.Body)
		if err != nil || !strings.HasPrefix(r.URL.Path, "/1f6c3b8e") {
			t.Errorf("%s: %v", r.URL, err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		p := ping{strings.TrimPrefix(path.Base(r.URL.Path), "1f6c3b8e"), r.URL.Query().Get("rid"), string(report)}
		switch d.heard = append(d.heard, p); p.what {
		case "":
			d.success, d.down = time.Now(), false
		case "fail":
			d.down = true
		}
	}))
	t.Cleanup(d.Close)
	return d
}

// alarm reports whether it raises one, where a success is expected within a time.
func (d *deadMan) alarm(within time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.down || time.Since(d.success) > within
}

// last returns what was heard since the last call.
func (d *deadMan) last() (all []ping) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all, d.heard = d.heard, nil
	return all
}

// The dead man's switch, check and metrics follow proofs: they say when one fails, and when none comes any more, within the time that was set.
func TestAbsenceIsNoticed(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	d := newDeadMan(t)
	env := []string{"HOLDFAST_PING_DRILL=" + d.URL + "/1f6c3b8e"}
	told := func(end, says string) {
		t.Helper()
		all := d.last()
		if len(all) != 2 || all[0].what != "start" || all[1].what != end || all[0].run == "" || all[0].run != all[1].run || !strings.Contains(all[1].report, says) {
			t.Errorf("the dead man's switch heard %q, want start and %q, with %q", all, end, says)
		}
		if got, want := d.alarm(time.Hour), end == "fail"; got != want {
			t.Errorf("after %q the alarm is %t", end, got)
		}
	}
	check := func(s *place, status int, says string, args ...string) bool {
		t.Helper()
		r := s.Do(t, append([]string{"check", "--only", "proof"}, args...)...)
		if r.Status > 3 || r.Stdout == "" {
			t.Fatalf("exit status %d\n%s", r.Status, r.Stderr)
		}
		return r.Status == status && strings.Contains(r.Stdout, says)
	}
	if !check(s, 2, "ever proven", "--proof", "0s:0s") {
		t.Error("check does not say that no backup was ever proven")
	}
	before := time.Now()
	s.drill(t, 0, env)
	told("", "drill succeeded")
	if !check(s, 0, "fine", "--proof", "1h:2h") {
		t.Error("check does not say that a backup is proven")
	}
	proven := func(s *place, metric string) time.Time {
		t.Helper()
		m := regexp.MustCompile(`(?m)^` + metric + ` (\S+)$`).FindStringSubmatch(s.OK(t, "metrics").Stdout)
		if m == nil {
			return time.Time{}
		}
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.UnixMilli(int64(1000 * v))
	}
	const last, failed = "holdfast_last_proven_timestamp_seconds", "holdfast_last_proof_failed_timestamp_seconds"
	at := proven(s, last)
	if at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) || !proven(s, failed).IsZero() {
		t.Errorf("metrics say proven at %s, failed at %s", at, proven(s, failed))
	}

	// A proof that fails is one of its archive.
	broken := s.mutated(t, func(t *testing.T, root string) {
		change(t, only(t, root, "basebackups_005/*/tar_partitions/part_001.tar*"), func(b []byte) []byte { return b[:len(b)/2] })
	})
	broken.drill(t, 2, env)
	told("fail", "part_001")
	if !check(broken, 2, "did not come up", "--proof", "1h:2h") {
		t.Error("check does not say that the proof has failed")
	}
	if !proven(broken, failed).After(proven(broken, last)) {
		t.Error("metrics do not say that the proof has failed")
	}
	// What could not be made says nothing about the backup, and it is missed.
	s.drill(t, 0, env)
	told("", "drill succeeded")
	s.drill(t, 1, append(env, "HOLDFAST_DRILL_DIR=/nonexistent"))
	told("fail", "/nonexistent")
	if !check(s, 0, "fine", "--proof", "1h:2h") || !proven(s, failed).IsZero() {
		t.Error("a drill that could not be made counts as a proof that failed")
	}

	// From here on no drill comes to its end: one is killed, and then there are none.
	s.drill(t, 0, env)
	told("", "drill succeeded")
	stopped := time.Now()
	cmd := s.Command(t, "drill")
	cmd.Env = append(cmd.Env, s.settings(append(env, "HOLDFAST_DRILL_CHECKS=[{database: postgres, sql: select pg_sleep(600)}]")...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the copy is up", func() bool {
		found, _ := filepath.Glob(filepath.Join(s.dir, "*", "run", ".s.PGSQL.5432"))
		return len(found) == 1
	})
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
	if all := d.last(); len(all) != 1 || all[0].what != "start" {
		t.Errorf("of a drill that was killed was heard %q", all)
	}
	if d.alarm(time.Hour) || !check(s, 0, "fine", "--proof", "1h:2h") {
		t.Error("there is an alarm before its time")
	}
	const limit = 2 * time.Second // the configured time
	for what, says := range map[string]func() bool{
		"the dead man's switch raises an alarm": func() bool { return d.alarm(limit) },
		"check warns":                           func() bool { return check(s, 1, "was proven", "--proof", limit.String()+":2h") },
		"check is critical":                     func() bool { return check(s, 2, "was proven", "--proof", "1s:"+limit.String()) },
		"check is critical by the setting": func() bool {
			cmd := s.Command(t, "check", "--only", "proof")
			cmd.Env = append(cmd.Env, "HOLDFAST_CHECK=proof=1s:"+limit.String())
			return site.Run(t, cmd).Status == 2
		},
		"metrics tell how old it is": func() bool { return time.Since(proven(s, last)) > limit },
	} {
		pgtest.Eventually(t, what, says)
	}
	if at := proven(s, last); at.After(stopped.Add(time.Second)) {
		t.Errorf("metrics say that a backup was proven at %s, when drills had stopped at %s", at, stopped)
	}
	t.Logf("noticed %s after the last drill, with a limit of %s", time.Since(stopped).Round(100*time.Millisecond), limit)
	cmd = s.Command(t, "drill") // it removes what was killed, too
	cmd.Env = append(cmd.Env, s.settings(env...)...)
	if r := site.Run(t, cmd); r.Status != 0 {
		t.Errorf("exit status %d\n%s", r.Status, r.Stderr)
	}
	told("", "drill succeeded")
	if !check(s, 0, "fine", "--proof", "1h:2h") {
		t.Error("a new proof does not end the alarm")
	}
}
