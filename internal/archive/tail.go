package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// TailDir is where the beginning of segments lies that the server is still writing, each piece as <segment>/<start>-<end>.<ext>: offsets in the segment,
// eight hexadecimal digits each. Pieces may overlap; where they do they hold the same. They go once the whole segment is archived.
const TailDir = "holdfast/tail/"

// maxTailPieces bounds how many pieces of one segment are looked at.
const maxTailPieces = 1 << 16

// TailPiece is what is archived of a segment from one of its bytes to before another.
type TailPiece struct {
	Start, End int64 // offsets in the segment
	Object     string
	method     compress.Method
}

// tailPiece reads the name of a piece's object.
func tailPiece(object string) (TailPiece, bool) {
	base, method := compress.Split(path.Base(object))
	from, to, ok := strings.Cut(base, "-")
	if !ok || len(from) != 8 || len(to) != 8 || strings.Trim(from+to, "0123456789ABCDEF") != "" {
		return TailPiece{}, false
	}
	start, _ := strconv.ParseInt(from, 16, 64) // they are digits
	end, _ := strconv.ParseInt(to, 16, 64)
	return TailPiece{Start: start, End: end, Object: object, method: method}, start < end && end <= int64(wal.MaxSegmentSize)
}

func tailDir(segment string) (string, error) {
	if !wal.IsSegment(segment) {
		return "", fmt.Errorf("%q is not the name of a WAL segment", segment)
	}
	return TailDir + segment + "/", nil
}

// PutTail stores what a segment holds from start to before end, which r yields. Once it returned nil that is durable.
func (a *Archive) PutTail(ctx context.Context, segment string, start, end int64, r io.Reader) (TailPiece, error) {
	dir, err := tailDir(segment)
	if err != nil {
		return TailPiece{}, err
	}
	p, ok := tailPiece(fmt.Sprintf("%s%08X-%08X%s", dir, start, end, a.opts.Method.Extension()))
	if !ok {
		return TailPiece{}, fmt.Errorf("a segment has no bytes from %d to %d", start, end)
	}
	body, _ := a.packed(r, a.opts.Method, 1)
	defer body.Close() // gives its buffers back
	return p, a.store.Put(ctx, p.Object, body)
}

// TailPieces lists what is archived of a segment in pieces, in order of their names.
func (a *Archive) TailPieces(ctx context.Context, segment string) ([]TailPiece, error) {
	dir, err := tailDir(segment)
	if err != nil {
		return nil, err
	}
	var pieces []TailPiece
	for o, err := range a.store.List(ctx, dir, "") {
		if err != nil {
			return nil, fmt.Errorf("list the pieces of %s: %w", segment, err)
		}
		p, ok := tailPiece(o.Name)
		if !ok || o.IsDir() {
			continue
		}
		if len(pieces) == maxTailPieces {
			return nil, fmt.Errorf("list the pieces of %s: there are more than %d", segment, maxTailPieces)
		}
		pieces = append(pieces, p)
	}
	return pieces, nil
}

// Tails lists the segments of which there are pieces, ascending.
func (a *Archive) Tails(ctx context.Context) ([]string, error) {
	var segments []string
	for o, err := range a.store.List(ctx, TailDir, "") {
		if err != nil {
			return nil, fmt.Errorf("list segments in pieces: %w", err)
		}
		if name := path.Base(o.Name); o.IsDir() && wal.IsSegment(name) {
			segments = append(segments, name)
		}
	}
	return segments, nil
}

// RemoveTail removes pieces. The caller sees to it that what they hold is archived otherwise.
func (a *Archive) RemoveTail(ctx context.Context, pieces []TailPiece) error {
	names := make([]string, len(pieces))
	for i, p := range pieces {
		names[i] = p.Object
	}
	if len(names) == 0 {
		return nil
	}
	return store.DeleteMany(ctx, a.store, names)
}

// HasWAL reports whether a WAL file is archived whole, in whatever codec.
func (a *Archive) HasWAL(ctx context.Context, name string) (bool, error) {
	if wal.KindOf(name) == wal.Other {
		return false, fmt.Errorf("%q is not the name of a WAL file", name)
	}
	there, err := a.findWAL(ctx, a.walNames(name))
	return there != nil, err
}

// NewestWAL returns the newest segment of timeline t that is archived whole and begins before end (0: no bound). ok is false where there is none.
func (a *Archive) NewestWAL(ctx context.Context, t wal.Timeline, end wal.LSN, size wal.SegmentSize) (newest wal.SegmentNo, ok bool, err error) {
	for o, err := range a.store.List(ctx, WALDir, WALDir+t.String()) { // which sorts before all names that begin with it
		if err != nil {
			return 0, false, fmt.Errorf("list WAL: %w", err)
		}
		if path.Base(o.Name)[:min(8, len(path.Base(o.Name)))] > t.String() {
			break
		}
		timeline, no, err := size.ParseSegment(WALName(o.Name))
		if err != nil || timeline != t || o.IsDir() {
			continue
		}
		if end != 0 && size.Start(no) >= end {
			break
		}
		newest, ok = no, true
	}
	return newest, ok, nil
}

// contiguous chooses of pieces those that hold a segment from its first byte on, in order: at each byte the one that reaches farthest. Each begins at or
// before the byte where the one before it ends, and ends behind that.
func contiguous(pieces []TailPiece) []TailPiece {
	sorted := slices.SortedFunc(slices.Values(pieces), func(x, y TailPiece) int {
		return cmp.Or(cmp.Compare(x.Start, y.Start), cmp.Compare(y.End, x.End), strings.Compare(x.Object, y.Object))
	})
	var chosen []TailPiece
	var at int64
	for len(sorted) > 0 {
		best := -1
		n := 0
		for ; n < len(sorted) && sorted[n].Start <= at; n++ {
			if sorted[n].End > at && (best < 0 || sorted[n].End > sorted[best].End) {
				best = n
			}
		}
		if best < 0 {
			break
		}
		chosen = append(chosen, sorted[best])
		at, sorted = sorted[best].End, sorted[n:]
	}
	return chosen
}

// openTail reads a segment of which there are pieces: what they hold from its first byte on without a gap, and zeros behind that, to the segment's size.
// Where the first bytes are missing, or fewer than its header takes, it is fs.ErrNotExist.
func (a *Archive) openTail(ctx context.Context, segment string) (io.ReadCloser, error) {
	pieces, err := a.TailPieces(ctx, segment)
	if err != nil {
		return nil, err
	}
	t := &tail{archive: a, ctx: ctx, rest: contiguous(pieces)}
	if len(t.rest) == 0 || t.rest[len(t.rest)-1].End < wal.HeaderLen {
		return nil, notExist("Archive '%s'", segment)
	}
	head := make([]byte, wal.HeaderLen)
	if _, err := io.ReadFull(readerOf(t.read), head); err != nil {
		t.Close()
		return nil, vanished(err)
	}
	h, err := wal.ReadHeader(head)
	if err == nil && t.last() > int64(h.SegmentSize) {
		err = fmt.Errorf("a segment of %d bytes has pieces up to %d", h.SegmentSize, t.last())
	}
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("read %s: %w", TailDir+segment, err)
	}
	t.head, t.held, t.size = head, t.last(), int64(h.SegmentSize)
	return t, nil
}

// tail is a segment in pieces.
type tail struct {
	archive *Archive
	ctx     context.Context // of who opened it: pieces are opened as they are come to
	head    []byte          // read ahead of being asked
	rest    []TailPiece     // not come to their end yet
	cur     io.ReadCloser   // of the first of rest, nil before it was opened
	at      int64           // offset of the next byte of the pieces
	given   int64           // bytes returned
	held    int64           // up to where the pieces reach
	size    int64           // of the segment
}

// Unfinished says that this is not the whole segment: what follows may be archived the next moment.
func (t *tail) Unfinished() bool { return true }

// Held returns how many bytes of the segment are there; zeros follow.
func (t *tail) Held() int64 { return t.held }

// last returns up to where the pieces reach.
func (t *tail) last() int64 {
	if len(t.rest) == 0 {
		return t.at
	}
	return t.rest[len(t.rest)-1].End
}

func (t *tail) Read(p []byte) (n int, err error) {
	switch {
	case len(t.head) > 0:
		n = copy(p, t.head)
		t.head = t.head[n:]
	case len(t.rest) > 0:
		if n, err = t.read(p); err != nil {
			err = vanished(err)
		}
	case t.given < t.size:
		n = int(min(int64(len(p)), t.size-t.given))
		clear(p[:n])
	default:
		return 0, io.EOF
	}
	t.given += int64(n)
	return n, err
}

// read returns bytes of the pieces. It is not called behind their end.
func (t *tail) read(p []byte) (int, error) {
	piece := t.rest[0]
	if t.cur == nil {
		r, err := t.archive.open(t.ctx, piece.Object, piece.method)
		if err != nil {
			return 0, err
		}
		t.cur = r
		if _, err := io.CopyN(io.Discard, r, t.at-piece.Start); err != nil {
			return 0, short(piece, err)
		}
	}
	n, err := t.cur.Read(p[:min(int64(len(p)), piece.End-t.at)])
	t.at += int64(n)
	if t.at < piece.End {
		return n, short(piece, err)
	}
	if err == nil || err == io.EOF {
		err = endsHere(t.cur, piece)
	}
	err = errors.Join(err, t.cur.Close())
	t.cur, t.rest = nil, t.rest[1:]
	return n, err
}

// short says what an error means before a piece's end.
func short(piece TailPiece, err error) error {
	if err == io.EOF {
		return fmt.Errorf("read %s: %w", piece.Object, io.ErrUnexpectedEOF)
	}
	return err
}

// endsHere reads on to see that a piece holds no more than its name says, and that its codec found its checksums right.
func endsHere(r io.Reader, piece TailPiece) error {
	switch n, err := io.ReadFull(r, make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("read %s: it holds more than the %d bytes of its name", piece.Object, piece.End-piece.Start)
	case err != io.EOF:
		return err
	}
	return nil
}

// errVanished says that a piece went while a segment was read: a larger piece, or the whole segment, has come for it.
var errVanished = errors.New("the segment was being completed as it was read")

// vanished makes of a piece that is gone an error that is not fs.ErrNotExist.
func vanished(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %v", errVanished, err)
	}
	return err
}

// Close ends the reading.
func (t *tail) Close() error {
	if t.cur == nil {
		return nil
	}
	return t.cur.Close()
}

type readerOf func([]byte) (int, error)

func (f readerOf) Read(p []byte) (int, error) { return f(p) }
