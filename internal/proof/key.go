package proof

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// signatureKey is what the signature follows in a record: it is the last member, and what it signs is the record without it.
const signatureKey = `,"signature":`

// signature is who vouches for a record.
type signature struct {
	Key     string `json:"key"` // which one: see KeyID
	Ed25519 string `json:"ed25519"`
}

// KeyID names a public key: the first 16 hexadecimal digits of its SHA-256.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:8])
}

// ParseKey reads a private key for signatures: Ed25519 in PKCS #8, in PEM, as `openssl genpkey -algorithm ed25519` writes it. Errors do not show what was read.
func ParseKey(text string) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("it is no key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if private, ok := key.(ed25519.PrivateKey); err == nil && ok {
		return private, nil
	}
	return nil, errors.New("it is no private key for Ed25519: `openssl genpkey -algorithm ed25519` makes one")
}

// ParsePublicKeys reads the public halves, as `openssl pkey -pubout` writes them, one or several one after another. Errors do not show what was read.
func ParsePublicKeys(text string) (keys []ed25519.PublicKey, err error) {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		public, ok := key.(ed25519.PublicKey)
		if err != nil || !ok {
			return nil, errors.New("it is no public key for Ed25519: `openssl pkey -pubout` writes that of a private one")
		}
		keys = append(keys, public)
	}
	if len(keys) == 0 {
		return nil, errors.New("it is no key in PEM")
	}
	return keys, nil
}

// Sign returns the document, a JSON object, with the signature of key as its last member.
func Sign(doc []byte, key ed25519.PrivateKey) ([]byte, error) {
	s, err := json.Marshal(signature{KeyID(key.Public().(ed25519.PublicKey)), base64.StdEncoding.EncodeToString(ed25519.Sign(key, doc))})
	if err != nil {
		return nil, err
	}
	doc = append(bytes.TrimSuffix(bytes.Clone(doc), []byte("}")), signatureKey...)
	return append(append(doc, s...), '}'), nil
}

// Of signatures: what Verify says.
var (
	ErrUnsigned = errors.New("it is not signed")
	ErrOtherKey = errors.New("it is signed with another key")
	ErrForged   = errors.New("its signature is wrong: it was changed after it was written, or forged")
)

// Verify checks the signature of a stored record: nil is that who has the private half of one of keys has written it, as it is.
func Verify(stored []byte, keys ...ed25519.PublicKey) error {
	doc, s := split(stored)
	if s == nil {
		return ErrUnsigned
	}
	i := slices.IndexFunc(keys, func(k ed25519.PublicKey) bool { return KeyID(k) == s.Key })
	if i < 0 {
		return fmt.Errorf("%w, %.16q", ErrOtherKey, s.Key)
	}
	sum, err := base64.StdEncoding.DecodeString(s.Ed25519)
	if err != nil || !ed25519.Verify(keys[i], doc, sum) {
		return ErrForged
	}
	return nil
}

// split returns what is signed of a stored record, and the signature; nil where there is none.
func split(stored []byte) (doc []byte, s *signature) {
	stored = bytes.TrimSpace(stored)
	at := bytes.LastIndex(stored, []byte(signatureKey))
	if at < 0 || stored[len(stored)-1] != '}' {
		return nil, nil
	}
	s = &signature{}
	if err := json.Unmarshal(stored[at+len(signatureKey):len(stored)-1], s); err != nil {
		return nil, nil
	}
	return append(bytes.Clone(stored[:at]), '}'), s
}
