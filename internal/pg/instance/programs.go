package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
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

// Installed lists the server programs found on this machine, newest major first, and of one major those in dirs before
// those of Debian (/usr/lib/postgresql/N/bin), RHEL (/usr/pgsql-N/bin), /usr/local/pgsql/bin and PATH. Directories without
// a postgres that runs are left out.
func Installed(ctx context.Context, dirs ...string) []Programs {
	candidates := slices.Clone(dirs)
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin"} {
		found, _ := filepath.Glob(pattern) // the only error is a bad pattern
		candidates = append(candidates, found...)
	}
	if program, err := exec.LookPath("postgres"); err == nil {
		candidates = append(candidates, filepath.Dir(program))
	}
	var all []Programs
	seen := map[string]bool{}
	for _, dir := range candidates {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil || seen[real] {
			continue
		}
		seen[real] = true
		if p, err := Open(ctx, dir); err == nil {
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b Programs) int { return cmp.Compare(b.Major, a.Major) })
	return all
}

// Find returns the programs of one major version, looking where Installed looks. When there are none the error is
// fs.ErrNotExist and names the versions there are.
func Find(ctx context.Context, major int, dirs ...string) (Programs, error) {
	var others []string
	for _, p := range Installed(ctx, dirs...) {
		if p.Major == major {
			return p, nil
		}
		others = append(others, strconv.Itoa(p.Major))
	}
	if err := ctx.Err(); err != nil {
		return Programs{}, err
	}
	return Programs{}, fmt.Errorf("find the server programs of PostgreSQL %d (there are: %s): %w",
		major, cmp.Or(strings.Join(slices.Compact(others), ", "), "none"), fs.ErrNotExist)
}

// path returns the named program.
func (p Programs) path(program string) string { return filepath.Join(p.Dir, program) }
