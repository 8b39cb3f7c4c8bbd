package retention

import (
	"fmt"
	"slices"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
)

// AloneError says that a plan for one of several storages would take what something in another needs.
type AloneError struct {
	Storage string // that the plan is for
	What    string // in it
	Why     string
}

func (e *AloneError) Error() string {
	return fmt.Sprintf("nothing is deleted from storage %s alone: %s would go, and %s", e.Storage, e.What, e.Why)
}

// Hint says how to go on.
func (e *AloneError) Hint() string {
	return "leave --target-storage away: then all storages are judged together; `holdfast st transfer` moves what lies in one to another"
}

// Spares returns nil where a plan for one storage takes nothing that what whole, the inventory of all of them, has elsewhere needs: backups with what they build on and WAL,
// holds, restores and pushes. Otherwise it is an *AloneError.
func (p *Plan) Spares(whole *Inventory, storage string) error {
	if p.rule.scope().nothing {
		return nil // it says so
	}
	j := newJudge(whole, p.judge.now)
	goes := map[string]bool{}
	for _, v := range p.Backups {
		goes[v.Backup] = !v.Keep
	}
	backup := func(name, why string, args ...any) error {
		if !goes[name] {
			return nil
		}
		return &AloneError{storage, name, fmt.Sprintf(why, args...)}
	}
	stretch := func(needs []need) error {
		for _, n := range needs {
			for _, w := range p.WAL {
				t, first := placeOf(w.First)
				_, last := placeOf(w.Last)
				if !w.Keep && t == n.timeline && n.meets(span{first, last}) {
					what := w.First
					if w.Last != w.First {
						what = "WAL from " + w.First + " to " + w.Last
					}
					return &AloneError{storage, what, n.why.text}
				}
			}
			for _, v := range p.Pieces {
				if t, at := placeOf(v.Segment); !v.Keep && v.Ground != Whole && t == n.timeline && n.has(at) {
					return &AloneError{storage, "the pieces of " + v.Segment, n.why.text}
				}
			}
		}
		return nil
	}
	for _, b := range j.all {
		if b.Storage == storage || b.Condemned != nil {
			continue
		}
		chain, _ := whole.Catalog.Chain(b.Backup)
		for _, c := range chain {
			if err := backup(c.Name, "%s in storage %s builds on it", b.Name, b.Storage); err != nil {
				return err
			}
		}
		m := continuous
		if b.permanent {
			m = moment
		}
		if err := stretch(j.needsOf(b, m)); err != nil {
			return err
		}
	}
	for i := range whole.Holds {
		h := &whole.Holds[i]
		held := map[string]bool{h.Backup: true}
		if h.Backup == "" {
			for b := range j.heldBackups(h) {
				held[b.Name] = true
			}
		}
		for name := range held {
			if err := backup(name, "it is held: %s", h.words()); err != nil {
				return err
			}
		}
	}
	if err := stretch(j.heldWAL()); err != nil {
		return err
	}
	for _, r := range whole.Restores {
		if !r.InUse(whole.At, r.Beat) {
			continue
		}
		for _, name := range r.Backups {
			if err := backup(name, "a restore on %s uses it since %s", r.Host, catalog.FormatTime(r.At)); err != nil && !r.Replaying {
				return err
			}
		}
		if wal.IsSegment(r.FirstWAL) {
			t, from := placeOf(r.FirstWAL)
			if err := stretch(j.along(t, span{from, end}, whole.segmentSize(), reason{Restoring, fmt.Sprintf("a restore on %s replays it", r.Host)})); err != nil {
				return err
			}
		}
	}
	i := slices.IndexFunc(whole.Pushes, func(u archive.Unfinished) bool {
		return j.alive(&u) && !slices.ContainsFunc(p.Leftovers, func(l Leftover) bool { return l.Name == u.Name })
	})
	if i >= 0 && !p.Nothing() {
		return &AloneError{storage, "what the plan says", fmt.Sprintf("the backup %s is being taken in another storage", whole.Pushes[i].Name)}
	}
	return nil
}
