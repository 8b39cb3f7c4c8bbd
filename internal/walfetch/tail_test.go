package walfetch_test

import (
	"bytes"
	"os"
	"testing"

	"holdfast/internal/archive"
)

// Of a segment that the server is still writing PostgreSQL gets what the archive has when it asks, never what it had before.
func TestUnfinishedSegmentIsNotFetchedAhead(t *testing.T) {
	t.Parallel()
	v := newServer(t, filled(t, 1, 3))
	a := archive.New(v.store, archive.Options{})
	last := segment(name(4))
	tail := func(start, end int64) {
		t.Helper()
		if _, err := a.PutTail(t.Context(), name(4), start, end, bytes.NewReader(last[start:end])); err != nil {
			t.Fatal(err)
		}
	}
	tail(0, 8192)
	v.runAhead(v.archive())
	for no := 1; no <= 3; no++ {
		if _, err := v.fetch(name(no)); err != nil {
			t.Fatal(err)
		}
	}
	v.running.Wait() // Ahead has come to the end of what is whole
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
