package gcs

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/api/storage/v1"

	"holdfast/internal/store"
	"holdfast/internal/store/resume"
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
	if err := store.Check("stat", name); err != nil {
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
	if err := store.Check("open", name); err != nil {
		return nil, err
	}
	var generation int64 // of the object at first sight
	var want string      // the checksum of the whole object; "" where it cannot be compared
	sum := crc32.New(castagnoli)
	o := resume.Object{Name: name, Retry: s.retry}
	o.Open = func(at, end int64) (got resume.Answer, err error) {
		err = s.attempt(ctx, "open", name, func(_ context.Context, p *place) error {
			call := p.api.Objects.Get(s.o.Bucket, p.root+name).Context(ctx)
			addTo(call.Header(), s.key)
			if generation != 0 {
				call.Generation(generation)
			}
			asked := resume.Header(at, end)
			if asked != "" {
				call.Header().Set("Range", asked)
			}
			resp, err := call.Download()
			if err != nil {
				return err
			}
			if generation == 0 {
				generation, _ = strconv.ParseInt(resp.Header.Get("X-Goog-Generation"), 10, 64) // 0 where the service does not say
				if asked == "" {
					want = wholeChecksum(resp.Header)
				}
			}
			got = resume.Answer{Body: resume.Summed(resp.Body, sum), Range: resp.Header.Get("Content-Range"), Length: resp.ContentLength}
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
		if got := checksum(sum.Sum32()); want != "" && got != want {
			return fmt.Errorf("%w: it is %s, the service has %s", errDamaged, got, want)
		}
		return nil
	}
	o.Fail = func(op string, err error) error { return s.fail(op, name, err) }
	return o.Range(ctx, offset, length)
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
