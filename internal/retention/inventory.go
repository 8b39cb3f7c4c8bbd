package retention

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// Inventory is what Decide judges: what the archive held when it was loaded, and who was using it.
type Inventory struct {
	At      time.Time // by the store's clock, or that of the host where nothing may be stored
	Catalog *catalog.Catalog
	Owner   *archive.Owner // nil: nobody's yet, or an archive of WAL-G's
	WAL     *catalog.WAL

	Proven   map[string]time.Time // backups that were restored, started and queried, and when last
	Holds    []Hold               // in force
	Pushes   []archive.Unfinished
	Restores []Restore

	// Refused has the backups that the store did not let go, and what it said.
	Refused map[string]string
}

// Hold is a hold in force.
type Hold struct {
	Record string // name of the object
	archive.Hold
}

// ID returns what people call the hold by.
func (h *Hold) ID() string { return holdID(h.Record) }

func holdID(record string) string {
	id := strings.TrimSuffix(path.Base(record), ".json")
	if _, after, ok := strings.Cut(id, "-"); ok {
		return after
	}
	return id
}

// Restore is a restore at work, or one over which WAL is being replayed.
type Restore struct {
	Record string
	archive.RestoreMark
	Beat time.Time // its last sign of life
}

// inFlight is how many small objects are read at once.
const inFlight = 16

// Load reads the inventory of an archive. host is the name of this one. What cannot be listed, or tells who uses what and cannot be read, is an error: nothing is
// to be deleted then. storesTime says that the store may be asked for the time, which stores an object for a moment.
func Load(ctx context.Context, a *archive.Archive, host string, storesTime bool) (*Inventory, error) {
	in := &Inventory{At: time.Now().UTC(), Proven: map[string]time.Time{}, Refused: map[string]string{}}
	// Pushes come first: one that ends meanwhile is a backup then, and is seen twice rather than not at all.
	var err error
	if in.Pushes, err = a.Unfinished(ctx, host); err != nil {
		return nil, err
	}
	if storesTime {
		if in.At, err = a.Now(ctx); err != nil {
			return nil, fmt.Errorf("ask the store for the time: %w", err)
		}
	}
	if in.Catalog, err = catalog.Load(ctx, a); err != nil {
		return nil, err
	}
	if in.Owner, err = a.Owner(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if in.Holds, err = LoadHolds(ctx, a, in.At); err != nil {
		return nil, err
	}
	for r, err := range archive.Records[archive.RestoreMark](ctx, a, archive.RestoreDir) {
		if err != nil {
			return nil, fmt.Errorf("look for restores at work: %w", err)
		}
		in.Restores = append(in.Restores, Restore{Record: r.Name, RestoreMark: r.Doc, Beat: r.Modified})
	}
	if err := in.loadProven(ctx, a); err != nil {
		return nil, err
	}
	in.WAL, err = catalog.LoadWAL(ctx, a, in.segmentSize())
	return in, err
}

// loadProven looks which backups were proven. Those that nobody ever proved cost a listing each.
func (in *Inventory) loadProven(ctx context.Context, a *archive.Archive) error {
	type proof struct {
		archive.RecordHead
		OK bool `json:"ok"`
	}
	at := make([]time.Time, len(in.Catalog.Backups))
	group, loading := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	for i, b := range in.Catalog.Backups {
		group.Go(func() error {
			for r, err := range archive.Records[proof](loading, a, archive.ProvenDir(b.Name)) {
				switch {
				case err != nil && r.Name == "":
					return err
				case err == nil && r.Doc.OK && r.Doc.At.After(at[i]): // one that cannot be read proves nothing
					at[i] = r.Doc.At
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("look which backups are proven: %w", err)
	}
	for i, b := range in.Catalog.Backups {
		if !at[i].IsZero() {
			in.Proven[b.Name] = at[i]
		}
	}
	return nil
}

// segmentSize returns that of the newest backup that says.
func (in *Inventory) segmentSize() wal.SegmentSize {
	size, _ := in.Catalog.SegmentSize()
	return size
}

// runs yields the runs of archived segments, by timeline.
func (in *Inventory) runs() iter.Seq2[wal.Timeline, catalog.Run] {
	return func(yield func(wal.Timeline, catalog.Run) bool) {
		for _, t := range in.WAL.Timelines {
			for _, r := range t.Runs {
				if !yield(t.Timeline, r) {
					return
				}
			}
		}
	}
}

// places returns where a run lies.
func (in *Inventory) places(r catalog.Run) span {
	return span{placeAt(in.WAL.SegmentSize, r.First), placeAt(in.WAL.SegmentSize, r.Last)}
}

// LoadHolds reads the holds that are in force at a time. One that cannot be read is an error: who knows what it holds.
func LoadHolds(ctx context.Context, a *archive.Archive, now time.Time) ([]Hold, error) {
	var all []Hold
	revoked := map[string]bool{}
	for r, err := range archive.Records[archive.Hold](ctx, a, archive.HoldDir) {
		if err != nil {
			return nil, fmt.Errorf("read the holds: %w", err)
		}
		if r.Doc.Revokes != "" {
			revoked[r.Doc.Revokes] = true
			continue
		}
		all = append(all, Hold{Record: r.Name, Hold: r.Doc})
	}
	return slices.DeleteFunc(all, func(h Hold) bool {
		return revoked[h.Record] || !h.Until.IsZero() && h.Until.Before(now)
	}), nil
}
