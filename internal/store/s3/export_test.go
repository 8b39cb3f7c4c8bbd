package s3

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// CreateBucket makes the bucket of s.
func (s *Store) CreateBucket(ctx context.Context) error {
	c, err := s.api(ctx)
	if err != nil {
		return err
	}
	_, err = c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &s.o.Bucket})
	return err
}

// Unfinished returns the number of uploads in parts that are neither finished nor aborted.
func (s *Store) Unfinished(ctx context.Context) (int, error) {
	c, err := s.api(ctx)
	if err != nil {
		return 0, err
	}
	out, err := c.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &s.o.Bucket})
	if err != nil {
		return 0, err
	}
	return len(out.Uploads), nil
}

// Begin begins an upload in parts and leaves it.
func (s *Store) Begin(ctx context.Context, name string) error {
	c, err := s.api(ctx)
	if err != nil {
		return err
	}
	_, err = c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &s.o.Bucket, Key: s.key(name)})
	return err
}

// SweepOlder is Sweep with another age.
func (s *Store) SweepOlder(ctx context.Context, stale time.Time) ([]string, error) {
	return s.sweep(ctx, stale)
}

// PartSize returns the size of part n.
func (s *Store) PartSize(n int32) int64 { return s.partSize(n) }

// Region asks the service at the endpoint of s for the region of the bucket.
func (s *Store) Region(ctx context.Context) (string, error) {
	return s.region(ctx, s.connect("us-east-1"))
}

// Unreached judges an error that came without an answer.
func (s *Store) Unreached(err error) (stays bool, hint string) { return s.unreached(err) }
