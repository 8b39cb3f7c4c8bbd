package compress

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/pierrec/lz4/v4"
)

// lz4Block is the block size of the lz4 frames we write. WAL-G's is 4 MiB: as small, but slower.
const lz4Block = lz4.Block1Mb

var errLZ4 = errors.New("corrupt lz4 data")

// An lz4Writer yields one lz4 frame of independent blocks with a checksum of the content.
type lz4Writer struct {
	src  io.Reader
	buf  *lz4Buffer // nil after the end
	read int        // bytes of buf.out that have been read
	end  bool       // the frame is whole in buf.out
	err  error      // stays
}

// An lz4Buffer is what an lz4Writer needs and another one can use again.
type lz4Buffer struct {
	in  []byte // one block of content
	out queue
	enc *lz4.Writer // into out
}

// A queue takes what the encoder's goroutines write.
type queue struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (q *queue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.b.Write(p)
}

var lz4Buffers = sync.Pool{New: func() any {
	b := &lz4Buffer{in: make([]byte, lz4Block)}
	b.enc = lz4.NewWriter(&b.out)
	return b
}}

func compressLZ4(src io.Reader, o Options) *lz4Writer {
	w := &lz4Writer{src: src, buf: lz4Buffers.Get().(*lz4Buffer)}
	w.buf.out.b.Reset()
	w.buf.enc.Reset(&w.buf.out)
	w.err = w.buf.enc.Apply(lz4.BlockSizeOption(lz4Block), lz4.ChecksumOption(true), lz4.ConcurrencyOption(max(o.Parallel, 1)))
	return w
}

// next brings more of the frame into buf.out.
func (w *lz4Writer) next() error {
	if w.end {
		return io.EOF
	}
	n, err := fill(w.src, w.buf.in)
	if err != nil && err != io.EOF {
		return err
	}
	if _, err := w.buf.enc.Write(w.buf.in[:n]); err != nil {
		return err
	}
	if err == io.EOF {
		w.end = true
		return w.buf.enc.Close()
	}
	return nil
}

// stop makes err what every further call returns.
func (w *lz4Writer) stop(err error) {
	w.err = err
	if w.buf == nil {
		return
	}
	if !w.end {
		w.buf.enc.Close() // ends the goroutines; what they wrote is of no use
	}
	lz4Buffers.Put(w.buf)
	w.buf = nil
}

// take calls f with what is in buf.out, once that is something.
func (w *lz4Writer) take(f func(*bytes.Buffer) error) error {
	for w.err == nil {
		w.buf.out.mu.Lock()
		if w.buf.out.b.Len() > 0 {
			defer w.buf.out.mu.Unlock()
			return f(&w.buf.out.b)
		}
		w.buf.out.mu.Unlock()
		if err := w.next(); err != nil {
			w.stop(err)
		}
	}
	return w.err
}

func (w *lz4Writer) Read(p []byte) (n int, err error) {
	err = w.take(func(b *bytes.Buffer) error {
		n, err = b.Read(p)
		return err
	})
	return n, err
}

// WriteTo implements io.WriterTo.
func (w *lz4Writer) WriteTo(dst io.Writer) (n int64, err error) {
	for err == nil {
		err = w.take(func(b *bytes.Buffer) error {
			k, err := b.WriteTo(dst)
			n += k
			return err
		})
	}
	if err == io.EOF && w.err == io.EOF {
		err = nil
	}
	return n, err
}

func (w *lz4Writer) Close() error {
	w.stop(errClosed)
	return nil
}

// An lz4Reader yields the content of lz4 frames.
type lz4Reader struct {
	src watch
	dec *lz4Decoder // nil after the end
	err error       // stays
}

// An lz4Decoder is what an lz4Reader needs and another one can use again.
type lz4Decoder struct {
	in  *bufio.Reader // the decoder reads four bytes between blocks
	dec *lz4.Reader
}

var lz4Decoders = sync.Pool{New: func() any {
	in := bufio.NewReaderSize(nil, 128<<10)
	return &lz4Decoder{in: in, dec: lz4.NewReader(in)}
}}

func decompressLZ4(src io.Reader) *lz4Reader {
	z := &lz4Reader{src: watch{src: src}, dec: lz4Decoders.Get().(*lz4Decoder)}
	z.dec.in.Reset(&z.src)
	z.dec.dec.Reset(z.dec.in)
	return z
}

// stop makes err what every further call returns.
func (z *lz4Reader) stop(err error) {
	z.err = err
	if z.dec != nil {
		z.dec.in.Reset(nil)
		z.dec.dec.Reset(nil)
		lz4Decoders.Put(z.dec)
		z.dec = nil
	}
}

func (z *lz4Reader) Read(p []byte) (n int, err error) {
	if z.err != nil || len(p) == 0 {
		return 0, z.err
	}
	if n, err = z.dec.dec.Read(p); err != nil {
		z.stop(z.src.judge(err, errLZ4))
	}
	return n, z.err
}

// WriteTo implements io.WriterTo.
func (z *lz4Reader) WriteTo(dst io.Writer) (n int64, err error) {
	if z.err == nil {
		to := &sink{w: dst}
		n, err = z.dec.dec.WriteTo(to)
		switch {
		case to.err != nil:
			return n, to.err
		case err == nil:
			err = io.EOF
		}
		z.stop(z.src.judge(err, errLZ4))
	}
	if z.err == io.EOF {
		return n, nil
	}
	return n, z.err
}

func (z *lz4Reader) Close() error {
	z.stop(errClosed)
	return nil
}
