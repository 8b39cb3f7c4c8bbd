package pgtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
)

// accounts is how many rows the load moves amounts between.
const accounts = 10_000

// Load is a running load of small transactions, much like pgbench's: each moves an amount from one account to another and writes a
// history row with the worker's own number of it. So in every consistent state the balances add up to 0, and each
// worker's history counts 1, 2, 3 … without a gap. CheckLoad looks.
type Load struct {
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	mu        sync.Mutex
	committed int64
	err       error
}

// StartLoad makes the tables, unless they exist, and runs workers until Stop, the test's end, or an error such as the server's death.
func (c *Cluster) StartLoad(t testing.TB, workers int) *Load {
	t.Helper()
	c.Exec(t,
		`create table if not exists account (id int primary key, balance bigint not null default 0, filler text not null default repeat('a', 80))`,
		fmt.Sprintf(`insert into account (id) select generate_series(1, %d) on conflict do nothing`, accounts),
		`create table if not exists history (worker int, n bigint, delta bigint not null, at timestamptz not null default clock_timestamp(),
			filler text not null default md5(random()::text), primary key (worker, n))`)
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{cancel: cancel}
	for worker := range workers {
		l.wg.Go(func() {
			err := l.run(ctx, c.Server.ConnString(instance.Superuser, "postgres"), worker)
			if err != nil && ctx.Err() == nil {
				l.mu.Lock()
				l.err = errors.Join(l.err, err)
				l.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() { l.Stop() })
	return l
}

func (l *Load) run(ctx context.Context, connString string, worker int) error {
	conn, err := pgx.Connect(ctx, connString)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	var n int64
	if err := conn.QueryRow(ctx, `select coalesce(max(n), 0) from history where worker = $1`, worker).Scan(&n); err != nil {
		return err
	}
	for ctx.Err() == nil {
		n++
		from, to := rand.IntN(accounts)+1, rand.IntN(accounts)+1
		if from == to {
			to = from%accounts + 1
		}
		delta := rand.Int64N(1000)
		if from > to { // rows are locked in one order, or workers would deadlock
			from, to, delta = to, from, -delta
		}
		var b pgx.Batch
		b.Queue(`begin`)
		b.Queue(`update account set balance = balance - $2 where id = $1`, from, delta)
		b.Queue(`update account set balance = balance + $2 where id = $1`, to, delta)
		b.Queue(`insert into history (worker, n, delta) values ($1, $2, $3)`, worker, n, delta)
		b.Queue(`commit`)
		// A transaction that was sent is seen to its end, or it might commit after Stop.
		sending, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		err := conn.SendBatch(sending, &b).Close()
		cancel()
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.committed++
		l.mu.Unlock()
	}
	return nil
}

// Committed returns how many transactions are known to be committed so far.
func (l *Load) Committed() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.committed
}

// Stop ends the load and returns how many transactions were committed for sure, and the error that ended a worker before, if any.
func (l *Load) Stop() (committed int64, err error) {
	l.cancel()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.committed, l.err
}

// CheckLoad fails the test when c's tables are in no state that StartLoad's workers can have left, and returns how many transactions they hold.
func (c *Cluster) CheckLoad(t testing.TB) int64 {
	t.Helper()
	conn := c.Conn(t)
	var sum, rows, last, indexed int64
	err := conn.QueryRow(t.Context(), `
		select (select coalesce(sum(balance), 0)::int8 from account), (select count(*) from history),
			(select coalesce(sum(m), 0)::int8 from (select max(n) m from history group by worker) w),
			(select count(*) from account where id between 1 and $1)`, accounts).Scan(&sum, &rows, &last, &indexed)
	if err != nil {
		t.Fatal(err)
	}
	if sum != 0 || rows != last || indexed != accounts {
		t.Errorf("balances add up to %d instead of 0, history has %d rows of %d, and there are %d accounts of %d", sum, rows, last, indexed, accounts)
	}
	return rows
}
