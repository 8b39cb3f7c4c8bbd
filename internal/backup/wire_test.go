package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/server"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

func replicate(t *testing.T, cfg server.Config) *server.Replication {
	t.Helper()
	conn, err := server.ConnectReplication(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // closed already, in most tests
	return conn
}

// nothingLeft fails the test when a failed backup has left anything in the store, or on the server.
func nothingLeft(t *testing.T, m store.Store, c *pgtest.Cluster, how string) {
	t.Helper()
	for o := range store.Walk(context.Background(), m, "") {
		if o.Name != "holdfast/cluster.json" {
			t.Errorf("%s: %s is left", how, o.Name)
		}
	}
	if c == nil {
		return
	}
	pgtest.Eventually(t, "the server's sender ends", func() bool {
		return c.Value(t, `select count(*) from pg_stat_activity where backend_type = 'walsender'`) == "0"
	})
}

// Whichever call to the store fails, a backup over the wire says so and leaves nothing.
func TestWireFailsWhole(t *testing.T) {
	c := cluster(t)
	for n := 0; ; n++ {
		m := &storetest.Memory{}
		flaky := storetest.FailAt(m, n)
		conn := replicate(t, c.Config())
		report, err := backup.Wire(t.Context(), conn, archive.New(flaky, inMemory), backup.Options{PartSize: 8 << 20, NoWaitWAL: true, Host: "db1"})
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if !flaky.Reached() {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		if err == nil { // the call did not matter, as the removal of the marker beside a sentinel does not
			if _, err := archive.New(m, inMemory).Sentinel(t.Context(), report.Name); err != nil {
				t.Errorf("call %d (%s) failed, no error and no backup: %v", n, flaky.Calls()[n], err)
			}
			continue
		}
		if !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("call %d (%s) failed, Wire returned %v", n, flaky.Calls()[n], err)
		}
		nothingLeft(t, m, c, fmt.Sprintf("call %d (%s) failed", n, flaky.Calls()[n]))
	}
}

// line is what lies between a server and its client: change sees what the server sends.
type line struct {
	change func(conn net.Conn, sent []byte) []byte // nil ends the connection
}

// lay puts l before the server of c and returns how to reach it.
func (l line) lay(t *testing.T, c *pgtest.Cluster) server.Config {
	t.Helper()
	dir := pgtest.Dir(t)
	cfg := c.Config()
	socket := ".s.PGSQL." + cfg["port"]
	listener, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	real := filepath.Join(cfg["host"], socket)
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", real)
			if err != nil {
				_ = near.Close()
				return
			}
			go func() { defer far.Close(); _, _ = io.Copy(far, near) }()
			go l.carry(far, near)
		}
	}()
	cfg["host"] = dir
	return cfg
}

func (l line) carry(far, near net.Conn) {
	defer near.Close()
	defer far.Close()
	b := make([]byte, 1<<20)
	for {
		n, err := far.Read(b)
		if err != nil {
			return
		}
		sent := l.change(near, b[:n])
		if sent == nil {
			return
		}
		if _, err := near.Write(sent); err != nil {
			return
		}
	}
}

// What was changed on its way, does not come any more or is cut off gives no backup, and the error says which of them it was.
func TestWireOverABadLine(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Archive: true})
	c.Exec(t, `create table t as select 'here it is, the needle' as what, g from generate_series(1, 50000) g`, `checkpoint`)
	for _, test := range []struct {
		how, want string
		change    func() func(net.Conn, []byte) []byte
	}{
		{"changed", "something on the way changes what is sent", func() func(net.Conn, []byte) []byte {
			done := false
			return func(_ net.Conn, b []byte) []byte {
				if at := bytes.Index(b, []byte("here it is, the needle")); at >= 0 && !done {
					b[at] ^= 0x20
					done = true
				}
				return b
			}
		}},
		{"cut off", "unexpected EOF", func() func(net.Conn, []byte) []byte {
			sent := 0
			return func(_ net.Conn, b []byte) []byte {
				if sent += len(b); sent > 5<<20 {
					return nil
				}
				return b
			}
		}},
		{"silent", "the server sent nothing for 10s", func() func(net.Conn, []byte) []byte {
			sent := 0
			return func(near net.Conn, b []byte) []byte {
				if sent += len(b); sent > 5<<20 {
					_, _ = near.Read(make([]byte, 1)) // until the other side gives up
					return nil
				}
				return b
			}
		}},
	} {
		m := &storetest.Memory{}
		conn := replicate(t, line{test.change()}.lay(t, c))
		_, err := backup.Wire(t.Context(), conn, archive.New(m, inMemory), backup.Options{PartSize: 4 << 20, NoWaitWAL: true, Patience: 10 * time.Second})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.how, err, test.want)
		}
		nothingLeft(t, m, c, test.how)
	}
}

// The server ends the session, dies, or the operator gives up: no backup, and nothing left.
func TestWireIsCutShort(t *testing.T) {
	c := cluster(t)
	for _, test := range []struct {
		how, want string
		cut       func(cancel context.CancelCauseFunc)
	}{
		{"given up", "enough of it", func(cancel context.CancelCauseFunc) { cancel(errors.New("enough of it")) }},
		{"terminated", "receive the backup", func(context.CancelCauseFunc) {
			c.Exec(t, `select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'`)
		}},
		{"killed", "receive the backup", func(context.CancelCauseFunc) { c.Server.Kill() }},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		m := &storetest.Memory{}
		cut := &onPut{Store: m, name: "part_001.tar.zst", do: func() { test.cut(cancel) }}
		_, err := backup.Wire(ctx, replicate(t, c.Config()), archive.New(cut, archive.Options{}), backup.Options{PartSize: 4 << 20, NoWaitWAL: true, DiskRate: 20 << 20})
		cancel(nil)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.how, err, test.want)
		}
		if test.how == "killed" {
			nothingLeft(t, m, nil, test.how)
		} else {
			nothingLeft(t, m, c, test.how)
		}
	}
}

// Pages that are corrupt on the server's disk are told and the backup is made, though the server ends with an error.
func TestWireReportsCorruptPages(t *testing.T) {
	for _, major := range []int{10, 11, 15, 18} {
		c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Checksums: true, Archive: true})
		c.Exec(t, `create table t as select generate_series(1, 20000) i`, `checkpoint`)
		file := c.Value(t, `select pg_relation_filepath('t')`)
		c.Stop(t)
		f, err := os.OpenFile(filepath.Join(c.Data, file), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("garbage"), 7*page.Size+4000); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		c.Start(t)
		a := archive.New(&storetest.Memory{}, archive.Options{})
		report, err := backup.Wire(t.Context(), replicate(t, c.Config()), a, backup.Options{NoWaitWAL: true})
		if err != nil {
			t.Fatal(err)
		}
		if want := []backup.CorruptFile{{Path: file, Blocks: []uint32{7}, Count: 1}}; fmt.Sprint(report.Corrupt) != fmt.Sprint(want) {
			t.Errorf("%d: corrupt: %v, want %v", major, report.Corrupt, want)
		}
		if s, err := a.Sentinel(t.Context(), report.Name); err != nil || s.CorruptBlocks != 1 {
			t.Errorf("%d: sentinel: %+v, %v", major, s, err)
		}
	}
}

// A server whose WAL goes nowhere is refused before it is disturbed; a standby's is its primary's business.
func TestWireRefuses(t *testing.T) {
	for _, major := range []int{12, 18} {
		c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{})
		m := &storetest.Memory{}
		conn := replicate(t, c.Config())
		_, err := backup.Wire(t.Context(), conn, archive.New(m, inMemory), backup.Options{})
		if err == nil || !strings.Contains(err.Error(), "does not archive WAL") {
			t.Errorf("%d: %v", major, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, m, c, "refused")
		standby := c.Standby(t, pgtest.Options{})
		report, err := backup.Wire(t.Context(), replicate(t, standby.Config()), archive.New(m, inMemory), backup.Options{NoWaitWAL: true})
		if err != nil {
			t.Fatal(err)
		}
		if !report.WALIncomplete {
			t.Errorf("%d: %+v", major, report)
		}
	}
}

// WAL-G takes a file for unchanged whose time is the same: of what came in whole seconds it is told none.
func TestWireTellsWALGNoTimes(t *testing.T) {
	c := cluster(t)
	a := archive.New(&storetest.Memory{}, archive.Options{})
	report, err := backup.Wire(t.Context(), replicate(t, c.Config()), a, backup.Options{NoWaitWAL: true})
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Sentinel(t.Context(), report.Name)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	err = a.ReadFileList(t.Context(), report.Name, s, archive.FileListVisitor{File: func(f archive.ListedFile) error {
		if f.Size >= 0 && !f.ModTime.IsZero() {
			t.Errorf("%s is listed with the time %s", f.Path, f.ModTime)
		}
		files++
		return nil
	}})
	if err != nil || files < 900 {
		t.Errorf("%d files, %v", files, err)
	}
}
