package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/internal/pg/wal"
)

// firstSummaries is the version that can summarize its WAL.
const firstSummaries = 17_00_00

// ErrNoSummaries means that the server is older than 17 or has summarize_wal=off.
var ErrNoSummaries = errors.New("the server does not summarize its WAL")

// Summarizer is how far a server is with the WAL summaries that it keeps in pg_wal/summaries. The zero value is that of one that makes none.
type Summarizer struct {
	On         bool          // summarize_wal; never before 17
	Keep       time.Duration // how old a summary may get (wal_summary_keep_time); 0 is for ever
	Running    bool          // there is a process at work
	Timeline   wal.Timeline  // of Summarized; 0 as long as nothing is known of it
	Summarized wal.LSN       // the next summary begins here. Not all WAL before need have one: see walsum.Cover
	Pending    wal.LSN       // the WAL up to here was read
}

// Summarizer asks how far the server is with its summaries.
func (c *Conn) Summarizer(ctx context.Context) (Summarizer, error) {
	const op = "ask PostgreSQL for its WAL summarizer"
	if c.version < firstSummaries {
		return Summarizer{}, nil
	}
	var s Summarizer
	var minutes int64
	var timeline int64
	var summarized, pending string
	err := c.row(ctx, op, `
		select current_setting('summarize_wal')::bool, (select setting::int8 from pg_settings where name = 'wal_summary_keep_time'),
			summarizer_pid is not null, summarized_tli, coalesce(summarized_lsn, '0/0')::text, coalesce(pending_lsn, '0/0')::text
		from pg_get_wal_summarizer_state()`, nil, &s.On, &minutes, &s.Running, &timeline, &summarized, &pending)
	if err != nil {
		return Summarizer{}, err
	}
	s.Keep = time.Duration(minutes) * time.Minute
	s.Timeline = wal.Timeline(uint32(timeline))
	var err1, err2 error
	s.Summarized, err1 = wal.ParseLSN(summarized)
	s.Pending, err2 = wal.ParseLSN(pending)
	if err := cmp.Or(err1, err2); err != nil {
		return Summarizer{}, &Error{Op: op, Err: err}
	}
	return s, nil
}

// WaitSummaries waits until the server has summarized its WAL up to a position, and fails when it stands still for as long as patience,
// 0 being a minute. A summarizer with nothing to do may sleep for half a minute; a checkpoint on a primary wakes it. Summaries end where checkpoints have
// their redo position: for another position than that, which is where a backup starts, the wait may last until after the next checkpoint.
// ErrNoSummaries means that it is not going to happen. That older WAL has summaries too is not looked at.
func (c *Conn) WaitSummaries(ctx context.Context, upTo wal.LSN, patience time.Duration) error {
	op := fmt.Sprintf("wait until the WAL up to %s is summarized", upTo)
	patience = cmp.Or(patience, time.Minute)
	var last Summarizer
	moved := time.Now()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		s, err := c.Summarizer(ctx)
		switch {
		case err != nil:
			return err
		case !s.On && c.version < firstSummaries:
			return &Error{Op: op, Err: ErrNoSummaries, advice: "PostgreSQL 17 and later can"}
		case !s.On:
			return &Error{Op: op, Err: ErrNoSummaries, advice: "set summarize_wal = on and reload the configuration"}
		case s.Summarized >= upTo:
			return nil
		case s.Timeline != last.Timeline || s.Summarized != last.Summarized || s.Pending != last.Pending:
			last, moved = s, time.Now()
		case time.Since(moved) >= patience:
			how := "stands still"
			if !s.Running {
				how = "is not running"
			}
			return &Error{
				Op:     op,
				Err:    fmt.Errorf("for %s the summarizer %s, with the WAL up to %s summarized and up to %s read", patience, how, s.Summarized, s.Pending),
				advice: "the server's log may say why",
			}
		}
		select {
		case <-ctx.Done():
			return &Error{Op: op, Err: context.Cause(ctx)}
		case <-time.After(pause):
		}
	}
}
