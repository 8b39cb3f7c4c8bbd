package bringback

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"holdfast/internal/pg/instance"
)

// findDump finds a pg_dump that can read the copy: its own, else the oldest of newer ones, which read older servers.
func (c *Copy) findDump(ctx context.Context) (string, error) {
	const name = "pg_dump"
	if p := filepath.Join(c.Programs.Dir, name); runs(p) {
		return p, nil
	}
	found, major := "", 0
	for _, p := range instance.Installed(ctx, c.Search...) {
		if path := filepath.Join(p.Dir, name); p.Major >= c.Programs.Major && (found == "" || p.Major < major) && runs(path) {
			found, major = path, p.Major
		}
	}
	if path, err := exec.LookPath(name); err == nil && found == "" {
		cmd := exec.CommandContext(ctx, path, "--version")
		cmd.Dir = "/"
		out, err := cmd.Output()
		if _, version, ok := strings.Cut(string(out), "(PostgreSQL) "); err == nil && ok {
			if n, err := strconv.Atoi(version[:len(version)-len(strings.TrimLeft(version, "0123456789"))]); err == nil && n >= c.Programs.Major {
				found = path
			}
		}
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if found == "" {
		return "", &RefusedError{fmt.Errorf("no pg_dump of PostgreSQL %d or newer: neither in %s nor in the usual places", c.Programs.Major, c.Programs.Dir),
			fmt.Sprintf("install PostgreSQL's client programs (Debian: postgresql-client-%d, RHEL: postgresql%[1]d), or name their directory: HOLDFAST_PG_BIN", c.Programs.Major)}
	}
	return found, nil
}

// runs reports whether there is a program at path.
func runs(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// dumpOptions are settings of pg_dump's session.
const dumpOptions = "-c standard_conforming_strings=on -c statement_timeout=0 -c session_preload_libraries= -c local_preload_libraries= -c max_parallel_workers_per_gather=0"

// pgDump is a pg_dump of a database of the copy.
func (c *Copy) pgDump(ctx context.Context, path, encoding, database string, args []string) (*exec.Cmd, *tail) {
	config := c.config(database)
	all := append([]string{"-w", "-h", config["host"], "-p", config["port"], "-U", config["user"], "-d", conninfo(database), "--encoding", dumpEncoding(encoding)}, args...)
	cmd := exec.CommandContext(ctx, path, all...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "LC_ALL=C", "TZ=UTC", "PGAPPNAME=" + program, "PGSSLMODE=disable",
		"PGOPTIONS=" + dumpOptions}
	if l, ok := os.LookupEnv("LD_LIBRARY_PATH"); ok {
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+l)
	}
	if c.Account != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.Account}
	}
	said := &tail{}
	cmd.Stderr = said
	return cmd, said
}

// conninfo is a connection string of a database alone: a bare name with = in it would be taken for a connection string.
func conninfo(database string) string {
	return "dbname='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(database) + "'"
}

// dumpEncoding is in which encoding a database's dump is written: UTF-8 where PostgreSQL can convert to it.
func dumpEncoding(database string) string {
	if database == "SQL_ASCII" || database == "MULE_INTERNAL" {
		return database
	}
	return "UTF8"
}

// read runs a pg_dump in its plain format, and do on what it writes. If do is content so must pg_dump be.
func (c *Copy) read(ctx context.Context, path, encoding, database string, args []string, do func(*script) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, said := c.pgDump(ctx, path, encoding, database, args)
	cmd.Env = append(cmd.Env, "PGOPTIONS="+dumpOptions+" -c lc_monetary=C") // as the session has it that reads this; of two values the last counts
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("pg_dump of the copy: %w", err)
	}
	did := do(newScript(out))
	if did == nil {
		_, did = io.Copy(io.Discard, out) // to its end, or it would not end
	}
	if did != nil {
		cancel()
	}
	err = cmd.Wait()
	switch {
	case errors.Is(did, io.ErrUnexpectedEOF): // pg_dump may have said why
		return fmt.Errorf("pg_dump of the copy: %w%s", did, said.behind())
	case did == nil && err != nil:
		return fmt.Errorf("pg_dump of the copy: %w%s", cmp.Or(context.Cause(ctx), err), said.behind())
	}
	return did
}

// tail keeps the end of what a program says.
type tail struct{ b []byte }

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-tailBytes):]...)
	t.b = t.b[max(0, len(t.b)-tailBytes):]
	return len(p), nil
}

// behind is what was said, ready to be put behind an error: only what is about one, where all progress is told.
func (t *tail) behind() string {
	lines := bytes.Split(bytes.TrimSpace(t.b), []byte("\n"))
	var kept []string
	for _, l := range lines {
		if l := strings.ToValidUTF8(strings.TrimSpace(string(l)), "\uFFFD"); strings.Contains(l, "error:") || strings.Contains(l, "detail:") || strings.Contains(l, "ERROR:") {
			kept = append(kept, l)
		}
	}
	if len(kept) == 0 && len(t.b) > 0 {
		kept = []string{strings.ToValidUTF8(string(lines[len(lines)-1]), "\uFFFD")}
	}
	if len(kept) == 0 {
		return ""
	}
	return ": " + strings.Join(kept, "; ")
}
