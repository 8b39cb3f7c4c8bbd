// Package golden compares what is generated with what is checked in, and with -update rewrites that.
package golden

import (
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "rewrite what is checked in")

// Same fails t unless the file at path holds want; how is the command that rewrites it.
func Same(t *testing.T, path, want, how string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is stale: run `%s`", path, how)
	}
}
