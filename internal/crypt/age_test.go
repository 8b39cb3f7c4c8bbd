package crypt_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"filippo.io/age"

	"holdfast/internal/crypt"
)

// Several recipients, given in any of the ways, can each read alone.
func TestAgeRecipients(t *testing.T) {
	x, y := ageKey(t), ageKey(t)
	edPublic, edSecret := sshKey(t, "ed25519")
	rsaPublic, rsaSecret := sshKey(t, "rsa")
	a, b := x.Recipient().String(), y.Recipient().String()
	readers := []crypt.AgeKeys{
		{Identities: x.String()},
		{Identities: "# one\n" + ageKey(t).String() + "\n" + y.String()},
		{Identities: ageKey(t).String() + `\n` + x.String()},
		{IdentitiesPath: file(t, "# created: today\n# public key: "+a+"\n"+x.String()+"\n")},
		{Identities: edSecret},
		{Identities: strings.ReplaceAll(edSecret, "\n", `\n`)},
		{IdentitiesPath: file(t, rsaSecret)},
		{Identities: ageKey(t).String(), IdentitiesPath: file(t, rsaSecret)},
	}
	for _, w := range []crypt.AgeKeys{
		{Recipients: strings.Join([]string{a, b, edPublic, rsaPublic}, ",")},
		{Recipients: strings.Join([]string{"# ours", a, "", b, edPublic + " a comment, with comma", rsaPublic + " me," + a}, "\n")},
		{Recipients: strings.Join([]string{a, b, edPublic, rsaPublic}, `\n`)},
		{RecipientsPath: file(t, strings.Join([]string{"# ours", a, b, edPublic, rsaPublic}, "\r\n"))},
		{Recipients: a + ", " + edPublic, RecipientsPath: file(t, b+"\n"+a+"\n"+rsaPublic+"\n")},
	} {
		k := open(t, crypt.Options{Age: w})
		if n := len(k.IDs()); n != 4 {
			t.Errorf("%+v: %d recipients", w, n)
		}
		sealed := encrypt(t, k, random(1000))
		for _, r := range readers {
			if got, err := decrypt(open(t, crypt.Options{Age: r}), sealed); err != nil || !bytes.Equal(got, random(1000)) {
				t.Errorf("%+v read by %.60q: %v", w, r, err)
			}
		}
	}
}

// One recipient of many is named among them, and the list in an error stays short.
func TestAgeNamesRecipients(t *testing.T) {
	var all []string
	for range 20 {
		all = append(all, ageKey(t).Recipient().String())
	}
	sealed := encrypt(t, open(t, crypt.Options{Age: crypt.AgeKeys{Recipients: strings.Join(all, ",")}}), nil)
	_, err := decrypt(open(t, crypt.Options{Age: crypt.AgeKeys{Identities: ageKey(t).String()}}), sealed)
	if err == nil || !strings.Contains(err.Error(), `"X25519" and 12 more`) {
		t.Error(err)
	}
	if _, _, err := open(t, crypt.Options{Age: crypt.AgeKeys{Identities: ageKey(t).String()}}).DecryptAt(bytes.NewReader(sealed), int64(len(sealed))); err == nil ||
		!strings.Contains(err.Error(), `"X25519" and 12 more`) {
		t.Error(err)
	}
}

// A header without end costs bounded memory and is an error.
func TestAgeHeaderIsBounded(t *testing.T) {
	k := open(t, crypt.Options{Age: crypt.AgeKeys{Identities: ageKey(t).String()}})
	for _, line := range []string{"-> X25519 " + strings.Repeat("A", 50) + "\n" + strings.Repeat("A", 43) + "\n", "-> " + strings.Repeat("A", 1<<16)} {
		c := &counter{r: io.MultiReader(strings.NewReader("age-encryption.org/v1\n"), endless(line))}
		total := &atomic.Int64{}
		_, err := io.ReadAll(k.Decrypt(io.TeeReader(c, tally{total})))
		if err == nil || total.Load() > 2<<20 || len(err.Error()) > 400 {
			t.Errorf("%d bytes read, then %.500v", total.Load(), err)
		}
		at := &atStore{b: []byte("age-encryption.org/v1\n" + strings.Repeat(line, 4<<20/len(line)))}
		if _, _, err := k.DecryptAt(at, int64(len(at.b))); err == nil || at.bytes.Load() > 2<<20 || len(err.Error()) > 400 {
			t.Errorf("%d bytes read, then %.500v", at.bytes.Load(), err)
		}
	}
}

type tally struct{ n *atomic.Int64 }

func (t tally) Write(p []byte) (int, error) {
	t.n.Add(int64(len(p)))
	return len(p), nil
}

// endless repeats s.
func endless(s string) io.Reader { return &repeat{s: s} }

type repeat struct {
	s  string
	at int
}

func (r *repeat) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(p[n:], r.s[r.at:])
		n += k
		r.at = (r.at + k) % len(r.s)
	}
	return n, nil
}

// An atStore is an object in memory that counts how often it is read.
type atStore struct {
	b            []byte
	reads, bytes atomic.Int64
}

func (s *atStore) ReadAt(p []byte, off int64) (int, error) {
	s.reads.Add(1)
	s.bytes.Add(int64(len(p)))
	return bytes.NewReader(s.b).ReadAt(p, off)
}

// Any part of an object can be read, by many at once, with one request each; opening takes two.
func TestAgeDecryptAt(t *testing.T) {
	for name, p := range pairs(t) {
		if !strings.HasPrefix(name, "age") {
			continue
		}
		w, r := open(t, p.write), open(t, p.read)
		for _, n := range []int{0, 1, 1000, 65535, 65536, 65537, 131072, 200_000, 3_000_000} {
			plain := random(n)
			src := &atStore{b: encrypt(t, w, plain)}
			at, size, err := r.DecryptAt(src, int64(len(src.b)))
			if err != nil || size != int64(n) {
				t.Fatalf("%s: %d bytes: %d, %v", name, n, size, err)
			}
			if got := src.reads.Load(); got > 2 {
				t.Errorf("%s: %d bytes: %d reads to open", name, n, got)
			}
			var group sync.WaitGroup
			for seed := range uint64(4) {
				group.Go(func() {
					pick := rand.New(rand.NewPCG(seed, 1))
					for range 30 {
						off := pick.IntN(n + 1)
						part := make([]byte, pick.IntN(min(n-off, 300_000)+1))
						got, err := at.ReadAt(part, int64(off))
						if got != len(part) && off != n || err != nil && err != io.EOF || !bytes.Equal(part[:got], plain[off:off+got]) {
							t.Errorf("%s: %d bytes: at %d %d: %d, %v", name, n, off, len(part), got, err)
						}
					}
				})
			}
			group.Wait()
			if reads := src.reads.Load(); reads > 2+4*30 {
				t.Errorf("%s: %d bytes: %d reads for 120", name, n, reads)
			}
			whole, err := io.ReadAll(io.NewSectionReader(at, 0, size))
			if err != nil || !bytes.Equal(whole, plain) {
				t.Errorf("%s: %d bytes: all of it: %d, %v", name, n, len(whole), err)
			}
			big := make([]byte, n)
			if got, err := at.ReadAt(big, 0); got != n || err != nil && err != io.EOF || !bytes.Equal(big, plain) {
				t.Errorf("%s: %d bytes at once: %d, %v", name, n, got, err)
			}
			past := make([]byte, 10)
			if got, err := at.ReadAt(past, int64(n)); got != 0 || err != io.EOF {
				t.Errorf("%s: %d bytes: behind the end %d, %v", name, n, got, err)
			}
			if got, err := at.ReadAt(past, max(int64(n)-5, 0)); got != min(n, 5) || err != io.EOF {
				t.Errorf("%s: %d bytes: across the end %d, %v", name, n, got, err)
			}
			if _, err := at.ReadAt(past, -1); err == nil || err == io.EOF {
				t.Errorf("%s: a negative offset: %v", name, err)
			}
		}
	}
}

// An object that was cut short cannot be opened, and a changed byte is found when it is read.
func TestAgeDecryptAtDamage(t *testing.T) {
	p := pairs(t)["age"]
	w, r := open(t, p.write), open(t, p.read)
	plain := random(300_000)
	sealed := encrypt(t, w, plain)
	for _, at := range offsets(len(sealed)) {
		if _, _, err := r.DecryptAt(bytes.NewReader(sealed[:at]), int64(at)); err == nil {
			t.Fatalf("cut to %d of %d: opened", at, len(sealed))
		}
		sealed[at] ^= 4
		plain, size, err := r.DecryptAt(bytes.NewReader(sealed), int64(len(sealed)))
		if err == nil {
			_, err = io.ReadAll(io.NewSectionReader(plain, 0, size))
		}
		sealed[at] ^= 4
		if err == nil {
			t.Fatalf("changed at %d of %d: read", at, len(sealed))
		}
	}
	if _, _, err := r.DecryptAt(bytes.NewReader(sealed), int64(len(sealed))+1); err == nil {
		t.Error("opened with a size that is too large")
	}
	broken := errors.New("cable cut")
	at, _, err := r.DecryptAt(&cutStore{b: sealed, cut: broken, after: 2}, int64(len(sealed)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := at.ReadAt(make([]byte, 10), 100_000); !errors.Is(err, broken) {
		t.Errorf("a source that fails: %v", err)
	}
}

type cutStore struct {
	b     []byte
	cut   error
	after int
}

func (s *cutStore) ReadAt(p []byte, off int64) (int, error) {
	if s.after--; s.after < 0 {
		return 0, s.cut
	}
	return bytes.NewReader(s.b).ReadAt(p, off)
}

// What cannot be read anywhere says so, and what is not encrypted is read as it is where that is allowed.
func TestDecryptAtOfOtherKinds(t *testing.T) {
	for name, p := range pairs(t) {
		k := open(t, p.read)
		sealed := encrypt(t, open(t, p.write), random(100_000))
		_, _, err := k.DecryptAt(bytes.NewReader(sealed), int64(len(sealed)))
		var sequential *crypt.SequentialError
		if is := errors.As(err, &sequential); is == strings.HasPrefix(name, "age") || is && !strings.HasPrefix(name, string(sequential.Kind)) {
			t.Errorf("%s: %v", name, err)
		}
		for what, b := range plainObjects(t) {
			if _, _, err := k.DecryptAt(bytes.NewReader(b), int64(len(b))); err == nil {
				t.Errorf("%s: %s is accepted", name, what)
			}
			p.read.AllowPlain = true
			at, size, err := open(t, p.read).DecryptAt(bytes.NewReader(b), int64(len(b)))
			p.read.AllowPlain = false
			if err != nil || size != int64(len(b)) {
				t.Errorf("%s: %s: %d, %v", name, what, size, err)
				continue
			}
			if got, err := io.ReadAll(io.NewSectionReader(at, 0, size)); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: %s: %d bytes, %v", name, what, len(got), err)
			}
		}
	}
}

// The age program reads what we write, and we what it writes.
func TestAgeProgram(t *testing.T) {
	program := needs(t, "age")
	for _, n := range []int{0, 1, 70_000} {
		id := ageKey(t)
		dir := t.TempDir()
		plain, sealed, key := filepath.Join(dir, "plain"), filepath.Join(dir, "sealed"), filepath.Join(dir, "key")
		k := open(t, crypt.Options{Age: crypt.AgeKeys{Recipients: id.Recipient().String(), Identities: id.String()}})
		for path, b := range map[string][]byte{plain: random(n), sealed: encrypt(t, k, random(n)), key: []byte(id.String())} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := exec.Command(program, "-d", "-i", key, sealed).Output(); err != nil || !bytes.Equal(got, random(n)) {
			t.Errorf("age reads our %d bytes as %d, %v", n, len(got), err)
		}
		theirs, err := exec.Command(program, "-r", id.Recipient().String(), plain).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decrypt(k, theirs); err != nil || !bytes.Equal(got, random(n)) {
			t.Errorf("age's %d bytes are read as %d, %v", n, len(got), err)
		}
	}
}

// needs returns the path of a program, without which the test cannot be run.
func needs(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("REQUIRE_SERVICES") != "" {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	return path
}

// FuzzAge: no bytes do harm, and both ways of reading agree on what is an object.
func FuzzAge(f *testing.F) {
	id := ageKey(f)
	k := open(f, crypt.Options{Age: crypt.AgeKeys{Recipients: id.Recipient().String(), Identities: id.String()}})
	var armored bytes.Buffer
	if w, err := age.Encrypt(&armored, id.Recipient()); err == nil {
		w.Write([]byte("x"))
		w.Close()
	}
	f.Add(armored.Bytes())
	f.Add([]byte("age-encryption.org/v1\n-> X25519 A\nA\n--- A\n"))
	f.Add(encrypt(f, k, random(70_000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := decrypt(k, b)
		at, size, aterr := k.DecryptAt(bytes.NewReader(b), int64(len(b)))
		if aterr == nil {
			var got []byte
			if got, aterr = io.ReadAll(io.NewSectionReader(at, 0, size)); aterr == nil && !bytes.Equal(got, plain) {
				t.Errorf("%d bytes one way, %d the other", len(plain), len(got))
			}
		}
		if (err == nil) != (aterr == nil) {
			t.Errorf("one way %v, the other %v", err, aterr)
		}
	})
}
