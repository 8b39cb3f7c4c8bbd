package receive_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/pg/wal"
	"holdfast/test/pgtest"
)

// What the server is writing counts wherever it is asked what there is: the ribbon reaches to where the server was, whatever is listed has it, verification reads it, retention
// lets it be, and a copy restores to it.
func TestPiecesAreKnown(t *testing.T) {
	t.Parallel()
	c, at := cluster(t, pgtest.Require(t, 17)), newPlace(t)
	s := at.site(c)
	r := at.receive(t, c.Environ())
	c.Exec(t, `create table t as select generate_series(1, 1000) n`)
	at.tailHas(t, c)
	s.Push(t)
	c.Exec(t, `insert into t values (0)`)
	at.finish(t, c)
	at.tidy(t)
	c.Exec(t, `insert into t values (-1)`)
	between := c.Value(t, `pg_current_wal_insert_lsn()`)
	before := c.Value(t, `clock_timestamp()`)
	c.Exec(t, `insert into t values (-2)`)
	flushed, err := wal.ParseLSN(c.Value(t, `pg_current_wal_flush_lsn()`))
	if err != nil {
		t.Fatal(err)
	}
	at.tailHas(t, c)
	r.signal(t, syscall.SIGTERM)
	name := mib.Name(1, mib.LastSegment(flushed))

	var found struct {
		Status string `json:"status"`
		Until  struct {
			LSN    string `json:"lsn"`
			Commit string `json:"last_commit"`
		} `json:"restorable_until"`
	}
	out := at.ok(t, nil, "ribbon", "--json")
	if err := json.Unmarshal([]byte(out.Stdout), &found); err != nil {
		t.Fatal(err)
	}
	if until, err := wal.ParseLSN(found.Until.LSN); err != nil || until < flushed || found.Status != "OK" {
		t.Errorf("the server was at %s, and the ribbon says %+v, %v\n%s", flushed, found, err, out.Stdout)
	}
	if found.Until.Commit == "" || c.Value(t, `'`+found.Until.Commit+`'::timestamptz > '`+before+`'`) != "true" {
		t.Errorf("a row came after %s, and the last commit that the ribbon knows is of %q", before, found.Until.Commit)
	}
	if out := at.ok(t, nil, "wal-show"); !strings.Contains(out.Stdout, name+" in pieces, up to ") {
		t.Errorf("wal-show: %s", out.Stdout)
	}
	if out := at.ok(t, c.Environ(), "check", "--only", "holes,restorable,wal-age"); !strings.Contains(out.Stdout, "OK") {
		t.Errorf("check: %s", out.Stdout)
	}
	at.ok(t, nil, "verify", "all")
	at.ok(t, nil, "delete", "garbage", "--confirm")
	at.ok(t, nil, "delete", "retain", "1", "--confirm")
	a := at.archive(t)
	if tail, err := a.Tail(t.Context(), name); err != nil || tail.Held == 0 {
		t.Fatalf("after retention there is %+v, %v", tail, err)
	}

	second := at.root + "2"
	if err := os.Mkdir(second, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, second)
	var files []string
	for _, root := range []string{at.root, second} {
		file := filepath.Join(filepath.Dir(at.root), filepath.Base(root)+".yaml")
		if err := os.WriteFile(file, []byte("WALG_FILE_PREFIX: "+root+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	at.ok(t, nil, "copy", "--from", files[0], "--to", files[1])
	destroy(t, c)
	if err := os.RemoveAll(at.root); err != nil {
		t.Fatal(err)
	}
	at.root, at.env = second, []string{"WALG_FILE_PREFIX=" + second}
	for _, c2 := range []struct {
		args []string
		want string
	}{{[]string{"--target", "latest"}, "-2 -1"}, {[]string{"--target-lsn", between, "--target-action", "promote"}, "-1"}} { // both lie in the segment in pieces
		restored := at.site(c).Restored(t, c2.args...)
		if got := restored.Value(t, `select string_agg(n::text, ' ' order by n) from t where n < 0`); got != c2.want {
			t.Errorf("%q restored %q, want %q", c2.args, got, c2.want)
		}
		restored.Stop(t)
	}
}
