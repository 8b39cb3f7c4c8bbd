// Package agent_test runs Holdfast where people do: on three hosts with one cluster of PostgreSQL under Patroni and etcd, and one store of objects. Each host reaches etcd
// and the store by wires of its own, which tests cut; its processes are killed and made to stand still.
package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/archive"
	"holdfast/internal/pg/instance"
	"holdfast/internal/store"
	"holdfast/test/etcdtest"
	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

// major is the version that Debian's Patroni was made for.
const major = 15

// cluster is three hosts.
type cluster struct {
	programs instance.Programs
	binary   string // holdfast, with a clock that can be turned
	place    places.Place
	objects  string            // the directory with all that is there
	hosts    []*host           // db1 and so on; whoever was quickest is the primary
	slots    map[string]string // of the backups that were looked at
}

// A host is an address of its own, with a PostgreSQL and its Patroni.
type host struct {
	*cluster
	name, ip, dir string
	store, etcd   *wire
	settings      string   // the file
	env           []string // stronger settings

	patroni *exec.Cmd
	ended   chan struct{} // closed once patroni has
}

// start starts the hosts, waits until two standbys stream, and has rows written from then on. Settings are for Holdfast on all of them; $ETCD in them is the host's way to etcd.
func start(t testing.TB, settings map[string]string) *cluster {
	t.Helper()
	program := pgtest.Program(t, "patroni")
	c := &cluster{programs: pgtest.Require(t, major), binary: pgtest.Build(t, "holdfast/test/agent/fast"), slots: map[string]string{}}
	s3 := places.NewS3(t)
	c.place, c.objects = s3.Place(t), s3.Root()
	etcd := strings.TrimPrefix(etcdtest.Serve(t), "http://")
	dir := pgtest.Dir(t)
	net := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), rand.IntN(256))
	for n := range 3 {
		h := &host{cluster: c, name: fmt.Sprintf("db%d", n+1), ip: net + strconv.Itoa(n+1),
			store: newWire(t, strings.TrimPrefix(s3.URL, "http://")), etcd: newWire(t, etcd)}
		h.dir = filepath.Join(dir, h.name)
		for _, d := range []string{h.dir, h.state()} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		own := map[string]string{"PGHOST": h.ip, "PGPORT": "5432", "PGUSER": instance.Superuser, "PGDATABASE": "postgres", "PGDATA": h.data(),
			"HOLDFAST_LEASE_HOST": h.name, "HOLDFAST_STATE_DIR": h.state()}
		for _, e := range s3.Env("http://" + h.store.addr()) {
			name, value, _ := strings.Cut(e, "=")
			own[name] = value
		}
		maps.Copy(own, settings)
		for name, value := range own {
			own[name] = strings.ReplaceAll(value, "$ETCD", h.etcd.addr())
		}
		h.settings = h.write(t, "holdfast.json", own)
		c.hosts = append(c.hosts, h)
	}
	c.reap(t)
	for _, h := range c.hosts {
		h.configure(t)
		pgtest.Give(t, h.dir)
		h.run(t, program)
	}
	if err := c.settle(t).exec(t.Context(), `create table ledger (n bigint primary key, filler text)`); err != nil {
		t.Fatal(err)
	}
	c.work(t)
	return c
}

func (h *host) data() string  { return filepath.Join(h.dir, "data") }
func (h *host) state() string { return filepath.Join(h.dir, "state") }

// write writes a document, and returns its path.
func (h *host) write(t testing.TB, name string, document any) string {
	t.Helper()
	b, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(h.dir, name)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// configure writes what Patroni wants to know: YAML, of which JSON is a part.
func (h *host) configure(t testing.TB) {
	t.Helper()
	type m = map[string]any
	h.write(t, "patroni.yml", m{
		"scope": "orders", "name": h.name,
		"restapi": m{"listen": h.ip + ":8008", "connect_address": h.ip + ":8008"},
		"etcd3":   m{"hosts": []string{h.etcd.addr()}, "use_proxies": true}, // or it would go by what etcd says where it is
		"bootstrap": m{
			// As short as a busy machine lets them be.
			"dcs": m{"ttl": 20, "loop_wait": 1, "retry_timeout": 6, "postgresql": m{"use_pg_rewind": true, "use_slots": true, "parameters": m{
				"archive_mode": "on", "archive_timeout": 2, "checkpoint_timeout": 30, "wal_keep_size": "512MB", "max_wal_senders": 8, "max_connections": 40,
				"shared_buffers": "16MB", "hot_standby": "on", "wal_level": "replica"}}},
			"initdb": []any{m{"encoding": "UTF8"}, m{"locale": "C"}, m{"wal-segsize": "1"}, "data-checksums", "no-sync"},
		},
		"postgresql": m{
			"listen": h.ip + ":5432", "connect_address": h.ip + ":5432", "data_dir": h.data(), "bin_dir": h.programs.Dir, "pgpass": filepath.Join(h.dir, "pgpass"),
			"authentication": m{"superuser": m{"username": instance.Superuser}, "replication": m{"username": instance.Superuser}},
			"pg_hba":         []string{"local all all trust", "host all all 127.0.0.0/8 trust", "host replication all 127.0.0.0/8 trust"},
			"parameters": m{"unix_socket_directories": h.dir, "fsync": "off", "jit": "off",
				"archive_command": h.binary + " --config " + h.settings + ` wal-push "%p"`},
		},
	})
}

// run starts Patroni, which starts PostgreSQL.
func (h *host) run(t testing.TB, program string) {
	t.Helper()
	h.patroni = pgtest.Command(t, program, filepath.Join(h.dir, "patroni.yml"))
	h.ended = h.begin(t, h.logged(t, h.patroni, "patroni.log"))
}

// logged has a process write to a file of h's: what it starts may go on writing when it has ended.
func (h *host) logged(t testing.TB, cmd *exec.Cmd, name string) *exec.Cmd {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(h.dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	cmd.Stdout, cmd.Stderr = f, f
	return cmd
}

// begin starts a process that does not outlive the test; the channel is closed once it has ended.
func (c *cluster) begin(t testing.TB, cmd *exec.Cmd) chan struct{} {
	t.Helper()
	ended, err := pgtest.Begin(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

// crash ends Patroni and PostgreSQL as the loss of a host's power does.
func (h *host) crash() {
	_ = h.patroni.Process.Kill() // it may have ended
	<-h.ended
	b, err := os.ReadFile(filepath.Join(h.data(), "postmaster.pid"))
	if err != nil {
		return // PostgreSQL does not run
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil || !h.runs(pid) {
		return
	}
	_ = syscall.Kill(pid, syscall.SIGSTOP) // or it would have new ones meanwhile
	for _, p := range append(family(pid), pid) {
		_ = syscall.Kill(p, syscall.SIGKILL)
	}
	for h.runs(pid) {
		time.Sleep(10 * time.Millisecond)
	}
}

// family returns what a process has started, and what that has.
func family(pid int) (all []int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil // it has ended
	}
	for _, f := range strings.Fields(string(b)) {
		if child, err := strconv.Atoi(f); err == nil {
			all = append(append(all, child), family(child)...)
		}
	}
	return all
}

// runs reports whether a process is this host's postmaster.
func (h *host) runs(pid int) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && cwd == h.data()
}

// reap sees to it that no server is left, however the test ends: Patroni's servers are not its children.
func (c *cluster) reap(t testing.TB) {
	t.Helper()
	script := "cat > /dev/null\n"
	for _, h := range c.hosts {
		script += "kill -9 $(head -n 1 " + h.data() + "/postmaster.pid)\n"
	}
	as := pgtest.Command(t, "sh", "-c", script)
	guard := &exec.Cmd{Path: as.Path, Args: as.Args, Dir: as.Dir, SysProcAttr: as.SysProcAttr} // neither does it end with the test's context
	if guard.SysProcAttr == nil {
		guard.SysProcAttr = &syscall.SysProcAttr{}
	}
	guard.SysProcAttr.Setpgid = true // nor with a signal from the terminal
	alive, err := guard.StdinPipe()  // closed when this process ends
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range c.hosts {
			if h.patroni != nil {
				h.crash()
				_ = os.Remove(filepath.Join(h.data(), "postmaster.pid")) // nothing is left to be killed
			}
			if t.Failed() {
				t.Logf("Patroni of %s said at last:\n%s", h.name, h.tail(t, "patroni.log", 40))
			}
		}
		alive.Close()
		_ = guard.Wait() // it has failed to find one
	})
}

// tail returns the last lines of a log.
func (h *host) tail(t testing.TB, name string, lines int) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, name))
	if err != nil {
		t.Error(err)
	}
	all := strings.SplitAfter(string(b), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

// primary returns the host that Patroni says is the primary, nil where there is none just now.
func (c *cluster) primary() *host {
	client := http.Client{Timeout: 2 * time.Second}
	for _, h := range c.hosts {
		res, err := client.Get("http://" + h.ip + ":8008/primary")
		if err != nil {
			continue
		}
		res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return h
		}
	}
	return nil
}

// settle waits until there is a primary from which all others stream, and returns it.
func (c *cluster) settle(t testing.TB) (primary *host) {
	t.Helper()
	pgtest.Eventually(t, "two standbys stream", func() bool {
		for _, h := range c.hosts {
			select {
			case <-h.ended:
				t.Fatalf("Patroni of %s has ended", h.name)
			default:
			}
		}
		primary = c.primary()
		if primary == nil {
			return false
		}
		n, err := primary.value(t, `select count(*) from pg_stat_replication where state = 'streaming' and application_name like 'db_'`)
		return err == nil && n == "2"
	})
	return primary
}

// others are the hosts but one, in random order.
func (c *cluster) others(but *host) []*host {
	var all []*host
	for _, n := range rand.Perm(len(c.hosts)) {
		if h := c.hosts[n]; h != but {
			all = append(all, h)
		}
	}
	return all
}

// switchover has a host become the primary, as `patronictl switchover` does.
func (c *cluster) switchover(t testing.TB, to *host) {
	t.Helper()
	pgtest.Eventually(t, to.name+" is the primary", func() bool {
		from := c.primary()
		if from == nil || from == to {
			return from == to
		}
		body, err := json.Marshal(map[string]string{"leader": from.name, "candidate": to.name})
		if err != nil {
			t.Fatal(err)
		}
		client := http.Client{Timeout: time.Minute}
		res, err := client.Post("http://"+from.ip+":8008/switchover", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Log(err)
			return false
		}
		defer res.Body.Close()
		said, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode == http.StatusOK {
			return true
		}
		t.Logf("switchover from %s to %s: %s: %s (%v)", from.name, to.name, res.Status, said, err) // too early after the last one
		return false
	})
}

// conninfo is how the server of h is reached.
func (h *host) conninfo() string {
	return fmt.Sprintf("host=%s port=5432 user=%s dbname=postgres connect_timeout=5", h.ip, instance.Superuser)
}

// value asks the server of h for one value.
func (h *host) value(t testing.TB, sql string, args ...any) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, h.conninfo())
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var s string
	err = conn.QueryRow(ctx, "select ("+sql+")::text", args...).Scan(&s)
	return s, err
}

// exec runs a statement on the server of h.
func (h *host) exec(ctx context.Context, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, h.conninfo())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql)
	return err
}

// work commits rows on whoever is the primary, numbered without a gap, and makes a checkpoint each second, so that each backup begins where none began before. It
// goes on until the test ends.
func (c *cluster) work(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			_ = c.workOn(ctx) // the primary may be another one by now
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

func (c *cluster) workOn(ctx context.Context) error {
	h := c.primary()
	if h == nil {
		return nil
	}
	conn, err := pgx.Connect(ctx, h.conninfo())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for told := time.Now(); ; {
		one, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := conn.Exec(one, `insert into ledger select coalesce(max(n), 0) + 1, repeat('x', 500) from ledger`)
		if err == nil && time.Since(told) > time.Second {
			told = time.Now()
			_, err = conn.Exec(one, `checkpoint`)
		}
		cancel()
		if err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// command prepares holdfast on h.
func (h *host) command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	cmd := pgtest.Command(t, h.binary, append([]string{"--config", h.settings}, args...)...)
	cmd.Env = append(cmd.Environ(), h.env...)
	return cmd
}

// ok runs holdfast on h, which must succeed.
func (h *host) ok(t testing.TB, args ...string) site.Result {
	t.Helper()
	r := site.Run(t, h.command(t, args...))
	if r.Status != 0 {
		t.Fatalf("holdfast %s on %s: status %d\n%s", strings.Join(args, " "), h.name, r.Status, r.Stderr)
	}
	return r
}

// made is a backup that there is.
type made struct {
	name string
	slot string // that it was made for, "" where it was made for none
	at   time.Time
}

// backups returns those there are, by name.
func (c *cluster) backups(t testing.TB) (all []made) {
	t.Helper()
	a := archive.New(c.place.Store, archive.Options{})
	for f, err := range a.Backups(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		slot, ok := c.slots[f.Name]
		if !ok {
			s, err := a.Sentinel(t.Context(), f.Name)
			if err != nil {
				t.Fatal(err)
			}
			slot = s.Slot
			c.slots[f.Name] = slot
		}
		all = append(all, made{f.Name, slot, f.Object.Modified})
	}
	slices.SortFunc(all, func(x, y made) int { return strings.Compare(x.name, y.name) })
	return all
}

// left lists the objects that are of no backup.
func (c *cluster) left(t testing.TB) (objects []string) {
	t.Helper()
	names := map[string]bool{}
	for _, b := range c.backups(t) {
		names[b.name] = true
	}
	for o, err := range store.Walk(t.Context(), c.place.Store, archive.BackupDir) {
		if err != nil {
			t.Fatal(err)
		}
		if folder, _, is := strings.Cut(strings.TrimPrefix(o.Name, archive.BackupDir), "/"); is && !names[folder] {
			objects = append(objects, o.Name)
		}
	}
	return objects
}

// tidy fails the test unless nothing is left of what became no backup. On a machine that stood still there may be what a push could not remove, which the next one does; and what
// arrived when all else was removed, which nobody can know to be of a push of ours before a day has passed.
func (c *cluster) tidy(t testing.TB) {
	t.Helper()
	marked := func(name string) bool { return strings.HasSuffix(name, "/push.json") }
	if left := c.left(t); slices.ContainsFunc(left, marked) {
		t.Logf("left is %q", left)
		another(t, c.others(c.settle(t))...)
	}
	left := c.left(t)
	if len(left) == 0 {
		return
	}
	t.Logf("arrived late: %q", left)
	for _, name := range left {
		if marked(name) {
			t.Errorf("%s is left by two backups", name)
		}
		file := filepath.Join(c.objects, name)
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		old := info.ModTime().Add(-25 * time.Hour)
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
	}
	c.hosts[0].ok(t, "delete", "garbage", "BACKUPS", "--confirm")
	if left := c.left(t); len(left) > 0 {
		t.Errorf("%q is left, a day later", left)
	}
}

// whole fails the test unless every backup is what its sentinel says, nothing is left of any other, and two of them, one chosen at random, are restored and work.
func (c *cluster) whole(t testing.TB) {
	t.Helper()
	c.tidy(t)
	all := c.backups(t)
	if len(all) == 0 {
		t.Fatal("there is no backup")
	}
	h := c.hosts[rand.IntN(len(c.hosts))]
	h.ok(t, "verify", "all")
	newest := all[0]
	for _, b := range all {
		if b.at.After(newest.at) {
			newest = b
		}
	}
	one := all[rand.IntN(len(all))]
	for _, r := range []struct {
		backup string
		how    []string
	}{
		{one.name, []string{"--target", "immediate", "--target-action", "promote"}}, // a lost primary may have taken WAL behind it with it
		{newest.name, []string{"--target", "latest"}},
	} {
		dir := filepath.Join(pgtest.Dir(t), "data")
		h.ok(t, append([]string{"backup-fetch", dir, r.backup}, r.how...)...)
		restored := pgtest.Attach(t, c.programs, dir, pgtest.Options{Settings: map[string]string{
			"hot_standby": "on", "archive_mode": "off", "max_wal_senders": "10"}})
		site.AwaitRecovery(t, restored)
		if rows, last := restored.Value(t, `select count(*) from ledger`), restored.Value(t, `select max(n) from ledger`); rows != last || rows == "0" {
			t.Errorf("restored from %s: %s rows, the last is number %s", r.backup, rows, last)
		}
		restored.Stop(t)
	}
	t.Logf("%d backups, all good; restored %s and %s", len(all), one.name, newest.name)
}
