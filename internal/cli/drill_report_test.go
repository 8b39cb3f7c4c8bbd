package cli_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/drill"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/file"
)

// Texts that an archive may hold, and whoever reads a report must not run, follow or stumble over.
const (
	evilScript = `<script>alert(1)</script><img src=x onerror=alert(2)>`
	evilTable  = "| a | b |\n# [x](javascript:alert(3)) @all \x1b[31m"
)

// provenArchive is an archive in a directory with five backups and drills of them, the last of which failed; and the public key that signed all but one record.
func provenArchive(t *testing.T) (environ []string, publicKey string) {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "archive")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	st, err := file.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New(st, archive.Options{})
	public, private, err1 := ed25519.GenerateKey(nil)
	der, err2 := x509.MarshalPKIXPublicKey(public)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	publicKey = filepath.Join(dir, "public.pem")
	if err := os.WriteFile(publicKey, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	const segment = wal.SegmentSize(16 << 20)
	for i := range 5 {
		at := time.Now().UTC().AddDate(0, 0, i-5)
		start, system := segment.Start(wal.SegmentNo(i+2))+0x28, uint64(7)
		finish := start + 0x100
		name := archive.BackupName(segment.Name(1, wal.SegmentNo(i+2)))
		b, err := json.Marshal(archive.Sentinel{LSN: &start, FinishLSN: &finish, SystemIdentifier: &system, Version: 2, SegmentSize: uint64(segment), StartTime: at, FinishTime: at,
			PgVersion: 170010, UncompressedSize: int64(i+1) * 10e9})
		if err == nil {
			err = st.Put(t.Context(), archive.BackupDir+name+"_backup_stop_sentinel.json", strings.NewReader(string(b)))
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := a.Sentinel(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		rpo := 3.5
		r := drill.Record{RecordHead: archive.NewRecordHead("postgres@db3", "1.0"), OK: i < 4, Started: time.Now(), Target: catalog.Target{Kind: catalog.Latest}.String(), Backup: name, Sentinel: s.Sum,
			Finished: at, PostgreSQL: "17.10", Seconds: map[string]float64{"fetch": 10 * float64(i+1), "replay": 2}, Fetched: drill.Fetched{Bytes: int64(i+1) * 10e9, Rate: 1e9},
			Replay: &drill.Replay{Bytes: 1 << 30, Rate: 5e8}, RTO: 10*float64(i+1) + 2, RPO: &rpo}
		if i == 3 {
			r.Checks = []drill.Check{{Name: evilTable, Result: drill.Skipped, Text: evilScript}}
		}
		if !r.OK {
			r.Reason, r.Error, r.By = drill.ReasonCheck, evilScript+evilTable, "x@"+evilScript
		}
		key := private
		if i == 2 {
			key = nil
		}
		b, err = r.Encode(key)
		if err == nil {
			_, err = a.AddRecord(t.Context(), archive.ProvenDir(name), "", json.RawMessage(b))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return []string{"WALG_FILE_PREFIX=" + root}, publicKey
}

// The report says the same in all its forms, and nothing that the archive holds gets out of its place.
func TestDrillReport(t *testing.T) {
	environ, key := provenArchive(t)
	report := func(format string, more ...string) string {
		status, stdout, stderr := run(environ, append([]string{"drill", "report", "--format", format, "--objective", "60m"}, more...)...)
		if status != 0 || stderr != "" {
			t.Fatalf("%s: status %d: %s", format, status, stderr)
		}
		return stdout
	}
	var r drill.Report
	if err := json.Unmarshal([]byte(report("json")), &r); err != nil || r.Proven != 4 || len(r.Drills) != 5 || r.Trend == nil || r.Drills[4].Error != evilScript+evilTable {
		t.Errorf("%+v (%v)", r, err)
	}
	const failed = "base_000000010000000000000006"
	for format, want := range map[string][]string{
		"text":     {"4 of 5 backups are proven.", "At 47 GiB, with 1.0 GiB of WAL to replay, expect 52 s (fitted to 5 drills on", "Your objective of 60 min is", "not checked", failed, "postgres@db3", "left out: ", "17.10"},
		"markdown": {"# Restore drills\n", "| base\\_000000010000000000000006 ", "&lt;script&gt;", "postgres&#64;db3", "| left out: \\| a \\| b \\| \\# \\[x\\]\\(javascript:alert\\(3\\)\\) &#64;all"},
		"html":     {"<title>Restore drills</title>", "&lt;script&gt;alert(1)", "<td class=\"failed\">failed</td>", "<svg ", "postgres@db3", "</html>"},
	} {
		text := report(format)
		for _, w := range want {
			if !strings.Contains(text, w) && !strings.Contains(strings.Join(strings.Fields(text), " "), w) {
				t.Errorf("%s lacks %q:\n%s", format, w, text)
			}
		}
		for _, evil := range []string{"\x1b"} {
			if strings.Contains(text, evil) {
				t.Errorf("%s holds %q", format, evil)
			}
		}
	}
	if text := report("html"); strings.Contains(text, "<script") || strings.Contains(text, "<img") || strings.Contains(text, "src=") && !strings.Contains(text, "&lt;img src=") ||
		strings.Contains(text, "href=") || strings.Contains(text, "url(") || strings.Count(text, "//") != strings.Count(text, "file:///") || strings.Contains(text, "ZgotmplZ") {
		t.Errorf("the page loads or runs something:\n%s", text)
	}
	for line := range strings.Lines(report("markdown")) {
		if strings.Contains(line, "<") || strings.HasPrefix(line, "|") && strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") < 3 {
			t.Errorf("a line of Markdown: %q", line)
		}
	}
	// With the key one record does not count, and that is said.
	for _, format := range []string{"text", "markdown", "html"} {
		if text := report(format, "--public-key", key); !strings.Contains(text, "it is not signed") || !strings.Contains(text, "3 of 5 backups are proven") || !strings.Contains(text, "Records that do not count") {
			t.Errorf("%s with a key:\n%s", format, text)
		}
	}
	pem, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if status, stdout, stderr := run(append(environ, "HOLDFAST_PROOF_PUBLIC_KEY="+string(pem)), "drill", "report"); status != 0 || !strings.Contains(stdout, "it is not signed") {
		t.Errorf("status %d: %s%s", status, stdout, stderr)
	}
	for _, args := range [][]string{{"--format", "pdf"}, {"--size", "many"}, {"--size", "0"}, {"--since", "once"}, {"--objective", "-1h"}, {"--public-key", "/no/such"}, {"--public-key", os.Args[0]}} {
		if status, stdout, stderr := run(environ, append([]string{"drill", "report"}, args...)...); status != 1 || stdout != "" || !strings.Contains(stderr, "ERROR: ") {
			t.Errorf("%q: status %d: %s%s", args, status, stdout, stderr)
		}
	}
}

// Backups that were proven say when and how long that took; with keys those whose records are signed.
func TestBackupListShowsProof(t *testing.T) {
	environ, key := provenArchive(t)
	for _, c := range []struct {
		more          []string
		proven, never int
	}{{nil, 4, 0}, {[]string{"HOLDFAST_PROOF_PUBLIC_KEY_FILE=" + key}, 3, 1}} {
		status, stdout, stderr := run(append(environ, c.more...), "backup-list", "--detail", "--pretty")
		proven, failed := strings.Count(stdout, " ago, RTO "), strings.Count(stdout, "| failed ")
		if status != 0 || proven != c.proven || failed != 1 || !strings.Contains(stdout, " ago, RTO 12s ") || strings.Contains(stderr, "it is not signed") != (c.never > 0) {
			t.Errorf("%q: status %d, %d proven, %d failed:\n%s%s", c.more, status, proven, failed, stdout, stderr)
		}
		status, stdout, stderr = run(append(environ, c.more...), "backup-list", "--detail", "--json")
		var all []struct {
			Proven time.Time `json:"proven_at"`
			RTO    float64   `json:"rto_seconds"`
		}
		if err := json.Unmarshal([]byte(stdout), &all); err != nil || status != 0 || len(all) != 5 || all[0].RTO != 12 || time.Since(all[0].Proven) > time.Hour || all[2].Proven.IsZero() != (c.never > 0) {
			t.Errorf("%q: status %d, %+v (%v)\n%s", c.more, status, all, err, stderr)
		}
	}
	// A key that is none makes nothing count, and is told.
	status, stdout, stderr := run(append(environ, "HOLDFAST_PROOF_PUBLIC_KEY=hush"), "backup-list", "--detail", "--pretty")
	if status != 0 || strings.Contains(stdout, "RTO") || !strings.Contains(stderr, "HOLDFAST_PROOF_PUBLIC_KEY") || strings.Contains(stderr, "hush") {
		t.Errorf("status %d: %s%s", status, stdout, stderr)
	}
	for _, args := range [][]string{{"retention", "plan"}, {"retention", "apply"}, {"delete", "retain", "1"}, {"delete", "everything", "FORCE", "--confirm"}} { // which is the last proven one is not known
		if status, _, stderr := run(append(environ, "HOLDFAST_PROOF_PUBLIC_KEY=hush"), args...); status != 1 || !strings.Contains(stderr, "HOLDFAST_PROOF_PUBLIC_KEY") || strings.Contains(stderr, "hush") {
			t.Errorf("%q: exit status %d: %s", args, status, stderr)
		}
	}
}
