package backup_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/server"
	"holdfast/internal/restore"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

// chain is a cluster with checksums, whose hint bits are logged, and an archive with backups that build on one another.
type chain struct {
	*pgtest.Cluster
	store   *storetest.Memory
	archive *archive.Archive
	log     *bytes.Buffer
	pushed  map[string]bool // WAL files
}

func newChain(t *testing.T, major int) *chain {
	t.Helper()
	settings := map[string]string{"autovacuum": "off", "max_wal_size": "1GB"}
	if major >= 17 {
		settings["summarize_wal"] = "on"
	}
	c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Checksums: true, Archive: true, Settings: settings})
	return chainOf(c, &storetest.Memory{})
}

func chainOf(c *pgtest.Cluster, m *storetest.Memory) *chain {
	return &chain{Cluster: c, store: m, archive: archive.New(m, inMemory), log: &bytes.Buffer{}, pushed: map[string]bool{}}
}

// push takes a backup by source of the server as it is: nothing is written to disk meanwhile but what the backup itself causes.
func (c *chain) push(t *testing.T, source backup.Source, change func(*backup.Options)) *backup.Report {
	t.Helper()
	c.Exec(t, "checkpoint")
	report, err := c.try(t, source, change)
	if err != nil {
		t.Fatalf("%s: %v\n%s", source, err, c.log)
	}
	return report
}

func (c *chain) try(t *testing.T, source backup.Source, change func(*backup.Options)) (*backup.Report, error) {
	t.Helper()
	if source == backup.WALArchive {
		c.pushWAL(t)
	}
	conn, err := server.Connect(t.Context(), c.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // the backup is over
	opts := backup.Options{NoWaitWAL: true, Host: "db1", Logger: slog.New(slog.NewTextHandler(c.log, nil)),
		Delta: backup.Delta{MaxSteps: 100, Source: source, Sample: 0.2}}
	if change != nil {
		change(&opts)
	}
	return backup.Run(t.Context(), conn, c.archive, c.Data, opts)
}

// pushWAL archives what the server has written, to its last segment.
func (c *chain) pushWAL(t *testing.T) {
	t.Helper()
	c.Exec(t, "select pg_switch_wal()")
	pgtest.Eventually(t, "all WAL archived", func() bool {
		left, _ := filepath.Glob(filepath.Join(c.Data, "pg_wal", "archive_status", "*.ready"))
		return len(left) == 0
	})
	files, err := os.ReadDir(c.Archive)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if c.pushed[f.Name()] {
			continue
		}
		if _, err := c.archive.PutWAL(t.Context(), f.Name(), func() (io.ReadCloser, error) { return os.Open(filepath.Join(c.Archive, f.Name())) }); err != nil {
			t.Fatal(err)
		}
		c.pushed[f.Name()] = true
	}
}

// restored returns a directory into which the newest backup was restored, as it is, with its tablespaces below it in "spaces".
func (c *chain) restored(t *testing.T) string {
	t.Helper()
	cat, err := catalog.Load(t.Context(), c.archive)
	if err != nil {
		t.Fatal(err)
	}
	choice, err := cat.Choose("LATEST", catalog.Target{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(pgtest.Dir(t), "data")
	mapping := map[string]string{}
	if spec := choice.Backup.Sentinel.Spec; spec != nil {
		for _, s := range spec.Tablespaces {
			mapping[s.OID] = filepath.Join(filepath.Dir(dir), "spaces", s.OID)
		}
	}
	plan, err := restore.Decide(t.Context(), c.archive, restore.Request{Destination: dir, Choice: choice, TablespaceMapping: mapping})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := restore.Run(t.Context(), c.archive, plan, restore.Options{}); err != nil {
		t.Fatalf("%v\n%s", err, c.log)
	}
	return dir
}

// dataFile matches what the server holds still while nothing happens: files of relations and of the transaction log.
var dataFile = regexp.MustCompile(`^(base|global|pg_tblspc)/.*[0-9]+(_fsm|_vm|_init)?(\.[0-9]+)?$|^pg_(xact|multixact)/|PG_VERSION$|pg_filenode.map$`)

// fork matches what follows a relation's number in the names of its files.
var fork = regexp.MustCompile(`(_fsm|_vm|_init)?(\.[0-9]+)?$`)

// files returns the content of the data files below dir, links of tablespaces followed.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	var walk func(name string)
	walk = func(name string) {
		entries, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			p := filepath.Join(name, e.Name())
			info, err := os.Stat(filepath.Join(dir, p))
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				t.Fatal(err)
			case info.IsDir():
				walk(p)
			case dataFile.MatchString(p):
				if all[p], err = os.ReadFile(filepath.Join(dir, p)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	walk("")
	return all
}

// same restores the newest backup, which must be byte by byte what the server has on disk. Files of unlogged relations are those of a
// server that has just started.
func (c *chain) same(t *testing.T, when string) {
	t.Helper()
	want, got := files(t, c.Data), files(t, c.restored(t))
	for name, w := range want {
		if _, unlogged := want[fork.ReplaceAllString(name, "")+"_init"]; unlogged && !strings.HasSuffix(name, "_init") {
			continue
		}
		g, ok := got[name]
		if !ok {
			t.Errorf("%s: %s is not restored", when, name)
		} else if !bytes.Equal(g, w) {
			at := 0
			for at < min(len(g), len(w)) && g[at] == w[at] {
				at++
			}
			t.Errorf("%s: %s has %d bytes instead of %d, and differs at %d (block %d)", when, name, len(g), len(w), at, at/8192)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s is restored, and the server does not have it", when, name)
		}
	}
	if t.Failed() {
		t.Fatalf("%s", c.log)
	}
}

// sources are what a server of a major version can be asked by.
func sources(major int) []backup.Source {
	s := []backup.Source{backup.PageLSN, backup.WALArchive}
	if major >= 17 {
		s = append(s, backup.Summaries)
	}
	return s
}

// Whatever happens to relations between the backups of a chain, and whichever source tells of it, what is restored is what the server has.
func TestChains(t *testing.T) {
	for _, major := range []int{13, 15, 18} {
		for _, source := range sources(major) {
			t.Run(fmt.Sprint(major, " ", source), func(t *testing.T) {
				t.Parallel()
				c := newChain(t, major)
				space := pgtest.Dir(t)
				c.Exec(t, `create tablespace ts location '`+space+`'`,
					`create table big as select i, md5(i::text) h, repeat('x', 100) p from generate_series(1, 30000) i`, `create index on big (h)`,
					`create table cut as select i, repeat('y', 500) from generate_series(1, 5000) i`,
					`create table gone as select 1`, `create unlogged table fast as select generate_series(1, 1000) i`,
					`create table moved as select generate_series(1, 3000) i`, `create database other`, `vacuum`)
				if r := c.push(t, source, nil); r.Delta != nil || !strings.Contains(r.FullBecause, "Couldn't find previous backup") {
					t.Errorf("the first is %+v", r)
				}
				c.same(t, "full")
				copied := "create database copied template other"
				if major >= 15 {
					copied += " strategy file_copy"
				}
				for i, step := range [][]string{
					{`update big set p = 'z' where i % 500 = 0`, `delete from cut where i > 1000`, `vacuum cut`},
					{`insert into cut select i, repeat('w', 500) from generate_series(1, 3000) i`, `drop table gone`, `alter table fast set logged`},
					{`alter table moved set tablespace ts`, copied, `vacuum full big`, `create index on cut (i)`},
					{`alter table moved set tablespace pg_default`, `alter database other set tablespace ts`, `truncate cut`, `insert into cut values (1, 'one')`},
					{`alter database other set tablespace pg_default`, `update big set p = 'q' where i < 100`, `drop database copied`},
					{`select sum(i) from big`},
				} {
					c.Exec(t, step...)
					when := fmt.Sprintf("delta %d, by %s", i+1, source)
					r := c.push(t, source, nil)
					if r.Delta == nil || r.Delta.Source != source || r.Delta.Count != i+1 || len(r.Delta.Missed) > 0 || r.Delta.Unchanged == 0 {
						t.Fatalf("%s: %+v, delta %+v\n%s", when, r, r.Delta, c.log)
					}
					c.same(t, when)
				}
				r := c.push(t, source, nil)
				if d := r.Delta; d.Pages > 100 || source != backup.PageLSN && r.BytesRead > r.UncompressedSize+8192*d.Sampled+1<<20 {
					t.Errorf("nothing happened, and stored are %d pages; %d bytes were read, %d stored", d.Pages, r.BytesRead, r.UncompressedSize)
				}
			})
		}
	}
}
