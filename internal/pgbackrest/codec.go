package pgbackrest

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zlib"

	"holdfast/internal/compress"
)

// codec is how an object is compressed, by the name that pgBackRest gives it in compress-type: none, gz, bz2, lz4 or zst.
type codec string

const none codec = "none"

// codecs lists those that have an extension, which is a dot and their name.
var codecs = [...]codec{"zst", "lz4", "gz", "bz2"}

// parseCodec reads a compress-type.
func parseCodec(name string) (codec, error) {
	c := codec(name)
	for _, known := range codecs {
		if c == known {
			return c, nil
		}
	}
	if c != none {
		return "", fmt.Errorf("compress-type %q is unknown: want none, gz, bz2, lz4 or zst", name)
	}
	return c, nil
}

// extension returns what names of objects end in.
func (c codec) extension() string {
	if c == none {
		return ""
	}
	return "." + string(c)
}

// splitCodec divides an object's name into what it holds and how that is compressed.
func splitCodec(name string) (string, codec) {
	for _, c := range codecs {
		if base, ok := strings.CutSuffix(name, c.extension()); ok {
			return base, c
		}
	}
	return name, none
}

// open returns what src holds. The caller closes it, which leaves src alone.
func (c codec) open(src io.Reader) io.ReadCloser {
	switch c {
	case "zst":
		return compress.Decompress(src, compress.Zstd)
	case "lz4":
		return compress.Decompress(src, compress.LZ4)
	case "gz":
		return openGzip(src)
	case "bz2":
		return io.NopCloser(bzip2.NewReader(src))
	}
	return io.NopCloser(src)
}

// openGzip reads gzip or, as in bundles and block incrementals, zlib (RFC 1950), whose first byte is another.
func openGzip(src io.Reader) io.ReadCloser {
	in := bufio.NewReaderSize(src, 4<<10)
	if head, err := in.Peek(1); err == nil && head[0] == 0x1f {
		return compress.Decompress(in, compress.Gzip)
	}
	return &zlibReader{in: in}
}

var zlibReaders sync.Pool // of io.ReadCloser that are zlib.Resetter

// zlibReader reads a zlib stream to its checksum.
type zlibReader struct {
	in  *bufio.Reader
	dec io.ReadCloser
	err error // stays
}

func (z *zlibReader) Read(p []byte) (n int, err error) {
	if z.err != nil {
		return 0, z.err
	}
	if z.dec == nil {
		if z.dec, _ = zlibReaders.Get().(io.ReadCloser); z.dec != nil {
			z.err = z.dec.(zlib.Resetter).Reset(z.in, nil)
		} else {
			z.dec, z.err = zlib.NewReader(z.in)
		}
		if z.err != nil {
			z.err = cut(z.err)
			return 0, z.err
		}
	}
	n, z.err = z.dec.Read(p)
	return n, z.err
}

// Close implements io.Closer.
func (z *zlibReader) Close() error {
	if z.dec != nil {
		zlibReaders.Put(z.dec)
		z.dec = nil
	}
	z.err = errors.New("read after close")
	return nil
}
