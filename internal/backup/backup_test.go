package backup_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/compress"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/server"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/file"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
	"holdfast/test/pgtest"
)

// cluster returns a small cluster with checksums that archives into a directory.
func cluster(t *testing.T) *pgtest.Cluster {
	t.Helper()
	return pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Checksums: true, Archive: true})
}

func connect(t *testing.T, c *pgtest.Cluster) *server.Conn {
	t.Helper()
	conn, err := server.Connect(t.Context(), c.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// copiedWAL is a store that shows the WAL files in a directory beside what it keeps itself.
type copiedWAL struct {
	store.Store
	dir string
}

func (c copiedWAL) take(ctx context.Context) error {
	files, err := os.ReadDir(c.dir)
	for _, f := range files {
		err = errors.Join(err, c.Store.Put(ctx, archive.WALDir+f.Name(), strings.NewReader("whatever")))
	}
	return err
}

func TestRunMakesAWholeBackup(t *testing.T) {
	c := cluster(t)
	c.Exec(t, `create table t as select generate_series(1, 20000) i`, `create unlogged table u as select 1 i`, `checkpoint`)
	sock, err := net.Listen("unix", filepath.Join(c.Data, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	for _, odd := range []error{os.Symlink("/nowhere", filepath.Join(c.Data, "link")), os.WriteFile(filepath.Join(c.Data, "odd\xff"), nil, 0o600)} {
		if odd != nil {
			t.Fatal(odd)
		}
	}
	m := copiedWAL{&storetest.Memory{}, c.Archive}
	a := archive.New(m, archive.Options{Method: compress.LZ4})
	progress := &backup.Progress{}
	opts := backup.Options{PartSize: 1 << 20, Host: "db1", Progress: progress, UserData: []byte(`{"ticket":7}`)}
	done := make(chan error)
	go func() { // archive_command copies files; this brings them into the archive
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				_ = m.take(t.Context()) // a file that is being copied is taken again
			}
		}
	}()
	defer close(done)
	report, err := backup.Run(t.Context(), connect(t, c), a, c.Data, opts)
	if err != nil {
		t.Fatal(err)
	}
	if report.CorruptBlocks != 0 || !slices.Equal(report.Skipped, []string{"odd\xff", "socket"}) || report.WALIncomplete {
		t.Errorf("%+v", report)
	}
	if done, total := progress.Bytes(); done == 0 || total < 20<<20 {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	s, err := a.Sentinel(t.Context(), report.Name)
	if err != nil {
		t.Fatal(err)
	}
	if *s.LSN >= *s.FinishLSN || s.UncompressedSize < 20<<20 || string(s.UserData) != `{"ticket":7}` || s.DataDir != c.Data {
		t.Errorf("%+v", s)
	}
	missing, err := a.MissingWAL(t.Context(), report.Timeline, 0, 0, 16<<20, 0)
	if err != nil || len(missing) != 1 { // the cluster's WAL begins with segment 1
		t.Errorf("missing %v, %v", missing, err)
	}

	// Parts are numbered without holes, none is empty, and together they hold each file once.
	seen := map[string]int64{}
	parts, err := a.Parts(t.Context(), report.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		r, err := a.OpenPart(t.Context(), report.Name, p)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		err = tarpart.Each(r, func(h tarpart.Header, content io.Reader) error {
			n++
			if _, twice := seen[h.Path]; twice {
				t.Errorf("%s is stored twice", h.Path)
			}
			seen[h.Path] = h.Size
			_, err := io.Copy(io.Discard, content)
			return err
		})
		if err != nil || n == 0 {
			t.Errorf("%s: %d members, %v", p.Name, n, err)
		}
		r.Close()
	}
	for _, want := range []string{".", "PG_VERSION", "global/pg_control", "backup_label", "tablespace_map", "base/5/PG_VERSION", "pg_wal", "postgresql.conf", "link"} {
		if _, ok := seen[want]; !ok {
			t.Errorf("%s is not stored", want)
		}
	}
	table := c.Value(t, `select pg_relation_filepath('t')`)
	if seen[table] == 0 {
		t.Errorf("%s of table t is stored with %d bytes", table, seen[table])
	}
	unlogged := c.Value(t, `select pg_relation_filepath('u')`)
	if _, ok := seen[unlogged]; ok {
		t.Errorf("the unlogged %s is stored", unlogged)
	}
	if _, ok := seen[unlogged+"_init"]; !ok {
		t.Errorf("%s_init is not stored", unlogged)
	}
	if _, ok := seen["postmaster.pid"]; ok {
		t.Error("postmaster.pid is stored")
	}
}

// onPut is a store that runs do once, before an object whose name contains name is read.
type onPut struct {
	store.Store
	name string
	do   func()
}

func (o *onPut) Put(ctx context.Context, name string, r io.Reader) error {
	if strings.Contains(name, o.name) && o.do != nil {
		o.do()
		o.do = nil
	}
	return o.Store.Put(ctx, name, r)
}

// Replay makes a tablespace that was created during the backup, and fails where its link's place is taken by a directory.
func TestTablespaceCreatedDuringBackupIsLeftToReplay(t *testing.T) {
	c := cluster(t)
	early, late := pgtest.Dir(t), pgtest.Dir(t)
	c.Exec(t, `create tablespace early location '`+early+`'`, `create table e tablespace early as select 1 i`)
	m := &onPut{Store: &storetest.Memory{}, name: "/part_", do: func() {
		c.Exec(t, `create tablespace late location '`+late+`'`, `create table l tablespace late as select 1 i`)
	}}
	a := archive.New(m, inMemory)
	report, err := backup.Run(t.Context(), connect(t, c), a, c.Data, backup.Options{NoWaitWAL: true, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	mf, err := a.OpenManifest(t.Context(), report.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer mf.Close()
	var below []string
	for p, err := mf.Next(); err != io.EOF; p, err = mf.Next() {
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range p.Members {
			if strings.HasPrefix(m.Path, "pg_tblspc/") {
				below = append(below, m.Path)
			}
		}
	}
	of := func(name string) string {
		return "pg_tblspc/" + c.Value(t, `select oid from pg_tablespace where spcname = '`+name+`'`) + "/"
	}
	has := func(dir string) bool {
		return slices.ContainsFunc(below, func(p string) bool { return strings.HasPrefix(p, dir) })
	}
	if !has(of("early")) || has(of("late")) {
		t.Errorf("stored below pg_tblspc: %v; want what is in %s and not what is in %s", below, of("early"), of("late"))
	}
}

// Whichever store call fails, Run says so, no backup appears, nothing is left behind and the server is out of backup mode.
func TestRunFailsWhole(t *testing.T) {
	c := cluster(t)
	for how, failAt := range map[string]func(store.Store, int) *storetest.Flaky{"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		for n := 0; ; n++ {
			m := &storetest.Memory{}
			flaky := failAt(m, n)
			conn := connect(t, c)
			report, err := backup.Run(t.Context(), conn, archive.New(flaky, inMemory), c.Data,
				backup.Options{PartSize: 8 << 20, NoWaitWAL: true, Host: "db1"})
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			if !flaky.Reached() {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			if err == nil { // the call did not matter, as the removal of the marker beside a sentinel does not
				if _, err := archive.New(m, inMemory).Sentinel(t.Context(), report.Name); err != nil {
					t.Errorf("%s, call %d (%s) failed, no error and no backup: %v", how, n, flaky.Calls()[n], err)
				}
				continue
			}
			if !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("%s, call %d (%s) failed, Run returned %v", how, n, flaky.Calls()[n], err)
			}
			for o := range store.Walk(t.Context(), m, "") {
				if o.Name != "holdfast/cluster.json" {
					t.Errorf("%s, call %d (%s) failed, and %s is left", how, n, flaky.Calls()[n], o.Name)
				}
			}
		}
	}
	if busy := c.Value(t, `select count(*) from pg_stat_activity where application_name like 'holdfast%'`); busy != "0" {
		t.Errorf("%s sessions of ours are left", busy)
	}
}

func TestRunRefuses(t *testing.T) {
	// Settings of pgtest are stronger than ALTER SYSTEM, which this test needs.
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Settings: map[string]string{"archive_mode": "on"}})
	c.Exec(t, `alter system set archive_command = 'true'`, `select pg_reload_conf()`)
	other := cluster(t)
	m := &storetest.Memory{}
	a := archive.New(m, inMemory)
	run := func(conn *server.Conn, dir string, opts backup.Options) error {
		_, err := backup.Run(t.Context(), conn, a, dir, opts)
		return errors.Join(err, conn.Close())
	}
	if err := a.Claim(t.Context(), 1, "db1", false); err != nil {
		t.Fatal(err)
	}
	var owner *archive.OwnerError
	if err := run(connect(t, c), c.Data, backup.Options{NoWaitWAL: true}); !errors.As(err, &owner) {
		t.Errorf("another cluster's archive: %v", err)
	}
	if err := run(connect(t, c), other.Data, backup.Options{NoWaitWAL: true}); err == nil || !strings.Contains(err.Error(), "system identifier") {
		t.Errorf("another cluster's directory: %v", err)
	}
	big := json.RawMessage(`"` + strings.Repeat("x", archive.MaxUserData) + `"`)
	if err := run(connect(t, c), c.Data, backup.Options{NoWaitWAL: true, UserData: big}); err == nil || !strings.Contains(err.Error(), "user data") {
		t.Errorf("much user data: %v", err)
	}
	if err := run(connect(t, c), t.TempDir(), backup.Options{NoWaitWAL: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no data directory: %v", err)
	}
	var hinted interface{ Hint() string }
	if err := run(connect(t, c), "/nonexistent", backup.Options{NoWaitWAL: true}); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "show data_directory") {
		t.Errorf("a directory that is not there: %v", err)
	}
	first := connect(t, c)
	if mine, err := first.LockBackup(t.Context()); !mine || err != nil {
		t.Fatal(mine, err)
	}
	if err := run(connect(t, c), c.Data, backup.Options{NoWaitWAL: true, Adopt: true}); err == nil || !strings.Contains(err.Error(), "another holdfast backup-push") {
		t.Errorf("a push at work: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := run(connect(t, c), c.Data, backup.Options{NoWaitWAL: true, Adopt: true}); err != nil {
		t.Errorf("adopting: %v", err)
	}
	c.Exec(t, `alter system set archive_command = 'false'`, `select pg_reload_conf()`)
	before := names(t, m)
	err := run(connect(t, c), c.Data, backup.Options{WALTimeout: time.Second})
	if err == nil || !strings.Contains(err.Error(), "did not reach the archive") {
		t.Errorf("WAL that never arrives: %v", err)
	}
	if after := names(t, m); !slices.Equal(before, after) {
		t.Errorf("left behind: %v, before: %v", after, before)
	}
	c.Exec(t, `alter system set archive_command = ''`, `select pg_reload_conf()`)
	pgtest.Eventually(t, "archive_command to be empty", func() bool { return c.Value(t, `select current_setting('archive_command')`) == "" })
	if err := run(connect(t, c), c.Data, backup.Options{}); err == nil || !strings.Contains(err.Error(), "does not archive WAL") {
		t.Errorf("no archive_command: %v", err)
	}
	if _, err := a.PutTail(t.Context(), "000000010000000000000001", 0, 100, strings.NewReader(strings.Repeat("x", 100))); err != nil {
		t.Fatal(err)
	}
	if err := run(connect(t, c), c.Data, backup.Options{}); err == nil || !strings.Contains(err.Error(), "does not archive WAL") {
		t.Errorf("no archive_command, and pieces that a wal-receive has left which is gone: %v", err)
	}
}

// A standby need not archive: its primary does, and the backup is whole once that WAL is there.
func TestStandbyWithoutArchiving(t *testing.T) {
	primary := cluster(t)
	primary.Exec(t, `create table t as select 1 i`)
	standby := primary.Standby(t, pgtest.Options{Settings: map[string]string{"archive_mode": "off"}})
	primary.Exec(t, `checkpoint`)
	primary.CatchUp(t, standby)
	m := &storetest.Memory{}
	for n := range wal.SegmentNo(16) {
		if err := m.Put(t.Context(), archive.WALDir+wal.SegmentSize(16<<20).Name(1, n), strings.NewReader("whatever")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := backup.Run(t.Context(), connect(t, standby), archive.New(m, inMemory), standby.Data, backup.Options{}); err != nil {
		t.Error(err)
	}
}

// Configuration is saved beside the backup when it lies outside the data directory, by whatever path the server knows it.
func TestConfigurationOutsideIsThatBehindLinks(t *testing.T) {
	c := cluster(t)
	alias, outside, link := filepath.Join(c.Dir, "alias"), filepath.Join(c.Dir, "ident"), filepath.Join(c.Data, "linked.conf")
	for _, err := range []error{os.Symlink(c.Data, alias), os.WriteFile(outside, nil, 0o644), os.Symlink(outside, link)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c.Exec(t, `alter system set hba_file = '`+alias+`/pg_hba.conf'`, `alter system set ident_file = '`+link+`'`)
	c.Stop(t)
	c.Start(t)
	a := archive.New(&storetest.Memory{}, archive.Options{})
	report, err := backup.Run(t.Context(), connect(t, c), a, c.Data, backup.Options{NoWaitWAL: true})
	if err != nil {
		t.Fatal(err)
	}
	r, err := a.OpenConfig(t.Context(), report.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got []string
	err = tarpart.Each(r, func(h tarpart.Header, _ io.Reader) error { got = append(got, "/"+h.Path); return nil })
	if err != nil || !slices.Equal(got, []string{link}) {
		t.Errorf("saved %v (%v), want %s", got, err, link)
	}
}

// Data behind a link would be missing: a backup without it is worse than none.
func TestRunRefusesDataBehindLinks(t *testing.T) {
	c := cluster(t)
	c.Stop(t)
	elsewhere := filepath.Join(c.Dir, "elsewhere")
	for _, err := range []error{os.Rename(filepath.Join(c.Data, "base/1"), elsewhere), os.Symlink(elsewhere, filepath.Join(c.Data, "base/1"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c.Start(t)
	m := &storetest.Memory{}
	_, err := backup.Run(t.Context(), connect(t, c), archive.New(m, inMemory), c.Data, backup.Options{NoWaitWAL: true})
	if err == nil || !strings.Contains(err.Error(), "base/1 is a symbolic link to "+elsewhere) {
		t.Errorf("got %v", err)
	}
}

// inMemory is how an archive is kept in a store that finishes no put once it was broken off.
var inMemory = archive.Options{Settle: -1}

func names(t *testing.T, s store.Store) (all []string) {
	t.Helper()
	for o, err := range store.Walk(t.Context(), s, "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o.Name)
	}
	return all
}

// A cancelled context stops the backup on the server and leaves nothing; so does the loss of the session.
func TestRunIsCutShort(t *testing.T) {
	c := cluster(t)
	for name, cut := range map[string]func(cancel context.CancelCauseFunc){
		"cancelled": func(cancel context.CancelCauseFunc) { cancel(errors.New("interrupt")) },
		"session lost": func(context.CancelCauseFunc) {
			c.Exec(t, `select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'holdfast%'`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			m := &storetest.Memory{}
			progress := &backup.Progress{}
			conn := connect(t, c)
			go func() {
				for progress.Phase() != "copying" && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				cut(cancel)
			}()
			_, err := backup.Run(ctx, conn, archive.New(m, inMemory), c.Data,
				backup.Options{NoWaitWAL: true, DiskRate: 4 << 20, Alive: 50 * time.Millisecond, Progress: progress})
			if err == nil {
				t.Fatal("it came to an end")
			}
			if name == "cancelled" && !strings.Contains(err.Error(), "interrupt") {
				t.Errorf("the error does not say why: %v", err)
			}
			if left := names(t, m); len(left) != 1 || left[0] != "holdfast/cluster.json" {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// alive is a store that lets no object whose name contains slow be stored before a further sign of life was.
type alive struct {
	store.Store
	slow string

	mu   sync.Mutex
	beat chan struct{} // closed by the next sign of life
}

func newAlive(s store.Store, slow string) *alive {
	return &alive{Store: s, slow: slow, beat: make(chan struct{})}
}

func (a *alive) Put(ctx context.Context, name string, r io.Reader) error {
	a.mu.Lock()
	next := a.beat
	a.mu.Unlock()
	if strings.Contains(name, a.slow) {
		select {
		case <-next:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := a.Store.Put(ctx, name, r)
	if strings.HasSuffix(name, "/push.json") {
		a.mu.Lock()
		close(a.beat)
		a.beat = make(chan struct{})
		a.mu.Unlock()
	}
	return err
}

// However long a step takes, from the first part to the last document, the archive gets signs of life meanwhile.
func TestSignsOfLifeAllTheWay(t *testing.T) {
	c := cluster(t)
	for _, slow := range []string{"part_001.tar", "pg_control.tar", "backup_label.tar", "manifest.json", "files_metadata.json"} {
		t.Run(slow, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			a := newAlive(&storetest.Memory{}, slow)
			opts := backup.Options{NoWaitWAL: true, Beat: time.Millisecond, Alive: -1}
			if _, err := backup.Run(ctx, connect(t, c), archive.New(a, archive.Options{}), c.Data, opts); err != nil {
				t.Error(err)
			}
		})
	}
}

// robbed is a store in which another push takes the name when the object slow is to be stored. A sign of life that is under way then comes before that.
type robbed struct {
	*alive
	memory *storetest.Memory

	mu   sync.Mutex
	done bool
}

func (r *robbed) Put(ctx context.Context, name string, body io.Reader) error {
	if err := r.rob(ctx, name); err != nil {
		return err
	}
	if strings.HasSuffix(name, "/push.json") {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.done {
			return nil
		}
	}
	return r.alive.Put(ctx, name, body)
}

func (r *robbed) rob(ctx context.Context, name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done || !strings.Contains(name, r.slow) {
		return nil
	}
	for o, err := range store.Walk(ctx, r.memory, "") {
		if err == nil && strings.HasSuffix(o.Name, "/push.json") {
			err = r.memory.Put(ctx, o.Name, strings.NewReader("another's"))
			r.done = true
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A push that lost its name stops at once, says so, and leaves what the other has.
func TestRunThatLostItsName(t *testing.T) {
	c := cluster(t)
	for _, slow := range []string{"part_001.tar", "backup_label.tar", "files_metadata.json"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		m := &storetest.Memory{}
		opts := backup.Options{NoWaitWAL: true, Beat: time.Millisecond, Alive: -1}
		_, err := backup.Run(ctx, connect(t, c), archive.New(&robbed{alive: newAlive(m, slow), memory: m}, archive.Options{}), c.Data, opts)
		var inUse *archive.InUseError
		if !errors.As(err, &inUse) || strings.Count(err.Error(), "another push's") != 1 {
			t.Errorf("%s: got %v, want an InUseError", slow, err)
		}
		if left := fmt.Sprint(names(t, m)); !strings.Contains(left, "push.json") || strings.Contains(left, "sentinel") {
			t.Errorf("%s: there is %s", slow, left)
		}
		cancel()
	}
}

// A server that no longer answers ends the backup, and no wait for it is without end.
func TestServerThatIsFrozen(t *testing.T) {
	for _, phase := range []string{"copying", "waiting for WAL"} {
		t.Run(phase, func(t *testing.T) {
			c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Settings: map[string]string{"archive_mode": "on", "archive_command": "false"}})
			m, progress, conn := &storetest.Memory{}, &backup.Progress{}, connect(t, c)
			pid, err := strconv.Atoi(c.Value(t, `select pid from pg_stat_activity where application_name = 'holdfast'`))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // so that the server can end
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			go func() {
				for !strings.HasPrefix(progress.Phase(), phase) && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Error(err)
				}
			}()
			opts := backup.Options{Alive: 10 * time.Millisecond, Patience: time.Second, WALTimeout: time.Second, Progress: progress}
			if phase == "copying" {
				opts.DiskRate = 1 << 20
			}
			_, err = backup.Run(ctx, conn, archive.New(m, inMemory), c.Data, opts)
			if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "no answer within 1s") {
				t.Errorf("got %v", err)
			}
			if left := names(t, m); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// What a push left that was killed days ago is removed by the next one, which says so.
func TestRunSweepsWhatTheDeadLeft(t *testing.T) {
	c, root := cluster(t), t.TempDir()
	s, err := file.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const dead = "base_0000000100000000000000FE"
	for name, content := range map[string]string{
		"push.json": `{"host":"db1","pid":7,"started":"2026-05-06T07:08:09Z"}`, "tar_partitions/part_001.tar.zst": "x",
	} {
		if err := s.Put(t.Context(), archive.Folder(dead)+name, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-48 * time.Hour)
		if err := os.Chtimes(filepath.Join(root, archive.Folder(dead)+name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	var log strings.Builder
	opts := backup.Options{NoWaitWAL: true, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	report, err := backup.Run(t.Context(), connect(t, c), archive.New(s, inMemory), c.Data, opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range names(t, s) {
		if strings.Contains(object, dead) {
			t.Errorf("%s is still there", object)
		}
	}
	if !strings.Contains(log.String(), dead+", begun at 2026-05-06T07:08:09Z by process 7 on db1") {
		t.Errorf("the log does not say so:\n%s", log.String())
	}
	// And the report counts what is stored.
	mf, err := archive.New(s, inMemory).OpenManifest(t.Context(), report.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer mf.Close()
	files := int64(-2) // the labels are not the cluster's
	for p, err := mf.Next(); err != io.EOF; p, err = mf.Next() {
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range p.Members {
			if m.Type == tarpart.File {
				files++
			}
		}
	}
	if report.Files != files {
		t.Errorf("reported are %d files, stored %d", report.Files, files)
	}
}

func TestCorruptPagesAreReported(t *testing.T) {
	c := cluster(t)
	c.Exec(t, `create table t as select generate_series(1, 20000) i`, `checkpoint`)
	file := c.Value(t, `select pg_relation_filepath('t')`)
	c.Stop(t)
	f, err := os.OpenFile(filepath.Join(c.Data, file), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("garbage"), 7*page.Size+4000); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	c.Start(t)
	a := archive.New(&storetest.Memory{}, archive.Options{})
	report, err := backup.Run(t.Context(), connect(t, c), a, c.Data, backup.Options{NoWaitWAL: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := []backup.CorruptFile{{Path: file, Blocks: []uint32{7}, Count: 1}}; fmt.Sprint(report.Corrupt) != fmt.Sprint(want) {
		t.Errorf("corrupt: %v, want %v", report.Corrupt, want)
	}
	if s, err := a.Sentinel(t.Context(), report.Name); err != nil || s.CorruptBlocks != 1 {
		t.Errorf("sentinel: %+v, %v", s, err)
	}
}
