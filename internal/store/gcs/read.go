package gcs

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/api/storage/v1"

	"holdfast/internal/store"
	"holdfast/internal/store/patience"
)

// castagnoli makes CRC-32C, the checksum that the service keeps of every object.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum writes a CRC-32C as the service does.
func checksum(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

// addTo adds headers to those of a request.
func addTo(h, more http.Header) {
	for name, values := range more {
		h[name] = values
	}
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, name string) (store.Object, error) {
	if err := check("stat", name); err != nil {
		return store.Object{}, err
	}
	var found *storage.Object
	err := s.do(ctx, "stat", name, func(ctx context.Context, p *place) (err error) {
		call := p.api.Objects.Get(s.o.Bucket, p.root+name).Fields("size,timeCreated").Context(ctx)
		addTo(call.Header(), s.key)
		found, err = call.Do()
		return err
	})
	if err != nil {
		return store.Object{}, err
	}
	return object(name, found), nil
}

// object describes what the service found under a name. An object's content has the age of the object: a new content is a new object.
func object(name string, found *storage.Object) store.Object {
	created, _ := time.Parse(time.RFC3339, found.TimeCreated) // zero where the service does not say
	return store.Object{Name: name, Size: int64(found.Size), Modified: created}
}

// bucketMissing reports whether the service says that there is no such bucket, which it says of objects in it just as it does of
// objects that are not in it.
func (s *Store) bucketMissing(ctx context.Context, p *place) bool {
	if p == nil {
		return false
	}
	_, err := p.api.Objects.List(s.o.Bucket).MaxResults(1).Fields("nextPageToken").Context(ctx).Do()
	if err == nil {
		s.bucketSeen.Store(true)
	}
	return code(err) == http.StatusNotFound
}

// Open implements store.Store. A body that breaks off is continued, with the version of the object that it began with. At its end
// it is checked.
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
	store      *Store
	ctx        context.Context // of the open, which covers the requests that continue it
	name       string
	generation int64 // of the object at first sight
	at         int64 // offset in the object
	end        int64 // where to end; -1 where not known yet
	now        io.ReadCloser
	tries      patience.Tries // since the last byte

	sum  uint32 // CRC-32C of what came
	want string // that of the whole object; "" where it cannot be compared
}

// open requests what is still to be read.
func (b *body) open(ctx context.Context, p *place) error {
	s := b.store
	call := p.api.Objects.Get(s.o.Bucket, p.root+b.name).Context(b.ctx)
	addTo(call.Header(), s.key)
	if b.generation != 0 {
		call.Generation(b.generation)
	}
	asked := ""
	switch {
	case b.end >= 0:
		asked = fmt.Sprintf("bytes=%d-%d", b.at, b.end-1)
	case b.at > 0:
		asked = fmt.Sprintf("bytes=%d-", b.at)
	}
	if asked != "" {
		call.Header().Set("Range", asked)
	}
	resp, err := call.Download()
	if err != nil {
		return err
	}
	got := resp.Header.Get("Content-Range")
	if asked != "" && !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", b.at)) || b.end >= 0 && resp.ContentLength > b.end-b.at {
		resp.Body.Close()
		return fmt.Errorf("the service answered a request for %s with %d bytes, range %q: %w", asked, resp.ContentLength, got, fs.ErrInvalid)
	}
	if b.generation == 0 {
		b.generation, _ = strconv.ParseInt(resp.Header.Get("X-Goog-Generation"), 10, 64) // 0 where the service does not say
		if asked == "" {
			b.want = wholeChecksum(resp.Header)
		}
	}
	b.now = resp.Body
	if resp.ContentLength >= 0 {
		b.end = b.at + resp.ContentLength
	}
	return nil
}

// wholeChecksum returns the CRC-32C of the whole object that an answer is about, "" where it does not say.
func wholeChecksum(h http.Header) string {
	for _, line := range h.Values("X-Goog-Hash") {
		for hash := range strings.SplitSeq(line, ",") {
			if sum, ok := strings.CutPrefix(strings.TrimSpace(hash), "crc32c="); ok {
				return sum
			}
		}
	}
	return ""
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
		b.sum = crc32.Update(b.sum, castagnoli, p[:n])
		if n > 0 {
			b.tries.Progress()
		}
		if err == io.EOF && b.at < b.end {
			err = io.ErrUnexpectedEOF
		}
		if err == io.EOF && b.want != "" && checksum(b.sum) != b.want {
			return n, s.fail("read", b.name, fmt.Errorf("%w: it is %s, the service has %s", errDamaged, checksum(b.sum), b.want))
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
	return b.now.Close()
}
