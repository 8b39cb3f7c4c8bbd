package agent_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/internal/store"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// push is a backup-push at work.
type push struct {
	*exec.Cmd
	host           *host
	stdout, stderr pgtest.Log
	ended          chan struct{}
}

// push starts a backup-push on h that takes some ten seconds to read the cluster, and returns once it stores something.
func (h *host) push(t *testing.T) *push {
	t.Helper()
	before := h.begun(t)
	var p *push
	pgtest.Eventually(t, "a backup has begun", func() bool {
		if p == nil || p.idle(t) { // another host has made one a moment ago
			p = &push{Cmd: h.command(t, "backup-push"), host: h}
			p.Env = append(p.Env, "WALG_DISK_RATE_LIMIT=2000000", "WALG_TAR_SIZE_THRESHOLD=1000000", "WALG_ALIVE_CHECK_INTERVAL=1s")
			p.Stdout, p.Stderr = &p.stdout, &p.stderr
			p.ended = h.begin(t, p.Cmd)
		}
		return h.begun(t) > before
	})
	return p
}

// idle reports whether p has ended because another host has the lease.
func (p *push) idle(t *testing.T) bool {
	t.Helper()
	select {
	case <-p.ended:
	default:
		return false
	}
	if said := p.stderr.String(); p.ProcessState.ExitCode() != 0 || !strings.Contains(said, "holds the lease") {
		t.Fatalf("backup-push on %s: %s\n%s", p.host.name, p.ProcessState, said)
	}
	return true
}

// begun counts the backups of which something is stored.
func (c *cluster) begun(t *testing.T) int {
	t.Helper()
	folders := map[string]bool{}
	for o, err := range store.Walk(t.Context(), c.place.Store, "basebackups_005/") {
		if err != nil {
			t.Fatal(err)
		}
		if folder, _, is := strings.Cut(o.Name, "/tar_partitions/"); is {
			folders[folder] = true
		}
	}
	return len(folders)
}

// ends waits for p, which must succeed, or fail for a reason, in one line, with one of words in it. It returns whether a backup was made.
func (p *push) ends(t *testing.T, words ...string) bool {
	t.Helper()
	<-p.ended
	r := site.Ended(p.Cmd, p.stdout.String(), p.stderr.String())
	if r.Status == 0 && strings.Contains(r.Stderr, "Wrote backup with name") {
		t.Logf("the backup on %s went on", p.host.name)
		return true
	}
	lines := r.Errors()
	for _, w := range words {
		if r.Status == 1 && len(lines) == 1 && strings.Contains(lines[0], w) {
			t.Logf("the backup on %s ended: %s", p.host.name, lines[0])
			return false
		}
	}
	t.Errorf("backup-push on %s: status %d, and none of %q in\n%s", p.host.name, r.Status, words, r.Stderr)
	return false
}

// another fails the test unless one of hosts makes a backup now: as soon as nobody has the lease any more.
func another(t testing.TB, hosts ...*host) {
	t.Helper()
	pgtest.Eventually(t, "another host makes a backup", func() bool {
		for _, h := range hosts {
			r := site.Run(t, h.command(t, "backup-push"))
			if r.Status != 0 {
				t.Fatalf("on %s: status %d\n%s", h.name, r.Status, r.Stderr)
			}
			if strings.Contains(r.Stderr, "Wrote backup with name") {
				t.Logf("%s made one", h.name)
				return true
			}
		}
		return false
	})
}

// In the middle of a backup the standby becomes the primary, or its primary another server, or the primary is lost with WAL that it has not archived. The backup goes on, or
// ends and says why, and then another host makes one.
func TestFailoverInTheMiddleOfABackup(t *testing.T) {
	t.Parallel()
	c := start(t, map[string]string{"HOLDFAST_ROLE": "replica", "HOLDFAST_LEASE": "etcd://$ETCD/orders", "HOLDFAST_LEASE_TTL": "1m"}) // nobody dies with it

	primary := c.settle(t)
	if *hour { // test/roundtrip always does this, without Patroni
		standby := c.others(primary)[0]
		p := standby.push(t)
		c.switchover(t, standby)
		p.ends(t, "promoted")
		primary = c.settle(t)
		another(t, c.others(primary)...)
	}

	for _, h := range c.hosts {
		h.env = []string{"HOLDFAST_LEASE=archive"}
	}
	two := c.others(primary)
	p := two[0].push(t)
	c.switchover(t, two[1])
	p.ends(t, "the standby followed its primary from timeline ")
	primary = c.settle(t)
	another(t, c.others(primary)...)

	for _, h := range c.hosts {
		h.env = append(h.env, "HOLDFAST_WAL_WAIT_TIMEOUT=160s") // a quarter of it for what nobody archives
	}
	primary.store.cut()
	p = c.others(primary)[0].push(t)
	pgtest.Eventually(t, "the backup waits for WAL", func() bool { return c.labelled(t) })
	primary.crash()
	begun := time.Now()
	p.ends(t, "and nobody archives ")
	t.Logf("%s after the loss of its primary", time.Since(begun).Round(time.Second))
	primary.store.mend(true)
	primary.run(t, primary.patroni.Path)
	another(t, c.others(c.settle(t))...)

	c.whole(t)
}

// labelled reports whether a backup that is not made yet has all but its WAL.
func (c *cluster) labelled(t *testing.T) bool {
	t.Helper()
	made := map[string]bool{}
	for _, b := range c.backups(t) {
		made[b.name] = true
	}
	for o, err := range store.Walk(t.Context(), c.place.Store, "basebackups_005/") {
		if err != nil {
			t.Fatal(err)
		}
		folder, part, is := strings.Cut(strings.TrimPrefix(o.Name, "basebackups_005/"), "/tar_partitions/")
		if is && !made[folder] && strings.HasPrefix(part, "backup_label") {
			return true
		}
	}
	return false
}
