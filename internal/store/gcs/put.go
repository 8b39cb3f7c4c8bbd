package gcs

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/storage/v1"

	"holdfast/internal/budget"
	"holdfast/internal/store"
	"holdfast/internal/store/patience"
)

// contentType is what objects are said to be, as their contents are compressed or encrypted.
const contentType = "application/octet-stream"

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) error {
	return s.put(ctx, name, r, false)
}

// PutIfAbsent implements store.PutIfAbsenter, by the condition that there is no generation of the object yet: the service decides,
// atomically. A request that was made again because its answer got lost may find the object of the first one: fs.ErrExist then is
// about our own object, so compare contents.
func (s *Store) PutIfAbsent(ctx context.Context, name string, r io.Reader) error {
	return s.put(ctx, name, r, true)
}

func (s *Store) put(ctx context.Context, name string, r io.Reader, ifAbsent bool) error {
	if err := checkNew("put", name); err != nil {
		return err
	}
	// A large put takes a piece that is filled, and as much for the client's copy of the one before, which is under way.
	piece, err := s.budget.Take(ctx, s.o.ChunkSize, s.o.ChunkSize)
	if err != nil {
		return s.fail("put", name, err)
	}
	defer piece.Release()
	sum := crc32.New(castagnoli)
	ended, err := piece.Fill(ctx, r, sum)
	if err != nil {
		return s.fail("put", name, err)
	}
	if !ended {
		return s.do(ctx, "put", name, func(ctx context.Context, p *place) error {
			return s.putMany(ctx, p, name, piece, r, sum, ifAbsent)
		})
	}
	piece.Shrink()
	return s.do(ctx, "put", name, func(ctx context.Context, p *place) error {
		call := s.insert(ctx, p, &storage.Object{Name: p.root + name, Crc32c: checksum(sum.Sum32())}, ifAbsent)
		call.Media(piece.Reader(), googleapi.ChunkSize(0), googleapi.ContentType(contentType)) // ChunkSize 0: in one request
		got, err := call.Do()
		return s.stored(ctx, p, name, got, err, piece.Size(), sum.Sum32())
	})
}

func (s *Store) insert(ctx context.Context, p *place, o *storage.Object, ifAbsent bool) *storage.ObjectsInsertCall {
	call := p.api.Objects.Insert(s.o.Bucket, o).Fields("generation,size,crc32c").Context(ctx)
	addTo(call.Header(), s.key)
	if ifAbsent {
		call.IfGenerationMatch(0)
	}
	return call
}

// stored judges the end of a put: what the service says about the object has to fit what was sent.
func (s *Store) stored(ctx context.Context, p *place, name string, got *storage.Object, err error, size int64, crc uint32) error {
	switch {
	case code(err) == http.StatusPreconditionFailed:
		return store.Exists(name)
	case code(err) == http.StatusNotFound:
		return errNoBucket
	case err != nil:
		return err
	case int64(got.Size) == size && got.Crc32c == checksum(crc):
		return nil
	}
	err = fmt.Errorf("%w: %d bytes with %s were sent, the service stored %d with %s", errDamaged, size, checksum(crc), got.Size, got.Crc32c)
	if removeErr := p.api.Objects.Delete(s.o.Bucket, p.root+name).Generation(got.Generation).Context(ctx).Do(); removeErr != nil {
		return errors.Join(err, fmt.Errorf("remove it: %w", removeErr))
	}
	return err
}

// putMany puts an object in chunks, of which the first is in piece. The client keeps a copy of each chunk until it has arrived; the
// next one is read meanwhile. What fails is not tried again as a whole, for the source has been read.
func (s *Store) putMany(ctx context.Context, p *place, name string, piece *budget.Piece, r io.Reader, sum hash.Hash32, ifAbsent bool) error {
	if ifAbsent { // it is cheaper to know before
		call := p.api.Objects.Get(s.o.Bucket, p.root+name).Fields("size").Context(ctx)
		addTo(call.Header(), s.key)
		if _, err := call.Do(); err == nil {
			return store.Exists(name)
		} else if code(err) != http.StatusNotFound {
			return err
		}
	}
	f := &feed{src: r, sum: sum, piece: piece, now: piece.Reader(), left: piece.Size(), size: piece.Size()}
	fillCtx, stop := context.WithCancel(ctx)
	defer stop()
	f.ctx = fillCtx

	call := s.insert(ctx, p, &storage.Object{Name: p.root + name}, ifAbsent)
	call.Media(f, googleapi.ChunkSize(int(s.o.ChunkSize)), googleapi.ContentType(contentType),
		googleapi.EnableAutoChecksum(), // it goes with the last chunk, and the service compares
		googleapi.ChunkRetryDeadline(s.o.Patience))
	var t patience.Tries
	call.WithRetry(&gax.Backoff{Initial: 200 * time.Millisecond, Max: s.o.MaxBackoff, Multiplier: 2}, func(err error) bool {
		if err == nil { // the client asks after successes too
			t.Progress()
			return false
		}
		return s.retry.More(ctx, &t, "put "+name, err)
	})
	got, err := call.Do()
	stop()
	f.end() // the piece goes back when nobody fills it any more; after a failure it does not matter with what
	if c := code(err); (c == http.StatusNotFound || c == http.StatusGone) && !s.bucketMissing(ctx, p) {
		err = fmt.Errorf("%w: %s", errLost, reason(err))
	}
	if err = s.stored(ctx, p, name, got, err, f.size, sum.Sum32()); err != nil && !errors.Is(err, fs.ErrExist) {
		return &spentError{err}
	}
	return err
}

// feed gives the client one chunk after the other. It fills the next one as soon as the client has taken the one before.
type feed struct {
	ctx   context.Context // of the filling
	src   io.Reader
	sum   hash.Hash32
	piece *budget.Piece
	now   io.Reader // of the piece
	left  int64     // bytes of the piece that the client has not taken
	size  int64     // bytes of all pieces
	ended bool      // the piece is the last

	filled chan error // nil, or where the end of the filling is told
}

func (f *feed) Read(p []byte) (int, error) {
	if err := f.end(); err != nil {
		return 0, err
	}
	n, err := f.now.Read(p)
	if f.left -= int64(n); n > 0 && f.left == 0 && !f.ended {
		f.filled = make(chan error, 1)
		go func() {
			ended, err := f.piece.Fill(f.ctx, f.src, f.sum)
			f.now, f.left, f.ended = f.piece.Reader(), f.piece.Size(), ended
			f.size += f.left
			f.filled <- err
		}()
	}
	return n, err
}

// end waits for the end of a filling, where one is under way.
func (f *feed) end() error {
	if f.filled == nil {
		return nil
	}
	err := <-f.filled
	f.filled = nil
	return err
}
