package timelines

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"strings"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// Place is one of the storages that an archive lies in. What is put aside stays in its storage.
type Place struct {
	Name  string
	Store store.Store
}

// quarantined is the directory below which everything of a timeline lies that was put aside, under its own name behind it.
func quarantined(t wal.Timeline) string { return "holdfast/quarantined/" + t.String() + "/" }

// Objects are moved in three steps, so that whoever reads the archive meanwhile sees less and less of the timeline, and never half a backup:
// first nothing follows it any more, then its backups are gone, then all the rest. Back they come in the opposite order.
const (
	histories = iota // the timeline's history file
	sentinels        // of its backups and catch-ups
	others
	steps
)

const sentinelSuffix = "_backup_stop_sentinel.json"

// step returns when an object's turn is, by its name in the archive.
func step(name string) int {
	switch {
	case strings.HasPrefix(name, archive.WALDir) && wal.KindOf(archive.WALName(name)) == wal.History:
		return histories
	case strings.HasSuffix(name, sentinelSuffix) && (strings.HasPrefix(name, archive.BackupDir) || strings.HasPrefix(name, archive.CatchUpDir)):
		return sentinels
	}
	return others
}

// objects yields what a storage holds of timeline t, ascending within each directory: WAL with its notes, backups, catch-ups, pieces of segments and
// summaries.
func objects(ctx context.Context, s store.Store, t wal.Timeline) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for _, begin := range []string{archive.WALDir + t.String(), archive.BackupDir + "base_" + t.String(), archive.CatchUpDir + "base_" + t.String(), archive.TailDir + t.String()} {
			dir := begin[:strings.LastIndex(begin, "/")+1]
			for o, err := range s.List(ctx, dir, begin) {
				switch {
				case err != nil:
					yield(o, fmt.Errorf("list %s: %w", dir, err))
					return
				case !strings.HasPrefix(o.Name, begin):
				case !o.IsDir():
					if !yield(o, nil) {
						return
					}
					continue
				default:
					if !all(ctx, s, o.Name, yield) {
						return
					}
					continue
				}
				break
			}
		}
		all(ctx, s, archive.SummaryDir+t.String()+"/", yield)
	}
}

// all yields what lies below dir.
func all(ctx context.Context, s store.Store, dir string, yield func(store.Object, error) bool) bool {
	for o, err := range store.Walk(ctx, s, dir) {
		if err != nil {
			yield(o, fmt.Errorf("list %s: %w", dir, err))
			return false
		}
		if !yield(o, nil) {
			return false
		}
	}
	return true
}

// atOnce is how many objects are moved at once, and batch how many names are kept in memory.
const (
	atOnce = 8
	batch  = 10_000
)

// mover moves objects of one timeline inside one storage.
type mover struct {
	store  store.Store
	what   iter.Seq2[store.Object, error] // everything that is to go, by its present names
	rename func(name string) string
	turn   func(name string) int // the step of an object, by its present name
	moved  func(o store.Object)  // called by one goroutine at a time
}

// run moves everything whose turn it is. What an earlier run has moved is not there any more: run goes on where that ended.
func (m *mover) run(ctx context.Context, turn int) error {
	for {
		some := make([]store.Object, 0, 64)
		for o, err := range m.what {
			if err != nil {
				return err
			}
			if m.turn(o.Name) != turn {
				continue
			}
			if some = append(some, o); len(some) == batch {
				break
			}
		}
		if err := m.moveAll(ctx, some); err != nil || len(some) < batch {
			return err
		}
	}
}

func (m *mover) moveAll(ctx context.Context, some []store.Object) error {
	group, moving := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	done := make(chan store.Object, len(some))
	for _, o := range some {
		group.Go(func() error {
			if err := moving.Err(); err != nil {
				return err
			}
			err := move(moving, m.store, o, m.rename(o.Name))
			if err == nil {
				done <- o
			}
			return err
		})
	}
	err := group.Wait()
	close(done)
	for o := range done {
		m.moved(o)
	}
	return err
}

// A takenError says that there is another object where one was to go.
type takenError struct{ from, to string }

func (e *takenError) Error() string {
	return fmt.Sprintf("move %s: %s is there already, and is another one", e.from, e.to)
}

// Hint says how to go on.
func (e *takenError) Hint() string {
	return "nothing was overwritten. Look at both with `holdfast st cat`, and remove or rename the one that is wrong (`holdfast st rm`); then run the same command again"
}

// move brings an object to another name: it is copied, the copy is compared, and only then the object is removed. Where an earlier move was cut off
// behind the copy this one goes on. An object that is gone is no error when it is there under the new name.
func move(ctx context.Context, s store.Store, o store.Object, to string) error {
	there, err := s.Stat(ctx, to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := copied(ctx, s, o.Name, to); err != nil {
			return err
		}
		if there, err = s.Stat(ctx, to); err != nil {
			return fmt.Errorf("look for the copy of %s: %w", o.Name, err)
		}
		if there.Size != o.Size {
			return fmt.Errorf("move %s: it has %d bytes, its copy %d", o.Name, o.Size, there.Size)
		}
	case err != nil:
		return err
	default:
		same, err := equal(ctx, s, o, there)
		if err != nil {
			return err
		}
		if !same {
			return &takenError{o.Name, to}
		}
	}
	return s.Delete(ctx, o.Name)
}

// copied copies an object, inside the store where that can, and else reads the copy back.
func copied(ctx context.Context, s store.Store, from, to string) error {
	err := store.Copy(ctx, s, from, to)
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	r, err := s.Open(ctx, from)
	if err != nil {
		return err
	}
	defer r.Close() // only read
	sum := crc32.New(castagnoli)
	if err := store.PutIfAbsent(ctx, s, to, io.TeeReader(r, sum)); err != nil {
		return err
	}
	back, err := sumOf(ctx, s, to)
	if err == nil && back != sum.Sum32() {
		err = fmt.Errorf("copy %s: the copy reads differently", from)
	}
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// equal reports whether two objects of a store have the same content.
func equal(ctx context.Context, s store.Store, a, b store.Object) (bool, error) {
	if a.Size != b.Size {
		return false, nil
	}
	sumA, err := sumOf(ctx, s, a.Name)
	if err != nil {
		return false, err
	}
	sumB, err := sumOf(ctx, s, b.Name)
	return sumA == sumB, err
}

// sumOf reads an object, and returns its CRC-32C.
func sumOf(ctx context.Context, s store.Store, name string) (uint32, error) {
	r, err := s.Open(ctx, name)
	if err != nil {
		return 0, err
	}
	defer r.Close() // only read
	sum := crc32.New(castagnoli)
	if _, err := io.CopyBuffer(sum, struct{ io.Reader }{r}, make([]byte, 256<<10)); err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	return sum.Sum32(), nil
}
