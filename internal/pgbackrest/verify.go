package pgbackrest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/tarpart"
)

// Verification says what was found where all of a backup was read.
type Verification struct {
	Backup   string    `json:"backup"`
	Files    int64     `json:"files"` // read, and as the manifest says
	Bytes    int64     `json:"bytes"` // of their content
	Segments int       `json:"wal_segments"`
	Problems []Problem `json:"problems"` // the first maxProblems
	More     int       `json:"more_problems,omitempty"`

	Unread bool `json:"unread,omitempty"` // it could not be read, for the one problem that is told

	BadFiles int    `json:"files_with_page_errors,omitempty"` // whose pages had checksums that did not hold when they were backed up, which is no problem of the repository
	FirstBad string `json:"first_with_page_errors,omitempty"`
}

// OK reports whether nothing is wrong.
func (v *Verification) OK() bool { return len(v.Problems) == 0 }

// Problem is something that is missing or damaged.
type Problem struct {
	What string `json:"what"` // a file of the backup, or a WAL segment
	Text string `json:"text"`
}

// maxProblems is how many problems are told.
const maxProblems = 1000

func (v *Verification) add(what string, err error) {
	if len(v.Problems) == maxProblems {
		v.More++
		return
	}
	v.Problems = append(v.Problems, Problem{what, err.Error()})
}

// Verify reads every file of a backup, workers at once, and the WAL without which the backup is not consistent, and compares all with the checksums that the
// repository has of it. done, unless it is nil, is told how many bytes were read since it was told last. What is missing or damaged is in what it returns; a store
// that fails is an error.
func (r *Repository) Verify(ctx context.Context, m *Manifest, b *catalog.Backup, wal *archive.Archive, workers int, done func(n int64)) (*Verification, error) {
	v := &Verification{Backup: m.Label, Problems: []Problem{}}
	v.BadFiles, v.FirstBad = m.Bad()
	var mu sync.Mutex
	problem := func(what string, err error) error {
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		v.add(what, err)
		return nil
	}
	var files, bytes atomic.Int64
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(max(workers, 1))
	for batch := range r.Batches(m) {
		if reading.Err() != nil {
			break
		}
		group.Go(func() error {
			err := batch(reading, func(*tarpart.Member, func(io.Reader) (bool, error)) bool { return false }, func(member *tarpart.Member, content io.Reader) error {
				if content == nil {
					return nil
				}
				n, err := io.Copy(counted{done}, content)
				if err != nil {
					return problem(member.Path, err)
				}
				files.Add(1)
				bytes.Add(n)
				return nil
			})
			if err != nil {
				return problem("", err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	v.Files, v.Bytes = files.Load(), bytes.Load()
	return v, verifyWAL(ctx, v, b, wal, done)
}

// counted tells how much is written to it.
type counted struct{ done func(n int64) }

func (c counted) Write(p []byte) (int, error) {
	if c.done != nil {
		c.done(int64(len(p)))
	}
	return len(p), nil
}

// verifyWAL reads the segments from a backup's start to its end.
func verifyWAL(ctx context.Context, v *Verification, b *catalog.Backup, wal *archive.Archive, done func(n int64)) error {
	start, ok1 := b.StartLSN()
	finish, ok2 := b.FinishLSN()
	if !ok1 || !ok2 {
		return nil
	}
	size, err := b.SegmentSize()
	if err != nil {
		return err
	}
	for n := size.Segment(start); n <= size.LastSegment(finish); n++ {
		name := size.Name(b.Timeline(), n)
		body, err := wal.OpenWAL(ctx, name)
		if err == nil {
			var read int64
			read, err = io.Copy(counted{done}, io.LimitReader(body, int64(size)+1))
			if err = errors.Join(err, body.Close()); err == nil && read != int64(size) {
				err = fmt.Errorf("it has %d bytes: %w", read, ErrDamaged)
			}
		}
		switch {
		case err == nil:
			v.Segments++
		case errors.Is(err, ErrDamaged) || errors.Is(err, fs.ErrNotExist):
			v.add("WAL segment "+name, err)
		default:
			return err
		}
	}
	return nil
}
