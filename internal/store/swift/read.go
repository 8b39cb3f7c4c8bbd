package swift

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ncw/swift/v2"

	"holdfast/internal/store"
	"holdfast/internal/store/patience"
)

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, name string) (store.Object, error) {
	found, _, err := s.head(ctx, "stat", name)
	if err != nil {
		return store.Object{}, err
	}
	return found, nil
}

// head describes an object, with the headers of the service.
func (s *Store) head(ctx context.Context, op, name string) (o store.Object, headers swift.Headers, err error) {
	if err := check(op, name); err != nil {
		return o, nil, err
	}
	err = s.do(ctx, op, name, func(ctx context.Context) error {
		found, h, err := s.conn.Object(ctx, s.o.Container, s.key(name))
		o, headers = store.Object{Name: name, Size: found.Bytes, Modified: modified(found.LastModified, h)}, h
		return err
	})
	return o, headers, err
}

// modified returns when an object was put, in whole seconds as listings have it: Last-Modified is rounded up.
func modified(last time.Time, h swift.Headers) time.Time {
	if seconds, _, _ := strings.Cut(h["X-Timestamp"], "."); seconds != "" {
		if n, err := strconv.ParseInt(seconds, 10, 64); err == nil {
			return time.Unix(n, 0).UTC()
		}
	}
	return last
}

// Open implements store.Store. A body that breaks off is continued, with the version of the object that it began with. An object
// without segments is checked at its end.
func (s *Store) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return s.OpenRange(ctx, name, 0, -1)
}

// OpenRange implements store.Store.
func (s *Store) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := check("open", name); err != nil {
		return nil, err
	}
	switch {
	case offset < 0 || length < -1:
		return nil, fmt.Errorf("open %s from %d for %d bytes: %w", name, offset, length, fs.ErrInvalid)
	case length == 0: // HTTP has no empty ranges
		if _, err := s.Stat(ctx, name); err != nil {
			return nil, err
		}
		return http.NoBody, nil
	}
	b := &body{store: s, ctx: ctx, name: name, at: offset, end: -1}
	if length > 0 {
		b.end = offset + length
	}
	err := s.fail("open", name, s.attempt(ctx, "open", name, b.open))
	switch {
	case code(err) == http.StatusRequestedRangeNotSatisfiable:
		return http.NoBody, nil // the object ends before
	case err != nil:
		return nil, err
	}
	return b, nil
}

// body reads an object, by several requests if the first one's connection breaks.
type body struct {
	store *Store
	ctx   context.Context // of the open, which covers the requests that continue it
	name  string
	etag  string // of the object at first sight
	at    int64  // offset in the object
	end   int64  // where to end; -1 where not known yet
	now   *swift.ObjectOpenFile
	tries patience.Tries // since the last byte

	sum hash.Hash // MD5 of what came; nil where etag is not that of the whole content
}

// open requests what is still to be read.
func (b *body) open(ctx context.Context) error {
	s, headers := b.store, swift.Headers{}
	switch {
	case b.end >= 0:
		headers["Range"] = fmt.Sprintf("bytes=%d-%d", b.at, b.end-1)
	case b.at > 0:
		headers["Range"] = fmt.Sprintf("bytes=%d-", b.at)
	}
	if b.etag != "" {
		headers["If-Match"] = `"` + b.etag + `"`
	}
	file, got, err := s.conn.ObjectOpen(b.ctx, s.o.Container, s.key(b.name), false, headers)
	if b.etag != "" && code(err) == http.StatusPreconditionFailed {
		return fmt.Errorf("it was replaced meanwhile: %w", err)
	}
	if err != nil {
		return err
	}
	length, asked := int64(-1), headers["Range"]
	if n, err := strconv.ParseInt(got["Content-Length"], 10, 64); err == nil {
		length = n
	}
	// An empty object has no ranges, and some services answer with it whole.
	if asked != "" && length != 0 && !strings.HasPrefix(got["Content-Range"], fmt.Sprintf("bytes %d-", b.at)) || b.end >= 0 && length > b.end-b.at {
		file.Close() // of no use
		return fmt.Errorf("the service answered a request for %s with %d bytes, range %q: %w", asked, length, got["Content-Range"], fs.ErrInvalid)
	}
	if b.etag == "" {
		b.etag = got["Etag"]
		if asked == "" && !got.IsLargeObject() && len(b.etag) == hex.EncodedLen(md5.Size) {
			b.sum = md5.New()
		}
	}
	b.now = file
	if length >= 0 {
		b.end = b.at + length
	}
	return nil
}

func (b *body) Read(p []byte) (int, error) {
	s := b.store
	for {
		if b.now == nil {
			if err := s.attempt(b.ctx, "continue", b.name, b.open); err != nil { // it was tried as often as may be
				return 0, s.fail("read", b.name, err)
			}
		}
		n, err := b.now.Read(p)
		b.at += int64(n)
		if n > 0 {
			b.tries.Progress()
		}
		if b.sum != nil {
			b.sum.Write(p[:n]) // never fails: package hash says so
		}
		if err == io.EOF && b.at < b.end {
			err = io.ErrUnexpectedEOF
		}
		if err == io.EOF && b.sum != nil && hex.EncodeToString(b.sum.Sum(nil)) != b.etag {
			return n, s.fail("read", b.name, fmt.Errorf("%w: it is %x, the service has %s", errDamaged, b.sum.Sum(nil), b.etag))
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		b.now.Close() // broken already
		b.now = nil
		if n > 0 {
			return n, nil // the next call goes on
		}
		if err := s.retry.Again(b.ctx, &b.tries, fmt.Sprintf("read %s from byte %d on", b.name, b.at), err); err != nil {
			return 0, s.fail("read", b.name, err)
		}
	}
}

// Close ends the reading.
func (b *body) Close() error {
	if b.now == nil {
		return nil
	}
	b.now.Close() // it complains of what was not read to its end, which is checked in Read
	return nil
}
