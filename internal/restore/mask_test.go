package restore_test

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/pg/control"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// files lists the files below dir, tablespaces' links not followed.
func files(t *testing.T, dir string) (found []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A mask restores the files that match and nothing else, those of tablespaces below the destination, and reads little more.
func TestMask(t *testing.T) {
	used := t.TempDir()
	if err := os.WriteFile(filepath.Join(used, "in use"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	spec := &archive.TablespaceSpec{BasePrefix: "/old", Tablespaces: []archive.Tablespace{{OID: "16385", Location: used}}}
	large := strings.Repeat("0123456789abcdef", 128<<10)
	parts := append(small(),
		[]tarpart.Entry{file("pg_tblspc/16385/PG_15_1/5/7", "in a tablespace")},
		[]tarpart.Entry{file("base/6/1", "one"), file("base/6/large", large), file("base/6/2", "two")})
	for _, m := range []compress.Method{compress.Zstd, compress.LZ4, compress.None} {
		a := backedUp(t, &storetest.Memory{}, m, spec, parts...)
		for mask, want := range map[string][]string{
			"base/5/*":            {"base/5/1", "base/5/2", "base/5/3"},
			"/base/6/[12]":        {"base/6/1", "base/6/2"},
			"*":                   {"PG_VERSION", "backup_label", "postgresql.conf", "tablespace_map"},
			"global/pg_control":   {"global/pg_control"},
			"pg_tblspc/*/PG*/*/7": {"pg_tblspc/16385/PG_15_1/5/7"},
		} {
			p, report := must(t, a, func(r *restore.Request) { r.Mask = mask })
			if got := files(t, p.Destination); !slices.Equal(got, want) {
				t.Errorf("%s: --mask %s restored %q, want %q", m, mask, got, want)
			}
			if !report.Verified || p.Files != int64(len(want)) {
				t.Errorf("%s: --mask %s: verified %t, %d files planned", m, mask, report.Verified, p.Files)
			}
			for _, e := range slices.Concat(parts...) {
				if e.Type == tarpart.File && slices.Contains(want, e.Path) {
					holds(t, filepath.Join(p.Destination, e.Path), string(e.Content))
				}
			}
		}
	}
	a := backedUp(t, &storetest.Memory{}, compress.Zstd, spec, parts...)
	for what, x := range map[string]struct {
		change func(*restore.Request)
		says   string
	}{
		"no pattern":     {func(r *restore.Request) { r.Mask = "base/[" }, "syntax error"},
		"nothing there":  {func(r *restore.Request) { r.Mask = "base" }, "no file that matches"},
		"with a target":  {func(r *restore.Request) { r.Mask, r.Recovery = "*", &restore.Recovery{} }, "with no target"},
		"with a mapping": {func(r *restore.Request) { r.Mask, r.TablespaceMapping = "*", map[string]string{"16385": "/x"} }, "no tablespaces"},
	} {
		if _, err := decide(t, a, x.change); err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q in it", what, err, x.says)
		}
	}
	into := interrupt(t, a, func(r *restore.Request) { r.Mask = "base/5/*" })
	if _, err := decide(t, a, func(r *restore.Request) { r.Destination, r.Resume = into, true }); err == nil || !strings.Contains(err.Error(), "mask") {
		t.Errorf("resumed without the mask: %v", err)
	}
	must(t, a, func(r *restore.Request) { r.Destination, r.Resume, r.Mask = into, true, "base/5/*" })
}

// Of parts that hold nothing that is asked for nothing is read, and of others not what lies between.
func TestMaskReadsLittle(t *testing.T) {
	m := &storetest.Memory{}
	large := file("base/6/large", strings.Repeat("0123456789abcdef", 1<<20))
	a := backedUp(t, m, compress.None, nil, small()[0], []tarpart.Entry{file("base/6/1", "one"), large, file("base/6/2", "two")})
	s := &reading{Store: m}
	counting := archive.New(s, archive.Options{})
	p, err := restore.Decide(t.Context(), counting, restore.Request{
		Destination: filepath.Join(t.TempDir(), "data"), Mask: "base/6/?", Choice: choose(t, a, ours, catalog.Target{}),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.parts = nil
	if _, err := restore.Run(t.Context(), counting, p, restore.Options{}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.parts, []string{"part_002.tar 3", "part_002.tar 3"}) {
		t.Errorf("read %q", s.parts)
	}
}

// An archive that another program wrote serves a mask too.
func TestMaskOnTheirs(t *testing.T) {
	a := foreign(t, regular("/PG_VERSION", "15\n"), tar.Header{Typeflag: tar.TypeDir, Name: "/base"}, regular("/base/5/1", "x"), regular("/base/6/1", "y"))
	p, _ := must(t, a, func(r *restore.Request) { r.Mask = "base/5/*" })
	if got := files(t, p.Destination); !slices.Equal(got, []string{"base/5/1"}) {
		t.Errorf("restored %q", got)
	}
	p, report := must(t, a, func(r *restore.Request) { r.Mask = "nothing" })
	if got := files(t, p.Destination); len(got) > 0 || !strings.Contains(strings.Join(report.Notes, "\n"), "no file") {
		t.Errorf("restored %q, notes %q", got, report.Notes)
	}
	if _, err := os.Stat(filepath.Join(p.Destination, control.Name)); err == nil {
		t.Error("there is a pg_control")
	}
}

// reading notes what is read of data parts.
type reading struct {
	store.Store
	mu    sync.Mutex
	parts []string
}

func (r *reading) note(name string, length any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if base := path.Base(name); strings.HasPrefix(base, "part_") {
		r.parts = append(r.parts, fmt.Sprint(base, " ", length))
	}
}

func (r *reading) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r.note(name, "whole")
	return r.Store.Open(ctx, name)
}

func (r *reading) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	r.note(name, length)
	return r.Store.OpenRange(ctx, name, offset, length)
}
