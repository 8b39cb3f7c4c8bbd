// Package postgres keeps leases as advisory locks of the primary, each in a session of its own, which ends with its holder.
//
// A lock belongs to a database: all hosts must name the same one. The server ends the session of a holder whose host vanished, and from PostgreSQL 14 on also that
// of one that stands still (idle_session_timeout). A failover ends all of them. Before PostgreSQL 14 who stands still keeps its lease until it goes on or is killed.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/internal/lease"
)

// Keeper keeps leases on a primary.
type Keeper struct{ config *pgx.ConnConfig }

// New returns a Keeper on the primary among the servers that conn names, a connection string of libpq's.
func New(conn string) (*Keeper, error) {
	c, err := pgx.ParseConfig(conn)
	if err != nil {
		return nil, errors.New("lease in PostgreSQL: the address is not understood") // the driver quotes it, and whatever secret is in it
	}
	c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsPrimary
	c.DefaultQueryExecMode = pgx.QueryExecModeExec // also behind a pooler that keeps sessions
	return &Keeper{c}, nil
}

// class is the first half of the locks' keys, "hold" in ASCII; the second is a hash of the job.
const class = 0x686f6c64

func lock(job string) int32 {
	h := fnv.New32a()
	h.Write([]byte(job)) // never fails
	return int32(h.Sum32())
}

// connect opens a session called name that the server ends ttl after it hears nothing of it, where it can.
func (k *Keeper) connect(ctx context.Context, name string, ttl time.Duration) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, k.config)
	if err != nil {
		return nil, fmt.Errorf("lease in PostgreSQL: connect to the primary: %w", err)
	}
	third := max(1, int(ttl.Seconds()/3))
	ms := fmt.Sprint(ttl.Milliseconds())
	var n int
	err = conn.QueryRow(ctx, `
		select pg_catalog.count(pg_catalog.set_config(s.name, v.value, false))
		from (values ('search_path', 'pg_catalog'), ('application_name', $1::text), ('statement_timeout', '0'), ('idle_session_timeout', $2::text),
			('tcp_keepalives_idle', $3::text), ('tcp_keepalives_interval', '1'), ('tcp_keepalives_count', $3::text), ('tcp_user_timeout', $2::text)) v(name, value)
		join pg_catalog.pg_settings s on s.name operator(pg_catalog.=) v.name`, name, ms, fmt.Sprint(third)).Scan(&n)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lease in PostgreSQL: %w", err), closed(conn))
	}
	return conn, nil
}

// closed closes a session in a moment.
func closed(conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return conn.Close(ctx)
}

// mark begins what the session of a holder is called; the process and the host follow.
const mark = "holdfast lease "

// maxName is how much of a session's name the server keeps (NAMEDATALEN less one).
const maxName = 63

// Acquire implements lease.Keeper.
func (k *Keeper) Acquire(ctx context.Context, job string, h lease.Holder, ttl time.Duration) (_ lease.Grant, err error) {
	if err := lease.CheckJob(job); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s%d %s", mark, h.PID, h.Host)
	conn, err := k.connect(ctx, name[:min(len(name), maxName)], ttl)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closed(conn))
		}
	}()
	var got bool
	var token int64
	err = conn.QueryRow(ctx, `select got, case when got then txid_current() else 0 end from pg_try_advisory_lock($1::int4, $2::int4) got`,
		int32(class), lock(job)).Scan(&got, &token)
	if err != nil {
		return nil, fmt.Errorf("lease in PostgreSQL: %w", err)
	}
	if got {
		return &grant{conn: conn, job: job, token: uint64(token)}, nil
	}
	who, err := holder(ctx, conn, job)
	if err != nil {
		return nil, err
	}
	if who == nil { // it was given up since
		who = &lease.Holder{Job: job}
	}
	return nil, lease.Held(who, h)
}

// Holder implements lease.Keeper.
func (k *Keeper) Holder(ctx context.Context, job string) (*lease.Holder, error) {
	if err := lease.CheckJob(job); err != nil {
		return nil, err
	}
	conn, err := k.connect(ctx, "holdfast", time.Minute)
	if err != nil {
		return nil, err
	}
	h, err := holder(ctx, conn, job)
	return h, errors.Join(err, closed(conn))
}

// holder asks who holds the lock of job.
func holder(ctx context.Context, conn *pgx.Conn, job string) (*lease.Holder, error) {
	var name string
	var since *time.Time
	err := conn.QueryRow(ctx, `
		select coalesce(a.application_name, ''), a.backend_start
		from pg_locks l left join pg_stat_activity a on a.pid = l.pid
		where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.classid::int8 = $1::int8 and l.objid::int8 = $2::int8
			and l.database = (select oid from pg_database where datname = current_database())`,
		int64(class), int64(uint32(lock(job)))).Scan(&name, &since)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lease in PostgreSQL: ask who holds it: %w", err)
	}
	h := &lease.Holder{Job: job}
	if rest, ours := strings.CutPrefix(name, mark); ours {
		_, h.Host, _ = strings.Cut(rest, " ")
		_, _ = fmt.Sscan(rest, &h.PID) // 0 where it is none
	}
	if since != nil {
		h.Since = since.UTC().Truncate(time.Second)
	}
	return h, nil
}

type grant struct {
	mu    sync.Mutex // a session does one thing at a time
	conn  *pgx.Conn
	job   string
	token uint64
}

func (g *grant) Token() uint64 { return g.token }

// Renew implements lease.Grant: the server hears of the session.
func (g *grant) Renew(ctx context.Context) error { return g.Check(ctx) }

// Check implements lease.Grant.
func (g *grant) Check(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var mine bool
	err := g.conn.QueryRow(ctx, `
		select exists (select from pg_locks where locktype = 'advisory' and objsubid = 2 and granted and pid = pg_backend_pid()
			and classid::int8 = $1::int8 and objid::int8 = $2::int8)`, int64(class), int64(uint32(lock(g.job)))).Scan(&mine)
	switch {
	case err != nil && g.conn.IsClosed():
		return &lease.LostError{Job: g.job, Why: "its session with the primary has ended: " + err.Error(), Err: err}
	case err != nil:
		return fmt.Errorf("lease in PostgreSQL: %w", err)
	case !mine:
		return &lease.LostError{Job: g.job, Why: "its lock on the primary is gone"}
	}
	return nil
}

// Release implements lease.Grant: the lock is given back, and the session ends.
func (g *grant) Release(context.Context, bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn.IsClosed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, _ = g.conn.Exec(ctx, `select pg_advisory_unlock($1::int4, $2::int4)`, int32(class), lock(g.job)) // with the session it would go a moment after that
	return closed(g.conn)
}
