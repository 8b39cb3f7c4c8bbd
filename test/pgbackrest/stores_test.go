package pgbackrest_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

// A repository is read in a store of every kind, whose prefix leads to its root, and a restored cluster recovers from there. What the commands are told, and
// whatever they tell, no passphrase is among it.
func TestRepositoryInEveryStore(t *testing.T) {
	const passphrase = "hunter2hunter2"
	script := filepath.Join(pgtest.Dir(t), "archive.sh")
	c := startCluster(t, 15, script)
	v := variants[4]
	v.options = append(slices.Clone(v.options[:len(v.options)-1]), "repo1-cipher-pass="+passphrase)
	s := newStanza(t, c, script, v)
	c.Exec(t, `create table much (id int, text text)`, `insert into much select i, repeat(md5(i::text), 4) from generate_series(1, 3000) i`)
	s.do(t, "backup", "--type=full")
	c.Exec(t, `update much set text = 'changed' where id % 100 = 1`)
	s.do(t, "backup", "--type=incr")
	c.Exec(t, `insert into much select generate_series(1, 10), 'behind the backup'`)
	s.archived(t)
	want := rows(t, c)
	places.Each(t, func(t *testing.T, p places.Place) {
		for _, name := range s.objects(t) {
			content, err := os.ReadFile(filepath.Join(s.repo(), name))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Store.Put(t.Context(), name, bytes.NewReader(content)); err != nil {
				t.Fatal(err)
			}
		}
		if root, ok := strings.CutPrefix(p.Env[0], "WALG_FILE_PREFIX="); ok {
			pgtest.Give(t, root) // what was put belongs to us
		}
		env := append([]string{"PGBACKREST_STANZA=" + s.name, "PGBACKREST_REPO1_CIPHER_TYPE=aes-256-cbc", "PGBACKREST_REPO1_CIPHER_PASS=" + passphrase,
			"PGBACKREST_CONFIG=", "WALG_LOG_LEVEL=DEVEL"}, p.Env...)
		run := func(args ...string) string {
			t.Helper()
			cmd := pgtest.Command(t, s.holdfast, append([]string{"pgbackrest"}, args...)...)
			cmd.Env = append(cmd.Environ(), env...)
			r := site.Run(t, cmd)
			if r.Status != 0 {
				t.Fatalf("%v: exit status %d\n%s", args, r.Status, r.Stderr)
			}
			if strings.Contains(r.Stdout+r.Stderr, passphrase) {
				t.Errorf("%v tells the passphrase", args)
			}
			return r.Stdout
		}
		if out := run("backup-list"); strings.Count(out, "\n") != 3 {
			t.Errorf("listed are\n%s", out)
		}
		if out := run("verify", "all"); strings.Count(out, "OK ") != 2 {
			t.Errorf("verify says\n%s", out)
		}
		if out := run("wal-show"); !strings.Contains(out, "| OK ") {
			t.Errorf("wal-show says\n%s", out)
		}
		dir := filepath.Join(pgtest.Dir(t), "data")
		run("backup-fetch", dir, "--target", "latest")
		restored := pgtest.Attach(t, c.Programs, dir, pgtest.Options{Env: env})
		site.AwaitRecovery(t, restored)
		if got := rows(t, restored); got != want {
			t.Errorf("restored is %s, want %s", got, want)
		}
		conf, err := os.ReadFile(filepath.Join(dir, "postgresql.auto.conf"))
		if err != nil || bytes.Contains(conf, []byte(passphrase)) {
			t.Errorf("the restored cluster has the passphrase in its settings, %v", err)
		}
		restored.Stop(t)
	})
}

// A repository of pgBackRest 2.60 goes on where 2.45 began: bundles in two forms are in one backup.
func TestNewerGoesOn(t *testing.T) {
	script := filepath.Join(pgtest.Dir(t), "archive.sh")
	c := startCluster(t, 15, script)
	s := newStanza(t, c, script, variants[2])
	c.Exec(t, `create table much (id int, text text)`, `insert into much select i, repeat(md5(i::text), 4) from generate_series(1, 3000) i`)
	s.do(t, "backup", "--type=full")
	s.tool = variant{newer: true}.tool(t)
	s.configure(t, script, c, append(slices.Clone(variants[2].options), "repo1-block=y")...)
	for range 2 {
		c.Exec(t, `update much set text = md5(text) where id % 100 = 1`, `create table x (id int)`, `drop table x`)
		s.do(t, "backup", "--type=incr")
	}
	if out := s.ok(t, "verify", "all"); strings.Count(out, "OK ") != 3 {
		t.Errorf("verify says\n%s", out)
	}
	want := rows(t, c)
	s.archived(t)
	restored := s.open(t, s.fetchPlain(t, "--target", "latest"))
	if got := rows(t, restored); got != want {
		t.Errorf("restored is %s, want %s", got, want)
	}
	restored.Stop(t)

	// A backup of the stopped server is restored as it is. It is none for a moment.
	c.Stop(t)
	s.do(t, "backup", "--type=full", "--no-online")
	if out := s.ok(t, "verify"); strings.Count(out, "OK ") != 1 || !strings.Contains(out, " 0 WAL segments") {
		t.Errorf("verify says\n%s", out)
	}
	if out := s.ok(t, "wal-show"); !strings.Contains(out, "The cluster is on timeline 1") {
		t.Errorf("wal-show says\n%s", out)
	}
	stopped := pgtest.Attach(t, c.Programs, s.fetchPlain(t, "LATEST"), pgtest.Options{})
	if got := rows(t, stopped); got != want {
		t.Errorf("of the stopped server %s was restored, want %s", got, want)
	}
	stopped.Stop(t)
	offline := s.backups(t)[3].Name
	r := s.run(t, "backup-fetch", filepath.Join(pgtest.Dir(t), "data"), offline, "--target", "latest")
	r.Check(t, "for a moment", 1, offline+" was taken while the server was stopped")
	again := s.open(t, s.fetchPlain(t, "--target", "latest"))
	if got := rows(t, again); got != want {
		t.Errorf("restored is %s, want %s", got, want)
	}
}
