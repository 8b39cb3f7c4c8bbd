package backup_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/backup"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
	"holdfast/test/pgtest"
)

// catchUpMembers returns what the manifest of a catch-up has, by path.
func catchUpMembers(t *testing.T, a *archive.Archive, name string) map[string]tarpart.Member {
	t.Helper()
	m, err := a.CatchUps().OpenManifest(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	found := map[string]tarpart.Member{}
	for {
		p, err := m.Next()
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, member := range p.Members {
			found[member.Path] = member
		}
	}
}

// A catch-up names all files of the cluster, and leaves out what a standby has of its own, configuration in particular. Relations of which
// nothing has changed come as increments without a page, also from the pages alone; what is named comes whole.
func TestCatchUpNamesAllButAStandbysOwn(t *testing.T) {
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{Checksums: true, Archive: true})
	for name, content := range map[string]string{
		"server.key": "a key", "conf.d/further.conf": "work_mem = '5MB'\n", "extension/data": "data", "notes.txt": "notes",
	} {
		file := filepath.Join(c.Data, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, filepath.Dir(file))
		pgtest.Give(t, file)
	}
	conf, err := os.OpenFile(filepath.Join(c.Data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = conf.WriteString("include_dir = 'conf.d'\n")
	}
	if err = errors.Join(err, conf.Close()); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, `create table t as select i, repeat('x', 100) from generate_series(1, 10000) i`, `vacuum t`, `checkpoint`)
	since, err := wal.ParseLSN(c.Value(t, `pg_current_wal_lsn()`))
	if err != nil {
		t.Fatal(err)
	}
	table := c.Value(t, `pg_relation_filepath('t')`)
	c.Exec(t, `insert into t values (0, 'one more')`, `checkpoint`)

	a := archive.New(&storetest.Memory{}, archive.Options{})
	opts := backup.Options{NoWaitWAL: true, Host: "db1", Delta: backup.Delta{Source: backup.PageLSN, Sample: 1}}
	r, err := backup.CatchUp(t.Context(), connect(t, c), a, c.Data, backup.Standby{Since: since, Whole: []string{"base/1/1259"}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	if r.Since != since.String() || r.Delta.Source != backup.PageLSN || r.Delta.Pages == 0 || r.Delta.Unchanged != 0 {
		t.Errorf("report %+v, %+v", r, r.Delta)
	}
	members := catchUpMembers(t, a, r.Name)
	if m := members[table]; m.Increment == nil || m.Pages == 0 || m.Pages > 2 {
		t.Errorf("the table came as %+v", m)
	}
	if m := members["base/1/1249"]; m.Increment == nil || m.Pages != 0 || m.Increment.Size == 0 {
		t.Errorf("what has not changed came as %+v", m)
	}
	if m, ok := members["base/1/1259"]; !ok || m.Increment != nil || m.Size == 0 {
		t.Errorf("what is to come whole came as %+v", m)
	}
	err = filepath.WalkDir(c.Data, func(file string, d os.DirEntry, err error) error {
		name, errRel := filepath.Rel(c.Data, file)
		top := !strings.Contains(name, "/")
		_, found := members[name]
		switch volatile := strings.HasPrefix(name, "pg_wal/") || strings.HasPrefix(name, "pg_notify/") || strings.HasPrefix(name, "pg_subtrans/") ||
			strings.HasPrefix(name, "pg_stat_tmp/") || strings.Contains(name, "pg_internal.init"); {
		case volatile:
		case d.IsDir(), name == "PG_VERSION":
			if !found {
				t.Errorf("%s is missing", name)
			}
		case top || strings.HasPrefix(name, "conf.d/"):
			if found {
				t.Errorf("%s is in it", name)
			}
		case !found:
			t.Errorf("%s is missing", name)
		}
		return errors.Join(err, errRel)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"backup_label", "tablespace_map", "global/pg_control"} {
		if _, ok := members[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
	s, err := a.CatchUps().Sentinel(t.Context(), r.Name)
	if err != nil || !s.CatchUp() || *s.DeltaLSN != since || s.DeltaSource != "lsn" || s.DeltaCount != 1 {
		t.Errorf("sentinel %+v, %v", s, err)
	}
}

// Whichever store call fails, CatchUp says so and nothing of it appears.
func TestCatchUpFailsWhole(t *testing.T) {
	c := cluster(t)
	for how, failAt := range map[string]func(store.Store, int) *storetest.Flaky{"before": storetest.FailAt, "after": storetest.FailAfter} {
		for n := 0; ; n++ {
			m := &storetest.Memory{}
			flaky := failAt(m, n)
			conn := connect(t, c)
			report, err := backup.CatchUp(t.Context(), conn, archive.New(flaky, inMemory), c.Data, backup.Standby{Since: 0x1000028},
				backup.Options{NoWaitWAL: true, Host: "db1", Delta: backup.Delta{Source: backup.PageLSN}})
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
				if _, err := archive.New(m, inMemory).CatchUps().Sentinel(t.Context(), report.Name); err != nil {
					t.Errorf("%s, call %d (%s) failed, no error and no catch-up: %v", how, n, flaky.Calls()[n], err)
				}
				continue
			}
			if !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("%s, call %d (%s) failed, CatchUp returned %v", how, n, flaky.Calls()[n], err)
			}
			for o := range store.Walk(t.Context(), m, "") {
				if o.Name != "holdfast/cluster.json" {
					t.Errorf("%s, call %d (%s) failed, and %s is left", how, n, flaky.Calls()[n], o.Name)
				}
			}
		}
	}
}
