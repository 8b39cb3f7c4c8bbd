package restore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/crc32c"
	"holdfast/internal/increment"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// maker takes backups as Holdfast does, of content that a test makes up: deltas too.
type maker struct {
	store   store.Store
	method  compress.Method
	perPart int // members
	noSums  bool
	form1   bool                                  // files that are stored whole are not known to be made of pages, as in manifests of form 1; without sums
	source  string                                // how it was known what has changed
	tweak   func(part string, m []tarpart.Member) // what the manifest says
	n       int                                   // backups made
	last    *archive.Sentinel
	names   []string // of them
	spec    *archive.TablespaceSpec
}

// packed is a file as a backup has it.
type packed struct {
	path      string
	content   []byte // all of it
	mode      int64
	dir       bool
	unchanged bool     // since the parent
	blocks    []uint32 // stored, where increment is set
	increment bool
}

// GoString keeps what rapid prints short.
func (p packed) GoString() string {
	return fmt.Sprintf("%s %d bytes, unchanged %t, increment %t of %v", p.path, len(p.content), p.unchanged, p.increment, p.blocks)
}

func (g *maker) entry(m packed) tarpart.Entry {
	e := tarpart.Entry{Path: m.path, Mode: fs.FileMode(m.mode), ModTime: time.Unix(1_700_000_000+int64(g.n), 0), Content: m.content}
	paged := strings.HasPrefix(m.path, "base/") || strings.HasPrefix(m.path, "pg_tblspc/")
	switch e.Paged = paged && len(m.content) > 0 && len(m.content)%page.Size == 0; {
	case m.dir:
		e.Type = tarpart.Dir
	case m.increment:
		h := &increment.Header{FileSize: int64(len(m.content)), Blocks: m.blocks}
		e.Increment, e.Stream, e.Content = h, bytes.NewReader(incrementOf(m.content, m.blocks)[h.Len():]), nil
	}
	return e
}

// lsn is where the backup number n starts.
func (g *maker) lsn(n int) wal.LSN { return wal.LSN(n+1)<<25 | 0x28 }

// backup stores a backup of these files, one that builds on the last one if delta is set.
func (g *maker) backup(members []packed, delta bool) string {
	const size = wal.SegmentSize(16 << 20)
	ctx := context.Background()
	a := archive.New(g.store, archive.Options{Method: g.method})
	start := g.lsn(g.n)
	finish := start + 0xD8
	name := "base_" + size.Name(1, size.Segment(start))
	c := must2(os.ReadFile("../pg/control/testdata/" + controlName))
	c = append(c, make([]byte, control.Size-len(c))...)
	data := must2(control.Decode(c))
	at := time.Date(2026, 5, 6, 7, g.n, 0, 0, time.UTC)
	s := &archive.Sentinel{LSN: &start, FinishLSN: &finish, PgVersion: 150004, SystemIdentifier: &data.SystemIdentifier, SegmentSize: 16 << 20,
		StartTime: at, FinishTime: at.Add(time.Second), Spec: g.spec}
	if delta {
		parent := g.names[len(g.names)-1]
		name += "_D_" + parent[len("base_"):][:24]
		read := must2(a.Sentinel(ctx, parent))
		s.DeltaFrom, s.DeltaLSN, s.DeltaFullName, s.DeltaCount, s.Parent = parent, read.LSN, g.names[0], g.n, read.Sum
		s.DeltaSource = g.source
	}
	d := must2(a.Begin(ctx, name, "here"))
	put := func(base string, entries []tarpart.Entry) {
		p := tarpart.NewPacker(func() (tarpart.Entry, error) {
			if len(entries) == 0 {
				return tarpart.Entry{}, io.EOF
			}
			e := entries[0]
			entries = entries[1:]
			return e, nil
		}, tarpart.Options{})
		err := d.PutPart(ctx, base, p, func() []tarpart.Member {
			all := p.Members()
			for i := range all {
				if g.form1 && all[i].Increment == nil {
					all[i].Pages = 0
				}
			}
			if g.tweak != nil {
				g.tweak(base, all)
			}
			return all
		})
		if err == nil && !g.noSums {
			err = d.PutSums(ctx, base, p.Sums())
		}
		if err != nil {
			panic(err)
		}
	}
	var entries []tarpart.Entry
	for _, m := range members {
		if m.unchanged {
			e := g.entry(m)
			if err := d.Unchanged(tarpart.Member{Path: m.path, Mode: uint32(m.mode), Size: int64(len(m.content)), ModTime: e.ModTime}); err != nil {
				panic(err)
			}
			continue
		}
		entries = append(entries, g.entry(m))
	}
	for part := range slices.Chunk(entries, max(1, g.perPart)) {
		put(d.NextPart(), part)
	}
	put(archive.ControlPart, []tarpart.Entry{{Path: control.Name, Mode: 0o600, ModTime: at, Content: c}})
	label := fmt.Sprintf("START WAL LOCATION: %s (file x)\n", start)
	put(archive.LabelPart, []tarpart.Entry{{Path: "backup_label", Mode: 0o600, ModTime: at, Content: []byte(label)}})
	if err := d.Commit(ctx, s); err != nil {
		panic(err)
	}
	g.n++
	g.last = s
	g.names = append(g.names, name)
	return name
}

// fetch restores a backup, and weaves what it can.
func fetch(s store.Store, dir, name string, change func(*restore.Request)) (*restore.Plan, *restore.Report, error) {
	return fetchWith(s, dir, name, restore.Options{Workers: 3}.Weaving(1, 16*page.Size), change)
}

// fetchWith is fetch with those options.
func fetchWith(s store.Store, dir, name string, opts restore.Options, change func(*restore.Request)) (*restore.Plan, *restore.Report, error) {
	ctx := context.Background()
	a := archive.New(s, archive.Options{})
	c, err := catalog.Load(ctx, a)
	if err != nil {
		return nil, nil, err
	}
	choice, err := c.Choose(name, catalog.Target{})
	if err != nil {
		return nil, nil, err
	}
	r := restore.Request{Destination: dir, Choice: choice}
	if change != nil {
		change(&r)
	}
	p, err := restore.Decide(ctx, a, r)
	if err != nil {
		return nil, nil, err
	}
	report, err := restore.Run(ctx, a, p, opts)
	return p, report, err
}

func delta(r *restore.Request) { r.Delta = true }

// model is a directory that changes between backups.
type model struct {
	version int
	state   map[string]*relation
	paths   []string
}

func newModel(t *rapid.T) *model {
	m := &model{state: map[string]*relation{}, paths: []string{"base/5/1", "pg_xact/0000", "base/5/1.1", "PG_VERSION", "base/6/3", "global/7"}}
	m.paths = m.paths[:rapid.IntRange(1, len(m.paths)).Draw(t, "files")]
	for _, path := range m.paths {
		m.create(t, path)
	}
	return m
}

func (m *model) newer() int { m.version++; return m.version }

func (m *model) create(t *rapid.T, path string) {
	r := &relation{mode: rapid.SampledFrom([]int64{0o600, 0o640}).Draw(t, "mode")}
	if strings.HasPrefix(path, "base/") {
		r.versions = []int{}
		for range rapid.SampledFrom([]int{0, 1, 2, 3, 5, 8, 70}).Draw(t, "pages") {
			r.versions = append(r.versions, m.newer()*rapid.IntRange(0, 1).Draw(t, "zero"))
		}
	} else {
		r.plain = fmt.Sprint("plain ", m.newer())
	}
	m.state[path] = r
}

func (m *model) clone() map[string]*relation {
	c := map[string]*relation{}
	for path, r := range m.state {
		c[path] = &relation{slices.Clone(r.versions), r.plain, r.mode}
	}
	return c
}

// change makes some changes.
func (m *model) change(t *rapid.T) {
	for range rapid.IntRange(0, 8).Draw(t, "changes") {
		path := rapid.SampledFrom(m.paths).Draw(t, "path")
		r := m.state[path]
		if r == nil || rapid.IntRange(0, 9).Draw(t, "anew") == 0 {
			m.create(t, path)
			continue
		}
		n := len(r.versions)
		switch what := rapid.SampledFrom([]string{"write", "write", "grow", "shrink", "zero", "remove"}).Draw(t, "what"); {
		case what == "remove":
			delete(m.state, path)
		case r.versions == nil:
			r.plain = fmt.Sprint("plain ", m.newer(), strings.Repeat("x", rapid.IntRange(0, 1000).Draw(t, "length")))
		case what == "grow":
			for range rapid.SampledFrom([]int{1, 2, 3, 40}).Draw(t, "by") {
				r.versions = append(r.versions, m.newer()*rapid.IntRange(0, 1).Draw(t, "zero"))
			}
		case what == "shrink":
			r.versions = r.versions[:rapid.IntRange(0, n).Draw(t, "to")]
		case n > 0:
			from := rapid.IntRange(0, n-1).Draw(t, "from")
			for i := from; i < min(n, from+rapid.IntRange(1, 5).Draw(t, "blocks")); i++ {
				if r.versions[i] = 0; what == "write" {
					r.versions[i] = m.newer()
				}
			}
		}
	}
}

// members returns what a backup of the model holds, one that builds on the one of was unless that is nil. With zeros it may leave out pages that came as
// zeros.
func (m *model) members(t *rapid.T, was map[string]*relation, zeros bool) []packed {
	all := []packed{{path: ".", dir: true, mode: 0o700}, {path: "base", dir: true, mode: 0o700}, {path: "base/5", dir: true, mode: 0o750},
		{path: "base/6", dir: true, mode: 0o700}, {path: "pg_xact", dir: true, mode: 0o700}, {path: "global", dir: true, mode: 0o700},
		{path: "pg_wal", dir: true, mode: 0o700}, {path: "pg_wal/archive_status", dir: true, mode: 0o700}}
	for _, path := range slices.Sorted(maps.Keys(m.state)) {
		r := m.state[path]
		p := packed{path: path, content: r.content(path), mode: r.mode}
		if old := was[path]; old != nil {
			before := old.content(path)
			switch {
			case bytes.Equal(before, p.content) && rapid.Bool().Draw(t, "unchanged"):
				p.unchanged = true
			case len(p.content) > 0 && r.versions != nil && rapid.IntRange(0, 9).Draw(t, "whole") > 0:
				p.increment = true
				for i := range r.versions {
					b := p.content[i*page.Size:][:page.Size]
					grown := (i+1)*page.Size > len(before)
					changed := grown || !bytes.Equal(b, before[i*page.Size:][:page.Size])
					if grown && zeros && r.versions[i] == 0 && rapid.Bool().Draw(t, "zeros by size") {
						changed = false
					}
					if changed || rapid.IntRange(0, 9).Draw(t, "stored though unchanged") == 0 {
						p.blocks = append(p.blocks, uint32(i))
					}
				}
			}
		}
		all = append(all, p)
	}
	return rapid.Permutation(all).Draw(t, "order")
}

// checkTree compares a restored directory with what it must be, and its backup_manifest with it.
func checkTree(t *rapid.T, what, dir string, want map[string]*relation) {
	got := restored(dir)
	list := got[manifest.Name]
	delete(got, manifest.Name)
	listed := map[string]uint32{}
	r := must2(manifest.NewReader(strings.NewReader(list[strings.Index(list, " ")+1:])))
	for {
		f, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		b := must2(os.ReadFile(filepath.Join(dir, f.Path)))
		if int64(len(b)) != f.Size || !bytes.Equal(manifest.ChecksumCRC32C(crc32c.Checksum(b)), f.Checksum) {
			t.Errorf("%s: backup_manifest has %s with %d bytes, checksum %x; there are %d, %08X", what, f.Path, f.Size, f.Checksum, len(b), crc32c.Checksum(b))
		}
		listed[f.Path]++
	}
	for path, r := range want {
		if want := fmt.Sprintf("%o ", r.mode) + string(r.content(path)); got[path] != want {
			t.Errorf("%s: %s %s", what, path, difference(got[path], want))
		}
		if listed[path] != 1 {
			t.Errorf("%s: %s is %d times in backup_manifest", what, path, listed[path])
		}
		delete(got, path)
	}
	for path := range got {
		t.Errorf("%s: %s is there, and is not in the backup", what, path)
	}
	if len(listed) != len(want)+2 { // control file and label
		t.Errorf("%s: backup_manifest has %d files, want %d", what, len(listed), len(want)+2)
	}
	if _, err := os.Stat(filepath.Join(dir, "holdfast_restore.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: there is a marker", what)
	}
}

// spoil changes a data directory at random, in all the ways there are.
func spoil(t *rapid.T, dir, outside string) {
	random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	var files []string
	for path := range restored(dir) {
		files = append(files, path)
	}
	slices.Sort(files)
	full := func(path string) string { return filepath.Join(dir, path) }
	must := func(err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	}
	for range rapid.IntRange(0, 10).Draw(t, "spoilt") {
		path := full(rapid.SampledFrom(files).Draw(t, "file"))
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() { // spoilt enough
			continue
		}
		switch rapid.SampledFrom([]string{"pages", "pages", "cut", "grow", "remove", "extra", "link", "hard link", "directory", "mode", "moved", "pid", "special"}).Draw(t, "how") {
		case "pages":
			b, err := os.ReadFile(path)
			if must(err); len(b) > 0 {
				b[random.IntN(len(b))] ^= 1
				must(os.WriteFile(path, b, 0o600))
			}
		case "cut":
			if info, err := os.Lstat(path); err == nil && info.Size() > 0 {
				must(os.Truncate(path, random.Int64N(info.Size())))
			}
		case "grow":
			if info, err := os.Lstat(path); err == nil {
				must(os.Truncate(path, info.Size()+1+random.Int64N(20000)))
			}
		case "remove":
			must(os.RemoveAll(path))
		case "extra":
			for _, name := range []string{"extra", "base/5/99", "base/99/1", "pg_wal/000000010000000000000009", "pg_replslot/x/state", "standby.signal", "pg_stat_tmp/y"} {
				must(os.MkdirAll(filepath.Dir(full(name)), 0o700))
				must(os.WriteFile(full(name), []byte("extra"), 0o600))
			}
		case "link":
			must(os.RemoveAll(path))
			must(os.Symlink(outside, path))
		case "hard link":
			must(os.Link(path, filepath.Join(filepath.Dir(outside), fmt.Sprint("hard", random.Uint64()))))
		case "directory":
			must(os.RemoveAll(path))
			must(os.MkdirAll(filepath.Join(path, "deep"), 0o700))
			must(os.WriteFile(filepath.Join(path, "deep", "er"), []byte("x"), 0o600))
		case "mode":
			must(os.Chmod(path, 0o644))
		case "moved": // a directory is elsewhere, and a link leads there
			if !exists(filepath.Join(dir, "moved")) {
				must(os.Rename(full("base"), filepath.Join(dir, "moved")))
				must(os.Symlink("moved", full("base")))
			}
		case "pid":
			must(os.WriteFile(full("postmaster.pid"), []byte("2147483646\n"+dir+"\n"), 0o600)) // no process has it
		case "special":
			must(os.MkdirAll(full("log"), 0o700))
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Whatever happens to files between backups, and whatever to a directory that one of them was restored into, each backup of a chain comes back
// as the directory was: into an empty directory, and into that one. What lies outside is as it was.
func TestPickedChainsComeBack(t *testing.T) {
	base := t.TempDir()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		here := filepath.Join(base, fmt.Sprint(round))
		outside := filepath.Join(here, "outside")
		if err := os.MkdirAll(here, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(outside, []byte("outside"), 0o600); err != nil {
			t.Fatal(err)
		}
		g := &maker{store: &storetest.Memory{}, perPart: rapid.IntRange(1, 8).Draw(t, "per part"),
			method: rapid.SampledFrom([]compress.Method{compress.Zstd, compress.LZ4, compress.None}).Draw(t, "method"), noSums: rapid.IntRange(0, 4).Draw(t, "sums") == 0}
		g.form1 = g.noSums && rapid.Bool().Draw(t, "form 1")
		m := newModel(t)
		var were []map[string]*relation
		for i := range rapid.IntRange(1, 6).Draw(t, "backups") {
			var was map[string]*relation
			if i > 0 {
				was = were[i-1]
			}
			g.source = rapid.SampledFrom([]string{"lsn", "archive", "summaries"}).Draw(t, "source")
			g.backup(m.members(t, was, g.source == "summaries"), i > 0)
			were = append(were, m.clone())
			m.change(t)
		}
		last := len(were) - 1
		i := rapid.IntRange(0, last).Draw(t, "restored")
		dir := filepath.Join(here, "data")
		opts := restore.Options{Workers: 3}.Weaving(rapid.SampledFrom([]int64{1, 3, 1000}).Draw(t, "worth"), rapid.Int64Range(1, 80).Draw(t, "stretch")*page.Size)
		plan, report, err := fetchWith(g.store, dir, g.names[i], opts, nil)
		if err != nil {
			t.Fatalf("%s: %v", g.names[i], err)
		}
		checkTree(t, g.names[i], dir, were[i])
		if !plan.Verified || report.Files != int64(len(were[i])) {
			t.Errorf("%s: verified %t, %d files reported, %d were", g.names[i], plan.Verified, report.Files, len(were[i]))
		}
		spoil(t, dir, outside)
		j := rapid.IntRange(0, last).Draw(t, "wanted")
		plan, report, err = fetch(g.store, dir, g.names[j], delta)
		if err != nil {
			t.Fatalf("%s, by differences: %v", g.names[j], err)
		}
		checkTree(t, "differences to "+g.names[j], dir, were[j])
		if d := report.Delta; d.EqualFiles+d.StaleFiles+d.MissingFiles != int64(len(were[j])) {
			t.Errorf("%+v of %d files", d, len(were[j]))
		}
		// Once more there is nothing to do.
		_, report, err = fetch(g.store, dir, g.names[j], delta)
		if err != nil {
			t.Fatalf("%s, again: %v", g.names[j], err)
		}
		if d := report.Delta; !g.noSums && (d.EqualFiles != int64(len(were[j])) || d.Write != 0 || report.Bytes != 0) {
			t.Errorf("again: %+v, wrote %d bytes", d, report.Bytes)
		}
		checkTree(t, "again "+g.names[j], dir, were[j])
		if b, err := os.ReadFile(outside); err != nil || string(b) != "outside" {
			t.Errorf("outside there is %q, %v", b, err)
		}
		if err := os.RemoveAll(here); err != nil {
			t.Fatal(err)
		}
	})
}
