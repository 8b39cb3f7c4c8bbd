package cli_test

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// The settings of S3, in WAL-G's names, lead to a bucket below its path, and what was pushed comes back; with a limit on the network, too.
func TestArchivesInS3(t *testing.T) {
	backend := s3mem.New()
	if err := backend.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(gofakes3.New(backend).Server())
	defer server.Close()
	environ := []string{
		"WALG_S3_PREFIX=s3://bucket/a/b", "WALG_STORAGE_PREFIX=c", "AWS_ENDPOINT=" + server.URL, "AWS_S3_FORCE_PATH_STYLE=true",
		"WALG_AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY=key", "WALG_NETWORK_RATE_LIMIT=64MiB",
		"WALG_DOWNLOAD_CONCURRENCY=1",
	}
	dir := t.TempDir()
	history := filepath.Join(dir, "00000002.history")
	if err := os.WriteFile(history, []byte("1\t0/3000000\tno recovery target specified\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, stdout, stderr := run(environ, "wal-push", history); status != 0 || stdout != "" {
		t.Fatalf("wal-push: status %d, %s%s", status, stdout, stderr)
	}
	if _, err := backend.HeadObject("bucket", "a/b/c/wal_005/00000002.history.zst"); err != nil {
		t.Errorf("the object is not where the settings say: %v", err)
	}
	back := filepath.Join(dir, "back")
	if status, _, stderr := run(environ, "wal-fetch", "00000002.history", back); status != 0 {
		t.Fatalf("wal-fetch: status %d, %s", status, stderr)
	}
	want, _ := os.ReadFile(history) // was written above
	if got, err := os.ReadFile(back); err != nil || string(got) != string(want) {
		t.Errorf("came back as %q, %v; want %q", got, err, want)
	}

	server.Close()
	status, _, stderr := run(append(environ, "S3_MAX_RETRIES=0"), "wal-push", history)
	if status != 1 || !strings.Contains(stderr, "ERROR: ") || strings.Contains(stderr, "=key") {
		t.Errorf("wal-push to a service that is gone: status %d, %s", status, stderr)
	}
}
