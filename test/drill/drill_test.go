// Package drill_test lets holdfast prove backups of real clusters, and damages them to see whether it notices.
package drill_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/drill"
	"holdfast/internal/pg/instance"
	"holdfast/internal/proof"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// place is a site whose backups are proven below a directory of its own.
type place struct {
	*site.Site
	dir string
}

// build makes a cluster with data, a backup, and WAL behind it.
func build(t *testing.T, p instance.Programs, opts pgtest.Options) (*place, string) {
	t.Helper()
	s := &place{site.New(t, p, opts), pgtest.Dir(t)}
	s.Exec(t, `create table orders (id bigint primary key, customer int, note text)`,
		`insert into orders select i, i % 100, repeat('x', i % 300) from generate_series(1, 5000) i`,
		`create index orders_customer on orders (customer)`, `create role plain login`)
	name := s.Push(t)
	s.Exec(t, `insert into orders select i, i % 100, 'later' from generate_series(5001, 6000) i`)
	s.Switch(t)
	return s, name
}

// settings are those of drills.
func (s *place) settings(more ...string) []string {
	return append([]string{"HOLDFAST_DRILL_DIR=" + s.dir, "HOLDFAST_PG_BIN=" + filepath.Join(pgtest.Cache(), "pg", "*", "bin")}, more...)
}

// drill makes a drill and returns its record, which must be that in the archive.
func (s *place) drill(t *testing.T, status int, env []string, args ...string) *drill.Record {
	t.Helper()
	cmd := s.Command(t, append([]string{"drill", "--json"}, args...)...)
	cmd.Env = append(cmd.Env, s.settings(env...)...)
	return s.ran(t, status, cmd)
}

// ran runs a drill that prepared.
func (s *place) ran(t *testing.T, status int, cmd *exec.Cmd) *drill.Record {
	t.Helper()
	before := s.records(t)
	r := site.Run(t, cmd)
	if r.Status != status {
		t.Fatalf("exit status %d, want %d\n%s\n%s", r.Status, status, r.Stderr, r.Stdout)
	}
	s.NoCopies(t, s.dir)
	after := s.records(t)
	if status == 1 {
		if len(after) != len(before) {
			t.Errorf("a drill that found out nothing left a record:\n%s", r.Stderr)
		}
		return &drill.Record{Error: r.Stderr}
	}
	var record drill.Record
	if err := json.Unmarshal([]byte(r.Stdout), &record); err != nil {
		t.Fatalf("%v\n%s\n%s", err, r.Stdout, r.Stderr)
	}
	if len(after) != len(before)+1 {
		t.Fatalf("%d records after %d:\n%s", len(after), len(before), r.Stderr)
	}
	var stored drill.Record
	b, err := os.ReadFile(filepath.Join(s.Root, after[len(after)-1]))
	if err == nil {
		err = json.Unmarshal(b, &stored)
	}
	if err != nil {
		t.Fatal(err)
	}
	if stored.OK != (status == 0) || stored.OK != record.OK || stored.Reason != record.Reason || len(stored.Checks) != len(record.Checks) {
		t.Errorf("exit status %d, printed %+v, stored %s", status, record, b)
	}
	return &record
}

// records lists those in the archive, oldest first.
func (s *place) records(t *testing.T) (names []string) {
	t.Helper()
	for _, o := range s.Objects(t) {
		if strings.Contains(o, "/proven/") {
			names = append(names, o)
		}
	}
	slices.SortFunc(names, func(x, y string) int { return strings.Compare(filepath.Base(x), filepath.Base(y)) })
	return names
}

// check returns a check of a record.
func check(t *testing.T, r *drill.Record, name string) drill.Check {
	t.Helper()
	i := slices.IndexFunc(r.Checks, func(c drill.Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("there is no check %s among %+v", name, r.Checks)
	}
	return r.Checks[i]
}

// A backup is proven on every major, and other commands know it.
func TestProvesEveryMajor(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, p instance.Programs) {
		t.Parallel()
		opts := pgtest.Options{Checksums: p.Major%2 == 0}
		s, name := build(t, p, opts)
		env := []string{`HOLDFAST_DRILL_CHECKS=[{database: postgres, table: orders, expect: 6000}, {database: postgres, sql: select true, expect: true, name: truth}]`}
		r := s.drill(t, 0, env, "--dump")
		if !r.OK || r.Backup != name || !r.Fetched.Verified || r.RTO <= 0 || r.RPO == nil || r.Replay.Bytes <= 0 || r.Replay.LastCommit.IsZero() {
			t.Errorf("record %+v, replay %+v", r, r.Replay)
		}
		for name, want := range map[string]string{"replay": "all WAL replayed", "extensions": "installed", "rows of orders": "6000", "truth": "t", "rows": "tables read",
			"amcheck": "are sound", "pages": map[bool]string{true: "sums of ", false: "heads"}[opts.Checksums], "freshness": "before the drill"} {
			if c := check(t, r, name); c.Result != drill.Passed || !strings.Contains(c.Text, want) {
				t.Errorf("check %s: %+v, want %q", name, c, want)
			}
		}
		if c := check(t, r, "pages"); c.Done != c.Total || c.Done == 0 {
			t.Errorf("pages: %d of %d bytes", c.Done, c.Total)
		}
		var listed []struct {
			Proven time.Time `json:"proven_at"`
		}
		if err := json.Unmarshal([]byte(s.OK(t, "backup-list", "--json", "--detail").Stdout), &listed); err != nil || len(listed) != 1 || time.Since(listed[0].Proven) > time.Hour {
			t.Errorf("backup-list: %+v (%v)", listed, err)
		}
	})
}

// Root makes a drill as another account; the copy is removed all the same.
func TestRootDropsToAnAccount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("has root drop to another account, which only root can: run it as root")
	}
	s, name := build(t, pgtest.Require(t, 17), pgtest.Options{})
	command := func(more ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), s.Binary, "drill", "--json")
		cmd.Env = slices.Concat(os.Environ(), s.Environ(), s.Env, s.settings(more...))
		return cmd
	}
	if r := s.ran(t, 0, command()); !r.OK {
		t.Errorf("record %+v", r)
	}
	for setting, want := range map[string]string{"HOLDFAST_DRILL_USER=root": "does not run as root", "HOLDFAST_DRILL_USER=nobody-at-all": "unknown user",
		"HOLDFAST_DRILL_USER=nobody": "cannot fetch WAL"} {
		if r := s.ran(t, 1, command(setting)); !strings.Contains(r.Error, want) {
			t.Errorf("%s: %s", setting, r.Error)
		}
	}
	// WAL that nobody can fetch is no fault of the account.
	change(t, only(t, s.Root, "wal_005/"+name[5:]+".[a-z]*"), func(b []byte) []byte { return b[:len(b)/2] })
	if r := s.ran(t, 2, command()); r.Reason != drill.ReasonFetch || !strings.Contains(r.Error, name[5:]) {
		t.Errorf("reason %s: %s", r.Reason, r.Error)
	}
}

// Records are signed where there is a key.
func TestSigns(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	hidden := `[{"database": "postgres", "sql": "copy (select 1) to program 'cat >/dev/null; test -z \"$HOLDFAST_PROOF_KEY\"'; select true", "expect": "true"}]`
	s.drill(t, 0, []string{"HOLDFAST_DRILL_CHECKS=" + hidden, "HOLDFAST_PROOF_KEY=" + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))})
	b, err := os.ReadFile(filepath.Join(s.Root, s.records(t)[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.Verify(b, public); err != nil {
		t.Errorf("%v: %s", err, b)
	}
	// With the public key only such a record counts, everywhere.
	der, err = x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	s.Env = append(s.Env, "HOLDFAST_PROOF_PUBLIC_KEY="+string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	proven := func() (listed []struct {
		Proven time.Time `json:"proven_at"`
	}) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.OK(t, "backup-list", "--json", "--detail").Stdout), &listed); err != nil {
			t.Fatal(err)
		}
		return listed
	}
	if l := proven(); len(l) != 1 || l[0].Proven.IsZero() {
		t.Errorf("signed: %+v", l)
	}
	s.OK(t, "check", "--only", "proof")
	stored := filepath.Join(s.Root, s.records(t)[0])
	change(t, stored, func(b []byte) []byte { return bytes.Replace(b, []byte(`"rto_seconds":`), []byte(`"rto_seconds":1`), 1) })
	if l := proven(); len(l) != 1 || !l[0].Proven.IsZero() {
		t.Errorf("forged: %+v", l)
	}
	if r := s.Do(t, "check", "--only", "proof"); r.Status != 1 || !strings.Contains(r.Stdout, "does not count as proof") {
		t.Errorf("exit status %d: %s%s", r.Status, r.Stdout, r.Stderr)
	}
	if r := s.OK(t, "drill", "report"); !strings.Contains(r.Stdout, "None of the 1 backup is proven.") || !strings.Contains(r.Stdout, "Records that do not count") {
		t.Errorf("%s", r.Stdout)
	}
}

// What a killed drill left the next one removes.
func TestSweepsWhatWasKilled(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	cmd := s.Command(t, "drill")
	cmd.Env = append(cmd.Env, s.settings("HOLDFAST_DRILL_CHECKS=[{database: postgres, sql: select pg_sleep(600)}]")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the copy is up", func() bool {
		log, _ := filepath.Glob(filepath.Join(s.dir, "*", "run", ".s.PGSQL.5432"))
		return len(log) == 1
	})
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) != 1 {
		t.Fatalf("%v (%v)", entries, err)
	}
	cmd = s.Command(t, "drill", "--json")
	cmd.Env = append(cmd.Env, s.settings()...)
	marks := func() (all []string) {
		for _, o := range s.Objects(t) {
			if strings.HasPrefix(o, archive.RestoreDir) {
				all = append(all, o)
			}
		}
		return all
	}
	if found := marks(); len(found) != 1 {
		t.Errorf("of the one that was killed retention sees %q", found)
	}
	r := site.Run(t, cmd)
	if found := marks(); len(found) != 0 {
		t.Errorf("retention sees %q still", found)
	}
	if r.Status != 0 || !strings.Contains(r.Stderr, "which a drill had left") {
		t.Errorf("exit status %d\n%s", r.Status, r.Stderr)
	}
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) != 0 {
		t.Errorf("%v (%v)", entries, err)
	}
}

// SIGTERM ends a drill in order: nothing is left, and nothing is said about the backup.
func TestEndsInOrder(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	cmd := s.Command(t, "drill")
	var said pgtest.Log
	cmd.Stderr = &said
	cmd.Env = append(cmd.Env, s.settings("HOLDFAST_DRILL_CHECKS=[{database: postgres, sql: select pg_sleep(600)}]")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the copy is up", func() bool {
		log, _ := filepath.Glob(filepath.Join(s.dir, "*", "run", ".s.PGSQL.5432"))
		return len(log) == 1
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || !strings.Contains(said.String(), "stopped by signal: terminated") {
		t.Errorf("%v\n%s", err, said.String())
	}
	s.NoCopies(t, s.dir)
	if got := s.records(t); len(got) != 0 {
		t.Errorf("records %v", got)
	}
}
