package restore_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/compress"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// Hollow files have their size and nothing in it, and nothing of them is read: neither of a full backup nor of a chain.
func TestHollow(t *testing.T) {
	m := &storetest.Memory{}
	large := strings.Repeat("0123456789abcdef", 1<<20)
	a := backedUp(t, m, compress.Zstd, nil, append(small(), []tarpart.Entry{file("base/6/1", "one"), file("base/6/large", large), file("base/6/2", "two")})...)
	hollow := func(path string) bool { return path == "base/6/large" || path == "backup_label" } // without the label nothing is sound
	p, report := must(t, a, func(r *restore.Request) { r.Hollow = hollow })
	holds(t, filepath.Join(p.Destination, "base/6/1"), "one")
	holds(t, filepath.Join(p.Destination, "base/6/2"), "two")
	holds(t, filepath.Join(p.Destination, "base/6/large"), strings.Repeat("\x00", len(large)))
	if b, err := os.ReadFile(filepath.Join(p.Destination, "backup_label")); err != nil || len(b) == 0 {
		t.Errorf("backup_label: %q %v", b, err)
	}
	if h := p.Hollowed; h == nil || h.Files != 1 || h.Bytes != int64(len(large)) || h.Stored <= 0 || p.Bytes > 1<<20 || report.Bytes > 1<<20 {
		t.Errorf("plan %+v, %+v; %d bytes restored", p, p.Hollowed, report.Bytes)
	}
	if _, err := os.Stat(filepath.Join(p.Destination, "backup_manifest")); err == nil {
		t.Error("there is a manifest of PostgreSQL's, which would not be true")
	}

	g := &maker{store: &storetest.Memory{}, method: compress.Zstd, perPart: 1}
	want := chained(g)
	dir := filepath.Join(t.TempDir(), "data")
	p, _, err := fetch(g.store, dir, "LATEST", func(r *restore.Request) { r.Hollow = func(path string) bool { return path == "base/5/1" } })
	if err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, "base/5/1"), strings.Repeat("\x00", len(want["base/5/1"])))
	holds(t, filepath.Join(dir, "base/5/2"), want["base/5/2"])
	holds(t, filepath.Join(dir, "PG_VERSION"), want["PG_VERSION"])
	if p.Hollowed.Files != 1 {
		t.Errorf("plan %+v", p.Hollowed)
	}
}

// A restore of a part is refused where it cannot be one.
func TestHollowIsRefused(t *testing.T) {
	hollow := func(string) bool { return true }
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, nil, small()...)
	for what, change := range map[string]func(*restore.Request){
		"delta":  func(r *restore.Request) { r.Delta = true },
		"resume": func(r *restore.Request) { r.Resume = true },
		"mask":   func(r *restore.Request) { r.Mask = "*" },
	} {
		if _, err := decide(t, a, func(r *restore.Request) { r.Hollow = hollow; change(r) }); err == nil || !strings.Contains(err.Error(), "content of files") {
			t.Errorf("with %s: %v", what, err)
		}
	}
	theirs := foreign(t, regular("/PG_VERSION", "15\n"))
	if _, err := decide(t, theirs, func(r *restore.Request) { r.Hollow = hollow }); err == nil || !strings.Contains(err.Error(), "in part") {
		t.Errorf("of a backup without a manifest: %v", err)
	}
}
