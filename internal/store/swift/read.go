package swift

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ncw/swift/v2"

	"holdfast/internal/store"
	"holdfast/internal/store/resume"
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
	if err := store.Check(op, name); err != nil {
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
	if err := store.Check("open", name); err != nil {
		return nil, err
	}
	var etag string   // of the object at first sight
	var sum hash.Hash // MD5 of what came; nil where etag is not that of the whole content
	o := resume.Object{Name: name, Retry: s.retry}
	o.Open = func(at, end int64) (got resume.Answer, err error) {
		headers := swift.Headers{}
		asked := resume.Header(at, end)
		if asked != "" {
			headers["Range"] = asked
		}
		if etag != "" {
			headers["If-Match"] = `"` + etag + `"`
		}
		err = s.attempt(ctx, "open", name, func(context.Context) error {
			file, answer, err := s.conn.ObjectOpen(ctx, s.o.Container, s.key(name), false, headers)
			if etag != "" && code(err) == http.StatusPreconditionFailed {
				return fmt.Errorf("it was replaced meanwhile: %w", err)
			}
			if err != nil {
				return err
			}
			if etag == "" {
				etag = answer["Etag"]
				if asked == "" && !answer.IsLargeObject() && len(etag) == hex.EncodedLen(md5.Size) {
					sum = md5.New()
				}
			}
			got = resume.Answer{Body: content{file}, Range: answer["Content-Range"], Length: -1}
			if n, err := strconv.ParseInt(answer["Content-Length"], 10, 64); err == nil {
				got.Length = n
			}
			if sum != nil {
				got.Body = resume.Summed(got.Body, sum)
			}
			return nil
		})
		return got, err
	}
	o.Stat = func() error {
		_, err := s.Stat(ctx, name)
		return err
	}
	o.Ended = func(err error) bool { return code(err) == http.StatusRequestedRangeNotSatisfiable }
	o.Check = func() error {
		if sum != nil && hex.EncodeToString(sum.Sum(nil)) != etag {
			return fmt.Errorf("%w: it is %x, the service has %s", errDamaged, sum.Sum(nil), etag)
		}
		return nil
	}
	o.Fail = func(op string, err error) error { return s.fail(op, name, err) }
	return o.Range(ctx, offset, length)
}

// content is what the library reads of an object.
type content struct{ *swift.ObjectOpenFile }

// Close ends the reading. The library complains of what was not read to its end.
func (c content) Close() error {
	c.ObjectOpenFile.Close()
	return nil
}
