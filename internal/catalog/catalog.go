// Package catalog reads what an archive holds: its backups, its timelines, and how far its WAL reaches.
//
// A Catalog is loaded once and then only looked at. Backups are ordered by when they were made, never by name: after a
// change of cluster or a promotion names do not ascend. An entry that cannot be read stays in the catalog together with the
// reason, and hides no other.
package catalog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
)

// inFlight is how many small objects are read at once: a round trip each.
const inFlight = 16

// Catalog is what an archive held when it was loaded.
type Catalog struct {
	Backups    []Backup                  // in the order they were made
	Histories  map[wal.Timeline][]Branch // of the timelines with a history file
	BadHistory map[wal.Timeline]error    // those whose file could not be read or makes no sense

	// Evidence is for Choose, and is nothing that Load finds: whoever chooses a timeline by it sets it before.
	Evidence Evidence

	Tombstones    []Tombstone // of what retention has condemned
	BadTombstones []error     // why some could not be read
}

// Backup is an entry of the catalog. Where Err is set the documents may be missing.
type Backup struct {
	Name     string
	Modified time.Time         // of the sentinel object, as the store says
	Storage  string            // which of several stores it lies in; "" where there is one
	Sentinel *archive.Sentinel // nil where it could not be read
	Metadata *archive.Metadata // nil where there is none or it could not be read
	Err      error             // why a document could not be read

	Condemned *Condemned // it is going; nil for most

	// Start is the segment in which it starts, where Name does not have it: of a backup in another tool's repository.
	Start string
}

// Load reads the catalog of an archive. Only a listing that fails is an error.
func Load(ctx context.Context, a *archive.Archive) (*Catalog, error) { return load(ctx, a, false) }

// LoadBrief is Load without the metadata of backups whose sentinel says when they were made: a request less for each. Positions, chains and times are
// known; what only that document says, such as whether a backup is permanent, is not, nor whether it can be read.
func LoadBrief(ctx context.Context, a *archive.Archive) (*Catalog, error) { return load(ctx, a, true) }

func load(ctx context.Context, a *archive.Archive, brief bool) (*Catalog, error) {
	c := &Catalog{Histories: map[wal.Timeline][]Branch{}, BadHistory: map[wal.Timeline]error{}}
	var sizes []int64 // of the sentinels
	for f, err := range a.Backups(ctx) {
		if err != nil {
			return nil, err
		}
		c.Backups = append(c.Backups, Backup{Name: f.Name, Modified: f.Object.Modified, Storage: f.Object.Storage})
		sizes = append(sizes, min(f.Object.Size, archive.MaxSentinel))
	}
	room := semaphore.NewWeighted(archive.MaxSentinel) // old ones may be that large and larger
	group, loading := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	for i := range c.Backups {
		group.Go(func() error {
			if err := room.Acquire(loading, sizes[i]); err != nil {
				return err
			}
			defer room.Release(sizes[i])
			c.Backups[i].load(loading, a, brief)
			return loading.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	c.sort()
	if err := c.loadTombstones(ctx, a); err != nil {
		return nil, err
	}
	return c, c.loadHistories(ctx, a)
}

// load reads the entry's documents.
func (b *Backup) load(ctx context.Context, a *archive.Archive, brief bool) {
	var err error
	if b.Sentinel, err = a.Sentinel(ctx, b.Name); err != nil {
		b.Err = err
	}
	if brief && b.Sentinel != nil && !b.Sentinel.FinishTime.IsZero() {
		return
	}
	b.Metadata, err = a.Metadata(ctx, b.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // old backups have none
		b.Err = cmp.Or(b.Err, err)
	}
}

// sort brings the backups into the order they were made. A full backup that was merged from a delta has its time, and comes behind it: it holds
// the same, and builds on nothing.
func (c *Catalog) sort() {
	slices.SortStableFunc(c.Backups, func(x, y Backup) int {
		if at := x.Created().Compare(y.Created()); at != 0 || x.IsDelta() == y.IsDelta() {
			return cmp.Or(at, cmp.Compare(x.Name, y.Name))
		}
		if x.IsDelta() {
			return -1
		}
		return 1
	})
}

// loadHistories reads the history files. They sort before the segments of their timeline, so that only they are listed:
// after each history or segment the listing is taken up again behind that timeline's files.
func (c *Catalog) loadHistories(ctx context.Context, a *archive.Archive) error {
	timelines, err := historyFiles(ctx, a)
	if err != nil {
		return err
	}
	branches := make([][]Branch, len(timelines))
	failures := make([]error, len(timelines))
	group, loading := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	for i, t := range timelines {
		group.Go(func() error {
			branches[i], failures[i] = readHistory(loading, a, t)
			return loading.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, t := range timelines {
		if failures[i] != nil {
			c.BadHistory[t] = failures[i]
		} else {
			c.Histories[t] = branches[i]
		}
	}
	return nil
}

// historyFiles lists the timelines that have a history file, without listing the segments between them.
func historyFiles(ctx context.Context, a *archive.Archive) (timelines []wal.Timeline, err error) {
	for after := ""; ; {
		var next string
		for o, err := range a.Store().List(ctx, archive.WALDir, after) {
			if err != nil {
				return nil, fmt.Errorf("list WAL: %w", err)
			}
			name := archive.WALName(o.Name)
			kind := wal.KindOf(name)
			if o.IsDir() || kind == wal.Other {
				continue
			}
			t, err := wal.TimelineOf(name)
			if err != nil {
				continue
			}
			if kind == wal.History && !slices.Contains(timelines, t) {
				timelines = append(timelines, t)
			}
			if kind != wal.History {
				// "/" sorts behind "." and before the digits: histories are behind it, this timeline's segments before "G".
				next = archive.WALDir + t.String() + "G"
				break
			}
		}
		if next == "" {
			return timelines, nil
		}
		after = next
	}
}

func readHistory(ctx context.Context, a *archive.Archive, t wal.Timeline) ([]Branch, error) {
	r, err := a.OpenWAL(ctx, wal.HistoryName(t))
	if err != nil {
		return nil, err
	}
	defer r.Close() // only read
	b, err := io.ReadAll(io.LimitReader(r, maxHistory+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxHistory {
		return nil, fmt.Errorf("%s is larger than the %d bytes a history file may have", wal.HistoryName(t), maxHistory)
	}
	return ParseHistory(t, b)
}

// Created returns when the backup was made: when it was finished, or when its sentinel was stored where it does not
// say. Copies of an archive keep the former only.
func (b *Backup) Created() time.Time {
	switch {
	case b.Sentinel != nil && !b.Sentinel.FinishTime.IsZero():
		return b.Sentinel.FinishTime
	case b.Metadata != nil && !b.Metadata.FinishTime.IsZero():
		return b.Metadata.FinishTime
	}
	return b.Modified
}

// NoLater returns t, which the clock of the backup's host has said, or when its sentinel was stored where that was earlier: the clock was ahead then.
func (b *Backup) NoLater(t time.Time) time.Time {
	if b.Modified.IsZero() || t.Before(b.Modified) {
		return t
	}
	return b.Modified
}

// Started returns when the backup was begun; zero where it does not say.
func (b *Backup) Started() time.Time {
	switch {
	case b.Sentinel != nil && !b.Sentinel.StartTime.IsZero():
		return b.Sentinel.StartTime
	case b.Metadata != nil:
		return b.Metadata.StartTime
	}
	return time.Time{}
}

// Segment returns the name of the WAL segment in the backup's name; "" where another tool took it and does not say.
func (b *Backup) Segment() string {
	if named, ours := strings.CutPrefix(b.Name, "base_"); ours {
		return named[:24]
	}
	return b.Start
}

// Timeline returns the timeline on which the backup was made; 0 where Segment is not known.
func (b *Backup) Timeline() wal.Timeline {
	segment := b.Segment()
	if segment == "" {
		return 0
	}
	t, _ := strconv.ParseUint(segment[:8], 16, 32) // archive.CheckBackupName saw to the digits
	return wal.Timeline(t)
}

// IsDelta reports whether the backup builds on another.
func (b *Backup) IsDelta() bool {
	return archive.IsDelta(b.Name) || (b.Sentinel != nil && b.Sentinel.DeltaFrom != "")
}

// walE returns the offset in the start segment that WAL-E puts behind a backup's name.
func (b *Backup) walE() (offset uint64, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(b.Name, "base_"+b.Segment()), "_")
	if !ok || len(rest) != 8 {
		return 0, false
	}
	offset, err := strconv.ParseUint(rest, 10, 32)
	return offset, err == nil
}

// IsWALE reports whether WAL-E took the backup: an offset ends the name, and it is no delta.
func (b *Backup) IsWALE() bool {
	return len(b.Name) == len("base_")+24+len("_00000028") && b.Name[len("base_")+24] == '_' && b.Start == "" && !b.IsDelta()
}

// SegmentSize returns the size of the cluster's WAL segments: what the sentinel says, or the only size for which the
// backup's first position lies in the segment it is named after. WAL-E and the WAL-G that did not note the position knew
// 16 MiB only.
func (b *Backup) SegmentSize() (wal.SegmentSize, error) {
	if b.Sentinel == nil {
		return 0, fmt.Errorf("backup %s cannot be read: %w", b.Name, b.Err)
	}
	if b.IsWALE() || b.Sentinel.LSN == nil {
		return 16 << 20, nil
	}
	if s := wal.SegmentSize(b.Sentinel.SegmentSize); s != 0 {
		if !s.Valid() {
			return 0, fmt.Errorf("backup %s says that WAL segments have %d bytes", b.Name, s)
		}
		return s, nil
	}
	lsn := *b.Sentinel.LSN
	fits := func(s wal.SegmentSize) bool {
		t := b.Timeline()
		// At a border PostgreSQL before 17 and standbys name the segment before.
		return s.Name(t, s.Segment(lsn)) == b.Segment() || s.Name(t, s.LastSegment(lsn)) == b.Segment()
	}
	var found wal.SegmentSize
	for s := wal.MinSegmentSize; s <= wal.MaxSegmentSize; s *= 2 {
		if fits(s) && (found == 0 || s == 16<<20) {
			found = s
		}
	}
	if found == 0 {
		return 0, fmt.Errorf("backup %s is named after a segment in which its start %s cannot lie", b.Name, lsn)
	}
	return found, nil
}

// StartLSN returns where replaying the WAL over the backup begins; false where it does not say.
func (b *Backup) StartLSN() (wal.LSN, bool) {
	if offset, ok := b.walE(); ok {
		const size = wal.SegmentSize(16 << 20)
		_, n, err := size.ParseSegment(b.Segment())
		return size.Start(n) + wal.LSN(offset), err == nil
	}
	if b.Sentinel == nil || b.Sentinel.LSN == nil {
		return 0, false
	}
	return *b.Sentinel.LSN, true
}

// FinishLSN returns up to where the WAL must be replayed for the backup to be consistent; false where it does not say.
func (b *Backup) FinishLSN() (wal.LSN, bool) {
	if b.Sentinel == nil || b.Sentinel.FinishLSN == nil || *b.Sentinel.FinishLSN == 0 {
		return 0, false
	}
	return *b.Sentinel.FinishLSN, true
}

// NoBackupError says that the archive has no backup that was asked for.
type NoBackupError struct {
	Asked  string // "LATEST", a name or what a target needs
	Reason string
	Advice string // "" for none
}

func (e *NoBackupError) Error() string { return fmt.Sprintf("no backup for %s: %s", e.Asked, e.Reason) }

// Hint says how to go on.
func (e *NoBackupError) Hint() string { return e.Advice }

// Is makes a missing backup an fs.ErrNotExist.
func (e *NoBackupError) Is(target error) bool { return target == fs.ErrNotExist }

// Latest returns the backup that was made last, whatever its name. One that cannot be read still counts: that LATEST
// silently means an older backup must not happen. One that is condemned does not count.
func (c *Catalog) Latest() (*Backup, error) {
	if len(c.Backups) == 0 {
		return nil, &NoBackupError{Asked: "LATEST", Reason: "the archive has no backups", Advice: "take one with `holdfast backup-push`"}
	}
	for i := range slices.Backward(c.Backups) {
		if c.Backups[i].Condemned == nil {
			return &c.Backups[i], nil
		}
	}
	return nil, &NoBackupError{Asked: "LATEST", Reason: "all backups of the archive are condemned", Advice: "`holdfast undelete NAME` takes that back"}
}

// Find returns the backup of that name.
func (c *Catalog) Find(name string) (*Backup, error) {
	i := slices.IndexFunc(c.Backups, func(b Backup) bool { return b.Name == name })
	if i < 0 {
		return nil, &NoBackupError{Asked: name, Reason: "the archive has no backup of that name", Advice: "see `holdfast backup-list`"}
	}
	return &c.Backups[i], nil
}

// FindUserData returns the one backup that was given that user data, a JSON value.
func (c *Catalog) FindUserData(value json.RawMessage) (*Backup, error) {
	found, err := c.withUserData(value)
	if err != nil {
		return nil, err
	}
	asked := "user data " + string(value)
	switch len(found) {
	case 0:
		return nil, &NoBackupError{Asked: asked, Reason: "the archive has no backup with it", Advice: "see `holdfast backup-list --detail --json`"}
	case 1:
		return found[0], nil
	}
	names := make([]string, len(found))
	for i, b := range found {
		names[i] = b.Name
	}
	return nil, &NoBackupError{Asked: asked, Reason: "several backups have it: " + strings.Join(names, ", "), Advice: "give a name"}
}

// userData returns what was stored with the backup for its user; nil for nothing.
func (b *Backup) userData() json.RawMessage {
	switch {
	case b.Metadata != nil && b.Metadata.UserData != nil:
		return b.Metadata.UserData
	case b.Sentinel != nil:
		return b.Sentinel.UserData
	}
	return nil
}

// Timelines returns the timelines that backups and history files tell of, the highest first; 1 is always among them.
func (c *Catalog) Timelines() []wal.Timeline {
	known := map[wal.Timeline]bool{1: true}
	for _, b := range c.Backups {
		known[b.Timeline()] = true
	}
	for t := range c.Histories {
		known[t] = true
	}
	for t := range c.BadHistory {
		known[t] = true
	}
	ascending := slices.Sorted(maps.Keys(known))
	slices.Reverse(ascending)
	return ascending
}

// Details returns what lists show of the backup: its metadata, and where there is none what the sentinel and the name say.
func (b *Backup) Details() *archive.Metadata {
	if b.Metadata != nil {
		m := *b.Metadata
		return &m
	}
	m := archive.Metadata{}
	if b.Sentinel != nil {
		m = b.Sentinel.Metadata()
	}
	if lsn, ok := b.StartLSN(); ok {
		m.StartLSN = lsn
	}
	m.IsPermanent = false
	return &m
}
