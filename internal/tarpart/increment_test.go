package tarpart_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"holdfast/internal/crc32c"
	"holdfast/internal/increment"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/tarpart"
)

// pack returns the stream of a part, read in pieces of at most n bytes, and its only member.
func pack(t interface{ Fatal(...any) }, p *tarpart.Packer, n int) ([]byte, tarpart.Member) {
	var stream []byte
	for buf := make([]byte, n); ; {
		n, err := p.Read(buf)
		stream = append(stream, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(p.Members()) != 1 {
		t.Fatal(len(p.Members()), " members")
	}
	return stream, p.Members()[0]
}

// Whichever pages are chosen, and however many of them were read already, the part holds an increment of just these, and its
// description says so. The same pages that come as a stream make the same member.
func TestIncrements(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 200).Draw(t, "pages of the file")
		file := filepath.Join(dir, "16384.1")
		whole := pages(7, 131072, uint32(n))
		if err := os.WriteFile(file, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		h := increment.Header{FileSize: int64(n) * page.Size}
		var want []byte
		for b := range n {
			if rapid.Bool().Draw(t, "changed") {
				h.Blocks = append(h.Blocks, uint32(b))
				want = append(want, whole[b*page.Size:][:page.Size]...)
			}
		}
		read := want[:rapid.IntRange(0, len(h.Blocks)).Draw(t, "read")*page.Size]
		verify := rapid.Bool().Draw(t, "verify")
		buffer := rapid.IntRange(1, 300_000).Draw(t, "buffer")
		p := tarpart.NewPacker(list(tarpart.Entry{
			Path: "base/5/16384.1", Mode: 0o600, File: file, Paged: true, Verify: verify, FirstBlock: 131072,
			Choose: func(f *os.File, info fs.FileInfo) (tarpart.Choice, error) {
				if f.Name() != file || info.Size() != int64(len(whole)) {
					t.Errorf("asked about %s of %d bytes", f.Name(), info.Size())
				}
				return tarpart.Choice{Increment: &h, Read: read}, nil
			},
		}), tarpart.Options{})
		stream, m := pack(t, p, buffer)
		content := stream[m.Offset:][:m.Size]
		if !bytes.Equal(content, append(h.Append(nil), want...)) {
			t.Fatalf("the member is not the increment of blocks %v", h.Blocks)
		}
		blocks, err := m.Blocks()
		if err != nil || m.Check() != nil || m.Total() != h.FileSize || !slices.Equal(blocks.ToArray(), h.Blocks) && len(h.Blocks) > 0 {
			t.Fatalf("%+v has blocks %v, %v, %v", m, blocks, err, m.Check())
		}
		if m.CRC != crc32c.Checksum(content) || int(m.Pages) != len(h.Blocks) || len(p.Sums()) != 4*len(h.Blocks) {
			t.Fatalf("%+v, %d bytes of sums", m, len(p.Sums()))
		}
		for i := range h.Blocks {
			if got := binary.LittleEndian.Uint32(p.Sums()[4*i:]); got != crc32c.Checksum(want[i*page.Size:][:page.Size]) {
				t.Fatalf("sum of page %d is %08x", i, got)
			}
		}
		p = tarpart.NewPacker(list(tarpart.Entry{
			Path: "base/5/16384.1", Mode: 0o600, ModTime: m.ModTime, Stream: iotest.OneByteReader(bytes.NewReader(want)), Increment: &h,
			Paged: true, Verify: verify, FirstBlock: 131072,
		}), tarpart.Options{})
		again, _ := pack(t, p, buffer)
		if !bytes.Equal(again, stream) {
			t.Fatal("the increment of a stream is another")
		}
	})
}

// Of each page of a file there is a checksum, unless the file is not made of pages.
func TestSumsOfPages(t *testing.T) {
	content := pages(3, 0, 100)
	file := write(t, filepath.Join(t.TempDir(), "1"), content)
	odd := write(t, filepath.Join(t.TempDir(), "2"), content[:3*page.Size+1])
	p := tarpart.NewPacker(list(
		tarpart.Entry{Path: "1", File: file, Paged: true},
		tarpart.Entry{Path: "2", File: odd, Paged: true},
		tarpart.Entry{Path: "3", File: file},
		tarpart.Entry{Path: "4", Stream: bytes.NewReader(content), Size: page.Size, Verify: true},
	), tarpart.Options{})
	if _, err := io.Copy(io.Discard, p); err != nil {
		t.Fatal(err)
	}
	var counts []uint32
	for _, m := range p.Members() {
		counts = append(counts, m.Pages)
	}
	if !slices.Equal(counts, []uint32{100, 0, 0, 1}) || len(p.Sums()) != 404 {
		t.Fatalf("pages %v, %d bytes of sums", counts, len(p.Sums()))
	}
	for i := range 101 {
		at := i % 100 * page.Size
		if got := binary.LittleEndian.Uint32(p.Sums()[4*i:]); got != crc32c.Checksum(content[at:][:page.Size]) {
			t.Errorf("sum %d is %08x", i, got)
		}
	}
	if m := p.Members()[0]; m.CRC != crc32c.Checksum(content) {
		t.Errorf("the file's is %08x", m.CRC)
	}
}

// A stream that ends early fails the part; a page of it that is torn is told unless it was written since the backup began.
func TestStreams(t *testing.T) {
	content := pages(3, 0, 3)
	entry := func(b []byte) tarpart.Entry {
		return tarpart.Entry{Path: "1", Stream: bytes.NewReader(b), Size: int64(len(content)), Verify: true}
	}
	for _, n := range []int{0, page.Size, len(content) - 1} {
		if _, err := io.Copy(io.Discard, tarpart.NewPacker(list(entry(content[:n])), tarpart.Options{})); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a stream of %d bytes: %v", n, err)
		}
	}
	torn := bytes.Clone(content)
	torn[page.Size+5000] ^= 1
	lsn := uint64(binary.LittleEndian.Uint32(torn[page.Size:]))<<32 | uint64(binary.LittleEndian.Uint32(torn[page.Size+4:]))
	for start, want := range map[uint64]int{0: 1, lsn: 0, lsn + 1: 1} {
		p := tarpart.NewPacker(list(entry(torn)), tarpart.Options{Start: wal.LSN(start)})
		if _, m := pack(t, p, 1<<20); m.CorruptCount != want || m.CRC != crc32c.Checksum(torn) {
			t.Errorf("page of %x, backup from %x: %d corrupt pages, want %d", lsn, start, m.CorruptCount, want)
		}
	}
}

// What a file's Choose returns is done: nothing of it, or an error.
func TestChoose(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "1"), make([]byte, 10))
	boom := errors.New("boom")
	entry := tarpart.Entry{Path: "1", File: file, Choose: func(*os.File, fs.FileInfo) (tarpart.Choice, error) { return tarpart.Choice{Nothing: true}, nil }}
	p := tarpart.NewPacker(list(entry, tarpart.Entry{Path: "2", File: file}), tarpart.Options{})
	if _, m := pack(t, p, 1000); m.Path != "2" || m.Inode == 0 || m.Changed.IsZero() {
		t.Errorf("member %+v", m)
	}
	entry.Choose = func(*os.File, fs.FileInfo) (tarpart.Choice, error) { return tarpart.Choice{}, boom }
	if _, err := io.Copy(io.Discard, tarpart.NewPacker(list(entry), tarpart.Options{})); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
}

// A corrupt page of an increment is told by its number in the file.
func TestCorruptPagesOfIncrements(t *testing.T) {
	content := pages(1, 0, 10)
	content[7*page.Size+5000] ^= 1
	file := write(t, filepath.Join(t.TempDir(), "1"), content)
	h := increment.Header{FileSize: int64(len(content)), Blocks: []uint32{2, 6, 7, 9}}
	for _, read := range [][]byte{nil, slices.Concat(content[2*page.Size:3*page.Size], content[6*page.Size:8*page.Size])} {
		p := tarpart.NewPacker(list(tarpart.Entry{Path: "1", File: file, Verify: true, Choose: func(*os.File, fs.FileInfo) (tarpart.Choice, error) {
			return tarpart.Choice{Increment: &h, Read: read}, nil
		}}), tarpart.Options{})
		if _, m := pack(t, p, 1<<20); m.CorruptCount != 1 || !slices.Equal(m.Corrupt, []uint32{7}) {
			t.Errorf("%d corrupt: %v", m.CorruptCount, m.Corrupt)
		}
	}
}

// What a manifest says of a member is checked, and what is accepted has the pages it claims.
func FuzzMember(f *testing.F) {
	h := increment.Header{FileSize: 9 * page.Size, Blocks: []uint32{1, 2, 8}}
	p := tarpart.NewPacker(list(
		tarpart.Entry{Path: "base/1/2", Stream: bytes.NewReader(make([]byte, 3*page.Size)), Increment: &h},
		tarpart.Entry{Path: "base/1/3", Content: make([]byte, page.Size), Paged: true},
	), tarpart.Options{})
	if _, err := io.Copy(io.Discard, p); err != nil {
		f.Fatal(err)
	}
	for _, m := range p.Members() {
		b, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add([]byte(strings.Replace(string(b), `"pages":3`, `"pages":4`, 1)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m tarpart.Member
		if json.Unmarshal(b, &m) != nil || m.Check() != nil || m.Increment == nil {
			return
		}
		set, err := m.Blocks()
		if err != nil {
			return
		}
		if n := set.GetCardinality(); n != uint64(m.Pages) || m.Size != increment.Size(m.Pages) || n > 0 && int64(set.Maximum())*page.Size >= m.Total() {
			t.Errorf("%s came through with %d blocks", b, n)
		}
	})
}
