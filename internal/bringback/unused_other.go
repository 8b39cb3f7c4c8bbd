//go:build !linux

package bringback

import "errors"

// renameUnused renames a file to a name that nothing has, in one step, where the system can do that.
func renameUnused(string, string) error { return errors.ErrUnsupported }
