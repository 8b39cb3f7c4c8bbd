package verify_test

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"holdfast/internal/archive"
	"holdfast/internal/compress"
	"holdfast/internal/crypt"
	"holdfast/internal/store"
	"holdfast/internal/verify"
)

// ageKey is a key that is the same in all archives of a test: what is encrypted with it in one can be read in another.
func ageKey(t *testing.T) crypt.Key {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	k, err := crypt.Open(t.Context(), crypt.Options{Age: crypt.AgeKeys{Recipients: id.Recipient().String(), Identities: id.String()}})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// kindOf says what an object is in an archive, "" for what no restore needs.
func kindOf(name string) string {
	base := path.Base(name)
	switch {
	case strings.HasSuffix(name, "_backup_stop_sentinel.json"):
		return "sentinel"
	case strings.HasPrefix(base, "pg_control.tar"):
		return "control part"
	case strings.HasPrefix(base, "backup_label.tar"):
		return "label part"
	case strings.Contains(name, "/tar_partitions/"):
		return "part"
	case strings.Contains(name, "/page_sums/"):
		return "page_sums"
	case strings.HasPrefix(name, archive.BackupDir):
		return base
	case strings.HasSuffix(archive.WALName(name), ".history"):
		return "history"
	case strings.HasPrefix(name, archive.WALDir) && !strings.HasSuffix(name, ".json"):
		return "WAL segment"
	}
	return ""
}

// damage is what somebody does to an archive: it changes s, and returns the objects of which any verification must speak, each.
type damage struct {
	kind string
	do   func(s store.Store) (objects []string)
}

// damages are all kinds of damage to one object.
func damages(t *testing.T, m, old *maker, objects []string, object string, flips int) (all []damage) {
	whole := get(t, m.store, object)
	for i := range flips {
		at := i * len(whole) / flips
		if i > 0 {
			at = min(at+i%7, len(whole)-1)
		}
		all = append(all, damage{fmt.Sprintf("bit %d of byte %d of %d flipped", i%8, at, len(whole)), func(s store.Store) []string {
			b := bytes.Clone(whole)
			b[at] ^= 1 << (i % 8)
			put(t, s, object, b)
			return []string{object}
		}})
	}
	for _, n := range []int{0, 1, len(whole) / 2, len(whole) - 9, len(whole) - 1} {
		if n >= 0 {
			all = append(all, damage{fmt.Sprintf("cut off after %d of %d bytes", n, len(whole)), func(s store.Store) []string {
				put(t, s, object, whole[:n])
				return []string{object}
			}})
		}
	}
	all = append(all, damage{"with more behind it", func(s store.Store) []string {
		put(t, s, object, append(bytes.Clone(whole), 0))
		return []string{object}
	}}, damage{"missing", func(s store.Store) []string {
		if err := s.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
		return []string{object}
	}})
	// Of the same kind: one of the same backup or else of another, and of the other.
	var mine, others string
	for _, name := range objects {
		switch {
		case name == object || kindOf(name) != kindOf(object) || bytes.Equal(get(t, m.store, name), whole):
		case backupOf(name) == backupOf(object):
			mine = name
		default:
			others = name
		}
	}
	for what, other := range map[string]string{"swapped with another of the backup": mine, "swapped with that of another backup": others} {
		if other != "" {
			all = append(all, damage{what, func(s store.Store) []string {
				put(t, s, object, get(t, m.store, other))
				put(t, s, other, whole)
				return []string{object, other}
			}}, damage{"replaced, not " + what, func(s store.Store) []string {
				put(t, s, object, get(t, m.store, other))
				return []string{object}
			}})
		}
	}
	if before := get(t, old.store, object); !bytes.Equal(before, whole) {
		all = append(all, damage{"an old one, replayed", func(s store.Store) []string {
			put(t, s, object, before)
			return []string{object}
		}})
	}
	return all
}

func backupOf(object string) string {
	rest, ok := strings.CutPrefix(object, archive.BackupDir)
	if !ok {
		return ""
	}
	return strings.TrimSuffix(strings.Split(rest, "/")[0], "_backup_stop_sentinel.json")
}

// Each kind of damage to each kind of object is found, and the object is named.
func TestDamageIsFoundAndNamed(t *testing.T) {
	flips := 24
	if testing.Short() {
		flips = 6
	}
	key := ageKey(t)
	for name, o := range map[string]archive.Options{
		"zstd": {}, "lz4": {Method: compress.LZ4}, "none": {Method: compress.None}, "zstd, age": {Key: key, Notes: true}, "brotli, age": {Method: compress.Brotli, Key: key, Notes: true},
	} {
		if testing.Short() && name != "zstd" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, old := story(t, 1, o), story(t, 2, o)
			var objects []string
			for o, err := range store.Walk(t.Context(), m.store, "") {
				if err != nil {
					t.Fatal(err)
				}
				if kindOf(o.Name) != "" {
					objects = append(objects, o.Name)
				}
			}
			count := map[string]int{}
			for _, object := range objects {
				flips := flips
				if b := backupOf(object); b != "" && b != backupOf(objects[0]) { // the other has had them
					flips = 0
				}
				for _, d := range damages(t, m, old, objects, object, flips) {
					s := clone(t, m.store)
					want := d.do(s)
					a := archive.New(s, o)
					req := verify.Request{All: true}
					if len(want) == 1 && backupOf(object) != "" {
						req = verify.Request{Backup: backupOf(object)}
					}
					rep := verified(t, a, req, verify.Options{Workers: 2})
					for _, object := range want {
						named := slices.ContainsFunc(rep.Findings, func(f verify.Finding) bool {
							return f.Severity == verify.Damage && (f.Object == object || f.Kind == verify.Missing && f.Object == archive.WALDir+archive.WALName(object))
						})
						if !named && !harmless(t, o, d, object, m.store, s) {
							t.Errorf("%s, %s: not found: %s", object, d.kind, found(rep))
						}
						count[kindOf(object)]++
					}
					if strings.HasPrefix(d.kind, "bit") && len(rep.Findings) > 3 {
						t.Errorf("%s, %s: one changed bit, and %s", object, d.kind, found(rep))
					}
				}
			}
			t.Logf("%d objects, damages: %v", len(objects), count)
		})
	}
}

// harmless reports whether a change is one of which nothing follows: the content is the same, or it is other in a place that nothing speaks for, the
// paddings of WAL that is neither compressed nor encrypted, what is behind a switch to the next segment, or the text of a history file.
func harmless(t *testing.T, o archive.Options, d damage, object string, was, is store.Store) bool {
	if kind := kindOf(object); kind != "WAL segment" && kind != "history" || !strings.HasPrefix(d.kind, "bit") {
		return false
	}
	if o.Method == compress.None && o.Key == nil {
		return true
	}
	read := func(s store.Store) []byte {
		body, err := archive.New(s, o).OpenObject(t.Context(), object)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		b, err := io.ReadAll(body)
		if err != nil {
			t.Errorf("%s, %s: %v", object, d.kind, err)
		}
		return b
	}
	return bytes.Equal(read(was), read(is))
}

// found is what a report says.
func found(rep *verify.Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", rep.Result)
	for _, f := range rep.Findings {
		fmt.Fprintf(&b, "\n    %s %s %s: %s", f.Severity, f.Kind, f.Object, f.Text)
		if f.Offset != nil {
			fmt.Fprintf(&b, " (byte %d)", *f.Offset)
		}
	}
	return b.String()
}
