package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/daemon"
	"holdfast/internal/pg/control"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestUntilFull(t *testing.T) {
	const mib = 1 << 20
	for what, c := range map[string]struct {
		b    daemon.Backlog
		free int64
		want time.Duration // -1: not known
	}{
		"nothing waits":                   {daemon.Backlog{}, mib, -1},
		"one segment":                     {daemon.Backlog{1, 16 * mib, noon.Add(-time.Hour)}, mib, -1},
		"finished in the future":          {daemon.Backlog{5, 80 * mib, noon.Add(time.Hour)}, mib, -1},
		"four more in an hour":            {daemon.Backlog{5, 80 * mib, noon.Add(-time.Hour)}, 640 * mib, 10 * time.Hour},
		"one more in a second":            {daemon.Backlog{2, 32 * mib, noon.Add(-time.Second)}, 16 * mib, time.Second},
		"the disk is full":                {daemon.Backlog{5, 80 * mib, noon.Add(-time.Hour)}, 0, 0},
		"more than full":                  {daemon.Backlog{5, 80 * mib, noon.Add(-time.Hour)}, -mib, 0},
		"an age, without an overflow":     {daemon.Backlog{2, 2 * mib, noon.Add(-1000 * time.Hour)}, 1 << 62, 365 * 24 * time.Hour},
		"when the first waits is unknown": {daemon.Backlog{Segments: 5, Bytes: 80 * mib}, mib, -1},
	} {
		got, ok := c.b.UntilFull(c.free, noon)
		if !ok {
			got = -1
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
}

// Who has more room has more time, and who writes faster less.
func TestUntilFullIsMonotonic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 1<<20).Draw(t, "segments")
		b := daemon.Backlog{n, int64(n) << 24, noon.Add(-rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.Int64Range(1, int64(1000*time.Hour)).Draw(t, "ns"))
		}).Draw(t, "age"))}
		free := rapid.Int64Range(0, 1<<50).Draw(t, "free")
		left, ok := b.UntilFull(free, noon)
		if !ok || left < 0 {
			t.Fatalf("%s, %t", left, ok)
		}
		if more, _ := b.UntilFull(free+1<<30, noon); more < left {
			t.Errorf("with more room %s instead of %s", more, left)
		}
		faster := b
		faster.Segments, faster.Bytes = 2*n, int64(2*n)<<24
		if less, _ := faster.UntilFull(free, noon); less > left {
			t.Errorf("with more WAL %s instead of %s", less, left)
		}
	})
}

// dataDir makes what looks like the data directory of a server of PostgreSQL 15.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"global", "pg_wal/archive_status"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile("../pg/control/testdata/pg_control_15")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"global/pg_control": append(content, make([]byte, control.Size-len(content))...), "PG_VERSION": []byte("15\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestReadBacklog(t *testing.T) {
	dir := dataDir(t)
	if b, free, err := daemon.ReadBacklog(dir); err != nil || b != (daemon.Backlog{}) || free <= 0 {
		t.Errorf("%+v, %d bytes free, %v; want nothing", b, free, err)
	}
	status := filepath.Join(dir, "pg_wal/archive_status")
	for i, name := range []string{"00000001000000000000000B.ready", "00000001000000000000000A.ready", "000000010000000000000009.done", "00000002.history.ready",
		"00000001000000000000000A.00000028.backup.ready", "00000001000000000000000C.ready"} {
		path := filepath.Join(status, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, noon, noon.Add(time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	b, _, err := daemon.ReadBacklog(dir)
	if want := (daemon.Backlog{3, 48 << 20, noon.Add(time.Minute)}); err != nil || b.Segments != want.Segments || b.Bytes != want.Bytes || !b.Since.Equal(want.Since) {
		t.Errorf("%+v, %v; want %+v", b, err, want)
	}
	line := b.Describe(1<<30, noon.Add(time.Hour))
	for _, word := range []string{"3 segments wait", "48 MiB", "1.0 GiB left", "full in about 31 hours"} {
		if !strings.Contains(line, word) {
			t.Errorf("%q does not say %q", line, word)
		}
	}
	if _, _, err := daemon.ReadBacklog(t.TempDir()); err == nil {
		t.Error("of what is no data directory something was told")
	}
}
