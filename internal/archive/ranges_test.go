package archive_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/crypt"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// shortRanges answers some requests with less than was asked for.
type shortRanges struct {
	store.Store
	r *rand.Rand
}

func (s shortRanges) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if length > 1 && s.r.IntN(3) == 0 {
		length = 1 + s.r.Int64N(length-1)
	}
	body, err := s.Store.OpenRange(ctx, name, offset, length)
	if err == nil && s.r.IntN(2) == 0 {
		body = &slow{body, s.r}
	}
	return body, err
}

// slow yields little at a time.
type slow struct {
	io.ReadCloser
	r *rand.Rand
}

func (b *slow) Read(p []byte) (int, error) {
	return b.ReadCloser.Read(p[:min(len(p), 1+b.r.IntN(100_000))])
}

// Whatever is asked for, in whatever order and however the store answers: the object's bytes at that place, or an error where it ends.
func TestSourceReadsWhatIsThere(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for round := range 60 {
		object := make([]byte, r.IntN(6*archive.Overlap))
		for i := range object {
			object[i] = byte(r.Uint32())
		}
		m := &storetest.Memory{}
		if err := m.Put(t.Context(), "o", bytes.NewReader(object)); err != nil {
			t.Fatal(err)
		}
		stated := int64(len(object)) // as listed, before somebody replaced the object
		switch round % 6 {
		case 4:
			stated += 1 + r.Int64N(2*archive.Overlap)
		case 5:
			stated -= r.Int64N(stated + 1)
		}
		s := archive.NewSource(t.Context(), shortRanges{m, r}, "o", stated)
		var at int64
		for call := range 200 {
			s.Expect(call < 3, r.Int64N(3*archive.Overlap))
			n := r.Int64N([]int64{10, 5000, 2 * archive.Overlap, 4 * archive.Overlap}[r.IntN(4)])
			switch r.IntN(5) { // mostly as crypt reads: on, or a little back
			case 0:
				at = r.Int64N(stated + 10)
			case 1:
				at = max(0, at-r.Int64N(2*archive.Overlap))
			}
			p := make([]byte, n)
			got, err := s.ReadAt(p, at)
			want := object[min(at, int64(len(object)), stated):min(at+n, int64(len(object)), stated)]
			whole := int64(len(want)) == n
			switch {
			case !bytes.Equal(p[:got], want[:min(got, len(want))]) || got > len(want):
				t.Fatalf("round %d: %d bytes at %d of %d (listed as %d): %d others", round, n, at, len(object), stated, got)
			case whole && (err != nil || got != len(want)), !whole && (err == nil || got != len(want)):
				t.Fatalf("round %d: %d bytes at %d of %d (listed as %d): got %d, %v", round, n, at, len(object), stated, got, err)
			case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
				t.Fatal(err)
			}
			at += n
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// tracked counts the bodies that are open.
type tracked struct {
	store.Store
	open *atomic.Int64
}

func (s tracked) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return s.track(s.Store.Open(ctx, name))
}

func (s tracked) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	return s.track(s.Store.OpenRange(ctx, name, offset, length))
}

func (s tracked) track(body io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	s.open.Add(1)
	return &trackedBody{ReadCloser: body, open: s.open}, nil
}

type trackedBody struct {
	io.ReadCloser
	open   *atomic.Int64
	closed bool
}

func (b *trackedBody) Close() error {
	if !b.closed {
		b.closed = true
		b.open.Add(-1)
	}
	return b.ReadCloser.Close()
}

// Whichever call to the store breaks off, and whatever key is set, every body that was opened is closed, and nothing is read as something else.
func TestReadingLeavesNothingOpen(t *testing.T) {
	const name = "000000010000000000000001"
	both, _ := ageKeys(t)
	wrong, _ := ageKeys(t)
	content := random(4, 1<<20)
	for _, key := range []*crypt.Keyring{both, sodiumKey(t)} {
		m := &storetest.Memory{}
		a := archive.New(m, archive.Options{Key: key})
		if _, err := a.PutWAL(t.Context(), name, opener(content)); err != nil {
			t.Fatal(err)
		}
		d, err := a.Begin(t.Context(), backupName, "host")
		if err != nil {
			t.Fatal(err)
		}
		p := tarpart.NewPacker(entries(tarpart.Entry{Path: "base/5/1", Mode: 0o600, Content: content}), tarpart.Options{})
		if err := errors.Join(d.PutPart(t.Context(), d.NextPart(), p, p.Members), d.Commit(t.Context(), &archive.Sentinel{})); err != nil {
			t.Fatal(err)
		}
		at := p.Members()[0].Offset
		for with, key := range map[string]crypt.Key{"its key": key, "another key": wrong, "no key": nil} {
			for n := -1; ; n++ {
				open := new(atomic.Int64)
				flaky := storetest.FailMidway(m, n)
				a := archive.New(tracked{flaky, open}, archive.Options{Key: key})
				got, err := readAllOfIt(t, a, name, at, int64(len(content)))
				if left := open.Load(); left != 0 {
					t.Errorf("with %s, call %d breaking off: %d bodies are open", with, n, left)
				}
				if fine := with == "its key" && (n < 0 || !flaky.Reached()); fine != (err == nil) {
					t.Errorf("with %s, call %d breaking off: %v", with, n, err)
				}
				for _, b := range got {
					if !bytes.HasPrefix(content, b) {
						t.Errorf("with %s, call %d breaking off: %d other bytes", with, n, len(b))
					}
				}
				if n >= 0 && !flaky.Reached() {
					break
				}
			}
		}
	}
}

// readAllOfIt reads WAL, manifest and part, the latter in ranges too where that can be, and returns what WAL and ranges held.
func readAllOfIt(t *testing.T, a *archive.Archive, name string, at, size int64) (got [][]byte, err error) {
	var errs []error
	take := func(r io.ReadCloser, err error) []byte {
		if errs = append(errs, err); err != nil {
			return nil
		}
		b, err := io.ReadAll(r)
		errs = append(errs, err, r.Close())
		return b
	}
	got = append(got, take(a.OpenWAL(t.Context(), name)))
	if m, err := a.OpenManifest(t.Context(), backupName); err != nil {
		errs = append(errs, err)
	} else {
		_, err := m.Next()
		errs = append(errs, err, m.Close())
	}
	parts, err := a.Parts(t.Context(), backupName)
	if err != nil || len(parts) != 1 {
		return got, errors.Join(append(errs, err)...)
	}
	take(a.OpenPart(t.Context(), backupName, parts[0]))
	ranges, err := a.Ranges(t.Context(), backupName, parts[0])
	if errs = append(errs, err); ranges != nil {
		got = append(got, take(ranges.Open(t.Context(), at, size)))
		if _, err := ranges.Open(t.Context(), at+10*size, 1); err == nil {
			errs = append(errs, errors.New("what is not there can be opened"))
			t.Error("a stretch behind the end was opened")
		}
	}
	return got, errors.Join(errs...)
}
