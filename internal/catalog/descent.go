package catalog

import (
	"errors"
	"fmt"
)

// CheckParent returns nil when parent is the backup that the delta b was made from, and else why it is not. Both have been read, or the error says which
// has not.
func (b *Backup) CheckParent(parent *Backup) error {
	switch {
	case b.Sentinel == nil:
		return fmt.Errorf("%s cannot be read: %w", b.Name, b.Err)
	case b.Sentinel.DeltaLSN == nil || b.Sentinel.DeltaFrom == "":
		return errors.New(b.Name + " does not say what it builds on")
	}
	return b.buildsOn(parent)
}
