package archive_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

const tailSegment = "000000010000000000000003"

// segmentOf makes up the content of segment 3: a header, and bytes none of which is 0.
func segmentOf(size wal.SegmentSize) []byte {
	b := random(3, int(size))
	for i := range b {
		b[i] |= 0x80
	}
	binary.LittleEndian.PutUint16(b, 0xD110)
	binary.LittleEndian.PutUint16(b[2:], 0x0002)
	binary.LittleEndian.PutUint32(b[4:], 1)
	binary.LittleEndian.PutUint64(b[8:], uint64(size.Start(3)))
	binary.LittleEndian.PutUint64(b[24:], 7)
	binary.LittleEndian.PutUint32(b[32:], uint32(size))
	binary.LittleEndian.PutUint32(b[36:], 8192)
	return b
}

func putTail(t testing.TB, a *archive.Archive, content []byte, start, end int64) archive.TailPiece {
	t.Helper()
	p, err := a.PutTail(t.Context(), tailSegment, start, end, bytes.NewReader(content[start:end]))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// owned returns an archive that is there.
func owned(t testing.TB, s store.Store, o archive.Options) *archive.Archive {
	t.Helper()
	a := archive.New(s, o)
	if err := a.Claim(t.Context(), 7, "here", false); err != nil {
		t.Fatal(err)
	}
	return a
}

type span struct{ start, end int64 }

// A segment in pieces reads as far as they hold it from its first byte on without a gap, and zeros behind.
func TestOpenWALStitchesPieces(t *testing.T) {
	content := segmentOf(mib)
	both, _ := ageKeys(t)
	for _, o := range []archive.Options{{}, {Method: compress.LZ4}, {Method: compress.None}, {Key: both}} {
		for _, c := range []struct {
			pieces []span
			want   int64 // bytes of content; below 0: not there
		}{
			{[]span{{0, 100}}, 100},
			{[]span{{0, 40}}, 40},
			{[]span{{0, 39}}, -1},
			{[]span{{0, 39}, {39, 40}}, 40},
			{[]span{{0, 100}, {100, 8192}, {8192, 300_000}}, 300_000},
			{[]span{{0, 100}, {101, 8192}}, 100},
			{[]span{{40, 8192}}, -1},
			{[]span{{0, 8192}, {100, 5000}, {4000, 9000}, {8999, 9001}}, 9001},
			{[]span{{0, 100}, {50, 200}, {0, 150}, {199, 1 << 20}}, 1 << 20},
			{nil, -1},
		} {
			a := owned(t, &storetest.Memory{}, o)
			for _, p := range c.pieces {
				putTail(t, a, content, p.start, p.end)
			}
			r, err := a.OpenWAL(t.Context(), tailSegment)
			if c.want < 0 {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%v: got %v, want not there", c.pieces, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%v: %v", c.pieces, err)
				continue
			}
			got, err := io.ReadAll(r)
			want := append(bytes.Clone(content[:c.want]), make([]byte, int64(mib)-c.want)...)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v: %d bytes, %v, that differ at %d", c.pieces, len(got), err, differ(got, want))
			}
			if u, ok := r.(interface{ Unfinished() bool }); !ok || !u.Unfinished() {
				t.Errorf("%v: the reader does not say that it is unfinished", c.pieces)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if _, err := a.OpenWholeWAL(t.Context(), tailSegment); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v: as a whole segment: %v", c.pieces, err)
			}
		}
	}
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// A piece that is not what its name says is an error, which is not taken for the end of the archive.
func TestOpenWALRefusesDamagedPieces(t *testing.T) {
	content := segmentOf(mib)
	zeros := make([]byte, 1<<20)
	for what, damage := range map[string]func(a *archive.Archive, m *storetest.Memory){
		"too short":        func(a *archive.Archive, m *storetest.Memory) { rename(t, m, "00000000-00000064", "00000000-00000065") },
		"too long":         func(a *archive.Archive, m *storetest.Memory) { rename(t, m, "00000000-00000064", "00000000-00000063") },
		"second too long":  func(a *archive.Archive, m *storetest.Memory) { rename(t, m, "00000064-000000C8", "00000064-000000C7") },
		"second too short": func(a *archive.Archive, m *storetest.Memory) { rename(t, m, "00000064-000000C8", "00000064-000000C9") },
		"no header":        func(a *archive.Archive, m *storetest.Memory) { putTail(t, a, zeros, 0, 100) },
		"behind the end": func(a *archive.Archive, m *storetest.Memory) {
			putTail(t, a, segmentOf(2*mib), 0, 2<<20)
			putTail(t, a, content, 0, 100)
			rename(t, m, "00000000-00200000", "00000001-00200001")
		},
		"not zstd": func(a *archive.Archive, m *storetest.Memory) {
			put(t, m, archive.TailDir+tailSegment+"/00000000-00000064.zst", []byte("what is that"))
		},
	} {
		m := &storetest.Memory{}
		a := owned(t, m, archive.Options{})
		putTail(t, a, content, 0, 100)
		putTail(t, a, content, 100, 200)
		damage(a, m)
		r, err := a.OpenWAL(t.Context(), tailSegment)
		if err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func rename(t *testing.T, m *storetest.Memory, from, to string) {
	t.Helper()
	dir := archive.TailDir + tailSegment + "/"
	if err := m.Copy(t.Context(), dir+from+".zst", dir+to+".zst"); err != nil {
		t.Fatal(err)
	}
	if err := m.Delete(t.Context(), dir+from+".zst"); err != nil {
		t.Fatal(err)
	}
}

// completing is a store in which the whole segment comes, and its pieces go, in the moment in which they are asked for.
type completing struct {
	*storetest.Memory
	complete func()
	at       string // list or open
}

func (c *completing) List(ctx context.Context, dir, after string) iter.Seq2[store.Object, error] {
	if c.at == "list" && strings.HasPrefix(dir, archive.TailDir) {
		c.complete()
	}
	return c.Memory.List(ctx, dir, after)
}

func (c *completing) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if c.at == "open" && strings.HasPrefix(name, archive.TailDir) {
		c.complete()
	}
	return c.Memory.Open(ctx, name)
}

// In no moment of a segment's completion does it seem to be missing.
func TestOpenWALSeesSegmentBeingCompleted(t *testing.T) {
	content := segmentOf(mib)
	for _, at := range []string{"list", "open"} {
		m := &storetest.Memory{}
		a := owned(t, m, archive.Options{})
		putTail(t, a, content, 0, 100)
		c := &completing{Memory: m, at: at, complete: func() {
			if _, err := a.PutWAL(t.Context(), tailSegment, opener(content)); err != nil {
				t.Fatal(err)
			}
			pieces, err := a.TailPieces(t.Context(), tailSegment)
			if err == nil {
				err = a.RemoveTail(t.Context(), pieces)
			}
			if err != nil {
				t.Fatal(err)
			}
		}}
		if got := readWAL(t, archive.New(c, archive.Options{}), tailSegment); !bytes.Equal(got, content) {
			t.Errorf("at %s: what was read is not the whole segment", at)
		}
		if segments, err := a.Tails(t.Context()); err != nil || len(segments) != 0 {
			t.Errorf("pieces are left of %q, %v", segments, err)
		}
	}
}

func TestTails(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	for _, s := range []string{"000000010000000000000003", "000000020000000000000001"} {
		if _, err := a.PutTail(t.Context(), s, 0, 3, strings.NewReader("abc")); err != nil {
			t.Fatal(err)
		}
	}
	put(t, m, archive.TailDir+"else/00000000-00000001.zst", nil)
	put(t, m, archive.TailDir+tailSegment+"/0-1.zst", nil)
	if got, err := a.Tails(t.Context()); err != nil || !slices.Equal(got, []string{"000000010000000000000003", "000000020000000000000001"}) {
		t.Errorf("got %q, %v", got, err)
	}
	pieces, err := a.TailPieces(t.Context(), tailSegment)
	if err != nil || len(pieces) != 1 || pieces[0].Start != 0 || pieces[0].End != 3 {
		t.Errorf("got %v, %v", pieces, err)
	}
	for _, c := range []struct{ start, end int64 }{{3, 3}, {-1, 3}, {4, 3}, {0, 1<<30 + 1}} {
		if _, err := a.PutTail(t.Context(), tailSegment, c.start, c.end, strings.NewReader("")); err == nil {
			t.Errorf("stored bytes %d to %d of a segment", c.start, c.end)
		}
	}
	if _, err := a.PutTail(t.Context(), "../x", 0, 1, strings.NewReader("")); err == nil {
		t.Error("stored a piece of what is no segment")
	}
}

func TestNewestWAL(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	for _, o := range []string{"000000010000000000000003.zst", "00000001000000000000000A.lz4", "00000001000000000000000B.partial.zst", "00000002.history.zst",
		"000000020000000000000002.zst", "000000010000000000000003.00000028.backup.zst"} {
		put(t, m, archive.WALDir+o, nil)
	}
	for _, c := range []struct {
		t    wal.Timeline
		end  wal.LSN
		want wal.SegmentNo
	}{{1, 0, 10}, {1, mib.Start(10), 3}, {1, mib.Start(10) + 1, 10}, {1, mib.Start(3), 0}, {2, 0, 2}, {3, 0, 0}} {
		got, ok, err := a.NewestWAL(t.Context(), c.t, c.end, mib)
		if err != nil || got != c.want || ok != (c.want != 0) {
			t.Errorf("timeline %d before %s: %d, %v, %v, want %d", c.t, c.end, got, ok, err, c.want)
		}
	}
}

// Whatever lies there: what is read is what the pieces hold from the first byte on without a gap, and zeros, or nothing.
func FuzzTail(f *testing.F) {
	f.Add([]byte{0, 0, 100, 0, 0, 100, 0, 1, 0})
	f.Add([]byte{0, 0, 40, 0, 0, 20, 0, 0, 90, 0, 0, 90, 0, 0, 91})
	f.Add([]byte("00000000-00000064.zst"))
	content := segmentOf(mib)
	f.Fuzz(func(t *testing.T, in []byte) {
		m := &storetest.Memory{}
		a := owned(t, m, archive.Options{Method: compress.None})
		dir := archive.TailDir + tailSegment + "/"
		if name := string(in); store.CheckName(dir+name) == nil && !strings.Contains(name, "/") {
			if err := m.Put(t.Context(), dir+name, bytes.NewReader(in)); err != nil {
				t.Fatal(err)
			}
		}
		held := make([]bool, 1<<16+1)
		known := map[string]bool{fmt.Sprintf("%s%s", dir, in): true}
		for ; len(in) >= 4; in = in[4:] {
			start, end := int64(binary.LittleEndian.Uint16(in)), int64(binary.LittleEndian.Uint16(in[2:]))
			if start < end && len(known) < 64 {
				known[putTail(t, a, content, start, end).Object] = true
				for i := start; i < end; i++ {
					held[i] = true
				}
			}
		}
		pieces, err := a.TailPieces(t.Context(), tailSegment)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pieces {
			if !known[p.Object] || p.Start < 0 || p.Start >= p.End || p.End > 1<<30 {
				t.Fatalf("piece %+v", p)
			}
		}
		n := int64(slices.Index(held, false))
		r, err := a.OpenWAL(t.Context(), tailSegment)
		var got []byte
		if err == nil {
			got, err = io.ReadAll(r)
			r.Close()
		}
		switch {
		case len(pieces) > len(known)-1: // that of the name from outside is another's content
			return
		case n < wal.HeaderLen:
			if !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%d bytes are held: %d read, %v", n, len(got), err)
			}
		case err != nil:
			t.Fatal(err)
		case len(got) != int(mib) || !bytes.Equal(got[:n], content[:n]) || bytes.ContainsFunc(got[n:], func(r rune) bool { return r != 0 }):
			t.Fatalf("%d bytes are held: what is read differs", n)
		}
	})
}
