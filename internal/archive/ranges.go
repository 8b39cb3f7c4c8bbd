package archive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"holdfast/internal/compress"
	"holdfast/internal/crypt"
)

// Ranges opens any stretch of a part's tar stream without reading what lies before it.
type Ranges struct {
	archive *Archive
	object  string
	stored  int64              // bytes of the object
	key     crypt.RandomReader // nil: the part is not encrypted
	known   []known            // of an encrypted part
	size    int64              // bytes of the compressed stream
	table   *compress.Table    // nil: the part is not compressed
}

const (
	// usualTail is read of a part's end at first: the table of a part of 8 GiB fits.
	usualTail = 64 << 10
	// maxTable bounds a seek table in bytes: that of a part of 4 TiB.
	maxTable = 32 << 20
)

// Ranges prepares reading a part in pieces. A part that can only be read from its beginning, because of its codec, its encryption
// or who wrote it, has none: nil without an error.
func (a *Archive) Ranges(ctx context.Context, backup string, p Part) (*Ranges, error) {
	if p.Method != compress.None && p.Method != compress.Zstd {
		return nil, nil
	}
	r := &Ranges{archive: a, object: a.partsDir(backup) + p.Name, stored: p.Size, size: p.Size}
	if a.opts.Key != nil {
		var ok bool
		if r.key, ok = a.opts.Key.(crypt.RandomReader); !ok {
			return nil, nil
		}
		src := &source{ctx: ctx, of: r, learn: true}
		defer src.close()
		var sequential *crypt.SequentialError
		var err error
		if _, r.size, err = r.key.DecryptAt(src, r.stored); errors.As(err, &sequential) {
			return nil, nil
		} else if err != nil {
			return nil, fmt.Errorf("read %s: %w", r.object, err)
		}
	}
	if p.Method == compress.None {
		return r, nil
	}
	if r.size < compress.TailLen {
		return nil, nil
	}
	tail, err := r.tail(ctx, min(r.size, usualTail))
	if err != nil {
		return nil, err
	}
	length, err := compress.TableLen(tail)
	if errors.Is(err, compress.ErrNoTable) {
		return nil, nil
	}
	if err == nil && (length > r.size || length > maxTable) {
		err = fmt.Errorf("its seek table of %d bytes is larger than it can be", length)
	}
	if err == nil && length > int64(len(tail)) {
		tail, err = r.tail(ctx, length)
	}
	if err == nil {
		r.table, err = compress.ParseTable(tail, r.size)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r.object, err)
	}
	return r, nil
}

// tail reads the last length bytes of the compressed stream.
func (r *Ranges) tail(ctx context.Context, length int64) ([]byte, error) {
	body, err := r.raw(ctx, r.size-length, length)
	if err != nil {
		return nil, err
	}
	defer body.Close() // only read
	b := make([]byte, length)
	if _, err := io.ReadFull(body, b); err != nil {
		return nil, fmt.Errorf("read the end of %s: %w", r.object, err)
	}
	return b, nil
}

// raw reads length bytes of the compressed stream from offset on, decrypted.
func (r *Ranges) raw(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
	if r.key == nil {
		return r.archive.store.OpenRange(ctx, r.object, offset, length)
	}
	src := &source{ctx: ctx, of: r}
	plain, _, err := r.key.DecryptAt(src, r.stored)
	if err != nil {
		src.close()
		return nil, fmt.Errorf("read %s: %w", r.object, err)
	}
	src.ahead = length
	// Reads of the buffer's size, so that what is decrypted in chunks of 64 KiB is decrypted once.
	buffer := int(min(length, sectionBuffer))
	return &section{bufio.NewReaderSize(io.NewSectionReader(plain, offset, length), buffer), src}, nil
}

// sectionBuffer is how much of an encrypted part is decrypted at once at most, in bytes.
const sectionBuffer = 1 << 20

// section is a stretch of an encrypted part.
type section struct {
	io.Reader
	src *source
}

func (s *section) Close() error { return s.src.close() }

// source reads an object at any offset. Reads that follow one another are one request to the store. It is used by one goroutine.
type source struct {
	ctx   context.Context // of the one who reads: the source lives no longer
	of    *Ranges
	learn bool  // what is read is kept in of.known
	ahead int64 // bytes that are likely to be asked for from the next request on
	body  io.ReadCloser
	pos   int64  // where body is
	last  []byte // what was read before pos
}

// overlap is how much a read may begin before the end of the last one: a chunk of age with its tag.
const overlap = 64<<10 + 16

// known is what was read of an object when it was opened first: the head and the last chunk, which each reader asks for again.
type known struct {
	off   int64
	bytes []byte
}

// ReadAt implements io.ReaderAt.
func (s *source) ReadAt(p []byte, off int64) (n int, err error) {
	for _, k := range s.of.known {
		if off >= k.off && off+int64(len(p)) <= k.off+int64(len(k.bytes)) {
			return copy(p, k.bytes[off-k.off:]), nil
		}
	}
	for fresh := false; n < len(p); {
		at := off + int64(n)
		if at >= s.of.stored {
			return n, io.EOF
		}
		back := s.pos - at
		switch {
		case s.body != nil && back > 0 && back <= int64(len(s.last)):
			n += copy(p[n:], s.last[int64(len(s.last))-back:])
			continue
		case s.body == nil || back != 0:
			if err := s.open(at, int64(len(p)-n)); err != nil {
				return n, err
			}
			fresh = true
		}
		k, err := io.ReadFull(s.body, p[n:])
		s.remember(p[n : n+k])
		n, s.pos = n+k, s.pos+int64(k)
		switch {
		case err == nil:
		case (err == io.EOF || err == io.ErrUnexpectedEOF) && (k > 0 || !fresh): // the stretch has ended
			if err := s.close(); err != nil {
				return n, err
			}
		case err == io.EOF: // the object is shorter than it was
			return n, io.ErrUnexpectedEOF
		default:
			return n, err
		}
	}
	if s.learn {
		s.of.known = append(s.of.known, known{off, slices.Clone(p)})
	}
	return n, nil
}

// remember keeps the last overlap bytes before pos, to which b was added.
func (s *source) remember(b []byte) {
	b = b[max(0, len(b)-overlap):]
	if over := len(s.last) + len(b) - overlap; over > 0 {
		s.last = s.last[:copy(s.last, s.last[over:])]
	}
	s.last = append(s.last, b...)
}

// open begins a request at offset off for at least length bytes.
func (s *source) open(off, length int64) (err error) {
	if err = s.close(); err != nil {
		return err
	}
	// What is stored is a little longer than what is decrypted.
	length = min(max(length, s.ahead+s.ahead>>10+2*overlap), s.of.stored-off)
	if s.body, err = s.of.archive.store.OpenRange(s.ctx, s.of.object, off, length); err != nil {
		return err
	}
	s.pos, s.last = off, s.last[:0]
	return nil
}

func (s *source) close() error {
	if s.body == nil {
		return nil
	}
	body := s.body
	s.body = nil
	return body.Close()
}

// Open reads length bytes of the tar stream from offset on, decrypted and decompressed. They must all be there. The caller closes it.
func (r *Ranges) Open(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
	if r.table == nil {
		if offset < 0 || length < 0 || offset > r.size-length {
			return nil, fmt.Errorf("read %s: %d bytes from %d on are not within its %d", r.object, length, offset, r.size)
		}
		raw, err := r.raw(ctx, offset, length)
		if err != nil {
			return nil, err
		}
		return &named{ReadCloser: layers{compress.Decompress(raw, compress.None), raw}, name: r.object}, nil
	}
	at, err := r.table.Locate(offset, length)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r.object, err)
	}
	raw, err := r.raw(ctx, at.Offset, at.Length)
	if err != nil {
		return nil, err
	}
	return &named{ReadCloser: layers{compress.DecompressRange(raw, at), raw}, name: r.object}, nil
}
