package s3

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"holdfast/internal/store"
	"holdfast/internal/store/resume"
)

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, name string) (store.Object, error) {
	out, err := s.head(ctx, "stat", name)
	if err != nil {
		return store.Object{}, err
	}
	o := store.Object{Name: name, Size: aws.ToInt64(out.ContentLength), Modified: aws.ToTime(out.LastModified)}
	if !strings.Contains(aws.ToString(out.Restore), `ongoing-request="false"`) { // thawed, for a while
		o.Frozen = frozen(string(out.StorageClass))
		if out.ArchiveStatus != "" { // of INTELLIGENT_TIERING
			o.Frozen = cmp.Or(o.Frozen, string(out.ArchiveStatus))
		}
	}
	return o, nil
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
	if err := store.Check(op, name); err != nil {
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
	if err := store.Check("open", name); err != nil {
		return nil, err
	}
	var etag *string // of the object at first sight
	o := resume.Object{Name: name, Retry: s.retry}
	o.Open = func(at, end int64) (resume.Answer, error) {
		c, err := s.api(ctx)
		if err != nil {
			return resume.Answer{}, err
		}
		in := &s3.GetObjectInput{Bucket: &s.o.Bucket, Key: s.key(name), IfMatch: etag,
			SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD}
		if asked := resume.Header(at, end); asked != "" {
			in.Range = &asked
		}
		out, err := c.GetObject(ctx, in)
		if err != nil {
			return resume.Answer{}, err
		}
		s.bucketSeen.Store(true)
		etag = out.ETag
		return resume.Answer{Body: out.Body, Range: aws.ToString(out.ContentRange), Length: *cmp.Or(out.ContentLength, aws.Int64(-1))}, nil
	}
	o.Stat = func() error {
		_, err := s.head(ctx, "open", name)
		return err
	}
	o.Ended = func(err error) bool {
		code, status, _ := codes(err)
		return code == "InvalidRange" || status == http.StatusRequestedRangeNotSatisfiable
	}
	o.Fail = func(op string, err error) error { return s.fail(op, name, err) }
	return o.Range(ctx, offset, length)
}
