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
	"testing/iotest"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/test/waltest"
)

const tailSegment = "000000010000000000000003"

// segmentOf makes up the content of segment 3: a header, and bytes none of which is 0.
func segmentOf(size wal.SegmentSize) []byte {
	b := random(3, int(size))
	for i := range b {
		b[i] |= 0x80
	}
	waltest.PutHeader(b, size, 1, 3, 7)
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
		"no header": func(a *archive.Archive, m *storetest.Memory) {
			if err := m.Delete(t.Context(), archive.TailDir+tailSegment+"/00000000-00000064.zst"); err != nil {
				t.Fatal(err)
			}
			putTail(t, a, zeros, 0, 100)
		},
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

// A piece that was torn is passed over where others hold what it should, however far it reaches; where they do not that is an error.
func TestOpenWALPassesTornPiecesOver(t *testing.T) {
	content := segmentOf(mib)
	for _, c := range []struct {
		torn, sound []span
		want        int64 // below 0 for an error
	}{
		{[]span{{0, 3000}}, []span{{0, 1500}, {1500, 3000}}, 3000},
		{[]span{{0, 3000}}, []span{{0, 1500}, {1500, 3000}, {3000, 5000}}, 5000},
		{[]span{{0, 3000}, {0, 2000}, {100, 2900}}, []span{{0, 100}, {50, 2500}, {2400, 3100}}, 3100},
		{[]span{{0, 3000}}, []span{{0, 1500}}, -1},
		{[]span{{0, 3000}, {0, 1500}}, nil, -1},
		{[]span{{40, 9000}}, []span{{0, 100}}, -1},
	} {
		for what, spoil := range map[string]func(m *storetest.Memory, p archive.TailPiece){
			"torn":    func(m *storetest.Memory, p archive.TailPiece) { tear(t, m, p.Object) },
			"garbage": func(m *storetest.Memory, p archive.TailPiece) { put(t, m, p.Object, []byte("what is that")) },
			"of another length": func(m *storetest.Memory, p archive.TailPiece) {
				other := owned(t, &storetest.Memory{}, archive.Options{})
				from := putTail(t, other, content, p.Start, p.End-1)
				put(t, m, p.Object, bytesOf(t, other.Store(), from.Object))
			},
		} {
			m := &storetest.Memory{}
			a := owned(t, m, archive.Options{})
			for _, s := range c.sound {
				putTail(t, a, content, s.start, s.end)
			}
			for _, s := range c.torn {
				spoil(m, putTail(t, a, content, s.start, s.end))
			}
			r, err := a.OpenWAL(t.Context(), tailSegment)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(r)
				r.Close()
			}
			switch {
			case c.want < 0:
				if err == nil || errors.Is(err, fs.ErrNotExist) || archive.IsVanished(err) {
					t.Errorf("%s %v beside %v: %v", what, c.torn, c.sound, err)
				}
			case err != nil || !bytes.Equal(got, append(bytes.Clone(content[:c.want]), make([]byte, int64(mib)-c.want)...)):
				t.Errorf("%s %v beside %v: %d bytes, %v", what, c.torn, c.sound, len(got), err)
			}
		}
	}
}

// tear takes the last bytes of an object away.
func tear(t *testing.T, m *storetest.Memory, object string) {
	t.Helper()
	b := bytesOf(t, m, object)
	put(t, m, object, b[:len(b)-10])
}

// bytesOf reads an object.
func bytesOf(t *testing.T, s store.Store, object string) []byte {
	t.Helper()
	r, err := s.Open(t.Context(), object)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() // only read
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
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

// A piece that is there stays: the same again is fine, and something else is an error.
func TestPutTailOverwritesNothing(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	put := func(text string) error {
		_, err := a.PutTail(t.Context(), tailSegment, 0, 100, strings.NewReader(strings.Repeat(text, 100)))
		return err
	}
	if err := errors.Join(put("a"), put("a")); err != nil {
		t.Fatal(err)
	}
	var conflict *archive.ConflictError
	if err := put("b"); !errors.As(err, &conflict) || conflict.Name != tailSegment || conflict.Object != archive.TailDir+tailSegment+"/00000000-00000064.zst" {
		t.Errorf("got %v", err)
	}
	pieces, err := a.TailPieces(t.Context(), tailSegment)
	if err != nil || len(pieces) != 1 {
		t.Fatal(pieces, err)
	}
	r, err := a.OpenTailPiece(t.Context(), pieces[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != strings.Repeat("a", 100) {
		t.Errorf("%.10q…, %v", got, err)
	}
}

// A host that has no key to read takes a piece of that name for its own, and says of no other what it holds.
func TestPutTailWithoutAKeyToRead(t *testing.T) {
	both, public := ageKeys(t)
	for name, o := range map[string]archive.Options{"public keys": {Key: public, WriteOnly: true}, "no key": {}} {
		m := &storetest.Memory{}
		first := archive.New(m, archive.Options{Key: public, WriteOnly: true})
		content := segmentOf(mib)
		p := putTail(t, first, content, 0, 100)
		a := archive.New(m, o)
		putTail(t, a, content, 0, 100)
		r, err := a.OpenTailPiece(t.Context(), p)
		if err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		if !archive.IsLocked(err) {
			t.Errorf("%s: %v", name, err)
		}
		reader := archive.New(m, archive.Options{Key: both})
		if r, err = reader.OpenTailPiece(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[:100]) {
			t.Errorf("%s: read with the key %d bytes, %v", name, len(got), err)
		}
		r.Close()
	}
}

// A piece of that name that cannot be read is told from a store that cannot be reached.
func TestPutTailOverWhatCannotBeRead(t *testing.T) {
	old, _ := ageKeys(t)
	both, _ := ageKeys(t)
	content := segmentOf(mib)
	for what, spoil := range map[string]func(s store.Store, p archive.TailPiece){
		"torn": func(s store.Store, p archive.TailPiece) {
			r, err := s.Open(t.Context(), p.Object)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err = errors.Join(err, r.Close()); err != nil {
				t.Fatal(err)
			}
			put(t, s, p.Object, b[:len(b)-30])
		},
		"of another key": func(s store.Store, p archive.TailPiece) {
			if err := s.Delete(t.Context(), p.Object); err != nil {
				t.Fatal(err)
			}
			putTail(t, archive.New(s, archive.Options{Key: old}), content, p.Start, p.End)
		},
	} {
		m := &storetest.Memory{}
		a := archive.New(m, archive.Options{Key: both})
		spoil(m, putTail(t, a, content, 0, 3000))
		again := func(a *archive.Archive) error {
			_, err := a.PutTail(t.Context(), tailSegment, 0, 3000, bytes.NewReader(content[:3000]))
			return err
		}
		unreadable := (*archive.UnreadablePieceError)(nil)
		if err := again(a); !errors.As(err, &unreadable) || !strings.HasSuffix(unreadable.Object, "/00000000-00000BB8.zst") {
			t.Errorf("%s: %v", what, err)
		}
		if err := again(archive.New(breaking{m}, archive.Options{Key: both})); !errors.Is(err, errBreaking) || errors.As(err, &unreadable) {
			t.Errorf("%s, and the store breaks: %v", what, err)
		}
	}
}

// breaking is a store of which no object is read to its end.
type breaking struct{ *storetest.Memory }

var errBreaking = errors.New("the connection was reset")

func (s breaking) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := s.Memory.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, 10), iotest.ErrReader(errBreaking)), r}, nil
}

// What is summed up of pieces is what reading them shows: held from the first byte on without a gap, and the farthest that any of them reaches.
func TestAllTails(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	content := strings.Repeat("x", 10_000)
	other := tailSegment[:23] + "F"
	for _, p := range []struct {
		segment    string
		start, end int64
	}{{tailSegment, 0, 50}, {tailSegment, 40, 90}, {tailSegment, 100, 200}, {other, 0, 20}, {"000000020000000000000001", 50, 60}} {
		if _, err := a.PutTail(t.Context(), p.segment, p.start, p.end, strings.NewReader(content[p.start:p.end])); err != nil {
			t.Fatal(err)
		}
	}
	put(t, m, archive.TailDir+tailSegment+"/notes.txt", []byte("no piece"))
	put(t, m, archive.TailDir+"else/00000000-00000001.zst", []byte("no segment"))
	var got []archive.Tail
	for tail, err := range a.AllTails(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if one, err := a.Tail(t.Context(), tail.Name); err != nil || one != tail {
			t.Errorf("of %s alone %+v, %v; among all %+v", tail.Name, one, err, tail)
		}
		if tail.Bytes == 0 || tail.Modified.IsZero() {
			t.Errorf("%+v", tail)
		}
		tail.Bytes, tail.Modified = 0, time.Time{}
		got = append(got, tail)
	}
	want := []archive.Tail{{Name: tailSegment, Pieces: 3, Held: 90, Top: 200}, {Name: other, Pieces: 1}, {Name: "000000020000000000000001", Pieces: 1, Top: 60}}
	if !slices.Equal(got, want) { // fewer bytes than a header takes are none
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Of a segment of which there are very many pieces something is known, and all of the others.
func TestAllTailsOfVeryManyPieces(t *testing.T) {
	m := &storetest.Memory{}
	a := archive.New(m, archive.Options{})
	const n = 1<<16 + 3
	for i := range n {
		put(t, m, fmt.Sprintf("%s%s/%08X-%08X.zst", archive.TailDir, tailSegment, i*2, i*2+2), nil)
	}
	other := tailSegment[:23] + "F"
	put(t, m, archive.TailDir+other+"/00000000-00000064.zst", nil)
	var got []string
	for tail, err := range a.AllTails(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(tail.Name, tail.Pieces, tail.Held, tail.Top))
	}
	if want := []string{fmt.Sprint(tailSegment, n, 2<<16, 2*n), fmt.Sprint(other, 1, 100, 100)}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := a.TailPieces(t.Context(), tailSegment); err == nil {
		t.Error("all pieces of one segment were listed")
	}
}
