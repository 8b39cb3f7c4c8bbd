package walreceive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"holdfast/internal/archive"
	"holdfast/internal/crypt"
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
	return receiveInto(t, c, archive.New(s, archive.Options{}), o)
}

func receiveInto(t *testing.T, c *pgtest.Cluster, a *archive.Archive, o walreceive.Options) *flow {
	t.Helper()
	cfg := c.Config()
	return receiveBy(t, func(ctx context.Context) (*server.Replication, error) { return server.ConnectStream(ctx, cfg) }, a, o)
}

func receiveBy(t *testing.T, connect func(context.Context) (*server.Replication, error), a *archive.Archive, o walreceive.Options) *flow {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	f := &flow{cancel: cancel, done: make(chan error, 1)}
	go func() {
		var err error
		f.report, err = walreceive.Run(ctx, connect, a, o)
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

// shaky is a store of which now and then a call fails, and the eighth for certain.
type shaky struct {
	store.Store
	calls, failed atomic.Int64
}

var errShaky = errors.New("shaky")

func (s *shaky) fails() bool {
	if s.calls.Add(1) == 8 || rand.IntN(16) == 0 {
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
	received(t, c, m) // it begins where the server is, and not with what was whole before
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

// unlisted is a store that for a while does not tell what it has, and counts how often it was asked.
type unlisted struct {
	store.Store
	is    atomic.Bool
	asked atomic.Int64
}

var errUnlisted = errors.New("nothing is listed")

func (s *unlisted) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return store.PutIfAbsent(ctx, s.Store, name, r)
}

func (s *unlisted) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	if s.is.Load() {
		s.asked.Add(1)
		return func(yield func(store.Object, error) bool) { yield(store.Object{}, errUnlisted) }
	}
	return s.Store.List(ctx, dir, after)
}

// From when the slot is there nothing is passed over of what is written, however late it can be seen that the archive is empty.
func TestLateStoreSkipsNothing(t *testing.T) {
	c := primary(t)
	s := &unlisted{Store: &storetest.Memory{}}
	a := archive.New(s, archive.Options{})
	sysid, err := strconv.ParseUint(c.Value(t, `select system_identifier from pg_control_system()`), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Claim(t.Context(), sysid, "here", false); err != nil { // which comes before the slot, and would ask, too
		t.Fatal(err)
	}
	s.is.Store(true)
	f := receive(t, c, s, options(t.TempDir(), s))
	pgtest.Eventually(t, "it was asked what the archive has", func() bool { return s.asked.Load() > 0 })
	var names []string
	for range 3 {
		c.Exec(t, `insert into t values (1)`)
		names = append(names, c.Value(t, `pg_walfile_name(pg_switch_wal())`))
	}
	asked := s.asked.Load()
	pgtest.Eventually(t, "it was asked again", func() bool { return s.asked.Load() > asked })
	s.is.Store(false)
	c.Exec(t, `insert into t values (1)`) // of a segment without content there is no end
	names = append(names, finish(t, c, s))
	f.stop(t)
	for _, name := range names {
		compare(t, c, a, name)
	}
}

// cut makes a way to a server for one session, which is lost once a slot was made: with its answer, or else with the next question. It returns how the server is reached by it.
func cut(t *testing.T, c *pgtest.Cluster, withAnswer bool) server.Config {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := filepath.Join(c.Server.Host(), ".s.PGSQL."+strconv.Itoa(c.Server.Port()))
	var done sync.WaitGroup
	done.Go(func() {
		near, err := listener.Accept()
		if err != nil {
			return
		}
		defer near.Close()
		far, err := net.Dial("unix", address)
		if err != nil {
			t.Error(err)
			return
		}
		defer far.Close()
		var asked atomic.Bool
		pass := func(to, from net.Conn, lost bool) {
			defer near.Close()
			defer far.Close()
			b := make([]byte, 1<<16)
			for {
				n, err := from.Read(b)
				if err != nil || lost && asked.Load() {
					return
				}
				if bytes.Contains(b[:n], []byte("CREATE_REPLICATION_SLOT")) {
					asked.Store(true)
				}
				if _, err := to.Write(b[:n]); err != nil {
					return
				}
			}
		}
		done.Go(func() { pass(near, far, withAnswer) })
		pass(far, near, true)
	})
	t.Cleanup(func() {
		listener.Close()
		done.Wait()
	})
	cfg := c.Config()
	cfg["host"], cfg["port"], _ = net.SplitHostPort(listener.Addr().String())
	return cfg
}

// Nor is anything passed over when the session is lost just as the slot is there, and the next finds it.
func TestLostSessionSkipsNothing(t *testing.T) {
	for name, withAnswer := range map[string]bool{"answer": true, "question": false} {
		t.Run(name, func(t *testing.T) {
			c := primary(t)
			s := &storetest.Memory{}
			a := archive.New(s, archive.Options{})
			first, next, on := cut(t, c, withAnswer), c.Config(), make(chan struct{})
			var sessions atomic.Int64
			f := receiveBy(t, func(ctx context.Context) (*server.Replication, error) {
				if sessions.Add(1) == 1 {
					return server.ConnectStream(ctx, first)
				}
				select {
				case <-on:
					return server.ConnectStream(ctx, next)
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}, a, options(t.TempDir(), s))
			pgtest.Eventually(t, "the session was lost", func() bool { return sessions.Load() > 1 })
			if got := c.Value(t, `select string_agg(slot_name, ' ') from pg_replication_slots`); got != "walg" {
				t.Fatalf("slots: %q", got)
			}
			var names []string
			for range 3 {
				c.Exec(t, `insert into t values (1)`)
				names = append(names, c.Value(t, `pg_walfile_name(pg_switch_wal())`))
			}
			close(on)
			c.Exec(t, `insert into t values (1)`) // of a segment without content there is no end
			names = append(names, finish(t, c, s))
			f.stop(t)
			for _, name := range names {
				compare(t, c, a, name)
			}
		})
	}
}

// safe notes what of the log a store holds at each moment.
type safe struct {
	*storetest.Memory
	mu    sync.Mutex
	until wal.LSN
}

func (s *safe) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	err := s.Memory.PutIfAbsent(ctx, name, r)
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

// away is a store that is away for a while.
type away struct {
	store.Store
	is atomic.Bool
}

var errAway = errors.New("the store is away")

func (s *away) Put(ctx context.Context, name string, r io.Reader) error {
	if s.is.Load() {
		return errAway
	}
	return s.Store.Put(ctx, name, r)
}

func (s *away) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	if s.is.Load() {
		return errAway
	}
	return store.PutIfAbsent(ctx, s.Store, name, r)
}

func (s *away) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if s.is.Load() {
		return nil, errAway
	}
	return s.Store.Open(ctx, name)
}

func (s *away) Stat(ctx context.Context, name string) (store.Object, error) {
	if s.is.Load() {
		return store.Object{}, errAway
	}
	return s.Store.Stat(ctx, name)
}

func (s *away) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	if s.is.Load() {
		return func(yield func(store.Object, error) bool) { yield(store.Object{}, errAway) }
	}
	return s.Store.List(ctx, dir, after)
}

// Where commits wait for this host's disk alone, they do so with a store that is away too, and be it since before the receiver was started anew: also when a timeline
// has begun meanwhile. What was received goes to the archive once it is back.
func TestLocalCommitNeedsNoStore(t *testing.T) {
	c := primary(t)
	s, dir := &away{Store: &storetest.Memory{}}, t.TempDir()
	o := options(dir, s)
	o.Synchronous, o.Local = true, true
	f := receive(t, c, s, o)
	received(t, c, s)
	f.stop(t)
	s.is.Store(true)
	standby := c.Standby(t, pgtest.Options{})
	c.CatchUp(t, standby)
	c.Stop(t)
	standby.Exec(t, `select pg_promote()`)
	f = receive(t, standby, s, o)
	standby.Exec(t, `alter system set synchronous_standby_names = 'holdfast'`, `select pg_reload_conf()`)
	pgtest.Eventually(t, "commits wait, and are acknowledged", func() bool {
		return standby.Value(t, `select coalesce(bool_or(sync_state = 'sync'), false) from pg_stat_replication`) == "true"
	})
	standby.Exec(t, `set statement_timeout = '1min'`, `insert into t values (1)`)
	s.is.Store(false)
	a := archive.New(s, archive.Options{})
	name := standby.Value(t, `pg_walfile_name(pg_switch_wal())`)
	pgtest.Eventually(t, name+" and the history are archived", func() bool {
		there, err := a.HasWAL(t.Context(), name)
		if err != nil || !there {
			return false
		}
		there, err = a.HasWAL(t.Context(), wal.HistoryName(2))
		return err == nil && there
	})
	f.stop(t)
}

// A primary that is lost may have come further than where the standby's timeline begins: what was received of both is there after a restart, too.
func TestBothTimelinesSurviveARestart(t *testing.T) {
	c := primary(t)
	s, dir := &away{Store: &storetest.Memory{}}, t.TempDir()
	standby := c.Standby(t, pgtest.Options{})
	c.CatchUp(t, standby)
	standby.Exec(t, `alter system set primary_conninfo = ''`, `select pg_reload_conf()`)
	pgtest.Eventually(t, "the standby follows nobody", func() bool { return c.Value(t, `select count(*) from pg_stat_replication`) == "0" })
	o := options(dir, s)
	o.Synchronous, o.Local = true, true
	f := receive(t, c, s, o)
	c.Exec(t, `insert into t values (1)`)
	received(t, c, s)
	f.stop(t)
	s.is.Store(true)
	var names []string
	spooled := func(of *pgtest.Cluster) {
		for range 2 {
			of.Exec(t, `insert into t select generate_series(1, 100)`)
			names = append(names, of.Value(t, `pg_walfile_name(pg_switch_wal())`))
		}
		pgtest.Eventually(t, names[len(names)-1]+" is received", func() bool {
			_, err := os.Stat(filepath.Join(dir, names[len(names)-1]))
			return err == nil
		})
	}
	f = receive(t, c, s, o)
	spooled(c)
	c.Stop(t)
	f.stop(t)
	standby.Exec(t, `select pg_promote()`)
	f = receive(t, standby, s, o)
	spooled(standby)
	f.stop(t)
	standby.Stop(t)
	f = receive(t, standby, s, o) // which nobody answers
	s.is.Store(false)
	a := archive.New(s, archive.Options{})
	for _, name := range names {
		pgtest.Eventually(t, name+" is archived", func() bool {
			there, err := a.HasWAL(t.Context(), name)
			return err == nil && there
		})
	}
	f.stop(t)
}

// While the receiver was away a standby was promoted that has no slot: it has archived what followed, and removed it. Nothing is missing.
func TestOthersArchivedAcrossAPromotion(t *testing.T) {
	c := primary(t)
	m, dir := &storetest.Memory{}, t.TempDir()
	standby := c.Standby(t, pgtest.Options{Settings: map[string]string{"wal_keep_size": "0", "max_wal_size": "2MB", "min_wal_size": "2MB", "wal_recycle": "off"}})
	o := options(dir, m)
	f := receive(t, c, m, o)
	c.Exec(t, `insert into t values (1)`)
	received(t, c, m)
	f.stop(t)
	c.CatchUp(t, standby)
	c.Stop(t)
	standby.Exec(t, `select pg_promote()`)
	path := func(name string) string { return filepath.Join(standby.Data, "pg_wal", name) }
	first := ""
	for range 4 {
		standby.Exec(t, `insert into t select generate_series(1, 1000)`)
		name := standby.Value(t, `pg_walfile_name(pg_switch_wal())`)
		if first == "" {
			first = name
		}
		if err := o.Push(t.Context(), path(name)); err != nil {
			t.Fatal(err)
		}
	}
	pgtest.Eventually(t, first+" is gone", func() bool {
		standby.Exec(t, `insert into t values (2)`, `checkpoint`)
		_, err := os.Stat(path(first))
		return errors.Is(err, fs.ErrNotExist)
	})
	f = receive(t, standby, m, o)
	pgtest.Eventually(t, "it receives", func() bool {
		select {
		case err := <-f.done:
			t.Fatalf("the receiver has ended: %v", err)
		default:
		}
		return standby.Value(t, `select count(*) from pg_stat_replication where state = 'streaming'`) == "1"
	})
	standby.Exec(t, `insert into t values (3)`)
	finish(t, standby, m)
	f.stop(t)
}

// Two servers on one timeline, each with a receiver: who finds what the other has stored stops, and says what it is. The same content, as by two receivers of one
// server, is fine.
func TestRivalsStop(t *testing.T) {
	c := primary(t)
	s, dir := &storetest.Memory{}, t.TempDir()
	a := archive.New(s, archive.Options{})
	f := receive(t, c, s, options(dir, s))
	c.Exec(t, `insert into t select generate_series(1, 100)`)
	name, held := received(t, c, s)
	f.stop(t)
	other := options(t.TempDir(), s)
	other.Slot = "other"
	f = receive(t, c, s, other)
	c.Exec(t, `insert into t select generate_series(1, 100)`)
	if now, _ := received(t, c, s); now != name {
		t.Fatalf("%s became %s", name, now)
	}
	f.stop(t)
	f = receive(t, c, s, options(dir, s))
	c.Exec(t, `insert into t select generate_series(1, 100)`)
	name, held = received(t, c, s)
	f.stop(t)
	rival, err := a.PutTail(t.Context(), name, held-1000, held+3000, bytes.NewReader(bytes.Repeat([]byte("rival"), 800)))
	if err != nil {
		t.Fatal(err)
	}
	f = receive(t, c, s, options(dir, s))
	c.Exec(t, `insert into t select generate_series(1, 100)`)
	var found *walreceive.RivalError
	if err := f.wait(t); !errors.As(err, &found) || found.Segment != name || found.Object != rival.Object || !strings.Contains(found.Hint(), dir) {
		t.Errorf("got %v", err)
	}
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

// A host that has public keys only cannot read what an earlier run of its own has stored. Started anew, twice within a segment, it stores what comes at once, each
// time.
func TestPublicKeysSurviveARestart(t *testing.T) {
	c := primary(t)
	m, dir := &storetest.Memory{}, t.TempDir()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := func(k crypt.AgeKeys) crypt.Key {
		ring, err := crypt.Open(t.Context(), crypt.Options{Age: k})
		if err != nil {
			t.Fatal(err)
		}
		return ring
	}
	var lines logged
	reader := archive.New(m, archive.Options{Key: key(crypt.AgeKeys{Recipients: id.Recipient().String(), Identities: id.String()})})
	writer := archive.New(m, archive.Options{Key: key(crypt.AgeKeys{Recipients: id.Recipient().String()}), WriteOnly: true})
	for n := range 3 {
		o := options(dir, m)
		o.Synchronous, o.Local, o.Store = true, true, true
		o.Logger = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelWarn}))
		f := receiveInto(t, c, writer, o)
		c.Exec(t, `insert into t select generate_series(1, 100)`)
		for range 3 {
			c.Exec(t, `insert into t values (1)`)
			lsn, err := wal.ParseLSN(c.Value(t, `pg_current_wal_flush_lsn()`))
			if err != nil {
				t.Fatal(err)
			}
			pgtest.Eventually(t, "the store has "+lsn.String(), func() bool {
				tail, err := reader.Tail(t.Context(), mib.Name(1, mib.LastSegment(lsn)))
				return err == nil && mib.Start(mib.LastSegment(lsn))+wal.LSN(tail.Held) >= lsn
			})
		}
		f.stop(t)
		if text := lines.String(); text != "" {
			t.Fatalf("run %d: %s", n+1, text)
		}
	}
}

// logged keeps what is logged.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// blind is a store of which nothing can be listed or read of what lies in it in pieces.
type blind struct {
	store.Store
	is atomic.Bool
}

var errBlind = errors.New("nothing is to be seen")

func (s *blind) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return store.PutIfAbsent(ctx, s.Store, name, r)
}

func (s *blind) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	if s.is.Load() && strings.HasPrefix(dir, archive.TailDir) && dir != archive.TailDir {
		return func(yield func(store.Object, error) bool) { yield(store.Object{}, errBlind) }
	}
	return s.Store.List(ctx, dir, after)
}

// That nobody can look who else stores the same segment is no matter of the commits that wait for the store.
func TestLookingAroundHoldsUpNoCommit(t *testing.T) {
	c := primary(t)
	s := &blind{Store: &storetest.Memory{}}
	o := options(t.TempDir(), s)
	o.Synchronous, o.Local, o.Store = true, true, true
	var lines logged
	o.Logger = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s.is.Store(true)
	f := receive(t, c, s, o)
	c.Exec(t, `alter system set synchronous_standby_names = 'holdfast'`, `select pg_reload_conf()`)
	pgtest.Eventually(t, "commits wait", func() bool {
		return c.Value(t, `select coalesce(bool_or(sync_state = 'sync'), false) from pg_stat_replication`) == "true"
	})
	c.Exec(t, `insert into t values (0)`)
	pgtest.Eventually(t, "it was seen that nothing can be seen", func() bool { return strings.Contains(lines.String(), errBlind.Error()) })
	begun := time.Now()
	for range 20 { // with a pause behind each it took longer than a statement may
		c.Exec(t, `set statement_timeout = '30s'`, `insert into t values (1)`)
	}
	t.Logf("20 commits took %s", time.Since(begun))
	if text := lines.String(); strings.Contains(text, "cannot store") {
		t.Error(text)
	}
	f.stop(t)
}

// A piece of an earlier run that cannot be read, as its store had lost some of it, is in the way of nothing: what it held is stored beside it.
func TestUnreadablePieceIsPassedBy(t *testing.T) {
	c := primary(t)
	m, dir := &storetest.Memory{}, t.TempDir()
	f := receive(t, c, m, options(dir, m))
	c.Exec(t, `insert into t select generate_series(1, 100)`)
	name, _ := received(t, c, m)
	f.stop(t)
	c.Stop(t) // what it writes as it stops is not received
	b, err := os.ReadFile(filepath.Join(dir, name+".receiving"))
	if err != nil {
		t.Fatal(err)
	}
	held, err := walreceive.Intact(bytes.NewReader(b), int64(len(b)), mib)
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New(m, archive.Options{})
	pieces, err := a.TailPieces(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.RemoveTail(t.Context(), pieces); err != nil {
		t.Fatal(err)
	}
	whole := fmt.Sprintf("%s%s/%08X-%08X.zst", archive.TailDir, name, 0, held)
	if err := m.Put(t.Context(), whole, strings.NewReader("(\xb5/\xfd torn")); err != nil {
		t.Fatal(err)
	}
	o := options(dir, m) // nothing has to come for what is there to be stored
	var lines logged
	o.Logger = slog.New(slog.NewTextHandler(&lines, nil))
	f = receive(t, c, m, o)
	pgtest.Eventually(t, "it is stored beside what cannot be read", func() bool {
		pieces, err := a.TailPieces(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		var at int64
		for _, p := range pieces {
			if p.Object != whole && p.Start <= at {
				at = max(at, p.End)
			}
		}
		return at == held
	})
	f.stop(t)
	if text := lines.String(); !strings.Contains(text, "cannot be read") || strings.Contains(text, "cannot store") {
		t.Error(text)
	}
}

// The standby that was promoted lacked some of what was received of its primary, and the archive has another .partial: what nobody else has goes up in pieces, or
// where that is off stays in the spool.
func TestWhatNobodyElseHasStays(t *testing.T) {
	for _, pieces := range []bool{true, false} {
		c := primary(t)
		m, dir := &storetest.Memory{}, t.TempDir()
		standby := c.Standby(t, pgtest.Options{})
		c.CatchUp(t, standby)
		standby.Exec(t, `alter system set primary_conninfo = ''`, `select pg_reload_conf()`)
		pgtest.Eventually(t, "the standby follows nobody", func() bool { return c.Value(t, `select count(*) from pg_stat_replication`) == "0" })
		o := options(dir, m)
		o.TailInterval = 0
		f := receive(t, c, m, o)
		c.Exec(t, `insert into t select generate_series(1, 100)`)
		lsn, err := wal.ParseLSN(c.Value(t, `pg_current_wal_flush_lsn()`))
		if err != nil {
			t.Fatal(err)
		}
		name := mib.Name(1, mib.LastSegment(lsn))
		held := int64(lsn - mib.Start(mib.LastSegment(lsn)))
		var received []byte
		pgtest.Eventually(t, "it is received", func() bool {
			received, _ = os.ReadFile(filepath.Join(dir, name+".receiving"))
			return int64(len(received)) >= held
		})
		f.stop(t)
		c.Stop(t)
		a := archive.New(m, archive.Options{})
		other := make([]byte, mib)
		if _, err := a.PutWAL(t.Context(), name+".partial", func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(other)), nil }); err != nil {
			t.Fatal(err)
		}
		standby.Exec(t, `select pg_promote()`)
		if pieces {
			o.TailInterval = time.Hour // a piece is due none the less
		}
		f = receive(t, standby, m, o)
		pgtest.Eventually(t, name+" is not in the way any more", func() bool {
			_, err := os.Stat(filepath.Join(dir, name+".receiving"))
			return errors.Is(err, fs.ErrNotExist)
		})
		f.stop(t)
		got, err := os.ReadFile(filepath.Join(dir, name+".kept"))
		if pieces {
			var r archive.PiecesReader
			if r, err = a.OpenPieces(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			got, err = io.ReadAll(io.LimitReader(r, r.Held()))
			r.Close()
		}
		if err != nil || int64(len(got)) < held || !bytes.Equal(got[:held], received[:held]) {
			t.Errorf("pieces %t: of %d bytes there are %d, %v", pieces, held, len(got), err)
		}
	}
}

// Of two receivers one had more of a primary that was lost: what the other stores is no reason to remove that.
func TestPiecesThatReachFurtherStay(t *testing.T) {
	c := primary(t)
	m, dir := &storetest.Memory{}, t.TempDir()
	standby := c.Standby(t, pgtest.Options{})
	o := options(dir, m)
	f := receive(t, c, m, o)
	c.Exec(t, `insert into t values (1)`)
	name, _ := received(t, c, m)
	f.stop(t)
	c.CatchUp(t, standby)
	c.Stop(t)
	b, err := os.ReadFile(filepath.Join(c.Data, "pg_wal", name))
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New(m, archive.Options{})
	further := int64(mib) - 8192
	if _, err := a.PutTail(t.Context(), name, 0, further, bytes.NewReader(b[:further])); err != nil {
		t.Fatal(err)
	}
	standby.Exec(t, `select pg_promote()`)
	f = receive(t, standby, m, o)
	standby.Exec(t, `insert into t values (2)`)
	for range 2 {
		standby.Exec(t, `insert into t values (3)`)
		finish(t, standby, m)
	}
	f.stop(t)
	if partial, err := a.HasWAL(t.Context(), name+".partial"); err != nil || !partial {
		t.Errorf("the receiver has stored what it had: %t, %v", partial, err)
	}
	if tail, err := a.Tail(t.Context(), name); err != nil || tail.Top != further {
		t.Errorf("of %d bytes that the other had the archive has %d, %v", further, tail.Top, err)
	}
}
