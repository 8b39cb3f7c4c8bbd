package crypt_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"holdfast/internal/compress"
	"holdfast/internal/crypt"
	"holdfast/test/foreign"
)

// sizes of plain text: around the borders of what the formats cut it into.
var sizes = []int{1, 2, 100, 191, 192, 8191, 8192, 8193, 65529, 65530, 65531, 65535, 65536, 65537, 131066, 131072, 131073, 300_000}

// What is written is read again by whoever has the reading key, whatever the pieces it is read in.
func TestRoundTrip(t *testing.T) {
	for name, p := range pairs(t) {
		t.Run(name, func(t *testing.T) {
			w, r := open(t, p.write), open(t, p.read)
			for _, n := range sizes {
				plain := random(n)
				sealed := encrypt(t, w, plain)
				if bytes.Contains(sealed, plain[:min(n, 64)]) && n > 8 {
					t.Errorf("%d bytes: the plain text is in the cipher text", n)
				}
				if got, err := decrypt(r, sealed); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%d bytes come back as %d, %v", n, len(got), err)
				}
				var all bytes.Buffer
				if _, err := io.Copy(&all, w.Encrypt(iotest.OneByteReader(bytes.NewReader(plain)))); err != nil {
					t.Fatal(err)
				}
				var back bytes.Buffer
				if _, err := io.Copy(&back, r.Decrypt(iotest.HalfReader(&all))); err != nil || !bytes.Equal(back.Bytes(), plain) {
					t.Errorf("%d bytes in pieces come back as %d, %v", n, back.Len(), err)
				}
				if n < 70000 {
					small := iotest.OneByteReader(w.Encrypt(iotest.DataErrReader(bytes.NewReader(plain))))
					if got, err := io.ReadAll(iotest.OneByteReader(r.Decrypt(small))); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%d bytes byte by byte come back as %d, %v", n, len(got), err)
					}
				}
			}
		})
	}
}

// Nothing is the text of a stream too, except for KMS, whose format has no such stream: that is said when writing.
func TestEmpty(t *testing.T) {
	for name, p := range pairs(t) {
		r := open(t, p.write).Encrypt(strings.NewReader(""))
		sealed, err := io.ReadAll(r)
		if name == "aws-kms" {
			if err == nil || !strings.Contains(err.Error(), "empty") {
				t.Errorf("%s: %d bytes, %v", name, len(sealed), err)
			}
			continue
		}
		if got, derr := decrypt(open(t, p.read), sealed); err != nil || derr != nil || len(got) != 0 {
			t.Errorf("%s: %v, %d bytes, %v", name, err, len(got), derr)
		}
	}
}

// offsets returns all offsets in a short object, and of a long one those around its ends and the borders of pieces, and some
// between.
func offsets(n int) []int {
	var all []int
	for i := range n {
		near := i < 1200 || i > n-100
		for _, piece := range []int{8192 + 17, 65536 + 16, 65536 + 32, 65536 + 1} {
			d := i % piece
			near = near || d < 3 || d > piece-3
		}
		if near || n < 3000 || i%1499 == 0 {
			all = append(all, i)
		}
	}
	return all
}

// slow says which kinds need a millisecond for each object, with RSA.
func slow(name string) bool { return name == "age rsa" || name == "openpgp" }

// An object that is cut short anywhere is an error.
func TestTruncationIsAnError(t *testing.T) {
	for name, p := range pairs(t) {
		t.Run(name, func(t *testing.T) {
			w, r := open(t, p.write), open(t, p.read)
			for _, n := range []int{0, 100, 8192 * 3, 65536 * 2, 150_000} {
				if n == 0 && name == "aws-kms" {
					continue
				}
				sealed := encrypt(t, w, random(n))
				for _, at := range offsets(len(sealed)) {
					if n > 1000 && slow(name) && at%8 != 0 {
						continue
					}
					got, err := decrypt(r, sealed[:at])
					if err == nil {
						t.Fatalf("%d bytes, cut to %d of %d: accepted as %d bytes", n, at, len(sealed), len(got))
					}
					if errors.Is(err, io.EOF) {
						t.Fatalf("cut to %d of %d: %v looks like a good end", at, len(sealed), err)
					}
				}
			}
		})
	}
}

// A flipped bit anywhere is an error. Only OpenPGP has bits that mean nothing, in the header of an encrypted session key;
// then what is read is right.
func TestFlippedBitIsAnError(t *testing.T) {
	for name, p := range pairs(t) {
		t.Run(name, func(t *testing.T) {
			w, r := open(t, p.write), open(t, p.read)
			for _, n := range []int{100, 150_000} {
				plain := random(n)
				sealed := encrypt(t, w, plain)
				bits := rand.New(rand.NewPCG(1, uint64(n)))
				harmless := 0
				for _, at := range offsets(len(sealed)) {
					if n > 1000 && slow(name) && at%8 != 0 {
						continue
					}
					bit := byte(1) << bits.IntN(8)
					sealed[at] ^= bit
					got, err := decrypt(r, sealed)
					sealed[at] ^= bit
					if err != nil {
						continue
					}
					if !strings.HasPrefix(name, "openpgp") || at > 16 || !bytes.Equal(got, plain) {
						t.Fatalf("%d bytes, bit %#02x of byte %d of %d: accepted", n, bit, at, len(sealed))
					}
					harmless++
				}
				if harmless > 4 {
					t.Errorf("%d flips did no harm", harmless)
				}
			}
		})
	}
}

// What is behind the end of an object is an error.
func TestTrailingBytesAreAnError(t *testing.T) {
	for name, p := range pairs(t) {
		w, r := open(t, p.write), open(t, p.read)
		for _, n := range []int{1, 100, 65536, 70000} {
			sealed := encrypt(t, w, random(n))
			for _, tail := range [][]byte{{0}, random(50), random(70000), sealed} {
				if _, err := decrypt(r, append(slices.Clip(sealed), tail...)); err == nil {
					t.Errorf("%s: %d bytes behind an object of %d are accepted", name, len(tail), n)
				}
			}
		}
	}
}

// A wrong key is an error that says for which keys the object is and which setting to look at.
func TestWrongKeyIsAnError(t *testing.T) {
	for name, p := range pairs(t) {
		sealed := encrypt(t, open(t, p.write), random(1000))
		_, err := decrypt(open(t, p.wrong), sealed)
		if err == nil || !strings.Contains(strings.ToUpper(err.Error()), strings.ToUpper(p.wants)) || !strings.Contains(err.Error(), p.setting) {
			t.Errorf("%s: %v: want %s and %s", name, err, p.wants, p.setting)
		}
		if k := open(t, p.write); !strings.HasPrefix(name, "aws") && name != "libsodium" { // public keys only
			if _, err := decrypt(k, sealed); err == nil || !strings.Contains(err.Error(), p.setting) || !strings.Contains(strings.ToUpper(err.Error()), strings.ToUpper(p.wants)) {
				t.Errorf("%s, with the public key only: %v", name, err)
			}
		}
	}
}

// A key of another kind than the object's is an error that names the kind, where the object tells.
func TestOtherKindIsAnError(t *testing.T) {
	all := pairs(t)
	for name, p := range all {
		sealed := encrypt(t, open(t, p.write), random(20000))
		for other, q := range all {
			kind, _, _ := strings.Cut(name, " ")
			if strings.HasPrefix(other, kind) {
				continue
			}
			_, err := decrypt(open(t, q.read), sealed)
			if err == nil {
				t.Errorf("%s read with keys of %s", name, other)
			} else if name != "libsodium" && name != "aws-kms" && !strings.Contains(err.Error(), kind) {
				t.Errorf("%s with keys of %s: %v", name, other, err)
			}
		}
	}
}

// A source that fails is the stream's error as it is, whatever the libraries take it for, and never a whole object.
func TestSourceFails(t *testing.T) {
	broken := errors.New("cable cut")
	for name, p := range pairs(t) {
		w, r := open(t, p.write), open(t, p.read)
		plain := random(150_000)
		sealed := encrypt(t, w, plain)
		for _, cause := range []error{broken, io.ErrUnexpectedEOF, io.ErrClosedPipe} {
			for _, at := range []int{0, 1, 10, 100, 8192, 65536, 65537, 131072, 140_000} {
				failing := func(b []byte) io.Reader { return io.MultiReader(bytes.NewReader(b[:at]), iotest.ErrReader(cause)) }
				if _, err := io.ReadAll(w.Encrypt(failing(plain))); err != cause {
					t.Errorf("%s: encrypting stopped at %d with %v, want %v", name, at, err, cause)
				}
				if _, err := io.ReadAll(r.Decrypt(failing(sealed))); err != cause {
					t.Errorf("%s: decrypting stopped at %d with %v, want %v", name, at, err, cause)
				}
				if _, err := io.Copy(io.Discard, w.Encrypt(failing(plain))); err != cause {
					t.Errorf("%s: copying stopped at %d with %v, want %v", name, at, err, cause)
				}
			}
		}
	}
}

// A closed stream reads no more, and its source is left alone. Closing twice is fine.
func TestClose(t *testing.T) {
	for name, p := range pairs(t) {
		sealed := encrypt(t, open(t, p.write), random(300_000))
		for direction, start := range map[string]func() (io.ReadCloser, *counter){
			"encrypt": func() (io.ReadCloser, *counter) {
				c := &counter{r: bytes.NewReader(random(300_000))}
				return open(t, p.write).Encrypt(c), c
			},
			"decrypt": func() (io.ReadCloser, *counter) {
				c := &counter{r: bytes.NewReader(sealed)}
				return open(t, p.read).Decrypt(c), c
			},
		} {
			for _, first := range []int{0, 1, 70_000} {
				r, c := start()
				if _, err := io.CopyN(io.Discard, r, int64(first)); err != nil {
					t.Fatalf("%s, %s: %v", name, direction, err)
				}
				reads := c.reads
				for range 2 {
					if err := r.Close(); err != nil {
						t.Errorf("%s, %s: close: %v", name, direction, err)
					}
				}
				n, err := r.Read(make([]byte, 10))
				if n != 0 || err == nil || err == io.EOF {
					t.Errorf("%s, %s: read %d after close, %v", name, direction, n, err)
				}
				if _, err := io.Copy(io.Discard, r); err == nil {
					t.Errorf("%s, %s: copied after close", name, direction)
				}
				if c.reads != reads {
					t.Errorf("%s, %s: the source was read %d times by Close", name, direction, c.reads-reads)
				}
			}
		}
	}
}

type counter struct {
	r     io.Reader
	reads int
}

func (c *counter) Read(p []byte) (int, error) {
	c.reads++
	return c.r.Read(p)
}

// A keyring serves many goroutines at once.
func TestKeyringIsShared(t *testing.T) {
	for name, p := range pairs(t) {
		w, r := open(t, p.write), open(t, p.read)
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				plain := random(50_000 * (i + 1))
				got, err := io.ReadAll(r.Decrypt(w.Encrypt(bytes.NewReader(plain))))
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			})
		}
		group.Wait()
	}
}

// A keyring with keys of every kind reads them all, and writes with the one that is chosen.
func TestKeyringOfAllKinds(t *testing.T) {
	all := pairs(t)
	o := crypt.Options{Write: crypt.Age, Age: crypt.AgeKeys{
		Recipients: all["age"].write.Age.Recipients,
		Identities: all["age"].read.Age.Identities + "\n" + all["age hybrid"].read.Age.Identities,
	}, PGP: all["openpgp"].read.PGP, KMS: all["aws-kms"].read.KMS, Sodium: all["libsodium"].read.Sodium}
	k := open(t, o)
	for _, name := range []string{"age", "age hybrid", "openpgp", "aws-kms", "libsodium"} {
		for _, n := range sizes {
			if got, err := decrypt(k, encrypt(t, open(t, all[name].write), random(n))); err != nil || !bytes.Equal(got, random(n)) {
				t.Errorf("%s: %d bytes come back as %d, %v", name, n, len(got), err)
			}
		}
	}
	for _, kind := range []crypt.Kind{crypt.Age, crypt.PGP, crypt.KMS, crypt.Sodium} {
		o.Write = kind
		sealed := encrypt(t, open(t, o), random(100_000))
		if got, _ := crypt.Recognise(sealed, true); got != kind && !(kind == crypt.Sodium && got == "") {
			t.Errorf("asked for %s, wrote %s", kind, got)
		}
		if got, err := decrypt(open(t, all[string(kind)].read), sealed); err != nil || !bytes.Equal(got, random(100_000)) {
			t.Errorf("%s: %d bytes, %v", kind, len(got), err)
		}
	}
	o.Write = ""
	if _, err := crypt.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "HOLDFAST_ENCRYPTION") {
		t.Errorf("keys of several kinds and no choice: %v", err)
	}
}

// A stream of libsodium has no mark and may begin like anything; the key tells.
func TestSodiumThatLooksLikeSomethingElse(t *testing.T) {
	key := "0123456789abcdef0123456789abcdef"
	all := pairs(t)
	o := crypt.Options{Write: crypt.Sodium, AllowPlain: true, Sodium: crypt.SodiumKey{Key: key}, PGP: all["openpgp"].read.PGP, KMS: all["aws-kms"].read.KMS}
	for _, begin := range []string{"\x28\xb5\x2f\xfd", "\x1f\x8b\x08", "\x85\x01\x0c\x03........\x01", "\xfd7zXZ\x00", "\xd2\xff\x00\x00\x10\x00\x01", "age-encryption.org/v1"} {
		header := append([]byte(begin), random(24)...)[:24]
		sealed, err := crypt.SealSodium([32]byte([]byte(key)), header, random(10_000))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decrypt(open(t, o), sealed); err != nil || !bytes.Equal(got, random(10_000)) {
			t.Errorf("%q: %d bytes, %v", begin, len(got), err)
		}
	}
}

// plainObjects are what an archive that is not encrypted holds, with what they are called.
func plainObjects(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{
		"gzip": append([]byte("\x1f\x8b\x08\x00"), random(1000)...),
		"lzop": append([]byte("\x89LZO\x00\x0d\x0a\x1a\x0a\x10\x30"), random(1000)...),
		"lzma": append([]byte("\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00"), random(1000)...),
		"tar":  append(append(make([]byte, 257), "ustar\x0000"...), random(1000)...),
		"WAL": append([]byte{0x10, 0xd1, 7, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
			1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0x20, 0, 0}, random(1000)...),
	}
	for _, m := range []compress.Method{compress.Zstd, compress.LZ4} {
		b, err := io.ReadAll(compress.Compress(bytes.NewReader(random(100_000)), m, compress.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		all[string(m)] = b
	}
	return all
}

// An object that is not encrypted is refused under a key, unless that is allowed.
func TestPlainObjects(t *testing.T) {
	for name, p := range pairs(t) {
		strict := open(t, p.read)
		p.read.AllowPlain = true
		lax := open(t, p.read)
		for what, b := range plainObjects(t) {
			if _, err := decrypt(strict, b); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "HOLDFAST_ALLOW_UNENCRYPTED") {
				t.Errorf("%s: %s: %v", name, what, err)
			}
			if got, err := decrypt(lax, b); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: %s allowed: %d bytes of %d, %v", name, what, len(got), len(b), err)
			}
		}
		for _, b := range [][]byte{{}, {7}, random(50), random(100_000)} { // brotli looks like this
			if _, err := decrypt(strict, b); err == nil {
				t.Errorf("%s: %d bytes of something are accepted", name, len(b))
			}
			got, err := decrypt(lax, b)
			if refuse := name == "libsodium" && len(b) > 0; refuse != (err != nil) || !refuse && !bytes.Equal(got, b) {
				t.Errorf("%s: %d bytes of something allowed: %d, %v", name, len(b), len(got), err)
			}
		}
		sealed := encrypt(t, open(t, p.write), random(70_000))
		if got, err := decrypt(lax, sealed); err != nil || !bytes.Equal(got, random(70_000)) {
			t.Errorf("%s: encrypted where plain is allowed: %d bytes, %v", name, len(got), err)
		}
	}
}

// What other programs encrypted with Yandex's KMS is named, not taken for something else.
func TestYandexIsRefused(t *testing.T) {
	for name, p := range pairs(t) {
		p.read.AllowPlain = true
		for _, begin := range []string{"yckms\x01", "envelope-yc-kms\x01"} {
			if _, err := decrypt(open(t, p.read), append([]byte(begin), random(9000)...)); err == nil || !strings.Contains(err.Error(), "not supported") {
				t.Errorf("%s: %q: %v", name, begin, err)
			}
		}
	}
	for setting, o := range map[string]crypt.Options{
		"YC_CSE_KMS_KEY_ID":          {YandexKMSKeyID: "x"},
		"WALG_ENVELOPE_PGP_KEY":      {EnvelopePGPKey: "x"},
		"WALG_ENVELOPE_PGP_KEY_PATH": {EnvelopePGPKeyPath: "x"},
	} {
		if _, err := crypt.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), setting+":") {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

// Nothing set is no keyring; anything set that cannot be used is an error that names the setting and tells no secret.
func TestOpenRefuses(t *testing.T) {
	if k, err := crypt.Open(t.Context(), crypt.Options{}); k != nil || err != nil {
		t.Errorf("nothing set: %v, %v", k, err)
	}
	all := pairs(t)
	identity := all["age"].read.Age.Identities
	_, locked := sshKey(t, "ed25519")
	secret := "0123456789abcdef0123456789abcdef"
	old := expired(t)
	for name, c := range map[string]struct {
		o    crypt.Options
		want string
	}{
		"recipient mistyped":        {crypt.Options{Age: crypt.AgeKeys{Recipients: "age1xyz"}}, "HOLDFAST_AGE_RECIPIENTS: key 1"},
		"recipient of a plugin":     {crypt.Options{Age: crypt.AgeKeys{Recipients: "age1yubikey1q2w7u3vpya839jxxuq8g0sedh3d740d4xvn639sqhr95ejj8vu3hyfumptt"}}, "HOLDFAST_AGE_RECIPIENTS: key 1"},
		"identity as recipient":     {crypt.Options{Age: crypt.AgeKeys{Recipients: identity}}, "HOLDFAST_AGE_RECIPIENTS: key 1 is no recipient"},
		"no recipient":              {crypt.Options{Age: crypt.AgeKeys{Recipients: "# none\n"}}, "HOLDFAST_AGE_RECIPIENTS: there is no"},
		"recipients' file missing":  {crypt.Options{Age: crypt.AgeKeys{RecipientsPath: "/no/such"}}, "HOLDFAST_AGE_RECIPIENTS_PATH: open /no/such"},
		"recipients' file empty":    {crypt.Options{Age: crypt.AgeKeys{RecipientsPath: file(t, "")}}, "HOLDFAST_AGE_RECIPIENTS_PATH: there is no"},
		"hybrid beside X25519":      {crypt.Options{Age: crypt.AgeKeys{Recipients: all["age"].write.Age.Recipients + "," + all["age hybrid"].write.Age.Recipients}}, "HOLDFAST_AGE_RECIPIENTS"},
		"identity mistyped":         {crypt.Options{Age: crypt.AgeKeys{Identities: identity[:len(identity)-1]}}, "HOLDFAST_AGE_IDENTITIES: key 1"},
		"identity's case":           {crypt.Options{Age: crypt.AgeKeys{IdentitiesPath: file(t, "# x\n"+identity[:30]+strings.ToLower(identity[30:]))}}, "HOLDFAST_AGE_IDENTITIES_PATH: key 1"},
		"identity broken PEM":       {crypt.Options{Age: crypt.AgeKeys{Identities: locked[:len(locked)/2]}}, "HOLDFAST_AGE_IDENTITIES: the SSH key"},
		"pgp no key":                {crypt.Options{PGP: crypt.PGPKeys{Key: secret}}, "WALG_PGP_KEY: "},
		"pgp empty file":            {crypt.Options{PGP: crypt.PGPKeys{KeyPath: file(t, "")}}, "WALG_PGP_KEY_PATH: there is no"},
		"pgp file missing":          {crypt.Options{PGP: crypt.PGPKeys{KeyPath: "/no/such"}}, "WALG_PGP_KEY_PATH: open /no/such"},
		"pgp armor cut":             {crypt.Options{PGP: crypt.PGPKeys{Key: all["openpgp"].read.PGP.Key[:800]}}, "WALG_PGP_KEY: "},
		"pgp second key broken":     {crypt.Options{PGP: crypt.PGPKeys{Key: all["openpgp"].read.PGP.Key + all["openpgp ec"].read.PGP.Key[:200]}}, "WALG_PGP_KEY: "},
		"pgp message for a key":     {crypt.Options{PGP: crypt.PGPKeys{Key: "-----BEGIN PGP MESSAGE-----\n\nwy4ECQMIAAAAAAAAAAAA\n=AAAA\n-----END PGP MESSAGE-----\n"}}, "WALG_PGP_KEY: "},
		"pgp passphrase alone":      {crypt.Options{PGP: crypt.PGPKeys{Passphrase: secret}}, "WALG_PGP_KEY_PASSPHRASE"},
		"pgp expired":               {crypt.Options{PGP: crypt.PGPKeys{Key: armored(t, old, false)}}, "expired"},
		"gpg not there":             {crypt.Options{PGP: crypt.PGPKeys{GPGKeyID: "x", GPGProgram: "no-such-gpg"}}, `WALG_GPG_KEY_ID "x": gpg is not installed`},
		"sodium short":              {crypt.Options{Sodium: crypt.SodiumKey{Key: secret[:24]}}, "WALG_LIBSODIUM_KEY: a key of 24 bytes"},
		"sodium twice":              {crypt.Options{Sodium: crypt.SodiumKey{Key: secret, Path: "/x"}}, "WALG_LIBSODIUM_KEY_PATH"},
		"sodium file missing":       {crypt.Options{Sodium: crypt.SodiumKey{Path: "/no/such"}}, "WALG_LIBSODIUM_KEY_PATH: open /no/such"},
		"sodium file empty":         {crypt.Options{Sodium: crypt.SodiumKey{Path: file(t, " \n")}}, "WALG_LIBSODIUM_KEY_PATH: a key of 0 bytes"},
		"sodium not hex":            {crypt.Options{Sodium: crypt.SodiumKey{Key: "xyzxyz" + secret, Transform: "hex"}}, "WALG_LIBSODIUM_KEY: the key is not hex"},
		"sodium hex short":          {crypt.Options{Sodium: crypt.SodiumKey{Key: secret, Transform: "hex"}}, "WALG_LIBSODIUM_KEY: the key is 16 bytes"},
		"sodium not base64":         {crypt.Options{Sodium: crypt.SodiumKey{Key: "!" + secret, Transform: "base64"}}, "WALG_LIBSODIUM_KEY: the key is not base64"},
		"sodium transform":          {crypt.Options{Sodium: crypt.SodiumKey{Key: secret, Transform: "rot13"}}, `WALG_LIBSODIUM_KEY_TRANSFORM "rot13": want none, base64 or hex`},
		"sodium transform alone":    {crypt.Options{Sodium: crypt.SodiumKey{Transform: "hex"}}, "WALG_LIBSODIUM_KEY_TRANSFORM is set"},
		"kms region alone":          {crypt.Options{KMS: crypt.KMSKey{Region: "eu-central-1"}}, "WALG_CSE_KMS_REGION is set"},
		"kms half a credential":     {crypt.Options{KMS: crypt.KMSKey{KeyID: "x", Region: "eu-central-1", SecretAccessKey: secret}}, "AWS_ACCESS_KEY_ID"},
		"write without key":         {crypt.Options{Write: crypt.Age}, "HOLDFAST_ENCRYPTION"},
		"write with unknown kind":   {crypt.Options{Write: "rot13", Sodium: crypt.SodiumKey{Key: secret}}, `HOLDFAST_ENCRYPTION "rot13"`},
		"write with reading key":    {crypt.Options{Write: crypt.Age, Age: crypt.AgeKeys{Identities: identity}}, "HOLDFAST_ENCRYPTION is \"age\""},
		"write with a missing kind": {crypt.Options{Write: crypt.PGP, Sodium: crypt.SodiumKey{Key: secret}}, "HOLDFAST_ENCRYPTION is \"openpgp\""},
		"two that write": {crypt.Options{Sodium: crypt.SodiumKey{Key: secret}, Age: all["age"].write.Age},
			"keys of [age libsodium] are set, and one kind writes: say which in HOLDFAST_ENCRYPTION"},
	} {
		_, err := crypt.Open(t.Context(), c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
			continue
		}
		for _, hush := range []string{secret[:12], identity[16:28], strings.ToLower(identity[16:28]), locked[60:80]} {
			if strings.Contains(err.Error(), hush) {
				t.Errorf("%s: the error tells a secret: %v", name, err)
			}
		}
	}
	t.Setenv("AWS_CONFIG_FILE", "/no/such")
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	if _, err := crypt.Open(t.Context(), crypt.Options{KMS: crypt.KMSKey{KeyID: "x"}}); err == nil || !strings.Contains(err.Error(), "WALG_CSE_KMS_REGION") {
		t.Errorf("KMS without region: %v", err)
	}
}

// Errors call settings what the operator calls them.
func TestNames(t *testing.T) {
	_, err := crypt.Open(t.Context(), crypt.Options{Sodium: crypt.SodiumKey{Key: "short"}, Name: func(s string) string { return "my " + s }})
	if err == nil || !strings.HasPrefix(err.Error(), "my WALG_LIBSODIUM_KEY: ") {
		t.Error(err)
	}
}

// A host with secret keys only reads, and says so when it is asked to write.
func TestReaderDoesNotWrite(t *testing.T) {
	k := open(t, pairs(t)["age"].read)
	if b, err := io.ReadAll(k.Encrypt(strings.NewReader("x"))); err == nil || len(b) > 0 || !strings.Contains(err.Error(), "HOLDFAST_AGE_RECIPIENTS") {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if p, err := k.Probe(t.Context()); err != nil || p.Wrote != "" || p.Read {
		t.Errorf("%+v, %v", p, err)
	}
}

// Probe says what a host can do; IDs lists keys and no secret.
func TestProbeAndIDs(t *testing.T) {
	for name, p := range pairs(t) {
		kind, _, _ := strings.Cut(name, " ")
		public := kind == "age" || kind == "openpgp"
		w := open(t, p.write)
		if got, err := w.Probe(t.Context()); err != nil || string(got.Wrote) != kind || got.Read == public || got.Read == (got.Note != "") {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		both := p.read
		both.Age.Recipients = p.write.Age.Recipients
		k := open(t, both)
		if got, err := k.Probe(t.Context()); err != nil || string(got.Wrote) != kind || !got.Read || got.Note != "" {
			t.Errorf("%s with the secret key: %+v, %v", name, got, err)
		}
		ids := append(w.IDs(), k.IDs()...)
		if len(ids) != 2 || !ids[0].Write || ids[0].Read == public || !ids[1].Write || !ids[1].Read || ids[0].ID != ids[1].ID {
			t.Errorf("%s: %+v", name, ids)
		}
		said := fmt.Sprintf("%+v %+v %v %+v", ids, k, both, both)
		for _, hush := range []string{both.Sodium.Key, both.KMS.SecretAccessKey, both.Age.Identities} {
			if hush != "" && strings.Contains(said, hush) {
				t.Errorf("%s: a secret is told: %s", name, said)
			}
		}
	}
	all := pairs(t)
	o := all["age"].write
	o.Age.Identities = all["age"].wrong.Age.Identities
	if got, err := open(t, o).Probe(t.Context()); err == nil || got.Read {
		t.Errorf("an identity that does not fit: %+v, %v", got, err)
	}
}

// The archives that WAL-G wrote can be read with the keys beside them, and so can no damaged copy.
func TestForeignArchives(t *testing.T) {
	for _, c := range []struct {
		archive string
		o       func(key func(string) string) crypt.Options
	}{
		{"pg15-lz4-sodium-hex", func(key func(string) string) crypt.Options {
			return crypt.Options{Sodium: crypt.SodiumKey{Key: strings.TrimSpace(key("keys/sodium.hex")), Transform: "hex"}}
		}},
		{"pg15-lz4-pgp-pass", func(key func(string) string) crypt.Options {
			return crypt.Options{PGP: crypt.PGPKeys{Key: key("keys/pgp-pass.asc"), Passphrase: setting(key("env.walg"), "WALG_PGP_KEY_PASSPHRASE")}}
		}},
	} {
		t.Run(c.archive, func(t *testing.T) {
			files := map[string][]byte{}
			foreign.Each(t, c.archive, func(path string, r io.Reader) {
				b, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				files[path] = b
			})
			k := open(t, c.o(func(name string) string { return string(files[name]) }))
			read, damaged := 0, 0
			for name, sealed := range files {
				if !strings.HasSuffix(name, ".lz4") || !strings.HasPrefix(name, "archive/") {
					continue
				}
				plain, err := decrypt(k, sealed)
				if err == nil {
					_, err = io.Copy(io.Discard, compress.Decompress(bytes.NewReader(plain), compress.LZ4))
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				read++
				if damaged++; damaged > 3 {
					continue
				}
				for _, at := range []int{0, 1, 30, 600, 4000, len(sealed) / 2, len(sealed) - 1} {
					if _, err := decrypt(k, sealed[:min(at, len(sealed)-1)]); err == nil {
						t.Errorf("%s, cut to %d bytes, is accepted", name, at)
					}
					bad := bytes.Clone(sealed)
					bad[min(at, len(bad)-1)] ^= 0x10
					if _, err := decrypt(k, bad); err == nil {
						t.Errorf("%s, changed at %d, is accepted", name, at)
					}
				}
			}
			if read < 5 {
				t.Errorf("%d objects", read)
			}
		})
	}
}

// setting returns the value of a setting in a file of lines NAME=value.
func setting(env, name string) string {
	for line := range strings.Lines(env) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
