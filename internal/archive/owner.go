package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"holdfast/internal/store"
)

// ownerName is the object that says whose archive this is.
const ownerName = "holdfast/cluster.json"

// Owner says which cluster an archive belongs to. One archive holds one cluster: two would overwrite each other's
// WAL, whose names only differ by timeline and position.
type Owner struct {
	SystemIdentifier uint64    `json:"system_identifier"`
	Since            time.Time `json:"since"`
	By               string    `json:"by"`                 // host that wrote this
	Previous         []uint64  `json:"previous,omitempty"` // identifiers before pg_upgrade, oldest first
}

// OwnerError says that an archive belongs to another cluster than the one at hand.
type OwnerError struct {
	Archive, Cluster uint64 // system identifiers
	Source           string // what the archive's identifier was read from
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("the archive belongs to the cluster with system identifier %d (says %s), this cluster's is %d",
		e.Archive, e.Source, e.Cluster)
}

// Hint says what to do about it.
func (e *OwnerError) Hint() string {
	return "give this cluster a prefix of its own; or, when it is the successor of the other by pg_upgrade or a new initdb, " +
		"take the archive over with `holdfast backup-push --adopt`"
}

// Owner reads whose archive this is. Nobody's yet is fs.ErrNotExist.
func (a *Archive) Owner(ctx context.Context) (*Owner, error) {
	b, err := store.ReadFile(ctx, a.store, ownerName, maxDocument)
	if err != nil {
		return nil, err
	}
	var o Owner
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("read %s: %w", ownerName, err)
	}
	if o.SystemIdentifier == 0 {
		return nil, fmt.Errorf("read %s: it names no system identifier", ownerName)
	}
	return &o, nil
}

// Claim makes sure that the archive belongs to the cluster sysid: it records that in an archive that is nobody's, and
// returns an *OwnerError where it is somebody else's. An archive that WAL-G began counts as owned by the cluster of
// its newest backup. With adopt the archive changes hands instead.
func (a *Archive) Claim(ctx context.Context, sysid uint64, host string, adopt bool) error {
	owner, err := a.Owner(ctx)
	source := ownerName
	if errors.Is(err, fs.ErrNotExist) {
		owner, source, err = a.ownerBeforeUs(ctx)
	}
	switch {
	case err != nil:
		return err
	case owner != nil && owner.SystemIdentifier == sysid && source == ownerName:
		return nil
	case owner != nil && owner.SystemIdentifier != sysid && !adopt:
		return &OwnerError{Archive: owner.SystemIdentifier, Cluster: sysid, Source: source}
	}
	next := Owner{SystemIdentifier: sysid, Since: time.Now().UTC(), By: host}
	if owner != nil && owner.SystemIdentifier != sysid {
		next.Previous = append(owner.Previous, owner.SystemIdentifier)
	}
	b, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if adopt && source == ownerName {
		return a.store.Put(ctx, ownerName, bytes.NewReader(b))
	}
	err = store.PutIfAbsent(ctx, a.store, ownerName, bytes.NewReader(b))
	if errors.Is(err, fs.ErrExist) { // another cluster was quicker, or another push of this one
		if owner, err = a.Owner(ctx); err == nil && owner.SystemIdentifier != sysid {
			err = &OwnerError{Archive: owner.SystemIdentifier, Cluster: sysid, Source: ownerName}
		}
	}
	return err
}

// ownerBeforeUs finds the cluster of the newest backup that says which cluster it is of; nil when none does.
func (a *Archive) ownerBeforeUs(ctx context.Context) (*Owner, string, error) {
	var backups []Found
	for f, err := range a.Backups(ctx) {
		if err != nil {
			return nil, "", err
		}
		backups = append(backups, f)
	}
	slices.SortStableFunc(backups, func(x, y Found) int { return y.Object.Modified.Compare(x.Object.Modified) })
	for _, f := range backups {
		s, err := a.Sentinel(ctx, f.Name)
		if err != nil {
			return nil, "", fmt.Errorf("find out whose archive this is: %w", err)
		}
		if s.SystemIdentifier != nil {
			return &Owner{SystemIdentifier: *s.SystemIdentifier}, f.Object.Name, nil
		}
	}
	return nil, ownerName, nil
}
