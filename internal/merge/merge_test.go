package merge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/crypt"
	"holdfast/internal/merge"
	"holdfast/internal/pg/page"
	"holdfast/internal/restore"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// ageKey is a new key, of which what is encrypted can be read in pieces.
func ageKey() crypt.Key {
	id := must(age.GenerateX25519Identity())
	return must(crypt.Open(context.Background(), crypt.Options{Age: crypt.AgeKeys{Recipients: id.Recipient().String(), Identities: id.String()}}))
}

// plain is a store that cannot copy, nor decide atomically.
type plain struct{ store.Store }

// grow makes a cluster with a full backup and some deltas.
func grow(seed uint64, s store.Store) *cluster {
	c := newCluster(seed, s)
	c.options.Method = methods[seed%uint64(len(methods))]
	c.perPart = 1 + int(seed%7)
	c.noSums = seed%5 == 4
	if seed%6 == 5 {
		c.options.Key = ageKey()
	}
	for range 3 {
		c.change()
	}
	c.backup(false)
	for range 1 + c.random.IntN(5) {
		c.change()
		c.backup(true)
	}
	return c
}

// What a merge makes restores to what the chain restored to, bytes, modes and times, once the chain is gone. Its manifest says of files what the
// newest backup said, and it is a full backup of the same moment.
func TestMergedIsWhatTheChainWas(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			var s store.Store = &storetest.Memory{}
			if seed%3 == 0 {
				s = plain{s}
			}
			c := grow(seed, s)
			name := c.last()
			want := restored(t, s, c.options, name)
			old := must(c.archive().Sentinel(t.Context(), name))
			p, r, err := merged(s, c.options, name, merge.Options{Workers: 2, PartSize: []int64{0, 40 << 10}[seed%2], Tool: "merger"})
			if err != nil {
				t.Fatal(err)
			}
			if r.Name != "base_"+name[5:29] || !slices.Equal(r.Unneeded, r.Chain) || len(r.Chain) != len(c.names) {
				t.Errorf("report %+v", r)
			}
			if r.Files != p.Files || r.CopiedParts != int64(p.CopiedParts) || r.CopiedBytes != p.CopiedBytes {
				t.Errorf("report %+v does not fit the plan %+v", r, p)
			}
			if left := r.UncompressedSize - p.Bytes; left < 0 || left > 1000 { // the label
				t.Errorf("the plan has %d bytes of content, the backup %d", p.Bytes, r.UncompressedSize)
			}
			for _, old := range c.names {
				remove(s, old)
			}
			same(t, "merged", restored(t, s, c.options, r.Name), want)
			checkManifest(t, c, r)
			got := must(c.archive().Sentinel(t.Context(), r.Name))
			if *got.LSN != *old.LSN || *got.FinishLSN != *old.FinishLSN || !got.StartTime.Equal(old.StartTime) || !got.FinishTime.Equal(old.FinishTime) || got.DeltaFrom != "" ||
				got.DeltaLSN != nil || got.DeltaCount != 0 || got.Parent != "" || got.DeltaSource != "" || string(got.UserData) != string(old.UserData) || got.Tool != "merger" {
				t.Errorf("sentinel %+v of %+v", got, old)
			}
			if m := got.Merged; m == nil || m.Backup != name || m.Sum != old.Sum || !slices.Equal(m.Chain, r.Chain) {
				t.Errorf("it says that it was merged from %+v", m)
			}
			if _, err := c.archive().Metadata(t.Context(), r.Name); err != nil {
				t.Error(err)
			}
		})
	}
}

// checkManifest compares what the manifest and WAL-G's list say with the cluster.
func checkManifest(t *testing.T, c *cluster, r *merge.Report) {
	t.Helper()
	ctx, a := t.Context(), c.archive()
	m := must(a.OpenManifest(ctx, r.Name))
	defer m.Close()
	sizes := map[string]int64{}
	for _, p := range must(a.Parts(ctx, r.Name)) {
		sizes[p.Name] = p.Size
	}
	in := map[string]string{} // what is in which part
	var bad int64
	for {
		p, err := m.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if sizes[p.Name] != p.Size {
			t.Errorf("%s has %d bytes, the manifest says %d", p.Name, sizes[p.Name], p.Size)
		}
		for _, one := range p.Members {
			if in[one.Path] != "" || one.Increment != nil {
				t.Errorf("%s is in %s and %s", one.Path, in[one.Path], p.Name)
			}
			in[one.Path] = p.Name
			n := c.now[one.Path]
			if n == nil {
				continue // control file and label
			}
			if !one.ModTime.Equal(n.modTime) || one.Perm() != n.mode || one.Link != n.link {
				t.Errorf("%s has mode %s and time %s, was %s and %s", one.Path, one.Perm(), one.ModTime, n.mode, n.modTime)
			}
			if n.dir || n.link != "" {
				continue
			}
			if one.Inode != n.inode || !one.Changed.Equal(n.modTime) || one.Size != int64(len(n.content)) {
				t.Errorf("%s is %+v", one.Path, one)
			}
			if paged(one.Path) != (one.Pages > 0) && len(n.content) > 0 {
				t.Errorf("%s has %d pages", one.Path, one.Pages)
			}
			was := slices.Sorted(maps.Keys(c.bad[one.Path]))
			if slices.Sort(one.Corrupt); !slices.Equal(one.Corrupt, was) || one.CorruptCount != len(was) {
				t.Errorf("%s: corrupt are %d, %v, were %v", one.Path, one.CorruptCount, one.Corrupt, was)
			}
			bad += int64(len(was))
		}
	}
	if s := must(a.Sentinel(ctx, r.Name)); s.CorruptBlocks != bad || r.CorruptBlocks != bad || s.Manifest != m.Sum() {
		t.Errorf("the sentinel has %d corrupt blocks, there are %d; its manifest is %s, is %s", s.CorruptBlocks, bad, s.Manifest, m.Sum())
	}
	for path := range c.now {
		if in[path] == "" {
			t.Errorf("%s is missing", path)
		}
	}
	// Stock WAL-G extracts what the list names, out of the parts themselves.
	listed := map[string]bool{}
	err := a.ReadFileList(ctx, r.Name, must(a.Sentinel(ctx, r.Name)), archive.FileListVisitor{File: func(f archive.ListedFile) error {
		if f.Incremented || f.Skipped {
			t.Errorf("the list has %+v", f)
		}
		listed[f.Path] = true
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range must(a.Parts(ctx, r.Name)) {
		body := must(a.OpenPart(ctx, r.Name, p))
		err := tarpart.Each(body, func(h tarpart.Header, content io.Reader) error {
			n := c.now[h.Path]
			if n == nil {
				return nil
			}
			b, err := io.ReadAll(content)
			if in[h.Path] != p.Name || string(b) != string(n.content) || fs.FileMode(h.Mode) != n.mode || !listed[h.Path] || h.UID != 26 || h.GID != 27 {
				t.Errorf("%s in %s: %+v, %d bytes, want %s in %s, %d bytes", h.Path, p.Name, h, len(b), n.mode, in[h.Path], len(n.content))
			}
			if !n.dir && n.link == "" && !h.ModTime.Equal(n.modTime.Round(time.Second)) {
				t.Errorf("%s has time %s in its header, was %s", h.Path, h.ModTime, n.modTime)
			}
			return err
		})
		if err = errors.Join(err, body.Close()); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

// A part of which all is as it was is copied as it is stored, by the store where that can; a part in which anything differs is made anew.
func TestUnchangedPartsAreCopied(t *testing.T) {
	for _, copies := range []bool{true, false} {
		memory := &storetest.Memory{}
		var s store.Store = memory
		if !copies {
			s = plain{s}
		}
		c := newCluster(1, s)
		c.perPart, c.tidy = 1, true
		c.sizes = []int{20}
		for _, path := range paths {
			c.create(path)
		}
		c.backup(false)
		n := *c.now["base/5/1"]
		n.content = append(slices.Clone(n.content), c.newPage("base/5/1", 20)...)
		n.modTime = c.tick()
		c.now["base/5/1"] = &n
		c.backup(true)
		want := restored(t, s, c.options, c.last())
		flaky := storetest.FailAt(s, -1)
		p, r, err := merged(flaky, c.options, "LATEST", merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if copied := int64(len(paths) - 1 + 2); r.CopiedParts < copied-2 || r.MadeParts > 3 {
			t.Errorf("copies %t: %+v, want about %d copied", copies, r, copied)
		}
		if r.ReadBytes > 22*page.Size*2 {
			t.Errorf("copies %t: %d bytes were read, of a file of %d and one page more", copies, r.ReadBytes, 20*page.Size)
		}
		if p.WriteBytes < 21*page.Size || p.WriteBytes > 25*page.Size || p.CopiedBytes == 0 {
			t.Errorf("copies %t: plan %+v", copies, p)
		}
		same(t, "merged", restored(t, s, c.options, r.Name), want)
	}
}

// Files larger than what is read ahead, of parts larger than what a worker takes at once, are merged too, and what lies between is not read.
func TestLargeFiles(t *testing.T) {
	s := &storetest.Memory{}
	c := newCluster(3, s)
	c.perPart, c.tidy, c.sizes = 100, true, []int{2600}
	large := []string{"base/5/1", "base/5/1.1", "base/5/2", "base/5/3", "base/6/1"}
	for _, path := range large {
		c.create(path)
	}
	c.backup(false)
	write := func(path string, every int) {
		n := *c.now[path]
		n.content, n.modTime = slices.Clone(n.content), c.tick()
		for i := 0; i < len(n.content)/page.Size; i++ {
			if c.random.IntN(every) != 0 {
				copy(n.content[i*page.Size:], c.newPage(path, i))
			}
		}
		c.now[path] = &n
	}
	write("base/5/1", 3)
	write("base/5/3", 2)
	c.create("base/5/2") // with nothing of what it was
	c.was["base/5/2"] = nil
	c.backup(true)
	for _, path := range []string{"base/5/1", "base/6/1"} {
		n := *c.now[path]
		n.content, n.modTime = slices.Clone(n.content), c.tick()
		for i := 0; i < len(n.content)/page.Size; i += 400 {
			copy(n.content[i*page.Size:], c.newPage(path, i))
		}
		c.now[path] = &n
	}
	c.backup(true)
	want := restored(t, s, c.options, c.last())
	_, r, err := merged(s, c.options, c.last(), merge.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range c.names {
		remove(s, name)
	}
	same(t, "merged", restored(t, s, c.options, r.Name), want)
	if most := int64(2600*page.Size) * int64(len(large)) * 3 / 2; r.ReadBytes > most {
		t.Errorf("%d bytes were read for files of %d", r.ReadBytes, r.UncompressedSize)
	}
}

// A delta builds on what was merged as on any full backup, and again that can be merged.
func TestDeltaOnMerged(t *testing.T) {
	for seed := range uint64(10) {
		s := &storetest.Memory{}
		c := grow(seed, s)
		for range 3 {
			_, r, err := merged(s, c.options, c.last(), merge.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, old := range c.names {
				remove(s, old)
			}
			c.names = []string{r.Name}
			c.change()
			c.backup(true)
			want := restored(t, s, c.options, c.last())
			if _, r, err = merged(s, c.options, c.last(), merge.Options{}); err != nil {
				t.Fatal(err)
			}
			same(t, "merged again", restored(t, s, c.options, r.Name), want)
			remove(s, r.Name)
		}
	}
}

// The full backup that a delta became is the newest one where the delta was, and not where it was not. Merging it again does nothing.
func TestMergeAgain(t *testing.T) {
	s := &storetest.Memory{}
	c := grow(2, s)
	first := c.last()
	c.change()
	newer := c.backup(true)
	_, r, err := merged(s, c.options, first, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	// The newer delta builds on the first, so that nothing may go.
	if len(r.Unneeded) != 0 {
		t.Errorf("no longer needed are %v, though %s builds on them", r.Unneeded, newer)
	}
	if b := must(must(catalog.Load(t.Context(), c.archive())).Latest()); b.Name != newer {
		t.Errorf("LATEST is %s, want %s", b.Name, newer)
	}
	objects := count(s)
	p, r, err := merged(s, c.options, first, merge.Options{})
	if err != nil || p.Nothing == "" || r.Nothing == "" || r.Name != "base_"+first[5:29] || count(s) != objects {
		t.Errorf("a second time: %+v, %v; %d objects, were %d", r, err, count(s), objects)
	}
	if _, r, err = merged(s, c.options, newer, merge.Options{}); err != nil || len(r.Unneeded) != len(r.Chain) {
		t.Errorf("%+v, %v", r, err)
	}
	if b := must(must(catalog.Load(t.Context(), c.archive())).Latest()); b.Name != r.Name {
		t.Errorf("LATEST is %s, want %s", b.Name, r.Name)
	}
	p, _, err = merged(s, c.options, "LATEST", merge.Options{})
	if err != nil || !strings.Contains(p.Nothing, "is a full backup") {
		t.Errorf("merging a full backup: %+v, %v", p, err)
	}
}

func count(s store.Store) int { return len(objects(s)) }

func objects(s store.Store) (names []string) {
	for o, err := range store.Walk(context.Background(), s, "") {
		if err != nil {
			panic(err)
		}
		names = append(names, o.Name)
	}
	return names
}

// What cannot be merged is refused before anything is written, in words that say what to do.
func TestRefusals(t *testing.T) {
	s := &storetest.Memory{}
	c := grow(1, s)
	before := count(s)
	refused := func(what, words string, o archive.Options) {
		t.Helper()
		_, _, err := merged(s, o, c.last(), merge.Options{})
		var r *merge.RefusedError
		if !errors.As(err, &r) || !strings.Contains(err.Error(), words) || r.Hint() == "" {
			t.Errorf("%s: %v", what, err)
		}
		if n := count(s); n != before {
			t.Errorf("%s: %d objects, were %d", what, n, before)
		}
	}
	refused("public key only", "public keys only", archive.Options{WriteOnly: true})

	object := archive.Folder(c.names[0]) + "manifest.json.zst"
	kept := must(store.ReadFile(t.Context(), s, object, 1<<20))
	if err := s.Delete(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	before--
	refused("a full backup of WAL-G", "was taken by another program", c.options)
	if err := s.Put(t.Context(), object, strings.NewReader(string(kept))); err != nil {
		t.Fatal(err)
	}
	before++

	d := must(c.archive().Begin(t.Context(), "base_"+c.last()[5:29], "here"))
	sentinel := *must(c.archive().Sentinel(t.Context(), c.names[0]))
	if err := d.Commit(t.Context(), &sentinel); err != nil {
		t.Fatal(err)
	}
	before = count(s)
	refused("a full backup of that name", "another backup of the name", c.options)

	if _, _, err := merged(s, c.options, "base_000000010000000000000099", merge.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a backup that is not there: %v", err)
	}
}

// Whichever call to the store fails, before, in the middle or after it was done, Run says so and nothing is left, or the backup is made whole.
func TestRunFailsWhole(t *testing.T) {
	for name, fail := range map[string]func(store.Store, int) *storetest.Flaky{"at": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		for _, seed := range []uint64{5, 6} {
			s := &storetest.Memory{}
			c := grow(seed, s)
			before, want := objects(s), restored(t, s, c.options, c.last())
			full := "base_" + c.last()[5:29]
			for n := 0; ; n++ {
				flaky := fail(s, n)
				_, _, err := merged(flaky, c.options, c.last(), merge.Options{Workers: 2})
				if !flaky.Reached() {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				if err == nil {
					same(t, fmt.Sprintf("%s %d, %s", name, n, last(flaky)), restored(t, s, c.options, full), want)
				} else if !errors.Is(err, storetest.ErrInjected) {
					t.Errorf("%s call %d, %s: %v", name, n, last(flaky), err)
				}
				if err == nil {
					remove(s, full)
				}
				if got := objects(s); !slices.Equal(got, before) {
					t.Fatalf("%s call %d, %s: left is %q", name, n, last(flaky), slices.DeleteFunc(got, func(o string) bool { return slices.Contains(before, o) }))
				}
			}
		}
	}
}

func last(f *storetest.Flaky) string {
	calls := f.Calls()
	return calls[len(calls)-1]
}

// Damage in any part, sums or manifest of a chain does not become a backup: it is told, or it lies in what is not needed, or a part is copied with it,
// which a restore tells then.
func TestDamageIsTold(t *testing.T) {
	told := 0
	for seed := range uint64(3) {
		s := &storetest.Memory{}
		c := grow(seed, s)
		want := restored(t, s, c.options, c.last())
		var objects []string
		for o, err := range store.Walk(t.Context(), s, archive.BackupDir) {
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(o.Name, "tar_partitions/") || strings.Contains(o.Name, "page_sums/") || strings.Contains(o.Name, "manifest") {
				objects = append(objects, o.Name)
			}
		}
		full := "base_" + c.last()[5:29]
		for _, object := range objects {
			whole := must(store.ReadFile(t.Context(), s, object, 1<<30))
			b := slices.Clone(whole)
			b[c.random.IntN(len(b))] ^= 1 << c.random.IntN(8)
			if err := s.Put(t.Context(), object, strings.NewReader(string(b))); err != nil {
				t.Fatal(err)
			}
			_, _, err := merged(s, c.options, c.last(), merge.Options{})
			if err != nil {
				told++
				if _, err := s.Stat(t.Context(), archive.BackupDir+full+"_backup_stop_sentinel.json"); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is damaged, and there is a backup: %v", object, err)
				}
			} else if got, err := tryRestore(t, s, c, full); err == nil {
				same(t, object, got, want)
			}
			remove(s, full)
			if err := s.Put(t.Context(), object, strings.NewReader(string(whole))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if told < 15 {
		t.Errorf("%d damages were told", told)
	}
}

// tryRestore restores a backup that may be damaged.
func tryRestore(t *testing.T, s store.Store, c *cluster, name string) (map[string]string, error) {
	ctx, a := t.Context(), c.archive()
	choice := must(must(catalog.Load(ctx, a)).Choose(name, catalog.Target{}))
	p, err := restore.Decide(ctx, a, restore.Request{Destination: t.TempDir() + "/data", Choice: choice})
	if err == nil {
		_, err = restore.Run(ctx, a, p, restore.Options{})
	}
	if err != nil {
		return nil, err
	}
	return restored(t, s, c.options, name), nil
}
