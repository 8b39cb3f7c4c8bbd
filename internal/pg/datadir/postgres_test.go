package datadir_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/manifest"
)

// Of a running server with tablespaces, unlogged and temporary tables, the files a walk yields are those pg_basebackup takes.
func TestWalkAgreesWithBasebackup(t *testing.T) {
	const bin = "/usr/lib/postgresql/15/bin"
	if _, err := os.Stat(bin + "/pg_basebackup"); err != nil {
		if os.Getenv("REQUIRE_SERVICES") == "1" {
			t.Fatalf("REQUIRE_SERVICES=1: %v", err)
		}
		t.Skipf("no PostgreSQL 15: %v", err)
	}
	dir, err := os.MkdirTemp("", "datadir") // below t.TempDir the user postgres may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	account := &syscall.SysProcAttr{}
	owner := "postgres"
	if os.Geteuid() == 0 { // PostgreSQL refuses root
		u, err := user.Lookup(owner)
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		account.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) error {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.SysProcAttr, cmd.Dir = account, "/"
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, out)
		}
		return nil
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	pgdata, backup, space := filepath.Join(dir, "data"), filepath.Join(dir, "backup"), filepath.Join(dir, "space")
	must(run("initdb", "-D", pgdata, "-U", owner, "-A", "trust", "--no-sync"))
	// Only a Unix socket in a directory of our own: no port that others could have. Nothing may change the files by itself.
	must(run("pg_ctl", "start", "-w", "-D", pgdata, "-l", filepath.Join(dir, "log"),
		"-o", "-c listen_addresses= -c autovacuum=off -c allow_in_place_tablespaces=on -c unix_socket_directories="+dir))
	t.Cleanup(func() {
		if err := run("pg_ctl", "stop", "-m", "immediate", "-w", "-D", pgdata); err != nil {
			t.Error(err)
		}
	})
	must(os.Mkdir(space, 0o700))
	if account.Credential != nil {
		must(os.Chown(space, int(account.Credential.Uid), int(account.Credential.Gid)))
	}
	ctx := t.Context()
	db, err := pgx.Connect(ctx, fmt.Sprintf("host=%s user=%s dbname=postgres", dir, owner))
	must(err)
	defer db.Close(ctx)
	for _, sql := range []string{
		"create tablespace outside location '" + space + "'",
		"create tablespace inside location ''",
		"create database d tablespace inside",
		"create table a tablespace outside as select generate_series(1, 10000) n",
		"create unlogged table u as select generate_series(1, 10000) n",
		"create unlogged table uo tablespace outside as select generate_series(1, 10000) n",
		"create index on u (n)",
		"create temporary table t tablespace outside as select generate_series(1, 10000) n",
		"create temporary table t2 as select generate_series(1, 10000) n",
		"vacuum a, u, uo",
		"checkpoint",
	} {
		if _, err := db.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	must(run("pg_basebackup", "-h", dir, "-U", owner, "-D", backup, "-c", "fast", "-T", space+"="+filepath.Join(dir, "mapped")))

	f, err := os.Open(filepath.Join(backup, manifest.Name))
	must(err)
	defer f.Close()
	m, err := manifest.NewReader(f)
	must(err)
	var theirs []string
	for {
		file, err := m.Next()
		if err == io.EOF {
			break
		}
		must(err)
		if file.Path != "backup_label" && file.Path != "tablespace_map" {
			theirs = append(theirs, file.Path)
		}
	}
	slices.Sort(theirs)

	d, err := datadir.Open(pgdata)
	must(err)
	var ours []string
	left := map[datadir.Reason]int{}
	opts := datadir.Options{Skipped: func(path string, why datadir.Reason) {
		if strings.HasPrefix(path, "base/") || strings.HasPrefix(path, "pg_tblspc/") {
			left[why]++
		}
	}}
	for e, err := range d.Walk(opts) {
		must(err)
		if e.Kind != datadir.Directory {
			ours = append(ours, e.Path)
		}
	}
	slices.Sort(ours)
	if d := cmp.Diff(theirs, ours); d != "" {
		t.Errorf("(-pg_basebackup +walk):\n%s", d)
	}
	if left[datadir.Unlogged] < 5 || left[datadir.Temporary] < 2 || left[datadir.Volatile] < 1 {
		t.Errorf("left out: %v", left)
	}
}
