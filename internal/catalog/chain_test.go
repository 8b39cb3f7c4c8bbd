package catalog_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
)

// delta stores the sentinel of a delta on a parent that starts at from; change is done to it before.
func delta(t *testing.T, m *storetest.Memory, name, parent string, start, from wal.LSN, finished time.Time, change func(*archive.Sentinel)) {
	t.Helper()
	finish := start + 0xD8
	s := archive.Sentinel{LSN: &start, FinishLSN: &finish, FinishTime: finished, Version: 2,
		DeltaLSN: &from, DeltaFrom: parent, DeltaFullName: "base_000000010000000000000002", DeltaCount: 1}
	if change != nil {
		change(&s)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	put(t, m, archive.BackupDir+name+"_backup_stop_sentinel.json", string(b))
}

const (
	full2  = "base_000000010000000000000002"
	delta4 = "base_000000010000000000000004_D_000000010000000000000002"
	delta6 = "base_000000010000000000000006_D_000000010000000000000004"
)

// chained is an archive with a full backup and two deltas, one upon the other.
func chained(t *testing.T, change func(*archive.Sentinel)) *storetest.Memory {
	m := &storetest.Memory{}
	backup(t, m, full2, 0x2000028, 0x2000100, at(1, 0))
	delta(t, m, delta4, full2, 0x4000028, 0x2000028, at(2, 0), change)
	delta(t, m, delta6, delta4, 0x6000028, 0x4000028, at(3, 0), nil)
	segments(t, m, 1, 2, 7)
	return m
}

// A delta is found for LATEST, by name and for a target, together with all it builds on.
func TestChooseDelta(t *testing.T) {
	c := load(t, chained(t, nil))
	for _, x := range []struct {
		name   string
		target catalog.Target
		want   []string
	}{
		{"LATEST", catalog.Target{}, []string{delta6, delta4, full2}},
		{delta4, catalog.Target{}, []string{delta4, full2}},
		{delta6, catalog.Target{Kind: catalog.Latest}, []string{delta6, delta4, full2}},
		{"", catalog.Target{Kind: catalog.AtTime, Time: at(2, 30)}, []string{delta4, full2}},
		{"", catalog.Target{Kind: catalog.AtLSN, LSN: 0x6000100}, []string{delta6, delta4, full2}},
		{full2, catalog.Target{}, []string{full2}},
	} {
		choice, err := c.Choose(x.name, x.target)
		if err != nil {
			t.Errorf("%q, %s: %v", x.name, x.target, err)
			continue
		}
		var got []string
		for _, b := range choice.Chain {
			got = append(got, b.Name)
		}
		if fmt.Sprint(got) != fmt.Sprint(x.want) || choice.Backup != choice.Chain[0] {
			t.Errorf("%q, %s: %q, want %q", x.name, x.target, got, x.want)
		}
	}
}

// A delta whose ancestors are not those it was made from is refused, with the backup that can be restored; for a target an older
// backup is taken instead.
func TestBrokenChains(t *testing.T) {
	system := func(id uint64) func(*archive.Sentinel) {
		return func(s *archive.Sentinel) { s.SystemIdentifier = &id }
	}
	for what, x := range map[string]struct {
		m    *storetest.Memory
		says string
	}{
		"a parent that is missing": {func() *storetest.Memory {
			m := chained(t, nil)
			if err := m.Delete(t.Context(), archive.BackupDir+delta4+"_backup_stop_sentinel.json"); err != nil {
				t.Fatal(err)
			}
			return m
		}(), delta6 + " builds on " + delta4 + ", which the archive does not have"},
		"a parent that cannot be read": {func() *storetest.Memory {
			m := chained(t, nil)
			put(t, m, archive.BackupDir+delta4+"_backup_stop_sentinel.json", "{")
			return m
		}(), delta6 + " builds on " + delta4 + ", which cannot be read"},
		"a parent that was replaced": {func() *storetest.Memory {
			m := chained(t, nil)
			delta(t, m, delta4, full2, 0x4000999, 0x2000028, at(2, 0), nil)
			return m
		}(), "it was replaced since"},
		"a parent that was replaced by one that starts at the same place": {func() *storetest.Memory {
			m := chained(t, nil)
			delta(t, m, delta6, delta4, 0x6000028, 0x4000028, at(3, 0), func(s *archive.Sentinel) { s.Parent = strings.Repeat("0", 64) })
			return m
		}(), "it was replaced since"},
		"a parent of another cluster": {func() *storetest.Memory {
			m := chained(t, system(7))
			delta(t, m, delta6, delta4, 0x6000028, 0x4000028, at(3, 0), system(8))
			return m
		}(), "system identifier is 7, that of the delta 8"},
		"a parent without a start": {func() *storetest.Memory {
			return chained(t, func(s *archive.Sentinel) { s.LSN = nil })
		}(), "does not say where it starts"},
		"a name that the sentinel does not bear out": {func() *storetest.Memory {
			m := chained(t, nil)
			delta(t, m, delta6, "", 0x6000028, 0x4000028, at(3, 0), nil)
			return m
		}(), "named like a delta"},
		"a circle": {func() *storetest.Memory {
			m := chained(t, nil)
			delta(t, m, delta4, delta6, 0x4000028, 0x6000028, at(2, 0), nil)
			return m
		}(), "builds on itself"},
	} {
		c := load(t, x.m)
		for _, name := range []string{"LATEST", delta6} {
			if name == "LATEST" && what == "a parent that cannot be read" {
				continue // its time is not known: it was stored last
			}
			_, err := c.Choose(name, catalog.Target{})
			var broken *catalog.ChainError
			if !errors.As(err, &broken) || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%s: Choose(%s): %v, want %q", what, name, err, x.says)
				continue
			}
			if broken.Instead == nil || !strings.Contains(broken.Hint(), broken.Instead.Name) {
				t.Errorf("%s: no advice, %q", what, broken.Hint())
			} else if _, err := c.Choose(broken.Instead.Name, catalog.Target{}); err != nil {
				t.Errorf("%s: the advice is no good: %v", what, err)
			}
		}
		choice, err := c.Choose("", catalog.Target{Kind: catalog.Latest})
		if err != nil || choice.Backup.Name == delta6 || choice.Chain[len(choice.Chain)-1].IsDelta() {
			t.Errorf("%s: for a target: %v, %v", what, choice.Backup, err)
		}
	}
	m := &storetest.Memory{}
	delta(t, m, delta6, delta4, 0x6000028, 0x4000028, at(3, 0), nil)
	_, err := load(t, m).Choose("LATEST", catalog.Target{})
	var broken *catalog.ChainError
	if !errors.As(err, &broken) || broken.Instead != nil || !strings.Contains(broken.Hint(), "no other backup") {
		t.Errorf("alone: %v", err)
	}
}

// Backups that do not say where they start, of the first releases of WAL-G, have WAL from the segment in their name on.
func TestReachWithoutStart(t *testing.T) {
	m := &storetest.Memory{}
	put(t, m, archive.BackupDir+full2+"_backup_stop_sentinel.json", "{}")
	segments(t, m, 1, 2, 5)
	choice, err := load(t, m).Choose("", catalog.Target{Kind: catalog.Latest})
	if err != nil {
		t.Fatal(err)
	}
	reach, err := choice.Reach(t.Context(), archive.New(m, archive.Options{}))
	if err != nil || reach.First != size.Name(1, 2) || reach.Last != size.Name(1, 5) {
		t.Errorf("%+v, %v", reach, err)
	}
}

// A delta whose sentinel cannot be read has no chain, and says why.
func TestChainOfWhatCannotBeRead(t *testing.T) {
	why := errors.New("no such key")
	c := &catalog.Catalog{Backups: []catalog.Backup{{Name: "base_000000010000000000000004_D_000000010000000000000002", Err: why},
		{Name: "base_000000010000000000000006", Sentinel: &archive.Sentinel{}}}}
	if _, err := c.Chain(&c.Backups[0]); !errors.Is(err, why) {
		t.Errorf("the error is %v", err)
	}
}
