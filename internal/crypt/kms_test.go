package crypt_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/minio/sio"

	"holdfast/internal/crypt"
)

// KMS is asked once to write and, by another process, once to read, however many objects there are.
func TestKMSIsAskedOnce(t *testing.T) {
	s := fakeKMS(t, 184)
	w, r := open(t, s.options()), open(t, s.options())
	if len(s.calls) != 0 {
		t.Errorf("opening asks KMS: %v", s.calls)
	}
	for range 5 {
		sealed := encrypt(t, w, random(1000))
		if _, err := decrypt(w, sealed); err != nil {
			t.Error(err)
		}
		if _, err := decrypt(r, sealed); err != nil {
			t.Error(err)
		}
	}
	if s.calls["GenerateDataKey"] != 1 || s.calls["Decrypt"] != 1 || len(s.calls) != 2 {
		t.Errorf("asked %v", s.calls)
	}
	for range 600 { // WAL-G makes a data key for each segment; not all are kept
		if _, err := decrypt(r, encrypt(t, open(t, s.options()), random(10))); err != nil {
			t.Fatal(err)
		}
	}
}

// An object is 184 bytes of encrypted data key, and a stream of DARE 2.0 that minio's library reads.
func TestKMSFormat(t *testing.T) {
	s := fakeKMS(t, 184)
	sealed := encrypt(t, open(t, s.options()), random(100_000))
	blob := sealed[5:184]
	key, err := s.aead.Open(nil, blob[:12], blob[12:], sealed[:5])
	if err != nil {
		t.Fatal(err)
	}
	var plain bytes.Buffer
	_, err = sio.Decrypt(&plain, bytes.NewReader(sealed[184:]), sio.Config{MinVersion: sio.Version20, MaxVersion: sio.Version20, Key: key[:32]})
	if err != nil || !bytes.Equal(plain.Bytes(), random(100_000)) {
		t.Errorf("%d bytes, %v", plain.Len(), err)
	}
	if want := 184 + 100_000 + 2*32; len(sealed) != want {
		t.Errorf("%d bytes, want %d", len(sealed), want)
	}
}

// A KMS that makes longer or shorter data keys does too; the probe says that WAL-G would not read it.
func TestKMSDataKeyOfAnyLength(t *testing.T) {
	for _, blob := range []int{100, 183, 185, 205, 400, 6144} {
		s := fakeKMS(t, blob)
		if blob == 6144 {
			s.misleading = "\x20\x00\x10\x00\x80" // in a data key
		}
		for _, n := range []int{1, 2, 100, 5000, 20_000, 65535, 65536, 65537, 300_000} {
			sealed := encrypt(t, open(t, s.options()), random(n))
			if got, err := decrypt(open(t, s.options()), sealed); err != nil || !bytes.Equal(got, random(n)) {
				t.Errorf("data key of %d: %d bytes come back as %d, %v", blob, n, len(got), err)
			}
		}
		if p, err := open(t, s.options()).Probe(t.Context()); err != nil || !strings.Contains(p.Note, "WAL-G reads only 184") {
			t.Errorf("data key of %d: %+v, %v", blob, p, err)
		}
	}
}

// What KMS refuses is an error that names the settings, at once for what stays.
func TestKMSRefuses(t *testing.T) {
	s := fakeKMS(t, 184)
	sealed := encrypt(t, open(t, s.options()), random(10))
	for _, code := range []string{"AccessDeniedException", "NotFoundException", "DisabledException", "UnrecognizedClientException"} {
		s.fail = code
		k := open(t, s.options())
		_, werr := io.ReadAll(k.Encrypt(strings.NewReader("x")))
		_, rerr := decrypt(k, sealed)
		for _, err := range []error{werr, rerr} {
			if err == nil || !strings.Contains(err.Error(), code) || !strings.Contains(err.Error(), "WALG_CSE_KMS_ID") || strings.Contains(err.Error(), "hush") {
				t.Errorf("%s: %v", code, err)
			}
		}
		if _, err := k.Probe(t.Context()); err == nil {
			t.Errorf("%s: the probe does not see it", code)
		}
	}
	s.fail = ""
	s.Close()
	if _, err := io.ReadAll(open(t, s.options()).Encrypt(strings.NewReader("x"))); err == nil || !strings.Contains(err.Error(), "WALG_CSE_KMS_ID") {
		t.Errorf("no KMS: %v", err)
	}
}

// FuzzKMS: whatever is where the data key and the packages should be does no harm.
func FuzzKMS(f *testing.F) {
	s := fakeKMS(f, 184)
	k := open(f, s.options())
	f.Add(encrypt(f, k, random(10)))
	f.Add(encrypt(f, k, random(70_000)))
	f.Add(append(random(300), "\x20\x00\xff\xff\x00"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		decrypt(k, b)
		crypt.Recognise(b, true)
		crypt.Recognise(b, false)
		if len(b) == 0 {
			return
		}
		if got, err := decrypt(k, encrypt(t, k, b)); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes come back as %d, %v", len(b), len(got), err)
		}
	})
}
