package restore_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// icy is a store whose parts lie in a class for archiving; listings go on to say so when they are thawed.
type icy struct {
	*storetest.Memory
	thawed bool
}

func (s *icy) Walk(ctx context.Context, dir string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range s.Memory.Walk(ctx, dir) {
			if strings.Contains(o.Name, "part_") {
				o.Frozen = "DEEP_ARCHIVE"
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

func (s *icy) Stat(ctx context.Context, name string) (store.Object, error) {
	o, err := s.Memory.Stat(ctx, name)
	if !s.thawed {
		o.Frozen = "DEEP_ARCHIVE"
	}
	return o, err
}

func TestWhatIsFrozenIsSaid(t *testing.T) {
	s := &icy{Memory: &storetest.Memory{}}
	a := backedUp(t, s, compress.Zstd, nil, small()...)
	chain := choose(t, a, ours, catalog.Target{}).Chain
	var refused *restore.RefusedError
	err := restore.CheckThawed(t.Context(), a, chain)
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "objects") || !strings.Contains(err.Error(), "in storage class DEEP_ARCHIVE") {
		t.Fatalf("got %v", err)
	}
	if hint := refused.Hint(); !strings.Contains(hint, archive.Folder(ours)) || !strings.Contains(hint, "about 12 hours") {
		t.Errorf("hint %q", hint)
	}
	s.thawed = true
	if err := restore.CheckThawed(t.Context(), a, chain); err != nil {
		t.Errorf("thawed: %v", err)
	}
}
