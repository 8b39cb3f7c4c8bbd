// Package compress compresses and decompresses the objects of an archive: zstd as seekable frames, lz4, brotli, lzma, or not
// at all. It reads gzip and lzop too, which others wrote.
//
// Both directions pull: reading from what Compress or Decompress returned reads the source as far as needed, in the
// caller's goroutine. Both are io.WriterTo as well, which hands over whole frames without another copy. Memory is that of
// about two frames of FrameSize per stream, and to compress for each frame that is compressed at once, taken from a pool and
// returned by Close. A zstd writer keeps eight bytes more per frame: 32 MiB for a stream of 1 TiB.
//
// A zstd stream of ours is many independent frames of FrameSize bytes of content each (the last one has fewer), every one with
// its content size and checksum, followed by the seek table of the zstd seekable format: see Table. To any other zstd
// decoder it is an ordinary file. Decompress reads what others wrote too: frames of any size, skippable frames, frames
// without size or checksum.
package compress

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Method says how an object is compressed. The values are those of the setting WALG_COMPRESSION_METHOD.
type Method string

const (
	Zstd   Method = "zstd"   // seekable frames; the default of the product
	LZ4    Method = "lz4"    // one frame: faster and larger
	Brotli Method = "brotli" // slower, smaller, and without a checksum
	LZMA   Method = "lzma"   // the format of lzma_alone: some MB a second, and without a checksum
	None   Method = "none"   // the bytes as they are

	Gzip Method = "gzip" // read only
	LZO  Method = "lzo"  // the container of lzop, which WAL-E wrote; read only
)

// Methods lists those that can be read, the likely ones first.
func Methods() []Method { return []Method{Zstd, LZ4, Brotli, LZMA, LZO, Gzip, None} }

// ParseMethod returns the method called s that new objects are to be compressed with.
func ParseMethod(s string) (Method, error) {
	switch m := Method(s); m {
	case Zstd, LZ4, Brotli, LZMA, None:
		return m, nil
	case Gzip, LZO:
		return "", fmt.Errorf("compression method %s: it is read, not written; want zstd, lz4, brotli, lzma or none", s)
	}
	return "", fmt.Errorf("compression method %q: want zstd, lz4, brotli, lzma or none", s)
}

// Extension returns what the names of objects compressed with m end in, the dot included: empty for None.
func (m Method) Extension() string {
	switch m {
	case Zstd:
		return ".zst"
	case LZ4:
		return ".lz4"
	case Brotli:
		return ".br"
	case LZMA:
		return ".lzma"
	case Gzip:
		return ".gz"
	case LZO:
		return ".lzo"
	}
	return ""
}

// Split divides an object's name into what it holds and how that is compressed: "part_001.tar.zst" is "part_001.tar" in
// Zstd. A name that ends in a dot is not compressed (WAL-G before 3.0.9 wrote such), and neither is one without an
// extension known here.
func Split(name string) (base string, m Method) {
	for _, m := range Methods() {
		if base, ok := strings.CutSuffix(name, m.Extension()); ok && m != None {
			return base, m
		}
	}
	return strings.TrimSuffix(name, "."), None
}

// Level says how hard zstd tries. It means nothing to the other methods.
type Level int

const (
	Fastest Level = iota // libzstd's 1
	Default              // libzstd's 3
	Better               // libzstd's 7
	Best                 // libzstd's 11; the same as Better without libzstd
)

// ParseLevel returns the level called s: fastest, default, better or best, as in WALG_ZSTD_LEVEL.
func ParseLevel(s string) (Level, error) {
	for l := Fastest; l <= Best; l++ {
		if s == l.String() {
			return l, nil
		}
	}
	return 0, fmt.Errorf("compression level %q: want fastest, default, better or best", s)
}

func (l Level) String() string {
	switch l {
	case Fastest:
		return "fastest"
	case Default:
		return "default"
	case Better:
		return "better"
	case Best:
		return "best"
	}
	return fmt.Sprintf("Level(%d)", int(l))
}

// Options tunes Compress. The zero value is ready to use.
type Options struct {
	Level    Level // of zstd
	Parallel int   // frames (zstd) or blocks (lz4) in work at once; 0 and 1 mean in the caller's goroutine
}

// FrameSize is how many bytes of content go into one frame of zstd: what has to be read and decompressed to reach any byte.
// It is the smallest size that costs at most 1 % of ratio at the fastest level against one frame for everything. Measured
// with libzstd 1.5.7, how much larger the stream gets with frames of 128 KiB, 256 KiB, 512 KiB and 1 MiB: files of a
// cluster 0.96, 0.42, 0.34, 0.15 %; WAL of pgbench 1.38, -0.05, 0.53, 0.26 %; WAL of bulk loads 3.0, 0.96, 0.83, 0.44 %.
// Memory, caches and ranged reads want it small.
const FrameSize = 256 << 10

// errClosed is what a closed stream answers.
var errClosed = errors.New("compress: read after close")

// Compress returns a stream of what src yields, compressed with m. Each src.Read is called with all that is left of a
// frame's buffer, so that a source can read a file straight into it. An error of src is returned as it is, and the stream
// is then not a whole one. The caller closes the stream, at any time, which leaves src alone. It may not be used by several
// goroutines at once.
func Compress(src io.Reader, m Method, o Options) io.ReadCloser {
	switch m {
	case Zstd:
		return native.compress(src, o)
	case LZ4:
		return compressLZ4(src, o)
	case Brotli:
		return compressBrotli(src)
	case LZMA:
		return compressLZMA(src)
	case None:
		return &plain{src: src}
	}
	return &plain{err: fmt.Errorf("compression method %q cannot be written", m)}
}

// Decompress returns what src holds, which was compressed with m. Any valid stream of the method will do. One that ends
// early, even where a frame ends, is io.ErrUnexpectedEOF; other damage is another error, and what was read before it must
// not be relied on. A foreign stream may ask for a window of up to 128 MiB, which is then what it costs; more is refused. The
// caller closes the stream, which leaves src alone. It may not be used by several goroutines at once.
func Decompress(src io.Reader, m Method) io.ReadCloser {
	switch m {
	case Zstd:
		return native.decompress(src)
	case LZ4:
		return decompressLZ4(src)
	case Brotli:
		return decompressBrotli(src)
	case LZMA:
		return decompressLZMA(src)
	case Gzip:
		return decompressGzip(src)
	case LZO:
		return decompressLZO(src)
	case None:
		return &plain{src: src}
	}
	return &plain{err: fmt.Errorf("compression method %q is unknown", m)}
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

// A plain stream is its source.
type plain struct {
	src io.Reader
	err error
}

func (s *plain) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	return s.src.Read(p)
}

// plainBuffers are what plain streams copy through.
var plainBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// WriteTo implements io.WriterTo.
func (s *plain) WriteTo(w io.Writer) (n int64, err error) {
	if s.err != nil {
		return 0, s.err
	}
	b := plainBuffers.Get().(*[256 << 10]byte)
	defer plainBuffers.Put(b)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{s.src}, b[:])
}

func (s *plain) Close() error {
	s.src, s.err = nil, errClosed
	return nil
}
