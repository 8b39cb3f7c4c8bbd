package server_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
)

// connect opens a session as cfg says, which ends with the test.
func connect(t *testing.T, cfg server.Config) *server.Conn {
	t.Helper()
	c, err := server.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// with returns cfg with some keywords changed.
func with(cfg server.Config, pairs ...string) server.Config {
	for i := 0; i < len(pairs); i += 2 {
		cfg[pairs[i]] = pairs[i+1]
	}
	return cfg
}

// hint returns the advice that comes with err.
func hint(err error) string {
	var h interface{ Hint() string }
	if !errors.As(err, &h) {
		return ""
	}
	return h.Hint()
}

// appendTo adds a line to a file of the server.
func appendTo(t *testing.T, path, line string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, path)
}

func TestFacts(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		opts := pgtest.Options{Checksums: true, Archive: true}
		want := wal.SegmentSize(16 << 20)
		if p.Major >= 11 {
			want, opts.SegmentSize = 1<<20, 1<<20
		}
		c := pgtest.New(t, p, opts)
		included := []string{filepath.Join(c.Dir, "more.conf")}
		appendTo(t, filepath.Join(c.Data, "postgresql.conf"), "include '"+included[0]+"'")
		appendTo(t, included[0], "vacuum_cost_limit = 300")
		if p.Major >= 16 {
			for _, kind := range []string{"hba", "ident"} {
				file := filepath.Join(c.Dir, "more_"+kind+".conf")
				appendTo(t, filepath.Join(c.Data, "pg_"+kind+".conf"), "include "+file)
				included = append(included, file)
			}
			appendTo(t, included[1], "local all nobody reject")
			appendTo(t, included[2], "map system role")
		}
		conn := connect(t, c.Config())
		f, err := conn.Facts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		control, err := os.ReadFile(filepath.Join(c.Data, "global", "pg_control"))
		if err != nil {
			t.Fatal(err)
		}
		if id := binary.LittleEndian.Uint64(control); f.SystemIdentifier != id || id == 0 {
			t.Errorf("system identifier %d, pg_control has %d", f.SystemIdentifier, id)
		}
		if f.Major() != p.Major || conn.Version() != f.Version || !strings.HasPrefix(p.Version, f.VersionText[:2]) {
			t.Errorf("version %d, %q of %d, %q", f.Version, f.VersionText, p.Major, p.Version)
		}
		if f.Standby || f.Timeline != 1 || f.SegmentSize != want || f.BlockSize != 8192 || !f.Checksums {
			t.Errorf("standby %v, timeline %d, segments %d, blocks %d, checksums %v", f.Standby, f.Timeline, f.SegmentSize, f.BlockSize, f.Checksums)
		}
		for got, base := range map[string]string{f.DataDirectory: "", f.ConfigFile: "postgresql.conf", f.HBAFile: "pg_hba.conf", f.IdentFile: "pg_ident.conf"} {
			if want := filepath.Join(c.Data, base); got != want {
				t.Errorf("file %s, want %s", got, want)
			}
		}
		if !slices.Equal(f.IncludedFiles, included) || len(f.Notes) != 0 {
			t.Errorf("included %q, want %q; notes %q", f.IncludedFiles, included, f.Notes)
		}
		if f.ArchiveMode != "on" || !strings.Contains(f.ArchiveCommand, c.Archive) || f.ArchiveLibrary != "" || f.WALLevel != "replica" {
			t.Errorf("archive_mode %s, command %q, library %q, wal_level %s", f.ArchiveMode, f.ArchiveCommand, f.ArchiveLibrary, f.WALLevel)
		}
	})
}

// A role without rights is told which it needs; with those, and no others, it can do everything.
func TestHintedGrantsSuffice(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{})
		c.Exec(t, `create role "back up" login`)
		cfg := with(c.Config(), "user", "back up")
		grant := func(advice string) {
			t.Helper()
			_, statements, ok := strings.Cut(advice, "GRANT ")
			if !ok {
				t.Fatalf("advice %q has no GRANT", advice)
			}
			for s := range strings.SplitSeq("GRANT "+statements, ";") {
				if s = strings.TrimSpace(s); s != "" {
					c.Exec(t, s)
				}
			}
		}
		conn := connect(t, cfg)
		_, err := conn.StartBackup(t.Context(), "test", true)
		if err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Fatalf("start without rights: %v", err)
		}
		if _, err := conn.Facts(t.Context()); err == nil {
			t.Error("facts without rights: no error")
		}
		grant(hint(err))
		f, err := conn.Facts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, note := range f.Notes {
			grant(note)
		}
		if f, err = conn.Facts(t.Context()); err != nil || len(f.Notes) != 0 {
			t.Errorf("notes %q after granting, error %v", f.Notes, err)
		}
		if ok, err := conn.LockBackup(t.Context()); !ok || err != nil {
			t.Errorf("lock: %v, %v", ok, err)
		}
		if _, err := conn.StartBackup(t.Context(), "test", true); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.StopBackup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.SwitchWAL(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := conn.ArchiverStatus(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := conn.CurrentLSN(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestConnectErrorsSayWhatToDo(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{})
	for _, test := range []struct {
		cfg           server.Config
		message, hint string
	}{
		{with(c.Config(), "port", "1"), "no such file", "is the server running"},
		{with(c.Config(), "host", "127.0.0.1", "port", "1"), "connection refused", "is the server running"},
		{with(c.Config(), "dbname", "nope"), `database "nope" does not exist`, "PGDATABASE"},
		{with(c.Config(), "user", "nope"), `role "nope" does not exist`, "PGUSER"},
		{with(c.Config(), "host", c.Dir+","+c.Dir+"x"), "several servers", ""},
		{with(c.Config(), "port", "high"), "port", ""},
		{with(c.Config(), "connect_timeout", "soon"), "connect_timeout", ""},
	} {
		conn, err := server.Connect(t.Context(), test.cfg)
		if err == nil {
			conn.Close()
			t.Errorf("%v: no error", test.cfg)
			continue
		}
		if !strings.Contains(err.Error(), test.message) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "failed to") {
			t.Errorf("error %q, want %q in it, on one line", err, test.message)
		}
		if got := hint(err); !strings.Contains(got, test.hint) || (test.hint == "") != (got == "") {
			t.Errorf("%q: hint %q, want %q in it", err, got, test.hint)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := server.Connect(ctx, c.Config()); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// What the environment of this process says is heeded only when it is handed down.
func TestEnvironmentIsHandedDown(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{})
	c.Exec(t, `create database other`)
	watcher := c.Conn(t) // while the environment still is harmless
	given := map[string]string{"PGHOST": c.Dir, "PGUSER": instance.Superuser, "PGDATABASE": "other", "PGPORT": "", "PGAPPNAME": "it's me"}
	for name, value := range map[string]string{
		"PGHOST": "/nonexistent", "PGPORT": "1", "PGUSER": "nope", "PGDATABASE": "nope", "PGOPTIONS": "-c nope=1", "PGTZ": "Nope/Nope",
		"PGTARGETSESSIONATTRS": "standby", "PGSSLMODE": "nope", "PGCONNECT_TIMEOUT": "nope", "PGREQUIREAUTH": "nope", "PGCHANNELBINDING": "nope",
	} {
		t.Setenv(name, value)
	}
	connect(t, server.ConfigFromEnv(func(name string) (string, bool) { v, ok := given[name]; return v, ok }))
	var got string
	err := watcher.QueryRow(t.Context(),
		`select string_agg(datname || ' ' || usename || ' ' || application_name, ',') from pg_stat_activity where datname = 'other'`).Scan(&got)
	if err != nil {
		t.Fatal(err)
	}
	if want := "other postgres it's me"; got != want {
		t.Errorf("connected as %q, want %q", got, want)
	}
}

// A session whose server side is gone says so.
func TestLostSession(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{})
	conn := connect(t, c.Config())
	if err := conn.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, `select pg_terminate_backend(pid, 60000) from pg_stat_activity where application_name = 'holdfast'`)
	err := conn.Ping(t.Context())
	if err == nil || !strings.Contains(hint(err), "the session is gone") {
		t.Errorf("error %v, hint %q", err, hint(err))
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("a second ping: no error")
	}
}

func TestArchiverStatus(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{Settings: map[string]string{"archive_mode": "on"}})
		conn := connect(t, c.Config())
		status := func() server.ArchiverStatus {
			t.Helper()
			a, err := conn.ArchiverStatus(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		if a := status(); a.Failing() || a != (server.ArchiverStatus{}) {
			t.Errorf("before anything was archived: %+v", a)
		}
		c.Exec(t, `alter system set archive_command = 'false'`, `select pg_reload_conf()`, `create table t()`)
		lsn, err := conn.SwitchWAL(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		const size = wal.SegmentSize(16 << 20)
		stuck := size.Name(1, size.LastSegment(lsn))
		pgtest.Eventually(t, "archiving fails", func() bool { return status().Failing() })
		if a := status(); a.LastFailed > stuck || a.Failed == 0 || a.FailedTime.IsZero() || !a.LastTime.IsZero() {
			t.Errorf("archiving fails: %+v, stuck is at most %s", a, stuck)
		}
		c.Exec(t, `alter system set archive_command = 'true'`, `select pg_reload_conf()`)
		pgtest.Eventually(t, "archiving works", func() bool { return status().LastArchived == stuck })
		if a := status(); a.Failing() || a.LastTime.IsZero() {
			t.Errorf("archiving works: %+v", a)
		}
	})
}

// A session that waits gives way when its context ends, and can be used afterwards.
func TestCancelledStatementLeavesSession(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Settings: map[string]string{"checkpoint_timeout": "1h"}})
	load := c.StartLoad(t, 2) // dirties pages, so that an unhurried checkpoint takes minutes
	pgtest.Eventually(t, "500 transactions", func() bool { return load.Committed() > 500 })
	conn := connect(t, c.Config())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := conn.StartBackup(ctx, "test", false)
		done <- err
	}()
	pgtest.Eventually(t, "the backup is starting", func() bool {
		return c.Value(t, `select count(*) from pg_stat_activity where query like '%pg_backup_start%' and state = 'active' and application_name = 'holdfast'`) == "1"
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was cancelled", err)
	}
	if err := conn.Ping(t.Context()); err != nil {
		t.Errorf("ping after a cancelled statement: %v", err)
	}
	if _, err := load.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := conn.StartBackup(t.Context(), "test", true); err != nil {
		t.Errorf("start after a cancelled start: %v", err)
	}
}

func TestSwitchWAL(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Archive: true})
	conn := connect(t, c.Config())
	before, err := conn.CurrentLSN(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Exec(t, `create table t()`)
	lsn, err := conn.SwitchWAL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if lsn <= before {
		t.Errorf("switched at %s, was at %s before", lsn, before)
	}
	const size = wal.SegmentSize(16 << 20)
	file := filepath.Join(c.Archive, size.Name(1, size.LastSegment(lsn)))
	pgtest.Eventually(t, file+" is archived", func() bool { _, err := os.Stat(file); return err == nil })
	if after, err := conn.CurrentLSN(t.Context()); err != nil || after < lsn {
		t.Errorf("at %s after a switch at %s, error %v", after, lsn, err)
	}
	if got := strconv.Itoa(conn.Version() / 10000); got != "15" {
		t.Errorf("version %s", got)
	}
}

// A standby streams, also without a slot; who takes a backup does not.
func TestStreamed(t *testing.T) {
	for _, major := range []int{13, 18} {
		c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{})
		conn := connect(t, c.Config())
		streamed := func() bool {
			is, err := conn.Streamed(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return is
		}
		if streamed() {
			t.Errorf("%d: nobody is there, and streams", major)
		}
		c.Standby(t, pgtest.Options{})
		pgtest.Eventually(t, "the standby streams", streamed)
		if n := c.Value(t, `select count(*) from pg_replication_slots`); n != "0" {
			t.Errorf("%d: there are %s slots", major, n)
		}
	}
}
