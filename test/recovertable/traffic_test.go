package recovertable_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/test/pgtest"
)

// pause bounds how long a transaction of pgbench may take, and how long none is committed: far more than what other tests at work on the same machine make of it.
const pause = 10 * time.Second

// traffic is pgbench at work with two clients on tables of its own.
type traffic struct {
	*bench
	spans []span
}

// bench is a pgbench at work.
type bench struct {
	place    *place
	database string
	cmd      *exec.Cmd
	log      string // what pgbench(1) has under "Per-Transaction Logging"
	said     pgtest.Log
	ended    chan struct{}
	err      error // of its end
}

// span is a time in which something else was done.
type span struct {
	what     string
	from, to time.Time
}

// traffic starts it.
func (s *place) traffic(t *testing.T, database string) *traffic {
	t.Helper()
	if out, err := s.Pgbench(t, database, "-i", "-q").CombinedOutput(); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	return &traffic{bench: s.bench(t, database, "end;", "-c", "2", "-R", "200")}
}

// bench starts a pgbench, and waits until it has come to the last statement of its script.
func (s *place) bench(t *testing.T, database, last string, args ...string) *bench {
	t.Helper()
	prefix := filepath.Join(pgtest.Dir(t), "log")
	b := &bench{place: s, database: database, ended: make(chan struct{})}
	b.cmd = s.Pgbench(t, database, append([]string{"-n", "-T", "100000", "-l", "--log-prefix=" + prefix}, args...)...)
	b.cmd.Stdout, b.cmd.Stderr = &b.said, &b.said
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.log = fmt.Sprintf("%s.%d", prefix, b.cmd.Process.Pid)
	go func() {
		b.err = b.cmd.Wait()
		close(b.ended)
	}()
	t.Cleanup(func() { <-b.ended }) // with the context of the test at the latest
	pgtest.Eventually(t, "pgbench has come to "+last, func() bool {
		select {
		case <-b.ended:
			t.Fatalf("pgbench: %v\n%s", b.err, b.said.String())
		default:
		}
		return s.hash(t, database, `(select from pg_stat_activity where application_name = 'pgbench' and query ilike '`+last+`%' limit 1)`) != "0 "
	})
	return b
}

// onLive is a script for tables that are compared and get keys. It changes no row, so that what they have stays what it is.
const onLive = "\\set id random(2, 3000)\nupdate customers set name = name where id in (1, :id);\nselect count(*) from orders;\n"

// during notes when do was done, while another pgbench is at work on the tables that it is about. Whoever makes either wait for a lock meanwhile, and is not
// pgbench itself, fails the test.
func (w *traffic) during(t *testing.T, what string, do func()) {
	t.Helper()
	script := filepath.Join(pgtest.Dir(t), "live")
	if err := os.WriteFile(script, []byte(onLive), 0o644); err != nil {
		t.Fatal(err)
	}
	live := w.place.bench(t, w.database, "select count(*) from orders;", "-c", "1", "-R", "100", "-f", script)
	conn, done, waits := w.place.conn(t, w.database), make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			var by string
			err := conn.QueryRow(context.Background(), `select coalesce(min(b.application_name || ': ' || b.query), '') from pg_stat_activity a
				cross join unnest(pg_blocking_pids(a.pid)) p join pg_stat_activity b on b.pid = p
				where a.application_name = 'pgbench' and a.wait_event_type = 'Lock' and b.application_name <> 'pgbench' and b.backend_type = 'client backend'`).Scan(&by)
			if err == nil && by != "" {
				err = fmt.Errorf("pgbench waits for %s", by)
			}
			select {
			case <-done:
				waits <- err
				return
			case <-time.After(20 * time.Millisecond):
			}
			if err != nil {
				waits <- err
				return
			}
		}
	}()
	defer func() {
		close(done)
		if err := <-waits; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}()
	from := time.Now()
	do()
	s := span{what, from, time.Now()}
	w.spans = append(w.spans, s)
	live.stop(t)
	s.judge(t, "on these tables", live.transactions(t))
}

// processed and failed are printed by pgbench at its end; failed from 15 on. A client that fails ends the run of an older one.
var (
	processed = regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)$`)
	failed    = regexp.MustCompile(`(?m)^number of failed transactions: (\d+)`)
)

// end ends it. Not one of its transactions failed, the tables have them all, and in each span there were some all the time.
func (w *traffic) end(t *testing.T) {
	t.Helper()
	count := w.stop(t)
	var has string
	if err := w.place.conn(t, w.database).QueryRow(t.Context(), `select count(*)::text from pgbench_history having sum(delta) = (select sum(abalance) from pgbench_accounts)`).Scan(&has); err != nil || has != count {
		t.Errorf("of %s transactions of pgbench the tables have %q (%v)", count, has, err)
	}
	all := w.transactions(t)
	for _, s := range w.spans {
		s.judge(t, "beside them", all)
	}
}

// stop ends it, and returns how many transactions it made. Not one of them failed.
func (b *bench) stop(t *testing.T) string {
	t.Helper()
	if err := b.cmd.Process.Signal(syscall.SIGALRM); err != nil { // as it has itself sent when its time is over
		t.Fatalf("pgbench had ended: %v\n%s", err, b.said.String())
	}
	<-b.ended
	count, bad := processed.FindStringSubmatch(b.said.String()), failed.FindStringSubmatch(b.said.String())
	if b.err != nil || count == nil || bad != nil && bad[1] != "0" {
		t.Fatalf("pgbench: %v\n%s", b.err, b.said.String())
	}
	if n := len(b.transactions(t)); strconv.Itoa(n) != count[1] {
		t.Errorf("of %s transactions pgbench has logged %d", count[1], n)
	}
	return count[1]
}

// judge looks that of these transactions there were some all the time, and that none was slow.
func (s span) judge(t *testing.T, where string, all []transaction) {
	t.Helper()
	n, longest, still, last := 0, time.Duration(0), time.Duration(0), s.from
	for _, x := range all {
		if x.committed.Before(s.from) || x.begun.After(s.to) {
			continue
		}
		if longest = max(longest, x.committed.Sub(x.begun)); !x.committed.After(s.to) {
			n, still, last = n+1, max(still, x.committed.Sub(last)), x.committed
		}
	}
	still = max(still, s.to.Sub(last))
	says := fmt.Sprintf("%s in %s: %s pgbench committed %d transactions, of which the slowest took %s, and for %s none", s.what, s.to.Sub(s.from).Round(time.Millisecond), where, n,
		longest.Round(100*time.Microsecond), still.Round(100*time.Microsecond))
	if t.Log(says); n == 0 || longest > pause || still > pause {
		t.Error("the traffic stood still")
	}
}

// transaction is one of pgbench's.
type transaction struct{ begun, committed time.Time }

// transactions are those that pgbench has logged, in the order of their commits. What it logs of a time counts from when the transaction was due, and how late
// it began is the last column.
func (b *bench) transactions(t *testing.T) (all []transaction) {
	t.Helper()
	text, err := os.ReadFile(b.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var client, n, took, script, seconds, micros, late int64
		if _, err := fmt.Sscan(line, &client, &n, &took, &script, &seconds, &micros, &late); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		at := time.Unix(seconds, micros*1000)
		all = append(all, transaction{at.Add(time.Duration(late-took) * time.Microsecond), at})
	}
	slices.SortFunc(all, func(x, y transaction) int { return x.committed.Compare(y.committed) })
	return all
}
