package compress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
)

// A decodeBuffer holds one frame on its way.
type decodeBuffer struct {
	dec decoder
	in  []byte // maxDirect bytes of the stream
	out []byte // FrameSize bytes of content
}

// maxDirect is how long a frame may be that is decompressed in one go. A whole frame of ours fits.
const maxDirect = FrameSize + FrameSize/64

// A zstdReader yields the content of frames. Frames that say their size and are no larger than ours are decompressed in
// one go into a buffer that is used again; from the first other frame on a streaming decoder does the rest.
type zstdReader struct {
	engine  *engine
	src     watch
	buf     *decodeBuffer // nil after the end
	r, w    int           // buf.in[r:w] has been read from src and not been used
	out     []byte        // in buf.out, not read yet
	foreign *zstd.Decoder // nil while all frames were small
	part    bool          // the stream is a part of one: no seek table need follow
	owing   int64         // frames of ours that no table has listed yet
	listed  xxhash.Digest // of the entries that the table must have for them
	err     error         // stays
}

// A watch makes the error of a source stay, and remembers it because decoders take some errors for the end of the stream.
type watch struct {
	src io.Reader
	any bool // something was read
	err error
}

func (s *watch) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.src.Read(p)
	s.any = s.any || n > 0
	s.err = err
	return n, err
}

// judge returns what it means that the decoder of src returned err, which is not nil.
func (s *watch) judge(err, corrupt error) error {
	switch {
	case s.err != nil && s.err != io.EOF:
		return s.err
	case err == io.EOF && !s.any:
		return io.ErrUnexpectedEOF // no stream of any method is empty
	case err == io.EOF, err == io.ErrUnexpectedEOF:
		return err
	}
	return fmt.Errorf("%w: %w", corrupt, err)
}

func (e *engine) decompress(src io.Reader) *zstdReader {
	z := &zstdReader{engine: e, src: watch{src: src}, buf: e.decoders.Get().(*decodeBuffer)}
	z.listed.Reset()
	return z
}

// peek returns what has been read of the stream, at least n bytes of it. Where the stream ends sooner the error is io.EOF
// if nothing is left, and io.ErrUnexpectedEOF otherwise.
func (z *zstdReader) peek(n int) ([]byte, error) {
	if z.r == z.w {
		z.r, z.w = 0, 0
	} else if z.r+n > len(z.buf.in) {
		z.w = copy(z.buf.in, z.buf.in[z.r:z.w])
		z.r = 0
	}
	for idle := 0; z.w-z.r < n; {
		k, err := z.src.Read(z.buf.in[z.w:])
		z.w += k
		switch {
		case z.w-z.r >= n:
		case err == io.EOF && z.w > z.r:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case k == 0:
			if idle++; idle == 100 {
				return nil, io.ErrNoProgress
			}
		}
	}
	return z.buf.in[z.r:z.w], nil
}

// header returns the header of the next frame.
func (z *zstdReader) header() (h frameHeader, err error) {
	for need := 1; need > 0; {
		b, err := z.peek(need)
		if err != nil {
			return h, err
		}
		if h, need, err = parseHeader(b); err != nil {
			return h, err
		}
	}
	return h, nil
}

// next decompresses the next frame that has content, into dst if it fits there and into buf.out otherwise. It returns how
// much went to dst. z.out is empty before and has the content afterwards if it is not in dst.
func (z *zstdReader) next(dst []byte) (int, error) {
	for {
		h, err := z.header()
		if err == io.EOF {
			return 0, z.ended()
		} else if err != nil {
			return 0, err
		}
		if h.skippable != 0 {
			if err := z.skip(h); err != nil {
				return 0, err
			}
			continue
		}
		if h.window > maxWindow {
			return 0, errTooBig
		}
		if z.owing > 0 && !h.ours && !z.part {
			return 0, fmt.Errorf("%w: frames without a seek table", errCorrupt)
		}
		if !h.sized || h.content > FrameSize {
			return 0, z.stream()
		}
		frame, err := z.frame(h)
		if err != nil {
			return 0, err
		}
		if frame == nil {
			return 0, z.stream()
		}
		into := z.buf.out[:h.content]
		direct := len(dst) >= len(into)
		if direct {
			into = dst[:h.content]
		}
		if err := z.buf.dec.decode(into, frame); err != nil {
			return 0, fmt.Errorf("%w: %w", errCorrupt, err)
		}
		if h.ours {
			z.owing++
			var e [8]byte
			binary.LittleEndian.PutUint32(e[:], uint32(len(frame)))
			binary.LittleEndian.PutUint32(e[4:], uint32(h.content))
			z.listed.Write(e[:])
		}
		if h.content == 0 {
			continue
		}
		if direct {
			return len(into), nil
		}
		z.out = into
		return 0, nil
	}
}

// ended returns what the end of src means where a frame may begin.
func (z *zstdReader) ended() error {
	if z.owing > 0 && !z.part {
		return io.ErrUnexpectedEOF
	}
	return z.src.judge(io.EOF, errCorrupt)
}

// frame takes the whole frame with header h, or nil where it is longer than a frame of its content has to be.
func (z *zstdReader) frame(h frameHeader) ([]byte, error) {
	for need := h.len; ; {
		b, err := z.peek(need)
		if err != nil {
			return nil, unexpected(err)
		}
		n, more, err := h.frameLen(b)
		if err != nil {
			return nil, err
		}
		if need = max(n, more); need > maxDirect {
			return nil, nil
		}
		if n > 0 && n <= len(b) {
			z.r += n
			return b[:n], nil
		}
	}
}

// skip passes over a skippable frame. A seek table after frames of ours must list just these.
func (z *zstdReader) skip(h frameHeader) error {
	z.r += h.len
	if h.skippable == tableMagic && z.owing > 0 && !z.part {
		return z.skipTable(int64(h.content))
	}
	for left := int64(h.content); left > 0; {
		b, err := z.peek(1)
		if err != nil {
			return unexpected(err)
		}
		n := min(int64(len(b)), left)
		z.r += int(n)
		left -= n
	}
	return nil
}

// skipTable passes over a seek table, of whose length bytes none has been used.
func (z *zstdReader) skipTable(length int64) error {
	if want := z.owing*8 + footerLen; length != want {
		return fmt.Errorf("%w: %d bytes, want %d", errTable, length, want)
	}
	var listed xxhash.Digest
	listed.Reset()
	for range z.owing {
		b, err := z.peek(8)
		if err != nil {
			return unexpected(err)
		}
		listed.Write(b[:8])
		z.r += 8
	}
	b, err := z.peek(footerLen)
	if err != nil {
		return unexpected(err)
	}
	if int64(binary.LittleEndian.Uint32(b)) != z.owing || b[4] != 0 || binary.LittleEndian.Uint32(b[5:]) != footerMagic ||
		listed.Sum64() != z.listed.Sum64() {
		return fmt.Errorf("%w: it does not list the frames before it", errTable)
	}
	z.r += footerLen
	z.owing = 0
	z.listed.Reset()
	return nil
}

// stream leaves the rest of the stream to a streaming decoder.
func (z *zstdReader) stream() (err error) {
	rest := io.MultiReader(bytes.NewReader(z.buf.in[z.r:z.w]), &z.src)
	z.foreign, err = newForeignReader(rest)
	return err
}

// stop makes err what every further call returns.
func (z *zstdReader) stop(err error) {
	z.err, z.out = err, nil
	if z.foreign != nil {
		endForeignReader(z.foreign, err)
		z.foreign = nil
	}
	if z.buf != nil {
		z.engine.decoders.Put(z.buf)
		z.buf = nil
	}
}

func (z *zstdReader) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	for n == 0 && z.err == nil {
		switch {
		case len(z.out) > 0:
			n = copy(p, z.out)
			z.out = z.out[n:]
		case z.foreign != nil:
			if n, err = z.foreign.Read(p); err != nil {
				z.stop(z.foreignErr(err))
			}
		default:
			if n, err = z.next(p); err != nil {
				z.stop(err)
			}
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, z.err
}

// WriteTo implements io.WriterTo.
func (z *zstdReader) WriteTo(dst io.Writer) (n int64, err error) {
	for z.err == nil {
		switch {
		case len(z.out) > 0:
			k, err := dst.Write(z.out)
			n += int64(k)
			z.out = z.out[k:]
			if err != nil {
				return n, err
			}
		case z.foreign != nil:
			to := &sink{w: dst}
			k, err := z.foreign.WriteTo(to)
			n += k
			if to.err != nil {
				z.stop(to.err)
				return n, to.err
			}
			if err == nil {
				err = io.EOF
			}
			z.stop(z.foreignErr(err))
		default:
			if _, err := z.next(nil); err != nil {
				z.stop(err)
			}
		}
	}
	if z.err != io.EOF {
		err = z.err
	}
	return n, err
}

// A sink remembers the error of a writer.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		s.err = err
	}
	return n, err
}

// foreignErr returns what an error of the streaming decoder means.
func (z *zstdReader) foreignErr(err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return errTooBig
	}
	return z.src.judge(err, errCorrupt)
}

func (z *zstdReader) Close() error {
	z.stop(errClosed)
	return nil
}

// unexpected returns err as it is inside of a frame, where the stream may not end.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
