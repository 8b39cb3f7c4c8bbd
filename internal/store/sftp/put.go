package sftp

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/pkg/sftp"

	"holdfast/internal/store"
	"holdfast/internal/store/patience"
	"holdfast/internal/store/unfinished"
)

// The extensions that a put is better for.
const (
	fsyncExt       = "fsync@openssh.com"
	posixRenameExt = "posix-rename@openssh.com"
	hardLinkExt    = "hardlink@openssh.com"
	statVFSExt     = "statvfs@openssh.com"
)

// has reports whether the server offers an extension.
func (c *conn) has(extension string) bool {
	_, ok := c.sftp.HasExtension(extension)
	return ok
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) error {
	return s.put(ctx, name, r, false)
}

// PutIfAbsent implements store.PutIfAbsenter by a hard link. When a connection gets lost after the link was asked for, the next try
// may find its own: fs.ErrExist then is about our own object, so compare contents.
func (s *Store) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return s.put(ctx, name, r, true)
}

func (s *Store) put(ctx context.Context, name string, r io.Reader, ifAbsent bool) error {
	if err := check(ctx, "put", name); err != nil {
		return err
	}
	if ifAbsent { // it is cheaper to know before
		switch _, err := s.Stat(ctx, name); {
		case err == nil:
			return store.Exists(name)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	u := &upload{store: s, ctx: ctx, name: name, ifAbsent: ifAbsent,
		temp: path.Join(path.Dir(name), unfinished.Name(path.Base(name), time.Now()))}
	err := u.send(r)
	if err == nil {
		err = u.publish()
	}
	if err == nil {
		u.drop(false)
		return nil
	}
	u.drop(true)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
		if missing := s.rootMissing(ctx); missing != nil {
			err = missing
		} else {
			err = fmt.Errorf("the temporary file %s is gone", u.temp)
		}
	}
	return errors.Join(s.fail(ctx, "put", name, s.whyFull(ctx, err)), u.discard())
}

// upload is an object that is being put. What the server has not confirmed yet is kept, so that it can be written again over another
// connection. What it has confirmed is read back then, for a server that crashed meanwhile may have forgotten it.
type upload struct {
	store      *Store
	ctx        context.Context
	name, temp string
	ifAbsent   bool
	tries      patience.Tries // since something was confirmed

	conn  *conn // nil without
	file  *sftp.File
	under []*written // what is being written, in its order, without gaps

	begun     bool   // the temporary file was made
	confirmed int64  // bytes
	crc       uint32 // CRC-32C of what is confirmed
	renaming  bool   // the temporary file may have its final name already
	published bool   // it has
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// written is a piece that is being written.
type written struct {
	data []byte
	at   int64
	done chan error
}

// keep makes a step, and makes it again over another connection when one gets lost.
func (u *upload) keep(step func() error) error {
	for {
		var err error
		if u.conn == nil {
			err = u.open()
		}
		if err == nil {
			err = step()
		}
		if err == nil || answered(err) || errors.Is(err, errForgotten) || u.ctx.Err() != nil {
			return err
		}
		u.drop(false)
		if err := u.store.retry.Again(u.ctx, &u.tries, fmt.Sprintf("put %s from byte %d on", u.name, u.confirmed), err); err != nil {
			return err
		}
	}
}

// call makes a call over the connection of the upload.
func (u *upload) call(f func() error) error { return u.conn.call(u.ctx, u.store.o.StallTimeout, f) }

// open makes the temporary file, or opens it again where it was left.
func (u *upload) open() error {
	c, err := u.store.pool.take(u.ctx)
	if err != nil {
		return err
	}
	u.conn = c
	if u.renaming && !u.published { // if it has its name it had been asked for by us
		err := u.call(func() error { _, err := c.sftp.Lstat(u.store.path(u.temp)); return err })
		if u.published = errors.Is(err, fs.ErrNotExist); err != nil && !u.published {
			return err
		}
	}
	name, flags := u.temp, os.O_RDWR
	if u.published {
		name = u.name
	} else if u.confirmed == 0 {
		flags |= os.O_CREATE
	}
	var f *sftp.File
	err = u.call(func() (err error) {
		for range 100 { // a delete that empties the directory may remove it between any two steps
			f, err = c.sftp.OpenFile(u.store.path(name), flags)
			if flags&os.O_CREATE == 0 || !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := u.store.makeDir(c, path.Dir(name)); err != nil {
				return err
			}
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) && u.confirmed > 0 {
		return errForgotten
	}
	if err != nil {
		return err
	}
	u.file, u.begun = f, true
	if err := u.verify(); err != nil {
		return err
	}
	for _, w := range u.under {
		u.write(w)
	}
	return nil
}

// errForgotten is a server that crashed and came back without what it had confirmed.
var errForgotten = errors.New("the server has forgotten what it had confirmed, it has perhaps crashed meanwhile")

// verify reads back what was confirmed over another connection.
func (u *upload) verify() error {
	buf := u.store.piece()
	crc := uint32(0)
	for at := int64(0); at < u.confirmed; {
		var n int
		err := u.call(func() (err error) {
			n, err = readAt(u.file, buf[:min(pieceSize, u.confirmed-at)], at)
			return err
		})
		switch {
		case errors.Is(err, errEnd) && n == 0:
			return errForgotten
		case err != nil && !errors.Is(err, errEnd): // else it is less than was asked for
			return err // the buffer is perhaps still written to
		}
		crc = crc32.Update(crc, castagnoli, buf[:n])
		at += int64(n)
	}
	u.store.pieces.Put(&buf)
	if crc != u.crc {
		return errForgotten
	}
	return nil
}

// makeDir makes dir and what is missing above it, but not the root.
func (s *Store) makeDir(c *conn, dir string) error {
	if dir == "." {
		return fs.ErrNotExist // of the root, as it seems
	}
	var err error
	for range 10 { // a delete that empties a directory may remove it, or one above it, between any two steps
		err = c.sftp.Mkdir(s.path(dir))
		if err == nil || !answered(err) {
			return err
		}
		if errors.Is(err, fs.ErrNotExist) {
			if path.Dir(dir) == "." {
				return err
			}
			if err := s.makeDir(c, path.Dir(dir)); err != nil {
				return err
			}
			continue
		}
		info, statErr := c.sftp.Stat(s.path(dir))
		if statErr == nil && info.IsDir() {
			return nil
		}
		if !errors.Is(statErr, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return err
}

// write begins to write a piece.
func (u *upload) write(w *written) {
	c, f := u.conn, u.file
	w.done = make(chan error, 1)
	go func(done chan error) {
		done <- c.call(u.ctx, u.store.o.StallTimeout, func() error {
			n, err := f.WriteAt(w.data, w.at) // pipelined: after an error there may be holes, but then the file is removed
			if err == nil && n < len(w.data) {
				err = io.ErrShortWrite
			}
			return err
		})
	}(w.done)
}

// confirm waits for the first piece under way.
func (u *upload) confirm() error {
	first := u.under[0]
	if err := <-first.done; err != nil {
		return err
	}
	u.under = u.under[1:]
	u.confirmed += int64(len(first.data))
	u.crc = crc32.Update(u.crc, castagnoli, first.data)
	u.tries.Progress()
	u.store.pieces.Put(new(first.data[:pieceSize]))
	return nil
}

// send writes what r yields, and makes it durable.
func (u *upload) send(r io.Reader) error {
	if err := u.keep(func() error { return nil }); err != nil { // known before r is asked for anything
		return err
	}
	for at, ended := int64(0), false; !ended; {
		buf := u.store.piece()
		n := 0
		for n < len(buf) && !ended {
			if err := u.ctx.Err(); err != nil {
				return err
			}
			m, err := r.Read(buf[n:])
			n += m
			if ended = err == io.EOF; err != nil && !ended {
				return err
			}
		}
		if n > 0 {
			w := &written{data: buf[:n], at: at}
			at += int64(n)
			u.under = append(u.under, w)
			if u.conn != nil {
				u.write(w)
			}
		}
		for len(u.under) >= ahead || ended && len(u.under) > 0 {
			if err := u.keep(u.confirm); err != nil {
				return err
			}
		}
	}
	if err := u.keep(u.sync); err != nil {
		return err
	}
	return u.keep(u.closeUnsynced)
}

// sync makes the file durable, and after it got its name that.
func (u *upload) sync() error {
	if u.conn.has(fsyncExt) {
		return u.conn.sync(u.ctx, u.file)
	}
	if !u.store.warned.Swap(true) {
		u.store.o.Logger.Warn(fmt.Sprintf("SFTP: the server at %s does not offer %s: should it crash, it may lose what it took in the last minutes", u.store.o.Host, fsyncExt))
	}
	return nil
}

// closeUnsynced closes the file where it could not be synced, as some servers tell only then that they could not write.
func (u *upload) closeUnsynced() error {
	if u.conn.has(fsyncExt) || u.file == nil {
		return nil
	}
	err := u.call(u.file.Close)
	if err == nil {
		u.file = nil
	}
	return err
}

// publish gives the temporary file its name.
func (u *upload) publish() error {
	way := u.replace
	if u.ifAbsent {
		way = u.link
	}
	if err := u.keep(way); err != nil {
		return err
	}
	u.published = true
	if u.file == nil {
		return nil
	}
	return u.keep(u.sync)
}

// replace publishes over what may be there.
func (u *upload) replace() error {
	if u.published {
		return nil
	}
	u.renaming = true
	c, from, to := u.conn, u.store.path(u.temp), u.store.path(u.name)
	return u.call(func() error {
		if c.has(posixRenameExt) {
			return c.sftp.PosixRename(from, to)
		}
		err := c.sftp.Rename(from, to)
		if err == nil || !answered(err) || errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := c.sftp.Remove(to); err != nil {
			return err
		}
		return c.sftp.Rename(from, to)
	})
}

// link publishes unless something is there.
func (u *upload) link() error {
	if u.published {
		return nil
	}
	c, from, to := u.conn, u.store.path(u.temp), u.store.path(u.name)
	if c.has(hardLinkExt) && !u.store.noHardLink.Load() {
		err := u.call(func() error {
			err := c.sftp.Link(from, to)
			if err != nil && answered(err) && !errors.Is(err, fs.ErrNotExist) {
				if _, statErr := c.sftp.Lstat(to); statErr == nil {
					return store.Exists(u.name)
				} else if !errors.Is(statErr, fs.ErrNotExist) {
					return statErr
				}
			}
			return err
		})
		switch {
		case err == nil:
			u.published = true
			// Left behind it is another name of the object, which no listing shows and Sweep removes.
			u.call(func() error { return c.sftp.Remove(from) })
			return nil
		case !answered(err) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist):
			return err
		}
		u.store.noHardLink.Store(true)
	}
	u.renaming = true
	return u.call(func() error {
		if _, err := c.sftp.Lstat(to); err == nil {
			return store.Exists(u.name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		err := c.sftp.Rename(from, to)
		if err != nil && answered(err) {
			if _, statErr := c.sftp.Lstat(to); statErr == nil {
				return store.Exists(u.name)
			}
		}
		return err
	})
}

// drop lets go of the connection. It waits for the server to close the file, and free what it took of a disk, only when told to.
func (u *upload) drop(wait bool) {
	if u.conn == nil {
		return
	}
	c, f := u.conn, u.file
	u.conn, u.file = nil, nil
	done := make(chan struct{})
	go func() {
		defer close(done)
		if f != nil {
			c.call(context.WithoutCancel(u.ctx), u.store.o.StallTimeout, f.Close)
		}
		c.release()
	}()
	if wait {
		<-done
	}
}

// discard removes the temporary file, and what it was alone in, even when ctx is done.
func (u *upload) discard() error {
	if !u.begun || u.published {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), min(2*u.store.o.StallTimeout, time.Minute))
	defer cancel()
	err := u.store.fail(ctx, "remove", u.temp, u.store.remove(ctx, u.temp))
	u.store.prune(ctx, path.Dir(u.temp))
	return err
}

// whyFull says of a failure without a reason whether the disk is full.
func (s *Store) whyFull(ctx context.Context, err error) error {
	if !unexplained(err) {
		return err
	}
	var free uint64 = 1 << 30
	s.do(ctx, "look at the file system", func(c *conn) error {
		if !c.has(statVFSExt) {
			return nil
		}
		fs, err := c.sftp.StatVFS(s.o.Root)
		if err == nil {
			free = fs.Frsize * fs.Bavail
		}
		return err
	})
	if free < pieceSize {
		return fmt.Errorf("the file system of %s on %s is full: %w", s.o.Root, s.o.Host, syscall.ENOSPC)
	}
	return err
}
