package catalog

import (
	"fmt"
	"slices"
)

// ChainError says that a delta cannot be restored because of one of the backups it builds on.
type ChainError struct {
	Backup  string  // the delta
	Err     error   // why
	Instead *Backup // the newest other backup of the cluster that has all it builds on; nil for none
}

func (e *ChainError) Error() string {
	return fmt.Sprintf("backup %s cannot be restored: %s", e.Backup, e.Err)
}

func (e *ChainError) Unwrap() error { return e.Err }

// Hint says what can be restored.
func (e *ChainError) Hint() string {
	if e.Instead == nil {
		return "the archive has no other backup of this cluster that can be restored"
	}
	return fmt.Sprintf("restore %s, finished at %s; with a target the WAL brings it to the same moment", e.Instead.Name, FormatTime(e.Instead.Created()))
}

// Chain returns the backups that b is put together from, newest first: b itself, and where it is a delta its parent, the
// parent's parent and so on to a full backup. A delta of which one is missing, or is not what it was made from, is a *ChainError.
func (c *Catalog) Chain(b *Backup) ([]*Backup, error) {
	chain, err := c.chain(b)
	if err == nil {
		return chain, nil
	}
	e := &ChainError{Backup: b.Name, Err: err}
	for i := range slices.Backward(c.Backups) {
		other := &c.Backups[i]
		if other == b || other.Sentinel == nil || otherCluster(b, other) {
			continue
		}
		if _, err := c.chain(other); err == nil {
			e.Instead = other
			break
		}
	}
	return nil, e
}

// chain is Chain without advice.
func (c *Catalog) chain(b *Backup) ([]*Backup, error) {
	chain := []*Backup{b}
	for b.IsDelta() {
		if b.Sentinel == nil {
			return nil, fmt.Errorf("%s cannot be read: %w", b.Name, b.Err)
		}
		if b.Sentinel.DeltaFrom == "" {
			return nil, fmt.Errorf("%s is named like a delta, and its sentinel names no backup that it builds on", b.Name)
		}
		i := slices.IndexFunc(c.Backups, func(p Backup) bool { return p.Name == b.Sentinel.DeltaFrom })
		if i < 0 {
			return nil, fmt.Errorf("%s builds on %s, which the archive does not have", b.Name, b.Sentinel.DeltaFrom)
		}
		parent := &c.Backups[i]
		if err := b.buildsOn(parent); err != nil {
			return nil, err
		}
		if slices.Contains(chain, parent) {
			return nil, fmt.Errorf("%s builds on itself", parent.Name)
		}
		chain, b = append(chain, parent), parent
	}
	return chain, nil
}

// buildsOn returns why the parent that a delta names is not the one it was made from.
func (b *Backup) buildsOn(parent *Backup) error {
	if parent.Sentinel == nil {
		return fmt.Errorf("%s builds on %s, which cannot be read: %w", b.Name, parent.Name, parent.Err)
	}
	child, base := b.Sentinel, parent.Sentinel
	switch {
	case otherCluster(b, parent):
		return fmt.Errorf("%s builds on %s, which is of another cluster: its system identifier is %d, that of the delta %d",
			b.Name, parent.Name, *base.SystemIdentifier, *child.SystemIdentifier)
	case base.LSN == nil:
		return fmt.Errorf("%s builds on %s, which does not say where it starts", b.Name, parent.Name)
	case *base.LSN != *child.DeltaLSN:
		return fmt.Errorf("%s builds on a %s that starts at %s, the one in the archive starts at %s: it was replaced since",
			b.Name, parent.Name, child.DeltaLSN, base.LSN)
	case child.Parent != "" && base.Sum != "" && child.Parent != base.Sum:
		return fmt.Errorf("%s builds on another %s than the one in the archive: it was replaced since", b.Name, parent.Name)
	}
	return nil
}

// otherCluster reports whether the sentinels have different system identifiers. One that cannot be read has none.
func otherCluster(x, y *Backup) bool {
	if x.Sentinel == nil || y.Sentinel == nil {
		return false
	}
	i, j := x.Sentinel.SystemIdentifier, y.Sentinel.SystemIdentifier
	return i != nil && j != nil && *i != *j
}
