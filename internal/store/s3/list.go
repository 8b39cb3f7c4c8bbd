package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"holdfast/internal/store"
)

// List implements store.Store.
func (s *Store) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return s.list(ctx, dir, after, aws.String("/"))
}

// Walk implements store.Walker, by a flat listing.
func (s *Store) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return s.list(ctx, dir, "", nil)
}

func (s *Store) list(ctx context.Context, dir, after string, delimiter *string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := store.CheckDir(dir); err != nil {
			yield(store.Object{}, fmt.Errorf("list: %w", err))
			return
		}
		c, err := s.api(ctx)
		if err != nil {
			yield(store.Object{}, err)
			return
		}
		from := request{prefix: s.key(dir), delimiter: delimiter}
		if after > dir {
			from.after = s.key(after)
		}
		last := ""
		for more := true; more; {
			var p page
			if s.o.ListV1 {
				p, err = s.pageV1(ctx, c, from)
			} else {
				p, err = s.pageV2(ctx, c, from)
			}
			if err != nil {
				yield(store.Object{}, s.fail("list", cmp.Or(dir, "/"), err))
				return
			}
			s.bucketSeen.Store(true)
			for i, o := range s.entries(p) {
				if i == 0 && o.Name < last {
					yield(store.Object{}, s.fail("list", cmp.Or(dir, "/"), fmt.Errorf("the service does not list in the order of names: %s comes after %s", o.Name, last)))
					return
				}
				// A directory whose name is after is there again, for there are objects in it that come later.
				if o.Name > max(after, last) && !yield(o, nil) {
					return
				}
				last = o.Name
			}
			from, more = p.next, p.more
		}
	}
}

// request asks for one page of a listing.
type request struct {
	prefix, delimiter, after *string
	token                    *string // V2 only
}

// page is one answer.
type page struct {
	objects  []types.Object
	prefixes []types.CommonPrefix
	next     request
	more     bool
}

func (s *Store) pageV2(ctx context.Context, c *s3.Client, r request) (page, error) {
	out, err := c.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.o.Bucket, Prefix: r.prefix, Delimiter: r.delimiter, StartAfter: r.after, ContinuationToken: r.token})
	if err != nil {
		return page{}, err
	}
	p := page{objects: out.Contents, prefixes: out.CommonPrefixes, next: r, more: aws.ToBool(out.IsTruncated)}
	p.next.token = out.NextContinuationToken
	if next := aws.ToString(p.next.token); p.more && (next == "" || next == aws.ToString(r.token)) {
		return page{}, fmt.Errorf("the service says that there is more, but not how to go on")
	}
	return p, nil
}

func (s *Store) pageV1(ctx context.Context, c *s3.Client, r request) (page, error) {
	out, err := c.ListObjects(ctx, &s3.ListObjectsInput{Bucket: &s.o.Bucket, Prefix: r.prefix, Delimiter: r.delimiter, Marker: r.after})
	if err != nil {
		return page{}, err
	}
	p := page{objects: out.Contents, prefixes: out.CommonPrefixes, next: r, more: aws.ToBool(out.IsTruncated)}
	last := aws.ToString(out.NextMarker) // given only where there is a delimiter
	for _, o := range out.Contents {
		last = max(last, aws.ToString(o.Key))
	}
	for _, d := range out.CommonPrefixes {
		last = max(last, aws.ToString(d.Prefix))
	}
	p.next.after = &last
	if p.more && last <= aws.ToString(r.after) {
		return page{}, fmt.Errorf("the service says that there is more, but not how to go on")
	}
	return p, nil
}

// entries returns what is on a page, in the order of names. Keys that are no names, such as the "dir/" that consoles make to
// show a directory, are left out.
func (s *Store) entries(p page) []store.Object {
	entries := make([]store.Object, 0, len(p.objects)+len(p.prefixes))
	root := len(*s.key(""))
	for _, o := range p.objects {
		if name := aws.ToString(o.Key); len(name) > root && store.CheckName(name[root:]) == nil {
			entries = append(entries, store.Object{Name: name[root:], Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified), Frozen: frozen(string(o.StorageClass))})
		}
	}
	for _, d := range p.prefixes {
		if name := aws.ToString(d.Prefix); len(name) > root && store.CheckDir(name[root:]) == nil {
			entries = append(entries, store.Object{Name: name[root:]})
		}
	}
	slices.SortFunc(entries, func(a, b store.Object) int { return strings.Compare(a.Name, b.Name) })
	return entries
}

// frozen returns a storage class whose objects must be thawed before they can be read, "" for any other. GLACIER_IR is read at once.
func frozen(class string) string {
	if class == string(types.StorageClassGlacier) || class == string(types.StorageClassDeepArchive) {
		return class
	}
	return ""
}

// staleAfter is the age from which an unfinished upload is taken for one whose writer is gone.
const staleAfter = 7 * 24 * time.Hour

// Sweep implements store.Sweeper: it removes the parts of puts that were begun a week ago and neither finished nor failed.
// Services charge for such parts. Without a prefix those of the whole bucket are meant.
func (s *Store) Sweep(ctx context.Context) (removed []string, err error) {
	return s.sweep(ctx, time.Now().Add(-staleAfter))
}

func (s *Store) sweep(ctx context.Context, stale time.Time) (removed []string, err error) {
	c, err := s.api(ctx)
	if err != nil {
		return nil, err
	}
	prefix := s.key("")
	pages := s3.NewListMultipartUploadsPaginator(c, &s3.ListMultipartUploadsInput{Bucket: &s.o.Bucket, Prefix: prefix})
	for pages.HasMorePages() {
		p, err := pages.NextPage(ctx)
		if err != nil {
			if err = s.fail("list", "unfinished uploads", err); errors.Is(err, errors.ErrUnsupported) {
				return removed, nil
			}
			return removed, err
		}
		for _, found := range p.Uploads {
			name, ours := strings.CutPrefix(aws.ToString(found.Key), *prefix)
			if !ours || found.Initiated == nil || found.Initiated.After(stale) {
				continue
			}
			if err := (&upload{store: s, client: c, name: name, id: found.UploadId}).abort(ctx); err != nil {
				return removed, err
			}
			removed = append(removed, name)
		}
	}
	return removed, nil
}
