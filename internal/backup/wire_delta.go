package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/RoaringBitmap/roaring/v2"

	"holdfast/internal/catalog"
	"holdfast/internal/changes"
	"holdfast/internal/increment"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/datadir"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// firstIncremental is the version that sends increments.
const firstIncremental = 17_00_00

// choose decides whether the backup is a delta, and on what; it is one when w.delta is set then. The server must be told before it
// begins, so that where it begins is known by a lower bound only.
func (w *wire) choose(ctx context.Context) error {
	if w.catalog == nil {
		return nil
	}
	full := func(reason string) error {
		if w.Delta.Name != "" || w.Delta.UserData != nil {
			return &catalog.FullError{Reason: reason, Asked: true}
		}
		w.report.FullBecause = reason
		w.Logger.Info(reason)
		return nil
	}
	switch {
	case w.facts.Version < firstIncremental:
		return full("Increments come over the wire from PostgreSQL 17 on. Doing full backup.")
	case w.Delta.Source != Auto && w.Delta.Source != Summaries:
		return full(fmt.Sprintf("Over the wire HOLDFAST_DELTA_SOURCE cannot be %s. Doing full backup.", w.Delta.Source))
	case w.facts.BlockSize != page.Size:
		return full(fmt.Sprintf("Pages have %d bytes, not %d. Doing full backup.", w.facts.BlockSize, page.Size))
	}
	asking, answered := w.patiently(ctx)
	defer answered()
	at, t, err := w.repl.Position(asking)
	if err != nil {
		return err
	}
	if t > 1 {
		b, err := w.repl.History(asking, t)
		if err != nil {
			return err
		}
		if err := w.sameHistory(t, b); err != nil {
			return full(fmt.Sprintf("No backup can be built on: %v. Doing full backup.", err))
		}
	}
	return w.chooseParent(ctx, at, t)
}

// promise tells the server which files the parent has, and up to where: those it can send in part.
func (w *wire) promise(ctx context.Context) error {
	r, out := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := w.writeManifest(ctx, out)
		out.CloseWithError(err) // nil reads as io.EOF
		written <- err
	}()
	err := w.repl.UploadManifest(ctx, r)
	r.CloseWithError(errors.New("the server takes no more of it"))
	if failed := <-written; failed != nil && (err == nil || !server.Refused(err)) {
		return fmt.Errorf("tell the server what %s holds: %w", w.delta.parent.Name, failed)
	}
	return err
}

// writeManifest writes a backup_manifest of the parent's: the server looks at names, and at the WAL of that backup. What is not in it is sent
// whole.
func (w *wire) writeManifest(ctx context.Context, out io.Writer) error {
	parent := w.delta.parent
	m := manifest.NewWriter(out, w.facts.SystemIdentifier)
	err := eachFile(ctx, w.archive, parent.Backup, func(f *tarpart.Member) error {
		if _, _, ok := inParts(f.Path); !ok {
			return nil
		}
		return m.Add(manifest.File{Path: f.Path, Size: max(0, f.Total()), Modified: f.ModTime}) // the size does not matter
	})
	if err != nil {
		return err
	}
	return m.Close([]manifest.WALRange{{Timeline: parent.Timeline(), Start: *parent.Sentinel.LSN, End: *parent.Sentinel.FinishLSN}})
}

// inParts says of which relation a file is, and which segment of it, if the server may send it in part: those of a main fork alone. In
// earlier minor releases a record that clears bits in a visibility map does not refer to the map's page, so that no summary lists it, and the
// parent's would come back with bits that no longer hold; maps are small. So are shared relations.
func inParts(file string) (rel blockset.Relation, segment uint32, ok bool) {
	kind, fork, segment, _ := datadir.ByName(file, false)
	rel, ok = relationOf(datadir.Entry{Path: file, Kind: kind, Fork: fork})
	return rel, segment, ok
}

// prefix is what the server puts before the name of a file that it sends in part.
const prefix = "INCREMENTAL."

// partly reports whether the file name is sent in part, and which file it is then.
func (w *wire) partly(name string) (file string, ok bool) {
	base, ok := strings.CutPrefix(path.Base(name), prefix)
	if !ok || w.delta == nil {
		return name, false
	}
	file = path.Join(path.Dir(name), base)
	if kind, _, _, _ := datadir.ByName(file, false); kind != datadir.Relation {
		return name, false // somebody's
	}
	return file, true
}

// incrementMagic is how such a file begins (INCREMENTAL_MAGIC in src/include/backup/basebackup_incremental.h).
const incrementMagic = 0xd3ae1f0d

// increment reads the head of a file that is sent in part, which has size bytes; r is at its pages then. All numbers have 32 bits and
// the server's byte order: the magic, how many pages follow, how many pages the file has at least, their numbers; zeros up to a whole page where
// any page follows. What the server calls the truncation block length is how long the file was, or longer: pages that are not
// listed and lie before it are those of the parent.
func (w *wire) increment(r io.Reader, size int64) (*increment.Header, error) {
	var b [12]byte
	if size < int64(len(b)) {
		return nil, fmt.Errorf("%d bytes are no increment", size)
	}
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, early(err)
	}
	le := binary.LittleEndian
	magic, n, length := le.Uint32(b[:]), le.Uint32(b[4:]), le.Uint32(b[8:])
	head := int64(len(b)) + 4*int64(n)
	if n > 0 {
		head += -head & (page.Size - 1)
	}
	switch most := w.facts.RelationSegment; {
	case magic != incrementMagic:
		return nil, fmt.Errorf("an increment begins with %#x, not %#x", magic, uint32(incrementMagic))
	case n > most || length > most:
		return nil, fmt.Errorf("an increment with %d pages of a file of %d, and none has more than %d", n, length, most)
	case size != head+int64(n)*page.Size:
		return nil, fmt.Errorf("an increment with %d pages has %d bytes, not %d", n, head+int64(n)*page.Size, size)
	}
	h := &increment.Header{FileSize: int64(length) * page.Size, Blocks: make([]uint32, n)}
	if err := binary.Read(r, le, h.Blocks); err != nil {
		return nil, early(err)
	}
	if _, err := io.CopyN(io.Discard, r, head-int64(len(b))-4*int64(n)); err != nil {
		return nil, early(err)
	}
	for i, block := range h.Blocks {
		if block >= length || i > 0 && block <= h.Blocks[i-1] {
			return nil, fmt.Errorf("an increment of a file of %d pages lists page %d out of turn", length, block)
		}
	}
	return h, nil
}

// packIncrement says how a file that is sent in part is packed, in e, whose path is the file's and whose stream is at its head. store is
// false where the file is as in the parent.
func (w *wire) packIncrement(e *tarpart.Entry, size int64) (store bool, err error) {
	was := w.delta.files.find(e.Path)
	if _, _, ok := inParts(e.Path); !ok || was == nil {
		return false, errors.New("the server sends a part of a file that it was not told of")
	}
	h, err := w.increment(e.Stream, size)
	if err != nil {
		return false, err
	}
	zeros := w.cutOff(e.Path, h, was.size)
	if zeros == nil && len(h.Blocks) == 0 && h.FileSize == was.size {
		same := datadir.Entry{Path: e.Path, Mode: e.Mode}
		return false, w.delta.unchanged(same, was.size, e.ModTime, 0, time.Time{})
	}
	if zeros != nil {
		w.zeroed += zeros.GetCardinality()
		zeros.Or(roaring.BitmapOf(h.Blocks...))
		e.Stream = &filled{r: e.Stream, listed: h.Blocks, blocks: zeros.Iterator()}
		h.Blocks = zeros.ToArray()
	}
	e.Increment, e.Size = h, h.Size()
	return true, nil
}

// cutOff returns the pages of a file, sent as h, that the server does not list and that are not the parent's: those behind where
// the file was truncated meanwhile and then made longer again, which were not written to since. They are zeros; the server takes them for
// pages of the parent (the comparison with the limit in GetFileBackupMethod, src/backend/backup/basebackup_incremental.c), which would bring rows
// back that were deleted. nil for none. The file had was bytes in the parent.
func (w *wire) cutOff(file string, h *increment.Header, was int64) *roaring.Bitmap {
	rel, segment, _ := inParts(file)
	logged, limit, ok := w.delta.set.Get(blockset.Key{Relation: rel})
	if !ok || limit == blockset.NoLimit {
		return nil
	}
	length := h.FileSize / page.Size
	if was != unknownSize {
		length = min(length, was/page.Size) // what is longer than in the parent is zeros anyway
	}
	first := uint64(segment) * uint64(w.facts.RelationSegment)
	begin := max(uint64(limit), first) - first
	if begin >= uint64(length) {
		return nil
	}
	zeros := roaring.New()
	zeros.AddRange(begin, uint64(length))
	for _, block := range h.Blocks {
		zeros.Remove(block)
	}
	for it := zeros.Clone().Iterator(); it.HasNext(); {
		if block := it.Next(); logged.Contains(uint32(first) + block) {
			zeros.Remove(block)
		}
	}
	if zeros.IsEmpty() {
		return nil
	}
	return zeros
}

// filled reads the pages blocks, of which those listed come from r and the others are zeros.
type filled struct {
	r      io.Reader
	listed []uint32 // not yet read
	blocks roaring.IntPeekable
	left   int  // bytes of the current page
	zero   bool // the current page
}

func (f *filled) Read(p []byte) (n int, err error) {
	if f.left == 0 {
		if !f.blocks.HasNext() {
			return 0, io.EOF
		}
		block := f.blocks.Next()
		f.left, f.zero = page.Size, len(f.listed) == 0 || f.listed[0] != block
		if !f.zero {
			f.listed = f.listed[1:]
		}
	}
	p = p[:min(len(p), f.left)]
	if n = len(p); f.zero {
		clear(p)
	} else {
		if n, err = f.r.Read(p); n > 0 && err == io.EOF {
			err = nil // the last page may be zeros
		}
	}
	f.left -= n
	return n, err
}

// findLimits learns from the archive's WAL, and the server's where that is not archived yet, where files were truncated since the parent.
func (w *wire) findLimits(ctx context.Context) error {
	w.phase("finding what was truncated since " + w.delta.parent.Name)
	path, err := w.pathTo(w.start.Timeline)
	if err != nil {
		return err
	}
	size := w.facts.SegmentSize
	var one sync.Mutex // a session at a time
	from := changes.Origin{Archive: w.archive, WAL: func(ctx context.Context, t wal.Timeline, no wal.SegmentNo) (io.ReadCloser, error) {
		one.Lock()
		r, err := w.repl.WAL(ctx, t, size.Start(no), min(size.Start(no+1), w.start.LSN))
		if err != nil {
			one.Unlock()
			return nil, err
		}
		return &unlocking{r, one.Unlock}, nil
	}}
	stretch := changes.Stretch{From: w.delta.since, To: w.start.LSN, Path: path, SegmentSize: size, System: w.facts.SystemIdentifier}
	result, err := changes.FromArchive(ctx, from, stretch, changes.Options{Logger: w.Logger})
	if err != nil {
		return err
	}
	w.delta.set = result.Blocks
	w.report.Delta.SourceBytes, w.report.Delta.Notes = result.Read, result.Notes
	return nil
}

// unlocking is a stream whose end gives something free.
type unlocking struct {
	io.ReadCloser
	unlock func()
}

func (u *unlocking) Close() error {
	defer u.unlock()
	return u.ReadCloser.Close()
}

// withoutIncremental is a label without the lines by which PostgreSQL refuses to start from a part of a backup.
func withoutIncremental(label string) string {
	lines := slices.DeleteFunc(strings.SplitAfter(label, "\n"), func(line string) bool { return strings.HasPrefix(line, "INCREMENTAL FROM ") })
	return strings.Join(lines, "")
}
