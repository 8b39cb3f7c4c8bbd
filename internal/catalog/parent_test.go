package catalog_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
)

const system = uint64(7359000000000000001)

// made stores the documents of a backup that a delta can build on; change is done to its sentinel before.
func made(t *testing.T, m *storetest.Memory, name string, start wal.LSN, hour int, change func(*archive.Sentinel)) {
	t.Helper()
	finish, id := start+0xD8, system
	s := archive.Sentinel{LSN: &start, FinishLSN: &finish, FinishTime: at(hour, 0), Version: 2, PgVersion: 150004, SystemIdentifier: &id}
	if change != nil {
		change(&s)
	}
	for object, v := range map[string]any{archive.BackupDir + name + "_backup_stop_sentinel.json": s, archive.Folder(name) + "metadata.json": s.Metadata()} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		put(t, m, object, string(b))
	}
}

// on makes a sentinel that of a delta.
func on(parent string, from wal.LSN, count int) func(*archive.Sentinel) {
	return func(s *archive.Sentinel) {
		s.DeltaFrom, s.DeltaLSN, s.DeltaFullName, s.DeltaCount = parent, &from, full2, count
	}
}

// A delta builds on the newest backup from which its own place in the log can be reached, or on what was asked for; else there is
// a full one, and a reason.
func TestParent(t *testing.T) {
	const (
		other5 = "base_000000010000000000000005" // of another line, of another cluster, and so on
		young7 = "base_000000020000000000000007"
	)
	for what, x := range map[string]struct {
		add    func(m *storetest.Memory)
		change func(*catalog.Child)
		parent string
		count  int
		says   string // where there is none
	}{
		"the newest":                   {parent: delta6, count: 3},
		"the newest by time, not name": {add: func(m *storetest.Memory) { made(t, m, "base_000000010000000000000001", 0x1000028, 9, nil) }, parent: "base_000000010000000000000001", count: 1},
		"no deltas are wanted":         {change: func(c *catalog.Child) { c.MaxSteps = 0 }, says: "not enabled"},
		"enough steps":                 {change: func(c *catalog.Child) { c.MaxSteps = 3 }, parent: delta6, count: 3},
		"too many steps":               {change: func(c *catalog.Child) { c.MaxSteps = 2 }, says: "Reached max delta steps. Doing full backup."},
		"the full one below":           {change: func(c *catalog.Child) { c.OnFull = true }, parent: full2, count: 3},
		"by name":                      {change: func(c *catalog.Child) { c.Name = delta4 }, parent: delta4, count: 2},
		"by name, its full one":        {change: func(c *catalog.Child) { c.Name, c.OnFull = delta4, true }, parent: full2, count: 2},
		"a name there is not":          {change: func(c *catalog.Child) { c.Name = young7 }, says: "no backup of that name"},
		"by user data":                 {change: func(c *catalog.Child) { c.UserData = json.RawMessage(`{"a": 1}`) }, parent: delta4, count: 2},
		"user data there is not":       {change: func(c *catalog.Child) { c.UserData = json.RawMessage(`"b"`) }, says: "no backup for user data"},
		"user data that is none":       {change: func(c *catalog.Child) { c.UserData = json.RawMessage(`b`) }, says: "user data b"},
		"of another cluster": {add: func(m *storetest.Memory) {
			made(t, m, other5, 0x5000028, 9, func(s *archive.Sentinel) { *s.SystemIdentifier++ })
		}, parent: delta6, count: 3},
		"another cluster by name": {add: func(m *storetest.Memory) {
			made(t, m, other5, 0x5000028, 9, func(s *archive.Sentinel) { *s.SystemIdentifier++ })
		}, change: func(c *catalog.Child) { c.Name = other5 }, says: other5 + " is of another cluster"},
		"only of another cluster": {change: func(c *catalog.Child) { c.System++ }, says: "Couldn't find previous backup. Doing full backup."},
		"of another version":      {change: func(c *catalog.Child) { c.Major = 16 }, says: "Couldn't find previous backup."},
		"in the future":           {change: func(c *catalog.Child) { c.Start = 0x6000050 }, parent: delta4, count: 2},
		"in the future by name":   {change: func(c *catalog.Child) { c.Start, c.Name = 0x6000050, delta6 }, says: "lies in the future"},
		"without its place":       {add: func(m *storetest.Memory) { made(t, m, other5, 0x5000028, 9, func(s *archive.Sentinel) { s.LSN = nil }) }, parent: delta6, count: 3},
		"without a list of files": {add: func(m *storetest.Memory) {
			made(t, m, other5, 0x5000028, 9, func(s *archive.Sentinel) { s.FilesMetadataDisabled = true })
		}, parent: delta6, count: 3},
		"with OrioleDB": {add: func(m *storetest.Memory) {
			made(t, m, other5, 0x5000028, 9, func(s *archive.Sentinel) { s.ChkpNum = new(uint32) })
		}, parent: delta6, count: 3},
		"unreadable":            {add: func(m *storetest.Memory) { put(t, m, archive.BackupDir+other5+"_backup_stop_sentinel.json", "{") }, parent: delta6, count: 3},
		"without metadata":      {add: func(m *storetest.Memory) { backup(t, m, other5, 0x5000028, 0x5000100, at(9, 0)) }, parent: delta6, count: 3},
		"whose chain is broken": {add: func(m *storetest.Memory) { made(t, m, delta4, 0x4000999, 2, on(full2, 0x2000028, 1)) }, parent: delta4, count: 2},
		"that is permanent": {add: func(m *storetest.Memory) {
			made(t, m, delta6, 0x6000028, 3, func(s *archive.Sentinel) { on(delta4, 0x4000028, 2)(s); s.IsPermanent = true })
		}, says: "is permanent"},
		"that is permanent, as this": {add: func(m *storetest.Memory) {
			made(t, m, delta6, 0x6000028, 3, func(s *archive.Sentinel) { on(delta4, 0x4000028, 2)(s); s.IsPermanent = true })
		}, change: func(c *catalog.Child) { c.Permanent = true }, parent: delta6, count: 3},
		"after a promotion":           {add: func(m *storetest.Memory) { put(t, m, archive.WALDir+"00000002.history", "1\t0/7000000\tx\n") }, change: func(c *catalog.Child) { c.Path = nil }, parent: delta6, count: 3},
		"left before it was finished": {add: func(m *storetest.Memory) { put(t, m, archive.WALDir+"00000002.history", "1\t0/6000050\tx\n") }, change: func(c *catalog.Child) { c.Path = nil }, parent: delta4, count: 2},
		"after one on another line":   {add: func(m *storetest.Memory) { made(t, m, young7, 0x7000028, 9, nil) }, parent: delta6, count: 3},
	} {
		m := &storetest.Memory{}
		made(t, m, full2, 0x2000028, 1, nil)
		made(t, m, delta4, 0x4000028, 2, func(s *archive.Sentinel) { on(full2, 0x2000028, 1)(s); s.UserData = json.RawMessage(`{"a":1}`) })
		made(t, m, delta6, 0x6000028, 3, on(delta4, 0x4000028, 2))
		if x.add != nil {
			x.add(m)
		}
		c := load(t, m)
		child := catalog.Child{System: system, Major: 15, Start: 0x8000028, Path: catalog.Path{{Timeline: 1}}, MaxSteps: 7}
		if x.change != nil {
			x.change(&child)
		}
		if child.Path == nil {
			var err error
			if child.Path, err = c.PathTo(2); err != nil {
				t.Fatal(err)
			}
		}
		p, passed, err := c.Parent(child)
		if x.says != "" {
			var full *catalog.FullError
			if err == nil || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%s: %+v, %v, want an error that says %q", what, p, err, x.says)
			} else if asked := child.Name != "" || child.UserData != nil; errors.As(err, &full) && full.Asked != asked {
				t.Errorf("%s: %+v", what, full)
			}
			continue
		}
		if err != nil || p.Name != x.parent || p.Count != x.count || p.Full != full2 && p.Name != p.Full {
			t.Errorf("%s: %v, %s, want %s with %d steps", what, err, fmt.Sprintf("%+v", p), x.parent, x.count)
		}
		if newest, _ := c.Latest(); (len(passed) > 0) != (newest.Name != x.parent && child.Name == "" && child.UserData == nil && !child.OnFull) {
			t.Errorf("%s: passed over are %q", what, passed)
		}
	}
}
