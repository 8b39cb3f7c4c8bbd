package cli_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cli"
)

// socket listens as a log of the system does, and returns the path and what takes the next datagram.
func socket(t *testing.T) (string, func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path, func() string {
		t.Helper()
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1<<18)
		n, err := l.Read(b)
		if err != nil {
			t.Fatalf("nothing came: %v", err)
		}
		return string(b[:n])
	}
}

// fields reads a datagram as journald does.
func fields(t *testing.T, datagram string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for datagram != "" {
		head, rest, ok := strings.Cut(datagram, "\n")
		if !ok {
			t.Fatalf("%q ends without a newline", datagram)
		}
		name, value, inLine := strings.Cut(head, "=")
		if !inLine {
			n := binary.LittleEndian.Uint64([]byte(rest[:8]))
			value, rest = rest[8:8+n], rest[8+n:]
			if rest[0] != '\n' {
				t.Fatalf("%q behind the value of %s", rest, name)
			}
			rest = rest[1:]
		}
		if _, twice := all[name]; twice {
			t.Errorf("%s comes twice", name)
		}
		all[name], datagram = value, rest
	}
	return all
}

const (
	segment = "000000010000000000000001"
	logged  = "HOLDFAST_LOG_TO="
)

func TestJournaldGetsFields(t *testing.T) {
	path, next := socket(t)
	status, _, stderr := run([]string{"WALG_FILE_PREFIX=" + t.TempDir(), logged + "journald:" + path}, "wal-push", "absent/"+segment)
	if status != 1 || !strings.Contains(stderr, "ERROR: ") {
		t.Errorf("status %d, stderr %q: who calls sees the error, wherever the log goes", status, stderr)
	}
	got := fields(t, next())
	if got["PRIORITY"] != "3" || !strings.Contains(got["MESSAGE"], "no such file") || got["SYSLOG_IDENTIFIER"] != "holdfast" || got["HOLDFAST_JOB"] != "wal-push" || got["HOLDFAST_SEGMENT"] != segment {
		t.Errorf("got %q", got)
	}
	log := slog.New(cli.SystemHandler("journald:"+path, nil)).With("a-b", 1)
	log.Warn("two\nlines\x1b", "error", errors.New("x\ny"))
	got = fields(t, next())
	if got["PRIORITY"] != "4" || got["MESSAGE"] != "two\nlines\\x1b a-b=1 error=\"x\\ny\"" || got["HOLDFAST_A_B"] != "1" || got["HOLDFAST_ERROR"] != "x\ny" {
		t.Errorf("got %q", got)
	}
	log.Info(strings.Repeat("é", 1<<20))
	if got := fields(t, next()); len(got["MESSAGE"]) > 70<<10 || got["PRIORITY"] != "6" {
		t.Errorf("%d bytes of a long message with priority %s", len(got["MESSAGE"]), got["PRIORITY"])
	}
}

func TestSyslogGetsLines(t *testing.T) {
	path, next := socket(t)
	env := []string{"WALG_FILE_PREFIX=" + t.TempDir(), logged + "syslog:" + path}
	status, _, stderr := run(env, "wal-push", "absent/"+segment)
	if got := next(); status != 1 || stderr == "" || !strings.HasPrefix(got, "<27>") || !strings.Contains(got, "holdfast[") || !strings.Contains(got, "no such file") ||
		!strings.HasSuffix(got, " job=wal-push segment="+segment+"\n") {
		t.Errorf("status %d, stderr %q, got %q", status, stderr, got)
	}
	if status, _, stderr := run(append(env, "HOLDFAST_LOG_FORMAT=json"), "backup-list"); status != 0 || stderr != "" {
		t.Errorf("status %d, %q", status, stderr)
	}
	got := next()
	_, text, _ := strings.Cut(got, "]: ")
	var line map[string]string
	if err := json.Unmarshal([]byte(text), &line); err != nil || !strings.HasPrefix(got, "<30>") || line["msg"] != "No backups found" || line["job"] != "backup-list" {
		t.Errorf("got %q (%v)", got, err)
	}
	slog.New(cli.SystemHandler("syslog:"+path, nil)).Info("two\nlines")
	if got := next(); !strings.HasSuffix(got, ": two | lines\n") {
		t.Errorf("got %q", got)
	}
}

// A log of the system that is not there stops nothing, and loses no line.
func TestLogGoesOnWhereTheSystemsIsDown(t *testing.T) {
	for _, to := range []string{"journald", "syslog"} {
		status, _, stderr := run([]string{"WALG_FILE_PREFIX=" + t.TempDir(), logged + to + ":/no/such/socket"}, "backup-list")
		if status != 0 || strings.Count(stderr, "WARNING: ") != 1 || !strings.Contains(stderr, to+" does not take the log") || !strings.Contains(stderr, "No backups found") {
			t.Errorf("%s: status %d, %q", to, status, stderr)
		}
	}
	path, next := socket(t)
	var spare bytes.Buffer
	log := slog.New(cli.SystemHandler("journald:"+path, &spare))
	log.Info("one")
	if got := fields(t, next()); got["MESSAGE"] != "one" || spare.Len() > 0 {
		t.Errorf("got %q and %q", got, spare.String())
	}
}

// A log of the system that does not read is not waited for, line after line.
func TestLogGoesOnWhereTheSystemsHangs(t *testing.T) {
	for _, to := range []string{"journald:", "syslog:"} {
		t.Run(to, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "socket")
			deaf, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer deaf.Close() // whoever still waits then gets an error
			var spare bytes.Buffer
			log := slog.New(cli.SystemHandler(to+path, &spare))
			begin, lines := time.Now(), 0
			for ; spare.Len() == 0 && lines < 100_000; lines++ { // until nothing fits into the socket
				log.Info("line")
			}
			for range 100 {
				log.Info("one more")
			}
			if took := time.Since(begin); strings.Count(spare.String(), "one more") != 100 || strings.Count(spare.String(), "WARNING: ") != 1 || took > 50*time.Second {
				t.Errorf("%d lines took %s, and standard error has %.300q", lines, took, spare.String())
			}
		})
	}
}

func TestJSONLinesSayWhatTheyAreAbout(t *testing.T) {
	_, _, stderr := run([]string{"WALG_FILE_PREFIX=" + t.TempDir(), "HOLDFAST_LOG_FORMAT=json"}, "wal-push", "absent/"+segment)
	var line map[string]string
	if err := json.Unmarshal([]byte(stderr), &line); err != nil || line["job"] != "wal-push" || line["segment"] != segment || line["backup"] != "" || line["level"] != "ERROR" {
		t.Errorf("got %q (%v)", stderr, err)
	}
}

func TestNamedIsOneBackupAndOneSegment(t *testing.T) {
	const full, delta = "base_" + segment, "base_000000010000000000000003_D_" + segment
	for text, want := range map[string][2]string{
		"Wrote backup with name " + full + " to storage default":   {full, ""},
		delta + ": it builds on " + full:                           {"", ""},
		"put wal_005/" + segment + ".zst: no":                      {"", segment},
		"put basebackups_005/" + delta + "/tar_partitions/1.tar":   {delta, ""},
		full + " begins in " + segment + ", " + segment + " again": {full, segment},
		segment + " to 000000010000000000000002":                   {"", ""},
		"a" + segment + " base_1 base_" + segment[1:]:              {"", ""},
		strings.ToLower("00000001000000000000000A"):                {"", ""},
	} {
		if backup, seg := cli.Named(text); [2]string{backup, seg} != want {
			t.Errorf("%q: %q, %q, want %q", text, backup, seg, want)
		}
	}
}
