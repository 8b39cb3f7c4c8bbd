package cli_test

import (
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/cli"
	"holdfast/internal/ribbon"
)

// What a host said whose clock was ahead is told no later than its backup was stored.
func TestFiguresOfAClockThatWasAhead(t *testing.T) {
	stored := time.Date(2026, 5, 6, 3, 0, 0, 0, time.UTC)
	for finished, want := range map[time.Time]time.Time{stored.Add(48 * time.Hour): stored, stored.Add(-time.Second): stored.Add(-time.Second)} {
		in := &ribbon.Input{Now: stored.Add(time.Hour), Catalog: &catalog.Catalog{Backups: []catalog.Backup{{
			Name: "base_000000010000000000000002", Modified: stored, Sentinel: &archive.Sentinel{StartTime: finished.Add(-time.Minute), FinishTime: finished},
		}}}}
		b := cli.ArchiveFacts(in).Backups[0]
		if !b.Finished.Equal(want) || b.Started.After(b.Finished) {
			t.Errorf("finished at %s by its host: %s to %s, want to %s", finished, b.Started, b.Finished, want)
		}
	}
}
