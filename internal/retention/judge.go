package retention

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/proof"
)

// Ground says by which rule something stays or goes, for programs; the words for people are beside it.
type Ground string

// What lets a backup or WAL stay, and go.
const (
	ByRule     Ground = "rule"      // the command or the policy wants it
	ByWindow   Ground = "window"    // moments of the recovery window are restored from it
	ByCount    Ground = "full"      // of the newest full backups, or a delta that came after one of them
	ByCalendar Ground = "gfs"       // the last of a day, week, month or year
	ByMinimum  Ground = "minimum"   // of the newest that can be restored
	Permanent  Ground = "permanent" // marked so
	Held       Ground = "hold"
	Restoring  Ground = "restore"  // a restore uses it
	Pushing    Ground = "push"     // a push uses it
	Proven     Ground = "proven"   // the last that was restored, started and queried
	LastOne    Ground = "last"     // the last that can be restored
	Parent     Ground = "parent"   // something that stays builds on it
	Newer      Ground = "newer"    // newer than the oldest that stays, so that it is not judged yet
	Unread     Ground = "unread"   // it cannot be read what it is
	Refused    Ground = "refused"  // the store does not let it go
	Needed     Ground = "needed"   // WAL: to replay over a backup that stays
	Unknown    Ground = "unknown"  // WAL: may be of a server whose first backup is still to come
	NoLonger   Ground = "old"      // goes: no rule wants it
	Asked      Ground = "asked"    // goes: named by a command
	Orphaned   Ground = "orphaned" // goes: nothing that stays leads to it
	Broken     Ground = "broken"   // goes: it cannot be restored, and is old
	Abandoned  Ground = "dead"     // goes: of a push that died
	Whole      Ground = "whole"    // goes: pieces of a segment that is archived whole
)

// mode says how much of the WAL behind a backup stays with it.
type mode int

const (
	moment     mode = iota // from its start to its end: it restores to the moment it was finished
	continuous             // from its start on: it restores to any moment since
)

// reason is why something stays or goes.
type reason struct {
	ground Ground
	text   string
}

// backup is one as it is being judged.
type backup struct {
	*catalog.Backup
	cluster   uint64 // 0 where it does not say
	lineage   uint64 // of clusters that succeeded one another by pg_upgrade
	parent    *backup
	chain     error // why its chain is not whole, or not good
	missing   error // why its WAL is not there
	permanent bool

	keep []reason // why it stays; none: it goes
	mode mode     // of the strongest reason
	goes reason   // why nobody wants it
}

// Created returns when the backup was made. Its host's clock said so; the store's, which has the last word, knows when the sentinel was stored at the latest.
func (b *backup) Created() time.Time { return b.NoLater(b.Backup.Created()) }

// Started returns when the backup was begun; zero where it does not say.
func (b *backup) Started() time.Time { return b.NoLater(b.Backup.Started()) }

// restorable reports whether, by what the inventory shows, the backup can be brought back.
func (b *backup) restorable() bool { return b.chain == nil && b.missing == nil }

func (b *backup) why() error { return cmp.Or(b.chain, b.missing) }

// stays adds a reason.
func (b *backup) stays(m mode, g Ground, format string, args ...any) {
	b.keep = append(b.keep, reason{g, fmt.Sprintf(format, args...)})
	b.mode = max(b.mode, m)
}

// asked reports whether a command has condemned the backup: no policy wants it then.
func (b *backup) asked() bool { return b.Condemned != nil && b.Condemned.Request != "" }

// line is a way that recovery can take: to a timeline that was not left, over the backups on it.
type line struct {
	timeline wal.Timeline
	path     catalog.Path
	lineage  uint64
	backups  []*backup // in the order they were made, those of preceding clusters first
	last     time.Time // when something came on its own timeline last
	live     bool      // something came since the newest backup of the lineage was begun, or it is not known whether others come from it
}

// judge is what Decide works on.
type judge struct {
	in    *Inventory
	now   time.Time
	all   []*backup // in the order they were made
	byKey map[string]*backup
	paths map[wal.Timeline]catalog.Path // of all timelines; without those whose history cannot be read
	lines []*line
	notes []string

	anyProven bool // the last one that was proven may go
}

func newJudge(in *Inventory, now time.Time) *judge {
	j := &judge{in: in, now: now, byKey: map[string]*backup{}, paths: map[wal.Timeline]catalog.Path{}}
	for i := range in.Catalog.Backups {
		b := &backup{Backup: &in.Catalog.Backups[i]}
		b.permanent = b.Metadata != nil && b.Metadata.IsPermanent || b.Sentinel != nil && b.Metadata == nil && b.Sentinel.IsPermanent
		if b.Sentinel != nil && b.Sentinel.SystemIdentifier != nil {
			b.cluster = *b.Sentinel.SystemIdentifier
		}
		j.all = append(j.all, b)
		j.byKey[b.Name] = b
	}
	slices.SortStableFunc(j.all, func(x, y *backup) int { return x.Created().Compare(y.Created()) })
	if text := proof.Tell(in.Unproven); text != "" {
		j.notes = append(j.notes, text)
	}
	j.findLineages()
	j.findPaths()
	for _, b := range j.all {
		if b.Sentinel == nil {
			b.chain = b.Err
			continue
		}
		if b.IsDelta() {
			b.parent = j.byKey[b.Sentinel.DeltaFrom]
		}
		chain, err := in.Catalog.Chain(b.Backup)
		if b.chain = err; err != nil {
			continue
		}
		for _, c := range chain {
			if found := in.Damaged[c.Name]; found != "" && b.chain == nil {
				b.chain = fmt.Errorf("%s is damaged: %s", c.Name, found)
			}
		}
		b.missing = j.missing(b)
	}
	j.findLines()
	return j
}

// findLineages puts the clusters together that succeeded one another, as the archive's owner says. What does not say of which cluster it is counts to the owner's.
func (j *judge) findLineages() {
	var own uint64
	known := map[uint64]bool{}
	if o := j.in.Owner; o != nil {
		own = o.SystemIdentifier
		known[own] = true
		for _, id := range o.Previous {
			known[id] = true
		}
	}
	if own == 0 { // an archive of WAL-G's: that of its newest backup
		for _, b := range slices.Backward(j.all) {
			if b.cluster != 0 {
				own = b.cluster
				break
			}
		}
	}
	for _, b := range j.all {
		b.lineage = b.cluster
		if b.cluster == 0 || known[b.cluster] {
			b.lineage = own
		}
	}
}

// findPaths works out how recovery reaches each timeline.
func (j *judge) findPaths() {
	timelines := map[wal.Timeline]bool{}
	for _, b := range j.all {
		timelines[b.Timeline()] = true
	}
	for _, t := range j.in.WAL.Timelines {
		timelines[t.Timeline] = true
	}
	for t, branches := range j.in.Catalog.Histories {
		timelines[t] = true
		for _, b := range branches {
			timelines[b.Timeline] = true
		}
	}
	for _, p := range j.in.Pushes {
		t, _ := placeOf(p.Name[len("base_"):])
		timelines[t] = true
	}
	for _, r := range j.in.Restores {
		timelines[r.Timeline] = true
	}
	for _, c := range j.in.CatchUps {
		t, _ := placeOf(c.Name[len("base_"):])
		timelines[t] = true
	}
	for t := range timelines {
		if p, err := j.in.Catalog.PathTo(t); err == nil {
			j.paths[t] = p
		}
	}
}

// timelines returns those with a path, ascending.
func (j *judge) timelines() []wal.Timeline { return slices.Sorted(maps.Keys(j.paths)) }

// passes reports whether recovery along p replays what b was finished with, and goes on from there.
func passes(p catalog.Path, b *backup) bool {
	leg, on := p.Leg(b.Timeline())
	if !on {
		return false
	}
	if leg.End == 0 {
		return true
	}
	if finish, ok := b.FinishLSN(); ok {
		return finish <= leg.End
	}
	start, ok := b.StartLSN()
	return ok && start < leg.End
}

// findLines finds the ways that recovery can take. A timeline that was left has a line only where something came on it after that.
func (j *judge) findLines() {
	type key struct {
		lineage, cluster uint64
	}
	clusters := map[key][]*backup{}
	var order []key // by the newest backup
	for _, b := range j.all {
		k := key{b.lineage, b.cluster}
		order = append(slices.DeleteFunc(order, func(o key) bool { return o == k }), k)
		clusters[k] = append(clusters[k], b)
	}
	newest := map[uint64]*backup{} // of each lineage
	for _, b := range j.all {
		newest[b.lineage] = b
	}
	unsure := j.unsure()
	if unsure > 0 {
		j.notes = append(j.notes, fmt.Sprintf("where timeline %d came from is not known, as %s is missing or cannot be read: each older timeline is judged as if the cluster were on it", uint32(unsure), wal.HistoryName(unsure)))
	}
	for i, k := range order {
		succeeded := slices.ContainsFunc(order[i+1:], func(o key) bool { return o.lineage == k.lineage })
		var before []*backup // of the clusters that this one succeeded
		for _, o := range order[:i] {
			if o.lineage == k.lineage {
				before = append(before, clusters[o]...)
			}
		}
		if succeeded {
			continue // its backups are part of the successors' lines
		}
		slices.SortStableFunc(before, func(x, y *backup) int { return x.Created().Compare(y.Created()) })
		for _, l := range j.linesOf(clusters[k]) {
			l.lineage = k.lineage
			l.backups = append(slices.Clone(before), l.backups...)
			began := started(newest[k.lineage])
			l.live = !l.last.Before(began) || slices.Contains(l.backups, newest[k.lineage]) || l.timeline < unsure
			j.lines = append(j.lines, l)
		}
	}
}

// unsure returns the highest timeline of which it is not known where it came from, though there is an older one with backups; 0 where there is none. It may lead over
// any of these.
func (j *judge) unsure() (highest wal.Timeline) {
	oldest := ^wal.Timeline(0)
	for _, b := range j.all {
		oldest = min(oldest, b.Timeline())
	}
	look := func(t wal.Timeline) {
		if len(j.in.Catalog.Histories[t]) == 0 && t > oldest {
			highest = max(highest, t)
		}
	}
	for _, b := range j.all {
		look(b.Timeline())
	}
	for _, of := range j.in.WAL.Timelines {
		look(of.Timeline)
	}
	for t := range j.in.Catalog.BadHistory {
		look(t)
	}
	return highest
}

// linesOf returns the lines of one cluster, of which these are the backups.
func (j *judge) linesOf(backups []*backup) (lines []*line) {
	ours := map[wal.Timeline]bool{} // timelines that grew out of its backups
	for t, p := range j.paths {
		ours[t] = slices.ContainsFunc(backups, func(b *backup) bool { return passes(p, b) })
	}
	on := map[*backup]bool{}
	add := func(t wal.Timeline, p catalog.Path) {
		l := &line{timeline: t, path: p}
		for _, b := range backups {
			if !passes(p, b) {
				continue
			}
			l.backups = append(l.backups, b)
			on[b] = true
			if b.Timeline() == t && b.Created().After(l.last) {
				l.last = b.Created()
			}
		}
		for of, r := range j.in.runs() {
			if of == t && r.Newest.After(l.last) {
				l.last = r.Newest
			}
		}
		if of := j.in.WAL.Timeline(t); of != nil {
			for i := range of.Tails {
				if at := of.Tails[i].Modified; at.After(l.last) {
					l.last = at
				}
			}
		}
		if len(l.backups) > 0 {
			lines = append(lines, l)
		}
	}
	for _, t := range j.timelines() {
		left := wal.LSN(0) // for the last of the cluster's timelines that came from it
		for child, p := range j.paths {
			if leg, through := p.Leg(t); through && child != t && ours[child] {
				left = max(left, leg.End)
			}
		}
		if ours[t] && (left == 0 || j.goesOn(t, left)) {
			add(t, j.paths[t])
		}
	}
	for _, b := range backups { // taken on a timeline after it had been left, or on one whose history cannot be read
		if !on[b] {
			p := j.paths[b.Timeline()]
			if p == nil {
				p = catalog.Path{{Timeline: b.Timeline()}}
			}
			add(b.Timeline(), p)
		}
	}
	return lines
}

// goesOn reports whether WAL of a timeline was archived from behind the segment in which it had been left: by a server that was not promoted, or by the one that
// was to be shut down.
func (j *judge) goesOn(t wal.Timeline, left wal.LSN) bool {
	of := j.in.WAL.Timeline(t)
	return of != nil && len(of.Runs) > 0 && of.Runs[len(of.Runs)-1].Last > j.in.WAL.SegmentSize.Segment(left)
}

// started returns when a backup was begun, or was finished where it does not say.
func started(b *backup) time.Time {
	if t := b.Started(); !t.IsZero() {
		return t
	}
	return b.Created()
}

// missing returns nil where all WAL that makes b consistent is there. That the last segment of a timeline that was left is on the next one is fine.
func (j *judge) missing(b *backup) error {
	size, err := b.SegmentSize()
	if err != nil {
		return err
	}
	if size != j.in.WAL.SegmentSize {
		return nil // of a preceding cluster: not counted
	}
	t := b.Timeline()
	_, n, err := size.ParseSegment(b.Segment())
	if err != nil {
		return err
	}
	if start, ok := b.StartLSN(); ok {
		n = size.Segment(start)
	}
	last := n
	finish, ok := b.FinishLSN()
	if ok {
		last = size.LastSegment(finish)
	}
	for name, found := range j.in.BadWAL {
		if first := size.Name(t, n); first <= name && name <= size.Name(t, last) {
			return fmt.Errorf("%s, without which it is not consistent, is damaged: %s", name, found)
		}
	}
	for n <= last {
		run := j.in.WAL.Find(t, n)
		for child, p := range j.paths {
			if leg, on := p.Leg(t); run == nil && child != t && on && size.Segment(leg.End) <= n {
				run = j.in.WAL.Find(child, n)
			}
		}
		if tail := j.in.WAL.Tail(t, n); run == nil && tail != nil && tail.End(size) >= min(finish, size.Start(n+1)) && ok {
			n++
			continue
		}
		if run == nil {
			return fmt.Errorf("the archive lacks %s, without which it is not consistent", size.Name(t, n))
		}
		n = run.Last + 1
	}
	return nil
}
