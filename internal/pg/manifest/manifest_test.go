package manifest_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/wal"
)

// content is what a manifest says.
type content struct {
	System uint64
	Files  []manifest.File
	Ranges []manifest.WALRange
}

func read(r io.Reader) (content, error) {
	m, err := manifest.NewReader(r)
	if err != nil {
		return content{}, err
	}
	c := content{System: m.SystemIdentifier()}
	for {
		f, err := m.Next()
		if err == io.EOF {
			c.Ranges = m.WALRanges()
			return c, nil
		}
		if err != nil {
			return c, err
		}
		c.Files = append(c.Files, f)
	}
}

func write(c content) ([]byte, error) {
	var b bytes.Buffer
	m := manifest.NewWriter(&b, c.System)
	for _, f := range c.Files {
		if err := m.Add(f); err != nil {
			return nil, err
		}
	}
	err := m.Close(c.Ranges)
	return b.Bytes(), err
}

// goldens are manifests that PostgreSQL's own tools wrote.
func goldens(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/*.manifest.gz")
	if err != nil || len(names) == 0 {
		t.Fatalf("no golden manifests: %v", err)
	}
	m := map[string][]byte{}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		if m[name], err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// What PostgreSQL wrote is read and written back to the byte.
func TestRewritesWhatPostgreSQLWrote(t *testing.T) {
	for name, b := range goldens(t) {
		c, err := read(bytes.NewReader(b))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		again, err := write(c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(string(b), string(again)); d != "" {
			t.Errorf("%s: rewritten (-PostgreSQL +we):\n%s", name, d)
		}
	}
}

var example = content{
	System: 7359000000000000001,
	Files: []manifest.File{
		{Path: "PG_VERSION", Size: 3, Modified: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), Algorithm: manifest.CRC32C,
			Checksum: manifest.ChecksumCRC32C(0x05024464)},
		{Path: "fo\xff", Modified: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), HexPath: true},
		{Path: "base/a\"\\\n\r\t\b\f\x01é", Size: math.MaxInt64, Modified: time.Date(1969, 12, 31, 23, 59, 59, 0, time.UTC)},
	},
	Ranges: []manifest.WALRange{{Timeline: 2, Start: 0x3000000, End: 0x30000A0}, {Timeline: 1, Start: 0x2000028, End: 0x3000000}},
}

const exampleText = `{ "PostgreSQL-Backup-Manifest-Version": 2,
"System-Identifier": 7359000000000000001,
"Files": [
{ "Path": "PG_VERSION", "Size": 3, "Last-Modified": "2024-05-06 07:08:09 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "64440205" },
{ "Encoded-Path": "666fff", "Size": 0, "Last-Modified": "2024-05-06 07:08:09 GMT" },
{ "Path": "base/a\"\\\n\r\t\b\f\u0001é", "Size": 9223372036854775807, "Last-Modified": "1969-12-31 23:59:59 GMT" }
],
"WAL-Ranges": [
{ "Timeline": 2, "Start-LSN": "0/3000000", "End-LSN": "0/30000A0" },
{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/3000000" }
],
"Manifest-Checksum": "`

func TestWritesTheDocumentedText(t *testing.T) {
	b, err := write(example)
	if err != nil {
		t.Fatal(err)
	}
	text, sum := b[:len(exampleText)], b[len(exampleText):]
	if d := cmp.Diff(exampleText, string(text)); d != "" || len(sum) != 64+3 || !bytes.HasSuffix(sum, []byte("\"}\n")) {
		t.Errorf("(-want +got):\n%s\nfollowed by %q", d, sum)
	}
}

func TestReadsBackWhatItWrote(t *testing.T) {
	plain := strings.NewReplacer("/", "_", "\x00", "_")
	rapid.Check(t, func(t *rapid.T) {
		c := content{System: rapid.Uint64().Draw(t, "system")}
		sizes := map[manifest.Algorithm]int{"": 0, "CRC32C": 4, "SHA224": 28, "SHA256": 32, "SHA384": 48, "SHA512": 64}
		for range rapid.IntRange(0, 5).Draw(t, "files") {
			f := manifest.File{
				Path:      "base/" + plain.Replace(string(rapid.SliceOfN(rapid.Byte(), 3, 20).Draw(t, "path"))),
				Size:      rapid.Int64Min(0).Draw(t, "size"),
				Modified:  time.Unix(rapid.Int64Range(-62135596800, 253402300799).Draw(t, "time"), 0).UTC(),
				Algorithm: rapid.SampledFrom([]manifest.Algorithm{"", "CRC32C", "SHA224", "SHA256", "SHA384", "SHA512"}).Draw(t, "algorithm"),
				HexPath:   true,
			}
			if n := sizes[f.Algorithm]; n > 0 {
				f.Checksum = rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "checksum")
			}
			c.Files = append(c.Files, f)
		}
		for range rapid.IntRange(1, 3).Draw(t, "ranges") {
			c.Ranges = append(c.Ranges, manifest.WALRange{
				Timeline: wal.Timeline(rapid.Uint32().Draw(t, "timeline")),
				Start:    wal.LSN(rapid.Uint64().Draw(t, "start")),
				End:      wal.LSN(rapid.Uint64().Draw(t, "end")),
			})
		}
		b, err := write(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := read(bytes.NewReader(b))
		if d := cmp.Diff(c, got); err != nil || d != "" {
			t.Errorf("%v (-written +read):\n%s", err, d)
		}
	})
}

// Whichever byte changes, and wherever it is cut off, a manifest is refused.
func TestReadRefusesDamage(t *testing.T) {
	b, err := write(example)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		for _, flip := range []byte{0x01, 0x20, 0x80} {
			b[i] ^= flip
			if c, err := read(bytes.NewReader(b)); err == nil {
				t.Errorf("byte %d changed to %q: read as %+v", i, b[i], c)
			}
			b[i] ^= flip
		}
		if _, err := read(bytes.NewReader(b[:i])); err == nil || err == io.EOF {
			t.Errorf("the first %d bytes were read as a whole: %v", i, err)
		}
	}
	if _, err := read(io.MultiReader(bytes.NewReader(b), strings.NewReader("\n"))); err == nil {
		t.Error("read with something behind it")
	}
	long := exampleText[:60] + strings.Repeat("x", 100_000)
	if _, err := read(strings.NewReader(long)); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a line of 100 kB: %v", err)
	}
}

// Neither side takes a path that leads out of the data directory, nor a checksum that is none.
func TestRefusesBadFiles(t *testing.T) {
	good := example.Files[0]
	for name, spoil := range map[string]func(*manifest.File){
		"no path":        func(f *manifest.File) { f.Path = "" },
		"absolute":       func(f *manifest.File) { f.Path = "/etc/passwd" },
		"parent":         func(f *manifest.File) { f.Path = "../x" },
		"inner parent":   func(f *manifest.File) { f.Path = "base/../x" },
		"dot":            func(f *manifest.File) { f.Path = "." },
		"NUL":            func(f *manifest.File) { f.Path = "a\x00" },
		"negative size":  func(f *manifest.File) { f.Size = -1 },
		"algorithm":      func(f *manifest.File) { f.Algorithm = "MD5" },
		"short checksum": func(f *manifest.File) { f.Checksum = f.Checksum[:3] },
		"stray checksum": func(f *manifest.File) { f.Algorithm = manifest.None },
		"year":           func(f *manifest.File) { f.Modified = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		f := good
		spoil(&f)
		m := manifest.NewWriter(io.Discard, 1)
		err := m.Add(f)
		if err == nil {
			t.Errorf("%s: accepted %+v", name, f)
		}
		if again := m.Close(example.Ranges); again == nil {
			t.Errorf("%s: Close after the error %v: nil", name, err)
		}
	}
	for _, path := range []string{"/etc/passwd", "../x", "", "base/./x"} {
		b, err := write(example)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.Replace(b, []byte(`"PG_VERSION"`), fmt.Appendf(nil, "%q", path), 1)
		if _, err := read(bytes.NewReader(b)); err == nil || !strings.Contains(err.Error(), "inside a data directory") {
			t.Errorf("%q: %v", path, err)
		}
	}
	if err := manifest.NewWriter(io.Discard, 1).Close(nil); err == nil {
		t.Error("a manifest without WAL ranges")
	}
}

// What the writer below fails with is what Close returns.
func TestWriterReportsItsWritersErrors(t *testing.T) {
	full := errors.New("disk full")
	r, w := io.Pipe()
	r.CloseWithError(full)
	m := manifest.NewWriter(w, 1)
	for range 10_000 { // more than any buffer
		if err := m.Add(example.Files[0]); err != nil && !errors.Is(err, full) {
			t.Fatal(err)
		}
	}
	if err := m.Close(example.Ranges); !errors.Is(err, full) {
		t.Errorf("Close: %v", err)
	}
}

// A list of 200 000 files costs neither side more memory than one of two.
func TestMemoryDoesNotGrowWithFiles(t *testing.T) {
	r, w := io.Pipe()
	go func() {
		m := manifest.NewWriter(w, 1)
		f := example.Files[0]
		for i := range 200_000 {
			f.Path = fmt.Sprintf("base/5/%d", i)
			if err := m.Add(f); err != nil {
				w.CloseWithError(err)
				return
			}
		}
		w.CloseWithError(m.Close(example.Ranges))
	}()
	m, err := manifest.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	var before, now runtime.MemStats
	files := 0
	for ; ; files++ {
		if _, err = m.Next(); err != nil {
			break
		}
		if files%90_000 == 10_000 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			if before.HeapAlloc == 0 {
				before = now
			}
		}
	}
	if err != io.EOF || files != 200_000 {
		t.Fatalf("%d files, then %v", files, err)
	}
	if grown := int64(now.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// The hexadecimal digits of CRC-32C are those of its bytes in a little-endian server's memory.
func TestChecksumCRC32CIsLittleEndian(t *testing.T) {
	if got := manifest.ChecksumCRC32C(0x01020304); binary.BigEndian.Uint32(got) != 0x04030201 {
		t.Errorf("got %x", got)
	}
}

// reseal gives b a last line with the right checksum, so that a fuzzer's changes before it are not all refused for that.
func reseal(b []byte) []byte {
	last := bytes.LastIndexByte(bytes.TrimSuffix(b, []byte("\n")), '\n') + 1
	return fmt.Appendf(bytes.Clone(b[:last]), "\"Manifest-Checksum\": \"%x\"}\n", sha256.Sum256(b[:last]))
}

// What is accepted is written back to the byte.
func FuzzReader(f *testing.F) {
	for _, b := range goldens(f) {
		// The head, few files and the end: a fuzzer spends its time on making long inputs shorter.
		lines := bytes.SplitAfter(b, []byte("\n"))
		f.Add(bytes.Join([][]byte{bytes.Join(lines[:6], nil), bytes.Join(lines[len(lines)-7:], nil)}, nil))
	}
	b, err := write(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := read(bytes.NewReader(reseal(b)))
		if err != nil {
			return
		}
		again, err := write(c)
		if err != nil || !bytes.Equal(again, reseal(b)) {
			t.Errorf("read %q as %+v, wrote %q, %v", b, c, again, err)
		}
	})
}
