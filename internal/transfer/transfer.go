// Package transfer copies an archive, or one backup of it, to another store: as it is stored, without a key.
//
// What comes over is a copy that restores by itself: of a backup all that it builds on, and of each of these the WAL from its start to its finish. A backup
// appears in the target once everything of it is there, its sentinel last, what it builds on before it; a copy that ends early leaves no half backup, and the next
// one goes on where it ended. What the target has already stays as it is: of the same name and size it is taken for the same, of another size it is an
// error. The target belongs to the same cluster, or to nobody yet. Of segments that the server is still writing the pieces come over that there are; those of segments that
// are whole in the target go from it.
//
// Not copied is what is about the source and not about the cluster: pushes and restores at work, what verifications and drills of it have found, what retention has
// condemned there, what was put aside as a stray timeline's.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
)

// Request says what to copy.
type Request struct {
	Backup  string // a name, or LATEST; "" for all that the archive holds
	History bool   // with Backup: all WAL from its start on, and not to its finish alone
	NoWAL   bool   // no WAL at all: the copy restores only with another archive's
}

// Plan is what Run will do.
type Plan struct {
	Cluster uint64   `json:"system_identifier,omitempty"` // whose archive it is; 0 where nothing says it
	Claims  bool     `json:"claims,omitempty"`            // the target is nobody's yet, and becomes that cluster's
	Backups []Backup `json:"backups"`                     // in the order in which they are copied
	WAL     []Range  `json:"wal"`
	Pieces  Amount   `json:"pieces"` // of segments that were being written
	Other   Amount   `json:"other"`  // beside backups and WAL
	Total   Amount   `json:"total"`  // of all
	Skipped []Skip   `json:"skipped,omitempty"`
	Differs []Differ `json:"differs,omitempty"` // what cannot be copied, as the target has something else under that name
	Notes   []string `json:"notes,omitempty"`

	request Request
	size    wal.SegmentSize
	from    place // of the WAL with History
	needed  []segments
	lost    []Failed // backups that cannot be read
	others  []string // directories, and objects at the root
}

// Amount is how much there is, and how much of it the target has already.
type Amount struct {
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
	There   int   `json:"there_already"` // objects
	Equal   int64 `json:"bytes_there_already"`
}

// Left returns what is to be copied.
func (a Amount) Left() (objects int, bytes int64) { return a.Objects - a.There, a.Bytes - a.Equal }

func (a *Amount) add(b Amount) {
	a.Objects += b.Objects
	a.Bytes += b.Bytes
	a.There += b.There
	a.Equal += b.Equal
}

func (a *Amount) count(p pair) {
	a.Objects++
	a.Bytes += p.from.Size
	if p.there && p.to.Size == p.from.Size {
		a.There++
		a.Equal += p.from.Size
	}
}

// Backup is one that is copied.
type Backup struct {
	Name    string `json:"backup_name"`
	CatchUp bool   `json:"catch_up,omitempty"`
	Whole   bool   `json:"whole_already,omitempty"` // the target has its sentinel
	Amount
	FirstWAL string `json:"first_wal,omitempty"` // what it needs of WAL
	LastWAL  string `json:"last_wal,omitempty"`

	backup *catalog.Backup
	wal    []segments // of its timeline, and what stands for the last of these where the timeline was left in it
}

// Range is WAL of one timeline that is copied: segments and what goes with them.
type Range struct {
	Timeline wal.Timeline `json:"timeline"`
	First    string       `json:"first,omitempty"` // names of segments; "" for history files alone
	Last     string       `json:"last,omitempty"`
	Amount
}

// Skip is what is not copied, and why.
type Skip struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Differ is an object of which the target has another one.
type Differ struct {
	Name   string `json:"name"`
	Source int64  `json:"bytes"`
	Target int64  `json:"bytes_in_target"`
}

// maxListed bounds how many objects that differ a plan names.
const maxListed = 100

// inFlight is how many backups are listed at once.
const inFlight = 16

// ForeignError says that the target is another cluster's.
type ForeignError struct {
	Source, Target uint64 // system identifiers; Source is 0 where the source does not say
}

func (e *ForeignError) Error() string {
	if e.Source == 0 {
		return fmt.Sprintf("the target is the archive of the cluster with system identifier %d, and nothing in the source says of which cluster it is", e.Target)
	}
	return fmt.Sprintf("the target is the archive of the cluster with system identifier %d, the source that of %d", e.Target, e.Source)
}

// Hint says how to go on.
func (e *ForeignError) Hint() string {
	return "copy to a prefix of its own: WAL of two clusters has the same names. After pg_upgrade too the copy of the new cluster goes to a new prefix"
}

// place is a segment of a timeline.
type place struct {
	timeline wal.Timeline
	no       wal.SegmentNo
}

// segments are some of one timeline.
type segments struct {
	timeline    wal.Timeline
	first, last wal.SegmentNo
}

func (s segments) has(p place, span wal.SegmentNo) bool {
	return p.timeline == s.timeline && p.no <= s.last && p.no+span-1 >= s.first
}

// Decide works out a copy. It lists both archives and reads the source's documents; nothing is written.
func Decide(ctx context.Context, from, to *archive.Archive, r Request) (*Plan, error) {
	c, err := catalog.Load(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	p := &Plan{request: r, Backups: []Backup{}, WAL: []Range{}}
	if err := p.choose(c); err != nil {
		return nil, err
	}
	if r.Backup == "" {
		if err := p.catchUps(ctx, from); err != nil {
			return nil, err
		}
		if err := p.findOthers(ctx, from); err != nil {
			return nil, err
		}
		if err := p.unfinished(ctx, from); err != nil {
			return nil, err
		}
	}
	if err := p.checkOwner(ctx, c, from, to); err != nil {
		return nil, err
	}
	if err := p.compareBackups(ctx, from, to); err != nil {
		return nil, err
	}
	if err := p.compareWAL(ctx, from, to); err != nil {
		return nil, err
	}
	for x, err := range p.pieces(ctx, from.Store(), to.Store()) {
		if err != nil {
			return nil, err
		}
		p.Pieces.count(x)
	}
	for _, name := range p.others {
		if err := p.compareOther(ctx, from, to, name); err != nil {
			return nil, err
		}
	}
	for i := range p.Backups {
		p.Total.add(p.Backups[i].Amount)
	}
	for i := range p.WAL {
		p.Total.add(p.WAL[i].Amount)
	}
	p.Total.add(p.Pieces)
	p.Total.add(p.Other)
	return p, nil
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

func (p *Plan) skip(name, format string, args ...any) {
	p.Skipped = append(p.Skipped, Skip{name, fmt.Sprintf(format, args...)})
}

// unreadable notes a backup that the copy lacks, though it should have it.
func (p *Plan) unreadable(dir string, b *catalog.Backup) {
	p.skip(b.Name, "it cannot be read: %v", b.Err)
	p.lost = append(p.lost, Failed{strings.TrimSuffix(dir, "/") + "/" + b.Name, b.Err.Error(), b.Err})
}

// choose finds out which backups are copied, each behind what it builds on, and which WAL they need.
func (p *Plan) choose(c *catalog.Catalog) error {
	p.size, _ = c.SegmentSize()
	var chosen []*catalog.Backup
	if name := p.request.Backup; name != "" {
		b, err := c.Find(name)
		if name == "LATEST" {
			b, err = c.Latest()
		}
		if err == nil && b.Err != nil {
			err = fmt.Errorf("copy %s: %w", b.Name, b.Err)
		}
		if err != nil {
			return err
		}
		if chosen, err = c.Chain(b); err != nil {
			return err
		}
		slices.Reverse(chosen)
		if b.Condemned != nil {
			p.note("%s is condemned in the source; the copy is not", b.Name)
		}
		if size, err := b.SegmentSize(); err == nil {
			p.size = size
		}
		if p.from.timeline, p.from.no, err = p.size.ParseSegment(b.Segment()); err != nil {
			return fmt.Errorf("copy %s: %w", b.Name, err)
		}
	} else {
		chosen = p.chooseAll(c)
	}
	for _, b := range chosen {
		one := Backup{Name: b.Name, backup: b}
		if s, ok := p.needs(b); ok && !p.request.NoWAL {
			one.wal = append([]segments{s}, p.copies(c, b, s.last)...)
			one.FirstWAL, one.LastWAL = p.size.Name(s.timeline, s.first), p.size.Name(s.timeline, s.last)
			p.needed = append(p.needed, one.wal...)
		}
		p.Backups = append(p.Backups, one)
	}
	return nil
}

// chooseAll returns all backups that are copied with the archive.
func (p *Plan) chooseAll(c *catalog.Catalog) (chosen []*catalog.Backup) {
	for i := range c.Backups {
		b := &c.Backups[i]
		if b.Err != nil {
			p.unreadable(archive.BackupDir, b)
			continue
		}
		chain, err := c.Chain(b)
		switch {
		case b.Condemned != nil:
			p.skip(b.Name, "retention has condemned it: it goes after %s", catalog.FormatTime(b.Condemned.PurgeAfter))
			continue
		case err != nil:
			p.skip(b.Name, "%v", err)
			continue
		}
		for _, below := range slices.Backward(chain) {
			if !slices.Contains(chosen, below) {
				chosen = append(chosen, below)
			}
		}
	}
	return chosen
}

// needs returns the WAL from a backup's start to its finish.
func (p *Plan) needs(b *catalog.Backup) (s segments, ok bool) {
	t, first, err := p.size.ParseSegment(b.Segment())
	if err != nil {
		return s, false
	}
	last := first
	if lsn, ok := b.FinishLSN(); ok {
		last = max(first, p.size.LastSegment(lsn))
	}
	if lsn, ok := b.StartLSN(); ok { // at a border PostgreSQL names a backup after either of two
		first = min(first, p.size.Segment(lsn))
	}
	return segments{t, first, last}, true
}

// copies returns the segments of younger timelines that have what the backup's wrote into its last one before it was left in that: under its own name that may be
// archived as .partial alone.
func (p *Plan) copies(c *catalog.Catalog, b *catalog.Backup, last wal.SegmentNo) (some []segments) {
	finish, _ := b.FinishLSN()
	for _, t := range slices.Sorted(maps.Keys(c.Histories)) {
		path, err := c.PathTo(t)
		if leg, on := path.Leg(b.Timeline()); err == nil && on && t != b.Timeline() && leg.End >= finish && p.size.Segment(leg.End) == last {
			some = append(some, segments{t, last, last})
		}
	}
	return some
}

// catchUps adds the catch-ups, which are laid out as backups are.
func (p *Plan) catchUps(ctx context.Context, from *archive.Archive) error {
	c, err := catalog.Load(ctx, from.CatchUps())
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	for i := range c.Backups {
		b := &c.Backups[i]
		if b.Err != nil {
			p.unreadable(archive.CatchUpDir, b)
			continue
		}
		p.Backups = append(p.Backups, Backup{Name: b.Name, CatchUp: true, backup: b})
	}
	return nil
}

// ours are the directories below holdfast/ that are copied with an archive: what they say holds wherever its WAL and its backups are.
var ours = []string{archive.SummaryDir, archive.GapDir, archive.HoldDir}

// probe is what tells whether a storage can be written to.
const probe = "wal-g_storage_check"

// findOthers lists what lies at the source's root beside backups and WAL.
func (p *Plan) findOthers(ctx context.Context, from *archive.Archive) error {
	for o, err := range from.Store().List(ctx, "", "") {
		if err != nil {
			return fmt.Errorf("source: %w", err)
		}
		switch o.Name {
		case archive.BackupDir, archive.CatchUpDir, archive.WALDir, probe:
		case "holdfast/":
			for _, dir := range ours {
				if dir != archive.SummaryDir || !p.request.NoWAL {
					p.others = append(p.others, dir)
				}
			}
		default:
			p.others = append(p.others, o.Name)
		}
	}
	return nil
}

// unfinished tells of folders that belong to no backup.
func (p *Plan) unfinished(ctx context.Context, from *archive.Archive) error {
	for _, dir := range []string{archive.BackupDir, archive.CatchUpDir} {
		whole := map[string]bool{}
		var folders []string
		for o, err := range from.Store().List(ctx, dir, "") {
			switch {
			case err != nil:
				return fmt.Errorf("source: %w", err)
			case o.IsDir():
				folders = append(folders, path.Base(o.Name))
			default:
				whole[strings.TrimSuffix(path.Base(o.Name), sentinelSuffix)] = true
			}
		}
		for _, name := range folders {
			if !whole[name] {
				p.skip(dir+name, "it is no backup: a push is writing it, or died")
			}
		}
	}
	return nil
}

const sentinelSuffix = "_backup_stop_sentinel.json"

// checkOwner finds out whose archives source and target are.
func (p *Plan) checkOwner(ctx context.Context, c *catalog.Catalog, from, to *archive.Archive) error {
	owner, err := from.Owner(ctx)
	switch {
	case err == nil:
		p.Cluster = owner.SystemIdentifier
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("source: %w", err)
	default:
		for i := range slices.Backward(c.Backups) {
			if s := c.Backups[i].Sentinel; s != nil && s.SystemIdentifier != nil {
				p.Cluster = *s.SystemIdentifier
				break
			}
		}
	}
	target, err := ownerOf(ctx, to)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if target != 0 && target != p.Cluster {
		return &ForeignError{p.Cluster, target}
	}
	_, err = to.Owner(ctx)
	p.Claims = errors.Is(err, fs.ErrNotExist) && p.Cluster != 0
	return nil
}

// ownerOf returns whose archive it is: as it says, or as its newest backup does that says it; 0 for nobody's.
func ownerOf(ctx context.Context, a *archive.Archive) (uint64, error) {
	owner, err := a.Owner(ctx)
	if err == nil {
		return owner.SystemIdentifier, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	var all []archive.Found
	for f, err := range a.Backups(ctx) {
		if err != nil {
			return 0, err
		}
		all = append(all, f)
	}
	slices.SortStableFunc(all, func(x, y archive.Found) int { return y.Object.Modified.Compare(x.Object.Modified) })
	for _, f := range all {
		s, err := a.Sentinel(ctx, f.Name)
		if err != nil {
			return 0, err
		}
		if s.SystemIdentifier != nil {
			return *s.SystemIdentifier, nil
		}
	}
	return 0, nil
}

// compareBackups finds out how much of each backup the target has.
func (p *Plan) compareBackups(ctx context.Context, from, to *archive.Archive) error {
	differs := make([][]Differ, len(p.Backups))
	group, comparing := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	for i := range p.Backups {
		group.Go(func() error {
			b := &p.Backups[i]
			f, t := b.in(from), b.in(to)
			for x, err := range folderPairs(comparing, f, t, b.Name) {
				if err != nil {
					return err
				}
				if b.count(x); x.there && x.to.Size != x.from.Size && !isMetadata(x.from.Name) {
					differs[i] = append(differs[i], Differ{x.from.Name, x.from.Size, x.to.Size})
				}
			}
			name := f.SentinelName(b.Name)
			o, err := f.Store().Stat(comparing, name)
			if err != nil {
				return fmt.Errorf("source: %w", err)
			}
			x := pair{from: o}
			x.to, err = t.Store().Stat(comparing, name)
			if x.there = err == nil; err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("target: %w", err)
			}
			b.count(x)
			b.Whole = x.there
			if x.there && x.to.Size != x.from.Size {
				differs[i] = append(differs[i], Differ{name, x.from.Size, x.to.Size})
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, d := range differs {
		p.differ(d...)
	}
	return nil
}

// differ notes what the target has otherwise.
func (p *Plan) differ(d ...Differ) {
	p.Differs = append(p.Differs, d[:min(len(d), max(0, maxListed-len(p.Differs)))]...)
}

// in returns the archive, or its part for catch-ups, that a backup lies in.
func (b *Backup) in(a *archive.Archive) *archive.Archive {
	if b.CatchUp {
		return a.CatchUps()
	}
	return a
}

// folderOf is the directory of a backup's objects.
func folderOf(a *archive.Archive, name string) string {
	return strings.TrimSuffix(a.SentinelName(name), sentinelSuffix) + "/"
}

// notCopied are what lies in the folder of a backup and is not part of it, by names from the folder on: a push's marker, and what was found out about the one
// that lies there.
func notCopied(rest string) bool {
	return rest == "push.json" || strings.HasPrefix(rest, "verified/") || strings.HasPrefix(rest, "proven/")
}

func isMetadata(name string) bool { return path.Base(name) == "metadata.json" }

// folderPairs yields the objects beside a backup's sentinel that are copied, with what the target has of that name.
func folderPairs(ctx context.Context, from, to *archive.Archive, name string) iter.Seq2[pair, error] {
	folder := folderOf(from, name)
	all := pairs(store.Walk(ctx, from.Store(), folder), store.Walk(ctx, to.Store(), folder))
	return func(yield func(pair, error) bool) {
		for p, err := range all {
			if (err != nil || !notCopied(strings.TrimPrefix(p.from.Name, folder))) && !yield(p, err) {
				return
			}
		}
	}
}

// wanted reports whether an object of wal_005 is copied, and of which timeline it is.
func (p *Plan) wanted(object string) (at place, segment, ok bool) {
	base := path.Base(object)
	var err error
	if wal.KindOf(archive.WALName(object)) == wal.History {
		at.timeline, err = wal.TimelineOf(archive.WALName(object))
		return at, false, err == nil && !p.request.NoWAL
	}
	known := len(base) >= 24 && wal.IsSegment(base[:24])
	if known {
		at.timeline, at.no, err = p.size.ParseSegment(base[:24])
		known = err == nil
	}
	segment = known && wal.KindOf(archive.WALName(object)) == wal.Segment
	span := wal.SegmentNo(1)
	if strings.HasPrefix(base[min(len(base), 24):], "_delta") {
		span = 16 // what it is about
	}
	switch {
	case p.request.NoWAL:
		return at, segment, false
	case p.request.Backup == "":
		return at, segment, true
	case !known:
		return at, segment, false
	case p.request.History && at.timeline >= p.from.timeline && at.no+span-1 >= p.from.no:
		return at, segment, true
	}
	return at, segment, slices.ContainsFunc(p.needed, func(s segments) bool { return s.has(at, span) })
}

// pieces yields the pieces of segments that are copied. One that the target has is the same, however it was packed.
func (p *Plan) pieces(ctx context.Context, from, to store.Store) iter.Seq2[pair, error] {
	return func(yield func(pair, error) bool) {
		if p.request.NoWAL {
			return
		}
		for x, err := range pairs(store.Walk(ctx, from, archive.TailDir), store.Walk(ctx, to, archive.TailDir)) {
			if _, _, ok := p.wanted(archive.WALDir + path.Base(path.Dir(x.from.Name))); err == nil && !ok {
				continue
			}
			if x.there {
				x.to.Size = x.from.Size
			}
			if !yield(x, err) {
				return
			}
		}
	}
}

// compareWAL finds out how much of the WAL the target has, and what the source itself lacks of what the backups need.
func (p *Plan) compareWAL(ctx context.Context, from, to *archive.Archive) error {
	if p.request.NoWAL {
		if len(p.Backups) > 0 {
			p.note("no WAL is copied: what is restored from the target needs WAL from elsewhere, at least %s to %s", p.first(), p.last())
		}
		return nil
	}
	found := make([]wal.SegmentNo, len(p.needed)) // how many segments of each there are
	ended := make([]bool, len(p.needed))          // and whether the last one is
	var before place                              // the segment before, which may come again in another codec
	ranges := map[wal.Timeline]*Range{}
	for x, err := range pairs(from.Store().List(ctx, archive.WALDir, ""), to.Store().List(ctx, archive.WALDir, "")) {
		if err != nil {
			return err
		}
		at, segment, ok := p.wanted(x.from.Name)
		if !ok {
			continue
		}
		r := ranges[at.timeline]
		if r == nil {
			r = &Range{Timeline: at.timeline}
			ranges[at.timeline] = r
		}
		if segment {
			r.Last = path.Base(x.from.Name)[:24]
			if r.First == "" {
				r.First = r.Last
			}
			for i, s := range p.needed {
				if s.has(at, 1) && at != before {
					found[i]++
					ended[i] = ended[i] || at.no == s.last
				}
			}
			before = at
		}
		if r.count(x); x.there && x.to.Size != x.from.Size {
			p.differ(Differ{x.from.Name, x.from.Size, x.to.Size})
		}
	}
	for _, r := range ranges {
		p.WAL = append(p.WAL, *r)
	}
	slices.SortFunc(p.WAL, func(x, y Range) int { return int(int64(x.Timeline) - int64(y.Timeline)) })
	i := 0
	for _, b := range p.Backups {
		if b.FirstWAL == "" {
			continue
		}
		all := b.wal[0].last - b.wal[0].first + 1
		n := all - found[i]
		if n > 0 && !ended[i] && slices.Max(append(found[i+1:i+len(b.wal):i+len(b.wal)], 0)) > 0 {
			n-- // the last one, of which a copy is there
		}
		if n > 0 {
			p.note("of the WAL that %s needs, %s to %s, the source lacks %d of %d: neither it nor the copy can be restored", b.Name, b.FirstWAL, b.LastWAL, n, all)
		}
		i += len(b.wal)
	}
	return nil
}

func (p *Plan) first() string { b := p.Backups[0].backup; return b.Segment() }

func (p *Plan) last() string {
	b := p.Backups[len(p.Backups)-1].backup
	if s, ok := p.needs(b); ok {
		return p.size.Name(s.timeline, s.last)
	}
	return b.Segment()
}

// otherPairs yields what lies below a directory, or the object of that name.
func otherPairs(ctx context.Context, from, to store.Store, name string) iter.Seq2[pair, error] {
	if strings.HasSuffix(name, "/") {
		return pairs(store.Walk(ctx, from, name), store.Walk(ctx, to, name))
	}
	one := func(s store.Store) iter.Seq2[store.Object, error] {
		return func(yield func(store.Object, error) bool) {
			if o, err := s.Stat(ctx, name); !errors.Is(err, fs.ErrNotExist) {
				yield(o, err)
			}
		}
	}
	return pairs(one(from), one(to))
}

// compareOther finds out how much the target has of what is neither a backup nor WAL.
func (p *Plan) compareOther(ctx context.Context, from, to *archive.Archive, name string) error {
	for x, err := range otherPairs(ctx, from.Store(), to.Store(), name) {
		if err != nil {
			return err
		}
		if p.Other.count(x); x.there && x.to.Size != x.from.Size {
			p.differ(Differ{x.from.Name, x.from.Size, x.to.Size})
		}
	}
	return nil
}

// pair is an object of the source, and what the target has of that name.
type pair struct {
	from, to store.Object
	there    bool
}

// pairs goes along two listings, both in order of names, and yields the source's objects. Directories are passed over.
func pairs(from, to iter.Seq2[store.Object, error]) iter.Seq2[pair, error] {
	return func(yield func(pair, error) bool) {
		next, stop := iter.Pull2(to)
		defer stop()
		there, err, more := next()
		for o, failed := range from {
			if failed != nil {
				yield(pair{}, fmt.Errorf("source: %w", failed))
				return
			}
			if o.IsDir() {
				continue
			}
			for more && err == nil && (there.Name < o.Name || there.IsDir()) {
				there, err, more = next()
			}
			if more && err != nil {
				yield(pair{}, fmt.Errorf("target: %w", err))
				return
			}
			p := pair{from: o, there: more && there.Name == o.Name}
			if p.there {
				p.to = there
			}
			if !yield(p, nil) {
				return
			}
		}
	}
}
