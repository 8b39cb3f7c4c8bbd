package azure

import (
	"cmp"
	"context"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"holdfast/internal/store"
	"holdfast/internal/store/resume"
)

// value returns what p points to, or the zero value.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, name string) (store.Object, error) {
	p, err := s.properties(ctx, "stat", name)
	if err != nil {
		return store.Object{}, err
	}
	return store.Object{Name: name, Size: value(p.ContentLength), Modified: value(p.LastModified)}, nil
}

func (s *Store) properties(ctx context.Context, op, name string) (blob.GetPropertiesResponse, error) {
	if err := store.Check(op, name); err != nil {
		return blob.GetPropertiesResponse{}, err
	}
	p, err := s.client.NewBlobClient(s.blobName(name)).GetProperties(ctx, nil)
	if err == nil && isFolder(p.Metadata) {
		err = missing(op, name)
	}
	return p, s.fail(ctx, op, name, err)
}

// isFolder reports whether a blob with this metadata stands for a directory, as in accounts with a hierarchical namespace.
func isFolder(metadata map[string]*string) bool {
	for key, v := range metadata {
		if strings.EqualFold(key, "hdi_isfolder") && strings.EqualFold(value(v), "true") {
			return true
		}
	}
	return false
}

func missing(op, name string) error {
	return &store.OpError{Op: op, Name: name, Text: fs.ErrNotExist.Error(), Err: fs.ErrNotExist}
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
	// A read takes as long as its reader does, so that only a stall ends a try.
	free := policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1})
	same := &blob.ModifiedAccessConditions{} // as the object at first sight
	o := resume.Object{Name: name, Retry: s.retry}
	o.Open = func(at, end int64) (resume.Answer, error) {
		in := &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: at, Count: max(end-at, 0)}, // a count of 0 is to the end
			AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: same}}
		out, err := s.client.NewBlobClient(s.blobName(name)).DownloadStream(free, in)
		if err != nil {
			return resume.Answer{}, err
		}
		if isFolder(out.Metadata) {
			out.Body.Close()
			return resume.Answer{}, missing("open", name)
		}
		same.IfMatch = out.ETag
		return resume.Answer{Body: out.Body, Range: value(out.ContentRange), Length: *cmp.Or(out.ContentLength, to.Ptr[int64](-1))}, nil
	}
	o.Stat = func() error {
		_, err := s.properties(ctx, "open", name)
		return err
	}
	o.Ended = func(err error) bool {
		return code(err) == bloberror.InvalidRange || status(err) == http.StatusRequestedRangeNotSatisfiable
	}
	o.Fail = func(op string, err error) error { return s.fail(ctx, op, name, err) }
	return o.Range(ctx, offset, length)
}
