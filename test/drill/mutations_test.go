package drill_test

import (
	"bytes"
	"encoding/binary"
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

	"filippo.io/age"

	"holdfast/internal/drill"
	"holdfast/internal/pg/page"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// The kinds of damage and misconfiguration that a drill finds, and where: a bit in a heap page, in an index page and in a row (TestDamageInTheCluster); a missing segment,
// one of another timeline, two that are swapped, a bit in a record, a missing, a truncated and a damaged part (TestDamageInTheArchive); the wrong key, and none
// (TestWrongKey); a segment and a history of the wrong timeline (TestSwappedTimeline); a missing part of a tablespace (TestTablespaces); a stale backup, what is slow,
// wrong answers, and what this host lacks (TestMisconfiguration); missing extensions and libraries (TestForeignConfiguration).

// mutated is a copy of the archive that something was done to.
func (s *place) mutated(t *testing.T, mutate func(t *testing.T, root string)) *place {
	t.Helper()
	other := *s.Site
	other.Root = filepath.Join(pgtest.Dir(t), "archive")
	if err := os.CopyFS(other.Root, os.DirFS(s.Root)); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, other.Root)
	other.Env = append(other.Env[:len(other.Env):len(other.Env)], "WALG_FILE_PREFIX="+other.Root)
	mutate(t, other.Root)
	return &place{&other, pgtest.Dir(t)}
}

// only returns the one file that matches.
func only(t *testing.T, root, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v (%v)", pattern, found, err)
	}
	return found[0]
}

// change changes a file's content.
func change(t *testing.T, name string, how func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, how(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is wrong with the archive, a drill says that, and why.
func TestDamageInTheArchive(t *testing.T) {
	s, name := build(t, pgtest.Require(t, 17), pgtest.Options{SegmentSize: 1 << 20, Env: []string{"WALG_COMPRESSION_METHOD=none"}})
	s.Env = append(s.Env, "WALG_COMPRESSION_METHOD=none")
	for range 4 {
		s.Exec(t, `insert into orders select i + (select max(id) from orders), 1, 'more' from generate_series(1, 2000) i`)
		s.Switch(t)
	}
	var segments []string
	for _, o := range s.Objects(t) {
		if base := filepath.Base(o); strings.HasPrefix(o, "wal_005/") && len(base) == 24 && base > name[5:] {
			segments = append(segments, o)
		}
	}
	if len(segments) < 4 {
		t.Fatalf("segments %v", segments)
	}
	missing, last := segments[len(segments)-3], segments[len(segments)-2]
	part := filepath.Join("basebackups_005", name, "tar_partitions", "part_001.tar*")
	for _, m := range []struct {
		what   string
		reason drill.Reason
		says   string
		mutate func(t *testing.T, root string)
	}{
		{"missing segment", drill.ReasonReplay, "the archive lacks " + filepath.Base(missing), func(t *testing.T, root string) {
			if err := os.Remove(filepath.Join(root, missing)); err != nil {
				t.Fatal(err)
			}
		}},
		{"missing segment that the backup needs", drill.ReasonFetch, "lacks WAL that " + name + " needs", func(t *testing.T, root string) {
			if err := os.Remove(filepath.Join(root, "wal_005", name[5:])); err != nil {
				t.Fatal(err)
			}
		}},
		{"segment of another timeline", drill.ReasonReplay, "could not restore file", func(t *testing.T, root string) {
			change(t, filepath.Join(root, last), func(b []byte) []byte {
				for at := 0; at < len(b); at += 8192 {
					binary.LittleEndian.PutUint32(b[at+4:], 7)
				}
				return b
			})
		}},
		{"two segments swapped", drill.ReasonReplay, "could not restore file", func(t *testing.T, root string) {
			x, y := filepath.Join(root, missing), filepath.Join(root, last)
			for _, step := range [][2]string{{x, x + "x"}, {y, x}, {x + "x", y}} {
				if err := os.Rename(step[0], step[1]); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"bit in a WAL record", drill.ReasonReplay, "incorrect resource manager data checksum", func(t *testing.T, root string) {
			change(t, filepath.Join(root, last), func(b []byte) []byte {
				b[bytes.LastIndex(b, []byte("more"))] ^= 1
				return b
			})
		}},
		{"bit in a WAL record of the last segment", drill.ReasonReplay, "inside the last archived segment, " + filepath.Base(segments[len(segments)-1]), func(t *testing.T, root string) {
			change(t, filepath.Join(root, segments[len(segments)-1]), func(b []byte) []byte {
				b[bytes.LastIndex(b, []byte("more"))] ^= 1
				return b
			})
		}},
		{"truncated part", drill.ReasonFetch, "part_001", func(t *testing.T, root string) {
			change(t, only(t, root, part), func(b []byte) []byte { return b[:len(b)/2] })
		}},
		{"bit in a part", drill.ReasonFetch, "part_001", func(t *testing.T, root string) {
			change(t, only(t, root, part), func(b []byte) []byte { b[len(b)/2] ^= 4; return b })
		}},
		{"missing part", drill.ReasonFetch, "missing", func(t *testing.T, root string) {
			if err := os.Remove(only(t, root, part)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(m.what, func(t *testing.T) {
			t.Parallel()
			r := s.mutated(t, m.mutate).drill(t, 2, nil)
			if r.OK || r.Reason != m.reason || !strings.Contains(r.Error, m.says) {
				t.Errorf("reason %s, want %s; error %s, want %q", r.Reason, m.reason, r.Error, m.says)
			}
		})
	}
}

// With another key than that of the archive, or without one, nothing is proven, and the reason is the key.
func TestWrongKey(t *testing.T) {
	dir := pgtest.Dir(t)
	key := func(name string) []string {
		identity, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(identity.String()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, file)
		return []string{"HOLDFAST_AGE_RECIPIENTS=" + identity.Recipient().String(), "HOLDFAST_AGE_IDENTITIES_PATH=" + file}
	}
	right, wrong := key("right"), key("wrong")
	s := &place{site.New(t, pgtest.Require(t, 17), pgtest.Options{Env: right}), pgtest.Dir(t)}
	open := s.Env
	s.Env = slices.Concat(open, right)
	s.Push(t)
	s.Switch(t)
	s.drill(t, 0, nil)
	for _, m := range []struct {
		what, says string
		env        []string
	}{
		{"another key", "decrypt", slices.Concat(open, wrong)},
		{"no key", "encrypted", open},
	} {
		t.Run(m.what, func(t *testing.T) {
			other := *s.Site
			other.Env = m.env
			if r := (&place{&other, s.dir}).drill(t, 2, nil); r.Reason != drill.ReasonFetch || !strings.Contains(r.Error, m.says) {
				t.Errorf("reason %s; error %s, want %q", r.Reason, r.Error, m.says)
			}
		})
	}
	s.drill(t, 0, nil)
}

// After a failover WAL of the timeline that was left, or a history of another cluster, does not pass for that of the new one.
func TestSwappedTimeline(t *testing.T) {
	s, name := build(t, pgtest.Require(t, 17), pgtest.Options{SegmentSize: 1 << 20})
	standby := s.Standby(t, pgtest.Options{Env: s.Env, Settings: map[string]string{"archive_mode": "on", "archive_command": s.Binary + ` wal-push "%p"`}})
	s.CatchUp(t, standby)
	if err := standby.Server.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	site.AwaitRecovery(t, standby)
	for _, c := range []*pgtest.Cluster{s.Cluster, standby} { // both go on
		for range 3 {
			c.Exec(t, `insert into orders select i + (select max(id) from orders), 1, 'more' from generate_series(1, 1000) i`)
			(&site.Site{Cluster: c, Root: s.Root}).Switch(t)
		}
	}
	s.Stop(t)
	s.Await(t, "00000002.history")
	if r := s.drill(t, 0, []string{"HOLDFAST_DRILL_CHECKS=[{database: postgres, table: orders, expect: 9000}]"}, name, "--target", "latest"); r.Replay.Timeline != 3 {
		t.Errorf("the copy of timeline 2 is on %d", r.Replay.Timeline)
	}
	of := func(root string, timeline int) (all []string) {
		found, err := filepath.Glob(filepath.Join(root, fmt.Sprintf("wal_005/%08X????????????????.*", timeline)))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if base, _, _ := strings.Cut(filepath.Base(f), "."); len(base) == 24 && strings.Count(filepath.Base(f), ".") == 1 {
				all = append(all, f)
			}
		}
		return all
	}
	for _, m := range []struct {
		what   string
		status int
		says   string
		mutate func(t *testing.T, root string)
	}{
		{"a segment of the timeline that was left", 2, "timeline ID 1 (after 2)", func(t *testing.T, root string) {
			all := of(root, 2)
			right := all[len(all)-2]
			wrong := filepath.Join(filepath.Dir(right), "00000001"+filepath.Base(right)[8:])
			b, err := os.ReadFile(wrong)
			if err != nil {
				t.Fatal(err)
			}
			change(t, right, func([]byte) []byte { return b })
		}},
		{"a history that leaves the old timeline before the backup", 1, "after timeline 1 had been left at 0/100000", func(t *testing.T, root string) {
			history := only(t, root, "wal_005/00000002.history*")
			packed := exec.Command(pgtest.Program(t, "zstd"), "-q")
			packed.Stdin = strings.NewReader("1\t0/100000\tno recovery target specified\n")
			b, err := packed.Output()
			if err != nil {
				t.Fatal(err)
			}
			change(t, history, func([]byte) []byte { return b })
		}},
	} {
		t.Run(m.what, func(t *testing.T) {
			t.Parallel()
			if r := s.mutated(t, m.mutate).drill(t, m.status, nil, name, "--target", "latest", "--timeline", "2"); r.OK || !strings.Contains(r.Error, m.says) {
				t.Errorf("reason %s; error %s, want %q", r.Reason, r.Error, m.says)
			}
		})
	}
}

// Whatever is wrong with the cluster that was backed up, a drill says that, and why.
func TestDamageInTheCluster(t *testing.T) {
	for _, m := range []struct {
		what      string
		checksums bool
		check     string
		says      string
		relation  string
		damage    func(p []byte)
	}{
		{"bit in a heap page", true, "pages", "block 1 is damaged", "orders", func(p []byte) { p[page.Size-20] ^= 1 }},
		{"key in an index page, without checksums", false, "amcheck", "orders_pkey", "orders_pkey", func(p []byte) { p[page.Size-16-8] ^= 0x40 }},
		{"row in a heap page, without checksums", false, "amcheck", "orders", "orders", func(p []byte) { p[binary.LittleEndian.Uint32(p[24:])&0x7FFF+22] = 255 }}, // t_hoff of the first row
	} {
		t.Run(m.what, func(t *testing.T) {
			t.Parallel()
			s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{Checksums: m.checksums})
			path := filepath.Join(s.Data, s.Value(t, `pg_relation_filepath('`+m.relation+`')`))
			s.Exec(t, `vacuum orders`, `checkpoint`)
			s.Stop(t)
			change(t, path, func(b []byte) []byte { m.damage(b[page.Size : 2*page.Size]); return b })
			s.Start(t)
			if r := s.Do(t, "backup-push", "--full", s.Data); r.Status != 0 && r.Status != 3 {
				t.Fatalf("exit status %d\n%s", r.Status, r.Stderr)
			}
			r := s.drill(t, 2, nil)
			if c := check(t, r, m.check); r.Reason != drill.ReasonCheck || c.Result != drill.Failed || !strings.Contains(c.Text, m.says) {
				t.Errorf("reason %s, check %+v, error %s", r.Reason, c, r.Error)
			}
		})
	}
}

// What is not as it was to be, or cannot be found out here, is said in its own words.
func TestMisconfiguration(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	red := func(what, check, says string, env ...string) {
		t.Run(what, func(t *testing.T) {
			r := s.drill(t, 2, env)
			i := 0
			for i < len(r.Checks) && r.Checks[i].Name != check {
				i++
			}
			if r.Reason != drill.ReasonCheck || i == len(r.Checks) || r.Checks[i].Result != drill.Failed || !strings.Contains(r.Checks[i].Text, says) {
				t.Errorf("reason %s, error %s, checks %+v", r.Reason, r.Error, r.Checks)
			}
		})
	}
	red("wrong expected result", "rows of orders", "it is 6000, expected was > 10000", "HOLDFAST_DRILL_CHECKS=[{database: postgres, table: orders, expect: '> 10000'}]")
	red("no such database", "question 1", "does not exist", "HOLDFAST_DRILL_CHECKS=[{database: nowhere, sql: select 1}]")
	red("statement that fails", "question 1", "division by zero", "HOLDFAST_DRILL_CHECKS=[{database: postgres, sql: select 1/0}]")
	red("too slow", "rto", "longer than 1ms", "HOLDFAST_DRILL_RTO=1ms")
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1100 * time.Millisecond)))
	red("stale backup", "freshness", "longer than 1ms", "HOLDFAST_DRILL_RPO=1ms")
	red("stale heartbeat", "freshness", "the heartbeat", "HOLDFAST_DRILL_RPO=1h", "HOLDFAST_DRILL_HEARTBEAT=postgres:select timestamptz '2020-01-01 00:00:00+00'")
	const full = "{database: postgres, name: full, sql: \"do $$ begin raise 'could not extend file' using errcode = 'disk_full'; end $$\"}"
	t.Run("no room left, and a wrong result", func(t *testing.T) {
		r := s.drill(t, 2, []string{"HOLDFAST_DRILL_CHECKS=[" + full + ", {database: postgres, table: orders, expect: '> 10000'}]"})
		if c := check(t, r, "full"); c.Result != drill.Skipped || !strings.Contains(r.Error, "expected was > 10000") || strings.Contains(r.Error, "could not extend file") {
			t.Errorf("error %s, checks %+v", r.Error, r.Checks)
		}
	})
	t.Run("out of time", func(t *testing.T) {
		r := s.drill(t, 2, []string{"HOLDFAST_DRILL_TIMEOUT=3s", "HOLDFAST_DRILL_CHECKS=[{database: postgres, sql: select pg_sleep(600)}]"})
		if r.Reason != drill.ReasonLate || !strings.Contains(r.Error, "not done in time") {
			t.Errorf("reason %s, error %s", r.Reason, r.Error)
		}
	})
	host := func(what, says string, env []string, args ...string) {
		t.Run(what, func(t *testing.T) {
			if r := s.drill(t, 1, env, args...); !strings.Contains(r.Error, says) {
				t.Errorf("%s, want %q", r.Error, says)
			}
		})
	}
	host("missing programs", "find the server programs of PostgreSQL 17", []string{"HOLDFAST_PG_BIN=", "PATH=/usr/bin:/bin"})
	host("no directory", "no such file", []string{"HOLDFAST_DRILL_DIR=/nonexistent/for/drills"})
	host("long directory", "bytes too many", []string{"HOLDFAST_DRILL_DIR=" + longDir(t)})
	host("no such role", "lets in no superuser", nil, "--role", "nobody")
	host("no room left for the checks", "free some space", []string{"HOLDFAST_DRILL_CHECKS=[" + full + "]"})
	host("no such role, and what is not to be kept", "lets in no superuser", nil, "--keep", "--role", "nobody")
	host("role that is no superuser", "lets in no superuser of the names plain", nil, "--role", "plain")
	if os.Geteuid() == 0 {
		t.Run("no room", func(t *testing.T) {
			dir := pgtest.Dir(t)
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0777"); err != nil {
				t.Skipf("makes a full file system by a small tmpfs, which this host does not let it mount: %v", err)
			}
			defer func() {
				if err := syscall.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			}()
			if r := s.drill(t, 1, []string{"HOLDFAST_DRILL_DIR=" + dir}); !strings.Contains(r.Error, "free") {
				t.Error(r.Error)
			}
		})
	}
}

// A locale that this host does not have says nothing about the backup: neither in its configuration nor in a database.
func TestForeignLocale(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	host := func(what string, says ...string) {
		t.Run(what, func(t *testing.T) {
			r := s.drill(t, 1, nil)
			for _, says := range append(says, "locale -a") {
				if !strings.Contains(r.Error, says) {
					t.Errorf("%s, want %q", r.Error, says)
				}
			}
		})
	}
	s.Exec(t, `create database shop`, `update pg_database set datcollate = 'xx_XX.UTF-8' where datname = 'shop'`)
	s.Switch(t)
	host("of a database", "check extensions: database shop", `LC_COLLATE "xx_XX.UTF-8"`)
	c := s.Conn(t) // others cannot enter then
	var segment string
	if _, err := c.Exec(t.Context(), `update pg_database set datcollate = 'xx_XX.UTF-8'`); err != nil {
		t.Fatal(err)
	}
	if err := c.QueryRow(t.Context(), `select pg_walfile_name(pg_switch_wal())`).Scan(&segment); err != nil {
		t.Fatal(err)
	}
	s.Await(t, segment)
	host("of all databases", "cannot be asked", `LC_COLLATE "xx_XX.UTF-8"`)
	if _, err := c.Exec(t.Context(), `update pg_database set datcollate = datctype`); err != nil {
		t.Fatal(err)
	}
	change(t, filepath.Join(s.Data, "postgresql.conf"), func(b []byte) []byte { return append(b, "\nlc_monetary = 'yy_YY.UTF-8'\n"...) })
	s.Push(t, "--full")
	s.Switch(t)
	host("of the configuration", "does not have the locale yy_YY.UTF-8")
}

// Of an index that is out of order it is said where this host may sort otherwise than the one that built it, and only there.
func TestSortedElsewhere(t *testing.T) {
	for _, major := range []int{10, 17} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			s, _ := build(t, pgtest.Require(t, major), pgtest.Options{})
			s.Exec(t, `create table words (word text)`, `insert into words values ('a'), ('B')`,
				`create index there on words (word collate "C")`, `create index same on words (word collate "C")`,
				`update pg_index set indcollation = (select array[oid]::oidvector from pg_collation where collname = 'und-x-icu') where indexrelid = 'there'::regclass`,
				`update pg_index set indcollation = (select array[oid]::oidvector from pg_collation where collname = 'de-x-icu') where indexrelid = 'same'::regclass`,
				`update pg_collation set collversion = '0.0' where collname = 'und-x-icu'`)
			s.Switch(t)
			text := check(t, s.drill(t, 2, nil), "amcheck").Text
			for index, want := range map[string]bool{"there": true, "same": false} {
				_, of, found := strings.Cut(text, "index public."+index+":")
				of, _, _ = strings.Cut(of, "; database ")
				if !found || strings.Contains(of, `"und-x-icu" has version 0.0 there and `) != want || strings.Contains(of, "REINDEX") != want {
					t.Errorf("of the index %s: %s", index, text)
				}
			}
		})
	}
}

// longDir makes a directory whose path is too long for a socket in it.
func longDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(pgtest.Dir(t), strings.Repeat("d", 90))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, dir)
	return dir
}

// The copy must not act: what the configuration of the source has it do, it does not; and what is missing here is said.
func TestForeignConfiguration(t *testing.T) {
	s, _ := build(t, pgtest.Require(t, 17), pgtest.Options{})
	live := filepath.Join(pgtest.Dir(t), "live.pid")
	if err := os.WriteFile(live, []byte("the live server's"), 0o600); err != nil {
		t.Fatal(err)
	}
	pgtest.Give(t, live)
	s.Exec(t, `alter system set max_connections = 150`, `alter system set shared_buffers = '400MB'`, `update pg_extension set extname = 'nowhere_to_be_had' where extname = 'plpgsql'`)
	conf := "\nexternal_pid_file = '" + live + "'\ndata_directory = '" + s.Data + "'\nsynchronous_standby_names = 'nobody'\nsynchronous_commit = local\nmax_wal_size = 1GB\n"
	change(t, filepath.Join(s.Data, "postgresql.conf"), func(b []byte) []byte { return append(b, conf...) })
	change(t, filepath.Join(s.Data, "postgresql.auto.conf"), func(b []byte) []byte {
		return append(b, "shared_preload_libraries = 'pg_cron, no_such_library'\n"...)
	})
	s.Push(t, "--full")
	s.Switch(t)
	r := s.drill(t, 2, []string{"HOLDFAST_DRILL_MEMORY=64MiB"})
	if c := check(t, r, "extensions"); c.Result != drill.Failed || !strings.Contains(c.Text, "nowhere_to_be_had") {
		t.Errorf("%+v", c)
	}
	for _, c := range r.Checks {
		if c.Name != "extensions" && c.Result != drill.Passed {
			t.Errorf("%+v", c)
		}
	}
	notes := strings.Join(r.Notes, "\n")
	if !strings.Contains(notes, "pg_cron is not loaded") || !strings.Contains(notes, "no_such_library is not loaded") {
		t.Errorf("notes %s", notes)
	}
	changed := map[string]string{}
	for _, c := range r.Changed {
		changed[c.Name] = c.From + " to " + c.To
	}
	if _, told := changed["max_wal_size"]; told {
		t.Errorf("the same in another unit is a change: %v", changed)
	}
	if changed["shared_buffers"] != "400MB to "+strconv.Itoa(32<<10)+"kB" || changed["synchronous_standby_names"] != "nobody to " {
		t.Errorf("changed %v", changed)
	}
	if b, err := os.ReadFile(live); err != nil || string(b) != "the live server's" { // who writes it removes it at its end
		t.Errorf("the source's file has %q (%v)", b, err)
	}
}
