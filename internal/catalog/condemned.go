package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/archive"
)

// Condemned says that a backup is going: retention removes it, unless `holdfast undelete` takes that back.
type Condemned struct {
	Record     string    // name of the tombstone
	At         time.Time // when it was condemned
	By         string
	PurgeAfter time.Time // it stays until then
	Request    string    // the command that named it, "" for a policy
}

// Tombstone is a record by which something is condemned, as far as that was not taken back.
type Tombstone struct {
	Record string
	archive.Tombstone
	Modified time.Time // when it was stored, by the store's clock
	Whole    bool      // nothing of it was taken back
}

// loadTombstones reads what is condemned. That it cannot be read hides no backup: see BadTombstones.
func (c *Catalog) loadTombstones(ctx context.Context, a *archive.Archive) error {
	if a.IsCatchUps() {
		return nil
	}
	var revoked []archive.Tombstone
	for r, err := range archive.Records[archive.Tombstone](ctx, a, archive.TombstoneDir) {
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			c.BadTombstones = append(c.BadTombstones, err)
		case len(r.Doc.Revokes) > 0:
			revoked = append(revoked, r.Doc)
		case r.Doc.PurgeAfter.IsZero():
			c.BadTombstones = append(c.BadTombstones, fmt.Errorf("%s does not say when what it condemns may go", r.Name))
		default:
			c.Tombstones = append(c.Tombstones, Tombstone{Record: r.Name, Tombstone: r.Doc, Modified: r.Modified, Whole: true})
		}
	}
	for i := range c.Tombstones {
		t := &c.Tombstones[i]
		for _, r := range revoked {
			if !slices.Contains(r.Revokes, t.Record) {
				continue
			}
			t.Whole = false
			t.Backups = slices.DeleteFunc(t.Backups, func(name string) bool {
				return len(r.Backups) == 0 || slices.Contains(r.Backups, name)
			})
			if len(r.Backups) == 0 {
				t.WAL = nil
			}
		}
	}
	for i := range c.Backups {
		c.Backups[i].condemn(c.Tombstones)
	}
	return nil
}

// condemn finds the tombstone by which b goes first.
func (b *Backup) condemn(tombstones []Tombstone) {
	for _, t := range tombstones {
		if !slices.Contains(t.Backups, b.Name) {
			continue
		}
		if sum := t.Sentinels[b.Name]; sum != "" && b.Sentinel != nil && b.Sentinel.Sum != sum {
			continue // another one of that name
		}
		d := &Condemned{Record: t.Record, At: t.At, By: t.By, PurgeAfter: t.PurgeAfter, Request: t.Request}
		switch was := b.Condemned; {
		case was == nil:
			b.Condemned = d
		case was.Request == "" && d.Request != "": // what a person asked for outweighs a policy
			b.Condemned = d
		case (was.Request == "") == (d.Request == "") && d.PurgeAfter.Before(was.PurgeAfter):
			b.Condemned = d
		}
	}
}

// errCondemned says why a condemned backup is not chosen.
func (b *Backup) errCondemned() error {
	if b.Condemned == nil {
		return nil
	}
	return &condemnedError{b.Name, *b.Condemned}
}

type condemnedError struct {
	name string
	c    Condemned
}

func (e *condemnedError) Error() string {
	return fmt.Sprintf("is condemned since %s and goes after %s", FormatTime(e.c.At), FormatTime(e.c.PurgeAfter))
}

// Hint says how to go on.
func (e *condemnedError) Hint() string {
	return "`holdfast undelete " + e.name + "` takes that back; by its name it restores as long as it is there"
}

// StillThere returns nil where a backup exists and is not condemned, as the archive says now and not as it was when c was loaded. Whoever builds on a
// backup asks once more when its own push.json is there: retention looks for those only after it has condemned.
func StillThere(ctx context.Context, a *archive.Archive, b *Backup) error {
	s, err := a.Sentinel(ctx, b.Name)
	if err != nil {
		return err
	}
	if b.Sentinel != nil && s.Sum != b.Sentinel.Sum {
		return errors.New("was replaced meanwhile")
	}
	now := Catalog{Backups: []Backup{{Name: b.Name, Sentinel: s}}}
	if err := now.loadTombstones(ctx, a); err != nil {
		return err
	}
	return errors.Join(append(now.BadTombstones, now.Backups[0].errCondemned())...)
}
