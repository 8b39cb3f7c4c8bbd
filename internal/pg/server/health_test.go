package server_test

import (
	"testing"
	"time"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/server"
	"holdfast/test/pgtest"
)

// Every version tells how it is.
func TestHealth(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		c := pgtest.New(t, p, pgtest.Options{Checksums: true, Settings: map[string]string{"archive_mode": "on", "archive_command": "false", "archive_timeout": "120"}})
		conn, err := server.Connect(t.Context(), c.Config())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c.Exec(t, `create table t (id int)`, `select pg_switch_wal()`, `select pg_create_physical_replication_slot('walg', true)`)
		h, err := conn.Health(t.Context(), "walg")
		if err != nil {
			t.Fatal(err)
		}
		if h.Standby || h.SystemIdentifier == 0 || h.ArchiveMode != "on" || h.ArchiveCommand != "false" || h.ArchiveLibrary != "" || h.ArchiveTimeout != 2*time.Minute ||
			h.DataDirectory != c.Data || !h.Checksums || h.Corrupt != 0 || !h.CorruptAt.IsZero() || h.Ahead.Abs() > time.Minute {
			t.Errorf("%+v", h)
		}
		if s := h.Slot; s == nil || s.Active || s.Retained > 64<<20 || (s.Status == "reserved") != (p.Major >= 13) {
			t.Errorf("slot %+v", s)
		}
		if w := h.Waiting; (w != nil) != (p.Major >= 12) || w != nil && (w.Files != 1 || w.First != "000000010000000000000001" || time.Since(w.Since).Abs() > time.Hour) {
			t.Errorf("waiting %+v", w)
		}
		if want := map[bool]string{true: "off"}[p.Major >= 17]; h.SummarizeWAL != want {
			t.Errorf("summarize_wal is %q", h.SummarizeWAL)
		}
		if h, err := conn.Health(t.Context(), "other"); err != nil || h.Slot != nil {
			t.Errorf("a slot that there is not: %+v, %v", h.Slot, err)
		}

		// A role without rights learns what it may.
		c.Exec(t, `create role plain login`)
		cfg := c.Config()
		cfg["user"] = "plain"
		plain, err := server.Connect(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		if h, err := plain.Health(t.Context(), "walg"); err != nil || h.DataDirectory != "" || h.Waiting != nil || h.SystemIdentifier == 0 {
			t.Errorf("without rights: %+v, %v", h, err)
		}
	})
}
