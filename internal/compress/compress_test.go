package compress_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"holdfast/internal/compress"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var le = binary.LittleEndian

var methods = []compress.Method{compress.Zstd, compress.LZ4, compress.None}

// pack returns content compressed with m.
func pack(t testing.TB, content []byte, m compress.Method, o compress.Options) []byte {
	t.Helper()
	z := compress.Compress(bytes.NewReader(content), m, o)
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatalf("compress %d bytes with %s: %v", len(content), m, err)
	}
	return b
}

// unpack returns what b holds.
func unpack(b []byte, m compress.Method) ([]byte, error) {
	z := compress.Decompress(bytes.NewReader(b), m)
	defer z.Close()
	return io.ReadAll(z)
}

// What was compressed comes back, however it is read and written.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		content := corpus(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(0, 3*compress.FrameSize+1).Draw(t, "length"))
		m := rapid.SampledFrom(methods).Draw(t, "method")
		o := compress.Options{
			Level:    rapid.SampledFrom([]compress.Level{compress.Fastest, compress.Default}).Draw(t, "level"),
			Parallel: rapid.IntRange(0, 3).Draw(t, "parallel"),
		}
		src := io.Reader(bytes.NewReader(content))
		if rapid.Bool().Draw(t, "data with error") {
			src = iotest.DataErrReader(src)
		}
		packed, err := drain(compress.Compress(src, m, o), rapid.Bool().Draw(t, "WriteTo"))
		if err != nil {
			t.Fatalf("compress: %v", err)
		}
		got, err := drain(compress.Decompress(bytes.NewReader(packed), m), rapid.Bool().Draw(t, "WriteTo"))
		if err != nil {
			t.Fatalf("decompress: %v", err)
		}
		if !bytes.Equal(got, content) {
			t.Fatalf("%d bytes came back as %d others", len(content), len(got))
		}
	})
}

// drain reads z to its end and closes it.
func drain(z io.ReadCloser, writeTo bool) ([]byte, error) {
	defer z.Close()
	var b bytes.Buffer
	if writeTo {
		_, err := z.(io.WriterTo).WriteTo(&b)
		return b.Bytes(), err
	}
	_, err := io.CopyBuffer(&b, struct{ io.Reader }{z}, make([]byte, 10_001))
	return b.Bytes(), err
}

// An error of the source comes out as it is, from both directions.
func TestSourceError(t *testing.T) {
	content := corpus(1, 2*compress.FrameSize+100)
	broken := errors.New("broken")
	for _, m := range methods {
		for _, parallel := range []int{1, 3} {
			for _, cut := range []int{0, 1, 100, compress.FrameSize, compress.FrameSize + 1, len(content)} {
				src := io.MultiReader(bytes.NewReader(content[:cut]), iotest.ErrReader(broken))
				if _, err := drain(compress.Compress(src, m, compress.Options{Parallel: parallel}), parallel == 3); err != broken {
					t.Errorf("compress %s, source broken after %d bytes: %v, want %v", m, cut, err, broken)
				}
			}
		}
		packed := pack(t, content, m, compress.Options{})
		for _, cut := range []int{0, 1, 100, len(packed) - 1, len(packed)} {
			for _, broken := range []error{broken, io.ErrUnexpectedEOF} {
				src := io.MultiReader(bytes.NewReader(packed[:cut]), iotest.ErrReader(broken))
				if _, err := drain(compress.Decompress(src, m), cut&1 == 0); err != broken {
					t.Errorf("decompress %s, source broken after %d bytes: %v, want %v", m, cut, err, broken)
				}
			}
		}
	}
}

// corpus returns n bytes much like the files of a PostgreSQL cluster: pages of 8 KiB with a header, line pointers, and rows
// of counters, padding and words, among them every eighth page random.
func corpus(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	words := []string{"alpha", "customer", "order", "Müller", "pending", "2026-11-21", "shipped", "https://example.org/"}
	b := make([]byte, 0, n+8192)
	for page := uint32(0); len(b) < n; page++ {
		p := b[len(b) : len(b)+8192]
		b = b[:len(b)+8192]
		clear(p)
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
