package azure

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"holdfast/internal/store"
	"holdfast/internal/store/stall"
)

// deleteBatch is the service's bound on the names in one call.
const deleteBatch = 256

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := store.Check("delete", name); err != nil {
		return err
	}
	_, err := s.client.NewBlobClient(s.blobName(name)).Delete(ctx, nil)
	if code(err) == bloberror.BlobNotFound {
		return nil
	}
	return s.fail(ctx, "delete", name, err)
}

// DeleteMany implements store.ManyDeleter. The service answers for each name; each one it refused is in the error.
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
	for batch := range slices.Chunk(valid, deleteBatch) {
		errs = append(errs, s.deleteBatch(ctx, batch))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func (s *Store) deleteBatch(ctx context.Context, names []string) error {
	what := strings.Join(names, ", ")
	if len(names) > 3 {
		what = fmt.Sprintf("%d objects from %s to %s", len(names), names[0], names[len(names)-1])
	}
	batch, err := s.client.NewBatchBuilder()
	if err != nil {
		return s.fail(ctx, "delete", what, err)
	}
	for _, name := range names {
		if err := batch.Delete(s.blobName(name), nil); err != nil {
			return s.fail(ctx, "delete", name, err)
		}
	}
	out, err := s.client.SubmitBatch(stall.Patient(ctx), batch, nil)
	if err = s.fail(ctx, "delete", what, err); errors.Is(err, errors.ErrUnsupported) {
		return s.deleteEach(ctx, names)
	} else if err != nil {
		return err
	}
	var errs []error
	var busy []string
	for i, answer := range out.Responses {
		if id := answer.ContentID; id != nil && *id >= 0 && *id < len(names) {
			i = *id
		}
		err := s.fail(ctx, "delete", names[i], answer.Error)
		switch {
		case err == nil || code(err) == bloberror.BlobNotFound:
		case errors.Is(err, errors.ErrUnsupported) || passing(err):
			busy = append(busy, names[i])
		default:
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.deleteEach(ctx, busy))...) // which tries again
}

// passing reports whether an answer may be another one the next time.
func passing(err error) bool {
	own := (*store.OpError)(nil)
	return errors.As(err, &own) && own.Kind == nil
}

// deleteEach deletes names by a request each.
func (s *Store) deleteEach(ctx context.Context, names []string) error {
	return store.Each(names, s.o.Concurrency, func(name string) error { return s.Delete(ctx, name) })
}
