package cli_test

import (
	"crypto/sha1"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"holdfast/internal/cli"
)

// backupInfo is a backup.info without backups.
func backupInfo() string {
	const body = `{"backrest":{"backrest-format":5,"backrest-version":"2.60.0"},"db:history":{"1":{"db-system-id":1,"db-version":"15"}}}`
	return "[backrest]\nbackrest-format=5\nbackrest-version=\"2.60.0\"\n\n[db:history]\n1={\"db-system-id\":1,\"db-version\":\"15\"}\n\n" +
		fmt.Sprintf("[backrest]\nbackrest-checksum=\"%x\"\n", sha1.Sum([]byte(body)))
}

// pgBackRest's own options lead to its repository in S3: over TLS, by a port and an authority of one's own.
func TestTheirRepositoryInS3(t *testing.T) {
	backend := s3mem.New()
	if err := backend.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	info := backupInfo()
	if _, err := backend.PutObject("bucket", "some/repo/backup/demo/backup.info", nil, strings.NewReader(info), int64(len(info)), nil); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(gofakes3.New(backend).Server())
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{
		"PGBACKREST_REPO3_TYPE=s3", "PGBACKREST_REPO3_PATH=/some/repo", "PGBACKREST_REPO3_S3_BUCKET=bucket", "PGBACKREST_REPO3_S3_ENDPOINT=" + u.Hostname(),
		"PGBACKREST_REPO3_STORAGE_PORT=" + u.Port(), "PGBACKREST_REPO3_STORAGE_CA_FILE=" + ca, "PGBACKREST_REPO3_S3_REGION=us-east-1",
		"PGBACKREST_REPO3_S3_URI_STYLE=path", "PGBACKREST_REPO3_S3_KEY=id", "PGBACKREST_REPO3_S3_KEY_SECRET=hush", "PGBACKREST_STANZA=demo",
	}
	status, stdout, stderr := run(environ, "pgbackrest", "--repo", "3", "backup-list", "--json")
	if status != 0 || strings.TrimSpace(stdout) != "[]" || !strings.Contains(stderr, "No backups found") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	status, _, stderr = run(append(environ, "PGBACKREST_REPO3_S3_KEY_SECRET="), "pgbackrest", "--repo", "3", "backup-list")
	if status != 1 || !strings.Contains(stderr, "repo3-s3-key-secret is not set") {
		t.Errorf("without a secret: status %d, %s", status, stderr)
	}
}

// Options of every kind of repository become ours.
func TestTheirStorages(t *testing.T) {
	for options, want := range map[string]string{
		"path=/srv/repo":            "file:///srv/repo",
		"type=cifs\npath=/mnt/repo": "file:///mnt/repo",
		"type=s3\npath=/repo\ns3-bucket=b\ns3-endpoint=s3.eu-west-1.amazonaws.com\ns3-region=eu-west-1\ns3-key=k\ns3-key-secret=s":                                 "s3://b/repo at https://s3.eu-west-1.amazonaws.com",
		"type=s3\npath=/\ns3-bucket=b\ns3-endpoint=x\ns3-region=r\ns3-key-type=auto\nstorage-host=minio\nstorage-port=9000":                                        "s3://b at https://minio:9000",
		"type=gcs\npath=/a/b\ngcs-bucket=b\ngcs-key=/k.json":                                                                                                       "gs://b/a/b",
		"type=gcs\npath=/a\ngcs-bucket=b\ngcs-key-type=auto\ngcs-endpoint=fake:1":                                                                                  "gs://b/a at https://fake:1",
		"type=azure\npath=/a\nazure-container=c\nazure-account=acc\nazure-key=k":                                                                                   "azure://c/a at acc",
		"type=azure\npath=/a\nazure-container=c\nazure-account=acc\nazure-key=?sig\nazure-key-type=sas\nstorage-host=az\nstorage-port=10000\nazure-uri-style=path": "azure://c/a at https://az:10000/acc",
		"type=sftp\npath=/srv/repo\nsftp-host=h\nsftp-host-user=u\nsftp-host-port=2222":                                                                            "ssh://h:2222/srv/repo",
	} {
		got, err := cli.TheirLocation("[global]\nrepo1-" + strings.ReplaceAll(options, "\n", "\nrepo1-") + "\n")
		if err != nil || got != want {
			t.Errorf("%s\nis %s, %v, want %s", options, got, err, want)
		}
	}
}
