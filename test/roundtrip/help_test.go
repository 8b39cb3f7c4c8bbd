package roundtrip_test

import (
	"os"
	"strconv"
	"testing"

	"holdfast/test/pgtest"
)

func itoa(n int) string { return strconv.Itoa(n) }

// write writes a file that the servers' account may read.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, path)
}

// read reads a file.
func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
