// Package retention decides which backups and which WAL of an archive may go, and removes them.
//
// Decide is pure: an Inventory, a Rule and the time make a Plan, in which each backup and each stretch of WAL stands with what keeps it or lets it go. Apply
// carries a plan out in two steps: what is to go is condemned by a tombstone, and is removed once its time has come, by this call or a later one, after
// everything was judged anew. Until then it can be taken back.
//
// Whatever a rule says, these stay: what is permanent, held, or used by a push or a restore at work; the last backup of a cluster that can be restored and
// the last one that was proven; what something that stays builds on; the WAL that all these need; and what the store does not let go. What cannot be listed or
// read lets nothing go. Backups are told apart by system identifier and put in order by time and by the graph of timelines, never by name.
package retention

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// A Rule says what is wanted. Rules are made by Policy and the functions named after WAL-G's commands.
type Rule interface {
	// String is the rule as people type it.
	String() string
	scope() scope
	// choose lets stay what is wanted, and says of the rest why it is not.
	choose(j *judge) error
}

// scope is what a rule is about.
type scope struct {
	policy   bool // it may think better of it; else it is a command, by which something is named
	named    bool // by name: where something keeps one from going that is an error
	backups  bool // may go
	wal      bool // may go
	leftover bool // what dead pushes left may go
	alone    bool // WAL is judged without any backup, too
	force    bool // permanent backups may go
	nothing  bool // of the archive is to be left
}

// UnreadableError says that nothing may go as long as something cannot be read.
type UnreadableError struct {
	What string
	Err  error
}

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("nothing is deleted, as %s cannot be read: %v", e.What, e.Err)
}

func (e *UnreadableError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *UnreadableError) Hint() string {
	if strings.HasPrefix(e.What, "backup ") {
		name := strings.TrimPrefix(e.What, "backup ")
		return "try again where the store may have failed; a backup that is damaged for good goes with `holdfast delete target " + name +
			" --confirm`, or with all others by `holdfast delete everything FORCE`"
	}
	return "try again where the store may have failed; else look at that object, and remove it by `holdfast st rm` once you know what it was for"
}

// KeptError says why something that was named may not go.
type KeptError struct {
	Backup string // "" for all
	Reason string
	Ground Ground
}

func (e *KeptError) Error() string {
	if e.Backup == "" {
		return "nothing is deleted: " + e.Reason
	}
	return fmt.Sprintf("backup %s is not deleted: %s", e.Backup, e.Reason)
}

// Hint says how to go on.
func (e *KeptError) Hint() string {
	switch e.Ground {
	case Permanent:
		return "`holdfast backup-mark --impermanent " + e.Backup + "` takes the mark away"
	case Held:
		return "`holdfast hold list` shows the holds, `holdfast hold release` ends one"
	case Restoring, Pushing:
		return "wait for it to end"
	case LastOne:
		return "take another backup first; `holdfast delete everything` empties the archive"
	case Proven:
		return "prove a newer backup first"
	}
	return ""
}

// Decide judges an inventory by a rule. It reads and changes nothing.
func Decide(in *Inventory, rule Rule, now time.Time) (*Plan, error) {
	j := newJudge(in, now)
	s := rule.scope()
	if err := j.readable(rule); err != nil {
		return nil, err
	}
	if err := rule.choose(j); err != nil {
		return nil, err
	}
	if err := j.protect(s); err != nil {
		return nil, err
	}
	return j.plan(rule), nil
}

// readable returns an error where it is not known what all is.
func (j *judge) readable(rule Rule) error {
	for _, err := range j.in.Catalog.BadTombstones {
		return &UnreadableError{"a tombstone", err}
	}
	if rule.scope().nothing && rule.scope().force {
		return nil
	}
	for _, b := range j.all {
		if t, ok := rule.(*target); b.Err != nil && !(ok && t.name == b.Name) {
			return &UnreadableError{"backup " + b.Name, b.Err}
		}
	}
	return nil
}

// protect lets stay what must, whatever the rule says.
func (j *judge) protect(s scope) error {
	named := map[*backup]bool{}
	for _, b := range j.all {
		if len(b.keep) == 0 && s.named {
			named[b] = true
		}
		if b.asked() && !s.named && s.backups && !s.nothing { // whatever the policy says
			b.keep, b.mode = nil, moment
			b.goes = reason{Asked, fmt.Sprintf("`%s`, by %s at %s", b.Condemned.Request, b.Condemned.By, catalog.FormatTime(b.Condemned.At))}
		}
	}
	for _, b := range j.all {
		if b.permanent && !s.force {
			b.stays(moment, Permanent, "it is permanent")
		}
		if why, ok := j.in.Refused[b.Name]; ok {
			b.stays(moment, Refused, "the store does not let it go: %s", why)
		}
	}
	j.hold()
	j.inUse()
	mortal := slices.ContainsFunc(j.all, func(b *backup) bool { return !b.permanent })
	if !s.nothing && (s.backups || s.alone || mortal) { // WAL does not become garbage by permanent backups alone
		j.lastOnes()
	}
	j.parents()
	var kept *KeptError // of those that are named
	for _, b := range j.all {
		if i := slices.IndexFunc(b.keep, func(r reason) bool { return r.ground != Refused }); named[b] && i >= 0 && (kept == nil || kept.Ground == Parent) {
			kept = &KeptError{b.Name, b.keep[i].text, b.keep[i].ground} // rather what keeps a delta than the delta
		}
		if s.nothing && len(b.keep) > 0 && b.keep[0].ground != Refused {
			return &KeptError{b.Name, b.keep[0].text, b.keep[0].ground}
		}
	}
	if kept != nil {
		return kept
	}
	return nil
}

// inUse lets stay what restores and pushes at work use.
func (j *judge) inUse() {
	for _, r := range j.in.Restores {
		if !r.InUse(j.in.At, r.Beat) || r.Replaying {
			continue
		}
		for _, name := range r.Backups {
			if b := j.byKey[name]; b != nil {
				b.stays(moment, Restoring, "a restore on %s uses it since %s", r.Host, catalog.FormatTime(r.At))
			}
		}
	}
	for _, p := range j.in.Pushes {
		if !j.alive(&p) {
			continue
		}
		_, parent, isDelta := strings.Cut(p.Name, "_D_")
		for _, b := range j.all {
			switch {
			case isDelta && len(parent) >= 24 && b.Segment() == parent[:24]:
				b.stays(moment, Pushing, "the backup %s, which is being taken, may build on it", p.Name)
			case !isDelta && b.IsDelta() && b.Segment() == p.Name[len("base_"):][:24]:
				b.stays(moment, Pushing, "it may be what %s is being merged from", p.Name)
			}
		}
	}
}

// lastOnes lets stay the newest backup of each line that is alive, and of each cluster, that can be restored, should none other stay; and the newest that was proven.
func (j *judge) lastOnes() {
	lineages := map[uint64][]*backup{}
	for _, b := range j.all {
		lineages[b.lineage] = append(lineages[b.lineage], b)
	}
	for _, l := range j.lines {
		if l.live {
			j.lastOf(l.backups, fmt.Sprintf("on the way to timeline %d", l.timeline))
		}
	}
	for _, backups := range lineages {
		j.lastOf(backups, "of its cluster")
		var proven, claimed *backup // claimed is newer than proven: else that one would go in any case
		for _, b := range backups {
			switch {
			case b.chain != nil:
			case !j.in.Proven[b.Name].IsZero():
				proven, claimed = b, nil
			case !j.in.Claimed[b.Name].IsZero():
				claimed = b
			}
		}
		if proven != nil && !j.anyProven {
			proven.stays(moment, Proven, "the last one that was restored, started and queried (at %s)", catalog.FormatTime(j.in.Proven[proven.Name]))
		}
		if claimed != nil && !j.anyProven { // a key may be lost, changed or set wrongly: that must not cost the last proof
			claimed.stays(moment, Proven, "the last one of which a record says that it was restored, started and queried (at %s), though nobody whose word counts", catalog.FormatTime(j.in.Claimed[claimed.Name]))
		}
	}
}

// lastOf lets the newest of some backups stay that can be restored, unless one stays from which recovery goes on; where none can be restored at all the one that comes
// closest. One that is condemned does not count: whoever did that may be removing it in this moment.
func (j *judge) lastOf(backups []*backup, which string) {
	var best *backup
	rank := func(b *backup) int {
		switch {
		case b.restorable():
			return 2
		case b.chain == nil:
			return 1
		}
		return 0
	}
	for _, b := range backups {
		if best == nil || rank(b) >= rank(best) {
			best = b
		}
	}
	for _, b := range backups {
		if len(b.keep) > 0 && b.mode == continuous && b.Condemned == nil && rank(b) >= rank(best) {
			return
		}
	}
	if best != nil {
		best.stays(continuous, LastOne, "the last one %s that can be restored", which)
	}
}

// parents lets stay what the others that stay build on.
func (j *judge) parents() {
	for changed := true; changed; {
		changed = false
		for _, b := range j.all {
			if len(b.keep) > 0 && b.parent != nil && len(b.parent.keep) == 0 {
				b.parent.stays(moment, Parent, "%s builds on it", b.Name)
				changed = true
			}
		}
	}
}

// Verdict is that on a backup.
type Verdict struct {
	Backup   string    `json:"backup"`
	Finished time.Time `json:"finished"`
	Delta    bool      `json:"delta,omitempty"`
	Cluster  uint64    `json:"system_identifier,omitempty"`
	Timeline uint32    `json:"timeline"`
	Bytes    int64     `json:"bytes"` // as stored; 0 where it does not say
	Keep     bool      `json:"keep"`
	Ground   Ground    `json:"ground"`
	Why      string    `json:"why"` // in words
	Also     []string  `json:"also,omitempty"`

	Condemned  time.Time `json:"condemned,omitzero"`   // since when it is
	PurgeAfter time.Time `json:"purge_after,omitzero"` // of what is condemned
	Broken     string    `json:"broken,omitempty"`     // why it cannot be restored
}

// WALVerdict is that on a stretch of WAL.
type WALVerdict struct {
	Timeline uint32 `json:"timeline"`
	First    string `json:"first"`
	Last     string `json:"last"`
	Segments int64  `json:"segments"`
	Bytes    int64  `json:"bytes"` // as stored, about
	Keep     bool   `json:"keep"`
	Ground   Ground `json:"ground"`
	Why      string `json:"why"`
}

// PiecesVerdict is that on the pieces of a segment.
type PiecesVerdict struct {
	Segment string `json:"segment"`
	Objects int    `json:"objects"`
	Bytes   int64  `json:"bytes"` // as stored
	Keep    bool   `json:"keep"`
	Ground  Ground `json:"ground"`
	Why     string `json:"why"`
}

// HistoryVerdict is that on a history file.
type HistoryVerdict struct {
	Timeline uint32 `json:"timeline"`
	Keep     bool   `json:"keep"`
	Why      string `json:"why"`
}

// Leftover is what a push has left that did not become a backup.
type Leftover struct {
	Name    string `json:"name"`
	Objects int    `json:"objects"`
	Bytes   int64  `json:"bytes"`
	Keep    bool   `json:"keep"`
	Why     string `json:"why"`
}

// Plan says what stays and what goes, and why. It is a value: Apply carries it out.
type Plan struct {
	At        time.Time        `json:"at"`
	Rule      string           `json:"rule"`
	Backups   []Verdict        `json:"backups"`
	WAL       []WALVerdict     `json:"wal,omitempty"`
	Pieces    []PiecesVerdict  `json:"pieces,omitempty"` // of segments that were being written
	Histories []HistoryVerdict `json:"histories,omitempty"`
	Leftovers []Leftover       `json:"leftovers,omitempty"`
	Notes     []string         `json:"notes,omitempty"`

	rule  Rule
	judge *judge
}

// Nothing reports whether nothing goes.
func (p *Plan) Nothing() bool {
	return !p.rule.scope().nothing && !slices.ContainsFunc(p.Backups, func(v Verdict) bool { return !v.Keep }) &&
		!slices.ContainsFunc(p.WAL, func(v WALVerdict) bool { return !v.Keep }) &&
		!slices.ContainsFunc(p.Pieces, func(v PiecesVerdict) bool { return !v.Keep }) &&
		!slices.ContainsFunc(p.Histories, func(v HistoryVerdict) bool { return !v.Keep }) &&
		!slices.ContainsFunc(p.Leftovers, func(v Leftover) bool { return !v.Keep })
}

// stay is what judgeWAL asks for what the plan says in the end.
func (b *backup) stay() (mode, bool) { return b.mode, len(b.keep) > 0 }

// plan puts the verdicts into words.
func (j *judge) plan(rule Rule) *Plan {
	s := rule.scope()
	p := &Plan{At: j.now.UTC(), Rule: rule.String(), Backups: []Verdict{}, rule: rule, judge: j, Notes: j.notes}
	for _, b := range j.all {
		v := Verdict{Backup: b.Name, Finished: b.Created().UTC(), Delta: b.IsDelta(), Cluster: b.cluster, Timeline: uint32(b.Timeline()),
			Bytes: b.Details().CompressedSize, Keep: len(b.keep) > 0}
		if err := b.why(); err != nil {
			v.Broken = err.Error()
		}
		if b.Condemned != nil {
			v.Condemned, v.PurgeAfter = b.Condemned.At, b.Condemned.PurgeAfter
		}
		if v.Keep {
			v.Ground, v.Why = b.keep[0].ground, b.keep[0].text
			for _, r := range b.keep[1:] {
				v.Also = append(v.Also, r.text)
			}
		} else {
			v.Ground, v.Why = b.goes.ground, b.goes.text
		}
		p.Backups = append(p.Backups, v)
	}
	if s.wal {
		v := j.judgeWAL((*backup).stay, s.alone)
		p.WAL = j.walPlan(v)
		p.Pieces = j.piecesPlan(v)
		p.Histories = j.historyPlan(v, (*backup).stay)
	}
	for _, u := range j.in.Pushes {
		l := Leftover{Name: u.Name, Objects: u.Count, Bytes: u.Bytes, Keep: true}
		switch {
		case j.alive(&u):
			l.Why = atWork(u)
		case j.half(&u):
			l.Keep, l.Why = false, "its removal was begun"
		case !s.leftover && !s.nothing:
			l.Why = "a push that died left it; `holdfast delete garbage` or `holdfast retention apply` removes it"
		case !u.LongDead(j.in.At):
			l.Why = "the push died less than a day ago"
		default:
			l.Keep, l.Why = false, "left by a push that died at "+catalog.FormatTime(u.Beat)
		}
		p.Leftovers = append(p.Leftovers, l)
	}
	return p
}

// atWork says who may be writing an unfinished backup.
func atWork(u archive.Unfinished) string {
	if u.Push == nil {
		return fmt.Sprintf("it has no sentinel, and was written to at %s, less than a day ago: another program may be at work there", catalog.FormatTime(u.Beat))
	}
	return fmt.Sprintf("a push by process %d on %s is at work there since %s", u.Push.PID, u.Push.Host, catalog.FormatTime(u.Push.Started))
}

// half reports whether u is a backup whose removal was begun: it was condemned, its sentinel is gone, and nobody has written there since.
func (j *judge) half(u *archive.Unfinished) bool {
	return u.Push == nil && slices.ContainsFunc(j.in.Catalog.Tombstones, func(t catalog.Tombstone) bool {
		return slices.Contains(t.Backups, u.Name) && !t.PurgeAfter.After(j.now) && !u.Beat.After(t.Modified)
	})
}

// alive reports whether a push may be at work there.
func (j *judge) alive(u *archive.Unfinished) bool { return u.Alive(j.in.At) && !j.half(u) }

// walPlan returns the verdict on each stretch of WAL.
func (j *judge) walPlan(v *verdicts) (all []WALVerdict) {
	size := j.in.WAL.SegmentSize
	for t, r := range j.in.runs() {
		cuts := v.cuts(t, j.in.places(r))
		for i, from := range cuts {
			first, last := segmentFrom(size, from), r.Last
			if i+1 < len(cuts) {
				last = segmentFrom(size, cuts[i+1]) - 1
			}
			if first > last {
				continue
			}
			goes, why := v.of(t, span{placeAt(size, first), placeAt(size, last)})
			n := int64(last - first + 1)
			w := WALVerdict{Timeline: uint32(t), First: size.Name(t, first), Last: size.Name(t, last), Segments: n,
				Bytes: int64(float64(r.Bytes) * float64(n) / float64(r.Count())), Keep: !goes, Ground: why.ground, Why: why.text}
			if k := len(all) - 1; k >= 0 && i > 0 && all[k].Timeline == w.Timeline && all[k].Keep == w.Keep && all[k].Why == w.Why {
				all[k].Last, all[k].Segments, all[k].Bytes = w.Last, all[k].Segments+n, all[k].Bytes+w.Bytes
				continue
			}
			all = append(all, w)
		}
	}
	return all
}

// piecesPlan returns the verdict on each segment in pieces.
func (j *judge) piecesPlan(v *verdicts) (found []PiecesVerdict) {
	for i := range j.in.WAL.Timelines {
		of := &j.in.WAL.Timelines[i]
		for _, p := range of.Tails {
			goes, why := j.pieces(v, of.Timeline, p.Segment, object{archived: p.Modified}, anything)
			found = append(found, PiecesVerdict{Segment: p.Name, Objects: p.Pieces, Bytes: p.Bytes, Keep: !goes, Ground: why.ground, Why: why.text})
		}
	}
	return found
}

// segmentFrom returns the first segment that does not lie before p.
func segmentFrom(size wal.SegmentSize, p place) wal.SegmentNo {
	per := uint64(1<<32) / uint64(size)
	return wal.SegmentNo(uint64(p)>>32*per + min(uint64(p)&0xFFFFFFFF, per))
}

// historyPlan returns the verdict on each history file. One stays for as long as a backup or WAL does on its timeline, on one that comes from it, or on one that
// it comes from; and the last one of all, as a promotion chooses the next number by it.
func (j *judge) historyPlan(v *verdicts, stays func(*backup) (mode, bool)) (all []HistoryVerdict) {
	used := map[wal.Timeline]string{}
	use := func(t wal.Timeline, what string) {
		for child, p := range j.paths {
			_, through := p.Leg(t)
			_, from := j.paths[t].Leg(child)
			if through || from {
				used[child] = cmp.Or(used[child], what)
			}
		}
	}
	for _, b := range j.all {
		if _, ok := stays(b); ok {
			use(b.Timeline(), fmt.Sprintf("%s leads to it, or it to that", b.Name))
		}
	}
	for _, w := range j.walPlan(v) {
		if w.Keep {
			for _, leg := range j.paths[wal.Timeline(w.Timeline)] {
				used[leg.Timeline] = cmp.Or(used[leg.Timeline], fmt.Sprintf("WAL stays that leads through it (%s)", w.First))
			}
		}
	}
	for _, p := range j.piecesPlan(v) {
		if t, _ := placeOf(p.Segment); p.Keep {
			for _, leg := range j.paths[t] {
				used[leg.Timeline] = cmp.Or(used[leg.Timeline], fmt.Sprintf("WAL stays that leads through it (%s, in pieces)", p.Segment))
			}
		}
	}
	for _, p := range j.in.Pushes {
		if t, _ := placeOf(p.Name[len("base_"):]); j.alive(&p) {
			use(t, "a backup is being taken there")
		}
	}
	for _, r := range j.in.Restores {
		if r.InUse(j.in.At, r.Beat) {
			use(r.Timeline, "a restore uses it")
		}
	}
	var highest wal.Timeline
	for _, of := range j.in.WAL.Timelines {
		if of.History != nil {
			highest = of.Timeline
		}
	}
	for _, of := range j.in.WAL.Timelines {
		if of.History == nil {
			continue
		}
		t := of.Timeline
		h := HistoryVerdict{Timeline: uint32(t), Keep: true}
		text, closed := v.closed[t]
		switch {
		case closed:
			h.Why = text
		case used[t] != "":
			h.Why = used[t]
		case t == highest:
			h.Why = "it is the last one: a promotion chooses the next number by it"
		case v.oldest.IsZero() || !of.History.Archived.Before(v.oldest):
			h.Why = "it came later than the oldest backup that stays was begun"
		default:
			h.Keep, h.Why = false, "nothing that stays is on its timeline, before or after it"
		}
		all = append(all, h)
	}
	return all
}
