package gcs

import (
	"bytes"
	"context"
	"time"

	"google.golang.org/api/googleapi"
	"google.golang.org/api/storage/v1"
)

// CreateBucket makes the bucket of s.
func (s *Store) CreateBucket(ctx context.Context) error {
	p, err := s.somewhere(ctx)
	if err != nil {
		return err
	}
	_, err = p.api.Buckets.Insert("project", &storage.Bucket{Name: s.o.Bucket}).Context(ctx).Do()
	return err
}

// somewhere returns the place of s, in a bucket that may be missing.
func (s *Store) somewhere(ctx context.Context) (*place, error) {
	anywhere := &Store{o: s.o, anonymous: s.anonymous, transport: s.transport, retry: s.retry}
	anywhere.o.RawPrefix = true
	return anywhere.place(ctx)
}

// PutKey puts an object under a key of the bucket, whatever the root of s.
func (s *Store) PutKey(ctx context.Context, key string) error {
	p, err := s.somewhere(ctx)
	if err != nil {
		return err
	}
	_, err = p.api.Objects.Insert(s.o.Bucket, &storage.Object{Name: key}).Context(ctx).
		Media(bytes.NewReader([]byte(key)), googleapi.ContentType(contentType)).Do()
	return err
}

// Keys returns the keys of all objects of the bucket.
func (s *Store) Keys(ctx context.Context) (keys []string, err error) {
	p, err := s.somewhere(ctx)
	if err != nil {
		return nil, err
	}
	err = p.api.Objects.List(s.o.Bucket).Pages(ctx, func(page *storage.Objects) error {
		for _, o := range page.Items {
			keys = append(keys, o.Name)
		}
		return nil
	})
	return keys, err
}

// SweepOlder is Sweep with another age.
func (s *Store) SweepOlder(ctx context.Context, stale time.Time) ([]string, error) {
	return s.sweep(ctx, stale)
}

// MostMemory returns how many bytes the puts of s had taken at once.
func (s *Store) MostMemory() int64 { return s.budget.Most() }

// UseDefaultCredentials makes s look for credentials where Google's tools do, as it does without an Endpoint.
func (s *Store) UseDefaultCredentials() { s.anonymous = false }
