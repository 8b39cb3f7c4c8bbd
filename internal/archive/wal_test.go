package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

func opener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// random returns n bytes that compress a little.
func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.IntN(64))
	}
	return b
}

// The same bytes may come again, in any codec; other bytes under a taken name are refused and change nothing.
func TestPutWALNeverOverwrites(t *testing.T) {
	const name = "000000010000000000000001"
	first, second := random(1, 3<<20), random(2, 3<<20)
	methods := []compress.Method{compress.Zstd, compress.LZ4, compress.None}
	for _, before := range methods {
		for _, now := range methods {
			t.Run(fmt.Sprintf("%s then %s", before, now), func(t *testing.T) {
				m := &storetest.Memory{}
				stored, err := archive.New(m, archive.Options{Method: before}).PutWAL(t.Context(), name, opener(first))
				if err != nil || stored == 0 {
					t.Fatalf("first push: %d, %v", stored, err)
				}
				a := archive.New(m, archive.Options{Method: now})
				if stored, err = a.PutWAL(t.Context(), name, opener(first)); err != nil || stored != 0 {
					t.Errorf("same bytes again: got %d bytes stored, %v; want 0, nil", stored, err)
				}
				_, err = a.PutWAL(t.Context(), name, opener(second))
				var conflict *archive.ConflictError
				if !errors.As(err, &conflict) {
					t.Errorf("other bytes: got %v, want a ConflictError", err)
				}
				for _, cut := range [][]byte{first[:len(first)-1], append(bytes.Clone(first), 0)} {
					if _, err = a.PutWAL(t.Context(), name, opener(cut)); !errors.As(err, &conflict) {
						t.Errorf("%d bytes where %d are archived: got %v, want a ConflictError", len(cut), len(first), err)
					}
				}
				if got := readWAL(t, a, name); !bytes.Equal(got, first) {
					t.Error("the archived content changed")
				}
			})
		}
	}
}

func readWAL(t *testing.T, a *archive.Archive, name string) []byte {
	t.Helper()
	r, err := a.OpenWAL(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Whichever store call fails, PutWAL says so, or the file is whole in the archive.
func TestPutWALFailsWhole(t *testing.T) {
	const name = "000000010000000000000001"
	content := random(3, 2<<20)
	for n := 0; ; n++ {
		m := &storetest.Memory{}
		flaky := storetest.FailAt(m, n)
		_, err := archive.New(flaky, archive.Options{}).PutWAL(t.Context(), name, opener(content))
		if !flaky.Reached() {
			return
		}
		if !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("call %d failed, PutWAL returned %v", n, err)
		}
		for o := range store.Walk(t.Context(), m, "") {
			t.Errorf("call %d failed, yet there is %s", n, o.Name)
		}
	}
}

func TestOpenWALFindsEveryName(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	for i, object := range []string{"000000010000000000000001", "000000010000000000000002."} {
		if err := m.Put(t.Context(), archive.WALDir+object, bytes.NewReader([]byte("plain"))); err != nil {
			t.Fatal(err)
		}
		if got := readWAL(t, a, fmt.Sprintf("00000001000000000000000%d", i+1)); string(got) != "plain" {
			t.Errorf("%s: got %q", object, got)
		}
	}
	for _, m2 := range []compress.Method{compress.Brotli, compress.LZMA} { // WAL-G may have written before us
		other := archive.New(m, archive.Options{Method: m2})
		name := "00000001000000000000000" + map[compress.Method]string{compress.Brotli: "4", compress.LZMA: "5"}[m2]
		if _, err := other.PutWAL(t.Context(), name, opener([]byte("packed"))); err != nil {
			t.Fatal(err)
		}
		if got := readWAL(t, a, name); string(got) != "packed" {
			t.Errorf("in %s: got %q", m2, got)
		}
		var conflict *archive.ConflictError
		if _, err := a.PutWAL(t.Context(), name, opener([]byte("other"))); !errors.As(err, &conflict) {
			t.Errorf("other content than in %s: got %v, want a ConflictError", m2, err)
		}
	}
	for _, missing := range []string{"000000010000000000000003", "00000002.history"} {
		if _, err := a.OpenWAL(t.Context(), missing); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want fs.ErrNotExist", missing, err)
		}
	}
}

func TestMissingWAL(t *testing.T) {
	const size = 16 << 20
	m := &storetest.Memory{}
	store := func(object, content string) {
		if err := m.Put(t.Context(), archive.WALDir+object, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	put := func(object string) { store(object, "wal") }
	for _, n := range []wal.SegmentNo{1, 2, 4, 0xFF, 0x100, 0x101} {
		put(wal.SegmentSize(size).Name(1, n) + ".zst")
	}
	put("000000010000000000000003.00000028.backup.zst") // no segment
	put("000000010000000000000005.partial.zst")         // no whole segment
	put("00000001000000000000000A_delta.lz4")           // WAL-G's
	put("00000001000000000000000B.json")                // WAL-G's
	put("000000020000000000000006.lz4")                 // another timeline
	put("000000010000000000000004.lz4")                 // twice
	put("00000001000000000000000C.br")                  // there, though this release cannot read it
	store("00000001000000000000000D.zst", "")           // without a byte
	store("000000010000000000000002.br", "")            // another of one that is there
	a := archive.New(m, archive.Options{})
	for _, c := range []struct {
		first, last wal.SegmentNo
		max         int
		want        []string
	}{
		{1, 2, 0, nil},
		{1, 4, 0, []string{"000000010000000000000003"}},
		{4, 6, 0, []string{"000000010000000000000005", "000000010000000000000006"}},
		{4, 6, 1, []string{"000000010000000000000005"}},
		{0xFF, 0x101, 0, nil},
		{0x101, 0x102, 0, []string{"000000010000000100000002"}},
		{0, 1, 0, []string{"000000010000000000000000"}},
		{12, 12, 0, nil},
		{10, 11, 0, []string{"00000001000000000000000A", "00000001000000000000000B"}},
		{12, 13, 0, []string{"00000001000000000000000D"}},
	} {
		got, err := a.MissingWAL(context.Background(), 1, c.first, c.last, size, c.max)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("MissingWAL(%d, %d, max %d) = %v, %v; want %v", c.first, c.last, c.max, got, err, c.want)
		}
	}
}
