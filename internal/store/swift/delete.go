package swift

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/store"
	"holdfast/internal/store/stall"
)

// Delete implements store.Store. The segments of an object go after it.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := store.Check("delete", name); err != nil {
		return err
	}
	old, err := s.segmentsOf(ctx, "delete", name)
	if err != nil {
		return err
	}
	err = s.do(ctx, "delete", name, func(ctx context.Context) error {
		return s.conn.ObjectDelete(ctx, s.o.Container, s.key(name))
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil && old != "" {
		s.removeSegments(ctx, old)
	}
	return err
}

// deletesAtOnce is how many requests to delete are under way at once.
const deletesAtOnce = 16

// DeleteMany implements store.ManyDeleter, by a request for each name, many of them at once: what services have for many names goes
// through them one by one, and knows nothing of segments.
func (s *Store) DeleteMany(ctx context.Context, names []string) error {
	return store.Each(names, deletesAtOnce, func(name string) error { return s.Delete(ctx, name) })
}

// Copy implements store.Copier. The service copies; of an object with segments it copies each, for they go with the object they are of.
func (s *Store) Copy(ctx context.Context, from, to string) error {
	if err := store.Check("copy to", to); err != nil {
		return err
	}
	_, headers, err := s.head(ctx, "copy", from)
	if err != nil {
		return err
	}
	old, err := s.segmentsOf(ctx, "copy to", to)
	if err != nil {
		return err
	}
	if headers.IsLargeObjectSLO() {
		err = s.copyLarge(ctx, from, to)
	} else {
		err = s.do(ctx, "copy", from, func(ctx context.Context) error {
			_, err := s.conn.ObjectCopy(stall.Patient(ctx), s.o.Container, s.key(from), s.o.Container, s.key(to), nil)
			return err
		})
	}
	if err == nil && old != "" {
		s.removeSegments(ctx, old)
	}
	return err
}

func (s *Store) copyLarge(ctx context.Context, from, to string) error {
	most, err := s.largeObjects(ctx)
	if err != nil {
		return s.fail("copy", from, err)
	}
	segments, err := s.leaves(ctx, s.o.Container, s.key(from), 0)
	if err != nil {
		return s.fail("copy", from, err)
	}
	if err := s.makeSegments(ctx); err != nil {
		return s.fail("copy to", to, err)
	}
	u := s.newUpload(to)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.o.Concurrency)
	for i := range segments {
		g.Go(func() error {
			container, key, _ := strings.Cut(segments[i].Path, "/")
			err := s.attempt(gctx, "copy segment", key, func(ctx context.Context) error {
				_, err := s.conn.ObjectCopy(stall.Patient(ctx), container, key, s.o.SegmentContainer, u.name(i+1), nil)
				return err
			})
			segments[i].Path = s.o.SegmentContainer + "/" + u.name(i+1)
			return err
		})
	}
	err = g.Wait()
	if err == nil {
		if err = s.finish(ctx, to, u, segments, most); err == nil || s.arrived(ctx, to, u) {
			return nil
		}
	}
	if kind, _ := s.judge(err); kind != nil {
		s.removeSegments(ctx, u)
	}
	return s.fail("copy to", to, err)
}

// leaves returns the segments of an object in their order, whatever manifests are between.
func (s *Store) leaves(ctx context.Context, container, key string, depth int) ([]segment, error) {
	if depth > 10 { // more than services take
		return nil, errors.New("its manifests lie within each other too deeply")
	}
	var entries, all []segment
	err := s.attempt(ctx, "read the manifest", key, func(ctx context.Context) (err error) {
		entries, err = s.manifestOf(ctx, container, key)
		return err
	})
	for _, e := range entries {
		if !e.Sub {
			all = append(all, e)
			continue
		}
		container, key, _ := strings.Cut(e.Path, "/")
		below, err := s.leaves(ctx, container, key, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, err
}
