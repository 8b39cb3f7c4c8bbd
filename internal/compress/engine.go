package compress

import (
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// An encoder makes frames of zstd. It serves one goroutine at a time.
type encoder interface {
	// bound returns the capacity that a frame of n bytes of content may need.
	bound(n int) int
	// encode compresses src, which is not empty, into one frame at the start of dst, whose capacity is at least
	// bound(len(src)). The frame has no checksum.
	encode(dst, src []byte, l Level) ([]byte, error)
}

// A decoder takes frames of zstd apart. It serves one goroutine at a time.
type decoder interface {
	// decode decompresses one whole frame into dst, which is as long as the content, and verifies the checksum if
	// there is one. It fails when the content has another length.
	decode(dst, frame []byte) error
}

// An engine keeps what streams of zstd need and can use again. There are two implementations, which read each other's
// frames: libzstd in builds with cgo, klauspost/compress otherwise.
type engine struct {
	encoders sync.Pool // of *encodeBuffer
	decoders sync.Pool // of *decodeBuffer
}

func newEngine(enc func() encoder, dec func() decoder) *engine {
	return &engine{
		encoders: sync.Pool{New: func() any {
			e := enc()
			return &encodeBuffer{enc: e, in: make([]byte, FrameSize), out: make([]byte, maxFrameHeader+e.bound(FrameSize)+4)}
		}},
		decoders: sync.Pool{New: func() any {
			return &decodeBuffer{dec: dec(), in: make([]byte, maxDirect), out: make([]byte, FrameSize)}
		}},
	}
}

// inTurns has at most n of the encoders that enc makes at work at once, each frame in the order in which they came. That is for those of C, of which Go's runtime
// would else run one for each goroutine: it takes them for system calls. With more of them than processors they push each other out of the caches, and others
// that wait for a processor, such as a request that could be answered at once, wait for all of them.
func inTurns(n int, enc func() encoder) func() encoder {
	turns := make(chan struct{}, n)
	return func() encoder { return turned{enc(), turns} }
}

type turned struct {
	encoder
	turns chan struct{}
}

func (e turned) encode(dst, src []byte, l Level) ([]byte, error) {
	e.turns <- struct{}{}
	defer func() { <-e.turns }()
	return e.encoder.encode(dst, src, l)
}

// pureEncoder is the encoder of builds without cgo.
type pureEncoder struct {
	level Level
	enc   *zstd.Encoder // of that level; nil before the first frame
}

func newPureEncoder() encoder { return &pureEncoder{} }

func (e *pureEncoder) bound(n int) int { return n + n>>8 + 256 }

func (e *pureEncoder) encode(dst, src []byte, l Level) ([]byte, error) {
	if e.enc == nil || e.level != l {
		// The library's best level is left out: it is where its corruption bugs have been.
		speed := [...]zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression, zstd.SpeedBetterCompression}[l]
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithWindowSize(FrameSize))
		if err != nil {
			return nil, err
		}
		e.enc, e.level = enc, l
	}
	return e.enc.EncodeAll(src, dst[:0]), nil
}

// pureDecoder is the decoder of builds without cgo.
type pureDecoder struct{ dec *zstd.Decoder }

func newPureDecoder() decoder {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxDirect), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("compress: " + err.Error()) // only wrong options fail
	}
	return &pureDecoder{dec}
}

func (d *pureDecoder) decode(dst, frame []byte) error {
	out, err := d.dec.DecodeAll(frame, dst[:0:len(dst)])
	if err == nil && len(out) != len(dst) {
		err = errCorrupt
	}
	return err
}

// idleForeign are *zstd.Decoder that have read a stream to its end, and keep their window for the next one.
var idleForeign sync.Pool

// newForeignReader returns the content of all frames that src holds, of any shape.
func newForeignReader(src io.Reader) (*zstd.Decoder, error) {
	if d, ok := idleForeign.Get().(*zstd.Decoder); ok {
		return d, d.Reset(src)
	}
	return zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
}

// endForeignReader ends d, which returned err.
func endForeignReader(d *zstd.Decoder, err error) {
	if err != io.EOF || d.Reset(nil) != nil {
		d.Close()
		return
	}
	idleForeign.Put(d)
}
