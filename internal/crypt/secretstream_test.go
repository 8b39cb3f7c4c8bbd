package crypt_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"testing"

	"holdfast/internal/crypt"
)

// text is what testdata/secretstream/make.py encrypts.
func text(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*i/7 + i)
	}
	return b
}

// What libsodium wrote we write the same, to the byte, and read.
func TestSecretstreamIsLibsodiums(t *testing.T) {
	var golden struct {
		Key     string
		Streams []struct {
			Size           int
			Header, SHA256 string
		}
	}
	b, err := os.ReadFile("testdata/secretstream/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	key, _ := hex.DecodeString(golden.Key)
	keyring := open(t, crypt.Options{Sodium: crypt.SodiumKey{Key: golden.Key, Transform: "hex"}})
	if len(golden.Streams) < 50 {
		t.Fatalf("%d streams", len(golden.Streams))
	}
	for _, s := range golden.Streams {
		header, _ := hex.DecodeString(s.Header)
		sealed, err := crypt.SealSodium([32]byte(key), header, text(s.Size))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(sealed); hex.EncodeToString(sum[:]) != s.SHA256 {
			t.Errorf("%d bytes: not what libsodium writes", s.Size)
		}
		if got, err := decrypt(keyring, sealed); err != nil || !bytes.Equal(got, text(s.Size)) {
			t.Errorf("%d bytes: read as %d bytes, %v", s.Size, len(got), err)
		}
	}
	sealed, err := os.ReadFile("testdata/secretstream/20001.bin")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decrypt(keyring, sealed); err != nil || !bytes.Equal(got, text(20001)) {
		t.Errorf("libsodium's stream read as %d bytes, %v", len(got), err)
	}
}

// A stream that ends with a whole chunk has an empty one behind it, for WAL-G takes no full chunk as the last.
func TestSecretstreamChunks(t *testing.T) {
	keyring := open(t, crypt.Options{Sodium: crypt.SodiumKey{Key: "0123456789abcdef0123456789abcdef"}})
	for plain, want := range map[int]int{
		0: 24 + 17, 1: 24 + 18, crypt.SodiumChunk - 1: 24 + 17 + crypt.SodiumChunk - 1,
		crypt.SodiumChunk:     24 + 17 + crypt.SodiumChunk + 17,
		8 * crypt.SodiumChunk: 24 + 8*(17+crypt.SodiumChunk) + 17,
	} {
		if sealed := encrypt(t, keyring, text(plain)); len(sealed) != want {
			t.Errorf("%d bytes become %d, want %d", plain, len(sealed), want)
		}
	}
}

// Keys are read as WAL-G reads them.
func TestSodiumKeys(t *testing.T) {
	long := "0123456789abcdef0123456789abcdef"
	write := func(key string) string {
		path := t.TempDir() + "/key"
		if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	same := []crypt.SodiumKey{
		{Key: long},
		{Key: long, Transform: "none"},
		{Key: long + "cut off"},
		{Path: write(long)},
		{Path: write("\n " + long + " \n")},
		{Key: hex.EncodeToString([]byte(long)), Transform: "hex"},
		{Path: write(hex.EncodeToString([]byte(long)) + "\n"), Transform: "hex"},
		{Key: "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", Transform: "base64"},
	}
	sealed := encrypt(t, open(t, crypt.Options{Sodium: same[0]}), text(100))
	for _, k := range same {
		if got, err := decrypt(open(t, crypt.Options{Sodium: k}), sealed); err != nil || !bytes.Equal(got, text(100)) {
			t.Errorf("%+v: %v", k, err)
		}
	}
	short := crypt.SodiumKey{Key: long[:25]}
	padded := crypt.SodiumKey{Key: hex.EncodeToString(append([]byte(long[:25]), make([]byte, 7)...)), Transform: "hex"}
	sealed = encrypt(t, open(t, crypt.Options{Sodium: short}), text(100))
	if _, err := decrypt(open(t, crypt.Options{Sodium: padded}), sealed); err != nil {
		t.Errorf("a short key is not filled up with zeros: %v", err)
	}
}

// FuzzSecretstream: what is not a stream of the key is refused without harm, and what is comes back.
func FuzzSecretstream(f *testing.F) {
	keyring := open(f, crypt.Options{Sodium: crypt.SodiumKey{Key: "0123456789abcdef0123456789abcdef"}})
	for _, n := range []int{0, 7, 8, 8192, 8200} {
		f.Add(encrypt(f, keyring, text(n)))
		f.Add(text(n))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if plain, err := decrypt(keyring, b); err == nil {
			sealed, err := crypt.SealSodium([32]byte([]byte("0123456789abcdef0123456789abcdef")), b[:24], plain)
			if err != nil || !bytes.Equal(sealed, b) {
				t.Errorf("%d bytes accepted that we would not have written (%v)", len(b), err)
			}
		}
		sealed := encrypt(t, keyring, b)
		if plain, err := decrypt(keyring, sealed); err != nil || !bytes.Equal(plain, b) {
			t.Errorf("%d bytes come back as %d, %v", len(b), len(plain), err)
		}
	})
}

// encrypt returns the cipher text of plain.
func encrypt(t testing.TB, k *crypt.Keyring, plain []byte) []byte {
	t.Helper()
	r := k.Encrypt(bytes.NewReader(plain))
	defer r.Close()
	sealed, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// decrypt returns the plain text of sealed.
func decrypt(k *crypt.Keyring, sealed []byte) ([]byte, error) {
	r := k.Decrypt(bytes.NewReader(sealed))
	defer r.Close()
	return io.ReadAll(r)
}

func open(t testing.TB, o crypt.Options) *crypt.Keyring {
	t.Helper()
	k, err := crypt.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
