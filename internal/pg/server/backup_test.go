package server_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/server"
	"holdfast/test/pgtest"
)

// A backup on a primary: positions and names agree with the label, and the last file gets archived without the server waiting.
func TestBackupOnPrimary(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{Archive: true})
		space := pgtest.Dir(t)
		c.Exec(t, `create tablespace side location '`+space+`'`, `create table t tablespace side as select 1`)
		load := c.StartLoad(t, 1)
		conn := connect(t, c.Config())
		for n := range 2 { // a session can take one after the other
			start, err := conn.StartBackup(t.Context(), "first of two", true)
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.Ping(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := conn.StartBackup(t.Context(), "again", true); err == nil {
				t.Error("a second start on the same session: no error")
			}
			have := load.Committed()
			pgtest.Eventually(t, "more transactions", func() bool { return load.Committed() > have+10 })
			stop, err := conn.StopBackup(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if start.Standby || start.Timeline != 1 || stop.Timeline != 1 || stop.LSN <= start.LSN || stop.Segment < start.Segment {
				t.Errorf("backup %d: start %+v, stop %+v", n, start, stop)
			}
			for _, want := range []string{"START WAL LOCATION: " + start.LSN.String() + " (file " + start.Segment + ")\n", "LABEL: first of two\n"} {
				if !strings.Contains(stop.Label, want) {
					t.Errorf("backup %d: label %q, want %q in it", n, stop.Label, want)
				}
			}
			if !strings.Contains(stop.TablespaceMap, " "+space+"\n") {
				t.Errorf("backup %d: tablespace map %q", n, stop.TablespaceMap)
			}
			for _, segment := range []string{start.Segment, stop.Segment} {
				pgtest.Eventually(t, segment+" is archived", func() bool { _, err := os.Stat(filepath.Join(c.Archive, segment)); return err == nil })
			}
			if _, err := conn.StopBackup(t.Context()); err == nil {
				t.Error("a second stop: no error")
			}
		}
		if _, err := load.Stop(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(c.Data, "backup_label")); err == nil {
			t.Error("there is a backup_label in the data directory")
		}
	})
}

// The server does not wait for an archive command that never succeeds.
func TestStopDoesNotWaitForArchiving(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{Settings: map[string]string{"archive_mode": "on", "archive_command": "false"}})
		conn := connect(t, c.Config())
		if _, err := conn.StartBackup(t.Context(), "test", true); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.StopBackup(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// Once Close has returned, the session and its backup are gone from the server, and it can be closed again.
func TestCloseEndsBackup(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{})
		conn := connect(t, c.Config())
		if ok, err := conn.LockBackup(t.Context()); !ok || err != nil {
			t.Fatalf("lock: %v, %v", ok, err)
		}
		if _, err := conn.StartBackup(t.Context(), "test", true); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		if got := c.Value(t, `select count(*) from pg_stat_activity where application_name = 'holdfast'`); got != "0" {
			t.Errorf("%s sessions are left", got)
		}
		log, err := os.ReadFile(c.Server.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(log), "aborting backup due to backend exiting") {
			t.Errorf("the server did not say that it ended the backup:\n%s", log)
		}
		if err := conn.Ping(t.Context()); err == nil {
			t.Error("ping after close: no error")
		}
		if err := conn.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
	})
}

// A second claim on the same server is refused, whatever database it comes through, until the first session ends.
func TestLockBackup(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{})
		c.Exec(t, `create database other`)
		first := connect(t, c.Config())
		lock := func(conn *server.Conn, want bool) {
			t.Helper()
			if ok, err := conn.LockBackup(t.Context()); ok != want || err != nil {
				t.Errorf("lock: %v, %v, want %v", ok, err, want)
			}
		}
		lock(first, true)
		same, other := connect(t, c.Config()), connect(t, with(c.Config(), "dbname", "other"))
		lock(same, false)
		lock(other, false)
		lock(other, false) // and it left nothing behind
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		lock(other, true)
		lock(same, false)
	})
}

func TestBackupOnStandby(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		primary := pgtest.New(t, p, pgtest.Options{})
		primary.Exec(t, `create table t as select 1`)
		standby := primary.Standby(t, pgtest.Options{})
		primary.Exec(t, `checkpoint`)
		primary.CatchUp(t, standby)
		conn := connect(t, standby.Config())
		f, err := conn.Facts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !f.Standby || f.Timeline != 1 {
			t.Errorf("standby %v on timeline %d", f.Standby, f.Timeline)
		}
		if ok, err := conn.LockBackup(t.Context()); !ok || err != nil {
			t.Errorf("lock: %v, %v", ok, err)
		}
		if _, err := conn.SwitchWAL(t.Context()); !errors.Is(err, server.ErrStandby) {
			t.Errorf("switch: %v", err)
		}
		start, err := conn.StartBackup(t.Context(), "test", true)
		if err != nil {
			t.Fatal(err)
		}
		stop, err := conn.StopBackup(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !start.Standby || start.Timeline != 1 || stop.Timeline != 1 || stop.LSN < start.LSN || stop.Segment < start.Segment {
			t.Errorf("start %+v, stop %+v", start, stop)
		}
		if !strings.Contains(stop.Label, "BACKUP FROM: standby\n") {
			t.Errorf("label %q", stop.Label)
		}
		if lsn, err := conn.CurrentLSN(t.Context()); err != nil || lsn < stop.LSN {
			t.Errorf("replayed up to %s, the backup stopped at %s; error %v", lsn, stop.LSN, err)
		}

		// A promotion makes the next one void, and Ping knows at once.
		if _, err := conn.StartBackup(t.Context(), "test", true); err != nil {
			t.Fatal(err)
		}
		if err := conn.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := standby.Server.Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := conn.Ping(t.Context()); !errors.Is(err, server.ErrPromoted) {
			t.Errorf("ping: %v, want that the standby was promoted", err)
		}
		if _, err := conn.StopBackup(t.Context()); !errors.Is(err, server.ErrPromoted) {
			t.Errorf("stop: %v, want that the standby was promoted", err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		// The new timeline is known before any checkpoint has recorded it.
		conn = connect(t, standby.Config())
		if f, err = conn.Facts(t.Context()); err != nil || f.Standby || f.Timeline != 2 {
			t.Errorf("after promotion: standby %v, timeline %d, error %v", f.Standby, f.Timeline, err)
		}
		if start, err = conn.StartBackup(t.Context(), "test", true); err != nil || start.Timeline != 2 || !strings.HasPrefix(start.Segment, "00000002") {
			t.Errorf("after promotion: start %+v, error %v", start, err)
		}
	})
}

// A server that cannot be backed up says so, with its own advice.
func TestServersOwnHint(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Settings: map[string]string{"wal_level": "minimal", "max_wal_senders": "0"}})
	_, err := connect(t, c.Config()).StartBackup(t.Context(), "test", true)
	if err == nil || !strings.HasPrefix(err.Error(), "start a backup: WAL level not sufficient") || !strings.Contains(hint(err), "wal_level must be set") {
		t.Errorf("error %v, hint %q", err, hint(err))
	}
}
