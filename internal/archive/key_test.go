package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"filippo.io/age"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/crypt"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// ageKeys returns a keyring that reads and writes, and one with its public key only.
func ageKeys(t *testing.T) (both, public *crypt.Keyring) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return keyring(t, crypt.Options{Age: crypt.AgeKeys{Recipients: id.Recipient().String(), Identities: id.String()}}),
		keyring(t, crypt.Options{Age: crypt.AgeKeys{Recipients: id.Recipient().String()}})
}

func keyring(t *testing.T, o crypt.Options) *crypt.Keyring {
	t.Helper()
	k, err := crypt.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sodiumKey(t *testing.T) *crypt.Keyring {
	return keyring(t, crypt.Options{Sodium: crypt.SodiumKey{Key: strings.Repeat("k", 32)}})
}

// Everything that holds content is encrypted, and comes back with the key; what WAL-G reads in clear stays clear.
func TestKeyEncryptsContent(t *testing.T) {
	age, _ := ageKeys(t)
	secret := bytes.Repeat([]byte("a row of the customer "), 20_000)
	for name, key := range map[string]*crypt.Keyring{"age": age, "libsodium": sodiumKey(t)} {
		for _, method := range []compress.Method{compress.Zstd, compress.None} {
			m := &storetest.Memory{}
			a := archive.New(m, archive.Options{Method: method, Key: key})
			const wal = "000000010000000000000001"
			if _, err := a.PutWAL(t.Context(), wal, opener(secret)); err != nil {
				t.Fatal(err)
			}
			if got := readWAL(t, a, wal); !bytes.Equal(got, secret) {
				t.Errorf("%s, %s: %d bytes of WAL came back", name, method, len(got))
			}
			if stored, err := a.PutWAL(t.Context(), wal, opener(secret)); stored != 0 || err != nil {
				t.Errorf("%s, %s: the same WAL again: %d, %v", name, method, stored, err)
			}
			d, err := a.Begin(t.Context(), backupName, "host")
			if err != nil {
				t.Fatal(err)
			}
			pack := func() *tarpart.Packer {
				return tarpart.NewPacker(entries(tarpart.Entry{Path: "base/5/16384", Mode: 0o600, Content: secret}), tarpart.Options{})
			}
			p := pack()
			err = errors.Join(d.PutPart(t.Context(), d.NextPart(), p, p.Members), d.PutConfig(t.Context(), pack()), d.Commit(t.Context(), &archive.Sentinel{}))
			if err != nil {
				t.Fatal(err)
			}
			for o := range store.Walk(t.Context(), m, "") {
				b, err := store.ReadFile(t.Context(), m, o.Name, 1<<30)
				if err != nil {
					t.Fatal(err)
				}
				clear := strings.HasSuffix(o.Name, ".json")
				switch {
				case clear && !bytes.HasPrefix(b, []byte("{")):
					t.Errorf("%s, %s: %s is not plain JSON", name, method, o.Name)
				case !clear && (bytes.Contains(b, secret[:22]) || bytes.HasPrefix(b, []byte{0x28, 0xB5, 0x2F, 0xFD})):
					t.Errorf("%s, %s: %s is not encrypted", name, method, o.Name)
				}
			}
			manifest, err := a.OpenManifest(t.Context(), backupName)
			if err != nil {
				t.Fatal(err)
			}
			defer manifest.Close()
			if part, err := manifest.Next(); err != nil || part.Members[0].Path != "base/5/16384" {
				t.Errorf("%s, %s: the manifest has %+v, %v", name, method, part, err)
			}
			parts, err := a.Parts(t.Context(), backupName)
			if err != nil || len(parts) != 1 {
				t.Fatal(parts, err)
			}
			for what, open := range map[string]func() (io.ReadCloser, error){
				"part":          func() (io.ReadCloser, error) { return a.OpenPart(t.Context(), backupName, parts[0]) },
				"configuration": func() (io.ReadCloser, error) { return a.OpenConfig(t.Context(), backupName) },
			} {
				r, err := open()
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(r); err != nil || !bytes.Contains(b, secret) {
					t.Errorf("%s, %s: the %s came back as %d bytes, %v", name, method, what, len(b), err)
				}
				r.Close()
			}
			other := archive.New(m, archive.Options{Method: method, Key: keyring(t, crypt.Options{Sodium: crypt.SodiumKey{Key: strings.Repeat("x", 32)}})})
			if r, err := other.OpenWAL(t.Context(), wal); err == nil {
				if b, err := io.ReadAll(r); err == nil {
					t.Errorf("%s, %s: read as %d bytes with another key", name, method, len(b))
				} else if !strings.Contains(err.Error(), archive.WALDir+wal) {
					t.Errorf("%s, %s: %v does not say which object", name, method, err)
				}
				r.Close()
			}
		}
	}
}

// A host that can encrypt and not decrypt tells the same WAL from other WAL all the same, by notes.
func TestWriteOnly(t *testing.T) {
	const name, older = "000000010000000000000002", "000000010000000000000001"
	both, public := ageKeys(t)
	m := &storetest.Memory{}
	reader := archive.New(m, archive.Options{Key: both})
	a := archive.New(m, archive.Options{Key: public, WriteOnly: true})
	first, second := random(1, 1<<20), random(2, 1<<20)
	if _, err := reader.PutWAL(t.Context(), older, opener(first)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also the second time: the first must have left nothing that speaks for it
		if _, err := a.PutWAL(t.Context(), older, opener(first)); err == nil || !strings.Contains(err.Error(), "no key to read it") {
			t.Errorf("a file without a note: %v", err)
		}
	}
	for i := range 3 {
		if stored, err := a.PutWAL(t.Context(), name, opener(first)); err != nil || (stored == 0) != (i > 0) {
			t.Errorf("push %d: %d, %v", i, stored, err)
		}
	}
	var conflict *archive.ConflictError
	if _, err := a.PutWAL(t.Context(), name, opener(second)); !errors.As(err, &conflict) {
		t.Errorf("other content: %v, want a ConflictError", err)
	}
	if got := readWAL(t, reader, name); !bytes.Equal(got, first) {
		t.Error("it came back as something else")
	}
	if missing, err := a.MissingWAL(t.Context(), 1, 1, 3, 16<<20, 0); err != nil || fmt.Sprint(missing) != "[000000010000000000000003]" {
		t.Errorf("missing %v, %v", missing, err)
	}
}

// Whichever store call fails, a push of a host that cannot decrypt says so or has done its work, and the next one ends it.
func TestWriteOnlyFailsWhole(t *testing.T) {
	const name = "000000010000000000000001"
	both, public := ageKeys(t)
	content := random(3, 1<<20)
	for n := 0; ; n++ {
		m := &storetest.Memory{}
		flaky := storetest.FailAt(m, n)
		_, err := archive.New(flaky, archive.Options{Key: public, WriteOnly: true}).PutWAL(t.Context(), name, opener(content))
		if !flaky.Reached() {
			return
		}
		if !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("call %d failed, PutWAL returned %v", n, err)
		}
		if _, err := archive.New(m, archive.Options{Key: public, WriteOnly: true}).PutWAL(t.Context(), name, opener(content)); err != nil {
			t.Errorf("call %d failed, the push after it: %v", n, err)
		}
		if got := readWAL(t, archive.New(m, archive.Options{Key: both}), name); !bytes.Equal(got, content) {
			t.Errorf("call %d failed, and the content is another", n)
		}
	}
}

// requests counts how often a stretch of an object is asked for.
type requests struct {
	store.Store
	n *atomic.Int64
}

func (s requests) OpenRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	s.n.Add(1)
	return s.Store.OpenRange(ctx, name, offset, length)
}

// Any stretch of a part encrypted by age is read without what lies before it, in few requests; libsodium's can only be read whole.
func TestRangesOfEncryptedParts(t *testing.T) {
	age, _ := ageKeys(t)
	content := random(9, 9<<20+5)
	for name, key := range map[string]*crypt.Keyring{"age": age, "libsodium": sodiumKey(t)} {
		for _, method := range []compress.Method{compress.Zstd, compress.None} {
			m := requests{&storetest.Memory{}, new(atomic.Int64)}
			a := archive.New(m, archive.Options{Method: method, Key: key})
			d, err := a.Begin(t.Context(), backupName, "host")
			if err != nil {
				t.Fatal(err)
			}
			p := tarpart.NewPacker(entries(tarpart.Entry{Path: "base/5/1", Mode: 0o600, Content: content}), tarpart.Options{})
			if err := d.PutPart(t.Context(), d.NextPart(), p, p.Members); err != nil {
				t.Fatal(err)
			}
			at := p.Members()[0].Offset
			parts, err := a.Parts(t.Context(), backupName)
			if err != nil {
				t.Fatal(err)
			}
			m.n.Store(0)
			r, err := a.Ranges(t.Context(), backupName, parts[0])
			if err != nil {
				t.Fatal(err)
			}
			if (r != nil) != (name == "age") {
				t.Fatalf("%s, %s: ranges are %v", name, method, r)
			}
			if r == nil {
				continue
			}
			if n := m.n.Load(); n > 3 {
				t.Errorf("%s: %d requests to prepare", method, n)
			}
			for _, piece := range [][2]int64{{0, 1}, {0, 9<<20 + 5}, {70_000, 300}, {3 << 20, 4 << 20}, {9 << 20, 5}, {65_535, 2}} {
				m.n.Store(0)
				body, err := r.Open(t.Context(), at+piece[0], piece[1])
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(body)
				if err != nil || !bytes.Equal(got, content[piece[0]:piece[0]+piece[1]]) {
					t.Errorf("%s: %d bytes from %d are %d others, %v", method, piece[1], piece[0], len(got), err)
				}
				if err := body.Close(); err != nil {
					t.Error(err)
				}
				if n := m.n.Load(); n > 2 {
					t.Errorf("%s: %d bytes from %d took %d requests", method, piece[1], piece[0], n)
				}
			}
		}
	}
}

// tokenless is a key that cannot be used because a file of its own is missing, as that with the token for KMS.
type tokenless struct{ crypt.Key }

func (tokenless) Decrypt(io.Reader) io.ReadCloser {
	return io.NopCloser(iotest.ErrReader(&fs.PathError{Op: "open", Path: "/run/token", Err: fs.ErrNotExist}))
}

// That something is missing with which to decrypt never reads as an object that is missing: a manifest that is not there is no error to a restore.
func TestUnusableKeyIsNotMissing(t *testing.T) {
	m := &storetest.Memory{}
	d, err := archive.New(m, archive.Options{}).Begin(t.Context(), backupName, "host")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(t.Context(), &archive.Sentinel{}); err != nil {
		t.Fatal(err)
	}
	a := archive.New(m, archive.Options{Key: tokenless{}})
	if _, err := a.OpenManifest(t.Context(), backupName); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/run/token") {
		t.Errorf("the manifest: %v", err)
	}
}

// Without a key what is encrypted is an error that says so and what to set, in every codec and without one.
func TestEncryptedIsToldWithoutKey(t *testing.T) {
	both, _ := ageKeys(t)
	const name = "00000002.history"
	for _, method := range compress.Methods() {
		if _, err := compress.ParseMethod(string(method)); err != nil {
			continue // not written
		}
		m := &storetest.Memory{}
		if _, err := archive.New(m, archive.Options{Method: method, Key: both}).PutWAL(t.Context(), name, opener([]byte("1\t0/2000000\tno\n"))); err != nil {
			t.Fatal(err)
		}
		r, err := archive.New(m, archive.Options{Method: method}).OpenWAL(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		var hinted interface{ Hint() string }
		if err == nil || len(b) > 0 || !strings.Contains(err.Error(), "encrypted with age, and no key is set") || !errors.As(err, &hinted) {
			t.Errorf("%s: %d bytes, %v", method, len(b), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
