package crypt

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
)

var (
	errClosed   = errors.New("crypt: read after close")
	errSource   = errors.New("crypt: the source failed") // stands for the source's error inside libraries
	errHeader   = errors.New("longer than any header should be")
	errTrailing = errors.New("there is more behind the end of what is encrypted")
)

// A watch passes src on and remembers how it failed. To what reads from it, any failure is errSource: several libraries take
// a source's io.ErrUnexpectedEOF for its end, and would make a whole object of half a one.
type watch struct {
	src  io.Reader
	err  error // of src, not io.EOF
	left int64 // bytes that may still be read; negative: any number
}

// limit lets n bytes more be read, or any number if n is negative. Headers are read with a limit, for libraries keep all of
// them.
func (w *watch) limit(n int64) { w.left = n }

func (w *watch) Read(p []byte) (int, error) {
	if w.err != nil {
		return 0, errSource
	}
	if w.left >= 0 {
		if p = p[:min(int64(len(p)), w.left)]; len(p) == 0 {
			return 0, errHeader
		}
	}
	n, err := w.src.Read(p)
	if w.left >= 0 {
		w.left -= int64(n)
	}
	if err != nil && err != io.EOF {
		w.err, err = err, errSource
	}
	return n, err
}

// A stream is one direction of a Key at work: it opens what it reads from when it is first read, and keeps its error.
type stream struct {
	src  watch
	open func(src *watch) (io.ReadCloser, error) // its errors and those of what it returns are not io.EOF before the end
	r    io.ReadCloser                           // nil before the first read and after the end
	err  error
}

func newStream(src io.Reader, open func(*watch) (io.ReadCloser, error)) *stream {
	return &stream{src: watch{src: src, left: -1}, open: open}
}

// start opens the stream unless that has been done. It reports whether there is something to read from.
func (s *stream) start() bool {
	if s.err == nil && s.r == nil {
		r, err := s.open(&s.src)
		if s.r = r; err != nil {
			s.stop(err)
		}
	}
	return s.err == nil
}

// stop makes err what every further call returns; if the source has failed, its error.
func (s *stream) stop(err error) {
	if s.src.err != nil && err != errClosed {
		err = s.src.err
	}
	s.err = err
	if s.r != nil {
		s.r.Close()
		s.r = nil
	}
	s.src.src = nil
}

func (s *stream) Read(p []byte) (n int, err error) {
	if len(p) == 0 || !s.start() {
		return 0, s.err
	}
	if n, err = s.r.Read(p); err != nil {
		s.stop(err)
	}
	return n, s.err
}

// copyBuffers are what streams without a buffer to write from are copied through.
var copyBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// WriteTo implements io.WriterTo.
func (s *stream) WriteTo(dst io.Writer) (n int64, err error) {
	if !s.start() {
		return 0, notEOF(s.err)
	}
	if r, ok := s.r.(io.WriterTo); ok {
		n, err = r.WriteTo(dst)
	} else {
		b := copyBuffers.Get().(*[128 << 10]byte)
		n, err = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{s.r}, b[:])
		copyBuffers.Put(b)
	}
	if err == nil {
		err = io.EOF
	}
	s.stop(err)
	return n, notEOF(s.err)
}

func (s *stream) Close() error {
	s.stop(errClosed)
	return nil
}

// notEOF returns err, or nil for io.EOF.
func notEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// chunks reads what next makes, without another buffer. next returns a chunk that is valid until it is called again, and may
// return an error with it; it is not called after that.
type chunks struct {
	next func() ([]byte, error)
	free func()
	rest []byte
	err  error
}

func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		c.rest, c.err = c.next()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// WriteTo implements io.WriterTo.
func (c *chunks) WriteTo(dst io.Writer) (n int64, err error) {
	for {
		for len(c.rest) > 0 {
			k, err := dst.Write(c.rest)
			c.rest = c.rest[k:]
			n += int64(k)
			if err != nil {
				return n, err
			}
		}
		if c.err != nil {
			return n, notEOF(c.err)
		}
		c.rest, c.err = c.next()
	}
}

// Close gives the buffers back; the stream above sees to it that nothing is read afterwards.
func (c *chunks) Close() error {
	c.free()
	return nil
}

// fill reads from src until p is full. It returns less only together with an error: io.EOF where src ended.
func fill(src io.Reader, p []byte) (n int, err error) {
	for idle := 0; n < len(p) && err == nil; {
		var k int
		k, err = src.Read(p[n:])
		n += k
		if k > 0 {
			idle = 0
		} else if idle++; idle == 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	if n == len(p) && err == io.EOF {
		err = nil // src says it again
	}
	return n, err
}

// lookAhead is how much of an object is looked at before it is read, unless there is a key of KMS: enough for the first
// chunk of libsodium.
const lookAhead = 16 << 10

// inputs are what cipher text is read through.
var inputs = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, lookAhead) }}

// newInput returns a reader of src that can look at least n bytes ahead.
func newInput(src io.Reader, n int) *bufio.Reader {
	in := inputs.Get().(*bufio.Reader)
	if in.Size() < n {
		in = bufio.NewReaderSize(nil, n)
	}
	in.Reset(src)
	return in
}

// An object is encrypted text being decrypted. It is whole when both the plain text and the source have come to their ends.
type object struct {
	kind  Kind
	in    *bufio.Reader
	plain io.ReadCloser
}

func (o *object) Read(p []byte) (int, error) {
	n, err := o.plain.Read(p)
	return n, o.judge(err)
}

// judge says of what an error is.
func (o *object) judge(err error) error {
	switch {
	case err == nil:
		return nil
	case err == io.EOF:
		if _, err := o.in.ReadByte(); err == nil {
			return fmt.Errorf("decrypt %s: %w", o.kind, errTrailing)
		} else if err != io.EOF {
			return err
		}
		return io.EOF
	}
	return fmt.Errorf("decrypt %s: %w", o.kind, err)
}

func (o *object) Close() error {
	if o.plain != nil {
		o.plain.Close()
	}
	o.in.Reset(nil)
	inputs.Put(o.in)
	return nil
}
