package backup_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// Of a delta over the wire whose parent is deleted while it comes nothing is left, and nobody is told that it is a backup.
func TestWireParentDeletedMeanwhile(t *testing.T) {
	c := newChain(t, 17)
	d := &deleting{Memory: c.store}
	c.archive = archive.New(d, archive.Options{})
	opts := backup.Options{NoWaitWAL: true, Delta: backup.Delta{MaxSteps: 9}}
	push := func() (*backup.Report, error) {
		c.Exec(t, "checkpoint")
		c.pushWAL(t)
		return backup.Wire(t.Context(), replicate(t, c.Config()), c.archive, opts)
	}
	full, err := push()
	if err != nil {
		t.Fatal(err)
	}
	second, err := push()
	if err != nil || second.Delta == nil {
		t.Fatalf("%+v, %v", second, err)
	}
	d.what = archive.BackupDir + full.Name + "_backup_stop_sentinel.json"
	backups := func() int { return strings.Count(strings.Join(names(t, c.store), "\n"), archive.BackupDir) }
	before := backups()
	if _, err := push(); err == nil || !strings.Contains(err.Error(), full.Name+", which the new backup builds on, was deleted meanwhile") {
		t.Errorf("got %v", err)
	}
	if after := backups(); after != before-1 {
		t.Errorf("%d objects before, %d after", before, after)
	}
}

// What lies behind a symbolic link in a directory of PostgreSQL's own is not sent, and without it there is no backup; elsewhere it is told.
func TestWireFollowsNoLinks(t *testing.T) {
	for _, major := range []int{10, 14, 18} {
		c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Archive: true, Settings: map[string]string{"lc_messages": "C"}})
		c.Exec(t, `create table t as select generate_series(1, 1000) i`)
		file := filepath.Join(c.Data, c.Value(t, `pg_relation_filepath('t')`))
		c.Stop(t)
		aside := filepath.Join(c.Dir, "aside")
		if err := os.Rename(file, aside); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(aside, file); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(aside, filepath.Join(c.Data, "mine")); err != nil {
			t.Fatal(err)
		}
		c.Start(t)
		m := &storetest.Memory{}
		_, err := backup.Wire(t.Context(), replicate(t, c.Config()), archive.New(m, archive.Options{}), backup.Options{NoWaitWAL: true})
		if err == nil || !strings.Contains(err.Error(), "base/") || !strings.Contains(err.Error(), filepath.Base(file)) {
			t.Errorf("%d: %v", major, err)
		}
		nothingLeft(t, m, c, "a link inside")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(aside, file); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		_, err = backup.Wire(t.Context(), replicate(t, c.Config()), archive.New(m, archive.Options{}), backup.Options{NoWaitWAL: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil || !strings.Contains(log.String(), "mine") {
			t.Errorf("%d: %v\n%s", major, err, log.String())
		}
	}
}

// A file whose name no document can hold is left out and told, as where files are read.
func TestWireStrangeNames(t *testing.T) {
	for _, major := range []int{12, 15, 18} {
		c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Archive: true})
		for _, name := range []string{"caf\xe9", "line\nbreak", `back\slash "quoted"`, "empty"} {
			file := filepath.Join(c.Data, name)
			if err := os.WriteFile(file, []byte(name)[:len(name)%5], 0o600); err != nil {
				t.Fatal(err)
			}
			pgtest.Give(t, file)
		}
		a := archive.New(&storetest.Memory{}, archive.Options{})
		report, err := backup.Wire(t.Context(), replicate(t, c.Config()), a, backup.Options{NoWaitWAL: true})
		if err != nil {
			t.Errorf("%d: %v", major, err)
			continue
		}
		if len(report.Skipped) != 1 || report.Skipped[0] != "caf\xe9" {
			t.Errorf("%d: left out: %q", major, report.Skipped)
		}
		s, err := a.Sentinel(t.Context(), report.Name)
		if err != nil || s.DataCatalogSize < 10<<20 {
			t.Errorf("%d: %+v, %v", major, s, err)
		}
	}
}

// Compression that a server was built without is not asked for a second time where the choice is its own.
func TestWireAutoTakesWhatThereIs(t *testing.T) {
	for _, major := range []int{14, 15, 16, 17} {
		c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Archive: true})
		a := archive.New(&storetest.Memory{}, archive.Options{})
		if _, err := backup.Wire(t.Context(), replicate(t, c.Config()), a, backup.Options{NoWaitWAL: true, WireCodec: "auto"}); err != nil {
			t.Errorf("%d: %v", major, err)
		}
	}
}
