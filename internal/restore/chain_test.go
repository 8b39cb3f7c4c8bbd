package restore_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/increment"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// member is one of a backup as walG writes it: a file, of which the part holds all, an increment or nothing, or a directory.
type member struct {
	path    string
	content []byte // as the part holds it
	mode    int64
	dir     bool

	incremented, skipped bool
	unlisted, unpacked   bool // left out of the list, or of the parts
}

// walG writes backups as WAL-G does: deltas too.
type walG struct {
	store   *storetest.Memory
	method  compress.Method
	perPart int                                 // members
	change  func(name string, b []byte) []byte  // of objects before they are stored; nil for none
	last    string                              // name of the newest backup
	n       int                                 // backups made
	dot     bool                                // names of objects that are not compressed end in one
	spaces  string                              // tablespace_map
	tweak   func(sentinel, list map[string]any) // of the documents; nil for none
}

// lsn is where the backup number n starts.
func (g *walG) lsn(n int) wal.LSN { return wal.LSN(n+1)<<25 | 0x28 }

// label is the backup_label of number n.
func (g *walG) label(n int) string { return fmt.Sprintf("START WAL LOCATION: %s (file x)\n", g.lsn(n)) }

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (g *walG) put(name string, b []byte) {
	if g.change != nil {
		b = g.change(name, b)
	}
	if err := g.store.Put(context.Background(), name, bytes.NewReader(b)); err != nil {
		panic(err)
	}
}

func (g *walG) putPart(backup, base string, members []member) string {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := tar.Header{Typeflag: tar.TypeReg, Name: "/" + m.path, Size: int64(len(m.content)), Mode: m.mode, ModTime: time.Unix(1_700_000_000+int64(g.n), 0)}
		if m.path == "backup_label" || m.path == "tablespace_map" {
			h.Name = m.path
		}
		if m.dir {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		must2(w.Write(m.content))
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	name := base + g.method.Extension()
	if g.dot {
		name += "."
	}
	z := compress.Compress(&b, g.method, compress.Options{})
	defer z.Close()
	g.put(archive.Folder(backup)+"tar_partitions/"+name, must2(io.ReadAll(z)))
	return name
}

// full and delta store a backup of these members.
func (g *walG) full(members []member) string  { return g.backup(members, "") }
func (g *walG) delta(members []member) string { return g.backup(members, g.last) }

func (g *walG) backup(members []member, parent string) string {
	const size = wal.SegmentSize(16 << 20)
	start := g.lsn(g.n)
	name := "base_" + size.Name(1, size.Segment(start))
	controlContent := must2(os.ReadFile("../pg/control/testdata/" + controlName))
	sentinel := map[string]any{
		"LSN": start, "PgVersion": 150004, "FinishLSN": start + 0xD8, "SystemIdentifier": must2(control.Decode(controlContent)).SystemIdentifier,
		"Version": 2, "ChkpNum": nil, "FinishTime": time.Date(2026, 5, 6, 7, g.n, 0, 0, time.UTC),
	}
	if parent != "" {
		name += "_D_" + parent[len("base_"):][:24]
		sentinel["DeltaFrom"], sentinel["DeltaLSN"], sentinel["DeltaFullName"], sentinel["DeltaCount"] = parent, g.lsn(g.n-1), "base_x", g.n
	}
	files, sets := map[string]any{}, map[string][]string{}
	var packed []member
	for _, m := range members {
		if !m.unlisted {
			files["/"+m.path] = map[string]any{"IsIncremented": m.incremented, "IsSkipped": m.skipped, "MTime": time.Now(), "UpdatesCount": 0}
		}
		if !m.skipped && !m.unpacked {
			packed = append(packed, m)
		}
	}
	number := 0
	for part := range slices.Chunk(packed, max(1, g.perPart)) {
		number++
		object := g.putPart(name, fmt.Sprintf("part_%03d.tar", number), part)
		for _, m := range part {
			sets[object] = append(sets[object], "/"+m.path)
		}
	}
	g.putPart(name, "pg_control.tar", []member{{path: control.Name, content: controlContent, mode: 0o600}})
	sets[g.putPart(name, "backup_label.tar", []member{{path: "backup_label", content: []byte(g.label(g.n)), mode: 0o600}, {path: "tablespace_map", content: []byte(g.spaces), mode: 0o600}})] =
		[]string{"backup_label", "tablespace_map"}
	list := map[string]any{"Files": files, "TarFileSets": sets, "DatabasesByNames": map[string]any{}}
	if g.tweak != nil {
		g.tweak(sentinel, list)
	}
	if len(list) > 0 && sentinel["FilesMetadataDisabled"] == nil {
		g.put(archive.Folder(name)+"files_metadata.json", must2(json.Marshal(list)))
	}
	g.put(archive.BackupDir+name+"_backup_stop_sentinel.json", must2(json.Marshal(sentinel)))
	g.last = name
	g.n++
	return name
}

// controlName is the pg_control of a PostgreSQL 15 among the testdata of internal/pg/control.
var controlName = func() string {
	for _, name := range must2(filepath.Glob("../pg/control/testdata/*15*")) {
		if _, err := control.Decode(must2(os.ReadFile(name))); err == nil {
			return filepath.Base(name)
		}
	}
	panic("no pg_control of PostgreSQL 15 in testdata")
}()

// pages makes content of so many pages, each of which says which file, block and version it is; 0 stands for a page of zeros.
func somePages(file string, versions []int) []byte {
	b := make([]byte, len(versions)*page.Size)
	for i, v := range versions {
		if v > 0 {
			p := b[i*page.Size:][:page.Size]
			binary.LittleEndian.PutUint32(p, uint32(v))
			copy(p[24:], fmt.Sprintf("%s block %d version %d", file, i, v))
			p[page.Size-1] = 1
		}
	}
	return b
}

// incrementOf holds the given blocks of a file.
func incrementOf(file []byte, blocks []uint32) []byte {
	h := increment.Header{FileSize: int64(len(file)), Blocks: blocks}
	b := h.Append(nil)
	for _, n := range blocks {
		b = append(b, file[int(n)*page.Size:][:page.Size]...)
	}
	return b
}

// restored returns what is below dir: contents by path, a mode before each.
func restored(dir string) map[string]string {
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel := must2(filepath.Rel(dir, path))
		if rel != control.Name && rel != "backup_label" && rel != "tablespace_map" {
			found[rel] = fmt.Sprintf("%o ", must2(d.Info()).Mode()) + string(must2(os.ReadFile(path)))
		}
		return nil
	})
	if err != nil {
		panic(err)
	}
	return found
}

// fetch restores a backup of g into a new directory and returns it.
func (g *walG) fetch(s store.Store, dir, name string, change func(*restore.Request)) (*restore.Plan, *restore.Report, error) {
	return fetchWith(s, dir, name, restore.Options{Workers: 3}, change)
}

// relation is a file of the model, as versions of its pages, or as whole content where that is not made of pages.
type relation struct {
	versions []int
	plain    string
	mode     int64
}

func (r *relation) content(path string) []byte {
	if r.versions == nil {
		return []byte(r.plain)
	}
	return somePages(path, r.versions)
}

// Whatever happens to files between backups, each backup of a chain comes back as the directory was, whatever the codec, and however
// the files lie in parts: those skipped, changed in part or as a whole, grown, shrunk, removed and made anew. Page by page it is
// the newest version that comes back, a page of zeros too.
func TestChainsComeBack(t *testing.T) {
	base := t.TempDir()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		g := &walG{store: &storetest.Memory{}, perPart: rapid.IntRange(1, 8).Draw(t, "per part"),
			method: rapid.SampledFrom([]compress.Method{compress.LZ4, compress.Zstd, compress.Brotli, compress.LZMA, compress.None}).Draw(t, "method")}
		version := 0
		newer := func() int { version++; return version }
		state := map[string]*relation{}
		create := func(path string) {
			r := &relation{mode: rapid.SampledFrom([]int64{0o600, 0o640}).Draw(t, "mode")}
			if strings.HasPrefix(path, "base/") {
				r.versions = []int{}
				for range rapid.SampledFrom([]int{0, 1, 2, 3, 5, 8, 70}).Draw(t, "pages") {
					r.versions = append(r.versions, newer()*rapid.IntRange(0, 1).Draw(t, "zero"))
				}
			} else {
				r.plain = fmt.Sprint("plain ", newer())
			}
			state[path] = r
		}
		paths := []string{"base/5/1", "pg_xact/0000", "base/5/1.1", "PG_VERSION", "base/6/3", "global/7"}
		paths = paths[:rapid.IntRange(1, len(paths)).Draw(t, "files")]
		for _, path := range paths {
			create(path)
		}
		clone := func() map[string]*relation {
			c := map[string]*relation{}
			for path, r := range state {
				c[path] = &relation{slices.Clone(r.versions), r.plain, r.mode}
			}
			return c
		}
		dirs := []member{{path: ".", dir: true, mode: 0o700}, {path: "base", dir: true, mode: 0o700}, {path: "base/5", dir: true, mode: 0o750}}

		var names []string
		var were []map[string]*relation
		for range rapid.IntRange(1, 6).Draw(t, "backups") { // one on top of the other
			members := slices.Clone(dirs)
			for _, path := range slices.Sorted(maps.Keys(state)) {
				r := state[path]
				now := r.content(path)
				m := member{path: path, content: now, mode: r.mode}
				if len(were) > 0 && were[len(were)-1][path] != nil {
					old := were[len(were)-1][path]
					was := old.content(path)
					switch {
					case bytes.Equal(was, now):
						m.mode = old.mode // nothing is stored, so that a change of mode alone is not either
						r.mode = old.mode
						m.skipped, m.content = rapid.Bool().Draw(t, "skip"), now
						if m.skipped {
							break
						}
						fallthrough
					case len(now) > 0 && r.versions != nil && old.versions != nil && rapid.IntRange(0, 9).Draw(t, "whole") > 0:
						if len(now) == 0 || r.versions == nil {
							break
						}
						var blocks []uint32
						for i := range r.versions {
							p := now[i*page.Size:][:page.Size]
							grown := (i+1)*page.Size > len(was)
							changed := grown || !bytes.Equal(p, was[i*page.Size:][:page.Size])
							if grown && r.versions[i] == 0 && rapid.Bool().Draw(t, "zeros by size") {
								changed = false
							}
							if changed || rapid.IntRange(0, 9).Draw(t, "unchanged") == 0 {
								blocks = append(blocks, uint32(i))
							}
						}
						m.incremented, m.content = true, incrementOf(now, blocks)
					}
				}
				members = append(members, m)
			}
			members = rapid.Permutation(members).Draw(t, "order")
			if len(names) == 0 {
				names = append(names, g.full(members))
			} else {
				names = append(names, g.delta(members))
			}
			were = append(were, clone())

			for range rapid.IntRange(0, 8).Draw(t, "changes") {
				path := rapid.SampledFrom(paths).Draw(t, "path")
				r := state[path]
				if r == nil || rapid.IntRange(0, 9).Draw(t, "anew") == 0 {
					create(path)
					continue
				}
				n := len(r.versions)
				switch what := rapid.SampledFrom([]string{"write", "write", "grow", "shrink", "zero", "remove"}).Draw(t, "what"); {
				case what == "remove":
					delete(state, path)
				case r.versions == nil:
					r.plain = fmt.Sprint("plain ", newer(), strings.Repeat("x", rapid.IntRange(0, 1000).Draw(t, "length")))
				case what == "grow":
					for range rapid.SampledFrom([]int{1, 2, 3, 40}).Draw(t, "by") {
						r.versions = append(r.versions, newer()*rapid.IntRange(0, 1).Draw(t, "zero"))
					}
				case what == "shrink":
					r.versions = r.versions[:rapid.IntRange(0, n).Draw(t, "to")]
				case n > 0:
					from := rapid.IntRange(0, n-1).Draw(t, "from")
					for i := from; i < min(n, from+rapid.IntRange(1, 5).Draw(t, "blocks")); i++ {
						if r.versions[i] = 0; what == "write" {
							r.versions[i] = newer()
						}
					}
				}
			}
		}

		for _, i := range slices.Compact([]int{rapid.IntRange(0, len(names)-1).Draw(t, "restore"), len(names) - 1}) {
			name := names[i]
			round++
			dir := filepath.Join(base, fmt.Sprint(round))
			plan, report, err := g.fetch(g.store, dir, name, nil)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got := restored(dir)
			for path, r := range were[i] {
				want := fmt.Sprintf("%o ", r.mode) + string(r.content(path))
				if got[path] != want {
					t.Errorf("%s: %s %s", name, path, difference(got[path], want))
				}
				delete(got, path)
			}
			for path := range got {
				t.Errorf("%s: %s is there, and was not", name, path)
			}
			if report.Files != int64(len(were[i])) || (i > 0) != (len(plan.Chain) == i+1) {
				t.Errorf("%s: %d files reported, %d were; chain %+v", name, report.Files, len(were[i]), plan.Chain)
			}
			if label := must2(os.ReadFile(filepath.Join(dir, "backup_label"))); string(label) != g.label(i) {
				t.Errorf("%s: the label is %q", name, label)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// difference says where two files differ.
func difference(got, want string) string {
	if len(got) != len(want) {
		return fmt.Sprintf("has %d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Sprintf("differs in byte %d, block %d", i, i/page.Size)
		}
	}
	return "is the same"
}

// A block that an older backup has and a newer one says was zero since, or was cut off since, stays zero: where the newest
// increment holds the page of zeros itself, and where the file grew again without the page being written.
func TestOldPagesDoNotComeBack(t *testing.T) {
	g := &walG{store: &storetest.Memory{}, method: compress.LZ4}
	const one = "base/5/1"
	content := somePages(one, []int{1, 1, 1, 1, 0, 0})
	steps := [][]byte{
		somePages(one, []int{1, 1, 1, 1}),
		incrementOf(content[:2*page.Size], nil),         // cut off
		incrementOf(content[:2*page.Size], []uint32{0}), // written as it was
		incrementOf(append(make([]byte, page.Size), somePages(one, []int{0, 1, 0, 0, 0, 0})[page.Size:]...), []uint32{0}), // the first is zeros, and it grew
	}
	for i, b := range steps {
		m := []member{{path: one, content: b, incremented: i > 0, mode: 0o600}}
		if i == 0 {
			g.full(m)
		} else {
			g.delta(m)
		}
	}
	dir := filepath.Join(t.TempDir(), "data")
	if _, _, err := g.fetch(g.store, dir, "LATEST", nil); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, one), string(somePages(one, []int{0, 1, 0, 0, 0, 0})))
}

// threeDeep is a chain of a full backup and three deltas. base/5/1 has version 1 of five pages, of which one is changed by each
// delta; base/5/2 stays as it is; base/5/3 goes in the second delta.
func threeDeep(g *walG) []string {
	g.store, g.n, g.last = &storetest.Memory{}, 0, ""
	versions := []int{1, 1, 1, 1, 1}
	one, two, three := "base/5/1", "base/5/2", "base/5/3"
	names := []string{g.full([]member{
		{path: one, content: somePages(one, versions), mode: 0o600},
		{path: two, content: somePages(two, []int{1, 1}), mode: 0o600},
		{path: three, content: somePages(three, []int{1, 1}), mode: 0o600},
	})}
	for i := 2; i <= 4; i++ {
		versions[i-1] = i
		members := []member{
			{path: one, content: incrementOf(somePages(one, versions), []uint32{uint32(i - 1)}), incremented: true, mode: 0o600},
			{path: two, skipped: true},
		}
		if i < 3 {
			members = append(members, member{path: three, skipped: true})
		}
		names = append(names, g.delta(members))
	}
	return names
}

// What is not there that should be is noticed, and the error says of what it is.
func TestChainsThatLackSomething(t *testing.T) {
	g := &walG{method: compress.None, perPart: 1}
	names := threeDeep(g)
	part := func(backup int, number int) string {
		return archive.Folder(names[backup]) + fmt.Sprintf("tar_partitions/part_%03d.tar", number)
	}
	if _, _, err := g.fetch(g.store, filepath.Join(t.TempDir(), "data"), "LATEST", nil); err != nil {
		t.Fatal(err)
	}
	remove := func(object string) func() {
		return func() {
			if err := g.store.Delete(t.Context(), object); err != nil {
				t.Fatal(err)
			}
		}
	}
	edit := func(object string, was, is string) func() {
		return func() {
			b := must2(store.ReadFile(t.Context(), g.store, object, 1<<20))
			if !bytes.Contains(b, []byte(was)) {
				t.Fatalf("%s does not hold %q", object, was)
			}
			if err := g.store.Put(t.Context(), object, strings.NewReader(strings.Replace(string(b), was, is, 1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	list := func(backup int) string { return archive.Folder(names[backup]) + "files_metadata.json" }
	for what, x := range map[string]struct {
		do   func()
		says string
	}{
		"the whole file's part":            {remove(part(0, 1)), "part_001.tar of " + names[0] + ", which holds base/5/1, is missing"},
		"a part that is skipped to":        {remove(part(0, 2)), "which holds base/5/2, is missing"},
		"an increment's part":              {remove(part(2, 1)), "part_001.tar of " + names[2]},
		"a list":                           {remove(list(1)), "cannot be restored without its list of files"},
		"the whole file, part is there":    {edit(part(0, 1), "base/5/1", "base/5/X"), "base/5/1: the list of " + names[0] + " has it, its parts do not, from which block 0 and 1 others were to come"},
		"a whole file that is skipped to":  {edit(part(0, 2), "base/5/2", "base/5/X"), "base/5/2: the list of " + names[0] + " has it"},
		"an increment, part is there":      {edit(part(2, 1), "base/5/1", "base/5/X"), "base/5/1: by their lists 4 backups hold something of it, by their parts 3"},
		"the newest increment":             {edit(part(3, 1), "base/5/1", "base/5/X"), "base/5/1: by their lists 4 backups"},
		"a line of the parent's list":      {edit(list(2), `"/base/5/2"`, `"/base/5/X"`), names[3] + " builds on base/5/2 of " + names[2] + ", whose list does not name it"},
		"the newest list says whole":       {edit(list(3), `"IsIncremented":true`, `"IsIncremente":true `), "lacks IsIncremented"},
		"the full backup's list says skip": {edit(list(0), `"IsSkipped":false`, `"IsSkipped":true`), "is a full backup, and its list says"},
	} {
		threeDeep(g)
		x.do()
		if strings.HasPrefix(x.says, "base/5/") { // that of a tar header
			for _, p := range []string{part(0, 1), part(0, 2), part(2, 1), part(3, 1)} {
				resum(t, g.store, p)
			}
		}
		dir := filepath.Join(t.TempDir(), "data")
		_, _, err := g.fetch(g.store, dir, names[3], nil)
		if err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q", what, err, x.says)
		}
		if _, err := os.Stat(filepath.Join(dir, control.Name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: there is a pg_control: %v", what, err)
		}
	}
}

// resum makes the checksum of a tar stream's first header right again.
func resum(t *testing.T, s store.Store, object string) {
	t.Helper()
	b, err := store.ReadFile(t.Context(), s, object, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	if err := s.Put(t.Context(), object, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
}

// Of parents only the parts are read that hold something the newer backups leave to them; the plan says so before.
func TestChainReadsLittle(t *testing.T) {
	g := &walG{method: compress.LZ4, perPart: 1}
	names := threeDeep(g)
	s := &reading{Store: g.store}
	plan, report, err := g.fetch(s, filepath.Join(t.TempDir(), "data"), names[3], nil)
	if err != nil {
		t.Fatal(err)
	}
	// base/5/3 is in the full backup's third part, and gone since; the first part read tells the owner.
	slices.Sort(s.parts)
	want := []string{"part_001.tar.lz4 whole", "part_001.tar.lz4 whole", "part_001.tar.lz4 whole", "part_001.tar.lz4 whole", "part_002.tar.lz4 whole"}
	if os.Geteuid() == 0 {
		want = slices.Insert(want, 0, "part_001.tar.lz4 whole")
	}
	if !slices.Equal(s.parts, want) {
		t.Errorf("read %q, want %q", s.parts, want)
	}
	if plan.Parts != 3+1+1+2 || len(plan.Chain) != 4 || plan.Chain[3].Parts != 2 || plan.Chain[3].Of != 5 || plan.Chain[1].Backup != names[2] {
		t.Errorf("planned %d parts, chain %+v", plan.Parts, plan.Chain)
	}
	var stored int64
	for _, l := range plan.Chain {
		stored += l.Stored
	}
	if plan.Stored != stored || stored == 0 || report.Verified {
		t.Errorf("%d bytes stored, %d in the chain; verified %t", plan.Stored, stored, report.Verified)
	}
	if notes := strings.Join(plan.Notes, "\n"); !strings.Contains(notes, "on top of the full backup "+names[0]+": 2 of 5 parts") {
		t.Errorf("the notes do not tell the chain: %s", notes)
	}
}

// A mask takes single files from a chain.
func TestMaskOnAChain(t *testing.T) {
	g := &walG{method: compress.LZ4, perPart: 1}
	names := threeDeep(g)
	for mask, want := range map[string][]string{"base/5/1": {"base/5/1"}, "base/*/2": {"base/5/2"}, "backup_label": {"backup_label"}} {
		dir := filepath.Join(t.TempDir(), "data")
		plan, _, err := g.fetch(g.store, dir, names[3], func(r *restore.Request) { r.Mask = mask })
		if mask == "backup_label" {
			var refusal *restore.RefusedError
			if !errors.As(err, &refusal) {
				t.Errorf("%s: %v", mask, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := files(t, dir); !slices.Equal(got, want) {
			t.Errorf("%s restored %q, want %q", mask, got, want)
		}
		if mask == "base/5/1" {
			holds(t, filepath.Join(dir, mask), string(somePages(mask, []int{1, 2, 3, 4, 1})))
		} else if plan.Chain[0].Parts != 2 { // those of control file and label
			t.Errorf("%s: %+v", mask, plan.Chain)
		}
	}
}

// A restore of a chain that was interrupted, wherever it was, is brought to its end by the next one.
func TestChainResumes(t *testing.T) {
	g := &walG{method: compress.LZ4, perPart: 1}
	names := threeDeep(g)
	for n := 0; ; n++ {
		dir := filepath.Join(t.TempDir(), "data")
		flaky := storetest.FailAt(g.store, n)
		_, _, err := g.fetch(flaky, dir, names[3], nil)
		if !flaky.Reached() {
			if n < 20 {
				t.Errorf("only %d calls", n)
			}
			break
		}
		if err == nil {
			continue // what failed was not needed: metadata
		}
		if !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("call %d failed, and the error is %v", n, err)
		}
		resume := func(r *restore.Request) { r.Resume = true }
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			resume = nil // it was planned only
		}
		if _, _, err := g.fetch(g.store, dir, names[3], resume); err != nil {
			t.Errorf("call %d failed, the next attempt: %v", n, err)
			continue
		}
		holds(t, filepath.Join(dir, "base/5/1"), string(somePages("base/5/1", []int{1, 2, 3, 4, 1})))
		holds(t, filepath.Join(dir, "base/5/2"), string(somePages("base/5/2", []int{1, 1})))
		if _, err := os.Stat(filepath.Join(dir, "base/5/3")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("base/5/3 is there: %v", err)
		}
	}
}
