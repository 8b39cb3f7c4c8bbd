package compress_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"holdfast/internal/compress"
	"holdfast/test/foreign"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A codec is one way to compress: a method, or zstd with a certain engine.
type codec struct {
	name       string
	method     compress.Method
	compress   func(io.Reader, compress.Options) io.ReadCloser
	decompress func(io.Reader) io.ReadCloser
}

func of(m compress.Method) codec {
	return codec{
		string(m), m,
		func(r io.Reader, o compress.Options) io.ReadCloser { return compress.Compress(r, m, o) },
		func(r io.Reader) io.ReadCloser { return compress.Decompress(r, m) },
	}
}

// pure is zstd as builds without cgo have it; of(compress.Zstd) is as this build has it.
var pure = codec{"pure zstd", compress.Zstd, compress.CompressPure, compress.DecompressPure}

// codecs are all that is written; the first three have a checksum.
var codecs = []codec{of(compress.Zstd), pure, of(compress.LZ4), of(compress.Brotli), of(compress.LZMA), of(compress.None)}

// drain reads z to its end and closes it.
func drain(z io.ReadCloser, writeTo bool) ([]byte, error) {
	defer z.Close()
	var b bytes.Buffer
	if writeTo {
		_, err := z.(io.WriterTo).WriteTo(&b)
		return b.Bytes(), err
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{&b}, struct{ io.Reader }{z}, make([]byte, 10_001))
	return b.Bytes(), err
}

func (c codec) pack(t testing.TB, content []byte) []byte {
	t.Helper()
	b, err := drain(c.compress(bytes.NewReader(content), compress.Options{}), true)
	if err != nil {
		t.Fatalf("%s: compress %d bytes: %v", c.name, len(content), err)
	}
	return b
}

func (c codec) unpack(b []byte) ([]byte, error) { return drain(c.decompress(bytes.NewReader(b)), true) }

// What was compressed comes back, however it is read and written, and zstd from either engine through either.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.OneOf(
			rapid.IntRange(0, 2000),
			rapid.IntRange(0, 4*compress.FrameSize),
			rapid.Custom(func(t *rapid.T) int {
				return rapid.IntRange(1, 3).Draw(t, "frames")*compress.FrameSize + rapid.IntRange(-1, 1).Draw(t, "more")
			}),
		).Draw(t, "length")
		content := corpus(rapid.Uint64().Draw(t, "seed"), length)
		from := rapid.SampledFrom(codecs).Draw(t, "codec")
		to := from
		if from.method == compress.Zstd {
			to = rapid.SampledFrom(codecs[:2]).Draw(t, "other codec")
		}
		o := compress.Options{
			Level:    rapid.SampledFrom([]compress.Level{compress.Fastest, compress.Fastest, compress.Default, compress.Better}).Draw(t, "level"),
			Parallel: rapid.IntRange(0, 3).Draw(t, "parallel"),
		}
		src := io.Reader(bytes.NewReader(content))
		if rapid.Bool().Draw(t, "error with data") {
			src = iotest.DataErrReader(src)
		}
		packed, err := drain(from.compress(src, o), rapid.Bool().Draw(t, "WriteTo"))
		if err != nil {
			t.Fatalf("%s: compress: %v", from.name, err)
		}
		src = bytes.NewReader(packed)
		if rapid.Bool().Draw(t, "short reads") {
			src = iotest.HalfReader(src)
		}
		got, err := drain(to.decompress(src), rapid.Bool().Draw(t, "WriteTo"))
		if err != nil {
			t.Fatalf("%s: decompress: %v", to.name, err)
		}
		if !bytes.Equal(got, content) {
			t.Fatalf("%d bytes came back as %d others", len(content), len(got))
		}
	})
}

// Splitting content into frames that are compressed at once does not change the stream.
func TestParallelIsTheSameStream(t *testing.T) {
	content := corpus(3, 5*compress.FrameSize+77)
	for _, c := range codecs {
		want := c.pack(t, content)
		got, err := drain(c.compress(bytes.NewReader(content), compress.Options{Parallel: 3}), false)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want the %d bytes of one at a time", c.name, len(got), err, len(want))
		}
	}
}

// The decoders of everybody else read what we write: those that WAL-G has built in, and the command line tools.
func TestOthersRead(t *testing.T) {
	tools := map[compress.Method]string{compress.Zstd: "zstd", compress.LZ4: "lz4", compress.Brotli: "brotli", compress.LZMA: "lzma"}
	for _, length := range []int{0, 1, 100, compress.FrameSize, 2*compress.FrameSize + 5, 3 << 20} {
		content := corpus(7, length)
		for _, c := range codecs {
			packed := c.pack(t, content)
			check := func(who string, got []byte, err error) {
				t.Helper()
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s reads %d bytes in %s as %d: %v", who, length, c.name, len(got), err)
				}
			}
			switch c.method {
			case compress.Zstd:
				z, err := zstd.NewReader(struct{ io.Reader }{bytes.NewReader(packed)})
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(z)
				z.Close()
				check("klauspost's stream reader", got, err)
			case compress.LZ4:
				got, err := io.ReadAll(lz4.NewReader(bytes.NewReader(packed)))
				check("pierrec's reader", got, err)
			case compress.LZMA:
				if want := "\x5D\x00\x00\x80\x00\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"; string(packed[:13]) != want {
					t.Errorf("the header of lzma is %x, WAL-G's %x", packed[:13], want)
				}
			}
			tool, err := exec.LookPath(tools[c.method])
			if err != nil {
				continue
			}
			cmd := exec.Command(tool, "-dc")
			cmd.Stdin = bytes.NewReader(packed)
			got, err := cmd.Output()
			check(tool, got, err)
		}
	}
}

// A stream is what another program wrote.
type stream struct {
	name   string
	method compress.Method
	packed []byte
}

// others returns content as other programs compress it: with the libraries that WAL-G uses, and with the command line
// tools as far as they are installed.
func others(t testing.TB, content []byte) (streams []stream) {
	t.Helper()
	library := func(name string, m compress.Method, w io.WriteCloser, b *bytes.Buffer) {
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream{name, m, b.Bytes()})
	}
	var plainZstd, bareZstd, plainLZ4 bytes.Buffer
	w, _ := zstd.NewWriter(&plainZstd)
	library("klauspost's zstd", compress.Zstd, w, &plainZstd)
	w, _ = zstd.NewWriter(&bareZstd, zstd.WithEncoderCRC(false), zstd.WithWindowSize(32<<20))
	library("klauspost's zstd without checksum", compress.Zstd, w, &bareZstd)
	library("pierrec's lz4", compress.LZ4, lz4.NewWriter(&plainLZ4), &plainLZ4)
	var plainGzip bytes.Buffer
	library("the standard library's gzip", compress.Gzip, gzip.NewWriter(&plainGzip), &plainGzip)
	for _, args := range [][]string{
		{"zstd", "-3"}, {"zstd", "--long=27"}, {"lz4", "-1"}, {"lz4", "-BD"}, {"brotli", "-5"}, {"lzma", "-1"},
		{"lzop"}, {"lzop", "-9"}, {"lzop", "--crc32"}, {"lzop", "-F"}, {"gzip", "-9"},
	} {
		tool, err := exec.LookPath(args[0])
		if err != nil {
			continue
		}
		cmd := exec.Command(tool, append(args[1:], "-c")...)
		cmd.Stdin = bytes.NewReader(content)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", args, err)
		}
		method := compress.Method(args[0])
		if method == "lzop" {
			method = compress.LZO
		}
		streams = append(streams, stream{strings.Join(args, " "), method, packed})
	}
	return streams
}

// What others wrote is read, one stream after another as well, and after one of ours.
func TestReadsOthers(t *testing.T) {
	for _, length := range []int{1, compress.FrameSize, compress.FrameSize + 5} {
		content := corpus(9, length)
		for _, s := range others(t, content) {
			readers := slices.DeleteFunc(slices.Clone(codecs), func(c codec) bool { return c.method != s.method })
			if len(readers) == 0 {
				readers = []codec{of(s.method)}
			}
			for _, c := range readers {
				streams := [][]byte{s.packed}
				switch s.method {
				case compress.Zstd, compress.LZ4:
					streams = append(streams, slices.Concat(s.packed, s.packed), slices.Concat(c.pack(t, content), s.packed))
				case compress.LZO, compress.Gzip:
					streams = append(streams, slices.Concat(s.packed, s.packed))
				}
				for _, packed := range streams {
					for _, writeTo := range []bool{false, true} {
						got, err := drain(c.decompress(bytes.NewReader(packed)), writeTo)
						if err != nil || !bytes.Equal(got, content) && !bytes.Equal(got, slices.Concat(content, content)) {
							t.Errorf("%s of %d bytes is read by %s as %d: %v", s.name, length, c.name, len(got), err)
						}
					}
				}
			}
		}
	}
}

// What WAL-G itself wrote is read to its end, where archives of it are at hand.
func TestReadsWALG(t *testing.T) {
	for _, name := range []string{"pg15-zstd-full", "pg17-zstd-timeline", "pg15-lz4-delta", "pg15-lz4-remote", "pg15-brotli-full", "wale-pg13-lzo"} {
		objects := 0
		foreign.Each(t, name, func(path string, r io.Reader) {
			objects++
			_, m := compress.Split(path)
			if got, err := drain(compress.Decompress(r, m), true); err != nil {
				t.Errorf("%s: %s: %v after %d bytes", name, path, err, len(got))
			}
		})
		if objects == 0 {
			t.Errorf("%s holds nothing", name)
		}
	}
}

// A skippable frame is skipped wherever frames may begin.
func TestSkippableFrames(t *testing.T) {
	content := corpus(2, compress.FrameSize+5)
	skip := append([]byte{0x50, 0x2A, 0x4D, 0x18, 0, 0, 8, 0}, make([]byte, 8<<16)...)
	for _, c := range codecs[:3] {
		packed := slices.Concat(skip, c.pack(t, content), skip)
		if got, err := c.unpack(packed); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v, want %d", c.name, len(got), err, len(content))
		}
	}
}

// repetitive returns n bytes of content that become very few, so that a test can try every byte of the result.
func repetitive(n int) []byte { return bytes.Repeat([]byte("PostgreSQL "), n/11) }

// tried is how much content makes several frames or blocks.
var tried = map[compress.Method]int{compress.Zstd: 5 * compress.FrameSize / 2, compress.LZ4: 70_000, compress.Brotli: 70_000, compress.LZMA: 70_000}

// Wherever a stream of ours is cut off, also between frames, it is an early end; after its end nothing else may come.
func TestTruncationIsDetected(t *testing.T) {
	for _, c := range codecs[:5] {
		packed := c.pack(t, repetitive(tried[c.method]))
		for n := range packed {
			for _, writeTo := range []bool{false, true} {
				if _, err := drain(c.decompress(bytes.NewReader(packed[:n])), writeTo); err != io.ErrUnexpectedEOF {
					t.Fatalf("%s, %d of %d bytes: %v", c.name, n, len(packed), err)
				}
			}
		}
		for _, more := range []string{"\x00", "garbage behind the end of the stream", string(packed[:len(packed)/2])} {
			if _, err := c.unpack(append(bytes.Clone(packed), more...)); err == nil {
				t.Errorf("%s: %q behind the end went unnoticed", c.name, more)
			}
		}
	}
	for _, s := range others(t, repetitive(200_000)) {
		for n := range s.packed {
			if _, err := of(s.method).unpack(s.packed[:n]); err == nil {
				t.Fatalf("%s, %d of %d bytes went unnoticed", s.name, n, len(s.packed))
			}
		}
	}
}

// A frame of a stream of ours that is missing, doubled or out of order is noticed, though every frame is whole.
func TestFramesAreWhatTheTableLists(t *testing.T) {
	content := corpus(8, 3*compress.FrameSize+1)
	for _, c := range codecs[:2] {
		packed := c.pack(t, content)
		table, err := compress.ReadTable(bytes.NewReader(packed), int64(len(packed)))
		if err != nil {
			t.Fatal(err)
		}
		var frames [][]byte
		for i := range 4 {
			r, err := table.Locate(int64(i)*compress.FrameSize, 1)
			if err != nil {
				t.Fatal(err)
			}
			frames = append(frames, packed[r.Offset:r.Offset+r.Length])
		}
		tail := packed[table.PackedSize():]
		for _, order := range [][]int{{0, 1, 3}, {1, 2, 3}, {0, 1, 1, 2, 3}, {0, 2, 1, 3}, {0, 1, 2}, {}} {
			var b []byte
			for _, i := range order {
				b = append(b, frames[i]...)
			}
			if _, err := c.unpack(append(b, tail...)); err == nil && len(order) > 0 {
				t.Errorf("%s: frames %v went unnoticed", c.name, order)
			}
			if _, err := c.unpack(b); err != io.ErrUnexpectedEOF {
				t.Errorf("%s: frames %v without table: %v", c.name, order, err)
			}
		}
	}
}

// A flipped bit is an error, or at least changes nothing.
func TestBitFlipsAreDetected(t *testing.T) {
	for _, c := range codecs[:3] {
		content := repetitive(tried[c.method])
		packed := c.pack(t, content)
		var silent []int
		for bit := range len(packed) * 8 {
			packed[bit/8] ^= 1 << (bit % 8)
			got, err := c.unpack(packed)
			if err == nil {
				silent = append(silent, bit)
				if !bytes.Equal(got, content) {
					t.Errorf("%s: bit %d of byte %d of %d changed the content", c.name, bit%8, bit/8, len(packed))
				}
			}
			packed[bit/8] ^= 1 << (bit % 8)
		}
		if len(silent) > 2 {
			t.Errorf("%s: flipped bits %v of %d were no error", c.name, silent, len(packed)*8)
		}
		t.Logf("%s: flipped bits %v of %d changed nothing", c.name, silent, len(packed)*8)
	}
}

// What a header claims costs no memory before there is something behind it.
func TestClaimsCostNothing(t *testing.T) {
	claims := map[string]struct {
		b     string
		bound uint64
	}{
		"content of 2^62 bytes":   {"\x28\xB5\x2F\xFD\xE4\x00\x00\x00\x00\x00\x00\x00\x40\x01\x00\x00", 4 << 20},
		"window of 2^41 bytes":    {"\x28\xB5\x2F\xFD\x04\xF8\x01\x00\x00", 4 << 20},
		"window of 129 MiB":       {"\x28\xB5\x2F\xFD\x04\x89\x01\x00\x00", 4 << 20},
		"window of 128 MiB":       {"\x28\xB5\x2F\xFD\x04\x88\x02\x00\x10", 160 << 20},
		"content of 100 MB":       {"\x28\xB5\x2F\xFD\xA4\x00\xE1\xF5\x05\x02\x00\x10", 160 << 20},
		"skippable frame of 4 GB": {"\x50\x2A\x4D\x18\xFF\xFF\xFF\xFF", 4 << 20},
		"seek table of 4 GB":      {"\x5E\x2A\x4D\x18\xFF\xFF\xFF\xFF", 4 << 20},
	}
	for name, claim := range claims {
		for _, c := range codecs[:2] {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err := c.unpack([]byte(claim.b))
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Errorf("%s: %s was read as %d bytes", c.name, name, len(got))
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > claim.bound {
				t.Errorf("%s: %s took %d bytes of memory", c.name, name, used)
			}
		}
	}
}

// An error of the source comes out as it is, from both directions.
func TestSourceError(t *testing.T) {
	content := corpus(1, 2*compress.FrameSize+100)
	broken := errors.New("broken")
	for _, c := range codecs {
		for _, parallel := range []int{1, 3} {
			for _, cut := range []int{0, 1, 100, compress.FrameSize, compress.FrameSize + 1, len(content)} {
				for _, broken := range []error{broken, io.ErrUnexpectedEOF} {
					src := &breaking{content[:cut], broken}
					if _, err := drain(c.compress(src, compress.Options{Parallel: parallel}), cut&1 == 0); err != broken {
						t.Errorf("compress %s, source broken after %d bytes: %v, want %v", c.name, cut, err, broken)
					}
				}
			}
		}
	}
	streams := others(t, content)
	for _, c := range codecs {
		streams = append(streams, stream{c.name, c.method, c.pack(t, content)})
	}
	for _, s := range streams {
		for _, cut := range []int{0, 1, 100, len(s.packed) - 1, len(s.packed)} {
			for _, broken := range []error{broken, io.ErrUnexpectedEOF} {
				src := &breaking{s.packed[:cut], broken}
				if _, err := drain(of(s.method).decompress(src), cut&1 == 0); err != broken {
					t.Errorf("decompress %s, source broken after %d bytes: %v, want %v", s.name, cut, err, broken)
				}
			}
		}
	}
}

// A breaking source says only once, along with its last bytes, that they are not all.
type breaking struct {
	left []byte
	err  error
}

func (s *breaking) Read(p []byte) (n int, err error) {
	n = copy(p, s.left)
	if s.left = s.left[n:]; len(s.left) > 0 {
		return n, nil
	}
	err, s.err = s.err, io.EOF
	return n, err
}

// What a destination says comes out as it is, and a stream may be closed at any time, twice as well.
func TestCloseEarly(t *testing.T) {
	content := corpus(1, 9*compress.FrameSize)
	full := errors.New("full")
	for _, c := range codecs {
		packed := c.pack(t, content)
		for _, z := range []io.ReadCloser{
			c.compress(bytes.NewReader(content), compress.Options{}),
			c.compress(bytes.NewReader(content), compress.Options{Parallel: 3}),
			c.decompress(bytes.NewReader(packed)),
		} {
			if _, err := io.ReadFull(z, make([]byte, 10)); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if _, err := z.(io.WriterTo).WriteTo(failing{full}); err != full {
				t.Errorf("%s: write to a full destination: %v", c.name, err)
			}
			for range 2 {
				if err := z.Close(); err != nil {
					t.Errorf("%s: close: %v", c.name, err)
				}
			}
			if n, err := z.Read(make([]byte, 10)); n != 0 || err == nil || err == io.EOF {
				t.Errorf("%s: read after close: %d, %v", c.name, n, err)
			}
		}
	}
}

// A failing writer takes nothing.
type failing struct{ err error }

func (w failing) Write([]byte) (int, error) { return 0, w.err }

// A source is asked for all that is left of a frame, so that it can read a file straight into the frame.
func TestSourceSeesTheRestOfTheFrame(t *testing.T) {
	for _, c := range codecs[:5] {
		src := &asked{left: 3 * compress.FrameSize}
		if _, err := drain(c.compress(src, compress.Options{}), true); err != nil {
			t.Fatal(err)
		}
		filled := 0
		for i, p := range src.asked {
			if want := compress.FrameSize - filled; p != want {
				t.Fatalf("%s: read %d had room for %d bytes, want %d", c.name, i, p, want)
			}
			filled = (filled + 100_000 - max(0, filled+100_000-compress.FrameSize)) % compress.FrameSize
		}
	}
}

// asked is a source of zeros, 100 000 at a time, that notes how many each Read wanted.
type asked struct {
	left  int
	asked []int
}

func (s *asked) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	s.asked = append(s.asked, len(p))
	n := min(len(p), 100_000, s.left)
	clear(p[:n])
	s.left -= n
	return n, nil
}

func TestNames(t *testing.T) {
	for name, want := range map[string]struct {
		base string
		m    compress.Method
	}{
		"part_001.tar.zst":              {"part_001.tar", compress.Zstd},
		"part_001.tar.lz4":              {"part_001.tar", compress.LZ4},
		"part_001.tar":                  {"part_001.tar", compress.None},
		"part_001.tar.":                 {"part_001.tar", compress.None},
		"000000010000000000000001":      {"000000010000000000000001", compress.None},
		"000000010000000000000001.":     {"000000010000000000000001", compress.None},
		"000000010000000000000001.br":   {"000000010000000000000001", compress.Brotli},
		"000000010000000000000001.lzma": {"000000010000000000000001", compress.LZMA},
		"000000010000000000000001.gz":   {"000000010000000000000001", compress.Gzip},
		"000000010000000000000001.lzo":  {"000000010000000000000001", compress.LZO},
		"part_001.tar.xz":               {"part_001.tar.xz", compress.None},
		"00000002.history.zst":          {"00000002.history", compress.Zstd},
		"000000010000000000000001.zst.": {"000000010000000000000001.zst", compress.None},
	} {
		if base, m := compress.Split(name); base != want.base || m != want.m {
			t.Errorf("Split(%q) = %q, %q, want %q, %q", name, base, m, want.base, want.m)
		}
	}
	for _, m := range compress.Methods() {
		got, err := compress.ParseMethod(string(m))
		if written := m != compress.Gzip && m != compress.LZO; written != (got == m) || written != (err == nil) {
			t.Errorf("ParseMethod(%q) = %q, %v", m, got, err)
		}
		if base, got := compress.Split("x" + m.Extension()); base != "x" || got != m {
			t.Errorf("Split(%q) = %q, %q", "x"+m.Extension(), base, got)
		}
	}
	for l := compress.Fastest; l <= compress.Best; l++ {
		if got, err := compress.ParseLevel(l.String()); got != l || err != nil {
			t.Errorf("ParseLevel(%q) = %v, %v", l, got, err)
		}
	}
	for _, s := range []string{"", "ZSTD", "snappy"} {
		if got, err := compress.ParseMethod(s); err == nil {
			t.Errorf("ParseMethod(%q) = %q", s, got)
		}
		if got, err := compress.ParseLevel(s); err == nil {
			t.Errorf("ParseLevel(%q) = %v", s, got)
		}
	}
	if _, err := drain(compress.Compress(bytes.NewReader(nil), compress.LZO, compress.Options{}), true); err == nil {
		t.Error("compressed with an unknown method")
	}
	if _, err := drain(compress.Decompress(bytes.NewReader(nil), ""), false); err == nil {
		t.Error("decompressed with an unknown method")
	}
}

// Harder levels make shorter streams, with either engine.
func TestLevels(t *testing.T) {
	content := corpus(4, 4*compress.FrameSize)
	for _, c := range codecs[:2] {
		var sizes []int
		for l := compress.Fastest; l <= compress.Best; l++ {
			b, err := drain(c.compress(bytes.NewReader(content), compress.Options{Level: l}), true)
			if err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, len(b))
		}
		if sizes[2] >= sizes[0] || sizes[3] > sizes[2] {
			t.Errorf("%s: levels make %d bytes", c.name, sizes)
		}
	}
}

// What is accepted holds the same content for both engines, and comes back after being compressed again.
func FuzzZstd(f *testing.F) {
	for _, content := range [][]byte{nil, []byte("x"), corpus(5, 9000), repetitive(2 * compress.FrameSize)} {
		f.Add(codecs[0].pack(f, content))
		for _, s := range others(f, content) {
			if s.method == compress.Zstd {
				f.Add(s.packed)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		limit := func(r io.Reader) ([]byte, error) { return io.ReadAll(io.LimitReader(r, 64<<20)) }
		z := compress.Decompress(bytes.NewReader(b), compress.Zstd)
		defer z.Close()
		p := compress.DecompressPure(bytes.NewReader(b))
		defer p.Close()
		got, err := limit(z)
		got2, err2 := limit(p)
		if err == nil && err2 == nil && !bytes.Equal(got, got2) {
			t.Fatalf("%d bytes from one engine and %d others from the other", len(got), len(got2))
		}
		if err == nil {
			if again, err := codecs[1].unpack(codecs[0].pack(t, got)); err != nil || !bytes.Equal(again, got) {
				t.Fatalf("%d bytes came back as %d, %v", len(got), len(again), err)
			}
		}
	})
}

// What is accepted comes back after being compressed again.
func FuzzLZ4(f *testing.F) {
	for _, content := range [][]byte{nil, []byte("x"), corpus(5, 9000), repetitive(100_000)} {
		f.Add(codecs[2].pack(f, content))
		for _, s := range others(f, content) {
			if s.method == compress.LZ4 {
				f.Add(s.packed)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		z := compress.Decompress(bytes.NewReader(b), compress.LZ4)
		defer z.Close()
		if got, err := io.ReadAll(io.LimitReader(z, 64<<20)); err == nil {
			if again, err := codecs[2].unpack(codecs[2].pack(t, got)); err != nil || !bytes.Equal(again, got) {
				t.Fatalf("%d bytes came back as %d, %v", len(got), len(again), err)
			}
		}
	})
}

// What is accepted of a format that is only read, or has a decoder of a library, is read to its end without harm.
func FuzzOthers(f *testing.F) {
	all := []compress.Method{compress.LZO, compress.Gzip, compress.Brotli, compress.LZMA}
	for _, content := range [][]byte{nil, []byte("x"), corpus(5, 9000), repetitive(100_000)} {
		for _, s := range others(f, content) {
			if i := slices.Index(all, s.method); i >= 0 {
				f.Add(byte(i), s.packed)
			}
		}
	}
	for _, name := range []string{"default", "crc32", "stored"} {
		f.Add(byte(0), golden(f, name))
	}
	f.Fuzz(func(t *testing.T, method byte, b []byte) {
		m := all[int(method)%len(all)]
		z := compress.Decompress(bytes.NewReader(b), m)
		defer z.Close()
		n, err := io.Copy(io.Discard, io.LimitReader(z, 1<<20))
		if err == nil && n < 1<<20 {
			if _, err := of(m).unpack(b[:len(b)-1]); err == nil {
				t.Errorf("%s of %d bytes is whole without its last one as well", m, len(b))
			}
		}
	})
}

// golden returns a file that lzop 1.04 wrote of repetitive(100_000), or with "stored" of 5000 bytes that do not compress.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".lzo")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The files that lzop wrote are read, and neither a cut nor a flipped bit goes unnoticed where it matters.
func TestReadsLzop(t *testing.T) {
	z := of(compress.LZO)
	for _, name := range []string{"default", "crc32", "stored"} {
		packed := golden(t, name)
		content, err := z.unpack(packed)
		if want := repetitive(100_000); err != nil || name != "stored" && !bytes.Equal(content, want) || name == "stored" && len(content) != 5000 {
			t.Fatalf("%s: %d bytes, %v", name, len(content), err)
		}
		for n := range packed {
			if _, err := z.unpack(packed[:n]); err != io.ErrUnexpectedEOF {
				t.Fatalf("%s: %d of %d bytes: %v", name, n, len(packed), err)
			}
		}
		for bit := range len(packed) * 8 {
			packed[bit/8] ^= 1 << (bit % 8)
			if got, err := z.unpack(packed); err == nil && !bytes.Equal(got, content) {
				t.Errorf("%s: bit %d of byte %d of %d changed the content", name, bit%8, bit/8, len(packed))
			}
			packed[bit/8] ^= 1 << (bit % 8)
		}
	}
}

// corpus returns n bytes much like the files of a PostgreSQL cluster: pages of 8 KiB with a header, line pointers, and rows of
// counters and words; every eighth page is random.
func corpus(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	words := []string{"alpha", "customer", "order", "Müller", "pending", "2026-11-21", "shipped", "https://example.org/"}
	le := binary.LittleEndian
	b := make([]byte, 0, n+8192)
	for page := uint32(0); len(b) < n; page++ {
		p := b[len(b) : len(b)+8192]
		b = b[:len(b)+8192]
		if page%8 == 7 {
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			continue
		}
		le.PutUint64(p, uint64(page)*8192+rng.Uint64N(8192))
		le.PutUint16(p[8:], uint16(rng.Uint32()))
		at := 8192
		for item := 24; at-item > 200; item += 4 {
			row := p[at-112-rng.IntN(40) : at]
			at -= len(row)
			le.PutUint32(p[item:], uint32(at)|1<<15|uint32(len(row))<<17)
			le.PutUint32(row, 700+page/50)
			le.PutUint64(row[12:], uint64(page)<<16|uint64(item))
			le.PutUint32(row[24:], page*60+uint32(item))
			le.PutUint32(row[28:], rng.Uint32N(100_000))
			for i := 40; i < len(row)-20; i += 20 {
				copy(row[i:i+20], words[rng.IntN(len(words))])
			}
		}
		le.PutUint16(p[12:], uint16(at))
	}
	return b[:n]
}

func BenchmarkCompress(b *testing.B) {
	content := corpus(1, 64<<20)
	for _, c := range codecs[:3] {
		for _, parallel := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/%d", c.name, parallel), func(b *testing.B) {
				b.SetBytes(int64(len(content)))
				b.ReportMetric(float64(len(c.pack(b, content)))/float64(len(content)), "ratio")
				for b.Loop() {
					z := c.compress(bytes.NewReader(content), compress.Options{Parallel: parallel})
					if _, err := z.(io.WriterTo).WriteTo(io.Discard); err != nil {
						b.Fatal(err)
					}
					z.Close()
				}
			})
		}
	}
}

func BenchmarkDecompress(b *testing.B) {
	content := corpus(1, 64<<20)
	streams := others(b, content)[:3]
	for _, c := range codecs[:3] {
		streams = append(streams, stream{c.name, c.method, c.pack(b, content)})
	}
	for _, s := range streams {
		b.Run(s.name, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				z := of(s.method).decompress(bytes.NewReader(s.packed))
				if s.name == pure.name {
					z = pure.decompress(bytes.NewReader(s.packed))
				}
				if _, err := z.(io.WriterTo).WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
				z.Close()
			}
		})
	}
}

// However many streams there are, no more frames are compressed at once than there are turns, and all of them are in the end.
func TestFramesAreCompressedInTurns(t *testing.T) {
	const turns, streams = 3, 10
	working, goOn := make(chan struct{}), make(chan struct{})
	compressed, most := compress.CompressInTurns(turns, working, goOn)
	content := bytes.Repeat([]byte("a page of WAL "), 3*compress.FrameSize/14)
	var all sync.WaitGroup
	for i := range streams {
		all.Go(func() {
			z := compressed(bytes.NewReader(content), compress.Options{Parallel: 1 + i%2})
			defer z.Close()
			r := compress.Decompress(z, compress.Zstd)
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
				t.Errorf("read %d bytes of %d: %v", len(got), len(content), err)
			}
		})
	}
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	for range turns { // as many as may are at work before the first of them is done
		<-working
	}
	for waiting := turns; ; {
		var done chan<- struct{}
		if waiting > 0 {
			done = goOn
		}
		select {
		case <-working:
			waiting++
		case done <- struct{}{}:
			waiting--
		case <-ended:
			if got := most.Load(); got != turns {
				t.Errorf("%d frames were compressed at once, want %d", got, turns)
			}
			return
		}
	}
}

// A decoder of foreign streams serves one after the other, whatever the one before it was: of another window, cut short, or closed in its midst.
func TestForeignStreamsOneAfterTheOther(t *testing.T) {
	streams := map[int]struct{ content, packed []byte }{}
	for i, window := range []int{1 << 10, 1 << 20, 8 << 20} {
		content := make([]byte, 3<<20)
		for j := range content {
			content[j] = byte(j * (i + 1) >> 7)
		}
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		streams[i] = struct{ content, packed []byte }{content, b.Bytes()}
	}
	var g errgroup.Group
	for seed := range uint64(4) {
		g.Go(func() error {
			rnd := rand.New(rand.NewPCG(seed, 1))
			for range 40 {
				s := streams[rnd.IntN(len(streams))]
				cut := rnd.IntN(2) * rnd.IntN(len(s.packed))
				r := compress.Decompress(bytes.NewReader(s.packed[:len(s.packed)-cut]), compress.Zstd)
				read := int64(len(s.content) + 1)
				if rnd.IntN(3) == 0 {
					read = rnd.Int64N(read)
				}
				got, err := io.ReadAll(io.LimitReader(r, read))
				r.Close()
				if !bytes.Equal(got, s.content[:len(got)]) || err == nil && len(got) < int(min(read, int64(len(s.content)))) || err != nil && cut == 0 {
					return fmt.Errorf("%d of %d bytes, %d cut off: %d bytes that differ, or %v", read, len(s.content), cut, len(got), err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
