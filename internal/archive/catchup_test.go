package archive_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// A catch-up lies where WAL-G has them, with a sentinel like WAL-G's, and says since when; backups and catch-ups of one name know nothing of each other.
func TestCatchUpsLieApart(t *testing.T) {
	ctx, m := t.Context(), &storetest.Memory{}
	if err := putBackup(ctx, m); err != nil {
		t.Fatal(err)
	}
	a := archive.New(m, archive.Options{}).CatchUps()
	if _, err := a.Sentinel(ctx, backupName); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a backup is found among the catch-ups: %v", err)
	}
	d, err := a.Begin(ctx, backupName, "db1")
	if err != nil {
		t.Fatal(err)
	}
	p := tarpart.NewPacker(entries(tarpart.Entry{Path: "base/5/1", Content: []byte("one"), Mode: 0o600}), tarpart.Options{})
	if err := d.PutPart(ctx, d.NextPart(), p, p.Members); err != nil {
		t.Fatal(err)
	}
	since, start := wal.LSN(0x2000028), wal.LSN(0x3000028)
	if err := d.Commit(ctx, &archive.Sentinel{LSN: &start, FinishLSN: &start, DeltaLSN: &since, DeltaCount: 1}); err != nil {
		t.Fatal(err)
	}
	s, err := a.Sentinel(ctx, backupName)
	if err != nil || !s.CatchUp() || *s.DeltaLSN != since {
		t.Errorf("sentinel %+v, %v", s, err)
	}
	if full, err := archive.New(m, archive.Options{}).Sentinel(ctx, backupName); err != nil || full.CatchUp() {
		t.Errorf("the backup of that name: %+v, %v", full, err)
	}
	raw, err := store.ReadFile(ctx, m, "catchup_005/"+backupName+"_backup_stop_sentinel.json", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"DeltaFrom": "", "DeltaFullName": "", "DeltaCount": 1.0, "DeltaLSN": float64(since), "LSN": float64(start)} {
		if got, ok := doc[key]; !ok || got != want {
			t.Errorf("%s in the sentinel is %v, want %v", key, got, want)
		}
	}
	mf, err := a.OpenManifest(ctx, backupName)
	if err != nil {
		t.Fatal(err)
	}
	defer mf.Close()
	if mf.Header.Since == nil || *mf.Header.Since != since {
		t.Errorf("the manifest's header is %+v", mf.Header)
	}
}
