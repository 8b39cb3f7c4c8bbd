package retention

import (
	"cmp"
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
	"holdfast/internal/proof"
	"holdfast/internal/store"
)

// Inventory is what Decide judges: what the archive held when it was loaded, and who was using it.
type Inventory struct {
	At      time.Time // by the store's clock, or that of the host where nothing may be stored
	Catalog *catalog.Catalog
	Owner   *archive.Owner // nil: nobody's yet, or an archive of WAL-G's
	WAL     *catalog.WAL

	Proven   map[string]time.Time // backups that were restored, started and queried, and when last
	Claimed  map[string]time.Time // the same of those that only records say that nobody vouches for: they do not count, and keep the last of them beside
	Unproven []error              // records of such restores that do not count: *proof.RefusedError
	Damaged  map[string]string    // backups of which `verify` has found that they cannot be restored, and what it said
	BadWAL   map[string]string    // segments that it has found to be damaged, by name
	Holds    []Hold               // in force
	Pushes   []archive.Unfinished
	Restores []Restore
	CatchUps []CatchUp

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

// CatchUp is what brings a standby forward, or is being taken to that end. It stays; WAL that it needs does for a while.
type CatchUp struct {
	Name string
	Seen time.Time // when it was finished, or gave its last sign of life
}

// catchUpWAL is how long WAL stays that a catch-up needs, which nobody removes when its standby has caught up.
const catchUpWAL = 7 * 24 * time.Hour

// inFlight is how many small objects are read at once.
const inFlight = 16

// Load reads the inventory of an archive. host is the name of this one. What cannot be listed, or tells who uses what and cannot be read, is an error: nothing is
// to be deleted then. storesTime says that the store may be asked for the time, which stores an object for a moment.
func Load(ctx context.Context, a *archive.Archive, host string, storesTime bool) (*Inventory, error) {
	in := &Inventory{At: time.Now().UTC(), Proven: map[string]time.Time{}, Claimed: map[string]time.Time{}, Damaged: map[string]string{},
		BadWAL: map[string]string{}, Refused: map[string]string{}}
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
		return nil, &UnreadableError{"a hold", err}
	}
	for r, err := range archive.Records[archive.RestoreMark](ctx, a, archive.RestoreDir) {
		if err != nil {
			return nil, &UnreadableError{"what a restore uses", err}
		}
		in.Restores = append(in.Restores, Restore{Record: r.Name, RestoreMark: r.Doc, Beat: r.Modified})
	}
	if err := in.loadCatchUps(ctx, a.CatchUps()); err != nil {
		return nil, err
	}
	if err := in.loadFindings(ctx, a); err != nil {
		return nil, err
	}
	if err := in.loadBadWAL(ctx, a); err != nil {
		return nil, err
	}
	in.WAL, err = catalog.LoadWAL(ctx, a, in.segmentSize())
	return in, err
}

// loadCatchUps looks which catch-ups there are, and which are being taken. They are listed and not read: who may remove may not read them, and their names say where
// their WAL begins.
func (in *Inventory) loadCatchUps(ctx context.Context, a *archive.Archive) error {
	for f, err := range a.Backups(ctx) {
		if err != nil {
			return err
		}
		in.CatchUps = append(in.CatchUps, CatchUp{f.Name, f.Object.Modified})
	}
	for o, err := range a.Store().List(ctx, archive.CatchUpDir, "") {
		if err != nil {
			return fmt.Errorf("list catch-ups: %w", err)
		}
		name := path.Base(o.Name)
		if !o.IsDir() || archive.CheckBackupName(name) != nil || slices.ContainsFunc(in.CatchUps, func(c CatchUp) bool { return c.Name == name }) {
			continue
		}
		c := CatchUp{Name: name}
		for part, err := range store.Walk(ctx, a.Store(), o.Name) {
			if err != nil {
				return fmt.Errorf("list catch-ups: %w", err)
			}
			if part.Modified.After(c.Seen) {
				c.Seen = part.Modified
			}
		}
		in.CatchUps = append(in.CatchUps, c)
	}
	return nil
}

// finding is what a record says of a backup that was read. One that cannot be read says nothing.
type finding struct {
	archive.RecordHead
	Sentinel string `json:"sentinel_sha256"`
	Result   string `json:"result"` // ok, damaged, incomplete
	Objects  []struct {
		Name     string `json:"name"`
		Problem  string `json:"problem"`
		Harmless bool   `json:"harmless"` // no restore fails of it
	} `json:"objects"`
	Sample float64 `json:"sample"`
}

// proofs is what the records of a backup's drills say.
type proofs struct {
	proven  time.Time // when it was proven last, zero for never
	claimed time.Time // the same by records that nobody vouches for, which do not count; zero where proven is not
	refused []error
}

// lastProof reads them, the newest first as far back as one proves the backup.
func lastProof(ctx context.Context, a *archive.Archive, b *catalog.Backup, records []store.Object) (f proofs, err error) {
	sum := ""
	if b.Sentinel != nil {
		sum = b.Sentinel.Sum
	}
	for _, o := range slices.Backward(proof.ByAge(records)) {
		if !strings.HasSuffix(o.Name, ".json") {
			continue
		}
		p, err := proof.Read(ctx, a, b.Name, sum, o)
		var no *proof.RefusedError
		switch {
		case errors.As(err, &no):
			f.refused = append(f.refused, err)
			if u := no.Unvouched; u != nil && u.OK && f.claimed.IsZero() {
				f.claimed = u.When
			}
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return f, &UnreadableError{"the record of a drill", err}
		case p.OK:
			f.proven, f.claimed = p.When, time.Time{}
			return f, nil
		}
	}
	return f, nil
}

// loadFindings looks which backups were proven, and which were found to be damaged. Each backup costs one listing, of all that lies in its
// folder.
func (in *Inventory) loadFindings(ctx context.Context, a *archive.Archive) error {
	found := make([]proofs, len(in.Catalog.Backups))
	damaged := make([]string, len(found))
	group, loading := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	for i, b := range in.Catalog.Backups {
		group.Go(func() error {
			var drills, verified []store.Object
			for o, err := range store.Walk(loading, a.Store(), archive.Folder(b.Name)) {
				switch {
				case err != nil:
					return fmt.Errorf("list %s: %w", archive.Folder(b.Name), err)
				case strings.HasPrefix(o.Name, archive.ProvenDir(b.Name)):
					drills = append(drills, o)
				case strings.HasPrefix(o.Name, archive.VerifiedDir(b.Name)):
					verified = append(verified, o)
				}
			}
			var err error
			if found[i], err = lastProof(loading, a, &in.Catalog.Backups[i], drills); err != nil {
				return err
			}
			damaged[i], err = lastFinding(loading, a, &in.Catalog.Backups[i], verified)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("look which backups are proven, and which damaged: %w", err)
	}
	for i, b := range in.Catalog.Backups {
		in.Unproven = append(in.Unproven, found[i].refused...)
		if at := found[i].proven; !at.IsZero() {
			in.Proven[b.Name] = at
		}
		if at := found[i].claimed; !at.IsZero() {
			in.Claimed[b.Name] = at
		}
		if damaged[i] != "" {
			in.Damaged[b.Name] = damaged[i]
		}
	}
	return nil
}

// lastFinding returns what verifications have found to be wrong with a backup, so that a restore of it fails; "" for nothing. A verification leaves several records, each of what
// it has read since the last: they are read the newest first, as far back as one by which all was right, and of an object the newest that names it counts.
func lastFinding(ctx context.Context, a *archive.Archive, b *catalog.Backup, records []store.Object) (string, error) {
	slices.Reverse(records)
	seen := map[string]bool{}
	unnamed, named := "", false // what was said without naming an object, and whether one was named
	for r, err := range archive.RecordsOf[finding](ctx, a, records) {
		if err != nil && r.Name == "" {
			return "", err
		}
		if err != nil || r.Doc.Sentinel != "" && b.Sentinel != nil && r.Doc.Sentinel != b.Sentinel.Sum { // it says nothing, or is of another backup of that name
			continue
		}
		at := catalog.FormatTime(r.Doc.At)
		for _, o := range r.Doc.Objects {
			if o.Problem != "" && !o.Harmless && !seen[o.Name] {
				return fmt.Sprintf("verify found at %s: %s: %s", at, o.Name, o.Problem), nil
			}
			seen[o.Name] = true
			named = named || o.Problem != "" || o.Harmless
		}
		if r.Doc.Result == "damaged" && unnamed == "" {
			unnamed = fmt.Sprintf("verify found at %s that it is damaged", at)
		}
		if r.Doc.Result == "ok" && r.Doc.Sample == 0 {
			break
		}
	}
	if named {
		return "", nil
	}
	return unnamed, nil
}

// LoadDamaged returns the backups of which `verify` has found that they cannot be restored, and what it said. It costs a listing for each.
func LoadDamaged(ctx context.Context, a *archive.Archive, c *catalog.Catalog) (map[string]string, error) {
	found := make([]string, len(c.Backups))
	group, loading := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	for i := range c.Backups {
		group.Go(func() error {
			b := &c.Backups[i]
			var records []store.Object
			for o, err := range a.Store().List(loading, archive.VerifiedDir(b.Name), "") {
				if err != nil {
					return fmt.Errorf("list %s: %w", archive.VerifiedDir(b.Name), err)
				}
				records = append(records, o)
			}
			var err error
			found[i], err = lastFinding(loading, a, b, records)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("look which backups are damaged: %w", err)
	}
	damaged := map[string]string{}
	for i, b := range c.Backups {
		if found[i] != "" {
			damaged[b.Name] = found[i]
		}
	}
	return damaged, nil
}

// loadBadWAL looks which segments were found to be damaged, and were not found to be good later.
func (in *Inventory) loadBadWAL(ctx context.Context, a *archive.Archive) error {
	type finding struct {
		First    string  `json:"first"`
		Last     string  `json:"last"`
		Sample   float64 `json:"sample"`
		Problems []struct {
			Segment string `json:"segment"`
			Kind    string `json:"kind"`
			Text    string `json:"text"`
		} `json:"problems"`
	}
	for r, err := range archive.Records[finding](ctx, a, archive.VerifiedWALDir) {
		if err != nil && r.Name == "" {
			return fmt.Errorf("look which WAL is damaged: %w", err)
		}
		unread := map[string]bool{}
		for _, p := range r.Doc.Problems {
			unread[p.Segment] = p.Kind == "store" || p.Kind == "key"
		}
		for name := range in.BadWAL {
			if r.Doc.Sample == 0 && r.Doc.First <= name && name <= r.Doc.Last && !unread[name] {
				delete(in.BadWAL, name)
			}
		}
		for _, p := range r.Doc.Problems {
			if p.Kind != "missing" && !unread[p.Segment] { // these say nothing of what is in it
				in.BadWAL[p.Segment] = cmp.Or(p.Text, p.Kind, "damaged")
			}
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
		if r.Doc.Backup == "" && (r.Doc.From.IsZero() || r.Doc.To.IsZero()) {
			return nil, fmt.Errorf("read the holds: %s names neither a backup nor moments", r.Name)
		}
		all = append(all, Hold{Record: r.Name, Hold: r.Doc})
	}
	return slices.DeleteFunc(all, func(h Hold) bool {
		return revoked[h.Record] || !h.Until.IsZero() && h.Until.Before(now)
	}), nil
}
