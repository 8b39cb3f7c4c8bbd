package roundtrip_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// oldAndNew runs test on a major with recovery.conf and pg_start_backup, and on the newest.
func oldAndNew(t *testing.T, test func(t *testing.T, p instance.Programs)) {
	t.Helper()
	for _, major := range []int{11, pgtest.Newest} {
		t.Run("PG"+itoa(major), func(t *testing.T) { test(t, pgtest.Require(t, major)) })
	}
}

// standbyOf makes a streaming standby that archives into the archive of s too.
func standbyOf(t *testing.T, s *site.Site) *site.Site {
	t.Helper()
	standby := *s
	standby.Cluster = s.Standby(t, pgtest.Options{Env: s.Env, Settings: map[string]string{
		"archive_mode": "always", "archive_command": s.Binary + ` wal-push "%p"`,
	}})
	return &standby
}

// A backup of a standby restores; primary and standby archive into one archive.
func TestBackupOfStandby(t *testing.T) {
	oldAndNew(t, func(t *testing.T, p instance.Programs) {
		s := site.New(t, p, pgtest.Options{Checksums: true})
		standby := standbyOf(t, s)
		load := s.StartLoad(t, 1)
		pgtest.Eventually(t, "50 transactions", func() bool { return load.Committed() >= 50 })
		s.CatchUp(t, standby.Cluster)
		push := standby.Command(t, "backup-push", standby.Data)
		var stderr bytes.Buffer
		push.Stderr = &stderr
		if err := push.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- push.Wait() }()
		pgtest.Eventually(t, "the backup ends", func() bool {
			s.Exec(t, `select pg_switch_wal()`) // a standby cannot: without this it waits for the primary to fill a segment
			select {
			case err := <-ended:
				if err != nil {
					t.Fatalf("backup-push: %v\n%s", err, stderr.String())
				}
				return true
			default:
				return false
			}
		})
		if _, err := load.Stop(); err != nil {
			t.Fatal(err)
		}
		committed := s.CheckLoad(t)
		s.Switch(t)
		c := s.Restored(t, "--target", "latest")
		if got := c.CheckLoad(t); got != committed {
			t.Errorf("%d transactions came back of %d", got, committed)
		}
	})
}

// A standby that is promoted while it is backed up gives no backup, says so in one line, and leaves nothing in the archive.
func TestPromotionDuringBackup(t *testing.T) {
	oldAndNew(t, func(t *testing.T, p instance.Programs) {
		s := site.New(t, p, pgtest.Options{})
		standby := standbyOf(t, s)
		s.CatchUp(t, standby.Cluster)
		push := standby.Command(t, "backup-push", standby.Data)
		push.Env = append(push.Env, "WALG_DISK_RATE_LIMIT=4000000", "WALG_ALIVE_CHECK_INTERVAL=200ms")
		var stderr bytes.Buffer
		push.Stderr = &stderr
		if err := push.Start(); err != nil {
			t.Fatal(err)
		}
		pgtest.Eventually(t, "the backup has begun", func() bool { return anyObject(t, s, "/push.json") })
		if err := standby.Server.Promote(t.Context()); err != nil {
			t.Error(err)
		}
		_ = push.Wait() // how it ended is checked below
		site.Ended(push, "", stderr.String()).Check(t, "backup-push", 1, "promoted")
		if names := s.Backups(t); len(names) != 0 {
			t.Errorf("there are backups: %v", names)
		}
		standby.NoTrace(t)
		standby.NotInBackup(t)
		s.Server.Kill() // the former primary; the new one goes on
		standby.Switch(t)
		standby.Push(t)
		standby.Restored(t, "--target", "latest")
	})
}

// anyObject reports whether the archive has an object whose name ends so.
func anyObject(t *testing.T, s *site.Site, end string) bool {
	t.Helper()
	for _, name := range s.Objects(t) {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

// A standby fed by the archive alone stays up while the archive cannot be reached, and catches up after.
func TestStandbyOutlivesOutage(t *testing.T) {
	oldAndNew(t, func(t *testing.T, p instance.Programs) {
		s := site.New(t, p, pgtest.Options{})
		s.Exec(t, `create table t as select 1 as n`)
		s.Push(t)
		dir := s.Fetch(t, "--standby")
		c := pgtest.Attach(t, p, dir, pgtest.Options{Env: s.Env, Settings: map[string]string{
			"hot_standby": "on", "wal_retrieve_retry_interval": "100ms",
		}})
		follows := func() bool {
			return c.Value(t, `select count(*) from t`) == s.Value(t, `select count(*) from t`)
		}
		s.Exec(t, `insert into t values (2)`)
		s.Switch(t)
		pgtest.Eventually(t, "the standby follows the archive", follows)

		if err := os.Rename(s.Root, s.Root+".away"); err != nil {
			t.Fatal(err)
		}
		s.Exec(t, `insert into t values (3)`, `select pg_switch_wal()`)
		pgtest.Eventually(t, "the standby has asked in vain, again and again", func() bool {
			log, err := os.ReadFile(c.Server.LogFile())
			if err != nil {
				t.Fatal(err)
			}
			return bytes.Count(log, []byte("ERROR: 20")) > 5 && bytes.Contains(log, []byte("of the archive does not exist"))
		})
		if c.Value(t, `pg_is_in_recovery()`) != "true" {
			t.Error("the standby is none any more")
		}
		if err := os.Rename(s.Root+".away", s.Root); err != nil {
			t.Fatal(err)
		}
		s.Switch(t) // which wakes the archiver too
		pgtest.Eventually(t, "the standby catches up", follows)
		if _, err := os.Stat(filepath.Join(dir, "standby.signal")); p.Major >= 12 && err != nil {
			t.Error(err)
		}
	})
}

// Recovery to a target stops where the archive cannot be read, rather than open with less than was asked for.
func TestRecoveryStopsWithoutArchive(t *testing.T) {
	oldAndNew(t, func(t *testing.T, p instance.Programs) {
		s := site.New(t, p, pgtest.Options{})
		s.Exec(t, `create table t as select 1 as n`)
		s.Push(t)
		s.Exec(t, `insert into t values (2)`)
		last := s.Switch(t)
		dir := s.Fetch(t, "--target", "latest")
		object := filepath.Join(s.Root, "wal_005", last+".zst")
		if err := os.Truncate(object, 100); err != nil { // "latest" must not mean "up to the first broken segment"
			t.Fatal(err)
		}
		scratch := pgtest.Dir(t)
		server, err := instance.Start(t.Context(), instance.Options{
			Programs: p, DataDir: dir, SocketDir: scratch, Env: s.Env, Settings: map[string]string{"fsync": "off", "hot_standby": "off"},
		})
		if err == nil {
			server.Kill()
			t.Fatal("recovery ended although a segment could not be read")
		}
		if !strings.Contains(err.Error(), last) {
			t.Errorf("the log does not name %s: %v", last, err)
		}
	})
}
