package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"time"

	"github.com/pkg/sftp"

	"holdfast/internal/store/patience"
)

// A put and a read have up to ahead pieces of pieceSize bytes under way.
const (
	pieceSize = 1 << 20
	ahead     = 2
)

// piece returns a buffer. Who is sure that nobody uses it any more puts it back.
func (s *Store) piece() []byte {
	if b, ok := s.pieces.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, pieceSize)
}

// OpenRange implements store.Store. A body whose connection gets lost is continued over another, as long as the object has the same size
// and time.
func (s *Store) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := check(ctx, "open", name); err != nil {
		return nil, err
	}
	if offset < 0 || length < -1 {
		return nil, fmt.Errorf("open %s from %d for %d bytes: %w", name, offset, length, fs.ErrInvalid)
	}
	b := &body{store: s, ctx: ctx, name: name, at: offset, end: math.MaxInt64}
	if length >= 0 && length < b.end-offset {
		b.end = offset + length
	}
	if err := b.open(); err != nil {
		return nil, s.failMissing(ctx, "open", name, err)
	}
	b.end = min(b.end, b.size)
	b.request()
	return b, nil
}

// body reads an object, over several connections if the first one gets lost.
type body struct {
	store *Store
	ctx   context.Context // of the open, which covers what continues it
	name  string
	size  int64 // of the object at first sight, as its time
	time  time.Time
	at    int64          // offset in the object of what is read next
	end   int64          // where to end
	tries patience.Tries // since the last byte

	conn  *conn // nil without
	file  *sftp.File
	under []*piece // requested, in their order
	next  int64    // offset in the object of what is to be requested next
	now   []byte   // read already
	whole []byte   // what now is the end of
}

// piece is a part of an object that is being read.
type piece struct {
	data []byte
	n    int
	done chan error
}

// open opens the object, over any connection, unless it is there no more.
func (b *body) open() error {
	for {
		c, err := b.store.pool.take(b.ctx)
		if err == nil {
			var f *sftp.File
			var info fs.FileInfo
			err = c.call(b.ctx, b.store.o.StallTimeout, func() (err error) {
				if f, err = c.sftp.Open(b.store.path(b.name)); err != nil {
					return err
				}
				if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() {
					err = fs.ErrNotExist
				}
				if err != nil {
					f.Close() // what else there is to say, err says
				}
				return err
			})
			if err == nil {
				b.conn, b.file, b.next = c, f, b.at
				if b.time.IsZero() {
					b.size, b.time = info.Size(), info.ModTime()
				}
				if info.Size() == b.size && info.ModTime().Equal(b.time) {
					return nil
				}
				b.drop()
				return fmt.Errorf("the object was replaced while it was read")
			}
			c.release()
		}
		if answered(err) || b.ctx.Err() != nil {
			return err
		}
		if err := b.store.retry.Again(b.ctx, &b.tries, "open "+b.name, err); err != nil {
			return err
		}
	}
}

// drop lets go of the file and what was requested of it.
func (b *body) drop() {
	if b.conn == nil {
		return
	}
	c, f := b.conn, b.file
	b.conn, b.file, b.under = nil, nil, nil
	go func() { // waits for what is under way; nobody waits for it
		c.call(context.WithoutCancel(b.ctx), b.store.o.StallTimeout, f.Close)
		c.release()
	}()
}

// request asks for what may be under way and is not.
func (b *body) request() {
	for len(b.under) < ahead && b.next < b.end {
		c, f, at := b.conn, b.file, b.next
		p := &piece{data: b.store.piece()[:min(pieceSize, b.end-at)], done: make(chan error, 1)}
		b.next += int64(len(p.data))
		b.under = append(b.under, p)
		go func() {
			p.done <- c.call(b.ctx, b.store.o.StallTimeout, func() (err error) {
				p.n, err = readAt(f, p.data, at)
				return err
			})
		}()
	}
}

func (b *body) Read(p []byte) (int, error) {
	for {
		if len(b.now) > 0 {
			n := copy(p, b.now)
			if b.now = b.now[n:]; len(b.now) == 0 {
				b.store.pieces.Put(new(b.whole[:pieceSize]))
			}
			return n, nil
		}
		if b.at >= b.end {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		if b.conn == nil {
			if err := b.open(); err != nil {
				return 0, b.store.failMissing(b.ctx, "read", b.name, err)
			}
		}
		b.request()
		if err := b.receive(); err != nil {
			return 0, b.store.fail(b.ctx, "read", b.name, err)
		}
	}
}

// receive waits for the first piece under way. When the connection is lost there is none in the end.
func (b *body) receive() error {
	first := b.under[0]
	err := <-first.done
	if b.ctx.Err() != nil {
		return b.ctx.Err() // first is perhaps still written to
	}
	whole := err == nil || errors.Is(err, errEnd)
	switch {
	case whole && first.n > 0:
		b.tries.Progress()
		b.under = b.under[1:]
		b.whole, b.now, b.at = first.data, first.data[:first.n], b.at+int64(first.n)
		if first.n < len(first.data) { // servers may give less than asked for: what follows has to be asked for anew
			b.under, b.next = nil, b.at
		}
		b.request()
		return nil
	case whole:
		err = fmt.Errorf("the object ends at byte %d, and had %d: %w", b.at, b.size, io.ErrUnexpectedEOF)
	case answered(err):
		return err
	}
	b.drop()
	return b.store.retry.Again(b.ctx, &b.tries, fmt.Sprintf("read %s from byte %d on", b.name, b.at), err)
}

// Close ends the reading.
func (b *body) Close() error {
	b.drop()
	b.at = b.end
	return nil
}
