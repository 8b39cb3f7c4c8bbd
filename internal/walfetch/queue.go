package walfetch

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"holdfast/internal/pg/wal"
)

// A queue is the directory of segments fetched ahead.
type queue struct {
	dir      string // .wal-g/prefetch
	location string // of the archive
	data     string // the data directory, should dest lie in its pg_wal
	memory   *Memory
}

func openQueue(dest string, o Options) *queue {
	wal := filepath.Dir(dest)
	return &queue{filepath.Join(cmp.Or(o.Dir, wal), ".wal-g", "prefetch"), o.Location, filepath.Dir(wal), o.Memory}
}

// ours reports whether nobody else can have put anything into the queue: its directories, as far as they are there, belong to the
// account that runs us, and no other may write to them. With WALG_PREFETCH_DIR they may lie where everybody can make them first.
func (q *queue) ours() bool {
	for _, dir := range []string{filepath.Dir(q.dir), q.dir, filepath.Join(q.dir, "running")} {
		info, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return true
		}
		if err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0 {
			return false
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			return false
		}
	}
	return true
}

// recovering reports whether a server runs there that is in archive recovery.
func (q *queue) recovering() bool {
	_, err := os.Stat(filepath.Join(q.data, "postmaster.pid"))
	return err == nil && situationIn(q.data) != Unknown
}

func (q *queue) finished(name string) string { return filepath.Join(q.dir, name) }
func (q *queue) record(name string) string   { return filepath.Join(q.dir, name+".json") }
func (q *queue) running(name string) string  { return filepath.Join(q.dir, "running", name) }
func (q *queue) lock() string                { return filepath.Join(q.dir, "lock") }

// A record says what is known of a segment that was fetched ahead.
type record struct {
	Location string `json:"location"`
	Size     int64  `json:"size"`
	CRC32C   uint32 `json:"crc32c"`
}

// A request is what PostgreSQL asked for.
type request struct {
	Name        string          `json:"name"`
	SegmentSize wal.SegmentSize `json:"segment_size"` // 0 until a segment was seen
	Recovering  bool            `json:"recovering"`   // whether the data directory says so
}

// readJSON reads one of our little files.
func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // only read: nothing to lose
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON replaces one of our little files, so that a reader sees the old or the new. A crash of the machine may lose it.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// stalled is how long a download may not grow until the one who waits for it fetches the segment itself.
const stalled = 2 * time.Second

// take makes a segment dst's content if it was, or is being, fetched ahead, and returns its length; 0 means that it has to be
// fetched. An error says why, and is not the end of the matter either.
func (q *queue) take(ctx context.Context, name string, dst *destination) (int64, error) {
	q.request(name)
	for waited := false; ; waited = true {
		size, err := q.takeFinished(name, dst)
		if !errors.Is(err, fs.ErrNotExist) {
			return size, err
		}
		if waited || !q.await(ctx, name) {
			return 0, nil
		}
	}
}

// request notes what PostgreSQL asks for. Asking again for the same is no news.
func (q *queue) request(name string) {
	if q.memory.ask(name) {
		return
	}
	var last request
	if err := readJSON(filepath.Join(q.dir, "requested"), &last); err == nil && last.Name == name {
		return
	}
	writeJSON(filepath.Join(q.dir, "requested"), request{name, last.SegmentSize, q.recovering()}) // without the directory nobody is there to read it
}

// takeFinished adopts a segment that was fetched ahead, or copies it to dst. None is fs.ErrNotExist; one that is not right is
// removed.
func (q *queue) takeFinished(name string, dst *destination) (int64, error) {
	path := q.finished(name)
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() // only read: nothing to lose
	size := q.memory.take(path, f)
	if size == 0 {
		size, err = q.verify(f, name)
	}
	if err != nil {
		os.Remove(path)
		os.Remove(q.record(name))
		return 0, fmt.Errorf("verify %s: %v", path, err) // not wrapped: whatever is missing, path was not
	}
	if err := dst.adopt(path); err != nil { // such as a directory on another file system
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		if _, err := receive(dst.file, f, name); err != nil {
			return 0, fmt.Errorf("copy %s: %w", path, err)
		}
		os.Remove(path)
	}
	os.Remove(q.record(name))
	return size, nil
}

// verify compares a segment with what was recorded when it was fetched.
func (q *queue) verify(f *os.File, name string) (int64, error) {
	var want record
	if err := readJSON(q.record(name), &want); err != nil {
		return 0, err
	}
	if want.Location != q.location {
		return 0, errors.New("it is from another archive")
	}
	head := make([]byte, wal.HeaderLen)
	if _, err := io.ReadFull(f, head); err != nil {
		return 0, err
	}
	size, err := checkHeader(head, name)
	if err != nil {
		return 0, err
	}
	if want.Size != int64(size) {
		return 0, fmt.Errorf("it has %d bytes, but is a segment of %d", want.Size, size)
	}
	sum := crc32.Checksum(head, castagnoli)
	n := int64(len(head))
	for buf := make([]byte, 256<<10); ; {
		k, err := f.Read(buf)
		sum = crc32.Update(sum, castagnoli, buf[:k])
		n += int64(k)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	if n != want.Size || sum != want.CRC32C {
		return 0, fmt.Errorf("%d bytes with checksum %08x, fetched were %d with %08x", n, sum, want.Size, want.CRC32C)
	}
	return n, nil
}

// await waits for a download that is running, as long as it gets on, and reports whether it ended.
func (q *queue) await(ctx context.Context, name string) bool {
	f, err := os.Open(q.running(name))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) && q.ended(name)
	}
	defer f.Close() // only read: nothing to lose
	var size int64
	for last := time.Now(); time.Since(last) < stalled; {
		if !sameFile(f, q.running(name)) {
			return true
		}
		if locked(f) { // the process that fetched it is dead, or has just ended
			if sameFile(f, q.running(name)) {
				os.Remove(q.running(name))
			}
			return true
		}
		if info, err := f.Stat(); err == nil && info.Size() != size {
			size, last = info.Size(), time.Now()
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(2 * time.Millisecond):
		}
	}
	return false
}

// ended reports whether the segment was finished since it was looked for.
func (q *queue) ended(name string) bool {
	_, err := os.Lstat(q.finished(name))
	return err == nil
}

func (q *queue) end() string {
	b, err := os.ReadFile(filepath.Join(q.dir, "end"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b[:min(len(b), 64)]))
}

// setEnd notes that the archive lacks a segment.
func (q *queue) setEnd(name string) {
	if q.end() != name {
		os.WriteFile(filepath.Join(q.dir, "end"), []byte(name), 0o600) // without the directory nothing was fetched ahead
	}
}

// missing notes that the archive lacks a segment. There a recovery ends: nothing of the queue is to stay, unless a process is at
// it, which sees to that.
func (q *queue) missing(name string) {
	switch {
	case situationIn(q.data) != Recovery:
		q.setEnd(name)
	case !q.busy():
		q.remove() // what stays takes no room
	}
}

// continueAfter sees to it that the segments after name are fetched, unless someone is at it, or the archive is known to end
// there: a standby that waits for each next segment has nothing to fetch ahead.
func (q *queue) continueAfter(name string, size wal.SegmentSize, o Options) {
	if o.Start == nil {
		return
	}
	timeline, no, err := size.ParseSegment(name)
	if err != nil {
		return
	}
	end := q.end()
	if end == name { // it has come since: PostgreSQL is at the tip of the archive
		os.Remove(filepath.Join(q.dir, "end"))
		return
	}
	if end == size.Name(timeline, no+1) || q.busy() {
		return
	}
	err = q.create(o)
	if err == nil {
		err = writeJSON(filepath.Join(q.dir, "requested"), request{name, size, q.recovering()})
	}
	if err == nil {
		err = o.Start()
	}
	if err != nil {
		o.logger().Warn("cannot fetch segments ahead", "error", err)
	}
}

// create makes the directories of the queue, but not PostgreSQL's, should that have been removed by now.
func (q *queue) create(o Options) error {
	if o.Dir != "" {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return err
		}
	}
	for _, dir := range []string{filepath.Dir(q.dir), q.dir, filepath.Join(q.dir, "running")} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// remove removes all there is of the queue.
func (q *queue) remove() error {
	err := os.RemoveAll(q.dir)
	os.Remove(filepath.Dir(q.dir)) // which others may use as well
	return err
}

// busy reports whether there is a process that fetches ahead.
func (q *queue) busy() bool {
	f, err := os.Open(q.lock())
	if err != nil {
		return false
	}
	defer f.Close() // gives the lock back
	return !locked(f)
}
