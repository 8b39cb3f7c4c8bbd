package walfetch

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/pg/wal"
)

// Bounds of what lies fetched ahead, whatever the pace: PostgreSQL's disk is not ours.
const (
	maxSegments = 64
	maxBytes    = 1 << 30

	spare = 16 // segments of room that stay free
)

// Ahead fetches the segments that PostgreSQL is going to ask for, following what it asks for. It returns when PostgreSQL has
// asked for all that could be fetched, when nothing was asked for during Patience, or when the server stopped or its recovery
// is over, and leaves no segments behind. Only one process at a time does this for a directory: where another is at it, Ahead
// returns at once. Fetch has to have made the directory and noted there what is asked for; where it is gone, Ahead makes
// nothing anew. Ahead returns how many segments it fetched, and the error because of which it did not fetch more.
func Ahead(ctx context.Context, a Archive, dest string, o Options) (int, error) {
	q := openQueue(dest, o)
	lock, err := os.OpenFile(q.lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer lock.Close() // gives the lock back
	if !locked(lock) || !sameFile(lock, q.lock()) {
		return 0, nil
	}
	perm, err := permissions(filepath.Dir(dest))
	if err != nil {
		return 0, err
	}
	p := &prefetcher{
		archive: Finished(a), queue: q, lock: lock, opts: o, perm: perm,
		running: map[wal.SegmentNo]bool{}, have: map[wal.SegmentNo]bool{}, results: make(chan result),
		pace: pace{parallel: max(o.Parallel, 1)},
	}
	return p.run(ctx)
}

// Finished returns a without the segments that the server is still writing, of which an archive reads what it has so far. By the time they are asked for there may be
// more of them, and of what is fetched ahead PostgreSQL would take the end for that of the archive.
func Finished(a Archive) Archive { return finished{a} }

type finished struct{ Archive }

func (f finished) OpenWAL(ctx context.Context, name string) (io.ReadCloser, error) {
	if a, ok := f.Archive.(interface {
		OpenWholeWAL(ctx context.Context, name string) (io.ReadCloser, error)
	}); ok { // pieces are not opened to be thrown away: where they overlap that reads all of them
		return a.OpenWholeWAL(ctx, name)
	}
	r, err := f.Archive.OpenWAL(ctx, name)
	if u, ok := r.(interface{ Unfinished() bool }); err == nil && ok && u.Unfinished() {
		return nil, errors.Join(fs.ErrNotExist, r.Close())
	}
	return r, err
}

// A prefetcher is one run of Ahead. All but fetch runs in one goroutine.
type prefetcher struct {
	archive Archive
	queue   *queue
	lock    *os.File
	opts    Options
	perm    fs.FileMode

	noted      string // what the file says that PostgreSQL asked for
	timeline   wal.Timeline
	size       wal.SegmentSize
	at         wal.SegmentNo          // what PostgreSQL asked for last
	recovering bool                   // whether a server in recovery asked
	end        wal.SegmentNo          // the first segment known to be missing, or not to be had; 0 for none
	err        error                  // why it is not to be had
	running    map[wal.SegmentNo]bool // being fetched
	have       map[wal.SegmentNo]bool // fetched
	results    chan result
	fetched    int
	pace       pace
}

// A result is how fetching one segment went.
type result struct {
	timeline wal.Timeline
	no       wal.SegmentNo
	took     time.Duration
	err      error
}

const (
	tick   = 20 * time.Millisecond // how long a request may go unnoticed
	linger = time.Second           // after a request it is not over yet: it may be being served
)

func (p *prefetcher) run(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	p.queue.memory.follow(true)
	atEnd, err := p.work(ctx)
	p.queue.memory.follow(false)
	cancel()
	p.settle()
	switch {
	case !p.holds(): // the directory was removed, and may have been made anew: then others work there
		return p.fetched, nil
	case atEnd && situationIn(p.queue.data) != Recovery: // a standby may wait there for long: what Fetch goes by stays
		p.queue.setEnd(p.size.Name(p.timeline, p.end))
		err = p.tidy(math.MaxUint64)
	default:
		err = errors.Join(err, p.queue.remove())
	}
	return p.fetched, errors.Join(p.err, err)
}

// holds reports whether the directory is still the one that this process has locked.
func (p *prefetcher) holds() bool { return sameFile(p.lock, p.queue.lock()) }

// work fetches until there is nothing more to do, and reports whether that is because PostgreSQL has asked for all there is. Some
// downloads may be running still.
func (p *prefetcher) work(ctx context.Context) (atEnd bool, err error) {
	// Whoever wrote these held the lock, and is dead.
	if err := removeAll(filepath.Join(p.queue.dir, "running"), func(string) bool { return true }); err != nil {
		return false, err
	}
	patience := cmp.Or(p.opts.Patience, 2*time.Minute)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for last := time.Now(); p.holds(); {
		now := time.Now()
		moved, err := p.follow(now)
		if err != nil {
			return false, err
		}
		switch {
		case moved:
			last = now
		case now.Sub(last) > patience,
			p.recovering && now.Sub(last) > linger && !p.queue.recovering(): // promoted, or the target was reached, or stopped
			return false, nil
		}
		p.startSome(ctx)
		if len(p.running) == 0 && p.end != 0 && p.at+1 >= p.end && now.Sub(last) > linger {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-ticker.C:
		case r := <-p.results:
			p.account(r)
		}
	}
	return false, nil
}

// follow looks what PostgreSQL asks for, and reports whether that is news.
func (p *prefetcher) follow(now time.Time) (bool, error) {
	var r request
	if err := readJSON(filepath.Join(p.queue.dir, "requested"), &r); err != nil {
		return false, err
	}
	size := r.SegmentSize
	if !size.Valid() {
		return false, errors.New("the size of segments is not known yet")
	}
	if r.Name == p.noted { // so that nobody asked in another process
		name := p.queue.memory.heard()
		if name == "" {
			return false, nil
		}
		r.Name, r.Recovering = name, p.recovering || p.queue.recovering() // which may be over since it asked
	} else {
		p.noted = r.Name
	}
	p.recovering = r.Recovering
	timeline, no, err := size.ParseSegment(r.Name)
	if err != nil {
		return false, err
	}
	if timeline == p.timeline && no == p.at && size == p.size {
		return false, nil
	}
	if timeline != p.timeline || size != p.size || no < p.at {
		// Another timeline, or recovery began anew: what is there has to be seen again.
		p.timeline, p.size, p.end, p.err = timeline, size, 0, nil
	} else {
		p.pace.moved(now, int(no-p.at))
		if no >= p.end { // it was asked for, so it may have come
			p.end, p.err = 0, nil
		}
	}
	p.at = no
	p.pace.last = now
	return true, p.tidy(no)
}

// tidy removes the segments before first, as they will not be asked for any more, and notes which others are there.
func (p *prefetcher) tidy(first wal.SegmentNo) error {
	clear(p.have)
	return removeAll(p.queue.dir, func(entry string) bool {
		name := strings.TrimSuffix(entry, ".json")
		if !wal.IsSegment(name) {
			return false
		}
		timeline, no, err := p.size.ParseSegment(name)
		if err != nil || timeline != p.timeline || no < first {
			return true
		}
		if entry == name {
			p.have[no] = true
		}
		return false
	})
}

// removeAll removes the files in dir that are stale.
func removeAll(dir string, stale func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() || !stale(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// startSome starts fetching what is wanted next, as much at once as the pace asks for.
func (p *prefetcher) startSome(ctx context.Context) {
	workers, depth := p.pace.plan()
	depth = max(1, min(depth, maxSegments, maxBytes/int(p.size)))
	if p.scarce(workers) {
		return
	}
	for no := p.at + 1; no <= p.at+wal.SegmentNo(depth) && len(p.running) < workers && (p.end == 0 || no < p.end); no++ {
		if p.running[no] || p.have[no] {
			continue
		}
		p.running[no] = true
		timeline, name := p.timeline, p.size.Name(p.timeline, no)
		go func() {
			start := time.Now()
			err := p.fetch(ctx, name)
			p.results <- result{timeline, no, time.Since(start), err}
		}()
	}
}

// scarce reports whether so little room is left on the disk that PostgreSQL, which stops where it cannot write WAL, should
// have all of it.
func (p *prefetcher) scarce(workers int) bool {
	var fs unix.Statfs_t
	if err := unix.Statfs(p.queue.dir, &fs); err != nil {
		return false // fetching will tell
	}
	return int64(fs.Bavail)*int64(fs.Bsize) < int64(workers+spare)*int64(p.size)
}

// account takes in how a download went. What cannot be had now is PostgreSQL's to ask for: it has to hear why.
func (p *prefetcher) account(r result) {
	delete(p.running, r.no)
	if r.err == nil {
		p.fetched++
		p.pace.took(r.took)
	}
	var missing *MissingError
	switch {
	case r.timeline != p.timeline: // nobody asks for that any more
	case r.err == nil, errors.Is(r.err, errTaken): // whoever took it fetches it
		p.have[r.no] = true
	case p.end == 0 || r.no < p.end:
		p.end, p.err = r.no, nil
		if !errors.As(r.err, &missing) {
			p.err = r.err
		}
	}
}

// settle waits for what is still running.
func (p *prefetcher) settle() {
	for len(p.running) > 0 {
		delete(p.running, (<-p.results).no)
	}
}

// errTaken says that another process found our download and took us for dead.
var errTaken = errors.New("taken over by another process")

// fetch brings one segment into the queue.
func (p *prefetcher) fetch(ctx context.Context, name string) error {
	running := p.queue.running(name)
	f, err := os.OpenFile(running, os.O_RDWR|os.O_CREATE|os.O_EXCL, p.perm)
	if err != nil {
		return err
	}
	defer f.Close() // gives the lock back; what was written is checked when it is used
	if !locked(f) || !sameFile(f, running) {
		return errTaken
	}
	c, err := download(ctx, p.archive, name, f)
	if err == nil {
		writeOut(f, c.Size)
		err = writeJSON(p.queue.record(name), record{p.queue.location, c.Size, c.CRC32C})
	}
	if err == nil {
		err = p.queue.memory.rename(f, running, p.queue.finished(name))
	}
	if err != nil {
		os.Remove(running)
	}
	return err
}

// pace is how fast segments are asked for and fetched, and how many to fetch follows from that.
type pace struct {
	parallel int           // upper bound of downloads at once
	last     time.Time     // of the latest request
	interval time.Duration // between requests, a moving average; 0 while unknown
	fetch    time.Duration // of one segment, a moving average; 0 while unknown
}

// moved says that the request at now is n segments after the latest one.
func (p *pace) moved(now time.Time, n int) {
	p.interval = average(p.interval, now.Sub(p.last)/time.Duration(n))
}

func (p *pace) took(d time.Duration) { p.fetch = average(p.fetch, d) }

func average(old, sample time.Duration) time.Duration {
	sample = max(sample, time.Microsecond)
	if old == 0 {
		return sample
	}
	return old + (sample-old)/4
}

// plan returns how many segments to fetch at once: as many as are replayed while one is fetched, and one more, so that
// fetching gains on replay. And how far ahead: twice that, and what is replayed in the next half second.
func (p *pace) plan() (workers, depth int) {
	if p.interval == 0 || p.fetch == 0 {
		return min(2, p.parallel), 4
	}
	workers = max(1, min(int((p.fetch+p.interval-1)/p.interval)+1, p.parallel))
	return workers, 2*workers + int(min(500*time.Millisecond/p.interval, maxSegments))
}
