package runbook_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/drill"
	"holdfast/internal/firedrill"
	"holdfast/internal/store/file"
	"holdfast/test/pgtest"
)

// A fire drill brings everything back, and neither the server nor the archive knows of it afterwards; nothing of it is left. Its directory may have as long a path as a drill's.
func TestFiredrill(t *testing.T) {
	t.Parallel()
	w := open(t, 13)
	long, temp := filepath.Join(w.dir, strings.Repeat("d", 62-len(w.dir))), filepath.Join(w.dir, "t") // 63 bytes
	for _, d := range []string{long, temp} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, d)
	}
	w.Env = append(w.Env, "HOLDFAST_PG_BIN="+w.Programs.Dir, "TMPDIR="+temp)
	w.Switch(t)
	before := w.Objects(t)
	r := w.OK(t, "firedrill", "--case", "update", "--rows", "1500", "--json", "--dir", long)
	var report firedrill.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatalf("%v in %s", err, r.Stdout)
	}
	if !report.OK || len(report.Played) != 1 || report.Traffic.Commits == 0 {
		t.Fatalf("%s", r.Stdout)
	}
	p := report.Played[0]
	if !p.OK || p.Rows != 1500 || p.Back != 1500 || p.As != "orders_update_recovered" || p.Found <= 0 || p.Recovered <= p.Found {
		t.Errorf("%+v", p)
	}
	if len(p.Steps) != 3 || !strings.Contains(p.Steps[1].Said, "UPDATE") || !strings.Contains(p.Steps[2].Said, "1,500 rows") {
		t.Errorf("%+v", p.Steps)
	}
	if after := w.Objects(t); !slices.Equal(after, before) {
		t.Errorf("the archive has %q, before it had %q", after, before)
	}
	if n := w.Value(t, `select count(*) from pg_database where datname = '`+firedrill.Database+`'`); n != "0" {
		t.Error("it was played on the live server")
	}
	w.NoCopies(t, long)
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("%v, and left is %q", err, left)
	}
}

// A fire drill that is interrupted leaves nothing; one that is to stay leaves a server to look around in.
func TestFiredrillInterruptedAndKept(t *testing.T) {
	t.Parallel()
	w := open(t, 15)
	scratch := filepath.Join(w.dir, "scratch")
	w.Env = append(w.Env, "HOLDFAST_PG_BIN="+w.Programs.Dir, "HOLDFAST_DRILL_DIR="+scratch)
	w.Switch(t)
	cmd := w.Command(t, "firedrill")
	var log pgtest.Log
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the copy archives", func() bool {
		found, err := filepath.Glob(filepath.Join(scratch, "*", "run", "archive", "wal_005"))
		return err == nil && len(found) == 1
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was interrupted, and ended with 0")
	}
	if w.NoCopies(t, scratch); t.Failed() {
		t.Log(log.String())
	}

	r := w.OK(t, "firedrill", "--case", "drop", "--rows", "1000", "--json", "--keep")
	var report firedrill.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil || report.Copy == nil {
		t.Fatalf("%v in %s", err, r.Stdout)
	}
	defer os.RemoveAll(report.Copy.Scratch)              // the test's directory goes anyway
	defer syscall.Kill(report.Copy.Pid, syscall.SIGQUIT) // and the server with it
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", report.Copy.Socket, report.Copy.Port, report.Copy.Role, firedrill.Database))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var n int
	if err := conn.QueryRow(t.Context(), `select count(*) from orders_drop`).Scan(&n); err != nil || n != 1000 {
		t.Errorf("%d rows, %v", n, err)
	}
}

// A fire drill notices what did not come back as it was, and a command that fails.
func TestFiredrillNotices(t *testing.T) {
	t.Parallel()
	w := open(t, 17)
	w.Switch(t)
	w.program(t, "wrong", w.Binary+` settings >"`+w.dir+`/settings-$1" || exit
`+w.Binary+` "$@" || exit
[ "$1 $2" = "recover-table `+firedrill.Database+`.public.orders_truncate" ] && { echo 'no luck' >&2; exit 5; }
[ "$1" != recover-table ] || `+w.Programs.Dir+`/psql -Xqc 'update orders_drop set amount = amount + 1 where id = 7'`)
	st, err := file.Open(w.Root)
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New(st, archive.Options{})
	c, err := catalog.Load(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	choice, err := c.Choose("", catalog.Target{Kind: catalog.Immediate})
	if err != nil {
		t.Fatal(err)
	}
	scratch := filepath.Join(w.dir, "scratch")
	if os.Geteuid() == 0 { // the copy's directory is ours then
		if err := os.Chown(scratch, 0, 0); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{w.dir, scratch} {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := drill.Request{Choice: choice, Dir: scratch, Program: filepath.Join(w.dir, "bin", "wrong"), Programs: []string{w.Programs.Dir}, Env: w.Env}
	report, err := firedrill.Run(t.Context(), a, r, firedrill.Options{Rows: 1000, Accidents: []firedrill.Accident{firedrill.Drop, firedrill.Truncate}})
	var failed *firedrill.FailedError
	if !errors.As(err, &failed) || report == nil || report.OK || len(report.Played) != 2 {
		t.Fatalf("%v, %+v", err, report)
	}
	for i, want := range []string{"orders_drop has 1000 rows", "exit status 5"} {
		if p := report.Played[i]; p.OK || !strings.Contains(p.Error, want) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, of %v; want %q", p.Accident, p.Error, err, want)
		}
	}
	w.NoCopies(t, scratch)
	// No command reads the file of settings that lies in the home directory of its account.
	for _, command := range []string{"wal-push", "backup-push", "events", "recover-table"} {
		said, err := os.ReadFile(filepath.Join(w.dir, "settings-"+command))
		if err != nil {
			t.Error(err)
		} else if !regexp.MustCompile(`(?m)^WALG_CONFIG_PATH\b.*` + regexp.QuoteMeta(scratch) + `/\S+/none\.yaml\b`).Match(said) {
			t.Errorf("%s has other settings:\n%s", command, said)
		}
	}
}

// What makes no sense is refused before anything is restored.
func TestFiredrillRefuses(t *testing.T) {
	t.Parallel()
	w := open(t, 13)
	w.Refused(t, 1, []string{"--case flood", "drop, truncate, update or all"}, "firedrill", "--case", "flood")
	w.Refused(t, 1, []string{"--rows 10", "1000 at least"}, "firedrill", "--rows", "10")
	w.Refused(t, 1, []string{"nowhere", "no such file or directory"}, "firedrill", "--dir", filepath.Join(w.dir, "nowhere"))
	long := filepath.Join(w.dir, strings.Repeat("d", 90))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, long)
	w.Refused(t, 1, []string{"make a copy", "socket", "too many"}, "firedrill", "--dir", long)
	w.Env = append(w.Env, "TMPDIR="+long)
	w.Refused(t, 1, []string{"fire drill below", "socket", "no shorter way"}, "firedrill", "--dir", long)
}
