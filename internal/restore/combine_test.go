package restore

import (
	"hash/crc32"
	"testing"

	"pgregory.net/rapid"
)

// The checksum of pieces put together is that of the whole.
func TestCombine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOf(rapid.Byte()).Draw(t, "a")
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "b")
		want := crc32.Checksum(append(a[:len(a):len(a)], b...), castagnoli)
		if got := combine(checksum(a), checksum(b), int64(len(b))); got != want {
			t.Errorf("combine is %08X, want %08X", got, want)
		}
	})
	big := make([]byte, 5<<20)
	if got, want := combine(checksum([]byte("x")), checksum(big), int64(len(big))), checksum(append([]byte("x"), big...)); got != want {
		t.Errorf("with %d bytes behind: %08X, want %08X", len(big), got, want)
	}
}
