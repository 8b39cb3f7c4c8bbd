package cli_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"holdfast/internal/cli"
)

// run runs a command line and returns its status, stdout and stderr.
func run(environ []string, args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = cli.Run(cli.Env{Args: args, Environ: environ, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs})
	return status, out.String(), errs.String()
}

// each calls f with every command that people can see.
func each(c *cobra.Command, f func(*cobra.Command)) {
	if c.Hidden || c.Name() == "help" {
		return
	}
	f(c)
	for _, sub := range c.Commands() {
		each(sub, f)
	}
}

func TestEveryCommandIsExplained(t *testing.T) {
	root := cli.Root()
	each(root, func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" || c.Example == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short %q, long %q, example %q", c.CommandPath(), c.Short, c.Long, c.Example)
		}
		for line := range strings.Lines(c.Example) {
			if !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: example %q is not indented", c.CommandPath(), line)
			}
		}
		status, stdout, stderr := run(nil, append(strings.Fields(c.CommandPath())[1:], "--help")...)
		if status != 0 || stderr != "" || !strings.Contains(stdout, c.Example) || strings.Contains(stdout, "walg-s3") {
			t.Errorf("%s --help: status %d, %q, stderr %q", c.CommandPath(), status, stdout, stderr)
		}
	})
}

func TestUsageErrorsAreStatusOne(t *testing.T) {
	for _, args := range [][]string{{"settings", "extra"}, {"settings", "--nonsense"}, {"--nonsense"}, {"backup-list", "a", "b", "c"}} {
		status, stdout, stderr := run(nil, args...)
		if status != 1 || stdout != "" || !strings.Contains(stderr, "Usage:") || !strings.Contains(stderr, "\nERROR: ") {
			t.Errorf("%q: status %d, stdout %q, stderr %q; want 1 and the usage on stderr", args, status, stdout, stderr)
		}
	}
}

func TestAllProblemsShowWithTheirHints(t *testing.T) {
	status, _, stderr := run([]string{"WALG_NONSENSE=1", "PGPORT=x"}, "settings")
	if status != 1 || strings.Count(stderr, "ERROR: ") != 4 || strings.Count(stderr, " hint: ") != 2 {
		t.Errorf("status %d, %s; want two errors, each with a hint", status, stderr)
	}
}

func TestSettingsAreFlagsByEachName(t *testing.T) {
	for _, flag := range []string{"--walg-s3-prefix", "--holdfast-s3-prefix", "--wale-s3-prefix"} {
		status, stdout, stderr := run(nil, "settings", flag, "s3://b")
		if status != 0 || !strings.Contains(stdout, "s3://b") || !strings.Contains(stdout, "# flag "+flag+"\n") {
			t.Errorf("%s: status %d, %s%s", flag, status, stdout, stderr)
		}
	}
	secret := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(secret, []byte("hush"), 0o600); err != nil {
		t.Fatal(err)
	}
	status, stdout, _ := run(nil, "settings", "--pgpassword-file", secret)
	if status != 0 || strings.Contains(stdout, "hush") || !strings.Contains(stdout, "--HIDDEN--") {
		t.Errorf("--pgpassword-file: status %d, %s", status, stdout)
	}
}

func TestLogLinesAreThoseOfWALG(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(cli.NewHandler(&out, slog.LevelInfo)).With("part", 3)
	log.Debug("not shown")
	log.Info("FILE PATH: x", "bytes", 7)
	log.Warn("odd name", "file", "a b")
	log.Error("two\nlines", "error", errors.New(`say "no"`))
	log.Error("\x1b[2J\rINFO: é")
	want := regexp.MustCompile(`^INFO: \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} FILE PATH: x part=3 bytes=7
WARNING: \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} odd name part=3 file="a b"
ERROR: \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} two
	lines part=3 error="say \\"no\\""
ERROR: .{26} \\x1b\[2J\\rINFO: é part=3
$`)
	if !want.MatchString(out.String()) {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestOnlyJoinedErrorsAreTakenApart(t *testing.T) {
	a, b := errors.New("a"), errors.New("b")
	if got := cli.Parts(errors.Join(a, errors.Join(b, a))); len(got) != 3 {
		t.Errorf("joined: %q", got)
	}
	if got := cli.Parts(fmt.Errorf("stopped: %w: %w", a, b)); len(got) != 1 || got[0].Error() != "stopped: a: b" {
		t.Errorf("worded: %q", got)
	}
}

// The generator of documents is for tests, and executing a template makes the linker keep what nothing calls. The tags are those of the
// Makefile. net/rpc, which Google's credentials bring, has a template for a page that nobody serves, and so nothing executes it.
func TestBinaryLinksNoDocuments(t *testing.T) {
	out, err := exec.Command("go", "list", "-tags", "osusergo,netgo,grpcnotrace,disable_grpc_modules", "-deps",
		"-f", `{{.ImportPath}} {{join .Imports " "}}`, "../../cmd/holdfast").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		names := strings.Fields(line)
		for _, pkg := range []string{"html/template", "github.com/spf13/cobra/doc", "testing", "net/http/pprof"} {
			if slices.Contains(names[1:], pkg) && names[0] != "net/rpc" {
				t.Errorf("%s, which cmd/holdfast needs, imports %s", names[0], pkg)
			}
		}
	}
	if !strings.Contains(string(out), "holdfast/internal/cli ") {
		t.Errorf("go list printed %q", out)
	}
}
