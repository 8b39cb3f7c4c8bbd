package backup_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/pg/wal"
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
		_, err := backup.Wire(t.Context(), replicate(t, c.Config()), archive.New(m, inMemory), backup.Options{NoWaitWAL: true})
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
		_, err = backup.Wire(t.Context(), replicate(t, c.Config()), archive.New(m, inMemory), backup.Options{NoWaitWAL: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
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

// A server that was set back without a new timeline finds its WAL archived with other contents, and a backup that ended with that would be
// restored with it.
func TestWireWALOfAnotherHistory(t *testing.T) {
	for _, major := range []int{10, 13, 15, 18} {
		c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Settings: map[string]string{"archive_mode": "on", "archive_command": "false"}})
		c.Exec(t, `create table t as select generate_series(1, 100000) i`)
		m := &storetest.Memory{}
		a := archive.New(m, inMemory)
		for n := range wal.SegmentNo(16) {
			open := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("another history")), nil }
			if _, err := a.PutWAL(t.Context(), wal.SegmentSize(16<<20).Name(1, n), open); err != nil {
				t.Fatal(err)
			}
		}
		_, err := backup.Wire(t.Context(), replicate(t, c.Config()), a, backup.Options{})
		if conflict := new(archive.ConflictError); !errors.As(err, &conflict) {
			t.Errorf("%d: %v", major, err)
		}
		if left := strings.Join(names(t, m), " "); strings.Contains(left, archive.BackupDir) {
			t.Errorf("%d: left: %s", major, left)
		}

		// With its own there is one, and no word of that.
		own := archive.New(&storetest.Memory{}, archive.Options{})
		var log bytes.Buffer
		done := make(chan error, 1)
		go func() {
			_, err := backup.Wire(t.Context(), replicate(t, c.Config()), own, backup.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			done <- err
		}()
		for again := true; again; {
			select {
			case err := <-done:
				if again = false; err != nil || strings.Contains(log.String(), "level=WARN") {
					t.Errorf("%d: %v\n%s", major, err, log.String())
				}
			case <-time.After(20 * time.Millisecond):
				ready, err := filepath.Glob(filepath.Join(c.Data, "pg_wal", "archive_status", "*.ready"))
				if err != nil {
					t.Fatal(err)
				}
				for _, file := range ready {
					name := strings.TrimSuffix(filepath.Base(file), ".ready")
					open := func() (io.ReadCloser, error) { return os.Open(filepath.Join(c.Data, "pg_wal", name)) }
					if _, err := own.PutWAL(t.Context(), name, open); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
}
