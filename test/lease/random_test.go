package lease_test

import (
	"flag"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

var rounds = flag.Int("rounds", 1, "how often hosts are struck at random")

// Three hosts begin at once; some are killed, or stand still, at random moments. Of those at most one makes a backup, the next run makes one, and who goes
// on after that makes none.
func TestWhoeverIsStruckWheneverItIsOne(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("HOLDFAST_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("HOLDFAST_TEST_SEED=%d repeats it as far as timing lets it", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	h := start(t, 2, "HOLDFAST_LEASE=archive", "HOLDFAST_LEASE_TTL="+ttl)
	var made []string
	for round := range *rounds {
		h.fresh(t)
		runs := make([]*running, 3)
		struck := map[int]syscall.Signal{}
		spared := r.IntN(3)
		for n := range runs {
			runs[n] = &running{Cmd: h.push(t, n+1)}
			runs[n].Stdout, runs[n].Stderr = &runs[n].stdout, &runs[n].stderr
			if n != spared && r.IntN(3) > 0 {
				struck[n] = []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP}[r.IntN(2)]
			}
		}
		for _, run := range runs {
			if err := run.Start(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Duration(r.Int64N(int64(2 * time.Second))))
		for n, sig := range struck {
			_ = runs[n].Process.Signal(sig) // it may have ended
		}
		wrote := 0
		for n, run := range runs {
			if struck[n] == syscall.SIGSTOP {
				continue
			}
			ended := run.end()
			wrote += strings.Count(ended.Stderr, "Wrote backup with name")
			if ended.Status != 0 && struck[n] != syscall.SIGKILL {
				t.Errorf("round %d: db%d: status %d\n%s", round, n+1, ended.Status, ended.Stderr)
			}
		}
		if wrote > 1 {
			t.Errorf("round %d: %d made a backup", round, wrote)
		}
		h.fresh(t)
		var next site.Result
		pgtest.Eventually(t, "the lease is free", func() bool {
			next = site.Run(t, h.push(t, spared+1))
			return !strings.Contains(next.Stderr, "holds the lease")
		})
		if next.Status != 0 {
			t.Errorf("round %d: the next: status %d\n%s", round, next.Status, next.Stderr)
		}
		now := h.all[0].Backups(t)
		for n, sig := range struck {
			if sig != syscall.SIGSTOP {
				continue
			}
			if err := runs[n].Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			ended := runs[n].end()
			if ended.Status != 0 && !strings.Contains(ended.Stderr, "the lease of backup-push is lost") {
				t.Errorf("round %d: db%d, which stood still: status %d\n%s", round, n+1, ended.Status, ended.Stderr)
			}
		}
		if later := h.all[0].Backups(t); !slices.Equal(now, later) {
			t.Errorf("round %d: who stood still changed %s to %s", round, now, later)
		}
		if n := len(now) - len(made); n < 1 || n > 2 {
			t.Errorf("round %d: %d backups, and before it %d", round, len(now), len(made))
		}
		made = now
		t.Logf("round %d: struck %v, %d made one, then %d backups", round, struck, wrote, len(now))
	}
	h.all[0].OK(t, "verify", "all")
}

// fresh has the primary make a checkpoint, and the standbys one after it: so that the next backup has a name of its own.
func (h *hosts) fresh(t *testing.T) {
	t.Helper()
	h.all[0].Exec(t, `select pg_switch_wal()`, `checkpoint`)
	for _, s := range h.all[1:] {
		h.all[0].CatchUp(t, s.Cluster)
		s.Exec(t, `checkpoint`)
	}
}
