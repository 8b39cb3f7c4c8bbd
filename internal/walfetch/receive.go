package walfetch

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/atomicfile"
	"holdfast/internal/pg/wal"
)

// maxSmall bounds history and label files, in bytes. Real ones have a few hundred.
const maxSmall = 16 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A file is where content goes; *os.File is one.
type file interface {
	io.Writer
	io.Seeker
	Truncate(size int64) error
}

// checked describes content that is whole.
type checked struct {
	Size   int64
	CRC32C uint32
}

// receive makes the content of src that of dst, and refuses what is not the WAL file called name. Only trouble with src
// is a *brokenError.
func receive(dst file, src io.Reader, name string) (checked, error) {
	old, err := dst.Seek(0, io.SeekEnd)
	if err != nil {
		return checked{}, err
	}
	if _, err := dst.Seek(0, io.SeekStart); err != nil {
		return checked{}, err
	}
	w := &receiver{dst: dst, name: name, max: maxSmall}
	err = transfer(w, src)
	switch {
	case w.err != nil:
		return checked{}, w.err
	case err != nil:
		return checked{}, &brokenError{err}
	case w.segment() && (w.size == 0 || w.n != w.size):
		return checked{}, &brokenError{fmt.Errorf("%s has %d bytes in the archive, which is no whole segment", name, w.n)}
	}
	// Not to 0 at the start: ext4 takes that for a file being replaced in place and, safe but slow, writes all of it when it is
	// closed (auto_da_alloc).
	if old > w.n {
		if err := dst.Truncate(w.n); err != nil {
			return checked{}, err
		}
	}
	return checked{w.n, w.sum}, nil
}

// Content moves in at most so many pieces of at most so many bytes at once. A frame of zstd fits, and is decompressed straight
// into it.
const (
	pieces    = 3
	pieceSize = 256 << 10
)

// transfer copies src to w until one of them fails, and returns the error of src, nil at its end. While one piece is written
// the next one is read, which of an archive means decompressed: with a second core that is done at the same time.
func transfer(w *receiver, src io.Reader) error {
	full, empty := make(chan []byte, pieces), make(chan []byte, pieces) // with room for all, so that only receiving waits
	for range pieces {
		empty <- make([]byte, pieceSize)
	}
	go func() {
		defer close(empty)
		for b := range full {
			if _, err := w.Write(b); err != nil {
				return
			}
			empty <- b[:pieceSize]
		}
	}()
	var err error
	for err == nil {
		b, ok := <-empty
		if !ok {
			break // w has failed
		}
		var n int
		n, err = src.Read(b)
		full <- b[:n]
	}
	close(full)
	for range empty { // until all is written
	}
	if err == io.EOF {
		err = nil
	}
	return err
}

// A receiver checks content on its way to dst.
type receiver struct {
	dst  io.Writer
	name string
	head []byte // the first bytes, until there are enough for a header
	size int64  // of the segment, as its header says; 0 until that is known
	max  int64  // bytes that may come
	n    int64
	sum  uint32
	err  error
}

func (w *receiver) segment() bool {
	k := wal.KindOf(w.name)
	return k == wal.Segment || k == wal.Partial
}

func (w *receiver) Write(p []byte) (int, error) {
	if w.err == nil {
		w.err = w.check(p)
	}
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.dst.Write(p)
	w.n += int64(n)
	w.sum = crc32.Update(w.sum, castagnoli, p[:n])
	w.err = err
	return n, err
}

// check looks at the header once it is there, and sees that not more comes than may.
func (w *receiver) check(p []byte) error {
	if w.segment() && w.size == 0 {
		w.head = append(w.head, p[:min(len(p), wal.HeaderLen-len(w.head))]...)
		if len(w.head) == wal.HeaderLen {
			size, err := checkHeader(w.head, w.name)
			if err != nil {
				return &brokenError{err}
			}
			w.size, w.max = int64(size), int64(size)
		}
	}
	if w.n+int64(len(p)) > w.max {
		return &brokenError{fmt.Errorf("%s is longer than the %d bytes it may have", w.name, w.max)}
	}
	return nil
}

// checkHeader returns the segment size that a segment's first bytes state, if they are those of the segment called name.
func checkHeader(b []byte, name string) (wal.SegmentSize, error) {
	h, err := wal.ReadHeader(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	timeline, no, err := h.SegmentSize.ParseSegment(name[:24])
	if err != nil {
		return 0, err
	}
	if want := h.SegmentSize.Start(no); h.Address != want {
		return 0, fmt.Errorf("%s holds WAL from %s on in the archive, not from %s", name, h.Address, want)
	}
	// The segment in which a timeline begins starts with a copy of the parent timeline's, page headers included.
	if h.Timeline > timeline {
		return 0, fmt.Errorf("%s holds WAL of timeline %d in the archive", name, h.Timeline)
	}
	return h.SegmentSize, nil
}

// A destination is the file that PostgreSQL asked for, on its way. One process at a time works on it, so that one which a
// crashed server left behind cannot replace what a later one fetched.
type destination struct {
	path string
	temp string
	file *os.File // at temp, locked; nil when ended
}

// begin locks the destination at path, and says so when it has to wait for that. What is there stays until commit or adopt.
func begin(ctx context.Context, path string, log *slog.Logger) (*destination, error) {
	dir := filepath.Dir(path)
	d := &destination{path: path, temp: filepath.Join(dir, "."+filepath.Base(path)+atomicfile.Suffix)}
	perm, err := permissions(dir)
	if err != nil {
		return nil, err
	}
	for waiting := false; ; waiting = true {
		f, err := os.OpenFile(d.temp, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, perm)
		if err != nil {
			return nil, err
		}
		if locked(f) && sameFile(f, d.temp) {
			d.file = f
			return d, nil
		}
		f.Close() // nothing was written
		if !waiting {
			log.Warn("another wal-fetch writes the same file, waiting for it to end", "file", path)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another process that writes %s: %w", path, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// permissions returns those of PostgreSQL's files in dir, before the umask that it sets: its group may read where it may
// read the directory.
func permissions(dir string) (fs.FileMode, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return 0, err
	}
	return 0o600 | info.Mode()&0o040, nil
}

// locked tries to lock f for this process alone, until f is closed, and reports whether no other has it. Where the file
// system has no locks no other has.
func locked(f *os.File) bool {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			return err != syscall.EWOULDBLOCK
		}
	}
}

// sameFile reports whether path still names f.
func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Lstat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// commit puts what was written to d.file in place, durably unless PostgreSQL sees to that. After adopt it does nothing.
func (d *destination) commit() error {
	if d.file == nil {
		return nil
	}
	f, lasting := d.file, !passing(d.path)
	d.file = nil
	var err error
	if lasting {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(d.temp, d.path)
	}
	if err != nil {
		os.Remove(d.temp) // the error to report is the first
	}
	if err = errors.Join(err, f.Close()); err == nil && lasting {
		err = atomicfile.SyncDir(filepath.Dir(d.path))
	}
	return err
}

// passing reports whether path is where a server has restore_command put a file (RECOVERYXLOG, RECOVERYHISTORY). Before each
// call it removes what is there, so that after a crash nothing of it is read; when it keeps the file under the file's own name,
// it syncs file and directory itself (RestoreArchivedFile and KeepFileRestoredFromArchive in xlogarchive.c, durable_rename).
// pg_rewind and people have a file put under its own name, and a server would find it there after a crash.
func passing(path string) bool { return strings.HasPrefix(filepath.Base(path), "RECOVERY") }

// adopt puts the file at from in place instead, where passing holds.
func (d *destination) adopt(from string) error {
	err := os.Rename(from, d.path)
	if err == nil {
		d.abort() // should the temporary file stay, the next fetch uses it
	}
	return err
}

// abort leaves what was at path as it is. After commit or adopt it does nothing.
func (d *destination) abort() error {
	if d.file == nil {
		return nil
	}
	err := os.Remove(d.temp)
	err = errors.Join(err, d.file.Close())
	d.file = nil
	return err
}
