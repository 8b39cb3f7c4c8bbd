package archive

import (
	"context"
	"io"

	"holdfast/internal/compress"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/store"
)

// OpenDelta reads the delta object of the group of segments that begins with segment, stored with zstd.
func (a *Archive) OpenDelta(ctx context.Context, segment string) (io.ReadCloser, error) {
	return a.open(ctx, WALDir+segment+deltaSuffix+compress.Zstd.Extension(), compress.Zstd)
}

// NewDelta is newDelta.
func NewDelta(changed *blockset.Set, rest []byte) io.ReadCloser { return newDelta(changed, rest) }

// Overlap is overlap.
const Overlap = overlap

// Source is source, of one object.
type Source struct{ source }

// NewSource returns the source of an object that is listed with size bytes.
func NewSource(ctx context.Context, s store.Store, object string, size int64) *Source {
	return &Source{source{ctx: ctx, of: &Ranges{archive: New(s, Options{}), object: object, stored: size}}}
}

// Expect sets what a reader sets: whether what is read is kept, and how much is likely to be asked for.
func (s *Source) Expect(learn bool, ahead int64) { s.learn, s.ahead = learn, ahead }

// Close is close.
func (s *Source) Close() error { return s.close() }
