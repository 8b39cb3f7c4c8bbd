package crc32c_test

import (
	"testing"

	"pgregory.net/rapid"

	"holdfast/internal/crc32c"
)

// The sum of the test vector is the one that RFC 3720 and all others give.
func TestChecksum(t *testing.T) {
	if got := crc32c.Checksum([]byte("123456789")); got != 0xE3069283 {
		t.Errorf("Checksum is %08X, want E3069283", got)
	}
	if got := crc32c.Update(crc32c.Checksum([]byte("1234")), []byte("56789")); got != 0xE3069283 {
		t.Errorf("Update is %08X, want E3069283", got)
	}
}

// The checksum of pieces put together is that of the whole, in both ways to put them together.
func TestCombine(t *testing.T) {
	whole := func(a, b []byte) uint32 { return crc32c.Checksum(append(a[:len(a):len(a)], b...)) }
	check := func(t rapid.TB, a, b []byte) {
		want := whole(a, b)
		if got := crc32c.Combine(crc32c.Checksum(a), crc32c.Checksum(b), int64(len(b))); got != want {
			t.Errorf("%d bytes and %d: Combine is %08X, want %08X", len(a), len(b), got, want)
		}
		if got := crc32c.NewAppender(int64(len(b))).Append(crc32c.Checksum(a), crc32c.Checksum(b)); got != want {
			t.Errorf("%d bytes and %d: Append is %08X, want %08X", len(a), len(b), got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		check(t, rapid.SliceOf(rapid.Byte()).Draw(t, "a"), rapid.SliceOf(rapid.Byte()).Draw(t, "b"))
	})
	check(t, []byte("x"), make([]byte, 5<<20))
}

func BenchmarkAppend(b *testing.B) {
	p := crc32c.NewAppender(8192)
	sum := uint32(1)
	for b.Loop() {
		sum = p.Append(sum, 77)
	}
	if sum == 0 {
		b.Log("one in four thousand million")
	}
}

func BenchmarkCombine(b *testing.B) {
	sum := uint32(1)
	for b.Loop() {
		sum = crc32c.Combine(sum, 77, 8192)
	}
	if sum == 0 {
		b.Log("one in four thousand million")
	}
}
