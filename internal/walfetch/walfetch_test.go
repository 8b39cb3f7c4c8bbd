package walfetch_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/walfetch"
	"holdfast/test/waltest"
)

const size = wal.MinSegmentSize

// segment makes the content of a segment, which is another on another timeline.
func segment(name string) []byte {
	timeline, _, err := size.ParseSegment(name[:24])
	if err != nil {
		panic(err)
	}
	return waltest.Segment(size, name, 7, uint64(timeline))
}

func name(no int) string { return size.Name(1, wal.SegmentNo(no)) }

// put archives content under the name of a WAL file.
func put(t *testing.T, s store.Store, name string, content []byte) {
	t.Helper()
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	if _, err := archive.New(s, archive.Options{}).PutWAL(t.Context(), name, open); err != nil {
		t.Fatal(err)
	}
}

// filled archives the segments from first to last.
func filled(t *testing.T, first, last int) *storetest.Memory {
	t.Helper()
	m := &storetest.Memory{}
	for no := first; no <= last; no++ {
		put(t, m, name(no), segment(name(no)))
	}
	return m
}

// A server stands for a PostgreSQL that replays.
type server struct {
	t       *testing.T
	data    string
	store   store.Store
	opts    walfetch.Options
	used    atomic.Int32 // how often Fetch needed the archive
	started int          // how often Ahead was
	running sync.WaitGroup
	cancel  context.CancelFunc // ends what is running
	failure error              // how Ahead ended; to be read when nothing is running
}

func newServer(t *testing.T, s store.Store) *server {
	v := &server{t: t, data: t.TempDir(), store: s, opts: walfetch.Options{Location: "memory", Parallel: 4}}
	if err := os.Mkdir(v.path("pg_wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	v.write("recovery.signal", nil)
	v.write("postmaster.pid", nil)
	return v
}

// runAhead makes Fetch start Ahead with a, which may fail with what is in allowed.
func (v *server) runAhead(a walfetch.Archive, allowed ...error) {
	ctx, cancel := context.WithCancel(v.t.Context())
	v.cancel = cancel
	opts := v.opts
	v.opts.Start = func() error {
		v.started++
		v.running.Go(func() {
			_, err := walfetch.Ahead(ctx, a, v.dest(), opts)
			v.failure = err
			if err != nil && !slices.ContainsFunc(append(allowed, context.Canceled), func(e error) bool { return errors.Is(err, e) }) {
				v.t.Error(err)
			}
		})
		return nil
	}
	v.t.Cleanup(v.stop)
}

// stop ends what is running.
func (v *server) stop() {
	v.cancel()
	v.running.Wait()
}

// await waits for a segment to be in the queue.
func (v *server) await(name string) {
	v.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(v.queue(name)); err == nil {
			return
		}
		if time.Now().After(deadline) {
			v.t.Fatal(name, " was not fetched ahead")
		}
	}
}

func (v *server) archive() *archive.Archive { return archive.New(v.store, archive.Options{}) }

func (v *server) path(name string) string { return filepath.Join(v.data, name) }
func (v *server) dest() string            { return v.path("pg_wal/RECOVERYXLOG") }
func (v *server) queue(name string) string {
	return filepath.Join(cmp.Or(v.opts.Dir, v.path("pg_wal")), ".wal-g/prefetch", name)
}

func (v *server) write(name string, content []byte) {
	v.t.Helper()
	if err := os.MkdirAll(filepath.Dir(v.path(name)), 0o700); err != nil {
		v.t.Fatal(err)
	}
	if err := os.WriteFile(v.path(name), content, 0o600); err != nil {
		v.t.Fatal(err)
	}
}

func (v *server) open(context.Context) (walfetch.Archive, error) {
	v.used.Add(1)
	return archive.New(v.store, archive.Options{}), nil
}

func (v *server) fetch(name string) (walfetch.Report, error) { return v.fetchTo(name, v.dest()) }

func (v *server) fetchTo(name, dest string) (walfetch.Report, error) {
	os.Remove(dest) // as PostgreSQL does
	return walfetch.Fetch(v.t.Context(), v.open, name, dest, v.opts)
}

// has fails the test unless dest is the WAL file called name.
func has(t *testing.T, dest, name string) {
	t.Helper()
	got, err := os.ReadFile(dest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, segment(name)) {
		t.Errorf("%s is not %s", dest, name)
	}
}

// only fails the test unless those are the files in dir.
func only(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("in %s: %q, want %q", dir, got, want)
	}
}

func TestFetchBringsEveryKindOfFile(t *testing.T) {
	m := filled(t, 1, 1)
	put(t, m, "00000002.history", []byte("1\t0/300000\tx\n"))
	put(t, m, name(1)+".00000028.backup", []byte("START WAL LOCATION: 0/100028\n"))
	put(t, m, name(1)+".partial", segment(name(1)))
	branch := segment("000000020000000000000003") // begins as a copy of timeline 1's
	binary.LittleEndian.PutUint32(branch[4:], 1)
	put(t, m, "000000020000000000000003", branch)
	for _, file := range []string{name(1), "00000002.history", name(1) + ".00000028.backup", name(1) + ".partial", "000000020000000000000003"} {
		v := newServer(t, m)
		dest := v.path("pg_wal/" + file)
		v.write("pg_wal/"+file, []byte("what was there"))
		report, err := walfetch.Fetch(t.Context(), v.open, file, dest, v.opts)
		if err != nil || report.Name != file || report.Ahead {
			t.Errorf("%s: %+v, %v", file, report, err)
		}
		want, err := archive.New(m, archive.Options{}).OpenWAL(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(want)
		got, errGot := os.ReadFile(dest)
		if err != nil || errGot != nil || !bytes.Equal(b, got) || report.Bytes != int64(len(b)) {
			t.Errorf("%s: %d bytes, want %d (%v, %v)", file, len(got), len(b), err, errGot)
		}
		only(t, v.path("pg_wal"), file)
	}
}

func TestMissingIsMissing(t *testing.T) {
	v := newServer(t, filled(t, 1, 1))
	for _, file := range []string{name(2), "00000002.history"} {
		_, err := v.fetch(file)
		if got := walfetch.Status(err, walfetch.Recovery); got != 74 {
			t.Errorf("%s: status %d (%v), want 74", file, got, err)
		}
		if want := "Archive '" + file + "' does not exist."; err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
	only(t, v.path("pg_wal"))
}

// An archive in which nothing lies is one that went away.
func TestVanishedArchiveIsNotMissing(t *testing.T) {
	v := newServer(t, &storetest.Memory{})
	for _, file := range []string{name(2), "00000002.history"} {
		if _, err := v.fetch(file); walfetch.Status(err, walfetch.Recovery) != 200 {
			t.Errorf("%s: %v", file, err)
		}
	}
	v = newServer(t, filled(t, 1, 1))
	if _, err := v.fetchTo(name(1), v.path("no/such/directory/RECOVERYXLOG")); walfetch.Status(err, walfetch.Recovery) != 200 {
		t.Errorf("no directory to put it: %v", err)
	}
}

func TestWhatIsNotTheSegmentIsRefused(t *testing.T) {
	of := func(no int, change func(b []byte) []byte) []byte { return change(segment(name(no))) }
	same := func(b []byte) []byte { return b }
	for what, content := range map[string][]byte{
		"short":         of(1, func(b []byte) []byte { return b[:size-1] }),
		"long":          of(1, func(b []byte) []byte { return append(b, 0) }),
		"twice":         of(1, func(b []byte) []byte { return append(b, b...) }),
		"empty":         {},
		"a few bytes":   of(1, func(b []byte) []byte { return b[:30] }),
		"another":       of(2, same),
		"no WAL":        make([]byte, size),
		"of the future": of(1, func(b []byte) []byte { b[4] = 2; return b }),
	} {
		m := &storetest.Memory{}
		for _, file := range []string{name(1), name(1) + ".partial"} {
			put(t, m, file, content)
			v := newServer(t, m)
			_, err := v.fetch(file)
			if got := walfetch.Status(err, walfetch.Recovery); got != 200 {
				t.Errorf("%s as %s: status %d (%v), want 200", what, file, got, err)
			}
			only(t, v.path("pg_wal"))
		}
	}
	m := &storetest.Memory{}
	put(t, m, "00000002.history", make([]byte, 17<<20))
	v := newServer(t, m)
	if _, err := v.fetch("00000002.history"); err == nil {
		t.Error("a history file of 17 MiB was fetched")
	}
}

// Whichever store call fails, and however, Fetch brings the whole file or none, and never calls it missing.
func TestFetchFailsWhole(t *testing.T) {
	for how, flaky := range map[string]func(store.Store, int) *storetest.Flaky{
		"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter,
	} {
		for _, method := range []compress.Method{compress.Zstd, compress.LZ4} { // the latter is found at the second look
			m := &storetest.Memory{}
			open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(segment(name(1)))), nil }
			if _, err := archive.New(m, archive.Options{Method: method}).PutWAL(t.Context(), name(1), open); err != nil {
				t.Fatal(err)
			}
			for n := 0; ; n++ {
				f := flaky(m, n)
				v := newServer(t, f)
				_, err := v.fetch(name(1))
				switch {
				case err == nil:
					has(t, v.dest(), name(1))
					only(t, v.path("pg_wal"), "RECOVERYXLOG")
				case walfetch.Status(err, walfetch.Recovery) != 200 || !errors.Is(err, storetest.ErrInjected):
					t.Errorf("%s, %s: call %d failed, Fetch returned %v", how, method, n, err)
				default:
					only(t, v.path("pg_wal"))
				}
				if !f.Reached() {
					break
				}
			}
			// And when it is missing.
			for n := 0; ; n++ {
				f := flaky(m, n)
				v := newServer(t, f)
				_, err := v.fetch(name(2))
				if f.Reached() == (walfetch.Status(err, walfetch.Recovery) == 74) && how == "before" {
					t.Errorf("%s: call %d of %q failed, fetching what is missing returned %v", how, n, f.Calls(), err)
				}
				only(t, v.path("pg_wal"))
				if !f.Reached() {
					break
				}
			}
		}
	}
}

func TestSegmentsAreServedFromTheQueue(t *testing.T) {
	v := newServer(t, filled(t, 1, 5))
	v.write("standby.signal", nil)
	v.runAhead(v.archive())
	for no := 1; no <= 5; no++ {
		if no > 1 {
			v.await(name(no))
		}
		report, err := v.fetch(name(no))
		if err != nil || report.Ahead != (no > 1) || report.Bytes != int64(size) {
			t.Errorf("segment %d: %+v, %v", no, report, err)
		}
		has(t, v.dest(), name(no))
	}
	v.running.Wait()
	if v.used.Load() != 1 || v.started != 1 {
		t.Errorf("the archive was opened %d times and Ahead called %d times, want once", v.used.Load(), v.started)
	}
	// Polling for the next one, and getting it at last, starts none: there is nothing ahead.
	for no := 6; no <= 8; no++ {
		for range 2 {
			if _, err := v.fetch(name(no)); walfetch.Status(err, walfetch.Standby) != 74 {
				t.Errorf("got %v, want it missing", err)
			}
		}
		put(t, v.store, name(no), segment(name(no)))
		if _, err := v.fetch(name(no)); err != nil {
			t.Error(err)
		}
	}
	if v.started != 1 {
		t.Errorf("Ahead was called %d times while there was nothing ahead", v.started-1)
	}
	// Once segments come faster again, it begins anew.
	for no := 9; no <= 12; no++ {
		put(t, v.store, name(no), segment(name(no)))
		if _, err := v.fetch(name(no)); err != nil {
			t.Error(err)
		}
	}
	if v.started == 1 {
		t.Error("nothing was fetched ahead again")
	}
}

func TestNothingIsFetchedAheadFor(t *testing.T) {
	m := filled(t, 1, 3)
	put(t, m, "00000002.history", []byte("1\t0/300000\tx\n"))
	put(t, m, name(2)+".partial", segment(name(2)))
	for what, c := range map[string]struct {
		file, dest string
		parallel   int
	}{
		"pg_rewind":               {name(1), "pg_wal/" + name(1), 4},
		"history":                 {"00000002.history", "pg_wal/RECOVERYHISTORY", 4},
		"partial":                 {name(2) + ".partial", "pg_wal/RECOVERYXLOG", 4},
		"those who don't want it": {name(1), "pg_wal/RECOVERYXLOG", 1},
		"end of archive":          {name(4), "pg_wal/RECOVERYXLOG", 4},
	} {
		v := newServer(t, m)
		v.opts.Parallel = c.parallel
		v.opts.Start = func() error { t.Errorf("%s: a process was started", what); return nil }
		v.fetchTo(c.file, v.path(c.dest))
	}
}

// What was fetched ahead is used only as it was fetched, and from the same archive.
func TestQueueIsVerified(t *testing.T) {
	for what, spoil := range map[string]func(v *server){
		"shorter": func(v *server) { v.write("pg_wal/.wal-g/prefetch/"+name(2), segment(name(2))[:100]) },
		"changed": func(v *server) {
			b := segment(name(2))
			b[size/2]++
			v.write("pg_wal/.wal-g/prefetch/"+name(2), b)
		},
		"zeros":              func(v *server) { v.write("pg_wal/.wal-g/prefetch/"+name(2), make([]byte, size)) },
		"without record":     func(v *server) { os.Remove(v.queue(name(2) + ".json")) },
		"with broken record": func(v *server) { v.write("pg_wal/.wal-g/prefetch/"+name(2)+".json", []byte("{")) },
		"from elsewhere":     func(v *server) { v.opts.Location = "elsewhere" },
		"open to everybody":  func(v *server) { os.Chmod(v.queue(""), 0o777) },
		"of another account": func(v *server) {
			if os.Chown(v.path("pg_wal/.wal-g"), 65534, 65534) != nil { // only root may
				os.Chmod(v.path("pg_wal/.wal-g"), 0o770)
			}
		},
		"a directory": func(v *server) {
			os.Remove(v.queue(name(2)))
			v.write("pg_wal/.wal-g/prefetch/"+name(2)+"/x", nil)
		},
	} {
		v := newServer(t, filled(t, 1, 3))
		v.runAhead(v.archive())
		if _, err := v.fetch(name(1)); err != nil {
			t.Fatal(err)
		}
		v.await(name(2))
		v.opts.Start = nil
		spoil(v)
		report, err := v.fetch(name(2))
		if err != nil || report.Ahead {
			t.Errorf("%s: %+v, %v; want it fetched", what, report, err)
		}
		has(t, v.dest(), name(2))
	}
}

func TestQueueOnAnotherFileSystem(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "holdfast")
	if err != nil {
		t.Skip("no other file system: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := newServer(t, filled(t, 1, 3))
	v.opts.Dir = dir
	v.runAhead(v.archive())
	for no := 1; no <= 3; no++ {
		if no > 1 {
			v.await(name(no))
		}
		report, err := v.fetch(name(no))
		if err != nil || report.Ahead != (no > 1) {
			t.Errorf("segment %d: %+v, %v", no, report, err)
		}
		has(t, v.dest(), name(no))
		only(t, v.path("pg_wal"), "RECOVERYXLOG")
	}
}

// slow is an archive whose segments come bit by bit, as fast as the test lets them.
type slow struct {
	walfetch.Archive
	gate    chan struct{}
	waiting chan string
}

func (s *slow) OpenWAL(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := s.Archive.OpenWAL(ctx, name)
	if err != nil {
		return nil, err
	}
	return &slowBody{r, s, name, ctx}, nil
}

type slowBody struct {
	io.ReadCloser
	*slow
	name string
	ctx  context.Context
}

func (b *slowBody) Read(p []byte) (int, error) {
	select {
	case b.waiting <- b.name:
	default:
	}
	select {
	case <-b.gate:
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
	return b.ReadCloser.Read(p[:min(len(p), 64<<10)])
}

func TestRunningDownloadIsWaitedFor(t *testing.T) {
	v := newServer(t, filled(t, 1, 2))
	a := &slow{archive.New(v.store, archive.Options{}), make(chan struct{}), make(chan string, 1)}
	v.runAhead(a)
	if _, err := v.fetch(name(1)); err != nil {
		t.Fatal(err)
	}
	<-a.waiting
	used := v.used.Load()
	v.running.Go(func() {
		time.Sleep(20 * time.Millisecond) // gives Fetch time to wait; without it the test checks less, and holds as well
		close(a.gate)
	})
	report, err := v.fetch(name(2))
	if err != nil || !report.Ahead || v.used.Load() != used {
		t.Errorf("got %+v, %v, the archive was opened %d times more", report, err, v.used.Load()-used)
	}
	has(t, v.dest(), name(2))
}

// A download whose process died is nothing to wait for, and neither is one that stands still.
func TestDeadAndStalledDownloads(t *testing.T) {
	v := newServer(t, filled(t, 1, 3))
	running := func(no int) string { return "pg_wal/.wal-g/prefetch/running/" + name(no) }
	v.write(running(2), segment(name(2))[:1000])
	begin := time.Now()
	if report, err := v.fetch(name(2)); err != nil || report.Ahead {
		t.Errorf("dead: %+v, %v", report, err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %v to see that the process is dead", took)
	}
	has(t, v.dest(), name(2))
	only(t, v.path("pg_wal/.wal-g/prefetch/running"))

	v.write(running(3), segment(name(3))[:1000])
	f, err := os.Open(v.path(running(3)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if report, err := v.fetch(name(3)); err != nil || report.Ahead {
		t.Errorf("stalled: %+v, %v", report, err)
	}
	has(t, v.dest(), name(3))
}

func TestOnlyOneFetchesAhead(t *testing.T) {
	v := newServer(t, filled(t, 1, 3))
	a := &slow{archive.New(v.store, archive.Options{}), make(chan struct{}), make(chan string, 1)}
	v.runAhead(a)
	if _, err := v.fetch(name(1)); err != nil {
		t.Fatal(err)
	}
	<-a.waiting
	if n, err := walfetch.Ahead(t.Context(), v.archive(), v.dest(), v.opts); n != 0 || err != nil {
		t.Errorf("a second one fetched %d segments, %v", n, err)
	}
	if _, err := v.fetch(name(1)); err != nil || v.started != 1 {
		t.Errorf("%v; %d were started", err, v.started)
	}
	close(a.gate)
}

func TestAheadRemovesWhatIsNotNeeded(t *testing.T) {
	v := newServer(t, filled(t, 5, 7))
	for _, left := range []string{name(1), name(1) + ".json", name(6), "000000020000000000000006", "running/" + name(6), "running/x"} {
		v.write("pg_wal/.wal-g/prefetch/"+left, []byte("left"))
	}
	v.runAhead(v.archive())
	if _, err := v.fetch(name(5)); err != nil {
		t.Fatal(err)
	}
	v.await(name(7))
	only(t, v.queue(""), name(6), name(7), name(7)+".json", "lock", "requested", "running")
	// name(6) was no whole segment, which shows when it is asked for.
	if report, err := v.fetch(name(6)); err != nil || report.Ahead {
		t.Errorf("got %+v, %v", report, err)
	}
}

func TestAheadEndsWithTheRecovery(t *testing.T) {
	t.Parallel()
	for what, end := range map[string]func(v *server) error{
		"promoted": func(v *server) error { return os.Remove(v.path("recovery.signal")) },
		"stopped":  func(v *server) error { return os.Remove(v.path("postmaster.pid")) },
		"told to":  func(v *server) error { v.cancel(); return nil },
	} {
		v := newServer(t, filled(t, 1, 20))
		v.runAhead(v.archive())
		if _, err := v.fetch(name(1)); err != nil {
			t.Fatal(err)
		}
		v.await(name(2))
		if err := end(v); err != nil {
			t.Fatal(err)
		}
		v.running.Wait()
		t.Log(what)
		only(t, v.path("pg_wal"), "RECOVERYXLOG")
	}
}

// Where a recovery begins at the end of the archive nobody fetches ahead, and what was left before goes all the same.
func TestRecoveryEndsWithoutAhead(t *testing.T) {
	v := newServer(t, filled(t, 1, 2))
	v.opts.Start = func() error { t.Error("a process was started"); return nil }
	v.write("pg_wal/.wal-g/prefetch/end", []byte(name(3)))
	v.write("pg_wal/.wal-g/prefetch/lock", nil)
	if _, err := v.fetch(name(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := v.fetch(name(3)); walfetch.Status(err, walfetch.Recovery) != 74 {
		t.Errorf("got %v", err)
	}
	only(t, v.path("pg_wal"))
}

func TestAheadEndsWhenNothingIsAskedFor(t *testing.T) {
	v := newServer(t, filled(t, 1, 20))
	v.opts.Patience = 50 * time.Millisecond
	v.runAhead(v.archive())
	if _, err := v.fetch(name(1)); err != nil {
		t.Fatal(err)
	}
	v.running.Wait()
	only(t, v.path("pg_wal"), "RECOVERYXLOG")
}

// fussy is an archive some of whose files come late, or not at all.
type fussy struct {
	walfetch.Archive
	late map[string]chan struct{} // until that is closed
	fail map[string]error
}

func (a *fussy) OpenWAL(ctx context.Context, name string) (io.ReadCloser, error) {
	if late := a.late[name]; late != nil {
		select {
		case <-late:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := a.fail[name]; err != nil {
		return nil, err
	}
	return a.Archive.OpenWAL(ctx, name)
}

// Where the archive has a gap, or a file that cannot be had, what lies behind it is not kept for a server that may never come there.
func TestAheadLeavesNothingBehindTheEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		signal string
		why    error
		left   []string
	}{
		{"recovery.signal", fs.ErrNotExist, nil},
		{"standby.signal", fs.ErrNotExist, []string{"end", "lock", "requested", "running"}},
		{"recovery.signal", storetest.ErrInjected, nil},
		{"standby.signal", storetest.ErrInjected, []string{"end", "lock", "requested", "running"}},
	} {
		v := newServer(t, filled(t, 1, 6))
		v.write(c.signal, nil)
		a := &fussy{v.archive(), map[string]chan struct{}{name(3): make(chan struct{})}, map[string]error{name(3): c.why}}
		v.runAhead(a, storetest.ErrInjected)
		if _, err := v.fetch(name(1)); err != nil {
			t.Fatal(err)
		}
		v.await(name(4))
		close(a.late[name(3)])
		report, err := v.fetch(name(2))
		if err != nil || !report.Ahead {
			t.Errorf("%s, %v: %+v, %v", c.signal, c.why, report, err)
		}
		v.running.Wait()
		only(t, v.queue(""), c.left...)
		if c.why == storetest.ErrInjected != errors.Is(v.failure, storetest.ErrInjected) {
			t.Errorf("%s, %v: Ahead returned %v", c.signal, c.why, v.failure)
		}
	}
}

// What is late from the timeline that PostgreSQL left says nothing about the one that it is on.
func TestAheadFollowsToAnotherTimeline(t *testing.T) {
	m := filled(t, 1, 3)
	other := func(no int) string { return size.Name(2, wal.SegmentNo(no)) }
	for no := 2; no <= 6; no++ {
		put(t, m, other(no), segment(other(no)))
	}
	v := newServer(t, m)
	a := &fussy{v.archive(), map[string]chan struct{}{name(3): make(chan struct{})}, map[string]error{name(3): fs.ErrNotExist}}
	v.runAhead(a)
	if _, err := v.fetch(name(1)); err != nil {
		t.Fatal(err)
	}
	v.await(name(2))
	if _, err := v.fetch(other(2)); err != nil {
		t.Fatal(err)
	}
	v.await(other(4))
	close(a.late[name(3)])
	v.await(other(3))
	v.await(other(5))
}

// A data directory that is removed while segments are fetched into it stays removed, and what another server makes there is its own.
func TestAheadMakesNothingAnew(t *testing.T) {
	remove := func(v *server, what string) {
		for range 1000 { // files may appear meanwhile
			if err := os.RemoveAll(v.path(what)); err == nil {
				return
			}
		}
		t.Fatal("cannot remove ", what)
	}
	for _, what := range []string{"", "pg_wal", "pg_wal/.wal-g"} {
		v := newServer(t, filled(t, 1, 20))
		v.runAhead(v.archive(), fs.ErrNotExist)
		if _, err := v.fetch(name(1)); err != nil {
			t.Fatal(err)
		}
		v.await(name(2))
		remove(v, what)
		v.running.Wait()
		if _, err := os.Stat(v.path(what)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q is there again: %v", what, err)
		}
		if _, err := walfetch.Ahead(t.Context(), v.archive(), v.dest(), v.opts); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(v.path(what)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q was made anew: %v", what, err)
		}
	}

	v := newServer(t, filled(t, 1, 20))
	v.runAhead(v.archive())
	if _, err := v.fetch(name(1)); err != nil {
		t.Fatal(err)
	}
	v.await(name(2))
	requested, err := os.ReadFile(v.queue("requested"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(v.data, v.data+".away"); err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{"lock": nil, "requested": requested, "running/" + name(7): nil, name(5): segment(name(5))} {
		v.write("pg_wal/.wal-g/prefetch/"+file, content)
	}
	v.running.Wait()
	for _, file := range []string{"lock", "requested", "running/" + name(7), name(5)} {
		if _, err := os.Stat(v.queue(file)); err != nil {
			t.Error(err)
		}
	}
}

// What a process that was killed had fetched ahead is not left alone, even where there is enough of it for now.
func TestLeftoversAreTakenCareOf(t *testing.T) {
	t.Parallel()
	v := newServer(t, filled(t, 1, 3))
	v.write("pg_wal/.wal-g/prefetch/"+name(2), segment(name(2)))
	v.write("pg_wal/.wal-g/prefetch/"+name(3), segment(name(3)))
	v.runAhead(v.archive())
	if _, err := v.fetch(name(1)); err != nil {
		t.Fatal(err)
	}
	if v.started != 1 {
		t.Errorf("Ahead was called %d times", v.started)
	}
	os.Remove(v.path("recovery.signal"))
	v.running.Wait()
	only(t, v.path("pg_wal"), "RECOVERYXLOG")

	// Of the destination too: this was longer.
	v.opts.Parallel = 1
	for _, file := range []string{name(1), "00000002.history"} {
		v.write("pg_wal/.RECOVERYXLOG.holdfast-tmp", make([]byte, 2*size))
		put(t, v.store, file, segment(name(1)))
		if _, err := v.fetch(file); err != nil {
			t.Fatal(err)
		}
		has(t, v.dest(), name(1))
	}
}

// Whichever call fails, Ahead leaves only whole segments in the queue, and Fetch brings the right ones.
func TestAheadFailsWhole(t *testing.T) {
	m := filled(t, 1, 6)
	for _, flaky := range []func(store.Store, int) *storetest.Flaky{storetest.FailAt, storetest.FailMidway, storetest.FailAfter} {
		for n := 0; ; n++ {
			f := flaky(m, n)
			v := newServer(t, m)
			v.runAhead(archive.New(f, archive.Options{}), storetest.ErrInjected)
			for no := 1; no <= 6; no++ {
				if _, err := v.fetch(name(no)); err != nil {
					t.Error(err)
				}
				has(t, v.dest(), name(no))
				v.opts.Start = nil
			}
			v.stop()
			only(t, v.queue("running"))
			if !f.Reached() {
				break
			}
		}
	}
}

func TestFetchesToOneDestinationTakeTurns(t *testing.T) {
	v := newServer(t, filled(t, 1, 8))
	v.opts.Parallel = 1
	var group sync.WaitGroup
	for no := 1; no <= 8; no++ {
		group.Go(func() {
			if _, err := walfetch.Fetch(t.Context(), v.open, name(no), v.dest(), v.opts); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	only(t, v.path("pg_wal"), "RECOVERYXLOG")
	got, err := os.ReadFile(v.dest())
	if err != nil || len(got) != int(size) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestStatus(t *testing.T) {
	broken := errors.New("connection reset")
	missing := fmt.Errorf("fetch: %w", &walfetch.MissingError{Name: name(1)})
	for _, c := range []struct {
		err  error
		in   walfetch.Situation
		want int
	}{
		{nil, walfetch.Recovery, 0},
		{missing, walfetch.Recovery, 74},
		{missing, walfetch.Standby, 74},
		{broken, walfetch.Recovery, 200},
		{broken, walfetch.Standby, 75},
		{broken, walfetch.Unknown, 200},
		{fs.ErrNotExist, walfetch.Recovery, 200}, // of something else than the file
		{context.Canceled, walfetch.Standby, 143},
	} {
		if got := walfetch.Status(c.err, c.in); got != c.want {
			t.Errorf("Status(%v, %d) = %d, want %d", c.err, c.in, got, c.want)
		}
	}
}

func TestSituation(t *testing.T) {
	for _, c := range []struct {
		files string // name=content, separated by |
		want  walfetch.Situation
	}{
		{"", walfetch.Unknown},
		{"recovery.signal=", walfetch.Recovery},
		{"standby.signal=", walfetch.Standby},
		{"standby.signal=|recovery.signal=", walfetch.Standby},
		{"recovery.conf=restore_command = 'x'\n", walfetch.Recovery},
		{"recovery.conf=standby_mode = 'on'\n", walfetch.Standby},
		{"recovery.conf=standby_mode=on", walfetch.Standby},
		{"recovery.conf=  STANDBY_MODE 'True' # yes\n", walfetch.Standby},
		{"recovery.conf=#standby_mode = on\n", walfetch.Recovery},
		{"recovery.conf=standby_mode = on\nstandby_mode = off\n", walfetch.Recovery},
		{"recovery.conf=standby_mode_x = on\n", walfetch.Recovery},
		{"recovery.conf=standby_mode = 'o'\n", walfetch.Recovery},
		{"recovery.conf=standby_mode = 1\n", walfetch.Standby},
	} {
		dir := t.TempDir()
		for file := range strings.SplitSeq(c.files, "|") {
			if name, content, ok := strings.Cut(file, "="); ok {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := walfetch.SituationOf("", t.TempDir(), dir); got != c.want {
			t.Errorf("%q: got %d, want %d", c.files, got, c.want)
		}
	}
}

// Whatever lies in the archive under a WAL file's name, Fetch brings it whole, and only if it may be that file, or leaves
// nothing.
func FuzzFetch(f *testing.F) {
	whole := segment(name(1))
	for _, seed := range [][]byte{whole[:100], whole[:39], {}, []byte("1\t0/300000\tx\n")} {
		f.Add(seed, 0)
		f.Add(seed, int(size)-len(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte, zeros int) {
		if zeros < 0 || zeros > 2*int(size) {
			return
		}
		content = append(content, make([]byte, zeros)...)
		m := &storetest.Memory{}
		for _, file := range []string{name(1), name(1) + ".partial", "00000002.history"} {
			if err := m.Put(t.Context(), archive.WALDir+file, bytes.NewReader(content)); err != nil {
				t.Fatal(err)
			}
			v := newServer(t, m)
			_, err := v.fetch(file)
			got, errRead := os.ReadFile(v.dest())
			switch {
			case err != nil && (walfetch.Status(err, walfetch.Recovery) != 200 || !errors.Is(errRead, fs.ErrNotExist)):
				t.Errorf("%s of %d bytes: %v, and at the destination %v", file, len(content), err, errRead)
			case err == nil && !bytes.Equal(got, content):
				t.Errorf("%s of %d bytes came as %d others", file, len(content), len(got))
			case err == nil && wal.KindOf(file) != wal.History && len(content) < int(wal.MinSegmentSize):
				t.Errorf("%s of %d bytes was taken for a segment", file, len(content))
			}
		}
	})
}

// No recovery.conf makes a server look like none in recovery.
func FuzzSituation(f *testing.F) {
	f.Add("standby_mode = 'on'\n")
	f.Add("restore_command='x' # standby_mode = on")
	f.Fuzz(func(t *testing.T, conf string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "recovery.conf"), []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		got := walfetch.SituationOf(dir)
		if got == walfetch.Unknown || (got == walfetch.Standby && !strings.Contains(strings.ToLower(conf), "standby_mode")) {
			t.Errorf("%q: %d", conf, got)
		}
	})
}
