package unfinished_test

import (
	"strings"
	"testing"
	"time"

	"holdfast/internal/store/unfinished"
)

func FuzzSince(f *testing.F) {
	for _, seed := range []string{"o", "o.tmp.20260102T030405Z-0123456789abcdef", ".tmp.20260102T030405Z-0123456789abcdef", "o.tmp.20261302T030405Z-0123456789abcdef",
		"o.tmp.20260102T030405Z-0123456789ABCDEF", "o.tmp.20260102T030405Z-0123456789abcde", "o.tmp.20260102T030405+-0123456789abcdef", "o.tmp.20260102T030405Z-0123456789abcdef.zst"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		begun, is := unfinished.Since(name)
		if !is {
			return
		}
		// What is taken for a temporary name is, up to the random digits, the one of that moment.
		base := name[:len(name)-len(".tmp.20060102T150405Z-0123456789abcdef")]
		again := unfinished.Name(base, begun)
		if base == "" || len(again) != len(name) || again[:len(again)-16] != name[:len(name)-16] {
			t.Errorf("%q is taken for a temporary name of %q at %v; that would be %q", name, base, begun, again)
		}
	})
}

func TestTempNamesAreKnown(t *testing.T) {
	now := time.Date(2026, 11, 21, 4, 5, 6, 7, time.FixedZone("", 3600))
	name := unfinished.Name("000000010000000000000001.zst", now)
	if got, is := unfinished.Since(name); !is || !got.Equal(now.Truncate(time.Second)) {
		t.Errorf("%q is read as %v, %v; want %v", name, got, is, now)
	}
	if want := "000000010000000000000001.zst.tmp.20261121T030506Z-"; !strings.HasPrefix(name, want) {
		t.Errorf("%q does not begin with %q", name, want)
	}
}
