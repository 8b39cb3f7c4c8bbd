package verify_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store/storetest"
	"holdfast/internal/verify"
)

// unfinished returns the segment that the server is writing, as far as it is.
func (m *maker) unfinished() (name string, n wal.SegmentNo, b []byte) {
	at := m.log.lsn()
	n = segmentSize.Segment(at)
	return segmentSize.Name(m.log.timeline, n), n, m.log.bytes[segmentSize.Start(n)-m.log.start:]
}

// Segments in pieces are read: what is right is no finding, and what is not is one of the right object.
func TestPiecesAreVerified(t *testing.T) {
	for _, method := range []compress.Method{compress.Zstd, compress.None} {
		m := story(t, 1, archive.Options{Method: method})
		m.log.records(3, 5000)
		name, n, b := m.unfinished()
		held := int64(len(b))
		dir := archive.TailDir + name + "/"
		piece := func(a *archive.Archive, b []byte, start, end int64) string {
			t.Helper()
			p, err := a.PutTail(t.Context(), name, start, end, bytes.NewReader(b[start:end]))
			if err != nil {
				t.Fatal(err)
			}
			return p.Object
		}
		a := m.archive()
		first, middle, last := piece(a, b, 0, 4000), piece(a, b, 4000, 9000), piece(a, b, 9000, held)
		piece(a, b, 3000, 5000) // which overlaps
		if rep := verified(t, a, verify.Request{All: true}, verify.Options{}); rep.Result != verify.OK || len(rep.Findings) != 0 {
			t.Fatalf("%s: %+v", method, rep.Findings)
		}
		if rep := verified(t, a, verify.Request{Backup: m.name, WAL: true}, verify.Options{}); rep.Result != verify.OK || len(rep.Findings) != 0 {
			t.Fatalf("%s, of one backup: %+v", method, rep.Findings)
		}
		for what, c := range map[string]struct {
			spoil  func(a *archive.Archive, s *storetest.Memory)
			object string
			kind   verify.Kind
			text   string
		}{
			"cut": {func(_ *archive.Archive, s *storetest.Memory) {
				o := get(t, s, middle)
				put(t, s, middle, o[:len(o)-1])
			}, middle, "", ""},
			"changed": {func(a *archive.Archive, s *storetest.Memory) {
				other := bytes.Clone(b)
				other[6000] ^= 1
				if err := s.Delete(t.Context(), middle); err != nil {
					t.Fatal(err)
				}
				piece(a, other, 4000, 9000)
			}, dir, verify.Content, ""},
			"missing": {func(_ *archive.Archive, s *storetest.Memory) {
				if err := s.Delete(t.Context(), middle); err != nil {
					t.Fatal(err)
				}
			}, dir, verify.Missing, "up to 5000 bytes"},
			"the first missing": {func(_ *archive.Archive, s *storetest.Memory) {
				if err := s.Delete(t.Context(), first); err != nil {
					t.Fatal(err)
				}
			}, dir, verify.Missing, "up to 0 bytes"},
			"too long": {func(_ *archive.Archive, s *storetest.Memory) {
				put(t, s, strings.Replace(last, "00002328-", "00002327-", 1), get(t, s, last))
			}, strings.Replace(last, "00002328-", "00002327-", 1), verify.Size, "its name says"},
			"overlapping with something else": {func(a *archive.Archive, s *storetest.Memory) {
				piece(a, bytes.Repeat([]byte("rival"), int(held)), 100, 200)
			}, dir, verify.Foreign, "overlap"},
			"of another cluster": {func(a *archive.Archive, s *storetest.Memory) {
				other := bytes.Clone(b)
				other[24] ^= 1
				if err := s.Delete(t.Context(), first); err != nil {
					t.Fatal(err)
				}
				piece(a, other, 0, 4000)
			}, dir, verify.Foreign, "of the cluster"},
		} {
			s := clone(t, m.store)
			a := archive.New(s, m.options)
			c.spoil(a, s)
			rep := verified(t, a, verify.Request{All: true}, verify.Options{})
			i := slices.IndexFunc(rep.Findings, func(f verify.Finding) bool {
				return f.Severity == verify.Damage && f.Object == c.object && (c.kind == "" || f.Kind == c.kind) && strings.Contains(f.Text, c.text) && f.Means != ""
			})
			if i < 0 || rep.Result != verify.Damage {
				t.Errorf("%s, %s: %+v", method, what, rep.Findings)
			}
		}
		// Once the whole segment is there its pieces harm nobody: that they hold something else is worth knowing.
		m.log.records(1, 500)
		m.log.end()
		m.push()
		if rep := verified(t, a, verify.Request{All: true}, verify.Options{}); rep.Result != verify.OK || len(rep.Findings) != 0 {
			t.Fatalf("%s, and whole: %+v", method, rep.Findings)
		}
		other := bytes.Clone(b)
		other[len(other)-1] ^= 1 // perhaps of what no checksum is over
		if err := m.store.Delete(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		piece(a, other, 9000, held)
		rep := verified(t, a, verify.Request{All: true}, verify.Options{})
		if len(rep.Findings) != 1 || rep.Findings[0].Severity != verify.Warning || rep.Findings[0].Object != dir || rep.Result != verify.OK {
			t.Errorf("%s, and whole, otherwise: %+v of segment %d", method, rep.Findings, n)
		}
	}
}
