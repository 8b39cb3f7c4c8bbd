package check_test

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/check"
	"holdfast/internal/pg/server"
)

// A directory that a server names and that is not here, or another cluster's, is no reason to worry: the server runs in a container, or elsewhere.
func TestDirectoryOfAServerThatIsElsewhere(t *testing.T) {
	dir := t.TempDir()
	s := &server.Health{Position: server.Position{SystemIdentifier: 7}}
	if _, err := check.LookAtHost(filepath.Join(dir, "absent"), s); !check.Elsewhere(err) {
		t.Errorf("of no directory: %v", err)
	}
	text, err := os.ReadFile(filepath.Join("..", "pg", "control", "testdata", "pg_control_17"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "global"), 0o700); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "global", "pg_control")
	text = append(text, make([]byte, 8192-len(text))...)
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := check.LookAtHost(dir, s); err == nil || !check.Elsewhere(err) {
		t.Errorf("of another cluster's directory: %v", err)
	}
	if err := os.WriteFile(name, text[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := check.LookAtHost(dir, s); err == nil || check.Elsewhere(err) {
		t.Errorf("of what cannot be read: %v", err)
	}
}
