package check_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/pg/server"
)

// Of the segments that the archive lacks the first one tells since when.
func TestMissingSegment(t *testing.T) {
	f := healthy()
	if name := check.Missing(f); name != "" {
		t.Errorf("of a server whose WAL is archived: %s", name)
	}
	f.Server.Final = 0x7000060
	name := check.Missing(f)
	if name != "000000010000000000000005" {
		t.Errorf("of a server at %s with an archive that ends at %s: %q", f.Server.Final, f.Archive.Ribbon.Newest.LSN, name)
	}
	dir := t.TempDir()
	if at, err := check.LastWritten(dir, name); err == nil || !at.IsZero() {
		t.Errorf("of a segment that is not there: %s, %v", at, err)
	}
	file := filepath.Join(dir, "pg_wal", name)
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, time.Time{}, noon); err != nil {
		t.Fatal(err)
	}
	if at, err := check.LastWritten(dir, name); err != nil || !at.Equal(noon) {
		t.Errorf("written at %s, %v", at, err)
	}
	f.Host = nil
	if name := check.Missing(f); name != "" {
		t.Errorf("where no files are seen: %s", name)
	}
}

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
