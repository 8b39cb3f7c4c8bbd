package faults_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/compress"
	"holdfast/test/faults"
	"holdfast/test/pgtest"
	"holdfast/test/places"
	"holdfast/test/site"
)

const (
	segments    = 200
	segmentSize = 4 << 20
	trip        = 30 * time.Millisecond
)

// primary is a server that keeps all its WAL, and what it puts into its archive is up to the test. Some of its data cannot be compressed.
func primary(t *testing.T, root string) *site.Site {
	t.Helper()
	s := site.In(t, pgtest.Require(t, 15), pgtest.Options{SegmentSize: segmentSize, Settings: map[string]string{
		"archive_command": "/bin/true", "wal_keep_size": "4GB", "max_wal_size": "4GB", "autovacuum": "off",
	}}, root)
	s.Exec(t, `create table log (n int, what text)`,
		`create table noise as select g as id, string_agg(sha512(random()::text::bytea)::text, '') as what
			from generate_series(1, 5000) g, generate_series(1, 50) group by g`)
	return s
}

// With a long way to S3, and one request of a hundred failing on it, a backup is taken, two hundred segments are archived and both come
// back: nothing is lost and nothing is there twice. How fast that is, and how fast without, is told.
func TestFaults(t *testing.T) {
	g := places.NewS3(t)
	s := primary(t, g.Root())
	address := strings.TrimPrefix(g.URL, "http://")
	front := faults.NewFront(t, g.URL, faults.OneOf(100, 1))
	ways := []struct {
		name, title, url string
		first            string // segment of the backup
	}{
		{name: "near", title: "no latency, no faults", url: faults.NewLine(t, address, 0).URL()},
		{name: "far", title: fmt.Sprintf("%v, no faults", trip), url: faults.NewLine(t, address, trip).URL()},
		{name: "bad", title: fmt.Sprintf("%v, 1 %% fail", trip), url: faults.NewLine(t, front.Addr, trip).URL()},
	}
	at := func(way int) *site.Site {
		here := *s
		here.Root, here.Env = filepath.Join(g.Root(), ways[way].name), g.Env(ways[way].url, "WALG_STORAGE_PREFIX="+ways[way].name, "S3_MAX_PART_SIZE=5MiB")
		return &here
	}
	rates := make([][]string, len(ways))
	timed := func(way int, unit string, amount float64, do func()) {
		begun := time.Now()
		do()
		rates[way] = append(rates[way], fmt.Sprintf("%5.0f %s/s", amount/time.Since(begun).Seconds(), unit))
	}

	size := mib(t, filepath.Join(s.Data, "base"))
	for way := range ways {
		timed(way, "MiB", size, func() { ways[way].first = strings.TrimPrefix(at(way).Push(t, "--no-wait-wal"), "base_") })
	}
	for n := range segments {
		s.Exec(t, fmt.Sprintf(`insert into log select %d, string_agg(md5(random()::text), '') from generate_series(1, 30000)`, n), `select pg_switch_wal()`)
	}
	want := map[string]string{"log": site.Rows(t, s.Cluster, "log"), "noise": site.Rows(t, s.Cluster, "noise")}
	s.Exec(t, `select pg_logical_emit_message(false, 'faults', 'x')`) // or there might be nothing to switch
	last := s.Value(t, `pg_walfile_name(pg_switch_wal())`)
	s.Stop(t)
	names := slices.DeleteFunc(segmentsOf(t, s.Data), func(name string) bool { return name < ways[0].first || name > last })
	if len(names) < segments {
		t.Fatalf("only %d segments", len(names))
	}
	for way := range ways {
		dir := ready(t, s.Data, names)
		timed(way, "segments", float64(len(names)), func() {
			for _, name := range names { // as archive_command would be called
				at(way).OK(t, "wal-push", filepath.Join(dir, name))
			}
		})
		for _, name := range names { // and again, as after a crash
			if name == names[0] || name == names[len(names)-1] {
				at(way).OK(t, "wal-push", filepath.Join(dir, name))
			}
		}
	}
	var restored string
	for way := range ways {
		timed(way, "MiB", size, func() { restored = at(way).Fetch(t, "--target", "latest") })
	}
	c := at(len(ways)-1).Open(t, restored) // by the bad way
	site.AwaitRecovery(t, c)
	for table, want := range want {
		if got := site.Rows(t, c, table); got != want {
			t.Errorf("%s came back as %s, was %s", table, got, want)
		}
	}
	for way := range ways {
		whole(t, at(way), names, "base_"+ways[way].first)
	}
	for _, fault := range faults.Passing {
		if front.Count(fault) == 0 {
			t.Errorf("no request failed so: %s", fault)
		}
	}
	unfinished(t, g, front)
	t.Logf("%s", front)
	for way, r := range rates {
		t.Logf("%-22s backup-push %s, wal-push %s, backup-fetch %s", ways[way].title, r[0], r[1], r[2])
	}
}

// segmentsOf lists the segments in the pg_wal of a data directory.
func segmentsOf(t *testing.T, data string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(data, "pg_wal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if regexp.MustCompile(`^[0-9A-F]{24}$`).MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// ready returns a directory with segments that wait to be archived.
func ready(t *testing.T, data string, names []string) string {
	t.Helper()
	dir := filepath.Join(pgtest.Dir(t), "pg_wal")
	if err := os.MkdirAll(filepath.Join(dir, "archive_status"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		err := os.Link(filepath.Join(data, "pg_wal", name), filepath.Join(dir, name))
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "archive_status", name+".ready"), nil, 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	pgtest.Give(t, dir)
	return dir
}

// whole fails the test unless the archive has each segment once, as it was, and the backups, and nothing besides.
func whole(t *testing.T, s *site.Site, names []string, backups ...string) {
	t.Helper()
	var archived []string
	for _, object := range s.Objects(t) {
		name, ok := strings.CutPrefix(object, "wal_005/")
		if !ok {
			continue
		}
		name, method := compress.Split(name)
		archived = append(archived, name)
		f, err := os.Open(filepath.Join(s.Root, object))
		if err != nil {
			t.Fatal(err)
		}
		r := compress.Decompress(f, method)
		got, err1 := io.ReadAll(r)
		want, err2 := os.ReadFile(filepath.Join(s.Data, "pg_wal", name))
		if err := errors.Join(err1, err2, r.Close(), f.Close()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what PostgreSQL wrote: %v", object, err)
		}
	}
	slices.Sort(archived)
	if !slices.Equal(archived, names) {
		t.Errorf("the archive has %d segments of %d: %q", len(archived), len(names), archived)
	}
	if len(backups) > 0 {
		if got := s.Backups(t); !slices.Equal(got, backups) {
			t.Errorf("the archive has the backups %q, and was given %q", got, backups)
		}
	}
	s.NoTrace(t, backups...)
}

// unfinished fails the test when the service holds more unfinished uploads than answers were lost: of those nobody can know.
func unfinished(t *testing.T, g *places.S3, front *faults.Front) {
	t.Helper()
	uploads, err := filepath.Glob(filepath.Join(g.Dir, "archive", ".sgwtmp", "multipart", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	if n := front.Count(faults.Lost) + front.Count(faults.Truncated); len(uploads) > n {
		t.Errorf("%d uploads are unfinished, and %d answers were lost", len(uploads), n)
	}
}

// mib returns how much is below a directory.
func mib(t *testing.T, dir string) float64 {
	t.Helper()
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return float64(sum) / (1 << 20)
}
