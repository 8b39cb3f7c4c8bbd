package retention

import (
	"fmt"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// hold lets stay what the holds in force cover: a backup with all it builds on; or for the moments between two times the backups that were finished
// between them, and on each way of recovery the newest one before.
func (j *judge) hold() {
	for i := range j.in.Holds {
		h := &j.in.Holds[i]
		if h.Backup != "" {
			if b := j.byKey[h.Backup]; b != nil {
				b.stays(moment, Held, "held: %s", h.words())
			}
			continue
		}
		for b := range j.heldBackups(h) {
			b.stays(moment, Held, "held for the moments from %s to %s: %s", catalog.FormatTime(h.From), catalog.FormatTime(h.To), h.words())
		}
	}
}

func (h *Hold) words() string { return fmt.Sprintf("%s (hold %s)", h.Reason, h.ID()) }

// heldBackups returns the backups from which the moments of a hold are restored.
func (j *judge) heldBackups(h *Hold) map[*backup]bool {
	held := map[*backup]bool{}
	for _, b := range j.all {
		if at := b.Created(); !at.Before(h.From) && !at.After(h.To) {
			held[b] = true
		}
	}
	for _, l := range j.lines {
		if b := newestBy(l.backups, h.From); b != nil {
			held[b] = true
		}
	}
	return held
}

// newestBy returns the newest of the backups that was finished by then and can be restored; where none can, the newest; nil where there is none.
func newestBy(backups []*backup, by time.Time) *backup {
	var newest, whole *backup
	for _, b := range backups {
		if b.Created().After(by) {
			continue
		}
		newest = b
		if b.restorable() {
			whole = b
		}
	}
	if whole != nil {
		return whole
	}
	return newest
}

// heldWAL returns the WAL that holds need: from each backup on until, on that timeline, one begins that was begun after the last held moment. What comes behind
// that cannot be of a moment before.
func (j *judge) heldWAL() (needs []need) {
	for i := range j.in.Holds {
		h := &j.in.Holds[i]
		if h.Backup != "" {
			continue
		}
		why := reason{Held, fmt.Sprintf("the moments from %s to %s are held: %s", catalog.FormatTime(h.From), catalog.FormatTime(h.To), h.words())}
		for b := range j.heldBackups(h) {
			for _, n := range j.needsOf(b, continuous) {
				n.why = why
				n.to = j.behind(n.timeline, b.lineage, h.To, n.from)
				needs = append(needs, n)
			}
		}
	}
	return needs
}

// behind returns the first place on timeline t, not before from, at which a backup of a lineage starts that was begun after a time.
func (j *judge) behind(t wal.Timeline, lineage uint64, after time.Time, from place) place {
	first := end
	for _, b := range j.all {
		if b.lineage != lineage || b.Started().IsZero() || !b.Started().After(after) || !passes(j.paths[t], b) {
			continue
		}
		if _, p := placeOf(b.Segment()); p >= from && p < first {
			first = p
		}
	}
	return first
}
