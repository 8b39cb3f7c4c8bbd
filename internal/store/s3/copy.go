package s3

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/store"
)

// Copy implements store.Copier. The service copies; what is larger than it copies at once goes in parts.
func (s *Store) Copy(ctx context.Context, from, to string) error {
	if err := store.Check("copy to", to); err != nil {
		return err
	}
	source, err := s.head(ctx, "copy", from)
	if err != nil {
		return err
	}
	c, err := s.api(ctx)
	if err != nil {
		return err
	}
	if aws.ToInt64(source.ContentLength) > s.o.MaxCopy {
		return s.fail("copy to", to, s.copyMany(ctx, c, from, to, source))
	}
	in := &s3.CopyObjectInput{
		Bucket: &s.o.Bucket, Key: s.key(to), CopySource: s.source(from), CopySourceIfMatch: source.ETag,
		StorageClass: types.StorageClass(s.o.StorageClass), ServerSideEncryption: s.sse.method, SSEKMSKeyId: s.sse.kmsKey,
		SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD,
		CopySourceSSECustomerAlgorithm: s.sse.cAlgo, CopySourceSSECustomerKey: s.sse.cKey, CopySourceSSECustomerKeyMD5: s.sse.cKeyMD,
	}
	in.ObjectLockMode, in.ObjectLockRetainUntilDate = s.locked()
	_, err = c.CopyObject(ctx, in, s.patient)
	return s.fail("copy to", to, err)
}

// source names an object in a header, where all but letters, digits, "-", "_", ".", "~" and "/" has to be escaped.
func (s *Store) source(name string) *string {
	escaped := url.PathEscape(s.o.Bucket + "/" + *s.key(name))
	return aws.String(strings.NewReplacer("%2F", "/", "+", "%2B", "$", "%24", "&", "%26", ":", "%3A", "=", "%3D", "@", "%40").Replace(escaped))
}

// copyMany copies an object in parts.
func (s *Store) copyMany(ctx context.Context, c *s3.Client, from, to string, source *s3.HeadObjectOutput) error {
	in := &s3.CreateMultipartUploadInput{
		Bucket: &s.o.Bucket, Key: s.key(to),
		StorageClass: types.StorageClass(s.o.StorageClass), ServerSideEncryption: s.sse.method, SSEKMSKeyId: s.sse.kmsKey,
		SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD,
	}
	in.ObjectLockMode, in.ObjectLockRetainUntilDate = s.locked()
	created, err := c.CreateMultipartUpload(ctx, in)
	if err != nil {
		return err
	}
	u := &upload{store: s, client: c, name: to, id: created.UploadId}
	size, step := aws.ToInt64(source.ContentLength), min(s.o.MaxCopy, 1<<30) // 1 GiB: 5 TiB are 5120 parts
	u.parts = make([]types.CompletedPart, (size+step-1)/step)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.o.Concurrency)
	for i := range u.parts {
		g.Go(func() error {
			n := aws.Int32(int32(i + 1))
			first := int64(i) * step
			out, err := c.UploadPartCopy(gctx, &s3.UploadPartCopyInput{
				Bucket: &s.o.Bucket, Key: s.key(to), UploadId: u.id, PartNumber: n,
				CopySource: s.source(from), CopySourceIfMatch: source.ETag,
				CopySourceRange:      aws.String(fmt.Sprintf("bytes=%d-%d", first, min(first+step, size)-1)),
				SSECustomerAlgorithm: s.sse.cAlgo, SSECustomerKey: s.sse.cKey, SSECustomerKeyMD5: s.sse.cKeyMD,
				CopySourceSSECustomerAlgorithm: s.sse.cAlgo, CopySourceSSECustomerKey: s.sse.cKey, CopySourceSSECustomerKeyMD5: s.sse.cKeyMD,
			}, s.patient)
			if err == nil {
				u.parts[i] = types.CompletedPart{PartNumber: n, ETag: out.CopyPartResult.ETag}
			}
			return err
		})
	}
	err = g.Wait()
	if err == nil {
		err = u.complete(ctx, nil)
	}
	if err != nil {
		return errors.Join(s.fail("copy to", to, err), u.abort(ctx))
	}
	return nil
}
