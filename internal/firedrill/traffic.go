package firedrill

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// traffic is people at work: small transactions, one after the other.
type traffic struct {
	cancel context.CancelFunc
	ended  sync.WaitGroup

	at   sync.RWMutex    // held for reading while somebody changes one of the tables
	lost map[string]bool // tables that something happened to: nobody touches them any more

	mu   sync.Mutex
	done Traffic
	err  error
}

// leave has nobody work with a table from now on: people have noticed.
func (t *traffic) leave(table string) {
	t.at.Lock()
	defer t.at.Unlock()
	t.lost[table] = true
}

// workers is how many people there are.
const workers = 2

// pause is what each takes from one transaction to the next.
const pause = 5 * time.Millisecond

// work lets people work until stop is called.
func (s *stage) work(ctx context.Context) (*traffic, error) {
	ctx, cancel := context.WithCancel(ctx)
	t := &traffic{cancel: cancel, lost: map[string]bool{}}
	var tables []string
	for _, a := range s.Accidents {
		tables = append(tables, tableOf(a))
	}
	for range workers {
		c, err := s.copy.Connect(ctx, Database)
		if err != nil {
			_, errStop := t.stop()
			return nil, errors.Join(err, errStop)
		}
		t.ended.Go(func() {
			defer c.Close(context.WithoutCancel(ctx)) // what it had begun is not counted
			for n := 0; ctx.Err() == nil; n++ {
				begun := time.Now()
				err := t.transact(ctx, c, tables[n%len(tables)], n)
				t.count(time.Since(begun), err, ctx.Err() != nil)
				if err != nil {
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	return t, nil
}

// undefinedTable is the SQLSTATE of a table that is not there.
const undefinedTable = "42P01"

// transact changes a row of a table, unless something happened to that, and adds one to the table that stays.
func (t *traffic) transact(ctx context.Context, c *pgx.Conn, table string, n int) error {
	if err := t.change(ctx, c, table, n); err != nil {
		return err
	}
	_, err := c.Exec(ctx, `insert into public.`+workTable+` default values`)
	return err
}

func (t *traffic) change(ctx context.Context, c *pgx.Conn, table string, n int) error {
	t.at.RLock()
	defer t.at.RUnlock()
	if t.lost[table] {
		return nil
	}
	_, err := c.Exec(ctx, `update public.`+table+` set note = note || '.' where id = $1`, n%MinRows+1)
	if e := new(pgconn.PgError); errors.As(err, &e) && e.Code == undefinedTable {
		return nil // that is what they call about
	}
	return err
}

// count notes what came of a transaction.
func (t *traffic) count(took time.Duration, err error, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case ended: // it was cut short
	case err != nil:
		t.err = errors.Join(t.err, err)
	default:
		t.done.Commits++
		t.done.Longest = max(t.done.Longest, took.Seconds())
	}
}

// stop ends the work, and returns how much was done and what kept somebody from it.
func (t *traffic) stop() (Traffic, error) {
	t.cancel()
	t.ended.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.done, t.err
}
