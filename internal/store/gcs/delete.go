package gcs

import (
	"context"
	"errors"
	"io/fs"

	"google.golang.org/api/storage/v1"

	"holdfast/internal/store"
	"holdfast/internal/store/stall"
)

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := store.Check("delete", name); err != nil {
		return err
	}
	err := s.do(ctx, "delete", name, func(ctx context.Context, p *place) error {
		return p.api.Objects.Delete(s.o.Bucket, p.root+name).Context(ctx).Do()
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// DeleteMany implements store.ManyDeleter, by a request for each name, many of them at once: the service has no better way.
func (s *Store) DeleteMany(ctx context.Context, names []string) error {
	return store.Each(names, s.o.Concurrency, func(name string) error { return s.Delete(ctx, name) })
}

// Copy implements store.Copier. The service copies, in several steps what takes it long.
func (s *Store) Copy(ctx context.Context, from, to string) error {
	if err := checkNew("copy to", to); err != nil {
		return err
	}
	if err := store.Check("copy", from); err != nil {
		return err
	}
	for token, done := "", false; !done; {
		err := s.do(ctx, "copy", from, func(ctx context.Context, p *place) error {
			call := p.api.Objects.Rewrite(s.o.Bucket, p.root+from, s.o.Bucket, p.root+to, &storage.Object{}).
				RewriteToken(token).Fields("done,rewriteToken").Context(stall.Patient(ctx))
			addTo(call.Header(), s.key)
			addTo(call.Header(), s.sourceKey)
			got, err := call.Do()
			if err == nil {
				token, done = got.RewriteToken, got.Done
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
