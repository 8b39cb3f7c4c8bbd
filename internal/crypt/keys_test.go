package crypt_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/crypto/ssh"

	"holdfast/internal/crypt"
)

// A pair is the keys of a host that writes, of one that reads, and of one that has others of the kind.
type pair struct {
	write, read, wrong crypt.Options
	wants              string // what the error of the wrong host says: for which keys the object is
	setting            string // and where to look
}

// pairs returns keys of every kind.
func pairs(t testing.TB) map[string]pair {
	t.Helper()
	x, y := ageKey(t), ageKey(t)
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	edPublic, edSecret := sshKey(t, "ed25519")
	rsaPublic, rsaSecret := sshKey(t, "rsa")
	a, b := pgpKey(t, "a", packet.PubKeyAlgoRSA), pgpKey(t, "b", packet.PubKeyAlgoEdDSA)
	server := fakeKMS(t, 184)
	other := fakeKMS(t, 184)
	secret := "0123456789abcdef0123456789abcdef"
	agePair := func(recipient, identity, stanza string) pair {
		return pair{
			write: crypt.Options{Age: crypt.AgeKeys{Recipients: recipient}},
			read:  crypt.Options{Age: crypt.AgeKeys{Identities: identity}},
			wrong: crypt.Options{Age: crypt.AgeKeys{Identities: y.String()}},
			wants: stanza, setting: "HOLDFAST_AGE_IDENTITIES",
		}
	}
	pgpPair := func(e *openpgp.Entity) pair {
		return pair{
			write: crypt.Options{PGP: crypt.PGPKeys{Key: armored(t, e, false)}},
			read:  crypt.Options{PGP: crypt.PGPKeys{Key: armored(t, e, true)}},
			wrong: crypt.Options{PGP: crypt.PGPKeys{Key: armored(t, pgpKey(t, "c", packet.PubKeyAlgoEdDSA), true)}},
			wants: e.Subkeys[0].PublicKey.KeyIdString(), setting: "WALG_PGP_KEY",
		}
	}
	sodium := crypt.Options{Sodium: crypt.SodiumKey{Key: secret}}
	return map[string]pair{
		"age":         agePair(x.Recipient().String(), x.String(), `"X25519"`),
		"age hybrid":  agePair(pq.Recipient().String(), pq.String(), `"mlkem768x25519"`),
		"age ed25519": agePair(edPublic, edSecret, `"ssh-ed25519 `),
		"age rsa":     agePair(rsaPublic, rsaSecret, `"ssh-rsa `),
		"openpgp":     pgpPair(a),
		"openpgp ec":  pgpPair(b),
		"aws-kms":     {write: server.options(), read: server.options(), wrong: other.options(), wants: "InvalidCiphertextException", setting: "WALG_CSE_KMS_ID"},
		"libsodium": {write: sodium, read: sodium, wrong: crypt.Options{Sodium: crypt.SodiumKey{Key: strings.ToUpper(secret)}},
			wants: "another key", setting: "WALG_LIBSODIUM_KEY"},
	}
}

func ageKey(t testing.TB) *age.X25519Identity {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sshKey returns a public key as in authorized_keys, and the secret one in PEM.
func sshKey(t testing.TB, algorithm string) (public, secret string) {
	t.Helper()
	var key any
	var pub ssh.PublicKey
	var err error
	if algorithm == "rsa" {
		k, kerr := rsa.GenerateKey(rand.Reader, 2048)
		if kerr != nil {
			t.Fatal(kerr)
		}
		key = k
		pub, err = ssh.NewPublicKey(&k.PublicKey)
	} else {
		p, k, kerr := ed25519.GenerateKey(rand.Reader)
		if kerr != nil {
			t.Fatal(kerr)
		}
		key = k
		pub, err = ssh.NewPublicKey(p)
	}
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "test")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub))), string(pem.EncodeToMemory(block))
}

func pgpKey(t testing.TB, name string, algorithm packet.PublicKeyAlgorithm) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity(name, "", name+"@example.org", &packet.Config{Algorithm: algorithm, DefaultCipher: packet.CipherAES256})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// armored returns a key as text.
func armored(t testing.TB, e *openpgp.Entity, secret bool) string {
	t.Helper()
	var b bytes.Buffer
	kind, serialize := openpgp.PublicKeyType, e.Serialize
	if secret {
		kind = openpgp.PrivateKeyType
	}
	w, err := armor.Encode(&b, kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	if secret {
		err = e.SerializePrivateWithoutSigning(w, nil)
	} else {
		err = serialize(w)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A kmsServer is an AWS KMS of two calls: a data key is encrypted with a key of the server's own, in a blob of any length.
type kmsServer struct {
	*httptest.Server
	aead cipher.AEAD
	blob int

	mu    sync.Mutex
	calls map[string]int
	fail  string // the code of an error to answer

	misleading string            // what encrypted data keys have in their middle
	misled     map[string][]byte // as they would be without
}

func fakeKMS(t testing.TB, blob int) *kmsServer {
	key := make([]byte, 32)
	rand.Read(key)
	block, _ := aes.NewCipher(key)
	aead, _ := cipher.NewGCM(block)
	s := &kmsServer{aead: aead, blob: blob, calls: map[string]int{}, misled: map[string][]byte{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *kmsServer) options() crypt.Options {
	return crypt.Options{KMS: crypt.KMSKey{KeyID: "alias/holdfast", Region: "eu-central-1", Endpoint: s.URL, AccessKeyID: "AKID", SecretAccessKey: "hush"}}
}

func (s *kmsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		KeyId, KeySpec string
		CiphertextBlob []byte
	}
	json.NewDecoder(r.Body).Decode(&in)
	s.mu.Lock()
	defer s.mu.Unlock()
	call := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	s.calls[call]++
	refuse := func(code string) {
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": "no"})
	}
	begin := []byte("\x01\x02\x02\x00\x78") // as AWS's
	answer := map[string]any{"KeyId": "arn:aws:kms:eu-central-1:1:key/1"}
	switch {
	case s.fail != "":
		refuse(s.fail)
		return
	case call == "GenerateDataKey" && in.KeySpec == "AES_256":
		plain := make([]byte, s.blob-len(begin)-12-16) // the data key, and what fills up
		rand.Read(plain[:32])
		nonce := make([]byte, 12)
		rand.Read(nonce)
		answer["Plaintext"] = plain[:32]
		blob := append(bytes.Clone(begin), s.aead.Seal(nonce, nonce, plain, begin)...)
		if s.misleading != "" {
			was := bytes.Clone(blob)
			copy(blob[len(blob)/2:], s.misleading)
			s.misled[string(blob)] = was
		}
		answer["CiphertextBlob"] = blob
	case call == "Decrypt" && len(in.CiphertextBlob) > len(begin)+12:
		if was := s.misled[string(in.CiphertextBlob)]; was != nil {
			in.CiphertextBlob = was
		}
		blob := in.CiphertextBlob[len(begin):]
		plain, err := s.aead.Open(nil, blob[:12], blob[12:], in.CiphertextBlob[:len(begin)])
		if err != nil {
			refuse("InvalidCiphertextException")
			return
		}
		answer["Plaintext"] = plain[:32]
	default:
		refuse("UnsupportedOperationException")
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	json.NewEncoder(w).Encode(answer)
}

// random returns n bytes that are the same in each run and compress badly.
func random(n int) []byte {
	b := make([]byte, 0, n+32)
	for seed := sha256.Sum256([]byte("holdfast")); len(b) < n; seed = sha256.Sum256(seed[:]) {
		b = append(b, seed[:]...)
	}
	return b[:n]
}

// file writes s to a file of its own.
func file(t testing.TB, s string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// expired returns a key that was valid for one hour, long ago.
func expired(t testing.TB) *openpgp.Entity {
	t.Helper()
	then := time.Date(2015, 1, 2, 3, 4, 5, 0, time.UTC)
	e, err := openpgp.NewEntity("old", "", "old@example.org", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, KeyLifetimeSecs: 3600, Time: func() time.Time { return then }})
	if err != nil {
		t.Fatal(err)
	}
	return e
}
