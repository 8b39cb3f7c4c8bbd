package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Programs is a directory that holds postgres, initdb and pg_ctl of one version. Open and Installed make it.
type Programs struct {
	Dir     string // absolute
	Major   int    // 15 for 15.18
	Version string // as postgres --version says it, "15.18 (Debian 15.18-0+deb12u1)"
}

// Open asks the postgres in dir for its version. Without a postgres there the error is fs.ErrNotExist.
func Open(ctx context.Context, dir string) (Programs, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Programs{}, err
	}
	program := filepath.Join(dir, "postgres")
	if _, err := os.Stat(program); err != nil {
		return Programs{}, err
	}
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Dir = "/" // our own directory may be closed to a program that looks for its neighbours
	out, err := cmd.Output()
	if err != nil {
		return Programs{}, fmt.Errorf("%s --version: %w", program, errors.Join(ctx.Err(), err))
	}
	_, version, ok := strings.Cut(strings.TrimSpace(string(out)), "(PostgreSQL) ")
	digits := version[:len(version)-len(strings.TrimLeft(version, "0123456789"))]
	major, err := strconv.Atoi(digits)
	if !ok || err != nil {
		return Programs{}, fmt.Errorf("%s --version: %q is no version of PostgreSQL", program, strings.TrimSpace(string(out)))
	}
	return Programs{Dir: dir, Major: major, Version: version}, nil
}

// usual are the patterns of directories in which packages put the server programs.
var usual = [...]string{
	"/usr/lib/postgresql/*/bin",                            // Debian
	"/usr/pgsql-*/bin",                                     // RHEL
	"/usr/lib/postgresql[0-9]*/bin",                        // SUSE
	"/usr/libexec/postgresql[0-9]*",                        // Alpine
	"/usr/lib64/postgresql-*/bin",                          // Gentoo
	"/opt/homebrew/opt/postgresql@*/bin",                   // Homebrew
	"/usr/local/opt/postgresql@*/bin",                      // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",      // Homebrew on Linux
	"/Applications/Postgres.app/Contents/Versions/*/bin",   // Postgres.app
	"/opt/bitnami/postgresql/bin", "/usr/local/pgsql*/bin", // containers, and what was built by hand
}

// Installed lists the server programs found on this machine, newest major first, and of one major those in dirs, which may be patterns of
// filepath.Glob, before those where packages put them (usual) and those in PATH. Directories without a postgres that runs are left out.
func Installed(ctx context.Context, dirs ...string) []Programs {
	all := slices.Collect(installed(ctx, dirs))
	slices.SortStableFunc(all, func(a, b Programs) int { return cmp.Compare(b.Major, a.Major) })
	return all
}

// installed yields them as they are found. Each has to be started to know what it is.
func installed(ctx context.Context, dirs []string) iter.Seq[Programs] {
	return func(yield func(Programs) bool) {
		var candidates []string
		for _, pattern := range slices.Concat(dirs, usual[:]) {
			found, _ := filepath.Glob(pattern) // one that is no pattern matches nothing
			candidates = append(candidates, found...)
		}
		if program, err := exec.LookPath("postgres"); err == nil {
			candidates = append(candidates, filepath.Dir(program))
		}
		seen := map[string]bool{}
		for _, dir := range candidates {
			real, err := filepath.EvalSymlinks(dir)
			if err != nil || seen[real] {
				continue
			}
			seen[real] = true
			if p, err := Open(ctx, dir); err == nil && !yield(p) {
				return
			}
		}
	}
}

// Find returns the programs of one major version, looking where Installed looks. When there are none the error is
// fs.ErrNotExist and names the versions there are.
func Find(ctx context.Context, major int, dirs ...string) (Programs, error) {
	var others []int
	for p := range installed(ctx, dirs) {
		if p.Major == major {
			return p, nil
		}
		others = append(others, p.Major)
	}
	if err := ctx.Err(); err != nil {
		return Programs{}, err
	}
	slices.Sort(others)
	slices.Reverse(others)
	there := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(slices.Compact(others))), ", "), "[]")
	return Programs{}, fmt.Errorf("find the server programs of PostgreSQL %d (there are: %s): %w", major, cmp.Or(there, "none"), fs.ErrNotExist)
}

// path returns the named program.
func (p Programs) path(program string) string { return filepath.Join(p.Dir, program) }
