package events_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/catalog"
	"holdfast/internal/events"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
	"holdfast/internal/store/file"
)

const (
	size     = wal.SegmentSize(1 << 20)
	pageLen  = 8192
	database = 5
	first    = 3 // segment
)

var (
	magics = map[int]uint16{13: 0xD106, 17: 0xD116}
	le     = binary.LittleEndian
	began  = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
)

// writer writes WAL as a server does.
type writer struct {
	version int
	wal     []byte // from the first segment on
	prev    wal.LSN
	ends    []wal.LSN // of transactions
}

func (w *writer) lsn() wal.LSN { return size.Start(first) + wal.LSN(len(w.wal)) }

func (w *writer) page(flags uint16, rest int) {
	length := 24
	if uint64(w.lsn())%uint64(size) == 0 {
		flags, length = flags|2, 40
	}
	b := make([]byte, 40)
	le.PutUint16(b, magics[w.version])
	le.PutUint16(b[2:], flags)
	le.PutUint32(b[4:], 1)
	le.PutUint64(b[8:], uint64(w.lsn()))
	le.PutUint32(b[16:], uint32(rest))
	le.PutUint64(b[24:], 7359000000000000001)
	le.PutUint32(b[32:], uint32(size))
	le.PutUint32(b[36:], pageLen)
	w.wal = append(w.wal, b[:length]...)
}

// record writes a record with what it has of blocks, as it is, and what its resource manager adds.
func (w *writer) record(rm, info uint8, xid uint32, blocks, data, main []byte) wal.LSN {
	if len(w.wal)%pageLen == 0 {
		w.page(0, 0)
	}
	lsn := w.lsn()
	r := append(make([]byte, 24), blocks...)
	if len(main) > 255 {
		r = le.AppendUint32(append(r, 254), uint32(len(main)))
	} else if len(main) > 0 {
		r = append(r, 255, uint8(len(main)))
	}
	r = append(append(r, data...), main...)
	le.PutUint32(r, uint32(len(r)))
	le.PutUint32(r[4:], xid)
	le.PutUint64(r[8:], uint64(w.prev))
	r[16], r[17] = info, rm
	table := crc32.MakeTable(crc32.Castagnoli)
	le.PutUint32(r[20:], crc32.Update(crc32.Checksum(r[24:], table), table, r[:20]))
	w.prev = lsn
	for {
		n := min((pageLen-len(w.wal)%pageLen)%pageLen, len(r))
		w.wal, r = append(w.wal, r[:n]...), r[n:]
		if len(r) == 0 {
			break
		}
		w.page(1, len(r))
	}
	for len(w.wal)%8 != 0 {
		w.wal = append(w.wal, 0)
	}
	return lsn
}

// turn goes to the next segment.
func (w *writer) turn() {
	w.record(walrec.RMXLOG, 0x40, 0, nil, nil, nil)
	w.wal = append(w.wal, make([]byte, (int(size)-len(w.wal)%int(size))%int(size))...)
}

// running says that transactions before xid have ended.
func (w *writer) running(xid uint32) {
	b := make([]byte, 20)
	le.PutUint32(b[12:], xid)
	le.PutUint32(b[16:], xid)
	w.record(walrec.RMStandby, 0x10, 0, nil, nil, b)
}

func relation(number uint32) []byte {
	return le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 1663), database), number)
}

// block refers to a block of a file, for which n bytes come.
func block(number uint32, n int) []byte {
	b := []byte{0, 0x20, byte(n), byte(n >> 8)}
	if n == 0 {
		b[1] = 0
	}
	return le.AppendUint32(append(b, relation(number)...), 0)
}

const pgClass = 1259

// insertClass makes a row of pg_class at an offset.
func (w *writer) insertClass(xid uint32, at uint16, oid, number uint32, name string, persistence byte) {
	b := make([]byte, 5+1+4+160)
	b[4] = 24
	le.PutUint32(b[6:], oid)
	row := b[10:]
	copy(row, name)
	le.PutUint32(row[64:], 2200)
	le.PutUint32(row[84:], number)
	row[110], row[111] = persistence, 'r'
	w.record(walrec.RMHeap, 0, xid, block(pgClass, len(b)), b, append(le.AppendUint16(nil, at), 0))
}

// deleteRow deletes a row.
func (w *writer) deleteRow(xid, number uint32, at uint16, flags byte) {
	w.record(walrec.RMHeap, 0x10, xid, block(number, 0), nil, append(le.AppendUint16(le.AppendUint32(nil, 0), at), 0, flags))
}

// create makes a file, of which blocks are written where it is not left empty.
func (w *writer) create(xid, number uint32, filled bool) {
	w.record(walrec.RMStorage, 0x10, xid, nil, nil, le.AppendUint32(relation(number), 0))
	if filled {
		row := make([]byte, 10)
		w.record(walrec.RMHeap, 0, xid, block(number, len(row)), row, append(le.AppendUint16(nil, 1), 0))
	}
}

// commit ends a transaction with which files go.
func (w *writer) commit(xid uint32, files ...uint32) {
	at := began.Add(time.Duration(len(w.ends)) * time.Minute)
	b := le.AppendUint64(nil, uint64(at.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Microseconds()))
	info := uint8(0)
	if len(files) > 0 {
		info = 0x80
		b = le.AppendUint32(le.AppendUint32(b, 1|1<<2), database)
		b = le.AppendUint32(le.AppendUint32(b, 1663), uint32(len(files)))
		for _, f := range files {
			b = append(b, relation(f)...)
		}
	}
	w.ends = append(w.ends, w.record(walrec.RMXact, info, xid, nil, nil, b))
}

// store archives what was written, but not of the segments that are left out.
func (w *writer) store(t *testing.T, root string, without ...wal.SegmentNo) *archive.Archive {
	t.Helper()
	s, err := file.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New(s, archive.Options{})
	w.wal = append(w.wal, make([]byte, (int(size)-len(w.wal)%int(size))%int(size))...)
	no := wal.SegmentNo(first)
	for b := range slices.Chunk(w.wal, int(size)) {
		if !slices.Contains(without, no) {
			if _, err := a.PutWAL(t.Context(), size.Name(1, no), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }); err != nil {
				t.Fatal(err)
			}
		}
		no++
	}
	return a
}

// names knows two tables.
type names struct{}

func (names) Database(context.Context, uint32) (*events.Database, error) {
	return &events.Database{OID: database, Name: "shop", Schemas: map[uint32]string{2200: "public"}, Relations: []events.Named{
		{OID: 20001, Schema: "public", Name: "orders", Kind: events.Table, Persistence: 'p', File: 20001, Namespace: 2200},
		{OID: 20002, Schema: "public", Name: "items", Kind: events.Table, Persistence: 'p', File: 20002, Namespace: 2200},
		{OID: 20003, Schema: "public", Name: "cache", Kind: events.Table, Persistence: 'u', File: 20003, Namespace: 2200},
	}}, nil
}

// scan returns the events of an archive.
func scan(t *testing.T, a *archive.Archive, o events.Options) (found []string, r *events.Report, err error) {
	t.Helper()
	w, err := catalog.LoadWAL(t.Context(), a, size)
	if err != nil {
		t.Fatal(err)
	}
	r, err = events.Scan(t.Context(), a, events.Stretch{WAL: w, Path: catalog.Path{{Timeline: 1}}}, o, func(e *events.Event) error {
		var what []string
		for _, rel := range e.Relations {
			what = append(what, rel.String())
		}
		if e.Name != "" {
			what = append(what, e.Name)
		}
		sign, sure := "", ""
		if e.Destructive {
			sign = "!"
		}
		if !e.Certain {
			sure = "?"
		}
		found = append(found, fmt.Sprintf("%s%s%s %s", sign, e.What, sure, strings.Join(what, " ")))
		return nil
	})
	return found, r, err
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// begin goes to the segment from which all is told.
func begin(version int) *writer {
	w := &writer{version: version}
	w.running(700)
	w.turn()
	return w
}

// A temporary table is no helper of a rewrite.
func TestTruncateBesideTemporaryTable(t *testing.T) {
	for _, version := range []int{13, 17} {
		for _, known := range []bool{true, false} {
			for _, filled := range []bool{true, false} {
				t.Run(fmt.Sprintf("%d, names %v, filled %v", version, known, filled), func(t *testing.T) {
					w := begin(version)
					w.insertClass(800, 9, 30000, 30000, "s", 't')
					w.create(800, 20101, filled)
					w.deleteRow(800, pgClass, 9, 0)
					w.commit(800, 20001)
					var o events.Options
					want := "!truncate public.orders"
					if known {
						o.Names = []events.Names{names{}}
					} else {
						want = "!truncate? file " + blockset.Relation{Tablespace: 1663, Database: database, Number: 20001}.String()
					}
					if filled {
						want = "!truncate? public.orders"
					}
					got, _, err := scan(t, w.store(t, t.TempDir()), o)
					switch {
					case err != nil:
						t.Error(err)
					case filled && !known: // as REINDEX does
						same(t, got)
					default:
						same(t, got, want)
					}
				})
			}
		}
	}
}

// The helper of a rewrite is known by its name.
func TestRewrite(t *testing.T) {
	for _, version := range []int{13, 17} {
		w := begin(version)
		w.insertClass(800, 9, 30000, 30000, "pg_temp_20001", 'p')
		w.create(800, 30000, true)
		w.deleteRow(800, pgClass, 9, 0)
		w.commit(800, 20001)
		a := w.store(t, t.TempDir())
		got, _, err := scan(t, a, events.Options{Names: []events.Names{names{}}})
		if err != nil {
			t.Error(err)
		}
		same(t, got, "rewrite public.orders")
		// Where nothing is known of the file, it may be that of another table.
		got, _, err = scan(t, a, events.Options{})
		if err != nil || len(got) != 1 || !strings.HasPrefix(got[0], "!rewrite? file ") {
			t.Errorf("without names %q, %v", got, err)
		}
	}
}

// truncates writes a transaction that empties a table, in a segment of its own. There are as many as numbers.
func truncates(files ...uint32) *writer {
	w := begin(17)
	for i, number := range files {
		xid := uint32(800 + i)
		w.create(xid, 20101+uint32(i), false)
		w.commit(xid, number)
		w.turn()
	}
	return w
}

// secondPage returns some pages of a segment, from its second on.
func (w *writer) secondPage(no wal.SegmentNo) []byte {
	at := int(no-first)*int(size) + pageLen
	return w.wal[at : at+4*pageLen]
}

// A segment that ends in its midst is damage where others follow, and the end of the WAL where it is the last.
func TestVoidPages(t *testing.T) {
	o := events.Options{Names: []events.Names{names{}}}
	w := begin(17)
	for range 3 {
		w.record(walrec.RMXLOG, 0x10+0x20, 0, nil, nil, make([]byte, 60<<10)) // NEXTOID, which says nothing
		w.turn()
	}
	w.create(800, 20101, false)
	w.commit(800, 20001)
	clear(w.secondPage(first + 2))
	got, r, err := scan(t, w.store(t, t.TempDir()), o)
	if err != nil || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], size.Name(1, first+2)) {
		t.Fatalf("%v, %+v", err, r)
	}
	same(t, got, "missing WAL "+size.Name(1, first+2)+" is damaged", "!truncate public.orders")

	if got, r, err = scan(t, truncates(20001).store(t, t.TempDir()), o); err != nil || len(r.Notes) > 0 {
		t.Errorf("%v, %+v", err, r)
	}
	same(t, got, "!truncate public.orders")
}

// An object that cannot be read is passed over, and told.
func TestUnreadableObject(t *testing.T) {
	o := events.Options{Names: []events.Names{names{}}}
	for name, spoil := range map[string]func([]byte) []byte{
		"corrupt": func(b []byte) []byte { b[0] ^= 0x55; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)/3] },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			a := truncates(20001, 20002, 20003, 20001).store(t, root, first+3)
			path := filepath.Join(root, "wal_005", size.Name(1, first+2)+".zst")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			got, r, err := scan(t, a, o)
			if err != nil || len(r.Notes) != 1 || len(r.Missing) != 1 {
				t.Errorf("%v, %+v", err, r)
			}
			same(t, got, "!truncate public.orders", "missing WAL "+size.Name(1, first+2)+" is damaged",
				"missing WAL "+size.Name(1, first+3)+" to "+size.Name(1, first+3), "!truncate public.orders")
			// Nor does it keep a time from being found.
			w, err := catalog.LoadWAL(t.Context(), a, size)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			_, err = events.Scan(t.Context(), a, events.Stretch{WAL: w, Path: catalog.Path{{Timeline: 1}}, Since: began.Add(3 * time.Minute)}, o, func(e *events.Event) error {
				if e.What == events.Truncate {
					n++
				}
				return nil
			})
			if err != nil || n != 1 {
				t.Errorf("since the last one there are %d, %v", n, err)
			}
		})
	}
}

// What was long before a time is not read, even in a copy of an archive, whose objects say nothing of when they were made; segments without a time are no hindrance.
func TestSeek(t *testing.T) {
	const each = 20
	w := begin(17)
	for i := range each {
		w.create(uint32(800+i), 20101+uint32(i), false)
		w.commit(uint32(800+i), 20001)
		w.turn()
		w.turn() // one in which nothing happens
	}
	a := w.store(t, t.TempDir())
	all, err := catalog.LoadWAL(t.Context(), a, size)
	if err != nil {
		t.Fatal(err)
	}
	for ago := range each {
		n := 0
		s := events.Stretch{WAL: all, Path: catalog.Path{{Timeline: 1}}, Since: began.Add(time.Duration(each-1-ago) * time.Minute)}
		r, err := events.Scan(t.Context(), a, s, events.Options{Names: []events.Names{names{}}}, func(e *events.Event) error {
			if e.What == events.Truncate {
				n++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n != ago+1 || r.Segments > 2*(ago+1)+4 {
			t.Errorf("since the %d. from behind there are %d, by %d segments", ago+1, n, r.Segments)
		}
	}
}

// Where nothing can be read, that is an error.
func TestNothingReadable(t *testing.T) {
	root := t.TempDir()
	a := truncates(20001).store(t, root)
	for no := range wal.SegmentNo(2) {
		if err := os.WriteFile(filepath.Join(root, "wal_005", size.Name(1, first+no)+".zst"), []byte("not zstd"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, err := scan(t, a, events.Options{}); err == nil {
		t.Errorf("got %q", got)
	}
}

// What the archive does not cover of the stretch is told.
func TestCoverage(t *testing.T) {
	w := truncates(20001, 20002, 20003)
	a := w.store(t, t.TempDir())
	log, err := catalog.LoadWAL(t.Context(), a, size)
	if err != nil {
		t.Fatal(err)
	}
	end := w.lsn()
	for _, c := range []struct {
		s              events.Stretch
		noStart, noEnd bool
	}{
		{events.Stretch{}, false, true},
		{events.Stretch{From: size.Start(first) - 8}, true, true},
		{events.Stretch{From: size.Start(first), To: w.ends[1]}, false, false},
		{events.Stretch{Since: began.Add(-time.Hour), Until: began.Add(time.Minute)}, true, false},
		{events.Stretch{Since: began.Add(time.Minute), To: end}, false, false},
		{events.Stretch{Since: began.Add(time.Minute), To: end + wal.LSN(2*size)}, false, true},
	} {
		c.s.WAL, c.s.Path = log, catalog.Path{{Timeline: 1}}
		r, err := events.Scan(t.Context(), a, c.s, events.Options{}, func(*events.Event) error { return nil })
		if err != nil || r.NoBeginning != c.noStart || r.NoEnd != c.noEnd {
			t.Errorf("%+v: %+v, %v", c, r, err)
		}
	}
}

// What was streamed of the segment that is being written is read too, also where it is the first of a new timeline.
func TestPieces(t *testing.T) {
	for what, c := range map[string]struct {
		path catalog.Path
		of   wal.Timeline
		want uint64
	}{
		"of the timeline":                  {catalog.Path{{Timeline: 1}}, 1, 3},
		"of a new one":                     {catalog.Path{{Timeline: 1, End: size.Start(first+3) + 100}, {Timeline: 2, Begin: size.Start(first+3) + 100}}, 2, 3},
		"of one that the path ends before": {catalog.Path{{Timeline: 1}}, 2, 2},
	} {
		w := truncates(20001, 20002, 20003)
		a := w.store(t, t.TempDir(), first+3)
		if _, err := a.PutTail(t.Context(), size.Name(c.of, first+3), 0, int64(size/2), bytes.NewReader(w.wal[3*size:][:size/2])); err != nil {
			t.Fatal(err)
		}
		log, err := catalog.LoadWAL(t.Context(), a, size)
		if err != nil {
			t.Fatal(err)
		}
		r, err := events.Scan(t.Context(), a, events.Stretch{WAL: log, Path: c.path}, events.Options{}, func(*events.Event) error { return nil })
		if err != nil || r.Commits != c.want {
			t.Errorf("%s: %d transactions, want %d: %+v, %v", what, r.Commits, c.want, r, err)
		}
	}
}

// Before PostgreSQL 15 nothing but rows of pg_class says that a table was dropped. Where those were not read, its file went and there is no other.
func TestDropBegunBefore(t *testing.T) {
	w := &writer{version: 13}
	w.turn()
	w.record(walrec.RMXLOG, 0x30, 800, nil, nil, make([]byte, 4))
	w.turn()
	w.commit(800, 20001)
	got, _, err := scan(t, w.store(t, t.TempDir()), events.Options{Names: []events.Names{names{}}})
	if err != nil {
		t.Error(err)
	}
	same(t, got, "!drop? public.orders")

	// An unlogged table has a new file that the log does not tell of.
	w = &writer{version: 13}
	w.turn()
	w.record(walrec.RMXLOG, 0x30, 800, nil, nil, make([]byte, 4))
	w.turn()
	w.commit(800, 20003)
	if got, _, err = scan(t, w.store(t, t.TempDir()), events.Options{Names: []events.Names{names{}}}); err != nil {
		t.Error(err)
	}
	same(t, got, "truncate? public.cache")

	// So has one that becomes unlogged (ALTER TABLE SET UNLOGGED).
	w = begin(13)
	w.insertClass(800, 9, 30000, 30000, "pg_temp_20001", 'u')
	w.deleteRow(800, pgClass, 9, 0)
	w.commit(800, 20001)
	if got, _, err = scan(t, w.store(t, t.TempDir()), events.Options{Names: []events.Names{names{}}}); err != nil {
		t.Error(err)
	}
	same(t, got, "rewrite public.orders")
}

// An UPDATE that moves rows to another partition deletes none.
func TestMovedRows(t *testing.T) {
	w := begin(17)
	for i := range uint16(30) {
		w.deleteRow(800, 20001, i+1, 1<<4)
	}
	w.commit(800)
	for i := range uint16(30) {
		w.deleteRow(801, 20002, i+1, 0)
	}
	w.commit(801)
	got, _, err := scan(t, w.store(t, t.TempDir()), events.Options{Rows: 20, Names: []events.Names{names{}}})
	if err != nil {
		t.Error(err)
	}
	same(t, got, "!update public.orders", "!delete public.items")
}
