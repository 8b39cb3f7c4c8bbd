package gcs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/api/storage/v1"

	"holdfast/internal/store"
)

// List implements store.Store.
func (s *Store) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return s.list(ctx, dir, after, "/", false)
}

// Walk implements store.Walker, by a flat listing.
func (s *Store) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return s.list(ctx, dir, "", "", false)
}

// leftover reports whether an object or directory of that name is of an unfinished put of WAL-G.
func leftover(name string) bool { return strings.Contains(name, "_chunks/") }

// list yields what lies below dir, with the leftovers of WAL-G instead of everything else where those are asked for.
func (s *Store) list(ctx context.Context, dir, after, delimiter string, leftovers bool) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := store.CheckDir(dir); err != nil {
			yield(store.Object{}, fmt.Errorf("list: %w", err))
			return
		}
		for token := ""; ; {
			var page []store.Object
			err := s.do(ctx, "list", cmp.Or(dir, "/"), func(ctx context.Context, p *place) error {
				call := p.api.Objects.List(s.o.Bucket).Prefix(p.root + dir).Delimiter(delimiter).PageToken(token).
					Fields("nextPageToken,prefixes,items(name,size,timeCreated)").Context(ctx)
				if after > dir {
					call.StartOffset(p.root + after)
				}
				got, err := call.Do()
				if err == nil {
					page, token = entries(p, got), got.NextPageToken
				}
				return err
			})
			if err != nil {
				yield(store.Object{}, err)
				return
			}
			for _, o := range page {
				// A directory whose name is after is there again, for there are objects in it that come later.
				if o.Name > after && leftover(o.Name) == leftovers && !yield(o, nil) {
					return
				}
			}
			if token == "" {
				return
			}
		}
	}
}

// entries returns what is on a page, in the order of names. Keys that are no names, such as the "dir/" that consoles make to show
// a directory, are left out.
func entries(p *place, page *storage.Objects) []store.Object {
	found := make([]store.Object, 0, len(page.Items)+len(page.Prefixes))
	for _, o := range page.Items {
		if name, ok := strings.CutPrefix(o.Name, p.root); ok && store.CheckName(name) == nil {
			found = append(found, object(name, o))
		}
	}
	for _, d := range page.Prefixes {
		if name, ok := strings.CutPrefix(d, p.root); ok && name != "" && store.CheckDir(name) == nil {
			found = append(found, store.Object{Name: name})
		}
	}
	slices.SortFunc(found, func(a, b store.Object) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// staleAfter is the age from which a leftover is taken for one whose writer is gone.
const staleAfter = 7 * 24 * time.Hour

// leftoverName is what WAL-G calls the pieces of an object while it puts them together.
var leftoverName = regexp.MustCompile(`_chunks/(chunk|composite)[0-9]+$`)

// Sweep implements store.Sweeper: it removes the pieces of objects that a WAL-G put up a week ago and neither put together nor
// removed. What we leave unfinished ourselves no listing shows, and the service removes it after a week.
func (s *Store) Sweep(ctx context.Context) (removed []string, err error) {
	return s.sweep(ctx, time.Now().Add(-staleAfter))
}

func (s *Store) sweep(ctx context.Context, stale time.Time) (removed []string, err error) {
	var errs []error
	for o, err := range s.list(ctx, "", "", "", true) {
		if err != nil {
			return removed, errors.Join(append(errs, err)...)
		}
		if o.Modified.IsZero() || o.Modified.After(stale) || !leftoverName.MatchString(o.Name) {
			continue
		}
		if err := s.Delete(ctx, o.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, o.Name)
	}
	return removed, errors.Join(errs...)
}
