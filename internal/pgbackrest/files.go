package pgbackrest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"holdfast/internal/tarpart"
)

// repoName is what pgBackRest calls a path of the data directory: see memberPath.
func repoName(path string) string {
	if strings.HasPrefix(path, "pg_tblspc/") {
		return path
	}
	return "pg_data/" + path
}

// objectOf names the object that holds a file, or a part of it, in one of the backups.
func (r *Repository) objectOf(m *Manifest, f *File, reference int, bundle uint32) string {
	if f.mapSize > 0 || bundle != 0 {
		return r.blockObject(m, f.Path, reference, bundle)
	}
	return r.backups() + m.references[reference] + "/" + repoName(f.Path) + m.codec.extension()
}

// Member describes a file as a member of a part is described, without a checksum.
func (f *File) Member() tarpart.Member {
	return tarpart.Member{Path: f.Path, Size: f.Size, Mode: uint32(f.Mode), ModTime: time.Unix(f.Modified, 0).UTC(), CorruptCount: int(f.BadPages)}
}

// Members yields directories and files.
func (m *Manifest) Members() iter.Seq[*tarpart.Member] {
	return func(yield func(*tarpart.Member) bool) {
		for i := range m.Dirs {
			if !yield(&m.Dirs[i]) {
				return
			}
		}
		for i := range m.Files {
			member := m.Files[i].Member()
			if !yield(&member) {
				return
			}
		}
	}
}

// Stored returns how many objects a restore reads, and how many bytes of them.
func (m *Manifest) Stored() (objects int, size int64) {
	type object struct {
		reference uint16
		bundle    uint32
	}
	bundles := map[object]bool{}
	for i := range m.Files {
		f := &m.Files[i]
		if size += f.stored; f.bundle != 0 {
			bundles[object{f.reference, f.bundle}] = true
		} else if f.stored > 0 {
			objects++
		}
	}
	return objects + len(bundles), size
}

// A Batch is what is read at once: a file, or some that lie near each other in a bundle. It asks skip of each member whether to pass it over; skip may
// call same to compare content with what the member must have. It hands the others to put, the content nil for a directory. What put reads to its end
// without an error is as it was backed up; otherwise the error is that of content.
type Batch = func(ctx context.Context, skip func(m *tarpart.Member, same func(content io.Reader) (bool, error)) bool, put func(m *tarpart.Member, content io.Reader) error) error

// batchSize is how many stored bytes of a bundle make a batch.
const batchSize = 16 << 20

// Batches yields all of a backup: directories and empty files first, then files that are stored alone or by blocks, the largest before smaller ones, then bundles.
func (r *Repository) Batches(m *Manifest) iter.Seq[Batch] {
	return func(yield func(Batch) bool) {
		var empty, alone, bundled []int32
		for i := range m.Files {
			switch f := &m.Files[i]; {
			case f.Size == 0:
				empty = append(empty, int32(i))
			case f.bundle == 0 || f.mapSize > 0:
				alone = append(alone, int32(i))
			default:
				bundled = append(bundled, int32(i))
			}
		}
		slices.SortFunc(alone, func(x, y int32) int { return cmp.Or(cmp.Compare(m.Files[y].Size, m.Files[x].Size), cmp.Compare(x, y)) })
		slices.SortFunc(bundled, func(x, y int32) int {
			f, g := &m.Files[x], &m.Files[y]
			return cmp.Or(cmp.Compare(f.reference, g.reference), cmp.Compare(f.bundle, g.bundle), cmp.Compare(f.offset, g.offset), cmp.Compare(x, y))
		})
		if !yield(m.plain(empty)) {
			return
		}
		for _, i := range alone {
			if !yield(r.one(m, &m.Files[i])) {
				return
			}
		}
		for len(bundled) > 0 {
			first := &m.Files[bundled[0]]
			n, end := 1, first.offset+first.stored
			for ; n < len(bundled); n++ {
				f := &m.Files[bundled[n]]
				if f.reference != first.reference || f.bundle != first.bundle || f.offset-end > maxGap || f.offset < end || end-first.offset > batchSize {
					break
				}
				end = f.offset + f.stored
			}
			if !yield(r.several(m, bundled[:n])) {
				return
			}
			bundled = bundled[n:]
		}
	}
}

// plain makes a batch of what has no content.
func (m *Manifest) plain(files []int32) Batch {
	return func(ctx context.Context, skip func(*tarpart.Member, func(io.Reader) (bool, error)) bool, put func(*tarpart.Member, io.Reader) error) error {
		for i := range m.Dirs {
			if err := put(&m.Dirs[i], nil); err != nil {
				return fmt.Errorf("%s: %w", m.Dirs[i].Path, err)
			}
		}
		for _, i := range files {
			member := m.Files[i].Member()
			if skip(&member, m.Files[i].same) {
				continue
			}
			if err := put(&member, bytes.NewReader(nil)); err != nil {
				return fmt.Errorf("%s: %w", member.Path, err)
			}
		}
		return nil
	}
}

// one makes a batch of a file.
func (r *Repository) one(m *Manifest, f *File) Batch {
	return func(ctx context.Context, skip func(*tarpart.Member, func(io.Reader) (bool, error)) bool, put func(*tarpart.Member, io.Reader) error) error {
		member := f.Member()
		if skip(&member, f.same) {
			return nil
		}
		content, err := r.OpenFile(ctx, m, f)
		if err == nil {
			err = errors.Join(put(&member, content), content.Close())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		return nil
	}
}

// several makes a batch of files that lie in one bundle, in their order there.
func (r *Repository) several(m *Manifest, files []int32) Batch {
	return func(ctx context.Context, skip func(*tarpart.Member, func(io.Reader) (bool, error)) bool, put func(*tarpart.Member, io.Reader) error) error {
		wanted := make([]*File, 0, len(files))
		for _, i := range files {
			f := &m.Files[i]
			if member := f.Member(); !skip(&member, f.same) {
				wanted = append(wanted, f)
			}
		}
		if len(wanted) == 0 {
			return nil
		}
		first, last := wanted[0], wanted[len(wanted)-1]
		object := r.objectOf(m, first, int(first.reference), first.bundle)
		body, err := r.open(ctx, object, first.offset, last.offset+last.stored-first.offset)
		if err != nil {
			return damaged(err)
		}
		defer body.Close() // only read
		pos := first.offset
		for _, f := range wanted {
			if _, err := io.CopyN(io.Discard, body, f.offset-pos); err != nil {
				return fmt.Errorf("%s at byte %d: %w", object, pos, damaged(cut(err)))
			}
			part := &io.LimitedReader{R: body, N: f.stored}
			content := r.decoded(m, f, object, part)
			member := f.Member()
			err := errors.Join(put(&member, content), content.Close())
			if err == nil { // what comes behind the content in its codec
				_, err = io.Copy(io.Discard, part)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", f.Path, err)
			}
			pos = f.offset + f.stored
		}
		return nil
	}
}

// OpenFile reads a file of a backup. What is read to its end without an error has the size and the checksum of the manifest. The caller closes it.
func (r *Repository) OpenFile(ctx context.Context, m *Manifest, f *File) (io.ReadCloser, error) {
	if f.Size == 0 {
		return newChecked(io.NopCloser(bytes.NewReader(nil)), f, ""), nil
	}
	object := r.objectOf(m, f, int(f.reference), f.bundle)
	if f.mapSize > 0 {
		in, err := r.openBlocks(ctx, m, f)
		if err != nil {
			return nil, damaged(err)
		}
		return newChecked(in, f, object), nil
	}
	length := int64(-1)
	if f.bundle != 0 {
		length = f.stored
	}
	body, err := r.open(ctx, object, f.offset, length)
	if err != nil {
		return nil, damaged(err)
	}
	c := r.decoded(m, f, object, body)
	c.also = body
	return c, nil
}

// decoded returns the content of a file that src holds.
func (r *Repository) decoded(m *Manifest, f *File, object string, src io.Reader) *checked {
	if m.passphrase != "" {
		src = newDecrypter(src, m.passphrase, f.bundle != 0 && m.raw)
	}
	return newChecked(m.codec.open(src), f, object)
}

// checked compares what is read with what a file must be.
type checked struct {
	in     io.ReadCloser
	also   io.Closer // closed too; nil for nothing
	f      *File
	object string
	sum    hash.Hash
	left   int64
	err    error // stays
}

func newChecked(in io.ReadCloser, f *File, object string) *checked {
	return &checked{in: in, f: f, object: object, sum: sha1.New(), left: f.Size}
}

// Read implements io.Reader.
func (c *checked) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.in.Read(p)
	if int64(n) > c.left {
		err = fmt.Errorf("it has more than the %d bytes that the manifest says: %w", c.f.Size, ErrDamaged)
		n = int(c.left)
	}
	c.left -= int64(n)
	c.sum.Write(p[:n]) // never fails
	switch {
	case err == io.EOF:
		c.err = c.judge()
	case err != nil:
		c.err = fmt.Errorf("%s: %w", c.object, damaged(err))
	}
	return n, c.err
}

// judge says whether all that came is right: io.EOF.
func (c *checked) judge() error {
	if c.left > 0 {
		return fmt.Errorf("%s: it ends %d bytes too early: %w", c.object, c.left, ErrDamaged)
	}
	if got := c.sum.Sum(nil); !bytes.Equal(got, c.f.SHA1[:]) {
		return fmt.Errorf("%s: its content has the SHA-1 %x, the manifest says %x: %w", c.object, got, c.f.SHA1, ErrDamaged)
	}
	return io.EOF
}

// damaged marks what can only come of content that is not what it was: what the decoders say, an early end, an object that is missing.
func damaged(err error) error {
	if errors.As(err, new(*readError)) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", err, ErrDamaged)
}

// A readError is one of the store, which says nothing about content.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// stored is an object, or a stretch of one, as the store gives it.
type stored struct{ io.ReadCloser }

func (s stored) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = &readError{err}
	}
	return n, err
}

// open reads length bytes of an object from offset on; length -1 means to its end.
func (r *Repository) open(ctx context.Context, object string, offset, length int64) (io.ReadCloser, error) {
	body, err := r.store.OpenRange(ctx, object, offset, length)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, &readError{err}
	}
	return stored{body}, nil
}

// Close implements io.Closer.
func (c *checked) Close() error {
	err := c.in.Close()
	if c.also != nil {
		err = errors.Join(err, c.also.Close())
	}
	return err
}

// same reports whether content is that of f.
func (f *File) same(content io.Reader) (bool, error) {
	sum := sha1.New()
	n, err := io.Copy(sum, io.LimitReader(content, f.Size+1))
	return err == nil && n == f.Size && bytes.Equal(sum.Sum(nil), f.SHA1[:]), err
}
