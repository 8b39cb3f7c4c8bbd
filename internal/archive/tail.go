package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// TailDir is where the beginning of segments lies that the server is still writing, each piece as <segment>/<start>-<end>.<ext>: offsets in the segment,
// eight hexadecimal digits each. Pieces may overlap; where they do they hold the same. They go once the whole segment is archived.
const TailDir = "holdfast/tail/"

// maxTailPieces bounds how many pieces of one segment are held together.
const maxTailPieces = 1 << 16

// TailPiece is what is archived of a segment from one of its bytes to before another.
type TailPiece struct {
	Start, End int64 // offsets in the segment
	Object     string
	Bytes      int64     // as stored; of a piece that was listed, as is what follows
	Modified   time.Time // when it was stored, by the store's clock
	Storage    string    // which of several stores it lies in; "" where there is one
	method     compress.Method
}

// Tail is a segment of which there are pieces.
type Tail struct {
	Name     string // of the segment
	Pieces   int
	Held     int64     // bytes of it, from its first on without one missing between; 0 where not even its header is there
	Top      int64     // Held, or where bytes are missing where the piece ends that reaches farthest
	Bytes    int64     // of all pieces, as stored
	Modified time.Time // when the youngest of them was stored, by the store's clock
	Storage  string    // which of several stores the first of them lies in; "" where there is one
}

// tailOf sums pieces up.
func tailOf(segment string, pieces []TailPiece) Tail {
	t := Tail{Name: segment, Pieces: len(pieces)}
	for i, p := range pieces {
		if i == 0 {
			t.Storage = p.Storage
		}
		t.Top = max(t.Top, p.End)
		t.Bytes += p.Bytes
		if p.Modified.After(t.Modified) {
			t.Modified = p.Modified
		}
	}
	if chosen := contiguous(pieces); len(chosen) > 0 {
		t.Held = chosen[len(chosen)-1].End
	}
	if t.Held < wal.HeaderLen {
		if t.Held == t.Top {
			t.Top = 0
		}
		t.Held = 0
	}
	return t
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

// PutTail stores what a segment holds from start to before end, which r yields. Once it returned nil that is durable. A piece of that name that is there already stays:
// with other content it is a *ConflictError, where it cannot be read for want of a key it is taken for the same, and where it cannot be read otherwise it is an
// *UnreadablePieceError.
func (a *Archive) PutTail(ctx context.Context, segment string, start, end int64, r io.ReadSeeker) (TailPiece, error) {
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
	err = store.PutIfAbsent(ctx, a.store, p.Object, body)
	if !errors.Is(err, fs.ErrExist) {
		return p, err
	}
	there, err := a.OpenTailPiece(ctx, p)
	if IsLocked(err) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	defer there.Close() // only read
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return p, err
	}
	same, err := sameContent(there, r)
	switch {
	case IsLocked(err): // which shows as it is read
		return p, nil
	case err == nil && !same:
		err = &ConflictError{Name: segment, Object: p.Object}
	}
	return p, err
}

// OpenTailPiece reads what a piece holds. One that is gone is fs.ErrNotExist. Where there is no key to read it the error, of this or of reading, is one for which
// IsLocked holds; where the store gives it and it is not what was put, or it is for another key, that of reading is an *UnreadablePieceError.
func (a *Archive) OpenTailPiece(ctx context.Context, p TailPiece) (io.ReadCloser, error) {
	if a.opts.WriteOnly {
		return nil, &lockedError{object: p.Object}
	}
	raw, err := a.store.Open(ctx, p.Object)
	if err != nil {
		return nil, err
	}
	given := &givenUp{ReadCloser: raw}
	return &pieceReader{a.unpacked(given, p.Object, p.method), given, p.Object}, nil
}

// An UnreadablePieceError says that a piece is there and cannot be read: it is torn, or for another key.
type UnreadablePieceError struct {
	Object string
	Err    error
}

func (e *UnreadablePieceError) Error() string { return e.Err.Error() } // which names the object

// Unwrap returns what was wrong with it.
func (e *UnreadablePieceError) Unwrap() error { return e.Err }

// pieceReader tells errors of what a piece is from those of the store.
type pieceReader struct {
	io.ReadCloser
	raw    *givenUp
	object string
}

func (r *pieceReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF && !r.raw.is.Load() && !IsLocked(err) {
		err = &UnreadablePieceError{r.object, err}
	}
	return n, err
}

// givenUp notes that a store could not be read to the end of an object.
type givenUp struct {
	io.ReadCloser
	is atomic.Bool // decrypting may read in a goroutine of its own
}

func (g *givenUp) Read(p []byte) (int, error) {
	n, err := g.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		g.is.Store(true)
	}
	return n, err
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
		p, ok := listedPiece(o)
		if !ok {
			continue
		}
		if len(pieces) == maxTailPieces {
			return nil, fmt.Errorf("list the pieces of %s: there are more than %d", segment, maxTailPieces)
		}
		pieces = append(pieces, p)
	}
	return pieces, nil
}

// listedPiece makes a piece of what a listing shows.
func listedPiece(o store.Object) (TailPiece, bool) {
	p, ok := tailPiece(o.Name)
	p.Bytes, p.Modified, p.Storage = o.Size, o.Modified, o.Storage
	return p, ok && !o.IsDir()
}

// Tail sums up what there is of a segment in pieces; where that is nothing Pieces is 0.
func (a *Archive) Tail(ctx context.Context, segment string) (Tail, error) {
	pieces, err := a.TailPieces(ctx, segment)
	return tailOf(segment, pieces), err
}

// AllTails yields the segments of which there are pieces, ascending, by one listing. Whoever asks which segments are archived whole asks for that afterwards:
// the pieces of a segment go once it is.
func (a *Archive) AllTails(ctx context.Context) iter.Seq2[Tail, error] {
	return func(yield func(Tail, error) bool) {
		var segment string
		var pieces []TailPiece
		var beyond Tail // more of them than are held together: they count, and add nothing to what is held
		finish := func() bool {
			if len(pieces) == 0 {
				return true
			}
			if beyond.Pieces > 0 {
				return yield(tailOf(segment, pieces).with(beyond), nil)
			}
			t, err := a.settled(ctx, segment, pieces)
			if err == nil && t.Pieces == 0 {
				return true
			}
			return yield(t, err) && err == nil
		}
		for o, err := range store.Walk(ctx, a.store, TailDir) {
			if err != nil {
				yield(Tail{}, fmt.Errorf("list segments in pieces: %w", err))
				return
			}
			name := path.Base(path.Dir(o.Name))
			p, ok := listedPiece(o)
			if !ok || !wal.IsSegment(name) || o.Name != TailDir+name+"/"+path.Base(o.Name) {
				continue
			}
			if name != segment {
				if !finish() {
					return
				}
				segment, pieces, beyond = name, nil, Tail{}
			}
			if len(pieces) == maxTailPieces {
				beyond = beyond.with(Tail{Pieces: 1, Top: p.End, Bytes: p.Bytes, Modified: p.Modified})
				continue
			}
			pieces = append(pieces, p)
		}
		finish()
	}
}

// with returns t with pieces of which no more is known than what o sums up.
func (t Tail) with(o Tail) Tail {
	t.Pieces, t.Top, t.Bytes = t.Pieces+o.Pieces, max(t.Top, o.Top), t.Bytes+o.Bytes
	if o.Modified.After(t.Modified) {
		t.Modified = o.Modified
	}
	return t
}

// settled sums pieces up that were listed. Where bytes are missing it lists again: pieces may have been put together, and a listing taken in that moment may show
// neither the old ones nor the new one.
func (a *Archive) settled(ctx context.Context, segment string, pieces []TailPiece) (Tail, error) {
	t := tailOf(segment, pieces)
	for range 2 {
		if t.Pieces == 0 || t.Held == t.Top {
			break
		}
		var err error
		if t, err = a.Tail(ctx, segment); err != nil {
			return Tail{}, err
		}
	}
	return t, nil
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

// soundRounds bounds how often other pieces are looked for in place of those that are not sound.
const soundRounds = 16

// sound chooses as contiguous does, but passes over pieces that are not what they should be where the others hold as much without them: one that was torn is stored anew
// by smaller ones beside it. Where they do not, it chooses as if all were sound: reading them says what is wrong, and is not taken for the end of the log. Where no
// two pieces hold the same byte there is no choice, and nothing is read.
func (a *Archive) sound(ctx context.Context, pieces []TailPiece) ([]TailPiece, error) {
	all := contiguous(pieces)
	if len(all) == 0 || len(all) == len(pieces) {
		return all, nil
	}
	known := map[string]bool{} // of those that were read, whether they are sound
	chosen := all
	for range soundRounds {
		torn := false
		for _, p := range chosen {
			if _, was := known[p.Object]; was {
				continue
			}
			ok, err := a.isSound(ctx, p)
			if err != nil {
				return nil, err
			}
			known[p.Object], torn = ok, torn || !ok
		}
		if !torn {
			return chosen, nil
		}
		pieces = slices.DeleteFunc(pieces, func(p TailPiece) bool { ok, was := known[p.Object]; return was && !ok })
		if chosen = contiguous(pieces); len(chosen) == 0 || chosen[len(chosen)-1].End < all[len(all)-1].End {
			break
		}
	}
	return all, nil
}

// isSound reads a piece and reports whether it is what its name says. An error is the store's. What cannot be read for want of a key is taken for sound.
func (a *Archive) isSound(ctx context.Context, p TailPiece) (bool, error) {
	r, err := a.OpenTailPiece(ctx, p)
	if err == nil {
		var n int64
		n, err = io.Copy(io.Discard, io.LimitReader(r, p.End-p.Start+1))
		err = errors.Join(err, r.Close())
		if err == nil {
			return n == p.End-p.Start, nil
		}
	}
	switch {
	case IsLocked(err):
		return true, nil
	case errors.As(err, new(*UnreadablePieceError)):
		return false, nil
	}
	return false, vanished(err)
}

// OpenPieces reads a segment by its pieces, though it may be archived whole, too. Held says how many of its bytes they hold; zeros follow. Where there are none it is
// fs.ErrNotExist, and where some went while they were read an error for which IsVanished holds.
func (a *Archive) OpenPieces(ctx context.Context, segment string) (PiecesReader, error) {
	t, err := a.openTail(ctx, segment)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// PiecesReader reads a segment in pieces.
type PiecesReader interface {
	io.ReadCloser
	Held() int64 // bytes that are there
}

// IsVanished reports whether an error says that pieces went as they were read: a larger one, or the whole segment, has come for them.
func IsVanished(err error) bool { return errors.Is(err, errVanished) }

// openTail reads a segment of which there are pieces: what they hold from its first byte on without a gap, and zeros behind that, to the segment's size.
// Where the first bytes are missing, or fewer than its header takes, it is fs.ErrNotExist.
func (a *Archive) openTail(ctx context.Context, segment string) (*tail, error) {
	pieces, err := a.TailPieces(ctx, segment)
	if err != nil {
		return nil, err
	}
	chosen, err := a.sound(ctx, pieces)
	if err != nil {
		return nil, err
	}
	t := &tail{archive: a, ctx: ctx, rest: chosen}
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
