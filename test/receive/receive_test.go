// Package receive_test streams WAL from real servers with the real program, which is killed at random, and whose server is lost.
package receive_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/file"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

const mib = wal.SegmentSize(1 << 20)

// place is an archive in a directory, and a spool.
type place struct {
	binary string
	root   string
	spool  string
	env    []string // settings that name the archive
}

func newPlace(t testing.TB) *place {
	t.Helper()
	dir := pgtest.Dir(t)
	p := &place{binary: pgtest.Build(t, "holdfast/cmd/holdfast"), root: filepath.Join(dir, "archive"), spool: filepath.Join(dir, "spool")}
	for _, d := range []string{p.root, p.spool} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, d)
	}
	p.env = []string{"WALG_FILE_PREFIX=" + p.root}
	return p
}

func (p *place) archive(t testing.TB) *archive.Archive {
	t.Helper()
	s, err := file.Open(p.root)
	if err != nil {
		t.Fatal(err)
	}
	return archive.New(s, archive.Options{})
}

// command prepares the program as the account of the servers.
func (p *place) command(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := pgtest.Command(t, p.binary, args...)
	cmd.Env = slices.Concat(cmd.Environ(), p.env, env)
	return cmd
}

// ok runs the program, which must succeed.
func (p *place) ok(t testing.TB, env []string, args ...string) site.Result {
	t.Helper()
	r := site.Run(t, p.command(t, env, args...))
	if r.Status != 0 {
		t.Fatalf("holdfast %s: exit status %d\n%s", strings.Join(args, " "), r.Status, r.Stderr)
	}
	return r
}

// receiver is a wal-receive at work.
type receiver struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan error
}

// receive starts wal-receive.
func (p *place) receive(t testing.TB, env []string, args ...string) *receiver {
	t.Helper()
	r := &receiver{cmd: p.command(t, append([]string{"HOLDFAST_RECEIVE_DIR=" + p.spool, "HOLDFAST_TAIL_INTERVAL=50ms"}, env...), append([]string{"wal-receive"}, args...)...), ended: make(chan error, 1)}
	r.cmd.Stderr = &r.stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.ended <- r.cmd.Wait() }()
	t.Cleanup(func() {
		if said := r.signal(t, syscall.SIGKILL); t.Failed() {
			t.Logf("wal-receive said:\n%s", said)
		}
	})
	return r
}

// signal ends the receiver, and returns what it said.
func (r *receiver) signal(t testing.TB, sig syscall.Signal) string {
	t.Helper()
	if r.ended == nil {
		return r.stderr.String()
	}
	if err := r.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	r.wait(t)
	return r.stderr.String()
}

// wait returns the receiver's exit status once it has ended.
func (r *receiver) wait(t testing.TB) int {
	t.Helper()
	select {
	case <-r.ended:
		r.ended = nil
	case <-time.After(site.Patience):
		t.Fatal("wal-receive does not end")
	}
	return r.cmd.ProcessState.ExitCode()
}

// cluster makes a primary that archives nothing by itself and removes no WAL of its own accord.
func cluster(t testing.TB, p instance.Programs) *pgtest.Cluster {
	t.Helper()
	return pgtest.New(t, p, pgtest.Options{SegmentSize: mib, Settings: keep(p)})
}

func keep(p instance.Programs) map[string]string {
	s := map[string]string{"max_replication_slots": "4", "max_wal_size": "2GB", "hot_standby": "on"}
	if p.Major >= 13 {
		s["wal_keep_size"] = "2GB"
	} else {
		s["wal_keep_segments"] = "2000"
	}
	return s
}

// finish ends the current segment of c and waits until it is in the archive.
func (p *place) finish(t testing.TB, c *pgtest.Cluster) string {
	t.Helper()
	name := c.Value(t, `pg_walfile_name(pg_switch_wal())`)
	p.await(t, name)
	return name
}

func (p *place) await(t testing.TB, name string) {
	t.Helper()
	a := p.archive(t)
	pgtest.Eventually(t, name+" is archived", func() bool {
		there, err := a.HasWAL(t.Context(), name)
		return err == nil && there
	})
}

// same fails the test unless the archive has every segment of c's timeline t from the first that it has to last, as the server has it. It returns how many.
func (p *place) same(t testing.TB, c *pgtest.Cluster, last string) int {
	t.Helper()
	a := p.archive(t)
	names := p.segments(t, last[:8])
	timeline, first, err := mib.ParseSegment(names[0])
	if err != nil {
		t.Fatal(err)
	}
	_, end, err := mib.ParseSegment(last)
	if err != nil {
		t.Fatal(err)
	}
	for no := first; no <= end; no++ {
		name := mib.Name(timeline, no)
		want, err := os.ReadFile(filepath.Join(c.Data, "pg_wal", name))
		if err != nil {
			t.Fatal(err)
		}
		r, err := a.OpenWholeWAL(t.Context(), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v: not the server's", name, len(got), err)
		}
	}
	return int(end-first) + 1
}

// segments lists the whole segments of a timeline in the archive, ascending.
func (p *place) segments(t testing.TB, timeline string) (names []string) {
	t.Helper()
	s, err := file.Open(p.root)
	if err != nil {
		t.Fatal(err)
	}
	for o, err := range store.Walk(t.Context(), s, archive.WALDir+"") {
		if err != nil {
			t.Fatal(err)
		}
		if name := archive.WALName(o.Name); wal.IsSegment(name) && strings.HasPrefix(name, timeline) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		t.Fatalf("the archive has no segment of timeline %s", timeline)
	}
	return names
}

// tidy fails the test when pieces are left of segments that are whole.
func (p *place) tidy(t testing.TB) {
	t.Helper()
	a := p.archive(t)
	pgtest.Eventually(t, "no pieces are left of whole segments", func() bool {
		tails, err := a.Tails(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range tails {
			pieces, err := a.TailPieces(t.Context(), name) // what a killed receiver was writing may be left beside them
			if err != nil {
				t.Fatal(err)
			}
			if there, err := a.HasWAL(t.Context(), name); err != nil || there && len(pieces) > 0 {
				return false
			}
		}
		return true
	})
}

func sockets(clusters ...*pgtest.Cluster) []string {
	var hosts, ports []string
	for _, c := range clusters {
		hosts, ports = append(hosts, c.Server.Host()), append(ports, strconv.Itoa(c.Server.Port()))
	}
	return []string{"PGHOST=" + strings.Join(hosts, ","), "PGPORT=" + strings.Join(ports, ","), "PGUSER=" + instance.Superuser, "PGTARGETSESSIONATTRS=primary"}
}

func majors(t *testing.T, test func(t *testing.T, p instance.Programs)) {
	for _, major := range []int{13, 15, 17, 18} {
		if testing.Short() && major != 17 {
			continue
		}
		t.Run(fmt.Sprintf("PG%d", major), func(t *testing.T) {
			t.Parallel()
			test(t, pgtest.Require(t, major))
		})
	}
}

// However often the receiver is killed, the archive has every segment as the server wrote it.
func TestKilledReceiverMissesNothing(t *testing.T) {
	t.Parallel()
	majors(t, func(t *testing.T, p instance.Programs) {
		c, at := cluster(t, p), newPlace(t)
		begin := c.Value(t, `pg_current_wal_lsn()`)
		r := at.receive(t, c.Environ())
		load := c.StartLoad(t, 2)
		for range 12 {
			time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond) // whatever it is doing then
			r.signal(t, syscall.SIGKILL)
			r = at.receive(t, c.Environ())
		}
		pgtest.Eventually(t, "enough is written", func() bool {
			return c.Value(t, `pg_wal_lsn_diff(pg_current_wal_lsn(), $1::pg_lsn) > 8 * 1048576`, begin) == "true"
		})
		if _, err := load.Stop(); err != nil {
			t.Fatal(err)
		}
		last := at.finish(t, c)
		n := at.same(t, c, last)
		at.tidy(t)
		said := r.signal(t, syscall.SIGTERM)
		if status := r.cmd.ProcessState.ExitCode(); status != 0 {
			t.Errorf("stopped with status %d:\n%s", status, said)
		}
		t.Logf("%d segments", n)
		if n < 5 {
			t.Error("too little was written to tell")
		}
	})
}

// A receiver that has lost its spool does not take what one storage has for all that is archived while the other is down: it would leave out WAL, and tell the
// server so.
func TestLostSpoolAsksEveryStorage(t *testing.T) {
	t.Parallel()
	c, at := cluster(t, pgtest.Require(t, pgtest.Newest)), newPlace(t)
	second := at.root + "2"
	if err := os.Mkdir(second, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, second)
	env := append(c.Environ(), `WALG_FAILOVER_STORAGES={"second":{"WALG_FILE_PREFIX":"`+second+`"}}`, "HOLDFAST_STATE_DIR="+at.spool+"/state",
		"WALG_FAILOVER_STORAGES_CACHE_LIFETIME=1s")
	r := at.receive(t, env)
	pgtest.Eventually(t, "there is a slot", func() bool { return c.Value(t, `select count(*) from pg_replication_slots where active`) == "1" })
	at.finish(t, c)
	r.signal(t, syscall.SIGTERM)
	for range 3 { // which the slot keeps for the receiver
		c.Exec(t, `create table if not exists t (n int)`, `insert into t values (1)`, `select pg_switch_wal()`)
	}
	if err := os.RemoveAll(at.spool); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at.spool, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, at.spool)
	if err := os.Rename(at.root, at.root+".away"); err != nil {
		t.Fatal(err)
	}
	r = at.receive(t, env)
	c.Exec(t, `insert into t values (2)`)
	time.Sleep(3 * time.Second) // enough for it to go wrong
	if said := r.signal(t, syscall.SIGTERM); !strings.Contains(said, "cannot receive WAL, trying again") {
		t.Errorf("while a storage was away:\n%s", said)
	}
	if err := os.Rename(at.root+".away", at.root); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // for so long it counts that a storage was seen dead
	at.receive(t, env)
	c.Exec(t, `insert into t values (2)`) // a switch of a segment with nothing in it is none
	at.same(t, c, at.finish(t, c))
}

// A slot that the server has invalidated, as it kept too much, is an error that says so.
func TestInvalidatedSlotIsAnError(t *testing.T) {
	t.Parallel()
	majors(t, func(t *testing.T, p instance.Programs) {
		at := newPlace(t)
		c := pgtest.New(t, p, pgtest.Options{SegmentSize: mib, Settings: map[string]string{
			"max_wal_size": "2MB", "min_wal_size": "2MB", "wal_recycle": "off", "max_slot_wal_keep_size": "2MB"}})
		r := at.receive(t, c.Environ())
		c.Exec(t, `create table t (n int)`)
		at.tailHas(t, c)
		r.signal(t, syscall.SIGTERM)
		for range 6 {
			c.Exec(t, `insert into t select generate_series(1, 30000)`, `select pg_switch_wal()`, `checkpoint`)
		}
		if status := c.Value(t, `select wal_status from pg_replication_slots`); status != "lost" {
			t.Fatalf("the slot is %s", status)
		}
		r = at.receive(t, c.Environ())
		status := r.wait(t)
		if said := r.stderr.String(); status != 1 || !strings.Contains(said, "pg_drop_replication_slot('walg')") {
			t.Errorf("exit status %d:\n%s", status, said)
		}
	})
}

// However often the server crashes, the receiver finds it again, and the archive has every segment as the server has it in the end.
func TestReceiverOutlivesCrashesOfTheServer(t *testing.T) {
	t.Parallel()
	majors(t, func(t *testing.T, p instance.Programs) {
		c, at := cluster(t, p), newPlace(t)
		at.receive(t, c.Environ(), "--synchronous")
		for range 4 {
			load := c.StartLoad(t, 2)
			before := load.Committed()
			pgtest.Eventually(t, "100 transactions", func() bool { return load.Committed() >= before+100 })
			time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond) // whatever is being written then
			c.Server.Kill()
			load.Stop() // the server's death ended it
			c.Start(t)
		}
		c.Exec(t, `insert into history (worker, n, delta) values (9, 1, 1)`)
		at.tailHas(t, c)
		at.same(t, c, at.finish(t, c))
		at.tidy(t)
	})
}

// A standby that has nothing but the archive follows the primary within moments, and although it archives what it restores no unfinished segment becomes a
// whole one.
func TestStandbyFollowsTheTail(t *testing.T) {
	t.Parallel()
	majors(t, func(t *testing.T, p instance.Programs) {
		c, at := cluster(t, p), newPlace(t)
		at.receive(t, c.Environ())
		c.Exec(t, `create table t as select 0 n`)
		at.tailHas(t, c)
		env := strings.Join(at.env, " ")
		settings := keep(p)
		for name, value := range map[string]string{
			"archive_mode": "always", "archive_command": env + " " + at.binary + ` wal-push "%p"`, "restore_command": env + " " + at.binary + ` wal-fetch "%f" "%p"`,
			"primary_conninfo": "", "wal_retrieve_retry_interval": "100ms",
		} {
			settings[name] = value
		}
		standby := c.Standby(t, pgtest.Options{Settings: settings})
		for n := range 3 {
			c.Exec(t, fmt.Sprintf(`insert into t values (%d)`, n+1))
			c.CatchUp(t, standby)
			pgtest.Eventually(t, "the standby has tried to archive the segment", func() bool {
				return standby.Value(t, `select failed_count > $1 from pg_stat_archiver`, n) == "true"
			})
			at.same(t, c, at.finish(t, c))
		}
	})
}

// site returns the place as what is archived of c.
func (p *place) site(c *pgtest.Cluster) *site.Site {
	return &site.Site{Cluster: c, Binary: p.binary, Root: p.root, Env: p.env}
}

// tailHas waits until the store has what c has written.
func (p *place) tailHas(t testing.TB, c *pgtest.Cluster) {
	t.Helper()
	lsn, err := wal.ParseLSN(c.Value(t, `pg_current_wal_flush_lsn()`))
	if err != nil {
		t.Fatal(err)
	}
	a := p.archive(t)
	timeline, err := wal.TimelineOf(c.Value(t, `pg_walfile_name(pg_current_wal_lsn())`))
	if err != nil {
		t.Fatal(err)
	}
	name := mib.Name(timeline, mib.LastSegment(lsn))
	pgtest.Eventually(t, "the store has WAL up to "+lsn.String(), func() bool {
		if there, err := a.HasWAL(t.Context(), name); err != nil || there {
			return there
		}
		r, err := a.OpenWAL(t.Context(), name)
		if err != nil {
			return false
		}
		defer r.Close()
		held, ok := r.(interface{ Held() int64 })
		return !ok || mib.Start(mib.LastSegment(lsn))+wal.LSN(held.Held()) >= lsn
	})
}

// destroy kills the server and removes its data directory.
func destroy(t testing.TB, c *pgtest.Cluster) {
	t.Helper()
	c.Server.Kill()
	if err := os.RemoveAll(c.Data); err != nil {
		t.Fatal(err)
	}
}

// Of a primary that is lost with its disk all is restored that was received, that in the unfinished segment too, and that which only the receiver's host had.
func TestLostPrimaryIsRestoredFromTheTail(t *testing.T) {
	t.Parallel()
	majors(t, func(t *testing.T, p instance.Programs) {
		c, at := cluster(t, p), newPlace(t)
		s := at.site(c)
		r := at.receive(t, c.Environ())
		c.Exec(t, `create table t as select generate_series(1, 1000) n`)
		at.tailHas(t, c)
		s.Push(t)
		c.Exec(t, `insert into t values (-1)`)
		at.finish(t, c)
		c.Exec(t, `insert into t values (-2)`)
		at.tailHas(t, c)
		// What follows reaches the spool alone: the store is not there.
		if err := os.Rename(at.root, at.root+".away"); err != nil {
			t.Fatal(err)
		}
		c.Exec(t, `insert into t values (-3)`)
		flushed := c.Value(t, `pg_current_wal_flush_lsn()`)
		pgtest.Eventually(t, "the receiver has "+flushed, func() bool {
			return c.Value(t, `select coalesce(bool_or(write_lsn >= $1::pg_lsn), false) from pg_stat_replication where application_name = 'holdfast'`, flushed) == "true"
		})
		r.signal(t, syscall.SIGKILL)
		env := c.Environ()
		destroy(t, c)
		if err := os.Rename(at.root+".away", at.root); err != nil {
			t.Fatal(err)
		}
		again := at.receive(t, env) // nobody is there to receive from
		a := at.archive(t)
		pgtest.Eventually(t, "the spool is in the store", func() bool {
			lsn, err := wal.ParseLSN(flushed)
			if err != nil {
				t.Fatal(err)
			}
			got, err := a.OpenWAL(t.Context(), mib.Name(1, mib.LastSegment(lsn)))
			if err != nil {
				return false
			}
			defer got.Close()
			held, ok := got.(interface{ Held() int64 })
			return ok && mib.Start(mib.LastSegment(lsn))+wal.LSN(held.Held()) >= lsn
		})
		again.signal(t, syscall.SIGTERM)
		restored := s.Restored(t, "--target", "latest")
		if got := restored.Value(t, `select string_agg(n::text, ' ' order by n) from t where n < 0`); got != "-3 -2 -1" {
			t.Errorf("restored: %q", got)
		}
	})
}

// The receiver goes over to a standby that was promoted, and what is archived of both timelines is what they wrote. Before the first segment of the new
// timeline is whole a restore comes to its last commit.
func TestReceiverFollowsPromotion(t *testing.T) {
	t.Parallel()
	majors(t, func(t *testing.T, p instance.Programs) {
		c, at := cluster(t, p), newPlace(t)
		standby := c.Standby(t, pgtest.Options{Settings: keep(p)})
		env := sockets(c, standby)
		r := at.receive(t, env)
		s := at.site(c)
		load := c.StartLoad(t, 2)
		at.tailHas(t, c)
		s.Push(t)
		pgtest.Eventually(t, "500 transactions", func() bool { return load.Committed() >= 500 })
		if _, err := load.Stop(); err != nil {
			t.Fatal(err)
		}
		c.Exec(t, `create table t as select 1 n`)
		c.CatchUp(t, standby)
		c.Server.Kill()
		standby.Exec(t, `select pg_promote()`)
		standby.Exec(t, `insert into t values (2)`)
		at.tailHas(t, standby)
		restored := s.Restored(t, "--target", "latest")
		if got := restored.Value(t, `select string_agg(n::text, ' ' order by n) from t`); got != "1 2" {
			t.Errorf("restored from the beginning of the new timeline: %q", got)
		}
		restored.Stop(t)

		load = standby.StartLoad(t, 2)
		pgtest.Eventually(t, "500 transactions", func() bool { return load.Committed() >= 500 })
		if _, err := load.Stop(); err != nil {
			t.Fatal(err)
		}
		last := at.finish(t, standby)
		at.same(t, standby, last)
		a := at.archive(t)
		history, err := a.OpenWAL(t.Context(), "00000002.history")
		if err != nil {
			t.Fatal(err)
		}
		history.Close()
		old := at.segments(t, "00000001")
		partial, err := a.HasWAL(t.Context(), mib.Name(1, number(t, old[len(old)-1])+1)+".partial")
		if err != nil || !partial {
			t.Errorf("behind %s there is no .partial: %v", old[len(old)-1], err)
		}
		at.tidy(t)
		standby.Exec(t, `insert into t values (3)`)
		at.tailHas(t, standby)
		r.signal(t, syscall.SIGTERM)
		destroy(t, standby)
		if got := s.Restored(t, "--target", "latest").Value(t, `select string_agg(n::text, ' ' order by n) from t`); got != "1 2 3" {
			t.Errorf("restored: %q", got)
		}
	})
}

func number(t testing.TB, name string) wal.SegmentNo {
	t.Helper()
	_, no, err := mib.ParseSegment(name)
	if err != nil {
		t.Fatal(err)
	}
	return no
}

// What is mounted over the archive is another archive: nothing is stored below it any more, and the receiver ends and says so.
func TestArchiveThatMovedEndsReceiving(t *testing.T) {
	t.Parallel()
	at, c := newPlace(t), cluster(t, pgtest.Require(t, pgtest.Newest))
	r := at.receive(t, c.Environ())
	c.Exec(t, `create table t (n int)`)
	at.tailHas(t, c)
	below := at.root + ".below"
	if err := errors.Join(os.Rename(at.root, below), os.Mkdir(at.root, 0o700)); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, at.root)
	name := c.Value(t, `pg_walfile_name(pg_switch_wal())`)
	if status := r.wait(t); status != 1 || !strings.Contains(r.stderr.String(), "is another directory than when wal-receive began") {
		t.Errorf("exit status %d:\n%s", status, r.stderr.String())
	}
	if found, err := filepath.Glob(filepath.Join(below, "wal_005", name+"*")); err != nil || len(found) > 0 {
		t.Errorf("below are %q, %v", found, err)
	}
}

// Where the slot was dropped and the server has removed WAL since, the receiver says what is missing, and goes on behind it only if it is told to.
func TestGapIsAnError(t *testing.T) {
	t.Parallel()
	majors(t, func(t *testing.T, p instance.Programs) {
		at := newPlace(t)
		c := pgtest.New(t, p, pgtest.Options{SegmentSize: mib, Settings: map[string]string{"max_wal_size": "2MB", "min_wal_size": "2MB", "wal_recycle": "off"}})
		r := at.receive(t, c.Environ())
		c.Exec(t, `create table t (n int)`)
		at.tailHas(t, c)
		have := at.finish(t, c)
		r.signal(t, syscall.SIGTERM)
		pgtest.Eventually(t, "the slot is free", func() bool {
			return c.Value(t, `select bool_and(not active) from pg_replication_slots`) == "true"
		})
		c.Exec(t, `select pg_drop_replication_slot('walg')`)
		for range 4 {
			c.Exec(t, `insert into t select generate_series(1, 30000)`, `select pg_switch_wal()`, `checkpoint`)
		}
		r = at.receive(t, c.Environ())
		if status := r.wait(t); status != 1 {
			t.Errorf("exit status %d:\n%s", status, r.stderr.String())
		}
		_, no, err := mib.ParseSegment(have)
		if err != nil {
			t.Fatal(err)
		}
		oldest := ""
		entries, err := os.ReadDir(filepath.Join(c.Data, "pg_wal"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if oldest == "" && wal.IsSegment(e.Name()) {
				oldest = e.Name()
			}
		}
		ends := "before segment " + mib.Name(1, no+1)
		begins := "has it from " + mib.Start(number(t, oldest)).String() + " of timeline 1 on"
		if said := r.stderr.String(); !strings.Contains(said, ends) || !strings.Contains(said, begins) || !strings.Contains(said, "--accept-gap") {
			t.Errorf("it says neither %q nor %q:\n%s", ends, begins, said)
		}
		at.receive(t, c.Environ(), "--accept-gap")
		at.finish(t, c)
		at.await(t, oldest)
	})
}
