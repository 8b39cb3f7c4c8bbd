package walpush_test

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/fileid"
	"holdfast/internal/store/storetest"
	"holdfast/internal/walpush"
	"holdfast/test/pgtest"
)

// gate is an archive that notes what is stored in it, and stores a WAL file once it may.
type gate struct {
	*archive.Archive
	mu     sync.Mutex
	begun  []string                 // names, in the order in which storing them began
	closed map[string]chan struct{} // by name: what has to be closed first
	fail   map[string]error
}

func (g *gate) PutWAL(ctx context.Context, name string, open func() (io.ReadCloser, error)) (int64, error) {
	g.mu.Lock()
	g.begun = append(g.begun, name)
	closed, err := g.closed[name], g.fail[name]
	g.mu.Unlock()
	if closed != nil {
		select {
		case <-closed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if err != nil {
		return 0, err
	}
	return g.Archive.PutWAL(ctx, name, open)
}

// times returns how often storing a file was begun.
func (g *gate) times(name string) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range g.begun {
		if b == name {
			n++
		}
	}
	return n
}

// resident runs a Resident until the test ends.
func resident(t *testing.T, d pgWAL, a *gate, o walpush.Options) *walpush.Resident {
	t.Helper()
	r := walpush.NewResident(d.dir, func(context.Context) (asked, ahead walpush.Archive, err error) { return a, a, nil }, o)
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { stop(); run.Wait() })
	return r
}

// settled waits until files are old enough to be known by their IDs.
func settled(t *testing.T, d pgWAL, names []string) {
	t.Helper()
	pgtest.Eventually(t, "the files are old", func() bool {
		return !slices.ContainsFunc(names, func(name string) bool {
			id, err := fileid.At(d.path(name))
			return err != nil || !id.Settled(time.Now())
		})
	})
}

// A backlog is stored file by file, each once, whoever was first; and what a push said is durable is.
func TestResidentDrainsBacklog(t *testing.T) {
	for _, rename := range []bool{false, true} {
		d, m := newWAL(t), &storetest.Memory{}
		names := d.segments(24)
		settled(t, d, names)
		g := &gate{Archive: archive.New(m, archive.Options{})}
		o := options()
		o.Parallel, o.Limit, o.ReadyRename = 4, 8, rename
		r := resident(t, d, g, o)
		for _, name := range names {
			if _, err := os.Stat(d.path("archive_status/" + name + ".done")); err == nil {
				continue // PostgreSQL would not ask
			}
			report, err := r.Push(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if report.Outcome == walpush.Equal && !rename { // or it was renamed after we looked
				t.Errorf("%s was pushed though it was there", name)
			}
			whole(t, m, name, segment(name, cluster, 1))
			if err := os.Rename(d.path("archive_status/"+name+".ready"), d.path("archive_status/"+name+".done")); err != nil && !rename {
				t.Fatal(err)
			}
		}
		for _, name := range names {
			whole(t, m, name, segment(name, cluster, 1))
			if n := g.times(name); n != 1 && !rename {
				t.Errorf("%s was stored %d times", name, n)
			}
		}
		if left := d.marked(); len(left) > 0 && !rename {
			t.Errorf("markers stay: %q", left)
		}
	}
}

// A push is done when its file is durable, whatever becomes of those that go ahead; and a push of one of them waits for that.
func TestResidentWaitsForItsFileOnly(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(3)
	open := make(chan struct{})
	g := &gate{Archive: archive.New(m, archive.Options{}), closed: map[string]chan struct{}{names[1]: open}}
	o := options()
	o.Parallel = 2
	r := resident(t, d, g, o)
	if report, err := r.Push(t.Context(), names[0]); err != nil || report.Outcome != walpush.Stored {
		t.Fatalf("%+v, %v", report, err)
	}
	d.done(names[0])
	pgtest.Eventually(t, names[1]+" goes ahead", func() bool { return g.times(names[1]) == 1 })

	impatient, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no more time")
	cancel(why)
	if _, err := r.Push(impatient, names[1]); !errors.Is(err, why) {
		t.Errorf("a push that may not wait: %v", err)
	}
	pushed := make(chan error, 1)
	go func() {
		_, err := r.Push(t.Context(), names[1])
		pushed <- err
	}()
	select {
	case err := <-pushed:
		t.Fatalf("%s is not stored, and its push returned %v", names[1], err)
	case <-time.After(20 * time.Millisecond): // too short a wait lets a fault pass, not the right thing fail
	}
	close(open)
	if err := <-pushed; err != nil {
		t.Fatal(err)
	}
	whole(t, m, names[1], segment(names[1], cluster, 1))
	if n := g.times(names[1]); n > 2 { // twice where the file was too young to be known again
		t.Errorf("stored %d times", n)
	}
}

// Where storing a file ahead fails, the push of it tries itself, and says what comes of that.
func TestResidentDoesNotRelyOnWhatFailed(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(2)
	open := make(chan struct{})
	broken := errors.New("the store is down")
	g := &gate{Archive: archive.New(m, archive.Options{}), closed: map[string]chan struct{}{names[1]: open}, fail: map[string]error{names[1]: broken}}
	o := options()
	o.Parallel = 2
	r := resident(t, d, g, o)
	if _, err := r.Push(t.Context(), names[0]); err != nil {
		t.Fatal(err)
	}
	d.done(names[0])
	pgtest.Eventually(t, names[1]+" goes ahead", func() bool { return g.times(names[1]) == 1 })
	close(open)
	if _, err := r.Push(t.Context(), names[1]); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	g.mu.Lock()
	g.fail = nil
	g.mu.Unlock()
	if report, err := r.Push(t.Context(), names[1]); err != nil || report.Outcome != walpush.Stored {
		t.Errorf("%+v, %v", report, err)
	}
	whole(t, m, names[1], segment(names[1], cluster, 1))
}

// What was stored ahead answers for the very file only: other content under its name is refused.
func TestResidentSeesThatFileChanged(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(2)
	settled(t, d, names)
	info, err := os.Stat(d.path(names[1]))
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Archive: archive.New(m, archive.Options{})}
	o := options()
	o.Parallel = 2
	r := resident(t, d, g, o)
	if _, err := r.Push(t.Context(), names[0]); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, names[1]+" is stored ahead", func() bool { return len(d.marked()) == 1 })
	// In place, of the same length and with the same time.
	if err := os.WriteFile(d.path(names[1]), segment(names[1], cluster, 2), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(d.path(names[1]), info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	var conflict *archive.ConflictError
	if report, err := r.Push(t.Context(), names[1]); !errors.As(err, &conflict) {
		t.Errorf("got %+v, %v; want a ConflictError", report, err)
	}
	whole(t, m, names[1], segment(names[1], cluster, 1))
}

// Many pushes at once, of the same files too, all end well.
func TestResidentPushesConcurrently(t *testing.T) {
	d, m := newWAL(t), &storetest.Memory{}
	names := d.segments(6)
	g := &gate{Archive: archive.New(m, archive.Options{})}
	o := options()
	o.Parallel = 3
	r := resident(t, d, g, o)
	var all sync.WaitGroup
	for i := range 24 {
		all.Go(func() {
			if _, err := r.Push(t.Context(), names[i%len(names)]); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, name := range names {
		whole(t, m, name, segment(name, cluster, 1))
	}
}

// Summaries of what was pushed are in the archive once Run has returned, though pushes do not wait for them.
func TestResidentStoresSummaries(t *testing.T) {
	names, contents := written(t)
	d, m := fill(t, contents), &storetest.Memory{}
	o, log := told()
	o.Parallel, o.Deltas = 4, false
	a := archive.New(m, archive.Options{})
	r := walpush.NewResident(d.dir, func(context.Context) (asked, ahead walpush.Archive, err error) { return a, a, nil }, o)
	ctx, stop := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { r.Run(ctx) })
	for _, name := range names {
		if _, err := r.Push(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		d.done(name)
	}
	stop()
	run.Wait()
	if got := summarized(t, m); len(got) != len(names) {
		t.Errorf("%d segments have these summaries: %q\n%s", len(names), got, log)
	}
}
