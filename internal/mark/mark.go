// Package mark makes backups permanent, which no retention removes, and takes that back.
//
// The flag is in a backup's metadata.json; the sentinel stays as it is. A permanent delta needs all that it builds on, so that these are marked before it: at
// no moment is there a permanent backup on top of one that is not. Marking what is marked already changes nothing.
package mark

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
)

// Place is one of the storages that an archive is spread over, or all of it where it is not.
type Place struct {
	Name    string
	Archive *archive.Archive
}

// Plan says which backups get which flag.
type Plan struct {
	Permanent bool     `json:"permanent"`
	Backups   []string `json:"backups"`         // in the order in which they are marked
	Notes     []string `json:"notes,omitempty"` // what is worth knowing

	steps []*catalog.Backup
}

// Report is what was done.
type Report struct {
	Plan
	Changed []string `json:"changed"` // backups whose flag was another before
}

// RefusedError says why a backup is not marked.
type RefusedError struct {
	Backup, Reason, Advice string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("mark %s: %s", e.Backup, e.Reason) }

// Hint says how to go on.
func (e *RefusedError) Hint() string { return e.Advice }

// Decide works out what is to be marked for the backup of that name, or LATEST, to be permanent or not. The flag of a backup that a permanent one builds on is
// not taken away; nor where it cannot be told whether one does.
func Decide(c *catalog.Catalog, name string, permanent bool) (*Plan, error) {
	b, err := c.Find(name)
	if name == "LATEST" {
		b, err = c.Latest()
	}
	if err != nil {
		return nil, err
	}
	if b.Err != nil {
		return nil, fmt.Errorf("mark %s: %w", b.Name, b.Err)
	}
	p := &Plan{Permanent: permanent, steps: []*catalog.Backup{b}}
	if permanent {
		if p.steps, err = c.Chain(b); err != nil {
			return nil, fmt.Errorf("mark %s: %w", b.Name, err)
		}
		slices.Reverse(p.steps)
	} else if err := keeps(c, b); err != nil {
		return nil, err
	}
	for _, s := range p.steps {
		if s.Err != nil {
			return nil, fmt.Errorf("mark %s: %w", s.Name, s.Err)
		}
		p.Backups = append(p.Backups, s.Name)
		if s.Condemned != nil && permanent {
			p.Notes = append(p.Notes, fmt.Sprintf("%s is condemned, and goes after %s unless `holdfast undelete %s` takes that back", s.Name,
				catalog.FormatTime(s.Condemned.PurgeAfter), s.Name))
		}
	}
	return p, nil
}

// keeps returns a *RefusedError when a permanent backup builds on b, or one may.
func keeps(c *catalog.Catalog, b *catalog.Backup) error {
	for i := range c.Backups {
		child := &c.Backups[i]
		if child == b || !child.IsDelta() {
			continue
		}
		switch {
		case child.Sentinel == nil && strings.Contains(child.Name, "_D_"+b.Segment()):
			return &RefusedError{b.Name, fmt.Sprintf("%s may build on it, and cannot be read: %v", child.Name, child.Err),
				"see to it that all storages answer, and try again"}
		case child.Sentinel == nil || child.Sentinel.DeltaFrom != b.Name:
		case child.Err != nil:
			return &RefusedError{b.Name, fmt.Sprintf("%s builds on it, and whether that is permanent cannot be read: %v", child.Name, child.Err),
				"see to it that all storages answer, and try again"}
		case Permanent(child):
			return &RefusedError{b.Name, fmt.Sprintf("%s builds on it and is permanent", child.Name),
				fmt.Sprintf("take the flag from the backups on top first: `holdfast backup-mark -i %s`", child.Name)}
		}
	}
	return nil
}

// Permanent reports whether a backup is marked: what its metadata.json says, and where it has none its sentinel.
func Permanent(b *catalog.Backup) bool {
	if b.Metadata != nil {
		return b.Metadata.IsPermanent
	}
	return b.Sentinel != nil && b.Sentinel.IsPermanent
}

// Run carries a plan out in each of the places that has a backup. It goes on past a place that fails, and then returns an error: what has been marked stays
// so, and doing it again is fine. reload reads the catalog anew: after a flag was taken away it is asked whether a permanent backup has come
// on top meanwhile; nil where that cannot be.
func Run(ctx context.Context, places []Place, p *Plan, reload func(context.Context) (*catalog.Catalog, error)) (*Report, error) {
	r := &Report{Plan: *p, Changed: []string{}}
	for _, b := range p.steps {
		changed, err := everywhere(ctx, places, b, p.Permanent)
		if changed {
			r.Changed = append(r.Changed, b.Name)
		}
		if err != nil {
			return r, fmt.Errorf("mark %s: %w", b.Name, err)
		}
	}
	if p.Permanent || reload == nil || len(r.Changed) == 0 {
		return r, nil
	}
	b := p.steps[0]
	c, err := reload(ctx)
	if err == nil {
		err = keeps(c, b)
	}
	if err != nil {
		_, again := everywhere(context.WithoutCancel(ctx), places, b, true)
		return r, errors.Join(err, again)
	}
	return r, nil
}

// everywhere marks a backup in each place that has it.
func everywhere(ctx context.Context, places []Place, b *catalog.Backup, permanent bool) (changed bool, err error) {
	var errs []error
	found := false
	for _, at := range places {
		here, did, err := one(ctx, at.Archive, b, permanent)
		found, changed = found || here, changed || did
		if err != nil && len(places) > 1 {
			err = fmt.Errorf("storage %s: %w", at.Name, err)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return changed, err
	}
	if !found {
		return changed, &catalog.NoBackupError{Asked: b.Name, Reason: "it was removed meanwhile", Advice: "see `holdfast backup-list`"}
	}
	return changed, nil
}

// one marks a backup in one place. The backup may go at any moment: a document that this has stored after the rest was removed goes too.
func one(ctx context.Context, a *archive.Archive, b *catalog.Backup, permanent bool) (found, changed bool, err error) {
	there := func() (bool, error) {
		_, err := a.Store().Stat(ctx, a.SentinelName(b.Name))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	if found, err = there(); err != nil || !found {
		return found, false, err
	}
	changed, err = a.Mark(ctx, b.Name, permanent)
	if errors.Is(err, fs.ErrNotExist) {
		m := b.Details()
		m.IsPermanent = permanent
		if err = a.AddMetadata(ctx, b.Name, m); err == nil {
			changed = true
		}
	}
	if err != nil || !changed {
		return true, changed, err
	}
	if found, err = there(); err == nil && !found {
		return false, false, a.Store().Delete(ctx, archive.Folder(b.Name)+"metadata.json")
	}
	if err != nil {
		return true, true, err
	}
	now, err := a.Metadata(ctx, b.Name)
	if err == nil && now.IsPermanent != permanent {
		err = &RefusedError{b.Name, "somebody else has marked it otherwise at the same time", "look with `holdfast backup-list --detail`, and do it again"}
	}
	return true, true, err
}
