package server_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walsum"
	"holdfast/test/pgtest"
)

// summarizing runs test on each version that summarizes WAL.
func summarizing(t *testing.T, test func(t *testing.T, p instance.Programs)) {
	for _, major := range []int{17, 18} {
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) { test(t, pgtest.Require(t, major)) })
	}
}

// Once the wait is over, the WAL from one backup's start to the next one's has summaries. A backup's role may ask and wait, on a standby too.
func TestWaitSummaries(t *testing.T) {
	summarizing(t, func(t *testing.T, p instance.Programs) {
		settings := map[string]string{"summarize_wal": "on", "wal_summary_keep_time": "90min"}
		c := pgtest.New(t, p, pgtest.Options{Settings: settings})
		c.Exec(t, `create role backup login in role pg_read_all_settings`,
			`grant execute on function pg_backup_start(text, boolean), pg_backup_stop(boolean) to backup`, `create table t as select 1`)
		wait := func(c *pgtest.Cluster) (before, at wal.LSN) {
			t.Helper()
			conn := connect(t, with(c.Config(), "user", "backup"))
			var starts []wal.LSN
			for range 2 {
				start, err := conn.StartBackup(t.Context(), "test", true)
				if err != nil {
					t.Fatal(err)
				}
				starts = append(starts, start.LSN)
				if err := conn.WaitSummaries(t.Context(), start.LSN, 0); err != nil {
					t.Fatal(err)
				}
				s, err := conn.Summarizer(t.Context())
				if err != nil || !s.On || !s.Running || s.Keep != 90*time.Minute || s.Timeline != 1 || s.Summarized < start.LSN || s.Pending < s.Summarized {
					t.Errorf("after the wait for %s: %+v, %v", start.LSN, s, err)
				}
				if _, err := conn.StopBackup(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			return starts[0], starts[1]
		}
		from, to := wait(c)
		have, err := walsum.List(os.DirFS(filepath.Join(c.Data, walsum.Dir)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := walsum.Cover(have, []walsum.Stretch{{Timeline: 1, From: from, To: to}}); err != nil {
			t.Errorf("of %v: %v", have, err)
		}
		standby := c.Standby(t, pgtest.Options{Settings: settings})
		c.CatchUp(t, standby)
		wait(standby)
	})
}

// A server that makes no summaries, or ceases to, says so, and how that is changed.
func TestNoSummaries(t *testing.T) {
	for major, advice := range map[int]string{15: "17 and later", 17: "summarize_wal = on", 18: "summarize_wal = on"} {
		t.Run("PG"+strconv.Itoa(major), func(t *testing.T) {
			c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{})
			conn := connect(t, c.Config())
			if s, err := conn.Summarizer(t.Context()); err != nil || s.On || s.Running {
				t.Errorf("%+v, %v", s, err)
			}
			check := func(err error) {
				t.Helper()
				if !errors.Is(err, server.ErrNoSummaries) || !strings.Contains(hint(err), advice) {
					t.Errorf("%v, hint %q, want %q", err, hint(err), advice)
				}
			}
			check(conn.WaitSummaries(t.Context(), 1, 0))
			if major < 17 {
				return
			}
			c.Exec(t, `alter system set summarize_wal = on`, `select pg_reload_conf()`)
			pgtest.Eventually(t, "the summarizer runs", func() bool {
				s, err := conn.Summarizer(t.Context())
				return err == nil && s.On && s.Running
			})
			waited := make(chan error)
			go func() { waited <- conn.WaitSummaries(t.Context(), 1<<40, time.Hour) }()
			c.Exec(t, `alter system set summarize_wal = off`, `select pg_reload_conf()`)
			check(<-waited)
		})
	}
}

// A wait ends with words when the summarizer stands still, and with its context.
func TestSummarizerStandsStill(t *testing.T) {
	summarizing(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{Settings: map[string]string{"summarize_wal": "on"}})
		conn := connect(t, c.Config())
		err := conn.WaitSummaries(t.Context(), 1<<40, 100*time.Millisecond) // WAL that there never will be
		if err == nil || errors.Is(err, server.ErrNoSummaries) || hint(err) == "" ||
			!strings.Contains(err.Error(), "wait until the WAL up to 100/0 is summarized: for 100ms the summarizer ") {
			t.Errorf("it stands still: %v, hint %q", err, hint(err))
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		own := errors.New("enough")
		waited := make(chan error)
		go func() { waited <- conn.WaitSummaries(ctx, 1<<40, time.Hour) }()
		cancel(own)
		if err := <-waited; !errors.Is(err, own) {
			t.Errorf("the context ends: %v", err)
		}
	})
}
