package drill_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/internal/drill"
)

// The log of PostgreSQL says how far recovery came, and why no farther.
func TestFacts(t *testing.T) {
	lines := []string{
		"2026-11-21 21:36:11.958 UTC [23797] LOG:  starting PostgreSQL 17.11",
		"2026-11-21 21:36:12.861 UTC [23811] LOG:  starting archive recovery",
		"2026-11-21 21:36:12.928 UTC [23811] LOG:  restored log file \"000000010000000000000002\" from archive",
		"2026-11-21 21:36:12.928 UTC [23811] LOG:  restored log file \"000000010000000000000003\" from archive",
		"2026-11-21 21:36:12.930 UTC [23811] LOG:  consistent recovery state reached at 0/2000138",
		"2026-11-21 21:36:13.001 UTC [23811] LOG:  unexpected timeline ID 7 in WAL segment 000000010000000000000004, LSN 0/4000000, offset 0",
		"2026-11-21 21:36:13.002 UTC [23811] LOG:  invalid record length at 0/4000028: expected at least 24, got 0",
		"ERROR: 2026/11/21 21:36:13.101152 000000010000000000000005 is not in the archive",
		"2026-11-21 21:36:13.200 UTC [23900] FATAL:  the database system is starting up",
		"no line of a log]",
		"",
	}
	want := drill.Seen{Restored: 2, Begun: true, Consistent: true, Problem: "unexpected timeline ID 7 in WAL segment 000000010000000000000004, LSN 0/4000000, offset 0"}
	if got := drill.ReadLog(lines...); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	lines = append(lines, "2026-11-21 21:36:13.200 UTC [23811] LOG:  recovery stopping after WAL location (LSN) \"0/3000060\"",
		"2026-11-21 21:36:13.300 UTC [23811] LOG:  started streaming WAL from primary at 0/4000000 on timeline 1")
	if got := drill.ReadLog(lines...); got.Stopped == "" || got.Streaming != "at 0/4000000 on timeline 1" {
		t.Errorf("%+v", got)
	}
}

// What to install is said in the words of the system.
func TestToInstall(t *testing.T) {
	for release, want := range map[string]string{
		"ID=debian\n": "`apt-get install postgresql-16` brings it (from apt.postgresql.org where the distribution has another version)",
		"NAME=\"Rocky\"\nID_LIKE=\"rhel centos\"": "`dnf install postgresql16-server postgresql16-contrib` brings it (from yum.postgresql.org)",
		"ID=alpine": "`apk add postgresql16 postgresql16-contrib` brings it",
		"":          "install PostgreSQL 16, server and contrib modules",
	} {
		if got := drill.ToInstall(16, []byte(release)); got != want {
			t.Errorf("%q: %s", release, got)
		}
	}
}

// What may be damage is not taken for a fault of the host.
func TestWhoseFault(t *testing.T) {
	for _, c := range []struct {
		code, message string
		role, files   bool
	}{
		{"28000", `role "x" does not exist`, true, false},
		{"3D000", `database "x" does not exist`, true, false},
		{"42501", `permission denied to set parameter "session_preload_libraries"`, true, false},
		{"XX001", "invalid page in block 0 of relation global/1260", false, false},
		{"XX002", `index "pg_authid_rolname_index" contains unexpected zero page`, false, false},
		{"58P01", `could not open file "base/1/1259": No such file or directory`, false, false},
		{"58P01", `could not access file "$libdir/amcheck": No such file or directory`, false, true},
		{"58P01", `could not open file "/usr/share/amcheck--1.4.sql": No such file or directory`, false, true},
		{"0A000", `extension "amcheck" is not available`, false, true},
		{"XX000", `could not load library "/usr/lib/amcheck.so": undefined symbol`, false, true},
		{"22023", `extension "amcheck" has no installation script nor update path for version "1.4"`, false, true},
	} {
		err := fmt.Errorf("asked: %w", &pgconn.PgError{Severity: "FATAL", Code: c.code, Message: c.message})
		if drill.IsOfRole(err) != c.role || drill.LacksFiles(err) != c.files {
			t.Errorf("%v: of a role %t, of files %t", err, drill.IsOfRole(err), drill.LacksFiles(err))
		}
	}
	if err := errors.New("connection reset by peer"); drill.IsOfRole(err) || drill.LacksFiles(err) {
		t.Error(err)
	}
}
