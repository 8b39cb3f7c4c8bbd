package crypt_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"holdfast/internal/crypt"
)

// A gpgHome is a key ring of the real gpg.
type gpgHome struct {
	t   *testing.T
	gpg string
	dir string
}

func newGPG(t *testing.T) *gpgHome {
	t.Helper()
	g := &gpgHome{t: t, gpg: needs(t, "gpg")}
	dir, err := os.MkdirTemp("", "gpg") // the agent's socket wants a short path
	if err != nil {
		t.Fatal(err)
	}
	g.dir = dir
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", dir, "--kill", "all").Run()
		os.RemoveAll(dir)
	})
	return g
}

// run runs gpg and returns what it wrote.
func (g *gpgHome) run(stdin []byte, arg ...string) []byte {
	g.t.Helper()
	cmd := exec.Command(g.gpg, append([]string{"--homedir", g.dir, "--batch", "--yes", "--no-tty", "--trust-model", "always", "--pinentry-mode", "loopback"}, arg...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		g.t.Fatalf("gpg %v: %v\n%s", arg, err, stderr.Bytes())
	}
	return out
}

// key makes a key for name@x.
func (g *gpgHome) key(name, passphrase, algorithm string) {
	g.t.Helper()
	g.run(nil, "--passphrase", passphrase, "--quick-gen-key", name+" <"+name+"@x>", algorithm, "default", "never")
}

// forgetPassphrases makes the agent forget what it was told.
func (g *gpgHome) forgetPassphrases() {
	g.t.Helper()
	if out, err := exec.Command("gpgconf", "--homedir", g.dir, "--kill", "gpg-agent").CombinedOutput(); err != nil {
		g.t.Fatalf("%v: %s", err, out)
	}
}

// What gpg writes we read, in all its forms, cut short nowhere and changed nowhere; what we write gpg reads.
func TestGPGReadsAndWrites(t *testing.T) {
	g := newGPG(t)
	g.key("rsa", "", "default")
	g.key("ec", "", "future-default")
	g.key("locked", "hush", "future-default")
	secret := map[string]crypt.PGPKeys{
		"rsa":    {Key: string(g.run(nil, "--armor", "--export-secret-keys", "rsa@x"))},
		"ec":     {Key: strings.ReplaceAll(string(g.run(nil, "--armor", "--export-secret-keys", "ec@x")), "\n", `\n`)},
		"locked": {KeyPath: file(t, string(g.run(nil, "--passphrase", "hush", "--export-secret-keys", "locked@x"))), Passphrase: "hush"},
	}
	public := map[string]string{}
	for name := range secret {
		public[name] = string(g.run(nil, "--armor", "--export", name+"@x"))
	}
	for name, keys := range secret {
		for _, n := range []int{0, 1, 100, 65530, 65531, 65536, 400_000} {
			plain := random(n)
			w := open(t, crypt.Options{PGP: crypt.PGPKeys{Key: public["rsa"] + public["ec"] + public["locked"]}})
			if ids := w.IDs(); len(ids) != 3 || ids[0].Read || !ids[0].Write {
				t.Fatalf("%+v", ids)
			}
			sealed := encrypt(t, w, plain)
			if got := g.run(sealed, "--passphrase", "hush", "--decrypt"); !bytes.Equal(got, plain) {
				t.Errorf("gpg reads our %d bytes as %d", n, len(got))
			}
			if got, err := decrypt(open(t, crypt.Options{PGP: keys}), sealed); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s reads our %d bytes as %d, %v", name, n, len(got), err)
			}
		}
		k := open(t, crypt.Options{PGP: keys})
		for _, how := range [][]string{
			{"-z", "0"}, // as WAL-E does
			{},
			{"--compress-algo", "bzip2"},
			{"--compress-algo", "zlib"},
			{"--cipher-algo", "3DES"},
			{"--cipher-algo", "CAST5", "-z", "0"},
			{"--cipher-algo", "AES192", "-z", "0"},
			{"--cipher-algo", "AES", "-z", "0"},
			{"--throw-keyids", "-z", "0"},
			{"--sign", "-u", "ec@x"},
			{"-r", "rsa@x", "-r", "ec@x", "-z", "0"},
		} {
			if name != "ec" && len(how) != 2 {
				continue // the ways to encrypt data have nothing to do with keys
			}
			arg := append([]string{"--encrypt", "-r", name + "@x"}, how...)
			for _, n := range []int{0, 100, 100_000} {
				plain := random(n)
				sealed := g.run(plain, append([]string{"-o", "-"}, arg...)...) // from a pipe: partial lengths
				if got, err := decrypt(k, sealed); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%s: gpg's %v of %d bytes is read as %d, %v", name, how, n, len(got), err)
				}
				sealed = g.run(nil, append(append([]string{"-o", "-"}, arg...), file(t, string(plain)))...) // from a file: true lengths
				if got, err := decrypt(k, sealed); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%s: gpg's %v of a file of %d bytes is read as %d, %v", name, how, n, len(got), err)
				}
				if name != "ec" {
					continue
				}
				for _, at := range offsets(len(sealed)) {
					if n > 1000 && at%7 != 0 {
						continue
					}
					if got, err := decrypt(k, sealed[:at]); err == nil || errors.Is(err, io.EOF) {
						t.Fatalf("gpg's %v of %d bytes, cut to %d of %d: read as %d bytes, %v", how, n, at, len(sealed), len(got), err)
					}
					sealed[at] ^= 0x20
					if got, err := decrypt(k, sealed); err == nil && !bytes.Equal(got, plain) {
						t.Fatalf("gpg's %v of %d bytes, changed at %d: accepted", how, n, at)
					}
					sealed[at] ^= 0x20
				}
			}
		}
	}
}

// A key in gpg's key ring writes and reads without leaving it, with its passphrase where it has one; what does not work is
// said.
func TestGPGKeyID(t *testing.T) {
	g := newGPG(t)
	g.key("plain", "", "future-default")
	g.key("locked", "hush", "default")
	home := func(k crypt.PGPKeys) crypt.Options {
		k.GPGHome = g.dir
		return crypt.Options{PGP: k}
	}
	for _, k := range []crypt.PGPKeys{{GPGKeyID: "plain@x"}, {GPGKeyID: "locked@x", Passphrase: "hush"}} {
		g.forgetPassphrases()
		ring := open(t, home(k))
		sealed := encrypt(t, ring, random(200_000))
		if got := g.run(sealed, "--passphrase", "hush", "--decrypt"); !bytes.Equal(got, random(200_000)) {
			t.Errorf("%s: gpg reads %d bytes", k.GPGKeyID, len(got))
		}
		if got, err := decrypt(ring, sealed); err != nil || !bytes.Equal(got, random(200_000)) {
			t.Errorf("%s: %d bytes, %v", k.GPGKeyID, len(got), err)
		}
		theirs := g.run(random(200_000), "-o", "-", "--encrypt", "-z", "0", "-r", k.GPGKeyID)
		if got, err := decrypt(ring, theirs); err != nil || !bytes.Equal(got, random(200_000)) {
			t.Errorf("%s: gpg's: %d bytes, %v", k.GPGKeyID, len(got), err)
		}
		if _, err := decrypt(ring, theirs[:150_000]); err == nil {
			t.Errorf("%s: gpg's cut short is accepted", k.GPGKeyID)
		}
		if p, err := ring.Probe(t.Context()); err != nil || p.Wrote != crypt.PGP || !p.Read {
			t.Errorf("%s: %+v, %v", k.GPGKeyID, p, err)
		}
		if ids := ring.IDs(); len(ids) != 1 || !ids[0].Write || !ids[0].Read || !strings.Contains(ids[0].Note, "gpg") {
			t.Errorf("%s: %+v", k.GPGKeyID, ids)
		}
	}

	locked := open(t, home(crypt.PGPKeys{GPGKeyID: "locked@x"}))
	g.forgetPassphrases()
	sealed := encrypt(t, locked, random(100))
	for passphrase, k := range map[string]*crypt.Keyring{"": locked, "wrong": open(t, home(crypt.PGPKeys{GPGKeyID: "locked@x", Passphrase: "wrong"}))} {
		g.forgetPassphrases()
		if _, err := decrypt(k, sealed); err == nil || !strings.Contains(err.Error(), "WALG_PGP_KEY_PASSPHRASE") || passphrase != "" && strings.Contains(err.Error(), passphrase+"\n") {
			t.Errorf("passphrase %q: %v", passphrase, err)
		}
		if _, err := k.Probe(t.Context()); err == nil {
			t.Errorf("passphrase %q: the probe does not see it", passphrase)
		}
	}

	// A host that has the public key only.
	public := newGPG(t)
	public.run(g.run(nil, "--export", "plain@x"), "--import")
	k := open(t, crypt.Options{PGP: crypt.PGPKeys{GPGKeyID: "plain@x", GPGHome: public.dir}})
	sealed = encrypt(t, k, random(100))
	if got := g.run(sealed, "--decrypt"); !bytes.Equal(got, random(100)) {
		t.Errorf("gpg reads %d bytes", len(got))
	}
	id := k.IDs()[0].ID
	if _, err := decrypt(k, sealed); err == nil || !strings.Contains(err.Error(), id) || !strings.Contains(err.Error(), "gpg has none") {
		t.Errorf("without the secret key: %v", err)
	}
	if p, err := k.Probe(t.Context()); err != nil || p.Read || p.Note == "" {
		t.Errorf("without the secret key: %+v, %v", p, err)
	}

	for _, id := range []string{"nobody@x", "--version", "-o", "plain@x extra"} {
		if _, err := crypt.Open(t.Context(), home(crypt.PGPKeys{GPGKeyID: id})); err == nil || !strings.Contains(err.Error(), "WALG_GPG_KEY_ID") {
			t.Errorf("id %q: %v", id, err)
		}
	}
	if _, err := crypt.Open(t.Context(), crypt.Options{PGP: crypt.PGPKeys{GPGKeyID: "x", GPGHome: "/no/such"}}); err == nil || !strings.Contains(err.Error(), "WALG_GPG_KEY_ID") {
		t.Errorf("no key ring: %v", err)
	}
}

// The library of WAL-G reads what we write: with AES-256 if all recipients know it, else AES-128, and in the form that every
// program knows.
func TestPGPFormat(t *testing.T) {
	a, b := pgpKey(t, "a", packet.PubKeyAlgoEdDSA), pgpKey(t, "b", packet.PubKeyAlgoEdDSA)
	old, err := openpgp.NewEntity("old", "", "old@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, DefaultCipher: packet.CipherAES128})
	if err != nil {
		t.Fatal(err)
	}
	for want, to := range map[packet.CipherFunction][]*openpgp.Entity{packet.CipherAES256: {a, b, a}, packet.CipherAES128: {a, old}} {
		var text string
		for _, e := range to {
			text += armored(t, e, false)
		}
		k := open(t, crypt.Options{PGP: crypt.PGPKeys{Key: text}})
		for _, n := range []int{0, 10, 1000, 9000, 65530, 65531, 70_000, 200_000} {
			sealed := encrypt(t, k, random(n))
			m, err := openpgp.ReadMessage(bytes.NewReader(sealed), openpgp.EntityList{a}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(m.UnverifiedBody)
			if err != nil || !bytes.Equal(got, random(n)) || len(m.EncryptedToKeyIds) != 2 || m.IsSigned || !m.LiteralData.IsBinary || m.LiteralData.Time != 0 {
				t.Errorf("%d bytes: %d, %v, %+v", n, len(got), err, m)
			}
			packets := packet.NewReader(bytes.NewReader(sealed))
			p, err := packets.Next()
			if err != nil {
				t.Fatal(err)
			}
			key := p.(*packet.EncryptedKey)
			if err := key.Decrypt(a.Subkeys[0].PrivateKey, nil); err != nil || key.CipherFunc != want {
				t.Errorf("cipher %v, want %v, %v", key.CipherFunc, want, err)
			}
			packets.Next()
			if p, err = packets.Next(); err != nil || p.(*packet.SymmetricallyEncrypted).Version != 1 {
				t.Errorf("%T, %v", p, err)
			}
		}
	}
}

// Messages with authenticated encryption, which newer programs write, are read.
func TestPGPWithAEAD(t *testing.T) {
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, AEADConfig: &packet.AEADConfig{DefaultMode: packet.AEADModeOCB, ChunkSize: 1 << 8}}
	e, err := openpgp.NewEntity("new", "", "new@example.org", config)
	if err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := openpgp.Encrypt(&sealed, []*openpgp.Entity{e}, nil, nil, config)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(random(1000))
	w.Close()
	k := open(t, crypt.Options{PGP: crypt.PGPKeys{Key: armored(t, e, true)}})
	if got, err := decrypt(k, sealed.Bytes()); err != nil || !bytes.Equal(got, random(1000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	b := sealed.Bytes()
	for at := range b {
		if _, err := decrypt(k, b[:at]); err == nil {
			t.Fatalf("cut to %d of %d: accepted", at, len(b))
		}
		b[at] ^= 1
		if got, err := decrypt(k, b); err == nil && !bytes.Equal(got, random(1000)) {
			t.Fatalf("changed at %d: accepted", at)
		}
		b[at] ^= 1
	}
	if ours := encrypt(t, k, random(10)); !bytes.Contains(ours, []byte{0xd2, 59, 1}) && !bytes.Contains(ours, []byte{0xd2, 59 - 1, 1}) {
		t.Errorf("what we write for such a key is not of version 1: %x", ours)
	}
}

// A message that is not encrypted, or without a modification detection code, or with a passphrase, is refused: anybody could
// have made it.
func TestPGPRefuses(t *testing.T) {
	e := pgpKey(t, "a", packet.PubKeyAlgoEdDSA)
	k := open(t, crypt.Options{PGP: crypt.PGPKeys{Key: armored(t, e, true)}})
	sealed := encrypt(t, k, random(100))
	at := len(sealed) - (1 + 18 + 2 + 6 + 100 + 22) - 2 // version, random bytes, literal data, detection code; tag and length
	if sealed[at] != 0xd2 {
		t.Fatalf("%x", sealed)
	}
	head := sealed[:at]
	var literal, secret bytes.Buffer
	w, err := packet.SerializeLiteral(closer{&literal}, true, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(random(100))
	w.Close()
	s, err := openpgp.SymmetricallyEncrypt(&secret, []byte("hush"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Write(random(100))
	s.Close()
	for name, c := range map[string]struct {
		sealed []byte
		want   string
	}{
		"text in the clear":             {literal.Bytes(), "not"},
		"text behind a session key":     {slices.Concat(head, literal.Bytes()), "not encrypted"},
		"no modification detection":     {slices.Concat(head, []byte{0xc9, 100}, random(100)), "modification detection"},
		"no modification detection old": {slices.Concat(head, []byte{0xa7}, random(100)), "modification detection"},
		"session key only":              {head, "unexpected EOF"},
		"passphrase":                    {secret.Bytes(), "passphrase"},
		"session keys without end":      {bytes.Repeat(head, 20000), "longer than any header"},
	} {
		if got, err := decrypt(k, c.sealed); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

// A secret key with a passphrase writes; it reads with the passphrase, and says what is wrong without.
func TestPGPPassphrase(t *testing.T) {
	e := pgpKey(t, "a", packet.PubKeyAlgoEdDSA)
	if err := e.EncryptPrivateKeys([]byte("hush"), nil); err != nil {
		t.Fatal(err)
	}
	text := armored(t, e, true)
	good := open(t, crypt.Options{PGP: crypt.PGPKeys{Key: text, Passphrase: "hush"}})
	sealed := encrypt(t, good, random(1000))
	if got, err := decrypt(good, sealed); err != nil || !bytes.Equal(got, random(1000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for passphrase, want := range map[string]string{"": "none is set", "hush2": "does not open"} {
		k := open(t, crypt.Options{PGP: crypt.PGPKeys{Key: text, Passphrase: passphrase}})
		sealed := encrypt(t, k, random(1000))
		if got, err := decrypt(good, sealed); err != nil || !bytes.Equal(got, random(1000)) {
			t.Errorf("written without the passphrase: %d bytes, %v", len(got), err)
		}
		for range 2 {
			if _, err := decrypt(k, sealed); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "WALG_PGP_KEY_PASSPHRASE") || strings.Contains(err.Error(), "hush") {
				t.Errorf("passphrase %q: %v", passphrase, err)
			}
		}
		p, err := k.Probe(t.Context())
		if passphrase == "" && (err != nil || p.Read || p.Note == "") || passphrase != "" && err == nil {
			t.Errorf("passphrase %q: %+v, %v", passphrase, p, err)
		}
		if ids := k.IDs(); passphrase == "" && (len(ids) != 1 || ids[0].Read || !strings.Contains(ids[0].Note, "locked")) {
			t.Errorf("%+v", ids)
		}
	}
}

// A key that has expired still reads, and the list says when one does.
func TestPGPExpiry(t *testing.T) {
	old := expired(t)
	k := open(t, crypt.Options{PGP: crypt.PGPKeys{Key: armored(t, old, true)}})
	var sealed bytes.Buffer
	w, err := openpgp.Encrypt(&sealed, []*openpgp.Entity{old}, nil, nil, &packet.Config{Time: func() time.Time { return old.PrimaryKey.CreationTime }})
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("from 2015"))
	w.Close()
	if got, err := decrypt(k, sealed.Bytes()); err != nil || string(got) != "from 2015" {
		t.Errorf("%q, %v", got, err)
	}
	if b, err := io.ReadAll(k.Encrypt(strings.NewReader("x"))); err == nil || len(b) > 0 || !strings.Contains(err.Error(), "expired") {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	lives, err := openpgp.NewEntity("lives", "", "l@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, KeyLifetimeSecs: 86400 * 365})
	if err != nil {
		t.Fatal(err)
	}
	ids := open(t, crypt.Options{PGP: crypt.PGPKeys{Key: armored(t, lives, false)}}).IDs()
	if want := "expires " + time.Now().AddDate(0, 0, 365).UTC().Format(time.DateOnly); len(ids) != 1 || !strings.Contains(ids[0].Note, want) {
		t.Errorf("%+v, want %s", ids, want)
	}
}

// FuzzPGP: no bytes do harm, and what a keyring writes it reads.
func FuzzPGP(f *testing.F) {
	e := pgpKey(f, "a", packet.PubKeyAlgoEdDSA)
	k := open(f, crypt.Options{PGP: crypt.PGPKeys{Key: armored(f, e, true)}})
	session := bytes.Repeat([]byte{7}, 32)
	var head bytes.Buffer
	if err := packet.SerializeEncryptedKey(&head, e.Subkeys[0].PublicKey, packet.CipherAES256, session, nil); err != nil {
		f.Fatal(err)
	}
	for _, n := range []int{0, 100, 70_000} {
		f.Add(encrypt(f, k, random(n)))
	}
	f.Add(append(head.Bytes(), 0xd2, 40, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		decrypt(k, b)
		decrypt(k, append(head.Bytes(), b...))
		// Data that decrypts to what was made up.
		var sealed bytes.Buffer
		sealed.Write(head.Bytes())
		w, err := packet.SerializeSymmetricallyEncrypted(&sealed, packet.CipherAES256, false, packet.CipherSuite{}, session, nil)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(b)
		w.Close()
		decrypt(k, sealed.Bytes())
		if got, err := decrypt(k, encrypt(t, k, b)); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes come back as %d, %v", len(b), len(got), err)
		}
	})
}
