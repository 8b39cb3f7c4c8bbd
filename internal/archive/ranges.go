package archive

import (
	"context"
	"errors"
	"fmt"
	"io"

	"holdfast/internal/compress"
)

// Ranges opens any stretch of a part's tar stream without reading what lies before it.
type Ranges struct {
	archive *Archive
	object  string
	table   *compress.Table // nil: the part is not compressed
}

const (
	// usualTail is read of a part's end at first: the table of a part of 8 GiB fits.
	usualTail = 64 << 10
	// maxTable bounds a seek table in bytes: that of a part of 4 TiB.
	maxTable = 32 << 20
)

// Ranges prepares reading a part in pieces. A part that can only be read from its beginning, because of its codec or of
// who wrote it, has none: nil without an error.
func (a *Archive) Ranges(ctx context.Context, backup string, p Part) (*Ranges, error) {
	r := &Ranges{archive: a, object: partsDir(backup) + p.Name}
	switch p.Method {
	case compress.None:
		return r, nil
	case compress.Zstd:
	default:
		return nil, nil
	}
	if p.Size < compress.TailLen {
		return nil, nil
	}
	tail, err := r.tail(ctx, p.Size, min(p.Size, usualTail))
	if err != nil {
		return nil, err
	}
	length, err := compress.TableLen(tail)
	if errors.Is(err, compress.ErrNoTable) {
		return nil, nil
	}
	if err == nil && (length > p.Size || length > maxTable) {
		err = fmt.Errorf("its seek table of %d bytes is larger than it can be", length)
	}
	if err == nil && length > int64(len(tail)) {
		tail, err = r.tail(ctx, p.Size, length)
	}
	if err == nil {
		r.table, err = compress.ParseTable(tail, p.Size)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r.object, err)
	}
	return r, nil
}

// tail reads the last length bytes of the object of size bytes.
func (r *Ranges) tail(ctx context.Context, size, length int64) ([]byte, error) {
	body, err := r.archive.store.OpenRange(ctx, r.object, size-length, length)
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

// Open reads length bytes of the tar stream from offset on, decompressed. They must all be there. The caller closes it.
func (r *Ranges) Open(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
	if r.table == nil {
		raw, err := r.archive.store.OpenRange(ctx, r.object, offset, length)
		if err != nil {
			return nil, err
		}
		return &decompressed{ReadCloser: compress.Decompress(raw, compress.None), raw: raw, name: r.object}, nil
	}
	at, err := r.table.Locate(offset, length)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r.object, err)
	}
	raw, err := r.archive.store.OpenRange(ctx, r.object, at.Offset, at.Length)
	if err != nil {
		return nil, err
	}
	return &decompressed{ReadCloser: compress.DecompressRange(raw, at), raw: raw, name: r.object}, nil
}
