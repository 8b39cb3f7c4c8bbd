package verify_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/pg/control"
	"holdfast/internal/pg/manifest"
	"holdfast/internal/pg/page"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

const segmentSize = wal.SegmentSize(1 << 20)

// maker makes archives of a small cluster. What two seeds make has the same names and other content.
type maker struct {
	t       *testing.T
	seed    uint64
	random  *rand.Rand
	store   store.Store
	options archive.Options
	control []byte
	system  uint64
	last    *archive.Sentinel // of the newest backup
	name    string
	log     *log
	now     time.Time // when a backup is taken; zero: by the log
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// newMaker makes an archive without anything in it.
func newMaker(t *testing.T, seed uint64, s store.Store, o archive.Options) *maker {
	t.Helper()
	m := &maker{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 1)), store: s, options: o}
	found, err := filepath.Glob("../pg/control/testdata/*15*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range found {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := control.Decode(b); err == nil && d.Major == 15 {
			m.control, m.system = b, d.SystemIdentifier
			const crc, segment, checksums = 288, 216 + 12, 216 + 36
			binary.LittleEndian.PutUint32(m.control[segment:], uint32(segmentSize))
			binary.LittleEndian.PutUint64(m.control[24:], 1_700_000_000+seed) // when it was written
			binary.LittleEndian.PutUint32(m.control[checksums:], 1)
			binary.LittleEndian.PutUint32(m.control[crc:], crc32.Checksum(m.control[:crc], castagnoli))
		}
	}
	if d, err := control.Decode(m.control); err != nil || d.ChecksumVersion != 1 {
		t.Fatal("no pg_control of PostgreSQL 15 that will do", err)
	}
	m.log = &log{system: m.system, timeline: 1, start: segmentSize.Start(2), random: rand.New(rand.NewPCG(seed, 2))}
	return m
}

func (m *maker) archive() *archive.Archive { return archive.New(m.store, m.options) }

// pages makes n pages with checksums, of a relation's file that begins with block first.
func (m *maker) pages(n int, first uint32) []byte {
	b := make([]byte, n*page.Size)
	for i := range n {
		p := b[i*page.Size:][:page.Size]
		le := binary.LittleEndian
		le.PutUint32(p[4:], uint32(m.random.IntN(1000))) // LSN
		le.PutUint16(p[12:], 28)
		le.PutUint16(p[14:], 4000)
		le.PutUint16(p[16:], page.Size)
		le.PutUint16(p[18:], page.Size|4)
		for k := 4000; k < page.Size; k += 8 {
			le.PutUint64(p[k:], m.random.Uint64())
		}
		le.PutUint16(p[8:], page.Checksum(p, first+uint32(i)))
	}
	return b
}

func file(path string, content []byte, paged bool) tarpart.Entry {
	return tarpart.Entry{Path: path, Mode: 0o600, ModTime: time.Unix(1_700_000_000, 0), Content: content, Paged: paged}
}

// backup takes a full backup. The log gets what it needs.
func (m *maker) backup() string {
	m.t.Helper()
	ctx := m.t.Context()
	m.log.records(3, 500)
	start := m.log.lsn()
	name := archive.BackupName(segmentSize.Name(m.log.timeline, segmentSize.Segment(start)))
	d, err := m.archive().Begin(ctx, name, "here")
	m.check(err)
	put := func(base string, entries ...tarpart.Entry) {
		m.t.Helper()
		p := tarpart.NewPacker(func() (tarpart.Entry, error) {
			if len(entries) == 0 {
				return tarpart.Entry{}, io.EOF
			}
			e := entries[0]
			entries = entries[1:]
			return e, nil
		}, tarpart.Options{})
		m.check(d.PutPart(ctx, base, p, p.Members))
		m.check(d.PutSums(ctx, base, p.Sums()))
	}
	dir := func(path string) tarpart.Entry {
		return tarpart.Entry{Path: path, Type: tarpart.Dir, Mode: 0o700, ModTime: time.Unix(1_700_000_000, 0)}
	}
	put(d.NextPart(), dir("."), file("PG_VERSION", []byte("15\n"), false), dir("base"), dir("base/5"), file("base/5/16384", m.pages(40, 0), true),
		file("base/5/empty", nil, false), file("pg_xact/0000", m.pages(1, 0)[4000:], false))
	put(d.NextPart(), file("base/5/16385.1", m.pages(70, 131072), true), file("postgresql.conf", fmt.Appendf(nil, "# %d\n", m.seed), false))
	put(archive.ControlPart, file(control.Name, m.control, false))
	label := fmt.Sprintf("START WAL LOCATION: %s (file %s)\nSTART TIME: x\n", start, segmentSize.Name(m.log.timeline, segmentSize.Segment(start)))
	put(archive.LabelPart, tarpart.Entry{Path: "backup_label", Content: []byte(label), Mode: 0o600, Bare: true},
		tarpart.Entry{Path: "tablespace_map", Mode: 0o600, Bare: true})
	m.check(d.PutConfig(ctx, bytes.NewReader(m.tar("etc/postgresql.conf", m.seed))))
	m.log.records(2, 500)
	m.log.end()
	m.log.records(2, 500)
	finish := m.log.lsn()
	var theirs bytes.Buffer
	w := manifest.NewWriter(&theirs, 0)
	m.check(w.Add(manifest.File{Path: "PG_VERSION", Size: 3, Modified: time.Unix(1_700_000_000, 0), Algorithm: manifest.CRC32C, Checksum: manifest.ChecksumCRC32C(uint32(m.seed))}))
	m.check(w.Close([]manifest.WALRange{{Timeline: m.log.timeline, Start: start, End: finish}}))
	m.check(d.PutServerManifest(ctx, &theirs))
	yes := true
	now := time.Unix(1_700_000_000+int64(finish>>20), int64(m.seed)).UTC()
	if !m.now.IsZero() {
		now = m.now.UTC()
	}
	m.last = &archive.Sentinel{
		LSN: &start, FinishLSN: &finish, PgVersion: 150004, SystemIdentifier: &m.system, SegmentSize: uint64(segmentSize), Checksums: &yes,
		StartTime: now.Add(-time.Minute), FinishTime: now, Hostname: "db", DataDir: "/data", Tool: "test",
	}
	m.check(d.Commit(ctx, m.last))
	m.name = name
	return name
}

// tar is the stream of a single file.
func (m *maker) tar(path string, seed uint64) []byte {
	p := tarpart.NewPacker(func() (tarpart.Entry, error) {
		if path == "" {
			return tarpart.Entry{}, io.EOF
		}
		e := file(path, fmt.Appendf(nil, "port = %d", 5000+seed), false)
		path = ""
		return e, nil
	}, tarpart.Options{})
	b, err := io.ReadAll(p)
	m.check(err)
	return b
}

// push archives the segments of the log that are finished.
func (m *maker) push() {
	m.t.Helper()
	m.log.end()
	for n, b := range m.log.segments() {
		name := segmentSize.Name(m.log.timeline, segmentSize.Segment(m.log.start)+wal.SegmentNo(n))
		_, err := m.archive().PutWAL(m.t.Context(), name, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		m.check(err)
	}
}

// promote goes on with the next timeline from here on.
func (m *maker) promote() {
	m.t.Helper()
	at := m.log.lsn()
	old := m.log
	m.log = &log{system: old.system, timeline: old.timeline + 1, start: segmentSize.Start(segmentSize.Segment(at)), prev: old.prev, random: old.random}
	m.log.bytes = bytes.Clone(old.bytes[m.log.start-old.start:])
	old.bytes = old.bytes[:m.log.start-old.start] // what is in the segment it was left in is not archived
	history := fmt.Sprintf("%d\t%s\tno recovery target specified\n", old.timeline, at)
	if old.timeline > 1 {
		history = old.history + history
	}
	m.log.history = history
	for n, b := range old.segments() {
		name := segmentSize.Name(old.timeline, segmentSize.Segment(old.start)+wal.SegmentNo(n))
		_, err := m.archive().PutWAL(m.t.Context(), name, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		m.check(err)
	}
	_, err := m.archive().PutWAL(m.t.Context(), wal.HistoryName(m.log.timeline), func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(history)), nil })
	m.check(err)
}

func (m *maker) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// log is WAL as a server writes it.
type log struct {
	system   uint64
	timeline wal.Timeline
	start    wal.LSN
	bytes    []byte // from start
	prev     wal.LSN
	history  string
	random   *rand.Rand
}

const walPage = 8192

func (l *log) lsn() wal.LSN { return l.start + wal.LSN(len(l.bytes)) }

// page begins a page of which rest bytes belong to a record that began before.
func (l *log) page(rest int) {
	flags, length := uint16(0), 24
	if uint64(l.lsn())%uint64(segmentSize) == 0 {
		flags, length = 0x0002, 40
	}
	if rest > 0 {
		flags |= 0x0001
	}
	b := make([]byte, 40)
	le := binary.LittleEndian
	le.PutUint16(b, 0xD110)
	le.PutUint16(b[2:], flags)
	le.PutUint32(b[4:], uint32(l.timeline))
	le.PutUint64(b[8:], uint64(l.lsn()))
	le.PutUint32(b[16:], uint32(rest))
	le.PutUint64(b[24:], l.system)
	le.PutUint32(b[32:], uint32(segmentSize))
	le.PutUint32(b[36:], walPage)
	l.bytes = append(l.bytes, b[:length]...)
}

func (l *log) room() int { return (walPage - len(l.bytes)%walPage) % walPage }

// record writes a record of the XLOG manager.
func (l *log) record(info byte, data []byte) {
	if l.room() == 0 {
		l.page(0)
	}
	begin := l.lsn()
	b := make([]byte, 24, 24+5+len(data))
	if len(data) > 0 {
		b = append(b, 254)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
	}
	le := binary.LittleEndian
	le.PutUint32(b, uint32(len(b)))
	le.PutUint64(b[8:], uint64(l.prev))
	b[16] = info
	le.PutUint32(b[20:], crc32.Update(crc32.Checksum(b[24:], castagnoli), castagnoli, b[:20]))
	for len(b) > 0 {
		if l.room() == 0 {
			l.page(len(b))
		}
		n := min(len(b), l.room())
		l.bytes = append(l.bytes, b[:n]...)
		b = b[n:]
	}
	for len(l.bytes)%8 != 0 {
		l.bytes = append(l.bytes, 0)
	}
	l.prev = begin
}

// records writes n records of some bytes that do nothing (XLOG_NOOP).
func (l *log) records(n, size int) {
	for range n {
		data := make([]byte, size+8*l.random.IntN(4))
		for i := range data[:16] {
			data[i] = byte(l.random.IntN(256))
		}
		l.record(0x20, data)
	}
}

// end switches to the next segment (XLOG_SWITCH), unless it has just begun.
func (l *log) end() {
	if uint64(l.lsn())%uint64(segmentSize) == 0 {
		return
	}
	l.record(0x40, nil)
	if over := uint64(l.lsn()) % uint64(segmentSize); over > 0 {
		l.bytes = append(l.bytes, make([]byte, uint64(segmentSize)-over)...)
	}
}

// segments returns those that are finished.
func (l *log) segments() (all [][]byte) {
	for b := l.bytes; len(b) >= int(segmentSize); b = b[segmentSize:] {
		all = append(all, b[:segmentSize])
	}
	return all
}

// clone copies what a store holds. Times are kept apart: what is put later is newer.
func clone(t *testing.T, from store.Store) *storetest.Memory {
	t.Helper()
	to := &storetest.Memory{}
	for o, err := range store.Walk(t.Context(), from, "") {
		if err != nil {
			t.Fatal(err)
		}
		put(t, to, o.Name, get(t, from, o.Name))
	}
	return to
}

func get(t *testing.T, s store.Store, name string) []byte {
	t.Helper()
	b, err := store.ReadFile(context.Background(), s, name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, s store.Store, name string, b []byte) {
	t.Helper()
	if err := s.Put(context.Background(), name, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
}
