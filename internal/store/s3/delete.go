package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"holdfast/internal/store"
)

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := store.Check("delete", name); err != nil {
		return err
	}
	c, err := s.api(ctx)
	if err != nil {
		return err
	}
	_, err = c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.o.Bucket, Key: s.key(name)})
	if code, _, _ := codes(err); code == "NoSuchKey" {
		return nil
	}
	return s.fail("delete", name, err)
}

// DeleteMany implements store.ManyDeleter. The service answers for each key; each one it refused is in the error.
func (s *Store) DeleteMany(ctx context.Context, names []string) error {
	var errs []error
	valid := make([]string, 0, len(names))
	for _, name := range names {
		if err := store.Check("delete", name); err != nil {
			errs = append(errs, err)
		} else {
			valid = append(valid, name)
		}
	}
	if len(valid) == 0 {
		return errors.Join(errs...)
	}
	c, err := s.api(ctx)
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(valid, s.o.DeleteBatch) {
		if err := ctx.Err(); err != nil {
			errs = append(errs, s.fail("delete", batch[0]+" and those after it", err))
			break
		}
		errs = append(errs, s.deleteBatch(ctx, c, batch))
	}
	return errors.Join(errs...)
}

func (s *Store) deleteBatch(ctx context.Context, c *s3.Client, names []string) error {
	ids := make([]types.ObjectIdentifier, len(names))
	for i, name := range names {
		ids[i].Key = s.key(name)
	}
	out, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &s.o.Bucket, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)}},
		func(c *s3.Options) { // the SDK adds a CRC, but older services want an MD5
			c.APIOptions = append(c.APIOptions, smithyhttp.AddContentChecksumMiddleware)
		})
	var errs []error
	switch _, status, _ := codes(err); {
	case status == http.StatusNotImplemented || status == http.StatusMethodNotAllowed:
		for _, name := range names {
			errs = append(errs, s.Delete(ctx, name))
		}
		return errors.Join(errs...)
	case err != nil:
		what := strings.Join(names, ", ")
		if len(names) > 3 {
			what = fmt.Sprintf("%d objects from %s to %s", len(names), names[0], names[len(names)-1])
		}
		return s.fail("delete", what, err)
	}
	root := len(*s.key(""))
	for _, refused := range out.Errors {
		key, code := aws.ToString(refused.Key), aws.ToString(refused.Code)
		if code == "NoSuchKey" {
			continue
		}
		err := &smithy.GenericAPIError{Code: code, Message: aws.ToString(refused.Message)}
		errs = append(errs, s.fail("delete", key[min(root, len(key)):], err))
	}
	return errors.Join(errs...)
}
