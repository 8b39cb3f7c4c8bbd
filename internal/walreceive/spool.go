package walreceive

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"holdfast/internal/atomicfile"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// receiving ends the name of a segment's file while it is being received.
const receiving = ".receiving"

// kept ends the name of what was received of a segment and has no place in the archive.
const kept = ".kept"

// spool is the directory in which segments lie until they are archived.
type spool struct {
	dir  string
	lock *os.File
}

// openSpool makes the directory, and locks it until close.
func openSpool(dir string) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close() // nothing was written
		return nil, fmt.Errorf("another wal-receive is at work in %s", dir)
	}
	return &spool{dir, f}, nil // where the file system has no locks no other has it
}

func (s *spool) close() { s.lock.Close() } // nothing was written

func (s *spool) path(name string) string { return filepath.Join(s.dir, name) }

// create makes the file of a segment that is going to be received; its name is durable.
func (s *spool) create(name string) (*os.File, error) {
	f, err := os.OpenFile(s.path(name+receiving), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.SyncDir(s.dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// finish gives a segment's file, which was synced, its final name.
func (s *spool) finish(name string) error {
	err := os.Rename(s.path(name+receiving), s.path(name))
	if err == nil {
		err = atomicfile.SyncDir(s.dir)
	}
	return err
}

// partial makes of the file of a segment whose timeline was left the one that PostgreSQL would archive: zeros follow, to the segment's size.
func (s *spool) partial(name string, f *os.File, written int64, size wal.SegmentSize) (path string, err error) {
	path = s.path(name + ".partial")
	return path, atomicfile.Write(path, 0o600, func(w io.Writer) error {
		_, err := io.Copy(w, io.MultiReader(io.NewSectionReader(f, 0, written), io.LimitReader(zeros{}, int64(size)-written)))
		return err
	})
}

// forget removes what is kept of a segment.
func (s *spool) forget(name string) error {
	var errs []error
	for _, suffix := range []string{"", receiving, ".partial"} {
		if err := os.Remove(s.path(name + suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// keep gives what was received of a segment another name, which no later run touches.
func (s *spool) keep(name string) (path string, err error) {
	path = s.path(name + kept)
	err = os.Rename(s.path(name+receiving), path)
	if errors.Is(err, fs.ErrNotExist) { // it was received whole
		err = os.Rename(s.path(name), path)
	}
	if err == nil {
		err = atomicfile.SyncDir(s.dir)
	}
	return path, err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// load returns what an earlier run has left, in order: of a segment that was being received as much as its records' checksums say is right, all of which is
// on disk now. What cannot be used is removed, and will be received again.
func (s *spool) load(log *slog.Logger) (segments []*segment, size wal.SegmentSize, cluster uint64, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, 0, 0, err
	}
	for _, e := range entries {
		name, unfinished := strings.CutSuffix(e.Name(), receiving)
		switch {
		case wal.KindOf(e.Name()) == wal.Partial, strings.HasSuffix(e.Name(), atomicfile.Suffix): // made anew where it is needed
			if err := os.Remove(s.path(e.Name())); err != nil {
				return nil, 0, 0, err
			}
			continue
		case !wal.IsSegment(name):
			continue
		}
		seg, h, err := s.loadOne(name, unfinished)
		if err == nil && size != 0 && (h.SegmentSize != size || h.SystemIdentifier != cluster) {
			err = errors.New("it is of another cluster than the others there")
		}
		if errors.Is(err, errUseless) {
			log.Warn("what is left of a segment cannot be used and is received again", "file", e.Name(), "error", err)
			if err := os.Remove(s.path(e.Name())); err != nil {
				return nil, 0, 0, err
			}
			continue
		}
		if err != nil {
			return nil, 0, 0, fmt.Errorf("%s: %w", s.path(e.Name()), err)
		}
		size, cluster = h.SegmentSize, h.SystemIdentifier
		segments = append(segments, seg)
	}
	slices.SortFunc(segments, func(a, b *segment) int { // as they came: a timeline that was left may have come further than the next one began
		return cmp.Or(cmp.Compare(a.timeline, b.timeline), cmp.Compare(a.start, b.start))
	})
	segments, err = s.inOrder(segments, size, log)
	return segments, size, cluster, err
}

// inOrder returns of segments those that follow one another. What is left of the others is kept under another name: the server may not have it any more.
func (s *spool) inOrder(segments []*segment, size wal.SegmentSize, log *slog.Logger) ([]*segment, error) {
	for i, seg := range segments[:max(len(segments)-1, 0)] {
		next := segments[i+1]
		switch {
		case next.timeline > seg.timeline && next.start <= seg.start+wal.LSN(seg.written):
			seg.left = !seg.whole
		case seg.whole && next.timeline == seg.timeline && next.start == seg.start+wal.LSN(size):
		default:
			for _, lost := range segments[i+1:] {
				lost.file.Close() // only read
				path, err := s.keep(lost.name)
				if err != nil {
					return nil, err
				}
				log.Warn("a segment does not follow what is left before it: it is received again, and what there is of it is kept", "file", path)
			}
			return segments[:i+1], nil
		}
	}
	return segments, nil
}

// errUseless says that nothing of a file can be trusted.
var errUseless = errors.New("not the beginning of the segment of that name")

func (s *spool) loadOne(name string, unfinished bool) (_ *segment, h wal.Header, err error) {
	path := s.path(name)
	if unfinished {
		path += receiving
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, h, err
	}
	defer func() {
		if err != nil {
			f.Close() // only read
		}
	}()
	head := make([]byte, wal.HeaderLen)
	if _, err := f.ReadAt(head, 0); err == io.EOF {
		return nil, h, errUseless
	} else if err != nil {
		return nil, h, err
	}
	if h, err = wal.ReadHeader(head); err != nil {
		return nil, h, fmt.Errorf("%w: %w", errUseless, err)
	}
	timeline, no, err := h.SegmentSize.ParseSegment(name)
	if err != nil || h.SegmentSize.Start(no) != h.Address {
		return nil, h, errUseless
	}
	info, err := f.Stat()
	if err != nil {
		return nil, h, err
	}
	seg := &segment{name: name, timeline: timeline, start: h.Address, file: f, written: info.Size()}
	if unfinished {
		if seg.written, err = intact(f, min(info.Size(), int64(h.SegmentSize)), h.SegmentSize); err != nil {
			return nil, h, err
		}
		if seg.written < wal.HeaderLen {
			return nil, h, errUseless
		}
		if err = f.Truncate(seg.written); err == nil {
			err = f.Sync()
		}
		if err == nil && seg.written == int64(h.SegmentSize) {
			err = s.finish(name)
		}
		if err != nil {
			return nil, h, err
		}
	} else if seg.written != int64(h.SegmentSize) {
		return nil, h, fmt.Errorf("it has %d bytes, and is a segment of %d", seg.written, h.SegmentSize)
	}
	seg.synced, seg.whole, seg.named = seg.written, seg.written == int64(h.SegmentSize), seg.written == int64(h.SegmentSize)
	return seg, h, nil
}

// intact returns how many of the first n bytes of a segment are right for sure: what comes behind the last of its records whose checksum is right a crash of
// the machine may have spoilt. Of a whole segment that is all.
func intact(f io.ReaderAt, n int64, size wal.SegmentSize) (int64, error) {
	if n == int64(size) {
		if _, err := walrec.Check(io.NewSectionReader(f, 0, n), size); err == nil {
			return n, nil
		}
	}
	r, err := walrec.NewReader(io.MultiReader(io.NewSectionReader(f, 0, n), io.LimitReader(zeros{}, int64(size)-n)), 0)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUseless, err)
	}
	var end int64
	for {
		rec, err := r.Next()
		var path *fs.PathError
		if errors.As(err, &path) {
			return 0, err
		}
		if err != nil {
			return end, nil
		}
		end = min(n, int64(rec.End-r.Header().Address))
	}
}
