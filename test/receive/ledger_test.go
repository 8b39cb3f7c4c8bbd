package receive_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/places"
)

var (
	ledgerRounds = flag.Int("ledger.rounds", 0, "so many primaries are lost; 0 is as many as fit into half a minute, two at least")
	latencyTime  = flag.Duration("latency", 0, "measure commits for so long with each way of waiting for them; 0 does not")
)

const writers = 4

// ledger is what clients have been told is committed.
type ledger struct {
	acknowledged [writers]atomic.Int64
	group        sync.WaitGroup
}

// write commits rows until the server is gone or ctx ends, and writes down each that was acknowledged.
func (l *ledger) write(ctx context.Context, conn string) {
	for w := range writers {
		l.group.Go(func() {
			c, err := pgx.Connect(ctx, conn)
			if err != nil {
				return
			}
			defer c.Close(context.Background())
			for n := int64(1); ; n++ {
				if _, err := c.Exec(ctx, `insert into ledger values ($1, $2, repeat('x', $3))`, w, n, rand.IntN(3000)); err != nil {
					return
				}
				l.acknowledged[w].Store(n)
			}
		})
	}
}

// check fails the test unless c has all that was acknowledged, without holes, and returns how much that is.
func (l *ledger) check(t *testing.T, c *pgtest.Cluster) (sum int64) {
	t.Helper()
	conn := c.Conn(t)
	for w := range writers {
		var rows, last int64
		if err := conn.QueryRow(t.Context(), `select count(*), coalesce(max(n), 0) from ledger where writer = $1`, w).Scan(&rows, &last); err != nil {
			t.Fatal(err)
		}
		n := l.acknowledged[w].Load()
		if sum += n; last < n || rows != last {
			t.Errorf("writer %d was told that %d rows are committed; restored are %d, the last of them %d", w, n, rows, last)
		}
	}
	return sum
}

// Of a primary that is lost with its disk, and the receiver's host with it, no commit is lost that was acknowledged, if the receiver is synchronous.
func TestLedger(t *testing.T) {
	p := pgtest.Require(t, 17)
	settings := keep(p)
	c, at := pgtest.New(t, p, pgtest.Options{SegmentSize: mib, Settings: settings}), newPlace(t)
	s := at.site(c)
	r := at.receive(t, c.Environ())
	c.Exec(t, `create table ledger (writer int, n bigint, filler text, primary key (writer, n))`)
	at.tailHas(t, c)
	s.Push(t)
	r.signal(t, syscall.SIGTERM)
	c.Exec(t, `alter system set synchronous_standby_names = 'holdfast'`)
	c.Stop(t)

	begun := time.Now()
	var rounds, kills int
	var total int64
	for ; *ledgerRounds > 0 && rounds < *ledgerRounds || *ledgerRounds == 0 && (rounds < 2 || time.Since(begun) < 30*time.Second); rounds++ {
		ok := t.Run(fmt.Sprintf("round %d", rounds+1), func(t *testing.T) {
			primary := pgtest.New(t, p, pgtest.Options{Copy: c.Data, Settings: settings})
			now := newPlace(t)
			if out, err := pgtest.Command(t, "cp", "-a", at.root+"/.", now.root).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}
			env := primary.Environ()
			r := now.receive(t, env, "--synchronous")
			var l ledger
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			l.write(ctx, primary.Server.ConnString(instance.Superuser, "postgres"))
			pgtest.Eventually(t, "something is acknowledged", func() bool { return l.acknowledged[0].Load() > 0 })
			if rand.IntN(3) == 0 { // the receiver goes first, and comes again; commits wait for it
				time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
				r.signal(t, syscall.SIGKILL)
				kills++
				if rand.IntN(2) == 0 { // with a spool that is new
					if err := os.RemoveAll(now.spool); err != nil {
						t.Fatal(err)
					}
				}
				r = now.receive(t, env, "--synchronous")
				before := l.acknowledged[0].Load()
				pgtest.Eventually(t, "more is acknowledged", func() bool { return l.acknowledged[0].Load() > before+1 })
			}
			time.Sleep(time.Duration(rand.IntN(700)) * time.Millisecond) // whatever is being done then
			destroy(t, primary)
			r.signal(t, syscall.SIGKILL)
			if err := os.RemoveAll(now.spool); err != nil {
				t.Fatal(err)
			}
			cancel()
			l.group.Wait()
			total += l.check(t, now.site(primary).Restored(t, "--target", "latest"))
		})
		if !ok {
			return
		}
	}
	t.Logf("%d primaries lost, %d times the receiver killed before; %d commits acknowledged, none of them lost", rounds, kills, total)
}

// TestLatency measures what a commit takes, of one client, with a server that syncs its WAL.
func TestLatency(t *testing.T) {
	if *latencyTime == 0 {
		t.Skip("measures what a commit takes, and checks nothing: give -latency=5s to have it measure for that long")
	}
	p := pgtest.Require(t, 17)
	settings := keep(p)
	settings["fsync"] = "on"
	for _, open := range []func(testing.TB) places.Place{places.File, func(t testing.TB) places.Place { return places.NewS3(t).Place(t) }} {
		for _, sync := range []string{"", "local", "store", "local,store"} {
			t.Run(sync, func(t *testing.T) {
				place, at := open(t), newPlace(t)
				c := pgtest.New(t, p, pgtest.Options{Settings: settings})
				if at.env = place.Env; sync != "" {
					c.Exec(t, `alter system set synchronous_standby_names = 'holdfast'`, `select pg_reload_conf()`)
					at.receive(t, append(c.Environ(), "HOLDFAST_RECEIVE_SYNC="+sync), "--synchronous")
				}
				conn := c.Conn(t)
				if _, err := conn.Exec(t.Context(), `create table t (n bigint)`); err != nil {
					t.Fatal(err)
				}
				var took []time.Duration
				for begun := time.Now(); time.Since(begun) < *latencyTime; {
					one := time.Now()
					if _, err := conn.Exec(t.Context(), `insert into t values (1)`); err != nil {
						t.Fatal(err)
					}
					took = append(took, time.Since(one))
				}
				slices.Sort(took)
				t.Logf("%s, waiting for %q: %d commits, median %s, 99 %% within %s", place.Name, sync, len(took), took[len(took)/2], took[len(took)*99/100])
			})
		}
	}
}
