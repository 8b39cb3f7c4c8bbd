package pgbackrest_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/pgbackrest"
)

// maxFuzz bounds what a fuzz target lets a decoder make, in bytes.
const maxFuzz = 1 << 20

// A document is accepted only with its checksum, and then what it said makes the same one.
func FuzzInfo(f *testing.F) {
	f.Add(document(line{"db", "db-id", "1"}, line{"", "a=b", `{"x":[1,2]}`}, line{"cipher", "cipher-pass", `"a\"b"`}))
	f.Add([]byte("[backrest]\nbackrest-format=5\n"))
	f.Add([]byte("[backrest]\nbackrest-format=6\n\n[x]\na=1\n"))
	f.Add([]byte("key=1\n[\n]\n[]\n=1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var lines []line
		last := ""
		err := pgbackrest.ParseInfo(bytes.NewReader(b), func(section, key string, value json.RawMessage) error {
			if !json.Valid(value) {
				t.Errorf("%s of %s is no JSON: %q", key, section, value)
			}
			l := line{section, key, string(value)}
			if section == last {
				l.section = ""
			}
			last = section
			lines = append(lines, l)
			return nil
		})
		if err != nil {
			return
		}
		if !bytes.Contains(b, []byte("backrest-checksum")) {
			t.Errorf("accepted without a checksum: %q", b)
		}
	})
}

// Whatever values a manifest has, with the right checksum, reading the backup ends, and yields nothing that has other checksums.
func FuzzManifest(f *testing.F) {
	r := newRepository(style{codec: "zst", bundle: true, raw: true, blocks: true})
	random := rand.New(rand.NewPCG(2, 2))
	files := first(random)
	b := r.add(f, "full", files, random)
	b = r.add(f, "incr", change(files, random), random)
	for _, l := range b.manifest {
		f.Add(l.key, l.value)
	}
	f.Add("pg_data/x", `{"bi":1,"bic":6,"bim":9,"bni":1,"bno":7,"checksum":"da39a3ee5e6b4b0d3255bfef95601890afd80709","repo-size":50,"size":100000,"timestamp":1}`)
	f.Add("pg_data/x", `{"checksum-page":false,"checksum-page-error":[1,[3,9]],"mode":"0640","size":0,"timestamp":1,"user":false}`)
	f.Fuzz(func(t *testing.T, key, value string) {
		if strings.ContainsAny(key, "\n\r[#") || strings.ContainsAny(value, "\n\r") || key == "" {
			return
		}
		lines := slices.Clone(b.manifest)
		if i := slices.IndexFunc(lines, func(l line) bool { return l.key == key }); i >= 0 {
			lines[i].value = value
		} else {
			i := slices.IndexFunc(lines, func(l line) bool { return l.section == "target:file" })
			lines = slices.Insert(lines, i+1, line{"", key, value})
		}
		r.writeManifest(t, b, document(lines...))
		o, err := open(t.Context(), r.store, "", b.label)
		if err != nil {
			return
		}
		for m := range o.manifest.Members() {
			if err := m.Check(); err != nil {
				t.Error(err)
			}
		}
		for i := range o.manifest.Files {
			file := &o.manifest.Files[i]
			if file.Size > maxFuzz {
				continue
			}
			content, err := o.OpenFile(t.Context(), o.manifest, file)
			if err != nil {
				continue
			}
			got, err := io.ReadAll(content)
			if err == nil && (int64(len(got)) != file.Size || !bytes.Equal(sha1Of(got), file.SHA1[:])) {
				t.Errorf("%s: %d bytes of %d, or with another checksum", file.Path, len(got), file.Size)
			}
			if err := content.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A block map that is accepted has each block once, inside of its super block, and is what its blocks make written anew.
func FuzzBlockMap(f *testing.F) {
	random := rand.New(rand.NewPCG(6, 6))
	for range 8 {
		s := style{codec: "none", blocks: true, bundle: random.IntN(2) > 0}
		r := newRepository(s)
		files := map[string]string{"pg_data/base/5/1": noise(random, 300000), "pg_data/base/5/2": noise(random, 8192*20)}
		for i := range 4 {
			b := r.add(f, []string{"full", "incr", "diff", "incr"}[i], files, random)
			for _, at := range b.at {
				if at.mapLength > 0 {
					m := encodeMap(at.blocks, at.blockSize, func(i int) []byte { return at.sums[i] })
					f.Add(m, uint32(len(files["pg_data/base/5/1"])), uint8(at.blockSize/8192), uint8(6))
					f.Add(m, uint32(len(files["pg_data/base/5/2"])), uint8(at.blockSize/8192), uint8(6))
				}
			}
			next := map[string]string{}
			for name, content := range files {
				b := []byte(content)
				for range 3 {
					b[random.IntN(len(b))]++
				}
				next[name] = string(b)
			}
			files = next
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint32, unit, sum uint8) {
		blockSize := int(unit%16+1) * 8192
		sumSize := int(sum%16) + 1
		total := (int64(size) + int64(blockSize) - 1) / int64(blockSize)
		blocks, err := pgbackrest.ParseBlockMap(bytes.NewReader(b), int64(size), blockSize, sumSize, 100)
		if err != nil {
			return
		}
		if int64(len(blocks)) != total {
			t.Fatalf("%d blocks of %d", len(blocks), total)
		}
		for i, k := range blocks {
			reference, _, offset, stored, super, number := k.Fields()
			if reference >= 100 || offset < 0 || stored <= 0 || super <= 0 || super > 64<<20 || number < 0 || number*int64(blockSize) >= super {
				t.Errorf("block %d is %+v", i, k)
			}
		}
		if !ordered(blocks) { // the writer keeps each backup's super blocks in order, and names no super block by halves in another way
			return
		}
		again, err := pgbackrest.ParseBlockMap(bytes.NewReader(encodeMap(blocks, int64(blockSize), func(int) []byte { return make([]byte, sumSize) })), int64(size), blockSize, sumSize, 100)
		if err != nil || !slices.Equal(again, blocks) {
			t.Errorf("%v\nwritten and read again is\n%v, %v", blocks, again, err)
		}
	})
}

// ordered reports whether blocks are in the order in which pgBackRest has them: of each backup the super blocks ascending, apart from each other, in one bundle,
// and in those the blocks.
func ordered(blocks []pgbackrest.Block) bool {
	type origin struct {
		bundle                      uint32
		offset, stored, super, next int64
	}
	seen := map[uint32]origin{}
	before := uint32(0)
	for i, k := range blocks {
		reference, bundle, offset, stored, super, number := k.Fields()
		o, ok := seen[reference]
		switch {
		case !ok:
		case o.bundle != bundle || offset < o.offset || number < 0:
			return false
		case offset == o.offset && (stored != o.stored || super != o.super || number < o.next || number != o.next && before == reference):
			return false
		case offset != o.offset && offset < o.offset+o.stored:
			return false
		case offset > o.offset+o.stored && i > 0 && before == reference: // one stretch has no gaps
			return false
		}
		seen[reference] = origin{bundle, offset, stored, super, number + 1}
		before = reference
	}
	return true
}

// What is decrypted is what was encrypted; anything else ends.
func FuzzDecrypt(f *testing.F) {
	f.Add([]byte("content of more than one block"), "pass", false)
	f.Add([]byte{}, "", true)
	f.Add(bytes.Repeat([]byte("x"), 70000), "p", true)
	f.Add([]byte("Salted__"), "p", false)
	f.Fuzz(func(t *testing.T, b []byte, passphrase string, raw bool) {
		if passphrase != "" {
			got, err := io.ReadAll(pgbackrest.NewDecrypter(bytes.NewReader(encrypt(passphrase, raw, b)), passphrase, raw))
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("%q came back as %q, %v", b, got, err)
			}
		}
		got, err := io.ReadAll(pgbackrest.NewDecrypter(bytes.NewReader(b), passphrase, raw)) // may be anything, and no longer than it was
		if err == nil && len(got) > len(b) {
			t.Errorf("%d bytes of %d", len(got), len(b))
		}
	})
}

// Streams of every codec, in both forms, come back; what is none ends.
func FuzzCodec(f *testing.F) {
	// Of bzip2, which nothing here writes: "hello\n".
	bz2, err := hex.DecodeString("425a6839314159265359c1c080e2000001410000100244a00030cd00c3462997177245385090c1c080e2")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("bz2", bz2)
	for _, codec := range []string{"none", "gz", "lz4", "zst"} {
		f.Add(codec, squeeze(codec, false, []byte("some content, some content")))
		f.Add(codec, squeeze(codec, true, []byte("some content, some content")))
	}
	f.Fuzz(func(t *testing.T, codec string, b []byte) {
		in, err := pgbackrest.OpenCodec(codec, bytes.NewReader(b))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(in, maxFuzz)) // may be damaged
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if codec == "bz2" {
			return
		}
		for _, raw := range []bool{false, true} {
			in, err := pgbackrest.OpenCodec(codec, bytes.NewReader(squeeze(codec, raw, b)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(in)
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: %q came back as %q, %v", codec, b, got, err)
			}
			if err := in.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A name that is accepted is made of what it was split into.
func FuzzWALFile(f *testing.F) {
	for _, name := range []string{"000000010000000000000001-e8b267cd6b16ec65570fa23a207354d7ae34afd8.zst", "000000010000000000000001.partial-e8b267cd6b16ec65570fa23a207354d7ae34afd8.gz",
		"00000002.history", "000000010000000000000009.00000028.backup", "000000010000000000000001-e8b267cd6b16ec65570fa23a207354d7ae34afd8"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, object string) {
		name, sum, codec, ok := pgbackrest.WALFile(object)
		if !ok || strings.Contains(object, "/") {
			return
		}
		made := name
		if sum != "" {
			made += "-" + sum
		}
		if codec != "none" {
			made += "." + codec
		}
		if made != object {
			t.Errorf("%q is %q, %q, %q", object, name, sum, codec)
		}
	})
}

// A configuration file that is accepted gives its options; an error never tells a value.
func FuzzSettings(f *testing.F) {
	f.Add("# x\n[global]\nrepo1-path=/srv\nrepo-cipher-pass = s3cret\n\n[main]\npg1-path=/x\n")
	f.Add("[global\nx")
	f.Add("key=value\n[global:restore]\nrepo1-path=/other")
	f.Fuzz(func(t *testing.T, text string) {
		var s pgbackrest.Settings
		if err := s.ReadFile("file", []byte(text)); err != nil {
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error tells a secret: %v", err)
			}
			return
		}
		r := s.Repo("main", 1)
		_, _ = r.Passphrase() // may be an error
		if r.Check() == nil && (r.Get("type") == "posix" || r.Get("type") == "cifs") && !strings.HasPrefix(r.Get("path"), "/") {
			t.Errorf("the repository is at %q", r.Get("path"))
		}
	})
}
