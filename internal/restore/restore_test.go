package restore_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/instance"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// theirs loads an archive that another program wrote into memory, and returns the files beside it. The test is skipped
// where the archives are not there.
func theirs(t *testing.T, name string) (*storetest.Memory, map[string]string) {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "..", "shared", "archives", name+".tar.gz"))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the archives of other programs are not beside the repository")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	m, beside := &storetest.Memory{}, map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return m, beside
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		path := strings.TrimPrefix(strings.TrimPrefix(h.Name, "./"), name+"/")
		if object, ok := strings.CutPrefix(path, "archive/"); ok {
			if err := m.Put(t.Context(), object, r); err != nil {
				t.Fatal(err)
			}
			continue
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		beside[path] = string(b)
	}
}

// choose picks a backup, which must be possible.
func choose(t *testing.T, a *archive.Archive, name string, target catalog.Target) catalog.Choice {
	t.Helper()
	c, err := catalog.Load(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	choice, err := c.Choose(name, target)
	if err != nil {
		t.Fatal(err)
	}
	return choice
}

// scratch returns a directory that any account may enter, with a short path.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// postgres starts a restored cluster of that major version and returns how to run a program against it.
func postgres(t *testing.T, major int, data string) (run func(program string, args ...string) string) {
	t.Helper()
	programs := pgtest.Require(t, major)
	socket := scratch(t)
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := chownLike(socket, info); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server, err := instance.Start(ctx, instance.Options{Programs: programs, DataDir: data, SocketDir: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	if err := server.AwaitRecovery(ctx); err != nil {
		t.Fatal(err)
	}
	return func(program string, args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(programs.Dir, program), append([]string{"-h", socket, "-U", "postgres"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", program, err, out)
		}
		return string(out)
	}
}

// dumped takes out of a pg_dump what differs from one server to the next.
func dumped(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if strings.Contains(line, "pg_attver=") || strings.Contains(line, "pg_catalog.setval(") || line == "\n" {
			continue // minor releases differ in the first, and sequences run ahead of what was seen of them
		}
		if !strings.HasPrefix(line, "--") && !strings.HasPrefix(line, `\restrict`) && !strings.HasPrefix(line, `\unrestrict`) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// placeWAL writes the archive's WAL into a directory as PostgreSQL names it, and returns a restore_command that copies from there.
func placeWAL(t *testing.T, a *archive.Archive) string {
	t.Helper()
	dir := scratch(t)
	for o, err := range a.Store().List(t.Context(), archive.WALDir, "") {
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(o.Name, archive.WALDir)
		name = strings.TrimSuffix(strings.TrimSuffix(name, ".zst"), ".lz4")
		r, err := a.OpenWAL(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, r); err != nil {
			t.Fatal(err)
		}
		f.Close()
		r.Close()
		if err := os.Chmod(f.Name(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return "cp " + dir + `/%f "%p"`
}

// What WAL-G archived comes back as it was, at the end of the log and at a moment before.
func TestRestoresTheirs(t *testing.T) {
	for _, c := range []struct {
		archive  string
		backup   string
		major    int
		target   catalog.Target
		expected string
	}{
		{"pg15-zstd-full", "", 15, catalog.Target{Kind: catalog.Latest}, "expected.two.sql"},
		{"pg15-zstd-full", "LATEST", 15, catalog.Target{Kind: catalog.AtName, Name: "rp_one"}, "expected.one.sql"},
		{"pg15-lz4-delta", "base_000000010000000000000002", 15, catalog.Target{Kind: catalog.Latest}, "expected.two.sql"},
		{"pg15-lz4-remote", "", 15, catalog.Target{Kind: catalog.AtLSN, LSN: 0x40D4000}, "expected.two.sql"},
		{"pg17-zstd-timeline", "", 17, catalog.Target{Kind: catalog.Latest}, "expected.two.sql"},
		{"pg17-zstd-timeline", "base_000000010000000000000002", 17, catalog.Target{Kind: catalog.Latest}, "expected.two.sql"},
	} {
		t.Run(c.archive+" "+c.backup+" "+string(c.target.Kind), func(t *testing.T) {
			m, beside := theirs(t, c.archive)
			a := archive.New(m, archive.Options{})
			choice := choose(t, a, c.backup, c.target)
			dir := scratch(t)
			request := restore.Request{
				Destination: filepath.Join(dir, "data"), Choice: choice, TablespaceMapping: map[string]string{},
				Recovery: &restore.Recovery{Command: placeWAL(t, a)},
			}
			if choice.Target.Kind == catalog.AtName || choice.Target.Kind == catalog.AtLSN {
				request.Recovery.Action = "promote"
			}
			for _, ts := range choice.Backup.Sentinel.Spec.Tablespaces {
				request.TablespaceMapping[ts.OID] = filepath.Join(dir, "ts"+ts.OID)
			}
			plan, err := restore.Decide(t.Context(), a, request)
			if err != nil {
				t.Fatal(err)
			}
			report, err := restore.Run(t.Context(), a, plan, restore.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", report)
			run := postgres(t, c.major, plan.Destination)
			if got, want := dumped(run("pg_dump", "--no-unlogged-table-data", "app")), dumped(beside[c.expected]); got != want {
				t.Errorf("restored %d bytes of SQL, want %d", len(got), len(want))
			}
			if got := strings.TrimSpace(run("psql", "-Atc", "show archive_mode", "app")); got != "off" {
				t.Errorf("archive_mode is %s", got)
			}
		})
	}
}
