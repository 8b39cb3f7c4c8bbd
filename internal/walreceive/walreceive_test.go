package walreceive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/walpush"
	"holdfast/internal/walreceive"
	"holdfast/test/pgtest"
)

const mib = wal.SegmentSize(1 << 20)

func primary(t *testing.T) *pgtest.Cluster {
	t.Helper()
	c := pgtest.New(t, pgtest.Require(t, pgtest.Newest), pgtest.Options{SegmentSize: mib, Settings: map[string]string{"wal_keep_size": "1GB"}})
	c.Exec(t, `create table t (n int)`)
	return c
}

// flow is a Run at work.
type flow struct {
	cancel context.CancelFunc
	done   chan error
	report walreceive.Report
}

func options(dir string, s store.Store) walreceive.Options {
	return walreceive.Options{
		Slot: "walg", Dir: dir, Host: "here", TailInterval: 10 * time.Millisecond,
		Push: func(ctx context.Context, path string) error {
			a := archive.New(s, archive.Options{})
			_, err := walpush.Push(ctx, func(context.Context) (walpush.Archive, walpush.Archive, error) { return a, a, nil }, path, walpush.Options{Location: "memory", Host: "here"})
			return err
		},
	}
}

func receive(t *testing.T, c *pgtest.Cluster, s store.Store, o walreceive.Options) *flow {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	f := &flow{cancel: cancel, done: make(chan error, 1)}
	cfg := c.Config()
	go func() {
		var err error
		f.report, err = walreceive.Run(ctx, func(ctx context.Context) (*server.Replication, error) { return server.ConnectStream(ctx, cfg) },
			archive.New(s, archive.Options{}), o)
		f.done <- err
	}()
	t.Cleanup(func() { cancel() })
	return f
}

// stop ends it, which must be no error.
func (f *flow) stop(t *testing.T) {
	t.Helper()
	f.cancel()
	if err := f.wait(t); err != nil {
		t.Fatal(err)
	}
}

func (f *flow) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-f.done:
		return err
	case <-time.After(2 * time.Minute):
		t.Fatal("Run does not return")
		return nil
	}
}

// finish ends the current segment, and waits until the store has it as the server wrote it.
func finish(t *testing.T, c *pgtest.Cluster, s store.Store) string {
	t.Helper()
	name := c.Value(t, `pg_walfile_name(pg_switch_wal())`)
	a := archive.New(s, archive.Options{})
	pgtest.Eventually(t, name+" is archived", func() bool {
		there, err := a.HasWAL(t.Context(), name)
		return err == nil && there
	})
	compare(t, c, a, name)
	return name
}

func compare(t *testing.T, c *pgtest.Cluster, a *archive.Archive, name string) {
	t.Helper()
	want, err := os.ReadFile(filepath.Join(c.Data, "pg_wal", name))
	if err != nil {
		t.Fatal(err)
	}
	r, err := a.OpenWholeWAL(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v: not the server's", name, len(got), err)
	}
}

// received waits until the store has what c has written, and returns the segment.
func received(t *testing.T, c *pgtest.Cluster, s store.Store) (name string, held int64) {
	t.Helper()
	lsn, err := wal.ParseLSN(c.Value(t, `pg_current_wal_flush_lsn()`))
	if err != nil {
		t.Fatal(err)
	}
	name = mib.Name(1, mib.LastSegment(lsn))
	pgtest.Eventually(t, "the store has "+lsn.String(), func() bool {
		r, err := archive.New(s, archive.Options{}).OpenWAL(t.Context(), name)
		if err != nil {
			return false
		}
		defer r.Close()
		h, ok := r.(interface{ Held() int64 })
		if ok {
			held = h.Held()
		}
		return ok && mib.Start(mib.LastSegment(lsn))+wal.LSN(held) >= lsn
	})
	return name, held
}

// What a crash of the machine may have done to the segment that was being received does no harm: it is received again from where it is right.
func TestSpoiltSpoolIsReceivedAgain(t *testing.T) {
	c := primary(t)
	s, dir := &storetest.Memory{}, t.TempDir()
	for what, spoil := range map[string]func(b []byte) []byte{
		"nothing":          func(b []byte) []byte { return b },
		"zeros behind":     func(b []byte) []byte { return append(b, make([]byte, 5000)...) },
		"garbage behind":   func(b []byte) []byte { return append(b, bytes.Repeat([]byte("x"), 5000)...) },
		"cut":              func(b []byte) []byte { return b[:len(b)-7] },
		"cut in its head":  func(b []byte) []byte { return b[:20] },
		"empty":            func(b []byte) []byte { return nil },
		"zeros at the end": func(b []byte) []byte { clear(b[len(b)-100:]); return b },
		"zeros":            func(b []byte) []byte { clear(b); return b },
	} {
		f := receive(t, c, s, options(dir, s))
		c.Exec(t, `insert into t select generate_series(1, 1000)`)
		name, _ := received(t, c, s)
		f.stop(t)
		path := filepath.Join(dir, name+".receiving")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := os.WriteFile(path, spoil(b), 0o600); err != nil {
			t.Fatal(err)
		}
		f = receive(t, c, s, options(dir, s))
		finish(t, c, s)
		f.stop(t)
		if f.report.Segments == 0 || f.report.Timeline != 1 || f.report.Received != f.report.Stored {
			t.Errorf("%s: %+v", what, f.report)
		}
	}
}

// Where what was received is right by itself and is not what the server has, nothing goes on.
func TestDivergedServerIsRefused(t *testing.T) {
	c := primary(t)
	s, dir := &storetest.Memory{}, t.TempDir()
	f := receive(t, c, s, options(dir, s))
	c.Exec(t, `insert into t select generate_series(1, 1000)`)
	name, _ := received(t, c, s)
	f.stop(t)
	path := filepath.Join(dir, name+".receiving")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[30] ^= 1 // of the system identifier: no record's checksum is over that
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, c, s, options(dir, s)).wait(t); err == nil {
		t.Error("WAL of another cluster is taken for this one's")
	}
	b[30] ^= 1
	at := bytes.LastIndex(b, make([]byte, 3)) // what fills up a record to a multiple of 8, if anything does
	for ; at > 100; at = bytes.LastIndex(b[:at], make([]byte, 3)) {
		spoilt := bytes.Clone(b)
		spoilt[at+2] = 1
		if n, err := walreceive.Intact(bytes.NewReader(spoilt), int64(len(b)), mib); err == nil && n == int64(len(b)) {
			b = spoilt
			break
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var diverged *walreceive.DivergedError
	if err := receive(t, c, s, options(dir, s)).wait(t); !errors.As(err, &diverged) || diverged.Segment != name || !strings.Contains(diverged.Hint(), dir) {
		t.Errorf("got %v", err)
	}
}

// A receiver that has lost its spool begins where the archive ends, and be that in the first segment that it had begun.
func TestLostSpoolSkipsNothing(t *testing.T) {
	c := primary(t)
	s := &storetest.Memory{}
	a := archive.New(s, archive.Options{})
	f := receive(t, c, s, options(t.TempDir(), s))
	c.Exec(t, `insert into t select generate_series(1, 1000)`)
	first, _ := received(t, c, s)
	f.stop(t)
	if whole, err := a.HasWAL(t.Context(), first); err != nil || whole {
		t.Fatal(whole, err)
	}
	_, next, err := mib.ParseSegment(first)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // the second time whole segments are there, and the one that was begun
		c.Exec(t, `insert into t values (1)`, `select pg_switch_wal()`, `insert into t values (2)`, `select pg_switch_wal()`, `insert into t values (3)`)
		f := receive(t, c, s, options(t.TempDir(), s))
		last := finish(t, c, s)
		for name := ""; name != last; next++ {
			name = mib.Name(1, next)
			compare(t, c, a, name)
		}
		c.Exec(t, `insert into t values (4)`)
		received(t, c, s)
		f.stop(t)
	}
}

func TestForeignArchiveIsRefused(t *testing.T) {
	c := primary(t)
	s := &storetest.Memory{}
	if err := archive.New(s, archive.Options{}).Claim(t.Context(), 1, "other", false); err != nil {
		t.Fatal(err)
	}
	var owner *archive.OwnerError
	if err := receive(t, c, s, options(t.TempDir(), s)).wait(t); !errors.As(err, &owner) {
		t.Errorf("got %v", err)
	}
}

func TestSpoolIsForOne(t *testing.T) {
	c := primary(t)
	s, dir := &storetest.Memory{}, t.TempDir()
	f := receive(t, c, s, options(dir, s))
	received(t, c, s)
	if err := receive(t, c, s, options(dir, s)).wait(t); err == nil || !strings.Contains(err.Error(), "another wal-receive") {
		t.Errorf("got %v", err)
	}
	f.stop(t)
}

// Other content under a segment's name ends it: the segment stays where it is.
func TestConflictIsAnError(t *testing.T) {
	c := primary(t)
	s, dir := &storetest.Memory{}, t.TempDir()
	f := receive(t, c, s, options(dir, s))
	name, _ := received(t, c, s)
	other := make([]byte, mib)
	if _, err := archive.New(s, archive.Options{}).PutWAL(t.Context(), name, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(other)), nil }); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, `select pg_switch_wal()`)
	var conflict *archive.ConflictError
	if err := f.wait(t); !errors.As(err, &conflict) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
		t.Errorf("the segment is gone: %v", err)
	}
}

// shaky is a store of which now and then a call fails.
type shaky struct {
	store.Store
	calls, failed atomic.Int64
}

var errShaky = errors.New("shaky")

func (s *shaky) fails() bool {
	s.calls.Add(1)
	if rand.IntN(16) == 0 {
		s.failed.Add(1)
		return true
	}
	return false
}

func (s *shaky) Put(ctx context.Context, name string, r io.Reader) error {
	if s.fails() {
		return errShaky
	}
	return s.Store.Put(ctx, name, r)
}

func (s *shaky) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if s.fails() {
		return errShaky
	}
	err := store.PutIfAbsent(ctx, s.Store, name, r)
	if err == nil && s.fails() {
		return errShaky // it was stored
	}
	return err
}

func (s *shaky) Stat(ctx context.Context, name string) (store.Object, error) {
	if s.fails() {
		return store.Object{}, errShaky
	}
	return s.Store.Stat(ctx, name)
}

func (s *shaky) Delete(ctx context.Context, name string) error {
	if s.fails() {
		return errShaky
	}
	return s.Store.Delete(ctx, name)
}

// A store of which calls fail now and then delays, and loses nothing.
func TestShakyStoreLosesNothing(t *testing.T) {
	c := primary(t)
	m := &storetest.Memory{}
	s := &shaky{Store: m}
	f := receive(t, c, s, options(t.TempDir(), s))
	var names []string
	for range 4 {
		c.Exec(t, `insert into t select generate_series(1, 3000)`)
		names = append(names, finish(t, c, m))
	}
	f.stop(t)
	_, first, err := mib.ParseSegment(names[0])
	if err != nil {
		t.Fatal(err)
	}
	_, last, err := mib.ParseSegment(names[len(names)-1])
	if err != nil {
		t.Fatal(err)
	}
	for no := first; no <= last; no++ {
		compare(t, c, archive.New(m, archive.Options{}), mib.Name(1, no))
	}
	if s.failed.Load() == 0 {
		t.Error("no call has failed")
	}
}

// safe notes what of the log a store holds at each moment.
type safe struct {
	*storetest.Memory
	mu    sync.Mutex
	until wal.LSN
}

func (s *safe) Put(ctx context.Context, name string, r io.Reader) error {
	err := s.Memory.Put(ctx, name, r)
	var segment string
	var start, end int64
	if rest, ok := strings.CutPrefix(name, archive.TailDir); err == nil && ok {
		segment = rest[:24]
		if _, err := fmt.Sscanf(rest[25:], "%08X-%08X", &start, &end); err != nil {
			return err
		}
		_, no, err := mib.ParseSegment(segment)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.until = max(s.until, mib.Start(no)+wal.LSN(end))
		s.mu.Unlock()
	}
	return err
}

// What a synchronous receiver reports as flushed is in the store, and a commit that waits for it comes back.
func TestSynchronousCommitIsStored(t *testing.T) {
	c := primary(t)
	s := &safe{Memory: &storetest.Memory{}}
	o := options(t.TempDir(), s)
	o.Synchronous, o.Local, o.Store = true, true, true
	f := receive(t, c, s, o)
	received(t, c, s)
	c.Exec(t, `alter system set synchronous_standby_names = 'holdfast'`, `select pg_reload_conf()`)
	pgtest.Eventually(t, "commits wait", func() bool {
		return c.Value(t, `select coalesce(bool_or(sync_state = 'sync'), false) from pg_stat_replication`) == "true"
	})
	conn := c.Conn(t)
	for n := range 200 {
		var at string
		if err := conn.QueryRow(t.Context(), `insert into t values ($1) returning pg_current_wal_insert_lsn()::text`, n).Scan(&at); err != nil {
			t.Fatal(err)
		}
		lsn, err := wal.ParseLSN(at) // the commit's record comes behind it
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		until := s.until
		s.mu.Unlock()
		if until <= lsn {
			t.Fatalf("row %d, committed behind %s, was acknowledged, and the store has WAL up to %s", n, lsn, until)
		}
	}
	f.stop(t)
	names, err := archive.New(s, archive.Options{}).Tails(t.Context())
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	pieces, err := archive.New(s, archive.Options{}).TailPieces(t.Context(), names[len(names)-1])
	if err != nil || len(pieces) > 2*walreceive.MaxPieces {
		t.Errorf("%d pieces, %v", len(pieces), err)
	}
}

// What commits were acknowledged by on this host's disk alone, with pieces switched off, is in the archive once the server is lost: a restore reads no spool.
func TestLocalCommitReachesTheStore(t *testing.T) {
	c := primary(t)
	s := &storetest.Memory{}
	o := options(t.TempDir(), s)
	o.Synchronous, o.Local, o.TailInterval = true, true, 0
	f := receive(t, c, s, o)
	c.Exec(t, `alter system set synchronous_standby_names = 'holdfast'`, `select pg_reload_conf()`)
	pgtest.Eventually(t, "commits wait", func() bool {
		return c.Value(t, `select coalesce(bool_or(sync_state = 'sync'), false) from pg_stat_replication`) == "true"
	})
	c.Exec(t, `insert into t values (1)`)
	lsn, err := wal.ParseLSN(c.Value(t, `pg_current_wal_flush_lsn()`))
	if err != nil {
		t.Fatal(err)
	}
	name := mib.Name(1, mib.LastSegment(lsn))
	if _, err := archive.New(s, archive.Options{}).OpenWAL(t.Context(), name); err == nil {
		t.Errorf("of %s there are pieces, which are switched off", name)
	}
	c.Stop(t)
	pgtest.Eventually(t, "the store has "+lsn.String(), func() bool {
		r, err := archive.New(s, archive.Options{}).OpenWAL(t.Context(), name)
		if err != nil {
			return false
		}
		defer r.Close()
		h, ok := r.(interface{ Held() int64 })
		return ok && mib.Start(mib.LastSegment(lsn))+wal.LSN(h.Held()) >= lsn
	})
	f.stop(t)
}

// Pieces become few, and each byte is stored again only now and then.
func TestMergedPiecesStayFew(t *testing.T) {
	for _, size := range []func() int64{func() int64 { return 100 }, func() int64 { return rand.Int64N(5000) + 1 }, func() int64 { return rand.Int64N(1<<rand.IntN(16)) + 1 }} {
		var pieces []archive.TailPiece
		var end, moved int64
		for range 20_000 {
			n := size()
			pieces = append(pieces, archive.TailPiece{Start: end, End: end + n})
			if end += n; len(pieces) < walreceive.MaxPieces {
				continue
			}
			from, to := walreceive.Mergeable(pieces)
			i := 0
			for pieces[i].Start < from {
				i++
			}
			if pieces[i].Start != from || to != end || len(pieces)-i < walreceive.MergePieces {
				t.Fatalf("of %d pieces those from %d to %d, which begin with number %d", len(pieces), from, to, i)
			}
			moved += to - from
			pieces = append(pieces[:i], archive.TailPiece{Start: from, End: to})
		}
		if moved > 16*end {
			t.Errorf("%d bytes were stored again of %d", moved, end)
		}
	}
}

// The server that was lost had sent more than the standby had that was promoted: what is there of the old timeline acknowledges nothing on the new one.
func TestAnotherTimelineAcknowledgesNothing(t *testing.T) {
	start := mib.Start(3)
	for _, archived := range []bool{false, true} {
		l := walreceive.NewLine(t.TempDir(), mib, 1, start)
		if err := l.Take(1, start, make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		l.Store(4000, false)
		if w, _, s := l.Reported(); w != start+5000 || s != start+4000 {
			t.Fatalf("on its own timeline reported %s written and %s stored", w, s)
		}
		l.Leave(2, start) // which begins 1000 bytes into the segment, say
		l.Store(4000, archived)
		if w, y, s := l.Reported(); w > start || y > start || s > start {
			t.Errorf("archived %v: nothing of timeline 2 was received, and reported was %s written, %s synced, %s stored", archived, w, y, s)
		}
		if err := l.Take(2, start, make([]byte, 2000)); err != nil {
			t.Fatal(err)
		}
		if w, _, s := l.Reported(); w != start+2000 || s > start {
			t.Errorf("archived %v: 2000 bytes of timeline 2 were received and none stored, and reported was %s written, %s stored", archived, w, s)
		}
		if !archived {
			l.Store(5000, true)
		}
		l.Store(1500, false)
		if _, _, s := l.Reported(); s != start+1500 {
			t.Errorf("archived %v: 1500 bytes of timeline 2 are stored, and reported was %s", archived, s)
		}
	}
}
