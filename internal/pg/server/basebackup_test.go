package server_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/compress"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/server"
	"holdfast/test/pgtest"
)

// replicate opens a replication session as a role that may do nothing else.
func replicate(t *testing.T, c *pgtest.Cluster) *server.Replication {
	t.Helper()
	c.Exec(t, `do $$ begin if not exists (select from pg_roles where rolname = 'wire') then create role wire login replication; end if; end $$`)
	conn, err := server.ConnectReplication(t.Context(), with(c.Config(), "user", "wire"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// content decompresses an archive as its extension says.
func content(t *testing.T, a server.Archive, b *server.BaseBackup) io.Reader {
	t.Helper()
	_, method := compress.Split("x" + a.Extension)
	r := compress.Decompress(b, method)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// receive reads a whole backup: the names in each archive, and what the manifest lists.
func receive(t *testing.T, b *server.BaseBackup) (names map[uint32][]string, listed map[string]int64) {
	t.Helper()
	names, listed = map[uint32][]string{}, map[string]int64{}
	for {
		a, err := b.Next()
		if err == io.EOF {
			return names, listed
		}
		if err != nil {
			t.Fatal(err)
		}
		if a.Manifest {
			m, err := manifest.NewReader(b)
			if err != nil {
				t.Fatal(err)
			}
			for {
				f, err := m.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				listed[f.Path] = f.Size
			}
			if w := m.WALRanges(); len(w) != 1 || w[0].Timeline != b.Timeline || w[0].Start != b.Start {
				t.Errorf("the manifest's WAL is %+v, the backup starts at %s", w, b.Start)
			}
			continue
		}
		archive := tar.NewReader(content(t, a, b))
		for {
			h, err := archive.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, archive); err != nil || n != h.Size {
				t.Fatalf("%s: %d bytes of %d, %v", h.Name, n, h.Size, err)
			}
			names[a.OID] = append(names[a.OID], h.Name)
		}
	}
}

// Every version sends tablespaces, data directory and manifest; the same session can do it again, and facts are those of a session in SQL.
func TestBaseBackup(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{Checksums: true, Archive: true})
		space := pgtest.Dir(t)
		c.Exec(t, `create tablespace side location '`+space+`'`, `create table t tablespace side as select 1`)
		conn := replicate(t, c)
		facts, err := conn.Facts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if facts.DataDirectory != "" {
			t.Errorf("a role without rights sees the data directory %s", facts.DataDirectory)
		}
		c.Exec(t, `grant pg_read_all_settings to wire`)
		conn = replicate(t, c) // a session of this kind does not hear of grants
		if facts, err = conn.Facts(t.Context()); err != nil {
			t.Fatal(err)
		}
		sql, err := connect(t, c.Config()).Facts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sql.IncludedFiles, sql.Notes = nil, nil
		if got, want := fmt.Sprintf("%+v", facts), fmt.Sprintf("%+v", sql); got != want {
			t.Errorf("facts over the replication protocol:\n%s\nin SQL:\n%s", got, want)
		}
		for range 2 {
			b, err := conn.BaseBackup(t.Context(), server.BaseBackupOptions{Label: "it's a test", MaxRate: 1 << 20, Silence: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			if len(b.Spaces) != 2 || b.Spaces[0].Location != space || b.Spaces[1].OID != 0 || b.Size < 10<<20 {
				t.Errorf("tablespaces %+v of %d bytes", b.Spaces, b.Size)
			}
			names, listed := receive(t, b)
			lsn, timeline, err := b.End()
			if err != nil {
				t.Fatal(err)
			}
			if lsn <= b.Start || timeline != 1 || b.Timeline != 1 || b.Corrupt() {
				t.Errorf("from %s on %d to %s on %d, corrupt %v", b.Start, b.Timeline, lsn, timeline, b.Corrupt())
			}
			base := names[0]
			if base[0] != "backup_label" || base[1] != "tablespace_map" || base[len(base)-1] != "global/pg_control" {
				t.Errorf("data directory begins with %q, ends with %q", base[:2], base[len(base)-1])
			}
			if side := names[b.Spaces[0].OID]; len(side) == 0 || !strings.HasPrefix(side[0], "PG_") {
				t.Errorf("tablespace holds %q", side)
			}
			if _, ok := listed["global/pg_control"]; ok != (p.Major >= 13) {
				t.Errorf("manifest lists %d files", len(listed))
			}
		}
	})
}

// What the server compresses decompresses to the same; what it cannot leaves the session usable.
func TestBaseBackupCompressed(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 17), pgtest.Options{})
	conn := replicate(t, c)
	done := 0
	for _, how := range []string{"gzip", "lz4", "zstd"} {
		b, err := conn.BaseBackup(t.Context(), server.BaseBackupOptions{Label: how, Compression: how, Level: "1"})
		if server.Unsupported(err) {
			t.Logf("%s: %v", how, err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		done++
		names, _ := receive(t, b)
		if base := names[0]; len(base) < 100 || base[len(base)-1] != "global/pg_control" {
			t.Errorf("%s: %d names", how, len(base))
		}
		if _, _, err := b.End(); err != nil {
			t.Error(err)
		}
	}
	if done == 0 {
		t.Error("the server of 17 compresses nothing")
	}
}

// A backup ends with its context or with Close, and the server is done with it then.
func TestBaseBackupGivenUp(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{})
	for _, closed := range []bool{false, true} {
		conn := replicate(t, c)
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		b, err := conn.BaseBackup(ctx, server.BaseBackupOptions{Label: "test", MaxRate: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Next(); err != nil {
			t.Fatal(err)
		}
		if !closed {
			why := errors.New("enough of it")
			time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
			if _, err := io.Copy(io.Discard, b); !errors.Is(err, why) {
				t.Errorf("read after the end: %v", err)
			}
			if _, _, err := b.End(); err == nil {
				t.Error("an end after the end: no error")
			}
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if n := c.Value(t, `select count(*) from pg_stat_activity where backend_type = 'walsender'`); n != "0" {
			t.Errorf("%s sessions are left on the server", n)
		}
	}
}

// A server that lets nobody in says what has to be done.
func TestReplicationRefused(t *testing.T) {
	for _, major := range []int{10, 15, 18} {
		none := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Settings: map[string]string{"max_wal_senders": "0", "wal_level": "minimal"}})
		some := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{})
		some.Exec(t, `create role plain login`)
		refused := func(c *pgtest.Cluster, user, want string) bool {
			t.Helper()
			conn, err := server.ConnectReplication(t.Context(), with(c.Config(), "user", user))
			if err == nil {
				_ = conn.Close()
				return false
			}
			return strings.Contains(hint(err), want) && strings.HasPrefix(err.Error(), "connect to PostgreSQL at ")
		}
		if !refused(none, instance.Superuser, "max_wal_senders") {
			t.Errorf("%d: without senders there is no word of max_wal_senders", major)
		}
		if !refused(some, "plain", `ALTER ROLE "plain" REPLICATION`) {
			t.Errorf("%d: a role that may not is not told how it might", major)
		}
		hba := filepath.Join(some.Data, "pg_hba.conf")
		if err := os.WriteFile(hba, []byte("local all all trust\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, hba)
		if some.Value(t, `pg_reload_conf()`) != "true" {
			t.Fatal("no reload")
		}
		pgtest.Eventually(t, "a server without a line for replication says which", func() bool {
			return refused(some, instance.Superuser, "local replication \""+instance.Superuser+"\" peer")
		})
	}
}

func TestParseLabel(t *testing.T) {
	const label = "START WAL LOCATION: 1A/2000028 (file 0000000B0000001A00000002)\nCHECKPOINT LOCATION: 1A/2000060\nBACKUP METHOD: streamed\n" +
		"BACKUP FROM: standby\nSTART TIME: 2024-05-06 07:08:09 UTC\nLABEL: START\nSTART TIMELINE: 11\n"
	got, err := server.ParseLabel(label)
	if want := (server.Start{LSN: 0x1A_0200_0028, Timeline: 11, Segment: "0000000B0000001A00000002", Standby: true}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if got, err := server.ParseLabel(strings.ReplaceAll(label, "standby", "primary")); err != nil || got.Standby {
		t.Errorf("%+v, %v, want a primary", got, err)
	}
	for _, bad := range []string{"", "LABEL: x\n", "START WAL LOCATION: x\n", "START WAL LOCATION: 1A/2000028\n", "START WAL LOCATION: 0/0 (file 0000000B0000001A00000002)\n"} {
		if got, err := server.ParseLabel(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
