// Package runbook_test has docs/runbook.md played: each of its blocks is typed, in its order, by the account of a server in the state that the section is about.
package runbook_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/runbook"
	"holdfast/test/site"
)

const page = "../../docs/runbook.md"

// first is the section that is typed before any other.
const first = "First"

// scene is what a section of the page is played in.
type scene struct {
	major int                                       // of PostgreSQL; 0 means 17
	set   func(t *testing.T, w *world)              // makes what the section is about
	fails []string                                  // beginnings of commands that may fail: what is wrong is what they say
	twice []int                                     // blocks that are typed once more, by somebody who is not sure
	then  func(t *testing.T, w *world, said string) // looks whether it is as the page promises
}

// world is a server with its archive, and what stands for the values of the page.
type world struct {
	*site.Site
	dir     string
	config  string            // its file of settings
	first   map[string]string // values of the first section
	values  map[string]string // of the scene's own
	between map[int]string    // lines of the shell before the block of that number, from 0: what others do meanwhile
}

// unit is the service of the server.
const unit = "postgresql@17-main"

// open makes the world: the server archives, has the database shop with some rows, and a backup, after which more rows came.
func open(t *testing.T, major int) *world {
	t.Helper()
	w := &world{dir: pgtest.Dir(t), values: map[string]string{}, between: map[int]string{}}
	w.Site = &site.Site{Binary: pgtest.Build(t, "holdfast/cmd/holdfast"), Root: filepath.Join(w.dir, "archive")}
	for _, d := range []string{"archive", "bin", "scratch"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	pgtest.Give(t, w.dir)
	w.config = filepath.Join(w.dir, "holdfast.yaml")
	w.settings(t, w.config, map[string]string{"WALG_FILE_PREFIX": w.Root, "WALG_UPLOAD_CONCURRENCY": "2", "HOLDFAST_STATE_DIR": filepath.Join(w.dir, "state")})
	w.Env = []string{"HOLDFAST_CONFIG=" + w.config}
	w.Cluster = pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Checksums: true, SegmentSize: 1 << 20, Env: w.Env,
		Settings: map[string]string{"archive_mode": "on", "wal_keep_size": "16MB"}})
	t.Cleanup(func() { stopAll(t, w) })
	w.Exec(t, `alter system set archive_mode = on`, `alter system set archive_command = '`+w.archiving()+`'`, `alter system set fsync = off`, `alter system set jit = off`,
		`alter system set listen_addresses = ''`, `alter system set unix_socket_directories = '`+w.Server.Host()+`'`, `alter system set max_wal_senders = 4`, `select pg_reload_conf()`,
		`create database shop`)
	w.ExecIn(t, "shop", `create table orders (id int primary key, customer int, note text)`, `create table accounts (id int primary key, balance int)`,
		`insert into accounts select i, i * 7 % 1000 + 1 from generate_series(1, 6000) i`, `insert into orders select i, i % 100, md5(i::text) from generate_series(1, 5000) i`)
	w.Push(t)
	w.ExecIn(t, "shop", `insert into orders select i, i % 100, md5(i::text) from generate_series(5001, 6000) i`)
	w.first = map[string]string{
		"PGDATA": w.Data, "PGBIN": w.Programs.Dir, "PGHOST": w.Server.Host(), "PGPORT": strconv.Itoa(w.Server.Port()), "PGUSER": instance.Superuser, "PGDATABASE": "postgres",
		"UNIT": unit, "HOLDFAST_CONFIG": w.config, "HOLDFAST_DRILL_DIR": filepath.Join(w.dir, "scratch"),
	}
	w.program(t, "holdfast", `exec `+w.Binary+` "$@"`)
	w.program(t, "sudo", `exec "$@"`)
	// systemctl starts and stops the one service that there is, without the environment of who calls it, and knows nothing else.
	w.program(t, "systemctl", `[ $# = 2 ] && [ "$2" = `+unit+` ] || { echo "systemctl: $*" >&2; exit 1; }
case $1 in
stop) exec env -i PATH=/usr/bin:/bin `+w.Programs.Dir+`/pg_ctl -D "$PGDATA" -m fast -w stop ;;
start) exec env -i PATH=/usr/bin:/bin `+w.Programs.Dir+`/pg_ctl -D "$PGDATA" -o "-c port=$PGPORT" -l "`+w.dir+`/unit.log" -w start ;;
*) echo "systemctl: $*" >&2; exit 1 ;;
esac`)
	return w
}

// archiving is the archive_command, which knows nothing of the environment.
func (w *world) archiving() string { return w.Binary + " --config " + w.config + ` wal-push "%p"` }

// settings writes a file of settings.
func (w *world) settings(t *testing.T, file string, settings map[string]string) {
	t.Helper()
	text, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, file)
}

// program puts a program before all others.
func (w *world) program(t *testing.T, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, "bin", name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// stopAll stops what was started by pg_ctl.
func stopAll(t *testing.T, w *world) {
	for _, root := range []string{w.dir, w.Dir} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && filepath.Base(path) == "postmaster.pid" {
				data := filepath.Dir(path)
				cmd := exec.Command(filepath.Join(w.Programs.Dir, "pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop") // the test's context has ended
				cmd.SysProcAttr = pgtest.Command(t, cmd.Path).SysProcAttr
				cmd.Dir = "/"
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Logf("stop %s: %v: %s", data, err, out) // it has ended by itself meanwhile
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// sum asks a server, at a port of the scene's directory of sockets, for a checksum over the rows of a table of shop.
func (w *world) sum(t *testing.T, port int, table string) string {
	t.Helper()
	return w.ask(t, port, "shop", `select count(*) || ' rows, ' || coalesce(md5(string_agg(r::text, E'\n' order by r::text collate "C")), '') from `+table+` r`)
}

// ask asks a server at a port of the scene's directory of sockets.
func (w *world) ask(t *testing.T, port int, database, query string) (answer string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", w.Server.Host(), port, instance.Superuser, database))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), query).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return answer
}

// failed is what the shell says of a command that failed, began what it says before a block.
var (
	failed = regexp.MustCompile(`(?m)^@@failed (\d+) (.*)$`)
	began  = regexp.MustCompile(`(?m)^@@block (\d+)\n`)
)

// TestPage plays the page.
func TestPage(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	sections, err := runbook.Parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(sections) == 0 || sections[0].Heading != first {
		t.Fatalf("the page does not begin with the section %q", first)
	}
	scenes := scenes()
	for _, s := range sections[1:] {
		sc, ok := scenes[s.Heading]
		if !ok {
			if len(s.Blocks) > 0 {
				t.Errorf("line %d: nobody plays the section %q", s.Blocks[0].Line, s.Heading)
			}
			continue
		}
		delete(scenes, s.Heading)
		t.Run(strings.ReplaceAll(s.Heading, " ", "_"), func(t *testing.T) {
			t.Parallel()
			play(t, sections[0], s, sc)
		})
	}
	for heading := range scenes {
		t.Errorf("the page has no section %q any more", heading)
	}
}

// Where a copy stops because the moment was never archived nobody waits for it for ever.
func TestMomentThatIsNotArchived(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	sections, err := runbook.Parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(sections, func(s runbook.Section) bool { return s.Heading == "The restore went to the wrong moment" })
	sc := wrong()
	set := sc.set
	sc.set = func(t *testing.T, w *world) {
		set(t, w)
		w.values["MOMENT"] = w.Value(t, `clock_timestamp() + interval '1 hour'`)
	}
	sc.fails, sc.then = []string{"psql", "pg_ctl"}, func(t *testing.T, w *world, said string) {
		log, err := os.ReadFile(w.values["COPY"] + ".log")
		if err != nil || !strings.Contains(string(log), "recovery ended before configured recovery target was reached") {
			t.Errorf("%v: %s", err, log)
		}
	}
	play(t, sections[0], sections[i], sc)
}

// play types a section's blocks.
func play(t *testing.T, opening, s runbook.Section, sc scene) {
	w := open(t, cmp.Or(sc.major, 17))
	sc.set(t, w)
	var script strings.Builder
	script.WriteString("set -u -o pipefail\ntrap 'echo \"@@failed $? $BASH_COMMAND\"' ERR\n")
	unused := maps.Clone(w.values)
	write := func(b runbook.Block, values map[string]string) {
		switch b.Tag {
		case "sh":
			filled, names, err := runbook.Fill(b.Text, values)
			if err != nil {
				t.Fatalf("line %d: %v", b.Line, err)
			}
			for _, n := range names {
				delete(unused, n)
			}
			script.WriteString(filled)
		case "sql":
			script.WriteString(b.Text)
		case "text", "":
		default:
			t.Errorf("line %d: nobody knows what a block of %s is", b.Line, b.Tag)
		}
	}
	for _, b := range opening.Blocks {
		write(b, w.first)
	}
	for i, b := range s.Blocks {
		if line := w.between[i]; line != "" {
			script.WriteString(line + "\n")
		}
		sql := func(i int) bool { return i >= 0 && i < len(s.Blocks) && s.Blocks[i].Tag == "sql" }
		switch { // blocks of SQL that follow each other are typed in one session
		case sql(i) && sql(i-1):
			fmt.Fprintf(&script, "\\echo\n\\echo '@@block %d'\n", i)
		case sql(i):
			fmt.Fprintf(&script, "echo; echo '@@block %d'\npsql -X -v ON_ERROR_STOP=1 -d \"$DATABASE\" <<'end of session'\n", i)
		default:
			fmt.Fprintf(&script, "echo; echo '@@block %d'\n", i)
		}
		write(b, w.values)
		if sql(i) && !sql(i+1) {
			script.WriteString("end of session\n")
		}
		if slices.Contains(sc.twice, i) {
			write(b, w.values)
		}
	}
	for n := range unused {
		t.Errorf("the section exports no %s any more", n)
	}
	file := filepath.Join(w.dir, "script")
	if err := os.WriteFile(file, []byte(script.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), site.Patience)
	defer cancel()
	cmd := pgtest.Command(t, "bash", file)
	cmd.Env = slices.Concat(cmd.Environ(), w.Env, []string{"PATH=" + filepath.Join(w.dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + w.dir})
	cmd.WaitDelay = time.Second // servers that stay hold its output
	log, err := os.Create(filepath.Join(w.dir, "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // it is read by its name
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		err = fmt.Errorf("it hangs: %w", cmp.Or(<-ended, ctx.Err()))
	}
	raw, errRead := os.ReadFile(log.Name())
	if errRead != nil {
		t.Fatal(errRead)
	}
	said := string(bytes.ToValidUTF8(raw, nil))
	defer func() {
		if t.Failed() || testing.Verbose() {
			t.Logf("%s\n---- said\n%s", script.String(), said)
		}
	}()
	if err != nil && !strings.Contains(err.Error(), "exit status") {
		t.Fatal(err)
	}
	for _, m := range failed.FindAllStringSubmatch(said, -1) {
		if !slices.ContainsFunc(sc.fails, func(p string) bool { return strings.HasPrefix(m[2], p) }) {
			t.Errorf("status %s of %s", m[1], m[2])
		}
	}
	at := began.FindAllStringSubmatchIndex(said, -1)
	if len(at) != len(s.Blocks) {
		t.Fatalf("%d of %d blocks were typed", len(at), len(s.Blocks))
	}
	for i, b := range s.Blocks {
		if b.Tag != "text" {
			continue
		}
		if i == 0 {
			t.Errorf("line %d: what is printed, before anything is typed", b.Line)
		} else if missing, ok := runbook.Says(b.Text, said[at[i-1][1]:at[i][0]]); !ok {
			t.Errorf("line %d: this is not printed: %s", b.Line, missing)
		}
	}
	if sc.then != nil {
		sc.then(t, w, said)
	}
}
