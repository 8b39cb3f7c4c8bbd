package walfetch_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/store/storetest"
)

// opening counts the pieces that are opened.
type opening struct {
	*storetest.Memory
	pieces atomic.Int32
}

func (s *opening) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.HasPrefix(name, archive.TailDir) {
		s.pieces.Add(1)
	}
	return s.Memory.Open(ctx, name)
}

// Of a segment that the server is still writing PostgreSQL gets what the archive has when it asks, never what it had before.
func TestUnfinishedSegmentIsNotFetchedAhead(t *testing.T) {
	t.Parallel()
	s := &opening{Memory: filled(t, 1, 3)}
	v := newServer(t, s)
	a := archive.New(v.store, archive.Options{})
	last := segment(name(4))
	tail := func(start, end int64) {
		t.Helper()
		if _, err := a.PutTail(t.Context(), name(4), start, end, bytes.NewReader(last[start:end])); err != nil {
			t.Fatal(err)
		}
	}
	tail(0, 4096)
	tail(0, 8192) // which overlaps
	v.runAhead(v.archive())
	for no := 1; no <= 3; no++ {
		if _, err := v.fetch(name(no)); err != nil {
			t.Fatal(err)
		}
	}
	v.running.Wait() // Ahead has come to the end of what is whole
	if n := s.pieces.Load(); n != 0 {
		t.Errorf("it opened %d pieces to throw them away", n)
	}
	tail(8192, 300_000)
	report, err := v.fetch(name(4))
	if err != nil || report.Ahead || report.Bytes != int64(size) {
		t.Fatalf("%+v, %v", report, err)
	}
	got, err := os.ReadFile(v.dest())
	if err != nil || !bytes.Equal(got, append(bytes.Clone(last[:300_000]), make([]byte, int(size)-300_000)...)) {
		t.Errorf("%d bytes, %v: not the pieces and zeros", len(got), err)
	}
	v.running.Wait()
}
