package walpush_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
	"holdfast/internal/walpush"
	"holdfast/test/pgtest"
)

// A worn is a data directory as a server that was killed leaves it: global/pg_control, and pg_wal with some segments, of which the newest is not finished.
type worn struct {
	dir      string
	size     wal.SegmentSize
	data     control.Data
	finished []string // names of the segments that are whole, ascending
	current  string
}

// wear makes such a directory.
func wear(t *testing.T) *worn {
	t.Helper()
	c := pgtest.New(t, pgtest.Require(t, 15), pgtest.Options{SegmentSize: 1 << 20, Settings: map[string]string{"wal_keep_size": "64MB", "wal_recycle": "off"}})
	c.Exec(t, `create table t (n int)`, `checkpoint`)
	w := &worn{dir: c.Data, size: 1 << 20}
	for n := range 6 {
		if n == 3 { // one that fills segments instead of ending them early
			c.Exec(t, `insert into t select g from generate_series(1, 40000) g`)
		}
		c.Exec(t, `insert into t values (1)`)
		c.Value(t, `pg_switch_wal()`)
	}
	c.Exec(t, `insert into t select g from generate_series(1, 1000) g`)
	w.current = c.Value(t, `pg_walfile_name(pg_current_wal_lsn())`)
	c.Server.Kill()
	var err error
	if w.data, _, err = control.Read(filepath.Join(c.Data, control.Name)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(c.Data, "pg_wal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if wal.IsSegment(e.Name()) && e.Name() < w.current {
			w.finished = append(w.finished, e.Name())
		}
	}
	return w
}

// again returns a copy that a test may spoil.
func (w *worn) again(t *testing.T) *worn {
	t.Helper()
	n := *w
	n.dir = t.TempDir()
	for _, dir := range []string{"global", "pg_wal"} {
		if err := os.Mkdir(filepath.Join(n.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range append([]string{control.Name, "pg_wal/" + w.current}, inDir("pg_wal", w.finished)...) {
		n.write(t, name, w.read(t, name))
	}
	return &n
}

func inDir(dir string, names []string) (paths []string) {
	for _, name := range names {
		paths = append(paths, dir+"/"+name)
	}
	return paths
}

func (w *worn) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *worn) write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// stock puts all finished segments but the missing ones into an archive.
func (w *worn) stock(t *testing.T, m *storetest.Memory, missing ...string) {
	t.Helper()
	a := archive.New(m, archive.Options{})
	for _, name := range w.finished {
		if strings.Contains(strings.Join(missing, " "), name) {
			continue
		}
		if _, err := push(t.Context(), a, filepath.Join(w.dir, "pg_wal", name), options()); err != nil {
			t.Fatal(err)
		}
	}
}

func repair(t *testing.T, m *storetest.Memory, w *worn, dry bool) (*walpush.Repaired, error) {
	t.Helper()
	a := archive.New(m, archive.Options{})
	c, err := catalog.Load(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	inventory, err := catalog.LoadWAL(t.Context(), a, w.size)
	if err != nil {
		t.Fatal(err)
	}
	return walpush.Repair(t.Context(), a, w.dir, walpush.Have{Catalog: c, WAL: inventory, Current: c.Current(catalog.Evidence{WAL: inventory})},
		walpush.RepairOptions{Options: options(), DryRun: dry})
}

// What is stored is exactly what is missing and whole; a file that only has the name is passed over, and the report says what is left.
func TestRepair(t *testing.T) {
	whole := wear(t)
	names := whole.finished
	if len(names) < 7 {
		t.Fatalf("%q", names)
	}
	second, third, fifth, newest := names[1], names[2], names[4], names[len(names)-1]
	change := func(name string, f func(b []byte) []byte) func(t *testing.T, w *worn) {
		return func(t *testing.T, w *worn) { w.write(t, "pg_wal/"+name, f(w.read(t, "pg_wal/"+name))) }
	}
	for _, x := range []struct {
		what    string
		missing []string
		spoil   func(t *testing.T, w *worn)
		stored  []string
		passed  string // the first one, and why
		left    int
	}{
		{"nothing is missing", nil, nil, nil, "", 0},
		{"one", []string{third}, nil, []string{third}, "", 0},
		{"oldest first", []string{fifth, second, third}, nil, []string{second, third, fifth}, "", 0},
		{"gone here too", []string{second, third}, func(t *testing.T, w *worn) { os.Remove(filepath.Join(w.dir, "pg_wal", third)) }, []string{second}, "", 1},
		{"recycled: its content is of another place", []string{third}, func(t *testing.T, w *worn) { w.write(t, "pg_wal/"+third, w.read(t, "pg_wal/"+second)) }, nil, third + ": .*its content is WAL from", 1},
		{"half written", []string{fifth}, change(fifth, func(b []byte) []byte { clear(b[len(b)/4:]); return b }), nil, fifth + ": it is not finished", 1},
		{"a bit is wrong", []string{fifth}, change(fifth, func(b []byte) []byte { b[5000] ^= 4; return b }), nil, fifth + ": .*WAL (record|page)", 1},
		{"short", []string{third}, change(third, func(b []byte) []byte { return b[:len(b)-1] }), nil, third + ": .* bytes, but is a segment of", 1},
		{"of another cluster", []string{third}, change(third, func(b []byte) []byte { b[24]++; return b }), nil, third + ": ", 1},
		{"the newest that is whole", []string{newest}, nil, []string{newest}, "", 0},
	} {
		t.Run(x.what, func(t *testing.T) {
			w, m := whole.again(t), &storetest.Memory{}
			w.stock(t, m, x.missing...)
			if x.spoil != nil {
				x.spoil(t, w)
			}
			dry, err := repair(t, m, w, true)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range x.missing {
				if _, err := archive.New(m, archive.Options{}).OpenWAL(t.Context(), name); err == nil {
					t.Errorf("a dry run stored %s", name)
				}
			}
			got, err := repair(t, m, w, false)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got.Stored) != fmt.Sprint(x.stored) || fmt.Sprint(dry) != fmt.Sprint(got) {
				t.Errorf("stored %q, the dry run said %q, want %q", got.Stored, dry.Stored, x.stored)
			}
			for _, name := range x.stored {
				if !bytes.Equal(content(t, archive.New(m, archive.Options{}), name), whole.read(t, "pg_wal/"+name)) {
					t.Errorf("%s has other content", name)
				}
			}
			var passed []string
			for _, p := range got.Passed {
				if p.Name == whole.current {
					continue
				}
				passed = append(passed, p.Name+": "+p.Why)
			}
			if all := strings.Join(passed, "; "); x.passed != "" && !regexp.MustCompile(x.passed).MatchString(all) {
				t.Errorf("passed over %q, want %q", all, x.passed)
			}
			left := 0
			for _, gap := range got.Missing {
				left += int(gap.Last-gap.First) + 1
			}
			if left != x.left {
				t.Errorf("%d are missing, want %d: %+v", left, x.left, got.Missing)
			}
			if _, err := archive.New(m, archive.Options{}).OpenWAL(t.Context(), whole.current); err == nil {
				t.Error("the segment that was not finished is archived")
			}
		})
	}

	t.Run("what was cut off at the end of a record", func(t *testing.T) {
		// As a standby has it that received up to there: the segment ends where a record does, and nothing tells of what is behind.
		w, m := whole.again(t), &storetest.Memory{}
		w.stock(t, m, newest)
		for _, name := range append(names, whole.current) {
			if name > newest {
				os.Remove(filepath.Join(w.dir, "pg_wal", name))
			}
		}
		got, err := repair(t, m, w, false)
		if err != nil || len(got.Stored) > 0 || len(got.Passed) != 1 || !strings.Contains(got.Passed[0].Why, "newest file") {
			t.Errorf("%+v, %v", got, err)
		}
	})

	t.Run("another cluster's archive", func(t *testing.T) {
		m := &storetest.Memory{}
		whole.stock(t, m, third)
		if err := m.Put(t.Context(), "holdfast/cluster.json", strings.NewReader(`{"system_identifier":1}`)); err != nil {
			t.Fatal(err)
		}
		if got, err := repair(t, m, whole, false); !errors.As(err, new(*archive.OwnerError)) {
			t.Errorf("%+v, %v", got, err)
		}
	})

	t.Run("a clone of another timeline", func(t *testing.T) {
		m := &storetest.Memory{}
		whole.stock(t, m, third)
		for n := wal.SegmentNo(1); n < 4; n++ { // the cluster has gone on on timeline 3, and left 1 before all that is here
			if err := m.Put(t.Context(), archive.WALDir+whole.size.Name(3, n)+".zst", strings.NewReader("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Put(t.Context(), archive.WALDir+"00000003.history", strings.NewReader("2\t0/100\tx\n")); err != nil {
			t.Fatal(err)
		}
		a := archive.New(m, archive.Options{})
		c, err := catalog.Load(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		inventory, err := catalog.LoadWAL(t.Context(), a, whole.size)
		if err != nil {
			t.Fatal(err)
		}
		_, err = walpush.Repair(t.Context(), a, whole.dir, walpush.Have{Catalog: c, WAL: inventory, Current: c.Current(catalog.Evidence{WAL: inventory, Server: 3})},
			walpush.RepairOptions{Options: options()})
		if !errors.As(err, new(*walpush.StrangerError)) || !strings.Contains(err.Error(), "neither leads to the other") {
			t.Errorf("%v", err)
		}
	})

	t.Run("whatever fails", func(t *testing.T) {
		for n := 0; ; n++ {
			m := &storetest.Memory{}
			whole.stock(t, m, second, third)
			a := archive.New(m, archive.Options{})
			c, err := catalog.Load(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			inventory, err := catalog.LoadWAL(t.Context(), a, whole.size)
			if err != nil {
				t.Fatal(err)
			}
			f := storetest.FailAt(m, n)
			have := walpush.Have{Catalog: c, WAL: inventory, Current: c.Current(catalog.Evidence{WAL: inventory})}
			got, err := walpush.Repair(t.Context(), archive.New(f, archive.Options{}), whole.dir, have, walpush.RepairOptions{Options: options()})
			if err == nil && len(got.Stored) != 2 || err != nil && !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("call %d: %+v, %v", n, got, err)
			}
			if got, err := repair(t, m, whole, false); err != nil || len(got.Missing) > 0 {
				t.Errorf("call %d: again: %+v, %v", n, got, err)
			}
			if !f.Reached() {
				break
			}
		}
	})
}
