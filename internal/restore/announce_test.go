package restore_test

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
)

// While it is at work the archive says what a restore uses; afterwards only where WAL is replayed.
func TestRestoresAreAnnounced(t *testing.T) {
	for _, x := range []struct {
		what     string
		replays  bool
		readOnly bool
	}{{"alone", false, false}, {"with WAL", true, false}, {"with credentials that may only read", true, true}} {
		m := storetest.NewMortal()
		a := backedUp(t, m, compress.Zstd, nil, small()...)
		plan, err := decide(t, a, func(r *restore.Request) {
			if x.replays {
				r.Choice, r.Recovery = choose(t, a, "", catalog.Target{Kind: catalog.Latest}), &restore.Recovery{Command: "false"}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		m.ReadOnly.Store(x.readOnly)
		seen := &watching{Mortal: m}
		report, err := restore.Run(t.Context(), archive.New(seen, archive.Options{}), plan, restore.Options{Announce: "test"})
		if err != nil {
			t.Fatalf("%s: %v", x.what, err)
		}
		if seen.marked.Load() == x.readOnly {
			t.Errorf("%s: marked %v", x.what, seen.marked.Load())
		}
		noted := strings.Contains(strings.Join(report.Notes, "\n"), "retention on other hosts does not know")
		if noted != x.readOnly {
			t.Errorf("%s: notes %q", x.what, report.Notes)
		}
		var left []archive.RestoreMark
		for r, err := range archive.Records[archive.RestoreMark](t.Context(), a, archive.RestoreDir) {
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, r.Doc)
		}
		if want := x.replays && !x.readOnly; want != (len(left) == 1) {
			t.Errorf("%s: left %+v", x.what, left)
		}
		for _, l := range left {
			if !l.Replaying || len(l.Backups) != 1 || l.FirstWAL != plan.Backup[5:29] || l.Timeline != 1 || l.Version != "test" {
				t.Errorf("%s: %+v", x.what, l)
			}
		}
	}
}

// watching looks whether there is a mark whenever a part is read.
type watching struct {
	*storetest.Mortal
	marked atomic.Bool
}

func (w *watching) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	w.look(ctx, name)
	return w.Mortal.Open(ctx, name)
}

func (w *watching) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	w.look(ctx, name)
	return w.Mortal.OpenRange(ctx, name, offset, length)
}

func (w *watching) look(ctx context.Context, name string) {
	if !strings.Contains(name, "tar_partitions") {
		return
	}
	for _, err := range w.List(ctx, archive.RestoreDir, "") {
		w.marked.Store(err == nil)
	}
}
