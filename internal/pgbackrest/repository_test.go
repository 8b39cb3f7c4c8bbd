package pgbackrest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pgbackrest"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// opened is a backup that a test looks at.
type opened struct {
	*pgbackrest.Repository
	info     *pgbackrest.Info
	manifest *pgbackrest.Manifest
	entry    *catalog.Backup
	wal      *archive.Archive
}

// open opens a backup, as all that restore or verify one do.
func open(ctx context.Context, st store.Store, passphrase, label string) (*opened, error) {
	o := &opened{}
	var err error
	if o.Repository, err = pgbackrest.New(st, pgbackrest.Options{Stanza: stanza, Passphrase: passphrase}); err != nil {
		return nil, err
	}
	if o.info, err = o.Info(ctx); err != nil {
		return nil, err
	}
	b, err := o.info.Find(label)
	if err != nil {
		return nil, err
	}
	wals, err := o.WALInfo(ctx)
	if err != nil {
		return nil, err
	}
	c := o.info.Cluster(b)
	o.wal = o.WAL(wals, c)
	all, err := o.info.Catalog(ctx, o.wal, c)
	if err != nil {
		return nil, err
	}
	choice, err := all.Choose(label, catalog.Target{}) // what it builds on is there
	if err != nil {
		return nil, err
	}
	o.entry = choice.Backup
	if o.manifest, err = o.Manifest(ctx, o.info, b); err != nil {
		return nil, err
	}
	return o, o.manifest.Describe(o.entry)
}

// contents reads a backup by its batches, by names of pgBackRest.
func (o *opened) contents(ctx context.Context) (map[string]string, error) {
	all := map[string]string{}
	for batch := range o.Batches(o.manifest) {
		err := batch(ctx, func(*tarpart.Member, func(io.Reader) (bool, error)) bool { return false }, func(m *tarpart.Member, content io.Reader) error {
			if m.Type != tarpart.File {
				return nil
			}
			b, err := io.ReadAll(content)
			name := m.Path
			if !strings.HasPrefix(name, "pg_tblspc/") {
				name = "pg_data/" + name
			}
			if _, twice := all[name]; twice {
				return errors.New(name + " comes twice")
			}
			all[name] = string(b)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// noise is content that compresses somewhat.
func noise(random *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.IntN(8))
	}
	return string(b)
}

// change makes the files of a next backup out of those of the last.
func change(files map[string]string, random *rand.Rand) map[string]string {
	next := maps.Clone(files)
	next["pg_data/backup_label"] = noise(random, 100)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		b := []byte(files[name])
		switch random.IntN(6) {
		case 0: // some blocks
			for range 1 + random.IntN(4) {
				if len(b) > 0 {
					b[random.IntN(len(b))]++
				}
			}
		case 1:
			b = append(b, noise(random, random.IntN(40000))...)
		case 2:
			b = b[:random.IntN(len(b)+1)]
		case 3:
			if random.IntN(3) == 0 {
				delete(next, name)
				continue
			}
		}
		next[name] = string(b)
	}
	if random.IntN(2) == 0 {
		next[fmt.Sprintf("pg_tblspc/16384/PG_15_202209061/5/%d=x", random.IntN(1000))] = noise(random, random.IntN(60000))
	}
	next["pg_data/global/pg_control"] = noise(random, 8192)
	return next
}

// first is the files of a first backup.
func first(random *rand.Rand) map[string]string {
	files := map[string]string{"pg_data/PG_VERSION": "15\n", "pg_data/base/5/empty": "", "pg_data/global/pg_control": noise(random, 8192), "pg_data/backup_label": "x"}
	for i := range 2 + random.IntN(5) {
		files[fmt.Sprintf("pg_data/base/5/%d", 16384+i)] = noise(random, 8192*random.IntN(12))
	}
	files["pg_tblspc/16384/PG_15_202209061/5/1"] = noise(random, 1+random.IntN(60000))
	return files
}

var styles = []style{
	{codec: "none", old: true}, {codec: "gz", old: true, passphrase: "p"}, {codec: "zst", old: true, bundle: true, passphrase: "p"},
	{codec: "none", bundle: true, raw: true, blocks: true}, {codec: "zst", bundle: true, raw: true, blocks: true, passphrase: "p"},
	{codec: "lz4", bundle: true, raw: true, blocks: true}, {codec: "gz", bundle: true, raw: true, blocks: true, passphrase: "p"},
}

// history writes some backups.
func history(t testing.TB, s style, random *rand.Rand, n int) *repository {
	r := newRepository(s)
	files := first(random)
	for i := range n {
		kind := []string{"full", "diff", "incr", "incr"}[random.IntN(4)]
		if i == 0 {
			kind = "full"
		}
		r.add(t, kind, files, random)
		files = change(files, random)
	}
	return r
}

// Whatever was backed up in whatever order and style, each backup yields the files it had.
func TestBackupsReadBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.SampledFrom(styles).Draw(rt, "style")
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		r := history(t, s, random, rapid.IntRange(1, 7).Draw(rt, "backups"))
		for _, b := range r.backups {
			o, err := open(t.Context(), r.store, s.passphrase, b.label)
			if err != nil {
				rt.Fatalf("%s: %v", b.label, err)
			}
			got, err := o.contents(t.Context())
			if err != nil {
				rt.Fatalf("%s: %v", b.label, err)
			}
			if !maps.Equal(got, b.files) {
				rt.Fatalf("%s: other files", b.label)
			}
			for i := range o.manifest.Files {
				f := &o.manifest.Files[i]
				content, err := o.OpenFile(t.Context(), o.manifest, f)
				if err != nil {
					rt.Fatal(err)
				}
				n, err := io.Copy(io.Discard, content)
				if err = errors.Join(err, content.Close()); err != nil || n != f.Size {
					rt.Fatalf("%s: %d bytes of %d, %v", f.Path, n, f.Size, err)
				}
			}
		}
	})
}

// What the manifest says beside the files arrives too.
func TestManifest(t *testing.T) {
	r := history(t, styles[4], rand.New(rand.NewPCG(1, 1)), 3)
	o, err := open(t.Context(), r.store, "p", r.backups[2].label)
	if err != nil {
		t.Fatal(err)
	}
	m := o.manifest
	if m.DataDir != "/srv/data" || m.User != "postgres" || !m.Online || len(m.Tablespaces) != 1 || m.Tablespaces[0] != (pgbackrest.Tablespace{OID: "16384", Location: "/srv/space"}) {
		t.Errorf("%+v", m)
	}
	modes := map[string]uint32{}
	for member := range m.Members() {
		if err := member.Check(); err != nil {
			t.Error(err)
		}
		modes[member.Path] = member.Mode
	}
	for path, want := range map[string]uint32{".": 0o700, "base": 0o750, "pg_tblspc": 0o700, "PG_VERSION": 0o600} {
		if modes[path] != want {
			t.Errorf("%s has the mode %o, want %o", path, modes[path], want)
		}
	}
	if spec := o.entry.Sentinel.Spec; spec == nil || spec.BasePrefix != "/srv/data" || len(spec.Tablespaces) != 1 || spec.Tablespaces[0].Location != "/srv/space" {
		t.Errorf("the tablespaces are %+v", spec)
	}
}

// verify opens a backup and verifies it; where it cannot be opened that is the one problem.
func verify(ctx context.Context, st store.Store, passphrase, label string) (*pgbackrest.Verification, error) {
	o, err := open(ctx, st, passphrase, label)
	if err != nil {
		return nil, err
	}
	return o.Verify(ctx, o.manifest, o.entry, o.wal, 2, nil)
}

// Whatever happens to an object that a backup needs is found: a bit, its end, itself, its place.
func TestDamageIsFound(t *testing.T) {
	for _, s := range styles {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			random := rand.New(rand.NewPCG(7, 7))
			r := history(t, s, random, 1)
			files := r.backups[0].files
			for _, kind := range []string{"diff", "incr"} {
				files = change(files, random)
				r.add(t, kind, files, random)
			}
			label := r.backups[2].label
			if v, err := verify(t.Context(), r.store, s.passphrase, label); err != nil || !v.OK() || v.Segments != 1 || v.Files != int64(len(files)) {
				t.Fatalf("%+v, %v", v, err)
			}
			used := needed(t, r, label)
			var objects []store.Object
			for o, err := range store.Walk(t.Context(), r.store, "") {
				if err != nil {
					t.Fatal(err)
				}
				objects = append(objects, o)
			}
			for i, o := range objects {
				was, err := store.ReadFile(t.Context(), r.store, o.Name, 1<<30)
				if err != nil {
					t.Fatal(err)
				}
				other, err := store.ReadFile(t.Context(), r.store, objects[(i+1)%len(objects)].Name, 1<<30)
				if err != nil {
					t.Fatal(err)
				}
				flipped, tail := bytes.Clone(was), bytes.Clone(was)
				flipped[random.IntN(len(was))] ^= 1 << random.IntN(8)
				tail[len(was)-1] ^= 0x10
				for what, bad := range map[string][]byte{"a bit": flipped, "the end": tail, "truncated": was[:random.IntN(len(was))], "empty": {}, "another object": other, "gone": nil} {
					if bad == nil {
						err = r.store.Delete(t.Context(), o.Name)
					} else {
						err = r.store.Put(t.Context(), o.Name, bytes.NewReader(bad))
					}
					if err != nil {
						t.Fatal(err)
					}
					v, err := verify(t.Context(), r.store, s.passphrase, label)
					found := err != nil || !v.OK()
					document := strings.HasSuffix(o.Name, ".info") || strings.HasSuffix(o.Name, "backup.manifest") // has a copy
					switch {
					case found && !used[o.Name]:
						t.Errorf("%s: %s is found, and the backup does not need it: %+v, %v", o.Name, what, v, err)
					case !found && used[o.Name] && !document && (what == "gone" || what == "empty"):
						t.Errorf("%s: %s is not found", o.Name, what)
					case !found && !harmless(t, r, s, label, files): // what comes behind the content in its codec matters to nobody
						t.Errorf("%s: %s: other files, and nothing was found", o.Name, what)
					}
				}
				r.put(t, o.Name, was)
			}
		})
	}
}

// harmless reports whether a backup yields what it must.
func harmless(t *testing.T, r *repository, s style, label string, files map[string]string) bool {
	t.Helper()
	o, err := open(t.Context(), r.store, s.passphrase, label)
	if err != nil {
		return false
	}
	got, err := o.contents(t.Context())
	return err == nil && maps.Equal(got, files)
}

// asked notes which objects are read.
type asked struct {
	store.Store
	mu    sync.Mutex
	names map[string]bool
}

func (a *asked) note(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names[name] = true
}

func (a *asked) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	a.note(name)
	return a.Store.Open(ctx, name)
}

func (a *asked) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	a.note(name)
	return a.Store.OpenRange(ctx, name, offset, length)
}

// needed returns the objects that verifying a backup reads.
func needed(t *testing.T, r *repository, label string) map[string]bool {
	t.Helper()
	a := &asked{Store: r.store, names: map[string]bool{}}
	if v, err := verify(t.Context(), a, r.passphrase, label); err != nil || !v.OK() {
		t.Fatal(v, err)
	}
	return a.names
}

// A store that fails is not taken for damage, whichever call it is that fails.
func TestStoreThatFails(t *testing.T) {
	for _, s := range []style{styles[1], styles[4]} {
		r := history(t, s, rand.New(rand.NewPCG(3, 3)), 3)
		for n := 0; ; n++ {
			flaky := storetest.FailAt(r.store, n)
			v, err := verify(t.Context(), flaky, s.passphrase, r.backups[2].label)
			if !flaky.Reached() {
				break
			}
			// A document that cannot be read has a copy.
			if err == nil && v.OK() {
				continue
			}
			if !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("call %d failed: %+v, %v", n, v, err)
			}
		}
	}
}

// Either of two copies of a document will do, and a stanza that is not there is told with those that are.
func TestDocumentsHaveCopies(t *testing.T) {
	r := history(t, styles[4], rand.New(rand.NewPCG(4, 4)), 2)
	label := r.backups[1].label
	for _, name := range []string{"backup/main/backup.info", "archive/main/archive.info", "backup/main/" + label + "/backup.manifest"} {
		for _, copy := range []string{name, name + ".copy"} {
			was, err := store.ReadFile(t.Context(), r.store, copy, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range []string{"", "Salted__12345678", "[backrest]\nbackrest-format=5\n"} {
				r.put(t, copy, []byte(bad))
				if v, err := verify(t.Context(), r.store, "p", label); err != nil || !v.OK() {
					t.Errorf("%s: %+v, %v", copy, v, err)
				}
			}
			if err := r.store.Delete(t.Context(), copy); err != nil {
				t.Fatal(err)
			}
			if v, err := verify(t.Context(), r.store, "p", label); err != nil || !v.OK() {
				t.Errorf("without %s: %+v, %v", copy, v, err)
			}
			r.put(t, copy, was)
		}
	}
	other, err := pgbackrest.New(r.store, pgbackrest.Options{Stanza: "demo", Location: "file:///srv"})
	if err != nil {
		t.Fatal(err)
	}
	for _, read := range []func() error{
		func() error { _, err := other.Info(t.Context()); return err },
		func() error { _, err := other.WALInfo(t.Context()); return err },
	} {
		var none *pgbackrest.NoStanzaError
		if err := read(); !errors.As(err, &none) || !strings.Contains(none.Hint(), "main") || !strings.Contains(err.Error(), "file:///srv") {
			t.Errorf("%v", err)
		}
	}
	for _, name := range []string{"", "..", "a/b", "."} {
		if _, err := pgbackrest.New(r.store, pgbackrest.Options{Stanza: name}); err == nil {
			t.Errorf("%q is a stanza", name)
		}
	}
}

// Without the passphrase, and with another, nothing is read; neither is told.
func TestPassphrases(t *testing.T) {
	r := history(t, style{codec: "zst", passphrase: "hunter2hunter2"}, rand.New(rand.NewPCG(5, 5)), 1)
	var encrypted *pgbackrest.EncryptedError
	if _, err := open(t.Context(), r.store, "", r.backups[0].label); !errors.As(err, &encrypted) {
		t.Errorf("without: %v", err)
	}
	if _, err := open(t.Context(), r.store, "wrong", r.backups[0].label); err == nil {
		t.Error("another passphrase will do")
	} else if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("the error tells a passphrase: %v", err)
	}
	r.put(t, "backup/main/backup.info", encrypt(r.passphrase, false, document(line{"x", "long", quoted(strings.Repeat("x", 1<<17))})))
	r.put(t, "backup/main/backup.info.copy", []byte{})
	if _, err := open(t.Context(), r.store, "wrong", r.backups[0].label); err == nil || !strings.Contains(err.Error(), "another passphrase") {
		t.Errorf("another passphrase for a long document: %v", err)
	}
	clear := history(t, style{codec: "zst"}, rand.New(rand.NewPCG(5, 5)), 1)
	if _, err := open(t.Context(), clear.store, "p", clear.backups[0].label); err == nil || !strings.Contains(err.Error(), "not encrypted") {
		t.Errorf("a repository in clear: %v", err)
	}
}

// A manifest whose checksum is right and that says what cannot be is refused, before anything is made by it.
func TestHostileManifests(t *testing.T) {
	r := newRepository(style{codec: "none", bundle: true, raw: true, blocks: true})
	b := r.add(t, "full", map[string]string{"pg_data/global/pg_control": strings.Repeat("c", 8192)}, rand.New(rand.NewPCG(1, 1)))
	const sum = `"checksum":"da39a3ee5e6b4b0d3255bfef95601890afd80709"`
	for name, value := range map[string]string{
		"pg_data/../../etc/passwd":  `{` + sum + `,"size":1,"timestamp":1}`,
		"/etc/passwd":               `{` + sum + `,"size":1,"timestamp":1}`,
		"pg_data//x":                `{` + sum + `,"size":1,"timestamp":1}`,
		"pg_datax":                  `{` + sum + `,"size":1,"timestamp":1}`,
		"pg_data/nosize":            `{` + sum + `,"timestamp":1}`,
		"pg_data/negative":          `{` + sum + `,"size":-1,"timestamp":1}`,
		"pg_data/huge":              `{` + sum + `,"size":9223372036854775807,"timestamp":1}`,
		"pg_data/nosum":             `{"size":1,"timestamp":1}`,
		"pg_data/badsum":            `{"checksum":"zz39a3ee5e6b4b0d3255bfef95601890afd80709","size":1,"timestamp":1}`,
		"pg_data/bundle":            `{"bni":-1,` + sum + `,"size":1,"timestamp":1}`,
		"pg_data/offset":            `{"bni":1,"bno":-5,` + sum + `,"size":1,"timestamp":1}`,
		"pg_data/map":               `{"bi":1,"bim":100,` + sum + `,"repo-size":50,"size":100000,"timestamp":1}`,
		"pg_data/mapsize":           `{"bi":1,"bim":99999999999,` + sum + `,"repo-size":999999999999,"size":100000,"timestamp":1}`,
		"pg_data/block":             `{"bi":99999999,"bim":10,` + sum + `,"repo-size":50,"size":100000,"timestamp":1}`,
		"pg_data/blocksum":          `{"bi":1,"bic":99,"bim":10,` + sum + `,"repo-size":50,"size":100000,"timestamp":1}`,
		"pg_data/shortsum":          `{"bi":1,"bic":1,"bim":10,` + sum + `,"repo-size":50,"size":100000,"timestamp":1}`,
		"pg_data/mode":              `{` + sum + `,"mode":"9999","size":1,"timestamp":1}`,
		"pg_data/reference":         `{` + sum + `,"reference":"../../other","size":1,"timestamp":1}`,
		"pg_data/list":              `[1]`,
		"pg_tblspc/../pg_data/x/..": `{` + sum + `,"size":1,"timestamp":1}`,
	} {
		lines := slices.Clone(b.manifest)
		at := slices.IndexFunc(lines, func(l line) bool { return l.section == "target:file" })
		lines = slices.Insert(lines, at+1, line{"", name, value})
		r.writeManifest(t, b, document(lines...))
		if o, err := open(t.Context(), r.store, "", b.label); err == nil {
			t.Errorf("%s=%s: %+v", name, value, o.manifest.Files)
		}
	}
	for _, change := range []struct{ key, value string }{
		{"backup-label", `"20260101-000009F"`}, {"db-system-id", "5"}, {"db-version", `"16"`}, {"db-id", "2"}, {"option-compress-type", `"rar"`},
		{"backup-lsn-start", `"0/999"`}, {"backup-lsn-stop", `"x"`}, {"backup-reference", `"..,x"`}, {"pg_tblspc/16384", `{"path":"/x","tablespace-id":"../1","type":"link"}`},
		{"mode", `"rw"`}, {"pg_data/base", `{"mode":7}`},
	} {
		lines := slices.Clone(b.manifest)
		at := slices.IndexFunc(lines, func(l line) bool { return l.key == change.key })
		lines[at].value = change.value
		r.writeManifest(t, b, document(lines...))
		if _, err := open(t.Context(), r.store, "", b.label); err == nil {
			t.Errorf("%s=%s is accepted", change.key, change.value)
		}
	}
	r.writeManifest(t, b, document(b.manifest...))
	if _, err := open(t.Context(), r.store, "", b.label); err != nil {
		t.Error(err)
	}
}

// A backup that something is missing of that it builds on is not restorable, as one of ours.
func TestPriorIsMissing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	r := newRepository(style{codec: "none"})
	files := first(random)
	for _, kind := range []string{"full", "incr", "incr"} {
		r.add(t, kind, files, random)
		files = change(files, random)
	}
	r.info = slices.Delete(r.info, 1, 2)
	r.writeInfo(t)
	_, err := open(t.Context(), r.store, "", r.backups[2].label)
	if chain := (*catalog.ChainError)(nil); !errors.As(err, &chain) || !strings.Contains(err.Error(), r.backups[1].label) {
		t.Errorf("%v", err)
	}
	if _, err := open(t.Context(), r.store, "", r.backups[0].label); err != nil {
		t.Error(err)
	}
	if _, err := open(t.Context(), r.store, "", "20990101-000000F"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that there is not: %v", err)
	}
}
