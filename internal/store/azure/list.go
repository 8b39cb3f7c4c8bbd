package azure

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/store"
)

// List implements store.Store. The service has no way to begin a listing behind a name: what comes before after is listed too, and
// left out here.
func (s *Store) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return s.list(ctx, dir, after, func(prefix string) func() (page, bool, error) {
		pages := s.client.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: &prefix, MaxResults: s.pageSize})
		return func() (page, bool, error) {
			out, err := pages.NextPage(ctx)
			if err != nil || out.Segment == nil {
				return page{}, false, err
			}
			return page{out.Segment.BlobItems, out.Segment.BlobPrefixes}, pages.More(), nil
		}
	})
}

// Walk implements store.Walker, by a flat listing.
func (s *Store) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return s.list(ctx, dir, "", func(prefix string) func() (page, bool, error) {
		pages := s.client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, MaxResults: s.pageSize})
		return func() (page, bool, error) {
			out, err := pages.NextPage(ctx)
			if err != nil || out.Segment == nil {
				return page{}, false, err
			}
			return page{blobs: out.Segment.BlobItems}, pages.More(), nil
		}
	})
}

// page is one answer.
type page struct {
	blobs    []*container.BlobItem
	prefixes []*container.BlobPrefix
}

func (s *Store) list(ctx context.Context, dir, after string, begin func(prefix string) func() (page, bool, error)) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := store.CheckDir(dir); err != nil {
			yield(store.Object{}, fmt.Errorf("list: %w", err))
			return
		}
		next := begin(s.blobName(dir))
		for more := true; more; {
			var p page
			var err error
			if p, more, err = next(); err != nil {
				yield(store.Object{}, s.fail(ctx, "list", cmp.Or(dir, "/"), err))
				return
			}
			for _, o := range s.entries(p) {
				if o.Name > after && !yield(o, nil) {
					return
				}
			}
		}
	}
}

// entries returns what is on a page, in the order of names. Blobs that are no objects are left out: those that stand for a directory,
// and those whose names are no names here.
func (s *Store) entries(p page) []store.Object {
	entries := make([]store.Object, 0, len(p.blobs)+len(p.prefixes))
	root := len(s.blobName(""))
	for _, b := range p.blobs {
		name := value(b.Name)
		if b.Properties == nil || value(b.Properties.ResourceType) == "directory" || len(name) <= root || store.CheckName(name[root:]) != nil {
			continue
		}
		entries = append(entries, store.Object{Name: name[root:], Size: value(b.Properties.ContentLength), Modified: value(b.Properties.LastModified)})
	}
	for _, d := range p.prefixes {
		if name := value(d.Name); len(name) > root && store.CheckDir(name[root:]) == nil {
			entries = append(entries, store.Object{Name: name[root:]})
		}
	}
	slices.SortFunc(entries, func(a, b store.Object) int { return strings.Compare(a.Name, b.Name) })
	return entries
}
