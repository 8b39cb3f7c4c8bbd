package walfetch

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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
	if _, err := dst.Seek(0, io.SeekStart); err != nil {
		return checked{}, err
	}
	if err := dst.Truncate(0); err != nil {
		return checked{}, err
	}
	w := &receiver{dst: dst, name: name, max: maxSmall}
	_, err := io.Copy(w, src)
	switch {
	case w.err != nil: // which io.Copy may have wrapped
		return checked{}, w.err
	case err != nil:
		return checked{}, &brokenError{err}
	case w.segment() && (w.size == 0 || w.n != w.size):
		return checked{}, &brokenError{fmt.Errorf("%s has %d bytes in the archive, which is no whole segment", name, w.n)}
	}
	return checked{w.n, w.sum}, nil
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

// begin locks the destination at path. What is there stays until commit or adopt.
func begin(ctx context.Context, path string) (*destination, error) {
	dir := filepath.Dir(path)
	d := &destination{path: path, temp: filepath.Join(dir, "."+filepath.Base(path)+atomicfile.Suffix)}
	perm, err := permissions(dir)
	if err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(d.temp, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, perm)
		if err != nil {
			return nil, err
		}
		if locked(f) && sameFile(f, d.temp) {
			d.file = f
			return d, nil
		}
		f.Close() // nothing was written
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

// commit puts what was written to d.file in place.
func (d *destination) commit() error {
	f := d.file
	d.file = nil
	err := os.Rename(d.temp, d.path)
	if err != nil {
		os.Remove(d.temp) // the error to report is the first
	}
	return errors.Join(err, f.Close())
}

// adopt puts the file at from in place instead.
func (d *destination) adopt(from string) error {
	if err := os.Rename(from, d.path); err != nil {
		return err
	}
	return d.abort()
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
