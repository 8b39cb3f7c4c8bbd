package walrec_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
	"holdfast/test/pgtest"
)

// managers are pg_waldump's names of resource managers, by their numbers.
var managers = []string{"XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2", "Heap",
	"Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic", "LogicalMessage"}

var (
	dumpLine  = regexp.MustCompile(`^rmgr: (\S+) +len \(rec/tot\): +\d+/ *(\d+), tx: +(\d+), lsn: ([0-9A-F/]+), prev ([0-9A-F/]+), desc: `)
	dumpBlock = regexp.MustCompile(`, blkref #(\d+): rel (\d+)/(\d+)/(\d+)(?: fork (\w+))? blk (\d+)( FPW)?( for WAL verification)?`)
)

// line is a record as pg_waldump prints it, as far as we care.
func line(r *walrec.Record) string {
	var b strings.Builder
	manager := strconv.Itoa(int(r.RM))
	if int(r.RM) < len(managers) {
		manager = managers[r.RM]
	}
	fmt.Fprintf(&b, "%s tot %d tx %d lsn %s prev %s", manager, r.Length, r.XID, r.LSN, r.Prev)
	for _, k := range r.Blocks {
		fmt.Fprintf(&b, ", #%d %s %d", k.ID, blockset.Key{Relation: k.Rel, Fork: k.Fork}, k.Block)
		if k.Image {
			fmt.Fprintf(&b, " image, applied %v", k.Apply)
		}
	}
	return b.String()
}

func parseDump(t *testing.T, s string) string {
	t.Helper()
	m := dumpLine.FindStringSubmatch(s)
	if m == nil {
		t.Fatalf("pg_waldump printed %q", s)
	}
	lsn, err1 := wal.ParseLSN(m[4])
	prev, err2 := wal.ParseLSN(m[5])
	if err1 != nil || err2 != nil {
		t.Fatalf("pg_waldump printed %q", s)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s tot %s tx %s lsn %s prev %s", m[1], m[2], m[3], lsn, prev)
	for _, k := range dumpBlock.FindAllStringSubmatch(s, -1) {
		fork := k[5]
		if fork == "" {
			fork = "main"
		}
		fmt.Fprintf(&b, ", #%s %s/%s/%s %s %s", k[1], k[2], k[3], k[4], fork, k[6])
		if k[7] != "" {
			fmt.Fprintf(&b, " image, applied %v", k[8] == "")
		}
	}
	return b.String()
}

// files reads the files at paths one after the other.
func files(t testing.TB, paths []string) io.Reader {
	readers := make([]io.Reader, len(paths))
	for i, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		readers[i] = f
	}
	return io.MultiReader(readers...)
}

// sizes are different segment sizes for different versions.
func sizes(major int) wal.SegmentSize {
	switch major {
	case 10: // initdb has no choice
		return 0
	case 13, 17, 12:
		return 1 << 20
	case 18, 11:
		return 64 << 20
	}
	return 16 << 20
}

// agreeWithWaldump compares every record with what pg_waldump makes of it. The server must have been stopped.
func agreeWithWaldump(t *testing.T, c *pgtest.Cluster) {
	waldump := pgtest.Tool(t, c.Programs.Major, "pg_waldump")
	paths, _ := segments(t, c)
	r, err := walrec.NewReader(files(t, paths), 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := pgtest.Command(t, waldump, "-p", c.Data+"/pg_wal", "-s", r.Header().Address.String())
	cmd.Env = append(cmd.Environ(), "TZ=UTC")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 16<<20) // it prints a logical message's bytes in full
	count, bytes := 0, uint64(0)
	kinds, tells := map[string]int{}, map[string]int{}
	images := 0
	for {
		rec, err := r.Next()
		if err != nil {
			if !errors.Is(err, walrec.ErrEnd) {
				t.Fatal(err)
			}
			break
		}
		if !lines.Scan() {
			t.Fatalf("pg_waldump ends before %s: %v", line(rec), lines.Err())
		}
		if got, want := line(rec), parseDump(t, lines.Text()); got != want {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
		sameTold(t, rec, lines.Text(), tells)
		count, bytes = count+1, bytes+uint64(rec.Length)
		kinds[managers[rec.RM]]++
		for _, b := range rec.Blocks {
			if b.Image {
				images++
			}
		}
	}
	if lines.Scan() {
		t.Errorf("pg_waldump goes on with %s", lines.Text())
	}
	cmd.Wait() // it fails where the WAL ends
	for _, kind := range []string{"end", "checkpoint", "point", "creates", "drops", "makes", "running", "map", "inserts", "deletes", "updates", "locks"} {
		if tells[kind] == 0 {
			t.Errorf("no record tells of what %s", kind)
		}
	}
	var seen []string
	for _, name := range managers {
		if kinds[name] == 0 && name != "Generic" { // of extensions
			t.Errorf("no record of %s", name)
		}
		seen = append(seen, name+" "+strconv.Itoa(kinds[name]))
	}
	slices.Sort(seen)
	t.Logf("%d records, %d bytes, %d images: %s", count, bytes, images, strings.Join(seen, ", "))
}
