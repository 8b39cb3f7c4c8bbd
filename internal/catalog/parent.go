package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"holdfast/internal/pg/wal"
)

// Child is a backup that has just begun on the server, and what it wants of a backup to build on.
type Child struct {
	System    uint64  // identifier of the cluster
	Major     int     // of PostgreSQL
	Start     wal.LSN // where the backup starts
	Path      Path    // leads to the timeline it is taken on
	Permanent bool    // retention is to leave it alone

	MaxSteps int             // how many deltas may build on one another; 0 is none
	OnFull   bool            // build on the full backup below the one that was found (WALG_DELTA_ORIGIN=LATEST_FULL)
	Name     string          // the backup to build on, "" for the newest that will do
	UserData json.RawMessage // build on the newest with that user data; nil for any
}

// Parent is the backup a delta builds on.
type Parent struct {
	*Backup
	Full  string // name of the full backup at the root
	Count int    // how many deltas there are from the root to the child, by WAL-G's way of counting: of those between them too
}

// FullError says why a backup that could have been a delta is a full one.
type FullError struct {
	Reason string // a whole sentence
	Asked  bool   // a certain backup was asked for, which will not do
}

func (e *FullError) Error() string { return e.Reason }

// Hint says how to go on.
func (e *FullError) Hint() string {
	if e.Asked {
		return "name another backup (`holdfast backup-list`), or take a full one with --full"
	}
	return ""
}

// Words that people look for in WAL-G's log.
const (
	noPrevious   = "Couldn't find previous backup. Doing full backup."
	tooManySteps = "Reached max delta steps. Doing full backup."
)

// Parent chooses what a backup builds on: of those that will do the one that was made last, whatever its name. passedOver says why newer
// ones will not. Where it shall be a full backup the error is a *FullError.
func (c *Catalog) Parent(child Child) (p *Parent, passedOver []string, err error) {
	if child.MaxSteps <= 0 {
		return nil, nil, &FullError{Reason: "Delta backups are not enabled. Doing full backup."}
	}
	candidates, asked, err := c.candidates(child)
	if err != nil {
		return nil, nil, err
	}
	for i := range slices.Backward(candidates) {
		b := candidates[i]
		chain, err := c.buildable(b, child)
		if err != nil && asked {
			return nil, nil, &FullError{Reason: b.Name + " " + err.Error(), Asked: true}
		}
		if err != nil {
			passedOver = append(passedOver, b.Name+" "+err.Error())
			continue
		}
		p := &Parent{Backup: b, Full: chain[len(chain)-1].Name, Count: b.Sentinel.DeltaCount + 1}
		switch {
		case p.Count > child.MaxSteps:
			return nil, passedOver, &FullError{Reason: tooManySteps}
		case child.OnFull:
			p.Backup = chain[len(chain)-1]
			if _, err := c.buildable(p.Backup, child); err != nil {
				return nil, passedOver, &FullError{Reason: fmt.Sprintf("The full backup %s %v. Doing full backup.", p.Name, err)}
			}
		case !asked && !child.Permanent && b.Details().IsPermanent:
			return nil, passedOver, &FullError{Reason: fmt.Sprintf("The previous backup, %s, is permanent, and this one is not to be. Doing full backup.", b.Name)}
		}
		return p, passedOver, nil
	}
	return nil, passedOver, &FullError{Reason: noPrevious}
}

// candidates returns the backups that a child may build on in the order they were made, and whether that was asked for.
func (c *Catalog) candidates(child Child) (candidates []*Backup, asked bool, err error) {
	if child.Name != "" {
		b, err := c.Find(child.Name)
		return []*Backup{b}, true, err
	}
	if child.UserData == nil {
		for i := range c.Backups {
			candidates = append(candidates, &c.Backups[i])
		}
		return candidates, false, nil
	}
	found, err := c.withUserData(child.UserData)
	if err == nil && len(found) == 0 {
		err = &NoBackupError{Asked: "user data " + string(child.UserData), Reason: "the archive has no backup with it", Advice: "see `holdfast backup-list --detail --json`"}
	}
	if err != nil {
		return nil, true, err
	}
	return found[len(found)-1:], true, nil
}

// withUserData returns the backups that were given that user data, a JSON value, in the order they were made.
func (c *Catalog) withUserData(value json.RawMessage) (found []*Backup, err error) {
	var want any
	if err := json.Unmarshal(value, &want); err != nil {
		return nil, fmt.Errorf("user data %s: %w", value, err)
	}
	for i := range c.Backups {
		b := &c.Backups[i]
		var has any
		if data := b.userData(); data != nil && json.Unmarshal(data, &has) == nil && reflect.DeepEqual(has, want) {
			found = append(found, b)
		}
	}
	return found, nil
}

// buildable returns what b is put together from if the child can build on it, or why not.
func (c *Catalog) buildable(b *Backup, child Child) ([]*Backup, error) {
	s := b.Sentinel
	switch {
	case s == nil || b.Err != nil:
		return nil, fmt.Errorf("cannot be read: %w", b.Err)
	case b.Condemned != nil:
		return nil, b.errCondemned()
	case s.SystemIdentifier != nil && *s.SystemIdentifier != child.System:
		return nil, fmt.Errorf("is of another cluster, whose system identifier is %d", *s.SystemIdentifier)
	case b.IsWALE() || s.LSN == nil:
		return nil, errors.New("does not say where it starts")
	case b.Metadata == nil: // nor would WAL-G
		return nil, errors.New("has no metadata.json")
	case s.FilesMetadataDisabled || s.Version < 2 && !s.FilesEmbedded:
		return nil, errors.New("has no list of its files")
	case s.ChkpNum != nil:
		return nil, errors.New("is of a cluster with OrioleDB")
	case s.PgVersion/10000 != child.Major:
		return nil, fmt.Errorf("is of PostgreSQL %d", s.PgVersion/10000)
	}
	finish, ok := b.FinishLSN()
	leg, on := child.Path.Leg(b.Timeline())
	switch {
	case !ok:
		return nil, errors.New("does not say where it was finished")
	case !on:
		return nil, fmt.Errorf("is of timeline %d, which is no ancestor of timeline %d", b.Timeline(), child.Path.Timeline())
	case leg.End != 0 && finish > leg.End:
		return nil, fmt.Errorf("was finished at %s, after timeline %d had been left at %s", finish, leg.Timeline, leg.End)
	case finish > child.Start || *s.LSN > finish:
		return nil, fmt.Errorf("was finished at %s, which lies in the future of this server: the new backup starts at %s", finish, child.Start)
	}
	return c.chain(b)
}
