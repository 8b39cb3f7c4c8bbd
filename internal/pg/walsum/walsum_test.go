package walsum_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/walsum"
)

// write writes s and returns the bytes.
func write(t rapid.TB, s *blockset.Set) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := walsum.Write(&b, s); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// same fails the test where two sets differ.
func same(t rapid.TB, got, want *blockset.Set) {
	t.Helper()
	for k, w := range want.All() {
		blocks, limit, ok := got.Get(k)
		if !ok || limit != w.Limit || !blocks.Equals(w.Blocks) {
			t.Errorf("%s: there %v, limit %d, blocks %v, want limit %d, blocks %v", k, ok, limit, blocks, w.Limit, w.Blocks)
		}
	}
	if got.Len() != want.Len() {
		t.Errorf("%d forks, want %d", got.Len(), want.Len())
	}
}

// sealed returns a summary of the entries in hex, with the magic number, the end and the checksum that they need.
func sealed(t testing.TB, entries string) []byte {
	t.Helper()
	body, err := hex.DecodeString("7b132b65" + strings.ReplaceAll(entries, " ", "") + strings.Repeat("00", 24))
	if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.AppendUint32(body, crc32c.Checksum(body))
}

// What is written is what is read, whatever the set.
func TestWrittenIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s blockset.Set
		for range rapid.IntRange(0, 6).Draw(t, "forks") {
			k := blockset.Key{
				Relation: blockset.Relation{
					Tablespace: rapid.OneOf(rapid.Just[uint32](1663), rapid.Uint32Min(1)).Draw(t, "tablespace"),
					Database:   rapid.Uint32().Draw(t, "database"),
					Number:     rapid.Uint32().Draw(t, "number"),
				},
				Fork: blockset.Fork(rapid.Uint8Range(0, 3).Draw(t, "fork")),
			}
			if rapid.Bool().Draw(t, "cut off") {
				s.Truncate(k, rapid.Uint32().Draw(t, "limit"))
			}
			for range rapid.IntRange(0, 3).Draw(t, "stretches") {
				first := rapid.OneOf(rapid.Uint32Range(0, 300_000), rapid.Uint32Range(blockset.NoLimit-70_000, blockset.NoLimit-1)).Draw(t, "first")
				step := rapid.Uint32Range(1, 40).Draw(t, "step")
				// 4095 is a list, 4096 a map.
				for range rapid.SampledFrom([]int{0, 1, 100, 4094, 4095, 4096, 4097, 5000}).Draw(t, "blocks") {
					if first >= blockset.NoLimit-step {
						break
					}
					s.Add(k, first)
					first += step
				}
			}
		}
		b := write(t, &s)
		got, err := walsum.Read(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, &s)
		if again := write(t, got); !bytes.Equal(again, b) {
			t.Errorf("written again it has other bytes")
		}
	})
}

// The bytes of small sets, by hand from blkreftable.c.
func TestForm(t *testing.T) {
	key := blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5, Number: 0x4000}, Fork: blockset.VM}
	for name, c := range map[string]struct {
		fill    func(s *blockset.Set)
		entries string
	}{
		"nothing":   {func(s *blockset.Set) {}, ""},
		"a limit":   {func(s *blockset.Set) { s.Truncate(key, 7) }, "7f060000 05000000 00400000 02000000 07000000 00000000"},
		"one block": {func(s *blockset.Set) { s.Add(key, 258) }, "7f060000 05000000 00400000 02000000 ffffffff 01000000 0100 0201"},
		"a chunk left out": {func(s *blockset.Set) { s.AddMany(key, []uint32{1, 131075, 131074}); s.Truncate(key, 0x70000) },
			"7f060000 05000000 00400000 02000000 00000700 03000000 0100 0000 0200 0100 0200 0300"},
		"a map": {func(s *blockset.Set) {
			for b := range uint32(4096) {
				s.Add(key, 8+b)
			}
		}, "7f060000 05000000 00400000 02000000 ffffffff 01000000 0010 00" + strings.Repeat("ff", 512) + strings.Repeat("00", 8192-513)},
		"two forks": {func(s *blockset.Set) {
			s.Add(key, 1)
			s.Truncate(blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5}}, 0)
		}, "7f060000 05000000 00000000 00000000 00000000 00000000  7f060000 05000000 00400000 02000000 ffffffff 01000000 0100 0100"},
	} {
		t.Run(name, func(t *testing.T) {
			var s blockset.Set
			c.fill(&s)
			want := sealed(t, c.entries)
			if got := write(t, &s); !bytes.Equal(got, want) {
				t.Errorf("written is\n%x\nwant\n%x", got, want)
			}
			got, err := walsum.Read(bytes.NewReader(want))
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, &s)
		})
	}
}

// What PostgreSQL writes and we do not is read too: lists that are not sorted, and maps of few blocks.
func TestServersFreedom(t *testing.T) {
	key := blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5, Number: 0x4000}}
	var want blockset.Set
	want.AddMany(key, []uint32{3, 9, 65536 + 17})
	b := sealed(t, "7f060000 05000000 00400000 00000000 ffffffff 02000000 0200 0010 0900 0300  000002"+strings.Repeat("00", 8189))
	got, err := walsum.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, &want)
}

// Whatever is wrong with a summary is said, and nothing of it is used.
func TestDamageIsFound(t *testing.T) {
	entry := "7f060000 05000000 00400000 00000000 ffffffff 01000000 0100 0900"
	good := sealed(t, entry)
	if _, err := walsum.Read(bytes.NewReader(good)); err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := walsum.Read(bytes.NewReader(good[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes of %d: %v, want io.ErrUnexpectedEOF", n, len(good), err)
		}
		bad := bytes.Clone(good)
		bad[n] ^= 4
		if s, err := walsum.Read(bytes.NewReader(bad)); err == nil || s != nil {
			t.Errorf("byte %d changed: %v, %v", n, s, err)
		}
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"bytes behind":        {append(bytes.Clone(good), 0), "something follows"},
		"a fifth fork":        {sealed(t, strings.Replace(entry, "00000000", "04000000", 1)), "fork 4"},
		"no tablespace":       {sealed(t, strings.Replace(entry, "7f060000", "00000000", 1)), "0/5/16384"},
		"too many chunks":     {sealed(t, strings.Replace(entry, "01000000", "01000100", 1)), "65537 chunks"},
		"too full a chunk":    {sealed(t, strings.Replace(entry, "0100 0900", "0110 0900", 1)), "usage of 4097"},
		"twice the same":      {sealed(t, entry+entry), "comes after"},
		"not in order":        {sealed(t, entry+strings.Replace(entry, "05000000", "04000000", 1)), "1663/4/16384 main comes after 1663/5/16384 main"},
		"an impossible block": {sealed(t, "7f060000 05000000 00400000 00000000 ffffffff 00000100"+strings.Repeat("0000", 65535)+"0100 ffff"), "block 4294967295"},
	} {
		if s, err := walsum.Read(bytes.NewReader(c.b)); err == nil || s != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// A reader's own trouble is not taken for damage.
	own := errors.New("own trouble")
	if _, err := walsum.Read(io.MultiReader(bytes.NewReader(good), iotest.ErrReader(own))); !errors.Is(err, own) {
		t.Errorf("a reader that fails: %v", err)
	}
}

// A writer that fails is noticed, and a set is refused that would not be read back.
func TestWriteFails(t *testing.T) {
	var s blockset.Set
	for n := range uint32(20_000) {
		s.Truncate(blockset.Key{Relation: blockset.Relation{Tablespace: 1663, Database: 5, Number: n + 1}}, 0)
	}
	full := len(write(t, &s))
	for _, n := range []int{0, 1 << 16, full - 1} {
		if err := walsum.Write(&shortWriter{n}, &s); !errors.Is(err, errFull) {
			t.Errorf("full after %d bytes of %d: %v", n, full, err)
		}
	}
	s.Truncate(blockset.Key{}, 0)
	if err := walsum.Write(io.Discard, &s); err == nil || !strings.Contains(err.Error(), "no tablespace") {
		t.Errorf("without a tablespace: %v", err)
	}
}

var errFull = errors.New("full")

// shortWriter takes left bytes.
type shortWriter struct{ left int }

func (w *shortWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	if w.left -= n; n < len(p) {
		return n, errFull
	}
	return n, nil
}

// What is accepted is written in one form, which is read as the same set.
func FuzzRead(f *testing.F) {
	f.Add([]byte{})
	f.Add(sealed(f, ""))
	f.Add(sealed(f, "7f060000 05000000 00400000 00000000 ffffffff 01000000 0100 0900"))
	f.Add(sealed(f, "7f060000 05000000 00400000 00000000 07000000 02000000 0200 0010 0900 0300  000002"+strings.Repeat("00", 8189)))
	files, err := filepath.Glob("testdata/*.summary")
	if err != nil || len(files) == 0 {
		f.Fatalf("testdata: %v, %v", files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// The fuzzer cannot know the checksum: it is made right, so that what lies behind is reached.
		if len(b) > 4 {
			b = binary.LittleEndian.AppendUint32(b[:len(b)-4:len(b)-4], crc32c.Checksum(b[:len(b)-4]))
		}
		s, err := walsum.Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		canonical := write(t, s)
		got, err := walsum.Read(bytes.NewReader(canonical))
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, s)
		if again := write(t, got); !bytes.Equal(again, canonical) {
			t.Error("written again it has other bytes")
		}
	})
}
