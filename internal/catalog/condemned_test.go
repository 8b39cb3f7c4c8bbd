package catalog_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/store/storetest"
)

func condemn(t *testing.T, a *archive.Archive, d archive.Tombstone) string {
	t.Helper()
	name, err := a.AddRecord(t.Context(), archive.TombstoneDir, "", d)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// What is condemned is not LATEST, is chosen for no target, and is built on by nothing; by its name it restores. Undoing undoes all of that.
func TestCondemned(t *testing.T) {
	m := chained(t, nil)
	a := archive.New(m, archive.Options{})
	latest := func() string {
		t.Helper()
		b, err := load(t, m).Latest()
		if err != nil {
			return err.Error()
		}
		choice, err := load(t, m).Choose("", catalog.Target{Kind: catalog.Latest})
		if err != nil || choice.Backup.Name != b.Name {
			t.Errorf("LATEST is %s, chosen for a target is %v, %v", b.Name, choice.Backup, err)
		}
		return b.Name
	}
	first := condemn(t, a, archive.Tombstone{PurgeAfter: time.Now().Add(time.Hour), Backups: []string{delta6, full2}})
	second := condemn(t, a, archive.Tombstone{PurgeAfter: time.Now().Add(2 * time.Hour), Request: "delete target", Backups: []string{delta6}})
	if got := latest(); got != delta4 {
		t.Errorf("LATEST is %s", got)
	}
	c := load(t, m)
	b, err := c.Find(delta6)
	if err != nil || b.Condemned == nil || b.Condemned.Record != second {
		t.Errorf("%+v, %v", b.Condemned, err)
	}
	if _, err := c.Choose(delta6, catalog.Target{}); err != nil {
		t.Errorf("by name: %v", err)
	}
	if err := catalog.StillThere(t.Context(), a, b); err == nil || !strings.Contains(err.Error(), "condemned") {
		t.Errorf("to build on: %v", err)
	}
	condemn(t, a, archive.Tombstone{Revokes: []string{first, second}, Backups: []string{delta6}})
	if got := latest(); got != delta6 {
		t.Errorf("LATEST is %s once that is taken back", got)
	}
	if b, _ := load(t, m).Find(full2); b.Condemned == nil {
		t.Error("the other backup is condemned no longer")
	}
	condemn(t, a, archive.Tombstone{Revokes: []string{first}})
	if b, _ := load(t, m).Find(full2); b.Condemned != nil {
		t.Error("the other backup is condemned still")
	}
	if err := catalog.StillThere(t.Context(), a, b); err != nil {
		t.Errorf("to build on: %v", err)
	}
	all := condemn(t, a, archive.Tombstone{PurgeAfter: time.Now(), Backups: []string{full2, delta4, delta6}})
	var none *catalog.NoBackupError
	if _, err := load(t, m).Latest(); !errors.As(err, &none) || !strings.Contains(none.Hint(), "undelete") {
		t.Errorf("all condemned: %v", err)
	}
	if err := a.RemoveRecord(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	// A tombstone that was made for another backup of that name means nothing; one that cannot be read hides nothing.
	condemn(t, a, archive.Tombstone{PurgeAfter: time.Now(), Backups: []string{delta6}, Sentinels: map[string]string{delta6: strings.Repeat("0", 64)}})
	put(t, m, archive.TombstoneDir+"20260101T000000.000000Z-x.json", "[]")
	if got := latest(); got != delta6 {
		t.Errorf("LATEST is %s", got)
	}
	if c := load(t, m); len(c.BadTombstones) != 1 {
		t.Errorf("%v", c.BadTombstones)
	}
	if err := catalog.StillThere(t.Context(), a, b); err == nil {
		t.Error("whether it is condemned cannot be told, and it may be built on")
	}
	if _, err := catalog.Load(t.Context(), archive.New(storetest.FailAt(m, 1000), archive.Options{})); err != nil {
		t.Error(err)
	}
}
