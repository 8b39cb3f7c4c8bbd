package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"holdfast/internal/store"
	"holdfast/internal/store/patience"
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

// getByte asks for the first byte of an object and leaves it.
func (s *Store) getByte(ctx context.Context, c *s3.Client, name string) error {
	out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.o.Bucket, Key: s.key(name), Range: aws.String("bytes=0-0"),
		SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD})
	if err == nil {
		out.Body.Close()
	}
	return err
}

func (s *Store) head(ctx context.Context, op, name string) (*s3.HeadObjectOutput, error) {
	if err := check(op, name); err != nil {
		return nil, err
	}
	c, err := s.api(ctx)
	if err != nil {
		return nil, err
	}
	in := &s3.HeadObjectInput{Bucket: &s.o.Bucket, Key: s.key(name),
		SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD}
	out, err := c.HeadObject(ctx, in)
	switch _, status, _ := codes(err); {
	case status == http.StatusNotFound && s.bucketSeen.Load():
	case status >= 400 && status <= 404:
		// The answer to HEAD has no body that would say what is missing, the object or the bucket, or why we are refused. That to
		// GET has, and from it the SDK learns how wrong our clock is.
		why := s.getByte(ctx, c, name)
		code, _, _ := codes(why)
		there := why == nil || code == "InvalidRange" // an empty object
		if there || code == "NoSuchKey" {
			s.bucketSeen.Store(true)
		}
		if err = why; there {
			out, err = c.HeadObject(ctx, in)
		}
	}
	if err != nil {
		return nil, s.fail(op, name, err)
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

// body reads an object, by several requests if the first one's connection breaks.
type body struct {
	store *Store
	ctx   context.Context // of the open, which covers the requests that continue it
	name  string
	etag  *string // of the object at first sight
	at    int64   // offset in the object
	end   int64   // where to end; -1 where not known yet
	now   io.ReadCloser
	tries patience.Tries // since the last byte
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
	if in.Range != nil && !strings.HasPrefix(aws.ToString(out.ContentRange), fmt.Sprintf("bytes %d-", b.at)) ||
		b.end >= 0 && aws.ToInt64(out.ContentLength) > b.end-b.at {
		out.Body.Close()
		return fmt.Errorf("the service answered a request for %s with %d bytes, range %q: %w",
			aws.ToString(in.Range), aws.ToInt64(out.ContentLength), aws.ToString(out.ContentRange), errors.ErrUnsupported)
	}
	b.now, b.etag = out.Body, out.ETag
	if out.ContentLength != nil {
		b.end = b.at + *out.ContentLength
	}
	return nil
}

func (b *body) Read(p []byte) (int, error) {
	for {
		if b.now == nil {
			if err := b.open(); err != nil {
				return 0, b.store.fail("read", b.name, err) // it was tried as often as may be
			}
		}
		n, err := b.now.Read(p)
		b.at += int64(n)
		if n > 0 {
			b.tries.Progress()
		}
		if err == io.EOF && b.at < b.end {
			err = io.ErrUnexpectedEOF
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		b.now.Close() // broken already
		b.now = nil
		if n > 0 {
			return n, nil // the next call goes on
		}
		if err := b.store.retry.Again(b.ctx, &b.tries, fmt.Sprintf("read %s from byte %d on", b.name, b.at), err); err != nil {
			return 0, b.store.fail("read", b.name, err)
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
