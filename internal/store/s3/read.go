package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"holdfast/internal/store"
)

func check(op, name string) error {
	if err := store.CheckName(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, name string) (store.Object, error) {
	out, err := s.head(ctx, "stat", name)
	if err != nil {
		return store.Object{}, err
	}
	return store.Object{Name: name, Size: aws.ToInt64(out.ContentLength), Modified: aws.ToTime(out.LastModified)}, nil
}

func (s *Store) head(ctx context.Context, op, name string) (*s3.HeadObjectOutput, error) {
	if err := check(op, name); err != nil {
		return nil, err
	}
	c, err := s.api(ctx)
	if err != nil {
		return nil, err
	}
	out, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.o.Bucket, Key: s.key(name),
		SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD})
	if err != nil {
		err = s.fail(op, name, err)
		if errors.Is(err, fs.ErrNotExist) && !s.bucketSeen.Load() {
			// The answer to HEAD has no body, and so reads the same when it is the bucket that is missing.
			if _, err := c.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &s.o.Bucket}); err != nil {
				if _, status, _ := codes(err); status == http.StatusNotFound {
					return nil, s.fail(op, name, &types.NoSuchBucket{})
				} else if status != http.StatusForbidden {
					return nil, s.fail(op, name, err)
				}
			}
			s.bucketSeen.Store(true)
		}
		return nil, err
	}
	s.bucketSeen.Store(true)
	return out, nil
}

// Open implements store.Store.
func (s *Store) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return s.OpenRange(ctx, name, 0, -1)
}

// OpenRange implements store.Store. A body that breaks off is continued where it broke, as long as it is the same object.
func (s *Store) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := check("open", name); err != nil {
		return nil, err
	}
	switch {
	case offset < 0 || length < -1:
		return nil, fmt.Errorf("open %s from %d for %d bytes: %w", name, offset, length, fs.ErrInvalid)
	case length == 0: // HTTP has no empty ranges
		if _, err := s.head(ctx, "open", name); err != nil {
			return nil, err
		}
		return http.NoBody, nil
	}
	b := &body{store: s, ctx: ctx, name: name, at: offset, end: -1}
	if length > 0 {
		b.end = offset + length
	}
	if err := b.open(); err != nil {
		if code, status, _ := codes(err); code == "InvalidRange" || status == http.StatusRequestedRangeNotSatisfiable {
			return http.NoBody, nil // the object ends before
		}
		return nil, s.fail("open", name, err)
	}
	return b, nil
}

// maxResumes is how often a body is continued without a byte in between.
const maxResumes = 5

// body reads an object, by several requests if the first one's connection breaks.
type body struct {
	store *Store
	ctx   context.Context // of the open, which covers the requests that continue it
	name  string
	etag  *string // of the object at first sight
	at    int64   // offset in the object
	end   int64   // where to end; -1 where not known yet
	now   io.ReadCloser
	fails int // since the last byte
}

// open requests what is still to be read.
func (b *body) open() error {
	c, err := b.store.api(b.ctx)
	if err != nil {
		return err
	}
	sse := b.store.sse
	in := &s3.GetObjectInput{Bucket: &b.store.o.Bucket, Key: b.store.key(b.name), IfMatch: b.etag,
		SSECustomerAlgorithm: sse.cAlgo, SSECustomerKey: sse.cKey, SSECustomerKeyMD5: sse.cKeyMD}
	switch {
	case b.end >= 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", b.at, b.end-1))
	case b.at > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", b.at))
	}
	out, err := c.GetObject(b.ctx, in)
	if err != nil {
		return err
	}
	b.store.bucketSeen.Store(true)
	if in.Range != nil && out.ContentRange == nil {
		out.Body.Close()
		return errors.New("the service answered a request for a range with the whole object")
	}
	b.now, b.etag = out.Body, out.ETag
	if out.ContentLength != nil {
		b.end = b.at + *out.ContentLength
	}
	return nil
}

func (b *body) Read(p []byte) (int, error) {
	for {
		var n int
		var err error
		if b.now == nil {
			err = b.open()
		} else {
			n, err = b.now.Read(p)
		}
		b.at += int64(n)
		if n > 0 {
			b.fails = 0
		}
		if err == io.EOF && b.at < b.end {
			err = io.ErrUnexpectedEOF
		}
		if err == nil && n == 0 && len(p) > 0 {
			continue // opened anew
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		if b.now != nil {
			b.now.Close() // broken already
			b.now = nil
		}
		if n > 0 {
			return n, nil // the next call goes on
		}
		err = b.store.fail("read", b.name, err)
		b.fails++
		if b.fails > maxResumes || b.ctx.Err() != nil || permanent(err) {
			return 0, err
		}
		select {
		case <-time.After(min(50*time.Millisecond<<b.fails, b.store.o.MaxBackoff)):
		case <-b.ctx.Done():
			return 0, b.store.fail("read", b.name, b.ctx.Err())
		}
	}
}

// permanent reports whether err will stay; that the object changed between two requests for it is such.
func permanent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrInvalid)
}

// Close ends the reading.
func (b *body) Close() error {
	if b.now == nil {
		return nil
	}
	return b.now.Close()
}
