package restore_test

import (
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
)

// choose picks a backup, which must be possible.
func choose(t *testing.T, a *archive.Archive, name string, target catalog.Target) catalog.Choice {
	t.Helper()
	c, err := catalog.Load(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	choice, err := c.Choose(name, target)
	if err != nil {
		t.Fatal(err)
	}
	return choice
}
