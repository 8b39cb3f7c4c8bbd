// Package check_test brings faults about on real servers, and looks what `holdfast check` and `holdfast doctor` say of them.
package check_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// report is what check prints as JSON.
type report struct {
	Status   string
	Findings []finding
}

type finding struct {
	Check, Status, Text, Next string
	Skipped                   bool
}

var statuses = []string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}

// check runs the checks, and sees to it that the exit status is that of the report.
func check(t *testing.T, s *site.Site, args ...string) (r report, text string) {
	t.Helper()
	ran := s.Do(t, append([]string{"check", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(ran.Stdout), &r); err != nil {
		t.Fatalf("check %q: exit status %d, %v\n%s\n%s", args, ran.Status, err, ran.Stdout, ran.Stderr)
	}
	if ran.Status != slices.Index(statuses, r.Status) {
		t.Errorf("check %q: exit status %d, and %s", args, ran.Status, r.Status)
	}
	return r, ran.Stdout
}

// want makes one check, and compares what it says.
func want(t *testing.T, s *site.Site, name, status, says string, args ...string) finding {
	t.Helper()
	r, text := check(t, s, append([]string{"--only", name}, args...)...)
	if len(r.Findings) != 1 {
		t.Fatalf("%s: %s", name, text)
	}
	f := r.Findings[0]
	if f.Status != status || !strings.Contains(f.Text+" "+f.Next, says) {
		t.Errorf("%s %q: %s %q, next %q; want %s and %q", name, args, f.Status, f.Text, f.Next, status, says)
	}
	return f
}

// set sets archive_command.
func set(t *testing.T, s *site.Site, command string) {
	t.Helper()
	s.Exec(t, `alter system set archive_command = '`+strings.ReplaceAll(command, "'", "''")+`'`, `select pg_reload_conf()`)
	pgtest.Eventually(t, "archive_command is set", func() bool { return s.Value(t, `current_setting('archive_command')`) == command })
}

// archived waits until what the server has written is in the archive.
func archived(t *testing.T, s *site.Site) {
	t.Helper()
	s.Exec(t, `select pg_logical_emit_message(false, 'test', 'archive_timeout may have ended a segment a moment ago')`)
	s.Await(t, s.Value(t, `pg_walfile_name(pg_switch_wal())`))
}

// start starts a primary with a backup, of which nothing but checks of time may say that it is not well.
func start(t *testing.T, major int, settings map[string]string) *site.Site {
	t.Helper()
	p := pgtest.Require(t, major)
	s := site.New(t, p, pgtest.Options{Checksums: true})
	s.Stop(t) // and start it without an archive_command on its command line, which no test could change
	s.Cluster = pgtest.Attach(t, p, s.Data, pgtest.Options{Settings: settings, Env: s.Env})
	s.Env = append(s.Env, "PGDATA="+s.Data)
	s.Exec(t, `create table t as select generate_series(1, 1000) as id`)
	s.Push(t)
	archived(t, s)
	return s
}

func TestChecksOfARealServer(t *testing.T) {
	for _, major := range []int{13, 17} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			s := start(t, major, map[string]string{"archive_timeout": "60"})
			t.Run("well", func(t *testing.T) {
				r, text := check(t, s, "--except", "disk")
				if r.Status != "OK" {
					t.Errorf("%s", text)
				}
				for _, name := range []string{"server", "cluster", "archive-command", "wal-push", "ready", "wal-age", "checksums", "backup-age", "holes", "restorable"} {
					if i := slices.IndexFunc(r.Findings, func(f finding) bool { return f.Check == name }); i < 0 || r.Findings[i].Skipped {
						t.Errorf("%s was not judged: %s", name, text)
					}
				}
				line := s.OK(t, "check", "--except", "disk").Stdout
				if !regexp.MustCompile(`^HOLDFAST OK - \d+ checks are fine \| '[^\n]*'backup_age'=`).MatchString(line) {
					t.Errorf("%q", line)
				}
				if out := s.OK(t, "doctor", "--except", "disk").Stdout; !strings.HasPrefix(out, "All is well.\n") {
					t.Errorf("%q", out)
				}
			})
			t.Run("a standby", func(t *testing.T) {
				one := *s
				env := s.Env[: len(s.Env)-1 : len(s.Env)-1]
				one.Cluster = s.Standby(t, pgtest.Options{Env: env})
				s.CatchUp(t, one.Cluster)
				one.Env = append(env, "PGDATA="+one.Data)
				if r, text := check(t, &one, "--except", "disk"); r.Status != "OK" {
					t.Errorf("%s", text)
				}
				want(t, &one, "server", "OK", "a standby")
			})
			t.Run("WAL removed", func(t *testing.T) {
				archived(t, s)
				s.Exec(t, `insert into t values (0)`)
				gone := s.Value(t, `pg_walfile_name(pg_current_wal_lsn())`)
				archived(t, s)
				s.Exec(t, `insert into t values (0)`)
				archived(t, s)
				files, err := filepath.Glob(filepath.Join(s.Root, "wal_005", gone+".*"))
				if err != nil || len(files) == 0 {
					t.Fatalf("%s: %q, %v", gone, files, err)
				}
				for _, f := range files {
					if err := os.Rename(f, filepath.Join(s.Dir, filepath.Base(f))); err != nil {
						t.Fatal(err)
					}
				}
				want(t, s, "holes", "CRITICAL", "wal-push --repair")
				want(t, s, "restorable", "CRITICAL", "is not safe", "--restorable", "0s:0s")
				for _, f := range files {
					if err := os.Rename(filepath.Join(s.Dir, filepath.Base(f)), f); err != nil {
						t.Fatal(err)
					}
				}
				want(t, s, "holes", "OK", "")
			})
			t.Run("archive_command", func(t *testing.T) {
				was := s.Value(t, `current_setting('archive_command')`)
				script := filepath.Join(s.Dir, "archive.sh")
				if err := os.WriteFile(script, []byte("#!/bin/sh\n"+s.Binary+" wal-push \"$1\"\nexit 0\n"), 0o755); err != nil {
					t.Fatal(err)
				}
				pgtest.Give(t, script)
				for command, say := range map[string]struct{ status, says string }{
					"": {"CRITICAL", "is empty"}, s.Binary + " wal-push": {"CRITICAL", "without %p"}, s.Binary + " wal-push %p || true": {"CRITICAL", "`true`"},
					"cp %p /nowhere/%f": {"WARNING", "another program"}, script + " %p": {"CRITICAL", "exit 0"},
				} {
					set(t, s, command)
					want(t, s, "archive-command", say.status, say.says)
				}
				set(t, s, "/bin/true")
				want(t, s, "archive-command", "CRITICAL", "stores none")
				// Two segments that the server takes for archived: nothing waits, and the archive lacks them. What stands behind them tells that they are whole.
				for range 2 {
					s.Exec(t, `insert into t values (0)`, `select pg_switch_wal()`)
				}
				s.Exec(t, `insert into t values (0)`)
				pgtest.Eventually(t, "nothing waits", func() bool {
					left, err := filepath.Glob(filepath.Join(s.Data, "pg_wal/archive_status/*.ready"))
					return err == nil && len(left) == 0
				})
				want(t, s, "wal-age", "CRITICAL", "--repair", "--wal-age", "0s:0s")
				set(t, s, was)
				s.OK(t, "wal-push", "--repair")
				pgtest.Eventually(t, "nothing is behind", func() bool {
					r, _ := check(t, s, "--only", "wal-age", "--wal-age", "0s:0s")
					return r.Status == "OK"
				})
				want(t, s, "archive-command", "OK", "wal-push")
			})
			t.Run("a wal-push that stands still", func(t *testing.T) {
				was := s.Value(t, `current_setting('archive_command')`)
				set(t, s, `kill -STOP $$; exec `+s.Binary+` wal-push "%p"`)
				s.Exec(t, `insert into t values (0)`, `select pg_switch_wal()`)
				var found finding
				pgtest.Eventually(t, "the check names the process", func() bool {
					r, _ := check(t, s, "--only", "wal-push", "--wal-push", "0s:0s")
					found = r.Findings[0]
					return strings.Contains(found.Text, "stopped by a signal")
				})
				m := regexp.MustCompile("`kill -CONT (\\d+)`").FindStringSubmatch(found.Next)
				if found.Status != "CRITICAL" || m == nil {
					t.Fatalf("%+v", found)
				}
				want(t, s, "ready", "WARNING", "file", "--ready", "0:1000")
				out := s.Do(t, "doctor", "--only", "wal-push", "--wal-push", "0s:0s")
				if out.Status != 2 || !strings.HasPrefix(out.Stdout, "CRITICAL  wal-push: nothing was archived for") || !strings.Contains(out.Stdout, "\n          next: `kill -CONT "+m[1]) {
					t.Errorf("exit status %d: %s", out.Status, out.Stdout)
				}
				set(t, s, was)
				pid, err := strconv.Atoi(m[1])
				if err == nil {
					err = syscall.Kill(pid, syscall.SIGCONT)
				}
				if err != nil {
					t.Fatal(err)
				}
				pgtest.Eventually(t, "archiving goes on", func() bool {
					r, _ := check(t, s, "--only", "wal-push,wal-age")
					return r.Status == "OK" && strings.Contains(r.Findings[0].Text, "nothing waits")
				})
			})
			t.Run("the store is not writable", func(t *testing.T) {
				if err := os.Rename(s.Root, s.Root+".away"); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(s.Root, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				want(t, s, "store", "CRITICAL", "holdfast st check")
				r, text := check(t, s, "--except", "disk")
				if r.Status != "CRITICAL" || !strings.Contains(text, `"check":"backup-age","status":"UNKNOWN"`) {
					t.Errorf("%s", text)
				}
				if err := os.Remove(s.Root); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(s.Root+".away", s.Root); err != nil {
					t.Fatal(err)
				}
				want(t, s, "store", "OK", "can be written")
			})
			t.Run("another cluster", func(t *testing.T) {
				owner := filepath.Join(s.Root, "holdfast/cluster.json")
				was, err := os.ReadFile(owner)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(owner, []byte(`{"system_identifier":7}`), 0o600); err != nil {
					t.Fatal(err)
				}
				want(t, s, "cluster", "CRITICAL", "--adopt")
				if err := os.WriteFile(owner, was, 0o600); err != nil {
					t.Fatal(err)
				}
				want(t, s, "cluster", "OK", "")
			})
			t.Run("a slot that nobody uses", func(t *testing.T) {
				want(t, s, "slot", "UNKNOWN", "no replication slot")
				s.Exec(t, `select pg_create_physical_replication_slot('walg', true)`)
				want(t, s, "slot", "WARNING", "nobody receives it")
				s.Exec(t, `select pg_drop_replication_slot('walg')`)
			})
			t.Run("passive results", func(t *testing.T) {
				file := filepath.Join(s.Dir, "result")
				s.OK(t, "check", "--only", "backup-age", "--backup-age", "0s:0s", "--submit", `{ echo "$CHECK_STATUS $CHECK_WORD"; cat; } >`+file)
				b, err := os.ReadFile(file)
				if err != nil || !strings.HasPrefix(string(b), "2 CRITICAL\nHOLDFAST CRITICAL - backup-age: the last backup is") {
					t.Errorf("%q, %v", b, err)
				}
				s.Refused(t, 3, []string{"was not submitted", "no such host"}, "check", "--only", "backup-age", "--submit", "echo no such host; exit 1")
			})
			t.Run("a page that rots", func(t *testing.T) {
				want(t, s, "checksums", "OK", "no page")
				s.Exec(t, `create table rot as select generate_series(1, 1000) as id`)
				file := filepath.Join(s.Data, s.Value(t, `pg_relation_filepath('rot')`))
				s.Stop(t)
				b, err := os.ReadFile(file)
				if err != nil || len(b) < 8192 {
					t.Fatalf("%s: %d bytes, %v", file, len(b), err)
				}
				b[5000] ^= 0xFF
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
				s.Start(t)
				if _, err := s.Conn(t).Exec(t.Context(), `select count(*) from rot`); err == nil {
					t.Fatal("the page was read")
				}
				pgtest.Eventually(t, "the check tells of the page", func() bool {
					r, _ := check(t, s, "--only", "checksums")
					return r.Status == "CRITICAL" && strings.Contains(r.Findings[0].Text, "with a wrong checksum") && strings.Contains(r.Findings[0].Text, "in postgres")
				})
			})
			t.Run("the server is down", func(t *testing.T) {
				s.Stop(t)
				want(t, s, "server", "CRITICAL", "pg_isready")
				want(t, s, "backup-age", "OK", "")
				want(t, s, "wal-age", "UNKNOWN", "could not be asked")
				want(t, s, "ready", "OK", "") // its files are there all the same
			})
		})
	}
}
