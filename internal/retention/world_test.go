package retention_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"

	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// tester is what testing.T and rapid.T share.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

const size = wal.SegmentSize(16 << 20)

// clocked is a store whose clock the test sets: what is put counts as modified then.
type clocked struct {
	store.Store
	now      *time.Time
	mu       sync.Mutex
	modified map[string]time.Time
}

func (c *clocked) stored(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.modified[name] = *c.now
}

func (c *clocked) at(name string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.modified[name]
}

func newClocked(s store.Store, now *time.Time) *clocked {
	return &clocked{Store: s, now: now, modified: map[string]time.Time{}}
}

func (c *clocked) Put(ctx context.Context, name string, r io.Reader) error {
	err := c.Store.Put(ctx, name, r)
	if err == nil {
		c.stored(name)
	}
	return err
}

func (c *clocked) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	err := store.PutIfAbsent(ctx, c.Store, name, r)
	if err == nil {
		c.stored(name)
	}
	return err
}

func (c *clocked) Stat(ctx context.Context, name string) (store.Object, error) {
	o, err := c.Store.Stat(ctx, name)
	o.Modified = c.at(o.Name)
	return o, err
}

func (c *clocked) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return c.timed(c.Store.List(ctx, dir, after))
}

func (c *clocked) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return c.timed(store.Walk(ctx, c.Store, dir))
}

func (c *clocked) DeleteMany(ctx context.Context, names []string) error {
	return store.DeleteMany(ctx, c.Store, names)
}

func (c *clocked) timed(all iter.Seq2[store.Object, error]) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range all {
			if !o.IsDir() {
				o.Modified = c.at(o.Name)
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// world is a cluster with an archive, made by hand: what is in the objects does not matter to retention but for the documents.
type world struct {
	t      tester
	memory *storetest.Memory
	store  *clocked
	now    time.Time
	a      *archive.Archive

	system   uint64
	timeline wal.Timeline
	seg      wal.SegmentNo // the next one
	history  string        // of the current timeline
	highest  wal.Timeline
	previous []uint64
	last     string // the newest backup, where a test keeps it
}

func newWorld(t tester) *world {
	w := &world{t: t, memory: &storetest.Memory{}, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), system: 7001, timeline: 1, seg: 1, highest: 1}
	w.store = newClocked(w.memory, &w.now)
	w.a = archive.New(w.store, archive.Options{})
	w.own()
	return w
}

func (w *world) own() {
	b, _ := json.Marshal(archive.Owner{SystemIdentifier: w.system, Since: w.now, By: "test", Previous: w.previous})
	w.put(archive.OwnerName, string(b))
}

func (w *world) put(name, content string) {
	w.t.Helper()
	if err := w.store.Put(context.Background(), name, strings.NewReader(content)); err != nil {
		w.t.Fatal(err)
	}
}

// days passes.
func (w *world) days(n float64) { w.now = w.now.Add(time.Duration(n * 24 * float64(time.Hour))) }

// segmentOn archives one segment with what may lie beside it.
func (w *world) segmentOn(t wal.Timeline, n wal.SegmentNo) {
	name := size.Name(t, n)
	w.put(archive.WALDir+name+".zst", "wal")
	w.put(archive.SummaryDir+name[:8]+"/"+name+".zst", "summary")
	w.put(archive.WALDir+name+".sum.json", "{}")
	if n%16 == 15 {
		w.put(archive.WALDir+size.Name(t, n-15)+"_delta.zst", "delta")
	}
}

// write archives n segments, one a minute.
func (w *world) write(n int) {
	for range n {
		w.now = w.now.Add(time.Minute)
		w.segmentOn(w.timeline, w.seg)
		w.seg++
	}
}

// promote leaves the timeline in the middle of a segment.
func (w *world) promote() {
	w.put(archive.WALDir+size.Name(w.timeline, w.seg)+".partial.zst", "partial")
	w.highest++
	w.history += fmt.Sprintf("%d\t%s\tno recovery target specified\n", w.timeline, size.Start(w.seg)+0x1000)
	w.timeline = w.highest
	w.put(archive.WALDir+wal.HistoryName(w.timeline), w.history)
	w.write(1)
}

// upgrade makes it another cluster: pg_upgrade goes on with the number of the segment, on timeline 1.
func (w *world) upgrade() {
	w.previous = append(w.previous, w.system)
	w.system++
	w.timeline, w.history = 1, ""
	w.seg += 2
	w.own()
	w.write(1)
}

// segment and finish of a backup that is taken now.
func (w *world) name(parent string) string {
	segment := size.Name(w.timeline, w.seg)
	if parent != "" {
		return archive.DeltaName(segment, parent)
	}
	return archive.BackupName(segment)
}

// folder stores what a backup has beside its sentinel.
func (w *world) folder(name string) {
	for _, o := range []string{"tar_partitions/part_001.tar.zst", "tar_partitions/pg_control.tar.zst", "files_metadata.json", "manifest.json.zst"} {
		w.put(archive.Folder(name)+o, "content of "+name)
	}
}

// take takes a backup over n segments; parent is "" for a full one.
func (w *world) take(parent string, n int, change func(*archive.Sentinel)) string {
	name := w.name(parent)
	w.takeAs(name, parent, n, change)
	return name
}

func (w *world) takeAs(name, parent string, n int, change func(*archive.Sentinel)) {
	w.t.Helper()
	start, begun := size.Start(w.seg)+0x28, w.now
	w.folder(name)
	w.write(n)
	w.commit(name, parent, start, begun, change)
}

// commit stores the documents of a backup that ends now.
func (w *world) commit(name, parent string, start wal.LSN, begun time.Time, change func(*archive.Sentinel)) {
	w.t.Helper()
	finish := size.Start(w.seg) - 0x100
	system := w.system
	s := &archive.Sentinel{LSN: &start, FinishLSN: &finish, SystemIdentifier: &system, StartTime: begun, FinishTime: w.now, Version: 2, PgVersion: 170000, SegmentSize: uint64(size)}
	if parent != "" {
		p, err := w.a.Sentinel(context.Background(), parent)
		if err != nil {
			w.t.Fatal(err)
		}
		s.DeltaFrom, s.DeltaLSN, s.DeltaFullName, s.DeltaCount, s.Parent = parent, p.LSN, parent, p.DeltaCount+1, p.Sum
		if p.DeltaFullName != "" {
			s.DeltaFullName = p.DeltaFullName
		}
	}
	if change != nil {
		change(s)
	}
	m, _ := json.Marshal(s.Metadata())
	w.put(archive.Folder(name)+"metadata.json", string(m))
	b, _ := json.Marshal(s)
	w.put(w.a.SentinelName(name), string(b))
}

func permanent(s *archive.Sentinel) { s.IsPermanent = true }

// begin makes a push at work, and returns its name.
func (w *world) begin(parent string) string {
	name := w.name(parent)
	b, _ := json.Marshal(archive.Push{Host: "elsewhere", PID: 7, Started: w.now})
	w.put(archive.Folder(name)+"push.json", string(b))
	w.put(archive.Folder(name)+"tar_partitions/part_001.tar.zst", "half")
	return name
}

// has lists the names of all objects below dir, without it.
func (w *world) has(dir string) (names []string) {
	for o, err := range w.memory.Walk(context.Background(), dir) {
		if err != nil {
			w.t.Fatal(err)
		}
		names = append(names, strings.TrimPrefix(o.Name, dir))
	}
	return names
}

// proof is the record of a drill of a backup that went well.
func (w *world) proof(backup string) string {
	w.t.Helper()
	s, err := w.a.Sentinel(context.Background(), backup)
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf(`{"at":%q,"backup":%q,"sentinel_sha256":%q,"ok":true}`, w.now.Format(time.RFC3339), backup, s.Sum)
}
