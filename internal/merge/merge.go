// Package merge folds a delta and all that it builds on into one full backup, inside the archive.
//
// Neither a server nor a data directory takes part. What comes out is byte for byte what a restore of the delta gives: each page from the newest
// backup that has it, modes and times as the delta knows them. Parts of which all is still as it was are copied as they are stored. The others are
// made anew as streams: the part of the oldest backup that has the file is read from one end to the other, and the pages that newer backups have
// take the place of its own; every page is checked by its sum before it is stored again. Memory is bounded by buffers and by the size of a part,
// but for 40 bytes a file.
//
// The full backup has the name that one would have that starts where the delta does, and its times: it restores to the same moment. It is written
// through an archive.Draft, so that it is there whole or not at all. The backups that it was made from stay.
package merge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/chain"
	"holdfast/internal/store"
)

// Plan says what Run will do.
type Plan struct {
	Backup  string   `json:"backup"`                  // what is merged, with all that it builds on
	Merged  string   `json:"merged_backup"`           // the full backup that it becomes
	Nothing string   `json:"nothing_to_do,omitempty"` // why there is nothing to do; "" where there is
	Chain   []string `json:"chain"`                   // what Backup is put together from, newest first, itself included

	Files int64 `json:"files"` // of the full backup, labels aside
	Bytes int64 `json:"bytes"` // of their contents

	CopiedParts int   `json:"copied_parts"`    // as they are stored
	CopiedBytes int64 `json:"copied_bytes"`    // as stored
	InStore     bool  `json:"copied_in_store"` // the store copies by itself: none of CopiedBytes passes through this host
	ReadBytes   int64 `json:"read_bytes"`      // about what is read to make the other parts, as stored
	WriteBytes  int64 `json:"write_bytes"`     // contents of the other parts, before they are compressed
	// TemporaryBytes is what has to be kept in the system's directory for temporary files: pages out of deltas that cannot be read in
	// pieces, for how they are compressed or encrypted.
	TemporaryBytes int64 `json:"temporary_bytes"`

	// Unneeded are those of Chain that no other backup builds on, once Merged is there.
	Unneeded []string `json:"no_longer_built_on,omitempty"`

	newest *catalog.Backup
	chain  *chain.Chain
}

// RefusedError says why nothing is merged, and what to do.
type RefusedError struct {
	Reason string
	Advice string
}

func (e *RefusedError) Error() string { return e.Reason }

// Hint says how to go on.
func (e *RefusedError) Hint() string { return e.Advice }

// Decide works out how to merge the backup of that name, or the one that was made last where it is LATEST. Nothing is written. A *RefusedError says
// that it cannot be done.
func Decide(ctx context.Context, a *archive.Archive, c *catalog.Catalog, name string) (*Plan, error) {
	if a.WriteOnly() {
		return nil, &RefusedError{"merging backups reads what is stored, which this host cannot decrypt: it has public keys only",
			"merge on a host that has the private key; no server is needed there"}
	}
	find := c.Find
	if name == "LATEST" {
		find = func(string) (*catalog.Backup, error) { return c.Latest() }
	}
	b, err := find(name)
	if err != nil {
		return nil, err
	}
	if b.Sentinel == nil {
		return nil, fmt.Errorf("merge %s: %w", b.Name, b.Err)
	}
	p := &Plan{Backup: b.Name, Merged: archive.BackupName(b.Segment()), newest: b}
	if !b.IsDelta() {
		p.Merged, p.Chain, p.Nothing = b.Name, []string{b.Name}, fmt.Sprintf("%s is a full backup: there is nothing to merge", b.Name)
		return p, nil
	}
	backups, err := c.Chain(b)
	if err != nil {
		return nil, err
	}
	for _, one := range backups {
		if one.Condemned != nil {
			return nil, condemned(b.Name, one)
		}
		p.Chain = append(p.Chain, one.Name)
	}
	p.Unneeded = unneeded(c, backups)
	if done, err := p.done(c); done || err != nil {
		return p, err
	}
	if err := p.survey(ctx, a, backups); err != nil {
		return nil, err
	}
	return p, nil
}

// condemned says that a backup is going that the merge of another, or of itself, would count on: it, or WAL that it needs, may not be there for long.
func condemned(name string, b *catalog.Backup) error {
	return &RefusedError{fmt.Sprintf("%s cannot be merged: %s is condemned since %s and goes after %s", name, b.Name, catalog.FormatTime(b.Condemned.At),
		catalog.FormatTime(b.Condemned.PurgeAfter)), "`holdfast undelete " + b.Name + "` takes that back"}
}

// done reports whether the merge was made already. Another backup of its name is a *RefusedError.
func (p *Plan) done(c *catalog.Catalog) (bool, error) {
	there, err := c.Find(p.Merged)
	if err != nil {
		return false, nil
	}
	if there.Condemned != nil {
		return false, condemned(p.Backup, there)
	}
	if there.Sentinel == nil {
		return false, fmt.Errorf("merge %s: there is a %s already, which cannot be read: %w", p.Backup, p.Merged, there.Err)
	}
	if m := there.Sentinel.Merged; m == nil || m.Backup != p.Backup || m.Sum != p.newest.Sentinel.Sum {
		return false, &RefusedError{fmt.Sprintf("%s cannot be merged: the archive has another backup of the name that it would get, %s", p.Backup, p.Merged),
			"that one starts in the same WAL segment and will do as well; or merge another delta"}
	}
	p.Nothing = fmt.Sprintf("%s was merged already: it is %s", p.Backup, p.Merged)
	return true, nil
}

// survey adds up what there is to do.
func (p *Plan) survey(ctx context.Context, a *archive.Archive, backups []*catalog.Backup) error {
	for _, b := range backups {
		switch complete, err := chain.Complete(ctx, a, []*catalog.Backup{b}); {
		case err != nil:
			return err
		case !complete:
			return &RefusedError{fmt.Sprintf("%s cannot be merged: %s was taken by another program, and has no manifest to tell its pages by", p.Backup, b.Name),
				"it restores as it is; take a full backup with `holdfast backup-push --full` and let deltas build on that"}
		}
	}
	var err error
	if p.chain, err = chain.Load(ctx, a, backups); err != nil {
		return fmt.Errorf("merge %s: %w", p.Backup, err)
	}
	_, p.InStore = a.Store().(store.Copier)
	d := newDealer(p.chain)
	err = p.chain.Walk(ctx, func(part *chain.Part) error {
		h, err := d.deal(part)
		if err != nil {
			return err
		}
		p.count(h)
		if len(h.pieces) == 0 {
			return nil
		}
		ranges, err := a.Ranges(ctx, part.Backup, part.Part)
		if err == nil && ranges == nil {
			for _, t := range h.pieces {
				p.TemporaryBytes += taken(t)
			}
		}
		return err
	})
	if err == nil {
		err = d.finish()
	}
	if err != nil {
		return fmt.Errorf("merge %s: %w", p.Backup, err)
	}
	return nil
}

// count adds what becomes of a part.
func (p *Plan) count(h *hand) {
	var whole, read int64 // bytes of files that the part completes, and of contents that are read
	for _, t := range h.homes {
		size := p.chain.File(t.File).Size
		whole += size
		read += t.Size
		if !h.part.IsLabel() {
			p.Files++
			p.Bytes += size
		}
	}
	if h.copied {
		p.CopiedParts++
		p.CopiedBytes += h.part.Size
		return
	}
	for _, t := range h.pieces {
		read += taken(t)
	}
	p.WriteBytes += whole
	if h.part.Content > 0 {
		p.ReadBytes += int64(float64(read) / float64(h.part.Content) * float64(h.part.Size))
	}
}

// unneeded returns those of the backups of a chain that no backup outside of it builds on.
func unneeded(c *catalog.Catalog, backups []*catalog.Backup) (names []string) {
	needed := map[string]bool{}
	var need func(name string)
	need = func(name string) {
		if b, err := c.Find(name); err == nil && !needed[name] {
			needed[name] = true
			if b.Sentinel != nil && b.Sentinel.DeltaFrom != "" {
				need(b.Sentinel.DeltaFrom)
			}
		}
	}
	for i := range c.Backups {
		b := &c.Backups[i]
		switch {
		case slices.Contains(backups, b):
		case b.Sentinel != nil && b.Sentinel.DeltaFrom != "":
			need(b.Sentinel.DeltaFrom)
		case b.Sentinel == nil && b.IsDelta(): // its name says in which segment its parent begins
			for _, one := range backups {
				if strings.HasPrefix(b.Name, archive.BackupName(b.Segment())+"_D_"+one.Segment()) {
					need(one.Name)
				}
			}
		}
	}
	for _, b := range backups {
		if !needed[b.Name] {
			names = append(names, b.Name)
		}
	}
	return names
}

// errDamaged says that contents are not what was backed up.
var errDamaged = errors.New("the archive is damaged")
