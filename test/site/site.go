// Package site runs the holdfast program as an operator would: a private server that archives with it, an archive, and restored
// copies that recover with it. Only tests import it.
package site

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg/instance"
	"holdfast/internal/store"
	"holdfast/test/pgtest"
)

// Patience bounds a wait for a command or a server.
const Patience = 3 * time.Minute

// Site is a primary and its archive.
type Site struct {
	*pgtest.Cluster
	Binary string
	Root   string      // directory that holds the objects; "" where none does
	Store  store.Store // holds the objects where Root is ""
	Env    []string    // settings that name the archive
}

// New builds holdfast and starts a primary that archives by its wal-push into a directory of its own.
func New(t testing.TB, p instance.Programs, opts pgtest.Options) *Site {
	t.Helper()
	root := filepath.Join(pgtest.Dir(t), "archive")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, root)
	return In(t, p, opts, root, "WALG_FILE_PREFIX="+root)
}

// In is New for an archive that exists: env names it, and its objects are below the directory root.
func In(t testing.TB, p instance.Programs, opts pgtest.Options, root string, env ...string) *Site {
	t.Helper()
	return open(t, p, opts, &Site{Root: root, Env: env})
}

// At is In for an archive that is in a store, through which tests look at its objects.
func At(t testing.TB, p instance.Programs, opts pgtest.Options, st store.Store, env ...string) *Site {
	t.Helper()
	return open(t, p, opts, &Site{Store: st, Env: env})
}

// open starts the primary of s.
func open(t testing.TB, p instance.Programs, opts pgtest.Options, s *Site) *Site {
	t.Helper()
	s.Binary = pgtest.Build(t, "holdfast/cmd/holdfast")
	settings := map[string]string{"archive_mode": "on", "archive_command": s.Binary + ` wal-push "%p"`}
	for name, value := range opts.Settings {
		settings[name] = value
	}
	opts.Settings, opts.Env = settings, slices.Concat(s.Env, opts.Env)
	s.Cluster = pgtest.New(t, p, opts)
	// In the configuration too, so that copies would archive unless they are told not to.
	s.Exec(t, `alter system set archive_mode = on`, `alter system set archive_command = '`+s.Binary+` wal-push "%p"'`)
	return s
}

// Result is how a command ended.
type Result struct {
	Status int // 128 and the signal's number when it was killed
	Stdout string
	Stderr string
	Peak   int64 // bytes of memory that were seen resident at most; 0 of a command that Run did not run
}

// Errors returns the lines of Stderr that tell of errors, hints left out.
func (r Result) Errors() (lines []string) {
	for line := range strings.Lines(r.Stderr) {
		if strings.HasPrefix(line, "ERROR:") && !strings.Contains(line, "hint: ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// Command prepares holdfast with the settings of the archive and the server, as the account of the servers.
func (s *Site) Command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	cmd := pgtest.Command(t, s.Binary, args...)
	cmd.Env = slices.Concat(cmd.Environ(), s.Environ(), s.Env)
	return cmd
}

// Do runs holdfast to its end.
func (s *Site) Do(t testing.TB, args ...string) Result {
	t.Helper()
	return Run(t, s.Command(t, args...))
}

// Run runs a command to its end.
func Run(t testing.TB, cmd *exec.Cmd) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Minute // of what it leaves, which may hold its output
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	hangs := time.AfterFunc(Patience, func() { _ = cmd.Process.Kill() }) // it may have ended
	ended, peak := make(chan struct{}), make(chan int64)
	go func() { peak <- watch(cmd.Process.Pid, ended) }()
	err := cmd.Wait()
	hangs.Stop()
	close(ended)
	most := <-peak
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	if took := time.Since(begun); took > Patience {
		t.Errorf("%s took %s", cmd, took)
	}
	r := Ended(cmd, stdout.String(), stderr.String())
	r.Peak = most
	return r
}

// watch returns the most memory that process pid was seen to have had when it has ended.
func watch(pid int, ended <-chan struct{}) (most int64) {
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		select {
		case <-ended:
			tick.Stop()
			return most
		case <-tick.C:
			most = max(most, Peak(pid))
		}
	}
}

// Peak returns how much memory process pid has had at most, in bytes; 0 of none. What wait4(2) reports is not below the memory of the
// parent, whose pages the child has until it becomes another program.
func Peak(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// Ended says how a command that was waited for ended.
func Ended(cmd *exec.Cmd, stdout, stderr string) Result {
	r := Result{Status: cmd.ProcessState.ExitCode(), Stdout: stdout, Stderr: stderr}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.Status = 128 + int(ws.Signal())
	}
	return r
}

// OK runs holdfast, which must succeed.
func (s *Site) OK(t testing.TB, args ...string) Result {
	t.Helper()
	r := s.Do(t, args...)
	if r.Status != 0 {
		t.Fatalf("holdfast %s: exit status %d\n%s", strings.Join(args, " "), r.Status, r.Stderr)
	}
	return r
}

// Refused runs holdfast, which must fail with status and say, in one line of error, each of words.
func (s *Site) Refused(t testing.TB, status int, words []string, args ...string) Result {
	t.Helper()
	r := s.Do(t, args...)
	r.Check(t, "holdfast "+strings.Join(args, " "), status, words...)
	return r
}

// Check fails the test unless the command what ended with status and one line of error that has all of words.
func (r Result) Check(t testing.TB, what string, status int, words ...string) {
	t.Helper()
	if r.Status != status {
		t.Errorf("%s: exit status %d, want %d\n%s", what, r.Status, status, r.Stderr)
	}
	lines := r.Errors()
	if len(lines) != 1 {
		t.Errorf("%s: %d lines of error, want one:\n%s", what, len(lines), r.Stderr)
		return
	}
	for _, word := range words {
		if !strings.Contains(lines[0], word) {
			t.Errorf("%s: the error does not say %q:\n%s", what, word, lines[0])
		}
	}
}

// Backups returns the names that backup-list prints, oldest first. One that cannot be read fails the test.
func (s *Site) Backups(t testing.TB) (names []string) {
	t.Helper()
	var listed []struct {
		Name  string `json:"backup_name"`
		Error string `json:"error"`
	}
	out := s.OK(t, "backup-list", "--json").Stdout
	if err := json.Unmarshal([]byte(out), &listed); err != nil {
		t.Fatalf("backup-list --json: %v\n%s", err, out)
	}
	for _, b := range listed {
		if b.Error != "" {
			t.Errorf("backup %s: %s", b.Name, b.Error)
		}
		names = append(names, b.Name)
	}
	return names
}

// Push takes a backup and returns its name.
func (s *Site) Push(t testing.TB, args ...string) string {
	t.Helper()
	var report struct {
		Name string `json:"backup_name"`
	}
	r := s.OK(t, append([]string{"backup-push", "--json", s.Data}, args...)...)
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatalf("backup-push --json: %v\n%s", err, r.Stdout)
	}
	return report.Name
}

// Fetch restores into a new directory, which must succeed, and returns it.
func (s *Site) Fetch(t testing.TB, args ...string) string {
	t.Helper()
	dir := filepath.Join(pgtest.Dir(t), "data")
	s.OK(t, append([]string{"backup-fetch", dir}, args...)...)
	return dir
}

// Restored restores into a new directory with recovery, starts the server there, and waits until recovery has ended.
func (s *Site) Restored(t testing.TB, args ...string) *pgtest.Cluster {
	t.Helper()
	c := s.Open(t, s.Fetch(t, args...))
	AwaitRecovery(t, c)
	return c
}

// Open starts a server on a restored directory; recovery may go on.
func (s *Site) Open(t testing.TB, dir string) *pgtest.Cluster {
	t.Helper()
	return pgtest.Attach(t, s.Programs, dir, pgtest.Options{Env: s.Env, Settings: map[string]string{"hot_standby": "on"}})
}

// AwaitRecovery waits until c takes writes.
func AwaitRecovery(t testing.TB, c *pgtest.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if err := c.Server.AwaitRecovery(ctx); err != nil {
		t.Fatal(err)
	}
}

// Switch ends the current segment and waits until it is in the archive, and all that goes with it; it returns its name.
func (s *Site) Switch(t testing.TB) string {
	t.Helper()
	s.Exec(t, `select pg_logical_emit_message(false, 'site', 'x')`) // or there might be nothing to switch
	name := s.Value(t, `pg_walfile_name(pg_switch_wal())`)
	s.Await(t, name)
	pgtest.Eventually(t, "wal-push has ended", func() bool { // behind the segment it may store what goes with it
		_, err := os.Stat(filepath.Join(s.Data, "pg_wal", "archive_status", name+".ready"))
		return errors.Is(err, os.ErrNotExist)
	})
	return name
}

// Await waits until the archive has the WAL file name.
func (s *Site) Await(t testing.TB, name string) {
	t.Helper()
	pgtest.Eventually(t, name+" is archived", func() bool {
		return slices.ContainsFunc(extensions, func(ext string) bool { return s.Has("wal_005/" + name + ext) })
	})
}

// extensions are those of all methods of compression.
var extensions = []string{".zst", ".lz4", ".br", ".lzma", ""}

// Has reports whether the archive holds an object.
func (s *Site) Has(object string) bool {
	if s.Root == "" {
		_, err := s.Store.Stat(context.Background(), object)
		return err == nil
	}
	_, err := os.Stat(filepath.Join(s.Root, object))
	return err == nil
}

// Objects lists what the archive holds, unfinished files below Root included.
func (s *Site) Objects(t testing.TB) (names []string) {
	t.Helper()
	if s.Root == "" {
		for o, err := range store.Walk(t.Context(), s.Store, "") {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, o.Name)
		}
		return names
	}
	err := filepath.WalkDir(s.Root, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // renamed or removed meanwhile
		}
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(s.Root, path)
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// NoTrace fails the test when the archive holds anything but the owner, WAL and its summaries, the backups named, what tells whether one of
// several storages is alive, and what is being restored.
func (s *Site) NoTrace(t testing.TB, backups ...string) {
	t.Helper()
	for _, name := range s.Objects(t) {
		known := name == "holdfast/cluster.json" || name == "wal-g_storage_check" || strings.HasPrefix(name, "wal_005/") ||
			strings.HasPrefix(name, "holdfast/summaries/") || strings.HasPrefix(name, "holdfast/restores/")
		for _, b := range backups {
			known = known || strings.HasPrefix(name, "basebackups_005/"+b+"/") || name == "basebackups_005/"+b+"_backup_stop_sentinel.json"
		}
		if !known {
			t.Errorf("the archive still holds %s", name)
		}
	}
}

// NoCopies fails the test where anything is left of copies that were made below dir.
func (s *Site) NoCopies(t testing.TB, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("%s still has %v (%v)", dir, entries, err)
	}
	for _, o := range s.Objects(t) {
		if strings.HasPrefix(o, "holdfast/restores/") {
			t.Errorf("the archive still has %s", o)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		called, err1 := os.ReadFile(p + "/cmdline")
		at, err2 := os.Readlink(p + "/cwd") // by which a server's processes are known whatever they call themselves
		if err1 == nil && strings.Contains(string(called), dir) || err2 == nil && strings.HasPrefix(at, dir+"/") {
			t.Errorf("%s: %q is left", p, called)
		}
	}
}

// NotInBackup fails the test unless the server leaves backup mode: no session of holdfast is left, and a shutdown would not wait.
func (s *Site) NotInBackup(t testing.TB) {
	t.Helper()
	pgtest.Eventually(t, "no session of holdfast is left", func() bool {
		return s.Value(t, `select count(*) from pg_stat_activity where application_name like 'holdfast%'`) == "0"
	})
	if s.Programs.Major < 15 {
		if s.Value(t, `pg_is_in_backup()`) != "false" { // tells exclusive ones
			t.Error("the server is in backup mode")
		}
	}
}

// Rows returns a checksum over the rows of a table, in the order of its columns.
func Rows(t testing.TB, c *pgtest.Cluster, table string) string {
	t.Helper()
	return c.Value(t, `select count(*) || ' rows, ' || coalesce(md5(string_agg(r::text, E'\n' order by r::text collate "C")), '') from `+table+` r`)
}
