package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// ConflictError says that a WAL file is archived already with other contents. The archived one stays as it is.
type ConflictError struct {
	Name   string // of the WAL file
	Object string // in the store
}

// Error keeps WAL-G's words, which people search logs for.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("WAL file '%s' already archived, contents differ, unable to overwrite %s", e.Name, e.Object)
}

// Hint says what usually is behind it.
func (e *ConflictError) Hint() string {
	return "it is already archived with other contents: two servers write to one archive, a former primary that was promoted away, or a clone. Stop the wrong one. " +
		"If the archived file is the wrong one, move it aside in the store; Holdfast does not overwrite WAL"
}

// walNames lists the object names under which a WAL file may be archived and the codec of each, ours first, then the
// other methods, and last the trailing dot that WAL-G before 3.0.9 wrote for no codec.
func (a *Archive) walNames(name string) []walObject {
	names := []walObject{{WALDir + name + a.opts.Method.Extension(), a.opts.Method}}
	for _, m := range []compress.Method{compress.Zstd, compress.LZ4, compress.None} {
		if m != a.opts.Method {
			names = append(names, walObject{WALDir + name + m.Extension(), m})
		}
	}
	return append(names, walObject{WALDir + name + ".", compress.None})
}

// foreignExtensions are those of codecs that WAL-G and WAL-E write and this release does not read.
var foreignExtensions = [...]string{".br", ".lzma", ".gz", ".lzo"}

// WALName returns the name of the WAL file that is archived as object, in whatever codec, also in one that this release does not
// read.
func WALName(object string) string {
	name, _ := compress.Split(path.Base(object))
	for _, ext := range foreignExtensions { // WAL-G may go on pushing beside us for a while
		name = strings.TrimSuffix(name, ext)
	}
	return name
}

type walObject struct {
	name   string
	method compress.Method
}

// PutWAL stores the WAL file name, whose content open yields from its start each time it is called. When PutWAL
// returned nil the content is durable in the archive; stored says whether this call put it there or it was there
// before. Other content under that name, whatever its codec, is a *ConflictError.
func (a *Archive) PutWAL(ctx context.Context, name string, open func() (io.ReadCloser, error)) (stored int64, err error) {
	if wal.KindOf(name) == wal.Other {
		return 0, fmt.Errorf("%q is not the name of a WAL file", name)
	}
	names := a.walNames(name)
	if other, err := a.findWAL(ctx, names[1:]); err != nil {
		return 0, err
	} else if other != nil {
		return 0, a.sameWAL(ctx, name, *other, open)
	}
	src, err := open()
	if err != nil {
		return 0, err
	}
	defer src.Close() // only read: nothing to lose
	body, n := a.compressed(src, a.opts.Parallel)
	defer body.Close() // gives its buffers back
	err = store.PutIfAbsent(ctx, a.store, names[0].name, body)
	if errors.Is(err, fs.ErrExist) {
		return 0, a.sameWAL(ctx, name, names[0], open)
	}
	return n.n.Load(), err
}

// sameWAL returns nil when the archived object holds what open yields, and a *ConflictError when it does not.
func (a *Archive) sameWAL(ctx context.Context, name string, o walObject, open func() (io.ReadCloser, error)) error {
	theirs, err := a.open(ctx, o.name, o.method)
	if err != nil {
		return err
	}
	defer theirs.Close() // only read
	ours, err := open()
	if err != nil {
		return err
	}
	defer ours.Close() // only read
	same, err := sameContent(theirs, ours)
	if err != nil {
		return fmt.Errorf("compare %s with what is archived: %w", name, err)
	}
	if !same {
		return &ConflictError{Name: name, Object: o.name}
	}
	return nil
}

// sameContent reads two streams side by side, 256 KiB of each at a time.
func sameContent(a, b io.Reader) (bool, error) {
	const chunk = 256 << 10
	bufA, bufB := make([]byte, chunk), make([]byte, chunk)
	for {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if !bytes.Equal(bufA[:n], bufB[:m]) {
			return false, nil
		}
		if n < chunk {
			return true, nil
		}
	}
}

// OpenWAL reads a WAL file, decompressed. A file that is not archived is fs.ErrNotExist, but only in an archive that is there:
// where nothing at all is found, as when the storage is not mounted or the prefix is wrong, the error is another. It also is
// where the file is there in a codec that this release does not read: the archive does not end there.
func (a *Archive) OpenWAL(ctx context.Context, name string) (io.ReadCloser, error) {
	if wal.KindOf(name) == wal.Other {
		return nil, fmt.Errorf("%q is not the name of a WAL file", name)
	}
	names := a.walNames(name)
	r, err := a.open(ctx, names[0].name, names[0].method)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	other, err := a.findWAL(ctx, names[1:])
	if err != nil {
		return nil, err
	}
	if other != nil {
		r, err := a.open(ctx, other.name, other.method)
		if errors.Is(err, fs.ErrNotExist) { // just now it was there
			err = fmt.Errorf("%v", err)
		}
		return r, err
	}
	var foreign []walObject
	for _, ext := range foreignExtensions {
		foreign = append(foreign, walObject{name: WALDir + name + ext})
	}
	if other, err = a.findWAL(ctx, foreign); err != nil {
		return nil, err
	}
	if other != nil {
		return nil, fmt.Errorf("%s cannot be read: this release knows zstd, lz4 and none", other.name)
	}
	there, err := a.there(ctx)
	if err != nil {
		return nil, fmt.Errorf("look whether there is an archive: %w", err)
	}
	if !there {
		return nil, errors.New("there is no archive: its storage is not mounted, or the prefix is wrong, or nothing was archived yet")
	}
	return nil, notExist("Archive '%s'", name)
}

// findWAL returns which of the objects exists; nil when none does. It asks for all of them at once: one round trip,
// whatever the store's delay.
func (a *Archive) findWAL(ctx context.Context, names []walObject) (*walObject, error) {
	found := make([]error, len(names))
	var group sync.WaitGroup
	for i, o := range names {
		group.Go(func() { _, found[i] = a.store.Stat(ctx, o.name) })
	}
	group.Wait()
	for i, err := range found {
		switch {
		case err == nil:
			return &names[i], nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return nil, nil
}

// there reports whether anything of an archive is in the store.
func (a *Archive) there(ctx context.Context) (bool, error) {
	if owned, err := a.exists(ctx, ownerName); owned || err != nil {
		return owned, err
	}
	for _, dir := range []string{WALDir, BackupDir} { // WAL-G leaves no ownerName
		for _, err := range a.store.List(ctx, dir, "") {
			return err == nil, err
		}
	}
	return false, nil
}

// MissingWAL returns which of the segments first to last of timeline t the archive lacks, at most max of them
// (0: all), in ascending order.
func (a *Archive) MissingWAL(ctx context.Context, t wal.Timeline, first, last wal.SegmentNo, size wal.SegmentSize, max int) ([]string, error) {
	var missing []string
	full := func() bool { return max > 0 && len(missing) >= max }
	next := first
	lack := func(until wal.SegmentNo) { // all from next to before until are missing
		for ; next < until && next <= last && !full(); next++ {
			missing = append(missing, size.Name(t, next))
		}
	}
	// Names sort after the segment they begin with; "." sorts before every digit, so this starts at first itself.
	after := WALDir + size.Name(t, first)[:23]
	for o, err := range a.store.List(ctx, WALDir, after) {
		if err != nil {
			return nil, fmt.Errorf("list WAL: %w", err)
		}
		name := WALName(o.Name)
		if o.IsDir() || !wal.IsSegment(name) {
			continue
		}
		tl, no, err := size.ParseSegment(name)
		if err != nil || tl < t || (tl == t && no < next) {
			continue
		}
		if tl > t || no > last || full() {
			break
		}
		lack(no)
		next = no + 1
	}
	lack(last + 1)
	return missing, nil
}
