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

// theirDocument makes an info file of pgBackRest of sections, each its name and its lines.
func theirDocument(sections ...[]string) string {
	text, body := "[backrest]\nbackrest-format=5\n", `{"backrest":{"backrest-format":5}`
	for _, s := range sections {
		text, body = text+"\n["+s[0]+"]\n"+strings.Join(s[1:], "\n")+"\n", body+`,"`+s[0]+`":{`
		for i, l := range s[1:] {
			key, value, _ := strings.Cut(l, "=")
			body += strings.Repeat(",", min(i, 1)) + `"` + key + `":` + value
		}
		body += "}"
	}
	return text + fmt.Sprintf("\n[backrest]\nbackrest-checksum=\"%x\"\n", sha1.Sum([]byte(body+"}")))
}

// A stanza went on with a new cluster. A target before its first backup is of the old one, and that is said; where anything else rules the new one's
// backups out the old one is not restored instead.
func TestClusterBeforeIsNoSubstitute(t *testing.T) {
	repo := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		path := filepath.Join(repo, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entry := func(label string, cluster, finished, timeline int) string {
		return fmt.Sprintf(`%s={"backup-type":"full","db-id":%d,"backup-timestamp-start":%[3]d,"backup-timestamp-stop":%[3]d,"backup-archive-start":"%08[4]d0000000000000005",`+
			`"backup-archive-stop":"%08[4]d0000000000000005","backup-lsn-start":"0/5000028","backup-lsn-stop":"0/5000100"}`, label, cluster, finished, timeline)
	}
	put("archive/main/archive.info", theirDocument([]string{"db:history", `1={"db-id":11,"db-version":"15"}`, `2={"db-id":22,"db-version":"17"}`}))
	put("backup/main/backup.info", theirDocument(
		[]string{"backup:current", entry("20260101-000000F", 1, 1767225600, 1), entry("20260201-000000F", 2, 1769904000, 2)},
		[]string{"db:history", `1={"db-system-id":11,"db-version":"15"}`, `2={"db-system-id":22,"db-version":"17"}`}))
	put("archive/main/15-1/0000000100000000/.keep", "")
	put("archive/main/17-2/00000002.history", "1\t0/3000000\tno recovery target specified\n")
	fetch := func(target ...string) string {
		t.Helper()
		args := append([]string{"pgbackrest", "backup-fetch", filepath.Join(t.TempDir(), "data"), "--dry-run"}, target...)
		status, _, stderr := run([]string{"PGBACKREST_REPO1_PATH=" + repo}, args...)
		if status == 0 {
			t.Fatalf("%v: a backup without a manifest", target)
		}
		return stderr
	}
	const old, young = "backup/main/20260101-000000F/backup.manifest", "backup/main/20260201-000000F/backup.manifest"
	if got := fetch("--target", "latest"); !strings.Contains(got, young) {
		t.Errorf("the newest: %s", got)
	}
	if got := fetch("--target-time", "2026-01-15 00:00:00Z"); !strings.Contains(got, old) || !strings.Contains(got, "cluster before the current one") {
		t.Errorf("before the new cluster: %s", got)
	}
	status, stdout, stderr := run([]string{"PGBACKREST_REPO1_PATH=" + repo}, "pgbackrest", "verify", "all")
	if status != 1 || !strings.Contains(stdout, old) || !strings.Contains(stdout, young) || !strings.Contains(stderr, "of 2 backups 2") {
		t.Errorf("of one backup that cannot be read nothing is told of the other: status %d, %s%s", status, stdout, stderr)
	}
	info := filepath.Join(repo, "backup/main/backup.info")
	both, err := os.ReadFile(info)
	if err != nil {
		t.Fatal(err)
	}
	put("backup/main/backup.info", theirDocument([]string{"backup:current", entry("20260101-000000F", 1, 1767225600, 1)},
		[]string{"db:history", `1={"db-system-id":11,"db-version":"15"}`, `2={"db-system-id":22,"db-version":"17"}`}))
	if got := fetch("--target", "latest"); !strings.Contains(got, old) || !strings.Contains(got, "cluster before the current one") {
		t.Errorf("before the first backup of the new cluster: %s", got)
	}
	put("backup/main/backup.info", string(both))
	put("archive/main/17-2/00000002.history", "nonsense\n")
	for _, target := range [][]string{{"--target", "latest"}, {"--target-time", "2026-02-15 00:00:00Z"}} {
		if got := fetch(target...); strings.Contains(got, old) || !strings.Contains(got, "00000002.history") {
			t.Errorf("%v, and the new cluster's history is damaged: %s", target, got)
		}
	}
	// Where the two documents number clusters differently the system identifier tells which WAL is whose.
	put("archive/main/archive.info", theirDocument([]string{"db:history", `2={"db-id":11,"db-version":"15"}`, `3={"db-id":22,"db-version":"17"}`}))
	if got := fetch("--target", "latest"); !strings.Contains(got, young) {
		t.Errorf("other numbers: %s", got)
	}
	put("archive/main/archive.info", theirDocument([]string{"db:history", `1={"db-id":11,"db-version":"15"}`, `2={"db-id":33,"db-version":"17"}`}))
	if got := fetch("--target", "latest"); strings.Contains(got, young) || !strings.Contains(got, "system identifier 22") {
		t.Errorf("the WAL is of another cluster: %s", got)
	}
}

// The directory that PGBACKREST_CONFIG_PATH names stands for /etc/pgbackrest, as it does for pgBackRest.
func TestTheirConfigPath(t *testing.T) {
	dir := t.TempDir()
	repo := filepath.Join(dir, "repo")
	for name, content := range map[string]string{
		"pgbackrest.conf": "[global]\nrepo1-path=/nowhere\n", "conf.d/repo.conf": "[global]\nrepo1-path=" + repo + "\n", "repo/backup/main/backup.info": backupInfo(),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if status, _, stderr := run([]string{"PGBACKREST_CONFIG_PATH=" + dir}, "pgbackrest", "backup-list"); status != 0 || !strings.Contains(stderr, "No backups found") {
		t.Errorf("status %d, %s", status, stderr)
	}
	if _, _, stderr := run([]string{"PGBACKREST_CONFIG=" + filepath.Join(dir, "pgbackrest.conf")}, "pgbackrest", "backup-list"); !strings.Contains(stderr, "/nowhere") {
		t.Errorf("a file that is named comes without conf.d: %s", stderr)
	}
}
