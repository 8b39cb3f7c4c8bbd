package sftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"

	"holdfast/internal/store"
	"holdfast/internal/store/unfinished"
)

// List implements store.Store. It holds what lies in one directory in memory, about 300 bytes a name. A symbolic link that cannot be
// followed is an error, for without what lies behind it the listing would be false.
func (s *Store) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := store.CheckDir(dir); err != nil {
			yield(store.Object{}, fmt.Errorf("list: %w", err))
			return
		}
		objects, err := s.list(ctx, dir, after)
		if err != nil {
			yield(store.Object{}, s.fail(ctx, "list", cmp.Or(dir, "/"), err))
			return
		}
		for _, o := range objects {
			if err := ctx.Err(); err != nil {
				yield(store.Object{}, s.fail(ctx, "list", cmp.Or(dir, "/"), err))
				return
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

// list returns the objects and directories in dir whose names are greater than after, in their order.
func (s *Store) list(ctx context.Context, dir, after string) ([]store.Object, error) {
	entries, err := s.readDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	objects := make([]store.Object, 0, len(entries))
	for _, e := range entries {
		o := store.Object{Name: dir + e.Name()}
		if _, temp := unfinished.Since(e.Name()); temp || store.CheckName(o.Name) != nil || o.Name == "lost+found" {
			continue
		}
		if e.Mode()&fs.ModeSymlink != 0 {
			if e, err = s.follow(ctx, o.Name); err != nil {
				return nil, err
			}
		}
		switch {
		case e.IsDir():
			o.Name += "/"
		case e.Mode().IsRegular():
			o.Size, o.Modified = e.Size(), e.ModTime()
		default:
			continue
		}
		if o.Name > after {
			objects = append(objects, o)
		}
	}
	slices.SortFunc(objects, func(a, b store.Object) int { return strings.Compare(a.Name, b.Name) })
	return objects, nil
}

// follow returns what a symbolic link leads to. One that leads nowhere is no missing object.
func (s *Store) follow(ctx context.Context, name string) (info fs.FileInfo, err error) {
	err = s.do(ctx, "stat "+name, func(c *conn) (err error) {
		info, err = c.sftp.Stat(s.path(name))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("the symbolic link %s leads nowhere", path.Base(name))
	}
	return info, err
}

// readDir reads a directory. There is nothing in one that does not exist, but the root has to.
func (s *Store) readDir(ctx context.Context, dir string) (entries []fs.FileInfo, err error) {
	err = s.do(ctx, "list "+cmp.Or(dir, "/"), func(c *conn) (err error) {
		entries, err = c.sftp.ReadDirContext(ctx, s.path(dir))
		return err
	})
	if s.gone(ctx, dir+"entry", err) {
		return nil, s.rootMissing(ctx)
	}
	return entries, err
}
