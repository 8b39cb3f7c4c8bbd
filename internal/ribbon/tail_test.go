package ribbon_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/ribbon"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// segmentHead is the first page of a segment of PostgreSQL 15, of which nothing but the header is written.
func segmentHead(n wal.SegmentNo) []byte {
	b := make([]byte, 8192)
	le := binary.LittleEndian
	le.PutUint16(b, 0xD110)
	le.PutUint16(b[2:], 0x0002)
	le.PutUint32(b[4:], 1)
	le.PutUint64(b[8:], uint64(size.Start(n)))
	le.PutUint64(b[24:], 7)
	le.PutUint32(b[32:], uint32(size))
	le.PutUint32(b[36:], 8192)
	return b
}

func putPiece(t testing.TB, s store.Store, n wal.SegmentNo, start, end int64) string {
	t.Helper()
	p, err := archive.New(s, archive.Options{}).PutTail(t.Context(), size.Name(1, n), start, end, bytes.NewReader(segmentHead(n)[start:end]))
	if err != nil {
		t.Fatal(err)
	}
	return p.Object
}

// What is there in pieces is read: it counts up to where it is right, or not at all where that cannot be told, and what is amiss is said.
func TestLoadOfPieces(t *testing.T) {
	begin := size.Start(8) // behind the last whole segment of small
	for what, c := range map[string]struct {
		spoil  func(s *storetest.Memory)
		until  wal.LSN
		status ribbon.Status
		note   string
		last   ribbon.Verdict
	}{
		"the header alone": {func(s *storetest.Memory) { putPiece(t, s, 8, 0, wal.HeaderLen) }, begin + wal.HeaderLen, ribbon.OK, "", ribbon.Restorable},
		"less than it":     {func(s *storetest.Memory) { putPiece(t, s, 8, 0, 39) }, begin, ribbon.OK, "", ribbon.Restorable},
		"a gap": {func(s *storetest.Memory) {
			putPiece(t, s, 8, 0, wal.HeaderLen)
			putPiece(t, s, 8, 60, 100)
		}, begin + wal.HeaderLen, ribbon.Warning, "some are missing", ribbon.Restorable},
		"zeros where records should be": {func(s *storetest.Memory) { putPiece(t, s, 8, 0, 100) }, begin + wal.HeaderLen, ribbon.Warning, "are damaged", ribbon.Restorable},
		"a piece that cannot be read": {func(s *storetest.Memory) {
			if err := s.Put(t.Context(), putPiece(t, s, 8, 0, wal.HeaderLen), strings.NewReader("what is that")); err != nil {
				t.Fatal(err)
			}
		}, begin, ribbon.Warning, "", ribbon.Unknown},
		"behind one that is on its way": {func(s *storetest.Memory) { putPiece(t, s, 9, 0, wal.HeaderLen) }, begin, ribbon.OK, "count once what comes before", ribbon.Restorable},
		"of one that is whole":          {func(s *storetest.Memory) { putPiece(t, s, 7, 0, 100) }, begin, ribbon.OK, "", ribbon.Restorable},
	} {
		s := &storetest.Memory{}
		small(t, s)
		c.spoil(s)
		r := judge(t, s, s, ribbon.Options{})
		notes := strings.Join(r.Notes, "\n")
		if brief := judge(t, s, s, ribbon.Options{Brief: true}); lines(brief) != lines(r) || brief.Status != r.Status {
			t.Errorf("%s: in brief %s\n%s", what, brief.Status, lines(brief))
		}
		if r.Until == nil || r.Until.LSN != c.until || r.Status != c.status || !strings.Contains(notes, c.note) || r.Main[len(r.Main)-1].Verdict != c.last {
			t.Errorf("%s: until %+v, %s, %q\n%s", what, r.Until, r.Status, notes, lines(r))
		}
	}
}

// vanishing is a store in which a piece that was listed is gone when it is opened, so many times.
type vanishing struct {
	*storetest.Memory
	object string
	times  int
}

func (s *vanishing) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if name == s.object && s.times > 0 {
		s.times--
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return s.Memory.Open(ctx, name)
}

// Pieces that go while they are read, as a larger one comes for them, are read again; that says of no segment that it cannot be read.
func TestLoadOfPiecesThatVanish(t *testing.T) {
	for times, read := range map[int]int{2: 1, 5: 1, 100: 0} { // the first look has three of them for itself
		s := &vanishing{Memory: &storetest.Memory{}, times: times}
		small(t, s)
		putPiece(t, s, 8, 0, 20)
		s.object = putPiece(t, s, 8, 20, wal.HeaderLen)
		in, err := ribbon.Load(t.Context(), archive.New(s, archive.Options{}), archive.New(s, archive.Options{}), ribbon.Options{Now: day.Add(24 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		if len(in.Locked) > 0 || len(in.Tails) != read {
			t.Errorf("%d times: %+v, locked %+v", times, in.Tails, in.Locked)
		}
		if r := ribbon.Compute(in); r.Until == nil || r.Until.LSN != size.Start(8)+wal.HeaderLen {
			t.Errorf("%d times: until %+v\n%s", times, r.Until, lines(r))
		}
	}
}

// opening counts how often each object is opened.
type opening struct {
	*storetest.Memory
	mu    sync.Mutex
	times map[string]int
}

func (s *opening) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	s.mu.Lock()
	s.times[name]++
	s.mu.Unlock()
	return s.Memory.Open(ctx, name)
}

// A shallow look opens one piece of a segment, also where others overlap it; more only where that is not to be read.
func TestShallowLoadOpensOnePiece(t *testing.T) {
	for what, torn := range map[string][]int{"sound": nil, "the first is torn": {0}, "all are torn": {0, 1, 2}} {
		s := &opening{Memory: &storetest.Memory{}, times: map[string]int{}}
		small(t, s)
		pieces := []string{putPiece(t, s, 8, 0, wal.HeaderLen), putPiece(t, s, 8, 0, 100), putPiece(t, s, 8, 20, 200)}
		for _, i := range torn {
			if err := s.Put(t.Context(), pieces[i], strings.NewReader("what is that")); err != nil {
				t.Fatal(err)
			}
		}
		a := archive.New(s, archive.Options{})
		in, err := ribbon.Load(t.Context(), a, a, ribbon.Options{Shallow: true, Now: day.Add(24 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		if locked := len(in.Locked) > 0; locked != (len(torn) == len(pieces)) {
			t.Errorf("%s: locked %+v", what, in.Locked)
		}
		if n := s.times[pieces[0]] + s.times[pieces[1]] + s.times[pieces[2]]; torn == nil && n != 1 {
			t.Errorf("%s: opened %v", what, s.times)
		}
	}
}
