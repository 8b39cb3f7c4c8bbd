package roundtrip_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg/manifest"
	"holdfast/test/pgtest"
	"holdfast/test/site"
)

// A chain that is merged restores to the same as the chain, file for file, bytes, modes and times, when the chain is gone; the stock tool verifies it, a
// server starts on it, and deltas go on from it. Where what is stored is encrypted, or compressed as one stream, it is so too.
func TestMergedChain(t *testing.T) {
	for _, c := range []struct {
		major int
		env   []string
	}{
		{15, nil},
		{17, []string{"WALG_COMPRESSION_METHOD=lz4"}},
		{18, []string{"WALG_LIBSODIUM_KEY=" + strings.Repeat("5a", 32), "WALG_LIBSODIUM_KEY_TRANSFORM=hex"}},
	} {
		t.Run(fmt.Sprintf("PG%d", c.major), func(t *testing.T) {
			p := pgtest.Require(t, c.major)
			root := filepath.Join(pgtest.Dir(t), "archive")
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			pgtest.Give(t, root)
			env := append(c.env, "WALG_FILE_PREFIX="+root, "WALG_DELTA_MAX_STEPS=20", "WALG_TAR_SIZE_THRESHOLD=3000000")
			s := site.In(t, p, pgtest.Options{Checksums: true, Settings: map[string]string{"autovacuum": "off"}}, root, env...)
			space := filepath.Join(s.Dir, "space")
			if err := os.Mkdir(space, 0o700); err != nil {
				t.Fatal(err)
			}
			pgtest.Give(t, space)
			s.Exec(t, `create tablespace space location '`+space+`'`)
			for _, table := range []string{"still", "moving", "short", "gone"} {
				s.Exec(t, `create table `+table+` as select g as id, md5(g::text) as what from generate_series(1, 40000) g`, `alter table `+table+` add primary key (id)`)
			}
			s.Exec(t, `create table apart tablespace space as select * from still`)
			names := []string{s.Push(t, "--full")}
			for n := range 3 {
				s.Exec(t, fmt.Sprintf(`update moving set what = 'turn %d' where id %% 997 = %d`, n, n),
					fmt.Sprintf(`update apart set what = 'turn %d' where id between %d and %d`, n, 1000*n, 1000*n+400),
					fmt.Sprintf(`create table young%d as select * from still where id < 3000`, n),
					`delete from short where id > `+fmt.Sprint(30000-10000*n), `vacuum short`, `checkpoint`)
				if n == 1 {
					s.Exec(t, `drop table gone`, `create database other`)
				}
				names = append(names, s.Push(t))
			}
			chain := fetched(t, s, names[3])
			want := contents(t, chain)

			var plan struct {
				Merged   string   `json:"merged_backup"`
				Copied   int      `json:"copied_parts"`
				Write    int64    `json:"write_bytes"`
				Unneeded []string `json:"no_longer_built_on"`
			}
			r := s.OK(t, "backup-merge", "LATEST", "--dry-run", "--json")
			if err := json.Unmarshal([]byte(r.Stdout), &plan); err != nil {
				t.Fatalf("%v\n%s", err, r.Stdout)
			}
			full := names[3][:29]
			newestFirst := slices.Clone(names)
			slices.Reverse(newestFirst)
			if plan.Merged != full || plan.Copied == 0 || plan.Write == 0 || !slices.Equal(plan.Unneeded, newestFirst) {
				t.Errorf("plan %s", r.Stdout)
			}
			if got := s.Backups(t); !slices.Equal(got, names) {
				t.Fatalf("backups after a dry run: %v", got)
			}
			s.OK(t, "backup-merge", names[3])
			if got := s.Backups(t); !slices.Equal(got, append(slices.Clone(names), full)) {
				t.Fatalf("backups: %v", got)
			}
			for _, name := range names {
				discard(t, s, name)
			}

			merged := fetched(t, s, full)
			got := contents(t, merged)
			for path, was := range want {
				if got[path] != was {
					t.Errorf("%s is %.100q, was %.100q", path, got[path], was)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d files, were %d", len(got), len(want))
			}
			verifier := pgtest.Verifier(t, c.major)
			if out, err := pgtest.Command(t, verifier, "-n", merged).CombinedOutput(); err != nil {
				t.Errorf("pg_verifybackup: %v\n%s", err, out)
			}

			s.Exec(t, `update moving set what = 'after' where id % 1000 = 7`)
			delta := s.Push(t)
			if !strings.HasSuffix(delta, "_D_"+full[len("base_"):]) {
				t.Errorf("the next backup is %s, which does not build on %s", delta, full)
			}
			s.Switch(t)
			dir := filepath.Join(pgtest.Dir(t), "data")
			s.OK(t, "backup-fetch", dir, "LATEST", "--target", "latest", "--tablespace-mapping", space+"="+filepath.Join(filepath.Dir(dir), "space"))
			copied := s.Open(t, dir)
			site.AwaitRecovery(t, copied)
			for _, table := range []string{"still", "moving", "short", "apart", "young0", "young2"} {
				if got, rows := site.Rows(t, copied, table), site.Rows(t, s.Cluster, table); got != rows {
					t.Errorf("%s came back as %s, was %s", table, got, rows)
				}
			}
			// The delta on what was merged is merged in its turn.
			s.OK(t, "backup-merge", delta)
			if d := contents(t, fetched(t, s, delta)); !maps.Equal(d, contents(t, fetched(t, s, delta[:29]))) {
				t.Error("what was merged again is not what the chain was")
			}
		})
	}
}

// fetched restores a backup of a server with one tablespace, without recovery.
func fetched(t *testing.T, s *site.Site, name string) string {
	t.Helper()
	dir := pgtest.Dir(t)
	oid := s.Value(t, `select oid from pg_tablespace where spcname = 'space'`)
	s.OK(t, "backup-fetch", filepath.Join(dir, "data"), name, "--tablespace-mapping", oid+"="+filepath.Join(dir, "space"))
	return filepath.Join(dir, "data")
}

// contents says of everything in a restored data directory and its tablespace what it is.
func contents(t *testing.T, data string) map[string]string {
	t.Helper()
	found := map[string]string{}
	root := filepath.Dir(data)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, root)
		switch base := filepath.Base(path); {
		case d.IsDir():
			found[rel] = info.Mode().String()
		case d.Type() == fs.ModeSymlink: // leads to the copy's own tablespace
			found[rel] = "link"
		case base == manifest.Name: // in the order of the workers
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			at := info.ModTime().UTC().String()
			if base == "pg_control" || base == "backup_label" || base == "tablespace_map" { // made at the end of a restore
				at = ""
			}
			found[rel] = fmt.Sprintf("%s %s %s", info.Mode(), at, strings.ReplaceAll(string(b), root, "DIR")) // a map says where the copy's tablespace is
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// discard removes a backup from the archive.
func discard(t *testing.T, s *site.Site, name string) {
	t.Helper()
	folder := filepath.Join(s.Root, "basebackups_005", name)
	if err := os.Remove(folder + "_backup_stop_sentinel.json"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
}

// A merge that is killed leaves no backup, and the chain as it was; the next one under that name removes what is there and makes it.
func TestMergeKilled(t *testing.T) {
	s := site.New(t, pgtest.Require(t, 16), pgtest.Options{})
	s.Env = append(s.Env, "WALG_DELTA_MAX_STEPS=5", "WALG_TAR_SIZE_THRESHOLD=500000")
	s.Exec(t, `create table kept as select g as id, md5(g::text) as what from generate_series(1, 100000) g`)
	s.Push(t, "--full")
	s.Exec(t, `update kept set what = 'new' where id % 500 = 0`, `checkpoint`)
	delta := s.Push(t)
	full := delta[:29]
	begun := time.Now()
	s.OK(t, "backup-merge", delta)
	took := time.Since(begun)
	discard(t, s, full)
	before := s.Objects(t)
	killed := 0
	for round := range 8 {
		cmd := s.Command(t, "backup-merge", delta)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(took*time.Duration(round)/8, func() { cmd.Process.Signal(syscall.SIGKILL) }) // it may have ended
		err := cmd.Wait()
		timer.Stop()
		if err == nil {
			discard(t, s, full)
			continue
		}
		killed++
		if slices.Contains(s.Backups(t), full) {
			t.Logf("round %d: killed when it was made already", round)
			discard(t, s, full)
		}
	}
	if killed == 0 {
		t.Error("no merge was killed")
	}
	s.OK(t, "backup-merge", delta)
	if got := s.Backups(t); got[len(got)-1] != full {
		t.Errorf("backups: %v", got)
	}
	s.OK(t, "backup-merge", delta) // there is nothing to do
	discard(t, s, full)
	if after := s.Objects(t); len(after) != len(before) {
		t.Errorf("left are %v", slices.DeleteFunc(after, func(o string) bool { return slices.Contains(before, o) }))
	}
}
