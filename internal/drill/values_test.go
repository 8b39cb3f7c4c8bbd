package drill_test

import (
	"testing"

	"holdfast/internal/drill"
)

// Values that mean the same are no change, however they are written.
func TestSameValue(t *testing.T) {
	for _, c := range []struct {
		kind, unit, x, y string
		same             bool
	}{
		{"integer", "MB", "1GB", "1048576kB", true},
		{"integer", "MB", "1GB", "1024", true},
		{"integer", "MB", " 1 GB ", "1024MB", true},
		{"integer", "MB", "1GB", "1025", false},
		{"integer", "8kB", "128MB", "16384", true},
		{"integer", "8kB", "0.5GB", "65536", true},
		{"integer", "8kB", "131072kB", "128MB", true},
		{"integer", "8kB", "16384", "16384kB", false},
		{"integer", "B", "1kB", "1024", true},
		{"integer", "ms", "1min", "60s", true},
		{"integer", "s", "5min", "300", true},
		{"integer", "s", "1h", "60min", true},
		{"integer", "min", "1d", "1440", true},
		{"integer", "ms", "1min", "60", false},
		{"integer", "ms", "100us", "0", true},
		{"integer", "", "010", "8", true},
		{"integer", "", "0x10", "16", true},
		{"integer", "", "10", "10kB", false},
		{"integer", "kB", "64min", "64", false},
		{"integer", "kB", "", "0", false},
		{"integer", "kB", "kB", "0", false},
		{"integer", "kB", "-1", "-1", true},
		{"integer", "kB", "-1", "-2", false},
		{"real", "", "4.0", "4", true},
		{"real", "", "1e-1", "0.1", true},
		{"real", "ms", "2ms", "0.002s", true},
		{"real", "", "4.1", "4", false},
		{"bool", "", "on", "true", true},
		{"bool", "", "YES", "1", true},
		{"bool", "", "of", "no", true},
		{"bool", "", "on", "off", false},
		{"bool", "", "o", "on", false},
		{"enum", "", "Replica", "replica", true},
		{"enum", "", "replica", "logical", false},
		{"string", "", "a", "A", false},
		{"string", "", "1GB", "1024MB", false},
		{"", "", "1GB", "1024MB", false},
	} {
		for _, flip := range []bool{false, true} {
			x, y := c.x, c.y
			if flip {
				x, y = y, x
			}
			if got := drill.SameValue(c.kind, c.unit, x, y); got != c.same {
				t.Errorf("%s in %q: %q and %q: %t", c.kind, c.unit, x, y, got)
			}
		}
	}
}
