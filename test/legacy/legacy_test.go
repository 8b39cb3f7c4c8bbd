// Package legacy_test restores archives that WAL-G and WAL-E wrote, and compares what PostgreSQL makes of them with what was there.
//
// Package foreign has them; expected.*.sql is what pg_dump said of the database app at the points of points.txt.
package legacy_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/test/foreign"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// legacy is an archive unpacked for the account of the servers.
type legacy struct {
	name   string
	dir    string
	binary string
	env    []string
}

func unpack(t testing.TB, name string) *legacy {
	t.Helper()
	l := &legacy{name: name, dir: pgtest.Dir(t), binary: pgtest.Build(t, "holdfast/cmd/holdfast")}
	foreign.Each(t, name, func(path string, r io.Reader) {
		to := filepath.Join(l.dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(to)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(f, r)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	})
	pgtest.Give(t, l.dir)
	root := filepath.Join(l.dir, "archive")
	if strings.HasPrefix(name, "wale-") {
		l.env = []string{"WALE_FILE_PREFIX=file://localhost" + root}
		return l
	}
	l.env = []string{"WALG_FILE_PREFIX=" + root}
	for _, line := range strings.Fields(l.read(t, "env.walg")) {
		key, value, _ := strings.Cut(line, "=")
		if strings.HasPrefix(value, "keys/") {
			value = filepath.Join(l.dir, value)
		}
		l.env = append(l.env, key+"="+value)
	}
	return l
}

func (l *legacy) read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// do runs holdfast.
func (l *legacy) do(t testing.TB, args ...string) site.Result {
	t.Helper()
	cmd := pgtest.Command(t, l.binary, args...)
	cmd.Env = slices.Concat(cmd.Environ(), l.env)
	return site.Run(t, cmd)
}

// point returns one value of points.txt, such as lsn of two.
func (l *legacy) point(t testing.TB, name, key string) string {
	t.Helper()
	for line := range strings.Lines(l.read(t, "points.txt")) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			_, value, _ := strings.Cut(rest, key+"=")
			for _, next := range []string{" lsn=", " time=", " xid=", " tli="} {
				value, _, _ = strings.Cut(value, next)
			}
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("points.txt has no %s", name)
	return ""
}

// fetch restores into a new directory, tablespaces beside it, and returns the directory.
func (l *legacy) fetch(t testing.TB, tablespaces []string, args ...string) string {
	t.Helper()
	into := pgtest.Dir(t)
	args = append([]string{"backup-fetch", filepath.Join(into, "data")}, args...)
	for _, oid := range tablespaces {
		args = append(args, "--tablespace-mapping", oid+"="+filepath.Join(into, "ts"+oid))
	}
	r := l.do(t, args...)
	if r.Status != 0 {
		t.Fatalf("holdfast %s: exit status %d\n%s", strings.Join(args, " "), r.Status, r.Stderr)
	}
	if strings.Contains(r.Stderr, "checksums do not hold") {
		t.Errorf("%s", r.Stderr)
	}
	return filepath.Join(into, "data")
}

// configure writes the configuration that WAL-E leaves out.
func configure(t testing.TB, dir string) {
	t.Helper()
	for name, content := range map[string]string{"postgresql.conf": "", "pg_ident.conf": "", "pg_hba.conf": "local all all trust\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// dumped takes out of a pg_dump what differs from one server to the next.
func dumped(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if strings.Contains(line, "pg_attver=") || strings.Contains(line, "pg_catalog.setval(") || line == "\n" {
			continue // minor releases differ in the first, and sequences run ahead of what was seen of them
		}
		if !strings.HasPrefix(line, "--") && !strings.HasPrefix(line, `\restrict`) && !strings.HasPrefix(line, `\unrestrict`) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// equals fails the test unless pg_dump says of the restored cluster what it said of the original.
func (l *legacy) equals(t *testing.T, c *pgtest.Cluster, expected string) {
	t.Helper()
	// That of 15 or later wrote what is expected.
	cmd := pgtest.Command(t, pgtest.Tool(t, max(c.Programs.Major, 15), "pg_dump"), "--no-unlogged-table-data", "app")
	cmd.Env = slices.Concat(cmd.Environ(), c.Environ())
	r := site.Run(t, cmd)
	if r.Status != 0 {
		t.Fatalf("pg_dump: exit status %d\n%s", r.Status, r.Stderr)
	}
	got, want := dumped(r.Stdout), dumped(l.read(t, expected))
	if got == want {
		return
	}
	for i := range strings.Split(want, "\n") {
		g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
		if i >= len(g) || g[i] != w[i] {
			t.Errorf("the database differs from %s in line %d of %d: want %.200q", expected, i+1, len(w), w[i])
			return
		}
	}
	t.Errorf("the database has more than %s: %d bytes of SQL, want %d", expected, len(got), len(want))
}

// Every archive comes back: the newest backup and older ones, to the end of the log and to moments before.
func TestRestores(t *testing.T) {
	both := []string{"16385", "16386"}
	one := []string{"--target-name", "rp_one", "--target-action", "promote"}
	latest := []string{"--target", "latest"}
	const full = "base_000000010000000000000002"
	for _, x := range []struct {
		archive  string
		major    int
		spaces   []string // oids of tablespaces
		name     string   // of the backup
		args     []string
		expected string
	}{
		{"pg15-zstd-full", 15, both, "LATEST", latest, "two"},
		{"pg15-zstd-full", 15, both, "", one, "one"},
		{"pg15-brotli-full", 15, both, "LATEST", latest, "two"},
		{"pg15-brotli-full", 15, both, "", one, "one"},
		{"pg15-lz4-remote", 15, both, "LATEST", latest, "two"},
		{"pg15-lz4-remote", 15, both, "", one, "one"},
		{"pg15-lz4-delta", 15, both, "LATEST", latest, "two"},
		{"pg15-lz4-delta", 15, both, "base_000000010000000000000006_D_000000010000000000000004", latest, "two"},
		{"pg15-lz4-delta", 15, both, "base_000000010000000000000004_D_" + full[5:], one, "one"},
		{"pg15-lz4-delta", 15, both, full, latest, "two"},
		{"pg15-lz4-delta", 15, both, "", []string{"--target-time", "one", "--target-action", "promote"}, "one"},
		{"pg15-lz4-delta", 15, both, "", []string{"--target-lsn", "two", "--target-action", "promote"}, "two"},
		{"pg15-lz4-sodium-hex", 15, both, "LATEST", latest, "two"},
		{"pg15-lz4-sodium-hex", 15, both, "", one, "one"},
		{"pg15-lz4-pgp-pass", 15, both, "LATEST", latest, "two"},
		{"pg15-lz4-pgp-pass", 15, both, "", one, "one"},
		{"pg17-zstd-timeline", 17, both, "LATEST", latest, "two"},
		{"pg17-zstd-timeline", 17, both, full, latest, "two"},
		{"pg17-zstd-timeline", 17, both, full, one, "one"},
		{"pg17-zstd-timeline", 17, both, "", []string{"--target-lsn", "three", "--target-action", "promote"}, "three"},
		{"wale-pg13-lzo", 13, []string{"16385"}, "LATEST", latest, "two"},
		{"wale-pg13-lzo", 13, []string{"16385"}, "", one, "one"},
	} {
		t.Run(fmt.Sprint(x.archive, " ", strings.TrimPrefix(x.name, "base_0000000"), " ", strings.Join(x.args, " ")), func(t *testing.T) {
			t.Parallel()
			l := unpack(t, x.archive)
			p := pgtest.Require(t, x.major)
			args := slices.Clone(x.args)
			if args[0] == "--target-time" || args[0] == "--target-lsn" {
				args[1] = l.point(t, args[1], strings.TrimPrefix(args[0], "--target-"))
			}
			if x.name != "" {
				args = append([]string{x.name}, args...)
			}
			dir := l.fetch(t, x.spaces, args...)
			if strings.HasPrefix(x.archive, "wale-") {
				configure(t, dir)
			}
			c := pgtest.Attach(t, p, dir, pgtest.Options{Env: l.env, Settings: map[string]string{"hot_standby": "on", "max_wal_senders": "20"}})
			site.AwaitRecovery(t, c)
			l.equals(t, c, "expected."+x.expected+".sql")
			if mode := c.Value(t, `current_setting('archive_mode')`); mode != "off" {
				t.Errorf("archive_mode is %s", mode)
			}
		})
	}
}
