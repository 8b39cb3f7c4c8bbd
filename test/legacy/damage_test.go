package legacy_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/compress"
	"holdfast/internal/crypt"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
	"holdfast/test/foreign"
)

// stored is an archive in memory.
type stored struct {
	name    string
	objects map[string][]byte
	files   map[string][]byte // what lies beside it
	key     crypt.Key         // nil for none
	spaces  []string          // oids of tablespaces
}

func load(t *testing.T, name string) *stored {
	t.Helper()
	s := &stored{name: name, objects: map[string][]byte{}, files: map[string][]byte{}, spaces: []string{"16385", "16386"}}
	foreign.Each(t, name, func(path string, r io.Reader) {
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if object, ok := strings.CutPrefix(path, "archive/"); ok {
			s.objects[object] = b
		} else {
			s.files[path] = b
		}
	})
	switch {
	case strings.HasPrefix(name, "wale-"):
		s.spaces = s.spaces[:1]
	case strings.Contains(name, "sodium"):
		s.key = open(t, crypt.Options{Sodium: crypt.SodiumKey{Key: string(s.files["keys/sodium.hex"]), Transform: "hex"}})
	case strings.Contains(name, "pgp"):
		s.key = open(t, crypt.Options{PGP: crypt.PGPKeys{Key: string(s.files["keys/pgp-pass.asc"]), Passphrase: "fixture-pass"}})
	}
	return s
}

func open(t *testing.T, o crypt.Options) crypt.Key {
	t.Helper()
	k, err := crypt.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// recoded is s with all that is compressed in another codec.
func (s *stored) recoded(t *testing.T, m compress.Method) *stored {
	t.Helper()
	r := &stored{name: s.name + " as " + string(m), objects: map[string][]byte{}, files: s.files, spaces: s.spaces}
	for name, b := range s.objects {
		base, was := compress.Split(name)
		switch {
		case was == compress.None:
			r.objects[name] = bytes.ReplaceAll(b, []byte(".tar.zst"), []byte(".tar"+m.Extension()))
		default:
			content := compress.Decompress(bytes.NewReader(b), was)
			packed := compress.Compress(content, m, compress.Options{})
			out, err := io.ReadAll(packed)
			if err := errors.Join(err, packed.Close(), content.Close()); err != nil {
				t.Fatal(err)
			}
			r.objects[base+m.Extension()] = out
		}
	}
	return r
}

// at returns the archive with one object replaced.
func (s *stored) at(t *testing.T, name string, content []byte) *archive.Archive {
	t.Helper()
	m := &storetest.Memory{}
	for _, object := range slices.Sorted(maps.Keys(s.objects)) { // backups of one time are told apart by when they were stored
		b := s.objects[object]
		if object == name {
			b = content
		}
		if err := m.Put(t.Context(), object, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	return archive.New(m, archive.Options{Key: s.key})
}

// newest is the backup that LATEST means while nothing is damaged.
func (s *stored) newest() string {
	last := ""
	for name := range s.objects {
		if base, ok := strings.CutSuffix(path.Base(name), "_backup_stop_sentinel.json"); ok && base > last {
			last = base
		}
	}
	return last
}

// restored restores the newest backup of a, which is s with something changed, and returns a checksum per file and the report.
func (s *stored) restored(t *testing.T, a *archive.Archive) (map[string][32]byte, *restore.Report, error) {
	t.Helper()
	c, err := catalog.Load(t.Context(), a)
	if err != nil {
		return nil, nil, err
	}
	choice, err := c.Choose(s.newest(), catalog.Target{})
	if err != nil {
		return nil, nil, err
	}
	base, err := os.MkdirTemp(memory(), "hf")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	r := restore.Request{Destination: filepath.Join(base, "data"), Choice: choice, TablespaceMapping: map[string]string{}}
	for _, oid := range s.spaces {
		r.TablespaceMapping[oid] = filepath.Join(base, "ts"+oid)
	}
	plan, err := restore.Decide(t.Context(), a, r)
	if err != nil {
		return nil, nil, err
	}
	report, err := restore.Run(t.Context(), a, plan, restore.Options{})
	if err != nil {
		if _, errThere := os.Stat(filepath.Join(base, "data", "global", "pg_control")); !errors.Is(errThere, fs.ErrNotExist) {
			t.Errorf("there is a pg_control after: %v", err)
		}
		return nil, nil, err
	}
	sums := map[string][32]byte{}
	err = filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		b = bytes.ReplaceAll(b, []byte(base), []byte("BASE"))
		sums[strings.TrimPrefix(p, base)] = sha256.Sum256(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums, report, nil
}

// memory is where files are written that nobody keeps.
func memory() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// differ names a file that is not in both, or differs; "" for none.
func differ(x, y map[string][32]byte) string {
	for _, pair := range [][2]map[string][32]byte{{x, y}, {y, x}} {
		for p, sum := range pair[0] {
			if other, ok := pair[1][p]; !ok || other != sum {
				return p
			}
		}
	}
	return ""
}

// damages yields an object with a bit flipped at places spread over it, and cut off at others.
func damages(b []byte, flips int) func(yield func(what string, damaged []byte) bool) {
	return func(yield func(string, []byte) bool) {
		for i := range min(flips, len(b)) {
			at := i*len(b)/flips + i%7
			if at >= len(b) {
				continue
			}
			d := slices.Clone(b)
			d[at] ^= 1 << (i % 8)
			if !yield(fmt.Sprintf("bit %d of byte %d of %d flipped", i%8, at, len(b)), d) {
				return
			}
		}
		for _, n := range slices.Compact([]int{0, 1, len(b) / 3, len(b) - 9, len(b) - 1}) {
			if n >= 0 && n < len(b) && !yield(fmt.Sprintf("cut off after %d of %d bytes", n, len(b)), b[:n:n]) {
				return
			}
		}
	}
}

// class says what an object is for a restore of its archive.
func class(name string) string {
	switch {
	case strings.HasSuffix(name, "_backup_stop_sentinel.json"):
		return "sentinel"
	case strings.HasSuffix(name, "files_metadata.json"):
		return "list"
	case strings.Contains(name, "tar_partitions/"):
		return "part"
	case strings.HasPrefix(name, archive.WALDir):
		return "wal"
	}
	return ""
}

var flips = flag.Int("flips", 8, "in how many places of each class of objects a bit is turned over")

// Whatever is damaged, a flipped bit or an end that is missing: it is an error with a message that names the object or what is wrong, or
// makes no difference. Codecs without a checksum let flips through that nothing else catches: how many is logged, and of pages of
// relations the report tells.
func TestDamage(t *testing.T) {
	var all []*stored
	for _, name := range []string{"pg15-zstd-full", "pg15-lz4-delta", "pg15-lz4-remote", "pg15-lz4-sodium-hex", "pg15-lz4-pgp-pass", "pg15-brotli-full", "wale-pg13-lzo"} {
		all = append(all, load(t, name))
	}
	for _, m := range []compress.Method{compress.LZMA, compress.None} {
		all = append(all, all[0].recoded(t, m))
	}
	for _, s := range all {
		n := *flips
		if strings.HasSuffix(s.name, "lzma") {
			n /= 4 // some MB a second
		}
		t.Run(s.name, func(t *testing.T) { s.sweep(t, n) })
	}
}

// sweep damages each class of objects and counts what came of it.
func (s *stored) sweep(t *testing.T, flips int) {
	unsummed := strings.Contains(s.name, "brotli") || strings.Contains(s.name, " as ")
	whole, _, err := s.restored(t, s.at(t, "", nil))
	if err != nil {
		t.Fatal(err)
	}
	classes := map[string][]string{}
	for name := range s.objects {
		if c := class(name); c != "" {
			classes[c] = append(classes[c], name)
		}
	}
	for c, names := range classes {
		slices.Sort(names)
		count := map[string]int{}
		for _, name := range names {
			each := flips
			if c != "list" {
				each = max(4, flips/len(names))
			}
			if c == "part" && len(s.objects[name]) > 64<<10 {
				each = flips
			}
			for what, damaged := range damages(s.objects[name], each) {
				outcome, detail := "", ""
				if c == "wal" {
					outcome, detail = s.fetched(t, name, damaged)
				} else {
					outcome, detail = s.restoredFrom(t, name, damaged, whole)
				}
				count[outcome]++
				cut := strings.HasPrefix(what, "cut off")
				switch {
				case outcome == "error" && !clear(detail):
					t.Errorf("%s, %s: the error is not clear: %s", name, what, detail)
				case outcome != "silent" && outcome != "told":
				case unsummed && (c == "part" || c == "wal") && !cut:
					t.Logf("%s, %s: %s, in %s", name, what, outcome, detail)
				case c == "wal" && cut && strings.HasSuffix(s.name, "none"): // PostgreSQL refuses a segment that is not whole
				default:
					t.Errorf("%s, %s: it made a difference, in %s, and was no error", name, what, detail)
				}
			}
		}
		t.Logf("%s: %v", c, count)
	}
}

// clear reports whether an error names what it is about.
func clear(message string) bool {
	for _, word := range []string{"part_", "pg_control", "backup_label", "sentinel", "files_metadata", "base_0", "wal_005", "tablespace"} {
		if strings.Contains(message, word) {
			return !strings.Contains(message, "panic") && !strings.Contains(message, "\n")
		}
	}
	return false
}

// restoredFrom says what comes of a restore.
func (s *stored) restoredFrom(t *testing.T, name string, damaged []byte, whole map[string][32]byte) (outcome, detail string) {
	t.Helper()
	sums, report, err := s.restored(t, s.at(t, name, damaged))
	if err != nil {
		return "error", err.Error()
	}
	where := differ(whole, sums)
	switch {
	case where == "":
		return "harmless", ""
	case report.BadPages > 0:
		return "told", where
	}
	return "silent", where
}

// fetched says what comes of reading WAL.
func (s *stored) fetched(t *testing.T, name string, damaged []byte) (outcome, detail string) {
	t.Helper()
	read := func(a *archive.Archive) ([]byte, error) {
		r, err := a.OpenWAL(t.Context(), archive.WALName(name))
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		return b, errors.Join(err, r.Close())
	}
	want, err := read(s.at(t, "", nil))
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(s.at(t, name, damaged))
	switch {
	case err != nil:
		return "error", err.Error()
	case bytes.Equal(got, want):
		return "harmless", ""
	}
	return "silent", name
}

// With a wrong key, or without one, nothing is restored, and the error says that it is about the key.
func TestWrongKey(t *testing.T) {
	sodium, pgp := load(t, "pg15-lz4-sodium-hex"), load(t, "pg15-lz4-pgp-pass")
	other := crypt.Options{Sodium: crypt.SodiumKey{Key: strings.Repeat("5a", 32), Transform: "hex"}}
	otherPGP := crypt.Options{PGP: crypt.PGPKeys{Key: string(pgp.files["keys/pgp-nopass.asc"])}}
	for what, x := range map[string]struct {
		s   *stored
		key crypt.Key
	}{
		"libsodium, another key":    {sodium, open(t, other)},
		"libsodium, key of OpenPGP": {sodium, open(t, otherPGP)},
		"libsodium, none":           {sodium, nil},
		"OpenPGP, another key":      {pgp, open(t, otherPGP)},
		"OpenPGP, key of libsodium": {pgp, open(t, other)},
		"OpenPGP, none":             {pgp, nil},
	} {
		s := *x.s
		s.key = x.key
		_, _, err := s.restored(t, s.at(t, "", nil))
		if err == nil {
			t.Errorf("%s: restored", what)
			continue
		}
		t.Logf("%s: %v", what, err)
		if x.key != nil && !strings.Contains(strings.ToLower(err.Error()), "key") && !strings.Contains(err.Error(), "crypt") {
			t.Errorf("%s: the error does not speak of the key: %v", what, err)
		}
	}
}
