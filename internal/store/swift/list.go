package swift

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ncw/swift/v2"

	"holdfast/internal/store"
)

// pageSize is how many entries of a listing are asked for at once.
const pageSize = 1000

// List implements store.Store.
func (s *Store) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return s.list(ctx, dir, after, '/')
}

// Walk implements store.Walker, by a flat listing.
func (s *Store) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return s.list(ctx, dir, "", 0)
}

// list goes on until a page is empty: some services answer with fewer entries than were asked for though there are more.
func (s *Store) list(ctx context.Context, dir, after string, delimiter rune) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := store.CheckDir(dir); err != nil {
			yield(store.Object{}, fmt.Errorf("list: %w", err))
			return
		}
		for marker := ""; ; {
			var page []swift.Object
			err := s.do(ctx, "list", cmp.Or(dir, "/"), func(ctx context.Context) (err error) {
				opts := &swift.ObjectsOpts{Prefix: s.key(dir), Delimiter: delimiter, Marker: marker, Limit: pageSize}
				if marker == "" && after > dir {
					opts.Marker = s.key(after)
				}
				page, err = s.conn.Objects(ctx, s.o.Container, opts)
				if code(err) == 404 {
					return errNoContainer
				}
				return err
			})
			if err != nil {
				yield(store.Object{}, err)
				return
			}
			if len(page) == 0 {
				return
			}
			s.containerSeen.Store(true)
			last := page[len(page)-1].Name
			if last <= marker {
				yield(store.Object{}, s.fail("list", cmp.Or(dir, "/"), errors.New("the service does not go on with its listing")))
				return
			}
			marker = last
			for _, o := range s.entries(page) {
				// A directory whose name is after is there again, for there are objects in it that come later.
				if o.Name > after && !yield(o, nil) {
					return
				}
			}
		}
	}
}

// entries returns what is on a page, in the order of names. Keys that are no names, such as the "dir/" that consoles make to show
// a directory, are left out.
func (s *Store) entries(page []swift.Object) []store.Object {
	found := make([]store.Object, 0, len(page))
	root := *s.root.Load()
	for _, o := range page {
		name, ok := strings.CutPrefix(o.Name, root)
		switch {
		case !ok:
		case o.PseudoDirectory && name != "" && store.CheckDir(name) == nil:
			found = append(found, store.Object{Name: name})
		case !o.PseudoDirectory && store.CheckName(name) == nil:
			found = append(found, store.Object{Name: name, Size: o.Bytes, Modified: o.LastModified})
		}
	}
	slices.SortFunc(found, func(a, b store.Object) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// staleAfter is the age from which segments that no object has are taken for those of a writer that is gone.
const staleAfter = 7 * 24 * time.Hour

// Sweep implements store.Sweeper: it removes the segments that were put a week ago and are of no object.
func (s *Store) Sweep(ctx context.Context) (removed []string, err error) {
	return s.sweep(ctx, time.Now().Add(-staleAfter))
}

func (s *Store) sweep(ctx context.Context, stale time.Time) (removed []string, err error) {
	if any, err := s.anySegments(ctx); err != nil || !any {
		return nil, s.fail("list", "segments", err)
	}
	keys, err := s.segmentKeys(ctx, s.segmentRoot())
	if err != nil {
		return nil, s.fail("list", "segments", err)
	}
	var errs []error
	for len(keys) > 0 {
		m := segmentKey.FindStringSubmatch(keys[0])
		if m == nil {
			keys = keys[1:]
			continue
		}
		n := slices.IndexFunc(keys, func(key string) bool { return !strings.HasPrefix(key, m[1]) }) // they come in order
		if n < 0 {
			n = len(keys)
		}
		of := keys[:n]
		keys = keys[n:]
		began, err := strconv.ParseInt(m[3], 10, 64)
		name := strings.TrimPrefix(m[2], s.segmentRoot())
		if err != nil || !time.Unix(began, 0).Before(stale) || store.CheckName(name) != nil {
			continue
		}
		there, err := s.segmentsOf(ctx, "sweep", name)
		if err == nil && there != upload(m[1]) {
			if err = s.fail("delete the segments of", name, s.removeKeys(ctx, of)); err == nil {
				removed = append(removed, of...)
			}
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}
