package increment_test

import (
	"bytes"
	"encoding/hex"
	"io"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/increment"
	"holdfast/internal/pg/page"
)

// The vectors of the format's description come out, and are read.
func TestVectors(t *testing.T) {
	for want, h := range map[string]increment.Header{
		"77693155006000000000000001000000" + "01000000": {FileSize: 3 * page.Size, Blocks: []uint32{1}},
		"77693155002000000000000000000000":              {FileSize: page.Size},
	} {
		got := h.Append(nil)
		if hex.EncodeToString(got) != want {
			t.Errorf("%+v is %x, want %s", h, got, want)
		}
		back, err := increment.Read(bytes.NewReader(got), h.Size())
		if err != nil || back.FileSize != h.FileSize || !slices.Equal(back.Blocks, h.Blocks) {
			t.Errorf("%x is read as %+v, %v", got, back, err)
		}
	}
}

// What is written is read again, and r is then at the first page.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.IntRange(0, 200_000).Draw(t, "pages")
		h := increment.Header{FileSize: int64(pages) * page.Size}
		for block := 0; block < pages; block += rapid.IntRange(1, 1+pages/10).Draw(t, "step") {
			h.Blocks = append(h.Blocks, uint32(block))
		}
		b := h.Append([]byte("before"))[6:]
		if int64(len(b)) != h.Len() {
			t.Fatalf("%d bytes, Len says %d", len(b), h.Len())
		}
		r := io.MultiReader(bytes.NewReader(b), bytes.NewReader([]byte("page")))
		back, err := increment.Read(r, h.Size())
		if err != nil || back.FileSize != h.FileSize || !slices.Equal(back.Blocks, h.Blocks) {
			t.Fatalf("read %+v, %v", back, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "page" {
			t.Fatalf("left %q", rest)
		}
		for _, n := range []int{0, 3, 15, len(b) - 1} {
			if _, err := increment.Read(bytes.NewReader(b[:n]), h.Size()); err != io.ErrUnexpectedEOF {
				t.Fatalf("%d of %d bytes: %v", n, len(b), err)
			}
		}
	})
}

// What is not an increment is refused.
func TestRefuses(t *testing.T) {
	good := increment.Header{FileSize: 3 * page.Size, Blocks: []uint32{0, 2}}
	for name, change := range map[string]func(b []byte) (size int64){
		"another magic":             func(b []byte) int64 { b[3] = 'V'; return good.Size() },
		"half a page":               func(b []byte) int64 { b[5] = 0x50; return good.Size() },
		"an absurd size":            func(b []byte) int64 { b[11] = 0x50; return good.Size() },
		"more pages than bytes":     func(b []byte) int64 { b[12] = 3; return good.Size() },
		"fewer pages than bytes":    func(b []byte) int64 { b[12] = 1; return good.Size() },
		"one byte more":             func([]byte) int64 { return good.Size() + 1 },
		"hardly a byte":             func([]byte) int64 { return 15 },
		"a block behind the end":    func(b []byte) int64 { b[20] = 3; return good.Size() },
		"a block twice":             func(b []byte) int64 { b[20] = 0; return good.Size() },
		"blocks in the wrong order": func(b []byte) int64 { b[16], b[20] = 2, 1; return good.Size() },
	} {
		b := good.Append(nil)
		if h, err := increment.Read(bytes.NewReader(b), change(b)); err == nil {
			t.Errorf("%s: read as %+v", name, h)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// What a header claims costs no memory before there is something behind it.
func TestClaimsCostNothing(t *testing.T) {
	claim := []byte("wi1U\x00\x00\x00\x00\x00\x10\x00\x00\xFF\xFF\xFF\xFF")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := increment.Read(bytes.NewReader(claim), 16+(4+page.Size)*0xFFFFFFFF); err == nil {
		t.Error("accepted")
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("%d bytes of memory for a claim", used)
	}
}

// What is accepted is written back the same.
func FuzzRead(f *testing.F) {
	for _, h := range []increment.Header{{}, {FileSize: page.Size}, {FileSize: 5 * page.Size, Blocks: []uint32{0, 4}}} {
		f.Add(h.Append(nil), h.Size())
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		r := bytes.NewReader(b)
		h, err := increment.Read(r, size)
		if err != nil {
			return
		}
		if got := h.Append(nil); !bytes.Equal(got, b[:len(b)-r.Len()]) || h.Size() != size {
			t.Errorf("%x of %d bytes came back as %x", b, size, got)
		}
	})
}
