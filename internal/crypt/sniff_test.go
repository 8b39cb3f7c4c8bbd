package crypt_test

import (
	"strings"
	"testing"

	"holdfast/internal/crypt"
)

// What is encrypted is told by how it begins, where that tells; nothing that is archived in clear is taken for encrypted.
func TestEncrypted(t *testing.T) {
	for begin, want := range map[string]crypt.Kind{
		"age-encryption.org/v1\n-> X25519 ":          crypt.Age,
		"\x85\x01\x0c\x0312345678\x01\x07\xff":       crypt.PGP, // gpg's, RSA
		"\xc1\xc0\x4c\x0312345678\x12\x07\xff":       crypt.PGP, // ECDH
		"\xd2\xea\x01\x55\x66":                       crypt.PGP,
		"":                                           "",
		"1\t0/2000000\tno recovery target specified": "",
		"START WAL LOCATION: 0/2000028":              "",
		"\x28\xb5\x2f\xfd\xe4\x00\x01\x00\x00\x00":   "",
		"\x04\x22\x4d\x18\x64\x40\xa7":               "",
		"\x5d\x00\x00\x80\x00\xff\xff\xff\xff":       "",
		"\x16\xd1\x02\x00\x01\x00\x00\x00":           "", // WAL
		"base/5/16384" + strings.Repeat("\x00", 90):  "",
	} {
		if got := crypt.Encrypted([]byte(begin)); got != want {
			t.Errorf("%q: %q, want %q", begin, got, want)
		}
	}
}
