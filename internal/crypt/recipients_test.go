package crypt_test

import (
	"strings"
	"testing"

	"holdfast/internal/crypt"
)

// For whom an object is shows at its beginning as far as its format tells.
func TestRecipients(t *testing.T) {
	for name, p := range pairs(t) {
		sealed := encrypt(t, open(t, p.write), random(100_000))
		kind, who := crypt.Recipients(sealed[:crypt.RecipientsAhead])
		want := map[string]crypt.Kind{"age": crypt.Age, "openpgp": crypt.PGP}[strings.Fields(name)[0]]
		if want != "" && (kind != want || len(who) != 1 || !strings.HasPrefix(who[0], strings.Trim(p.wants, `"`))) {
			t.Errorf("%s: %s for %q, want %s", name, kind, who, p.wants)
		}
		if want == "" && len(who) != 0 {
			t.Errorf("%s: %s for %q", name, kind, who)
		}
		if crypt.IsPlain(sealed) {
			t.Errorf("%s: taken for plain", name)
		}
	}
	for _, begin := range []string{"", "hello", "\x28\xb5\x2f\xfd and so on", "age-encryption.org/v1"} {
		if kind, who := crypt.Recipients([]byte(begin)); len(who) != 0 || kind != "" && kind != crypt.Age {
			t.Errorf("%q: %s for %q", begin, kind, who)
		}
	}
}

// Whatever an object begins with, what is told of it is bounded.
func FuzzRecipients(f *testing.F) {
	f.Add([]byte("age-encryption.org/v1\n-> X25519 abc\nbody\n-> ssh-rsa tag\nbody\n-> x-grease y\n--- mac\n"))
	f.Add([]byte{0x84, 0x8c, 3, 1, 2, 3, 4, 5, 6, 7, 8, 1, 0, 1, 0})
	f.Add([]byte("\x8c\x0d\x04\x09\x03\x08"))
	f.Fuzz(func(t *testing.T, begin []byte) {
		_, who := crypt.Recipients(begin)
		if len(who) > 64 {
			t.Errorf("%d are told", len(who))
		}
		for _, w := range who {
			if len(w) > 240 || w == "" {
				t.Errorf("%q", w)
			}
		}
	})
}
