package compress

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/ulikunitz/xz/lzma"
)

// brotliQuality and lzmaWindow are WAL-G's.
const (
	brotliQuality = 3
	lzmaWindow    = 8 << 20
)

// An encoderStream yields what an encoder that must be written to makes of src.
type encoderStream struct {
	src  io.Reader
	enc  io.WriteCloser // into out; nil after the end
	in   []byte         // content on its way
	out  *bytes.Buffer
	done func()
	err  error // stays
}

// A brotliEncoder is what a stream needs and another one can use again.
type brotliEncoder struct {
	in  []byte
	out bytes.Buffer
	enc *brotli.Writer
}

var brotliEncoders = sync.Pool{New: func() any {
	e := &brotliEncoder{in: make([]byte, FrameSize)}
	e.enc = brotli.NewWriterLevel(&e.out, brotliQuality)
	return e
}}

func compressBrotli(src io.Reader) *encoderStream {
	e := brotliEncoders.Get().(*brotliEncoder)
	e.out.Reset()
	e.enc.Reset(&e.out)
	return &encoderStream{src: src, enc: e.enc, in: e.in, out: &e.out, done: func() { brotliEncoders.Put(e) }}
}

// compressLZMA writes the format of lzma_alone: no size in the header, and a marker at the end.
func compressLZMA(src io.Reader) *encoderStream {
	out := new(bytes.Buffer)
	enc, err := lzma.WriterConfig{DictCap: lzmaWindow, EOSMarker: true}.NewWriter(out)
	if err != nil {
		return &encoderStream{err: err}
	}
	return &encoderStream{src: src, enc: enc, in: make([]byte, FrameSize), out: out, done: func() {}}
}

// next brings more of the stream into out, which has been read. After an error it may not be called again.
func (s *encoderStream) next() error {
	for s.out.Reset(); s.out.Len() == 0; {
		if s.enc == nil {
			return io.EOF
		}
		n, err := fill(s.src, s.in)
		if err != nil && err != io.EOF {
			return err
		}
		if _, err := s.enc.Write(s.in[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			err := s.enc.Close()
			s.enc = nil
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// stop makes err what every further call returns.
func (s *encoderStream) stop(err error) {
	s.err = err
	if s.done != nil {
		s.done()
		s.enc, s.in, s.out, s.done = nil, nil, nil, nil
	}
}

func (s *encoderStream) Read(p []byte) (int, error) {
	for s.err == nil {
		if s.out.Len() > 0 {
			return s.out.Read(p)
		}
		if err := s.next(); err != nil {
			s.stop(err)
		}
	}
	return 0, s.err
}

// WriteTo implements io.WriterTo.
func (s *encoderStream) WriteTo(dst io.Writer) (n int64, err error) {
	for s.err == nil {
		k, err := s.out.WriteTo(dst)
		n += k
		if err != nil {
			return n, err
		}
		if err := s.next(); err != nil {
			s.stop(err)
		}
	}
	if s.err != io.EOF {
		err = s.err
	}
	return n, err
}

func (s *encoderStream) Close() error {
	s.stop(errClosed)
	return nil
}

// A decoderStream yields what a decoder makes of a stream whose format says where it ends. Behind that nothing may come.
type decoderStream struct {
	src  watch
	in   *bufio.Reader // what the decoder reads; nil after the end
	open func(*bufio.Reader) (io.Reader, error)
	dec  io.Reader // nil before the first read
	bad  error     // what damage is called
	done func()
	err  error // stays
}

var (
	errBrotli = errors.New("corrupt brotli data")
	errLZMA   = errors.New("corrupt lzma data")
	errGzip   = errors.New("corrupt gzip data")
)

var decoderInputs = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 128<<10) }}

func newDecoderStream(src io.Reader, bad error, open func(*bufio.Reader) (io.Reader, error)) *decoderStream {
	s := &decoderStream{src: watch{src: src}, in: decoderInputs.Get().(*bufio.Reader), open: open, bad: bad}
	s.in.Reset(&s.src)
	return s
}

var brotliDecoders = sync.Pool{New: func() any { return brotli.NewReader(nil) }}

func decompressBrotli(src io.Reader) *decoderStream {
	dec := brotliDecoders.Get().(*brotli.Reader)
	s := newDecoderStream(src, errBrotli, func(in *bufio.Reader) (io.Reader, error) { return dec, dec.Reset(in) })
	s.done = func() { brotliDecoders.Put(dec) }
	return s
}

func decompressLZMA(src io.Reader) *decoderStream {
	return newDecoderStream(src, errLZMA, func(in *bufio.Reader) (io.Reader, error) {
		return lzma.ReaderConfig{DictCap: maxWindow}.NewReader(in)
	})
}

func decompressGzip(src io.Reader) *decoderStream {
	return newDecoderStream(src, errGzip, func(in *bufio.Reader) (io.Reader, error) { return gzip.NewReader(in) })
}

func decompressLZO(src io.Reader) *decoderStream {
	return newDecoderStream(src, errLZO, func(in *bufio.Reader) (io.Reader, error) { return newLzopReader(in), nil })
}

func (s *decoderStream) Read(p []byte) (n int, err error) {
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	if s.dec == nil {
		if s.dec, err = s.open(s.in); err != nil {
			s.stop(s.early(whole(err)))
			return 0, s.err
		}
	}
	for idle := 0; n == 0 && err == nil; idle++ {
		if n, err = s.dec.Read(p); n == 0 && err == nil && idle == 100 {
			err = io.ErrNoProgress
		}
	}
	if err == io.EOF {
		if _, more := s.in.Peek(1); more == nil {
			err = errors.New("something follows its end")
		}
	}
	if err != nil {
		s.stop(s.early(err))
	}
	return n, s.err
}

// early returns what it means that the decoder returned err: decoders have various words for a stream that ends too soon.
func (s *decoderStream) early(err error) error {
	if err != io.EOF && s.src.err == io.EOF && s.in.Buffered() == 0 {
		return io.ErrUnexpectedEOF
	}
	return s.src.judge(err, s.bad)
}

// WriteTo implements io.WriterTo.
func (s *decoderStream) WriteTo(w io.Writer) (n int64, err error) {
	b := plainBuffers.Get().(*[256 << 10]byte)
	defer plainBuffers.Put(b)
	return io.CopyBuffer(w, struct{ io.Reader }{s}, b[:])
}

// stop makes err what every further call returns.
func (s *decoderStream) stop(err error) {
	s.err = err
	if s.in == nil {
		return
	}
	s.in.Reset(nil)
	decoderInputs.Put(s.in)
	if s.done != nil {
		s.done()
	}
	s.in, s.dec, s.open, s.done = nil, nil, nil, nil
}

func (s *decoderStream) Close() error {
	s.stop(errClosed)
	return nil
}
