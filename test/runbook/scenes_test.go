package runbook_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/instance"
	"holdfast/test/pgtest"
	"holdfast/test/runbook"
	"holdfast/test/site"
)

// doctor and check end with another status than 0 where something is wrong, and in a scene something mostly is.
const doctor = "holdfast doctor"

// Ports of the servers that the page starts, beside that of the scene's.
const (
	port      = 5432
	otherPort = 5433
)

// scenes are those of the sections of the page, by their headings.
func scenes() map[string]scene {
	return map[string]scene{
		"Is it safe?": {
			set:   func(t *testing.T, w *world) {},
			fails: []string{doctor},
			then: func(t *testing.T, w *world, said string) {
				if r := w.OK(t, "hold", "list"); !strings.Contains(r.Stdout, "incident") {
					t.Errorf("nothing is held:\n%s", r.Stdout)
				}
			},
		},
		"What is lost?": {
			major: 15,
			set:   func(t *testing.T, w *world) { w.Switch(t) },
		},
		"A table was dropped or truncated": dropped(),
		"Rows were changed or deleted":     changed(),
		"A database was dropped":           database(),
		"The host is lost":                 host(),
		"The datacentre is lost":           site2(),
		"A standby has to be built": {
			set: func(t *testing.T, w *world) {
				w.values = map[string]string{"STANDBY": filepath.Join(w.dir, "standby"), "STANDBY_PORT": strconv.Itoa(otherPort), "PRIMARY": conninfo(w.Cluster)}
			},
			then: func(t *testing.T, w *world, said string) {
				w.ExecIn(t, "shop", `create table news as select 1 as id`)
				pgtest.Eventually(t, "the standby has what is new", func() bool {
					return w.ask(t, otherPort, "shop", `select count(*)::text from pg_class where relname = 'news'`) == "1"
				})
			},
		},
		"The former primary is back":           former(),
		"Timelines":                            stray(),
		"The restore went to the wrong moment": wrong(),
		"The archive cannot be reached": {
			set: func(t *testing.T, w *world) {
				away := runbook.Quote(w.Root + ".away")
				if err := os.Rename(w.Root, w.Root+".away"); err != nil {
					t.Fatal(err)
				}
				w.ExecIn(t, "shop", `insert into orders values (7001, 1, 'meanwhile')`, `select pg_switch_wal()`)
				w.between[1] = "mv " + away + " " + runbook.Quote(w.Root)
			},
			then: func(t *testing.T, w *world, said string) {
				if !strings.Contains(said, "it does not work") || w.OK(t, "ribbon", "--check").Status != 0 {
					t.Error("the storage was not away, or is")
				}
			},
		},
		"A key is lost": {
			set: func(t *testing.T, w *world) {
				safe, fresh := filepath.Join(w.dir, "identity"), filepath.Join(w.dir, "new")
				if err := os.Mkdir(fresh, 0o700); err != nil {
					t.Fatal(err)
				}
				pgtest.Give(t, fresh)
				w.values = map[string]string{"IDENTITY": safe, "NEW_ARCHIVE": "WALG_FILE_PREFIX: " + fresh}
			},
			twice: []int{2},
			then: func(t *testing.T, w *world, said string) {
				w.Env = append(w.Env, "HOLDFAST_AGE_IDENTITIES_PATH="+w.values["IDENTITY"])
				if n := w.Backups(t); len(n) != 1 {
					t.Errorf("backups %q", n)
				}
				old := w.Root
				w.Root = strings.TrimPrefix(w.values["NEW_ARCHIVE"], "WALG_FILE_PREFIX: ")
				w.Switch(t)
				encrypted(t, w)
				had(t, w.config+".lost", old)
			},
		},
		"The disk fills because archiving fails": {
			set: func(t *testing.T, w *world) {
				w.Exec(t, `alter system set archive_command = '/bin/false'`, `select pg_reload_conf()`, `select pg_create_physical_replication_slot('gone_standby', true)`)
				for i := range 3 {
					w.ExecIn(t, "shop", fmt.Sprintf(`insert into orders values (%d, 1, 'not archived')`, 7001+i), `select pg_switch_wal()`)
				}
				pgtest.Eventually(t, "archiving fails", func() bool { return w.Value(t, `select failed_count > 0 from pg_stat_archiver`) == "true" })
				w.values = map[string]string{"ARCHIVE_COMMAND": w.archiving(), "SLOT": "gone_standby"}
			},
			fails: []string{doctor},
			then: func(t *testing.T, w *world, said string) {
				if n := w.Value(t, `select count(*) from pg_replication_slots`); n != "0" || strings.Contains(said, "that is the reason") {
					t.Errorf("%s slots are left, or the oldest segment could not be pushed", n)
				}
				w.Switch(t)
			},
		},
		"The backup is red": {
			set: func(t *testing.T, w *world) {},
			then: func(t *testing.T, w *world, said string) {
				if n := w.Backups(t); len(n) != 2 {
					t.Errorf("backups %q", n)
				}
			},
		},
		"The drill is red": {
			set: func(t *testing.T, w *world) {
				w.Switch(t)
				w.values = map[string]string{"DRILL_DIR": filepath.Join(w.dir, "scratch")}
			},
			then: func(t *testing.T, w *world, said string) {
				w.NoCopies(t, filepath.Join(w.dir, "scratch"))
			},
		},
		"WAL is missing": missing(),
		"Practise": {
			set: func(t *testing.T, w *world) {
				w.Switch(t)
				w.values = map[string]string{"DRILL_DIR": filepath.Join(w.dir, "scratch")}
			},
			then: func(t *testing.T, w *world, said string) {
				w.NoCopies(t, filepath.Join(w.dir, "scratch"))
			},
		},
	}
}

// conninfo is how a standby reaches a server.
func conninfo(c *pgtest.Cluster) string {
	return fmt.Sprintf("host=%s port=%d user=%s", c.Server.Host(), c.Server.Port(), instance.Superuser)
}

func dropped() scene {
	var was string
	return scene{
		set: func(t *testing.T, w *world) {
			was = w.sum(t, port, "orders")
			w.Switch(t)
			w.ExecIn(t, "shop", `drop table orders`, `insert into accounts values (7001, 1)`)
			w.values = map[string]string{"TABLE": "shop.public.orders"}
		},
		then: func(t *testing.T, w *world, said string) {
			if got := w.sum(t, port, "orders"); got != was {
				t.Errorf("orders has %s, before the accident %s", got, was)
			}
			if n := w.ask(t, port, "shop", `select count(*)::text from accounts where id = 7001`); n != "1" {
				t.Error("what was written since is gone")
			}
		},
	}
}

func database() scene {
	var was string
	return scene{
		major: 15,
		set: func(t *testing.T, w *world) {
			was = w.sum(t, port, "orders")
			w.Switch(t)
			w.Exec(t, `drop database shop`)
			w.values = map[string]string{"DATABASE": "shop"}
		},
		then: func(t *testing.T, w *world, said string) {
			if got := w.sum(t, port, "orders"); got != was {
				t.Errorf("orders has %s, before the accident %s", got, was)
			}
		},
	}
}

// gone stops the server as a lost host does, once its WAL is archived, and removes its directory.
func gone(t *testing.T, w *world) {
	t.Helper()
	w.Switch(t)
	w.Server.Kill()
	if err := os.RemoveAll(w.Data); err != nil {
		t.Fatal(err)
	}
}

// empty makes the cluster that a package makes when it is installed, and starts it.
func empty(t *testing.T, w *world) {
	t.Helper()
	environment := []string{"LC_ALL=C"}
	w.postgres(t, environment, "initdb", "-D", w.Data, "-U", instance.Superuser, "-N")
	w.postgres(t, environment, "pg_ctl", "-D", w.Data, "-o", fmt.Sprintf("-c port=%d -c listen_addresses= -c unix_socket_directories=%s", port, w.Server.Host()), "-w", "start")
}

// postgres runs a program of PostgreSQL, which must succeed. What it prints goes to a file: a server that it starts has that open as long as it lives.
func (w *world) postgres(t *testing.T, env []string, program string, args ...string) {
	t.Helper()
	said, err := os.CreateTemp(t.TempDir(), program)
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close() // it is read by its name
	cmd := pgtest.Command(t, filepath.Join(w.Programs.Dir, program), args...)
	cmd.Env = append(cmd.Environ(), env...)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(said.Name()) // it is shown as far as it goes
		t.Fatalf("%s: %v\n%s", program, err, b)
	}
}

// lives looks whether the server of the scene is a primary with the orders that it had, and a backup of its new timeline.
func lives(t *testing.T, w *world, was string) {
	t.Helper()
	if got := w.sum(t, port, "orders"); got != was {
		t.Errorf("orders has %s, before the loss %s", got, was)
	}
	if mode := w.ask(t, port, "postgres", `show archive_mode`); mode != "on" {
		t.Errorf("archive_mode is %s", mode)
	}
	names := w.Backups(t)
	if len(names) != 2 || !strings.HasPrefix(names[1], "base_00000002") {
		t.Errorf("backups %q", names)
	}
}

func host() scene {
	var was string
	return scene{
		set: func(t *testing.T, w *world) {
			was = w.sum(t, port, "orders")
			gone(t, w)
			empty(t, w)
		},
		then: func(t *testing.T, w *world, said string) { lives(t, w, was) },
	}
}

// encrypted looks whether nothing of a backup or of WAL is in clear.
func encrypted(t *testing.T, w *world) {
	t.Helper()
	n := 0
	for _, o := range w.Objects(t) {
		if !strings.HasPrefix(o, "wal_005/") && !strings.Contains(o, "/tar_partitions/") || strings.HasSuffix(o, ".sum.json") { // sums of what is encrypted are in clear
			continue
		}
		n++
		if b, err := os.ReadFile(filepath.Join(w.Root, o)); err != nil || !strings.HasPrefix(string(b), "age-encryption.org/v1\n") {
			t.Errorf("%s is not encrypted, %v", o, err)
		}
	}
	if n < 2 {
		t.Errorf("the archive has %d objects of them", n)
	}
}

// had looks whether a file of settings that was put aside names an archive.
func had(t *testing.T, file, root string) {
	t.Helper()
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), `"`+root+`"`) {
		t.Errorf("%s has %q, %v", file, b, err)
	}
}

func site2() scene {
	var was string
	return scene{
		major: 15,
		twice: []int{0},
		set: func(t *testing.T, w *world) {
			was = w.sum(t, port, "orders")
			gone(t, w)
			mirror := filepath.Join(w.dir, "mirror")
			if err := os.Rename(w.Root, mirror); err != nil { // what is there was pushed to both
				t.Fatal(err)
			}
			w.values = map[string]string{"MIRROR": "WALG_FILE_PREFIX: " + mirror}
		},
		then: func(t *testing.T, w *world, said string) {
			lives(t, w, was)
			had(t, w.config+".lost.~1~", w.Root)
		},
	}
}

func former() scene {
	var now *pgtest.Cluster
	return scene{
		set: func(t *testing.T, w *world) {
			now = w.Standby(t, pgtest.Options{Env: w.Env, Settings: map[string]string{"archive_mode": "on", "archive_command": w.archiving()}})
			w.CatchUp(t, now)
			if err := now.Server.Promote(t.Context()); err != nil {
				t.Fatal(err)
			}
			site.AwaitRecovery(t, now)
			now.ExecIn(t, "shop", `insert into orders values (7001, 1, 'after the failover')`)
			w.Await(t, now.Value(t, `pg_walfile_name(pg_switch_wal())`))
			w.ExecIn(t, "shop", `insert into orders values (7002, 1, 'nobody will have this')`)
			w.values = map[string]string{"PRIMARY": conninfo(now)}
		},
		then: func(t *testing.T, w *world, said string) {
			pgtest.Eventually(t, "the former primary streams from the new one", func() bool { return now.Value(t, `select count(*) from pg_stat_replication`) == "1" })
			now.Exec(t, `create table after_all (id int)`)
			pgtest.Eventually(t, "it has what is new", func() bool {
				return w.ask(t, port, "postgres", `select count(*)::text from pg_class where relname = 'after_all'`) == "1"
			})
			if n := w.ask(t, port, "shop", `select string_agg(id::text, ' ') from orders where id > 7000`); n != "7001" {
				t.Errorf("it has the orders %s", n)
			}
		},
	}
}

func stray() scene {
	return scene{
		set: func(t *testing.T, w *world) {
			w.Switch(t)
			copied := w.Fetch(t, "--target", "latest", "--archive")
			clone := w.Open(t, copied)
			site.AwaitRecovery(t, clone)
			w.Await(t, clone.Value(t, `pg_walfile_name(pg_switch_wal())`))
			clone.Stop(t)
			w.Switch(t)
			w.values = map[string]string{"STRAY": "2"}
		},
		then: func(t *testing.T, w *world, said string) {
			for _, o := range w.Objects(t) {
				if strings.HasPrefix(o, "wal_005/00000002") {
					t.Errorf("the archive has %s", o)
				}
			}
		},
	}
}

func wrong() scene {
	var was string
	return scene{
		set: func(t *testing.T, w *world) {
			was = w.sum(t, port, "orders")
			moment := w.Value(t, `clock_timestamp()`)
			time.Sleep(10 * time.Millisecond)
			w.ExecIn(t, "shop", `drop table orders`)
			w.Switch(t)
			dir := filepath.Join(w.dir, "copy")
			w.OK(t, "backup-fetch", dir, "--target", "latest")
			w.postgres(t, w.Env, "pg_ctl", "-D", dir, "-o", fmt.Sprintf("-c port=%d", otherPort), "-l", dir+".log", "-w", "start")
			w.values = map[string]string{"COPY": dir, "COPY_PORT": strconv.Itoa(otherPort), "MOMENT": moment}
		},
		then: func(t *testing.T, w *world, said string) {
			if got := w.sum(t, otherPort, "orders"); got != was {
				t.Errorf("orders has %s, before the accident %s", got, was)
			}
			if _, err := os.Stat(filepath.Join(w.values["COPY"]+".wrong", "PG_VERSION")); err != nil {
				t.Error(err)
			}
		},
	}
}

func missing() scene {
	var found string
	return scene{
		set: func(t *testing.T, w *world) {
			var names []string
			for range 5 {
				names = append(names, w.Switch(t))
			}
			found = names[1]
			lost := names[3]
			for _, name := range []string{found, lost} {
				if err := os.Remove(filepath.Join(w.Root, "wal_005", name+".zst")); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Remove(filepath.Join(w.Data, "pg_wal", lost)); err != nil {
				t.Fatal(err)
			}
			w.values = map[string]string{"LOST": lost}
		},
		then: func(t *testing.T, w *world, said string) {
			if !w.Has("wal_005/" + found + ".zst") {
				t.Errorf("%s was not put back", found)
			}
			if r := w.OK(t, "ribbon", "--check"); !strings.HasPrefix(r.Stdout, "OK") {
				t.Error(r.Stdout)
			}
		},
	}
}

func changed() scene {
	var was string
	return scene{
		set: func(t *testing.T, w *world) {
			was = w.sum(t, port, "accounts")
			w.Switch(t)
			w.ExecIn(t, "shop", `begin; delete from accounts where id <= 1500; update accounts set balance = 0 where id > 2000; commit`)
			w.ExecIn(t, "shop", `insert into orders values (7001, 1, 'since then')`)
			w.values = map[string]string{"TABLE": "shop.public.accounts", "DATABASE": "shop"}
		},
		then: func(t *testing.T, w *world, said string) {
			if got := w.sum(t, port, "accounts"); got != was {
				t.Errorf("accounts has %s, before the accident %s", got, was)
			}
			if n := w.ask(t, port, "shop", `select count(*)::text from orders where id = 7001`); n != "1" {
				t.Error("what was written since is gone")
			}
		},
	}
}
