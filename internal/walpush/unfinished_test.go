package walpush_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
)

// A standby hands over what it has restored of a segment that its primary has not finished: that waits, unless the timeline was left there and nobody
// ever finishes it.
func TestStandbyArchivesNoHalfSegment(t *testing.T) {
	d, a := newWAL(t), archive.New(&storetest.Memory{}, archive.Options{})
	name := size.Name(1, 5)
	content := segment(name, cluster, 1)
	clear(content[wal.HeaderLen:])
	d.put(name, content)
	if err := os.WriteFile(filepath.Join(filepath.Dir(d.dir), "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if _, err := push(t.Context(), a, d.path(name), options()); err == nil || !strings.Contains(err.Error(), name+": it is not finished") {
			t.Errorf("%s: %v", when, err)
		}
	}
	refused("without a history")
	d.put(wal.HistoryName(2), fmt.Appendf(nil, "1\t%s\tno recovery target specified\n", size.Start(6)+8))
	refused("with a timeline that was left later")
	d.put(wal.HistoryName(3), []byte("no history at all"))
	d.put(wal.HistoryName(4), fmt.Appendf(nil, "1\t%s\tno recovery target specified\n", size.Start(5)+0x28))
	if _, err := push(t.Context(), a, d.path(name), options()); err != nil {
		t.Errorf("where its timeline was left: %v", err)
	}
}
