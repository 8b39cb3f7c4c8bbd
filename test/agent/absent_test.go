package agent_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
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

// leap has some of the agents' time pass at once.
func (h *hands) leap(to time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at.Before(to) {
		h.at = to
	}
}

// A drill that nobody makes when it is due is told of when its time is over, and counted; the next one that is made ends that.
func TestADrillThatIsNotMade(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var heard []notify.Event
	people := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var e notify.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, e)
	}))
	defer people.Close()
	hear := func(result notify.Result, says string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.ContainsFunc(heard, func(e notify.Event) bool {
				return e.Job == "drill" && e.Result == result && strings.Contains(e.Summary, says)
			})
		}
	}

	s := site.New(t, pgtest.Require(t, major), pgtest.Options{SegmentSize: 1 << 20})
	s.Push(t)
	s.Switch(t)
	drills := filepath.Join(pgtest.Dir(t), "drills") // is not there yet
	slot := time.Now().UTC().Truncate(time.Hour).Add(-27 * time.Hour)
	hands := newHands(t, slot.Add(-time.Minute))
	hands.run(1)
	listen := pgtest.Address(t)
	cmd := pgtest.Command(t, pgtest.Build(t, "holdfast/test/agent/fast"), "agent")
	cmd.Env = slices.Concat(cmd.Environ(), s.Environ(), s.Env, []string{"TEST_CLOCK=" + hands.file.Name(), "TEST_CLOCK_AHEAD=0s", "HOLDFAST_STATE_DIR=" + pgtest.Dir(t),
		fmt.Sprintf("HOLDFAST_SCHEDULE_DRILL=0 %d * * * by=30m", slot.Hour()), "HOLDFAST_SCHEDULE_CATCH_UP=1h", "HOLDFAST_SCHEDULE_ZONE=UTC", "HOLDFAST_SCHEDULE_CHECK=off",
		"HOLDFAST_AGENT_INTERVAL=0", "HOLDFAST_AGENT_LISTEN=" + listen, "HOLDFAST_DRILL_DIR=" + drills, "HOLDFAST_PG_BIN=" + s.Programs.Dir, "HOLDFAST_ALERT_WEBHOOK=" + people.URL})
	var log pgtest.Log
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("the agent: %v\n%s", err, log.String())
		}
	}()
	missed := func() string {
		r, err := http.Get("http://" + listen + "/metrics")
		if err != nil {
			return err.Error()
		}
		defer r.Body.Close() // only read
		var text strings.Builder
		if err := r.Write(&text); err != nil {
			return err.Error()
		}
		if m := regexp.MustCompile(`(?m)^holdfast_agent_slots_missed_total\{schedule="drill"\} (\S+)$`).FindStringSubmatch(text.String()); m != nil {
			return m[1]
		}
		return "not there"
	}
	pgtest.Eventually(t, "the agent serves metrics", func() bool { return missed() == "0" })

	hands.leap(slot)
	pgtest.Eventually(t, "people hear that the drill failed", hear(notify.Failed, drills))
	if hear(notify.Absent, "")() {
		t.Error("people heard that the drill was not made before its time was over")
	}
	hands.leap(slot.Add(31 * time.Minute))
	pgtest.Eventually(t, "people hear that the drill was not made", hear(notify.Absent, "was not done by"))
	hands.leap(slot.Add(62 * time.Minute))
	pgtest.Eventually(t, "it is counted", func() bool { return missed() == "1" })

	if err := os.Mkdir(drills, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, drills)
	hands.leap(slot.Add(24 * time.Hour))
	pgtest.Eventually(t, "people hear that it works again", hear(notify.Recovered, ""))
	if got := missed(); got != "1" {
		t.Errorf("%s were missed, want 1", got)
	}
	if r := s.OK(t, "check", "--only", "proof", "--proof", "1h:2h"); !strings.Contains(r.Stdout, "OK") {
		t.Errorf("%s", r.Stdout)
	}
}
