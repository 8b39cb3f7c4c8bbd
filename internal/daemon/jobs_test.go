package daemon_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/daemon"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
	"holdfast/internal/walfetch"
	"holdfast/internal/walpush"
	"holdfast/test/pgtest"
	"holdfast/test/waltest"
)

const size = wal.MinSegmentSize

// content makes the content of a segment of the cluster that the data directory dir is of.
func content(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, _, err := control.Read(filepath.Join(dir, control.Name))
	if err != nil {
		t.Fatal(err)
	}
	timeline, no, err := size.ParseSegment(name)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	waltest.PutHeader(b, size, timeline, no, data.SystemIdentifier)
	return b
}

// finish puts segments into pg_wal that wait to be archived, and returns their names.
func finish(t *testing.T, dir string, n int) (names []string) {
	t.Helper()
	for i := range n {
		name := size.Name(1, wal.SegmentNo(i+1))
		for path, b := range map[string][]byte{name: content(t, dir, name), "archive_status/" + name + ".ready": nil} {
			if err := os.WriteFile(filepath.Join(dir, "pg_wal", path), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		names = append(names, name)
	}
	return names
}

// work makes Jobs that run until the test ends, with an archive in m.
func work(t *testing.T, dir string, a walpush.Archive, m *storetest.Memory, log io.Writer, change func(*daemon.JobOptions)) *daemon.Jobs {
	t.Helper()
	from := archive.New(m, archive.Options{})
	o := daemon.JobOptions{
		Data:     dir,
		Archives: func(context.Context) (walpush.Archive, walpush.Archive, error) { return a, a, nil },
		Push:     walpush.Options{Location: "memory", Host: "here", Parallel: 2},
		Archive:  func(context.Context) (walfetch.Archive, error) { return from, nil },
		Fetch:    walfetch.Options{Location: "memory", Parallel: 2},
		Logger:   slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o)
	}
	j := daemon.NewJobs(o)
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { j.Run(ctx) })
	t.Cleanup(func() { stop(); run.Wait() })
	return j
}

// Names, relative paths as PostgreSQL has them and absolute ones mean the same file; what is not in this pg_wal is handed back.
func TestWhoseFileItIs(t *testing.T) {
	dir, other, m := dataDir(t), dataDir(t), &storetest.Memory{}
	name := finish(t, dir, 1)[0]
	finish(t, other, 1)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	j := work(t, dir, archive.New(m, archive.Options{}), m, io.Discard, nil)
	const ok, declined, refused = "", "declined", "refused"
	for _, c := range []struct{ path, cwd, want string }{
		{name, "", ok},
		{name, dir, ok},
		{name, link, ok},
		{name, "/", ok},
		{"pg_wal/" + name, dir, ok},
		{"./pg_wal/../pg_wal/" + name, dir, ok},
		{dir + "/pg_wal/" + name, "", ok},
		{link + "/pg_wal/" + name, other, ok},
		{name, other, declined},
		{"pg_wal/" + name, other, declined},
		{other + "/pg_wal/" + name, "", declined},
		{"../pg_wal/" + name, dir, declined},
		{"pg_wal/archive_status/" + name, dir, declined},
		{"/etc/passwd", "", declined},
		{"../../../../../etc/" + name, "", declined},
		{"postgresql.conf", dir, refused},
		{"pg_wal/../postgresql.conf", dir, declined},
		{"", dir, refused},
		{"..", dir, refused},
		{".", dir, refused},
		{"/", dir, refused},
		{"pg_wal/", dir, refused},
		{"pg_wal/" + name + "\x00", dir, refused},
		{"pg_wal/" + name + "/..", dir, refused},
		{"pg_wal/" + size.Name(1, 99), dir, refused}, // there is no such file
	} {
		kind := func(err error) string {
			var no *daemon.DeclinedError
			switch {
			case err == nil:
				return ok
			case errors.As(err, &no):
				return declined
			}
			return refused
		}
		err := j.Push(t.Context(), c.path, c.cwd)
		if got := kind(err); got != c.want {
			t.Errorf("push %q from %q: %q (%v), want %q", c.path, c.cwd, got, err, c.want)
		}
	}
	if n := len(walNames(t, m)); n != 1 {
		t.Errorf("%d WAL files are in the archive", n)
	}
}

// walNames lists the WAL files in m.
func walNames(t *testing.T, m *storetest.Memory) (names []string) {
	t.Helper()
	for o, err := range m.List(t.Context(), archive.WALDir, "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.Name)
	}
	return names
}

// A file comes to where PostgreSQL wants it, and nothing to anywhere else.
func TestWhereFilesGo(t *testing.T) {
	dir, other, m := dataDir(t), dataDir(t), &storetest.Memory{}
	names := finish(t, dir, 3)
	j := work(t, dir, archive.New(m, archive.Options{}), m, io.Discard, nil)
	for _, name := range names {
		if err := j.Push(t.Context(), name, dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "recovery.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dest, cwd string
		ok        bool
	}{
		{"pg_wal/RECOVERYXLOG", dir, true},
		{dir + "/pg_wal/RECOVERYXLOG", "", true},
		{"RECOVERYXLOG", dir, true},
		{"pg_wal/" + size.Name(1, 50), dir, true}, // as pg_rewind
		{other + "/pg_wal/RECOVERYXLOG", "", false},
		{"pg_wal/RECOVERYXLOG", other, false},
		{"pg_wal/archive_status/RECOVERYXLOG", dir, false},
		{"pg_wal/evil", dir, false},
		{"global/pg_control", dir, false},
		{dir + "/pg_wal/../global/pg_control", "", false},
		{"pg_wal/..", dir, false},
	} {
		err := j.Fetch(t.Context(), names[0], c.dest, c.cwd)
		if (err == nil) != c.ok {
			t.Errorf("fetch to %q from %q: %v", c.dest, c.cwd, err)
		}
		if c.ok {
			b, err := os.ReadFile(filepath.Join(dir, "pg_wal", filepath.Base(c.dest)))
			if err != nil || string(b) != string(content(t, dir, names[0])) {
				t.Errorf("fetch to %q: %d bytes, %v", c.dest, len(b), err)
			}
		}
	}
	err := j.Fetch(t.Context(), size.Name(1, 99), "pg_wal/RECOVERYXLOG", dir)
	var missing *walfetch.MissingError
	if !errors.As(err, &missing) || j.Status(err) != 74 {
		t.Errorf("what the archive lacks: %v, status %d", err, j.Status(err))
	}
	if got := j.Status(errors.New("no")); got != 200 {
		t.Errorf("a failure in a recovery: status %d", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := j.Status(errors.New("no")); got != 75 {
		t.Errorf("a failure on a standby: status %d", got)
	}
}

// down is an archive that answers when its context ends, and not before it is up.
type down struct {
	*archive.Archive
	up chan struct{}
}

func (d *down) PutWAL(ctx context.Context, name string, open func() (io.ReadCloser, error)) (int64, error) {
	select {
	case <-d.up:
		return d.Archive.PutWAL(ctx, name, open)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// While the store is down pushes end in time, and the log says what waits and when the disk is full; then it says that it is over.
func TestStoreIsDown(t *testing.T) {
	dir, m, log := dataDir(t), &storetest.Memory{}, &pgtest.Log{}
	names := finish(t, dir, 2)
	a := &down{archive.New(m, archive.Options{}), make(chan struct{})}
	j := work(t, dir, a, m, log, func(o *daemon.JobOptions) {
		o.Timeout, o.Every, o.Push.Parallel = 300*time.Millisecond, 10*time.Millisecond, 1
	})
	err := j.Push(t.Context(), names[0], dir)
	if err == nil || !strings.Contains(err.Error(), "longer than 300ms (WALG_DAEMON_WAL_UPLOAD_TIMEOUT)") {
		t.Errorf("got %v", err)
	}
	pgtest.Eventually(t, "the log tells what waits", func() bool { return strings.Contains(log.String(), "2 segments wait to be archived") })
	close(a.up)
	pgtest.Eventually(t, "it works again", func() bool { return j.Push(t.Context(), names[0], dir) == nil })
	if !strings.Contains(log.String(), "WAL is being archived again") {
		t.Errorf("the log does not say that it is over:\n%s", log)
	}
	if got := walNames(t, m); len(got) != 1 {
		t.Errorf("in the archive: %q", got)
	}
}

// What an archive needs and does not find, such as a key, is not a segment that is not there: that nothing is archived shows.
func TestArchiveLacksSomething(t *testing.T) {
	dir, log := dataDir(t), &pgtest.Log{}
	names := finish(t, dir, 1)
	j := work(t, dir, nil, &storetest.Memory{}, log, func(o *daemon.JobOptions) {
		o.Every = 10 * time.Millisecond
		o.Archives = func(context.Context) (walpush.Archive, walpush.Archive, error) {
			_, err := os.Open(filepath.Join(dir, "no key"))
			return nil, nil, err
		}
	})
	if err := j.Push(t.Context(), size.Name(1, 9), dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a segment that is not there: %v", err)
	}
	time.Sleep(50 * time.Millisecond)
	if strings.Contains(log.String(), "to be archived") {
		t.Errorf("a segment that is not there counts as failing:\n%s", log)
	}
	if err := j.Push(t.Context(), names[0], dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	pgtest.Eventually(t, "the log tells what waits", func() bool { return strings.Contains(log.String(), "1 segment waits to be archived") })
}

// What the jobs worked with may be closed once nothing is at work.
func TestEndIsTheLast(t *testing.T) {
	dir, m := dataDir(t), &storetest.Memory{}
	names := finish(t, dir, 1)
	ctx, stop := context.WithCancel(t.Context())
	a := archive.New(m, archive.Options{})
	busy, ended := make(chan struct{}), 0
	var over atomic.Bool
	j := daemon.NewJobs(daemon.JobOptions{
		Data:     dir,
		Archives: func(context.Context) (walpush.Archive, walpush.Archive, error) { return a, a, nil },
		Push:     walpush.Options{Location: "memory", Host: "here"},
		Between: func(ctx context.Context) {
			close(busy)
			<-ctx.Done()
			time.Sleep(20 * time.Millisecond)
			over.Store(true)
		},
		End: func() {
			if ended++; !over.Load() {
				t.Error("something is at work still")
			}
		},
	})
	go func() { <-busy; stop() }()
	if err := j.Push(t.Context(), names[0], dir); err != nil {
		t.Fatal(err)
	}
	j.Run(ctx)
	if ended != 1 {
		t.Errorf("ended %d times", ended)
	}
}

// What is fetched ahead is in the process, and goes when the recovery is over or the daemon ends.
func TestFetchesAhead(t *testing.T) {
	dir, m := dataDir(t), &storetest.Memory{}
	names := finish(t, dir, 8)
	a := archive.New(m, archive.Options{})
	j := work(t, dir, a, m, io.Discard, nil)
	for _, name := range names {
		if err := j.Push(t.Context(), name, dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, signal := range []string{"recovery.signal", "postmaster.pid"} {
		if err := os.WriteFile(filepath.Join(dir, signal), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ahead := filepath.Join(dir, "pg_wal/.wal-g/prefetch")
	for i, name := range names[:6] {
		dest := filepath.Join(dir, "pg_wal/RECOVERYXLOG")
		os.Remove(dest)
		if err := j.Fetch(t.Context(), name, dest, ""); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(dest); err != nil || string(b) != string(content(t, dir, name)) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		pgtest.Eventually(t, names[i+1]+" is fetched ahead", func() bool { _, err := os.Stat(filepath.Join(ahead, names[i+1])); return err == nil })
	}
	if err := os.Remove(filepath.Join(dir, "recovery.signal")); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "nothing stays once the recovery is over", func() bool { _, err := os.Stat(ahead); return errors.Is(err, os.ErrNotExist) })
}
