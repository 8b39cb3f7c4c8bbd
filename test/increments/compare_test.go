package increments_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/pg/page"
	"holdfast/test/pgtest"
)

// What PostgreSQL leaves undefined in a data directory that was restored, recovered to the end of the archive, and shut down.
//
// Files: those that a server makes anew or that no backup contains (noFile has them, with the reason), and pg_control, which has the time of the
// last checkpoint in it; what it says of transactions is compared by pg_controldata.
//
// Bytes, where the cluster has data checksums or wal_log_hints: of the first page of an SP-GiST index, which pages had room last, which PostgreSQL
// keeps there without WAL and checks before it relies on it (SpGistUpdateMetaPage). All else agrees byte for byte, in all forks of all relations and in
// pg_xact, pg_multixact, pg_commit_ts and pg_twophase.
//
// Without both PostgreSQL changes pages and writes no WAL of it: a reader notes what it found out of a row's transactions, of an index entry
// without a row, of room on a page. An increment from WAL cannot know, and the change does not move the page's LSN. So there mask leaves out, in the
// main fork:
//
//   - of a row: four bits of t_infomask, whether xmin and xmax are known to be committed or aborted. That a row is frozen is no hint, and is compared.
//   - of an index entry: whether its line pointer is dead; of an index page: that it has such entries.
//   - of a page: pd_prune_xid, and the flags that tell of free line pointers and of no room. PD_ALL_VISIBLE is no hint: the visibility map relies on it.
//   - pd_checksum, which follows.
//
// Where a standby took over that had been restored from another backup than the one the chain goes on from, its pages come from WAL and those of the
// chain from the former server. Then the same is left out, since of several such changes to a page WAL has the first one after a checkpoint only;
// unused room between pd_lower and pd_upper, which in a replayed image of a page is zeros; and t_cid of a row, the number of the command within the
// transaction that wrote it, which means nothing once that has ended and is zero in a replayed row (heap_mask in access/heap). And of a sequence what
// it gave last: WAL has it up to 32 values ahead (SEQ_LOG_VALS), which a replayed page has and the former server's had not. Elsewhere all that is
// compared too.

// noFile is what is left out of the comparison, by path in the data directory.
var noFile = regexp.MustCompile(`^(` + strings.Join([]string{
	`(pg_wal|pg_stat|pg_stat_tmp|pg_notify|pg_subtrans|pg_serial|pg_snapshots|pg_dynshmem|pg_replslot)/.*`, // emptied or made anew when a server starts
	`(.*/)?pg_internal\.init(\.\d+)?`,            // a cache
	`global/pg_control`,                          // see above
	`postmaster\.(opts|pid)`, `current_logfiles`, // of the server that ran
	`backup_label\.old`, `tablespace_map(\.old)?`, `backup_manifest`, // of the backup, not of the cluster
	`postgresql\.auto\.conf(\.[^/]*)?`, `[a-z]+\.signal`, // of the restore
}, "|") + `)$`)

// relation is the path of a file of a relation: its fork and the number of its segment.
var relation = regexp.MustCompile(`^(?:global|base/\d+|pg_tblspc/\d+/[^/]+/\d+)/\d+(_fsm|_vm|_init)?(?:\.(\d+))?$`)

// files lists the files of a data directory and of its tablespaces, by their paths in it.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	walk := func(root, prefix string) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if rel = filepath.Join(prefix, rel); err == nil && d.Type().IsRegular() && !noFile.MatchString(rel) {
				found[rel] = path
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	walk(dir, "")
	spaces, err := os.ReadDir(filepath.Join(dir, "pg_tblspc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range spaces {
		if s.Type()&fs.ModeSymlink != 0 {
			link := filepath.Join(dir, "pg_tblspc", s.Name())
			to, err := filepath.EvalSymlinks(link)
			if err != nil {
				t.Fatal(err)
			}
			walk(to, filepath.Join("pg_tblspc", s.Name()))
		}
	}
	return found
}

// leniency is what of pages is left out of a comparison.
type leniency int

const (
	exactly   leniency = iota
	noHints            // what is no WAL of
	noHistory          // and what a page that was replayed has lost
)

// differences lists where two data directories differ, each a line: file by file, page by page. Leniency is for the pages of main forks. The servers
// must have been shut down.
func differences(t testing.TB, got, want string, how leniency) (all []string) {
	t.Helper()
	a, b := files(t, got), files(t, want)
	paths := maps.Clone(a)
	maps.Copy(paths, b)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		switch {
		case a[path] == "":
			all = append(all, path+": is not there")
			continue
		case b[path] == "":
			all = append(all, path+": is there, and should not be")
			continue
		}
		x, err1 := os.ReadFile(a[path])
		y, err2 := os.ReadFile(b[path])
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if bytes.Equal(x, y) {
			continue
		}
		if len(x) != len(y) {
			all = append(all, fmt.Sprintf("%s: %d bytes, want %d", path, len(x), len(y)))
		}
		m := relation.FindStringSubmatch(path)
		if m == nil {
			all = append(all, fmt.Sprintf("%s: differs from byte %d on", path, firstDifference(x, y)))
			continue
		}
		segment, _ := strconv.Atoi(m[2]) // "" is the first
		pages := how
		if m[1] != "" {
			pages = exactly
		}
		all = append(all, differentPages(path, x, y, segment*131072, pages)...)
	}
	return all
}

// differentPages compares two files of a relation as far as both go; first is the number of their first block.
func differentPages(path string, x, y []byte, first int, how leniency) (all []string) {
	for i := 0; i+page.Size <= min(len(x), len(y)); i += page.Size {
		p, q := x[i:i+page.Size], y[i:i+page.Size]
		if bytes.Equal(p, q) {
			continue
		}
		hp, _ := page.ReadHeader(p)
		hq, _ := page.ReadHeader(q)
		if p, q = withoutCache(p), withoutCache(q); bytes.Equal(p, q) {
			continue
		}
		if how != exactly {
			p, q = mask(p), mask(q)
		}
		if how == noHistory {
			p, q = withoutHistory(p), withoutHistory(q)
		}
		if bytes.Equal(p, q) {
			continue
		}
		at := firstDifference(p, q)
		all = append(all, fmt.Sprintf("%s: block %d, a page of %s: %d bytes differ, from byte %d on, % x, want % x; LSN %s, want %s", path, first+i/page.Size,
			kindOf(y[i:i+page.Size]), countDifferences(p, q), at, p[at:min(at+8, len(p))], q[at:min(at+8, len(q))], hp.LSN, hq.LSN))
	}
	return all
}

func firstDifference(x, y []byte) int {
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return i
		}
	}
	return min(len(x), len(y))
}

func countDifferences(x, y []byte) (n int) {
	for i := range x {
		if x[i] != y[i] {
			n++
		}
	}
	return n
}

// kind is what a page is of, as far as it matters for hints.
type kind string

const (
	heap     kind = "a table"
	sequence kind = "a sequence"
	btree    kind = "a btree index"
	hash     kind = "a hash index"
	gist     kind = "a gist index"
	spgist   kind = "an spgist index"
	others   kind = "another index"
	emptyOne kind = "nothing yet"
)

// kindOf tells by what access methods keep at the end of their pages, as PostgreSQL's own tools do (the comments at the page ids in
// access/hash.h, gist.h, spgist_private.h, brin_page.h and nbtree.h say so).
func kindOf(p []byte) kind {
	h, err := page.ReadHeader(p)
	if err != nil || h.IsNew() || h.Check() != nil {
		return emptyOne
	}
	const sequenceMagic, hashID, gistID, spgistID, largestCycle = 0x1717, 0xFF80, 0xFF81, 0xFF82, 0xFF7F
	switch special := p[h.Special:]; len(special) {
	case 0:
		return heap
	case 8:
		if binary.LittleEndian.Uint32(special) == sequenceMagic {
			return sequence
		}
		if binary.LittleEndian.Uint16(special[6:]) == spgistID {
			return spgist
		}
	case 16:
		switch id := binary.LittleEndian.Uint16(special[14:]); {
		case id == hashID:
			return hash
		case id == gistID:
			return gist
		case id <= largestCycle:
			return btree
		}
	}
	return others
}

// withoutCache returns the first page of an SP-GiST index without what it says of the pages that were used last (SpGistMetaPageData in
// access/spgist_private.h); other pages as they are.
func withoutCache(p []byte) []byte {
	const magic, isMeta, from, to = page.HeaderLen, 1, page.HeaderLen + 4, page.HeaderLen + 4 + 8*8
	if kindOf(p) != spgist || binary.LittleEndian.Uint16(p[len(p)-8:])&isMeta == 0 || binary.LittleEndian.Uint32(p[magic:]) != 0xBA0BABEE {
		return p
	}
	p = bytes.Clone(p)
	clear(p[from:to])
	clear(p[8:10]) // pd_checksum
	return p
}

// withoutHistory returns a page with zeros between pd_lower and pd_upper, as t_cid of its rows with what says how to read that, and as the row of a sequence behind its header.
func withoutHistory(p []byte) []byte {
	k := kindOf(p)
	if k == emptyOne {
		return p
	}
	h, _ := page.ReadHeader(p)
	p = bytes.Clone(p)
	clear(p[h.Lower:h.Upper])
	if k == sequence {
		if offset, _ := linePointer(p, page.HeaderLen); offset+24 <= int(h.Special) {
			clear(p[offset+24 : h.Special])
		}
	}
	for at := page.HeaderLen; (k == heap || k == sequence) && at+4 <= int(h.Lower); at += 4 {
		if offset, state := linePointer(p, at); state == normal && offset+24 <= len(p) {
			clear(p[offset+8 : offset+12])
			p[offset+20] &^= 1 << 5 // HEAP_COMBOCID, by which t_cid is of two commands
		}
	}
	return p
}

// What line pointers say of what they point to.
const (
	normal = 1
	dead   = 3
)

// linePointer reads the line pointer at a place of a page: an offset of 15 bits, a state of 2, a length of 15.
func linePointer(p []byte, at int) (offset int, state uint32) {
	line := binary.LittleEndian.Uint32(p[at:])
	return int(line & 0x7FFF), line >> 15 & 3
}

// mask returns a page without what a reader may change and writes no WAL of.
func mask(original []byte) []byte {
	k := kindOf(original)
	if k == emptyOne {
		return original
	}
	p := bytes.Clone(original)
	le := binary.LittleEndian
	h, _ := page.ReadHeader(p)
	clearBits := func(at int, bits uint16) { le.PutUint16(p[at:], le.Uint16(p[at:])&^bits) }
	const hasFreeLines, pageFull = 1, 2
	le.PutUint16(p[8:], 0)  // pd_checksum
	le.PutUint32(p[20:], 0) // pd_prune_xid
	clearBits(10, hasFreeLines|pageFull)

	// Flags of index pages are at the same place in all three: of entries that are dead, and of pages without entries.
	flags := int(h.Special) + 12
	const btreeGarbage, btreeMeta = 1 << 6, 1 << 3
	const hashGarbage, hashNoEntries = 1 << 7, 1<<2 | 1<<3
	const gistGarbage = 1 << 4
	switch k {
	case btree:
		if le.Uint16(p[flags:])&btreeMeta != 0 {
			return p
		}
		clearBits(flags, btreeGarbage)
	case hash:
		if le.Uint16(p[flags:])&hashNoEntries != 0 {
			return p
		}
		clearBits(flags, hashGarbage)
	case gist:
		clearBits(flags, gistGarbage)
	case spgist, others:
		return p
	}
	const xmin, xmax = 0x0300, 0x0C00 // HEAP_XMIN_FROZEN is both bits of xmin
	for at := page.HeaderLen; at+4 <= int(h.Lower); at += 4 {
		offset, state := linePointer(p, at)
		if k != heap && k != sequence {
			if state == dead {
				le.PutUint32(p[at:], le.Uint32(p[at:])&^(3<<15)|normal<<15)
			}
			continue
		}
		if infomask := offset + 20; state == normal && infomask+2 <= len(p) {
			if le.Uint16(p[infomask:])&xmin != xmin {
				clearBits(infomask, xmin)
			}
			clearBits(infomask, xmax)
		}
	}
	return p
}

// controlLines are those of pg_controldata that two recovered copies have in common.
var controlLines = regexp.MustCompile(`(?m)^(Database system identifier|Database cluster state|Latest checkpoint's (TimeLineID|Next\w+|oldest\w+)|Data page checksum version|wal_level setting|wal_log_hints setting):.*$`)

// controlData is what pg_control says of transactions.
func controlData(t testing.TB, major int, dir string) string {
	t.Helper()
	out, err := pgtest.Command(t, pgtest.Tool(t, major, "pg_controldata"), "-D", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("pg_controldata: %v\n%s", err, out)
	}
	return strings.Join(controlLines.FindAllString(string(out), -1), "\n")
}

// same fails the test when two directories of servers that were shut down differ.
func same(t testing.TB, what string, major int, got, want string, how leniency) {
	t.Helper()
	if x, y := controlData(t, major, got), controlData(t, major, want); x != y {
		t.Errorf("%s: pg_control:\n%s\nwant:\n%s", what, x, y)
	}
	d := differences(t, got, want, how)
	if len(d) > 0 {
		t.Errorf("%s: %d differences from the full backup:\n    %s", what, len(d), strings.Join(d[:min(len(d), 30)], "\n    "))
	}
}

// The comparison sees every byte of a page but for the few it is meant not to see, whatever the page is of; and every file.
func TestComparisonSeesDamage(t *testing.T) {
	t.Parallel()
	p := pgtest.Require(t, 17)
	c := pgtest.New(t, p, pgtest.Options{Settings: map[string]string{"autovacuum": "off"}})
	c.Exec(t, `create table t (id int primary key, v text, tags int[], at point)`,
		`insert into t select g, md5(g::text), array[g % 17], point(g % 100, g % 37) from generate_series(1, 500) g`, `create sequence s`,
		`create index on t using hash (v)`, `create index on t using gin (tags)`, `create index on t using gist (at)`, `create index on t using spgist (at)`,
		`create index on t using brin (id)`, `delete from t where id % 5 = 0`, `vacuum t`)
	c.Stop(t)
	seen := map[kind]int{}
	for path, at := range files(t, c.Data) {
		m := relation.FindStringSubmatch(path)
		if m == nil || m[1] != "" {
			continue
		}
		b, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		for ; len(b) >= page.Size; b = b[page.Size:] {
			p := b[:page.Size]
			k := kindOf(p)
			if seen[k]++; seen[k] > 3 {
				continue
			}
			h, _ := page.ReadHeader(p)
			may := map[leniency]int{exactly: 0, noHints: 7, noHistory: 7 + int(h.Upper-h.Lower)} // pd_checksum, flags, pd_prune_xid
			if k == spgist {
				may[exactly] = 64 + 2
				may[noHints], may[noHistory] = may[noHints]+64, may[noHistory]+64
			}
			if k == heap || k == sequence || k == btree || k == hash || k == gist {
				lines := int(h.Lower-page.HeaderLen)/4 + 1 // and the flags of an index page
				may[noHints], may[noHistory] = may[noHints]+lines, may[noHistory]+lines
				if k == heap || k == sequence {
					may[noHistory] += 4 * lines
				}
				if k == sequence {
					may[noHistory] += int(h.Special-h.Upper) - 24 // behind the header of its row
				}
			}
			if k == emptyOne {
				may = map[leniency]int{}
			}
			for how, most := range may {
				unseen := 0
				for i := range p {
					q := bytes.Clone(p)
					q[i] ^= 0xFF
					if len(differentPages(path, q, p, 0, how)) == 0 {
						unseen++
					}
				}
				if unseen > most {
					t.Errorf("%s, a page of %s: a change to %d of its bytes is not seen at leniency %d, %d may be", path, k, unseen, how, most)
				}
			}
		}
	}
	for _, k := range []kind{heap, sequence, btree, hash, gist, spgist, others} {
		if seen[k] == 0 {
			t.Errorf("there was no page of %s", k)
		}
	}
	other := filepath.Join(pgtest.Dir(t), "data")
	if out, err := pgtest.Command(t, "cp", "-a", c.Data, other).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if d := differences(t, other, c.Data, exactly); len(d) > 0 {
		t.Errorf("a copy differs: %v", d)
	}
	for _, damage := range []func(path string) error{
		os.Remove,
		func(path string) error { return os.WriteFile(path+"0", nil, 0o600) },
		func(path string) error { return os.Truncate(path, page.Size) },
	} {
		if err := damage(filepath.Join(other, "base/5/1259")); err != nil { // pg_class
			t.Fatal(err)
		}
		if d := differences(t, other, c.Data, noHistory); len(d) == 0 {
			t.Error("what was done to a file is not seen")
		}
		if out, err := pgtest.Command(t, "cp", "-a", filepath.Join(c.Data, "base/5/1259"), filepath.Join(other, "base/5/1259")).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
		if err := os.RemoveAll(filepath.Join(other, "base/5/12590")); err != nil {
			t.Fatal(err)
		}
	}
}
