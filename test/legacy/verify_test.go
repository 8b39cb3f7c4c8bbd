package legacy_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/verify"
)

// verified verifies all that an archive holds.
func verified(t *testing.T, a *archive.Archive) *verify.Report {
	t.Helper()
	p, err := verify.Decide(t.Context(), a, verify.Request{All: true})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Run(t.Context(), a, p, verify.Options{Workers: 2, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// What WAL-G and WAL-E wrote is verified as far as that goes, and it is said what cannot be found. Damage in what has a checksum of whatever kind is found, and the object is
// named; in codecs without one what is cut off is found, and how many changed bits are is logged.
func TestVerify(t *testing.T) {
	flips := 12
	if testing.Short() {
		flips = 4
	}
	for _, name := range []string{"pg15-zstd-full", "pg15-lz4-delta", "pg15-lz4-remote", "pg15-lz4-sodium-hex", "pg15-lz4-pgp-pass", "pg15-brotli-full", "pg17-zstd-timeline", "wale-pg13-lzo"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := load(t, name)
			rep := verified(t, s.at(t, "", nil))
			if rep.Result != verify.OK {
				t.Fatalf("%s: %+v", rep.Result, rep.Findings)
			}
			for _, b := range rep.Backups {
				if b.Result != "ok" || b.Limits == "" || b.Read < 3 {
					t.Errorf("%+v", b)
				}
			}
			for _, f := range rep.Findings {
				t.Logf("%s %s %s %s: %s", f.Severity, f.Kind, f.Object, f.Member, f.Text)
			}
			unsummed := strings.Contains(name, "brotli")
			count := map[string]map[string]int{}
			var objects []string
			for object := range s.objects {
				if class(object) != "" {
					objects = append(objects, object)
				}
			}
			slices.Sort(objects)
			for _, object := range objects {
				c := class(object)
				if count[c] == nil {
					count[c] = map[string]int{}
				}
				try := func(what string, damaged []byte) {
					a := s.at(t, object, damaged)
					if damaged == nil {
						if err := a.Store().Delete(t.Context(), object); err != nil {
							t.Fatal(err)
						}
					}
					rep := verified(t, a)
					named := slices.ContainsFunc(rep.Findings, func(f verify.Finding) bool {
						return (f.Severity == verify.Damage || needless(object) && f.Severity == verify.Warning) && (f.Object == object || f.Kind == verify.Missing && strings.HasPrefix(object, f.Object))
					})
					switch {
					case named:
						count[c]["named"]++
					case rep.Result == verify.Damage:
						count[c]["found"]++
					default:
						count[c]["not found"]++
						if c == "sentinel" || c == "list" && !strings.HasPrefix(what, "cut") || unsummed && strings.HasPrefix(what, "bit") || s.same(t, object, damaged) ||
							damaged == nil && optional(object) {
							return
						}
						t.Errorf("%s, %s: not found", object, what)
					}
				}
				for what, damaged := range damages(s.objects[object], max(2, flips/len(objects)*4)) {
					try(what, damaged)
				}
				try("missing", nil)
			}
			for c, n := range count {
				t.Logf("%s: %v", c, n)
			}
		})
	}
}

// needless reports whether no restore needs an object: what a backup has left, and the unfinished segment of a timeline that was left.
func needless(object string) bool {
	return strings.Contains(object, ".backup.") || strings.Contains(object, ".partial.")
}

// optional reports whether nothing says that an object must be there: WAL that no backup needs, at the end.
func optional(object string) bool {
	return class(object) == "wal" || class(object) == "list"
}

// same reports whether damage left the content of an object as it was.
func (s *stored) same(t *testing.T, object string, damaged []byte) bool {
	read := func(b []byte) ([]byte, error) {
		_, m := compress.Split(object)
		var in io.ReadCloser = io.NopCloser(bytes.NewReader(b))
		if s.key != nil {
			in = s.key.Decrypt(in)
		}
		out := compress.Decompress(in, m)
		content, err := io.ReadAll(out)
		return content, errors.Join(err, out.Close(), in.Close())
	}
	x, err1 := read(s.objects[object])
	y, err2 := read(damaged)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}
