package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"holdfast/internal/store"
	"holdfast/internal/store/patience"
)

func check(op, name string) error {
	if err := store.CheckName(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

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
	if err := check(op, name); err != nil {
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
	return &opError{op: op, name: name, text: fs.ErrNotExist.Error(), err: fs.ErrNotExist}
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
		if _, err := s.properties(ctx, "open", name); err != nil {
			return nil, err
		}
		return http.NoBody, nil
	}
	// A read takes as long as its reader does, so that only a stall ends a try.
	free := policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1})
	b := &body{store: s, ctx: free, name: name, at: offset, end: -1}
	if length > 0 {
		b.end = offset + length
	}
	if err := b.open(); err != nil {
		if code(err) == bloberror.InvalidRange || status(err) == http.StatusRequestedRangeNotSatisfiable {
			return http.NoBody, nil // the object ends before
		}
		return nil, s.fail(ctx, "open", name, err)
	}
	return b, nil
}

// body reads an object, by several requests if the first one's connection breaks.
type body struct {
	store *Store
	ctx   context.Context // of the open, which covers the requests that continue it
	name  string
	etag  *azcore.ETag // of the object at first sight
	at    int64        // offset in the object
	end   int64        // where to end; -1 where not known yet
	now   io.ReadCloser
	tries patience.Tries // since the last byte
}

// open requests what is still to be read.
func (b *body) open() error {
	in := &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: b.at}} // a count of 0 is to the end
	if b.end >= 0 {
		in.Range.Count = b.end - b.at
	}
	if b.etag != nil {
		in.AccessConditions = &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: b.etag}}
	}
	out, err := b.store.client.NewBlobClient(b.store.blobName(b.name)).DownloadStream(b.ctx, in)
	if err != nil {
		return err
	}
	if isFolder(out.Metadata) {
		out.Body.Close()
		return missing("open", b.name)
	}
	if in.Range != (blob.HTTPRange{}) && !strings.HasPrefix(value(out.ContentRange), fmt.Sprintf("bytes %d-", b.at)) ||
		b.end >= 0 && value(out.ContentLength) > b.end-b.at {
		out.Body.Close()
		return fmt.Errorf("the service answered a request from byte %d to %d with %d bytes, range %q: %w",
			b.at, b.end, value(out.ContentLength), value(out.ContentRange), errors.ErrUnsupported)
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
			if b.at == b.end {
				return 0, io.EOF
			}
			if err := b.open(); err != nil {
				return 0, b.store.fail(b.ctx, "read", b.name, err) // it was tried as often as may be
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
			return 0, b.store.fail(b.ctx, "read", b.name, err)
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
