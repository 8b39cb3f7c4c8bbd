package proof_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"holdfast/internal/proof"
)

// doc is a record as a drill writes it; that it says what begins a signature does not matter.
var doc = []byte(`{"at":"2026-11-21T03:00:00Z","by":"postgres@db3","version":"1.0","ok":true,"backup":"base_000000010000000000000002",` +
	`"error":"a \"quoted\" text, \"signature\":{} \u003c\u0026\u003e","seconds":{"fetch":1},"rpo_seconds":3.5}`)

// A signed record says the same as one that is not, and one whose bytes were changed in whatever place is noticed.
func TestSignature(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := doc
	if err := proof.Verify(plain, public); !errors.Is(err, proof.ErrUnsigned) {
		t.Errorf("without a signature: %v", err)
	}
	signed, err := proof.Sign(doc, private)
	if err != nil {
		t.Fatal(err)
	}
	var x, y map[string]any
	if err := errors.Join(json.Unmarshal(plain, &x), json.Unmarshal(signed, &y)); err != nil {
		t.Fatal(err)
	}
	if len(y) != len(x)+1 || y["signature"] == nil {
		t.Errorf("signed %s, plain %s", signed, plain)
	}
	if again, err := json.Marshal(json.RawMessage(signed)); err != nil || !bytes.Equal(again, signed) { // as it is stored
		t.Errorf("stored as %s (%v)", again, err)
	}
	if err := proof.Verify(append([]byte("\n "), append(bytes.Clone(signed), '\n')...), public); err != nil {
		t.Errorf("%v: %s", err, signed)
	}
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.Verify(signed, other); !errors.Is(err, proof.ErrOtherKey) {
		t.Errorf("with another key: %v", err)
	}
	if err := proof.Verify(signed, other, public); err != nil {
		t.Errorf("with one of two keys: %v", err)
	}
	for i := range signed {
		forged := bytes.Clone(signed)
		forged[i] ^= 1
		if err := proof.Verify(forged, public); err == nil {
			t.Errorf("byte %d changed, and nobody noticed: %s", i, forged)
		}
	}
}

func FuzzVerify(f *testing.F) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	public := key.Public().(ed25519.PublicKey)
	signed, err := proof.Sign(doc, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add([]byte(`{"ok":true}`))
	f.Add([]byte(`{"ok":true,"signature":{"key":"","ed25519":""}}`))
	f.Add([]byte(`{"signature":`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if proof.Verify(b, public) == nil && !bytes.Equal(bytes.TrimSpace(b), signed) {
			// The signature itself may be written otherwise; what it signs may not.
			if at := bytes.LastIndex(signed, []byte(`,"signature":`)); !bytes.HasPrefix(bytes.TrimSpace(b), signed[:at]) {
				t.Errorf("accepted %q", b)
			}
		}
	})
}

func TestKeys(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err1 := x509.MarshalPKCS8PrivateKey(private)
	pub, err2 := x509.MarshalPKIXPublicKey(public)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	if got, err := proof.ParseKey(encode("PRIVATE KEY", der)); err != nil || !got.Equal(private) {
		t.Errorf("private key: %v", err)
	}
	if got, err := proof.ParsePublicKeys(encode("PUBLIC KEY", pub) + "\n" + encode("PUBLIC KEY", pub)); err != nil || len(got) != 2 || !got[0].Equal(public) || !got[1].Equal(public) {
		t.Errorf("public key: %v", err)
	}
	for _, text := range []string{"", "hush", encode("PRIVATE KEY", pub), encode("PRIVATE KEY", []byte("hush"))} {
		if _, err := proof.ParseKey(text); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{"", "hush", encode("PUBLIC KEY", der), encode("PUBLIC KEY", pub) + encode("PUBLIC KEY", der)} {
		if _, err := proof.ParsePublicKeys(text); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q is taken for public keys (%v)", text, err)
		}
	}
}
