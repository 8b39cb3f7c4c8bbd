package backup_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// What another server put into the archive, of a history that is not this server's, is no part of a backup.

// The timeline of the archive's name that another server began is not the one that this server is on.
func TestTimelineOfAnotherServer(t *testing.T) {
	c := newChain(t, 15)
	c.push(t, backup.PageLSN, nil)
	s := chainOf(c.Standby(t, pgtest.Options{Settings: map[string]string{"autovacuum": "off"}}), c.store)
	s.Exec(t, "select pg_promote()")
	pgtest.Eventually(t, "the promotion", func() bool { return s.Value(t, "select pg_is_in_recovery()") == "false" })
	s.Exec(t, "checkpoint")
	history := wal.HistoryName(2)
	put := func(content string) {
		t.Helper()
		open := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
		if _, err := s.archive.PutWAL(t.Context(), history, open); err != nil {
			t.Fatal(err)
		}
	}
	put("1\tF/0\tno recovery target specified\n")
	if r := s.push(t, backup.PageLSN, nil); r.Delta != nil || !strings.Contains(r.FullBecause, history+" in the archive is not the server's") {
		t.Errorf("built on %+v: %s", r.Delta, r.FullBecause)
	}
	if err := s.store.Delete(t.Context(), archive.WALDir+history+".zst"); err != nil {
		t.Fatal(err)
	}
	put("1\t" + s.Value(t, "select split_part(pg_read_file('pg_wal/"+history+"'), E'\\t', 2)") + "\tanother reason\n")
	if r := s.push(t, backup.PageLSN, nil); r.Delta == nil {
		t.Errorf("not built on anything: %s", r.FullBecause)
	}
}

// A server that was set back without a new timeline finds its WAL archived, with other contents.
func TestWALOfAnotherHistory(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Settings: map[string]string{"archive_mode": "on", "archive_command": "false"}})
	m := &storetest.Memory{}
	a := archive.New(m, inMemory)
	for n := range wal.SegmentNo(16) {
		name := wal.SegmentSize(16<<20).Name(1, n)
		open := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("another history")), nil }
		if _, err := a.PutWAL(t.Context(), name, open); err != nil {
			t.Fatal(err)
		}
	}
	conn := connect(t, c)
	_, err := backup.Run(t.Context(), conn, a, c.Data, backup.Options{})
	var conflict *archive.ConflictError
	if err := errors.Join(err, conn.Close()); !errors.As(err, &conflict) {
		t.Errorf("got %v", err)
	}
	if left := strings.Join(names(t, m), " "); strings.Contains(left, archive.BackupDir) {
		t.Errorf("left: %s", left)
	}
}

// deleting is a store out of which something goes as soon as the control file of a backup comes.
type deleting struct {
	*storetest.Memory
	what string
}

func (d *deleting) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if strings.Contains(name, archive.ControlPart) && d.what != "" {
		if err := d.Delete(ctx, d.what); err != nil {
			return fmt.Errorf("delete %s: %w", d.what, err)
		}
	}
	return d.Memory.PutIfAbsent(ctx, name, r)
}

// Of a delta whose parent is deleted while it is taken nothing is left, and nobody is told that it is a backup.
func TestParentDeletedMeanwhile(t *testing.T) {
	c := newChain(t, 15)
	d := &deleting{Memory: c.store}
	c.archive = archive.New(d, archive.Options{})
	full := c.push(t, backup.PageLSN, nil)
	c.push(t, backup.PageLSN, nil)
	d.what = archive.BackupDir + full.Name + "_backup_stop_sentinel.json"
	before := len(names(t, c.store))
	if _, err := c.try(t, backup.PageLSN, nil); err == nil || !strings.Contains(err.Error(), full.Name+", which the new backup builds on, was deleted meanwhile") {
		t.Errorf("got %v", err)
	}
	if after := len(names(t, c.store)); after != before-1 {
		t.Errorf("%d objects before, %d after", before, after)
	}
}

// condemning is a store in which retention condemns a backup the moment before a push says that it is at work.
type condemning struct {
	*storetest.Memory
	what string // name of the backup, "" for none
}

func (c *condemning) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if what := c.what; what != "" && strings.HasSuffix(name, "/push.json") {
		c.what = ""
		d := archive.Tombstone{PurgeAfter: time.Now().Add(time.Hour), Backups: []string{what}}
		if _, err := archive.New(c.Memory, archive.Options{}).AddRecord(ctx, archive.TombstoneDir, "", d); err != nil {
			return err
		}
	}
	return c.Memory.PutIfAbsent(ctx, name, r)
}

// What retention has condemned is not built on, though it was not when it was chosen: the backup is a full one.
func TestParentCondemnedMeanwhile(t *testing.T) {
	c := newChain(t, 15)
	d := &condemning{Memory: c.store}
	c.archive = archive.New(d, archive.Options{})
	full := c.push(t, backup.PageLSN, nil)
	d.what = full.Name
	r := c.push(t, backup.PageLSN, nil)
	if r.Delta != nil || !strings.Contains(r.FullBecause, full.Name+", which was to be built on, is condemned") {
		t.Errorf("%s: %+v, %q", r.Name, r.Delta, r.FullBecause)
	}
}
