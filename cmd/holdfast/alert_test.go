package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/notify"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// Who is told and does not answer keeps nobody waiting that stops the command.
func TestReceiverThatHangsIsLeft(t *testing.T) {
	asked, release := make(chan struct{}, 8), make(chan struct{})
	people := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-release
	}))
	defer people.Close()
	defer close(release)
	cmd := exec.Command(pgtest.Build(t, "holdfast/cmd/holdfast"), "retention", "apply")
	cmd.Env = []string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_STATE_DIR=" + t.TempDir(), "HOLDFAST_RETENTION={fulll: 2}", "HOLDFAST_ALERT_WEBHOOK=" + people.URL + "/hush"}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	begin := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if took := time.Since(begin); cmd.ProcessState.ExitCode() != 1 || took > 30*time.Second || !strings.Contains(stderr.String(), "could not tell webhook that retention apply failed") || strings.Contains(stderr.String(), "hush") {
		t.Errorf("%v after %s\n%s", err, took, stderr.String())
	}
}

// A dead man's switch hears that a backup was made once it is, with its name; people hear that one was not made, and that one is again.
func TestBackupIsToldOfOnceItIs(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 17), pgtest.Options{})
	var mu sync.Mutex
	var heard []struct {
		what string // the path, and how many backups there were
		body string
	}
	people := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		there, err := filepath.Glob(filepath.Join(s.Root, "basebackups_005", "*_backup_stop_sentinel.json"))
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, struct{ what, body string }{fmt.Sprintf("%s %d", r.URL.Path, len(there)), string(body)})
	}))
	defer people.Close()
	state := pgtest.Dir(t)
	pgtest.Give(t, state)
	s.Env = append(s.Env, "HOLDFAST_STATE_DIR="+state, "HOLDFAST_PING_BACKUP="+people.URL+"/hush", "HOLDFAST_ALERT_WEBHOOK="+people.URL+"/web", "HOLDFAST_LOG_FORMAT=json")
	lost := *s
	lost.Env = append(slices.Clone(s.Env), "PGHOST="+filepath.Join(state, "nowhere"))

	first := s.Push(t)
	r := lost.Do(t, "backup-push", s.Data)
	if r.Status != 1 || strings.Contains(r.Stderr, "hush") {
		t.Errorf("without a server: status %d\n%s", r.Status, r.Stderr)
	}
	s.Switch(t) // the next one gets another name
	second := s.Push(t)
	if entries, err := os.ReadDir(state); err != nil || len(entries) == 0 {
		t.Errorf("nothing is remembered in the state directory: %v", err)
	}

	want := []string{"/hush/start 0", "/hush 1", "/hush/start 1", "/hush/fail 1", "/hush/start 1", "/hush 2", "/web 1", "/web 2"}
	mu.Lock()
	defer mu.Unlock()
	var got, bodies []string
	for _, to := range []string{"/hush", "/web"} { // who of the two is told first is open
		for _, h := range heard {
			if strings.HasPrefix(h.what, to) {
				got, bodies = append(got, h.what), append(bodies, h.body)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("heard %q, want %q", got, want)
	}
	for i, words := range map[int]string{1: "Wrote backup with name " + first, 3: "connect", 5: "Wrote backup with name " + second} {
		if !strings.Contains(bodies[i], words) {
			t.Errorf("the report of %s does not say %q: %s", want[i], words, bodies[i])
		}
	}
	for i, result := range map[int]notify.Result{6: notify.Failed, 7: notify.Recovered} {
		var e notify.Event
		if err := json.Unmarshal([]byte(bodies[i]), &e); err != nil || e.Result != result || e.Job != "backup-push" || e.Times != 1 {
			t.Errorf("event %s (%v), want %s", bodies[i], err, result)
		}
	}
	if lines := r.Errors(); len(lines) > 0 {
		t.Errorf("lines that are not JSON: %q", lines)
	}
}
