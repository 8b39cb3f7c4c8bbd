package compress

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/cespare/xxhash/v2"
)

// An encodeBuffer holds one frame on its way.
type encodeBuffer struct {
	enc encoder
	in  []byte // FrameSize bytes of content
	out []byte // room for a header of ours, the frame, and its checksum
}

var errEncoder = errors.New("the zstd encoder broke its contract")

// compress makes a frame of ours from the first n bytes of b.in. The result lies in b.out. The encoder's header is replaced
// by ours, and the checksum is added: neither library's one-shot call makes both.
func (b *encodeBuffer) compress(n int, l Level) ([]byte, error) {
	const at = maxFrameHeader // where the encoder's frame begins in b.out
	body, end := at, at
	if n == 0 {
		end += copy(b.out[at:], []byte{1, 0, 0}) // the last block, raw, empty
	} else {
		f, err := b.enc.encode(b.out[at:], b.in[:n], l)
		if err != nil {
			return nil, err
		}
		h, _, err := parseHeader(f)
		if err != nil || h.len == 0 || h.checksum || &f[0] != &b.out[at] || len(f) > len(b.out)-at-4 {
			return nil, errEncoder
		}
		body, end = at+h.len, at+len(f)
	}
	putHeader(b.out[body-ourHeader:], n)
	binary.LittleEndian.PutUint32(b.out[end:], uint32(xxhash.Sum64(b.in[:n])))
	return b.out[body-ourHeader : end+4], nil
}

// A job is one frame being compressed.
type job struct {
	buf   *encodeBuffer
	n     int // bytes of content
	frame []byte
	err   error
	done  chan struct{} // closed when frame and err are set; nil when they were from the start
}

// wait returns once frame and err are set.
func (j *job) wait() {
	if j.done != nil {
		<-j.done
	}
}

// A zstdWriter yields frames and then the seek table.
type zstdWriter struct {
	engine *engine
	src    io.Reader
	opts   Options
	table  tableWriter
	jobs   []*job // in order of the stream
	cur    *job   // whose frame out points into; nil for the seek table
	out    []byte // not read yet
	state  int
	err    error // stays
}

// The states of a zstdWriter.
const (
	atStart = iota // nothing read yet
	inSource
	atEnd  // src has ended
	tabled // and out is, or was, the seek table
)

func (e *engine) compress(src io.Reader, o Options) *zstdWriter {
	o.Parallel = max(o.Parallel, 1)
	o.Level = min(max(o.Level, Fastest), Best)
	return &zstdWriter{engine: e, src: src, opts: o}
}

// next makes out the next frame, or the seek table. After an error it may not be called again.
func (w *zstdWriter) next() error {
	w.release()
	// Content is read before anything is waited for: that keeps all frames in work while out is written.
	for w.state < atEnd && len(w.jobs) < w.opts.Parallel {
		if err := w.start(); err != nil {
			return err
		}
	}
	if len(w.jobs) == 0 {
		if w.state == tabled {
			return io.EOF
		}
		w.state = tabled
		w.out = w.table.finish()
		return nil
	}
	w.cur, w.jobs = w.jobs[0], w.jobs[1:]
	w.cur.wait()
	w.table.add(len(w.cur.frame), w.cur.n)
	w.out = w.cur.frame
	return w.cur.err
}

// start reads the content of a frame and starts to compress it.
func (w *zstdWriter) start() error {
	j := &job{buf: w.engine.encoders.Get().(*encodeBuffer)}
	var err error
	if j.n, err = fill(w.src, j.buf.in); err != nil {
		if err != io.EOF {
			w.engine.encoders.Put(j.buf)
			return err
		}
		if j.n == 0 && w.state == inSource {
			w.engine.encoders.Put(j.buf)
			w.state = atEnd
			return nil
		}
	}
	w.state = inSource
	if err == io.EOF {
		w.state = atEnd
	}
	w.jobs = append(w.jobs, j)
	if w.opts.Parallel == 1 {
		j.frame, j.err = j.buf.compress(j.n, w.opts.Level)
		return nil
	}
	j.done = make(chan struct{})
	go func() {
		defer close(j.done)
		j.frame, j.err = j.buf.compress(j.n, w.opts.Level)
	}()
	return nil
}

// release gives back what out pointed into.
func (w *zstdWriter) release() {
	w.out = nil
	if w.cur != nil {
		w.engine.encoders.Put(w.cur.buf)
		w.cur = nil
	}
}

// stop makes err what every further call returns.
func (w *zstdWriter) stop(err error) {
	w.err = err
	w.release()
	for _, j := range w.jobs {
		j.wait()
		w.engine.encoders.Put(j.buf)
	}
	w.jobs = nil
}

func (w *zstdWriter) Read(p []byte) (int, error) {
	for len(w.out) == 0 && w.err == nil {
		if err := w.next(); err != nil {
			w.stop(err)
		}
	}
	if w.err != nil {
		return 0, w.err
	}
	n := copy(p, w.out)
	w.out = w.out[n:]
	return n, nil
}

// WriteTo implements io.WriterTo.
func (w *zstdWriter) WriteTo(dst io.Writer) (n int64, err error) {
	for w.err == nil {
		if len(w.out) > 0 {
			k, err := dst.Write(w.out)
			n += int64(k)
			w.out = w.out[k:]
			if err != nil {
				return n, err
			}
		}
		if err := w.next(); err != nil {
			w.stop(err)
		}
	}
	if w.err != io.EOF {
		err = w.err
	}
	return n, err
}

func (w *zstdWriter) Close() error {
	w.stop(errClosed)
	return nil
}
